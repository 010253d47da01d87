//! Arenas: shared memory in which batches travel to a client.
//!
//! The node fills an arena and lends it read-only; the client gives it back when the last view on it is gone. It is
//! then filled again with the next batch, so that a steady reader pays for neither fresh pages nor page faults. An
//! arena that lies idle first loses its memory, later its name. All arenas of a node share one bound.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use penstock_types::{Error, ErrorKind, Metrics, Result};
use rustix::fs::{
    FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create, open,
};

use crate::mapping::Mapping;
use crate::protocol::ArenaReturn;

/// Largest arena: two batches of it fit half of the default memory budget.
pub const ARENA_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Smallest arena.
const ARENA_BYTES_MIN: u64 = 1024 * 1024;
/// Idle so long, an arena gives its memory back.
const TRIM_AFTER: Duration = Duration::from_secs(5);
/// Idle so long, an arena ends.
const END_AFTER: Duration = Duration::from_secs(60);
/// Idle arenas that one session keeps.
const IDLE_MAX: usize = 8;

/// The share of the memory budget that arenas may hold together.
#[derive(Clone)]
pub struct ArenaBudget {
    limit: u64,
    used: Arc<AtomicU64>,
    metrics: Metrics,
}

/// Bytes taken from the budget; given back when dropped.
struct Reserved {
    bytes: u64,
    budget: ArenaBudget,
}

impl ArenaBudget {
    /// Half of the node's memory budget: the other half is for fills.
    pub fn new(memory_budget_bytes: u64, metrics: Metrics) -> Self {
        Self { limit: memory_budget_bytes / 2, used: Arc::default(), metrics }
    }

    /// Most bytes in use.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Largest arena that this budget admits.
    pub fn arena_bytes_max(&self) -> u64 {
        ARENA_BYTES_MAX.min(self.limit)
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn reserve(&self, bytes: u64) -> Option<Reserved> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        self.metrics.memory_used_bytes.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        Some(Reserved { bytes, budget: self.clone() })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.metrics.memory_used_bytes.dec_by(i64::try_from(self.bytes).unwrap_or(i64::MAX));
    }
}

/// One piece of shared memory.
pub struct Arena {
    /// Its name in the session.
    pub id: u64,
    memory: OwnedFd,
    lent: Arc<OwnedFd>,
    mapping: Mapping,
    reserved: Option<Reserved>,
    /// The client has had its descriptor.
    known: bool,
    idle_since: Duration,
}

impl Arena {
    fn create(id: u64, reserved: Reserved) -> std::io::Result<Self> {
        let capacity = reserved.bytes;
        let memory = memfd_create("penstock-arena", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&memory, capacity)?;
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        // Not sealed against writing, because that would also forbid to give idle memory back. The client gets a
        // descriptor that was opened for reading: it cannot map it for writing.
        let through = format!("/proc/self/fd/{}", memory.as_raw_fd());
        let lent = open(through, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let len = usize::try_from(capacity).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        let mapping = Mapping::writable(memory.as_fd(), len)?;
        let idle_since = Duration::ZERO;
        Ok(Self { id, memory, lent: Arc::new(lent), mapping, reserved: Some(reserved), known: false, idle_since })
    }

    /// Bytes.
    pub fn capacity(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Its first `len` bytes, to be filled before it is lent.
    pub fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.mapping.len(), "a batch is laid out inside its arena");
        // SAFETY: the range is mapped for writing as long as `self` lives. No client reads it: the arena is filled
        // only while it is owned here and lent to nobody.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start().as_ptr(), len) }
    }

    /// The descriptor to send, the first time it is asked for.
    pub fn introduce(&mut self) -> Option<Arc<OwnedFd>> {
        let first = !std::mem::replace(&mut self.known, true);
        first.then(|| Arc::clone(&self.lent))
    }

    /// Gives the memory back to the system, keeping name and mappings.
    fn trim(&mut self) {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if self.reserved.is_some() && fallocate(&self.memory, punch, 0, self.capacity()).is_ok() {
            self.reserved = None;
        }
    }
}

/// The arenas of one session.
#[derive(Default)]
pub struct Shelf {
    next_id: u64,
    lent: HashMap<u64, Arena>,
    idle: Vec<Arena>,
    gone: Vec<u64>,
}

impl Shelf {
    /// An arena of at least `bytes`, to be filled and then lent with [`Shelf::lend`].
    ///
    /// # Errors
    /// `ResourceLimit` when the bound of all arenas is reached.
    pub fn take(&mut self, bytes: u64, budget: &ArenaBudget) -> Result<Arena> {
        let fitting = self.idle.iter().enumerate().filter(|(_, arena)| arena.capacity() >= bytes);
        if let Some((position, _)) = fitting.min_by_key(|(_, arena)| arena.capacity()) {
            let mut arena = self.idle.swap_remove(position);
            if arena.reserved.is_none() {
                arena.reserved = budget.reserve(arena.capacity());
            }
            if arena.reserved.is_some() {
                return Ok(arena);
            }
            self.idle.push(arena);
        }
        let capacity = rounded_up(bytes);
        let reserved = budget.reserve(capacity).or_else(|| {
            self.trim_all();
            budget.reserve(capacity)
        });
        let refused = |reason: String| {
            Error::new(ErrorKind::ResourceLimit, "make room for a batch", reason)
                .advise("drop the views of earlier batches, or raise memory.budget")
                .fact("wanted_bytes", capacity)
                .fact("used_bytes", budget.used())
                .fact("limit_bytes", budget.limit)
        };
        let reserved = reserved.ok_or_else(|| refused("the memory of batches is in use".into()))?;
        self.next_id += 1;
        Arena::create(self.next_id, reserved).map_err(|error| refused(error.to_string()))
    }

