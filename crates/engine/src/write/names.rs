//! Names: directories that are made and stay though they are empty, removing what programs have open, renaming. An
//! empty directory is an object without content whose key ends in `/`, which other programs of stores know, too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use penstock_catalog::Item;
use penstock_stage::{Base, Target, Written};
use penstock_types::{Error, ErrorKind, Freshness, ObjectAttributes, Posix, Result, TreePath};

use crate::attachment::Attached;
use crate::engine::{Engine, nothing_attached};
use crate::entry::{Entry, EntryKind};
use crate::open::is_a_directory;
use crate::write::lookups::AWAY;
use crate::write::{base_of, check_key, taken};

/// Names that are looked at at once, to find one that is there.
const LOOKED_AT: usize = 16;

/// Directories that were removed here, as long as somebody may still be told by the source that they are there.
#[derive(Default)]
pub(crate) struct Gone(Mutex<HashMap<TreePath, Duration>>);

impl Gone {
    /// Whether a directory was removed here, and nothing was written below it since.
    fn contains(&self, path: &TreePath, now: Duration) -> bool {
        let mut gone = self.gone();
        let Some(until) = gone.get(path) else { return false };
        if *until <= now {
            gone.remove(path);
            return false;
        }
        true
    }

    fn is_empty(&self) -> bool {
        self.gone().is_empty()
    }

    fn add(&self, path: &TreePath, until: Duration) {
        self.gone().insert(path.clone(), until);
    }

    /// Something is written at or below a path: it and what is above are there again.
    pub(crate) fn revive(&self, path: &TreePath) {
        let mut gone = self.gone();
        if !gone.is_empty() {
            gone.retain(|removed, _| removed != path && path.below(removed).is_none());
        }
    }

    fn gone(&self) -> MutexGuard<'_, HashMap<TreePath, Duration>> {
        self.0.lock().expect("no panic while removed directories are looked up")
    }
}

impl Engine {
    /// Makes a directory, which stays while it is empty, with what is said of it. At most two round trips, to learn what is
    /// there.
    ///
    /// # Errors
    /// `AlreadyExists` when something has the name; `ReadOnly`; what the source or the disk says.
    pub async fn make_directory(self: &Arc<Self>, path: &TreePath, posix: Posix) -> Result<()> {
        let made = self.make_directory_here(path, posix).await;
        made.map_err(|error| error.during(format!("make the directory {path}")))
    }

    async fn make_directory_here(self: &Arc<Self>, path: &TreePath, posix: Posix) -> Result<()> {
        let (attached, inner) = self.writable_at(path)?;
        if self.live.at(path).is_some() {
            return Err(taken(path));
        }
        let found = self.look_before_writing(path, (&attached, &inner), true).await?;
        let is_gone = self.was_removed(path);
        if found.is_some() && !is_gone {
            return Err(taken(path));
        }
        let base = if is_gone { self.marker_base(&attached, path, &inner).await? } else { Base::Absent };
        self.put_marker(path, (&attached, &inner), base, posix).await
    }

    /// Removes an empty directory. Some round trips, to learn that it is empty.
    ///
    /// # Errors
    /// `NotEmpty`, `NotFound`, `NotADirectory`, `ReadOnly`; `Busy` for where something is attached; what the source or
    /// the disk says.
    pub async fn remove_directory(self: &Arc<Self>, path: &TreePath) -> Result<()> {
        let removed = self.remove_directory_here(path).await;
        removed.map_err(|error| error.during(format!("remove the directory {path}")))
    }

    async fn remove_directory_here(self: &Arc<Self>, path: &TreePath) -> Result<()> {
        let (attached, inner) = self.writable_at(path)?;
        let action = || format!("remove the directory {path}");
        if self.stat(path).await?.kind != EntryKind::Directory {
            return Err(Error::new(ErrorKind::NotADirectory, action(), "it is a file"));
        }
        if self.has_names(path).await? {
            return Err(Error::new(ErrorKind::NotEmpty, action(), "something is in it"));
        }
        let base = self.marker_base(&attached, path, &inner).await?;
        self.forget_directory(path, &attached);
        if base == Base::Absent {
            self.announce(path).await;
            return Ok(());
        }
        let (target, durability) = (self.marker(path, &attached, &inner)?, attached.writable(path)?.durability);
        let removed = tokio::task::block_in_place(|| self.stage.remove(target, base, durability))?;
        self.announce(path).await;
        self.promised(&removed).await
    }

