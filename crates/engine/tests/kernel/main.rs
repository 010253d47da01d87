//! The tree as a kernel mount sees it, asked without a kernel.

#![allow(clippy::unwrap_used, reason = "these are tests, their support included")]

mod directories;
mod elsewhere;
mod expiry;
mod mount;
mod posix;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "../support/mod.rs"]
mod support;
mod writing;

use std::os::fd::AsFd;
use std::time::Duration;

use mount::Mount;
use penstock_testkit::oracle;
use penstock_types::{Answer, ErrorKind, Freshness, NodeId, OpenedNode, TreePath};
use support::{Bench, MIB, Setup};

fn lent_bytes(opened: &OpenedNode, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    let read = rustix::io::pread(opened.lent.as_ref().unwrap().as_fd(), &mut bytes[..], 0).unwrap();
    assert_eq!(read as u64, size);
    bytes
}

#[test]
fn a_small_file_is_lent_from_its_first_open_on_and_asks_the_source_once() {
    let bench = Bench::start("small", &Setup::default());
    bench.put("d/a.bin", 1, 1, 100_000);
    let mount = Mount::of(bench, "/data", true);
    let directory = mount.found(NodeId::ROOT, "d");
    assert!(directory.is_directory);
    let looked = mount.look(directory.node, "a.bin");
    assert!(looked.name_valid <= Duration::from_secs(60) && looked.name_valid > Duration::from_secs(50));
    let file = looked.found.unwrap();
    assert_eq!((file.is_directory, file.size), (false, 100_000));
    let opened = mount.open(file.node).unwrap();
    oracle::check(1, 1, 0, &lent_bytes(&opened, 100_000)).unwrap();
    let reads = mount.bench.metrics.source_read_requests.get();
    assert!(matches!(mount.tree.open(file.node), Answer::Now(Ok(_))), "a cached file is opened without waiting");
    assert_eq!(mount.bench.metrics.source_read_requests.get(), reads);
}

#[test]
fn a_new_version_is_a_new_node_and_the_old_one_keeps_its_bytes_or_says_stale() {
    let bench = Bench::start("versions", &Setup { freshness: Freshness::Seconds(0.0), ..Setup::default() });
    bench.put("a.bin", 1, 1, 100_000);
    let mount = Mount::of(bench, "/data", true);
    let first = mount.look(NodeId::ROOT, "a.bin");
    assert_eq!(first.name_valid, Duration::ZERO, "nothing is believed");
    let first = first.found.unwrap();
    let opened = mount.open(first.node).unwrap();
    mount.bench.put("a.bin", 1, 2, 50_000);
    oracle::check(1, 1, 0, &lent_bytes(&opened, 100_000)).unwrap();
    let second = mount.found(NodeId::ROOT, "a.bin");
    assert_ne!(first.node, second.node);
    assert_eq!(second.size, 50_000);
    oracle::check(1, 2, 0, &lent_bytes(&mount.open(second.node).unwrap(), 50_000)).unwrap();
    assert_eq!(mount.wait(mount.tree.attributes(first.node)).unwrap().found.unwrap().size, 100_000);
}

#[test]
fn a_version_that_is_gone_at_its_open_is_stale_once_and_the_next_lookup_finds_the_new_one_cached() {
    let bench = Bench::start("gone", &Setup::default());
    bench.put("a.bin", 1, 1, 100_000);
    let mount = Mount::of(bench, "/data", true);
    let first = mount.found(NodeId::ROOT, "a.bin");
    mount.bench.put("a.bin", 1, 2, 100_000);
    assert_eq!(mount.open(first.node).err().unwrap().kind(), ErrorKind::StaleVersion);
    let second = mount.found(NodeId::ROOT, "a.bin");
    assert_ne!(first.node, second.node);
    let Answer::Now(opened) = mount.tree.open(second.node) else { panic!("it was fetched by the open before") };
    oracle::check(1, 2, 0, &lent_bytes(&opened.unwrap(), 100_000)).unwrap();
}

