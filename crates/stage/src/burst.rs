//! Whether much is being committed just now: what can wait does not take its processor and its disk then.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Commits that follow each other as closely as this belong together.
const PAUSE: Duration = Duration::from_millis(25);
/// From so many on they are a burst.
const COMMITS: u64 = 8;

/// Commits that follow each other.
#[derive(Default)]
pub struct Burst(Mutex<Option<Run>>);

#[derive(Clone, Copy)]
struct Run {
    last: Instant,
    commits: u64,
}

impl Burst {
    /// So many commits were made.
    pub fn note(&self, commits: u64) {
        let (mut run, now) = (self.run(), Instant::now());
        let before = run.filter(|run| now - run.last < PAUSE).map_or(0, |run| run.commits);
        *run = Some(Run { last: now, commits: before + commits });
    }

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        self.run().is_some_and(|run| run.commits >= COMMITS && run.last.elapsed() < PAUSE)
    }

    fn run(&self) -> std::sync::MutexGuard<'_, Option<Run>> {
        self.0.lock().expect("no panic while commits are counted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_commits_are_a_burst_until_they_pause() {
        let burst = Burst::default();
        assert!(!burst.is_on());
        burst.note(COMMITS - 1);
        assert!(!burst.is_on());
        *burst.run() = Some(Run { last: Instant::now() + PAUSE, commits: COMMITS });
        assert!(burst.is_on());
        std::thread::sleep(2 * PAUSE);
        assert!(!burst.is_on());
        burst.note(1);
        assert!(!burst.is_on(), "it begins anew");
    }
}
