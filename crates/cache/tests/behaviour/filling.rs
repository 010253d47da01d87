//! Filling, reading and lending one extent.

use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;

use penstock_types::{ByteRange, ErrorKind};

use crate::support::{Home, MIB, PAGE, cached, content, failing, fill, id, read, read_lent};

#[test]
fn an_extent_is_filled_page_by_page_in_any_order_and_stays_partial_as_long_as_it_likes() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    let size = 5 * PAGE + 1000;
    let extent = cache.get_or_create(&id(1), size).unwrap();
    assert_eq!(extent.missing(ByteRange::new(0, size)), [ByteRange::new(0, size)]);
    fill(&extent, 1, ByteRange::new(5 * PAGE, size)).unwrap();
    fill(&extent, 1, ByteRange::new(PAGE, 3 * PAGE)).unwrap();
    assert!(!extent.is_complete());
    assert_eq!(extent.present_run(PAGE + 7), ByteRange::new(PAGE + 7, 3 * PAGE));
    assert!(extent.present_run(0).is_empty());
    let missing = [ByteRange::new(0, PAGE), ByteRange::new(3 * PAGE, 5 * PAGE)];
    assert_eq!(extent.missing(ByteRange::new(0, size)), missing);
    read(&extent, 1, ByteRange::new(PAGE + 1, 3 * PAGE - 1)).unwrap();
    fill(&extent, 1, ByteRange::new(0, size)).unwrap();
    assert!(extent.is_complete() && extent.missing(ByteRange::new(0, size)).is_empty());
    for (start, end) in [(0, size), (0, 1), (size - 1, size), (10, size - 10), (PAGE - 1, PAGE + 1), (PAGE, 2 * PAGE)] {
        read(&extent, 1, ByteRange::new(start, end)).unwrap();
    }
    read_lent(&extent, 1, ByteRange::new(0, size)).unwrap();
}

#[test]
fn fills_that_are_not_whole_pages_of_the_object_are_refused() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    let extent = cache.get_or_create(&id(1), 3 * PAGE + 5).unwrap();
    for range in [(1, PAGE), (0, PAGE - 1), (3 * PAGE, 3 * PAGE + 4), (PAGE, 3 * PAGE + 6), (4 * PAGE, 5 * PAGE)] {
        let error = fill(&extent, 1, ByteRange::new(range.0, range.1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{range:?}");
    }
    assert!(extent.fill(0, &[]).is_ok());
    assert!(home.files().is_empty());
}

#[test]
fn an_empty_object_is_complete_at_once_and_can_be_lent() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    let extent = cache.get_or_create(&id(1), 0).unwrap();
    assert!(extent.is_complete());
    extent.fill(0, &[]).unwrap();
    let lease = extent.lend().unwrap();
    assert_eq!(rustix::fs::fstat(lease.descriptor()).unwrap().st_size, 0);
}

#[test]
fn reading_an_absent_page_says_so_and_reads_nothing() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    let extent = cache.get_or_create(&id(1), 4 * PAGE).unwrap();
    fill(&extent, 1, ByteRange::new(0, PAGE)).unwrap();
    assert_eq!(read(&extent, 1, ByteRange::new(0, 2 * PAGE)).unwrap_err().kind(), ErrorKind::Corrupt);
    read(&extent, 1, ByteRange::new(0, PAGE)).unwrap();
    assert_eq!(home.metrics.cache_corrupt_pages.get(), 0);
}

#[test]
fn many_fillers_of_one_extent_leave_right_bytes_and_exact_accounts() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    let size = 64 * PAGE + 4321;
    let extent = cache.get_or_create(&id(1), size).unwrap();
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (extent, start) = (&extent, &start);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                start.wait();
                for _ in 0..60 {
                    let first = random.u64(0..=64);
                    let last = (first + random.u64(1..9)) * PAGE;
                    fill(extent, 1, ByteRange::new(first * PAGE, last.min(size))).unwrap();
                    // A page that a fill came back from is there for everybody.
                    read(extent, 1, ByteRange::new(first * PAGE, last.min(size))).unwrap();
                }
                fill(extent, 1, ByteRange::new(0, size)).unwrap();
                read_lent(extent, 1, ByteRange::new(0, size)).unwrap();
            });
        }
    });
    assert!(extent.is_complete());
    assert_eq!(home.metrics.cache_fill_bytes.get(), size, "no page was written twice");
    assert_eq!(cache.usage().tiers[0].used_bytes, 64 * PAGE + 8192);
}

