//! Listings as the protocol says them: paging, encoding, both versions of the call.

use s3s::dto::{
    CommonPrefix, EncodingType, ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsInput,
    ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput, MultipartUpload,
    Object as ListedObject, Part as ListedPart,
};
use s3s::{S3Result, s3_error};

use crate::conditions::{etag_of, modified_of, timestamp};
use crate::index::{Page, Query, Row};
use crate::multipart::{upload_number, upload_text};
use crate::receive::{from_hexadecimal, hexadecimal};
use crate::store::Store;

/// Most rows of any page, as S3 has it.
const MAX_ROWS: i32 = 1000;

/// `ListObjectsV2`.
pub fn list_v2(store: &Store, input: ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
    let limit = rows(input.max_keys)?;
    let after = match &input.continuation_token {
        Some(token) => from_hexadecimal(token).ok_or_else(|| s3_error!(InvalidArgument, "not our token"))?,
        None => input.start_after.clone().unwrap_or_default().into_bytes(),
    };
    let query = Query {
        prefix: input.prefix.clone().unwrap_or_default().into_bytes(),
        delimiter: input.delimiter.clone().unwrap_or_default().into_bytes(),
        after,
        limit: limit as usize,
    };
    let page = store.list(&input.bucket, &query)?;
    let encode = Encoding::of(input.encoding_type.as_ref());
    let next = page.rows.last().filter(|_| page.truncated).map(|row| hexadecimal(row.text()));
    let count = i32::try_from(page.rows.len()).ok();
    let (contents, prefixes) = split(&page, encode);
    Ok(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(encode.text(&input.prefix.unwrap_or_default())),
        max_keys: Some(limit),
        key_count: count,
        continuation_token: input.continuation_token,
        is_truncated: Some(page.truncated),
        next_continuation_token: next,
        contents: Some(contents),
        common_prefixes: Some(prefixes),
        delimiter: input.delimiter.map(|text| encode.text(&text)),
        encoding_type: input.encoding_type,
        start_after: input.start_after.map(|text| encode.text(&text)),
        request_charged: None,
    })
}

/// `ListObjects`.
pub fn list_v1(store: &Store, input: ListObjectsInput) -> S3Result<ListObjectsOutput> {
    let limit = rows(input.max_keys)?;
    let query = Query {
        prefix: input.prefix.clone().unwrap_or_default().into_bytes(),
        delimiter: input.delimiter.clone().unwrap_or_default().into_bytes(),
        after: input.marker.clone().unwrap_or_default().into_bytes(),
        limit: limit as usize,
    };
    let page = store.list(&input.bucket, &query)?;
    let encode = Encoding::of(input.encoding_type.as_ref());
    let next = page.rows.last().filter(|_| page.truncated).map(|row| encode.bytes(row.text()));
    let (contents, prefixes) = split(&page, encode);
    Ok(ListObjectsOutput {
        name: Some(input.bucket),
        prefix: Some(encode.text(&input.prefix.unwrap_or_default())),
        marker: Some(encode.text(&input.marker.unwrap_or_default())),
        max_keys: Some(limit),
        is_truncated: Some(page.truncated),
        contents: Some(contents),
        common_prefixes: Some(prefixes),
        delimiter: input.delimiter.map(|text| encode.text(&text)),
        next_marker: next,
        encoding_type: input.encoding_type,
        request_charged: None,
    })
}

/// `ListParts`.
pub fn list_parts(store: &Store, input: ListPartsInput) -> S3Result<ListPartsOutput> {
    let limit = rows(input.max_parts)?;
    let marker = u32::try_from(input.part_number_marker.unwrap_or(0)).unwrap_or(0);
    let number = upload_number(&input.upload_id)?;
    let mut parts: Vec<ListedPart> = store.upload(number, (&input.bucket, &input.key), |upload| {
        let behind = upload.parts.range(marker.saturating_add(1)..).take(limit as usize + 1);
        behind
            .map(|(&number, part)| ListedPart {
                e_tag: Some(s3s::dto::ETag::Strong(part.etag.clone())),
                last_modified: Some(timestamp(part.modified_s)),
                part_number: i32::try_from(number).ok(),
                size: i64::try_from(part.size).ok(),
                ..ListedPart::default()
            })
            .collect()
    })?;
    let truncated = parts.len() > limit as usize;
    parts.truncate(limit as usize);
    Ok(ListPartsOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        max_parts: Some(limit),
        is_truncated: Some(truncated),
        part_number_marker: input.part_number_marker,
        next_part_number_marker: parts.last().and_then(|part| part.part_number),
        parts: Some(parts),
        ..ListPartsOutput::default()
    })
}

