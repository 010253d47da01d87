//! What jobs and operators do to the cache: bring, drop, check, explain; and the housekeeping of every second.

use std::sync::Arc;

use penstock_cache::{CacheEntry, Extent};
use penstock_types::{ByteRange, Error, ErrorKind, ObjectId, PAGE_SIZE, Priority, Result, TreePath};
use serde::{Deserialize, Serialize};

use crate::courtesy::{JOB_FILE_BYTES, JOB_STEP};
use crate::engine::Engine;
use crate::open::{OpenFile, OpenOptions};
use crate::pattern::ReadHint;
use crate::write::is_staged;

/// Bytes checked in one step: bounds the memory of a verify.
const VERIFY_STEP: u64 = 4 * 1024 * 1024;
/// Most pages that one second of housekeeping scrubs, so that a late scrub does not take the disk from readers.
const SCRUB_PAGES_MAX: u64 = 1024;

/// What a prefetch did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Prefetched {
    /// Size of the file, bytes.
    pub size: u64,
    /// How many of them were not in the cache before.
    pub fetched_bytes: u64,
}

/// What a verify found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Verified {
    /// Pages that were checked: those in the cache.
    pub pages: u64,
    /// Pages whose checksum did not match.
    pub bad_pages: u64,
    /// Bad pages that were fetched again and match now.
    pub repaired: u64,
}

/// What a prune did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pruned {
    /// Bytes that came free.
    pub freed_bytes: u64,
    /// Bytes that are still held.
    pub remaining_bytes: u64,
}

/// Why a path is or is not served from the cache.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Why {
    /// The path.
    pub path: String,
    /// Path of the attachment it belongs to.
    pub attachment: String,
    /// The object in its source.
    pub object: String,
    /// Size, bytes.
    pub size: u64,
    /// Version of the object that an open would pin now.
    pub version: String,
    /// Bytes of that version in the cache.
    pub cached_bytes: u64,
    /// Whether all of it is there.
    pub complete: bool,
    /// Whether a pin keeps it.
    pub pinned: bool,
    /// One sentence for a person.
    pub reason: String,
}

impl Engine {
    /// Brings a whole file into the cache. A file that cannot be cached is `NoSpace`.
    pub async fn prefetch(self: &Arc<Self>, path: &TreePath, priority: Priority) -> Result<Prefetched> {
        let options = OpenOptions { priority, version: None };
        let mut again = false;
        loop {
            let file =
                self.pin(path, &options, again).await.map_err(|error| error.during(format!("preload {path}")))?;
            match file.bring_all().await {
                Err(error) if error.kind() == ErrorKind::StaleVersion && !again => again = true,
                outcome => return outcome.map_err(|error| error.during(format!("preload {path}"))),
            }
        }
    }

    /// Drops the cached bytes of the version that `path` has now. Returns the bytes freed, 0 where none were cached.
    pub async fn evict(self: &Arc<Self>, path: &TreePath) -> Result<u64> {
        let object = self.object_at(path).await.map_err(|error| error.during(format!("evict {path}")))?;
        match self.cache.peek(&object) {
            Some(_) => self.cache.evict(&object),
            None => Ok(0),
        }
    }

