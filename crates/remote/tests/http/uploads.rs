//! Multipart uploads over plain HTTP.

use crate::support::{Answer, Client};
use penstock_remote::{Remote, RemoteConfig};

fn remote() -> (tempfile::TempDir, Remote) {
    let directory = tempfile::tempdir().unwrap();
    let remote = open(&directory);
    remote.create_bucket("lake").unwrap();
    (directory, remote)
}

fn open(directory: &tempfile::TempDir) -> Remote {
    let mut config = RemoteConfig::new(directory.path());
    config.minimum_part_bytes = 3;
    Remote::start(config).unwrap()
}

fn begin(client: &mut Client, key: &str) -> String {
    client.send("POST", &format!("/lake/{key}?uploads"), &[("x-amz-meta-a", "b")], b"").element("UploadId")
}

fn part(client: &mut Client, key: &str, id: &str, number: u32, body: &[u8]) -> String {
    let answer = client.put(&format!("/lake/{key}?partNumber={number}&uploadId={id}"), body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("etag").trim_matches('"').into()
}

fn complete(client: &mut Client, key: &str, id: &str, parts: &[(u32, &str)], headers: &[(&str, &str)]) -> Answer {
    let parts =
        parts.iter().map(|(n, etag)| format!("<Part><PartNumber>{n}</PartNumber><ETag>\"{etag}\"</ETag></Part>"));
    let body = format!("<CompleteMultipartUpload>{}</CompleteMultipartUpload>", parts.collect::<String>());
    client.send("POST", &format!("/lake/{key}?uploadId={id}"), headers, body.as_bytes())
}

#[test]
fn an_upload_survives_a_restart_and_becomes_an_object_of_the_named_parts() {
    let (directory, remote) = remote();
    let mut client = Client::new(&remote);
    let id = begin(&mut client, "a/b");
    let first = part(&mut client, "a%2Fb", &id, 1, b"hello ");
    part(&mut client, "a%2Fb", &id, 2, b"replaced");
    part(&mut client, "a%2Fb", &id, 3, b"unnamed");
    drop((client, remote));

    let remote = open(&directory);
    let mut client = Client::new(&remote);
    let second = part(&mut client, "a%2Fb", &id, 2, b"world");
    let listed = client.get(&format!("/lake/a/b?uploadId={id}"));
    assert_eq!(listed.elements("PartNumber"), ["1", "2", "3"]);
    assert_eq!(listed.elements("Size"), ["6", "5", "7"]);
    assert_eq!(client.get("/lake?uploads&prefix=a").elements("UploadId"), [id.as_str()]);
    let done = complete(&mut client, "a/b", &id, &[(1, &first), (2, &second)], &[]);
    assert_eq!(done.status, 200, "{}", done.text());
    let object = client.get("/lake/a/b");
    assert_eq!((object.text().as_str(), object.header("x-amz-meta-a")), ("hello world", "b"));
    assert!(object.header("etag").ends_with("-2\""));
    assert!(client.get("/lake?uploads").elements("UploadId").is_empty());
    assert_eq!(complete(&mut client, "a/b", &id, &[(1, &first)], &[]).element("Code"), "NoSuchUpload");
}

#[test]
fn completing_honours_conditions_and_checks_parts() {
    let (_directory, remote) = remote();
    let mut client = Client::new(&remote);
    let id = begin(&mut client, "a");
    let (one, two) = (part(&mut client, "a", &id, 1, b"x"), part(&mut client, "a", &id, 2, b"yyyy"));
    let mut code = |parts: &[(u32, &str)], headers: &[(&str, &str)]| {
        complete(&mut client, "a", &id, parts, headers).element("Code")
    };
    assert_eq!(code(&[(1, &one), (2, &two)], &[]), "EntityTooSmall");
    assert_eq!(code(&[(2, &two), (1, &one)], &[]), "InvalidPartOrder");
    assert_eq!(code(&[(1, &two)], &[]), "InvalidPart");
    assert_eq!(code(&[(7, &one)], &[]), "InvalidPart");
    assert_eq!(code(&[(2, &two)], &[("if-match", "\"x\"")]), "NoSuchKey");
    client.put("/lake/a", b"there");
    let mut code = |headers: &[(&str, &str)]| complete(&mut client, "a", &id, &[(2, &two)], headers).element("Code");
    assert_eq!(code(&[("if-none-match", "*")]), "PreconditionFailed");
    assert_eq!(code(&[("if-match", "\"x\"")]), "PreconditionFailed");
    let etag = client.get("/lake/a").header("etag").to_string();
    assert_eq!(complete(&mut client, "a", &id, &[(2, &two)], &[("if-match", &etag)]).status, 200);
    assert_eq!(client.get("/lake/a").text(), "yyyy");
}

#[test]
fn an_aborted_upload_leaves_no_file_behind() {
    let (directory, remote) = remote();
    let mut client = Client::new(&remote);
    let id = begin(&mut client, "a");
    part(&mut client, "a", &id, 1, b"data");
    assert_eq!(client.send("DELETE", &format!("/lake/a?uploadId={id}"), &[], b"").status, 204);
    assert_eq!(client.put(&format!("/lake/a?partNumber=1&uploadId={id}"), b"x").element("Code"), "NoSuchUpload");
    let files = std::fs::read_dir(directory.path().join("data/0")).unwrap().count();
    assert_eq!(files, 0);
}

#[test]
fn a_part_is_copied_from_a_range_of_another_object() {
    let (_directory, remote) = remote();
    let mut client = Client::new(&remote);
    client.put("/lake/source", b"0123456789");
    let id = begin(&mut client, "a");
    let headers = [("x-amz-copy-source", "/lake/source"), ("x-amz-copy-source-range", "bytes=2-5")];
    let copied = client.send("PUT", &format!("/lake/a?partNumber=1&uploadId={id}"), &headers, b"");
    let etag = copied.element("ETag").replace("&quot;", "").replace('"', "");
    let own = part(&mut client, "a", &id, 2, b"tail");
    assert_eq!(complete(&mut client, "a", &id, &[(1, &etag), (2, &own)], &[]).status, 200);
    client.send("DELETE", "/lake/source", &[], b"");
    assert_eq!(client.get("/lake/a").text(), "2345tail");
}
