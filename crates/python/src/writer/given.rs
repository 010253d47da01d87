//! Memory of the caller that a write takes.

use std::marker::PhantomData;

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;

/// A contiguous buffer, whatever its elements are. Released when dropped, which needs the interpreter.
pub struct Given<'py> {
    view: Box<ffi::Py_buffer>,
    attached: PhantomData<Python<'py>>,
}

impl<'py> Given<'py> {
    /// The memory of `object`; `TypeError` where it has none, `BufferError` where it is not in one piece.
    pub fn of(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let mut view = Box::new(ffi::Py_buffer::new());
        // Plain bytes are asked for: some arrays, as of dates, can describe their elements to nobody.
        // SAFETY: the interpreter fills `view`, which stays where it is; `object` is alive.
        let failed = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut *view, ffi::PyBUF_SIMPLE) } != 0;
        if !failed {
            return Ok(Self { view, attached: PhantomData });
        }
        let cause = PyErr::fetch(object.py());
        // SAFETY: `object` is alive.
        if unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) } != 0 {
            return Err(cause);
        }
        let kind = object.get_type().name().map(|name| name.to_string()).unwrap_or_default();
        Err(PyTypeError::new_err(format!("a bytes-like object is required, not '{kind}'")))
    }

    /// The bytes. The caller owns the buffer by the rules of the interpreter: who changes it from another thread
    /// meanwhile gets a mixture, as with every `write`.
    pub fn bytes(&self) -> &[u8] {
        let len = usize::try_from(self.view.len).expect("a buffer's length is not negative");
        if len == 0 {
            return &[];
        }
        // SAFETY: the buffer is contiguous and held by `self`; its length is the interpreter's.
        unsafe { std::slice::from_raw_parts(self.view.buf.cast(), len) }
    }
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        // SAFETY: filled by the interpreter, released once; `'py` says that we are attached.
        unsafe { ffi::PyBuffer_Release(&raw mut *self.view) }
    }
}
