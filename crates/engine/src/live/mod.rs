//! Files that are open for writing through a mount: which they are, and what of them waits with its upload.
//!
//! ```text
//! open ─▶ LiveFile (a draft of the stage) ─ write ─▶ draft ─ flush ─▶ committed, read on from the same file
//!                                              ▲ copied ◀── the next write ──────┘
//! ```
//!
//! Where a kernel can write a new file by itself, it does, at the speed of the disk: see `lent`. Where many small ones
//! follow each other, they are written in memory: see `expected`.
//!
//! All handles of a path share one live file, and whoever opens the path through a mount meanwhile reads it as it
//! grows. Everybody else sees what was flushed last. What is committed never changes: the first write after a flush
//! goes to a copy.

mod adorned;
mod content;
mod expected;
mod file;
mod lent;
mod settling;
mod under;

pub(crate) use content::{Opening, copy_range};
pub(crate) use file::LiveFile;
pub(crate) use under::is_gone;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use penstock_stage::{Base, Change, OperationId, Stage, Target, operation_of};
use penstock_types::{Durability, ObjectKey, Result, TreePath, Version};

use crate::engine::Engine;
use crate::live::expected::Expected;
use crate::live::settling::Settling;
use crate::write::Place;

/// A file that was closed is not uploaded for so long: who writes under a temporary name renames it next.
const SETTLING: Duration = Duration::from_millis(500);
/// A handle is nearly always gone so soon after it was flushed.
const CLOSING: Duration = Duration::from_millis(50);
/// A handle that is open so long after it was flushed stays open: a copy of the file is committed.
const PARTED_AFTER: Duration = Duration::from_millis(200);
/// Begins the version of a live file; behind it comes its number.
const LIVE: &str = "live-";

type Key = (Arc<str>, ObjectKey);

/// The live files of an engine.
#[derive(Default)]
pub(crate) struct LiveFiles {
    by_path: Mutex<BTreeMap<TreePath, Arc<LiveFile>>>,
    by_number: Mutex<HashMap<u64, Weak<LiveFile>>>,
    last_number: AtomicU64,
    held: Mutex<Held>,
    /// Those that a kernel writes by itself.
    lent: Mutex<Vec<Weak<LiveFile>>>,
    settling: Settling,
    expected: Expected,
    /// Whether the disk of the stage tells of everything that was written.
    tells_writes_apart: OnceLock<bool>,
}

/// What is not uploaded yet.
#[derive(Default)]
struct Held {
    /// Until when, on the engine's clock; `MAX` while a file is open.
    until: HashMap<Key, Duration>,
    /// Prefixes of keys that somebody waits for all the same.
    wanted: Vec<(Arc<str>, Vec<u8>)>,
}

impl Held {
    fn wants(&self, target: &Target) -> bool {
        let is_below =
            |(scope, prefix): &(Arc<str>, Vec<u8>)| *scope == target.scope && target.key.as_bytes().starts_with(prefix);
        self.wanted.iter().any(is_below)
    }
}

/// Somebody waits for what is below a prefix; as long as this is there, nothing there is held.
pub(crate) struct Wanted<'a> {
    files: &'a LiveFiles,
    prefix: (Arc<str>, Vec<u8>),
}

impl LiveFiles {
    /// The live file of a path.
    pub(crate) fn at(&self, path: &TreePath) -> Option<Arc<LiveFile>> {
        self.paths().get(path).cloned()
    }

    /// The live file with this number, as long as anybody has it open.
    pub(crate) fn numbered(&self, number: u64) -> Option<Arc<LiveFile>> {
        self.numbers().get(&number).and_then(Weak::upgrade)
    }

    /// Live files somewhere below a directory.
    pub(crate) fn below(&self, directory: &TreePath) -> Vec<(TreePath, Arc<LiveFile>)> {
        let paths = self.paths();
        let below = paths.iter().filter(|(path, _)| *path != directory && path.below(directory).is_some());
        below.map(|(path, file)| (path.clone(), Arc::clone(file))).collect()
    }

    /// The names of the live files of a directory.
    pub(crate) fn names_in(&self, directory: &TreePath) -> Vec<(TreePath, Arc<LiveFile>)> {
        if self.paths().is_empty() {
            return Vec::new();
        }
        let mut below = self.below(directory);
        below.retain(|(path, _)| path.parent().as_ref() == Some(directory));
        below
    }

