//! Files that were written on this node become extents without being copied.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use penstock_cache::{Cache, Extent};
use penstock_testkit::{DiskCall, DiskFault, oracle};
use penstock_types::{ByteRange, ErrorKind, Result};
use rustix::io::Errno;

use crate::support::{Home, MIB, PAGE, cached, failing, fill, flip, id, read, read_lent};

const SIZE: u64 = 20 * PAGE + 100;

/// A test object as a whole file elsewhere in the home.
struct Written {
    path: PathBuf,
    sums: Vec<u32>,
    object: u64,
    size: u64,
}

impl Written {
    fn new(home: &Home, object: u64, size: u64) -> Self {
        let directory = home.directory.path().join("stage");
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(format!("{object}"));
        let content = oracle::content(object, 1, 0, size);
        std::fs::write(&path, &content).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let sums = content.chunks(PAGE as usize).map(crc32c::crc32c).collect();
        Self { path, sums, object, size }
    }

    fn adopt(&self, cache: &Cache, synced: bool) -> Result<Arc<Extent>> {
        cache.adopt(&id(self.object), self.size, self.sums.clone(), &self.path, synced)
    }

    fn facts(&self) -> std::fs::Metadata {
        std::fs::metadata(&self.path).unwrap()
    }

    /// The file is there, and every byte of it is right.
    fn check(&self) {
        let bytes = std::fs::read(&self.path).unwrap();
        assert_eq!(bytes.len() as u64, self.size);
        oracle::check(self.object, 1, 0, &bytes).unwrap();
    }
}

fn check(extent: &Arc<Extent>, object: u64) {
    assert!(extent.is_complete());
    let whole = ByteRange::new(0, extent.size());
    read(extent, object, whole).unwrap();
    read_lent(extent, object, whole).unwrap();
}

fn used(cache: &Cache) -> u64 {
    cache.usage().tiers.iter().map(|tier| tier.used_bytes).sum()
}

