//! Bringing what is staged into the source: oldest change of each key first, conditional on what it replaces, again
//! and again until the source has it or somebody else's version is in the way.

use std::cell::Cell;
use std::sync::{Arc, Weak};
use std::time::Duration;

use penstock_source::{OPERATION_METADATA, is_weak};
use penstock_stage::{Base, Change, Content, OperationId, Settled, Target};
use penstock_types::faults::{Safeguard, Step, is_left_out, under_way};
use penstock_types::{
    ByteRange, Durability, Error, ErrorKind, Freshness, ObjectAttributes, ObjectId, ObjectKey, ObjectStat, PAGE_SIZE,
    Posix, Precondition, PutRequest, Result, TreePath, Version,
};
use tokio::sync::Semaphore;

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::open::object_id;
use crate::transfer::StagedFile;
use crate::write::copy::Copying;

/// Changes that are brought at the same time.
const CHANGES_AT_ONCE: usize = 32;
/// Up to this size an object goes as one put.
pub(super) const PUT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The uploader looks at least so often whether something waited long enough after a failure.
const LOOK: Duration = Duration::from_millis(500);
/// So often while something is held.
const LOOK_AT_HELD: Duration = Duration::from_millis(100);
/// While many files are written, those up to this size are brought afterwards: until then that takes the processors and
/// the disk from who writes.
const SMALL_BYTES_MAX: u64 = 1024 * 1024;
/// But not for longer than this, ms.
const BURST_MS: i64 = 2000;
/// A change is shown over listings for so long beyond their freshness: one may be read to its end after it is stale.
const SHOWN_LONGER_US: i64 = 600_000_000;

/// What was found in the way of a change.
enum Found {
    /// The change itself.
    Ours(ObjectStat),
    /// A later change of the same key.
    Later(ObjectStat),
    /// Nothing, any more.
    Nothing,
}

/// What a change has become in the source.
pub(super) struct Stored {
    pub(super) attributes: ObjectAttributes,
    /// CRC32C of each page; empty where they are not known.
    pub(super) sums: Vec<u32>,
    /// The change itself, and not a later one that took its place.
    pub(super) is_it: bool,
    /// What the source keeps of its attributes.
    pub(super) posix: Posix,
}

impl Stored {
    fn later(found: ObjectStat) -> Self {
        Self { is_it: false, ..Self::found(found) }
    }

    fn found(found: ObjectStat) -> Self {
        Self::it(found.attributes, Vec::new(), Posix::of(&found.metadata))
    }

    pub(super) fn it(attributes: ObjectAttributes, sums: Vec<u32>, posix: Posix) -> Self {
        Self { attributes, sums, is_it: true, posix }
    }
}

/// Brings changes into their sources as long as the engine is there.
pub(crate) async fn keep_uploading(engine: Weak<Engine>) {
    let slots = Arc::new(Semaphore::new(CHANGES_AT_ONCE));
    loop {
        let Some(stage) = engine.upgrade().map(|engine| Arc::clone(&engine.stage)) else { return };
        let woken = stage.wake().notified();
        if stage.wants_preparation() {
            let stage = Arc::clone(&stage);
            drop(tokio::task::spawn_blocking(move || stage.prepare()));
        }
        let any_held = Cell::new(false);
        while let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            let Some(engine) = engine.upgrade() else { break };
            let now = engine.parts.clock.monotonic();
            engine.sets.look(&stage, now);
            let in_burst = stage.is_in_burst();
            let held = |change: &Change| {
                let held = engine.live.holds(change, now)
                    || engine.sets.holds(change)
                    || (in_burst && engine.waits_for_burst(change));
                any_held.set(any_held.get() || held);
                held
            };
            let Some(change) = stage.next_unless(held) else { break };
            tokio::spawn(async move {
                engine.bring(&change).await;
                drop(slot);
                engine.stage.wake().notify_waiters();
            });
        }
        let look = if any_held.get() { LOOK_AT_HELD } else { LOOK };
        let _ = tokio::time::timeout(look, woken).await;
    }
}

