//! Reads that are smaller than what is worth a system call: lines, and small pieces one after another.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::File;
use crate::errors::closed;

/// What is read at once for lines and small reads.
const CHUNK_BYTES: usize = 64 * 1024;

/// Some bytes of a file, kept for the next small read.
pub struct Chunk {
    start: u64,
    bytes: Box<[u8]>,
}

impl Chunk {
    /// Whether it holds all of these bytes.
    pub fn covers(&self, offset: u64, len: usize) -> bool {
        offset >= self.start && offset + len as u64 <= self.start + self.bytes.len() as u64
    }

    /// Copies bytes that it covers.
    pub fn copy(&self, offset: u64, out: &mut [u8]) {
        out.copy_from_slice(&self.from(offset)[..out.len()]);
    }

    /// Its bytes from `offset` on; empty where it holds none.
    fn from(&self, offset: u64) -> &[u8] {
        let skip = offset.checked_sub(self.start).and_then(|skip| usize::try_from(skip).ok());
        skip.and_then(|skip| self.bytes.get(skip..)).unwrap_or_default()
    }
}

impl File {
    /// The kept chunk where it holds the byte at `offset`, else a new one from there; empty at the end of the file.
    pub(super) fn chunk_at(&self, py: Python<'_>, offset: u64) -> PyResult<Arc<Chunk>> {
        let handle = {
            let state = self.state();
            if let Some(chunk) = state.chunk.as_ref().filter(|chunk| !chunk.from(offset).is_empty()) {
                return Ok(Arc::clone(chunk));
            }
            Arc::clone(state.handle.as_ref().ok_or_else(closed)?)
        };
        let mut bytes = vec![0; handle.clipped(offset, CHUNK_BYTES)].into_boxed_slice();
        if !bytes.is_empty() {
            self.read_at(py, &handle, offset, &mut bytes)?;
        }
        let chunk = Arc::new(Chunk { start: offset, bytes });
        let mut state = self.state();
        if state.handle.is_some() {
            state.chunk = Some(Arc::clone(&chunk));
        }
        Ok(chunk)
    }

    /// The next line with its end, at most `limit` bytes of it; empty at the end of the file.
    pub(super) fn line<'py>(&self, py: Python<'py>, limit: Option<usize>) -> PyResult<Bound<'py, PyBytes>> {
        self.unless_gone(py, || self.line_now(py, limit))
    }

    fn line_now<'py>(&self, py: Python<'py>, limit: Option<usize>) -> PyResult<Bound<'py, PyBytes>> {
        let limit = limit.unwrap_or(usize::MAX);
        let start = self.position()?;
        let mut line = Vec::new();
        loop {
            let at = start + line.len() as u64;
            let chunk = self.chunk_at(py, at)?;
            let rest = chunk.from(at);
            let rest = &rest[..rest.len().min(limit - line.len())];
            let end = rest.iter().position(|byte| *byte == b'\n').map(|newline| newline + 1);
            let taken = &rest[..end.unwrap_or(rest.len())];
            let is_last = end.is_some() || taken.is_empty() || line.len() + taken.len() >= limit;
            if is_last && line.is_empty() {
                self.move_to(start + taken.len() as u64);
                return Ok(PyBytes::new(py, taken));
            }
            line.extend_from_slice(taken);
            if is_last {
                self.move_to(start + line.len() as u64);
                return Ok(PyBytes::new(py, &line));
            }
        }
    }

    /// Bytes from the position on without moving it; at least one but at the end of the file.
    pub(super) fn peeked<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.unless_gone(py, || {
            let position = self.position()?;
            let chunk = self.chunk_at(py, position)?;
            Ok(PyBytes::new(py, chunk.from(position)))
        })
    }

    pub(super) fn position(&self) -> PyResult<u64> {
        let state = self.state();
        if state.handle.is_none() { Err(closed()) } else { Ok(state.position) }
    }

    fn move_to(&self, position: u64) {
        let mut state = self.state();
        state.position = position;
        state.read_end = position;
    }
}
