//! The connections of this process to one node. A thread takes one for the time of a request; idle ones are kept.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use penstock_node::protocol::{Reply, Request};
use penstock_node::ring::Returned;
use penstock_types::{Error, ErrorKind};
use pyo3::prelude::*;

use super::connection::{Connection, Exchange, ExchangeError};
use super::fork;
use super::session::Session;
use crate::errors::{is_kind, raise};

/// Idle connections that are kept; each costs the node a thread.
const IDLE_MAX: usize = 4;
/// A request is sent again on a new connection once: when the node was restarted, the old ones are broken.
const ATTEMPTS: usize = 2;

/// Connections to one node.
pub struct Pool {
    path: PathBuf,
    client: String,
    state: Mutex<State>,
}

/// What came of a request to one session.
pub enum Told {
    /// It answered.
    Answered(Exchange),
    /// It is no more, and was not asked.
    Forgotten,
    /// It was asked, and ended without an answer: it may have done it.
    Unanswered,
}

#[derive(Default)]
struct State {
    pid: u32,
    session: Option<Arc<Session>>,
    idle: Vec<Connection>,
    /// Every open connection, those in use included.
    open: Vec<RawFd>,
}

impl Pool {
    /// A pool that connects when it is first used.
    pub fn new(path: &Path, client: &str) -> Arc<Self> {
        let pool = Arc::new(Self {
            path: path.to_path_buf(),
            client: client.to_string(),
            state: Mutex::new(State::default()),
        });
        fork::watch(&pool);
        pool
    }

