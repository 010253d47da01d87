//! One cache directory: its budget, its health and the names of its files.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use penstock_types::{Clock, Disk, Error, ErrorKind, Metrics, Space};
use rustix::io::Errno;

use crate::policy::Policy;

/// How long a tier whose disk failed is left alone before it is tried again.
pub const RETRY_AFTER: Duration = Duration::from_secs(10);
/// How long an answer of `statvfs` is believed; what the cache itself takes and frees meanwhile is added.
const SPACE_BELIEVED_FOR: Duration = Duration::from_secs(1);
/// Extents with consecutive numbers share a directory, so that what is written together lies together.
const EXTENTS_PER_DIRECTORY: u64 = 4096;
/// Directories of a tier; numbers go round.
pub const DIRECTORIES: u64 = 256;

/// A cache directory with a size.
pub struct Tier {
    /// How the index names it.
    pub slot: u32,
    pub directory: PathBuf,
    pub size_bytes: u64,
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    /// Share of the file system that stays free.
    pub floor: f64,
    /// Why it could not be opened at all; it is left alone until the next start.
    pub offline: Option<String>,
    policy: Mutex<Policy>,
    used: AtomicU64,
    lent_unlinked: AtomicU64,
    failing: AtomicBool,
    condition: Mutex<Condition>,
}

/// What a tier is made of.
pub struct TierParts {
    pub slot: u32,
    pub directory: PathBuf,
    pub size_bytes: u64,
    pub floor: f64,
    pub offline: Option<String>,
    /// Bytes that its extents are charged with.
    pub used: u64,
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

/// What stands in the way of a reservation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// Nothing: the bytes are taken.
    Taken,
    /// The budget of the tier.
    Full,
    /// The free space of the file system.
    Floor,
}

impl Tier {
    pub fn new(tier: TierParts, parts: &crate::CacheParts) -> Self {
        parts.metrics.cache_bytes.inc_by(tier.used.cast_signed());
        Self {
            slot: tier.slot,
            directory: tier.directory,
            size_bytes: tier.size_bytes,
            disk: Arc::clone(&parts.disk),
            clock: Arc::clone(&parts.clock),
            metrics: parts.metrics.clone(),
            floor: tier.floor,
            offline: tier.offline,
            policy: Mutex::new(Policy::new(tier.size_bytes)),
            used: AtomicU64::new(tier.used),
            lent_unlinked: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            condition: Mutex::default(),
        }
    }

    /// The directory that holds the directories of extent files.
    pub fn extents(&self) -> PathBuf {
        self.directory.join("extents")
    }

    /// One of the [`DIRECTORIES`] of extent files.
    pub fn extent_directory(&self, index: u64) -> PathBuf {
        self.extents().join(format!("{index:02x}"))
    }

    /// The directory of an extent file.
    pub fn directory_of(&self, number: u64) -> PathBuf {
        self.extent_directory(directory_index(number))
    }

    /// The path of an extent file.
    pub fn path_of(&self, number: u64) -> PathBuf {
        self.directory_of(number).join(format!("{number:016x}.x"))
    }

