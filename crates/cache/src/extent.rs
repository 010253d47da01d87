//! One object version in the cache: its sparse file, its page map, who fills it and who has it lent.

use std::fmt;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use penstock_types::{ByteRange, Error, ErrorKind, ObjectId, PAGE_SIZE, Result};

use crate::cache::Cache;
use crate::disk::OpenMode;
use crate::page_map::PageMap;
use crate::tier::{Tier, disk_error};

/// File systems give space in blocks of this many bytes.
const BLOCK: u64 = 4096;
/// Slices that one `pwritev` takes (`IOV_MAX`).
const MAX_SLICES: usize = 1024;

/// One object version in the cache. It may stay partial for ever.
pub struct Extent {
    pub(crate) number: u64,
    pub(crate) tier: Arc<Tier>,
    pub(crate) map: PageMap,
    pub(crate) last_use_ms: AtomicI64,
    id: ObjectId,
    size: u64,
    owner: Weak<Cache>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    leases: u32,
    /// Evicted or retired: nothing is lent or filled any more.
    gone: bool,
    /// Runs of pages that somebody writes right now.
    filling: Vec<Range<u64>>,
    /// Bytes of the tier's budget that this extent holds.
    charged: u64,
    /// Whether the file exists; whether somebody opens it right now.
    created: bool,
    opening: bool,
    read: Option<Arc<OwnedFd>>,
    write: Option<Arc<OwnedFd>>,
}

/// The right to read an extent's file by a descriptor of its own. Ends when it is dropped.
pub struct Lease {
    extent: Arc<Extent>,
    descriptor: Arc<OwnedFd>,
}

