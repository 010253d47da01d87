//! Snapshots: frozen names, and their bytes by address, asked without a kernel.

#![allow(clippy::unwrap_used, reason = "these are tests, their support included")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use std::path::PathBuf;
use std::sync::Arc;

use penstock_engine::{Frozen, ImageOptions, Snapshot};
use penstock_image::{Allocator, Place};
use penstock_testkit::oracle;
use penstock_types::{Answer, ByteRange, ErrorKind, NodeFile, NodeId, Result, TreePath};
use support::{Bench, MIB, Setup, attachment};

struct World {
    bench: Bench,
    document: PathBuf,
    image: ImageOptions,
}

/// What lies where: object number, version, size and place, in the order of the document.
type Placed = Vec<(u64, u64, u64, Place)>;

impl World {
    fn start(name: &str, setup: &Setup) -> Self {
        let bench = Bench::start(name, setup);
        let document = bench.home.path().join("it.snapshot");
        let file = bench.home.path().join("it.image");
        let image = ImageOptions { file, owner: (0, 0), file_mode: 0o444, directory_mode: 0o555 };
        Self { bench, document, image }
    }

    fn freeze(&self, path: &str) -> Result<u64> {
        let path = TreePath::parse(path).unwrap();
        let frozen = self.bench.engine.create_snapshot(&path, "it", &self.document);
        self.bench.runtime.block_on(frozen).map(|facts| facts.files)
    }

    fn open(&self) -> Arc<Frozen> {
        self.bench.engine.open_snapshot(&self.document, &self.image).unwrap()
    }

    fn device(&self, frozen: &Arc<Frozen>) -> Arc<dyn NodeFile> {
        let tree = frozen.device_tree();
        let Answer::Now(Ok(looked)) = tree.lookup(NodeId::ROOT, "0") else { panic!("it is known") };
        let found = looked.found.unwrap();
        assert_eq!(found.size, frozen.devices()[0]);
        let Answer::Now(Ok(opened)) = tree.open(found.node) else { panic!("it opens at once") };
        opened.file
    }

    fn read(&self, file: &Arc<dyn NodeFile>, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut out = vec![0xff; length];
        match file.read_now(offset, &mut out)? {
            Some(read) => Ok(out[..read].to_vec()),
            None => {
                let range = ByteRange::new(offset, offset + length as u64);
                self.bench.runtime.block_on(Arc::clone(file).bring(range))
            }
        }
    }

    /// Where everything lies, told from names that are `NUMBER` in the document.
    fn placed(&self, version: u64) -> Placed {
        let mut allocator = Allocator::default();
        let snapshot = Snapshot::open(&self.document).unwrap();
        let entries = snapshot.entries().map(Result::unwrap).filter_map(|entry| Some((entry.path, entry.attributes?)));
        let placed = entries.map(|(path, attributes)| {
            let number = path.rsplit('/').next().unwrap().parse().unwrap();
            (number, version, attributes.size, allocator.place(attributes.size).unwrap())
        });
        placed.collect()
    }

