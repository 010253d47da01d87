//! The staged files: one for each change that is no removal, named by start and number, so that no two starts ever use
//! one name. Those of small changes are written unsynced: the journal has their bytes, and restores them.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use penstock_types::faults::{Step, under_way};
use penstock_types::{Disk, Error, ErrorKind, Metrics, OpenMode, Result};
use serde::{Deserialize, Serialize};

use crate::journal::{Place, Slot, segment_path};
use crate::shared_sync::SharedSync;

/// Ends the name of a file that is being restored.
const RESTORING: &str = ".restoring";
/// How much of a file is compared at once.
const COMPARED_AT_ONCE: usize = 256 * 1024;

/// The name of a staged file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct FileName {
    /// Start of the node that made it.
    pub epoch: u64,
    /// Counted from 1 in each.
    pub number: u64,
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:08x}", self.epoch, self.number)
    }
}

impl FileName {
    /// Reads a name as it is written; nothing else is one.
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, number) = text.split_once('-')?;
        let read = |digits: &str| u64::from_str_radix(digits, 16).ok();
        let name = Self { epoch: read(epoch)?, number: read(number)? };
        (name.to_string() == text).then_some(name)
    }
}

/// The directory of the staged files.
pub struct Files {
    pub disk: Arc<dyn Disk>,
    metrics: Metrics,
    directory: PathBuf,
    journal: PathBuf,
    epoch: u64,
    last_number: AtomicU64,
    names: SharedSync,
    /// Set when the stage is closed: the names are another process's from then on.
    closed: AtomicBool,
}

impl Files {
    pub fn new(disk: Arc<dyn Disk>, metrics: Metrics, directory: PathBuf, journal: PathBuf, epoch: u64) -> Arc<Self> {
        let (names, closed) = (SharedSync::default(), AtomicBool::new(false));
        Arc::new(Self { disk, metrics, directory, journal, epoch, last_number: AtomicU64::new(0), names, closed })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn path_of(&self, name: FileName) -> PathBuf {
        self.directory.join(name.to_string())
    }

    /// A new, empty file; it is removed when it is dropped, unless it is kept.
    pub fn create(self: &Arc<Self>) -> Result<(StagedFile, OwnedFd)> {
        self.make(|path| self.disk.open(path, OpenMode::Create(0o600)))
    }

    /// As [`Files::create`], another name of a file, read only.
    pub fn link(self: &Arc<Self>, from: &Path) -> Result<(StagedFile, OwnedFd)> {
        self.make(|path| {
            self.disk.link(from, path)?;
            self.disk.open(path, OpenMode::Read)
        })
    }

    fn make(self: &Arc<Self>, make: impl Fn(&Path) -> io::Result<OwnedFd>) -> Result<(StagedFile, OwnedFd)> {
        loop {
            let name = self.next_name();
            let path = self.path_of(name);
            match make(&path) {
                Ok(descriptor) => {
                    return Ok((StagedFile::new(self, name, self.names.note(), Proof::Synced), descriptor));
                }
                // A start that wrote no record had the same epoch. What it left here stays where it has been set aside
                // already under a second name: a rename from one name of a file to another does nothing.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.failed("make", &path, &error)),
            }
        }
    }

    /// A file that is not made before somebody needs it: the journal gets its bytes.
    pub fn promise(self: &Arc<Self>) -> StagedFile {
        StagedFile::new(self, self.next_name(), 0, Proof::Synced)
    }

    fn next_name(&self) -> FileName {
        FileName { epoch: self.epoch, number: self.last_number.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// A file that was kept by an earlier process, synced.
    pub fn kept(self: &Arc<Self>, name: FileName) -> StagedFile {
        let file = StagedFile::new(self, name, 0, Proof::Synced);
        file.keep();
        file
    }

    /// A file that was kept by an earlier process, whose bytes are in the journal.
    pub fn kept_in_journal(self: &Arc<Self>, name: FileName, sum: u32, size: u64, place: Slot) -> StagedFile {
        let file = StagedFile::new(self, name, 0, Proof::Journal { sum, size, place, checked: false });
        file.keep();
        file
    }

    /// Makes every name that was made or removed before durable.
    pub fn sync_all_names(&self) -> Result<()> {
        self.sync_names(self.names.note())
    }

    /// From now on nothing is removed.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn sync_names(&self, number: u64) -> Result<()> {
        let sync = || {
            let synced = self.disk.sync_directory(&self.directory);
            synced.map_err(|error| self.failed("sync", &self.directory, &error))
        };
        self.names.wait(number, sync)
    }

    fn remove(&self, path: &Path) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        match self.disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(code = "stage-file-left", path = %path.display(), %error, "the next start removes it");
                self.metrics.stage_disk_errors.inc();
            }
            _ => {}
        }
    }

    fn failed(&self, action: &str, path: &Path, error: &io::Error) -> Error {
        self.metrics.stage_disk_errors.inc();
        disk_error(action, path, error)
    }
}

