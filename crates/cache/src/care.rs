//! Housekeeping in bounded steps: the eviction queue is loaded, leftovers are removed, memory is trimmed, quiet
//! extents become durable.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use penstock_types::{Disk, ErrorKind};

use crate::cache::{Cache, DeadRow};
use crate::image::Undurable;
use crate::index::object_hash;
use crate::live::MAX_IDLE;
use crate::tier::directory_index;

/// Rows of the index that one step loads into the eviction queue: some 10 ms.
const ROWS_PER_STEP: usize = 4_096;
/// Files that one step removes.
const REMOVALS_PER_STEP: usize = 1_024;
/// Extents that one step evicts from a tier that holds more than it may.
const EVICTIONS_PER_STEP: usize = 64;
/// An extent is quiet when it was not filled for so long. By then the kernel has written its data by itself (after
/// 30 s), so that syncing it costs little.
const QUIET: Duration = Duration::from_secs(35);
/// Extents that one step makes durable, and how long it may take.
const SYNCS_PER_STEP: usize = 256;
const SYNC_STEP: Duration = Duration::from_millis(100);
/// The eviction queue is loaded.
const LOADED: u64 = u64::MAX;

/// What housekeeping has to do. Its lock only keeps two threads from doing it at once.
pub struct Care {
    /// Directories whose files are to be removed.
    pub trash: Vec<PathBuf>,
    /// Directories in which a process that was killed may have left files that the index does not know.
    leftovers: VecDeque<u64>,
    /// Whether every tier could be opened: else rows of unknown tiers are kept.
    pub complete_view: bool,
}

/// How far the eviction queue is loaded from the index.
pub struct Loading {
    next_row: AtomicU64,
    damaged_rows: AtomicU64,
}

impl Default for Loading {
    fn default() -> Self {
        Self { next_row: AtomicU64::new(0), damaged_rows: AtomicU64::new(0) }
    }
}

impl Care {
    /// `numbers` may have been given to extents that the index was never told of.
    pub fn new(numbers: Range<u64>) -> Self {
        let leftovers = numbers.map(directory_index).collect::<BTreeSet<_>>().into_iter().collect();
        Self { trash: Vec::new(), leftovers, complete_view: true }
    }

    /// Whether no file of an earlier process is unaccounted for.
    pub fn is_clean(&self) -> bool {
        self.leftovers.is_empty()
    }
}

impl Cache {
    /// One step of everything that is due. Does nothing when another thread does it.
    pub(crate) fn keep_house(&self) {
        let Ok(mut care) = self.care.try_lock() else { return };
        if self.check_open().is_err() {
            return;
        }
        self.load_rows();
        self.recount_when_damaged();
        self.remove_leftovers(&mut care);
        self.empty_trash(&mut care);
        self.unlink_doomed();
        let trimmed = self.live_mut().trim(MAX_IDLE);
        drop(trimmed);
        for tier in &self.tiers {
            for _ in 0..EVICTIONS_PER_STEP {
                if !tier.is_overfull() || !self.make_room(tier).unwrap_or(false) {
                    break;
                }
            }
        }
    }

    /// Makes some complete, quiet extents durable: their data is synced, then they are marked. After a crash of the
    /// machine they need no verification.
    pub fn make_durable_step(&self) {
        if self.check_open().is_err() {
            return;
        }
        let started = self.parts.clock.monotonic();
        let waiting = self.pending().undurable.len();
        let mut syncs = 0;
        for _ in 0..waiting {
            if syncs == SYNCS_PER_STEP || self.parts.clock.monotonic() > started + SYNC_STEP {
                return;
            }
            let Some(number) = self.pending().undurable.pop_front() else { return };
            let Some(extent) = self.extent(number) else { continue };
            match extent.undurable_generation(QUIET) {
                Ok(generation) => {
                    syncs += 1;
                    self.make_durable(&extent, generation);
                }
                // The others became complete later still.
                Err(Undurable::NotYet) => return self.pending().undurable.push_front(number),
                Err(Undurable::Never) => {}
            }
        }
    }

