//! A file open for reading, with the whole protocol of a binary file.

mod handle;
mod lines;
pub mod protocol;
mod target;

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use penstock_node::mapping::Mapping;
use penstock_node::protocol::{Reply, Request};
use penstock_types::{ByteRange, Error, ErrorKind, Priority, Version};
use pyo3::exceptions::PyOSError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::fs::{Mode, OFlags, open};

pub use handle::Handle;
use handle::Outcome;
use lines::Chunk;
pub use target::Target;

use crate::client::{Pool, unexpected};
use crate::core::only_view;
use crate::errors::{closed, is_kind, raise};
use crate::view::View;

/// Reads below this size that follow each other are answered from one larger read.
const SMALL_READ: usize = 8 * 1024;
/// Reads up to this size are made without giving up the interpreter, where they need not wait.
const AT_ONCE_BYTES: usize = 64 * 1024;
/// Views up to this size are copied: mapping costs more.
const SMALL_VIEW: usize = 16 * 1024;
/// How often a read opens the file again because the node forgot it.
const REOPENS_MAX: usize = 3;
/// Bytes that are asked for at once where the lent file cannot be read.
const SERVED_BYTES: usize = 1024 * 1024;
/// How often a read resolves again when the version is gone before anything of it was seen.
const RESOLVE_ATTEMPTS: usize = 3;

/// A file of the tree, open for reading on one version of its content. Binary, seekable, safe to share between
/// threads; after a fork each process has a position of its own.
#[pyclass(frozen, module = "penstock._core", weakref)]
pub struct File {
    pool: Arc<Pool>,
    path: String,
    /// Whether it was opened on whatever version there was.
    any_version: bool,
    /// Whether somebody has seen a byte or an attribute of the pinned version: it is never exchanged then. Set while
    /// `state` is locked.
    told: AtomicBool,
    state: Mutex<State>,
}

/// One version of the file, as it was opened.
struct Pinned {
    size: u64,
    modified_ms: i64,
    version: Version,
}

/// What changes while a file is open. Locked for moments only, by threads attached to the interpreter.
struct State {
    pinned: Arc<Pinned>,
    /// `None` once closed.
    handle: Option<Arc<Handle>>,
    position: u64,
    /// Where the last read ended: one that begins there is sequential.
    read_end: u64,
    chunk: Option<Arc<Chunk>>,
    /// The descriptor that `fileno` gave out.
    own: Option<OwnedFd>,
}

/// Part of a file that a read is about to return; the position has already moved past it.
struct Reserved {
    offset: u64,
    len: usize,
    handle: Arc<Handle>,
    chunk: Option<Arc<Chunk>>,
    sequential: bool,
}

