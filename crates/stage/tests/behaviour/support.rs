//! A stage in a directory of its own, and what tests ask of it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use penstock_cache::RealDisk;
use penstock_stage::{Base, Bounds, Change, Settled, Stage, StageParts, Target, Written};
use penstock_testkit::ManualClock;
use penstock_types::{
    AttachmentId, Clock, Disk, Durability, Error, ErrorKind, Laid, Metrics, ObjectAttributes, ObjectKey, Result,
    StageConfig, Version,
};
use tempfile::TempDir;

/// The scope of most tests.
pub const SCOPE: &str = "memory:test";

/// Small enough that a few changes fill a file of the journal; no patience, no grace.
pub const SMALL: Bounds = Bounds {
    segment_bytes: 64 * 1024,
    segments_kept: 3,
    segments_max: 6,
    patience: Duration::ZERO,
    patience_max: Duration::ZERO,
    grace: Duration::ZERO,
};

/// A directory, a clock and a disk for a stage.
pub struct Bench {
    pub directory: TempDir,
    pub clock: Arc<ManualClock>,
    pub disk: Arc<dyn Disk>,
    pub metrics: Metrics,
    pub bounds: Bounds,
    pub size_bytes: u64,
}

impl Default for Bench {
    fn default() -> Self {
        Self::on(Arc::new(RealDisk))
    }
}

impl Bench {
    pub fn on(disk: Arc<dyn Disk>) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            clock: Arc::default(),
            disk,
            metrics: Metrics::default(),
            bounds: SMALL,
            size_bytes: 1 << 30,
        }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("stage")
    }

    pub fn parts(&self) -> StageParts {
        StageParts {
            config: StageConfig {
                directory: self.root(),
                size_bytes: self.size_bytes,
                recovery_days: 7.0,
                recovery_bytes: RECOVERY_BYTES,
            },
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            disk: Arc::clone(&self.disk),
            metrics: self.metrics.clone(),
            seed: 1,
        }
    }

    pub fn try_open(&self) -> Result<Arc<Stage>> {
        Stage::open_bounded(self.parts(), self.bounds)
    }

    pub fn open(&self) -> Arc<Stage> {
        self.try_open().unwrap()
    }

    /// What a process leaves that is killed now: a copy of the directory.
    pub fn after_a_kill(&self) -> Self {
        let copy = Self { size_bytes: self.size_bytes, bounds: self.bounds, ..Self::default() };
        copy_tree(&self.root(), &copy.root());
        copy
    }

    pub fn files(&self) -> Vec<PathBuf> {
        paths_in(&self.root().join("files"))
    }

    pub fn segments(&self) -> Vec<PathBuf> {
        let mut paths = paths_in(&self.root().join("journal"));
        paths.retain(|path| path.extension().is_some_and(|suffix| suffix == "journal"));
        paths
    }
}

/// A stage of which nothing but itself is asked, with what has to outlive it.
pub fn alone() -> (Bench, Arc<Stage>) {
    let bench = Bench::default();
    let stage = bench.open();
    (bench, stage)
}

pub fn paths_in(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for path in paths_in(from) {
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

pub fn target(key: &str) -> Target {
    target_in(SCOPE, key)
}

/// What is kept of files that were never closed.
pub const RECOVERY_BYTES: u64 = 1 << 20;

pub fn target_in(scope: &str, key: &str) -> Target {
    Target { scope: scope.into(), attachment: AttachmentId::from("a1"), key: ObjectKey::from(key) }
}

pub fn written(key: &str) -> Written {
    Written {
        target: target(key),
        base: Base::Absent,
        exclusive: false,
        only_onto_base: false,
        durability: Durability::Local,
        modified_ms: 1_750_000_000_123,
        metadata: vec![("mode".into(), "644".into())],
    }
}

pub fn content(seed: u64, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

/// Commits content as a small file.
pub fn put(stage: &Stage, key: &str, data: &Bytes) -> Arc<Change> {
    stage.commit_small(data.clone(), written(key)).unwrap()
}

/// Commits content as a large file: through the descriptor of a draft.
pub fn put_large(stage: &Stage, key: &str, data: &[u8]) -> Arc<Change> {
    try_put_large(stage, key, data).unwrap()
}

pub fn try_put_large(stage: &Stage, key: &str, data: &[u8]) -> Result<Arc<Change>> {
    let draft = stage.create(&target(key))?;
    draft.grow(data.len() as u64)?;
    write_at(draft.descriptor(), data);
    stage.commit(draft, written(key))
}

pub fn write_at(descriptor: &OwnedFd, data: &[u8]) {
    File::from(descriptor.try_clone().unwrap()).write_all_at(data, 0).unwrap();
}

pub fn remove(stage: &Stage, key: &str, base: Base) -> Arc<Change> {
    stage.remove(target(key), base, Durability::Local).unwrap()
}

/// The content behind a change.
pub fn bytes_of(change: &Change) -> Vec<u8> {
    let open = change.open().unwrap();
    let file = File::from(open.as_fd().try_clone_to_owned().unwrap());
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

pub fn laid(stage: &Stage, key: &str) -> Option<Laid> {
    stage.overlay(SCOPE).at(key.as_bytes())
}

/// The content that readers see for a key: staged bytes, or `None` where nothing staged is shown.
pub fn seen(stage: &Stage, key: &str) -> Option<Vec<u8>> {
    let attributes = laid(stage, key)?.attributes?;
    let change = stage.find(SCOPE, &ObjectKey::from(key), &attributes.version)?;
    assert_eq!(change.size(), Some(attributes.size));
    Some(bytes_of(&change))
}

pub fn stored(version: &str, size: u64, moment: i64) -> Settled {
    let attributes = ObjectAttributes { size, modified_ms: 5_000, version: Version::from(version) };
    Settled::Stored { attributes, moment }
}

/// Takes the next change and says that the source has it as `version`.
pub fn bring(stage: &Stage, version: &str, moment: i64) -> Option<Arc<Change>> {
    let change = stage.next()?;
    let settled = match change.size() {
        Some(size) => stored(version, size, moment),
        None => Settled::Removed { moment },
    };
    stage.settle(&change, settled, Some(1_000_000));
    Some(change)
}

pub fn failure() -> Error {
    Error::new(ErrorKind::Unavailable, "upload it", "the source is away")
}

pub fn conflict() -> Error {
    Error::new(ErrorKind::Conflict, "upload it", "the source has another version")
}

/// The end of a change, where it has one.
pub fn ended(change: &Change) -> Option<Result<()>> {
    let mut done = Box::pin(change.done());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::future::Future::poll(done.as_mut(), &mut context) {
        std::task::Poll::Ready(ended) => Some(ended),
        std::task::Poll::Pending => None,
    }
}
