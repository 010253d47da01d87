//! Looking at sets: which there are, where each one is, what is in it, and what was left behind.

use std::sync::Arc;

use penstock_catalog::SetPlace;
use penstock_types::{
    Error, ErrorKind, ListRequest, ObjectKey, Result, SET_DATA_MARK, SetFile, TreePath, set_of_data, set_of_manifest,
};
use serde::{Deserialize, Serialize};

use super::{SetAt, begun_ms};
use crate::attachment::Attached;
use crate::engine::Engine;
use crate::write::is_staged;

/// Names of one page of the walk that finds sets.
const PAGE_NAMES: usize = 8192;

/// Where a set is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetState {
    /// On this node alone.
    Staged,
    /// A part of it is in the source; others see nothing of it yet.
    Uploading,
    /// The source has it: everybody sees it.
    Source,
    /// It cannot get into the source; its files are kept.
    Conflict,
    /// It was not published: nobody sees it. It is being written, or was left behind.
    Unpublished,
}

/// One set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetStatus {
    /// Where it is, or would be; of one that was not published, the directory that it was begun in.
    pub path: String,
    /// Names the place of its bytes.
    pub id: String,
    /// Where it is.
    pub state: SetState,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub size_bytes: u64,
    /// Bytes that the source has not got.
    pub left_bytes: u64,
    /// When it was published, or begun, milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// What was promised; empty for one that was not published.
    pub durability: String,
    /// Why the last try to upload it failed, or what is in the way.
    pub failure: Option<String>,
}

/// Some files of a set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetFiles {
    /// Names the place of its bytes.
    pub id: String,
    /// In the order of their paths.
    pub files: Vec<SetFile>,
    /// Ask for the page after this path; `None` at the end.
    pub next: Option<String>,
}

impl Engine {
    /// The sets at and below a path, and what was begun in its directories and not published; without the latter where
    /// the source is away.
    ///
    /// # Errors
    /// `NotFound` where nothing is attached; what the source says.
    /// Cost: that of a walk of the path, and a listing of the directories that have sets.
    pub async fn sets(self: &Arc<Self>, path: &TreePath) -> Result<Vec<SetStatus>> {
        self.look_for_sets(path, false).await
    }

    async fn look_for_sets(self: &Arc<Self>, path: &TreePath, all: bool) -> Result<Vec<SetStatus>> {
        let mut found = Vec::new();
        let mut places: Vec<(Arc<Attached>, String)> = self.tree.find(path).into_iter().collect();
        if places.is_empty() && !self.tree.is_directory(path) {
            return Err(crate::engine::nothing_attached(path));
        }
        places.extend(self.tree.below(path).into_iter().map(|attached| (attached, String::new())));
        for (attached, inner) in places {
            self.walk_all(path, &attached, &inner).await?;
            let sets = attached.view.sets_below(&inner);
            let mut directories: Vec<Vec<u8>> = sets.iter().map(|set| set.directory.as_bytes().to_vec()).collect();
            if let Ok(own) = attached.view.key_of(&inner) {
                directories.push(if inner.is_empty() {
                    own.as_bytes().to_vec()
                } else {
                    own.join(b"/").as_bytes().to_vec()
                });
            }
            found.extend(sets.iter().map(|set| self.status_of(&attached, set)));
            found.extend(self.in_conflict(&attached, &inner));
            directories.sort();
            directories.dedup();
            for directory in directories {
                match self.unpublished(&attached, &directory, &mut found).await {
                    // Those who wait for it to come back want to see what waits here.
                    Err(error) if error.is_transient() && !all => {
                        tracing::debug!(%error, "what was not published is not known");
                    }
                    other => other?,
                }
            }
        }
        found.sort_by(|a, b| (a.created_ms, &a.path).cmp(&(b.created_ms, &b.path)));
        found.dedup_by(|a, b| a.id == b.id);
        Ok(found)
    }

