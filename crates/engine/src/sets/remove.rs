//! Removing a set: its manifest first, so that it is gone as a whole, then its bytes.

use std::sync::Arc;

use penstock_stage::Base;
use penstock_types::{Durability, Error, ErrorKind, ObjectAttributes, Result, TreePath};

use super::SetAt;
use super::publish::Files;
use crate::engine::Engine;
use crate::write::base_of;

impl Engine {
    /// Removes a set as a whole; the number of its files.
    ///
    /// # Errors
    /// `NotFound` where there is none; `ReadOnly`; what the source says when it is asked, and what the disk says.
    pub async fn remove_set(self: &Arc<Self>, path: &TreePath) -> Result<u64> {
        self.remove_set_here(path).await.map_err(|error| error.during(format!("remove the set {path}")))
    }

    async fn remove_set_here(self: &Arc<Self>, path: &TreePath) -> Result<u64> {
        let at = self.set_at(path)?;
        self.stat(path).await?;
        let inner = path.below(&at.attached.path).unwrap_or_default();
        let set = at
            .attached
            .view
            .set_holding(inner)
            .filter(|set| at.attached.view.path_of_set(set).as_deref() == Some(inner));
        let Some(set) = set else {
            return Err(Error::new(ErrorKind::NotFound, format!("remove the set {path}"), "it is no set"));
        };
        let (target, id) = (at.manifest(), set.manifest.id.clone());
        let overlay = self.stage.overlay(&target.scope);
        let newest = overlay.at(target.key.as_bytes()).and_then(|laid| laid.attributes);
        let base = base_of(&newest.unwrap_or_else(|| set.attributes.clone()).version);
        let written = self.files_of(&at, &id, false).await?;
        let own = set.manifest.files.iter().map(|file| {
            let told =
                ObjectAttributes { size: file.size, modified_ms: file.modified_ms, version: file.version.clone() };
            (file.path.clone(), told)
        });
        let mut files: Files = own.collect();
        files.extend(written);
        let durability = at.attached.writable(path)?.durability;
        let mut removals = vec![(target, base, durability)];
        removals.extend(self.removals(&at, &id, &files));
        let count = files.len() as u64;
        self.hold_bytes(&at, removals).await?;
        at.attached.view.set_removed(&set.directory, &at.name);
        self.announce(path).await;
        Ok(count)
    }

    /// Commits the removals of a manifest and of its bytes, which wait until the source has the first one.
    async fn hold_bytes(
        self: &Arc<Self>,
        at: &SetAt,
        removals: Vec<(penstock_stage::Target, Base, Durability)>,
    ) -> Result<()> {
        let place = (Arc::clone(&at.attached.scope), at.directory.clone());
        *self.sets.state().removing.entry(place.clone()).or_default() += 1;
        let me = Arc::clone(self);
        let committed = self.blocking(move || me.stage.commit_all(Vec::new(), removals)).await;
        let manifest = committed.as_ref().ok().and_then(|changes| changes.first().cloned());
        let (weak, waited) = (Arc::downgrade(self), manifest.clone());
        self.parts.runtime.spawn(async move {
            if let Some(manifest) = waited {
                let _ = manifest.done().await;
            }
            let Some(engine) = weak.upgrade() else { return };
            let mut state = engine.sets.state();
            if let Some(count) = state.removing.get_mut(&place) {
                *count -= 1;
                if *count == 0 {
                    state.removing.remove(&place);
                }
            }
        });
        committed?;
        match manifest {
            Some(manifest) => self.promised(&manifest).await,
            None => Ok(()),
        }
    }
}
