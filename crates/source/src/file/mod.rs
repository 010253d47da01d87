//! A directory of this machine as a source: its files are objects, their paths are keys.
//!
//! The version of a file is its device, inode, change time, modification time and size, checked before and after
//! each read. Conditions on writes hold among all Penstock processes (a lock file orders them); other programs that
//! write into the directory do not ask the lock. A directory shows as a common prefix even when it is empty.

mod directories;
mod publish;
mod root;
mod uploads;
mod walk;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use rustix::fs::OFlags;

use penstock_types::{
    ByteRange, Capabilities, CompletedPart, CopiedRange, CopyRequest, Description, Error, ErrorKind, ListPage,
    ListRequest, ObjectAttributes, ObjectBody, ObjectKey, ObjectStat, PartInfo, Precondition, PutRequest, ReadRequest,
    Result, Source, SourceId, UploadId, UploadInfo, Version,
};

use crate::check;
use root::{Root, attributes_of, error_of};
use walk::Parked;

/// Read in one go. Large enough for the disk, small enough that a few under way are no load on memory.
const CHUNK_BYTES: u64 = 1 << 20;

/// A directory.
pub(crate) struct Directory {
    id: SourceId,
    inner: Arc<Inner>,
}

struct Inner {
    root: Root,
    parked: Parked,
    leaving: directories::Leaving,
    read_only: bool,
    /// The file system keeps extended attributes.
    metadata: bool,
}

impl Directory {
    /// Opens the directory; it must be there.
    pub(crate) fn open(path: &std::path::Path) -> Result<Self> {
        let root = Root::open(path)?;
        let writable = rustix::fs::accessat(&root.fd, ".", rustix::fs::Access::WRITE_OK, rustix::fs::AtFlags::empty());
        let id = SourceId::from(format!("file:{}", path.display()).as_str());
        let (parked, leaving, read_only) = (Parked::default(), directories::Leaving::default(), writable.is_err());
        let metadata = publish::keeps_metadata(&root);
        Ok(Self { id, inner: Arc::new(Inner { root, parked, leaving, read_only, metadata }) })
    }

    fn action(&self, verb: &str, key: &ObjectKey) -> String {
        format!("{verb} {}", self.inner.root.describe(key))
    }

    /// Runs file system calls off the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        action: &str,
        work: impl FnOnce(&Inner, &str) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (inner, action) = (self.inner.clone(), action.to_owned());
        blocking(action.clone(), move || work(&inner, &action)).await
    }
}

async fn blocking<T: Send + 'static>(action: String, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => Err(Error::new(ErrorKind::Cancelled, action, "the node stops")),
        Err(_) => Err(Error::new(ErrorKind::Internal, action, "a file system call panicked")),
    }
}

