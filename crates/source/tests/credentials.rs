//! Where credentials come from, that they are refreshed, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use penstock_source::{Environment, open_in};
use penstock_types::{ErrorKind, ListRequest, Result, Source};

use support::{ACCESS_KEY, Answer, ByteServer, SECRET_KEY, environment, parts, spec};

const EMPTY: &[u8] = b"<ListBucketResult></ListBucketResult>";

/// A store that takes any signature and answers a listing with no entries; the test sees the access keys.
async fn store() -> (ByteServer, Arc<std::sync::Mutex<Vec<String>>>) {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let keys = seen.clone();
    let server = ByteServer::start(move |asked| {
        let signed = asked.header("authorization").unwrap_or("Credential=none/");
        let key = signed.split_once("Credential=").and_then(|(_, rest)| rest.split_once('/')).map(|(key, _)| key);
        keys.lock().unwrap().push(key.unwrap_or("none").to_owned());
        Answer::of("200 OK", &[], EMPTY)
    })
    .await;
    (server, seen)
}

async fn list(source: &dyn Source) -> Result<()> {
    source.list(ListRequest { limit: 1, ..ListRequest::default() }).await.map(drop)
}

async fn list_with(server: &ByteServer, credentials: &str, environment: &Environment) -> Result<()> {
    let source = open_in(&spec(&server.endpoint(), credentials), &parts(Duration::from_secs(10)), environment)?;
    list(&*source).await
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn keys_of(name: &str) -> String {
    format!("aws_access_key_id = {name}\naws_secret_access_key = {SECRET_KEY}\n")
}

#[tokio::test]
async fn a_file_of_credentials_must_be_its_owners_alone() {
    let (server, seen) = store().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    let reference = format!("file:{}", path.display());
    for mode in [0o644, 0o640, 0o606] {
        write(&path, &format!("[default]\n{}", keys_of(ACCESS_KEY)), mode);
        let error = list_with(&server, &reference, &environment(&[])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert_eq!(error.advice().unwrap(), format!("chmod 600 {}", path.display()), "{error}");
        assert!(!error.to_string().contains(SECRET_KEY), "{error}");
    }
    assert_eq!(server.asked(), 0, "a request was sent with refused credentials");
    write(&path, &format!("[other]\n{}[default]\n{}", keys_of("AKIAOTHER"), keys_of(ACCESS_KEY)), 0o600);
    list_with(&server, &reference, &environment(&[])).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [ACCESS_KEY]);
}

#[tokio::test]
async fn a_file_that_is_missing_or_empty_says_what_to_write() {
    let (server, _) = store().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    let reference = format!("file:{}", path.display());
    let error = list_with(&server, &reference, &environment(&[])).await.unwrap_err();
    assert!(error.to_string().contains("cannot be read"), "{error}");
    write(&path, "[default]\n", 0o600);
    let error = list_with(&server, &reference, &environment(&[])).await.unwrap_err();
    assert!(error.advice().unwrap().contains("aws_access_key_id"), "{error}");
}

#[tokio::test]
async fn profiles_are_read_from_the_shared_files_and_choose_the_region() {
    let (server, seen) = store().await;
    let directory = tempfile::tempdir().unwrap();
    let (credentials, config) = (directory.path().join("credentials"), directory.path().join("config"));
    write(&credentials, &format!("[default]\n{}[team]\n{}", keys_of("AKIADEFAULT"), keys_of("AKIATEAM")), 0o600);
    write(&config, "[profile team]\nregion = eu-north-1\n", 0o600);
    let environment = environment(&[
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap()),
        ("AWS_CONFIG_FILE", config.to_str().unwrap()),
    ]);
    for reference in ["profile:team", "chain"] {
        list_with(&server, reference, &environment).await.unwrap();
    }
    assert_eq!(*seen.lock().unwrap(), ["AKIATEAM", "AKIADEFAULT"]);
    let error = list_with(&server, "profile:nobody", &environment).await.unwrap_err();
    assert!(error.to_string().contains("[nobody]"), "{error}");
}

#[tokio::test]
async fn a_chain_without_any_credentials_says_so_and_asks_no_metadata_service() {
    let (server, _) = store().await;
    for reference in ["chain", "env"] {
        let error = list_with(&server, reference, &environment(&[])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
    }
    assert_eq!(server.asked(), 0);
}

/// A container's credentials service: each answer is a new key that ends after `lifetime`.
async fn container_service(lifetime: Duration) -> ByteServer {
    let issued = AtomicUsize::new(0);
    ByteServer::start(move |_| {
        let number = issued.fetch_add(1, Ordering::SeqCst);
        let end = jiff::Timestamp::now() + jiff::SignedDuration::try_from(lifetime).unwrap();
        let body = format!(
            r#"{{"AccessKeyId":"ASIAISSUED{number}","SecretAccessKey":"{SECRET_KEY}","Token":"t","Expiration":"{end}"}}"#
        );
        Answer::of("200 OK", &[("Content-Type", "application/json")], body.as_bytes())
    })
    .await
}

async fn keys_used(lifetime: Duration) -> Vec<String> {
    let (server, seen) = store().await;
    let service = container_service(lifetime).await;
    let uri = format!("{}/credentials", service.endpoint());
    let environment = environment(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri)]);
    let source = open_in(&spec(&server.endpoint(), "chain"), &parts(Duration::from_secs(10)), &environment).unwrap();
    for _ in 0..3 {
        list(&*source).await.unwrap();
    }
    std::mem::take(&mut *seen.lock().unwrap())
}

#[tokio::test]
async fn credentials_are_refreshed_before_they_end_and_not_more_often() {
    assert_eq!(keys_used(Duration::from_secs(60)).await, ["ASIAISSUED0", "ASIAISSUED1", "ASIAISSUED2"]);
    assert_eq!(keys_used(Duration::from_secs(3600)).await, ["ASIAISSUED0", "ASIAISSUED0", "ASIAISSUED0"]);
}

#[tokio::test]
async fn credentials_that_were_replaced_are_loaded_again_without_anybody_noticing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    for stat in [false, true] {
        write(&path, &format!("[default]\n{}", keys_of("AKIAOLD")), 0o600);
        let valid = Arc::new(std::sync::Mutex::new("AKIAOLD"));
        let accepted = valid.clone();
        let server = ByteServer::start(move |asked| match asked.header("authorization") {
            Some(signed) if signed.contains(*accepted.lock().unwrap()) => {
                let headers = [("ETag", "\"v\""), ("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")];
                if asked.line.starts_with("HEAD") {
                    Answer::of("200 OK", &headers, b"")
                } else {
                    Answer::of("200 OK", &[], EMPTY)
                }
            }
            _ if asked.line.starts_with("HEAD") => Answer::of("403 Forbidden", &[], b""),
            _ => Answer::error("403 Forbidden", "InvalidAccessKeyId"),
        })
        .await;
        let spec = spec(&server.endpoint(), &format!("file:{}", path.display()));
        let source = open_in(&spec, &parts(Duration::from_secs(10)), &environment(&[])).unwrap();
        list(&*source).await.unwrap();
        write(&path, &format!("[default]\n{}", keys_of("AKIANEW")), 0o600);
        *valid.lock().unwrap() = "AKIANEW";
        if stat {
            source.stat(&penstock_types::ObjectKey::from("k")).await.unwrap();
        } else {
            list(&*source).await.unwrap();
        }
        *valid.lock().unwrap() = "AKIANOBODY";
        assert_eq!(list(&*source).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
}
