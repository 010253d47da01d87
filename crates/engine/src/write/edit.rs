//! Files that clients change in part or append to: what is committed goes on from the version that was opened, and takes the
//! place of no other.

use std::sync::Arc;

use penstock_stage::{Base, Patch, Written};
use penstock_types::{Durability, Error, ErrorKind, Result, TreePath, Version};

use super::{Place, WriteOptions, Writing, base_of};
use crate::engine::Engine;
use crate::entry::Entry;
use crate::open::OpenOptions;

impl Engine {
    /// Begins to change a version of a file. All of it is there to be read and written, or of a large one that the source
    /// can copy from what is written: then with which bytes are its own. At most one round trip, to learn what has the
    /// name; brings a file of up to 64 MiB.
    ///
    /// # Errors
    /// As [`Engine::create`]; `StaleVersion` where something else has the name.
    pub async fn edit(
        self: &Arc<Self>,
        path: &TreePath,
        version: &Version,
        durability: Option<Durability>,
    ) -> Result<(Writing, Option<Patch>)> {
        let edited = async {
            let place = self.place(path, WriteOptions { exclusive: false, durability }, false).await?;
            if place.base != base_of(version) {
                return Err(changed());
            }
            let options = OpenOptions { version: Some(version.clone()), ..OpenOptions::default() };
            let file = self.open(path, options).await?;
            let draft = self.draft_onto(&place, file).await?;
            let patch = draft.over().map(|over| over.patch().clone());
            Ok((self.writing(place, draft, true), patch))
        };
        edited.await.map_err(|error: Error| error.during(format!("write {path}")))
    }

    /// What is committed at a place is made of its base, or nothing is.
    fn written_onto(&self, place: &Place) -> Result<Written> {
        let laid = self.stage.overlay(&place.target.scope).at(place.target.key.as_bytes());
        // Whether a change of ours is still the newest, the stage knows.
        let is_same = matches!(place.base, Base::Staged(_)) || laid == place.laid || laid.is_none() || {
            let now = laid.and_then(|laid| laid.attributes);
            now.is_some_and(|now| base_of(&now.version) == place.base)
        };
        if !is_same {
            return Err(changed());
        }
        let metadata = self.posix_at(place, &place.base).without_time().metadata();
        Ok(Written { base: place.base.clone(), only_onto_base: true, metadata, ..self.written(place)? })
    }
}

impl Writing {
    /// As [`Writing::commit`], of a file of which `patch` are its own bytes.
    ///
    /// # Errors
    /// As those; `StaleVersion` where the file was changed since; `InvalidInput` for what cannot be such a patch.
    pub async fn commit_patched(&self, patch: Patch) -> Result<Entry> {
        {
            let draft = self.draft.lock().expect("no panic while a draft is looked at");
            let over = draft.as_ref().ok_or_else(|| self.committed_already())?.over();
            let mut known = over.map(|over| over.patch()).filter(|known| patch.may_follow(known));
            let refused = || Error::new(ErrorKind::InvalidInput, self.action(), "those cannot be its own bytes");
            **known.as_mut().ok_or_else(refused)? = patch;
        }
        self.commit().await
    }

    pub(super) async fn commit_onto(&self) -> Result<Entry> {
        let written = self.engine.written_onto(&self.place)?;
        let draft = self.draft.lock().expect("no panic while a draft is taken").take();
        let draft = draft.ok_or_else(|| self.committed_already())?;
        let commit = || self.engine.stage.commit_all(vec![(draft, written)], Vec::new());
        let committed = tokio::task::block_in_place(commit).map(|mut changes| changes.remove(0));
        self.engine.acknowledge(&self.place, committed).await
    }
}

fn changed() -> Error {
    Error::new(ErrorKind::StaleVersion, "write", "it was changed after it was opened to be changed")
        .advise("open it again, and change what is there now")
}
