//! A change of one key: what replaced what, where its bytes are, and what became of it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use penstock_types::{
    AttachmentId, ByteRange, Durability, Error, ErrorKind, ObjectAttributes, ObjectKey, PartInfo, Posix, Result,
    UploadId, Version,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::files::StagedFile;
use crate::journal::Slot;
pub use crate::operation::{OperationId, operation_of};
use crate::patch::Patch;
use crate::stream::Stream;

/// What is changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    /// The source, as seen with one credential reference: what overlays are asked by.
    pub scope: Arc<str>,
    /// Through which attachment.
    pub attachment: AttachmentId,
    /// Full key in the source.
    pub key: ObjectKey,
}

/// What a change replaces, and so what must hold of the source when it is brought there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Base {
    /// Whatever is there.
    Unconditional,
    /// Nothing: the key has no object.
    Absent,
    /// This version of the source.
    Version(Version),
    /// An earlier change of the key, which is not in the source yet.
    Staged(OperationId),
}

/// What is committed besides the bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// What is changed.
    pub target: Target,
    /// What it replaces, as far as the caller knows. Where an earlier change of the key waits, that is what is
    /// replaced, whatever is said here.
    pub base: Base,
    /// Refuse with `AlreadyExists` where an earlier change of the key waits that is a file. (That its source has
    /// nothing of the name, the caller has looked, and says with [`Base::Absent`].)
    pub exclusive: bool,
    /// Refuse with `StaleVersion` where an earlier change of the key is another one than `base`: what is committed was made
    /// of that.
    pub only_onto_base: bool,
    /// What was promised.
    pub durability: Durability,
    /// Modification time to show until the source has its own, milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// User metadata, names in lower case.
    pub metadata: Vec<(String, String)>,
}

/// The object that a copy is made of, or that a file lies over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Original {
    /// Full key, in the scope of the copy.
    pub key: ObjectKey,
    /// The version that is copied: one of the source, or that of a change which is a copy itself (`staged-…`).
    pub version: Version,
    /// The first change that needed it, where that was another one: what was committed over it later waits.
    pub since: Option<OperationId>,
}

/// What a key holds after a change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Content {
    /// A file.
    Put {
        /// Bytes.
        size: u64,
        /// User metadata, names in lower case.
        metadata: Vec<(String, String)>,
    },
    /// Nothing. Where the base is [`Base::Absent`], the source need not be asked.
    Remove,
    /// The file that an object of the source is, whose bytes need not be here; with its user metadata.
    Copy {
        /// Bytes.
        size: u64,
        /// As it was when this was committed; [`Change::original`] follows.
        original: Original,
    },
    /// A file of which some bytes are here, and the others an object's.
    Patch {
        /// Bytes.
        size: u64,
        /// User metadata, names in lower case.
        metadata: Vec<(String, String)>,
        /// As it was when this was committed; [`Change::original`] follows.
        original: Original,
        /// Which bytes are here.
        patch: Patch,
    },
    /// As [`Content::Copy`], with other attributes. Of itself, where only they are changed.
    Adorned {
        /// Bytes.
        size: u64,
        /// As that of a copy.
        original: Original,
        /// What was said anew; the rest is the original's.
        posix: Posix,
    },
}

/// How a change ended in its source. `moment` is on the catalog's time line, microseconds: what the source was asked
/// for later shows the change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Settled {
    /// The source has the file.
    Stored {
        /// As the source gives them.
        attributes: ObjectAttributes,
        /// When that was known.
        moment: i64,
    },
    /// The source has no object of the key any more.
    Removed {
        /// When that was known.
        moment: i64,
    },
    /// As [`Settled::Stored`], of a file whose attributes were said.
    Adorned {
        /// As the source gives them.
        attributes: ObjectAttributes,
        /// When that was known.
        moment: i64,
        /// What was said.
        posix: Posix,
    },
}

impl Settled {
    /// When that was known.
    pub fn moment(&self) -> i64 {
        match self {
            Self::Stored { moment, .. } | Self::Removed { moment } | Self::Adorned { moment, .. } => *moment,
        }
    }

    /// The object; `None` after a removal.
    pub fn attributes(&self) -> Option<&ObjectAttributes> {
        match self {
            Self::Stored { attributes, .. } | Self::Adorned { attributes, .. } => Some(attributes),
            Self::Removed { .. } => None,
        }
    }

