//! Decorator: bytes of a weak version are delivered only when the object is seen to be the same behind them. A store
//! that changes files in place would else deliver two contents in one body, whose headers were sent before.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use penstock_types::{Error, ErrorKind, ObjectBody, ObjectKey, ReadRequest, Result, Source, Version};

use crate::around::{Around, Call};
use crate::check;
use crate::s3::{is_weak, weak_version_now};

/// Bytes that one look answers for: held until then, so little; each look is a request, so not less.
const WINDOW_BYTES: usize = 1 << 20;

/// Looks at an object again behind each window of a body whose version is weak.
pub(crate) struct Recheck;

impl Around for Recheck {
    async fn read(&self, inner: &Arc<dyn Source>, request: ReadRequest) -> Result<ObjectBody> {
        let action = Call::of_read(&**inner, &request).action;
        let key = request.key.clone();
        let mut body = inner.read(request).await?;
        if is_weak(&body.attributes.version) {
            let version = body.attributes.version.clone();
            let chunks = Some(body.chunks);
            let windows =
                Windows { inner: inner.clone(), action, key, version, chunks, ready: VecDeque::new(), failure: None };
            body.chunks = windows.stream();
        }
        Ok(body)
    }
}

struct Windows {
    inner: Arc<dyn Source>,
    action: String,
    key: ObjectKey,
    version: Version,
    /// `None` once the body has ended.
    chunks: Option<BoxStream<'static, Result<Bytes>>>,
    /// What was looked behind and is not delivered yet.
    ready: VecDeque<Bytes>,
    /// What ended the body, told behind the bytes before it.
    failure: Option<Error>,
}

impl Windows {
    fn stream(self) -> BoxStream<'static, Result<Bytes>> {
        let steps = stream::unfold(Some(self), |state| async move {
            let mut state = state?;
            match state.next().await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(state))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        steps.boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.ready.is_empty() {
            let window = self.gather().await;
            if !window.is_empty() {
                self.look().await?;
            }
            self.ready = window;
        }
        match (self.ready.pop_front(), self.failure.take()) {
            (Some(chunk), failure) => {
                self.failure = failure;
                Ok(Some(chunk))
            }
            (None, Some(failure)) => Err(failure),
            (None, None) => Ok(None),
        }
    }

    async fn gather(&mut self) -> VecDeque<Bytes> {
        let (mut window, mut bytes) = (VecDeque::new(), 0);
        while let Some(chunks) = self.chunks.as_mut().filter(|_| bytes < WINDOW_BYTES) {
            match chunks.next().await {
                Some(Ok(chunk)) => {
                    bytes += chunk.len();
                    window.push_back(chunk);
                }
                ended => {
                    self.chunks = None;
                    self.failure = ended.and_then(Result::err);
                }
            }
        }
        window
    }

    async fn look(&mut self) -> Result<()> {
        let now = self.inner.stat(&self.key).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => check::gone(&self.action),
            _ => error,
        })?;
        check::pinned(&self.action, Some(&self.version), &weak_version_now(&now.attributes))
    }
}
