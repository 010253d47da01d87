//! Writing: a new content of a path is staged and acknowledged here, and brought into the source afterwards.
//!
//! ```text
//! create ─▶ draft (the writer's own descriptor) ─ commit ─▶ stage + journal ─▶ acknowledged ─▶ upload ─▶ source
//! ```

mod adorn;
mod conflicts;
mod copy;
mod directories;
mod early;
mod edit;
mod exchange;
mod lookups;
mod multipart;
mod names;
mod parts;
mod patch;
mod persist;
mod rename;
mod staged;
mod stream;
mod upload;

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use penstock_catalog::Item;
use penstock_source::is_weak;
use penstock_stage::{Base, Change, Draft, Target, Written};
use penstock_types::{
    Durability, Error, ErrorKind, Laid, ObjectAttributes, ObjectId, ObjectKey, Result, TreePath, Version, WriteSpec,
};

use crate::attachment::Attached;
use crate::engine::{Engine, nothing_attached};
use crate::entry::Entry;
use crate::open::{Target as Found, is_a_directory, stale};
use crate::sets::SetRef;
use crate::transfer::StagedFile;

pub use conflicts::{Conflict, ConflictPage, ConflictQuery, InSource, Keep};
pub(crate) use copy::can_copy;
pub(crate) use early::{EarlySync, begin_sync};
pub(crate) use lookups::Lookups;
pub(crate) use names::Gone;
pub(crate) use staged::Staged;
pub(crate) use stream::keep_streaming;
pub(crate) use upload::{keep_uploading, metadata};

/// Longest key that a store takes, bytes.
const KEY_BYTES_MAX: usize = 1024;
/// Tries to meet the same version twice, of a file that changes all the time.
pub(crate) const TRIES_MAX: usize = 4;

/// How to write.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Only where nothing has the name.
    pub exclusive: bool,
    /// What a successful close promises; `None` is what the attachment says.
    pub durability: Option<Durability>,
}

/// A content that is being written; nobody sees it before it is committed. Dropped without that, it is discarded.
pub struct Writing {
    engine: Arc<Engine>,
    place: Place,
    draft: Mutex<Option<Draft>>,
    descriptor: Arc<OwnedFd>,
    /// It goes on from what was there.
    onto: bool,
    /// What the writer took room for last: what lies below the time before is written.
    grown: AtomicU64,
    early: EarlySync,
}

/// Where something is written, and what was there when the writing began.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) path: TreePath,
    pub(crate) target: Target,
    pub(crate) durability: Durability,
    exclusive: bool,
    pub(crate) base: Base,
    /// What was staged or lately staged of the key then.
    pub(crate) laid: Option<Laid>,
    /// The file that had the name.
    found: Option<ObjectAttributes>,
    /// Id and path in it, for a file of a set: nobody sees it before that is published.
    set: Option<(String, String)>,
}

impl Place {
    /// A file of a set. What it promises is promised when the set is published.
    pub(crate) fn in_set(
        path: TreePath,
        target: Target,
        exclusive: bool,
        (base, laid): (Base, Option<Laid>),
        set: (String, String),
    ) -> Self {
        Self { path, target, durability: Durability::Local, exclusive, base, laid, found: None, set: Some(set) }
    }
}

impl Engine {
    /// Begins to write a file. At most one round trip, to learn what will be replaced.
    ///
    /// # Errors
    /// `ReadOnly` where the attachment is; `AlreadyExists` with `exclusive`; `IsADirectory`, `NotADirectory`;
    /// `NoSpace` when the stage stays full; what the source says when it is asked.
    pub async fn create(self: &Arc<Self>, path: &TreePath, options: WriteOptions) -> Result<Writing> {
        let action = || format!("write {path}");
        let place = self.place(path, options, false).await.map_err(|error| error.during(action()))?;
        self.create_at(place)
    }

    /// As [`Engine::create`], a file of a set that is being written.
    ///
    /// # Errors
    /// As those; `InvalidInput` for what is no path in the set, or when that was published.
    pub async fn create_in_set(self: &Arc<Self>, path: &TreePath, set: &SetRef, exclusive: bool) -> Result<Writing> {
        let place = self.place_in_set(path, set, exclusive);
        self.create_at(place.map_err(|error| error.during(format!("write {path}")))?)
    }

