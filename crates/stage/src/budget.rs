//! The bytes of the stage: what is written, waits or is in conflict is charged here. Who writes while it fills up is
//! slowed down, who finds it full waits a while, and both are counted.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use penstock_types::{Clock, Error, ErrorKind, Metrics, Result};

use crate::pace::{LEAST_WAIT, Pace};
use crate::status::Pressure;

/// A waiting writer looks at the clock so often.
const LOOK: Duration = Duration::from_millis(20);
/// Renames may use so much more than the size of the stage, of which it is this part.
const RESERVED_PART: u64 = 8;

/// The size of a stage and what is used of it.
pub struct Budget {
    size: u64,
    patience: Patience,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    state: Mutex<State>,
    freed: Condvar,
}

/// How long a writer waits for room before it gets `NoSpace`.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// While nothing is brought; also the longest that one write is slowed down.
    pub idle: Duration,
    /// While something is.
    pub longest: Duration,
}

struct State {
    used: u64,
    closed: bool,
    pace: Pace,
    /// When something was brought or freed last.
    progress: Duration,
    /// Somebody found no room since something was freed.
    refused: bool,
}

impl Budget {
    pub fn new(size: u64, patience: Patience, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        let (pace, progress) = (Pace::new(size), Duration::ZERO);
        let state = Mutex::new(State { used: 0, closed: false, pace, progress, refused: false });
        Self { size, patience, clock, metrics, state, freed: Condvar::new() }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn used(&self) -> u64 {
        self.state().used
    }

    pub fn pressure(&self) -> Pressure {
        self.pressure_of(&self.state())
    }

    /// Takes bytes. Goes at the pace of the sources where the stage fills up, and waits for room where it is full.
    ///
    /// # Errors
    /// `NoSpace` when it stays full for too long, or is too small in all; `Cancelled` when it is closed.
    pub fn take(&self, bytes: u64) -> Result<()> {
        if bytes > self.size {
            return Err(self.full(bytes, "it is larger than the stage").advise("raise stage.size"));
        }
        let mut state = self.state();
        Self::check_open(&state)?;
        if bytes > 0 && !Self::is_free_for(&state, bytes) {
            state = self.wait(state, bytes)?;
        }
        self.charge(&mut state, bytes);
        Ok(())
    }

    /// As [`Budget::take`], at once, and where the stage is full of a reserve beyond its size.
    ///
    /// # Errors
    /// `NoSpace` when that is used up, too; `Cancelled` when it is closed.
    pub fn take_reserved(&self, bytes: u64) -> Result<()> {
        let mut state = self.state();
        Self::check_open(&state)?;
        if state.used.saturating_add(bytes) > self.size.saturating_add(self.size / RESERVED_PART) {
            return Err(self.full(state.used, "it is full, and so is its reserve for renames"));
        }
        self.charge(&mut state, bytes);
        Ok(())
    }

    /// As [`Budget::take`], where nothing has to be waited for; whether it took them.
    pub fn try_take(&self, bytes: u64) -> bool {
        let mut state = self.state();
        let fits = !state.closed && Self::is_free_for(&state, bytes);
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
        if released > 0 {
            (state.refused, state.progress) = (false, self.clock.monotonic());
        }
        self.metrics.stage_used_bytes.dec_by(released.cast_signed());
        self.metrics.stage_pressure.set(self.pressure_of(&state) as i64);
        self.freed.notify_all();
    }

    /// A source has taken bytes: so fast writers may go on.
    pub fn brought(&self, bytes: u64) {
        let (now, mut state) = (self.clock.monotonic(), self.state());
        state.pace.brought(bytes, now);
        state.progress = now;
    }

    /// Ends every wait.
    pub fn close(&self) {
        self.state().closed = true;
        self.freed.notify_all();
    }

    fn charge(&self, state: &mut State, bytes: u64) {
        state.used = state.used.saturating_add(bytes);
        self.metrics.stage_used_bytes.inc_by(bytes.cast_signed());
        self.metrics.stage_pressure.set(self.pressure_of(state) as i64);
    }

    /// Whether bytes can be had without waiting for anything.
    fn is_free_for(state: &State, bytes: u64) -> bool {
        state.used.saturating_add(bytes) <= state.pace.bound()
    }

    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>, bytes: u64) -> Result<MutexGuard<'a, State>> {
        let begun = self.clock.monotonic();
        let latest = begun + self.patience.idle;
        let used = state.used;
        let turn = state.pace.turn(bytes, used, begun).min(latest);
        state.pace.forgive(latest);
        if turn <= begun + LEAST_WAIT && state.used.saturating_add(bytes) <= self.size {
            return Ok(state);
        }
        self.metrics.stage_waits.inc();
        self.metrics.stage_waiting.inc();
        let waited = self.wait_until(state, bytes, begun, turn);
        self.metrics.stage_waiting.dec();
        let took = self.clock.monotonic().saturating_sub(begun);
        self.metrics.stage_wait_ms.inc_by(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        waited
    }

    fn wait_until<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        bytes: u64,
        begun: Duration,
        turn: Duration,
    ) -> Result<MutexGuard<'a, State>> {
        loop {
            Self::check_open(&state)?;
            let (now, fits) = (self.clock.monotonic(), state.used.saturating_add(bytes) <= self.size);
            if fits && (now >= turn || Self::is_free_for(&state, bytes)) {
                return Ok(state);
            }
            if !fits {
                state.refused = true;
                self.metrics.stage_pressure.set(self.pressure_of(&state) as i64);
                let deadline = (state.progress.max(begun) + self.patience.idle).min(begun + self.patience.longest);
                if now >= deadline {
                    return Err(self.full(state.used, "it is full, and the sources do not take what waits"));
                }
            }
            state = self.freed.wait_timeout(state, LOOK).expect("no panic while the budget is held").0;
        }
    }

    fn pressure_of(&self, state: &State) -> Pressure {
        match () {
            () if state.refused || state.used >= self.size => Pressure::Full,
            () if state.used > state.pace.bound() => Pressure::Slowed,
            () => Pressure::None,
        }
    }

    fn check_open(state: &State) -> Result<()> {
        match state.closed {
            true => Err(Error::new(ErrorKind::Cancelled, "use the stage", "the node is being stopped")),
            false => Ok(()),
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
