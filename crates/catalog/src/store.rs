//! The file of the catalog: `redb` tables, what is read from them and the transactions that change them. Blocking.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use penstock_types::{Error, ErrorKind, Result};
use redb::backends::InMemoryBackend;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError,
    TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use crate::chunk;
use crate::timeline::Moment;

mod reader;

pub(crate) use reader::Reader;

type Bytes = &'static [u8];

/// Names and small values: format, epoch, high water, next numbers.
const FACTS: TableDefinition<&str, i64> = TableDefinition::new("facts");
/// Scope → its number.
const SCOPES: TableDefinition<&str, u32> = TableDefinition::new("scopes");
/// Scope number (4, big-endian), kind (1), prefix → [`Listing`].
const LISTINGS: TableDefinition<Bytes, Bytes> = TableDefinition::new("listings");
/// Generation (8, big-endian), first key → packed chunk.
const CHUNKS: TableDefinition<Bytes, Bytes> = TableDefinition::new("chunks");
/// Scope number (4, big-endian), shape (1), full key → what was learnt of that name alone.
const NAMES: TableDefinition<Bytes, Bytes> = TableDefinition::new("names");
/// Scope number (4, big-endian), full key → what was said of the attributes of a version of it.
const ADORNED: TableDefinition<Bytes, Bytes> = TableDefinition::new("adorned");
/// Generations that are being written or are no longer wanted: rubbish when the file is opened.
const LOOSE: TableDefinition<u64, ()> = TableDefinition::new("loose generations");

/// Raised when a table changes its meaning; a file of another format is begun anew.
const FORMAT: i64 = 1;
/// Memory that `redb` may use for pages. The page cache of the kernel holds the rest.
const PAGE_CACHE_BYTES: usize = 32 << 20;
/// Where tables without a file are.
const IN_MEMORY: &str = "in memory";
/// Names that are kept one by one at most; beyond that all are dropped and learnt again as they are needed.
const NAMES_LIMIT: i64 = 1 << 20;
/// Rows of a loose generation that one transaction removes.
const SWEEP_ROWS: usize = 2048;

/// How a listing was made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Kind {
    /// The names of one directory.
    Directory,
    /// Every key below a prefix.
    Tree,
}

/// A complete listing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Listing {
    /// Its chunks.
    pub(crate) generation: u64,
    /// When its first request was sent.
    pub(crate) sent: Moment,
    /// The epoch of the time line then.
    pub(crate) epoch: u32,
    /// Objects and common prefixes in it.
    pub(crate) entries: u64,
}

/// One change.
#[derive(Debug)]
pub(crate) enum Change {
    /// A generation is about to be written.
    Begin { generation: u64 },
    /// A chunk of it.
    Chunk { generation: u64, first: Vec<u8>, row: Vec<u8> },
    /// An object of a generation turned out to lie beside a directory of its name.
    Beside { generation: u64, key: Vec<u8> },
    /// The generation is whole and takes the place of the one before.
    Finish { scope: u32, kind: Kind, prefix: Vec<u8>, listing: Listing },
    /// What was learnt of one name.
    Name { key: Vec<u8>, row: Vec<u8> },
    /// A listing is no longer believed; `generation` guards against dropping a newer one.
    Forget { scope: u32, kind: Kind, prefix: Vec<u8>, generation: u64 },
    /// What was said of the attributes of a name; `None` for nothing.
    Adorned { key: Vec<u8>, row: Option<Vec<u8>> },
    /// Every listing of a scope is forgotten.
    ForgetScope { scope: u32 },
}

impl Change {
    /// Bytes of content in it.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Chunk { row, .. } => row.len(),
            _ => 0,
        }
    }
}

/// The tables.
pub(crate) struct Store {
    database: Database,
    place: String,
    epoch: u32,
}

