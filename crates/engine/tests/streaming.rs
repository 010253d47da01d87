//! Large files that are sent while they are written: each byte once, nothing seen before its time, nothing left behind.

#![allow(clippy::unwrap_used, reason = "these are tests, their support included")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use penstock_engine::{WriteOptions, Writing};
use penstock_source::SourceParts;
use penstock_testkit::{Fault, FaultySource, SourceCall, catches, oracle};
use penstock_types::{
    Answer, AttributeChange, ErrorKind, Freshness, Metrics, NodeId, ObjectKey, Posix, Source, SourceSpec, TreePath,
};
use support::{Bench, MIB, Setup, eventually, persist, read};

type Plan = Box<dyn Fn(&SourceCall) -> Option<Fault> + Send + Sync>;

/// A writable directory at `/runs`, whose calls are counted and go wrong as the test says.
struct Runs {
    bench: Bench,
    source: Arc<FaultySource>,
    plan: Arc<Mutex<Option<Plan>>>,
    directory: tempfile::TempDir,
}

impl Runs {
    fn start(name: &str) -> Self {
        let bench = Bench::start(name, &Setup { memory_bytes: 512 * MIB, ..Setup::default() });
        Self::attach(bench, tempfile::tempdir().unwrap())
    }

    fn attach(bench: Bench, directory: tempfile::TempDir) -> Self {
        let spec = SourceSpec::File { directory: directory.path().to_owned() };
        let parts = SourceParts {
            config: bench.config.source.clone(),
            deadline: bench.config.deadlines.foreground(),
            metrics: Metrics::default(),
            clock: Arc::clone(&bench.clock) as _,
            seed: 2,
        };
        let plan: Arc<Mutex<Option<Plan>>> = Arc::default();
        let asked = Arc::clone(&plan);
        let source = FaultySource::new(penstock_source::open(&spec, &parts).unwrap(), move |call| {
            asked.lock().unwrap().as_ref().and_then(|plan| plan(call))
        });
        let attachment = support::attachment("/runs", spec, Freshness::Seconds(60.0));
        bench.engine.attach_source(attachment, Arc::clone(&source) as _, None).unwrap();
        Self { bench, source, plan, directory }
    }

    fn fail(&self, plan: impl Fn(&SourceCall) -> Option<Fault> + Send + Sync + 'static) {
        *self.plan.lock().unwrap() = Some(Box::new(plan));
    }

    fn restart(self) -> Self {
        let Self { bench, directory, .. } = self;
        bench.engine.detach(&path("/runs")).unwrap_or_default();
        Self::attach(bench.restart(), directory)
    }

    fn create(&self, at: &str) -> Writing {
        self.bench.runtime.block_on(self.bench.engine.create(&path(at), WriteOptions::default())).unwrap()
    }

    fn commit(&self, writing: &Writing) {
        self.bench.runtime.block_on(writing.commit()).unwrap();
    }

    fn calls(&self, operation: &str) -> usize {
        self.source.calls().iter().filter(|call| call.operation == operation).count()
    }

    fn uploads(&self) -> usize {
        self.bench.runtime.block_on(self.source.list_uploads(&ObjectKey::default())).unwrap().len()
    }

    fn stored(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.directory.path().join(name)).unwrap()
    }

    fn sent_early(&self) -> u64 {
        self.bench.metrics.stream_bytes.get()
    }
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text).unwrap()
}

fn write_at(writing: &Writing, data: &[u8], at: u64) {
    writing.grow(at + data.len() as u64).unwrap();
    assert_eq!(rustix::io::pwrite(writing.descriptor().as_fd(), data, at).unwrap(), data.len());
}

