//! Names of the tree with their attributes.

use penstock_node::{Entry, EntryKind};
use penstock_types::Version;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// One name of the tree with its attributes.
#[pyclass(frozen, name = "Entry", module = "penstock._core")]
pub struct PyEntry(pub Entry);

#[pymethods]
impl PyEntry {
    /// For pickles, which come from another process: everything else gets entries from the node.
    #[new]
    fn new(name: String, kind: &str, size: u64, modified_ms: i64, version: Option<&str>) -> PyResult<Self> {
        let kind = match kind {
            "file" => EntryKind::File,
            "directory" => EntryKind::Directory,
            _ => return Err(PyValueError::new_err("kind is 'file' or 'directory'")),
        };
        Ok(Self(Entry { name, kind, size, modified_ms, version: version.map(Version::from) }))
    }

    fn __getnewargs__(&self) -> (&str, &'static str, u64, i64, Option<&str>) {
        (self.name(), self.kind(), self.0.size, self.0.modified_ms, self.version())
    }

    /// Last component in a list, path below the walked directory in a walk.
    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    /// `file` or `directory`.
    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.kind {
            EntryKind::File => "file",
            EntryKind::Directory => "directory",
        }
    }

    /// Bytes; 0 for a directory.
    #[getter]
    fn size(&self) -> u64 {
        self.0.size
    }

    /// Milliseconds since the Unix epoch; 0 for a directory.
    #[getter]
    fn modified_ms(&self) -> i64 {
        self.0.modified_ms
    }

    /// Token of the content; `None` for a directory.
    #[getter]
    fn version(&self) -> Option<&str> {
        self.0.version.as_ref().map(|version| version.as_str())
    }

    /// Whether it is a file.
    #[getter]
    fn is_file(&self) -> bool {
        self.0.kind == EntryKind::File
    }

    /// Whether it is a directory.
    #[getter]
    fn is_directory(&self) -> bool {
        self.0.kind == EntryKind::Directory
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| other.get().0 == self.0)
    }

    fn __hash__(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        (&self.0.name, self.0.size, self.0.modified_ms, &self.0.version).hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self) -> String {
        match self.0.kind {
            EntryKind::Directory => format!("Entry({:?}, directory)", self.0.name),
            EntryKind::File => format!("Entry({:?}, file, {} bytes)", self.0.name, self.0.size),
        }
    }
}
