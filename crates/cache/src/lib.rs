//! The cache: tiers of extent files, one sparse file per object version, with the map and checksums of their pages,
//! a byte budget and an index that outlives the process. It knows nothing of sources or trees, and never returns a
//! byte that it did not take.

mod accounts;
mod adopt;
mod cache;
mod care;
mod descriptors;
mod disk;
mod eviction;
mod extent;
mod extent_file;
mod flush;
mod image;
mod index;
mod live;
mod open;
mod page_map;
mod pages;
mod policy;
mod scrub;
mod shrink;
mod tier;
mod usage;

pub use cache::{Cache, CacheParts};
pub use disk::RealDisk;
pub use extent::{Extent, Lease};
pub use usage::{CacheEntry, CacheUsage, PinRule, ScrubReport, TierUsage};
