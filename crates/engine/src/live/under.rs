//! A live file that lies over a large object: only what is written of it is here, the rest is read from the version that is
//! changed, and copied by the source.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use penstock_stage::{Base, Change, Draft, Original, Over, Patch, Target};
use penstock_types::{ByteRange, Error, ErrorKind, NodeFile, ObjectAttributes, Result, TreePath};
use rustix::io::{pread, retry_on_intr};

use crate::engine::Engine;
use crate::kernel::MountedFile;
use crate::live::content::{Content, copy_range, failed, write_at};
use crate::open::{OpenFile, Target as Found, object_id};
use crate::write::{Place, can_copy};

/// What is larger is not brought here as a whole, to be changed in part.
const BROUGHT_MAX: u64 = 64 * 1024 * 1024;
/// How much of that is brought at once.
const STEP: u64 = 8 * 1024 * 1024;
/// How long a reader waits for an upload that has replaced the object, but has not been heard of.
const STORED_WITHIN: Duration = Duration::from_secs(10);

/// What a live file lies over.
#[derive(Clone)]
pub(super) struct Under {
    over: Over,
    file: Arc<MountedFile>,
    /// How large that is.
    size: u64,
    /// Nothing was written yet.
    is_unwritten: bool,
}

/// A live file over an object, as it is read at a moment.
pub(crate) struct Laid {
    pub(super) descriptor: Arc<OwnedFd>,
    pub(super) under: Under,
    pub(super) size: u64,
}

impl Under {
    /// How large the file is, as long as nothing was written.
    pub(super) fn unwritten(&self) -> Option<u64> {
        self.is_unwritten.then_some(self.size)
    }

    /// A draft that goes on from what was committed, or from the object where nothing was. Blocks.
    pub(super) fn draft(&mut self, engine: &Engine, target: &Target, committed: &OwnedFd, size: u64) -> Result<Draft> {
        let over = Over::new(self.over.original.clone(), self.over.patch().clone());
        let draft = engine.stage.create_over(target, over.clone(), size)?;
        if !self.is_unwritten {
            let pieces = over.patch().pieces(ByteRange::new(0, size));
            draft.grow(over.patch().own_bytes(ByteRange::new(0, size)))?;
            let own = pieces.into_iter().filter(|(_, own)| *own);
            own.into_iter().try_for_each(|(piece, _)| copy_range(committed, draft.descriptor(), piece))?;
        }
        (self.over, self.is_unwritten) = (over, false);
        Ok(draft)
    }

    /// Makes sure that there is a draft to commit, of not too many pieces: brings what lies between them. Blocks.
    pub(super) fn complete(
        &mut self,
        engine: &Engine,
        content: &mut Content,
        (target, size): (&Target, u64),
    ) -> Result<()> {
        if let Content::Committed(committed) = content {
            *content = Content::Draft(self.draft(engine, target, committed, size)?);
        }
        let Content::Draft(draft) = content else { return Ok(()) };
        if self.over.patch().ranges() <= Patch::RANGES_MAX {
            return Ok(());
        }
        let pieces = self.over.patch().pieces(ByteRange::new(0, size));
        for (piece, _) in pieces.into_iter().filter(|(_, own)| !own) {
            let mut at = piece.start;
            while at < piece.end {
                let step = ByteRange::new(at, piece.end.min(at + STEP));
                let bytes = engine.parts.runtime.block_on(Arc::clone(&self.file).bring(step))?;
                draft.grow(draft.room_for(step))?;
                write_at(draft.descriptor(), at, &bytes).map_err(failed)?;
                draft.note_written(step);
                at = step.end;
            }
        }
        Ok(())
    }

    /// Reads on from what another state of it reads from.
    pub(super) fn go_on(&mut self, renewed: &Self) {
        self.file = Arc::clone(&renewed.file);
    }

    /// It was committed as a change; `None` where that needs nothing of the object any more.
    pub(super) fn committed(mut self, change: &Change) -> Option<Self> {
        change.patch()?;
        self.over.original = Original { key: change.target().key.clone(), version: change.version(), since: None };
        self.size = change.size()?;
        Some(self)
    }

    /// Something was said of it besides its bytes, as a change.
    pub(super) fn adorned(&mut self, change: &Change) {
        self.over.original = Original { key: change.target().key.clone(), version: change.version(), since: None };
    }

    /// The object is gone, as what was committed over it last is in its source: that takes its place. `None` where
    /// nothing was committed, or the source has not got it: somebody else replaced the object.
    async fn renewed(mut self, engine: &Arc<Engine>, target: &Target) -> Result<Option<Self>> {
        let Original { key, version, .. } = &self.over.original;
        let Some(attached) = engine.attached_at(target) else { return Ok(None) };
        if let Some(change) = engine.stage.find(&target.scope, key, version) {
            // How it ended is looked at next.
            let _ = tokio::time::timeout(STORED_WITHIN, change.done()).await;
        }
        let Some(object) = engine.moved.to(&object_id(&attached, key.clone(), version)) else { return Ok(None) };
        let inner = attached.view.path_of(&object.key).unwrap_or_default();
        let path = TreePath::parse(&format!("{}/{inner}", attached.path))?;
        let attributes = ObjectAttributes { size: self.size, modified_ms: 0, version: object.version.clone() };
        let file = engine.open_version(Found { path, attached, inner, object, attributes }).await?;
        self.file = MountedFile::new(file, false);
        Ok(Some(self))
    }
}

