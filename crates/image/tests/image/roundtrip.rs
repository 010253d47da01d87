//! What was given is what a reader finds.

use std::collections::BTreeMap;

use penstock_image::{Allocator, BLOCK_BYTES, DEVICE_BLOCKS, Place};
use proptest::prelude::*;

use crate::listing::{BUILT_MS, Entry, Listing, settings};
use crate::reader::{Content, Image, Inode};

fn seconds_and_nanoseconds(time_ms: i64) -> (i64, u32) {
    (time_ms.div_euclid(1000), u32::try_from(time_ms.rem_euclid(1000)).unwrap() * 1_000_000)
}

fn place_of(inode: &Inode) -> Place {
    let Content::Chunks(_, chunks) = &inode.content else { panic!("{inode:?} has no chunks") };
    Place { device: chunks[0].0 - 1, offset: u64::from(chunks[0].1) * BLOCK_BYTES }
}

/// Writes the listing, walks the image and compares.
fn check(listing: &Listing, allocator: Allocator) {
    let (finished, places) = listing.to_bytes(allocator);
    let image = Image(&finished.out);
    let (inodes, devices) = image.superblock();
    assert_eq!(inodes, finished.files + finished.directories);
    assert_eq!(devices.iter().map(|&blocks| u64::from(blocks) * BLOCK_BYTES).collect::<Vec<_>>(), finished.devices);

    let mut found = image.walk();
    assert_eq!(found.len() as u64, inodes);
    let root = found.remove("").unwrap();
    assert_eq!(root.modified, seconds_and_nanoseconds(BUILT_MS));
    let expected = listing.expected();
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let mut again = allocator;
    for (path, entry) in listing.given() {
        if let Entry::File { size, .. } = entry {
            assert_eq!(again.place(size).unwrap(), places[&path], "{path}: whoever asks again gets the same place");
        }
    }
    for (path, entry) in &expected {
        check_inode(path, *entry, &found[path], &places);
    }
    check_that_devices_are_filled_without_overlap(&found, &finished.devices);
}

fn check_inode(path: &str, entry: Entry, inode: &Inode, places: &BTreeMap<String, Place>) {
    let settings = settings();
    assert_eq!(inode.owner, settings.owner, "{path}");
    match entry {
        Entry::Directory { modified_ms } => {
            assert_eq!(u32::from(inode.mode), 0o040_000 | settings.directory_mode, "{path}");
            assert_eq!(inode.modified, seconds_and_nanoseconds(modified_ms), "{path}");
        }
        Entry::File { size, modified_ms } => {
            assert_eq!(u32::from(inode.mode), 0o100_000 | settings.file_mode, "{path}");
            assert_eq!((inode.size, inode.links), (size, 1), "{path}");
            assert_eq!(inode.modified, seconds_and_nanoseconds(modified_ms), "{path}");
            match &inode.content {
                Content::Here(_) => assert_eq!(size, 0, "{path}"),
                Content::Chunks(chunk, chunks) => {
                    assert_eq!(place_of(inode), places[path], "{path}");
                    assert_eq!(chunks.len() as u64, size.div_ceil(*chunk), "{path}");
                    assert!(chunks.len() == 1 || *chunk == BLOCK_BYTES << 31, "{path}: one chunk where it can be");
                }
            }
        }
    }
}

fn check_that_devices_are_filled_without_overlap(found: &BTreeMap<String, Inode>, devices: &[u64]) {
    let mut extents: Vec<(Place, u64)> = Vec::new();
    for inode in found.values() {
        if let Content::Chunks(chunk, chunks) = &inode.content {
            for (number, (device, block)) in (0..).zip(chunks) {
                let length = (inode.size - number * chunk).min(*chunk).next_multiple_of(BLOCK_BYTES);
                extents.push((Place { device: device - 1, offset: u64::from(*block) * BLOCK_BYTES }, length));
            }
        }
    }
    extents.sort_unstable();
    let mut ends = vec![0; devices.len()];
    for (place, length) in extents {
        assert_eq!(place.offset, ends[usize::from(place.device)]);
        ends[usize::from(place.device)] += length;
    }
    assert_eq!(ends, devices);
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[!-.a-c]{1,2}",
        2 => "[a-z0-9_.-]{1,40}",
        1 => "[^/\0]{1,20}",
        1 => "[xy]{250,255}",
        1 => "é{127}",
    ]
    .prop_filter("names of directories", |name| name != "." && name != "..")
}

