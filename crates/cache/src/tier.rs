//! One cache directory: its budget, its health and the names of its files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use penstock_types::{Clock, Error, ErrorKind, Metrics, Result};

use crate::{Disk, Space};

/// How long a tier whose disk failed is left alone before it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// How long an answer of `statvfs` is believed.
const SPACE_BELIEVED_FOR: Duration = Duration::from_secs(1);
/// Extents with consecutive numbers share a directory, so that what is written together lies together.
const EXTENTS_PER_DIRECTORY: u64 = 4096;
/// Directories of a tier; numbers go round.
pub const DIRECTORIES: u64 = 256;

/// A cache directory with a size.
pub struct Tier {
    /// Place in the configuration, fastest first.
    pub position: usize,
    pub directory: PathBuf,
    pub size_bytes: u64,
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    floor: f64,
    used: AtomicU64,
    lent_unlinked: AtomicU64,
    condition: Mutex<Condition>,
}

#[derive(Default)]
struct Condition {
    failure: Option<Failure>,
    space: Option<(Duration, Space)>,
}

struct Failure {
    reason: String,
    retry_at: Duration,
}

impl Tier {
    pub fn new(position: usize, config: (PathBuf, u64), floor: f64, parts: &crate::CacheParts) -> Self {
        Self {
            position,
            directory: config.0,
            size_bytes: config.1,
            disk: Arc::clone(&parts.disk),
            clock: Arc::clone(&parts.clock),
            metrics: parts.metrics.clone(),
            floor,
            used: AtomicU64::new(0),
            lent_unlinked: AtomicU64::new(0),
            condition: Mutex::default(),
        }
    }

    /// The directory of an extent file.
    pub fn directory_of(&self, number: u64) -> PathBuf {
        self.directory.join("extents").join(format!("{:02x}", number / EXTENTS_PER_DIRECTORY % DIRECTORIES))
    }

    /// The path of an extent file.
    pub fn path_of(&self, number: u64) -> PathBuf {
        self.directory_of(number).join(format!("{number:016x}.x"))
    }

    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    pub fn lent_unlinked(&self) -> u64 {
        self.lent_unlinked.load(Ordering::Acquire)
    }

    /// Takes `bytes` of the budget, if they are there.
    pub fn try_reserve(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.size_bytes);
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok();
        if taken {
            self.metrics.cache_bytes.inc_by(bytes.cast_signed());
        }
        taken
    }

    /// Gives `bytes` of the budget back.
    pub fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
        self.metrics.cache_bytes.dec_by(bytes.cast_signed());
    }

    /// Notes that `bytes` are unlinked but still lent.
    pub fn note_lent_unlinked(&self, bytes: u64) {
        self.lent_unlinked.fetch_add(bytes, Ordering::AcqRel);
        self.metrics.cache_lent_unlinked_bytes.inc_by(bytes.cast_signed());
    }

    /// Notes that `bytes` of these are free now.
    pub fn forget_lent_unlinked(&self, bytes: u64) {
        self.lent_unlinked.fetch_sub(bytes, Ordering::AcqRel);
        self.metrics.cache_lent_unlinked_bytes.dec_by(bytes.cast_signed());
    }

    /// Bytes by which the file system would fall below its floor if `bytes` more were taken; 0 when it would not.
    pub fn shortfall(&self, bytes: u64) -> u64 {
        let Some(space) = self.space() else { return 0 };
        (self.floor_of(space) + bytes).saturating_sub(space.available)
    }

    /// Free bytes of the file system and the bytes to leave free.
    pub fn free_and_floor(&self) -> (u64, u64) {
        self.space().map_or((0, 0), |space| (space.available, self.floor_of(space)))
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
    fn floor_of(&self, space: Space) -> u64 {
        (space.total as f64 * self.floor) as u64
    }

    fn space(&self) -> Option<Space> {
        let now = self.clock.monotonic();
        if let Some((when, space)) = self.condition().space
            && now < when + SPACE_BELIEVED_FOR
        {
            return Some(space);
        }
        let space = self.disk.space(&self.directory).ok()?;
        self.condition().space = Some((now, space));
        Some(space)
    }

    /// Why nothing is written to it now; `None` while it is healthy, or when it is time to try again.
    pub fn refusal(&self) -> Option<String> {
        let now = self.clock.monotonic();
        self.condition().failure.as_ref().filter(|failure| now < failure.retry_at).map(|failure| failure.reason.clone())
    }

    /// Why the last write failed; `None` while it is healthy.
    pub fn failure(&self) -> Option<String> {
        self.condition().failure.as_ref().map(|failure| failure.reason.clone())
    }

    /// Notes a failed call and turns it into an error: `NoSpace` where the disk is full, else `Disk`.
    pub fn fail(&self, action: &str, path: &Path, error: &io::Error) -> Error {
        self.metrics.cache_disk_errors.inc();
        let reason = format!("{error} ({action} {})", path.display());
        let retry_at = self.clock.monotonic() + RETRY_AFTER;
        let first = self.condition().failure.replace(Failure { reason, retry_at }).is_none();
        if first {
            tracing::warn!(code = "cache-tier-unhealthy", tier = %self.directory.display(), %error, action);
        }
        disk_error(action, path, error)
    }

    /// Notes that a write succeeded.
    pub fn note_success(&self) {
        if self.condition().failure.take().is_some() {
            tracing::info!(code = "cache-tier-healthy", tier = %self.directory.display());
        }
    }

    fn condition(&self) -> std::sync::MutexGuard<'_, Condition> {
        self.condition.lock().expect("no panic while the condition of a tier is held")
    }
}

/// An error of the cache disk by what the caller can do.
pub fn disk_error(action: &str, path: &Path, error: &io::Error) -> Error {
    let (kind, advice) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (ErrorKind::NoSpace, "free space on the cache disk")
        }
        _ => match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                (ErrorKind::ResourceLimit, "raise the limit of open files (ulimit -n)")
            }
            _ => (ErrorKind::Disk, "check the cache disk"),
        },
    };
    Error::new(kind, format!("{action} {}", path.display()), error.to_string()).advise(advice)
}

/// An error for what cannot be cached now.
pub fn no_space(action: String, reason: &str) -> Result<std::convert::Infallible> {
    Err(Error::new(ErrorKind::NoSpace, action, reason))
}
