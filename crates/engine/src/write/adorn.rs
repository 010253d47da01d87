//! Attributes of POSIX programs: mode, owner and time of files, which are kept in the metadata of objects. A change of
//! them alone costs a sync here, and one copy of the object onto itself by its source afterwards.

use std::sync::Arc;

use penstock_catalog::Item;
use penstock_source::is_weak;
use penstock_stage::{Base, Change, Target, Written};
use penstock_types::{Error, ErrorKind, ObjectAttributes, ObjectKey, Posix, Result, TreePath, Version};
use tokio::task::block_in_place;

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::entry::Entry;
use crate::live::{LiveFile, Opening};
use crate::open::stale;
use crate::write::{Place, TRIES_MAX, WriteOptions, is_staged};

impl Engine {
    /// What was said of the attributes of a version, as far as this node knows.
    pub(crate) fn posix_of(&self, attached: &Attached, key: &ObjectKey, version: &Version) -> Posix {
        let (mut said, mut at) = (Posix::default(), (key.clone(), version.clone()));
        while is_staged(&at.1) {
            let Some(change) = self.stage.find(&attached.scope, &at.0, &at.1) else { return said };
            said = change.posix().merged(said);
            let Some(original) = change.original().filter(|_| change.is_copy()) else { return said };
            at = (original.key, original.version);
        }
        let (key, version) = at;
        self.posix_in_source(attached, &key, &version).unwrap_or_default().merged(said)
    }

    /// An item under the name a reader uses, with what was said of it. It is at the path `below` of the directory `above` of
    /// the attachment.
    pub(crate) fn entry(
        &self,
        attached: &Attached,
        (above, below): (&str, &str),
        name: impl Into<String>,
        item: Item,
    ) -> Entry {
        let said = match &item {
            Item::File { key, attributes } => self.posix_of(attached, key, &attributes.version),
            Item::Directory => self.posix_of_directory(attached, above, below),
        };
        Entry::of(name, item, said)
    }

    /// What was said of a version that the source has; `None` where nothing is known of it.
    fn posix_in_source(&self, attached: &Attached, key: &ObjectKey, version: &Version) -> Option<Posix> {
        let target =
            || Target { scope: Arc::clone(&attached.scope), attachment: attached.spec.id.clone(), key: key.clone() };
        let lately = || self.stage.settled_posix(&target(), version);
        if !self.catalog.knows_adorned() {
            return None;
        }
        lately().or_else(|| attached.view.adorned(key, version))
    }

    /// Keeps what was said of a version that its source has from now on.
    pub(super) fn note_posix(&self, attached: &Attached, key: &ObjectKey, attributes: &ObjectAttributes, posix: Posix) {
        match posix.is_empty() && !attached.spec.posix {
            true => self.catalog.strip(&attached.scope, key),
            false => self.catalog.adorn(&attached.scope, key, attributes, posix),
        }
    }

    /// Keeps what the journal says of versions that sources got lately: the catalog may have lost its last second.
    pub(crate) fn recall_posix(&self) {
        for (target, attributes, posix) in self.stage.settled_adorned() {
            self.catalog.adorn(&target.scope, &target.key, &attributes, posix);
        }
    }

    /// What was said of what a place replaces; nothing where nothing is there.
    pub(crate) fn posix_at(&self, place: &Place, base: &Base) -> Posix {
        let Some((attached, _)) = self.tree.find(&place.path) else { return Posix::default() };
        match base {
            Base::Staged(operation) => self.posix_of(&attached, &place.target.key, &operation.version()),
            Base::Version(version) => self.posix_of(&attached, &place.target.key, version),
            Base::Absent | Base::Unconditional => Posix::default(),
        }
    }

    /// Says something anew of the attributes of a file that nobody has open for writing; with `meant`, of that version
    /// only. Durable as declared when this returns. No request where it is known what has the name.
    ///
    /// # Errors
    /// `StaleVersion` where something else has the name; `NotFound`, `IsADirectory`, `ReadOnly`; `Unsupported` where
    /// the source keeps no metadata, or cannot change this object on condition; `Disk`; at `source` what the source says.
    pub async fn set_posix(
        self: &Arc<Self>,
        path: &TreePath,
        meant: Option<&Version>,
        posix: Posix,
    ) -> Result<Version> {
        let action = || format!("change attributes of {path}");
        for _ in 0..TRIES_MAX {
            let place =
                self.place(path, WriteOptions::default(), false).await.map_err(|error| error.during(action()))?;
            let base = self.base_now(&place);
            if base == Base::Absent {
                return Err(Error::new(ErrorKind::NotFound, action(), "nothing has that name"));
            }
            if meant.is_some_and(|meant| !self.is_same(&place, &base, meant)) {
                return Err(stale(path, meant.unwrap_or(&Version("".into()))).during(action()));
            }
            let is_new = self.is_new_content(&place, &base);
            let committed = match self.adorn(&place, base, posix).await {
                // It is not on its way yet: what is said goes with it.
                Err(error) if error.kind() == ErrorKind::Busy && is_new => {
                    self.adorn_new_content(path, posix).await.map(Some)
                }
                committed => committed,
            };
            match committed {
                Ok(Some(change)) => {
                    self.announce(path).await;
                    self.promised(&change).await.map_err(|error| error.during(action()))?;
                    return Ok(change.version());
                }
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Busy => {}
                Err(error) => return Err(error.during(action())),
            }
        }
        Err(Error::new(ErrorKind::Busy, action(), "others change it all the time").advise("try again"))
    }

