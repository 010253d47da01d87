//! The power goes, or the process is killed, before every call to the disk of sequences that rename what the source has:
//! it is copied there before anything replaces or removes it, and what was acknowledged is there in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use penstock_cache::RealDisk;
use penstock_stage::{Base, Batch, Change, Content, OperationId, Original, Settled, Stage, Written, operation_of};
use penstock_testkit::{DiskFault, FaultyDisk, Image, Loss, PowerLossDisk};
use penstock_types::{Durability, ObjectAttributes, ObjectKey, Result, Version};

use crate::power::bench;
use crate::support::*;

const BYTES: usize = 3_000;
/// More than half of a file of the journal.
const FILLING_BYTES: usize = 12_000;
const FILLINGS: usize = 4;
/// More changes than any story makes.
const BROUGHT_MAX: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The first key gets the name of the second.
    Rename(&'static str, &'static str),
    /// Each of both gets the name of the other, where both are there.
    Exchange(&'static str, &'static str),
    Put(&'static str),
    /// What is ready is brought, and said to be durable.
    Settle,
    /// The journal becomes longer than it may be, and is made shorter.
    Shorten,
}

/// An object, by the number of its content.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Object {
    content: u64,
    version: String,
    operation: Option<OperationId>,
}

/// A store, as the uploads of a node leave it.
#[derive(Clone, Default, Debug)]
struct Store {
    objects: BTreeMap<String, Object>,
    versions: u64,
}

impl Store {
    fn put(&mut self, key: &str, content: u64, operation: Option<OperationId>) {
        self.versions += 1;
        let version = format!("v{}", self.versions);
        self.objects.insert(key.to_owned(), Object { content, version, operation });
    }

    /// Does what a change asks for, as the engine does: on condition, and once.
    fn bring(&mut self, stage: &Stage, change: &Change, context: &str) -> Settled {
        let key = std::str::from_utf8(change.target().key.as_bytes()).unwrap().to_owned();
        let found = self.objects.get(&key).cloned();
        let has = |version: &Version| found.as_ref().is_some_and(|object| object.version == version.as_str());
        let is_ours = found.as_ref().is_some_and(|object| object.operation == Some(change.operation()));
        let later = found.as_ref().and_then(|object| object.operation);
        let holds = match change.base() {
            Base::Absent => found.is_none(),
            Base::Version(version) => has(&version) || found.is_none(),
            Base::Unconditional => true,
            Base::Staged(_) => panic!("{key} is brought out of turn: {context}"),
        };
        // Only who is refused asks whose it is.
        let is_later = !holds && later.and_then(|later| stage.marked(change.target(), later)).is_some();
        assert!(holds || is_ours || is_later, "{key} is in conflict with {found:?}: {context}");
        if *change.content() == Content::Remove {
            if holds {
                self.objects.remove(&key);
            }
            return Settled::Removed { moment: 0 };
        }
        if !is_ours && !is_later {
            let content = match change.original() {
                Some(original) => self.original(&original, context),
                None => u64::from_le_bytes(bytes_of(change)[..8].try_into().unwrap()),
            };
            self.put(&key, content, Some(change.operation()));
        }
        let version = Version::from(&*self.objects[&key].version);
        let attributes = ObjectAttributes { size: change.size().unwrap(), modified_ms: 0, version };
        Settled::Stored { attributes, moment: 0 }
    }

    fn original(&self, original: &Original, context: &str) -> u64 {
        let found = self.objects.get(std::str::from_utf8(original.key.as_bytes()).unwrap());
        let found = found.filter(|object| object.version == original.version.as_str());
        found.unwrap_or_else(|| panic!("{original:?} is gone before it was copied: {self:?}: {context}")).content
    }
}

/// Bytes that say which content they are of.
fn numbered(number: u64, size: usize) -> Bytes {
    let mut bytes = content(number, size).to_vec();
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes.into()
}

