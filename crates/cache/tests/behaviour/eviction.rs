//! Budgets, tiers, pins, leases: what goes where, what leaves, and what never does.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use penstock_cache::Cache;
use penstock_types::{ByteRange, ErrorKind, Space};
use rustix::io::Errno;

use crate::support::{Home, MIB, PAGE, cached, failing, fill, id, read, read_lent};

#[test]
fn a_new_object_goes_to_the_first_tier_with_room_and_falls_to_the_next() {
    let home = Home::with_tiers(&[MIB, 4 * MIB]);
    let cache = home.open();
    cached(&cache, 1, MIB / 2).unwrap();
    cached(&cache, 2, MIB / 2).unwrap();
    cached(&cache, 3, MIB / 2).unwrap();
    cached(&cache, 4, 2 * MIB).unwrap();
    let used: Vec<u64> = cache.usage().tiers.iter().map(|tier| tier.used_bytes).collect();
    assert_eq!(used, [MIB, MIB / 2 + 2 * MIB]);
    assert_eq!(home.metrics.cache_evicted_extents.get(), 0);
}

#[test]
fn when_every_tier_is_full_all_of_them_turn_over() {
    let home = Home::with_tiers(&[2 * MIB, 6 * MIB]);
    let cache = home.open();
    for object in 0..64 {
        cached(&cache, object, MIB / 2).unwrap();
    }
    let newest = cache.entries(None, 100).into_iter().filter(|entry| entry.number > 48);
    let tiers: std::collections::HashSet<_> = newest.map(|entry| entry.tier).collect();
    assert_eq!(tiers.len(), 2);
}

#[test]
fn an_object_larger_than_every_tier_is_not_cached() {
    let home = Home::with_tiers(&[MIB, 4 * MIB]);
    let error = home.open().get_or_create(&id(1), 4 * MIB + 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("larger than every tier"), "{error}");
}

#[test]
fn the_byte_budget_holds_at_every_moment_under_concurrent_fills_reads_and_evictions() {
    let home = Home::new(6 * MIB);
    let cache = home.open();
    let (stop, most, filled) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                most.fetch_max(cache.usage().tiers[0].used_bytes, Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        let workers: Vec<_> = (0..6u64)
            .map(|thread| {
                let (cache, filled) = (&cache, &filled);
                scope.spawn(move || busy_worker(cache, thread, filled))
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        stop.store(true, Ordering::Relaxed);
    });
    assert!(most.load(Ordering::Relaxed) <= 6 * MIB, "{most:?}");
    assert!(filled.load(Ordering::Relaxed) > 20 * MIB, "the budget was under pressure: {filled:?}");
    cache.flush().unwrap();
    let used = cache.usage().tiers[0].used_bytes;
    let charged: u64 =
        cache.entries(None, 10_000).iter().map(|entry| entry.present_bytes.next_multiple_of(4096).max(4096)).sum();
    assert_eq!(used, charged, "every byte that counts belongs to an extent");
    let allocated: u64 = home.files().iter().map(|file| std::fs::metadata(file).unwrap().blocks() * 512).sum();
    assert!(allocated <= used, "{allocated} bytes on disk, {used} counted");
    assert_eq!(home.metrics.cache_bytes.get().cast_unsigned(), used);
    assert_eq!(home.metrics.cache_extents.get().cast_unsigned(), home.files().len() as u64);
    assert_eq!(home.metrics.cache_lent_unlinked_bytes.get(), 0);
}

fn busy_worker(cache: &Cache, seed: u64, filled: &AtomicU64) {
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..150 {
        let object = random.u64(0..40);
        let size = (object % 9 + 1) * PAGE + object * 101;
        let Ok(extent) = cache.get_or_create(&id(object), size) else { continue };
        let lease = random.bool().then(|| extent.lend().ok()).flatten();
        for range in extent.missing(ByteRange::new(0, size)) {
            match fill(&extent, object, range) {
                Ok(()) => drop(filled.fetch_add(range.len(), Ordering::Relaxed)),
                Err(error) => assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}"),
            }
        }
        match read(&extent, object, ByteRange::new(random.u64(0..size), size)) {
            Ok(()) => {}
            Err(error) => assert!(matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Corrupt), "{error}"),
        }
        if let Some(lease) = lease {
            let present = lease.extent().present_run(0);
            let mut out = vec![0; present.len() as usize];
            rustix::io::pread(lease.descriptor(), &mut out[..], 0).unwrap();
            penstock_testkit::oracle::check(object, 1, 0, &out).unwrap();
        }
        if random.u8(0..20) == 0 {
            let _ = cache.evict(&id(object));
        }
        if random.u8(0..30) == 0 {
            cache.flush().unwrap();
        }
    }
}