impl Laid {
    fn pieces(&self, range: ByteRange) -> Vec<(ByteRange, bool)> {
        self.under.over.patch().pieces(range.intersect(ByteRange::new(0, self.size)))
    }

    /// Reads up to the end of the file where that needs no waiting; how many bytes.
    pub(crate) fn read_now(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        let range = ByteRange::new(offset, offset.saturating_add(out.len() as u64));
        let mut done = 0;
        for (piece, own) in self.pieces(range) {
            let to = &mut out[done..done + length_of(piece)];
            match own {
                true => self.read_own(piece.start, to)?,
                false if self.under.file.read_now(piece.start, to)? == Some(to.len()) => {}
                false => return Ok(None),
            }
            done += length_of(piece);
        }
        Ok(Some(done))
    }

    /// As it is after its object is gone: see [`Under::renewed`].
    pub(crate) async fn renewed(self, engine: &Arc<Engine>, target: &Target) -> Result<Option<Self>> {
        let under = self.under.renewed(engine, target).await?;
        Ok(under.map(|under| Self { under, ..self }))
    }

    /// Reads up to the end of the file.
    pub(crate) async fn read(&self, range: ByteRange) -> Result<Vec<u8>> {
        let pieces = self.pieces(range);
        let mut out = vec![0; pieces.iter().map(|(piece, _)| length_of(*piece)).sum()];
        let mut done = 0;
        for (piece, own) in pieces {
            let to = &mut out[done..done + length_of(piece)];
            match own {
                true => tokio::task::block_in_place(|| self.read_own(piece.start, to))?,
                false => to.copy_from_slice(&Arc::clone(&self.under.file).bring(piece).await?),
            }
            done += length_of(piece);
        }
        Ok(out)
    }

    fn read_own(&self, mut at: u64, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            match retry_on_intr(|| pread(&self.descriptor, &mut *out, at)).map_err(failed)? {
                // It was cut a moment ago.
                0 => {
                    out.fill(0);
                    break;
                }
                read => (at, out) = (at + read as u64, &mut out[read..]),
            }
        }
        Ok(())
    }
}

impl Engine {
    /// A draft that goes on from an open file, the one at `place`: over it where it is large, otherwise a copy.
    ///
    /// # Errors
    /// `NoSpace`, `Disk`; what keeps it from being read.
    pub(crate) async fn draft_onto(self: &Arc<Self>, place: &Place, file: OpenFile) -> Result<Draft> {
        let (target, size) = (&place.target, file.size());
        match self.lay_over(place, file) {
            Ok((content, mut under)) => {
                let committed = Arc::clone(content.descriptor());
                tokio::task::block_in_place(|| under.draft(self, target, &committed, size))
            }
            Err(file) => {
                let draft = tokio::task::block_in_place(|| self.stage.create(target))?;
                self.copy_open(*file, &draft).await?;
                Ok(draft)
            }
        }
    }

    /// A large file as it is opened to be changed; `None` where all of it has to be here first.
    pub(super) fn lay_over(
        &self,
        place: &Place,
        file: OpenFile,
    ) -> std::result::Result<(Content, Under), Box<OpenFile>> {
        let file = Box::new(file);
        let size = file.size();
        let key = &place.target.key;
        let change = match &place.base {
            Base::Version(version) if can_copy(version) => None,
            Base::Staged(operation) => {
                let change = self.stage.find(&place.target.scope, key, &operation.version());
                match change.filter(|change| change.original().is_some()) {
                    Some(change) => Some(change),
                    None => return Err(file),
                }
            }
            _ => return Err(file),
        };
        if size <= BROUGHT_MAX {
            return Err(file);
        }
        let original = Original { key: key.clone(), version: file.attributes().version.clone(), since: None };
        let own = change.as_ref().and_then(|change| Some((change.patch()?.clone(), change.open().ok()?)));
        let (patch, descriptor, is_unwritten) = match own {
            Some((patch, descriptor)) => (patch, descriptor, false),
            None if change.is_some_and(|change| change.patch().is_some()) => return Err(file),
            None => (Patch::over(size), file.descriptor(), true),
        };
        let under =
            Under { over: Over::new(original, patch), file: MountedFile::new(*file, false), size, is_unwritten };
        Ok((Content::Committed(descriptor), under))
    }
}

fn length_of(piece: ByteRange) -> usize {
    usize::try_from(piece.len()).expect("a read fits memory")
}

/// Whether what a live file lies over is gone from its source: by a change of ours, or by somebody else's.
pub(crate) fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::StaleVersion | ErrorKind::NotFound)
}