    /// The files of a set, after a path of one, at most so many.
    ///
    /// # Errors
    /// `NotFound` where there is no set; what the source says.
    pub async fn set_files(self: &Arc<Self>, path: &TreePath, after: Option<&str>, limit: usize) -> Result<SetFiles> {
        self.stat(path).await?;
        let found = self.tree.find(path).and_then(|(attached, inner)| {
            let set = attached.view.set_holding(&inner)?;
            (attached.view.path_of_set(&set)? == inner).then_some(set)
        });
        let set = found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("look into the set {path}"), "it is no set")
                .advise("penstock ckpt ls shows what is")
        })?;
        let files = &set.manifest.files;
        let start = after.map_or(0, |after| files.partition_point(|file| file.path.as_str() <= after));
        let end = files.len().min(start + limit);
        let next = (end < files.len()).then(|| files[end - 1].path.clone());
        Ok(SetFiles { id: set.manifest.id.clone(), files: files[start..end].to_vec(), next })
    }

    async fn walk_all(&self, path: &TreePath, attached: &Attached, inner: &str) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            let walked = self.timely(attached, path, attached.view.walk(inner, after.as_deref(), PAGE_NAMES)).await;
            match walked {
                Ok(page) => after = page.next,
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
                Err(error) => return Err(error),
            }
            if after.is_none() {
                return Ok(());
            }
        }
    }

    fn status_of(&self, attached: &Attached, set: &SetPlace) -> SetStatus {
        let scope = &attached.scope;
        let pending = self.stage.pending_below(scope, set.data.as_bytes());
        let left_bytes = pending.iter().filter_map(|change| change.size()).sum();
        let manifest = self.stage.pending_below(scope, set.key.as_bytes());
        let manifest = manifest.iter().find(|change| change.target().key == set.key);
        let state = match (manifest.is_some() || is_staged(&set.attributes.version), left_bytes == set.manifest.size())
        {
            (false, _) => SetState::Source,
            (true, true) if !pending.is_empty() => SetState::Staged,
            (true, _) => SetState::Uploading,
        };
        let failure = pending.iter().chain(manifest).find_map(|change| change.failure());
        SetStatus {
            path: format!("{}/{}", attached.path, attached.view.path_of_set(set).unwrap_or_default()),
            id: set.manifest.id.clone(),
            state,
            files: set.manifest.files.len() as u64,
            size_bytes: set.manifest.size(),
            left_bytes: if state == SetState::Source { 0 } else { left_bytes },
            created_ms: set.manifest.created_ms,
            durability: set.manifest.durability.clone(),
            failure: failure.map(|error| error.reason().to_owned()),
        }
    }

    /// The sets whose manifests are in conflict.
    fn in_conflict(&self, attached: &Attached, inner: &str) -> Vec<SetStatus> {
        let Ok(prefix) = attached.view.key_of(inner) else { return Vec::new() };
        let changes = self.stage.conflicts_below(&attached.scope, prefix.as_bytes()).into_iter();
        let told = changes.filter(|change| Self::is_manifest(change)).filter_map(|change| {
            let (directory, name) = set_of_manifest(change.target().key.as_bytes())?;
            let manifest = penstock_types::Manifest::decode(&crate::write::read_staged(&change).ok()?).ok()?;
            let path = attached.view.path_of(&ObjectKey::new([directory, name.as_bytes()].concat()))?;
            Some(SetStatus {
                path: format!("{}/{path}", attached.path),
                id: manifest.id.clone(),
                state: SetState::Conflict,
                files: manifest.files.len() as u64,
                size_bytes: manifest.size(),
                left_bytes: 0,
                created_ms: manifest.created_ms,
                durability: manifest.durability.clone(),
                failure: change.failure().map(|error| error.reason().to_owned()),
            })
        });
        told.collect()
    }

    /// Bytes in a directory that belong to no set that is published.
    async fn unpublished(&self, attached: &Arc<Attached>, directory: &[u8], found: &mut Vec<SetStatus>) -> Result<()> {
        let path = match directory.strip_suffix(b"/") {
            Some(key) => attached.view.path_of(&ObjectKey::new(key.to_vec())).unwrap_or_default(),
            None => String::new(),
        };
        for id in self.ids_in(attached, directory).await? {
            if found.iter().any(|known| known.id == id) {
                continue;
            }
            let at = SetAt { attached: Arc::clone(attached), directory: directory.to_vec(), name: String::new() };
            let files = self.files_of(&at, &id, true).await?;
            if files.is_empty() {
                continue;
            }
            let left = files.values().filter(|attributes| is_staged(&attributes.version));
            found.push(SetStatus {
                path: format!("{}/{path}", attached.path).trim_end_matches('/').to_owned(),
                state: SetState::Unpublished,
                files: files.len() as u64,
                size_bytes: files.values().map(|attributes| attributes.size).sum(),
                left_bytes: left.map(|attributes| attributes.size).sum(),
                created_ms: begun_ms(&id).unwrap_or(0),
                durability: String::new(),
                failure: None,
                id,
            });
        }
        Ok(())
    }

    /// The ids of all places of bytes in a directory, in the source or staged.
    async fn ids_in(&self, attached: &Attached, directory: &[u8]) -> Result<Vec<String>> {
        let prefix = [directory, SET_DATA_MARK.as_bytes()].concat();
        let mut ids = Vec::new();
        let mut request = ListRequest {
            prefix: ObjectKey::new(prefix.clone()),
            delimited: true,
            limit: 1000,
            ..ListRequest::default()
        };
        loop {
            let page = attached.source.list(request.clone()).await?;
            ids.extend(page.prefixes.iter().filter_map(|key| Some(set_of_data(key.as_bytes())?.1.to_owned())));
            request.continuation = page.continuation;
            if request.continuation.is_none() {
                break;
            }
        }
        let overlay = self.stage.overlay(&attached.scope);
        let mut next = overlay.next(&prefix, true);
        while let Some((key, _)) = next.filter(|(key, _)| key.starts_with(&prefix)) {
            let Some((_, id, _)) = set_of_data(&key) else { break };
            ids.push(id.to_owned());
            next = overlay.next(&[directory, SET_DATA_MARK.as_bytes(), id.as_bytes(), b"0"].concat(), true);
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// Removes the bytes of a set that was begun in a directory and never published.
    ///
    /// # Errors
    /// `NotFound` where nothing of it is there; what the source or the disk says.
    pub async fn remove_unpublished(self: &Arc<Self>, directory: &TreePath, id: &str) -> Result<u64> {
        super::check_id(id)?;
        let known = self.look_for_sets(directory, true).await?;
        let is_it = |known: &&SetStatus| known.id == id && known.state == SetState::Unpublished;
        if known.iter().find(is_it).is_none() {
            let action = format!("remove what was left of a set in {directory}");
            return Err(Error::new(ErrorKind::NotFound, action, "nothing of that id was left"));
        }
        let (attached, inner) = self.tree.find(directory).ok_or_else(|| crate::engine::nothing_attached(directory))?;
        attached.writable(directory)?;
        let own = attached.view.key_of(&inner)?;
        let key = if inner.is_empty() { own } else { own.join(b"/") };
        let at = SetAt { attached, directory: key.as_bytes().to_vec(), name: String::new() };
        if self.is_in_source(&at, id).await? {
            let action = format!("remove what was left of a set in {directory}");
            return Err(Error::new(ErrorKind::InvalidInput, action, "it was published meanwhile"));
        }
        let files = self.files_of(&at, id, true).await?;
        let removals = self.removals(&at, id, &files);
        let me = Arc::clone(self);
        self.blocking(move || me.stage.commit_all(Vec::new(), removals)).await?;
        self.sets.state().open.remove(id);
        Ok(files.len() as u64)
    }
}
