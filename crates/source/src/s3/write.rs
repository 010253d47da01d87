//! Put, copy and delete, each with its condition.

use std::sync::atomic::Ordering;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use hyper::body::Incoming;

use penstock_types::{
    CopyRequest, Description, Error, ErrorKind, ObjectAttributes, ObjectKey, Precondition, PutRequest, Result, Version,
};

use super::read::{KEPT_HEADERS, METADATA_PREFIX};
use super::version::{is_weak, quoted, version_in, version_of};
use super::{Call, MAX_ERROR_BYTES, Purpose, S3, http, modified_ms, xml};
use crate::check;

pub(super) const COPY_SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");
pub(super) const COPY_SOURCE_IF_MATCH: HeaderName = HeaderName::from_static("x-amz-copy-source-if-match");
/// CRC32C of what is sent or kept, in base64.
const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-checksum-crc32c");
const METADATA_DIRECTIVE: HeaderName = HeaderName::from_static("x-amz-metadata-directive");

impl S3 {
    pub(super) async fn put_object(&self, request: PutRequest) -> Result<ObjectAttributes> {
        let action = self.action("write", &request.key);
        check::key(&action, &request.key)?;
        self.check_condition(&action, &request.key, &request.precondition).await?;
        let size = request.body.len() as u64;
        let sum = sum_of(&request.body);
        let call = Call::new(Method::PUT, self.address.uri(&request.key, &[])?)
            .body(request.body)
            .metadata(&action, &request.metadata)?
            .precondition(&action, &request.precondition)?;
        let response = self.put_with_sum(&action, purpose(&request.precondition, None), call, &sum).await?;
        let (parts, body) = response.into_parts();
        // Read to its end, so that the connection can be used again.
        let _ = http::collect(&action, body, MAX_ERROR_BYTES).await;
        let version = version_in(&action, &parts.headers)?;
        if let Err(error) = check_sum(&action, &parts.headers, &sum) {
            // So that nobody reads it, and no later try takes it for what was sent.
            let _ = self.delete_if(&action, &request.key, Some(&version)).await;
            return Err(error);
        }
        self.written(&request.key, version, Some(size), &parts.headers).await
    }

    /// Sends a put with the checksum of its body, which the store compares. A store that will not have it gets puts
    /// without from then on.
    async fn put_with_sum(
        &self,
        action: &str,
        purpose: Purpose,
        call: Call,
        sum: &HeaderValue,
    ) -> Result<Response<Incoming>> {
        /// What a store says that does not know the header, or the algorithm.
        const REFUSALS: [ErrorKind; 2] = [ErrorKind::Unsupported, ErrorKind::InvalidInput];
        if !self.takes_sums.load(Ordering::Relaxed) {
            return self.succeed(action, purpose, call).await;
        }
        match self.succeed(action, purpose, call.clone().header(CHECKSUM, sum.clone())).await {
            Err(error) if REFUSALS.contains(&error.kind()) => {
                self.metrics.source_requests.inc();
                let response = self.succeed(action, purpose, call).await?;
                self.takes_sums.store(false, Ordering::Relaxed);
                tracing::info!(code = "source-without-checksums", bucket = self.address.bucket(), %error);
                Ok(response)
            }
            sent => sent,
        }
    }

    pub(super) async fn copy_object(&self, request: CopyRequest) -> Result<ObjectAttributes> {
        let action = format!("{} to {}", self.action("copy", &request.from), self.address.describe(&request.to));
        check::key(&action, &request.to)?;
        self.check_condition(&action, &request.to, &request.precondition).await?;
        let from = request.from_version.clone().map_or(Precondition::None, Precondition::Version);
        self.check_condition(&action, &request.from, &from).await?;
        let mut call = Call::new(Method::PUT, self.address.uri(&request.to, &[])?)
            .text(&action, COPY_SOURCE, &self.address.copy_source(&request.from))?
            .precondition(&action, &request.precondition)?;
        if let Some(version) = &request.from_version {
            call = call.text(&action, COPY_SOURCE_IF_MATCH, &quoted(version))?;
        }
        if let Some(description) = &request.description {
            call = call
                .header(METADATA_DIRECTIVE, HeaderValue::from_static("REPLACE"))
                .description(&action, description)?;
        }
        let purpose = purpose(&request.precondition, request.from_version.as_ref());
        let (result, headers): (xml::WrittenResult, _) =
            self.document(&action, purpose, "CopyObjectResult", call).await?;
        let version =
            version_of(&result.etag).ok_or_else(|| Error::new(ErrorKind::Corrupt, &action, "the copy has no ETag"))?;
        self.written(&request.to, version, None, &headers).await
    }

