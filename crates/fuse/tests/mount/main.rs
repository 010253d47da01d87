//! The door behind a real kernel mount. Needs root and /dev/fuse, and says so where it has not both.

#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod support;
mod writing;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use penstock_fuse::{Mount, Surroundings};
use penstock_types::{Expired, Metrics, NodeId, SystemClock};
use rustix::io::Errno;

use support::{Bench, Conditions, MANY, MANY_NAMES, MemoryTree, Way, await_that};

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_io_error(&result.unwrap_err()).unwrap()
}

/// Every byte of a file, through a mapping of it.
fn mapped(file: &File, length: usize, flags: rustix::mm::MapFlags) -> Vec<u8> {
    use rustix::mm::{ProtFlags, mmap, munmap};
    // SAFETY: a fresh mapping, read within its length while it is there; the file is never truncated.
    unsafe {
        let start = mmap(std::ptr::null_mut(), length, ProtFlags::READ, flags, file, 0).unwrap();
        let bytes = std::slice::from_raw_parts(start.cast::<u8>(), length).to_vec();
        munmap(start, length).unwrap();
        bytes
    }
}

#[test]
fn a_mount_shows_owner_modes_sizes_times_and_space() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 1000, Way::Served)])) else { return };
    let (root, file) = (fs::metadata(bench.path("")).unwrap(), fs::metadata(bench.path("a")).unwrap());
    assert_eq!((root.uid(), root.gid(), root.permissions().mode()), (1234, 4321, 0o40555));
    assert_eq!((file.uid(), file.gid(), file.permissions().mode()), (1234, 4321, 0o100_444));
    assert_eq!((file.size(), file.blocks(), file.nlink()), (1000, 2, 1));
    assert_eq!((file.ino(), file.mtime(), file.mtime_nsec()), (10, 1_700_000_000, 123_000_000));
    let space = rustix::fs::statvfs(bench.path("a")).unwrap();
    assert_eq!((space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize), (1 << 40, 1 << 39));
    let device = bench.mount.facts().connection.map(u64::from);
    assert_eq!(device, Some(rustix::fs::minor(file.dev()).into()));
}

#[test]
fn a_name_that_is_absent_is_asked_for_once() {
    let Some(bench) = Bench::new(MemoryTree::default()) else { return };
    for _ in 0..5 {
        assert_eq!(fs::metadata(bench.path("absent")).unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!(bench.tree.lookups.load(Ordering::SeqCst), 1);
}

/// The names from where a directory is read on, each with the place after it.
fn names_from(directory: &mut rustix::fs::Dir) -> Vec<(String, i64)> {
    let entries = directory.map(Result::unwrap);
    entries.map(|entry| (entry.file_name().to_str().unwrap().to_owned(), entry.offset())).collect()
}

#[test]
fn a_large_directory_is_read_whole_and_can_be_gone_back_in() {
    let Some(bench) = Bench::new(MemoryTree::with(&[])) else { return };
    let open = || rustix::fs::Dir::read_from(File::open(bench.path("many")).unwrap()).unwrap();
    let mut directory = open();
    let names = names_from(&mut directory);
    let expected: Vec<String> = (0..MANY_NAMES).map(|number| format!("{number:05}")).collect();
    assert!(
        names
            .iter()
            .map(|(name, _)| name.as_str())
            .eq([".", ".."].into_iter().chain(expected.iter().map(String::as_str)))
    );
    // One goes back in what the kernel keeps; the other goes on in what it does not have yet.
    for mut directory in [directory, open()] {
        for from in [4_990_usize, 17, 701, 1_399, 2_800, 5_001] {
            directory.seek(names[from].1).unwrap();
            assert!(names_from(&mut directory) == names[from + 1..], "from {from}");
        }
        directory.rewind();
        assert!(names_from(&mut directory) == names);
    }
    assert!(bench.tree.remembered.load(Ordering::SeqCst) > 0, "attributes came with the names");
}

#[test]
fn names_that_came_with_attributes_are_not_looked_up_again() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 10, Way::Served), ("b", 20, Way::Served)])) else { return };
    let mut sizes: Vec<u64> = fs::read_dir(bench.path(""))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.metadata().unwrap().len())
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [10, 20]);
    assert_eq!(bench.tree.lookups.load(Ordering::SeqCst), 0);
    assert_eq!(bench.tree.remembered.load(Ordering::SeqCst), 3);
}