    fn check(&self, device: &Arc<dyn NodeFile>, placed: &Placed, offset: u64, length: usize) {
        let read = self.read(device, offset, length).unwrap();
        let mut expected = vec![0; read.len()];
        for (object, version, size, place) in placed {
            let lies = ByteRange::new(place.offset, place.offset + size);
            let lies = lies.intersect(ByteRange::new(offset, offset + read.len() as u64));
            if !lies.is_empty() {
                let bytes = oracle::content(*object, *version, lies.start - place.offset, lies.end - place.offset);
                let at = (lies.start - offset) as usize;
                expected[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        assert!(read == expected, "bytes {offset}+{length} are wrong");
    }
}

#[test]
fn every_address_holds_the_bytes_of_the_file_that_lies_there_and_zeros_between() {
    let world = World::start("addresses", &Setup::default());
    let sizes = [0, 1, 4095, 4096, 4097, 70_000, 3 * MIB, 0, 5];
    for number in 0..700 {
        world.bench.put(&format!("t/{:02}/{number}", number % 9), number, 1, sizes[number as usize % sizes.len()]);
    }
    world.bench.put("other/1", 1, 1, 10);
    assert_eq!(world.freeze("/data/t").unwrap(), 700);
    let frozen = world.open();
    let (device, placed) = (world.device(&frozen), world.placed(1));
    let size = frozen.devices()[0];
    for step in 0..400_u64 {
        let offset = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) % size / 512 * 512;
        world.check(&device, &placed, offset, [512, 4096, 131_072, 1 << 20][step as usize % 4]);
    }
    for (_, _, size, place) in &placed {
        world.check(&device, &placed, place.offset, *size as usize);
    }
    world.check(&device, &placed, size - 4096, 1 << 20);
    assert!(world.read(&device, size, 4096).unwrap().is_empty());
}

#[test]
fn a_large_file_stays_open_while_it_is_read() {
    // As large as what may stay open in all, and more.
    let world = World::start("large", &Setup { cache_bytes: 64 * MIB, ..Setup::default() });
    world.bench.put("t/1", 1, 1, 20 * MIB);
    world.bench.put("t/2", 2, 1, 20 * MIB);
    world.freeze("/data/t").unwrap();
    let (device, placed) = (world.device(&world.open()), world.placed(1));
    for step in 0..20 {
        for (_, _, _, place) in &placed {
            world.check(&device, &placed, place.offset + step * MIB, MIB as usize);
        }
    }
    assert_eq!(world.bench.metrics.opens.get(), 2);
}

#[test]
fn a_snapshot_keeps_its_versions_where_they_are_cached_and_says_stale_where_they_are_gone() {
    let world = World::start("versions", &Setup::default());
    for number in 0..4 {
        world.bench.put(&format!("t/{number}"), number, 1, 50_000);
    }
    world.freeze("/data/t").unwrap();
    let (device, placed) = (world.device(&world.open()), world.placed(1));
    world.check(&device, &placed, placed[0].3.offset, 50_000);
    for number in 0..4 {
        world.bench.put(&format!("t/{number}"), number, 2, 60_000);
    }
    world.check(&device, &placed, placed[0].3.offset, 50_000);
    let gone = world.read(&device, placed[1].3.offset, 50_000).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::StaleVersion);
    // A snapshot made now has the new ones, though the old listing was fresh.
    world.freeze("/data/t").unwrap();
    let (device, placed) = (world.device(&world.open()), world.placed(2));
    placed.iter().for_each(|(_, _, size, place)| world.check(&device, &placed, place.offset, *size as usize));
}

#[test]
fn a_snapshot_is_read_without_its_attachment_and_asks_nothing_for_what_is_cached() {
    let world = World::start("detached", &Setup::default());
    for number in 0..40 {
        world.bench.put(&format!("t/{number}"), number, 1, 100_000);
    }
    world.freeze("/data/t").unwrap();
    world.bench.engine.detach(&TreePath::parse("/data").unwrap()).unwrap();
    let (device, placed) = (world.device(&world.open()), world.placed(1));
    placed.iter().for_each(|(_, _, size, place)| world.check(&device, &placed, place.offset, *size as usize));
    let requests = world.bench.metrics.source_requests.get();
    let (device, placed) = (world.device(&world.open()), world.placed(1));
    placed.iter().for_each(|(_, _, size, place)| world.check(&device, &placed, place.offset, *size as usize));
    assert_eq!(world.bench.metrics.source_requests.get(), requests);
}

#[test]
fn an_image_is_made_once_for_one_document_and_way_to_show_it() {
    let mut world = World::start("image", &Setup::default());
    world.bench.put("t/1", 1, 1, 100);
    world.freeze("/data/t").unwrap();
    world.open();
    let made = std::fs::metadata(&world.image.file).unwrap().modified().unwrap();
    world.open();
    assert_eq!(std::fs::metadata(&world.image.file).unwrap().modified().unwrap(), made);
    let first = std::fs::read(&world.image.file).unwrap();
    world.image.file_mode = 0o400;
    world.open();
    assert_ne!(std::fs::read(&world.image.file).unwrap(), first);
    assert!(!world.bench.home.path().join("it.image.new").exists());
}

#[test]
fn what_cannot_be_frozen_is_refused_and_leaves_nothing() {
    let world = World::start("refused", &Setup::default());
    world.bench.put("t/1", 1, 1, 100);
    assert_eq!(world.freeze("/data/none").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(world.freeze("/data/t/1").unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(world.freeze("/elsewhere").unwrap_err().kind(), ErrorKind::NotFound);
    let spec = penstock_types::SourceSpec::Memory { name: "nested".into() };
    let nested = attachment("/data/t/in", spec, penstock_types::Freshness::Immutable);
    world.bench.runtime.block_on(world.bench.engine.attach(nested, true)).unwrap();
    assert_eq!(world.freeze("/data").unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(!world.document.exists() && !world.bench.home.path().join("it.snapshot.new").exists());
}
