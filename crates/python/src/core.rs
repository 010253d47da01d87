//! The client of a node: one method for each question.

use std::os::fd::{AsFd, IntoRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use penstock_node::protocol::{REQUEST_BYTES_MAX, Reply, Request, Slot};
use penstock_node::{EntryPage, Keep, SetRef};
use penstock_types::{ByteRange, Durability, Error, ErrorKind, Priority, Version};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::client::{ArenaLease, Exchange, Pool, unexpected};
use crate::entry::PyEntry;
use crate::errors::{exception, is_kind, raise};
use crate::file::File;
use crate::link::Lease;
use crate::view::View;
use crate::writer::{Given, Opening, Writer};

/// Entries, and the cursor of the next page.
type Page<'py> = (Bound<'py, PyList>, Option<String>);

/// Files or ranges asked for in one request.
const BATCH_MAX: usize = 1024;
/// Files read one by one when the node has no memory for a batch, before it is asked for a batch again.
const SINGLE_READS: usize = 32;

/// The synchronous client of one node. No threads; connects when first used; safe to use after a fork.
#[pyclass(frozen, module = "penstock._core", weakref)]
pub struct Core {
    pool: Arc<Pool>,
}

/// The client of this process for that socket: what a pickled one becomes.
#[pyfunction]
pub fn shared_core(socket_path: PathBuf, client_name: &str) -> Core {
    Core { pool: Pool::shared(&socket_path, client_name) }
}

#[pymethods]
impl Core {
    /// A client of the node behind `socket_path`, which `status` shows as `client_name`.
    #[new]
    fn new(socket_path: PathBuf, client_name: &str) -> Self {
        Self { pool: Pool::new(&socket_path, client_name) }
    }

    /// Attributes of a path.
    fn stat(&self, py: Python<'_>, path: String) -> PyResult<PyEntry> {
        match self.pool.ask(py, &Request::Stat { path })?.reply {
            Reply::Entry(entry) => Ok(PyEntry(entry)),
            _ => Err(unexpected("stat")),
        }
    }

