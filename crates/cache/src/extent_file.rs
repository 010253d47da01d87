//! The file of an extent: made, opened, written, read with every page checked, verified before it is lent.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use penstock_types::{ByteRange, Error, ErrorKind, OpenMode, PAGE_SIZE, Result};

use crate::extent::{Extent, Lease, Life, STATE};
use crate::tier::{disk_error, is_lack_of_descriptors};

/// Slices that one `pwritev` takes (`IOV_MAX`).
const MAX_SLICES: usize = 1024;
/// Pages that verification reads at once: 1 MiB.
const VERIFY_PAGES: u64 = 16;
/// How often a call that opens files has some closed for it.
const RELIEFS: u32 = 4;
/// Permissions of a file that is still written, and of a complete one.
const WRITABLE: u32 = 0o600;
const SEALED: u32 = 0o400;

impl Extent {
    /// Reads bytes whose pages are all present, checking every page that is touched.
    ///
    /// # Errors
    /// `Corrupt` when a page is absent, does not match its checksum or cannot be read: bad pages were dropped, fill
    /// what is missing and read again (a file that is damaged as a whole makes the extent gone). `InvalidInput` when
    /// `out` is not as long as `range` or the range is outside. `NoSpace` when the extent is gone, `Disk`,
    /// `ResourceLimit`.
    pub fn read_verified(&self, range: ByteRange, out: &mut [u8]) -> Result<()> {
        if range.len() != out.len() as u64 || range.end > self.size() {
            return Err(self.error(ErrorKind::InvalidInput, "the range does not fit the object or the buffer"));
        }
        if range.is_empty() {
            return Ok(());
        }
        let file = self.readable()?;
        let mut bad = Vec::new();
        for (pages, whole) in segments(range, self.size()) {
            let bytes = self.bytes_of(&pages);
            if whole {
                let from = (bytes.start - range.start) as usize;
                bad.extend(self.read_pages(&file, pages, &mut out[from..from + bytes.len() as usize])?);
            } else {
                let mut page = vec![0; bytes.len() as usize];
                bad.extend(self.read_pages(&file, pages, &mut page)?);
                let part = bytes.intersect(range);
                let inside = (part.start - bytes.start) as usize..(part.end - bytes.start) as usize;
                let to = (part.start - range.start) as usize;
                out[to..to + inside.len()].copy_from_slice(&page[inside]);
            }
        }
        if bad.is_empty() { Ok(()) } else { Err(self.drop_pages(&bad)) }
    }

    /// Lends the file: a read-only descriptor that stays readable whatever happens to the extent. Look at what is
    /// present after this, not before: the first lend after an unclean boot verifies it.
    ///
    /// # Errors
    /// `Corrupt` when pages were dropped or the file was damaged: look the object up again and fill what is missing.
    /// `NoSpace` when the extent is gone, `Disk`, `ResourceLimit`.
    pub fn lend(self: &Arc<Self>) -> Result<Lease> {
        {
            let mut state = self.state();
            if state.life != Life::Here {
                return Err(self.gone_error());
            }
            if let Some(kept) = state.read.as_ref().filter(|_| !state.doubtful) {
                let file = kept.file();
                return Ok(self.lease(&mut state, file));
            }
        }
        let file = self.readable()?;
        self.verify(&file)?;
        let mut state = self.state();
        if state.life != Life::Here {
            return Err(self.gone_error());
        }
        Ok(self.lease(&mut state, file))
    }

    /// Checks `pages`, skipping those that are absent. How many were checked, and how many were bad and dropped.
    pub(crate) fn check(&self, pages: Range<u64>) -> Result<(u64, u64)> {
        if self.map.present() == 0 {
            return Ok((0, 0));
        }
        let file = self.readable()?;
        let (checked, bad) = self.find_bad(&file, pages)?;
        if !bad.is_empty() {
            drop(self.drop_pages(&bad));
        }
        Ok((checked, bad.len() as u64))
    }

