//! Decorator: a deadline for every call, and bounded retries with jitter inside it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use penstock_types::{
    CopyRequest, Error, ErrorKind, Metrics, ObjectAttributes, ObjectBody, ObjectKey, Observed, PutRequest, ReadRequest,
    Result, Source,
};

use crate::around::{Around, Call};
use crate::resume::{read_checked, resuming};
use crate::stall::transfer_allowance;

/// Name of the metadata entry that says which operation wrote an object. A conditional write that carries one may
/// be sent again after its answer was lost: the entry tells our own write from somebody else's.
pub const OPERATION_METADATA: &str = "penstock-operation";

/// Tries end when so much of the deadline is left as this part of it: who waits until the deadline is then told what
/// the source said, and not only that it is late.
const TELLING_SHARE: u32 = 20;
/// Shortest wait before another try.
const BASE_DELAY: Duration = Duration::from_millis(50);
/// Longest wait before another try, where the source names none.
const MAX_DELAY: Duration = Duration::from_secs(3);
/// A source that asks for fewer requests is asked again until the deadline; this only ends what would never end.
const MAX_THROTTLED_TRIES: u32 = 1000;

/// Retries within a deadline. Clones share the randomness and what was noticed.
#[derive(Clone)]
pub(crate) struct Retry {
    deadline: Duration,
    max_attempts: u32,
    metrics: Metrics,
    random: Arc<Mutex<fastrand::Rng>>,
    noticed: Arc<Mutex<Noticed>>,
}

/// Failures after which the source was asked again.
#[derive(Default)]
struct Noticed {
    count: u64,
    last: Option<Error>,
}

/// The tries of one call.
pub(crate) struct Tries {
    failures: u32,
    throttled: u32,
    delay: Duration,
}

impl Tries {
    pub(crate) fn new() -> Self {
        Self { failures: 0, throttled: 0, delay: BASE_DELAY }
    }

    /// What came before does not count against what follows: there was progress.
    pub(crate) fn reset(&mut self) {
        *self = Self::new();
    }
}

impl Retry {
    pub(crate) fn new(deadline: Duration, max_attempts: u32, metrics: Metrics, seed: u64) -> Self {
        let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
        Self { deadline, max_attempts: max_attempts.max(1), metrics, random, noticed: Arc::default() }
    }

    /// How long tries for a call may take; what `bytes` take comes on top.
    fn patience(&self, bytes: u64) -> Duration {
        self.deadline - self.deadline / TELLING_SHARE + transfer_allowance(bytes)
    }

    fn noticed(&self) -> MutexGuard<'_, Noticed> {
        self.noticed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long to wait before another try; `None` gives up. Decorrelated jitter: each wait is drawn between the
    /// shortest and three times the last one (Brooker, "Exponential Backoff and Jitter").
    pub(crate) fn delay(&self, tries: &mut Tries, error: &Error, once: bool, left: Duration) -> Option<Duration> {
        if !error.is_transient() {
            return None;
        }
        let throttled = error.kind() == ErrorKind::RateLimited;
        if throttled {
            // Such a request was not carried out, whatever it was; the limit paces the next one.
            tries.throttled += 1;
            if tries.throttled >= MAX_THROTTLED_TRIES {
                return None;
            }
        } else {
            tries.failures += 1;
            if once || tries.failures >= self.max_attempts {
                return None;
            }
        }
        let drawn = self.random.lock().unwrap_or_else(PoisonError::into_inner).f64();
        let ceiling = (tries.delay * 3).min(MAX_DELAY);
        tries.delay = BASE_DELAY + ceiling.saturating_sub(BASE_DELAY).mul_f64(drawn);
        let asked = Duration::from_millis(error.requested_delay_ms().unwrap_or(0));
        let delay = tries.delay.max(asked);
        if delay >= left {
            return None;
        }
        self.metrics.source_retries.inc();
        let mut noticed = self.noticed();
        noticed.count += 1;
        noticed.last = Some(error.clone());
        Some(delay)
    }

