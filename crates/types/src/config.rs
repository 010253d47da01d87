//! Configuration as the core gets it: once, complete, frozen. Defaults and checks live in Python.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::AttachmentId;

/// Everything a node needs to start. Arrives as JSON from Python.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Directory of catalog and cache index.
    pub state_directory: PathBuf,
    /// Path of `data.sock`.
    pub data_socket: PathBuf,
    /// The cache.
    pub cache: CacheConfig,
    /// Where written files live until the source has them.
    pub stage: StageConfig,
    /// Memory that fills and answers may hold together, bytes.
    pub memory_budget_bytes: u64,
    /// How long things may take.
    pub deadlines: DeadlineConfig,
    /// How sources are talked to.
    pub source: SourceConfig,
    /// Loopback port of Prometheus text; `None` serves none, 0 takes a free one.
    pub metrics_port: Option<u16>,
    /// Clients that may be connected at once.
    pub max_connections: usize,
}

/// The cache of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Where extents live, fastest first; at least one.
    pub tiers: Vec<TierConfig>,
    /// Share of the file system, 0 to 1, that the cache leaves free.
    pub free_space_floor: f64,
    /// Every page is checked once in so many days; 0 switches the scrub off.
    pub scrub_interval_days: f64,
    /// Take a directory on a network file system all the same.
    pub allow_network_filesystem: bool,
}

/// A cache directory with a size.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierConfig {
    /// The directory; made when it is missing.
    pub directory: PathBuf,
    /// Most bytes it may hold.
    pub size_bytes: u64,
}

/// The stage of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// The directory of staged files and journal; made when it is missing.
    pub directory: PathBuf,
    /// Most bytes that may wait for a source; writers wait before it is full.
    pub size_bytes: u64,
    /// Files that were never closed are kept so many days after a crash.
    pub recovery_days: f64,
    /// The newest of them are kept, up to so many bytes of the disk.
    pub recovery_bytes: u64,
}

/// How long things may take, seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadlineConfig {
    /// A request that somebody waits for.
    pub foreground_s: f64,
    /// The probe of a new attachment.
    pub attach_s: f64,
}

impl DeadlineConfig {
    /// The foreground deadline.
    pub fn foreground(&self) -> Duration {
        Duration::from_secs_f64(self.foreground_s)
    }

    /// The deadline of an attach.
    pub fn attach(&self) -> Duration {
        Duration::from_secs_f64(self.attach_s)
    }
}

/// How every source is talked to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Requests that may be under way at once, per source.
    pub max_requests: usize,
    /// Tries per request, the first one included.
    pub max_attempts: u32,
    /// Most bytes per second read from one source; `None` is no limit.
    pub max_bytes_per_s: Option<u64>,
    /// Most bytes per second written to one source; `None` is no limit.
    pub max_upload_bytes_per_s: Option<u64>,
}

/// How long catalog facts are believed.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    /// So many seconds; 0 asks the source at every open.
    Seconds(f64),
    /// For ever: the source never changes an object.
    Immutable,
}

/// A source, or a prefix of it, at a path of the tree. Arrives as JSON from Python.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachmentSpec {
    /// Stable id of the document.
    pub id: AttachmentId,
    /// Where in the tree.
    pub path: String,
    /// What.
    pub source: SourceSpec,
    /// Keys below this prefix are what the path shows; empty or ending in `/`.
    pub prefix: String,
    /// How long facts are believed.
    pub freshness: Freshness,
    /// How it may be written; `None` for a read-only one.
    pub write: Option<WriteSpec>,
    /// Listings show what was said of every file: each version that is not known is asked for.
    #[serde(default)]
    pub posix: bool,
}

/// How an attachment may be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteSpec {
    /// What a successful close means where the call does not say.
    pub durability: Durability,
    /// Nobody else writes there: take a source that cannot replace conditionally.
    pub single_writer: bool,
}

/// What a successful close promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Synced on this node: survives a crash of the process and of the machine, not the loss of its disk.
    Local,
    /// The source has it.
    Source,
}

/// How to reach a source. Credentials are a reference, never a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceSpec {
    /// S3 and what speaks it.
    S3 {
        /// Bucket.
        bucket: String,
        /// `http(s)://host[:port]`; `None` is AWS by region.
        endpoint: Option<String>,
        /// Region; `None` asks the environment and profile, then `us-east-1`.
        region: Option<String>,
        /// `true` puts the bucket in the host name; `None` decides by endpoint (AWS yes, others no).
        virtual_host: Option<bool>,
        /// `chain`, `env`, `anonymous`, `profile:NAME` or `file:PATH`.
        credentials: String,
    },
    /// A directory of this machine.
    File {
        /// Absolute path of the directory.
        directory: PathBuf,
    },
    /// Objects in the node's memory, by name; gone with the node.
    Memory {
        /// Attachments of one name share one store.
        name: String,
    },
}
