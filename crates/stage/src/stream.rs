//! Drafts whose parts are sent while they are still written, and the uploads that were begun for them. The journal knows
//! each of these uploads before the source does, so that none is left behind by a crash.
//!
//! ```text
//! draft ─ intend ─▶ begun ─ parts ─┬─ commit ─▶ the change goes on with the upload, and compares what was sent
//!                                  └─ discarded, or committed elsewhere ─▶ orphan ─ aborted ─▶ forgotten
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use penstock_types::{PartInfo, Posix, Result, UploadId};
use tokio::sync::Notify;

use crate::change::{Change, OperationId, Target};
use crate::journal::{Journal, Slot};
use crate::record::Record;
use crate::stage::Stage;

/// What may be sent of a draft before it is committed; shared by the draft, the change that it becomes, and who sends.
pub struct Stream {
    target: Target,
    path: PathBuf,
    state: Mutex<State>,
    idle: Notify,
}

/// Where a stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Its draft is being written.
    Written,
    /// Its draft was committed with so many bytes: nothing of it changes any more.
    Committed(u64),
    /// Who brings the change sends what is missing.
    Taken,
    /// What was sent is of no use.
    Discarded,
}

/// A part that the source has taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SentPart {
    /// As the source told.
    pub info: PartInfo,
    /// CRC32C of exactly the bytes that were sent.
    pub sum: u32,
}

/// What was sent of a change while it was written.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// Parts that the source has, by number.
    pub parts: BTreeMap<u32, SentPart>,
    /// Parts that are on their way: [`Stream::idle`] tells when they are not any more.
    pub under_way: BTreeSet<u32>,
}

/// An upload that nobody will complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Orphan {
    /// What the upload is marked with.
    pub marker: OperationId,
    /// What it was to change.
    pub target: Target,
    /// `None` where the source was about to be asked for one when the node was killed.
    pub upload: Option<UploadId>,
}

struct State {
    standing: Standing,
    marker: Option<OperationId>,
    upload: Option<UploadId>,
    sent: Sent,
    /// What is said of the file besides its bytes, and what an upload was begun with.
    posix: Posix,
    begun_with: Posix,
}

/// The draft's hold on its stream, which is discarded with it unless it is committed.
pub(crate) struct StreamHold(pub(crate) Arc<Stream>);

/// What a change takes over from its draft.
pub(crate) struct Inherited {
    pub(crate) stream: Arc<Stream>,
    pub(crate) marker: OperationId,
    pub(crate) upload: UploadId,
    pub(crate) parts: Vec<SentPart>,
}

impl Stream {
    pub(crate) fn new(target: &Target, path: PathBuf) -> Arc<Self> {
        let (standing, sent) = (Standing::Written, Sent::default());
        let (posix, begun_with) = (Posix::default(), Posix::default());
        let state = State { standing, marker: None, upload: None, sent, posix, begun_with };
        Arc::new(Self { target: target.clone(), path, state: Mutex::new(state), idle: Notify::new() })
    }

    /// What is being written.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The file that it is written to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is.
    pub fn standing(&self) -> Standing {
        self.state().standing
    }

    /// The upload that was begun for it.
    pub fn upload(&self) -> Option<UploadId> {
        self.state().upload.clone()
    }

    /// Whether an upload was begun for it, or is about to be.
    pub fn is_begun(&self) -> bool {
        self.state().marker.is_some()
    }

    pub(crate) fn describe(&self, posix: Posix) {
        self.state().posix = posix;
    }

    /// What is said of the file besides its bytes: its upload is begun with that.
    pub fn begin_described(&self) -> Posix {
        let mut state = self.state();
        state.begun_with = state.posix;
        state.posix
    }

    /// What its upload was begun with.
    pub fn begun_with(&self) -> Posix {
        self.state().begun_with
    }

    /// Notes that a part is about to be sent; not, and `false`, when nothing is to be sent any more.
    pub fn start_part(&self, number: u32) -> bool {
        let mut state = self.state();
        let goes_on = matches!(state.standing, Standing::Written | Standing::Committed(_));
        if goes_on {
            state.sent.under_way.insert(number);
        }
        goes_on
    }

