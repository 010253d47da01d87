//! HTTPS: which certificates are believed, and what goes over it.
#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use penstock_source::{Environment, open_in};
use penstock_types::{ErrorKind, ListRequest, ObjectKey, Precondition, PutRequest, Result, Source};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use support::{ACCESS_KEY, Answer, ByteServer, SECRET_KEY, environment, parts, spec};

fn data(name: &str) -> String {
    format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// TLS in front of a server of bytes; returns its port.
async fn tls_before(server: &ByteServer) -> u16 {
    let certificates = CertificateDer::pem_file_iter(data("server.pem")).unwrap().map(|one| one.unwrap()).collect();
    let key = PrivateKeyDer::from_pem_file(data("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let behind = server.address;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let (Ok(mut outer), Ok(mut inner)) = (acceptor.accept(stream).await, TcpStream::connect(behind).await)
                else {
                    return;
                };
                let _ = copy_bidirectional(&mut outer, &mut inner).await;
            });
        }
    });
    port
}

fn trusting(authority: Option<&str>) -> Environment {
    let keys = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
    match authority {
        Some(authority) => environment(&[keys[0], keys[1], ("AWS_CA_BUNDLE", authority)]),
        None => environment(&keys),
    }
}

fn opened(port: u16, environment: &Environment) -> Arc<dyn Source> {
    let spec = spec(&format!("https://127.0.0.1:{port}"), "env");
    open_in(&spec, &parts(Duration::from_secs(5)), environment).unwrap()
}

async fn list(source: &dyn Source) -> Result<()> {
    source.list(ListRequest { limit: 1, ..ListRequest::default() }).await.map(drop)
}

#[tokio::test]
async fn a_certificate_of_an_authority_that_is_trusted_is_accepted() {
    let server = ByteServer::start(|_| Answer::of("200 OK", &[], b"<ListBucketResult/>")).await;
    let source = opened(tls_before(&server).await, &trusting(Some(&data("authority.pem"))));
    for _ in 0..2 {
        list(&*source).await.unwrap();
    }
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn a_certificate_of_nobody_known_is_refused_at_once_with_what_to_do() {
    let server = ByteServer::start(|_| Answer::of("200 OK", &[], b"<ListBucketResult/>")).await;
    let error = list(&*opened(tls_before(&server).await, &trusting(None))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("certificate") && error.advice().unwrap().contains("AWS_CA_BUNDLE"), "{error}");
    assert_eq!(server.asked(), 0, "something was sent to a stranger");
}

#[tokio::test]
async fn a_payload_is_not_hashed_where_tls_protects_it() {
    let server = ByteServer::start(|asked| {
        let hash = asked.header("x-amz-content-sha256").unwrap_or("none").to_owned();
        Answer::of("403 Forbidden", &[("x-amz-request-id", &hash)], b"")
    })
    .await;
    let source = opened(tls_before(&server).await, &trusting(Some(&data("authority.pem"))));
    let request = PutRequest {
        key: ObjectKey::from("k"),
        body: Bytes::from_static(b"content"),
        precondition: Precondition::None,
        metadata: Vec::new(),
    };
    let error = source.put(request).await.unwrap_err().to_string();
    assert!(error.contains("UNSIGNED-PAYLOAD"), "{error}");
}
