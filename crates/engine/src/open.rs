//! Open files: one pinned version, a lease on its bytes, and the reads that bring what is missing.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use penstock_cache::{Extent, Lease};
use penstock_catalog::Item;
use penstock_stage::Change;
use penstock_types::{
    ByteRange, Error, ErrorKind, ObjectAttributes, ObjectId, ObjectKey, Priority, Result, TreePath, Version,
};

use crate::attachment::Attached;
use crate::engine::{Engine, nothing_attached};
use crate::pattern::{Pattern, Plan, ReadHint};
use crate::scratch::{self, Scratch};
use crate::transfer::{Ahead, StagedFile, Store, Transfer};
use crate::write::is_staged;

/// Objects up to this size are fetched whole inside `open`: their first read then needs no further talk.
pub const WHOLE_MAX: u64 = 1024 * 1024;
/// One wait brings at most so much; the reader comes back for more while the rest is under way.
const NEED_MAX: u64 = 4 * 1024 * 1024;
/// A reader of an incomplete file comes back after at most so much, so that its window moves on in time.
const READY_MAX: u64 = 8 * 1024 * 1024;
/// How often `open` resolves again when the version it found is gone before a byte was delivered.
const RESOLVE_ATTEMPTS: usize = 3;
/// How often an extent that turns out to be damaged is looked up again.
const LEND_ATTEMPTS: usize = 3;

/// How to open.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Who waits.
    pub priority: Priority,
    /// Exactly this version, or `StaleVersion`.
    pub version: Option<Version>,
}

/// Bytes that may be read from the descriptor now.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Present bytes; begins at or before the start of the range asked for.
    pub range: ByteRange,
    /// A new descriptor that replaces the one before, where the bytes had to go elsewhere.
    pub descriptor: Option<Arc<OwnedFd>>,
    /// Whether the whole file is present and stays so: no more asking.
    pub complete: bool,
}

/// One pinned version of one file, with a lease on its bytes that ends when this is dropped.
pub struct OpenFile {
    pub(crate) engine: Arc<Engine>,
    pub(crate) attached: Arc<Attached>,
    pub(crate) inner: String,
    path: TreePath,
    object: ObjectId,
    attributes: ObjectAttributes,
    priority: Priority,
    holding: Mutex<Holding>,
}

/// An object version, and the path at which it was found.
#[derive(Clone)]
pub(crate) struct Target {
    pub path: TreePath,
    pub attached: Arc<Attached>,
    pub inner: String,
    pub object: ObjectId,
    pub attributes: ObjectAttributes,
}

/// Where the bytes are; replaced when the cache cannot take them.
struct Holding {
    store: Store,
    lease: Option<Lease>,
    transfer: Option<Arc<Transfer>>,
    /// Kept as long as this reader may come back: the transfer goes on with it.
    ahead: Option<Arc<Ahead>>,
    pattern: Pattern,
}

impl Holding {
    fn cached(lease: Lease) -> Self {
        let store = Store::Cached(Arc::clone(lease.extent()));
        Self { store, lease: Some(lease), transfer: None, ahead: None, pattern: Pattern::default() }
    }

    fn scratch(size: u64, budget_bytes: u64) -> Result<Self> {
        let store = Store::Scratch(Arc::new(Scratch::new(size, budget_bytes)?));
        Ok(Self { store, lease: None, transfer: None, ahead: None, pattern: Pattern::default() })
    }

    fn staged(file: StagedFile) -> Self {
        let store = Store::Staged(Arc::new(file));
        Self { store, lease: None, transfer: None, ahead: None, pattern: Pattern::default() }
    }

    fn descriptor(&self) -> Arc<OwnedFd> {
        match (&self.lease, self.store.own_descriptor()) {
            (_, Some(descriptor)) => descriptor,
            (Some(lease), None) => Arc::clone(lease.descriptor()),
            (None, None) => unreachable!("a cached file is held by its lease"),
        }
    }
}

impl Engine {
    /// The file at `path` where its version is known, fresh, and completely in the cache; never a request, never
    /// waits for anything but short locks.
    pub fn open_cached(self: &Arc<Self>, path: &TreePath) -> Option<OpenFile> {
        let (attached, inner) = self.tree.find(path)?;
        let Ok(Item::File { key, attributes }) = attached.view.stat_cached(&inner)? else { return None };
        let object = object_id(&attached, key, &attributes.version);
        self.lend_complete(&Target { path: path.clone(), attached, inner, object, attributes })
    }

