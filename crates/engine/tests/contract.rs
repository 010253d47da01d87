//! The sentences of the contract that reading must hold, by name.

#![allow(clippy::unwrap_used, reason = "these are tests, their support included")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use penstock_engine::{BatchItem, OpenFile, OpenOptions, ReadHint};
use penstock_testkit::oracle;
use penstock_types::{ByteRange, ErrorKind, Freshness, ObjectKey, Priority, Result};
use support::{Bench, MIB, Setup};

/// Reads `range` as a door does: only what is ready, again until all of it came.
async fn read(file: &OpenFile, range: ByteRange) -> Result<Vec<u8>> {
    let mut bytes = vec![0; range.len() as usize];
    let mut at = range.start;
    let mut descriptor = file.descriptor();
    while at < range.end {
        let ready = file.ensure(ByteRange::new(at, range.end), ReadHint::Auto).await?;
        descriptor = ready.descriptor.unwrap_or(descriptor);
        let end = ready.range.end.min(range.end);
        let out = &mut bytes[(at - range.start) as usize..(end - range.start) as usize];
        let got = rustix::io::pread(descriptor.as_fd(), out, at).unwrap();
        assert_eq!(got as u64, end - at, "what is ready is there");
        at = end;
    }
    Ok(bytes)
}

fn open(bench: &Bench, name: &str) -> Result<OpenFile> {
    bench.runtime.block_on(bench.engine.open(&bench.path(name), OpenOptions::default()))
}

#[test]
fn contract_1_every_byte_of_a_handle_belongs_to_its_version_or_the_call_fails() {
    let bench = Bench::start("c1", &Setup::default());
    bench.put("a.bin", 1, 1, 32 * MIB);
    let file = open(&bench, "a.bin").unwrap();
    let head = ByteRange::new(4 * MIB, 4 * MIB + 4096);
    let bytes = bench.runtime.block_on(read(&file, head)).unwrap();
    oracle::check(1, 1, head.start, &bytes).unwrap();

    bench.put("a.bin", 1, 2, 32 * MIB);

    let again = bench.runtime.block_on(read(&file, head)).unwrap();
    oracle::check(1, 1, head.start, &again).unwrap();
    let beyond = bench.runtime.block_on(read(&file, ByteRange::new(24 * MIB, 24 * MIB + 100)));
    assert_eq!(beyond.unwrap_err().kind(), ErrorKind::StaleVersion);
    let reopened = open(&bench, "a.bin").unwrap();
    let new = bench.runtime.block_on(read(&reopened, ByteRange::new(0, 32 * MIB))).unwrap();
    oracle::check(1, 2, 0, &new).unwrap();
}

#[test]
fn contract_1_a_version_gone_before_a_byte_was_delivered_is_resolved_again() {
    let bench = Bench::start("c1b", &Setup::default());
    bench.put("a.bin", 1, 1, 100_000);
    bench.runtime.block_on(bench.engine.stat(&bench.path("a.bin"))).unwrap();
    bench.put("a.bin", 1, 2, 200_000);
    let file = open(&bench, "a.bin").unwrap();
    assert_eq!(file.size(), 200_000);
    let bytes = bench.runtime.block_on(read(&file, ByteRange::new(0, 200_000))).unwrap();
    oracle::check(1, 2, 0, &bytes).unwrap();
}

#[test]
fn contract_1_a_deleted_object_is_served_from_the_cache_or_stale_never_zeros() {
    let bench = Bench::start("c1c", &Setup::default());
    bench.put("small.bin", 1, 1, 500_000);
    bench.put("large.bin", 2, 1, 32 * MIB);
    let (small, large) = (open(&bench, "small.bin").unwrap(), open(&bench, "large.bin").unwrap());
    for key in ["small.bin", "large.bin"] {
        bench.runtime.block_on(bench.outside.delete(&ObjectKey::from(key), None)).unwrap();
    }
    let bytes = bench.runtime.block_on(read(&small, ByteRange::new(0, 500_000))).unwrap();
    oracle::check(1, 1, 0, &bytes).unwrap();
    let gone = bench.runtime.block_on(read(&large, ByteRange::new(MIB, 2 * MIB)));
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::StaleVersion);
}

