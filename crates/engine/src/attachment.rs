//! A source at a path of the tree, with what is known of its health.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use penstock_catalog::View;
use penstock_types::{
    AttachmentSpec, ByteRange, Capabilities, Clock, Error, ErrorKind, ObjectBody, ObjectId, ObjectKey, Origin,
    Priority, ReadRequest, Result, Source, TreePath,
};
use serde::{Deserialize, Serialize};

use crate::moved::Moved;

/// An attachment that is in the tree.
pub struct Attached {
    pub spec: AttachmentSpec,
    pub path: TreePath,
    /// What of the source's facts it may see: see [`penstock_source::credential_scope`].
    pub scope: Arc<str>,
    pub view: Arc<View>,
    pub source: Arc<dyn Source>,
    pub origins: Vec<Arc<dyn Origin>>,
    pub probe: Option<penstock_source::Probe>,
    pub health: Health,
}

/// What the last request said of a source.
pub struct Health {
    clock: Arc<dyn Clock>,
    failure: Mutex<Option<(String, i64)>>,
}

/// What `attachments` and `status` show of one attachment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachmentStatus {
    /// Its document.
    pub spec: AttachmentSpec,
    /// Service, endpoint, bucket or directory, account.
    pub source: String,
    /// What the source can do; its versions are weak once one was met that is.
    pub capabilities: Capabilities,
    /// Whether the source was asked for anything since it was attached or the node started: until then it only counts
    /// as healthy.
    pub asked: bool,
    /// Whether the last request that says something of the source succeeded.
    pub healthy: bool,
    /// Why not, where it is not.
    pub failure: Option<String>,
    /// When it failed, milliseconds since the Unix epoch.
    pub failed_ms: Option<i64>,
    /// Round trip of the probe, milliseconds; `None` before one was made.
    pub latency_ms: Option<f64>,
    /// How far this machine's clock is ahead of the source's, seconds, as its answers say.
    pub clock_skew_s: Option<f64>,
    /// Who we are to the source, as far as it can be said without a secret; known once it was asked.
    pub identity: Option<String>,
}

impl Health {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, failure: Mutex::default() }
    }

    /// Notes what an outcome says of the source; answers about one object (not found, stale) say it works.
    pub fn note<T>(&self, outcome: &Result<T>) {
        let failed = outcome.as_ref().err().filter(|error| {
            matches!(
                error.kind(),
                ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::PermissionDenied | ErrorKind::RateLimited
            )
        });
        let mut failure = self.failure.lock().expect("no panic while health is noted");
        if failure.is_some() || failed.is_some() {
            *failure = failed.map(|error| (error.to_string(), self.clock.wall_ms()));
        }
    }

    /// How long ago the source failed, where nothing has succeeded since.
    pub fn failed_ago(&self) -> Option<Duration> {
        let failure = self.failure.lock().expect("no panic while health is noted");
        let ago_ms = failure.as_ref().map(|(_, at_ms)| self.clock.wall_ms().saturating_sub(*at_ms));
        ago_ms.map(|ago_ms| Duration::from_millis(u64::try_from(ago_ms).unwrap_or(0)))
    }
}

impl Attached {
    #[allow(clippy::cast_precision_loss, reason = "a skew for people")]
    pub fn status(&self) -> AttachmentStatus {
        let (observed, capabilities) = (self.source.observed(), self.source.capabilities());
        let failure = self.health.failure.lock().expect("no panic while health is noted").clone();
        AttachmentStatus {
            spec: self.spec.clone(),
            source: self.source.id().to_string(),
            capabilities: Capabilities {
                weak_versions: capabilities.weak_versions || observed.weak_versions,
                ..capabilities
            },
            asked: observed.asked,
            healthy: failure.is_none(),
            failed_ms: failure.as_ref().map(|(_, at)| *at),
            failure: failure.map(|(text, _)| text),
            latency_ms: self.probe.as_ref().map(|probe| probe.latency_ms),
            clock_skew_s: observed.clock_skew_ms.map(|skew_ms| skew_ms as f64 / 1000.0),
            identity: observed.identity,
        }
    }

    /// The prefix as a key.
    pub fn prefix(spec: &AttachmentSpec) -> ObjectKey {
        ObjectKey::from(spec.prefix.as_str())
    }

    /// How messages name an object of this attachment.
    pub fn describe(&self, key: &ObjectKey) -> String {
        self.source.describe(key)
    }
}

/// The source as the origin of last resort.
pub struct SourceOrigin {
    pub source: Arc<dyn Source>,
    /// Where the bytes of versions are that a rename took away from their keys.
    pub moved: Arc<Moved>,
}

impl SourceOrigin {
    async fn read_at(&self, object: &ObjectId, range: ByteRange, priority: Priority) -> Result<ObjectBody> {
        let version = Some(object.version.clone());
        let body = self.source.read(ReadRequest { key: object.key.clone(), range, version, priority }).await?;
        if body.attributes.version == object.version {
            return Ok(body);
        }
        // A source that cannot read conditionally: the bytes are another version's and must not be used.
        Err(Error::new(
            ErrorKind::StaleVersion,
            format!("read {}", self.source.describe(&object.key)),
            "the object changed since it was opened",
        )
        .advise("open it again")
        .fact("pinned", &object.version)
        .fact("found", &body.attributes.version))
    }
}

#[async_trait]
impl Origin for SourceOrigin {
    fn name(&self) -> &'static str {
        "source"
    }

    async fn read(&self, object: &ObjectId, range: ByteRange, priority: Priority) -> Result<ObjectBody> {
        let mut object = object.clone();
        loop {
            let read = self.read_at(&object, range, priority).await;
            let is_gone = |error: &Error| matches!(error.kind(), ErrorKind::StaleVersion | ErrorKind::NotFound);
            match (read, self.moved.to(&object)) {
                (Err(error), Some(moved)) if is_gone(&error) => object = moved,
                (read, _) => return read,
            }
        }
    }
}
