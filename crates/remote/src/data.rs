//! Data files: immutable runs of bytes, named by number. They go when nothing refers to them any more.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use md5::{Digest, Md5};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::object::Segment;

/// Files from this size on are mapped once and sent from the page cache; smaller ones are cheaper to read.
const MAP_FROM_BYTES: u64 = 1024 * 1024;
/// Mappings that may exist at once: well below the kernel's 65,530 per process.
const MAX_MAPPINGS: usize = 8192;
/// Most bytes that one read of an unmapped file takes.
const READ_BYTES: u64 = 1024 * 1024;
/// Files per directory.
const FILES_PER_DIRECTORY: u64 = 1000;

/// Where data files live, and the next number.
#[derive(Debug)]
pub struct DataDirectory {
    root: PathBuf,
    next: AtomicU64,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Set when the store is closed: from then on files outlive their values.
    keep: AtomicBool,
    mappings: AtomicUsize,
}

/// One immutable file. Unlinked when its last reference is dropped while the store is open.
#[derive(Debug)]
pub struct DataFile {
    number: u64,
    path: PathBuf,
    size: u64,
    mapping: OnceLock<Option<Bytes>>,
    shared: Arc<Shared>,
}

impl DataDirectory {
    /// Uses `root`, which is made when missing. Numbers begin at 1.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&root)?;
        Ok(Self { root, next: AtomicU64::new(1), shared: Arc::default() })
    }

    /// A number never given before, for files and uploads alike.
    pub fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Never gives `number` or a smaller one again.
    pub fn seen(&self, number: u64) {
        self.next.fetch_max(number + 1, Ordering::Relaxed);
    }

    /// The file `number` that an earlier process wrote. One that is gone is empty: whatever referred to it was
    /// replaced, or [`DataFile::size`] shows that it was lost.
    pub fn existing(&self, number: u64) -> io::Result<Arc<DataFile>> {
        self.seen(number);
        let path = self.path_of(number);
        let size = match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            metadata => metadata?.len(),
        };
        Ok(Arc::new(DataFile { number, path, size, mapping: OnceLock::new(), shared: self.shared.clone() }))
    }

    /// A new file to be written.
    pub fn create(&self) -> io::Result<DataWriter> {
        let number = self.next_number();
        let path = self.path_of(number);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let target = DataFile { number, path, size: 0, mapping: OnceLock::new(), shared: self.shared.clone() };
        Ok(DataWriter { target, file, digest: Md5::new() })
    }

    /// Removes every file that `referenced` does not know, and never gives their numbers again.
    pub fn remove_orphans(&self, referenced: impl Fn(u64) -> bool) -> io::Result<()> {
        for directory in std::fs::read_dir(&self.root)? {
            for file in std::fs::read_dir(directory?.path())? {
                let path = file?.path();
                let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
                let Some(number) = number else { continue };
                self.seen(number);
                if !referenced(number) {
                    std::fs::remove_file(&path)?;
                }
            }
        }
        Ok(())
    }

    /// From now on no file is removed any more.
    pub fn keep_all(&self) {
        self.shared.keep.store(true, Ordering::SeqCst);
    }

    fn path_of(&self, number: u64) -> PathBuf {
        self.root.join((number / FILES_PER_DIRECTORY).to_string()).join(number.to_string())
    }
}

impl DataFile {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its length, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes from `offset`, at most `length` and at least one: all of them where the file is mapped.
    /// The read may block; the files of a simulation are in the page cache.
    pub fn read(&self, offset: u64, length: u64) -> io::Result<Bytes> {
        if let Some(mapping) = self.mapping.get_or_init(|| self.map()) {
            let start = to_usize(offset)?;
            return Ok(mapping.slice(start..start + to_usize(length)?));
        }
        let mut buffer = vec![0; to_usize(length.min(READ_BYTES))?];
        File::open(&self.path)?.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    }

