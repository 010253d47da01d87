//! What a person sees of the tree: names with attributes.

use penstock_catalog::Item;
use penstock_types::{Posix, Version};
use serde::{Deserialize, Serialize};

/// File or directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// An object.
    File,
    /// A prefix, or a place above an attachment.
    Directory,
}

/// One name of the tree with its attributes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Last component in a list, path below the walked directory in a walk.
    pub name: String,
    /// File or directory.
    pub kind: EntryKind,
    /// Bytes; 0 for a directory.
    pub size: u64,
    /// Milliseconds since the Unix epoch; 0 for a directory of which nobody has said a time.
    pub modified_ms: i64,
    /// Token of the content; `None` for a directory.
    pub version: Option<Version>,
    /// What somebody has said of it besides its bytes, as far as this node knows.
    pub posix: Posix,
}

/// Some entries and how to go on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EntryPage {
    /// In listing order.
    pub entries: Vec<Entry>,
    /// Pass as `after` for the next page; `None` on the last.
    pub next: Option<String>,
}

impl Entry {
    /// A directory called `name`.
    pub fn directory(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: EntryKind::Directory,
            size: 0,
            modified_ms: 0,
            version: None,
            posix: Posix::default(),
        }
    }

    /// The catalog's item under the name a reader uses, with what was said of it.
    pub(crate) fn of(name: impl Into<String>, item: Item, posix: Posix) -> Self {
        match item {
            Item::Directory => {
                let modified_ms = posix.modified_ms().unwrap_or_default();
                Self { modified_ms, posix, ..Self::directory(name) }
            }
            Item::File { attributes, .. } => Self {
                name: name.into(),
                kind: EntryKind::File,
                size: attributes.size,
                modified_ms: posix.modified_ms().unwrap_or(attributes.modified_ms),
                version: Some(attributes.version),
                posix,
            },
        }
    }
}
