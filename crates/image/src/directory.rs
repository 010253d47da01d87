//! The content of a directory: blocks that begin with entries and go on with their names, all in ascending order of
//! bytes, so that the kernel finds a name by halving: first the block, then the entry.

use crate::format::{BLOCK, DIRENT_BYTES, Kind, dirent};

/// Entries of a directory that is being filled. Holds what it will be on disk, and no more.
#[derive(Default, Debug)]
pub(crate) struct Entries {
    full_blocks: Vec<u8>,
    entries: Vec<Entry>,
    names: Vec<u8>,
    dot: Option<usize>,
    dot_dot: Option<usize>,
}

#[derive(Debug)]
struct Entry {
    inode: u64,
    name_end: usize,
    kind: Kind,
}

/// The content of a directory, and where in it the two entries lie whose inodes become known last.
#[derive(Debug)]
pub(crate) struct Content {
    /// Whole blocks; the last one ends with its last name.
    pub bytes: Vec<u8>,
    /// Where the inode of `.` is said.
    pub dot: usize,
    /// Where the inode of `..` is said.
    pub dot_dot: usize,
}

impl Entries {
    /// Adds an entry. Names come in ascending order, without `.` and `..`.
    pub(crate) fn push(&mut self, name: &str, inode: u64, kind: Kind) {
        self.push_dots_before(Some(name));
        self.append(name, inode, kind);
    }

    /// The content, with 0 for the inodes of `.` and `..`.
    pub(crate) fn into_content(mut self) -> Content {
        self.push_dots_before(None);
        self.write_block();
        let dot = self.dot.expect("pushed above");
        let dot_dot = self.dot_dot.expect("pushed above");
        Content { bytes: self.full_blocks, dot, dot_dot }
    }

    /// `.` and `..` are sorted like every other name: `-` comes before them.
    fn push_dots_before(&mut self, name: Option<&str>) {
        if self.dot.is_none() && name.is_none_or(|name| "." < name) {
            self.dot = Some(self.append(".", 0, Kind::Directory));
        }
        if self.dot_dot.is_none() && name.is_none_or(|name| ".." < name) {
            self.dot_dot = Some(self.append("..", 0, Kind::Directory));
        }
    }

    /// Where in the content the new entry lies.
    fn append(&mut self, name: &str, inode: u64, kind: Kind) -> usize {
        if (self.entries.len() + 1) * DIRENT_BYTES + self.names.len() + name.len() > BLOCK {
            self.write_block();
            self.full_blocks.resize(self.full_blocks.len().next_multiple_of(BLOCK), 0);
        }
        let at = self.full_blocks.len() + self.entries.len() * DIRENT_BYTES;
        self.names.extend_from_slice(name.as_bytes());
        self.entries.push(Entry { inode, name_end: self.names.len(), kind });
        at
    }

    fn write_block(&mut self) {
        let names_at = self.entries.len() * DIRENT_BYTES;
        let mut name_start = 0;
        for entry in self.entries.drain(..) {
            let name_offset = u16::try_from(names_at + name_start).expect("less than a block");
            self.full_blocks.extend_from_slice(&dirent(entry.inode, name_offset, entry.kind));
            name_start = entry.name_end;
        }
        self.full_blocks.append(&mut self.names);
    }
}

impl Content {
    /// Says which inode an entry (`dot` or `dot_dot`) has.
    pub(crate) fn set_inode(&mut self, at: usize, inode: u64) {
        self.bytes[at..at + 8].copy_from_slice(&inode.to_le_bytes());
    }
}
