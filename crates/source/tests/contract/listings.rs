//! Flat and delimited listings, pages, start keys.

use futures_util::{StreamExt, TryStreamExt, stream};
use penstock_types::{ListRequest, ObjectKey};

use crate::{Bench, Outcome, cases, ensure};

cases![
    a_flat_listing_is_in_byte_order,
    a_listing_in_pages_has_every_key_once,
    more_keys_than_a_page_holds_are_all_listed,
    a_delimited_listing_rolls_keys_up,
    a_delimited_listing_in_pages_has_every_entry_once,
    a_prefix_may_end_inside_of_a_name,
    a_prefix_that_nothing_has_lists_nothing,
    a_listing_begins_behind_its_start_key,
    a_common_prefix_counts_as_its_own_text_for_the_start_key,
    a_deleted_key_does_not_end_the_listing_that_stands_at_it,
];

const TREE: &[&str] = &["a", "a-b", "a.b", "a/1", "a/2", "a/deep/x", "a0", "b/1", "ü", "z"];
/// As above: `/` sorts behind `-` and `.`, before digits.
const WITHOUT_THE_FILE_A: &[&str] = &["a-b", "a.b", "a/1", "a/2", "a/deep/x", "a0", "b/1", "z", "ü"];

/// Stores the tree. The key `a` beside `a/1` is a case of its own: directories cannot hold both.
async fn plant(bench: &Bench) -> Outcome {
    let mut names: Vec<&str> = TREE.to_vec();
    names.retain(|name| *name != "a");
    for name in names.iter().rev() {
        bench.put(name, name.as_bytes()).await?;
    }
    Ok(())
}

/// Undoes the escaping of keys in messages.
fn shown(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| ObjectKey::from(*name).to_string()).collect()
}

async fn a_flat_listing_is_in_byte_order(bench: Bench) -> Outcome {
    plant(&bench).await?;
    let (objects, prefixes) = bench.list_all(bench.below("")).await?;
    ensure!(objects == shown(WITHOUT_THE_FILE_A), "{objects:?}");
    ensure!(prefixes.is_empty(), "{prefixes:?}");
    Ok(())
}

async fn a_listing_in_pages_has_every_key_once(bench: Bench) -> Outcome {
    plant(&bench).await?;
    for limit in [1, 2, 3, 8] {
        let (objects, _) = bench.list_all(ListRequest { limit, ..bench.below("") }).await?;
        ensure!(objects == shown(WITHOUT_THE_FILE_A), "limit {limit}: {objects:?}");
    }
    Ok(())
}

async fn more_keys_than_a_page_holds_are_all_listed(bench: Bench) -> Outcome {
    const COUNT: usize = 1_207;
    let puts = (0..COUNT).map(|number| {
        let bench = bench.clone();
        async move { bench.put(&format!("many/{number:05}"), b"x").await }
    });
    stream::iter(puts).buffer_unordered(8).try_collect::<Vec<_>>().await?;
    let (objects, _) = bench.list_all(ListRequest { limit: 5_000, ..bench.below("many/") }).await?;
    let expected: Vec<String> = (0..COUNT).map(|number| format!("many/{number:05}")).collect();
    ensure!(objects == expected, "{} keys", objects.len());
    Ok(())
}

async fn a_delimited_listing_rolls_keys_up(bench: Bench) -> Outcome {
    plant(&bench).await?;
    let (objects, prefixes) = bench.list_all(ListRequest { delimited: true, ..bench.below("") }).await?;
    ensure!(objects == shown(&["a-b", "a.b", "a0", "z", "ü"]), "{objects:?}");
    ensure!(prefixes == ["a/", "b/"], "{prefixes:?}");
    let (objects, prefixes) = bench.list_all(ListRequest { delimited: true, ..bench.below("a/") }).await?;
    ensure!(objects == ["a/1", "a/2"], "{objects:?}");
    ensure!(prefixes == ["a/deep/"], "{prefixes:?}");
    Ok(())
}