#[test]
fn a_complete_file_is_read_only_and_only_its_owner_sees_the_directories() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    cached(&cache, 1, 2 * PAGE).unwrap();
    let partial = cache.get_or_create(&id(2), 2 * PAGE).unwrap();
    fill(&partial, 2, ByteRange::new(0, PAGE)).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let files = home.files();
    assert_eq!(files.iter().map(|file| mode(file)).collect::<Vec<_>>(), [0o400, 0o600]);
    fill(&partial, 2, ByteRange::new(0, 2 * PAGE)).unwrap();
    assert_eq!(mode(&files[1]), 0o400);
    for directory in files[0].ancestors().skip(1).take(3) {
        assert_eq!(mode(directory), 0o700, "{}", directory.display());
    }
}

#[test]
fn a_lent_descriptor_cannot_write() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    let extent = cached(&cache, 1, PAGE).unwrap();
    let lease = extent.lend().unwrap();
    assert_eq!(rustix::io::pwrite(lease.descriptor(), b"x", 0), Err(rustix::io::Errno::BADF));
    assert_eq!(home.metrics.leases.get(), 1);
    drop(lease);
    assert_eq!(home.metrics.leases.get(), 0);
}

#[test]
fn a_hot_complete_extent_is_lent_without_a_call_of_the_disk() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    drop(cached(&cache, 1, 2 * PAGE).unwrap().lend().unwrap());
    let before = home.disk.calls();
    for _ in 0..100 {
        let extent = cache.get(&id(1)).unwrap();
        assert!(extent.is_complete());
        drop(extent.lend().unwrap());
    }
    assert_eq!(home.disk.calls(), before);
}

#[test]
fn a_fill_that_fails_gives_its_bytes_back_and_can_be_tried_again() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    let extent = cache.get_or_create(&id(1), 4 * PAGE).unwrap();
    fill(&extent, 1, ByteRange::new(0, PAGE)).unwrap();
    let used = cache.usage().tiers[0].used_bytes;
    home.disk.fail(|call| (call.operation == "write").then_some(failing(rustix::io::Errno::IO)));
    assert_eq!(fill(&extent, 1, ByteRange::new(PAGE, 4 * PAGE)).unwrap_err().kind(), ErrorKind::Disk);
    assert_eq!(cache.usage().tiers[0].used_bytes, used);
    assert_eq!(extent.missing(ByteRange::new(0, 4 * PAGE)), [ByteRange::new(PAGE, 4 * PAGE)]);
    home.disk.heal();
    home.clock.advance(std::time::Duration::from_secs(60));
    fill(&extent, 1, ByteRange::new(PAGE, 4 * PAGE)).unwrap();
    read(&extent, 1, ByteRange::new(0, 4 * PAGE)).unwrap();
}

#[test]
fn short_writes_and_reads_are_continued() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    let turn = std::sync::atomic::AtomicU64::new(0);
    home.disk.fail(move |call| {
        let short = matches!(call.operation, "write" | "read")
            && turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst).is_multiple_of(2);
        short.then_some(penstock_testkit::DiskFault::Short)
    });
    let extent = cached(&cache, 1, 4 * PAGE + 77).unwrap();
    read(&extent, 1, ByteRange::new(5, 4 * PAGE + 70)).unwrap();
    assert!(home.disk.fired() > 3);
}

#[test]
fn an_object_of_another_size_under_the_same_version_is_not_mixed_with_the_first() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    let first = cached(&cache, 1, 4 * PAGE).unwrap();
    let second = cache.get_or_create(&id(1), 3 * PAGE).unwrap();
    assert!(first.is_gone() && !second.is_gone());
    assert_eq!(second.missing(ByteRange::new(0, 3 * PAGE)).len(), 1);
    assert!(first.fill(0, &content(1, ByteRange::new(0, PAGE))).is_err());
}
