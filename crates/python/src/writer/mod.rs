//! A file open for writing: a binary file whose content appears as a whole when it is closed, or never.

mod draft;
mod given;
mod onto;
mod protocol;

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use penstock_node::SetRef;
use penstock_node::protocol::{Reply, Request, SMALL_WRITE_BYTES_MAX};
use penstock_types::{Durability, Error, ErrorKind, TreePath};
use pyo3::exceptions::{PyOSError, PyResourceWarning, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use rustix::io::Errno;

use crate::client::{Pool, unexpected};
use crate::errors::{closed, is_kind, ours, raise};
use crate::file::protocol::unsupported;
use draft::Draft;
pub use given::Given;

/// A file of the tree, open for writing: a new content, or what is there and is changed. Nobody sees anything of it before it
/// is closed without an error; it is
/// discarded when a `with` block is left by an exception, by `discard`, and when it is dropped. Safe to share between
/// threads; in a forked child it is closed.
#[pyclass(frozen, module = "penstock._core", weakref)]
pub struct Writer {
    aim: Arc<Aim>,
    /// The process that opened it, which alone writes and commits.
    pid: u32,
    closed: AtomicBool,
    /// The thread that is in a call; 0 when there is none.
    inside: AtomicUsize,
    /// Held across I/O, but only by threads of the process that opened it.
    state: Mutex<State>,
}

/// What will be written, and how.
pub struct Aim {
    pool: Arc<Pool>,
    path: String,
    opening: Opening,
    /// Whether what is there and what was written can be read.
    reads: bool,
    /// Only where nothing has the name: as it was asked for, or found when it was opened.
    exclusive: bool,
    durability: Option<Durability>,
    /// The set that it is a file of.
    set: Option<SetRef>,
}

/// What the content of a file begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// Nothing.
    New,
    /// Nothing, and only where nothing has the name.
    Exclusive,
    /// What is there, behind which everything is written.
    Append,
    /// What is there.
    Existing,
}

struct State {
    position: u64,
    content: Content,
}

/// What was written so far.
enum Content {
    /// Little enough to go along with the commit.
    Memory(Vec<u8>),
    /// In a file of the stage.
    Draft(Draft),
    /// Some of it was not taken, for this reason: it is never committed.
    Failed(Error),
    /// Nothing any more: it was committed or discarded.
    Over,
}

/// A writer that this thread alone is using.
struct Entered<'a> {
    inside: &'a AtomicUsize,
    state: MutexGuard<'a, State>,
}

impl Writer {
    /// Begins to write `path`; with `reads`, and to read what was written.
    pub fn open(
        py: Python<'_>,
        pool: &Arc<Pool>,
        path: String,
        (opening, reads): (Opening, bool),
        durability: Option<Durability>,
        set: Option<SetRef>,
    ) -> PyResult<Self> {
        TreePath::parse(&path).map_err(|error| raise(&error))?;
        let exclusive = opening == Opening::Exclusive;
        let mut aim = Aim { pool: Arc::clone(pool), path, opening, reads, exclusive, durability, set };
        // A set was asked when it was begun.
        if aim.set.is_none() {
            aim.check_writable(py)?;
            if exclusive {
                aim.check_absent(py)?;
            }
        }
        let found = match opening {
            Opening::New | Opening::Exclusive => None,
            Opening::Append | Opening::Existing => aim.find(py)?,
        };
        aim.exclusive |= opening == Opening::Append && found.is_none();
        let aim = Arc::new(aim);
        let content = match found {
            Some(found) => Content::Draft(Draft::onto(py, &aim, found)?),
            None => Content::Memory(Vec::new()),
        };
        let state = State { position: 0, content };
        let position = if opening == Opening::Append { state.len()? } else { 0 };
        Ok(Self {
            aim,
            pid: std::process::id(),
            closed: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            state: Mutex::new(State { position, ..state }),
        })
    }

