//! From a spec to a source with all its decorators.

use std::sync::Arc;
use std::time::Duration;

use penstock_types::{Clock, Metrics, Result, Source, SourceConfig, SourceSpec};

use crate::around::Decorated;
use crate::bandwidth::Bandwidth;
use crate::environment::Environment;
use crate::file::Directory;
use crate::limit::Limit;
use crate::memory::Memory;
use crate::observe::Observe;
use crate::recheck::Recheck;
use crate::retry::Retry;
use crate::s3::S3;
use crate::stall::Stall;

/// A source that falls silent leaves time for so many tries.
const TRIES_PER_DEADLINE: u32 = 3;

/// What a source needs besides its spec.
#[derive(Clone)]
pub struct SourceParts {
    /// How every source is talked to.
    pub config: SourceConfig,
    /// A call that is not done by then fails.
    pub deadline: Duration,
    /// Where it counts.
    pub metrics: Metrics,
    /// The node's clock.
    pub clock: Arc<dyn Clock>,
    /// Seed of the jitter.
    pub seed: u64,
}

/// Opens a source. Sends nothing: see [`crate::probe`].
///
/// # Errors
/// `InvalidInput` where the spec cannot be right.
pub fn open(spec: &SourceSpec, parts: &SourceParts) -> Result<Arc<dyn Source>> {
    open_in(spec, parts, &Environment::of_process())
}

/// Opens a source in an environment of its own.
///
/// # Errors
/// As [`open`].
pub fn open_in(spec: &SourceSpec, parts: &SourceParts, environment: &Environment) -> Result<Arc<dyn Source>> {
    let raw: Arc<dyn Source> = match spec {
        SourceSpec::S3 { .. } => Arc::new(S3::new(spec, environment, parts)?),
        SourceSpec::Memory { name } => Arc::new(Memory::open(name, parts.clock.clone())),
        SourceSpec::File { directory } => Arc::new(Directory::open(directory)?),
    };
    Ok(decorate(raw, parts))
}

/// The decorators of every source, from the inside: count each request; give a silent one up; look again behind
/// weak versions; keep to what the source bears; retry within the deadline; keep to the bandwidth. The last is outside of the deadline, because
/// waiting for our own limit is no fault of the source.
pub fn decorate(raw: Arc<dyn Source>, parts: &SourceParts) -> Arc<dyn Source> {
    let SourceParts { config, deadline, metrics, seed, .. } = parts;
    let observed = Decorated::wrap(raw, Observe::new(metrics.clone()));
    let patient = Decorated::wrap(
        observed,
        Stall { silence: *deadline / TRIES_PER_DEADLINE, work: *deadline * 2 / TRIES_PER_DEADLINE },
    );
    let checked = Decorated::wrap(patient, Recheck);
    let limited = Decorated::wrap(checked, Limit::new(config.max_requests));
    let retried = Decorated::wrap(limited, Retry::new(*deadline, config.max_attempts, metrics.clone(), *seed));
    match (config.max_bytes_per_s, config.max_upload_bytes_per_s) {
        (None, None) => retried,
        (read, write) => Decorated::wrap(retried, Bandwidth::new(read, write)),
    }
}

/// Stable name of what may be seen through a spec: source and credentials reference, no secret. Catalog facts are
/// kept per scope, so that one attachment never sees through another's entitlement.
pub fn credential_scope(spec: &SourceSpec) -> String {
    match spec {
        SourceSpec::S3 { credentials, .. } => format!("{}#{credentials}", crate::s3::identity(spec)),
        SourceSpec::File { directory } => format!("file:{}", directory.display()),
        SourceSpec::Memory { name } => format!("memory:{name}"),
    }
}
