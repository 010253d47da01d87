//! An image read back, for who shows it where the kernel cannot mount it. Reads what [`crate::ImageWriter`] writes and no
//! other EROFS; whatever does not fit is refused as corrupt.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use penstock_types::{Error, ErrorKind, Result};

use crate::format::{BLOCK, BLOCK_BYTES, DIRENT_BYTES, INODE_BYTES, INODE_SLOT_BYTES, NAME_BYTES_MAX, ROOT, UUID_AT};
use crate::place::Place;

/// Blocks of a directory of at most so many bytes are read: a million long names fit twenty times.
const DIRECTORY_BYTES_MAX: u64 = 1 << 33;

/// An image in a file.
#[derive(Debug)]
pub struct Image {
    file: File,
}

/// What the image says of one inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageNode {
    /// Its number.
    pub number: u64,
    /// Directory or file.
    pub is_directory: bool,
    /// Bytes; of a directory those of its names.
    pub size: u64,
    /// Milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// Where a file's bytes are; `None` for a directory and for a file without bytes.
    pub place: Option<Place>,
    /// Where a directory's names are in the image.
    names_at: u64,
}

/// One name of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageName {
    /// Last component.
    pub name: String,
    /// Number of its inode.
    pub number: u64,
}

impl Image {
    /// An image that was written whole.
    pub fn new(file: File) -> Self {
        Self { file }
    }

    /// What tells it from other images; nothing when it ends before.
    ///
    /// # Errors
    /// `Disk`.
    pub fn uuid(&self) -> Result<Option<[u8; 16]>> {
        let mut uuid = [0; 16];
        let read = self.read_up_to(&mut uuid, UUID_AT)?;
        Ok((read == uuid.len()).then_some(uuid))
    }

    /// Number of the root.
    pub fn root(&self) -> u64 {
        ROOT
    }

    /// What an inode is.
    ///
    /// # Errors
    /// `Corrupt` for a number that no inode has; `Disk`.
    pub fn node(&self, number: u64) -> Result<ImageNode> {
        let at = number.checked_mul(INODE_SLOT_BYTES).ok_or_else(|| corrupt("a number is too large"))?;
        let mut bytes = [0; INODE_BYTES + 8];
        let read = self.read_up_to(&mut bytes, at)?;
        if read < INODE_BYTES {
            return Err(corrupt("an inode lies behind its end"));
        }
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let (format, mode, size, address) = (half(0), half(4), long(8), word(16));
        let is_directory = mode & 0o170_000 == 0o040_000;
        let (names_at, place) = match format >> 1 {
            0 => (u64::from(address) * BLOCK_BYTES, None),
            2 => (at + INODE_BYTES as u64, None),
            4 if read == bytes.len() => {
                let device = half(INODE_BYTES + 2).checked_sub(1).ok_or_else(|| corrupt("a file is on no device"))?;
                (0, Some(Place { device, offset: u64::from(word(INODE_BYTES + 4)) * BLOCK_BYTES }))
            }
            _ => return Err(corrupt("an inode has an unknown layout")),
        };
        let seconds = i64::from_le_bytes(bytes[32..40].try_into().expect("eight bytes"));
        let modified_ms = seconds.saturating_mul(1000).saturating_add(i64::from(word(40)) / 1_000_000);
        let fits = if is_directory { size <= DIRECTORY_BYTES_MAX } else { place.is_some() || size == 0 };
        if format & 1 == 0 || !fits {
            return Err(corrupt("an inode contradicts itself"));
        }
        Ok(ImageNode { number, is_directory, size, modified_ms, place, names_at })
    }

    /// The inode of a name in a directory; `None` when nothing has it.
    ///
    /// Cost: about one read of 4 KiB for each doubling of the directory.
    ///
    /// # Errors
    /// `NotADirectory`; `Corrupt`, `Disk`.
    pub fn look_up(&self, directory: &ImageNode, name: &str) -> Result<Option<u64>> {
        let mut block = vec![0; BLOCK];
        let (mut low, mut high) = (0, self.blocks(directory)?);
        while low < high {
            let middle = u64::midpoint(low, high);
            let names = self.names_of(directory, middle, &mut block)?;
            let (Some(first), Some(last)) = (names.first(), names.last()) else { return Ok(None) };
            if name < first.name.as_str() {
                high = middle;
            } else if name > last.name.as_str() {
                low = middle + 1;
            } else {
                return Ok(names.into_iter().find(|each| each.name == name).map(|each| each.number));
            }
        }
        Ok(None)
    }

    /// The names in one block of a directory, without `.` and `..`; `None` behind the last one.
    ///
    /// # Errors
    /// As [`Image::look_up`].
    pub fn names(&self, directory: &ImageNode, block: u64) -> Result<Option<Vec<ImageName>>> {
        if block >= self.blocks(directory)? {
            return Ok(None);
        }
        let mut names = self.names_of(directory, block, &mut vec![0; BLOCK])?;
        names.retain(|each| each.name != "." && each.name != "..");
        Ok(Some(names))
    }

    fn blocks(&self, directory: &ImageNode) -> Result<u64> {
        if directory.is_directory {
            return Ok(directory.size.div_ceil(BLOCK_BYTES));
        }
        Err(Error::new(ErrorKind::NotADirectory, "list a directory of the image", "it is a file"))
    }

    fn names_of(&self, directory: &ImageNode, block: u64, bytes: &mut [u8]) -> Result<Vec<ImageName>> {
        let length = usize::try_from((directory.size - block * BLOCK_BYTES).min(BLOCK_BYTES)).expect("one block");
        let bytes = &mut bytes[..length];
        if self.read_up_to(bytes, directory.names_at + block * BLOCK_BYTES)? < length {
            return Err(corrupt("a directory lies behind its end"));
        }
        let bad = || corrupt("a directory is damaged");
        let half = |at: usize| Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
        let names_at = half(8).filter(|at| at.is_multiple_of(DIRENT_BYTES) && *at > 0).ok_or_else(bad)?;
        let count = names_at / DIRENT_BYTES;
        let name = |index: usize| {
            let at = index * DIRENT_BYTES;
            let end = if index + 1 < count { half(at + DIRENT_BYTES + 8)? } else { length };
            let name = bytes.get(half(at + 8)?..end)?;
            // Behind the last name of a block are zeros.
            let name = name.split(|&byte| byte == 0).next()?;
            let number = u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?);
            let name = std::str::from_utf8(name).ok().filter(|name| name.len() <= NAME_BYTES_MAX)?;
            Some(ImageName { name: name.into(), number })
        };
        (0..count).map(|index| name(index).ok_or_else(bad)).collect()
    }

    /// Reads as much as there is.
    fn read_up_to(&self, out: &mut [u8], at: u64) -> Result<usize> {
        let mut done = 0;
        while done < out.len() {
            match self.file.read_at(&mut out[done..], at + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::new(ErrorKind::Disk, "read the image", error.to_string())),
            }
        }
        Ok(done)
    }
}

fn corrupt(reason: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "read the image", reason).advise("unmount the snapshot and mount it again")
}
