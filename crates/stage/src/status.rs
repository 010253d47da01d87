//! What people are told of the stage.

use penstock_types::Error;
use serde::{Deserialize, Serialize};

use crate::change::OperationId;
use crate::stage::Stage;

/// Failures and conflicts that are named at most.
pub(crate) const NAMED_MAX: usize = 16;

/// What the sources have not got yet, and what is in the way.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct StageStatus {
    /// Changes (files and removals) that their source has not got, without those in conflict.
    pub files: u64,
    /// Bytes of the files among them.
    pub bytes: u64,
    /// When the oldest of them was committed, milliseconds since the Unix epoch.
    pub oldest_ms: Option<i64>,
    /// Some of those that failed, oldest first.
    pub failures: Vec<Failing>,
    /// Changes in conflict: their bytes are kept.
    pub conflicts: u64,
    /// Bytes of the files among them.
    pub conflict_bytes: u64,
    /// Some of them, oldest first.
    pub conflicted: Vec<Conflicted>,
    /// Files that were never closed, found after a crash.
    pub recovered: Vec<Recovered>,
    /// Most bytes that the stage may hold.
    pub size_bytes: u64,
    /// Bytes in use: what waits, what is in conflict, what is being written.
    pub used_bytes: u64,
    /// What the room that is left means for writers.
    pub pressure: Pressure,
}

/// What the room that is left in a stage means for those who write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pressure {
    /// They write as fast as the disk takes it.
    #[default]
    None,
    /// The stage fills up: they are slowed down towards the pace of the sources.
    Slowed,
    /// Somebody found no room, and nothing has become free since: they wait a while and get `NoSpace`.
    Full,
}

/// A change that could not be brought yet, and is tried again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failing {
    /// Attachment through which it was written.
    pub attachment: String,
    /// Full key; bytes that are no plain text as `\xNN`.
    pub key: String,
    /// Tries so far.
    pub tries: u32,
    /// Code of the last failure.
    pub code: String,
    /// The last failure.
    pub reason: String,
}

/// A change that would have replaced a version it never saw, or whose bytes are lost.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Conflicted {
    /// Its name, for whatever resolves it.
    pub operation: String,
    /// Attachment through which it was written.
    pub attachment: String,
    /// Full key; bytes that are no plain text as `\xNN`.
    pub key: String,
    /// Bytes of its file; `None` for a removal.
    pub size: Option<u64>,
    /// When it was committed, milliseconds since the Unix epoch.
    pub committed_ms: i64,
    /// `conflict`; `corrupt` when its bytes are lost.
    pub code: String,
    /// What is in the way.
    pub reason: String,
}

/// A file that was being written when the node was stopped, and that nobody closed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recovered {
    /// Where it is now.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of the disk that it takes: fewer where not all of it was written.
    pub allocated: u64,
    /// When it was found, milliseconds since the Unix epoch.
    pub found_ms: i64,
}

impl Stage {
    /// What waits, what failed, what is in conflict, what was recovered.
    pub fn status(&self) -> StageStatus {
        let mut status = self.table().status();
        status.recovered = self.recovered().clone();
        status.size_bytes = self.budget.size();
        status.used_bytes = self.budget.used();
        status.pressure = self.budget.pressure();
        status
    }

    /// Has the status tell why a change cannot be given out yet.
    pub fn held_up(&self, operation: OperationId, error: Error) {
        if let Some(change) = self.table().find(operation) {
            change.progress().failure = Some(error);
        }
    }
}
