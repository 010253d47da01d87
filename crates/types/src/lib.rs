//! The words every crate shares: ids, ranges, attributes, errors, configuration, clock, metrics,
//! and the traits through which sibling crates meet. Never does I/O, but for `faults`, which what is released has not.

mod attributes;
mod clock;
mod config;
mod disk;
mod error;
pub mod faults;
mod ids;
mod kernel;
mod metrics;
mod origin;
mod overlay;
mod path;
mod posix;
mod range;
mod set;
mod source;

pub use attributes::{ObjectAttributes, ObjectStat};
pub use clock::{Clock, SystemClock};
pub use config::{
    AttachmentSpec, CacheConfig, DeadlineConfig, Durability, Freshness, NodeConfig, SourceConfig, SourceSpec,
    StageConfig, TierConfig, WriteSpec,
};
pub use disk::{Disk, FileFacts, OpenMode, Space};
pub use error::{Error, ErrorKind, Result};
pub use ids::{AttachmentId, ObjectId, ObjectKey, SourceId, Version};
pub use kernel::{
    Answer, AttributeChange, CreatedNode, Expired, KernelExpiry, KernelTree, ListedNode, Looked, NodeAttributes,
    NodeFile, NodeId, NodePage, NodeWriter, OpenedNode, Replace, TreeSpace,
};
pub use metrics::Metrics;
pub use origin::Origin;
pub use overlay::{Laid, Overlay};
pub use path::TreePath;
pub use posix::Posix;
pub use range::{ByteRange, PAGE_SIZE, STRIPE_SIZE};
pub use set::{
    MANIFEST_BYTES_MAX, Manifest, SET_DATA_MARK, SET_MARK, SetFile, data_prefix, hidden_component, is_set_name,
    is_set_path, manifest_key, set_of_data, set_of_manifest,
};
pub use source::{
    Capabilities, CompletedPart, CopiedRange, CopyRequest, Description, ListPage, ListRequest, ListedObject,
    ObjectBody, Observed, PartInfo, Precondition, Priority, PutRequest, ReadRequest, Source, UploadId, UploadInfo,
};
