//! The persistent index: which extents there are and which of their pages. One `redb` file with quick repair, so
//! that it opens at once after a kill. Whatever is wrong with it, the answer is "not cached", never wrong bytes.

#[cfg(test)]
mod damage;
mod file;
mod record;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use penstock_types::{Disk, ObjectId};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError, TableDefinition};

use crate::page_map::{StoredStripes, StripeImage};
use file::IndexFile;
pub use record::{Facts, Record, ScrubRow, TierRow};

const EXTENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("extents");
const BY_OBJECT: TableDefinition<'_, u64, u64> = TableDefinition::new("by_object");
const STRIPES: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("stripes");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");
/// The one row of [`FACTS`].
const THE_FACTS: &str = "facts";
/// Pages of the database kept in memory.
const MEMORY_BYTES: usize = 16 << 20;

/// What one flush changes.
#[derive(Default)]
pub struct Changes {
    pub put: Vec<ChangedExtent>,
    /// Numbers of extents that are gone, with the hash of their object.
    pub remove: Vec<(u64, u64)>,
    pub facts: Facts,
}

/// An extent as it is to be stored.
pub struct ChangedExtent {
    pub number: u64,
    pub record: Record,
    pub stripes: Vec<(u64, StripeImage)>,
}

/// What a row of the extents' table turned out to be.
pub struct Row {
    pub number: u64,
    /// `None` when the row is damaged.
    pub record: Option<Record>,
}

impl Row {
    /// Whether this is the row of `number`, and damaged.
    pub fn is_damaged(&self, number: u64) -> bool {
        self.number == number && self.record.is_none()
    }
}

/// The index file and its state. Everything it answers was checked.
pub struct Index {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    database: RwLock<Option<Arc<Database>>>,
    failure: Mutex<Option<Failure>>,
    /// Whether something was ever stored in it: it must not come back empty then.
    stored: AtomicBool,
}

#[derive(Clone)]
struct Failure {
    reason: String,
    /// The content is wrong: it is not opened again.
    damaged: bool,
}

impl Index {
    /// Opens the index of `path`; what is damaged or of another format is set aside and a fresh one begun.
    /// The facts are `None` for a fresh index.
    ///
    /// # Errors
    /// `WouldBlock` when another process has it, and what the disk says.
    pub fn open(disk: &Arc<dyn Disk>, path: &Path) -> io::Result<(Self, Option<Facts>)> {
        let index = Self {
            disk: Arc::clone(disk),
            path: path.to_owned(),
            database: RwLock::default(),
            failure: Mutex::default(),
            stored: AtomicBool::new(false),
        };
        let facts = match index.open_database() {
            Ok(facts) => facts,
            Err(Trouble::Io(error)) => return Err(error),
            Err(Trouble::Damaged(reason)) => {
                index.set_aside(&reason)?;
                index.open_database().map_err(Trouble::into_io)?
            }
        };
        index.stored.store(facts.is_some(), Ordering::Release);
        Ok((index, facts))
    }

    /// Number and record of an object version.
    pub fn find(&self, id: &ObjectId) -> Option<(u64, Record)> {
        let number = self.read(|database| {
            let transaction = database.begin_read()?;
            Ok(transaction.open_table(BY_OBJECT)?.get(object_hash(id))?.map(|number| number.value()))
        })??;
        let record = self.record(number)?;
        record.is_of(id).then_some((number, record))
    }

    /// The record of an extent; `None` when there is none that can be believed.
    pub fn record(&self, number: u64) -> Option<Record> {
        self.read(|database| {
            let row = database.begin_read()?.open_table(EXTENTS)?.get(number)?;
            Ok(row.and_then(|row| record::decode(&number.to_be_bytes(), row.value())))
        })?
    }

