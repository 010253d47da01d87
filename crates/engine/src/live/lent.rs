//! A live file that a kernel reads and writes by itself. Nobody tells what it writes: whether there is anything to commit
//! is seen by the size and the time of the file.
//!
//! ```text
//! lent ─ flush ─▶ committed as it is: settling ─┬─ closed a moment later, nearly always ─▶ settled
//!                                               └─ still open, and needed or written on ─▶ a copy is committed
//! ```
//!
//! While a version is settling, nobody is given its bytes and it is not uploaded: they could still change.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use penstock_stage::{Draft, Target};
use penstock_types::Result;
use penstock_types::faults::{Step, UnderWay, under_way};
use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::io::pwrite;

use crate::engine::Engine;
use crate::live::content::{copy_content, failed};

/// A file that is written while it is copied is copied again so often; then as it is, and once more at its next flush.
const COPIES_MAX: usize = 3;
/// Writes that are told apart by a file system, before any is believed.
const PROBES: usize = 8;

/// A file in the hands of a kernel, and what was committed of it.
pub(super) struct Lent {
    descriptor: Arc<OwnedFd>,
    /// Until it is committed.
    draft: Option<Draft>,
    /// When it was committed last.
    committed: Option<Mark>,
    /// What was committed is this very file, and not a copy of it.
    pub(super) is_shared: bool,
    /// Handles that it was offered to, without those that gave it back.
    pub(super) offers: usize,
    _step: UnderWay,
}

/// What a write changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    size: i64,
    seconds: i64,
    nanoseconds: u64,
}

impl Mark {
    pub(super) fn of(file: impl AsFd) -> rustix::io::Result<Self> {
        let facts = fstat(file)?;
        Ok(Self { size: facts.st_size, seconds: facts.st_mtime, nanoseconds: facts.st_mtime_nsec })
    }
}

impl Lent {
    pub(super) fn new(draft: Draft) -> Self {
        let descriptor = Arc::clone(draft.descriptor());
        let _step = under_way(Step::Lent);
        Self { descriptor, draft: Some(draft), committed: None, is_shared: false, offers: 1, _step }
    }

    pub(super) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }

    /// The draft, until it is committed.
    pub(super) fn draft(&self) -> Option<&Draft> {
        self.draft.as_ref()
    }

    /// Takes the draft out where the kernel did not take the file after all.
    pub(super) fn into_draft(self) -> Option<Draft> {
        self.draft
    }

    /// Whether it is not as it was committed.
    pub(super) fn is_changed(&self) -> bool {
        let now = Mark::of(&self.descriptor).ok();
        now.is_none() || now != self.committed
    }

    /// What is to be committed as `target`: the file itself the first time, a copy later. Blocks.
    pub(super) fn take(&mut self, engine: &Engine, target: &Target) -> Result<Draft> {
        let mark = Mark::of(&self.descriptor).map_err(failed)?;
        if let Some(draft) = self.draft.take() {
            (self.committed, self.is_shared) = (Some(mark), true);
            return Ok(draft);
        }
        let (mark, draft) = self.copy(engine, target)?;
        (self.committed, self.is_shared) = (Some(mark), false);
        Ok(draft)
    }

    fn copy(&self, engine: &Engine, target: &Target) -> Result<(Mark, Draft)> {
        let mut copies = 0;
        loop {
            let mark = Mark::of(&self.descriptor).map_err(failed)?;
            let draft = engine.stage.create(target)?;
            copy_content(&self.descriptor, &draft)?;
            copies += 1;
            if copies == COPIES_MAX || Mark::of(&self.descriptor).map_err(failed)? == mark {
                return Ok((mark, draft));
            }
        }
    }
}

/// Whether the times of files in a directory tell writes apart that follow each other at once.
pub(super) fn tells_writes_apart(directory: &Path) -> bool {
    let mode = Mode::from_raw_mode(0o600);
    let Ok(file) = open(directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) else { return false };
    let write = || {
        pwrite(&file, b"x", 0).ok()?;
        Mark::of(&file).ok()
    };
    let marks: Vec<_> = (0..PROBES).map(|_| write()).collect();
    marks.iter().all(Option::is_some) && marks.windows(2).all(|pair| pair[0] != pair[1])
}
