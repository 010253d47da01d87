//! The one trait of everything that holds objects, and the requests it takes.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{ByteRange, Error, ObjectAttributes, ObjectKey, ObjectStat, Result, SourceId, Version};

/// What a source can do. The contract suite checks every statement against the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "a statement is a list of independent facts")]
pub struct Capabilities {
    /// A ranged read on a version that is gone fails instead of returning other bytes.
    pub conditional_read: bool,
    /// `put` and `complete` honour [`Precondition::Absent`].
    pub conditional_create: bool,
    /// `put` and `complete` honour [`Precondition::Version`].
    pub conditional_replace: bool,
    /// `delete` honours a version.
    pub conditional_delete: bool,
    /// `copy` honours the source version and the target's precondition.
    pub conditional_copy: bool,
    /// Uploads have ids that outlive this process: parts and uploads can be listed and resumed.
    pub resumable_multipart: bool,
    /// Listings can begin after a given key.
    pub list_start_after: bool,
    /// Keys may be any bytes; otherwise only UTF-8.
    pub binary_keys: bool,
    /// Versions are only modification time and length: two contents could share one. Where only some are, as of objects
    /// without an ETag, [`Observed::weak_versions`] tells.
    pub weak_versions: bool,
    /// User metadata is kept, and told by a stat.
    pub metadata: bool,
    /// The headers of [`Description`] are kept, and told by a stat.
    pub headers: bool,
    /// With an object come the directories above it, as the keys that end in `/`, and stay until those are deleted.
    pub directories: bool,
    /// Nothing can be written.
    pub read_only: bool,
}

/// Who waits for a request. Foreground goes before jobs wherever requests queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Priority {
    /// Preload, verify, scrub: whatever the foreground leaves.
    Background,
    /// Somebody waits for it.
    #[default]
    Foreground,
}

/// A ranged read of one version.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// Full key.
    pub key: ObjectKey,
    /// Bytes wanted, not empty and inside the object.
    pub range: ByteRange,
    /// The version the bytes must belong to; `None` reads whatever is current.
    pub version: Option<Version>,
    /// Who waits.
    pub priority: Priority,
}

/// The answer to a read: checked headers, then exactly `range.len()` bytes or an error.
pub struct ObjectBody {
    /// Attributes that came with the bytes.
    pub attributes: ObjectAttributes,
    /// The range that is being delivered; equals the one asked for.
    pub range: ByteRange,
    /// The bytes in order. A stream that ends early or runs over yields an error as its last item.
    pub chunks: BoxStream<'static, Result<Bytes>>,
}

impl fmt::Debug for ObjectBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectBody").field("attributes", &self.attributes).field("range", &self.range).finish()
    }
}

/// One page of a listing, in key order (byte-wise).
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Only keys that start with it.
    pub prefix: ObjectKey,
    /// `true` rolls keys up at the next `/` behind the prefix into common prefixes.
    pub delimited: bool,
    /// Only keys greater than this one. A common prefix counts as its own text.
    pub start_after: Option<ObjectKey>,
    /// The continuation of an earlier page; goes before `start_after`.
    pub continuation: Option<String>,
    /// At most so many objects and prefixes together; the source may return fewer.
    pub limit: usize,
    /// Who waits.
    pub priority: Priority,
}

/// An object as a listing knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedObject {
    /// Full key.
    pub key: ObjectKey,
    /// The same values that a stat gives.
    pub attributes: ObjectAttributes,
}

/// Objects and common prefixes of one page; each list sorted by key.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// Objects, sorted by key.
    pub objects: Vec<ListedObject>,
    /// Common prefixes with their trailing `/`, sorted; empty where the request was flat.
    pub prefixes: Vec<ObjectKey>,
    /// How to go on; `None` on the last page.
    pub continuation: Option<String>,
}

/// What must hold for a write to happen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// No object has the key.
    Absent,
    /// The key holds this version.
    Version(Version),
}

/// A whole object in one request.
#[derive(Clone, Debug)]
pub struct PutRequest {
    /// Full key.
    pub key: ObjectKey,
    /// Content.
    pub body: Bytes,
    /// What must hold.
    pub precondition: Precondition,
    /// User metadata, names in lower case.
    pub metadata: Vec<(String, String)>,
}

/// What is kept of an object besides its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Description {
    /// User metadata, names in lower case.
    pub metadata: Vec<(String, String)>,
    /// Other headers, such as `content-type`, names in lower case. A source that keeps none passes over them.
    pub headers: Vec<(String, String)>,
}

impl From<Vec<(String, String)>> for Description {
    fn from(metadata: Vec<(String, String)>) -> Self {
        Self { metadata, headers: Vec::new() }
    }
}

/// A copy inside the source.
#[derive(Clone, Debug)]
pub struct CopyRequest {
    /// Key to copy from.
    pub from: ObjectKey,
    /// The version `from` must hold.
    pub from_version: Option<Version>,
    /// Key to copy to.
    pub to: ObjectKey,
    /// What must hold of `to`.
    pub precondition: Precondition,
    /// `Some` takes the place of what is kept besides the bytes, `None` keeps it.
    pub description: Option<Description>,
}

