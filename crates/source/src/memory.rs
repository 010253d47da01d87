//! Objects in this process's memory, by the name of their store; gone with the process.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};

use penstock_types::{
    Capabilities, Clock, CompletedPart, CopiedRange, CopyRequest, Description, Error, ErrorKind, ListPage, ListRequest,
    ListedObject, ObjectAttributes, ObjectBody, ObjectKey, ObjectStat, PartInfo, Precondition, PutRequest, ReadRequest,
    Result, Source, SourceId, UploadId, UploadInfo, Version,
};

use crate::check;

/// Most bytes of one store: it lives in the node's memory, which has other uses.
const MAX_STORE_BYTES: u64 = 1 << 30;
/// A body is delivered in pieces of this size, as a network would.
const CHUNK_BYTES: usize = 256 << 10;
/// Most entries of one page.
const MAX_PAGE: usize = 1000;

/// Stores by name: two attachments of one name see the same objects, and what was stored stays until the process ends.
static STORES: LazyLock<Mutex<HashMap<String, Arc<Mutex<Store>>>>> = LazyLock::new(Mutex::default);

/// A store of objects in memory.
pub(crate) struct Memory {
    id: SourceId,
    name: String,
    store: Arc<Mutex<Store>>,
    clock: Arc<dyn Clock>,
}

struct Object {
    content: Bytes,
    attributes: ObjectAttributes,
    description: Description,
}

struct Upload {
    key: ObjectKey,
    description: Description,
    parts: BTreeMap<u32, (Bytes, PartInfo)>,
}

struct Store {
    objects: BTreeMap<ObjectKey, Object>,
    uploads: BTreeMap<String, Upload>,
    bytes: u64,
    /// Makes versions of this process unlike those of any other: the cache outlives the process.
    era: String,
    next: u64,
}

impl Store {
    fn new(clock: &dyn Clock) -> Self {
        let era = format!("{:x}-{:x}", std::process::id(), clock.wall_ms());
        Self { objects: BTreeMap::new(), uploads: BTreeMap::new(), bytes: 0, era, next: 1 }
    }

    fn token(&mut self) -> String {
        let token = format!("{}-{}", self.era, self.next);
        self.next += 1;
        token
    }

    fn check(&self, action: &str, key: &ObjectKey, precondition: &Precondition) -> Result<()> {
        let current = self.objects.get(key).map(|object| &object.attributes.version);
        check::precondition(action, precondition, current)
    }

    fn reserve(&mut self, action: &str, more: u64) -> Result<()> {
        if self.bytes + more > MAX_STORE_BYTES {
            return Err(
                Error::new(ErrorKind::NoSpace, action, "the memory store is full").fact("limit", MAX_STORE_BYTES)
            );
        }
        self.bytes += more;
        Ok(())
    }

    /// Stores content that was reserved already.
    fn insert(
        &mut self,
        clock: &dyn Clock,
        key: ObjectKey,
        content: Bytes,
        description: Description,
    ) -> ObjectAttributes {
        let attributes = ObjectAttributes {
            size: content.len() as u64,
            modified_ms: clock.wall_ms().div_euclid(1000) * 1000,
            version: Version::from(self.token().as_str()),
        };
        let description = Description { metadata: sorted(description.metadata), headers: sorted(description.headers) };
        if let Some(old) = self.objects.insert(key, Object { content, attributes: attributes.clone(), description }) {
            self.bytes -= old.attributes.size;
        }
        attributes
    }
}

/// Entries as a stat tells them.
fn sorted(entries: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut entries: Vec<_> = entries.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
    entries.sort();
    entries
}