#[test]
fn contract_3_outside_changes_are_seen_by_opens_after_at_most_freshness() {
    let bench = Bench::start("c3", &Setup::default());
    bench.put("a.bin", 1, 1, 10_000);
    assert_eq!(open(&bench, "a.bin").unwrap().size(), 10_000);
    bench.put("a.bin", 1, 2, 20_000);
    bench.clock.advance(Duration::from_secs(59));
    assert_eq!(open(&bench, "a.bin").unwrap().size(), 10_000, "within freshness the cached version may be served");
    bench.clock.advance(Duration::from_secs(2));
    assert_eq!(open(&bench, "a.bin").unwrap().size(), 20_000);
}

#[test]
fn contract_3_freshness_zero_asks_at_every_open_and_immutable_never_does() {
    let always = Bench::start("c3z", &Setup { freshness: Freshness::Seconds(0.0), ..Setup::default() });
    always.put("a.bin", 1, 1, 10_000);
    assert_eq!(open(&always, "a.bin").unwrap().size(), 10_000);
    always.put("a.bin", 1, 2, 20_000);
    assert_eq!(open(&always, "a.bin").unwrap().size(), 20_000);

    let never = Bench::start("c3i", &Setup { freshness: Freshness::Immutable, ..Setup::default() });
    never.put("a.bin", 1, 1, 10_000);
    assert_eq!(open(&never, "a.bin").unwrap().size(), 10_000);
    never.put("a.bin", 1, 2, 20_000);
    never.clock.advance(Duration::from_secs(1_000_000));
    let before = never.metrics.source_requests.get();
    assert_eq!(open(&never, "a.bin").unwrap().size(), 10_000);
    assert_eq!(never.metrics.source_requests.get(), before);
}

#[test]
fn a_warm_open_makes_no_request_and_is_complete() {
    let bench = Bench::start("warm", &Setup::default());
    bench.put("a.bin", 1, 1, 112 * 1024);
    open(&bench, "a.bin").unwrap();
    let before = bench.metrics.source_requests.get();
    let file = bench.engine.open_cached(&bench.path("a.bin")).expect("it is cached and fresh");
    assert!(file.is_complete());
    assert_eq!(bench.metrics.source_requests.get(), before);
    assert_eq!(bench.metrics.open_hits.get(), 1);
}

#[test]
fn many_readers_of_one_range_share_one_request() {
    let bench = Bench::start("flight", &Setup::default());
    bench.put("a.bin", 1, 1, 64 * MIB);
    let files: Vec<_> = (0..16).map(|_| open(&bench, "a.bin").unwrap()).collect();
    let before = bench.metrics.source_read_requests.get();
    let range = ByteRange::new(40 * MIB, 40 * MIB + 1000);
    let all = files.iter().map(|file| read(file, range));
    for bytes in bench.runtime.block_on(futures_util::future::join_all(all)) {
        oracle::check(1, 1, range.start, &bytes.unwrap()).unwrap();
    }
    assert_eq!(bench.metrics.source_read_requests.get() - before, 1);
}

#[test]
fn a_job_beside_somebody_who_waits_brings_whole_files_all_the_same() {
    let bench = Bench::start("courtesy", &Setup::default());
    bench.put("job.bin", 3, 1, 9 * MIB + 5);
    bench.put("read.bin", 4, 1, 64 * MIB);
    let reader = open(&bench, "read.bin").unwrap();
    let brought = bench.runtime.block_on(async {
        // Who waited a moment ago counts as who waits.
        read(&reader, ByteRange::new(0, 1000)).await.unwrap();
        bench.engine.prefetch(&bench.path("job.bin"), Priority::Background).await.unwrap()
    });
    assert_eq!((brought.size, brought.fetched_bytes), (9 * MIB + 5, 9 * MIB + 5));
    let file = open(&bench, "job.bin").unwrap();
    assert!(file.is_complete());
    let bytes = bench.runtime.block_on(read(&file, ByteRange::new(0, file.size()))).unwrap();
    oracle::check(3, 1, 0, &bytes).unwrap();
}

#[test]
fn what_is_to_be_attached_is_named_by_the_first_name_of_a_path() {
    let bench = Bench::start("advice", &Setup::default());
    let path = penstock_types::TreePath::parse("/nowhere/deep/file").unwrap();
    let error = bench.runtime.block_on(bench.engine.open(&path, OpenOptions::default())).err().unwrap();
    assert_eq!(error.advice(), Some("penstock attach s3://bucket/prefix /nowhere"));
}

