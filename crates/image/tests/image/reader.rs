//! A reader of images that knows the format from the kernel's documentation and nothing of the writer.

use std::cmp::Ordering;
use std::collections::BTreeMap;

const BLOCK: usize = 4096;
const NO_BLOCK: u32 = u32::MAX;

pub struct Image<'a>(pub &'a [u8]);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    pub number: u64,
    pub mode: u16,
    pub size: u64,
    pub owner: (u32, u32),
    pub modified: (i64, u32),
    pub links: u32,
    pub content: Content,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Offset in the image.
    Here(usize),
    /// Bytes of a chunk; device (1-based) and block of each.
    Chunks(u64, Vec<(u16, u32)>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dirent {
    pub name: String,
    pub inode: u64,
    pub kind: u8,
}

impl Image<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap())
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    /// Checks the superblock; gives the number of inodes and the blocks of each device.
    pub fn superblock(&self) -> (u64, Vec<u32>) {
        let at = 1024;
        assert_eq!(self.u32(at), 0xE0F5_E1E2, "magic");
        let mut covered = self.0[at..BLOCK].to_vec();
        covered[4..8].fill(0);
        assert_eq!(self.u32(at + 4), !crc32c_of(&covered), "checksum");
        assert_eq!(self.u32(at + 8), 0x3, "compatible features: checksum, mtime");
        assert_eq!(self.0[at + 12], 12, "block bits");
        assert_eq!(self.u32(at + 80), 0xC, "incompatible features: chunks, device table");
        assert_eq!(self.u32(at + 36) as usize * BLOCK, self.0.len(), "blocks");
        assert_eq!(self.u32(at + 40), 0, "metadata begins at block 0");
        let slots = usize::from(self.u16(at + 88)) * 128;
        let devices = (0..usize::from(self.u16(at + 86))).map(|number| self.u32(slots + number * 128 + 64)).collect();
        (self.u64(at + 16), devices)
    }

    pub fn root(&self) -> u64 {
        u64::from(self.u16(1024 + 14))
    }

    pub fn inode(&self, number: u64) -> Inode {
        let at = usize::try_from(number * 32).unwrap();
        assert!(at % BLOCK + 64 <= BLOCK, "inode {number} lies in two blocks");
        let format = self.u16(at);
        assert_eq!(format & 1, 1, "inode {number} is extended");
        assert_eq!(self.u16(at + 2), 0, "inode {number} has no attributes");
        let (size, word) = (self.u64(at + 8), self.u32(at + 16));
        let content = match format >> 1 {
            0 => Content::Here(word as usize * BLOCK),
            2 => {
                assert!(
                    at % BLOCK + 64 + usize::try_from(size).unwrap() <= BLOCK,
                    "inode {number}: inline in one block"
                );
                Content::Here(at + 64)
            }
            4 => self.chunks(at + 64, size, word),
            other => panic!("inode {number} has layout {other}"),
        };
        Inode {
            number,
            mode: self.u16(at + 4),
            size,
            owner: (self.u32(at + 24), self.u32(at + 28)),
            modified: (self.u64(at + 32).cast_signed(), self.u32(at + 40)),
            links: self.u32(at + 44),
            content,
        }
    }

    fn chunks(&self, at: usize, size: u64, format: u32) -> Content {
        assert_eq!(format & !0x1f, 0x20, "chunk indexes");
        let chunk = (BLOCK as u64) << (format & 0x1f);
        let indexes = (0..usize::try_from(size.div_ceil(chunk)).unwrap()).map(|number| {
            let at = at + number * 8;
            assert_eq!(self.u16(at), 0, "no high bits");
            assert_ne!(self.u32(at + 4), NO_BLOCK, "no hole");
            (self.u16(at + 2), self.u32(at + 4))
        });
        Content::Chunks(chunk, indexes.collect())
    }

    /// The blocks of a directory; the last one may be shorter, but is followed by zeros up to its end or, inline, by
    /// the end of what belongs to it.
    fn blocks(&self, inode: &Inode) -> Vec<&[u8]> {
        let Content::Here(at) = inode.content else { panic!("a directory in chunks") };
        self.0[at..at + usize::try_from(inode.size).unwrap()].chunks(BLOCK).collect()
    }

    pub fn entries(&self, inode: &Inode) -> Vec<Dirent> {
        assert_eq!(inode.mode & 0o170_000, 0o040_000);
        self.blocks(inode).into_iter().flat_map(entries_of_block).collect()
    }

    /// Looks a name up as the kernel does: by halving, first over the blocks, then in one.
    pub fn lookup(&self, directory: &Inode, name: &str) -> Option<u64> {
        let blocks = self.blocks(directory);
        let after = blocks.partition_point(|block| order(block, 0, name) != Ordering::Greater);
        let block = blocks[after.checked_sub(1)?];
        let (mut low, mut high) = (0, count(block));
        while low < high {
            let middle = usize::midpoint(low, high);
            match order(block, middle, name) {
                Ordering::Equal => return Some(u64::from_le_bytes(block[middle * 12..][..8].try_into().unwrap())),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Everything below the root by its path, and the root by the empty one.
    pub fn walk(&self) -> BTreeMap<String, Inode> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![(String::new(), self.root(), self.root())];
        while let Some((path, number, parent)) = waiting.pop() {
            let inode = self.inode(number);
            let mut subdirectories = 0;
            for Dirent { name, inode: child, kind } in self.entries(&inode) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                match (name.as_str(), kind) {
                    (".", 2) => assert_eq!(child, number, ". of {path}"),
                    ("..", 2) => assert_eq!(child, parent, ".. of {path}"),
                    (_, 2) => {
                        subdirectories += 1;
                        waiting.push((path, child, number));
                    }
                    (_, 1) => assert!(found.insert(path, self.inode(child)).is_none()),
                    (_, other) => panic!("{path} has type {other}"),
                }
            }
            assert_eq!(inode.links, 2 + subdirectories, "links of {path:?}");
            assert!(found.insert(path, inode).is_none());
        }
        found
    }
}

fn count(block: &[u8]) -> usize {
    usize::from(u16::from_le_bytes(block[8..10].try_into().unwrap())) / 12
}

fn name_start(block: &[u8], number: usize) -> usize {
    usize::from(u16::from_le_bytes(block[number * 12 + 8..][..2].try_into().unwrap()))
}

fn name(block: &[u8], number: usize) -> &[u8] {
    let from_here = &block[name_start(block, number)..];
    if number + 1 < count(block) {
        return &from_here[..name_start(block, number + 1) - name_start(block, number)];
    }
    from_here.split(|&byte| byte == 0).next().unwrap()
}

fn order(block: &[u8], number: usize, wanted: &str) -> Ordering {
    name(block, number).cmp(wanted.as_bytes())
}

fn entries_of_block(block: &[u8]) -> Vec<Dirent> {
    let entries = (0..count(block)).map(|number| Dirent {
        name: String::from_utf8(name(block, number).to_vec()).unwrap(),
        inode: u64::from_le_bytes(block[number * 12..][..8].try_into().unwrap()),
        kind: block[number * 12 + 10],
    });
    entries.collect()
}

/// CRC32C bit by bit, from its polynomial.
fn crc32c_of(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 })
    })
}
