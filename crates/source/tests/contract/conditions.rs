//! Conditions on writes. A source that does not say it honours one is a failure of the case: the table knows which.

use bytes::Bytes;
use futures_util::future::join_all;
use penstock_types::{CompletedPart, CopyRequest, Description, ErrorKind, Precondition, PutRequest, Version};

use crate::{Bench, Outcome, cases, ensure, kind, text};

cases![
    create_if_absent_stores_where_nothing_is,
    create_if_absent_conflicts_where_something_is,
    of_many_creations_at_once_exactly_one_succeeds,
    replace_stores_over_the_version_it_was_decided_on,
    replace_conflicts_with_another_version,
    replace_conflicts_where_the_object_is_gone,
    of_many_replacements_at_once_exactly_one_succeeds,
    delete_takes_the_version_it_was_decided_on,
    delete_conflicts_with_another_version,
    delete_of_a_version_conflicts_where_nothing_is,
    a_copy_has_the_content_and_the_metadata,
    a_copy_can_have_new_metadata,
    headers_of_a_copy_are_kept_where_the_source_says_so,
    headers_of_an_upload_are_those_of_its_object_where_the_source_says_so,
    a_source_that_keeps_metadata_says_so,
    a_copy_of_what_is_not_there_is_not_found,
    a_copy_conflicts_when_its_origin_changed,
    a_copy_conflicts_where_something_is,
    a_copy_conflicts_with_another_version_at_its_target,
];

const CONFLICT: Option<ErrorKind> = Some(ErrorKind::Conflict);

async fn create_if_absent_stores_where_nothing_is(bench: Bench) -> Outcome {
    ensure!(bench.source.capabilities().conditional_create, "the source does not say that it can");
    bench.put_if("a", b"one", Precondition::Absent).await.map_err(text)?;
    ensure!(bench.content("a", 3).await? == "one", "it is not there");
    Ok(())
}

async fn create_if_absent_conflicts_where_something_is(bench: Bench) -> Outcome {
    let before = bench.put("a", b"one").await?;
    let outcome = kind(bench.put_if("a", b"two", Precondition::Absent).await);
    ensure!(outcome == CONFLICT, "{outcome:?}");
    let after = bench.source.stat(&bench.key("a")).await.map_err(text)?.attributes;
    ensure!(after == before, "it was touched: {after:?}");
    Ok(())
}

async fn exactly_one(bench: &Bench, precondition: Precondition) -> Outcome {
    const WRITERS: usize = 8;
    let contents: Vec<String> = (0..WRITERS).map(|number| format!("writer{number}")).collect();
    let puts = contents.iter().map(|content| bench.put_if("a", content.as_bytes(), precondition.clone()));
    let outcomes = join_all(puts).await;
    let won: Vec<usize> = (0..WRITERS).filter(|number| outcomes[*number].is_ok()).collect();
    ensure!(won.len() == 1, "{} writers succeeded", won.len());
    for outcome in outcomes.into_iter().filter(|outcome| outcome.is_err()) {
        let outcome = kind(outcome);
        // A store may also say that another write is under way.
        ensure!(matches!(outcome, Some(ErrorKind::Conflict | ErrorKind::Unavailable)), "{outcome:?}");
    }
    ensure!(bench.content("a", 7).await? == contents[won[0]], "another content than the winner's");
    Ok(())
}

async fn of_many_creations_at_once_exactly_one_succeeds(bench: Bench) -> Outcome {
    exactly_one(&bench, Precondition::Absent).await
}

async fn replace_stores_over_the_version_it_was_decided_on(bench: Bench) -> Outcome {
    ensure!(bench.source.capabilities().conditional_replace, "the source does not say that it can");
    let version = bench.put("a", b"one").await?.version;
    bench.put_if("a", b"two", Precondition::Version(version)).await.map_err(text)?;
    ensure!(bench.content("a", 3).await? == "two", "it is not there");
    Ok(())
}

async fn replace_conflicts_with_another_version(bench: Bench) -> Outcome {
    let version = bench.put("a", b"one").await?.version;
    let before = bench.put("a", b"two").await?;
    let outcome = kind(bench.put_if("a", b"three", Precondition::Version(version)).await);
    ensure!(outcome == CONFLICT, "{outcome:?}");
    let after = bench.source.stat(&bench.key("a")).await.map_err(text)?.attributes;
    ensure!(after == before, "it was touched: {after:?}");
    Ok(())
}

