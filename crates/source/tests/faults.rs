//! The calls of a recorded run fail once each, one by one, in every way a call can fail. The run must give the same
//! result, or say that it does not know what became of a write.
#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use penstock_source::{OPERATION_METADATA, decorate, open_in};
use penstock_testkit::{Fault, FaultySource};
use penstock_types::{
    ByteRange, CompletedPart, CopyRequest, ErrorKind, ListRequest, ObjectKey, Precondition, Priority, PutRequest,
    ReadRequest, Result, Source, SourceSpec,
};

use support::{environment, parts};

const SIZE: usize = 600_000;

/// Time is simulated: a deadline passes as soon as nothing else can happen.
const DEADLINE: Duration = Duration::from_secs(30);

fn content() -> Bytes {
    (0..SIZE).map(|position| (position * 31 % 253) as u8).collect::<Vec<_>>().into()
}

/// A new empty store of this name.
fn store(name: &str) -> Arc<dyn Source> {
    let spec = SourceSpec::Memory { name: format!("faults-{name}") };
    open_in(&spec, &parts(DEADLINE), &environment(&[])).unwrap()
}

fn with_retries(raw: Arc<FaultySource>) -> Arc<dyn Source> {
    decorate(raw, &parts(DEADLINE))
}

fn put(key: &str, precondition: Precondition) -> PutRequest {
    PutRequest {
        key: ObjectKey::from(key),
        body: content(),
        precondition,
        metadata: vec![(OPERATION_METADATA.to_owned(), format!("operation-of-{key}"))],
    }
}

async fn read(source: &dyn Source, key: &str, start: u64, end: u64) -> Result<Bytes> {
    let version = Some(source.stat(&ObjectKey::from(key)).await?.attributes.version);
    let range = ByteRange::new(start, end);
    let request = ReadRequest { key: ObjectKey::from(key), range, version, priority: Priority::Background };
    let mut body = source.read(request).await?;
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.chunks.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes.freeze())
}

/// Every method but those that are not sent twice; the result is everything that was seen.
async fn run(source: &dyn Source) -> Result<Vec<Bytes>> {
    let mut seen = Vec::new();
    source.put(put("a", Precondition::None)).await?;
    let version = source.put(put("b", Precondition::Absent)).await?.version;
    source.put(put("b", Precondition::Version(version))).await?;
    source
        .copy(CopyRequest {
            from: ObjectKey::from("a"),
            from_version: None,
            to: ObjectKey::from("c"),
            precondition: Precondition::Absent,
            description: Some(vec![(OPERATION_METADATA.to_owned(), "the-copy".to_owned())].into()),
        })
        .await?;
    let key = ObjectKey::from("up");
    let upload = source.begin_upload(&key, Vec::new().into()).await?;
    source.put_part(&key, &upload, 1, content()).await?;
    seen.push(format!("{} parts", source.list_parts(&key, &upload).await?.len()).into());
    source.abort_upload(&key, &upload).await?;
    source.delete(&ObjectKey::from("a"), None).await?;
    let page = source.list(ListRequest { limit: 10, ..ListRequest::default() }).await?;
    seen.push(page.objects.iter().map(|object| object.key.to_string()).collect::<Vec<_>>().join(" ").into());
    seen.push(read(source, "b", 0, SIZE as u64).await?);
    seen.push(read(source, "c", 300_000, 300_001).await?);
    seen.push(read(source, "c", 100_000, 500_000).await?);
    Ok(seen)
}

#[tokio::test(start_paused = true)]
async fn every_call_of_a_run_may_fail_once_in_every_way_and_the_run_is_right() {
    let recorded = FaultySource::recording(store("recorded"));
    let expected = run(&*with_retries(recorded.clone())).await.unwrap();
    let calls = recorded.calls();
    assert!(calls.len() >= 15, "{calls:?}");
    let faults = [
        Fault::Fail(ErrorKind::Unavailable),
        Fault::Fail(ErrorKind::RateLimited),
        Fault::Fail(ErrorKind::Timeout),
        Fault::LoseReply,
        Fault::Hang,
        Fault::BreakBody(0),
        Fault::BreakBody(70_000),
        Fault::CutBody(0),
        Fault::CutBody(70_000),
        Fault::HangBody(70_000),
        Fault::ExtendBody(1),
        Fault::RepeatBody,
        Fault::OtherRange,
    ];
    let mut fired = 0;
    for (number, call) in calls.iter().enumerate() {
        for fault in faults {
            let faulty = FaultySource::at(store(&format!("{number}-{fault:?}")), number as u64, fault);
            let seen = run(&*with_retries(faulty.clone())).await;
            let seen = seen.unwrap_or_else(|error| panic!("{fault:?} at {call:?}: {error}"));
            assert!(seen == expected, "{fault:?} at {call:?}: another result");
            assert_eq!(faulty.fired().len(), 1, "{fault:?} at {call:?} did not fire");
            fired += 1;
        }
    }
    assert_eq!(fired, calls.len() * faults.len());
}

#[tokio::test(start_paused = true)]
async fn bytes_beyond_the_range_are_never_delivered() {
    for fault in [Fault::ExtendBody(1), Fault::ExtendBody(1 << 20), Fault::RepeatBody] {
        let raw = store(&format!("{fault:?}"));
        raw.put(put("k", Precondition::None)).await.unwrap();
        // Call 0 is the stat.
        let faulty = FaultySource::at(raw, 1, fault);
        match read(&*with_retries(faulty.clone()), "k", 100, 200_000).await {
            Ok(bytes) => assert_eq!(bytes, content()[100..200_000], "{fault:?}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{fault:?}: {error}"),
        }
        assert_eq!(faulty.fired().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_silent_for_ever_is_given_up_at_the_deadline() {
    for fault in [Fault::Hang, Fault::HangBody(1000)] {
        let raw = store(&format!("silent-{fault:?}"));
        raw.put(put("k", Precondition::None)).await.unwrap();
        let source = with_retries(FaultySource::new(raw, move |call| (call.operation == "read").then_some(fault)));
        let started = tokio::time::Instant::now();
        let error = read(&*source, "k", 0, SIZE as u64).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{fault:?}: {error}");
        // The allowance for the bytes comes on top.
        assert!(started.elapsed() <= DEADLINE + Duration::from_secs(2), "{fault:?}: {:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_completion_whose_answer_is_lost_is_not_repeated_but_said_to_be_unknown() {
    let faulty = FaultySource::new(store("completion"), |call| {
        (call.operation == "complete_upload").then_some(Fault::LoseReply)
    });
    let source = with_retries(faulty.clone());
    let key = ObjectKey::from("up");
    let upload = source.begin_upload(&key, Vec::new().into()).await.unwrap();
    let part = source.put_part(&key, &upload, 1, content()).await.unwrap();
    let parts = [CompletedPart { number: 1, etag: part.etag }];
    let error = source.complete_upload(&key, &upload, &parts, Precondition::None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(faulty.fired().len(), 1, "it was sent again");
}
