//! The methods of a binary file, as `io.BufferedReader` has them, and reads at an offset.

use std::sync::atomic::Ordering;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple, PyType};
use rustix::io::Errno;

use super::File;
use super::target::Target;
use crate::errors::closed;
use crate::view::View;

/// What `read1` without a size returns at most.
const READ1_BYTES: usize = 128 * 1024;

#[pymethods]
impl File {
    /// Up to `size` bytes from the position on; all that are left without a size. Empty only at the end.
    #[pyo3(signature = (size=None, /))]
    fn read<'py>(&self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        self.read_up_to(py, size.and_then(|size| usize::try_from(size).ok()))
    }

    /// As `read`, but without a size only a piece.
    #[pyo3(signature = (size=-1, /))]
    fn read1<'py>(&self, py: Python<'py>, size: isize) -> PyResult<Bound<'py, PyBytes>> {
        self.read_up_to(py, Some(usize::try_from(size).unwrap_or(READ1_BYTES)))
    }

    /// All bytes that are left.
    fn readall<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.read(py, None)
    }

    /// Fills `buffer` from the position on; returns how many bytes, fewer only at the end.
    fn readinto(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<usize> {
        let target = Target::of(buffer)?;
        self.unless_gone(py, || {
            let reserved = self.reserve(Some(target.len))?;
            self.fill(py, &reserved, target.first(reserved.len))?;
            Ok(reserved.len)
        })
    }

    /// The same as `readinto`.
    fn readinto1(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<usize> {
        self.readinto(py, buffer)
    }

    /// Up to `size` bytes from `offset` on. The position stays; any thread may do this at any time.
    fn pread<'py>(&self, py: Python<'py>, size: i64, offset: i64) -> PyResult<Bound<'py, PyBytes>> {
        self.bytes_at(py, not_negative("offset", offset)?, length(size)?)
    }

    /// Fills `buffer` from `offset` on; returns how many bytes. The position stays.
    fn pread_into(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>, offset: i64) -> PyResult<usize> {
        let offset = not_negative("offset", offset)?;
        let target = Target::of(buffer)?;
        self.unless_gone(py, || {
            let handle = self.handle()?;
            let len = handle.clipped(offset, target.len);
            if len > 0 {
                self.read_at(py, &handle, offset, target.first(len))?;
            }
            Ok(len)
        })
    }

    /// Read-only bytes from `offset` on, to the end without a size. Not copied where all of the file is local. They
    /// stay valid after the file is closed.
    #[pyo3(signature = (offset=0, size=None))]
    fn view(&self, py: Python<'_>, offset: i64, size: Option<i64>) -> PyResult<View> {
        self.view_of(py, not_negative("offset", offset)?, size.map_or(Ok(usize::MAX), length)?)
    }

    /// The next line with its end, at most `size` bytes of it; empty at the end of the file.
    #[pyo3(signature = (size=None, /))]
    fn readline<'py>(&self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        self.line(py, size.and_then(|size| usize::try_from(size).ok()))
    }

    /// The lines that are left, as many as together reach `hint` bytes.
    #[pyo3(signature = (hint=None, /))]
    fn readlines<'py>(&self, py: Python<'py>, hint: Option<isize>) -> PyResult<Bound<'py, PyList>> {
        let hint = hint.and_then(|hint| usize::try_from(hint).ok()).filter(|hint| *hint > 0).unwrap_or(usize::MAX);
        let lines = PyList::empty(py);
        let mut total = 0;
        while total < hint {
            let line = self.line(py, None)?;
            let len = line.as_bytes().len();
            if len == 0 {
                break;
            }
            total += len;
            lines.append(line)?;
        }
        Ok(lines)
    }

    /// Some bytes from the position on, without moving it; empty only at the end.
    #[pyo3(signature = (_size=0, /))]
    fn peek<'py>(&self, py: Python<'py>, _size: isize) -> PyResult<Bound<'py, PyBytes>> {
        self.peeked(py)
    }

    fn __iter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().position()?;
        Ok(slf)
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let line = self.line(py, None)?;
        Ok((!line.as_bytes().is_empty()).then_some(line))
    }

    /// Moves the position: from the start (0), from where it is (1), from the end (2). Returns it.
    #[pyo3(signature = (offset, whence=0, /))]
    fn seek(&self, offset: i64, whence: i32) -> PyResult<u64> {
        let mut state = self.state();
        if state.handle.is_none() {
            return Err(closed());
        }
        let base = match whence {
            0 => 0,
            1 => state.position,
            2 => {
                self.told.store(true, Ordering::Relaxed);
                state.pinned.size
            }
            _ => return Err(no_whence(whence)),
        };
        state.position = sought(base, offset, whence)?;
        Ok(state.position)
    }

    /// The position.
    fn tell(&self) -> PyResult<u64> {
        self.position()
    }

    /// Ends the lease. Views stay valid. Later calls do nothing.
    fn close(&self) {
        let (handle, chunk, own) = {
            let mut state = self.state();
            (state.handle.take(), state.chunk.take(), state.own.take())
        };
        drop((handle, chunk, own));
    }

    /// Whether it has been closed.
    #[getter]
    fn closed(&self) -> bool {
        self.state().handle.is_none()
    }

    /// `True`.
    fn readable(&self) -> PyResult<bool> {
        self.position().map(|_| true)
    }

    /// `True`.
    fn seekable(&self) -> PyResult<bool> {
        self.position().map(|_| true)
    }

    /// `False`.
    fn writable(&self) -> PyResult<bool> {
        self.position().map(|_| false)
    }

    /// `False`.
    fn isatty(&self) -> PyResult<bool> {
        self.position().map(|_| false)
    }

    /// Nothing to do.
    fn flush(&self) -> PyResult<()> {
        self.position().map(drop)
    }

    /// A descriptor of the file, where all of it is local; else `io.UnsupportedOperation`.
    fn fileno(&self) -> PyResult<i32> {
        self.own_descriptor()
    }

    /// `io.UnsupportedOperation`: the file is open for reading.
    #[pyo3(signature = (*_arguments))]
    fn write(&self, _arguments: &Bound<'_, PyTuple>) -> PyResult<()> {
        Err(unsupported("write: the file is open for reading"))
    }

    /// `io.UnsupportedOperation`: the file is open for reading.
    #[pyo3(signature = (*_arguments))]
    fn writelines(&self, _arguments: &Bound<'_, PyTuple>) -> PyResult<()> {
        Err(unsupported("write: the file is open for reading"))
    }

    /// `io.UnsupportedOperation`: the file is open for reading.
    #[pyo3(signature = (*_arguments))]
    fn truncate(&self, _arguments: &Bound<'_, PyTuple>) -> PyResult<()> {
        Err(unsupported("truncate: the file is open for reading"))
    }

    /// `io.UnsupportedOperation`: there is no raw stream below.
    fn detach(&self) -> PyResult<()> {
        Err(unsupported("detach: there is no raw stream"))
    }

    /// Path in the tree.
    #[getter]
    fn name(&self) -> &str {
        &self.path
    }

    /// `rb`.
    #[getter]
    fn mode(&self) -> &'static str {
        "rb"
    }

    /// Length in bytes.
    #[getter]
    fn size(&self) -> u64 {
        self.len()
    }

    /// Last modification, milliseconds since the Unix epoch.
    #[getter]
    fn modified_ms(&self) -> i64 {
        self.show().modified_ms
    }

    /// The version that every byte belongs to.
    #[getter]
    fn version(&self) -> String {
        self.show().version.as_str().to_owned()
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().position()?;
        Ok(slf)
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) {
        self.close();
    }

    fn __repr__(&self) -> String {
        let closed = if self.closed() { " closed" } else { "" };
        format!("<penstock File {:?}{closed}>", self.path)
    }

    /// Pickles as what it is open on: the copy opens the same version at the same position.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let position = self.position()?;
        let reopen = py.import("penstock._core")?.getattr("reopen")?;
        let socket = self.pool.path().to_string_lossy().into_owned();
        let state = (socket, self.pool.client(), &self.path, self.version(), position);
        Ok((reopen, state.into_pyobject(py)?))
    }
}

