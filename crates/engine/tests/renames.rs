//! What is renamed is copied by its source: at once under its new name, in order, and none of its bytes by this node.

#![allow(clippy::unwrap_used, reason = "these are tests, their support included")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use penstock_engine::{BatchItem, ConflictQuery, Keep, OpenOptions, ReadHint, WriteOptions};
use penstock_source::OPERATION_METADATA;
use penstock_testkit::{Fault, FaultySource, SourceCall, oracle};
use penstock_types::{ByteRange, ErrorKind, Freshness, ObjectKey, Precondition, PutRequest, Result, TreePath};
use support::{Bench, MIB, PATIENCE, Setup, persist, read};

type Plan = Box<dyn Fn(&SourceCall) -> Option<Fault> + Send + Sync>;

/// A bench whose source goes wrong at `/faulty` as the test says.
struct Renaming {
    bench: Bench,
    source: Arc<FaultySource>,
    plan: Arc<Mutex<Option<Plan>>>,
}

fn path(text: &str) -> TreePath {
    TreePath::parse(&format!("/faulty/{text}")).unwrap()
}

impl Renaming {
    fn start(name: &str) -> Self {
        Self::over(Bench::start(name, &Setup::default()))
    }

    fn over(bench: Bench) -> Self {
        let plan: Arc<Mutex<Option<Plan>>> = Arc::default();
        let asked = Arc::clone(&plan);
        let source = FaultySource::new(Arc::clone(&bench.outside), move |call| {
            asked.lock().unwrap().as_ref().and_then(|plan| plan(call))
        });
        let spec = support::attachment("/faulty", bench.source_spec(), Freshness::Seconds(60.0));
        bench.engine.attach_source(spec, Arc::clone(&source) as _, None).unwrap();
        Self { bench, source, plan }
    }

    fn restart(self) -> Self {
        let Self { bench, .. } = self;
        Self::over(bench.restart())
    }

    fn fail(&self, plan: impl Fn(&SourceCall) -> Option<Fault> + Send + Sync + 'static) {
        *self.plan.lock().unwrap() = Some(Box::new(plan));
    }

    /// The source makes no copies, and says so in passing.
    fn hold_copies(&self) {
        self.fail(|call| matches!(call.operation, "copy" | "copy_part").then_some(Fault::Fail(ErrorKind::Unavailable)));
    }

    fn heal(&self) {
        *self.plan.lock().unwrap() = None;
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.bench.runtime.block_on(self.bench.engine.rename(&path(from), &path(to), true))
    }

    fn write(&self, at: &str, data: &'static [u8]) {
        let data = Bytes::from_static(data);
        self.bench.runtime.block_on(self.bench.engine.write_small(&path(at), data, WriteOptions::default())).unwrap();
    }

    fn read(&self, at: &str) -> Result<Vec<u8>> {
        read(&self.bench, &format!("/faulty/{at}"))
    }

    fn names(&self, at: &str) -> Vec<String> {
        let page = self.bench.runtime.block_on(self.bench.engine.list(&path(at), None, 1000)).unwrap();
        page.entries.into_iter().map(|entry| entry.name).collect()
    }

    fn persist(&self) {
        persist(&self.bench, "/faulty").unwrap();
    }

    fn calls(&self, operation: &str) -> usize {
        self.source.calls().into_iter().filter(|call| call.operation == operation).count()
    }

    /// No byte has passed this node, in neither direction.
    fn assert_nothing_passed(&self) {
        let metrics = &self.bench.metrics;
        assert_eq!((self.calls("read"), self.calls("put"), self.calls("put_part")), (0, 0, 0));
        assert_eq!((metrics.uploads.get(), metrics.upload_bytes.get(), metrics.source_read_requests.get()), (0, 0, 0));
    }

    fn eventually(&self, what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
            self.bench.clock.advance(Duration::from_millis(100));
            let _ = persist_for_a_moment(&self.bench);
        }
    }
}

fn persist_for_a_moment(bench: &Bench) -> Result<()> {
    bench.runtime.block_on(bench.engine.persist(&TreePath::parse("/faulty").unwrap(), Some(Duration::from_millis(20))))
}

