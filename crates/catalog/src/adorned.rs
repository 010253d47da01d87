//! What was said of the attributes of object versions that sources have: kept for good, one row a key.

use std::sync::atomic::Ordering;

use penstock_types::{ObjectAttributes, ObjectKey, Posix, Version};
use serde::{Deserialize, Serialize};

use crate::store::Change;
use crate::{Catalog, View};

#[derive(Serialize, Deserialize)]
struct Row {
    version: Version,
    modified_ms: i64,
    posix: Posix,
}

/// What is known of the attributes of one version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Adorned {
    /// When the source got it, in whole seconds since the Unix epoch: some stores give a version that was copied onto
    /// itself the same name again.
    pub modified_s: i64,
    /// What was said.
    pub posix: Posix,
}

fn row_key(scope: u32, key: &ObjectKey) -> Vec<u8> {
    [&scope.to_be_bytes()[..], key.as_bytes()].concat()
}

impl Catalog {
    /// Keeps what was said of a version that a source has, in place of what was said of another one of its key. Seen by
    /// and by; a crash of the process may lose the last second. Needs a tokio runtime.
    pub fn adorn(&self, scope: &str, key: &ObjectKey, attributes: &ObjectAttributes, posix: Posix) {
        let row = Row { version: attributes.version.clone(), modified_ms: attributes.modified_ms, posix };
        if let Ok(row) = postcard::to_stdvec(&row) {
            self.has_adorned.store(true, Ordering::Release);
            self.keep_adorned(scope, key, Some(row));
        }
    }

    /// Nothing is said of what a key has any more. As [`Catalog::adorn`].
    pub fn strip(&self, scope: &str, key: &ObjectKey) {
        if self.has_adorned.load(Ordering::Acquire) {
            self.keep_adorned(scope, key, None);
        }
    }

    /// Whether anything may be known of attributes that were said.
    pub fn knows_adorned(&self) -> bool {
        self.has_adorned.load(Ordering::Acquire)
    }

    fn keep_adorned(&self, scope: &str, key: &ObjectKey, row: Option<Vec<u8>>) {
        let key = row_key(self.scope(scope).number, key);
        drop(self.writer.submit(&self.writer.store(), vec![Change::Adorned { key, row }]));
    }
}

impl View {
    /// What was said of a version of the source; `None` where nothing is known, which is not that nothing was said.
    ///
    /// Cost: nothing where nothing was said of any version; else a look into the store.
    pub fn adorned(&self, key: &ObjectKey, version: &Version) -> Option<Adorned> {
        let catalog = &self.parts.catalog;
        if !catalog.has_adorned.load(Ordering::Acquire) {
            return None;
        }
        let key = row_key(self.parts.scope.number, key);
        let row = catalog.writer.guard(|| catalog.writer.store().adorned(&key)).ok().flatten()?;
        let row: Row = postcard::from_bytes(&row).ok()?;
        let known = Adorned { modified_s: row.modified_ms.div_euclid(1000), posix: row.posix };
        (row.version == *version).then_some(known)
    }
}
