//! The run whose calls are made to fail: what a node does with an engine, in small. Every byte that comes is checked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use penstock_engine::{BatchItem, Engine, ReadHint};
use penstock_types::{ByteRange, ErrorKind, Priority, Result};

use crate::door::read_as_a_door;
use crate::world::{Corpus, KIB, World, path};

/// More than the tier holds, so that some have to leave, and one that it could never hold. Small files are alone in
/// their directories: what is fetched ahead would come at another moment in each run.
const FILES: &[(&str, u64)] = &[
    ("a/empty", 0),
    ("b/small", 1000),
    ("c/small", 70_000),
    ("d/small", 200_000),
    ("many/0", 50_000),
    ("many/1", 65_536),
    ("many/2", 80_000),
    ("sequential", 2400 * KIB + 100),
    ("random", 1500 * KIB + 7),
    ("preloaded", 1100 * KIB),
    ("huge", 5000 * KIB),
];

pub fn corpus(name: &str) -> Corpus {
    Corpus::new(name, FILES)
}

/// Two lives of an engine on one home.
pub fn run(world: &World<'_>) {
    if let Some(engine) = open_engine(world) {
        first_life(world, &engine);
        settle_accounts(world, &engine);
        world.stop(engine);
    }
    if let Some(engine) = open_engine(world) {
        second_life(world, &engine);
        settle_accounts(world, &engine);
        world.stop(engine);
    }
}

/// Without faults everything works, whatever happened before.
pub fn recovers(world: &World<'_>) {
    // A disk that failed is left alone for a while; what was learnt of a source is old.
    world.clock.advance(Duration::from_secs(90));
    let engine = world.start().unwrap();
    assert_eq!(names(world, &engine).unwrap(), expected_names());
    for (name, size) in FILES {
        read(world, &engine, name, &[ByteRange::new(0, *size)], ReadHint::Auto).unwrap();
    }
    world.corpus.runtime.block_on(engine.tick());
    settle_accounts(world, &engine);
    let usage = engine.status().cache;
    assert!(usage.tiers[0].healthy && usage.index_healthy, "{usage:?}");
    assert!(engine.attachments()[0].healthy, "{:?}", engine.attachments()[0]);
    assert!(engine.open_cached(&path("preloaded")).is_some_and(|file| file.is_complete()), "it is cached again");
    world.stop(engine);
}

fn open_engine(world: &World<'_>) -> Option<Arc<Engine>> {
    world.job(world.start())
}

fn first_life(world: &World<'_>, engine: &Arc<Engine>) {
    let runtime = &world.corpus.runtime;
    world.reader(runtime.block_on(engine.list(&path(""), None, 100)).map(drop));
    read_many(world, engine, &["a/empty", "b/small", "c/small"]);
    if let Some(names) = world.reader(names(world, engine)) {
        assert_eq!(names, expected_names());
    }
    match runtime.block_on(engine.stat(&path("a/absent"))) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => assert!(world.reader(other).is_none(), "nothing has that name"),
    }
    for name in ["a/empty", "b/small", "c/small", "d/small"] {
        let whole = ByteRange::new(0, size(name));
        world.reader(read(world, engine, name, &[whole], ReadHint::Auto));
    }
    read_many(world, engine, &["many/0", "many/1", "many/2"]);
    let stretches: Vec<_> = (0..5).map(|n| ByteRange::new(n * 500 * KIB, (n + 1) * 500 * KIB)).collect();
    world.reader(read(world, engine, "sequential", &stretches, ReadHint::Auto));
    world.settle();
    let scattered = [900 * KIB, 300 * KIB + 5, 1400 * KIB].map(|at| ByteRange::new(at, at + 5000));
    world.reader(read(world, engine, "random", &scattered, ReadHint::Random));
    keep_house(world, engine);
    world.reader(read(world, engine, "huge", &[ByteRange::new(3000 * KIB, 3200 * KIB)], ReadHint::Random));
}

