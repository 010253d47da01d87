//! Opening a stage: its directory, the replay of its journal, and the files that nobody knows.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use penstock_types::{Disk, Error, ErrorKind, FileFacts, OpenMode, Result};
use tokio::sync::Notify;

use crate::budget::{Budget, Patience};
use crate::burst::Burst;
use crate::change::{Change, ChangeParts, Ending, OperationId, Phase, Progress};
use crate::files::{FileName, Files, disk_error, is_left_by_restoring};
use crate::journal::{Journal, JournalParts, Slot, Statement, replay};
use crate::pins::Pins;
use crate::record::{ChangeRecord, Record, StreamedRecord};
use crate::stage::{Bounds, Stage, StageParts};
use crate::status::Recovered;
use crate::table::Table;

/// Held while a process has the stage.
const LOCK: &str = "lock";
/// Directories of staged files, of the journal, and of what was found and never closed.
const FILES: &str = "files";
const JOURNAL: &str = "journal";
const RECOVERY: &str = "recovery";

/// Opens a stage.
pub fn open(parts: StageParts, bounds: Bounds) -> Result<Stage> {
    let root = &parts.config.directory;
    let lock = prepare(&*parts.disk, root)?;
    let replayed = replay(&*parts.disk, &root.join(JOURNAL))?;
    let node = replayed.node.unwrap_or_else(|| new_node(&parts));
    let epoch = replayed.epoch + 1;
    let (disk, metrics) = (Arc::clone(&parts.disk), parts.metrics.clone());
    let files = Files::new(disk, metrics, root.join(FILES), root.join(JOURNAL), epoch);
    let pins = Pins::default();
    let mut table = Table::new(parts.seed, pins.clone(), parts.metrics.clone());
    let mut named = HashSet::new();
    let torn = torn(&replayed.records);
    for statement in
        replayed.records.iter().filter(|said| !change_of(said).is_some_and(|change| torn.contains(&change)))
    {
        apply(&mut table, &files, statement, &mut named);
    }
    table.forget_left();
    table.set_uploads_free();
    let journal = Journal::begin(
        JournalParts {
            disk: Arc::clone(&parts.disk),
            metrics: parts.metrics.clone(),
            directory: root.join(JOURNAL),
            node,
            epoch,
            segment_bytes: bounds.segment_bytes,
        },
        &replayed,
    )?;
    for path in &replayed.garbage {
        remove(&*parts.disk, path);
    }
    set_lost_aside(&mut table, &journal)?;
    let recovered = sort_out(&parts, &table, &named)?;
    let (clock, metrics) = (Arc::clone(&parts.clock), parts.metrics.clone());
    let patience = Patience { idle: bounds.patience, longest: bounds.patience_max };
    let budget = Arc::new(Budget::new(parts.config.size_bytes, patience, clock, metrics));
    budget.force(table.all().map(|change| change.charge()).sum());
    Ok(Stage {
        bounds,
        files,
        journal,
        budget,
        burst: Burst::default(),
        pins,
        house: Mutex::default(),
        recovered: Mutex::new(recovered),
        wake: Notify::new(),
        drafted: Notify::new(),
        streams: Mutex::default(),
        closed: AtomicBool::new(false),
        lock: Mutex::new(Some(lock)),
        table: Mutex::new(table),
        parts,
    })
}

/// Makes the directories, durably, and takes the lock.
fn prepare(disk: &dyn Disk, root: &Path) -> Result<OwnedFd> {
    let failed = |error: io::Error| disk_error("make", root, &error);
    create_all(disk, root).map_err(failed)?;
    let path = root.join(LOCK);
    let lock = disk.open(&path, OpenMode::WriteOrCreate).map_err(|error| disk_error("open", &path, &error))?;
    if !disk.try_lock(lock.as_fd()).map_err(|error| disk_error("lock", &path, &error))? {
        let action = format!("open stage {}", root.display());
        return Err(Error::new(ErrorKind::Busy, action, "another node uses it").advise("stop that node"));
    }
    for name in [FILES, JOURNAL, RECOVERY] {
        disk.create_directory(&root.join(name)).map_err(failed)?;
    }
    disk.sync_directory(root).map_err(failed)?;
    Ok(lock)
}

