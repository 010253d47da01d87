//! Settling conflicts: what is kept is staged again or given up, and lost by no crash and no failing disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use penstock_cache::RealDisk;
use penstock_stage::{Base, Change, Stage};
use penstock_testkit::{DiskFault, FaultyDisk, Loss};
use penstock_types::{Durability, ErrorKind, Result, Version};

use crate::power;
use crate::support::*;

const SMALL_BYTES: usize = 5_000;
/// Not in the journal.
const LARGE_BYTES: usize = 300_000;

/// Puts the change that is given out next into conflict.
fn collide(stage: &Stage) -> Arc<Change> {
    let change = stage.next().unwrap();
    stage.conflict(&change, conflict());
    change
}

fn conflicts(stage: &Stage) -> Vec<Arc<Change>> {
    stage.conflicts_below(SCOPE, b"a")
}

fn theirs() -> Base {
    Base::Version(Version::from("theirs"))
}

/// How a conflict is settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Restage,
    Discard,
}

const WAYS: [Way; 2] = [Way::Restage, Way::Discard];

impl Way {
    fn settle(self, stage: &Stage) -> Result<()> {
        let known = conflicts(stage);
        match self {
            Self::Restage => stage.restage(&known[0], &theirs()).map(drop),
            Self::Discard => stage.discard(&known[0]),
        }
    }
}

/// What is of our bytes: in conflict, staged, or neither.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kept {
    InConflict,
    Staged,
    Nowhere,
}

fn kept(stage: &Stage, data: &Bytes, context: &str) -> Kept {
    let (known, shown) = (conflicts(stage), seen(stage, "a"));
    let status = stage.status();
    assert_eq!(status.conflicts, known.len() as u64, "{context}");
    assert_eq!(status.recovered, [], "{context}");
    match (&known[..], shown) {
        ([change], None) => {
            assert_eq!(bytes_of(change), *data, "{context}");
            assert_eq!(change.failure(), Some(conflict()), "{context}");
            Kept::InConflict
        }
        ([], Some(bytes)) => {
            assert_eq!(bytes, *data, "{context}");
            Kept::Staged
        }
        ([], None) => Kept::Nowhere,
        other => panic!("it is there twice: {other:?}: {context}"),
    }
}

impl Way {
    fn after(self) -> Kept {
        match self {
            Self::Restage => Kept::Staged,
            Self::Discard => Kept::Nowhere,
        }
    }

    /// What is there after a crash.
    fn check(self, stage: &Stage, data: &Bytes, acknowledged: bool, context: &str) -> Kept {
        let found = kept(stage, data, context);
        let may_be = found == self.after() || (!acknowledged && found == Kept::InConflict);
        assert!(may_be, "{found:?}: {context}");
        found
    }
}

#[test]
fn what_is_staged_again_is_brought_on_condition_of_what_the_source_has_now_and_needs_no_room() {
    for size in [SMALL_BYTES, LARGE_BYTES] {
        let bench = Bench { size_bytes: size as u64, ..Bench::default() };
        let stage = bench.open();
        let data = content(1, size);
        put(&stage, "a", &data);
        let old = collide(&stage);
        assert_eq!((laid(&stage, "a"), stage.status().conflicts), (None, 1));

        let change = stage.restage(&old, &theirs()).unwrap();
        assert_eq!((seen(&stage, "a").unwrap(), change.base()), (data.to_vec(), theirs()));
        assert_ne!(change.operation(), old.operation());
        assert_eq!((change.metadata(), ended(&change)), (old.metadata(), None));
        let status = stage.status();
        assert_eq!((status.conflicts, status.conflict_bytes, status.files), (0, 0, 1));
        for _ in 0..2 {
            stage.expire(0);
            assert_eq!((stage.status().used_bytes, bench.files().len()), (size as u64, 1));
        }
        assert_eq!((bench.metrics.stage_conflicts.get(), bench.metrics.stage_files.get()), (0, 1));
        let given = bring(&stage, "ours", 0).unwrap();
        assert_eq!((given.operation(), bytes_of(&given)), (change.operation(), data.to_vec()));
        assert_eq!(ended(&change), Some(Ok(())));
        drop((old, change, given));
        stage.expire(0);
        assert_eq!((stage.status().used_bytes, bench.files().len()), (0, 0));
    }
}

