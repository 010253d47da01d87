//! The manifest of a set goes into the source when all of its files are there, and names the versions that they have
//! there.

use std::sync::Arc;

use bytes::Bytes;
use penstock_stage::Change;
use penstock_types::{
    Error, ErrorKind, Manifest, ObjectAttributes, ObjectKey, Precondition, PutRequest, Result, set_of_manifest,
};

use super::publish::list_files;
use super::{SET_METADATA, data_prefix};
use crate::attachment::Attached;
use crate::engine::Engine;
use crate::write::{metadata, read_staged};

impl Engine {
    /// Whether a change is the manifest of a set.
    pub(crate) fn is_manifest(change: &Change) -> bool {
        let is_named = || change.metadata().iter().any(|(name, _)| name == SET_METADATA);
        set_of_manifest(change.target().key.as_bytes()).is_some() && is_named()
    }

    /// Puts a manifest: one listing of the files, one put.
    ///
    /// # Errors
    /// `Conflict` when a file of the set is not in the source as it was written, or another set has the name; what the
    /// source says.
    pub(crate) async fn put_manifest(&self, attached: &Attached, change: &Arc<Change>) -> Result<ObjectAttributes> {
        let key = &change.target().key;
        let action = || format!("upload {}", attached.describe(key));
        let (directory, _) = set_of_manifest(key.as_bytes())
            .ok_or_else(|| Error::new(ErrorKind::Internal, action(), "it is no manifest").advise("report it"))?;
        let staged = Arc::clone(change);
        let text = self.blocking(move || read_staged(&staged)).await?;
        let mut manifest = Manifest::decode(&text)?;
        let data = data_prefix(directory, &manifest.id);
        if let Some(lost) = self.stage.conflicts_below(&change.target().scope, &data).first() {
            let reason = format!("a file of the set is in conflict: {}", attached.describe(&lost.target().key));
            return Err(Error::new(ErrorKind::Conflict, action(), reason));
        }
        let there = list_files(attached, &data).await?;
        for file in &mut manifest.files {
            let found = there.get(&file.path).filter(|found| found.size == file.size);
            let Some(found) = found else {
                let missing = attached.describe(&ObjectKey::new([&data[..], file.path.as_bytes()].concat()));
                let reason = format!("a file of the set is not in the source: {missing}");
                return Err(Error::new(ErrorKind::Conflict, action(), reason)
                    .advise("somebody removed it; commit the set again under another name"));
            };
            (file.modified_ms, file.version) = (found.modified_ms, found.version.clone());
        }
        let (body, precondition) = (Bytes::from(manifest.encode()), Precondition::Absent);
        let request = PutRequest { key: key.clone(), body, precondition, metadata: metadata(change) };
        let put = attached.source.put(request).await?;
        self.parts.metrics.uploads.inc();
        Ok(put)
    }

    /// The source has a manifest, or never will: the sets of its directory are looked at again.
    pub(crate) fn manifest_done(&self, change: &Change) {
        self.sets.done(change);
        let target = change.target();
        let Some((directory, _)) = set_of_manifest(target.key.as_bytes()) else { return };
        for attached in self.tree.all().iter().filter(|attached| attached.scope == target.scope) {
            self.set_changed(attached, directory);
        }
    }
}
