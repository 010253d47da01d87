//! Bytes that cannot be cached: too large for the tier, or the cache disk is full or broken. They pass through
//! anonymous memory of the budget, a window at a time, so that readers see no difference but speed.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use penstock_types::{ByteRange, Error, ErrorKind, PAGE_SIZE, Result};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, fallocate, ftruncate, memfd_create, open};

use crate::budget::MemoryHold;
use crate::pattern::RANDOM_UNIT;

/// Bytes kept at most for a reader whose bytes are not cached: eight requests of 1 MiB ahead, and what is behind.
const WINDOW_MAX: u64 = 2 * BEHIND_MAX;
/// Of them, behind the last read: a kernel that reads 4 MiB ahead has twice as much asked for at once, and asks in no
/// strict order.
const BEHIND_MAX: u64 = 8 * PIECE_MAX;
/// Largest request of such a reader.
pub const PIECE_MAX: u64 = 1024 * 1024;
/// A reader who stays away keeps its window; so many may do so before others have to wait for memory.
const IDLE_READERS: u64 = 16;

/// Bytes kept for a reader whose bytes are not cached, of a budget of so many.
fn window_bytes(budget_bytes: u64) -> u64 {
    (budget_bytes / IDLE_READERS / PIECE_MAX * PIECE_MAX).clamp(PIECE_MAX, WINDOW_MAX)
}

/// One object's pages in anonymous memory, of which only a window is present.
pub struct Scratch {
    file: File,
    lent: Arc<OwnedFd>,
    size: u64,
    window_bytes: u64,
    state: Mutex<State>,
}

struct State {
    /// What is kept; bytes that arrive outside it are thrown away.
    window: ByteRange,
    pages: BTreeMap<u64, Held>,
}

/// A page's share of the memory that its fill took from the budget.
type Held = Arc<MemoryHold>;

