//! Mode, owner and time of files: kept with the object, whatever becomes of it.

use std::time::Duration;

use bytes::Bytes;
use penstock_engine::{ConflictQuery, Keep, WriteOptions};
use penstock_types::{
    AttributeChange, Description, ErrorKind, NodeId, ObjectKey, ObjectStat, Posix, Precondition, PutRequest, TreePath,
};

use crate::mount::Mount;
use crate::support::{self, Bench, Setup};

const ROOT: NodeId = NodeId::ROOT;
/// What these mounts show where nobody has said anything.
const SHOWN: Posix = Posix { mode: Some(0o644), uid: Some(7), gid: Some(7), modified_ns: None };
const SHOWN_OF_DIRECTORY: Posix = Posix { mode: Some(0o755), ..SHOWN };

fn mode(mode: u16) -> Posix {
    Posix { mode: Some(mode), ..Posix::default() }
}

fn time(modified_ns: i64) -> Posix {
    Posix { modified_ns: Some(modified_ns), ..Posix::default() }
}

impl Mount {
    fn of_posix(name: &str) -> Self {
        Self::of(Bench::start(name, &Setup::default()), "/data", true)
    }

    fn say(&self, name: &str, posix: Posix) {
        let node = self.found(ROOT, name).node;
        self.say_of(node, posix);
    }

    fn say_of(&self, node: NodeId, posix: Posix) {
        let change = AttributeChange { size: None, posix, shown: SHOWN, shown_of_directory: SHOWN_OF_DIRECTORY };
        let looked = self.wait(self.tree.set_attributes(node, change)).unwrap();
        let shown = SHOWN.merged(looked.found.unwrap().posix);
        assert!(posix.beyond(shown).is_empty(), "{posix:?} was said, {shown:?} is shown");
    }

    fn said(&self, name: &str) -> Posix {
        self.found(ROOT, name).posix
    }

    /// What the source has, past the engine.
    fn in_source(&self, key: &str) -> ObjectStat {
        self.bench.runtime.block_on(self.bench.outside.stat(&ObjectKey::from(key))).unwrap()
    }

    fn kept(&self, key: &str) -> Posix {
        Posix::of(&self.in_source(key).metadata)
    }

    fn uploaded(&self) {
        support::persist(&self.bench, "/data").unwrap();
    }

    fn write_whole(&self, name: &str, data: &'static [u8]) {
        let (at, data) = (self.bench.path(name), Bytes::from_static(data));
        let written = self.bench.engine.write_small(&at, data, WriteOptions::default());
        self.bench.runtime.block_on(written).unwrap();
    }

    fn content(&self, name: &str) -> Vec<u8> {
        support::read(&self.bench, &format!("/data/{name}")).unwrap()
    }

    /// An object that somebody else has put, with metadata and headers of theirs.
    fn put_described(&self, key: &str, data: &'static [u8]) {
        let (key, source) = (ObjectKey::from(key), &self.bench.outside);
        let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let description = Description { metadata: pair("author", "they"), headers: pair("content-type", "text/plain") };
        self.bench.runtime.block_on(async {
            let upload = source.begin_upload(&key, description).await.unwrap();
            let part = source.put_part(&key, &upload, 1, Bytes::from_static(data)).await.unwrap();
            let parts = [penstock_types::CompletedPart { number: 1, etag: part.etag }];
            source.complete_upload(&key, &upload, &parts, Precondition::None).await.unwrap();
        });
    }

    fn restarted(self) -> Self {
        let Self { bench, tree } = self;
        drop(tree);
        Self::of(bench.restart(), "/data", true)
    }
}

#[test]
fn a_change_of_attributes_alone_is_one_copy_that_keeps_bytes_cache_metadata_and_headers() {
    let mount = Mount::of_posix("posix-alone");
    mount.put_described("a", b"content");
    assert_eq!(mount.content("a"), b"content");
    let (before, reads) = (mount.in_source("a"), mount.bench.metrics.source_read_requests.get());
    mount.say("a", mode(0o755));
    mount.say("a", Posix { uid: Some(1000), gid: Some(7), ..Posix::default() });
    // The group is what is shown anyway.
    let said = Posix { mode: Some(0o755), uid: Some(1000), ..Posix::default() };
    assert_eq!(mount.said("a"), said, "at once, before the source has it");
    assert_eq!(mount.content("a"), b"content");
    mount.uploaded();
    let after = mount.in_source("a");
    let pinned = said.merged(time(before.attributes.modified_ms * 1_000_000));
    assert_eq!((Posix::of(&after.metadata), mount.said("a")), (pinned, pinned), "the time is that of the content");
    assert!(after.metadata.contains(&("author".to_owned(), "they".to_owned())), "{:?}", after.metadata);
    assert_eq!(after.headers, before.headers);
    assert_ne!(after.attributes.version, before.attributes.version);
    let metrics = &mount.bench.metrics;
    assert_eq!((metrics.copies.get(), metrics.uploads.get()), (1, 0), "the second was joined to the first");
    assert_eq!(mount.content("a"), b"content");
    assert_eq!(metrics.source_read_requests.get(), reads, "no byte is fetched again");
}

