//! Changes made here, as a stage would tell of them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use penstock_types::{Laid, ObjectAttributes, Overlay, Version};

/// Changes by key.
#[derive(Default)]
pub struct Written(Mutex<BTreeMap<Vec<u8>, Laid>>);

impl Written {
    fn changes(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Laid>> {
        self.0.lock().unwrap()
    }

    /// An object that the source has not got, or has since `settled`.
    pub fn put(&self, key: impl AsRef<[u8]>, size: u64, settled: Option<i64>) -> ObjectAttributes {
        let version = Version::from(format!("staged-{size}-{settled:?}").as_str());
        let attributes = ObjectAttributes { size, modified_ms: 1_800_000_000_000, version };
        self.lay(key, Laid { attributes: Some(attributes.clone()), settled, at: None });
        attributes
    }

    /// A removal.
    pub fn remove(&self, key: impl AsRef<[u8]>, settled: Option<i64>) {
        self.lay(key, Laid { attributes: None, settled, at: None });
    }

    pub fn lay(&self, key: impl AsRef<[u8]>, laid: Laid) {
        self.changes().insert(key.as_ref().to_vec(), laid);
    }

    /// The source has had the change of a key since `moment`, under this version.
    pub fn settle(&self, key: &str, moment: i64, version: &str) {
        let mut changes = self.changes();
        let laid = changes.get_mut(key.as_bytes()).unwrap();
        laid.settled = Some(moment);
        if let Some(attributes) = &mut laid.attributes {
            attributes.version = Version::from(version);
        }
    }

    /// Nothing is told of a key any more.
    pub fn forget(&self, key: &str) {
        self.changes().remove(key.as_bytes());
    }
}

impl Overlay for Written {
    fn is_empty(&self) -> bool {
        self.changes().is_empty()
    }

    fn at(&self, key: &[u8]) -> Option<Laid> {
        self.changes().get(key).cloned()
    }

    fn next(&self, from: &[u8], inclusive: bool) -> Option<(Bytes, Laid)> {
        let from = if inclusive { Bound::Included(from) } else { Bound::Excluded(from) };
        let changes = self.changes();
        let next = changes.range::<[u8], _>((from, Bound::Unbounded)).next();
        next.map(|(key, laid)| (Bytes::copy_from_slice(key), laid.clone()))
    }
}
