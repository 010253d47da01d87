//! What people are told of snapshot documents.

use std::path::Path;

use penstock_engine::{Change, Snapshot, attachment_of};
use penstock_types::{AttachmentSpec, Error, ErrorKind, Result};
use serde::Serialize;

/// Rows that are told at once: for each page the frame of the document is read again.
const PAGE_ROWS: usize = 32;

/// What `snapshot show` shows of a document.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotSummary {
    /// How people call it.
    pub name: String,
    /// The path of the tree that was frozen.
    pub path: String,
    /// When, milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Number of files.
    pub files: u64,
    /// Their sizes together.
    pub size_bytes: u64,
    /// Size of the document.
    pub document_bytes: u64,
    /// The attachment that it was made from.
    pub attachment: AttachmentSpec,
    /// What every key begins with.
    pub prefix: String,
    /// Another document has another one.
    pub checksum: String,
}

/// One file of a document.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotFile {
    /// Path below the one that was frozen.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// Milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// The pinned version.
    pub version: String,
}

/// What is different between two documents.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SnapshotChanges {
    /// How many files only the later one has, only the earlier one has, and both have in two versions.
    pub added: u64,
    /// See `added`.
    pub removed: u64,
    /// See `added`.
    pub changed: u64,
    /// Some of them, in the order of keys.
    pub first: Vec<(Change, String)>,
}

/// Reads what a document says of itself. With `whole`, every row of it is read and checked.
///
/// # Errors
/// `NotFound`, `Disk`; `Corrupt` for what is no whole snapshot.
pub fn snapshot_summary(file: &Path, whole: bool) -> Result<SnapshotSummary> {
    let snapshot = Snapshot::open(file)?;
    let facts = snapshot.facts();
    let attachment = attachment_of(facts)?;
    if whole {
        (0..snapshot.rows()).try_for_each(|row| snapshot.row(row).map(drop))?;
    }
    let document = std::fs::metadata(file)
        .map_err(|error| Error::new(ErrorKind::Disk, format!("read snapshot {}", file.display()), error.to_string()))?;
    Ok(SnapshotSummary {
        name: facts.name.clone(),
        path: facts.path.clone(),
        created_ms: facts.created_ms,
        files: facts.files,
        size_bytes: facts.size_bytes,
        document_bytes: document.len(),
        attachment,
        prefix: String::from_utf8_lossy(&facts.prefix).into_owned(),
        checksum: format!("{:08x}", snapshot.identity()),
    })
}

/// Some files of a document, from the row `from` on, and the row to go on at; `None` behind the last one.
///
/// # Errors
/// As of [`snapshot_summary`].
pub fn snapshot_files(file: &Path, from: usize) -> Result<(Vec<SnapshotFile>, Option<usize>)> {
    let snapshot = Snapshot::open(file)?;
    let end = from.saturating_add(PAGE_ROWS).min(snapshot.rows());
    let mut files = Vec::new();
    for row in from..end {
        files.extend(snapshot.row(row)?.into_iter().filter_map(|entry| {
            let attributes = entry.attributes?;
            let (size, modified_ms) = (attributes.size, attributes.modified_ms);
            Some(SnapshotFile { path: entry.path, size, modified_ms, version: attributes.version.to_string() })
        }));
    }
    Ok((files, Some(end).filter(|next| *next < snapshot.rows())))
}

/// What is different between two documents, and the first `limit` of it.
///
/// # Errors
/// As of [`snapshot_summary`].
pub fn snapshot_changes(earlier: &Path, later: &Path, limit: usize) -> Result<SnapshotChanges> {
    let (earlier, later) = (Snapshot::open(earlier)?, Snapshot::open(later)?);
    let mut changes = SnapshotChanges::default();
    for change in earlier.changes(&later) {
        let (change, path) = change?;
        *match change {
            Change::Added => &mut changes.added,
            Change::Removed => &mut changes.removed,
            Change::Changed => &mut changes.changed,
        } += 1;
        if changes.first.len() < limit {
            changes.first.push((change, path));
        }
    }
    Ok(changes)
}
