//! Uploads that are begun for drafts: known before the source knows them, owned by one change or by nobody.

use std::sync::Arc;

use penstock_stage::{OperationId, SentPart, Stage, Standing, Stream};
use penstock_types::{PartInfo, UploadId};

use crate::support::*;

fn upload() -> UploadId {
    UploadId("u".into())
}

/// The only stream of a stage, with an upload that was begun for it and one part of that.
fn begin(stage: &Stage) -> (Arc<Stream>, OperationId) {
    let stream = stage.streams().remove(0);
    let marker = stage.intend_upload(&stream).unwrap().unwrap();
    stage.early_begun(&stream, Some(&upload()));
    assert!(stream.start_part(1));
    stream.end_part(1, Some(part()));
    (stream, marker)
}

fn part() -> SentPart {
    SentPart { info: PartInfo { number: 1, size: 300_000, etag: "e".into() }, sum: 7 }
}

fn orphans(stage: &Stage) -> Vec<(OperationId, Option<UploadId>)> {
    stage.streams();
    stage.orphans().into_iter().map(|orphan| (orphan.marker, orphan.upload)).collect()
}

#[test]
fn a_change_goes_on_with_the_upload_of_its_draft_also_after_a_kill() {
    let bench = Bench::default();
    let stage = bench.open();
    let draft = stage.create(&target("a")).unwrap();
    let (stream, marker) = begin(&stage);
    write_at(draft.descriptor(), &content(1, 300_000));
    let change = stage.commit(draft, written("a")).unwrap();
    assert_eq!((stream.standing(), change.marker()), (Standing::Committed(300_000), marker));
    assert_ne!(change.operation(), marker);
    let after = bench.after_a_kill();
    let again = after.open();
    assert!(orphans(&again).is_empty() && again.streams().is_empty());
    let known = again.next().unwrap();
    assert_eq!((known.operation(), known.marker()), (change.operation(), marker));
    assert_eq!((known.upload(), known.streamed()), (Some((upload(), vec![part().info])), Some(vec![(1, 7)])));
    assert_eq!(again.marked(&target("a"), marker).unwrap().operation(), change.operation());
    // What was compared needs not be compared again; an upload that is begun anew has nothing of the first one.
    again.upload_part(&known, &part().info);
    assert_eq!(known.streamed(), Some(vec![]));
    again.upload_lost(&known);
    assert_eq!((known.upload(), known.streamed()), (None, None));
    again.settle(&known, stored("v1", 300_000, 0), None);
    again.close();
    assert!(orphans(&after.open()).is_empty());
}

#[test]
fn what_was_begun_for_a_draft_that_is_no_more_is_an_orphan_until_it_is_gone() {
    let bench = Bench::default();
    let stage = bench.open();
    let draft = stage.create(&target("a")).unwrap();
    let (_, marker) = begin(&stage);
    assert!(orphans(&stage).is_empty());
    let killed = bench.after_a_kill();
    assert_eq!(orphans(&killed.open()), [(marker, Some(upload()))]);
    drop(draft);
    assert_eq!(orphans(&stage), [(marker, Some(upload()))]);
    // It is not forgotten when the journal is made shorter.
    for number in 0..40 {
        put(&stage, &format!("f{number}"), &content(number, 10_000));
        stage.expire(0);
    }
    let killed = bench.after_a_kill();
    assert_eq!(orphans(&killed.open()), [(marker, Some(upload()))]);
    stage.orphan_gone(marker);
    assert!(orphans(&stage).is_empty());
    stage.close();
    assert!(orphans(&bench.open()).is_empty());
}

#[test]
fn an_upload_that_the_source_was_about_to_be_asked_for_is_known_after_a_kill() {
    let bench = Bench::default();
    let stage = bench.open();
    let _draft = stage.create(&target("a")).unwrap();
    let stream = stage.streams().remove(0);
    let marker = stage.intend_upload(&stream).unwrap().unwrap();
    assert_eq!(orphans(&bench.after_a_kill().open()), [(marker, None)]);
}

#[test]
fn the_upload_of_a_change_whose_place_another_took_is_an_orphan_and_so_is_that_of_another_key() {
    let bench = Bench::default();
    let stage = bench.open();
    let draft = stage.create(&target("a")).unwrap();
    let (_, first) = begin(&stage);
    write_at(draft.descriptor(), &content(1, 300_000));
    stage.commit(draft, written("a")).unwrap();
    put(&stage, "a", &content(2, 10));
    assert_eq!(orphans(&stage), [(first, Some(upload()))]);
    assert_eq!(orphans(&bench.after_a_kill().open()), [(first, Some(upload()))]);
    stage.orphan_gone(first);

    let draft = stage.create(&target("b")).unwrap();
    let (_, second) = begin(&stage);
    write_at(draft.descriptor(), &content(1, 300_000));
    let renamed = stage.commit(draft, written("c")).unwrap();
    assert_eq!((renamed.marker(), renamed.upload()), (renamed.operation(), None));
    assert_eq!(orphans(&stage), [(second, Some(upload()))]);
}

#[test]
fn nothing_is_sent_of_what_has_to_wait_for_an_earlier_change_of_its_key() {
    let (_bench, stage) = alone();
    put(&stage, "a", &content(1, 10));
    let _draft = stage.create(&target("a")).unwrap();
    assert!(stage.streams().is_empty());
}