impl Memory {
    /// The store of that name.
    pub(crate) fn open(name: &str, clock: Arc<dyn Clock>) -> Self {
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        let store = stores.entry(name.to_owned()).or_insert_with(|| Arc::new(Mutex::new(Store::new(&*clock)))).clone();
        Self { id: SourceId::from(format!("memory:{name}").as_str()), name: name.to_owned(), store, clock }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn action(&self, verb: &str, key: &ObjectKey) -> String {
        format!("{verb} {}", self.describe(key))
    }

    /// Stores a part of an upload, in place of one of its number.
    fn store_part(
        store: &mut Store,
        action: &str,
        (key, upload): (&ObjectKey, &UploadId),
        number: u32,
        body: Bytes,
    ) -> Result<PartInfo> {
        if store.uploads.get(&upload.0).is_none_or(|upload| upload.key != *key) {
            return Err(Self::no_upload(action));
        }
        store.reserve(action, body.len() as u64)?;
        let info = PartInfo { number, size: body.len() as u64, etag: store.token() };
        let parts = store.uploads.get_mut(&upload.0).map(|upload| &mut upload.parts);
        let replaced = parts.and_then(|parts| parts.insert(number, (body, info.clone())));
        store.bytes -= replaced.map_or(0, |(_, old)| old.size);
        Ok(info)
    }

    fn no_upload(action: &str) -> Error {
        Error::new(ErrorKind::NotFound, action, "there is no such upload: it was completed or aborted")
    }
}

#[async_trait]
impl Source for Memory {
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
            resumable_multipart: false,
            list_start_after: true,
            binary_keys: true,
            weak_versions: false,
            metadata: true,
            headers: true,
            directories: false,
            read_only: false,
        }
    }

    fn describe(&self, key: &ObjectKey) -> String {
        format!("memory://{}/{key}", self.name)
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        match self.store().objects.get(key) {
            Some(object) => {
                let Description { metadata, headers } = object.description.clone();
                Ok(ObjectStat { attributes: object.attributes.clone(), metadata, headers })
            }
            None => Err(check::no_such_object(&self.action("stat", key))),
        }
    }

    async fn read(&self, request: ReadRequest) -> Result<ObjectBody> {
        let action = self.action("read", &request.key);
        let (content, attributes) = match self.store().objects.get(&request.key) {
            Some(object) => (object.content.clone(), object.attributes.clone()),
            None if request.version.is_some() => return Err(check::gone(&action)),
            None => return Err(check::no_such_object(&action)),
        };
        check::pinned(&action, request.version.as_ref(), &attributes.version)?;
        check::range(&action, request.range, attributes.size)?;
        let (start, end) = (request.range.start as usize, request.range.end as usize);
        let pieces = (start..end).step_by(CHUNK_BYTES).map(move |at| Ok(content.slice(at..end.min(at + CHUNK_BYTES))));
        Ok(ObjectBody { attributes, range: request.range, chunks: stream::iter(pieces).boxed() })
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        check::limit(&self.action("list", &request.prefix), request.limit)?;
        let store = self.store();
        let position = request.continuation.as_deref().map(check::decode_token).or(request.start_after.clone());
        Ok(page(&store.objects, &request, position))
    }

    async fn put(&self, request: PutRequest) -> Result<ObjectAttributes> {
        let action = self.action("write", &request.key);
        check::key(&action, &request.key)?;
        let mut store = self.store();
        store.check(&action, &request.key, &request.precondition)?;
        store.reserve(&action, request.body.len() as u64)?;
        // A copy: the buffer is the sender's, who waits to have it back.
        Ok(store.insert(&*self.clock, request.key, Bytes::copy_from_slice(&request.body), request.metadata.into()))
    }

    async fn copy(&self, request: CopyRequest) -> Result<ObjectAttributes> {
        let action = self.action("copy", &request.from);
        check::key(&action, &request.to)?;
        let mut store = self.store();
        let current = store.objects.get(&request.from).map(|object| object.attributes.version.clone());
        if let Some(version) = request.from_version {
            check::precondition(&action, &Precondition::Version(version), current.as_ref())?;
        }
        let Some(object) = store.objects.get(&request.from) else { return Err(check::no_such_object(&action)) };
        let content = object.content.clone();
        let description = request.description.unwrap_or_else(|| object.description.clone());
        store.check(&action, &request.to, &request.precondition)?;
        store.reserve(&action, content.len() as u64)?;
        Ok(store.insert(&*self.clock, request.to, content, description))
    }

    async fn delete(&self, key: &ObjectKey, version: Option<&Version>) -> Result<()> {
        let action = self.action("delete", key);
        let mut store = self.store();
        if let Some(version) = version {
            store.check(&action, key, &Precondition::Version(version.clone()))?;
        }
        if let Some(old) = store.objects.remove(key) {
            store.bytes -= old.attributes.size;
        }
        Ok(())
    }

    async fn begin_upload(&self, key: &ObjectKey, description: Description) -> Result<UploadId> {
        check::key(&self.action("begin upload of", key), key)?;
        let mut store = self.store();
        let id = store.token();
        store.uploads.insert(id.clone(), Upload { key: key.clone(), description, parts: BTreeMap::new() });
        Ok(UploadId(id))
    }

    async fn put_part(&self, key: &ObjectKey, upload: &UploadId, number: u32, body: Bytes) -> Result<PartInfo> {
        let action = self.action("write a part of", key);
        check::part_number(&action, number)?;
        // A copy: the buffer is the sender's, who waits to have it back.
        Self::store_part(&mut self.store(), &action, (key, upload), number, Bytes::copy_from_slice(&body))
    }

    async fn copy_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        copied: CopiedRange,
    ) -> Result<PartInfo> {
        let action = self.action("copy a part of", &copied.from);
        check::part_number(&action, number)?;
        let mut store = self.store();
        if let Some(version) = copied.from_version {
            store.check(&action, &copied.from, &Precondition::Version(version))?;
        }
        let Some(object) = store.objects.get(&copied.from) else { return Err(check::no_such_object(&action)) };
        check::range(&action, copied.range, object.attributes.size)?;
        let body = object.content.slice(copied.range.start as usize..copied.range.end as usize);
        Self::store_part(&mut store, &action, (key, upload), number, body)
    }

    async fn list_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<PartInfo>> {
        match self.store().uploads.get(&upload.0) {
            Some(upload) if upload.key == *key => Ok(upload.parts.values().map(|(_, info)| info.clone()).collect()),
            _ => Err(Self::no_upload(&self.action("list parts of", key))),
        }
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[CompletedPart],
        precondition: Precondition,
    ) -> Result<ObjectAttributes> {
        let action = self.action("complete upload of", key);
        check::parts_ascend(&action, parts)?;
        let mut store = self.store();
        let Some(found) = store.uploads.get(&upload.0).filter(|upload| upload.key == *key) else {
            return Err(Self::no_upload(&action));
        };
        let mut content = BytesMut::new();
        for part in parts {
            match found.parts.get(&part.number) {
                Some((bytes, info)) if info.etag == part.etag => content.extend_from_slice(bytes),
                _ => return Err(check::no_such_part(&action, part.number)),
            }
        }
        store.check(&action, key, &precondition)?;
        store.reserve(&action, content.len() as u64)?;
        let description = match store.uploads.remove(&upload.0) {
            Some(upload) => {
                store.bytes -= upload.parts.values().map(|(_, info)| info.size).sum::<u64>();
                upload.description
            }
            None => Description::default(),
        };
        Ok(store.insert(&*self.clock, key.clone(), content.freeze(), description))
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let mut store = self.store();
        if store.uploads.get(&upload.0).is_some_and(|upload| upload.key == *key)
            && let Some(upload) = store.uploads.remove(&upload.0)
        {
            store.bytes -= upload.parts.values().map(|(_, info)| info.size).sum::<u64>();
        }
        Ok(())
    }

    async fn list_uploads(&self, prefix: &ObjectKey) -> Result<Vec<UploadInfo>> {
        let below = |upload: &Upload| upload.key.as_bytes().starts_with(prefix.as_bytes());
        let store = self.store();
        let uploads = store.uploads.iter().filter(|(_, upload)| below(upload));
        Ok(uploads.map(|(id, upload)| UploadInfo { key: upload.key.clone(), id: UploadId(id.clone()) }).collect())
    }
}

