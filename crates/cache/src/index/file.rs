//! The file of the index, through the same [`Disk`] as every other file, with a CRC32C per block. The database
//! believes what it reads: without this a flipped bit could send it astray, into a panic or round in circles. With it
//! a damaged block is a failed read.
//!
//! Blocks come in groups: one block of checksums, then the blocks it is for. Checksums are written before each sync,
//! with the blocks they are for; the database never overwrites what its last commit needs, so what a crash tears
//! apart is never read. Its first block is the exception: it is written in place, has checksums of its own, and is
//! not checked here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use penstock_types::{Disk, OpenMode};
use redb::StorageBackend;

/// Bytes that one checksum is for: a page of the database.
const BLOCK: u64 = 4096;
/// Checksums in a block, and so blocks in a group.
const BLOCKS_PER_GROUP: u64 = BLOCK / size_of::<u32>() as u64;
/// Bytes of a group in the file, checksums included.
const GROUP: u64 = (1 + BLOCKS_PER_GROUP) * BLOCK;
/// The checksum of a block that was never written: it must be zeros. One that really is zero is kept as 1.
const UNWRITTEN: u32 = 0;

/// An open, locked index file.
pub struct IndexFile {
    disk: Arc<dyn Disk>,
    /// Taken away by `close`, which ends the lock.
    file: Mutex<Option<Arc<OwnedFd>>>,
    sums: Mutex<Sums>,
}

#[derive(Default)]
struct Sums {
    groups: BTreeMap<u64, Box<[u32; BLOCKS_PER_GROUP as usize]>>,
    /// Groups whose checksums differ from the file's.
    changed: BTreeSet<u64>,
}

