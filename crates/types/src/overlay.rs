//! What was written here and what a source says of its names meet through this: the stage tells, the catalog lays it
//! over its listings.

use bytes::Bytes;

use crate::ObjectAttributes;

/// The newest change of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Laid {
    /// The object as it is now; `None` when it was removed.
    pub attributes: Option<ObjectAttributes>,
    /// When the source had the change, microseconds on the catalog's time line: what was asked of it later counts
    /// again. `None` while it has not: nothing that it says of the key counts.
    pub settled: Option<i64>,
}

impl Laid {
    /// Whether what the source was asked at `sent` is out of date.
    pub fn hides(&self, sent: i64) -> bool {
        self.settled.is_none_or(|settled| sent <= settled)
    }
}

/// Changes of the keys of one scope (a source, as seen with one credential reference) that the source has not got, or
/// got so lately that listings may not show them.
pub trait Overlay: Send + Sync + 'static {
    /// Whether there is no change at all. One atomic load.
    fn is_empty(&self) -> bool;

    /// The change of exactly this full key.
    fn at(&self, key: &[u8]) -> Option<Laid>;

    /// The first change of a key that is not less than `from`; with `inclusive` false, that is greater.
    fn next(&self, from: &[u8], inclusive: bool) -> Option<(Bytes, Laid)>;
}
