//! The stage as a whole: taking changes in, giving them out, hearing what became of them.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use penstock_types::faults::{Safeguard, Step, is_left_out, under_way};
use penstock_types::{
    Clock, Disk, Durability, Error, ErrorKind, Metrics, ObjectKey, Overlay, PartInfo, Result, StageConfig, UploadId,
    Version,
};
use tokio::sync::Notify;

use crate::budget::Budget;
use crate::burst::Burst;
use crate::change::{Base, Change, Original, Phase, Settled, Target, Written, operation_of};
use crate::draft::Draft;
use crate::files::Files;
use crate::house::House;
use crate::journal::{Journal, Ticket};
use crate::new::{New, NewFile, admit_original, new_change};
use crate::patch::Over;
use crate::pins::{Pin, Pins};
use crate::record::{ChangeRecord, Record};
use crate::status::Recovered;
use crate::stream::Stream;
use crate::table::{Admission, Table};

/// So much is room enough for a file of which nobody knows how large it becomes.
const AMPLE_BYTES: u64 = 1 << 30;
/// Content up to this size goes into the journal itself.
pub(crate) const INLINE_BYTES_MAX: usize = 256 * 1024;

/// What a stage is made of.
#[derive(Clone)]
pub struct StageParts {
    /// Directory and size.
    pub config: StageConfig,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// File calls.
    pub disk: Arc<dyn Disk>,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// Seed of what is decided by chance.
    pub seed: u64,
}

/// Changes that are committed and seen all at once.
#[derive(Default)]
pub struct Batch {
    /// Files that were written.
    pub drafts: Vec<(Draft, Written)>,
    /// Copies of objects of the source, with their sizes; nobody's metadata but the original's.
    pub copies: Vec<(Original, u64, Written)>,
    /// Keys that hold nothing then.
    pub removals: Vec<(Target, Base, Durability)>,
    /// A crash leaves all of it or nothing, also before it is acknowledged.
    pub indivisible: bool,
}

impl Batch {
    /// Takes along what another one has.
    pub fn append(&mut self, mut other: Self) {
        self.drafts.append(&mut other.drafts);
        self.copies.append(&mut other.copies);
        self.removals.append(&mut other.removals);
        self.indivisible |= other.indivisible;
    }
}

/// Sizes and times that do not depend on the machine. Tests make them small.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of one file of the journal; made in full before it is used.
    pub segment_bytes: u64,
    /// Files of the journal from which on housekeeping makes it shorter, unless what is alive needs them.
    pub segments_kept: usize,
    /// Files of the journal from which on commits make it shorter themselves before they return.
    pub segments_max: usize,
    /// How long a writer waits for room, while nothing is brought, before it gets `NoSpace`; and how long the stage slows
    /// one write down at most.
    pub patience: Duration,
    /// As `patience`, while something is brought.
    pub patience_max: Duration,
    /// How long what has left the stage can still be found by its version.
    pub grace: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            segment_bytes: 32 * 1024 * 1024,
            segments_kept: 8,
            segments_max: 16,
            patience: Duration::from_secs(10),
            // Less than what a request of a program may take.
            patience_max: Duration::from_secs(25),
            grace: Duration::from_secs(5),
        }
    }
}

/// Changes that wait for their sources, on a directory of their own.
///
/// What was acknowledged (`commit`, `commit_small` and `remove` returned) survives a crash of the process and of the
/// machine. Calls that say so block on the disk; the others take locks for moments and write a few hundred bytes at
/// most, without a sync.
///
/// Locks: `table` goes before the queue of the journal and the progress of a change. Neither is held across a call to
/// the disk; the file of a small change has a lock of its own while it is restored.
pub struct Stage {
    pub(crate) parts: StageParts,
    pub(crate) bounds: Bounds,
    pub(crate) files: Arc<Files>,
    pub(crate) journal: Journal,
    pub(crate) budget: Arc<Budget>,
    pub(crate) burst: Burst,
    pub(crate) pins: Pins,
    /// Held while house is kept, across calls to the disk.
    pub(crate) house: Mutex<House>,
    pub(crate) recovered: Mutex<Vec<Recovered>>,
    pub(crate) wake: Notify,
    pub(crate) drafted: Notify,
    /// Drafts and changes of which something may be sent early. Goes before `table`.
    pub(crate) streams: Mutex<Vec<Arc<Stream>>>,
    pub(crate) closed: AtomicBool,
    /// Held while the stage is open, so that no other process uses its directory.
    pub(crate) lock: Mutex<Option<OwnedFd>>,
    pub(crate) table: Mutex<Table>,
}