    /// What was said of the file besides its bytes.
    pub fn posix(&self) -> Posix {
        match self {
            Self::Adorned { posix, .. } => *posix,
            Self::Stored { .. } | Self::Removed { .. } => Posix::default(),
        }
    }

    /// What a later change of the key replaces.
    pub(crate) fn base(&self) -> Base {
        self.attributes().map_or(Base::Absent, |attributes| Base::Version(attributes.version.clone()))
    }
}

/// What was acknowledged of one key: a file or a removal. Shared by all who deal with it; what it is never changes,
/// what became of it does.
pub struct Change {
    operation: OperationId,
    target: Target,
    content: Content,
    durability: Durability,
    modified_ms: i64,
    committed_ms: i64,
    /// Shared with the change that it is staged again as.
    file: Option<Arc<StagedFile>>,
    /// What its upload is marked with, where that was begun before it was committed.
    marker: Option<OperationId>,
    /// What was sent of it while it was written; `None` after a restart.
    stream: Option<Arc<Stream>>,
    progress: Mutex<Progress>,
    ending: Ending,
}

/// What a change is, once for all.
pub(crate) struct ChangeParts {
    pub(crate) operation: OperationId,
    pub(crate) target: Target,
    pub(crate) content: Content,
    pub(crate) durability: Durability,
    pub(crate) modified_ms: i64,
    pub(crate) committed_ms: i64,
    /// `None` for a removal and a copy.
    pub(crate) file: Option<Arc<StagedFile>>,
    pub(crate) marker: Option<OperationId>,
    pub(crate) stream: Option<Arc<Stream>>,
}

/// Tells those who wait how a change ended. A change that takes the place of an earlier one goes on with its channel,
/// so that who waited for that one waits for this one.
pub(crate) type Ending = Arc<watch::Sender<Option<Result<()>>>>;

/// Where a change is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Its record is on the way to the disk: nobody sees it.
    Admitted,
    /// It waits to be brought.
    Waiting,
    /// The uploader has it.
    Brought,
    /// A later change that is on the way to the disk takes its place.
    Held,
    /// It is in conflict.
    Conflict,
    /// It is in conflict, and what settles that is on the way to the disk.
    Resolving,
    /// Settled, replaced or given up.
    Over,
}

impl Phase {
    pub(crate) fn is_conflict(self) -> bool {
        matches!(self, Self::Conflict | Self::Resolving)
    }

    /// Whether a record on the way to the disk says that it is over.
    pub(crate) fn is_ending(self) -> bool {
        matches!(self, Self::Held | Self::Resolving)
    }
}

/// What changes of a change.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) base: Base,
    /// Of what has an original: that by now, where that is another one than at its commit.
    pub(crate) copied: Option<Original>,
    pub(crate) phase: Phase,
    /// The source may have it: it was given out once, perhaps by an earlier process.
    pub(crate) given_out: bool,
    /// Times that bringing it failed.
    pub(crate) failures: u32,
    pub(crate) failure: Option<Error>,
    pub(crate) upload: Option<(UploadId, Vec<PartInfo>)>,
    /// Number and CRC32C of parts that were sent while it was written; `None` where its upload was begun afterwards.
    pub(crate) streamed: Option<Vec<(u32, u32)>>,
    /// The change whose place it takes, until its own record is durable.
    pub(crate) replaces: Option<Arc<Change>>,
    /// Where the newest record of all of it is in the journal.
    pub(crate) home: Slot,
}

impl Progress {
    pub(crate) fn new(base: Base, phase: Phase, home: Slot) -> Self {
        Self {
            base,
            copied: None,
            phase,
            given_out: false,
            failures: 0,
            failure: None,
            upload: None,
            streamed: None,
            replaces: None,
            home,
        }
    }

    /// An upload was begun, after the commit.
    pub(crate) fn begin(&mut self, upload: UploadId) {
        (self.upload, self.streamed) = (Some((upload, Vec::new())), None);
    }

    /// There is no upload any more.
    pub(crate) fn lose_upload(&mut self) {
        (self.upload, self.streamed) = (None, None);
    }

    /// The source has taken a part of the upload, perhaps again.
    pub(crate) fn add_part(&mut self, part: PartInfo) {
        if let Some((_, parts)) = &mut self.upload {
            parts.retain(|known| known.number != part.number);
            if let Some(sums) = &mut self.streamed {
                sums.retain(|(number, _)| *number != part.number);
            }
            parts.push(part);
        }
    }
}

