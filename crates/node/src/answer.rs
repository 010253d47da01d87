//! Answers requests: translates between the protocol and the engine, and decides nothing.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{StreamExt, stream};
use penstock_engine::{ConflictQuery, Engine, Entry, EntryPage, OpenFile, OpenOptions, ReadHint, WriteOptions};
use penstock_types::{ByteRange, Clock, Error, ErrorKind, Metrics, Priority, Result, TreePath, Version};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::arena::ArenaBudget;
use crate::links::{LinkedFile, Links};
use crate::protocol::{
    BATCH_PATHS_MAX, Link, Opened, PAGE_CONFLICTS_MAX, PAGE_ENTRIES_MAX, REPLY_BYTES_MAX, Ready, Reply, Request,
};
use crate::ring::Returned;
use crate::session::{Lease, Session};

/// How often a file is opened because the cache dropped it between its completion and its link, or because the
/// source replaced it before it was complete.
const LINK_ATTEMPTS: usize = 3;

/// Files of one request that are brought, dropped or checked at the same time: with the workers of a job, as many
/// requests as a source has under way at once.
const FILES_AT_ONCE: usize = 32;

/// What an entry takes in a frame beside its name and version, at most.
const ENTRY_BYTES: usize = 40;

/// What every connection of a node shares.
pub struct Service {
    /// Where answers come from.
    pub engine: Arc<Engine>,
    /// Where waiting requests run.
    pub runtime: Handle,
    /// Where requests and clients are counted.
    pub metrics: Metrics,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The bound of all arenas.
    pub arenas: ArenaBudget,
    /// Local names of files.
    pub links: Links,
    /// No file is lent while so many descriptors are in use: the rest is for what the node does itself.
    pub lent_below: usize,
    /// Whether a file was refused for that lately.
    pub scarce: AtomicBool,
    /// Files opened for one batch: bounded by the descriptors of the process.
    pub batch_files_max: usize,
}

/// A reply, what goes with it, and what the client holds once it has read it.
pub struct Answer {
    /// The message.
    pub reply: Reply,
    /// The descriptor to send.
    pub descriptor: Option<Arc<OwnedFd>>,
    /// To be taken back when the client never reads the reply.
    pub granted: Option<Returned>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, descriptor: None, granted: None }
    }
}

/// One client's requests.
pub struct Answerer<'a> {
    /// Shared by all.
    pub service: &'a Arc<Service>,
    /// What the client holds.
    pub session: &'a Session,
    /// Rings when the client is gone, so that nothing goes on for it.
    pub gone: &'a Notify,
}

