//! The changes of one key, in their order.

use std::sync::Arc;

use penstock_types::Laid;

use crate::change::{Base, Change, OperationId};
use crate::journal::Slot;
use crate::record::SettledRecord;

/// What is known of a key.
#[derive(Default)]
pub struct Key {
    /// Changes whose record is on the way to the disk, oldest first.
    pub admitted: Vec<Arc<Change>>,
    /// Changes that the source has not got, oldest first; without those in conflict.
    pub waiting: Vec<Arc<Change>>,
    /// The change that the source got last, while listings may not show it.
    pub shown: Option<Shown>,
}

/// A change that is in its source, and still laid over its names.
pub struct Shown {
    pub record: SettledRecord,
    /// Where that record is in the journal.
    pub home: Slot,
}

impl Key {
    /// What a new change replaces, unless it is refused.
    pub fn newest(&self) -> Option<&Arc<Change>> {
        self.admitted.last().or(self.waiting.last())
    }

    /// Whether what was made of `base` may take its place. A version of the source may: that is asked when it is brought.
    pub fn may_follow(&self, base: &Base) -> bool {
        match (self.newest(), base) {
            (Some(newest), base) => *base == Base::Staged(newest.operation()),
            (None, Base::Staged(operation)) => {
                self.shown.as_ref().is_none_or(|shown| shown.record.operation == *operation)
            }
            (None, _) => true,
        }
    }

    /// The newest change that is seen.
    pub fn laid(&self) -> Option<Laid> {
        if let Some(change) = self.waiting.last() {
            return Some(Laid { attributes: change.attributes(), settled: None, at: None });
        }
        let settled = &self.shown.as_ref()?.record.settled;
        Some(Laid { attributes: settled.attributes().cloned(), settled: Some(settled.moment()), at: None })
    }

    /// Adds a change that is durable, in its place.
    pub fn add(&mut self, change: &Arc<Change>) {
        let place = self.waiting.partition_point(|earlier| earlier.operation() < change.operation());
        self.waiting.insert(place, Arc::clone(change));
    }

    /// Takes a change away that was admitted or waits; whether it was there.
    pub fn take(&mut self, operation: OperationId) -> bool {
        let before = self.admitted.len() + self.waiting.len();
        self.admitted.retain(|change| change.operation() != operation);
        self.waiting.retain(|change| change.operation() != operation);
        self.admitted.len() + self.waiting.len() < before
    }

    /// Has what was to replace a change replace `base`.
    pub fn follow(&self, operation: OperationId, base: &Base) {
        for change in self.admitted.iter().chain(&self.waiting) {
            let mut progress = change.progress();
            if progress.base == Base::Staged(operation) {
                progress.base = base.clone();
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.admitted.is_empty() && self.waiting.is_empty() && self.shown.is_none()
    }
}
