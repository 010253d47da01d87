//! A source that misbehaves on demand: each call is recorded, and a plan says which of them go wrong and how.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Future, StreamExt};
use penstock_types::{
    ByteRange, Capabilities, CompletedPart, CopiedRange, CopyRequest, Description, Error, ErrorKind, ListPage,
    ListRequest, ObjectAttributes, ObjectBody, ObjectKey, ObjectStat, Observed, PartInfo, Precondition, PutRequest,
    ReadRequest, Result, Source, SourceId, UploadId, UploadInfo, Version,
};

/// What goes wrong with a call. Faults of bodies make other calls than reads fail as unavailable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The call is not carried out and fails so.
    Fail(ErrorKind),
    /// The call is carried out, but its answer is lost.
    LoseReply,
    /// No answer ever comes.
    Hang,
    /// The body breaks with an error after so many bytes.
    BreakBody(u64),
    /// The body ends after so many bytes as if that were all.
    CutBody(u64),
    /// After so many bytes nothing more ever comes.
    HangBody(u64),
    /// So many bytes too many follow.
    ExtendBody(u64),
    /// The body comes twice.
    RepeatBody,
    /// The range before (or behind) the one that was asked for is answered, and said to be.
    OtherRange,
    /// The answer belongs to another version, and says so.
    OtherVersion,
}

/// A call that a faulty source saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceCall {
    /// Number of the call, from 0.
    pub number: u64,
    /// Name of the trait's method.
    pub operation: &'static str,
    /// The key, or the prefix of a listing.
    pub key: ObjectKey,
}

type Plan = Box<dyn Fn(&SourceCall) -> Option<Fault> + Send + Sync>;

/// A source between a test and the real one.
pub struct FaultySource {
    inner: Arc<dyn Source>,
    plan: Plan,
    calls: Mutex<Vec<SourceCall>>,
    fired: Mutex<Vec<(SourceCall, Fault)>>,
}

