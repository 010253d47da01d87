//! Files that lie over an object of the source: reading them before the source has them, and making them there of the parts
//! that are new and copies of the others.

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use penstock_stage::{Change, Patch};
use penstock_types::{
    ByteRange, CopiedRange, Error, ErrorKind, ObjectBody, ObjectId, Origin, PAGE_SIZE, PartInfo, Priority, PutRequest,
    Result, TreePath, UploadId,
};
use rustix::fs::{Mode, OFlags, ftruncate, open};

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::live::{copy_range, is_gone};
use crate::open::{Target, object_id};
use crate::write::copy::{Copying, gone};
use crate::write::is_staged;
use crate::write::multipart::{Begun, PARTS_AT_ONCE};
use crate::write::parts::{COPY_PART_BYTES, PART_BYTES, Shape};
use crate::write::upload::{PUT_BYTES_MAX, Stored, metadata};

/// Parts that a file which is made of new bytes and copies is cut into at most, before copies are joined.
const CELLS_MAX: u64 = 8000;
/// How long a reader waits for an upload that has replaced what a file lies over, but has not been heard of.
const STORED_WITHIN: Duration = Duration::from_secs(10);

/// The origin of a file that lies over an object.
struct Patched {
    engine: Arc<Engine>,
    attached: Arc<Attached>,
    change: Arc<Change>,
}

#[async_trait]
impl Origin for Patched {
    fn name(&self) -> &'static str {
        "stage"
    }

    async fn read(&self, object: &ObjectId, range: ByteRange, priority: Priority) -> Result<ObjectBody> {
        let Self { engine, attached, change } = self;
        let stored = async |moved: ObjectId| collect(attached, &moved, range, priority).await;
        let bytes = match engine.moved.to(object) {
            Some(moved) => stored(moved).await,
            None => match engine.compose(attached, change, range, priority).await {
                Err(error) if is_gone(&error) => {
                    // By this very change, perhaps, of which the source has just told.
                    let _ = tokio::time::timeout(STORED_WITHIN, change.done()).await;
                    match engine.moved.to(object) {
                        Some(moved) => stored(moved).await,
                        None => Err(error),
                    }
                }
                composed => composed,
            },
        }?;
        let attributes = change.attributes().ok_or_else(|| lost(change))?;
        let chunks = stream::once(async move { Ok(Bytes::from(bytes)) }).boxed();
        Ok(ObjectBody { attributes, range, chunks })
    }
}

impl Engine {
    /// Where the bytes of an object version come from.
    pub(crate) fn origins_of(self: &Arc<Self>, attached: &Arc<Attached>, object: &ObjectId) -> Vec<Arc<dyn Origin>> {
        match is_staged(&object.version).then(|| self.patched(attached, object)).flatten() {
            Some(change) => {
                vec![Arc::new(Patched { engine: Arc::clone(self), attached: Arc::clone(attached), change })]
            }
            None => attached.origins.clone(),
        }
    }

    /// A range of what a change that lies over an object makes its key hold.
    async fn compose(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        change: &Arc<Change>,
        range: ByteRange,
        priority: Priority,
    ) -> Result<Vec<u8>> {
        let (patch, original) = change.patch().zip(change.original()).ok_or_else(|| lost(change))?;
        let under = object_id(attached, original.key, &original.version);
        let mut bytes = vec![0; length_of(range)];
        for (piece, own) in patch.pieces(range) {
            let from = length_of(ByteRange::new(range.start, piece.start));
            let to = &mut bytes[from..from + length_of(piece)];
            match own {
                true => tokio::task::block_in_place(|| {
                    let file = std::fs::File::from(change.open()?.try_clone().map_err(|error| unread(change, &error))?);
                    file.read_exact_at(to, piece.start).map_err(|error| unread(change, &error))
                })?,
                false => to.copy_from_slice(&self.read_under(attached, &under, piece, priority).await?),
            }
        }
        Ok(bytes)
    }

    /// A range of the object that a file lies over: from the cache where all of it is there.
    async fn read_under(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        object: &ObjectId,
        range: ByteRange,
        priority: Priority,
    ) -> Result<Vec<u8>> {
        let object = self.bytes_of(attached, object);
        if let Some(extent) = self.cache.peek(&object).filter(|extent| extent.missing(range).is_empty()) {
            let mut bytes = vec![0; length_of(range)];
            if tokio::task::block_in_place(|| extent.read_verified(range, &mut bytes)).is_ok() {
                return Ok(bytes);
            }
        }
        match self.patched(attached, &object) {
            Some(change) => Box::pin(self.compose(attached, &change, range, priority)).await,
            None => collect(attached, &object, range, priority).await,
        }
    }

