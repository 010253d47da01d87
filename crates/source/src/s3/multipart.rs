//! Multipart uploads with their ids in the open, so that another process can go on with them.

use std::fmt::Write as _;

use ::http::{HeaderName, Method};
use bytes::Bytes;

use penstock_types::{
    CompletedPart, CopiedRange, Description, Error, ErrorKind, ObjectAttributes, ObjectKey, PartInfo, Precondition,
    Result, UploadId, UploadInfo,
};

use super::version::{quoted, version_in, version_of};
use super::write::{COPY_SOURCE, COPY_SOURCE_IF_MATCH, is_about_the_bucket, purpose};
use super::{Call, MAX_ERROR_BYTES, Purpose, S3, http, xml};
use crate::check;

const COPY_SOURCE_RANGE: HeaderName = HeaderName::from_static("x-amz-copy-source-range");
/// Ten pages hold every part an upload can have; a store that gives more goes round in circles.
const MAX_PART_PAGES: usize = 64;
/// A million uploads under way are a leak, not a listing.
const MAX_UPLOAD_PAGES: usize = 1000;

impl S3 {
    pub(super) async fn begin_multipart(&self, key: &ObjectKey, description: &Description) -> Result<UploadId> {
        let action = self.action("begin upload of", key);
        check::key(&action, key)?;
        let call =
            Call::new(Method::POST, self.address.uri(key, &[("uploads", b"")])?).description(&action, description)?;
        let (result, _): (xml::InitiateMultipartUploadResult, _) =
            self.document(&action, Purpose::Plain, "InitiateMultipartUploadResult", call).await?;
        Ok(UploadId(result.upload_id))
    }

    pub(super) async fn put_multipart_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartInfo> {
        let action = self.action(&format!("write part {number} of"), key);
        check::part_number(&action, number)?;
        let size = body.len() as u64;
        let text = number.to_string();
        let query: [(&str, &[u8]); 2] = [("partNumber", text.as_bytes()), ("uploadId", upload.0.as_bytes())];
        let call = Call::new(Method::PUT, self.address.uri(key, &query)?).body(body);
        let response = self.succeed(&action, Purpose::Plain, call).await?;
        let (parts, body) = response.into_parts();
        let _ = http::collect(&action, body, MAX_ERROR_BYTES).await;
        Ok(PartInfo { number, size, etag: version_in(&action, &parts.headers)?.to_string() })
    }

