//! Decorator: at most so many bytes per second from one source, over all its reads, and to it, over all its writes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use penstock_types::{ObjectBody, ReadRequest, Result, Source};

use crate::around::{Around, Call};

/// Bytes of this much time may come at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// What may be read and written per second.
#[derive(Clone)]
pub(crate) struct Bandwidth {
    read: Option<Rate>,
    write: Option<Rate>,
}

/// A budget of bytes per second. Clones share it.
#[derive(Clone)]
struct Rate {
    bytes_per_s: u64,
    /// When everything that was let through so far would have arrived at the set rate.
    paid_until: Arc<Mutex<Instant>>,
}

impl Bandwidth {
    /// Limits in bytes per second; `None` is no limit.
    pub(crate) fn new(read: Option<u64>, write: Option<u64>) -> Self {
        Self { read: read.map(Rate::new), write: write.map(Rate::new) }
    }
}

impl Rate {
    fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), paid_until: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Counts `bytes` and says how long to wait before they may be passed on.
    fn charge(&self, bytes: u64, now: Instant) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        *paid_until = (*paid_until).max(earliest) + cost;
        paid_until.saturating_duration_since(now)
    }
}

impl Around for Bandwidth {
    async fn around<T, F, S>(&self, call: &Call, send: S) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
        S: Fn() -> F + Send + Sync,
    {
        if let Some(rate) = self.write.as_ref().filter(|_| call.bytes > 0) {
            tokio::time::sleep(rate.charge(call.bytes, Instant::now())).await;
        }
        send().await
    }

    async fn read(&self, inner: &Arc<dyn Source>, request: ReadRequest) -> Result<ObjectBody> {
        let mut body = inner.read(request).await?;
        let Some(rate) = self.read.clone() else { return Ok(body) };
        let chunks = body.chunks.then(move |chunk| {
            let wait = chunk.as_ref().map_or(Duration::ZERO, |chunk| rate.charge(chunk.len() as u64, Instant::now()));
            async move {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                chunk
            }
        });
        body.chunks = chunks.boxed();
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_over_all_readers() {
        let bandwidth = Rate::new(1_000_000);
        let started = Instant::now();
        let readers = (0..4).map(|_| async {
            for _ in 0..10 {
                tokio::time::sleep(bandwidth.charge(50_000, Instant::now())).await;
            }
        });
        futures_util::future::join_all(readers).await;
        let elapsed = started.elapsed().as_secs_f64();
        assert!((1.85..2.05).contains(&elapsed), "2 MB at 1 MB/s took {elapsed} s");
    }
}