/// `ListMultipartUploads`, ordered by key, then by age.
pub fn list_uploads(store: &Store, input: ListMultipartUploadsInput) -> S3Result<ListMultipartUploadsOutput> {
    if input.delimiter.is_some() {
        return Err(s3_error!(NotImplemented, "uploads are listed without a delimiter"));
    }
    store.bucket(&input.bucket, |_| ())?;
    let limit = rows(input.max_uploads)?;
    let prefix = input.prefix.clone().unwrap_or_default();
    let key_marker = input.key_marker.clone().unwrap_or_default();
    let id_marker = input.upload_id_marker.as_ref().map(upload_number).transpose()?.unwrap_or(u64::MAX);
    let mut found: Vec<(String, u64, u64)> = store.uploads(|uploads| {
        let ours = uploads.iter().filter(|(_, upload)| upload.bucket == input.bucket);
        ours.map(|(&number, upload)| (upload.key.clone(), number, upload.initiated_s)).collect()
    });
    found.retain(|(key, number, _)| {
        key.starts_with(&prefix) && (key_marker.is_empty() || (key, *number) > (&key_marker, id_marker))
    });
    found.sort_unstable();
    let truncated = found.len() > limit as usize;
    found.truncate(limit as usize);
    let encode = Encoding::of(input.encoding_type.as_ref());
    let next = found.last().filter(|_| truncated);
    Ok(ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        prefix: Some(encode.text(&prefix)),
        key_marker: input.key_marker.map(|text| encode.text(&text)),
        upload_id_marker: input.upload_id_marker,
        max_uploads: Some(limit),
        is_truncated: Some(truncated),
        next_key_marker: next.map(|(key, ..)| encode.text(key)),
        next_upload_id_marker: next.map(|&(_, number, _)| upload_text(number)),
        encoding_type: input.encoding_type,
        uploads: Some(found.iter().map(|upload| listed_upload(upload, encode)).collect()),
        ..ListMultipartUploadsOutput::default()
    })
}

fn listed_upload((key, number, initiated_s): &(String, u64, u64), encode: Encoding) -> MultipartUpload {
    MultipartUpload {
        key: Some(encode.text(key)),
        upload_id: Some(upload_text(*number)),
        initiated: Some(timestamp(*initiated_s)),
        ..MultipartUpload::default()
    }
}

fn split(page: &Page, encode: Encoding) -> (Vec<ListedObject>, Vec<CommonPrefix>) {
    let (mut contents, mut prefixes) = (Vec::with_capacity(page.rows.len()), Vec::new());
    for row in &page.rows {
        match row {
            Row::Object(key, object) => contents.push(ListedObject {
                key: Some(encode.bytes(key)),
                e_tag: Some(etag_of(object)),
                size: i64::try_from(object.size).ok(),
                last_modified: Some(modified_of(object)),
                ..ListedObject::default()
            }),
            Row::Prefix(prefix) => prefixes.push(CommonPrefix { prefix: Some(encode.bytes(prefix)) }),
        }
    }
    (contents, prefixes)
}

/// `max-keys` and its kin: at most [`MAX_ROWS`], which is also what nothing means.
fn rows(asked: Option<i32>) -> S3Result<i32> {
    match asked {
        Some(count) if count < 0 => Err(s3_error!(InvalidArgument, "a page has at least 0 rows")),
        asked => Ok(asked.unwrap_or(MAX_ROWS).min(MAX_ROWS)),
    }
}

/// Whether keys are percent-encoded: only so can XML carry every one of them.
#[derive(Clone, Copy)]
enum Encoding {
    Plain,
    Url,
}

impl Encoding {
    fn of(asked: Option<&EncodingType>) -> Self {
        if asked.is_some_and(|kind| kind.as_str() == EncodingType::URL) { Self::Url } else { Self::Plain }
    }

    fn text(self, text: &str) -> String {
        self.bytes(text.as_bytes())
    }

    fn bytes(self, bytes: &[u8]) -> String {
        match self {
            Self::Plain => String::from_utf8_lossy(bytes).into_owned(),
            Self::Url => percent_encoded(bytes),
        }
    }
}

fn percent_encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => text.push(byte as char),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}
