//! What is taken back from a kernel once a path means something else: the name itself, or the first of its directories
//! that the kernel does not know; what lists it; and the directories that are gone with it.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, Weak};

use futures_util::future::BoxFuture;
use penstock_types::{Expired, KernelExpiry, TreePath};

use crate::kernel::Mounted;

impl Mounted {
    /// Has `expiry` take back what the kernel was told.
    pub(super) fn watch(&self, expiry: Weak<dyn KernelExpiry>) {
        *self.expiry.lock().expect("no panic while a watcher is kept") = Some(expiry);
    }

    /// Has taken back what is not so any more.
    pub(super) fn expire(&self, expired: Vec<Expired>) -> Option<BoxFuture<'static, ()>> {
        if expired.is_empty() {
            return None;
        }
        let expiry = self.expiry.lock().expect("no panic while a watcher is kept").clone();
        Some(expiry?.upgrade()?.expire(expired))
    }

    /// How many changes were announced. Read before something is looked up and again when it has been told: what was
    /// told in between may be out of date, and was perhaps not there to be taken back.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// A path means something else from now on: has taken back what the kernel was told of it.
    pub(crate) fn announce(&self, path: &TreePath) -> Option<BoxFuture<'static, ()>> {
        path.below(&self.base)?;
        self.changes.fetch_add(1, Ordering::SeqCst);
        let outdated = self.outdated(path);
        // The kernel knows what it changes by itself, and may hold what taking back would wait for.
        let is_own = self.own_changes().iter().any(|own| own == path || path.below(own).is_some());
        if is_own { None } else { self.expire(outdated) }
    }

    /// The kernel has changed what a path means by itself.
    pub(super) fn note_change(&self, path: &TreePath) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        drop(self.outdated(path));
    }

    /// The kernel has given a path to a node that it holds.
    pub(super) fn note_move(&self, path: &TreePath) {
        self.note_change(path);
        if let Some(parent) = path.parent() {
            self.nodes.told().moved_into(parent.as_str());
        }
    }

    pub(super) fn own_changes(&self) -> MutexGuard<'_, Vec<TreePath>> {
        self.own.lock().expect("no panic while changes are noted")
    }

    fn outdated(&self, path: &TreePath) -> Vec<Expired> {
        let mut expired = Vec::new();
        let mut changed = path.clone();
        while let Some(parent) = changed.parent().filter(|_| changed != self.base) {
            let (directory, name) = (self.directory_node(&parent), changed.name());
            // The kernel knows nothing in a directory that it does not hold; perhaps that it was not there.
            let is_held = self.nodes.get(directory).is_some();
            // What an attachment hangs on stays.
            let is_fixed = self.engine.tree.children(&parent).contains(name);
            if is_held && !is_fixed && self.nodes.told().change(parent.as_str(), name) {
                self.nodes.show_time(directory, None);
                expired.push(Expired::Name(directory, name.into()));
                expired.push(Expired::Names(directory));
            }
            if is_fixed || (is_held && !self.is_gone(&parent)) {
                break;
            }
            changed = parent;
        }
        expired
    }

    /// Whether a directory is known not to be there any more.
    fn is_gone(&self, path: &TreePath) -> bool {
        let known = self.engine.known(path).and_then(Result::ok);
        known.is_some_and(|known| known.entry.is_none())
    }

    /// Milliseconds on the engine's clock.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.engine.parts.clock.monotonic().as_millis()).unwrap_or(u64::MAX)
    }
}