impl Extent {
    pub(crate) fn new(number: u64, id: ObjectId, size: u64, tier: Arc<Tier>, owner: Weak<Cache>) -> Self {
        Self {
            number,
            tier,
            map: PageMap::new(size),
            last_use_ms: AtomicI64::new(0),
            id,
            size,
            owner,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
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

    /// Whether it was evicted or retired: it is neither filled nor lent any more; `get_or_create` makes a new one.
    pub fn is_gone(&self) -> bool {
        self.state().gone
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
        let pages = self.clip(range).pages();
        self.map.missing(pages).into_iter().map(|run| self.bytes_of(&run)).collect()
    }

    /// Writes verified bytes of this version and makes their pages present. Pages that are present already are left
    /// as they are; pages that somebody else writes right now are waited for.
    ///
    /// `offset` is a multiple of the page size, and the data ends on one or at the object's end.
    ///
    /// # Errors
    /// `InvalidInput` for other offsets and lengths, `NoSpace` when nothing more can be evicted, the disk is full or
    /// the extent is gone, `Disk` when the disk fails. After an error some of the pages may be present.
    pub fn fill(&self, offset: u64, data: &[Bytes]) -> Result<()> {
        let pages = self.check_fill(offset, data)?.pages();
        while let Some(run) = self.claim(pages.clone())? {
            let result = self.fill_run(&run, offset, data);
            self.unclaim(&run);
            result?;
        }
        Ok(())
    }

    /// Reads bytes whose pages are all present, checking every page that is touched.
    ///
    /// # Errors
    /// `Corrupt` when a page is absent, does not match its checksum or cannot be read: bad pages were dropped, fill
    /// what is missing and read again. `InvalidInput` when `out` is not as long as `range` or the range is outside.
    pub fn read_verified(&self, range: ByteRange, out: &mut [u8]) -> Result<()> {
        if range.len() != out.len() as u64 || range.end > self.size {
            return Err(self.error(ErrorKind::InvalidInput, "the range does not fit the object or the buffer"));
        }
        let file = self.readable()?;
        let mut page_bytes = vec![0; PAGE_SIZE as usize];
        for page in range.pages() {
            let Some(sum) = self.map.sum(page) else {
                return Err(self.error(ErrorKind::Corrupt, "a page is absent").advise("fill it and read again"));
            };
            let whole = self.map.page_range(page);
            let buffer = &mut page_bytes[..whole.len() as usize];
            self.read_exact(&file, whole.start, buffer)?;
            if crc32c::crc32c(buffer) != sum {
                self.map.remove(page);
                self.tier.metrics.cache_corrupt_pages.inc();
                tracing::warn!(code = "cache-page-corrupt", object = %self.describe(), page);
                return Err(self.error(ErrorKind::Corrupt, "checksum mismatch, page dropped").fact("page", page));
            }
            let part = whole.intersect(range);
            let from = (part.start - whole.start) as usize;
            let to = (part.start - range.start) as usize;
            let len = part.len() as usize;
            out[to..to + len].copy_from_slice(&buffer[from..from + len]);
        }
        Ok(())
    }

    /// Lends the file: a read-only descriptor that stays valid whatever happens to the extent. Check what is present
    /// after this, not before.
    ///
    /// # Errors
    /// `NoSpace` when the extent is gone, `Corrupt` when its file was damaged (look again: what is missing can be
    /// filled), `Disk`, `ResourceLimit`.
    pub fn lend(self: &Arc<Self>) -> Result<Lease> {
        loop {
            let descriptor = self.readable()?;
            let mut state = self.state();
            if state.gone {
                return Err(self.gone_error());
            }
            state.leases += 1;
            drop(state);
            self.tier.metrics.leases.inc();
            return Ok(Lease { extent: Arc::clone(self), descriptor });
        }
    }

    pub(crate) fn leases(&self) -> u32 {
        self.state().leases
    }

    /// Marks it gone, unless it is lent or being filled and `force` is not set; the bytes that come free at once.
    pub(crate) fn leave(&self, force: bool) -> Option<u64> {
        let mut state = self.state();
        if state.gone || (!force && (state.leases > 0 || !state.filling.is_empty())) {
            return None;
        }
        state.gone = true;
        state.read = None;
        state.write = None;
        if state.leases > 0 {
            self.tier.note_lent_unlinked(state.charged);
            return Some(0);
        }
        Some(self.release_when_free(&mut state))
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
        let mut state = self.state();
        loop {
            if state.gone {
                return Err(self.gone_error());
            }
            let missing = self.map.missing(pages.clone());
            if missing.is_empty() {
                return Ok(None);
            }
            for run in &missing {
                let free = run.clone().find(|page| !state.filling.iter().any(|busy| busy.contains(page)));
                if let Some(start) = free {
                    let end = state.filling.iter().map(|busy| busy.start).filter(|busy| *busy > start).min();
                    let claimed = start..end.map_or(run.end, |end| end.min(run.end));
                    state.filling.push(claimed.clone());
                    return Ok(Some(claimed));
                }
            }
            state = self.changed.wait(state).expect(STATE);
        }
    }

    fn unclaim(&self, run: &Range<u64>) {
        let mut state = self.state();
        state.filling.retain(|busy| busy != run);
        if state.gone && state.leases == 0 {
            self.release_when_free(&mut state);
        }
        self.changed.notify_all();
    }

    fn fill_run(&self, run: &Range<u64>, offset: u64, data: &[Bytes]) -> Result<()> {
        let range = self.bytes_of(run);
        let charge = range.len().next_multiple_of(BLOCK);
        let owner = self.owner.upgrade().ok_or_else(|| self.gone_error())?;
        owner.reserve(&self.tier, charge, self)?;
        self.state().charged += charge;
        let written = self.write_pages(run, &cut(data, range.start - offset, range.len()));
        if let Err(error) = written {
            self.state().charged -= charge;
            self.tier.release(charge);
            return Err(error);
        }
        self.tier.note_success();
        self.tier.metrics.cache_fill_bytes.inc_by(range.len());
        Ok(())
    }

    fn write_pages(&self, run: &Range<u64>, parts: &[Bytes]) -> Result<()> {
        let sums = page_sums(parts);
        let file = self.writable()?;
        let path = self.tier.path_of(self.number);
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let (mut rest, mut at) = (&mut slices[..], run.start * PAGE_SIZE);
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(MAX_SLICES)];
            let written = match self.tier.disk.write_at(file.as_fd(), at, batch) {
                Ok(0) => Err(std::io::ErrorKind::WriteZero.into()),
                other => other,
            };
            let written = written.map_err(|error| self.tier.fail("write", &path, &error))?;
            IoSlice::advance_slices(&mut rest, written);
            at += written as u64;
        }
        self.map.insert(run.start, &sums);
        Ok(())
    }

    fn read_exact(&self, file: &OwnedFd, mut offset: u64, mut out: &mut [u8]) -> Result<()> {
        let path = self.tier.path_of(self.number);
        while !out.is_empty() {
            let read = self.tier.disk.read_at(file.as_fd(), offset, out);
            let read = read.map_err(|error| disk_error("read", &path, &error))?;
            if read == 0 {
                return Err(self.error(ErrorKind::Corrupt, "the cache file is shorter than it was"));
            }
            out = &mut out[read..];
            offset += read as u64;
        }
        Ok(())
    }