    /// A page of a directory, and the cursor of the next one.
    #[pyo3(signature = (path, after=None, limit=8192))]
    fn list_page<'py>(&self, py: Python<'py>, path: String, after: Option<String>, limit: u32) -> PyResult<Page<'py>> {
        self.page(py, "list", &Request::List { path, after, limit })
    }

    /// A page of everything below a directory, and the cursor of the next one.
    #[pyo3(signature = (path, after=None, limit=8192))]
    fn walk_page<'py>(&self, py: Python<'py>, path: String, after: Option<String>, limit: u32) -> PyResult<Page<'py>> {
        self.page(py, "walk", &Request::Walk { path, after, limit })
    }

    /// Opens a file for reading; with `version`, exactly that one.
    #[pyo3(signature = (path, version=None))]
    fn open(&self, py: Python<'_>, path: String, version: Option<&str>) -> PyResult<File> {
        File::open(py, &self.pool, path, version.map(Version::from))
    }

    /// Opens a file for writing: in mode `wb` a new content, `xb` only where nothing has its name, `ab` behind what is
    /// there, `rb` what is there; with a `+`, to be read as well. Without a durability, what the attachment says.
    #[pyo3(signature = (path, mode="wb", durability=None, of_set=None))]
    fn create(
        &self,
        py: Python<'_>,
        path: String,
        mode: &str,
        durability: Option<&str>,
        of_set: Option<(String, String)>,
    ) -> PyResult<Writer> {
        let durability = durability.map(|name| durability_of(&path, name)).transpose()?;
        Writer::open(py, &self.pool, path, opening_of(mode)?, durability, of_set.map(set_ref))
    }

    /// Begins a set of files: its id, as JSON.
    fn begin_set(&self, py: Python<'_>, path: String) -> PyResult<String> {
        self.ask_json(py, &Request::BeginSet { path })
    }

    /// Makes the files of a set appear.
    #[pyo3(signature = (path, set_id, durability=None))]
    fn publish_set(&self, py: Python<'_>, path: String, set_id: String, durability: Option<&str>) -> PyResult<()> {
        let durability = durability.map(|name| durability_of(&path, name)).transpose()?;
        let request = Request::PublishSet { set: set_ref((path.clone(), set_id.clone())), durability };
        let mut unanswered = false;
        match self.pool.ask_noting(py, &request, &mut unanswered) {
            Ok(exchange) => done(&exchange, "publish_set"),
            // It may have been published the first time: the node ended before it said so.
            Err(error) if unanswered && is_kind(py, &error, ErrorKind::AlreadyExists) => {
                let there = self.set_files(py, path, None, 1)?;
                if there.contains(&format!("\"id\":\"{set_id}\"")) { Ok(()) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    /// Gives up a set that was not published; with `left_behind`, one that was begun in the directory `path`.
    #[pyo3(signature = (path, set_id, left_behind=false))]
    fn discard_set(&self, py: Python<'_>, path: String, set_id: String, left_behind: bool) -> PyResult<()> {
        let request = Request::DiscardSet { set: set_ref((path, set_id)), left_behind };
        self.change(py, &request, "discard_set", ErrorKind::NotFound)
    }

    /// Removes a set.
    fn remove_set(&self, py: Python<'_>, path: String) -> PyResult<()> {
        self.change(py, &Request::RemoveSet { path }, "remove_set", ErrorKind::NotFound)
    }

    /// The sets at and below a path, as JSON.
    fn sets(&self, py: Python<'_>, path: String) -> PyResult<String> {
        self.ask_json(py, &Request::Sets { path })
    }

    /// A page of the files of a set, as JSON.
    #[pyo3(signature = (path, after=None, limit=8192))]
    fn set_files(&self, py: Python<'_>, path: String, after: Option<String>, limit: u32) -> PyResult<String> {
        self.ask_json(py, &Request::SetFiles { path, after, limit })
    }

    /// Removes a file.
    fn remove(&self, py: Python<'_>, path: String) -> PyResult<()> {
        self.change(py, &Request::Remove { path }, "remove", ErrorKind::NotFound)
    }

    /// Gives a file or directory another name; with `replace`, also where something has it.
    #[pyo3(signature = (from_path, to_path, replace=true))]
    fn rename(&self, py: Python<'_>, from_path: String, to_path: String, replace: bool) -> PyResult<()> {
        let request = Request::Rename { from: from_path, to: to_path, replace };
        self.change(py, &request, "rename", ErrorKind::NotFound)
    }

    /// Makes a directory.
    fn make_directory(&self, py: Python<'_>, path: String) -> PyResult<()> {
        self.change(py, &Request::MakeDirectory { path }, "make_directory", ErrorKind::AlreadyExists)
    }

    /// Removes an empty directory.
    fn remove_directory(&self, py: Python<'_>, path: String) -> PyResult<()> {
        self.change(py, &Request::RemoveDirectory { path }, "remove_directory", ErrorKind::NotFound)
    }

    /// Waits until the source has everything below a path.
    #[pyo3(signature = (path, timeout_s=None))]
    fn persist(&self, py: Python<'_>, path: String, timeout_s: Option<f64>) -> PyResult<()> {
        let timeout_ms = timeout_s.map(milliseconds).transpose()?;
        done(&self.pool.ask(py, &Request::Persist { path, timeout_ms })?, "persist")
    }

    /// A page of what is in conflict at a path, or at and `below` it, as JSON.
    #[pyo3(signature = (path, below=true, look=true, after=None, limit=256))]
    fn conflicts_page(
        &self,
        py: Python<'_>,
        path: String,
        below: bool,
        look: bool,
        after: Option<String>,
        limit: u32,
    ) -> PyResult<String> {
        self.ask_json(py, &Request::Conflicts { path, below, look, after, limit })
    }

    /// What a change in conflict holds: the number of a descriptor to read at offsets, which the caller closes.
    fn conflict_content(&self, py: Python<'_>, path: String, operation: String) -> PyResult<RawFd> {
        let exchange = self.pool.ask(py, &Request::ConflictContent { path, operation })?;
        exchange.descriptor.map(IntoRawFd::into_raw_fd).ok_or_else(|| unexpected("read what is in conflict"))
    }

    /// Settles a conflict; with `mine`, our content stays. The conflict as it was, as JSON; `None` where the node ended
    /// before it said so.
    fn resolve_conflict(
        &self,
        py: Python<'_>,
        path: String,
        operation: String,
        mine: bool,
    ) -> PyResult<Option<String>> {
        let keep = if mine { Keep::Mine } else { Keep::Theirs };
        let mut unanswered = false;
        let settled = self.pool.ask_noting(py, &Request::ResolveConflict { path, operation, keep }, &mut unanswered);
        match settled.map(|exchange| exchange.reply) {
            Ok(Reply::Json(text)) => Ok(Some(text)),
            Ok(_) => Err(unexpected("settle a conflict")),
            // It was settled the first time.
            Err(error) if unanswered && is_kind(py, &error, ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whole files in one call: a view or an error each.
    #[pyo3(signature = (paths, priority="foreground"))]
    fn read_many<'py>(&self, py: Python<'py>, paths: Vec<String>, priority: &str) -> PyResult<Bound<'py, PyList>> {
        let priority = priority_of(priority)?;
        let results = PyList::empty(py);
        while results.len() < paths.len() {
            let rest = &paths[results.len()..];
            let request = Request::ReadMany { paths: fitting(rest).to_vec(), priority };
            match self.pool.ask(py, &request) {
                Ok(exchange) => {
                    self.take_batch(py, &results, rest, exchange)?;
                }
                Err(error) if is_kind(py, &error, ErrorKind::ResourceLimit) => {
                    for path in rest.iter().take(SINGLE_READS) {
                        results.append(self.read_single(py, path)?)?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(results)
    }

    /// Half-open byte ranges of one file, all of one version; each is clipped to the file.
    #[pyo3(signature = (path, ranges, version=None))]
    fn read_ranges<'py>(
        &self,
        py: Python<'py>,
        path: String,
        ranges: Vec<(i64, i64)>,
        version: Option<&str>,
    ) -> PyResult<Bound<'py, PyList>> {
        let ranges: Vec<ByteRange> = ranges.into_iter().map(byte_range).collect::<PyResult<_>>()?;
        let mut version = version.map(Version::from);
        let results = PyList::empty(py);
        while results.len() < ranges.len() {
            let rest = &ranges[results.len()..];
            let batch = rest[..rest.len().min(BATCH_MAX)].to_vec();
            let request = Request::ReadRanges { path: path.clone(), version: version.clone(), ranges: batch };
            let exchange = match self.pool.ask(py, &request) {
                Err(error) if is_kind(py, &error, ErrorKind::ResourceLimit) => {
                    self.read_ranges_singly(py, &path, version.as_ref(), rest, &results)?;
                    break;
                }
                exchange => exchange?,
            };
            let Batch { items, arena, version: pinned } = batch_of(exchange)?;
            version = pinned.or(version);
            for (item, range) in items.into_iter().zip(rest) {
                match item {
                    Ok(slot) => results.append(view_of(arena.as_ref(), slot)?)?,
                    Err(error) if error.kind() == ErrorKind::ResourceLimit => {
                        self.read_ranges_singly(py, &path, version.as_ref(), std::slice::from_ref(range), &results)?;
                    }
                    Err(error) => return Err(raise(&error)),
                }
            }
        }
        Ok(results)
    }

    /// The whole file under a local path, for as long as the lease lasts.
    fn local_path(&self, py: Python<'_>, path: String) -> PyResult<Lease> {
        let exchange = self.pool.ask(py, &Request::Link { path })?;
        match exchange.reply {
            Reply::Linked(link) => Ok(Lease::new(link, exchange.session)),
            _ => Err(unexpected("local_path")),
        }
    }

    /// Brings whole files into the cache, behind everything that somebody waits for: (size, fetched bytes) or an
    /// error each.
    fn prefetch<'py>(&self, py: Python<'py>, paths: Vec<String>) -> PyResult<Bound<'py, PyList>> {
        match self.pool.ask(py, &Request::Prefetch { paths })?.reply {
            Reply::Prefetched(all) => {
                results(py, all, |py, done| (done.size, done.fetched_bytes).into_pyobject(py).map(Bound::into_any))
            }
            _ => Err(unexpected("prefetch")),
        }
    }

    /// Drops files from the cache: bytes freed, or an error each.
    fn evict<'py>(&self, py: Python<'py>, paths: Vec<String>) -> PyResult<Bound<'py, PyList>> {
        match self.pool.ask(py, &Request::Evict { paths })?.reply {
            Reply::Evicted(all) => results(py, all, |py, freed| Ok(freed.into_pyobject(py)?.into_any())),
            _ => Err(unexpected("evict")),
        }
    }

    /// Checks what is cached of these files: (pages, bad pages, repaired pages) or an error each.
    fn verify<'py>(&self, py: Python<'py>, paths: Vec<String>) -> PyResult<Bound<'py, PyList>> {
        match self.pool.ask(py, &Request::Verify { paths })?.reply {
            Reply::Verified(all) => results(py, all, |py, seen| {
                (seen.pages, seen.bad_pages, seen.repaired).into_pyobject(py).map(Bound::into_any)
            }),
            _ => Err(unexpected("verify")),
        }
    }

    /// What is known of a path and its cache, as JSON; with `known_only`, without a question to the source.
    #[pyo3(signature = (path, known_only=false))]
    fn why(&self, py: Python<'_>, path: String, known_only: bool) -> PyResult<String> {
        self.ask_json(py, &Request::Why { path, known_only })
    }

    /// A page of the cache's extents, as JSON.
    #[pyo3(signature = (after=None, limit=1000))]
    fn cache_entries(&self, py: Python<'_>, after: Option<u64>, limit: u32) -> PyResult<String> {
        self.ask_json(py, &Request::CacheEntries { after, limit })
    }

    /// Version of the node; an error when there is none.
    fn ping(&self, py: Python<'_>) -> PyResult<String> {
        match self.pool.ask(py, &Request::Ping)?.reply {
            Reply::Pong(version) => Ok(version),
            _ => Err(unexpected("ping")),
        }
    }

    /// Closes the connections; open files whose content is complete stay readable. The next use connects again.
    fn close(&self) {
        self.pool.close();
    }

    /// Path of the node's socket.
    #[getter]
    fn socket_path(&self) -> PathBuf {
        self.pool.path().to_path_buf()
    }

    /// The name that `status` shows.
    #[getter]
    fn client_name(&self) -> &str {
        self.pool.client()
    }

    fn __repr__(&self) -> String {
        format!("<Core {:?}>", self.pool.path())
    }

    /// Pickles as where it connects to.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let shared = py.import("penstock._core")?.getattr("shared_core")?;
        let socket = self.pool.path().to_string_lossy().into_owned();
        Ok((shared, (socket, self.pool.client()).into_pyobject(py)?))
    }
}

