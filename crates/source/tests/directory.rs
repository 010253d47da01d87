//! A directory as a source: links, strangers among the files, changes under a read, what writers leave behind.
#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use penstock_source::open_in;
use penstock_types::{
    ByteRange, CopyRequest, Description, ErrorKind, ListPage, ListRequest, ObjectAttributes, ObjectKey, Precondition,
    Priority, PutRequest, ReadRequest, Result, Source, SourceSpec, Version,
};

use support::{environment, parts};

fn opened(directory: &Path) -> Arc<dyn Source> {
    let spec = SourceSpec::File { directory: directory.to_owned() };
    open_in(&spec, &parts(Duration::from_secs(10)), &environment(&[])).unwrap()
}

async fn put(
    source: &dyn Source,
    key: &str,
    body: &'static [u8],
    precondition: Precondition,
) -> Result<ObjectAttributes> {
    let (key, body) = (ObjectKey::from(key), Bytes::from_static(body));
    source.put(PutRequest { key, body, precondition, metadata: Vec::new() }).await
}

async fn list(source: &dyn Source) -> ListPage {
    source.list(ListRequest { limit: 1000, ..ListRequest::default() }).await.unwrap()
}

async fn keys(source: &dyn Source) -> Vec<String> {
    list(source).await.objects.iter().map(|object| object.key.to_string()).collect()
}

fn reading(key: &str, end: u64, version: Option<&Version>) -> ReadRequest {
    ReadRequest {
        key: ObjectKey::from(key),
        range: ByteRange::new(0, end),
        version: version.cloned(),
        priority: Priority::Foreground,
    }
}

#[tokio::test]
async fn a_link_that_leaves_the_directory_is_no_object() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let directory = tempfile::tempdir().unwrap();
    symlink(outside.path().join("secret"), directory.path().join("absolute")).unwrap();
    symlink(outside.path(), directory.path().join("directory")).unwrap();
    std::fs::create_dir(directory.path().join("d")).unwrap();
    symlink("../../../../../../../../etc/hostname", directory.path().join("d/relative")).unwrap();
    symlink("/proc/self/environ", directory.path().join("magic")).unwrap();
    let source = opened(directory.path());
    assert_eq!(keys(&*source).await, [""; 0]);
    for key in ["absolute", "directory/secret", "d/relative", "magic"] {
        let stat = source.stat(&ObjectKey::from(key)).await.unwrap_err();
        assert_eq!(stat.kind(), ErrorKind::NotFound, "{key}: {stat}");
        assert_eq!(source.read(reading(key, 1, None)).await.unwrap_err().kind(), ErrorKind::NotFound, "{key}");
    }
    let through = put(&*source, "directory/new", b"x", Precondition::None).await.unwrap_err();
    assert_eq!(through.kind(), ErrorKind::InvalidInput, "{through}");
    assert!(!outside.path().join("new").exists());
}

#[tokio::test]
async fn a_link_to_a_file_inside_counts_as_that_file() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("blobs")).unwrap();
    std::fs::create_dir_all(directory.path().join("snapshots/one")).unwrap();
    std::fs::write(directory.path().join("blobs/abc"), "model").unwrap();
    symlink("../../blobs/abc", directory.path().join("snapshots/one/model.bin")).unwrap();
    symlink("nothing", directory.path().join("snapshots/one/dangling")).unwrap();
    symlink("one", directory.path().join("snapshots/latest")).unwrap();
    let source = opened(directory.path());
    assert_eq!(keys(&*source).await, ["blobs/abc", "snapshots/one/model.bin"]);
    let linked = source.stat(&ObjectKey::from("snapshots/one/model.bin")).await.unwrap().attributes;
    assert_eq!(linked, source.stat(&ObjectKey::from("blobs/abc")).await.unwrap().attributes);
    assert_eq!(linked, list(&*source).await.objects[1].attributes);
    let through = source.stat(&ObjectKey::from("snapshots/latest/model.bin")).await.unwrap_err();
    assert_eq!(through.kind(), ErrorKind::NotFound, "a linked directory is not entered");
}

