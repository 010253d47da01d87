//! One time line for facts. It never goes back, it follows the wall clock forward (so that a suspended machine does not
//! think its facts fresh), and it notices between runs that the wall clock was turned back.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use penstock_types::{Clock, Freshness};

/// Facts about single names are kept on disk where they are believed at least so long, s: otherwise they are stale
/// before anybody comes back for them.
const KEEP_FROM_SECONDS: f64 = 300.0;

/// Whether single names are worth a row.
pub(crate) fn keeps_names(freshness: Freshness) -> bool {
    match freshness {
        Freshness::Immutable => true,
        Freshness::Seconds(seconds) => seconds >= KEEP_FROM_SECONDS,
    }
}

/// A moment, microseconds since the Unix epoch as this time line counts.
pub(crate) type Moment = i64;

/// When a fact was learnt that is of unknown age: older than anything.
pub(crate) const LONG_AGO: Moment = Moment::MIN + 1;
/// The wall clock may be ahead of the time line by this much, µs, before the time line follows: its resolution is 1 ms.
const WALL_TOLERANCE: i64 = 50_000;
/// How long an absence is believed at most, µs, unless a listing that is fresh shows it.
pub(crate) const ABSENCE_LIMIT: i64 = 60_000_000;

/// Longest that anything is said to be valid: ten years.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The clock of facts.
pub(crate) struct Timeline {
    clock: Arc<dyn Clock>,
    /// What is added to the monotonic clock; only grows.
    offset: AtomicI64,
}

impl Timeline {
    /// A time line that begins at the wall clock's now.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let offset = wall(&*clock) - monotonic(&*clock);
        Self { clock, offset: AtomicI64::new(offset) }
    }

    /// Now; never less than it was.
    pub(crate) fn now(&self) -> Moment {
        let monotonic = monotonic(&*self.clock);
        let ahead = wall(&*self.clock) - monotonic;
        let offset = self.offset.load(Ordering::Acquire);
        if ahead > offset + WALL_TOLERANCE {
            return monotonic + self.offset.fetch_max(ahead, Ordering::AcqRel).max(ahead);
        }
        monotonic + offset
    }
}

fn wall(clock: &dyn Clock) -> i64 {
    clock.wall_ms().saturating_mul(1000)
}

fn monotonic(clock: &dyn Clock) -> i64 {
    i64::try_from(clock.monotonic().as_micros()).unwrap_or(i64::MAX)
}

/// Whether a fact that was asked for at `sent` may be believed at `now`.
pub(crate) fn is_fresh(freshness: Freshness, sent: Moment, now: Moment) -> bool {
    let age = now.saturating_sub(sent);
    match freshness {
        Freshness::Immutable => true,
        // A fact from the future was written under a clock that was wrong.
        Freshness::Seconds(seconds) => age >= 0 && (age as f64) < seconds * 1e6,
    }
}

/// How much longer a fact that was asked for at `sent` may be believed.
pub(crate) fn fresh_for(freshness: Freshness, sent: Moment, now: Moment) -> Duration {
    match freshness {
        _ if !is_fresh(freshness, sent, now) => Duration::ZERO,
        Freshness::Immutable => FOREVER,
        Freshness::Seconds(seconds) => {
            let age = Duration::from_micros(now.saturating_sub(sent).unsigned_abs());
            Duration::try_from_secs_f64(seconds).unwrap_or(FOREVER).min(FOREVER).saturating_sub(age)
        }
    }
}

/// Whether "nothing has that name", learnt from a question about that name alone, may be believed.
pub(crate) fn is_fresh_absence(freshness: Freshness, sent: Moment, now: Moment) -> bool {
    is_fresh(freshness, sent, now) && (0..ABSENCE_LIMIT).contains(&now.saturating_sub(sent))
}

#[cfg(test)]
mod tests {
    use penstock_testkit::ManualClock;

    use super::*;

    #[test]
    fn a_wall_clock_that_jumps_back_does_not_make_facts_younger() {
        let clock = Arc::new(ManualClock::default());
        let timeline = Timeline::new(clock.clone());
        let sent = timeline.now();
        clock.jump_wall(-3_600_000);
        clock.advance(Duration::from_secs(61));
        assert_eq!(timeline.now() - sent, 61_000_000);
        assert!(!is_fresh(Freshness::Seconds(60.0), sent, timeline.now()));
    }

    #[test]
    fn hours_that_only_the_wall_clock_saw_make_facts_older() {
        let clock = Arc::new(ManualClock::default());
        let timeline = Timeline::new(clock.clone());
        let sent = timeline.now();
        clock.jump_wall(3_600_000);
        assert_eq!(timeline.now() - sent, 3_600_000_000);
        clock.jump_wall(-3_600_000);
        assert_eq!(timeline.now() - sent, 3_600_000_000);
    }

    #[test]
    fn a_fact_is_fresh_for_less_than_its_freshness_and_never_when_that_is_zero() {
        assert!(is_fresh(Freshness::Seconds(1.0), 0, 999_999));
        assert!(!is_fresh(Freshness::Seconds(1.0), 0, 1_000_000));
        assert!(!is_fresh(Freshness::Seconds(0.0), 5, 5));
        assert!(!is_fresh(Freshness::Seconds(60.0), 10, 5));
        assert!(is_fresh(Freshness::Immutable, 0, i64::MAX));
        assert!(!is_fresh_absence(Freshness::Immutable, 0, ABSENCE_LIMIT));
    }

    #[test]
    fn what_is_left_of_a_freshness_shrinks_with_the_age_of_the_fact() {
        assert_eq!(fresh_for(Freshness::Seconds(60.0), 0, 15_000_000), Duration::from_secs(45));
        assert_eq!(fresh_for(Freshness::Seconds(60.0), 0, 60_000_000), Duration::ZERO);
        assert_eq!(fresh_for(Freshness::Seconds(0.0), 5, 5), Duration::ZERO);
        assert_eq!(fresh_for(Freshness::Seconds(1e300), 0, 0), FOREVER);
        assert_eq!(fresh_for(Freshness::Immutable, 0, i64::MAX), FOREVER);
    }
}
