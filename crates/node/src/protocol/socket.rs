//! Frames over a Unix stream socket, with descriptors.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, send, sendmsg,
};
use serde::Serialize;

use super::FrameError;
use super::frame::{Frame, encode, split};

/// What the buffer holds between frames; larger frames borrow more for as long as they last.
const BUFFER_BYTES: usize = 16 * 1024;
/// Descriptors that may come with one message.
const DESCRIPTORS_MAX: usize = 2;

/// A frame, by where its body is in the reader's buffer, or the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Received {
    /// A frame came; see [`FrameReader::body`].
    Frame(Range<usize>),
    /// The other side closed between two frames.
    Closed,
}

/// Takes frames from a socket.
pub struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    limit: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl FrameReader {
    /// A reader of frames whose bodies have at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: vec![0; BUFFER_BYTES], start: 0, end: 0, limit, descriptors: VecDeque::new() }
    }

    /// Blocks until a whole frame is there. `interrupted` is asked whenever a signal broke the wait; `Err` gives up.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        mut interrupted: impl FnMut() -> Result<(), FrameError>,
    ) -> Result<Received, FrameError> {
        loop {
            let needed = match split(&self.buffer[self.start..self.end], self.limit)? {
                Frame::Complete(body) => {
                    let body = self.start + body.start..self.start + body.end;
                    self.start = body.end;
                    return Ok(Received::Frame(body));
                }
                Frame::Incomplete(needed) => needed,
            };
            self.make_room(needed);
            match self.fill(socket) {
                Ok(0) if self.start == self.end => return Ok(Received::Closed),
                Ok(0) => return Err(FrameError::Truncated),
                Ok(_) => {}
                Err(FrameError::Io(error)) if error.kind() == std::io::ErrorKind::Interrupted => interrupted()?,
                Err(error) => return Err(error),
            }
        }
    }

    /// The bytes of a frame's body; valid until the next `receive`.
    pub fn body(&self, frame: &Range<usize>) -> &[u8] {
        &self.buffer[frame.clone()]
    }

    /// The next descriptor that came with frames.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// Whether bytes of a further frame have already come.
    pub fn has_more(&self) -> bool {
        self.start < self.end
    }

    fn make_room(&mut self, needed: usize) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() < needed {
            self.buffer.resize(needed, 0);
        } else if self.buffer.len() > BUFFER_BYTES && needed <= BUFFER_BYTES && self.end <= BUFFER_BYTES {
            self.buffer.truncate(BUFFER_BYTES);
            self.buffer.shrink_to_fit();
        }
    }

    fn fill(&mut self, socket: BorrowedFd<'_>) -> Result<usize, FrameError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut self.buffer[self.end..])];
        let message = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for received in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = received {
                self.descriptors.extend(descriptors);
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            // The kernel could not give us the descriptor: this process has too many open.
            return Err(Errno::MFILE.into());
        }
        if self.descriptors.len() > DESCRIPTORS_MAX {
            return Err(FrameError::Length(self.descriptors.len()));
        }
        self.end += message.bytes;
        Ok(message.bytes)
    }
}

/// Puts frames on a socket.
#[derive(Default)]
pub struct FrameWriter {
    buffer: Vec<u8>,
}

impl FrameWriter {
    /// Adds a message to what the next flush sends. A message that fails to encode adds nothing.
    pub fn push<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        let before = self.buffer.len();
        let encoded = encode(message, &mut self.buffer);
        if encoded.is_err() {
            self.buffer.truncate(before);
        }
        encoded
    }

    /// Bytes that wait for the flush.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing waits for the flush.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Forgets what was pushed.
    pub fn clear(&mut self) {
        self.buffer.clear();
    }

    /// Sends everything that was pushed; the descriptor goes with the first byte. Leaves nothing behind on failure.
    pub fn flush(&mut self, socket: BorrowedFd<'_>, descriptor: Option<BorrowedFd<'_>>) -> Result<(), FrameError> {
        let sent = send_all(socket, &self.buffer, descriptor);
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES * 4);
        sent
    }
}

fn send_all(socket: BorrowedFd<'_>, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<(), FrameError> {
    let mut sent = match descriptor {
        None => 0,
        Some(descriptor) => send_with(socket, bytes, descriptor)?,
    };
    while sent < bytes.len() {
        match send(socket, &bytes[sent..], SendFlags::NOSIGNAL) {
            Ok(count) => sent += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], descriptor: BorrowedFd<'_>) -> Result<usize, FrameError> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "the space holds one descriptor");
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent?),
        }
    }
}