#[test]
fn the_kernel_reads_lent_files_without_asking() {
    let length = 3 * 1024 * 1024 + 17;
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", length, Way::Lent)])) else { return };
    assert!(bench.mount.facts().lending, "{}", bench.mount.facts().why);
    let file = File::open(bench.path("a")).unwrap();
    assert_eq!(fs::read(bench.path("a")).unwrap(), bench.tree.bytes("a"));
    assert_eq!(mapped(&file, length, rustix::mm::MapFlags::SHARED), bench.tree.bytes("a"));
    assert_eq!(bench.tree.file("a").reads.load(Ordering::SeqCst), 0);
    assert_eq!(bench.metrics.kernel_reads.get(), 0);
    assert_eq!(bench.metrics.kernel_lent_opens.get(), 2);
    drop(file);
    await_that("every file closed", || bench.mount.open_files() == 0);
    assert_eq!(fs::read(bench.path("a")).unwrap(), bench.tree.bytes("a"));
    assert_eq!(bench.metrics.kernel_lent_opens.get(), 3);
    assert_eq!((bench.tree.opens.load(Ordering::SeqCst), bench.metrics.kernel_lent_files.get()), (1, 1));
}

#[test]
fn a_file_that_the_tree_wants_to_be_asked_for_is_opened_by_it_again() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 100, Way::Lent)])) else { return };
    assert_eq!(fs::read(bench.path("a")).unwrap(), bench.tree.bytes("a"));
    await_that("every file closed", || bench.mount.open_files() == 0);
    bench.tree.file("a").set_way(Way::Served);
    assert_eq!(fs::read(bench.path("a")).unwrap(), bench.tree.bytes("a"));
    assert_eq!(bench.tree.opens.load(Ordering::SeqCst), 2);
    assert_eq!(bench.metrics.kernel_lent_opens.get(), 1);
    assert!(bench.metrics.kernel_reads.get() > 0);
}

#[test]
fn what_the_kernel_does_not_take_is_served() {
    let refused = File::open("/dev/null").unwrap();
    let tree = MemoryTree::with(&[("a", 100_000, Way::Lent)]);
    let conditions = Conditions { probe: &refused, privileged: true, no_open: false };
    let Some(bench) = Bench::under(conditions, tree) else { return };
    assert!(!bench.mount.facts().lending);
    assert!(!bench.mount.facts().why.is_empty());
    assert_eq!(fs::read(bench.path("a")).unwrap(), bench.tree.bytes("a"));
    assert_eq!(bench.metrics.kernel_lent_opens.get(), 0);
}

/// A mount where nothing is opened.
fn without_opens(tree: MemoryTree) -> Option<Bench> {
    Bench::under(Conditions { probe: &tempfile::tempfile().unwrap(), privileged: true, no_open: true }, tree)
}

