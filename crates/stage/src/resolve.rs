//! Settling conflicts: what was kept is staged again over what the source has now, or given up. Each is one record of
//! the journal, so that a crash leaves the conflict as it was or settles it.

use std::sync::Arc;

use bytes::Bytes;
use penstock_types::{Durability, Error, ErrorKind, Result};

use crate::change::{Base, Change, ChangeParts, Ending, Phase, Progress};
use crate::journal::{Slot, Ticket};
use crate::record::{ChangeRecord, Record};
use crate::stage::Stage;

impl Stage {
    /// Makes what a change in conflict holds the newest content of its key, as a change of its own at durability
    /// `local`: it replaces the change of the key that waits last, else `base`. The conflict is over with that. Its
    /// file is used again, and needs no room. Blocks.
    ///
    /// # Errors
    /// `NotFound` when it is not in conflict any more; `Busy` while somebody else settles it; `Corrupt` when its bytes
    /// are lost; `StaleVersion` when `base` is staged and not known any more; `Disk`, `NoSpace`; `Cancelled` when the
    /// stage is closed. The conflict is as it was then; after a failure of the disk it may be settled with the next
    /// start.
    /// Cost: two syncs where the content is in the journal only, else one.
    pub fn restage(&self, conflict: &Arc<Change>, base: &Base) -> Result<Arc<Change>> {
        let restaged = || {
            self.check_open()?;
            let _resolving = Resolving::begin(conflict)?;
            self.sync_file_of(conflict)?;
            let (change, ticket) = self.push_again(conflict, base)?;
            let durable = self.journal.wait(&ticket);
            let mut table = self.table();
            if let Err(error) = durable {
                table.withdraw(&change);
                self.journal.forget_lost(&ticket);
                return Err(error);
            }
            table.reveal(&change);
            drop(table);
            self.parts.metrics.stage_commits.inc();
            self.wake.notify_waiters();
            Ok(change)
        };
        restaged().map_err(|error| error.during(conflict.action("settle")))
    }

    /// Gives up what a change in conflict holds. Its bytes are removed soon after. Blocks.
    ///
    /// # Errors
    /// `NotFound` when it is not in conflict any more; `Busy` while somebody else settles it; `Disk`, `NoSpace`;
    /// `Cancelled` when the stage is closed. The conflict is as it was then; after a failure of the disk it may be
    /// given up with the next start.
    pub fn discard(&self, conflict: &Arc<Change>) -> Result<()> {
        let discarded = || {
            self.check_open()?;
            let _resolving = Resolving::begin(conflict)?;
            let operation = conflict.operation();
            let ticket = {
                // No other record of the change comes in between: see `Table::restate`.
                let _table = self.table();
                self.journal.push(|_, _| (Record::Discarded { operation }, Bytes::new()))?
            };
            if let Err(error) = self.journal.wait(&ticket) {
                self.journal.forget_lost(&ticket);
                return Err(error);
            }
            self.table().apply_discarded(operation);
            self.wake.notify_waiters();
            Ok(())
        };
        discarded().map_err(|error| error.during(conflict.action("give up")))
    }

    /// Makes the content durable without the data of its record, which goes with the conflict.
    fn sync_file_of(&self, conflict: &Change) -> Result<()> {
        let (Some(file), Some(size)) = (conflict.file(), conflict.size()) else { return Ok(()) };
        if !file.is_whole(size)? {
            let lost = Error::new(ErrorKind::Corrupt, "open its file", "it is missing or has another length");
            return Err(lost.advise("there is nothing of it to keep"));
        }
        if !file.is_synced() {
            file.sync_content()?;
            self.files.sync_all_names()?;
            file.note_synced();
        }
        Ok(())
    }

    /// Puts the change that takes the place of a conflict in line, with its record.
    fn push_again(&self, conflict: &Arc<Change>, base: &Base) -> Result<(Arc<Change>, Ticket)> {
        let mut table = self.table();
        let base = table.base_over(conflict.target(), base)?;
        let now_ms = self.parts.clock.wall_ms();
        let mut made = None;
        let ticket = self.journal.push(|operation, home| {
            let parts = ChangeParts {
                operation,
                target: conflict.target().clone(),
                content: conflict.content_now(),
                durability: Durability::Local,
                modified_ms: conflict.modified_ms(),
                committed_ms: now_ms,
                file: conflict.shared_file(),
                marker: None,
                stream: None,
            };
            let mut progress = Progress::new(base, Phase::Admitted, Slot::clone(home));
            progress.replaces = Some(Arc::clone(conflict));
            let change = made.insert(Change::new(parts, progress, Ending::default()));
            (ChangeRecord::of(change, false), Bytes::new())
        })?;
        let change = made.ok_or_else(|| Error::new(ErrorKind::Internal, "write", "the journal took no record"))?;
        table.admit(&change);
        Ok((change, ticket))
    }
}

/// A conflict that is being settled, by one caller at a time; it is a conflict again when this ends before that.
struct Resolving<'a>(&'a Change);

impl<'a> Resolving<'a> {
    fn begin(conflict: &'a Change) -> Result<Self> {
        let refuse = |kind, reason: &str| Err(Error::new(kind, "settle a conflict", reason));
        let mut progress = conflict.progress();
        match progress.phase {
            Phase::Conflict => progress.phase = Phase::Resolving,
            Phase::Resolving => return refuse(ErrorKind::Busy, "somebody else settles it at this moment"),
            _ => return refuse(ErrorKind::NotFound, "it is not in conflict any more"),
        }
        Ok(Self(conflict))
    }
}

impl Drop for Resolving<'_> {
    fn drop(&mut self) {
        let mut progress = self.0.progress();
        if progress.phase == Phase::Resolving {
            progress.phase = Phase::Conflict;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "these are tests")]
mod tests {
    use penstock_cache::RealDisk;
    use penstock_testkit::ManualClock;
    use penstock_types::{AttachmentId, Metrics, ObjectKey, StageConfig};

    use super::*;
    use crate::{StageParts, Target, Written};

    #[test]
    fn a_change_whose_end_is_on_the_way_to_the_disk_is_not_said_again_behind_that() {
        let directory = tempfile::tempdir().unwrap();
        let config = StageConfig {
            directory: directory.path().join("stage"),
            size_bytes: 1 << 20,
            recovery_days: 1.0,
            recovery_bytes: 1 << 20,
        };
        let (clock, disk, metrics) = (Arc::new(ManualClock::default()), Arc::new(RealDisk), Metrics::default());
        let stage = Stage::open(StageParts { config, clock, disk, metrics, seed: 1 }).unwrap();
        let target = Target { scope: "s".into(), attachment: AttachmentId::from("a"), key: ObjectKey::from("k") };
        let (base, durability) = (Base::Absent, Durability::Local);
        let written = Written {
            target,
            base,
            exclusive: false,
            only_onto_base: false,
            durability,
            modified_ms: 0,
            metadata: Vec::new(),
        };
        let change = stage.commit_small(Bytes::from_static(b"x"), written).unwrap();
        let segment = change.progress().home.lock().unwrap().unwrap().segment;
        for (phase, is_said) in [(Phase::Held, false), (Phase::Resolving, false), (Phase::Waiting, true)] {
            change.progress().phase = phase;
            assert_eq!(stage.table().restate(segment, &stage.journal), is_said, "{phase:?}");
        }
    }
}