    fn create_at(self: &Arc<Self>, place: Place) -> Result<Writing> {
        let action = || format!("write {}", place.path);
        let draft = tokio::task::block_in_place(|| self.stage.create(&place.target));
        let draft = draft.map_err(|error| error.during(action()))?;
        Ok(self.writing(place, draft, false))
    }

    fn writing(self: &Arc<Self>, place: Place, draft: Draft, onto: bool) -> Writing {
        draft.describe(self.posix_at(&place, &place.base).without_time());
        let descriptor = Arc::clone(draft.descriptor());
        let (draft, grown, early) = (Mutex::new(Some(draft)), AtomicU64::new(0), EarlySync::default());
        Writing { engine: Arc::clone(self), place, draft, descriptor, onto, grown, early }
    }

    /// Writes a small file as a whole: as [`Engine::create`] and [`Writing::commit`], with one sync in all.
    ///
    /// # Errors
    /// As those.
    pub async fn write_small(self: &Arc<Self>, path: &TreePath, data: Bytes, options: WriteOptions) -> Result<Entry> {
        let action = || format!("write {path}");
        let place = self.place(path, options, false).await.map_err(|error| error.during(action()))?;
        self.write_small_at(place, data).await
    }

    /// As [`Engine::write_small`], a file of a set that is being written.
    ///
    /// # Errors
    /// As those of [`Engine::create_in_set`].
    pub async fn write_small_in_set(
        self: &Arc<Self>,
        path: &TreePath,
        data: Bytes,
        set: &SetRef,
        exclusive: bool,
    ) -> Result<Entry> {
        let place = self.place_in_set(path, set, exclusive);
        self.write_small_at(place.map_err(|error| error.during(format!("write {path}")))?, data).await
    }

    async fn write_small_at(self: &Arc<Self>, place: Place, data: Bytes) -> Result<Entry> {
        let action = || format!("write {}", place.path);
        let written = self.written(&place).map_err(|error| error.during(action()))?;
        let committed = tokio::task::block_in_place(|| self.stage.commit_small(data, written));
        self.acknowledge(&place, committed).await.map_err(|error| error.during(action()))
    }

    pub(super) async fn remove_here(self: &Arc<Self>, path: &TreePath) -> Result<()> {
        let action = || format!("remove {path}");
        let place = self.place(path, WriteOptions::default(), true).await.map_err(|error| error.during(action()))?;
        let base = self.base_now(&place);
        if base == Base::Absent {
            return Err(Error::new(ErrorKind::NotFound, action(), "nothing has that name"));
        }
        let (target, durability) = (place.target.clone(), place.durability);
        let removed = tokio::task::block_in_place(|| self.stage.remove(target, base, durability));
        let removed = removed.map_err(|error| error.during(action()))?;
        self.announce(path).await;
        self.promised(&removed).await.map_err(|error| error.during(action()))
    }

    /// The staged content of an object version.
    ///
    /// # Errors
    /// `StaleVersion` when it is not staged any more, or may still be written to.
    pub(crate) fn staged_file(&self, found: &Found) -> Result<StagedFile> {
        let Found { path, attached, object, .. } = found;
        if self.live.is_unsettled(&attached.scope, &object.key, &object.version) {
            return Err(stale(path, &object.version));
        }
        let change = self.staged(attached, object).ok_or_else(|| stale(path, &object.version))?;
        let size = change.size().ok_or_else(|| stale(path, &object.version))?;
        Ok(StagedFile { descriptor: change.open()?, size })
    }

    /// The change behind a staged version.
    pub(crate) fn staged(&self, attached: &Attached, object: &ObjectId) -> Option<Arc<Change>> {
        self.stage.find(&attached.scope, &object.key, &object.version)
    }

    /// Says early, and without asking a source, what keeps a file of that path from being written.
    ///
    /// # Errors
    /// `ReadOnly` where the attachment is; `NotFound` where nothing is attached; `IsADirectory` for what is attached or
    /// lies above; `InvalidInput` for a name that no object can have.
    pub fn check_writable(&self, path: &TreePath) -> Result<()> {
        self.writable_place(path).map(drop).map_err(|error| error.during(format!("write {path}")))
    }

