//! The extents that are in memory: all that are in use, changed or fresh, and as many others as memory allows.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use penstock_types::ObjectId;

use crate::Extent;

/// Extents kept in memory though nobody uses them: some 900 bytes each. The others are found in the index, which
/// takes some 5 µs.
pub const MAX_IDLE: usize = 24_576;
/// Extents looked at when one comes in while there are too many: enough to let more go than come.
const TRIM_AT_INSERT: usize = 4;
/// Extents looked at by one step of trimming, so that it holds the lock for a moment only.
const TRIM_STEP: usize = 8_192;
/// Numbers of extents that left may stay in the ring up to as many as are there, and so many more.
const RING_SLACK: usize = 64;
/// Numbers remembered of extents that left.
const MAX_DEPARTED: usize = 1_024;
/// References to an extent that nobody uses: one in each map.
const IDLE_REFERENCES: usize = 2;

/// Extents by what they hold and by their number.
#[derive(Default)]
pub struct Live {
    by_object: HashMap<ObjectId, Arc<Extent>>,
    by_number: HashMap<u64, Arc<Extent>>,
    /// The order in which trimming looks at them.
    ring: VecDeque<u64>,
    /// How many extents have left so far, and the numbers of the last of them. Who finds an extent in the index
    /// takes it in only if that one has not left meanwhile: what was found may be out of date.
    departures: u64,
    departed: VecDeque<u64>,
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

    /// Whether `number` has left, or may have, since [`departures`](Self::departures) was `then`.
    pub fn may_have_departed(&self, number: u64, then: u64) -> bool {
        let since = usize::try_from(self.departures - then).unwrap_or(usize::MAX);
        since > self.departed.len() || self.departed.iter().rev().take(since).any(|departed| *departed == number)
    }

    /// Takes an extent in. One that holds the same object and is not gone keeps its name: the new one is then only
    /// known by its number. Those that have to go for it, to be dropped without the lock.
    #[must_use]
    pub fn insert(&mut self, extent: &Arc<Extent>) -> Vec<Arc<Extent>> {
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
        self.trim_some(MAX_IDLE, TRIM_AT_INSERT)
    }

    /// Lets an extent go.
    pub fn remove(&mut self, extent: &Extent) {
        self.note_departure(extent.number);
        self.by_number.remove(&extent.number);
        if self.by_object.get(extent.id()).is_some_and(|known| known.number == extent.number) {
            self.by_object.remove(extent.id());
        }
    }

    /// Makes those look again who are about to take `number` in from what they found in the index before.
    pub fn note_departure(&mut self, number: u64) {
        self.departures += 1;
        self.departed.push_back(number);
        if self.departed.len() > MAX_DEPARTED {
            self.departed.pop_front();
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
        self.trim_some(most, TRIM_STEP)
    }

    fn trim_some(&mut self, most: usize, looks: usize) -> Vec<Arc<Extent>> {
        let mut trimmed = Vec::new();
        for _ in 0..looks.min(self.ring.len()) {
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
