//! What programs write through a mount.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use penstock_fuse::{Mount, MountOptions, Surroundings};
use penstock_testkit::catches;
use penstock_types::{ErrorKind, Metrics, SystemClock};
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use crate::errno;
use crate::support::{self, Bench, WritableTree, await_that};

fn bench(files: &[(&str, &[u8])]) -> Option<Bench<WritableTree>> {
    Bench::new(WritableTree::with(files))
}

fn options() -> OpenOptions {
    File::options().read(true).write(true).clone()
}

/// Closes a file and says what that answered.
fn close(file: File) -> Result<(), Errno> {
    unsafe extern "C" {
        fn close(descriptor: i32) -> i32;
    }
    // SAFETY: the descriptor is ours, and nobody uses it afterwards.
    let failed = unsafe { close(file.into_raw_fd()) } != 0;
    if failed { Err(errno(Err::<(), _>(std::io::Error::last_os_error()))) } else { Ok(()) }
}

/// Bytes that say where they are.
fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at / 7 + at / 4096 + seed) % 251).unwrap()).collect()
}

#[test]
fn what_is_written_is_read_back_by_every_handle_at_once() {
    let Some(bench) = bench(&[]) else { return };
    let (path, bytes) = (bench.path("new"), pattern(3_000_017, 1));
    let mut file = options().create_new(true).open(&path).unwrap();
    let reader = File::open(&path).unwrap();
    file.write_all(&bytes).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes.len() as u64);
    assert!(fs::read(&path).unwrap() == bytes);
    file.write_all_at(b"changed", 1_000_000).unwrap();
    let mut part = [0; 9];
    reader.read_exact_at(&mut part, 999_999).unwrap();
    assert_eq!(part[1..8], *b"changed");
    let counts = &bench.tree.counts;
    assert_eq!(counts.commits.load(Ordering::SeqCst), 0, "nobody has closed it");
    close(file).unwrap();
    assert_eq!((counts.flushes.load(Ordering::SeqCst), counts.commits.load(Ordering::SeqCst)), (1, 1));
    await_that("the end of the writer", || counts.closes.load(Ordering::SeqCst) == 1);
    drop(reader);
    await_that("every file closed", || bench.mount.open_files() == 0);
    assert_eq!((counts.flushes.load(Ordering::SeqCst), counts.closes.load(Ordering::SeqCst)), (1, 1));
    let writes = bench.metrics.kernel_writes.get();
    assert!((4..=6).contains(&writes), "{writes} for three mebibytes and a few bytes");
    assert_eq!(bench.metrics.kernel_written_bytes.get(), bytes.len() as u64 + 7);
}

#[test]
fn a_write_is_one_request() {
    let Some(bench) = bench(&[]) else { return };
    let file = File::create(bench.path("a")).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    let before = bench.metrics.kernel_requests.get();
    (0..100).for_each(|at| file.write_all_at(b"some", at * 10_000).unwrap());
    assert_eq!(bench.metrics.kernel_requests.get() - before, 100);
}

#[test]
fn a_file_is_appended_to_cut_grown_and_emptied() {
    let Some(bench) = bench(&[]) else { return };
    let path = bench.path("a");
    fs::write(&path, b"0123456789").unwrap();
    for part in [b"abc", b"def"] {
        File::options().append(true).open(&path).unwrap().write_all(part).unwrap();
    }
    assert_eq!(fs::read(&path).unwrap(), b"0123456789abcdef");
    let file = options().open(&path).unwrap();
    file.set_len(4).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"0123");
    file.set_len(6).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"0123\0\0");
    rustix::fs::ftruncate(options().open(&path).unwrap(), 2).unwrap();
    assert_eq!((fs::metadata(&path).unwrap().len(), fs::read(&path).unwrap()), (2, b"01".to_vec()));
    let truncating = || bench.tree.counts.truncating_opens.load(Ordering::SeqCst);
    fs::write(&path, b"new").unwrap();
    assert_eq!((truncating(), fs::read(&path).unwrap()), (1, b"new".to_vec()));
    // What Linux does with it, though nobody should ask.
    let reading = rustix::fs::open(&path, OFlags::RDONLY | OFlags::TRUNC, Mode::empty()).unwrap();
    assert_eq!((truncating(), fs::read(&path).unwrap()), (2, Vec::new()));
    drop((file, reading));
    await_that("every file closed", || bench.mount.open_files() == 0);
}

