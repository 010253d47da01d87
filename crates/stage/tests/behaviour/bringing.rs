//! Giving changes out, and hearing what became of them.

use std::time::Duration;

use penstock_stage::{Base, Settled, Written};
use penstock_types::{Durability, Error, ErrorKind, ObjectKey, PartInfo, UploadId, Version};

use crate::support::*;

fn version(text: &str) -> Base {
    Base::Version(Version::from(text))
}

#[test]
fn changes_are_given_out_oldest_first_and_one_of_a_key_at_a_time() {
    let (_bench, stage) = alone();
    put(&stage, "b", &content(1, 10));
    put(&stage, "a", &content(2, 10));
    let first = stage.next().unwrap();
    put(&stage, "b", &content(3, 10));
    let second = stage.next().unwrap();
    assert_eq!((&first.target().key, &second.target().key), (&ObjectKey::from("b"), &ObjectKey::from("a")));
    assert!(stage.next().is_none());
    stage.settle(&first, stored("v1", 10, 0), None);
    let third = stage.next().unwrap();
    assert_eq!((bytes_of(&third), third.base()), (content(3, 10).to_vec(), version("v1")));
}

#[test]
fn a_change_whose_place_a_later_one_took_before_it_was_brought_is_never_brought() {
    let bench = Bench::default();
    let stage = bench.open();
    let first = stage.commit_small(content(1, 10), Written { base: version("v1"), ..written("a") }).unwrap();
    let second = put(&stage, "a", &content(2, 10));
    remove(&stage, "a", Base::Staged(second.operation()));
    let last = put(&stage, "a", &content(3, 10));
    assert_eq!((last.base(), ended(&first)), (version("v1"), None));
    assert_eq!(stage.pending_below(SCOPE, b"a").len(), 1);
    stage.expire(0);
    assert_eq!(stage.status().used_bytes, 10);
    assert_eq!(stage.next().unwrap().operation(), last.operation());
    assert!(stage.next().is_none());
    stage.settle(&last, stored("v2", 10, 0), None);
    assert_eq!([ended(&first), ended(&second), ended(&last)], [Some(Ok(())), Some(Ok(())), Some(Ok(()))]);
    assert_eq!(bytes_of(&last), content(3, 10));
    drop((first, second));
    assert_eq!(bench.files().len(), 1);
}

#[test]
fn a_change_that_was_promised_to_the_source_or_that_it_may_have_is_brought_before_the_next() {
    let bench = Bench::default();
    let stage = bench.open();
    let promised = Written { durability: Durability::Source, ..written("p") };
    let first = stage.commit_small(content(1, 10), promised).unwrap();
    let second = put(&stage, "p", &content(2, 10));
    assert_eq!(second.base(), Base::Staged(first.operation()));
    put(&stage, "t", &content(1, 10));
    assert_eq!(stage.next().unwrap().operation(), first.operation());
    let tried = stage.next().unwrap();
    stage.failed(&tried, failure());
    let next = put(&stage, "t", &content(2, 10));
    assert_eq!(next.base(), Base::Staged(tried.operation()));
    let copy = bench.after_a_kill();
    let after = copy.open();
    let newest = put(&after, "t", &content(3, 10));
    assert_eq!(newest.base(), Base::Staged(next.operation()));
}

#[test]
fn a_later_change_replaces_what_the_source_has_after_the_earlier_one() {
    let bench = Bench::default();
    let stage = bench.open();
    put(&stage, "a", &content(1, 10));
    let first = stage.next().unwrap();
    let removal = remove(&stage, "a", Base::Staged(first.operation()));
    assert_eq!(removal.base(), Base::Staged(first.operation()));
    stage.settle(&first, stored("v1", 10, 0), Some(0));
    assert_eq!(removal.base(), version("v1"));
    assert_eq!(stage.next().unwrap().operation(), removal.operation());
    let third = put(&stage, "a", &content(3, 10));
    let copy = bench.after_a_kill();
    let restarted = copy.open();
    assert_eq!(restarted.next().unwrap().base(), version("v1"));
    stage.settle(&removal, Settled::Removed { moment: 0 }, Some(0));
    assert_eq!(third.base(), Base::Absent);
}