    /// Whether `path` is known and completely in the cache. Lends and counts nothing.
    pub(crate) fn is_cached(&self, path: &TreePath) -> bool {
        let Some((attached, inner)) = self.tree.find(path) else { return false };
        let Some(Ok(Item::File { key, attributes })) = attached.view.stat_cached(&inner) else { return false };
        self.is_complete(&attached, &object_id(&attached, key, &attributes.version))
    }

    /// Whether every byte of an object version is here: in the cache, or staged.
    pub(crate) fn is_complete(&self, attached: &Attached, object: &ObjectId) -> bool {
        let object = self.bytes_of(attached, object);
        self.is_in_stage(attached, &object) || self.cache.peek(&object).is_some_and(|extent| extent.is_complete())
    }

    /// Whether the bytes of an object version are those of a staged file. Of a file that lies over an object, only some
    /// are: it is cached like what a source has.
    pub(crate) fn is_in_stage(&self, attached: &Attached, object: &ObjectId) -> bool {
        is_staged(&object.version) && self.patched(attached, object).is_none()
    }

    /// The change behind a staged version that lies over an object.
    pub(crate) fn patched(&self, attached: &Attached, object: &ObjectId) -> Option<Arc<Change>> {
        self.staged(attached, object).filter(|change| change.patch().is_some())
    }

    /// The object version that has the bytes of another: where that is a copy which the source has not made yet, what
    /// it is made of.
    pub(crate) fn bytes_of(&self, attached: &Attached, object: &ObjectId) -> ObjectId {
        let mut object = object.clone();
        while is_staged(&object.version)
            && let Some(change) = self.staged(attached, &object).filter(|change| change.patch().is_none())
            && let Some(original) = change.original()
        {
            object = ObjectId { key: original.key, version: original.version, ..object };
            // Made by now, and what was cached is cached as that.
            let is_cached = |moved: &ObjectId| self.cache.peek(moved).is_some();
            object = self.moved.to(&object).filter(is_cached).unwrap_or(object);
        }
        object
    }

    fn with_bytes(&self, target: Target) -> Target {
        let object = self.bytes_of(&target.attached, &target.object);
        Target { object, ..target }
    }

    /// The object version as a file, where it is completely in the cache or staged.
    pub(crate) fn lend_complete(self: &Arc<Self>, target: &Target) -> Option<OpenFile> {
        let target = self.with_bytes(target.clone());
        let holding = if self.is_in_stage(&target.attached, &target.object) {
            Holding::staged(self.staged_file(&target).ok()?)
        } else {
            let extent = self.cache.peek(&target.object).filter(|extent| extent.is_complete())?;
            self.cache.count_use(&extent);
            Holding::cached(extent.lend().ok()?)
        };
        self.count_hit(&target.attached, &target.inner, target.attributes.size);
        Some(self.open_file(target, Priority::Foreground, holding))
    }

    /// Counts an open of a file of so many bytes that is completely here.
    fn count_hit(self: &Arc<Self>, attached: &Arc<Attached>, inner: &str, size: u64) {
        let metrics = &self.parts.metrics;
        metrics.opens.inc();
        metrics.open_hits.inc();
        metrics.read_bytes.inc_by(size);
        metrics.cache_hit_bytes.inc_by(size);
        self.ahead.note_hit(self, attached, inner);
    }

    /// Opens exactly this object version, which need not be what its path means now. A small file is complete when
    /// this returns.
    ///
    /// # Errors
    /// `StaleVersion` when it is gone and not cached; what the source says.
    pub(crate) async fn open_version(self: &Arc<Self>, target: Target) -> Result<OpenFile> {
        self.parts.metrics.opens.inc();
        self.wait_settled(&target.attached.scope, &target.object.key, &target.object.version).await?;
        let file = self.hold(target, Priority::Foreground)?;
        self.ahead.note_miss(self, &file.attached, &file.inner);
        if file.size() <= WHOLE_MAX && !file.is_complete() {
            file.fetch_whole().await?;
        }
        Ok(file)
    }

    /// Opens the file at `path` on the version it has now. A small file is complete when this returns.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`, `NotADirectory`, `PermissionDenied`; `StaleVersion` when `options` name a version
    /// that is gone; `Timeout`, `Unavailable` when the source does not answer.
    pub async fn open(self: &Arc<Self>, path: &TreePath, options: OpenOptions) -> Result<OpenFile> {
        if options.version.is_none()
            && let Some(file) = self.open_cached(path)
        {
            return Ok(file);
        }
        let file = self.open_unless_gone(path, &options).await;
        file.map_err(|error| error.during(format!("open {path}")))
    }