#[test]
fn a_name_that_is_taken_is_not_made_again() {
    let Some(bench) = bench(&[("a", b"old")]) else { return };
    assert_eq!(errno(options().create_new(true).open(bench.path("a"))), Errno::EXIST);
    assert_eq!(errno(fs::create_dir(bench.path("a"))), Errno::EXIST);
    assert_eq!(fs::read(bench.path("a")).unwrap(), b"old");
}

#[test]
fn files_and_directories_are_renamed_and_removed() {
    let Some(bench) = bench(&[("a", b"of a"), ("b", b"of b")]) else { return };
    let path = |name: &str| bench.path(name);
    fs::create_dir(path("d")).unwrap();
    assert_eq!(fs::metadata(path("d")).unwrap().permissions().mode(), 0o40755);
    fs::write(path("d/c"), b"of c").unwrap();
    assert_eq!(errno(fs::remove_dir(path("d"))), Errno::NOTEMPTY);
    fs::rename(path("a"), path("d/a")).unwrap();
    fs::rename(path("d/c"), path("b")).unwrap();
    assert_eq!((fs::read(path("b")).unwrap(), fs::read(path("d/a")).unwrap()), (b"of c".to_vec(), b"of a".to_vec()));
    let flagged = |from: &str, to: &str, flags| {
        let here = rustix::fs::CWD;
        rustix::fs::renameat_with(here, path(from), here, path(to), flags).err()
    };
    assert_eq!(flagged("d/a", "b", RenameFlags::NOREPLACE), Some(Errno::EXIST));
    assert_eq!(flagged("d/a", "b", RenameFlags::WHITEOUT), Some(Errno::INVAL));
    for (b, a) in [(b"of a", b"of c"), (b"of c", b"of a")] {
        assert_eq!(flagged("d/a", "b", RenameFlags::EXCHANGE), None);
        assert_eq!((fs::read(path("b")).unwrap(), fs::read(path("d/a")).unwrap()), (b.to_vec(), a.to_vec()));
    }
    assert_eq!(flagged("d/a", "a", RenameFlags::NOREPLACE), None);
    assert_eq!(errno(fs::rename(path("a"), path("elsewhere"))), Errno::XDEV);
    assert_eq!(errno(fs::rename(path("a"), path("d"))), Errno::ISDIR);
    fs::rename(path("d"), path("e")).unwrap();
    fs::remove_dir(path("e")).unwrap();
    fs::remove_file(path("b")).unwrap();
    assert_eq!(errno(fs::remove_file(path("b"))), Errno::NOENT);
    assert_eq!(errno(fs::remove_dir(path("e"))), Errno::NOENT);
    let names: Vec<_> = fs::read_dir(path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn a_file_that_is_removed_or_renamed_goes_on_for_who_has_it_open() {
    let Some(bench) = bench(&[]) else { return };
    let (path, moved) = (bench.path("a"), bench.path("b"));
    let mut file = options().create(true).truncate(true).open(&path).unwrap();
    file.write_all(b"before ").unwrap();
    fs::rename(&path, &moved).unwrap();
    file.write_all(b"between ").unwrap();
    assert_eq!(fs::read(&moved).unwrap(), b"before between ");
    fs::remove_file(&moved).unwrap();
    file.write_all(b"after").unwrap();
    let mut all = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut all).unwrap();
    assert_eq!((all.as_str(), file.metadata().unwrap().len()), ("before between after", 20));
    close(file).unwrap();
    assert!(!moved.exists() && !path.exists());
}

#[test]
fn who_opens_a_version_for_writing_gets_another_node_and_its_readers_keep_theirs() {
    let Some(bench) = bench(&[("a", b"the old version")]) else { return };
    let path = bench.path("a");
    let (mut reader, stale) = (File::open(&path).unwrap(), &bench.tree.counts.stale_opens);
    let file = options().open(&path).unwrap();
    assert_eq!(stale.load(Ordering::SeqCst), 1);
    file.write_all_at(b"new", 4).unwrap();
    assert_ne!(file.metadata().unwrap().ino(), reader.metadata().unwrap().ino());
    let mut old = String::new();
    reader.read_to_string(&mut old).unwrap();
    assert_eq!(old, "the old version");
    assert_eq!(fs::read_to_string(&path).unwrap(), "the new version");
    close(file).unwrap();
    fs::write(&path, b"newer").unwrap();
    assert_eq!((stale.load(Ordering::SeqCst), fs::read(&path).unwrap()), (1, b"newer".to_vec()));
}

#[test]
fn a_close_tells_what_kept_the_file_from_being_durable_and_the_next_one_asks_again() {
    let Some(bench) = bench(&[]) else { return };
    let counts = &bench.tree.counts;
    let mut file = File::create(bench.path("a")).unwrap();
    file.write_all(b"some").unwrap();
    counts.fails_flushes.store(true, Ordering::SeqCst);
    assert_eq!(errno(file.sync_all()), Errno::NOSPC);
    let other = file.try_clone().unwrap();
    assert_eq!(close(file), Err(Errno::NOSPC));
    counts.fails_flushes.store(false, Ordering::SeqCst);
    assert_eq!((close(other), counts.commits.load(Ordering::SeqCst)), (Ok(()), 1));
    counts.is_full.store(true, Ordering::SeqCst);
    let mut file = File::create(bench.path("b")).unwrap();
    assert_eq!(errno(file.write_all(b"more")), Errno::NOSPC);
}

#[test]
fn a_close_takes_as_long_as_it_takes() {
    let Some(bench) = bench(&[]) else { return };
    let (counts, gate) = (&bench.tree.counts, Arc::new(tokio::sync::Notify::new()));
    let file = File::create(bench.path("a")).unwrap();
    *counts.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let closing = std::thread::spawn(move || close(file));
    await_that("the close", || counts.flushes.load(Ordering::SeqCst) == 1);
    assert_eq!(errno(fs::metadata(bench.path("hangs"))), Errno::TIMEDOUT, "a question has no such time");
    assert_eq!((closing.is_finished(), bench.mount.oldest_request()), (false, None));
    gate.notify_one();
    assert_eq!(closing.join().unwrap(), Ok(()));
}

#[test]
fn every_close_of_every_descriptor_is_heard_of_and_the_writer_ends_once() {
    let Some(bench) = bench(&[]) else { return };
    let counts = &bench.tree.counts;
    let mut file = File::create(bench.path("a")).unwrap();
    let copies: Vec<File> = (0..3).map(|_| file.try_clone().unwrap()).collect();
    file.write_all(b"some").unwrap();
    for (closed, copy) in (1..).zip(copies) {
        close(copy).unwrap();
        assert_eq!(counts.flushes.load(Ordering::SeqCst), closed);
    }
    assert_eq!((counts.commits.load(Ordering::SeqCst), counts.closes.load(Ordering::SeqCst)), (1, 0));
    close(file).unwrap();
    await_that("the end of the writer", || counts.closes.load(Ordering::SeqCst) == 1);
    assert_eq!(counts.flushes.load(Ordering::SeqCst), 4);
}

#[test]
fn a_sync_is_the_files_whoever_asks_for_it() {
    let Some(bench) = bench(&[("b", b"of b")]) else { return };
    let mut file = File::create(bench.path("a")).unwrap();
    file.write_all(b"some").unwrap();
    File::open(bench.path("b")).unwrap().sync_all().unwrap();
    assert_eq!(bench.tree.counts.commits.load(Ordering::SeqCst), 0);
    File::open(bench.path("a")).unwrap().sync_data().unwrap();
    assert_eq!(bench.tree.counts.commits.load(Ordering::SeqCst), 1);
    File::open(bench.path("")).unwrap().sync_all().unwrap();
}

#[test]
fn a_mapping_is_written_back_and_outlives_its_descriptor() {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
    let Some(bench) = bench(&[]) else { return };
    let (path, counts) = (bench.path("a"), &bench.tree.counts);
    let length = 300_000;
    let file = options().create_new(true).open(&path).unwrap();
    file.set_len(length as u64).unwrap();
    let bytes = pattern(length, 5);
    // SAFETY: a fresh mapping of a file of this length, written within it while it is there.
    unsafe {
        let (rights, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let start = mmap(std::ptr::null_mut(), length, rights, shared, &file, 0).unwrap();
        let mapped = std::slice::from_raw_parts_mut(start.cast::<u8>(), length);
        mapped.copy_from_slice(&bytes);
        msync(start, length, MsyncFlags::SYNC).unwrap();
        assert!(counts.flushes.load(Ordering::SeqCst) > 0);
        close(file).unwrap();
        mapped[77] = !mapped[77];
        assert_eq!(counts.closes.load(Ordering::SeqCst), 0, "it is mapped");
        munmap(start, length).unwrap();
    }
    await_that("the end of the writer", || counts.closes.load(Ordering::SeqCst) == 1);
    let mut expected = bytes;
    expected[77] = !expected[77];
    assert!(fs::read(&path).unwrap() == expected);
    assert!(bench.metrics.kernel_written_bytes.get() >= length as u64);
}

#[test]
fn space_is_allocated_and_given_back() {
    let Some(bench) = bench(&[]) else { return };
    let file = options().create_new(true).open(bench.path("a")).unwrap();
    file.write_all_at(&[7; 100], 0).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 50, 100).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 150);
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE, 10, 20).unwrap();
    let expected = [vec![7; 10], vec![0; 20], vec![7; 70], vec![0; 50]].concat();
    assert_eq!(fs::read(bench.path("a")).unwrap(), expected);
    let refused = rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 0, 10);
    assert_eq!(refused, Err(Errno::OPNOTSUPP));
}

