//! A source in memory that counts what it is asked, takes its time, and fails when told to.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "only tests use it")]

mod written;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use penstock_catalog::{Catalog, Item, NamedItem, View};
use penstock_testkit::ManualClock;
use penstock_types::*;

pub use written::Written;

pub struct TestSource {
    id: SourceId,
    objects: Mutex<BTreeMap<Vec<u8>, ObjectAttributes>>,
    /// Content of the few objects that have some.
    texts: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    pub delay: Duration,
    pub list_start_after: bool,
    pub binary_keys: bool,
    lists: AtomicUsize,
    stats: AtomicUsize,
    under_way: AtomicUsize,
    pub most_at_once: AtomicUsize,
    /// Calls left before one fails; negative for never.
    fail_in: AtomicI64,
    versions: AtomicUsize,
}

impl Default for TestSource {
    fn default() -> Self {
        Self {
            id: SourceId::from("test"),
            objects: Mutex::default(),
            texts: Mutex::default(),
            delay: Duration::ZERO,
            list_start_after: true,
            binary_keys: true,
            lists: AtomicUsize::new(0),
            stats: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            fail_in: AtomicI64::new(-1),
            versions: AtomicUsize::new(0),
        }
    }
}

impl TestSource {
    pub fn with_delay(delay_ms: u64) -> Self {
        Self { delay: Duration::from_millis(delay_ms), ..Self::default() }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, ObjectAttributes>> {
        self.objects.lock().unwrap()
    }

    /// Stores an object of `size` bytes with a version of its own.
    pub fn store(&self, key: impl AsRef<[u8]>, size: u64) {
        let number = self.versions.fetch_add(1, Ordering::SeqCst);
        let attributes = ObjectAttributes {
            size,
            modified_ms: 1_700_000_000_000 + number as i64,
            version: Version::from(format!("{number:032x}").as_str()),
        };
        self.objects().insert(key.as_ref().to_vec(), attributes);
    }

    /// Stores an object that can be read.
    pub fn store_text(&self, key: impl AsRef<[u8]>, text: Vec<u8>) {
        self.store(&key, text.len() as u64);
        self.texts.lock().unwrap().insert(key.as_ref().to_vec(), text);
    }

    pub fn with(self, keys: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        for key in keys {
            self.store(key, 7);
        }
        self
    }

    pub fn remove(&self, key: &str) {
        self.objects().remove(key.as_bytes());
    }

    pub fn attributes(&self, key: &str) -> ObjectAttributes {
        self.objects()[key.as_bytes()].clone()
    }

    pub fn lists(&self) -> usize {
        self.lists.load(Ordering::SeqCst)
    }

    pub fn stats(&self) -> usize {
        self.stats.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> usize {
        self.lists() + self.stats()
    }

    /// The call after `calls` more fails.
    pub fn fail_after(&self, calls: i64) {
        self.fail_in.store(calls, Ordering::SeqCst);
    }

    async fn call(&self, counter: &AtomicUsize) -> Result<()> {
        counter.fetch_add(1, Ordering::SeqCst);
        let at_once = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        if self.fail_in.load(Ordering::SeqCst) >= 0 && self.fail_in.fetch_sub(1, Ordering::SeqCst) == 0 {
            return Err(Error::new(ErrorKind::Unavailable, "ask the test source", "it was told to fail"));
        }
        Ok(())
    }
}

fn unused<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "use the test source", "it only lists"))
}

