//! The kernel mounts that a node serves: begun with a device that a helper mounted, watched, ended.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use penstock_engine::{Frozen, ImageOptions};
use penstock_fuse::{IdleMax, Mount, MountOptions, Surroundings};
use penstock_types::{Error, ErrorKind, KernelTree, Result, TierConfig, TreePath};
use rustix::fs::{Mode, OFlags, open};
use serde::{Deserialize, Serialize};

/// Threads of one mount: they translate and copy, and never wait.
const THREADS_MIN: usize = 2;
const THREADS_MAX: usize = 4;
/// Lent files of one mount that stay ready for the next open, where the limit of open files admits it.
const LENT_FILES_MAX: usize = 8192;
/// Bytes of them, and the part of the cache's first tier that this may be: it has them back when we let go.
const LENT_BYTES_MAX: u64 = 4 << 30;
const LENT_BYTES_SHARE: u64 = 32;
/// A request gets so much more time than its deadline, so that the error that names the cause comes first.
const MARGIN_MAX: Duration = Duration::from_secs(5);
/// A mount is given up when a request is older than two deadlines, but never before this.
const GIVE_UP_MIN: Duration = Duration::from_secs(10);
/// How long the threads of a mount are waited for once its connection has ended.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// What is shown at a mount, and how.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    /// Path of the tree that is the root of the mount.
    pub path: String,
    /// Where it is mounted: for messages.
    pub target: String,
    /// Owner of everything.
    pub uid: u32,
    /// Group of everything.
    pub gid: u32,
    /// Permissions of files.
    pub file_mode: u16,
    /// Permissions of directories.
    pub directory_mode: u16,
    /// Whether other users may look.
    pub allow_other: bool,
    /// How the kernel is to get at bytes.
    pub way: WantedWay,
    /// Why that way, for people.
    pub why: String,
    /// What is shown instead of the tree.
    #[serde(default)]
    pub snapshot: Option<SnapshotSpec>,
}

/// A snapshot that is shown.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotSpec {
    /// File of its document.
    pub document: PathBuf,
    /// File of its image; made where it is not there.
    pub image: PathBuf,
    /// What is served of it.
    pub shown: Shown,
}

/// What is served of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shown {
    /// The data devices of its image, which the kernel mounts by itself.
    Devices,
    /// Its names and files.
    Files,
}

/// How the kernel is to get at bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WantedWay {
    /// It opens files, and reads those of the cache by itself where it can.
    Open,
    /// It opens nothing and keeps every page: for trees that nobody writes, of mostly small files.
    NoOpen,
}

/// What `mounts` shows of one.
#[derive(Clone, Debug, Serialize)]
pub struct MountStatus {
    /// Number by which it is ended.
    pub id: u64,
    /// Path of the tree that is its root.
    pub path: String,
    /// Where it is mounted.
    pub target: String,
    /// How the kernel gets at cached bytes: `passthrough` reads the cache's files, `keep-cache` keeps
    /// pages of its own, `no-open` does that and never asks before it uses them, `image` knows the names, too.
    pub way: &'static str,
    /// Why that way.
    pub why: String,
    /// Whether the kernel's side is there.
    pub alive: bool,
    /// Files that programs have open.
    pub open_files: usize,
    /// Age of the oldest request that has no answer yet.
    pub oldest_request_s: Option<f64>,
    /// Minor part of `st_dev`; unknown on older kernels in some cases.
    pub device: Option<u32>,
    /// Bytes of each data device of a snapshot.
    pub data_devices: Vec<u64>,
}

/// Gives the tree below a path, for a kernel that reads lent files by itself or does not.
pub type Trees = Box<dyn Fn(&TreePath, bool) -> Arc<dyn KernelTree> + Send + Sync>;

/// Opens a snapshot for the kernel.
pub type Snapshots = Box<dyn Fn(&SnapshotSpec, &ImageOptions) -> Result<Arc<Frozen>> + Send + Sync>;

/// What all mounts of a node have in common.
pub struct MountParts {
    /// Where trees come from.
    pub trees: Trees,
    /// Where snapshots come from.
    pub snapshots: Snapshots,
    /// Metrics, runtime, clock.
    pub surroundings: Surroundings,
    /// The first tier of the cache: its disk decides whether the kernel can read cached files.
    pub tier: TierConfig,
    /// Deadline of a request that somebody waits for.
    pub deadline: Duration,
    /// Files that the process may have open.
    pub files_max: usize,
}

