//! Mode, owner and time of directories: kept in the metadata of the object that keeps an empty one, which is made where
//! there is none. Nobody is asked for it to show a directory: what was said here, or came with an answer about that object,
//! is shown.

use std::sync::Arc;

use bytes::Bytes;
use penstock_source::is_weak;
use penstock_stage::{Base, Change, Written};
use penstock_types::{Error, ErrorKind, ObjectAttributes, Posix, Result, TreePath};

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::entry::EntryKind;
use crate::write::lookups::AWAY;
use crate::write::{TRIES_MAX, base_of};

impl Engine {
    /// What was said of the directory `name` below the directory `above` of an attachment, as far as this node knows.
    /// Nothing of where something is attached.
    ///
    /// Cost: nothing where nothing was said of anything and nothing is staged; else a look into both.
    pub(crate) fn posix_of_directory(&self, attached: &Attached, above: &str, name: &str) -> Posix {
        let changes = self.stage.overlay(&attached.scope);
        let is_root = above.is_empty() && name.is_empty();
        if is_root || (changes.is_empty() && !self.catalog.knows_adorned()) {
            return Posix::default();
        }
        let inner = match (above, name) {
            ("", inner) | (inner, "") => inner.to_owned(),
            (above, name) => format!("{above}/{name}"),
        };
        let Ok(key) = attached.view.key_of(&inner).map(|key| key.join(b"/")) else { return Posix::default() };
        let Some(laid) = changes.at(key.as_bytes()) else {
            return attached.view.said_of_marker(&key, None).unwrap_or_default();
        };
        // It was removed here.
        let Some(laid_object) = laid.attributes else { return Posix::default() };
        let others = laid.settled.and_then(|_| attached.view.said_of_marker(&key, Some(laid_object.modified_ms)));
        others.unwrap_or_else(|| self.posix_of(attached, &key, &laid_object.version))
    }

    /// Whether what is said of a directory is kept: not of where something is attached, or above that.
    pub(crate) fn keeps_posix_of(&self, directory: &TreePath) -> bool {
        let is_below = self.tree.find(directory).is_some_and(|(_, inner)| !inner.is_empty());
        is_below && !self.tree.is_directory(directory)
    }

    /// Says something anew of the attributes of a directory. Durable as declared when this returns. Up to two round trips,
    /// to learn what is there.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, `ReadOnly`; `Busy` for where something is attached; `Unsupported` where the source
    /// keeps no metadata, or cannot change the object on condition; `Disk`; what the source says.
    pub async fn set_posix_of_directory(self: &Arc<Self>, path: &TreePath, posix: Posix) -> Result<()> {
        let action = || format!("change attributes of the directory {path}");
        for _ in 0..TRIES_MAX {
            match self.adorn_directory(path, posix).await {
                Ok(change) => {
                    self.announce(path).await;
                    return self.promised(&change).await.map_err(|error| error.during(action()));
                }
                Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::StaleVersion) => {
                    if !self.keeps_posix_of(path) {
                        return Err(error.during(action()));
                    }
                }
                Err(error) => return Err(error.during(action())),
            }
        }
        Err(Error::new(ErrorKind::Busy, action(), "others change it all the time").advise("try again"))
    }

    async fn adorn_directory(self: &Arc<Self>, path: &TreePath, posix: Posix) -> Result<Arc<Change>> {
        let refuse = |kind, reason: &str| Err(Error::new(kind, format!("change {path}"), reason));
        let (attached, inner) = self.writable_at(path)?;
        match self.kind_at(path, (&attached, &inner), false).await? {
            Some(EntryKind::Directory) => {}
            Some(EntryKind::File) => return refuse(ErrorKind::NotADirectory, "it is a file"),
            None => return refuse(ErrorKind::NotFound, "nothing has that name"),
        }
        if attached.view.set_holding(&inner).is_some() {
            return refuse(ErrorKind::ReadOnly, "it is a set of files, which changes as a whole or not at all");
        }
        if !attached.source.capabilities().metadata {
            return refuse(ErrorKind::Unsupported, "the source keeps no metadata");
        }
        let base = match self.marker_if_told(&attached, path, &inner).await? {
            Some(found) if found.size > 0 => {
                return refuse(ErrorKind::Unsupported, "its object in the source has a content, and is a file");
            }
            Some(found) if is_weak(&found.version) => {
                let reason = "its object has no ETag, so that the store cannot be asked to change this version only";
                return refuse(ErrorKind::Unsupported, reason);
            }
            found => found.map_or(Base::Absent, |found| base_of(&found.version)),
        };
        // Known by now, if anything is.
        let said = self.posix_of_directory(&attached, &inner, "").merged(posix);
        let target = self.marker(path, &attached, &inner)?;
        self.live.settle_first(&target, self.parts.clock.monotonic());
        let written = Written { only_onto_base: true, ..self.marker_written(target, base, &attached, path, said)? };
        let me = Arc::clone(self);
        self.blocking(move || me.adorn_marker(written, posix)).await
    }

    /// The object that keeps a directory, as far as that is known while the source is away: should there be one that is not
    /// known, the upload finds it, and says of that what is said.
    async fn marker_if_told(
        &self,
        attached: &Arc<Attached>,
        path: &TreePath,
        inner: &str,
    ) -> Result<Option<ObjectAttributes>> {
        let target = self.marker(path, attached, inner)?;
        let is_away = attached.health.failed_ago().is_some_and(|ago| ago < AWAY);
        if is_away && self.stage.overlay(&target.scope).at(target.key.as_bytes()).is_none() {
            return Ok(None);
        }
        match self.marker_at(attached, path, inner).await {
            Err(error) if error.is_transient() => Ok(None),
            found => found,
        }
    }

    /// Commits what is said of a directory: as a copy of its object onto itself where the source has one or will have, as
    /// the object where that is not on its way. Blocks.
    fn adorn_marker(&self, written: Written, posix: Posix) -> Result<Arc<Change>> {
        if written.base != Base::Absent {
            match self.stage.adorn(Written { metadata: Vec::new(), ..written.clone() }, 0, posix) {
                Err(error) if error.kind() == ErrorKind::Busy => {}
                adorned => return adorned,
            }
        }
        self.stage.commit_small(Bytes::new(), written)
    }
}
