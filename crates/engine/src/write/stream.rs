//! Sending parts of a large file while it is still being written: those that lie wholly below what was written a moment
//! ago. Nothing of them is seen in the source before the file is committed and its turn has come: then they are compared
//! with what the file holds, and what differs is sent again.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use penstock_source::OPERATION_METADATA;
use penstock_stage::{Orphan, SentPart, Standing, Stream};
use penstock_types::faults::{Step, under_way};
use penstock_types::{ErrorKind, ObjectKey, OpenMode, Result, UploadId};
use rustix::fs::{SeekFrom, seek, stat};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::transfer::StagedFile;
use crate::write::parts::{PART_BYTES, Shape};

/// Files that are shorter are sent once they are committed.
const STREAMED_BYTES_MIN: u64 = 32 * 1024 * 1024;
/// How often it is looked how far files were written; what was there at the last look is sent.
const LOOK: Duration = Duration::from_millis(100);
/// As `LOOK`, while one of them grows or is new: what is large is begun at once.
const LOOK_AT_GROWING: Duration = Duration::from_millis(10);
/// For so long a file is new.
const NEW: Duration = Duration::from_secs(1);
/// Parts of all files that are on their way at the same time. Fewer than a source takes requests: there is always room
/// for what is committed.
const PARTS_AT_ONCE: usize = 16;
/// Share of the memory budget that such parts take at most.
const MEMORY_SHARE: u64 = 4;
/// An orphan that could not be aborted is tried again after so long.
const ORPHAN_WAIT: Duration = Duration::from_secs(3);
/// Beginnings and ends of names that are given to files for a while: such a file is renamed, and would be sent twice.
const TEMPORARY_BEGINNINGS: [&str; 4] = [".", "~", "#", "tmp"];
const TEMPORARY_ENDS: [&str; 9] =
    [".tmp", ".temp", ".part", ".partial", ".incomplete", ".crdownload", ".swp", ".lock", "~"];

/// A draft or a change that is looked at.
struct Watched {
    stream: Arc<Stream>,
    since: Instant,
    file: Option<Arc<StagedFile>>,
    /// How long it was at this look.
    size: u64,
    /// What was written without a hole at this look, and at the one before.
    written: u64,
    settled: u64,
    /// There was more of it at this look than at the one before.
    grew: bool,
    /// Parts that were begun.
    parts: u64,
    /// An upload was begun, or will be in a moment.
    is_begun: bool,
    /// Nothing more is sent early: something failed, or it cannot be.
    is_over: bool,
}

impl Watched {
    /// Whether much may be written of it in a moment.
    fn grows(&self) -> bool {
        let may_grow = self.grew || self.since.elapsed() < NEW;
        !self.is_over && may_grow && self.stream.standing() == Standing::Written
    }
}

/// What sending shares.
struct Sender {
    slots: Arc<Semaphore>,
    wake: Arc<Notify>,
    orphans_due: Instant,
}

/// Sends what is settled of what is written as long as the engine is there, and aborts uploads that nobody will
/// complete.
pub(crate) async fn keep_streaming(engine: Weak<Engine>) {
    let Some(budget) = engine.upgrade().map(|engine| engine.carrier.budget.bytes()) else { return };
    let in_memory = usize::try_from(budget / MEMORY_SHARE / PART_BYTES).unwrap_or(usize::MAX);
    let slots = Arc::new(Semaphore::new(in_memory.clamp(1, PARTS_AT_ONCE)));
    let mut sender = Sender { slots, wake: Arc::default(), orphans_due: Instant::now() };
    let (mut watched, mut next_look): (Vec<Watched>, _) = (Vec::new(), Instant::now());
    loop {
        let told = Arc::clone(&sender.wake);
        let told = told.notified();
        let stage = {
            let Some(engine) = engine.upgrade() else { return };
            let is_due = Instant::now() >= next_look;
            if is_due {
                engine.look_at_lent();
                watch(&mut watched, engine.stage.streams());
            }
            for one in &mut watched {
                engine.send_settled(one, &sender, is_due);
            }
            if is_due {
                let look = if watched.iter().any(Watched::grows) { LOOK_AT_GROWING } else { LOOK };
                next_look = Instant::now() + look;
            }
            engine.abort_orphans(&mut sender);
            Arc::clone(&engine.stage)
        };
        let soon = Instant::now() + LOOK_AT_GROWING;
        tokio::select! {
            () = told => {}
            () = stage.drafted().notified(), if next_look > soon => next_look = soon,
            () = tokio::time::sleep_until(next_look) => {}
        }
    }
}

