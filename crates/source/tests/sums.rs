//! The checksum of what is put goes along, and what the store says of it is compared.
#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use penstock_source::open_in;
use penstock_types::{ErrorKind, ObjectAttributes, ObjectKey, Precondition, PutRequest, Result, Source, SourceConfig};
use support::{Answer, Asked, ByteServer, environment, parts, spec};

const SUM: &str = "x-amz-checksum-crc32c";
/// CRC32C of `hello` as AWS writes it.
const HELLO: &str = "mnG7TA==";

/// A store that answers puts so, and everything else as if the object were there.
async fn store(put: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> (ByteServer, Arc<Mutex<Vec<Asked>>>) {
    let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let noted = Arc::clone(&asked);
    let server = ByteServer::start(move |request| {
        noted.lock().unwrap().push(request.clone());
        match request.line.split(' ').next().unwrap() {
            "PUT" => put(request),
            "DELETE" => Answer::of("204 No Content", &[], b""),
            _ => Answer::of("404 Not Found", &[], b""),
        }
    })
    .await;
    (server, asked)
}

fn stored(sum: Option<&str>) -> Answer {
    let mut headers = vec![("ETag", "\"v1\"")];
    headers.extend(sum.map(|sum| (SUM, sum)));
    Answer::of("200 OK", &headers, b"")
}

async fn put(source: &dyn Source) -> Result<ObjectAttributes> {
    let (key, body) = (ObjectKey::from("k"), Bytes::from_static(b"hello"));
    source.put(PutRequest { key, body, precondition: Precondition::None, metadata: Vec::new() }).await
}

fn opened(server: &ByteServer) -> Arc<dyn Source> {
    open_in(&spec(&server.endpoint(), "anonymous"), &parts(Duration::from_secs(10)), &environment(&[])).unwrap()
}

fn puts(asked: &Mutex<Vec<Asked>>) -> Vec<Option<String>> {
    let asked = asked.lock().unwrap();
    let puts = asked.iter().filter(|asked| asked.line.starts_with("PUT"));
    puts.map(|asked| asked.header(SUM).map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_put_carries_its_checksum_and_a_store_may_say_the_same_another_or_none() {
    let answers: [(Option<&str>, bool); 4] =
        [(Some(HELLO), true), (None, true), (Some("AAAAAA==-2"), true), (Some("AAAAAA=="), false)];
    for (said, is_right) in answers {
        let (server, asked) = store(move |_| stored(said)).await;
        let outcome = put(&*opened(&server)).await;
        assert_eq!(puts(&asked)[0].as_deref(), Some(HELLO), "{said:?}");
        if is_right {
            assert_eq!(outcome.unwrap().version.as_str(), "v1");
        } else {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Corrupt);
            let asked = asked.lock().unwrap();
            let removed = asked.iter().find(|asked| asked.line.starts_with("DELETE")).expect("nobody reads it");
            assert_eq!(removed.header("If-Match"), Some("\"v1\""));
        }
    }
}

#[tokio::test]
async fn a_store_that_will_not_have_checksums_gets_none_from_then_on() {
    for (status, code) in [("501 Not Implemented", "NotImplemented"), ("400 Bad Request", "InvalidRequest")] {
        let (server, asked) = store(move |request| match request.header(SUM) {
            Some(_) => Answer::error(status, code),
            None => stored(None),
        })
        .await;
        let source = opened(&server);
        put(&*source).await.unwrap();
        put(&*source).await.unwrap();
        assert_eq!(puts(&asked), [Some(HELLO.to_owned()), None, None], "{code}");
    }
}

#[tokio::test]
async fn what_is_refused_for_another_reason_says_nothing_of_checksums() {
    let (server, asked) = store(|_| Answer::error("400 Bad Request", "InvalidRequest")).await;
    let source = opened(&server);
    for _ in 0..2 {
        put(&*source).await.unwrap_err();
    }
    assert_eq!(puts(&asked), [Some(HELLO.to_owned()), None, Some(HELLO.to_owned()), None]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configured_upload_rate_holds_over_all_writes() {
    let (server, _) = store(|_| stored(None)).await;
    let mut parts = parts(Duration::from_secs(10));
    parts.config =
        SourceConfig { max_requests: 8, max_attempts: 1, max_bytes_per_s: None, max_upload_bytes_per_s: Some(4 << 20) };
    let source = open_in(&spec(&server.endpoint(), "anonymous"), &parts, &environment(&[])).unwrap();
    let started = Instant::now();
    let puts = (0..4).map(|number| {
        let (key, body) = (ObjectKey::from(format!("{number}").as_str()), Bytes::from(vec![7; 1 << 20]));
        source.put(PutRequest { key, body, precondition: Precondition::None, metadata: Vec::new() })
    });
    for outcome in futures_util::future::join_all(puts).await {
        outcome.unwrap();
    }
    let elapsed = started.elapsed().as_secs_f64();
    assert!(elapsed >= 0.8, "4 MiB at 4 MiB/s took {elapsed:.2} s");
}