#[async_trait]
impl Source for TestSource {
    fn id(&self) -> &SourceId {
        &self.id
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            conditional_read: true,
            conditional_create: false,
            conditional_replace: false,
            conditional_delete: false,
            conditional_copy: false,
            resumable_multipart: false,
            list_start_after: self.list_start_after,
            binary_keys: self.binary_keys,
            weak_versions: false,
            metadata: false,
            headers: false,
            directories: false,
            read_only: true,
        }
    }

    fn describe(&self, key: &ObjectKey) -> String {
        format!("test://{key}")
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        self.call(&self.stats).await?;
        match self.objects().get(key.as_bytes()) {
            Some(attributes) => {
                Ok(ObjectStat { attributes: attributes.clone(), metadata: Vec::new(), headers: Vec::new() })
            }
            None => Err(Error::new(ErrorKind::NotFound, self.describe(key), "no such object")),
        }
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        assert!(request.start_after.is_none() || self.list_start_after, "this source cannot start anywhere");
        for key in [Some(&request.prefix), request.start_after.as_ref()].into_iter().flatten() {
            assert!(self.binary_keys || key.as_str().is_some(), "a request carries text: {key}");
        }
        self.call(&self.lists).await?;
        let prefix = request.prefix.as_bytes();
        let token = request.continuation.map(|token| Bytes::from(token.into_bytes()));
        let token = token.map(|token| token.chunks(2).map(hex).collect::<Vec<u8>>());
        let mut after = token.or(request.start_after.as_ref().map(|key| key.as_bytes().to_vec()));
        let objects = self.objects();
        let mut page = ListPage::default();
        loop {
            let start = match &after {
                Some(after) if after.as_slice() >= prefix => Bound::Excluded(after.as_slice()),
                _ => Bound::Included(prefix),
            };
            let next = objects.range::<[u8], _>((start, Bound::Unbounded)).next();
            let Some((key, attributes)) = next.filter(|(key, _)| key.starts_with(prefix)) else { break };
            if page.objects.len() + page.prefixes.len() == request.limit {
                let last = after.expect("a full page has a last key");
                page.continuation = Some(last.iter().map(|byte| format!("{byte:02x}")).collect());
                break;
            }
            let slash = key[prefix.len()..].iter().position(|&byte| byte == b'/').filter(|_| request.delimited);
            match slash {
                Some(slash) => {
                    let rolled = key[..=prefix.len() + slash].to_vec();
                    after = Some([&rolled[..], &[0xff; 1100]].concat());
                    // A start inside a common prefix: the prefix counts as its own text.
                    if request.start_after.as_ref().is_none_or(|start| rolled.as_slice() > start.as_bytes()) {
                        page.prefixes.push(ObjectKey::new(rolled));
                    }
                }
                None => {
                    after = Some(key.clone());
                    page.objects
                        .push(ListedObject { key: ObjectKey::new(key.clone()), attributes: attributes.clone() });
                }
            }
        }
        Ok(page)
    }

    async fn read(&self, request: ReadRequest) -> Result<ObjectBody> {
        let gone = || Error::new(ErrorKind::NotFound, "read the test source", "nothing has that key");
        let key = request.key.as_bytes();
        let attributes = self.objects().get(key).cloned().ok_or_else(gone)?;
        if request.version.is_some_and(|version| version != attributes.version) {
            return Err(gone().with_kind(ErrorKind::StaleVersion));
        }
        let Some(text) = self.texts.lock().unwrap().get(key).cloned() else { return unused() };
        let chunk = Ok(bytes::Bytes::from(text));
        Ok(ObjectBody { attributes, range: request.range, chunks: futures_util::stream::iter([chunk]).boxed() })
    }
    async fn put(&self, _: PutRequest) -> Result<ObjectAttributes> {
        unused()
    }
    async fn copy(&self, _: CopyRequest) -> Result<ObjectAttributes> {
        unused()
    }
    async fn delete(&self, _: &ObjectKey, _: Option<&Version>) -> Result<()> {
        unused()
    }
    async fn begin_upload(&self, _: &ObjectKey, _: Description) -> Result<UploadId> {
        unused()
    }
    async fn put_part(&self, _: &ObjectKey, _: &UploadId, _: u32, _: Bytes) -> Result<PartInfo> {
        unused()
    }
    async fn copy_part(&self, _: &ObjectKey, _: &UploadId, _: u32, _: CopiedRange) -> Result<PartInfo> {
        unused()
    }
    async fn list_parts(&self, _: &ObjectKey, _: &UploadId) -> Result<Vec<PartInfo>> {
        unused()
    }
    async fn complete_upload(
        &self,
        _: &ObjectKey,
        _: &UploadId,
        _: &[CompletedPart],
        _: Precondition,
    ) -> Result<ObjectAttributes> {
        unused()
    }
    async fn abort_upload(&self, _: &ObjectKey, _: &UploadId) -> Result<()> {
        unused()
    }
    async fn list_uploads(&self, _: &ObjectKey) -> Result<Vec<UploadInfo>> {
        unused()
    }
}

