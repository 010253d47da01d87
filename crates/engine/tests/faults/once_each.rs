//! The calls of a recorded run, of source and disk, fail once each, one by one, in every way they can fail.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use penstock_testkit::{DiskCall, DiskFault, Fault, SourceCall};
use penstock_types::ErrorKind;

use crate::run::{corpus, recovers, run};
use crate::world::{Corpus, Policy, World};

/// Runs at once: most of a run with a fault is waiting for the next try.
const RUNNERS: usize = 16;
/// Two runs need not make the same number of calls of each kind; one that does not meet its call is repeated.
const REPEATS_MAX: usize = 5;
/// Runs that are recorded, at once.
const RECORDINGS: usize = 4;

/// One call of a run: the n-th of its kind. What comes in parallel has no order, so kinds are counted apart.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Aim {
    kind: String,
    ordinal: u64,
    /// Every recorded run made it.
    is_certain: bool,
}

impl Aim {
    /// Says of each call whether it is the one.
    fn finder(&self) -> impl Fn(&str) -> bool + Send + Sync + 'static {
        let (aim, seen) = (self.clone(), AtomicU64::new(0));
        move |kind| kind == aim.kind && seen.fetch_add(1, Ordering::SeqCst) == aim.ordinal
    }

    /// Every call of some recordings.
    fn all(record: impl Fn() -> Vec<String> + Sync) -> Vec<Self> {
        let recorded: Vec<BTreeMap<String, u64>> = std::thread::scope(|scope| {
            let recording = || {
                let mut counts = BTreeMap::new();
                record().into_iter().for_each(|kind| *counts.entry(kind).or_default() += 1);
                counts
            };
            let recordings: Vec<_> = (0..RECORDINGS).map(|_| scope.spawn(recording)).collect();
            recordings.into_iter().map(|recording| recording.join().unwrap()).collect()
        });
        let (mut least, mut most) = (recorded[0].clone(), BTreeMap::new());
        for (kind, count) in recorded.iter().flatten() {
            most.entry(kind.clone()).and_modify(|most: &mut u64| *most = (*most).max(*count)).or_insert(*count);
        }
        for counts in &recorded {
            least.iter_mut().for_each(|(kind, least)| *least = (*least).min(*counts.get(kind).unwrap_or(&0)));
        }
        println!("{} calls: {most:?}", most.values().sum::<u64>());
        let of_kind = |(kind, count): (String, u64)| {
            let certain = *least.get(&kind).unwrap_or(&0);
            (0..count).map(move |ordinal| Aim { kind: kind.clone(), ordinal, is_certain: ordinal < certain })
        };
        most.into_iter().flat_map(of_kind).collect()
    }
}

fn source_kind(call: &SourceCall) -> String {
    format!("{} {}", call.operation, call.key)
}

/// What is done to which file: numbers of extents differ between runs.
fn disk_kind(call: &DiskCall) -> String {
    let name = call.path.file_name().unwrap_or_default().to_string_lossy();
    let what = match call.path.extension() {
        Some(extension) if extension == "x" => "extent",
        Some(extension) if extension == "redb" => "index",
        _ if name == "penstock-tier" => "marker",
        _ => "directory",
    };
    format!("{} {what}", call.operation)
}

/// Tries every case on a few threads; `attempt` says whether the fault was met. That of a call which not every run makes
/// may be met by none.
fn each<F: Sync + std::fmt::Debug>(cases: &[(Aim, F)], attempt: impl Fn(&(Aim, F)) -> bool + Sync) {
    let (next, failed, unmet) = (AtomicUsize::new(0), Mutex::new(Vec::new()), AtomicUsize::new(0));
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let met = catch_unwind(AssertUnwindSafe(|| (0..REPEATS_MAX).any(|_| attempt(case))));
            match met {
                Ok(true) => {}
                Ok(false) if !case.0.is_certain => drop(unmet.fetch_add(1, Ordering::Relaxed)),
                Ok(false) => failed.lock().unwrap().push(format!("{case:?}: no run met it")),
                Err(_) => failed.lock().unwrap().push(format!("{case:?}: see above")),
            }
        }
    };
    std::thread::scope(|scope| (0..RUNNERS).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} faults: {failed:#?}", failed.len(), cases.len());
    let unmet = unmet.into_inner();
    assert!(unmet < cases.len() / 20, "{unmet} of {} faults are of calls that hardly a run makes", cases.len());
    println!("{} faults, all but {unmet} met", cases.len());
}

