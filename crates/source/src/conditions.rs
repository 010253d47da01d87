//! Decorator for stores that speak S3, of which nobody knows which conditions of writes they keep: some ignore
//! `If-Match` and replace what somebody else wrote. Tries it on an object of its own before the first write with a
//! condition, and looks at the object itself where the store would not.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OnceCell;

use penstock_types::{
    Capabilities, CompletedPart, CopiedRange, CopyRequest, Description, ErrorKind, ObjectAttributes, ObjectBody,
    ObjectKey, PartInfo, Precondition, PutRequest, ReadRequest, Result, Source, SourceSpec, UploadId, Version,
};

use crate::around::{Around, Call, Completion, Decorated, Operation};
use crate::check;

/// Names of objects that a trial makes, and removes at once, begin so.
const TRIAL: &str = ".penstock-trial-";
const BODY: &[u8] = b"Penstock tries whether this store keeps the conditions of writes; this may be removed.\n";
/// No object has this version.
const NEVER: &str = "00000000000000000000000000000000";

/// A source that finds out, once, which conditions of writes its store keeps, where that is not known of its kind.
pub fn try_conditions(spec: &SourceSpec, source: Arc<dyn Source>) -> Arc<dyn Source> {
    match spec {
        SourceSpec::S3 { .. } => Decorated::wrap(source, Conditions::default()),
        SourceSpec::File { .. } | SourceSpec::Memory { .. } => source,
    }
}

#[derive(Default)]
struct Conditions {
    kept: OnceCell<Kept>,
}

/// Which conditions a store keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "a list of independent facts")]
struct Kept {
    create: bool,
    replace: bool,
    completion: bool,
    copy: bool,
    delete: bool,
}

impl Conditions {
    async fn kept(&self, inner: &Arc<dyn Source>, beside: &ObjectKey) -> Result<Kept> {
        self.kept.get_or_try_init(|| try_out(inner.as_ref(), beside)).await.copied()
    }
}

impl Around for Conditions {
    fn capabilities(&self, inner: Capabilities) -> Capabilities {
        match self.kept.get() {
            None => inner,
            Some(kept) => Capabilities {
                conditional_create: kept.create,
                conditional_replace: kept.create && kept.replace,
                conditional_delete: kept.delete,
                conditional_copy: kept.copy,
                ..inner
            },
        }
    }

    async fn tried(&self, inner: &Arc<dyn Source>, beside: &ObjectKey) -> Result<Capabilities> {
        self.kept(inner, beside).await?;
        Ok(self.capabilities(inner.capabilities()))
    }

    async fn read(&self, inner: &Arc<dyn Source>, request: ReadRequest) -> Result<ObjectBody> {
        inner.read(request).await
    }

    async fn put(&self, inner: &Arc<dyn Source>, request: PutRequest) -> Result<ObjectAttributes> {
        let kept = |kept: Kept| match request.precondition {
            Precondition::None => true,
            Precondition::Absent => kept.create,
            Precondition::Version(_) => kept.replace,
        };
        if request.precondition == Precondition::None || kept(self.kept(inner, &request.key).await?) {
            return inner.put(request).await;
        }
        look(inner.as_ref(), Operation::Put, &request.key, &request.precondition).await?;
        inner.put(PutRequest { precondition: Precondition::None, ..request }).await
    }

    async fn copy(&self, inner: &Arc<dyn Source>, request: CopyRequest) -> Result<ObjectAttributes> {
        let has_condition = request.precondition != Precondition::None || request.from_version.is_some();
        if !has_condition || self.kept(inner, &request.to).await?.copy {
            return inner.copy(request).await;
        }
        look_at_original(inner.as_ref(), &request.from, request.from_version.as_ref()).await?;
        if request.precondition != Precondition::None {
            look(inner.as_ref(), Operation::Copy, &request.to, &request.precondition).await?;
        }
        inner.copy(CopyRequest { from_version: None, precondition: Precondition::None, ..request }).await
    }

    async fn copy_part(
        &self,
        inner: &Arc<dyn Source>,
        (key, upload, number): (&ObjectKey, &UploadId, u32),
        copied: CopiedRange,
    ) -> Result<PartInfo> {
        if copied.from_version.is_none() || self.kept(inner, key).await?.copy {
            return inner.copy_part(key, upload, number, copied).await;
        }
        look_at_original(inner.as_ref(), &copied.from, copied.from_version.as_ref()).await?;
        inner.copy_part(key, upload, number, CopiedRange { from_version: None, ..copied }).await
    }

