//! Objects over plain HTTP: content, ranges, conditions, metadata, odd keys.

use crate::support::Client;
use penstock_remote::{Remote, RemoteConfig};

fn remote() -> (tempfile::TempDir, Remote) {
    let directory = tempfile::tempdir().unwrap();
    let remote = Remote::start(RemoteConfig::new(directory.path())).unwrap();
    remote.create_bucket("lake").unwrap();
    (directory, remote)
}

#[test]
fn an_object_comes_back_as_it_was_put_whole_and_in_ranges() {
    let (_directory, remote) = remote();
    let mut client = Client::new(&remote);
    for size in [0_usize, 1, 10, 3_000_000] {
        let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        assert_eq!(client.put("/lake/a", &content).status, 200);
        let answer = client.get("/lake/a");
        assert_eq!((answer.status, answer.body.as_slice()), (200, content.as_slice()));
        assert_eq!(answer.header("accept-ranges"), "bytes");
        let head = client.send("HEAD", "/lake/a", &[], b"");
        assert_eq!(head.header("content-length"), size.to_string());
        assert_eq!(head.header("etag"), answer.header("etag"));
        assert_eq!(head.header("last-modified"), answer.header("last-modified"));
    }
    for (range, part) in
        [("bytes=5-9", 5..10), ("bytes=2999990-", 2_999_990..3_000_000), ("bytes=-3", 2_999_997..3_000_000)]
    {
        let answer = client.send("GET", "/lake/a", &[("range", range)], b"");
        assert_eq!(answer.status, 206);
        assert_eq!(answer.header("content-range"), format!("bytes {}-{}/3000000", part.start, part.end - 1));
        assert!(answer.body.iter().enumerate().all(|(at, byte)| *byte == ((part.start + at) % 251) as u8));
        assert_eq!(answer.body.len(), part.len());
    }
    let beyond = client.send("GET", "/lake/a", &[("range", "bytes=3000000-")], b"");
    assert_eq!((beyond.status, beyond.header("content-range")), (416, "bytes */3000000"));
}

#[test]
fn conditions_hold_for_reads() {
    let (_directory, remote) = remote();
    let mut client = Client::new(&remote);
    let etag = client.put("/lake/a", b"one").header("etag").to_string();
    for method in ["GET", "HEAD"] {
        for (name, value, status) in [
            ("if-match", etag.as_str(), 200),
            ("if-match", "\"other\"", 412),
            ("if-none-match", etag.as_str(), 304),
            ("if-none-match", "\"other\"", 200),
            ("if-unmodified-since", "Mon, 01 Jan 2001 00:00:00 GMT", 412),
            ("if-modified-since", "Mon, 01 Jan 2040 00:00:00 GMT", 304),
        ] {
            let answer = client.send(method, "/lake/a", &[(name, value), ("range", "bytes=0-1")], b"");
            let expected = if status == 200 { 206 } else { status };
            let got = if answer.status == 200 { 206 } else { answer.status };
            assert_eq!(got, expected, "{method} {name}: {value}");
        }
    }
}

#[test]
fn conditions_hold_for_writes() {
    let (_directory, remote) = remote();
    let mut client = Client::new(&remote);
    let absent = [("if-none-match", "*")];
    assert_eq!(client.send("PUT", "/lake/a", &[("if-match", "\"x\"")], b"new").status, 404);
    assert_eq!(client.send("PUT", "/lake/a", &absent, b"one").status, 200);
    assert_eq!(client.send("PUT", "/lake/a", &absent, b"two").status, 412);
    let etag = client.get("/lake/a").header("etag").to_string();
    assert_eq!(client.send("PUT", "/lake/a", &[("if-match", "\"x\"")], b"two").status, 412);
    assert_eq!(client.send("PUT", "/lake/a", &[("if-match", &etag)], b"two").status, 200);
    assert_eq!(client.get("/lake/a").text(), "two");
    assert_eq!(client.send("DELETE", "/lake/a", &[("if-match", &etag)], b"").status, 412);
    let etag = client.get("/lake/a").header("etag").to_string();
    assert_eq!(client.send("DELETE", "/lake/a", &[("if-match", &etag)], b"").status, 204);
    assert_eq!(client.send("DELETE", "/lake/a", &[], b"").status, 204);
    assert_eq!(client.send("DELETE", "/lake/a", &[("if-match", &etag)], b"").status, 404);
    assert_eq!(client.get("/lake/a").element("Code"), "NoSuchKey");
}