/// Keeps looking at what is there, and at what is new.
fn watch(watched: &mut Vec<Watched>, streams: Vec<Arc<Stream>>) {
    watched.retain(|known| streams.iter().any(|stream| Arc::ptr_eq(stream, &known.stream)));
    for stream in streams {
        if !watched.iter().any(|known| Arc::ptr_eq(&stream, &known.stream)) {
            let is_begun = stream.is_begun();
            watched.push(Watched {
                stream,
                since: Instant::now(),
                file: None,
                size: 0,
                written: 0,
                settled: 0,
                grew: false,
                parts: 0,
                is_begun,
                is_over: false,
            });
        }
    }
}

impl Engine {
    /// Begins to send what may be sent of one file.
    fn send_settled(self: &Arc<Self>, one: &mut Watched, sender: &Sender, is_due: bool) {
        if one.is_over {
            return;
        }
        let (end, has, is_whole) = match one.stream.standing() {
            Standing::Written => {
                if is_due && !self.look_at(one) {
                    one.is_over = true;
                    return;
                }
                (one.settled, one.written, false)
            }
            Standing::Committed(size) => (size, size, true),
            Standing::Taken | Standing::Discarded => return,
        };
        if has < STREAMED_BYTES_MIN && !one.is_begun {
            return;
        }
        let Some(attached) = self.attached_at(one.stream.target()) else { return };
        if !may_send(&attached, &one.stream.target().key) {
            one.is_over = true;
            return;
        }
        if !one.is_begun {
            // What is committed is brought soon, in the usual way.
            (one.is_begun, one.is_over) = (!is_whole, is_whole);
            if !is_whole {
                tokio::spawn(Arc::clone(self).begin_early(attached, Arc::clone(&one.stream), Arc::clone(&sender.wake)));
            }
            return;
        }
        if let (Some(upload), Some(file)) = (one.stream.upload(), one.file.clone()) {
            self.send_up_to(one, &(attached, upload, file), (end, is_whole), sender);
        }
    }

    /// Notes how far a file is written by now; whether it can be told.
    fn look_at(&self, one: &mut Watched) -> bool {
        let Ok(found) = stat(one.stream.path()) else { return false };
        let size = u64::try_from(found.st_size).unwrap_or(0);
        one.grew = size > one.size;
        one.size = size;
        if size < STREAMED_BYTES_MIN {
            return true;
        }
        let file = match &one.file {
            Some(file) => Arc::clone(file),
            // A description of its own: looking for holes moves its position.
            None => match self.parts.disk.open(one.stream.path(), OpenMode::Read) {
                Ok(file) => Arc::clone(one.file.insert(Arc::new(StagedFile { descriptor: Arc::new(file), size }))),
                Err(_) => return false,
            },
        };
        one.settled = one.written.min(size);
        one.written = written_up_to(&file.descriptor, one.settled, size);
        one.grew |= one.written > one.settled;
        true
    }

    fn send_up_to(
        self: &Arc<Self>,
        one: &mut Watched,
        (attached, upload, file): &(Arc<Attached>, UploadId, Arc<StagedFile>),
        (end, is_whole): (u64, bool),
        sender: &Sender,
    ) {
        loop {
            let Some(range) = Shape::Growing.part(one.parts, end, is_whole) else { return };
            let Ok(slot) = Arc::clone(&sender.slots).try_acquire_owned() else { return };
            let Some(held) = self.carrier.uploads.try_hold(range.len()) else { return };
            let number = Shape::number(one.parts);
            if !one.stream.start_part(number) {
                return;
            }
            one.parts += 1;
            let (engine, stream, wake) = (Arc::clone(self), Arc::clone(&one.stream), Arc::clone(&sender.wake));
            let (attached, upload, file) = (Arc::clone(attached), upload.clone(), Arc::clone(file));
            tokio::spawn(async move {
                let sent = async {
                    let part = engine.read_part(&file, range, held).await?;
                    let _step = under_way(Step::Part);
                    let info =
                        attached.source.put_part(&stream.target().key, &upload, number, part.bytes.clone()).await?;
                    Ok::<_, penstock_types::Error>(SentPart { info, sum: part.sum() })
                };
                let sent = sent.await;
                attached.health.note(&sent);
                match &sent {
                    Ok(_) => {
                        engine.stage.brought(range.len());
                        engine.parts.metrics.stream_bytes.inc_by(range.len());
                    }
                    Err(error) => tracing::debug!(%error, "a part is sent when its file is closed"),
                }
                stream.end_part(number, sent.ok());
                drop(slot);
                wake.notify_one();
            });
        }
    }

