//! Contract, sentence 6: what cannot be done is an error within its deadline, with a kind, what it was doing to what,
//! why, and what to do now; and it leaves nothing behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all, select};
use penstock_engine::{Engine, ReadHint};
use penstock_testkit::Fault;
use penstock_types::{ByteRange, Error, ErrorKind, Priority, Result};

use crate::door::read_as_a_door;
use crate::world::{Corpus, KIB, Policy, World, path};

const FILES: &[(&str, u64)] = &[("d/small", 200_000), ("large", 12 * 1024 * KIB), ("other", 3000 * KIB)];

/// A source that answers until it is told to fail.
struct Failing<'a> {
    world: World<'a>,
    fails: Arc<AtomicBool>,
}

impl<'a> Failing<'a> {
    /// Calls fail with what `fault` says of their operation.
    fn new(corpus: &'a Corpus, policy: Policy, fault: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static) -> Self {
        let fails = Arc::new(AtomicBool::new(false));
        let now = Arc::clone(&fails);
        let plan =
            move |call: &penstock_testkit::SourceCall| fault(call.operation).filter(|_| now.load(Ordering::SeqCst));
        Self { world: World::new(corpus, policy, plan), fails }
    }

    fn fail(&self) {
        self.fails.store(true, Ordering::SeqCst);
    }

    /// Nothing is held any more; when the source is well again, so is everything.
    fn recovers(&self, engine: Arc<Engine>) {
        assert!(!self.world.faulty.fired().is_empty(), "nothing failed");
        self.fails.store(false, Ordering::SeqCst);
        self.world.settle();
        for name in self.world.corpus.files.keys() {
            let whole = [ByteRange::new(0, u64::MAX)];
            // A source that asked for patience is asked less often for a while.
            let reading = async {
                while read_as_a_door(self.world.corpus, &engine, name, &whole, ReadHint::Auto).await.is_err() {}
            };
            self.world.answered("everything is read again", reading);
        }
        self.world.settle();
        assert!(engine.attachments()[0].healthy);
        self.world.stop(engine);
    }
}

/// Short, so that many pass in a test; a try is given up after a third of it. Everything fits the cache.
fn impatient() -> Policy {
    Policy { deadline: Duration::from_millis(600), tier_bytes: 32 * 1024 * KIB, ..Policy::default() }
}

fn silent(_: &str) -> Option<Fault> {
    Some(Fault::Hang)
}

/// A caller can act on it: what failed, on what, why, and what to do now.
fn complete<T>(result: Result<T>, kinds: &[ErrorKind], what: &str) -> Error {
    let Err(error) = result else { panic!("{what} succeeded on a source that fails") };
    assert!(kinds.contains(&error.kind()), "{what}: {:?}: {error}", error.kind());
    assert!(error.action().contains("/data"), "{what} does not say what it was doing to what: {error}");
    assert!(!error.reason().is_empty(), "{what} does not say why: {error}");
    assert!(error.advice().is_some_and(|advice| !advice.is_empty()), "{what} does not say what to do: {error}");
    error
}

