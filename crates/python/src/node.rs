//! The node, for the Python process that hosts it.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use penstock_node::{MountSpec, Node, snapshot_changes, snapshot_files, snapshot_summary, start_logging};
use penstock_types::{AttachmentSpec, Error, ErrorKind, NodeConfig};
use pyo3::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::errors::raise;

/// A running node. Its threads never take the interpreter's lock.
#[pyclass(frozen, name = "Node", module = "penstock._core")]
pub struct PyNode(Node);

#[pymethods]
impl PyNode {
    /// Starts a node. `config_json` is a `NodeConfig`; the log goes to `log_file`, or to standard error.
    #[new]
    #[pyo3(signature = (config_json, log_file=None, log_level="info"))]
    fn new(py: Python<'_>, config_json: &str, log_file: Option<PathBuf>, log_level: &str) -> PyResult<Self> {
        let config: NodeConfig = parse("read the configuration of the node", config_json)?;
        py.detach(|| {
            start_logging(log_file.as_deref(), log_level)?;
            Node::start(config)
        })
        .map(Self)
        .map_err(|error| raise(&error))
    }

    /// Puts a source into the tree; `spec_json` is an `AttachmentSpec`. Returns its status as JSON.
    fn attach(&self, py: Python<'_>, spec_json: &str, probe: bool) -> PyResult<String> {
        let spec: AttachmentSpec = parse("read an attachment", spec_json)?;
        let status = py.detach(|| self.0.attach(spec, probe)).map_err(|error| raise(&error))?;
        json(&status)
    }

    /// Takes the attachment at `path` out of the tree.
    fn detach(&self, py: Python<'_>, path: &str) -> PyResult<()> {
        py.detach(|| self.0.detach(path)).map_err(|error| raise(&error))
    }

    /// Asks the source at exactly `path` whether it answers; its status as JSON.
    fn probe(&self, py: Python<'_>, path: &str) -> PyResult<String> {
        json(&py.detach(|| self.0.probe(path)).map_err(|error| raise(&error))?)
    }

    /// Every attachment with its health, as a JSON list.
    fn attachments(&self, py: Python<'_>) -> PyResult<String> {
        json(&py.detach(|| self.0.attachments()))
    }

    /// Everything `penstock status` shows, as a JSON object.
    fn status(&self, py: Python<'_>) -> PyResult<String> {
        json(&py.detach(|| self.0.status()))
    }

    /// Loopback port of Prometheus text; `None` when none is served.
    fn metrics_port(&self) -> Option<u16> {
        self.0.metrics_port()
    }

    /// Keeps these paths, and everything below them, in the cache; `kept` are (path, reason, whether it was listed
    /// since the start). `decided` is the second
    /// number of `written` before they were decided; without it, nobody decides.
    #[pyo3(signature = (paths, kept = Vec::new(), decided = None))]
    fn set_pins(
        &self,
        py: Python<'_>,
        paths: Vec<String>,
        kept: Vec<(String, String, bool)>,
        decided: Option<u64>,
    ) -> PyResult<()> {
        py.detach(|| self.0.set_pins(&paths, kept, decided)).map_err(|error| raise(&error))
    }

    /// Changes that were acknowledged, and files that became cached ones after their upload, since the start.
    fn written(&self) -> (u64, u64) {
        let written = self.0.written();
        (written.changes, written.cached)
    }

    /// Evicts until at most `target_bytes` are cached; what is pinned or in use stays. Returns JSON.
    fn prune(&self, py: Python<'_>, target_bytes: u64) -> PyResult<String> {
        json(&py.detach(|| self.0.prune(target_bytes)).map_err(|error| raise(&error))?)
    }

    /// Number and bytes of the first files below `path`, as JSON: what kind of files they are. One request.
    fn sample(&self, py: Python<'_>, path: &str) -> PyResult<String> {
        json(&py.detach(|| self.0.sample(path)).map_err(|error| raise(&error))?)
    }

