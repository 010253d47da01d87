//! The journal: what was acknowledged, in order, so that it survives. Those who commit at the same moment share a sync:
//! one of them writes for all, the others wait.

mod frame;
mod replay;
mod scan;
mod writer;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use penstock_types::{Disk, Error, ErrorKind, Metrics, OpenMode, Result};

pub use replay::{Replayed, Statement, replay};

use crate::change::OperationId;
use crate::files::disk_error;
use crate::record::Record;
use writer::{Entry, Writer};

/// Ends the name of a file of the journal; before it comes its number.
const SUFFIX: &str = ".journal";

/// Where the data of a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Number of the file.
    pub segment: u64,
    /// First byte of the data in it.
    pub offset: u64,
    /// Bytes of data.
    pub length: u32,
    /// CRC32C of the data.
    pub sum: u32,
}

/// Learns the place of a record once it is written.
pub type Slot = Arc<Mutex<Option<Place>>>;

/// Path of a file of the journal.
pub fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}{SUFFIX}"))
}

/// The number in the name of a file of the journal.
fn number_of(name: &OsStr) -> Option<u64> {
    let digits = name.to_str()?.strip_suffix(SUFFIX).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// A record that somebody waits for.
#[derive(Debug)]
pub struct Ticket {
    sequence: u64,
}

/// The journal that is written.
///
/// The lock of the queue is held for moments. That of the writer is held by the one that writes, across its sync.
pub struct Journal {
    node: u64,
    epoch: u64,
    queue: Mutex<Queue>,
    turn: Condvar,
    writer: Mutex<Writer>,
    /// Held by the one that makes files ahead.
    preparing: Mutex<()>,
    /// As the writer said last.
    wants_spare: AtomicBool,
    /// Files that are needed.
    segments: AtomicUsize,
}

struct Queue {
    /// Of the last record.
    sequence: u64,
    waiting: Vec<Entry>,
    /// Sequences of records that are waited for and not durable.
    waited: VecDeque<u64>,
    /// Everything up to here is durable, but for what was lost.
    durable: u64,
    /// Nothing that was written needs a sync, and nothing has to be written again.
    clean: bool,
    leading: bool,
    lost: Option<Lost>,
    closed: bool,
}

/// A failure of the disk: nothing that is waited for is taken until all who lost a record know it.
struct Lost {
    error: Error,
    /// What is above is lost.
    durable: u64,
    ignorant: usize,
}

/// What a journal is made of.
pub struct JournalParts {
    pub disk: Arc<dyn Disk>,
    pub metrics: Metrics,
    pub directory: PathBuf,
    pub node: u64,
    pub epoch: u64,
    pub segment_bytes: u64,
}

impl Journal {
    /// Goes on behind what was replayed, in a new file. What was replayed is synced first: a process that was killed
    /// may have left records that only the memory of the machine had.
    ///
    /// # Errors
    /// `Disk`, `NoSpace`.
    pub fn begin(parts: JournalParts, replayed: &Replayed) -> Result<Self> {
        let JournalParts { disk, metrics, directory, node, epoch, segment_bytes } = parts;
        if let Some(last) = replayed.segments.last() {
            let path = segment_path(&directory, *last);
            let synced = disk.open(&path, OpenMode::Write).and_then(|file| disk.sync_data(file.as_fd()));
            synced.map_err(|error| disk_error("sync", &path, &error))?;
        }
        let writer = Writer {
            spares: writer::find_spares(&*disk, &directory, segment_bytes),
            gathered: Vec::new(),
            segments: replayed.segments.iter().copied().collect(),
            next_number: replayed.last_number + 1,
            written: replayed.last_sequence,
            durable: replayed.last_sequence,
            unsynced: Vec::new(),
            file: None,
            offset: 0,
            size: 0,
            disk,
            metrics,
            directory,
            node,
            epoch,
            segment_bytes,
        };
        writer.count_bytes();
        let queue = Queue {
            sequence: replayed.last_sequence,
            waiting: Vec::new(),
            waited: VecDeque::new(),
            durable: replayed.last_sequence,
            clean: true,
            leading: false,
            lost: None,
            closed: false,
        };
        let segments = AtomicUsize::new(writer.segments.len());
        let (queue, writer) = (Mutex::new(queue), Mutex::new(writer));
        Ok(Self {
            node,
            epoch,
            queue,
            turn: Condvar::new(),
            writer,
            preparing: Mutex::default(),
            wants_spare: AtomicBool::default(),
            segments,
        })
    }

    /// Puts a record in line that the caller will wait for. `make` gets the operation that is named after its sequence
    /// and the slot that learns its place; it returns the record and its data.
    ///
    /// # Errors
    /// After a failure of the disk, until all whom it hit know of it; `Cancelled` when the journal is closed.
    pub fn push(&self, make: impl FnOnce(OperationId, &Slot) -> (Record, Bytes)) -> Result<Ticket> {
        let mut queue = self.queue();
        if queue.closed {
            return Err(Error::new(ErrorKind::Cancelled, "use the stage", "the node is being stopped"));
        }
        if let Some(lost) = &queue.lost {
            return Err(lost.error.clone());
        }
        queue.sequence += 1;
        let (sequence, slot) = (queue.sequence, Slot::default());
        let (record, data) = make(OperationId { sequence, epoch: self.epoch, node: self.node }, &slot);
        queue.waiting.push(Entry { sequence, record: record.encode(), data, waited: true, slot });
        queue.waited.push_back(sequence);
        Ok(Ticket { sequence })
    }

    /// Puts a record in line that nobody waits for: its sequence, and the slot that learns its place. It is written by
    /// the next call of `write_kept`, `wait` or `sync`, whichever is first, and again should that fail.
    pub fn keep(&self, record: &Record) -> (u64, Slot) {
        let mut queue = self.queue();
        queue.sequence += 1;
        let (sequence, slot) = (queue.sequence, Slot::default());
        if !queue.closed {
            let (record, data) = (record.encode(), Bytes::new());
            queue.waiting.push(Entry { sequence, record, data, waited: false, slot: Slot::clone(&slot) });
            queue.clean = false;
        }
        (sequence, slot)
    }

    /// Puts in line that the next `count` operations belong together; which they are, if nobody pushes another before.
    pub fn keep_together(&self, count: u64) -> Vec<OperationId> {
        let next = self.queue().sequence + 2;
        let of = |sequence| OperationId { sequence, epoch: self.epoch, node: self.node };
        let operations: Vec<OperationId> = (next..next + count).map(of).collect();
        self.keep(&Record::Together { operations: operations.clone() });
        operations
    }

    /// Returns once a record is durable.
    ///
    /// # Errors
    /// `Disk` or `NoSpace` when it is lost. Whether it comes back with the next start is not known. The caller takes
    /// back what it did for it, and then calls `forget_lost`.
    pub fn wait(&self, ticket: &Ticket) -> Result<()> {
        let mut queue = self.queue();
        loop {
            if let Some(lost) = queue.lost.as_ref().filter(|lost| ticket.sequence > lost.durable) {
                return Err(lost.error.clone());
            }
            if queue.durable >= ticket.sequence {
                return Ok(());
            }
            queue = match queue.leading {
                true => self.turn.wait(queue).expect("no panic while the queue of the journal is held"),
                false => self.lead(queue, true).0,
            };
        }
    }

    /// Notes that the holder of a ticket knows that its record is lost.
    pub fn forget_lost(&self, _: &Ticket) {
        let mut queue = self.queue();
        let Some(lost) = &mut queue.lost else { return };
        lost.ignorant = lost.ignorant.saturating_sub(1);
        if lost.ignorant == 0 {
            queue.lost = None;
        }
    }

    /// Writes what nobody waits for, without a sync, unless somebody else will write it soon.
    pub fn write_kept(&self) {
        let queue = self.queue();
        if !queue.leading && queue.waited.is_empty() && queue.lost.is_none() && !queue.waiting.is_empty() {
            drop(self.lead(queue, false));
        }
    }

    /// Makes every record durable that is in line or written.
    ///
    /// # Errors
    /// `Disk`, `NoSpace`.
    pub fn sync(&self) -> Result<()> {
        let mut queue = self.queue();
        loop {
            if queue.leading {
                queue = self.turn.wait(queue).expect("no panic while the queue of the journal is held");
                continue;
            }
            if queue.clean && queue.waiting.is_empty() {
                return Ok(());
            }
            let outcome;
            (queue, outcome) = self.lead(queue, true);
            outcome?;
        }
    }

    /// Every record up to this sequence is durable, but for those whose loss was reported.
    pub fn durable(&self) -> u64 {
        self.queue().durable
    }

    /// Whether nothing failed since the file that is written to was begun: what was lost will not come back.
    pub fn is_sound(&self) -> bool {
        let nothing_lost = self.queue().lost.is_none();
        nothing_lost && self.writer().file.is_some()
    }

    /// Ends the journal in order.
    ///
    /// # Errors
    /// `Disk`, `NoSpace`: what was acknowledged is durable all the same.
    pub fn close(&self) -> Result<()> {
        let _preparing = self.preparing.lock().expect("no panic while files are made ahead");
        let synced = self.sync();
        let begun = self.writer().file.is_some();
        if begun {
            // Only behind what is durable does the end prove anything, so it has a sync of its own.
            self.keep(&Record::Closed);
        }
        self.queue().closed = true;
        let ended = synced.and_then(|()| self.sync());
        self.writer().file = None;
        ended
    }

    /// How many files it has.
    pub fn segments(&self) -> usize {
        self.segments.load(Ordering::Acquire)
    }

    /// Number of the oldest file, and of the one after it: `None` while there is only one.
    pub fn oldest(&self) -> Option<(u64, u64)> {
        let writer = self.writer();
        Some((*writer.segments.front()?, *writer.segments.get(1)?))
    }

    /// Lets go of the oldest file: [`Record::First`] of the next one is durable.
    ///
    /// # Errors
    /// `Disk`.
    pub fn retire(&self, number: u64) -> Result<()> {
        let mut writer = self.writer();
        let retired = writer.retire(number);
        self.segments.store(writer.segments.len(), Ordering::Release);
        retired
    }

    /// Whether files should be made ahead.
    pub fn wants_spare(&self) -> bool {
        self.wants_spare.load(Ordering::Relaxed) && self.preparing.try_lock().is_ok()
    }

    /// Makes files ahead where many will be needed, unless somebody does already. Nothing is written meanwhile for
    /// moments only.
    ///
    /// # Errors
    /// `Disk`, `NoSpace`.
    pub fn prepare(&self) -> Result<()> {
        let Ok(_preparing) = self.preparing.try_lock() else { return Ok(()) };
        while !self.queue().closed {
            let (disk, directory, size, number) = {
                let writer = self.writer();
                let wanted = writer.wants_spare();
                self.wants_spare.store(wanted, Ordering::Relaxed);
                let Some(number) = writer.next_spare().filter(|_| wanted) else { return Ok(()) };
                (Arc::clone(&writer.disk), writer.directory.clone(), writer.segment_bytes, number)
            };
            writer::make_spare(&*disk, &directory, number, size)?;
            let mut writer = self.writer();
            if writer.spares.contains(&number) {
                // It took the place of one that was let go of meanwhile.
                continue;
            }
            writer.spares.push(number);
            writer.metrics.journal_bytes.inc_by(size.cast_signed());
        }
        Ok(())
    }

    /// Writes what is in line, as the only one that writes.
    fn lead<'a>(&'a self, mut queue: MutexGuard<'a, Queue>, sync: bool) -> (MutexGuard<'a, Queue>, Result<()>) {
        queue.leading = true;
        let batch = std::mem::take(&mut queue.waiting);
        let sync = sync || !queue.waited.is_empty();
        drop(queue);
        let (outcome, durable, clean) = {
            let mut writer = self.writer();
            let outcome = writer.round(batch, sync);
            self.segments.store(writer.segments.len(), Ordering::Release);
            self.wants_spare.store(writer.wants_spare(), Ordering::Relaxed);
            (outcome, writer.durable, writer.is_clean())
        };
        let mut queue = self.queue();
        queue.leading = false;
        (queue.durable, queue.clean) = (durable, clean && queue.waiting.is_empty());
        while queue.waited.front().is_some_and(|sequence| *sequence <= durable) {
            queue.waited.pop_front();
        }
        if let Err(error) = &outcome {
            // What came meanwhile is not tried: who waits for it has to know first what became of what it builds on.
            queue.waiting.retain(|entry| !entry.waited);
            let ignorant = std::mem::take(&mut queue.waited).len();
            if ignorant > 0 {
                queue.lost = Some(Lost { error: error.clone(), durable, ignorant });
            }
        }
        self.turn.notify_all();
        (queue, outcome)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic while the queue of the journal is held")
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("no panic while the journal is written")
    }
}
