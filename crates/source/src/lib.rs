//! Object stores behind the one trait of `penstock-types`: S3 and what speaks it, a directory, memory; and the
//! decorators of that trait: retry, limit, bandwidth, observation. Never caches, never decides what to read.

mod check;
mod environment;
mod memory;
mod open;
mod probe;
mod s3;

pub use environment::Environment;
pub use open::{SourceParts, credential_scope, open, open_in};
pub use probe::{Probe, probe};