    /// Whether what a place replaces is the content of `meant`, perhaps with other attributes.
    fn is_same(&self, place: &Place, base: &Base, meant: &Version) -> bool {
        let has_become = || self.stage.settled_version(&place.target, meant);
        match base {
            Base::Version(version) => version == meant || has_become().as_ref() == Some(version),
            Base::Staged(operation) => {
                let staged = operation.version();
                let change = self.stage.find(&place.target.scope, &place.target.key, &staged);
                let adorned = change.filter(|change| change.is_of_itself()).and_then(|change| change.original());
                staged == *meant || adorned.is_some_and(|original| original.version == *meant)
            }
            Base::Absent | Base::Unconditional => false,
        }
    }

    /// Whether what a place replaces is a content that waits for its upload.
    fn is_new_content(&self, place: &Place, base: &Base) -> bool {
        let Base::Staged(operation) = base else { return false };
        let change = self.stage.find(&place.target.scope, &place.target.key, &operation.version());
        change.is_some_and(|change| !change.is_copy())
    }

    /// Commits a content that waits for its upload again, with other attributes.
    async fn adorn_new_content(self: &Arc<Self>, path: &TreePath, posix: Posix) -> Result<Arc<Change>> {
        let live = LiveFile::open(self, path, Opening::Existing, false).await?;
        live.set_posix(posix);
        let committed = block_in_place(|| live.commit());
        block_in_place(|| live.release());
        let nothing = || Error::new(ErrorKind::Busy, format!("change {path}"), "it was changed just now");
        Ok(committed?.ok_or_else(nothing)?.1)
    }

    /// Commits a change of attributes alone; `None` where it is not known any more what is changed.
    async fn adorn(self: &Arc<Self>, place: &Place, base: Base, posix: Posix) -> Result<Option<Arc<Change>>> {
        let Some(found) = self.found_as(place, &base) else { return Ok(None) };
        self.live.settle_first(&place.target, self.parts.clock.monotonic());
        let (me, place) = (Arc::clone(self), place.clone());
        let found = (found.size, found.modified_ms);
        self.blocking(move || me.adorn_now(&place, base, found, posix)).await.map(Some)
    }

    /// Size and time of what a place replaces.
    fn found_as(&self, place: &Place, base: &Base) -> Option<ObjectAttributes> {
        let change = match base {
            Base::Staged(operation) => self.stage.find(&place.target.scope, &place.target.key, &operation.version()),
            _ => None,
        };
        let staged = change.and_then(|change| change.attributes());
        staged.or_else(|| place.found.clone().filter(|found| crate::write::base_of(&found.version) == *base))
    }

    /// As [`Engine::set_posix`], of what has this size and time. Blocks.
    ///
    /// # Errors
    /// As those; `Busy` where it was changed just now, or is a content whose upload was not begun.
    pub(crate) fn adorn_now(
        &self,
        place: &Place,
        base: Base,
        (size, modified_ms): (u64, i64),
        posix: Posix,
    ) -> Result<Arc<Change>> {
        let (attached, _) = self.tree.find(&place.path).ok_or_else(|| crate::engine::nothing_attached(&place.path))?;
        let refuse = |reason: &str| Err(Error::new(ErrorKind::Unsupported, format!("change {}", place.path), reason));
        if !attached.source.capabilities().metadata {
            return refuse("the source keeps no metadata");
        }
        if matches!(&base, Base::Version(version) if is_weak(version)) {
            return refuse("the object has no ETag, so that the store cannot be asked to change this version only");
        }
        let modified_ms = posix.modified_ms().unwrap_or(modified_ms);
        let written = Written { base, modified_ms, metadata: Vec::new(), ..self.written(place)? };
        self.stage.adorn(written, size, posix)
    }
}
