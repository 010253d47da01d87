//! S3 and what speaks it: plain HTTP/1.1, signed requests, answers that are checked before anybody sees them.
//! Knows no retry and no limit; those are decorators.

mod address;
mod credentials;
mod http;
mod list;
mod multipart;
mod read;
mod refusal;
mod version;
mod write;
mod xml;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;

use penstock_types::{
    Capabilities, Clock, CompletedPart, CopiedRange, CopyRequest, Description, Error, ErrorKind, ListPage, ListRequest,
    Metrics, ObjectAttributes, ObjectBody, ObjectKey, ObjectStat, Observed, PartInfo, Precondition, PutRequest,
    ReadRequest, Result, Source, SourceId, SourceSpec, UploadId, UploadInfo, Version,
};

use crate::environment::Environment;
use crate::open::SourceParts;
use address::Address;
use credentials::{Reference, RequestSigning};
use http::HttpClient;
use refusal::{Purpose, Refusal, Surroundings};
pub use version::is_weak;
use version::quoted;
pub(crate) use version::weak_version_now;

/// Most bytes of an error's body that are looked at.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Bodies above this are hashed off the async threads (SHA-256 makes about 1 GB/s).
const INLINE_HASH_BYTES: usize = 256 << 10;
/// SHA-256 of no bytes: the hash of every request without a body.
const EMPTY_SHA256: &str = reqsign_aws_v4::EMPTY_STRING_SHA256;
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
/// No difference known yet.
const UNKNOWN_SKEW: i64 = i64::MIN;

/// A bucket.
pub(crate) struct S3 {
    id: SourceId,
    address: Address,
    region: String,
    reference: Reference,
    client: HttpClient,
    signing: Option<RequestSigning>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    clock_skew_ms: AtomicI64,
    /// An object without an ETag was met.
    weak_seen: AtomicBool,
    /// Puts carry a checksum; not any more once the store refused one.
    takes_sums: AtomicBool,
}

/// Identity of the bucket that a spec names; a spec that cannot be opened gets a name that nothing else has.
pub(crate) fn identity(spec: &SourceSpec) -> String {
    let SourceSpec::S3 { bucket, endpoint, region, virtual_host, .. } = spec else { return String::new() };
    // No identity depends on which region it is.
    let region = region.as_deref().unwrap_or(credentials::DEFAULT_REGION);
    match Address::new(bucket, endpoint.as_deref(), region, *virtual_host) {
        Ok(address) => address.identity(),
        Err(_) => format!("s3:invalid/{bucket}"),
    }
}

/// One request before it is signed.
#[derive(Clone)]
struct Call {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Call {
    fn new(method: Method, uri: Uri) -> Self {
        Self { method, uri, headers: HeaderMap::new(), body: Bytes::new() }
    }

    fn body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Adds a header whose value comes from outside.
    fn text(self, action: &str, name: HeaderName, value: &str) -> Result<Self> {
        let value = HeaderValue::from_str(value).map_err(|_| {
            Error::new(ErrorKind::InvalidInput, action, format!("{name} would hold characters that HTTP cannot carry"))
        })?;
        Ok(self.header(name, value))
    }

    fn precondition(self, action: &str, precondition: &Precondition) -> Result<Self> {
        match precondition {
            Precondition::None => Ok(self),
            Precondition::Absent => Ok(self.header(header::IF_NONE_MATCH, HeaderValue::from_static("*"))),
            Precondition::Version(version) => self.text(action, header::IF_MATCH, &quoted(version)),
        }
    }
}

impl S3 {
    /// Checks the spec; sends nothing.
    pub(crate) fn new(spec: &SourceSpec, environment: &Environment, parts: &SourceParts) -> Result<Self> {
        let SourceSpec::S3 { bucket, endpoint, region, virtual_host, credentials } = spec else {
            return Err(Error::new(ErrorKind::Internal, "open an S3 source", "the spec is of another kind"));
        };
        let reference = Reference::parse(credentials)?;
        let region = match region {
            Some(region) => region.clone(),
            None => credentials::default_region(&reference, environment),
        };
        let address = Address::new(bucket, endpoint.as_deref(), &region, *virtual_host)?;
        let client = HttpClient::new(
            parts.config.max_requests,
            (address.is_https() || reference.may_ask_services()).then_some(environment),
        );
        let signing = RequestSigning::new(&reference, &region, environment, &client);
        Ok(Self {
            id: SourceId::from(address.identity().as_str()),
            address,
            region,
            reference,
            client,
            signing,
            clock: parts.clock.clone(),
            metrics: parts.metrics.clone(),
            clock_skew_ms: AtomicI64::new(UNKNOWN_SKEW),
            weak_seen: AtomicBool::new(false),
            takes_sums: AtomicBool::new(true),
        })
    }

