//! Reading ahead across files: who opens the files of a directory one after another finds the next ones cached, and
//! who opens many of them in no order finds the rest cached after a while.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use penstock_catalog::{Item, NamedItem};
use penstock_types::{Priority, TreePath};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::open::{OpenOptions, WHOLE_MAX};

/// Directories that are watched at once; beyond it the one that was quiet longest is forgotten.
const DIRECTORIES_MAX: usize = 256;
/// Files in order before the next ones are fetched.
const START_AFTER: u32 = 3;
/// A wrong guess doubles what it takes to guess again, up to this.
const START_AFTER_MAX: u32 = 48;
/// How far off the expected file still counts as in order (readers that skip or run a few workers).
const SLACK: usize = 8;
/// Files ahead: at first, and at most. 256 × 112 KiB is 28 MB, 70 ms of a 400 MB/s link.
const WINDOW_FIRST: usize = 16;
const WINDOW_MAX: usize = 256;
/// Larger files are not fetched ahead: their own sequential window does it.
const FILE_MAX: u64 = 8 * 1024 * 1024;
/// Reading ahead takes at most this part of the memory budget.
const BUDGET_SHARE: u64 = 8;
/// What is fetched ahead in order and not opened yet takes at most this part of the cache, for it would leave before it
/// is needed.
const AHEAD_SHARE: u64 = 16;
/// Files of a directory that are opened in no order before the rest of it is fetched.
const SWEEP_AFTER: u32 = 32;
/// Every sweep doubles what the next one takes, up to this.
const SWEEP_AFTER_MAX: u32 = 4096;
/// A sweep is ahead of what is opened by at most so many files, and as many again as were opened since it began.
const SWEEP_LEAD: usize = 256;
/// A directory is fetched on a guess only where its small files take at most this part of the cache.
const SWEEP_SHARE: u64 = 2;
/// How long a sweep that is far enough ahead waits to be caught up with before it ends.
const SWEEP_PATIENCE: Duration = Duration::from_secs(10);
const SWEEP_POLL: Duration = Duration::from_millis(50);
/// Names that a sweep asks for at once.
const SWEEP_NAMES: usize = 1000;
/// Semaphore permits are counted in these.
const UNIT_BYTES: u64 = 4096;
/// A file that is fetched counts as this much at least: however small it is, it holds descriptors and a request. An
/// eighth of the default budget is a thousand files, several times what a source is asked for at once.
const FILE_MIN: u64 = 128 * 1024;

/// Watches directories for readers in order.
pub struct Ahead {
    runs: Mutex<Runs>,
    share: Arc<Semaphore>,
    hasher: RandomState,
}

#[derive(Default)]
struct Runs {
    by_directory: HashMap<u64, Run>,
    clock: u64,
}

/// What was opened in one directory.
struct Run {
    last: String,
    streak: u32,
    start_after: u32,
    window: usize,
    /// Names that were fetched ahead and not opened yet, in order.
    upcoming: VecDeque<String>,
    /// Whether the directory's listing was asked for because nothing was known of it.
    listed: bool,
    /// Opens that were neither cached nor in order, and how many of them it takes to fetch the rest.
    scattered: u32,
    sweep_after: u32,
    /// Opens since the rest of the directory began to be fetched, as long as it is.
    swept: Weak<AtomicUsize>,
    touched: u64,
}

/// Files to fetch ahead.
#[derive(PartialEq, Eq, Debug)]
struct Wanted {
    /// The file before the first of them.
    after: String,
    /// How many at most.
    count: usize,
    /// Files that were fetched before and not opened yet.
    upcoming: usize,
}