    pub(super) async fn copy_multipart_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        copied: &CopiedRange,
    ) -> Result<PartInfo> {
        let action = format!("{} to {}", self.action("copy a part of", &copied.from), self.address.describe(key));
        check::part_number(&action, number)?;
        let version = copied.from_version.as_ref();
        let condition = version.map_or(Precondition::None, |version| Precondition::Version(version.clone()));
        self.check_condition(&action, &copied.from, &condition).await?;
        let (text, size) = (number.to_string(), copied.range.len());
        let query: [(&str, &[u8]); 2] = [("partNumber", text.as_bytes()), ("uploadId", upload.0.as_bytes())];
        let range = format!("bytes={}-{}", copied.range.start, copied.range.end.saturating_sub(1));
        let mut call = Call::new(Method::PUT, self.address.uri(key, &query)?)
            .text(&action, COPY_SOURCE, &self.address.copy_source(&copied.from))?
            .text(&action, COPY_SOURCE_RANGE, &range)?;
        if let Some(version) = version {
            call = call.text(&action, COPY_SOURCE_IF_MATCH, &quoted(version))?;
        }
        let purpose = purpose(&Precondition::None, version);
        let (result, _): (xml::WrittenResult, _) = self.document(&action, purpose, "CopyPartResult", call).await?;
        let etag =
            version_of(&result.etag).ok_or_else(|| Error::new(ErrorKind::Corrupt, &action, "the part has no ETag"))?;
        Ok(PartInfo { number, size, etag: etag.to_string() })
    }

    pub(super) async fn list_multipart_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<PartInfo>> {
        let action = self.action("list parts of", key);
        let mut parts: Vec<PartInfo> = Vec::new();
        let mut marker = String::new();
        for _ in 0..MAX_PART_PAGES {
            let mut query: Vec<(&str, &[u8])> = Vec::new();
            if !marker.is_empty() {
                query.push(("part-number-marker", marker.as_bytes()));
            }
            query.push(("uploadId", upload.0.as_bytes()));
            let call = Call::new(Method::GET, self.address.uri(key, &query)?);
            let (page, _): (xml::ListPartsResult, _) =
                self.document(&action, Purpose::Plain, "ListPartsResult", call).await?;
            for part in page.parts {
                let etag = version_of(&part.etag)
                    .ok_or_else(|| Error::new(ErrorKind::Corrupt, &action, "a part is listed without its ETag"))?;
                parts.push(PartInfo { number: part.part_number, size: part.size, etag: etag.to_string() });
            }
            match page.next_part_number_marker {
                Some(next) if page.is_truncated && next != marker => marker = next,
                _ => {
                    parts.sort_by_key(|part| part.number);
                    return Ok(parts);
                }
            }
        }
        Err(endless(&action))
    }

    pub(super) async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[CompletedPart],
        precondition: &Precondition,
    ) -> Result<ObjectAttributes> {
        let action = self.action("complete upload of", key);
        self.check_condition(&action, key, precondition).await?;
        let call = Call::new(Method::POST, self.address.uri(key, &[("uploadId", upload.0.as_bytes())])?)
            .body(completion(&action, parts)?)
            .precondition(&action, precondition)?;
        let (result, headers): (xml::WrittenResult, _) =
            self.document(&action, purpose(precondition, None), "CompleteMultipartUploadResult", call).await?;
        let version = version_of(&result.etag)
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, &action, "the object has no ETag"))?;
        self.written(key, version, None, &headers).await
    }

    pub(super) async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let action = self.action("abort upload of", key);
        let call = Call::new(Method::DELETE, self.address.uri(key, &[("uploadId", upload.0.as_bytes())])?);
        match self.succeed(&action, Purpose::Plain, call).await {
            Ok(response) => {
                let _ = http::collect(&action, response.into_body(), MAX_ERROR_BYTES).await;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound && !is_about_the_bucket(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn list_multipart_uploads(&self, prefix: &ObjectKey) -> Result<Vec<UploadInfo>> {
        let action = self.action("list uploads of", prefix);
        let mut uploads = Vec::new();
        let mut marker: Option<(ObjectKey, String)> = None;
        for _ in 0..MAX_UPLOAD_PAGES {
            let mut query: Vec<(&str, &[u8])> = vec![("encoding-type", b"url")];
            if let Some((key, _)) = &marker {
                query.push(("key-marker", key.as_bytes()));
            }
            query.push(("prefix", prefix.as_bytes()));
            if let Some((_, id)) = &marker {
                query.push(("upload-id-marker", id.as_bytes()));
            }
            query.push(("uploads", b""));
            let call = Call::new(Method::GET, self.address.uri(&ObjectKey::default(), &query)?);
            let (page, _): (xml::ListMultipartUploadsResult, _) =
                self.document(&action, Purpose::Plain, "ListMultipartUploadsResult", call).await?;
            let encoding = page.encoding_type.as_deref();
            let found = page.uploads.into_iter().map(|upload| UploadInfo {
                key: xml::decode_key(&upload.key, encoding),
                id: UploadId(upload.upload_id),
            });
            uploads.extend(found.filter(|upload| upload.key.as_bytes().starts_with(prefix.as_bytes())));
            let next = page
                .next_key_marker
                .filter(|_| page.is_truncated)
                .map(|key| (xml::decode_key(&key, encoding), page.next_upload_id_marker.unwrap_or_default()));
            match next {
                Some(next) if marker.as_ref() != Some(&next) => marker = Some(next),
                _ => return Ok(uploads),
            }
        }
        Err(endless(&action))
    }
}

fn completion(action: &str, parts: &[CompletedPart]) -> Result<Bytes> {
    check::parts_ascend(action, parts)?;
    let mut text = String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for part in parts {
        let etag = xml::escape(&part.etag);
        write!(text, "<Part><PartNumber>{}</PartNumber><ETag>&quot;{etag}&quot;</ETag></Part>", part.number)
            .expect("writing into a string cannot fail");
    }
    text.push_str("</CompleteMultipartUpload>");
    Ok(text.into())
}

fn endless(action: &str) -> Error {
    Error::new(ErrorKind::Corrupt, action, "the listing has no end")
}
