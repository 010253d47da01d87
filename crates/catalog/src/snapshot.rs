//! Snapshots: a listing whose every version is pinned, as a small document that can be carried elsewhere.
//!
//! Layout: magic (16 bytes), rows of entries as in [`crate::chunk`], footer, trailer (offset of the footer 8, its
//! length 4, its CRC32C 4, magic 16; little-endian). The footer is a `postcard` value: the facts, and length and checksum
//! of every row. A document that was cut short or changed is refused.

use std::cmp::Ordering;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use penstock_types::{Error, ErrorKind, ObjectAttributes, ObjectKey, Result};
use serde::{Deserialize, Serialize};

use crate::chunk::{self, CHUNK_ENTRIES, Chunk, Entry};
use crate::keymap::{self, Shape};
use crate::{Item, NamedItem};

const MAGIC: &[u8; 16] = b"penstock snap 1\n";
const TRAILER: usize = 32;
/// Longest footer and row that are read: others are no documents of ours.
const FOOTER_MAX: u32 = 1 << 30;
const ROW_MAX: u32 = 1 << 26;

/// What a snapshot says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotFacts {
    /// How people call it.
    pub name: String,
    /// The path of the tree that was frozen.
    pub path: String,
    /// When, milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// What every key begins with.
    pub prefix: Vec<u8>,
    /// The attachment that it was made from, as JSON: how to reach the source.
    pub attachment: String,
    /// Number of files.
    pub files: u64,
    /// Their sizes together.
    pub size_bytes: u64,
}

impl SnapshotFacts {
    /// The path below an attachment of `prefix` that was frozen; `None` when it does not lie there.
    pub fn path_below(&self, prefix: &[u8]) -> Option<String> {
        let below = self.prefix.strip_prefix(prefix)?;
        Some(below.strip_suffix(b"/").map(|directory| keymap::encode(directory, Shape::Plain)).unwrap_or_default())
    }
}

/// One name of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotEntry {
    /// Path below the one that was frozen.
    pub path: String,
    /// Full key in the source; of a directory with `/` at its end.
    pub key: ObjectKey,
    /// Size, time and version; `None` for a directory with nothing in it.
    pub attributes: Option<ObjectAttributes>,
}

/// What is different between two snapshots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Only the later one has the file.
    Added,
    /// Only the earlier one has it.
    Removed,
    /// Both have it, in two versions.
    Changed,
}

#[derive(Serialize, Deserialize)]
struct Footer {
    facts: SnapshotFacts,
    rows: Vec<RowFacts>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct RowFacts {
    length: u32,
    crc: u32,
}

/// Writes a snapshot, one entry after another. Memory: one row, and 12 bytes for each that was written.
pub struct SnapshotWriter<W: Write> {
    out: W,
    facts: SnapshotFacts,
    written: u64,
    rows: Vec<RowFacts>,
    row: Vec<Entry>,
    /// Key of the last entry of the row before.
    before: Vec<u8>,
    /// A directory in which nothing was seen yet.
    empty: Option<Vec<u8>>,
}

impl<W: Write> SnapshotWriter<W> {
    /// Begins one; `facts` count no files yet.
    ///
    /// # Errors
    /// `NoSpace` or `Disk` from `out`, here and below.
    pub fn new(out: W, facts: SnapshotFacts) -> Result<Self> {
        let mut writer =
            Self { out, facts, written: 0, rows: Vec::new(), row: Vec::new(), before: Vec::new(), empty: None };
        writer.write(MAGIC)?;
        Ok(writer)
    }

    /// Adds what a walk of the frozen path showed next.
    ///
    /// # Errors
    /// `Internal` for an item that is not in the order of a walk.
    pub fn push(&mut self, item: &NamedItem) -> Result<()> {
        match &item.item {
            Item::Directory => {
                let below = keymap::decode(&item.name).and_then(|place| place.directory_prefix());
                let below = below.ok_or_else(|| self.internal(&item.name))?;
                // The steps into a long component have no key of their own, and always something in them.
                let key = (below.last() == Some(&b'/')).then(|| [&*self.facts.prefix, &below].concat());
                self.settle(key.as_deref())?;
                self.empty = key;
                Ok(())
            }
            Item::File { key, attributes } => {
                self.settle(Some(key.as_bytes()))?;
                let below = key.as_bytes().get(self.facts.prefix.len()..).ok_or_else(|| self.internal(&item.name))?;
                let beside = keymap::encode(below, Shape::Plain) != item.name;
                self.facts.files += 1;
                self.facts.size_bytes += attributes.size;
                self.add(Entry { key: key.as_bytes().to_vec(), attributes: Some(attributes.clone()), beside })
            }
        }
    }