#[tokio::test]
async fn what_is_no_file_is_no_object_and_holds_nobody() {
    let directory = tempfile::tempdir().unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, directory.path().join("fifo"), rustix::fs::Mode::RWXU).unwrap();
    std::fs::create_dir(directory.path().join("empty")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
    let source = opened(directory.path());
    assert_eq!(keys(&*source).await, [""; 0]);
    for key in ["fifo", "socket", "empty"] {
        let error = source.read(reading(key, 1, None)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{key}: {error}");
    }
}

#[tokio::test]
async fn an_empty_directory_is_there_for_who_asks_for_it() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("empty")).unwrap();
    let source = opened(directory.path());
    let below = async |prefix: &str| {
        let request =
            ListRequest { prefix: ObjectKey::from(prefix), delimited: true, limit: 1, ..ListRequest::default() };
        let page = source.list(request).await.unwrap();
        assert_eq!(page.continuation, None);
        let objects = page.objects.into_iter().map(|object| (object.key.to_string(), object.attributes.size));
        (objects.collect::<Vec<_>>(), page.prefixes)
    };
    assert_eq!(below("").await, (vec![], vec![ObjectKey::from("empty/")]));
    assert_eq!(below("empty/").await, (vec![("empty/".to_owned(), 0)], vec![]));
    assert_eq!(below("none/").await, (vec![], vec![]));
    assert_eq!(below("empt").await, (vec![], vec![ObjectKey::from("empty/")]));
    std::fs::write(directory.path().join("empty/file"), "x").unwrap();
    assert_eq!(below("empty/").await, (vec![("empty/file".to_owned(), 1)], vec![]));
}

#[tokio::test]
async fn a_key_that_ends_in_a_slash_is_a_directory_that_goes_only_when_it_is_empty() {
    let directory = tempfile::tempdir().unwrap();
    let source = opened(directory.path());
    let made = put(source.as_ref(), "a/b/", b"", Precondition::Absent).await.unwrap();
    assert!(directory.path().join("a/b").is_dir());
    assert_eq!(made.size, 0);
    assert_eq!(source.stat(&ObjectKey::from("a/b/")).await.unwrap().attributes, made);
    let again = put(source.as_ref(), "a/b/", b"", Precondition::Absent).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    let content = put(source.as_ref(), "c/", b"content", Precondition::None).await.unwrap_err();
    assert_eq!(content.kind(), ErrorKind::InvalidInput);
    let hidden = put(source.as_ref(), ".penstock/x/", b"", Precondition::None).await.unwrap_err();
    assert_eq!(hidden.kind(), ErrorKind::InvalidInput);
    put(source.as_ref(), "a/b/f", b"f", Precondition::None).await.unwrap();
    source.delete(&ObjectKey::from("a/b/"), Some(&made.version)).await.unwrap();
    assert_eq!(keys(source.as_ref()).await, ["a/b/f"], "what is in it keeps it for now");
    source.delete(&ObjectKey::from("a/"), None).await.unwrap();
    source.delete(&ObjectKey::from("a/b/f"), None).await.unwrap();
    assert!(!directory.path().join("a").exists(), "they were to go, and go with the last that was in them");
    put(source.as_ref(), "d/f", b"f", Precondition::None).await.unwrap();
    source.delete(&ObjectKey::from("d/"), None).await.unwrap();
    put(source.as_ref(), "d/g", b"g", Precondition::None).await.unwrap();
    source.delete(&ObjectKey::from("d/f"), None).await.unwrap();
    source.delete(&ObjectKey::from("d/g"), None).await.unwrap();
    assert!(directory.path().join("d").exists(), "something was written to it since");
    let gone = source.stat(&ObjectKey::from("a/b/")).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    source.delete(&ObjectKey::from("a/b/"), None).await.unwrap();
}

