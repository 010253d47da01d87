//! The door for the kernel: speaks FUSE for trees that are mounted, one session per kernel mount.
//!
//! Owns the conversation with the kernel: its handles, the ids by which it reads lent files, the requests that wait.
//! Only translates: what a name means, which version is open and where bytes come from is the tree's to say. Never
//! mounts, and never touches a path below a mount of its own.
//!
//! ```text
//! kernel ── /dev/fuse ──▶ door (a few threads) ──▶ KernelTree ── Answer::Now ──▶ replied by the same thread
//!    │                                                  └──────── Answer::Later ─▶ parked, replied by the runtime
//!    └── reads of lent files: no request at all
//! ```

mod connection;
mod copying;
mod directory;
mod door;
mod expiry;
mod failure;
mod files;
mod handles;
mod handshake;
mod lent;
mod listing;
mod mount;
mod names;
mod service;
mod under_way;
mod unopened;
mod writing;

pub use connection::abort as end_connection;
pub use lent::IdleMax;
pub use mount::{Mount, MountFacts};
pub use service::{MountOptions, Surroundings};
