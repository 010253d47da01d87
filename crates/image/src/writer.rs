//! The image itself: a listing in, an image out, with only the open directories in memory.
//!
//! Files are written as they come. A directory is written when it is left, because only then its size and its links
//! are known; where its inode lies is known to its subdirectories even later, so their `..` is set afterwards.

use std::io::{Seek, Write};

use penstock_types::{Error, ErrorKind, Result};

use crate::directory::{Content, Entries, Twice};
use crate::format::{
    BLOCK, BLOCK_BYTES, HEADER_BYTES, INODE_BYTES, INODE_SLOT_BYTES, Inode, Kind, LABEL_BYTES_MAX, Layout,
    NAME_BYTES_MAX, ROOT, Superblock, chunk_bits, chunk_index,
};
use crate::output::Output;
use crate::place::{Allocator, Place};

const PERMISSION_BITS: u32 = 0o7777;

/// What is the same for the whole image.
#[derive(Clone, Debug)]
pub struct Settings {
    /// User and group of everything.
    pub owner: (u32, u32),
    /// Permissions of every file, at most `0o7777`.
    pub file_mode: u32,
    /// Permissions of every directory, at most `0o7777`.
    pub directory_mode: u32,
    /// When the image was built, in milliseconds since 1970; also the mtime of the root and of implied directories.
    pub built_ms: i64,
    /// Tells images apart, as `blkid` shows it.
    pub uuid: [u8; 16],
    /// A name for people, as `blkid` shows it: at most 15 bytes, without NUL.
    pub label: String,
}

/// Writes one image. Paths are relative to its root (`a/b/c`) and come depth first: a directory before what is in it, and
/// all of that before anything else. The names in one directory may come in any order. A directory that is not given
/// before a path below it appears by itself.
///
/// A path that is refused changes nothing, and the next may follow; a name that was given twice is found when its
/// directory is left, and ends the image. After an error of the output, every call gives that error.
///
/// Cost: memory for the entries of the open directories (about a file name and 12 bytes each); the image takes
/// 96 bytes for a file, beside its entry.
#[derive(Debug)]
pub struct ImageWriter<W> {
    output: Output<W>,
    settings: Settings,
    allocator: Allocator,
    /// Blocks in use on each data device.
    devices: Vec<u32>,
    /// From the root down. Never empty.
    open: Vec<OpenDirectory>,
    files: u64,
    directories: u64,
}

/// What came out.
#[derive(Debug)]
pub struct Finished<W> {
    /// The output, with the image in it from its first byte on.
    pub out: W,
    /// Length of the image, a multiple of [`BLOCK_BYTES`].
    pub bytes: u64,
    /// Bytes that each data device must have, in the order of the `device=` options; each a multiple of
    /// [`BLOCK_BYTES`]. Empty where no file has bytes; the image is then mounted without that option.
    pub devices: Vec<u64>,
    /// How many files are in it.
    pub files: u64,
    /// How many directories are in it, the root among them.
    pub directories: u64,
}

#[derive(Debug)]
struct OpenDirectory {
    name: String,
    /// Where its inode will be, where that is known before it is left.
    inode: Option<u64>,
    modified_ms: i64,
    entries: Entries,
    subdirectories: u32,
    /// Positions in the image that are to say its inode: the `..` of its subdirectories.
    awaiting: Vec<u64>,
}

/// How a new path continues the open directories.
#[derive(Clone, Copy)]
struct Step<'p> {
    /// So many directories stay open.
    depth: usize,
    /// What is new below the last of them; at least a name.
    rest: &'p str,
}

impl<W: Write + Seek> ImageWriter<W> {
    /// Begins an image at the beginning of `out`, which is empty and at its beginning.
    ///
    /// # Errors
    /// `InvalidInput` when a mode or the label is out of bounds; otherwise what the output says.
    pub fn new(out: W, settings: &Settings) -> Result<Self> {
        Self::with_allocator(out, settings, Allocator::default())
    }

