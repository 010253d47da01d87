//! What crosses `data.sock`: frames of a length, a protocol version and a postcard body; descriptors beside them.
//!
//! One request is under way per connection, and its answer comes before the next one's. Nothing here trusts the
//! other side: every decoder survives arbitrary bytes.

mod frame;
mod message;
mod octets;
mod socket;

pub use frame::{Frame, FrameError, HEADER_BYTES, decode, encode, split};
pub use message::{ArenaGrant, ArenaReturn, Link, Opened, Ready, Reply, Request, SessionKey, Slot, Welcome};
pub use socket::{FrameReader, FrameWriter, Received};

/// Version of everything in this module. A node and a client of different versions refuse each other.
pub const PROTOCOL_VERSION: u8 = 7;
/// Largest body of a request, bytes: a batch of [`BATCH_PATHS_MAX`] paths of 1 KiB each.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest body of a reply, bytes.
pub const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most paths or ranges in one request; callers cut longer lists.
pub const BATCH_PATHS_MAX: usize = 4096;
/// Largest content that goes along with its commit, bytes; a larger one is written to a draft.
pub const SMALL_WRITE_BYTES_MAX: usize = 256 * 1024;
/// Most entries in one page of a listing.
pub const PAGE_ENTRIES_MAX: usize = 16 * 1024;
/// Most conflicts in one page: each may be a request to its source.
pub const PAGE_CONFLICTS_MAX: usize = 256;
/// A client hears from a busy node at least this often, seconds; so silence three times as long is a dead node.
pub const KEEP_ALIVE_S: u64 = 10;
