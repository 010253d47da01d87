//! Telling the index what changed, in one transaction, about once a second.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use penstock_types::Result;

use crate::cache::Cache;
use crate::extent::Extent;
use crate::index::{ChangedExtent, Changes, Facts};
use crate::tier::disk_error;

/// Numbers that are stored as used before they are: after a kill so many files may be left over at most.
pub const NUMBERS_AHEAD: u64 = 4_096;

/// What the index was told last.
pub struct Stored {
    pub facts: Facts,
}

impl Cache {
    /// Stores what changed in the index and does what housekeeping is due: loads the eviction queue, removes
    /// leftovers, trims memory, evicts what is above the size. Call it about once a second; a kill loses at most the
    /// page-map changes since the last call.
    ///
    /// # Errors
    /// `Disk` or `NoSpace` when the index cannot be written; it is tried again by the next call.
    pub fn flush(&self) -> Result<()> {
        let stored = self.store();
        self.keep_house();
        stored
    }

    /// Flushes for the last time and gives index and directories free for the next process. What is lent stays
    /// readable, and what is open; nothing is cached any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Err(error) = self.store_up_to(0) {
            tracing::warn!(code = "cache-index-unhealthy", %error, "the last changes are forgotten by a restart");
        }
        self.index.close();
        self.locks.lock().expect("no panic while the directories' locks are held").clear();
    }

    /// Stores what changed in the index.
    pub(crate) fn store(&self) -> Result<()> {
        self.store_up_to(NUMBERS_AHEAD)
    }

    /// Stores what changed, and that so many more numbers will be used.
    fn store_up_to(&self, numbers_ahead: u64) -> Result<()> {
        let mut stored = self.stored.lock().expect("no panic while changes are stored");
        if self.index.is_lost() {
            // Whatever it had is never used again, so nothing has to be taken back from it.
            let mut pending = self.pending();
            (pending.removed, pending.dead_rows) = Default::default();
            return Ok(());
        }
        let (extents, removed, dead_rows) = self.begin_store();
        let (mut changes, images) = self.changes(&stored.facts, &extents, numbers_ahead);
        for extent in &removed {
            changes.remove.push((extent.number, crate::index::object_hash(extent.id())));
            uncharge(&mut changes.facts, extent.tier.slot, extent.stored_charge().unwrap_or(0));
        }
        for row in &dead_rows {
            changes.remove.push((row.number, row.object));
            if let Some((slot, bytes)) = row.charge {
                uncharge(&mut changes.facts, slot, bytes);
            }
        }
        let nothing = changes.put.is_empty() && changes.remove.is_empty() && changes.facts == stored.facts;
        let outcome = if nothing { Ok(()) } else { self.index.commit(&changes) };
        if outcome.is_ok() {
            // Somebody may have found one in the index before the commit, and looks at the list of removed ones after
            // it was cleared.
            let mut live = self.live_mut();
            removed.iter().for_each(|extent| live.note_departure(extent.number));
        }
        let mut pending = self.pending();
        let Err(error) = outcome else {
            removed.iter().for_each(|extent| drop(pending.removed.remove(&extent.number)));
            drop(pending);
            removed.iter().for_each(|extent| extent.set_stored_charge(None));
            for (extent, charge) in images {
                extent.set_stored_charge(Some(charge));
            }
            self.number_limit.store(changes.facts.number_limit, Ordering::Release);
            stored.facts = changes.facts;
            return Ok(());
        };
        pending.dead_rows.extend(dead_rows);
        drop(pending);
        for changed in &changes.put {
            if let Some(extent) = self.live().number(changed.number) {
                extent.map.mark_changed(changed.stripes.iter().map(|(stripe, _)| *stripe));
            }
        }
        extents.iter().for_each(|extent| extent.note_changed());
        self.parts.metrics.cache_disk_errors.inc();
        Err(disk_error("store the index of the cache in", &self.parts.state_directory, &error))
    }

    #[allow(clippy::type_complexity, reason = "three lists that one lock gives")]
    fn begin_store(&self) -> (Vec<Arc<Extent>>, Vec<Arc<Extent>>, Vec<crate::cache::DeadRow>) {
        let (changed, removed, dead_rows) = {
            let mut pending = self.pending();
            let changed = std::mem::take(&mut pending.changed);
            (changed, pending.removed.values().cloned().collect(), std::mem::take(&mut pending.dead_rows))
        };
        let live = self.live();
        let extents = changed.into_iter().filter_map(|number| live.number(number).cloned()).collect();
        (extents, removed, dead_rows)
    }

    /// What to store of `extents`, and what each is charged with then.
    fn changes<'a>(
        &self,
        facts: &Facts,
        extents: &'a [Arc<Extent>],
        numbers_ahead: u64,
    ) -> (Changes, Vec<(&'a Arc<Extent>, u64)>) {
        let mut changes = Changes { facts: facts.clone(), ..Changes::default() };
        let mut images = Vec::with_capacity(extents.len());
        for extent in extents {
            let Some((record, stripes)) = extent.image(self.boot) else { continue };
            uncharge(&mut changes.facts, record.tier, extent.stored_charge().unwrap_or(0));
            if let Some(row) = changes.facts.tiers.iter_mut().find(|row| row.slot == record.tier) {
                row.bytes += record.charged;
            }
            images.push((extent, record.charged));
            changes.put.push(ChangedExtent { number: extent.number, record, stripes });
        }
        let next = self.next_number.load(Ordering::Acquire);
        if self.clean.load(Ordering::Acquire) {
            changes.facts.clean_below = next;
        }
        if numbers_ahead == 0 || changes.facts.number_limit < next + numbers_ahead / 2 {
            changes.facts.number_limit = next + numbers_ahead;
        }
        changes.facts.scrub = self.pending().scrub;
        (changes, images)
    }

    /// Corrects the bytes of each tier by counting the rows: some were damaged, and what they were charged with is
    /// not known.
    pub(crate) fn recount(&self) {
        let mut stored = self.stored.lock().expect("no panic while changes are stored");
        let Some(sums) = self.index.recount() else { return };
        for row in &mut stored.facts.tiers {
            let counted = sums.iter().find(|(slot, _)| *slot == row.slot).map_or(0, |(_, bytes)| *bytes);
            let lost = row.bytes.saturating_sub(counted);
            row.bytes = counted;
            if let Some(tier) = self.tiers.iter().find(|tier| tier.slot == row.slot) {
                tier.release(lost);
            }
        }
    }
}

fn uncharge(facts: &mut Facts, slot: u32, bytes: u64) {
    if let Some(row) = facts.tiers.iter_mut().find(|row| row.slot == slot) {
        row.bytes = row.bytes.saturating_sub(bytes);
    }
}
