//! Connections: accept, hold to the pace, serve until told to stop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::service::S3Service;
use s3s::{Body, HttpError, S3Error, S3ErrorCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::body::{Direction, Paced};
use crate::counters::{Counters, count};
use crate::pace::{Link, Pace, deadline};

/// Connections served at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// How long the listener rests when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// What all connections share.
pub struct Shared {
    pub service: S3Service,
    pub counters: Arc<Counters>,
    pub first_byte: Duration,
    pub connection_rate: u64,
    pub out: Arc<Link>,
    pub into: Arc<Link>,
}

/// Serves until `stop` says so; connections are then cut.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            _ = stop.wait_for(|stopped| *stopped) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                count(&shared.counters.connections);
                let (shared, mut stop) = (shared.clone(), stop.clone());
                tokio::spawn(async move {
                    let _place = place;
                    tokio::select! {
                        _ = stop.wait_for(|stopped| *stopped) => {}
                        () = connection(stream, shared) => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "set TCP_NODELAY");
    }
    let now = Instant::now();
    let out = Pace::new(shared.connection_rate, shared.out.clone(), now);
    let into = Pace::new(shared.connection_rate, shared.into.clone(), now);
    let answer = service_fn(|request| answer(request, &shared, (out.clone(), into.clone())));
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "serve a connection");
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: &Shared,
    (out, into): (Pace, Pace),
) -> Result<Response<Paced<Body>>, HttpError> {
    count(&shared.counters.requests);
    let arrived = Instant::now();
    let uploads = matches!(*request.method(), Method::PUT | Method::POST);
    let response = if is_unsigned_chunked(&request) {
        S3Error::with_message(S3ErrorCode::NotImplemented, "aws-chunked bodies must be signed")
            .to_http_response()
            .map_err(|error| HttpError::new(Box::new(error)))?
    } else {
        let counters = shared.counters.clone();
        let paced = |body| Body::http_body_unsync(Paced::new(body, into, counters, Direction::In));
        shared.service.call(request.map(paced)).await?
    };
    if response.status().is_client_error() || response.status().is_server_error() {
        shared.counters.refused.fetch_add(1, Ordering::Relaxed);
    }
    if !shared.first_byte.is_zero() {
        // The delay begins when the store has the whole request.
        let start = if uploads { Instant::now() } else { arrived };
        tokio::time::sleep_until(deadline(start, shared.first_byte)).await;
    }
    Ok(response.map(|body| Paced::new(body, out, shared.counters.clone(), Direction::Out)))
}

/// `s3s` takes the chunks apart only of signed requests: stored as they are they would be garbage.
fn is_unsigned_chunked(request: &Request<Incoming>) -> bool {
    let streaming =
        request.headers().get("x-amz-content-sha256").map(|value| value.as_bytes().starts_with(b"STREAMING"));
    streaming == Some(true) && !request.headers().contains_key(http::header::AUTHORIZATION)
}
