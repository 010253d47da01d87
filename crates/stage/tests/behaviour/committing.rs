//! Taking changes in: acknowledged means durable and visible.

use std::os::fd::AsFd;
use std::sync::{Arc, Barrier};

use penstock_cache::RealDisk;
use penstock_stage::{Base, Bounds};
use penstock_testkit::FaultyDisk;
use penstock_types::{Durability, ErrorKind, ObjectKey, Version};

use crate::support::*;

const LARGE: usize = 300 * 1024;

#[test]
fn a_commit_that_returned_survives_a_kill_byte_for_byte() {
    let bench = Bench::default();
    let stage = bench.open();
    let (small, large, empty) = (content(1, 70_001), content(2, LARGE), content(3, 0));
    put(&stage, "small", &small);
    put_large(&stage, "large", &large);
    put(&stage, "not small", &large);
    put(&stage, "empty", &empty);
    remove(&stage, "gone", Base::Version(Version::from("v1")));
    let copy = bench.after_a_kill();
    let after = copy.open();
    for (key, data) in [("small", &small), ("large", &large), ("not small", &large), ("empty", &empty)] {
        assert!(seen(&stage, key).unwrap() == *data, "{key}");
        assert!(seen(&after, key).unwrap() == *data, "{key} after the kill");
    }
    assert_eq!(laid(&after, "gone").unwrap().attributes, None);
    let change = after.next().unwrap();
    assert_eq!((change.target(), change.metadata()), (&target("small"), &written("small").metadata[..]));
    assert_eq!((change.base(), change.durability()), (Base::Absent, Durability::Local));
    assert_eq!(change.attributes().unwrap().modified_ms, written("small").modified_ms);
}

#[test]
fn what_is_written_at_any_offset_of_a_draft_is_its_content_and_nobody_sees_it_before() {
    let bench = Bench::default();
    let stage = bench.open();
    let draft = stage.create(&target("sparse")).unwrap();
    rustix::io::pwrite(draft.descriptor().as_fd(), b"end", 1 << 20).unwrap();
    rustix::io::pwrite(draft.descriptor().as_fd(), b"start", 0).unwrap();
    assert_eq!(laid(&stage, "sparse"), None);
    let change = stage.commit(draft, written("sparse")).unwrap();
    let bytes = bytes_of(&change);
    assert_eq!((bytes.len(), &bytes[..5], &bytes[1 << 20..]), ((1 << 20) + 3, &b"start"[..], &b"end"[..]));
    assert!(bytes[5..1 << 20].iter().all(|byte| *byte == 0));
    assert_eq!(change.size(), Some(bytes.len() as u64));
}

#[test]
fn a_draft_in_memory_goes_into_the_journal_alone_unless_it_is_too_large_for_that() {
    let bench = Bench::default();
    let stage = bench.open();
    let in_memory = |key: &str, data: &[u8]| {
        let draft = stage.create_in_memory(&target(key)).unwrap();
        write_at(draft.descriptor(), data);
        assert!(draft.is_in_memory() && bench.files().is_empty());
        (draft, written(key))
    };
    let (small, large) = (content(1, 256 * 1024), content(2, 256 * 1024 + 1));
    drop(in_memory("never closed", &small));
    let (draft, written) = in_memory("small", &small);
    assert_eq!((draft.may_end(small.len() as u64), draft.may_end(large.len() as u64)), (true, false));
    let change = stage.commit_all(vec![(draft, written)], Vec::new()).unwrap().remove(0);
    assert_eq!((change.path(), bench.files().len()), (None, 0));
    let (draft, written) = in_memory("large", &large);
    stage.commit_all(vec![(draft, written)], Vec::new()).unwrap();
    assert_eq!((bench.files().len(), stage.status().used_bytes), (1, (small.len() + large.len()) as u64));
    let copy = bench.after_a_kill();
    let after = copy.open();
    assert_eq!((after.status().recovered, laid(&after, "never closed")), (vec![], None));
    for (key, data) in [("small", &small), ("large", &large)] {
        assert!(seen(&stage, key).unwrap() == *data, "{key}");
        assert!(seen(&after, key).unwrap() == *data, "{key} after the kill");
    }
}

#[test]
fn what_is_read_cannot_be_written_to() {
    let (_bench, stage) = alone();
    let change = put(&stage, "a", &content(1, 10));
    assert!(rustix::io::pwrite(change.open().unwrap().as_fd(), b"x", 0).is_err());
}