impl Ahead {
    pub fn new(memory_budget_bytes: u64) -> Self {
        let units = memory_budget_bytes / BUDGET_SHARE / UNIT_BYTES;
        let share = Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(usize::MAX >> 4)));
        Self { runs: Mutex::default(), share, hasher: RandomState::new() }
    }

    /// A file was opened that was in the cache: moves an established run on.
    pub fn note_hit(&self, engine: &Arc<Engine>, attached: &Arc<Attached>, inner: &str) {
        let (directory, name) = split(inner);
        let wanted = {
            let mut runs = self.runs();
            runs.clock += 1;
            let clock = runs.clock;
            let Some(run) = runs.by_directory.get_mut(&self.key(attached, directory)) else { return };
            run.touched = clock;
            run.note_swept();
            run.advance(name).then(|| run.request(directory)).flatten()
        };
        self.fetch(engine, attached, directory, wanted);
    }

    /// A file was opened that was not in the cache: begins, moves on or ends a run.
    pub fn note_miss(&self, engine: &Arc<Engine>, attached: &Arc<Attached>, inner: &str) {
        let (directory, name) = split(inner);
        let key = self.key(attached, directory);
        let last = self.runs().by_directory.get(&key).map(|run| run.last.clone());
        let follows = last.as_ref().is_some_and(|last| {
            let next = attached.view.following(&join(directory, last), SLACK);
            next.iter().any(|item| item.name == name)
        });
        let (wanted, list, sweep) = {
            let mut runs = self.runs();
            runs.clock += 1;
            let clock = runs.clock;
            runs.forget_quietest();
            let run = runs.by_directory.entry(key).or_insert_with(|| Run::begin(name));
            run.touched = clock;
            let list = last.is_some() && !follows && !run.listed && last.as_deref() != Some(name);
            run.listed |= list;
            let in_order = run.advance(name) || run.miss(name, follows);
            run.note_swept();
            let sweep = if in_order { None } else { run.scatter() };
            (in_order.then(|| run.request(directory)).flatten(), list, sweep)
        };
        if let Some(opened) = sweep {
            let sweep = Sweep { attached: Arc::clone(attached), directory: directory.to_string(), opened };
            engine.carrier.runtime.spawn(sweep.run(Arc::clone(engine), Arc::clone(&self.share)));
        }
        if list {
            let view = Arc::clone(&attached.view);
            let directory = directory.to_string();
            // Only so that `following` knows the order; a failure shows when somebody lists.
            engine.carrier.runtime.spawn(async move { view.list(&directory, None, 1).await.map(drop) });
        }
        self.fetch(engine, attached, directory, wanted);
    }

    /// Fetches what is wanted, as far as the budget's share goes, and no more than stays in the cache until it is opened.
    fn fetch(&self, engine: &Arc<Engine>, attached: &Arc<Attached>, directory: &str, wanted: Option<Wanted>) {
        let Some(Wanted { after, count, upcoming }) = wanted else { return };
        let room = engine.cache_bytes() / AHEAD_SHARE;
        let mut started = Vec::new();
        for NamedItem { name, item } in attached.view.following(&after, count) {
            let Item::File { attributes, .. } = item else { continue };
            if attributes.size > FILE_MAX {
                continue;
            }
            if (upcoming + started.len() + 1) as u64 * attributes.size > room {
                break;
            }
            let units = u32::try_from(attributes.size.max(FILE_MIN).div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
            let Ok(permit) = Arc::clone(&self.share).try_acquire_many_owned(units) else { break };
            let path = attached.path.join(&join(directory, &name));
            engine.carrier.runtime.spawn(fetch_file(Arc::clone(engine), path, Priority::Foreground, permit));
            started.push(name);
        }
        let mut runs = self.runs();
        if let Some(run) = runs.by_directory.get_mut(&self.key(attached, directory)) {
            run.upcoming.extend(started);
        }
    }

    /// A directory is too large to be fetched on a guess.
    fn never_sweep(&self, attached: &Arc<Attached>, directory: &str) {
        if let Some(run) = self.runs().by_directory.get_mut(&self.key(attached, directory)) {
            run.sweep_after = u32::MAX;
        }
    }

    fn key(&self, attached: &Arc<Attached>, directory: &str) -> u64 {
        self.hasher.hash_one((Arc::as_ptr(attached) as usize, directory))
    }

    fn runs(&self) -> std::sync::MutexGuard<'_, Runs> {
        self.runs.lock().expect("no panic while runs are noted")
    }
}

/// The fetching of a directory whose files are opened in no order.
struct Sweep {
    attached: Arc<Attached>,
    directory: String,
    /// Opens in the directory since it began.
    opened: Arc<AtomicUsize>,
}

impl Sweep {
    /// Fetches what is not cached, in listing order, behind what somebody waits for. Ends when nobody follows, and for
    /// good where the directory takes more than its part of the cache: what was read already would be fetched again,
    /// and what somebody needs would leave for it.
    async fn run(self, engine: Arc<Engine>, share: Arc<Semaphore>) {
        let mut room = engine.cache_bytes() / SWEEP_SHARE;
        let (mut after, mut fetched) = (None, 0);
        loop {
            let page = self.attached.view.list(&self.directory, after.as_deref(), SWEEP_NAMES).await;
            let Ok(page) = page else { return };
            for NamedItem { name, item } in page.items {
                let Item::File { attributes, .. } = item else { continue };
                if attributes.size > WHOLE_MAX {
                    continue;
                }
                let Some(left) = room.checked_sub(attributes.size) else {
                    engine.ahead.never_sweep(&self.attached, &self.directory);
                    return;
                };
                room = left;
                let path = self.attached.path.join(&join(&self.directory, &name));
                if engine.is_cached(&path) {
                    continue;
                }
                if !self.is_followed(fetched).await {
                    return;
                }
                let units = u32::try_from(attributes.size.max(FILE_MIN).div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
                let Ok(permit) = Arc::clone(&share).acquire_many_owned(units).await else { return };
                engine.carrier.runtime.spawn(fetch_file(Arc::clone(&engine), path, Priority::Background, permit));
                fetched += 1;
            }
            after = page.next;
            if after.is_none() {
                return;
            }
        }
    }

    /// Waits until as many files were opened as warrant one more.
    async fn is_followed(&self, fetched: usize) -> bool {
        let begun = Instant::now();
        while fetched >= SWEEP_LEAD + 2 * self.opened.load(Ordering::Relaxed) {
            if begun.elapsed() > SWEEP_PATIENCE {
                return false;
            }
            tokio::time::sleep(SWEEP_POLL).await;
        }
        true
    }
}

async fn fetch_file(engine: Arc<Engine>, path: TreePath, priority: Priority, permit: OwnedSemaphorePermit) {
    let options = OpenOptions { priority, version: None };
    let Ok(file) = engine.pin(&path, &options, false).await else { return };
    // Who opens the file gets the error of their own attempt; a guess has nobody to tell.
    if !file.is_complete() && file.fetch_whole().await.is_ok() {
        engine.parts.metrics.prefetched_files.inc();
    }
    drop(permit);
}

impl Runs {
    fn forget_quietest(&mut self) {
        if self.by_directory.len() >= DIRECTORIES_MAX
            && let Some(quietest) = self.by_directory.iter().min_by_key(|(_, run)| run.touched).map(|(key, _)| *key)
        {
            self.by_directory.remove(&quietest);
        }
    }
}

impl Run {
    fn begin(name: &str) -> Self {
        Self {
            last: name.to_string(),
            streak: 0,
            start_after: START_AFTER,
            window: WINDOW_FIRST,
            upcoming: VecDeque::new(),
            listed: false,
            scattered: 0,
            sweep_after: SWEEP_AFTER,
            swept: Weak::new(),
            touched: 0,
        }
    }

