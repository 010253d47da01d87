//! Where files lie in the data devices: a pure function of their sizes in the order of the listing.

use penstock_types::{Error, ErrorKind, Result};

use crate::format::BLOCK_BYTES;

/// Blocks of one data device at most (16 TiB). A block's number has 32 bits, and the last one stands for a hole.
pub const DEVICE_BLOCKS: u64 = u32::MAX as u64;

/// Data devices of one image at most (together 4 PiB); so many slots are kept free at its beginning.
pub const DEVICES_MAX: u16 = 256;

/// Where a file's bytes begin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// Which data device, the first being 0: the order of the `device=` options of the mount.
    pub device: u16,
    /// Offset in that device in bytes, a multiple of [`BLOCK_BYTES`].
    pub offset: u64,
}

/// Places files in the data devices: one after another in the order they are given, each whole on one device, each
/// beginning at a block. Deterministic: whoever gives it the same sizes gets the same places.
#[derive(Clone, Copy, Debug)]
pub struct Allocator {
    device: u16,
    block: u64,
    device_blocks: u64,
}

impl Default for Allocator {
    fn default() -> Self {
        Self::with_device_blocks(DEVICE_BLOCKS)
    }
}

impl Allocator {
    /// An allocator whose devices have `device_blocks` blocks each, at most [`DEVICE_BLOCKS`].
    pub fn with_device_blocks(device_blocks: u64) -> Self {
        Self { device: 0, block: 0, device_blocks: device_blocks.min(DEVICE_BLOCKS) }
    }

    /// The place of the next file, which has `size` bytes. A file without bytes takes no room: its place is where the
    /// next one may begin.
    ///
    /// # Errors
    /// `InvalidInput` when the file is larger than a device or the devices are full; the allocator stays as it was.
    pub fn place(&mut self, size: u64) -> Result<Place> {
        let blocks = size.div_ceil(BLOCK_BYTES);
        if blocks > self.device_blocks {
            return Err(refused(size, "it is larger than a data device can be")
                .fact("device_bytes", self.device_blocks * BLOCK_BYTES));
        }
        let mut place = self.end();
        if self.block + blocks > self.device_blocks {
            if self.device + 1 >= DEVICES_MAX {
                return Err(refused(size, "the data devices are full").fact("devices", DEVICES_MAX));
            }
            place = Place { device: self.device + 1, offset: 0 };
        }
        self.device = place.device;
        self.block = place.offset / BLOCK_BYTES + blocks;
        Ok(place)
    }

    /// Where the next file would begin at the earliest; at the next device if it does not fit there.
    pub fn end(&self) -> Place {
        Place { device: self.device, offset: self.block * BLOCK_BYTES }
    }

    /// How many devices have something on them.
    pub fn devices(&self) -> u16 {
        // Only a file with bytes goes to a next device, so device 0 alone can be empty.
        if self.block == 0 { 0 } else { self.device + 1 }
    }
}

fn refused(size: u64, reason: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, "place a file in the image", reason)
        .advise("take a smaller part of the tree")
        .fact("size", size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 40;

    fn at(device: u16, offset: u64) -> Place {
        Place { device, offset }
    }

    #[test]
    fn files_lie_one_after_another_each_at_a_block() {
        let mut allocator = Allocator::default();
        assert_eq!((allocator.devices(), allocator.end()), (0, at(0, 0)));
        assert_eq!(allocator.place(0).unwrap(), at(0, 0));
        assert_eq!(allocator.devices(), 0);
        assert_eq!(allocator.place(1).unwrap(), at(0, 0));
        assert_eq!(allocator.place(4096).unwrap(), at(0, 4096));
        assert_eq!(allocator.place(4097).unwrap(), at(0, 8192));
        assert_eq!(allocator.place(0).unwrap(), at(0, 16384));
        assert_eq!((allocator.devices(), allocator.end()), (1, at(0, 16384)));
    }

    #[test]
    fn a_file_that_does_not_fit_begins_the_next_device_and_none_goes_back() {
        let mut allocator = Allocator::default();
        assert_eq!(allocator.place(9 * TIB).unwrap(), at(0, 0));
        assert_eq!(allocator.place(9 * TIB).unwrap(), at(1, 0));
        assert_eq!(allocator.place(1).unwrap(), at(1, 9 * TIB));
        assert_eq!(allocator.place(DEVICE_BLOCKS * BLOCK_BYTES).unwrap(), at(2, 0));
        assert_eq!(allocator.place(0).unwrap(), at(2, DEVICE_BLOCKS * BLOCK_BYTES));
        assert_eq!(allocator.place(1).unwrap(), at(3, 0));
        assert_eq!(allocator.devices(), 4);
    }

    #[test]
    fn what_does_not_fit_at_all_is_refused_and_changes_nothing() {
        let mut allocator = Allocator::default();
        allocator.place(5000).unwrap();
        for size in [DEVICE_BLOCKS * BLOCK_BYTES + 1, u64::MAX] {
            let error = allocator.place(size).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("larger than a data device"), "{error}");
        }
        assert_eq!(allocator.end(), at(0, 8192));

        let mut small = Allocator::with_device_blocks(1);
        for device in 0..DEVICES_MAX {
            assert_eq!(small.place(4096).unwrap(), at(device, 0));
        }
        let error = small.place(1).unwrap_err();
        assert!(error.to_string().contains("the data devices are full"), "{error}");
        assert_eq!(small.place(0).unwrap(), at(DEVICES_MAX - 1, 4096));
    }
}
