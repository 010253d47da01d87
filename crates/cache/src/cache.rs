//! The cache as a whole: which extents are known and where a new one goes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use penstock_types::{CacheConfig, Clock, Disk, Error, ErrorKind, Metrics, ObjectId, Result};

use crate::accounts::BLOCK;
use crate::care::{Care, Loading};
use crate::descriptors::Descriptors;
use crate::extent::Extent;
use crate::flush::Stored;
use crate::index::{Index, IndexedStripes, Record, ScrubRow, object_hash};
use crate::live::Live;
use crate::page_map::PageMap;
use crate::tier::Tier;
use crate::usage::{CacheEntry, CacheUsage, PinRule, TierUsage};

/// Times that looking an extent up in the index is begun anew because it may have left meanwhile.
const MAX_LOOKUPS: usize = 8;

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
///
/// Locks, each held for moments and never across I/O (but `stored` and `care`, which only serialize flushes and care): `live`,
/// the queues and the condition of a tier, `pending`, the state of an extent. Under `live` an extent's state may be
/// asked; no other two are held together.
pub struct Cache {
    pub(crate) me: Weak<Cache>,
    pub(crate) parts: CacheParts,
    pub(crate) tiers: Vec<Arc<Tier>>,
    pub(crate) index: Arc<Index>,
    pub(crate) descriptors: Descriptors,
    /// The present boot of the machine.
    pub(crate) boot: u64,
    /// Extents that have a file.
    pub(crate) extents: AtomicU64,
    pub(crate) stored: Mutex<Stored>,
    pub(crate) care: Mutex<Care>,
    pub(crate) pending: Mutex<Pending>,
    pub(crate) next_number: AtomicU64,
    /// Numbers below it are stored as used.
    pub(crate) number_limit: AtomicU64,
    /// Set by `close`: from then on no file is made, opened or unlinked, for they may be another process's.
    pub(crate) closed: AtomicBool,
    /// Whether the files that an earlier process left were dealt with.
    pub(crate) clean: AtomicBool,
    /// Held while the cache is open, so that no other process uses its directories.
    pub(crate) locks: Mutex<Vec<OwnedFd>>,
    pub(crate) loading: Loading,
    live: RwLock<Live>,
    pins: RwLock<Option<PinRule>>,
    random: Mutex<fastrand::Rng>,
}

/// What the index has not been told yet.
#[derive(Default)]
pub struct Pending {
    /// Extents that changed.
    pub changed: HashSet<u64>,
    /// Extents that left, but may still be in the index.
    pub removed: HashMap<u64, Arc<Extent>>,
    /// Rows that belong to no extent any more.
    pub dead_rows: Vec<DeadRow>,
    /// Extents that are forgotten, but whose file could not be unlinked; their bytes count until it is.
    pub doomed: Vec<Arc<Extent>>,
    /// Complete extents that wait to be made durable.
    pub undurable: VecDeque<u64>,
    /// How far the scrub is.
    pub scrub: ScrubRow,
}

/// A row of the index that is to be removed, and what it is charged with where that is known.
pub struct DeadRow {
    pub number: u64,
    pub object: u64,
    pub charge: Option<(u32, u64)>,
}

/// What [`Cache::open`] has found.
pub struct Opened {
    pub parts: CacheParts,
    pub tiers: Vec<Arc<Tier>>,
    pub index: Arc<Index>,
    pub locks: Vec<OwnedFd>,
    pub boot: u64,
    pub stored: Stored,
    pub care: Care,
}

