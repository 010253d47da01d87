//! A file of the stage that this process writes into by itself, until it is committed or given back.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use penstock_node::protocol::{Reply, Request};
use penstock_node::ring::Returned;
use penstock_types::{ByteRange, Error, ErrorKind};
use pyo3::prelude::*;
use rustix::fs::{SeekFrom, fstat, ftruncate, seek};
use rustix::io::{Errno, pwrite};

use super::Aim;
use super::onto::Onto;
use crate::client::{Session, Told, unexpected};
use crate::errors::{is_kind, raise};

/// Writes that follow each other are gathered up to this size: a system call each would cost more than the copy.
const GATHERED_BYTES: usize = 1024 * 1024;
/// The first room that is asked for, bytes; later it is doubled.
const ROOM_BYTES_MIN: u64 = 1024 * 1024;
/// Most room that is asked for in advance, bytes; and most that is written before signals are looked at.
const ROOM_BYTES_STEP: u64 = 64 * 1024 * 1024;

/// A draft; dropping it ends the lease, and what was not committed is discarded.
pub struct Draft {
    aim: Arc<Aim>,
    session: Arc<Session>,
    pub(super) lease: u64,
    pub(super) file: OwnedFd,
    /// Bytes up to here have room in the stage.
    room: u64,
    /// The stage is nearly full: no more room is asked for than is needed.
    scarce: bool,
    /// What was written and is not in the file yet.
    gathered: Vec<u8>,
    /// Where it goes.
    gathered_at: u64,
    /// What it goes on from, where that is not all in it.
    pub(super) onto: Option<Onto>,
    /// It is not as it was found.
    pub(super) changed: bool,
    /// Somebody has the number of the descriptor, and writes and seeks by himself.
    shared: bool,
}

impl Draft {
    /// Asks the node for one that begins with `content`.
    pub fn ask(py: Python<'_>, aim: &Arc<Aim>, content: Vec<u8>) -> PyResult<Self> {
        let request = Request::Create {
            path: aim.path.clone(),
            exclusive: aim.exclusive,
            durability: aim.durability,
            set: aim.set.clone(),
        };
        let exchange = aim.pool.ask(py, &request)?;
        let (Reply::Created { lease }, Some(file)) = (exchange.reply, exchange.descriptor) else {
            return Err(unexpected(&aim.writing()));
        };
        let mut draft = Self::new(aim, exchange.session, (lease, file), None);
        (draft.gathered, draft.changed) = (content, true);
        Ok(draft)
    }

    /// One that goes on from what was there.
    pub(super) fn going_on(
        aim: &Arc<Aim>,
        session: Arc<Session>,
        lent: (u64, OwnedFd),
        onto: Option<Onto>,
    ) -> PyResult<Self> {
        let mut draft = Self::new(aim, session, lent, onto);
        // The node has taken room for what it holds.
        draft.room = draft.onto.as_ref().map_or_else(|| draft.len(), |onto| Ok(onto.used()))?;
        Ok(draft)
    }

    fn new(aim: &Arc<Aim>, session: Arc<Session>, (lease, file): (u64, OwnedFd), onto: Option<Onto>) -> Self {
        Self {
            aim: Arc::clone(aim),
            session,
            lease,
            file,
            room: 0,
            scarce: false,
            gathered: Vec::new(),
            gathered_at: 0,
            onto,
            changed: false,
            shared: false,
        }
    }