#[test]
fn a_draft_that_is_dropped_leaves_nothing() {
    let bench = Bench::default();
    let stage = bench.open();
    let draft = stage.create(&target("a")).unwrap();
    draft.grow(1000).unwrap();
    write_at(draft.descriptor(), b"half");
    assert_eq!(stage.status().used_bytes, 1000);
    drop(draft);
    assert_eq!((bench.files(), stage.status().used_bytes, laid(&stage, "a")), (vec![], 0, None));
}

#[test]
fn sixteen_threads_that_commit_small_files_share_syncs() {
    const THREADS: u64 = 16;
    const EACH: u64 = 20;
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let bench = Bench { bounds: Bounds::default(), ..Bench::on(disk.clone()) };
    let stage = bench.open();
    put(&stage, "first", &content(0, 10));
    let before = bench.metrics.journal_syncs.get();
    disk.record();
    let start = Barrier::new(usize::try_from(THREADS).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (stage, start) = (&stage, &start);
            scope.spawn(move || {
                start.wait();
                for file in 0..EACH {
                    put(stage, &format!("{thread}/{file}"), &content(thread * EACH + file, 20_000));
                }
            });
        }
    });
    let calls = disk.recorded();
    let syncs = calls.iter().filter(|call| call.operation.starts_with("sync")).count() as u64;
    println!("{syncs} syncs for {} commits", THREADS * EACH);
    assert!(calls.iter().all(|call| call.operation != "sync_directory"));
    assert_eq!(syncs, bench.metrics.journal_syncs.get() - before);
    assert!(syncs < THREADS * EACH / 2, "{syncs} syncs");
    assert_eq!(bench.metrics.stage_commits.get(), THREADS * EACH + 1);
    let copy = bench.after_a_kill();
    let after = copy.open();
    for (thread, file) in (0..THREADS).flat_map(|thread| (0..EACH).map(move |file| (thread, file))) {
        let expected = content(thread * EACH + file, 20_000);
        assert!(seen(&after, &format!("{thread}/{file}")).unwrap() == expected);
    }
}

#[test]
fn a_small_file_costs_one_sync_and_a_large_one_syncs_file_directory_and_journal() {
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let bench = Bench { bounds: Bounds::default(), ..Bench::on(disk.clone()) };
    let stage = bench.open();
    put(&stage, "first", &content(0, 10));
    let syncs = |work: &dyn Fn()| {
        disk.record();
        work();
        let calls = disk.recorded().into_iter().filter(|call| call.operation.starts_with("sync"));
        calls.map(|call| (call.operation, call.path.parent().unwrap().ends_with("journal"))).collect::<Vec<_>>()
    };
    assert_eq!(syncs(&|| drop(put(&stage, "s", &content(1, 100_000)))), [("sync", true)]);
    let large = syncs(&|| drop(put_large(&stage, "l", &content(1, LARGE))));
    assert_eq!(large, [("sync", false), ("sync_directory", false), ("sync", true)]);
}

#[test]
fn an_exclusive_commit_is_refused_where_another_waits_and_taken_after_its_removal() {
    let (_bench, stage) = alone();
    let exclusive = || penstock_stage::Written { exclusive: true, ..written("a") };
    stage.commit_small(content(1, 10), exclusive()).unwrap();
    let error = stage.commit_small(content(2, 10), exclusive()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(seen(&stage, "a").unwrap(), content(1, 10));
    remove(&stage, "a", Base::Absent);
    stage.commit_small(content(2, 10), exclusive()).unwrap();
    assert_eq!(seen(&stage, "a").unwrap(), content(2, 10));
}

#[test]
fn a_change_is_found_by_its_version_in_its_scope_and_under_its_key_alone() {
    let (_bench, stage) = alone();
    let change = put(&stage, "a", &content(1, 10));
    let (key, version) = (ObjectKey::from("a"), change.version());
    assert_eq!(stage.find(SCOPE, &key, &version).unwrap().operation(), change.operation());
    assert!(stage.find("other", &key, &version).is_none());
    assert!(stage.find(SCOPE, &ObjectKey::from("b"), &version).is_none());
    assert!(stage.find(SCOPE, &key, &Version::from("v1")).is_none());
}

#[test]
fn a_directory_that_another_has_is_busy_and_free_after_its_close() {
    let bench = Bench::default();
    let stage = bench.open();
    put(&stage, "a", &content(1, 10));
    assert_eq!(bench.try_open().unwrap_err().kind(), ErrorKind::Busy);
    stage.close();
    let next = bench.open();
    assert_eq!(seen(&next, "a").unwrap(), content(1, 10));
    let error = stage.commit_small(content(1, 10), written("b")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(stage.next().is_none());
}
