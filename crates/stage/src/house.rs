//! Keeping house: syncing what nobody waits for, letting go of what is over, keeping the journal short.

use penstock_types::Result;

use crate::change::Phase;
use crate::record::Record;
use crate::stage::Stage;
use crate::status::Recovered;

/// So many of the newest recovered files are kept for their days, however large they are.
const RECOVERED_KEPT: usize = 3;

/// What housekeeping remembers.
#[derive(Default)]
pub struct House {
    /// It failed the last time, and said so.
    failing: bool,
}

impl Stage {
    /// Syncs what nobody waits for, removes the files of what is over, forgets what was settled long enough before
    /// `moment` (of the catalog's time line), keeps the journal short, and removes what was recovered long ago. Call it
    /// about once a second; what it frees is not free before. Blocks.
    pub fn expire(&self, moment: i64) {
        let mut house = self.house.lock().expect("no panic while the stage keeps house");
        if self.check_open().is_err() {
            return;
        }
        let synced = self.journal.sync();
        self.let_go(moment);
        self.forget_recovered();
        self.tell_age();
        let kept = synced.and_then(|()| self.journal.prepare()).and_then(|()| self.shorten_journal());
        match &kept {
            Ok(()) if house.failing => tracing::info!(code = "stage-journal-healthy"),
            Err(error) if !house.failing => tracing::warn!(code = "stage-journal-unhealthy", %error),
            _ => {}
        }
        house.failing = kept.is_err();
    }

    /// Whether [`Stage::prepare`] has something to do.
    pub fn wants_preparation(&self) -> bool {
        self.journal.wants_spare()
    }

    /// Makes files of the journal ahead, so that who writes many small files does not wait for them. What fails here is
    /// tried again by [`Stage::expire`]. Blocks.
    pub fn prepare(&self) {
        if self.check_open().is_ok()
            && let Err(error) = self.journal.prepare()
        {
            tracing::debug!(%error, "no file of the journal is made ahead");
        }
    }

    /// Keeps house for the journal where that cannot wait, unless somebody does already.
    pub(crate) fn shorten_journal_if_long(&self) {
        if self.journal.segments() <= self.bounds.segments_max {
            return;
        }
        if let Ok(_house) = self.house.try_lock()
            && self.check_open().is_ok()
            && let Err(error) = self.shorten_journal()
        {
            tracing::debug!(%error, "the journal stays longer than it should be");
        }
    }

    fn let_go(&self, moment: i64) {
        let (now, durable) = (self.parts.clock.monotonic(), self.journal.durable());
        let left = self.table().expire(moment, now, self.bounds.grace, durable);
        self.budget.release(left.freed);
        // Their files are removed here, where no lock is held.
        drop(left.changes);
        let refused = std::mem::take(self.table().refused());
        // What failed before the present file of the journal was begun is cut off by that.
        if !self.journal.is_sound() {
            self.table().refused().extend(refused);
        }
    }

    fn tell_age(&self) {
        let oldest_ms = self.table().oldest_ms();
        let age_ms = oldest_ms.map_or(0, |oldest| self.parts.clock.wall_ms().saturating_sub(oldest));
        self.parts.metrics.stage_oldest_s.set(age_ms.max(0) / 1000);
    }

    /// Lets go of the oldest files of the journal, as long as there are more than are needed. What is alive in them is
    /// said again at the end; the bytes of small files are synced where they are.
    fn shorten_journal(&self) -> Result<()> {
        loop {
            let needed = self.table().needed_bytes() / self.bounds.segment_bytes;
            // Twice what is needed, so that most of what is let go of is dead.
            let kept = self.bounds.segments_kept.max(usize::try_from(2 * needed).unwrap_or(usize::MAX));
            if self.journal.segments() <= kept {
                return Ok(());
            }
            let Some((oldest, next)) = self.journal.oldest() else { return Ok(()) };
            let living = self.table().at_home_in(oldest);
            if living.iter().any(|change| change.phase() == Phase::Over) {
                // Its file is removed first: nothing else would tell it from one that was never closed.
                return Ok(());
            }
            let files = || living.iter().filter_map(|change| change.file());
            files().try_for_each(|file| file.sync_content())?;
            // The removal of files that records in it name, too.
            self.files.sync_all_names()?;
            files().for_each(|file| file.note_synced());
            {
                let mut table = self.table();
                if !table.restate(oldest, &self.journal) {
                    return Ok(());
                }
                self.journal.keep(&Record::First { segment: next });
            }
            self.journal.sync()?;
            self.journal.retire(oldest)?;
        }
    }

    fn forget_recovered(&self) {
        #[allow(clippy::cast_possible_truncation, reason = "saturates, and years are enough")]
        let kept_ms = (self.parts.config.recovery_days * 86_400_000.0) as i64;
        let oldest_ms = self.parts.clock.wall_ms().saturating_sub(kept_ms);
        let unwanted = unwanted(&self.recovered(), oldest_ms, self.parts.config.recovery_bytes);
        for (file, reason) in unwanted {
            let removed = self.parts.disk.remove(file.path.as_ref());
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::debug!(path = file.path, %error, "an old recovered file cannot be removed yet");
                }
                _ => {
                    let Recovered { path, allocated, .. } = &file;
                    tracing::info!(code = "stage-recovered-removed", path, bytes = allocated, "{reason}");
                    self.recovered().retain(|known| known.path != file.path);
                }
            }
        }
    }
}

/// Which recovered files, oldest first, are not kept any longer, and why.
fn unwanted(recovered: &[Recovered], oldest_ms: i64, bytes_max: u64) -> Vec<(Recovered, &'static str)> {
    let (mut unwanted, mut bytes) = (Vec::new(), 0);
    for (newer, file) in recovered.iter().rev().enumerate() {
        if file.found_ms < oldest_ms {
            unwanted.push((file.clone(), "it was recovered long ago, and nobody asked for it"));
            continue;
        }
        bytes += file.allocated;
        if newer >= RECOVERED_KEPT && bytes > bytes_max {
            bytes -= file.allocated;
            unwanted.push((file.clone(), "newer ones take the room for recovered files"));
        }
    }
    unwanted.reverse();
    unwanted
}
