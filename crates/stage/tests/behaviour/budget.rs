//! The size of the stage: writers are slowed down, wait, then get an error, and nothing that was acknowledged is dropped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use penstock_stage::{Base, Bounds, Pressure, Stage, StageParts};
use penstock_types::{Clock, ErrorKind, Result};

use crate::support::*;

const MIB: u64 = 1024 * 1024;
const S: Duration = Duration::from_secs(1);

/// Goes on whenever somebody looks at it.
struct Passing {
    now: Mutex<Duration>,
    step: Duration,
}

impl Clock for Passing {
    fn monotonic(&self) -> Duration {
        let mut now = self.now.lock().unwrap();
        *now += self.step;
        *now
    }

    fn wall_ms(&self) -> i64 {
        1_750_000_000_000
    }
}

/// A stage of 4 MiB with patience, of which so much is in use, and whose clock goes on by `step` at every look.
fn used(bytes: u64, step: Duration) -> (Bench, Arc<Stage>) {
    let mut bench = Bench { size_bytes: 4 * MIB, ..Bench::default() };
    (bench.bounds.patience, bench.bounds.patience_max) = (10 * S, 25 * S);
    let clock = Arc::new(Passing { now: Mutex::default(), step });
    let parts = StageParts { clock, ..bench.parts() };
    let stage = Stage::open_bounded(parts, bench.bounds).unwrap();
    // What is written without asking for room waits for none.
    let draft = stage.create(&target("used")).unwrap();
    write_at(draft.descriptor(), &content(1, usize::try_from(bytes).unwrap()));
    stage.commit(draft, written("used")).unwrap();
    (bench, stage)
}

/// What a draft of so many bytes got, and how long it waited.
fn grown(bench: &Bench, stage: &Stage, bytes: u64) -> (Result<()>, Duration) {
    let draft = stage.create(&target("a")).unwrap();
    let before = bench.metrics.stage_wait_ms.get();
    let grown = draft.grow(bytes);
    (grown, Duration::from_millis(bench.metrics.stage_wait_ms.get() - before))
}

#[test]
fn a_full_stage_refuses_what_is_written_until_the_source_has_taken_some() {
    let bench = Bench { size_bytes: 1_000, ..Bench::default() };
    let stage = bench.open();
    put(&stage, "a", &content(1, 1_000));
    let draft = stage.create(&target("b")).unwrap();
    assert_eq!(draft.grow(1).unwrap_err().kind(), ErrorKind::NoSpace);
    drop(draft);
    assert_eq!(stage.commit_small(content(2, 1), written("b")).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!((bench.files().len(), laid(&stage, "b")), (0, None));
    assert_eq!((stage.status().pressure, bench.metrics.stage_pressure.get()), (Pressure::Full, 2));
    bring(&stage, "v1", 0).unwrap();
    stage.expire(0);
    assert_eq!((stage.status().pressure, bench.metrics.stage_pressure.get()), (Pressure::None, 0));
    put(&stage, "b", &content(2, 1));
    assert_eq!((stage.status().used_bytes, bench.metrics.stage_used_bytes.get()), (1, 1));
}

#[test]
fn removals_directories_and_other_names_go_on_where_the_stage_is_full_from_a_reserve_with_an_end() {
    let bench = Bench { size_bytes: 8_000, ..Bench::default() };
    let stage = bench.open();
    let change = put_large(&stage, "a", &content(1, 8_000));
    assert_eq!(stage.commit_small(content(2, 1), written("b")).unwrap_err().kind(), ErrorKind::NoSpace);
    remove(&stage, "c", Base::Unconditional);
    put(&stage, "directory/", &content(2, 0));
    let linked = stage.link(&target("d"), &change).unwrap();
    let removal = (target("a"), Base::Staged(change.operation()), written("a").durability);
    stage.commit_all(vec![(linked, written("d"))], vec![removal]).unwrap();
    assert_eq!((seen(&stage, "d").unwrap(), seen(&stage, "a")), (content(1, 8_000).to_vec(), None));
    stage.expire(0);
    let copied = |size: u64| stage.create_reserved(&target("e")).unwrap().grow(size);
    assert_eq!(stage.status().used_bytes, 8_000, "the other name takes the place of the first");
    copied(1_000).unwrap();
    assert_eq!(copied(1_001).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(stage.status().used_bytes, 8_000);
}

#[test]
fn a_writer_waits_for_room_as_long_as_it_has_patience() {
    let (bench, stage) = used(4 * MIB, S);
    let (refused, waited) = grown(&bench, &stage, 1);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::NoSpace);
    assert!((10 * S..=12 * S).contains(&waited), "{waited:?}");
    assert_eq!((bench.metrics.stage_waits.get(), bench.metrics.stage_waiting.get()), (1, 0));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| grown(&bench, &stage, 500).0);
        bring(&stage, "v1", 0).unwrap();
        stage.expire(0);
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn a_writer_has_more_patience_while_the_source_takes_what_waits() {
    let (bench, stage) = used(4 * MIB, S);
    let (waits, refused) = (&bench.metrics.stage_waiting, AtomicBool::new(false));
    let waited = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !refused.load(Ordering::Acquire) {
                // Each look at the clock takes a second.
                if waits.get() > 0 {
                    stage.brought(1);
                }
                std::thread::yield_now();
            }
        });
        let (grown, waited) = grown(&bench, &stage, 1);
        refused.store(true, Ordering::Release);
        assert_eq!(grown.unwrap_err().kind(), ErrorKind::NoSpace);
        waited
    });
    assert!(waited >= 25 * S, "{waited:?}");
}