#[test]
fn where_nothing_is_opened_a_warm_file_is_opened_and_read_without_any_request() {
    let length = 3 * 1024 * 1024 + 17;
    let tree = MemoryTree::with(&[("a", length, Way::Kept), ("b", 5000, Way::Kept), ("c", 70_000, Way::Kept)]);
    let Some(bench) = without_opens(tree) else { return };
    bench.tree.file("b").present.store(false, Ordering::SeqCst);
    let check = || {
        for name in ["a", "b", "c"] {
            assert_eq!(fs::read(bench.path(name)).unwrap(), bench.tree.bytes(name));
            let file = File::open(bench.path(name)).unwrap();
            let bytes = bench.tree.bytes(name);
            assert_eq!(mapped(&file, bytes.len(), rustix::mm::MapFlags::SHARED), bytes);
        }
    };
    // Once more: after its first read of a file, a kernel that may write asks when it was read.
    (0..2).for_each(|_| check());
    let requests = bench.metrics.kernel_requests.get();
    (0..20).for_each(|_| check());
    assert_eq!(bench.metrics.kernel_requests.get(), requests);
    assert_eq!((bench.metrics.kernel_opens.get(), bench.metrics.kernel_lent_opens.get()), (0, 0));
}

/// Waits until the name is asked for though it was to be believed for a minute.
fn await_lookup(bench: &Bench, name: &str, lookups: u64) {
    await_that("the name is taken back", || {
        fs::metadata(bench.path(name)).unwrap();
        bench.tree.lookups.load(Ordering::SeqCst) > lookups
    });
}

#[test]
fn a_version_that_is_gone_at_its_first_read_is_stale_and_its_name_is_looked_up_again() {
    let Some(bench) = without_opens(MemoryTree::with(&[("a", 5000, Way::Kept)])) else { return };
    assert_eq!(fs::metadata(bench.path("a")).unwrap().len(), 5000);
    bench.tree.file("a").set_way(Way::Gone);
    assert_eq!(errno(fs::read(bench.path("a"))), Errno::STALE);
    await_lookup(&bench, "a", bench.tree.lookups.load(Ordering::SeqCst));
    bench.tree.file("a").set_way(Way::Kept);
    assert_eq!(fs::read(bench.path("a")).unwrap(), bench.tree.bytes("a"));
}

#[test]
fn a_version_that_is_gone_while_its_file_is_open_has_its_name_taken_back_once() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 300_000, Way::Served)])) else { return };
    let file = File::open(bench.path("a")).unwrap();
    bench.tree.file("a").present.store(false, Ordering::SeqCst);
    bench.tree.file("a").set_way(Way::Gone);
    let lookups = bench.tree.lookups.load(Ordering::SeqCst);
    let read = || errno(file.read_at(&mut [0; 100], 200_000));
    assert_eq!(read(), Errno::STALE);
    await_lookup(&bench, "a", lookups);
    let lookups = bench.tree.lookups.load(Ordering::SeqCst);
    (0..1000).for_each(|_| assert_eq!(read(), Errno::STALE));
    fs::metadata(bench.path("a")).unwrap();
    assert_eq!(bench.tree.lookups.load(Ordering::SeqCst), lookups);
}

/// How often names were looked up for `work`.
fn lookups(bench: &Bench, work: impl FnOnce()) -> u64 {
    let before = bench.tree.lookups.load(Ordering::SeqCst);
    work();
    bench.tree.lookups.load(Ordering::SeqCst) - before
}

#[test]
fn a_name_that_is_taken_back_is_looked_up_again_whether_something_had_it_or_not() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 5000, Way::Served)])) else { return };
    let look = || {
        assert_eq!(fs::metadata(bench.path("a")).unwrap().len(), 5000);
        assert_eq!(fs::metadata(bench.path("none")).unwrap_err().kind(), ErrorKind::NotFound);
    };
    assert_eq!(lookups(&bench, look), 2);
    assert_eq!(lookups(&bench, look), 0);
    let file = File::open(bench.path("a")).unwrap();
    bench.expire(["a", "none", "unknown"].map(|name| Expired::Name(NodeId::ROOT, name.into())).to_vec());
    assert_eq!(bench.metrics.kernel_expirations.get(), 3);
    assert_eq!(lookups(&bench, look), 2);
    let mut bytes = [0; 5000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, bench.tree.bytes("a"), "who has it open keeps it");
}