#[test]
fn a_large_file_is_sent_while_it_is_written_each_byte_once_and_shows_when_it_is_closed() {
    let runs = Runs::start("stream");
    let data = oracle::content(1, 1, 0, 50 * MIB + 12_345);
    let writing = runs.create("/runs/model.pt");
    write_at(&writing, &data[..48 * MIB as usize], 0);
    eventually("the whole parts are there", || runs.sent_early() == 48 * MIB);
    assert!(!runs.directory.path().join("model.pt").exists(), "nobody sees it before it is closed");
    write_at(&writing, &data[48 * MIB as usize..], 48 * MIB);
    runs.commit(&writing);
    persist(&runs.bench, "/runs").unwrap();
    assert_eq!(runs.stored("model.pt"), data);
    assert_eq!((runs.calls("begin_upload"), runs.calls("put_part"), runs.calls("complete_upload")), (1, 7, 1));
    assert_eq!((runs.calls("list_parts"), runs.uploads()), (0, 0));
    assert_eq!(runs.bench.metrics.stream_bytes_again.get(), 0);
    // It is warm, and its checksums are those of its bytes.
    let before = runs.calls("read");
    assert_eq!(read(&runs.bench, "/runs/model.pt").unwrap(), data);
    assert_eq!(runs.calls("read"), before);
    assert_eq!(runs.bench.runtime.block_on(runs.bench.engine.verify(&path("/runs/model.pt"))).unwrap().bad_pages, 0);
}

#[test]
fn what_is_changed_after_it_was_sent_is_sent_again_and_nothing_else() {
    let runs = Runs::start("patch");
    let mut data = oracle::content(2, 1, 0, 40 * MIB).to_vec();
    let writing = runs.create("/runs/archive.zip");
    write_at(&writing, &data, 0);
    eventually("all of it is there", || runs.sent_early() == 40 * MIB);
    // As who packs an archive does at its end, and in a page of another part.
    for at in [0, 17 * MIB as usize + 1] {
        data[at..at + 4].copy_from_slice(b"HEAD");
        write_at(&writing, b"HEAD", at as u64);
    }
    runs.commit(&writing);
    persist(&runs.bench, "/runs").unwrap();
    assert_eq!(runs.stored("archive.zip"), data);
    assert_eq!(runs.bench.metrics.stream_bytes_again.get(), 16 * MIB);
    assert_eq!((runs.calls("begin_upload"), runs.calls("put_part"), runs.uploads()), (1, 7, 0));
    assert_eq!(runs.bench.runtime.block_on(runs.bench.engine.verify(&path("/runs/archive.zip"))).unwrap().bad_pages, 0);
}

#[test]
fn a_file_that_became_short_again_leaves_nothing_of_what_was_sent() {
    let runs = Runs::start("short");
    for (name, size) in [("small", 1000), ("cut", 20 * MIB as usize + 5)] {
        let data = oracle::content(3, 1, 0, 40 * MIB);
        let writing = runs.create(&format!("/runs/{name}"));
        let before = runs.sent_early();
        write_at(&writing, &data, 0);
        eventually("all of it is there", || runs.sent_early() == before + 40 * MIB);
        rustix::fs::ftruncate(writing.descriptor().as_fd(), size as u64).unwrap();
        runs.commit(&writing);
        persist(&runs.bench, "/runs").unwrap();
        assert_eq!(runs.stored(name), data[..size]);
        assert_eq!(runs.uploads(), 0);
    }
}

#[test]
fn a_file_that_is_discarded_leaves_no_upload() {
    let runs = Runs::start("discard");
    let writing = runs.create("/runs/half");
    write_at(&writing, &oracle::content(4, 1, 0, 40 * MIB), 0);
    eventually("some of it is there", || runs.sent_early() > 0);
    assert_eq!(runs.uploads(), 1);
    drop(writing);
    eventually("it is aborted", || runs.uploads() == 0);
    assert_eq!(runs.calls("complete_upload"), 0);
}

