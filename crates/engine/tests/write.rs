//! The sentences of the contract that writing must hold, by name.

#![allow(clippy::unwrap_used, reason = "these are tests, their support included")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use penstock_engine::{Entry, OpenOptions, WriteOptions};
use penstock_source::OPERATION_METADATA;
use penstock_testkit::{Fault, FaultySource, SourceCall, oracle};
use penstock_types::{
    ByteRange, Durability, Error, ErrorKind, Freshness, ObjectKey, Precondition, PutRequest, ReadRequest, Result,
    TreePath,
};
use support::{Bench, MIB, Setup, eventually, persist, read};

type Plan = Box<dyn Fn(&SourceCall) -> Option<Fault> + Send + Sync>;

/// A second attachment of the bench's source, at `/faulty`, whose calls go wrong as the test says.
struct Faulty {
    source: Arc<FaultySource>,
    plan: Arc<Mutex<Option<Plan>>>,
}

impl Faulty {
    fn attach(bench: &Bench) -> Self {
        let plan: Arc<Mutex<Option<Plan>>> = Arc::default();
        let asked = Arc::clone(&plan);
        let source = FaultySource::new(Arc::clone(&bench.outside), move |call| {
            asked.lock().unwrap().as_ref().and_then(|plan| plan(call))
        });
        let spec = support::attachment("/faulty", bench.source_spec(), Freshness::Seconds(60.0));
        bench.engine.attach_source(spec, Arc::clone(&source) as _, None).unwrap();
        Self { source, plan }
    }

    fn fail(&self, plan: impl Fn(&SourceCall) -> Option<Fault> + Send + Sync + 'static) {
        *self.plan.lock().unwrap() = Some(Box::new(plan));
    }

    fn heal(&self) {
        *self.plan.lock().unwrap() = None;
    }
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text).unwrap()
}

fn write(bench: &Bench, at: &str, data: &[u8]) -> Result<Entry> {
    let data = Bytes::copy_from_slice(data);
    bench.runtime.block_on(bench.engine.write_small(&path(at), data, WriteOptions::default()))
}

/// Writes as a client does: into the descriptor of a draft.
fn write_large(bench: &Bench, at: &str, data: &[u8]) -> Result<Entry> {
    bench.runtime.block_on(async {
        let writing = bench.engine.create(&path(at), WriteOptions::default()).await?;
        writing.grow(data.len() as u64)?;
        let written = rustix::io::pwrite(writing.descriptor().as_fd(), data, 0).unwrap();
        assert_eq!(written, data.len());
        writing.commit().await
    })
}

/// What the source holds, asked past the engine.
fn in_source(bench: &Bench, key: &str) -> Result<Vec<u8>> {
    bench.runtime.block_on(async {
        let key = ObjectKey::from(key);
        let size = bench.outside.stat(&key).await?.attributes.size;
        let mut bytes = Vec::new();
        if size > 0 {
            let range = ByteRange::new(0, size);
            let request = ReadRequest { key, range, version: None, priority: Default::default() };
            let mut body = bench.outside.read(request).await?.chunks;
            while let Some(chunk) = futures_util::StreamExt::next(&mut body).await {
                bytes.extend_from_slice(&chunk?);
            }
        }
        Ok(bytes)
    })
}

fn names(bench: &Bench, at: &str) -> Vec<String> {
    let page = bench.runtime.block_on(bench.engine.list(&path(at), None, 1000)).unwrap();
    page.entries.into_iter().map(|entry| entry.name).collect()
}