    /// Begins the upload of a draft, which the journal knows of first.
    async fn begin_early(self: Arc<Self>, attached: Arc<Attached>, stream: Arc<Stream>, wake: Arc<Notify>) {
        let (me, intended) = (Arc::clone(&self), Arc::clone(&stream));
        let marker = match self.blocking(move || me.stage.intend_upload(&intended)).await {
            Ok(Some(marker)) => marker,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "a file is uploaded when it is closed");
                return;
            }
        };
        let mut metadata = stream.begin_described().metadata();
        metadata.push((OPERATION_METADATA.to_owned(), marker.to_string()));
        let begun = attached.source.begin_upload(&stream.target().key, metadata.into()).await;
        attached.health.note(&begun);
        self.stage.early_begun(&stream, begun.as_ref().ok());
        wake.notify_one();
    }

    /// Aborts what nobody will complete.
    fn abort_orphans(self: &Arc<Self>, sender: &mut Sender) {
        if Instant::now() < sender.orphans_due {
            return;
        }
        let orphans = self.stage.orphans();
        sender.orphans_due = Instant::now() + if orphans.is_empty() { LOOK } else { ORPHAN_WAIT };
        for orphan in orphans {
            if let Some(attached) = self.attached_at(&orphan.target) {
                let me = Arc::clone(self);
                tokio::spawn(async move {
                    match me.abort_orphan(&attached, &orphan).await {
                        Ok(()) => me.stage.orphan_gone(orphan.marker),
                        Err(error) => tracing::debug!(%error, "an upload that nobody needs is aborted later"),
                    }
                });
            }
        }
    }

    async fn abort_orphan(&self, attached: &Attached, orphan: &Orphan) -> Result<()> {
        let (source, key) = (&attached.source, &orphan.target.key);
        if let Some(upload) = &orphan.upload {
            return source.abort_upload(key, upload).await;
        }
        // Whether the source began one is not known. If so, it has no part yet, and nobody else knows it.
        for found in source.list_uploads(key).await?.into_iter().filter(|found| found.key == *key) {
            if self.stage.knows_upload(&found.id) {
                continue;
            }
            match source.list_parts(key, &found.id).await {
                Ok(parts) if parts.is_empty() => source.abort_upload(key, &found.id).await?,
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// How far a file is written without a hole, from a position on up to which it is.
fn written_up_to(file: &OwnedFd, from: u64, size: u64) -> u64 {
    if from >= size {
        return size;
    }
    // Where the file system cannot tell, all of it counts: what changes is sent again.
    seek(file, SeekFrom::Hole(from)).map_or(size, |hole| hole.min(size))
}

/// Whether a source takes parts of a file of which nobody knows yet whether it will keep its name.
fn may_send(attached: &Attached, key: &ObjectKey) -> bool {
    let inner = attached.view.path_of(key).unwrap_or_else(|| key.to_string());
    let is_well = attached.spec.write.is_some() && attached.health.failed_ago().is_none();
    is_well && attached.source.capabilities().resumable_multipart && !is_temporary(&inner)
}

/// Whether a file of that name is likely to be renamed once it is written.
fn is_temporary(path: &str) -> bool {
    let key = path.to_lowercase();
    let mut names = key.split('/').rev();
    let name = names.next().unwrap_or_default();
    let is = |name: &str| {
        TEMPORARY_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
            || TEMPORARY_ENDS.iter().any(|end| name.ends_with(end))
            || name.contains(".tmp")
    };
    // Also in a directory that is renamed as a whole.
    is(name) || names.any(is)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_given_for_a_while_are_known_and_others_are_not_taken_for_them() {
        for name in
            [".tmpAb3", "model.pt.tmp", "tmp_9x", "a/.cache/b", "step-1.tmp-7/model", "x.part", "b~", "c.PARTIAL"]
        {
            assert!(is_temporary(name), "{name}");
        }
        for name in ["model.pt", "runs/step-1/model.safetensors", "a/template.bin/x", "partial", "archive.parts.zip"] {
            assert!(!is_temporary(name), "{name}");
        }
    }

    #[test]
    fn what_was_allocated_and_not_written_is_not_sent() {
        let file = tempfile::tempfile_in(".").unwrap();
        file.set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 8192], 0).unwrap();
        let file = OwnedFd::from(file);
        assert_eq!(written_up_to(&file, 0, 1 << 20), 8192);
        assert_eq!(written_up_to(&file, 8192, 8192), 8192);
    }
}