    /// Notes what became of a part.
    pub fn end_part(&self, number: u32, sent: Option<SentPart>) {
        let mut state = self.state();
        state.sent.under_way.remove(&number);
        if let Some(sent) = sent {
            state.sent.parts.insert(number, sent);
        }
        drop(state);
        self.idle.notify_waiters();
    }

    /// From now on nothing more is sent by others: what was sent so far, and what is on its way.
    pub fn take(&self) -> Sent {
        let mut state = self.state();
        if state.standing != Standing::Discarded {
            state.standing = Standing::Taken;
        }
        state.sent.clone()
    }

    /// Returns once nothing is on its way any more: all that was sent.
    pub async fn idle(&self) -> BTreeMap<u32, SentPart> {
        loop {
            let told = self.idle.notified();
            let mut told = std::pin::pin!(told);
            told.as_mut().enable();
            {
                let state = self.state();
                if state.sent.under_way.is_empty() {
                    return state.sent.parts.clone();
                }
            }
            told.await;
        }
    }

    pub(crate) fn discard(&self) {
        self.state().standing = Standing::Discarded;
    }

    fn is_idle(&self) -> bool {
        self.state().sent.under_way.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while a stream is held")
    }
}

impl StreamHold {
    /// What a change of `target` with `size` bytes takes over: nothing where no upload was begun, or for another key.
    pub(crate) fn commit(self, target: &Target, size: u64) -> Option<Inherited> {
        let stream = Arc::clone(&self.0);
        let mut state = stream.state();
        let same = stream.target.scope == target.scope && stream.target.key == target.key;
        let (marker, upload) = (state.marker?, state.upload.clone()?);
        if !same || state.standing != Standing::Written {
            return None;
        }
        state.standing = Standing::Committed(size);
        let parts = state.sent.parts.values().cloned().collect();
        drop(state);
        Some(Inherited { stream, marker, upload, parts })
    }
}

impl Drop for StreamHold {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if state.standing == Standing::Written {
            state.standing = Standing::Discarded;
        }
    }
}

impl Stage {
    /// Drafts that are written, and changes made of them, of which something may be sent before somebody brings them.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        let mut streams = self.streams.lock().expect("no panic while streams are listed");
        let mut table = self.table();
        streams.retain(|stream| {
            let (standing, marker) = {
                let state = stream.state();
                (state.standing, state.marker)
            };
            match standing {
                Standing::Discarded if stream.is_idle() => {
                    if let Some(marker) = marker {
                        table.uploads.orphan(marker);
                    }
                    false
                }
                standing => standing != Standing::Taken,
            }
        });
        streams.clone()
    }

    /// Says in the journal, durably, that an upload is about to be begun for a draft; what it is to be marked with.
    /// `None` where the draft is no more. Blocks.
    ///
    /// # Errors
    /// `Disk`, `NoSpace`; `Cancelled` when the stage is closed.
    pub fn intend_upload(&self, stream: &Arc<Stream>) -> Result<Option<OperationId>> {
        self.check_open()?;
        let mut marker = None;
        let ticket = {
            let mut table = self.table();
            let ticket = self.journal.push(|operation, home| {
                marker = Some(operation);
                table.uploads.intend(operation, stream.target.clone(), Slot::clone(home));
                (Record::Early { operation, target: stream.target.clone(), upload: None }, Bytes::new())
            })?;
            let mut state = stream.state();
            state.marker = marker;
            // Held up until the upload is known, so that it is not taken for an orphan before.
            state.sent.under_way.insert(0);
            ticket
        };
        let durable = self.journal.wait(&ticket);
        if let Err(error) = durable {
            self.journal.forget_lost(&ticket);
            stream.discard();
            stream.end_part(0, None);
            return Err(error);
        }
        let goes_on = matches!(stream.standing(), Standing::Written);
        if !goes_on {
            stream.end_part(0, None);
        }
        Ok(marker.filter(|_| goes_on))
    }

    /// Notes what became of beginning the upload that was intended: `None` when it failed, of which the source may know
    /// more than we do.
    pub fn early_begun(&self, stream: &Stream, upload: Option<&UploadId>) {
        let Some(operation) = stream.state().marker else { return };
        match upload {
            Some(upload) => {
                let mut table = self.table();
                let record = Record::Early { operation, target: stream.target.clone(), upload: Some(upload.clone()) };
                let (_, home) = self.journal.keep(&record);
                table.uploads.begun(operation, stream.target.clone(), Some(upload.clone()), home);
                stream.state().upload = Some(upload.clone());
            }
            None => stream.discard(),
        }
        self.journal.write_kept();
        stream.end_part(0, None);
    }

    /// Uploads that were begun for drafts, or perhaps were, and that nobody will complete.
    pub fn orphans(&self) -> Vec<Orphan> {
        self.table().uploads.orphans()
    }

    /// Whether an upload belongs to something that is written here or waits.
    pub fn knows_upload(&self, upload: &UploadId) -> bool {
        let table = self.table();
        table.uploads.knows(upload)
            || table.all().any(|change| change.progress().upload.as_ref().is_some_and(|(known, _)| known == upload))
    }

    /// An orphan is gone from its source.
    pub fn orphan_gone(&self, marker: OperationId) {
        self.note(|table, journal| table.uploads.forget(marker, journal));
    }

    /// The change of a key that an upload marked with `marker` is of.
    pub fn marked(&self, target: &Target, marker: OperationId) -> Option<Arc<Change>> {
        let is_it = |change: &&Arc<Change>| {
            let known = change.target();
            (change.operation() == marker || change.marker() == marker)
                && known.scope == target.scope
                && known.key == target.key
        };
        self.table().all().find(is_it).cloned()
    }
}