impl Store {
    /// Opens the file or makes it. A file that is damaged or of another format is set aside and begun anew.
    pub(crate) fn open(path: &Path, now: Moment) -> Result<Self> {
        match Self::open_file(path, now) {
            Ok(store) => Ok(store),
            Err(Failure::Other(error)) => Err(error),
            Err(Failure::Damaged(reason)) => {
                let mut aside = PathBuf::from(path).into_os_string();
                aside.push(".damaged");
                tracing::warn!(path = %path.display(), %reason, "the catalog is damaged: set aside and begun anew");
                std::fs::rename(path, &aside).map_err(|error| disk(&path.display().to_string(), &error))?;
                Self::open_file(path, now).map_err(|failure| match failure {
                    Failure::Other(error) => error,
                    Failure::Damaged(reason) => disk(&path.display().to_string(), &reason),
                })
            }
        }
    }

    /// Tables in memory, for when the disk fails.
    pub(crate) fn in_memory(now: Moment) -> Result<Self> {
        let database =
            builder().create_with_backend(InMemoryBackend::new()).map_err(|error| disk(IN_MEMORY, &error))?;
        Self::prepare(database, IN_MEMORY.into(), now)
    }

    /// Tables on a backend of a test.
    #[cfg(test)]
    pub(crate) fn on(backend: impl redb::StorageBackend, now: Moment) -> Result<Self> {
        let database = builder().create_with_backend(backend).map_err(|error| disk("test backend", &error))?;
        Self::prepare(database, "test backend".into(), now)
    }

