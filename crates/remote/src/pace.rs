//! Rates as clocks: a link that moves `rate` bytes a second is busy until a certain moment; a frame that wants to
//! pass is told when its last byte has passed. Frames pass in the order in which they ask, so that connections
//! share the link evenly; nobody polls, nothing is copied.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Idle time that a link may make up for afterwards: it hides the coarse timer, and is small against any transfer.
const CREDIT: Duration = Duration::from_millis(10);
/// The timer has ticks of a millisecond and never fires early: aiming half a tick earlier is right on average.
const HALF_TICK: Duration = Duration::from_micros(500);
/// Frames take about so long on their connection, within the two bounds below.
const FRAME_TIME: Duration = Duration::from_millis(5);
const MIN_FRAME_BYTES: u64 = 16 * 1024;
const MAX_FRAME_BYTES: u64 = 256 * 1024;
/// Without a rate, frames are only cut so that counters move.
const FREE_FRAME_BYTES: u64 = 1024 * 1024;

/// A link of some rate, used by one connection or shared by all.
#[derive(Debug)]
pub struct Link {
    started: Instant,
    /// Bytes per second; 0 is no limit.
    rate: u64,
    /// When the link is free again, nanoseconds since `started`.
    free_at: AtomicU64,
}

impl Link {
    /// A link that moves `rate` bytes per second; 0 is no limit.
    pub fn new(rate: u64, now: Instant) -> Self {
        Self { started: now, rate, free_at: AtomicU64::new(0) }
    }

    /// Forgets credit: the link begins something at `now`.
    pub fn begin(&self, now: Instant) {
        self.free_at.fetch_max(nanoseconds(now - self.started), Ordering::Relaxed);
    }

    /// Takes the link for `bytes` and tells when they have passed; `None` is at once.
    pub fn take(&self, bytes: u64, now: Instant) -> Option<Instant> {
        if self.rate == 0 {
            return None;
        }
        let earliest = nanoseconds((now - self.started).saturating_sub(CREDIT));
        let cost = bytes.saturating_mul(1_000_000_000) / self.rate;
        let next = |free_at: u64| Some(free_at.max(earliest).saturating_add(cost));
        let before = self.free_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        Some(self.started + Duration::from_nanos(before.max(earliest).saturating_add(cost)))
    }
}

/// The way of one connection in one direction: its own link, then the shared one.
#[derive(Clone, Debug)]
pub struct Pace {
    own: Arc<Link>,
    shared: Arc<Link>,
    frame_bytes: u64,
}

impl Pace {
    /// A connection of `rate` bytes per second (0 is no limit) into the shared link.
    pub fn new(rate: u64, shared: Arc<Link>, now: Instant) -> Self {
        let frame_bytes = match (rate, shared.rate) {
            (0, 0) => FREE_FRAME_BYTES,
            (0, slowest) | (slowest, 0) => frame_bytes(slowest),
            (own, shared) => frame_bytes(own.min(shared)),
        };
        Self { own: Arc::new(Link::new(rate, now)), shared, frame_bytes }
    }

    /// Most bytes of a frame.
    pub fn frame_bytes(&self) -> usize {
        usize::try_from(self.frame_bytes).unwrap_or(usize::MAX)
    }

    /// A body begins: what the connection did not use before is gone.
    pub fn begin(&self, now: Instant) {
        self.own.begin(now);
    }

    /// When `bytes` have passed both links; `None` is at once.
    pub fn take(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let bytes = bytes as u64;
        let passed = self.own.take(bytes, now).max(self.shared.take(bytes, now))?;
        (passed > now + HALF_TICK).then(|| passed - HALF_TICK)
    }
}

/// When something that takes `delay` from `start` on is to be waited for, with the coarse timer in mind.
pub fn deadline(start: Instant, delay: Duration) -> Instant {
    start + delay.saturating_sub(HALF_TICK)
}

fn frame_bytes(rate: u64) -> u64 {
    let bytes = u128::from(rate) * FRAME_TIME.as_nanos() / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX).clamp(MIN_FRAME_BYTES, MAX_FRAME_BYTES)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections that always have something to send, woken `late` behind each deadline, for a simulated second.
    /// Gives the bytes of each.
    fn simulate(own: u64, shared: u64, connections: usize, late: Duration) -> Vec<f64> {
        let start = Instant::now();
        let link = Arc::new(Link::new(shared, start));
        let paces: Vec<Pace> = (0..connections).map(|_| Pace::new(own, link.clone(), start)).collect();
        let mut wakes = vec![start; connections];
        let mut moved = vec![0.0; connections];
        loop {
            let next = (0..connections).min_by_key(|&at| wakes[at]).unwrap();
            let now = wakes[next];
            if now > start + Duration::from_secs(1) {
                return moved;
            }
            let frame = paces[next].frame_bytes();
            wakes[next] = paces[next].take(frame, now).map_or(now, |at| at + late);
            moved[next] += frame as f64;
        }
    }

    #[test]
    fn connections_share_the_link_evenly_and_fill_it() {
        for late in [0, 500, 2000] {
            let moved = simulate(60_000_000, 400_000_000, 10, Duration::from_micros(late));
            let total: f64 = moved.iter().sum();
            assert!((total / 400e6 - 1.0).abs() < 0.03, "{total} when {late} us late");
            assert!(moved.iter().all(|bytes| (bytes / 40e6 - 1.0).abs() < 0.05), "{moved:?}");
        }
    }

    #[test]
    fn one_connection_gets_its_own_rate_whatever_the_timer_adds() {
        for late in [0, 1000, 5000] {
            let moved = simulate(60_000_000, 400_000_000, 1, Duration::from_micros(late))[0];
            assert!((moved / 60e6 - 1.0).abs() < 0.02, "{moved} when {late} us late");
        }
    }

    #[test]
    fn idle_time_earns_no_more_than_the_credit() {
        let start = Instant::now();
        let link = Link::new(1_000_000, start);
        let later = start + Duration::from_secs(60);
        assert_eq!(link.take(100_000, later), Some(later + Duration::from_millis(100) - CREDIT));
        assert_eq!(Link::new(0, start).take(1 << 40, start), None);
    }
}
