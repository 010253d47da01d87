//! The only place where the organs meet: resolve a path, pin a version, bring its bytes, lend them.
//!
//! Owns attachments, open files, transfers and read-ahead. Never speaks to a kernel, a socket or a person: doors
//! do that, and they decide nothing.
//!
//! ```text
//! path ─ tree ─▶ catalog (which version?) ─▶ cache (which pages?) ─▶ transfer ─▶ origins ─▶ source
//!                   ▲ overlay
//! write ─ tree ─▶ stage (journal, acknowledged) ─▶ upload ─▶ source, and the staged file into the cache
//! ```

mod ahead;
mod announce;
mod attachment;
mod batch;
mod budget;
mod care;
mod courtesy;
mod engine;
mod entry;
mod kernel;
mod live;
mod moved;
mod open;
mod pattern;
mod pins;
mod said;
mod scratch;
mod sets;
mod snapshot;
mod transfer;
mod tree;
mod walks;
mod write;

pub use attachment::AttachmentStatus;
pub use batch::BatchItem;
pub use care::{Prefetched, Pruned, Verified, Why};
pub use engine::{Engine, EngineParts, EngineStatus, Sample};
pub use entry::{Entry, EntryKind, EntryPage};
pub use open::{OpenFile, OpenOptions, Ready};
pub use pattern::ReadHint;
pub use penstock_cache::{CacheEntry, CacheUsage, RealDisk};
pub use penstock_catalog::{Change, Snapshot, SnapshotFacts};
pub use penstock_stage::{Patch, StageStatus};
pub use pins::{Kept, WrittenCount};
pub use sets::{SetFiles, SetRef, SetState, SetStatus};
pub use snapshot::{Frozen, ImageOptions, attachment_of};
pub use write::{Conflict, ConflictPage, ConflictQuery, InSource, Keep, WriteOptions, Writing};
