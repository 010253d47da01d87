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

use crate::cache::Cache;
use crate::descriptors::KeptFile;
use crate::index::{Record, object_hash};
use crate::page_map::PageMap;
use crate::pages;
use crate::policy::Uses;
use crate::tier::Tier;

/// File systems give space in blocks of this many bytes.
pub const BLOCK: u64 = 4096;

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
    changed: AtomicBool,
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
    filling: Vec<Range<u64>>,
    /// Bytes of the tier's budget that it holds.
    charged: u64,
    /// One block was charged when the file was made; the first pages use it up.
    credit: bool,
    /// Of the charged bytes, those reported as unlinked but lent.
    lent_unlinked: u64,
    pub created: bool,
    /// The file was made read-only.
    pub sealed: bool,
    pub opening: bool,
    pub verifying: bool,
    /// Must be verified before it is lent.
    pub doubtful: bool,
    durable: bool,
    pub inode: u64,
    /// Rises with every page that is written or dropped.
    generation: u64,
    last_fill: Duration,
    pub read: Option<KeptFile>,
    pub write: Option<KeptFile>,
    /// The bytes that the index has charged it with; `None` when the index was not told of it for certain.
    stored_charge: Option<u64>,
    /// The index may know it: it was told, and even where that seemed to fail it may have been stored.
    maybe_stored: bool,
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
    descriptor: Arc<OwnedFd>,
}

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
    fn claim(&self, pages: Range<u64>) -> Result<Option<Range<u64>>> {
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

    fn unclaim(&self, run: &Range<u64>) {
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

    /// Takes `bytes` of the budget for this extent; what was really taken, and whether that used the credit up.
    fn charge(&self, bytes: u64) -> Result<(u64, bool)> {
        let owner = self.owner()?;
        let used_credit = std::mem::take(&mut self.state().credit);
        let wanted = if used_credit { bytes - BLOCK } else { bytes };
        if let Err(error) = owner.reserve(&self.tier, wanted, self) {
            self.state().credit |= used_credit;
            return Err(error);
        }
        self.grow(wanted);
        Ok((wanted, used_credit))
    }

    fn refund(&self, bytes: u64, used_credit: bool) {
        let (bytes, charged) = {
            let mut state = self.state();
            state.credit |= used_credit;
            // What is gone may have given everything back already.
            let bytes = bytes.min(state.charged);
            state.charged -= bytes;
            (bytes, state.charged)
        };
        self.tier.release(bytes);
        self.tier.policy().resize(self.number, charged);
    }

    /// Charges one block for a file that is about to be made, and enters the queues of the tier.
    pub(crate) fn charge_file(&self) -> Result<()> {
        self.owner()?.reserve(&self.tier, BLOCK, self)?;
        self.state().credit = true;
        self.tier.policy().insert(self.number, object_hash(&self.id), 0, self.uses.clone());
        self.grow(BLOCK);
        Ok(())
    }

    /// Takes the charge of a file back that could not be made.
    pub(crate) fn refund_file(&self) {
        self.state().credit = false;
        self.refund(BLOCK, false);
        self.tier.policy().remove(self.number);
    }

    fn grow(&self, bytes: u64) {
        let charged = {
            let mut state = self.state();
            state.charged += bytes;
            state.charged
        };
        self.tier.policy().resize(self.number, charged);
    }

    /// Gives the budget of dropped pages back; one block stays charged for the file.
    pub(crate) fn discharge_pages(&self, dropped: &[u64]) {
        let bytes: u64 = dropped.iter().map(|page| self.map.page_range(*page).len().next_multiple_of(BLOCK)).sum();
        let mut state = self.state();
        state.durable = false;
        state.generation += 1;
        let mut bytes = bytes.min(state.charged);
        if bytes > 0 && bytes == state.charged {
            bytes -= BLOCK;
            state.credit = true;
        }
        state.charged -= bytes;
        let charged = state.charged;
        drop(state);
        self.tier.release(bytes);
        self.tier.policy().resize(self.number, charged);
    }

    /// Begins to leave, unless it is in use and `force` is not set. From here on nothing is lent or filled.
    pub(crate) fn begin_leave(&self, force: bool) -> bool {
        let mut state = self.state();
        let busy = state.leases > 0 || !state.filling.is_empty() || state.opening || state.verifying;
        if state.life != Life::Here || (busy && !force) {
            return false;
        }
        state.life = Life::Leaving;
        true
    }

    /// Stays after all: its file could not be unlinked.
    pub(crate) fn undo_leave(&self) {
        self.state().life = Life::Here;
        // A flush that came by meanwhile passed it over.
        self.changed.store(false, Ordering::Release);
        self.note_changed();
    }

    /// Is gone: its file is unlinked. The bytes that came free at once.
    pub(crate) fn finish_leave(&self) -> u64 {
        let mut state = self.state();
        state.life = Life::Gone;
        let charged = state.charged;
        let unused = self.settle(&mut state);
        let freed = charged - state.charged;
        drop(state);
        drop(unused);
        freed
    }

    /// Gives the budget back once the extent is gone and nobody uses its file; until then its bytes are reported as
    /// unlinked but lent. The files that are not needed any more: closing the last descriptor of an unlinked file
    /// frees its blocks, which takes time, so the caller drops them without the lock.
    #[must_use]
    fn settle(&self, state: &mut State) -> [Option<KeptFile>; 2] {
        if state.life != Life::Gone {
            return [None, None];
        }
        let unused = state.leases == 0 && state.filling.is_empty();
        if unused {
            self.tier.release(std::mem::take(&mut state.charged));
        }
        let before = std::mem::replace(&mut state.lent_unlinked, state.charged);
        self.tier.note_lent_unlinked(before, state.charged);
        if unused { [state.read.take(), state.write.take()] } else { [None, None] }
    }

    /// Whether its file was made.
    pub(crate) fn has_file(&self) -> bool {
        self.state().created
    }

    /// Leases that are held.
    pub(crate) fn leases(&self) -> u32 {
        self.state().leases
    }

    /// Bytes of the budget that it holds.
    pub(crate) fn charged(&self) -> u64 {
        self.state().charged
    }

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
    pub(crate) fn image(&self, boot: u64) -> Option<(Record, Vec<(u64, crate::page_map::StripeImage)>)> {
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
            source: self.id.source.clone(),
            key: self.id.key.clone(),
            version: self.id.version.clone(),
            size: self.size,
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

    /// Closes the files that are kept open, unless it is lent or was used since it was asked last.
    pub(crate) fn close_files(&self) -> bool {
        if self.touched.swap(false, Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state();
        if state.life != Life::Here {
            return true;
        }
        if state.leases > 0 && state.read.is_some() {
            return false;
        }
        let unused = [state.read.take(), state.write.take()];
        drop(state);
        drop(unused);
        true
    }

    fn end_lease(&self) {
        let mut state = self.state();
        state.leases -= 1;
        let unused = self.settle(&mut state);
        drop(state);
        drop(unused);
        self.tier.metrics.leases.dec();
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
        Lease { extent: Arc::clone(self), descriptor }
    }
}

/// Why an extent cannot be made durable.
pub(crate) enum Undurable {
    Never,
    NotYet,
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
        &self.descriptor
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

/// What the present pages of a map are charged with.
fn pages_charge(map: &PageMap) -> u64 {
    map.present_bytes().next_multiple_of(BLOCK)
}
