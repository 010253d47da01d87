//! Multipart uploads: ids, parts, completion with a condition, abort, listings.

use bytes::Bytes;
use penstock_types::{ByteRange, CompletedPart, CopiedRange, ErrorKind, PartInfo, Precondition, UploadId};

use crate::{Bench, Outcome, cases, ensure, kind, text};

cases![
    an_upload_becomes_the_object_of_its_parts,
    a_part_stored_again_replaces_the_first,
    the_parts_of_an_upload_are_listed_by_number,
    an_upload_under_way_is_listed_and_shows_no_object,
    an_upload_can_be_gone_on_with_by_another_process,
    completion_with_a_part_that_was_not_stored_is_refused,
    completion_if_absent_conflicts_where_something_is,
    completion_conflicts_with_another_version,
    completion_stores_over_the_version_it_was_decided_on,
    an_aborted_upload_is_gone_and_aborting_it_again_succeeds,
    metadata_of_an_upload_is_that_of_its_object,
    part_numbers_have_bounds,
    parts_are_copied_from_another_object,
    a_copied_part_conflicts_when_its_origin_changed,
];

/// Stores refuse smaller parts, except the last one.
const PART: usize = 5 << 20;

fn part(fill: u8, size: usize) -> Bytes {
    Bytes::from(vec![fill; size])
}

fn as_completed(parts: &[PartInfo]) -> Vec<CompletedPart> {
    parts.iter().map(|part| CompletedPart { number: part.number, etag: part.etag.clone() }).collect()
}

async fn begin(bench: &Bench) -> Result<UploadId, String> {
    bench.source.begin_upload(&bench.key("up"), Vec::new().into()).await.map_err(text)
}

async fn store(bench: &Bench, upload: &UploadId, number: u32, body: Bytes) -> Result<PartInfo, String> {
    bench.source.put_part(&bench.key("up"), upload, number, body).await.map_err(text)
}

/// An upload with one small part.
async fn one_part(bench: &Bench) -> Result<(UploadId, Vec<CompletedPart>), String> {
    let upload = begin(bench).await?;
    let part = store(bench, &upload, 1, part(7, 1000)).await?;
    Ok((upload, as_completed(&[part])))
}

async fn an_upload_becomes_the_object_of_its_parts(bench: Bench) -> Outcome {
    let upload = begin(&bench).await?;
    // Out of order, with a gap in the numbers.
    let last = store(&bench, &upload, 7, part(3, 1234)).await?;
    let first = store(&bench, &upload, 2, part(1, PART)).await?;
    ensure!(first.size == PART as u64 && first.number == 2, "{first:?}");
    let key = bench.key("up");
    let parts = as_completed(&[first, last]);
    let attributes = bench.source.complete_upload(&key, &upload, &parts, Precondition::None).await.map_err(text)?;
    ensure!(attributes.size == PART as u64 + 1234, "{attributes:?}");
    let stat = bench.source.stat(&key).await.map_err(text)?.attributes;
    ensure!(stat == attributes, "complete says {attributes:?}, stat {stat:?}");
    let page = bench.list(bench.below("up")).await?;
    ensure!(page.objects.len() == 1 && page.objects[0].attributes == stat, "list says {page:?}");
    let edge = bench.read(&key, PART as u64 - 1, PART as u64 + 1, Some(stat.version)).await.map_err(text)?;
    ensure!(edge == [1u8, 3][..], "{edge:?}");
    Ok(())
}

async fn a_part_stored_again_replaces_the_first(bench: Bench) -> Outcome {
    let upload = begin(&bench).await?;
    store(&bench, &upload, 1, part(1, 100)).await?;
    let second = store(&bench, &upload, 1, part(2, 200)).await?;
    let key = bench.key("up");
    let listed = bench.source.list_parts(&key, &upload).await.map_err(text)?;
    ensure!(listed == [second.clone()], "{listed:?}");
    let parts = as_completed(&[second]);
    bench.source.complete_upload(&key, &upload, &parts, Precondition::None).await.map_err(text)?;
    ensure!(bench.content("up", 200).await? == vec![2u8; 200], "the first part's bytes");
    Ok(())
}