impl Core {
    /// Asks for a change of names. What `again` says after an unanswered first try was done by that: the node ended
    /// before it said so.
    fn change(&self, py: Python<'_>, request: &Request, what: &'static str, again: ErrorKind) -> PyResult<()> {
        let mut unanswered = false;
        match self.pool.ask_noting(py, request, &mut unanswered) {
            Ok(exchange) => done(&exchange, what),
            Err(error) if unanswered && is_kind(py, &error, again) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks for a page of entries; `what` names the question in errors.
    fn page<'py>(&self, py: Python<'py>, what: &str, request: &Request) -> PyResult<Page<'py>> {
        match self.pool.ask(py, request)?.reply {
            Reply::Entries(page) => entries(py, page),
            _ => Err(unexpected(what)),
        }
    }

    fn ask_json(&self, py: Python<'_>, request: &Request) -> PyResult<String> {
        match self.pool.ask(py, request)?.reply {
            Reply::Json(text) => Ok(text),
            _ => Err(unexpected("ask about the cache")),
        }
    }

    fn take_batch(
        &self,
        py: Python<'_>,
        results: &Bound<'_, PyList>,
        paths: &[String],
        exchange: Exchange,
    ) -> PyResult<()> {
        let Batch { items, arena, .. } = batch_of(exchange)?;
        for (item, path) in items.into_iter().zip(paths) {
            match item {
                Ok(slot) => results.append(view_of(arena.as_ref(), slot)?)?,
                Err(error) if error.kind() == ErrorKind::ResourceLimit => {
                    results.append(self.read_single(py, path)?)?;
                }
                Err(error) => results.append(exception(py, &error)?)?,
            }
        }
        Ok(())
    }

