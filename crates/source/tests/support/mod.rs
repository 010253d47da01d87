//! A server of bytes: it reads requests and answers whatever a test wants, right or wrong.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use penstock_source::{Environment, SourceParts, open_in};
use penstock_types::{
    ByteRange, Metrics, ObjectKey, Priority, ReadRequest, Result, Source, SourceConfig, SourceSpec, SystemClock,
    Version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Credentials of the tests.
pub const ACCESS_KEY: &str = "AKIAPENSTOCKTEST0000";
/// Must never show up anywhere.
pub const SECRET_KEY: &str = "hunter2-hunter2-hunter2";

/// A request as far as tests look at it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Number of the request, from 0.
    pub number: usize,
    /// Method and target.
    pub line: String,
    /// Everything before the body, as it came.
    pub head: String,
}

impl Asked {
    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let fits = |line: &&str| line.to_ascii_lowercase().starts_with(&format!("{}:", name.to_ascii_lowercase()));
        self.head.lines().find(fits).and_then(|line| line.split_once(':')).map(|(_, value)| value.trim())
    }
}

/// What happens after the bytes of an answer were written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// The connection can be used again.
    KeepOpen,
    /// It is closed in order.
    Close,
    /// It is reset.
    Reset,
    /// Nothing more ever comes.
    Silence,
}

/// Bytes of an answer and what follows them.
#[derive(Clone, Debug)]
pub struct Answer {
    pub bytes: Vec<u8>,
    pub then: Then,
}

impl Answer {
    /// A status line, headers and a body with its length.
    pub fn of(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        Self { bytes: [head.as_bytes(), body].concat(), then: Then::KeepOpen }
    }

    /// Bytes as they are.
    pub fn raw(bytes: impl Into<Vec<u8>>, then: Then) -> Self {
        Self { bytes: bytes.into(), then }
    }

    /// An error document of S3.
    pub fn error(status: &str, code: &str) -> Self {
        let body = format!("<Error><Code>{code}</Code><Message>said so</Message></Error>");
        Self::of(status, &[("Content-Type", "application/xml")], body.as_bytes())
    }
}

/// A listening server; its tasks end with the runtime of the test.
pub struct ByteServer {
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl ByteServer {
    /// Serves on a free port of 127.0.0.1.
    pub async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let asked = Arc::new(AtomicUsize::new(0));
        let (answer, counter) = (Arc::new(answer), asked.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answer.clone(), counter.clone()));
            }
        });
        Self { address, asked }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Requests so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn serve<F>(mut stream: TcpStream, answer: Arc<F>, counter: Arc<AtomicUsize>)
where
    F: Fn(&Asked) -> Answer + Send + Sync + 'static,
{
    let _ = stream.set_nodelay(true);
    let mut buffer = BytesMut::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8_lossy(&buffer.split_to(end)).into_owned();
        let line = head.lines().next().unwrap_or_default().to_owned();
        let asked = Asked { number: counter.fetch_add(1, Ordering::SeqCst), line, head };
        let length: usize = asked.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        while buffer.len() < length {
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let _ = buffer.split_to(length);
        let Answer { bytes, then } = answer(&asked);
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
        let _ = stream.flush().await;
        match then {
            Then::KeepOpen => {}
            Then::Close => return,
            Then::Reset => {
                let _ = stream.set_zero_linger();
                return;
            }
            Then::Silence => std::future::pending().await,
        }
    }
}

/// Variables and nothing else; no metadata service is asked.
pub fn environment(variables: &[(&str, &str)]) -> Environment {
    let fixed = [("AWS_EC2_METADATA_DISABLED", "true")];
    let all = fixed.iter().chain(variables).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Environment::of(all, None)
}

/// The environment with the tests' credentials.
pub fn with_keys() -> Environment {
    environment(&[("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)])
}

/// Parts with a deadline.
pub fn parts(deadline: Duration) -> SourceParts {
    SourceParts {
        config: SourceConfig { max_requests: 32, max_attempts: 4, max_bytes_per_s: None, max_upload_bytes_per_s: None },
        deadline,
        metrics: Metrics::default(),
        clock: Arc::new(SystemClock::default()),
        seed: 42,
    }
}

/// Bucket `bucket` at an endpoint.
pub fn spec(endpoint: &str, credentials: &str) -> SourceSpec {
    SourceSpec::S3 {
        bucket: "bucket".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        virtual_host: None,
        credentials: credentials.to_owned(),
    }
}

/// Bucket `bucket` at an endpoint, unsigned, with a deadline; and its metrics.
pub fn anonymous(endpoint: &str, deadline: Duration) -> (Arc<dyn Source>, Metrics) {
    let parts = parts(deadline);
    let metrics = parts.metrics.clone();
    (open_in(&spec(endpoint, "anonymous"), &parts, &environment(&[])).expect("the spec is right"), metrics)
}

/// Reads a range whole.
pub async fn read(source: &dyn Source, range: ByteRange, version: Option<&str>) -> Result<Bytes> {
    let version = version.map(Version::from);
    let request = ReadRequest { key: ObjectKey::from("k"), range, version, priority: Priority::Foreground };
    let mut body = source.read(request).await?;
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.chunks.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes.freeze())
}
