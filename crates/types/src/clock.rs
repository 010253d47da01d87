//! Time as a parameter, so that tests can be about an hour without taking one.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Two clocks: one that never goes back, one that people read.
pub trait Clock: Send + Sync + 'static {
    /// Time since an arbitrary fixed moment; never decreases.
    fn monotonic(&self) -> Duration;
    /// Milliseconds since the Unix epoch; may jump.
    fn wall_ms(&self) -> i64;
}

/// The machine's clocks.
pub struct SystemClock {
    started: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    fn wall_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}
