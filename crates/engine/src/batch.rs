//! Many files or ranges in one call: cached ones are copied out at once, the missing come in parallel meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream::{self, FuturesUnordered, StreamExt};
use penstock_catalog::Item;
use penstock_types::{ByteRange, Error, ErrorKind, Priority, Result, TreePath};

use crate::engine::Engine;
use crate::open::{OpenFile, OpenOptions};
use crate::pattern::ReadHint;
use crate::transfer::Store;

/// Opens under way at once in one batch.
const OPENS_AT_ONCE: usize = 96;
/// Batches above this many bytes are copied by several threads; below, starting them costs more than it saves.
const PARALLEL_COPY_BYTES: usize = 4 * 1024 * 1024;
/// Threads that copy one batch.
const COPY_THREADS: usize = 4;
/// Unknown files in one directory from which on it is listed instead of asked for one by one.
const LIST_FROM: usize = 8;
/// How often a damaged page is fetched again before the read gives up.
const REPAIR_ATTEMPTS: usize = 2;

/// A range of an open file and where it goes in the caller's memory.
pub struct BatchItem<'a> {
    /// The file.
    pub file: &'a OpenFile,
    /// Bytes wanted, inside the file.
    pub range: ByteRange,
    /// Offset in the output.
    pub at: usize,
}

/// An item with its own, exclusive piece of the output.
struct Slot<'a> {
    position: usize,
    file: &'a OpenFile,
    range: ByteRange,
    out: &'a mut [u8],
}

impl Engine {
    /// Opens many files in parallel; small ones are complete afterwards. One result per path, in order.
    pub async fn open_many(self: &Arc<Self>, paths: &[TreePath], priority: Priority) -> Vec<Result<OpenFile>> {
        let mut opened: Vec<Option<Result<OpenFile>>> =
            paths.iter().map(|path| self.open_cached(path).map(Ok)).collect();
        self.list_parents(paths, &opened).await;
        let missing: Vec<usize> = (0..paths.len()).filter(|&position| opened[position].is_none()).collect();
        let opens = missing.into_iter().map(|position| async move {
            let options = OpenOptions { priority, version: None };
            (position, self.open(&paths[position], options).await)
        });
        let mut opens = stream::iter(opens).buffer_unordered(OPENS_AT_ONCE);
        let mut refused = Vec::new();
        while let Some((position, result)) = opens.next().await {
            if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ResourceLimit) {
                refused.push(position);
            }
            opened[position] = Some(result);
        }
        // What was short because so many were opened at once is enough for one after another.
        for position in refused {
            opened[position] = Some(self.open(&paths[position], OpenOptions { priority, version: None }).await);
        }
        opened.into_iter().map(|result| result.expect("every path was opened")).collect()
    }

    /// Lists a directory once where many files of it would be asked for one by one.
    async fn list_parents(&self, paths: &[TreePath], opened: &[Option<Result<OpenFile>>]) {
        let mut unknown: std::collections::HashMap<TreePath, usize> = std::collections::HashMap::new();
        for (path, _) in paths.iter().zip(opened).filter(|(_, result)| result.is_none()) {
            if self.stat_cached(path).is_none()
                && let Some(parent) = path.parent()
            {
                *unknown.entry(parent).or_default() += 1;
            }
        }
        for (parent, count) in unknown.into_iter().filter(|(_, count)| *count >= LIST_FROM) {
            let Some((attached, inner)) = self.tree.find(&parent) else { continue };
            let mut after: Option<String> = None;
            // A listing page costs as much as one stat and may know a thousand files.
            for _ in 0..count.div_ceil(LIST_FROM) {
                let Ok(page) = attached.view.list(&inner, after.as_deref(), 1000).await else { break };
                let all_known = page.items.iter().filter(|item| matches!(item.item, Item::File { .. })).count() == 0;
                after = page.next;
                if after.is_none() || all_known {
                    break;
                }
            }
        }
    }

    /// Reads every item into its place in `out`; pieces must not overlap. Blocks; one result per item, in order.
    /// Every page served is checked against its checksum; a damaged one is fetched again.
    pub fn read_batch(&self, items: &[BatchItem<'_>], out: &mut [u8]) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = items.iter().map(|_| Ok(())).collect();
        let slots = match slots(items, out) {
            Ok(slots) => slots,
            Err(error) => return items.iter().map(|_| Err(error.clone())).collect(),
        };
        let (present, mut missing): (Vec<_>, Vec<_>) = slots.into_iter().partition(|slot| slot.file.is_complete());
        if !missing.is_empty() {
            missing.extend(present);
            for (position, result) in self.carrier.runtime.block_on(fetch_and_copy(missing)) {
                results[position] = result;
            }
            return results;
        }
        for (position, slot) in copy_all(present) {
            results[position] = match slot {
                Ok(()) => Ok(()),
                Err((slot, _)) => self.carrier.runtime.block_on(fetch_slot(slot)).1,
            };
        }
        results
    }
}

