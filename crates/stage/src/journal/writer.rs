//! The end of the journal that is written: its file, and the next one when that is full or failed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use penstock_types::faults::{Safeguard, Step, is_left_out, under_way};
use penstock_types::{Disk, Metrics, OpenMode, Result};

use super::frame::{self, BLOCK, FrameHeader, SegmentHeader};
use super::{Place, Slot, segment_path};
use crate::files::{disk_error, write_all};

/// Files that are not needed any more take the places of the next new ones: their names begin so, and end with a number
/// below [`SPARES_MAX`].
const SPARE: &str = "spare-";
/// So many are kept.
const SPARES_MAX: u32 = 8;
/// So many are made ahead, so that nobody waits for one while many write.
const SPARES_AHEAD: usize = 2;
/// They are made once one part of so many of the first file is used: who writes little has none.
const USED_BEFORE_SPARES: u64 = 8;
/// A spare that is being made.
const UNFINISHED: &str = "spare-unfinished";
/// Bytes that are zeroed at once.
const ZEROED_AT_ONCE: usize = 1024 * 1024;
/// Memory that is kept to gather records in: what those who write at the same moment need.
const GATHERED_MAX: usize = 4 * 1024 * 1024;

/// A record on its way.
pub struct Entry {
    pub sequence: u64,
    pub record: Vec<u8>,
    pub data: Bytes,
    /// Somebody waits until it is durable, and learns when it is lost; others are written again.
    pub waited: bool,
    /// Learns where the record is.
    pub slot: Slot,
}

/// Where the writing is, and what it is done with.
pub struct Writer {
    pub disk: Arc<dyn Disk>,
    pub metrics: Metrics,
    pub directory: PathBuf,
    pub node: u64,
    pub epoch: u64,
    pub segment_bytes: u64,
    /// `None` before the first and after a failure: what failed is never written to again.
    pub file: Option<OwnedFd>,
    /// Files that are needed, oldest first; the last one is written to.
    pub segments: VecDeque<u64>,
    pub next_number: u64,
    /// Where the next frame goes, and where the file ends.
    pub offset: u64,
    pub size: u64,
    /// Sequence of the record before the next one.
    pub written: u64,
    /// Everything up to this sequence is durable.
    pub durable: u64,
    /// Written since the last sync, and not waited for.
    pub unsynced: Vec<Entry>,
    /// Numbers of the spares.
    pub spares: Vec<u32>,
    /// Where records are gathered; empty between writes.
    pub gathered: Vec<u8>,
}

impl Writer {
    /// Counts what is there. The first file of this process is begun by its first record: a node that nobody writes
    /// through has none.
    pub fn count_bytes(&self) {
        let size_of = |path: PathBuf| {
            let found = self.disk.open(&path, OpenMode::Read).and_then(|file| self.disk.facts(file.as_fd()));
            found.map_or(0, |facts| facts.size)
        };
        let needed: u64 = self.segments.iter().map(|number| size_of(segment_path(&self.directory, *number))).sum();
        let spare = self.spares.len() as u64 * self.segment_bytes;
        self.metrics.journal_bytes.inc_by((needed + spare).cast_signed());
    }

    /// Whether everything that was given to it is durable.
    pub fn is_clean(&self) -> bool {
        self.unsynced.is_empty() && self.written == self.durable
    }

    /// Writes records, and syncs them. When that fails, those up to `durable` are durable all the same, those that are
    /// waited for are lost, and the others are written again by the next call.
    pub fn round(&mut self, batch: Vec<Entry>, sync: bool) -> Result<()> {
        let mut queue: VecDeque<Entry> = batch.into();
        if self.file.is_none() {
            queue = std::mem::take(&mut self.unsynced).into_iter().chain(queue).collect();
        }
        let step = sync.then(|| under_way(Step::Journal));
        let outcome = self.work_off(&mut queue, sync);
        drop(step);
        outcome.map_err(|error| {
            self.file = None;
            self.written = self.durable;
            self.unsynced.extend(queue.into_iter().filter(|entry| !entry.waited));
            self.metrics.stage_disk_errors.inc();
            disk_error("write the journal in", &self.directory, &error)
        })
    }

