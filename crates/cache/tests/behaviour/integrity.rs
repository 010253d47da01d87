//! Damage is found and never served; after a crash of the machine nothing is believed that was not synced.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use penstock_types::{ByteRange, ErrorKind};
use rustix::io::Errno;

use crate::support::{Home, MIB, PAGE, cached, damage, failing, fill, flip, id, read, read_lent};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn a_flipped_page_is_found_dropped_counted_and_repaired_in_place() {
    let home = Home::new(16 * MIB);
    let cache = home.open();
    let extent = cached(&cache, 1, 4 * PAGE).unwrap();
    let lease = extent.lend().unwrap();
    flip(&home.files()[0], 2 * PAGE + 77);
    assert_eq!(read(&extent, 1, ByteRange::new(0, 4 * PAGE)).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(home.metrics.cache_corrupt_pages.get(), 1);
    assert_eq!(extent.missing(ByteRange::new(0, 4 * PAGE)), [ByteRange::new(2 * PAGE, 3 * PAGE)]);
    assert_eq!(cache.usage().tiers[0].used_bytes, 3 * PAGE);
    read(&extent, 1, ByteRange::new(0, 2 * PAGE)).unwrap();
    fill(&extent, 1, ByteRange::new(2 * PAGE, 3 * PAGE)).unwrap();
    read(&extent, 1, ByteRange::new(0, 4 * PAGE)).unwrap();
    let mut out = vec![0; 4 * PAGE as usize];
    rustix::io::pread(lease.descriptor(), &mut out[..], 0).unwrap();
    penstock_testkit::oracle::check(1, 1, 0, &out).unwrap();
}

#[test]
fn a_dropped_page_stays_dropped_though_the_process_dies_at_once() {
    let mut home = Home::new(16 * MIB);
    let cache = home.open();
    let extent = cached(&cache, 1, 4 * PAGE).unwrap();
    cache.flush().unwrap();
    flip(&home.files()[0], PAGE);
    read(&extent, 1, ByteRange::new(0, 4 * PAGE)).unwrap_err();
    drop((cache, extent));
    let extent = home.reopen().get(&id(1)).unwrap();
    assert!(!extent.is_complete());
    assert_eq!(extent.missing(ByteRange::new(0, 4 * PAGE)), [ByteRange::new(PAGE, 2 * PAGE)]);
}

#[test]
fn a_bad_page_that_the_index_cannot_be_told_of_costs_the_whole_extent() {
    let mut home = Home::new(16 * MIB);
    let cache = home.open();
    let extent = cached(&cache, 1, 4 * PAGE).unwrap();
    cache.flush().unwrap();
    flip(&home.files()[0], PAGE);
    home.disk.fail(|call| (call.operation == "sync").then_some(failing(Errno::IO)));
    assert_eq!(read(&extent, 1, ByteRange::new(0, 4 * PAGE)).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(extent.is_gone() && home.files().is_empty());
    home.disk.heal();
    drop((cache, extent));
    let cache = home.reopen();
    let found = cache.get(&id(1)).map(|extent| extent.lend().map(drop));
    assert!(!matches!(found, Some(Ok(()))), "its file is gone, so it cannot be lent");
}

#[test]
fn a_page_that_cannot_be_read_is_a_bad_page() {
    let home = Home::new(16 * MIB);
    let cache = home.open();
    let extent = cached(&cache, 1, 2 * PAGE).unwrap();
    home.disk.fail(|call| (call.operation == "read").then_some(failing(Errno::IO)));
    let error = read(&extent, 1, ByteRange::new(0, 2 * PAGE)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(home.metrics.cache_disk_errors.get() > 0);
}

#[test]
fn a_file_that_was_cut_short_is_found_by_reading_and_by_opening_and_never_lent() {
    let mut home = Home::new(16 * MIB);
    let cache = home.open();
    let extent = cached(&cache, 1, 4 * PAGE).unwrap();
    drop(extent.lend().unwrap());
    damage(&home.files()[0], |file| file.set_len(PAGE + 5).unwrap());
    assert_eq!(read(&extent, 1, ByteRange::new(0, 4 * PAGE)).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(extent.is_gone() && cache.get(&id(1)).is_none());
    assert!(!extent.is_complete() && extent.present_run(0).is_empty(), "nothing of it is believed any more");
    read_lent(&cached(&cache, 1, 4 * PAGE).unwrap(), 1, ByteRange::new(0, 4 * PAGE)).unwrap();

    cache.close();
    drop((cache, extent));
    for length in [0, PAGE, 4 * PAGE - 1, 4 * PAGE + 1] {
        let cache = home.reopen();
        cached(&cache, 1, 4 * PAGE).unwrap();
        cache.close();
        drop(cache);
        damage(&home.files()[0], |file| file.set_len(length).unwrap());
        let cache = home.reopen();
        let extent = cache.get(&id(1)).unwrap();
        assert_eq!(extent.lend().unwrap_err().kind(), ErrorKind::Corrupt, "{length}");
        assert!(extent.is_gone() && home.files().is_empty());
        cache.flush().unwrap();
    }
}

#[test]
fn a_file_that_vanished_is_not_cached_any_more() {
    let mut home = Home::new(16 * MIB);
    let cache = home.open();
    cached(&cache, 1, PAGE).unwrap();
    cache.close();
    drop(cache);
    std::fs::remove_file(&home.files()[0]).unwrap();
    let cache = home.reopen();
    assert_eq!(cache.get(&id(1)).unwrap().lend().unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(cache.get(&id(1)).is_none());
    assert_eq!(cache.usage().tiers[0].used_bytes, 0);
    read_lent(&cached(&cache, 1, PAGE).unwrap(), 1, ByteRange::new(0, PAGE)).unwrap();
}

#[test]
fn a_file_that_was_replaced_is_verified_before_it_is_lent() {
    let mut home = Home::new(16 * MIB);
    let cache = home.open();
    cached(&cache, 1, 3 * PAGE).unwrap();
    cache.close();
    drop(cache);
    let file = home.files()[0].clone();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[PAGE as usize + 1] ^= 1;
    std::fs::write(file.with_extension("new"), bytes).unwrap();
    std::fs::rename(file.with_extension("new"), &file).unwrap();
    let cache = home.reopen();
    let extent = cache.get(&id(1)).unwrap();
    assert_eq!(extent.lend().unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(extent.missing(ByteRange::new(0, 3 * PAGE)), [ByteRange::new(PAGE, 2 * PAGE)]);
    fill(&extent, 1, ByteRange::new(PAGE, 2 * PAGE)).unwrap();
    read_lent(&extent, 1, ByteRange::new(0, 3 * PAGE)).unwrap();
}

#[test]
fn after_a_crash_of_the_machine_unsynced_extents_are_verified_before_they_are_lent_and_synced_ones_are_not() {
    let mut home = Home::new(64 * MIB);
    home.reboot("first");
    let cache = home.open();
    (0..4).for_each(|object| drop(cached(&cache, object, 20 * PAGE).unwrap()));
    home.clock.advance(Duration::from_secs(60));
    cache.make_durable_step();
    (4..8).for_each(|object| drop(cached(&cache, object, 20 * PAGE).unwrap()));
    let partial = cache.get_or_create(&id(8), 20 * PAGE).unwrap();
    fill(&partial, 8, ByteRange::new(5 * PAGE, 9 * PAGE)).unwrap();
    cache.close();
    drop((cache, partial));
    // The machine lost power: pages that nobody synced never reached the disk.
    let files = home.files();
    damage(&files[5], |file| file.write_all_at(&vec![0; 3 * PAGE as usize], 7 * PAGE).unwrap());
    damage(&files[8], |file| file.write_all_at(&vec![0; PAGE as usize], 6 * PAGE).unwrap());
    home.reboot("second");
    let cache = home.reopen();
    let get = |object| cache.get(&id(object)).unwrap();
    for object in [0, 1, 2, 3, 4, 6, 7] {
        read_lent(&get(object), object, ByteRange::new(0, 20 * PAGE)).unwrap();
    }
    assert_eq!(home.metrics.verified_pages.get(), 60, "4, 6 and 7, and not what was durable");
    for (object, bad) in [(5, ByteRange::new(7 * PAGE, 10 * PAGE)), (8, ByteRange::new(6 * PAGE, 7 * PAGE))] {
        assert_eq!(get(object).lend().unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(get(object).missing(bad) == [bad]);
        fill(&get(object), object, ByteRange::new(0, 20 * PAGE)).unwrap();
        read_lent(&get(object), object, ByteRange::new(0, 20 * PAGE)).unwrap();
    }
    assert_eq!(home.metrics.cache_corrupt_pages.get(), 4);
    let verified = home.metrics.verified_pages.get();
    cache.close();
    drop(cache);
    let cache = home.reopen();
    (0..9)
        .for_each(|object| read_lent(&cache.get(&id(object)).unwrap(), object, ByteRange::new(0, 20 * PAGE)).unwrap());
    assert_eq!(home.metrics.verified_pages.get(), 0, "verified once in this boot: {verified}");
}

#[test]
fn many_readers_of_an_extent_in_doubt_wait_for_one_verification() {
    let mut home = Home::new(64 * MIB);
    home.reboot("first");
    let cache = home.open();
    cached(&cache, 1, 200 * PAGE).unwrap();
    cache.close();
    drop(cache);
    home.reboot("second");
    let cache = home.reopen();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| read_lent(&cache.get(&id(1)).unwrap(), 1, ByteRange::new(0, 200 * PAGE)).unwrap());
        }
    });
    assert_eq!(home.metrics.verified_pages.get(), 200);
}

#[test]
fn the_durable_mark_is_set_only_after_the_data_was_synced() {
    let mut home = Home::new(16 * MIB);
    home.reboot("first");
    let cache = home.open();
    cached(&cache, 1, PAGE).unwrap();
    let syncs = || home.disk.recorded().iter().filter(|call| call.operation == "sync").count();
    home.disk.record();
    cache.make_durable_step();
    assert_eq!(syncs(), 0, "it is not quiet yet");
    home.clock.advance(Duration::from_secs(60));
    cache.make_durable_step();
    assert_eq!(syncs(), 1);
    cache.make_durable_step();
    assert_eq!(syncs(), 1, "once is enough");
    // A sync that fails may have lost what it should have written: nothing is believed of that file.
    cached(&cache, 2, PAGE).unwrap();
    home.clock.advance(Duration::from_secs(60));
    home.disk.fail(|call| (call.operation == "sync").then_some(failing(Errno::IO)));
    cache.make_durable_step();
    home.disk.heal();
    assert!(cache.get(&id(2)).is_none());
    cache.close();
    drop(cache);
    home.reboot("second");
    read_lent(&home.reopen().get(&id(1)).unwrap(), 1, ByteRange::new(0, PAGE)).unwrap();
    assert_eq!(home.metrics.verified_pages.get(), 0);
}

#[test]
fn a_repaired_page_takes_the_durable_mark_away() {
    let mut home = Home::new(16 * MIB);
    home.reboot("first");
    let cache = home.open();
    let extent = cached(&cache, 1, 2 * PAGE).unwrap();
    home.clock.advance(Duration::from_secs(60));
    cache.make_durable_step();
    flip(&home.files()[0], 3);
    read(&extent, 1, ByteRange::new(0, PAGE)).unwrap_err();
    fill(&extent, 1, ByteRange::new(0, PAGE)).unwrap();
    cache.close();
    drop((cache, extent));
    home.reboot("second");
    let cache = home.reopen();
    read_lent(&cache.get(&id(1)).unwrap(), 1, ByteRange::new(0, 2 * PAGE)).unwrap();
    assert_eq!(home.metrics.verified_pages.get(), 2);
}

#[test]
fn the_scrub_visits_every_page_within_its_interval_and_finds_what_is_bad() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    (0..30).for_each(|object| drop(cached(&cache, object, (object % 7 + 1) * PAGE).unwrap()));
    cache.flush().unwrap();
    let files = home.files();
    [0, 13, 29].into_iter().for_each(|file| flip(&files[file], 9));
    let (mut pages, mut bad, mut most) = (0, 0, 0);
    for _ in 0..=100 {
        let report = cache.scrub_step(1_000);
        (pages, bad, most) = (pages + report.pages, bad + report.bad_pages, most.max(report.pages));
        home.clock.advance(DAY / 200);
    }
    let all: u64 = (0..30).map(|object| object % 7 + 1).sum();
    assert_eq!((pages, bad), (all, 3));
    assert!(most < all / 4, "it does not do everything at once: {most} of {all} pages in one step");
    assert_eq!(home.metrics.cache_corrupt_pages.get(), 3);
    assert_eq!(home.metrics.scrub_pages.get(), all);
    assert!(!cache.get(&id(13)).unwrap().is_complete());
}

#[test]
fn the_scrub_goes_on_after_a_restart_where_it_was() {
    let mut home = Home::new(64 * MIB);
    let mut cache = home.open();
    (0..40).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    cache.flush().unwrap();
    let mut pages = 0;
    for step in 0..60 {
        pages += cache.scrub_step(1_000).pages;
        home.clock.advance(DAY / 100);
        if step % 10 == 9 {
            cache.close();
            drop(cache);
            cache = home.reopen();
        }
    }
    assert!((40..=56).contains(&pages), "one pass takes half of the interval: {pages} pages");
}

#[test]
fn a_pass_of_a_short_interval_ends_and_the_next_one_finds_what_was_damaged_behind_the_last() {
    let mut home = Home::new(64 * MIB);
    home.config.scrub_interval_days = 1e-5;
    let cache = home.open();
    let step = || {
        home.clock.advance(Duration::from_secs(1));
        cache.scrub_step(1_000).bad_pages
    };
    (0..3).for_each(|_| assert_eq!(step(), 0));
    cached(&cache, 1, PAGE).unwrap();
    cache.flush().unwrap();
    flip(&home.files()[0], 9);
    assert_eq!((0..40).map(|_| step()).sum::<u64>(), 1);
}

#[test]
fn a_scrub_interval_of_nothing_switches_it_off() {
    let mut home = Home::new(64 * MIB);
    home.config.scrub_interval_days = 0.0;
    let cache = home.open();
    cached(&cache, 1, PAGE).unwrap();
    cache.scrub_step(100);
    home.clock.advance(DAY * 100);
    assert_eq!(cache.scrub_step(100), penstock_cache::ScrubReport::default());
}

#[test]
fn the_scrub_removes_files_that_belong_to_nothing_and_nothing_else() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    (0..5).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    let lent = cached(&cache, 5, PAGE).unwrap();
    let _lease = lent.lend().unwrap();
    let directory = home.files()[0].parent().unwrap().to_owned();
    std::fs::write(directory.join("00000000000fffff.x"), b"left over").unwrap();
    std::fs::write(directory.join("notes"), b"not ours").unwrap();
    let mut removed = 0;
    for _ in 0..600 {
        removed += cache.scrub_step(10).orphans_removed;
        home.clock.advance(DAY / 1000);
    }
    assert_eq!(removed, 1);
    assert_eq!(home.files().len(), 7);
    (0..6).for_each(|object| read_lent(&cache.get(&id(object)).unwrap(), object, ByteRange::new(0, PAGE)).unwrap());
}

#[test]
fn a_process_that_may_hold_few_descriptors_caches_as_much_as_any() {
    let home = Home::new(256 * MIB);
    home.disk.pretend(|machine| machine.descriptors = Some(256));
    let cache = home.open();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let mut leases = Vec::new();
    for object in 0..1_000 {
        let extent = cached(&cache, object, 100).unwrap();
        let lease = extent.lend().unwrap();
        if object % 100 == 0 {
            leases.push(lease);
        }
    }
    // Other tests run beside this one: their descriptors are in the count.
    let most = 128 + leases.len() + 200;
    assert!(open() - before.min(open()) < most, "{} descriptors", open());
    for object in 0..1_000 {
        read_lent(&cache.get(&id(object)).unwrap(), object, ByteRange::new(0, 100)).unwrap();
    }
}

#[test]
fn when_descriptors_run_out_some_are_closed_and_then_it_is_said_so() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    (0..10).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    let failures = Arc::new(AtomicU64::new(1));
    let left = Arc::clone(&failures);
    home.disk.fail(move |call| {
        let fails = matches!(call.operation, "open" | "create")
            && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        fails.then_some(failing(Errno::MFILE))
    });
    read_lent(&cache.get(&id(3)).unwrap(), 3, ByteRange::new(0, PAGE)).unwrap();
    assert_eq!(home.disk.fired(), 1);
    failures.store(1_000, Ordering::SeqCst);
    assert_eq!(cached(&cache, 20, PAGE).unwrap_err().kind(), ErrorKind::ResourceLimit);
    assert!(cache.usage().tiers[0].healthy, "the disk is not to blame");
    home.disk.heal();
    cached(&cache, 20, PAGE).unwrap();
    assert_eq!(cache.usage().tiers[0].used_bytes, 11 * PAGE);
}
