//! Bringing what is written to the disk while more is written: the sync at the end has less to wait for.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use penstock_types::ByteRange;

/// So much is begun at once: much for a disk, little to wait for.
const STEP: u64 = 16 * 1024 * 1024;

/// How far a file that grows is on its way to the disk.
#[derive(Default)]
pub(crate) struct EarlySync {
    begun: AtomicU64,
}

impl EarlySync {
    /// What is to be begun now that everything below `end` was written, to whoever asks first; `None` where it is
    /// little.
    pub(crate) fn due(&self, end: u64) -> Option<ByteRange> {
        let begun = self.begun.load(Ordering::Relaxed);
        if end < begun.saturating_add(STEP) {
            return None;
        }
        let is_ours = self.begun.compare_exchange(begun, end, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        is_ours.then_some(ByteRange::new(begun, end))
    }
}

/// Begins to write a range of a file to its disk. A hint: nothing is durable by it, and a failure shows at the sync.
/// Blocks where the disk has much to write.
pub(crate) fn begin_sync(file: &OwnedFd, range: ByteRange) {
    let (Ok(offset), Ok(length)) = (range.start.try_into(), range.len().try_into()) else { return };
    // SAFETY: the call takes numbers alone, and the descriptor is open as long as `file` is there.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_begun_once_and_in_large_steps() {
        let early = EarlySync::default();
        let mut begun = Vec::new();
        for end in (0..=10 * STEP).step_by(1_000_000) {
            begun.extend(early.due(end));
        }
        assert_eq!(begun[0].start, 0);
        assert!(begun.windows(2).all(|pair| pair[0].end == pair[1].start), "{begun:?}");
        assert!(begun.iter().all(|range| range.len() >= STEP && range.len() < STEP + 1_000_000), "{begun:?}");
        assert!(begun.last().is_some_and(|last| last.end > 8 * STEP));
        assert_eq!(early.due(STEP), None);
    }
}