    /// Adds a file at a path; the one that is there already, where there is one.
    fn add(&self, path: &TreePath, target: &Target, made: impl FnOnce(u64) -> Arc<LiveFile>) -> Arc<LiveFile> {
        let mut paths = self.paths();
        if let Some(known) = paths.get(path) {
            return Arc::clone(known);
        }
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        let file = made(number);
        paths.insert(path.clone(), Arc::clone(&file));
        let mut numbers = self.numbers();
        numbers.retain(|_, known| known.strong_count() > 0);
        numbers.insert(number, Arc::downgrade(&file));
        drop(numbers);
        self.hold(target, Duration::MAX);
        file
    }

    /// Takes a file away from its path, if it has it; what was committed of `target` is held until `now` and a while.
    fn remove(&self, path: &TreePath, number: u64, target: &Target, now: Duration) {
        let mut paths = self.paths();
        if paths.get(path).is_some_and(|known| known.number() == number) {
            paths.remove(path);
            self.hold(target, now + SETTLING);
        }
    }

    /// A file goes on at another path, whose own live file, if there is one, loses it. What is left to do at the first
    /// one is held until `now` and a while.
    pub(crate) fn rename(
        &self,
        file: &Arc<LiveFile>,
        (from, to): (&TreePath, &TreePath),
        (old, new): (&Target, &Target),
        now: Duration,
    ) {
        let mut paths = self.paths();
        if paths.get(from).is_some_and(|known| known.number() == file.number()) {
            paths.remove(from);
        }
        paths.insert(to.clone(), Arc::clone(file));
        self.hold(old, now + SETTLING);
        self.hold(new, Duration::MAX);
    }

    /// What was just committed of a key is not uploaded for a while.
    pub(crate) fn settle_first(&self, target: &Target, now: Duration) {
        self.hold(target, now + SETTLING);
    }

    fn hold(&self, target: &Target, until: Duration) {
        let mut held = self.held();
        if held.until.len() > 1024 {
            let now = until.saturating_sub(SETTLING);
            held.until.retain(|_, until| *until > now || until == &Duration::MAX);
        }
        held.until.insert((Arc::clone(&target.scope), target.key.clone()), until);
    }

    /// Whether a change is not to be uploaded yet: its file is open for writing, or was closed a moment ago. Called
    /// with locks of the stage held.
    pub(crate) fn holds(&self, change: &Change, now: Duration) -> bool {
        let target = change.target();
        if self.settling.of(&target.scope, &target.key, change.operation()).is_some() {
            return true;
        }
        if change.durability() != Durability::Local {
            return false;
        }
        let mut held = self.held();
        let key = (Arc::clone(&target.scope), target.key.clone());
        let Some(until) = held.until.get(&key) else { return false };
        if *until <= now {
            held.until.remove(&key);
            return false;
        }
        !held.wants(target)
    }

    /// Whether somebody waits until the source has what is written to a place.
    pub(crate) fn is_wanted(&self, target: &Target) -> bool {
        self.held().wants(target)
    }