async fn replace_conflicts_where_the_object_is_gone(bench: Bench) -> Outcome {
    let version = bench.put("a", b"one").await?.version;
    bench.source.delete(&bench.key("a"), None).await.map_err(text)?;
    let outcome = kind(bench.put_if("a", b"two", Precondition::Version(version)).await);
    ensure!(outcome == CONFLICT, "{outcome:?}");
    ensure!(kind(bench.source.stat(&bench.key("a")).await) == Some(ErrorKind::NotFound), "it was written");
    Ok(())
}

async fn of_many_replacements_at_once_exactly_one_succeeds(bench: Bench) -> Outcome {
    let version = bench.put("a", b"before!").await?.version;
    exactly_one(&bench, Precondition::Version(version)).await
}

async fn delete_takes_the_version_it_was_decided_on(bench: Bench) -> Outcome {
    ensure!(bench.source.capabilities().conditional_delete, "the source does not say that it can");
    let version = bench.put("a", b"one").await?.version;
    bench.source.delete(&bench.key("a"), Some(&version)).await.map_err(text)?;
    ensure!(kind(bench.source.stat(&bench.key("a")).await) == Some(ErrorKind::NotFound), "it is still there");
    Ok(())
}

async fn delete_conflicts_with_another_version(bench: Bench) -> Outcome {
    let version = bench.put("a", b"one").await?.version;
    bench.put("a", b"two").await?;
    let outcome = kind(bench.source.delete(&bench.key("a"), Some(&version)).await);
    ensure!(outcome == CONFLICT, "{outcome:?}");
    ensure!(bench.content("a", 3).await? == "two", "it was touched");
    Ok(())
}

async fn delete_of_a_version_conflicts_where_nothing_is(bench: Bench) -> Outcome {
    let version = bench.put("a", b"one").await?.version;
    bench.source.delete(&bench.key("a"), None).await.map_err(text)?;
    let outcome = kind(bench.source.delete(&bench.key("a"), Some(&version)).await);
    ensure!(outcome == CONFLICT, "{outcome:?}");
    Ok(())
}

fn copy(bench: &Bench, from: &str, to: &str) -> CopyRequest {
    CopyRequest {
        from: bench.key(from),
        from_version: None,
        to: bench.key(to),
        precondition: Precondition::None,
        description: None,
    }
}

/// An object with metadata to copy; returns its version.
async fn origin(bench: &Bench) -> Result<Version, String> {
    let request = PutRequest {
        key: bench.key("from"),
        body: Bytes::from_static(b"content"),
        precondition: Precondition::None,
        metadata: vec![("kept".to_owned(), "yes".to_owned())],
    };
    Ok(bench.source.put(request).await.map_err(text)?.version)
}

async fn a_copy_has_the_content_and_the_metadata(bench: Bench) -> Outcome {
    let version = origin(&bench).await?;
    let request = CopyRequest { from_version: Some(version), ..copy(&bench, "from", "d/to ü") };
    let attributes = bench.source.copy(request).await.map_err(text)?;
    let stat = bench.source.stat(&bench.key("d/to ü")).await.map_err(text)?;
    ensure!(stat.attributes == attributes, "copy says {attributes:?}, stat {:?}", stat.attributes);
    ensure!(stat.metadata == [("kept".to_owned(), "yes".to_owned())], "{:?}", stat.metadata);
    ensure!(bench.content("d/to ü", 7).await? == "content", "another content");
    Ok(())
}

async fn a_copy_can_have_new_metadata(bench: Bench) -> Outcome {
    origin(&bench).await?;
    let metadata = vec![("new".to_owned(), "1".to_owned())];
    let request = CopyRequest { description: Some(metadata.clone().into()), ..copy(&bench, "from", "to") };
    bench.source.copy(request).await.map_err(text)?;
    let stat = bench.source.stat(&bench.key("to")).await.map_err(text)?;
    ensure!(stat.metadata == metadata, "{:?}", stat.metadata);
    Ok(())
}