impl Cache {
    /// Opens the cache; makes what is missing. Takes the same time whatever is in it: nothing is scanned.
    ///
    /// # Errors
    /// `InvalidInput` for a directory that cannot hold a cache, `Busy` when another node has it, `Disk` or `NoSpace`
    /// when the index cannot be opened. A tier whose disk fails does not fail the open: it is unhealthy.
    pub fn open(parts: CacheParts) -> Result<Arc<Self>> {
        let opened = crate::open::open(parts)?;
        let extents = opened.index.count();
        opened.parts.metrics.cache_extents.set(extents.cast_signed());
        let cache = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            tiers: opened.tiers,
            index: opened.index,
            descriptors: Descriptors::new(opened.parts.disk.descriptor_limit()),
            boot: opened.boot,
            extents: AtomicU64::new(extents),
            // Numbers below the limit may have been used: it begins behind them.
            next_number: AtomicU64::new(opened.stored.facts.number_limit),
            number_limit: AtomicU64::new(opened.stored.facts.number_limit),
            pending: Mutex::new(Pending { scrub: opened.stored.facts.scrub, ..Pending::default() }),
            stored: Mutex::new(opened.stored),
            closed: AtomicBool::new(false),
            clean: AtomicBool::new(opened.care.is_clean()),
            care: Mutex::new(opened.care),
            locks: Mutex::new(opened.locks),
            loading: Loading::default(),
            live: RwLock::default(),
            pins: RwLock::default(),
            random: Mutex::new(fastrand::Rng::with_seed(opened.parts.seed)),
            parts: opened.parts,
        });
        if let Err(error) = cache.store() {
            tracing::warn!(code = "cache-index-unhealthy", %error, "what is cached now is forgotten by a restart");
        }
        Ok(cache)
    }

    /// The extent of an object version, if there is one; counts as use. No I/O when it is in memory, a look into the
    /// index otherwise.
    pub fn get(&self, id: &ObjectId) -> Option<Arc<Extent>> {
        let extent = self.peek(id)?;
        self.count_use(&extent);
        Some(extent)
    }

    /// As [`Cache::get`], for who only looks: it counts for nothing when something has to be evicted.
    pub fn peek(&self, id: &ObjectId) -> Option<Arc<Extent>> {
        let known = self.live().find(id).cloned();
        known.filter(|extent| !extent.is_gone()).or_else(|| self.find_stored(id))
    }

    /// Counts a use of an extent.
    pub fn count_use(&self, extent: &Extent) {
        extent.uses.add();
        self.note_use(extent);
    }

    /// The extent of an object version, made if there is none.
    ///
    /// # Errors
    /// `NoSpace` when the object can fit into no tier, or no tier takes data now.
    pub fn get_or_create(&self, id: &ObjectId, size: u64) -> Result<Arc<Extent>> {
        if let Some(known) = self.get(id) {
            if known.size() == size {
                return Ok(known);
            }
            // A version names one content; whatever has another size is not it.
            self.retire(&known);
        }
        self.check_open()?;
        let tier = self.choose_tier(id, size)?;
        let number = self.take_number();
        let extent = Extent::new(number, id.clone(), size, tier, Weak::clone(&self.me));
        self.note_use(&extent);
        let mut live = self.live_mut();
        if let Some(known) = live.find(id).filter(|known| !known.is_gone() && known.size() == size) {
            return Ok(Arc::clone(known));
        }
        let trimmed = live.insert(&extent);
        drop(live);
        drop(trimmed);
        Ok(extent)
    }

    /// Sets which objects are never evicted to make room.
    pub fn set_pins(&self, pins: PinRule) {
        *self.pins.write().expect(PINS) = Some(pins);
        self.tiers.iter().for_each(|tier| tier.policy().unpin_all());
    }

    /// Sizes, bytes and health.
    pub fn usage(&self) -> CacheUsage {
        let tiers = self.tiers.iter().map(|tier| {
            let (free_bytes, floor_bytes) = tier.free_and_floor();
            let reason = tier.failure();
            TierUsage {
                directory: tier.directory.clone(),
                size_bytes: tier.size_bytes,
                used_bytes: tier.used(),
                lent_unlinked_bytes: tier.lent_unlinked(),
                free_bytes,
                floor_bytes,
                healthy: reason.is_none(),
                reason,
            }
        });
        let index_reason = self.index.failure();
        CacheUsage {
            tiers: tiers.collect(),
            extents: self.extents.load(Ordering::Acquire),
            index_healthy: index_reason.is_none(),
            index_reason,
        }
    }

    /// Known extents in order of their number, after `after`, at most `limit`. Flushes when it begins.
    pub fn entries(&self, after: Option<u64>, limit: usize) -> Vec<CacheEntry> {
        let from = after.map_or(0, |after| after.saturating_add(1));
        if after.is_none() {
            // Should that fail, what is in memory is listed all the same.
            let _ = self.store();
        }
        let rows = self.index.rows(from, limit).unwrap_or_default();
        let last = rows.last().filter(|_| rows.len() == limit).map_or(u64::MAX, |row| row.number);
        let mut extents: Vec<Arc<Extent>> = rows.iter().filter_map(|row| self.extent(row.number)).collect();
        let known: HashSet<u64> = extents.iter().map(|extent| extent.number).collect();
        let unstored = |extent: &&Arc<Extent>| {
            (from..=last).contains(&extent.number) && !known.contains(&extent.number) && extent.charged() > 0
        };
        extents.extend(self.live().all().filter(unstored).cloned());
        extents.sort_by_key(|extent| extent.number);
        extents.truncate(limit);
        extents.iter().map(|extent| self.entry(extent)).collect()
    }

    /// The extent of a number, from memory or the index.
    pub(crate) fn extent(&self, number: u64) -> Option<Arc<Extent>> {
        let known = self.live().number(number).cloned();
        known.or_else(|| self.load(None, || Some((number, self.index.record(number)?))))
    }

    pub(crate) fn live(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read().expect(LIVE)
    }

    pub(crate) fn live_mut(&self) -> RwLockWriteGuard<'_, Live> {
        self.live.write().expect(LIVE)
    }

    pub(crate) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().expect("no panic while pending changes are held")
    }

    pub(crate) fn is_pinned(&self, id: &ObjectId) -> bool {
        let rule = self.pins.read().expect(PINS).clone();
        rule.is_some_and(|rule| rule(id))
    }

    /// Puts an extent on the list of what the next flush stores.
    pub(crate) fn note_changed(&self, number: u64) {
        self.pending().changed.insert(number);
    }

    fn note_use(&self, extent: &Extent) {
        extent.recent.store(true, Ordering::Relaxed);
        extent.last_use_ms.store(self.parts.clock.wall_ms(), Ordering::Relaxed);
    }

    pub(crate) fn find_stored(&self, id: &ObjectId) -> Option<Arc<Extent>> {
        let extent = self.load(Some(id), || self.index.find(id))?;
        // What came in under its number only was named by another meanwhile.
        (extent.id() == id && !extent.is_gone()).then_some(extent)
    }

    /// Takes an extent in that `look` finds in the index, unless somebody else was quicker or it has left.
    fn load(&self, id: Option<&ObjectId>, look: impl Fn() -> Option<(u64, Record)>) -> Option<Arc<Extent>> {
        for _ in 0..MAX_LOOKUPS {
            let departures = self.live().departures();
            let (number, record) = look()?;
            if let Some(known) = self.live().number(number) {
                return Some(Arc::clone(known));
            }
            let extent = self.restore(number, id, &record)?;
            let mut live = self.live_mut();
            if let Some(known) = live.number(number) {
                return Some(Arc::clone(known));
            }
            if !live.may_have_departed(number, departures) {
                let trimmed = live.insert(&extent);
                drop(live);
                drop(trimmed);
                return Some(extent);
            }
        }
        None
    }

    fn restore(&self, number: u64, id: Option<&ObjectId>, record: &Record) -> Option<Arc<Extent>> {
        if self.pending().removed.contains_key(&number) {
            return None;
        }
        let tier = self.tiers.iter().find(|tier| tier.slot == record.tier && tier.offline.is_none())?;
        let stripes = IndexedStripes { index: Arc::downgrade(&self.index), number };
        let map = if record.complete {
            PageMap::complete(record.size, Box::new(stripes))
        } else {
            PageMap::partial(record.size, &stripes)
        };
        // The asker's names are shared with others; those of the record would be copies.
        let id = id.cloned().unwrap_or_else(|| record.id());
        let uses = tier.policy().adopt(number, object_hash(&id), record.charged, record.uses);
        let place = (Arc::clone(tier), Weak::clone(&self.me));
        Some(Extent::restore((number, id), record, map, place, (uses, self.boot)))
    }

    /// `NoSpace` once the cache is closed.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::NoSpace, "use the cache", "it is closed"));
        }
        Ok(())
    }

    fn take_number(&self) -> u64 {
        let number = self.next_number.fetch_add(1, Ordering::AcqRel);
        if number >= self.number_limit.load(Ordering::Acquire) && self.index.failure().is_none() {
            // Numbers are stored before they are used, so that none is ever used twice. Should that fail, the file of
            // a number that was used before is replaced when it is made.
            let _ = self.store();
        }
        number
    }

    /// The first tier with room for the whole object; where none has, one by chance in proportion to its size, so
    /// that all of them turn over.
    fn choose_tier(&self, id: &ObjectId, size: u64) -> Result<Arc<Tier>> {
        let bytes = size.max(1).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
        let refuse = |reason: String| {
            let action = format!("cache {} {}", id.source, id.key);
            Error::new(ErrorKind::NoSpace, action, reason).fact("size", size)
        };
        let fitting: Vec<_> = self.tiers.iter().filter(|tier| tier.size_bytes >= bytes).collect();
        if fitting.is_empty() {
            return Err(refuse("it is larger than every tier of the cache".to_owned()));
        }
        let open: Vec<_> = fitting.iter().filter(|tier| tier.refusal().is_none()).collect();
        let sum: u64 = open.iter().map(|tier| tier.size_bytes).fold(0, u64::saturating_add);
        if sum == 0 {
            return Err(refuse(fitting[0].failure().unwrap_or_else(|| "the cache disk failed".to_owned())));
        }
        if let Some(tier) = open.iter().find(|tier| tier.has_room(bytes)) {
            return Ok(Arc::clone(tier));
        }
        let mut chance = self.random.lock().expect("no panic while chance is asked").u64(0..sum);
        let chosen = open.iter().find(|tier| {
            let hit = chance < tier.size_bytes;
            chance = chance.saturating_sub(tier.size_bytes);
            hit
        });
        Ok(Arc::clone(chosen.unwrap_or(&open[0])))
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
const PINS: &str = "no panic while the pins are held";
