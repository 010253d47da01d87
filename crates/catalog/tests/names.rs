//! Single names: what is believed and for how long, what is asked, and how often.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use penstock_catalog::Item;
use penstock_types::{ErrorKind, Freshness};
use support::*;

const ALWAYS_ASK: Freshness = Freshness::Seconds(0.0);

#[tokio::test]
async fn contract_3_opens_see_changes_made_in_the_source_after_at_most_freshness() {
    for seconds in [1.0, 60.0] {
        let bench =
            Bench::new(TestSource::default().with(["d/changed", "d/deleted", "d/stays"]), Freshness::Seconds(seconds));
        for listed_first in [false, true] {
            if listed_first {
                list(&bench.view, "d", 100).await.unwrap();
            }
            let before = bench.view.stat("d/changed").await.unwrap();
            bench.view.stat("d/deleted").await.unwrap();
            assert_eq!(bench.view.stat("d/new").await.unwrap_err().kind(), ErrorKind::NotFound);
            bench.source.store("d/changed", 8);
            bench.source.remove("d/deleted");
            bench.source.store("d/new", 9);
            bench.advance(seconds - 0.01);
            assert_eq!(bench.view.stat("d/changed").await.unwrap(), before, "a fresh fact costs nothing");
            bench.advance(0.01);
            let after = bench.view.stat("d/changed").await.unwrap();
            assert_eq!(version(&after), bench.source.attributes("d/changed").version.as_str());
            assert_eq!(bench.view.stat("d/deleted").await.unwrap_err().kind(), ErrorKind::NotFound);
            assert!(bench.view.stat("d/new").await.is_ok());
            bench.source.store("d/deleted", 1);
            bench.source.remove("d/new");
            bench.advance(seconds);
        }
    }
}

#[tokio::test]
async fn contract_3_with_freshness_zero_every_open_asks_the_source() {
    let bench = Bench::new(TestSource::default().with(["d/a"]), ALWAYS_ASK);
    list(&bench.view, "d", 10).await.unwrap();
    for round in 1..=3 {
        bench.source.store("d/a", round);
        let item = bench.view.stat("d/a").await.unwrap();
        assert_eq!(version(&item), bench.source.attributes("d/a").version.as_str());
        assert_eq!(bench.source.stats(), usize::try_from(round).unwrap());
        assert_eq!(bench.view.stat_cached("d/a"), None);
    }
}

#[tokio::test]
async fn contract_3_immutable_is_never_asked_again_but_what_is_unknown_is() {
    let bench = Bench::new(TestSource::default().with(["d/a", "d/b"]), Freshness::Immutable);
    let item = bench.view.stat("d/a").await.unwrap();
    bench.source.store("d/a", 99);
    bench.advance(1e9);
    assert_eq!(bench.view.stat("d/a").await.unwrap(), item);
    assert_eq!(bench.source.stats(), 1);
    assert!(bench.view.stat("d/b").await.is_ok());
    assert_eq!(bench.source.stats(), 2);
    assert_eq!(bench.view.stat("d/c").await.unwrap_err().kind(), ErrorKind::NotFound);
    bench.source.store("d/c", 1);
    bench.advance(61.0);
    assert!(bench.view.stat("d/c").await.is_ok(), "an absence is not for ever");
}

