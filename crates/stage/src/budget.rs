//! The bytes of the stage: what is written, waits or is in conflict is charged here, and who finds it full waits.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use penstock_types::{Clock, Error, ErrorKind, Metrics, Result};

/// A waiting writer looks at the clock so often.
const LOOK: Duration = Duration::from_millis(20);

/// The size of a stage and what is used of it.
pub struct Budget {
    size: u64,
    patience: Duration,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    used: u64,
    closed: bool,
}

impl Budget {
    pub fn new(size: u64, patience: Duration, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        Self { size, patience, clock, metrics, state: Mutex::default(), freed: Condvar::new() }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn used(&self) -> u64 {
        self.state().used
    }

    /// Returns when the stage is not full.
    ///
    /// # Errors
    /// As [`Budget::take`].
    pub fn wait_for_room(&self) -> Result<()> {
        self.wait_until(|used| used < self.size).map(drop)
    }

    /// Takes bytes; waits for them where the stage is full.
    ///
    /// # Errors
    /// `NoSpace` when it stays full for too long, or is too small in all; `Cancelled` when it is closed.
    pub fn take(&self, bytes: u64) -> Result<()> {
        if bytes > self.size {
            return Err(self.full(bytes, "it is larger than the stage").advise("raise stage.size"));
        }
        let mut state = self.wait_until(|used| used.saturating_add(bytes) <= self.size)?;
        self.charge(&mut state, bytes);
        Ok(())
    }

    /// As [`Budget::take`], where nothing has to be waited for; whether it took them.
    pub fn try_take(&self, bytes: u64) -> bool {
        let mut state = self.state();
        let fits = !state.closed && state.used.saturating_add(bytes) <= self.size;
        if fits {
            self.charge(&mut state, bytes);
        }
        fits
    }

    /// Charges bytes that are there already, whether there is room or not.
    pub fn force(&self, bytes: u64) {
        self.charge(&mut self.state(), bytes);
    }

    /// Gives bytes back.
    pub fn release(&self, bytes: u64) {
        let mut state = self.state();
        let released = bytes.min(state.used);
        state.used -= released;
        self.metrics.stage_used_bytes.dec_by(released.cast_signed());
        self.freed.notify_all();
    }

    /// Ends every wait.
    pub fn close(&self) {
        self.state().closed = true;
        self.freed.notify_all();
    }

    fn charge(&self, state: &mut State, bytes: u64) {
        state.used = state.used.saturating_add(bytes);
        self.metrics.stage_used_bytes.inc_by(bytes.cast_signed());
    }

    fn wait_until(&self, enough: impl Fn(u64) -> bool) -> Result<MutexGuard<'_, State>> {
        let deadline = self.clock.monotonic() + self.patience;
        let mut state = self.state();
        loop {
            if state.closed {
                return Err(Error::new(ErrorKind::Cancelled, "use the stage", "the node is being stopped"));
            }
            if enough(state.used) {
                return Ok(state);
            }
            if self.clock.monotonic() >= deadline {
                let used = state.used;
                return Err(self.full(used, "it is full, and the sources do not take what waits"));
            }
            state = self.freed.wait_timeout(state, LOOK).expect("no panic while the budget is held").0;
        }
    }

    fn full(&self, bytes: u64, reason: &str) -> Error {
        Error::new(ErrorKind::NoSpace, "write into the stage", reason)
            .advise("wait for the uploads (penstock status), or raise stage.size")
            .fact("size", self.size)
            .fact("bytes", bytes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the budget is held")
    }
}