async fn the_parts_of_an_upload_are_listed_by_number(bench: Bench) -> Outcome {
    let upload = begin(&bench).await?;
    let mut stored = Vec::new();
    for number in [10, 2, 9, 1] {
        stored.push(store(&bench, &upload, number, part(number as u8, 10)).await?);
    }
    stored.sort_by_key(|part| part.number);
    let key = bench.key("up");
    let listed = bench.source.list_parts(&key, &upload).await.map_err(text)?;
    ensure!(listed == stored, "stored {stored:?}, listed {listed:?}");
    bench.source.abort_upload(&key, &upload).await.map_err(text)
}

async fn an_upload_under_way_is_listed_and_shows_no_object(bench: Bench) -> Outcome {
    let (upload, parts) = one_part(&bench).await?;
    let key = bench.key("up");
    let listed = bench.source.list_uploads(&bench.key("")).await.map_err(text)?;
    ensure!(listed.len() == 1 && listed[0].id == upload && listed[0].key == key, "{listed:?}");
    let elsewhere = bench.source.list_uploads(&bench.key("other")).await.map_err(text)?;
    ensure!(elsewhere.is_empty(), "{elsewhere:?}");
    ensure!(kind(bench.source.stat(&key).await) == Some(ErrorKind::NotFound), "the object is there too early");
    let (objects, prefixes) = bench.list_all(bench.below("")).await?;
    ensure!(objects.is_empty() && prefixes.is_empty(), "it is listed: {objects:?} {prefixes:?}");
    bench.source.complete_upload(&key, &upload, &parts, Precondition::None).await.map_err(text)?;
    let listed = bench.source.list_uploads(&bench.key("")).await.map_err(text)?;
    ensure!(listed.is_empty(), "it is listed after its completion: {listed:?}");
    Ok(())
}

async fn an_upload_can_be_gone_on_with_by_another_process(bench: Bench) -> Outcome {
    ensure!(bench.source.capabilities().resumable_multipart, "the source does not say that it can");
    let (upload, _) = one_part(&bench).await?;
    let other = Bench { source: (bench.reopen)(), ..bench.clone() };
    let key = bench.key("up");
    let parts = other.source.list_parts(&key, &upload).await.map_err(text)?;
    ensure!(parts.len() == 1 && parts[0].size == 1000, "{parts:?}");
    let parts = as_completed(&parts);
    other.source.complete_upload(&key, &upload, &parts, Precondition::None).await.map_err(text)?;
    ensure!(bench.content("up", 1000).await? == vec![7u8; 1000], "another content");
    Ok(())
}

async fn completion_with_a_part_that_was_not_stored_is_refused(bench: Bench) -> Outcome {
    let (upload, parts) = one_part(&bench).await?;
    let key = bench.key("up");
    let mut unknown = parts.clone();
    unknown.push(CompletedPart { number: 2, etag: parts[0].etag.clone() });
    let mut other = parts.clone();
    other[0].etag = "0123456789abcdef0123456789abcdef".to_owned();
    for wrong in [unknown, other, Vec::new()] {
        let outcome = kind(bench.source.complete_upload(&key, &upload, &wrong, Precondition::None).await);
        ensure!(outcome == Some(ErrorKind::InvalidInput), "{wrong:?}: {outcome:?}");
    }
    bench.source.complete_upload(&key, &upload, &parts, Precondition::None).await.map_err(text)?;
    Ok(())
}

async fn not_completed(bench: &Bench, precondition: Precondition, left: &[u8]) -> Outcome {
    let (upload, parts) = one_part(bench).await?;
    let key = bench.key("up");
    let outcome = kind(bench.source.complete_upload(&key, &upload, &parts, precondition).await);
    ensure!(outcome == Some(ErrorKind::Conflict), "{outcome:?}");
    ensure!(bench.content("up", left.len()).await? == left, "the object was touched");
    bench.source.abort_upload(&key, &upload).await.map_err(text)
}

async fn completion_if_absent_conflicts_where_something_is(bench: Bench) -> Outcome {
    bench.put("up", b"mine").await?;
    not_completed(&bench, Precondition::Absent, b"mine").await
}

async fn completion_conflicts_with_another_version(bench: Bench) -> Outcome {
    let version = bench.put("up", b"old").await?.version;
    bench.put("up", b"mine").await?;
    not_completed(&bench, Precondition::Version(version), b"mine").await
}

