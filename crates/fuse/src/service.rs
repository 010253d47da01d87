//! What all threads and all waiting requests of one mount share, and how a request waits.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{BackingId, Errno, FileAttr, FileType, INodeNo};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use penstock_types::{
    Answer, Clock, Error, ErrorKind, Expired, KernelExpiry, KernelTree, Looked, Metrics, NodeAttributes, NodeId, Posix,
    Result,
};

use crate::directory::OpenDirectory;
use crate::expiry::Expiry;
use crate::failure::{FailureLog, errno};
use crate::files::{LateReads, OpenFile};
use crate::handles::Handles;
use crate::handshake::Offered;
use crate::lent::{IdleMax, LentFiles};
use crate::under_way::UnderWay;
use crate::unopened::Unopened;

/// What programs are told to read at once: pages of the cache are of this size.
const BLOCK_BYTES: u32 = 64 * 1024;
/// The unit of `st_blocks`.
const SECTOR_BYTES: u64 = 512;
/// The kernel counts time in ticks: longer than anybody looks is as good as for ever, and does not overflow.
const VALID_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// How a tree is shown at one mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Where it is mounted: for messages.
    pub target: String,
    /// Who owns everything.
    pub uid: u32,
    /// Group of everything.
    pub gid: u32,
    /// Permissions of every file.
    pub file_mode: u16,
    /// Permissions of every directory.
    pub directory_mode: u16,
    /// Whether other users than the one who mounted may look; the kernel holds it, too.
    pub allow_other: bool,
    /// Whether the kernel is told that nothing needs to be opened: it then keeps pages by itself and never asks before a
    /// file is used, but cannot be lent one.
    pub no_open: bool,
    /// Threads that speak to the kernel; none of them ever waits.
    pub threads: usize,
    /// A question that has no answer after so long is answered with ETIMEDOUT; a change takes its time.
    pub request_timeout: Duration,
    /// What of the lent files stays ready for the next open.
    pub idle_max: IdleMax,
}

/// What a mount is given of the node it lives in.
#[derive(Clone)]
pub struct Surroundings {
    /// Counts what the kernel asks.
    pub metrics: Metrics,
    /// Where requests wait.
    pub runtime: tokio::runtime::Handle,
    /// Tells how long they have waited.
    pub clock: Arc<dyn Clock>,
}

/// One mount's state.
pub struct Service {
    /// There after the handshake: what the tree gives depends on what the kernel can.
    tree: OnceLock<Arc<dyn KernelTree>>,
    /// There after the first words with the kernel.
    offered: OnceLock<Offered>,
    /// Whether the kernel reads lent files, as was tried.
    lending: AtomicBool,
    /// Whether something could be written when it was mounted. What the kernel is told once depends on it.
    writable: AtomicBool,
    pub options: MountOptions,
    pub surroundings: Surroundings,
    pub files: Handles<OpenFile>,
    pub directories: Handles<OpenDirectory>,
    pub under_way: Arc<UnderWay>,
    pub unopened: Unopened,
    pub late_reads: LateReads,
    pub expiry: Arc<Expiry>,
    lent: Mutex<LentFiles<BackingId>>,
    failures: FailureLog,
}

impl Service {
    /// Nothing open yet.
    pub fn new(options: MountOptions, surroundings: Surroundings) -> Arc<Self> {
        Arc::new(Self {
            tree: OnceLock::new(),
            offered: OnceLock::new(),
            lending: AtomicBool::new(false),
            writable: AtomicBool::new(false),
            files: Handles::default(),
            directories: Handles::default(),
            unopened: Unopened::new(options.idle_max.bytes),
            late_reads: LateReads::default(),
            expiry: Expiry::new(Arc::clone(&surroundings.clock), surroundings.metrics.clone()),
            under_way: UnderWay::new(Arc::clone(&surroundings.clock)),
            lent: Mutex::new(LentFiles::new(options.idle_max)),
            failures: FailureLog::default(),
            options,
            surroundings,
        })
    }

    /// Keeps what the kernel offers.
    pub fn offer(&self, offered: Offered) {
        let first = self.offered.set(offered);
        debug_assert!(first.is_ok(), "a mount has one kernel");
    }

    /// What the kernel offers.
    pub fn offered(&self) -> Offered {
        self.offered.get().copied().unwrap_or_default()
    }

    /// Keeps what came out of the handshake. To be called once, before a request is read.
    pub fn begin(&self, tree: Arc<dyn KernelTree>, lending: bool) {
        self.lending.store(lending, Ordering::Relaxed);
        self.writable.store(tree.is_writable(), Ordering::Relaxed);
        let begun = self.tree.set(tree);
        debug_assert!(begun.is_ok(), "a mount has one tree");
    }