    async fn delete(&self, inner: &Arc<dyn Source>, key: &ObjectKey, version: Option<&Version>) -> Result<()> {
        let Some(wanted) = version else { return inner.delete(key, None).await };
        if self.kept(inner, key).await?.delete {
            return inner.delete(key, version).await;
        }
        look(inner.as_ref(), Operation::Delete, key, &Precondition::Version(wanted.clone())).await?;
        inner.delete(key, None).await
    }

    async fn complete(&self, inner: &Arc<dyn Source>, completion: Completion<'_>) -> Result<ObjectAttributes> {
        let Completion { key, upload, parts, precondition } = completion;
        if precondition == Precondition::None || self.kept(inner, key).await?.completion {
            return inner.complete_upload(key, upload, parts, precondition).await;
        }
        look(inner.as_ref(), Operation::CompleteUpload, key, &precondition).await?;
        inner.complete_upload(key, upload, parts, Precondition::None).await
    }
}

/// Whether a condition holds, asked right before a write that the store would carry out without it.
async fn look(source: &dyn Source, operation: Operation, key: &ObjectKey, precondition: &Precondition) -> Result<()> {
    let now = match source.stat(key).await {
        Ok(found) => Some(found.attributes.version),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    check::precondition(&Call::new(source, operation, key).action, precondition, now.as_ref())
}

async fn look_at_original(source: &dyn Source, key: &ObjectKey, version: Option<&Version>) -> Result<()> {
    match version {
        Some(version) => look(source, Operation::Copy, key, &Precondition::Version(version.clone())).await,
        None => Ok(()),
    }
}

/// Tries every condition on an object beside `beside`, which is gone afterwards. About ten requests.
async fn try_out(source: &dyn Source, beside: &ObjectKey) -> Result<Kept> {
    let directory = beside.as_bytes().iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let name = format!("{TRIAL}{:016x}", fastrand::u64(..));
    let key = ObjectKey::new([&beside.as_bytes()[..directory], name.as_bytes()].concat());
    put(source, &key, Precondition::None).await?;
    let kept = try_on(source, &key).await;
    let removed = source.delete(&key, None).await;
    let kept = kept?;
    removed?;
    if kept != (Kept { create: true, replace: true, completion: true, copy: true, delete: true }) {
        tracing::info!(source = source.describe(beside), ?kept, "this store does not keep every condition of writes");
    }
    Ok(kept)
}

async fn try_on(source: &dyn Source, key: &ObjectKey) -> Result<Kept> {
    let never = || Precondition::Version(Version(NEVER.into()));
    let create = refuses(put(source, key, Precondition::Absent).await)?;
    let replace = refuses(put(source, key, never()).await)?;
    let copied = |from_version, precondition| {
        let (from, to, description) = (key.clone(), key.clone(), Some(Description::default()));
        source.copy(CopyRequest { from, from_version, to, precondition, description })
    };
    // What fails in another way cannot be relied on either: it is done without.
    let copy = refuses(copied(None, Precondition::Absent).await).unwrap_or(false)
        && refuses(copied(Some(Version(NEVER.into())), Precondition::None).await).unwrap_or(false);
    let completion = refuses(complete(source, key, never()).await).unwrap_or(false);
    let delete = refuses(source.delete(key, Some(&Version(NEVER.into()))).await)?;
    Ok(Kept { create, replace, completion, copy, delete })
}

async fn put(source: &dyn Source, key: &ObjectKey, precondition: Precondition) -> Result<ObjectAttributes> {
    let (key, body, metadata) = (key.clone(), Bytes::from_static(BODY), Vec::new());
    source.put(PutRequest { key, body, precondition, metadata }).await
}

async fn complete(source: &dyn Source, key: &ObjectKey, precondition: Precondition) -> Result<ObjectAttributes> {
    let upload: UploadId = source.begin_upload(key, Description::default()).await?;
    let completed = async {
        let part = source.put_part(key, &upload, 1, Bytes::from_static(BODY)).await?;
        let parts = [CompletedPart { number: part.number, etag: part.etag }];
        source.complete_upload(key, &upload, &parts, precondition).await
    };
    let completed = completed.await;
    if completed.is_err() {
        // Should this fail, the store's own rules remove it.
        let _ = source.abort_upload(key, &upload).await;
    }
    completed
}

/// Whether a store refuses what it must. One that does not know a condition may refuse that, and not the write.
fn refuses<T>(outcome: Result<T>) -> Result<bool> {
    match outcome {
        Ok(_) => Ok(false),
        Err(error) => match error.kind() {
            // What a condition names is not there: also a refusal.
            ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::StaleVersion => Ok(true),
            ErrorKind::Unsupported | ErrorKind::InvalidInput => Ok(false),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use penstock_types::{ByteRange, ListRequest, SystemClock};

    use super::*;
    use crate::memory::Memory;

    /// A store that ignores every condition.
    struct Deaf;

    impl Around for Deaf {
        async fn read(&self, inner: &Arc<dyn Source>, request: ReadRequest) -> Result<ObjectBody> {
            inner.read(request).await
        }

        async fn put(&self, inner: &Arc<dyn Source>, request: PutRequest) -> Result<ObjectAttributes> {
            inner.put(PutRequest { precondition: Precondition::None, ..request }).await
        }

        async fn copy(&self, inner: &Arc<dyn Source>, request: CopyRequest) -> Result<ObjectAttributes> {
            inner.copy(CopyRequest { from_version: None, precondition: Precondition::None, ..request }).await
        }

        async fn copy_part(
            &self,
            inner: &Arc<dyn Source>,
            (key, upload, number): (&ObjectKey, &UploadId, u32),
            copied: CopiedRange,
        ) -> Result<PartInfo> {
            inner.copy_part(key, upload, number, CopiedRange { from_version: None, ..copied }).await
        }

        async fn delete(&self, inner: &Arc<dyn Source>, key: &ObjectKey, _: Option<&Version>) -> Result<()> {
            inner.delete(key, None).await
        }

        async fn complete(&self, inner: &Arc<dyn Source>, completion: Completion<'_>) -> Result<ObjectAttributes> {
            let Completion { key, upload, parts, .. } = completion;
            inner.complete_upload(key, upload, parts, Precondition::None).await
        }
    }

    fn store(name: &str) -> Arc<dyn Source> {
        Arc::new(Memory::open(name, Arc::new(SystemClock::default())))
    }

    fn tried(inner: Arc<dyn Source>) -> Arc<dyn Source> {
        Decorated::wrap(inner, Conditions::default())
    }

    async fn names(source: &dyn Source) -> Vec<String> {
        let request = ListRequest { limit: 100, ..ListRequest::default() };
        source.list(request).await.unwrap().objects.iter().map(|object| object.key.to_string()).collect()
    }

    #[tokio::test]
    async fn a_store_that_keeps_its_conditions_is_believed_and_left_as_it_was() {
        let source = tried(store("conditions-kept"));
        let said = source.capabilities();
        assert_eq!(source.tried(&ObjectKey::from("runs/a")).await.unwrap(), said);
        assert!(said.conditional_replace && said.conditional_copy && said.conditional_delete);
        assert!(names(&*source).await.is_empty());
    }

    #[tokio::test]
    async fn a_store_that_ignores_them_is_found_out_and_never_replaces_what_was_not_seen() {
        let source = tried(Decorated::wrap(store("conditions-ignored"), Deaf));
        let key = ObjectKey::from("runs/a");
        let found = source.tried(&key).await.unwrap();
        assert!(!found.conditional_create && !found.conditional_replace);
        assert!(!found.conditional_delete && !found.conditional_copy);
        assert_eq!(source.capabilities(), found);
        assert!(names(&*source).await.is_empty());

        let theirs = put(&*source, &key, Precondition::Absent).await.unwrap().version;
        let never = || Precondition::Version(Version(NEVER.into()));
        for precondition in [Precondition::Absent, never()] {
            let refused = put(&*source, &key, precondition.clone()).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
            assert_eq!(complete(&*source, &key, precondition).await.unwrap_err().kind(), ErrorKind::Conflict);
        }
        let deleted = source.delete(&key, Some(&Version(NEVER.into()))).await;
        assert_eq!(deleted.unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(source.stat(&key).await.unwrap().attributes.version, theirs);
        let copy = |version: &Version| CopyRequest {
            from: key.clone(),
            from_version: Some(version.clone()),
            to: ObjectKey::from("runs/b"),
            precondition: Precondition::Absent,
            description: None,
        };
        let part = |version: &Version| {
            let (from, from_version) = (key.clone(), Some(version.clone()));
            CopiedRange { from, from_version, range: ByteRange::new(0, 10) }
        };
        let upload = source.begin_upload(&key, Description::default()).await.unwrap();
        let never = Version(NEVER.into());
        let refused = source.copy_part(&key, &upload, 1, part(&never)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
        source.copy_part(&key, &upload, 1, part(&theirs)).await.unwrap();
        source.abort_upload(&key, &upload).await.unwrap();
        assert_eq!(source.copy(copy(&never)).await.unwrap_err().kind(), ErrorKind::Conflict);
        source.copy(copy(&theirs)).await.unwrap();
        // Something is there now.
        assert_eq!(source.copy(copy(&theirs)).await.unwrap_err().kind(), ErrorKind::Conflict);
        put(&*source, &key, Precondition::Version(theirs)).await.unwrap();
    }
}
