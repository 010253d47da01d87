//! The requests that a mount has not answered yet: who watches over a mount asks how old the oldest one is.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use penstock_types::Clock;

thread_local! {
    // A thread that speaks to a kernel belongs to one mount for its whole life.
    static BUSY: OnceCell<Arc<AtomicU64>> = const { OnceCell::new() };
}

/// Requests that a thread is busy with, and those that wait for their answer without one.
pub struct UnderWay {
    clock: Arc<dyn Clock>,
    /// Of each thread, microseconds on the clock since when it has been busy; 0 when it is not.
    threads: Mutex<Vec<Arc<AtomicU64>>>,
    /// In the order of their beginning.
    parked: Mutex<BTreeMap<u64, Duration>>,
    next: AtomicU64,
}

/// A request that a thread is busy with; ends when it is dropped.
pub struct Busy(Arc<AtomicU64>);

/// A request that waits for its answer; ends when it is dropped.
pub struct Parked {
    under_way: Arc<UnderWay>,
    number: u64,
}

impl UnderWay {
    /// None yet.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, threads: Mutex::default(), parked: Mutex::default(), next: AtomicU64::new(0) })
    }

    /// The calling thread begins a request.
    pub fn begin(&self) -> Busy {
        let slot = BUSY.with(|cell| {
            let slot = cell.get_or_init(|| {
                let slot = Arc::new(AtomicU64::new(0));
                self.threads.lock().expect("no panic while threads are listed").push(Arc::clone(&slot));
                slot
            });
            Arc::clone(slot)
        });
        let now = u64::try_from(self.clock.monotonic().as_micros()).unwrap_or(u64::MAX);
        slot.store(now.max(1), Ordering::Relaxed);
        Busy(slot)
    }

    /// A request goes on without a thread.
    pub fn park(self: &Arc<Self>) -> Parked {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.parked().insert(number, self.clock.monotonic());
        Parked { under_way: Arc::clone(self), number }
    }

    /// Age of the oldest request that has no answer yet.
    pub fn oldest(&self) -> Option<Duration> {
        let parked = self.parked().first_key_value().map(|(_, began)| *began);
        let threads = self.threads.lock().expect("no panic while threads are listed");
        let busy = threads.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(|since| *since > 0);
        let began = busy.map(Duration::from_micros).chain(parked).min()?;
        Some(self.clock.monotonic().saturating_sub(began))
    }

    fn parked(&self) -> MutexGuard<'_, BTreeMap<u64, Duration>> {
        self.parked.lock().expect("no panic while requests are listed")
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.under_way.parked().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use penstock_testkit::ManualClock;

    use super::*;

    #[test]
    fn the_oldest_request_counts_whether_a_thread_is_busy_with_it_or_it_is_parked() {
        let clock = Arc::new(ManualClock::default());
        let under_way = UnderWay::new(Arc::clone(&clock) as Arc<dyn Clock>);
        assert_eq!(under_way.oldest(), None);
        let parked = under_way.park();
        clock.advance(Duration::from_secs(3));
        let busy = under_way.begin();
        let later = under_way.park();
        clock.advance(Duration::from_secs(2));
        assert_eq!(under_way.oldest(), Some(Duration::from_secs(5)));
        drop(parked);
        assert_eq!(under_way.oldest(), Some(Duration::from_secs(2)));
        drop(later);
        assert_eq!(under_way.oldest(), Some(Duration::from_secs(2)));
        drop(busy);
        assert_eq!(under_way.oldest(), None);
    }
}