#[test]
fn names_that_the_kernel_keeps_are_read_again_once_they_are_taken_back() {
    let Some(bench) = Bench::new(MemoryTree::with(&[])) else { return };
    bench.tree.keeps_names.store(true, Ordering::SeqCst);
    let read = || {
        let before = bench.tree.lists.load(Ordering::SeqCst);
        assert_eq!(fs::read_dir(bench.path("many")).unwrap().count() as u64, MANY_NAMES);
        bench.tree.lists.load(Ordering::SeqCst) - before
    };
    assert!(read() > 0);
    assert_eq!(read(), 0);
    bench.expire(vec![Expired::Names(NodeId(MANY))]);
    assert!(read() > 0);
    assert_eq!(read(), 0);
}

#[test]
fn while_the_kernel_is_late_to_forget_it_is_told_to_believe_nothing() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 5000, Way::Served)])) else { return };
    let twice = |name: &str| {
        lookups(&bench, || {
            (0..2).for_each(|_| assert!(fs::metadata(bench.path("many").join(name)).unwrap().is_file()));
        })
    };
    assert_eq!(twice("00001"), 2, "the directory and the name, once each");
    // A program that waits for a name holds the directory that one is to be forgotten in.
    let (path, before) = (bench.path("blocks"), bench.tree.lookups.load(Ordering::SeqCst));
    let waiting = std::thread::spawn(move || fs::metadata(path).is_err());
    await_that("the name to be looked up", || bench.tree.lookups.load(Ordering::SeqCst) > before);
    bench.expire(vec![Expired::Name(NodeId::ROOT, "a".into())]);
    assert_eq!(twice("00002"), 2, "the name, every time");
    bench.tree.open_gate();
    assert!(waiting.join().unwrap());
    await_that("belief", || twice("00003") < 2);
}

#[test]
fn a_kernel_that_refuses_to_forget_is_told_to_believe_nothing_any_more() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 5000, Way::Served)])) else { return };
    bench.tree.keeps_names.store(true, Ordering::SeqCst);
    let thrice = |name: &str| lookups(&bench, || assert!((0..3).all(|_| bench.path(name).exists())));
    assert_eq!(thrice("many"), 1);
    bench.expire(vec![Expired::Name(NodeId::ROOT, "longer than any name ".repeat(1000).into())]);
    assert_eq!(thrice("a"), 3);
    let read = || {
        let before = bench.tree.lists.load(Ordering::SeqCst);
        assert_eq!(fs::read_dir(bench.path("many")).unwrap().count() as u64, MANY_NAMES);
        bench.tree.lists.load(Ordering::SeqCst) - before
    };
    assert!((0..2).all(|_| read() > 0), "it is told not to keep names");
    assert_eq!(fs::read(bench.path("a")).unwrap(), bench.tree.bytes("a"));
}

#[test]
fn a_node_without_the_privilege_serves_and_says_what_it_lacks() {
    let tree = MemoryTree::with(&[("a", 100_000, Way::Lent)]);
    let conditions = Conditions { probe: &tempfile::tempfile().unwrap(), privileged: false, no_open: false };
    let Some(bench) = Bench::under(conditions, tree) else { return };
    assert!(bench.mount.facts().why.contains("CAP_SYS_ADMIN"), "{}", bench.mount.facts().why);
    assert_eq!(fs::read(bench.path("a")).unwrap(), bench.tree.bytes("a"));
    assert_eq!(bench.metrics.kernel_lent_opens.get(), 0);
}

#[tokio::test]
async fn what_is_not_mounted_is_not_served() {
    let serve = |device: OwnedFd| {
        let (runtime, clock) = (tokio::runtime::Handle::current(), Arc::new(SystemClock::default()));
        let surroundings = Surroundings { metrics: Metrics::default(), runtime, clock };
        let options = support::options(Path::new("/nowhere"));
        Mount::serve(device, None, options, surroundings, |_| Arc::new(MemoryTree::default())).err().unwrap()
    };
    let (reading, _writing) = std::io::pipe().unwrap();
    assert_eq!(serve(reading.into()).kind(), penstock_types::ErrorKind::InvalidInput);
    let Some(device) = support::device() else { return };
    assert_eq!(serve(device).kind(), penstock_types::ErrorKind::Unsupported);
}

