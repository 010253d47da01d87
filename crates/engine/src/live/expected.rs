//! How large a new file will probably be: where many small ones follow each other, the next one is small, too. It is
//! written in memory then, and the journal alone gets its bytes; one that becomes larger goes on in a file.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use penstock_stage::Draft;

/// So many small files in a row are followed by another one,
const SMALL_IN_A_ROW: u32 = 8;
/// if it comes so soon.
const PAUSE: Duration = Duration::from_secs(1);
/// Files that are in memory at once, of 256 KiB at most.
const IN_MEMORY_MAX: usize = 64;

/// What was written last.
#[derive(Default)]
pub(super) struct Expected {
    row: Mutex<Row>,
    in_memory: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Default)]
struct Row {
    small: u32,
    /// On the engine's clock.
    last: Duration,
}

/// Room for one file in memory.
pub(super) struct InMemory(Arc<AtomicUsize>);

impl Expected {
    /// A new file turned out to have `size` bytes, or more.
    pub(super) fn note(&self, size: u64, now: Duration) {
        let mut row = self.row();
        let before = if row.follows(now) { row.small } else { 0 };
        let small = if size <= Draft::IN_MEMORY_MAX { before.saturating_add(1) } else { 0 };
        *row = Row { small, last: now };
    }

    /// Whether the next file will probably be small, and there is room for it in memory.
    pub(super) fn has_room(&self, now: Duration) -> bool {
        let row = *self.row();
        let is_small = row.small >= SMALL_IN_A_ROW && row.follows(now);
        is_small && self.in_memory.load(Ordering::Relaxed) < IN_MEMORY_MAX
    }

    /// Room for the next file, where there is some.
    pub(super) fn room(&self, now: Duration) -> Option<InMemory> {
        if !self.has_room(now) {
            return None;
        }
        let taken = InMemory(Arc::clone(&self.in_memory));
        (self.in_memory.fetch_add(1, Ordering::Relaxed) < IN_MEMORY_MAX).then_some(taken)
    }

    fn row(&self) -> MutexGuard<'_, Row> {
        self.row.lock().expect("no panic while files are counted")
    }
}

impl Row {
    fn follows(self, now: Duration) -> bool {
        now.saturating_sub(self.last) < PAUSE
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_files_in_a_row_are_followed_by_another_until_one_is_large_or_a_while_passes() {
        let (expected, now) = (Expected::default(), 5 * PAUSE);
        let small = |count: u32| (0..count).for_each(|_| expected.note(Draft::IN_MEMORY_MAX, now));
        small(SMALL_IN_A_ROW - 1);
        assert!(!expected.has_room(now));
        small(1);
        assert!(expected.has_room(now));
        assert!(!expected.has_room(now + PAUSE), "it is long ago");
        expected.note(Draft::IN_MEMORY_MAX + 1, now);
        assert!(!expected.has_room(now), "one was large");
        small(SMALL_IN_A_ROW);
        expected.note(0, now + PAUSE);
        assert!(!expected.has_room(now + PAUSE), "it begins anew");
    }

    #[test]
    fn there_is_room_for_so_many_files_in_memory() {
        let (expected, now) = (Expected::default(), 5 * PAUSE);
        (0..SMALL_IN_A_ROW).for_each(|_| expected.note(1, now));
        let mut taken: Vec<_> = (0..IN_MEMORY_MAX).map(|_| expected.room(now)).collect();
        assert!(taken.iter().all(Option::is_some));
        assert!(expected.room(now).is_none() && !expected.has_room(now));
        taken.pop();
        assert!(expected.room(now).is_some());
    }
}