impl Stage {
    /// Opens the stage in its directory, making it if it is missing, and replays its journal. Blocks.
    ///
    /// # Errors
    /// `Busy` when another process has it; `Corrupt` when the journal is damaged before its end, naming file and
    /// offset; `Unsupported` when a newer Penstock wrote it; `Disk`, `NoSpace`.
    pub fn open(parts: StageParts) -> Result<Arc<Self>> {
        Self::open_bounded(parts, Bounds::default())
    }

    /// As [`Stage::open`], with other bounds.
    ///
    /// # Errors
    /// As those of [`Stage::open`].
    pub fn open_bounded(parts: StageParts, bounds: Bounds) -> Result<Arc<Self>> {
        crate::open::open(parts, bounds).map(Arc::new)
    }

    /// What is laid over the names of a scope: live, and the same for the same scope.
    pub fn overlay(&self, scope: &str) -> Arc<dyn Overlay> {
        self.table().names(scope)
    }

    /// A new, empty file to write to, also where the stage is full: who writes to it waits for room. Blocks.
    ///
    /// # Errors
    /// `Disk`; `Cancelled` when the stage is closed.
    pub fn create(&self, target: &Target) -> Result<Draft> {
        let action = || format!("write {}", target.key);
        self.check_open().map_err(|error| error.during(action()))?;
        let draft = Draft::create(&self.files, &self.budget, Some(self.pins.pin(target)));
        let mut draft = draft.map_err(|error| error.during(action()))?;
        // Behind a change that waits its turn is not near, and it may be replaced before.
        if self.table().is_free(target) {
            let stream = draft.stream(target);
            self.streams.lock().expect("no panic while streams are listed").push(stream);
            self.drafted.notify_one();
        }
        Ok(draft)
    }

    /// As [`Stage::create`], for what will probably be small, and never above [`Draft::IN_MEMORY_MAX`]: its bytes are in
    /// memory until it is committed, and go into the journal alone. Costs no call to the disk; nothing of it is left by a
    /// crash.
    ///
    /// # Errors
    /// `ResourceLimit` without descriptors; `Cancelled` when the stage is closed.
    pub fn create_in_memory(&self, target: &Target) -> Result<Draft> {
        let action = || format!("write {}", target.key);
        self.check_open().map_err(|error| error.during(action()))?;
        let draft = Draft::create_in_memory(&self.files, &self.budget, Some(self.pins.pin(target)));
        draft.map_err(|error| error.during(action()))
    }

    /// As [`Stage::create`], for a content that is there already and gets another name. It is not slowed down, and where
    /// the stage is full its bytes are those of a reserve. Nothing of it is sent before it is committed.
    ///
    /// # Errors
    /// As [`Stage::create`].
    pub fn create_reserved(&self, target: &Target) -> Result<Draft> {
        let action = || format!("write {}", target.key);
        self.check_open().map_err(|error| error.during(action()))?;
        let draft = Draft::create(&self.files, &self.budget, Some(self.pins.pin(target)));
        Ok(draft.map_err(|error| error.during(action()))?.reserved())
    }

    /// As [`Stage::create`], a file of `size` bytes that lies over an object: room is taken for what is written of it.
    ///
    /// # Errors
    /// As [`Stage::create`].
    pub fn create_over(&self, target: &Target, over: Over, size: u64) -> Result<Draft> {
        let action = || format!("write {}", target.key);
        self.check_open().map_err(|error| error.during(action()))?;
        let draft = Draft::create_over(&self.files, &self.budget, Some(self.pins.pin(target)), (over, size));
        draft.map_err(|error| error.during(action()))
    }

    /// As [`Stage::create`], another name of the file of a change, to be committed as it is. Copies nothing, and waits
    /// for no room.
    ///
    /// # Errors
    /// `Disk`; `InvalidInput` for a change that has no file; `Cancelled` when the stage is closed.
    pub fn link(&self, target: &Target, from: &Change) -> Result<Draft> {
        let action = || format!("write {}", target.key);
        self.check_open().map_err(|error| error.during(action()))?;
        let no_file = || Error::new(ErrorKind::InvalidInput, action(), "nothing of it is here");
        // It may be in the journal only.
        from.open().map_err(|error| error.during(action()))?;
        let path = from.path().ok_or_else(no_file)?;
        let original = || Original { key: from.target().key.clone(), version: from.version(), since: None };
        let over = from.patch().map(|patch| Over::new(original(), patch.clone()));
        let draft = Draft::link(&self.files, &self.budget, Some(self.pins.pin(target)), (&path, over));
        draft.map_err(|error| error.during(action()))
    }

