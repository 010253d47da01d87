//! The HTTP/1.1 client under `s3`: warm connections, TLS by rustls with ring, no proxy, no redirect, no decoding.

use std::error::Error as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use reqsign_core::Env;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use penstock_types::{Error, ErrorKind, Result};

use crate::environment::Environment;

/// A TCP connection that is not there by then will not come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Stores close idle connections after 5 to 60 s; ours go first where that is common, so that few sends meet a closed one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Answers of token services are a few kilobytes.
const MAX_TOKEN_ANSWER_BYTES: usize = 1 << 20;
/// Token and metadata services answer at once or are not there.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(5);

/// A pool of connections. Clones share it.
#[derive(Clone)]
pub(crate) struct HttpClient {
    inner: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpClient")
    }
}

impl HttpClient {
    /// `max_idle` connections are kept. `trust` names the environment whose certificates HTTPS relies on; plain HTTP
    /// does without.
    pub(crate) fn new(max_idle: usize, trust: Option<&Environment>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_keepalive(Some(Duration::from_secs(30)));
        connector.enforce_http(false);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls_config(trust.map_or_else(RootCertStore::empty, trusted)))
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let inner = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(max_idle)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Self { inner }
    }

    /// Sends one request. An error says why the endpoint could not be talked to.
    pub(crate) async fn send(&self, action: &str, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        self.inner.request(request).await.map_err(|error| connection_error(action, &authority, &error))
    }
}

/// Reads a body whole, but never more than `limit` bytes of it.
pub(crate) async fn collect(action: &str, mut body: Incoming, limit: usize) -> Result<Bytes> {
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Error::new(ErrorKind::Unavailable, action, format!("the connection broke in the answer: {error}"))
        })?;
        if let Ok(data) = frame.into_data() {
            if collected.len() + data.len() > limit {
                return Err(Error::new(ErrorKind::Corrupt, action, format!("the answer is longer than {limit} bytes")));
            }
            collected.extend_from_slice(&data);
        }
    }
    Ok(collected.freeze())
}

/// The certificates of the machine, and those of `AWS_CA_BUNDLE`.
fn trusted(environment: &Environment) -> RootCertStore {
    static MACHINE: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    let read = |found: rustls_native_certs::CertificateResult| {
        for error in found.errors {
            tracing::warn!(code = "tls-roots", %error, "a file of trusted certificates could not be read");
        }
        found.certs
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(MACHINE.get_or_init(|| read(rustls_native_certs::load_native_certs())).clone());
    if let Some(bundle) = environment.var("AWS_CA_BUNDLE") {
        roots.add_parsable_certificates(read(rustls_native_certs::load_certs_from_paths(
            Some(Path::new(&bundle)),
            None,
        )));
    }
    roots
}

fn tls_config(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default TLS versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn connection_error(action: &str, authority: &str, error: &hyper_util::client::legacy::Error) -> Error {
    let causes = causes(error);
    let text = causes.join(": ");
    let io = io_error(error);
    /// EMFILE and ENFILE: the process's and the machine's descriptors are used up.
    const NO_DESCRIPTOR: [Option<i32>; 2] = [Some(24), Some(23)];
    let refused = |kind, reason: String, advice: &str| Error::new(kind, action, reason).advise(advice.to_owned());
    if text.contains("dns error") || text.contains("failed to lookup address") {
        return refused(
            ErrorKind::Unavailable,
            format!("the host name of {authority} cannot be resolved"),
            "check the endpoint's host name and this machine's DNS",
        );
    }
    if text.contains("certificate") {
        return refused(
            ErrorKind::InvalidInput,
            format!("the TLS certificate of {authority} is not accepted: {}", causes.last().map_or("", String::as_str)),
            "check the host name, or point AWS_CA_BUNDLE to the certificates of its authority",
        );
    }
    if text.contains("InvalidContentType") || text.contains("invalid HTTP") {
        return refused(
            ErrorKind::Unavailable,
            format!("{authority} does not speak the protocol of the endpoint's URL"),
            "use http:// where it speaks plain HTTP and https:// where it speaks TLS",
        );
    }
    if io.is_some_and(|io| NO_DESCRIPTOR.contains(&io.raw_os_error())) {
        return refused(
            ErrorKind::ResourceLimit,
            "no file descriptor is left for a connection".to_owned(),
            "raise the limit of open files (ulimit -n), or lower source.max_requests",
        );
    }
    if io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused) {
        return refused(
            ErrorKind::Unavailable,
            format!("nothing listens at {authority}: the connection was refused"),
            "check host and port of the endpoint, and that the store runs",
        );
    }
    if error.is_connect() {
        return refused(
            ErrorKind::Unavailable,
            format!("{authority} cannot be reached: {text}"),
            "check the endpoint and the network",
        );
    }
    Error::new(ErrorKind::Unavailable, action, format!("the connection to {authority} broke: {text}"))
}

/// The messages of an error and everything under it, without repetitions.
fn causes(error: &hyper_util::client::legacy::Error) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if texts.last().is_none_or(|last| !last.contains(&text)) {
            texts.push(text);
        }
        cause = error.source();
    }
    texts
}

fn io_error(error: &hyper_util::client::legacy::Error) -> Option<&std::io::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}

/// How the signing library reaches token and metadata services.
#[derive(Clone, Debug)]
pub(crate) struct TokenHttp(pub(crate) HttpClient);

impl reqsign_core::HttpSend for TokenHttp {
    async fn http_send(&self, request: Request<Bytes>) -> reqsign_core::Result<Response<Bytes>> {
        const ACTION: &str = "ask for credentials";
        let answer = async {
            let response = self.0.send(ACTION, request.map(Full::new)).await?;
            let (parts, body) = response.into_parts();
            Ok(Response::from_parts(parts, collect(ACTION, body, MAX_TOKEN_ANSWER_BYTES).await?))
        };
        match tokio::time::timeout(TOKEN_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(|error: Error| reqsign_core::Error::unexpected(error.reason().to_owned())),
            Err(_) => Err(reqsign_core::Error::unexpected("the token service does not answer")),
        }
    }
}