    fn readable(&self) -> Result<Arc<OwnedFd>> {
        if let Some(file) = &self.state().read {
            return Ok(Arc::clone(file));
        }
        self.writable()?;
        let path = self.tier.path_of(self.number);
        let file = self.tier.disk.open(&path, OpenMode::Read).map_err(|error| disk_error("open", &path, &error))?;
        let file = Arc::new(file);
        self.state().read = Some(Arc::clone(&file));
        Ok(file)
    }

    fn writable(&self) -> Result<Arc<OwnedFd>> {
        let mut state = self.state();
        while state.opening {
            state = self.changed.wait(state).expect(STATE);
        }
        if let Some(file) = &state.write {
            return Ok(Arc::clone(file));
        }
        state.opening = true;
        let mode = if state.created { OpenMode::Write } else { OpenMode::Create(0o600) };
        drop(state);
        let opened = self.open_for_writing(mode);
        let mut state = self.state();
        state.opening = false;
        self.changed.notify_all();
        let file = Arc::new(opened?);
        state.created = true;
        state.write = Some(Arc::clone(&file));
        Ok(file)
    }

    fn open_for_writing(&self, mode: OpenMode) -> Result<OwnedFd> {
        let path = self.tier.path_of(self.number);
        let disk = &self.tier.disk;
        let open = || -> std::io::Result<OwnedFd> {
            let file = match disk.open(&path, mode) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && matches!(mode, OpenMode::Create(_)) => {
                    disk.create_directory(&self.tier.directory_of(self.number))?;
                    disk.open(&path, mode)?
                }
                other => other?,
            };
            if matches!(mode, OpenMode::Create(_)) {
                disk.set_size(file.as_fd(), self.size)?;
            }
            Ok(file)
        };
        open().map_err(|error| self.tier.fail("open", &path, &error))
    }

    fn release_when_free(&self, state: &mut State) -> u64 {
        if !state.filling.is_empty() {
            return 0;
        }
        let freed = std::mem::take(&mut state.charged);
        self.tier.release(freed);
        freed
    }

    fn end_lease(&self) {
        let mut state = self.state();
        state.leases -= 1;
        self.tier.metrics.leases.dec();
        if state.gone && state.leases == 0 {
            self.tier.forget_lent_unlinked(state.charged);
            self.release_when_free(&mut state);
        }
    }

    fn clip(&self, range: ByteRange) -> ByteRange {
        range.intersect(ByteRange::new(0, self.size))
    }

    fn bytes_of(&self, run: &Range<u64>) -> ByteRange {
        ByteRange::new(run.start * PAGE_SIZE, (run.end * PAGE_SIZE).min(self.size))
    }

    fn describe(&self) -> String {
        format!("{} {}", self.id.source, self.id.key)
    }

    fn error(&self, kind: ErrorKind, reason: &str) -> Error {
        Error::new(kind, format!("cache {}", self.describe()), reason).fact("extent", self.number)
    }

    fn gone_error(&self) -> Error {
        self.error(ErrorKind::NoSpace, "evicted meanwhile").advise("open the file again")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(STATE)
    }
}

const STATE: &str = "no panic while the state of an extent is held";

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

/// `length` bytes of `data` from `start`, without copying.
fn cut(data: &[Bytes], mut start: u64, mut length: u64) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(data.len());
    for part in data {
        let size = part.len() as u64;
        if start >= size {
            start -= size;
            continue;
        }
        let take = (size - start).min(length);
        if take == 0 {
            break;
        }
        parts.push(part.slice(start as usize..(start + take) as usize));
        start = 0;
        length -= take;
    }
    parts
}

/// The CRC32C of each page of `parts`, of which the first byte begins a page.
fn page_sums(parts: &[Bytes]) -> Vec<u32> {
    let (mut sums, mut sum, mut room) = (Vec::new(), 0, PAGE_SIZE as usize);
    for part in parts {
        let mut rest = &part[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(room));
            sum = crc32c::crc32c_append(sum, now);
            room -= now.len();
            rest = later;
            if room == 0 {
                sums.push(std::mem::take(&mut sum));
                room = PAGE_SIZE as usize;
            }
        }
    }
    if room < PAGE_SIZE as usize {
        sums.push(sum);
    }
    sums
}
