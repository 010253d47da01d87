//! What this process holds at the node, and how it gives it back without talking.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use penstock_node::mapping::Mapping;
use penstock_node::protocol::{ArenaGrant, ArenaReturn, SessionKey, Welcome};
use penstock_node::ring::{Returned, Ring};
use penstock_types::{Error, ErrorKind};

use super::fork;

/// One session of this process with one run of the node.
pub struct Session {
    /// Its name and proof.
    pub key: SessionKey,
    /// The process it belongs to; a forked child never uses it.
    pid: u32,
    ring: Ring,
    /// Set when a connection of it broke: its leases are no more.
    ended: AtomicBool,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Arenas this process has mapped.
    mappings: HashMap<u64, Arc<Mapping>>,
    /// Releases that found the ring full: they go with the next request.
    late: Vec<Returned>,
}

impl Session {
    /// The session of a welcome, with its release ring.
    pub fn new(welcome: &Welcome, ring: BorrowedFd<'_>) -> std::io::Result<Self> {
        Ok(Self {
            key: welcome.session,
            pid: std::process::id(),
            ring: Ring::map(ring)?,
            ended: AtomicBool::new(false),
            held: Mutex::default(),
        })
    }

    /// Whether this process may still use it.
    pub fn is_ours(&self) -> bool {
        !self.ended.load(Ordering::Relaxed) && self.pid == std::process::id()
    }

    /// Notes that the node no longer knows it.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Gives a lease or an arena back. Costs no system call; in a forked child it does nothing.
    pub fn give_back(&self, returned: Returned) {
        if !self.is_ours() {
            return;
        }
        let mut held = self.held();
        held.late.push(returned);
        self.push_late(&mut held);
    }

    /// What still waits to be given back because the ring was full.
    pub fn take_late(&self) -> Vec<Returned> {
        let mut held = self.held();
        self.push_late(&mut held);
        std::mem::take(&mut held.late)
    }

    /// The memory of an arena that the node lends: mapped now, or mapped already.
    pub fn arena(
        self: &Arc<Self>,
        grant: ArenaGrant,
        memory: Option<BorrowedFd<'_>>,
        gone: &[u64],
    ) -> Result<Arc<ArenaLease>, Error> {
        let failed = |reason: String| {
            Error::new(ErrorKind::ResourceLimit, "map a batch", reason).advise("raise the limit of memory maps")
        };
        let mut held = self.held();
        for id in gone {
            held.mappings.remove(id);
        }
        let mapping = match (memory, held.mappings.get(&grant.id)) {
            (None, Some(mapping)) => Arc::clone(mapping),
            (None, None) => return Err(failed("the node lends memory that it never sent".into())),
            (Some(memory), _) => {
                let len = usize::try_from(grant.capacity).map_err(|_| failed("it is too large".into()))?;
                let mapping = Arc::new(Mapping::populated(memory, len).map_err(|error| failed(error.to_string()))?);
                held.mappings.insert(grant.id, Arc::clone(&mapping));
                mapping
            }
        };
        Ok(Arc::new(ArenaLease { session: Arc::clone(self), id: grant.id, mapping, forks: fork::count() }))
    }

    fn push_late(&self, held: &mut Held) {
        let sent = held.late.iter().take_while(|returned| self.ring.push(**returned)).count();
        held.late.drain(..sent);
    }

    /// Only threads attached to the interpreter come here, so a fork never copies it locked.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no panic while a session is changed")
    }
}

/// A batch in shared memory; goes back to the node when the last view on it is dropped.
pub struct ArenaLease {
    session: Arc<Session>,
    id: u64,
    /// The bytes.
    pub mapping: Arc<Mapping>,
    /// Forks of this process when it was lent.
    forks: u64,
}

impl Drop for ArenaLease {
    fn drop(&mut self) {
        // A child that was forked meanwhile has views of its own on it.
        let shared = self.forks != fork::count();
        self.session.give_back(Returned::Arena(ArenaReturn { id: self.id, shared }));
    }
}