#[tokio::test]
async fn a_directory_keeps_its_metadata_and_its_version_whatever_comes_into_it() {
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let directory = tempfile::tempdir().unwrap();
    let (source, key) = (opened(directory.path()), ObjectKey::from("d/"));
    let kept = async || source.stat(&key).await.unwrap().metadata;
    let (body, metadata) = (Bytes::new(), pairs(&[("author", "me"), ("color", "red")]));
    let request = PutRequest { key: key.clone(), body, precondition: Precondition::Absent, metadata: metadata.clone() };
    let made = source.put(request).await.unwrap();
    assert_eq!(kept().await, metadata);
    put(source.as_ref(), "d/f", b"f", Precondition::None).await.unwrap();
    assert_eq!(source.stat(&key).await.unwrap().attributes.version, made.version);

    let copied = |to: &str, version: &Version, description: Option<Vec<(String, String)>>| {
        let description = description.map(|metadata| Description { metadata, headers: Vec::new() });
        let (from, to, from_version) = (key.clone(), ObjectKey::from(to), Some(version.clone()));
        source.copy(CopyRequest { from, from_version, to, precondition: Precondition::None, description })
    };
    copied("d/", &made.version, Some(pairs(&[("author", "they")]))).await.unwrap();
    assert_eq!(kept().await, pairs(&[("author", "they")]));
    assert_eq!(std::fs::read(directory.path().join("d/f")).unwrap(), b"f");
    copied("e/", &made.version, None).await.unwrap();
    assert_eq!(source.stat(&ObjectKey::from("e/")).await.unwrap().metadata, pairs(&[("author", "they")]));
    let other = copied("d/", &Version::from("another"), None).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Conflict);
    put(source.as_ref(), "d/", b"", Precondition::Version(made.version.clone())).await.unwrap();
    assert_eq!(kept().await, []);
    source.delete(&ObjectKey::from("e/"), None).await.unwrap();
    let request = CopyRequest {
        from: ObjectKey::from("e/"),
        from_version: Some(made.version),
        to: key.clone(),
        precondition: Precondition::None,
        description: None,
    };
    assert_eq!(source.copy(request).await.unwrap_err().kind(), ErrorKind::Conflict, "it is gone");
}

#[tokio::test]
async fn a_file_that_changes_under_a_read_is_stale_and_no_mixture() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f");
    const SIZE: u64 = 4 << 20;
    std::fs::write(&path, vec![1u8; SIZE as usize]).unwrap();
    let source = opened(directory.path());
    let version = source.stat(&ObjectKey::from("f")).await.unwrap().attributes.version;
    let mut body = source.read(reading("f", SIZE, Some(&version))).await.unwrap();
    let first = body.chunks.next().await.unwrap().unwrap();
    assert!(first.iter().all(|byte| *byte == 1));
    // In place: the open descriptor sees the new bytes.
    std::fs::write(&path, vec![2u8; SIZE as usize]).unwrap();
    let mut failed = None;
    while let Some(chunk) = body.chunks.next().await {
        match chunk {
            Ok(chunk) => assert!(chunk.iter().all(|byte| *byte == 1), "bytes of another version"),
            Err(error) => failed = Some(error.kind()),
        }
    }
    assert_eq!(failed, Some(ErrorKind::StaleVersion));
}

#[tokio::test]
async fn a_file_that_is_replaced_or_deleted_under_a_read_is_still_read_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f");
    const SIZE: u64 = 4 << 20;
    for delete in [false, true] {
        std::fs::write(&path, vec![1u8; SIZE as usize]).unwrap();
        let source = opened(directory.path());
        let mut body = source.read(reading("f", SIZE, None)).await.unwrap();
        let mut size = body.chunks.next().await.unwrap().unwrap().len();
        if delete {
            std::fs::remove_file(&path).unwrap();
        } else {
            std::fs::write(directory.path().join("new"), "new").unwrap();
            std::fs::rename(directory.path().join("new"), &path).unwrap();
        }
        // Its link count changed, and with it the change time: that much is seen, and refused.
        let mut outcome = Ok(());
        while let Some(chunk) = body.chunks.next().await {
            match chunk {
                Ok(chunk) => size += chunk.len(),
                Err(error) => outcome = Err(error.kind()),
            }
        }
        assert!(outcome == Err(ErrorKind::StaleVersion) || size as u64 == SIZE, "{outcome:?} after {size} bytes");
    }
}

