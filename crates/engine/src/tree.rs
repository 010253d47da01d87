//! The one namespace: which attachment a path belongs to, and the directories that exist only because
//! attachments lie below them.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};

use penstock_types::{Error, ErrorKind, Result, TreePath};

use crate::attachment::Attached;

/// Attachments by path; the longest attached path wins.
#[derive(Default)]
pub struct Tree {
    attached: RwLock<Arc<Vec<Arc<Attached>>>>,
}

impl Tree {
    /// Every attachment, sorted by path.
    pub fn all(&self) -> Arc<Vec<Arc<Attached>>> {
        Arc::clone(&self.attached.read().expect("no panic while the tree is read"))
    }

    /// Adds an attachment; its path must be free.
    pub fn add(&self, added: Arc<Attached>) -> Result<()> {
        let mut attached = self.attached.write().expect("no panic while the tree is changed");
        if attached.iter().any(|known| known.path == added.path) {
            return Err(taken(&added.path));
        }
        let mut next: Vec<_> = attached.iter().cloned().collect();
        next.push(added);
        next.sort_by(|a, b| a.path.cmp(&b.path));
        *attached = Arc::new(next);
        Ok(())
    }

    /// Takes the attachment at exactly `path` out.
    pub fn remove(&self, path: &TreePath) -> Result<Arc<Attached>> {
        let mut attached = self.attached.write().expect("no panic while the tree is changed");
        let position = attached.iter().position(|known| known.path == *path).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("detach {path}"), "nothing is attached there")
                .advise("penstock attachments lists what is")
        })?;
        if let Some(nested) = attached.iter().find(|known| known.path != *path && known.path.below(path).is_some()) {
            return Err(Error::new(ErrorKind::Busy, format!("detach {path}"), "another attachment lies below it")
                .advise(format!("detach {} first", nested.path)));
        }
        let mut next: Vec<_> = attached.iter().cloned().collect();
        let removed = next.remove(position);
        *attached = Arc::new(next);
        Ok(removed)
    }

    /// Whether `path` is free to attach at.
    pub fn check_free(&self, path: &TreePath) -> Result<()> {
        if self.all().iter().any(|known| known.path == *path) { Err(taken(path)) } else { Ok(()) }
    }

    /// The attachment that `path` belongs to and the path inside it; `None` above and beside all of them.
    pub fn find(&self, path: &TreePath) -> Option<(Arc<Attached>, String)> {
        let attached = self.attached.read().expect("no panic while the tree is read");
        let mut best: Option<(&Arc<Attached>, &str)> = None;
        for known in attached.iter() {
            if let Some(rest) = path.below(&known.path)
                && best.is_none_or(|(_, shortest)| rest.len() < shortest.len())
            {
                best = Some((known, rest));
            }
        }
        best.map(|(known, rest)| (Arc::clone(known), rest.to_string()))
    }

    /// Whether an attachment is a part of the tree.
    pub fn has(&self, attached: &Arc<Attached>) -> bool {
        self.all().iter().any(|known| Arc::ptr_eq(known, attached))
    }

    /// Attachments strictly below `path`, sorted by path.
    pub fn below(&self, path: &TreePath) -> Vec<Arc<Attached>> {
        let attached = self.all();
        attached.iter().filter(|known| known.path != *path && known.path.below(path).is_some()).cloned().collect()
    }

    /// Names of directories that exist in `path` because an attachment is at or below them, sorted.
    pub fn children(&self, path: &TreePath) -> BTreeSet<String> {
        let first = |known: &Arc<Attached>| {
            let rest = known.path.below(path)?;
            rest.split('/').next().filter(|name| !name.is_empty()).map(str::to_string)
        };
        self.all().iter().filter_map(first).collect()
    }

    /// Whether `path` is a directory of the tree itself: the root, or above an attachment.
    pub fn is_directory(&self, path: &TreePath) -> bool {
        path.is_root() || !self.below(path).is_empty()
    }
}

fn taken(path: &TreePath) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("attach at {path}"), "something is attached there")
        .advise(format!("penstock detach {path}, or choose another path"))
}
