//! How many requests a source bears, learnt from what it refuses. Pure: time comes in, decisions come out.
//!
//! Two controls. The window bounds what is under way: it shrinks by a factor when the source refuses and grows by
//! about one per window of successes (AIMD). The rate bounds requests per second: there is none until the source
//! refuses; then it is what the source was seen to admit, and grows slowly while it is what holds requests back.

use std::time::Duration;

/// The window never shrinks below it: one refusal must not serialise everything.
const MIN_WINDOW: f64 = 4.0;
/// What is left of the window after a refusal.
const WINDOW_CUT: f64 = 0.7;
/// Share of the admitted rate that is used after a refusal: just below it, so that the next refusals are far apart.
const RATE_CUT: f64 = 0.95;
/// A rate falls at least to this share of itself, so that a measurement that lags cannot keep it up.
const RATE_CUT_AT_LEAST: f64 = 0.97;
/// No source that answers at all admits less.
const MIN_RATE: f64 = 1.0;
/// From here on a rate limits nothing any more.
const FREE_RATE: f64 = 20_000.0;
/// Requests that may go at once after a pause.
const BURST: f64 = 2.0;
/// Successes are counted over this time.
const MEASURE: Duration = Duration::from_secs(1);
/// Refusals of requests that went out before a cut say nothing about it. Nor does a second cut within this time.
const CUT_INTERVAL: Duration = Duration::from_millis(100);

/// Pause of all requests after a refusal; doubled with each further one until something is carried out again, so
/// that a store whose second is used up is not asked at full rate until the next begins.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
/// Longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Window, rate and what they were learnt from.
#[derive(Debug)]
pub(crate) struct Pace {
    window: f64,
    max_window: f64,
    rate: Option<f64>,
    tokens: f64,
    refilled: Duration,
    last_cut: Option<Duration>,
    /// Nothing is sent before.
    paused_until: Duration,
    /// Cuts since something was carried out.
    cuts_in_a_row: u32,
    last_growth: Duration,
    /// Whether the rate held a request back since the last growth.
    rate_was_felt: bool,
    successes: Sliding,
}

impl Pace {
    /// No more than `max_window` requests at once, as many per second as the source takes.
    pub(crate) fn new(max_window: usize) -> Self {
        let max_window = max_window.max(1) as f64;
        Self {
            window: max_window,
            max_window,
            rate: None,
            tokens: BURST,
            refilled: Duration::ZERO,
            last_cut: None,
            paused_until: Duration::ZERO,
            cuts_in_a_row: 0,
            last_growth: Duration::ZERO,
            rate_was_felt: false,
            successes: Sliding::default(),
        }
    }

    /// Requests that may be under way now.
    pub(crate) fn window(&self) -> usize {
        self.window.max(1.0) as usize
    }

    /// Requests per second, where the source made us have such a limit.
    #[cfg(test)]
    pub(crate) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Takes the right to send one request now, or says how long to wait for it.
    pub(crate) fn admit(&mut self, now: Duration) -> Result<(), Duration> {
        self.grow(now);
        let Some(rate) = self.rate else { return Ok(()) };
        if now < self.paused_until {
            return Err(self.paused_until - now);
        }
        let elapsed = now.saturating_sub(self.refilled).as_secs_f64();
        self.tokens = (self.tokens + elapsed * rate).min(BURST);
        self.refilled = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        self.rate_was_felt = true;
        Err(Duration::from_secs_f64((1.0 - self.tokens) / rate))
    }

    /// A request was carried out.
    pub(crate) fn succeeded(&mut self, now: Duration) {
        self.successes.add(now);
        self.cuts_in_a_row = 0;
        self.window = (self.window + 1.0 / self.window).min(self.max_window);
    }

    /// A request that went out at `sent` was refused.
    pub(crate) fn refused(&mut self, now: Duration, sent: Duration) {
        if self.last_cut.is_some_and(|cut| sent <= cut || now < cut + CUT_INTERVAL) {
            return;
        }
        self.window = (self.window * WINDOW_CUT).max(MIN_WINDOW.min(self.max_window));
        let admitted = self.successes.per_second(now) * RATE_CUT;
        let rate = match self.rate {
            // Much less went through than was sent: the measurement is the truth.
            Some(rate) => (rate * RATE_CUT_AT_LEAST).min(admitted.max(rate * 0.5)),
            None => admitted,
        };
        self.rate = Some(rate.max(MIN_RATE));
        self.tokens = self.tokens.min(0.0);
        self.refilled = now;
        self.last_cut = Some(now);
        self.paused_until = now + (FIRST_PAUSE * 2u32.saturating_pow(self.cuts_in_a_row)).min(MAX_PAUSE);
        self.cuts_in_a_row = (self.cuts_in_a_row + 1).min(8);
        self.last_growth = now;
        self.rate_was_felt = false;
    }

