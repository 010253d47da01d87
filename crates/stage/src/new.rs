//! What a commit brings: the file of a new change, or what it is instead of one.

use std::sync::Arc;

use bytes::Bytes;
use penstock_types::{Posix, Result};

use crate::change::{Change, ChangeParts, Content, OperationId, Original, Phase, Progress, Written};
use crate::draft::{Draft, Finished};
use crate::files::StagedFile;
use crate::journal::Slot;
use crate::patch::Patch;
use crate::stage::INLINE_BYTES_MAX;
use crate::stream::{Inherited, StreamHold};
use crate::table::{Admission, Table};

/// What a new change makes its key hold.
pub enum New {
    Nothing,
    File(NewFile),
    /// A copy, and its size.
    Copy(Original, u64),
    /// What the key holds already, its size, and what is said anew of it.
    Same(u64, Posix),
    /// A copy, its size, and what is said anew of it.
    Adorned(Original, u64, Posix),
}

impl New {
    pub fn data(&self) -> Option<&Bytes> {
        match self {
            Self::File(file) => file.data.as_ref().map(|(data, _)| data),
            Self::Nothing | Self::Copy(..) | Self::Same(..) | Self::Adorned(..) => None,
        }
    }
}

/// The file of a new change.
pub struct NewFile {
    file: StagedFile,
    size: u64,
    /// Bytes of the budget that it is charged for.
    pub charged: u64,
    /// Its content, where the journal gets it, and whether the file has it already.
    data: Option<(Bytes, bool)>,
    /// What it lies over.
    over: Option<(Original, Patch)>,
    /// What was sent of it.
    stream: Option<StreamHold>,
}

impl NewFile {
    /// The content of a draft: in the journal where it is small enough, otherwise synced.
    pub fn of(draft: Draft) -> Result<Self> {
        match draft.small(INLINE_BYTES_MAX)? {
            Some(data) => Ok(Self::in_journal(draft, data)),
            None => Self::synced(draft),
        }
    }

    /// The content of a draft, all of which goes into the journal.
    pub fn in_journal(draft: Draft, data: Bytes) -> Self {
        let size = data.len() as u64;
        let (file, is_made) = draft.finish_unsynced(size);
        Self { file, size, charged: size, data: Some((data, is_made)), over: None, stream: None }
    }

    /// A content that only the journal gets; `file` is made when somebody needs it.
    pub fn promised(file: StagedFile, data: Bytes) -> Self {
        let size = data.len() as u64;
        Self { file, size, charged: size, data: Some((data, false)), over: None, stream: None }
    }

    pub fn synced(draft: Draft) -> Result<Self> {
        let Finished { file, size, charged, over, stream } = draft.finish()?;
        let over = over.map(|over| (over.original.clone(), over.patch().clone()));
        Ok(Self { file, size, charged, data: None, over, stream })
    }
}

/// Makes sure that what a new change is made of is what its key is to be made of.
pub fn admit_original(table: &Table, written: &Written, new: New, admission: &Admission) -> Result<New> {
    Ok(match new {
        New::Copy(original, size) => New::Copy(table.admit_original(&written.target, original)?, size),
        New::File(NewFile { over: Some((original, patch)), file, size, charged, data, stream }) => {
            let over = Some((table.admit_patched(&written.target, original, admission)?, patch));
            New::File(NewFile { file, size, charged, data, over, stream })
        }
        New::Same(size, posix) => table.admit_same(written, admission, size, posix)?,
        new => new,
    })
}

pub fn new_change(
    written: Written,
    new: New,
    operation: OperationId,
    admission: Admission,
    home: &Slot,
    now_ms: i64,
) -> Arc<Change> {
    let (mut file, mut inherited) = (None, None);
    let content = match new {
        New::File(NewFile { file: made, data, size, over, stream, .. }) => {
            data.inspect(|(data, is_made)| made.is_in_journal(data, home, *is_made));
            inherited = stream.and_then(|stream| stream.commit(&written.target, size));
            file = Some(made);
            let metadata = written.metadata;
            match over {
                Some((original, patch)) => Content::Patch { size, metadata, original, patch },
                None => Content::Put { size, metadata },
            }
        }
        New::Copy(original, size) => Content::Copy { size, original },
        New::Adorned(original, size, posix) => Content::Adorned { size, original, posix },
        New::Nothing | New::Same(..) => Content::Remove,
    };
    let parts = ChangeParts {
        operation,
        target: written.target,
        content,
        durability: written.durability,
        modified_ms: written.modified_ms,
        committed_ms: now_ms,
        file: file.map(Arc::new),
        marker: inherited.as_ref().map(|inherited| inherited.marker),
        stream: inherited.as_ref().map(|inherited| Arc::clone(&inherited.stream)),
    };
    let ending = admission.ending();
    let mut progress = Progress::new(admission.base, Phase::Admitted, Slot::clone(home));
    progress.replaces = admission.replaced;
    if let Some(Inherited { upload, parts, .. }) = inherited {
        progress.streamed = Some(parts.iter().map(|part| (part.info.number, part.sum)).collect());
        progress.upload = Some((upload, parts.into_iter().map(|part| part.info).collect()));
    }
    Change::new(parts, progress, ending)
}
