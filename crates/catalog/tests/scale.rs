//! A million entries: a start after a kill, and a file that does not grow.

#![allow(clippy::print_stdout, reason = "what was measured is part of the result")]

mod support;

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use penstock_catalog::Catalog;
use penstock_types::{Freshness, Metrics};
use support::*;

/// Tells a process of this test where to keep the catalog with which it will be killed.
const KILLED_CATALOG: &str = "PENSTOCK_TEST_KILLED_CATALOG";

const MILLION: usize = 1_000_000;

/// Runs in a process of its own, which the test below kills: keeps a catalog with a million entries and goes on
/// writing until it dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_that_is_killed() {
    let Ok(path) = std::env::var(KILLED_CATALOG) else { return };
    let clock = Arc::new(penstock_types::SystemClock::default());
    let catalog = Catalog::open(Path::new(&path), clock, Metrics::default()).unwrap();
    let source = Arc::new(TestSource::default());
    for n in 0..MILLION {
        source.store(format!("d{:03}/{:07}", n / 10_000, n), 1);
    }
    let view = catalog.view("kept", source.clone(), "".into(), Freshness::Immutable, None);
    assert_eq!(walk(&view, "", 16_384).await.unwrap().len(), MILLION + 100);
    catalog.close();
    println!("durable");
    // Whatever is being written when the signal comes may be lost, and nothing else.
    let other = catalog.view("lost", source, "".into(), Freshness::Seconds(0.0), None);
    loop {
        walk(&other, "d000", 16_384).await.unwrap();
    }
}

/// Bytes that system calls of this thread have read so far.
fn read_by_this_thread() -> u64 {
    let counts = std::fs::read_to_string("/proc/thread-self/io").expect("the kernel counts");
    let read = counts.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok());
    read.expect("what was read is counted")
}

#[tokio::test]
async fn a_catalog_of_a_million_entries_opens_at_once_after_a_kill_and_knows_them_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.redb");
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_is_killed", "--nocapture"])
        .env(KILLED_CATALOG, &path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let durable = lines.map_while(Result::ok).any(|line| line.contains("durable"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(durable, "the process ended before it was killed");

    let (started, before) = (Instant::now(), read_by_this_thread());
    let clock = Arc::new(penstock_types::SystemClock::default());
    let catalog = Catalog::open(&path, clock, Metrics::default()).unwrap();
    let (took, read) = (started.elapsed(), read_by_this_thread() - before);
    let size = std::fs::metadata(&path).unwrap().len();
    println!("open after a kill: {took:?}, {read} of {size} bytes read");
    assert!(read > 0 && read < size / 20, "{read} of {size} bytes were read");
    let source = Arc::new(TestSource::default());
    let view = catalog.view("kept", source.clone(), "".into(), Freshness::Immutable, None);
    assert_eq!(walk(&view, "", 16_384).await.unwrap().len(), MILLION + 100);
    assert_eq!(source.requests(), 0);
}

#[tokio::test]
async fn the_file_does_not_grow_with_every_walk() {
    let keys: Vec<String> = (0..50_000).map(|n| format!("d{:02}/{n:06}", n / 1000)).collect();
    let bench = Bench::new(TestSource::default().with(&keys), Freshness::Seconds(0.0));
    let path = bench.directory.path().join("catalog.redb");
    let mut sizes = Vec::new();
    for _ in 0..12 {
        assert_eq!(walk(&bench.view, "", 16_384).await.unwrap().len(), 50_050);
        bench.catalog.close();
        sizes.push(std::fs::metadata(&path).unwrap().len() >> 10);
    }
    println!("KiB after each walk: {sizes:?}");
    assert!(sizes[11] <= sizes[3] * 3 / 2, "{sizes:?}");
}
