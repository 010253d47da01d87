//! A clock that tests turn.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use penstock_types::Clock;

/// Stands still until it is told to move.
pub struct ManualClock {
    monotonic_ms: AtomicU64,
    wall_ms: AtomicI64,
}

impl Default for ManualClock {
    /// Begins at an arbitrary day in 2025.
    fn default() -> Self {
        Self { monotonic_ms: AtomicU64::new(1_000), wall_ms: AtomicI64::new(1_750_000_000_000) }
    }
}

impl ManualClock {
    /// Moves both clocks on.
    pub fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).expect("tests take less than an age");
        self.monotonic_ms.fetch_add(ms, Ordering::SeqCst);
        self.jump_wall(i64::try_from(ms).expect("tests take less than an age"));
    }

    /// Moves only what people read, forwards or back.
    pub fn jump_wall(&self, by_ms: i64) {
        self.wall_ms.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic_ms.load(Ordering::SeqCst))
    }

    fn wall_ms(&self) -> i64 {
        self.wall_ms.load(Ordering::SeqCst)
    }
}
