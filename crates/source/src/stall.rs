//! Decorator: gives a single try up when the source falls silent, so that another one can be made in time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use penstock_types::{Error, ErrorKind, ObjectBody, ReadRequest, Result, Source};

use crate::around::{Around, Call, Operation};

/// Slowest transfer that still counts as one: what is sent or received may take this much longer per byte.
pub(crate) const SLOWEST_BYTES_PER_S: u64 = 1 << 20;

/// Time that `bytes` may take besides the deadline.
pub(crate) fn transfer_allowance(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / SLOWEST_BYTES_PER_S)
}

/// How long a source may be silent.
pub(crate) struct Stall {
    /// Before another try is worth more than waiting on.
    pub silence: Duration,
    /// While it does work of its own, that a second try would only double.
    pub work: Duration,
}

impl Stall {
    fn silent(&self, action: &str, limit: Duration) -> Error {
        Error::new(ErrorKind::Timeout, action, format!("no answer within {:.1} s", limit.as_secs_f64()))
            .advise("check the network and the store, or raise deadlines.foreground")
    }
}

impl Around for Stall {
    async fn around<T, F, S>(&self, call: &Call, send: S) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
        S: Fn() -> F + Send + Sync,
    {
        let silence = match call.operation {
            Operation::Copy | Operation::CompleteUpload => self.work,
            _ => self.silence,
        };
        let limit = silence + transfer_allowance(call.bytes);
        match tokio::time::timeout(limit, send()).await {
            Ok(answer) => answer,
            Err(_) => Err(self.silent(&call.action, limit)),
        }
    }

    async fn read(&self, inner: &Arc<dyn Source>, request: ReadRequest) -> Result<ObjectBody> {
        let call = Call::of_read(&**inner, &request);
        let silence = self.silence;
        let mut body = match tokio::time::timeout(silence, inner.read(request)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(self.silent(&call.action, silence)),
        };
        let silent = self.silent(&call.action, silence);
        let steps = stream::unfold(Some(body.chunks), move |chunks| {
            let silent = silent.clone();
            async move {
                let mut chunks = chunks?;
                // Time passes only while somebody waits for the source: a slow reader is not the source's silence.
                match tokio::time::timeout(silence, chunks.next()).await {
                    Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(chunks))),
                    Ok(Some(Err(error))) => Some((Err(error), None)),
                    Ok(None) => None,
                    Err(_) => Some((Err(silent), None)),
                }
            }
        });
        body.chunks = steps.boxed();
        Ok(body)
    }
}
