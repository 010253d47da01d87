//! A body that goes on after it broke: the rest of the range is read again, of the same version.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream};
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use penstock_types::{ByteRange, Error, ErrorKind, ObjectBody, ReadRequest, Result, Source};

use crate::check;
use crate::retry::{Retry, Tries};

/// Reads, and believes no answer that is not the one to the question.
pub(crate) async fn read_checked(source: &dyn Source, request: ReadRequest) -> Result<ObjectBody> {
    let (key, range, version) = (request.key.clone(), request.range, request.version.clone());
    let body = source.read(request).await?;
    let action = || format!("read {}", source.describe(&key));
    if body.range != range {
        return Err(Error::new(ErrorKind::Corrupt, action(), "another range was answered"));
    }
    check::pinned(&action(), version.as_ref(), &body.attributes.version)?;
    Ok(body)
}

struct Body {
    retry: Retry,
    inner: Arc<dyn Source>,
    action: String,
    /// The rest that is not delivered yet.
    rest: ReadRequest,
    /// `None` while the source has to be asked again.
    chunks: Option<BoxStream<'static, Result<Bytes>>>,
    /// The chunk that ends the range, kept back until the body has ended: one that runs over is not believed.
    last: Option<Bytes>,
    tries: Tries,
    /// Time that may still be spent waiting for the source; the reader's own slowness is not counted.
    budget: Duration,
    last_error: Option<Error>,
}

/// Delivers exactly the range of `request`, or an error as the last item. Waits at most `budget` for the source.
pub(crate) fn resuming(
    retry: Retry,
    inner: Arc<dyn Source>,
    action: String,
    request: ReadRequest,
    chunks: BoxStream<'static, Result<Bytes>>,
    budget: Duration,
) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    let body = Body {
        retry,
        inner,
        action,
        rest: request,
        chunks: Some(chunks),
        last: None,
        tries: Tries::new(),
        budget,
        last_error: None,
    };
    stream::unfold(Some(body), |body| async move {
        let mut body = body?;
        match body.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(body))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

impl Body {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while !self.rest.range.is_empty() {
            let started = Instant::now();
            let step = tokio::time::timeout(self.budget, self.step()).await;
            self.budget = self.budget.saturating_sub(started.elapsed());
            let error = match (step, self.last.take()) {
                (Ok(Ok(Some(chunk))), last) if chunk.is_empty() => {
                    self.last = last;
                    continue;
                }
                (Ok(Ok(Some(chunk))), None) if (chunk.len() as u64) < self.rest.range.len() => {
                    return Ok(Some(self.deliver(chunk)));
                }
                (Ok(Ok(Some(chunk))), None) if chunk.len() as u64 == self.rest.range.len() => {
                    self.last = Some(chunk);
                    continue;
                }
                (Ok(Ok(Some(_))), _) => {
                    Error::new(ErrorKind::Corrupt, &self.action, "the body is longer than the range")
                }
                // It ended, or it broke behind the last byte that was asked for.
                (_, Some(last)) => return Ok(Some(self.deliver(last))),
                (Err(_), None) => return Err(self.retry.give_up(&self.action, self.last_error.take())),
                (Ok(Ok(None)), None) => Error::new(ErrorKind::Unavailable, &self.action, "the body ended too early"),
                (Ok(Err(error)), None) => error,
            };
            self.chunks = None;
            let Some(delay) = self.retry.delay(&mut self.tries, &error, false, self.budget) else {
                return Err(self.retry.final_error(error, &self.tries));
            };
            tokio::time::sleep(delay).await;
            self.budget = self.budget.saturating_sub(delay);
            self.last_error = Some(error);
        }
        Ok(None)
    }

    async fn step(&mut self) -> Result<Option<Bytes>> {
        if self.chunks.is_none() {
            let body = read_checked(&*self.inner, self.rest.clone()).await?;
            self.chunks = Some(body.chunks);
        }
        match &mut self.chunks {
            Some(chunks) => chunks.next().await.transpose(),
            None => Ok(None),
        }
    }

    fn deliver(&mut self, chunk: Bytes) -> Bytes {
        self.rest.range = ByteRange::new(self.rest.range.start + chunk.len() as u64, self.rest.range.end);
        self.tries.reset();
        chunk
    }
}