/// Cuts the output into the items' exclusive pieces.
fn slots<'a>(items: &[BatchItem<'a>], out: &'a mut [u8]) -> Result<Vec<Slot<'a>>> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&position| items[position].at);
    let (mut rest, mut consumed) = (out, 0);
    let mut slots = Vec::with_capacity(items.len());
    for position in order {
        let item = &items[position];
        let length = usize::try_from(item.range.len()).unwrap_or(usize::MAX);
        let fits = item.at >= consumed && item.at.saturating_add(length) <= consumed + rest.len();
        if !fits || item.range.end > item.file.size() {
            return Err(Error::new(ErrorKind::InvalidInput, "read a batch", "its pieces overlap or pass the end"));
        }
        let (_, tail) = rest.split_at_mut(item.at - consumed);
        let (piece, tail) = tail.split_at_mut(length);
        (rest, consumed) = (tail, item.at + length);
        slots.push(Slot { position, file: item.file, range: item.range, out: piece });
    }
    Ok(slots)
}

type Copied<'a> = (usize, std::result::Result<(), (Slot<'a>, Error)>);

/// Copies complete files out, with several threads where that pays.
fn copy_all(slots: Vec<Slot<'_>>) -> Vec<Copied<'_>> {
    let bytes: usize = slots.iter().map(|slot| slot.out.len()).sum();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(COPY_THREADS).min(slots.len());
    if bytes < PARALLEL_COPY_BYTES || threads < 2 {
        return slots.into_iter().map(copy).collect();
    }
    let cells: Vec<_> = slots.into_iter().map(|slot| std::sync::Mutex::new(Some(slot))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut copied = Vec::new();
        while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
            let slot = cell.lock().expect("no panic while slots are taken").take().expect("each slot is taken once");
            copied.push(copy(slot));
        }
        copied
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut copied = work();
        for other in others {
            copied.extend(other.join().expect("copying does not panic"));
        }
        copied
    })
}

fn copy(slot: Slot<'_>) -> Copied<'_> {
    let position = slot.position;
    let copied = match slot.file.store() {
        Store::Cached(extent) => extent.read_verified(slot.range, slot.out),
        Store::Staged(file) => file.read(slot.range, slot.out),
        Store::Scratch(_) => Err(Error::new(ErrorKind::NoSpace, "copy cached bytes", "they are not cached")),
    };
    match copied {
        Ok(()) => {
            let metrics = &slot.file.engine.parts.metrics;
            metrics.read_bytes.inc_by(slot.range.len());
            metrics.cache_hit_bytes.inc_by(slot.range.len());
            (position, Ok(()))
        }
        Err(error) => (position, Err((slot, error))),
    }
}

async fn fetch_and_copy(slots: Vec<Slot<'_>>) -> Vec<(usize, Result<()>)> {
    slots.into_iter().map(fetch_slot).collect::<FuturesUnordered<_>>().collect().await
}

/// Brings one item's bytes, a stretch at a time, and copies each stretch while it is certainly present.
async fn fetch_slot(slot: Slot<'_>) -> (usize, Result<()>) {
    let Slot { position, file, range, out } = slot;
    let hint = if range.len() == file.size() { ReadHint::Whole } else { ReadHint::Random };
    let (mut at, mut repairs) = (range.start, 0);
    while at < range.end {
        let left = ByteRange::new(at, range.end);
        let ready = match file.ensure(left, hint).await {
            Ok(ready) => ready.range.intersect(left),
            Err(error) => return (position, Err(error)),
        };
        let from = usize::try_from(at - range.start).expect("a batch fits memory");
        let to = from + usize::try_from(ready.len()).expect("a batch fits memory");
        match file.copy_present(ready, &mut out[from..to]) {
            Ok(()) => at = ready.end,
            Err(error) if error.kind() == ErrorKind::Corrupt && repairs < REPAIR_ATTEMPTS => repairs += 1,
            Err(error) => return (position, Err(error)),
        }
    }
    (position, Ok(()))
}

impl OpenFile {
    /// Copies bytes that are present, checked where they come from the disk.
    pub(crate) fn copy_present(&self, range: ByteRange, out: &mut [u8]) -> Result<()> {
        match self.store() {
            Store::Cached(extent) => tokio::task::block_in_place(|| extent.read_verified(range, out)),
            Store::Scratch(scratch) => scratch.read(range, out),
            Store::Staged(file) => file.read(range, out),
        }
    }
}
