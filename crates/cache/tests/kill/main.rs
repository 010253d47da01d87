//! A process that fills and evicts is killed at any moment; what it leaves is served right or not at all.
//!
//! A test binary of its own: it starts processes, and between fork and exec these hold the locks of every cache that
//! other tests of the same process close and open again.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests, their support included")]

#[allow(dead_code, reason = "this binary uses a part of it")]
#[path = "../behaviour/support.rs"]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use penstock_cache::{Cache, CacheParts, RealDisk};
use penstock_types::{ByteRange, CacheConfig, Metrics, SystemClock, TierConfig};

use support::{MIB, PAGE, fill, id, read, read_lent};

const HOME: &str = "PENSTOCK_TEST_KILL_HOME";
const ROUND: &str = "PENSTOCK_TEST_KILL_ROUND";
const TIER: u64 = 4 * MIB;
const ROUNDS: u64 = 25;
const OBJECTS: u64 = 60;
/// Objects from here on are flushed before the kill, one in each round, and pinned.
const KEPT: u64 = 1_000;

fn parts(home: &Path) -> CacheParts {
    CacheParts {
        config: CacheConfig {
            tiers: vec![TierConfig { directory: home.join("tier"), size_bytes: TIER }],
            free_space_floor: 0.0,
            scrub_interval_days: 1.0,
            allow_network_filesystem: false,
        },
        state_directory: home.join("state"),
        clock: Arc::new(SystemClock::default()),
        metrics: Metrics::default(),
        disk: Arc::new(RealDisk),
        seed: 1,
    }
}

fn open(parts: CacheParts) -> Arc<Cache> {
    let cache = Cache::open(parts).unwrap();
    cache.set_pins(Arc::new(|object| object.key.as_str().unwrap() >= "objects/00001000"));
    cache
}

fn size_of(object: u64) -> u64 {
    let pages = if object < KEPT { object % 5 + 1 } else { 1 };
    pages * PAGE + object * 13 % 999
}

/// Not a test of its own: the process that `a_killed_process…` starts and kills.
#[test]
fn process_that_is_killed() {
    let (Ok(home), Ok(round)) = (std::env::var(HOME), std::env::var(ROUND)) else { return };
    let (cache, round) = (open(parts(&PathBuf::from(home))), round.parse::<u64>().unwrap());
    fill_missing(&cache, KEPT + round);
    cache.flush().unwrap();
    let steps = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (cache, steps) = (&cache, &steps);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(round * 31 + thread);
                loop {
                    let object = random.u64(0..OBJECTS);
                    match random.u8(0..12) {
                        0 => drop(cache.evict(&id(object))),
                        1 => drop(cache.flush()),
                        2 => cache.make_durable_step(),
                        _ => fill_missing(cache, object),
                    }
                    // The parent counts these lines.
                    let step = steps.fetch_add(1, Ordering::Relaxed);
                    let _ = writeln!(std::io::stdout(), "step {step}");
                }
            });
        }
    });
}

fn fill_missing(cache: &Cache, object: u64) {
    let Ok(extent) = cache.get_or_create(&id(object), size_of(object)) else { return };
    for range in extent.missing(ByteRange::new(0, extent.size())) {
        let _ = fill(&extent, object, range);
    }
}

#[test]
fn a_killed_process_leaves_a_cache_that_serves_right_bytes_and_forgets_no_more_than_the_last_flush() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(20_251_121);
    let mut served = 0;
    for round in 0..ROUNDS {
        kill_one(directory.path(), round, random.u64(1..400));
        let parts = parts(directory.path());
        let metrics = parts.metrics.clone();
        let cache = open(parts);
        let usage = cache.usage();
        assert!(usage.index_healthy && usage.tiers[0].used_bytes <= TIER, "round {round}: {usage:?}");
        for kept in KEPT..=KEPT + round {
            let extent = cache.get(&id(kept)).unwrap_or_else(|| panic!("round {round}: {kept} was flushed"));
            assert!(extent.is_complete(), "round {round}: {kept}");
            read_lent(&extent, kept, ByteRange::new(0, extent.size())).unwrap();
        }
        served += (0..OBJECTS).map(|object| check(&cache, object)).sum::<u64>();
        assert_eq!(metrics.cache_corrupt_pages.get(), 0, "round {round}: no page is bad after a kill");
        if round % 3 == 0 {
            cache.close();
        }
    }
    println!("{ROUNDS} kills, {served} bytes of earlier processes served");
    assert!(served > ROUNDS * MIB / 4);
    assert!(!directory.path().join("state/cache.redb.damaged").exists(), "a kill damages no index");
    let cache = open(parts(directory.path()));
    for _ in 0..8 {
        cache.flush().unwrap();
    }
    let on_disk: u64 = files(directory.path()).iter().map(|file| allocated(file)).sum();
    assert!(on_disk <= TIER + MIB, "leftovers are removed: {on_disk} bytes on disk");
}

/// Starts the process and kills it after so many steps.
fn kill_one(home: &Path, round: u64, steps: u64) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["process_that_is_killed", "--exact", "--nocapture"])
        .env(HOME, home)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen = lines.map_while(|line| line.ok()).filter(|line| line.contains("step")).take(steps as usize).count();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(seen as u64, steps, "the process ended by itself");
}

/// Reads all that is there of an object, both ways; how much that was.
fn check(cache: &Arc<Cache>, object: u64) -> u64 {
    let Some(extent) = cache.get(&id(object)) else { return 0 };
    let mut bytes = 0;
    for page in 0..extent.size().div_ceil(PAGE) {
        let Ok(lease) = extent.lend() else { continue };
        let run = extent.present_run(page * PAGE);
        let run = ByteRange::new(run.start, run.end.min((page + 1) * PAGE));
        if !run.is_empty() {
            read(&extent, object, run).unwrap();
            read_lent(&extent, object, run).unwrap();
            bytes += run.len();
        }
        drop(lease);
    }
    bytes
}

fn files(home: &Path) -> Vec<PathBuf> {
    let list = |path: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(path).map(|names| names.map(|name| name.unwrap().path()).collect()).unwrap_or_default()
    };
    list(&home.join("tier/extents")).iter().flat_map(|directory| list(directory)).collect()
}

fn allocated(file: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(file).map_or(0, |facts| facts.blocks() * 512)
}