/// One staged file. Its name is removed when it is dropped, unless it is kept.
pub struct StagedFile {
    files: Arc<Files>,
    name: FileName,
    /// Its number in the directory: see [`SharedSync`].
    named: u64,
    kept: AtomicBool,
    reader: Mutex<Weak<OwnedFd>>,
    /// Held while the file is compared with the journal, restored or synced.
    proof: Mutex<Proof>,
}

/// Why the bytes of a file are believed to be there after a crash.
#[derive(Clone)]
enum Proof {
    /// They are synced, with their name.
    Synced,
    /// The journal has them.
    Journal {
        sum: u32,
        size: u64,
        place: Slot,
        /// The file is known to hold them, for as long as the machine is up.
        checked: bool,
    },
}

impl StagedFile {
    fn new(files: &Arc<Files>, name: FileName, named: u64, proof: Proof) -> Self {
        let (kept, reader) = (AtomicBool::new(false), Mutex::default());
        Self { files: Arc::clone(files), name, named, kept, reader, proof: Mutex::new(proof) }
    }

    pub fn name(&self) -> FileName {
        self.name
    }

    /// Where it is.
    pub fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// It stays when this is dropped.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }

    /// It goes when this is dropped.
    pub fn give_up(&self) {
        self.kept.store(false, Ordering::Release);
    }

    /// Syncs what was written through `descriptor`, and the name; its size.
    pub fn sync(&self, descriptor: BorrowedFd<'_>) -> Result<u64> {
        let path = self.full_path();
        let failed = |error| self.files.failed("sync", &path, &error);
        let _step = under_way(Step::Sync);
        self.files.disk.sync_data(descriptor).map_err(failed)?;
        let facts = self.files.disk.facts(descriptor).map_err(failed)?;
        self.files.sync_names(self.named)?;
        Ok(facts.size)
    }

    /// All of what was written through `descriptor`; `None` when that is more than `max` bytes.
    pub fn read_small(&self, descriptor: BorrowedFd<'_>, max: usize) -> Result<Option<Bytes>> {
        let (disk, path) = (&*self.files.disk, self.full_path());
        let read = || {
            let size = usize::try_from(disk.facts(descriptor)?.size).unwrap_or(usize::MAX);
            if size > max {
                return Ok(None);
            }
            let mut data = vec![0; size];
            let read = read_some(disk, descriptor, 0, &mut data)?;
            data.truncate(read);
            Ok(Some(Bytes::from(data)))
        };
        read().map_err(|error| self.files.failed("read", &path, &error))
    }

    /// Cuts or grows the file.
    pub fn set_size(&self, descriptor: BorrowedFd<'_>, size: u64) -> Result<()> {
        let path = self.full_path();
        let set = self.files.disk.set_size(descriptor, size);
        set.map_err(|error| self.files.failed("grow", &path, &error))
    }

    /// Writes all of `data` into the file. It is not synced; whoever keeps it so, says where the journal has it.
    pub fn fill(&self, descriptor: BorrowedFd<'_>, data: &[u8]) -> Result<()> {
        let path = self.full_path();
        let written = write_all(&*self.files.disk, descriptor, 0, data);
        written.map_err(|error| self.files.failed("write", &path, &error))
    }

    /// Notes that the journal has its bytes, and where, and whether the file has them, too.
    pub fn is_in_journal(&self, data: &[u8], place: &Slot, is_made: bool) {
        let (sum, size) = (crc32c::crc32c(data), data.len() as u64);
        *self.proof() = Proof::Journal { sum, size, place: Slot::clone(place), checked: is_made };
    }

