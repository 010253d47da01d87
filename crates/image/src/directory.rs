//! The content of a directory: blocks that begin with entries and go on with their names, all in ascending order of
//! bytes, so that the kernel finds a name by halving: first the block, then the entry.

use crate::format::{BLOCK, DIRENT_BYTES, Kind, dirent};

/// Entries of a directory that is being filled, in the order in which they came.
#[derive(Default, Debug)]
pub(crate) struct Entries {
    entries: Vec<Entry>,
    names: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    inode: u64,
    name_at: u32,
    name_bytes: u16,
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

/// Two entries have one name.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Twice(pub String);

impl Entries {
    /// Adds an entry. Not `.` and `..`, which every directory has.
    ///
    /// # Errors
    /// `None` when the names of one directory take 4 GiB.
    pub(crate) fn push(&mut self, name: &str, inode: u64, kind: Kind) -> Option<()> {
        let name_at = u32::try_from(self.names.len()).ok()?;
        let name_bytes = u16::try_from(name.len()).ok()?;
        self.names.extend_from_slice(name.as_bytes());
        self.entries.push(Entry { inode, name_at, name_bytes, kind });
        Some(())
    }

    /// The content, with 0 for the inodes of `.` and `..`.
    pub(crate) fn into_content(mut self) -> Result<Content, Twice> {
        // Sorted like every other name: `-` comes before them.
        for dots in [".", ".."] {
            self.push(dots, 0, Kind::Directory);
        }
        let Self { mut entries, names } = self;
        let name = |entry: &Entry| &names[entry.name_at as usize..][..usize::from(entry.name_bytes)];
        entries.sort_unstable_by(|one, other| name(one).cmp(name(other)));
        if let Some(pair) = entries.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
            return Err(Twice(String::from_utf8_lossy(name(&pair[0])).into_owned()));
        }
        let (mut bytes, mut dots) = (Vec::new(), [0; 2]);
        let mut rest = &entries[..];
        while !rest.is_empty() {
            bytes.resize(usize::next_multiple_of(bytes.len(), BLOCK), 0);
            let (fits, behind) = rest.split_at(that_fit(rest));
            let mut name_offset = fits.len() * DIRENT_BYTES;
            for entry in fits {
                match name(entry) {
                    b"." => dots[0] = bytes.len(),
                    b".." => dots[1] = bytes.len(),
                    _ => {}
                }
                let offset = u16::try_from(name_offset).expect("less than a block");
                bytes.extend_from_slice(&dirent(entry.inode, offset, entry.kind));
                name_offset += usize::from(entry.name_bytes);
            }
            fits.iter().for_each(|entry| bytes.extend_from_slice(name(entry)));
            rest = behind;
        }
        Ok(Content { bytes, dot: dots[0], dot_dot: dots[1] })
    }
}

/// How many of the next entries one block takes.
fn that_fit(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let ends = entries.iter().map(|entry| {
        bytes += DIRENT_BYTES + usize::from(entry.name_bytes);
        bytes
    });
    ends.take_while(|end| *end <= BLOCK).count()
}

impl Content {
    /// Says which inode an entry (`dot` or `dot_dot`) has.
    pub(crate) fn set_inode(&mut self, at: usize, inode: u64) {
        self.bytes[at..at + 8].copy_from_slice(&inode.to_le_bytes());
    }
}
