//! The S3 calls: each one translated into what the store does.

use std::sync::Arc;

use async_trait::async_trait;
use http::HeaderMap;
use penstock_types::Clock;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, TrailingHeaders, s3_error};

use crate::body::Content;
use crate::conditions::{Conditions, etag_of, modified_of, timestamp};
use crate::counters::{Counters, count};
use crate::data;
use crate::listing;
use crate::multipart::{self, copy_source, upload_number, upload_text};
use crate::object::{Extra, Object, Upload};
use crate::receive::{Promise, receive};
use crate::store::Store;

/// The calls over one store.
pub struct Service {
    pub store: Arc<Store>,
    pub counters: Arc<Counters>,
    pub clock: Arc<dyn Clock>,
    pub minimum_part_bytes: u64,
}

impl Service {
    fn now_s(&self) -> u64 {
        u64::try_from(self.clock.wall_ms() / 1000).unwrap_or(0)
    }

    fn copy(&self, input: CopyObjectInput, headers: &HeaderMap) -> S3Result<Arc<Object>> {
        let (bucket, key) = copy_source(&input.copy_source)?;
        let source = self.store.get(bucket, key)?;
        let from = Conditions {
            matches: input.copy_source_if_match.clone(),
            none_matches: input.copy_source_if_none_match.clone(),
            modified_since: input.copy_source_if_modified_since.clone(),
            unmodified_since: input.copy_source_if_unmodified_since.clone(),
            ..Conditions::default()
        };
        from.check_copy(&source)?;
        let replace = input.metadata_directive.as_ref().is_some_and(|kind| kind.as_str() == MetadataDirective::REPLACE);
        if !replace && (bucket, key) == (&input.bucket, &input.key) {
            return Err(s3_error!(InvalidRequest, "a copy onto itself must replace the metadata"));
        }
        let extra = if replace {
            Extra {
                metadata: input.metadata.unwrap_or_default().into_iter().collect(),
                content_type: input.content_type,
                content_encoding: input.content_encoding,
                content_language: input.content_language,
                content_disposition: input.content_disposition,
                cache_control: input.cache_control,
            }
            .boxed()
        } else {
            source.extra.clone()
        };
        let (etag, size, segments) = (source.etag.clone(), source.size, source.segments.clone());
        let object = Object { etag, size, modified_s: self.now_s(), extra, segments };
        // S3 has conditions on the target since 2025; the model that `s3s` is made from is older.
        let to = Conditions::of_write(condition(headers, "if-match")?, condition(headers, "if-none-match")?);
        self.store.put(&input.bucket, &input.key, object, &to)
    }
}

