//! Copies inside the source: what a rename makes of an object. None of its bytes pass this node, unless the store cannot
//! copy, or has lost what this node still has.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use penstock_source::{OPERATION_METADATA, is_weak};
use penstock_stage::{Change, Original};
use penstock_types::faults::{Step, under_way};
use penstock_types::{
    CopiedRange, CopyRequest, Description, Error, ErrorKind, ObjectAttributes, ObjectId, ObjectStat, PartInfo, Posix,
    Precondition, PutRequest, Result, TreePath, Version,
};

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::open::{Target, object_id};
use crate::transfer::StagedFile;
use crate::write::is_staged;
use crate::write::multipart::{Begun, PARTS_AT_ONCE};
use crate::write::parts::{COPY_PART_BYTES, Shape};
use crate::write::upload::{Stored, is_marker, metadata};

/// A copy that is being made.
pub(super) struct Copying<'a> {
    pub(super) change: &'a Arc<Change>,
    pub(super) original: Original,
    pub(super) size: u64,
    pub(super) precondition: Precondition,
}

/// Whether a version can be copied on condition that it still is what was seen.
pub(crate) fn can_copy(version: &Version) -> bool {
    !is_weak(version)
}

impl Engine {
    /// Has the source make a copy: three requests, and for what is larger than 128 MiB one for each 128 MiB.
    /// `StaleVersion` where the original is gone.
    pub(super) async fn send_copy(self: &Arc<Self>, attached: &Arc<Attached>, copying: Copying<'_>) -> Result<Stored> {
        let original = &copying.original;
        if is_staged(&original.version) {
            return Err(gone(attached, &copying));
        }
        let found = match attached.source.stat(&original.key).await {
            Ok(found) if found.attributes.version == original.version => found,
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Err(_) if is_marker(copying.change) => return self.make_again(attached, copying.change).await,
            // What somebody else has written there since is nobody's to replace.
            _ if copying.change.is_of_itself() => return Err(replaced(attached, &copying)),
            _ => return self.send_cached(attached, &copying).await,
        };
        let (description, posix) = description_of(copying.change, found);
        let copied = match copying.size > COPY_PART_BYTES {
            true => self.copy_in_parts(attached, &copying, description).await,
            false => {
                let request = CopyRequest {
                    from: original.key.clone(),
                    from_version: Some(original.version.clone()),
                    to: copying.change.target().key.clone(),
                    precondition: copying.precondition.clone(),
                    description: Some(description),
                };
                let _step = under_way(Step::Copy);
                attached.source.copy(request).await
            }
        };
        match copied {
            Ok(attributes) => {
                self.parts.metrics.copies.inc();
                self.parts.metrics.copy_bytes.inc_by(copying.size);
                Ok(Stored::it(attributes, Vec::new(), posix))
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                self.fetch_original(attached, &copying).await?;
                self.send_cached(attached, &copying).await
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the object of a directory that somebody else has removed, of which something was said here: that made it stay.
    async fn make_again(&self, attached: &Attached, change: &Change) -> Result<Stored> {
        let (key, metadata) = (change.target().key.clone(), self.metadata_of(attached, change));
        let posix = Posix::of(&metadata);
        let request = PutRequest { key, body: Bytes::new(), precondition: Precondition::Absent, metadata };
        Ok(Stored::it(attached.source.put(request).await?, Vec::new(), posix))
    }

    async fn copy_in_parts(
        &self,
        attached: &Attached,
        copying: &Copying<'_>,
        description: Description,
    ) -> Result<ObjectAttributes> {
        let Copying { change, original, size, precondition } = copying;
        let (source, key, shape) = (attached.source.as_ref(), &change.target().key, Shape::of_copy(*size));
        let Begun { upload, known, .. } = self.upload_of(source, change, (shape, description)).await?;
        let parts = shape.parts(*size).map(|(number, range)| {
            let known = known.get(&number).map(|(part, _)| part).filter(|part| part.size == range.len());
            let (known, upload) = (known.cloned(), &upload);
            async move {
                if let Some(part) = known {
                    return Ok(part);
                }
                let (from, from_version) = (original.key.clone(), Some(original.version.clone()));
                let copied = CopiedRange { from, from_version, range };
                let _step = under_way(Step::Copy);
                let part = source.copy_part(key, upload, number, copied).await?;
                self.stage.upload_part(change, &part);
                Ok(part)
            }
        });
        let copied: Result<Vec<PartInfo>> = stream::iter(parts).buffer_unordered(PARTS_AT_ONCE).try_collect().await;
        let mut parts = match copied {
            // Somebody aborted it, or the store gave it up: the next try begins another.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {
                self.give_up_upload(attached, change).await;
                let kind = error.kind();
                return Err(if kind == ErrorKind::NotFound { error.with_kind(ErrorKind::Unavailable) } else { error });
            }
            parts => parts?,
        };
        parts.sort_by_key(|part| part.number);
        self.complete(attached, change, (&upload, shape), parts.iter(), precondition.clone()).await
    }

    /// Has the source say of an object what was said of it after its upload was begun, or of a directory that somebody else
    /// has made meanwhile. Should somebody else have written there since, there is nothing to do; of a directory there is.
    pub(super) async fn adorn_stored(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        change: &Arc<Change>,
        stored: Stored,
    ) -> Result<Stored> {
        let is_said = match is_marker(change) {
            true => change.posix().beyond(stored.posix).is_empty(),
            false => change.is_copy() || change.posix() == stored.posix,
        };
        if is_said || !stored.is_it || !can_copy(&stored.attributes.version) {
            return Ok(stored);
        }
        self.stage.upload_lost(change);
        let version = stored.attributes.version.clone();
        let original = Original { key: change.target().key.clone(), version: version.clone(), since: None };
        let (size, precondition) = (stored.attributes.size, Precondition::Version(version));
        match self.send_copy(attached, Copying { change, original, size, precondition }).await {
            Ok(adorned) => Ok(Stored { sums: stored.sums, ..adorned }),
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::StaleVersion) => {
                // The next try finds out what there is then.
                if is_marker(change) { Err(error.with_kind(ErrorKind::Unavailable)) } else { Ok(stored) }
            }
            Err(error) => Err(error),
        }
    }

    /// Metadata of the object that a change becomes: what was said of it, and what its operation is known by.
    pub(super) fn metadata_of(&self, attached: &Attached, change: &Change) -> Vec<(String, String)> {
        let mut metadata = metadata(change);
        if change.is_copy() {
            self.posix_of(attached, &change.target().key, &change.version()).describe(&mut metadata);
        }
        metadata
    }

    /// Sends the bytes of an original that the source has not got any more, or cannot copy, where all of them are here.
    async fn send_cached(&self, attached: &Attached, copying: &Copying<'_>) -> Result<Stored> {
        let object = object_id(attached, copying.original.key.clone(), &copying.original.version);
        let extent = self.cache.peek(&object).filter(|extent| extent.is_complete());
        let lease = extent.and_then(|extent| tokio::task::block_in_place(|| extent.lend()).ok());
        let lease = lease.ok_or_else(|| gone(attached, copying))?;
        let file = StagedFile { descriptor: Arc::clone(lease.descriptor()), size: copying.size };
        let precondition = copying.precondition.clone();
        self.send_file(attached, copying.change, &Arc::new(file), precondition).await
    }

    async fn fetch_original(self: &Arc<Self>, attached: &Arc<Attached>, copying: &Copying<'_>) -> Result<()> {
        let object = object_id(attached, copying.original.key.clone(), &copying.original.version);
        let (inner, version) = (attached.view.path_of(&object.key).unwrap_or_default(), object.version.clone());
        let path = TreePath::parse(&format!("{}/{inner}", attached.path)).unwrap_or_else(|_| attached.path.clone());
        let attributes = ObjectAttributes { size: copying.size, modified_ms: 0, version };
        let attached = Arc::clone(attached);
        let file = self.open_version(Target { path, attached, inner, object, attributes }).await?;
        if !file.is_complete() {
            file.fetch_whole().await?;
        }
        Ok(())
    }

    /// A source has a copy: what is read of the original by now is read of that, and what is cached of it is kept as
    /// that. Blocks.
    pub(super) fn adopt_copy(&self, original: &ObjectId, copy: &ObjectId) -> Result<()> {
        if original == copy {
            return Ok(());
        }
        self.moved.note(original.clone(), copy.clone());
        let Some(extent) = self.cache.peek(original) else { return Ok(()) };
        if extent.is_complete() && self.cache.adopt_extent(copy, &extent)? {
            // Nobody will ask for the original, and its file is counted twice. Who has it lent keeps that.
            let _ = self.cache.evict(original);
        }
        Ok(())
    }
}

/// What a copy keeps besides the bytes of its original, and what it is known by.
fn description_of(change: &Change, original: ObjectStat) -> (Description, Posix) {
    let ObjectStat { attributes, metadata, headers } = original;
    let said = change.posix();
    let mut posix = Posix::of(&metadata).merged(said);
    if !said.is_empty() && !is_marker(change) {
        // A copy has a time of its own in the source, and a file's is that of its content.
        posix.modified_ns = posix.modified_ns.or(attributes.modified_ms.checked_mul(1_000_000));
    }
    let mut metadata: Vec<_> = metadata.into_iter().filter(|(name, _)| name != OPERATION_METADATA).collect();
    metadata.push((OPERATION_METADATA.to_owned(), change.marker().to_string()));
    posix.describe(&mut metadata);
    (Description { metadata, headers }, posix)
}

/// Why attributes are not changed of what is there now.
fn replaced(attached: &Attached, copying: &Copying<'_>) -> Error {
    let action = format!("change attributes of {}", attached.describe(&copying.original.key));
    Error::new(ErrorKind::StaleVersion, action, "somebody else replaced or removed it before they were changed")
        .advise("look at what is there and choose: penstock conflicts ls")
}

pub(super) fn gone(attached: &Attached, copying: &Copying<'_>) -> Error {
    let action = format!("copy {}", attached.describe(&copying.original.key));
    let to = attached.describe(&copying.change.target().key);
    let reason =
        format!("somebody else replaced or removed it before it was copied to {to}, and its bytes are not here");
    Error::new(ErrorKind::StaleVersion, action, reason)
        .advise("look at what is there and choose: penstock conflicts ls")
}