#[test]
fn reading_far_more_than_fits_leaves_what_is_used_in_the_cache() {
    let home = Home::new(4 * MIB);
    let cache = home.open();
    for _ in 0..4 {
        (0..20).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    }
    (1_000..1_400).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    let kept = (0..20).filter(|object| cache.get(&id(*object)).is_some_and(|extent| extent.is_complete())).count();
    assert_eq!(kept, 20);
}

#[test]
fn what_is_pinned_is_never_evicted_until_it_is_not_pinned_any_more() {
    let home = Home::new(MIB);
    let cache = home.open();
    (0..16).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    cache.set_pins(Arc::new(|object| object.key.as_str().unwrap() < "objects/00000008"));
    (100..200).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    assert!((0..8).all(|object| cache.get(&id(object)).is_some_and(|extent| extent.is_complete())));
    assert!(cache.entries(None, 3).iter().all(|entry| entry.pinned));
    cache.set_pins(Arc::new(|_| true));
    let refused = cached(&cache, 300, PAGE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSpace);
    cache.set_pins(Arc::new(|_| false));
    cached(&cache, 400, MIB).unwrap();
    assert!((0..8).all(|object| cache.get(&id(object)).is_none()));
}

#[test]
fn lent_extents_stay_and_when_they_fill_the_tier_nothing_new_is_cached() {
    let home = Home::new(MIB);
    let cache = home.open();
    let leases: Vec<_> = (0..16).map(|object| cached(&cache, object, PAGE).unwrap().lend().unwrap()).collect();
    assert_eq!(cached(&cache, 100, PAGE).unwrap_err().kind(), ErrorKind::NoSpace);
    assert!((0..16).all(|object| cache.get(&id(object)).is_some()));
    drop(leases);
    cached(&cache, 100, PAGE).unwrap();
}