/// What the names should hold, by the numbers of contents.
type Names = BTreeMap<&'static str, u64>;

fn start() -> (Names, Store) {
    let mut store = Store::default();
    store.put("a", 1, None);
    (Names::from([("a", 1)]), store)
}

/// Whether its bytes are of this node.
fn is_put(change: &Change) -> bool {
    matches!(change.content(), Content::Put { .. })
}

/// What names hold after each step of a story.
fn told(story: &[Step]) -> Vec<Names> {
    let (mut names, _) = start();
    let mut told = vec![names.clone()];
    for (number, step) in (100..).zip(story) {
        match step {
            Step::Rename(from, to) => {
                if let Some(moved) = names.remove(from) {
                    names.insert(to, moved);
                }
            }
            Step::Exchange(one, other) => exchange_names(&mut names, one, other),
            Step::Put(key) => {
                names.insert(key, number);
            }
            Step::Settle | Step::Shorten => {}
        }
        told.push(names.clone());
    }
    told
}

fn exchange_names(names: &mut Names, one: &'static str, other: &'static str) {
    if let (Some(first), Some(second)) = (names.get(one).copied(), names.get(other).copied()) {
        names.extend([(one, second), (other, first)]);
    }
}

/// What a new change of a key replaces.
fn base_now(stage: &Stage, store: &Store, key: &str) -> Base {
    let version = match laid(stage, key) {
        Some(laid) => laid.attributes.map(|attributes| attributes.version),
        None => store.objects.get(key).map(|object| Version::from(&*object.version)),
    };
    match version {
        None => Base::Absent,
        Some(version) => operation_of(&version).map_or(Base::Version(version), Base::Staged),
    }
}

fn over(stage: &Stage, store: &Store, key: &str) -> Written {
    Written { base: base_now(stage, store, key), ..written(key) }
}

fn rename(stage: &Stage, store: &Store, from: &str, to: &str) -> Result<()> {
    let base = base_now(stage, store, from);
    let staged = match &base {
        Base::Absent => return Ok(()),
        Base::Staged(operation) => stage.find(SCOPE, &ObjectKey::from(from), &operation.version()),
        _ => None,
    };
    let mut batch = Batch::default();
    match staged.filter(|change| change.original().is_none()) {
        Some(change) => {
            let draft = stage.link(&target(to), &change)?;
            batch.drafts.push((draft, over(stage, store, to)));
        }
        None => {
            let version = match &base {
                Base::Staged(operation) => operation.version(),
                Base::Version(version) => version.clone(),
                _ => unreachable!("something has the name"),
            };
            let original = Original { key: ObjectKey::from(from), version, since: None };
            batch.copies.push((original, BYTES as u64, over(stage, store, to)));
        }
    }
    batch.removals.push((target(from), base, Durability::Local));
    stage.commit_batch(batch).map(drop)
}

/// One is copied by the store where it can, and the other is a file of this node.
fn exchange(stage: &Stage, store: &Store, (one, other): (&str, &str), names: &Names) -> Result<()> {
    let Some((_, second)) = names.get(one).zip(names.get(other)) else { return Ok(()) };
    let onto = |key| Written { only_onto_base: true, ..over(stage, store, key) };
    let mut batch = Batch { indivisible: true, ..Batch::default() };
    let version = match base_now(stage, store, one) {
        Base::Staged(operation) => operation.version(),
        Base::Version(version) => version,
        _ => unreachable!("something has the name"),
    };
    let staged = stage.find(SCOPE, &ObjectKey::from(one), &version);
    match staged.filter(|change| change.original().is_none()) {
        Some(change) => batch.drafts.push((stage.link(&target(other), &change)?, onto(other))),
        None => {
            let original = Original { key: ObjectKey::from(one), version, since: None };
            batch.copies.push((original, BYTES as u64, onto(other)));
        }
    }
    let draft = stage.create(&target(one))?;
    let file = std::fs::File::from(draft.descriptor().try_clone().unwrap());
    file.write_all_at(&numbered(*second, BYTES), 0).unwrap();
    batch.drafts.push((draft, onto(one)));
    stage.commit_batch(batch).map(drop)
}