    /// Whether nothing of it outlives the process.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.place == IN_MEMORY
    }

    fn open_file(path: &Path, now: Moment) -> Result<Self, Failure> {
        let place = path.display().to_string();
        // A damaged file can make redb panic as well as fail; neither may keep a node from starting.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            // Names of objects are nobody else's business.
            let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
            let file = file.map_err(|error| Failure::Other(disk(&place, &error)))?;
            let database = builder().create_file(file).map_err(|error| Failure::of(&place, &error))?;
            check_format(&database)?;
            Ok(database)
        }));
        let database = opened.unwrap_or_else(|_| Err(Failure::Damaged("it cannot be read".into())))?;
        let prepared = catch_unwind(AssertUnwindSafe(|| Self::prepare(database, place, now)));
        match prepared {
            Ok(Ok(store)) => Ok(store),
            Ok(Err(error)) if error.kind() == ErrorKind::Corrupt => Err(Failure::Damaged(error.reason().into())),
            Ok(Err(error)) => Err(Failure::Other(error)),
            Err(_) => Err(Failure::Damaged("it cannot be read".into())),
        }
    }

    /// Makes the tables and settles the epoch: if the clock is behind what the file has seen, everything in it is of
    /// unknown age from now on.
    fn prepare(database: Database, place: String, now: Moment) -> Result<Self> {
        let failed = |error: redb::Error| disk(&place, &error);
        let transaction = write(&database, Durability::Immediate).map_err(failed)?;
        let epoch = (|| -> std::result::Result<i64, redb::Error> {
            let mut facts = transaction.open_table(FACTS)?;
            let fact = |name: &str| facts.get(name).map(|value| value.map_or(0, |value| value.value()));
            let (mut epoch, high_water) = (fact("epoch")?, fact("high water")?);
            if now < high_water {
                epoch += 1;
            }
            facts.insert("format", FORMAT)?;
            facts.insert("epoch", epoch)?;
            facts.insert("high water", now)?;
            transaction.open_table(SCOPES)?;
            transaction.open_table(LISTINGS)?;
            transaction.open_table(CHUNKS)?;
            transaction.open_table(NAMES)?;
            transaction.open_table(ADORNED)?;
            transaction.open_table(LOOSE)?;
            Ok(epoch)
        })()
        .map_err(failed)?;
        transaction.commit().map_err(|error| failed(error.into()))?;
        Ok(Self { database, place, epoch: u32::try_from(epoch).unwrap_or(u32::MAX) })
    }

    /// The epoch in which facts are written now.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// A number no generation had before; numbers below it are taken.
    pub(crate) fn next_generation(&self) -> Result<u64> {
        let read = || -> std::result::Result<i64, redb::Error> {
            let facts = self.database.begin_read()?.open_table(FACTS)?;
            Ok(facts.get("next generation")?.map_or(1, |value| value.value()))
        };
        read().map(i64::cast_unsigned).map_err(|error| disk(&self.place, &error))
    }

    /// Generations whose chunks are rubbish.
    pub(crate) fn loose_generations(&self) -> Result<Vec<u64>> {
        let read = || -> std::result::Result<Vec<u64>, redb::Error> {
            let loose = self.database.begin_read()?.open_table(LOOSE)?;
            loose.iter()?.map(|row| Ok(row?.0.value())).collect()
        };
        read().map_err(|error| disk(&self.place, &error))
    }

    /// The number of a scope, given out at its first use.
    pub(crate) fn scope(&self, name: &str) -> Result<u32> {
        let number = || -> std::result::Result<u32, redb::Error> {
            let transaction = write(&self.database, Durability::None)?;
            let number = {
                let mut scopes = transaction.open_table(SCOPES)?;
                let known = scopes.get(name)?.map(|value| value.value());
                match known {
                    Some(number) => number,
                    None => {
                        let mut next = 0;
                        for row in scopes.iter()? {
                            next = next.max(row?.1.value() + 1);
                        }
                        scopes.insert(name, next)?;
                        next
                    }
                }
            };
            transaction.commit()?;
            Ok(number)
        };
        number().map_err(|error| disk(&self.place, &error))
    }

    /// What is kept of one name.
    pub(crate) fn name(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let read = || -> std::result::Result<Option<Vec<u8>>, redb::Error> {
            let names = self.database.begin_read()?.open_table(NAMES)?;
            Ok(names.get(key)?.map(|row| row.value().to_vec()))
        };
        read().map_err(|error| disk(&self.place, &error))
    }

    /// What was said of the attributes of a name.
    pub(crate) fn adorned(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let read = || -> std::result::Result<Option<Vec<u8>>, redb::Error> {
            let adorned = self.database.begin_read()?.open_table(ADORNED)?;
            Ok(adorned.get(key)?.map(|row| row.value().to_vec()))
        };
        read().map_err(|error| disk(&self.place, &error))
    }

    /// Whether anything was said of the attributes of any name.
    pub(crate) fn has_adorned(&self) -> Result<bool> {
        let read = || -> std::result::Result<bool, redb::Error> {
            Ok(!self.database.begin_read()?.open_table(ADORNED)?.is_empty()?)
        };
        read().map_err(|error| disk(&self.place, &error))
    }

    /// The tables as they are now.
    pub(crate) fn reader(&self) -> Result<Reader> {
        let open = || -> std::result::Result<_, redb::Error> {
            let transaction = self.database.begin_read()?;
            Ok((transaction.open_table(LISTINGS)?, transaction.open_table(CHUNKS)?))
        };
        let (listings, chunks) = open().map_err(|error| disk(&self.place, &error))?;
        Ok(Reader { listings, chunks, place: self.place.clone() })
    }

    /// Applies changes in one transaction that readers see at once and a crash of the process may lose. Returns the
    /// generations that became loose.
    pub(crate) fn apply(&self, changes: Vec<Change>) -> Result<Vec<u64>> {
        let apply = || -> std::result::Result<Vec<u64>, redb::Error> {
            let transaction = write(&self.database, Durability::None)?;
            let mut loose = Vec::new();
            drop_names_beyond_limit(&transaction)?;
            {
                let mut tables = Tables {
                    listings: transaction.open_table(LISTINGS)?,
                    chunks: transaction.open_table(CHUNKS)?,
                    names: transaction.open_table(NAMES)?,
                    adorned: transaction.open_table(ADORNED)?,
                    loose: transaction.open_table(LOOSE)?,
                    facts: transaction.open_table(FACTS)?,
                };
                for change in changes {
                    tables.apply(change, &mut loose)?;
                }
            }
            transaction.commit()?;
            Ok(loose)
        };
        apply().map_err(|error| disk(&self.place, &error))
    }

    /// Removes some rows of a loose generation; `true` when none is left.
    pub(crate) fn sweep(&self, generation: u64) -> Result<bool> {
        let sweep = || -> std::result::Result<bool, redb::Error> {
            let transaction = write(&self.database, Durability::None)?;
            let done = {
                let mut chunks = transaction.open_table(CHUNKS)?;
                let (low, high) = (chunk_key(generation, b""), chunk_key(generation + 1, b""));
                let mut doomed = Vec::new();
                for row in chunks.range(low.as_slice()..high.as_slice())?.take(SWEEP_ROWS) {
                    doomed.push(row?.0.value().to_vec());
                }
                for key in &doomed {
                    chunks.remove(key.as_slice())?;
                }
                let done = doomed.len() < SWEEP_ROWS;
                if done {
                    transaction.open_table(LOOSE)?.remove(generation)?;
                }
                done
            };
            transaction.commit()?;
            Ok(done)
        };
        sweep().map_err(|error| disk(&self.place, &error))
    }

    /// Makes everything applied so far survive a crash, and notes how late it is.
    pub(crate) fn flush(&self, now: Moment) -> Result<()> {
        let flush = || -> std::result::Result<(), redb::Error> {
            let transaction = write(&self.database, Durability::Immediate)?;
            transaction.open_table(FACTS)?.insert("high water", now)?;
            Ok(transaction.commit()?)
        };
        flush().map_err(|error| disk(&self.place, &error))
    }
}