    /// Takes bytes that go at `at`.
    pub fn put(&mut self, py: Python<'_>, at: u64, bytes: &[u8]) -> PyResult<()> {
        let follows = at == self.gathered_at + self.gathered.len() as u64;
        if !follows || self.gathered.len() + bytes.len() > GATHERED_BYTES {
            self.spill(py)?;
        }
        if self.shared || bytes.len() >= GATHERED_BYTES {
            return self.write(py, at, bytes);
        }
        if self.gathered.is_empty() {
            self.gathered_at = at;
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    /// Puts what was gathered into the file.
    pub fn spill(&mut self, py: Python<'_>) -> PyResult<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        self.write(py, self.gathered_at, &gathered)?;
        gathered.clear();
        self.gathered = gathered;
        Ok(())
    }

    /// Where its content ends.
    pub fn len(&self) -> PyResult<u64> {
        let stat = fstat(&self.file).map_err(|error| self.failed(error))?;
        let written = u64::try_from(stat.st_size).unwrap_or(0);
        let gathered = self.gathered.len() as u64;
        Ok(if gathered == 0 { written } else { written.max(self.gathered_at + gathered) })
    }

    /// Cuts it, or makes it longer by zeros.
    pub fn truncate(&mut self, py: Python<'_>, size: u64) -> PyResult<()> {
        self.spill(py)?;
        let len = self.len()?;
        if size > len {
            self.make_room(py, self.room_for(ByteRange::new(len, size)))?;
        }
        py.detach(|| ftruncate(&self.file, size)).map_err(|error| self.failed(error))?;
        self.note_size(size);
        Ok(())
    }

    /// The number of its descriptor, for somebody who writes by himself from `position` on.
    pub fn share(&mut self, py: Python<'_>, position: u64) -> PyResult<RawFd> {
        self.spill(py)?;
        self.shared = true;
        self.move_to(position)?;
        Ok(self.file.as_raw_fd())
    }

    /// The position of the descriptor, where somebody else moves it too.
    pub fn shared_position(&self) -> PyResult<Option<u64>> {
        if !self.shared {
            return Ok(None);
        }
        seek(&self.file, SeekFrom::Current(0)).map(Some).map_err(|error| self.failed(error))
    }

    /// Moves the position of the descriptor, where somebody else moves it too.
    pub fn move_to(&self, position: u64) -> PyResult<()> {
        if self.shared {
            seek(&self.file, SeekFrom::Start(position)).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Makes it the content of its file.
    pub fn commit(mut self, py: Python<'_>) -> PyResult<()> {
        self.spill(py)?;
        if self.shared {
            // What others wrote has not been accounted for.
            self.make_room(py, self.len()?)?;
        } else if !self.changed {
            return Ok(());
        }
        match self.aim.pool.ask_holder_once(py, &self.session, &self.committing()) {
            Ok(Told::Answered(exchange)) => match exchange.reply {
                Reply::Entry(_) => Ok(()),
                Reply::NotLeased => Err(self.lost()),
                _ => Err(unexpected(&self.aim.closing())),
            },
            Ok(Told::Forgotten) => Err(self.lost()),
            Ok(Told::Unanswered) => Err(self.aim.unsettled(py)),
            Err(error) => Err(self.aim.interrupted(py, self.aim.named(py, error))),
        }
    }

    /// Writes, a piece at a time, so that a signal need not wait for all of it.
    fn write(&mut self, py: Python<'_>, at: u64, bytes: &[u8]) -> PyResult<()> {
        let mut at = at;
        let mut pieces = bytes.chunks(usize::try_from(ROOM_BYTES_STEP).expect("it fits memory")).peekable();
        while let Some(piece) = pieces.next() {
            let range = ByteRange::new(at, at + piece.len() as u64);
            self.write_piece(py, range, piece)?;
            self.join(py)?;
            at = range.end;
            if pieces.peek().is_some() {
                py.check_signals()?;
            }
        }
        Ok(())
    }

    pub(super) fn write_piece(&mut self, py: Python<'_>, range: ByteRange, bytes: &[u8]) -> PyResult<()> {
        self.make_room(py, self.room_for(range))?;
        py.detach(|| write_all(&self.file, range.start, bytes)).map_err(|error| self.failed(error))?;
        self.note_written(range);
        Ok(())
    }

    /// Has the node make room up to `end`, and some in advance.
    fn make_room(&mut self, py: Python<'_>, end: u64) -> PyResult<()> {
        while self.room < end {
            let ahead = if self.scarce { 0 } else { self.room.clamp(ROOM_BYTES_MIN, ROOM_BYTES_STEP) };
            let to = end.max(self.room + ahead);
            match self.aim.pool.ask_holder_once(py, &self.session, &Request::Grow { lease: self.lease, to }) {
                Ok(Told::Answered(exchange)) => match exchange.reply {
                    Reply::Done => self.room = to,
                    Reply::NotLeased => return Err(self.lost()),
                    _ => return Err(unexpected(&self.aim.writing())),
                },
                Ok(Told::Forgotten | Told::Unanswered) => return Err(self.lost()),
                Err(error) if to > end && is_kind(py, &error, ErrorKind::NoSpace) => self.scarce = true,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn failed(&self, error: Errno) -> PyErr {
        let kind = ErrorKind::of_disk(&error.into());
        let advice = match kind {
            ErrorKind::NoSpace => "free space on the disk of the stage, and write the file again",
            _ => "check the disk of the stage: penstock doctor; and write the file again",
        };
        raise(&Error::new(kind, self.aim.writing(), std::io::Error::from(error).to_string()).advise(advice))
    }

    fn lost(&self) -> PyErr {
        let reason = "the node was restarted, and does not know what was written before";
        raise(
            &Error::new(ErrorKind::Unavailable, self.aim.writing(), reason)
                .advise("write the file again; after a crash, what there was of it is kept: see penstock status"),
        )
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a commit the node does not know the lease any more, and ignores this.
        self.session.give_back(Returned::Lease(self.lease));
    }
}

fn write_all(file: &OwnedFd, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match pwrite(file, &bytes[done..], at + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