    /// Sends until it succeeds or must be given up. The flag tells whether an earlier try may have been carried out
    /// without our knowing.
    async fn attempts<T, F>(&self, call: &Call, send: impl Fn() -> F + Send + Sync) -> (Result<T>, bool)
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        let end = Instant::now() + self.patience(call.bytes);
        let mut tries = Tries::new();
        let mut uncertain = false;
        let mut last: Option<Error> = None;
        loop {
            let Ok(answer) = tokio::time::timeout_at(end, send()).await else {
                return (Err(self.give_up(&call.action, last)), true);
            };
            let error = match answer {
                Ok(answer) => return (Ok(answer), uncertain),
                Err(error) => error,
            };
            let left = end.saturating_duration_since(Instant::now());
            let Some(delay) = self.delay(&mut tries, &error, call.once, left) else {
                return (Err(self.final_error(error, &tries)), uncertain);
            };
            uncertain |= error.kind() != ErrorKind::RateLimited;
            last = Some(error);
            tokio::time::sleep(delay).await;
        }
    }

    /// The error of a call whose deadline passed.
    pub(crate) fn give_up(&self, action: &str, last: Option<Error>) -> Error {
        self.metrics.source_failures.inc();
        let before = last.map(|last| format!("; before that: {}", last.reason())).unwrap_or_default();
        Error::new(ErrorKind::Timeout, action, format!("not done within the deadline{before}"))
            .advise("try later, or raise deadlines.foreground")
            .fact("deadline_s", self.deadline.as_secs_f64())
    }

    /// The error that ends a call, with what was tried and what to do now.
    pub(crate) fn final_error(&self, mut error: Error, tries: &Tries) -> Error {
        let answers = [ErrorKind::NotFound, ErrorKind::StaleVersion, ErrorKind::Conflict];
        if !answers.contains(&error.kind()) {
            self.metrics.source_failures.inc();
        }
        if error.is_transient() && error.advice().is_none() {
            let advice = match error.kind() {
                ErrorKind::Corrupt => "look at what the endpoint answers, or at proxies before it: penstock doctor",
                _ => "try later, or look at the source: penstock doctor",
            };
            error = error.advise(advice);
        }
        if error.kind() == ErrorKind::Timeout {
            // A try is given up sooner than the call: its own limit says nothing of what the caller may set.
            error = error.fact("deadline_s", self.deadline.as_secs_f64());
        }
        let attempts = tries.failures + tries.throttled;
        if error.is_transient() && attempts > 1 { error.fact("attempts", attempts) } else { error }
    }

    /// A conflict after a try whose answer was lost may be our own doing: the operation id on the object tells.
    async fn settled(
        &self,
        inner: &dyn Source,
        key: &ObjectKey,
        operation: Option<&str>,
        outcome: (Result<ObjectAttributes>, bool),
    ) -> Result<ObjectAttributes> {
        match outcome {
            (Err(conflict), true) if conflict.kind() == ErrorKind::Conflict && operation.is_some() => {
                match inner.stat(key).await {
                    Ok(stat) if operation_in(&stat.metadata) == operation => Ok(stat.attributes),
                    _ => Err(conflict),
                }
            }
            (result, _) => result,
        }
    }
}

fn operation_in(metadata: &[(String, String)]) -> Option<&str> {
    metadata.iter().find(|(name, _)| name == OPERATION_METADATA).map(|(_, value)| value.as_str())
}

impl Around for Retry {
    async fn around<T, F, S>(&self, call: &Call, send: S) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
        S: Fn() -> F + Send + Sync,
    {
        self.attempts(call, send).await.0
    }

    fn observed(&self, inner: Observed) -> Observed {
        let noticed = self.noticed();
        Observed { retries: noticed.count, retried: noticed.last.clone(), ..inner }
    }

    async fn read(&self, inner: &Arc<dyn Source>, request: ReadRequest) -> Result<ObjectBody> {
        let call = Call::of_read(&**inner, &request);
        let started = Instant::now();
        // An answer begins before its bytes take time.
        let asking = Call { bytes: 0, ..call.clone() };
        let mut body = self.attempts(&asking, || read_checked(&**inner, request.clone())).await.0?;
        let budget = self.patience(call.bytes).saturating_sub(started.elapsed());
        let pinned = ReadRequest { version: Some(body.attributes.version.clone()), ..request };
        body.chunks = resuming(self.clone(), inner.clone(), call.action, pinned, body.chunks, budget).boxed();
        Ok(body)
    }

    async fn put(&self, inner: &Arc<dyn Source>, request: PutRequest) -> Result<ObjectAttributes> {
        let operation = operation_in(&request.metadata);
        let mut call = Call::of_put(&**inner, &request);
        call.once &= operation.is_none();
        let outcome = self.attempts(&call, || inner.put(request.clone())).await;
        self.settled(&**inner, &request.key, operation, outcome).await
    }

    async fn copy(&self, inner: &Arc<dyn Source>, request: CopyRequest) -> Result<ObjectAttributes> {
        let operation = request.description.as_ref().and_then(|kept| operation_in(&kept.metadata));
        let mut call = Call::of_copy(&**inner, &request);
        call.once &= operation.is_none();
        let outcome = self.attempts(&call, || inner.copy(request.clone())).await;
        self.settled(&**inner, &request.to, operation, outcome).await
    }
}