impl IndexFile {
    /// Opens the file, making it if it is missing; `WouldBlock` when another process has it.
    pub fn open(disk: &Arc<dyn Disk>, path: &Path) -> io::Result<Self> {
        let file = disk.open(path, OpenMode::WriteOrCreate)?;
        if !disk.try_lock(file.as_fd())? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Self { disk: Arc::clone(disk), file: Mutex::new(Some(Arc::new(file))), sums: Mutex::default() })
    }

    fn file(&self) -> io::Result<Arc<OwnedFd>> {
        let file = self.file.lock().map_err(|_| io::Error::other("the index file is poisoned"))?;
        file.clone().ok_or_else(|| io::Error::other("the index is closed"))
    }

    fn sums(&self) -> io::Result<MutexGuard<'_, Sums>> {
        self.sums.lock().map_err(|_| io::Error::other("the checksums of the index are poisoned"))
    }

    /// Runs `work` on the checksums of a group, reading them first if need be.
    fn with_group<T>(&self, group: u64, work: impl FnOnce(&mut Sums) -> T) -> io::Result<T> {
        if !self.sums()?.groups.contains_key(&group) {
            let mut bytes = [0; BLOCK as usize];
            self.read_some(group * GROUP, &mut bytes)?;
            let mut words = Box::new([UNWRITTEN; BLOCKS_PER_GROUP as usize]);
            for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(size_of::<u32>())) {
                *word = u32::from_le_bytes(bytes.try_into().expect("chunks of four"));
            }
            self.sums()?.groups.entry(group).or_insert(words);
        }
        Ok(work(&mut *self.sums()?))
    }

    /// Reads whole blocks of one group and checks them.
    fn read_blocks(&self, first: u64, out: &mut [u8]) -> io::Result<()> {
        let read = self.read_some(place(first), out)?;
        if read < out.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let group = first / BLOCKS_PER_GROUP;
        let wrong = self.with_group(group, |sums| {
            let words = &sums.groups[&group];
            let mut blocks = (first..).zip(out.chunks(BLOCK as usize));
            blocks.find(|(block, bytes)| *block > 0 && !matches(words[(block % BLOCKS_PER_GROUP) as usize], bytes))
        })?;
        match wrong {
            None => Ok(()),
            Some((block, _)) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("checksum mismatch in block {block}")))
            }
        }
    }

    /// Writes whole blocks of one group and notes their checksums.
    fn write_blocks(&self, first: u64, data: &[u8]) -> io::Result<()> {
        let group = first / BLOCKS_PER_GROUP;
        self.with_group(group, |_| ())?;
        self.write_all(place(first), data)?;
        self.with_group(group, |sums| {
            let words = sums.groups.get_mut(&group).expect("the group was read above");
            for (block, bytes) in (first..).zip(data.chunks(BLOCK as usize)) {
                words[(block % BLOCKS_PER_GROUP) as usize] = sum(bytes);
            }
            sums.changed.insert(group);
        })
    }

    /// Reads until `out` is full or the file ends.
    fn read_some(&self, mut offset: u64, mut out: &mut [u8]) -> io::Result<usize> {
        let file = self.file()?;
        let mut done = 0;
        while !out.is_empty() {
            let read = self.disk.read_at(file.as_fd(), offset, out)?;
            if read == 0 {
                break;
            }
            out = &mut out[read..];
            offset += read as u64;
            done += read;
        }
        Ok(done)
    }

    fn write_all(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        let file = self.file()?;
        while !data.is_empty() {
            let written = self.disk.write_at(file.as_fd(), offset, &[IoSlice::new(data)])?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            data = &data[written..];
            offset += written as u64;
        }
        Ok(())
    }

    fn write_changed_sums(&self) -> io::Result<()> {
        let changed: Vec<(u64, Vec<u8>)> = {
            let sums = self.sums()?;
            let bytes = |group: &u64| sums.groups[group].iter().flat_map(|word| word.to_le_bytes()).collect();
            sums.changed.iter().map(|group| (*group, bytes(group))).collect()
        };
        for (group, bytes) in changed {
            self.write_all(group * GROUP, &bytes)?;
            self.sums()?.changed.remove(&group);
        }
        Ok(())
    }

    /// Calls `work` for the parts of `offset..offset + length` that lie in one group, as whole blocks: the first
    /// block, where the part begins in them, and the part of the whole.
    fn parts(offset: u64, length: usize) -> impl Iterator<Item = Part> {
        let end = offset + length as u64;
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let group_bytes = BLOCKS_PER_GROUP * BLOCK;
            let until = end.min((at / group_bytes + 1) * group_bytes);
            let part = Part {
                first: at / BLOCK,
                blocks: until.div_ceil(BLOCK) - at / BLOCK,
                inside: (at % BLOCK) as usize,
                whole: (at - offset) as usize..(until - offset) as usize,
            };
            at = until;
            Some(part)
        })
    }
}

struct Part {
    first: u64,
    blocks: u64,
    inside: usize,
    whole: std::ops::Range<usize>,
}

impl Part {
    fn is_aligned(&self) -> bool {
        self.inside == 0 && self.whole.len() as u64 == self.blocks * BLOCK
    }
}

impl fmt::Debug for IndexFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IndexFile")
    }
}