/// Makes a directory and what is missing above it; what was made is durable.
fn create_all(disk: &dyn Disk, directory: &Path) -> io::Result<()> {
    let parent = directory.parent();
    match disk.create_directory(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_all(disk, parent.ok_or(error)?)?;
            disk.create_directory(directory)?;
        }
        other => other?,
    }
    parent.map_or(Ok(()), |parent| disk.sync_directory(parent))
}

/// The change that a record tells of first.
fn change_of(statement: &Statement) -> Option<OperationId> {
    match &statement.record {
        Record::Change(record) => Some(record.operation),
        Record::Streamed(streamed) => Some(streamed.change.operation),
        _ => None,
    }
}

/// Changes that were to be committed together with others, which never became durable: nobody was told that they were.
fn torn(records: &[Statement]) -> HashSet<OperationId> {
    let groups = records.iter().filter_map(|statement| match &statement.record {
        Record::Together { operations } => Some(operations),
        _ => None,
    });
    // The journal is let go of from its beginning on, where that is said.
    let known: HashSet<OperationId> = records.iter().filter_map(change_of).collect();
    let is_torn = |operations: &&Vec<OperationId>| operations.iter().any(|operation| !known.contains(operation));
    groups.filter(is_torn).flatten().copied().collect()
}

/// Does again what the journal tells.
fn apply(table: &mut Table, files: &Arc<Files>, statement: &Statement, named: &mut HashSet<FileName>) {
    let home = Slot::new(Mutex::new(Some(statement.place)));
    match &statement.record {
        Record::Change(record) => {
            named.extend(record.file);
            table.restore(&restored(files, record, None, statement, home), record.replaced);
        }
        Record::Streamed(streamed) => {
            let record = &streamed.change;
            named.extend(record.file);
            table.restore(&restored(files, record, Some(streamed), statement, home), record.replaced);
        }
        Record::Early { operation, target, upload } => {
            table.uploads.begun(*operation, target.clone(), upload.clone(), home);
        }
        Record::EarlyOver { operation } => table.uploads.apply_over(*operation),
        Record::Settled(record) => table.apply_settled((**record).clone(), home, 0),
        Record::Conflict { operation, error } => table.apply_conflict(*operation, error.clone()),
        Record::Discarded { operation } => table.apply_discarded(*operation),
        Record::Outdated { operation, target } => table.apply_outdated(*operation, target),
        Record::Upload { operation, upload } => {
            with(table, *operation, |progress| progress.begin(upload.clone()));
        }
        Record::Part { operation, part } => with(table, *operation, |progress| progress.add_part(part.clone())),
        Record::UploadLost { operation } => with(table, *operation, Progress::lose_upload),
        Record::First { .. } | Record::Closed | Record::Together { .. } => {}
    }
}

fn with(table: &Table, operation: OperationId, work: impl FnOnce(&mut Progress)) {
    if let Some(change) = table.find(operation) {
        work(&mut change.progress());
    }
}

/// A change as the journal tells of it. The source may have it: what was under way is not known.
fn restored(
    files: &Arc<Files>,
    record: &ChangeRecord,
    streamed: Option<&StreamedRecord>,
    statement: &Statement,
    home: Slot,
) -> Arc<Change> {
    let size = statement.place.length.into();
    let file = record.file.map(|name| match record.has_data {
        true => files.kept_in_journal(name, statement.place.sum, size, Slot::clone(&home)),
        false => files.kept(name),
    });
    let phase = if record.conflict.is_some() { Phase::Conflict } else { Phase::Waiting };
    let mut progress = Progress::new(record.base.clone(), phase, home);
    progress.given_out = true;
    progress.upload.clone_from(&record.upload);
    progress.failure.clone_from(&record.conflict);
    progress.streamed = streamed.and_then(|streamed| streamed.sums.clone());
    let ending = Ending::default();
    if let Some(error) = &record.conflict {
        ending.send_replace(Some(Err(error.clone())));
    }
    let parts = ChangeParts {
        operation: record.operation,
        target: record.target.clone(),
        content: record.content.clone(),
        durability: record.durability,
        modified_ms: record.modified_ms,
        committed_ms: record.committed_ms,
        file: file.map(Arc::new),
        marker: streamed.map(|streamed| streamed.marker),
        stream: None,
    };
    Change::new(parts, progress, ending)
}

