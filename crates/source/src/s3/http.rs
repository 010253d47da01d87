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
use rustls::{ClientConfig, RootCertStore};

use penstock_types::{Error, ErrorKind, Result};

/// A TCP connection that is not there by then will not come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Idle connections kept per host; more than the requests that can be under way would never be used again.
const MAX_IDLE_CONNECTIONS: usize = 256;
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
    /// `with_roots` loads the certificates the machine trusts; plain HTTP does without.
    pub(crate) fn new(with_roots: bool) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_keepalive(Some(Duration::from_secs(30)));
        connector.enforce_http(false);
        let tls = if with_roots { trusted_tls().clone() } else { tls_config(RootCertStore::empty()) };
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let inner = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
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

fn trusted_tls() -> &'static ClientConfig {
    static TRUSTED: OnceLock<ClientConfig> = OnceLock::new();
    TRUSTED.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let mut found = rustls_native_certs::load_native_certs();
        if let Some(bundle) = std::env::var_os("AWS_CA_BUNDLE") {
            let extra = rustls_native_certs::load_certs_from_paths(Some(Path::new(&bundle)), None);
            found.certs.extend(extra.certs);
            found.errors.extend(extra.errors);
        }
        for error in found.errors {
            tracing::warn!(code = "tls-roots", %error, "a file of trusted certificates could not be read");
        }
        roots.add_parsable_certificates(found.certs);
        tls_config(roots)
    })
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
    let is_io = |kind| io_kind(error) == Some(kind);
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
    if is_io(std::io::ErrorKind::ConnectionRefused) {
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

fn io_kind(error: &hyper_util::client::legacy::Error) -> Option<std::io::ErrorKind> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
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
