//! Names of what was written or removed here, while the source has not got it and after.

mod support;

use std::time::Duration;

use penstock_catalog::Item;
use penstock_types::{ErrorKind, Freshness};
use support::*;

fn shown(item: Item) -> u64 {
    match item {
        Item::File { attributes, .. } => attributes.size,
        Item::Directory => panic!("a directory has no size"),
    }
}

#[tokio::test]
async fn a_key_with_an_unsettled_change_is_answered_from_the_overlay_alone() {
    for freshness in [MINUTE, Freshness::Seconds(0.0), Freshness::Immutable] {
        let bench = Bench::below(TestSource::default().with(["d/old", "d/removed"]), freshness, "d/");
        let attributes = bench.written.put("d/new", 1, None);
        bench.written.put("d/old", 2, None);
        bench.written.remove("d/removed", None);
        assert_eq!(bench.view.stat("new").await, Ok(Item::File { key: "d/new".into(), attributes }));
        for _ in 0..2 {
            assert_eq!(bench.view.stat("old").await.map(shown), Ok(2));
            assert_eq!(bench.view.stat_cached("old").unwrap().map(shown), Ok(2));
            assert_eq!(bench.view.stat_valid("old").unwrap().0.map(shown), Ok(2));
            assert_eq!(bench.view.revalidate("old").await.map(shown), Ok(2));
            for told in [bench.view.stat("removed").await, bench.view.revalidate("removed").await] {
                assert_eq!(told.unwrap_err().kind(), ErrorKind::NotFound);
            }
        }
        assert_eq!(bench.source.requests(), 0, "{freshness:?}");
    }
}

