//! A content that is being written: a file of the stage that nobody sees yet.

use std::convert::Infallible;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use penstock_types::faults::{Step, UnderWay, under_way};
use penstock_types::{ByteRange, Error, ErrorKind, Posix, Result};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::budget::Budget;
use crate::change::Target;
use crate::files::{Files, StagedFile};
use crate::patch::Over;
use crate::pins::Pin;
use crate::stage::INLINE_BYTES_MAX;
use crate::stream::{Stream, StreamHold};

/// A new file of the stage. Whoever has its descriptor writes there at any offset; dropped without a commit, it is
/// gone and its bytes are free.
pub struct Draft {
    descriptor: Arc<OwnedFd>,
    file: StagedFile,
    /// Its bytes are in memory alone: the file is made when they go into one.
    in_memory: bool,
    charge: Charge,
    /// What it lies over, where it does not hold all bytes.
    over: Option<Over>,
    /// What it is based on is remembered meanwhile.
    _pin: Option<Pin>,
    /// What is sent of it while it is written.
    stream: Option<StreamHold>,
    _step: UnderWay,
}

/// A draft that is synced.
pub(crate) struct Finished {
    pub(crate) file: StagedFile,
    pub(crate) size: u64,
    /// Bytes that stay charged.
    pub(crate) charged: u64,
    pub(crate) over: Option<Over>,
    /// What was sent of it.
    pub(crate) stream: Option<StreamHold>,
}

/// Bytes of the budget, given back when they are dropped.
struct Charge {
    budget: Arc<Budget>,
    /// Takes what is missing from the reserve.
    reserved: bool,
    bytes: Mutex<u64>,
}

impl Draft {
    /// Largest content of a draft in memory.
    pub const IN_MEMORY_MAX: u64 = INLINE_BYTES_MAX as u64;

    pub(crate) fn create(files: &Arc<Files>, budget: &Arc<Budget>, pin: Option<Pin>) -> Result<Self> {
        Ok(Self::of(files.create()?, budget, pin))
    }

    /// As [`Draft::create`], in memory: for what the journal is to have as a whole.
    pub(crate) fn create_in_memory(files: &Arc<Files>, budget: &Arc<Budget>, pin: Option<Pin>) -> Result<Self> {
        let made = memfd_create("penstock-draft", MemfdFlags::CLOEXEC);
        let descriptor = made.map_err(|error| {
            Error::new(ErrorKind::ResourceLimit, "make a file in memory", error.to_string())
                .advise("raise the limit of open files (ulimit -n)")
        })?;
        Ok(Self { in_memory: true, ..Self::of((files.promise(), descriptor), budget, pin) })
    }

    /// A file of `size` bytes of which only what is written is its own.
    pub(crate) fn create_over(
        files: &Arc<Files>,
        budget: &Arc<Budget>,
        pin: Option<Pin>,
        (over, size): (Over, u64),
    ) -> Result<Self> {
        let mut draft = Self::create(files, budget, pin)?;
        draft.file.set_size(draft.descriptor.as_fd(), size)?;
        draft.over = Some(over);
        Ok(draft)
    }

    /// Another name of a file that nobody writes to any more: to be committed as it is.
    pub(crate) fn link(
        files: &Arc<Files>,
        budget: &Arc<Budget>,
        pin: Option<Pin>,
        (from, over): (&Path, Option<Over>),
    ) -> Result<Self> {
        let draft = Self::of(files.link(from)?, budget, pin);
        Ok(Self { over, ..draft })
    }

    fn of((file, descriptor): (StagedFile, OwnedFd), budget: &Arc<Budget>, pin: Option<Pin>) -> Self {
        let charge = Charge { budget: Arc::clone(budget), reserved: false, bytes: Mutex::default() };
        let _step = under_way(Step::Write);
        let (descriptor, in_memory) = (Arc::new(descriptor), false);
        Self { descriptor, file, in_memory, charge, over: None, _pin: pin, stream: None, _step }
    }

    /// Has it take from the reserve where the stage is full.
    pub(crate) fn reserved(mut self) -> Self {
        self.charge.reserved = true;
        self
    }

    /// Lets its parts be sent while it is written: by whom the stream is given to.
    pub(crate) fn stream(&mut self, target: &Target) -> Arc<Stream> {
        let stream = Stream::new(target, self.file.full_path());
        self.stream = Some(StreamHold(Arc::clone(&stream)));
        stream
    }

    /// What is said of it besides its bytes, as far as it is known: an upload that is begun from now on says it, too.
    pub fn describe(&self, posix: Posix) {
        if let Some(StreamHold(stream)) = &self.stream {
            stream.describe(posix);
        }
    }