#[test]
fn times_modes_and_owners_are_kept_and_are_the_mounts_where_nobody_has_said_others() {
    let Some(bench) = bench(&[("a", b"of a")]) else { return };
    let (path, file) = (bench.path("a"), options().open(bench.path("a")).unwrap());
    let shown = || fs::metadata(&path).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_millis(1_234_567)).unwrap();
    assert_eq!((shown().mtime(), shown().mtime_nsec()), (1234, 567_000_000));
    assert_eq!((shown().permissions().mode(), shown().uid(), shown().gid()), (0o100_644, 1234, 4321));
    file.set_times(fs::FileTimes::new().set_accessed(UNIX_EPOCH)).unwrap();
    assert_eq!(shown().mtime(), 1234, "nobody keeps when it was read");
    rustix::fs::utimensat(rustix::fs::CWD, &path, &now(), rustix::fs::AtFlags::empty()).unwrap();
    assert!(shown().mtime() > 1_600_000_000);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(shown().permissions().mode(), 0o100_600);
    std::os::unix::fs::chown(&path, Some(1), None).unwrap();
    assert_eq!((shown().uid(), shown().gid()), (1, 4321));
    let made = options().create_new(true).mode(0o751).open(bench.path("made")).unwrap();
    assert_eq!(made.metadata().unwrap().permissions().mode(), 0o100_751);
}

