//! What a name is agrees with what lists and walks show.

use std::collections::{BTreeMap, BTreeSet};

use penstock_types::{ErrorKind, Laid, Result};
use proptest::prelude::*;

use crate::Item;
use crate::keymap::{self, Shape};
use crate::support::{Bench, MINUTE, TestSource, walk};

/// When the source had a change, by the moment that everything is asked at.
#[derive(Clone, Copy, Debug)]
enum Settled {
    Not,
    Before,
    After,
}

/// A key, whether it was put or removed, and when.
type Change = (String, bool, Settled);

fn key() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        5 => Just("a".to_owned()),
        3 => Just("b".to_owned()),
        5 => Just("/".to_owned()),
        2 => Just("-".to_owned()),
        4 => Just("@%".to_owned()),
        1 => Just("é".repeat(150)),
    ];
    let key = proptest::collection::vec(part, 1..6).prop_map(|parts| parts.concat());
    key.prop_filter("a store takes no longer key", |key| key.len() <= 1000)
}

fn changes(keys: BTreeSet<String>) -> impl Strategy<Value = (BTreeSet<String>, Vec<Change>)> {
    let known: Vec<_> = keys.iter().cloned().collect();
    let listed = proptest::sample::select(known.clone());
    let key = prop_oneof![key(), listed, proptest::sample::select(known).prop_map(|key| key + "/a")];
    let settled = prop_oneof![Just(Settled::Not), Just(Settled::Before), Just(Settled::After)];
    (Just(keys), proptest::collection::vec((key, any::<bool>(), settled), 0..8))
}

fn cases() -> impl Strategy<Value = (BTreeSet<String>, Vec<Change>)> {
    proptest::collection::btree_set(key(), 1..10).prop_flat_map(changes)
}

/// Every path that any of the keys may be found under, or that lies above.
fn paths(keys: &BTreeSet<String>, changes: &[Change]) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for key in keys.iter().chain(changes.iter().map(|(key, ..)| key)) {
        for shape in [Shape::Plain, Shape::Beside] {
            let path = keymap::encode(key.as_bytes(), shape);
            paths.extend(path.match_indices('/').map(|(slash, _)| path[..slash].to_owned()));
            paths.insert(path);
        }
    }
    paths
}

fn write(bench: &Bench, changes: &[Change]) {
    let now = bench.catalog.now();
    for (key, put, settled) in changes {
        let settled = match settled {
            Settled::Not => None,
            Settled::Before => Some(now - 1),
            Settled::After => Some(now),
        };
        if *put {
            bench.written.put(key, u64::from(!key.ends_with('/')), settled);
        } else {
            bench.written.lay(key, Laid { attributes: None, settled, at: None });
        }
    }
}

async fn walked(bench: &Bench) -> BTreeMap<String, Item> {
    let walked = walk(&bench.view, "", 5).await.unwrap();
    walked.into_iter().map(|item| (item.name, item.item)).collect()
}

fn found(told: Result<Item>) -> Option<Item> {
    told.inspect_err(|error| assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory), "{error}"))
        .ok()
}

/// Stat after a walk that is fresh; `looked` whether every name was looked at before the changes too.
async fn after_a_walk(keys: &BTreeSet<String>, changes: &[Change], looked: bool) {
    let bench = Bench::new(TestSource::default().with(keys), MINUTE);
    walked(&bench).await;
    let paths = paths(keys, changes);
    for path in paths.iter().filter(|_| looked) {
        let _ = found(bench.view.stat(path).await);
    }
    let spent = bench.source.requests();
    write(&bench, changes);
    let walked = walked(&bench).await;
    for path in &paths {
        let told = found(bench.view.stat(path).await);
        assert_eq!(told.as_ref(), walked.get(path), "{path}");
        assert_eq!(found(bench.view.stat(path).await), told, "{path} again");
    }
    assert_eq!(bench.source.requests(), spent, "something was asked");
}

/// Stat of names that were asked for one by one, before the changes (`looked`) or never.
async fn by_questions(keys: &BTreeSet<String>, changes: &[Change], looked: bool) {
    // The two sources give the same objects the same versions.
    let bench = Bench::new(TestSource::default().with(keys), MINUTE);
    let other = Bench::new(TestSource::default().with(keys), MINUTE);
    let before = walked(&other).await;
    write(&other, changes);
    let after = walked(&other).await;
    let paths = paths(keys, changes);
    for path in paths.iter().filter(|_| looked) {
        let _ = found(bench.view.stat(path).await);
    }
    write(&bench, changes);
    for path in &paths {
        let plain = match keymap::decode(path) {
            Some(keymap::Place::Beside(key)) => keymap::encode(&key, Shape::Plain),
            _ => path.clone(),
        };
        let was_directory = before.get(&plain) == Some(&Item::Directory);
        // A directory whose last object was removed here may go on to show, and with it the name of an object beside.
        let emptied = was_directory && after.get(&plain) != Some(&Item::Directory);
        // Nobody was asked whether an object that was written or removed here lies beside a directory.
        let unasked = was_directory
            && !looked
            && changes.iter().any(|(key, ..)| keymap::encode(key.as_bytes(), Shape::Plain) == plain);
        if !emptied && !unasked {
            let told = found(bench.view.stat(path).await);
            assert_eq!(told.as_ref(), after.get(path), "{path}, looked at before: {looked}");
        }
    }
}

/// Without those that the source had before anything was asked: a name that nobody asked for is believed to be as it
/// was written, as long as that is fresh.
fn not_before(changes: &[Change]) -> Vec<Change> {
    changes.iter().filter(|(.., settled)| !matches!(settled, Settled::Before)).cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn stat_agrees_with_walk_whatever_was_listed_and_changed((keys, changes) in cases(), looked in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(after_a_walk(&keys, &changes, looked));
    }

    #[test]
    fn stat_agrees_with_walk_whatever_was_asked_one_by_one_and_changed((keys, changes) in cases(), looked in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let changes = if looked { changes } else { not_before(&changes) };
        runtime.block_on(by_questions(&keys, &changes, looked));
    }
}
