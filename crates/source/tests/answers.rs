//! Answers that lie, break or never come: retried within the deadline, then an error; never wrong bytes.
#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use penstock_types::{ByteRange, CompletedPart, ErrorKind, ObjectKey, Precondition, PutRequest, UploadId};

use support::{Answer, Asked, ByteServer, Then, anonymous, read};

/// A third of it is what silence costs; the rest is there for a busy machine.
const DEADLINE: Duration = Duration::from_secs(12);
/// For a source that never gets well.
const SHORT_DEADLINE: Duration = Duration::from_millis(1500);
const RANGE: ByteRange = ByteRange { start: 100, end: 200 };
const HEADERS: &str = "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nETag: \"v1\"\r\n";

fn content() -> Vec<u8> {
    (0..1000u32).map(|position| (position * 7 % 251) as u8).collect()
}

/// The right answer to whatever range is asked for.
fn right(asked: &Asked) -> Answer {
    let range = asked.header("range").unwrap().strip_prefix("bytes=").unwrap();
    let (start, last) = range.split_once('-').unwrap();
    let (start, end) = (start.parse::<usize>().unwrap(), last.parse::<usize>().unwrap() + 1);
    partial(&format!("bytes {start}-{}/1000", end - 1), Some(end - start), &content()[start..end], Then::KeepOpen)
}

fn partial(content_range: &str, length: Option<usize>, body: &[u8], then: Then) -> Answer {
    let length = match length {
        Some(length) => format!("Content-Length: {length}\r\n"),
        None => "Transfer-Encoding: chunked\r\n".to_owned(),
    };
    let head = format!("HTTP/1.1 206 Partial Content\r\n{HEADERS}Content-Range: {content_range}\r\n{length}\r\n");
    Answer::raw([head.as_bytes(), body].concat(), then)
}

fn chunked(parts: &[&[u8]], ended: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    if ended {
        bytes.extend_from_slice(b"0\r\n\r\n");
    }
    bytes
}

/// Name of each wrong answer and the answer.
fn wrong_answers() -> Vec<(&'static str, Answer)> {
    let all = content();
    let part = &all[100..200];
    let twice = [part, part].concat();
    let here = "bytes 100-199/1000";
    let page = b"<html><body>Please log in to the network</body></html>";
    vec![
        ("a short body", partial(here, Some(100), &part[..40], Then::Close)),
        ("a short body of chunks", partial(here, None, &chunked(&[&part[..40]], true), Then::KeepOpen)),
        ("chunks without an end", partial(here, None, &chunked(&[part], false), Then::Close)),
        ("a long body", partial(here, Some(150), &all[100..250], Then::KeepOpen)),
        ("a long body of chunks", partial(here, None, &chunked(&[&all[100..250]], true), Then::KeepOpen)),
        ("a body of chunks and more behind it", partial(here, None, &chunked(&[part, b"more"], true), Then::KeepOpen)),
        ("the body twice", partial(here, Some(200), &twice, Then::KeepOpen)),
        ("the body twice in chunks", partial(here, None, &chunked(&[part, part], true), Then::KeepOpen)),
        ("another range", partial("bytes 0-99/1000", Some(100), &all[..100], Then::KeepOpen)),
        ("no range", Answer::of("206 Partial Content", &[("ETag", "\"v1\"")], part)),
        ("the whole object", Answer::of("200 OK", &[("ETag", "\"v1\"")], &all)),
        ("a page with status 200", Answer::of("200 OK", &[("Content-Type", "text/html")], page)),
        ("a part without its version", Answer::of("206 Partial Content", &[("Content-Range", here)], part)),
        ("a reset in mid-body", partial(here, Some(100), &part[..40], Then::Reset)),
        ("a reset before the answer", Answer::raw("", Then::Reset)),
        ("an end before the answer", Answer::raw("", Then::Close)),
        ("another protocol", Answer::raw("SSH-2.0-OpenSSH_9.6\r\n", Then::Close)),
        ("nothing at all", Answer::raw("", Then::Silence)),
        ("nothing after the headers", partial(here, Some(100), b"", Then::Silence)),
        ("silence in mid-body", partial(here, Some(100), &part[..40], Then::Silence)),
        ("an internal error", Answer::error("500 Internal Server Error", "InternalError")),
        ("a wish for fewer requests", Answer::error("503 Slow Down", "SlowDown")),
    ]
}