impl Engine {
    /// Whether a change can wait until those who write pause.
    fn waits_for_burst(&self, change: &Change) -> bool {
        change.durability() == Durability::Local
            && change.size().is_some_and(|size| size <= SMALL_BYTES_MAX)
            && self.parts.clock.wall_ms() - change.committed_ms() < BURST_MS
            && !self.live.is_wanted(change.target())
    }

    /// Brings one change, and tells the stage how that went.
    async fn bring(self: &Arc<Self>, change: &Arc<Change>) {
        let Some(attached) = self.attached_for(change) else {
            let action = format!("upload {}", change.target().key);
            let error = Error::new(ErrorKind::Unavailable, action, "its source is not attached")
                .advise("attach the source again, writable, at any path");
            self.stage.failed(change, error);
            return;
        };
        if let Some(earlier) = self.stage.blocked_by(change) {
            self.stage.failed(change, blocked(&attached, change, &earlier));
            return;
        }
        let metrics = &self.parts.metrics;
        let brought = match change.content() {
            Content::Remove => self.bring_removal(&attached, change).await.map(|()| None),
            Content::Put { .. } if Self::is_manifest(change) => self.bring_manifest(&attached, change).await.map(Some),
            Content::Put { size, .. }
            | Content::Copy { size, .. }
            | Content::Patch { size, .. }
            | Content::Adorned { size, .. } => self.bring_content(&attached, change, *size).await.map(Some),
        };
        attached.health.note(&brought);
        match brought {
            Ok(stored) => self.settle(&attached, change, stored).await,
            Err(error) if error.kind() == ErrorKind::Conflict => {
                metrics.conflicts.inc();
                self.give_up_upload(&attached, change).await;
                // First, so that whoever learns of the conflict sees what is in the way.
                self.forget(change).await;
                self.stage.conflict(change, error);
                self.manifest_done(change);
                self.announce_change(change).await;
            }
            Err(error) => {
                metrics.upload_failures.inc();
                self.stage.failed(change, error);
            }
        }
    }

    /// Aborts the upload of a change, if it has one: nobody will complete it.
    pub(super) async fn give_up_upload(&self, attached: &Attached, change: &Change) {
        if let Some(stream) = change.stream() {
            stream.take();
            stream.idle().await;
        }
        if let Some((upload, _)) = change.upload() {
            // Should that fail, the store's own rules remove the parts.
            let _ = attached.source.abort_upload(&change.target().key, &upload).await;
            self.stage.upload_lost(change);
        }
    }

    /// The source has the change: its bytes become the cached ones of the new version, and the stage lets go of it.
    async fn settle(self: &Arc<Self>, attached: &Arc<Attached>, change: &Arc<Change>, stored: Option<Stored>) {
        let settled = match stored {
            None => {
                self.catalog.strip(&attached.scope, &change.target().key);
                Settled::Removed { moment: self.catalog.now() }
            }
            Some(Stored { attributes, sums, is_it, posix }) => {
                let object = object_id(attached, change.target().key.clone(), &attributes.version);
                let original = change.original().filter(|_| is_it);
                let original = original.map(|original| object_id(attached, original.key, &original.version));
                let (engine, known, size) = (Arc::clone(self), Arc::clone(change), attributes.size);
                let step = under_way(Step::Adoption);
                let adopted = match original {
                    Some(_) if change.patch().is_some() => self.adopt_patched(attached, change, &object).await,
                    Some(original) => self.blocking(move || engine.adopt_copy(&original, &object)).await,
                    None => self.blocking(move || engine.adopt(&object, size, sums, &known)).await,
                };
                drop(step);
                if let Err(error) = adopted {
                    tracing::debug!(%error, "an uploaded file is not kept in the cache");
                }
                self.note_posix(attached, &change.target().key, &attributes, posix);
                let moment = self.catalog.now();
                match posix.is_empty() {
                    true => Settled::Stored { attributes, moment },
                    false => Settled::Adorned { attributes, moment, posix },
                }
            }
        };
        let step = under_way(Step::Settling);
        self.stage.settle(change, settled, self.shown_us(&attached.scope));
        if change.original().is_some() {
            let stage = Arc::clone(&self.stage);
            // Should it fail, housekeeping tries again.
            let _ = tokio::task::spawn_blocking(move || stage.free_originals()).await;
        }
        drop(step);
        self.manifest_done(change);
    }

