//! Bringing a large file in parts. What was sent of it before, while it was written or by an earlier try, is compared with
//! what it holds, and sent again where it differs.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use penstock_stage::Change;
use penstock_types::faults::{Safeguard, Step, is_left_out, under_way};
use penstock_types::{
    ByteRange, CompletedPart, Description, ErrorKind, ObjectAttributes, ObjectKey, PartInfo, Posix, Precondition,
    Result, Source, UploadId,
};

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::transfer::StagedFile;
use crate::write::parts::Shape;
use crate::write::upload::Stored;

/// Parts of one object that are on their way at the same time.
pub(super) const PARTS_AT_ONCE: usize = 16;
/// Parts of one object that are compared at the same time: as many as a disk likes to be asked for.
const COMPARED_AT_ONCE: usize = 4;

/// An upload with what the source has of it.
pub(super) struct Begun {
    pub(super) upload: UploadId,
    /// By number, with the checksum of what was sent where that may differ from what the file holds.
    pub(super) known: BTreeMap<u32, (PartInfo, Option<u32>)>,
    shape: Shape,
}

/// What a part is sent for.
struct Sending<'a> {
    source: &'a dyn Source,
    change: &'a Arc<Change>,
    file: &'a Arc<StagedFile>,
    upload: &'a UploadId,
}

impl Sending<'_> {
    fn key(&self) -> &ObjectKey {
        &self.change.target().key
    }
}

/// A part that the source has, with the checksums of its pages.
type Done = (PartInfo, Vec<u32>);