    /// Removes a file, which may be open for writing: what is written from now on is nobody's. At most one round trip,
    /// to learn what is removed.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`, `ReadOnly`; what the source says when it is asked.
    pub async fn remove(self: &Arc<Self>, path: &TreePath) -> Result<()> {
        let live = self.live.at(path);
        let detached = live.as_ref().and_then(|live| live.detach(self));
        match self.remove_here(path).await {
            Err(error) if error.kind() == ErrorKind::NotFound && detached.is_some() => Ok(()),
            Err(error) => {
                if let (Some(live), Some(place)) = (live, detached) {
                    live.reattach(self, place);
                }
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Whether a directory of this path was removed here, and nothing was written at or below it since.
    pub(super) fn was_removed(&self, path: &TreePath) -> bool {
        self.gone.contains(path, self.parts.clock.monotonic())
    }

    /// Whether an entry of a directory is a directory that was removed here.
    pub(crate) fn is_gone(&self, directory: &TreePath, entry: &Entry) -> bool {
        let may_be = entry.kind == EntryKind::Directory && !self.gone.is_empty();
        may_be && self.was_removed(&directory.join(&entry.name))
    }

    /// What was found at a path, unless that is a directory that was removed here.
    pub(crate) fn unless_gone(&self, path: &TreePath, found: Result<Item>) -> Result<Item> {
        match matches!(found, Ok(Item::Directory)) && self.was_removed(path) {
            true => Err(Error::new(ErrorKind::NotFound, format!("stat {path}"), "it was removed")),
            false => found,
        }
    }

    /// Whether anything is in a directory, open for writing or not.
    async fn has_names(self: &Arc<Self>, directory: &TreePath) -> Result<bool> {
        if !self.live.below(directory).is_empty() {
            return Ok(true);
        }
        let mut after = None;
        loop {
            let page = self.list(directory, after.as_deref(), LOOKED_AT).await?;
            if !page.entries.is_empty() {
                return Ok(true);
            }
            after = page.next;
            if after.is_none() {
                return Ok(false);
            }
        }
    }

    /// Keeps the directory of what was just removed: that of a store goes with the last object in it. Where that fails,
    /// the directory is gone a while later, and nothing else.
    pub(crate) async fn keep_directory(self: &Arc<Self>, removed: &TreePath) {
        let Some(directory) = removed.parent() else { return };
        let Ok((attached, inner)) = self.writable_at(&directory) else { return };
        if attached.health.failed_ago().is_some_and(|ago| ago < AWAY) {
            return;
        }
        match self.has_names(&directory).await {
            Ok(true) => return,
            Err(error) if error.kind() != ErrorKind::NotFound => return,
            _ => {}
        }
        let kept = match self.marker_base(&attached, &directory, &inner).await {
            Ok(base) if base != Base::Absent && self.stat(&directory).await.is_ok() => Ok(()),
            Ok(base) => {
                let posix = self.posix_of_directory(&attached, &inner, "");
                self.put_marker(&directory, (&attached, &inner), base, posix).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::debug!(%error, path = %directory, "an empty directory is not kept");
        }
    }

    /// The attachment that a path may be written in, and the path in it.
    pub(crate) fn writable_at(&self, path: &TreePath) -> Result<(Arc<Attached>, String)> {
        let (attached, inner) = self.tree.find(path).ok_or_else(|| match self.tree.is_directory(path) {
            true => is_a_directory(path),
            false => nothing_attached(path),
        })?;
        attached.writable(path)?;
        super::check_visible(path)?;
        if inner.is_empty() || self.tree.is_directory(path) {
            return Err(Error::new(ErrorKind::Busy, format!("change {path}"), "something is attached there or below"));
        }
        Ok((attached, inner))
    }

    /// The object that keeps an empty directory.
    pub(super) fn marker(&self, path: &TreePath, attached: &Arc<Attached>, inner: &str) -> Result<Target> {
        let key = check_key(path, attached, attached.view.key_of(inner).map(|key| key.join(b"/")))?;
        Ok(Target { scope: Arc::clone(&attached.scope), attachment: attached.spec.id.clone(), key })
    }

    /// What a change of the object that keeps a directory replaces.
    pub(super) async fn marker_base(&self, attached: &Arc<Attached>, path: &TreePath, inner: &str) -> Result<Base> {
        // One with content is a file of a strange name.
        let found = self.marker_at(attached, path, inner).await?.filter(|found| found.size == 0);
        Ok(found.map_or(Base::Absent, |found| base_of(&found.version)))
    }

    /// The object that keeps a directory, as it was staged here lately or the source says.
    pub(super) async fn marker_at(
        &self,
        attached: &Arc<Attached>,
        path: &TreePath,
        inner: &str,
    ) -> Result<Option<ObjectAttributes>> {
        let target = self.marker(path, attached, inner)?;
        match self.stage.overlay(&target.scope).at(target.key.as_bytes()) {
            Some(laid) => Ok(laid.attributes),
            None => self.timely(attached, path, attached.view.ask_marker(&target.key)).await,
        }
    }

    /// The change that makes a directory stay, with what is said of it.
    pub(super) fn marker_written(
        &self,
        target: Target,
        base: Base,
        attached: &Attached,
        path: &TreePath,
        posix: Posix,
    ) -> Result<Written> {
        let (durability, modified_ms) = (attached.writable(path)?.durability, self.parts.clock.wall_ms());
        Ok(Written {
            target,
            base,
            exclusive: false,
            only_onto_base: false,
            durability,
            modified_ms,
            metadata: posix.metadata(),
        })
    }

    async fn put_marker(
        self: &Arc<Self>,
        path: &TreePath,
        (attached, inner): (&Arc<Attached>, &str),
        base: Base,
        posix: Posix,
    ) -> Result<()> {
        let target = self.marker(path, attached, inner)?;
        let written = self.marker_written(target, base, attached, path, posix)?;
        self.gone.revive(path);
        let made = tokio::task::block_in_place(|| self.stage.commit_small(Bytes::new(), written))?;
        self.announce(path).await;
        self.promised(&made).await
    }

    /// A directory was removed here: who asks the source may be told otherwise for a while.
    pub(super) fn forget_directory(&self, path: &TreePath, attached: &Attached) {
        /// The source has heard of it by then, or is away.
        const HEARD: Duration = Duration::from_secs(60);
        let until = match attached.spec.freshness {
            Freshness::Seconds(seconds) => {
                let fresh = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
                self.parts.clock.monotonic().saturating_add(fresh).saturating_add(HEARD)
            }
            Freshness::Immutable => Duration::MAX,
        };
        self.gone.add(path, until);
    }

    /// What has a name, open for writing or not; `None` for nothing. For `certain`, or as far as that is known while the
    /// source is away.
    pub(crate) async fn kind_at(
        &self,
        path: &TreePath,
        place: (&Arc<Attached>, &str),
        certain: bool,
    ) -> Result<Option<EntryKind>> {
        if self.live.at(path).is_some() {
            return Ok(Some(EntryKind::File));
        }
        Ok(match self.look_before_writing(path, place, certain).await? {
            Some(Item::Directory) if self.was_removed(path) => None,
            Some(Item::Directory) => Some(EntryKind::Directory),
            Some(Item::File { .. }) => Some(EntryKind::File),
            None => None,
        })
    }

    /// Does work that blocks, in another thread: for who may be polled by a thread that speaks to a kernel.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let done = self.parts.runtime.spawn_blocking(work).await;
        done.unwrap_or_else(
            |error| Err(Error::new(ErrorKind::Internal, "write", error.to_string()).advise("report it")),
        )
    }
}
