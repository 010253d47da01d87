//! A cached file under a local name.

use std::sync::Mutex;

use penstock_node::protocol::Link;
use penstock_node::ring::Returned;
use pyo3::prelude::*;
use std::sync::Arc;

use crate::client::Session;

/// A cached file under a local path, for software that maps files by name. The path is read-only, can be opened by
/// any process of this user, and stays until the lease is closed, dropped, or its process ends.
#[pyclass(frozen, module = "penstock._core", weakref)]
pub struct Lease {
    link: Link,
    session: Mutex<Option<Arc<Session>>>,
}

impl Lease {
    /// The lease of a link that the node made for this session.
    pub fn new(link: Link, session: Arc<Session>) -> Self {
        Self { link, session: Mutex::new(Some(session)) }
    }

    fn end(&self) {
        let held = self.session.lock().map(|mut session| session.take()).unwrap_or_default();
        if let Some(session) = held {
            session.give_back(Returned::Lease(self.link.lease));
        }
    }
}

#[pymethods]
impl Lease {
    /// Absolute path of the file.
    #[getter]
    fn path(&self) -> &str {
        &self.link.path
    }

    /// Bytes.
    #[getter]
    fn size(&self) -> u64 {
        self.link.size
    }

    /// The version that the path holds.
    #[getter]
    fn version(&self) -> &str {
        self.link.version.as_str()
    }

    /// Whether the lease has ended.
    #[getter]
    fn closed(&self) -> bool {
        self.session.lock().is_ok_and(|session| session.is_none())
    }

    /// Ends the lease; the path is removed within a second.
    fn close(&self) {
        self.end();
    }

    fn __fspath__(&self) -> &str {
        &self.link.path
    }

    fn __str__(&self) -> &str {
        &self.link.path
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, pyo3::types::PyTuple>) {
        self.end();
    }

    fn __repr__(&self) -> String {
        format!("<Lease on {:?}>", self.link.path)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end();
    }
}