#[test]
fn a_file_is_renamed_by_a_copy_in_its_source_and_none_of_its_bytes_pass_this_node() {
    let it = Renaming::start("r-one");
    it.bench.put("a", 1, 1, 5 * MIB);
    let request = PutRequest {
        key: ObjectKey::from("a"),
        body: oracle::content(1, 1, 0, 5 * MIB),
        precondition: Precondition::None,
        metadata: vec![("colour".to_owned(), "blue".to_owned())],
    };
    it.bench.runtime.block_on(it.bench.outside.put(request)).unwrap();
    it.hold_copies();
    it.rename("a", "b").unwrap();
    assert_eq!(it.names(""), ["b"]);
    let entry = it.bench.runtime.block_on(it.bench.engine.stat(&path("b"))).unwrap();
    assert_eq!(entry.size, 5 * MIB);
    assert_eq!(it.read("a").unwrap_err().kind(), ErrorKind::NotFound);
    // The first name stays in the source until the copy is there.
    it.eventually("a copy was tried", || it.calls("copy") > 0);
    assert_eq!((it.bench.keys(), it.calls("delete")), (vec!["a".to_owned()], 0));
    it.heal();
    it.persist();
    it.assert_nothing_passed();
    assert_eq!(it.bench.keys(), ["b"]);
    assert_eq!(it.bench.object("b"), oracle::content(1, 1, 0, 5 * MIB));
    assert_eq!((it.bench.metrics.copies.get(), it.bench.metrics.copy_bytes.get()), (1, 5 * MIB));
    let there = it.bench.runtime.block_on(it.bench.outside.stat(&ObjectKey::from("b"))).unwrap();
    assert!(there.metadata.iter().any(|(name, value)| name == "colour" && value == "blue"), "{:?}", there.metadata);
    assert!(there.metadata.iter().any(|(name, _)| name == OPERATION_METADATA), "{:?}", there.metadata);
}

#[test]
fn what_is_renamed_is_read_at_once_and_goes_on_being_read_when_the_first_name_is_gone() {
    let it = Renaming::start("r-read");
    let content = oracle::content(2, 1, 0, 40 * MIB);
    it.bench.put("a", 2, 1, 40 * MIB);
    let open = |at: &str| it.bench.runtime.block_on(it.bench.engine.open(&path(at), OpenOptions::default())).unwrap();
    let before = open("a");
    it.hold_copies();
    it.rename("a", "b").unwrap();
    let between = open("b");
    it.bench.runtime.block_on(between.ensure(ByteRange::new(0, 1000), ReadHint::Random)).unwrap();
    assert!(!between.is_complete() && !before.is_complete());
    it.heal();
    it.persist();
    assert_eq!(it.bench.keys(), ["b"]);
    let range = ByteRange::new(39 * MIB, 40 * MIB);
    for file in [&before, &between] {
        let mut out = vec![0; range.len() as usize];
        it.bench.engine.read_batch(&[BatchItem { file, range, at: 0 }], &mut out).remove(0).unwrap();
        assert_eq!(out, content[range.start as usize..]);
    }
    assert_eq!(it.read("b").unwrap(), content);
}

#[test]
fn what_is_cached_of_a_renamed_file_is_cached_under_its_new_name() {
    let it = Renaming::start("r-warm");
    it.bench.put("a", 3, 1, 3 * MIB);
    assert_eq!(it.read("a").unwrap(), oracle::content(3, 1, 0, 3 * MIB));
    let fetched = it.calls("read");
    it.hold_copies();
    it.rename("a", "b").unwrap();
    assert_eq!(it.read("b").unwrap(), oracle::content(3, 1, 0, 3 * MIB));
    assert_eq!(it.calls("read"), fetched, "it was fetched again before the copy");
    it.heal();
    it.persist();
    assert_eq!(it.read("b").unwrap(), oracle::content(3, 1, 0, 3 * MIB));
    let entry = it.bench.runtime.block_on(it.bench.engine.stat(&path("b"))).unwrap();
    let there = it.bench.runtime.block_on(it.bench.outside.stat(&ObjectKey::from("b"))).unwrap();
    assert_eq!(entry.version.unwrap(), there.attributes.version);
    assert_eq!(it.calls("read"), fetched, "it was fetched again");
    assert_eq!((it.calls("put"), it.bench.engine.cache_entries(None, 10).len()), (0, 1));
}

