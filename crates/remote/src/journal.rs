//! The directory's own index: an append-only file of checksummed records. Replayed at start; a torn tail, as a
//! killed process leaves it, is cut off.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::object::Extra;

/// Bytes at the start of the file: a name and the version of the format.
const MAGIC: &[u8; 8] = b"PSREMOT1";
/// Longest record: a batch of keys is far below it.
const MAX_RECORD_BYTES: usize = 64 * 1024 * 1024;

/// One change.
#[derive(Debug, Serialize, Deserialize)]
pub enum Record {
    /// A bucket was made.
    CreateBucket { bucket: String },
    /// A bucket was removed.
    DeleteBucket { bucket: String },
    /// Keys got the same object.
    Put { bucket: String, keys: Vec<String>, object: StoredObject },
    /// A key was removed.
    Delete { bucket: String, key: String },
    /// An upload began.
    BeginUpload { upload: u64, bucket: String, key: String, initiated_s: u64, extra: Option<Box<Extra>> },
    /// A part was taken.
    PutPart { upload: u64, number: u32, part: StoredPart },
    /// An upload ended without an object.
    AbortUpload { upload: u64 },
    /// An upload became an object.
    CompleteUpload { upload: u64, object: StoredObject },
}

/// An object on disk. Segments are (data file, offset, length).
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredObject {
    pub etag: String,
    pub size: u64,
    pub modified_s: u64,
    pub extra: Option<Box<Extra>>,
    pub segments: Vec<(u64, u64, u64)>,
}

/// A part on disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredPart {
    pub etag: String,
    pub size: u64,
    pub modified_s: u64,
    pub segments: Vec<(u64, u64, u64)>,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    buffer: Vec<u8>,
}

impl Journal {
    /// Opens or makes the journal at `path` and gives every whole record to `replay`, in order. `WouldBlock` says
    /// that somebody else has it open.
    pub fn open(path: &Path, mut replay: impl FnMut(Record) -> io::Result<()>) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).truncate(false).open(path)?;
        file.try_lock()?;
        let mut reader = BufReader::with_capacity(1 << 20, &mut file);
        let mut magic = [0; MAGIC.len()];
        match reader.read_exact(&mut magic) {
            Ok(()) if &magic == MAGIC => {}
            Ok(()) => return Err(io::Error::new(ErrorKind::InvalidData, "not a journal of this version")),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                drop(reader);
                file.set_len(0)?;
                file.write_all(MAGIC)?;
                return Ok(Self { file, buffer: Vec::new() });
            }
            Err(error) => return Err(error),
        }
        let mut good = MAGIC.len() as u64;
        while let Some((record, length)) = read_record(&mut reader)? {
            replay(record)?;
            good += length;
        }
        drop(reader);
        file.set_len(good)?;
        Ok(Self { file, buffer: Vec::new() })
    }

    /// Writes `records` to a new file beside `path` and puts it in its place.
    pub fn rewrite(path: &Path, records: impl Iterator<Item = Record>) -> io::Result<Self> {
        let fresh: PathBuf = path.with_extension("new");
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut journal = Self::open(&fresh, |_| Ok(()))?;
        for record in records {
            journal.append(&record)?;
        }
        std::fs::rename(&fresh, path)?;
        Ok(journal)
    }

    /// Lets go of the file: somebody else may open it. Nothing may be appended any more.
    pub fn release(&self) -> io::Result<()> {
        self.file.unlock()
    }

    /// Appends one record: once this returned, a kill of the process does not lose it. Not synced: the machine
    /// that a simulation runs on may lose it.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.extend_from_slice(&[0; 8]);
        let buffer = std::mem::take(&mut self.buffer);
        self.buffer = postcard::to_extend(record, buffer).map_err(io::Error::other)?;
        let length = self.buffer.len() - 8;
        if length > MAX_RECORD_BYTES {
            return Err(io::Error::new(ErrorKind::InvalidInput, "record too long"));
        }
        let checksum = crc32c::crc32c(&self.buffer[8..]);
        self.buffer[..4].copy_from_slice(&(length as u32).to_le_bytes());
        self.buffer[4..8].copy_from_slice(&checksum.to_le_bytes());
        self.file.write_all(&self.buffer)
    }
}

/// The next record and its length on disk; `None` at the end and at a torn tail.
fn read_record(reader: &mut impl Read) -> io::Result<Option<(Record, u64)>> {
    let mut head = [0; 8];
    if !read_whole(reader, &mut head)? {
        return Ok(None);
    }
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (length, checksum) = (word(0) as usize, word(4));
    if length > MAX_RECORD_BYTES {
        return Ok(None);
    }
    let mut body = vec![0; length];
    if !read_whole(reader, &mut body)? || crc32c::crc32c(&body) != checksum {
        return Ok(None);
    }
    let record = postcard::from_bytes(&body).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    Ok(Some((record, 8 + length as u64)))
}

fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_torn_tail_is_cut_off_wherever_the_writer_was_killed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let mut journal = Journal::open(&path, |_| Ok(())).unwrap();
        for bucket in ["one", "two"] {
            journal.append(&Record::CreateBucket { bucket: bucket.into() }).unwrap();
        }
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut replayed = 0;
            let mut journal = Journal::open(&path, |_| {
                replayed += 1;
                Ok(())
            })
            .unwrap();
            assert!(replayed < 2);
            journal.append(&Record::DeleteBucket { bucket: "one".into() }).unwrap();
            drop(journal);
            let mut again = 0;
            Journal::open(&path, |_| {
                again += 1;
                Ok(())
            })
            .unwrap();
            assert_eq!(again, replayed + 1);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_behind_the_magic_are_cut_off_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            sealed in any::<bool>(),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("index");
            let mut content = MAGIC.to_vec();
            if sealed {
                content.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                content.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
            }
            content.extend_from_slice(&bytes);
            std::fs::write(&path, &content).unwrap();
            match Journal::open(&path, |_| Ok(())) {
                Ok(mut journal) => journal.append(&Record::DeleteBucket { bucket: "one".into() }).unwrap(),
                Err(error) => {
                    prop_assert_eq!(error.kind(), ErrorKind::InvalidData);
                    return Ok(());
                }
            }
            let mut last = None;
            Journal::open(&path, |record| {
                last = Some(record);
                Ok(())
            })
            .unwrap();
            prop_assert!(matches!(last, Some(Record::DeleteBucket { .. })), "the last record is lost");
        }
    }
}