async fn completion_stores_over_the_version_it_was_decided_on(bench: Bench) -> Outcome {
    let version = bench.put("up", b"old").await?.version;
    let (upload, parts) = one_part(&bench).await?;
    let condition = Precondition::Version(version);
    bench.source.complete_upload(&bench.key("up"), &upload, &parts, condition).await.map_err(text)?;
    ensure!(bench.content("up", 1000).await? == vec![7u8; 1000], "another content");
    Ok(())
}

async fn an_aborted_upload_is_gone_and_aborting_it_again_succeeds(bench: Bench) -> Outcome {
    let (upload, parts) = one_part(&bench).await?;
    let key = bench.key("up");
    bench.source.abort_upload(&key, &upload).await.map_err(text)?;
    bench.source.abort_upload(&key, &upload).await.map_err(text)?;
    let not_found = Some(ErrorKind::NotFound);
    ensure!(kind(bench.source.list_parts(&key, &upload).await) == not_found, "its parts are listed");
    ensure!(kind(bench.source.put_part(&key, &upload, 2, part(0, 1)).await) == not_found, "a part was taken");
    let outcome = kind(bench.source.complete_upload(&key, &upload, &parts, Precondition::None).await);
    ensure!(outcome == not_found, "completion: {outcome:?}");
    Ok(())
}

async fn metadata_of_an_upload_is_that_of_its_object(bench: Bench) -> Outcome {
    let key = bench.key("up");
    let metadata = vec![("mode".to_owned(), "644".to_owned())];
    let upload = bench.source.begin_upload(&key, metadata.clone().into()).await.map_err(text)?;
    let stored = store(&bench, &upload, 1, part(7, 10)).await?;
    let parts = as_completed(&[stored]);
    bench.source.complete_upload(&key, &upload, &parts, Precondition::None).await.map_err(text)?;
    let stat = bench.source.stat(&key).await.map_err(text)?;
    ensure!(stat.metadata == metadata, "{:?}", stat.metadata);
    Ok(())
}

async fn part_numbers_have_bounds(bench: Bench) -> Outcome {
    let (upload, parts) = one_part(&bench).await?;
    let key = bench.key("up");
    for number in [0, 10_001] {
        let outcome = kind(bench.source.put_part(&key, &upload, number, part(0, 1)).await);
        ensure!(outcome == Some(ErrorKind::InvalidInput), "{number}: {outcome:?}");
    }
    let twice = [parts[0].clone(), parts[0].clone()];
    let outcome = kind(bench.source.complete_upload(&key, &upload, &twice, Precondition::None).await);
    ensure!(outcome == Some(ErrorKind::InvalidInput), "a part twice: {outcome:?}");
    bench.source.abort_upload(&key, &upload).await.map_err(text)
}

async fn parts_are_copied_from_another_object(bench: Bench) -> Outcome {
    let content: Vec<u8> = (0..PART + 5000).map(|at| (at % 251) as u8).collect();
    let version = bench.put("from", &content).await?.version;
    let (upload, key) = (begin(&bench).await?, bench.key("up"));
    let mut parts = Vec::new();
    for (number, range) in
        [(1, ByteRange::new(100, PART as u64 + 100)), (2, ByteRange::new(PART as u64, PART as u64 + 5000))]
    {
        let copied = CopiedRange { from: bench.key("from"), from_version: Some(version.clone()), range };
        let part = bench.source.copy_part(&key, &upload, number, copied).await.map_err(text)?;
        ensure!(part.size == range.len() && part.number == number, "{part:?}");
        parts.push(part);
    }
    let parts = as_completed(&parts);
    bench.source.complete_upload(&key, &upload, &parts, Precondition::None).await.map_err(text)?;
    let expected = [&content[100..PART + 100], &content[PART..PART + 5000]].concat();
    ensure!(bench.content("up", expected.len()).await? == expected, "another content");
    Ok(())
}

async fn a_copied_part_conflicts_when_its_origin_changed(bench: Bench) -> Outcome {
    let version = bench.put("from", b"first").await?.version;
    bench.put("from", b"other").await?;
    let (upload, key) = (begin(&bench).await?, bench.key("up"));
    let copied = CopiedRange { from: bench.key("from"), from_version: Some(version), range: ByteRange::new(0, 5) };
    let outcome = kind(bench.source.copy_part(&key, &upload, 1, copied).await);
    ensure!(outcome == Some(ErrorKind::Conflict), "{outcome:?}");
    bench.source.abort_upload(&key, &upload).await.map_err(text)?;
    Ok(())
}
