//! Snapshots: what a walk showed is what the document says, and a document that was harmed is refused.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::path::{Path, PathBuf};

use penstock_catalog::{Change, Item, NamedItem, Snapshot, SnapshotFacts, SnapshotWriter};
use penstock_types::{ErrorKind, Freshness, ObjectAttributes, ObjectKey};
use proptest::prelude::*;
use support::{Bench, TestSource};

fn facts(prefix: &str) -> SnapshotFacts {
    SnapshotFacts {
        name: "it".into(),
        path: "/data".into(),
        created_ms: 5,
        prefix: prefix.into(),
        attachment: "{}".into(),
        files: 0,
        size_bytes: 0,
    }
}

/// Everything below a directory, as its walk shows it.
async fn walked(bench: &Bench, path: &str) -> Vec<NamedItem> {
    let (mut items, mut after) = (Vec::new(), None);
    loop {
        let page = bench.view.walk(path, after.as_deref(), 700).await.unwrap();
        items.extend(page.items);
        after = page.next;
        if after.is_none() {
            return items;
        }
    }
}

fn write(items: &[NamedItem], prefix: &str, directory: &Path, name: &str) -> PathBuf {
    let mut writer = SnapshotWriter::new(Vec::new(), facts(prefix)).unwrap();
    items.iter().for_each(|item| writer.push(item).unwrap());
    let (bytes, facts) = writer.finish().unwrap();
    assert_eq!(facts.files, items.iter().filter(|item| item.item != Item::Directory).count() as u64);
    let path = directory.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Files of a walk: path, key, attributes.
fn files(items: &[NamedItem]) -> Vec<(String, ObjectKey, ObjectAttributes)> {
    let file = |item: &NamedItem| match &item.item {
        Item::File { key, attributes } => Some((item.name.clone(), key.clone(), attributes.clone())),
        Item::Directory => None,
    };
    items.iter().filter_map(file).collect()
}

fn read(path: &Path) -> Vec<(String, ObjectKey, ObjectAttributes)> {
    let snapshot = Snapshot::open(path).unwrap();
    let entries = snapshot.entries().map(Result::unwrap);
    entries.filter_map(|entry| Some((entry.path, entry.key, entry.attributes?))).collect()
}

fn name_bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(b'/'), Just(b'a'), Just(b'b'), Just(b'-'), Just(b'.'), Just(b'%'), any::<u8>()];
    prop_oneof![4 => prop::collection::vec(byte, 1..12), 1 => prop::collection::vec(Just(b'x'), 240..600)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_snapshot_says_of_every_file_what_the_walk_said(keys in prop::collection::btree_set(name_bytes(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let source = TestSource::default();
            for (size, key) in keys.iter().enumerate() {
                source.store([b"p/", &key[..]].concat(), size as u64);
            }
            let bench = Bench::new(source, Freshness::Immutable);
            let directory = tempfile::tempdir().unwrap();
            let Ok(items) = bench.view.walk("p", None, 10_000).await else { return };
            let path = write(&items.items, "p/", directory.path(), "it");
            assert_eq!(read(&path), files(&items.items));
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rows_and_empty_directories_come_back_and_paths_are_below_what_was_frozen() {
    let source = TestSource::default();
    for number in 0..3000 {
        source.store(format!("in/{:02}/{number:05}", number % 70), number);
    }
    source.store("in/empty/", 0);
    source.store("outside", 1);
    let bench = Bench::new(source, Freshness::Immutable);
    let directory = tempfile::tempdir().unwrap();
    let items = walked(&bench, "in").await;
    let path = write(&items, "in/", directory.path(), "it");
    assert_eq!(read(&path), files(&items));
    let snapshot = Snapshot::open(&path).unwrap();
    assert!(snapshot.rows() > 5);
    let directories: Vec<_> = snapshot.entries().map(Result::unwrap).filter(|each| each.attributes.is_none()).collect();
    assert_eq!(directories.len(), 1);
    assert_eq!((directories[0].path.as_str(), directories[0].key.as_bytes()), ("empty", &b"in/empty/"[..]));
    assert_eq!(snapshot.facts().size_bytes, (0..3000).sum::<u64>());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_what_was_added_removed_and_changed_and_nothing_else() {
    let source = TestSource::default();
    for number in 0..2000 {
        source.store(format!("d/{number:04}"), number);
    }
    let bench = Bench::new(source, Freshness::Seconds(0.0));
    let directory = tempfile::tempdir().unwrap();
    let before = write(&walked(&bench, "d").await, "d/", directory.path(), "before");
    bench.source.store("d/0007", 9);
    bench.source.store("d/0999x", 1);
    bench.source.remove("d/1999");
    let after = write(&walked(&bench, "d").await, "d/", directory.path(), "after");
    let (before, after) = (Snapshot::open(&before).unwrap(), Snapshot::open(&after).unwrap());
    let changes: Vec<_> = before.changes(&after).map(Result::unwrap).collect();
    let expected = [(Change::Changed, "0007"), (Change::Added, "0999x"), (Change::Removed, "1999")];
    assert_eq!(changes, expected.map(|(change, path)| (change, path.to_string())));
    assert_eq!(after.changes(&after).count(), 0);
    assert_ne!(before.identity(), after.identity());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_was_cut_short_or_changed_anywhere_is_refused_and_never_believed() {
    let source = TestSource::default();
    for number in 0..1100 {
        source.store(format!("d/{number:04}"), number);
    }
    let bench = Bench::new(source, Freshness::Immutable);
    let directory = tempfile::tempdir().unwrap();
    let items = walked(&bench, "d").await;
    let whole = std::fs::read(write(&items, "d/", directory.path(), "it")).unwrap();
    let path = directory.path().join("harmed");
    let look = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let entries = |snapshot: Snapshot| snapshot.entries().collect::<Result<Vec<_>, _>>();
        Snapshot::open(&path).and_then(entries).map(|_| ()).unwrap_err().kind()
    };
    for length in (0..whole.len()).step_by(997).chain([whole.len() - 1]) {
        assert_eq!(look(&whole[..length]), ErrorKind::Corrupt, "cut to {length}");
    }
    for at in (16..whole.len()).step_by(61).chain(whole.len() - 32..whole.len()) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        assert_eq!(look(&bytes), ErrorKind::Corrupt, "byte {at}");
    }
    assert_eq!(Snapshot::open(&directory.path().join("none")).err().unwrap().kind(), ErrorKind::NotFound);
}