    /// The file, read only; restored from the journal where it has to be.
    pub fn open(&self) -> Result<Arc<OwnedFd>> {
        self.check()?;
        let open = self.reader().upgrade();
        if let Some(open) = open {
            return Ok(open);
        }
        let path = self.full_path();
        let opened = self.files.disk.open(&path, OpenMode::Read);
        let opened = Arc::new(opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::new(ErrorKind::StaleVersion, "read a staged file", "it was forgotten").advise("open it again")
            }
            _ => self.files.failed("read", &path, &error),
        })?);
        *self.reader() = Arc::downgrade(&opened);
        Ok(opened)
    }

    /// Its path, where its bytes are known to be there.
    pub fn path(&self) -> Option<PathBuf> {
        let sound = !matches!(&*self.proof(), Proof::Journal { checked: false, .. });
        sound.then(|| self.full_path())
    }

    pub fn is_synced(&self) -> bool {
        matches!(&*self.proof(), Proof::Synced)
    }

    /// Whether it is there as it was committed, with `size` bytes, for one that is synced; the others are restored at
    /// need. One that was written to afterwards, or still is, by a program that had it open when the node ended goes on in
    /// a copy of its first `size` bytes.
    pub fn is_whole(&self, size: u64) -> Result<bool> {
        if !self.is_synced() {
            return Ok(true);
        }
        let (disk, path) = (&*self.files.disk, self.full_path());
        let look = || {
            let file = match disk.open(&path, OpenMode::Read) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                opened => opened?,
            };
            let has = disk.facts(file.as_fd())?.size;
            if has > size || (has == size && disk.is_written(file.as_fd())) {
                self.replace(|copy| copy_some(disk, file.as_fd(), copy, size))?;
            }
            Ok(has >= size)
        };
        look().map_err(|error| self.files.failed("look at", &path, &error))
    }

    /// Makes the bytes durable without the journal; once names are synced too, `note_synced` may be called.
    pub fn sync_content(&self) -> Result<()> {
        self.check()?;
        let proof = self.proof();
        let Proof::Journal { sum, size, place, .. } = &*proof else { return Ok(()) };
        let (disk, path) = (&*self.files.disk, self.full_path());
        let synced = disk.open(&path, OpenMode::Write).and_then(|file| disk.sync_data(file.as_fd()));
        // What failed to be synced once is not believed when it succeeds later: a new file is.
        synced.or_else(|error| {
            self.files.failed("sync", &path, &error);
            self.restore((*sum, *size), place, |fill| self.replace(fill))
        })
    }

    /// The journal is not needed for it any more.
    pub fn note_synced(&self) {
        *self.proof() = Proof::Synced;
    }

    /// Makes sure that the file holds its bytes.
    fn check(&self) -> Result<()> {
        let mut proof = self.proof();
        let Proof::Journal { sum, size, place, checked } = &mut *proof else { return Ok(()) };
        if *checked {
            return Ok(());
        }
        let path = self.full_path();
        let found = self.files.disk.open(&path, OpenMode::Read);
        let holds = found.and_then(|file| sum_of(&*self.files.disk, file.as_fd()));
        if holds.ok() != Some((*sum, *size)) {
            self.restore((*sum, *size), place, |fill| self.make(fill))?;
        }
        *checked = true;
        Ok(())
    }

    /// Writes the file anew from the journal.
    fn restore(
        &self,
        (sum, size): (u32, u64),
        place: &Slot,
        write: impl FnOnce(&dyn Fn(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()>,
    ) -> Result<()> {
        let place = *place.lock().expect("no panic while a place is held");
        let lost = |reason: &str| Error::new(ErrorKind::Corrupt, "restore a staged file from the journal", reason);
        let place = place.ok_or_else(|| lost("its place is not known"))?;
        let data = self.files.read_journal(place)?;
        if crc32c::crc32c(&data) != sum || data.len() as u64 != size {
            return Err(lost("checksum mismatch").fact("offset", place.offset));
        }
        let restored = write(&|file| write_all(&*self.files.disk, file, 0, &data));
        restored.map_err(|error| self.files.failed("restore", &self.full_path(), &error))
    }

    /// Makes this file, unsynced, for as long as the journal has its bytes.
    fn make(&self, fill: &dyn Fn(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
        let (disk, path) = (&*self.files.disk, self.full_path());
        match disk.open(&path, OpenMode::Create(0o600)) {
            Ok(file) => fill(file.as_fd()).inspect_err(|_| drop(disk.remove(&path))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.replace(fill),
            Err(error) => Err(error),
        }
    }

    /// Puts a new file, synced, in the place of this one.
    fn replace(&self, fill: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
        let (disk, path) = (&*self.files.disk, self.full_path());
        let restoring = PathBuf::from(format!("{}{RESTORING}", path.display()));
        let _ = disk.remove(&restoring);
        let file = disk.open(&restoring, OpenMode::Create(0o600))?;
        fill(file.as_fd())?;
        disk.sync_data(file.as_fd())?;
        disk.rename(&restoring, &path)
    }

    pub fn full_path(&self) -> PathBuf {
        self.files.path_of(self.name)
    }

    fn proof(&self) -> MutexGuard<'_, Proof> {
        self.proof.lock().expect("no panic while the proof of a file is held")
    }

    fn reader(&self) -> MutexGuard<'_, Weak<OwnedFd>> {
        self.reader.lock().expect("no panic while a descriptor is held")
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Acquire) {
            self.files.remove(&self.full_path());
        }
    }
}