fn put_numbered(stage: &Stage, store: &Store, key: &str, (number, size): (u64, usize)) -> Result<()> {
    stage.commit_small(numbered(number, size), over(stage, store, key)).map(drop)
}

/// What was acknowledged and what the store held, at the moments that a mark counts.
type Moments = Vec<(usize, Store)>;

/// Carries a story out; before every call that changes the disk the mark says which moment it is.
fn run(stage: &Stage, story: &[Step], mark: &AtomicU64) -> Moments {
    let ((_, mut store), told) = (start(), told(story));
    let mut moments = vec![(0, store.clone())];
    let note = |moments: &mut Moments, done: usize, store: &Store| {
        moments.push((done, store.clone()));
        mark.store(moments.len() as u64 - 1, Ordering::SeqCst);
    };
    for (number, step) in story.iter().enumerate() {
        match step {
            Step::Rename(from, to) => rename(stage, &store, from, to).unwrap(),
            Step::Exchange(one, other) => exchange(stage, &store, (one, other), &told[number]).unwrap(),
            Step::Put(key) => put_numbered(stage, &store, key, (100 + number as u64, BYTES)).unwrap(),
            Step::Settle => {
                if let Some(change) = stage.next() {
                    let settled = store.bring(stage, &change, "in the story");
                    note(&mut moments, number, &store);
                    stage.settle(&change, settled, Some(1_000_000));
                }
                stage.expire(0);
            }
            Step::Shorten => {
                for filling in 0..FILLINGS {
                    put_numbered(stage, &store, "z", (1_000 + filling as u64, FILLING_BYTES)).unwrap();
                    stage.expire(0);
                }
            }
        }
        note(&mut moments, number + 1, &store);
    }
    moments
}

/// Brings everything.
fn bring_all(stage: &Stage, store: &mut Store, context: &str) {
    for brought in 0.. {
        assert!(brought < BROUGHT_MAX, "there is no end: {context}");
        stage.hurry();
        let Some(change) = stage.next() else { break };
        let settled = store.bring(stage, &change, context);
        stage.settle(&change, settled, Some(1_000_000));
        stage.expire(0);
    }
    let status = stage.status();
    assert_eq!((status.files, status.conflicts), (0, 0), "{status:?}: {context}");
}

/// Opens what a crash left, and brings all of it.
fn check(image: &Image, from: &Path, moments: &Moments, story: &[Step], loss: Loss) {
    let (bench, _) = bench();
    image.restore(from, bench.directory.path(), loss);
    let (done, mut store) = moments[usize::try_from(image.mark).unwrap()].clone();
    let context = format!("{story:?} before {} with {done} acknowledged, {loss:?}", image.operation);
    let mut bench = bench;
    bench.disk = PowerLossDisk::new(Arc::new(RealDisk), bench.directory.path());
    let stage = bench.try_open().unwrap_or_else(|error| panic!("{error}: {context}"));
    bring_all(&stage, &mut store, &context);
    let told = told(story);
    let (before, after) = (&told[done], &told[(done + 1).min(story.len())]);
    for key in ["a", "b", "c"] {
        let found = store.objects.get(key).map(|object| object.content);
        let allowed = [before.get(key).copied(), after.get(key).copied()];
        assert!(allowed.contains(&found), "{key} holds {found:?} and none of {allowed:?}: {context}");
    }
    let holds = |key: &str| store.objects.get(key).map(|object| object.content);
    if let Some(Step::Exchange(one, other)) = story.get(done) {
        let is = |names: &Names| [one, other].iter().all(|key| names.get(*key).copied() == holds(key));
        assert!(is(before) || is(after), "only one of both names was exchanged: {:?}: {context}", store.objects);
    }
    if let Some(Step::Rename(from, _)) = story.get(done)
        && let Some(moved) = before.get(from)
    {
        assert!(store.objects.values().any(|object| object.content == *moved), "{moved} is gone: {context}");
    }
}

