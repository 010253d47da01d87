//! A running node: the engine assembled, started, drained and stopped, and the local socket that clients attach to.
//!
//! Owns `data.sock`, its protocol and everything lent through it, the metrics port and the log. Never decides what
//! to fetch or keep: the engine does.
//!
//! ```text
//! client ─ data.sock ─▶ listener ─▶ connection (a thread each) ─▶ answer ─▶ engine
//!                                        │                          │
//!                                        └────── session ◀──────────┘   leases, arenas, the release ring
//! ```

mod answer;
mod arena;
mod batch;
mod connection;
mod links;
mod listener;
mod logging;
pub mod mapping;
mod metrics_http;
mod node;
pub mod protocol;
pub mod ring;
mod session;

pub use logging::start_logging;
pub use node::Node;
pub use penstock_engine::{Entry, EntryKind, EntryPage, ReadHint};