    /// The attachment that a file of that path is written to, its path in it, and its key.
    fn writable_place(&self, path: &TreePath) -> Result<(Arc<Attached>, String, ObjectKey)> {
        let (attached, inner) = self.tree.find(path).ok_or_else(|| match self.tree.is_directory(path) {
            true => is_a_directory(path),
            false => nothing_attached(path),
        })?;
        attached.writable(path)?;
        if inner.is_empty() || self.tree.is_directory(path) {
            return Err(is_a_directory(path));
        }
        let key = check_key(path, &attached, attached.view.key_of(&inner))?;
        check_visible(path)?;
        Ok((attached, inner, key))
    }

    /// Where `path` is written to, and what is there now: for `certain`, or as far as that is known while the source is
    /// away.
    pub(crate) async fn place(&self, path: &TreePath, options: WriteOptions, certain: bool) -> Result<Place> {
        let (attached, inner, key) = self.writable_place(path)?;
        let durability = options.durability.unwrap_or(attached.writable(path)?.durability);
        let was_removed = self.was_removed(path);
        self.gone.revive(path);
        let laid = self.stage.overlay(&attached.scope).at(key.as_bytes());
        let certain = certain || options.exclusive;
        let found = self.look_before_writing(path, (&attached, &inner), certain).await?;
        // A new content has the mode of the one before.
        self.ask_said(&attached, path, found.iter()).await?;
        let mut file = None;
        let base = match found {
            Some(Item::Directory) if !was_removed => return Err(is_a_directory(path)),
            Some(Item::File { .. }) if options.exclusive => return Err(taken(path)),
            Some(Item::File { attributes, .. }) => {
                attached.check_replaceable(path, &attributes.version)?;
                base_of(&file.insert(attributes).version)
            }
            Some(Item::Directory) | None => Base::Absent,
        };
        let attachment = attached.spec.id.clone();
        let target = Target { scope: Arc::clone(&attached.scope), attachment, key };
        let (path, exclusive, found) = (path.clone(), options.exclusive, file);
        Ok(Place { path, target, durability, exclusive, base, laid, found, set: None })
    }

    /// What a commit replaces: what was there when the writing began, unless this node has changed it since.
    pub(crate) fn base_now(&self, place: &Place) -> Base {
        let laid = self.stage.overlay(&place.target.scope).at(place.target.key.as_bytes());
        match laid {
            Some(laid) if Some(&laid) != place.laid.as_ref() => match &laid.attributes {
                Some(attributes) => base_of(&attributes.version),
                None => Base::Absent,
            },
            _ => place.base.clone(),
        }
    }

    pub(crate) fn written(&self, place: &Place) -> Result<Written> {
        let base = self.base_now(place);
        if place.exclusive && base != Base::Absent {
            return Err(taken(&place.path));
        }
        let metadata = self.posix_at(place, &base).without_time().metadata();
        Ok(Written {
            target: place.target.clone(),
            base,
            exclusive: place.exclusive,
            only_onto_base: false,
            durability: place.durability,
            modified_ms: self.parts.clock.wall_ms(),
            // A new content has the mode and the owner of the one before.
            metadata,
        })
    }

    /// A place goes on with what was just committed there: the next change replaces that.
    pub(crate) fn note_own(&self, place: &mut Place, change: &Change) {
        place.base = Base::Staged(change.operation());
        place.laid = self.stage.overlay(&place.target.scope).at(place.target.key.as_bytes());
        place.exclusive = false;
    }

    /// The entry of what was committed, once what its durability promises is so.
    async fn acknowledge(&self, place: &Place, committed: Result<Arc<Change>>) -> Result<Entry> {
        let change = committed?;
        match &place.set {
            Some(set) => self.note_set_file(set, &change),
            None => {
                self.announce(&place.path).await;
                self.promised(&change).await?;
            }
        }
        let attributes = change.attributes().ok_or_else(|| stale(&place.path, &change.version()))?;
        let item = Item::File { key: place.target.key.clone(), attributes };
        Ok(Entry::of(place.path.name(), item, change.posix()))
    }
}