fn listing() -> impl Strategy<Value = Listing> {
    let path = prop::collection::vec(name(), 1..5);
    let size = prop_oneof![2 => Just(0), 4 => 1..10_000_u64, 2 => 1..1_u64 << 33, 1 => 1..DEVICE_BLOCKS * BLOCK_BYTES];
    let time = prop_oneof![3 => 0..4_000_000_000_000_i64, 1 => -100_000_000_000_000..100_000_000_000_000_i64];
    let entry = prop_oneof![3 => size.prop_map(Some), 1 => Just(None)];
    prop::collection::vec((path, entry, time), 0..120).prop_map(|entries| {
        let mut listing = Listing::default();
        let mut files = std::collections::BTreeSet::new();
        let mut directories = std::collections::BTreeSet::new();
        for (path, size, modified_ms) in entries {
            let below_a_file = (1..path.len()).any(|depth| files.contains(&path[..depth]));
            if below_a_file || files.contains(&path) || (size.is_some() && directories.contains(&path)) {
                continue;
            }
            (1..path.len()).for_each(|depth| _ = directories.insert(path[..depth].to_vec()));
            match size {
                Some(size) => listing.file(&path.join("/"), size, modified_ms),
                None => listing.directory(&path.join("/"), modified_ms),
            }
            _ = if size.is_some() { files.insert(path) } else { directories.insert(path) };
        }
        listing
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_listing_is_found_again(listing in listing()) {
        check(&listing, Allocator::default());
    }

    #[test]
    fn every_name_is_found_by_halving_and_no_other_one(
        names in prop::collection::btree_set(name(), 0..600),
        others in prop::collection::vec(name(), 100),
    ) {
        let mut listing = Listing::default();
        names.iter().for_each(|name| listing.file(name, 1, 0));
        let (finished, _) = listing.to_bytes(Allocator::default());
        let image = Image(&finished.out);
        let root = image.inode(image.root());
        let entries = image.entries(&root);
        prop_assert!(entries.is_sorted_by(|one, next| one.name < next.name));
        prop_assert_eq!(entries.len(), names.len() + 2);
        for entry in entries {
            prop_assert_eq!(image.lookup(&root, &entry.name), Some(entry.inode));
        }
        for other in others {
            prop_assert_eq!(image.lookup(&root, &other).is_some(), names.contains(&other));
        }
    }
}

#[test]
fn an_image_of_nothing_has_a_root_and_needs_no_device() {
    check(&Listing::default(), Allocator::default());
    let (finished, _) = Listing::default().to_bytes(Allocator::default());
    assert_eq!((finished.files, finished.directories, finished.devices), (0, 1, vec![]));
}

#[test]
fn directories_of_every_size_around_a_block_are_found_again() {
    let mut listing = Listing::default();
    // 41 entries of 100 bytes and the two dots come near to a block; a last name goes over each border in steps of one.
    for length in 1..=255 {
        for number in 0..34 {
            listing.file(&format!("d{length:03}/{number:0>100}"), 0, 0);
        }
        listing.file(&format!("d{length:03}/{}", "z".repeat(length)), 0, 0);
        listing.directory(&format!("d{length:03}/{}", "~".repeat(length)), 0);
    }
    check(&listing, Allocator::default());
}

#[test]
fn a_directory_before_and_after_its_subdirectories_is_the_parent_of_all() {
    let mut listing = Listing::default();
    for outer in 0..40 {
        listing.file(&format!("{outer}/!first"), 1, 0);
        for inner in 0..outer * 4 {
            listing.file(&format!("{outer}/{inner}/file"), 1, 0);
            listing.directory(&format!("{outer}/{inner}/empty/empty"), -1);
        }
        listing.file(&format!("{outer}/~last"), 1, 0);
    }
    check(&listing, Allocator::default());
}

#[test]
fn a_tree_a_thousand_deep_is_found_again() {
    let mut listing = Listing::default();
    listing.file(&vec!["d"; 1000].join("/"), 7, 1);
    check(&listing, Allocator::default());
}

#[test]
fn files_of_many_tebibytes_have_as_few_chunks_as_can_be() {
    let mut listing = Listing::default();
    let largest = DEVICE_BLOCKS * BLOCK_BYTES;
    let sizes = [1 << 43, (1 << 43) + 1, largest, 1, largest, 1 << 43, largest - (1 << 43), 1];
    for (number, size) in sizes.into_iter().enumerate() {
        listing.file(&format!("{number}"), size, 0);
    }
    check(&listing, Allocator::default());
    let (finished, places) = listing.to_bytes(Allocator::default());
    assert_eq!(finished.devices, [1 << 43, (1 << 43) + 4096, largest, 4096, largest, largest, 4096]);
    assert_eq!(places["6"], Place { device: 5, offset: 1 << 43 });
}

#[test]
fn small_devices_are_filled_one_after_another() {
    let mut listing = Listing::default();
    for number in 0..200_u64 {
        listing.file(&format!("{number:03}"), number * 997 % 30_000, 0);
    }
    check(&listing, Allocator::with_device_blocks(8));
}

#[test]
fn the_same_listing_gives_the_same_bytes() {
    let mut listing = Listing::default();
    for number in 0..3000 {
        listing.file(&format!("{}/{number}", number % 37), number, 1);
    }
    let (first, _) = listing.to_bytes(Allocator::default());
    let (second, _) = listing.to_bytes(Allocator::default());
    assert!(first.out == second.out);
}
