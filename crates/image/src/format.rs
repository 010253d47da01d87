//! The records of the on-disk format, as bytes: `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst` of the
//! Linux kernel. All numbers are little-endian.

use crate::place::DEVICES_MAX;

/// Bytes of a block, of the image and of its data devices alike.
pub const BLOCK_BYTES: u64 = 4096;
/// The same as a length in memory.
pub(crate) const BLOCK: usize = BLOCK_BYTES as usize;
const BLOCK_BITS: u8 = 12;

/// Inodes are addressed in units of this; an inode's number is its position divided by it.
pub(crate) const INODE_SLOT_BYTES: u64 = 32;
/// Size of an extended inode: the kind with an mtime of its own.
pub(crate) const INODE_BYTES: usize = 64;
/// Size of a directory entry without its name.
pub(crate) const DIRENT_BYTES: usize = 12;
/// Longest name.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// Longest label: its field has 16 bytes and ends with NUL.
pub(crate) const LABEL_BYTES_MAX: usize = 15;

const SUPERBLOCK_OFFSET: usize = 1024;
const UUID_OFFSET: usize = 48;
/// Where the identity of an image lies.
pub(crate) const UUID_AT: u64 = (SUPERBLOCK_OFFSET + UUID_OFFSET) as u64;
const SUPERBLOCK_BYTES: usize = 128;
const MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_CHECKSUM: u32 = 0x1;
const COMPAT_MTIME: u32 = 0x2;
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

const DEVICE_SLOT_BYTES: usize = 128;
/// The device table follows the superblock at once.
const DEVICE_TABLE_SLOT: usize = (SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES) / DEVICE_SLOT_BYTES;

/// Bytes before the first inode: superblock and device table, up to the next block.
pub(crate) const HEADER_BYTES: u64 =
    (((DEVICE_TABLE_SLOT + DEVICES_MAX as usize) * DEVICE_SLOT_BYTES) as u64).next_multiple_of(BLOCK_BYTES);
/// The root comes first, because the superblock has but 16 bits for its number.
pub(crate) const ROOT: u64 = HEADER_BYTES / INODE_SLOT_BYTES;
const _: () = assert!(ROOT <= u16::MAX as u64);

/// Bits of the number of blocks of a chunk at most.
const CHUNK_BITS_MAX: u32 = 31;
const CHUNK_INDEXES: u16 = 0x20;
/// Bytes of a chunk index.
const CHUNK_INDEX_BYTES: usize = 8;

const REGULAR_FILE: u16 = 0o100_000;
const DIRECTORY: u16 = 0o040_000;

/// What a directory entry is, as readdir says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
}

impl Kind {
    fn mode_bits(self) -> u16 {
        match self {
            Self::File => REGULAR_FILE,
            Self::Directory => DIRECTORY,
        }
    }
}

/// Where an inode's content is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layout {
    /// In blocks of the image from this one on. Also for content without bytes.
    Plain { block: u32 },
    /// Behind the inode, in the same block.
    Inline,
    /// In chunks of 2^`chunk_bits` blocks; their indexes are behind the inode.
    Chunks { chunk_bits: u8 },
}

impl Layout {
    fn code(self) -> u16 {
        match self {
            Self::Plain { .. } => 0,
            Self::Inline => 2,
            Self::Chunks { .. } => 4,
        }
    }

    fn word(self) -> u32 {
        match self {
            Self::Plain { block } => block,
            Self::Inline => 0,
            Self::Chunks { chunk_bits } => u32::from(CHUNK_INDEXES | u16::from(chunk_bits)),
        }
    }
}

/// One inode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inode {
    pub kind: Kind,
    pub permissions: u16,
    pub owner: (u32, u32),
    pub size: u64,
    pub layout: Layout,
    pub modified_ms: i64,
    pub links: u32,
    /// Its number for callers of the 32-bit stat; the others see its place.
    pub serial: u32,
}

impl Inode {
    /// The inode as it lies in the image.
    pub(crate) fn to_bytes(self) -> [u8; INODE_BYTES] {
        const EXTENDED: u16 = 1;
        let (seconds, nanoseconds) = split_time(self.modified_ms);
        let mut bytes = [0; INODE_BYTES];
        put(&mut bytes, 0, &(EXTENDED | self.layout.code() << 1).to_le_bytes());
        put(&mut bytes, 4, &(self.kind.mode_bits() | self.permissions).to_le_bytes());
        put(&mut bytes, 8, &self.size.to_le_bytes());
        put(&mut bytes, 16, &self.layout.word().to_le_bytes());
        put(&mut bytes, 20, &self.serial.to_le_bytes());
        put(&mut bytes, 24, &self.owner.0.to_le_bytes());
        put(&mut bytes, 28, &self.owner.1.to_le_bytes());
        put(&mut bytes, 32, &seconds.to_le_bytes());
        put(&mut bytes, 40, &nanoseconds.to_le_bytes());
        put(&mut bytes, 44, &self.links.to_le_bytes());
        bytes
    }
}