#[test]
fn a_large_file_is_served_until_it_is_complete_and_then_is_another_node_that_is_lent() {
    let bench = Bench::start("large", &Setup::default());
    bench.put("a.bin", 1, 1, 5 * MIB + 17);
    let mount = Mount::of(bench, "/data", true);
    let served = mount.found(NodeId::ROOT, "a.bin");
    let opened = mount.open(served.node).unwrap();
    assert!(opened.lent.is_none() && opened.keep_pages);
    let mut at = 0;
    while at < served.size {
        let bytes = mount.read(&opened.file, at, 128 * 1024).unwrap();
        oracle::check(1, 1, at, &bytes).unwrap();
        at += bytes.len() as u64;
    }
    assert_eq!(mount.read(&opened.file, served.size, 4096).unwrap(), b"");
    assert_eq!(mount.open(served.node).err().unwrap().kind(), ErrorKind::StaleVersion);
    let lent = mount.found(NodeId::ROOT, "a.bin");
    assert_ne!(served.node, lent.node);
    oracle::check(1, 1, 0, &lent_bytes(&mount.open(lent.node).unwrap(), lent.size)).unwrap();
    oracle::check(1, 1, 3, &mount.read(&opened.file, 3, 1000).unwrap()).unwrap();
}

#[test]
fn a_kernel_that_cannot_read_lent_files_keeps_pages_of_one_node_per_version() {
    let bench = Bench::start("kept", &Setup::default());
    bench.put("a.bin", 1, 1, 100_000);
    bench.put("b.bin", 2, 1, 3 * MIB);
    let mount = Mount::of(bench, "/data", false);
    for (name, object, size) in [("a.bin", 1, 100_000), ("b.bin", 2, 3 * MIB)] {
        let node = mount.found(NodeId::ROOT, name).node;
        for _ in 0..2 {
            let opened = mount.open(node).unwrap();
            assert!(opened.lent.is_none() && opened.keep_pages);
            oracle::check(object, 1, 0, &mount.read(&opened.file, 0, size as usize).unwrap()).unwrap();
        }
        assert_eq!(mount.found(NodeId::ROOT, name).node, node);
    }
}

