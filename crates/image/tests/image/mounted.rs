//! Images as the kernel sees them. Each is mounted in a mount namespace of its own, which ends with its thread.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use penstock_image::{Allocator, BLOCK_BYTES, DEVICE_BLOCKS};
use penstock_testkit::oracle;
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use crate::listing::{Entry, Listing, OnDisk, settings};

/// Ends the mount before the directories around it are removed, also when a test fails.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, UnmountFlags::DETACH).expect("it was mounted by us");
    }
}

/// Mounts the image and looks at it; `Err` says why it cannot be mounted here.
fn mounted(disk: &OnDisk, root: &Path, look: impl FnOnce(&Path)) -> Result<(), String> {
    // SAFETY: no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(|errno| format!("unshare: {errno}"))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let devices = disk.devices.iter().map(|path| format!("device={}", path.display())).collect::<Vec<_>>();
    let options = CString::new(devices.join(",")).unwrap();
    match rustix::mount::mount(&disk.image, root, "erofs", MountFlags::RDONLY, options.as_c_str()) {
        Ok(()) => {}
        // Without privilege, without erofs, without mounts of files.
        Err(errno @ (Errno::PERM | Errno::NODEV | Errno::NOTBLK)) => return Err(format!("mount: {errno}")),
        Err(errno) => panic!("the kernel refuses the image: {errno}"),
    }
    let _mounted = Mounted(root);
    look(root);
    Ok(())
}

/// Past the test harness's capture: a skipped row must be seen even when everything passes.
fn announce(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("stderr is open");
}

/// Mounts in a thread of its own, because a thread that has left its mount namespace does not come back.
fn row(name: &str, disk: &OnDisk, directory: &Path, look: impl FnOnce(&Path) + Send) {
    let root = directory.join("root");
    fs::create_dir(&root).unwrap();
    let outcome = std::thread::scope(|scope| scope.spawn(|| mounted(disk, &root, look)).join());
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => {
            announce(&format!("SKIPPED row {name}: {reason}"));
            let required = std::env::var_os("PENSTOCK_TEST_REQUIRE_ROWS").is_some();
            assert!(!required, "row {name} is required and cannot run: {reason}");
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Everything below `root` but the root, by path relative to it.
fn walk(root: &Path) -> BTreeMap<String, Entry> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        let mut subdirectories = 0;
        for entry in fs::read_dir(root.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            let metadata = entry.metadata().unwrap();
            assert_eq!(entry.file_type().unwrap(), metadata.file_type(), "{path:?}: readdir and stat agree");
            assert_eq!(entry.ino(), metadata.ino(), "{path:?}: readdir and stat agree");
            assert_eq!((metadata.uid(), metadata.gid()), settings().owner, "{path:?}");
            let (mode, modified_ms) = (metadata.mode(), metadata.mtime() * 1000 + metadata.mtime_nsec() / 1_000_000);
            let told = if metadata.is_dir() {
                subdirectories += 1;
                waiting.push(path.clone());
                assert_eq!(mode, 0o040_000 | settings().directory_mode, "{path:?}");
                Entry::Directory { modified_ms }
            } else {
                assert_eq!(mode, 0o100_000 | settings().file_mode, "{path:?}");
                assert_eq!(metadata.nlink(), 1, "{path:?}");
                Entry::File { size: metadata.len(), modified_ms }
            };
            assert!(found.insert(path.into_os_string().into_string().unwrap(), told).is_none());
        }
        assert_eq!(root.join(&directory).metadata().unwrap().nlink(), 2 + subdirectories, "{directory:?}");
    }
    found
}

fn check(listing: &Listing, root: &Path) {
    let expected = listing.expected();
    let found = walk(root);
    if found != expected {
        let wrong = expected.iter().find(|(path, entry)| found.get(*path) != Some(*entry));
        let more = found.keys().find(|path| !expected.contains_key(*path));
        panic!("expected {wrong:?}, found {:?}; not expected {more:?}", wrong.and_then(|(path, _)| found.get(path)));
    }
    for (object, (path, entry)) in (0..).zip(&expected) {
        if let Entry::File { size, .. } = entry {
            let bytes = fs::read(root.join(path)).unwrap();
            assert_eq!(bytes.len() as u64, *size, "{path}");
            oracle::check(object, 1, 0, &bytes).unwrap_or_else(|wrong| panic!("{path}: {wrong}"));
        }
    }
}

/// Many files, empty ones, deep ones, names of every kind, times before 1970.
fn everything() -> Listing {
    let mut listing = Listing::default();
    for number in 0..2000_u64 {
        listing.file(
            &format!("small/{}/{number}", number % 50),
            number * 37 % 9000,
            1_600_000_000_000 + number.cast_signed(),
        );
        listing.file(&format!("alone/{number}/file"), number % 3, -number.cast_signed());
    }
    for number in 0..300 {
        listing.file(&format!("empty/{number}"), 0, 1);
        listing.directory(&format!("hollow/{number}"), 1_234_567_890_987);
        listing.directory(&format!("hollow/{number}/nested/nested"), -62_000_000_000_001);
    }
    listing.file(&vec!["deep"; 300].join("/"), 12_345, 5);
    listing.file("large", 20_000_001, 7);
    for name in [
        "!",
        "-",
        "-.",
        "--",
        ".-",
        "..-",
        "..a",
        ".a",
        "...",
        " ",
        "\n",
        "\u{1}",
        "\u{7f}",
        "日本語",
        "é",
        "\u{10ffff}",
        "a\\b",
        "~",
    ] {
        listing.file(name, 100, 1);
        listing.directory(&format!("dir{name}"), 3);
        listing.file(&format!("names/{name}"), 5000, 2);
    }
    for letter in 'a'..='z' {
        listing.file(&format!("long/{}", letter.to_string().repeat(255)), 10, 1);
        listing.file(&format!("long/{}{letter}", "ü".repeat(127)), 11, 1);
    }
    listing
}