/// Ways in which a source fails for a moment: another try gets the answer.
fn passing(operation: &str) -> Vec<Fault> {
    let mut faults = vec![
        Fault::Fail(ErrorKind::Unavailable),
        Fault::Fail(ErrorKind::Timeout),
        Fault::Fail(ErrorKind::RateLimited),
        Fault::Hang,
    ];
    if operation == "read" {
        faults.extend([
            Fault::BreakBody(0),
            Fault::BreakBody(70_000),
            Fault::CutBody(500),
            Fault::CutBody(70_000),
            Fault::HangBody(70_000),
            Fault::ExtendBody(1),
            Fault::RepeatBody,
            Fault::OtherRange,
        ]);
    }
    faults
}

/// Answers that another try would not change, and failures that are not tried again.
fn lasting(operation: &str) -> Vec<Fault> {
    let mut faults = vec![
        Fault::Fail(ErrorKind::Unavailable),
        Fault::Fail(ErrorKind::NotFound),
        Fault::Fail(ErrorKind::PermissionDenied),
    ];
    if operation == "read" {
        faults.extend([
            Fault::Fail(ErrorKind::StaleVersion),
            Fault::BreakBody(70_000),
            Fault::CutBody(70_000),
            Fault::OtherRange,
            Fault::OtherVersion,
        ]);
    }
    faults
}

/// Kinds that a reader may get for [`lasting`] failures.
const LASTING_KINDS: &[ErrorKind] = &[
    ErrorKind::Unavailable,
    ErrorKind::NotFound,
    ErrorKind::PermissionDenied,
    ErrorKind::StaleVersion,
    ErrorKind::Corrupt,
];

fn source_aims(corpus: &Corpus) -> Vec<Aim> {
    Aim::all(|| {
        let world = World::new(corpus, Policy::default(), |_| None);
        run(&world);
        world.faulty.calls().iter().map(source_kind).collect()
    })
}

fn fault_source(corpus: &Corpus, policy: &Policy, allowed: &'static [ErrorKind], (aim, fault): &(Aim, Fault)) -> bool {
    let (found, fault) = (aim.finder(), *fault);
    let mut world = World::new(corpus, policy.clone(), move |call| found(&source_kind(call)).then_some(fault));
    (world.readers_get, world.jobs_get) = (allowed, allowed);
    run(&world);
    let met = world.faulty.fired().len() == 1;
    recovers(&world);
    met
}

fn cases<F: Copy>(aims: Vec<Aim>, faults: impl Fn(&str) -> Vec<F>) -> Vec<(Aim, F)> {
    let with = |aim: Aim| {
        let operation = aim.kind.split(' ').next().unwrap_or_default().to_owned();
        faults(&operation).into_iter().map(move |fault| (aim.clone(), fault))
    };
    aims.into_iter().flat_map(with).collect()
}

#[test]
fn whichever_call_of_the_source_fails_for_a_moment_no_reader_notices() {
    let corpus = corpus("passing");
    // A silent source is given up after a third of this.
    let policy = Policy { deadline: Duration::from_secs(6), ..Policy::default() };
    let cases = cases(source_aims(&corpus), passing);
    each(&cases, |case| fault_source(&corpus, &policy, &[], case));
    assert!(cases.len() > 200);
}

#[test]
fn whichever_call_of_the_source_fails_for_good_readers_get_right_bytes_or_a_kind() {
    let corpus = corpus("lasting");
    let policy = Policy { attempts: 1, ..Policy::default() };
    let cases = cases(source_aims(&corpus), lasting);
    each(&cases, |case| fault_source(&corpus, &policy, LASTING_KINDS, case));
    assert!(cases.len() > 100);
}

#[test]
fn whichever_call_of_the_cache_disk_fails_every_byte_that_is_read_is_right() {
    let corpus = corpus("disk");
    let aims = Aim::all(|| {
        let world = World::new(&corpus, Policy::default(), |_| None);
        world.disk.record();
        run(&world);
        world.disk.recorded().iter().map(disk_kind).collect()
    });
    let possible = |operation: &str| {
        let faults = [DiskFault::BROKEN, DiskFault::FULL, DiskFault::Short];
        faults.into_iter().filter(|fault| fault.is_possible(operation)).collect()
    };
    let cases = cases(aims, possible);
    each(&cases, |(aim, fault)| {
        let mut world = World::new(&corpus, Policy::default(), |_| None);
        world.jobs_get = &[ErrorKind::Disk, ErrorKind::NoSpace];
        let (found, fault) = (aim.finder(), *fault);
        world.disk.fail(move |call| found(&disk_kind(call)).then_some(fault));
        run(&world);
        let met = world.disk.fired() == 1;
        world.disk.heal();
        recovers(&world);
        met
    });
    assert!(cases.len() > 200);
}