#[test]
fn what_is_given_up_frees_its_room_and_its_file() {
    let bench = Bench::default();
    let stage = bench.open();
    put_large(&stage, "a", &content(1, LARGE_BYTES));
    let old = collide(&stage);
    stage.discard(&old).unwrap();
    assert_eq!((stage.status().conflicts, laid(&stage, "a")), (0, None));
    assert_eq!(ended(&old), Some(Err(conflict())));
    drop(old);
    stage.expire(0);
    assert_eq!((stage.status().used_bytes, bench.files().len()), (0, 0));
    assert_eq!(bench.metrics.stage_conflicts.get(), 0);
}

#[test]
fn what_was_brought_before_a_conflict_is_shown_no_more_also_after_restarts() {
    let bench = Bench::default();
    let stage = bench.open();
    put(&stage, "a", &content(1, 10));
    bring(&stage, "before", 0).unwrap();
    assert!(laid(&stage, "a").is_some());
    put(&stage, "a", &content(2, 10));
    let old = collide(&stage);
    assert_eq!(laid(&stage, "a"), None);
    let after = bench.after_a_kill();
    assert_eq!(laid(&after.open(), "a"), None);
    stage.discard(&old).unwrap();
    for number in 0..100 {
        put(&stage, "b", &content(number, SMALL_BYTES));
        stage.expire(0);
        if number % 10 == 0 {
            let after = bench.after_a_kill();
            assert_eq!(laid(&after.open(), "a"), None, "{number}");
        }
    }
    // What is brought later is.
    put(&stage, "a", &content(3, 10));
    while bring(&stage, "ours", 1).is_some() {}
    let after = bench.after_a_kill();
    assert!(laid(&after.open(), "a").unwrap().settled.is_some());
}

#[test]
fn a_conflict_is_settled_once() {
    let (_bench, stage) = alone();
    put(&stage, "a", &content(1, 10));
    let old = collide(&stage);
    stage.restage(&old, &theirs()).unwrap();
    let kind = |refused: Result<()>| refused.unwrap_err().kind();
    assert_eq!(kind(stage.discard(&old)), ErrorKind::NotFound);
    assert_eq!(kind(stage.restage(&old, &theirs()).map(drop)), ErrorKind::NotFound);
    assert_eq!(seen(&stage, "a").unwrap(), content(1, 10));
}

#[test]
fn what_is_staged_again_comes_after_what_was_written_meanwhile() {
    let bench = Bench::default();
    let stage = bench.open();
    put(&stage, "a", &content(1, 10));
    let old = collide(&stage);
    let later = put(&stage, "a", &content(2, 10));
    let change = stage.restage(&old, &theirs()).unwrap();
    assert_eq!(change.base(), Base::Staged(later.operation()));
    assert_eq!(seen(&stage, "a").unwrap(), content(1, 10));
    let after = bench.after_a_kill();
    for stage in [stage, after.open()] {
        assert_eq!(bytes_of(&bring(&stage, "v1", 0).unwrap()), content(2, 10));
        let given = stage.next().unwrap();
        assert_eq!((bytes_of(&given), given.base()), (content(1, 10).to_vec(), Base::Version("v1".into())));
    }
}

#[test]
fn what_is_written_over_what_was_staged_again_takes_its_place_as_that_of_any_other_change() {
    let bench = Bench::default();
    let stage = bench.open();
    put_large(&stage, "a", &content(1, LARGE_BYTES));
    let again = stage.restage(&collide(&stage), &theirs()).unwrap();
    let last = put(&stage, "a", &content(2, 10));
    assert_eq!(last.base(), theirs());
    drop(again);
    stage.expire(0);
    stage.expire(0);
    assert_eq!((stage.status().used_bytes, bench.files().len()), (10, 0));
    let after = bench.after_a_kill();
    assert_eq!(seen(&after.open(), "a").unwrap(), content(2, 10));
}

#[test]
fn a_removal_in_conflict_is_staged_again_or_given_up_too() {
    for way in WAYS {
        let bench = Bench::default();
        let stage = bench.open();
        stage.remove(target("a"), Base::Version("v1".into()), Durability::Local).unwrap();
        collide(&stage);
        way.settle(&stage).unwrap();
        let after = bench.after_a_kill();
        for stage in [after.open(), stage] {
            assert_eq!(stage.status().conflicts, 0);
            let given = stage.next();
            assert_eq!(given.is_some(), way == Way::Restage);
            if let Some(given) = given {
                assert_eq!((given.size(), given.base()), (None, theirs()));
            }
        }
    }
}