    /// Keeps what is known of a key from being forgotten, as long as what is returned is there.
    pub fn remember(&self, target: &Target) -> Pin {
        self.pins.pin(target)
    }

    /// Whether a file may be written without asking for room: there is much up to the half of the stage.
    pub fn has_ample_room(&self) -> bool {
        self.budget.used() + AMPLE_BYTES <= self.budget.size() / 2
    }

    /// Whether much is being committed just now, and there is room for more: what can wait should.
    pub fn is_in_burst(&self) -> bool {
        self.burst.is_on() && self.has_ample_room()
    }

    /// Where drafts are written.
    pub fn files_directory(&self) -> &Path {
        self.files.directory()
    }

    /// Makes a draft the newest content of its key: syncs the file, its directory and the journal; it is visible when
    /// this returns. Whatever fails, the draft is gone and nothing was changed; after a failure of the disk the change
    /// may come back with the next start. Blocks.
    ///
    /// # Errors
    /// `AlreadyExists` as [`Written::exclusive`] says; `StaleVersion` when it replaces a staged version that is not
    /// known any more; `Disk`, `NoSpace`; `Cancelled` when the stage is closed.
    pub fn commit(&self, draft: Draft, written: Written) -> Result<Arc<Change>> {
        let action = format!("write {}", written.target.key);
        self.check_open().map_err(|error| error.during(action.clone()))?;
        let committed = NewFile::synced(draft).and_then(|new| self.put(written, new));
        committed.map_err(|error| error.during(action))
    }

    /// Makes `data` the newest content of a key. Up to 256 KiB it is acknowledged with one sync, shared with those who
    /// commit at the same moment; its file is made when somebody needs it. Blocks.
    ///
    /// # Errors
    /// As those of [`Stage::create`] and [`Stage::commit`].
    pub fn commit_small(&self, data: Bytes, written: Written) -> Result<Arc<Change>> {
        let action = format!("write {}", written.target.key);
        let committed = || {
            self.check_open()?;
            let size = data.len() as u64;
            if data.len() > INLINE_BYTES_MAX {
                let draft = Draft::create(&self.files, &self.budget, None)?;
                draft.grow(size)?;
                draft.fill(&data)?;
                return self.put(written, NewFile::synced(draft)?);
            }
            let _step = under_way(Step::Write);
            self.budget.take(size)?;
            self.put(written, NewFile::promised(self.files.promise(), data))
        };
        committed().map_err(|error| error.during(action))
    }

    /// Makes a key hold nothing. Blocks.
    ///
    /// # Errors
    /// `StaleVersion` when it removes a staged version that is not known any more; `Disk`; `Cancelled` when the stage
    /// is closed.
    pub fn remove(&self, target: Target, base: Base, durability: Durability) -> Result<Arc<Change>> {
        let action = format!("remove {}", target.key);
        let written = self.removal(target, base, durability);
        let committed = self.check_open().and_then(|()| self.take_in_one(written, New::Nothing));
        committed.map_err(|error| error.during(action))
    }

    /// As [`Stage::commit`] of every draft, and [`Stage::remove`] of the other keys, seen all at once; small drafts go
    /// into the journal. The removals come last there: what a crash cuts off is removals. Blocks.
    ///
    /// # Errors
    /// As those.
    pub fn commit_all(
        &self,
        drafts: Vec<(Draft, Written)>,
        removals: Vec<(Target, Base, Durability)>,
    ) -> Result<Vec<Arc<Change>>> {
        self.commit_batch(Batch { drafts, removals, ..Batch::default() })
    }

    /// As [`Stage::commit_all`], with copies in the source. Blocks.
    ///
    /// # Errors
    /// As those; `Busy` when the original of a copy was changed meanwhile.
    pub fn commit_batch(&self, batch: Batch) -> Result<Vec<Arc<Change>>> {
        self.check_open()?;
        let Batch { drafts, copies, removals, indivisible } = batch;
        let mut new = Vec::with_capacity(drafts.len() + copies.len() + removals.len());
        let mut charged = 0;
        let made = drafts.into_iter().try_for_each(|(draft, written)| {
            let made = NewFile::of(draft)?;
            charged += made.charged;
            new.push((written, New::File(made)));
            Ok(())
        });
        // What takes the place of an original waits for the copies that were committed before.
        new.splice(0..0, copies.into_iter().map(|(original, size, written)| (written, New::Copy(original, size))));
        let nothing = |(target, base, durability)| (self.removal(target, base, durability), New::Nothing);
        new.extend(removals.into_iter().map(nothing));
        made.and_then(|()| self.take_in(new, indivisible)).inspect_err(|_| self.budget.release(charged))
    }

