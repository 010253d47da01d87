//! Multipart uploads: begin, take parts, make the object of them.

use md5::{Digest, Md5};
use s3s::dto::{CompletedPart, CopySource, UploadPartCopyInput};
use s3s::{S3Result, s3_error};

use crate::conditions::Conditions;
use crate::data;
use crate::object::{Object, Part, Upload};
use crate::receive::{Received, from_hexadecimal, hexadecimal};
use crate::store::{Store, internal};

/// Highest part number, as S3 has it.
const MAX_PARTS: i32 = 10_000;

/// An upload's number as its id.
pub fn upload_text(number: u64) -> String {
    format!("{number:016x}")
}

/// The number of an id that [`upload_text`] gave.
///
/// # Errors
/// `NoSuchUpload`.
pub fn upload_number(id: &String) -> S3Result<u64> {
    let number = u64::from_str_radix(id, 16).ok().filter(|&number| upload_text(number) == *id);
    number.ok_or_else(|| {
        s3_error!(NoSuchUpload, "The specified upload does not exist: it may have been completed or aborted.")
    })
}

/// Checks a part's number.
///
/// # Errors
/// `InvalidArgument`.
pub fn part_number(number: i32) -> S3Result<u32> {
    if (1..=MAX_PARTS).contains(&number) {
        return Ok(number.unsigned_abs());
    }
    Err(s3_error!(InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive"))
}

/// Content that came as a part.
pub fn part(received: Received, now_s: u64) -> Part {
    Part { etag: received.md5, size: received.size, modified_s: now_s, segments: received.segments }
}

/// A part out of another object's content: shares its data files.
pub fn copied_part(store: &Store, input: &UploadPartCopyInput, now_s: u64) -> S3Result<Part> {
    let (bucket, key) = copy_source(&input.copy_source)?;
    let source = store.get(bucket, key)?;
    let conditions = Conditions {
        matches: input.copy_source_if_match.clone(),
        none_matches: input.copy_source_if_none_match.clone(),
        modified_since: input.copy_source_if_modified_since.clone(),
        unmodified_since: input.copy_source_if_unmodified_since.clone(),
        ..Conditions::default()
    };
    conditions.check_copy(&source)?;
    let (start, end) = match &input.copy_source_range {
        None => (0, source.size),
        Some(text) => {
            let range = s3s::dto::Range::parse(text).map_err(|_| s3_error!(InvalidArgument))?;
            let range = range
                .check(source.size)
                .map_err(|_| s3_error!(InvalidRange, "The requested range is not satisfiable"))?;
            (range.start, range.end)
        }
    };
    let segments = data::slice(&source.segments, start, end);
    let mut digest = Md5::new();
    for segment in &segments {
        let mut at = 0;
        while at < segment.length {
            let data = segment.file.read(segment.offset + at, segment.length - at).map_err(internal)?;
            digest.update(&data);
            at += data.len() as u64;
        }
    }
    Ok(Part { etag: hexadecimal(&digest.finalize()), size: end - start, modified_s: now_s, segments })
}

/// Bucket and key of a copy's source.
///
/// # Errors
/// `NotImplemented` for access points, `NoSuchVersion` for any version but the current one.
pub fn copy_source(source: &CopySource) -> S3Result<(&str, &str)> {
    match source {
        CopySource::Bucket { bucket, key, version_id } => match version_id.as_deref() {
            None | Some("null") => Ok((bucket, key)),
            Some(_) => Err(s3_error!(NoSuchVersion, "The specified version does not exist.")),
        },
        _ => Err(s3_error!(NotImplemented, "copies are from buckets")),
    }
}

/// Makes the object of the parts that the client names.
///
/// # Errors
/// `MalformedXML` without parts, `InvalidPartOrder`, `InvalidPart`, and `EntityTooSmall` when a part before the last
/// has fewer than `minimum` bytes.
pub fn object_of(upload: &Upload, named: &[CompletedPart], minimum: u64, now_s: u64) -> S3Result<Object> {
    let mut digest = Md5::new();
    let mut object = Object { modified_s: now_s, extra: upload.extra.clone(), ..Object::default() };
    let mut before = 0;
    for (at, name) in named.iter().enumerate() {
        let number = part_number(name.part_number.unwrap_or(0))?;
        if number <= before {
            return Err(s3_error!(InvalidPartOrder, "The list of parts was not in ascending order."));
        }
        before = number;
        let part = upload
            .parts
            .get(&number)
            .ok_or_else(|| s3_error!(InvalidPart, "A part was never uploaded, or has another ETag"))?;
        if name.e_tag.as_ref().is_none_or(|etag| etag.value() != part.etag) {
            return Err(s3_error!(InvalidPart, "A part was never uploaded, or has another ETag"));
        }
        if part.size < minimum && at + 1 < named.len() {
            return Err(s3_error!(EntityTooSmall, "A part before the last is smaller than the minimum"));
        }
        digest.update(from_hexadecimal(&part.etag).unwrap_or_default());
        object.size += part.size;
        object.segments.extend(part.segments.iter().cloned());
    }
    if named.is_empty() {
        return Err(s3_error!(MalformedXML, "an object has at least one part"));
    }
    object.etag = format!("{}-{}", hexadecimal(&digest.finalize()), named.len());
    Ok(object)
}
