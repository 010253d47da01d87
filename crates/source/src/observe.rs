//! Decorator: counts every request, its bytes and its refusals, and leaves a trace of what failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures_util::StreamExt;

use penstock_types::{Error, ErrorKind, Metrics, ObjectBody, Observed, ReadRequest, Result, Source};

use crate::around::{Around, Call, Operation};

/// Sits next to the source itself, so that it sees each single request.
pub(crate) struct Observe {
    pub metrics: Metrics,
    /// A request has ended.
    pub asked: AtomicBool,
}

/// A request under way: in the gauge until it is dropped.
struct InFlight(Metrics);

impl InFlight {
    fn new(metrics: &Metrics) -> Self {
        metrics.source_in_flight.inc();
        Self(metrics.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.source_in_flight.dec();
    }
}

impl Observe {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { metrics, asked: AtomicBool::new(false) }
    }

    fn begin(&self, call: &Call) -> InFlight {
        self.metrics.source_requests.inc();
        match call.operation {
            Operation::Stat => self.metrics.source_stat_requests.inc(),
            Operation::Read => self.metrics.source_read_requests.inc(),
            Operation::List => self.metrics.source_list_requests.inc(),
            _ => 0,
        };
        InFlight::new(&self.metrics)
    }

    fn failed(&self, error: &Error, started: Instant) {
        if error.kind() == ErrorKind::RateLimited {
            self.metrics.source_throttled.inc();
        }
        let elapsed_ms = started.elapsed().as_millis() as u64;
        if error.is_transient() {
            tracing::debug!(code = error.kind().code(), elapsed_ms, "{error}");
        } else {
            tracing::trace!(code = error.kind().code(), elapsed_ms, "{error}");
        }
    }
}

impl Around for Observe {
    async fn around<T, F, S>(&self, call: &Call, send: S) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
        S: Fn() -> F + Send + Sync,
    {
        let _in_flight = self.begin(call);
        let started = Instant::now();
        let answer = send().await.inspect_err(|error| self.failed(error, started));
        self.asked.store(true, Ordering::Relaxed);
        answer
    }

    async fn read(&self, inner: &Arc<dyn Source>, request: ReadRequest) -> Result<ObjectBody> {
        let call = Call::of_read(&**inner, &request);
        let in_flight = self.begin(&call);
        let started = Instant::now();
        let answer = inner.read(request).await.inspect_err(|error| self.failed(error, started));
        self.asked.store(true, Ordering::Relaxed);
        let mut body = answer?;
        let chunks = body.chunks.inspect(move |chunk| match chunk {
            Ok(bytes) => drop(in_flight.0.source_bytes.inc_by(bytes.len() as u64)),
            Err(error) => tracing::debug!(code = error.kind().code(), "{error}"),
        });
        body.chunks = chunks.boxed();
        Ok(body)
    }

    fn observed(&self, inner: Observed) -> Observed {
        Observed { asked: self.asked.load(Ordering::Relaxed), ..inner }
    }
}