    pub(super) async fn delete_object(&self, key: &ObjectKey, version: Option<&Version>) -> Result<()> {
        let action = self.action("delete", key);
        check::key(&action, key)?;
        match self.delete_if(&action, key, version).await {
            Ok(response) => {
                let _ = http::collect(&action, response.into_body(), MAX_ERROR_BYTES).await;
                Ok(())
            }
            // What is not there is deleted; a bucket that is not there is another matter.
            Err(error) if error.kind() == ErrorKind::NotFound && !is_about_the_bucket(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete_if(&self, action: &str, key: &ObjectKey, version: Option<&Version>) -> Result<Response<Incoming>> {
        let mut call = Call::new(Method::DELETE, self.address.uri(key, &[])?);
        if let Some(version) = version {
            self.check_condition(action, key, &Precondition::Version(version.clone())).await?;
            call = call.text(action, header::IF_MATCH, &quoted(version))?;
        }
        self.succeed(action, purpose(&Precondition::None, version), call).await
    }

    /// Refuses what would change a weak version: no store can be asked to change that one only. Where the object is
    /// gone meanwhile this is `NotFound`, as from a store with a condition that it knows.
    pub(super) async fn check_condition(
        &self,
        action: &str,
        key: &ObjectKey,
        precondition: &Precondition,
    ) -> Result<()> {
        if !matches!(precondition, Precondition::Version(version) if is_weak(version)) {
            return Ok(());
        }
        self.metrics.source_requests.inc();
        self.stat_object(key).await?;
        let reason = "the object has no ETag, so that the store cannot be asked to change this version only";
        Err(Error::new(ErrorKind::Conflict, action, reason).advise("remove it in the store by other means"))
    }

    /// Attributes of a version that was just written, as a stat gives them: an answer to a write has no
    /// `Last-Modified`. Where the stat cannot tell, because the version is replaced already or the store fails,
    /// the answer's date has to do; without a size either there is nothing true to say.
    pub(super) async fn written(
        &self,
        key: &ObjectKey,
        version: Version,
        size: Option<u64>,
        headers: &HeaderMap,
    ) -> Result<ObjectAttributes> {
        self.metrics.source_requests.inc();
        let stat = self.stat_object(key).await;
        match (stat, size) {
            (Ok(stat), _) if stat.attributes.version == version => Ok(stat.attributes),
            (_, Some(size)) => {
                let date = headers.get(header::DATE).and_then(|date| modified_ms(date.to_str().ok()?));
                let modified_ms = date.unwrap_or_else(|| self.clock.wall_ms().div_euclid(1000) * 1000);
                Ok(ObjectAttributes { size, modified_ms, version })
            }
            (Ok(_), None) => Err(Error::new(
                ErrorKind::Conflict,
                self.action("write", key),
                "it was written, and replaced by somebody else at once",
            )),
            (Err(error), None) => Err(error),
        }
    }
}

/// CRC32C of a body as the header has it.
fn sum_of(body: &[u8]) -> HeaderValue {
    let sum = reqsign_core::hash::base64_encode(&crc32c::crc32c(body).to_be_bytes());
    HeaderValue::from_str(&sum).expect("base64 is plain text")
}

/// Compares what the store says that it has with what was sent, where it says so.
fn check_sum(action: &str, headers: &HeaderMap, sent: &HeaderValue) -> Result<()> {
    match headers.get(CHECKSUM) {
        Some(found) if found.len() == sent.len() && found != sent => {
            let reason = "the store has other bytes than were sent: checksum mismatch";
            Err(Error::new(ErrorKind::Corrupt, action, reason).advise("look at the network and at proxies before it"))
        }
        _ => Ok(()),
    }
}

impl Call {
    pub(super) fn description(mut self, action: &str, description: &Description) -> Result<Self> {
        for (name, value) in &description.headers {
            if let Some(known) = KEPT_HEADERS.iter().find(|known| **known == name.as_str()) {
                self = self.text(action, HeaderName::from_static(known), value)?;
            }
        }
        self.metadata(action, &description.metadata)
    }

    pub(super) fn metadata(mut self, action: &str, metadata: &[(String, String)]) -> Result<Self> {
        for (name, value) in metadata {
            let invalid = || {
                Error::new(ErrorKind::InvalidInput, action, "the name of a metadata entry is no HTTP token")
                    .fact("name", name.escape_default())
            };
            let header: HeaderName = format!("{METADATA_PREFIX}{name}").parse().map_err(|_| invalid())?;
            self = self.text(action, header, value)?;
        }
        Ok(self)
    }
}

/// Whether the bucket is missing and not only a key or an upload in it.
pub(super) fn is_about_the_bucket(error: &Error) -> bool {
    error.reason().starts_with(super::refusal::NO_BUCKET)
}

pub(super) fn purpose(precondition: &Precondition, version: Option<&Version>) -> Purpose {
    match (precondition, version) {
        (Precondition::None, None) => Purpose::Plain,
        _ => Purpose::ConditionalWrite,
    }
}
