//! Taking a whole file over: what was written on this node becomes a complete extent, without being read or copied
//! where it lies on the file system of the tier.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use penstock_types::{ByteRange, Error, ErrorKind, ObjectId, OpenMode, PAGE_SIZE, Result};
use rustix::io::Errno;

use crate::accounts::BLOCK;
use crate::cache::Cache;
use crate::extent::{Extent, Life};
use crate::pages;
use crate::tier::{disk_error, is_lack_of_descriptors};

/// Pages that are copied at once: 1 MiB.
const COPY_PAGES: u64 = 16;

/// A file that is whole and that nobody writes any more.
struct Source<'a> {
    path: &'a Path,
    file: OwnedFd,
    /// CRC32C of each page.
    sums: Vec<u32>,
    /// Its data is safe on the disk.
    synced: bool,
}

impl Cache {
    /// Makes the file at `from` the complete extent of an object version, whose `size` it has; `sums` is the CRC32C of
    /// each 64 KiB page. The file gets a second name in the tier and becomes read-only; `from` stays, and who has the
    /// file open can go on with it, but must not write. Where the tier lies on another file system, or something of
    /// the version is cached already, what is missing is copied. `synced` says that the data is safe on the disk.
    ///
    /// Cost: some system calls, whatever the size; a copy reads and writes all of it and checks the sums.
    ///
    /// # Errors
    /// `InvalidInput` when size or number of sums are not those of the file; `NoSpace` when no room can be made;
    /// `Corrupt` when a copied page is not what was summed; `Disk`, `ResourceLimit`. The file is as before then; pages
    /// that were copied may be present.
    pub fn adopt(&self, id: &ObjectId, size: u64, sums: Vec<u32>, from: &Path, synced: bool) -> Result<Arc<Extent>> {
        let refuse = |reason: &str| {
            let action = format!("cache {} {} as {}", id.source, id.key, from.display());
            Err(Error::new(ErrorKind::InvalidInput, action, reason).fact("size", size))
        };
        if sums.len() as u64 != size.div_ceil(PAGE_SIZE) {
            return refuse("there is not one checksum for each page");
        }
        let file = self.open_foreign(from)?;
        let facts = self.parts.disk.facts(file.as_fd()).map_err(|error| disk_error("look at", from, &error))?;
        if facts.size != size {
            return refuse("the file has another size");
        }
        let extent = self.get_or_create(id, size)?;
        let source = Source { path: from, file, sums, synced };
        if !extent.is_complete() && !extent.link_whole(&source)? {
            extent.copy_missing(&source)?;
        }
        Ok(extent)
    }

    /// As [`Cache::adopt`], of the file of another object version with the same bytes; `false` where not all of that is
    /// present. What is in doubt since a crash is checked first.
    ///
    /// # Errors
    /// As those.
    pub fn adopt_extent(&self, id: &ObjectId, from: &Arc<Extent>) -> Result<bool> {
        // As long as it is lent, its file is what it was.
        let lease = from.lend()?;
        let pages = from.map.pages();
        let sums: Option<Vec<u32>> = (0..pages).map(|page| from.map.sum(page)).collect();
        let Some(sums) = sums.filter(|_| from.is_complete()) else { return Ok(false) };
        let synced = from.state().durable;
        self.adopt(id, from.size(), sums, &from.tier.path_of(from.number), synced)?;
        drop(lease);
        Ok(true)
    }

    fn open_foreign(&self, path: &Path) -> Result<OwnedFd> {
        let open = || self.parts.disk.open(path, OpenMode::Read);
        let opened = match open() {
            Err(error) if is_lack_of_descriptors(&error) => {
                self.descriptors.relieve();
                open()
            }
            other => other,
        };
        opened.map_err(|error| disk_error("open", path, &error))
    }
}

impl Extent {
    /// Makes the file of this extent a second name of another; `false` when that cannot be: something of the object is
    /// here already, or the file systems differ.
    fn link_whole(&self, source: &Source<'_>) -> Result<bool> {
        let whole = 0..self.map.pages();
        let Some(run) = self.claim(whole.clone())? else { return Ok(true) };
        let linked = if run == whole { self.link_claimed(source) } else { Ok(false) };
        self.unclaim(&run);
        linked
    }