struct Tables<'a> {
    listings: redb::Table<'a, Bytes, Bytes>,
    chunks: redb::Table<'a, Bytes, Bytes>,
    names: redb::Table<'a, Bytes, Bytes>,
    adorned: redb::Table<'a, Bytes, Bytes>,
    loose: redb::Table<'a, u64, ()>,
    facts: redb::Table<'a, &'static str, i64>,
}

impl Tables<'_> {
    fn apply(&mut self, change: Change, loose: &mut Vec<u64>) -> std::result::Result<(), redb::Error> {
        match change {
            Change::Begin { generation } => {
                self.loose.insert(generation, ())?;
                // Listings that begin at once may come in another order than that of their numbers.
                let next = (generation + 1).cast_signed();
                let known = self.facts.get("next generation")?.map_or(0, |value| value.value());
                self.facts.insert("next generation", next.max(known))?;
            }
            Change::Chunk { generation, first, row } => {
                self.chunks.insert(chunk_key(generation, &first).as_slice(), row.as_slice())?;
            }
            Change::Beside { generation, key } => self.mark_beside(generation, &key)?,
            Change::Finish { scope, kind, prefix, listing } => {
                let key = listing_key(scope, kind, &prefix);
                let before = self.listings.get(key.as_slice())?.and_then(|row| decode_listing(row.value()));
                // Of two that ran at once the one that was asked for later is right, whichever ends first.
                if before.as_ref().is_some_and(|before| before.epoch == listing.epoch && before.sent > listing.sent) {
                    return self.loosen(Some(listing), loose);
                }
                let row = postcard::to_stdvec(&listing).unwrap_or_default();
                self.listings.insert(key.as_slice(), row.as_slice())?;
                self.loose.remove(listing.generation)?;
                self.loosen(before, loose)?;
            }
            Change::Name { key, row } => {
                let new = self.names.insert(key.as_slice(), row.as_slice())?.is_none();
                let count = self.facts.get("names")?.map_or(0, |count| count.value()) + i64::from(new);
                self.facts.insert("names", count)?;
            }
            Change::Adorned { key, row } => drop(match row {
                Some(row) => self.adorned.insert(key.as_slice(), row.as_slice())?,
                None => self.adorned.remove(key.as_slice())?,
            }),
            Change::Forget { scope, kind, prefix, generation } => {
                let key = listing_key(scope, kind, &prefix);
                let known = self.listings.get(key.as_slice())?.and_then(|row| decode_listing(row.value()));
                if known.as_ref().is_none_or(|known| known.generation == generation) {
                    self.listings.remove(key.as_slice())?;
                    self.loosen(known, loose)?;
                }
            }
            Change::ForgetScope { scope } => {
                let (low, high) = (scope.to_be_bytes(), scope.saturating_add(1).to_be_bytes());
                let mut forgotten = Vec::new();
                for row in self.listings.extract_from_if(low.as_slice()..high.as_slice(), |_, _| true)? {
                    forgotten.push(decode_listing(row?.1.value()));
                }
                for listing in forgotten {
                    self.loosen(listing, loose)?;
                }
                self.names.retain_in(low.as_slice()..high.as_slice(), |_, _| false)?;
            }
        }
        Ok(())
    }

    fn mark_beside(&mut self, generation: u64, key: &[u8]) -> std::result::Result<(), redb::Error> {
        let (low, high) = (chunk_key(generation, b""), chunk_key(generation, key));
        let around = self.chunks.range(low.as_slice()..=high.as_slice())?.next_back().transpose()?;
        let Some((first, row)) = around.map(|(first, row)| (first.value().to_vec(), row.value().to_vec())) else {
            return Ok(());
        };
        if let Ok(row) = chunk::mark_beside(&row, key) {
            self.chunks.insert(first.as_slice(), row.as_slice())?;
        }
        Ok(())
    }

    fn loosen(&mut self, listing: Option<Listing>, loose: &mut Vec<u64>) -> std::result::Result<(), redb::Error> {
        if let Some(listing) = listing {
            self.loose.insert(listing.generation, ())?;
            loose.push(listing.generation);
        }
        Ok(())
    }
}

