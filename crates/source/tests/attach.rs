//! What an attach says when something is wrong: the cause and the fix, in time, and never a secret.
#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use penstock_remote::{Remote, RemoteConfig};
use penstock_source::{Environment, Probe, open_in, probe};
use penstock_types::{Error, ErrorKind, ObjectKey, Result, SourceSpec};

use support::{ACCESS_KEY, Answer, ByteServer, SECRET_KEY, Then, environment, parts, spec, with_keys};

/// As the node's default.
const ATTACH_DEADLINE: Duration = Duration::from_secs(10);
/// What a busy machine may take on top.
const BUSY_MACHINE: Duration = Duration::from_secs(60);

async fn attach_within(spec: &SourceSpec, environment: &Environment, deadline: Duration) -> Result<Probe> {
    let outcome = match open_in(spec, &parts(Duration::from_secs(30)), environment) {
        Ok(source) => {
            let prefix = ObjectKey::from("data/");
            let asking = tokio::time::timeout(deadline + BUSY_MACHINE, probe(&*source, &prefix, deadline));
            asking.await.expect("the deadline ends it")
        }
        Err(error) => Err(error),
    };
    let text = format!("{outcome:?}");
    assert!(!text.contains(SECRET_KEY) && !text.contains("session-token-secret"), "{text}");
    outcome
}

async fn refused(spec: &SourceSpec, environment: &Environment) -> Error {
    attach_within(spec, environment, ATTACH_DEADLINE).await.expect_err("this attach must fail")
}

/// Kind, and words that the message must have.
fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
    assert!(error.advice().is_some(), "no advice in: {text}");
}

struct Store {
    remote: Remote,
    _directory: tempfile::TempDir,
}

fn store(change: impl FnOnce(&mut RemoteConfig)) -> Store {
    let directory = tempfile::tempdir().unwrap();
    let mut config = RemoteConfig::new(directory.path());
    config.credentials = Some((ACCESS_KEY.to_owned(), SECRET_KEY.to_owned()));
    change(&mut config);
    let remote = Remote::start(config).unwrap();
    remote.put_object("bucket", "data/one", b"1").unwrap();
    Store { remote, _directory: directory }
}

fn keys(access_key: &str, secret_key: &str) -> Environment {
    environment(&[("AWS_ACCESS_KEY_ID", access_key), ("AWS_SECRET_ACCESS_KEY", secret_key)])
}

#[tokio::test]
async fn the_right_attach_says_how_quick_the_source_is_and_who_we_are() {
    let store = store(|_| {});
    let found = attach_within(&spec(&store.remote.endpoint(), "env"), &with_keys(), ATTACH_DEADLINE).await.unwrap();
    assert!(found.latency_ms > 0.0);
    assert_eq!(found.identity.as_deref(), Some("AKIA…0000"));
    assert!(found.clock_skew_s.is_none_or(|skew| skew.abs() < 5.0), "{found:?}");
}

#[tokio::test]
async fn a_wrong_bucket_is_named_with_its_endpoint() {
    let store = store(|_| {});
    let SourceSpec::S3 { endpoint, region, virtual_host, credentials, .. } = spec(&store.remote.endpoint(), "env")
    else {
        unreachable!("the spec is S3")
    };
    let wrong = SourceSpec::S3 { bucket: "nobody".to_owned(), endpoint, region, virtual_host, credentials };
    says(&refused(&wrong, &with_keys()).await, ErrorKind::NotFound, &["no bucket nobody", "127.0.0.1", "check"]);
}

#[tokio::test]
async fn a_wrong_access_key_and_a_wrong_secret_are_told_apart() {
    let store = store(|_| {});
    let spec = spec(&store.remote.endpoint(), "env");
    let error = refused(&spec, &keys("AKIANOBODYNOBODYNOBO", SECRET_KEY)).await;
    says(&error, ErrorKind::PermissionDenied, &["does not know the access key", "credentials env"]);
    let error = refused(&spec, &keys(ACCESS_KEY, "wrong")).await;
    says(&error, ErrorKind::PermissionDenied, &["secret key does not belong", "check the secret"]);
}

#[tokio::test]
async fn anonymous_access_to_a_private_bucket_is_denied_with_what_to_do() {
    let store = store(|_| {});
    let error = refused(&spec(&store.remote.endpoint(), "anonymous"), &environment(&[])).await;
    says(&error, ErrorKind::PermissionDenied, &["credentials anonymous"]);
}

#[tokio::test]
async fn a_wrong_region_names_the_right_one() {
    let store = store(|config| config.region = Some("eu-west-3".to_owned()));
    let error = refused(&spec(&store.remote.endpoint(), "env"), &with_keys()).await;
    says(&error, ErrorKind::PermissionDenied, &["eu-west-3", "us-east-1", "region"]);
}

#[tokio::test]
async fn a_store_that_refuses_the_question_is_no_misuse_by_who_attaches() {
    let server = ByteServer::start(|_| Answer::error("400 Bad Request", "InvalidRequest")).await;
    let error = refused(&spec(&server.endpoint(), "env"), &with_keys()).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("InvalidRequest"), "{error}");
}