#[async_trait]
impl S3 for Service {
    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        count(&self.counters.get);
        let input = req.input;
        only_current(input.version_id.as_deref(), input.part_number)?;
        let object = self.store.get(&input.bucket, &input.key)?;
        read_conditions(input.if_match, input.if_none_match, input.if_modified_since, input.if_unmodified_since)
            .check_read(&object)?;
        let (start, end) = span(input.range, object.size)?;
        let extra = object.extra.as_deref().cloned().unwrap_or_default();
        let content = Content::new(data::slice(&object.segments, start, end));
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".into()),
            body: Some(StreamingBlob::new(content)),
            content_length: i64::try_from(end - start).ok(),
            content_range: input.range.map(|_| format!("bytes {start}-{}/{}", end - 1, object.size)),
            e_tag: Some(etag_of(&object)),
            last_modified: Some(modified_of(&object)),
            metadata: metadata(&extra),
            content_type: content_type(extra.content_type),
            content_encoding: extra.content_encoding,
            content_language: extra.content_language,
            content_disposition: extra.content_disposition,
            cache_control: extra.cache_control,
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        count(&self.counters.head);
        let input = req.input;
        only_current(input.version_id.as_deref(), input.part_number)?;
        let object = self.store.get(&input.bucket, &input.key)?;
        read_conditions(input.if_match, input.if_none_match, input.if_modified_since, input.if_unmodified_since)
            .check_read(&object)?;
        let (start, end) = span(input.range, object.size)?;
        let extra = object.extra.as_deref().cloned().unwrap_or_default();
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".into()),
            content_length: i64::try_from(end - start).ok(),
            e_tag: Some(etag_of(&object)),
            last_modified: Some(modified_of(&object)),
            metadata: metadata(&extra),
            content_type: content_type(extra.content_type),
            content_encoding: extra.content_encoding,
            content_language: extra.content_language,
            content_disposition: extra.content_disposition,
            cache_control: extra.cache_control,
            ..HeadObjectOutput::default()
        }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        count(&self.counters.put);
        let S3Request { input, headers, trailing_headers, .. } = req;
        let conditions = Conditions::of_write(input.if_match, input.if_none_match);
        let checksums = Checksum {
            checksum_crc32: input.checksum_crc32,
            checksum_crc32c: input.checksum_crc32c,
            checksum_crc64nvme: input.checksum_crc64nvme,
            checksum_sha1: input.checksum_sha1,
            checksum_sha256: input.checksum_sha256,
            ..Checksum::default()
        };
        let (length, md5) = (input.content_length, input.content_md5);
        let promise = promise(length, md5, checksums, (&headers, trailing_headers));
        self.store.bucket(&input.bucket, |_| ())?;
        let received = receive(&self.store, input.body, promise).await?;
        let extra = Extra {
            metadata: input.metadata.unwrap_or_default().into_iter().collect(),
            content_type: input.content_type,
            content_encoding: input.content_encoding.and_then(without_chunking),
            content_language: input.content_language,
            content_disposition: input.content_disposition,
            cache_control: input.cache_control,
        };
        let object = Object {
            etag: received.md5,
            size: received.size,
            modified_s: self.now_s(),
            extra: extra.boxed(),
            segments: received.segments,
        };
        let object = self.store.put(&input.bucket, &input.key, object, &conditions)?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(etag_of(&object)), ..PutObjectOutput::default() }))
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        count(&self.counters.copy);
        let object = self.copy(req.input, &req.headers)?;
        let result = CopyObjectResult {
            e_tag: Some(etag_of(&object)),
            last_modified: Some(modified_of(&object)),
            ..CopyObjectResult::default()
        };
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..CopyObjectOutput::default() }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        count(&self.counters.delete);
        let input = req.input;
        only_current(input.version_id.as_deref(), None)?;
        let conditions = Conditions {
            matches: input.if_match,
            size: input.if_match_size,
            modified: input.if_match_last_modified_time,
            ..Conditions::default()
        };
        self.store.delete(&input.bucket, &input.key, &conditions)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        count(&self.counters.delete);
        let input = req.input;
        self.store.bucket(&input.bucket, |_| ())?;
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for object in input.delete.objects {
            let conditions = Conditions {
                matches: object.e_tag.map(ETagCondition::ETag),
                size: object.size,
                modified: object.last_modified_time,
                ..Conditions::default()
            };
            let result = only_current(object.version_id.as_deref(), None)
                .and_then(|()| self.store.delete(&input.bucket, &object.key, &conditions));
            match result {
                Ok(()) => deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() }),
                Err(error) => errors.push(Error {
                    key: Some(object.key),
                    code: Some(error.code().as_str().into()),
                    message: error.message().map(String::from),
                    ..Error::default()
                }),
            }
        }
        let deleted = if input.delete.quiet == Some(true) { None } else { Some(deleted) };
        let output = DeleteObjectsOutput { deleted, errors: Some(errors), ..DeleteObjectsOutput::default() };
        Ok(S3Response::new(output))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        count(&self.counters.list);
        listing::list_v2(&self.store, req.input).map(S3Response::new)
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        count(&self.counters.list);
        listing::list_v1(&self.store, req.input).map(S3Response::new)
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        count(&self.counters.create_upload);
        let input = req.input;
        let extra = Extra {
            metadata: input.metadata.unwrap_or_default().into_iter().collect(),
            content_type: input.content_type,
            content_encoding: input.content_encoding,
            content_language: input.content_language,
            content_disposition: input.content_disposition,
            cache_control: input.cache_control,
        };
        let upload = Upload {
            bucket: input.bucket.clone(),
            key: input.key.clone(),
            initiated_s: self.now_s(),
            extra: extra.boxed(),
            parts: Default::default(),
        };
        let number = self.store.begin_upload(upload)?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(upload_text(number)),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        count(&self.counters.upload_part);
        let S3Request { input, headers, trailing_headers, .. } = req;
        let upload = upload_number(&input.upload_id)?;
        let number = multipart::part_number(input.part_number)?;
        let at = (input.bucket.as_str(), input.key.as_str());
        self.store.upload(upload, at, |_| ())?;
        let checksums = Checksum {
            checksum_crc32: input.checksum_crc32,
            checksum_crc32c: input.checksum_crc32c,
            checksum_crc64nvme: input.checksum_crc64nvme,
            checksum_sha1: input.checksum_sha1,
            checksum_sha256: input.checksum_sha256,
            ..Checksum::default()
        };
        let (length, md5) = (input.content_length, input.content_md5);
        let promise = promise(length, md5, checksums, (&headers, trailing_headers));
        let part = multipart::part(receive(&self.store, input.body, promise).await?, self.now_s());
        let e_tag = Some(ETag::Strong(part.etag.clone()));
        self.store.put_part(upload, at, number, part)?;
        Ok(S3Response::new(UploadPartOutput { e_tag, ..UploadPartOutput::default() }))
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        count(&self.counters.copy);
        let input = req.input;
        let upload = upload_number(&input.upload_id)?;
        let number = multipart::part_number(input.part_number)?;
        let part = multipart::copied_part(&self.store, &input, self.now_s())?;
        let result = CopyPartResult {
            e_tag: Some(ETag::Strong(part.etag.clone())),
            last_modified: Some(timestamp(part.modified_s)),
            ..CopyPartResult::default()
        };
        self.store.put_part(upload, (&input.bucket, &input.key), number, part)?;
        Ok(S3Response::new(UploadPartCopyOutput { copy_part_result: Some(result), ..Default::default() }))
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        count(&self.counters.list_parts);
        listing::list_parts(&self.store, req.input).map(S3Response::new)
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        count(&self.counters.list_uploads);
        listing::list_uploads(&self.store, req.input).map(S3Response::new)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        count(&self.counters.complete_upload);
        let input = req.input;
        let upload = upload_number(&input.upload_id)?;
        let conditions = Conditions::of_write(input.if_match, input.if_none_match);
        let named = input.multipart_upload.and_then(|named| named.parts).unwrap_or_default();
        let (minimum, now_s) = (self.minimum_part_bytes, self.now_s());
        let object = self.store.complete_upload(upload, (&input.bucket, &input.key), &conditions, |upload| {
            multipart::object_of(upload, &named, minimum, now_s)
        })?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            e_tag: Some(etag_of(&object)),
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        count(&self.counters.abort_upload);
        let input = req.input;
        self.store.abort_upload(upload_number(&input.upload_id)?, (&input.bucket, &input.key))?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        count(&self.counters.bucket);
        if !self.store.create_bucket(&req.input.bucket)? {
            return Err(s3_error!(BucketAlreadyOwnedByYou, "The bucket is there already"));
        }
        let location = Some(format!("/{}", req.input.bucket));
        Ok(S3Response::new(CreateBucketOutput { location }))
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> S3Result<S3Response<DeleteBucketOutput>> {
        count(&self.counters.bucket);
        self.store.delete_bucket(&req.input.bucket)?;
        Ok(S3Response::new(DeleteBucketOutput::default()))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        count(&self.counters.bucket);
        self.store.bucket(&req.input.bucket, |_| ())?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        count(&self.counters.bucket);
        let bucket = |name| Bucket { name: Some(name), creation_date: Some(timestamp(0)), ..Bucket::default() };
        let buckets = self.store.buckets().into_iter().map(bucket).collect();
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(buckets), ..ListBucketsOutput::default() }))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        count(&self.counters.bucket);
        self.store.bucket(&req.input.bucket, |_| ())?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }
}

