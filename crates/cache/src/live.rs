//! The extents that are in memory: all that are in use, changed or fresh, and as many others as memory allows.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use penstock_types::ObjectId;

use crate::Extent;

/// Extents kept in memory though nobody uses them: some 700 bytes each. The others are found in the index.
pub const MAX_IDLE: usize = 32_768;
/// Extents looked at by one step of trimming, so that it holds the lock for a moment only.
const TRIM_STEP: usize = 8_192;
/// Numbers of extents that left may stay in the ring up to as many as are there, and so many more.
const RING_SLACK: usize = 64;
/// References to an extent that nobody uses: one in each map.
const IDLE_REFERENCES: usize = 2;

/// Extents by what they hold and by their number.
#[derive(Default)]
pub struct Live {
    by_object: HashMap<ObjectId, Arc<Extent>>,
    by_number: HashMap<u64, Arc<Extent>>,
    /// The order in which trimming looks at them.
    ring: VecDeque<u64>,
    /// Extents that have left so far. Who finds one in the index takes it in only if none has left meanwhile:
    /// what was found may be what left.
    departures: u64,
}

impl Live {
    pub fn find(&self, id: &ObjectId) -> Option<&Arc<Extent>> {
        self.by_object.get(id)
    }

    pub fn number(&self, number: u64) -> Option<&Arc<Extent>> {
        self.by_number.get(&number)
    }

    pub fn departures(&self) -> u64 {
        self.departures
    }

    /// Takes an extent in. One that holds the same object and is not gone keeps its name: the new one is then only
    /// known by its number.
    pub fn insert(&mut self, extent: &Arc<Extent>) {
        let named = self.by_object.get(extent.id()).is_some_and(|known| !known.is_gone());
        if !named {
            self.by_object.insert(extent.id().clone(), Arc::clone(extent));
        }
        if self.by_number.insert(extent.number, Arc::clone(extent)).is_none() {
            self.ring.push_back(extent.number);
        }
        if self.ring.len() > 2 * self.by_number.len() + RING_SLACK {
            self.ring = self.by_number.keys().copied().collect();
        }
    }

    /// Lets an extent go.
    pub fn remove(&mut self, extent: &Extent) {
        self.departures += 1;
        self.by_number.remove(&extent.number);
        if self.by_object.get(extent.id()).is_some_and(|known| known.number == extent.number) {
            self.by_object.remove(extent.id());
        }
    }

    /// Extents that are known only in memory or also in the index, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Extent>> {
        self.by_number.values()
    }

    /// Lets idle extents go that the index knows, while there are more than `most`; those that were not used since
    /// the last time first. The caller drops them without the lock.
    #[must_use]
    pub fn trim(&mut self, most: usize) -> Vec<Arc<Extent>> {
        let mut trimmed = Vec::new();
        for _ in 0..TRIM_STEP.min(self.ring.len()) {
            if self.by_number.len() <= most {
                break;
            }
            let Some(number) = self.ring.pop_front() else { break };
            let Some(extent) = self.by_number.get(&number) else { continue };
            let named = self.by_object.get(extent.id()).is_some_and(|known| known.number == number);
            let idle = Arc::strong_count(extent) <= IDLE_REFERENCES - usize::from(!named);
            let recent = extent.recent.swap(false, Ordering::Relaxed);
            if idle && !recent && !extent.is_changed() {
                let extent = Arc::clone(extent);
                self.remove(&extent);
                trimmed.push(extent);
            } else {
                self.ring.push_back(number);
            }
        }
        trimmed
    }
}