    /// The pool of this process for that socket, made when there is none.
    pub fn shared(path: &Path, client: &str) -> Arc<Self> {
        fork::find(|pool| pool.path == path && pool.client == client).unwrap_or_else(|| Self::new(path, client))
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name that `status` shows.
    pub fn client(&self) -> &str {
        &self.client
    }

    /// Asks the node and waits for the answer; a failure that the node reports is raised. Lets go of the interpreter
    /// while it waits.
    pub fn ask(self: &Arc<Self>, py: Python<'_>, request: &Request) -> PyResult<Exchange> {
        self.ask_noting(py, request, &mut false)
    }

    /// As [`Pool::ask`], and notes in `unanswered` whether the node was asked once without an answer: it may have done
    /// what was asked then.
    pub fn ask_noting(
        self: &Arc<Self>,
        py: Python<'_>,
        request: &Request,
        unanswered: &mut bool,
    ) -> PyResult<Exchange> {
        let mut attempt = 1;
        loop {
            let connection = self.take(py)?;
            match self.exchange(py, connection, request) {
                Ok(exchange) => return exchange.or_raise(),
                Err(error) => {
                    *unanswered |= !matches!(error, ExchangeError::Unsent(_));
                    self.give_up_or_retry(error, attempt)?;
                    attempt += 1;
                }
            }
        }
    }

    /// As [`Pool::ask`], but only of the session that holds a lease; `None` when that session is no more.
    pub fn ask_holder(
        self: &Arc<Self>,
        py: Python<'_>,
        holder: &Arc<Session>,
        request: &Request,
    ) -> PyResult<Option<Exchange>> {
        if !holder.is_ours() {
            return Ok(None);
        }
        let connection = self.take(py)?;
        let same = Arc::ptr_eq(&connection.session, holder);
        self.put_back(connection);
        if !same {
            return Ok(None);
        }
        let exchange = self.ask(py, request)?;
        Ok(Arc::ptr_eq(&exchange.session, holder).then_some(exchange))
    }

    /// Asks the session that holds a lease something that must be done once at most, and of no other session, where
    /// the number of the lease may mean something else.
    pub fn ask_holder_once(
        self: &Arc<Self>,
        py: Python<'_>,
        holder: &Arc<Session>,
        request: &Request,
    ) -> PyResult<Told> {
        if !holder.is_ours() {
            return Ok(Told::Forgotten);
        }
        let connection = match self.take(py) {
            Err(error) if is_kind(py, &error, ErrorKind::Unavailable) => return Ok(Told::Forgotten),
            connection => connection?,
        };
        if !Arc::ptr_eq(&connection.session, holder) {
            self.put_back(connection);
            return Ok(Told::Forgotten);
        }
        match self.exchange(py, connection, request) {
            Ok(exchange) => exchange.or_raise().map(Told::Answered),
            Err(ExchangeError::Unsent(_)) => Ok(Told::Forgotten),
            Err(ExchangeError::Broken(_)) => Ok(Told::Unanswered),
            Err(ExchangeError::Interrupted(error)) => Err(error),
            Err(ExchangeError::Failed(error)) => Err(raise(&error)),
        }
    }

    /// Closes every idle connection; what is in use closes when it is done. The session ends with the last one.
    pub fn close(&self) {
        let mut state = self.state();
        for connection in std::mem::take(&mut state.idle) {
            state.open.retain(|raw| *raw != connection.raw());
        }
        state.session = None;
    }

    /// In a forked child: closes what belongs to the parent, without a word to the node.
    pub fn leave_to_parent(&self) {
        let Ok(mut state) = self.state.try_lock() else { return };
        let idle: Vec<RawFd> = state.idle.iter().map(Connection::raw).collect();
        for raw in state.open.iter().filter(|raw| !idle.contains(raw)) {
            // SAFETY: the connection was in use by a thread of the parent, which does not exist in this process, so
            // nothing here owns the descriptor.
            unsafe { rustix::io::close(*raw) };
        }
        *state = State { pid: std::process::id(), ..State::default() };
    }

    fn take(self: &Arc<Self>, py: Python<'_>) -> PyResult<Connection> {
        loop {
            let known = {
                let mut state = self.state();
                if let Some(connection) = state.idle.pop() {
                    return Ok(connection);
                }
                state.session.clone().filter(|session| session.is_ours())
            };
            let opened = py.detach(|| Connection::open(self, known.clone()));
            let connection = match opened {
                Ok(connection) => connection,
                Err(error) => {
                    self.give_up_or_retry(error, ATTEMPTS)?;
                    continue;
                }
            };
            let mut state = self.state();
            match state.session.as_ref().filter(|session| session.is_ours()) {
                // Another thread was welcomed first: its session is ours too.
                Some(session) if !Arc::ptr_eq(session, &connection.session) && known.is_none() => {}
                _ => {
                    state.session = Some(Arc::clone(&connection.session));
                    state.open.push(connection.raw());
                    return Ok(connection);
                }
            }
        }
    }

    /// Has one connection ask; keeps it when that went well.
    fn exchange(
        &self,
        py: Python<'_>,
        mut connection: Connection,
        request: &Request,
    ) -> Result<Exchange, ExchangeError> {
        let late = connection.session.take_late();
        let outcome = py.detach(|| {
            if !late.is_empty() {
                connection.add_one_way(&release(&late));
            }
            connection.exchange(request)
        });
        match outcome {
            Ok((reply, descriptor)) => {
                let session = Arc::clone(&connection.session);
                self.put_back(connection);
                Ok(Exchange { reply, descriptor, session })
            }
            Err(error) => {
                self.discard(connection, error.is_broken());
                Err(error)
            }
        }
    }

    fn put_back(&self, mut connection: Connection) {
        let mut state = self.state();
        let current = state.session.as_ref().is_some_and(|session| Arc::ptr_eq(session, &connection.session));
        if current && state.idle.len() < IDLE_MAX {
            state.idle.push(connection);
            return;
        }
        state.open.retain(|raw| *raw != connection.raw());
        drop(state);
        // Every reply was read: what it granted stays granted.
        connection.send_one_way(&Request::Goodbye);
    }

    /// Drops a connection; with `broken`, the session and its other connections too: the node is gone.
    fn discard(&self, connection: Connection, broken: bool) {
        let mut state = self.state();
        state.open.retain(|raw| *raw != connection.raw());
        if !broken {
            return;
        }
        connection.session.end();
        if state.session.as_ref().is_some_and(|session| Arc::ptr_eq(session, &connection.session)) {
            state.session = None;
            for idle in std::mem::take(&mut state.idle) {
                state.open.retain(|raw| *raw != idle.raw());
            }
        }
    }

    fn give_up_or_retry(&self, error: ExchangeError, attempt: usize) -> PyResult<()> {
        match error {
            ExchangeError::Broken(_) | ExchangeError::Unsent(_) if attempt < ATTEMPTS => Ok(()),
            ExchangeError::Broken(error) | ExchangeError::Unsent(error) => {
                Err(raise(&error.into_error("ask the node")))
            }
            ExchangeError::Interrupted(error) => Err(error),
            ExchangeError::Failed(error) => Err(raise(&error)),
        }
    }

    /// Only threads attached to the interpreter come here, so a fork never copies it locked.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().expect("no panic while connections are counted");
        let pid = std::process::id();
        if state.pid != pid {
            // A fork that the interpreter did not see: let the parent's connections be.
            let inherited = std::mem::replace(&mut *state, State { pid, ..State::default() });
            drop(inherited);
        }
        state
    }
}

impl Exchange {
    /// Itself, unless the node reports a failure: that is raised.
    fn or_raise(self) -> PyResult<Self> {
        match self.reply {
            Reply::Failed(error) => Err(raise(&error)),
            _ => Ok(self),
        }
    }
}

fn release(late: &[Returned]) -> Request {
    let (mut leases, mut arenas) = (Vec::new(), Vec::new());
    for returned in late {
        match returned {
            Returned::Lease(id) => leases.push(*id),
            Returned::Arena(arena) => arenas.push(*arena),
        }
    }
    Request::Release { leases, arenas }
}

/// What a reply that does not fit its request raises.
pub fn unexpected(request: &str) -> PyErr {
    let error = Error::new(ErrorKind::Internal, request, "the node's answer does not fit the question");
    raise(&error.advise("report it"))
}
