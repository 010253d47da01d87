//! One connection to the node: a request, then its reply.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use penstock_node::protocol::{
    FrameError, FrameReader, FrameWriter, KEEP_ALIVE_S, REPLY_BYTES_MAX, Received, Reply, Request, SessionKey, Welcome,
    decode, encode,
};
use penstock_types::{Error, ErrorKind};
use pyo3::prelude::*;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SendFlags, send};

use super::pool::Pool;
use super::session::Session;

/// A node that says nothing for so long is taken for dead: it gives a sign of life every [`KEEP_ALIVE_S`].
const SILENCE_MAX: Duration = Duration::from_secs(3 * KEEP_ALIVE_S);

/// A connection of a session.
pub struct Connection {
    socket: UnixStream,
    reader: FrameReader,
    writer: FrameWriter,
    /// The session its leases and arenas belong to.
    pub session: Arc<Session>,
}

/// A reply and what came with it.
pub struct Exchange {
    /// The message.
    pub reply: Reply,
    /// The descriptor that came with it.
    pub descriptor: Option<OwnedFd>,
    /// The session it was given to.
    pub session: Arc<Session>,
}

/// Why an exchange failed.
pub enum ExchangeError {
    /// The connection is broken, and the node never had all of the request.
    Unsent(FrameError),
    /// The connection is broken: the node stopped, or was restarted. It may have done what was asked.
    Broken(FrameError),
    /// A signal handler raised.
    Interrupted(PyErr),
    /// Anything else.
    Failed(Error),
}

impl Connection {
    /// Connects and greets, as a further connection of `key` where the node still knows it; `known` is that session.
    pub fn open(pool: &Arc<Pool>, known: Option<Arc<Session>>) -> Result<Self, ExchangeError> {
        let (path, client) = (pool.path(), pool.client());
        let socket = UnixStream::connect(path).map_err(|error| ExchangeError::Failed(no_node(path, &error)))?;
        let timed = set_socket_timeout(&socket, Timeout::Recv, Some(SILENCE_MAX));
        timed.map_err(|error| ExchangeError::Broken(error.into()))?;
        let mut line = (socket, FrameReader::new(REPLY_BYTES_MAX), FrameWriter::default());
        let key = known.as_ref().map(|session| session.key);
        let (welcome, ring) = greet(&mut line, client, key)?;
        let (socket, reader, writer) = line;
        let session = match (known, ring) {
            (Some(session), None) if session.key == welcome.session => session,
            (_, Some(ring)) => Arc::new(Session::new(&welcome, ring.as_fd()).map_err(|error| {
                let error = Error::new(ErrorKind::ResourceLimit, "connect to the node", error.to_string());
                ExchangeError::Failed(error.advise("raise the limits of open files and memory"))
            })?),
            (_, None) => return Err(ExchangeError::Failed(out_of_order())),
        };
        Ok(Self { socket, reader, writer, session })
    }

    /// The descriptor, for those who must close it without this value.
    pub fn raw(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Has a request that wants no answer go with the next one.
    pub fn add_one_way(&mut self, request: &Request) {
        self.writer.push(request).expect("a list of numbers can be encoded");
    }

    /// Sends a request that wants no answer, now and without waiting, if it can go.
    pub fn send_one_way(&mut self, request: &Request) {
        let mut frame = Vec::new();
        if encode(request, &mut frame).is_ok() {
            // The kernel takes small frames whole or not at all.
            let _ = send(&self.socket, &frame, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }

    /// Sends a request and waits for its reply. Blocks: call it detached. After an error the connection is useless.
    pub fn exchange(&mut self, request: &Request) -> Result<(Reply, Option<OwnedFd>), ExchangeError> {
        self.writer.push(request).map_err(|error| ExchangeError::Failed(error.into_error("ask the node")))?;
        self.writer.flush(self.socket.as_fd(), None).map_err(ExchangeError::Unsent)?;
        receive(&self.socket, &mut self.reader)
    }
}

impl ExchangeError {
    /// Whether the node is gone.
    pub fn is_broken(&self) -> bool {
        matches!(self, Self::Unsent(_) | Self::Broken(_))
    }
}

type Line = (UnixStream, FrameReader, FrameWriter);

fn greet(
    (socket, reader, writer): &mut Line,
    client: &str,
    session: Option<SessionKey>,
) -> Result<(Welcome, Option<OwnedFd>), ExchangeError> {
    let hello = Request::Hello { client: client.to_string(), session };
    writer.push(&hello).map_err(ExchangeError::Broken)?;
    writer.flush(socket.as_fd(), None).map_err(ExchangeError::Broken)?;
    match receive(socket, reader)? {
        (Reply::Welcome(welcome), ring) => Ok((welcome, ring)),
        (Reply::Failed(error), _) => Err(ExchangeError::Failed(error)),
        _ => Err(ExchangeError::Failed(out_of_order())),
    }
}

fn receive(socket: &UnixStream, reader: &mut FrameReader) -> Result<(Reply, Option<OwnedFd>), ExchangeError> {
    let mut raised = None;
    loop {
        let received = reader.receive(socket.as_fd(), || match Python::attach(|py| py.check_signals()) {
            Ok(()) => Ok(()),
            Err(error) => {
                raised = Some(error);
                Err(FrameError::Io(std::io::ErrorKind::Interrupted.into()))
            }
        });
        if let Some(error) = raised {
            return Err(ExchangeError::Interrupted(error));
        }
        let frame = match received {
            Ok(Received::Frame(frame)) => frame,
            Ok(Received::Closed) => return Err(ExchangeError::Broken(FrameError::Truncated)),
            Err(error) if is_broken(&error) => return Err(ExchangeError::Broken(error)),
            Err(error) => return Err(ExchangeError::Failed(error.into_error("ask the node"))),
        };
        match decode(reader.body(&frame)) {
            Ok(Reply::Working) => {}
            Ok(reply) => return Ok((reply, reader.take_descriptor())),
            Err(error) => return Err(ExchangeError::Failed(error.into_error("ask the node"))),
        }
    }
}

/// Whether the other side is gone, as opposed to silent or talking nonsense.
fn is_broken(error: &FrameError) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    match error {
        FrameError::Truncated => true,
        FrameError::Io(error) => matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset),
        _ => false,
    }
}

fn no_node(path: &Path, error: &std::io::Error) -> Error {
    let start = "start it: penstock up, or penstock.connect()";
    let (kind, reason, advice) = match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            (ErrorKind::Unavailable, "no node is running".to_string(), start)
        }
        std::io::ErrorKind::PermissionDenied => (
            ErrorKind::PermissionDenied,
            "the node belongs to another user".to_string(),
            "use a home of your own: set PENSTOCK_HOME, or unset it",
        ),
        _ => (ErrorKind::Unavailable, error.to_string(), start),
    };
    Error::new(kind, "connect to the node", reason).advise(advice).fact("socket", path.display())
}

fn out_of_order() -> Error {
    Error::new(ErrorKind::Internal, "ask the node", "its answer does not fit the question").advise("report it")
}
