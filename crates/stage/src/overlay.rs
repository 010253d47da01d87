//! What the changes of one scope lay over its names.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use penstock_types::{Laid, Overlay};

/// The newest change of each key of a scope; asked by whoever looks at names, changed by the table alone.
#[derive(Default)]
pub struct Names {
    count: AtomicUsize,
    laid: RwLock<BTreeMap<Bytes, Laid>>,
}

impl Names {
    /// Lays a change over a key, or takes away what was laid there.
    pub fn lay(&self, key: &Bytes, change: Option<Laid>) {
        let mut laid = self.laid.write().expect("no panic while names are held");
        match change {
            Some(change) => drop(laid.insert(key.clone(), change)),
            None => drop(laid.remove(key)),
        }
        self.count.store(laid.len(), Ordering::Release);
    }
}

impl Overlay for Names {
    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    fn at(&self, key: &[u8]) -> Option<Laid> {
        if self.is_empty() {
            return None;
        }
        self.laid.read().expect("no panic while names are held").get(key).cloned()
    }

    fn next(&self, from: &[u8], inclusive: bool) -> Option<(Bytes, Laid)> {
        if self.is_empty() {
            return None;
        }
        let start = if inclusive { Bound::Included(from) } else { Bound::Excluded(from) };
        let laid = self.laid.read().expect("no panic while names are held");
        let found = laid.range::<[u8], _>((start, Bound::Unbounded)).next();
        found.map(|(key, change)| (key.clone(), change.clone()))
    }
}