/// Uploads that were begun for drafts, until they are completed or aborted.
#[derive(Default)]
pub(crate) struct EarlyUploads(BTreeMap<OperationId, EarlyUpload>);

struct EarlyUpload {
    target: Target,
    upload: Option<UploadId>,
    /// Where the record of it is in the journal.
    home: Slot,
    /// Neither a draft nor a change will complete it.
    is_orphan: bool,
}

impl EarlyUploads {
    pub(crate) fn intend(&mut self, marker: OperationId, target: Target, home: Slot) {
        self.begun(marker, target, None, home);
    }

    pub(crate) fn begun(&mut self, marker: OperationId, target: Target, upload: Option<UploadId>, home: Slot) {
        let is_orphan = self.0.get(&marker).is_some_and(|known| known.is_orphan);
        self.0.insert(marker, EarlyUpload { target, upload, home, is_orphan });
    }

    pub(crate) fn orphan(&mut self, marker: OperationId) {
        if let Some(known) = self.0.get_mut(&marker) {
            known.is_orphan = true;
        }
    }

    /// It was completed, aborted or found to be gone.
    pub(crate) fn forget(&mut self, marker: OperationId, journal: &Journal) {
        if self.0.remove(&marker).is_some() {
            journal.keep(&Record::EarlyOver { operation: marker });
        }
    }

    pub(crate) fn apply_over(&mut self, marker: OperationId) {
        self.0.remove(&marker);
    }

    /// After the journal was replayed, what no change goes on with is an orphan.
    pub(crate) fn set_free<'a>(&mut self, living: impl Iterator<Item = &'a Arc<Change>>) {
        let owned: BTreeSet<OperationId> = living.map(|change| change.marker()).collect();
        for (marker, known) in &mut self.0 {
            known.is_orphan = !owned.contains(marker);
        }
    }

    /// Says again what the journal says of it in a file that is let go of.
    pub(crate) fn restate(&mut self, is_there: impl Fn(&Slot) -> bool, journal: &Journal) {
        for (marker, known) in self.0.iter_mut().filter(|(_, known)| is_there(&known.home)) {
            let (operation, target, upload) = (*marker, known.target.clone(), known.upload.clone());
            (_, known.home) = journal.keep(&Record::Early { operation, target, upload });
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn orphans(&self) -> Vec<Orphan> {
        let orphans = self.0.iter().filter(|(_, known)| known.is_orphan);
        orphans
            .map(|(marker, known)| Orphan {
                marker: *marker,
                target: known.target.clone(),
                upload: known.upload.clone(),
            })
            .collect()
    }

    fn knows(&self, upload: &UploadId) -> bool {
        self.0.values().any(|known| known.upload.as_ref() == Some(upload))
    }
}
