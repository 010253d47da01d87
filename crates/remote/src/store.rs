//! Buckets, objects and uploads: the index in memory, the journal on disk, changed together and in one order.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use s3s::{S3Error, S3Result, s3_error};

use crate::conditions::Conditions;
use crate::data::{DataDirectory, DataFile, DataWriter};
use crate::index::{self, Index, Page, Query};
use crate::journal::{Journal, Record, StoredObject, StoredPart};
use crate::object::{Object, Part, Segment, Upload};

/// The journal is rewritten at start when it has so many times more records than there are things to record.
const REWRITE_FACTOR: usize = 4;
/// Below so many records it is left alone.
const REWRITE_FROM_RECORDS: usize = 10_000;

/// Everything the remote holds.
#[derive(Debug)]
pub struct Store {
    data: DataDirectory,
    /// Whoever changes something holds it from the check of the conditions until the index shows the change: the
    /// journal has changes in the order in which they were decided. Readers never wait for it.
    journal: Mutex<Journal>,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
pub struct State {
    pub buckets: BTreeMap<String, Index>,
    pub uploads: BTreeMap<u64, Upload>,
}

impl Store {
    /// Opens the store in `root`, which is made when missing.
    pub fn open(root: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let data = DataDirectory::open(root.join("data"))?;
        let path: PathBuf = root.join("index");
        let mut replay = Replay { data: &data, files: HashMap::new(), state: State::default(), records: 0 };
        let mut journal = Journal::open(&path, |record| replay.apply(record))?;
        let Replay { files, state, records, .. } = replay;
        state.check_files()?;
        data.remove_orphans(|number| files.contains_key(&number))?;
        // Files that only replaced objects referred to go with it.
        drop(files);
        if records > REWRITE_FROM_RECORDS && records / REWRITE_FACTOR > state.things() {
            journal = Journal::rewrite(&path, state.records())?;
        }
        Ok(Self { data, journal: Mutex::new(journal), state: RwLock::new(state) })
    }

    /// The names of the buckets.
    pub fn buckets(&self) -> Vec<String> {
        self.read().buckets.keys().cloned().collect()
    }

    /// Makes a bucket; false when it is there already.
    pub fn create_bucket(&self, bucket: &str) -> S3Result<bool> {
        let mut journal = self.lock();
        if self.read().buckets.contains_key(bucket) {
            return Ok(false);
        }
        append(&mut journal, &Record::CreateBucket { bucket: bucket.into() })?;
        self.write().buckets.insert(bucket.into(), Index::new());
        Ok(true)
    }

    /// Removes an empty bucket.
    pub fn delete_bucket(&self, bucket: &str) -> S3Result<()> {
        let mut journal = self.lock();
        if !self.bucket(bucket, Index::is_empty)? {
            return Err(s3_error!(BucketNotEmpty, "The bucket you tried to delete is not empty"));
        }
        append(&mut journal, &Record::DeleteBucket { bucket: bucket.into() })?;
        self.write().buckets.remove(bucket);
        Ok(())
    }