impl Change {
    /// Its name.
    pub fn operation(&self) -> OperationId {
        self.operation
    }

    /// What its uploads are marked with in the source: its name, unless the upload was begun before it had one.
    pub fn marker(&self) -> OperationId {
        self.marker.unwrap_or(self.operation)
    }

    pub(crate) fn is_marked(&self) -> bool {
        self.marker.is_some()
    }

    /// What was sent of it while it was written; `None` where nothing was, and after a restart.
    pub fn stream(&self) -> Option<&Arc<Stream>> {
        self.stream.as_ref()
    }

    /// Where its upload was begun while it was written, number and CRC32C of the parts that were sent then and not
    /// compared since.
    pub fn streamed(&self) -> Option<Vec<(u32, u32)>> {
        self.progress().streamed.clone()
    }

    /// Where it stands among the changes of this node.
    pub fn sequence(&self) -> u64 {
        self.operation.sequence
    }

    /// What is changed.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// What the key holds after it.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// What was promised to who committed it.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// When it was committed, milliseconds since the Unix epoch.
    pub fn committed_ms(&self) -> i64 {
        self.committed_ms
    }

    /// Bytes of its file; `None` for a removal.
    pub fn size(&self) -> Option<u64> {
        match &self.content {
            Content::Put { size, .. }
            | Content::Copy { size, .. }
            | Content::Patch { size, .. }
            | Content::Adorned { size, .. } => Some(*size),
            Content::Remove => None,
        }
    }

    /// User metadata of its file; empty for a removal, and for a copy, which has that of its original.
    pub fn metadata(&self) -> &[(String, String)] {
        match &self.content {
            Content::Put { metadata, .. } | Content::Patch { metadata, .. } => metadata,
            Content::Remove | Content::Copy { .. } | Content::Adorned { .. } => &[],
        }
    }

    /// What was said of its file besides the bytes; of a copy, without what its original brings along.
    pub fn posix(&self) -> Posix {
        match &self.content {
            Content::Put { metadata, .. } | Content::Patch { metadata, .. } => Posix::of(metadata),
            Content::Adorned { posix, .. } => *posix,
            Content::Copy { .. } | Content::Remove => Posix::default(),
        }
    }

    /// Whether all of its bytes are those of its original.
    pub fn is_copy(&self) -> bool {
        matches!(self.content, Content::Copy { .. } | Content::Adorned { .. })
    }

    /// Whether it changes nothing but attributes: it is a copy of what its key holds.
    pub fn is_of_itself(&self) -> bool {
        self.is_copy() && self.original().is_some_and(|original| original.key == self.target.key)
    }

    /// Which bytes of its file are here, where that is not all of them: the others are its original's.
    pub fn patch(&self) -> Option<&Patch> {
        match &self.content {
            Content::Patch { patch, .. } => Some(patch),
            Content::Put { .. } | Content::Copy { .. } | Content::Adorned { .. } | Content::Remove => None,
        }
    }

    /// What it is a copy of, or lies over. Follows: once an original that is a copy itself is in the source, it is that version; if it
    /// will not be, it is what that was to be copied from.
    pub fn original(&self) -> Option<Original> {
        let (Content::Copy { original, .. } | Content::Patch { original, .. } | Content::Adorned { original, .. }) =
            &self.content
        else {
            return None;
        };
        Some(self.progress().copied.as_ref().unwrap_or(original).clone())
    }

    /// The version it has while it is staged: `staged-<operation>`.
    pub fn version(&self) -> Version {
        self.operation.version()
    }

    /// What a stat shows while it is staged; `None` for a removal.
    pub fn attributes(&self) -> Option<ObjectAttributes> {
        let size = self.size()?;
        Some(ObjectAttributes { size, modified_ms: self.modified_ms, version: self.version() })
    }

    /// What it replaces. Follows: once the earlier change that it names is in the source, it is that version.
    pub fn base(&self) -> Base {
        self.progress().base.clone()
    }

    /// Why bringing it failed the last time, or why it is in conflict.
    pub fn failure(&self) -> Option<Error> {
        self.progress().failure.clone()
    }

    /// The multipart upload that was begun for it, and the parts that the source took, in the order they came; kept
    /// over restarts.
    pub fn upload(&self) -> Option<(UploadId, Vec<PartInfo>)> {
        self.progress().upload.clone()
    }

