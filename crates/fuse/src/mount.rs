//! A kernel mount that is served: from the handshake to the end of its connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use penstock_types::{Error, ErrorKind, KernelExpiry, KernelTree, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::connection;
use crate::door::Door;
use crate::expiry::Expiry;
use crate::handshake;
use crate::lent::Lent;
use crate::service::{MountOptions, Service, Surroundings};

/// What came out of the handshake.
#[derive(Clone, Debug)]
pub struct MountFacts {
    /// Whether the kernel reads lent files by itself.
    pub lending: bool,
    /// Why, or why not, for people.
    pub why: String,
    /// Number of the connection: the minor part of `st_dev` below the mount. `None` where the kernel does not tell.
    pub connection: Option<u32>,
}

/// A mount that is served by threads of its own until the kernel's side of it is gone. Dropping it ends the connection.
pub struct Mount {
    facts: MountFacts,
    target: String,
    // The session owns it, and what waits for an answer: when both are gone, so is everything that was held.
    service: Weak<Service>,
    life: Arc<Life>,
}

/// Whether the session goes on.
struct Life {
    /// The kernel's side, to ask whether it still is there. Closed with the session: while any descriptor of a
    /// connection is open, programs that use the mount would wait for nobody.
    device: Mutex<Option<OwnedFd>>,
    ended: Condvar,
}

impl Mount {
    /// Serves the kernel mount that `device` was mounted with. `lendable` is some file on the disk of the cache, where
    /// one could be made: whether the kernel reads such by itself is tried with it, and told to `tree`. Blocks until
    /// the kernel has sent its first message, which is on its way once it is mounted.
    ///
    /// # Errors
    /// `InvalidInput` when `device` is something else, or a tree is writable where nothing is opened; `Unsupported` when the handshake fails: it was not mounted, or
    /// the kernel is too old; `ResourceLimit` without threads or descriptors.
    pub fn serve(
        device: OwnedFd,
        lendable: Option<BorrowedFd<'_>>,
        options: MountOptions,
        surroundings: Surroundings,
        tree: impl FnOnce(&MountFacts) -> Arc<dyn KernelTree>,
    ) -> Result<Self> {
        let target = options.target.clone();
        let action = || format!("serve the mount at {target}");
        if !connection::is_device(device.as_fd()) {
            let wrong = Error::new(ErrorKind::InvalidInput, action(), "the descriptor is not /dev/fuse");
            return Err(wrong.advise("report it"));
        }
        let scarce = |error: std::io::Error| Error::new(ErrorKind::ResourceLimit, action(), error.to_string());
        let spare = device.try_clone().map_err(scarce)?;
        let config = session_config(&options);
        let acl = config.acl;
        let service = Service::new(options, surroundings);
        let session = Session::from_fd(Door(Arc::clone(&service)), device, acl, config).map_err(|error| {
            let reason = format!("no handshake with the kernel: {error}");
            Error::new(ErrorKind::Unsupported, action(), reason).advise("mount the device before it is served")
        })?;
        let lent = match lendable {
            _ if service.options.no_open => Err("nothing is opened that could be lent".into()),
            _ if !service.offered().lends => {
                Err("the kernel does not offer to read files by itself; Linux 6.9 does".into())
            }
            None => Err("no file could be made beside the cache to try it with".into()),
            Some(file) => handshake::probe(session.as_fd(), file),
        };
        let facts = MountFacts {
            lending: lent.is_ok(),
            why: lent.err().unwrap_or_else(|| "the kernel reads cached files by itself".into()),
            connection: connection::number(session.as_fd(), &target),
        };
        let tree = tree(&facts);
        if service.options.no_open && tree.is_writable() {
            let wrong =
                Error::new(ErrorKind::InvalidInput, action(), "a tree that is written needs to be asked at opens");
            return Err(wrong.advise("report it"));
        }
        service.begin(tree, facts.lending);
        service.expiry.begin(session.notifier()).map_err(scarce)?;
        service.tree().watch(watcher(&service.expiry));
        let life = Arc::new(Life { device: Mutex::new(Some(spare)), ended: Condvar::new() });
        let weak = Arc::downgrade(&service);
        drop(service);
        begin(session, Arc::clone(&life), target.clone()).map_err(scarce)?;
        Ok(Self { facts, target, service: weak, life })
    }

