//! Every call of the disk that a run makes is made to fail once, one by one, in every way it can fail.

use std::sync::Arc;
use std::time::Duration;

use penstock_cache::Cache;
use penstock_testkit::{DiskCall, DiskFault};
use penstock_types::{ByteRange, ErrorKind, Result};

use crate::support::{Home, PAGE, cached, fill, id, read, read_lent};

const TIER: u64 = 20 * PAGE;

/// What a node does with a cache, in small. Errors are allowed, wrong bytes are not.
fn run(home: &mut Home) -> Result<()> {
    home.reboot("first");
    let cache = Cache::open(home.parts())?;
    for object in 0..3 {
        tolerate(cached(&cache, object, 3 * PAGE + 10).map(drop));
        read_all(&cache, object);
    }
    if let Ok(partial) = cache.get_or_create(&id(10), 6 * PAGE) {
        tolerate(fill(&partial, 10, ByteRange::new(PAGE, 3 * PAGE)));
        tolerate(read_lent(&partial, 10, partial.present_run(PAGE)));
        tolerate(fill(&partial, 10, ByteRange::new(4 * PAGE, 6 * PAGE)));
    }
    if let Ok(late) = cache.get_or_create(&id(11), 2 * PAGE) {
        tolerate(late.lend().map(drop));
        tolerate(fill(&late, 11, ByteRange::new(PAGE, 2 * PAGE)));
        tolerate(fill(&late, 11, ByteRange::new(0, 2 * PAGE)));
    }
    tolerate(cache.flush());
    // More than fits: others have to leave.
    for object in 20..24 {
        home.clock.advance(Duration::from_secs(20));
        tolerate(cached(&cache, object, 3 * PAGE).map(drop));
        read_all(&cache, object);
    }
    tolerate(cache.evict(&id(21)).map(drop));
    cache.make_durable_step();
    tolerate(cache.flush());
    cache.scrub_step(1_000);
    home.clock.advance(Duration::from_secs(12 * 60 * 60));
    cache.scrub_step(1_000);
    if let Some(file) = home.files().first() {
        crate::support::flip(file, 5);
    }
    (0..30).for_each(|object| read_all(&cache, object));
    check_accounts(home, &cache);
    cache.close();
    drop(cache);
    home.reboot("second");
    let cache = home.try_reopen()?;
    (0..30).for_each(|object| read_all(&cache, object));
    tolerate(cached(&cache, 5, 2 * PAGE).map(drop));
    read_all(&cache, 5);
    tolerate(cache.flush());
    check_accounts(home, &cache);
    Ok(())
}

fn tolerate(result: Result<()>) {
    if let Err(error) = result {
        let kinds = [ErrorKind::NoSpace, ErrorKind::Disk, ErrorKind::Corrupt, ErrorKind::NotFound];
        assert!(kinds.contains(&error.kind()), "{error}");
    }
}

/// Reads whatever is said to be there, both ways; every byte is checked.
fn read_all(cache: &Arc<Cache>, object: u64) {
    let Some(extent) = cache.get(&id(object)) else { return };
    let mut at = 0;
    while at < extent.size() {
        // After the lend, as the contract wants it.
        let lease = extent.lend();
        let run = extent.present_run(at);
        if !run.is_empty() && run.end > at {
            tolerate(read(&extent, object, run));
            if let Ok(lease) = &lease
                && !extent.is_gone()
            {
                let run = extent.present_run(at);
                let mut out = vec![0; usize::try_from(run.len()).unwrap()];
                rustix::io::pread(lease.descriptor(), &mut out[..], run.start).unwrap();
                penstock_testkit::oracle::check(object, 1, run.start, &out).unwrap();
            }
        }
        at = run.end.max(at + PAGE) / PAGE * PAGE;
    }
}

fn check_accounts(home: &Home, cache: &Cache) {
    let usage = cache.usage().tiers.remove(0);
    assert!(usage.used_bytes <= TIER, "{usage:?}");
    assert_eq!(usage.lent_unlinked_bytes, 0);
    assert_eq!(home.metrics.leases.get(), 0);
    let charged: u64 = cache.entries(None, 100).iter().map(|entry| charge(entry.present_bytes)).sum();
    assert!(charged <= usage.used_bytes, "{charged} bytes in extents, {} counted", usage.used_bytes);
    // What is counted and in no extent is a file that could not be unlinked yet, or that nobody looked at.
    assert!(usage.used_bytes <= charged + 5 * PAGE, "{charged} bytes in extents, {} counted", usage.used_bytes);
}

fn charge(present: u64) -> u64 {
    present.next_multiple_of(4096).max(4096)
}

#[test]
fn whichever_call_of_the_disk_fails_bytes_are_right_and_accounts_hold() {
    let mut home = Home::in_memory(TIER);
    home.disk.record();
    run(&mut home).unwrap();
    let calls = home.disk.recorded();
    let kinds: std::collections::BTreeSet<_> = calls.iter().map(|call| call.operation).collect();
    let mut fired = 0;
    for fault in [DiskFault::BROKEN, DiskFault::FULL, DiskFault::Short] {
        for DiskCall { number, operation: name, .. } in calls.iter().cloned() {
            if !fault.is_possible(name) {
                continue;
            }
            let mut home = Home::in_memory(TIER);
            home.disk.fail(move |call| (call.number == number).then_some(fault));
            // A cache that cannot open says so; the next time it can.
            if let Err(error) = run(&mut home) {
                let allowed = [ErrorKind::Disk, ErrorKind::NoSpace];
                assert!(allowed.contains(&error.kind()), "call {number} ({name}), {fault:?}: {error}");
            }
            // Runs part ways after a fault, but up to it they are the same.
            assert_eq!(home.disk.fired(), 1, "call {number} ({name}) did not meet {fault:?}");
            fired += 1;
            recovers(&mut home);
        }
    }
    println!("{fired} faults in {} calls of {kinds:?}", calls.len());
    assert!(fired > calls.len() && calls.len() > 200);
}

/// After the fault is over everything works, and what is there is right.
fn recovers(home: &mut Home) {
    home.disk.heal();
    home.clock.advance(Duration::from_secs(60));
    let cache = home.reopen();
    (0..30).for_each(|object| read_all(&cache, object));
    for object in 40..50 {
        read_lent(&cached(&cache, object, 2 * PAGE).unwrap(), object, ByteRange::new(0, 2 * PAGE)).unwrap();
    }
    cache.flush().unwrap();
    assert!(cache.usage().tiers[0].healthy && cache.usage().index_healthy);
    assert!(cache.usage().tiers[0].used_bytes <= TIER);
}
