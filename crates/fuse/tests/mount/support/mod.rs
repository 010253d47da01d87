//! A kernel mount for tests: mounted by this process, served by threads of it, always taken down again.

mod tree;
mod writable;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use penstock_fuse::{IdleMax, Mount, MountOptions, Surroundings};
use penstock_types::{Expired, KernelTree, Metrics, SystemClock};
use rustix::mount::{MountFlags, UnmountFlags, mount};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub use tree::{MANY, MANY_NAMES, MemoryTree, Way};
pub use writable::WritableTree;

/// Whatever hangs in the kernel is let go after this.
const PATIENCE: Duration = Duration::from_secs(60);
/// Deadline of the mounts' requests.
pub const REQUEST_TIMEOUT: Duration = Duration::from_millis(300);

/// A tree and its mount.
pub struct Bench<T = MemoryTree> {
    pub tree: Arc<T>,
    pub mount: Arc<Mount>,
    pub metrics: Metrics,
    directory: TempDir,
    done: Option<Sender<()>>,
    // Last: its tasks hold the tree.
    runtime: Runtime,
}

/// What decides whether the kernel lends.
pub struct Conditions<'a> {
    /// The file that it is tried with.
    pub probe: &'a File,
    /// Whether the mount is served by an administrator.
    pub privileged: bool,
    /// Whether nothing is opened.
    pub no_open: bool,
}

impl<T: KernelTree + 'static> Bench<T> {
    /// Mounts `tree`. `None` where this user may not mount; says so.
    pub fn new(tree: T) -> Option<Self> {
        Self::under(Conditions { probe: &tempfile::tempfile().unwrap(), privileged: true, no_open: false }, tree)
    }

    /// As `new`, under other conditions.
    pub fn under(conditions: Conditions, tree: T) -> Option<Self> {
        let (device, directory) = mounted()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let metrics = Metrics::default();
        let surroundings = Surroundings {
            metrics: metrics.clone(),
            runtime: runtime.handle().clone(),
            clock: Arc::new(SystemClock::default()),
        };
        let tree = Arc::new(tree);
        let shown = Arc::clone(&tree) as Arc<dyn KernelTree>;
        set_administrator(conditions.privileged);
        let probe = Some(conditions.probe.as_fd());
        let options = MountOptions { no_open: conditions.no_open, ..options(directory.path()) };
        let options = if tree.is_writable() { writable(options) } else { options };
        let mount = Mount::serve(device, probe, options, surroundings, |_| shown);
        set_administrator(true);
        let mount = Arc::new(mount.unwrap());
        let done = watch(Arc::clone(&mount));
        Some(Self { tree, mount, metrics, directory, done: Some(done), runtime })
    }

    /// A path below the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Takes the mount out of the tree, whether files are open or not.
    pub fn unmount(&self) {
        unmount(&self.directory);
    }
}

impl Bench {
    /// Has something taken back from the kernel, and waits until it was or is late.
    pub fn expire(&self, expired: Vec<Expired>) {
        self.runtime.block_on(self.tree.expire(expired));
    }
}

impl<T> Drop for Bench<T> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.directory.path(), UnmountFlags::DETACH);
        let stopped = self.mount.stop(PATIENCE);
        drop(self.done.take());
        if !std::thread::panicking() {
            stopped.unwrap();
            assert!(!self.mount.is_alive());
        }
    }
}

/// A device to mount with. `None` where this user may not; says so.
pub fn device() -> Option<OwnedFd> {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(device) if rustix::process::geteuid().is_root() => Some(device.into()),
        _ => {
            eprintln!("not tested: only root with /dev/fuse can mount");
            None
        }
    }
}

/// A mount that waits to be served. `None` where this user may not mount; says so.
pub fn mounted() -> Option<(OwnedFd, TempDir)> {
    let device = device()?;
    let directory = tempfile::tempdir().unwrap();
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", device.as_raw_fd());
    let data = std::ffi::CString::new(data).unwrap();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("penstock", directory.path(), "fuse.penstock", flags, data.as_c_str()).unwrap();
    Some((device, directory))
}

/// Takes a mount out of the tree, whether files are open or not.
pub fn unmount(directory: &TempDir) {
    rustix::mount::unmount(directory.path(), UnmountFlags::DETACH).unwrap();
}

/// How the tests mount.
pub fn options(target: &Path) -> MountOptions {
    MountOptions {
        target: target.display().to_string(),
        uid: 1234,
        gid: 4321,
        file_mode: 0o444,
        directory_mode: 0o555,
        allow_other: true,
        no_open: false,
        threads: 3,
        request_timeout: REQUEST_TIMEOUT,
        idle_max: IdleMax { ids: 64, bytes: 64 << 20 },
    }
}

/// How they mount what is written.
fn writable(options: MountOptions) -> MountOptions {
    MountOptions { file_mode: 0o644, directory_mode: 0o755, ..options }
}

/// Whether this thread, and those that it begins, may do what only administrators may.
fn set_administrator(whether: bool) {
    let mut sets = capabilities(None).unwrap();
    sets.effective.set(CapabilitySet::SYS_ADMIN, whether);
    set_capabilities(None, sets).unwrap();
}

/// Ends the connection when the test takes too long: threads that wait for a kernel that waits for us cannot be killed.
fn watch(mount: Arc<Mount>) -> Sender<()> {
    let (done, told) = channel();
    std::thread::spawn(move || {
        if told.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("the test took too long; its mount is ended");
            mount.stop(Duration::ZERO).unwrap();
        }
    });
    done
}

/// Waits for something that happens soon.
pub fn await_that(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}
