//! What one client process holds: leases and arenas. It ends with the client's last connection, and drafts that were
//! not committed are discarded with it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use penstock_engine::{OpenFile, Writing};
use penstock_types::{Error, ErrorKind, Result};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Serialize;

use crate::arena::Shelf;
use crate::links::LinkedFile;
use crate::protocol::SessionKey;
use crate::ring::{Returned, Ring, SLOTS};

/// Files that one client process may hold open.
const LEASES_MAX: usize = 100_000;
const _: () = assert!(LEASES_MAX < SLOTS as usize, "whatever a client closes before the node looks again fits");

/// What a client may use until it is dropped.
pub enum Lease {
    /// A file that is open for reading.
    File(Arc<OpenFile>),
    /// One that has a local name too.
    Link {
        /// The file.
        file: Arc<OpenFile>,
        /// The name goes with the lease.
        _name: LinkedFile,
    },
    /// A file that is being written; discarded unless it was committed.
    Draft(Arc<Writing>),
}

/// What one client process holds.
pub struct Session {
    /// Its name and proof.
    pub key: SessionKey,
    /// Who the client says it is.
    pub client: String,
    /// Process id of the client, from the kernel.
    pub pid: i32,
    leases: Mutex<Leases>,
    shelf: Mutex<Shelf>,
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Leases {
    next_id: u64,
    held: HashMap<u64, Lease>,
}

/// What `status` shows of a client.
#[derive(Clone, Debug, Serialize)]
pub struct ClientStatus {
    /// Who it says it is.
    pub client: String,
    /// Process id.
    pub pid: i32,
    /// Connections.
    pub connections: usize,
    /// Open files, for reading and writing.
    pub leases: usize,
    /// Memory of its batches, bytes.
    pub arena_bytes: u64,
}

impl Session {
    /// A session and the descriptor of its release ring.
    pub fn new(id: u64, client: String, pid: i32) -> Result<(Self, OwnedFd)> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::ResourceLimit, "welcome a client", error.to_string())
                .advise("raise the limit of open files")
        };
        let mut secret = [0; 16];
        getrandom(&mut secret, GetRandomFlags::empty()).map_err(|error| failed(error.into()))?;
        let (ring, memory) = Ring::create().map_err(failed)?;
        let key = SessionKey { id, secret };
        let session =
            Self { key, client, pid, leases: Mutex::default(), shelf: Mutex::default(), ring: Mutex::new(ring) };
        Ok((session, memory))
    }

    /// Keeps something for the client and names it; no name is given twice.
    ///
    /// # Errors
    /// `ResourceLimit` when the client holds too many.
    pub fn lend(&self, lease: Lease) -> Result<u64> {
        let mut leases = lock(&self.leases);
        if leases.held.len() >= LEASES_MAX {
            return Err(Error::new(ErrorKind::ResourceLimit, "open a file", "this process holds too many open files")
                .advise("close some")
                .fact("limit", LEASES_MAX));
        }
        leases.next_id += 1;
        let id = leases.next_id;
        leases.held.insert(id, lease);
        Ok(id)
    }

    /// The open file of a lease to read.
    pub fn leased(&self, id: u64) -> Option<Arc<OpenFile>> {
        match lock(&self.leases).held.get(&id)? {
            Lease::File(file) | Lease::Link { file, .. } => Some(Arc::clone(file)),
            Lease::Draft(_) => None,
        }
    }

    /// The draft of a lease to write.
    pub fn draft(&self, id: u64) -> Option<Arc<Writing>> {
        match lock(&self.leases).held.get(&id)? {
            Lease::Draft(writing) => Some(Arc::clone(writing)),
            Lease::File(_) | Lease::Link { .. } => None,
        }
    }

    /// Ends leases and takes arenas back; names that are not held are ignored.
    pub fn take_back(&self, returned: impl IntoIterator<Item = Returned>, now: Duration) {
        let mut ended = Vec::new();
        for one in returned {
            match one {
                Returned::Lease(id) => ended.extend(lock(&self.leases).held.remove(&id)),
                Returned::Arena(arena) => self.shelf().give_back(arena, now),
            }
        }
        // Ending a lease may unlink a file: not under the lock.
        drop(ended);
    }

    /// Takes back what the client wrote into the ring.
    pub fn read_ring(&self, now: impl FnOnce() -> Duration) {
        let returned = {
            let mut ring = lock(&self.ring);
            if !ring.has_some() {
                return;
            }
            ring.take()
        };
        self.take_back(returned, now());
    }

    /// Its arenas.
    pub fn shelf(&self) -> MutexGuard<'_, Shelf> {
        lock(&self.shelf)
    }

    /// What `status` shows of it.
    pub fn status(&self, connections: usize) -> ClientStatus {
        let leases = lock(&self.leases).held.len();
        let arena_bytes = self.shelf().held_bytes();
        ClientStatus { client: self.client.clone(), pid: self.pid, connections, leases, arena_bytes }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while a session's state is changed")
}