#[test]
fn contract_6_every_question_to_a_source_that_never_answers_is_a_timeout() {
    let corpus = Corpus::new("silent", FILES);
    let failing = Failing::new(&corpus, impatient(), silent);
    let world = &failing.world;
    let engine = world.start().unwrap();
    failing.fail();
    let (small, below) = (path("d/small"), path("d"));
    let questions: [(&str, LocalBoxFuture<'_, Result<()>>); 8] = [
        ("stat", Box::pin(async { engine.stat(&small).await.map(drop) })),
        ("list", Box::pin(async { engine.list(&below, None, 10).await.map(drop) })),
        ("walk", Box::pin(async { engine.walk(&below, None, 10).await.map(drop) })),
        ("open", Box::pin(async { engine.open(&small, Default::default()).await.map(drop) })),
        ("preload", Box::pin(async { engine.prefetch(&small, Priority::Background).await.map(drop) })),
        ("evict", Box::pin(async { engine.evict(&small).await.map(drop) })),
        ("verify", Box::pin(async { engine.verify(&small).await.map(drop) })),
        ("explain", Box::pin(async { engine.why(&small, false).await.map(drop) })),
    ];
    let (names, questions): (Vec<_>, Vec<_>) = questions.into_iter().unzip();
    let answers = world.answered("every question", join_all(questions));
    for (name, answer) in names.iter().zip(answers) {
        complete(answer, &[ErrorKind::Timeout], name);
    }
    let opened = world.answered("a batch", engine.open_many(&[path("large"), small.clone()], Priority::Foreground));
    for answer in opened {
        complete(answer.map(drop), &[ErrorKind::Timeout], "open of a batch");
    }
    let status = engine.attachments().remove(0);
    assert!(!status.healthy && status.failure.is_some(), "{status:?}");
    failing.recovers(engine);
}

#[test]
fn contract_6_a_body_that_stalls_in_the_middle_is_a_timeout_and_what_came_is_right() {
    let corpus = Corpus::new("stalls", FILES);
    let stalls = |operation: &str| (operation == "read").then_some(Fault::HangBody(0));
    let failing = Failing::new(&corpus, impatient(), stalls);
    let world = &failing.world;
    let engine = world.start().unwrap();
    let large = world.answered("an open", engine.open(&path("large"), Default::default())).unwrap();
    world.answered("the start of it", large.ensure(ByteRange::new(0, 100_000), ReadHint::Random)).unwrap();
    failing.fail();
    let beyond = ByteRange::new(5000 * KIB, 7000 * KIB);
    let late = world.answered("a read that stalls", large.ensure(beyond, ReadHint::Random));
    complete(late.map(drop), &[ErrorKind::Timeout], "read");
    let kept = world.answered("what was there", large.ensure(ByteRange::new(0, 100_000), ReadHint::Random)).unwrap();
    assert!(kept.range.len() >= 100_000);
    let whole = world.answered("an open of a small file", engine.open(&path("d/small"), Default::default()));
    complete(whole.map(drop), &[ErrorKind::Timeout], "open");
    drop(large);
    failing.recovers(engine);
}

#[test]
fn contract_6_readers_that_queue_for_a_dead_source_and_a_full_budget_are_all_answered() {
    let corpus = Corpus::new("queue", FILES);
    // One request takes the whole budget; the others wait for it.
    let policy = Policy { memory_bytes: 1024 * KIB, ..impatient() };
    let failing = Failing::new(&corpus, policy, |operation| (operation == "read").then_some(Fault::Hang));
    let world = &failing.world;
    let engine = world.start().unwrap();
    failing.fail();
    let readers = (0..64u64).map(|n| {
        let (name, at) = (["large", "other"][n as usize % 2], n / 2 % 3 * 900 * KIB);
        let range = [ByteRange::new(at, at + 100_000 * (1 + n % 5))];
        let (corpus, engine) = (&corpus, &engine);
        async move { read_as_a_door(corpus, engine, name, &range, ReadHint::Auto).await }
    });
    let answers = world.answered("every reader", join_all(readers));
    assert_eq!(answers.len(), 64);
    for answer in answers {
        complete(answer, &[ErrorKind::Timeout, ErrorKind::ResourceLimit], "read");
    }
    failing.recovers(engine);
}

#[test]
fn contract_6_a_source_that_refuses_or_fails_at_once_is_told_apart_from_a_silent_one() {
    let kinds = [ErrorKind::Unavailable, ErrorKind::PermissionDenied, ErrorKind::RateLimited];
    let corpus = Corpus::new("refuses", &FILES[..1]);
    for kind in kinds {
        let failing = Failing::new(&corpus, impatient(), move |_| Some(Fault::Fail(kind)));
        let world = &failing.world;
        let engine = world.start().unwrap();
        failing.fail();
        let opened = world.answered("an open", engine.open(&path("d/small"), Default::default()));
        let Err(error) = opened.map(drop) else { panic!("opened on a source that fails") };
        // A source that asks for patience until the deadline has not answered either.
        let expected: &[ErrorKind] =
            if kind == ErrorKind::RateLimited { &[kind, ErrorKind::Timeout] } else { std::slice::from_ref(&kind) };
        assert!(expected.contains(&error.kind()), "{kind:?}: {error}");
        failing.recovers(engine);
    }
}

#[test]
fn contract_6_a_shutdown_in_the_middle_of_a_fetch_answers_who_waits() {
    let corpus = Corpus::new("shutdown", FILES);
    let failing = Failing::new(&corpus, impatient(), |operation| (operation == "read").then_some(Fault::Hang));
    let world = &failing.world;
    let engine = world.start().unwrap();
    failing.fail();
    let read = |name| {
        let engine = Arc::clone(&engine);
        let corpus = &corpus;
        async move { read_as_a_door(corpus, &engine, name, &[ByteRange::new(0, 4000)], ReadHint::Auto).await }
    };
    let shutdown = async {
        while world.faulty.fired().len() < 2 {
            tokio::task::yield_now().await;
        }
        engine.close();
    };
    let (answers, ()) = world
        .answered("who waits", async { futures_util::join!(join_all([read("large"), read("d/small")]), shutdown) });
    for answer in answers {
        complete(answer, &[ErrorKind::Timeout, ErrorKind::Cancelled], "read");
    }
    world.settle();
    world.stop(engine);
    failing.recovers(world.start().unwrap());
}

#[test]
fn contract_6_who_stops_waiting_leaves_nothing_behind() {
    let corpus = Corpus::new("vanishes", FILES);
    let failing = Failing::new(&corpus, impatient(), |operation| (operation == "read").then_some(Fault::Hang));
    let world = &failing.world;
    let engine = world.start().unwrap();
    failing.fail();
    let vanishing = async {
        let whole = [ByteRange::new(0, u64::MAX)];
        let read = std::pin::pin!(read_as_a_door(&corpus, &engine, "large", &whole, ReadHint::Whole));
        let asked = std::pin::pin!(async {
            while world.faulty.fired().is_empty() {
                tokio::task::yield_now().await;
            }
        });
        // The read is dropped as soon as its first request is on its way.
        drop(select(read, asked).await);
    };
    world.answered("the request", vanishing);
    failing.recovers(engine);
}

#[test]
fn contract_6_a_failure_of_what_began_before_a_reader_came_is_not_its_answer() {
    let corpus = Corpus::new("joins", FILES);
    let policy = Policy { attempts: 1, deadline: Duration::from_secs(9), ..impatient() };
    let hung = AtomicBool::new(false);
    let first_hangs = move |call: &penstock_testkit::SourceCall| {
        (call.operation == "read" && !hung.swap(true, Ordering::SeqCst)).then_some(Fault::Hang)
    };
    let world = World::new(&corpus, policy, first_hangs);
    let engine = world.start().unwrap();
    let range = [ByteRange::new(0, 100_000)];
    let first = read_as_a_door(&corpus, &engine, "large", &range, ReadHint::Random);
    let second = async {
        while world.faulty.fired().is_empty() {
            tokio::task::yield_now().await;
        }
        read_as_a_door(&corpus, &engine, "large", &range, ReadHint::Random).await
    };
    let (first, second) = world.answered("both readers", async { futures_util::join!(first, second) });
    complete(first, &[ErrorKind::Timeout], "the read that began the request");
    second.unwrap();
    let reads = world.faulty.calls().iter().filter(|call| call.operation == "read").count();
    assert_eq!(reads, 2, "one that failed, one for who came later");
    world.settle();
    world.stop(engine);
}