#[test]
fn what_has_a_name_for_a_while_and_what_was_only_allocated_is_not_sent() {
    let runs = Runs::start("names");
    let data = oracle::content(5, 1, 0, 40 * MIB);
    let (temporary, allocated, large) =
        (runs.create("/runs/.tmpAbC"), runs.create("/runs/allocated"), runs.create("/runs/large"));
    write_at(&temporary, &data, 0);
    rustix::fs::ftruncate(allocated.descriptor().as_fd(), 40 * MIB).unwrap();
    write_at(&allocated, &data[..33 * MIB as usize], 0);
    write_at(&large, &data, 0);
    eventually("the others are there", || runs.sent_early() >= 72 * MIB);
    assert_eq!(runs.sent_early(), 72 * MIB);
    let target = ObjectKey::from(".tmpAbC");
    assert!(runs.bench.runtime.block_on(runs.source.list_uploads(&target)).unwrap().is_empty());
    for writing in [&temporary, &allocated, &large] {
        runs.commit(writing);
    }
    persist(&runs.bench, "/runs").unwrap();
    let mut expected = data[..33 * MIB as usize].to_vec();
    expected.resize(40 * MIB as usize, 0);
    assert_eq!(runs.stored("allocated"), expected);
    assert_eq!((runs.stored(".tmpAbC"), runs.stored("large")), (data.to_vec(), data.to_vec()));
}

#[test]
fn what_was_sent_is_used_after_a_restart_and_compared_again() {
    let runs = Runs::start("resumed");
    let data = oracle::content(6, 1, 0, 40 * MIB + 7);
    let mut changed = data.to_vec();
    changed[9 * MIB as usize] ^= 1;
    let writing = runs.create("/runs/a");
    write_at(&writing, &data, 0);
    eventually("the whole parts are there", || runs.sent_early() == 40 * MIB);
    runs.fail(|call| matches!(call.operation, "put_part").then_some(Fault::Fail(ErrorKind::Unavailable)));
    write_at(&writing, &changed[9 * MIB as usize..][..1], 9 * MIB);
    runs.commit(&writing);
    drop(writing);
    let runs = runs.restart();
    persist(&runs.bench, "/runs").unwrap();
    assert_eq!(runs.stored("a"), changed);
    // The part that had changed, and the last one.
    assert_eq!((runs.calls("begin_upload"), runs.calls("put_part"), runs.uploads()), (0, 2, 0));
}

#[test]
fn a_lost_reply_to_the_completion_of_what_was_sent_early_is_no_conflict() {
    let runs = Runs::start("lost");
    let data = oracle::content(7, 1, 0, 40 * MIB);
    let writing = runs.create("/runs/a");
    write_at(&writing, &data, 0);
    eventually("all of it is there", || runs.sent_early() == 40 * MIB);
    let once = std::sync::atomic::AtomicBool::new(true);
    runs.fail(move |call| {
        let first = call.operation == "complete_upload" && once.swap(false, std::sync::atomic::Ordering::SeqCst);
        first.then_some(Fault::LoseReply)
    });
    runs.commit(&writing);
    persist(&runs.bench, "/runs").unwrap();
    assert_eq!((runs.stored("a"), runs.bench.metrics.conflicts.get()), (data.to_vec(), 0));
    assert_eq!(runs.source.fired().len(), 1);
}

#[test]
fn whichever_call_fails_once_while_a_file_is_sent_early_it_arrives_whole_and_leaves_nothing() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    let data = oracle::content(8, 1, 0, 33 * MIB);
    let away = Fault::Fail(ErrorKind::Unavailable);
    let gone = Fault::Fail(ErrorKind::NotFound);
    let cases = [
        ("begin_upload", away),
        ("begin_upload", Fault::LoseReply),
        ("put_part", away),
        ("put_part", gone),
        ("complete_upload", away),
        ("complete_upload", gone),
        ("complete_upload", Fault::LoseReply),
        ("abort_upload", away),
    ];
    for (operation, fault) in cases {
        let runs = Runs::start(&format!("{operation}-{fault:?}"));
        let once = AtomicBool::new(true);
        runs.fail(move |call| (call.operation == operation && once.swap(false, SeqCst)).then_some(fault));
        let (discarded, writing) = (runs.create("/runs/b"), runs.create("/runs/a"));
        for writing in [&discarded, &writing] {
            write_at(writing, &data, 0);
        }
        eventually("something was tried", || runs.sent_early() > 0 || !runs.source.fired().is_empty());
        drop(discarded);
        runs.commit(&writing);
        persist(&runs.bench, "/runs").unwrap();
        assert_eq!(runs.stored("a"), data, "{operation} {fault:?}");
        assert!(!runs.directory.path().join("b").exists());
        eventually(&format!("{operation} {fault:?}: nothing is left"), || runs.uploads() == 0);
        eventually("it failed", || !runs.source.fired().is_empty());
    }
}