#[async_trait]
impl Source for Directory {
    fn id(&self) -> &SourceId {
        &self.id
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            conditional_read: true,
            conditional_create: true,
            conditional_replace: true,
            conditional_delete: true,
            conditional_copy: true,
            resumable_multipart: true,
            list_start_after: true,
            binary_keys: true,
            weak_versions: false,
            metadata: self.inner.metadata,
            headers: false,
            directories: true,
            read_only: self.inner.read_only,
        }
    }

    fn describe(&self, key: &ObjectKey) -> String {
        self.inner.root.describe(key)
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let key = key.clone();
        self.blocking(&self.action("stat", &key), move |inner, action| {
            if let Some(path) = directories::of(&key) {
                return directories::stat(&inner.root, action, path);
            }
            let (fd, attributes) = inner.root.open_object(action, &key, OFlags::PATH)?;
            Ok(ObjectStat { attributes, metadata: publish::metadata_of(&fd), headers: Vec::new() })
        })
        .await
    }

    async fn read(&self, request: ReadRequest) -> Result<ObjectBody> {
        let action = self.action("read", &request.key);
        let ReadRequest { key, range, version, .. } = request;
        let pinned = version.clone();
        let opened = self.blocking(&action, move |inner, action| inner.root.open_object(action, &key, OFlags::RDONLY));
        let (fd, attributes) = match opened.await {
            Err(error) if error.kind() == ErrorKind::NotFound && pinned.is_some() => {
                return Err(check::gone(&action));
            }
            opened => opened?,
        };
        check::pinned(&action, version.as_ref(), &attributes.version)?;
        check::range(&action, range, attributes.size)?;
        let reading = Reading { action, fd: Arc::new(fd), version: attributes.version.clone(), rest: range };
        let chunks = stream::unfold(Some(reading), |reading| async move {
            let reading = reading?;
            if reading.rest.is_empty() {
                return None;
            }
            match reading.next().await {
                Ok((chunk, reading)) => Some((Ok(chunk), Some(reading))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(ObjectBody { attributes, range, chunks: chunks.boxed() })
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let action = self.action("list", &request.prefix);
        self.blocking(&action, move |inner, _| walk::page(&inner.root, &inner.parked, &request)).await
    }

    async fn put(&self, request: PutRequest) -> Result<ObjectAttributes> {
        let action = self.action("write", &request.key);
        self.blocking(&action, move |inner, action| {
            inner.leaving.stay(request.key.as_bytes());
            match directories::of(&request.key) {
                Some(path) => directories::make(&inner.root, action, path, &request),
                None => publish::put(&inner.root, action, &request),
            }
        })
        .await
    }

    async fn copy(&self, request: CopyRequest) -> Result<ObjectAttributes> {
        let action = format!("{} to {}", self.action("copy", &request.from), self.inner.root.describe(&request.to));
        self.blocking(&action, move |inner, action| match directories::of(&request.to) {
            Some(path) => directories::copy(&inner.root, action, path, &request),
            None => publish::copy(&inner.root, action, &request),
        })
        .await
    }

    async fn delete(&self, key: &ObjectKey, version: Option<&Version>) -> Result<()> {
        let (key, version) = (key.clone(), version.cloned());
        let action = self.action("delete", &key);
        self.blocking(&action, move |inner, action| match directories::of(&key) {
            Some(path) => inner.leaving.remove(&inner.root, action, path),
            None => {
                publish::delete(&inner.root, action, &key, version.as_ref())?;
                inner.leaving.follow(&inner.root, action, key.as_bytes())
            }
        })
        .await
    }

    async fn begin_upload(&self, key: &ObjectKey, description: Description) -> Result<UploadId> {
        let key = key.clone();
        let action = self.action("begin upload of", &key);
        self.blocking(&action, move |inner, action| uploads::begin(&inner.root, action, &key, &description.metadata))
            .await
    }

    async fn put_part(&self, key: &ObjectKey, upload: &UploadId, number: u32, body: Bytes) -> Result<PartInfo> {
        let (key, upload) = (key.clone(), upload.clone());
        let action = self.action(&format!("write part {number} of"), &key);
        self.blocking(&action, move |inner, action| {
            uploads::put_part(&inner.root, action, (&key, &upload), number, &body)
        })
        .await
    }

    async fn copy_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        copied: CopiedRange,
    ) -> Result<PartInfo> {
        let (key, upload) = (key.clone(), upload.clone());
        let action = self.action(&format!("copy part {number} of"), &key);
        self.blocking(&action, move |inner, action| {
            uploads::copy_part(&inner.root, action, (&key, &upload), number, &copied)
        })
        .await
    }

    async fn list_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<PartInfo>> {
        let (key, upload) = (key.clone(), upload.clone());
        let action = self.action("list parts of", &key);
        self.blocking(&action, move |inner, action| uploads::list_parts(&inner.root, action, &key, &upload)).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[CompletedPart],
        precondition: Precondition,
    ) -> Result<ObjectAttributes> {
        let (key, upload, parts) = (key.clone(), upload.clone(), parts.to_vec());
        let action = self.action("complete upload of", &key);
        self.blocking(&action, move |inner, action| {
            uploads::complete(&inner.root, action, (&key, &upload), &parts, &precondition)
        })
        .await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let (key, upload) = (key.clone(), upload.clone());
        let action = self.action("abort upload of", &key);
        self.blocking(&action, move |inner, action| uploads::abort(&inner.root, action, &key, &upload)).await
    }

    async fn list_uploads(&self, prefix: &ObjectKey) -> Result<Vec<UploadInfo>> {
        let prefix = prefix.clone();
        let action = self.action("list uploads of", &prefix);
        self.blocking(&action, move |inner, action| uploads::list(&inner.root, action, &prefix)).await
    }
}

/// A read under way.
struct Reading {
    action: String,
    fd: Arc<OwnedFd>,
    version: Version,
    rest: ByteRange,
}

impl Reading {
    /// The next bytes. They are looked at only after the file was seen unchanged once more.
    async fn next(mut self) -> Result<(Bytes, Self)> {
        let action = self.action.clone();
        blocking(action, move || {
            let wanted = self.rest.len().min(CHUNK_BYTES) as usize;
            let mut buffer: Vec<u8> = Vec::with_capacity(wanted);
            while buffer.len() < wanted {
                let offset = self.rest.start + buffer.len() as u64;
                let missing = wanted - buffer.len();
                let spare = &mut buffer.spare_capacity_mut()[..missing];
                let count = match rustix::io::pread(&*self.fd, spare, offset) {
                    Ok((filled, _)) => filled.len(),
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(errno) => return Err(error_of(&self.action, errno)),
                };
                if count == 0 {
                    return Err(check::changed(&self.action));
                }
                // SAFETY: `pread` filled the first `count` bytes behind the buffer's length, which lie in its capacity.
                unsafe { buffer.set_len(buffer.len() + count) };
            }
            let stat = rustix::fs::fstat(&*self.fd).map_err(|errno| error_of(&self.action, errno))?;
            if attributes_of(&stat).is_none_or(|attributes| attributes.version != self.version) {
                return Err(check::changed(&self.action));
            }
            self.rest = ByteRange::new(self.rest.start + wanted as u64, self.rest.end);
            Ok((Bytes::from(buffer), self))
        })
        .await
    }
}