    /// Sends a call and returns any answer, with its headers read for the clock.
    async fn send(&self, action: &str, call: Call) -> Result<Response<Incoming>> {
        let mut request = ::http::Request::new(());
        *request.method_mut() = call.method;
        *request.uri_mut() = call.uri;
        *request.headers_mut() = call.headers;
        let (mut parts, ()) = request.into_parts();
        if let Some(signing) = &self.signing {
            parts.headers.insert(CONTENT_SHA256, self.content_hash(&call.body).await);
            signing.sign(action, &mut parts).await?;
        }
        let request = ::http::Request::from_parts(parts, Full::new(call.body));
        let response = self.client.send(action, request).await?;
        self.notice_clock(response.headers());
        Ok(response)
    }

    /// Sends a call; anything but success becomes an error. Credentials that the store calls used up are loaded
    /// again, and the call is sent once more with what came.
    async fn succeed(&self, action: &str, purpose: Purpose, call: Call) -> Result<Response<Incoming>> {
        let response = self.send(action, call.clone()).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let refusal = self.refusal(action, response).await;
        if !self.renewed(&refusal) {
            return Err(self.error_of(action, purpose, &refusal));
        }
        self.metrics.source_requests.inc();
        let response = self.send(action, call).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let refusal = self.refusal(action, response).await;
        Err(self.error_of(action, purpose, &refusal))
    }

    /// Sends a call whose answer is an XML document `root`, read whole. An error document under a success is an error.
    async fn document<T: serde::de::DeserializeOwned>(
        &self,
        action: &str,
        purpose: Purpose,
        root: &str,
        call: Call,
    ) -> Result<(T, HeaderMap)> {
        let response = self.succeed(action, purpose, call).await?;
        let (parts, body) = response.into_parts();
        let body = http::collect(action, body, xml::MAX_XML_BYTES).await?;
        if xml::root_name(&body).as_deref() == Some("Error") {
            let refusal = Refusal::read(parts.status, &parts.headers, &body);
            return Err(self.error_of(action, purpose, &refusal));
        }
        Ok((xml::parse(action, root, &body)?, parts.headers))
    }

    async fn refusal(&self, action: &str, response: Response<Incoming>) -> Refusal {
        let (parts, body) = response.into_parts();
        // A refusal whose body breaks is still one.
        let body = http::collect(action, body, MAX_ERROR_BYTES).await.unwrap_or_default();
        Refusal::read(parts.status, &parts.headers, &body)
    }

