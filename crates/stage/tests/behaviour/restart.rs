//! What a start finds: drafts that nobody closed, files that are over, files that were damaged.

use std::time::Duration;

use bytes::Bytes;
use penstock_stage::Stage;
use penstock_types::ErrorKind;

use crate::support::*;

#[test]
fn a_draft_that_was_never_closed_is_set_aside_reported_and_removed_after_its_days() {
    let bench = Bench::default();
    let stage = bench.open();
    let (draft, empty) = (stage.create(&target("a")).unwrap(), stage.create(&target("b")).unwrap());
    write_at(draft.descriptor(), b"half of it");
    let bench = bench.after_a_kill();
    drop((draft, empty));
    let stage = bench.open();
    let recovered = stage.status().recovered;
    assert_eq!((recovered.len(), recovered[0].size, laid(&stage, "a")), (1, 10, None));
    assert_eq!(std::fs::read(&recovered[0].path).unwrap(), b"half of it");
    assert_eq!((bench.files().len(), stage.status().used_bytes), (0, 0));
    bench.clock.advance(Duration::from_secs(7 * 86_400));
    stage.expire(0);
    stage.close();
    let stage = bench.open();
    assert_eq!(stage.status().recovered, recovered);
    bench.clock.advance(Duration::from_millis(1));
    stage.expire(0);
    assert_eq!(stage.status().recovered, []);
    assert!(!std::fs::exists(&recovered[0].path).unwrap());
}

#[test]
fn the_files_of_what_is_over_are_removed_by_a_start_and_not_called_recovered() {
    let mut bench = Bench::default();
    bench.bounds.grace = Duration::from_secs(1_000);
    let stage = bench.open();
    put_and_read(&stage, "a", &content(1, 10));
    put_large(&stage, "b", &content(2, 10));
    put_and_read(&stage, "c", &content(3, 10));
    put_and_read(&stage, "c", &content(4, 10));
    bring(&stage, "v1", 0).unwrap();
    bring(&stage, "v1", 0).unwrap();
    stage.expire(0);
    let after = bench.after_a_kill();
    assert_eq!(after.files().len(), 4);
    let stage = after.open();
    assert_eq!((after.files().len(), stage.status().recovered), (1, vec![]));
    assert_eq!(seen(&stage, "c").unwrap(), content(4, 10));
}

/// As `put`, and has its file made.
fn put_and_read(stage: &Stage, key: &str, data: &Bytes) {
    assert_eq!(bytes_of(&put(stage, key, data)), *data);
}

#[test]
fn a_small_file_is_in_the_journal_alone_until_somebody_needs_it() {
    let bench = Bench::default();
    let stage = bench.open();
    let keys = ["read", "linked", "replaced", "after a kill"];
    let changes: Vec<_> = keys.iter().map(|key| put(&stage, key, &content(1, 20_000))).collect();
    assert_eq!((bench.files().len(), changes[0].path(), changes[0].is_synced()), (0, None, false));
    assert_eq!(bytes_of(&changes[0]), content(1, 20_000));
    assert_eq!(std::fs::read(changes[0].path().unwrap()).unwrap(), content(1, 20_000));
    let linked = stage.link(&target("other"), &changes[1]).unwrap();
    stage.commit(linked, written("other")).unwrap();
    assert_eq!((bench.files().len(), seen(&stage, "other").unwrap()), (3, content(1, 20_000).to_vec()));
    put(&stage, "replaced", &content(2, 100));
    let stage = bench.after_a_kill();
    let stage = stage.open();
    assert_eq!(seen(&stage, "replaced").unwrap(), content(2, 100));
    assert_eq!(seen(&stage, "after a kill").unwrap(), content(1, 20_000));
}

#[test]
fn a_small_file_that_the_disk_has_not_kept_is_restored_from_the_journal() {
    let bench = Bench::default();
    let stage = bench.open();
    for key in ["missing", "short", "zeros", "whole"] {
        put_and_read(&stage, key, &content(1, 20_000));
    }
    let after = bench.after_a_kill();
    let files = after.files();
    std::fs::remove_file(&files[0]).unwrap();
    std::fs::write(&files[1], b"short").unwrap();
    std::fs::write(&files[2], vec![0; 20_000]).unwrap();
    let stage = after.open();
    for key in ["missing", "short", "zeros", "whole"] {
        let change = &stage.pending_below(SCOPE, key.as_bytes())[0];
        assert_eq!((change.path(), change.is_synced()), (None, false));
        assert_eq!(seen(&stage, key).unwrap(), content(1, 20_000), "{key}");
        assert_eq!(std::fs::read(change.path().unwrap()).unwrap(), content(1, 20_000));
    }
}

#[test]
fn a_large_file_that_somebody_damaged_is_a_conflict_that_says_so_and_nothing_else_suffers() {
    let bench = Bench::default();
    let stage = bench.open();
    let (first, second) = (put_large(&stage, "a", &content(1, 500)), put_large(&stage, "b", &content(2, 500)));
    let later = put(&stage, "c", &content(3, 500));
    let after = bench.after_a_kill();
    std::fs::remove_file(&after.files()[0]).unwrap();
    std::fs::write(&after.files()[0], b"short").unwrap();
    for _ in 0..2 {
        let stage = after.open();
        let status = stage.status();
        let codes: Vec<_> = status.conflicted.iter().map(|it| (it.key.as_str(), it.code.as_str())).collect();
        assert_eq!(codes, [("a", "corrupt"), ("b", "corrupt")]);
        assert_eq!((laid(&stage, "a"), seen(&stage, "c").unwrap()), (None, content(3, 500).to_vec()));
        let given = stage.next().unwrap();
        assert_eq!(given.operation(), later.operation());
        stage.close();
    }
    drop((first, second));
}

#[test]
fn each_start_has_names_of_its_own() {
    let bench = Bench::default();
    let stage = bench.open();
    let first = put(&stage, "a", &content(1, 10));
    stage.close();
    let second = put(&bench.open(), "b", &content(1, 10));
    let parts = |operation: String| operation.split('-').map(str::to_owned).collect::<Vec<_>>();
    let (first, second) = (parts(first.operation().to_string()), parts(second.operation().to_string()));
    assert_eq!(first[0], second[0], "the same node");
    assert_eq!((first[1].as_str(), second[1].as_str()), ("1", "2"), "another epoch");
    assert_ne!(first[2], second[2], "another sequence");
}

#[test]
fn a_journal_of_a_newer_format_is_refused() {
    let bench = Bench::default();
    put(&bench.open(), "a", &content(1, 10));
    let segment = bench.segments().remove(0);
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[12] = 2;
    let sum = crc32c::crc32c(&bytes[12..64]);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&segment, bytes).unwrap();
    assert_eq!(bench.try_open().unwrap_err().kind(), ErrorKind::Unsupported);
}