/// One page of an ordered map, behind `position`. A page begins with one look-up and skips what it rolls up with
/// another, so that its cost is that of its entries.
fn page(objects: &BTreeMap<ObjectKey, Object>, request: &ListRequest, position: Option<ObjectKey>) -> ListPage {
    let prefix = request.prefix.as_bytes();
    let mut page = ListPage::default();
    let mut lower = match position {
        Some(position) if position >= request.prefix => behind(&position, request),
        _ => Bound::Included(request.prefix.clone()),
    };
    let mut last = None;
    loop {
        let Some((key, object)) = objects.range((lower, Bound::Unbounded)).next() else { return page };
        if !key.as_bytes().starts_with(prefix) {
            return page;
        }
        if page.objects.len() + page.prefixes.len() == request.limit.min(MAX_PAGE) {
            page.continuation = last.as_ref().map(check::encode_token);
            return page;
        }
        let rest = &key.as_bytes()[prefix.len()..];
        let rolled = rest.iter().position(|byte| *byte == b'/').filter(|_| request.delimited);
        if let Some(end) = rolled {
            let common = ObjectKey::new(key.as_bytes()[..prefix.len() + end + 1].to_vec());
            lower = behind(&common, request);
            page.prefixes.push(common.clone());
            last = Some(common);
        } else {
            page.objects.push(ListedObject { key: key.clone(), attributes: object.attributes.clone() });
            lower = Bound::Excluded(key.clone());
            last = Some(key.clone());
        }
    }
}

/// What comes after `position`: where it lies in a common prefix, all of that prefix is passed.
fn behind(position: &ObjectKey, request: &ListRequest) -> Bound<ObjectKey> {
    let prefix_length = request.prefix.as_bytes().len();
    let inside = request
        .delimited
        .then(|| position.as_bytes().get(prefix_length..)?.iter().position(|byte| *byte == b'/'))
        .flatten();
    match inside {
        Some(end) if position.as_bytes().starts_with(request.prefix.as_bytes()) => {
            let common = ObjectKey::new(position.as_bytes()[..prefix_length + end + 1].to_vec());
            common.prefix_end().map_or(Bound::Excluded(position.clone()), Bound::Included)
        }
        _ => Bound::Excluded(position.clone()),
    }
}