    /// One file by itself, into a mapping or memory of this process: a view, or the error as a value.
    fn read_single<'py>(&self, py: Python<'py>, path: &str) -> PyResult<Bound<'py, PyAny>> {
        let read = File::open(py, &self.pool, path.to_string(), None).and_then(|file| file.view_of(py, 0, usize::MAX));
        match read {
            Ok(view) => Ok(Bound::new(py, view)?.into_any()),
            Err(error) if error.get_type(py).getattr("code").is_ok() => {
                Ok(error.into_value(py).into_bound(py).into_any())
            }
            Err(error) => Err(error),
        }
    }

    fn read_ranges_singly(
        &self,
        py: Python<'_>,
        path: &str,
        version: Option<&Version>,
        ranges: &[ByteRange],
        results: &Bound<'_, PyList>,
    ) -> PyResult<()> {
        let file = File::open(py, &self.pool, path.to_string(), version.cloned())?;
        for range in ranges {
            let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
            results.append(file.view_of(py, range.start, len)?)?;
        }
        Ok(())
    }
}

fn set_ref((root, id): (String, String)) -> SetRef {
    SetRef { root, id }
}

/// The CRC32C of bytes that follow those with the sum `before`.
#[pyfunction]
#[pyo3(signature = (data, before=0))]
pub fn crc32c(py: Python<'_>, data: &Bound<'_, PyAny>, before: u32) -> PyResult<u32> {
    let given = Given::of(data)?;
    let bytes = given.bytes();
    Ok(py.detach(|| ::crc32c::crc32c_append(before, bytes)))
}