    fn make_durable(&self, extent: &std::sync::Arc<crate::Extent>, generation: u64) {
        let file = match extent.readable() {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::ResourceLimit => return self.note_undurable(extent.number),
            Err(_) => return,
        };
        match extent.tier.disk.sync_data(file.as_fd()) {
            Ok(()) => extent.mark_durable(generation),
            Err(error) => {
                // What could not be written is dropped by the kernel, and the next sync would succeed without it.
                extent.tier.fail("sync", &extent.tier.path_of(extent.number), &error);
                self.retire(extent);
            }
        }
    }

    /// Puts an extent on the list of what becomes durable.
    pub(crate) fn note_undurable(&self, number: u64) {
        self.pending().undurable.push_back(number);
    }

    /// Loads some rows of the index into the eviction queues. Whether there were any.
    pub(crate) fn load_rows(&self) -> bool {
        let from = self.loading.next_row.load(Ordering::Acquire);
        if from == LOADED {
            return false;
        }
        let Some(rows) = self.index.rows(from, ROWS_PER_STEP) else { return false };
        let complete_view = self.tiers.iter().all(|tier| tier.offline.is_none());
        for row in &rows {
            let dead = match &row.record {
                None => {
                    self.loading.damaged_rows.fetch_add(1, Ordering::AcqRel);
                    Some(DeadRow { number: row.number, object: 0, charge: None })
                }
                Some(record) => {
                    let object = object_hash(&record.id());
                    let tier = self.tiers.iter().find(|tier| tier.slot == record.tier);
                    if let Some(tier) = tier.filter(|_| !self.pending().removed.contains_key(&row.number)) {
                        tier.policy().adopt(row.number, object, record.charged, record.uses);
                        if record.complete && !record.durable {
                            self.note_undurable(row.number);
                        }
                    }
                    let charge = Some((record.tier, record.charged));
                    (tier.is_none() && complete_view).then_some(DeadRow { number: row.number, object, charge })
                }
            };
            if let Some(dead) = dead {
                self.note_extents(-1);
                self.pending().dead_rows.push(dead);
            }
        }
        let next = rows.last().filter(|_| rows.len() == ROWS_PER_STEP).map_or(LOADED, |row| row.number + 1);
        let moved = self.loading.next_row.compare_exchange(from, next, Ordering::AcqRel, Ordering::Acquire);
        moved.is_ok() && !rows.is_empty()
    }

    /// Once damaged rows are gone from the index, counts what is left.
    fn recount_when_damaged(&self) {
        let loaded = self.loading.next_row.load(Ordering::Acquire) == LOADED;
        if loaded && self.pending().dead_rows.is_empty() && self.loading.damaged_rows.swap(0, Ordering::AcqRel) > 0 {
            tracing::warn!(code = "cache-index-rows-damaged", "damaged rows of the index were dropped");
            self.recount();
        }
    }

    /// Looks through one directory for what a killed process left.
    fn remove_leftovers(&self, care: &mut Care) {
        let Some(directory) = care.leftovers.pop_front() else { return };
        for tier in self.tiers.iter().filter(|tier| tier.offline.is_none()) {
            if self.remove_orphans(tier, directory).is_none() {
                return care.leftovers.push_front(directory);
            }
        }
        self.clean.store(care.is_clean(), Ordering::Release);
    }

    fn empty_trash(&self, care: &mut Care) {
        let Some(directory) = care.trash.last() else { return };
        match empty_some(&*self.parts.disk, directory) {
            Ok(false) => {}
            Ok(true) => drop(care.trash.pop()),
            Err(error) => {
                tracing::warn!(code = "cache-trash", directory = %directory.display(), %error, "left for the next start");
                care.trash.pop();
            }
        }
    }
}

/// Removes some of the files two levels below `directory`; whether nothing is left of it.
fn empty_some(disk: &dyn Disk, directory: &Path) -> io::Result<bool> {
    let Some(name) = disk.list(directory)?.into_iter().next() else {
        disk.remove_directory(directory)?;
        return Ok(true);
    };
    let inner = directory.join(name);
    let names = match disk.list(&inner) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            disk.remove(&inner)?;
            return Ok(false);
        }
        other => other?,
    };
    for name in names.iter().take(REMOVALS_PER_STEP) {
        disk.remove(&inner.join(name))?;
    }
    if names.len() <= REMOVALS_PER_STEP {
        disk.remove_directory(&inner)?;
    }
    Ok(false)
}