#[test]
fn the_kernel_finds_what_was_listed() {
    let directory = tempfile::tempdir().unwrap();
    let listing = everything();
    let disk = OnDisk::write(&listing, Allocator::default(), directory.path());
    assert_eq!(disk.devices.len(), 1);
    row("erofs-everything", &disk, directory.path(), |root| check(&listing, root));
}

#[test]
fn the_kernel_reads_from_several_devices() {
    let directory = tempfile::tempdir().unwrap();
    let mut listing = Listing::default();
    for number in 0..500_u64 {
        listing.file(&format!("{}/{number}", number / 100), number * 9973 % 40_000, 1);
    }
    let disk = OnDisk::write(&listing, Allocator::with_device_blocks(1000), directory.path());
    assert!(disk.devices.len() > 2);
    row("erofs-devices", &disk, directory.path(), |root| check(&listing, root));
}

#[test]
fn the_kernel_mounts_a_tree_without_bytes_without_a_device() {
    let directory = tempfile::tempdir().unwrap();
    let mut listing = Listing::default();
    listing.file("a/empty", 0, 1);
    let disk = OnDisk::write(&listing, Allocator::default(), directory.path());
    assert!(disk.devices.is_empty());
    row("erofs-no-device", &disk, directory.path(), |root| check(&listing, root));
}

/// Names (with `.` and `..`) and, of each, where the next one is found. From here to the end of the directory.
fn names_from(directory: &File) -> Vec<(String, u64, u64)> {
    let mut buffer = vec![MaybeUninit::uninit(); 1 << 16];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        found.push((entry.file_name().to_str().unwrap().to_owned(), entry.ino(), entry.next_entry_cookie()));
    }
    found
}

#[test]
fn a_directory_of_many_blocks_is_read_from_everywhere_and_has_no_name_between_its_names() {
    const NAMES: u32 = 50_000;
    let directory = tempfile::tempdir().unwrap();
    let mut listing = Listing::default();
    for number in 0..NAMES {
        listing.file(&format!("many/{number:07}{}", "-".repeat(number as usize % 60)), 0, 1);
    }
    let disk = OnDisk::write(&listing, Allocator::default(), directory.path());
    row("erofs-many", &disk, directory.path(), |root| {
        check(&listing, root);
        let many = root.join("many");
        for number in 0..NAMES {
            for absent in [format!("{number:07}{}", "-".repeat(61)), format!("{number:06}"), format!("{number:07},")] {
                assert!(!many.join(&absent).exists(), "{absent}");
            }
        }
        let open = File::from(rustix::fs::open(&many, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap());
        let all = names_from(&open);
        assert_eq!(all.len(), NAMES as usize + 2);
        let inode_of = |name| all.iter().find(|(found, ..)| found == name).unwrap().1;
        assert_eq!(inode_of("."), many.metadata().unwrap().ino());
        assert_eq!(inode_of(".."), root.metadata().unwrap().ino());
        for at in (0..all.len()).step_by(1999).chain([all.len() - 1]) {
            rustix::fs::seek(&open, SeekFrom::Start(all[at].2)).unwrap();
            assert!(names_from(&open) == all[at + 1..], "from entry {at} on");
        }
    });
}

#[test]
fn the_kernel_reads_both_chunks_of_a_file_of_nine_tebibytes_and_the_last_block_of_a_device() {
    const CHUNK: u64 = BLOCK_BYTES << 31;
    let directory = tempfile::tempdir().unwrap();
    let mut listing = Listing::default();
    let large = CHUNK + (1 << 40) + 5;
    let rest = (DEVICE_BLOCKS - large.div_ceil(BLOCK_BYTES)) * BLOCK_BYTES;
    listing.file("a-first", 100, 1);
    listing.file("b-large", large, 1);
    listing.file("c-up-to-the-end", rest - BLOCK_BYTES, 1);
    let image = directory.path().join("image");
    let (finished, places) = listing.write(File::create(&image).unwrap(), Allocator::default());
    assert_eq!(finished.devices, [DEVICE_BLOCKS * BLOCK_BYTES]);

    let device = directory.path().join("data");
    let data = File::create(&device).unwrap();
    if let Err(error) = data.set_len(finished.devices[0]) {
        announce(&format!("SKIPPED row erofs-large: a sparse file of 16 TiB: {error}"));
        return;
    }
    let spots = [
        ("b-large", 0, 8192),
        ("b-large", CHUNK - 5000, CHUNK + 5000),
        ("b-large", large - 5000, large),
        ("c-up-to-the-end", 0, 5000),
        ("c-up-to-the-end", rest - BLOCK_BYTES - 5000, rest - BLOCK_BYTES),
    ];
    for (path, start, end) in spots {
        data.write_all_at(&oracle::content(end, 1, start, end), places[path].offset + start).unwrap();
    }
    let disk = OnDisk { image, devices: vec![device] };
    row("erofs-large", &disk, directory.path(), |root| {
        assert_eq!(walk(root), listing.expected());
        for (path, start, end) in spots {
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            File::open(root.join(path)).unwrap().read_exact_at(&mut bytes, start).unwrap();
            oracle::check(end, 1, start, &bytes).unwrap_or_else(|wrong| panic!("{path}: {wrong}"));
        }
    });
}