    /// The rate rises by a share of itself per second, by more the longer the source has borne it.
    fn grow(&mut self, now: Duration) {
        let (Some(rate), Some(cut)) = (self.rate, self.last_cut) else { return };
        let elapsed = now.saturating_sub(self.last_growth);
        if elapsed < MEASURE {
            return;
        }
        self.last_growth = now;
        if !std::mem::take(&mut self.rate_was_felt) {
            return;
        }
        let share = match now.saturating_sub(cut).as_secs() {
            0..=7 => 0.01,
            8..=15 => 0.1,
            _ => 0.5,
        };
        let grown = rate + (rate * share).max(0.5);
        self.rate = (grown < FREE_RATE).then_some(grown);
    }
}

/// Successes of the last second, in tenths.
#[derive(Debug, Default)]
struct Sliding {
    counts: [u32; Self::SLOTS],
    /// Number of the newest slot since the beginning of time.
    newest: u64,
}

impl Sliding {
    const SLOTS: usize = 10;

    fn slot(now: Duration) -> u64 {
        now.as_millis() as u64 / (MEASURE.as_millis() as u64 / Self::SLOTS as u64)
    }

    fn advance(&mut self, now: Duration) {
        let slot = Self::slot(now);
        let passed = slot.saturating_sub(self.newest).min(Self::SLOTS as u64);
        for step in 1..=passed {
            self.counts[((self.newest + step) % Self::SLOTS as u64) as usize] = 0;
        }
        if passed == Self::SLOTS as u64 {
            self.counts = [0; Self::SLOTS];
        }
        self.newest = self.newest.max(slot);
    }

    fn add(&mut self, now: Duration) {
        self.advance(now);
        self.counts[(self.newest % Self::SLOTS as u64) as usize] += 1;
    }

    fn per_second(&mut self, now: Duration) -> f64 {
        self.advance(now);
        f64::from(self.counts.iter().sum::<u32>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that admits `limit` requests in each second and answers the rest with a refusal, `round_trip` later.
    struct Store {
        limit: u32,
        second: u64,
        admitted: u32,
    }

    impl Store {
        fn admits(&mut self, now: Duration) -> bool {
            if now.as_secs() != self.second {
                (self.second, self.admitted) = (now.as_secs(), 0);
            }
            self.admitted += 1;
            self.admitted <= self.limit
        }
    }

    /// Runs a client with endless work for `seconds`; returns requests sent and requests carried out.
    fn run(pace: &mut Pace, limit: u32, seconds: u64, round_trip: Duration) -> (u32, u32) {
        let mut store = Store { limit, second: u64::MAX, admitted: 0 };
        let mut under_way: std::collections::VecDeque<(Duration, Duration, bool)> = std::collections::VecDeque::new();
        let (mut now, mut sent, mut useful) = (Duration::ZERO, 0, 0);
        while now < Duration::from_secs(seconds) {
            while let Some((done, began, admitted)) = under_way.front().copied().filter(|(done, ..)| *done <= now) {
                under_way.pop_front();
                if admitted {
                    useful += 1;
                    pace.succeeded(done);
                } else {
                    pace.refused(done, began);
                }
            }
            while under_way.len() < pace.window() && pace.admit(now).is_ok() {
                sent += 1;
                let admitted = store.admits(now);
                under_way.push_back((now + round_trip, now, admitted));
            }
            now += Duration::from_millis(1);
        }
        (sent, useful)
    }

    #[test]
    fn a_store_that_admits_100_a_second_is_asked_little_more() {
        for round_trip_ms in [1, 30, 200] {
            let mut pace = Pace::new(128);
            let (sent, useful) = run(&mut pace, 100, 60, Duration::from_millis(round_trip_ms));
            let ratio = f64::from(sent) / f64::from(useful);
            assert!(ratio <= 1.1, "{round_trip_ms} ms: {sent} sent, {useful} useful: {ratio:.3}");
            assert!(useful >= 5400, "{round_trip_ms} ms: only {useful} of 6000");
        }
    }

    #[test]
    fn a_store_that_refuses_nothing_is_not_held_back() {
        let mut pace = Pace::new(64);
        let (sent, useful) = run(&mut pace, u32::MAX, 10, Duration::from_millis(10));
        assert!(useful > 60_000 && sent >= useful, "{useful}");
        assert_eq!(pace.rate(), None);
    }

    #[test]
    fn the_rate_comes_back_when_the_store_recovers() {
        let mut pace = Pace::new(64);
        run(&mut pace, 100, 20, Duration::from_millis(10));
        assert!(pace.rate().is_some_and(|rate| rate < 120.0), "{:?}", pace.rate());
        // The simulated time begins anew; what was learnt must not depend on it.
        pace.last_cut = Some(Duration::ZERO);
        pace.last_growth = Duration::ZERO;
        pace.refilled = Duration::ZERO;
        pace.paused_until = Duration::ZERO;
        let (_, useful) = run(&mut pace, u32::MAX, 60, Duration::from_millis(10));
        assert!(useful > 50_000, "{useful}");
    }

    #[test]
    fn one_burst_of_refusals_is_one_cut() {
        let mut pace = Pace::new(100);
        let sent = Duration::from_secs(5);
        for step in 0..50 {
            pace.succeeded(sent + Duration::from_millis(step));
        }
        for step in 0..50 {
            pace.refused(sent + Duration::from_millis(50 + step), sent);
        }
        assert_eq!(pace.window(), 70);
    }
}