#[test]
fn a_directory_is_renamed_at_once_and_copied_behind() {
    let it = Renaming::start("r-directory");
    for number in 0..300 {
        it.bench.put(&format!("from/deep/{number:03}"), number, 1, 1000);
    }
    it.bench.put("from/top", 999, 1, 2 * MIB);
    it.hold_copies();
    it.rename("from", "to").unwrap();
    assert_eq!(it.names(""), ["to"]);
    assert_eq!(it.names("to"), ["deep", "top"]);
    assert_eq!(it.names("to/deep").len(), 300);
    it.heal();
    it.persist();
    it.assert_nothing_passed();
    assert_eq!(it.bench.metrics.copies.get(), 301);
    let keys = it.bench.keys();
    assert!(keys.len() == 301 && keys.iter().all(|key| key.starts_with("to/")), "{keys:?}");
    assert_eq!(it.bench.object("to/deep/123"), oracle::content(123, 1, 0, 1000));
}

#[test]
fn a_chain_a_swap_and_a_way_back_arrive_as_they_were_said() {
    let it = Renaming::start("r-swap");
    for key in ["a", "b", "c", "back"] {
        it.bench.put_bytes(key, Bytes::copy_from_slice(key.as_bytes()));
    }
    it.hold_copies();
    for (from, to) in [("a", "t"), ("b", "a"), ("t", "b"), ("c", "c1"), ("c1", "c2"), ("back", "x"), ("x", "back")] {
        it.rename(from, to).unwrap();
    }
    let expected = [("a", "b"), ("b", "a"), ("back", "back"), ("c2", "c")];
    assert_eq!(it.names(""), ["a", "b", "back", "c2"]);
    it.heal();
    for (name, content) in expected {
        assert_eq!(it.read(name).unwrap(), content.as_bytes(), "{name}");
    }
    it.persist();
    assert_eq!(it.bench.keys(), ["a", "b", "back", "c2"]);
    for (name, content) in expected {
        assert_eq!(it.bench.object(name), content.as_bytes(), "{name}");
        assert_eq!(it.read(name).unwrap(), content.as_bytes(), "{name}");
    }
    assert_eq!((it.calls("put"), it.bench.metrics.conflicts.get()), (0, 0));
}

#[test]
fn what_is_written_under_the_first_name_waits_for_the_copy() {
    let it = Renaming::start("r-again");
    it.bench.put_bytes("a", Bytes::from_static(b"first"));
    it.hold_copies();
    it.rename("a", "b").unwrap();
    it.write("a", b"second");
    it.eventually("the copy was tried twice", || it.calls("copy") > 1);
    assert_eq!((it.calls("put"), it.bench.object("a")), (0, b"first".to_vec()));
    it.heal();
    it.persist();
    assert_eq!((it.bench.object("a"), it.bench.object("b")), (b"second".to_vec(), b"first".to_vec()));
    assert_eq!(it.bench.metrics.conflicts.get(), 0);
}

#[test]
fn a_renamed_file_that_is_written_over_needs_no_copy() {
    let it = Renaming::start("r-over");
    it.bench.put_bytes("a", Bytes::from_static(b"first"));
    it.hold_copies();
    it.rename("a", "b").unwrap();
    it.write("b", b"second");
    it.heal();
    it.persist();
    assert_eq!(it.bench.keys(), ["b"]);
    assert_eq!(it.bench.object("b"), b"second");
}

