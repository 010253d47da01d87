//! What the source did not take because of somebody else's version: which changes those are, what they hold, and
//! settling them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use penstock_stage::{Base, Change, OperationId, Stage};
use penstock_types::{Error, ErrorKind, ObjectKey, Result, TreePath, Version};
use serde::{Deserialize, Serialize};

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::open::object_id;

/// Conflicts whose sources are asked at the same time.
const ASKED_AT_ONCE: usize = 16;
/// How long one question of a list waits, and how long where the source failed the last time.
const PATIENCE: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_secs(1);

/// A change that would have replaced a version it has not seen, or whose bytes are lost.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Conflict {
    /// Where it was written.
    pub path: String,
    /// Its name.
    pub operation: String,
    /// Bytes; `None` for a removal.
    pub size: Option<u64>,
    /// When it was written, milliseconds since the Unix epoch.
    pub written_ms: i64,
    /// `conflict`; `corrupt` when its bytes are lost.
    pub code: String,
    /// What is in the way.
    pub reason: String,
    /// What has the name in the source now; `None` where nobody asked.
    pub source: Option<InSource>,
}

/// What a source has under a name.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum InSource {
    /// An object.
    File {
        /// Bytes.
        size: u64,
        /// Milliseconds since the Unix epoch.
        modified_ms: i64,
        /// Its version.
        version: Version,
    },
    /// Nothing.
    Nothing,
    /// The source does not say.
    Unknown {
        /// Code of its failure.
        code: String,
        /// Its failure.
        reason: String,
    },
}

/// Some conflicts, in the order in which they were written.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ConflictPage {
    /// At most as many as were asked for.
    pub conflicts: Vec<Conflict>,
    /// Ask for the page after this operation; `None` at the end.
    pub next: Option<String>,
}

/// Which conflicts are listed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConflictQuery {
    /// Those below the path as well.
    pub below: bool,
    /// Ask the source what it has now.
    pub look: bool,
    /// Only those written after this operation.
    pub after: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// Whose content stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Keep {
    /// Ours, over what the source has now.
    Mine,
    /// What the source has: ours is given up.
    Theirs,
}

impl Engine {
    /// Conflicts of a path, oldest first. With `look`, one request for each.
    ///
    /// # Errors
    /// `NotFound` where nothing is attached, and without `below` where nothing is in conflict; `InvalidInput` for a
    /// bad `after`.
    pub async fn conflicts(&self, path: &TreePath, query: &ConflictQuery) -> Result<ConflictPage> {
        let after: Option<OperationId> = query.after.as_deref().map(str::parse).transpose()?;
        let mut found = match query.below {
            true => self.conflicts_below(path)?,
            false => self.conflicts_at(path)?,
        };
        found.retain(|(_, change)| after.is_none_or(|after| change.operation() > after));
        let is_more = found.len() > query.limit;
        found.truncate(query.limit);
        let next = found.last().filter(|_| is_more).map(|(_, change)| change.operation().to_string());
        let told = stream::iter(found).map(async |(attached, change)| {
            let source = if query.look { Some(self.in_source(&attached, &change).await) } else { None };
            told(&attached, &change, source)
        });
        Ok(ConflictPage { conflicts: told.buffered(ASKED_AT_ONCE).collect().await, next })
    }

    /// What a change in conflict holds, read only. May block for moments, to restore it from the journal.
    ///
    /// # Errors
    /// `NotFound` when it is not in conflict; `InvalidInput` for a removal, and for what was renamed and is not cached: its
    /// bytes are in the source, if anywhere; `StaleVersion` for a large file that was changed in part, where the rest of
    /// it is not cached; `Corrupt` when its bytes are lost.
    pub fn conflict_content(&self, path: &TreePath, operation: &str) -> Result<Arc<OwnedFd>> {
        let (attached, change) = self.conflict(path, operation)?;
        let original = change.original().map(|original| object_id(&attached, original.key, &original.version));
        let cached = original.and_then(|original| self.cache.peek(&original)).filter(|extent| extent.is_complete());
        let lease = cached.and_then(|extent| tokio::task::block_in_place(|| extent.lend()).ok());
        if change.patch().is_some() {
            let under = lease.as_ref().map(|lease| &**lease.descriptor());
            let whole = tokio::task::block_in_place(|| self.whole_content(&change, under));
            return whole.map_err(|error| error.during(format!("read ours of {path}")));
        }
        if let Some(lease) = lease {
            return Ok(Arc::clone(lease.descriptor()));
        }
        tokio::task::block_in_place(|| change.open()).map_err(|error| error.during(format!("read ours of {path}")))
    }

    /// Settles a conflict, durably. With [`Keep::Mine`] what it holds is staged again as the newest content of the
    /// path: one request, for what the source has at this moment, on condition of which it is uploaded. The conflict
    /// as it was, with what the source has where it was asked.
    ///
    /// # Errors
    /// `NotFound` when it is not in conflict (any more); with [`Keep::Mine`] `ReadOnly` where the attachment is,
    /// `Corrupt` when its bytes are lost, and what the source says when it is asked. The conflict is as it was then.
    pub async fn resolve_conflict(self: &Arc<Self>, path: &TreePath, operation: &str, keep: Keep) -> Result<Conflict> {
        let (attached, change) = self.conflict(path, operation)?;
        let settled = match keep {
            Keep::Mine => self.keep_mine(path, &attached, &change).await,
            Keep::Theirs => tokio::task::block_in_place(|| self.stage.discard(&change)).map(|()| None),
        };
        let source = settled.map_err(|error| {
            let whose = if keep == Keep::Mine { "ours" } else { "theirs" };
            error.during(format!("keep {whose} of {path}"))
        })?;
        tracing::info!(code = "conflict-settled", %path, operation, kept = ?keep);
        Ok(told(&attached, &change, source))
    }

