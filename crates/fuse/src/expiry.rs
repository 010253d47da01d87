//! Takes names back from the kernel that it believes in for longer than they are true.
//!
//! The kernel takes the lock of the directory for it, which a program that waits for us may hold: a thread of its own
//! does it. Should that fail or hang, the kernel is told from then on to believe nothing.

use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use penstock_types::{Clock, NodeId};

/// Names that wait to be taken back.
const WAITING_MAX: usize = 4096;
/// The kernel has so long for one.
const PATIENCE: Duration = Duration::from_secs(10);

type Name = (NodeId, Arc<str>);

/// The way back for names.
pub struct Expiry {
    names: OnceLock<SyncSender<Name>>,
    state: Arc<State>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct State {
    failed: AtomicBool,
    /// Microseconds on the clock since when the thread has been busy; 0 when it is not.
    busy_since: AtomicU64,
}

impl Expiry {
    /// Nothing is taken back yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { names: OnceLock::new(), state: Arc::default(), clock }
    }

    /// Begins to take names back; its thread ends when this is dropped.
    pub fn begin(&self, notifier: Notifier) -> io::Result<()> {
        let (sender, names) = sync_channel(WAITING_MAX);
        let (state, clock) = (Arc::clone(&self.state), Arc::clone(&self.clock));
        std::thread::Builder::new()
            .name("expire".into())
            .spawn(move || take_back(&names, &notifier, &state, &*clock))?;
        // Begun once, before the first request is read.
        let _ = self.names.set(sender);
        Ok(())
    }

    /// Takes a name of a directory back, soon.
    pub fn expire(&self, name: Name) {
        let Some(names) = self.names.get() else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = names.try_send(name) {
            self.state.fail("more names are wrong than the kernel takes back");
        }
    }

    /// Whether names can be taken back, so that the kernel may believe in them.
    pub fn works(&self) -> bool {
        !self.state.failed.load(Ordering::Relaxed)
    }

    /// Looks whether the kernel answers; once a second will do.
    pub fn tick(&self) {
        let since = self.state.busy_since.load(Ordering::Relaxed);
        if since > 0 && self.clock.monotonic().saturating_sub(Duration::from_micros(since)) > PATIENCE {
            self.state.fail("the kernel does not take a name back");
        }
    }
}

impl State {
    fn fail(&self, reason: &str) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::warn!(code = "unavailable", reason, "the kernel is told to believe nothing from now on");
        }
    }
}

fn take_back(names: &Receiver<Name>, notifier: &Notifier, state: &State, clock: &dyn Clock) {
    while let Ok((directory, name)) = names.recv() {
        let now = u64::try_from(clock.monotonic().as_micros()).unwrap_or(u64::MAX);
        state.busy_since.store(now.max(1), Ordering::Relaxed);
        let taken = notifier.inval_entry(INodeNo(directory.0), OsStr::new(&*name));
        state.busy_since.store(0, Ordering::Relaxed);
        match taken {
            // It was not believed in any more, or the mount is gone.
            Err(error) if matches!(error.raw_os_error(), Some(2 | 19 | 107)) => {}
            Err(error) => state.fail(&error.to_string()),
            Ok(()) => {}
        }
    }
}
