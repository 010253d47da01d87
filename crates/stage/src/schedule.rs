//! When a change is given out: in the order of its commit, or when it has waited: after a failure, or for what comes first.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::change::OperationId;

/// First wait after a failure; doubled with each one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait after a failure, unless the source asked for more.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Doublings after which the longest wait is reached for sure.
const DOUBLINGS_MAX: u32 = 10;

/// Changes that are the oldest of their key and were not given out.
pub struct Schedule {
    ready: BTreeSet<OperationId>,
    later: BTreeSet<(Duration, OperationId)>,
    /// What waits for something else, and until when it is not looked at again.
    held: BTreeSet<(Duration, OperationId)>,
    chance: fastrand::Rng,
}

impl Schedule {
    pub fn new(seed: u64) -> Self {
        let chance = fastrand::Rng::with_seed(seed);
        Self { ready: BTreeSet::new(), later: BTreeSet::new(), held: BTreeSet::new(), chance }
    }

    /// It may be given out now.
    pub fn add(&mut self, operation: OperationId) {
        self.ready.insert(operation);
    }

    /// It may be given out after a wait: its try number `failures` failed, and the source asked to be left alone for
    /// `asked`.
    pub fn add_failed(&mut self, operation: OperationId, failures: u32, asked: Option<Duration>, now: Duration) {
        let doublings = failures.saturating_sub(1).min(DOUBLINGS_MAX);
        let wait = (FIRST_WAIT * 2u32.pow(doublings)).min(LONGEST_WAIT);
        // Between half and all of it, so that what failed together is not tried together.
        let wait = wait.mul_f64(1.0 - self.chance.f64() / 2.0);
        self.later.insert((now + wait.max(asked.unwrap_or_default()), operation));
    }

    /// It waits for something else: it may be given out from `due` on, or once what is held is released.
    pub fn hold(&mut self, operation: OperationId, due: Duration) {
        self.held.insert((due, operation));
    }

    /// What something else waited for may have come.
    pub fn release(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.ready.extend(held.into_iter().map(|(_, operation)| operation));
    }

    /// It is not given out any more.
    pub fn remove(&mut self, operation: OperationId) {
        if !self.ready.remove(&operation) {
            self.later.retain(|(_, waiting)| *waiting != operation);
            self.held.retain(|(_, waiting)| *waiting != operation);
        }
    }

    /// Takes the oldest that may be given out.
    pub fn take(&mut self, now: Duration) -> Option<OperationId> {
        for waiting in [&mut self.later, &mut self.held] {
            while let Some(&(due, operation)) = waiting.first()
                && due <= now
            {
                waiting.pop_first();
                self.ready.insert(operation);
            }
        }
        self.ready.pop_first()
    }

    /// Nothing waits any more.
    pub fn hurry(&mut self) {
        let later = std::mem::take(&mut self.later);
        self.ready.extend(later.into_iter().map(|(_, operation)| operation));
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_change_waits_longer_each_time_up_to_a_minute_and_no_two_alike() {
        let operation = |sequence| OperationId { sequence, epoch: 1, node: 1 };
        let mut schedule = Schedule::new(7);
        let mut waits = Vec::new();
        for failures in [1, 2, 3, 7, 100] {
            schedule.add_failed(operation(1), failures, None, Duration::ZERO);
            waits.push(schedule.later.pop_first().unwrap().0.as_secs_f64());
        }
        for (wait, longest) in waits.iter().zip([1.0, 2.0, 4.0, 60.0, 60.0]) {
            assert!((longest / 2.0..=longest).contains(wait), "{waits:?}");
        }
        let asked = Duration::from_secs(300);
        schedule.add_failed(operation(1), 1, Some(asked), Duration::ZERO);
        assert_eq!(schedule.take(Duration::from_secs(299)), None);
        assert_eq!(schedule.take(asked), Some(operation(1)));
    }

    #[test]
    fn the_oldest_change_is_taken_first_and_what_is_hurried_does_not_wait() {
        let operation = |sequence| OperationId { sequence, epoch: 1, node: 1 };
        let mut schedule = Schedule::new(7);
        schedule.add(operation(3));
        schedule.add(operation(2));
        schedule.add_failed(operation(1), 9, None, Duration::ZERO);
        assert_eq!(schedule.take(Duration::ZERO), Some(operation(2)));
        schedule.hurry();
        assert_eq!(schedule.take(Duration::ZERO), Some(operation(1)));
        schedule.hold(operation(1), Duration::from_secs(1));
        assert_eq!(schedule.take(Duration::ZERO), Some(operation(3)));
        schedule.add(operation(3));
        schedule.release();
        assert_eq!(schedule.take(Duration::ZERO), Some(operation(1)));
        schedule.remove(operation(3));
        assert_eq!(schedule.take(Duration::MAX), None);
    }
}