    /// Whether the kernel reads lent files by itself.
    pub fn lends(&self) -> bool {
        self.lending.load(Ordering::Relaxed)
    }

    /// Whether the kernel may ask for changes; the tree may still refuse them.
    pub fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    /// The tree that is mounted.
    pub fn tree(&self) -> &Arc<dyn KernelTree> {
        self.tree.get().expect("the tree is there before the first request is read")
    }

    /// The lent files. What is let go of is dropped without this lock.
    pub fn lent(&self) -> MutexGuard<'_, LentFiles<BackingId>> {
        self.lent.lock().expect("no panic while lent files are counted")
    }

    /// Does the work of one request in the calling thread. A panic in it fails that request alone: its reply, dropped
    /// without an answer, says EIO.
    pub fn work(&self, operation: &'static str, work: impl FnOnce()) {
        let _busy = self.under_way.begin();
        self.surroundings.metrics.kernel_requests.inc();
        if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.fail(operation, &defect());
        }
    }

    /// Passes an answer on: at once when it is there, otherwise when it has come.
    pub fn answer<T: Send + 'static>(
        self: &Arc<Self>,
        operation: &'static str,
        answer: Answer<T>,
        finish: impl FnOnce(&Arc<Self>, std::result::Result<T, Errno>) + Send + 'static,
    ) {
        match answer {
            Answer::Now(result) => finish(self, result.map_err(|error| self.fail(operation, &error))),
            Answer::Later(future) => self.park(operation, future, finish),
        }
    }

    /// Waits for an answer without a thread, but not for ever, and passes it on.
    pub fn park<T: Send + 'static>(
        self: &Arc<Self>,
        operation: &'static str,
        future: BoxFuture<'static, Result<T>>,
        finish: impl FnOnce(&Arc<Self>, std::result::Result<T, Errno>) + Send + 'static,
    ) {
        let parked = self.under_way.park();
        let service = Arc::clone(self);
        self.surroundings.runtime.spawn(async move {
            let waited = tokio::time::timeout(service.options.request_timeout, AssertUnwindSafe(future).catch_unwind());
            let result = match waited.await {
                Ok(Ok(result)) => result,
                Ok(Err(_panic)) => Err(defect()),
                Err(_elapsed) => Err(Error::new(ErrorKind::Timeout, "answer the kernel", "no answer in time")),
            };
            // Before the answer: who has it finds nothing of it under way.
            drop(parked);
            finish(&service, result.map_err(|error| service.fail(operation, &error)));
        });
    }

    /// Passes on what became of a change when it is there. Begins it in a thread that may block, which answers where
    /// nothing but the disk has to be waited for. Never gives one up: the tree limits by itself how long it takes, an
    /// upload may take its time, and who was told that it took too long would not know what happened.
    pub fn change<T: Send + 'static>(
        self: &Arc<Self>,
        operation: &'static str,
        answer: Answer<T>,
        finish: impl FnOnce(&Arc<Self>, std::result::Result<T, Errno>) + Send + 'static,
    ) {
        let future = match answer {
            Answer::Now(result) => return finish(self, result.map_err(|error| self.fail(operation, &error))),
            Answer::Later(future) => future,
        };
        let service = Arc::clone(self);
        let mut changing = Box::pin(async move {
            let ended = AssertUnwindSafe(future).catch_unwind().await;
            let result = ended.unwrap_or_else(|_panic| Err(defect()));
            finish(&service, result.map_err(|error| service.fail(operation, &error)));
        });
        let runtime = self.surroundings.runtime.clone();
        drop(self.surroundings.runtime.spawn_blocking(move || {
            if (&mut changing).now_or_never().is_none() {
                runtime.spawn(changing);
            }
        }));
    }

    /// Logs a failure; what to tell the kernel.
    pub fn fail(&self, operation: &str, error: &Error) -> Errno {
        self.failures.note(self.surroundings.clock.as_ref(), operation, &self.options.target, error);
        errno(error.kind())
    }

    /// Logs why the kernel did not take a file that was lent to it.
    pub fn not_lent(&self, error: &io::Error) {
        let failed = Error::new(ErrorKind::ResourceLimit, "lend a file to the kernel", error.to_string());
        self.fail("open", &failed.advise("it is served without"));
    }

    /// What to say to what no tree does: links, and extended attributes that are set.
    pub fn never(&self) -> Errno {
        if self.is_writable() { Errno::EOPNOTSUPP } else { Errno::EROFS }
    }

    /// Takes the name of a node back from the kernel.
    pub fn expire(&self, node: NodeId) {
        if let Some((directory, name)) = self.tree().name_of(node) {
            drop(self.expiry.expire(vec![Expired::Name(directory, name)]));
        }
    }

    /// How long the kernel may believe in a name.
    pub fn name_valid(&self, looked: &Looked) -> Duration {
        if self.expiry.works() { valid(looked.name_valid) } else { Duration::ZERO }
    }

    /// How long the kernel may believe in attributes. Those of a file change only by what the
    /// kernel itself writes, those of a directory by whatever changes its names.
    pub fn attributes_valid(&self, looked: &Looked) -> Duration {
        let changes = looked.found.is_none_or(|found| found.is_directory);
        if changes && !self.expiry.works() { Duration::ZERO } else { valid(looked.attributes_valid) }
    }

    /// How long the kernel may believe in attributes that come with a name. There the inode number is that of the node:
    /// where another is to be shown, it asks once more.
    pub fn entry_valid(&self, looked: &Looked) -> Duration {
        let is_other = looked.found.is_some_and(|found| found.number != found.node.0);
        if is_other { Duration::ZERO } else { self.attributes_valid(looked) }
    }

    /// Attributes in the kernel's words, with the number of the node.
    pub fn shown(&self, node: &NodeAttributes) -> FileAttr {
        let (age, is_before) = match node.posix.modified_ns {
            Some(ns) => (Duration::from_nanos(ns.unsigned_abs()), ns < 0),
            None => (Duration::from_millis(node.modified_ms.unsigned_abs()), node.modified_ms < 0),
        };
        let modified = if is_before { UNIX_EPOCH.checked_sub(age) } else { UNIX_EPOCH.checked_add(age) };
        let modified = modified.unwrap_or(UNIX_EPOCH);
        let (kind, unsaid) = match node.is_directory {
            true => (FileType::Directory, self.options.directory_mode),
            false => (FileType::RegularFile, self.options.file_mode),
        };
        let perm = node.posix.mode.unwrap_or(unsaid);
        let shown = self.attributes(INodeNo(node.node.0), node.size, modified, kind, perm);
        FileAttr { uid: node.posix.uid.unwrap_or(shown.uid), gid: node.posix.gid.unwrap_or(shown.gid), ..shown }
    }

    /// What is shown of files of which nobody has said anything.
    pub fn unsaid(&self) -> Posix {
        let MountOptions { uid, gid, file_mode, .. } = self.options;
        Posix { mode: Some(file_mode), uid: Some(uid), gid: Some(gid), modified_ns: None }
    }

    /// As [`Service::unsaid`], of directories.
    pub fn unsaid_of_directory(&self) -> Posix {
        Posix { mode: Some(self.options.directory_mode), ..self.unsaid() }
    }

    /// What is said of a file that is made with a mode, which the kernel has cut by the umask of who makes it: nothing
    /// where that is shown of every file. Nobody gets rights by it that the mount gives nobody.
    pub fn made(&self, mode: u32) -> Posix {
        self.mode_of_made(mode).beyond(self.unsaid())
    }

    /// As [`Service::made`], of a directory.
    pub fn made_directory(&self, mode: u32) -> Posix {
        self.mode_of_made(mode).beyond(self.unsaid_of_directory())
    }

    fn mode_of_made(&self, mode: u32) -> Posix {
        let mode = Posix::permissions(mode) & (self.options.directory_mode | self.options.file_mode);
        Posix { mode: Some(mode), ..Posix::default() }
    }

    /// What has no name: with the number 0 the kernel keeps that, too.
    pub fn absent(&self) -> FileAttr {
        self.attributes(INodeNo(0), 0, UNIX_EPOCH, FileType::RegularFile, 0)
    }

    fn attributes(&self, ino: INodeNo, size: u64, modified: SystemTime, kind: FileType, perm: u16) -> FileAttr {
        FileAttr {
            ino,
            size,
            blocks: size.div_ceil(SECTOR_BYTES),
            atime: modified,
            mtime: modified,
            ctime: modified,
            crtime: modified,
            kind,
            perm,
            // Of a directory, 1 says that its directories were not counted.
            nlink: 1,
            uid: self.options.uid,
            gid: self.options.gid,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }
}

/// How long the kernel may believe something.
fn valid(duration: Duration) -> Duration {
    duration.min(VALID_MAX)
}

fn defect() -> Error {
    Error::new(ErrorKind::Internal, "answer the kernel", "the answer panicked").advise("report it")
}
