//! The client of `data.sock`: connections, the session they share, and what survives a fork.

mod connection;
pub mod fork;
mod pool;
mod session;

pub use connection::Exchange;
pub use pool::{Pool, Told, unexpected};
pub use session::{ArenaLease, Session};