    /// Ends it; tells what it says of itself.
    ///
    /// # Errors
    /// As [`SnapshotWriter::new`].
    pub fn finish(mut self) -> Result<(W, SnapshotFacts)> {
        self.settle(None)?;
        self.write_row()?;
        let footer = Footer { facts: self.facts.clone(), rows: std::mem::take(&mut self.rows) };
        let footer = postcard::to_stdvec(&footer).map_err(|error| self.internal(&error.to_string()))?;
        let (at, crc) = (self.written, crc32c::crc32c(&footer));
        self.write(&footer)?;
        let length = u32::try_from(footer.len()).ok().filter(|length| *length <= FOOTER_MAX);
        let length = length.ok_or_else(|| self.internal("too many files for one snapshot"))?;
        let trailer = [&at.to_le_bytes()[..], &length.to_le_bytes(), &crc.to_le_bytes(), MAGIC].concat();
        self.write(&trailer)?;
        self.out.flush().map_err(|error| self.unwritten(&error))?;
        Ok((self.out, self.facts))
    }

    /// Keeps the directory before where nothing of it came.
    fn settle(&mut self, next: Option<&[u8]>) -> Result<()> {
        match self.empty.take() {
            Some(empty) if next.is_none_or(|next| !next.starts_with(&empty)) => {
                self.add(Entry { key: empty, attributes: None, beside: false })
            }
            _ => Ok(()),
        }
    }

    fn add(&mut self, entry: Entry) -> Result<()> {
        if self.row.last().map_or(&self.before, |last| &last.key) >= &entry.key {
            return Err(self.internal(&String::from_utf8_lossy(&entry.key)));
        }
        self.row.push(entry);
        if self.row.len() >= CHUNK_ENTRIES { self.write_row() } else { Ok(()) }
    }

    fn write_row(&mut self) -> Result<()> {
        if self.row.is_empty() {
            return Ok(());
        }
        let packed = chunk::pack(&self.row, 0);
        self.before = self.row.pop().map(|last| last.key).unwrap_or_default();
        self.row.clear();
        let length = u32::try_from(packed.len()).expect("512 keys of a few KiB");
        self.rows.push(RowFacts { length, crc: crc32c::crc32c(&packed) });
        self.write(&packed)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|error| self.unwritten(&error))
    }

    fn unwritten(&self, error: &std::io::Error) -> Error {
        let kind = ErrorKind::of_disk(error);
        Error::new(kind, format!("write snapshot {}", self.facts.name), error.to_string()).advise("free space")
    }

    fn internal(&self, what: &str) -> Error {
        let action = format!("write snapshot {}", self.facts.name);
        Error::new(ErrorKind::Internal, action, format!("out of order or no path: {what}")).advise("report it")
    }
}

/// A snapshot that can be read.
pub struct Snapshot {
    file: File,
    path: PathBuf,
    facts: SnapshotFacts,
    rows: Vec<(u64, RowFacts)>,
    identity: u32,
}