    /// Notes that the client has it now.
    pub fn lend(&mut self, arena: Arena) {
        self.lent.insert(arena.id, arena);
    }

    /// Takes an arena back, lent or not: from now on it may be filled again. One that somebody else may still look
    /// at ends; its memory lives as long as it is mapped there.
    pub fn put_back(&mut self, mut arena: Arena, shared: bool, now: Duration) {
        arena.idle_since = now;
        if shared || self.idle.len() >= IDLE_MAX {
            self.end(&arena);
        } else {
            self.idle.push(arena);
        }
    }

    /// Takes back what the client returns; a name that is not lent is ignored.
    pub fn give_back(&mut self, returned: ArenaReturn, now: Duration) {
        if let Some(arena) = self.lent.remove(&returned.id) {
            self.put_back(arena, returned.shared, now);
        }
    }

    /// Arenas that ended since the last call and that the client knows.
    pub fn take_gone(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.gone)
    }

    /// Takes memory from arenas that have been idle for some seconds, and ends those idle for a minute.
    pub fn tidy(&mut self, now: Duration) {
        let (ended, mut kept): (Vec<_>, Vec<_>) =
            self.idle.drain(..).partition(|arena| now.saturating_sub(arena.idle_since) >= END_AFTER);
        kept.iter_mut().filter(|arena| now.saturating_sub(arena.idle_since) >= TRIM_AFTER).for_each(Arena::trim);
        self.idle = kept;
        ended.iter().for_each(|arena| self.end(arena));
    }

    /// Takes memory from every idle arena now.
    pub fn trim_all(&mut self) {
        self.idle.iter_mut().for_each(Arena::trim);
    }

    /// Bytes of memory that lent and idle arenas hold.
    pub fn held_bytes(&self) -> u64 {
        let all = self.lent.values().chain(&self.idle);
        all.filter_map(|arena| arena.reserved.as_ref()).map(|reserved| reserved.bytes).sum()
    }

    fn end(&mut self, arena: &Arena) {
        if arena.known {
            self.gone.push(arena.id);
        }
    }
}

/// Eight sizes per doubling: a batch of slightly different size next time finds the same arena, and little is wasted.
fn rounded_up(bytes: u64) -> u64 {
    let step = (bytes.next_power_of_two() / 8).max(ARENA_BYTES_MIN);
    bytes.max(1).div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn budget(bytes: u64) -> ArenaBudget {
        ArenaBudget::new(bytes * 2, Metrics::default())
    }

    #[test]
    fn a_returned_arena_is_filled_again_without_a_new_descriptor() {
        let (mut shelf, budget) = (Shelf::default(), budget(64 * MIB));
        let mut arena = shelf.take(10 * MIB, &budget).unwrap();
        let id = arena.id;
        assert!(arena.introduce().is_some());
        shelf.lend(arena);
        shelf.give_back(ArenaReturn { id, shared: false }, Duration::ZERO);
        let mut again = shelf.take(9 * MIB, &budget).unwrap();
        assert_eq!(again.id, id);
        assert!(again.introduce().is_none());
    }

    #[test]
    fn an_arena_that_a_child_may_look_at_is_never_filled_again() {
        let (mut shelf, budget) = (Shelf::default(), budget(64 * MIB));
        let mut arena = shelf.take(MIB, &budget).unwrap();
        let id = arena.id;
        arena.introduce();
        shelf.lend(arena);
        shelf.give_back(ArenaReturn { id, shared: true }, Duration::ZERO);
        assert_eq!(shelf.take_gone(), [id]);
        assert_ne!(shelf.take(MIB, &budget).unwrap().id, id);
    }

    #[test]
    fn idle_arenas_give_their_memory_back_and_then_end() {
        let (mut shelf, budget) = (Shelf::default(), budget(64 * MIB));
        let mut arena = shelf.take(MIB, &budget).unwrap();
        let id = arena.id;
        arena.introduce();
        shelf.put_back(arena, false, Duration::ZERO);
        shelf.tidy(Duration::from_secs(4));
        assert_eq!(budget.used(), MIB);
        shelf.tidy(Duration::from_secs(5));
        assert_eq!(budget.used(), 0);
        assert!(shelf.take_gone().is_empty());
        shelf.tidy(Duration::from_secs(60));
        assert_eq!(shelf.take_gone(), [id]);
    }

    #[test]
    fn the_bound_of_all_arenas_holds_and_idle_memory_makes_room() {
        let budget = budget(8 * MIB);
        let (mut one, mut other) = (Shelf::default(), Shelf::default());
        let held = one.take(8 * MIB, &budget).unwrap();
        assert_eq!(other.take(MIB, &budget).err().unwrap().kind(), ErrorKind::ResourceLimit);
        one.put_back(held, false, Duration::ZERO);
        one.trim_all();
        assert!(other.take(MIB, &budget).is_ok());
    }
}