    fn link_claimed(&self, source: &Source<'_>) -> Result<bool> {
        // Set by whoever opens; a file that was made or opened before is another one.
        let (linked, elsewhere) = (Cell::new(false), Cell::new(false));
        let opened = self.opened(false, || {
            if self.has_file() {
                elsewhere.set(true);
                return Err(self.error(ErrorKind::Busy, "its file is made already"));
            }
            let file = self.link(source.path, &elsewhere)?;
            linked.set(true);
            Ok(file)
        });
        match opened {
            Err(error) if !elsewhere.get() => return Err(error),
            Ok(_) if linked.get() => {}
            _ => return Ok(false),
        }
        {
            let mut state = self.state();
            state.durable = source.synced;
            state.generation += 1;
            state.last_fill = self.tier.clock.monotonic();
        }
        self.map.insert(0, &source.sums);
        self.tier.note_success();
        self.note_changed();
        self.seal();
        Ok(true)
    }

    /// The file with its second name, opened; its bytes count from before it has that.
    fn link(&self, from: &Path, elsewhere: &Cell<bool>) -> Result<OwnedFd> {
        self.charge_file()?;
        let whole = self.size().next_multiple_of(BLOCK);
        let (charge, used_credit) = self.charge(whole).inspect_err(|_| self.refund_file())?;
        let give_back = || {
            self.refund(charge, used_credit);
            self.refund_file();
        };
        let path = self.tier.path_of(self.number);
        match self.with_descriptors(|| self.try_link(from)) {
            Ok((file, inode)) => {
                let here = {
                    let mut state = self.state();
                    state.created = state.life == Life::Here;
                    state.inode = inode;
                    state.created
                };
                if !here {
                    give_back();
                    let _ = self.tier.disk.remove(&path);
                    return Err(self.gone_error());
                }
                if let Some(owner) = self.owner.upgrade() {
                    owner.note_extents(1);
                }
                Ok(file)
            }
            Err(error) => {
                give_back();
                elsewhere.set(is_unlinkable(&error));
                if elsewhere.get() {
                    return Err(disk_error("link", &path, &error));
                }
                let _ = self.tier.disk.remove(&path);
                Err(self.tier.fail("link", &path, &error))
            }
        }
    }

    fn try_link(&self, from: &Path) -> io::Result<(OwnedFd, u64)> {
        let (disk, path) = (&self.tier.disk, self.tier.path_of(self.number));
        match disk.link(from, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk.create_directory(&self.tier.directory_of(self.number))?;
                disk.link(from, &path)?;
            }
            // A leftover of a process that was killed before it stored that it had used this number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                disk.remove(&path)?;
                disk.link(from, &path)?;
            }
            other => other?,
        }
        let file = disk.open(&path, OpenMode::Read)?;
        let facts = disk.facts(file.as_fd())?;
        if facts.size != self.size() {
            return Err(io::Error::other("the file was replaced meanwhile"));
        }
        Ok((file, facts.inode))
    }

    /// Fills what is missing with the bytes of a file.
    fn copy_missing(&self, source: &Source<'_>) -> Result<()> {
        for run in self.map.missing(0..self.map.pages()) {
            for first in run.clone().step_by(COPY_PAGES as usize) {
                let pages = first..run.end.min(first + COPY_PAGES);
                let bytes = self.bytes_of(&pages);
                let data = [self.read_from(source, bytes)?];
                if pages::sums(&data) != source.sums[pages.start as usize..pages.end as usize] {
                    return Err(self.error(ErrorKind::Corrupt, "the file is not what was summed").fact("page", first));
                }
                self.fill(bytes.start, &data)?;
            }
        }
        Ok(())
    }

    fn read_from(&self, source: &Source<'_>, range: ByteRange) -> Result<Bytes> {
        let mut out = vec![0; range.len() as usize];
        let mut read = 0;
        while read < out.len() {
            let offset = range.start + read as u64;
            let count = self.tier.disk.read_at(source.file.as_fd(), offset, &mut out[read..]);
            match count.map_err(|error| disk_error("read", source.path, &error))? {
                0 => return Err(self.error(ErrorKind::Corrupt, "the file became shorter")),
                count => read += count,
            }
        }
        Ok(out.into())
    }
}

/// Whether a file cannot have another name there, though nothing is wrong: another file system, one without links, one
/// that forbids them, too many.
fn is_unlinkable(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP | Errno::NOSYS))
}
