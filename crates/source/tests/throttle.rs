//! A store that admits so many requests a second and refuses the rest; and the limits that configuration sets.
#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod support;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use penstock_source::{SourceParts, open_in};
use penstock_types::{ByteRange, Source, SourceConfig};

use support::{Answer, ByteServer, environment, parts, read, spec};

const ADMITTED_PER_S: usize = 100;
/// A minute is simulated in the unit tests of the pace; `PENSTOCK_TEST_SOAK=1` takes a real one here.
const SECONDS: usize = 8;

fn one_byte() -> Answer {
    Answer::of(
        "206 Partial Content",
        &[("ETag", "\"v1\""), ("Content-Range", "bytes 0-0/1"), ("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")],
        b"x",
    )
}

fn opened(server: &ByteServer, parts: &SourceParts) -> Arc<dyn Source> {
    open_in(&spec(&server.endpoint(), "anonymous"), parts, &environment(&[])).expect("the spec is right")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_admits_100_requests_a_second_gives_everything_for_little_more_than_one_each() {
    let seconds = if std::env::var_os("PENSTOCK_TEST_SOAK").is_some() { 60 } else { SECONDS };
    let admitted = Mutex::new((Instant::now(), 0));
    let server = ByteServer::start(move |_| {
        let mut admitted = admitted.lock().unwrap();
        if admitted.0.elapsed() >= Duration::from_secs(1) {
            *admitted = (Instant::now(), 0);
        }
        admitted.1 += 1;
        if admitted.1 <= ADMITTED_PER_S { one_byte() } else { Answer::error("503 Slow Down", "SlowDown") }
    })
    .await;
    let parts = parts(Duration::from_secs(30));
    let source = opened(&server, &parts);
    let useful = seconds * ADMITTED_PER_S;
    let reads = stream::iter(0..useful).map(|_| read(&*source, ByteRange::new(0, 1), Some("v1")));
    let outcomes: Vec<_> = reads.buffer_unordered(256).collect().await;
    let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert_eq!(failed, 0, "{:?}", outcomes.iter().find(|outcome| outcome.is_err()));
    let ratio = server.asked() as f64 / useful as f64;
    assert!(ratio <= 1.2, "{} requests for {useful} useful ones: {ratio:.3}", server.asked());
    assert_eq!(parts.metrics.source_requests.get(), server.asked() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_requests_are_under_way_than_configured() {
    for max_requests in [1, 5] {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (current, highest) = (now.clone(), most.clone());
        let server = ByteServer::start(move |_| {
            highest.fetch_max(current.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            one_byte()
        })
        .await;
        let parts = SourceParts {
            config: SourceConfig { max_requests, max_attempts: 1, max_bytes_per_s: None, max_upload_bytes_per_s: None },
            ..parts(Duration::from_secs(10))
        };
        let source = opened(&server, &parts);
        let reads = stream::iter(0..50).map(|_| async {
            read(&*source, ByteRange::new(0, 1), None).await.unwrap();
            now.fetch_sub(1, Ordering::SeqCst);
        });
        reads.buffer_unordered(50).collect::<Vec<_>>().await;
        let most = most.load(Ordering::SeqCst);
        // A place is given back a moment before the test counts it.
        assert!((1..=max_requests + 1).contains(&most), "{most} at once where {max_requests} are allowed");
    }
}

#[tokio::test]
async fn a_request_is_tried_as_often_as_configured() {
    for max_attempts in [1, 3] {
        let server = ByteServer::start(|_| Answer::error("500 Internal Server Error", "InternalError")).await;
        let parts = SourceParts {
            config: SourceConfig { max_requests: 4, max_attempts, max_bytes_per_s: None, max_upload_bytes_per_s: None },
            ..parts(Duration::from_secs(10))
        };
        let source = opened(&server, &parts);
        read(&*source, ByteRange::new(0, 1), None).await.unwrap_err();
        assert_eq!(server.asked(), max_attempts as usize);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_bytes_a_second_arrive_than_configured() {
    const SIZE: u64 = 1 << 20;
    let body = vec![7u8; SIZE as usize];
    let server = ByteServer::start(move |_| {
        Answer::of(
            "206 Partial Content",
            &[
                ("ETag", "\"v1\""),
                ("Content-Range", "bytes 0-1048575/1048576"),
                ("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT"),
            ],
            &body,
        )
    })
    .await;
    let parts = SourceParts {
        config: SourceConfig {
            max_requests: 8,
            max_attempts: 1,
            max_bytes_per_s: Some(4 << 20),
            max_upload_bytes_per_s: None,
        },
        ..parts(Duration::from_secs(10))
    };
    let source = opened(&server, &parts);
    let started = Instant::now();
    let reads = stream::iter(0..4).map(|_| read(&*source, ByteRange::new(0, SIZE), None));
    let outcomes: Vec<_> = reads.buffer_unordered(4).collect().await;
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().is_ok_and(|bytes| bytes.len() as u64 == SIZE)));
    let elapsed = started.elapsed().as_secs_f64();
    assert!(elapsed >= 0.8, "4 MiB at 4 MiB/s took {elapsed:.2} s");
}
