//! The node, for the Python process that hosts it.

use std::path::PathBuf;
use std::time::Duration;

use penstock_node::{Node, start_logging};
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

    /// Keeps these paths, and everything below them, in the cache.
    fn set_pins(&self, py: Python<'_>, paths: Vec<String>) -> PyResult<()> {
        py.detach(|| self.0.set_pins(&paths)).map_err(|error| raise(&error))
    }

    /// Evicts until at most `target_bytes` are cached; what is pinned or in use stays. Returns JSON.
    fn prune(&self, py: Python<'_>, target_bytes: u64) -> PyResult<String> {
        json(&py.detach(|| self.0.prune(target_bytes)).map_err(|error| raise(&error))?)
    }

    /// Takes no more clients, lets requests under way finish within `timeout_s`, flushes, stops.
    fn drain(&self, py: Python<'_>, timeout_s: f64) {
        let timeout = Duration::try_from_secs_f64(timeout_s).unwrap_or_default();
        py.detach(|| self.0.drain(timeout));
    }
}

fn parse<T: DeserializeOwned>(action: &str, text: &str) -> PyResult<T> {
    serde_json::from_str(text)
        .map_err(|error| raise(&Error::new(ErrorKind::InvalidInput, action, error.to_string()).advise("report it")))
}

fn json<T: Serialize>(value: &T) -> PyResult<String> {
    serde_json::to_string(value)
        .map_err(|error| raise(&Error::new(ErrorKind::Internal, "write JSON", error.to_string()).advise("report it")))
}