#[test]
fn random_reads_take_at_most_the_touched_pages_rounded_to_128_kib() {
    let bench = Bench::start("random", &Setup::default());
    bench.put("a.bin", 1, 1, 256 * MIB);
    let file = open(&bench, "a.bin").unwrap();
    let before = bench.metrics.source_bytes.get();
    let offsets: Vec<u64> = (1..20).map(|n| (n * 97_003_117) % (255 * MIB)).collect();
    for &offset in &offsets {
        let bytes = bench.runtime.block_on(read(&file, ByteRange::new(offset, offset + 65_536))).unwrap();
        oracle::check(1, 1, offset, &bytes).unwrap();
    }
    let taken = bench.metrics.source_bytes.get() - before;
    assert!(taken <= offsets.len() as u64 * 4 * 65_536, "{taken} bytes for {} reads", offsets.len());
}

#[test]
fn an_object_larger_than_the_cache_is_read_right_through_bounded_memory() {
    let setup = Setup { cache_bytes: 8 * MIB, memory_bytes: 32 * MIB, ..Setup::default() };
    let bench = Bench::start("scratch", &setup);
    bench.put("a.bin", 1, 1, 96 * MIB);
    let file = open(&bench, "a.bin").unwrap();
    let mut at = 0;
    while at < 96 * MIB {
        let range = ByteRange::new(at, at + MIB);
        oracle::check(1, 1, at, &bench.runtime.block_on(read(&file, range)).unwrap()).unwrap();
        assert!(bench.metrics.memory_used_bytes.get() as u64 <= setup.memory_bytes);
        at = range.end;
    }
    assert!(bench.metrics.uncached_bytes.get() >= 96 * MIB);
    drop(file);
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while bench.metrics.memory_used_bytes.get() != 0 {
        assert!(std::time::Instant::now() < deadline, "memory is given back when the file is closed");
        std::thread::yield_now();
    }
}

#[test]
fn readers_of_one_handle_that_meet_a_full_cache_at_the_same_moment_are_all_served() {
    let setup = Setup { cache_bytes: 8 * MIB, memory_bytes: 128 * MIB, ..Setup::default() };
    let bench = Bench::start("full", &setup);
    (0..6).for_each(|number| bench.put(&format!("held/{number}"), number, 1, MIB));
    let held: Vec<_> = (0..6).map(|number| open(&bench, &format!("held/{number}")).unwrap()).collect();
    (0..8).for_each(|number| bench.put(&format!("{number}"), number, 2, 4 * MIB));
    for number in 0..8 {
        let file = Arc::new(open(&bench, &format!("{number}")).unwrap());
        let ready = (0..16).map(|_| {
            let file = Arc::clone(&file);
            // Tasks of their own, so that they really meet.
            bench.runtime.spawn(async move { file.ensure(ByteRange::new(0, 4 * MIB), ReadHint::Whole).await })
        });
        for answer in bench.runtime.block_on(futures_util::future::join_all(ready)) {
            // Who came after the change asks for nothing new.
            let descriptor = answer.unwrap().unwrap().descriptor.unwrap_or_else(|| file.descriptor());
            let mut bytes = vec![0; 4096];
            rustix::io::pread(descriptor.as_fd(), &mut bytes[..], 0).unwrap();
            oracle::check(number, 2, 0, &bytes).unwrap();
        }
    }
    assert!(bench.metrics.uncached_bytes.get() >= 8 * MIB, "no reader met a full cache");
    assert!(held.iter().all(OpenFile::is_complete));
}

#[test]
fn a_batch_reads_cached_missing_and_absent_files_in_one_call() {
    let bench = Bench::start("batch", &Setup::default());
    for n in 0..40 {
        bench.put(&format!("f{n:02}"), n, 1, 50_000 + n * 1000);
    }
    let warm: Vec<_> = (0..20).map(|n| bench.path(&format!("f{n:02}"))).collect();
    bench.runtime.block_on(bench.engine.open_many(&warm, Priority::Foreground));
    let mut paths: Vec<_> = (0..40).map(|n| bench.path(&format!("f{n:02}"))).collect();
    paths.push(bench.path("absent"));
    let opened = bench.runtime.block_on(bench.engine.open_many(&paths, Priority::Foreground));
    assert_eq!(opened[40].as_ref().err().unwrap().kind(), ErrorKind::NotFound);
    let files: Vec<_> = opened.into_iter().take(40).map(Result::unwrap).collect();
    let total: u64 = files.iter().map(OpenFile::size).sum();
    let (mut at, mut items) = (0, Vec::new());
    for file in &files {
        items.push(BatchItem { file, range: ByteRange::new(0, file.size()), at });
        at += file.size() as usize;
    }
    let mut out = vec![0; total as usize];
    for result in bench.engine.read_batch(&items, &mut out) {
        result.unwrap();
    }
    for (n, item) in items.iter().enumerate() {
        oracle::check(n as u64, 1, 0, &out[item.at..item.at + item.range.len() as usize]).unwrap();
    }
}

