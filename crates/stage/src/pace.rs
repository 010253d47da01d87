//! How fast writers may go on while the stage fills up: as fast as the sources take what waits, faster where more than
//! half of the last quarter is left, more slowly where less is, so that the stage does not get full as long as they take
//! anything. Pure: time comes in, moments come out.

use std::time::Duration;

/// From here on writers are slowed down: so many quarters of the stage are in use.
const SLOWED_FROM_QUARTERS: u64 = 3;
/// With the sources away, writers would use up what is left in so long, at the pace that they have now: it halves as what
/// is left does.
const HORIZON_S: f64 = 30.0;
/// Nobody is made slower than that, in bytes per second: with so little left, the stage may as well be full soon.
const SLOWEST: f64 = 1024.0 * 1024.0;
/// Over how long the pace of the sources is averaged.
const AVERAGED_S: f64 = 10.0;
/// A writer that would wait less than this does not wait: sleeping takes longer.
pub(crate) const LEAST_WAIT: Duration = Duration::from_millis(20);

/// The pace of the sources, and of the writers that follow it.
pub(crate) struct Pace {
    /// Bytes of the stage above which writers are slowed down, and how many there are of those.
    bound: u64,
    slow_bytes: u64,
    /// Bytes per second that the sources took, as of `at`.
    taken: f64,
    at: Duration,
    /// When those who wrote until now are through.
    due: Duration,
}

impl Pace {
    /// For a stage of so many bytes.
    pub fn new(size: u64) -> Self {
        let bound = size / 4 * SLOWED_FROM_QUARTERS;
        Self { bound, slow_bytes: size - bound, taken: 0.0, at: Duration::ZERO, due: Duration::ZERO }
    }

    /// Above how many bytes writers are slowed down.
    pub fn bound(&self) -> u64 {
        self.bound
    }

    /// A source has taken bytes.
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn brought(&mut self, bytes: u64, now: Duration) {
        self.taken = self.taken_at(now) + bytes as f64 / AVERAGED_S;
        self.at = self.at.max(now);
    }

    /// When a writer may have `bytes`, where `used` are used before.
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn turn(&mut self, bytes: u64, used: u64, now: Duration) -> Duration {
        let above = used.saturating_add(bytes).saturating_sub(self.bound);
        let (slowed, left) = (above.min(bytes), self.slow_bytes.saturating_sub(above) as f64);
        let rate = self.taken_at(now) * 2.0 * left / self.slow_bytes.max(1) as f64 + left / HORIZON_S;
        let rate = rate.max(SLOWEST);
        let takes = Duration::try_from_secs_f64(slowed as f64 / rate).unwrap_or(Duration::MAX);
        self.due = self.due.max(now).saturating_add(takes);
        self.due
    }

    /// Nobody waits beyond `latest`, and those who come then need not either.
    pub fn forgive(&mut self, latest: Duration) {
        self.due = self.due.min(latest);
    }

    fn taken_at(&self, now: Duration) -> f64 {
        self.taken * (-now.saturating_sub(self.at).as_secs_f64() / AVERAGED_S).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;
    const SIZE: u64 = 4096 * MIB;

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Writes as fast as it may for `seconds`, from the bound on, against sources that take `source` bytes a second;
    /// what is left at the end, and what was written in the last second.
    fn write_for(seconds: u32, source: u64) -> (u64, u64) {
        let (mut pace, mut now) = (Pace::new(SIZE), Duration::ZERO);
        let (mut used, mut brought_until, mut last) = (pace.bound(), Duration::ZERO, 0);
        while now < s(seconds.into()) && used < SIZE {
            now = pace.turn(MIB, used, now);
            used += MIB;
            last += if now >= s(f64::from(seconds) - 1.0) { MIB } else { 0 };
            while brought_until + s(0.1) <= now {
                brought_until += s(0.1);
                pace.brought(source / 10, brought_until);
                used = used.saturating_sub(source / 10);
            }
        }
        (SIZE - used, last)
    }

    #[test]
    fn writers_end_up_at_the_pace_of_the_sources_and_the_stage_does_not_get_full() {
        for source in [10 * MIB, 100 * MIB, 1000 * MIB] {
            let (left, last) = write_for(600, source);
            assert!(left > SIZE / 32, "{} MiB are left at {} MiB a second", left / MIB, source / MIB);
            assert!((source * 9 / 10..=source * 11 / 10).contains(&last), "{} MiB in a second", last / MIB);
        }
    }

    #[test]
    fn with_the_sources_away_what_is_left_of_the_stage_is_used_up_ever_more_slowly() {
        let (left, last) = write_for(30, 0);
        // A third of a quarter: e to the minus one.
        assert!((SIZE / 4 / 3..SIZE / 4 / 2).contains(&left), "{} MiB are left", left / MIB);
        assert!(last < 16 * MIB, "{} MiB in the last second", last / MIB);
        assert_eq!(write_for(600, 0).0, 0, "it gets full in the end, and writers are told");
    }

    #[test]
    fn a_pace_of_long_ago_counts_for_nothing() {
        let mut pace = Pace::new(SIZE);
        pace.brought(1000 * MIB, Duration::ZERO);
        let half = SIZE - SIZE / 8 - MIB;
        let recent = pace.turn(MIB, half, Duration::ZERO);
        assert!(recent < s(1.0 / 100.0), "{recent:?}");
        let waits = pace.turn(MIB, half, s(300.0)) - s(300.0);
        let away = Pace::new(SIZE).turn(MIB, half, Duration::ZERO);
        assert!(waits > s(1.0 / 20.0) && away - waits < s(0.001), "{waits:?} {away:?}");
    }
}
