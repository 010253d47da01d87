//! One object version in the cache: what of it is present, who fills it, who has it lent.
//!
//! One lock per extent guards its state; it is never held across I/O and no other lock is taken under it. The page
//! map is read without it.

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use penstock_types::{ByteRange, Error, ErrorKind, ObjectId, PAGE_SIZE, Result};

use crate::accounts::{BLOCK, pages_charge};
use crate::cache::Cache;
use crate::descriptors::KeptFile;
use crate::index::Record;
use crate::page_map::PageMap;
use crate::pages;
use crate::policy::Uses;
use crate::tier::Tier;

/// One object version in the cache. It may stay partial for ever.
pub struct Extent {
    pub(crate) number: u64,
    pub(crate) tier: Arc<Tier>,
    pub(crate) map: PageMap,
    pub(crate) uses: Uses,
    pub(crate) last_use_ms: AtomicI64,
    /// Looked up since trimming came by last.
    pub(crate) recent: AtomicBool,
    /// Lent or read since somebody asked it to close its files.
    pub(crate) touched: AtomicBool,
    /// Differs from what the index has.
    pub(crate) changed: AtomicBool,
    pub(crate) me: Weak<Extent>,
    pub(crate) owner: Weak<Cache>,
    id: ObjectId,
    size: u64,
    state: Mutex<State>,
    /// Somebody finished filling, opening or verifying.
    pub(crate) progress: Condvar,
}

#[derive(Default)]
pub(crate) struct State {
    pub leases: u32,
    pub life: Life,
    /// Runs of pages that somebody writes right now.
    pub filling: Vec<Range<u64>>,
    /// Bytes of the tier's budget that it holds.
    pub charged: u64,
    /// One block was charged when the file was made; the first pages use it up.
    pub credit: bool,
    /// Of the charged bytes, those reported as unlinked but lent.
    pub lent_unlinked: u64,
    pub created: bool,
    /// The file was made read-only.
    pub sealed: bool,
    pub opening: bool,
    pub verifying: bool,
    /// Must be verified before it is lent.
    pub doubtful: bool,
    pub durable: bool,
    pub inode: u64,
    /// Rises with every page that is written or dropped.
    pub generation: u64,
    pub last_fill: Duration,
    pub read: Option<KeptFile>,
    pub write: Option<KeptFile>,
    /// The bytes that the index has charged it with; `None` when the index was not told of it for certain.
    pub stored_charge: Option<u64>,
    /// The index may know it: it was told, and even where that seemed to fail it may have been stored.
    pub maybe_stored: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Life {
    #[default]
    Here,
    /// Its file is being unlinked.
    Leaving,
    Gone,
}

/// The right to read an extent's file by a descriptor of its own. Ends when it is dropped.
pub struct Lease {
    extent: Arc<Extent>,
    /// `None` only while it is dropped.
    descriptor: Option<Arc<OwnedFd>>,
}

/// The last to close an unlinked file gives all of its pages back to the kernel: at this size some 10 ms, for which
/// nobody waits who only ends a lease.
const SLOW_TO_CLOSE_BYTES: u64 = 64 * 1024 * 1024;

impl Extent {
    /// A new, empty extent; its file is made when it is filled or lent first.
    pub(crate) fn new(number: u64, id: ObjectId, size: u64, tier: Arc<Tier>, owner: Weak<Cache>) -> Arc<Self> {
        let map = PageMap::new(size);
        Self::build((number, id, size), map, (tier, owner), (Uses::default(), State::default()))
    }

    /// An extent as the index knows it. `boot` is the present boot of the machine.
    pub(crate) fn restore(
        (number, id): (u64, ObjectId),
        record: &Record,
        map: PageMap,
        (tier, owner): (Arc<Tier>, Weak<Cache>),
        (uses, boot): (Uses, u64),
    ) -> Arc<Self> {
        let state = State {
            charged: record.charged,
            stored_charge: Some(record.charged),
            maybe_stored: true,
            credit: record.charged >= pages_charge(&map) + BLOCK,
            created: true,
            sealed: record.complete,
            doubtful: !record.durable && record.boot != boot,
            durable: record.durable,
            inode: record.inode,
            ..State::default()
        };
        let extent = Self::build((number, id, record.size), map, (tier, owner), (uses, state));
        extent.last_use_ms.store(record.last_use_ms, Ordering::Relaxed);
        extent
    }

