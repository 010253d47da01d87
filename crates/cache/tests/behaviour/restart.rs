//! What outlives the process, and what becomes of an index that is damaged.

use std::path::Path;
use std::sync::Arc;

use penstock_cache::Cache;
use penstock_types::{ByteRange, ErrorKind};
use proptest::prelude::*;
use rustix::io::Errno;

use crate::support::{Home, MIB, PAGE, cached, failing, fill, id, read, read_lent};

/// Objects that are there and complete; each is read and checked.
fn right_objects(cache: &Cache, objects: std::ops::Range<u64>) -> Vec<u64> {
    let complete = |object: &u64| {
        let Some(extent) = cache.get(&id(*object)).filter(|extent| extent.is_complete()) else { return false };
        let whole = ByteRange::new(0, extent.size());
        read_lent(&extent, *object, whole).is_ok() && read(&extent, *object, whole).is_ok()
    };
    objects.filter(complete).collect()
}

#[test]
fn everything_is_there_after_a_restart_and_nothing_is_scanned() {
    let mut home = Home::with_tiers(&[MIB, 8 * MIB]);
    let cache = home.open();
    (0..40).for_each(|object| drop(cached(&cache, object, 2 * PAGE + object).unwrap()));
    let partial = cache.get_or_create(&id(50), 10 * PAGE).unwrap();
    fill(&partial, 50, ByteRange::new(3 * PAGE, 5 * PAGE)).unwrap();
    let before = cache.usage();
    cache.close();
    drop((cache, partial));
    home.disk.record();
    let cache = home.reopen();
    let calls = home.disk.recorded();
    assert!(calls.iter().filter(|call| call.operation == "list").count() <= 2, "{calls:?}");
    let usage = cache.usage();
    assert_eq!(usage.extents, 41);
    for (before, after) in before.tiers.iter().zip(&usage.tiers) {
        assert_eq!(before.used_bytes, after.used_bytes);
    }
    assert_eq!(right_objects(&cache, 0..60), (0..40).collect::<Vec<_>>());
    let partial = cache.get(&id(50)).unwrap();
    assert_eq!(partial.present_run(3 * PAGE), ByteRange::new(3 * PAGE, 5 * PAGE));
    assert!(partial.present_run(0).is_empty() && !partial.is_complete());
    fill(&partial, 50, ByteRange::new(0, 10 * PAGE)).unwrap();
    read_lent(&partial, 50, ByteRange::new(0, 10 * PAGE)).unwrap();
    assert_eq!(home.metrics.verified_pages.get(), 0, "the machine did not crash");
}

#[test]
fn opening_takes_as_many_calls_of_the_disk_with_many_extents_as_with_none() {
    let calls_to_open = |objects: u64| {
        let mut home = Home::new(512 * MIB);
        let cache = home.open();
        (0..objects).for_each(|object| drop(cached(&cache, object, 100).unwrap()));
        cache.close();
        drop(cache);
        let before = home.disk.calls();
        let cache = home.reopen();
        let calls = home.disk.calls() - before;
        assert_eq!(cache.usage().extents, objects);
        calls
    };
    let (empty, full) = (calls_to_open(0), calls_to_open(3_000));
    assert!(full <= empty + 20, "{empty} calls when empty, {full} with 3,000 extents");
}

#[test]
fn without_a_last_flush_what_was_flushed_is_there_and_the_rest_is_cleaned_up() {
    let mut home = Home::new(16 * MIB);
    let cache = home.open();
    (0..10).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    cache.flush().unwrap();
    (10..20).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    cache.evict(&id(3)).unwrap();
    drop(cache);
    assert_eq!(home.files().len(), 19);
    let cache = home.reopen();
    assert_eq!(right_objects(&cache, 0..20), [0, 1, 2, 4, 5, 6, 7, 8, 9]);
    (0..8).for_each(|_| cache.flush().unwrap());
    assert_eq!(home.files().len(), 9, "files that the index never knew are removed");
    assert_eq!(cache.usage().tiers[0].used_bytes, 9 * PAGE);
    assert_eq!(cache.usage().extents, 9);
}