    /// Checks every cached page of `path` against its checksum and fetches bad ones again.
    pub async fn verify(self: &Arc<Self>, path: &TreePath) -> Result<Verified> {
        let object = self.object_at(path).await.map_err(|error| error.during(format!("verify {path}")))?;
        let Some(extent) = self.cache.peek(&object) else { return Ok(Verified::default()) };
        let mut verified = Verified::default();
        let mut buffer = vec![0; usize::try_from(VERIFY_STEP.min(extent.size())).expect("a step fits memory")];
        let present = present_runs(&extent);
        for run in &present {
            let out = &mut buffer[..usize::try_from(run.len()).expect("a step fits memory")];
            let checked = tokio::task::block_in_place(|| extent.read_verified(*run, out));
            let bad = match checked {
                Ok(()) => Vec::new(),
                // A file that is damaged as a whole has left the cache with all of its pages.
                Err(error) if error.kind() == ErrorKind::Corrupt && extent.is_gone() => present.clone(),
                Err(error) if error.kind() == ErrorKind::Corrupt => extent.missing(*run),
                // Evicted meanwhile: nothing of it is cached any more.
                Err(_) if extent.is_gone() => break,
                Err(error) => return Err(error.during(format!("verify {path}"))),
            };
            verified.pages += run.pages().count() as u64;
            if !bad.is_empty() {
                let pages: u64 = bad.iter().map(|range| range.pages().count() as u64).sum();
                verified.bad_pages += pages;
                verified.repaired += self.repair(path, &bad).await.map_or(0, |()| pages);
            }
            if extent.is_gone() {
                break;
            }
        }
        Ok(verified)
    }

    /// Why `path` is, or is not, served from the cache; with `known_only`, without a question to the source.
    ///
    /// # Errors
    /// `NotFound`, also where nothing is known; what the source says when it is asked.
    pub async fn why(self: &Arc<Self>, path: &TreePath, known_only: bool) -> Result<Why> {
        let file = match known_only {
            true => self.known_for_look(path),
            false => self.pin_for_look(path).await,
        };
        let (attached, object, size) = file.map_err(|error| error.during(format!("explain {path}")))?;
        let bytes = self.bytes_of(&attached, &object);
        let extent = self.cache.peek(&bytes);
        let complete = self.is_complete(&attached, &bytes);
        let absent =
            |extent: &Arc<Extent>| -> u64 { extent.missing(ByteRange::new(0, size)).iter().map(ByteRange::len).sum() };
        let staged = is_staged(&object.version);
        let cached_bytes = if self.is_in_stage(&attached, &bytes) {
            size
        } else {
            extent.as_ref().map_or(0, |extent| size - absent(extent))
        };
        let pinned = self.pins.of(&object);
        let is_pinned = pinned.is_some();
        let reason = match (complete, cached_bytes) {
            _ if staged => {
                "it was written here and is not in the source yet: penstock persist waits for that".to_string()
            }
            (true, _) if is_pinned => format!("all of it is cached and {}", pinned.unwrap_or_default()),
            (true, _) => "all of it is cached; eviction may drop it when space is needed".to_string(),
            (false, 0) => "this version was never read, or was evicted".to_string(),
            (false, bytes) => format!("{bytes} of {size} bytes were read so far; the rest comes when it is read"),
        };
        Ok(Why {
            path: path.to_string(),
            attachment: attached.path.to_string(),
            object: attached.describe(&object.key),
            size,
            version: object.version.to_string(),
            cached_bytes,
            complete,
            pinned: is_pinned,
            reason,
        })
    }

    /// Cached extents by number, from `after` on.
    pub fn cache_entries(&self, after: Option<u64>, limit: usize) -> Vec<CacheEntry> {
        self.cache.entries(after, limit)
    }

    /// Evicts until at most `target_bytes` are cached; what is pinned or in use stays. Blocks on the disk.
    ///
    /// # Errors
    /// `Disk` when a file cannot be unlinked.
    pub fn prune(&self, target_bytes: u64) -> Result<Pruned> {
        let freed_bytes = self.cache.shrink(target_bytes).map_err(|error| error.during("prune the cache"))?;
        let remaining_bytes = self.cache.usage().tiers.iter().map(|tier| tier.used_bytes).sum();
        Ok(Pruned { freed_bytes, remaining_bytes })
    }

