//! The bytes of a snapshot by their address in its data devices: which file lies there, and its pinned version.

use std::sync::Arc;

use futures_util::future::try_join_all;
use penstock_catalog::{Snapshot, SnapshotEntry};
use penstock_image::{Allocator, Image, Place};
use penstock_types::{ByteRange, Error, ErrorKind, NodeFile, Result, TreePath};
use quick_cache::sync::Cache;
use quick_cache::{OptionsBuilder, Weighter};

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::kernel::MountedFile;
use crate::open::{OpenFile, Target, object_id};

/// Rows of the document that stay unpacked; each is some hundred KiB.
const ROWS_MAX: usize = 64;
/// Files that stay open for the next read, and the part of the cache's first tier that they may hold.
const FILES_MAX: u64 = 256;
const FILES_SHARE: u64 = 32;

/// A snapshot that a kernel reads.
pub struct Frozen {
    engine: Arc<Engine>,
    attached: Arc<Attached>,
    snapshot: Snapshot,
    image: Image,
    /// Path in the attachment that was frozen.
    inner: String,
    /// Where the files of each row begin.
    starts: Vec<Allocator>,
    devices: Vec<u64>,
    rows: Cache<usize, Arc<Vec<Placed>>>,
    files: Cache<(usize, usize), Held, ByBytes>,
}

/// A file and its address.
struct Placed {
    place: Place,
    entry: SnapshotEntry,
    size: u64,
}

/// A file that stays open for the next read.
#[derive(Clone)]
struct Held {
    file: Arc<MountedFile>,
    size: u64,
}

/// A part of one file, and where it goes in what was asked for.
struct Part {
    file: (usize, usize),
    range: ByteRange,
    at: usize,
}

/// Weighs an open file by the bytes that it keeps from eviction, in units of 1/256 of what all may hold.
#[derive(Clone)]
struct ByBytes {
    unit: u64,
}

impl Weighter<(usize, usize), Held> for ByBytes {
    fn weight(&self, _: &(usize, usize), held: &Held) -> u64 {
        // Whatever its size, it has to stay while it is read.
        (1 + held.size / self.unit).min(FILES_MAX / 4)
    }
}

impl Frozen {
    pub(super) fn new(
        engine: Arc<Engine>,
        attached: Arc<Attached>,
        (snapshot, image): (Snapshot, Image),
        starts: Vec<Allocator>,
        devices: Vec<u64>,
    ) -> Result<Arc<Self>> {
        let tier = engine.parts.config.cache.tiers.first().map_or(0, |tier| tier.size_bytes);
        let unit = (tier / FILES_SHARE / FILES_MAX).max(1);
        let own = Attached::prefix(&attached.spec);
        let inner = snapshot.facts().path_below(own.as_bytes()).ok_or_else(|| {
            let action = format!("open snapshot {}", snapshot.facts().name);
            Error::new(ErrorKind::Corrupt, action, "what it froze does not lie in its source")
        })?;
        // One shard: of several, none would have room for a large file, which would be opened for each read.
        let options = OptionsBuilder::new()
            .shards(1)
            .estimated_items_capacity(FILES_MAX as usize)
            .weight_capacity(FILES_MAX)
            .build()
            .map_err(|error| Error::new(ErrorKind::Internal, "open a snapshot", error.to_string()))?;
        let files = Cache::with_options(options, ByBytes { unit }, Default::default(), Default::default());
        Ok(Arc::new(Self {
            engine,
            attached,
            snapshot,
            image,
            inner,
            starts,
            devices,
            rows: Cache::new(ROWS_MAX),
            files,
        }))
    }

    /// What it says of itself.
    pub fn facts(&self) -> &penstock_catalog::SnapshotFacts {
        self.snapshot.facts()
    }

    /// Bytes of each data device.
    pub fn devices(&self) -> &[u64] {
        &self.devices
    }

    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// What lies at an address, up to `out.len()` bytes, where all of it is at hand: open already, or completely cached.
    pub(super) fn read_now(&self, device: u16, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        let range = self.within(device, offset, out.len());
        let length = to_usize(range.len());
        let Some(parts) = self.parts(device, range, |row| self.rows.get(&row)) else { return Ok(None) };
        let mut filled = 0;
        for part in parts {
            let Some(file) = self.file_now(part.file)? else { return Ok(None) };
            let to = part.at + to_usize(part.range.len());
            out[filled..part.at].fill(0);
            if file.read_now(part.range.start, &mut out[part.at..to])?.is_none() {
                return Ok(None);
            }
            filled = to;
        }
        out[filled..length].fill(0);
        Ok(Some(length))
    }