    /// How long a change that the source has is shown over what the source said before, µs: as long as anybody who
    /// sees the scope believes that; `None` is for ever.
    fn shown_us(&self, scope: &str) -> Option<i64> {
        let mut shown_us = 0;
        for attached in self.tree.all().iter().filter(|attached| *attached.scope == *scope) {
            match attached.spec.freshness {
                #[allow(clippy::cast_possible_truncation, reason = "saturates, and years are enough")]
                Freshness::Seconds(seconds) => shown_us = shown_us.max((seconds * 1e6) as i64),
                Freshness::Immutable => return None,
            }
        }
        Some(shown_us.saturating_add(SHOWN_LONGER_US))
    }

    fn adopt(&self, object: &ObjectId, size: u64, sums: Vec<u32>, change: &Change) -> Result<()> {
        let Some(path) = change.path().filter(|_| sums.len() as u64 == size.div_ceil(PAGE_SIZE)) else {
            return Ok(());
        };
        self.pins.note_written(object);
        self.cache.adopt(object, size, sums, &path, change.is_synced()).map(drop)
    }

    /// What was believed of the key of a change has turned out to be wrong: the source is asked next.
    async fn forget(&self, change: &Change) {
        let target = change.target();
        for attached in self.tree.all().iter().filter(|attached| attached.scope == target.scope) {
            if let Some(inner) = attached.view.path_of(&target.key) {
                attached.view.overtaken(&inner).await;
            }
        }
    }

    /// Tells the kernels that something else has the key of a change now.
    pub(super) async fn announce_change(&self, change: &Change) {
        let target = change.target();
        for attached in self.tree.all().iter().filter(|attached| attached.scope == target.scope) {
            if let Some(inner) = attached.view.path_of(&target.key)
                && let Ok(path) = TreePath::parse(&format!("{}/{inner}", attached.path))
            {
                self.announce(&path).await;
            }
        }
    }

    /// An attachment that may write what was staged through the one of the change, which is itself if it is there.
    fn attached_for(&self, change: &Change) -> Option<Arc<Attached>> {
        self.attached_at(change.target())
    }

    /// An attachment that may write what is written through the one of a target, which is itself if it is there.
    pub(crate) fn attached_at(&self, target: &Target) -> Option<Arc<Attached>> {
        let all = self.tree.all();
        let same = all.iter().find(|attached| attached.spec.id == target.attachment);
        let other = || all.iter().find(|attached| attached.scope == target.scope && attached.spec.write.is_some());
        same.or_else(other).cloned()
    }

    /// The manifest of a set: what is put names the versions that its files have in the source.
    async fn bring_manifest(&self, attached: &Attached, change: &Arc<Change>) -> Result<Stored> {
        let stored = match self.put_manifest(attached, change).await {
            Err(error) if error.kind() == ErrorKind::Conflict => match self.find_out(attached, change, &error).await? {
                Found::Ours(found) | Found::Later(found) => found.attributes,
                Found::Nothing => return Err(error),
            },
            put => put?,
        };
        Ok(Stored::it(stored, Vec::new(), Posix::default()))
    }

