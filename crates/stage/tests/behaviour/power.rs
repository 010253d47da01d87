//! The power goes, or the process is killed, before every call to the disk of every short sequence of operations.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use penstock_cache::RealDisk;
use penstock_stage::{Base, Settled, Stage};
use penstock_testkit::{Image, Loss, PowerLossDisk};
use penstock_types::Laid;

use crate::support::*;

const KEYS: [&str; 2] = ["a", "b"];
const SMALL_BYTES: usize = 5_000;
const LARGE_BYTES: usize = 9_001;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Small,
    Large,
    Remove,
    Settle,
}

const OPERATIONS: [Operation; 4] = [Operation::Small, Operation::Large, Operation::Remove, Operation::Settle];

/// What a key may hold after a crash.
#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Nothing,
    /// The content of the operation of this number.
    Staged(usize),
    Removed,
    /// The source has the content of the operation of this number; nothing after a removal.
    InSource(Option<usize>),
}

/// A sequence of operations on keys.
#[derive(Clone, Debug)]
struct Story(Vec<(Operation, &'static str)>);

impl Story {
    fn all(length: usize, spread: bool) -> Vec<Self> {
        let one = |number: usize, place: usize| {
            let key = if spread { KEYS[place % KEYS.len()] } else { KEYS[0] };
            (OPERATIONS[number], key)
        };
        let count = OPERATIONS.len().pow(u32::try_from(length).unwrap());
        let digits =
            |number: usize| (0..length).map(move |place| number / OPERATIONS.len().pow(u32::try_from(place).unwrap()));
        let story =
            |number| digits(number).enumerate().map(|(place, rest)| one(rest % OPERATIONS.len(), place)).collect();
        (0..count).map(|number| Story(story(number))).collect()
    }

    /// Carries it out; counts in `acknowledged` what has returned.
    fn run(&self, stage: &Stage, acknowledged: &AtomicU64) {
        let mut committed = Vec::new();
        for (number, (operation, key)) in self.0.iter().enumerate() {
            let change = match operation {
                Operation::Small => put(stage, key, &content(number as u64, SMALL_BYTES)),
                Operation::Large => put_large(stage, key, &content(number as u64, LARGE_BYTES)),
                Operation::Remove => remove(stage, key, Base::Unconditional),
                Operation::Settle => {
                    if let Some(change) = stage.next() {
                        let did = committed.iter().position(|known| *known == Some(change.operation())).unwrap();
                        let settled = change.size().map(|size| stored(&did.to_string(), size, 0));
                        stage.settle(&change, settled.unwrap_or(Settled::Removed { moment: 0 }), Some(1_000_000));
                    }
                    stage.expire(0);
                    committed.push(None);
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
            };
            committed.push(Some(change.operation()));
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// What a key may hold when the first `done` operations were acknowledged and the next one may have been done.
    fn allowed(&self, key: &str, done: usize) -> Vec<State> {
        let tried = (done + 1).min(self.0.len());
        let newest = |count: usize| {
            let of_key = |number: &usize| self.0[*number].1 == key && self.0[*number].0 != Operation::Settle;
            (0..count).rev().find(of_key)
        };
        let mut allowed = Vec::new();
        for change in [newest(done), newest(tried)] {
            let Some(number) = change else {
                allowed.push(State::Nothing);
                continue;
            };
            let removed = self.0[number].0 == Operation::Remove;
            allowed.push(if removed { State::Removed } else { State::Staged(number) });
            if self.0[number..tried].iter().any(|(operation, _)| *operation == Operation::Settle) {
                allowed.push(State::InSource((!removed).then_some(number)));
            }
        }
        allowed
    }
}

fn state_of(stage: &Stage, key: &str, story: &Story) -> State {
    match laid(stage, key) {
        None => State::Nothing,
        Some(Laid { settled: Some(_), attributes, .. }) => {
            State::InSource(attributes.map(|attributes| attributes.version.as_str().parse().unwrap()))
        }
        Some(Laid { attributes: None, .. }) => State::Removed,
        Some(_) => {
            let bytes = seen(stage, key).unwrap();
            let sizes = [(Operation::Small, SMALL_BYTES), (Operation::Large, LARGE_BYTES)];
            let wrote = |number: &usize| {
                let size = sizes.iter().find(|(operation, _)| *operation == story.0[*number].0);
                size.is_some_and(|(_, size)| bytes == content(*number as u64, *size))
            };
            State::Staged((0..story.0.len()).find(wrote).expect("the bytes are those of one operation"))
        }
    }
}

/// A bench on a file system in memory, where there is one: nothing is really synced.
pub fn bench() -> (Bench, Arc<PowerLossDisk>) {
    let mut bench = Bench::default();
    if let Ok(directory) = tempfile::tempdir_in("/dev/shm") {
        bench.directory = directory;
    }
    bench.bounds.segment_bytes = 16 * 1024;
    let disk = PowerLossDisk::new(Arc::new(RealDisk), bench.directory.path());
    bench.disk = disk.clone();
    (bench, disk)
}

/// A crash: what was left, and of what.
struct Crash<'a> {
    image: &'a Image,
    from: &'a Path,
    story: &'a Story,
    loss: Loss,
}

impl Crash<'_> {
    /// Opens what is left and checks it; with `again`, crashes at every step of that, too. How many crashes there were.
    fn check(&self, again: bool) -> usize {
        let Self { image, from, story, loss } = self;
        let (mut bench, _) = bench();
        image.restore(from, bench.directory.path(), *loss);
        let disk = PowerLossDisk::new(Arc::new(RealDisk), bench.directory.path());
        bench.disk = disk.clone();
        if again {
            disk.keep_images(Arc::new(AtomicU64::new(image.mark)));
        }
        let context = || format!("{story:?} before {} with {} acknowledged, {loss:?}", image.operation, image.mark);
        let stage = bench.try_open().unwrap_or_else(|error| panic!("{error}: {}", context()));
        for key in KEYS {
            let done = usize::try_from(image.mark).unwrap();
            let (state, allowed) = (state_of(&stage, key, story), story.allowed(key, done));
            assert!(allowed.contains(&state), "{key} holds {state:?}, not one of {allowed:?}: {}", context());
        }
        stage.expire(0);
        put(&stage, "c", &content(99, 10));
        assert_eq!(seen(&stage, "c").unwrap(), content(99, 10), "{}", context());
        let images = disk.take_images();
        let images = if again { &images[..] } else { &[] };
        let crash = |(number, image): (usize, &Image)| {
            let loss = Loss::Some(number as u64);
            Crash { image, from: bench.directory.path(), story, loss }.check(false)
        };
        1 + images.iter().enumerate().map(crash).sum::<usize>()
    }
}

/// Crashes before every call of a story; how many crashes there were.
fn crash_everywhere(story: &Story, losses: &[Loss], again: bool) -> usize {
    let (bench, disk) = bench();
    let acknowledged = Arc::new(AtomicU64::new(0));
    // What happens before the first operation is the same in every story.
    if story.0.is_empty() {
        disk.keep_images(Arc::clone(&acknowledged));
    }
    let stage = bench.open();
    if !story.0.is_empty() {
        disk.keep_images(Arc::clone(&acknowledged));
    }
    story.run(&stage, &acknowledged);
    let images = disk.take_images();
    let crashes =
        images.iter().enumerate().flat_map(|(number, image)| losses.iter().map(move |loss| (number, image, loss)));
    let crash = |(number, image, loss): (usize, &Image, &Loss)| {
        let loss = match loss {
            Loss::Some(seed) => Loss::Some(seed + 1_000 * number as u64),
            other => *other,
        };
        Crash { image, from: bench.directory.path(), story, loss }.check(again)
    };
    crashes.map(crash).sum()
}

fn crash_all(stories: &[Story], losses: &[Loss], again: bool) {
    let crashes: usize = stories.iter().map(|story| crash_everywhere(story, losses, again)).sum();
    println!("{crashes} crashes");
    assert!(crashes > 100);
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_every_step_of_every_sequence_of_up_to_two_operations() {
    let stories: Vec<Story> =
        [(2, false), (2, true)].into_iter().flat_map(|(length, spread)| Story::all(length, spread)).collect();
    crash_all(&stories, &[Loss::Everything, Loss::Nothing, Loss::Some(1), Loss::Some(2)], false);
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_every_step_of_every_sequence_of_three_operations_on_a_key() {
    crash_all(&Story::all(3, false), &[Loss::Everything, Loss::Some(3)], false);
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_every_step_of_every_sequence_of_three_operations_on_two_keys() {
    crash_all(&Story::all(3, true), &[Loss::Nothing, Loss::Some(4)], false);
}

#[test]
fn a_crash_while_what_a_crash_left_is_opened_loses_nothing_either() {
    let stories: Vec<Story> = (0..=1).flat_map(|length| Story::all(length, false)).collect();
    crash_all(&stories, &[Loss::Everything, Loss::Some(5)], true);
}
