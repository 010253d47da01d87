//! Stat and ranged read: an answer counts only when status, range, length and version agree with the question.

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use penstock_types::{
    ByteRange, Error, ErrorKind, ObjectAttributes, ObjectBody, ObjectKey, ObjectStat, ReadRequest, Result, Version,
};

use super::version::{is_weak, quoted, version_among, version_in, weak_version};
use super::{Call, Purpose, Refusal, S3, expect_status, modified_ms};
use crate::check;

/// Names of user metadata begin with it on the wire.
pub(super) const METADATA_PREFIX: &str = "x-amz-meta-";
/// Headers that a store keeps with an object and drops when its metadata is replaced; sorted.
pub(super) const KEPT_HEADERS: [&str; 7] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
    "x-amz-storage-class",
];

impl S3 {
    pub(super) async fn stat_object(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let action = self.action("stat", key);
        let call = Call::new(Method::HEAD, self.address.uri(key, &[])?);
        let mut response = self.send(&action, call.clone()).await?;
        if !response.status().is_success() {
            let refusal = self.explained(&action, key, &response).await;
            if !self.renewed(&refusal) {
                return Err(self.error_of(&action, Purpose::Plain, &refusal));
            }
            self.metrics.source_requests.inc();
            response = self.succeed(&action, Purpose::Plain, call).await?;
        }
        expect_status(&action, response.status(), &[StatusCode::OK])?;
        let size = content_length(response.headers())
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, &action, "the answer has no Content-Length"))?;
        let attributes = attributes_in(&action, response.headers(), size, None)?;
        self.notice_version(&attributes.version);
        Ok(ObjectStat { attributes, metadata: metadata_in(response.headers()), headers: kept_in(response.headers()) })
    }

    /// A refused HEAD has no body to say why; one byte asked for by GET gets the store's words.
    async fn explained(&self, action: &str, key: &ObjectKey, response: &Response<Incoming>) -> Refusal {
        let silent = Refusal::read(response.status(), response.headers(), &Bytes::new());
        if !silent.is_silent() {
            return silent;
        }
        let Ok(uri) = self.address.uri(key, &[]) else { return silent };
        self.metrics.source_requests.inc();
        let call = Call::new(Method::GET, uri).header(header::RANGE, HeaderValue::from_static("bytes=0-0"));
        match self.send(action, call).await {
            Ok(response) if response.status() == silent.status => self.refusal(action, response).await,
            _ => silent,
        }
    }

    pub(super) async fn read_object(&self, request: ReadRequest) -> Result<ObjectBody> {
        let action = self.action("read", &request.key);
        check::range(&action, request.range, u64::MAX)?;
        let ByteRange { start, end } = request.range;
        let mut call = Call::new(Method::GET, self.address.uri(&request.key, &[])?).text(
            &action,
            header::RANGE,
            &format!("bytes={start}-{}", end - 1),
        )?;
        // For a weak one there is no condition: stores compare times finer than they tell them.
        if let Some(version) = request.version.as_ref().filter(|version| !is_weak(version)) {
            call = call.text(&action, header::IF_MATCH, &quoted(version))?;
        }
        let purpose = if request.version.is_some() { Purpose::PinnedRead } else { Purpose::Plain };
        let response = self.succeed(&action, purpose, call).await?;
        let size = check_answer(&action, purpose, &response, request.range)?;
        let attributes = attributes_in(&action, response.headers(), size, request.version.as_ref())?;
        // A store that ignores the condition gives itself away by the version it answers with.
        check::pinned(&action, request.version.as_ref(), &attributes.version)?;
        let length_is_declared = response.headers().contains_key(header::CONTENT_LENGTH);
        let chunks = checked(action, response.into_body(), request.range.len(), length_is_declared);
        Ok(ObjectBody { attributes, range: request.range, chunks })
    }
}