impl StorageBackend for IndexFile {
    fn len(&self) -> io::Result<u64> {
        let size = self.disk.facts(self.file()?.as_fd())?.size;
        if size > 0 && size <= BLOCK {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is cut short"));
        }
        Ok(size / GROUP * (GROUP - BLOCK) + (size % GROUP).saturating_sub(BLOCK))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        for part in Self::parts(offset, out.len()) {
            let out = &mut out[part.whole.clone()];
            if part.is_aligned() {
                self.read_blocks(part.first, out)?;
            } else {
                let mut blocks = vec![0; (part.blocks * BLOCK) as usize];
                self.read_blocks(part.first, &mut blocks)?;
                out.copy_from_slice(&blocks[part.inside..part.inside + out.len()]);
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let blocks = length.div_ceil(BLOCK);
        let size = if blocks == 0 { 0 } else { place(blocks - 1) + BLOCK };
        self.disk.set_size(self.file()?.as_fd(), size)?;
        if blocks == 0 {
            *self.sums()? = Sums::default();
            return Ok(());
        }
        let last = (blocks - 1) / BLOCKS_PER_GROUP;
        self.with_group(last, |sums| {
            sums.groups.retain(|group, _| *group <= last);
            sums.changed.retain(|group| *group <= last);
            let words = sums.groups.get_mut(&last).expect("the group was read above");
            words[((blocks - 1) % BLOCKS_PER_GROUP) as usize + 1..].fill(UNWRITTEN);
            sums.changed.insert(last);
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.write_changed_sums()?;
        self.disk.sync_data(self.file()?.as_fd())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        for part in Self::parts(offset, data.len()) {
            let data = &data[part.whole.clone()];
            if part.is_aligned() {
                self.write_blocks(part.first, data)?;
            } else {
                let mut blocks = vec![0; (part.blocks * BLOCK) as usize];
                self.read_blocks(part.first, &mut blocks)?;
                blocks[part.inside..part.inside + data.len()].copy_from_slice(data);
                self.write_blocks(part.first, &blocks)?;
            }
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        if let Ok(mut file) = self.file.lock() {
            file.take();
        }
        Ok(())
    }
}

/// Where a block is in the file.
fn place(block: u64) -> u64 {
    block / BLOCKS_PER_GROUP * GROUP + (1 + block % BLOCKS_PER_GROUP) * BLOCK
}

fn sum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).max(1)
}

fn matches(stored: u32, bytes: &[u8]) -> bool {
    if stored == UNWRITTEN { bytes.iter().all(|byte| *byte == 0) } else { stored == sum(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RealDisk;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLen(u64),
        SyncAndReopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        let end = 3 * BLOCKS_PER_GROUP * BLOCK;
        // Most of what happens is near the seams of blocks and groups.
        let near = (0u64..3, 0u64..9000).prop_map(move |(group, off)| {
            (group * BLOCKS_PER_GROUP * BLOCK + off).saturating_sub(4500).min(end - 9000)
        });
        prop_oneof![
            6 => (near, prop::collection::vec(any::<u8>(), 1..9000)).prop_map(|(at, data)| Step::Write(at, data)),
            1 => (1u64..end / BLOCK).prop_map(|blocks| Step::SetLen(blocks * BLOCK)),
            1 => Just(Step::SyncAndReopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_file_like_any_other_to_the_database(steps in prop::collection::vec(step(), 1..30)) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("index");
            let disk: Arc<dyn Disk> = Arc::new(RealDisk);
            let mut file = IndexFile::open(&disk, &path).unwrap();
            let mut model: Vec<u8> = Vec::new();
            for step in steps {
                match step {
                    Step::Write(at, data) => {
                        let end = at as usize + data.len();
                        if end > model.len() {
                            let length = end.next_multiple_of(BLOCK as usize);
                            file.set_len(length as u64).unwrap();
                            model.resize(length, 0);
                        }
                        file.write(at, &data).unwrap();
                        model[at as usize..end].copy_from_slice(&data);
                    }
                    Step::SetLen(length) => {
                        file.set_len(length).unwrap();
                        model.resize(length as usize, 0);
                    }
                    Step::SyncAndReopen => {
                        file.sync_data().unwrap();
                        file.close().unwrap();
                        file = IndexFile::open(&disk, &path).unwrap();
                    }
                }
                prop_assert_eq!(file.len().unwrap(), model.len() as u64);
            }
            let mut all = vec![0; model.len()];
            file.read(0, &mut all).unwrap();
            prop_assert!(all == model);
        }

        #[test]
        fn a_flipped_bit_behind_the_first_block_is_a_failed_read(at in BLOCK..40 * BLOCK, bit in 0u8..8) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("index");
            let disk: Arc<dyn Disk> = Arc::new(RealDisk);
            let file = IndexFile::open(&disk, &path).unwrap();
            file.set_len(40 * BLOCK).unwrap();
            file.write(0, &vec![7; 20 * BLOCK as usize]).unwrap();
            file.sync_data().unwrap();
            file.close().unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[(at + BLOCK) as usize] ^= 1 << bit;
            std::fs::write(&path, bytes).unwrap();
            let file = IndexFile::open(&disk, &path).unwrap();
            let mut block = vec![0; BLOCK as usize];
            let error = file.read(at / BLOCK * BLOCK, &mut block).unwrap_err();
            prop_assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