#[tokio::test]
async fn names_that_are_believed_for_long_are_kept_across_a_restart() {
    let bench = Bench::new(TestSource::default().with(["d/a", "d/b", "d"]), Freshness::Immutable);
    let (file, directory) = (bench.view.stat("d/a").await, bench.view.stat("d").await);
    let beside = bench.view.stat("@%d%").await;
    bench.view_below("", MINUTE).stat("d/b").await.unwrap();
    let (source, clock) = (bench.source.clone(), bench.clock.clone());
    let (catalog, _directory) = bench.restart().await;
    let view = catalog.view("scope", source.clone(), "".into(), Freshness::Immutable, None);
    let spent = source.requests();
    assert_eq!((view.stat("d/a").await, view.stat("d").await), (file, directory));
    assert_eq!(view.stat("@%d%").await, beside);
    assert_eq!(source.requests(), spent);
    assert!(view.stat("d/b").await.is_ok());
    assert!(source.requests() > spent, "what is believed for a minute is not worth a row");
    catalog.forget_scope("scope");
    clock.advance(Duration::from_secs(1));
    let view = catalog.view("scope", source.clone(), "".into(), Freshness::Immutable, None);
    assert_eq!(view.stat_cached("d/a"), None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_as_old_as_the_moment_its_request_was_sent() {
    let bench = Bench::new(TestSource::with_delay(100).with(["a"]), Freshness::Seconds(1.0));
    let asking = tokio::spawn({
        let view = bench.view.clone();
        async move { view.stat("a").await }
    });
    while bench.source.requests() < 2 {
        tokio::task::yield_now().await;
    }
    bench.advance(0.6);
    asking.await.unwrap().unwrap();
    bench.advance(0.3);
    assert!(bench.view.stat_cached("a").is_some());
    bench.advance(0.1);
    assert!(bench.view.stat_cached("a").is_none(), "the answer is a second old, though it came 0.4 s ago");
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_for_one_name_share_a_question_and_a_round_trip() {
    let bench = Bench::new(TestSource::with_delay(30).with(["d/a"]), MINUTE);
    let started = tokio::time::Instant::now();
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let view = bench.view.clone();
            tokio::spawn(async move { view.stat("d/a").await.unwrap() })
        })
        .collect();
    for asked in asking {
        asked.await.unwrap();
    }
    assert_eq!((bench.source.stats(), bench.source.lists()), (1, 1));
    assert_eq!(started.elapsed(), Duration::from_millis(30));
}

#[tokio::test(start_paused = true)]
async fn a_question_goes_on_when_the_one_who_asked_first_goes_away() {
    let bench = Bench::new(TestSource::with_delay(30).with(["a"]), MINUTE);
    let view = bench.view.clone();
    assert!(tokio::time::timeout(Duration::from_millis(10), view.stat("a")).await.is_err());
    assert!(view.stat("a").await.is_ok());
    assert_eq!(bench.source.stats(), 1);
}

#[tokio::test(start_paused = true)]
async fn with_freshness_zero_nobody_joins_a_question_that_was_sent_before() {
    let bench = Bench::new(TestSource::with_delay(30).with(["a"]), ALWAYS_ASK);
    let first = tokio::spawn({
        let view = bench.view.clone();
        async move { view.stat("a").await.unwrap() }
    });
    while bench.source.stats() == 0 {
        tokio::task::yield_now().await;
    }
    bench.source.store("a", 99);
    let second = bench.view.stat("a").await.unwrap();
    assert_eq!(version(&second), bench.source.attributes("a").version.as_str());
    first.await.unwrap();
    assert_eq!(bench.source.stats(), 2);
}

#[tokio::test]
async fn stat_after_list_costs_nothing_and_tells_the_same() {
    let bench = Bench::new(TestSource::default().with(["d/a", "d/b", "d/e/f"]), MINUTE);
    let by_head = bench.view_below("", ALWAYS_ASK).stat("d/a").await.unwrap();
    let listed = list(&bench.view, "d", 10).await.unwrap();
    let spent = bench.source.requests();
    assert_eq!(listed[0].item, by_head);
    for item in &listed {
        assert_eq!(bench.view.stat(&format!("d/{}", item.name)).await.as_ref(), Ok(&item.item));
    }
    assert_eq!(bench.view.stat("d/none").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(bench.view.stat("d/a/x").await.unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(bench.source.requests() - spent, 2, "only what is below a file had to be asked for");
}

#[tokio::test]
async fn a_name_is_a_directory_before_it_is_a_file_and_the_file_keeps_a_name() {
    let bench = Bench::new(TestSource::default().with(["a", "a/b", "only"]), MINUTE);
    bench.source.store("marked/", 0);
    for _ in 0..2 {
        assert_eq!(bench.view.stat("a").await, Ok(Item::Directory));
        assert!(matches!(bench.view.stat("@%a%").await, Ok(Item::File { key, .. }) if key.as_bytes() == b"a"));
        assert_eq!(bench.view.stat("marked").await, Ok(Item::Directory));
        assert_eq!(bench.view.stat("marked/@%").await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(bench.view.stat("@%only%").await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(bench.view.stat("").await, Ok(Item::Directory));
        walk(&bench.view, "", 10).await.unwrap();
        bench.advance(1.0);
    }
    assert_eq!(bench.view.key_of("@%a%").unwrap().as_bytes(), b"a");
    assert_eq!(bench.view.key_of("@%b").unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_path_below_a_file_is_not_a_directory_and_what_no_key_has_costs_nothing() {
    let bench = Bench::new(TestSource::default().with(["d/file"]), MINUTE);
    for path in ["d/file/x", "d/file/x/y"] {
        assert_eq!(bench.view.stat(path).await.unwrap_err().kind(), ErrorKind::NotADirectory, "{path}");
    }
    let spent = bench.source.requests();
    assert_eq!(bench.view.stat("@%d").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(bench.view.stat(&"x/".repeat(600)[..1199]).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(bench.source.requests() - spent, 0);
}

#[tokio::test]
async fn absences_are_remembered_for_a_while() {
    let bench = Bench::new(TestSource::default().with(["d/a"]), Freshness::Seconds(3600.0));
    for _ in 0..5 {
        assert_eq!(bench.view.stat("d/none").await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!(bench.source.stats(), 2, "the name and its directory");
    bench.advance(61.0);
    bench.view.stat("d/none").await.unwrap_err();
    assert_eq!(bench.source.stats(), 3);
}

#[tokio::test]
async fn several_stale_names_of_a_listed_directory_become_one_listing() {
    let keys: Vec<String> = (0..500).map(|n| format!("d/{n:04}")).collect();
    let bench = Bench::new(TestSource::default().with(&keys), MINUTE);
    for from in ["d", ""] {
        let _ = if from.is_empty() { walk(&bench.view, "", 1000).await } else { list(&bench.view, "d", 1000).await };
        bench.advance(60.0);
        let (stats, lists) = (bench.source.stats(), bench.source.lists());
        for key in &keys {
            assert!(bench.view.stat(key).await.is_ok());
        }
        assert!(bench.source.stats() - stats <= 3, "{} HEADs", bench.source.stats() - stats);
        assert!(bench.source.lists() - lists <= 4, "{} LISTs", bench.source.lists() - lists);
        bench.advance(60.0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_names_of_a_large_stale_directory_do_not_wait_for_anybody_to_read_it() {
    let keys: Vec<String> = (0..90_000).map(|n| format!("d/{n:05}")).collect();
    let mut source = TestSource::with_delay(1).with(&keys);
    source.list_start_after = false;
    let bench = Bench::new(source, MINUTE);
    list(&bench.view, "d", 4096).await.unwrap();
    bench.advance(60.0);
    let started = tokio::time::Instant::now();
    for key in &keys[89_900..] {
        assert!(bench.view.stat(key).await.is_ok());
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(bench.source.stats() < 50, "{} HEADs", bench.source.stats());
}

#[tokio::test]
async fn a_few_stale_names_of_a_huge_directory_are_asked_for_one_by_one() {
    let keys: Vec<String> = (0..20_000).map(|n| format!("d/{n:05}")).collect();
    let bench = Bench::new(TestSource::default().with(&keys), MINUTE);
    list(&bench.view, "d", 4096).await.unwrap();
    bench.advance(60.0);
    let lists = bench.source.lists();
    for key in &keys[..6] {
        bench.view.stat(key).await.unwrap();
    }
    assert_eq!((bench.source.stats(), bench.source.lists() - lists), (6, 6));
}

#[tokio::test(start_paused = true)]
async fn questions_under_way_are_bounded() {
    let keys: Vec<String> = (0..500).map(|n| format!("{n}/a")).collect();
    let bench = Bench::new(TestSource::with_delay(30).with(&keys), MINUTE);
    let asking: Vec<_> = keys
        .iter()
        .map(|key| {
            let (view, key) = (bench.view.clone(), key.clone());
            tokio::spawn(async move { view.stat(&key).await.is_ok() })
        })
        .collect();
    for asked in asking {
        assert!(asked.await.unwrap());
    }
    assert!(bench.source.most_at_once.load(Ordering::SeqCst) <= 128);
}

#[tokio::test]
async fn what_turned_out_to_be_wrong_is_asked_again_and_the_newer_answer_stays() {
    let bench = Bench::new(TestSource::default().with(["d/a", "d/b"]), Freshness::Immutable);
    list(&bench.view, "d", 10).await.unwrap();
    bench.source.store("d/a", 99);
    let spent = bench.source.requests();
    bench.view.forget("d/a");
    assert_eq!(bench.view.stat_cached("d/a"), None);
    let item = bench.view.stat("d/a").await.unwrap();
    assert_eq!(version(&item), bench.source.attributes("d/a").version.as_str());
    assert_eq!(bench.view.stat("d/a").await.unwrap(), item);
    bench.view.stat("d/b").await.unwrap();
    assert_eq!(bench.source.requests() - spent, 2);
    bench.source.store("d/b", 98);
    let asked = bench.view.revalidate("d/b").await.unwrap();
    assert_eq!(version(&asked), bench.source.attributes("d/b").version.as_str());
    assert_eq!(bench.view.stat("d/b").await.unwrap(), asked);
}

#[tokio::test]
async fn a_listing_that_is_younger_than_an_answer_goes_before_it() {
    let bench = Bench::new(TestSource::default().with(["d/a"]), MINUTE);
    bench.view.stat("d/a").await.unwrap();
    bench.source.store("d/a", 99);
    bench.advance(5.0);
    let listed = list(&bench.view, "d", 10).await.unwrap();
    assert_eq!(bench.view.stat("d/a").await.unwrap(), listed[0].item, "nobody sees a file go back");
    assert_eq!(version(&listed[0].item), bench.source.attributes("d/a").version.as_str());
}

#[tokio::test]
async fn the_files_that_follow_are_told_from_what_is_known() {
    let bench = Bench::new(TestSource::default().with(["d/a", "d/b", "d/b1/x", "d/c", "e/a"]), MINUTE);
    assert!(bench.view.following("d/a", 3).is_empty());
    walk(&bench.view, "", 100).await.unwrap();
    let spent = bench.source.requests();
    assert_eq!(names(&bench.view.following("d/a", 3)), ["b", "c"]);
    assert_eq!(names(&bench.view.following("d/a", 1)), ["b"]);
    assert!(bench.view.following("d/c", 3).is_empty());
    assert!(bench.view.following("", 3).is_empty());
    assert_eq!(bench.source.requests(), spent);
}

#[tokio::test]
async fn facts_of_one_scope_are_not_seen_by_another_and_go_when_it_is_forgotten() {
    let bench = Bench::new(TestSource::default().with(["d/a"]), MINUTE);
    walk(&bench.view, "", 10).await.unwrap();
    let other = bench.catalog.view("other", bench.source.clone(), "".into(), MINUTE, None);
    assert_eq!(other.stat_cached("d/a"), None);
    let shared = bench.view_below("d/", MINUTE);
    assert!(shared.stat_cached("a").is_some());
    bench.catalog.forget_scope("scope");
    assert_eq!(shared.stat_cached("a"), None);
    let fresh = bench.view_below("d/", MINUTE);
    assert_eq!(fresh.stat_cached("a"), None);
}

#[tokio::test]
async fn an_error_of_the_source_is_given_to_who_asked_and_not_remembered() {
    let bench = Bench::new(TestSource::default().with(["a"]), MINUTE);
    for calls in [0, 1] {
        bench.source.fail_after(calls);
        assert_eq!(bench.view.revalidate("a").await.unwrap_err().kind(), ErrorKind::Unavailable);
        bench.source.fail_after(-1);
        assert!(bench.view.revalidate("a").await.is_ok());
    }
}
