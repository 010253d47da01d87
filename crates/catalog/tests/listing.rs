//! Lists and walks: what they show, what they cost, and how they fail.

#![allow(clippy::print_stdout, reason = "what was measured is part of the result")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use penstock_catalog::Item;
use penstock_types::{ErrorKind, Freshness};
use support::*;

fn dataset(directories: usize, files: usize) -> Vec<String> {
    (0..directories).flat_map(|d| (0..files).map(move |f| format!("train/d{d:03}/f{f:05}.bin"))).collect()
}

#[tokio::test]
async fn a_list_shows_names_in_key_order_and_costs_nothing_while_it_is_fresh() {
    let bench = Bench::new(TestSource::default().with(["a", "a-1", "a/x", "b/c/d", "z"]), MINUTE);
    let items = list(&bench.view, "", 100).await.unwrap();
    assert_eq!(names(&items), ["@%a%", "a-1", "a/", "b/", "z"]);
    assert_eq!(bench.source.requests(), 1);
    assert_eq!(list(&bench.view, "", 2).await.unwrap(), items);
    assert_eq!(bench.source.requests(), 1);
    bench.advance(60.0);
    list(&bench.view, "", 100).await.unwrap();
    assert_eq!(bench.source.requests(), 2);
}

#[tokio::test]
async fn a_walk_shows_parents_before_children_and_what_it_learnt_costs_nothing_afterwards() {
    let bench = Bench::new(TestSource::default().with(dataset(3, 2)), MINUTE);
    let items = walk(&bench.view, "", 4).await.unwrap();
    assert_eq!(
        names(&items),
        [
            "train/",
            "train/d000/",
            "train/d000/f00000.bin",
            "train/d000/f00001.bin",
            "train/d001/",
            "train/d001/f00000.bin",
            "train/d001/f00001.bin",
            "train/d002/",
            "train/d002/f00000.bin",
            "train/d002/f00001.bin"
        ]
    );
    let spent = bench.source.requests();
    assert_eq!(walk(&bench.view, "train/d001", 100).await.unwrap().len(), 2);
    assert_eq!(list(&bench.view, "train", 100).await.unwrap().len(), 3);
    assert!(matches!(bench.view.stat("train/d002/f00001.bin").await, Ok(Item::File { .. })));
    assert_eq!(bench.view.stat("train/d002").await, Ok(Item::Directory));
    assert_eq!(bench.view.stat("train/d003").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(bench.view.stat("train/d002/f00001.bin/x").await.unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(bench.source.requests(), spent);
}

#[tokio::test(start_paused = true)]
async fn a_walk_of_twenty_thousand_objects_takes_a_few_round_trips_and_few_requests() {
    let bench = Bench::new(TestSource::with_delay(30).with(dataset(100, 200)), MINUTE);
    let started = tokio::time::Instant::now();
    let items = walk(&bench.view, "", 4096).await.unwrap();
    let took = started.elapsed();
    assert_eq!(items.len(), 20_101);
    println!("20,000 objects in 100 directories: {took:?}, {} requests", bench.source.requests());
    assert!(took <= Duration::from_millis(400), "{took:?}");
    assert!(bench.source.requests() <= 26 + 16, "{} requests", bench.source.requests());
    let spent = bench.source.requests();
    assert_eq!(walk(&bench.view, "", 4096).await.unwrap(), items);
    assert_eq!(bench.source.requests(), spent);
    bench.advance(61.0);
    let started = tokio::time::Instant::now();
    assert_eq!(walk(&bench.view, "", 4096).await.unwrap(), items);
    println!("again when stale: {:?}, {} requests", started.elapsed(), bench.source.requests() - spent);
    assert!(bench.source.requests() - spent <= 26 + 6, "{} requests", bench.source.requests() - spent);
}

#[tokio::test(start_paused = true)]
async fn what_a_walk_has_given_is_known_while_it_goes_on() {
    let mut source = TestSource::with_delay(30).with(dataset(100, 200));
    source.list_start_after = false;
    let bench = Bench::new(source, MINUTE);
    let page = bench.view.walk("", None, 300).await.unwrap();
    assert!(page.items.len() > 200);
    for known in ["train/d000", "train/d000/f00000.bin", "train/d000/f00199.bin"] {
        bench.view.stat(known).await.unwrap();
    }
    let absent = bench.view.stat("train/d000/f00007.tar").await.unwrap_err();
    assert_eq!((absent.kind(), bench.source.stats()), (ErrorKind::NotFound, 0));
    assert!(bench.source.lists() < 20, "the walk has ended: {} pages", bench.source.lists());
    bench.view.stat("train/d099/f00199.bin").await.unwrap();
    assert_eq!(bench.source.stats(), 1, "what it has not come to is asked for");
}

#[tokio::test(start_paused = true)]
async fn a_large_directory_is_listed_in_several_ranges_at_once() {
    let keys: Vec<String> = (0..20_000).map(|n| format!("img_{n:07}.jpg")).collect();
    let bench = Bench::new(TestSource::with_delay(30).with(&keys), MINUTE);
    let started = tokio::time::Instant::now();
    let first = bench.view.list("", None, 10).await.unwrap();
    assert_eq!(first.items.len(), 10);
    assert!(started.elapsed() < Duration::from_millis(100), "the first page came after {:?}", started.elapsed());
    let items = list(&bench.view, "", 4096).await.unwrap();
    println!("20,000 in one directory: {:?}, {} requests", started.elapsed(), bench.source.requests());
    assert_eq!(names(&items), keys);
    assert!(bench.source.most_at_once.load(Ordering::SeqCst) > 2);
    assert!(started.elapsed() <= Duration::from_millis(500), "{:?}", started.elapsed());
    assert!(bench.source.requests() <= 26 + 16, "{} requests", bench.source.requests());
}

#[tokio::test(start_paused = true)]
async fn ranges_converge_whatever_the_names_are() {
    let hex = |n: u64| format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    type Names = Box<dyn Fn(u64) -> String>;
    let shapes: [(&str, Names); 5] = [
        ("counter", Box::new(|n| format!("shard-{n:08}.tar"))),
        ("hash", Box::new(hex)),
        ("counter without leading zeros", Box::new(|n| format!("part-{n}"))),
        ("deep tree", Box::new(move |n| format!("data/{}/{}/x.json", &hex(n)[..2], hex(n)))),
        ("one child a level", Box::new(|n| format!("a/b/c/2024/{:02}/{:02}/log-{n:06}", n % 12 + 1, n % 28 + 1))),
    ];
    for (name, shape) in shapes {
        let keys: Vec<String> = (0..100_000).map(shape).collect();
        let bench = Bench::new(TestSource::with_delay(30).with(&keys), MINUTE);
        let started = tokio::time::Instant::now();
        let items = walk(&bench.view, "", 4096).await.unwrap();
        let files = items.iter().filter(|item| item.item != Item::Directory).count();
        println!("{name}: {files} files, {:?}, {} requests", started.elapsed(), bench.source.requests());
        assert_eq!(files, 100_000, "{name}");
        assert!(bench.source.requests() <= 130 + 32, "{name}: {} requests", bench.source.requests());
        assert!(started.elapsed() < Duration::from_millis(1500), "{name}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_source_that_cannot_start_anywhere_is_listed_page_after_page() {
    let mut source = TestSource::default().with(dataset(4, 1000));
    source.list_start_after = false;
    let bench = Bench::new(source, MINUTE);
    assert_eq!(walk(&bench.view, "", 4096).await.unwrap().len(), 4005);
    assert_eq!(bench.source.requests(), 4);
    assert_eq!(bench.source.most_at_once.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_listing_that_fails_in_the_middle_fails_and_leaves_nothing_that_looks_complete() {
    let mut failures = 0;
    for calls in 0..8 {
        let bench = Bench::new(TestSource::default().with(dataset(10, 500)), MINUTE);
        bench.source.fail_after(calls);
        // Some of the calls only ask where to cut; without their answer the walk is slower and just as right.
        match walk(&bench.view, "", 4096).await {
            Ok(items) => assert_eq!(items.len(), 5011),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                failures += 1;
            }
        }
        bench.source.fail_after(-1);
        assert_eq!(walk(&bench.view, "", 4096).await.unwrap().len(), 5011);
    }
    assert!(failures >= 5, "{failures} of 8 calls mattered");
}

#[tokio::test(start_paused = true)]
async fn many_readers_share_one_listing() {
    let bench = Bench::new(TestSource::with_delay(30).with(dataset(1, 3000)), MINUTE);
    let readers = (0..20).map(|_| {
        let view = bench.view.clone();
        tokio::spawn(async move { list(&view, "train/d000", 512).await.unwrap().len() })
    });
    for reader in readers.collect::<Vec<_>>() {
        assert_eq!(reader.await.unwrap(), 3000);
    }
    assert!(bench.source.requests() <= 3 + 16, "{} requests", bench.source.requests());
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_nobody_reads_stops_asking_and_is_given_up() {
    let mut source = TestSource::with_delay(30).with((0..200_000).map(|n| format!("{n:07}")));
    source.list_start_after = false;
    let bench = Bench::new(source, MINUTE);
    let first = bench.view.list("", None, 10).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let spent = bench.source.requests();
    assert!(spent < 120, "{spent} requests for a page");
    assert!(!bench.view.following("0000009", 3).is_empty(), "what was found is used");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.source.requests(), spent);
    // Whoever comes back while it waits goes on where it was.
    let mut next = first.next;
    let mut count = 10;
    while let Some(after) = next {
        let page = bench.view.list("", Some(&after), 4096).await.unwrap();
        count += page.items.len();
        next = page.next;
    }
    assert_eq!((count, bench.source.requests()), (200_000, 200));
    bench.advance(60.0);
    bench.view.list("", None, 10).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let spent = bench.source.requests();
    assert_eq!(list(&bench.view, "", 4096).await.unwrap().len(), 200_000);
    assert_eq!(bench.source.requests() - spent, 200, "a listing given up is begun anew");
}

#[tokio::test]
async fn with_freshness_zero_every_list_asks_and_a_listing_begun_is_read_to_its_end() {
    let bench = Bench::new(TestSource::default().with(["a", "b", "c"]), Freshness::Seconds(0.0));
    let first = bench.view.list("", None, 2).await.unwrap();
    bench.source.remove("c");
    let rest = bench.view.list("", first.next.as_deref(), 2).await.unwrap();
    assert_eq!(names(&rest.items), ["c"]);
    assert_eq!(names(&list(&bench.view, "", 10).await.unwrap()), ["a", "b"]);
    assert_eq!(bench.source.lists(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_object_whose_directory_comes_far_behind_it_does_not_hold_up_the_listing() {
    for with_directory in [false, true] {
        let keys = (0..30_000).map(|n| format!("img-{n:07}"));
        let source = TestSource::with_delay(30).with(std::iter::once("img".to_owned()).chain(keys));
        if with_directory {
            source.store("img/x", 1);
        }
        let bench = Bench::new(source, MINUTE);
        let started = tokio::time::Instant::now();
        let first = bench.view.list("", None, 10).await.unwrap();
        println!("first page after {:?}", started.elapsed());
        assert!(started.elapsed() <= Duration::from_millis(120), "{:?}", started.elapsed());
        assert_eq!(first.items[0].name, if with_directory { "@%img%" } else { "img" });
        let items = list(&bench.view, "", 4096).await.unwrap();
        assert_eq!(items.len(), 30_001 + usize::from(with_directory));
        assert_eq!(items[..10], first.items);
    }
}

#[tokio::test]
async fn what_is_not_a_directory_is_not_listed() {
    let bench = Bench::new(TestSource::default().with(["file", "dir/x"]), MINUTE);
    bench.source.store("empty/", 0);
    assert_eq!(bench.view.list("file", None, 10).await.unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(bench.view.list("none", None, 10).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(bench.view.walk("file", None, 10).await.unwrap_err().kind(), ErrorKind::NotADirectory);
    assert!(bench.view.list("empty", None, 10).await.unwrap().items.is_empty());
    assert_eq!(bench.view.list("", Some("nonsense"), 10).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    let nothing = Bench::new(TestSource::default(), MINUTE);
    assert!(nothing.view.list("", None, 10).await.unwrap().items.is_empty());
    assert!(nothing.view.walk("", None, 10).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn facts_are_kept_across_a_restart_and_not_believed_when_the_clock_went_back() {
    let bench = Bench::new(TestSource::default().with(dataset(2, 5)), MINUTE);
    let items = walk(&bench.view, "", 100).await.unwrap();
    let (source, clock) = (bench.source.clone(), bench.clock.clone());
    let spent = source.requests();
    clock.advance(Duration::from_secs(30));
    let (catalog, directory) = bench.restart().await;
    let view = catalog.view("scope", source.clone(), "".into(), MINUTE, None);
    assert_eq!(walk(&view, "", 100).await.unwrap(), items);
    assert_eq!(source.requests(), spent);
    let other = catalog.view("another scope", source.clone(), "".into(), MINUTE, None);
    assert_eq!(walk(&other, "", 100).await.unwrap(), items);
    assert!(source.requests() > spent);
    catalog.close();
    drop((view, other, catalog));
    clock.jump_wall(-3_600_000);
    let spent = source.requests();
    let catalog = reopen(&directory.path().join("catalog.redb"), &clock).await;
    let view = catalog.view("scope", source.clone(), "".into(), MINUTE, None);
    assert_eq!(walk(&view, "", 100).await.unwrap(), items);
    assert!(source.requests() > spent, "facts of unknown age were believed");
}

#[tokio::test]
async fn odd_keys_are_shown_below_a_prefix_and_found_by_the_paths_shown() {
    let long = format!("data/{}/x", "n".repeat(700));
    let kanji = format!("data/{}", "家".repeat(200));
    let keys: Vec<Vec<u8>> = [
        "data/a//b",
        "data//x",
        "data/./y",
        "data/line\nbreak",
        "data/@%z",
        "data/k",
        "data/k/v",
        "data/k-1",
        &long,
        &kanji,
    ]
    .iter()
    .map(|key| key.as_bytes().to_vec())
    .chain([b"data/\xff\xfe".to_vec()])
    .collect();
    let bench = Bench::below(TestSource::default().with(&keys), MINUTE, "data/");
    bench.source.store("data/with content/", 5);
    let walked = walk(&bench.view, "", 3).await.unwrap();
    let files: Vec<_> = walked.iter().filter(|item| item.item != Item::Directory).collect();
    assert_eq!(files.len(), keys.len() + 1);
    let unknown = bench.view_below("data/", Freshness::Seconds(0.0));
    for item in &walked {
        assert_eq!(bench.view.stat(&item.name).await.as_ref(), Ok(&item.item), "{} from the listing", item.name);
        assert_eq!(unknown.stat(&item.name).await.as_ref(), Ok(&item.item), "{} from the source", item.name);
        if item.item == Item::Directory {
            let listed = list(&unknown, &item.name, 2).await.unwrap();
            let below = walked.iter().filter_map(|other| other.name.strip_prefix(&item.name)?.strip_prefix('/'));
            let expected: Vec<_> = below.filter(|name| !name.contains('/')).collect();
            let listed: Vec<_> = listed.iter().map(|item| item.name.as_str()).collect();
            assert_eq!(listed, expected, "the list of {}", item.name);
            let walked_below = walk(&unknown, &item.name, 2).await.unwrap();
            let prefix = format!("{}/", item.name);
            assert_eq!(walked_below.len(), walked.iter().filter(|other| other.name.starts_with(&prefix)).count());
        }
    }
    for name in ["@%k", "@%a%", "k%", "./y", "@%with content%"] {
        assert_eq!(unknown.stat(name).await.map_err(|error| error.kind()), Err(ErrorKind::NotFound), "{name}");
        assert_eq!(bench.view.stat(name).await.map_err(|error| error.kind()), Err(ErrorKind::NotFound), "{name}");
    }
    let _ = Arc::clone(&bench.view);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_walk_misses_nothing_while_newer_listings_take_the_place_of_the_one_it_reads() {
    // Long enough for many rows, and stale at once: every walk that begins lists anew and removes what others read.
    let bench = Bench::new(TestSource::default().with(dataset(10, 900)), Freshness::Seconds(0.0));
    let walks = (0..4).map(|reader| {
        let view = Arc::clone(&bench.view);
        tokio::spawn(async move {
            for _ in 0..12 {
                let items = walk(&view, "", 1500 + reader).await.unwrap();
                assert_eq!(items.len(), 9011, "reader {reader} missed names");
            }
        })
    });
    for walked in futures_util::future::join_all(walks).await {
        walked.unwrap();
    }
}