#[test]
fn a_conflict_whose_bytes_are_lost_can_only_be_given_up() {
    let bench = Bench::default();
    put_large(&bench.open(), "a", &content(1, LARGE_BYTES));
    std::fs::write(&bench.files()[0], b"short").unwrap();
    let stage = bench.open();
    let old = conflicts(&stage).remove(0);
    assert_eq!(old.failure().unwrap().kind(), ErrorKind::Corrupt);
    assert_eq!(stage.restage(&old, &theirs()).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(stage.status().conflicts, 1);
    stage.discard(&old).unwrap();
    stage.close();
    assert_eq!(bench.open().status().conflicts, 0);
}

#[test]
fn what_was_settled_stays_so_when_the_journal_is_made_shorter() {
    for way in WAYS {
        let bench = Bench::default();
        let stage = bench.open();
        put(&stage, "a", &content(1, SMALL_BYTES));
        collide(&stage);
        way.settle(&stage).unwrap();
        for number in 0..100 {
            put(&stage, "b", &content(number, SMALL_BYTES));
            stage.expire(0);
        }
        assert!(stage_is_short(&bench), "{:?}", bench.segments());
        let after = bench.after_a_kill();
        let stage = after.open();
        assert_eq!(kept(&stage, &content(1, SMALL_BYTES), &format!("{way:?}")), way.after());
    }
}

fn stage_is_short(bench: &Bench) -> bool {
    bench.segments().len() <= SMALL.segments_max
}

#[test]
fn a_crash_at_every_step_of_settling_loses_nothing() {
    let mut crashes = 0;
    for way in WAYS {
        for size in [SMALL_BYTES, LARGE_BYTES] {
            let (bench, disk) = power::bench();
            let data = content(1, size);
            let stage = bench.open();
            put(&stage, "a", &data);
            collide(&stage);
            // Until then it would be given out again, and be a conflict again.
            stage.expire(0);
            let acknowledged = Arc::new(AtomicU64::new(0));
            disk.keep_images(Arc::clone(&acknowledged));
            way.settle(&stage).unwrap();
            acknowledged.store(1, Ordering::SeqCst);
            (0..2).for_each(|_| stage.expire(0));
            for (number, image) in disk.take_images().iter().enumerate() {
                for loss in [Loss::Everything, Loss::Nothing, Loss::Some(number as u64)] {
                    let (after, _) = power::bench();
                    image.restore(bench.directory.path(), after.directory.path(), loss);
                    let context = format!("{way:?} of {size} bytes, before {}, {loss:?}", image.operation);
                    let stage = after.open();
                    // What was not settled still can be.
                    if way.check(&stage, &data, image.mark == 1, &context) == Kept::InConflict {
                        way.settle(&stage).unwrap();
                        assert_eq!(kept(&stage, &data, &context), way.after());
                    }
                    crashes += 1;
                }
            }
        }
    }
    println!("{crashes} crashes");
    assert!(crashes > 50);
}

/// Settles a conflict while one call to the disk fails; how many calls there were, and how many failed.
fn settle_with_a_fault(way: Way, size: usize, fault: DiskFault, number: u64) -> (u64, u64) {
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let bench = Bench::on(disk.clone());
    let (stage, data) = (bench.open(), content(1, size));
    put(&stage, "a", &data);
    collide(&stage);
    let first = disk.calls();
    disk.fail(move |call| (call.number == first + number && fault.is_possible(call.operation)).then_some(fault));
    let settled = way.settle(&stage);
    let (calls, fired) = (disk.calls() - first, disk.fired());
    disk.heal();
    let context = format!("{way:?} of {size} bytes, call {number} failed with {fault:?}: {settled:?}");
    let expected = if settled.is_ok() { way.after() } else { Kept::InConflict };
    assert_eq!(kept(&stage, &data, &context), expected, "{context}");
    let after = bench.after_a_kill();
    way.check(&after.open(), &data, settled.is_ok(), &context);
    // A disk that works again has it settled.
    if settled.is_err() {
        way.settle(&stage).unwrap();
    }
    (0..2).for_each(|_| stage.expire(0));
    assert_eq!(kept(&stage, &data, &context), way.after(), "{context}");
    let after = bench.after_a_kill();
    assert_eq!(kept(&after.open(), &data, &context), way.after(), "{context}");
    (calls, fired)
}

#[test]
fn any_call_that_fails_while_a_conflict_is_settled_leaves_it_as_it_was_or_settles_it() {
    let mut faults = 0;
    let all = [DiskFault::BROKEN, DiskFault::FULL, DiskFault::Short];
    for way in WAYS {
        for size in [SMALL_BYTES, LARGE_BYTES] {
            for fault in all {
                let (mut number, mut calls) = (0, 1);
                while number < calls {
                    let fired;
                    (calls, fired) = settle_with_a_fault(way, size, fault, number);
                    (number, faults) = (number + 1, faults + fired);
                }
            }
        }
    }
    println!("{faults} calls failed");
    assert!(faults > 12);
}
