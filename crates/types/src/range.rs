//! Half-open byte ranges and the two sizes everything is counted in.

use serde::{Deserialize, Serialize};

/// Unit of presence in the cache, bytes.
pub const PAGE_SIZE: u64 = 64 * 1024;
/// Unit of placement on nodes and of persisted page maps, bytes.
pub const STRIPE_SIZE: u64 = 16 * 1024 * 1024;

/// Bytes `start..end` of an object; empty where `start == end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte; never below `start`.
    pub end: u64,
}

impl ByteRange {
    /// `start..end`. Panics when `end < start`: ranges from outside are checked before they get here.
    pub fn new(start: u64, end: u64) -> Self {
        assert!(start <= end, "range ends before it starts: {start}..{end}");
        Self { start, end }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The smallest range of whole `unit`s around it, cut off at `size`. `unit` is a power of two.
    pub fn rounded_out(&self, unit: u64, size: u64) -> Self {
        if self.is_empty() {
            return *self;
        }
        let start = self.start / unit * unit;
        Self {
            start: start.min(size),
            end: self.end.div_ceil(unit).saturating_mul(unit).min(size).max(start.min(size)),
        }
    }

    /// What both ranges hold; empty (at the later start) where they do not meet.
    pub fn intersect(&self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }

    /// Whether every byte of `other` is in this range.
    pub fn contains(&self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// Indices of the pages it touches.
    pub fn pages(&self) -> std::ops::Range<u64> {
        if self.is_empty() {
            return 0..0;
        }
        self.start / PAGE_SIZE..self.end.div_ceil(PAGE_SIZE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounding_out_covers_the_range_and_never_passes_the_end(start in 0u64..1 << 40, len in 0u64..1 << 30, slack in 0u64..1 << 20) {
            let range = ByteRange::new(start, start + len);
            let size = range.end + slack;
            let rounded = range.rounded_out(PAGE_SIZE, size);
            prop_assert!(rounded.contains(range));
            prop_assert!(rounded.end <= size);
            prop_assert!(rounded.start.is_multiple_of(PAGE_SIZE));
        }

        #[test]
        fn an_intersection_is_inside_both(a in 0u64..1000, b in 0u64..1000, c in 0u64..1000, d in 0u64..1000) {
            let (x, y) = (ByteRange::new(a.min(b), a.max(b)), ByteRange::new(c.min(d), c.max(d)));
            let both = x.intersect(y);
            prop_assert!(x.contains(both) && y.contains(both));
            let expected = (x.end.min(y.end)).saturating_sub(x.start.max(y.start));
            prop_assert_eq!(both.len(), expected);
        }
    }
}
