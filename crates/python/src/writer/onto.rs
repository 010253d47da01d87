//! What a draft goes on from: all of the version that was opened, or of a large one only what is written.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use penstock_node::Patch;
use penstock_node::protocol::{Reply, Request};
use penstock_types::{ByteRange, ErrorKind};
use pyo3::prelude::*;
use rustix::io::{Errno, pread, retry_on_intr};

use super::draft::Draft;
use super::{Aim, Opening};
use crate::client::unexpected;
use crate::errors::is_kind;
use crate::file::File;

/// How often a file is opened again because it changed before it could be gone on from.
const TRIES_MAX: usize = 4;
/// How much is brought at once of what lies between too many written ranges.
const STEP: usize = 8 * 1024 * 1024;

/// A version that only some bytes of a draft take the place of.
pub struct Onto {
    /// The version.
    base: File,
    /// Which bytes are the draft's own.
    patch: Patch,
    /// How many they were, at most: what was cut off meanwhile counts.
    used: u64,
}

impl Aim {
    /// What is there and is to be changed; `None` where nothing is, and something is to be appended.
    pub fn find(&self, py: Python<'_>) -> PyResult<Option<File>> {
        match File::open(py, &self.pool, self.path.clone(), None) {
            Ok(found) => Ok(Some(found)),
            Err(error) if self.opening == Opening::Append && is_kind(py, &error, ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Draft {
    /// Asks the node for one that goes on from what was found.
    pub fn onto(py: Python<'_>, aim: &Arc<Aim>, mut found: File) -> PyResult<Self> {
        for turn in 1.. {
            let version = found.pinned_version();
            let request = Request::Edit { path: aim.path.clone(), version, durability: aim.durability };
            let exchange = match aim.pool.ask(py, &request) {
                Err(error) if turn < TRIES_MAX && is_kind(py, &error, ErrorKind::StaleVersion) => {
                    found = aim.find(py)?.ok_or(error)?;
                    continue;
                }
                exchange => exchange?,
            };
            let (Reply::Editing { lease, patch }, Some(file)) = (exchange.reply, exchange.descriptor) else { break };
            let onto = patch.map(|patch| {
                let used = patch.own_bytes(ByteRange::new(0, found.len()));
                Onto { base: found, patch, used }
            });
            return Self::going_on(aim, exchange.session, (lease, file), onto);
        }
        Err(unexpected(&aim.writing()))
    }

    /// Whether the bytes of the version that is changed are not all in the file.
    pub fn is_partial(&self) -> bool {
        self.onto.is_some()
    }

    /// Up to how many bytes it needs room when a range was written.
    pub(super) fn room_for(&self, range: ByteRange) -> u64 {
        self.onto.as_ref().map_or(range.end, |onto| onto.used + onto.missing(range))
    }

    /// Notes that a range was written.
    pub(super) fn note_written(&mut self, range: ByteRange) {
        self.changed = true;
        if let Some(onto) = &mut self.onto {
            onto.used += onto.missing(range);
            onto.patch.write(range);
        }
    }

    /// Notes that it was cut, or grew.
    pub(super) fn note_size(&mut self, size: u64) {
        self.changed = true;
        if let Some(onto) = &mut self.onto {
            onto.patch.cut(size);
        }
    }

    /// How it is committed.
    pub(super) fn committing(&self) -> Request {
        match &self.onto {
            Some(onto) => Request::CommitPatched { lease: self.lease, patch: onto.patch.clone() },
            None => Request::Commit { lease: self.lease },
        }
    }

    /// Fills `out` with bytes from `at` on, all of which are inside the file, and nothing of which is gathered.
    pub fn read(&self, py: Python<'_>, at: u64, out: &mut [u8]) -> PyResult<()> {
        let range = ByteRange::new(at, at + out.len() as u64);
        let own = |at, out: &mut [u8]| py.detach(|| read_all(&self.file, at, out)).map_err(|error| self.failed(error));
        let Some(onto) = &self.onto else { return own(at, out) };
        let mut rest = out;
        for (piece, is_own) in onto.patch.pieces(range) {
            let to = rest.split_off_mut(..length_of(piece)).expect("the pieces are those of the range");
            match is_own {
                true => own(piece.start, to)?,
                false => onto.base.read_exactly(py, piece.start, to)?,
            }
        }
        Ok(())
    }

    /// Brings what lies between too many ranges that were written.
    pub(super) fn join(&mut self, py: Python<'_>) -> PyResult<()> {
        let Some(onto) = self.onto.as_ref().filter(|onto| onto.patch.ranges() >= Patch::RANGES_MAX) else {
            return Ok(());
        };
        let pieces = onto.patch.pieces(ByteRange::new(0, self.len()?));
        let mut buffer = vec![0; STEP];
        for (piece, _) in pieces.into_iter().filter(|(_, is_own)| !is_own) {
            let mut at = piece.start;
            while at < piece.end {
                let step = ByteRange::new(at, piece.end.min(at + STEP as u64));
                let bytes = &mut buffer[..length_of(step)];
                self.read(py, at, bytes)?;
                self.write_piece(py, step, bytes)?;
                py.check_signals()?;
                at = step.end;
            }
        }
        Ok(())
    }
}

impl Onto {
    /// Bytes that room was taken for.
    pub fn used(&self) -> u64 {
        self.used
    }

    fn missing(&self, range: ByteRange) -> u64 {
        range.len() - self.patch.own_bytes(range)
    }
}

fn length_of(range: ByteRange) -> usize {
    usize::try_from(range.len()).expect("a read fits memory")
}

fn read_all(file: &OwnedFd, mut at: u64, mut out: &mut [u8]) -> Result<(), Errno> {
    while !out.is_empty() {
        match retry_on_intr(|| pread(file, &mut *out, at))? {
            0 => return Err(Errno::IO),
            count => (at, out) = (at + count as u64, &mut out[count..]),
        }
    }
    Ok(())
}