#[tokio::test]
async fn a_missing_or_wrong_session_token_is_told() {
    let store = store(|config| config.session_token = Some("session-token-secret".to_owned()));
    let spec = spec(&store.remote.endpoint(), "env");
    let with_token = |token| {
        let keys = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
        environment(&[keys[0], keys[1], ("AWS_SESSION_TOKEN", token)])
    };
    attach_within(&spec, &with_token("session-token-secret"), ATTACH_DEADLINE).await.unwrap();
    for token in ["", "another"] {
        let error = refused(&spec, &with_token(token)).await;
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }
}

#[tokio::test]
async fn an_expired_token_says_to_log_in_again() {
    let server = ByteServer::start(|_| Answer::error("400 Bad Request", "ExpiredToken")).await;
    let error = refused(&spec(&server.endpoint(), "env"), &with_keys()).await;
    says(&error, ErrorKind::PermissionDenied, &["token has expired", "log in again"]);
}

#[tokio::test]
async fn a_clock_that_is_wrong_says_by_how_much() {
    let hour_ago = httpdate::fmt_http_date(std::time::SystemTime::now() - Duration::from_secs(3600));
    let server = ByteServer::start(move |_| {
        let body = b"<Error><Code>RequestTimeTooSkewed</Code><Message>m</Message></Error>";
        Answer::of("403 Forbidden", &[("Date", &hour_ago)], body)
    })
    .await;
    let error = refused(&spec(&server.endpoint(), "env"), &with_keys()).await;
    says(&error, ErrorKind::PermissionDenied, &["clock", "ahead", "NTP"]);
    assert!(error.reason().contains("60 minutes"), "{error}");
}

#[tokio::test]
async fn an_endpoint_where_nothing_listens_is_told() {
    // Bound and closed again: nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = refused(&spec(&format!("http://127.0.0.1:{port}"), "env"), &with_keys()).await;
    says(&error, ErrorKind::Unavailable, &["nothing listens", "check host and port"]);
}

#[tokio::test]
async fn a_host_name_that_does_not_resolve_is_told() {
    // A label of 64 bytes cannot even be asked for, so that no name server is.
    let error = refused(&spec(&format!("http://{}.localhost:9", "x".repeat(64)), "env"), &with_keys()).await;
    says(&error, ErrorKind::Unavailable, &["cannot be resolved", "DNS"]);
}

#[tokio::test]
async fn a_web_server_is_no_store() {
    let page = b"<!DOCTYPE html><html><body>It works!</body></html>";
    for status in ["200 OK", "404 Not Found", "403 Forbidden"] {
        let server = ByteServer::start(move |_| Answer::of(status, &[("Content-Type", "text/html")], page)).await;
        let error = refused(&spec(&server.endpoint(), "env"), &with_keys()).await;
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unavailable), "{status}: {error}");
        assert!(
            error.advice().unwrap_or_default().contains("check that the endpoint")
                || error.to_string().contains("S3 store"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn tls_and_plain_http_are_told_apart() {
    let plain = store(|_| {});
    let error = refused(&spec(&plain.remote.endpoint().replace("http:", "https:"), "env"), &with_keys()).await;
    says(&error, ErrorKind::Unavailable, &["does not speak the protocol", "http://"]);
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_given_up_in_time() {
    let server = ByteServer::start(|_| Answer::raw("", Then::Silence)).await;
    let deadline = Duration::from_secs(1);
    let error = attach_within(&spec(&server.endpoint(), "env"), &with_keys(), deadline).await.unwrap_err();
    says(&error, ErrorKind::Timeout, &["no listing came within 1 s", "check host and port"]);
}

#[tokio::test]
async fn a_store_that_always_refuses_is_given_up_in_time_with_its_own_words() {
    let server = ByteServer::start(|_| Answer::error("503 Service Unavailable", "SlowDown")).await;
    let deadline = Duration::from_secs(1);
    let error = attach_within(&spec(&server.endpoint(), "env"), &with_keys(), deadline).await.unwrap_err();
    says(&error, ErrorKind::Timeout, &["no listing came within 1 s", "before that", "503 SlowDown", "attach again"]);
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_told() {
    let spec = SourceSpec::File { directory: "/nowhere/at/all".into() };
    says(&refused(&spec, &environment(&[])).await, ErrorKind::NotFound, &["no such directory"]);
}

#[tokio::test]
async fn a_credentials_reference_that_is_none_is_not_repeated() {
    for reference in ["AKIAPENSTOCK:hunter2-hunter2-hunter2", "", "profile:", "file:relative", "vault"] {
        let error = refused(&spec("http://127.0.0.1:9", reference), &environment(&[])).await;
        says(&error, ErrorKind::InvalidInput, &["profile:NAME"]);
    }
}

#[tokio::test]
async fn nothing_shows_the_secret() {
    let parts = parts(Duration::from_secs(1));
    let environment = with_keys();
    let source = open_in(&spec("http://127.0.0.1:9", "env"), &parts, &environment).unwrap();
    let shown = format!("{environment:?} {} {:?}", source.id(), source.observed());
    assert!(!shown.contains(SECRET_KEY) && !shown.contains(ACCESS_KEY), "{shown}");
    let scope = penstock_source::credential_scope(&spec("http://127.0.0.1:9", "env"));
    assert!(scope.contains("env") && !scope.contains(ACCESS_KEY), "{scope}");
    drop(Arc::clone(&source));
}