    /// Brings what lies at an address.
    pub(super) async fn bring(self: Arc<Self>, device: u16, asked: ByteRange) -> Result<Vec<u8>> {
        let range = self.within(device, asked.start, to_usize(asked.len()));
        let parts = match self.parts(device, range, |row| self.rows.get(&row)) {
            Some(parts) => parts,
            None => self.unpacked_parts(device, range)?,
        };
        let brought = parts.iter().map(|part| async { self.file(part.file).await?.bring(part.range).await });
        let mut brought = try_join_all(brought).await?;
        if brought.len() == 1 && brought[0].len() == to_usize(range.len()) {
            return Ok(brought.remove(0));
        }
        let mut out = vec![0; to_usize(range.len())];
        for (part, bytes) in parts.iter().zip(brought) {
            out[part.at..part.at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(out)
    }

    /// The files in a range. Reads what it takes of the document.
    fn unpacked_parts(&self, device: u16, range: ByteRange) -> Result<Vec<Part>> {
        let mut failure = None;
        let parts = tokio::task::block_in_place(|| {
            self.parts(device, range, |row| match self.row(row) {
                Ok(placed) => Some(placed),
                Err(error) => {
                    failure = Some(error);
                    None
                }
            })
        });
        match (parts, failure) {
            (Some(parts), _) => Ok(parts),
            (None, Some(error)) => Err(error),
            (None, None) => Err(self.error(ErrorKind::Internal, "it has no such row")),
        }
    }

    /// A range of a device, cut at its end.
    fn within(&self, device: u16, offset: u64, length: usize) -> ByteRange {
        let size = self.devices.get(usize::from(device)).copied().unwrap_or(0);
        let end = offset.saturating_add(length as u64).min(size);
        ByteRange::new(offset.min(end), end)
    }

    /// The files in a range; between them are zeros. `None` when `rows` has not all that it takes.
    fn parts(
        &self,
        device: u16,
        range: ByteRange,
        mut rows: impl FnMut(usize) -> Option<Arc<Vec<Placed>>>,
    ) -> Option<Vec<Part>> {
        let mut parts = Vec::new();
        // The last row that begins at or before the address, and all that follow as long as they begin in the range.
        let (from, end) = (Place { device, offset: range.start }, Place { device, offset: range.end });
        let mut row = self.starts.partition_point(|start| start.end() <= from).saturating_sub(1);
        while row < self.starts.len() && self.starts[row].end() < end {
            let placed = rows(row)?;
            let first = placed.partition_point(|each| each.place <= from).saturating_sub(1);
            for (index, each) in placed.iter().enumerate().skip(first) {
                if each.place >= end {
                    break;
                }
                let lies = ByteRange::new(each.place.offset, each.place.offset + each.size).intersect(range);
                if each.place.device == device && !lies.is_empty() {
                    let range = ByteRange::new(lies.start - each.place.offset, lies.end - each.place.offset);
                    parts.push(Part { file: (row, index), range, at: to_usize(lies.start - from.offset) });
                }
            }
            row += 1;
        }
        Some(parts)
    }

    fn row(&self, row: usize) -> Result<Arc<Vec<Placed>>> {
        if let Some(known) = self.rows.get(&row) {
            return Ok(known);
        }
        let mut allocator = self.starts[row];
        let mut placed = Vec::new();
        for entry in self.snapshot.row(row)? {
            let Some(size) = entry.attributes.as_ref().map(|attributes| attributes.size) else { continue };
            let place = allocator.place(size)?;
            if size > 0 {
                placed.push(Placed { place, entry, size });
            }
        }
        let placed = Arc::new(placed);
        self.rows.insert(row, Arc::clone(&placed));
        Ok(placed)
    }

    /// A file on its pinned version, where it is open or can be without waiting.
    fn file_now(&self, (row, index): (usize, usize)) -> Result<Option<Arc<MountedFile>>> {
        if let Some(held) = self.files.get(&(row, index)) {
            return Ok(Some(held.file));
        }
        let Some(placed) = self.rows.get(&row) else { return Ok(None) };
        let lent = self.engine.lend_complete(&self.target(&placed[index])?);
        Ok(lent.map(|file| self.keep((row, index), file)))
    }

    /// A file on its pinned version. A small one is complete afterwards.
    async fn file(&self, (row, index): (usize, usize)) -> Result<Arc<MountedFile>> {
        if let Some(known) = self.files.get(&(row, index)).filter(|held| !held.file.is_evicted()) {
            return Ok(known.file);
        }
        let target = self.target(&self.row(row)?[index])?;
        let file = match self.engine.lend_complete(&target) {
            Some(file) => file,
            None => self.engine.open_version(target).await?,
        };
        Ok(self.keep((row, index), file))
    }

    /// The object version that is pinned for a file.
    fn target(&self, Placed { entry, .. }: &Placed) -> Result<Target> {
        let attributes = entry.attributes.clone().ok_or_else(|| self.error(ErrorKind::Internal, "it has no size"))?;
        let inner = if self.inner.is_empty() { entry.path.clone() } else { format!("{}/{}", self.inner, entry.path) };
        Ok(Target {
            path: TreePath::parse(&self.snapshot.facts().path)?.join(&entry.path),
            attached: Arc::clone(&self.attached),
            inner,
            object: object_id(&self.attached, entry.key.clone(), &attributes.version),
            attributes,
        })
    }

    /// Keeps a file open for the next read.
    fn keep(&self, id: (usize, usize), file: OpenFile) -> Arc<MountedFile> {
        let size = file.size();
        let file = MountedFile::new(file, true);
        self.files.insert(id, Held { file: Arc::clone(&file), size });
        file
    }

    /// Lets go of files whose bytes the cache wants back.
    pub fn tidy(&self) {
        self.files.retain(|_, held| !held.file.is_evicted());
    }

    fn error(&self, kind: ErrorKind, reason: &str) -> Error {
        Error::new(kind, format!("read snapshot {}", self.snapshot.facts().name), reason).advise("report it")
    }
}

fn to_usize(length: u64) -> usize {
    usize::try_from(length).expect("a read fits memory")
}