fn check_bytes(path: &Path, bytes: &[u8]) {
    assert_eq!(fs::read(path).unwrap(), bytes);
    let mut file = File::open(path).unwrap();
    for (offset, length) in [(0, 1), (1, 4095), (4095, 2), (65_535, 131_073), (1_048_575, 1_048_580), (7, 0)] {
        let mut part = vec![0; length];
        file.read_exact_at(&mut part, offset as u64).unwrap();
        assert!(part == bytes[offset..offset + length], "at {offset} for {length}");
    }
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(bytes.len() as u64 - 5)).unwrap();
    file.read_to_end(&mut end).unwrap();
    assert_eq!(end, bytes[bytes.len() - 5..]);
    assert_eq!(file.read_at(&mut [0; 10], bytes.len() as u64 + 100).unwrap(), 0);
    assert_eq!(mapped(&file, bytes.len(), rustix::mm::MapFlags::SHARED), bytes);
    assert_eq!(mapped(&file, bytes.len(), rustix::mm::MapFlags::PRIVATE), bytes);
}

#[test]
fn files_that_are_served_have_their_bytes_at_any_offset_and_mapped() {
    let length = 3 * 1024 * 1024 + 17;
    let files = [("kept", length, Way::Kept), ("served", length, Way::Served)];
    let Some(bench) = Bench::new(MemoryTree::with(&files)) else { return };
    for (name, ..) in files {
        for present in [false, true] {
            bench.tree.file(name).present.store(present, Ordering::SeqCst);
            check_bytes(&bench.path(name), bench.tree.bytes(name));
        }
    }
    let reads = || bench.tree.file("kept").reads.load(Ordering::SeqCst);
    let is_kept = || {
        let before = reads();
        assert_eq!(fs::read(bench.path("kept")).unwrap(), bench.tree.bytes("kept"));
        reads() == before
    };
    // A kernel that needs memory may let go of pages, but not each time.
    await_that("its pages to be kept", is_kept);
}

#[test]
fn a_large_read_comes_in_requests_of_a_mebibyte() {
    let length = 8 * 1024 * 1024;
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", length, Way::Served)])) else { return };
    let mut bytes = vec![0; length];
    File::open(bench.path("a")).unwrap().read_exact(&mut bytes).unwrap();
    assert!(bytes == bench.tree.bytes("a"));
    // One more where the buffer does not begin at a page.
    assert!((8..=9).contains(&bench.metrics.kernel_reads.get()));
}

#[test]
fn a_request_without_an_answer_times_out_and_the_others_go_on() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 100, Way::Served)])) else { return };
    let hanging: Vec<_> = (0..8)
        .map(|_| {
            let path = bench.path("hangs");
            std::thread::spawn(move || errno(fs::metadata(path)))
        })
        .collect();
    await_that("a parked request", || bench.mount.oldest_request().is_some());
    for _ in 0..100 {
        assert_eq!(fs::read(bench.path("a")).unwrap(), bench.tree.bytes("a"));
    }
    for thread in hanging {
        assert_eq!(thread.join().unwrap(), Errno::TIMEDOUT);
    }
    await_that("an end of every request", || bench.mount.oldest_request().is_none());
}

#[test]
fn a_panic_fails_one_request_and_a_busy_source_is_no_reason_to_poll() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 100, Way::Served)])) else { return };
    for _ in 0..5 {
        assert_eq!(errno(fs::metadata(bench.path("panics"))), Errno::IO);
        assert_eq!(errno(fs::metadata(bench.path("panics-later"))), Errno::IO);
        assert_eq!(errno(fs::metadata(bench.path("throttled"))), Errno::IO);
    }
    assert_eq!(fs::read(bench.path("a")).unwrap(), bench.tree.bytes("a"));
}