    fn is_inherited(&self) -> bool {
        self.pid != std::process::id()
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire) || self.is_inherited()
    }

    /// Waits for the other threads; `ValueError` where it is closed.
    fn enter(&self, py: Python<'_>) -> PyResult<Entered<'_>> {
        if self.is_inherited() {
            return Err(PyValueError::new_err(format!("write {}: another process opened the file", self.aim.path)));
        }
        let entered = self.enter_anyway(py)?;
        if self.is_closed() { Err(closed()) } else { Ok(entered) }
    }

    fn enter_anyway(&self, py: Python<'_>) -> PyResult<Entered<'_>> {
        let this_thread = this_thread();
        if self.inside.load(Ordering::Relaxed) == this_thread {
            // A signal handler that writes to the file whose write it interrupts would wait for itself.
            return Err(PyRuntimeError::new_err(format!("reentrant call inside the file {}", self.aim.path)));
        }
        let state = self.state.lock_py_attached(py).expect("no panic while a file is written");
        self.inside.store(this_thread, Ordering::Relaxed);
        Ok(Entered { inside: &self.inside, state })
    }

    /// Closes it for everybody; what it was until now, or `None` where it was closed already.
    fn finish(&self, py: Python<'_>) -> PyResult<Option<(Entered<'_>, Content)>> {
        if self.is_closed() {
            return Ok(None);
        }
        let mut entered = self.enter_anyway(py)?;
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(None);
        }
        let content = std::mem::replace(&mut entered.state.content, Content::Over);
        Ok(Some((entered, content)))
    }

    /// Commits.
    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        let Some((_entered, content)) = self.finish(py)? else { return Ok(()) };
        match content {
            Content::Memory(data) => self.aim.commit_small(py, data),
            Content::Draft(draft) => draft.commit(py),
            Content::Failed(error) => Err(raise(&error.during(self.aim.closing()))),
            Content::Over => Ok(()),
        }
    }

    /// Drops what was written.
    fn abandon(&self, py: Python<'_>) -> PyResult<()> {
        self.finish(py).map(drop)
    }

    fn put(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        let mut entered = self.enter(py)?;
        let state = &mut *entered.state;
        let position = if self.aim.opening == Opening::Append { state.len()? } else { state.position()? };
        let end = position.checked_add(bytes.len() as u64).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or_else(|| PyOSError::new_err((Errno::FBIG.raw_os_error(), "the file would be too large")))?;
        if bytes.is_empty() {
            return Ok(());
        }
        match &mut state.content {
            Content::Memory(memory) if end <= SMALL_WRITE_BYTES_MAX as u64 => lay(memory, position, bytes),
            _ => state.tried(py, |state| state.draft(py, &self.aim)?.put(py, position, bytes))?,
        }
        state.move_to(end)
    }

    /// Fills `out` from the position on; how many bytes, fewer only at the end.
    fn fill(&self, py: Python<'_>, out: &mut [u8]) -> PyResult<usize> {
        let mut entered = self.enter(py)?;
        let state = &mut *entered.state;
        let (position, len) = (state.position()?, state.len()?);
        let wanted = usize::try_from(len.saturating_sub(position)).unwrap_or(usize::MAX).min(out.len());
        let out = &mut out[..wanted];
        match &state.content {
            Content::Memory(memory) => {
                let start = usize::try_from(position.min(len)).expect("small contents fit memory");
                out.copy_from_slice(&memory[start..start + wanted]);
            }
            _ => {
                state.tried(py, |state| state.draft(py, &self.aim)?.spill(py))?;
                state.draft(py, &self.aim)?.read(py, position, out)?;
            }
        }
        state.move_to(position + wanted as u64)?;
        Ok(wanted)
    }

    fn check_readable(&self) -> PyResult<()> {
        if self.aim.reads { Ok(()) } else { Err(unsupported("read: the file is open for writing")) }
    }

    fn resize(&self, py: Python<'_>, size: Option<u64>) -> PyResult<u64> {
        let mut entered = self.enter(py)?;
        let state = &mut *entered.state;
        let size = size.map_or_else(|| state.position(), Ok)?;
        match &mut state.content {
            Content::Memory(memory) if size <= SMALL_WRITE_BYTES_MAX as u64 => {
                memory.resize(usize::try_from(size).expect("it fits memory"), 0);
            }
            _ => state.tried(py, |state| state.draft(py, &self.aim)?.truncate(py, size))?,
        }
        Ok(size)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.is_inherited() {
            if self.state.try_lock().is_err() {
                // A thread of the parent was changing it when the process was forked: it may be half changed.
                let state = self.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
                std::mem::forget(std::mem::replace(&mut state.content, Content::Over));
            }
            return;
        }
        if !self.closed.load(Ordering::Acquire) {
            let text = format!("unclosed file {:?}: what was written to it is discarded", self.aim.path);
            Python::try_attach(|py| warn(py, text));
        }
    }
}