impl Files {
    /// Data of a record of the journal.
    fn read_journal(&self, place: Place) -> Result<Vec<u8>> {
        let path = segment_path(&self.journal, place.segment);
        let read = || {
            let file = self.disk.open(&path, OpenMode::Read)?;
            let mut data = vec![0; place.length as usize];
            let read = read_some(&*self.disk, file.as_fd(), place.offset, &mut data)?;
            data.truncate(read);
            Ok(data)
        };
        read().map_err(|error| self.failed("read", &path, &error))
    }
}

/// Writes all of `data` at `offset`.
pub fn write_all(disk: &dyn Disk, file: BorrowedFd<'_>, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let written = disk.write_at(file, offset, &[IoSlice::new(data)])?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        data = &data[written..];
        offset += written as u64;
    }
    Ok(())
}

/// Reads until `out` is full or the file ends; how much there was.
pub fn read_some(disk: &dyn Disk, file: BorrowedFd<'_>, offset: u64, out: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < out.len() {
        match disk.read_at(file, offset + done as u64, &mut out[done..])? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}

/// Copies the first `size` bytes of a file.
fn copy_some(disk: &dyn Disk, from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; COMPARED_AT_ONCE];
    let mut at = 0;
    while at < size {
        let wanted = buffer.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
        match read_some(disk, from, at, &mut buffer[..wanted])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                write_all(disk, to, at, &buffer[..read])?;
                at += read as u64;
            }
        }
    }
    Ok(())
}

/// CRC32C and length of a whole file.
fn sum_of(disk: &dyn Disk, file: BorrowedFd<'_>) -> io::Result<(u32, u64)> {
    let mut buffer = vec![0; COMPARED_AT_ONCE];
    let (mut sum, mut size) = (0, 0);
    loop {
        let read = read_some(disk, file, size, &mut buffer)?;
        sum = crc32c::crc32c_append(sum, &buffer[..read]);
        size += read as u64;
        if read < buffer.len() {
            return Ok((sum, size));
        }
    }
}

/// Whether a name in the directory is one that a restoration left behind.
pub fn is_left_by_restoring(name: &str) -> bool {
    name.ends_with(RESTORING)
}

/// An error of the stage's disk by what the caller can do.
pub fn disk_error(action: &str, path: &Path, error: &io::Error) -> Error {
    /// No descriptor is left: of the process, of the machine.
    const LACK_OF_DESCRIPTORS: [i32; 2] = [24, 23];
    let (kind, advice) = match ErrorKind::of_disk(error) {
        _ if error.raw_os_error().is_some_and(|errno| LACK_OF_DESCRIPTORS.contains(&errno)) => {
            (ErrorKind::ResourceLimit, "raise the limit of open files (ulimit -n)")
        }
        ErrorKind::NoSpace => (ErrorKind::NoSpace, "free space on the disk of the stage"),
        kind => (kind, "check the disk of the stage"),
    };
    Error::new(kind, format!("{action} {}", path.display()), error.to_string()).advise(advice)
}
