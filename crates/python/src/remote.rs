//! The simulated remote, for the demo, the benchmarks and the tests.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use penstock_remote::{Remote as Inner, RemoteConfig};
use pyo3::prelude::*;

use crate::errors::raise;

/// A running simulated remote: an S3 server on a loopback port over a directory, with delay and rate.
#[pyclass(frozen, module = "penstock._core")]
pub struct Remote {
    inner: Mutex<Inner>,
    endpoint: String,
}

#[pymethods]
impl Remote {
    /// Serves `root` on 127.0.0.1, unsigned. Rates are bytes per second, 0 for no limit; port 0 takes a free one.
    #[new]
    #[pyo3(signature = (root, first_byte_ms=0.0, connection_bytes_per_s=0, total_bytes_per_s=0, port=0))]
    fn new(
        py: Python<'_>,
        root: PathBuf,
        first_byte_ms: f64,
        connection_bytes_per_s: u64,
        total_bytes_per_s: u64,
        port: u16,
    ) -> PyResult<Self> {
        let mut config = RemoteConfig::new(root);
        config.first_byte = Duration::try_from_secs_f64(first_byte_ms / 1000.0).unwrap_or_default();
        config.connection_rate = connection_bytes_per_s;
        config.total_rate = total_bytes_per_s;
        config.port = port;
        let inner = py.detach(|| Inner::start(config)).map_err(|error| raise(&error))?;
        Ok(Self { endpoint: inner.endpoint(), inner: Mutex::new(inner) })
    }

    /// `http://127.0.0.1:PORT`, for path-style requests.
    #[getter]
    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Stores an object without HTTP, delay or rate; makes the bucket when it is missing.
    fn put_object(&self, py: Python<'_>, bucket: &str, key: &str, content: &[u8]) -> PyResult<()> {
        let put = || self.inner.lock().expect("no panic while it is held").put_object(bucket, key, content);
        py.detach(put).map_err(|error| raise(&error))
    }

    /// Gives every key the same small object, stored once: a million take a second.
    fn put_synthetic(&self, py: Python<'_>, bucket: &str, keys: Vec<String>, content: &[u8]) -> PyResult<()> {
        let put = || self.inner.lock().expect("no panic while it is held").put_synthetic(bucket, keys, content);
        py.detach(put).map_err(|error| raise(&error))
    }

    /// What was asked and moved since the start.
    fn counters(&self) -> HashMap<&'static str, u64> {
        self.inner.lock().expect("no panic while it is held").counters().snapshot().into_iter().collect()
    }

    /// Stops serving; the directory stays. Later calls do nothing.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.inner.lock().expect("no panic while it is held").stop());
    }
}