#[test]
fn a_rename_survives_a_restart_before_and_after_its_copy() {
    let it = Renaming::start("r-restart");
    for key in ["a", "b", "c"] {
        it.bench.put_bytes(key, Bytes::copy_from_slice(key.as_bytes()));
    }
    it.hold_copies();
    it.rename("a", "t").unwrap();
    it.rename("b", "a").unwrap();
    it.rename("t", "b").unwrap();
    it.rename("c", "c1").unwrap();
    let it = it.restart();
    it.hold_copies();
    assert_eq!(it.names(""), ["a", "b", "c1"]);
    it.heal();
    assert_eq!(it.read("b").unwrap(), b"a");
    it.persist();
    let it = it.restart();
    assert_eq!(it.bench.keys(), ["a", "b", "c1"]);
    for (name, content) in [("a", "b"), ("b", "a"), ("c1", "c")] {
        assert_eq!(it.bench.object(name), content.as_bytes(), "{name}");
        assert_eq!(it.read(name).unwrap(), content.as_bytes(), "{name}");
    }
    assert_eq!((it.calls("put"), it.bench.metrics.conflicts.get()), (0, 0));
}

#[test]
fn a_lost_reply_to_a_copy_is_settled_by_the_operation_id() {
    let it = Renaming::start("r-lost");
    it.bench.put_bytes("a", Bytes::from_static(b"content"));
    let times = AtomicU64::new(0);
    it.fail(move |call| {
        let is_first = call.operation == "copy" && times.fetch_add(1, Ordering::Relaxed) == 0;
        is_first.then_some(Fault::LoseReply)
    });
    it.rename("a", "b").unwrap();
    it.persist();
    assert_eq!((it.bench.keys(), it.bench.object("b")), (vec!["b".to_owned()], b"content".to_vec()));
    assert_eq!((it.source.fired().len(), it.bench.metrics.conflicts.get()), (1, 0));
}

