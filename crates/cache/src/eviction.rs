//! Making room: reservations, and how an extent leaves.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use penstock_types::{Error, ErrorKind, ObjectId, Result};

use crate::cache::{Cache, DeadRow};
use crate::extent::Extent;
use crate::policy::Keep;
use crate::tier::{Room, Tier};

/// Extents that one reservation may evict; a large deficit is worked off by housekeeping meanwhile.
const MAX_EVICTIONS: usize = 1_024;
/// References to an extent that is a candidate and in nobody's hands: two maps and the one who looks.
const UNHELD_REFERENCES: usize = 3;

impl Cache {
    /// Takes an object version out of the cache; the bytes that came free at once. What is lent stays readable and
    /// counted until its last lease ends.
    ///
    /// # Errors
    /// `NotFound` when it is not cached, `Disk` when its file cannot be unlinked.
    pub fn evict(&self, id: &ObjectId) -> Result<u64> {
        let known = self.live().find(id).cloned().filter(|extent| !extent.is_gone());
        let Some(extent) = known.or_else(|| self.find_stored(id)) else {
            return Err(Error::new(ErrorKind::NotFound, format!("evict {} {}", id.source, id.key), "it is not cached"));
        };
        Ok(self.remove(&extent, true)?.unwrap_or(0))
    }

    /// Drops a damaged extent: unlinks and forgets it. Who has it lent keeps what is lent.
    pub fn retire(&self, extent: &Arc<Extent>) {
        if !extent.begin_leave(true) {
            return;
        }
        self.forget(extent);
        if self.unlink(extent).is_ok() {
            self.count_freed(extent.finish_leave());
        } else {
            self.pending().doomed.push(Arc::clone(extent));
        }
    }

    /// Takes `bytes` of a tier's budget for `wanted`, evicting others where it must.
    pub(crate) fn reserve(&self, tier: &Arc<Tier>, bytes: u64, wanted: &Extent) -> Result<()> {
        self.check_open()?;
        if let Some(reason) = tier.refusal() {
            return Err(wanted.error(ErrorKind::NoSpace, &reason));
        }
        let mut room = Room::Full;
        for _ in 0..MAX_EVICTIONS {
            room = tier.reserve(bytes);
            if room == Room::Taken {
                return Ok(());
            }
            if !self.make_room(tier)? && !self.load_rows() {
                break;
            }
        }
        let (reason, advice) = match room {
            Room::Floor => ("the file system has no space to spare", "free space on the cache disk"),
            _ => ("the tier is full of what is lent, pinned or being filled", "enlarge the cache"),
        };
        Err(wanted.error(ErrorKind::NoSpace, reason).advise(advice))
    }

    /// Evicts one extent of a tier: one that nobody holds if there is one, else one that is held but neither lent nor
    /// being filled. Whether one left.
    pub(crate) fn make_room(&self, tier: &Arc<Tier>) -> Result<bool> {
        for held_too in [false, true] {
            let asks = tier.policy().len();
            for _ in 0..asks {
                let Some(number) = tier.policy().candidate() else { break };
                let Some(extent) = self.extent(number) else {
                    if self.remove_unknown(tier, number)? {
                        return Ok(true);
                    }
                    continue;
                };
                if self.is_pinned(extent.id()) {
                    tier.policy().keep(number, Keep::Pinned);
                } else if !held_too && Arc::strong_count(&extent) > UNHELD_REFERENCES {
                    tier.policy().keep(number, Keep::Busy);
                } else {
                    let removed = self.remove(&extent, false);
                    if !matches!(removed, Ok(Some(_))) {
                        tier.policy().keep(number, Keep::Busy);
                    }
                    if removed?.is_some() {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Unlinks and forgets an extent, unless it is in use and `force` is not set. The bytes that came free at once;
    /// `None` when it stays.
    pub(crate) fn remove(&self, extent: &Arc<Extent>, force: bool) -> Result<Option<u64>> {
        if !extent.begin_leave(force) {
            return Ok(None);
        }
        if let Err(error) = self.unlink(extent) {
            extent.undo_leave();
            return Err(error);
        }
        self.forget(extent);
        let freed = extent.finish_leave();
        self.count_freed(freed);
        Ok(Some(freed))
    }

    /// Tries again to unlink what was retired while its disk failed.
    pub(crate) fn unlink_doomed(&self) {
        let doomed = std::mem::take(&mut self.pending().doomed);
        for extent in doomed {
            if self.unlink(&extent).is_ok() {
                self.count_freed(extent.finish_leave());
            } else {
                self.pending().doomed.push(extent);
            }
        }
    }

    fn unlink(&self, extent: &Extent) -> Result<()> {
        if !extent.has_file() {
            return Ok(());
        }
        self.check_open()?;
        let path = extent.tier.path_of(extent.number);
        match self.parts.disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(extent.tier.fail("unlink", &path, &error)),
            _ => Ok(()),
        }
    }

    /// Takes an extent off every list. It is on the list of removed ones before it leaves the live ones: who finds it
    /// in the index meanwhile meets it on either.
    fn forget(&self, extent: &Arc<Extent>) {
        extent.tier.policy().evicted(extent.number);
        let may_be_stored = extent.may_be_stored();
        {
            let mut pending = self.pending();
            pending.changed.remove(&extent.number);
            if may_be_stored {
                pending.removed.insert(extent.number, Arc::clone(extent));
            }
        }
        self.live_mut().remove(extent);
        if extent.has_file() {
            self.note_extents(-1);
            self.parts.metrics.cache_evicted_extents.inc();
        }
    }

    /// Removes the file of an extent whose row is damaged or cannot be had any more, by its number alone. Whether
    /// that made room.
    fn remove_unknown(&self, tier: &Arc<Tier>, number: u64) -> Result<bool> {
        let lost = match self.index.is_lost() {
            true => true,
            false if self.index.failure().is_some() => {
                tier.policy().keep(number, Keep::Busy);
                return Ok(false);
            }
            false => {
                self.index.rows(number, 1).is_some_and(|rows| rows.first().is_some_and(|row| row.is_damaged(number)))
            }
        };
        let charge = tier.policy().charge(number);
        if !lost || self.pending().removed.contains_key(&number) {
            tier.policy().remove(number);
            return Ok(false);
        }
        let path = tier.path_of(number);
        match self.parts.disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tier.policy().keep(number, Keep::Busy);
                return Err(tier.fail("unlink", &path, &error));
            }
            _ => tier.policy().remove(number),
        }
        let (object, bytes) = charge.unwrap_or_default();
        tier.release(bytes);
        self.pending().dead_rows.push(DeadRow { number, object, charge: Some((tier.slot, bytes)) });
        self.note_extents(-1);
        self.count_freed(bytes);
        Ok(true)
    }

    fn count_freed(&self, bytes: u64) {
        self.parts.metrics.cache_evicted_bytes.inc_by(bytes);
    }

    /// Counts extents that got or lost their file.
    pub(crate) fn note_extents(&self, change: i64) {
        self.extents.fetch_add(change.cast_unsigned(), Ordering::AcqRel);
        self.parts.metrics.cache_extents.inc_by(change);
    }
}