#[test]
fn nothing_can_be_changed() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 100, Way::Served)])) else { return };
    let (a, b) = (bench.path("a"), bench.path("b"));
    let file = File::open(&a).unwrap();
    let refused = [
        ("write", errno(OpenOptions::new().write(true).open(&a))),
        ("read and write", errno(OpenOptions::new().read(true).write(true).open(&a))),
        ("append", errno(OpenOptions::new().append(true).open(&a))),
        ("create", errno(File::create(&b))),
        ("truncate", errno(OpenOptions::new().write(true).truncate(true).open(&a))),
        ("mkdir", errno(fs::create_dir(&b))),
        ("unlink", errno(fs::remove_file(&a))),
        ("rmdir", errno(fs::remove_dir(bench.path("many")))),
        ("rename", errno(fs::rename(&a, &b))),
        ("link", errno(fs::hard_link(&a, &b))),
        ("symlink", errno(std::os::unix::fs::symlink(&a, &b))),
        ("chmod", errno(fs::set_permissions(&a, fs::Permissions::from_mode(0o600)))),
        ("utimes", errno(file.set_modified(std::time::UNIX_EPOCH))),
        ("mkfifo", errno(mknod(&b))),
        ("setxattr", errno(setxattr(&a))),
        ("removexattr", errno(rustix::fs::removexattr(&a, "user.penstock.state").map_err(Into::into))),
    ];
    for (operation, errno) in refused {
        assert_eq!(errno, Errno::ROFS, "{operation}");
    }
    assert_eq!(errno(fs::read_link(&a)), Errno::INVAL);
    assert_eq!(fs::read(&a).unwrap(), bench.tree.bytes("a"));
}

fn mknod(path: &Path) -> std::io::Result<()> {
    let mode = rustix::fs::Mode::RUSR;
    Ok(rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)?)
}

fn setxattr(path: &Path) -> std::io::Result<()> {
    Ok(rustix::fs::setxattr(path, "user.penstock.state", b"x", rustix::fs::XattrFlags::empty())?)
}

#[test]
fn extended_attributes_are_listed_and_read() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 100, Way::Served)])) else { return };
    let path = bench.path("a");
    let mut room = [0_u8; 200];
    let length = rustix::fs::listxattr(&path, &mut room[..]).unwrap();
    assert_eq!(&room[..length], b"user.penstock.node\0user.penstock.state\0");
    let length = rustix::fs::getxattr(&path, "user.penstock.state", &mut room[..]).unwrap();
    assert_eq!(&room[..length], b"cached");
    assert_eq!(rustix::fs::getxattr(&path, "user.penstock.state", &mut room[..5]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::getxattr(&path, "user.other", &mut room[..]), Err(Errno::NODATA));
    assert_eq!(rustix::fs::getxattr(&path, "security.capability", &mut room[..]), Err(Errno::NODATA));
}

#[test]
fn many_threads_open_the_same_lent_files_and_none_fails() {
    let names: Vec<String> = (0..80).map(|number| format!("f{number}")).collect();
    let files: Vec<(&str, usize, Way)> = names.iter().map(|name| (name.as_str(), 5_000, Way::Lent)).collect();
    let Some(bench) = Bench::new(MemoryTree::with(&files)) else { return };
    std::thread::scope(|scope| {
        for thread in 0..8_usize {
            let (bench, names) = (&bench, &names);
            scope.spawn(move || {
                for round in 0..300_usize {
                    // More files than ids are kept for, and one that all open at the same moment.
                    for name in [&names[0], &names[(thread * 31 + round * 7) % names.len()]] {
                        let bytes = fs::read(bench.path(name)).unwrap();
                        assert!(bytes == bench.tree.bytes(name), "{name}");
                    }
                }
            });
        }
    });
    assert_eq!(bench.metrics.kernel_reads.get(), 0);
    assert_eq!(bench.metrics.kernel_lent_opens.get(), 8 * 300 * 2);
    await_that("every file closed", || bench.mount.open_files() == 0);
}