#[test]
fn what_replaces_a_staged_version_that_was_settled_meanwhile_replaces_what_it_became() {
    let (_bench, stage) = alone();
    let first = put(&stage, "a", &content(1, 10));
    let draft = stage.create(&target("a")).unwrap();
    bring(&stage, "v1", 0).unwrap();
    stage.expire(1_000_000_000);
    let base = Base::Staged(first.operation());
    let second = stage.commit(draft, Written { base: base.clone(), ..written("a") }).unwrap();
    assert_eq!(second.base(), version("v1"));
    bring(&stage, "v2", 1_000_000_000).unwrap();
    let third = stage.commit_small(content(3, 10), Written { base: base.clone(), ..written("a") }).unwrap();
    assert_eq!(third.base(), version("v2"));
    bring(&stage, "v3", 1_000_000_000).unwrap();
    stage.expire(i64::MAX);
    let error = stage.commit_small(content(4, 10), Written { base, ..written("a") }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StaleVersion);
}

#[test]
fn what_failed_is_given_out_again_after_a_wait_that_grows_and_at_once_when_it_is_hurried() {
    let bench = Bench::default();
    let stage = bench.open();
    let change = put(&stage, "a", &content(1, 10));
    for longest in [1, 2, 4, 8] {
        let given = stage.next().unwrap();
        stage.failed(&given, failure());
        assert_eq!(change.failure().unwrap().reason(), "the source is away");
        bench.clock.advance(Duration::from_millis(longest * 500 - 1));
        assert!(stage.next().is_none(), "before half of {longest} s");
        bench.clock.advance(Duration::from_millis(longest * 500 + 1));
    }
    let given = stage.next().unwrap();
    stage.failed(&given, failure().retry_after_ms(600_000));
    assert_eq!(stage.status().failures[0].tries, 5);
    bench.clock.advance(Duration::from_secs(599));
    assert!(stage.next().is_none());
    stage.hurry();
    assert_eq!(stage.next().unwrap().operation(), change.operation());
}

#[test]
fn a_settled_file_is_found_for_a_while_and_is_gone_when_the_journal_has_said_so() {
    let mut bench = Bench::default();
    bench.bounds.grace = Duration::from_secs(5);
    let stage = bench.open();
    let change = put(&stage, "a", &content(1, 10));
    let (operation, version) = (change.operation(), change.version());
    drop(change);
    bring(&stage, "v1", 0).unwrap();
    assert_eq!(stage.status().used_bytes, 10);
    stage.expire(0);
    assert_eq!((stage.status().files, stage.status().used_bytes), (0, 0));
    let found = stage.find(SCOPE, &ObjectKey::from("a"), &version).unwrap();
    assert_eq!((found.operation(), bytes_of(&found)), (operation, content(1, 10).to_vec()));
    bench.clock.advance(Duration::from_secs(5));
    stage.expire(0);
    assert!(stage.find(SCOPE, &ObjectKey::from("a"), &version).is_none());
    let open = found.open().unwrap();
    drop(found);
    assert_eq!(bench.files().len(), 0);
    let mut byte = [0; 1];
    assert_eq!(rustix::io::pread(&open, &mut byte, 0).unwrap(), 1);
}