    /// Housekeeping; the node calls it about once a second.
    pub async fn tick(self: &Arc<Self>) {
        let engine = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            if let Err(error) = engine.cache.flush() {
                tracing::warn!(code = error.kind().code(), %error, "cache index not flushed");
            }
            engine.cache.make_durable_step();
            engine.cache.scrub_step(SCRUB_PAGES_MAX);
            engine.stage.expire(engine.catalog.now());
        });
        if let Err(error) = done.await {
            tracing::error!(%error, "housekeeping ended early");
        }
    }

    async fn object_at(self: &Arc<Self>, path: &TreePath) -> Result<ObjectId> {
        Ok(self.pin_for_look(path).await?.1)
    }

    async fn repair(self: &Arc<Self>, path: &TreePath, bad: &[ByteRange]) -> Result<()> {
        let file = self.pin(path, &OpenOptions { priority: Priority::Background, version: None }, false).await?;
        for range in bad {
            let mut at = range.start;
            while at < range.end {
                at = file.ensure(ByteRange::new(at, range.end), ReadHint::Random).await?.range.end.max(at + 1);
            }
        }
        Ok(())
    }
}

impl OpenFile {
    async fn bring_all(&self) -> Result<Prefetched> {
        let size = self.size();
        let absent = |file: &OpenFile| -> u64 { file.missing_bytes() };
        let before = absent(self);
        if self.extent().is_none() && !self.is_complete() {
            return Err(self.not_cached("the cache cannot take it", "raise cache.size, or read it without preloading"));
        }
        let courtesy = &self.engine.carrier.courtesy;
        let (mut at, mut whole) = (0, None);
        while !self.is_complete() && at < size {
            let step = ByteRange::new(at, size.min(at + JOB_STEP));
            // Who asked for all of it has that under way until the end, whoever begins to wait meanwhile.
            let _step = match (&whole, courtesy.is_waited()) {
                (Some(_), _) => None,
                (None, true) => Some(courtesy.turn(step.len()).await),
                (None, false) => {
                    whole = Some(courtesy.turn((size - at).min(JOB_FILE_BYTES)).await);
                    None
                }
            };
            let ready = match whole.is_none() || courtesy.is_waited() {
                true => self.ensure(step, ReadHint::Random).await?,
                false => self.ensure(ByteRange::new(at, size), ReadHint::Whole).await?,
            };
            if self.extent().is_none() {
                return Err(self.not_cached("the cache is full", "raise cache.size, evict or unpin something"));
            }
            at = ready.range.end;
        }
        Ok(Prefetched { size, fetched_bytes: before - absent(self).min(before) })
    }

    /// Why nothing of it is cached: what a disk says, where one fails; else `reason` and `advice`.
    fn not_cached(&self, reason: &str, advice: &str) -> Error {
        let usage = self.engine.cache.usage();
        let failed = usage.tiers.iter().find_map(|tier| tier.reason.as_ref());
        let below = usage.tiers.iter().all(|tier| tier.free_bytes + tier.used_bytes < tier.floor_bytes + PAGE_SIZE);
        let (reason, advice) = match failed {
            Some(failed) => (
                format!("the cache disk takes nothing: {failed}"),
                "free or repair the disk (penstock doctor), then: penstock job retry",
            ),
            None if below => (
                "the cache disk has no more free space than cache.free_space_floor leaves to others".to_owned(),
                "free space, then: penstock job retry",
            ),
            None => (reason.to_owned(), advice),
        };
        Error::new(ErrorKind::NoSpace, format!("preload {}", self.path()), reason)
            .advise(advice)
            .fact("size", self.size())
    }
}

/// What is present of an extent, in steps of a verify.
fn present_runs(extent: &Extent) -> Vec<ByteRange> {
    let (mut runs, mut at) = (Vec::new(), 0);
    while at < extent.size() {
        let run = extent.present_run(at).intersect(ByteRange::new(at, at + VERIFY_STEP));
        if run.is_empty() {
            at = (at / PAGE_SIZE + 1) * PAGE_SIZE;
        } else {
            at = run.end;
            runs.push(run);
        }
    }
    runs
}