#[test]
fn what_an_earlier_process_cached_is_evicted_when_room_is_wanted() {
    let mut home = Home::new(MIB);
    let cache = home.open();
    (0..16).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    cache.close();
    drop(cache);
    let cache = home.reopen();
    (100..116).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    assert_eq!(right_objects(&cache, 100..116).len(), 16);
    assert_eq!(cache.usage().tiers[0].used_bytes, MIB);
    assert_eq!(home.files().len(), 16);
}

#[test]
fn more_extents_than_memory_keeps_are_found_in_the_index() {
    let mut home = Home::new(64 * MIB);
    let cache = home.open();
    (0..300).for_each(|object| drop(cached(&cache, object, 100).unwrap()));
    cache.close();
    drop(cache);
    let cache = home.reopen();
    let pages: Vec<_> = std::iter::successors(Some(cache.entries(None, 70)), |page| {
        Some(cache.entries(Some(page.last()?.number), 70)).filter(|next| !next.is_empty())
    })
    .flatten()
    .collect();
    assert_eq!(pages.len(), 300);
    assert!(pages.windows(2).all(|pair| pair[0].number < pair[1].number));
    assert!(pages.iter().all(|entry| entry.complete && entry.present_bytes == 100));
}

#[test]
fn a_tier_directory_that_is_not_the_one_the_index_knows_is_not_believed() {
    let mut home = Home::new(16 * MIB);
    let cache = home.open();
    (0..4).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
    cache.close();
    drop(cache);
    let (tier, kept) = (home.config.tiers[0].directory.clone(), home.directory.path().join("kept"));
    std::fs::rename(&tier, &kept).unwrap();
    std::fs::create_dir_all(tier.join("extents/00")).unwrap();
    std::fs::write(tier.join("extents/00/0000000000000001.x"), vec![7; PAGE as usize]).unwrap();
    let cache = home.reopen();
    assert!(right_objects(&cache, 0..4).is_empty());
    assert_eq!(cache.usage().tiers[0].used_bytes, 0);
    (0..4).for_each(|_| cache.flush().unwrap());
    assert!(home.files().is_empty(), "the stranger's files are removed");
    assert_eq!(cache.usage().extents, 0);
    let names = std::fs::read_dir(&tier).unwrap().count();
    assert_eq!(names, 2, "only the identity and the directory of extents");
}