/// Bytes of an object that become a part of an upload, inside the source.
#[derive(Clone, Debug)]
pub struct CopiedRange {
    /// Key to copy from.
    pub from: ObjectKey,
    /// The version `from` must hold.
    pub from_version: Option<Version>,
    /// Bytes of it, not empty and inside the object.
    pub range: ByteRange,
}

/// Id of a multipart upload; with its key it names the upload across processes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct UploadId(pub String);

/// A part that the source has taken.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartInfo {
    /// 1 to 10,000.
    pub number: u32,
    /// Bytes.
    pub size: u64,
    /// Token the source gave for it, needed to complete.
    pub etag: String,
}

/// A part as `complete` wants it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CompletedPart {
    /// 1 to 10,000.
    pub number: u32,
    /// The token from `put_part`.
    pub etag: String,
}

/// An upload that was begun and neither completed nor aborted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UploadInfo {
    /// Key it is for.
    pub key: ObjectKey,
    /// Its id.
    pub id: UploadId,
}

/// What a source noticed while it was used; for `doctor` and for messages. Never a secret.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Observed {
    /// It was asked for something, and answered or failed.
    #[serde(default)]
    pub asked: bool,
    /// How far this machine's clock is ahead of the source's, milliseconds; known to about a second.
    pub clock_skew_ms: Option<i64>,
    /// Who we are to the source, shortened: `AKIA…WXYZ`, `anonymous`.
    pub identity: Option<String>,
    /// An object was met whose version is only modification time and length.
    #[serde(default)]
    pub weak_versions: bool,
    /// Failures after which it was asked again.
    pub retries: u64,
    /// The last of them: what to tell when a deadline ends the tries.
    pub retried: Option<Error>,
}

/// Where objects live. All methods are cancel-safe: a dropped future leaves no half-applied write of ours but
/// what the source itself may have accepted.
///
/// Errors carry the kind by what the caller can do: `NotFound`, `PermissionDenied`, `StaleVersion` (a read whose
/// version is gone), `Conflict` (a write whose precondition does not hold), `RateLimited`, `Unavailable`,
/// `Timeout`, `Unsupported`, `InvalidInput`, `Corrupt` (an answer that contradicts itself).
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Service, endpoint, bucket or directory, account.
    fn id(&self) -> &SourceId;

    /// What it can do, as far as is known.
    fn capabilities(&self) -> Capabilities;

    /// What it can do, which may change with this: found out, once, by writing beside a key where only that tells.
    ///
    /// # Errors
    /// What keeps it from being written.
    async fn tried(&self, _beside: &ObjectKey) -> Result<Capabilities> {
        Ok(self.capabilities())
    }

    /// How messages name a key: `s3://bucket/key`.
    fn describe(&self, key: &ObjectKey) -> String;

    /// What it noticed so far. No request.
    fn observed(&self) -> Observed {
        Observed::default()
    }

    /// Attributes and metadata of one object. One request.
    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat>;

    /// Bytes of one object. One request; the headers are checked against the request before this returns.
    async fn read(&self, request: ReadRequest) -> Result<ObjectBody>;

    /// One page of a listing. One request.
    async fn list(&self, request: ListRequest) -> Result<ListPage>;

    /// Stores an object whole and returns its attributes as a stat would.
    async fn put(&self, request: PutRequest) -> Result<ObjectAttributes>;

    /// Copies inside the source and returns the attributes of the copy.
    async fn copy(&self, request: CopyRequest) -> Result<ObjectAttributes>;

    /// Deletes an object; with `version` only while it holds that one. Deleting what is not there succeeds,
    /// with `version` it is `Conflict`.
    async fn delete(&self, key: &ObjectKey, version: Option<&Version>) -> Result<()>;

    /// Begins a multipart upload.
    async fn begin_upload(&self, key: &ObjectKey, description: Description) -> Result<UploadId>;

    /// Stores one part; the same number again replaces it.
    async fn put_part(&self, key: &ObjectKey, upload: &UploadId, number: u32, body: Bytes) -> Result<PartInfo>;

    /// Makes a part of bytes of another object, inside the source; the same number again replaces it. `Conflict` when
    /// that object does not hold the version.
    async fn copy_part(&self, key: &ObjectKey, upload: &UploadId, number: u32, copied: CopiedRange)
    -> Result<PartInfo>;

    /// The parts that were stored, by number.
    async fn list_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<PartInfo>>;

    /// Makes the object of its parts, if `precondition` holds. Part numbers ascend.
    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[CompletedPart],
        precondition: Precondition,
    ) -> Result<ObjectAttributes>;

    /// Gives an upload up; one that is gone already is a success.
    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()>;

    /// Uploads under way whose key starts with `prefix`.
    async fn list_uploads(&self, prefix: &ObjectKey) -> Result<Vec<UploadInfo>>;
}