fn crash_everywhere(story: &[Step], number: usize) -> usize {
    let (bench, disk) = bench();
    let mark = Arc::new(AtomicU64::new(0));
    let stage = bench.open();
    disk.keep_images(Arc::clone(&mark));
    let moments = run(&stage, story, &mark);
    let images = disk.take_images();
    for (at, image) in images.iter().enumerate() {
        let seed = u64::try_from(1_000 * number + at).unwrap();
        let loss = [Loss::Everything, Loss::Some(seed), Loss::Nothing][(at + number) % 3];
        check(image, bench.directory.path(), &moments, story, loss);
    }
    images.len()
}

/// Every sequence of so many of these steps, each behind the first rename.
fn stories(steps: &[Step], length: usize) -> Vec<Vec<Step>> {
    let mut stories = vec![vec![Step::Rename("a", "b")]];
    for _ in 0..length {
        let longer = |story: &Vec<Step>| {
            let story = story.clone();
            steps.iter().map(move |step| story.iter().copied().chain([*step]).collect())
        };
        stories = stories.iter().flat_map(longer).collect();
    }
    stories
}

#[test]
fn what_is_renamed_in_the_source_is_never_lost_whenever_the_power_goes() {
    let steps = [Step::Rename("b", "a"), Step::Put("a"), Step::Put("b"), Step::Settle];
    let crashes: usize =
        stories(&steps, 3).iter().zip(0..).map(|(story, number)| crash_everywhere(story, number)).sum();
    println!("{crashes} crashes");
    assert!(crashes > 1_000);
}

#[test]
fn two_names_that_are_exchanged_are_so_both_or_neither_whenever_the_power_goes() {
    let exchange = Step::Exchange("a", "b");
    let steps = [exchange, Step::Exchange("b", "a"), Step::Put("a"), Step::Settle, Step::Shorten];
    let all = stories(&steps, 3);
    // Of what is in the source, and of what is not.
    let stories = all
        .into_iter()
        .filter(|story| story.contains(&exchange))
        .map(|story| [&[Step::Rename("a", "b"), Step::Put("a")], &story[1..]].concat());
    let crashes: usize = stories.zip(0..).map(|(story, number)| crash_everywhere(&story, number)).sum();
    println!("{crashes} crashes");
    assert!(crashes > 1_000);
}

#[test]
fn a_journal_that_is_made_shorter_while_copies_wait_tells_all_of_them() {
    let steps = [Step::Shorten, Step::Rename("b", "a"), Step::Rename("b", "c"), Step::Put("a"), Step::Settle];
    let all = stories(&steps, 2);
    let shortened = all.iter().filter(|story| story.contains(&Step::Shorten));
    let crashes: usize = shortened.zip(0..).map(|(story, number)| crash_everywhere(story, number)).sum();
    println!("{crashes} crashes");
    assert!(crashes > 500);
}

/// What a name may hold after the next start.
type Allowed = BTreeMap<&'static str, BTreeSet<Option<u64>>>;