#[test]
fn a_file_that_cannot_be_cached_is_read_by_many_at_once_and_never_as_zeros() {
    let setup = Setup { cache_bytes: MIB, memory_bytes: 16 * MIB, ..Setup::default() };
    let bench = Bench::start("uncached", &setup);
    bench.put("a.bin", 1, 1, 24 * MIB);
    let mount = Mount::of(bench, "/data", true);
    let opened = mount.open(mount.found(NodeId::ROOT, "a.bin").node).unwrap();
    std::thread::scope(|scope| {
        for reader in 0..6u64 {
            let (mount, file) = (&mount, &opened.file);
            scope.spawn(move || {
                for step in 0..40 {
                    let at = (reader * 7 + step * 5) % 47 * MIB / 2;
                    let bytes = mount.read(file, at, 300_000).unwrap();
                    oracle::check(1, 1, at, &bytes).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_file_that_cannot_be_cached_is_fetched_once_though_its_reads_come_out_of_order() {
    let setup = Setup { cache_bytes: MIB, memory_bytes: 256 * MIB, ..Setup::default() };
    for lending in [true, false] {
        let bench = Bench::start(&format!("once-{lending}"), &setup);
        bench.put("a.bin", 1, 1, 64 * MIB);
        let mount = Mount::of(bench, "/data", lending);
        let opened = mount.open(mount.found(NodeId::ROOT, "a.bin").node).unwrap();
        let pieces: Vec<u64> = (0..64 * MIB).step_by(512 * 1024).collect();
        // As a kernel that reads ahead: several at once, the later ones first, and the edges twice.
        for group in pieces.chunks(4) {
            std::thread::scope(|scope| {
                for &at in group.iter().rev() {
                    let (mount, file) = (&mount, &opened.file);
                    scope.spawn(move || {
                        let at = at.saturating_sub(4096);
                        let bytes = mount.read(file, at, 512 * 1024 + 4096).unwrap();
                        oracle::check(1, 1, at, &bytes).unwrap();
                    });
                }
            });
        }
        let fetched = mount.bench.metrics.source_bytes.get();
        assert!(fetched <= 70 * MIB, "{fetched} bytes of {}", 64 * MIB);
        assert!(mount.bench.metrics.uncached_bytes.get() > MIB);
    }
}

#[test]
fn a_file_that_cannot_be_cached_is_wanted_back_once_nobody_reads_it() {
    let bench = Bench::start("idle", &Setup { cache_bytes: MIB, ..Setup::default() });
    bench.put("a.bin", 1, 1, 8 * MIB);
    let mount = Mount::of(bench, "/data", true);
    let opened = mount.open(mount.found(NodeId::ROOT, "a.bin").node).unwrap();
    for at in [0, MIB] {
        mount.bench.clock.advance(Duration::from_secs(1));
        mount.read(&opened.file, at, 4096).unwrap();
        assert!(!opened.file.is_evicted(), "somebody reads it");
    }
    mount.bench.clock.advance(Duration::from_secs(3));
    assert!(opened.file.is_evicted());
}

#[test]
fn readers_that_meet_a_full_cache_at_the_same_moment_all_go_on_without_it() {
    let setup = Setup { cache_bytes: 8 * MIB, memory_bytes: 128 * MIB, ..Setup::default() };
    let bench = Bench::start("meet", &setup);
    (0..6).for_each(|number| bench.put(&format!("held/{number}"), number, 1, MIB));
    (0..8).for_each(|number| bench.put(&format!("{number}"), number, 2, 4 * MIB));
    let mount = Mount::of(bench, "/data", true);
    let held = mount.found(NodeId::ROOT, "held").node;
    let held: Vec<_> = (0..6).map(|number| mount.open(mount.found(held, &number.to_string()).node).unwrap()).collect();
    for number in 0..8u64 {
        let opened = mount.open(mount.found(NodeId::ROOT, &number.to_string()).node).unwrap();
        let start = std::sync::Barrier::new(16);
        std::thread::scope(|scope| {
            for reader in 0..16u64 {
                let (mount, file, start) = (&mount, &opened.file, &start);
                scope.spawn(move || {
                    start.wait();
                    let at = reader * MIB / 4;
                    let bytes = mount.read(file, at, 256 * 1024).unwrap();
                    oracle::check(number, 2, at, &bytes).unwrap();
                });
            }
        });
    }
    assert!(mount.bench.metrics.uncached_bytes.get() > 8 * MIB, "no reader met a full cache");
    assert!(held.iter().all(|opened| opened.lent.is_some()));
}

#[test]
fn what_is_absent_is_believed_no_longer_than_the_freshness() {
    let mount = Mount::of(Bench::start("absent", &Setup::default()), "/data", true);
    let looked = mount.look(NodeId::ROOT, "none");
    assert!(looked.found.is_none() && looked.name_valid <= Duration::from_secs(60));
    mount.bench.put("none", 1, 1, 10);
    mount.bench.clock.advance(Duration::from_secs(61));
    assert_eq!(mount.found(NodeId::ROOT, "none").size, 10);
}

#[test]
fn listed_names_are_the_nodes_that_a_lookup_finds_and_count_when_they_are_handed_over() {
    let bench = Bench::start("listed", &Setup::default());
    for number in 0..2500 {
        bench.put(&format!("d/{number:05}"), number, 1, 10 + number);
    }
    let mount = Mount::of(bench, "/", true);
    let data = mount.found(NodeId::ROOT, "data");
    let directory = mount.found(data.node, "d").node;
    assert!(!mount.wait(mount.tree.open_directory(directory)).unwrap(), "nothing is kept of it yet");
    let names = mount.names(directory);
    assert_eq!(names.len(), 2500);
    names.iter().for_each(|entry| mount.tree.remember(entry));
    let requests = mount.bench.metrics.source_requests.get();
    for (number, entry) in names.iter().enumerate().step_by(100) {
        let found = entry.looked.found.unwrap();
        assert_eq!((&*entry.name, found.size), (&*format!("{number:05}"), 10 + number as u64));
        assert_eq!(mount.found(directory, &entry.name), found);
        mount.tree.forget(found.node, 1);
        mount.wait(mount.tree.attributes(found.node)).unwrap();
        mount.tree.forget(found.node, 1);
        let gone = mount.wait(mount.tree.attributes(found.node));
        assert_eq!(gone.err().unwrap().kind(), ErrorKind::StaleVersion);
    }
    assert_eq!(mount.bench.metrics.source_requests.get(), requests, "stat after list is free");
    // The first reading may have followed a listing under way: only one that is complete is kept.
    assert_eq!(mount.names(directory).len(), 2500);
    assert!(mount.wait(mount.tree.open_directory(directory)).unwrap(), "the listing is the one that was read");
    assert_eq!(mount.bench.metrics.source_requests.get(), requests);
    mount.bench.clock.advance(Duration::from_secs(61));
    assert!(!mount.wait(mount.tree.open_directory(directory)).unwrap(), "it is not believed any more");
}

#[test]
fn a_node_of_a_detached_attachment_is_stale() {
    let bench = Bench::start("detached", &Setup::default());
    bench.put("a.bin", 1, 1, 1000);
    let mount = Mount::of(bench, "/", true);
    let data = mount.found(NodeId::ROOT, "data");
    let file = mount.found(data.node, "a.bin");
    mount.bench.engine.detach(&TreePath::parse("/data").unwrap()).unwrap();
    assert_eq!(mount.open(file.node).err().unwrap().kind(), ErrorKind::StaleVersion);
    assert!(
        mount.wait(mount.tree.lookup(NodeId::ROOT, "data")).is_err_and(|error| error.kind() == ErrorKind::NotFound)
    );
}

#[test]
fn a_node_tells_the_name_it_was_looked_up_by() {
    let bench = Bench::start("names", &Setup::default());
    bench.put("d/a.bin", 1, 1, 10);
    let mount = Mount::of(bench, "/data", true);
    let directory = mount.found(NodeId::ROOT, "d").node;
    let file = mount.found(directory, "a.bin").node;
    assert_eq!(mount.tree.name_of(file), Some((directory, "a.bin".into())));
    assert_eq!(mount.tree.name_of(directory), Some((NodeId::ROOT, "d".into())));
    assert_eq!(mount.tree.name_of(NodeId::ROOT), None);
    mount.tree.forget(file, 1);
    assert_eq!(mount.tree.name_of(file), None);
}

#[test]
fn extended_attributes_tell_source_version_and_what_is_cached() {
    let bench = Bench::start("xattr", &Setup::default());
    bench.put("a.bin", 1, 1, 100_000);
    let mount = Mount::of(bench, "/data", true);
    let node = mount.found(NodeId::ROOT, "a.bin").node;
    let value = |name: &str| {
        let all = mount.wait(mount.tree.extended_attributes(node)).unwrap();
        all.into_iter().find(|(known, _)| *known == name).unwrap().1
    };
    assert_eq!(value("user.penstock.cached"), "0");
    mount.open(node).unwrap();
    assert_eq!(value("user.penstock.cached"), "100000");
    assert!(value("user.penstock.source").contains("a.bin"));
    assert!(!value("user.penstock.version").is_empty());
}

#[test]
fn the_rest_of_a_directory_is_fetched_once_many_of_its_files_were_opened_in_no_order() {
    let bench = Bench::start("swept", &Setup::default());
    (0..400).for_each(|number| bench.put(&format!("d/{number:04}"), number, 1, 1000 + number));
    let mount = Mount::of(bench, "/data", true);
    let directory = mount.found(NodeId::ROOT, "d").node;
    for step in 0..60 {
        let number = step * 157 % 400;
        let node = mount.found(directory, &format!("{number:04}")).node;
        oracle::check(number, 1, 0, &lent_bytes(&mount.open(node).unwrap(), 1000 + number)).unwrap();
    }
    let begun = std::time::Instant::now();
    while mount.bench.metrics.prefetched_files.get() < 200 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", mount.bench.metrics.prefetched_files.get());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_sample_tells_number_and_size_of_the_first_files_below_a_path() {
    let bench = Bench::start("sample", &Setup::default());
    (0..1200).for_each(|number| bench.put(&format!("d/{}/{number:05}", number % 7), number, 1, 100));
    bench.put("large", 1, 1, MIB);
    let sample = |path: &str| bench.runtime.block_on(bench.engine.sample(&TreePath::parse(path).unwrap())).unwrap();
    assert_eq!((sample("/data").files, sample("/data").size_bytes), (1000, 100_000));
    assert_eq!(sample("/data/d/3").files, 171);
    assert_eq!(sample("/data/none").files, 0);
}

#[test]
fn who_lists_directories_one_after_another_has_the_whole_tree_listed() {
    let bench = Bench::start("walked", &Setup::default());
    (0..600).for_each(|number| bench.put(&format!("t/{:03}/{number:04}", number / 3), number, 1, 10));
    let mount = Mount::of(bench, "/data", true);
    let tree = mount.found(NodeId::ROOT, "t").node;
    let directories = mount.names(tree);
    assert_eq!(directories.len(), 200);
    directories.iter().for_each(|entry| mount.tree.remember(entry));
    let lists = |from: usize, to: usize| {
        for entry in &directories[from..to] {
            assert_eq!(mount.names(entry.looked.found.unwrap().node).len(), 3);
        }
        mount.bench.metrics.source_list_requests.get()
    };
    lists(0, 4);
    let path = mount.bench.path("t/199/0599");
    let begun = std::time::Instant::now();
    while mount.bench.engine.stat_cached(&path).is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the tree is not walked");
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = mount.bench.metrics.source_list_requests.get();
    assert_eq!(lists(4, 200), before);
}