async fn a_delimited_listing_in_pages_has_every_entry_once(bench: Bench) -> Outcome {
    plant(&bench).await?;
    for limit in [1, 2, 3] {
        let request = ListRequest { delimited: true, limit, ..bench.below("") };
        let (objects, prefixes) = bench.list_all(request).await?;
        ensure!(objects == shown(&["a-b", "a.b", "a0", "z", "ü"]), "limit {limit}: {objects:?}");
        ensure!(prefixes == ["a/", "b/"], "limit {limit}: {prefixes:?}");
    }
    Ok(())
}

async fn a_prefix_may_end_inside_of_a_name(bench: Bench) -> Outcome {
    plant(&bench).await?;
    let (objects, _) = bench.list_all(bench.below("a/de")).await?;
    ensure!(objects == ["a/deep/x"], "{objects:?}");
    let (objects, _) = bench.list_all(bench.below("a")).await?;
    ensure!(objects == ["a-b", "a.b", "a/1", "a/2", "a/deep/x", "a0"], "{objects:?}");
    let (_, prefixes) = bench.list_all(ListRequest { delimited: true, ..bench.below("a/de") }).await?;
    ensure!(prefixes == ["a/deep/"], "{prefixes:?}");
    Ok(())
}

async fn a_prefix_that_nothing_has_lists_nothing(bench: Bench) -> Outcome {
    plant(&bench).await?;
    for prefix in ["nothing", "a/1/", "a/../", "b//"] {
        let (objects, prefixes) = bench.list_all(bench.below(prefix)).await?;
        ensure!(objects.is_empty() && prefixes.is_empty(), "{prefix}: {objects:?} {prefixes:?}");
    }
    Ok(())
}

async fn a_listing_begins_behind_its_start_key(bench: Bench) -> Outcome {
    ensure!(bench.source.capabilities().list_start_after, "the source does not say that it can");
    plant(&bench).await?;
    for start in ["", "a", "a/", "a/1", "a/1a", "a/deep/", "a/deep/x", "a/zz", "b", "zz", "ü", "üü"] {
        let expected: Vec<&str> = WITHOUT_THE_FILE_A.iter().copied().filter(|name| *name > start).collect();
        for limit in [2, 1000] {
            let request = ListRequest { start_after: Some(bench.key(start)), limit, ..bench.below("") };
            let (objects, _) = bench.list_all(request).await?;
            ensure!(objects == shown(&expected), "behind {start:?}, limit {limit}: {objects:?}");
        }
    }
    Ok(())
}

async fn a_common_prefix_counts_as_its_own_text_for_the_start_key(bench: Bench) -> Outcome {
    plant(&bench).await?;
    for (start, objects, prefixes) in [
        ("a/", vec!["a0", "z", "ü"], vec!["b/"]),
        ("a/1", vec!["a0", "z", "ü"], vec!["b/"]),
        ("a.b", vec!["a0", "z", "ü"], vec!["a/", "b/"]),
    ] {
        let start_after = Some(bench.key(start));
        let request = ListRequest { delimited: true, start_after, ..bench.below("") };
        let found = bench.list_all(request).await?;
        ensure!(found == (shown(&objects), shown(&prefixes)), "behind {start}: {found:?}");
    }
    Ok(())
}

async fn a_deleted_key_does_not_end_the_listing_that_stands_at_it(bench: Bench) -> Outcome {
    plant(&bench).await?;
    let request = ListRequest { limit: 3, ..bench.below("") };
    let first = bench.list(request.clone()).await?;
    let Some(last) = first.objects.last() else { return Err("an empty page".to_owned()) };
    bench.source.delete(&last.key, None).await.map_err(crate::text)?;
    let (rest, _) = bench.list_all(ListRequest { continuation: first.continuation, ..request }).await?;
    ensure!(rest == shown(&WITHOUT_THE_FILE_A[3..]), "{rest:?}");
    Ok(())
}
