//! The size of the stage: writers wait, then get an error, and nothing that was acknowledged is dropped.

use std::time::Duration;

use penstock_types::ErrorKind;

use crate::support::*;

#[test]
fn a_full_stage_refuses_new_files_until_the_source_has_taken_some() {
    let bench = Bench { size_bytes: 1_000, ..Bench::default() };
    let stage = bench.open();
    put(&stage, "a", &content(1, 1_000));
    let error = stage.create(&target("b")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(stage.commit_small(content(2, 1), written("b")).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!((bench.files().len(), laid(&stage, "b")), (1, None));
    remove(&stage, "c", penstock_stage::Base::Unconditional);
    bring(&stage, "v1", 0).unwrap();
    stage.expire(0);
    put(&stage, "b", &content(2, 1));
    assert_eq!((stage.status().used_bytes, bench.metrics.stage_used_bytes.get()), (1, 1));
}

#[test]
fn a_writer_waits_for_room_as_long_as_it_has_patience() {
    let mut bench = Bench { size_bytes: 1_000, ..Bench::default() };
    bench.bounds.patience = Duration::from_secs(10);
    let stage = bench.open();
    put(&stage, "a", &content(1, 900));
    let draft = stage.create(&target("b")).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| draft.grow(500));
        bring(&stage, "v1", 0).unwrap();
        stage.expire(0);
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(stage.status().used_bytes, 500);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| draft.grow(1_000).and_then(|()| stage.commit_small(content(1, 1), written("c"))));
        while !waiting.is_finished() {
            bench.clock.advance(Duration::from_secs(1));
            std::thread::yield_now();
        }
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::NoSpace);
    });
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
    let draft = stage.create(&target("b"));
    assert_eq!(draft.err().map(|error| error.kind()), Some(ErrorKind::NoSpace));
    assert_eq!(bench.after_a_kill().open().status().used_bytes, 2_000);
}