#[test]
fn what_is_shown_already_is_not_said_again() {
    let mount = Mount::of_posix("posix-same");
    mount.bench.put_bytes("a", Bytes::from_static(b"a"));
    mount.say("a", SHOWN);
    mount.say("a", mode(0o600));
    mount.uploaded();
    let before = mount.in_source("a");
    mount.say("a", mode(0o600));
    mount.uploaded();
    assert_eq!(mount.in_source("a"), before);
    assert_eq!(mount.bench.metrics.copies.get(), 1);
}

#[test]
fn what_is_said_of_a_file_before_its_upload_goes_with_it() {
    let mount = Mount::of_posix("posix-joined");
    let created = mount.wait(mount.tree.create(ROOT, "a", Posix::default(), (true, false))).unwrap();
    let writer = created.opened.writer.clone().unwrap();
    mount.wait(writer.write(0, b"#!/bin/sh")).unwrap();
    mount.wait(writer.flush()).unwrap();
    writer.close();
    drop((writer, created));
    mount.say("a", mode(0o755));
    mount.say("a", time(1_000_000_000_123_456_789));
    let said = mode(0o755).merged(time(1_000_000_000_123_456_789));
    assert_eq!(mount.said("a"), said);
    let mount = mount.restarted();
    assert_eq!(mount.said("a"), said, "after a restart");
    mount.uploaded();
    assert_eq!((mount.kept("a"), mount.said("a")), (said, said));
    assert_eq!((mount.bench.metrics.copies.get(), mount.bench.metrics.uploads.get()), (0, 1));
    assert_eq!(mount.content("a"), b"#!/bin/sh");
}

#[test]
fn attributes_are_there_after_a_restart_before_and_after_the_source_has_them() {
    let mount = Mount::of_posix("posix-restart");
    mount.bench.put_bytes("a", Bytes::from_static(b"a"));
    mount.say("a", mode(0o600));
    let mount = mount.restarted();
    assert_eq!(mount.said("a"), mode(0o600));
    mount.uploaded();
    let said = mount.said("a");
    assert_eq!((said.mode, mount.kept("a")), (Some(0o600), said));
    let mount = mount.restarted();
    assert_eq!(mount.said("a"), said);
    let entry = mount.bench.runtime.block_on(mount.bench.engine.stat(&mount.bench.path("a"))).unwrap();
    assert_eq!(Some(entry.modified_ms), said.modified_ms(), "everybody is told the same time");
}

#[test]
fn a_rename_takes_attributes_and_headers_along_and_a_new_content_keeps_mode_and_owner() {
    let mount = Mount::of_posix("posix-renamed");
    mount.put_described("a", b"content");
    mount.say("a", mode(0o750).merged(time(5_000_000_000)));
    mount.uploaded();
    let (from, to) = (mount.bench.path("a"), mount.bench.path("b"));
    mount.bench.runtime.block_on(mount.bench.engine.rename(&from, &to, false)).unwrap();
    let said = mode(0o750).merged(time(5_000_000_000));
    assert_eq!(mount.said("b"), said);
    mount.say("b", mode(0o700));
    mount.uploaded();
    let said = mode(0o700).merged(time(5_000_000_000));
    assert_eq!((mount.kept("b"), mount.said("b")), (said, said));
    assert!(mount.in_source("b").headers.contains(&("content-type".to_owned(), "text/plain".to_owned())));
    mount.write_whole("b", b"another");
    assert_eq!(mount.said("b"), mode(0o700), "it has the time of its content");
    mount.uploaded();
    assert_eq!((mount.kept("b"), mount.said("b")), (mode(0o700), mode(0o700)));
    assert_eq!(mount.content("b"), b"another");
}

#[test]
fn what_was_removed_takes_its_attributes_with_it() {
    let mount = Mount::of_posix("posix-removed");
    mount.write_whole("a", b"one");
    mount.say("a", mode(0o600));
    mount.uploaded();
    mount.say("a", mode(0o640));
    mount.bench.runtime.block_on(mount.bench.engine.remove(&mount.bench.path("a"))).unwrap();
    mount.uploaded();
    assert!(mount.bench.keys().iter().all(|key| key != "a"), "it does not come back");
    mount.write_whole("a", b"one");
    mount.uploaded();
    assert_eq!((mount.said("a"), mount.kept("a")), (Posix::default(), Posix::default()));
}

