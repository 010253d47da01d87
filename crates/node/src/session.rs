//! What one client process holds: leases and arenas. It ends with the client's last connection.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use penstock_engine::OpenFile;
use penstock_types::{Error, ErrorKind, Result};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Serialize;

use crate::arena::Shelf;
use crate::links::LinkedFile;
use crate::protocol::SessionKey;
use crate::ring::{Returned, Ring};

/// Files that one client process may hold open.
const LEASES_MAX: usize = 100_000;

/// An open file of a client; dropping it ends the lease.
struct Lease {
    file: Arc<OpenFile>,
    _link: Option<LinkedFile>,
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
    /// Open files.
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

    /// Keeps an open file for the client and names it.
    ///
    /// # Errors
    /// `ResourceLimit` when the client holds too many.
    pub fn lend(&self, file: Arc<OpenFile>, link: Option<LinkedFile>) -> Result<u64> {
        let mut leases = lock(&self.leases);
        if leases.held.len() >= LEASES_MAX {
            return Err(Error::new(ErrorKind::ResourceLimit, "open a file", "this process holds too many open files")
                .advise("close some")
                .fact("limit", LEASES_MAX));
        }
        leases.next_id += 1;
        let id = leases.next_id;
        leases.held.insert(id, Lease { file, _link: link });
        Ok(id)
    }

    /// The open file of a lease.
    pub fn leased(&self, id: u64) -> Option<Arc<OpenFile>> {
        lock(&self.leases).held.get(&id).map(|lease| Arc::clone(&lease.file))
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
