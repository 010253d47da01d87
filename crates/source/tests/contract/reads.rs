//! Stat, read, put, delete without conditions.

use bytes::Bytes;
use futures_util::future::try_join_all;
use penstock_types::{ByteRange, ErrorKind, PutRequest};

use crate::{Bench, Outcome, cases, ensure, kind, text};

cases![
    what_is_put_is_read_back_whole_and_in_ranges,
    attributes_are_the_same_from_put_stat_list_and_read,
    what_is_not_there_is_not_found,
    a_range_outside_of_the_object_is_refused,
    an_empty_object_has_attributes_and_no_bytes,
    a_large_object_is_the_same_in_parallel_ranges,
    new_content_has_a_new_version,
    the_same_size_written_again_has_a_new_version,
    a_pinned_read_of_the_current_version_delivers_it,
    a_pinned_read_of_a_replaced_object_is_stale,
    a_pinned_read_of_a_deleted_object_is_stale,
    a_pinned_read_of_a_version_that_never_was_is_stale,
    metadata_comes_back_in_lower_case_and_sorted,
    a_deleted_object_is_gone_and_deleting_it_again_succeeds,
    the_source_says_who_and_where_it_is,
];

fn pattern(size: usize) -> Vec<u8> {
    // A period that divides no power of two, so that shifted content never looks right.
    (0..size).map(|position| (position % 251) as u8).collect()
}

async fn what_is_put_is_read_back_whole_and_in_ranges(bench: Bench) -> Outcome {
    let content = pattern(300_000);
    bench.put("a", &content).await?;
    ensure!(bench.content("a", content.len()).await? == content, "the whole differs");
    for (start, end) in [(0, 1), (299_999, 300_000), (65_535, 131_073), (1, 299_999)] {
        let bytes = bench.read(&bench.key("a"), start, end, None).await.map_err(text)?;
        ensure!(bytes == content[start as usize..end as usize], "{start}..{end} differs");
    }
    Ok(())
}

async fn attributes_are_the_same_from_put_stat_list_and_read(bench: Bench) -> Outcome {
    let put = bench.put("a", b"hello").await?;
    let key = bench.key("a");
    let stat = bench.source.stat(&key).await.map_err(text)?.attributes;
    let page = bench.list(bench.below("a")).await?;
    let body = bench.open(&key, ByteRange::new(1, 3), Some(put.version.clone())).await.map_err(text)?;
    ensure!(put.size == 5, "put says size {}", put.size);
    ensure!(put == stat, "put says {put:?}, stat {stat:?}");
    ensure!(page.objects.len() == 1 && page.objects[0].attributes == stat, "list says {page:?}, stat {stat:?}");
    ensure!(body.attributes == stat, "read says {:?}, stat {stat:?}", body.attributes);
    Ok(())
}

async fn what_is_not_there_is_not_found(bench: Bench) -> Outcome {
    let key = bench.key("missing");
    let not_found = Some(ErrorKind::NotFound);
    ensure!(kind(bench.source.stat(&key).await) == not_found, "stat");
    ensure!(kind(bench.read(&key, 0, 1, None).await) == not_found, "read");
    Ok(())
}

async fn a_range_outside_of_the_object_is_refused(bench: Bench) -> Outcome {
    let version = bench.put("a", b"hello").await?.version;
    let key = bench.key("a");
    for (start, end) in [(5, 6), (3, 6), (100, 200), (2, 2)] {
        for pinned in [None, Some(version.clone())] {
            let outcome = kind(bench.read(&key, start, end, pinned).await);
            ensure!(outcome == Some(ErrorKind::InvalidInput), "{start}..{end}: {outcome:?}");
        }
    }
    Ok(())
}

async fn an_empty_object_has_attributes_and_no_bytes(bench: Bench) -> Outcome {
    let put = bench.put("empty", b"").await?;
    let stat = bench.source.stat(&bench.key("empty")).await.map_err(text)?.attributes;
    ensure!(put.size == 0 && put == stat, "put says {put:?}, stat {stat:?}");
    let page = bench.list(bench.below("empty")).await?;
    ensure!(page.objects.len() == 1 && page.objects[0].attributes == stat, "list says {page:?}");
    Ok(())
}

async fn a_large_object_is_the_same_in_parallel_ranges(bench: Bench) -> Outcome {
    const SIZE: u64 = 24 << 20;
    const PART: u64 = 3 << 20;
    let content = pattern(SIZE as usize);
    let version = bench.put("large", &content).await?.version;
    let key = bench.key("large");
    let ranges = (0..SIZE / PART).map(|part| bench.read(&key, part * PART, (part + 1) * PART, Some(version.clone())));
    let parts = try_join_all(ranges).await.map_err(text)?;
    ensure!(parts.concat() == content, "the ranges put together differ");
    Ok(())
}