    /// Rows in order of their number, from `from` on, at most `limit`; `None` when the index cannot be read.
    pub fn rows(&self, from: u64, limit: usize) -> Option<Vec<Row>> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(EXTENTS)?;
            let rows = table.range(from..)?.take(limit).map(|row| {
                let (number, bytes) = row?;
                let number = number.value();
                Ok(Row { number, record: record::decode(&number.to_be_bytes(), bytes.value()) })
            });
            rows.collect::<Result<Vec<_>, redb::Error>>()
        })
    }

    /// How many extents it knows.
    pub fn count(&self) -> u64 {
        self.read(|database| Ok(database.begin_read()?.open_table(EXTENTS)?.len()?)).unwrap_or(0)
    }

    /// One stripe of an extent's page map.
    pub fn stripe(&self, number: u64, stripe: u64) -> Option<StripeImage> {
        self.read(|database| {
            let row = database.begin_read()?.open_table(STRIPES)?.get((number, stripe))?;
            Ok(row.and_then(|row| record::decode_stripe(&stripe_key(number, stripe), row.value())))
        })?
    }

    /// Stores changes in one transaction, synced. Reopens a database that failed before, unless it is damaged.
    ///
    /// # Errors
    /// What the disk says; nothing was stored then.
    pub fn commit(&self, changes: &Changes) -> io::Result<()> {
        if self.database().is_none() && !self.is_lost() {
            self.reopen().inspect_err(|trouble| self.leave(trouble)).map_err(Trouble::into_io)?;
        }
        let Some(database) = self.database() else {
            return Err(io::Error::other(self.failure().unwrap_or_else(|| "the index is closed".to_owned())));
        };
        self.guard(database, |database| write(database, changes)).map_err(Trouble::into_io)?;
        self.stored.store(true, Ordering::Release);
        Ok(())
    }

    /// The bytes that the records of each tier are charged with, counted row by row.
    pub fn recount(&self) -> Option<Vec<(u32, u64)>> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(EXTENTS)?;
            let mut sums = std::collections::BTreeMap::new();
            for row in table.iter()? {
                let (number, bytes) = row?;
                if let Some(record) = record::decode::<Record>(&number.value().to_be_bytes(), bytes.value()) {
                    *sums.entry(record.tier).or_insert(0) += record.charged;
                }
            }
            Ok(sums.into_iter().collect())
        })
    }

    /// Why the index does not take changes; `None` while it is healthy.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().expect(FAILURE).as_ref().map(|failure| failure.reason.clone())
    }

    /// Closes the file and ends its lock.
    pub fn close(&self) {
        let database = self.database.write().expect(DATABASE).take();
        *self.failure.lock().expect(FAILURE) =
            Some(Failure { reason: "the cache is closed".to_owned(), damaged: true });
        drop_quietly(database);
    }

    fn open_database(&self) -> Result<Option<Facts>, Trouble> {
        let backend = IndexFile::open(&self.disk, &self.path).map_err(Trouble::Io)?;
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = redb::Builder::new().set_cache_size(MEMORY_BYTES).create_with_backend(backend);
            let database = database.map_err(Trouble::of_database)?;
            let facts = read_facts(&database)?;
            Ok::<_, Trouble>((database, facts))
        }));
        let (database, facts) =
            opened.unwrap_or_else(|_| Err(Trouble::Damaged("it made the database panic".into())))?;
        *self.database.write().expect(DATABASE) = Some(Arc::new(database));
        *self.failure.lock().expect(FAILURE) = None;
        Ok(facts)
    }

    fn reopen(&self) -> Result<(), Trouble> {
        let facts = self.open_database()?;
        if facts.is_none() && self.stored.load(Ordering::Acquire) {
            return Err(Trouble::Damaged("it came back empty".to_owned()));
        }
        Ok(())
    }

    /// Runs a question; a failure is noted and answered by `None`.
    fn read<T>(&self, question: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Option<T> {
        // Before the first commit there are no tables.
        let database = self.database().filter(|_| self.stored.load(Ordering::Acquire))?;
        self.guard(database, question).ok()
    }

    /// Runs a call of the database. What fails for good takes the database out of use: a failed disk until the next
    /// commit opens it again, wrong content for the life of this value and of the file.
    fn guard<T>(
        &self,
        database: Arc<Database>,
        call: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, Trouble> {
        let answer = match catch_unwind(AssertUnwindSafe(|| call(&database))) {
            Ok(answer) => answer.map_err(Trouble::of_call),
            Err(_) => Err(Trouble::Damaged("it made the database panic".to_owned())),
        };
        if let Err(trouble) = &answer {
            self.leave(trouble);
            drop_quietly(Some(database));
        }
        answer
    }

    fn leave(&self, trouble: &Trouble) {
        let (reason, damaged) = match trouble {
            Trouble::Io(error) => (error.to_string(), false),
            Trouble::Damaged(reason) => (reason.clone(), true),
        };
        let database = self.database.write().expect(DATABASE).take();
        let known = {
            let mut failure = self.failure.lock().expect(FAILURE);
            let known = failure.is_some();
            if failure.as_ref().is_none_or(|failure| !failure.damaged) {
                *failure = Some(Failure { reason: reason.clone(), damaged });
            }
            known
        };
        if damaged && (!known || database.is_some()) {
            if let Err(error) = self.set_aside(&reason) {
                tracing::error!(code = "cache-index-set-aside", %error, "it cannot be set aside");
            }
        } else if !known {
            tracing::warn!(code = "cache-index-unhealthy", path = %self.path.display(), reason);
        }
        drop_quietly(database);
    }

    fn set_aside(&self, reason: &str) -> io::Result<()> {
        let aside = self.aside();
        tracing::warn!(code = "cache-index-set-aside", path = %self.path.display(), aside = %aside.display(), reason);
        self.disk.rename(&self.path, &aside)
    }

    /// One damaged index is kept for whoever wants to look at it; the next one replaces it.
    fn aside(&self) -> PathBuf {
        self.path.with_extension("redb.damaged")
    }

    fn database(&self) -> Option<Arc<Database>> {
        self.database.read().expect(DATABASE).clone()
    }

    /// Whether it is damaged or closed: nothing is read or stored any more.
    pub fn is_lost(&self) -> bool {
        self.failure.lock().expect(FAILURE).as_ref().is_some_and(|failure| failure.damaged)
    }
}

const DATABASE: &str = "no panic while the database is swapped";
const FAILURE: &str = "no panic while the failure is held";

/// The stripes of one extent in the index.
pub struct IndexedStripes {
    /// Not held: who holds an extent must not keep the index open.
    pub index: Weak<Index>,
    pub number: u64,
}

impl StoredStripes for IndexedStripes {
    fn load(&self, stripe: u64) -> Option<StripeImage> {
        self.index.upgrade()?.stripe(self.number, stripe)
    }
}

/// Why a call of the database failed.
enum Trouble {
    Io(io::Error),
    Damaged(String),
}

impl Trouble {
    fn into_io(self) -> io::Error {
        match self {
            Trouble::Io(error) => error,
            Trouble::Damaged(reason) => io::Error::other(reason),
        }
    }

    fn of_call(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(error) if !is_of_content(&error) => Trouble::Io(error),
            redb::Error::PreviousIo | redb::Error::DatabaseClosed => Trouble::Io(io::Error::other(error.to_string())),
            other => Trouble::Damaged(other.to_string()),
        }
    }

    /// On opening, the end of the file inside of the data is damage, not a failing disk.
    fn of_database(error: redb::DatabaseError) -> Self {
        match error {
            redb::DatabaseError::Storage(StorageError::Io(error)) if !is_of_content(&error) => Trouble::Io(error),
            other => Trouble::Damaged(other.to_string()),
        }
    }
}

