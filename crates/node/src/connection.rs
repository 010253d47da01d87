//! One client connection: a thread that takes a request, answers it, and takes the next.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use penstock_types::{Error, ErrorKind, Result};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tokio::sync::Notify;

use crate::answer::{Answer, Answerer, Service};
use crate::protocol::{
    FrameError, FrameReader, FrameWriter, KEEP_ALIVE_S, REPLY_BYTES_MAX, REQUEST_BYTES_MAX, Received, Reply, Request,
    decode, encode,
};
use crate::ring::Returned;
use crate::session::Session;

/// The half of a connection that others see: whether a request is under way, and the way to say so to the client.
pub struct Line {
    socket: UnixStream,
    writer: Mutex<FrameWriter>,
    /// Odd while a request is under way; goes up at each start and end.
    progress: AtomicU64,
    /// What `progress` was at the last look, and how many looks it has been the same.
    seen: Mutex<(u64, u64)>,
    /// Rings when the client is gone.
    gone: Notify,
}

impl Line {
    /// The line of an accepted socket.
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            writer: Mutex::default(),
            progress: AtomicU64::new(0),
            seen: Mutex::default(),
            gone: Notify::new(),
        }
    }

    /// Looks once a second: a request that has been under way for a while makes a sign of life, and one whose client
    /// is gone is given up.
    pub fn look(&self) {
        let progress = self.progress.load(Ordering::Relaxed);
        let mut seen = self.seen.lock().expect("no panic while looking");
        *seen = if seen.0 == progress { (progress, seen.1 + 1) } else { (progress, 0) };
        if progress.is_multiple_of(2) || seen.1 == 0 || !seen.1.is_multiple_of(KEEP_ALIVE_S) {
            return;
        }
        let Ok(_writer) = self.writer.try_lock() else { return };
        if self.progress.load(Ordering::Acquire) != progress {
            return;
        }
        let mut frame = Vec::new();
        encode(&Reply::Working, &mut frame).expect("a reply without content can be encoded");
        // A client that does not read has no room for signs of life either: other failures say nothing.
        let sent = send(&self.socket, &frame, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        if matches!(sent, Err(Errno::PIPE | Errno::CONNRESET)) {
            self.gone.notify_one();
        }
    }

    /// Ends the connection once the request under way is answered.
    pub fn end_softly(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Read);
    }

    /// Ends the connection now.
    pub fn end(&self) {
        self.gone.notify_one();
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Sends a reply; one that is too large for a frame is replaced by an error that says so.
    pub fn send(&self, answer: &Answer) -> std::result::Result<(), FrameError> {
        let mut writer = self.writer.lock().expect("no panic while a frame is sent");
        writer.push(&answer.reply)?;
        let mut descriptor = answer.descriptor.as_ref().map(|descriptor| descriptor.as_fd());
        if writer.len() > REPLY_BYTES_MAX {
            writer.clear();
            let error = Error::new(ErrorKind::ResourceLimit, "answer a client", "the answer is too large for a frame");
            writer.push(&Reply::Failed(error.advise("ask for less at once")))?;
            descriptor = None;
        }
        writer.flush(self.socket.as_fd(), descriptor)
    }

    /// Waits for the next request; `None` at the end of the connection.
    pub fn receive(&self, reader: &mut FrameReader) -> std::result::Result<Option<Request>, FrameError> {
        match reader.receive(self.socket.as_fd(), || Ok(()))? {
            Received::Closed => Ok(None),
            Received::Frame(frame) => decode(reader.body(&frame)).map(Some),
        }
    }
}

/// A reader of requests.
pub fn request_reader() -> FrameReader {
    FrameReader::new(REQUEST_BYTES_MAX)
}

/// Serves requests until the client closes or sends something that is no request.
pub fn serve(line: &Line, session: &Session, service: &Arc<Service>, reader: &mut FrameReader) -> Result<()> {
    let answerer = Answerer { service, session, gone: &line.gone };
    // What the last reply granted, until the next request shows that the client has read it.
    let mut unread: Option<Returned> = None;
    let ended = loop {
        let request = match line.receive(reader) {
            Ok(Some(request)) => request,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        unread = None;
        if matches!(request, Request::Goodbye) {
            break Ok(());
        }
        service.metrics.client_requests.inc();
        line.progress.fetch_add(1, Ordering::AcqRel);
        let answer = answerer.answer(request);
        let sent = answer.as_ref().map_or(Ok(()), |answer| {
            line.progress.fetch_add(1, Ordering::AcqRel);
            line.send(answer)
        });
        if answer.is_none() {
            line.progress.fetch_add(1, Ordering::AcqRel);
        }
        unread = answer.and_then(|answer| answer.granted);
        if let Err(error) = sent {
            break Err(error);
        }
    };
    session.take_back(unread, service.clock.monotonic());
    match ended {
        // A client that died with a reply on its way is nothing to report.
        Err(FrameError::Io(_)) | Ok(()) => Ok(()),
        Err(error) => Err(error.into_error("read a request")),
    }
}
