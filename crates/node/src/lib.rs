//! A running node: the engine assembled, started, drained and stopped, the local socket that clients attach to, and
//! the kernel mounts that are served.
//!
//! Owns `data.sock`, its protocol and everything lent through it, the mounts, the metrics port and the log. Never
//! decides what to fetch or keep: the engine does. Never mounts, and never touches a path below a mount of its own.
//!
//! ```text
//! client ─ data.sock ─▶ listener ─▶ connection (a thread each) ─▶ answer ─▶ engine
//!                                        │                          │
//!                                        └────── session ◀──────────┘   leases, arenas, the release ring
//! kernel ─ /dev/fuse ─▶ mount ─▶ a tree of the engine
//! ```

mod allocator;
mod answer;
mod arena;
mod batch;
mod connection;
mod links;
mod listener;
mod logging;
pub mod mapping;
mod metrics_http;
mod mounts;
mod node;
pub mod protocol;
pub mod ring;
mod session;
mod sets;
mod snapshots;
mod write;

pub use logging::start_logging;
pub use mounts::{MountSpec, MountStatus};
pub use node::{Node, NodeStatus};
pub use penstock_engine::SnapshotFacts;
pub use penstock_engine::{Entry, EntryKind, EntryPage, Keep, Patch, ReadHint, SetRef};
pub use penstock_fuse::end_connection;
pub use snapshots::{
    SnapshotChanges, SnapshotFile, SnapshotSummary, snapshot_changes, snapshot_files, snapshot_summary,
};