impl Engine {
    pub(super) async fn send_in_parts(
        &self,
        attached: &Attached,
        change: &Arc<Change>,
        file: &Arc<StagedFile>,
        precondition: Precondition,
    ) -> Result<Stored> {
        let source = attached.source.as_ref();
        let metadata = self.metadata_of(attached, change);
        let posix = Posix::of(&metadata);
        let whole = (Shape::of(file.size), metadata.into());
        let begun_early = change.streamed().is_some();
        let Begun { upload, known, shape } = self.upload_of(source, change, whole).await?;
        let sending = Sending { source, change, file, upload: &upload };
        let done = match self.send_parts(&sending, shape, known).await {
            // Somebody aborted it, or the store gave it up: the next try begins another.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.give_up_upload(attached, change).await;
                return Err(error.with_kind(ErrorKind::Unavailable));
            }
            done => done?,
        };
        let parts = done.values().map(|(part, _)| part);
        let attributes = self.complete(attached, change, (&upload, shape), parts, precondition).await?;
        // What was begun while it was written knows nothing of what was said since, nor this process of what it knows.
        let begun_with = change.stream().map(|stream| stream.begun_with()).unwrap_or_default();
        let posix = if begun_early { begun_with } else { posix };
        Ok(Stored::it(attributes, done.into_values().flat_map(|(_, sums)| sums).collect(), posix))
    }

    /// Makes the object of the parts of an upload.
    pub(super) async fn complete(
        &self,
        attached: &Attached,
        change: &Arc<Change>,
        (upload, shape): (&UploadId, Shape),
        parts: impl Iterator<Item = &PartInfo>,
        precondition: Precondition,
    ) -> Result<ObjectAttributes> {
        let completed: Vec<CompletedPart> =
            parts.map(|part| CompletedPart { number: part.number, etag: part.etag.clone() }).collect();
        let key = &change.target().key;
        let step = under_way(Step::Completion);
        let completed = attached.source.complete_upload(key, upload, &completed, precondition).await;
        drop(step);
        if let Err(error) = &completed {
            // A store that takes no parts of two sizes: the next try sends all of it in parts of one.
            let is_refused = error.kind() == ErrorKind::InvalidInput && shape == Shape::Growing;
            if is_refused || error.kind() == ErrorKind::NotFound {
                self.give_up_upload(attached, change).await;
            }
        }
        // An upload that is gone may have been completed by an earlier try: what the key holds tells.
        completed.map_err(|error| match error.kind() {
            ErrorKind::NotFound => error.with_kind(ErrorKind::Conflict),
            _ => error,
        })
    }

    /// Sends what the source has not got, and meanwhile compares what it has.
    async fn send_parts(
        &self,
        sending: &Sending<'_>,
        shape: Shape,
        mut known: BTreeMap<u32, (PartInfo, Option<u32>)>,
    ) -> Result<BTreeMap<u32, Done>> {
        let live = sending.change.stream().filter(|_| sending.change.streamed().is_some());
        let under_way = live.map(|stream| stream.take().under_way).unwrap_or_default();
        let parts = shape.parts(sending.file.size);
        let (there, missing): (Vec<_>, Vec<_>) =
            parts.partition(|(number, _)| known.contains_key(number) || under_way.contains(number));
        let sent = missing.into_iter().map(|(number, range)| self.send_part(sending, number, range));
        let sent = stream::iter(sent).buffer_unordered(PARTS_AT_ONCE).try_collect::<Vec<Done>>();
        let compared = async {
            if let Some(stream) = live {
                for (number, part) in stream.idle().await {
                    // What is known already was compared by an earlier try, perhaps, and sent again.
                    known.entry(number).or_insert((part.info, Some(part.sum)));
                }
            }
            let there = there.into_iter().map(|(number, range)| (number, range, known.remove(&number)));
            let there = there.map(|(number, range, known)| self.compare_part(sending, number, range, known));
            stream::iter(there).buffer_unordered(COMPARED_AT_ONCE).try_collect::<Vec<Done>>().await
        };
        let (sent, compared) = futures_util::try_join!(sent, compared)?;
        Ok(sent.into_iter().chain(compared).map(|done| (done.0.number, done)).collect())
    }

    async fn send_part(&self, sending: &Sending<'_>, number: u32, range: ByteRange) -> Result<Done> {
        let part = self.part(sending.file, range).await?;
        let _step = under_way(Step::Part);
        let info = sending.source.put_part(sending.key(), sending.upload, number, part.bytes).await?;
        self.stage.brought(range.len());
        self.stage.upload_part(sending.change, &info);
        Ok((info, part.sums))
    }

    /// A part that was sent before, if it is what the file holds; otherwise it is sent again.
    async fn compare_part(
        &self,
        sending: &Sending<'_>,
        number: u32,
        range: ByteRange,
        known: Option<(PartInfo, Option<u32>)>,
    ) -> Result<Done> {
        let Some((info, sum)) = known else { return self.send_part(sending, number, range).await };
        let part = self.part(sending.file, range).await?;
        let is_said = |sum| sum == part.sum() || is_left_out(Safeguard::PartSum);
        let same = info.size == range.len() && sum.is_none_or(is_said);
        if !same {
            let sums = part.sums;
            let info = sending.source.put_part(sending.key(), sending.upload, number, part.bytes).await?;
            self.stage.brought(range.len());
            self.stage.upload_part(sending.change, &info);
            self.parts.metrics.stream_bytes_again.inc_by(range.len());
            return Ok((info, sums));
        }
        if sum.is_some() {
            self.stage.upload_part(sending.change, &info);
        }
        Ok((info, part.sums))
    }

    /// The upload of a change: one that was begun, with the parts that the source has of it, or a new one of that shape
    /// and with that description.
    pub(super) async fn upload_of(
        &self,
        source: &dyn Source,
        change: &Change,
        (shape, description): (Shape, Description),
    ) -> Result<Begun> {
        let key = &change.target().key;
        if let Some((upload, noted)) = change.upload() {
            let sums: Option<BTreeMap<u32, u32>> = change.streamed().map(|sums| sums.into_iter().collect());
            let shape = if sums.is_some() { Shape::Growing } else { shape };
            let with_sum = |part: PartInfo| {
                let sum = sums.as_ref().and_then(|sums| sums.get(&part.number).copied());
                (part.number, (part, sum))
            };
            if change.stream().is_some() && sums.is_some() {
                // It was begun by this process, which knows what the source has.
                return Ok(Begun { upload, known: noted.into_iter().map(with_sum).collect(), shape });
            }
            match source.list_parts(key, &upload).await {
                Ok(there) => {
                    let same = |part: &PartInfo| noted.iter().any(|noted| noted == part);
                    return Ok(Begun { upload, known: there.into_iter().filter(same).map(with_sum).collect(), shape });
                }
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {
                    self.stage.upload_lost(change);
                }
                Err(error) => return Err(error),
            }
        }
        let upload = source.begin_upload(key, description).await?;
        self.stage.upload_begun(change, &upload);
        Ok(Begun { upload, known: BTreeMap::new(), shape })
    }
}