impl Writing {
    /// Where the content goes: read and write, from offset 0 on.
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.descriptor)
    }

    /// Takes room in the stage for content up to `to` bytes; may wait for uploads to free it. Blocks.
    ///
    /// # Errors
    /// `NoSpace` when the stage stays full.
    pub fn grow(&self, to: u64) -> Result<()> {
        let draft = self.draft.lock().expect("no panic while a draft is looked at");
        let grown = draft.as_ref().ok_or_else(|| self.committed_already())?.grow(to);
        drop(draft);
        let before = self.grown.fetch_max(to, Ordering::Relaxed);
        if let Some(range) = self.early.due(before.min(to)) {
            begin_sync(&self.descriptor, range);
        }
        grown.map_err(|error| error.during(self.action()))
    }

    /// Makes what was written durable as declared, and visible.
    ///
    /// # Errors
    /// What keeps it from being so; at `source` also what the source says within the deadline: the content is staged
    /// then, and goes on being brought there.
    pub async fn commit(&self) -> Result<Entry> {
        let during = |error: Error| error.during(self.action());
        if self.onto {
            return self.commit_onto().await.map_err(during);
        }
        let draft = self.draft.lock().expect("no panic while a draft is taken").take();
        let draft = draft.ok_or_else(|| self.committed_already())?;
        let written = self.engine.written(&self.place).map_err(during)?;
        let committed = tokio::task::block_in_place(|| self.engine.stage.commit(draft, written));
        self.engine.acknowledge(&self.place, committed).await.map_err(during)
    }

    fn action(&self) -> String {
        format!("write {}", self.place.path)
    }

    fn committed_already(&self) -> Error {
        Error::new(ErrorKind::InvalidInput, self.action(), "it was committed already")
    }
}

impl Attached {
    /// How it may be written.
    pub(crate) fn writable(&self, path: &TreePath) -> Result<&WriteSpec> {
        self.spec.write.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::ReadOnly, format!("write {path}"), format!("{} is attached read-only", self.path))
                .advise(format!("penstock detach {0}, and attach it again with --writable", self.path))
        })
    }

    /// Refuses to replace what a source cannot replace on condition, where others may write, too.
    fn check_replaceable(&self, path: &TreePath, version: &Version) -> Result<()> {
        if !is_weak(version) || self.spec.write.as_ref().is_some_and(|write| write.single_writer) {
            return Ok(());
        }
        let reason = "the object has no ETag, so that the store cannot be asked to change this version only";
        Err(Error::new(ErrorKind::Unsupported, format!("write {path}"), reason).advise(format!(
            "penstock detach {0}, and attach it again with --single-writer where nobody else writes there",
            self.path
        )))
    }
}

/// Whether a version is that of a change which the source has not got.
pub(crate) fn is_staged(version: &Version) -> bool {
    penstock_stage::operation_of(version).is_some()
}

/// All of what was staged. Blocks.
///
/// # Errors
/// As those of [`Change::open`].
pub(crate) fn read_staged(change: &Change) -> Result<Bytes> {
    let descriptor = change.open()?;
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::of_disk(&error), format!("read staged {}", change.target().key), error.to_string())
    };
    let size = change.size().and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
    let mut content = vec![0; size];
    let file = std::fs::File::from(descriptor.try_clone().map_err(failed)?);
    file.read_exact_at(&mut content, 0).map_err(failed)?;
    Ok(content.into())
}

pub(crate) fn base_of(version: &Version) -> Base {
    match penstock_stage::operation_of(version) {
        Some(operation) => Base::Staged(operation),
        None => Base::Version(version.clone()),
    }
}

/// Refuses names that nobody would see.
pub(crate) fn check_visible(path: &TreePath) -> Result<()> {
    match penstock_types::hidden_component(path.as_str().as_bytes()) {
        None => Ok(()),
        Some(_) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("write {path}"),
            "names that begin with .penstock- are kept for sets of files",
        )
        .advise("choose another name")),
    }
}

/// A key that the source can take.
pub(crate) fn check_key(path: &TreePath, attached: &Attached, key: Result<ObjectKey>) -> Result<ObjectKey> {
    let refuse = |reason: &str| Error::new(ErrorKind::InvalidInput, format!("write {path}"), reason);
    let key = key.map_err(|_| refuse("no object can have that name").advise("choose a shorter or plainer name"))?;
    if key.as_bytes().len() > KEY_BYTES_MAX {
        return Err(refuse("its key would be longer than a store takes").fact("limit", KEY_BYTES_MAX));
    }
    if key.as_str().is_none() && !attached.source.capabilities().binary_keys {
        return Err(refuse("its key would not be UTF-8, which the source needs"));
    }
    Ok(key)
}

pub(crate) fn taken(path: &TreePath) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("write {path}"), "something has that name")
        .advise("write with mode wb to replace it")
}