fn byte_range((start, end): (i64, i64)) -> PyResult<ByteRange> {
    match (u64::try_from(start), u64::try_from(end)) {
        (Ok(from), Ok(to)) if from <= to => Ok(ByteRange::new(from, to)),
        (Ok(_), Ok(_)) => Err(PyValueError::new_err(format!("range ends before it starts: ({start}, {end})"))),
        _ => Err(PyValueError::new_err(format!("range has a negative offset: ({start}, {end})"))),
    }
}

/// A batch as it came.
struct Batch {
    items: Vec<Result<Slot, Error>>,
    arena: Option<Arc<ArenaLease>>,
    version: Option<Version>,
}

fn batch_of(exchange: Exchange) -> PyResult<Batch> {
    let Exchange { reply, descriptor, session } = exchange;
    let Reply::Batch { arena, items, gone, version } = reply else { return Err(unexpected("read a batch")) };
    if items.is_empty() {
        return Err(unexpected("read a batch"));
    }
    let memory = descriptor.as_ref().map(|memory| memory.as_fd());
    let arena = arena.map(|grant| session.arena(grant, memory, &gone)).transpose().map_err(|error| raise(&error))?;
    Ok(Batch { items, arena, version })
}

/// The bytes of a batch of one.
pub fn only_view(exchange: Exchange) -> PyResult<View> {
    let Batch { items, arena, .. } = batch_of(exchange)?;
    match items.into_iter().next() {
        Some(Ok(slot)) => view_of(arena.as_ref(), slot),
        Some(Err(error)) => Err(raise(&error)),
        None => Err(unexpected("read a batch")),
    }
}

