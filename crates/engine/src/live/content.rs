//! What a live file begins with: the content of the version that it replaces.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use penstock_stage::{Base, Draft, Target};
use penstock_types::{ByteRange, Error, ErrorKind, NodeFile, Result, TreePath};
use rustix::fs::{copy_file_range, fstat};
use rustix::io::{pread, pwrite, retry_on_intr};

use crate::engine::Engine;
use crate::kernel::MountedFile;
use crate::live::lent::Lent;
use crate::live::under::Under;
use crate::open::{OpenFile, OpenOptions};
use crate::write::{Place, TRIES_MAX, WriteOptions, base_of};

/// How much is brought and written at once.
const STEP: u64 = 8 * 1024 * 1024;
/// How much one call of the disk copies.
const COPY_STEP: usize = 64 * 1024 * 1024;

/// How a path is opened for writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opening {
    /// Something has the name.
    Existing,
    /// It is made where nothing has the name; with `true` only then.
    New(bool),
}

/// What the handles of a live file read and write.
pub(super) enum Content {
    /// To be written to.
    Draft(Draft),
    /// Never written again: what was committed, or what was there before.
    Committed(Arc<OwnedFd>),
    /// Written by a kernel.
    Lent(Lent),
}

impl Content {
    pub(super) fn descriptor(&self) -> &Arc<OwnedFd> {
        match self {
            Self::Draft(draft) => draft.descriptor(),
            Self::Committed(descriptor) => descriptor,
            Self::Lent(lent) => lent.descriptor(),
        }
    }

    /// Where it can be written to as it is, and what takes room for that.
    pub(super) fn writable(&self) -> Option<(&Arc<OwnedFd>, Option<&Draft>)> {
        match self {
            Self::Draft(draft) => Some((draft.descriptor(), Some(draft))),
            Self::Lent(lent) if !lent.is_shared => Some((lent.descriptor(), lent.draft())),
            Self::Lent(_) | Self::Committed(_) => None,
        }
    }

    /// Whether it is written to in memory.
    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self, Self::Draft(draft) if draft.is_in_memory())
    }

    /// Whether what was committed could still be written to.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Lent(lent) if lent.is_shared)
    }

    /// What is to be committed of it at `place`. Blocks.
    pub(super) fn take(&mut self, engine: &Engine, place: &Place) -> Result<Draft> {
        if let Self::Lent(lent) = self {
            return lent.take(engine, &place.target);
        }
        let descriptor = Arc::clone(self.descriptor());
        match std::mem::replace(self, Self::Committed(Arc::clone(&descriptor))) {
            Self::Draft(draft) => Ok(draft),
            // It was given another time.
            _ => engine.draft_again(place, &place.target, &descriptor),
        }
    }
}

impl Engine {
    /// What a path holds and the time of that, or an empty draft: `in_memory` where there is room for that.
    pub(super) async fn content_for(
        self: &Arc<Self>,
        path: &TreePath,
        opening: Opening,
        (truncate, in_memory): (bool, bool),
    ) -> Result<(Place, (Content, Option<Under>), Option<i64>)> {
        let options = WriteOptions { exclusive: opening == Opening::New(true), durability: None };
        for _ in 0..TRIES_MAX {
            let place = self.place(path, options, opening == Opening::Existing).await?;
            if place.base == Base::Absent && opening == Opening::Existing {
                return Err(Error::new(ErrorKind::NotFound, format!("write {path}"), "nothing has that name"));
            }
            if truncate || place.base == Base::Absent {
                let draft = match in_memory {
                    true => self.stage.create_in_memory(&place.target)?,
                    false => tokio::task::block_in_place(|| self.stage.create(&place.target))?,
                };
                return Ok((place, (Content::Draft(draft), None), None));
            }
            let file = self.open(path, OpenOptions::default()).await?;
            if base_of(&file.attributes().version) != place.base {
                continue;
            }
            let begun_ms = Some(file.attributes().modified_ms);
            let file = match self.lay_over(&place, file) {
                Ok((content, under)) => return Ok((place, (content, Some(under)), begun_ms)),
                Err(file) => *file,
            };
            if file.is_complete() {
                // Who only reads it copies nothing.
                return Ok((place, (Content::Committed(file.descriptor()), None), begun_ms));
            }
            let draft = tokio::task::block_in_place(|| self.stage.create(&place.target))?;
            self.copy_open(file, &draft).await?;
            return Ok((place, (Content::Draft(draft), None), begun_ms));
        }
        Err(Error::new(ErrorKind::Busy, format!("write {path}"), "others change it all the time").advise("try again"))
    }