    fn map(&self) -> Option<Bytes> {
        if self.size < MAP_FROM_BYTES || self.shared.mappings.fetch_add(1, Ordering::Relaxed) >= MAX_MAPPINGS {
            return None;
        }
        // Where it cannot be mapped it is read: slower, and no less right.
        Mapping::new(&self.path, self.size).ok().map(Bytes::from_owner)
    }
}

impl Drop for DataFile {
    fn drop(&mut self) {
        if self.mapping.get().is_some() && self.size >= MAP_FROM_BYTES {
            self.shared.mappings.fetch_sub(1, Ordering::Relaxed);
        }
        if !self.shared.keep.load(Ordering::SeqCst)
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "remove data file");
        }
    }
}

/// A data file while it is written; dropped unfinished, it leaves nothing.
pub struct DataWriter {
    target: DataFile,
    file: File,
    digest: Md5,
}

impl DataWriter {
    /// Appends.
    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.digest.update(data);
        self.target.size += data.len() as u64;
        self.file.write_all(data)
    }

    /// The finished file and the MD5 of its content.
    pub fn finish(self) -> (Arc<DataFile>, [u8; 16]) {
        (Arc::new(self.target), self.digest.finalize().into())
    }
}

/// The whole of a data file as one segment; nothing of an empty one.
pub fn whole(file: &Arc<DataFile>) -> Vec<Segment> {
    if file.size == 0 { Vec::new() } else { vec![Segment { file: file.clone(), offset: 0, length: file.size }] }
}

/// The part `start..end` of content that consists of `segments`.
pub fn slice(segments: &[Segment], start: u64, end: u64) -> Vec<Segment> {
    let mut position = 0;
    let mut parts = Vec::new();
    for segment in segments {
        let (from, to) = (start.max(position), end.min(position + segment.length));
        if from < to {
            let offset = segment.offset + from - position;
            parts.push(Segment { file: segment.file.clone(), offset, length: to - from });
        }
        position += segment.length;
    }
    parts
}

struct Mapping {
    address: *mut std::ffi::c_void,
    length: usize,
}

impl Mapping {
    fn new(path: &Path, size: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = to_usize(size)?;
        // SAFETY: a fresh private read-only mapping at an address of the kernel's choice.
        let address = unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, &file, 0) }?;
        Ok(Self { address, length })
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the mapping is `length` bytes long, lives as long as `self`, and data files are never changed
        // or truncated once finished.
        unsafe { std::slice::from_raw_parts(self.address.cast(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length; no slice outlives `self`.
        if let Err(error) = unsafe { munmap(self.address, self.length) } {
            tracing::warn!(%error, "unmap data file");
        }
    }
}

// SAFETY: read-only memory without ties to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing is ever written through it.
unsafe impl Sync for Mapping {}

fn to_usize(value: u64) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_file_goes_with_its_last_reference_and_stays_after_keep_all() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(directory.path().into()).unwrap();
        let mut writer = data.create().unwrap();
        writer.write(b"hello").unwrap();
        let (file, _) = writer.finish();
        let path = file.path.clone();
        assert_eq!(file.read(1, 3).unwrap(), "ell");
        drop(file);
        assert!(!path.exists());
        let (file, _) = data.create().unwrap().finish();
        let path = file.path.clone();
        data.keep_all();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn slices_cross_segments() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(directory.path().into()).unwrap();
        let segments: Vec<Segment> = ["abc", "", "defg"]
            .iter()
            .flat_map(|text| {
                let mut writer = data.create().unwrap();
                writer.write(text.as_bytes()).unwrap();
                whole(&writer.finish().0)
            })
            .collect();
        let text: Vec<u8> = slice(&segments, 2, 5)
            .iter()
            .flat_map(|part| part.file.read(part.offset, part.length).unwrap().to_vec())
            .collect();
        assert_eq!(text, b"cde");
        assert!(slice(&segments, 3, 3).is_empty());
    }
}