/// Puts changes into conflict whose files are not what was synced: somebody or something damaged them. Those that the
/// kernel wrote by itself are parted from what was written to them after they were committed.
fn set_lost_aside(table: &mut Table, journal: &Journal) -> Result<()> {
    let mut lost = Vec::new();
    for change in table.all().filter(|change| change.phase() == Phase::Waiting) {
        let (Some(file), Some(size)) = (change.file(), change.size()) else { continue };
        if !file.is_whole(size)? {
            lost.push(Arc::clone(change));
        }
    }
    for change in lost {
        let error = Error::new(ErrorKind::Corrupt, change.action("open"), "its file is missing or has another length")
            .advise("restore it from a copy of the disk before the next start")
            .fact("operation", change.operation())
            .fact("file", change.file().map(|file| file.name().to_string()).unwrap_or_default());
        tracing::error!(code = "stage-file-lost", %error);
        table.conflict(&change, error, journal);
    }
    journal.write_kept();
    Ok(())
}

/// Removes files that are over, and sets those aside that nobody closed. What was set aside, now and before.
fn sort_out(parts: &StageParts, table: &Table, named: &HashSet<FileName>) -> Result<Vec<Recovered>> {
    let (disk, root) = (&*parts.disk, &parts.config.directory);
    let (files, recovery) = (root.join(FILES), root.join(RECOVERY));
    let needed: HashSet<FileName> = table.all().filter_map(|change| change.file()).map(|file| file.name()).collect();
    for name in list(disk, &files)? {
        let path = files.join(&name);
        match FileName::parse(&name) {
            Some(known) if needed.contains(&known) => {}
            Some(known) if named.contains(&known) || facts_of(disk, &path).is_some_and(|facts| facts.size == 0) => {
                remove(disk, &path)
            }
            Some(_) => {
                let aside = recovery.join(format!("{:016x}-{name}", parts.clock.wall_ms()));
                disk.rename(&path, &aside).map_err(|error| disk_error("set aside", &path, &error))?;
                tracing::warn!(code = "stage-file-recovered", path = %aside.display(), "it was never closed");
            }
            None if is_left_by_restoring(&name) => remove(disk, &path),
            None => {}
        }
    }
    let mut recovered = Vec::new();
    for name in list(disk, &recovery)? {
        let path = recovery.join(&name);
        let found = name.split_once('-').and_then(|(digits, _)| i64::from_str_radix(digits, 16).ok());
        if let (Some(found_ms), Some(FileFacts { size, allocated, .. })) = (found, facts_of(disk, &path)) {
            recovered.push(Recovered { path: path.display().to_string(), size, allocated, found_ms });
        }
    }
    recovered.sort_by(|a, b| (a.found_ms, &a.path).cmp(&(b.found_ms, &b.path)));
    Ok(recovered)
}

fn list(disk: &dyn Disk, directory: &Path) -> Result<Vec<String>> {
    let names = disk.list(directory).map_err(|error| disk_error("read", directory, &error))?;
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

fn facts_of(disk: &dyn Disk, path: &Path) -> Option<FileFacts> {
    let file = disk.open(path, OpenMode::Read).ok()?;
    disk.facts(file.as_fd()).ok()
}

fn remove(disk: &dyn Disk, path: &Path) {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(code = "stage-file-left", path = %path.display(), %error, "the next start tries again");
        }
        _ => {}
    }
}

/// Unlike any other: made of where, when and by whom the stage is begun.
fn new_node(parts: &StageParts) -> u64 {
    let when = (parts.clock.wall_ms(), parts.clock.monotonic());
    let place = (&parts.config.directory, std::process::id());
    let mut hash = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(&(when, place, parts.seed, fastrand::Rng::new().u64(..)), &mut hash);
    std::hash::Hasher::finish(&hash)
}