    /// The file, for reading and writing.
    pub fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }

    /// Whether its bytes are in memory alone: it is to be no larger than [`Draft::IN_MEMORY_MAX`] then.
    pub fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Whether what ends there may be written to it as it is.
    pub fn may_end(&self, end: u64) -> bool {
        !self.in_memory || end <= Self::IN_MEMORY_MAX
    }

    /// What it lies over, where it does not hold all bytes.
    pub fn over(&self) -> Option<&Over> {
        self.over.as_ref()
    }

    /// Up to how many bytes it needs room, for [`Draft::grow`], when `range` was written.
    pub fn room_for(&self, range: ByteRange) -> u64 {
        let Some(over) = &self.over else { return range.end };
        let patch = over.patch();
        let more = range.len() - patch.own_bytes(range);
        more + *self.charge.bytes()
    }

    /// Notes that a range was written.
    pub fn note_written(&self, range: ByteRange) {
        if let Some(over) = &self.over {
            over.patch().write(range);
        }
    }

    /// Notes that it was cut, or grew, to `size` bytes.
    pub fn note_size(&self, size: u64) {
        if let Some(over) = &self.over {
            over.patch().cut(size);
        }
    }

    /// Takes room for content up to `to` bytes; goes slowly where the stage fills up, and waits a while where it is full.
    /// Blocks. What is written beyond is charged at the commit.
    ///
    /// # Errors
    /// `NoSpace` when the stage stays full; `Cancelled` when it is closed.
    pub fn grow(&self, to: u64) -> Result<()> {
        self.grow_by(to, |budget, more| match self.charge.reserved {
            true => budget.take_reserved(more),
            false => budget.take(more),
        })
    }

    /// As [`Draft::grow`], where nothing has to be waited for; whether there is room.
    pub fn try_grow(&self, to: u64) -> bool {
        self.grow_by(to, |budget, more| budget.try_take(more).then_some(()).ok_or(())).is_ok()
    }

    /// Notes that it holds `to` bytes already, whether there is room or not.
    pub fn force_grow(&self, to: u64) {
        let Ok(()) = self.grow_by(to, |budget, more| {
            budget.force(more);
            Ok::<_, Infallible>(())
        });
    }

    /// Charges content up to `to` bytes, as far as it is not charged, in a way that may be refused.
    fn grow_by<E>(&self, to: u64, take: impl FnOnce(&Budget, u64) -> Result<(), E>) -> Result<(), E> {
        let mut bytes = self.charge.bytes();
        if to > *bytes {
            take(&self.charge.budget, to - *bytes)?;
            *bytes = to;
        }
        Ok(())
    }

    /// All of it, where it is small enough to go into the journal.
    pub(crate) fn small(&self, max: usize) -> Result<Option<Bytes>> {
        if self.over.is_some() {
            return Ok(None);
        }
        self.file.read_small(self.descriptor.as_fd(), max)
    }

    /// Syncs file and name; the file and its size. Its own bytes stay charged.
    pub(crate) fn finish(mut self) -> Result<Finished> {
        if self.in_memory {
            self.leave_memory()?;
        }
        let size = self.file.sync(self.descriptor.as_fd())?;
        let over = self.over.filter(|over| !over.patch().is_whole());
        let charged = match &over {
            Some(over) => over.patch().own_bytes(ByteRange::new(0, size)),
            None => size,
        };
        self.charge.keep_exactly(charged);
        Ok(Finished { file: self.file, size, charged, over, stream: self.stream })
    }

    /// Goes on in a file of the stage.
    fn leave_memory(&mut self) -> Result<()> {
        let data = self.file.read_small(self.descriptor.as_fd(), usize::MAX)?.unwrap_or_default();
        let (file, descriptor) = self.file.files().create()?;
        file.fill(descriptor.as_fd(), &data)?;
        (self.file, self.descriptor, self.in_memory) = (file, Arc::new(descriptor), false);
        Ok(())
    }

    /// Writes content from the start on.
    pub(crate) fn fill(&self, data: &[u8]) -> Result<()> {
        self.file.fill(self.descriptor.as_fd(), data)
    }

    /// Leaves the syncing to the journal, which gets the content as well; its size stays charged. The file, and whether
    /// it was made.
    pub(crate) fn finish_unsynced(self, size: u64) -> (StagedFile, bool) {
        self.charge.keep_exactly(size);
        (self.file, !self.in_memory)
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft").field("file", &self.file.name()).finish_non_exhaustive()
    }
}

impl Charge {
    /// The bytes stay charged, whoever gives them back: exactly so many.
    fn keep_exactly(&self, size: u64) {
        let taken = std::mem::take(&mut *self.bytes());
        match size.checked_sub(taken) {
            Some(more) => self.budget.force(more),
            None => self.budget.release(taken - size),
        }
    }

    fn bytes(&self) -> MutexGuard<'_, u64> {
        self.bytes.lock().expect("no panic while a charge is held")
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let taken = std::mem::take(&mut *self.bytes());
        self.budget.release(taken);
    }
}