fn now() -> rustix::fs::Timestamps {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    rustix::fs::Timestamps { last_access: now, last_modification: now }
}

#[test]
fn what_no_object_store_has_is_not_made() {
    let Some(bench) = bench(&[("a", b"of a")]) else { return };
    let (a, b) = (bench.path("a"), bench.path("b"));
    let make = |kind| rustix::fs::mknodat(rustix::fs::CWD, &b, kind, Mode::RUSR, 0).map_err(Into::into);
    let refused = [
        ("symlink", errno(std::os::unix::fs::symlink(&a, &b))),
        ("link", errno(fs::hard_link(&a, &b))),
        ("mkfifo", errno(make(FileType::Fifo))),
        ("setxattr", errno(rustix::fs::setxattr(&a, "user.x", b"1", XattrFlags::empty()).map_err(Into::into))),
        ("removexattr", errno(rustix::fs::removexattr(&a, "user.x").map_err(Into::into))),
    ];
    for (operation, errno) in refused {
        assert_eq!(errno, Errno::OPNOTSUPP, "{operation}");
    }
    let closes = || bench.tree.counts.closes.load(Ordering::SeqCst);
    make(FileType::RegularFile).unwrap();
    assert_eq!((fs::read(&b).unwrap(), closes()), (Vec::new(), 1));
    assert_eq!(errno(make(FileType::RegularFile)), Errno::EXIST);
    let name = |bytes: &[u8]| bench.path("").join(std::ffi::OsStr::from_bytes(bytes));
    assert_eq!(errno(File::create(name(b"f\xfcr"))), Errno::ILSEQ);
    assert_eq!(errno(fs::create_dir(name(b"f\xfcr"))), Errno::ILSEQ);
    assert_eq!(errno(File::create(name(&[b'a'; 300]))), Errno::NAMETOOLONG);
    assert_eq!(errno(fs::rename(&a, name(b"f\xfcr"))), Errno::ILSEQ);
}