    /// Verifies every present page of an extent that is in doubt. One thread does it, others wait.
    fn verify(&self, file: &OwnedFd) -> Result<()> {
        {
            let mut state = self.state();
            while state.verifying {
                state = self.progress.wait(state).expect(STATE);
            }
            if !state.doubtful {
                return Ok(());
            }
            state.verifying = true;
        }
        let outcome = self.find_bad(file, 0..self.map.pages());
        {
            let mut state = self.state();
            state.verifying = false;
            state.doubtful = outcome.is_err();
        }
        self.progress.notify_all();
        let (checked, bad) = outcome?;
        self.tier.metrics.verified_pages.inc_by(checked);
        self.note_changed();
        if bad.is_empty() { Ok(()) } else { Err(self.drop_pages(&bad)) }
    }

    fn find_bad(&self, file: &OwnedFd, pages: Range<u64>) -> Result<(u64, Vec<u64>)> {
        let mut buffer = vec![0; (VERIFY_PAGES * PAGE_SIZE) as usize];
        let (mut checked, mut bad, mut page) = (0, Vec::new(), pages.start);
        while page < pages.end {
            let run = self.map.run(page, pages.end.min(page + VERIFY_PAGES));
            if run.is_empty() {
                page += 1;
                continue;
            }
            let bytes = self.bytes_of(&run);
            let absent_or_bad = self.read_pages(file, run.clone(), &mut buffer[..bytes.len() as usize])?;
            bad.extend(absent_or_bad.into_iter().filter(|page| self.map.contains(*page)));
            checked += run.end - run.start;
            page = run.end;
        }
        Ok((checked, bad))
    }