/// What jobs, operators and time do.
fn keep_house(world: &World<'_>, engine: &Arc<Engine>) {
    let runtime = &world.corpus.runtime;
    runtime.block_on(engine.tick());
    world.job(runtime.block_on(engine.prefetch(&path("preloaded"), Priority::Background)).map(drop));
    if let Some(verified) = world.job(runtime.block_on(engine.verify(&path("preloaded")))) {
        assert_eq!(verified.bad_pages, verified.repaired);
    }
    world.job(runtime.block_on(engine.evict(&path("d/small"))).map(drop));
    world.reader(runtime.block_on(engine.why(&path("d/small"), false)).map(drop));
    world.clock.advance(Duration::from_secs(20));
    runtime.block_on(engine.tick());
}

fn second_life(world: &World<'_>, engine: &Arc<Engine>) {
    let runtime = &world.corpus.runtime;
    world.reader(read(world, engine, "preloaded", &[ByteRange::new(0, size("preloaded"))], ReadHint::Auto));
    read_many(world, engine, &["c/small", "d/small", "many/2", "many/0"]);
    let scattered = [900 * KIB, 100 * KIB + 5].map(|at| ByteRange::new(at, at + 5000));
    world.reader(read(world, engine, "random", &scattered, ReadHint::Random));
    // Beyond freshness the source is asked again; the cached bytes are still those of the version.
    world.clock.advance(Duration::from_secs(70));
    world.reader(read(world, engine, "b/small", &[ByteRange::new(0, 1000)], ReadHint::Auto));
    world.reader(runtime.block_on(engine.list(&path("many"), None, 2)).map(drop));
    runtime.block_on(engine.tick());
}

fn read(world: &World<'_>, engine: &Arc<Engine>, name: &str, ranges: &[ByteRange], hint: ReadHint) -> Result<()> {
    world.corpus.runtime.block_on(read_as_a_door(world.corpus, engine, name, ranges, hint))
}

fn read_many(world: &World<'_>, engine: &Arc<Engine>, names: &[&str]) {
    let paths: Vec<_> = names.iter().map(|name| path(name)).collect();
    let opened = world.corpus.runtime.block_on(engine.open_many(&paths, Priority::Foreground));
    let opened: Vec<_> =
        names.iter().zip(opened).filter_map(|(name, file)| Some((*name, world.reader(file)?))).collect();
    let (mut at, mut items) = (0, Vec::new());
    for (_, file) in &opened {
        items.push(BatchItem { file, range: ByteRange::new(0, file.size()), at });
        at += file.size() as usize;
    }
    let mut out = vec![0; at];
    let results = engine.read_batch(&items, &mut out);
    for ((item, (name, _)), result) in items.iter().zip(&opened).zip(results) {
        if world.reader(result).is_some() {
            let bytes = &out[item.at..item.at + item.range.len() as usize];
            assert!(bytes == &world.corpus.files[name][..], "wrong bytes of {name}");
        }
    }
}

fn names(world: &World<'_>, engine: &Arc<Engine>) -> Result<BTreeSet<String>> {
    let (mut names, mut after) = (BTreeSet::new(), None);
    loop {
        let page = world.corpus.runtime.block_on(engine.walk(&path(""), after.as_deref(), 4))?;
        names.extend(page.entries.into_iter().map(|entry| entry.name));
        after = page.next;
        if after.is_none() {
            return Ok(names);
        }
    }
}

fn expected_names() -> BTreeSet<String> {
    let directories = ["a", "b", "c", "d", "many"];
    FILES.iter().map(|(name, _)| *name).chain(directories).map(str::to_string).collect()
}

fn size(name: &str) -> u64 {
    FILES.iter().find(|(known, _)| *known == name).unwrap().1
}

/// Nothing is under way or held, and the cache holds what it says.
fn settle_accounts(world: &World<'_>, engine: &Arc<Engine>) {
    world.settle();
    let usage = engine.status().cache.tiers.remove(0);
    assert!(usage.used_bytes <= usage.size_bytes, "{usage:?}");
    assert_eq!(usage.lent_unlinked_bytes, 0, "{usage:?}");
    let charge = |present: u64| present.next_multiple_of(4096).max(4096);
    let charged: u64 = engine.cache_entries(None, 100).iter().map(|entry| charge(entry.present_bytes)).sum();
    assert!(charged <= usage.used_bytes, "{charged} bytes in extents, {} counted", usage.used_bytes);
}
