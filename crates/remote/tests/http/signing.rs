//! Signatures, made by another implementation than the one that checks them.

use penstock_remote::{Remote, RemoteConfig};
use reqsign_aws_v4::{RequestSigner, StaticCredentialProvider};
use reqsign_core::{Context, Signer};

use crate::support::{Answer, Client};

struct Keys {
    access_key: &'static str,
    secret_key: &'static str,
    token: Option<&'static str>,
    region: &'static str,
}

const RIGHT: Keys = Keys { access_key: "key", secret_key: "secret", token: Some("token"), region: "eu-north-1" };

fn remote() -> (tempfile::TempDir, Remote) {
    let directory = tempfile::tempdir().unwrap();
    let mut config = RemoteConfig::new(directory.path());
    config.credentials = Some(("key".into(), "secret".into()));
    config.region = Some("eu-north-1".into());
    config.session_token = Some("token".into());
    let remote = Remote::start(config).unwrap();
    remote.put_object("lake", "a/../b c+é", b"content").unwrap();
    (directory, remote)
}

fn get(remote: &Remote, target: &str, keys: &Keys) -> Answer {
    let host = format!("127.0.0.1:{}", remote.port());
    let request = http::Request::get(format!("http://{host}{target}"))
        .header("host", &host)
        .header("x-amz-content-sha256", reqsign_aws_v4::EMPTY_STRING_SHA256);
    let (mut parts, ()) = request.body(()).unwrap().into_parts();
    let mut provider = StaticCredentialProvider::new(keys.access_key, keys.secret_key);
    if let Some(token) = keys.token {
        provider = provider.with_session_token(token);
    }
    let signer = RequestSigner::new("s3", keys.region).with_standard_session_token();
    let signer = Signer::new(Context::new(), provider, signer);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(signer.sign(&mut parts, None)).unwrap();
    let headers: Vec<_> = parts.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    Client::new(remote).send("GET", target, &headers, b"")
}

#[test]
fn a_right_signature_passes_for_odd_keys_and_queries() {
    let (_directory, remote) = remote();
    assert_eq!(get(&remote, "/lake/a/%2E%2E/b%20c%2B%C3%A9", &RIGHT).text(), "content");
    let listing = get(&remote, "/lake?list-type=2&prefix=a%2F&encoding-type=url", &RIGHT);
    assert_eq!(listing.elements("Key"), ["a/../b%20c%2B%C3%A9"]);
}

#[test]
fn each_wrong_part_of_a_signature_is_refused_by_its_own_code() {
    let (_directory, remote) = remote();
    for (keys, status, code) in [
        (Keys { secret_key: "wrong", ..RIGHT }, 403, "SignatureDoesNotMatch"),
        (Keys { access_key: "wrong", ..RIGHT }, 403, "InvalidAccessKeyId"),
        (Keys { region: "us-east-1", ..RIGHT }, 400, "AuthorizationHeaderMalformed"),
        (Keys { token: Some("old"), ..RIGHT }, 400, "InvalidToken"),
        (Keys { token: None, ..RIGHT }, 400, "InvalidToken"),
    ] {
        let answer = get(&remote, "/lake?list-type=2", &keys);
        assert_eq!((answer.status, answer.element("Code").as_str()), (status, code), "{}", answer.text());
    }
    assert_eq!(get(&remote, "/other?list-type=2", &RIGHT).element("Code"), "NoSuchBucket");
}