    fn build(
        (number, id, size): (u64, ObjectId, u64),
        map: PageMap,
        (tier, owner): (Arc<Tier>, Weak<Cache>),
        (uses, state): (Uses, State),
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            number,
            tier,
            map,
            uses,
            last_use_ms: AtomicI64::new(0),
            recent: AtomicBool::new(true),
            touched: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            me: Weak::clone(me),
            owner,
            id,
            size,
            state: Mutex::new(state),
            progress: Condvar::new(),
        })
    }

    /// Which object version it holds.
    pub fn id(&self) -> &ObjectId {
        &self.id
    }

    /// Size of the object, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether every byte is present. One atomic load.
    pub fn is_complete(&self) -> bool {
        self.map.is_complete()
    }

    /// Whether it was evicted or retired: it is neither filled nor lent any more, and `get_or_create` makes another.
    pub fn is_gone(&self) -> bool {
        self.state().life != Life::Here
    }

    /// Contiguous present bytes from `offset`; empty (at `offset`) when there are none.
    pub fn present_run(&self, offset: u64) -> ByteRange {
        if offset >= self.size {
            return ByteRange::new(offset, offset);
        }
        let run = self.map.run(offset / PAGE_SIZE, self.map.pages());
        ByteRange::new(offset, (run.end * PAGE_SIZE).min(self.size).max(offset))
    }

    /// Absent runs of pages that `range` touches, sorted and disjoint; the last is cut off at the object's end.
    pub fn missing(&self, range: ByteRange) -> Vec<ByteRange> {
        let pages = range.intersect(ByteRange::new(0, self.size)).pages();
        self.map.missing(pages).into_iter().map(|run| self.bytes_of(&run)).collect()
    }

    /// Writes verified bytes of this version and makes their pages present. Pages that are present already are left
    /// as they are; pages that somebody else writes right now are waited for.
    ///
    /// `offset` is a multiple of the page size, and the data ends on one or at the object's end.
    ///
    /// # Errors
    /// `InvalidInput` for other offsets and lengths, `NoSpace` when nothing more can be evicted, the disk is full or
    /// left alone after a failure, or the extent is gone; `Disk` when the disk fails, `ResourceLimit` without
    /// descriptors. After an error some of the pages may be present.
    pub fn fill(&self, offset: u64, data: &[Bytes]) -> Result<()> {
        let range = self.check_fill(offset, data)?;
        while let Some(run) = self.claim(range.pages())? {
            let result = self.fill_run(&run, offset, data);
            self.unclaim(&run);
            result?;
        }
        Ok(())
    }

    fn check_fill(&self, offset: u64, data: &[Bytes]) -> Result<ByteRange> {
        let length: u64 = data.iter().map(|part| part.len() as u64).sum();
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        match end {
            Some(end) if offset.is_multiple_of(PAGE_SIZE) && (end.is_multiple_of(PAGE_SIZE) || end == self.size) => {
                Ok(ByteRange::new(offset, end))
            }
            _ => Err(self
                .error(ErrorKind::InvalidInput, "not whole pages of the object")
                .fact("offset", offset)
                .fact("length", length)),
        }
    }

    /// The next run of absent pages for this thread to write; `None` when all of `pages` are present.
    pub(crate) fn claim(&self, pages: Range<u64>) -> Result<Option<Range<u64>>> {
        // Checksums that are still in the index are loaded here, before the lock.
        drop(self.map.missing(pages.clone()));
        let mut state = self.state();
        loop {
            if state.life != Life::Here {
                return Err(self.gone_error());
            }
            let missing = self.map.missing(pages.clone());
            if missing.is_empty() {
                return Ok(None);
            }
            if let Some(run) = first_free(&missing, &state.filling) {
                state.filling.push(run.clone());
                return Ok(Some(run));
            }
            state = self.progress.wait(state).expect(STATE);
        }
    }

    pub(crate) fn unclaim(&self, run: &Range<u64>) {
        let mut state = self.state();
        state.filling.retain(|busy| busy != run);
        let unused = self.settle(&mut state);
        drop(state);
        drop(unused);
        self.progress.notify_all();
    }

    fn fill_run(&self, run: &Range<u64>, offset: u64, data: &[Bytes]) -> Result<()> {
        let range = self.bytes_of(run);
        let file = self.writable(range.len() == self.size)?;
        let (charge, used_credit) = self.charge(range.len().next_multiple_of(BLOCK))?;
        let parts = pages::cut(data, range.start - offset, range.len());
        let sums = pages::sums(&parts);
        if let Err(error) = self.write_all(&file, range.start, &parts) {
            self.refund(charge, used_credit);
            return Err(error);
        }
        {
            let mut state = self.state();
            state.durable = false;
            state.generation += 1;
            state.last_fill = self.tier.clock.monotonic();
        }
        self.map.insert(run.start, &sums);
        self.tier.note_success();
        self.tier.metrics.cache_fill_bytes.inc_by(range.len());
        self.note_changed();
        if self.is_complete() {
            self.seal();
        }
        Ok(())
    }

    pub(crate) fn bytes_of(&self, run: &Range<u64>) -> ByteRange {
        ByteRange::new(run.start * PAGE_SIZE, (run.end * PAGE_SIZE).min(self.size))
    }

    pub(crate) fn error(&self, kind: ErrorKind, reason: &str) -> Error {
        let action = format!("cache {} {}", self.id.source, self.id.key);
        Error::new(kind, action, reason).fact("extent", self.number)
    }

    pub(crate) fn gone_error(&self) -> Error {
        self.error(ErrorKind::NoSpace, "evicted meanwhile").advise("open the file again")
    }

    pub(crate) fn owner(&self) -> Result<Arc<Cache>> {
        self.owner.upgrade().ok_or_else(|| self.error(ErrorKind::NoSpace, "the cache is closed"))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(STATE)
    }

    /// Lends a file that was opened; `None` when that cannot be now.
    pub(crate) fn lease(self: &Arc<Self>, state: &mut State, descriptor: Arc<OwnedFd>) -> Lease {
        state.leases += 1;
        self.touched.store(true, Ordering::Relaxed);
        self.tier.metrics.leases.inc();
        Lease { extent: Arc::clone(self), descriptor: Some(descriptor) }
    }
}