    /// Has the source make an object of what is new and copies of the rest, on condition that it is still what it was.
    /// `StaleVersion` where it is gone, and not all of it is here.
    pub(super) async fn send_patched(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        copying: Copying<'_>,
        patch: &Patch,
    ) -> Result<Stored> {
        let sent = match copying.size <= PUT_BYTES_MAX {
            true => {
                let Copying { change, size, precondition, .. } = &copying;
                let body = self.compose_part(attached, change, ByteRange::new(0, *size)).await?;
                let (key, precondition) = (change.target().key.clone(), precondition.clone());
                let request = PutRequest { key, body, precondition, metadata: metadata(change) };
                attached.source.put(request).await.map(|attributes| Stored::it(attributes, Vec::new(), change.posix()))
            }
            false => self.send_patched_parts(attached, &copying, patch).await,
        };
        match sent {
            Ok(stored) => {
                self.parts.metrics.uploads.inc();
                Ok(stored)
            }
            Err(error) if error.kind() == ErrorKind::StaleVersion => Err(gone(attached, &copying)),
            Err(error) => Err(error),
        }
    }

    async fn send_patched_parts(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        copying: &Copying<'_>,
        patch: &Patch,
    ) -> Result<Stored> {
        let Copying { change, size, precondition, .. } = copying;
        let (source, shape) = (attached.source.as_ref(), Shape::of(*size));
        let Begun { upload, known, .. } = self.upload_of(source, change, (shape, metadata(change).into())).await?;
        let parts = (1..).zip(cut(patch, *size)).map(|(number, (range, is_new))| {
            let known = known.get(&number).map(|(part, _)| part).filter(|part| part.size == range.len());
            let (known, upload) = (known.cloned(), &upload);
            async move {
                match known {
                    Some(part) => Ok(part),
                    None => self.send_piece(attached, copying, (upload, number), (range, is_new)).await,
                }
            }
        });
        let sent: Result<Vec<PartInfo>> = stream::iter(parts).buffer_unordered(PARTS_AT_ONCE).try_collect().await;
        let mut parts = match sent {
            // Somebody aborted it, or the store gave it up: the next try begins another.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.give_up_upload(attached, change).await;
                return Err(error.with_kind(ErrorKind::Unavailable));
            }
            parts => parts?,
        };
        parts.sort_by_key(|part| part.number);
        let attributes = self.complete(attached, change, (&upload, shape), parts.iter(), precondition.clone()).await?;
        Ok(Stored::it(attributes, Vec::new(), change.posix()))
    }

    /// One part: a copy, or sent where any of it is new or the source cannot copy it.
    async fn send_piece(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        copying: &Copying<'_>,
        (upload, number): (&UploadId, u32),
        (range, is_new): (ByteRange, bool),
    ) -> Result<PartInfo> {
        let Copying { change, original, .. } = copying;
        let (source, key, metrics) = (attached.source.as_ref(), &change.target().key, &self.parts.metrics);
        if !is_new {
            let (from, from_version) = (original.key.clone(), Some(original.version.clone()));
            match source.copy_part(key, upload, number, CopiedRange { from, from_version, range }).await {
                Ok(part) => {
                    metrics.copy_bytes.inc_by(range.len());
                    self.stage.upload_part(change, &part);
                    return Ok(part);
                }
                // Its bytes may be here all the same; that the upload is gone is said again.
                Err(error)
                    if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Conflict) || is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let body = self.compose_part(attached, change, range).await?;
        let part = source.put_part(key, upload, number, body).await?;
        self.stage.brought(range.len());
        metrics.upload_bytes.inc_by(range.len());
        self.stage.upload_part(change, &part);
        Ok(part)
    }

    async fn compose_part(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        change: &Arc<Change>,
        range: ByteRange,
    ) -> Result<Bytes> {
        let held = self.carrier.uploads.hold(range.len(), Duration::MAX).await?;
        let bytes = self.compose(attached, change, range, Priority::default()).await;
        let bytes =
            bytes.map_err(|error| if is_gone(&error) { error.with_kind(ErrorKind::StaleVersion) } else { error })?;
        Ok(Bytes::from_owner(crate::write::parts::Held::new(bytes, held)))
    }

    /// All of a file that lies over an object of which everything is here, `under`, as a file without a name. Blocks.
    pub(super) fn whole_content(&self, change: &Change, under: Option<&OwnedFd>) -> Result<Arc<OwnedFd>> {
        let (patch, size) = change.patch().zip(change.size()).ok_or_else(|| lost(change))?;
        let range = ByteRange::new(0, size);
        let under = under.ok_or_else(|| {
            let action = format!("read {}", change.target().key);
            Error::new(
                ErrorKind::StaleVersion,
                action,
                "it was changed in part, and the rest of it is neither here nor there",
            )
            .advise("keep theirs: penstock conflicts keep-theirs")
            .fact("bytes", size)
            .fact("kept_bytes", patch.own_bytes(range))
        })?;
        let (flags, mode) = (OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o600));
        let file = open(self.stage.files_directory(), flags, mode).map_err(|error| unread(change, &error.into()))?;
        let own = change.open()?;
        ftruncate(&file, size).map_err(|error| unread(change, &error.into()))?;
        for (piece, is_own) in patch.pieces(range) {
            copy_range(if is_own { &own } else { under }, &file, piece)?;
        }
        Ok(Arc::new(file))
    }

    /// A source has a file that lies over an object: who reads it goes on with that. Where all of what it lies over is
    /// cached, so is all of it.
    pub(super) async fn adopt_patched(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        change: &Arc<Change>,
        stored: &ObjectId,
    ) -> Result<()> {
        let staged = object_id(attached, change.target().key.clone(), &change.version());
        let under = change.original().map(|original| object_id(attached, original.key, &original.version));
        let is_cached = |object: &ObjectId| self.cache.peek(object).is_some_and(|extent| extent.is_complete());
        if let (Some(under), Some(attributes)) = (under, change.attributes())
            && is_cached(&under)
        {
            let inner = attached.view.path_of(&staged.key).unwrap_or_default();
            let path = TreePath::parse(&format!("{}/{inner}", attached.path))?;
            let target = Target { path, attached: Arc::clone(attached), inner, object: staged.clone(), attributes };
            self.open_version(target).await?.fetch_whole().await?;
        }
        let (engine, stored) = (Arc::clone(self), stored.clone());
        self.blocking(move || engine.adopt_copy(&staged, &stored)).await
    }
}

