//! What the journal says, as bytes: a frame with checksums around each record, which has the data of a small file
//! behind it.

use penstock_types::{Durability, Error, PartInfo, UploadId};
use serde::{Deserialize, Serialize};

use crate::change::{Base, Change, Content, OperationId, Settled, Target};
use crate::files::FileName;

/// One statement of the journal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// A change that was committed, or all that is known of one by now: takes the place of what was said of it before.
    Change(Box<ChangeRecord>),
    /// A change is in its source.
    Settled(Box<SettledRecord>),
    /// A multipart upload was begun.
    Upload { operation: OperationId, upload: UploadId },
    /// The source took a part of it.
    Part { operation: OperationId, part: PartInfo },
    /// The upload is gone.
    UploadLost { operation: OperationId },
    /// A change is in conflict.
    Conflict { operation: OperationId, error: Error },
    /// The files of the journal before this one are not needed any more.
    First { segment: u64 },
    /// The journal was ended in order: everything before was durable.
    Closed,
    /// A change in conflict was given up.
    Discarded { operation: OperationId },
    /// A change that is in its source is not what the source has any more.
    Outdated { operation: OperationId, target: Target },
    /// An upload is begun for a draft, or about to be: `upload` is not known then.
    Early { operation: OperationId, target: Target, upload: Option<UploadId> },
    /// It was completed, or is gone.
    EarlyOver { operation: OperationId },
    /// As [`Record::Change`], of a change of which something was sent while it was written.
    Streamed(Box<StreamedRecord>),
    /// The next records are changes that were committed together: where not all of them are there, none of them was.
    Together { operations: Vec<OperationId> },
}

/// A change, with what became of it so far.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChangeRecord {
    pub operation: OperationId,
    pub target: Target,
    pub base: Base,
    pub durability: Durability,
    pub content: Content,
    pub modified_ms: i64,
    pub committed_ms: i64,
    /// `None` for a removal and a copy.
    pub file: Option<FileName>,
    /// The bytes of the file are the data of this record; otherwise they were synced before it was written.
    pub has_data: bool,
    /// An earlier change of the key that was not brought and never will be.
    pub replaced: Option<OperationId>,
    pub upload: Option<(UploadId, Vec<PartInfo>)>,
    pub conflict: Option<Error>,
}

/// A change whose upload was begun before it was committed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StreamedRecord {
    pub change: ChangeRecord,
    /// What the upload is marked with.
    pub marker: OperationId,
    /// Number and CRC32C of parts that have to be compared; `None` where the change has another upload by now.
    pub sums: Option<Vec<(u32, u32)>>,
}

/// A change that is in its source, and for how long that is to be remembered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SettledRecord {
    pub operation: OperationId,
    pub target: Target,
    pub settled: Settled,
    /// Moment of the catalog's time line from which on it is not; `None` for never.
    pub expires: Option<i64>,
}

impl ChangeRecord {
    /// All that is known of a change.
    pub fn of(change: &Change, has_data: bool) -> Record {
        let content = change.content_now();
        let progress = change.progress();
        let conflict = if progress.phase.is_conflict() { progress.failure.clone() } else { None };
        let record = Self {
            operation: change.operation(),
            target: change.target().clone(),
            base: progress.base.clone(),
            durability: change.durability(),
            content,
            modified_ms: change.modified_ms(),
            committed_ms: change.committed_ms(),
            file: change.file().map(crate::files::StagedFile::name),
            has_data,
            replaced: progress.replaces.as_ref().map(|replaced| replaced.operation()),
            upload: progress.upload.clone(),
            conflict,
        };
        match change.is_marked() {
            true => Record::Streamed(Box::new(StreamedRecord {
                change: record,
                marker: change.marker(),
                sums: progress.streamed.clone(),
            })),
            false => Record::Change(Box::new(record)),
        }
    }
}

impl Record {
    /// The record as bytes.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a record is made of plain values")
    }

    /// Reads exactly one record; `None` when the bytes are anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (record, rest) = postcard::take_from_bytes(bytes).ok()?;
        rest.is_empty().then_some(record)
    }
}
