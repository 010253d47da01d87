//! The simulated remote: an S3 server over a directory, with delay and rate. For the demo, benchmarks and tests.
//! Owns its directory and its threads; knows nothing of the engine, and never misbehaves: faults are injected at
//! the client's side of the wire.

mod access;
mod body;
mod conditions;
mod counters;
mod data;
mod index;
mod journal;
mod listing;
mod multipart;
mod object;
mod pace;
mod receive;
mod remote;
mod server;
mod service;
mod store;

pub use counters::Counters;
pub use remote::{Remote, RemoteConfig};
