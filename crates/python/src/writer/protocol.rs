//! The methods of a binary file, as `io.BufferedWriter` has them, and `discard`.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::given::Given;
use super::{Content, Opening, Writer};
use crate::file::Target;
use crate::file::protocol::{no_whence, not_negative, sought, unsupported};

#[pymethods]
impl Writer {
    /// Takes all bytes of a buffer at the position; returns how many.
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let given = Given::of(data)?;
        self.put(py, given.bytes())?;
        Ok(given.bytes().len())
    }

    /// Takes the bytes of several buffers, one behind the other.
    fn writelines(&self, py: Python<'_>, lines: &Bound<'_, PyAny>) -> PyResult<()> {
        self.enter(py)?;
        for line in lines.try_iter()? {
            self.put(py, Given::of(&line?)?.bytes())?;
        }
        Ok(())
    }

    /// Moves the position: from the start (0), from where it is (1), from the end (2). Returns it. Beyond the end,
    /// what is not written is zero once something is written behind it.
    #[pyo3(signature = (offset, whence=0, /))]
    fn seek(&self, py: Python<'_>, offset: i64, whence: i32) -> PyResult<u64> {
        let mut entered = self.enter(py)?;
        let base = match whence {
            0 => 0,
            1 => entered.state.position()?,
            2 => entered.state.len()?,
            _ => return Err(no_whence(whence)),
        };
        let position = sought(base, offset, whence)?;
        entered.state.move_to(position)?;
        Ok(position)
    }

    /// The position.
    fn tell(&self, py: Python<'_>) -> PyResult<u64> {
        self.enter(py)?.state.position()
    }

    /// Cuts the content, or makes it longer by zeros; to the position without a size. The position stays. Returns the
    /// size.
    #[pyo3(signature = (size=None, /))]
    fn truncate(&self, py: Python<'_>, size: Option<i64>) -> PyResult<u64> {
        self.resize(py, size.map(|size| not_negative("size", size)).transpose()?)
    }

    /// Has what was written be in the file that `fileno` names. Promises nothing else: only `close` does.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let mut entered = self.enter(py)?;
        match &entered.state.content {
            Content::Draft(_) => entered.state.tried(py, |state| state.draft(py, &self.aim)?.spill(py)),
            _ => Ok(()),
        }
    }

    /// A descriptor to write with, at the same position. It ends with the file: who still writes by a copy of it after
    /// `close` damages what was committed.
    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        let mut entered = self.enter(py)?;
        if matches!(&entered.state.content, Content::Draft(draft) if draft.is_partial()) {
            return Err(unsupported("fileno: the file is large, and only what is written of it is here"));
        }
        let position = entered.state.position()?;
        entered.state.tried(py, |state| state.draft(py, &self.aim)?.share(py, position))
    }

    /// Makes everything that was written the content of the file, as durable as declared. Later calls do nothing.
    ///
    /// An error means that nothing was committed, unless it says so; the file is closed all the same.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.commit(py)
    }

    /// Drops everything that was written; the file stays what it was before it was opened. Later calls do nothing.
    fn discard(&self, py: Python<'_>) -> PyResult<()> {
        self.abandon(py)
    }

    /// Whether it has been closed or discarded, or belongs to the process that this one was forked from.
    #[getter]
    fn closed(&self) -> bool {
        self.is_closed()
    }

    /// `True`.
    fn writable(&self, py: Python<'_>) -> PyResult<bool> {
        self.enter(py).map(|_| true)
    }

    /// `True`.
    fn seekable(&self, py: Python<'_>) -> PyResult<bool> {
        self.enter(py).map(|_| true)
    }

    /// Whether it was opened to be read as well: by `readinto` and `readall`, for a buffer that has the rest.
    fn readable(&self, py: Python<'_>) -> PyResult<bool> {
        self.enter(py).map(|_| self.aim.reads)
    }

    /// `False`.
    fn isatty(&self, py: Python<'_>) -> PyResult<bool> {
        self.enter(py).map(|_| false)
    }

    /// `io.UnsupportedOperation`: the file is open for writing.
    #[pyo3(signature = (*_arguments))]
    fn read(&self, _arguments: &Bound<'_, PyTuple>) -> PyResult<()> {
        Err(unsupported("read: the file is open for writing"))
    }

    /// `io.UnsupportedOperation`: the file is open for writing.
    #[pyo3(signature = (*_arguments))]
    fn read1(&self, _arguments: &Bound<'_, PyTuple>) -> PyResult<()> {
        Err(unsupported("read: the file is open for writing"))
    }

    /// Fills `buffer` from the position on; returns how many bytes, fewer only at the end. `io.UnsupportedOperation`
    /// where the file is only written.
    #[pyo3(signature = (buffer=None))]
    fn readinto(&self, py: Python<'_>, buffer: Option<&Bound<'_, PyAny>>) -> PyResult<usize> {
        self.check_readable()?;
        let buffer = buffer.ok_or_else(|| PyTypeError::new_err("readinto takes a buffer"))?;
        let target = Target::of(buffer)?;
        self.fill(py, target.first(target.len))
    }

    /// All bytes from the position on. `io.UnsupportedOperation` where the file is only written.
    fn readall<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.check_readable()?;
        let left = {
            let entered = self.enter(py)?;
            entered.state.len()?.saturating_sub(entered.state.position()?)
        };
        let mut bytes = vec![0; usize::try_from(left)?];
        let read = self.fill(py, &mut bytes)?;
        Ok(PyBytes::new(py, &bytes[..read]))
    }

    /// `io.UnsupportedOperation`: the file is open for writing.
    #[pyo3(signature = (*_arguments))]
    fn readinto1(&self, _arguments: &Bound<'_, PyTuple>) -> PyResult<()> {
        Err(unsupported("read: the file is open for writing"))
    }

    /// `io.UnsupportedOperation`: the file is open for writing.
    #[pyo3(signature = (*_arguments))]
    fn readline(&self, _arguments: &Bound<'_, PyTuple>) -> PyResult<()> {
        Err(unsupported("read: the file is open for writing"))
    }

    /// `io.UnsupportedOperation`: the file is open for writing.
    #[pyo3(signature = (*_arguments))]
    fn readlines(&self, _arguments: &Bound<'_, PyTuple>) -> PyResult<()> {
        Err(unsupported("read: the file is open for writing"))
    }

    /// `io.UnsupportedOperation`: there is no raw stream below.
    fn detach(&self) -> PyResult<()> {
        Err(unsupported("detach: there is no raw stream"))
    }

    /// Path in the tree.
    #[getter]
    fn name(&self) -> &str {
        &self.aim.path
    }

    /// `wb`, `xb` or `ab` as it was opened; `rb+`, `wb+`, `xb+` or `ab+` where it can be read as well.
    #[getter]
    fn mode(&self) -> &'static str {
        match (self.aim.opening, self.aim.reads) {
            (Opening::New, false) => "wb",
            (Opening::Exclusive, false) => "xb",
            (Opening::Append, false) => "ab",
            (Opening::New, true) => "wb+",
            (Opening::Exclusive, true) => "xb+",
            (Opening::Append, true) => "ab+",
            (Opening::Existing, _) => "rb+",
        }
    }

    fn __iter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().enter(slf.py())?;
        Err(unsupported("read: the file is open for writing"))
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().enter(slf.py())?;
        Ok(slf)
    }

    /// Commits; after an exception, discards.
    #[pyo3(signature = (kind=None, *_exception))]
    fn __exit__(
        &self,
        py: Python<'_>,
        kind: Option<&Bound<'_, PyAny>>,
        _exception: &Bound<'_, PyTuple>,
    ) -> PyResult<()> {
        if kind.is_none() { self.commit(py) } else { self.abandon(py) }
    }

    fn __repr__(&self) -> String {
        let closed = if self.is_closed() { " closed" } else { "" };
        format!("<penstock Writer {:?}{closed}>", self.aim.path)
    }

    /// Refused: two processes that write one file would not know of each other.
    fn __reduce__(&self) -> PyResult<()> {
        let reason = "a file that is open for writing belongs to its process: open another one there";
        Err(PyTypeError::new_err(format!("cannot pickle {}: {reason}", self.aim.path)))
    }
}
