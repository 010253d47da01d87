//! Waiting until the source has what was written.

use std::sync::Arc;
use std::time::Duration;

use penstock_stage::{Change, Stage};
use penstock_types::{Durability, Error, ErrorKind, ObjectKey, Result, TreePath, is_set_name, manifest_key};
use tokio::time::Instant;

use crate::attachment::Attached;
use crate::engine::{Engine, nothing_attached};
use crate::pins::covers;

/// Objects that an error names at most.
const NAMED_MAX: usize = 3;

impl Engine {
    /// Waits until everything that was written at or below `path` before is in the source. Without a timeout, as long
    /// as that takes.
    ///
    /// # Errors
    /// `Conflict` when something cannot get there because somebody else's version is in the way; `Timeout` naming
    /// what is not there yet, and why.
    pub async fn persist(self: &Arc<Self>, path: &TreePath, timeout: Option<Duration>) -> Result<()> {
        let end = timeout.map(|timeout| Instant::now() + timeout);
        // In this order: what comes into conflict meanwhile is seen by one of the two looks.
        let waiting = self.changes_below(path, Stage::pending_below)?;
        if let Some((_, change)) = self.changes_below(path, Stage::conflicts_below)?.first() {
            let conflict = change.failure().unwrap_or_else(|| in_conflict(path));
            return Err(conflict.during(format!("persist {path}")));
        }
        let prefixes = self.prefixes_below(path)?;
        let _wanted: Vec<_> =
            prefixes.iter().map(|(attached, prefix)| self.live.want(&attached.scope, prefix)).collect();
        self.stage.hurry();
        for (position, (_, change)) in waiting.iter().enumerate() {
            let done = match end {
                Some(end) => tokio::time::timeout_at(end, change.done()).await,
                None => Ok(change.done().await),
            };
            match done {
                Ok(done) => done.map_err(|error| error.during(format!("persist {path}")))?,
                Err(_) => return Err(late(path, &waiting[position..])),
            }
        }
        Ok(())
    }

    /// Refuses what needs everything below `path` in the source.
    ///
    /// # Errors
    /// `Busy` while something is staged only.
    pub(crate) fn check_persisted(&self, path: &TreePath) -> Result<()> {
        let pending = self.changes_below(path, Stage::pending_below)?;
        if pending.is_empty() {
            return Ok(());
        }
        let reason = "files that were written below it are not in the source yet";
        Err(Error::new(ErrorKind::Busy, format!("freeze {path}"), reason)
            .advise(format!("penstock persist {path}"))
            .fact("files", pending.len()))
    }

    /// The changes that `look` finds of what is at or below a path.
    pub(crate) fn changes_below(
        &self,
        path: &TreePath,
        look: impl Fn(&Stage, &str, &[u8]) -> Vec<Arc<Change>>,
    ) -> Result<Vec<(Arc<Attached>, Arc<Change>)>> {
        let mut found = Vec::new();
        for (attached, prefix) in self.prefixes_below(path)? {
            // The manifest of a set comes after its files: who waits for that waits for all of it.
            for manifest in manifests_above(&prefix) {
                let changes = look(&self.stage, &attached.scope, &manifest).into_iter();
                let changes = changes.filter(|change| change.target().key.as_bytes() == manifest);
                found.extend(changes.map(|change| (Arc::clone(&attached), change)));
            }
            let changes = look(&self.stage, &attached.scope, &prefix).into_iter();
            let changes = changes.filter(|change| covers(&prefix, change.target().key.as_bytes()));
            found.extend(changes.map(|change| (Arc::clone(&attached), change)));
        }
        Ok(found)
    }

    /// The keys at or below a path: a prefix of each attachment there.
    fn prefixes_below(&self, path: &TreePath) -> Result<Vec<(Arc<Attached>, Vec<u8>)>> {
        let mut found = Vec::new();
        if let Some((attached, inner)) = self.tree.find(path) {
            let key = attached.view.key_of(&inner)?;
            found.push((attached, key.as_bytes().to_vec()));
        } else if !self.tree.is_directory(path) {
            return Err(nothing_attached(path));
        }
        for attached in self.tree.below(path) {
            let prefix = Attached::prefix(&attached.spec).as_bytes().to_vec();
            found.push((attached, prefix));
        }
        Ok(found)
    }

    /// Waits until a change is as durable as was asked for.
    ///
    /// # Errors
    /// At `source`: `Conflict`; `Timeout` when tries have failed for as long as the foreground deadline. The change is
    /// staged then, and goes on being brought.
    pub(crate) async fn promised(&self, change: &Arc<Change>) -> Result<()> {
        if change.durability() == Durability::Local {
            return Ok(());
        }
        let deadline = self.parts.config.deadlines.foreground();
        loop {
            match tokio::time::timeout(deadline, change.done()).await {
                Ok(done) => return done,
                // Large files take their time: only failures count.
                Err(_) => {
                    if let Some(failure) = change.failure() {
                        return Err(Error::new(
                            ErrorKind::Timeout,
                            format!("upload {}", change.target().key),
                            format!("the source has not taken it: {}", failure.reason()),
                        )
                        .advise("it is staged on this node and goes on being uploaded: penstock persist")
                        .fact("deadline_s", deadline.as_secs_f64()));
                    }
                }
            }
        }
    }
}

/// The manifests of the sets that a key may be in.
fn manifests_above(key: &[u8]) -> Vec<Vec<u8>> {
    let ends = key.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([key.len()]);
    let steps = ends.filter_map(|end| {
        let start = key[..end].iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let name = std::str::from_utf8(&key[start..end]).ok().filter(|name| is_set_name(name))?;
        Some(manifest_key(&key[..start], name))
    });
    steps.collect()
}

fn in_conflict(path: &TreePath) -> Error {
    Error::new(ErrorKind::Conflict, format!("persist {path}"), "something written there is in conflict")
}

/// What is not in the source at the end of the time: `left`, at least one.
fn late(path: &TreePath, left: &[(Arc<Attached>, Arc<Change>)]) -> Error {
    let name = |(attached, change): &(Arc<Attached>, Arc<Change>)| attached.describe(&change.target().key);
    let mut names: Vec<String> = left.iter().take(NAMED_MAX).map(name).collect();
    if left.len() > NAMED_MAX {
        names.push(format!("and {} more", left.len() - NAMED_MAX));
    }
    let why = left.iter().find_map(|(_, change)| change.failure());
    let why = why.map(|error| format!("; the last failure: {}", error.reason())).unwrap_or_default();
    let reason = format!("the time is over and the source has not got {}{why}", names.join(", "));
    Error::new(ErrorKind::Timeout, format!("persist {path}"), reason)
        .advise("it is staged on this node and goes on being uploaded; look at the source: penstock doctor")
        .fact("left", left.len())
        .fact("source", left[0].0.describe(&ObjectKey::default()))
}