async fn headers_of_a_copy_are_kept_where_the_source_says_so(bench: Bench) -> Outcome {
    let version = origin(&bench).await?;
    let headers = vec![("content-type".to_owned(), "text/x-penstock".to_owned())];
    let described = |metadata| Some(Description { metadata, headers: headers.clone() });
    let request = CopyRequest { description: described(Vec::new()), ..copy(&bench, "from", "to") };
    bench.source.copy(request).await.map_err(text)?;
    let told = bench.source.stat(&bench.key("to")).await.map_err(text)?.headers;
    let kept = bench.source.capabilities().headers;
    ensure!(headers.iter().all(|header| told.contains(header) == kept), "kept: {kept}, told: {told:?}");
    // Onto itself, with what a stat told.
    let metadata = vec![("new".to_owned(), "1".to_owned())];
    let description = Some(Description { metadata: metadata.clone(), headers: told.clone() });
    let onto = CopyRequest { from_version: Some(version), description, ..copy(&bench, "from", "from") };
    bench.source.copy(onto).await.map_err(text)?;
    let stat = bench.source.stat(&bench.key("from")).await.map_err(text)?;
    ensure!(stat.metadata == metadata && stat.headers == told, "{stat:?}");
    ensure!(bench.content("from", 7).await? == "content", "another content");
    Ok(())
}

async fn headers_of_an_upload_are_those_of_its_object_where_the_source_says_so(bench: Bench) -> Outcome {
    let (key, header) = (bench.key("up"), ("content-type".to_owned(), "text/x-penstock".to_owned()));
    let description = Description { metadata: Vec::new(), headers: vec![header.clone()] };
    let upload = bench.source.begin_upload(&key, description).await.map_err(text)?;
    let part = bench.source.put_part(&key, &upload, 1, Bytes::from_static(b"x")).await.map_err(text)?;
    let parts = [CompletedPart { number: 1, etag: part.etag }];
    bench.source.complete_upload(&key, &upload, &parts, Precondition::None).await.map_err(text)?;
    let told = bench.source.stat(&key).await.map_err(text)?.headers;
    ensure!(told.contains(&header) == bench.source.capabilities().headers, "{told:?}");
    Ok(())
}

async fn a_source_that_keeps_metadata_says_so(bench: Bench) -> Outcome {
    origin(&bench).await?;
    let stat = bench.source.stat(&bench.key("from")).await.map_err(text)?;
    let kept = stat.metadata == [("kept".to_owned(), "yes".to_owned())];
    ensure!(kept == bench.source.capabilities().metadata, "{:?}", stat.metadata);
    Ok(())
}

async fn a_copy_of_what_is_not_there_is_not_found(bench: Bench) -> Outcome {
    let outcome = kind(bench.source.copy(copy(&bench, "missing", "to")).await);
    ensure!(outcome == Some(ErrorKind::NotFound), "{outcome:?}");
    Ok(())
}

async fn no_copy(bench: &Bench, request: CopyRequest, left: Option<&str>) -> Outcome {
    ensure!(bench.source.capabilities().conditional_copy, "the source does not say that it can");
    let outcome = kind(bench.source.copy(request).await);
    ensure!(outcome == CONFLICT, "{outcome:?}");
    match left {
        Some(left) => ensure!(bench.content("to", left.len()).await? == left, "the target was touched"),
        None => ensure!(kind(bench.source.stat(&bench.key("to")).await).is_some(), "the target was written"),
    }
    Ok(())
}

async fn a_copy_conflicts_when_its_origin_changed(bench: Bench) -> Outcome {
    let version = origin(&bench).await?;
    bench.put("from", b"changed").await?;
    no_copy(&bench, CopyRequest { from_version: Some(version), ..copy(&bench, "from", "to") }, None).await
}

async fn a_copy_conflicts_where_something_is(bench: Bench) -> Outcome {
    origin(&bench).await?;
    bench.put("to", b"mine").await?;
    let request = CopyRequest { precondition: Precondition::Absent, ..copy(&bench, "from", "to") };
    no_copy(&bench, request, Some("mine")).await
}

async fn a_copy_conflicts_with_another_version_at_its_target(bench: Bench) -> Outcome {
    origin(&bench).await?;
    let version = bench.put("to", b"old").await?.version;
    bench.put("to", b"mine").await?;
    let request = CopyRequest { precondition: Precondition::Version(version), ..copy(&bench, "from", "to") };
    no_copy(&bench, request, Some("mine")).await
}