    /// Looks into the index of a bucket.
    pub fn bucket<T>(&self, bucket: &str, look: impl FnOnce(&Index) -> T) -> S3Result<T> {
        self.read()
            .buckets
            .get(bucket)
            .map(look)
            .ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))
    }

    /// The object that has the key.
    pub fn get(&self, bucket: &str, key: &str) -> S3Result<Arc<Object>> {
        self.find(bucket, key)?.ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))
    }

    /// One page of a listing.
    pub fn list(&self, bucket: &str, query: &Query) -> S3Result<Page> {
        self.bucket(bucket, |objects| index::list(objects, query))
    }

    /// A file to write content into.
    pub fn writer(&self) -> S3Result<DataWriter> {
        self.data.create().map_err(internal)
    }

    /// Gives the key this object, if the conditions hold.
    pub fn put(&self, bucket: &str, key: &str, object: Object, conditions: &Conditions) -> S3Result<Arc<Object>> {
        let mut journal = self.lock();
        conditions.check_write(self.find(bucket, key)?.as_deref())?;
        let object = Arc::new(object);
        let stored = stored_object(&object);
        append(&mut journal, &Record::Put { bucket: bucket.into(), keys: vec![key.into()], object: stored })?;
        self.insert(bucket, [key], &object);
        Ok(object)
    }

    /// Gives all the keys this one object.
    pub fn put_many(&self, bucket: &str, keys: Vec<String>, object: &Arc<Object>) -> S3Result<()> {
        let mut journal = self.lock();
        self.bucket(bucket, |_| ())?;
        let record = Record::Put { bucket: bucket.into(), keys, object: stored_object(object) };
        append(&mut journal, &record)?;
        if let Record::Put { keys, .. } = &record {
            self.insert(bucket, keys.iter().map(String::as_str), object);
        }
        Ok(())
    }

    /// Removes the key, if the conditions hold. What is not there is removed already.
    pub fn delete(&self, bucket: &str, key: &str, conditions: &Conditions) -> S3Result<()> {
        let mut journal = self.lock();
        let current = self.find(bucket, key)?;
        conditions.check_write(current.as_deref())?;
        if current.is_none() {
            return Ok(());
        }
        append(&mut journal, &Record::Delete { bucket: bucket.into(), key: key.into() })?;
        if let Some(objects) = self.write().buckets.get_mut(bucket) {
            objects.remove(key.as_bytes());
        }
        Ok(())
    }

    /// Begins an upload and gives its number.
    pub fn begin_upload(&self, upload: Upload) -> S3Result<u64> {
        let mut journal = self.lock();
        self.bucket(&upload.bucket, |_| ())?;
        let number = self.data.next_number();
        append(&mut journal, &begin_record(number, &upload))?;
        self.write().uploads.insert(number, upload);
        Ok(number)
    }

    /// Looks at an upload of this bucket and key.
    pub fn upload<T>(&self, number: u64, at: (&str, &str), look: impl FnOnce(&Upload) -> T) -> S3Result<T> {
        let state = self.read();
        let upload = state.uploads.get(&number).filter(|upload| (upload.bucket.as_str(), upload.key.as_str()) == at);
        upload.map(look).ok_or_else(|| {
            s3_error!(NoSuchUpload, "The specified upload does not exist: it may have been completed or aborted.")
        })
    }

    /// Looks at all uploads, by number.
    pub fn uploads<T>(&self, look: impl FnOnce(&BTreeMap<u64, Upload>) -> T) -> T {
        look(&self.read().uploads)
    }

    /// Takes a part; the same number again replaces it.
    pub fn put_part(&self, upload: u64, at: (&str, &str), number: u32, part: Part) -> S3Result<()> {
        let mut journal = self.lock();
        self.upload(upload, at, |_| ())?;
        append(&mut journal, &Record::PutPart { upload, number, part: stored_part(&part) })?;
        let replaced = self.write().uploads.get_mut(&upload).map(|upload| upload.parts.insert(number, part));
        drop(replaced);
        Ok(())
    }

    /// Gives an upload up.
    pub fn abort_upload(&self, upload: u64, at: (&str, &str)) -> S3Result<()> {
        let mut journal = self.lock();
        self.upload(upload, at, |_| ())?;
        append(&mut journal, &Record::AbortUpload { upload })?;
        let gone = self.write().uploads.remove(&upload);
        drop(gone);
        Ok(())
    }

    /// Makes the object that `build` gives of the upload, if the conditions hold.
    pub fn complete_upload(
        &self,
        upload: u64,
        at: (&str, &str),
        conditions: &Conditions,
        build: impl FnOnce(&Upload) -> S3Result<Object>,
    ) -> S3Result<Arc<Object>> {
        let mut journal = self.lock();
        let object = Arc::new(self.upload(upload, at, build)??);
        conditions.check_write(self.find(at.0, at.1)?.as_deref())?;
        append(&mut journal, &Record::CompleteUpload { upload, object: stored_object(&object) })?;
        let gone = self.write().uploads.remove(&upload);
        self.insert(at.0, [at.1], &object);
        drop(gone);
        Ok(object)
    }

    /// From now on nothing on disk changes any more, and the directory may be opened again.
    pub fn close(&self) {
        self.data.keep_all();
        if let Err(error) = self.lock().release() {
            tracing::warn!(%error, "release the journal");
        }
    }

    fn find(&self, bucket: &str, key: &str) -> S3Result<Option<Arc<Object>>> {
        self.bucket(bucket, |objects| objects.get(key.as_bytes()).cloned())
    }

    fn insert<'a>(&self, bucket: &str, keys: impl IntoIterator<Item = &'a str>, object: &Arc<Object>) {
        let mut replaced = Vec::new();
        if let Some(objects) = self.write().buckets.get_mut(bucket) {
            let old = keys.into_iter().filter_map(|key| objects.insert(key.as_bytes().into(), object.clone()));
            replaced.extend(old);
        }
        // Dropped without the lock: the last reference unlinks the file.
        drop(replaced);
    }

    fn lock(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn things(&self) -> usize {
        self.buckets.values().map(|objects| 1 + objects.len()).sum::<usize>()
            + self.uploads.values().map(|upload| 1 + upload.parts.len()).sum::<usize>()
    }

    /// Fails where content that something refers to is not there.
    fn check_files(&self) -> io::Result<()> {
        let objects = self.buckets.values().flat_map(Index::values).flat_map(|object| &object.segments);
        let parts = self.uploads.values().flat_map(|upload| upload.parts.values()).flat_map(|part| &part.segments);
        match objects.chain(parts).find(|segment| segment.offset + segment.length > segment.file.size()) {
            None => Ok(()),
            Some(lost) => {
                let number = lost.file.number();
                Err(io::Error::new(ErrorKind::InvalidData, format!("data file {number} is lost or too short")))
            }
        }
    }

    /// The records that make this state from nothing.
    fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let buckets = self.buckets.iter().flat_map(|(bucket, objects)| {
            let puts = objects.iter().map(move |(key, object)| Record::Put {
                bucket: bucket.clone(),
                keys: vec![String::from_utf8_lossy(key).into_owned()],
                object: stored_object(object),
            });
            std::iter::once(Record::CreateBucket { bucket: bucket.clone() }).chain(puts)
        });
        let uploads = self.uploads.iter().flat_map(|(&number, upload)| {
            let parts = upload.parts.iter().map(move |(&part_number, part)| Record::PutPart {
                upload: number,
                number: part_number,
                part: stored_part(part),
            });
            std::iter::once(begin_record(number, upload)).chain(parts)
        });
        buckets.chain(uploads)
    }
}