#[tokio::test]
async fn a_directory_that_exists_because_written_files_are_below_it_is_found_without_a_request_and_listed() {
    let bench = Bench::new(TestSource::default().with(["z"]), MINUTE);
    bench.written.put("runs/1/a.pt", 5, None);
    bench.written.put("runs/1/b.pt", 6, None);
    for path in ["runs", "runs/1"] {
        assert_eq!(bench.view.stat(path).await, Ok(Item::Directory), "{path}");
        assert_eq!(bench.view.revalidate(path).await, Ok(Item::Directory), "{path}");
    }
    assert_eq!(bench.source.requests(), 0);
    assert_eq!(names(&list(&bench.view, "runs", 1).await.unwrap()), ["1/"]);
    assert_eq!(names(&list(&bench.view, "runs/1", 1).await.unwrap()), ["a.pt", "b.pt"]);
    assert_eq!(names(&list(&bench.view, "", 1).await.unwrap()), ["runs/", "z"]);
    let all = ["runs/", "runs/1/", "runs/1/a.pt", "runs/1/b.pt", "z"];
    assert_eq!(names(&walk(&bench.view, "", 1).await.unwrap()), all);
    assert_eq!(bench.view.list("runs/1/a.pt", None, 9).await.unwrap_err().kind(), ErrorKind::NotADirectory);
    bench.written.forget("runs/1/a.pt");
    bench.written.forget("runs/1/b.pt");
    assert_eq!(names(&walk(&bench.view, "", 1).await.unwrap()), ["z"]);
    assert_eq!(bench.view.stat("runs").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_removed_key_is_absent_whatever_the_source_or_a_hot_fact_says() {
    let bench = Bench::new(TestSource::default().with(["d/a", "d/b"]), Freshness::Seconds(600.0));
    walk(&bench.view, "", 10).await.unwrap();
    for _ in 0..2 {
        assert!(bench.view.stat("d/a").await.is_ok());
    }
    bench.written.remove("d/a", None);
    assert_eq!(bench.view.stat("d/a").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(names(&list(&bench.view, "d", 10).await.unwrap()), ["b"]);
    // The source has removed it too, and nobody asked it since.
    let moment = bench.catalog.now();
    bench.source.remove("d/a");
    bench.written.settle("d/a", moment, "");
    bench.advance(90.0);
    assert_eq!(bench.view.stat("d/a").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(names(&walk(&bench.view, "", 10).await.unwrap()), ["d/", "d/b"]);
    // Somebody else makes it anew.
    bench.source.store("d/a", 3);
    assert_eq!(bench.view.revalidate("d/a").await.map(shown), Ok(3));
    assert_eq!(bench.view.stat("d/a").await.map(shown), Ok(3));
}

#[tokio::test]
async fn a_settled_change_hides_only_what_was_asked_for_up_to_that_moment() {
    let bench = Bench::new(TestSource::default().with(["d/a", "d/listed"]), Freshness::Seconds(600.0));
    for path in ["d/a", "d/listed"] {
        bench.view.stat(path).await.unwrap();
        bench.written.put(path, 100, None);
    }
    list(&bench.view, "d", 10).await.unwrap();
    let spent = bench.source.requests();
    let moment = bench.catalog.now();
    bench.written.settle("d/a", moment, "new");
    bench.written.settle("d/listed", moment, "new");
    // Hot facts, kept names and listings are as old as the change, or older.
    for path in ["d/a", "d/listed"] {
        assert_eq!(version(&bench.view.stat(path).await.unwrap()), "new");
        assert_eq!(bench.view.stat(path).await.map(shown), Ok(100));
    }
    assert_eq!(bench.source.requests(), spent);
    bench.advance(1.0);
    bench.source.store("d/a", 200);
    bench.source.store("d/listed", 200);
    assert_eq!(bench.view.revalidate("d/a").await.map(shown), Ok(200));
    assert_eq!(bench.view.stat("d/a").await.map(shown), Ok(200));
    assert_eq!(bench.view.stat("d/listed").await.map(shown), Ok(100));
    bench.view.distrust();
    list(&bench.view, "d", 10).await.unwrap();
    assert_eq!(bench.view.stat("d/listed").await.map(shown), Ok(200));
}

#[tokio::test]
async fn a_settled_change_is_believed_for_as_long_as_an_answer_of_that_moment() {
    let bench = Bench::new(TestSource::default(), MINUTE);
    bench.source.store("a", 9);
    bench.written.put("a", 9, Some(bench.catalog.now()));
    bench.advance(40.0);
    let (told, valid) = bench.view.stat_valid("a").unwrap();
    assert_eq!((told.map(shown), valid), (Ok(9), Duration::from_secs(20)));
    bench.advance(20.0);
    assert!(bench.view.stat_cached("a").is_none());
    bench.source.store("a", 10);
    assert_eq!(bench.view.stat("a").await.map(shown), Ok(10));
    let strict = bench.view_below("", Freshness::Seconds(0.0));
    bench.written.put("a", 11, Some(bench.catalog.now()));
    bench.source.store("a", 12);
    bench.advance(0.001);
    assert_eq!(strict.stat("a").await.map(shown), Ok(12));
}

#[tokio::test(start_paused = true)]
async fn a_question_that_was_sent_before_a_change_does_not_bring_the_old_version_back() {
    let bench = Bench::new(TestSource::with_delay(50).with(["d/a", "d/b"]), MINUTE);
    let ask = |path: &'static str| {
        let view = bench.view.clone();
        tokio::spawn(async move { view.stat(path).await })
    };
    let (put, removed, directory) = (ask("d/a"), ask("d/b"), ask("new"));
    while bench.source.requests() < 6 {
        tokio::task::yield_now().await;
    }
    bench.advance(0.01);
    let settled = Some(bench.catalog.now());
    bench.written.put("d/a", 100, settled);
    bench.written.remove("d/b", settled);
    bench.written.put("new/x", 100, settled);
    assert_eq!(put.await.unwrap().map(shown), Ok(100));
    assert_eq!(removed.await.unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(directory.await.unwrap(), Ok(Item::Directory));
    // What was learnt then is older than the change.
    assert_eq!(bench.view.stat("d/a").await.map(shown), Ok(100));
    assert_eq!(bench.view.stat("d/b").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(bench.view.stat("new").await, Ok(Item::Directory));
}

#[tokio::test(start_paused = true)]
async fn a_listing_under_way_shows_written_files_only_as_far_as_it_has_come() {
    let mut source = TestSource::with_delay(20).with((0..3000).map(|n| format!("f{n:04}")));
    source.list_start_after = false;
    let bench = Bench::new(source, MINUTE);
    for key in ["e", "f0500-written", "f2500-written", "g/h"] {
        bench.written.put(key, 1, None);
    }
    bench.written.remove("f0001", None);
    bench.written.remove("f2999", None);
    let page = bench.view.list("", None, 2000).await.unwrap();
    assert!(bench.source.requests() < 3, "the first page of the source is enough for one of the list");
    let first = names(&page.items);
    assert!(first.len() <= 1001 && first.contains(&"e".into()) && first.contains(&"f0500-written".into()), "{first:?}");
    assert!(!first.contains(&"f2500-written".into()) && !first.contains(&"g/".into()));
    let (mut items, mut after) = (page.items, page.next);
    while after.is_some() {
        let page = bench.view.list("", after.as_deref(), 700).await.unwrap();
        items.extend(page.items);
        after = page.next;
    }
    let shown = names(&items);
    assert!(shown.is_sorted() && shown.len() == 3002, "{} names", shown.len());
    assert_eq!(names(&list(&bench.view, "", 999).await.unwrap()), shown);
}

#[tokio::test(start_paused = true)]
async fn a_file_written_where_the_source_has_a_directory_has_its_reserved_name_from_the_first_page_on() {
    let keys = (0..2500).map(|n| format!("a-{n:04}")).chain(["a/x".into(), "z".into()]);
    let mut source = TestSource::with_delay(20).with(keys);
    source.list_start_after = false;
    let bench = Bench::new(source, MINUTE);
    bench.written.put("a", 1, None);
    let walked = names(&walk(&bench.view, "", 100).await.unwrap());
    assert_eq!((&walked[0][..], walked.len()), ("@%a%", 2504));
    assert_eq!(walked[2501..], ["a/", "a/x", "z"]);
    assert_eq!(bench.view.stat("@%a%").await.map(shown), Ok(1));
    assert_eq!(bench.view.stat("a").await, Ok(Item::Directory));
    // Without its directory it has its own name.
    bench.written.remove("a/x", None);
    let walked = names(&support::walk(&bench.view, "", 100).await.unwrap());
    assert_eq!((&walked[0][..], walked.len()), ("a", 2502));
    assert_eq!(bench.view.stat("a").await.map(shown), Ok(1));
    assert_eq!(bench.view.stat("@%a%").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_listed_file_under_whose_name_files_are_written_moves_to_its_reserved_name_and_back() {
    let bench = Bench::new(TestSource::default().with(["a", "a-1"]), MINUTE);
    assert_eq!(names(&list(&bench.view, "", 10).await.unwrap()), ["a", "a-1"]);
    bench.written.put("a/x", 1, None);
    assert_eq!(names(&list(&bench.view, "", 10).await.unwrap()), ["@%a%", "a-1", "a/"]);
    assert_eq!(bench.view.stat("@%a%").await.map(shown), Ok(7));
    assert_eq!(bench.view.stat("a").await, Ok(Item::Directory));
    bench.written.remove("a/x", None);
    assert_eq!(names(&list(&bench.view, "", 10).await.unwrap()), ["a", "a-1"]);
    assert_eq!(bench.view.stat("a").await.map(shown), Ok(7));
    assert_eq!(bench.source.requests(), 1);
}

#[tokio::test]
async fn markers_are_written_and_removed_as_they_are_listed() {
    let bench = Bench::new(TestSource::default(), MINUTE);
    bench.source.store("old/", 0);
    bench.source.store("z", 1);
    assert_eq!(names(&walk(&bench.view, "", 10).await.unwrap()), ["old/", "z"]);
    bench.written.put("new/", 0, None);
    bench.written.remove("old/", None);
    assert_eq!(names(&walk(&bench.view, "", 10).await.unwrap()), ["new/", "z"]);
    assert_eq!(bench.view.stat("new").await, Ok(Item::Directory));
    assert_eq!(bench.view.stat("old").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(list(&bench.view, "new", 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_directory_whose_last_object_was_removed_here_is_gone_once_its_listing_is_asked_for_again() {
    let bench = Bench::new(TestSource::default().with(["d/a", "z"]), MINUTE);
    assert_eq!(names(&list(&bench.view, "", 10).await.unwrap()), ["d/", "z"]);
    bench.written.remove("d/a", None);
    assert_eq!(names(&list(&bench.view, "", 10).await.unwrap()), ["d/", "z"]);
    assert!(list(&bench.view, "d", 10).await.unwrap().is_empty());
    bench.source.remove("d/a");
    bench.written.settle("d/a", bench.catalog.now(), "");
    bench.advance(60.0);
    assert_eq!(names(&list(&bench.view, "", 10).await.unwrap()), ["z"]);
    assert_eq!(bench.view.stat("d").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_page_goes_on_where_the_one_before_ended_whatever_was_written_meanwhile() {
    let bench = Bench::new(TestSource::default().with(["b", "d", "f"]), MINUTE);
    bench.written.put("a", 1, None);
    let first = bench.view.list("", None, 2).await.unwrap();
    assert_eq!(names(&first.items), ["a", "b"]);
    bench.written.put("a-late", 1, None);
    bench.written.put("c", 1, None);
    bench.written.remove("d", None);
    bench.written.forget("a");
    let rest = bench.view.list("", first.next.as_deref(), 9).await.unwrap();
    assert_eq!(names(&rest.items), ["c", "f"]);
    assert_eq!(rest.next, None);
}

#[tokio::test]
async fn what_follows_a_file_is_what_the_source_has_and_a_walk_of_the_source_shows_no_change() {
    let bench = Bench::new(TestSource::default().with(["d/a", "d/b", "d/c", "d/e"]), MINUTE);
    walk(&bench.view, "", 10).await.unwrap();
    bench.written.put("d/a-1", 1, None);
    bench.written.put("d/c", 1, None);
    bench.written.remove("d/b", None);
    bench.written.put("d/d", 1, Some(bench.catalog.now()));
    assert_eq!(names(&bench.view.following("d/a", 9)), ["d", "e"]);
    let walked = bench.view.walk_source("d", None, 9).await.unwrap();
    assert_eq!(names(&walked.items), ["a", "b", "c", "e"]);
    assert_eq!(names(&walk(&bench.view, "d", 9).await.unwrap()), ["a", "a-1", "c", "d", "e"]);
}

#[tokio::test]
async fn every_view_of_a_scope_shows_the_changes_below_its_prefix() {
    let bench = Bench::new(TestSource::default().with(["d/e/a"]), MINUTE);
    let below = bench.view_below("d/", MINUTE);
    bench.written.put("d/e/b", 1, None);
    bench.written.put("f", 1, None);
    assert_eq!(names(&walk(&below, "", 9).await.unwrap()), ["e/", "e/a", "e/b"]);
    assert_eq!(below.stat("e/b").await.map(shown), Ok(1));
    assert_eq!(below.stat("f").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(names(&walk(&bench.view, "", 9).await.unwrap()), ["d/", "d/e/", "d/e/a", "d/e/b", "f"]);
}
