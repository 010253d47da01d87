//! Object stores behind the one trait of `penstock-types`: S3 and what speaks it, a directory, memory; and the
//! decorators of that trait: retry, limit, bandwidth, observation. Never caches, never decides what to read.

mod around;
mod bandwidth;
mod check;
mod conditions;
mod environment;
mod file;
mod limit;
mod memory;
mod observe;
mod open;
mod pace;
mod probe;
mod recheck;
mod resume;
mod retry;
mod s3;
mod stall;

pub use conditions::try_conditions;
pub use environment::Environment;
pub use open::{SourceParts, credential_scope, decorate, open, open_in};
pub use probe::{Probe, probe};
pub use retry::OPERATION_METADATA;
pub use s3::is_weak;