#[test]
fn contract_2_what_was_closed_is_what_an_open_a_stat_and_a_list_see() {
    let bench = Bench::start("w2", &Setup::default());
    bench.put_bytes("runs/old", Bytes::from_static(b"old"));
    assert_eq!(names(&bench, "/data/runs"), ["old"]);
    let faulty = Faulty::attach(&bench);
    faulty.fail(|call| matches!(call.operation, "put").then_some(Fault::Fail(ErrorKind::Unavailable)));

    let small = write(&bench, "/faulty/runs/a", b"small").unwrap();
    let large = oracle::content(1, 1, 0, 3 * MIB);
    write_large(&bench, "/faulty/runs/deep/er/b", &large).unwrap();

    assert_eq!(small.size, 5);
    // Also at the other attachment of the same source.
    for root in ["/faulty", "/data"] {
        assert_eq!(read(&bench, &format!("{root}/runs/a")).unwrap(), b"small");
        assert_eq!(read(&bench, &format!("{root}/runs/deep/er/b")).unwrap(), large);
        assert_eq!(names(&bench, &format!("{root}/runs")), ["a", "deep", "old"]);
        assert_eq!(names(&bench, &format!("{root}/runs/deep")), ["er"]);
        let entry = bench.runtime.block_on(bench.engine.stat(&path(&format!("{root}/runs/a")))).unwrap();
        assert_eq!(entry, small);
    }
    assert_eq!(in_source(&bench, "runs/a").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(bench.engine.status().stage.files, 2);
}

#[test]
fn contract_4_what_was_acknowledged_reaches_the_source_once_and_is_warm_then() {
    let bench = Bench::start("w4", &Setup::default());
    let large = oracle::content(2, 1, 0, 40 * MIB + 12_345);
    write_large(&bench, "/data/step-1/model", &large).unwrap();
    write(&bench, "/data/step-1/meta", b"{}").unwrap();
    write(&bench, "/data/step-1/empty", b"").unwrap();
    persist(&bench, "/data/step-1").unwrap();

    assert_eq!(in_source(&bench, "step-1/model").unwrap(), large);
    assert_eq!(in_source(&bench, "step-1/meta").unwrap(), b"{}");
    assert_eq!(in_source(&bench, "step-1/empty").unwrap(), b"");
    assert_eq!(bench.metrics.uploads.get(), 3);
    let status = bench.engine.status().stage;
    assert_eq!((status.files, status.bytes), (0, 0));
    // The staged file is the cached one now: nothing is fetched.
    let before = bench.metrics.source_read_requests.get();
    assert_eq!(read(&bench, "/data/step-1/model").unwrap(), large);
    assert_eq!(read(&bench, "/data/step-1/meta").unwrap(), b"{}");
    assert_eq!(bench.metrics.source_read_requests.get(), before);
    // The version is the source's.
    let entry = bench.runtime.block_on(bench.engine.stat(&path("/data/step-1/model"))).unwrap();
    let there = bench.runtime.block_on(bench.outside.stat(&ObjectKey::from("step-1/model"))).unwrap();
    assert_eq!(entry.version.unwrap(), there.attributes.version);
    assert!(there.metadata.iter().any(|(name, _)| name == OPERATION_METADATA));
}

#[test]
fn contract_4_source_means_that_the_source_has_it_when_the_close_returns() {
    let bench = Bench::start("w4s", &Setup { deadline_s: 1.0, ..Setup::default() });
    let options = WriteOptions { durability: Some(Durability::Source), exclusive: false };
    let data = Bytes::from_static(b"safe");
    bench.runtime.block_on(bench.engine.write_small(&path("/data/a"), data.clone(), options)).unwrap();
    assert_eq!(in_source(&bench, "a").unwrap(), b"safe");

    let faulty = Faulty::attach(&bench);
    faulty.fail(|call| (call.operation == "put").then_some(Fault::Fail(ErrorKind::Unavailable)));
    let refused = bench.runtime.block_on(bench.engine.write_small(&path("/faulty/b"), data, options)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Timeout);
    assert!(refused.to_string().contains("injected fault"), "{refused}");
    faulty.heal();
    persist(&bench, "/faulty/b").unwrap();
    assert_eq!(in_source(&bench, "b").unwrap(), b"safe");
}

#[test]
fn contract_4_what_was_acknowledged_survives_a_restart_and_goes_on_to_the_source() {
    let bench = Bench::start("w4r", &Setup::default());
    let faulty = Faulty::attach(&bench);
    faulty.fail(|call| matches!(call.operation, "put" | "put_part").then_some(Fault::Fail(ErrorKind::Unavailable)));
    let large = oracle::content(3, 1, 0, 20 * MIB);
    write_large(&bench, "/faulty/large", &large).unwrap();
    write(&bench, "/faulty/small", b"small").unwrap();
    let bench = bench.restart();
    // At the old path it is not attached any more: another attachment of the source brings it there.
    assert_eq!(read(&bench, "/data/large").unwrap(), large);
    persist(&bench, "/data").unwrap();
    assert_eq!(in_source(&bench, "large").unwrap(), large);
    assert_eq!(in_source(&bench, "small").unwrap(), b"small");
}

#[test]
fn contract_5_a_version_that_was_never_seen_is_never_replaced() {
    let bench = Bench::start("w5", &Setup::default());
    bench.put_bytes("a", Bytes::from_static(b"first"));
    assert_eq!(read(&bench, "/data/a").unwrap(), b"first");
    bench.put_bytes("a", Bytes::from_static(b"theirs"));
    write(&bench, "/data/a", b"mine").unwrap();
    let refused = persist(&bench, "/data").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    assert_eq!(in_source(&bench, "a").unwrap(), b"theirs");
    let status = bench.engine.status().stage;
    assert_eq!(status.conflicts, 1);
    // Theirs is seen from now on, and what has seen it may replace it.
    assert_eq!(read(&bench, "/data/a").unwrap(), b"theirs");
    write(&bench, "/data/a", b"mine again").unwrap();
    eventually("it is replaced", || in_source(&bench, "a").unwrap() == b"mine again");

    // A new file of which somebody else was quicker.
    assert_eq!(names(&bench, "/data"), ["a"]);
    bench.put_bytes("new", Bytes::from_static(b"theirs"));
    write(&bench, "/data/new", b"mine").unwrap();
    assert_eq!(persist(&bench, "/data/new").unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(in_source(&bench, "new").unwrap(), b"theirs");
    assert_eq!(bench.metrics.conflicts.get(), 2);
}

#[test]
fn contract_5_a_lost_reply_is_settled_by_the_operation_id() {
    let bench = Bench::start("w5l", &Setup::default());
    let faulty = Faulty::attach(&bench);
    let lost = Arc::new(AtomicBool::new(false));
    for (operation, size) in [("put", 1000), ("complete_upload", 17 * MIB)] {
        let once = Arc::clone(&lost);
        once.store(false, Ordering::Relaxed);
        faulty.fail(move |call| {
            (call.operation == operation && !once.swap(true, Ordering::Relaxed)).then_some(Fault::LoseReply)
        });
        let at = format!("/faulty/{operation}");
        let data = oracle::content(4, size, 0, size);
        write_large(&bench, &at, &data).unwrap();
        eventually("the reply was lost", || lost.load(Ordering::Relaxed));
        persist(&bench, &at).unwrap();
        assert_eq!(in_source(&bench, operation).unwrap(), data);
    }
    assert_eq!(bench.metrics.conflicts.get(), 0);
    assert_eq!(faulty.source.fired().len(), 2);
}

#[test]
fn contract_5_changes_that_had_arrived_before_a_crash_are_no_conflict_when_they_are_brought_again() {
    // The first change is in the source, and the second one over it, and the journal knows of neither.
    for (name, removes) in [("w5c", false), ("w5r", true)] {
        let bench = Bench::start(name, &Setup::default());
        bench.put_bytes("a", Bytes::from_static(b"before"));
        assert_eq!(read(&bench, "/data/a").unwrap(), b"before");
        let faulty = Faulty::attach(&bench);
        let first = match removes {
            true => "delete",
            false => "put",
        };
        // Both are staged before anything is brought.
        faulty.fail(move |call| (call.operation == first).then_some(Fault::Fail(ErrorKind::Unavailable)));
        match removes {
            true => bench.runtime.block_on(bench.engine.remove(&path("/faulty/a"))).unwrap(),
            false => drop(write(&bench, "/faulty/a", b"first").unwrap()),
        }
        eventually("it was tried", || !faulty.source.fired().is_empty());
        let second = write(&bench, "/faulty/a", b"second").unwrap();
        // What an earlier process has done.
        let operation = second.version.unwrap().as_str().trim_start_matches("staged-").to_owned();
        let request = PutRequest {
            key: ObjectKey::from("a"),
            body: Bytes::from_static(b"second"),
            precondition: Precondition::None,
            metadata: vec![(OPERATION_METADATA.to_owned(), operation)],
        };
        bench.runtime.block_on(bench.outside.put(request)).unwrap();
        faulty.heal();
        persist(&bench, "/faulty").unwrap();
        assert_eq!(in_source(&bench, "a").unwrap(), b"second");
        assert_eq!(read(&bench, "/data/a").unwrap(), b"second");
        assert_eq!(bench.metrics.conflicts.get(), 0);
    }
}

#[test]
fn a_file_whose_object_somebody_removed_is_written_all_the_same() {
    for (name, size) in [("gone", 1000), ("gone-in-parts", 17 * MIB)] {
        let bench = Bench::start(name, &Setup::default());
        bench.put_bytes("a", Bytes::from_static(b"before"));
        assert_eq!(read(&bench, "/data/a").unwrap(), b"before");
        bench.runtime.block_on(bench.outside.delete(&ObjectKey::from("a"), None)).unwrap();
        let data = oracle::content(5, size, 0, size);
        write_large(&bench, "/data/a", &data).unwrap();
        persist(&bench, "/data").unwrap();
        assert_eq!(in_source(&bench, "a").unwrap(), data);
        assert_eq!(bench.metrics.conflicts.get(), 0);
    }
}

#[test]
fn writes_of_one_key_arrive_in_their_order() {
    let bench = Bench::start("order", &Setup::default());
    let faulty = Faulty::attach(&bench);
    faulty.fail(|call| (call.operation == "put").then_some(Fault::Fail(ErrorKind::Unavailable)));
    for version in 0..20_u64 {
        write(&bench, "/faulty/a", &version.to_le_bytes()).unwrap();
        assert_eq!(read(&bench, "/faulty/a").unwrap(), version.to_le_bytes());
    }
    bench.runtime.block_on(bench.engine.remove(&path("/faulty/a"))).unwrap();
    assert_eq!(read(&bench, "/faulty/a").unwrap_err().kind(), ErrorKind::NotFound);
    write(&bench, "/faulty/a", b"last").unwrap();
    faulty.heal();
    persist(&bench, "/faulty").unwrap();
    assert_eq!(in_source(&bench, "a").unwrap(), b"last");
    assert_eq!(bench.metrics.conflicts.get(), 0);
    // Nobody waits for what was replaced before it was brought.
    assert!(bench.metrics.uploads.get() <= 3, "{}", bench.metrics.uploads.get());
}

#[test]
fn a_removed_file_is_gone_at_once_and_from_the_source_after_persist() {
    let bench = Bench::start("remove", &Setup::default());
    bench.put_bytes("dir/a", Bytes::from_static(b"a"));
    bench.put_bytes("dir/b", Bytes::from_static(b"b"));
    assert_eq!(names(&bench, "/data/dir"), ["a", "b"]);
    bench.runtime.block_on(bench.engine.remove(&path("/data/dir/a"))).unwrap();
    assert_eq!(names(&bench, "/data/dir"), ["b"]);
    assert_eq!(read(&bench, "/data/dir/a").unwrap_err().kind(), ErrorKind::NotFound);
    persist(&bench, "/data").unwrap();
    assert_eq!(in_source(&bench, "dir/a").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(names(&bench, "/data/dir"), ["b"]);
    let again = bench.runtime.block_on(bench.engine.remove(&path("/data/dir/a"))).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::NotFound);

    // One that was replaced outside is not removed.
    bench.put_bytes("dir/b", Bytes::from_static(b"theirs"));
    bench.runtime.block_on(bench.engine.remove(&path("/data/dir/b"))).unwrap();
    assert_eq!(persist(&bench, "/data").unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(in_source(&bench, "dir/b").unwrap(), b"theirs");
}

#[test]
fn what_cannot_be_written_is_refused_with_the_reason() {
    let bench = Bench::start("refused", &Setup::default());
    bench.put_bytes("dir/a", Bytes::from_static(b"a"));
    let kind = |result: Result<Entry>| result.unwrap_err().kind();
    assert_eq!(kind(write(&bench, "/data/dir", b"x")), ErrorKind::IsADirectory);
    assert_eq!(kind(write(&bench, "/data", b"x")), ErrorKind::IsADirectory);
    assert_eq!(kind(write(&bench, "/", b"x")), ErrorKind::IsADirectory);
    assert_eq!(kind(write(&bench, "/other/a", b"x")), ErrorKind::NotFound);
    assert_eq!(kind(write(&bench, "/data/dir/a/b", b"x")), ErrorKind::NotADirectory);
    assert_eq!(kind(write(&bench, &format!("/data/{}", "n".repeat(1100)), b"x")), ErrorKind::InvalidInput);
    let exclusive = WriteOptions { exclusive: true, durability: None };
    let there = path("/data/dir/a");
    let taken = bench.engine.write_small(&there, Bytes::from_static(b"x"), exclusive);
    assert_eq!(kind(bench.runtime.block_on(taken)), ErrorKind::AlreadyExists);

    let mut spec = support::attachment("/reading", bench.source_spec(), Freshness::Seconds(60.0));
    spec.write = None;
    bench.runtime.block_on(bench.engine.attach(spec, false)).unwrap();
    let refused: Error = write(&bench, "/reading/x", b"x").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
    assert!(refused.to_string().contains("--writable"), "{refused}");
    assert_eq!(bench.engine.status().stage.files, 0);
}

#[test]
fn a_source_that_is_away_keeps_nobody_from_renaming_what_was_written() {
    let bench = Bench::start("w-rename-away", &Setup::default());
    let faulty = Faulty::attach(&bench);
    faulty.fail(|_| Some(Fault::Fail(ErrorKind::Unavailable)));
    write(&bench, "/faulty/step.tmp", b"checkpoint").unwrap();
    let rename =
        |from: &str, to: &str, replace| bench.runtime.block_on(bench.engine.rename(&path(from), &path(to), replace));
    rename("/faulty/step.tmp", "/faulty/step", true).unwrap();
    assert_eq!(read(&bench, "/faulty/step").unwrap(), b"checkpoint");
    let uncertain = rename("/faulty/step", "/faulty/other", false).unwrap_err();
    assert!(uncertain.is_transient(), "{uncertain}");
    faulty.heal();
    persist(&bench, "/faulty").unwrap();
    assert_eq!(in_source(&bench, "step").unwrap(), b"checkpoint");
    assert_eq!(in_source(&bench, "step.tmp").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_source_that_is_away_keeps_nobody_from_writing_and_loses_nothing() {
    let bench = Bench::start("away", &Setup { deadline_s: 1.0, ..Setup::default() });
    bench.put_bytes("dir/known", Bytes::from_static(b"first"));
    bench.put_bytes("dir/unknown", Bytes::from_static(b"theirs"));
    let faulty = Faulty::attach(&bench);
    assert_eq!(read(&bench, "/faulty/dir/known").unwrap(), b"first");
    // Long ago: nothing that is known is fresh.
    bench.clock.advance(Duration::from_secs(3600));
    faulty.fail(|_| Some(Fault::Fail(ErrorKind::Unavailable)));
    for name in ["known", "unknown", "new"] {
        write(&bench, &format!("/faulty/dir/{name}"), b"mine").unwrap();
        assert_eq!(read(&bench, &format!("/faulty/dir/{name}")).unwrap(), b"mine");
    }
    // What needs to know what is there says that it cannot.
    let exclusive = WriteOptions { exclusive: true, durability: None };
    let other = path("/faulty/dir/other");
    let refused = bench.engine.write_small(&other, Bytes::from_static(b"x"), exclusive);
    assert_eq!(bench.runtime.block_on(refused).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(bench.runtime.block_on(bench.engine.remove(&other)).unwrap_err().kind(), ErrorKind::Unavailable);

    faulty.heal();
    for name in ["known", "new"] {
        persist(&bench, &format!("/faulty/dir/{name}")).unwrap();
        assert_eq!(in_source(&bench, &format!("dir/{name}")).unwrap(), b"mine");
    }
    assert_eq!(persist(&bench, "/faulty/dir").unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(in_source(&bench, "dir/unknown").unwrap(), b"theirs");
}

#[test]
fn many_new_files_of_one_directory_are_not_a_question_each() {
    let bench = Bench::start("many", &Setup::default());
    bench.put_bytes("dir/there", Bytes::from_static(b"x"));
    let faulty = Faulty::attach(&bench);
    faulty.fail(|call| (call.operation == "put").then_some(Fault::Fail(ErrorKind::Unavailable)));
    for number in 0..200 {
        write(&bench, &format!("/faulty/dir/{number}"), b"new").unwrap();
        write(&bench, &format!("/faulty/new/{number}"), b"new").unwrap();
    }
    let asked = faulty.source.calls().into_iter().filter(|call| matches!(call.operation, "stat" | "list")).count();
    assert!(asked <= 20, "{asked} questions for 400 files");
}

#[test]
fn a_staged_file_that_somebody_reads_stays_readable_when_it_has_reached_the_source() {
    let bench = Bench::start("held", &Setup::default());
    let faulty = Faulty::attach(&bench);
    faulty.fail(|call| (call.operation == "put").then_some(Fault::Fail(ErrorKind::Unavailable)));
    let data = oracle::content(5, 1, 0, 2 * MIB);
    write_large(&bench, "/faulty/a", &data).unwrap();
    let file = bench.runtime.block_on(bench.engine.open(&path("/faulty/a"), OpenOptions::default())).unwrap();
    let staged = file.attributes().version.clone();
    assert!(staged.as_str().starts_with("staged-"), "{staged}");
    faulty.heal();
    persist(&bench, "/faulty").unwrap();
    let mut out = vec![0; data.len()];
    assert_eq!(rustix::io::pread(file.descriptor().as_fd(), &mut out, 0).unwrap(), data.len());
    assert_eq!(out, data);
    let entry = bench.runtime.block_on(bench.engine.stat(&path("/faulty/a"))).unwrap();
    assert_ne!(entry.version.unwrap(), staged);
}

#[test]
fn a_snapshot_waits_for_what_is_only_staged() {
    let bench = Bench::start("frozen", &Setup::default());
    let faulty = Faulty::attach(&bench);
    faulty.fail(|call| (call.operation == "put").then_some(Fault::Fail(ErrorKind::Unavailable)));
    write(&bench, "/faulty/dir/a", b"a").unwrap();
    let (file, frozen) = (bench.home.path().join("it.snapshot"), path("/faulty/dir"));
    let freeze = || bench.runtime.block_on(bench.engine.create_snapshot(&frozen, "it", &file));
    assert_eq!(freeze().unwrap_err().kind(), ErrorKind::Busy);
    faulty.heal();
    persist(&bench, "/faulty").unwrap();
    assert_eq!(freeze().unwrap().files, 1);
}