/// Where a seek leads to that starts at `base`.
pub fn sought(base: u64, offset: i64, whence: i32) -> PyResult<u64> {
    base.checked_add_signed(offset).ok_or_else(|| match whence {
        0 => PyValueError::new_err(format!("negative seek value {offset}")),
        _ => PyOSError::new_err((Errno::INVAL.raw_os_error(), "the position would be negative")),
    })
}

/// What a seek from nowhere raises.
pub fn no_whence(whence: i32) -> PyErr {
    PyValueError::new_err(format!("invalid whence ({whence}, should be 0, 1 or 2)"))
}

pub fn not_negative(what: &str, value: i64) -> PyResult<u64> {
    u64::try_from(value).map_err(|_| PyValueError::new_err(format!("{what} is negative: {value}")))
}

fn length(size: i64) -> PyResult<usize> {
    not_negative("size", size).map(|size| usize::try_from(size).unwrap_or(usize::MAX))
}

/// `io.UnsupportedOperation`.
pub fn unsupported(text: &str) -> PyErr {
    Python::attach(|py| {
        let kind = py.import("io").and_then(|io| io.getattr("UnsupportedOperation"));
        match kind.and_then(|kind| kind.cast_into::<PyType>().map_err(Into::into)) {
            Ok(kind) => PyErr::from_type(kind, text.to_string()),
            Err(error) => error,
        }
    })
}
