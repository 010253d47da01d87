//! How a file is cut into the parts of a multipart upload, and one part of it in memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use penstock_types::{ByteRange, Error, ErrorKind, PAGE_SIZE, Result};

use crate::budget::MemoryHold;
use crate::engine::Engine;
use crate::transfer::StagedFile;

/// Size of a part, where that is not too many of them.
pub(super) const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Size of a part that a source copies itself: few requests, and each is done well within a deadline.
pub(super) const COPY_PART_BYTES: u64 = 128 * 1024 * 1024;
/// Parts that an upload may have.
pub(super) const PARTS_MAX: u64 = 10_000;
/// How many parts of which size a file has that is sent before its size is known: all together more than 5 TiB, and as
/// many of one size as the largest files leave room for, since some stores take no others.
const GROWING: [(u64, u64); 3] = [(2500, PART_BYTES), (1500, 8 * PART_BYTES), (6000, 108 * PART_BYTES)];

/// How a file is cut into parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    /// Into parts of this size, but for the last one.
    Even(u64),
    /// Into parts that depend on nothing but their number.
    Growing,
}

impl Shape {
    /// The shape for a file whose size is known: large ones have larger parts, whole pages, so that they are not too
    /// many.
    pub(super) fn of(size: u64) -> Self {
        Self::Even(size.div_ceil(PARTS_MAX).next_multiple_of(PAGE_SIZE).max(PART_BYTES))
    }

    /// The shape for a copy inside a source, which takes no memory here.
    pub(super) fn of_copy(size: u64) -> Self {
        Self::Even(size.div_ceil(PARTS_MAX).next_multiple_of(PAGE_SIZE).max(COPY_PART_BYTES))
    }

    /// The part number `index` (from 0) of a file that goes to `end`: with `is_whole` the last one may be shorter,
    /// otherwise it is `None`.
    pub(super) fn part(self, index: u64, end: u64, is_whole: bool) -> Option<ByteRange> {
        let (start, length) = self.place(index)?;
        let stop = if is_whole { end.min(start + length) } else { start + length };
        (start < stop && stop <= end).then(|| ByteRange::new(start, stop))
    }

    /// All parts of a file of this size, in order.
    pub(super) fn parts(self, size: u64) -> impl Iterator<Item = (u32, ByteRange)> {
        (0..PARTS_MAX).map_while(move |index| Some((Self::number(index), self.part(index, size, true)?)))
    }

    /// The number of a part in an upload.
    pub(super) fn number(index: u64) -> u32 {
        u32::try_from(index + 1).expect("an upload has at most 10,000 parts")
    }

    fn place(self, index: u64) -> Option<(u64, u64)> {
        match self {
            Self::Even(length) => Some((index * length, length)),
            Self::Growing => {
                let (mut start, mut left) = (0, index);
                for (count, length) in GROWING {
                    if left < count {
                        return Some((start + left * length, length));
                    }
                    (start, left) = (start + count * length, left - count);
                }
                None
            }
        }
    }
}

/// Bytes of a staged file that are sent.
pub(super) struct Part {
    pub(super) bytes: Bytes,
    /// CRC32C of each page.
    pub(super) sums: Vec<u32>,
}

impl Part {
    /// CRC32C of all of it.
    pub(super) fn sum(&self) -> u32 {
        let pages = self.bytes.chunks(PAGE_SIZE_IN_MEMORY).zip(&self.sums);
        pages.fold(0, |sum, (page, page_sum)| crc32c::crc32c_combine(sum, *page_sum, page.len()))
    }
}

/// A page, as a length in memory.
#[allow(clippy::cast_possible_truncation, reason = "64 KiB")]
const PAGE_SIZE_IN_MEMORY: usize = PAGE_SIZE as usize;

/// Bytes that are accounted for as long as somebody has them.
pub(super) struct Held {
    bytes: Vec<u8>,
    _held: MemoryHold,
}

impl Held {
    pub(super) fn new(bytes: Vec<u8>, held: MemoryHold) -> Self {
        Self { bytes, _held: held }
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Engine {
    /// Bytes of a staged file with the checksums of their pages; waits for memory as long as other parts have it.
    pub(super) async fn part(&self, file: &Arc<StagedFile>, range: ByteRange) -> Result<Part> {
        let held = self.carrier.uploads.hold(range.len(), Duration::MAX).await?;
        self.read_part(file, range, held).await
    }

    /// As [`Engine::part`], with memory that was taken already.
    pub(super) async fn read_part(&self, file: &Arc<StagedFile>, range: ByteRange, held: MemoryHold) -> Result<Part> {
        let file = Arc::clone(file);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; usize::try_from(range.len()).expect("a part fits memory")];
            file.read(range, &mut bytes)?;
            let sums = bytes.chunks(PAGE_SIZE_IN_MEMORY).map(crc32c::crc32c).collect();
            Ok(Part { bytes: Bytes::from_owner(Held::new(bytes, held)), sums })
        });
        read.await.map_err(|error| Error::new(ErrorKind::Internal, "read a staged file", error.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LARGEST: u64 = 5 << 40;

    proptest! {
        #[test]
        fn parts_are_whole_pages_and_at_most_ten_thousand(size in 1u64..LARGEST) {
            let Shape::Even(bytes) = Shape::of(size) else { panic!("its size is known") };
            prop_assert!(bytes.is_multiple_of(PAGE_SIZE) && bytes >= PART_BYTES);
            prop_assert!(size.div_ceil(bytes) <= PARTS_MAX);
        }

        #[test]
        fn parts_follow_each_other_to_the_end_whether_the_size_is_known_or_not(size in 1u64..=LARGEST) {
            for shape in [Shape::of(size), Shape::Growing] {
                let mut at = 0;
                for (_, range) in shape.parts(size) {
                    prop_assert_eq!(range.start, at);
                    prop_assert!(range.end == size || range.end.is_multiple_of(PAGE_SIZE));
                    at = range.end;
                }
                prop_assert_eq!(at, size);
            }
        }
    }

    #[test]
    fn a_part_is_sent_early_only_when_all_of_it_is_there() {
        assert_eq!(Shape::Growing.part(0, PART_BYTES - 1, false), None);
        assert_eq!(Shape::Growing.part(0, PART_BYTES - 1, true), Some(ByteRange::new(0, PART_BYTES - 1)));
        assert_eq!(Shape::Growing.part(1, 2 * PART_BYTES, false), Some(ByteRange::new(PART_BYTES, 2 * PART_BYTES)));
        assert_eq!(Shape::Growing.part(1, PART_BYTES, true), None);
    }

    #[test]
    fn the_checksum_of_a_part_is_that_of_its_pages_together() {
        let bytes: Vec<u8> = (0..200_000u32).map(|at| (at % 251) as u8).collect();
        let sums = bytes.chunks(PAGE_SIZE_IN_MEMORY).map(crc32c::crc32c).collect();
        let part = Part { bytes: bytes.clone().into(), sums };
        assert_eq!(part.sum(), crc32c::crc32c(&bytes));
    }
}