    fn removal(&self, target: Target, base: Base, durability: Durability) -> Written {
        let modified_ms = self.parts.clock.wall_ms();
        Written { target, base, exclusive: false, only_onto_base: false, durability, modified_ms, metadata: Vec::new() }
    }

    fn put(&self, written: Written, new: NewFile) -> Result<Arc<Change>> {
        let charged = new.charged;
        self.take_in_one(written, New::File(new)).inspect_err(|_| self.budget.release(charged))
    }

    pub(crate) fn take_in_one(&self, written: Written, new: New) -> Result<Arc<Change>> {
        let taken = self.take_in(vec![(written, new)], false)?.pop();
        taken.ok_or_else(|| Error::new(ErrorKind::Internal, "write", "the journal took no record"))
    }

    /// Takes changes in: admits them, makes their records durable, shows them.
    fn take_in(&self, new: Vec<(Written, New)>, indivisible: bool) -> Result<Vec<Arc<Change>>> {
        let mut taken: Vec<(Arc<Change>, Ticket)> = Vec::with_capacity(new.len());
        let pushed = {
            let mut table = self.table();
            new.iter().try_for_each(|(written, _)| table.admission(written).map(drop))?;
            let together = if indivisible { self.journal.keep_together(new.len() as u64) } else { Vec::new() };
            new.into_iter().try_for_each(|(written, new)| {
                let admission = match &new {
                    New::Same(..) => table.admission_of_same(&written)?,
                    _ => table.admission(&written)?,
                };
                let new = admit_original(&table, &written, new, &admission)?;
                let (change, ticket) = self.push(written, new, admission)?;
                table.admit(&change);
                // It is said of others, where the journal was just being ended.
                let is_told = together.get(taken.len()).is_none_or(|told| *told == change.operation());
                taken.push((change, ticket));
                if is_told {
                    Ok(())
                } else {
                    Err(Error::new(ErrorKind::Cancelled, "use the stage", "it is being closed"))
                }
            })
        };
        let wait = |ticket: &Ticket| match is_left_out(Safeguard::Acknowledgement) {
            true => Ok(()),
            false => self.journal.wait(ticket),
        };
        let waited: Vec<Result<()>> = taken.iter().map(|(_, ticket)| wait(ticket)).collect();
        let lost = waited.iter().find_map(|waited| waited.as_ref().err().cloned());
        let mut table = self.table();
        if let Some(error) = lost.or(pushed.err()) {
            for ((change, ticket), waited) in taken.iter().zip(waited) {
                table.withdraw(change);
                if waited.is_err() {
                    self.journal.forget_lost(ticket);
                }
            }
            return Err(error);
        }
        taken.iter().for_each(|(change, _)| table.reveal(change));
        drop(table);
        self.parts.metrics.stage_commits.inc_by(taken.len() as u64);
        self.burst.note(taken.len() as u64);
        self.wake.notify_waiters();
        self.shorten_journal_if_long();
        Ok(taken.into_iter().map(|(change, _)| change).collect())
    }

    /// Puts the record of a new change in line.
    fn push(&self, written: Written, new: New, admission: Admission) -> Result<(Arc<Change>, Ticket)> {
        let now_ms = self.parts.clock.wall_ms();
        let mut made = None;
        let ticket = self.journal.push(|operation, home| {
            let has_data = new.data().is_some();
            let data = new.data().cloned().unwrap_or_default();
            let change = made.insert(new_change(written, new, operation, admission, home, now_ms));
            (ChangeRecord::of(change, has_data), data)
        })?;
        let change = made.ok_or_else(|| Error::new(ErrorKind::Internal, "write", "the journal took no record"))?;
        Ok((change, ticket))
    }

    /// The change behind a staged version of a key; also just after it was settled or replaced.
    pub fn find(&self, scope: &str, key: &ObjectKey, version: &Version) -> Option<Arc<Change>> {
        let found = self.table().find(operation_of(version)?)?;
        let target = found.target();
        (&*target.scope == scope && target.key == *key && found.phase() != Phase::Admitted).then_some(found)
    }

    /// A change that is ready to be brought: the oldest of its key, not waiting after a failure, not given out. It is
    /// given out with that, until `settle`, `failed` or `conflict`.
    pub fn next(&self) -> Option<Arc<Change>> {
        self.next_unless(|_| false)
    }

    /// As [`Stage::next`], passing over what is `held`: that is looked at again within a second. `held` is called with
    /// locks held, and must not call the stage.
    pub fn next_unless(&self, held: impl Fn(&Change) -> bool) -> Option<Arc<Change>> {
        if self.closed.load(Ordering::Acquire) {
            return None;
        }
        self.table().next(self.parts.clock.monotonic(), held)
    }