#[test]
fn a_conflict_keeps_its_bytes_leaves_the_overlay_and_survives_a_restart() {
    let bench = Bench::default();
    let stage = bench.open();
    let change = stage.commit_small(content(1, 10), Written { base: version("v1"), ..written("a") }).unwrap();
    let given = stage.next().unwrap();
    let later = put(&stage, "a", &content(2, 10));
    stage.conflict(&given, conflict());
    assert_eq!(ended(&change).unwrap().unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(later.base(), version("v1"));
    let given = stage.next().unwrap();
    stage.conflict(&given, conflict());
    let after = bench.after_a_kill();
    for stage in [&stage, &after.open()] {
        assert_eq!((laid(stage, "a"), stage.next().is_none()), (None, true));
        let status = stage.status();
        assert_eq!((status.files, status.conflicts, status.conflict_bytes, status.used_bytes), (0, 2, 20, 20));
        assert_eq!(status.conflicted[0].operation, change.operation().to_string());
        let kept = stage.find(SCOPE, &ObjectKey::from("a"), &change.version()).unwrap();
        assert_eq!((bytes_of(&kept), kept.failure().unwrap()), (content(1, 10).to_vec(), conflict()));
    }
    assert_eq!((bench.metrics.stage_conflicts.get(), bench.metrics.stage_files.get()), (2, 0));
}

#[test]
fn uploads_that_were_begun_and_their_parts_are_given_back_after_a_restart() {
    let bench = Bench::default();
    let stage = bench.open();
    put(&stage, "a", &content(1, 10));
    let change = stage.next().unwrap();
    let part = |number: u32, etag: &str| PartInfo { number, size: 8, etag: etag.into() };
    stage.upload_begun(&change, &UploadId("lost".into()));
    stage.upload_part(&change, &part(1, "x"));
    stage.upload_lost(&change);
    assert_eq!(change.upload(), None);
    stage.upload_begun(&change, &UploadId("u".into()));
    stage.upload_part(&change, &part(2, "x"));
    stage.upload_part(&change, &part(1, "y"));
    stage.upload_part(&change, &part(2, "z"));
    let copy = bench.after_a_kill();
    let after = copy.open();
    let expected = (UploadId("u".into()), vec![part(1, "y"), part(2, "z")]);
    assert_eq!(after.next().unwrap().upload(), Some(expected.clone()));
    assert_eq!(change.upload(), Some(expected));
}

#[test]
fn pending_changes_below_a_prefix_are_listed_until_they_are_brought() {
    let (_bench, stage) = alone();
    for key in ["d/b", "d/a", "e", "d"] {
        put(&stage, key, &content(1, 1));
    }
    let keys = |prefix: &str| -> Vec<String> {
        let pending = stage.pending_below(SCOPE, prefix.as_bytes());
        pending.iter().map(|change| change.target().key.to_string()).collect()
    };
    assert_eq!(keys("d/"), ["d/b", "d/a"]);
    bring(&stage, "v1", 0).unwrap();
    assert_eq!(keys("d/"), ["d/a"]);
    assert_eq!(keys(""), ["d/a", "e", "d"]);
    assert!(stage.pending_below("other", b"").is_empty());
}

#[test]
fn who_waits_for_a_change_is_told_when_the_stage_is_closed() {
    let (_bench, stage) = alone();
    let change = put(&stage, "a", &content(1, 1));
    assert_eq!(ended(&change), None);
    stage.close();
    assert_eq!(ended(&change).unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn status_tells_what_waits_since_when_and_what_failed() {
    let bench = Bench::default();
    let stage = bench.open();
    let committed_ms = put(&stage, "a", &content(1, 100)).committed_ms();
    bench.clock.advance(Duration::from_secs(5));
    put(&stage, "b", &content(1, 11));
    let first = stage.next().unwrap();
    stage.failed(&first, Error::new(ErrorKind::Unavailable, "upload a", "it is away"));
    let status = stage.status();
    assert_eq!((status.files, status.bytes, status.oldest_ms), (2, 111, Some(committed_ms)));
    assert_eq!((status.failures.len(), status.failures[0].key.as_str()), (1, "a"));
    assert_eq!(
        (status.failures[0].code.as_str(), status.failures[0].reason.as_str()),
        ("unavailable", "upload a: it is away")
    );
    assert_eq!((bench.metrics.stage_files.get(), bench.metrics.stage_bytes.get()), (2, 111));
}

#[test]
fn what_keeps_a_change_from_being_given_out_is_told_until_it_is_brought() {
    let (_bench, stage) = alone();
    let change = put(&stage, "a", &content(1, 10));
    stage.held_up(change.operation(), failure());
    let status = stage.status();
    assert_eq!((status.files, status.failures.len()), (1, 1), "{status:?}");
    assert_eq!((&*status.failures[0].key, status.failures[0].tries), ("a", 0));
    assert_eq!(bring(&stage, "v1", 0).unwrap().operation(), change.operation(), "it may be given out all the same");
    assert_eq!(stage.status().failures, []);
}
