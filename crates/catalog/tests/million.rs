//! A million entries: speed and memory. Alone in its process, so that its memory is its own.

#![allow(clippy::print_stdout, reason = "what was measured is part of the result")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::Instant;

use penstock_types::Freshness;
use support::*;

const MILLION: usize = 1_000_000;

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// What one walk of everything gave.
struct Walked {
    count: usize,
    name_bytes: usize,
    peak_mib: u64,
}

async fn walk_all(bench: &Bench) -> Walked {
    let mut walked = Walked { count: 0, name_bytes: 0, peak_mib: 0 };
    let mut after = None;
    loop {
        let page = bench.view.walk("", after.as_deref(), 4096).await.unwrap();
        walked.count += page.items.len();
        walked.name_bytes += page.items.iter().map(|item| item.name.len()).sum::<usize>();
        walked.peak_mib = walked.peak_mib.max(resident_mib());
        after = page.next;
        if after.is_none() {
            return walked;
        }
    }
}

/// Looks every path up from what is known; how long one takes, microseconds.
fn look_up(bench: &Bench, paths: &[String]) -> f64 {
    let started = Instant::now();
    for path in paths {
        assert!(bench.view.stat_cached(path).unwrap().is_ok());
    }
    started.elapsed().as_secs_f64() * 1e6 / paths.len() as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_known_entries_stream_fast_and_in_little_memory() {
    let source = TestSource::default();
    for n in 0..MILLION {
        source.store(format!("set/d{:03}/image_{:07}.jpeg", n / 10_000, n % 10_000), 110_000);
    }
    let bench = Bench::new(source, Freshness::Seconds(3600.0));
    let before = resident_mib();
    let started = Instant::now();
    let Walked { count, mut peak_mib, .. } = walk_all(&bench).await;
    let requests = bench.source.requests();
    println!("first walk: {count} items, {:?}, {requests} requests, {} MiB more", started.elapsed(), peak_mib - before);
    assert_eq!(count, MILLION + 101);
    assert!(requests <= 1300 + 16);

    let started = Instant::now();
    let walked = walk_all(&bench).await;
    peak_mib = peak_mib.max(walked.peak_mib);
    let rate = walked.count as f64 / started.elapsed().as_secs_f64();
    println!("walk again: {rate:.0} entries/s, {} bytes of names, {} MiB more", walked.name_bytes, peak_mib - before);
    assert_eq!(bench.source.requests(), requests);

    let started = Instant::now();
    let mut listed = 0;
    for d in 0..100 {
        listed += list(&bench.view, &format!("set/d{d:03}"), 4096).await.unwrap().len();
    }
    println!("lists: {:.0} entries/s", listed as f64 / started.elapsed().as_secs_f64());
    assert_eq!(listed, MILLION);

    let paths: Vec<String> = (0..50_000)
        .map(|n| (n * 7919) % MILLION)
        .map(|n| format!("set/d{:03}/image_{:07}.jpeg", n / 10_000, n % 10_000))
        .collect();
    for round in ["first look", "hot"] {
        println!("stat_cached, {round}: {:.2} µs", look_up(&bench, &paths));
    }
    with_changes(&bench, &paths).await;
    assert_eq!(bench.source.requests(), requests);
    let file = std::fs::metadata(bench.directory.path().join("catalog.redb")).unwrap().len();
    println!("file: {} MiB, resident {} MiB more", file >> 20, resident_mib() - before);
    assert!(peak_mib - before <= 100, "{} MiB more", peak_mib - before);
    assert!(rate >= 300_000.0, "{rate:.0} entries/s in an unoptimised build");
}

/// The same while something that was written here is not in the source.
async fn with_changes(bench: &Bench, paths: &[String]) {
    let everywhere: Vec<String> = (0..100).map(|d| format!("set/d{d:03}/image_0005000.new")).collect();
    for (changes, keys) in [("one change", &["a".to_owned()][..]), ("a change in every directory", &everywhere)] {
        keys.iter().for_each(|key| drop(bench.written.put(key, 1, None)));
        let started = Instant::now();
        let count = walk_all(bench).await.count;
        println!("walk with {changes}: {:.0} entries/s", count as f64 / started.elapsed().as_secs_f64());
        println!("stat_cached with {changes}, hot: {:.2} µs", look_up(bench, paths));
        for round in ["first look", "hot"] {
            println!("stat_cached with {changes}, of what was changed, {round}: {:.2} µs", look_up(bench, keys));
        }
    }
    assert_eq!(walk_all(bench).await.count, MILLION + 202);
}
