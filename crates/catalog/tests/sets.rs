//! Sets as rows: whoever asks sees all of a set or nothing, whichever way is asked.

#[path = "support/mod.rs"]
mod support;

use penstock_catalog::Item;
use penstock_types::{ErrorKind, Freshness, Manifest, ObjectKey, SetFile};
use support::*;

const MINUTE: Freshness = Freshness::Seconds(60.0);

/// The manifest of a set with these files, as an object; its bytes are objects too.
fn publish(source: &TestSource, directory: &str, name: &str, id: &str, paths: &[&str]) {
    let data = format!("{directory}.penstock-data.{id}/");
    let file = |path: &&str| {
        let key = format!("{data}{path}");
        source.store(&key, 3);
        let attributes = source.attributes(&key);
        let (size, modified_ms, version) = (attributes.size, attributes.modified_ms, attributes.version);
        SetFile { path: (*path).into(), size, modified_ms, version, crc32c: "00000000".into() }
    };
    let manifest = Manifest::new(id, name, 1, "local", paths.iter().map(file).collect());
    source.store_text(format!("{directory}.penstock-set.{name}"), manifest.encode());
}

#[tokio::test]
async fn a_set_is_found_by_its_name_alone_and_its_files_are_under_other_keys() {
    let bench = Bench::new(TestSource::default().with(["d/plain"]), MINUTE);
    publish(&bench.source, "d/", "step-1", "7", &["a.bin", "x/b.bin"]);
    let Ok(Item::File { key, attributes }) = bench.view.stat("d/step-1/x/b.bin").await else { panic!("no file") };
    assert_eq!(key, ObjectKey::from("d/.penstock-data.7/x/b.bin"));
    assert_eq!(attributes, bench.source.attributes("d/.penstock-data.7/x/b.bin"));
    let spent = bench.source.requests();
    assert_eq!(bench.view.stat("d/step-1").await, Ok(Item::Directory));
    assert_eq!(bench.view.stat("d/step-1/x").await, Ok(Item::Directory));
    assert!(bench.view.stat("d/step-1/a.bin").await.is_ok());
    assert_eq!(bench.source.requests(), spent, "everything was known");
}

#[tokio::test]
async fn a_list_and_a_walk_show_sets_and_no_hidden_key() {
    for limit in [1, 2, 100] {
        let bench = Bench::new(TestSource::default().with(["d/plain", "d/zero", "e/f"]), MINUTE);
        publish(&bench.source, "d/", "step-1", "7", &["a.bin", "x/b.bin"]);
        publish(&bench.source, "d/", "step-2", "8", &["a.bin"]);
        bench.source.store("d/.penstock-data.9/lost", 5);
        bench.source.store("o/.penstock-data.9/lost", 5);
        let listed = list(&bench.view, "d", limit).await.unwrap();
        assert_eq!(names(&listed), ["plain", "step-1/", "step-2/", "zero"]);
        assert_eq!(names(&list(&bench.view, "d/step-1", limit).await.unwrap()), ["a.bin", "x/"]);
        let walked = walk(&bench.view, "", limit).await.unwrap();
        assert_eq!(
            names(&walked),
            [
                "d/",
                "d/plain",
                "d/step-1/",
                "d/step-1/a.bin",
                "d/step-1/x/",
                "d/step-1/x/b.bin",
                "d/step-2/",
                "d/step-2/a.bin",
                "d/zero",
                "e/",
                "e/f"
            ]
        );
        let Some(Item::File { key, .. }) =
            walked.iter().find(|item| item.name == "d/step-2/a.bin").map(|one| &one.item)
        else {
            panic!("no file")
        };
        assert_eq!(*key, ObjectKey::from("d/.penstock-data.8/a.bin"));
        for hidden in ["d/.penstock-set.step-1", "d/.penstock-data.7", "d/.penstock-data.7/a.bin"] {
            assert_eq!(bench.view.stat(hidden).await.unwrap_err().kind(), ErrorKind::NotFound, "{hidden}");
        }
        assert_eq!(list(&bench.view, "d/.penstock-data.7", 9).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn a_list_of_a_set_alone_finds_it() {
    let bench = Bench::new(TestSource::default(), MINUTE);
    publish(&bench.source, "r/d/", "step-1", "7", &["x/b.bin"]);
    assert_eq!(names(&list(&bench.view, "r/d/step-1/x", 9).await.unwrap()), ["b.bin"]);
}

#[tokio::test]
async fn a_set_that_was_removed_goes_when_what_is_known_of_it_is_stale() {
    let bench = Bench::new(TestSource::default().with(["d/plain"]), MINUTE);
    publish(&bench.source, "d/", "step-1", "7", &["a.bin"]);
    list(&bench.view, "d", 9).await.unwrap();
    bench.source.remove("d/.penstock-set.step-1");
    assert!(bench.view.stat("d/step-1/a.bin").await.is_ok(), "what is fresh is believed");
    bench.advance(61.0);
    assert_eq!(bench.view.stat("d/step-1/a.bin").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(names(&list(&bench.view, "d", 9).await.unwrap()), ["plain"]);
    publish(&bench.source, "d/", "step-1", "9", &["b.bin"]);
    bench.advance(61.0);
    assert!(bench.view.stat("d/step-1/b.bin").await.is_ok());
    assert_eq!(names(&walk(&bench.view, "d", 9).await.unwrap()), ["plain", "step-1/", "step-1/b.bin"]);
}

#[tokio::test]
async fn absent_names_of_a_directory_cost_one_question_about_its_sets() {
    let bench = Bench::new(TestSource::default().with(["d/plain"]), MINUTE);
    for name in ["a", "b", "c"] {
        assert_eq!(bench.view.stat(&format!("d/{name}")).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    let spent = bench.source.requests();
    assert!(bench.view.stat("d/e").await.is_err());
    assert_eq!(bench.source.requests() - spent, 2, "the name alone");
}

#[tokio::test]
async fn a_manifest_that_is_damaged_shows_nothing_and_stops_no_list() {
    let bench = Bench::new(TestSource::default().with(["d/plain"]), MINUTE);
    bench.source.store_text("d/.penstock-set.bad", b"{}".to_vec());
    assert_eq!(names(&list(&bench.view, "d", 9).await.unwrap()), ["plain"]);
    assert_eq!(bench.view.stat("d/bad/a").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_restart_shows_the_sets_of_kept_listings() {
    let bench = Bench::new(TestSource::default().with(["d/plain"]), MINUTE);
    publish(&bench.source, "d/", "step-1", "7", &["a.bin"]);
    walk(&bench.view, "", 9).await.unwrap();
    let source = bench.source.clone();
    let (catalog, _directory) = bench.restart().await;
    let view = catalog.view("scope", source, "".into(), MINUTE, None);
    assert!(view.stat("d/step-1/a.bin").await.is_ok());
    assert_eq!(names(&walk(&view, "d", 9).await.unwrap()), ["plain", "step-1/", "step-1/a.bin"]);
}