/// Every mount that is served.
pub struct Mounts {
    parts: MountParts,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    served: BTreeMap<u64, Arc<Served>>,
}

struct Served {
    id: u64,
    spec: MountSpec,
    mount: Mount,
    snapshot: Option<Arc<Frozen>>,
    given_up: AtomicBool,
}

impl Mounts {
    /// None yet.
    pub fn new(parts: MountParts) -> Arc<Self> {
        Arc::new(Self { parts, state: Mutex::default() })
    }

    /// Serves the mount behind `device` from now on.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is none; `Unsupported` when the kernel does not shake hands; what a snapshot
    /// cannot be opened for.
    pub fn serve(&self, device: OwnedFd, spec: MountSpec) -> Result<MountStatus> {
        let base = TreePath::parse(&spec.path)?;
        let snapshot = spec.snapshot.as_ref().map(|frozen| (self.parts.snapshots)(frozen, &spec.image_options(frozen)));
        let snapshot = snapshot.transpose()?;
        let lendable = if snapshot.is_none() { self.lendable() } else { None };
        let mount = Mount::serve(
            device,
            lendable.as_ref().map(AsFd::as_fd),
            self.options(&spec),
            self.parts.surroundings.clone(),
            |facts| match (&snapshot, spec.snapshot.as_ref().map(|frozen| frozen.shown)) {
                (Some(frozen), Some(Shown::Files)) => frozen.file_tree(),
                (Some(frozen), _) => frozen.device_tree(),
                (None, _) => (self.parts.trees)(&base, facts.lending),
            },
        )?;
        let facts = mount.facts();
        let why = if snapshot.is_some() { &spec.why } else { &facts.why };
        tracing::info!(path = spec.path, target_path = spec.target, lending = facts.lending, why, "mounted");
        let served = {
            let mut state = self.state();
            state.next += 1;
            let served = Arc::new(Served { id: state.next, spec, mount, snapshot, given_up: AtomicBool::new(false) });
            state.served.insert(served.id, Arc::clone(&served));
            served
        };
        Ok(served.status())
    }

    /// Every mount that is served; one that has ended is shown until the next round.
    pub fn list(&self) -> Vec<MountStatus> {
        self.all().iter().map(|served| served.status()).collect()
    }

    /// Forgets a mount, and ends its connection where the kernel's side is still there.
    ///
    /// # Errors
    /// `NotFound` for a number that no mount has; `Unsupported` or `PermissionDenied` when the connection cannot be
    /// ended from here: the mount is then served as before.
    pub fn end(&self, id: u64) -> Result<()> {
        let known = self.state().served.get(&id).cloned();
        let served = known.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("end mount {id}"), "no mount has that number; it may have ended")
        })?;
        served.mount.stop(END_PATIENCE)?;
        self.state().served.remove(&id);
        Ok(())
    }

    /// Once a second: forgets what has ended, lets go of files that the cache wants back, and gives up a mount that does
    /// not answer, so that programs that wait for it can go on.
    pub fn tick(&self) {
        for served in self.all() {
            if !served.mount.is_alive() {
                self.state().served.remove(&served.id);
                continue;
            }
            served.mount.tidy();
            served.snapshot.iter().for_each(|frozen| frozen.tidy());
            let age = served.mount.oldest_request().unwrap_or_default();
            if age > self.give_up_after() && !served.given_up.swap(true, Ordering::Relaxed) {
                served.give_up(age);
            }
        }
    }

    /// Ends every connection; who still uses a mount gets errors from now on. Mounts are taken out of the tree before,
    /// by who put them there.
    pub fn close(&self) {
        let left = std::mem::take(&mut self.state().served);
        let deadline = Instant::now() + END_PATIENCE;
        for served in left.values() {
            if served.mount.is_alive() {
                tracing::warn!(target_path = served.spec.target, "mount ended with the node");
            }
            if let Err(error) = served.mount.stop(deadline.saturating_duration_since(Instant::now())) {
                tracing::error!(code = error.kind().code(), %error, "mount not ended");
            }
        }
    }

    fn options(&self, spec: &MountSpec) -> MountOptions {
        let cores = std::thread::available_parallelism().map_or(THREADS_MIN, usize::from);
        MountOptions {
            target: spec.target.clone(),
            uid: spec.uid,
            gid: spec.gid,
            file_mode: spec.file_mode,
            directory_mode: spec.directory_mode,
            allow_other: spec.allow_other,
            no_open: spec.way == WantedWay::NoOpen,
            threads: cores.clamp(THREADS_MIN, THREADS_MAX),
            request_timeout: self.parts.deadline + (self.parts.deadline / 2).min(MARGIN_MAX),
            idle_max: IdleMax {
                ids: LENT_FILES_MAX.min(self.parts.files_max / 8),
                bytes: LENT_BYTES_MAX.min(self.parts.tier.size_bytes / LENT_BYTES_SHARE),
            },
        }
    }

    fn give_up_after(&self) -> Duration {
        (self.parts.deadline * 2).max(GIVE_UP_MIN)
    }

    /// A file without a name on the disk of the cache.
    fn lendable(&self) -> Option<OwnedFd> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        open(&self.parts.tier.directory, flags, Mode::RUSR | Mode::WUSR).ok()
    }

    fn all(&self) -> Vec<Arc<Served>> {
        self.state().served.values().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while mounts are listed")
    }
}