fn is_of_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
}

/// Stable 64-bit name of an object version: FNV-1a over its parts. Who finds by it compares the whole id.
pub fn object_hash(id: &ObjectId) -> u64 {
    let parts = [id.source.as_str().as_bytes(), id.key.as_bytes(), id.version.as_str().as_bytes()];
    parts.iter().fold(FNV_OFFSET, |hash, part| fnv(fnv(hash, part), &part.len().to_le_bytes()))
}

/// Stable 64-bit hash of a text.
pub fn text_hash(text: &str) -> u64 {
    fnv(FNV_OFFSET, text.as_bytes())
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

fn stripe_key(number: u64, stripe: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key[8..].copy_from_slice(&stripe.to_be_bytes());
    key
}

/// The facts, `None` in a database without tables; damage where tables are and no facts that can be believed.
fn read_facts(database: &Database) -> Result<Option<Facts>, Trouble> {
    let call = || -> Result<Option<Option<Facts>>, redb::Error> {
        let transaction = database.begin_read()?;
        if transaction.list_tables()?.next().is_none() {
            return Ok(None);
        }
        for result in [transaction.open_table(EXTENTS).map(drop), transaction.open_table(STRIPES).map(drop)] {
            result?;
        }
        transaction.open_table(BY_OBJECT)?;
        let row = transaction.open_table(FACTS)?.get(THE_FACTS)?;
        Ok(Some(row.and_then(|row| record::decode(THE_FACTS.as_bytes(), row.value()))))
    };
    match call().map_err(Trouble::of_call)? {
        None => Ok(None),
        Some(Some(facts)) => Ok(Some(facts)),
        Some(None) => Err(Trouble::Damaged("it is of another format, or its facts are damaged".to_owned())),
    }
}

fn write(database: &Database, changes: &Changes) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    {
        let mut extents = transaction.open_table(EXTENTS)?;
        let mut by_object = transaction.open_table(BY_OBJECT)?;
        let mut stripes = transaction.open_table(STRIPES)?;
        for (number, object) in &changes.remove {
            extents.remove(number)?;
            stripes.retain_in((*number, 0)..=(*number, u64::MAX), |_, _| false)?;
            let points_here = by_object.get(object)?.is_some_and(|found| found.value() == *number);
            if points_here {
                by_object.remove(object)?;
            }
        }
        for changed in &changes.put {
            let key = changed.number.to_be_bytes();
            extents.insert(changed.number, record::encode(&key, &changed.record).as_slice())?;
            by_object.insert(object_hash(&changed.record.id()), changed.number)?;
            for (stripe, image) in &changed.stripes {
                let row = record::encode_stripe(&stripe_key(changed.number, *stripe), image);
                stripes.insert((changed.number, *stripe), row.as_slice())?;
            }
        }
        let facts = record::encode(THE_FACTS.as_bytes(), &changes.facts);
        transaction.open_table(FACTS)?.insert(THE_FACTS, facts.as_slice())?;
    }
    transaction.commit()?;
    Ok(())
}

/// Drops a database; one that was damaged may panic once more on its way out.
fn drop_quietly(database: Option<Arc<Database>>) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
}