    /// A draft for `target` of what was committed at `place` and can be read from `committed`: another name of the
    /// staged file, or a copy where that is not there any more. Blocks.
    pub(crate) fn draft_again(&self, place: &Place, target: &Target, committed: &OwnedFd) -> Result<Draft> {
        let linked = || {
            let Base::Staged(operation) = &place.base else { return None };
            let change = self.stage.find(&place.target.scope, &place.target.key, &operation.version())?;
            change.open().ok()?;
            self.stage.link(target, &change).ok()
        };
        if let Some(draft) = linked() {
            return Ok(draft);
        }
        let draft = self.stage.create_reserved(target)?;
        copy_content(committed, &draft)?;
        Ok(draft)
    }

    /// Copies all of an open file into a draft: on the disk where all of it is there, otherwise as it is brought.
    pub(crate) async fn copy_open(&self, file: OpenFile, draft: &Draft) -> Result<()> {
        if file.is_complete() {
            let from = file.descriptor();
            return tokio::task::block_in_place(|| copy_content(&from, draft));
        }
        let size = file.size();
        tokio::task::block_in_place(|| draft.grow(size))?;
        let file = MountedFile::new(file, false);
        let mut at = 0;
        while at < size {
            let range = ByteRange::new(at, size.min(at + STEP));
            let bytes = Arc::clone(&file).bring(range).await?;
            tokio::task::block_in_place(|| write_at(draft.descriptor(), at, &bytes)).map_err(failed)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }
}

/// Copies all of a local file into a draft. Blocks.
pub(super) fn copy_content(from: &OwnedFd, draft: &Draft) -> Result<()> {
    let size = u64::try_from(fstat(from).map_err(failed)?.st_size).unwrap_or(0);
    draft.grow(size)?;
    copy_range(from, draft.descriptor(), ByteRange::new(0, size))
}

/// Copies a range of a local file to the same place of another. Blocks.
pub(crate) fn copy_range(from: &OwnedFd, to: &OwnedFd, range: ByteRange) -> Result<()> {
    let (mut read, mut written) = (range.start, range.start);
    while read < range.end {
        let step = usize::try_from(range.end - read).unwrap_or(COPY_STEP).min(COPY_STEP);
        let copied = copy_file_range(from, Some(&mut read), to, Some(&mut written), step);
        match copied {
            // It is shorter than it was.
            Ok(0) => return Err(Error::new(ErrorKind::Disk, "copy what was written", "the file has become shorter")),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::XDEV | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                return copy_by_hand(from, to, ByteRange::new(read, range.end));
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// As the kernel would do it, where it does not: between two file systems.
fn copy_by_hand(from: &OwnedFd, to: &OwnedFd, range: ByteRange) -> Result<()> {
    let (mut at, mut buffer) = (range.start, vec![0; 1024 * 1024]);
    while at < range.end {
        let length = usize::try_from(range.end - at).unwrap_or(buffer.len()).min(buffer.len());
        match retry_on_intr(|| pread(from, &mut buffer[..length], at)).map_err(failed)? {
            0 => return Err(Error::new(ErrorKind::Disk, "copy what was written", "the file has become shorter")),
            read => {
                write_at(to, at, &buffer[..read]).map_err(failed)?;
                at += read as u64;
            }
        }
    }
    Ok(())
}

/// Writes all of `data`.
pub(super) fn write_at(to: &OwnedFd, mut at: u64, mut data: &[u8]) -> rustix::io::Result<()> {
    while !data.is_empty() {
        let written = retry_on_intr(|| pwrite(to, data, at))?;
        (at, data) = (at + written as u64, &data[written..]);
    }
    Ok(())
}

pub(super) fn failed(error: rustix::io::Errno) -> Error {
    Error::new(ErrorKind::of_disk(&error.into()), "copy what was written", error.to_string())
        .advise("check the disk of the stage")
}