    async fn keep_mine(
        self: &Arc<Self>,
        path: &TreePath,
        attached: &Arc<Attached>,
        change: &Arc<Change>,
    ) -> Result<Option<InSource>> {
        attached.writable(path)?;
        if change.is_of_itself() {
            // Of what is there now: what was there then is nobody's any more.
            self.set_posix(path, None, change.posix()).await?;
            tokio::task::block_in_place(|| self.stage.discard(change))?;
            return Ok(None);
        }
        let target = change.target();
        let mut waiting = self.stage.pending_below(&target.scope, target.key.as_bytes());
        waiting.retain(|waiting| waiting.target().key == target.key);
        let (base, source) = match waiting.last() {
            Some(last) => (Base::Staged(last.operation()), None),
            None => self.base_in_source(path, attached, &target.key).await?,
        };
        tokio::task::block_in_place(|| self.stage.restage(change, &base))?;
        self.announce_change(change).await;
        Ok(source)
    }

    /// What the source has at this moment, as what is replaced.
    async fn base_in_source(
        &self,
        path: &TreePath,
        attached: &Attached,
        key: &ObjectKey,
    ) -> Result<(Base, Option<InSource>)> {
        match self.timely(attached, path, attached.source.stat(key)).await {
            Ok(found) => Ok((Base::Version(found.attributes.version.clone()), Some(file(&found.attributes)))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok((Base::Absent, Some(InSource::Nothing))),
            Err(error) if error.is_transient() => {
                let reason = format!("the source does not say what it has now: {}", error.reason());
                let error = Error::new(error.kind(), format!("ask for {}", attached.describe(key)), reason);
                Err(error.advise("both contents are kept; try again when the source is back: penstock doctor"))
            }
            Err(error) => Err(error),
        }
    }

    /// What the source has now of the key of a change; a failure is an answer.
    async fn in_source(&self, attached: &Attached, change: &Change) -> InSource {
        let key = &change.target().key;
        let patience = if attached.health.failed_ago().is_some() { SHORT } else { PATIENCE };
        let asked = tokio::time::timeout(patience, attached.source.stat(key)).await.unwrap_or_else(|_| {
            let action = format!("look up {}", attached.describe(key));
            Err(Error::new(ErrorKind::Timeout, action, "the source did not answer in time"))
        });
        attached.health.note(&asked);
        match asked {
            Ok(found) => file(&found.attributes),
            Err(error) if error.kind() == ErrorKind::NotFound => InSource::Nothing,
            Err(error) => InSource::Unknown { code: error.kind().code().into(), reason: error.reason().into() },
        }
    }

    fn conflict(&self, path: &TreePath, operation: &str) -> Result<(Arc<Attached>, Arc<Change>)> {
        let wanted: OperationId = operation.parse()?;
        let found = self.conflicts_at(path)?.into_iter().find(|(_, change)| change.operation() == wanted);
        found.ok_or_else(|| {
            let reason = format!("nothing of operation {operation} is in conflict there");
            Error::new(ErrorKind::NotFound, format!("look for a conflict of {path}"), reason)
                .advise(format!("look at what is: penstock conflicts ls {path}"))
        })
    }

    /// The conflicts of exactly a path, oldest first; at least one.
    fn conflicts_at(&self, path: &TreePath) -> Result<Vec<(Arc<Attached>, Arc<Change>)>> {
        let below = self.conflicts_below(path)?;
        let is_below = !below.is_empty();
        let is_there = |(attached, change): &(Arc<Attached>, Arc<Change>)| place_of(attached, change) == path.as_str();
        let found: Vec<_> = below.into_iter().filter(is_there).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let action = format!("look for a conflict of {path}");
        let error = Error::new(ErrorKind::NotFound, action, "nothing written at that path is in conflict");
        Err(error.advise(match is_below {
            true => format!("name one of those below it: penstock conflicts ls {path}"),
            false => "look at what is: penstock conflicts ls".to_owned(),
        }))
    }

    /// The conflicts at and below a path, oldest first. One that is seen through several attachments is told of the one
    /// through which it was written.
    fn conflicts_below(&self, path: &TreePath) -> Result<Vec<(Arc<Attached>, Arc<Change>)>> {
        let mut found = self.changes_below(path, Stage::conflicts_below)?;
        let is_other = |attached: &Attached, change: &Change| attached.spec.id != change.target().attachment;
        found.sort_by_key(|(attached, change)| (change.operation(), is_other(attached, change)));
        found.dedup_by_key(|(_, change)| change.operation());
        Ok(found)
    }
}

fn file(attributes: &penstock_types::ObjectAttributes) -> InSource {
    let version = attributes.version.clone();
    InSource::File { size: attributes.size, modified_ms: attributes.modified_ms, version }
}

/// Where a change is in the tree; that of a directory's marker is the directory.
fn place_of(attached: &Attached, change: &Change) -> String {
    let key = &change.target().key;
    let inner = attached.view.path_of(key).unwrap_or_else(|| key.to_string());
    let place = format!("{}/{inner}", attached.path);
    TreePath::parse(&place).map_or(place, |path| path.as_str().to_owned())
}

/// What people are told of a change in conflict.
fn told(attached: &Attached, change: &Change, source: Option<InSource>) -> Conflict {
    let failure = change.failure();
    Conflict {
        path: place_of(attached, change),
        operation: change.operation().to_string(),
        size: change.size(),
        written_ms: change.committed_ms(),
        code: failure.as_ref().map_or(ErrorKind::Conflict, Error::kind).code().to_owned(),
        reason: failure.map(|error| error.reason().to_owned()).unwrap_or_default(),
        source,
    }
}