/// Why a file could not be opened.
enum Failure {
    Damaged(String),
    Other(Error),
}

impl Failure {
    fn of(place: &str, error: &DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen => Self::Other(
                Error::new(ErrorKind::Busy, format!("open catalog {place}"), "another process has it open")
                    .advise("stop that node, or use another home"),
            ),
            DatabaseError::Storage(StorageError::Io(error))
                if !matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) =>
            {
                Self::Other(disk(place, error))
            }
            other => Self::Damaged(other.to_string()),
        }
    }
}

fn check_format(database: &Database) -> Result<(), Failure> {
    let format = || -> std::result::Result<Option<i64>, redb::Error> {
        match database.begin_read()?.open_table(FACTS) {
            Ok(facts) => Ok(facts.get("format")?.map(|value| value.value())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(Some(FORMAT)),
            Err(error) => Err(error.into()),
        }
    };
    match format() {
        Ok(Some(FORMAT)) => Ok(()),
        Ok(format) => Err(Failure::Damaged(format!("it has format {format:?}, this build writes {FORMAT}"))),
        Err(error) => Err(Failure::Damaged(error.to_string())),
    }
}

fn drop_names_beyond_limit(transaction: &WriteTransaction) -> std::result::Result<(), redb::Error> {
    let mut facts = transaction.open_table(FACTS)?;
    if facts.get("names")?.is_some_and(|count| count.value() > NAMES_LIMIT) {
        transaction.delete_table(NAMES)?;
        facts.insert("names", 0)?;
    }
    Ok(())
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(PAGE_CACHE_BYTES);
    builder
}

fn write(database: &Database, durability: Durability) -> std::result::Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(durability)?;
    // Keeps the allocator's state in the file, so that a killed node does not read the whole of it at its next start.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

fn listing_key(scope: u32, kind: Kind, prefix: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(5 + prefix.len());
    key.extend_from_slice(&scope.to_be_bytes());
    key.push(match kind {
        Kind::Directory => 0,
        Kind::Tree => 1,
    });
    key.extend_from_slice(prefix);
    key
}

fn chunk_key(generation: u64, first: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + first.len());
    key.extend_from_slice(&generation.to_be_bytes());
    key.extend_from_slice(first);
    key
}

/// A row that does not decode is treated as if it were not there.
fn decode_listing(row: &[u8]) -> Option<Listing> {
    postcard::from_bytes(row).ok()
}

fn disk(place: &str, reason: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Disk, format!("use catalog {place}"), reason.to_string())
        .advise("check the disk that holds the home")
}

#[cfg(test)]
mod tests;