impl FaultySource {
    /// `plan` is asked about every call.
    pub fn new(
        inner: Arc<dyn Source>,
        plan: impl Fn(&SourceCall) -> Option<Fault> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { inner, plan: Box::new(plan), calls: Mutex::default(), fired: Mutex::default() })
    }

    /// Only call `number` goes wrong.
    pub fn at(inner: Arc<dyn Source>, number: u64, fault: Fault) -> Arc<Self> {
        Self::new(inner, move |call| (call.number == number).then_some(fault))
    }

    /// Nothing goes wrong; the calls are recorded.
    pub fn recording(inner: Arc<dyn Source>) -> Arc<Self> {
        Self::new(inner, |_| None)
    }

    /// The calls so far, in order.
    pub fn calls(&self) -> Vec<SourceCall> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What went wrong so far.
    pub fn fired(&self) -> Vec<(SourceCall, Fault)> {
        self.fired.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fault(&self, operation: &'static str, key: &ObjectKey) -> Option<Fault> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let call = SourceCall { number: calls.len() as u64, operation, key: key.clone() };
        calls.push(call.clone());
        drop(calls);
        let fault = (self.plan)(&call)?;
        self.fired.lock().unwrap_or_else(PoisonError::into_inner).push((call, fault));
        Some(fault)
    }

    async fn call<T>(
        &self,
        operation: &'static str,
        key: &ObjectKey,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match self.fault(operation, key) {
            None => call.await,
            Some(Fault::Fail(kind)) => Err(injected(kind, operation, key)),
            Some(Fault::LoseReply) => {
                call.await?;
                Err(injected(ErrorKind::Unavailable, operation, key))
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(_) => Err(injected(ErrorKind::Unavailable, operation, key)),
        }
    }
}

fn injected(kind: ErrorKind, operation: &str, key: &ObjectKey) -> Error {
    Error::new(kind, format!("{operation} {key}"), "injected fault")
}

/// The first `count` bytes of a body.
fn first(chunks: BoxStream<'static, Result<Bytes>>, count: u64) -> BoxStream<'static, Result<Bytes>> {
    let cut = chunks.scan(count, |left, chunk| {
        let chunk = chunk.map(|chunk| chunk.slice(..chunk.len().min(usize::try_from(*left).unwrap_or(usize::MAX))));
        let length = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        let more = *left > 0;
        *left -= length;
        std::future::ready(more.then_some(chunk))
    });
    cut.boxed()
}

/// The neighbour of a range, of the same length where there is one.
fn neighbour(range: ByteRange, size: u64) -> ByteRange {
    if range.start >= range.len() {
        return ByteRange::new(range.start - range.len(), range.start);
    }
    let end = (range.end + range.len()).min(size);
    if end > range.end { ByteRange::new(range.end, end) } else { ByteRange::new(range.start, range.end - 1) }
}

fn spoil(mut body: ObjectBody, fault: Fault, key: &ObjectKey) -> ObjectBody {
    let broken = stream::iter([Err(injected(ErrorKind::Unavailable, "read", key))]);
    body.chunks = match fault {
        Fault::BreakBody(after) => first(body.chunks, after).chain(broken).boxed(),
        Fault::CutBody(after) => first(body.chunks, after),
        Fault::HangBody(after) => first(body.chunks, after).chain(stream::pending()).boxed(),
        Fault::ExtendBody(by) => {
            let more = Bytes::from(vec![0xee; usize::try_from(by).unwrap_or(0)]);
            body.chunks.chain(stream::iter([Ok(more)])).boxed()
        }
        Fault::OtherVersion => {
            body.attributes.version = Version::from("another-version");
            body.chunks
        }
        _ => body.chunks,
    };
    body
}

#[async_trait]
impl Source for FaultySource {
    fn id(&self) -> &SourceId {
        self.inner.id()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self, key: &ObjectKey) -> String {
        self.inner.describe(key)
    }

    fn observed(&self) -> Observed {
        self.inner.observed()
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        self.call("stat", key, self.inner.stat(key)).await
    }

    async fn read(&self, request: ReadRequest) -> Result<ObjectBody> {
        let key = request.key.clone();
        match self.fault("read", &key) {
            None => self.inner.read(request).await,
            Some(Fault::Fail(kind)) => Err(injected(kind, "read", &key)),
            Some(Fault::LoseReply) => Err(injected(ErrorKind::Unavailable, "read", &key)),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::RepeatBody) => {
                let mut body = self.inner.read(request.clone()).await?;
                body.chunks = body.chunks.chain(self.inner.read(request).await?.chunks).boxed();
                Ok(body)
            }
            Some(Fault::OtherRange) => {
                let size = self.inner.stat(&key).await?.attributes.size;
                self.inner.read(ReadRequest { range: neighbour(request.range, size), ..request }).await
            }
            Some(fault) => Ok(spoil(self.inner.read(request).await?, fault, &key)),
        }
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let prefix = request.prefix.clone();
        self.call("list", &prefix, self.inner.list(request)).await
    }

    async fn put(&self, request: PutRequest) -> Result<ObjectAttributes> {
        let key = request.key.clone();
        self.call("put", &key, self.inner.put(request)).await
    }

    async fn copy(&self, request: CopyRequest) -> Result<ObjectAttributes> {
        let key = request.to.clone();
        self.call("copy", &key, self.inner.copy(request)).await
    }

    async fn delete(&self, key: &ObjectKey, version: Option<&Version>) -> Result<()> {
        self.call("delete", key, self.inner.delete(key, version)).await
    }

    async fn begin_upload(&self, key: &ObjectKey, description: Description) -> Result<UploadId> {
        self.call("begin_upload", key, self.inner.begin_upload(key, description)).await
    }

    async fn put_part(&self, key: &ObjectKey, upload: &UploadId, number: u32, body: Bytes) -> Result<PartInfo> {
        self.call("put_part", key, self.inner.put_part(key, upload, number, body)).await
    }

    async fn copy_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        copied: CopiedRange,
    ) -> Result<PartInfo> {
        self.call("copy_part", key, self.inner.copy_part(key, upload, number, copied)).await
    }

    async fn list_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<PartInfo>> {
        self.call("list_parts", key, self.inner.list_parts(key, upload)).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[CompletedPart],
        precondition: Precondition,
    ) -> Result<ObjectAttributes> {
        self.call("complete_upload", key, self.inner.complete_upload(key, upload, parts, precondition)).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.call("abort_upload", key, self.inner.abort_upload(key, upload)).await
    }

    async fn list_uploads(&self, prefix: &ObjectKey) -> Result<Vec<UploadInfo>> {
        self.call("list_uploads", prefix, self.inner.list_uploads(prefix)).await
    }
}