/// How a file that lies over an object is cut into parts, each with whether any of it is new.
fn cut(patch: &Patch, size: u64) -> Vec<(ByteRange, bool)> {
    let cell = size.div_ceil(CELLS_MAX).next_multiple_of(PAGE_SIZE).max(PART_BYTES);
    let copied_max = (COPY_PART_BYTES / cell).max(1) * cell;
    let mut parts: Vec<(ByteRange, bool)> = Vec::new();
    let mut at = 0;
    while at < size {
        let range = ByteRange::new(at, size.min(at + cell));
        let is_new = patch.own_bytes(range) > 0;
        match parts.last_mut() {
            Some((last, false)) if !is_new && range.end - last.start <= copied_max => last.end = range.end,
            _ => parts.push((range, is_new)),
        }
        at = range.end;
    }
    parts
}

async fn collect(attached: &Attached, object: &ObjectId, range: ByteRange, priority: Priority) -> Result<Vec<u8>> {
    let mut failure = None;
    for origin in &attached.origins {
        match origin.read(object, range, priority).await {
            Ok(mut body) => {
                let mut bytes = Vec::with_capacity(length_of(range));
                while let Some(chunk) = body.chunks.next().await {
                    bytes.extend_from_slice(&chunk?);
                }
                if bytes.len() == length_of(range) {
                    return Ok(bytes);
                }
                let action = format!("read {}", attached.describe(&object.key));
                failure = Some(Error::new(ErrorKind::Corrupt, action, "the answer has another length"));
            }
            Err(error) => failure = Some(error),
        }
    }
    let action = format!("read {}", attached.describe(&object.key));
    Err(failure.unwrap_or_else(|| Error::new(ErrorKind::Internal, action, "it has no origin")))
}

fn length_of(range: ByteRange) -> usize {
    usize::try_from(range.len()).expect("a read fits memory")
}

fn unread(change: &Change, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::of_disk(error), format!("read {}", change.target().key), error.to_string())
        .advise("check the disk of the stage")
}

fn lost(change: &Change) -> Error {
    Error::new(ErrorKind::Internal, format!("read {}", change.target().key), "it lies over nothing").advise("report it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_follow_each_other_and_what_is_copied_is_not_new(
            size in 1u64..(200 * PART_BYTES), written in prop::collection::vec((0u64..200 * PART_BYTES, 1u64..PART_BYTES), 0..8),
        ) {
            let mut patch = Patch::over(size);
            written.iter().for_each(|(start, length)| patch.write(ByteRange::new(*start, start + length)));
            let (mut at, parts) = (0, cut(&patch, size));
            for (index, (range, is_new)) in parts.iter().enumerate() {
                prop_assert_eq!(range.start, at);
                prop_assert_eq!(*is_new, patch.own_bytes(*range) > 0);
                prop_assert!(range.len() >= PART_BYTES || index + 1 == parts.len());
                let most = if *is_new { PART_BYTES } else { COPY_PART_BYTES };
                prop_assert!(range.len() <= most);
                at = range.end;
            }
            prop_assert_eq!(at, size);
        }
    }

    #[test]
    fn the_largest_file_has_not_too_many_parts() {
        let size = 5 << 40;
        let mut patch = Patch::over(size);
        (0..CELLS_MAX)
            .step_by(2)
            .for_each(|cell| patch.write(ByteRange::new(cell * (size / CELLS_MAX), cell * (size / CELLS_MAX) + 1)));
        assert!(cut(&patch, size).len() as u64 <= crate::write::parts::PARTS_MAX);
    }
}