    fn work_off(&mut self, queue: &mut VecDeque<Entry>, sync: bool) -> io::Result<()> {
        while let Some(next) = queue.front() {
            let needed = frame::length_of(next.record.len(), next.data.len()) as u64;
            if self.file.is_none() || self.offset + needed > self.size {
                self.roll(needed)?;
            }
            self.append(queue)?;
        }
        if sync { self.sync() } else { Ok(()) }
    }

    /// Writes as many records as the file has room for, at least one.
    fn append(&mut self, queue: &mut VecDeque<Entry>) -> io::Result<()> {
        let segment = self.segments.back().copied().unwrap_or_default();
        let (mut buffer, mut places, mut previous) = (std::mem::take(&mut self.gathered), Vec::new(), self.written);
        for entry in &*queue {
            let needed = frame::length_of(entry.record.len(), entry.data.len());
            if self.offset + (buffer.len() + needed) as u64 > self.size {
                break;
            }
            let (node, epoch, sequence, durable) = (self.node, self.epoch, entry.sequence, self.durable);
            let header = FrameHeader { node, epoch, segment, sequence, previous, durable };
            let (data_start, sum) = frame::encode(&header, &entry.record, &entry.data, &mut buffer);
            let length = u32::try_from(entry.data.len()).unwrap_or(u32::MAX);
            places.push(Place { segment, offset: self.offset + data_start as u64, length, sum });
            previous = sequence;
        }
        let file = self.file.as_ref().ok_or_else(|| io::Error::other("no file is open"))?;
        write_all(&*self.disk, file.as_fd(), self.offset, &buffer)?;
        self.offset += buffer.len() as u64;
        buffer.clear();
        buffer.shrink_to(GATHERED_MAX);
        self.gathered = buffer;
        self.written = previous;
        for (entry, place) in queue.drain(..places.len()).zip(places) {
            *entry.slot.lock().expect("no panic while a place is held") = Some(place);
            if !entry.waited {
                self.unsynced.push(entry);
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.written == self.durable {
            return Ok(());
        }
        let file = self.file.as_ref().ok_or_else(|| io::Error::other("no file is open"))?;
        if !is_left_out(Safeguard::JournalSync) {
            self.disk.sync_data(file.as_fd())?;
        }
        self.metrics.journal_syncs.inc();
        self.durable = self.written;
        self.unsynced.clear();
        self.offset = self.offset.next_multiple_of(BLOCK);
        Ok(())
    }

    /// Goes on in a new file, with room for a frame of `needed` bytes. The one before ends with what is durable.
    fn roll(&mut self, needed: u64) -> io::Result<()> {
        if self.file.is_some() {
            self.sync()?;
        }
        let number = self.next_number;
        // The number is used up even if this fails: what is left of it must not be taken for the next one.
        self.next_number += 1;
        let path = segment_path(&self.directory, number);
        let begun = self.begin(number, &path, needed.saturating_add(BLOCK).max(self.segment_bytes));
        let (file, size) = begun.inspect_err(|_| {
            let _ = self.disk.remove(&path);
        })?;
        self.segments.push_back(number);
        self.metrics.journal_bytes.inc_by(size.cast_signed());
        (self.file, self.size, self.offset, self.written) = (Some(file), size, BLOCK, self.durable);
        Ok(())
    }

    fn begin(&mut self, number: u64, path: &Path, size: u64) -> io::Result<(OwnedFd, u64)> {
        let (file, size) = match self.take_spare(path, size)? {
            Some(file) => file,
            None => (make_zeros(&*self.disk, path, size)?, size),
        };
        let header = SegmentHeader {
            node: self.node,
            epoch: self.epoch,
            number,
            previous: self.segments.back().copied().unwrap_or(0),
            previous_sequence: self.durable,
            first: self.segments.front().copied().unwrap_or(number),
        };
        write_all(&*self.disk, file.as_fd(), 0, &header.encode())?;
        self.disk.sync_data(file.as_fd())?;
        self.disk.sync_directory(&self.directory)?;
        Ok((file, size))
    }

    fn take_spare(&mut self, path: &Path, size: u64) -> io::Result<Option<(OwnedFd, u64)>> {
        if size > self.segment_bytes {
            return Ok(None);
        }
        let Some(spare) = self.spares.pop() else { return Ok(None) };
        self.disk.rename(&spare_path(&self.directory, spare), path)?;
        let file = self.disk.open(path, OpenMode::Write)?;
        let found = self.disk.facts(file.as_fd())?.size;
        self.metrics.journal_bytes.dec_by(found.cast_signed());
        if found == size {
            return Ok(Some((file, size)));
        }
        self.disk.remove(path)?;
        Ok(None)
    }

    /// Lets go of the oldest file, which nothing needs: the journal says so. It becomes a spare, unless there
    /// are enough.
    pub fn retire(&mut self, number: u64) -> Result<()> {
        let path = segment_path(&self.directory, number);
        let size = || {
            let file = self.disk.open(&path, OpenMode::Read)?;
            Ok(self.disk.facts(file.as_fd())?.size)
        };
        let size = size().map_err(|error: io::Error| disk_error("look at", &path, &error))?;
        let spare = self.next_spare().filter(|_| size == self.segment_bytes);
        let gone = match spare {
            Some(spare) => self.disk.rename(&path, &spare_path(&self.directory, spare)),
            None => self.disk.remove(&path),
        };
        gone.map_err(|error| disk_error("remove", &path, &error))?;
        self.spares.extend(spare);
        self.segments.retain(|known| *known != number);
        if spare.is_none() {
            self.metrics.journal_bytes.dec_by(size.cast_signed());
        }
        Ok(())
    }

    /// Whether a spare should be made ahead.
    pub fn wants_spare(&self) -> bool {
        let is_used = self.segments.len() > 1 || self.offset > self.size / USED_BEFORE_SPARES;
        self.file.is_some() && is_used && self.spares.len() < SPARES_AHEAD
    }

    /// The number of the next spare.
    pub fn next_spare(&self) -> Option<u32> {
        (0..SPARES_MAX).find(|number| !self.spares.contains(number))
    }
}

fn spare_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{SPARE}{number}"))
}

/// Makes the spare of that number, so that the next file need not be made while somebody waits, and is there when the
/// disk is full.
pub fn make_spare(disk: &dyn Disk, directory: &Path, number: u32, size: u64) -> Result<()> {
    let unfinished = directory.join(UNFINISHED);
    let made = || {
        let _ = disk.remove(&unfinished);
        let file = make_zeros(disk, &unfinished, size)?;
        disk.sync_data(file.as_fd())?;
        disk.rename(&unfinished, &spare_path(directory, number))
    };
    made().map_err(|error| disk_error("make", &unfinished, &error))
}

/// The spares of the right size; others are removed.
pub fn find_spares(disk: &dyn Disk, directory: &Path, size: u64) -> Vec<u32> {
    let _ = disk.remove(&directory.join(UNFINISHED));
    let is_good = |number: &u32| {
        let path = spare_path(directory, *number);
        let found = disk.open(&path, OpenMode::Write).and_then(|file| disk.facts(file.as_fd()));
        let is_good = found.as_ref().is_ok_and(|facts| facts.size == size);
        if found.is_ok() && !is_good {
            let _ = disk.remove(&path);
        }
        is_good
    };
    (0..SPARES_MAX).filter(is_good).collect()
}

/// A new file of zeros: syncing what is written over them writes no metadata.
fn make_zeros(disk: &dyn Disk, path: &Path, size: u64) -> io::Result<OwnedFd> {
    /// The file system cannot allocate ahead.
    const CANNOT: [io::ErrorKind; 2] = [io::ErrorKind::Unsupported, io::ErrorKind::InvalidInput];
    let file = disk.open(path, OpenMode::Create(0o600))?;
    match disk.allocate(file.as_fd(), size) {
        Err(error) if !CANNOT.contains(&error.kind()) => return Err(error),
        _ => {}
    }
    let zeros = vec![0; ZEROED_AT_ONCE.min(usize::try_from(size).unwrap_or(ZEROED_AT_ONCE))];
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(zeros.len() as u64);
        write_all(disk, file.as_fd(), offset, &zeros[..usize::try_from(length).unwrap_or(zeros.len())])?;
        offset += length;
    }
    Ok(file)
}