#[test]
fn an_evicted_extent_that_is_lent_stays_readable_and_counted_until_its_last_lease_ends() {
    let home = Home::new(MIB);
    let cache = home.open();
    let extent = cached(&cache, 1, 8 * PAGE).unwrap();
    let (first, second) = (extent.lend().unwrap(), extent.lend().unwrap());
    assert_eq!(cache.evict(&id(1)).unwrap(), 0);
    assert!(home.files().is_empty() && cache.get(&id(1)).is_none() && extent.is_gone());
    let usage = || cache.usage().tiers.remove(0);
    assert_eq!((usage().used_bytes, usage().lent_unlinked_bytes), (8 * PAGE, 8 * PAGE));
    assert_eq!(home.metrics.cache_lent_unlinked_bytes.get(), (8 * PAGE).cast_signed());
    drop(first);
    assert_eq!(usage().lent_unlinked_bytes, 8 * PAGE);
    let mut out = vec![0; 8 * PAGE as usize];
    rustix::io::pread(second.descriptor(), &mut out[..], 0).unwrap();
    penstock_testkit::oracle::check(1, 1, 0, &out).unwrap();
    assert_eq!(extent.lend().unwrap_err().kind(), ErrorKind::NoSpace);
    drop(second);
    assert_eq!((usage().used_bytes, usage().lent_unlinked_bytes), (0, 0));
    assert_eq!(home.metrics.cache_lent_unlinked_bytes.get(), 0);
    assert_eq!(cache.evict(&id(1)).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_large_evicted_file_is_given_back_by_another_thread_than_the_one_that_ends_its_last_lease() {
    let home = Home::new(128 * MIB);
    let cache = home.open();
    let extent = cache.get_or_create(&id(1), 64 * MIB).unwrap();
    fill(&extent, 1, ByteRange::new(0, PAGE)).unwrap();
    let lease = extent.lend().unwrap();
    cache.evict(&id(1)).unwrap();
    let descriptor = Arc::downgrade(lease.descriptor());
    assert!(descriptor.strong_count() > 0);
    drop((lease, extent));
    assert_eq!(cache.usage().tiers[0].used_bytes, 0, "it counts no more at once");
    let patience = std::time::Instant::now() + Duration::from_secs(30);
    while descriptor.strong_count() > 0 {
        assert!(std::time::Instant::now() < patience, "it is closed");
        std::thread::yield_now();
    }
}

#[test]
fn an_extent_that_somebody_holds_leaves_after_all_others() {
    let home = Home::new(MIB);
    let cache = home.open();
    let held = cached(&cache, 1, 2 * PAGE).unwrap();
    (2..60).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    assert!(!held.is_gone());
    let others: Vec<_> = (100..114).map(|object| cached(&cache, object, PAGE).unwrap().lend().unwrap()).collect();
    cached(&cache, 200, 2 * PAGE).unwrap();
    assert!(held.is_gone(), "nothing else can go: the tier is lent");
    drop(others);
}

#[test]
fn the_free_space_floor_of_the_file_system_is_kept() {
    let mut home = Home::new(64 * MIB);
    home.config.free_space_floor = 0.1;
    let space = |available| Some(Space { total: 1000 * MIB, available });
    home.disk.pretend(|machine| machine.space = space(101 * MIB));
    let cache = home.open();
    cached(&cache, 1, MIB / 2).unwrap();
    cached(&cache, 2, MIB / 2).unwrap();
    cached(&cache, 3, MIB / 2).unwrap();
    assert_eq!(cache.usage().tiers[0].used_bytes, MIB, "one made room for the third");
    // Somebody else takes the space: what is cached gives way, step by step, and nothing new comes in.
    home.disk.pretend(|machine| machine.space = space(90 * MIB));
    home.clock.advance(Duration::from_secs(2));
    let error = cached(&cache, 4, PAGE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(cache.usage().tiers[0].used_bytes, 0);
    home.disk.pretend(|machine| machine.space = space(300 * MIB));
    home.clock.advance(Duration::from_secs(2));
    cached(&cache, 4, PAGE).unwrap();
}

#[test]
fn a_tier_whose_size_was_lowered_is_brought_below_it_in_steps() {
    let mut home = Home::new(8 * MIB);
    let cache = home.open();
    (0..100).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    cache.close();
    drop(cache);
    home.config.tiers[0].size_bytes = MIB;
    let cache = home.reopen();
    cache.flush().unwrap();
    assert!(cache.usage().tiers[0].used_bytes > MIB, "one step is bounded");
    cache.flush().unwrap();
    assert_eq!(cache.usage().tiers[0].used_bytes, MIB);
}

#[test]
fn a_failing_disk_makes_its_tier_unhealthy_for_a_while_and_reads_go_on() {
    for (errno, kind) in
        [(Errno::NOSPC, ErrorKind::NoSpace), (Errno::ROFS, ErrorKind::Disk), (Errno::IO, ErrorKind::Disk)]
    {
        let home = Home::with_tiers(&[4 * MIB]);
        let cache = home.open();
        let healthy = cached(&cache, 1, PAGE).unwrap();
        home.disk.fail(move |call| matches!(call.operation, "write" | "create").then_some(failing(errno)));
        assert_eq!(cached(&cache, 2, PAGE).unwrap_err().kind(), kind);
        let usage = cache.usage().tiers.remove(0);
        assert!(!usage.healthy && usage.reason.unwrap().contains(&errno.to_string()[..8]));
        assert_eq!(cached(&cache, 3, PAGE).unwrap_err().kind(), ErrorKind::NoSpace, "it is left alone");
        assert_eq!(home.disk.fired(), 1);
        read(&healthy, 1, ByteRange::new(0, PAGE)).unwrap();
        read_lent(&healthy, 1, ByteRange::new(0, PAGE)).unwrap();
        home.disk.heal();
        home.clock.advance(Duration::from_secs(11));
        cached(&cache, 4, PAGE).unwrap();
        assert!(cache.usage().tiers[0].healthy);
        assert_eq!(cache.usage().tiers[0].used_bytes, 2 * PAGE);
    }
}

#[test]
fn while_one_tier_fails_the_next_takes_the_data() {
    let home = Home::with_tiers(&[4 * MIB, 4 * MIB]);
    let cache = home.open();
    home.disk.fail(|call| {
        (call.operation == "create" && call.path.to_str().unwrap().contains("tier0")).then_some(failing(Errno::IO))
    });
    assert_eq!(cached(&cache, 1, PAGE).unwrap_err().kind(), ErrorKind::Disk);
    cached(&cache, 2, PAGE).unwrap();
    let usage = cache.usage();
    assert!(!usage.tiers[0].healthy && usage.tiers[1].healthy);
    assert_eq!(usage.tiers[1].used_bytes, PAGE);
}

#[test]
fn a_file_that_cannot_be_unlinked_stays_cached_and_counted() {
    let home = Home::new(MIB);
    let cache = home.open();
    cached(&cache, 1, 16 * PAGE).unwrap();
    home.disk.fail(|call| (call.operation == "unlink").then_some(failing(Errno::IO)));
    assert_eq!(cache.evict(&id(1)).unwrap_err().kind(), ErrorKind::Disk);
    assert_eq!(cache.usage().tiers[0].used_bytes, MIB);
    read_lent(&cache.get(&id(1)).unwrap(), 1, ByteRange::new(0, 16 * PAGE)).unwrap();
    home.clock.advance(Duration::from_secs(11));
    assert_eq!(cached(&cache, 2, PAGE).unwrap_err().kind(), ErrorKind::Disk, "no room can be made");
    home.disk.heal();
    home.clock.advance(Duration::from_secs(11));
    cached(&cache, 2, PAGE).unwrap();
    assert_eq!(cache.usage().tiers[0].used_bytes, PAGE);
}

#[test]
fn a_retired_extent_is_never_found_again_even_when_its_file_stays() {
    let home = Home::new(MIB);
    let cache = home.open();
    let extent = cached(&cache, 1, 4 * PAGE).unwrap();
    home.disk.fail(|call| (call.operation == "unlink").then_some(failing(Errno::IO)));
    cache.retire(&extent);
    assert!(cache.get(&id(1)).is_none() && extent.is_gone());
    assert_eq!(cache.usage().tiers[0].used_bytes, 4 * PAGE, "its file still takes the space");
    home.disk.heal();
    cache.flush().unwrap();
    assert_eq!(cache.usage().tiers[0].used_bytes, 0);
    assert!(home.files().is_empty());
}

#[test]
fn a_directory_on_a_network_file_system_is_refused_unless_it_is_allowed() {
    let mut home = Home::new(MIB);
    for magic in [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546, 0x0102_1997, 0x00c3_6400, 0x0bd0_0bd0] {
        home.disk.pretend(|machine| machine.magic = Some(magic));
        let error = Cache::open(home.parts()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{magic:x}");
        assert!(error.to_string().contains("network file system"), "{error}");
    }
    home.config.allow_network_filesystem = true;
    cached(&home.open(), 1, PAGE).unwrap();
}

#[test]
fn one_home_and_one_tier_belong_to_one_cache_at_a_time() {
    let home = Home::new(MIB);
    let cache = home.open();
    assert_eq!(Cache::open(home.parts()).err().unwrap().kind(), ErrorKind::Busy);
    let mut other = home.parts();
    other.state_directory = home.directory.path().join("other");
    assert_eq!(Cache::open(other).err().unwrap().kind(), ErrorKind::Busy, "the same tier from another home");
    cache.close();
    home.open();
}

#[test]
fn a_memory_tier_on_tmpfs_is_a_tier_like_any_other() {
    let mut home = Home::with_tiers(&[MIB, 4 * MIB]);
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
    home.config.tiers[0].directory = memory.path().join("tier");
    let cache = home.open();
    (0..20).for_each(|object| drop(cached(&cache, object, 2 * PAGE).unwrap()));
    (0..20)
        .for_each(|object| read_lent(&cache.get(&id(object)).unwrap(), object, ByteRange::new(0, 2 * PAGE)).unwrap());
    cache.close();
    drop(cache);
    // The machine was restarted: the memory is empty, the disk is not.
    std::fs::remove_dir_all(memory.path().join("tier")).unwrap();
    let cache = home.reopen();
    let found = (0..20).filter(|object| cache.get(&id(*object)).is_some()).count();
    assert_eq!(found, 12);
    assert_eq!(cache.usage().tiers[0].used_bytes, 0);
}

#[test]
fn accounts_hold_while_extents_of_an_earlier_process_are_looked_up_and_evicted_at_once() {
    let mut home = Home::in_memory(3 * MIB);
    for round in 0..15u64 {
        let cache = home.reopen();
        let filled = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (cache, filled) = (&cache, &filled);
                scope.spawn(move || busy_worker(cache, round * 4 + thread, filled));
            }
        });
        cache.flush().unwrap();
        let used = cache.usage().tiers[0].used_bytes;
        let entries = cache.entries(None, 10_000);
        let charged: u64 = entries.iter().map(|entry| entry.present_bytes.next_multiple_of(4096).max(4096)).sum();
        assert_eq!(used, charged, "round {round}");
        assert_eq!(cache.usage().extents, entries.len() as u64, "round {round}");
        assert_eq!(home.files().len(), entries.len(), "round {round}");
        let names: std::collections::HashSet<_> = entries.iter().map(|entry| entry.key.clone()).collect();
        assert_eq!(names.len(), entries.len(), "no object is cached twice");
        cache.close();
    }
}
