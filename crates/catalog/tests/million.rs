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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_known_entries_stream_fast_and_in_little_memory() {
    let source = TestSource::default();
    for n in 0..MILLION {
        source.store(format!("set/d{:03}/image_{:07}.jpeg", n / 10_000, n % 10_000), 110_000);
    }
    let bench = Bench::new(source, Freshness::Seconds(3600.0));
    let before = resident_mib();
    let started = Instant::now();
    let mut count = 0;
    let mut after = None;
    let mut peak = 0;
    loop {
        let page = bench.view.walk("", after.as_deref(), 4096).await.unwrap();
        count += page.items.len();
        peak = peak.max(resident_mib());
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let requests = bench.source.requests();
    println!("first walk: {count} items, {:?}, {requests} requests, {} MiB more", started.elapsed(), peak - before);
    assert_eq!(count, MILLION + 101);
    assert!(requests <= 1300 + 16);

    let started = Instant::now();
    let (mut count, mut after, mut bytes) = (0, None, 0);
    loop {
        let page = bench.view.walk("", after.as_deref(), 4096).await.unwrap();
        count += page.items.len();
        bytes += page.items.iter().map(|item| item.name.len()).sum::<usize>();
        peak = peak.max(resident_mib());
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    println!("walk again: {rate:.0} entries/s, {bytes} bytes of names, {} MiB more", peak - before);
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
        let started = Instant::now();
        for path in &paths {
            assert!(bench.view.stat_cached(path).unwrap().is_ok());
        }
        println!("stat_cached, {round}: {:.2} µs", started.elapsed().as_secs_f64() * 1e6 / paths.len() as f64);
    }
    assert_eq!(bench.source.requests(), requests);
    let file = std::fs::metadata(bench.directory.path().join("catalog.redb")).unwrap().len();
    println!("file: {} MiB, resident {} MiB more", file >> 20, resident_mib() - before);
    assert!(peak - before <= 100, "{} MiB more", peak - before);
    assert!(rate >= 300_000.0, "{rate:.0} entries/s in an unoptimised build");
}
