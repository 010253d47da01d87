//! What the cache tells of itself.

use std::path::PathBuf;
use std::sync::Arc;

use penstock_types::{ObjectId, SourceId, Version};
use serde::Serialize;

/// Which objects are kept whatever happens: `true` pins. Called without locks held, from any thread; must be quick.
pub type PinRule = Arc<dyn Fn(&ObjectId) -> bool + Send + Sync>;

/// State of the whole cache.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CacheUsage {
    /// One entry per tier, fastest first.
    pub tiers: Vec<TierUsage>,
    /// Extents that are known.
    pub extents: u64,
    /// Whether the index takes changes; when not, what is filled now is forgotten by a restart.
    pub index_healthy: bool,
    /// Why the index is not healthy.
    pub index_reason: Option<String>,
}

/// State of one tier.
#[derive(Clone, Debug, Serialize)]
pub struct TierUsage {
    /// Its directory.
    pub directory: PathBuf,
    /// Most bytes it may hold.
    pub size_bytes: u64,
    /// Bytes that are held: pages that are present or being written, the last page of an object rounded up to
    /// 4 KiB, and what is unlinked but still lent.
    pub used_bytes: u64,
    /// Of these, bytes that are unlinked but still lent.
    pub lent_unlinked_bytes: u64,
    /// Free bytes of its file system, at most a second old.
    pub free_bytes: u64,
    /// Bytes of its file system that the cache leaves free.
    pub floor_bytes: u64,
    /// Whether new data is written to it.
    pub healthy: bool,
    /// Why it is not healthy.
    pub reason: Option<String>,
}

/// One extent, for listings.
#[derive(Clone, Debug, Serialize)]
pub struct CacheEntry {
    /// Number of the extent: the cursor of the listing.
    pub number: u64,
    /// Which object version it holds.
    #[serde(skip)]
    pub id: ObjectId,
    /// Source of the object.
    pub source: SourceId,
    /// Key of the object, bytes that are not printable escaped.
    pub key: String,
    /// Version of the object.
    pub version: Version,
    /// Size of the object, bytes.
    pub size: u64,
    /// Bytes of it that are present.
    pub present_bytes: u64,
    /// Whether all are.
    pub complete: bool,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Leases that are held on it.
    pub leases: u32,
    /// Directory of its tier.
    pub tier: PathBuf,
    /// When it was last used, milliseconds since the Unix epoch.
    pub last_use_ms: i64,
}

/// What one step of the scrub did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ScrubReport {
    /// Pages that were read and checked.
    pub pages: u64,
    /// Pages that did not match and were dropped.
    pub bad_pages: u64,
    /// Files without an extent that were removed.
    pub orphans_removed: u64,
    /// Whether this step finished a pass over everything.
    pub pass_finished: bool,
}
