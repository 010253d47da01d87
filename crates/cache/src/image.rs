//! What the index is told of an extent, and when its data counts as safe on the disk.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::extent::{Extent, Life};
use crate::index::Record;
use crate::page_map::StripeImage;

impl Extent {
    /// Puts it on the list of what the next flush stores.
    pub(crate) fn note_changed(&self) {
        if !self.changed.swap(true, Ordering::AcqRel)
            && let Some(owner) = self.owner.upgrade()
        {
            owner.note_changed(self.number);
        }
    }

    pub(crate) fn is_changed(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    /// What the index is to store, `None` when it is gone or has no file. What changes from here on is stored by the
    /// next flush.
    pub(crate) fn image(&self, boot: u64) -> Option<(Record, Vec<(u64, StripeImage)>)> {
        self.changed.store(false, Ordering::Release);
        {
            let mut state = self.state();
            if state.life != Life::Here || !state.created {
                return None;
            }
            // Whoever makes it leave from here on tells the index that it has left.
            state.maybe_stored = true;
        }
        // Complete before and after: then every bit is in the stripes, or was written again since.
        let was_complete = self.map.is_complete();
        let stripes = self.map.take_changed();
        let complete = was_complete && self.map.is_complete();
        let state = self.state();
        let record = Record {
            source: self.id().source.clone(),
            key: self.id().key.clone(),
            version: self.id().version.clone(),
            size: self.size(),
            tier: self.tier.slot,
            inode: state.inode,
            durable: state.durable,
            boot: if state.doubtful { 0 } else { boot },
            complete,
            charged: state.charged,
            uses: self.uses.stored(),
            last_use_ms: self.last_use_ms.load(Ordering::Relaxed),
        };
        Some((record, stripes))
    }

    /// Notes what the index has charged it with now; `None` when it does not know it.
    pub(crate) fn set_stored_charge(&self, charge: Option<u64>) {
        self.state().stored_charge = charge;
    }

    pub(crate) fn stored_charge(&self) -> Option<u64> {
        self.state().stored_charge
    }

    pub(crate) fn may_be_stored(&self) -> bool {
        self.state().maybe_stored
    }

    /// The generation to make durable; `None` when it is durable, partial, doubtful or in use by a writer, or was
    /// filled less than `quiet` ago.
    pub(crate) fn undurable_generation(&self, quiet: Duration) -> Result<u64, Undurable> {
        let state = self.state();
        if state.life != Life::Here || state.durable || !self.map.is_complete() || state.doubtful {
            return Err(Undurable::Never);
        }
        let settled = state.filling.is_empty() && self.tier.clock.monotonic() >= state.last_fill + quiet;
        if settled { Ok(state.generation) } else { Err(Undurable::NotYet) }
    }

    /// Marks it durable if nothing was written since `generation` was taken, before its data was synced.
    pub(crate) fn mark_durable(&self, generation: u64) {
        let mut state = self.state();
        if state.generation == generation && state.filling.is_empty() {
            state.durable = true;
            drop(state);
            self.note_changed();
        }
    }
}

/// Why an extent cannot be made durable.
pub(crate) enum Undurable {
    Never,
    NotYet,
}