#[tokio::test]
async fn a_wrong_answer_is_asked_for_again_and_the_right_bytes_are_delivered() {
    let reads = wrong_answers().into_iter().map(|(name, wrong)| async move {
        let server = ByteServer::start(move |asked| if asked.number == 0 { wrong.clone() } else { right(asked) }).await;
        let (source, metrics) = anonymous(&server.endpoint(), DEADLINE);
        let bytes = read(&*source, RANGE, Some("v1")).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(bytes, content()[100..200], "{name}");
        assert_eq!(server.asked(), 2, "{name}");
        assert_eq!(metrics.source_retries.get(), 1, "{name}");
        assert_eq!(metrics.source_in_flight.get(), 0, "{name}");
    });
    futures_util::future::join_all(reads).await;
}

#[tokio::test]
async fn a_source_that_is_always_wrong_is_an_error_within_the_deadline() {
    let tries = wrong_answers().into_iter().map(|(name, wrong)| async move {
        // What of the range came before an answer broke is right and may be delivered; so it breaks at once.
        let server = ByteServer::start(move |_| wrong.clone()).await;
        let (source, metrics) = anonymous(&server.endpoint(), SHORT_DEADLINE);
        let reading = tokio::time::timeout(DEADLINE * 5, async { read(&*source, RANGE, Some("v1")).await });
        let error = reading.await.expect(name).expect_err(name);
        assert!(error.is_transient(), "{name}: {error}");
        assert!(error.action().contains("s3://bucket/k"), "{name}: {error}");
        assert_eq!(metrics.source_failures.get(), 1, "{name}");
    });
    futures_util::future::join_all(tries).await;
}

#[tokio::test]
async fn a_broken_body_goes_on_where_it_broke() {
    let answer = |asked: &Asked| {
        let all = content();
        match asked.number {
            0 => partial("bytes 100-199/1000", Some(100), &all[100..140], Then::Close),
            1 => partial("bytes 140-199/1000", Some(60), &all[140..190], Then::Reset),
            _ => right(asked),
        }
    };
    let server = ByteServer::start(move |asked| {
        match asked.number {
            1 => assert_eq!(asked.header("range"), Some("bytes=140-199")),
            2 => assert_eq!(asked.header("if-match"), Some("\"v1\"")),
            _ => {}
        }
        answer(asked)
    })
    .await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    assert_eq!(read(&*source, RANGE, None).await.unwrap(), content()[100..200]);
}

#[tokio::test]
async fn a_body_is_never_made_of_two_versions() {
    let server = ByteServer::start(|asked| {
        let all = content();
        match asked.number {
            0 => partial("bytes 100-199/1000", Some(100), &all[100..140], Then::Close),
            _ => Answer::of(
                "206 Partial Content",
                &[
                    ("ETag", "\"v2\""),
                    ("Content-Range", "bytes 140-199/1000"),
                    ("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT"),
                ],
                &[0; 60],
            ),
        }
    })
    .await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    let error = read(&*source, RANGE, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StaleVersion, "{error}");
}

#[tokio::test]
async fn a_store_that_ignores_the_condition_is_found_out_by_its_answer() {
    let server = ByteServer::start(right).await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    let error = read(&*source, RANGE, Some("v0")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StaleVersion, "{error}");
    assert_eq!(server.asked(), 1, "a stale version is an answer and no failure");
}