#[test]
fn an_index_that_is_garbage_or_cut_short_is_set_aside_and_a_fresh_one_begun() {
    type Damage = (&'static str, fn(&Path));
    let damage: [Damage; 5] = [
        ("garbage", |index| std::fs::write(index, vec![0x5a; 100_000]).unwrap()),
        ("zeros", |index| std::fs::write(index, vec![0; 100_000]).unwrap()),
        ("a few bytes", |index| std::fs::write(index, b"redb").unwrap()),
        ("cut to half", |index| {
            let file = std::fs::OpenOptions::new().write(true).open(index).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
        ("cut to one page", |index| {
            std::fs::OpenOptions::new().write(true).open(index).unwrap().set_len(4096).unwrap();
        }),
    ];
    for (name, damage) in damage {
        let mut home = Home::new(16 * MIB);
        let cache = home.open();
        (0..8).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
        cache.close();
        drop(cache);
        damage(&home.index());
        let cache = home.reopen();
        assert!(right_objects(&cache, 0..8).is_empty(), "{name}");
        assert!(home.index().with_extension("redb.damaged").exists(), "{name}");
        assert!(cache.usage().index_healthy);
        (0..8).for_each(|object| drop(cached(&cache, object, PAGE).unwrap()));
        (0..4).for_each(|_| cache.flush().unwrap());
        assert_eq!(home.files().len(), 8, "the files of the lost index are removed ({name})");
        assert_eq!(cache.usage().tiers[0].used_bytes, 8 * PAGE);
        cache.close();
        drop(cache);
        assert_eq!(right_objects(&home.reopen(), 0..8).len(), 8, "{name}");
    }
}

#[test]
fn an_index_that_cannot_be_written_is_reported_and_caching_goes_on_without_memory_of_it() {
    let mut home = Home::new(16 * MIB);
    let cache = home.open();
    home.disk.fail(|call| (call.operation == "sync").then_some(failing(Errno::IO)));
    cached(&cache, 1, PAGE).unwrap();
    assert_eq!(cache.flush().unwrap_err().kind(), ErrorKind::Disk);
    assert!(!cache.usage().index_healthy);
    assert_eq!(right_objects(&cache, 0..3), [1]);
    home.disk.heal();
    cache.flush().unwrap();
    assert!(cache.usage().index_healthy, "{:?}", cache.usage().index_reason);
    drop(cache);
    assert_eq!(right_objects(&home.reopen(), 0..3), [1]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever bits of the index change, and wherever it ends: the cache opens, or says why not, and what it serves
    /// is right.
    #[test]
    fn a_damaged_index_never_makes_wrong_bytes(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..40),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut home = Home::new(16 * MIB);
        let cache = home.open();
        for object in 0..6 {
            cached(&cache, object, 3 * PAGE).unwrap();
            let partial = cache.get_or_create(&id(100 + object), 20 * PAGE).unwrap();
            fill(&partial, 100 + object, ByteRange::new(PAGE, 4 * PAGE)).unwrap();
        }
        cache.close();
        drop(cache);
        let mut bytes = std::fs::read(home.index()).unwrap();
        for (at, bit) in flips {
            // Most of the file is empty: aim where the rows are.
            let at = at.index(bytes.len().min(400_000));
            bytes[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(home.index(), &bytes).unwrap();
        let cache = home.reopen();
        check_whatever_is_there(&cache);
        for object in 0..6 {
            drop(cached(&cache, object, 3 * PAGE));
        }
        let _ = cache.flush();
        check_whatever_is_there(&cache);
        prop_assert!(cache.usage().tiers[0].used_bytes <= 16 * MIB);
    }
}

fn check_whatever_is_there(cache: &Arc<Cache>) {
    for object in (0..6).chain(100..106) {
        let Some(extent) = cache.get(&id(object)) else { continue };
        for page in 0..extent.size() / PAGE {
            let run = extent.present_run(page * PAGE);
            if !run.is_empty() {
                let _ = read_lent(&extent, object, run);
                let _ = read(&extent, object, run);
            }
        }
    }
}

#[test]
fn readers_that_look_up_more_extents_than_memory_keeps_find_every_one() {
    let mut home = Home::in_memory(256 * MIB);
    let objects = 27_000;
    let cache = home.open();
    (0..objects).for_each(|object| drop(cached(&cache, object, 10).unwrap()));
    cache.close();
    drop(cache);
    let cache = home.reopen();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let cache = &cache;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                for _ in 0..30_000 {
                    let object = random.u64(0..objects);
                    assert!(cache.get(&id(object)).is_some_and(|extent| extent.is_complete()), "{object}");
                }
            });
        }
    });
    let fresh = cache.get_or_create(&id(5), 10).unwrap();
    read_lent(&fresh, 5, ByteRange::new(0, 10)).unwrap();
}

#[test]
fn a_closed_cache_touches_no_file_of_the_next_one() {
    let mut home = Home::new(16 * MIB);
    let old = home.open();
    let (complete, partial) = (cached(&old, 1, PAGE).unwrap(), old.get_or_create(&id(2), 4 * PAGE).unwrap());
    fill(&partial, 2, ByteRange::new(0, PAGE)).unwrap();
    let lease = partial.lend().unwrap();
    old.close();
    let new = home.reopen();
    (10..14).for_each(|object| drop(cached(&new, object, PAGE).unwrap()));
    let calls = home.disk.calls();
    assert_eq!(old.get_or_create(&id(3), PAGE).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(fill(&partial, 2, ByteRange::new(PAGE, 4 * PAGE)).unwrap_err().kind(), ErrorKind::NoSpace);
    assert!(complete.lend().is_err() && old.evict(&id(1)).is_err());
    old.retire(&complete);
    old.make_durable_step();
    let _ = old.flush();
    assert_eq!(home.disk.calls(), calls);
    let mut out = vec![0; PAGE as usize];
    rustix::io::pread(lease.descriptor(), &mut out[..], 0).unwrap();
    penstock_testkit::oracle::check(2, 1, 0, &out).unwrap();
    drop((old, complete, partial, lease));
    assert_eq!(right_objects(&new, 0..20), [1, 10, 11, 12, 13]);
}