/// Bits of the smallest chunk that holds `blocks` blocks (not 0), or of the largest there is.
pub(crate) fn chunk_bits(blocks: u64) -> u8 {
    let bits = blocks.next_power_of_two().trailing_zeros().min(CHUNK_BITS_MAX);
    u8::try_from(bits).expect("at most 31")
}

/// Index of one chunk: the device (0-based) and the block in it where it begins.
pub(crate) fn chunk_index(device: u16, block: u32) -> [u8; CHUNK_INDEX_BYTES] {
    let mut bytes = [0; CHUNK_INDEX_BYTES];
    // Device 0 of the format is the image itself.
    put(&mut bytes, 2, &(device + 1).to_le_bytes());
    put(&mut bytes, 4, &block.to_le_bytes());
    bytes
}

/// A directory entry without its name, which begins at `name_offset` of its block.
pub(crate) fn dirent(inode: u64, name_offset: u16, kind: Kind) -> [u8; DIRENT_BYTES] {
    let mut bytes = [0; DIRENT_BYTES];
    put(&mut bytes, 0, &inode.to_le_bytes());
    put(&mut bytes, 8, &name_offset.to_le_bytes());
    bytes[10] = kind as u8;
    bytes
}

/// What the superblock says of the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Superblock<'a> {
    pub inodes: u64,
    pub built_ms: i64,
    pub blocks: u32,
    pub uuid: [u8; 16],
    pub label: &'a str,
}

impl Superblock<'_> {
    /// The first [`HEADER_BYTES`] of the image, for data devices of so many blocks each (at most [`DEVICES_MAX`]).
    pub(crate) fn to_header(self, devices: &[u32]) -> Vec<u8> {
        let (seconds, nanoseconds) = split_time(self.built_ms);
        let device_count = u16::try_from(devices.len()).expect("the allocator gives at most DEVICES_MAX");
        let mut header = vec![0; usize::try_from(HEADER_BYTES).expect("some KiB")];
        let superblock = &mut header[SUPERBLOCK_OFFSET..];
        put(superblock, 0, &MAGIC.to_le_bytes());
        put(superblock, 8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        superblock[12] = BLOCK_BITS;
        put(superblock, 14, &u16::try_from(ROOT).expect("it fits, see ROOT").to_le_bytes());
        put(superblock, 16, &self.inodes.to_le_bytes());
        put(superblock, 24, &seconds.to_le_bytes());
        put(superblock, 32, &nanoseconds.to_le_bytes());
        put(superblock, 36, &self.blocks.to_le_bytes());
        put(superblock, UUID_OFFSET, &self.uuid);
        put(superblock, 64, self.label.as_bytes());
        put(superblock, 80, &(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE).to_le_bytes());
        put(superblock, 86, &device_count.to_le_bytes());
        put(superblock, 88, &u16::try_from(DEVICE_TABLE_SLOT).expect("it is 9").to_le_bytes());
        for (number, blocks) in devices.iter().enumerate() {
            let slot = (DEVICE_TABLE_SLOT + number) * DEVICE_SLOT_BYTES;
            put(&mut header, slot + 64, &blocks.to_le_bytes());
        }
        // Over the rest of the first block, with the checksum itself 0. The kernel does not invert the result.
        let checksum = !crc32c::crc32c(&header[SUPERBLOCK_OFFSET..BLOCK]);
        put(&mut header, SUPERBLOCK_OFFSET + 4, &checksum.to_le_bytes());
        header
    }
}

/// Seconds (as two's complement) and nanoseconds of a time in milliseconds.
fn split_time(time_ms: i64) -> (i64, u32) {
    let nanoseconds = u32::try_from(time_ms.rem_euclid(1000) * 1_000_000).expect("less than a second");
    (time_ms.div_euclid(1000), nanoseconds)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_the_smallest_that_holds_the_file() {
        let bits =
            [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (1 << 31, 31), ((1 << 31) + 1, 31), (u64::from(u32::MAX), 31)];
        for (blocks, expected) in bits {
            assert_eq!(chunk_bits(blocks), expected, "{blocks} blocks");
        }
    }

    #[test]
    fn a_time_before_1970_counts_its_nanoseconds_forward() {
        assert_eq!(split_time(1_500), (1, 500_000_000));
        assert_eq!(split_time(-1), (-1, 999_000_000));
        assert_eq!(split_time(-2_000), (-2, 0));
        assert_eq!(split_time(i64::MIN).0, i64::MIN.div_euclid(1000));
    }
}