#[test]
fn attributes_of_what_somebody_else_replaced_are_a_conflict_and_old_bytes_never_come_back() {
    let mount = Mount::of_posix("posix-conflict");
    mount.bench.put_bytes("a", Bytes::from_static(b"old"));
    assert_eq!(mount.content("a"), b"old");
    mount.say("a", mode(0o600));
    let request = PutRequest {
        key: ObjectKey::from("a"),
        body: Bytes::from_static(b"theirs"),
        precondition: Precondition::None,
        metadata: Vec::new(),
    };
    mount.bench.runtime.block_on(mount.bench.outside.put(request)).unwrap();
    let refused = support::persist(&mount.bench, "/data").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    assert_eq!(mount.bench.object("a"), b"theirs");
    let all = TreePath::parse("/data").unwrap();
    let query = ConflictQuery { below: true, limit: 10, ..ConflictQuery::default() };
    let conflict =
        mount.bench.runtime.block_on(mount.bench.engine.conflicts(&all, &query)).unwrap().conflicts.remove(0);
    let at = mount.bench.path("a");
    let kept = mount.bench.engine.resolve_conflict(&at, &conflict.operation, Keep::Mine);
    mount.bench.runtime.block_on(kept).unwrap();
    mount.uploaded();
    assert_eq!((mount.bench.object("a"), mount.kept("a").mode), (b"theirs".to_vec(), Some(0o600)));
    assert_eq!(mount.content("a"), b"theirs");
}

#[test]
fn a_file_that_is_opened_to_be_touched_is_neither_fetched_nor_uploaded() {
    let mount = Mount::of_posix("posix-touched");
    mount.bench.put_bytes("a", Bytes::from_static(b"content"));
    assert_eq!(mount.content("a"), b"content");
    let reads = mount.bench.metrics.source_read_requests.get();
    let node = mount.found(ROOT, "a").node;
    assert_eq!(mount.wait(mount.tree.open_for_writing(node, false)).err().unwrap().kind(), ErrorKind::StaleVersion);
    let node = mount.found(ROOT, "a").node;
    let opened = mount.wait(mount.tree.open_for_writing(node, false)).unwrap();
    mount.say_of(node, time(7_000_000_001));
    mount.wait(opened.writer.as_ref().unwrap().flush()).unwrap();
    opened.writer.as_ref().unwrap().close();
    drop(opened);
    assert_eq!(mount.said("a"), time(7_000_000_001));
    mount.uploaded();
    assert_eq!(mount.kept("a"), time(7_000_000_001));
    let metrics = &mount.bench.metrics;
    assert_eq!((metrics.copies.get(), metrics.uploads.get(), metrics.source_read_requests.get()), (1, 0, reads));
}

#[test]
fn a_handle_that_only_reads_can_change_attributes_again_and_again_and_sees_them() {
    let mount = Mount::of_posix("posix-handle");
    mount.bench.put_bytes("a", Bytes::from_static(b"content"));
    let node = mount.found(ROOT, "a").node;
    let _open = mount.open(node).unwrap();
    mount.say_of(node, mode(0o600));
    mount.say_of(node, time(1_000_000_000));
    mount.uploaded();
    mount.say_of(node, mode(0o640));
    assert_eq!(mount.said("a"), mode(0o640).merged(time(1_000_000_000)));
    mount.bench.put_bytes("b", Bytes::from_static(b"other"));
    mount
        .bench
        .runtime
        .block_on(mount.bench.engine.rename(&mount.bench.path("b"), &mount.bench.path("a"), true))
        .unwrap();
    let change = AttributeChange { posix: mode(0o777), shown: SHOWN, ..AttributeChange::default() };
    let refused = mount.wait(mount.tree.set_attributes(node, change)).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::StaleVersion, "another file has the name");
}

#[test]
fn a_new_file_has_the_mode_that_it_is_made_with_and_a_write_ends_a_time_that_was_given() {
    let mount = Mount::of_posix("posix-made");
    let created = mount.wait(mount.tree.create(ROOT, "a", mode(0o755), (true, false))).unwrap();
    let (node, writer) = (created.looked.found.unwrap().node, created.opened.writer.clone().unwrap());
    assert_eq!(created.looked.found.unwrap().posix, mode(0o755));
    mount.say_of(node, time(3_000_000_000));
    mount.wait(writer.write(0, b"later")).unwrap();
    mount.wait(writer.flush()).unwrap();
    writer.close();
    drop(created);
    assert_eq!(mount.said("a"), mode(0o755));
    mount.uploaded();
    assert_eq!(mount.kept("a"), mode(0o755));
    let again = mount.wait(mount.tree.create(ROOT, "a", mode(0o600), (false, true))).unwrap();
    assert_eq!(again.looked.found.unwrap().posix, mode(0o755), "it was there");
    mount.wait(again.opened.writer.as_ref().unwrap().flush()).unwrap();
    again.opened.writer.as_ref().unwrap().close();
}

#[test]
fn attributes_are_not_waited_for_while_the_source_is_away_and_removals_come_after_them() {
    let mount = Mount::of_posix("posix-order");
    mount.bench.put_bytes("a", Bytes::from_static(b"a"));
    for number in 1..5_u16 {
        mount.say("a", mode(0o600 + number));
        mount.write_whole("a", b"new");
        mount.say("a", mode(0o640 + number));
    }
    mount.bench.clock.advance(Duration::from_secs(1));
    mount.uploaded();
    assert_eq!((mount.bench.object("a"), mount.kept("a").mode), (b"new".to_vec(), Some(0o644)));
}