/// Compares status, range and length with what was asked. Returns the size of the object.
fn check_answer<B>(action: &str, purpose: Purpose, response: &Response<B>, asked: ByteRange) -> Result<u64> {
    let (status, headers) = (response.status(), response.headers());
    let corrupt = |reason: String| Error::new(ErrorKind::Corrupt, action, reason).fact("asked", shown(asked));
    let length = content_length(headers);
    let size = match status {
        StatusCode::PARTIAL_CONTENT => {
            let text = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let text = text.ok_or_else(|| corrupt("a part was answered without a Content-Range".to_owned()))?;
            let (answered, size) =
                parse_content_range(text).ok_or_else(|| corrupt(format!("Content-Range {text:?} cannot be read")))?;
            check::range(action, asked, size)?;
            if answered != asked {
                return Err(corrupt("another range was answered".to_owned()).fact("answered", shown(answered)));
            }
            size
        }
        StatusCode::OK => {
            // Right only where the range is the whole object: then a store may leave Content-Range out.
            let size = length.ok_or_else(|| corrupt("the whole object was answered without a length".to_owned()))?;
            if asked.start != 0 || size > asked.end {
                return Err(corrupt("the whole object was answered instead of a range".to_owned()).fact("size", size));
            }
            if size < asked.end && purpose == Purpose::PinnedRead {
                // Whoever pins a version knows its size: this is some page that stands in for the object.
                return Err(corrupt("something shorter than the range was answered".to_owned()).fact("size", size));
            }
            check::range(action, asked, size)?;
            size
        }
        _ => return Err(corrupt(format!("the store answers with status {}", status.as_u16()))),
    };
    match length {
        Some(length) if length != asked.len() => {
            Err(corrupt("Content-Length contradicts the range".to_owned()).fact("length", length))
        }
        _ => Ok(size),
    }
}

fn shown(range: ByteRange) -> String {
    format!("{}..{}", range.start, range.end)
}

/// `bytes START-LAST/SIZE`.
fn parse_content_range(text: &str) -> Option<(ByteRange, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, end, size) = (start.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?, size.parse().ok()?);
    (start < end && end <= size).then(|| (ByteRange::new(start, end), size))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What an answer says of its object, in the terms of the version that was asked for: a store may list an object
/// without the ETag that its answers have. An answer without one to who asked by one is `Corrupt`.
fn attributes_in(action: &str, headers: &HeaderMap, size: u64, asked: Option<&Version>) -> Result<ObjectAttributes> {
    let modified = headers.get(header::LAST_MODIFIED).and_then(|value| modified_ms(value.to_str().ok()?));
    let modified_ms =
        modified.ok_or_else(|| Error::new(ErrorKind::Corrupt, action, "the answer has no Last-Modified"))?;
    let version = match asked {
        Some(asked) if is_weak(asked) => weak_version(modified_ms, size),
        Some(_) => version_in(action, headers)?,
        None => version_among(headers).unwrap_or_else(|| weak_version(modified_ms, size)),
    };
    Ok(ObjectAttributes { size, modified_ms, version })
}

fn metadata_in(headers: &HeaderMap) -> Vec<(String, String)> {
    let of_user = |(name, value): (&HeaderName, &HeaderValue)| {
        let name = name.as_str().strip_prefix(METADATA_PREFIX)?;
        Some((name.to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
    };
    let mut metadata: Vec<(String, String)> = headers.iter().filter_map(of_user).collect();
    metadata.sort();
    metadata
}

/// The headers that belong to the object and have to be said again of a copy.
fn kept_in(headers: &HeaderMap) -> Vec<(String, String)> {
    let value = |name: &str| Some((name.to_owned(), headers.get(name)?.to_str().ok()?.to_owned()));
    KEPT_HEADERS.iter().filter_map(|name| value(name)).collect()
}

/// What is left of a body that is being checked.
struct Checked {
    action: String,
    body: Incoming,
    expected: u64,
    delivered: u64,
    /// With a declared length the transport itself refuses a body that runs over.
    length_is_declared: bool,
}

/// The body's bytes, exactly `expected` of them. Where no length was declared, the last chunk is held back until
/// the end is seen, so that no byte of a body that runs over looks like the end of a good one.
fn checked(
    action: String,
    body: Incoming,
    expected: u64,
    length_is_declared: bool,
) -> BoxStream<'static, Result<Bytes>> {
    let state = Checked { action, body, expected, delivered: 0, length_is_declared };
    let steps = futures_util::stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        match state.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(state))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    steps.boxed()
}

