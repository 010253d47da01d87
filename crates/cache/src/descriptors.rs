//! How many extent files are open: a bounded clock of those that are kept open for the next read.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::Extent;

/// Most files kept open however high the limit of the process is: an open file costs the kernel about a kilobyte.
const MOST: u64 = 8_192;
/// Files kept open however low it is.
const FEWEST: u64 = 16;
/// So many extents are asked to close their files for each file that is opened or given back. Where nearly all are lent
/// some more files stay open than wanted, and nobody asks all of them again and again.
const ASKS: usize = 64;

/// A file that is kept open. The count of open files falls when it is dropped.
pub struct KeptFile {
    pub file: Arc<OwnedFd>,
    open: Arc<AtomicUsize>,
}

impl KeptFile {
    pub fn file(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.file)
    }
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The files that are kept open.
pub struct Descriptors {
    limit: usize,
    open: Arc<AtomicUsize>,
    /// Extents that opened a file, in the order in which they are asked to close it.
    ring: Mutex<VecDeque<Weak<Extent>>>,
}

impl Descriptors {
    /// For a process that may hold `limit` descriptors: at most half of them.
    pub fn new(limit: u64) -> Self {
        let limit = (limit / 2).min(MOST).max(FEWEST.min(limit / 2));
        Self { limit: limit as usize, open: Arc::default(), ring: Mutex::default() }
    }

    /// Keeps a file of `extent` open, closing others that were not used lately.
    pub fn keep(&self, extent: &Weak<Extent>, file: Arc<OwnedFd>) -> KeptFile {
        self.open.fetch_add(1, Ordering::AcqRel);
        let kept = KeptFile { file, open: Arc::clone(&self.open) };
        self.ring().push_back(Weak::clone(extent));
        self.shrink(self.limit, ASKS);
        kept
    }

    /// Closes what was only open because it was lent, where that made too many.
    pub fn settle(&self) {
        if self.open() > self.limit {
            self.shrink(self.limit, ASKS);
        }
    }

    /// Files that are kept open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Closes half of them: the process has no descriptor left.
    pub fn relieve(&self) {
        let all_twice = 2 * self.ring().len();
        self.shrink(self.open() / 2, all_twice);
    }

    /// Closes files until at most `most` are open, or so many extents were asked: one that was used lately stays the
    /// first time, one that is lent stays.
    fn shrink(&self, most: usize, mut asks: usize) {
        while self.open() > most && asks > 0 {
            asks -= 1;
            let Some(next) = self.ring().pop_front() else { return };
            let Some(extent) = next.upgrade() else { continue };
            if !extent.close_files() {
                self.ring().push_back(next);
            }
        }
    }

    fn ring(&self) -> std::sync::MutexGuard<'_, VecDeque<Weak<Extent>>> {
        self.ring.lock().expect("no panic while the ring of open files is held")
    }
}