impl Snapshot {
    /// Opens a document and checks its frame; rows are checked as they are read.
    ///
    /// Cost: one read of the footer, about 12 bytes for 512 files.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `Disk`; `Corrupt` for what is no snapshot, or not a whole one.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        let size = file.metadata().map_err(|error| unreadable(path, &error))?.len();
        let body = size.checked_sub(TRAILER as u64).ok_or_else(|| corrupt(path, "it is too short"))?;
        let mut trailer = [0; TRAILER];
        file.read_exact_at(&mut trailer, body).map_err(|error| unreadable(path, &error))?;
        let number = |from: usize| u32::from_le_bytes(trailer[from..from + 4].try_into().expect("four bytes"));
        let at = u64::from_le_bytes(trailer[..8].try_into().expect("eight bytes"));
        let (length, crc) = (number(8), number(12));
        if trailer[16..] != MAGIC[..] || length > FOOTER_MAX || at.checked_add(u64::from(length)) != Some(body) {
            return Err(corrupt(path, "it does not end as a snapshot does"));
        }
        let mut footer = vec![0; length as usize];
        file.read_exact_at(&mut footer, at).map_err(|error| unreadable(path, &error))?;
        if crc32c::crc32c(&footer) != crc {
            return Err(corrupt(path, "its checksum is wrong"));
        }
        let Footer { facts, rows } =
            postcard::from_bytes(&footer).map_err(|error| corrupt(path, &format!("its facts: {error}")))?;
        let mut offset = MAGIC.len() as u64;
        let rows: Vec<_> = rows
            .into_iter()
            .map(|row| {
                let placed = (offset, row);
                offset += u64::from(row.length);
                placed
            })
            .collect();
        if offset != at || rows.iter().any(|(_, row)| row.length > ROW_MAX) {
            return Err(corrupt(path, "its rows do not fit"));
        }
        Ok(Self { file, path: path.into(), facts, rows, identity: crc })
    }

    /// What it says of itself.
    pub fn facts(&self) -> &SnapshotFacts {
        &self.facts
    }

    /// Another document has another one, as far as a checksum can tell.
    pub fn identity(&self) -> u32 {
        self.identity
    }

    /// Number of rows; each has 512 entries at most.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The entries of a row, which is below [`Snapshot::rows`]. All rows together are in the order of keys.
    ///
    /// Cost: one read of some tens of KiB.
    ///
    /// # Errors
    /// `Corrupt` where the document was changed; `Disk`.
    pub fn row(&self, index: usize) -> Result<Vec<SnapshotEntry>> {
        let (offset, row) = self.rows[index];
        let mut bytes = vec![0; row.length as usize];
        self.file.read_exact_at(&mut bytes, offset).map_err(|error| unreadable(&self.path, &error))?;
        let damaged = || corrupt(&self.path, "a row of it is damaged");
        if crc32c::crc32c(&bytes) != row.crc {
            return Err(damaged());
        }
        let entries = Chunk::parse(&bytes).and_then(|chunk| chunk.unpack()).map_err(|_| damaged())?;
        entries.into_iter().map(|entry| self.shown(entry).ok_or_else(damaged)).collect()
    }

    /// Every entry, in the order of keys.
    pub fn entries(&self) -> impl Iterator<Item = Result<SnapshotEntry>> {
        (0..self.rows()).flat_map(|index| match self.row(index) {
            Ok(entries) => entries.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    }

    /// What is different in a `later` snapshot, by paths below what was frozen, in the order of keys.
    pub fn changes<'a>(&'a self, later: &'a Self) -> impl Iterator<Item = Result<(Change, String)>> + 'a {
        let files = |entry: &Result<SnapshotEntry>| entry.as_ref().map_or(true, |entry| entry.attributes.is_some());
        let mut old = self.entries().filter(files).peekable();
        let mut new = later.entries().filter(files).peekable();
        std::iter::from_fn(move || {
            loop {
                let order = match (old.peek(), new.peek()) {
                    (None, None) => return None,
                    (Some(Err(_)), _) => {
                        return old.next().map(|entry| entry.map(|entry| (Change::Removed, entry.path)));
                    }
                    (_, Some(Err(_))) => return new.next().map(|entry| entry.map(|entry| (Change::Added, entry.path))),
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (Some(Ok(old)), Some(Ok(new))) => self.below(old).cmp(later.below(new)),
                };
                match order {
                    Ordering::Less => return old.next().map(|entry| entry.map(|entry| (Change::Removed, entry.path))),
                    Ordering::Greater => return new.next().map(|entry| entry.map(|entry| (Change::Added, entry.path))),
                    Ordering::Equal => {
                        let (Some(Ok(old)), Some(Ok(new))) = (old.next(), new.next()) else { continue };
                        let version = |entry: &SnapshotEntry| Some(entry.attributes.as_ref()?.version.clone());
                        if version(&old) != version(&new) {
                            return Some(Ok((Change::Changed, new.path)));
                        }
                    }
                }
            }
        })
    }

    /// An entry with its path; `None` where it does not belong here.
    fn shown(&self, entry: Entry) -> Option<SnapshotEntry> {
        let below = entry.key.strip_prefix(&*self.facts.prefix)?;
        let (below, shape) = match &entry.attributes {
            None => (below.strip_suffix(b"/")?, Shape::Plain),
            Some(_) if entry.beside => (below, Shape::Beside),
            Some(_) => (below, Shape::Plain),
        };
        let path = keymap::encode(below, shape);
        // Only what is a path of a key can be looked up again.
        keymap::decode(&path)?;
        (!path.is_empty()).then(|| SnapshotEntry { path, key: ObjectKey::new(entry.key), attributes: entry.attributes })
    }

    fn below<'a>(&self, entry: &'a SnapshotEntry) -> &'a [u8] {
        &entry.key.as_bytes()[self.facts.prefix.len()..]
    }
}

fn corrupt(path: &Path, reason: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("read snapshot {}", path.display()), reason)
        .advise("copy it again from where it came, or make a new one: penstock snapshot create")
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        std::io::ErrorKind::UnexpectedEof => return corrupt(path, "it ends too early"),
        _ => ErrorKind::Disk,
    };
    Error::new(kind, format!("read snapshot {}", path.display()), error.to_string())
}
