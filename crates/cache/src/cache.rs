//! The cache as a whole: which extents are known, in which tier, and what leaves when room is wanted.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use penstock_types::{CacheConfig, Clock, Error, ErrorKind, Metrics, ObjectId, Result};

use crate::tier::Tier;
use crate::usage::{CacheEntry, CacheUsage, PinRule, ScrubReport, TierUsage};
use crate::{Disk, Extent};

/// What a cache is made of.
#[derive(Clone)]
pub struct CacheParts {
    /// Tiers and limits.
    pub config: CacheConfig,
    /// Where the index lives.
    pub state_directory: PathBuf,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// File calls.
    pub disk: Arc<dyn Disk>,
    /// Seed of what is decided by chance.
    pub seed: u64,
}

/// The cache of a node.
pub struct Cache {
    me: Weak<Cache>,
    parts: CacheParts,
    tiers: Vec<Arc<Tier>>,
    live: RwLock<HashMap<ObjectId, Arc<Extent>>>,
    queue: Mutex<VecDeque<Arc<Extent>>>,
    pins: RwLock<Option<PinRule>>,
    next_number: AtomicU64,
}

impl Cache {
    /// Opens the cache; makes what is missing. Takes the same time whatever is in it.
    ///
    /// # Errors
    /// `InvalidInput` for a directory that cannot hold a cache, `Busy` when another node has it, `Disk`.
    pub fn open(parts: CacheParts) -> Result<Arc<Self>> {
        let floor = parts.config.free_space_floor;
        let mut tiers = Vec::new();
        for (position, tier) in parts.config.tiers.iter().enumerate() {
            let made = parts.disk.create_directory(&tier.directory);
            made.map_err(|error| crate::tier::disk_error("make", &tier.directory, &error))?;
            let config = (tier.directory.clone(), tier.size_bytes);
            tiers.push(Arc::new(Tier::new(position, config, floor, &parts)));
        }
        Ok(Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            tiers,
            live: RwLock::default(),
            queue: Mutex::default(),
            pins: RwLock::default(),
            next_number: AtomicU64::new(1),
            parts,
        }))
    }

    /// The extent of an object version, if there is one; counts as use.
    pub fn get(&self, id: &ObjectId) -> Option<Arc<Extent>> {
        let extent = self.live.read().expect(LIVE).get(id).cloned()?;
        extent.last_use_ms.store(self.parts.clock.wall_ms(), Ordering::Relaxed);
        Some(extent)
    }

    /// The extent of an object version, made if there is none.
    ///
    /// # Errors
    /// `NoSpace` when the object fits into no tier or no tier takes data now.
    pub fn get_or_create(&self, id: &ObjectId, size: u64) -> Result<Arc<Extent>> {
        if let Some(extent) = self.get(id) {
            return Ok(extent);
        }
        let tier = self.choose_tier(id, size)?;
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let extent = Arc::new(Extent::new(number, id.clone(), size, tier, Weak::clone(&self.me)));
        extent.last_use_ms.store(self.parts.clock.wall_ms(), Ordering::Relaxed);
        let mut live = self.live.write().expect(LIVE);
        let known = live.entry(id.clone()).or_insert_with(|| Arc::clone(&extent));
        if Arc::ptr_eq(known, &extent) {
            self.queue.lock().expect(QUEUE).push_back(Arc::clone(&extent));
            self.parts.metrics.cache_extents.inc();
        }
        Ok(Arc::clone(known))
    }

    /// Takes an object version out of the cache; the bytes that came free at once. What is lent stays valid and
    /// counted until its last lease ends.
    ///
    /// # Errors
    /// `NotFound` when it is not cached, `Disk` when its file cannot be unlinked.
    pub fn evict(&self, id: &ObjectId) -> Result<u64> {
        let extent = self.live.read().expect(LIVE).get(id).cloned();
        let Some(extent) = extent else {
            return Err(Error::new(ErrorKind::NotFound, format!("evict {} {}", id.source, id.key), "it is not cached"));
        };
        Ok(self.remove(&extent, true).unwrap_or(0))
    }

    /// Drops a damaged extent: unlinks and forgets it. Who has it lent keeps it.
    pub fn retire(&self, extent: &Arc<Extent>) {
        self.remove(extent, true);
    }

    /// Sets which objects are never evicted to make room.
    pub fn set_pins(&self, pins: PinRule) {
        *self.pins.write().expect(LIVE) = Some(pins);
    }

    /// Sizes, bytes and health.
    pub fn usage(&self) -> CacheUsage {
        let tiers = self.tiers.iter().map(|tier| {
            let (free_bytes, floor_bytes) = tier.free_and_floor();
            TierUsage {
                directory: tier.directory.clone(),
                size_bytes: tier.size_bytes,
                used_bytes: tier.used(),
                lent_unlinked_bytes: tier.lent_unlinked(),
                free_bytes,
                floor_bytes,
                healthy: tier.failure().is_none(),
                reason: tier.failure(),
            }
        });
        CacheUsage {
            tiers: tiers.collect(),
            extents: self.live.read().expect(LIVE).len() as u64,
            index_healthy: true,
            index_reason: None,
        }
    }

    /// Known extents in order of their number, after `after`, at most `limit`.
    pub fn entries(&self, after: Option<u64>, limit: usize) -> Vec<CacheEntry> {
        let mut extents: Vec<_> = self.live.read().expect(LIVE).values().cloned().collect();
        extents.retain(|extent| after.is_none_or(|after| extent.number > after));
        extents.sort_by_key(|extent| extent.number);
        extents.truncate(limit);
        extents.iter().map(|extent| self.entry(extent)).collect()
    }

    /// Checks pages that are due, at most `max_pages` of them.
    pub fn scrub_step(&self, max_pages: u64) -> ScrubReport {
        let _ = max_pages;
        ScrubReport::default()
    }

    /// Writes what changed to the index.
    ///
    /// # Errors
    /// `Disk` or `NoSpace` when the index cannot be written; it is tried again by the next call.
    pub fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// Makes some complete, quiet extents durable: their data is synced, then they are marked.
    pub fn make_durable_step(&self) {}

    /// Flushes for the last time.
    pub fn close(&self) {}

    /// Takes `bytes` of a tier's budget for `wanted`, evicting others where it must.
    pub(crate) fn reserve(&self, tier: &Arc<Tier>, bytes: u64, wanted: &Extent) -> Result<()> {
        if let Some(reason) = tier.refusal() {
            return Err(Error::new(ErrorKind::NoSpace, format!("cache {}", wanted.id().key), reason));
        }
        let mut tries = self.queue.lock().expect(QUEUE).len();
        loop {
            if tier.shortfall(bytes) == 0 && tier.try_reserve(bytes) {
                return Ok(());
            }
            let victim = self.queue.lock().expect(QUEUE).pop_front();
            let Some(victim) = victim.filter(|_| tries > 0) else {
                let reason = "the tier is full of what is lent, pinned or being filled";
                return Err(Error::new(ErrorKind::NoSpace, format!("cache {}", wanted.id().key), reason));
            };
            tries -= 1;
            let keep =
                victim.number == wanted.number || self.is_pinned(victim.id()) || victim.tier.position != tier.position;
            if keep || self.remove(&victim, false).is_none() {
                self.queue.lock().expect(QUEUE).push_back(victim);
            }
        }
    }

    fn remove(&self, extent: &Arc<Extent>, force: bool) -> Option<u64> {
        let freed = extent.leave(force)?;
        let mut live = self.live.write().expect(LIVE);
        if live.get(extent.id()).is_some_and(|known| Arc::ptr_eq(known, extent)) {
            live.remove(extent.id());
            self.parts.metrics.cache_extents.dec();
        }
        drop(live);
        let path = extent.tier.path_of(extent.number);
        if let Err(error) = self.parts.disk.remove(&path) {
            tracing::debug!(%error, path = %path.display(), "unlink");
        }
        self.parts.metrics.cache_evicted_extents.inc();
        self.parts.metrics.cache_evicted_bytes.inc_by(freed);
        Some(freed)
    }

    fn choose_tier(&self, id: &ObjectId, size: u64) -> Result<Arc<Tier>> {
        let fitting = || self.tiers.iter().filter(|tier| tier.size_bytes >= size && tier.refusal().is_none());
        let roomy = fitting().find(|tier| tier.used() + size <= tier.size_bytes && tier.shortfall(size) == 0);
        roomy.or_else(|| fitting().last()).cloned().ok_or_else(|| {
            let reason = "it fits into no tier that takes data";
            Error::new(ErrorKind::NoSpace, format!("cache {} {}", id.source, id.key), reason).fact("size", size)
        })
    }

    fn is_pinned(&self, id: &ObjectId) -> bool {
        let rule = self.pins.read().expect(LIVE).clone();
        rule.is_some_and(|rule| rule(id))
    }

    fn entry(&self, extent: &Extent) -> CacheEntry {
        let id = extent.id();
        CacheEntry {
            number: extent.number,
            source: id.source.clone(),
            key: id.key.to_string(),
            version: id.version.clone(),
            id: id.clone(),
            size: extent.size(),
            present_bytes: extent.map.present_bytes(),
            complete: extent.is_complete(),
            pinned: self.is_pinned(id),
            leases: extent.leases(),
            tier: extent.tier.directory.clone(),
            last_use_ms: extent.last_use_ms.load(Ordering::Relaxed),
        }
    }
}

const LIVE: &str = "no panic while the known extents are held";
const QUEUE: &str = "no panic while the queue is held";