impl MountSpec {
    /// The image says of everything what the mount would.
    fn image_options(&self, frozen: &SnapshotSpec) -> ImageOptions {
        let seen = if self.allow_other { 0o777 } else { 0o700 };
        ImageOptions {
            file: frozen.image.clone(),
            owner: (self.uid, self.gid),
            file_mode: u32::from(self.file_mode) & seen,
            directory_mode: u32::from(self.directory_mode) & seen,
        }
    }
}

impl Served {
    fn status(&self) -> MountStatus {
        let facts = self.mount.facts();
        let shows_devices = self.spec.snapshot.as_ref().is_some_and(|frozen| frozen.shown == Shown::Devices);
        MountStatus {
            id: self.id,
            path: self.spec.path.clone(),
            target: self.spec.target.clone(),
            way: match self.spec.way {
                _ if shows_devices => "image",
                WantedWay::NoOpen => "no-open",
                WantedWay::Open if facts.lending => "passthrough",
                WantedWay::Open => "keep-cache",
            },
            why: match self.spec.way {
                WantedWay::Open if !facts.lending && !shows_devices => format!("{}; {}", self.spec.why, facts.why),
                _ => self.spec.why.clone(),
            },
            alive: self.mount.is_alive(),
            open_files: self.mount.open_files(),
            oldest_request_s: self.mount.oldest_request().map(|age| age.as_secs_f64()),
            device: facts.connection,
            data_devices: self.snapshot.as_ref().map(|frozen| frozen.devices().to_vec()).unwrap_or_default(),
        }
    }

