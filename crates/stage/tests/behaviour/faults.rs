//! Every call to the disk fails once: what was acknowledged stays, what was not may be there or not, and once the disk
//! works again the stage does.

use std::sync::Arc;

use penstock_cache::RealDisk;
use penstock_stage::{Base, Stage};
use penstock_testkit::{DiskFault, FaultyDisk};
use penstock_types::Result;

use crate::support::*;

const SMALL_BYTES: usize = 6_000;
const LARGE_BYTES: usize = 9_000;

/// What was acknowledged, in order: the key, and what it holds then.
type Ledger = Vec<(&'static str, Option<Vec<u8>>)>;

/// A little of everything; goes on after each failure.
fn life(stage: &Stage, ledger: &mut Ledger) {
    let mut note = |key, data: Option<Vec<u8>>, done: Result<()>| {
        if done.is_ok() {
            ledger.push((key, data));
        }
    };
    for round in 0..4 {
        let (small, large) = (content(round, SMALL_BYTES), content(round + 100, LARGE_BYTES));
        note("small", Some(small.to_vec()), stage.commit_small(small, written("small")).map(drop));
        note("large", Some(large.to_vec()), try_put_large(stage, "large", &large).map(drop));
        let gone = content(round + 200, SMALL_BYTES);
        note("gone", Some(gone.to_vec()), stage.commit_small(gone, written("gone")).map(drop));
        if let Some(change) = stage.next() {
            stage.failed(&change, failure());
            stage.hurry();
        }
        note(
            "gone",
            None,
            stage.remove(target("gone"), Base::Unconditional, penstock_types::Durability::Local).map(drop),
        );
        stage.expire(0);
    }
}

fn check(stage: &Stage, ledger: &Ledger, key: &str, context: &str) {
    let seen = laid(stage, key).map(|_| seen(stage, key));
    let last = ledger.iter().rfind(|(of, _)| *of == key).map(|(_, data)| data.clone());
    // What was refused may be there all the same: as a whole.
    let rounds = (0..4).flat_map(|round| {
        let contents = [(round, SMALL_BYTES), (round + 100, LARGE_BYTES), (round + 200, SMALL_BYTES)];
        contents.map(|(seed, size)| Some(content(seed, size).to_vec()))
    });
    let whole = seen.as_ref().is_none_or(|seen| rounds.chain([None]).any(|data| data == *seen));
    assert!(whole, "{key} is torn: {context}");
    assert!(last.is_none() || seen.is_some(), "{key} was acknowledged and is lost: {context}");
    let refused = ledger.iter().filter(|(of, _)| *of == key).count() < if key == "gone" { 8 } else { 4 };
    assert!(seen == last || refused, "{key} is not what was acknowledged last: {context}");
}

fn with_faults(fault: DiskFault) {
    let mut number = 0;
    let mut fired = 0;
    loop {
        let disk = FaultyDisk::new(Arc::new(RealDisk));
        let mut bench = Bench::on(disk.clone());
        bench.bounds.segment_bytes = 32 * 1024;
        let stage = bench.open();
        let first = disk.calls();
        disk.fail(move |call| (call.number == first + number && fault.is_possible(call.operation)).then_some(fault));
        let mut ledger = Ledger::new();
        life(&stage, &mut ledger);
        let (calls, hit) = (disk.calls() - first, disk.fired() > 0);
        disk.heal();
        let context = format!("call {number} failed with {fault:?}");
        let copy = bench.after_a_kill();
        let after = copy.open();
        for key in ["small", "large", "gone"] {
            check(&after, &ledger, key, &context);
            let last = ledger.iter().rfind(|(of, _)| *of == key).map(|(_, data)| data.clone());
            assert_eq!(laid(&stage, key).map(|_| seen(&stage, key)), last, "{context}");
        }
        stage.expire(0);
        put(&stage, "healed", &content(7, 10));
        assert_eq!(seen(&stage, "healed").unwrap(), content(7, 10), "{context}");
        fired += u64::from(hit);
        number += 1;
        if number >= calls {
            break;
        }
    }
    println!("{fired} of {number} calls failed with {fault:?}");
    assert!(fired > 0);
}

#[test]
fn any_call_that_fails_once_loses_nothing_that_was_acknowledged() {
    with_faults(DiskFault::BROKEN);
}

#[test]
fn any_call_that_finds_the_disk_full_once_loses_nothing_that_was_acknowledged() {
    with_faults(DiskFault::FULL);
}

#[test]
fn any_call_that_is_cut_short_once_changes_nothing() {
    with_faults(DiskFault::Short);
}