/// Carries steps out, of which any may be refused: what is refused changes nothing, and may come back with the next start.
fn try_all(stage: &Stage, steps: &[Step]) -> (Allowed, Store) {
    let (mut names, mut store) = start();
    let mut allowed: Allowed = ["a", "b", "c"].map(|key| (key, BTreeSet::from([names.get(key).copied()]))).into();
    for (number, step) in (100..).zip(steps) {
        let (done, changes) = match *step {
            Step::Rename(from, to) => {
                let moved = names.get(from).copied();
                let changes = moved.map(|moved| vec![(to, Some(moved)), (from, None)]);
                (rename(stage, &store, from, to), changes.unwrap_or_default())
            }
            Step::Exchange(one, other) => {
                let mut after = names.clone();
                exchange_names(&mut after, one, other);
                let changes = [one, other].map(|key| (key, after.get(key).copied()));
                (exchange(stage, &store, (one, other), &names), changes.to_vec())
            }
            Step::Put(key) => (put_numbered(stage, &store, key, (number, BYTES)), vec![(key, Some(number))]),
            Step::Settle | Step::Shorten => {
                if let Some(change) = stage.next() {
                    match is_put(&change).then(|| change.open()).transpose() {
                        Ok(_open) => {
                            let settled = store.bring(stage, &change, "before the next start");
                            stage.settle(&change, settled, Some(1_000_000));
                        }
                        Err(error) => stage.failed(&change, error),
                    }
                }
                stage.expire(0);
                continue;
            }
        };
        for (key, content) in changes {
            let known = allowed.get_mut(key).unwrap();
            if done.is_ok() {
                known.clear();
                match content {
                    Some(content) => names.insert(key, content),
                    None => names.remove(key),
                };
            }
            known.insert(content);
        }
    }
    (allowed, store)
}

#[test]
fn any_call_that_fails_once_loses_nothing_that_is_renamed_in_the_source() {
    let (ab, ba, bc) = (Step::Rename("a", "b"), Step::Rename("b", "a"), Step::Rename("b", "c"));
    let steps =
        [ab, Step::Put("a"), bc, Step::Settle, ab, Step::Settle, ba, Step::Put("b"), Step::Settle, ab, Step::Settle];
    assert!(fail_everywhere(&steps) > 100);
}

#[test]
fn any_call_that_fails_once_loses_nothing_where_the_journal_is_shorter_than_what_is_copied_from() {
    let (ab, ba, bc) = (Step::Rename("a", "b"), Step::Rename("b", "a"), Step::Rename("b", "c"));
    let ends = [bc, Step::Settle, ab, Step::Settle, ba, Step::Put("b"), Step::Settle, ab, Step::Settle];
    let exchange = Step::Exchange("a", "b");
    for middle in [&[Step::Put("b")][..], &[Step::Put("b"), Step::Put("a")], &[ba, ab, Step::Put("a")], &[exchange]] {
        let steps = [&[ab, Step::Put("a")][..], middle, &ends].concat();
        assert!(fail_everywhere(&steps) > 100);
    }
}

#[test]
fn any_call_that_fails_once_loses_nothing_that_is_exchanged() {
    let (ab, exchange) = (Step::Rename("a", "b"), Step::Exchange("a", "b"));
    let steps = [ab, Step::Put("a"), exchange, Step::Settle, exchange, Step::Settle, Step::Settle];
    assert!(fail_everywhere(&steps) > 50);
}

/// Has each call to the disk fail once, in each way; how many did.
fn fail_everywhere(steps: &[Step]) -> u64 {
    let mut fired = 0;
    for fault in [DiskFault::BROKEN, DiskFault::FULL, DiskFault::Short] {
        for number in 0.. {
            let disk = FaultyDisk::new(Arc::new(RealDisk));
            let mut bench = Bench::on(disk.clone());
            bench.bounds.segment_bytes = 16 * 1024;
            let stage = bench.open();
            let first = disk.calls();
            disk.fail(move |call| {
                (call.number == first + number && fault.is_possible(call.operation)).then_some(fault)
            });
            let (allowed, mut store) = try_all(&stage, steps);
            let (calls, hit) = (disk.calls() - first, disk.fired() > 0);
            let context = format!("call {number} failed with {fault:?}");
            bring_all(&bench.after_a_kill().open(), &mut store, &context);
            for (key, allowed) in allowed {
                let found = store.objects.get(key).map(|object| object.content);
                assert!(allowed.contains(&found), "{key} holds {found:?} and none of {allowed:?}: {context}");
            }
            fired += u64::from(hit);
            if number >= calls {
                break;
            }
        }
    }
    println!("{fired} calls failed");
    fired
}