    pub fn policy(&self) -> MutexGuard<'_, Policy> {
        self.policy.lock().expect("no panic while the queues of a tier are held")
    }

    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    pub fn lent_unlinked(&self) -> u64 {
        self.lent_unlinked.load(Ordering::Acquire)
    }

    /// Takes `bytes` of the budget, if they are there and the file system keeps its floor.
    pub fn reserve(&self, bytes: u64) -> Room {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.size_bytes);
        if self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_err() {
            return Room::Full;
        }
        if !self.take_space(bytes) {
            self.used.fetch_sub(bytes, Ordering::AcqRel);
            return Room::Floor;
        }
        self.metrics.cache_bytes.inc_by(bytes.cast_signed());
        Room::Taken
    }

    /// Gives `bytes` of the budget back.
    pub fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
        self.metrics.cache_bytes.dec_by(bytes.cast_signed());
        if bytes == 0 {
            return;
        }
        if let Some((_, space)) = &mut self.condition().space {
            space.available = space.available.saturating_add(bytes);
        }
    }

    /// Whether an object of `size` bytes would find room without an eviction.
    pub fn has_room(&self, size: u64) -> bool {
        let (free, floor) = self.free_and_floor();
        self.used().saturating_add(size) <= self.size_bytes && floor.saturating_add(size) <= free
    }

    /// Whether it holds more than it may: its size was lowered, or others took the free space.
    pub fn is_overfull(&self) -> bool {
        let (free, floor) = self.free_and_floor();
        self.used() > self.size_bytes || (free < floor && self.used() > 0)
    }

    /// Notes that the bytes of an extent that are unlinked but still lent are `now` instead of `before`.
    pub fn note_lent_unlinked(&self, before: u64, now: u64) {
        self.lent_unlinked.fetch_add(now.wrapping_sub(before), Ordering::AcqRel);
        self.metrics.cache_lent_unlinked_bytes.inc_by(now.cast_signed() - before.cast_signed());
    }

    /// Free bytes of the file system and the bytes to leave free.
    pub fn free_and_floor(&self) -> (u64, u64) {
        self.refresh_space();
        self.condition().space.map_or((0, 0), |(_, space)| (space.available, self.floor_of(space)))
    }

    fn take_space(&self, bytes: u64) -> bool {
        self.refresh_space();
        let mut condition = self.condition();
        // A file system that cannot be asked is judged by its writes.
        let Some((_, space)) = &mut condition.space else { return true };
        let floor = self.floor_of(*space);
        let enough = floor.checked_add(bytes).is_some_and(|needed| needed <= space.available);
        if enough {
            space.available -= bytes;
        }
        enough
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
    fn floor_of(&self, space: Space) -> u64 {
        (space.total as f64 * self.floor) as u64
    }

    fn refresh_space(&self) {
        let now = self.clock.monotonic();
        let fresh = self.condition().space.is_some_and(|(when, _)| now < when + SPACE_BELIEVED_FOR);
        if !fresh && self.offline.is_none() {
            let space = self.disk.space(&self.directory).ok();
            self.condition().space = space.map(|space| (now, space));
        }
    }

    /// Why nothing is written to it now; `None` while it is healthy, or when it is time to try again.
    pub fn refusal(&self) -> Option<String> {
        if let Some(reason) = &self.offline {
            return Some(reason.clone());
        }
        if !self.failing.load(Ordering::Acquire) {
            return None;
        }
        let now = self.clock.monotonic();
        self.condition().failure.as_ref().filter(|failure| now < failure.retry_at).map(|failure| failure.reason.clone())
    }

    /// Why the last write failed; `None` while it is healthy.
    pub fn failure(&self) -> Option<String> {
        let failed = || self.condition().failure.as_ref().map(|failure| failure.reason.clone());
        self.offline.clone().or_else(failed)
    }

    /// Notes a failed call and turns it into an error. All but a lack of descriptors makes the tier unhealthy.
    pub fn fail(&self, action: &str, path: &Path, error: &io::Error) -> Error {
        self.metrics.cache_disk_errors.inc();
        if !is_lack_of_descriptors(error) {
            let reason = format!("{error} ({action} {})", path.display());
            let retry_at = self.clock.monotonic() + RETRY_AFTER;
            let first = self.condition().failure.replace(Failure { reason, retry_at }).is_none();
            self.failing.store(true, Ordering::Release);
            if first {
                tracing::warn!(code = "cache-tier-unhealthy", tier = %self.directory.display(), %error, action);
            }
        }
        disk_error(action, path, error)
    }

    /// Notes that a write succeeded.
    pub fn note_success(&self) {
        if self.failing.load(Ordering::Acquire) && self.condition().failure.take().is_some() {
            self.failing.store(false, Ordering::Release);
            tracing::info!(code = "cache-tier-healthy", tier = %self.directory.display());
        }
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().expect("no panic while the condition of a tier is held")
    }
}

/// Which of the directories of a tier holds an extent file.
pub fn directory_index(number: u64) -> u64 {
    number / EXTENTS_PER_DIRECTORY % DIRECTORIES
}

/// The number in the name of an extent file.
pub fn number_of(name: &OsStr) -> Option<u64> {
    let digits = name.to_str()?.strip_suffix(".x").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// An error of the cache disk by what the caller can do.
pub fn disk_error(action: &str, path: &Path, error: &io::Error) -> Error {
    let (kind, advice) = match ErrorKind::of_disk(error) {
        _ if is_lack_of_descriptors(error) => (ErrorKind::ResourceLimit, "raise the limit of open files (ulimit -n)"),
        ErrorKind::NoSpace => (ErrorKind::NoSpace, "free space on the cache disk"),
        kind => (kind, "check the cache disk"),
    };
    Error::new(kind, format!("{action} {}", path.display()), error.to_string()).advise(advice)
}

/// Whether a call failed because the process or the machine has no descriptor left.
pub fn is_lack_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_extent_files_have_a_number() {
        assert_eq!(number_of(OsStr::new("00000000000000ff.x")), Some(255));
        for other in ["ff.x", "00000000000000ff", "00000000000000fg.x", "notes.txt"] {
            assert_eq!(number_of(OsStr::new(other)), None, "{other}");
        }
    }
}
