//! A cache in a temporary directory, with a clock to turn and a disk that fails on demand.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use penstock_cache::{Cache, CacheParts, Disk, Extent, FileFacts, OpenMode, RealDisk, Space};
use penstock_testkit::{ManualClock, oracle};
use penstock_types::{
    ByteRange, CacheConfig, Metrics, ObjectId, ObjectKey, PAGE_SIZE, Result, SourceId, TierConfig, Version,
};

/// One page.
pub const PAGE: u64 = PAGE_SIZE;
/// Times the same number of bytes.
pub const MIB: u64 = 1 << 20;

/// Where a cache lives, across its restarts.
pub struct Home {
    pub directory: tempfile::TempDir,
    pub clock: Arc<ManualClock>,
    pub metrics: Metrics,
    pub disk: Arc<TestDisk>,
    pub config: CacheConfig,
}

impl Home {
    /// One tier of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self::with_tiers(&[size])
    }

    /// One tier of `size` bytes in memory, where there is such a file system: for tests of many thousand syncs.
    pub fn in_memory(size: u64) -> Self {
        Self::at(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap(), &[size])
    }

    pub fn with_tiers(sizes: &[u64]) -> Self {
        Self::at(tempfile::tempdir().unwrap(), sizes)
    }

    fn at(directory: tempfile::TempDir, sizes: &[u64]) -> Self {
        let tier = |(index, size): (usize, &u64)| TierConfig {
            directory: directory.path().join(format!("tier{index}")),
            size_bytes: *size,
        };
        let config = CacheConfig {
            tiers: sizes.iter().enumerate().map(tier).collect(),
            free_space_floor: 0.0,
            scrub_interval_days: 1.0,
            allow_network_filesystem: false,
        };
        let clock = Arc::new(ManualClock::default());
        Self { directory, clock, metrics: Metrics::default(), disk: Arc::default(), config }
    }

    pub fn parts(&self) -> CacheParts {
        CacheParts {
            config: self.config.clone(),
            state_directory: self.directory.path().join("state"),
            clock: Arc::clone(&self.clock) as Arc<dyn penstock_types::Clock>,
            metrics: self.metrics.clone(),
            disk: Arc::clone(&self.disk) as Arc<dyn Disk>,
            seed: 7,
        }
    }

    pub fn open(&self) -> Arc<Cache> {
        Cache::open(self.parts()).unwrap()
    }

    /// Opens as a new process does: with counters that begin at nothing.
    pub fn reopen(&mut self) -> Arc<Cache> {
        self.metrics = Metrics::default();
        self.open()
    }

    pub fn try_reopen(&mut self) -> Result<Arc<Cache>> {
        self.metrics = Metrics::default();
        Cache::open(self.parts())
    }

    /// Every extent file there is.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for tier in &self.config.tiers {
            for directory in entries(&tier.directory.join("extents")) {
                files.extend(entries(&directory));
            }
        }
        files.sort();
        files
    }

    pub fn index(&self) -> PathBuf {
        self.directory.path().join("state/cache.redb")
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

/// The id of test object `object`, version 1.
pub fn id(object: u64) -> ObjectId {
    ObjectId {
        source: SourceId::from("memory://test"),
        key: ObjectKey::from(format!("objects/{object:08}").as_str()),
        version: Version::from("1"),
    }
}

/// The right bytes of a test object, in the pieces a network might give.
pub fn content(object: u64, range: ByteRange) -> Vec<Bytes> {
    let whole = oracle::content(object, 1, range.start, range.end);
    let third = whole.len() / 3;
    vec![whole.slice(..third), whole.slice(third..)]
}

/// Fills pages of a test object.
pub fn fill(extent: &Extent, object: u64, range: ByteRange) -> Result<()> {
    extent.fill(range.start, &content(object, range))
}

/// Caches a whole test object.
pub fn cached(cache: &Cache, object: u64, size: u64) -> Result<Arc<Extent>> {
    let extent = cache.get_or_create(&id(object), size)?;
    fill(&extent, object, ByteRange::new(0, size))?;
    Ok(extent)
}

/// Reads through the cache and checks every byte.
pub fn read(extent: &Extent, object: u64, range: ByteRange) -> Result<()> {
    let mut out = vec![0; usize::try_from(range.len()).unwrap()];
    extent.read_verified(range, &mut out)?;
    oracle::check(object, 1, range.start, &out).unwrap();
    Ok(())
}

/// Reads by a lent descriptor, as clients do, and checks every byte.
pub fn read_lent(extent: &Arc<Extent>, object: u64, range: ByteRange) -> Result<()> {
    let lease = extent.lend()?;
    let mut out = vec![0; usize::try_from(range.len()).unwrap()];
    let read = rustix::io::pread(lease.descriptor(), &mut out[..], range.start).unwrap();
    assert_eq!(read as u64, range.len());
    oracle::check(object, 1, range.start, &out).unwrap();
    Ok(())
}

/// A change of a file behind the cache's back.
pub fn damage(file: &Path, change: impl FnOnce(&std::fs::File)) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    change(&std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap());
}