    /// Reads whole pages into `out` and gives back those that are absent or bad.
    fn read_pages(&self, file: &OwnedFd, pages: Range<u64>, out: &mut [u8]) -> Result<Vec<u64>> {
        let sums: Vec<Option<u32>> = pages.clone().map(|page| self.map.sum(page)).collect();
        let readable = match self.read_exact(file, pages.start * PAGE_SIZE, out) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.damaged("the cache file is shorter than it was"));
            }
            Err(_) => false,
        };
        let mut bad = Vec::new();
        for ((page, sum), bytes) in pages.zip(sums).zip(out.chunks_mut(PAGE_SIZE as usize)) {
            let matches = |bytes: &[u8]| sum == Some(crc32c::crc32c(bytes));
            // Read alone once more: the failure may have been of a neighbour, or of the moment.
            let good = (readable && matches(bytes))
                || (sum.is_some() && self.read_exact(file, page * PAGE_SIZE, bytes).is_ok() && matches(bytes));
            if !good {
                bad.push(page);
            }
        }
        Ok(bad)
    }

    fn read_exact(&self, file: &OwnedFd, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            let read = self.tier.disk.read_at(file.as_fd(), offset, out).inspect_err(|error| {
                self.tier.fail("read", &self.tier.path_of(self.number), error);
            })?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            out = &mut out[read..];
            offset += read as u64;
        }
        Ok(())
    }

    /// Drops pages that are bad, and stores that before anything else happens: the index must not call a page
    /// present that is about to be written again. The error to give.
    fn drop_pages(&self, pages: &[u64]) -> Error {
        let dropped: Vec<u64> = pages.iter().copied().filter(|page| self.map.remove(*page)).collect();
        if dropped.is_empty() {
            return self.error(ErrorKind::Corrupt, "a page is absent").advise("fill what is missing and read again");
        }
        self.discharge_pages(&dropped);
        self.tier.metrics.cache_corrupt_pages.inc_by(dropped.len() as u64);
        tracing::warn!(
            code = "cache-page-corrupt",
            source = %self.id().source, key = %self.id().key, extent = self.number, pages = ?dropped,
            "checksum mismatch, pages dropped"
        );
        self.note_changed();
        let stored = self.owner().and_then(|owner| owner.store());
        let error = self
            .error(ErrorKind::Corrupt, "checksum mismatch, pages dropped")
            .advise("fill what is missing and read again")
            .fact("pages", dropped.len())
            .fact("first", dropped[0]);
        if let Err(failure) = stored {
            return self.retire("bad pages, and the index cannot be told").fact("index", failure);
        }
        error
    }

    /// The file as a whole is not what was written: every page that was present is lost and counts as bad.
    fn damaged(&self, reason: &str) -> Error {
        if !self.is_gone() {
            self.tier.metrics.cache_corrupt_pages.inc_by(self.map.present());
        }
        self.retire(reason)
    }

    /// Gives the whole extent up. The error to give.
    fn retire(&self, reason: &str) -> Error {
        if self.is_gone() {
            return self.gone_error();
        }
        tracing::warn!(
            code = "cache-extent-retired",
            source = %self.id().source, key = %self.id().key, extent = self.number, reason
        );
        if let (Some(owner), Some(extent)) = (self.owner.upgrade(), self.me.upgrade()) {
            owner.retire(&extent);
        }
        self.map.clear();
        self.error(ErrorKind::Corrupt, reason).advise("open the file again")
    }

    /// The file for reading, opened if need be.
    pub(crate) fn readable(&self) -> Result<Arc<OwnedFd>> {
        self.touched.store(true, std::sync::atomic::Ordering::Relaxed);
        if !self.state().created {
            self.writable(false)?;
        }
        self.opened(false, || self.open_existing(OpenMode::Read))
    }

    /// The file for writing, made or opened if need be; `whole` when all of the object is about to be written.
    pub(crate) fn writable(&self, whole: bool) -> Result<Arc<OwnedFd>> {
        self.opened(true, || if self.state().created { self.open_existing(OpenMode::Write) } else { self.make(whole) })
    }

    /// The file that is kept open, else the one that `open` gives. One thread opens, others wait.
    pub(crate) fn opened(&self, write: bool, open: impl FnOnce() -> Result<OwnedFd>) -> Result<Arc<OwnedFd>> {
        {
            let mut state = self.state();
            loop {
                let kept = if write { &state.write } else { &state.read };
                if let Some(kept) = kept {
                    return Ok(kept.file());
                }
                // What was unlinked cannot be opened again.
                if state.life != Life::Here {
                    return Err(self.gone_error());
                }
                if !state.opening {
                    break;
                }
                state = self.progress.wait(state).expect(STATE);
            }
            state.opening = true;
        }
        let opened = self.owner().and_then(|owner| {
            owner.check_open()?;
            let file = Arc::new(open()?);
            Ok((owner.descriptors.keep(&self.me, Arc::clone(&file)), file))
        });
        let (kept, opened) = opened.map_or_else(|error| (None, Err(error)), |(kept, file)| (Some(kept), Ok(file)));
        {
            let mut state = self.state();
            state.opening = false;
            if state.life == Life::Here {
                let slot = if write { &mut state.write } else { &mut state.read };
                *slot = kept;
            }
        }
        self.progress.notify_all();
        opened
    }

    fn make(&self, whole: bool) -> Result<OwnedFd> {
        self.charge_file()?;
        let path = self.tier.path_of(self.number);
        let made = self.with_descriptors(|| self.try_make(if whole { SEALED } else { WRITABLE }));
        match made {
            Ok((file, inode)) => {
                let here = {
                    let mut state = self.state();
                    state.created = state.life == Life::Here;
                    state.sealed = whole;
                    state.inode = inode;
                    state.created
                };
                if !here {
                    self.refund_file();
                    let _ = self.tier.disk.remove(&path);
                    return Err(self.gone_error());
                }
                if let Some(owner) = self.owner.upgrade() {
                    owner.note_extents(1);
                }
                self.note_changed();
                Ok(file)
            }
            Err(error) => {
                self.refund_file();
                let _ = self.tier.disk.remove(&path);
                Err(self.tier.fail("make", &path, &error))
            }
        }
    }

    fn try_make(&self, bits: u32) -> io::Result<(OwnedFd, u64)> {
        let (disk, path) = (&self.tier.disk, self.tier.path_of(self.number));
        let file = match disk.open(&path, OpenMode::Create(bits)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk.create_directory(&self.tier.directory_of(self.number))?;
                disk.open(&path, OpenMode::Create(bits))?
            }
            // A leftover of a process that was killed before it stored that it had used this number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                disk.remove(&path)?;
                disk.open(&path, OpenMode::Create(bits))?
            }
            other => other?,
        };
        disk.set_size(file.as_fd(), self.size())?;
        let inode = disk.facts(file.as_fd())?.inode;
        Ok((file, inode))
    }

    fn open_existing(&self, mode: OpenMode) -> Result<OwnedFd> {
        let (disk, path) = (&self.tier.disk, self.tier.path_of(self.number));
        let opened = self.with_descriptors(|| {
            let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
            let file = match disk.open(&path, mode) {
                Err(error) if mode == OpenMode::Write && denied(&error) => {
                    disk.set_permissions(&path, WRITABLE)?;
                    self.state().sealed = false;
                    disk.open(&path, mode)?
                }
                other => other?,
            };
            let facts = disk.facts(file.as_fd())?;
            Ok((file, facts))
        });
        let (file, facts) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.retire("the cache file is missing"));
            }
            Err(error) => {
                self.tier.fail("open", &path, &error);
                return Err(disk_error("open", &path, &error));
            }
        };
        if facts.size != self.size() {
            return Err(self.damaged("the cache file has another size"));
        }
        let mut state = self.state();
        if facts.inode == state.inode {
            return Ok(file);
        }
        if mode == OpenMode::Write {
            drop(state);
            return Err(self.retire("the cache file was replaced"));
        }
        state.doubtful = true;
        state.inode = facts.inode;
        Ok(file)
    }

    /// Runs a call that opens files; when the process has no descriptor left, closes some and tries again. More than
    /// once, because other threads may take what was freed.
    pub(crate) fn with_descriptors<T>(&self, call: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let mut reliefs = 0;
        loop {
            match call() {
                Err(error) if is_lack_of_descriptors(&error) && reliefs < RELIEFS => {
                    reliefs += 1;
                    if let Some(owner) = self.owner.upgrade() {
                        owner.descriptors.relieve();
                    }
                }
                other => return other,
            }
        }
    }

    pub(crate) fn write_all(&self, file: &OwnedFd, mut offset: u64, parts: &[Bytes]) -> Result<()> {
        let path = self.tier.path_of(self.number);
        let mut slices: Vec<IoSlice<'_>> =
            parts.iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(MAX_SLICES)];
            let written = match self.tier.disk.write_at(file.as_fd(), offset, batch) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                other => other,
            };
            let written = written.map_err(|error| self.tier.fail("write", &path, &error))?;
            IoSlice::advance_slices(&mut rest, written);
            offset += written as u64;
        }
        Ok(())
    }

    /// The file is complete: nothing writes it any more.
    pub(crate) fn seal(&self) {
        let (unused, sealed) = {
            let mut state = self.state();
            (state.write.take(), std::mem::replace(&mut state.sealed, true))
        };
        drop(unused);
        let Some(owner) = self.owner.upgrade().filter(|owner| owner.check_open().is_ok()) else { return };
        owner.note_undurable(self.number);
        let path = self.tier.path_of(self.number);
        if !sealed && let Err(error) = self.tier.disk.set_permissions(&path, SEALED) {
            tracing::debug!(%error, path = %path.display(), "a complete cache file stays writable");
        }
    }
}

/// `range` as runs of pages that it covers whole (`true`) and single pages that it covers in part.
fn segments(range: ByteRange, size: u64) -> Vec<(Range<u64>, bool)> {
    let pages = range.pages();
    let covers = |page: u64| {
        let whole = ByteRange::new(page * PAGE_SIZE, ((page + 1) * PAGE_SIZE).min(size));
        range.contains(whole)
    };
    let first = if covers(pages.start) { pages.start } else { pages.start + 1 };
    let last = if pages.end > first && !covers(pages.end - 1) { pages.end - 1 } else { pages.end };
    let mut found = Vec::with_capacity(3);
    if first > pages.start {
        found.push((pages.start..first, false));
    }
    if last > first {
        found.push((first..last, true));
    }
    if last < pages.end && last >= first {
        found.push((last..pages.end, false));
    }
    found
}
