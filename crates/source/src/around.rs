//! How a decorator is written: one function around every call, another around a read because its answer goes on.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use penstock_types::{
    Capabilities, CompletedPart, CopiedRange, CopyRequest, Description, ListPage, ListRequest, ObjectAttributes,
    ObjectBody, ObjectKey, ObjectStat, Observed, PartInfo, Precondition, Priority, PutRequest, ReadRequest, Result,
    Source, SourceId, UploadId, UploadInfo, Version,
};

/// What is being asked of a source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Operation {
    Stat,
    Read,
    List,
    Put,
    Copy,
    Delete,
    BeginUpload,
    PutPart,
    CopyPart,
    ListParts,
    CompleteUpload,
    AbortUpload,
    ListUploads,
}

impl Operation {
    /// The verb of messages.
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Stat => "stat",
            Self::Read => "read",
            Self::List => "list",
            Self::Put => "write",
            Self::Copy => "copy",
            Self::Delete => "delete",
            Self::BeginUpload => "begin upload of",
            Self::PutPart => "write a part of",
            Self::CopyPart => "copy a part of",
            Self::ListParts => "list parts of",
            Self::CompleteUpload => "complete upload of",
            Self::AbortUpload => "abort upload of",
            Self::ListUploads => "list uploads of",
        }
    }
}

/// What decorators know of a call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub operation: Operation,
    /// Verb and object, as errors say it.
    pub action: String,
    pub priority: Priority,
    /// Content sent along or asked for, bytes.
    pub bytes: u64,
    /// Doing it twice is not the same as doing it once: it has a condition that the first time would change.
    pub once: bool,
}

impl Call {
    pub(crate) fn new(source: &dyn Source, operation: Operation, key: &ObjectKey) -> Self {
        Self {
            operation,
            action: format!("{} {}", operation.verb(), source.describe(key)),
            priority: Priority::Foreground,
            bytes: 0,
            once: false,
        }
    }

    fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    fn once(mut self, once: bool) -> Self {
        self.once = once;
        self
    }

    /// A read as decorators see it.
    pub(crate) fn of_read(source: &dyn Source, request: &ReadRequest) -> Self {
        Self::new(source, Operation::Read, &request.key).priority(request.priority).bytes(request.range.len())
    }

    /// A put as decorators see it.
    pub(crate) fn of_put(source: &dyn Source, request: &PutRequest) -> Self {
        let once = request.precondition != Precondition::None;
        Self::new(source, Operation::Put, &request.key).bytes(request.body.len() as u64).once(once)
    }

    /// A copy as decorators see it.
    pub(crate) fn of_copy(source: &dyn Source, request: &CopyRequest) -> Self {
        let once = request.precondition != Precondition::None;
        Self::new(source, Operation::Copy, &request.to).once(once)
    }
}

/// What completes an upload.
pub(crate) struct Completion<'a> {
    pub key: &'a ObjectKey,
    pub upload: &'a UploadId,
    pub parts: &'a [CompletedPart],
    pub precondition: Precondition,
}

/// Behaviour around the calls of a source.
pub(crate) trait Around: Send + Sync + 'static {
    /// Around any call whose answer is complete when it returns. `send` may be called again.
    fn around<T, F, S>(&self, _: &Call, send: S) -> impl Future<Output = Result<T>> + Send
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
        S: Fn() -> F + Send + Sync,
    {
        async move { send().await }
    }

    /// Around a read, whose body goes on after it returned.
    fn read(&self, inner: &Arc<dyn Source>, request: ReadRequest) -> impl Future<Output = Result<ObjectBody>> + Send;

    /// What is known of the source with what this behaviour noticed.
    fn observed(&self, inner: Observed) -> Observed {
        inner
    }

    /// What the source can do, with this behaviour.
    fn capabilities(&self, inner: Capabilities) -> Capabilities {
        inner
    }

    /// As [`Source::tried`].
    fn tried(&self, inner: &Arc<dyn Source>, beside: &ObjectKey) -> impl Future<Output = Result<Capabilities>> + Send {
        async move { inner.tried(beside).await }
    }

    /// Around a delete.
    fn delete(
        &self,
        inner: &Arc<dyn Source>,
        key: &ObjectKey,
        version: Option<&Version>,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            let call = Call::new(&**inner, Operation::Delete, key).once(version.is_some());
            self.around(&call, || inner.delete(key, version)).await
        }
    }

    /// Around the completion of an upload.
    fn complete(
        &self,
        inner: &Arc<dyn Source>,
        completion: Completion<'_>,
    ) -> impl Future<Output = Result<ObjectAttributes>> + Send {
        async move {
            let Completion { key, upload, parts, precondition } = completion;
            // Even without a condition: the second time the upload is gone.
            let call = Call::new(&**inner, Operation::CompleteUpload, key).once(true);
            self.around(&call, || inner.complete_upload(key, upload, parts, precondition.clone())).await
        }
    }

    /// Around a put.
    fn put(
        &self,
        inner: &Arc<dyn Source>,
        request: PutRequest,
    ) -> impl Future<Output = Result<ObjectAttributes>> + Send {
        async move {
            let call = Call::of_put(&**inner, &request);
            self.around(&call, || inner.put(request.clone())).await
        }
    }

    /// Around the copy of a part.
    fn copy_part(
        &self,
        inner: &Arc<dyn Source>,
        (key, upload, number): (&ObjectKey, &UploadId, u32),
        copied: CopiedRange,
    ) -> impl Future<Output = Result<PartInfo>> + Send {
        async move {
            let call = Call::new(&**inner, Operation::CopyPart, key);
            self.around(&call, || inner.copy_part(key, upload, number, copied.clone())).await
        }
    }

    /// Around a copy.
    fn copy(
        &self,
        inner: &Arc<dyn Source>,
        request: CopyRequest,
    ) -> impl Future<Output = Result<ObjectAttributes>> + Send {
        async move {
            let call = Call::of_copy(&**inner, &request);
            self.around(&call, || inner.copy(request.clone())).await
        }
    }
}