/// What replaying the journal has built so far. `files` keeps every file alive until the end.
struct Replay<'a> {
    data: &'a DataDirectory,
    files: HashMap<u64, Arc<DataFile>>,
    state: State,
    records: usize,
}

impl Replay<'_> {
    fn apply(&mut self, record: Record) -> io::Result<()> {
        self.records += 1;
        match record {
            Record::CreateBucket { bucket } => {
                self.state.buckets.entry(bucket).or_default();
            }
            Record::DeleteBucket { bucket } => {
                self.state.buckets.remove(&bucket);
            }
            Record::Put { bucket, keys, object } => {
                let object = Arc::new(self.object(object)?);
                let objects = self.state.buckets.entry(bucket).or_default();
                objects.extend(keys.into_iter().map(|key| (key.into_bytes().into_boxed_slice(), object.clone())));
            }
            Record::Delete { bucket, key } => {
                self.state.buckets.entry(bucket).or_default().remove(key.as_bytes());
            }
            Record::BeginUpload { upload, bucket, key, initiated_s, extra } => {
                self.data.seen(upload);
                let value = Upload { bucket, key, initiated_s, extra, parts: BTreeMap::new() };
                self.state.uploads.insert(upload, value);
            }
            Record::PutPart { upload, number, part } => {
                let segments = self.segments(&part.segments)?;
                let part = Part { etag: part.etag, size: part.size, modified_s: part.modified_s, segments };
                self.state.uploads.get_mut(&upload).ok_or_else(inconsistent)?.parts.insert(number, part);
            }
            Record::AbortUpload { upload } => {
                self.state.uploads.remove(&upload);
            }
            Record::CompleteUpload { upload, object } => {
                let upload = self.state.uploads.remove(&upload).ok_or_else(inconsistent)?;
                let object = Arc::new(self.object(object)?);
                let objects = self.state.buckets.entry(upload.bucket).or_default();
                objects.insert(upload.key.into_bytes().into_boxed_slice(), object);
            }
        }
        Ok(())
    }

    fn object(&mut self, stored: StoredObject) -> io::Result<Object> {
        let StoredObject { etag, size, modified_s, extra, segments } = stored;
        Ok(Object { etag, size, modified_s, extra, segments: self.segments(&segments)? })
    }

    fn segments(&mut self, stored: &[(u64, u64, u64)]) -> io::Result<Vec<Segment>> {
        let segment = |&(number, offset, length): &(u64, u64, u64)| {
            let file = match self.files.entry(number) {
                Entry::Occupied(entry) => entry.get().clone(),
                Entry::Vacant(entry) => entry.insert(self.data.existing(number)?).clone(),
            };
            Ok(Segment { file, offset, length })
        };
        stored.iter().map(segment).collect()
    }
}

fn inconsistent() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "a record speaks of an upload that never began")
}

fn begin_record(number: u64, upload: &Upload) -> Record {
    let Upload { bucket, key, initiated_s, extra, .. } = upload;
    let (bucket, key, extra) = (bucket.clone(), key.clone(), extra.clone());
    Record::BeginUpload { upload: number, bucket, key, initiated_s: *initiated_s, extra }
}

fn stored_object(object: &Object) -> StoredObject {
    StoredObject {
        etag: object.etag.clone(),
        size: object.size,
        modified_s: object.modified_s,
        extra: object.extra.clone(),
        segments: stored_segments(&object.segments),
    }
}

fn stored_part(part: &Part) -> StoredPart {
    let segments = stored_segments(&part.segments);
    StoredPart { etag: part.etag.clone(), size: part.size, modified_s: part.modified_s, segments }
}

fn stored_segments(segments: &[Segment]) -> Vec<(u64, u64, u64)> {
    segments.iter().map(|segment| (segment.file.number(), segment.offset, segment.length)).collect()
}

fn append(journal: &mut Journal, record: &Record) -> S3Result<()> {
    journal.append(record).map_err(internal)
}

/// A failure of the disk, as the protocol says it.
pub fn internal(error: io::Error) -> S3Error {
    S3Error::internal_error(error)
}