fn hex(pair: &[u8]) -> u8 {
    u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()
}

/// A catalog in a directory of its own, a clock that the test turns, and a view of the source.
pub struct Bench {
    pub clock: Arc<ManualClock>,
    pub catalog: Arc<Catalog>,
    pub source: Arc<TestSource>,
    /// Empty until a test puts something into it.
    pub written: Arc<Written>,
    pub view: Arc<View>,
    pub directory: tempfile::TempDir,
}

impl Bench {
    pub fn new(source: TestSource, freshness: Freshness) -> Self {
        Self::below(source, freshness, "")
    }

    pub fn below(source: TestSource, freshness: Freshness, prefix: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::default());
        let catalog = Catalog::open(&directory.path().join("catalog.redb"), clock.clone(), Metrics::default()).unwrap();
        let source = Arc::new(source);
        let written = Arc::new(Written::default());
        let view = catalog.view("scope", source.clone(), ObjectKey::from(prefix), freshness, Some(written.clone()));
        Self { clock, catalog, source, written, view, directory }
    }

    /// Another view of the same facts.
    pub fn view_below(&self, prefix: &str, freshness: Freshness) -> Arc<View> {
        self.catalog.view("scope", self.source.clone(), prefix.into(), freshness, Some(self.written.clone()))
    }

    /// Closes the catalog and opens it again, as another process would. Other views must be gone.
    pub async fn restart(self) -> (Arc<Catalog>, tempfile::TempDir) {
        self.catalog.close();
        drop((self.view, self.catalog));
        (reopen(&self.directory.path().join("catalog.redb"), &self.clock).await, self.directory)
    }

    pub fn advance(&self, seconds: f64) {
        self.clock.advance(Duration::from_secs_f64(seconds));
    }
}

/// Opens a catalog as soon as the one before has let go of the file: a thread of it may be at its last step.
pub async fn reopen(path: &std::path::Path, clock: &Arc<ManualClock>) -> Arc<Catalog> {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        match Catalog::open(path, clock.clone(), Metrics::default()) {
            Err(error) if error.kind() == ErrorKind::Busy && std::time::Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            opened => return opened.unwrap(),
        }
    }
}

pub const MINUTE: Freshness = Freshness::Seconds(60.0);

/// Every page of a list.
pub async fn list(view: &Arc<View>, path: &str, limit: usize) -> Result<Vec<NamedItem>> {
    let (mut items, mut after) = (Vec::new(), None);
    loop {
        let page = view.list(path, after.as_deref(), limit).await?;
        assert!(page.items.len() <= limit);
        items.extend(page.items);
        after = page.next;
        if after.is_none() {
            return Ok(items);
        }
    }
}

/// Every page of a walk.
pub async fn walk(view: &Arc<View>, path: &str, limit: usize) -> Result<Vec<NamedItem>> {
    let (mut items, mut after) = (Vec::new(), None);
    loop {
        let page = view.walk(path, after.as_deref(), limit).await?;
        assert!(page.items.len() <= limit);
        items.extend(page.items);
        after = page.next;
        if after.is_none() {
            return Ok(items);
        }
    }
}

/// Names, directories with a slash behind.
pub fn names(items: &[NamedItem]) -> Vec<String> {
    items
        .iter()
        .map(|item| if item.item == Item::Directory { format!("{}/", item.name) } else { item.name.clone() })
        .collect()
}

/// The version that a file has.
pub fn version(item: &Item) -> &str {
    match item {
        Item::File { attributes, .. } => attributes.version.as_str(),
        Item::Directory => panic!("a directory has no version"),
    }
}