    /// What came out of the handshake.
    pub fn facts(&self) -> &MountFacts {
        &self.facts
    }

    /// Whether the kernel's side still is there: mounted, or unmounted with files that are open.
    pub fn is_alive(&self) -> bool {
        self.life.device().as_ref().is_some_and(is_connected)
    }

    /// Files that programs have open.
    pub fn open_files(&self) -> usize {
        self.service.upgrade().map_or(0, |service| service.files.count())
    }

    /// Age of the oldest request that has no answer yet.
    pub fn oldest_request(&self) -> Option<Duration> {
        self.service.upgrade()?.under_way.oldest()
    }

    /// Lets go of files that are kept for the next open and that the cache wants back, and has taken back from the kernel
    /// what is not so any more, in a thread of the runtime. Cheap; once a second will do.
    pub fn tidy(&self) {
        let Some(service) = self.service.upgrade() else { return };
        let mut let_go: Vec<Lent<_>> = Vec::new();
        service.lent().tidy(&mut let_go);
        service.unopened.tidy();
        service.expiry.tick();
        let tree = Arc::clone(service.tree());
        // A directory may be large, and the kernel slow.
        drop(service.surroundings.runtime.spawn_blocking(move || tree.review()));
    }

    /// Ends the connection where it has not ended, so that whatever waits for it fails and no request comes any more;
    /// then waits up to `patience` for its threads.
    ///
    /// # Errors
    /// As for the kernel's control files: `Unsupported`, `PermissionDenied`. The mount then is served as before.
    pub fn stop(&self, patience: Duration) -> Result<()> {
        let ended = self.abort();
        let device = self.life.device();
        let waited = self.life.ended.wait_timeout_while(device, patience, |device| device.is_some());
        drop(waited.expect("no panic while a mount is looked at"));
        ended
    }

    fn abort(&self) -> Result<()> {
        // Looked at under the lock: while the device is open, its number belongs to no other mount.
        let device = self.life.device();
        if !device.as_ref().is_some_and(is_connected) {
            return Ok(());
        }
        match self.facts.connection {
            Some(number) => connection::abort(number).map_err(|error| error.fact("mount", &self.target)),
            None => Err(Error::new(ErrorKind::Unsupported, "end a mount", "the kernel does not tell its number")
                .advise("unmount it by force: umount -f")
                .fact("mount", &self.target)),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.abort() {
            tracing::error!(code = error.kind().code(), %error, "mount not ended");
        }
    }
}

impl Life {
    fn device(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.device.lock().expect("no panic while a mount is looked at")
    }

    fn end(&self) {
        drop(self.device().take());
        self.ended.notify_all();
    }
}

fn watcher(expiry: &Arc<Expiry>) -> Weak<dyn KernelExpiry> {
    let expiry: Weak<Expiry> = Arc::downgrade(expiry);
    expiry
}

/// Serves in threads until the connection ends.
fn begin(session: Session<Door>, life: Arc<Life>, target: String) -> std::io::Result<()> {
    let serving = move || {
        let ended = session.run();
        life.end();
        match ended {
            Ok(()) => tracing::info!(mount = target, "mount ended"),
            Err(error) => tracing::error!(code = "internal", mount = target, %error, "session of a mount failed"),
        }
    };
    std::thread::Builder::new().name("mount".into()).spawn(serving).map(drop)
}

/// A connection that the kernel has ended answers with an error, at once.
fn is_connected(device: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(device, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut asked, Some(&now)) {
        Ok(_) => !asked[0].revents().contains(PollFlags::ERR),
        Err(_) => true,
    }
}

fn session_config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads.max(1));
    // A descriptor for each thread, where the device may be opened: the kernel then wakes one of them, not all.
    config.clone_fd = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    config
}