    /// Nothing below a prefix is held any more, as long as what is returned is there.
    pub(crate) fn want(&self, scope: &Arc<str>, prefix: &[u8]) -> Wanted<'_> {
        let prefix = (Arc::clone(scope), prefix.to_vec());
        self.held().wanted.push(prefix.clone());
        Wanted { files: self, prefix }
    }

    /// Whether nobody has this path open, and what is made there now will probably be small: no disk is waited for then.
    pub(crate) fn makes_small(&self, path: &TreePath, now: Duration) -> bool {
        self.expected.has_room(now) && self.at(path).is_none()
    }

    /// Whether a kernel may be given a new file to write by itself.
    fn may_lend(&self, stage: &Stage) -> bool {
        stage.has_ample_room()
            && *self.tells_writes_apart.get_or_init(|| lent::tells_writes_apart(stage.files_directory()))
    }

    fn note_lent(&self, file: &Arc<LiveFile>) {
        self.lent_files().push(Arc::downgrade(file));
    }

    /// What a live file commits next at a place may change afterwards.
    fn begin_settling(&self, number: u64, place: &Place) {
        let before = match &place.base {
            Base::Staged(operation) => Some(*operation),
            _ => None,
        };
        self.settling.begin(number, &place.target, before);
    }

    /// What a live file has committed: it may still change, or is a copy.
    fn note_committed(&self, number: u64, operation: OperationId, is_shared: bool, now: Duration) {
        match is_shared {
            true => self.settling.committed(number, operation, now),
            false => self.settling.end(number, false),
        }
    }

    /// A commit of a live file failed: nobody is given what it was to replace.
    fn note_failed(&self, number: u64) {
        self.settling.end(number, false);
    }

    /// Nobody writes to a live file any more.
    fn note_closed(&self, number: u64) {
        self.settling.end(number, true);
    }

    /// Whether a version may still change, or has been replaced because it could.
    pub(crate) fn is_unsettled(&self, scope: &Arc<str>, key: &ObjectKey, version: &Version) -> bool {
        let is = |operation| self.settling.was_replaced(operation) || self.settling.of(scope, key, operation).is_some();
        operation_of(version).is_some_and(is)
    }

    fn lent_files(&self) -> MutexGuard<'_, Vec<Weak<LiveFile>>> {
        self.lent.lock().expect("no panic while lent files are listed")
    }

    /// Forgets every file: the engine ends.
    pub(crate) fn clear(&self) {
        drop(std::mem::take(&mut *self.paths()));
    }

    fn paths(&self) -> MutexGuard<'_, BTreeMap<TreePath, Arc<LiveFile>>> {
        self.by_path.lock().expect("no panic while live files are looked up")
    }

    fn numbers(&self) -> MutexGuard<'_, HashMap<u64, Weak<LiveFile>>> {
        self.by_number.lock().expect("no panic while live files are looked up")
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no panic while it is looked up what is held")
    }
}

impl Engine {
    /// Returns when a staged version changes no more; whether that had to be waited for. Where its file stays open, a
    /// copy is committed, which is another version.
    ///
    /// # Errors
    /// What keeps it from being copied.
    pub(crate) async fn wait_settled(
        self: &Arc<Self>,
        scope: &Arc<str>,
        key: &ObjectKey,
        version: &Version,
    ) -> Result<bool> {
        let Some(operation) = operation_of(version) else { return Ok(false) };
        if self.live.settling.of(scope, key, operation).is_none() {
            return Ok(false);
        }
        let unsettled = self.live.settling.wait((scope, key), operation, CLOSING).await;
        if let Some(live) = unsettled.and_then(|number| self.live.numbered(number)) {
            self.part_live(live).await?;
        }
        Ok(true)
    }

    async fn part_live(self: &Arc<Self>, live: Arc<LiveFile>) -> Result<()> {
        if let Some((path, _)) = self.blocking(move || live.part()).await? {
            self.announce(&path).await;
        }
        Ok(())
    }

    /// Looks at what kernels write by themselves.
    pub(crate) fn look_at_lent(self: &Arc<Self>) {
        let lent: Vec<_> = {
            let mut files = self.live.lent_files();
            files.retain(|file| file.strong_count() > 0);
            files.iter().filter_map(Weak::upgrade).collect()
        };
        lent.iter().for_each(|file| file.look_at_lent());
        let long_ago = self.parts.clock.monotonic().saturating_sub(PARTED_AFTER);
        for number in self.live.settling.committed_before(long_ago) {
            let Some(live) = self.live.numbered(number) else { continue };
            let me = Arc::clone(self);
            self.parts.runtime.spawn(async move {
                if let Err(error) = me.part_live(live).await {
                    tracing::debug!(%error, "what is still open is copied later");
                    let committed = me.live.settling.committed_by(number);
                    committed.into_iter().for_each(|operation| me.stage.held_up(operation, error.clone()));
                }
            });
        }
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut held = self.files.held();
        if let Some(at) = held.wanted.iter().position(|wanted| *wanted == self.prefix) {
            held.wanted.swap_remove(at);
        }
    }
}

/// The version that stands for a live file.
pub(crate) fn version_of(number: u64) -> Version {
    Version(format!("{LIVE}{number}").into())
}

/// The number behind a version that stands for a live file.
pub(crate) fn number_of(version: &Version) -> Option<u64> {
    version.as_str().strip_prefix(LIVE)?.parse().ok()
}
