//! Odd keys: a source stores exactly the key it was given, or refuses it as `InvalidInput`. It never changes one.

use penstock_types::{ErrorKind, ListRequest, ObjectKey, Precondition, PutRequest};

use crate::{Bench, Outcome, cases, ensure, kind, text};

cases![
    keys_with_spaces_plus_and_percent_are_kept,
    keys_with_url_and_xml_characters_are_kept,
    keys_beyond_ascii_are_kept,
    keys_with_control_characters_are_kept,
    a_key_of_1024_bytes_is_kept,
    a_component_of_more_than_255_bytes_is_kept,
    empty_components_are_kept,
    dot_components_are_kept,
    a_trailing_slash_is_kept,
    the_directory_above_a_key_is_there_where_the_source_says_so,
    a_key_may_stand_beside_its_own_prefix,
    keys_that_are_not_utf8_are_kept_or_refused,
];

/// Put, stat, list, read, copy, delete: under exactly this key, and no other.
async fn kept(bench: &Bench, name: &[u8]) -> Outcome {
    let key = bench.key("").join(name);
    let body = bytes::Bytes::copy_from_slice(name);
    let request = PutRequest { key: key.clone(), body, precondition: Precondition::None, metadata: Vec::new() };
    let put = bench.source.put(request).await.map_err(|error| format!("{key}: {error}"))?;
    let stat = bench.source.stat(&key).await.map_err(|error| format!("{key}: {error}"))?;
    ensure!(stat.attributes == put, "{key}: put says {put:?}, stat {:?}", stat.attributes);
    let page = bench.list(ListRequest { prefix: bench.key(""), limit: 1000, ..ListRequest::default() }).await?;
    let listed: Vec<&ObjectKey> = page.objects.iter().map(|object| &object.key).collect();
    ensure!(listed == [&key], "{key}: listed as {listed:?}");
    let start_after = Some(key.clone());
    let behind = bench.list(ListRequest { start_after, ..bench.below("") }).await?;
    ensure!(behind.objects.is_empty(), "{key}: listed behind itself");
    let bytes = bench.read(&key, 0, name.len() as u64, Some(put.version.clone())).await.map_err(text)?;
    ensure!(bytes == name, "{key}: {bytes:?}");
    bench.source.delete(&key, Some(&put.version)).await.map_err(|error| format!("{key}: {error}"))?;
    ensure!(kind(bench.source.stat(&key).await) == Some(ErrorKind::NotFound), "{key}: it is still there");
    Ok(())
}

async fn all_kept(bench: &Bench, names: &[&str]) -> Outcome {
    for name in names {
        kept(bench, name.as_bytes()).await?;
    }
    Ok(())
}

async fn keys_with_spaces_plus_and_percent_are_kept(bench: Bench) -> Outcome {
    all_kept(&bench, &["a b", " a", "a ", "a+b", "%41", "100%", "%2F", "%", "a%20b"]).await
}

async fn keys_with_url_and_xml_characters_are_kept(bench: Bench) -> Outcome {
    all_kept(&bench, &["a?b=c&d", "a#b", "a;b", "a:b@c", "<&>\"'", "]]>", "back\\slash", "a*b", "~._-!'()", "{}|^`$,="])
        .await
}

async fn keys_beyond_ascii_are_kept(bench: Bench) -> Outcome {
    // Composed and decomposed: nobody may normalise one into the other.
    all_kept(&bench, &["ü", "u\u{308}", "日本語/データ", "🦀", "\u{feff}a", "\u{10ffff}"]).await
}

async fn keys_with_control_characters_are_kept(bench: Bench) -> Outcome {
    all_kept(&bench, &["a\nb", "a\tb", "a\rb", "\u{1}", "\u{7f}", "\u{85}"]).await
}

async fn a_key_of_1024_bytes_is_kept(bench: Bench) -> Outcome {
    let room = 1024 - bench.prefix.len();
    let name: String = (0..room).map(|position| if position % 100 == 99 { '/' } else { 'k' }).collect();
    kept(&bench, name.as_bytes()).await
}

async fn a_component_of_more_than_255_bytes_is_kept(bench: Bench) -> Outcome {
    kept(&bench, "n".repeat(300).as_bytes()).await
}

async fn empty_components_are_kept(bench: Bench) -> Outcome {
    all_kept(&bench, &["c//d", "/lead", "a///b"]).await
}

async fn dot_components_are_kept(bench: Bench) -> Outcome {
    all_kept(&bench, &["e/../f", "./g", "h/./i", "..", "j/..", "..."]).await
}

async fn a_trailing_slash_is_kept(bench: Bench) -> Outcome {
    all_kept(&bench, &["dir/", "dir//"]).await
}

async fn the_directory_above_a_key_is_there_where_the_source_says_so(bench: Bench) -> Outcome {
    if !bench.source.capabilities().directories {
        return Ok(());
    }
    bench.put("above/a", b"file").await?;
    bench.source.delete(&bench.key("above/a"), None).await.map_err(text)?;
    let found = bench.source.stat(&bench.key("above/")).await.map_err(text)?;
    ensure!(found.attributes.size == 0, "{found:?}");
    Ok(())
}

async fn a_key_may_stand_beside_its_own_prefix(bench: Bench) -> Outcome {
    bench.put("a", b"file").await?;
    bench.put("a/b", b"below").await?;
    let (objects, prefixes) = bench.list_all(ListRequest { delimited: true, ..bench.below("") }).await?;
    ensure!(objects == ["a"] && prefixes == ["a/"], "{objects:?} {prefixes:?}");
    ensure!(bench.content("a", 4).await? == "file", "the object above its prefix differs");
    ensure!(bench.content("a/b", 5).await? == "below", "the object below differs");
    Ok(())
}

async fn keys_that_are_not_utf8_are_kept_or_refused(bench: Bench) -> Outcome {
    let name = b"a\xff\xfeb";
    if bench.source.capabilities().binary_keys {
        return kept(&bench, name).await;
    }
    let key = bench.key("").join(name);
    let request = PutRequest { key, body: bytes::Bytes::new(), precondition: Precondition::None, metadata: Vec::new() };
    let outcome = kind(bench.source.put(request).await);
    ensure!(outcome == Some(ErrorKind::InvalidInput), "{outcome:?}");
    Ok(())
}
