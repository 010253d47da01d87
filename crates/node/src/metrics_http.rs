//! `GET /metrics` on a loopback port, and nothing else.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use penstock_types::{Error, ErrorKind, Metrics, Result};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// A scraper sends its request within this time or is dropped.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest request.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Scrapers served at once.
const SCRAPERS_MAX: usize = 8;
/// Pause after a failed accept (out of descriptors), so that it cannot spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the port; returns what to run and the address. Port 0 takes a free one.
///
/// # Errors
/// `Busy` when the port is taken.
pub async fn serve(port: u16, metrics: &Metrics) -> Result<(impl Future<Output = ()> + Send + use<>, SocketAddr)> {
    let refused = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::AddrInUse => ErrorKind::Busy,
            std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, format!("serve metrics on 127.0.0.1:{port}"), error.to_string())
            .advise("set node.metrics_port to a free port, or to 0 for any")
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    Ok((accept(listener, Arc::new(metrics.registry())), address))
}

async fn accept(listener: TcpListener, registry: Arc<Registry>) {
    let scrapers = Arc::new(Semaphore::new(SCRAPERS_MAX));
    loop {
        let permit = Arc::clone(&scrapers).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let registry = Arc::clone(&registry);
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, &registry)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a scraper was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, registry: &Registry) -> std::io::Result<()> {
    let mut request = Vec::with_capacity(1024);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > REQUEST_BYTES_MAX || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let (status, body) = match line.split(|byte| *byte == b' ').take(2).collect::<Vec<_>>()[..] {
        [b"GET", b"/metrics"] => ("200 OK", text(registry)),
        [b"GET", _] => ("404 Not Found", "only /metrics is here\n".to_string()),
        _ => ("405 Method Not Allowed", "only GET is served\n".to_string()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn text(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).expect("a string takes whatever is written to it");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn only_metrics_are_served() {
        let metrics = Metrics::default();
        metrics.opens.inc();
        let (serving, address) = serve(0, &metrics).await.unwrap();
        let task = tokio::spawn(serving);
        let answer = ask(address, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("penstock_opens_total 1"), "{answer}");
        assert!(ask(address, "GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        assert!(ask(address, "POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        task.abort();
    }

    #[tokio::test]
    async fn a_taken_port_is_refused_with_the_reason() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let refused = serve(holder.local_addr().unwrap().port(), &Metrics::default()).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Busy);
    }
}
