//! Names of the tree with their attributes.

use penstock_node::{Entry, EntryKind};
use penstock_types::{Posix, Version};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Mode, owner, group and time in nanoseconds, as far as somebody has said them.
type Said = (Option<u16>, Option<u32>, Option<u32>, Option<i64>);

/// One name of the tree with its attributes.
#[pyclass(frozen, name = "Entry", module = "penstock._core")]
pub struct PyEntry(pub Entry);

#[pymethods]
impl PyEntry {
    /// For pickles, which come from another process: everything else gets entries from the node.
    #[new]
    #[pyo3(signature = (name, kind, size, modified_ms, version, said=Said::default()))]
    fn new(name: String, kind: &str, size: u64, modified_ms: i64, version: Option<&str>, said: Said) -> PyResult<Self> {
        let (mode, uid, gid, modified_ns) = said;
        let posix = Posix { mode, uid, gid, modified_ns };
        let kind = match kind {
            "file" => EntryKind::File,
            "directory" => EntryKind::Directory,
            _ => return Err(PyValueError::new_err("kind is 'file' or 'directory'")),
        };
        Ok(Self(Entry { name, kind, size, modified_ms, version: version.map(Version::from), posix }))
    }

    fn __getnewargs__(&self) -> (&str, &'static str, u64, i64, Option<&str>, Said) {
        let Posix { mode, uid, gid, modified_ns } = self.0.posix;
        (self.name(), self.kind(), self.0.size, self.0.modified_ms, self.version(), (mode, uid, gid, modified_ns))
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

    /// Permission bits, where somebody has said them.
    #[getter]
    fn mode(&self) -> Option<u16> {
        self.0.posix.mode
    }

    /// Owner, where somebody has said one.
    #[getter]
    fn uid(&self) -> Option<u32> {
        self.0.posix.uid
    }

    /// Group, where somebody has said one.
    #[getter]
    fn gid(&self) -> Option<u32> {
        self.0.posix.gid
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
