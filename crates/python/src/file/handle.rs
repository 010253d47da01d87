//! The bytes behind an open file: a lent descriptor, and what of it may be read.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use penstock_node::ReadHint;
use penstock_node::protocol::{Opened, Reply, Request};
use penstock_node::ring::Returned;
use penstock_types::{ByteRange, Error, ErrorKind};
use pyo3::prelude::*;
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};

use crate::client::{Pool, Session, unexpected};
use crate::errors::raise;

/// How often the node may say that nothing is ready before we stop asking.
const EMPTY_ANSWERS_MAX: usize = 8;

/// A lease and its descriptor. The lease ends when this is dropped.
pub struct Handle {
    session: Arc<Session>,
    lease: u64,
    size: u64,
    /// Set once every byte is present: then the descriptor is all that is needed.
    complete: OnceLock<Arc<OwnedFd>>,
    /// Held while the node is asked and the answer is read, because the next answer may void it. Taken only by
    /// threads detached from the interpreter; a forked child never takes it.
    partial: Mutex<Partial>,
    forgotten: AtomicBool,
}

struct Partial {
    descriptor: Arc<OwnedFd>,
    ready: ByteRange,
}

/// How a read of an incomplete file ended.
pub enum Outcome {
    /// The bytes are there.
    Done,
    /// The node does not know the lease.
    Forgotten,
    /// The lent file cannot be read, or is not as long as it was.
    Damaged(Error),
}

impl Handle {
    /// The handle of an open file.
    pub fn new(session: Arc<Session>, opened: &Opened, descriptor: OwnedFd) -> Self {
        let descriptor = Arc::new(descriptor);
        let complete = OnceLock::new();
        if opened.complete {
            // A new cell is empty.
            let _ = complete.set(Arc::clone(&descriptor));
        }
        let partial = Mutex::new(Partial { descriptor, ready: ByteRange::default() });
        let forgotten = AtomicBool::new(false);
        Self { session, lease: opened.lease, size: opened.size, complete, partial, forgotten }
    }

    /// How many of `len` bytes from `offset` on are inside the file.
    pub fn clipped(&self, offset: u64, len: usize) -> usize {
        len.min(usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX))
    }

    /// Whether the lease is this process's and the node may still know it.
    pub fn is_ours(&self) -> bool {
        !self.forgotten.load(Ordering::Relaxed) && self.session.is_ours()
    }

    /// Notes that the node does not know the lease.
    pub fn forget(&self) {
        self.forgotten.store(true, Ordering::Relaxed);
    }

    /// The descriptor, where every byte can be read from it without asking.
    pub fn complete_descriptor(&self) -> Option<&Arc<OwnedFd>> {
        self.complete.get()
    }

    /// Fills `out` from a complete file where the kernel has all of it in memory; never waits for a disk.
    pub fn read_at_once(&self, offset: u64, out: &mut [u8]) -> bool {
        let wanted = out.len();
        let read = |file| preadv2(file, &mut [IoSliceMut::new(out)], offset, ReadWriteFlags::NOWAIT);
        self.complete.get().map(read) == Some(Ok(wanted))
    }

    /// Reads from a complete file; `None` when it is not known to be complete.
    pub fn read_complete(&self, path: &str, offset: u64, out: &mut [u8]) -> Option<Result<(), Error>> {
        let descriptor = self.complete.get()?;
        Some(read_exactly(descriptor, path, offset, out))
    }

    /// Reads from a file of which bytes may be missing: asks for them, a stretch at a time.
    pub fn read_partial(&self, pool: &Arc<Pool>, path: &str, offset: u64, out: &mut [u8]) -> PyResult<Outcome> {
        let mut partial = self.partial.lock().expect("no panic while bytes are copied");
        let end = offset + out.len() as u64;
        let (mut done, mut empty) = (0, 0);
        while done < out.len() {
            let at = offset + done as u64;
            if let Some(outcome) = self.read_complete(path, at, &mut out[done..]) {
                return Ok(outcome.map_or_else(Outcome::Damaged, |()| Outcome::Done));
            }
            if !(partial.ready.start..partial.ready.end).contains(&at) {
                if empty >= EMPTY_ANSWERS_MAX {
                    return Err(raise(&Error::new(ErrorKind::Timeout, format!("read {path}"), "no bytes came")));
                }
                empty += 1;
                if !self.ensure(pool, &mut partial, ByteRange::new(at, end), path)? {
                    return Ok(Outcome::Forgotten);
                }
                continue;
            }
            empty = 0;
            let len = usize::try_from(partial.ready.end.min(end) - at).expect("a part of a buffer fits memory");
            let piece = &mut out[done..done + len];
            if let Err(error) = read_exactly(&partial.descriptor, path, at, piece) {
                return Ok(Outcome::Damaged(error));
            }
            done += len;
        }
        Ok(Outcome::Done)
    }

    /// Asks for a range; `false` when the node does not know the lease.
    fn ensure(&self, pool: &Arc<Pool>, partial: &mut Partial, range: ByteRange, path: &str) -> PyResult<bool> {
        let request = Request::Ensure { lease: self.lease, range, hint: ReadHint::Auto };
        // Whatever is answered may void what was ready before.
        partial.ready = ByteRange::default();
        let Some(exchange) = Python::attach(|py| pool.ask_holder(py, &self.session, &request))? else {
            return Ok(false);
        };
        let ready = match exchange.reply {
            Reply::Ready(ready) => ready,
            Reply::NotLeased => return Ok(false),
            _ => return Err(unexpected(&format!("read {path}"))),
        };
        if let Some(descriptor) = exchange.descriptor {
            partial.descriptor = Arc::new(descriptor);
        }
        if ready.range.start > ready.range.end || ready.range.end > self.size {
            return Err(unexpected(&format!("read {path}")));
        }
        partial.ready = ready.range;
        if ready.complete {
            // Only the thread that holds `partial` sets it.
            let _ = self.complete.set(Arc::clone(&partial.descriptor));
        }
        Ok(true)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.forgotten.load(Ordering::Relaxed) {
            self.session.give_back(Returned::Lease(self.lease));
        }
    }
}

fn read_exactly(descriptor: &OwnedFd, path: &str, offset: u64, out: &mut [u8]) -> Result<(), Error> {
    let mut done = 0;
    while done < out.len() {
        match pread(descriptor, &mut out[done..], offset + done as u64) {
            Ok(0) => {
                return Err(Error::new(ErrorKind::Corrupt, format!("read {path}"), "its cached file is too short")
                    .advise("open it again: the cache fetches what is damaged anew")
                    .fact("offset", offset + done as u64));
            }
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(Error::new(ErrorKind::Disk, format!("read {path}"), error.to_string())
                    .advise("check the cache disk: penstock doctor"));
            }
        }
    }
    Ok(())
}