fn read_conditions(
    matches: Option<ETagCondition>,
    none_matches: Option<ETagCondition>,
    modified_since: Option<Timestamp>,
    unmodified_since: Option<Timestamp>,
) -> Conditions {
    Conditions { matches, none_matches, modified_since, unmodified_since, ..Conditions::default() }
}

/// Start and end of what is read; an unsatisfiable range is told the size, as HTTP has it.
fn span(range: Option<Range>, size: u64) -> S3Result<(u64, u64)> {
    let Some(range) = range else { return Ok((0, size)) };
    match range.check(size) {
        Ok(span) if span.start < span.end => Ok((span.start, span.end)),
        _ => {
            let mut error = s3_error!(InvalidRange, "The requested range is not satisfiable");
            if let Ok(value) = http::HeaderValue::from_str(&format!("bytes */{size}")) {
                error.set_headers([(http::header::CONTENT_RANGE, value)].into_iter().collect());
            }
            Err(error)
        }
    }
}

/// Refuses what would need object versions or part boundaries: an answer about something else would be wrong.
fn only_current(version: Option<&str>, part: Option<i32>) -> S3Result<()> {
    match (version, part) {
        (None | Some("null"), None) => Ok(()),
        (None | Some("null"), Some(_)) => Err(s3_error!(NotImplemented, "partNumber of a finished object")),
        (Some(_), _) => Err(s3_error!(NoSuchVersion, "The specified version does not exist.")),
    }
}

fn condition(headers: &HeaderMap, name: &str) -> S3Result<Option<ETagCondition>> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let parsed = ETagCondition::parse_http_header(value.as_bytes());
    parsed.map(Some).map_err(|error| s3_error!(error, InvalidArgument, "{name}"))
}

fn promise(
    length: Option<i64>,
    md5: Option<String>,
    checksums: Checksum,
    (headers, trailers): (&HeaderMap, Option<TrailingHeaders>),
) -> Promise {
    let announced = headers.get("x-amz-trailer").and_then(|value| value.to_str().ok()).unwrap_or_default().into();
    Promise { length, md5, checksums, trailers, announced }
}

fn metadata(extra: &Extra) -> Option<Metadata> {
    if extra.metadata.is_empty() { None } else { Some(extra.metadata.clone().into_iter().collect()) }
}

fn content_type(known: Option<String>) -> Option<String> {
    known.or_else(|| Some("binary/octet-stream".into()))
}

/// `aws-chunked` is how content travelled, not what it is.
fn without_chunking(encoding: String) -> Option<String> {
    let kept: Vec<&str> = encoding.split(',').map(str::trim).filter(|name| *name != "aws-chunked").collect();
    if kept.is_empty() { None } else { Some(kept.join(",")) }
}