    async fn bring_removal(&self, attached: &Attached, change: &Change) -> Result<()> {
        let (source, key) = (&attached.source, &change.target().key);
        let version = match change.base() {
            // It came with what is in it.
            Base::Absent if attached.source.capabilities().directories && key.as_bytes().ends_with(b"/") => None,
            Base::Absent => return Ok(()),
            Base::Version(version) => Some(version),
            Base::Unconditional => None,
            Base::Staged(_) => return Err(out_of_turn(change)),
        };
        let _step = under_way(Step::Removal);
        let deleted = match &version {
            Some(version) if only_we_replace(attached, version) => match source.stat(key).await {
                Ok(found) if found.attributes.version == *version => source.delete(key, None).await,
                Ok(_) => Err(replaced(attached, key)),
                Err(error) => Err(error),
            },
            version => source.delete(key, version.as_ref()).await,
        };
        match deleted {
            Err(error) if error.kind() == ErrorKind::Conflict => match self.find_out(attached, change, &error).await? {
                // A repeat, or somebody else wanted the same.
                Found::Nothing | Found::Later(_) => Ok(()),
                Found::Ours(_) => Err(replaced(attached, key)),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            deleted => deleted,
        }
    }

    async fn bring_content(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        change: &Arc<Change>,
        size: u64,
    ) -> Result<Stored> {
        let capabilities = attached.source.tried(&change.target().key).await?;
        if !capabilities.conditional_replace && !attached.spec.write.as_ref().is_some_and(|write| write.single_writer) {
            let action = format!("upload {}", attached.describe(&change.target().key));
            let reason = "the store replaces objects whatever somebody else wrote: it ignores If-Match";
            return Err(Error::new(ErrorKind::Unsupported, action, reason)
                .advise("attach it with --single-writer where nobody else writes there"));
        }
        let sent = match change.base() {
            Base::Absent => self.send(attached, change, size, Precondition::Absent).await,
            Base::Unconditional => self.send(attached, change, size, Precondition::None).await,
            Base::Version(version) if only_we_replace(attached, &version) => {
                match attached.source.stat(&change.target().key).await {
                    Ok(found) if found.attributes.version != version => Err(replaced(attached, &change.target().key)),
                    Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                    _ => self.send(attached, change, size, Precondition::None).await,
                }
            }
            Base::Version(_) if is_left_out(Safeguard::Condition) => {
                self.send(attached, change, size, Precondition::None).await
            }
            Base::Version(version) => self.send(attached, change, size, Precondition::Version(version)).await,
            Base::Staged(_) => return Err(out_of_turn(change)),
        };
        let stored = match sent {
            Err(error) if error.kind() == ErrorKind::Conflict => match self.find_out(attached, change, &error).await? {
                Found::Ours(found) => {
                    self.give_up_upload(attached, change).await;
                    Stored::found(found)
                }
                Found::Later(found) => {
                    self.give_up_upload(attached, change).await;
                    return Ok(Stored::later(found));
                }
                // Whoever removed what was to be replaced, be it a later change of ours before the node was killed:
                // nobody's bytes are in the way.
                Found::Nothing => self.send(attached, change, size, Precondition::Absent).await.map_err(come_again)?,
            },
            Err(error) if error.kind() == ErrorKind::StaleVersion && change.original().is_some() => {
                match self.find_out_without_original(attached, change, error).await? {
                    Found::Ours(found) => Stored::found(found),
                    Found::Later(found) => return Ok(Stored::later(found)),
                    Found::Nothing => return Err(replaced(attached, &change.target().key)),
                }
            }
            sent => sent?,
        };
        if stored.attributes.size != size {
            let action = format!("upload {}", attached.describe(&change.target().key));
            let reason = "the source says another size than what was sent";
            return Err(Error::new(ErrorKind::Corrupt, action, reason)
                .fact("sent", size)
                .fact("is", stored.attributes.size));
        }
        self.adorn_stored(attached, change, stored).await
    }

    /// What is in the way of a change whose condition did not hold. An earlier try may have been carried out without our
    /// knowing, and later changes of the key with it, before the node was killed: operation ids tell.
    async fn find_out(&self, attached: &Attached, change: &Change, refused: &Error) -> Result<Found> {
        let key = &change.target().key;
        let found = match attached.source.stat(key).await {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        let operation = found.metadata.iter().find(|(name, _)| name == OPERATION_METADATA);
        let operation = operation.and_then(|(_, value)| value.parse::<OperationId>().ok());
        match operation {
            Some(operation) if [change.operation(), change.marker()].contains(&operation) => Ok(Found::Ours(found)),
            Some(operation) if self.is_later(change, operation) => Ok(Found::Later(found)),
            // One empty directory is as good as another.
            _ if is_marker(change) && found.attributes.size == 0 => Ok(Found::Ours(found)),
            // The store was busy with the key, and what was to be replaced is still there.
            _ if !is_weak(&found.attributes.version) && change.base() == Base::Version(found.attributes.version) => {
                Err(refused.clone().with_kind(ErrorKind::Unavailable))
            }
            _ => Err(replaced(attached, key)),
        }
    }

    /// As [`Engine::find_out`], of a copy whose original is gone; otherwise it will never be made.
    async fn find_out_without_original(&self, attached: &Attached, change: &Change, gone: Error) -> Result<Found> {
        match self.find_out(attached, change, &gone).await {
            Ok(Found::Nothing) => Err(gone.with_kind(ErrorKind::Conflict)),
            Err(error) if error.kind() == ErrorKind::Conflict || error.reason() == gone.reason() => {
                Err(gone.with_kind(ErrorKind::Conflict))
            }
            found => found,
        }
    }

    /// Whether an operation is a change of the same key that was committed here after this one, and waits as well.
    fn is_later(&self, change: &Change, operation: OperationId) -> bool {
        let found = self.stage.marked(change.target(), operation);
        found.is_some_and(|later| later.operation() > change.operation())
    }

    async fn send(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        change: &Arc<Change>,
        size: u64,
        precondition: Precondition,
    ) -> Result<Stored> {
        match change.original() {
            Some(original) => {
                let copying = Copying { change, original, size, precondition };
                match change.patch() {
                    Some(patch) => self.send_patched(attached, copying, patch).await,
                    None => self.send_copy(attached, copying).await,
                }
            }
            None => {
                let file = Arc::new(StagedFile { descriptor: change.open()?, size });
                self.send_file(attached, change, &file, precondition).await
            }
        }
    }

    /// Sends what a change makes its key hold, from a file.
    pub(super) async fn send_file(
        &self,
        attached: &Attached,
        change: &Arc<Change>,
        file: &Arc<StagedFile>,
        precondition: Precondition,
    ) -> Result<Stored> {
        let size = file.size;
        let metrics = &self.parts.metrics;
        let stored = if size <= PUT_BYTES_MAX {
            self.give_up_upload(attached, change).await;
            let part = self.part(file, ByteRange::new(0, size)).await?;
            let (key, body) = (change.target().key.clone(), part.bytes);
            let metadata = self.metadata_of(attached, change);
            let posix = Posix::of(&metadata);
            let step = under_way(Step::Completion);
            let attributes = attached.source.put(PutRequest { key, body, precondition, metadata }).await?;
            drop(step);
            self.stage.brought(size);
            Stored::it(attributes, part.sums, posix)
        } else {
            self.send_in_parts(attached, change, file, precondition).await?
        };
        metrics.uploads.inc();
        metrics.upload_bytes.inc_by(size);
        Ok(stored)
    }
}

/// Metadata of the object that a change becomes, by which its operation is known.
pub(crate) fn metadata(change: &Change) -> Vec<(String, String)> {
    let mut metadata = change.metadata().to_vec();
    metadata.push((OPERATION_METADATA.to_owned(), change.marker().to_string()));
    metadata
}

/// Whether a version has to be compared here, because the store cannot: one without an ETag, where nobody else writes.
fn only_we_replace(attached: &Attached, version: &Version) -> bool {
    is_weak(version) && attached.spec.write.as_ref().is_some_and(|write| write.single_writer)
}

/// A condition that does not hold a moment after it did is found out anew by the next try.
fn come_again(error: Error) -> Error {
    if error.kind() == ErrorKind::Conflict { error.with_kind(ErrorKind::Unavailable) } else { error }
}

fn out_of_turn(change: &Change) -> Error {
    let action = format!("upload {}", change.target().key);
    Error::new(ErrorKind::Internal, action, "what it replaces is not in the source yet").advise("report it")
}

/// Why a change waits for somebody to settle what comes before it.
fn blocked(attached: &Attached, change: &Change, earlier: &Change) -> Error {
    let action = format!("upload {}", attached.describe(&change.target().key));
    let reason = format!("it comes after {}, which cannot be copied", attached.describe(&earlier.target().key));
    Error::new(ErrorKind::Busy, action, reason).advise("settle that first: penstock conflicts ls; or write it anew")
}

fn replaced(attached: &Attached, key: &ObjectKey) -> Error {
    let action = format!("upload {}", attached.describe(key));
    Error::new(ErrorKind::Conflict, action, "the source has a version that was not there when this was written")
        .advise("both are kept; look at them and choose: penstock conflicts ls")
}

/// Whether a change makes a directory that stays while it is empty.
pub(super) fn is_marker(change: &Change) -> bool {
    change.size() == Some(0) && change.target().key.as_bytes().ends_with(b"/")
}