    /// The same, with files placed by this fresh allocator: for data devices smaller than [`crate::DEVICE_BLOCKS`].
    ///
    /// # Errors
    /// As of [`ImageWriter::new`].
    pub fn with_allocator(out: W, settings: &Settings, allocator: Allocator) -> Result<Self> {
        check_settings(settings)?;
        let mut output = Output::new(out);
        output.pad_to(HEADER_BYTES)?;
        output.append(&[0; INODE_BYTES])?;
        let root = OpenDirectory { inode: Some(ROOT), ..OpenDirectory::new("", settings.built_ms) };
        let settings = settings.clone();
        Ok(Self { output, settings, allocator, devices: Vec::new(), open: vec![root], files: 0, directories: 0 })
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// `InvalidInput` when the path is out of order, given twice, below a file, or has a name that is empty, `.`, `..`,
    /// longer than 255 bytes or with a NUL; otherwise what the output says.
    pub fn directory(&mut self, path: &str, modified_ms: i64) -> Result<()> {
        let step = self.step(path)?;
        self.leave_to(step.depth)?;
        for name in step.rest.split('/') {
            self.enter(name);
        }
        self.open.last_mut().expect("the root is open").modified_ms = modified_ms;
        Ok(())
    }

    /// Adds a file of `size` bytes and says where its content belongs.
    ///
    /// # Errors
    /// As of [`ImageWriter::directory`]; and `InvalidInput` when the file does not fit the data devices.
    pub fn file(&mut self, path: &str, size: u64, modified_ms: i64) -> Result<Place> {
        let step = self.step(path)?;
        let place = self.allocator.place(size).map_err(|error| error.during(action(path)))?;
        self.leave_to(step.depth)?;
        let mut name = step.rest;
        while let Some((directory, rest)) = name.split_once('/') {
            self.enter(directory);
            name = rest;
        }
        let inode = self.write_file(size, modified_ms, place)?;
        let directory = self.open.last_mut().expect("the root is open");
        directory.entries.push(name, inode, Kind::File).ok_or_else(|| self.output.fail(too_many_names(path)))?;
        Ok(place)
    }

    /// Ends the image.
    ///
    /// # Errors
    /// What the output says, now or before.
    pub fn finish(mut self) -> Result<Finished<W>> {
        self.output.check()?;
        self.leave_to(1)?;
        self.leave()?;
        self.output.pad_to(self.output.position().next_multiple_of(BLOCK_BYTES))?;
        let bytes = self.output.position();
        let superblock = Superblock {
            inodes: self.files + self.directories,
            built_ms: self.settings.built_ms,
            blocks: block_number(bytes)?,
            uuid: self.settings.uuid,
            label: &self.settings.label,
        };
        self.output.replace(0, &superblock.to_header(&self.devices))?;
        Ok(Finished {
            out: self.output.finish()?,
            bytes,
            devices: self.devices.iter().map(|&blocks| u64::from(blocks) * BLOCK_BYTES).collect(),
            files: self.files,
            directories: self.directories,
        })
    }

    /// Checks a path; changes nothing.
    fn step<'p>(&self, path: &'p str) -> Result<Step<'p>> {
        self.output.check()?;
        let refuse = |reason: &str| Err(Error::new(ErrorKind::InvalidInput, action(path), reason));
        let mut step = Step { depth: 1, rest: path };
        while let Some(directory) = self.open.get(step.depth) {
            match step.rest.split_once('/') {
                Some((name, rest)) if name == directory.name => step = Step { depth: step.depth + 1, rest },
                None if step.rest == directory.name => return refuse("a directory has this path already"),
                _ => break,
            }
        }
        step.rest.split('/').find_map(flaw).map_or(Ok(step), refuse)
    }

    fn enter(&mut self, name: &str) {
        self.open.last_mut().expect("the root is open").subdirectories += 1;
        self.open.push(OpenDirectory::new(name, self.settings.built_ms));
    }

    fn leave_to(&mut self, depth: usize) -> Result<()> {
        while self.open.len() > depth {
            self.leave()?;
        }
        Ok(())
    }

    /// Writes the innermost open directory.
    fn leave(&mut self) -> Result<()> {
        let mut directory = self.open.pop().expect("left once for every time it was entered");
        let content = std::mem::take(&mut directory.entries).into_content();
        let mut content = content.map_err(|Twice(name)| {
            let reason = format!("{name:?} is there twice, or its directory was given in parts");
            let error = Error::new(ErrorKind::InvalidInput, action(&directory.name), reason)
                .advise("give each path once, and all of a directory together");
            self.output.fail(error)
        })?;
        // The root is its own parent.
        let parent = self.open.last().map_or(Some(ROOT), |parent| parent.inode);
        content.set_inode(content.dot_dot, parent.unwrap_or_default());
        let dot_dot = content.dot_dot as u64;
        let (inode, content_at) = if directory.inode.is_some() || INODE_BYTES + content.bytes.len() > BLOCK {
            self.write_directory_in_blocks(&directory, content)?
        } else {
            self.write_directory_inline(&directory, content)?
        };
        for position in directory.awaiting {
            self.output.replace(position, &inode.to_le_bytes())?;
        }
        if let Some(above) = self.open.last_mut() {
            let pushed = above.entries.push(&directory.name, inode, Kind::Directory);
            pushed.ok_or_else(|| self.output.fail(too_many_names(&directory.name)))?;
            if parent.is_none() {
                above.awaiting.push(content_at + dot_dot);
            }
        }
        Ok(())
    }

    /// A small directory lies behind its inode, in the same block. Gives its inode and where its content is.
    fn write_directory_inline(&mut self, directory: &OpenDirectory, mut content: Content) -> Result<(u64, u64)> {
        let position = self.next_record(INODE_BYTES + content.bytes.len())?;
        let inode = position / INODE_SLOT_BYTES;
        content.set_inode(content.dot, inode);
        let record = self.directory_inode(directory, content.bytes.len(), Layout::Inline).to_bytes();
        self.output.append(&[&record[..], &content.bytes].concat())?;
        Ok((inode, position + INODE_BYTES as u64))
    }

    /// A larger one has blocks of its own, before its inode if the root's is not reserved for it.
    fn write_directory_in_blocks(&mut self, directory: &OpenDirectory, mut content: Content) -> Result<(u64, u64)> {
        let content_at = self.output.position().next_multiple_of(BLOCK_BYTES);
        let content_end = (content_at + content.bytes.len() as u64).next_multiple_of(BLOCK_BYTES);
        let inode = directory.inode.unwrap_or(content_end / INODE_SLOT_BYTES);
        content.set_inode(content.dot, inode);
        let layout = Layout::Plain { block: block_number(content_at)? };
        let record = self.directory_inode(directory, content.bytes.len(), layout).to_bytes();
        self.output.pad_to(content_at)?;
        self.output.append(&content.bytes)?;
        self.output.pad_to(content_end)?;
        match directory.inode {
            Some(reserved) => self.output.replace(reserved * INODE_SLOT_BYTES, &record)?,
            None => self.output.append(&record)?,
        }
        Ok((inode, content_at))
    }

    fn directory_inode(&mut self, directory: &OpenDirectory, size: usize, layout: Layout) -> Inode {
        self.directories += 1;
        Inode {
            size: size as u64,
            layout,
            modified_ms: directory.modified_ms,
            // Its name, its `.`, and the `..` of each subdirectory.
            links: directory.subdirectories.saturating_add(2),
            ..self.inode(Kind::Directory)
        }
    }

    /// Gives the inode.
    fn write_file(&mut self, size: u64, modified_ms: i64, place: Place) -> Result<u64> {
        self.files += 1;
        let position = self.next_record(INODE_BYTES)?;
        let blocks = size.div_ceil(BLOCK_BYTES);
        let mut inode = Inode { size, modified_ms, ..self.inode(Kind::File) };
        if blocks == 0 {
            self.output.append(&inode.to_bytes())?;
            return Ok(position / INODE_SLOT_BYTES);
        }
        let first_block = block_number(place.offset)?;
        let chunk_bits = chunk_bits(blocks);
        inode.layout = Layout::Chunks { chunk_bits };
        self.output.append(&inode.to_bytes())?;
        for start in (0..blocks).step_by(1 << chunk_bits) {
            let block = block_number(place.offset + start * BLOCK_BYTES)?;
            self.output.append(&chunk_index(place.device, block))?;
        }
        self.devices.resize(usize::from(place.device) + 1, 0);
        *self.devices.last_mut().expect("at least one") =
            u32::try_from(u64::from(first_block) + blocks).expect("the file fits its device");
        Ok(position / INODE_SLOT_BYTES)
    }

    fn inode(&self, kind: Kind) -> Inode {
        let permissions = match kind {
            Kind::File => self.settings.file_mode,
            Kind::Directory => self.settings.directory_mode,
        };
        Inode {
            kind,
            permissions: u16::try_from(permissions).expect("checked with the settings"),
            owner: self.settings.owner,
            size: 0,
            layout: Layout::Plain { block: 0 },
            modified_ms: 0,
            links: 1,
            serial: u32::try_from((self.files + self.directories) & u64::from(u32::MAX)).expect("masked"),
        }
    }

    /// Pads up to where a record of this length may begin: at a slot for inodes, and within one block.
    fn next_record(&mut self, length: usize) -> Result<u64> {
        let mut position = self.output.position().next_multiple_of(INODE_SLOT_BYTES);
        if position % BLOCK_BYTES + length as u64 > BLOCK_BYTES {
            position = position.next_multiple_of(BLOCK_BYTES);
        }
        self.output.pad_to(position)?;
        Ok(position)
    }
}

