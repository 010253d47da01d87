//! `data.sock`: takes connections of this user, bounded in number, and keeps the sessions they belong to.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use penstock_types::{Error, ErrorKind, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{Shutdown, shutdown};

use crate::answer::{Answer, Service};
use crate::connection::{Line, request_reader, serve};
use crate::protocol::{FrameError, Reply, Request, SessionKey, Welcome};
use crate::session::{ClientStatus, Session};

/// Stack of a connection's thread: the engine's futures are the largest thing on it.
const STACK_BYTES: usize = 1024 * 1024;
/// A client that does not read its reply for so long is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed accept (out of descriptors), so that it cannot spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections above the limit that are told so at once; further ones wait for their turn to be told.
const REFUSALS_MAX: usize = 16;

/// The socket and everything that came through it.
pub struct DataSocket {
    path: PathBuf,
    listener: UnixListener,
    service: Arc<Service>,
    max_connections: usize,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    next_connection: u64,
    next_session: u64,
    lines: HashMap<u64, Arc<Line>>,
    sessions: HashMap<u64, Joined>,
    stopping: bool,
}

struct Joined {
    session: Arc<Session>,
    connections: usize,
}

impl DataSocket {
    /// Binds the socket, readable by this user alone, in place of whatever an earlier node left there.
    ///
    /// # Errors
    /// `Disk` or `InvalidInput` when the path cannot be bound.
    pub fn bind(path: &Path, service: Arc<Service>, max_connections: usize) -> Result<Arc<Self>> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Disk, format!("listen on {}", path.display()), error.to_string())
                .advise("make its directory writable, or set PENSTOCK_HOME elsewhere")
        };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Arc::new(Self {
            path: path.to_path_buf(),
            listener,
            service,
            max_connections,
            state: Mutex::default(),
            ended: Condvar::new(),
        }))
    }

    /// Takes connections until the socket is stopped. Runs in a thread of its own.
    pub fn accept(self: &Arc<Self>) {
        loop {
            let accepted = self.listener.accept();
            if self.state().stopping {
                return;
            }
            let admitted = match accepted {
                Ok((socket, _)) => self.admit(socket),
                Err(error) => Err(Error::new(ErrorKind::ResourceLimit, "accept a client", error.to_string())
                    .advise("raise the limit of open files")),
            };
            if let Err(error) = admitted {
                tracing::warn!(code = error.kind().code(), %error, "client not served");
                if error.kind() == ErrorKind::ResourceLimit {
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Once a second: signs of life to clients that wait, releases of clients that are idle, memory of idle arenas.
    pub fn tick(&self) {
        let (lines, sessions): (Vec<_>, Vec<_>) = {
            let state = self.state();
            let sessions = state.sessions.values().map(|joined| Arc::clone(&joined.session)).collect();
            (state.lines.values().cloned().collect(), sessions)
        };
        let now = self.service.clock.monotonic();
        lines.iter().for_each(|line| line.look());
        for session in sessions {
            session.read_ring(|| now);
            session.shelf().tidy(now);
        }
    }

    /// Takes no more connections, lets requests under way finish until `deadline`, then ends the rest.
    pub fn stop(&self, deadline: Instant) {
        let lines: Vec<Arc<Line>> = {
            let mut state = self.state();
            state.stopping = true;
            state.lines.values().cloned().collect()
        };
        // Wakes the accepting thread.
        let _ = shutdown(&self.listener, Shutdown::Both);
        let _ = std::fs::remove_file(&self.path);
        lines.iter().for_each(|line| line.end_softly());
        self.wait_until_empty(deadline);
        let left: Vec<Arc<Line>> = self.state().lines.values().cloned().collect();
        if !left.is_empty() {
            tracing::warn!(connections = left.len(), "requests did not finish before the drain's deadline");
            left.iter().for_each(|line| line.end());
            self.wait_until_empty(Instant::now() + Duration::from_secs(1));
        }
    }

    /// Who is connected.
    pub fn clients(&self) -> Vec<ClientStatus> {
        let sessions: Vec<_> = {
            let state = self.state();
            state.sessions.values().map(|joined| (Arc::clone(&joined.session), joined.connections)).collect()
        };
        sessions.into_iter().map(|(session, connections)| session.status(connections)).collect()
    }

    fn wait_until_empty(&self, deadline: Instant) {
        let mut state = self.state();
        while !state.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.ended.wait_timeout(state, left).expect("no panic while connections are counted").0;
        }
    }

    fn admit(self: &Arc<Self>, socket: UnixStream) -> Result<()> {
        let failed = |error: std::io::Error| Error::new(ErrorKind::ResourceLimit, "serve a client", error.to_string());
        let peer = socket_peercred(&socket).map_err(|error| failed(error.into()))?;
        let ours = rustix::process::geteuid();
        if peer.uid != ours && !peer.uid.is_root() {
            return Err(Error::new(ErrorKind::PermissionDenied, "serve a client", "it belongs to another user")
                .fact("uid", peer.uid.as_raw()));
        }
        set_socket_timeout(&socket, Timeout::Send, Some(SEND_TIMEOUT)).map_err(|error| failed(error.into()))?;
        let line = Arc::new(Line::new(socket));
        let (id, count) = {
            let mut state = self.state();
            state.next_connection += 1;
            let id = state.next_connection;
            state.lines.insert(id, Arc::clone(&line));
            (id, state.lines.len())
        };
        if count > self.max_connections + REFUSALS_MAX {
            self.leave(id);
            return Err(self.too_many_clients());
        }
        let here = Arc::clone(self);
        let pid = peer.pid.as_raw_nonzero().get();
        let admitted = count <= self.max_connections;
        let thread = std::thread::Builder::new().name("client".into()).stack_size(STACK_BYTES);
        let started = thread.spawn(move || {
            // A panic ends this connection alone; the hook has logged it.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| here.run(&line, pid, admitted)));
            here.leave(id);
        });
        started.map(drop).map_err(|error| {
            self.leave(id);
            failed(error)
        })
    }

    fn run(&self, line: &Line, pid: i32, admitted: bool) {
        let mut reader = request_reader();
        let hello = match line.receive(&mut reader) {
            Ok(Some(Request::Hello { client, session })) => Ok((client, session)),
            Ok(None) | Err(FrameError::Io(_)) => return,
            Ok(Some(_)) => {
                Err(Error::new(ErrorKind::InvalidInput, "welcome a client", "it did not begin with a greeting"))
            }
            Err(error) => Err(error.into_error("welcome a client")),
        };
        let hello = hello.and_then(|hello| if admitted { Ok(hello) } else { Err(self.too_many_clients()) });
        let joined = hello.and_then(|(client, session)| self.join(client, session, pid));
        let (session, answer) = match joined {
            Ok(joined) => joined,
            Err(error) => {
                tracing::warn!(code = error.kind().code(), pid, %error, "client refused");
                let _ = line.send(&Reply::Failed(error).into());
                return;
            }
        };
        if line.send(&answer).is_ok() {
            drop(answer);
            if let Err(error) = serve(line, &session, &self.service, &mut reader) {
                tracing::warn!(code = error.kind().code(), pid, %error, "connection closed");
                let _ = line.send(&Reply::Failed(error).into());
            }
        }
        self.part(session.key.id);
    }

    fn join(&self, client: String, key: Option<SessionKey>, pid: i32) -> Result<(Arc<Session>, Answer)> {
        let mut state = self.state();
        let known = key.and_then(|key| state.sessions.get_mut(&key.id).filter(|joined| joined.session.key == key));
        let (session, memory) = match known {
            Some(joined) => {
                joined.connections += 1;
                (Arc::clone(&joined.session), None)
            }
            None => {
                state.next_session += 1;
                let id = state.next_session;
                let (session, memory) = Session::new(id, client, pid)?;
                let session = Arc::new(session);
                state.sessions.insert(id, Joined { session: Arc::clone(&session), connections: 1 });
                self.service.metrics.clients.inc();
                (session, Some(Arc::new(memory)))
            }
        };
        let welcome = Welcome {
            session: session.key,
            node_pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_string(),
        };
        Ok((session, Answer { reply: Reply::Welcome(welcome), descriptor: memory, granted: None }))
    }

    fn part(&self, session: u64) {
        let ended = {
            let mut state = self.state();
            let Some(joined) = state.sessions.get_mut(&session) else { return };
            joined.connections -= 1;
            if joined.connections > 0 {
                return;
            }
            self.service.metrics.clients.dec();
            state.sessions.remove(&session)
        };
        // Ends its leases and arenas: not under the lock.
        drop(ended);
    }

    fn leave(&self, connection: u64) {
        self.state().lines.remove(&connection);
        self.ended.notify_all();
    }

    fn too_many_clients(&self) -> Error {
        Error::new(ErrorKind::ResourceLimit, "connect to the node", "it serves as many connections as it may")
            .advise("close some clients, or raise node.max_connections")
            .fact("limit", self.max_connections)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while connections are counted")
    }
}

impl AsFd for DataSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
