//! Read-only bytes that are not copied: of a batch in shared memory, or of a mapped file.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use penstock_node::mapping::Mapping;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::client::ArenaLease;
use crate::file::Handle;

/// What keeps the bytes where they are.
enum Keep {
    Arena { _lease: Arc<ArenaLease> },
    File { _mapping: Mapping, _handle: Arc<Handle> },
    Owned { _bytes: Box<[u8]> },
}

/// Read-only bytes: `memoryview(view)`, `bytes(view)`, `numpy.frombuffer(view, …)` work without or with one copy.
/// They stay valid as long as any of these exists, whatever happens to the file they came from.
#[pyclass(frozen, module = "penstock._core", weakref)]
pub struct View {
    start: NonNull<u8>,
    len: usize,
    _keep: Keep,
}

// SAFETY: the bytes never change while `_keep` lives, and it gives them back only when dropped.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// `len` bytes at `at` of a batch.
    pub fn of_arena(lease: &Arc<ArenaLease>, at: usize, len: usize) -> Option<Self> {
        if at.checked_add(len)? > lease.mapping.len() {
            return None;
        }
        // SAFETY: inside the mapping, as just checked.
        let start = unsafe { lease.mapping.start().add(at) };
        Some(Self { start, len, _keep: Keep::Arena { _lease: Arc::clone(lease) } })
    }

    /// `len` bytes at `at` of a mapping of a complete file, which `handle` holds.
    pub fn of_file(mapping: Mapping, at: usize, len: usize, handle: Arc<Handle>) -> Self {
        assert!(at + len <= mapping.len(), "a view lies inside its mapping");
        // SAFETY: inside the mapping, as just checked.
        let start = unsafe { mapping.start().add(at) };
        Self { start, len, _keep: Keep::File { _mapping: mapping, _handle: handle } }
    }

    /// Bytes of its own.
    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        let mut bytes = bytes.into_boxed_slice();
        let len = bytes.len();
        let start = NonNull::new(bytes.as_mut_ptr()).unwrap_or(NonNull::dangling());
        Self { start, len, _keep: Keep::Owned { _bytes: bytes } }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start` and `len` lie inside what `_keep` holds, which does not change while `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

#[pymethods]
impl View {
    fn __len__(&self) -> usize {
        self.len
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.bytes())
    }

    /// The bytes, copied.
    fn tobytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.bytes())
    }

    /// Bytes or slices, as `memoryview` gives them: a slice is not copied.
    fn __getitem__<'py>(slf: &Bound<'py, Self>, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        memory_view(slf)?.get_item(index)
    }

    fn __eq__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<bool> {
        memory_view(slf)?.eq(other)
    }

    fn __hash__(&self) -> PyResult<u64> {
        Err(pyo3::exceptions::PyTypeError::new_err("unhashable type: 'View'"))
    }

    fn __repr__(&self) -> String {
        format!("<View of {} bytes>", self.len)
    }

    /// Pickles as the bytes themselves: what it lends cannot travel.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        Ok((py.get_type::<PyBytes>().into_any(), (PyBytes::new(py, self.bytes()),)))
    }

    /// # Safety
    /// Called by the interpreter with a `Py_buffer` to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no buffer to fill"));
        }
        let this = slf.get();
        let start = this.start.as_ptr().cast::<c_void>();
        let len = this.len as ffi::Py_ssize_t;
        // SAFETY: `view` is the interpreter's; the bytes live as long as this object, to which the buffer holds a
        // reference; read-only is declared.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, len, 1, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

fn memory_view<'py>(view: &Bound<'py, View>) -> PyResult<Bound<'py, PyAny>> {
    Ok(pyo3::types::PyMemoryView::from(view.as_any())?.into_any())
}