impl Checked {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(chunk) = self.chunk().await? else {
            if self.delivered == self.expected {
                return Ok(None);
            }
            return Err(self.broken(ErrorKind::Unavailable, "the body ended too early"));
        };
        self.delivered += chunk.len() as u64;
        if self.delivered > self.expected {
            return Err(self.broken(ErrorKind::Corrupt, "the body is longer than the range"));
        }
        if self.delivered == self.expected && !self.length_is_declared && self.chunk().await?.is_some() {
            return Err(self.broken(ErrorKind::Corrupt, "the body is longer than the range"));
        }
        Ok(Some(chunk))
    }

    /// The next bytes that are not empty.
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| {
                self.broken(ErrorKind::Unavailable, &format!("the connection broke in mid-body: {error}"))
            })?;
            match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                _ => {}
            }
        }
        Ok(None)
    }

    fn broken(&self, kind: ErrorKind, reason: &str) -> Error {
        Error::new(kind, &self.action, reason).fact("delivered", self.delivered).fact("expected", self.expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    fn answer(status: u16, pairs: &[(&str, &str)]) -> Response<()> {
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        *answer.headers_mut() = headers(pairs);
        answer
    }

    fn verdict(status: u16, pairs: &[(&str, &str)]) -> Result<u64, ErrorKind> {
        check_answer("read", Purpose::Plain, &answer(status, pairs), ByteRange::new(10, 20))
            .map_err(|error| error.kind())
    }

    #[test]
    fn only_the_range_that_was_asked_for_passes() {
        assert_eq!(verdict(206, &[("content-range", "bytes 10-19/100"), ("content-length", "10")]), Ok(100));
        assert_eq!(verdict(206, &[("content-range", "bytes 10-19/100")]), Ok(100));
        let corrupt = Err(ErrorKind::Corrupt);
        assert_eq!(verdict(206, &[("content-length", "10")]), corrupt);
        assert_eq!(verdict(206, &[("content-range", "bytes 0-9/100"), ("content-length", "10")]), corrupt);
        assert_eq!(verdict(206, &[("content-range", "bytes 10-18/100"), ("content-length", "9")]), corrupt);
        assert_eq!(verdict(206, &[("content-range", "bytes 10-19/100"), ("content-length", "11")]), corrupt);
        assert_eq!(verdict(206, &[("content-range", "bytes 10-19/*"), ("content-length", "10")]), corrupt);
        assert_eq!(
            verdict(206, &[("content-range", "bytes 10-14/15"), ("content-length", "5")]),
            Err(ErrorKind::InvalidInput)
        );
        assert_eq!(verdict(200, &[("content-length", "100")]), corrupt);
        assert_eq!(verdict(204, &[]), corrupt);
    }

    #[test]
    fn a_whole_object_may_be_answered_with_200() {
        let check = |purpose, length: &[(&str, &str)]| {
            check_answer("read", purpose, &answer(200, length), ByteRange::new(0, 20)).map_err(|error| error.kind())
        };
        assert_eq!(check(Purpose::Plain, &[("content-length", "20")]), Ok(20));
        assert_eq!(check(Purpose::Plain, &[("content-length", "30")]), Err(ErrorKind::Corrupt));
        assert_eq!(check(Purpose::Plain, &[("content-length", "10")]), Err(ErrorKind::InvalidInput));
        assert_eq!(check(Purpose::Plain, &[]), Err(ErrorKind::Corrupt));
        assert_eq!(check(Purpose::PinnedRead, &[("content-length", "20")]), Ok(20));
        assert_eq!(check(Purpose::PinnedRead, &[("content-length", "10")]), Err(ErrorKind::Corrupt));
    }

    proptest! {
        #[test]
        fn a_content_range_that_is_read_is_inside_its_object(text in "(bytes )?[0-9*]{0,21}-?[0-9]{0,21}/?[0-9*]{0,21}") {
            if let Some((range, size)) = parse_content_range(&text) {
                prop_assert!(!range.is_empty() && range.end <= size);
            }
        }
    }
}
