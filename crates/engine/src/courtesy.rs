//! What jobs leave to those who wait. The source's gate lets foreground requests begin first; bytes that jobs have
//! asked for already would still fill the link in front of them.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// What jobs have under way together while nobody waits, before it is known what the link moves: enough for 1 GB/s with
/// 60 ms to the first byte.
const BYTES_MAX: u64 = 64 << 20;
/// From then on they may have so much of a second's bytes under way: what a fast link needs that is slow to answer, and
/// what whoever comes then waits for at most.
const ALONE: f64 = 0.4;
/// Bytes are counted over this time.
const MEASURE: Duration = Duration::from_millis(500);
/// The same while somebody waits: a tenth of a second of a link of 40 MB/s.
const WAITED_BYTES_MAX: u64 = 4 << 20;
/// What a job asks for at once while somebody waits, so that several of its files get on.
pub const JOB_STEP: u64 = 1 << 20;
/// What a large file counts for otherwise, however much of it is asked for at once: some get on beside each other.
pub const JOB_FILE_BYTES: u64 = 16 << 20;
/// Who waited a moment ago will wait again: reads come in rows.
const MOMENT: Duration = Duration::from_secs(1);

/// Who waits, and what jobs have under way.
pub struct Courtesy {
    /// Whatever the link moves, jobs have no more under way.
    bytes_max: u64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    waiting: usize,
    waited_at: Option<Instant>,
    job_bytes: u64,
    /// What jobs have moved since, and what that was a second before.
    measured_at: Option<Instant>,
    moved: u64,
    bytes_per_s: f64,
}

/// Somebody waits for bytes, until this is dropped.
pub struct Waiting<'a>(&'a Courtesy);

/// Bytes that a job has under way, until this is dropped.
pub struct Turn<'a> {
    courtesy: &'a Courtesy,
    bytes: u64,
}

impl State {
    fn is_waited(&self) -> bool {
        self.waiting > 0 || self.waited_at.is_some_and(|at| at.elapsed() < MOMENT)
    }

    /// What jobs may have under way now.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of less than a second")]
    fn most(&self, bytes_max: u64) -> u64 {
        if self.is_waited() {
            return WAITED_BYTES_MAX;
        }
        ((self.bytes_per_s * ALONE) as u64).min(bytes_max).max(BYTES_MAX)
    }

    /// Counts what a job has moved.
    fn moved(&mut self, bytes: u64) {
        let now = Instant::now();
        let since = *self.measured_at.get_or_insert(now);
        self.moved += bytes;
        let elapsed = now - since;
        if elapsed >= MEASURE {
            self.bytes_per_s = self.moved as f64 / elapsed.as_secs_f64();
            (self.measured_at, self.moved) = (Some(now), 0);
        }
    }
}

impl Courtesy {
    /// Jobs of their own never have more than `bytes_max` under way, where that is more than a little.
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, state: Mutex::default(), changed: Notify::new() }
    }

    /// Notes that somebody waits for bytes that are not here.
    pub fn wait(&self) -> Waiting<'_> {
        self.state().waiting += 1;
        Waiting(self)
    }

    /// Whether somebody waits, or did a moment ago.
    pub fn is_waited(&self) -> bool {
        self.state().is_waited()
    }

    /// Waits until a job may have `bytes` more under way; one job always may.
    pub async fn turn(&self, bytes: u64) -> Turn<'_> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if state.job_bytes == 0 || state.job_bytes + bytes <= state.most(self.bytes_max) {
                    state.job_bytes += bytes;
                    return Turn { courtesy: self, bytes };
                }
            }
            // That the moment is over nobody tells.
            let _ = tokio::time::timeout(MOMENT, changed).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while waiters are counted")
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting -= 1;
        state.waited_at = Some(Instant::now());
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.courtesy.state();
            state.job_bytes -= self.bytes;
            state.moved(self.bytes);
        }
        self.courtesy.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_late(courtesy: &Courtesy, bytes: u64) -> bool {
        tokio::time::timeout(MOMENT / 4, courtesy.turn(bytes)).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_fill_a_fast_link_while_nobody_waits() {
        let courtesy = Courtesy::new(1 << 30);
        let first = courtesy.turn(BYTES_MAX - 1).await;
        assert!(!is_late(&courtesy, 1).await);
        assert!(is_late(&courtesy, 2).await);
        drop(first);
        assert!(!is_late(&courtesy, BYTES_MAX).await);
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_have_little_under_way_while_somebody_waits_and_a_moment_longer() {
        let courtesy = Courtesy::new(1 << 30);
        let waiting = courtesy.wait();
        let first = courtesy.turn(WAITED_BYTES_MAX - 1).await;
        assert!(is_late(&courtesy, 2).await);
        assert!(!is_late(&courtesy, 1).await);
        drop(waiting);
        assert!(is_late(&courtesy, 2).await, "who waited a moment ago will wait again");
        let second = courtesy.turn(2).await;
        assert!(!courtesy.is_waited(), "it went on when the moment was over");
        drop((first, second));
        assert_eq!(courtesy.state().job_bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_have_more_under_way_on_a_link_that_moves_more_and_never_more_than_their_share() {
        let courtesy = Courtesy::new(4 * BYTES_MAX);
        for _ in 0..3 {
            let turn = courtesy.turn(BYTES_MAX).await;
            tokio::time::advance(MEASURE / 10).await;
            drop(turn);
            tokio::time::advance(MEASURE).await;
            drop(courtesy.turn(8 * BYTES_MAX).await);
        }
        assert_eq!(courtesy.state().most(courtesy.bytes_max), 4 * BYTES_MAX);
        let waiting = courtesy.wait();
        assert_eq!(courtesy.state().most(courtesy.bytes_max), WAITED_BYTES_MAX);
        drop(waiting);
        tokio::time::advance(10 * MOMENT).await;
        drop(courtesy.turn(1).await);
        assert_eq!(courtesy.state().most(courtesy.bytes_max), BYTES_MAX, "it moves little now");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_always_gets_on() {
        let courtesy = Courtesy::new(1 << 30);
        let _waiting = courtesy.wait();
        let large = courtesy.turn(10 * WAITED_BYTES_MAX).await;
        let next = courtesy.turn(JOB_STEP);
        let (next, ()) = tokio::join!(next, async { drop(large) });
        assert_eq!(next.bytes, JOB_STEP);
    }
}