impl State {
    fn position(&self) -> PyResult<u64> {
        match &self.content {
            Content::Draft(draft) => Ok(draft.shared_position()?.unwrap_or(self.position)),
            _ => Ok(self.position),
        }
    }

    fn move_to(&mut self, position: u64) -> PyResult<()> {
        self.position = position;
        if let Content::Draft(draft) = &self.content { draft.move_to(position) } else { Ok(()) }
    }

    fn len(&self) -> PyResult<u64> {
        match &self.content {
            Content::Memory(memory) => Ok(memory.len() as u64),
            Content::Draft(draft) => draft.len(),
            Content::Failed(error) => Err(raise(error)),
            Content::Over => Err(closed()),
        }
    }

    /// The file of the stage, asked for when there was none.
    fn draft(&mut self, py: Python<'_>, aim: &Arc<Aim>) -> PyResult<&mut Draft> {
        if let Content::Memory(memory) = &mut self.content {
            let memory = std::mem::take(memory);
            self.content = Content::Draft(Draft::ask(py, aim, memory)?);
        }
        match &mut self.content {
            Content::Draft(draft) => Ok(draft),
            Content::Failed(error) => Err(raise(error)),
            Content::Memory(_) | Content::Over => Err(closed()),
        }
    }

    /// Does what changes the content; where that fails, what is there is not what was meant, and is never committed.
    fn tried<T>(&mut self, py: Python<'_>, change: impl FnOnce(&mut Self) -> PyResult<T>) -> PyResult<T> {
        change(self).inspect_err(|error| {
            let interrupted =
                || Error::new(ErrorKind::Cancelled, "write", "it was interrupted").advise("write the file again");
            self.content = Content::Failed(ours(py, error).unwrap_or_else(interrupted));
        })
    }
}

impl Aim {
    fn writing(&self) -> String {
        format!("write {}", self.path)
    }

    fn closing(&self) -> String {
        format!("close {}", self.path)
    }

    /// Says early what the commit would say late, as far as no source is asked.
    fn check_writable(&self, py: Python<'_>) -> PyResult<()> {
        match self.pool.ask(py, &Request::CheckWritable { path: self.path.clone() })?.reply {
            Reply::Done => Ok(()),
            _ => Err(unexpected(&self.writing())),
        }
    }

    /// Says early what the commit would say late.
    fn check_absent(&self, py: Python<'_>) -> PyResult<()> {
        match self.pool.ask(py, &Request::Stat { path: self.path.clone() }) {
            Err(error) if is_kind(py, &error, ErrorKind::NotFound) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(raise(
                &Error::new(ErrorKind::AlreadyExists, self.writing(), "something has that name")
                    .advise("write with mode wb to replace it"),
            )),
        }
    }