impl Answerer<'_> {
    /// The answer to a request; `None` where none is due.
    pub fn answer(&self, request: Request) -> Option<Answer> {
        self.session.read_ring(|| self.service.clock.monotonic());
        let answer = match request {
            Request::Release { leases, arenas } => {
                let returned = leases.into_iter().map(Returned::Lease).chain(arenas.into_iter().map(Returned::Arena));
                self.session.take_back(returned, self.service.clock.monotonic());
                return None;
            }
            Request::Goodbye => return None,
            request => self.reply(request),
        };
        Some(answer.unwrap_or_else(|error| Reply::Failed(error).into()))
    }

    fn reply(&self, request: Request) -> Result<Answer> {
        let engine = &self.service.engine;
        let reply = match request {
            Request::Open { path, version, priority } => return self.open(&path, version, priority),
            Request::Ensure { lease, range, hint } => return self.ensure(lease, range, hint),
            Request::ReadMany { paths, .. } if paths.len() > BATCH_PATHS_MAX => return Err(too_many(paths.len())),
            Request::ReadMany { paths, priority } => return self.read_many(&paths, priority),
            Request::ReadRanges { ranges, .. } if ranges.len() > BATCH_PATHS_MAX => {
                return Err(too_many(ranges.len()));
            }
            Request::ReadRanges { path, version, ranges } => return self.read_ranges(&path, version, &ranges),
            Request::Link { path } => return self.link(&path),
            Request::Ping => Reply::Pong(env!("CARGO_PKG_VERSION").into()),
            Request::Stat { path } => {
                let path = TreePath::parse(&path)?;
                match engine.stat_cached(&path) {
                    Some(known) => Reply::Entry(known?),
                    None => Reply::Entry(self.wait(engine.stat(&path))?),
                }
            }
            Request::List { path, after, limit } => {
                let path = TreePath::parse(&path)?;
                self.page(limit, async |limit| engine.list(&path, after.as_deref(), limit).await)?
            }
            Request::Walk { path, after, limit } => {
                let path = TreePath::parse(&path)?;
                self.page(limit, async |limit| engine.walk(&path, after.as_deref(), limit).await)?
            }
            Request::Prefetch { paths } => {
                Reply::Prefetched(self.each(&paths, async |path| engine.prefetch(path, Priority::Background).await)?)
            }
            Request::Evict { paths } => Reply::Evicted(self.each(&paths, async |path| engine.evict(path).await)?),
            Request::Verify { paths } => Reply::Verified(self.each(&paths, async |path| engine.verify(path).await)?),
            Request::Why { path, known_only } => {
                let path = TreePath::parse(&path)?;
                Reply::Json(json(&self.wait(engine.why(&path, known_only))?)?)
            }
            Request::CacheEntries { after, limit } => {
                Reply::Json(json(&engine.cache_entries(after, page_limit(limit)))?)
            }
            Request::Create { path, exclusive, durability, set } => {
                return self.create(&path, WriteOptions { exclusive, durability }, set.as_ref());
            }
            Request::CheckWritable { path } => self.check_writable(&path)?,
            Request::Grow { lease, to } => return self.grow(lease, to),
            Request::Edit { path, version, durability } => return self.edit(&path, &version, durability),
            Request::Commit { lease } => return self.commit(lease, None),
            Request::CommitPatched { lease, patch } => return self.commit(lease, Some(patch)),
            Request::WriteSmall { path, data, exclusive, durability, set } => {
                self.write_small(&path, data, WriteOptions { exclusive, durability }, set.as_ref())?
            }
            Request::Remove { path } => self.remove(&path)?,
            Request::Rename { from, to, replace } => self.rename(&from, &to, replace)?,
            Request::MakeDirectory { path } => self.make_directory(&path)?,
            Request::RemoveDirectory { path } => self.remove_directory(&path)?,
            Request::Persist { path, timeout_ms } => self.persist(&path, timeout_ms)?,
            Request::Conflicts { path, below, look, after, limit } => {
                let limit = (limit as usize).clamp(1, PAGE_CONFLICTS_MAX);
                let query = ConflictQuery { below, look, after, limit };
                Reply::Json(json(&self.wait(engine.conflicts(&TreePath::parse(&path)?, &query))?)?)
            }
            Request::ConflictContent { path, operation } => return self.conflict_content(&path, &operation),
            Request::ResolveConflict { path, operation, keep } => {
                let path = TreePath::parse(&path)?;
                Reply::Json(json(&self.wait(engine.resolve_conflict(&path, &operation, keep))?)?)
            }
            request => self.about_sets(request)?,
        };
        Ok(reply.into())
    }

    /// Runs a question that may take long; it is dropped when the client goes.
    pub fn wait<T>(&self, question: impl Future<Output = Result<T>>) -> Result<T> {
        self.service.runtime.block_on(async {
            tokio::select! {
                biased;
                answer = question => answer,
                () = self.gone.notified() => {
                    Err(Error::new(ErrorKind::Cancelled, "answer a client", "it closed the connection"))
                }
            }
        })
    }

    fn each<T>(&self, paths: &[String], question: impl AsyncFn(&TreePath) -> Result<T>) -> Result<Vec<Result<T>>> {
        if paths.len() > BATCH_PATHS_MAX {
            return Err(too_many(paths.len()));
        }
        let answer = async |path: &String| match TreePath::parse(path) {
            Ok(path) => question(&path).await,
            Err(error) => Err(error),
        };
        let answers = stream::iter(paths).map(answer).buffered(FILES_AT_ONCE);
        self.wait(async { Ok(answers.collect().await) })
    }

    /// A page of at most `limit` entries, fewer where their names are so long that they would not fit a frame.
    fn page(&self, limit: u32, question: impl AsyncFn(usize) -> Result<EntryPage>) -> Result<Reply> {
        let mut limit = page_limit(limit);
        loop {
            let page = self.wait(question(limit))?;
            let bytes = |entry: &Entry| {
                entry.name.len() + entry.version.as_ref().map_or(0, |version| version.as_str().len()) + ENTRY_BYTES
            };
            if limit == 1 || page.entries.iter().map(bytes).sum::<usize>() <= REPLY_BYTES_MAX {
                return Ok(Reply::Entries(page));
            }
            limit = limit.div_ceil(8);
        }
    }

    fn open(&self, path: &str, version: Option<Version>, priority: Priority) -> Result<Answer> {
        let path = TreePath::parse(path)?;
        self.check_scarcity(&path)?;
        let file = self.opened(&path, version, priority)?;
        let attributes = file.attributes().clone();
        let (descriptor, complete) = (file.descriptor(), file.is_complete());
        self.check_descriptors(&path, descriptor.as_raw_fd())?;
        let lease = self.session.lend(Lease::File(Arc::new(file)))?;
        Ok(Answer {
            reply: Reply::Opened(Opened {
                lease,
                size: attributes.size,
                modified_ms: attributes.modified_ms,
                version: attributes.version,
                complete,
            }),
            descriptor: Some(descriptor),
            granted: Some(Returned::Lease(lease)),
        })
    }

    /// Where descriptors were scarce lately, refuses before another file is opened, which would take one more.
    pub fn check_scarcity(&self, path: &TreePath) -> Result<()> {
        if self.service.scarce.load(Ordering::Relaxed) {
            return self.check_descriptors(path, RawFd::MAX);
        }
        Ok(())
    }

    /// Refuses to lend a file while there is still a descriptor for everything else. `descriptor` is the newest one.
    pub fn check_descriptors(&self, path: &TreePath, descriptor: RawFd) -> Result<()> {
        let limit = self.service.lent_below;
        // The system gives the lowest free number: only where that is high are many in use, perhaps.
        let is_high = usize::try_from(descriptor).is_ok_and(|number| number >= limit);
        let is_scarce = is_high && descriptors_in_use().is_none_or(|count| count >= limit);
        self.service.scarce.store(is_scarce, Ordering::Relaxed);
        if !is_scarce {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ResourceLimit, format!("open {path}"), "the descriptors of the node are lent")
            .advise("close files, or start the node with a higher `ulimit -n`")
            .fact("limit", limit))
    }

    /// The file, from the cache alone where that is possible.
    pub fn opened(&self, path: &TreePath, version: Option<Version>, priority: Priority) -> Result<OpenFile> {
        let engine = &self.service.engine;
        if version.is_none()
            && let Some(file) = engine.open_cached(path)
        {
            return Ok(file);
        }
        self.wait(engine.open(path, OpenOptions { priority, version }))
    }

    fn ensure(&self, lease: u64, range: ByteRange, hint: ReadHint) -> Result<Answer> {
        check_range(range)?;
        let Some(file) = self.session.leased(lease) else { return Ok(Reply::NotLeased.into()) };
        let ready = self.wait(file.ensure(range, hint))?;
        let reply = Reply::Ready(Ready { range: ready.range, complete: ready.complete });
        Ok(Answer { reply, descriptor: ready.descriptor, granted: None })
    }

    fn link(&self, path: &str) -> Result<Answer> {
        let path = TreePath::parse(path)?;
        for attempt in 1..=LINK_ATTEMPTS {
            let file = self.opened(&path, None, Priority::Foreground)?;
            match self.complete(&file) {
                // Nobody has been given a byte of it: the version that is there now will do.
                Err(error) if error.kind() == ErrorKind::StaleVersion && attempt < LINK_ATTEMPTS => continue,
                done => done?,
            }
            let Some(link) = self.service.links.link(file.descriptor().as_fd(), path.name())? else { continue };
            return self.lend_link(file, link);
        }
        Err(Error::new(ErrorKind::NoSpace, format!("name {path} locally"), "the cache drops it before it can be used")
            .advise("make the cache larger, or pin the file"))
    }

    fn complete(&self, file: &OpenFile) -> Result<()> {
        let mut at = 0;
        while !file.is_complete() && at < file.size() {
            let ready = self.wait(file.ensure(ByteRange::new(at, file.size()), ReadHint::Whole))?;
            // What was dropped behind the reader of an uncached file never becomes complete; linking it fails.
            at = ready.range.end.max(at);
        }
        Ok(())
    }

    fn lend_link(&self, file: OpenFile, link: LinkedFile) -> Result<Answer> {
        let Some(local) = link.path().to_str().map(str::to_string) else {
            return Err(Error::new(ErrorKind::Unsupported, "name a file locally", "the cache directory is not UTF-8"));
        };
        let (size, version) = (file.size(), file.attributes().version.clone());
        let lease = self.session.lend(Lease::Link { file: Arc::new(file), _name: link })?;
        let reply = Reply::Linked(Link { lease, path: local, size, version });
        Ok(Answer { reply, descriptor: None, granted: Some(Returned::Lease(lease)) })
    }
}

/// How many descriptors this process has; `None` when it has none left to look.
fn descriptors_in_use() -> Option<usize> {
    std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count)
}

/// Ranges from outside are not trusted to be ranges.
pub fn check_range(range: ByteRange) -> Result<()> {
    if range.start <= range.end {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, "read a range", "it ends before it starts")
        .fact("start", range.start)
        .fact("end", range.end))
}

pub(crate) fn page_limit(limit: u32) -> usize {
    (limit as usize).clamp(1, PAGE_ENTRIES_MAX)
}

fn too_many(count: usize) -> Error {
    Error::new(ErrorKind::InvalidInput, "answer a batch", "it names too many things at once")
        .fact("count", count)
        .fact("limit", BATCH_PATHS_MAX)
}

pub(crate) fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::new(ErrorKind::Internal, "write JSON", error.to_string()))
}
