//! Memory of the caller that a read fills.

use std::marker::PhantomData;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;

/// A writable, contiguous buffer, whatever its elements are. Released when dropped, which needs the interpreter.
pub struct Target<'py> {
    view: Box<ffi::Py_buffer>,
    /// Its bytes.
    pub len: usize,
    attached: PhantomData<Python<'py>>,
}

impl<'py> Target<'py> {
    /// The memory of `object`; `TypeError` or `BufferError` where nothing may be written, or not in one piece.
    pub fn of(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let mut view = Box::new(ffi::Py_buffer::new());
        // Plain bytes are asked for: some arrays, as of dates, can describe their elements to nobody.
        // SAFETY: the interpreter fills `view`, which stays where it is; `object` is alive.
        let failed = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut *view, ffi::PyBUF_WRITABLE) } != 0;
        if failed {
            return Err(refusal(object, PyErr::fetch(object.py())));
        }
        let len = usize::try_from(view.len).expect("a buffer's length is not negative");
        Ok(Self { view, len, attached: PhantomData })
    }

    /// Its first bytes. The caller owns the buffer by the rules of the interpreter: who writes into it from another
    /// thread at the same time gets a mixture, as with every `readinto`.
    #[allow(clippy::mut_from_ref, reason = "the buffer, not this value, is what is written")]
    pub fn first(&self, len: usize) -> &mut [u8] {
        assert!(len <= self.len, "a read fits its buffer");
        if len == 0 {
            return &mut [];
        }
        // SAFETY: the buffer is writable, contiguous, and held by `self`; the length was checked.
        unsafe { std::slice::from_raw_parts_mut(self.view.buf.cast(), len) }
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        // SAFETY: filled by the interpreter, released once; `'py` says that we are attached.
        unsafe { ffi::PyBuffer_Release(&raw mut *self.view) }
    }
}

/// Why nothing can be read into `object`, in words; `cause` is what it said itself.
fn refusal(object: &Bound<'_, PyAny>, cause: PyErr) -> PyErr {
    match PyUntypedBuffer::get(object) {
        Ok(buffer) if buffer.readonly() => PyTypeError::new_err("the buffer is read-only"),
        Ok(buffer) if !buffer.is_c_contiguous() => PyBufferError::new_err("the buffer is not contiguous"),
        Ok(_) => cause,
        // SAFETY: `object` is alive.
        Err(_) if unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) } != 0 => cause,
        Err(_) => {
            let kind = object.get_type().name().map(|name| name.to_string()).unwrap_or_default();
            PyTypeError::new_err(format!("a read-write bytes-like object is needed, not {kind}"))
        }
    }
}