#[test]
fn parts_that_are_not_compared_with_the_file_are_noticed() {
    catches("what_is_changed_after_it_was_sent_is_sent_again_and_nothing_else", "part-sum");
}

impl Runs {
    fn wait<T>(&self, answer: Answer<T>) -> T {
        match answer {
            Answer::Now(answer) => answer.unwrap(),
            Answer::Later(answer) => self.bench.runtime.block_on(answer).unwrap(),
        }
    }

    fn kept_mode(&self, name: &str) -> Option<u16> {
        let stat = self.bench.runtime.block_on(self.source.stat(&ObjectKey::from(name))).unwrap();
        Posix::of(&stat.metadata).mode
    }
}

#[test]
fn what_is_said_of_a_file_whose_upload_was_begun_follows_in_a_copy_and_no_byte_is_sent_again() {
    let runs = Runs::start("stream-said");
    let tree = runs.bench.engine.kernel_tree(&path("/runs"), false);
    let made = Posix { mode: Some(0o664), ..Posix::default() };
    let made_so = runs.wait(tree.create(NodeId::ROOT, "made.bin", made, (true, false)));
    let writer = made_so.opened.writer.clone().unwrap();
    let piece = vec![7; 8 * MIB as usize];
    (0..5).for_each(|number| runs.wait(writer.write(number * 8 * MIB, &piece)));
    eventually("parts are there", || runs.sent_early() >= 32 * MIB);
    runs.wait(writer.flush());
    writer.close();
    drop(made_so);
    persist(&runs.bench, "/runs").unwrap();
    assert_eq!((runs.kept_mode("made.bin"), runs.calls("copy")), (Some(0o664), 0), "its upload was begun with that");
    let before = runs.sent_early();
    let created = runs.wait(tree.create(NodeId::ROOT, "open.bin", Posix::default(), (true, false)));
    let (node, writer) = (created.looked.found.unwrap().node, created.opened.writer.clone().unwrap());
    (0..5).for_each(|number| runs.wait(writer.write(number * 8 * MIB, &piece)));
    eventually("parts are there", || runs.sent_early() >= before + 32 * MIB);
    let posix = Posix { mode: Some(0o600), ..Posix::default() };
    runs.wait(tree.set_attributes(node, AttributeChange { posix, ..AttributeChange::default() }));
    runs.wait(writer.flush());
    writer.close();
    drop(created);
    // By its name, once it is closed.
    let writing = runs.create("/runs/closed.bin");
    write_at(&writing, &oracle::content(9, 1, 0, 40 * MIB), 0);
    eventually("all of it is there", || runs.sent_early() >= before + 72 * MIB);
    runs.commit(&writing);
    runs.bench.runtime.block_on(runs.bench.engine.set_posix(&path("/runs/closed.bin"), None, posix)).unwrap();
    persist(&runs.bench, "/runs").unwrap();
    assert_eq!((runs.kept_mode("open.bin"), runs.kept_mode("closed.bin")), (Some(0o600), Some(0o600)));
    assert_eq!((runs.calls("begin_upload"), runs.calls("copy"), runs.bench.metrics.uploads.get()), (3, 2, 3));
    assert_eq!((runs.bench.metrics.stream_bytes_again.get(), runs.calls("put"), runs.uploads()), (0, 0, 0));
    let before = runs.calls("read");
    assert_eq!(read(&runs.bench, "/runs/closed.bin").unwrap(), oracle::content(9, 1, 0, 40 * MIB));
    assert_eq!(runs.calls("read"), before, "it is warm");
}