    fn give_up(&self, age: Duration) {
        let error = Error::new(
            ErrorKind::Timeout,
            format!("serve the mount at {}", self.spec.target),
            "a request has no answer after twice its deadline: the mount is given up",
        );
        let error = error.advise("unmount it and mount it again; report it").fact("age_s", age.as_secs());
        tracing::error!(code = error.kind().code(), %error, "mount does not answer");
        if let Err(error) = self.mount.stop(Duration::ZERO) {
            tracing::error!(code = error.kind().code(), %error, "mount not ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::fd::AsRawFd;
    use std::sync::Condvar;

    use penstock_fuse::Surroundings;
    use penstock_testkit::ManualClock;
    use penstock_types::{Answer, ListedNode, Looked, Metrics, NodeId, NodePage, OpenedNode, TreeSpace};
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    use tempfile::TempDir;

    use super::*;

    /// A tree whose every question hangs, with the thread that asks, until the gate is opened.
    #[derive(Default)]
    struct Stuck {
        open: Mutex<bool>,
        opened: Condvar,
    }

    impl Stuck {
        fn wait<T>(&self) -> Answer<T> {
            let open = self.open.lock().unwrap();
            drop(self.opened.wait_while(open, |open| !*open).unwrap());
            Answer::Now(Err(Error::new(ErrorKind::Unavailable, "ask a tree", "it was stuck")))
        }
    }

    impl KernelTree for Stuck {
        fn lookup(&self, _: NodeId, _: &str) -> Answer<Looked> {
            self.wait()
        }

        fn attributes(&self, _: NodeId) -> Answer<Looked> {
            self.wait()
        }

        fn forget(&self, _: NodeId, _: u64) {}

        fn open(&self, _: NodeId) -> Answer<OpenedNode> {
            self.wait()
        }

        fn open_directory(&self, _: NodeId) -> Answer<bool> {
            self.wait()
        }

        fn list(&self, _: NodeId, _: Option<&str>) -> Answer<NodePage> {
            self.wait()
        }

        fn remember(&self, _: &ListedNode) {}

        fn name_of(&self, _: NodeId) -> Option<(NodeId, Arc<str>)> {
            None
        }

        fn extended_attributes(&self, _: NodeId) -> Answer<Vec<(&'static str, String)>> {
            self.wait()
        }

        fn space(&self) -> TreeSpace {
            TreeSpace { total_bytes: 0, free_bytes: 0 }
        }
    }

    /// Opens the gate and takes the mount away, however the test ends.
    struct Bench {
        mounts: Arc<Mounts>,
        tree: Arc<Stuck>,
        clock: Arc<ManualClock>,
        directory: TempDir,
    }

    impl Bench {
        /// `None` where this user may not mount.
        fn new() -> Option<Self> {
            let device = std::fs::File::options().read(true).write(true).open("/dev/fuse").ok()?;
            let directory = tempfile::tempdir().unwrap();
            let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
            let data = CString::new(data).unwrap();
            mount("test", directory.path(), "fuse.penstock", MountFlags::empty(), data.as_c_str()).ok()?;
            let (tree, clock) = (Arc::new(Stuck::default()), Arc::new(ManualClock::default()));
            let stuck = Arc::clone(&tree);
            let mounts = Mounts::new(MountParts {
                trees: Box::new(move |_, _| Arc::clone(&stuck) as Arc<dyn KernelTree>),
                snapshots: Box::new(|_, _| Err(Error::new(ErrorKind::NotFound, "open a snapshot", "there is none"))),
                surroundings: Surroundings {
                    metrics: Metrics::default(),
                    runtime: tokio::runtime::Handle::current(),
                    clock: Arc::clone(&clock) as Arc<dyn penstock_types::Clock>,
                },
                tier: TierConfig { directory: std::env::temp_dir(), size_bytes: 1 << 30 },
                deadline: Duration::from_secs(30),
                files_max: 1024,
            });
            let spec = MountSpec {
                path: "/data".into(),
                target: directory.path().display().to_string(),
                uid: 0,
                gid: 0,
                file_mode: 0o444,
                directory_mode: 0o555,
                allow_other: false,
                way: WantedWay::Open,
                why: "the test wants it".into(),
                snapshot: None,
            };
            mounts.serve(device.into(), spec).unwrap();
            Some(Self { mounts, tree, clock, directory })
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            *self.tree.open.lock().unwrap() = true;
            self.tree.opened.notify_all();
            let _ = unmount(self.directory.path(), UnmountFlags::DETACH);
        }
    }

    #[tokio::test]
    async fn a_mount_that_does_not_answer_is_given_up_after_two_deadlines() {
        let Some(bench) = Bench::new() else { return };
        let path = bench.directory.path().join("a");
        let waiting = std::thread::spawn(move || std::fs::metadata(path).unwrap_err());
        while bench.mounts.list()[0].oldest_request_s.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bench.clock.advance(Duration::from_secs(59));
        bench.mounts.tick();
        assert!(bench.mounts.list()[0].alive);
        bench.clock.advance(Duration::from_secs(2));
        bench.mounts.tick();
        assert!(!bench.mounts.list()[0].alive);
        waiting.join().unwrap();
        bench.mounts.tick();
        assert!(bench.mounts.list().is_empty());
    }

    #[tokio::test]
    async fn mounts_are_numbered_and_ended_by_number() {
        let Some(bench) = Bench::new() else { return };
        assert_eq!(bench.mounts.end(7).unwrap_err().kind(), ErrorKind::NotFound);
        let id = bench.mounts.list()[0].id;
        bench.mounts.end(id).unwrap();
        assert!(bench.mounts.list().is_empty());
        let errno = std::fs::metadata(bench.directory.path()).unwrap_err().raw_os_error();
        assert_eq!(errno, Some(rustix::io::Errno::NOTCONN.raw_os_error()));
    }

    #[tokio::test]
    async fn what_is_left_ends_with_the_node() {
        let Some(bench) = Bench::new() else { return };
        bench.mounts.close();
        assert!(bench.mounts.list().is_empty());
        assert!(std::fs::metadata(bench.directory.path()).is_err());
    }
}