    /// Moves on where `name` is among the next ones that were fetched ahead.
    fn advance(&mut self, name: &str) -> bool {
        let Some(position) = self.upcoming.iter().take(SLACK).position(|next| next == name) else { return false };
        self.upcoming.drain(..=position);
        self.last = name.to_string();
        true
    }

    /// Notes a file that was not fetched ahead; says whether the run is long enough to guess on.
    fn miss(&mut self, name: &str, follows: bool) -> bool {
        if follows {
            self.streak += 1;
        } else if self.last != name {
            if !self.upcoming.is_empty() {
                self.start_after = (self.start_after * 2).min(START_AFTER_MAX);
            }
            self.streak = 0;
            self.window = WINDOW_FIRST;
            self.upcoming.clear();
        }
        self.last = name.to_string();
        self.streak >= self.start_after
    }

    /// Counts an open that was neither cached nor in order; when the rest is worth fetching, a counter of what is opened
    /// from then on.
    fn scatter(&mut self) -> Option<Arc<AtomicUsize>> {
        if self.swept.strong_count() > 0 {
            return None;
        }
        self.scattered += 1;
        if self.scattered < self.sweep_after {
            return None;
        }
        self.scattered = 0;
        self.sweep_after = (self.sweep_after * 2).min(SWEEP_AFTER_MAX);
        let opened = Arc::default();
        self.swept = Arc::downgrade(&opened);
        Some(opened)
    }

    fn note_swept(&self) {
        if let Some(opened) = self.swept.upgrade() {
            opened.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What to fetch next, once half of the window is used up.
    fn request(&mut self, directory: &str) -> Option<Wanted> {
        if self.upcoming.len() > self.window / 2 {
            return None;
        }
        self.window = (self.window * 2).min(WINDOW_MAX);
        let (after, upcoming) = (self.upcoming.back().unwrap_or(&self.last), self.upcoming.len());
        Some(Wanted { after: join(directory, after), count: self.window - upcoming, upcoming })
    }
}

fn split(inner: &str) -> (&str, &str) {
    inner.rsplit_once('/').unwrap_or(("", inner))
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_string() } else { format!("{directory}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_asks_for_more_only_when_half_of_its_window_is_used() {
        let mut run = Run::begin("0");
        assert!(!run.miss("1", true) && !run.miss("2", true) && run.miss("3", true));
        let wanted = run.request("d").unwrap();
        assert_eq!(wanted, Wanted { after: "d/3".to_string(), count: 32, upcoming: 0 });
        run.upcoming.extend((4..36).map(|n| n.to_string()));
        assert!(run.advance("4"));
        assert_eq!(run.request("d"), None);
        for name in 5..20 {
            assert!(run.advance(&name.to_string()));
        }
        assert_eq!(run.request("d").unwrap().after, "d/35");
    }

    #[test]
    fn a_directory_is_swept_when_enough_of_its_files_were_opened_in_no_order_and_later_not_so_soon() {
        let mut run = Run::begin("0");
        assert_eq!((1..SWEEP_AFTER).filter_map(|_| run.scatter()).count(), 0);
        let opened = run.scatter().unwrap();
        run.note_swept();
        assert_eq!(opened.load(Ordering::Relaxed), 1);
        assert_eq!((0..10 * SWEEP_AFTER).filter_map(|_| run.scatter()).count(), 0, "one at a time");
        drop(opened);
        assert_eq!((1..2 * SWEEP_AFTER).filter_map(|_| run.scatter()).count(), 0);
        assert!(run.scatter().is_some());
    }

    #[test]
    fn a_wrong_guess_ends_the_run_and_makes_the_next_guess_slower() {
        let mut run = Run::begin("0");
        run.streak = START_AFTER;
        run.upcoming.extend(["1".to_string(), "2".to_string()]);
        assert!(!run.miss("77", false));
        assert!(run.upcoming.is_empty());
        assert_eq!(run.start_after, 2 * START_AFTER);
    }
}
