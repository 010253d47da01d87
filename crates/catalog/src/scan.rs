//! Reads the entries of one generation in key order, a chunk at a time.

use std::sync::Arc;

use bytes::Bytes;
use penstock_types::{Error, ErrorKind, ObjectAttributes, ObjectKey, Overlay, Result};

use crate::chunk::{Chunk, EntryRef, Malformed};
use crate::laid_rows;
use crate::sets::hide;
use crate::store::Reader;
use crate::timeline::Moment;

/// A listing as far as it can be read: complete, or up to where it has come.
#[derive(Clone)]
pub(crate) struct Sight {
    /// The tables at a moment when every chunk was there: those of a listing that another replaces are removed.
    pub(crate) reader: Arc<Reader>,
    pub(crate) generation: u64,
    /// When it was asked for; `LONG_AGO` when that is not known any more.
    pub(crate) sent: Moment,
    /// Keys less than this one can be read; `None` when all can.
    pub(crate) below: Option<Vec<u8>>,
    /// Changes made here that are laid over it.
    pub(crate) overlay: Option<Arc<dyn Overlay>>,
}

/// What to do after an entry.
pub(crate) enum Step {
    Next,
    /// Go on at the first key that is not less.
    Seek(Vec<u8>),
    Stop,
}

/// An entry and its full key, which shares memory with its neighbours.
pub(crate) struct Seen<'a> {
    pub(crate) key: Bytes,
    /// When its page was asked for, or when the source had the change.
    pub(crate) sent: Moment,
    pub(crate) beside: bool,
    pub(crate) told: Told<'a>,
    /// The key that has the bytes, where it is another one.
    pub(crate) at: Option<ObjectKey>,
}

/// Who tells of an entry.
#[derive(Clone, Copy)]
pub(crate) enum Told<'a> {
    Listing(EntryRef<'a>),
    Overlay(&'a ObjectAttributes),
}

impl Seen<'_> {
    /// Whether it is a common prefix.
    pub(crate) fn is_prefix(&self) -> bool {
        matches!(self.told, Told::Listing(entry) if entry.is_prefix())
    }

    /// Whether keys below `key/` exist beside the object.
    pub(crate) fn is_beside(&self) -> bool {
        self.beside
    }

    /// An object without content whose key ends in `/`: it stands for the directory, not for a file.
    pub(crate) fn is_marker(&self) -> Result<bool> {
        Ok(self.key.ends_with(b"/")
            && match self.told {
                Told::Listing(entry) => !entry.is_prefix() && entry.size().map_err(damaged)? == 0,
                Told::Overlay(attributes) => attributes.size == 0,
            })
    }

    /// Attributes; `None` for a common prefix.
    pub(crate) fn attributes(&self) -> Result<Option<ObjectAttributes>> {
        match self.told {
            Told::Listing(entry) => entry.attributes().map_err(damaged),
            Told::Overlay(attributes) => Ok(Some(attributes.clone())),
        }
    }
}

/// Visits entries from `from` on, until told to stop. `true` when there were no more.
pub(crate) fn scan(
    sight: &Sight,
    from: &[u8],
    inclusive: bool,
    mut visit: impl FnMut(&Seen<'_>) -> Result<Step>,
) -> Result<bool> {
    let mut visit = |seen: &Seen<'_>| match hide(sight, seen)? {
        Some(step) => Ok(step),
        None => visit(seen),
    };
    match sight.overlay.as_deref().filter(|overlay| !overlay.is_empty()) {
        Some(overlay) => laid_rows::scan(sight, overlay, (from, inclusive), &mut visit),
        None => scan_listed(sight, from, inclusive, &mut visit),
    }
}

/// As [`scan`], of the listing alone.
pub(crate) fn scan_listed(
    sight: &Sight,
    from: &[u8],
    inclusive: bool,
    mut visit: impl FnMut(&Seen<'_>) -> Result<Step>,
) -> Result<bool> {
    let (mut from, mut inclusive) = (from.to_vec(), inclusive);
    loop {
        match scan_run(sight, (&from, inclusive), &mut visit)? {
            Run::Stopped => return Ok(false),
            Run::Ended => return Ok(true),
            Run::Seek(key) => (from, inclusive) = (key, true),
        }
    }
}

enum Run {
    Stopped,
    Ended,
    Seek(Vec<u8>),
}

fn scan_run(
    sight: &Sight,
    (from, inclusive): (&[u8], bool),
    visit: &mut impl FnMut(&Seen<'_>) -> Result<Step>,
) -> Result<Run> {
    let reader = &sight.reader;
    let around = reader.chunk_around(sight.generation, from)?;
    for row in around.into_iter().map(Ok).chain(reader.chunks_after(sight.generation, from)?) {
        let row = row?;
        let chunk = Chunk::parse(row.value()).map_err(damaged)?;
        let mut index = chunk.lower_bound(from).map_err(damaged)?;
        let keys = Keys::of(&chunk, index)?;
        while index < chunk.len() {
            let entry = chunk.entry(index).map_err(damaged)?;
            let told = Told::Listing(entry);
            let seen = Seen { key: keys.get(index), sent: chunk.sent, beside: entry.is_beside(), told, at: None };
            if sight.below.as_ref().is_some_and(|below| seen.key >= below.as_slice()) {
                return Ok(Run::Ended);
            }
            if !inclusive && seen.key == from {
                index += 1;
                continue;
            }
            match visit(&seen)? {
                Step::Next => index += 1,
                Step::Stop => return Ok(Run::Stopped),
                Step::Seek(key) => {
                    index = chunk.lower_bound(&key).map_err(damaged)?;
                    if index == chunk.len() {
                        return Ok(Run::Seek(key));
                    }
                }
            }
        }
    }
    Ok(Run::Ended)
}

/// The full keys of a chunk in one allocation.
struct Keys {
    text: Bytes,
    ends: Vec<usize>,
    first: usize,
}

impl Keys {
    fn of(chunk: &Chunk<'_>, first: usize) -> Result<Self> {
        let mut text = Vec::with_capacity((chunk.len() - first) * (chunk.common().len() + 24));
        let mut ends = Vec::with_capacity(chunk.len() - first);
        for index in first..chunk.len() {
            text.extend_from_slice(chunk.common());
            text.extend_from_slice(chunk.entry(index).map_err(damaged)?.rest);
            ends.push(text.len());
        }
        Ok(Self { text: text.into(), ends, first })
    }

    fn get(&self, index: usize) -> Bytes {
        let at = index - self.first;
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        self.text.slice(start..self.ends[at])
    }
}

/// A row of the catalog cannot be read.
pub(crate) fn damaged(_: Malformed) -> Error {
    Error::new(ErrorKind::Corrupt, "read the catalog", "a row of it is damaged")
}