/// A source with a behaviour around its calls.
pub(crate) struct Decorated<A> {
    pub inner: Arc<dyn Source>,
    pub around: A,
}

impl<A: Around> Decorated<A> {
    /// `inner` with `around` around it.
    pub(crate) fn wrap(inner: Arc<dyn Source>, around: A) -> Arc<dyn Source> {
        Arc::new(Self { inner, around })
    }

    fn call(&self, operation: Operation, key: &ObjectKey) -> Call {
        Call::new(&*self.inner, operation, key)
    }
}

#[async_trait]
impl<A: Around> Source for Decorated<A> {
    fn id(&self) -> &SourceId {
        self.inner.id()
    }

    fn capabilities(&self) -> Capabilities {
        self.around.capabilities(self.inner.capabilities())
    }

    async fn tried(&self, beside: &ObjectKey) -> Result<Capabilities> {
        self.around.tried(&self.inner, beside).await
    }

    fn describe(&self, key: &ObjectKey) -> String {
        self.inner.describe(key)
    }

    fn observed(&self) -> Observed {
        self.around.observed(self.inner.observed())
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        self.around.around(&self.call(Operation::Stat, key), || self.inner.stat(key)).await
    }

    async fn read(&self, request: ReadRequest) -> Result<ObjectBody> {
        self.around.read(&self.inner, request).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let call = self.call(Operation::List, &request.prefix).priority(request.priority);
        self.around.around(&call, || self.inner.list(request.clone())).await
    }

    async fn put(&self, request: PutRequest) -> Result<ObjectAttributes> {
        self.around.put(&self.inner, request).await
    }

    async fn copy(&self, request: CopyRequest) -> Result<ObjectAttributes> {
        self.around.copy(&self.inner, request).await
    }

    async fn delete(&self, key: &ObjectKey, version: Option<&Version>) -> Result<()> {
        self.around.delete(&self.inner, key, version).await
    }

    async fn begin_upload(&self, key: &ObjectKey, description: Description) -> Result<UploadId> {
        let call = self.call(Operation::BeginUpload, key);
        self.around.around(&call, || self.inner.begin_upload(key, description.clone())).await
    }

    async fn put_part(&self, key: &ObjectKey, upload: &UploadId, number: u32, body: Bytes) -> Result<PartInfo> {
        let call = self.call(Operation::PutPart, key).bytes(body.len() as u64);
        self.around.around(&call, || self.inner.put_part(key, upload, number, body.clone())).await
    }

    async fn copy_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        copied: CopiedRange,
    ) -> Result<PartInfo> {
        self.around.copy_part(&self.inner, (key, upload, number), copied).await
    }

    async fn list_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<PartInfo>> {
        self.around.around(&self.call(Operation::ListParts, key), || self.inner.list_parts(key, upload)).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[CompletedPart],
        precondition: Precondition,
    ) -> Result<ObjectAttributes> {
        self.around.complete(&self.inner, Completion { key, upload, parts, precondition }).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.around.around(&self.call(Operation::AbortUpload, key), || self.inner.abort_upload(key, upload)).await
    }

    async fn list_uploads(&self, prefix: &ObjectKey) -> Result<Vec<UploadInfo>> {
        self.around.around(&self.call(Operation::ListUploads, prefix), || self.inner.list_uploads(prefix)).await
    }
}