    /// Freezes what is below `path` into the document `file`; the source is listed anew.
    fn create_snapshot(&self, py: Python<'_>, path: &str, name: &str, file: PathBuf) -> PyResult<()> {
        py.detach(|| self.0.create_snapshot(path, name, &file)).map(drop).map_err(|error| raise(&error))
    }

    /// What a snapshot document says of itself, as JSON; with `whole`, all of it is read and checked.
    #[staticmethod]
    fn snapshot_summary(py: Python<'_>, file: PathBuf, whole: bool) -> PyResult<String> {
        json(&py.detach(|| snapshot_summary(&file, whole)).map_err(|error| raise(&error))?)
    }

    /// Some files of a snapshot document from a row on, and the row to go on at, as JSON.
    #[staticmethod]
    fn snapshot_files(py: Python<'_>, file: PathBuf, from_row: usize) -> PyResult<String> {
        json(&py.detach(|| snapshot_files(&file, from_row)).map_err(|error| raise(&error))?)
    }

    /// What is different in a later document: numbers and the first `limit` changes, as JSON.
    #[staticmethod]
    fn snapshot_changes(py: Python<'_>, earlier: PathBuf, later: PathBuf, limit: usize) -> PyResult<String> {
        json(&py.detach(|| snapshot_changes(&earlier, &later, limit)).map_err(|error| raise(&error))?)
    }

    /// Serves a kernel mount from now on. `fd` is `/dev/fuse`, mounted already; it belongs to the node from this call on,
    /// also when it fails. `options_json` is a `MountSpec`. Returns its status as JSON.
    fn serve_mount(&self, py: Python<'_>, fd: RawFd, options_json: &str) -> PyResult<String> {
        let device = take_descriptor(fd).map_err(|error| raise(&error))?;
        let spec: MountSpec = parse("read how to mount", options_json)?;
        json(&py.detach(|| self.0.serve_mount(device, spec)).map_err(|error| raise(&error))?)
    }

    /// Every mount that is served, as a JSON list.
    fn mounts(&self, py: Python<'_>) -> PyResult<String> {
        json(&py.detach(|| self.0.mounts()))
    }

    /// Forgets a mount whose kernel side is gone; ends the connection of one whose is not.
    fn end_mount(&self, py: Python<'_>, mount_id: u64) -> PyResult<()> {
        py.detach(|| self.0.end_mount(mount_id)).map_err(|error| raise(&error))
    }

    /// Takes no more clients, lets requests under way finish within `timeout_s`, flushes, stops.
    fn drain(&self, py: Python<'_>, timeout_s: f64) {
        let timeout = Duration::try_from_secs_f64(timeout_s).unwrap_or_default();
        py.detach(|| self.0.drain(timeout));
    }
}

/// Owns a descriptor that Python gives away.
fn take_descriptor(number: RawFd) -> Result<OwnedFd, Error> {
    let wrong = |reason: String| Error::new(ErrorKind::InvalidInput, format!("take descriptor {number}"), reason);
    if number < 0 {
        return Err(wrong("it is no descriptor".into()).advise("report it"));
    }
    // SAFETY: borrowed for the one call that finds out whether it is open at all.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| wrong(error.to_string()).advise("report it"))?;
    // SAFETY: it is open, and the caller, who gives it away, does not use it any more.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn parse<T: DeserializeOwned>(action: &str, text: &str) -> PyResult<T> {
    serde_json::from_str(text)
        .map_err(|error| raise(&Error::new(ErrorKind::InvalidInput, action, error.to_string()).advise("report it")))
}

fn json<T: Serialize>(value: &T) -> PyResult<String> {
    serde_json::to_string(value)
        .map_err(|error| raise(&Error::new(ErrorKind::Internal, "write JSON", error.to_string()).advise("report it")))
}

/// Ends the FUSE connection of that number, whoever serves it: whatever waits for it fails.
#[pyfunction]
pub fn end_connection(py: Python<'_>, number: u32) -> PyResult<()> {
    py.detach(|| penstock_node::end_connection(number)).map_err(|error| raise(&error))
}