/// Flips one bit.
pub fn flip(file: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    damage(file, |file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    });
}

/// What a call does instead of succeeding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Error(rustix::io::Errno),
    /// Writes or reads a part of what it should.
    Short,
}

type Rule = Box<dyn Fn(&str, &Path) -> Option<Fault> + Send + Sync>;

/// The real disk, of which single calls or whole kinds of them are made to fail.
#[derive(Default)]
pub struct TestDisk {
    pub calls: AtomicU64,
    /// The number of the call that fails, from 0.
    pub fail_call: Mutex<Option<(u64, Fault)>>,
    /// Calls that fail, by name and path (empty for calls on descriptors).
    pub rule: Mutex<Option<Rule>>,
    pub fired: AtomicU64,
    pub boot: Mutex<Option<String>>,
    pub magic: Mutex<Option<u64>>,
    pub space: Mutex<Option<Space>>,
    pub descriptors: Mutex<Option<u64>>,
    pub log: Mutex<Option<Vec<&'static str>>>,
}

impl TestDisk {
    pub fn reboot(&self, name: &str) {
        *self.boot.lock().unwrap() = Some(name.to_owned());
    }

    pub fn fail(&self, rule: impl Fn(&str, &Path) -> Option<Fault> + Send + Sync + 'static) {
        *self.rule.lock().unwrap() = Some(Box::new(rule));
    }

    pub fn heal(&self) {
        *self.rule.lock().unwrap() = None;
        *self.fail_call.lock().unwrap() = None;
    }

    fn check(&self, name: &'static str, path: &Path) -> io::Result<bool> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if let Some(log) = self.log.lock().unwrap().as_mut() {
            log.push(name);
        }
        let numbered = self.fail_call.lock().unwrap().filter(|(number, _)| *number == call).map(|(_, fault)| fault);
        let ruled = || self.rule.lock().unwrap().as_ref().and_then(|rule| rule(name, path));
        match numbered.or_else(ruled) {
            None => Ok(false),
            Some(Fault::Short) if matches!(name, "write" | "read") => {
                self.fired.fetch_add(1, Ordering::SeqCst);
                Ok(true)
            }
            Some(Fault::Short) => Ok(false),
            Some(Fault::Error(errno)) => {
                self.fired.fetch_add(1, Ordering::SeqCst);
                Err(errno.into())
            }
        }
    }
}

impl Disk for TestDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.check("mkdir", path)?;
        RealDisk.create_directory(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OwnedFd> {
        let name = if matches!(mode, OpenMode::Create(_)) { "create" } else { "open" };
        self.check(name, path)?;
        RealDisk.open(path, mode)
    }

    fn read_at(&self, file: BorrowedFd<'_>, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let short = self.check("read", Path::new(""))?;
        let length = if short { out.len().div_ceil(2) } else { out.len() };
        RealDisk.read_at(file, offset, &mut out[..length])
    }

    fn write_at(&self, file: BorrowedFd<'_>, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.check("write", Path::new(""))? {
            let first = &parts[0];
            return RealDisk.write_at(file, offset, &[IoSlice::new(&first[..first.len().div_ceil(2)])]);
        }
        RealDisk.write_at(file, offset, parts)
    }

    fn set_size(&self, file: BorrowedFd<'_>, size: u64) -> io::Result<()> {
        self.check("set_size", Path::new(""))?;
        RealDisk.set_size(file, size)
    }

    fn sync_data(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.check("sync", Path::new(""))?;
        RealDisk.sync_data(file)
    }

    fn facts(&self, file: BorrowedFd<'_>) -> io::Result<FileFacts> {
        self.check("facts", Path::new(""))?;
        RealDisk.facts(file)
    }

    fn set_permissions(&self, path: &Path, bits: u32) -> io::Result<()> {
        self.check("chmod", path)?;
        RealDisk.set_permissions(path, bits)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check("unlink", path)?;
        RealDisk.remove(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.check("rmdir", path)?;
        RealDisk.remove_directory(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check("rename", from)?;
        RealDisk.rename(from, to)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.check("list", path)?;
        RealDisk.list(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.check("space", path)?;
        let pretended = *self.space.lock().unwrap();
        pretended.map_or_else(|| RealDisk.space(path), Ok)
    }

    fn filesystem(&self, path: &Path) -> io::Result<u64> {
        self.check("statfs", path)?;
        let pretended = *self.magic.lock().unwrap();
        pretended.map_or_else(|| RealDisk.filesystem(path), Ok)
    }

    fn try_lock(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        self.check("lock", Path::new(""))?;
        RealDisk.try_lock(file)
    }

    fn boot_id(&self) -> io::Result<String> {
        self.check("boot", Path::new(""))?;
        let pretended = self.boot.lock().unwrap().clone();
        pretended.map_or_else(|| RealDisk.boot_id(), Ok)
    }

    fn descriptor_limit(&self) -> u64 {
        let pretended = *self.descriptors.lock().unwrap();
        pretended.unwrap_or_else(|| RealDisk.descriptor_limit())
    }
}