#[test]
fn an_adopted_file_is_not_copied_and_is_lent_and_served_with_checksums_checked() {
    let home = Home::new(8 * MIB);
    let cache = home.open();
    let written = Written::new(&home, 1, SIZE);
    home.disk.record();
    let extent = written.adopt(&cache, true).unwrap();
    let calls = home.disk.recorded();
    assert!(!calls.iter().any(|call| matches!(call.operation, "read" | "write")), "{calls:?}");
    check(&extent, 1);
    let file = home.files().remove(0);
    let facts = std::fs::metadata(&file).unwrap();
    assert_eq!((facts.ino(), facts.nlink(), facts.mode() & 0o777), (written.facts().ino(), 2, 0o400));
    assert_eq!(used(&cache), SIZE.next_multiple_of(4096));
    assert_eq!(cache.usage().extents, 1);
    assert!(Arc::ptr_eq(&cache.get(&id(1)).unwrap(), &extent));
    flip(&file, 5 * PAGE + 7);
    let error = read(&extent, 1, ByteRange::new(0, SIZE)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    // The bad page can be filled again; the file that was adopted is the same one.
    fill(&extent, 1, ByteRange::new(5 * PAGE, 6 * PAGE)).unwrap();
    check(&extent, 1);
    written.check();
}

#[test]
fn whoever_has_the_file_open_can_go_on_with_it_after_it_was_adopted() {
    let home = Home::new(8 * MIB);
    let cache = home.open();
    let written = Written::new(&home, 1, SIZE);
    let open = std::fs::OpenOptions::new().read(true).write(true).open(&written.path).unwrap();
    let extent = written.adopt(&cache, false).unwrap();
    let bytes = oracle::content(1, 1, 0, PAGE);
    rustix::io::pwrite(&open, &bytes, 0).unwrap();
    rustix::fs::fdatasync(&open).unwrap();
    std::fs::remove_file(&written.path).unwrap();
    check(&extent, 1);
    assert_eq!(open.metadata().unwrap().nlink(), 1);
}

#[test]
fn what_was_adopted_survives_a_restart_and_needs_no_verification_if_it_was_synced() {
    for (synced, verified) in [(true, 0), (false, SIZE.div_ceil(PAGE))] {
        let mut home = Home::new(8 * MIB);
        home.reboot("first");
        let cache = home.open();
        let written = Written::new(&home, 1, SIZE);
        written.adopt(&cache, synced).unwrap();
        cache.close();
        drop(cache);
        home.reboot("second");
        let cache = home.reopen();
        check(&cache.get(&id(1)).unwrap(), 1);
        assert_eq!(home.metrics.verified_pages.get(), verified, "synced: {synced}");
        assert_eq!(used(&cache), SIZE.next_multiple_of(4096));
    }
}

#[test]
fn what_was_adopted_unsynced_becomes_durable_as_everything_else_does() {
    let home = Home::new(8 * MIB);
    let cache = home.open();
    let syncs = || home.disk.recorded().iter().filter(|call| call.path.extension().is_some_and(|x| x == "x")).count();
    for (object, synced, expected) in [(1, true, 0), (2, false, 1)] {
        Written::new(&home, object, SIZE).adopt(&cache, synced).unwrap();
        home.clock.advance(Duration::from_secs(60));
        home.disk.record();
        cache.make_durable_step();
        assert_eq!(syncs(), expected, "synced: {synced}");
    }
}

#[test]
fn adopted_extents_are_evicted_as_others_are_and_accounts_return_to_zero() {
    let home = Home::new(4 * SIZE);
    let cache = home.open();
    let written: Vec<_> = (0..12).map(|object| Written::new(&home, object, SIZE)).collect();
    let mut leases = Vec::new();
    for file in &written {
        let extent = file.adopt(&cache, true).unwrap();
        check(&extent, file.object);
        assert!(used(&cache) <= 4 * SIZE);
        if file.object == 3 {
            leases.push(extent.lend().unwrap());
        }
    }
    assert!(home.metrics.cache_evicted_extents.get() >= 8);
    assert!(cache.get(&id(3)).is_some(), "what is lent stays");
    cache.flush().unwrap();
    for object in 0..12 {
        let _ = cache.evict(&id(object));
    }
    assert_eq!(cache.usage().tiers[0].lent_unlinked_bytes, used(&cache));
    leases.clear();
    assert_eq!((used(&cache), cache.usage().extents, home.files().len()), (0, 0, 0));
    assert_eq!(home.metrics.cache_bytes.get(), 0);
    for file in &written {
        file.check();
        assert_eq!(file.facts().nlink(), 1);
    }
}

#[test]
fn a_file_of_another_file_system_is_copied_and_its_sums_are_checked() {
    for errno in [Errno::XDEV, Errno::PERM, Errno::MLINK, Errno::OPNOTSUPP] {
        let home = Home::new(8 * MIB);
        let cache = home.open();
        home.disk.fail(move |call| (call.operation == "link").then(|| failing(errno)));
        let written = Written::new(&home, 1, SIZE);
        let extent = written.adopt(&cache, true).unwrap();
        check(&extent, 1);
        let copy = std::fs::metadata(home.files().remove(0)).unwrap();
        assert_ne!(copy.ino(), written.facts().ino());
        assert_eq!((copy.nlink(), written.facts().nlink(), written.facts().mode() & 0o777), (1, 1, 0o600));
        assert_eq!(used(&cache), SIZE.next_multiple_of(4096));
        assert!(cache.usage().tiers[0].healthy, "{errno:?} is nobody's fault");
        let mut other = Written::new(&home, 2, SIZE);
        other.sums[20] ^= 1;
        assert_eq!(other.adopt(&cache, true).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(!cache.get(&id(2)).unwrap().is_complete());
        other.check();
    }
}

#[test]
fn a_full_tier_refuses_and_the_file_is_untouched() {
    let home = Home::new(30 * PAGE);
    let cache = home.open();
    let lease = cached(&cache, 1, 15 * PAGE).unwrap().lend().unwrap();
    let before = used(&cache);
    for elsewhere in [false, true] {
        home.disk.fail(move |call| (elsewhere && call.operation == "link").then(|| failing(Errno::XDEV)));
        let written = Written::new(&home, 2, SIZE);
        assert_eq!(written.adopt(&cache, true).unwrap_err().kind(), ErrorKind::NoSpace);
        written.check();
        assert_eq!((written.facts().nlink(), written.facts().mode() & 0o777), (1, 0o600));
        let _ = cache.evict(&id(2));
        assert_eq!(used(&cache), before);
    }
    let larger = Written::new(&home, 3, 31 * PAGE);
    assert_eq!(larger.adopt(&cache, true).unwrap_err().kind(), ErrorKind::NoSpace);
    drop(lease);
    let written = Written::new(&home, 2, SIZE);
    check(&written.adopt(&cache, true).unwrap(), 2);
}

#[test]
fn a_file_that_is_not_what_is_said_of_it_is_refused() {
    let home = Home::new(8 * MIB);
    let cache = home.open();
    let mut written = Written::new(&home, 1, SIZE);
    let right = written.sums.clone();
    for sums in [Vec::new(), right[1..].to_vec(), [&right[..], &[0]].concat()] {
        written.sums = sums;
        assert_eq!(written.adopt(&cache, true).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    (written.sums, written.size) = (right, SIZE - 1);
    assert_eq!(written.adopt(&cache, true).unwrap_err().kind(), ErrorKind::InvalidInput);
    std::fs::remove_file(&written.path).unwrap();
    written.size = SIZE;
    assert_eq!(written.adopt(&cache, true).unwrap_err().kind(), ErrorKind::Disk);
    assert!(home.files().is_empty() && cache.get(&id(1)).is_none() && used(&cache) == 0);
    assert!(cache.usage().tiers[0].healthy);
}

#[test]
fn what_of_a_version_is_cached_already_is_kept_and_the_rest_comes_from_the_file() {
    let home = Home::new(16 * MIB);
    let cache = home.open();
    let known = cached(&cache, 1, SIZE).unwrap();
    home.disk.record();
    let adopted = Written::new(&home, 1, SIZE).adopt(&cache, true).unwrap();
    assert!(Arc::ptr_eq(&known, &adopted));
    assert!(!home.disk.recorded().iter().any(|call| call.operation == "link"));
    let partial = cache.get_or_create(&id(2), SIZE).unwrap();
    fill(&partial, 2, ByteRange::new(3 * PAGE, 5 * PAGE)).unwrap();
    let lease = partial.lend().unwrap();
    let written = Written::new(&home, 2, SIZE);
    assert!(Arc::ptr_eq(&partial, &written.adopt(&cache, true).unwrap()));
    check(&partial, 2);
    let lent = rustix::fs::fstat(lease.descriptor()).unwrap();
    assert_ne!(lent.st_ino, written.facts().ino(), "what is lent is the file that is filled");
    let nothing = Written::new(&home, 3, 0).adopt(&cache, true).unwrap();
    assert!(nothing.is_complete() && nothing.lend().is_ok());
}

#[test]
fn a_name_in_the_tier_without_a_record_is_removed_after_a_kill_and_replaced_when_its_number_comes_again() {
    let mut home = Home::new(8 * MIB);
    let cache = home.open();
    let written = Written::new(&home, 1, SIZE);
    written.adopt(&cache, true).unwrap();
    assert_eq!(written.facts().nlink(), 2);
    // Nothing was stored since: a kill.
    drop(cache);
    let cache = home.reopen();
    assert!(cache.get(&id(1)).is_none());
    cache.flush().unwrap();
    assert_eq!((home.files().len(), written.facts().nlink()), (0, 1));
    let extent = written.adopt(&cache, true).unwrap();
    check(&extent, 1);
    let file = home.files().remove(0);
    assert!(cache.evict(&id(1)).is_ok());
    // The next number is taken by a file that nobody knows.
    let next = u64::from_str_radix(file.file_stem().unwrap().to_str().unwrap(), 16).unwrap() + 1;
    std::fs::write(file.with_file_name(format!("{next:016x}.x")), b"leftover").unwrap();
    check(&written.adopt(&cache, true).unwrap(), 1);
    assert_eq!(home.files().len(), 1);
    written.check();
}

#[test]
fn an_extent_that_is_filled_while_its_file_is_adopted_is_right_whoever_is_first() {
    let home = Home::new(64 * MIB);
    let cache = home.open();
    for object in 0..40 {
        let written = Written::new(&home, object, SIZE);
        std::thread::scope(|scope| {
            scope.spawn(|| written.adopt(&cache, true).unwrap());
            scope.spawn(|| drop(cached(&cache, object, SIZE).unwrap()));
            scope.spawn(|| cache.get_or_create(&id(object), SIZE).unwrap().lend().unwrap());
        });
        check(&cache.get(&id(object)).unwrap(), object);
        written.check();
        assert!(cache.evict(&id(object)).is_ok());
    }
    assert_eq!((used(&cache), home.metrics.leases.get()), (0, 0));
}

/// Adopts until others have to leave, with a link and by a copy, and reads all of it.
fn run(home: &Home, elsewhere: bool) -> Vec<Written> {
    let written: Vec<_> = (0..3).map(|object| Written::new(home, object, SIZE)).collect();
    let Ok(cache) = Cache::open(home.parts()) else { return written };
    for file in &written {
        match file.adopt(&cache, file.object == 1) {
            Ok(extent) => {
                let whole = ByteRange::new(0, SIZE);
                let read = read(&extent, file.object, whole).and_then(|()| read_lent(&extent, file.object, whole));
                allow(read);
            }
            Err(error) => allow(Err(error)),
        }
        allow(cache.flush());
    }
    let kept: u64 = cache.entries(None, 10).iter().map(|entry| entry.present_bytes.next_multiple_of(4096)).sum();
    assert!(kept <= used(&cache) && used(&cache) <= 45 * PAGE, "{kept} kept, elsewhere: {elsewhere}");
    cache.close();
    written
}

fn allow(outcome: Result<()>) {
    if let Err(error) = outcome {
        assert!(matches!(error.kind(), ErrorKind::Disk | ErrorKind::NoSpace | ErrorKind::Corrupt), "{error}");
    }
}

#[test]
fn whichever_call_of_the_disk_fails_while_files_are_adopted_they_stay_and_accounts_hold() {
    let mut fired = 0;
    for elsewhere in [false, true] {
        let divert = move |call: &DiskCall| (elsewhere && call.operation == "link").then(|| failing(Errno::XDEV));
        let home = Home::in_memory(45 * PAGE);
        home.disk.fail(divert);
        home.disk.record();
        run(&home, elsewhere);
        // Those of the index are made to fail elsewhere.
        let index = home.index();
        let calls: Vec<_> = home.disk.recorded().into_iter().filter(|call| call.path != index).collect();
        assert!(calls.iter().any(|call| call.operation == "link"));
        for fault in [DiskFault::BROKEN, DiskFault::FULL, DiskFault::Short] {
            for failing in calls.iter().filter(|call| fault.is_possible(call.operation)) {
                let mut home = Home::in_memory(45 * PAGE);
                let number = failing.number;
                home.disk.fail(move |call| if call.number == number { Some(fault) } else { divert(call) });
                run(&home, elsewhere).iter().for_each(Written::check);
                fired += 1;
                home.disk.heal();
                home.clock.advance(Duration::from_secs(60));
                let cache = home.reopen();
                let again = Written::new(&home, 9, SIZE);
                check(&again.adopt(&cache, true).unwrap(), 9);
                cache.flush().unwrap();
                assert!(cache.usage().tiers[0].healthy && used(&cache) <= 45 * PAGE);
            }
        }
    }
    println!("{fired} faults");
    assert!(fired > 100);
}
