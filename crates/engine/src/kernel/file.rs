//! An open file as the kernel reads it.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use penstock_types::{ByteRange, Error, ErrorKind, NodeFile, Result};
use rustix::fs::{Advice, fadvise};

use crate::open::{OpenFile, cannot_cache};
use crate::pattern::ReadHint;
use crate::transfer::Store;

/// A reader of present bytes moves what is fetched ahead on once in so many bytes.
const STEP: u64 = 1024 * 1024;
/// The largest folio of a page cache.
const FOLIO_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// Bytes that are not cached are kept in memory for a reader who comes back within so long.
const IDLE_MS_MAX: u64 = 2000;
/// How often a damaged page is fetched again before the read gives up.
const REPAIR_ATTEMPTS: usize = 2;

/// A file that a mount has open.
pub struct MountedFile {
    file: Arc<OpenFile>,
    /// Whether the kernel keeps the pages that it is given: those of the cache file would be a second copy.
    kept: bool,
    /// The step of the read that moved the fetching on last.
    step: AtomicU64,
    /// When it was read last, milliseconds on the engine's clock.
    used_ms: AtomicU64,
    /// Readers of bytes that are not cached share one window: one after another.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl MountedFile {
    pub fn new(file: OpenFile, kept: bool) -> Arc<Self> {
        let (step, used_ms, turn) = (AtomicU64::new(u64::MAX), AtomicU64::new(now_ms(&file)), Default::default());
        Arc::new(Self { file: Arc::new(file), kept, step, used_ms, turn })
    }

    fn note_use(&self, store: &Store) {
        if matches!(store, Store::Scratch(_)) {
            self.used_ms.store(now_ms(&self.file), Ordering::Relaxed);
        }
    }

    /// Has what probably comes next under way though nobody waits for it.
    fn move_on(&self, range: ByteRange) {
        if self.step.swap(range.start / STEP, Ordering::Relaxed) == range.start / STEP {
            return;
        }
        let file = Arc::clone(&self.file);
        let mut turn = None;
        if file.extent().is_none() {
            turn = Arc::clone(&self.turn).try_lock_owned().ok();
            // Whoever has the turn moves on by itself.
            if turn.is_none() {
                return;
            }
        }
        self.file.engine.carrier.runtime.spawn(async move {
            // A window that went on meanwhile must not come back for what nobody waits for.
            if turn.is_none() || file.store().missing(range).is_empty() {
                // Whoever reads what is missing gets the error of their own wait.
                let _ = file.ensure_stored(range, ReadHint::Auto).await;
            }
            drop(turn);
        });
    }

    /// Whether a read without a turn, which failed so, is to be tried again: its bytes are not cached by now.
    fn becomes_uncached(&self, error: &Error) -> Result<bool> {
        if cannot_cache(error) {
            self.file.leave_cache()?;
        }
        // Several reads met a full cache at the same time, and moved the window away from each other.
        Ok(self.file.extent().is_none() && (cannot_cache(error) || error.kind() == ErrorKind::Corrupt))
    }
}

impl NodeFile for MountedFile {
    fn read_now(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        let range = ByteRange::new(offset, offset.saturating_add(out.len() as u64));
        let range = range.intersect(ByteRange::new(0, self.file.size()));
        if range.is_empty() {
            return Ok(Some(0));
        }
        let store = self.file.store();
        self.note_use(&store);
        if store.present_run(range.start).end < range.end {
            return Ok(None);
        }
        let length = usize::try_from(range.len()).expect("a read fits its buffer");
        let read = match &store {
            Store::Cached(extent) => extent.read_verified(range, &mut out[..length]),
            Store::Scratch(scratch) => scratch.read(range, &mut out[..length]),
            Store::Staged(file) => file.read(range, &mut out[..length]),
        };
        match read {
            Ok(()) => {
                if !store.is_complete() {
                    self.move_on(range);
                } else if self.kept {
                    // Advice: where it is not taken, memory is used twice until somebody needs it. Pages go by whole
                    // folios, of which some began before what is read now.
                    let from = range.start.saturating_sub(FOLIO_BYTES_MAX);
                    let length = NonZeroU64::new(range.end - from);
                    let _ = fadvise(self.file.descriptor(), from, length, Advice::DontNeed);
                }
                Ok(Some(length))
            }
            // Damaged pages were dropped, the extent was evicted, the window moved: they are brought again.
            Err(_) => Ok(None),
        }
    }

    fn bring(self: Arc<Self>, range: ByteRange) -> BoxFuture<'static, Result<Vec<u8>>> {
        async move {
            let range = range.intersect(ByteRange::new(0, self.file.size()));
            // Bringing told what this reader does; going on within what was brought says nothing new. Two pages of one
            // record would look like the start of a long run.
            self.step.store(range.start / STEP, Ordering::Relaxed);
            let mut out = vec![0; usize::try_from(range.len()).expect("a read fits memory")];
            let (mut at, mut repairs) = (range.start, 0);
            while at < range.end {
                let left = ByteRange::new(at, range.end);
                let turn = if self.file.extent().is_none() { Some(self.turn.lock().await) } else { None };
                let ready = match self.file.ensure_stored(left, ReadHint::Auto).await {
                    Err(error) if turn.is_none() && self.becomes_uncached(&error)? => continue,
                    ensured => ensured?.range.intersect(left),
                };
                let from = usize::try_from(at - range.start).expect("a read fits memory");
                let to = from + usize::try_from(ready.len()).expect("a read fits memory");
                match self.file.copy_present(ready, &mut out[from..to]) {
                    Ok(()) => at = ready.end,
                    Err(error) if error.kind() == ErrorKind::Corrupt && repairs < REPAIR_ATTEMPTS => repairs += 1,
                    Err(error) => return Err(error),
                }
            }
            self.note_use(&self.file.store());
            Ok(out)
        }
        .boxed()
    }

    fn open_again(&self) -> bool {
        self.file.open_again()
    }

    fn is_evicted(&self) -> bool {
        match self.file.extent() {
            Some(extent) => extent.is_gone(),
            // What a reader who stays away has in memory, others need.
            None => {
                let idle_ms = now_ms(&self.file).saturating_sub(self.used_ms.load(Ordering::Relaxed));
                idle_ms > IDLE_MS_MAX && self.turn.try_lock().is_ok()
            }
        }
    }
}

fn now_ms(file: &OpenFile) -> u64 {
    u64::try_from(file.engine.parts.clock.monotonic().as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Debug for MountedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MountedFile({})", self.file.path())
    }
}
