//! What was written here and what a source says of its names meet through this: the stage tells, the catalog lays it
//! over its listings.

use bytes::Bytes;

use crate::{ObjectAttributes, ObjectKey, Result, Version};

/// The newest change of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Laid {
    /// The object as it is now; `None` when it was removed.
    pub attributes: Option<ObjectAttributes>,
    /// When the source had the change, microseconds on the catalog's time line: what was asked of it later counts
    /// again. `None` while it has not: nothing that it says of the key counts.
    pub settled: Option<i64>,
    /// The key that has the bytes, where it is another one.
    pub at: Option<ObjectKey>,
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

    /// A listing, or what is laid over it, has the manifest of a set: `sent` is when it was asked for.
    fn met_manifest(&self, key: &[u8], attributes: &ObjectAttributes, sent: i64) {
        let _ = (key, attributes, sent);
    }

    /// The content of a small object that the source has not got; `None` where it has.
    ///
    /// # Errors
    /// When it cannot be read.
    fn staged(&self, key: &[u8], version: &Version) -> Option<Result<Bytes>> {
        let _ = (key, version);
        None
    }
}
