//! The release ring: shared memory into which a client writes what it no longer needs.
//!
//! A release costs the client two stores and no system call; the node reads the ring before each request of the
//! session and once a second, so an idle client holds nothing back. One writer, one reader. The node trusts nothing
//! in it: numbers it does not know are ignored, and at most [`SLOTS`] are taken at a time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::mapping::Mapping;
use crate::protocol::ArenaReturn;

/// Releases that fit before the node has to read: of all that a session may hold, so that nothing waits for a client that
/// asks nothing more. Only pages that were written to take memory.
pub const SLOTS: u32 = 1 << 17;
/// The whole of it.
pub const RING_BYTES: usize = 4096 + SLOTS as usize * size_of::<u64>();

/// Offsets in it: the two counters on cache lines of their own, then the slots.
const WRITTEN_AT: usize = 0;
const READ_AT: usize = 64;
const SLOTS_AT: usize = 128;
const _: () = assert!(SLOTS_AT + SLOTS as usize * size_of::<u64>() <= RING_BYTES);

/// Set in a slot that names an arena, not a lease.
const ARENA: u64 = 1 << 63;
/// Set in a slot of an arena that a forked child may still look at.
const SHARED: u64 = 1 << 62;

/// Something given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Returned {
    /// A lease.
    Lease(u64),
    /// An arena.
    Arena(ArenaReturn),
}

/// One side's view of the ring.
pub struct Ring {
    page: Mapping,
    read: u32,
}

impl Ring {
    /// A new ring and the descriptor that the client maps.
    pub fn create() -> std::io::Result<(Self, OwnedFd)> {
        let memory = memfd_create("penstock-ring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&memory, RING_BYTES as u64)?;
        // A client that could shrink it could kill the node with SIGBUS.
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Self::map(memory.as_fd())?, memory))
    }

    /// The ring behind a descriptor that the node sent.
    pub fn map(memory: BorrowedFd<'_>) -> std::io::Result<Self> {
        Ok(Self { page: Mapping::writable(memory, RING_BYTES)?, read: 0 })
    }

    /// Writes one release; `false` when the ring is full. Callers take turns.
    pub fn push(&self, returned: Returned) -> bool {
        let written = self.counter(WRITTEN_AT).load(Ordering::Relaxed);
        let read = self.counter(READ_AT).load(Ordering::Acquire);
        if written.wrapping_sub(read) >= SLOTS {
            return false;
        }
        self.slot(written).store(to_slot(returned), Ordering::Relaxed);
        self.counter(WRITTEN_AT).store(written.wrapping_add(1), Ordering::Release);
        true
    }

    /// Whether something waits to be taken. One load.
    pub fn has_some(&self) -> bool {
        self.counter(WRITTEN_AT).load(Ordering::Acquire) != self.read
    }

    /// Takes everything that was written, oldest first.
    pub fn take(&mut self) -> Vec<Returned> {
        let written = self.counter(WRITTEN_AT).load(Ordering::Acquire);
        // More than the ring holds cannot be: somebody wrote nonsense, and none of it is believed.
        let count = written.wrapping_sub(self.read);
        let taken = if count > SLOTS { 0 } else { count };
        let returned = (0..taken).map(|n| from_slot(self.slot(self.read.wrapping_add(n)).load(Ordering::Relaxed)));
        let returned = returned.collect();
        self.read = written;
        self.counter(READ_AT).store(written, Ordering::Release);
        returned
    }

    fn counter(&self, at: usize) -> &AtomicU32 {
        // SAFETY: `at` is an aligned offset inside the page, which lives as long as `self`; the other process only
        // touches it with atomic operations.
        unsafe { &*self.page.start().as_ptr().add(at).cast() }
    }

    fn slot(&self, number: u32) -> &AtomicU64 {
        let at = SLOTS_AT + (number % SLOTS) as usize * size_of::<u64>();
        // SAFETY: as in `counter`; the assertion above keeps every slot inside the page.
        unsafe { &*self.page.start().as_ptr().add(at).cast() }
    }
}

fn to_slot(returned: Returned) -> u64 {
    match returned {
        Returned::Lease(id) => id & !(ARENA | SHARED),
        Returned::Arena(arena) => ARENA | if arena.shared { SHARED } else { 0 } | (arena.id & !(ARENA | SHARED)),
    }
}

fn from_slot(slot: u64) -> Returned {
    let id = slot & !(ARENA | SHARED);
    if slot & ARENA == 0 {
        Returned::Lease(id)
    } else {
        Returned::Arena(ArenaReturn { id, shared: slot & SHARED != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> (Ring, Ring) {
        let (node, memory) = Ring::create().unwrap();
        (node, Ring::map(memory.as_fd()).unwrap())
    }

    #[test]
    fn what_is_pushed_is_taken_once_and_in_order() {
        let (mut node, client) = pair();
        let releases = [Returned::Lease(7), Returned::Arena(ArenaReturn { id: 9, shared: true }), Returned::Lease(8)];
        for round in 0..200 {
            assert!(!node.has_some());
            assert!(releases.iter().all(|release| client.push(*release)), "round {round}");
            assert!(node.has_some());
            assert_eq!(node.take(), releases);
        }
    }

    #[test]
    fn a_full_ring_refuses_until_it_is_read() {
        let (mut node, client) = pair();
        assert!((0..u64::from(SLOTS)).all(|id| client.push(Returned::Lease(id))));
        assert!(!client.push(Returned::Lease(1)));
        assert_eq!(node.take().len(), SLOTS as usize);
        assert!(client.push(Returned::Lease(1)));
    }

    proptest! {
        #[test]
        fn arbitrary_memory_is_survived(bytes in proptest::collection::vec(any::<u8>(), 4096)) {
            let (mut node, memory) = Ring::create().unwrap();
            rustix::io::pwrite(&memory, &bytes.repeat(RING_BYTES / 4096), 0).unwrap();
            prop_assert!(node.take().len() <= SLOTS as usize);
            prop_assert!(!node.has_some());
        }
    }
}