    async fn open_unless_gone(self: &Arc<Self>, path: &TreePath, options: &OpenOptions) -> Result<OpenFile> {
        self.parts.metrics.opens.inc();
        let mut attempt = 1;
        loop {
            let file = match self.pin(path, options, attempt > 1).await {
                // What was staged when its name was looked up is in the source by now.
                Err(error) if gone_with_any_version(&error, options) && attempt < RESOLVE_ATTEMPTS => {
                    attempt += 1;
                    continue;
                }
                pinned => pinned?,
            };
            if options.priority == Priority::Foreground {
                self.ahead.note_miss(self, &file.attached, &file.inner);
            }
            if file.size() > WHOLE_MAX || file.is_complete() {
                return Ok(file);
            }
            match file.fetch_whole().await {
                Ok(()) => return Ok(file),
                Err(error) if error.kind() == ErrorKind::StaleVersion && attempt < RESOLVE_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Resolves `path` and pins what it finds; no content is fetched.
    pub(crate) async fn pin(self: &Arc<Self>, path: &TreePath, options: &OpenOptions, again: bool) -> Result<OpenFile> {
        let (attached, inner) = self.attachment_of_file(path)?;
        let (key, mut attributes) = loop {
            let (key, attributes) = self.resolve_file(path, &attached, &inner, again).await?;
            if !self.wait_settled(&attached.scope, &key, &attributes.version).await? {
                break (key, attributes);
            }
        };
        if let Some(version) = options.version.as_ref().filter(|version| **version != attributes.version) {
            let object = object_id(&attached, key.clone(), version);
            let kept = self.cache.peek(&object).filter(|extent| extent.is_complete()).map(|extent| extent.size());
            let kept = kept.or_else(|| self.staged(&attached, &object)?.size());
            let size = kept.ok_or_else(|| stale(path, version))?;
            attributes = ObjectAttributes { size, modified_ms: 0, version: version.clone() };
        }
        let object = object_id(&attached, key, &attributes.version);
        self.hold(Target { path: path.clone(), attached, inner, object, attributes }, options.priority)
    }

    /// The object that `path` names now, without holding it: `(attachment, object, size)`.
    pub(crate) async fn pin_for_look(&self, path: &TreePath) -> Result<(Arc<Attached>, ObjectId, u64)> {
        let (attached, inner) = self.attachment_of_file(path)?;
        let (key, attributes) = self.resolve_file(path, &attached, &inner, false).await?;
        let object = object_id(&attached, key, &attributes.version);
        Ok((attached, object, attributes.size))
    }

    /// As [`Engine::pin_for_look`], of what is known here, fresh or not.
    pub(crate) fn known_for_look(&self, path: &TreePath) -> Result<(Arc<Attached>, ObjectId, u64)> {
        let (attached, inner) = self.attachment_of_file(path)?;
        let known = attached.view.stat_cached(&inner).and_then(Result::ok).or_else(|| attached.view.recalled(&inner));
        match known {
            Some(Item::File { key, attributes }) => {
                let object = object_id(&attached, key, &attributes.version);
                Ok((attached, object, attributes.size))
            }
            Some(Item::Directory) => Err(is_a_directory(path)),
            None => Err(Error::new(ErrorKind::NotFound, format!("look up {path}"), "nothing is known of it here")),
        }
    }

    fn attachment_of_file(&self, path: &TreePath) -> Result<(Arc<Attached>, String)> {
        self.tree.find(path).ok_or_else(|| match self.tree.is_directory(path) {
            true => is_a_directory(path),
            false => nothing_attached(path),
        })
    }

    async fn resolve_file(
        &self,
        path: &TreePath,
        attached: &Attached,
        inner: &str,
        again: bool,
    ) -> Result<(ObjectKey, ObjectAttributes)> {
        let item = match again {
            false => self.timely(attached, path, attached.view.stat(inner)).await?,
            true => self.timely(attached, path, attached.view.revalidate(inner)).await?,
        };
        match item {
            Item::File { key, attributes } => Ok((key, attributes)),
            Item::Directory => Err(is_a_directory(path)),
        }
    }

    fn hold(self: &Arc<Self>, target: Target, priority: Priority) -> Result<OpenFile> {
        let target = self.with_bytes(target);
        if self.is_in_stage(&target.attached, &target.object) {
            let holding = Holding::staged(self.staged_file(&target)?);
            return Ok(self.open_file(target, priority, holding));
        }
        let size = target.attributes.size;
        // The first lend after an unclean boot reads every page of the extent.
        let leased = tokio::task::block_in_place(|| self.lease(&target.object, size));
        let holding = match leased {
            Ok(lease) => Holding::cached(lease),
            Err(error) if cannot_cache(&error) => Holding::scratch(size, self.carrier.budget.bytes())?,
            Err(error) => return Err(error),
        };
        Ok(self.open_file(target, priority, holding))
    }

    fn open_file(self: &Arc<Self>, target: Target, priority: Priority, holding: Holding) -> OpenFile {
        let Target { path, attached, inner, object, attributes } = target;
        let (engine, holding) = (Arc::clone(self), Mutex::new(holding));
        OpenFile { engine, attached, inner, path, object, attributes, priority, holding }
    }

    fn lease(&self, object: &ObjectId, size: u64) -> Result<Lease> {
        let mut attempt = 1;
        loop {
            match self.cache.get_or_create(object, size)?.lend() {
                // Bad pages were dropped, or the whole extent was: what is left, or a new one, is lent next.
                Err(error) if error.kind() == ErrorKind::Corrupt && attempt < LEND_ATTEMPTS => attempt += 1,
                lent => return lent,
            }
        }
    }
}

impl OpenFile {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.attributes.size
    }

    /// Size, time and version, pinned.
    pub fn attributes(&self) -> &ObjectAttributes {
        &self.attributes
    }

    /// The path it was opened by.
    pub fn path(&self) -> &TreePath {
        &self.path
    }

    /// Whether every byte can be read from the descriptor without asking.
    pub fn is_complete(&self) -> bool {
        self.holding().store.is_complete()
    }

    /// Read-only descriptor; only what [`Ready`] names may be read from it unless the file is complete.
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        self.holding().descriptor()
    }

    /// The extent that holds the bytes; `None` where they are not cached.
    pub fn extent(&self) -> Option<Arc<Extent>> {
        self.holding().lease.as_ref().map(|lease| Arc::clone(lease.extent()))
    }

    /// Counts another open of what was opened completely cached, without looking it up again; `false` where it has to be:
    /// it is attached no more, or is not the cache's.
    pub(crate) fn open_again(&self) -> bool {
        let Some(extent) = self.extent().filter(|extent| extent.is_complete()) else { return false };
        if !self.engine.tree.has(&self.attached) {
            return false;
        }
        self.engine.cache.count_use(&extent);
        self.engine.count_hit(&self.attached, &self.inner, self.size());
        true
    }

    /// Makes the start of `range` readable and has what probably comes next under way.
    ///
    /// Returns when at least `min(range, 4 MiB)` from its start is present, or a part of it at the deadline.
    ///
    /// # Errors
    /// `StaleVersion` when the pinned version is gone and not cached; `Timeout`, `Unavailable`, `RateLimited`,
    /// `PermissionDenied` from the source; `ResourceLimit` when memory stays used up.
    pub async fn ensure(&self, range: ByteRange, hint: ReadHint) -> Result<Ready> {
        match self.ensure_stored(range, hint).await {
            Err(error) if cannot_cache(&error) => {
                let descriptor = self.leave_cache()?;
                let ready = self.ensure_stored(range, hint).await?;
                Ok(Ready { descriptor: Some(descriptor), ..ready })
            }
            ensured => ensured,
        }
    }

    /// As [`OpenFile::ensure`], in the store that there is now.
    ///
    /// # Errors
    /// Those, and `NoSpace`, `Disk` where the cache cannot take the bytes: [`OpenFile::leave_cache`] helps.
    pub(crate) async fn ensure_stored(&self, range: ByteRange, hint: ReadHint) -> Result<Ready> {
        let range = range.intersect(ByteRange::new(0, self.size()));
        if !self.is_complete() && !range.is_empty() {
            let plan = self.holding().pattern.observe(range, hint, self.size());
            let need = ByteRange::new(range.start, range.end.min(range.start + NEED_MAX));
            self.bring(need, plan).await?;
        }
        Ok(self.ready(range.start))
    }

    /// Goes on without the cache, which cannot take the bytes; says from where they are read now. Several readers of the
    /// handle may find out at the same time, and the first of them makes the change.
    pub(crate) fn leave_cache(&self) -> Result<Arc<OwnedFd>> {
        let mut holding = self.holding();
        if holding.lease.is_some() {
            let uncached = Holding::scratch(self.size(), self.engine.carrier.budget.bytes())?;
            *holding = Holding { pattern: holding.pattern, ..uncached };
        }
        Ok(holding.descriptor())
    }

    /// Brings everything, all pieces at once.
    pub(crate) async fn fetch_whole(&self) -> Result<()> {
        let whole = ByteRange::new(0, self.size());
        let plan = Pattern::default().observe(whole, ReadHint::Whole, self.size());
        if self.extent().is_none() {
            return Ok(());
        }
        match self.bring(whole, plan).await {
            Err(error) if cannot_cache(&error) => self.leave_cache().map(drop),
            brought => brought,
        }
    }

    /// Where the bytes are right now.
    pub(crate) fn store(&self) -> Store {
        self.holding().store.clone()
    }

    /// Bytes of the file that are not present.
    pub(crate) fn missing_bytes(&self) -> u64 {
        self.store().missing(ByteRange::new(0, self.size())).iter().map(ByteRange::len).sum()
    }

    async fn bring(&self, mut need: ByteRange, mut plan: Plan) -> Result<()> {
        let (store, transfer) = self.transfer();
        let metrics = &self.engine.parts.metrics;
        if let Store::Scratch(scratch) = &store {
            plan.want = plan.want.intersect(scratch.window_at(need.start));
            plan.piece_max = scratch::PIECE_MAX;
            need = need.intersect(plan.want);
            metrics.uncached_bytes.inc_by(need.len());
        }
        let absent: u64 = store.missing(need).iter().map(|run| run.intersect(need).len()).sum();
        metrics.read_bytes.inc_by(need.len());
        metrics.cache_hit_bytes.inc_by(need.len() - absent);
        let ahead = Arc::new(Ahead { plan, priority: self.priority });
        self.holding().ahead = Some(Arc::clone(&ahead));
        let brought = transfer.ensure(need, &ahead).await;
        self.attached.health.note(&brought);
        brought.map_err(|error| self.explain(error))
    }

    fn explain(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::StaleVersion {
            return error.during(format!("read {}", self.path));
        }
        self.engine.parts.metrics.stale_versions.inc();
        self.attached.view.forget(&self.inner);
        stale(&self.path, &self.object.version)
    }

    fn transfer(&self) -> (Store, Arc<Transfer>) {
        let mut holding = self.holding();
        let store = holding.store.clone();
        let transfer = holding.transfer.get_or_insert_with(|| {
            let (carrier, origins) = (&self.engine.carrier, self.engine.origins_of(&self.attached, &self.object));
            match &store {
                Store::Cached(extent) => carrier.transfer_into(extent, &origins),
                Store::Scratch(_) | Store::Staged(_) => carrier.transfer(self.object.clone(), store.clone(), &origins),
            }
        });
        let transfer = Arc::clone(transfer);
        (store, transfer)
    }

    fn ready(&self, offset: u64) -> Ready {
        let mut holding = self.holding();
        if holding.store.is_complete() {
            return Ready { range: ByteRange::new(0, self.size()), descriptor: None, complete: true };
        }
        let run = holding.store.present_run(offset);
        let range = run.intersect(ByteRange::new(offset, offset + READY_MAX));
        holding.pattern.handed_out(range.end);
        Ready { range, descriptor: None, complete: false }
    }

    fn holding(&self) -> std::sync::MutexGuard<'_, Holding> {
        self.holding.lock().expect("no panic while a file's store is looked at")
    }
}

/// Whether a version was gone that nobody asked for by name.
fn gone_with_any_version(error: &Error, options: &OpenOptions) -> bool {
    error.kind() == ErrorKind::StaleVersion && options.version.is_none()
}

/// Whether the bytes can still be served, without the cache.
pub(crate) fn cannot_cache(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Disk)
}

pub(crate) fn object_id(attached: &Attached, key: ObjectKey, version: &Version) -> ObjectId {
    ObjectId { source: attached.source.id().clone(), key, version: version.clone() }
}

pub(crate) fn is_a_directory(path: &TreePath) -> Error {
    Error::new(ErrorKind::IsADirectory, format!("open {path}"), "it is a directory").advise("name a file in it")
}

pub(crate) fn stale(path: &TreePath, version: &Version) -> Error {
    Error::new(ErrorKind::StaleVersion, format!("read {path}"), "the version that was opened is gone from the source")
        .advise("open it again for the new version")
        .fact("version", version)
}