impl Scratch {
    /// An empty one for an object of `size` bytes, which takes its share of a budget of so many.
    pub fn new(size: u64, budget_bytes: u64) -> Result<Self> {
        let failed = |error: rustix::io::Errno| {
            Error::new(ErrorKind::ResourceLimit, "make room in memory", error.to_string())
                .advise("raise the limits of open files and memory")
        };
        let made = memfd_create("penstock-scratch", MemfdFlags::CLOEXEC).map_err(failed)?;
        ftruncate(&made, size).map_err(failed)?;
        let through = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&made));
        let lent = open(through, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        Ok(Self {
            file: made.into(),
            lent: Arc::new(lent),
            size,
            window_bytes: window_bytes(budget_bytes),
            state: Mutex::new(State { window: ByteRange::default(), pages: BTreeMap::new() }),
        })
    }

    /// Read-only descriptor of the memory; absent pages read as zeros, so read present ones only.
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.lent)
    }

    /// Keeps of these bytes, whole pages but at the end of the object, what the window wants; `held` accounts for them.
    pub fn fill(&self, offset: u64, data: &[Bytes], held: &Held) -> Result<()> {
        let mut state = self.state();
        let mut at = offset;
        for chunk in data {
            let whole = ByteRange::new(at, at + chunk.len() as u64);
            let kept = whole.intersect(state.window);
            let inside = |offset: u64| usize::try_from(offset - whole.start).expect("a chunk fits memory");
            if !kept.is_empty() {
                self.file
                    .write_all_at(&chunk[inside(kept.start)..inside(kept.end)], kept.start)
                    .map_err(|error| Error::new(ErrorKind::ResourceLimit, "hold bytes in memory", error.to_string()))?;
            }
            at = whole.end;
        }
        let kept = ByteRange::new(offset, at).intersect(state.window);
        state.pages.extend(kept.pages().map(|page| (page, Arc::clone(held))));
        Ok(())
    }

    /// What will be kept for a read at `offset`: the window follows the reader, and is where it was for a read inside it
    /// that does not push it on, so that reads that come out of order throw away nothing that is still to be read.
    pub fn window_at(&self, offset: u64) -> ByteRange {
        self.moved(self.state().window, offset)
    }

    /// Moves the window for a read at `offset`: whatever is outside it is forgotten.
    pub fn move_to(&self, offset: u64) {
        let mut state = self.state();
        let window = self.moved(state.window, offset);
        self.keep(&mut state, window);
    }

    /// Forgets every page outside `window`, which is of whole pages, and gives its memory back.
    pub fn keep_only(&self, window: ByteRange) {
        self.keep(&mut self.state(), window);
    }

    /// What of `range` is kept when it arrives.
    pub fn kept(&self, range: ByteRange) -> ByteRange {
        range.intersect(self.state().window)
    }

    fn moved(&self, window: ByteRange, offset: u64) -> ByteRange {
        let behind = (self.window_bytes - PIECE_MAX).min(self.window_bytes / 2);
        let lowest = offset.saturating_sub(behind) / RANDOM_UNIT * RANDOM_UNIT;
        let inside = window.start <= offset && offset < window.end;
        let start = if inside { window.start.max(lowest) } else { lowest };
        ByteRange::new(start, start.saturating_add(self.window_bytes).min(self.size).max(start))
    }

    fn keep(&self, state: &mut State, window: ByteRange) {
        state.window = window;
        let keep = window.pages();
        let dropped: Vec<u64> = state.pages.keys().copied().filter(|page| !keep.contains(page)).collect();
        for page in dropped {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A page that cannot be punched stays in memory with its hold until the reader closes.
            if fallocate(&self.file, punch, page * PAGE_SIZE, PAGE_SIZE).is_ok() {
                state.pages.remove(&page);
            }
        }
    }

    /// Contiguous present bytes from `offset`.
    pub fn present_run(&self, offset: u64) -> ByteRange {
        let pages = &self.state().pages;
        let mut page = offset / PAGE_SIZE;
        while pages.contains_key(&page) {
            page += 1;
        }
        ByteRange::new(offset, (page * PAGE_SIZE).min(self.size).max(offset))
    }

    /// Absent page runs that `range` touches.
    pub fn missing(&self, range: ByteRange) -> Vec<ByteRange> {
        let pages = &self.state().pages;
        let mut runs: Vec<ByteRange> = Vec::new();
        for page in range.pages().filter(|page| !pages.contains_key(page)) {
            let end = ((page + 1) * PAGE_SIZE).min(self.size);
            match runs.last_mut() {
                Some(last) if last.end == page * PAGE_SIZE => last.end = end,
                _ => runs.push(ByteRange::new(page * PAGE_SIZE, end)),
            }
        }
        runs
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while pages are noted")
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// `Corrupt` when a page of them is not there any more: another reader of the file moved the window.
    pub fn read(&self, range: ByteRange, out: &mut [u8]) -> Result<()> {
        let state = self.state();
        if !range.pages().all(|page| state.pages.contains_key(&page)) {
            return Err(Error::new(ErrorKind::Corrupt, "read bytes held in memory", "they were let go meanwhile"));
        }
        self.file
            .read_exact_at(out, range.start)
            .map_err(|error| Error::new(ErrorKind::Internal, "read bytes held in memory", error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn filled(scratch: &Scratch, range: ByteRange) {
        let budget = crate::budget::MemoryBudget::new(64 * MIB, penstock_types::Metrics::default());
        let held = Arc::new(budget.try_hold(range.len()).unwrap());
        let bytes = Bytes::from(vec![7; usize::try_from(range.len()).unwrap()]);
        scratch.fill(range.start, &[bytes], &held).unwrap();
    }

    #[test]
    fn reads_that_come_out_of_order_find_what_was_kept_behind_and_ahead() {
        let scratch = Scratch::new(100 * MIB, 1 << 30).unwrap();
        scratch.move_to(20 * MIB);
        assert_eq!(scratch.window_at(20 * MIB), ByteRange::new(12 * MIB, 28 * MIB));
        filled(&scratch, ByteRange::new(20 * MIB, 28 * MIB));
        for at in [21 * MIB, 20 * MIB, 13 * MIB + 5] {
            scratch.move_to(at);
            assert_eq!(scratch.kept(ByteRange::new(0, 100 * MIB)), ByteRange::new(13 * MIB, 29 * MIB), "{at}");
        }
        assert_eq!(scratch.present_run(20 * MIB).end, 28 * MIB);
        scratch.move_to(28 * MIB + 9);
        scratch.move_to(30 * MIB + 9);
        assert_eq!(scratch.window_at(24 * MIB), ByteRange::new(22 * MIB, 38 * MIB));
        assert!(scratch.present_run(20 * MIB).is_empty() && scratch.present_run(22 * MIB).end == 28 * MIB);
        assert!(scratch.read(ByteRange::new(21 * MIB, 23 * MIB), &mut vec![0; 2 << 20]).is_err(), "never zeros");
    }

    #[test]
    fn a_read_elsewhere_takes_the_window_along_and_what_arrives_late_is_thrown_away() {
        let scratch = Scratch::new(100 * MIB, 1 << 30).unwrap();
        scratch.move_to(0);
        filled(&scratch, ByteRange::new(0, MIB));
        scratch.move_to(99 * MIB);
        filled(&scratch, ByteRange::new(MIB, 2 * MIB));
        assert!(scratch.present_run(0).is_empty() && scratch.present_run(MIB).is_empty());
        assert_eq!(scratch.window_at(99 * MIB), ByteRange::new(91 * MIB, 100 * MIB));
    }

    #[test]
    fn a_small_budget_gives_a_small_window_that_still_takes_a_whole_request() {
        for (budget, before, after) in [(16, 20, 21), (32, 19, 21), (1024, 12, 28)] {
            let scratch = Scratch::new(100 * MIB, budget * MIB).unwrap();
            assert_eq!(scratch.window_at(20 * MIB), ByteRange::new(before * MIB, after * MIB), "{budget}");
        }
    }
}