#[test]
fn an_object_that_somebody_else_replaced_before_its_copy_is_a_conflict_and_stays() {
    let it = Renaming::start("r-theirs");
    it.bench.put_bytes("a", Bytes::from_static(b"first"));
    it.hold_copies();
    it.rename("a", "b").unwrap();
    it.bench.put_bytes("a", Bytes::from_static(b"theirs"));
    it.heal();
    assert_eq!(persist(&it.bench, "/faulty/b").unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!((it.bench.keys(), it.bench.object("a")), (vec!["a".to_owned()], b"theirs".to_vec()));
    assert_eq!(it.read("b").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn what_somebody_else_replaced_before_its_copy_comes_from_the_cache_where_it_is_there() {
    let it = Renaming::start("r-kept");
    it.bench.put_bytes("a", Bytes::from_static(b"first"));
    assert_eq!(it.read("a").unwrap(), b"first");
    it.hold_copies();
    it.rename("a", "b").unwrap();
    it.bench.put_bytes("a", Bytes::from_static(b"theirs"));
    it.heal();
    persist(&it.bench, "/faulty/b").unwrap();
    assert_eq!((it.bench.object("a"), it.bench.object("b")), (b"theirs".to_vec(), b"first".to_vec()));
    // Theirs is not removed: a conflict of the first name alone.
    it.eventually("the removal is in conflict", || it.bench.engine.status().stage.conflicts == 1);
    assert_eq!(it.bench.object("a"), b"theirs");
}

#[test]
fn while_a_copy_is_in_conflict_the_first_name_stays_in_the_source() {
    let it = Renaming::start("r-taken");
    it.bench.put_bytes("a", Bytes::from_static(b"ours"));
    it.hold_copies();
    it.rename("a", "b").unwrap();
    it.bench.put_bytes("b", Bytes::from_static(b"theirs"));
    it.heal();
    assert_eq!(persist(&it.bench, "/faulty/b").unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!((it.bench.object("a"), it.bench.object("b")), (b"ours".to_vec(), b"theirs".to_vec()));
    it.eventually("the removal says what it waits for", || {
        it.bench.engine.status().stage.failures.iter().any(|failing| failing.reason.contains("cannot be copied"))
    });
    assert_eq!(it.bench.object("a"), b"ours");
    let query = ConflictQuery { below: false, look: false, after: None, limit: 10 };
    let found = it.bench.runtime.block_on(it.bench.engine.conflicts(&path("b"), &query)).unwrap().conflicts;
    let (b, operation) = (path("b"), found[0].operation.as_str());
    let content = it.bench.engine.conflict_content(&b, operation).unwrap_err();
    assert!(content.to_string().contains("those of a in the source"), "{content}");
    it.bench.runtime.block_on(it.bench.engine.resolve_conflict(&b, operation, Keep::Mine)).unwrap();
    it.persist();
    assert_eq!((it.bench.keys(), it.bench.object("b")), (vec!["b".to_owned()], b"ours".to_vec()));
}

#[test]
fn what_was_renamed_on_is_copied_though_the_name_between_is_taken() {
    let it = Renaming::start("r-between");
    it.bench.put_bytes("a", Bytes::from_static(b"ours"));
    it.hold_copies();
    it.rename("a", "b").unwrap();
    it.eventually("the copy was tried", || it.calls("copy") > 0);
    it.rename("b", "c").unwrap();
    it.bench.put_bytes("b", Bytes::from_static(b"theirs"));
    it.heal();
    persist(&it.bench, "/faulty/c").unwrap();
    assert_eq!((it.bench.object("c"), it.bench.object("b")), (b"ours".to_vec(), b"theirs".to_vec()));
    let query = ConflictQuery { below: false, look: false, after: None, limit: 10 };
    let found = it.bench.runtime.block_on(it.bench.engine.conflicts(&path("b"), &query)).unwrap().conflicts;
    for conflict in found {
        let (b, operation) = (path("b"), conflict.operation);
        it.bench.runtime.block_on(it.bench.engine.resolve_conflict(&b, &operation, Keep::Theirs)).unwrap();
    }
    it.persist();
    assert_eq!(it.bench.keys(), ["b", "c"]);
}

#[test]
fn a_large_object_is_copied_in_parts_that_are_kept_over_a_restart() {
    let it = Renaming::start("r-large");
    let size = 300 * MIB;
    it.bench.put_bytes("a", Bytes::from(vec![7; size as usize]));
    let times = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&times);
    // The store takes two parts, and then is away.
    it.fail(move |call| match call.operation {
        "copy_part" if counted.fetch_add(1, Ordering::Relaxed) < 2 => None,
        "copy_part" | "complete_upload" => Some(Fault::Fail(ErrorKind::Unavailable)),
        _ => None,
    });
    it.rename("a", "b").unwrap();
    it.eventually("some parts were copied", || times.load(Ordering::Relaxed) >= 3);
    let it = it.restart();
    it.persist();
    assert_eq!(it.bench.keys(), ["b"]);
    assert_eq!(it.calls("copy_part"), 1, "parts that the source has are copied once");
    assert!(it.bench.object("b").iter().all(|byte| *byte == 7));
    it.assert_nothing_passed();
    assert_eq!((it.calls("copy"), it.bench.metrics.copy_bytes.get()), (0, size));
}

#[test]
fn a_store_that_cannot_copy_gets_the_bytes_from_this_node() {
    let it = Renaming::start("r-cannot");
    it.bench.put("a", 5, 1, 3 * MIB);
    it.fail(|call| (call.operation == "copy").then_some(Fault::Fail(ErrorKind::Unsupported)));
    it.rename("a", "b").unwrap();
    it.persist();
    assert_eq!(it.bench.keys(), ["b"]);
    assert_eq!(it.bench.object("b"), oracle::content(5, 1, 0, 3 * MIB));
    assert_eq!((it.bench.metrics.copies.get(), it.calls("put")), (0, 1));
}

#[test]
fn a_directory_is_renamed_whatever_its_files_become_meanwhile_by_their_uploads() {
    let it = Renaming::start("r-settling");
    let (files, pause) = (60, AtomicU64::new(0));
    it.fail(move |_| {
        std::thread::sleep(Duration::from_micros(pause.fetch_add(397, Ordering::Relaxed) % 2000));
        None
    });
    for round in 0..6 {
        for file in 0..files {
            it.write(&format!("{round}/{file}"), b"content");
        }
        it.bench.runtime.spawn({
            let engine = Arc::clone(&it.bench.engine);
            async move { engine.persist(&TreePath::parse("/faulty").unwrap(), Some(PATIENCE)).await }
        });
        std::thread::sleep(Duration::from_millis(round));
        it.rename(&round.to_string(), &format!("{round}-moved")).unwrap();
        assert_eq!(it.names(&format!("{round}-moved")).len(), files);
    }
    it.heal();
    it.persist();
    assert_eq!(it.bench.keys().len(), 6 * files);
}
