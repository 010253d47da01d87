//! Objects without an ETag: their version is their time and size, and bytes of another one are never delivered for it.
#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use penstock_types::{ByteRange, ErrorKind, ListRequest, ObjectKey, Precondition, PutRequest, Version};

use support::{Answer, Asked, ByteServer, anonymous, read};

const DEADLINE: Duration = Duration::from_secs(10);
const RANGE: ByteRange = ByteRange { start: 10, end: 20 };
const THEN: &str = "Wed, 21 Oct 2015 07:28:00 GMT";
const LATER: &str = "Wed, 21 Oct 2015 07:28:01 GMT";
const VERSION: &str = "weak 1445412480-100";

fn head(modified: &str, size: usize) -> Answer {
    Answer::raw(
        format!("HTTP/1.1 200 OK\r\nLast-Modified: {modified}\r\nContent-Length: {size}\r\n\r\n"),
        support::Then::KeepOpen,
    )
}

/// The answer to a ranged read of an object of `size` bytes, all of them `filling`.
fn part(asked: &Asked, modified: &str, size: usize, filling: u8) -> Answer {
    let (start, last) = asked.header("range").unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (start, last) = (start.parse::<usize>().unwrap(), last.parse::<usize>().unwrap());
    let range = format!("bytes {start}-{last}/{size}");
    let headers = [("Last-Modified", modified), ("Content-Range", range.as_str())];
    Answer::of("206 Partial Content", &headers, &vec![filling; last - start + 1])
}

fn is_head(asked: &Asked) -> bool {
    asked.line.starts_with("HEAD")
}

#[tokio::test]
async fn a_listing_a_stat_and_a_read_give_the_same_version_and_the_source_is_known_to_be_weak() {
    let server = ByteServer::start(|asked| match &asked.line {
        line if line.contains("list-type") => Answer::of(
            "200 OK",
            &[],
            b"<ListBucketResult><Contents><Key>k</Key><LastModified>2015-10-21T07:28:00.678Z</LastModified><ETag></ETag>\
              <Size>100</Size></Contents></ListBucketResult>",
        ),
        _ if is_head(asked) => head(THEN, 100),
        _ => {
            assert_eq!(asked.header("if-match"), None, "there is no ETag to ask for");
            part(asked, THEN, 100, 7)
        }
    })
    .await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    assert!(!source.observed().asked);
    assert!(!source.observed().weak_versions);
    let page = source.list(ListRequest { limit: 10, ..ListRequest::default() }).await.unwrap();
    let stat = source.stat(&ObjectKey::from("k")).await.unwrap();
    assert_eq!(page.objects[0].attributes, stat.attributes);
    assert_eq!(stat.attributes.version.as_str(), VERSION);
    assert_eq!(read(&*source, RANGE, Some(VERSION)).await.unwrap(), [7; 10].as_slice());
    assert!(source.observed().asked);
    assert!(source.observed().weak_versions);
    assert_eq!(server.asked(), 4, "one look behind the bytes");
}

#[tokio::test]
async fn an_object_of_another_time_or_size_is_another_version() {
    for (modified, size) in [(LATER, 100), (THEN, 101)] {
        let server = ByteServer::start(move |asked| part(asked, modified, size, 8)).await;
        let (source, _) = anonymous(&server.endpoint(), DEADLINE);
        assert_eq!(read(&*source, RANGE, Some(VERSION)).await.unwrap_err().kind(), ErrorKind::StaleVersion);
        assert_eq!(server.asked(), 1);
    }
}

#[tokio::test]
async fn what_changes_while_its_bytes_are_on_the_way_is_not_delivered() {
    let server = ByteServer::start(|asked| match is_head(asked) {
        true => head(LATER, 100),
        false => part(asked, THEN, 100, 9),
    })
    .await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    assert_eq!(read(&*source, RANGE, Some(VERSION)).await.unwrap_err().kind(), ErrorKind::StaleVersion);
    let gone = ByteServer::start(|asked| match is_head(asked) {
        true => Answer::raw("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", support::Then::Close),
        false if asked.header("range") == Some("bytes=0-0") => Answer::error("404 Not Found", "NoSuchKey"),
        false => part(asked, THEN, 100, 9),
    })
    .await;
    let (source, _) = anonymous(&gone.endpoint(), DEADLINE);
    assert_eq!(read(&*source, RANGE, Some(VERSION)).await.unwrap_err().kind(), ErrorKind::StaleVersion);
}

#[tokio::test]
async fn a_long_body_is_looked_behind_more_than_once_and_ends_where_it_changed() {
    const SIZE: usize = 3 << 20;
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = looks.clone();
    let server = ByteServer::start(move |asked| match is_head(asked) {
        true => head(if counted.fetch_add(1, Ordering::SeqCst) == 0 { THEN } else { LATER }, SIZE),
        false => part(asked, THEN, SIZE, 1),
    })
    .await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    let version = format!("weak 1445412480-{SIZE}");
    let whole = ByteRange::new(0, SIZE as u64);
    assert_eq!(read(&*source, whole, Some(&version)).await.unwrap_err().kind(), ErrorKind::StaleVersion);
    assert_eq!(looks.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn who_asked_by_an_etag_gets_no_bytes_of_an_answer_without_one() {
    let server = ByteServer::start(|asked| part(asked, THEN, 100, 5)).await;
    let (source, _) = anonymous(&server.endpoint(), Duration::from_secs(2));
    assert_eq!(read(&*source, RANGE, Some("e")).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_store_that_lists_without_the_etag_of_its_answers_is_read_by_time_and_size() {
    let server = ByteServer::start(|asked| {
        let mut answer = if is_head(asked) { head(THEN, 100) } else { part(asked, THEN, 100, 6) };
        let status_end = answer.bytes.windows(2).position(|bytes| bytes == b"\r\n").unwrap() + 2;
        answer.bytes.splice(status_end..status_end, *b"ETag: \"e\"\r\n");
        answer
    })
    .await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    assert_eq!(read(&*source, RANGE, Some(VERSION)).await.unwrap(), [6; 10].as_slice());
}

#[tokio::test]
async fn nothing_is_changed_on_condition_of_a_weak_version_and_what_is_gone_is_said_to_be() {
    let server = ByteServer::start(|asked| {
        assert!(is_head(asked) || asked.header("range").is_some(), "only looked at: {}", asked.line);
        match asked.line.contains("/gone") {
            false => head(THEN, 100),
            true => Answer::error("404 Not Found", "NoSuchKey"),
        }
    })
    .await;
    let (source, _) = anonymous(&server.endpoint(), DEADLINE);
    let version = Version::from(VERSION);
    let put = |key: &str| PutRequest {
        key: ObjectKey::from(key),
        body: b"new".as_slice().into(),
        precondition: Precondition::Version(version.clone()),
        metadata: Vec::new(),
    };
    assert_eq!(source.put(put("k")).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(source.delete(&ObjectKey::from("k"), Some(&version)).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(source.put(put("gone")).await.unwrap_err().kind(), ErrorKind::NotFound);
    source.delete(&ObjectKey::from("gone"), Some(&version)).await.unwrap();
}