#[test]
fn a_file_is_copied_and_written_past_the_page_cache() {
    let bytes = pattern(500_000, 9);
    let Some(bench) = bench(&[("a", &bytes)]) else { return };
    fs::copy(bench.path("a"), bench.path("b")).unwrap();
    assert!(fs::read(bench.path("b")).unwrap() == bytes);
    let direct = options().custom_flags(OFlags::DIRECT.bits().cast_signed()).open(bench.path("b")).unwrap();
    direct.write_all_at(&[3; 4096], 8192).unwrap();
    let mut part = [0; 4098];
    File::open(bench.path("b")).unwrap().read_exact_at(&mut part, 8191).unwrap();
    assert_eq!((part[0], part[1], part[4096], part[4097]), (bytes[8191], 3, 3, bytes[8192 + 4096]));
}

#[test]
fn a_writer_ends_once_with_a_connection_that_is_ended() {
    let Some(bench) = bench(&[]) else { return };
    let mut file = File::create(bench.path("a")).unwrap();
    file.write_all(b"some").unwrap();
    bench.mount.stop(Duration::from_secs(60)).unwrap();
    let counts = &bench.tree.counts;
    await_that("the end of the writer", || counts.closes.load(Ordering::SeqCst) == 1);
    assert!(file.write_all(b"more").is_err());
    assert!(file.as_raw_fd() >= 0);
    drop(file);
    await_that("the tree to be let go of", || Arc::strong_count(&bench.tree) == 1);
    assert_eq!(counts.closes.load(Ordering::SeqCst), 1);
}

#[test]
fn many_threads_write_files_of_their_own_and_one_together() {
    let Some(bench) = bench(&[]) else { return };
    let shared = File::create(bench.path("shared")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6_usize {
            let (bench, shared) = (&bench, &shared);
            scope.spawn(move || {
                for round in 0..30_usize {
                    let path = bench.path(&format!("{thread}"));
                    let bytes = pattern(10_000 + round * 777, thread);
                    fs::write(&path, &bytes).unwrap();
                    assert!(fs::read(&path).unwrap() == bytes, "{thread} {round}");
                    let offset = (round * 6 + thread) * 1000;
                    shared.write_all_at(&pattern(1000, offset), offset as u64).unwrap();
                    if round % 3 == 0 {
                        fs::remove_file(&path).unwrap();
                    }
                }
            });
        }
    });
    close(shared).unwrap();
    let expected: Vec<u8> = (0..180).flat_map(|part| pattern(1000, part * 1000)).collect();
    assert!(fs::read(bench.path("shared")).unwrap() == expected);
    await_that("every file closed", || bench.mount.open_files() == 0);
    await_that("the end of all writers", || bench.tree.counts.closes.load(Ordering::SeqCst) == 6 * 30 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_never_mounted_without_opens() {
    let Some((device, directory)) = support::mounted() else { return };
    let options = MountOptions { no_open: true, ..support::options(directory.path()) };
    let (runtime, clock) = (tokio::runtime::Handle::current(), Arc::new(SystemClock::default()));
    let surroundings = Surroundings { metrics: Metrics::default(), runtime, clock };
    let refused = Mount::serve(device, None, options, surroundings, |_| Arc::new(WritableTree::with(&[])));
    support::unmount(&directory);
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_close_that_does_not_wait_for_the_file_is_noticed() {
    let Some(_) = bench(&[]) else { return };
    catches("writing::a_close_tells_what_kept_the_file_from_being_durable_and_the_next_one_asks_again", "flush");
}