    /// Told whenever something may have become ready (`notify_waiters`); that a wait after a failure is over is not.
    pub fn wake(&self) -> &Notify {
        &self.wake
    }

    /// Told when there is one more of [`Stage::streams`] (`notify_one`).
    pub fn drafted(&self) -> &Notify {
        &self.drafted
    }

    /// The source has the change. It stays in the overlay for `forget_after_us` from the moment of `settled` on
    /// (`None`: until the key is changed again), also over a restart; a later change of the key replaces what the
    /// source has now. The record is written at once and synced by the next commit or `expire`, after which the file
    /// is given up: should that be lost, the change is given out again, and its operation id settles the repeat.
    pub fn settle(&self, change: &Change, settled: Settled, forget_after_us: Option<i64>) {
        let expires = forget_after_us.map(|after| settled.moment().saturating_add(after));
        self.note(|table, journal| table.settle(change, settled, expires, journal));
        self.wake.notify_waiters();
    }

    /// The change would replace a version it has not seen: its bytes are kept, it leaves the overlay, later changes of
    /// the key replace what it was to replace. Survives a restart.
    pub fn conflict(&self, change: &Change, error: Error) {
        self.note(|table, journal| table.conflict(change, error, journal));
        self.wake.notify_waiters();
    }

    /// Bringing it failed: it waits 1 s, then twice as long with each failure, up to 60 s or what the source asked
    /// for, and is given out again.
    pub fn failed(&self, change: &Change, error: Error) {
        self.table().fail(change, error, self.parts.clock.monotonic());
    }

    /// Has everything that waits after a failure be given out at once.
    pub fn hurry(&self) {
        self.table().hurry();
        self.wake.notify_waiters();
    }

    /// A multipart upload was begun for the change; it takes the place of an earlier one.
    pub fn upload_begun(&self, change: &Change, upload: &UploadId) {
        self.note(|_, journal| {
            change.progress().begin(upload.clone());
            journal.keep(&Record::Upload { operation: change.operation(), upload: upload.clone() });
        });
    }

    /// The source has taken a part of the upload of the change.
    pub fn upload_part(&self, change: &Change, part: &PartInfo) {
        self.note(|_, journal| {
            change.progress().add_part(part.clone());
            journal.keep(&Record::Part { operation: change.operation(), part: part.clone() });
        });
    }

    /// The upload of the change is gone: the next try begins another.
    pub fn upload_lost(&self, change: &Change) {
        self.note(|table, journal| {
            change.progress().lose_upload();
            journal.keep(&Record::UploadLost { operation: change.operation() });
            table.uploads.forget(change.marker(), journal);
        });
    }

    /// Changes whose key starts with `prefix` that the source has not got, oldest first; without those in conflict.
    pub fn pending_below(&self, scope: &str, prefix: &[u8]) -> Vec<Arc<Change>> {
        self.table().pending_below(scope, prefix)
    }

    /// Changes in conflict whose key starts with `prefix`, oldest first.
    pub fn conflicts_below(&self, scope: &str, prefix: &[u8]) -> Vec<Arc<Change>> {
        self.table().conflicts_below(scope, prefix)
    }

    /// A source has taken bytes of a file, in whatever way: so fast writers may go on where the stage fills up.
    pub fn brought(&self, bytes: u64) {
        self.budget.brought(bytes);
    }

    /// Gives the directory free for the next process. Nothing is taken in or given out any more; who waits for a
    /// change gets `Cancelled`; what is open stays readable. Blocks.
    pub fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.budget.close();
        let _house = self.house.lock().expect("no panic while the stage keeps house");
        if let Err(error) = self.journal.close() {
            tracing::warn!(code = "stage-journal-unhealthy", %error, "the journal could not be ended in order");
        }
        self.files.close();
        self.lock.lock().expect("no panic while the lock of the stage is taken").take();
        self.table().end_all();
        self.wake.notify_waiters();
    }

    /// Changes table and journal in one step, and writes what was added.
    pub(crate) fn note(&self, work: impl FnOnce(&mut Table, &Journal)) {
        work(&mut self.table(), &self.journal);
        self.journal.write_kept();
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(Error::new(ErrorKind::Cancelled, "use the stage", "the node is being stopped")),
            false => Ok(()),
        }
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic while the table of the stage is held")
    }

    pub(crate) fn recovered(&self) -> MutexGuard<'_, Vec<Recovered>> {
        self.recovered.lock().expect("no panic while the list of recovered files is held")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("directory", &self.parts.config.directory).finish_non_exhaustive()
    }
}