#[tokio::test]
async fn a_shorter_file_is_stale_and_never_padded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f");
    std::fs::write(&path, "0123456789").unwrap();
    let source = opened(directory.path());
    let version = source.stat(&ObjectKey::from("f")).await.unwrap().attributes.version;
    std::fs::File::options().write(true).open(&path).unwrap().set_len(5).unwrap();
    let error = source.read(reading("f", 10, Some(&version))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StaleVersion, "{error}");
}

#[tokio::test]
async fn writers_leave_nothing_but_the_object() {
    let directory = tempfile::tempdir().unwrap();
    let source = opened(directory.path());
    put(&*source, "a/b/c", b"1", Precondition::Absent).await.unwrap();
    put(&*source, "a/b/c", b"2", Precondition::Absent).await.unwrap_err();
    let impossible = put(&*source, "a/b", b"3", Precondition::None).await.unwrap_err();
    assert_eq!(impossible.kind(), ErrorKind::InvalidInput, "{impossible}");
    assert_eq!(std::fs::read(directory.path().join("a/b/c")).unwrap(), b"1");
    assert_eq!(keys(&*source).await, ["a/b/c"]);
    let hidden: Vec<_> = std::fs::read_dir(directory.path().join(".penstock"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(hidden, ["lock"]);
}

#[tokio::test]
async fn the_hidden_directory_is_not_in_the_namespace() {
    let directory = tempfile::tempdir().unwrap();
    let source = opened(directory.path());
    put(&*source, "a", b"1", Precondition::None).await.unwrap();
    assert_eq!(source.stat(&ObjectKey::from(".penstock/lock")).await.unwrap_err().kind(), ErrorKind::NotFound);
    let error = put(&*source, ".penstock/x", b"1", Precondition::None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let page = source.list(ListRequest { delimited: true, limit: 10, ..ListRequest::default() }).await.unwrap();
    assert!(page.prefixes.is_empty(), "{:?}", page.prefixes);
}

#[tokio::test]
async fn keys_that_no_file_can_have_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let source = opened(directory.path());
    for key in ["c//d", "/lead", "e/../f", "./g", "..", "dir/", &"n".repeat(300), "a\0b"] {
        let error = put(&*source, key, b"1", Precondition::None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{key:?}: {error}");
        assert_eq!(source.stat(&ObjectKey::from(key)).await.unwrap_err().kind(), ErrorKind::NotFound, "{key:?}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "something was written");
}

#[tokio::test]
async fn a_directory_of_many_files_is_read_once_for_all_its_pages() {
    const COUNT: usize = 20_000;
    let directory = tempfile::tempdir().unwrap();
    for number in 0..COUNT {
        std::fs::File::create(directory.path().join(format!("{number:06}"))).unwrap();
    }
    let source = opened(directory.path());
    let mut request = ListRequest { limit: 100, ..ListRequest::default() };
    let mut listed = Vec::new();
    loop {
        let page = source.list(request.clone()).await.unwrap();
        listed.extend(page.objects.into_iter().map(|object| object.key.to_string()));
        match page.continuation {
            Some(continuation) => request.continuation = Some(continuation),
            None => break,
        }
    }
    let expected: Vec<String> = (0..COUNT).map(|number| format!("{number:06}")).collect();
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn a_listing_goes_on_where_it_stood_even_when_its_walk_was_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c", "d"] {
        std::fs::write(directory.path().join(name), name).unwrap();
    }
    let request = ListRequest { limit: 2, ..ListRequest::default() };
    let continuation = opened(directory.path()).list(request.clone()).await.unwrap().continuation;
    let later = opened(directory.path()).list(ListRequest { continuation, ..request }).await.unwrap();
    let keys: Vec<String> = later.objects.iter().map(|object| object.key.to_string()).collect();
    assert_eq!(keys, ["c", "d"]);
}