impl OpenDirectory {
    fn new(name: &str, modified_ms: i64) -> Self {
        Self {
            name: name.to_owned(),
            inode: None,
            modified_ms,
            entries: Entries::default(),
            subdirectories: 0,
            awaiting: Vec::new(),
        }
    }
}

fn too_many_names(path: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, action(path), "the names of its directory take more than 4 GiB")
        .advise("take a smaller part of the tree")
}

fn action(path: &str) -> String {
    format!("add {path:?} to the image")
}

/// Why a name cannot be in a directory.
fn flaw(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("it has an empty name in it"),
        "." | ".." => Some("it has . or .. in it"),
        _ if name.len() > NAME_BYTES_MAX => Some("it has a name of more than 255 bytes in it"),
        _ if name.contains('\0') => Some("it contains a NUL byte"),
        _ => None,
    }
}

fn check_settings(settings: &Settings) -> Result<()> {
    let refuse = |reason: &str| Err(Error::new(ErrorKind::InvalidInput, "begin an image", reason));
    if (settings.file_mode | settings.directory_mode) & !PERMISSION_BITS != 0 {
        return refuse("a mode has more than the bits of permissions in it");
    }
    if settings.label.len() > LABEL_BYTES_MAX {
        return refuse("its label has more than 15 bytes");
    }
    if settings.label.contains('\0') {
        return refuse("its label contains a NUL byte");
    }
    Ok(())
}

/// The block that begins at this position.
fn block_number(position: u64) -> Result<u32> {
    u32::try_from(position / BLOCK_BYTES).map_err(|_| {
        Error::new(ErrorKind::InvalidInput, "write the image", "it would have more than 2^32 blocks")
            .advise("take a smaller part of the tree")
    })
}