impl File {
    /// Opens `path`, on exactly `version` where one is named.
    pub fn open(py: Python<'_>, pool: &Arc<Pool>, path: String, version: Option<Version>) -> PyResult<Self> {
        let any_version = version.is_none();
        let (pinned, handle) = ask_open(py, pool, &path, version)?;
        Ok(Self {
            pool: Arc::clone(pool),
            path,
            any_version,
            told: AtomicBool::new(false),
            state: Mutex::new(State {
                pinned: Arc::new(pinned),
                handle: Some(Arc::new(handle)),
                position: 0,
                read_end: 0,
                chunk: None,
                own: None,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while a file's position moves")
    }

    /// The pinned version, which somebody sees now.
    fn show(&self) -> Arc<Pinned> {
        let state = self.state();
        self.told.store(true, Ordering::Relaxed);
        Arc::clone(&state.pinned)
    }

    /// Reads; where the version is gone before anything of it was seen, reads the one that is there now.
    fn unless_gone<T>(&self, py: Python<'_>, read: impl Fn() -> PyResult<T>) -> PyResult<T> {
        for _ in 0..RESOLVE_ATTEMPTS {
            if self.told.load(Ordering::Relaxed) {
                break;
            }
            let pinned = Arc::clone(&self.state().pinned);
            match read() {
                Err(error) if is_kind(py, &error, ErrorKind::StaleVersion) => {
                    if !self.resolve_again(py)? {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
                // Another thread may have resolved again meanwhile: these bytes would be of another version than its.
                Ok(_) if !Arc::ptr_eq(&self.show(), &pinned) => return Err(raise(&self.changed())),
                Ok(outcome) => return Ok(outcome),
            }
        }
        read()
    }

    /// Pins the version that is there now; `false` where the old one has been seen.
    fn resolve_again(&self, py: Python<'_>) -> PyResult<bool> {
        if !self.any_version || self.told.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let (pinned, handle) = ask_open(py, &self.pool, &self.path, None)?;
        let mut state = self.state();
        if self.told.load(Ordering::Relaxed) || state.handle.is_none() {
            return Ok(false);
        }
        state.pinned = Arc::new(pinned);
        state.chunk = None;
        let old = state.handle.replace(Arc::new(handle));
        drop(state);
        drop(old);
        Ok(true)
    }

    fn changed(&self) -> Error {
        Error::new(ErrorKind::StaleVersion, format!("read {}", self.path), "it changed while it was first read")
            .advise("open it again for the new version")
    }

    fn handle(&self) -> PyResult<Arc<Handle>> {
        self.state().handle.clone().ok_or_else(closed)
    }

    /// Takes up to `wanted` bytes from the position on; the size of a version is fixed, so what will be read is known.
    fn reserve(&self, wanted: Option<usize>) -> PyResult<Reserved> {
        let mut state = self.state();
        let handle = Arc::clone(state.handle.as_ref().ok_or_else(closed)?);
        let left = usize::try_from(state.pinned.size.saturating_sub(state.position)).unwrap_or(usize::MAX);
        let len = wanted.map_or(left, |wanted| wanted.min(left));
        let offset = state.position;
        let sequential = offset == state.read_end && offset > 0;
        state.position += len as u64;
        state.read_end = state.position;
        let chunk = state.chunk.clone().filter(|chunk| chunk.covers(offset, len));
        Ok(Reserved { offset, len, handle, chunk, sequential })
    }

    /// Puts the position back after a failed read, unless it has been moved meanwhile.
    fn restore(&self, reserved: &Reserved) {
        let mut state = self.state();
        if state.position == reserved.offset + reserved.len as u64 {
            state.position = reserved.offset;
        }
    }

    /// Fills `out` with what was reserved.
    fn fill(&self, py: Python<'_>, reserved: &Reserved, out: &mut [u8]) -> PyResult<()> {
        if out.is_empty() {
            return Ok(());
        }
        let mut chunk = reserved.chunk.clone();
        if chunk.is_none() && reserved.sequential && out.len() < SMALL_READ {
            chunk = Some(self.chunk_at(py, reserved.offset)?).filter(|chunk| chunk.covers(reserved.offset, out.len()));
        }
        match chunk {
            Some(chunk) => chunk.copy(reserved.offset, out),
            None => {
                if let Err(error) = self.read_at(py, &reserved.handle, reserved.offset, out) {
                    self.restore(reserved);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Fills `out` with bytes from `offset` on, all of which are inside the file.
    fn read_at(&self, py: Python<'_>, handle: &Arc<Handle>, offset: u64, out: &mut [u8]) -> PyResult<()> {
        // Giving up the interpreter and taking it again costs as much as a few pages do.
        if out.len() <= AT_ONCE_BYTES && handle.read_at_once(offset, out) {
            return Ok(());
        }
        if let Some(outcome) = py.detach(|| handle.read_complete(&self.path, offset, out)) {
            return outcome.or_else(|error| self.read_served(py, offset, out, &error));
        }
        let mut handle = Arc::clone(handle);
        for _ in 0..REOPENS_MAX {
            if !handle.is_ours() {
                handle = self.open_again(py, &handle)?;
            }
            match py.detach(|| handle.read_partial(&self.pool, &self.path, offset, out))? {
                Outcome::Done => return Ok(()),
                Outcome::Forgotten => handle.forget(),
                Outcome::Damaged(error) => return self.read_served(py, offset, out, &error),
            }
        }
        Err(unexpected(&format!("read {}", self.path)))
    }

    /// Fills `out` by asking the node for the bytes, because the lent file cannot be read. The node checks what it
    /// serves, and so finds out what is damaged and fetches it again. `error` is why it cannot be read.
    fn read_served(&self, py: Python<'_>, offset: u64, out: &mut [u8], error: &Error) -> PyResult<()> {
        let version = self.state().pinned.version.clone();
        let mut at = offset;
        for piece in out.chunks_mut(SERVED_BYTES) {
            let range = ByteRange::new(at, at + piece.len() as u64);
            let (path, version) = (self.path.clone(), Some(version.clone()));
            let exchange = self.pool.ask(py, &Request::ReadRanges { path, version, ranges: vec![range] })?;
            let view = only_view(exchange)?;
            if view.bytes().len() != piece.len() {
                return Err(raise(error));
            }
            piece.copy_from_slice(view.bytes());
            at = range.end;
        }
        Ok(())
    }

    /// The same version again, from a node that has forgotten it or for a process that was forked.
    fn open_again(&self, py: Python<'_>, old: &Arc<Handle>) -> PyResult<Arc<Handle>> {
        let current = self.handle()?;
        if !Arc::ptr_eq(&current, old) {
            return Ok(current);
        }
        let version = self.state().pinned.version.clone();
        let (_, handle) = ask_open(py, &self.pool, &self.path, Some(version))?;
        let handle = Arc::new(handle);
        let mut state = self.state();
        if state.handle.as_ref().is_some_and(|current| Arc::ptr_eq(current, old)) {
            state.handle = Some(Arc::clone(&handle));
        }
        Ok(handle)
    }

    fn read_up_to<'py>(&self, py: Python<'py>, wanted: Option<usize>) -> PyResult<Bound<'py, PyBytes>> {
        self.unless_gone(py, || {
            let reserved = self.reserve(wanted)?;
            new_bytes(py, reserved.len, |out| self.fill(py, &reserved, out))
        })
    }

    fn bytes_at<'py>(&self, py: Python<'py>, offset: u64, len: usize) -> PyResult<Bound<'py, PyBytes>> {
        self.unless_gone(py, || {
            let handle = self.handle()?;
            new_bytes(py, handle.clipped(offset, len), |out| self.read_at(py, &handle, offset, out))
        })
    }

    /// Read-only bytes of the file: mapped where all of it is local, else read into memory.
    pub fn view_of(&self, py: Python<'_>, offset: u64, len: usize) -> PyResult<View> {
        self.unless_gone(py, || self.view_now(py, offset, len))
    }

    fn view_now(&self, py: Python<'_>, offset: u64, len: usize) -> PyResult<View> {
        let handle = self.handle()?;
        let len = handle.clipped(offset, len);
        if let Some(descriptor) = handle.complete_descriptor().filter(|_| len > SMALL_VIEW) {
            let page = rustix::param::page_size() as u64;
            let start = offset / page * page;
            let skip = usize::try_from(offset - start).expect("a page fits memory");
            let mapping = py.detach(|| Mapping::read_only(descriptor.as_fd(), start, skip + len))?;
            return Ok(View::of_file(mapping, skip, len, handle));
        }
        let mut bytes = vec![0; len];
        if len > 0 {
            self.read_at(py, &handle, offset, &mut bytes)?;
        }
        Ok(View::of_bytes(bytes))
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.show().size
    }

    /// The version that is read, which stays this one from now on.
    pub fn pinned_version(&self) -> Version {
        self.show().version.clone()
    }

    /// Fills `out` with bytes from `offset` on, all of which are inside the file.
    pub fn read_exactly(&self, py: Python<'_>, offset: u64, out: &mut [u8]) -> PyResult<()> {
        if out.is_empty() { Ok(()) } else { self.read_at(py, &self.handle()?, offset, out) }
    }

    /// A descriptor of this file alone, with a position of its own.
    fn own_descriptor(&self) -> PyResult<RawFd> {
        let handle = self.handle()?;
        let Some(descriptor) = handle.complete_descriptor() else {
            return Err(protocol::unsupported("fileno: the file is not completely in the cache"));
        };
        let mut state = self.state();
        if let Some(own) = &state.own {
            return Ok(own.as_raw_fd());
        }
        let through = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let own = open(through, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| PyOSError::new_err((error.raw_os_error(), "fileno: the file cannot be opened")))?;
        self.told.store(true, Ordering::Relaxed);
        let raw = own.as_raw_fd();
        state.own = Some(own);
        Ok(raw)
    }
}

/// A file again as it was pickled: the same version, at the same position.
#[pyfunction]
pub fn reopen(
    py: Python<'_>,
    socket_path: std::path::PathBuf,
    client_name: &str,
    path: String,
    version: &str,
    position: u64,
) -> PyResult<File> {
    let pool = Pool::shared(&socket_path, client_name);
    let file = File::open(py, &pool, path, Some(Version::from(version)))?;
    file.state().position = position;
    Ok(file)
}

fn ask_open(py: Python<'_>, pool: &Arc<Pool>, path: &str, version: Option<Version>) -> PyResult<(Pinned, Handle)> {
    let request = Request::Open { path: path.to_string(), version, priority: Priority::Foreground };
    let exchange = pool.ask(py, &request)?;
    match (exchange.reply, exchange.descriptor) {
        (Reply::Opened(opened), Some(descriptor)) => {
            let handle = Handle::new(exchange.session, &opened, descriptor);
            Ok((Pinned { size: opened.size, modified_ms: opened.modified_ms, version: opened.version }, handle))
        }
        _ => Err(unexpected(&format!("open {path}"))),
    }
}

/// New `bytes` of that length, filled in place: no second copy, no zeroing.
fn new_bytes<'py>(
    py: Python<'py>,
    len: usize,
    fill: impl FnOnce(&mut [u8]) -> PyResult<()>,
) -> PyResult<Bound<'py, PyBytes>> {
    if len == 0 {
        return Ok(PyBytes::new(py, b""));
    }
    let size = ffi::Py_ssize_t::try_from(len)?;
    // SAFETY: a null pointer asks for an object with uninitialised content, which nobody else sees yet; the content
    // is plain bytes, and the object is dropped unseen when `fill` fails.
    unsafe {
        let object = Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(std::ptr::null(), size))?;
        let start = ffi::PyBytes_AsString(object.as_ptr()).cast::<u8>();
        fill(std::slice::from_raw_parts_mut(start, len))?;
        Ok(object.cast_into_unchecked())
    }
}