#[tokio::test]
async fn the_wish_to_wait_is_granted() {
    let server = ByteServer::start(|asked| match asked.number {
        0 => Answer::of("503 Slow Down", &[("Retry-After", "1")], b""),
        _ => right(asked),
    })
    .await;
    let (source, metrics) = anonymous(&server.endpoint(), Duration::from_secs(5));
    let started = Instant::now();
    read(&*source, RANGE, None).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(metrics.source_throttled.get(), 1);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = ByteServer::start(right).await;
    let location = format!("{}/bucket/k", elsewhere.endpoint());
    let server =
        ByteServer::start(move |_| Answer::of("307 Temporary Redirect", &[("Location", &location)], b"")).await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    let error = read(&*source, RANGE, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert_eq!(elsewhere.asked(), 0);
}

#[tokio::test]
async fn an_error_document_with_status_200_is_an_error() {
    let failed = b"<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code><Message>We failed</Message></Error>";
    let server = ByteServer::start(|_| Answer::of("200 OK", &[], failed)).await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    let key = ObjectKey::from("k");
    let parts = [CompletedPart { number: 1, etag: "e".to_owned() }];
    let completed = source.complete_upload(&key, &UploadId("u".to_owned()), &parts, Precondition::None).await;
    assert_eq!(completed.unwrap_err().kind(), ErrorKind::Unavailable);
    let copy = penstock_types::CopyRequest {
        from: key.clone(),
        from_version: None,
        to: ObjectKey::from("to"),
        precondition: Precondition::None,
        description: None,
    };
    assert_eq!(source.copy(copy).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_listing_that_is_no_listing_is_corrupt() {
    let listing = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
    for body in ["<html><body>hello</body></html>", "{}", "", "<ListBucketResult><Contents>", listing] {
        let server = ByteServer::start(move |_| Answer::of("200 OK", &[], body.as_bytes())).await;
        let (source, _) = anonymous(&server.endpoint(), DEADLINE);
        let request = penstock_types::ListRequest { limit: 10, ..Default::default() };
        let error = source.list(request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{body:?}: {error}");
    }
}

fn write(metadata: &[(&str, &str)]) -> PutRequest {
    PutRequest {
        key: ObjectKey::from("k"),
        body: Bytes::from_static(b"content"),
        precondition: Precondition::Absent,
        metadata: metadata.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    }
}

/// Applies the first PUT and loses its answer; afterwards the object is there.
fn loses_the_first_reply(asked: &Asked) -> Answer {
    let is_put = asked.line.starts_with("PUT");
    match (asked.number, is_put) {
        (0, _) => Answer::raw("", Then::Reset),
        (_, true) => Answer::error("412 Precondition Failed", "PreconditionFailed"),
        (_, false) => Answer::raw(
            format!("HTTP/1.1 200 OK\r\n{HEADERS}x-amz-meta-penstock-operation: ours\r\nContent-Length: 7\r\n\r\n"),
            Then::KeepOpen,
        ),
    }
}

#[tokio::test]
async fn a_conditional_write_whose_reply_was_lost_is_settled_by_its_operation_id() {
    let server = ByteServer::start(loses_the_first_reply).await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    let attributes = source.put(write(&[("penstock-operation", "ours")])).await.unwrap();
    assert_eq!((attributes.version.as_str(), attributes.size), ("v1", 7));
}

#[tokio::test]
async fn the_operation_of_somebody_else_is_a_conflict() {
    let server = ByteServer::start(loses_the_first_reply).await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    let error = source.put(write(&[("penstock-operation", "another")])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
}

#[tokio::test]
async fn a_conditional_write_without_an_operation_id_is_not_sent_twice() {
    let server = ByteServer::start(loses_the_first_reply).await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    let error = source.put(write(&[])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn the_payload_of_a_signed_write_over_plain_http_is_signed() {
    let server = ByteServer::start(|asked| {
        let hash = asked.header("x-amz-content-sha256").unwrap_or("none").to_owned();
        Answer::of("403 Forbidden", &[("x-amz-request-id", &hash)], b"")
    })
    .await;
    let spec = support::spec(&server.endpoint(), "env");
    let source = penstock_source::open_in(&spec, &support::parts(DEADLINE), &support::with_keys()).unwrap();
    let error = source.put(write(&[])).await.unwrap_err().to_string();
    let hash = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
    assert!(error.contains(hash), "{error}");
}