pub(crate) const STATE: &str = "no panic while the state of an extent is held";

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extent").field("number", &self.number).field("id", &self.id).field("size", &self.size).finish()
    }
}

impl Lease {
    /// The read-only descriptor.
    pub fn descriptor(&self) -> &Arc<OwnedFd> {
        self.descriptor.as_ref().expect("a lease has its descriptor until it is dropped")
    }

    /// What is lent.
    pub fn extent(&self) -> &Arc<Extent> {
        &self.extent
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.extent).finish()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.extent.end_lease();
        if let Some(owner) = self.extent.owner.upgrade() {
            owner.descriptors.settle();
        }
        if self.extent.size >= SLOW_TO_CLOSE_BYTES && self.extent.is_gone() {
            let descriptor = self.descriptor.take();
            // Without a thread it is closed here and now.
            let _ = std::thread::Builder::new().name("close".into()).spawn(move || drop(descriptor));
        }
    }
}

/// The first run of `missing` pages that is in none of the runs that are being filled.
fn first_free(missing: &[Range<u64>], filling: &[Range<u64>]) -> Option<Range<u64>> {
    for run in missing {
        let free = run.clone().find(|page| !filling.iter().any(|busy| busy.contains(page)));
        if let Some(start) = free {
            let next_busy = filling.iter().map(|busy| busy.start).filter(|busy| *busy > start).min();
            return Some(start..next_busy.map_or(run.end, |busy| busy.min(run.end)));
        }
    }
    None
}
