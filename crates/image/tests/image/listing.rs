//! Listings, and the images and data devices that belong to them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use penstock_image::{Allocator, Finished, ImageWriter, Place, Settings};
use penstock_testkit::oracle;

pub const BUILT_MS: i64 = 1_700_000_000_123;

pub fn settings() -> Settings {
    Settings {
        owner: (70_001, 70_002),
        file_mode: 0o640,
        directory_mode: 0o2750,
        built_ms: BUILT_MS,
        uuid: *b"penstock-image-1",
        label: "a label".to_owned(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    Directory { modified_ms: i64 },
    File { size: u64, modified_ms: i64 },
}

/// What is to be found at each path. Sorted by components, as the writer wants it.
#[derive(Clone, Default, Debug)]
pub struct Listing(BTreeMap<Vec<String>, Entry>);

impl Listing {
    pub fn file(&mut self, path: &str, size: u64, modified_ms: i64) {
        self.insert(path, Entry::File { size, modified_ms });
    }

    pub fn directory(&mut self, path: &str, modified_ms: i64) {
        self.insert(path, Entry::Directory { modified_ms });
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        self.0.insert(path.split('/').map(str::to_owned).collect(), entry);
    }

    /// The given paths, without the directories that they imply.
    pub fn given(&self) -> impl Iterator<Item = (String, Entry)> {
        self.0.iter().map(|(parts, entry)| (parts.join("/"), *entry))
    }

    /// Everything that the image has but its root: the implied directories, too.
    pub fn expected(&self) -> BTreeMap<String, Entry> {
        let mut all = BTreeMap::new();
        for parts in self.0.keys() {
            for depth in 1..parts.len() {
                all.insert(parts[..depth].join("/"), Entry::Directory { modified_ms: BUILT_MS });
            }
        }
        all.extend(self.given());
        all
    }

    /// Writes the image and says where the content of each file belongs.
    pub fn write<W: Write + Seek>(&self, out: W, allocator: Allocator) -> (Finished<W>, BTreeMap<String, Place>) {
        let mut writer = ImageWriter::with_allocator(out, &settings(), allocator).unwrap();
        let mut places = BTreeMap::new();
        for (path, entry) in self.given() {
            match entry {
                Entry::Directory { modified_ms } => writer.directory(&path, modified_ms).unwrap(),
                Entry::File { size, modified_ms } => {
                    let place = writer.file(&path, size, modified_ms).unwrap();
                    places.insert(path, place);
                }
            }
        }
        (writer.finish().unwrap(), places)
    }

    pub fn to_bytes(&self, allocator: Allocator) -> (Finished<Vec<u8>>, BTreeMap<String, Place>) {
        let (finished, places) = self.write(Cursor::new(Vec::new()), allocator);
        let Finished { out, bytes, devices, files, directories } = finished;
        (Finished { out: out.into_inner(), bytes, devices, files, directories }, places)
    }
}

/// An image and its data devices as files of a directory, the devices with bytes that say what they are.
pub struct OnDisk {
    pub image: PathBuf,
    pub devices: Vec<PathBuf>,
}

impl OnDisk {
    pub fn write(listing: &Listing, allocator: Allocator, directory: &Path) -> Self {
        let image = directory.join("image");
        let (finished, places) = listing.write(File::create(&image).unwrap(), allocator);
        assert_eq!(image.metadata().unwrap().len(), finished.bytes);
        let mut disk = Self { image, devices: Vec::new() };
        let mut open = Vec::new();
        for (number, bytes) in finished.devices.iter().enumerate() {
            let path = directory.join(format!("data{number}"));
            let file = File::create(&path).unwrap();
            file.set_len(*bytes).unwrap();
            open.push(file);
            disk.devices.push(path);
        }
        for (object, (path, entry)) in (0..).zip(listing.expected()) {
            if let Entry::File { size: size @ 1.., .. } = entry {
                let place = places[&path];
                let content = oracle::content(object, 1, 0, size);
                open[usize::from(place.device)].write_all_at(&content, place.offset).unwrap();
            }
        }
        disk
    }
}