#[test]
fn a_writer_is_slowed_down_before_the_stage_is_full_and_that_shows() {
    let (bench, stage) = used(3 * MIB, S / 100);
    assert_eq!((stage.status().pressure, bench.metrics.stage_waits.get()), (Pressure::None, 0));
    let draft = stage.create(&target("b")).unwrap();
    assert!(!draft.try_grow(MIB / 2), "it has to wait");
    draft.grow(MIB / 2).unwrap();
    // At 1 MiB a second: no source has taken anything, and little is left.
    let waited = bench.metrics.stage_wait_ms.get();
    assert!((490..700).contains(&waited), "{waited} ms");
    assert_eq!((stage.status().pressure, bench.metrics.stage_pressure.get()), (Pressure::Slowed, 1));
    assert_eq!((bench.metrics.stage_waits.get(), bench.metrics.stage_waiting.get()), (1, 0));
}

#[test]
fn a_writer_goes_as_fast_as_the_source_takes_what_waits() {
    let (bench, stage) = used(3 * MIB, S / 100);
    stage.brought(100 * MIB);
    let (grown, waited) = grown(&bench, &stage, MIB / 2);
    grown.unwrap();
    assert!((S / 50..S / 5).contains(&waited), "half a MiB at 10 MiB a second took {waited:?}");
}

#[test]
fn a_writer_that_is_slowed_down_goes_on_at_once_when_there_is_room() {
    let bench = Bench { size_bytes: 4 * MIB, ..Bench::default() };
    let bounds = Bounds { patience: 10 * S, patience_max: 25 * S, ..bench.bounds };
    let stage = Stage::open_bounded(bench.parts(), bounds).unwrap();
    put_large(&stage, "used", &content(1, 3 << 20));
    let before = bench.clock.monotonic();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| grown(&bench, &stage, MIB).0);
        while bench.metrics.stage_waiting.get() == 0 {
            std::thread::yield_now();
        }
        bring(&stage, "v1", 0).unwrap();
        stage.expire(0);
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(bench.clock.monotonic(), before, "no time went by");
}

#[test]
fn the_age_of_the_oldest_is_told_until_its_source_has_it() {
    let (bench, stage) = alone();
    put(&stage, "a", &content(1, 10));
    bench.clock.advance(90 * S);
    stage.expire(0);
    assert_eq!(bench.metrics.stage_oldest_s.get(), 90);
    bring(&stage, "v1", 0).unwrap();
    stage.expire(0);
    assert_eq!(bench.metrics.stage_oldest_s.get(), 0);
}

#[test]
fn what_was_written_beyond_what_was_asked_for_is_charged_and_kept() {
    let bench = Bench { size_bytes: 1_000, ..Bench::default() };
    let stage = bench.open();
    let draft = stage.create(&target("a")).unwrap();
    draft.grow(10).unwrap();
    write_at(draft.descriptor(), &content(1, 2_000));
    stage.commit(draft, written("a")).unwrap();
    assert_eq!((seen(&stage, "a").unwrap(), stage.status().used_bytes), (content(1, 2_000).to_vec(), 2_000));
    let refused = stage.create(&target("b")).unwrap().grow(1);
    assert_eq!(refused.map_err(|error| error.kind()), Err(ErrorKind::NoSpace));
    assert_eq!(bench.after_a_kill().open().status().used_bytes, 2_000);
}