#[test]
fn a_page_flipped_on_the_cache_disk_is_fetched_again_and_never_served() {
    let bench = Bench::start("flip", &Setup::default());
    bench.put("a.bin", 1, 1, 300_000);
    let file = open(&bench, "a.bin").unwrap();
    let extent = std::fs::read_dir(bench.home.path().join("cache/extents")).unwrap();
    let directory = extent.map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let victim = std::fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
    let mut damaged = std::fs::read(&victim).unwrap();
    damaged[70_000] ^= 0x10;
    let mut permissions = std::fs::metadata(&victim).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    std::fs::set_permissions(&victim, permissions).unwrap();
    let writer = std::fs::OpenOptions::new().write(true).open(&victim).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&writer, &damaged, 0).unwrap();

    let mut out = vec![0; 300_000];
    let items = [BatchItem { file: &file, range: ByteRange::new(0, 300_000), at: 0 }];
    for result in bench.engine.read_batch(&items, &mut out) {
        result.unwrap();
    }
    oracle::check(1, 1, 0, &out).unwrap();
    assert_eq!(bench.metrics.cache_corrupt_pages.get(), 1);
}

#[test]
fn small_files_read_in_listing_order_are_there_before_they_are_opened() {
    let bench = Bench::start("ahead", &Setup::default());
    for n in 0..200 {
        bench.put(&format!("f{n:03}"), n, 1, 10_000);
    }
    bench.runtime.block_on(bench.engine.list(&bench.path(""), None, 1000)).unwrap();
    for n in 0..200 {
        let file = open(&bench, &format!("f{n:03}")).unwrap();
        oracle::check(n, 1, 0, &bench.runtime.block_on(read(&file, ByteRange::new(0, 10_000))).unwrap()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        // Give the guesses time to land, as a reader that uses its bytes does.
        while n == 20 && bench.metrics.prefetched_files.get() < 16 {
            assert!(std::time::Instant::now() < deadline, "the next files are fetched ahead");
            std::thread::yield_now();
        }
    }
    assert!(bench.metrics.open_hits.get() >= 100, "{} of 200 opens hit", bench.metrics.open_hits.get());
    assert_eq!(bench.metrics.source_read_requests.get(), 200, "nothing is fetched twice");
}

#[test]
fn nested_attachments_and_the_directories_above_them_are_one_tree() {
    let bench = Bench::start("tree", &Setup::default());
    bench.put("x/a", 1, 1, 10);
    let inner = penstock_types::SourceSpec::Memory { name: format!("inner-{}", bench.home.path().display()) };
    let attach =
        |path: &str| bench.engine.attach(support::attachment(path, inner.clone(), Freshness::Seconds(60.0)), true);
    bench.runtime.block_on(attach("/data/x/nested")).unwrap();
    bench.runtime.block_on(attach("/far/away")).unwrap();
    let names = |path: &str| -> Vec<String> {
        let path = penstock_types::TreePath::parse(path).unwrap();
        let page = bench.runtime.block_on(bench.engine.list(&path, None, 100)).unwrap();
        page.entries.into_iter().map(|entry| entry.name).collect()
    };
    assert_eq!(names("/"), ["data", "far"]);
    assert_eq!(names("/far"), ["away"]);
    assert_eq!(names("/data/x"), ["nested", "a"]);
    let mut walked = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let root = penstock_types::TreePath::root();
        let page = bench.runtime.block_on(bench.engine.walk(&root, after.as_deref(), 2)).unwrap();
        walked.extend(page.entries.into_iter().map(|entry| entry.name));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(walked, ["data", "data/x", "data/x/a", "data/x/nested", "far", "far/away"]);
    let nested_below = bench.engine.detach(&bench.path(""));
    assert_eq!(nested_below.unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn a_restarted_engine_serves_what_was_cached_without_fetching_it_again() {
    let bench = Bench::start("restart", &Setup::default());
    bench.put("a.bin", 1, 1, 700_000);
    drop(open(&bench, "a.bin").unwrap());
    bench.engine.close();
    let Bench { engine, metrics, clock, runtime, config, home, .. } = bench;
    let spec = engine.attachments().remove(0).spec;
    drop(engine);
    let fetched = metrics.source_bytes.get();

    let again = support::engine(&config, &metrics, &clock, &runtime);
    runtime.block_on(again.attach(spec, false)).unwrap();
    let path = penstock_types::TreePath::parse("/data/a.bin").unwrap();
    let file = runtime.block_on(again.open(&path, OpenOptions::default())).unwrap();
    let bytes = runtime.block_on(read(&file, ByteRange::new(0, 700_000))).unwrap();
    oracle::check(1, 1, 0, &bytes).unwrap();
    assert_eq!(metrics.source_bytes.get(), fetched);
    drop(home);
}

#[test]
fn a_verify_counts_and_repairs_a_file_that_was_cut_on_the_cache_disk() {
    let bench = Bench::start("cut", &Setup::default());
    bench.put("a.bin", 1, 1, 3 * MIB);
    let file = open(&bench, "a.bin").unwrap();
    bench.runtime.block_on(read(&file, ByteRange::new(0, 3 * MIB))).unwrap();
    drop(file);
    let mut directories = vec![bench.home.path().join("cache")];
    let mut cut = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let (path, facts) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
            if facts.is_dir() {
                directories.push(path);
            } else if facts.len() == 3 * MIB {
                let mut rights = facts.permissions();
                std::os::unix::fs::PermissionsExt::set_mode(&mut rights, 0o600);
                std::fs::set_permissions(&path, rights).unwrap();
                std::fs::File::options().write(true).open(&path).unwrap().set_len(100_000).unwrap();
                cut += 1;
            }
        }
    }
    assert_eq!(cut, 1);
    let verified = bench.runtime.block_on(bench.engine.verify(&bench.path("a.bin"))).unwrap();
    assert_eq!((verified.bad_pages, verified.repaired), (48, 48));
    let before = bench.metrics.source_read_requests.get();
    let again = open(&bench, "a.bin").unwrap();
    let bytes = bench.runtime.block_on(read(&again, ByteRange::new(0, 3 * MIB))).unwrap();
    oracle::check(1, 1, 0, &bytes).unwrap();
    assert_eq!(bench.metrics.source_read_requests.get(), before);
}

#[test]
fn one_pass_over_more_than_the_cache_holds_leaves_in_it_what_is_read_again_and_again() {
    const SIZE: u64 = 64 * 1024;
    for (name, step) in [("scan-in-order", 1), ("scan-in-no-order", 97)] {
        let bench = Bench::start(name, &Setup { cache_bytes: 8 * MIB, ..Setup::default() });
        let names = |kind: &str, count: u64| (0..count).map(|number| format!("{kind}/{number:04}")).collect::<Vec<_>>();
        let (hot, once) = (names("hot", 32), names("once", 401));
        for (number, each) in hot.iter().chain(&once).enumerate() {
            bench.put(each, number as u64, 1, SIZE);
        }
        let read_many = |names: &[String]| {
            let paths: Vec<_> = names.iter().map(|name| bench.path(name)).collect();
            let opened = bench.runtime.block_on(bench.engine.open_many(&paths, Priority::Foreground));
            let mut out = vec![0; paths.len() * SIZE as usize];
            let items: Vec<_> = opened.iter().map(|file| file.as_ref().unwrap()).enumerate().collect();
            let items: Vec<_> = items
                .into_iter()
                .map(|(at, file)| BatchItem { file, range: ByteRange::new(0, SIZE), at: at * SIZE as usize })
                .collect();
            bench.engine.read_batch(&items, &mut out).into_iter().for_each(|read| read.unwrap());
        };
        (0..4).for_each(|_| read_many(&hot));
        let is_cached =
            |name: &String| bench.runtime.block_on(bench.engine.why(&bench.path(name), false)).unwrap().complete;
        let shuffled: Vec<String> = (0..once.len()).map(|at| once[at * step % once.len()].clone()).collect();
        shuffled.chunks(20).for_each(read_many);
        // Nothing is brought ahead any more.
        let settled = || bench.metrics.source_in_flight.get() == 0 && bench.metrics.memory_used_bytes.get() == 0;
        while !settled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let left = hot.iter().filter(|name| is_cached(name)).count();
        assert!(left >= 30, "{name}: {left} of 32 files that are read again and again are left");
        let fetched = bench.metrics.source_bytes.get();
        let needed = (hot.len() + once.len()) as u64 * SIZE;
        assert!(fetched <= needed + 5 * MIB, "{name}: {fetched} bytes came for {needed}");
    }
}