    /// Whether it is about credentials that may have been replaced since they were loaded, and they were dropped.
    fn renewed(&self, refusal: &Refusal) -> bool {
        const USED_UP: [&str; 4] = ["ExpiredToken", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId"];
        match &self.signing {
            Some(signing) if USED_UP.contains(&refusal.code.as_str()) => signing.reload(),
            _ => false,
        }
    }

    fn error_of(&self, action: &str, purpose: Purpose, refusal: &Refusal) -> Error {
        let around = Surroundings {
            bucket: self.address.bucket(),
            endpoint: &self.address.endpoint(),
            region: &self.region,
            credentials: &self.reference.to_string(),
            clock_skew_ms: self.clock_skew(),
        };
        refusal.error(action, purpose, &around)
    }

    /// Over TLS the transport protects the payload; over plain HTTP the signature has to.
    async fn content_hash(&self, body: &Bytes) -> HeaderValue {
        if body.is_empty() {
            return HeaderValue::from_static(EMPTY_SHA256);
        }
        let unsigned = HeaderValue::from_static("UNSIGNED-PAYLOAD");
        if self.address.is_https() {
            return unsigned;
        }
        let hex = if body.len() <= INLINE_HASH_BYTES {
            reqsign_core::hash::hex_sha256(body)
        } else {
            let body = body.clone();
            match tokio::task::spawn_blocking(move || reqsign_core::hash::hex_sha256(&body)).await {
                Ok(hex) => hex,
                Err(_) => return unsigned,
            }
        };
        HeaderValue::from_str(&hex).unwrap_or(unsigned)
    }

    fn notice_clock(&self, headers: &HeaderMap) {
        let date = headers.get(header::DATE).and_then(|date| modified_ms(date.to_str().ok()?));
        if let Some(date_ms) = date {
            // The header has whole seconds: its middle is the best guess.
            self.clock_skew_ms.store(self.clock.wall_ms() - date_ms - 500, Ordering::Relaxed);
        }
    }

    fn clock_skew(&self) -> Option<i64> {
        Some(self.clock_skew_ms.load(Ordering::Relaxed)).filter(|skew| *skew != UNKNOWN_SKEW)
    }

    fn notice_version(&self, version: &Version) {
        if is_weak(version) {
            self.weak_seen.store(true, Ordering::Relaxed);
        }
    }

    fn action(&self, verb: &str, key: &ObjectKey) -> String {
        format!("{verb} {}", self.address.describe(key))
    }
}

/// An HTTP date as milliseconds since the epoch.
fn modified_ms(text: &str) -> Option<i64> {
    let time = httpdate::parse_http_date(text).ok()?;
    i64::try_from(time.duration_since(std::time::UNIX_EPOCH).ok()?.as_millis()).ok()
}

fn expect_status(action: &str, status: StatusCode, expected: &[StatusCode]) -> Result<()> {
    if expected.contains(&status) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, action, format!("the store answers with status {}", status.as_u16())))
}

#[async_trait]
impl Source for S3 {
    fn id(&self) -> &SourceId {
        &self.id
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            conditional_read: true,
            conditional_create: true,
            conditional_replace: true,
            conditional_delete: true,
            conditional_copy: true,
            resumable_multipart: true,
            list_start_after: true,
            binary_keys: false,
            weak_versions: false,
            metadata: true,
            headers: true,
            directories: false,
            read_only: false,
        }
    }

    fn describe(&self, key: &ObjectKey) -> String {
        self.address.describe(key)
    }

    fn observed(&self) -> Observed {
        let identity = match &self.signing {
            Some(signing) => signing.identity(),
            None => Some("anonymous".to_owned()),
        };
        let weak_versions = self.weak_seen.load(Ordering::Relaxed);
        Observed { clock_skew_ms: self.clock_skew(), identity, weak_versions, ..Observed::default() }
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        self.stat_object(key).await
    }

    async fn read(&self, request: ReadRequest) -> Result<ObjectBody> {
        self.read_object(request).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        self.list_objects(request).await
    }

    async fn put(&self, request: PutRequest) -> Result<ObjectAttributes> {
        self.put_object(request).await
    }

    async fn copy(&self, request: CopyRequest) -> Result<ObjectAttributes> {
        self.copy_object(request).await
    }

    async fn delete(&self, key: &ObjectKey, version: Option<&Version>) -> Result<()> {
        self.delete_object(key, version).await
    }

    async fn begin_upload(&self, key: &ObjectKey, description: Description) -> Result<UploadId> {
        self.begin_multipart(key, &description).await
    }

    async fn put_part(&self, key: &ObjectKey, upload: &UploadId, number: u32, body: Bytes) -> Result<PartInfo> {
        self.put_multipart_part(key, upload, number, body).await
    }

    async fn copy_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        copied: CopiedRange,
    ) -> Result<PartInfo> {
        self.copy_multipart_part(key, upload, number, &copied).await
    }

    async fn list_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<PartInfo>> {
        self.list_multipart_parts(key, upload).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[CompletedPart],
        precondition: Precondition,
    ) -> Result<ObjectAttributes> {
        self.complete_multipart(key, upload, parts, &precondition).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.abort_multipart(key, upload).await
    }

    async fn list_uploads(&self, prefix: &ObjectKey) -> Result<Vec<UploadInfo>> {
        self.list_multipart_uploads(prefix).await
    }
}