async fn new_content_has_a_new_version(bench: Bench) -> Outcome {
    let first = bench.put("a", b"one").await?;
    let second = bench.put("a", b"three").await?;
    ensure!(first.version != second.version, "both are {}", first.version);
    ensure!(bench.content("a", 5).await? == "three", "the old content is still there");
    Ok(())
}

async fn the_same_size_written_again_has_a_new_version(bench: Bench) -> Outcome {
    let mut versions = Vec::new();
    for content in ["aaaa", "bbbb", "cccc", "dddd"] {
        versions.push(bench.put("a", content.as_bytes()).await?.version);
    }
    versions.sort();
    versions.dedup();
    let weak = bench.source.capabilities().weak_versions;
    ensure!(weak || versions.len() == 4, "versions repeat though they are said not to be weak: {versions:?}");
    Ok(())
}

async fn a_pinned_read_of_the_current_version_delivers_it(bench: Bench) -> Outcome {
    let version = bench.put("a", b"hello").await?.version;
    let bytes = bench.read(&bench.key("a"), 1, 4, Some(version)).await.map_err(text)?;
    ensure!(bytes == "ell", "{bytes:?}");
    Ok(())
}

async fn stale(bench: &Bench, name: &str, version: penstock_types::Version) -> Outcome {
    let outcome = bench.read(&bench.key(name), 0, 3, Some(version)).await;
    let said = bench.source.capabilities().conditional_read;
    ensure!(said, "the source does not say that it reads conditionally");
    ensure!(outcome.is_err(), "other bytes were delivered: {outcome:?}");
    let outcome = kind(outcome);
    ensure!(outcome == Some(ErrorKind::StaleVersion), "{outcome:?}");
    Ok(())
}

async fn a_pinned_read_of_a_replaced_object_is_stale(bench: Bench) -> Outcome {
    let version = bench.put("a", b"old").await?.version;
    bench.put("a", b"new").await?;
    stale(&bench, "a", version).await
}

async fn a_pinned_read_of_a_deleted_object_is_stale(bench: Bench) -> Outcome {
    let version = bench.put("a", b"old").await?.version;
    bench.source.delete(&bench.key("a"), None).await.map_err(text)?;
    stale(&bench, "a", version).await
}

async fn a_pinned_read_of_a_version_that_never_was_is_stale(bench: Bench) -> Outcome {
    bench.put("a", b"old").await?;
    stale(&bench, "a", "0123456789abcdef0123456789abcdef".into()).await
}

async fn metadata_comes_back_in_lower_case_and_sorted(bench: Bench) -> Outcome {
    let metadata = vec![("zeta".to_owned(), "1".to_owned()), ("alpha-beta".to_owned(), "two words".to_owned())];
    let request = PutRequest {
        key: bench.key("a"),
        body: Bytes::from_static(b"x"),
        precondition: Default::default(),
        metadata: metadata.clone(),
    };
    bench.source.put(request).await.map_err(text)?;
    let stat = bench.source.stat(&bench.key("a")).await.map_err(text)?;
    let mut expected = metadata;
    expected.sort();
    ensure!(stat.metadata == expected, "{:?}", stat.metadata);
    Ok(())
}

async fn a_deleted_object_is_gone_and_deleting_it_again_succeeds(bench: Bench) -> Outcome {
    bench.put("a", b"x").await?;
    let key = bench.key("a");
    for _ in 0..2 {
        bench.source.delete(&key, None).await.map_err(text)?;
        ensure!(kind(bench.source.stat(&key).await) == Some(ErrorKind::NotFound), "it is still there");
    }
    ensure!(bench.list(bench.below("a")).await?.objects.is_empty(), "it is still listed");
    Ok(())
}

async fn the_source_says_who_and_where_it_is(bench: Bench) -> Outcome {
    let again = (bench.reopen)();
    ensure!(again.id() == bench.source.id(), "another id when opened again");
    ensure!(again.capabilities() == bench.source.capabilities(), "other capabilities when opened again");
    let shown = bench.source.describe(&bench.key("a"));
    ensure!(shown.contains("://") && shown.ends_with("/a"), "{shown}");
    ensure!(!bench.source.capabilities().read_only, "it says it is read-only though it was written to");
    Ok(())
}
