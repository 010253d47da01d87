//! Listings over plain HTTP.

use crate::support::Client;
use penstock_remote::{Remote, RemoteConfig};

fn remote(keys: &[&str]) -> (tempfile::TempDir, Remote) {
    let directory = tempfile::tempdir().unwrap();
    let remote = Remote::start(RemoteConfig::new(directory.path())).unwrap();
    remote.put_synthetic("lake", keys.iter().map(|key| key.to_string()), b"same").unwrap();
    (directory, remote)
}

#[test]
fn pages_follow_each_other_without_gap_or_repetition() {
    let keys: Vec<String> =
        (0..25).flat_map(|at| [format!("d{at:02}/x"), format!("d{at:02}/y"), format!("f{at:02}")]).collect();
    let (_directory, remote) = remote(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let mut client = Client::new(&remote);
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let answer = client.get(&format!("/lake?list-type=2&delimiter=%2F&max-keys=7{token}"));
        assert_eq!(answer.element("KeyCount").parse::<usize>().unwrap(), 7.min(50 - seen.len()));
        seen.extend(answer.elements("Key"));
        seen.extend(
            answer.elements("CommonPrefixes").iter().map(|text| text.replace("<Prefix>", "").replace("</Prefix>", "")),
        );
        if answer.element("IsTruncated") == "false" {
            break;
        }
        token = format!("&continuation-token={}", answer.element("NextContinuationToken"));
    }
    seen.sort();
    let mut expected: Vec<String> = (0..25).flat_map(|at| [format!("d{at:02}/"), format!("f{at:02}")]).collect();
    expected.sort();
    assert_eq!(seen, expected);
}

#[test]
fn start_after_and_prefix_narrow_a_listing_and_strange_tokens_are_refused() {
    let (_directory, remote) = remote(&["a", "a/b", "a/c", "b"]);
    let mut client = Client::new(&remote);
    let keys = |client: &mut Client, query: &str| client.get(&format!("/lake?list-type=2&{query}")).elements("Key");
    assert_eq!(keys(&mut client, "prefix=a"), ["a", "a/b", "a/c"]);
    assert_eq!(keys(&mut client, "prefix=a&start-after=a%2Fb"), ["a/c"]);
    assert_eq!(keys(&mut client, "start-after=a%2Fd"), ["b"]);
    assert!(keys(&mut client, "max-keys=0").is_empty());
    for query in ["continuation-token=zz", "max-keys=-1"] {
        assert_eq!(client.get(&format!("/lake?list-type=2&{query}")).element("Code"), "InvalidArgument");
    }
    let first = client.get("/lake?delimiter=%2F&max-keys=2");
    assert_eq!((first.elements("Key"), first.element("NextMarker")), (vec!["a".to_string()], "a/".into()));
    assert_eq!(client.get("/lake?delimiter=%2F&marker=a%2F").elements("Key"), ["b"]);
}

#[test]
fn a_page_in_the_middle_of_a_large_bucket_costs_no_more_than_at_its_start() {
    let directory = tempfile::tempdir().unwrap();
    let remote = Remote::start(RemoteConfig::new(directory.path())).unwrap();
    let keys = (0..200_000).map(|at| format!("d{:03}/{at:09}", at / 1000));
    remote.put_synthetic("lake", keys, b"").unwrap();
    let mut client = Client::new(&remote);
    // Whole directories are skipped by seeking: a thousand common prefixes over 200,000 keys in one page.
    let answer = client.get("/lake?list-type=2&delimiter=%2F");
    assert_eq!(answer.elements("CommonPrefixes").len(), 200);
    // The quickest of many: whatever else the machine does, some of them had it for themselves.
    let quickest = |client: &mut Client, query: &str| {
        let pages = (0..50).map(|_| {
            let started = std::time::Instant::now();
            assert_eq!(client.get(&format!("/lake?list-type=2&max-keys=10&{query}")).elements("Key").len(), 10);
            started.elapsed()
        });
        pages.min().unwrap()
    };
    let first = quickest(&mut client, "prefix=d000");
    let last = quickest(&mut client, "start-after=d199%2F000199900");
    assert!(last < first * 20, "{first:?} {last:?}");
}