    /// Has all of the content written in one request. That may be done twice: the second time changes nothing.
    fn commit_small(&self, py: Python<'_>, data: Vec<u8>) -> PyResult<()> {
        let request = Request::WriteSmall {
            path: self.path.clone(),
            data: Bytes::from(data),
            exclusive: self.exclusive,
            durability: self.durability,
            set: self.set.clone(),
        };
        let mut unanswered = false;
        match self.pool.ask_noting(py, &request, &mut unanswered) {
            Ok(exchange) if matches!(exchange.reply, Reply::Entry(_)) => Ok(()),
            Ok(_) => Err(unexpected(&self.closing())),
            Err(error) if !unanswered => Err(self.named(py, error)),
            // The name may be taken by what was written the first time.
            Err(error) if ours(py, &error).is_some() => Err(self.unsettled(py)),
            Err(error) => Err(self.interrupted(py, error)),
        }
    }

    /// An error of a commit of what goes on from what was there: where that was nothing, something has come.
    fn overtaken(&self, error: Error) -> Error {
        match (error.kind(), self.opening) {
            (ErrorKind::AlreadyExists, Opening::Append) => {
                Error::new(ErrorKind::StaleVersion, self.closing(), "there was no such file, and now there is")
                    .advise("open it again, and append to what is there now")
            }
            _ => error,
        }
    }

    /// An error that names the file that was not written.
    fn named(&self, py: Python<'_>, error: PyErr) -> PyErr {
        match ours(py, &error) {
            Some(known) => {
                let known = self.overtaken(known);
                let is_named = known.action().contains(&self.path);
                raise(&if is_named { known } else { known.during(self.closing()) })
            }
            None => error,
        }
    }

    /// What to raise when the node was asked to commit, and ended without an answer.
    fn unsettled(&self, py: Python<'_>) -> PyErr {
        let reason = "the node ended while it committed: the file was written, or it was not";
        let error = Error::new(ErrorKind::Unavailable, self.closing(), reason)
            .advise("look at what is there, and write it again if it is something else");
        let there = match self.pool.ask(py, &Request::Stat { path: self.path.clone() }) {
            Ok(exchange) => match exchange.reply {
                Reply::Entry(there) => error
                    .fact("there_bytes", there.size)
                    .fact("there_modified_ms", there.modified_ms)
                    .fact("there_version", there.version.map_or_else(String::new, |version| version.0.to_string())),
                _ => error,
            },
            Err(failed) if is_kind(py, &failed, ErrorKind::NotFound) => error.fact("there", "nothing"),
            // The question that is open stays open: this one says nothing new.
            Err(_) => error,
        };
        raise(&there)
    }

    /// An error of a commit; where a signal handler raised it, it says what that leaves open.
    fn interrupted(&self, py: Python<'_>, error: PyErr) -> PyErr {
        if ours(py, &error).is_none() {
            let note = format!("{}: the node may have committed it, or not", self.closing());
            // Without the note, the error is the same.
            let _ = error.value(py).call_method1("add_note", (note,));
        }
        error
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.inside.store(0, Ordering::Relaxed);
    }
}

/// Puts bytes into memory at a position; what lies before it and was not written is zero.
fn lay(memory: &mut Vec<u8>, position: u64, bytes: &[u8]) {
    let start = usize::try_from(position).expect("small contents fit memory");
    let end = start + bytes.len();
    if memory.len() < end {
        memory.resize(start.max(memory.len()), 0);
        let kept = memory.len() - start;
        memory[start..].copy_from_slice(&bytes[..kept]);
        memory.extend_from_slice(&bytes[kept..]);
    } else {
        memory[start..end].copy_from_slice(bytes);
    }
}

/// Which thread this is; never 0.
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// Warns of a file that nobody closed. It may be dropped while an exception is on its way, which stays as it is.
fn warn(py: Python<'_>, text: String) {
    let on_its_way = PyErr::take(py);
    let text = CString::new(text).unwrap_or_default();
    let category = py.get_type::<PyResourceWarning>();
    if let Err(error) = PyErr::warn(py, &category, &text, 1) {
        error.write_unraisable(py, None);
    }
    if let Some(error) = on_its_way {
        error.restore(py);
    }
}