    /// Its content, read only; shared by all who read it at the same time, and readable for as long as one has it.
    /// May read the journal and write: the file of a small one is checked and, if need be, restored at its first use
    /// after a restart.
    ///
    /// # Errors
    /// `InvalidInput` for a removal and a copy; `StaleVersion` when it was forgotten; `Disk`; `Corrupt` when its bytes
    /// are lost.
    pub fn open(&self) -> Result<Arc<OwnedFd>> {
        let no_file = || {
            let reason = match self.original() {
                Some(original) => format!("its bytes are those of {} in the source", original.key),
                None => "it is a removal".to_owned(),
            };
            Error::new(ErrorKind::InvalidInput, self.action("read"), reason)
        };
        let file = self.file().ok_or_else(no_file)?;
        file.open().map_err(|error| error.during(self.action("read")))
    }

    /// Path of its file, for another name of it (a hard link); `None` for a removal and a copy, and where
    /// [`Change::open`] has not restored it yet.
    pub fn path(&self) -> Option<PathBuf> {
        self.file()?.path()
    }

    /// Whether the bytes of its file are synced. Those of a small one are in the journal first, and synced later.
    pub fn is_synced(&self) -> bool {
        self.file().is_none_or(StagedFile::is_synced)
    }

    /// Waits until the source has it. Where a later change of the key took its place before it was brought, until the
    /// source has that one.
    ///
    /// # Errors
    /// `Conflict`, or why else it will never be brought; `Cancelled` when the stage is closed.
    pub async fn done(&self) -> Result<()> {
        let mut ending = self.ending.subscribe();
        let ended = ending.wait_for(Option::is_some).await;
        // The sender is a part of this change, which is borrowed for as long as this waits.
        ended.ok().and_then(|ended| ended.clone()).unwrap_or(Ok(()))
    }

    pub(crate) fn new(parts: ChangeParts, progress: Progress, ending: Ending) -> Arc<Self> {
        let ChangeParts { operation, target, content, durability, modified_ms, committed_ms, file, marker, stream } =
            parts;
        let progress = Mutex::new(progress);
        let ending = Ending::clone(&ending);
        Arc::new(Self {
            operation,
            target,
            content,
            durability,
            modified_ms,
            committed_ms,
            file,
            marker,
            stream,
            progress,
            ending,
        })
    }

    pub(crate) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("no panic while the progress of a change is held")
    }

    pub(crate) fn phase(&self) -> Phase {
        self.progress().phase
    }

    pub(crate) fn file(&self) -> Option<&StagedFile> {
        self.file.as_deref()
    }

    pub(crate) fn shared_file(&self) -> Option<Arc<StagedFile>> {
        self.file.clone()
    }

    /// Bytes of the stage that it takes.
    pub(crate) fn charge(&self) -> u64 {
        match &self.content {
            Content::Put { size, .. } => *size,
            Content::Patch { size, patch, .. } => patch.own_bytes(ByteRange::new(0, *size)),
            Content::Remove | Content::Copy { .. } | Content::Adorned { .. } => 0,
        }
    }

    /// What the key holds after it; with the original that it has by now.
    pub(crate) fn content_now(&self) -> Content {
        let mut content = self.content.clone();
        let by_now = self.original();
        if let (
            Content::Copy { original, .. } | Content::Patch { original, .. } | Content::Adorned { original, .. },
            Some(by_now),
        ) = (&mut content, by_now)
        {
            let since = by_now.since.or(Some(self.operation));
            *original = Original { since, ..by_now };
        }
        content
    }

    pub(crate) fn modified_ms(&self) -> i64 {
        self.modified_ms
    }

    pub(crate) fn ending(&self) -> &Ending {
        &self.ending
    }

    /// Tells those who wait how it ended; the first end counts.
    pub(crate) fn end(&self, how: Result<()>) {
        self.ending.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(how);
            }
            first
        });
    }

    pub(crate) fn action(&self, verb: &str) -> String {
        format!("{verb} staged {}", self.target.key)
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = self.progress();
        f.debug_struct("Change")
            .field("operation", &self.operation.to_string())
            .field("key", &self.target.key)
            .field("content", &self.content)
            .field("base", &progress.base)
            .field("phase", &progress.phase)
            .finish_non_exhaustive()
    }
}