fn view_of(arena: Option<&Arc<ArenaLease>>, slot: Slot) -> PyResult<View> {
    let place = (usize::try_from(slot.at).ok(), usize::try_from(slot.len).ok());
    let view = match (arena, place) {
        (_, (_, Some(0))) => Some(View::of_bytes(Vec::new())),
        (Some(arena), (Some(at), Some(len))) => View::of_arena(arena, at, len),
        _ => None,
    };
    view.ok_or_else(|| unexpected("read a batch"))
}

fn entries<'py>(py: Python<'py>, page: EntryPage) -> PyResult<Page<'py>> {
    let entries: PyResult<Vec<_>> = page.entries.into_iter().map(|entry| Bound::new(py, PyEntry(entry))).collect();
    Ok((PyList::new(py, entries?)?, page.next))
}

fn results<'py, T>(
    py: Python<'py>,
    all: Vec<Result<T, Error>>,
    convert: impl Fn(Python<'py>, T) -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyList>> {
    let converted: PyResult<Vec<_>> = all
        .into_iter()
        .map(|one| match one {
            Ok(value) => convert(py, value),
            Err(error) => exception(py, &error),
        })
        .collect();
    PyList::new(py, converted?)
}

/// As many of the first paths as one request holds.
fn fitting(paths: &[String]) -> &[String] {
    let mut bytes = 0;
    let fits = |path: &&String| {
        bytes += path.len() + 8;
        bytes < REQUEST_BYTES_MAX / 2
    };
    let count = paths.iter().take(BATCH_MAX).take_while(fits).count();
    &paths[..count.max(1)]
}

fn done(exchange: &Exchange, what: &str) -> PyResult<()> {
    if matches!(exchange.reply, Reply::Done) { Ok(()) } else { Err(unexpected(what)) }
}

fn milliseconds(seconds: f64) -> PyResult<u64> {
    let duration = Duration::try_from_secs_f64(seconds);
    let duration = duration.map_err(|_| PyValueError::new_err(format!("a timeout of {seconds} s cannot be")))?;
    Ok(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// What a file that is opened to be written begins with, and whether it is read as well.
fn opening_of(mode: &str) -> PyResult<(Opening, bool)> {
    let opening = match mode.trim_end_matches('+') {
        "wb" => Opening::New,
        "xb" => Opening::Exclusive,
        "ab" => Opening::Append,
        "rb" => Opening::Existing,
        _ => return Err(PyValueError::new_err(format!("a file is written in mode wb, xb, ab or rb+, not {mode:?}"))),
    };
    Ok((opening, mode.ends_with('+')))
}

fn durability_of(path: &str, name: &str) -> PyResult<Durability> {
    match name {
        "local" => Ok(Durability::Local),
        "source" => Ok(Durability::Source),
        "replicated" => {
            let reason = "'replicated' needs other nodes to hold copies, and there is only this one";
            let error = Error::new(ErrorKind::Unsupported, format!("write {path}"), reason);
            Err(raise(&error.advise("write with durability 'local' or 'source'")))
        }
        _ => Err(PyValueError::new_err(format!("durability is 'local' or 'source', not {name:?}"))),
    }
}

fn priority_of(name: &str) -> PyResult<Priority> {
    match name {
        "foreground" => Ok(Priority::Foreground),
        "background" => Ok(Priority::Background),
        _ => Err(PyValueError::new_err("priority is 'foreground' or 'background'")),
    }
}