#[test]
fn a_file_keeps_its_way_while_it_is_open_and_has_the_other_afterwards() {
    let length = 300_000;
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", length, Way::Served)])) else { return };
    let (path, file) = (bench.path("a"), bench.tree.file("a"));
    let served = File::open(&path).unwrap();
    assert_eq!(mapped(&served, length, rustix::mm::MapFlags::SHARED), bench.tree.bytes("a"));
    file.set_way(Way::Lent);
    check_small(&path, bench.tree.bytes("a"));
    assert_eq!(bench.metrics.kernel_lent_opens.get(), 0, "beside a mapped file that is served");
    drop(served);
    await_that("every file closed", || bench.mount.open_files() == 0);
    let lent = File::open(&path).unwrap();
    assert_eq!(bench.metrics.kernel_lent_opens.get(), 1);
    file.set_way(Way::Served);
    check_small(&path, bench.tree.bytes("a"));
    file.set_way(Way::Kept);
    check_small(&path, bench.tree.bytes("a"));
    assert_eq!(mapped(&lent, length, rustix::mm::MapFlags::SHARED), bench.tree.bytes("a"));
    assert_eq!(bench.metrics.kernel_lent_opens.get(), 1 + 4);
}

fn check_small(path: &Path, bytes: &[u8]) {
    assert!(fs::read(path).unwrap() == bytes);
    let file = File::open(path);
    assert!(mapped(&file.unwrap(), bytes.len(), rustix::mm::MapFlags::PRIVATE) == bytes);
}

#[test]
fn a_file_that_was_closed_is_kept_ready_until_the_cache_wants_it_back() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 100, Way::Lent)])) else { return };
    let held = || Arc::strong_count(bench.tree.file("a"));
    let before = held();
    let mut file = File::open(bench.path("a")).unwrap();
    bench.tree.file("a").evicted.store(true, Ordering::SeqCst);
    bench.mount.tidy();
    assert!(held() > before, "an open file is not let go of");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, bench.tree.bytes("a"));
    bench.tree.file("a").evicted.store(false, Ordering::SeqCst);
    drop(file);
    await_that("every file closed", || bench.mount.open_files() == 0);
    bench.mount.tidy();
    assert!(held() > before, "kept for the next open");
    bench.tree.file("a").evicted.store(true, Ordering::SeqCst);
    bench.mount.tidy();
    assert_eq!(held(), before);
}

#[test]
fn a_session_ends_when_it_is_unmounted_and_the_last_file_is_closed() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 300_000, Way::Served)])) else { return };
    let mut file = File::open(bench.path("a")).unwrap();
    bench.unmount();
    assert!(!bench.path("a").exists());
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, bench.tree.bytes("a"), "who has a file open reads it to the end");
    assert!(bench.mount.is_alive());
    drop(file);
    await_that("the end of the session", || !bench.mount.is_alive());
    await_that("the tree to be let go of", || Arc::strong_count(&bench.tree) == 1);
}

#[test]
fn a_mount_whose_thread_hangs_can_be_ended_from_outside() {
    let Some(bench) = Bench::new(MemoryTree::with(&[("a", 100, Way::Served)])) else { return };
    let path = bench.path("blocks");
    let waiting = std::thread::spawn(move || errno(fs::metadata(path)));
    await_that("a request to grow old", || {
        bench.mount.oldest_request().is_some_and(|age| age > Duration::from_millis(50))
    });
    bench.mount.stop(Duration::ZERO).unwrap();
    let failed = waiting.join().unwrap();
    assert!([Errno::CONNABORTED, Errno::NOTCONN, Errno::INTR].contains(&failed), "{failed}");
    assert!(!bench.mount.is_alive());
    bench.tree.open_gate();
}
