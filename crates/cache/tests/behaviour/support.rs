//! A cache in a temporary directory, with a clock to turn and a disk that fails on demand.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use penstock_cache::{Cache, CacheParts, Extent, RealDisk};
use penstock_testkit::{DiskFault, FaultyDisk, ManualClock, oracle};
use penstock_types::{
    ByteRange, CacheConfig, Disk, Metrics, ObjectId, ObjectKey, PAGE_SIZE, Result, SourceId, TierConfig, Version,
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
    pub disk: Arc<FaultyDisk>,
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
        Self { directory, clock, metrics: Metrics::default(), disk: FaultyDisk::new(Arc::new(RealDisk)), config }
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

    /// The machine is another boot from now on.
    pub fn reboot(&self, name: &str) {
        self.disk.pretend(|machine| machine.boot = Some(name.to_owned()));
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

/// A call that fails with this `errno`.
pub fn failing(errno: rustix::io::Errno) -> DiskFault {
    DiskFault::Errno(errno.raw_os_error())
}