#[test]
fn copies_honour_conditions_on_both_sides_and_the_metadata_directive() {
    let (_directory, remote) = remote();
    let mut client = Client::new(&remote);
    let put = client.send("PUT", "/lake/a", &[("x-amz-meta-owner", "me"), ("content-type", "text/x")], b"content");
    let etag = put.header("etag").to_string();
    let source = ("x-amz-copy-source", "/lake/a");
    let copy = |client: &mut Client, headers: &[(&str, &str)]| {
        client.send("PUT", "/lake/b", &[&[source], headers].concat(), b"").status
    };
    assert_eq!(copy(&mut client, &[("x-amz-copy-source-if-match", "\"x\"")]), 412);
    assert_eq!(copy(&mut client, &[("x-amz-copy-source-if-none-match", &etag)]), 412);
    assert_eq!(copy(&mut client, &[("if-match", &etag)]), 404);
    assert_eq!(copy(&mut client, &[("x-amz-copy-source-if-match", &etag), ("if-none-match", "*")]), 200);
    assert_eq!(copy(&mut client, &[("if-none-match", "*")]), 412);
    let answer = client.get("/lake/b");
    assert_eq!((answer.text().as_str(), answer.header("etag")), ("content", etag.as_str()));
    assert_eq!((answer.header("x-amz-meta-owner"), answer.header("content-type")), ("me", "text/x"));
    let replace = [("x-amz-metadata-directive", "REPLACE"), ("x-amz-meta-owner", "you")];
    assert_eq!(copy(&mut client, &replace), 200);
    assert_eq!(client.get("/lake/b").header("x-amz-meta-owner"), "you");
    client.send("DELETE", "/lake/a", &[], b"");
    assert_eq!(client.get("/lake/b").text(), "content");
}

#[test]
fn keys_are_any_text_and_never_touch_each_other() {
    let (_directory, remote) = remote();
    let mut client = Client::new(&remote);
    let long = "k".repeat(1024);
    let keys = [
        ("a", "a"),
        ("a%2Fb", "a/b"),
        ("a/", "a/"),
        ("c//d", "c//d"),
        ("%2e", "."),
        ("%2e%2e/%2e%2e/etc", "../../etc"),
        ("x/./y", "x/./y"),
        ("/lead", "/lead"),
        ("new%0Aline%01%20%2B", "new\nline\u{1} +"),
        ("%C3%A9", "é"),
        (long.as_str(), long.as_str()),
    ];
    for (encoded, key) in keys {
        assert_eq!(client.put(&format!("/lake/{encoded}"), key.as_bytes()).status, 200, "{key:?}");
    }
    for (encoded, key) in keys {
        assert_eq!(client.get(&format!("/lake/{encoded}")).text(), key);
    }
    assert_eq!(client.put(&format!("/lake/{long}k"), b"").element("Code"), "KeyTooLongError");
    let answer = client.get("/lake?list-type=2&encoding-type=url");
    assert_eq!(answer.elements("Key").len(), keys.len());
    assert!(answer.elements("Key").contains(&"new%0Aline%01%20%2B".to_string()));
}

#[test]
fn a_wrong_digest_or_a_missing_bucket_stores_nothing() {
    let (_directory, remote) = remote();
    let mut client = Client::new(&remote);
    for header in [("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg=="), ("x-amz-checksum-crc32", "AAAAAA==")] {
        assert_eq!(client.send("PUT", "/lake/a", &[header], b"content").element("Code"), "BadDigest");
    }
    assert_eq!(client.get("/lake/a").status, 404);
    for answer in [client.put("/other/a", b"x"), client.get("/other/a"), client.get("/other?list-type=2")] {
        assert_eq!((answer.status, answer.element("Code").as_str()), (404, "NoSuchBucket"));
    }
}

#[test]
fn many_keys_are_deleted_in_one_request() {
    let (_directory, remote) = remote();
    let mut client = Client::new(&remote);
    for key in ["a", "b", "c"] {
        client.put(&format!("/lake/{key}"), b"x");
    }
    let body = "<Delete><Object><Key>a</Key></Object><Object><Key>b</Key><ETag>\"no\"</ETag></Object>\
                <Object><Key>missing</Key></Object></Delete>";
    let answer = client.send("POST", "/lake?delete", &[], body.as_bytes());
    assert_eq!(answer.elements("Deleted").len(), 2, "{}", answer.text());
    assert_eq!(answer.elements("Code"), ["PreconditionFailed"]);
    assert_eq!(client.get("/lake?list-type=2").elements("Key"), ["b", "c"]);
}
