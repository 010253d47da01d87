//! One writer for all: changes that arrive together are committed together, off the asynchronous threads. What was
//! committed is seen at once and made durable about once a second; a kill loses that second and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use penstock_types::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use crate::store::{Change, Store};
use crate::timeline::Timeline;

/// How long a committed change may wait to become durable.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// Row bytes that are committed at most before they are made durable: what is not durable keeps pages in the file.
const FLUSH_BYTES: usize = 32 << 20;

/// Row bytes that a catalog in memory takes in before it is begun anew.
const MEMORY_BYTES: usize = 256 << 20;
/// Batches in the queue beyond which single names are not kept: they can be asked for again.
const NAMES_QUEUED: usize = 4096;

/// The queue of changes, and the store they go to.
pub(crate) struct Writer {
    store: RwLock<Arc<Store>>,
    timeline: Arc<Timeline>,
    next_generation: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    batches: Vec<Batch>,
    loose: Vec<(Arc<Store>, u64)>,
    running: bool,
    flush_due: bool,
    flush_planned: bool,
    bytes_since_flush: usize,
    bytes_in_memory: usize,
}

struct Batch {
    store: Arc<Store>,
    changes: Vec<Change>,
    done: oneshot::Sender<Result<()>>,
}

/// Resolves when a change is seen by readers.
pub(crate) struct Committed(oneshot::Receiver<Result<()>>);

impl Committed {
    /// Waits for it.
    pub(crate) async fn wait(self) -> Result<()> {
        self.0
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled, "write to the catalog", "the node is stopping")))
    }
}

impl Writer {
    pub(crate) fn new(store: Store, timeline: Arc<Timeline>) -> Result<Self> {
        let store = Arc::new(store);
        let loose = store.loose_generations()?.into_iter().map(|generation| (store.clone(), generation)).collect();
        Ok(Self {
            next_generation: AtomicU64::new(store.next_generation()?),
            store: RwLock::new(store),
            timeline,
            queue: Mutex::new(Queue { loose, ..Queue::default() }),
        })
    }

    /// The store that is in use now.
    pub(crate) fn store(&self) -> Arc<Store> {
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A number for a new generation.
    pub(crate) fn new_generation(&self) -> u64 {
        self.next_generation.fetch_add(1, Ordering::Relaxed)
    }

    /// Queues changes to `store`, to be committed in the order of the calls. Needs a tokio runtime.
    pub(crate) fn submit(self: &Arc<Self>, store: &Arc<Store>, changes: Vec<Change>) -> Committed {
        let (done, committed) = oneshot::channel();
        let mut queue = self.queue();
        queue.batches.push(Batch { store: store.clone(), changes, done });
        self.start(queue);
        Committed(committed)
    }

    /// Commits changes behind all that is queued, and makes that durable. Needs a tokio runtime.
    pub(crate) async fn make_durable(self: &Arc<Self>, changes: Vec<(Arc<Store>, Change)>) -> Result<()> {
        let committed: Vec<_> = changes.into_iter().map(|(store, change)| self.submit(&store, vec![change])).collect();
        for committed in committed {
            committed.wait().await?;
        }
        let writer = self.clone();
        let flushed = tokio::task::spawn_blocking(move || {
            let flushed = writer.guard(|| writer.store().flush(writer.timeline.now()));
            flushed.inspect_err(|error| writer.fail(error))
        });
        flushed.await.map_err(|error| Error::new(ErrorKind::Cancelled, "write to the catalog", error.to_string()))?
    }

    /// Applies changes on this thread.
    pub(crate) fn apply(&self, store: &Arc<Store>, changes: Vec<Change>) -> Result<()> {
        let loose = self.guard(|| store.apply(changes)).inspect_err(|error| self.fail(error))?;
        self.queue().loose.extend(loose.into_iter().map(|generation| (store.clone(), generation)));
        Ok(())
    }

    /// The number of a scope. A disk that fails makes a new store, in memory, where every number is free.
    pub(crate) fn scope(&self, name: &str) -> u32 {
        if let Ok(number) = self.guard(|| self.store().scope(name)) {
            return number;
        }
        let error = Error::new(ErrorKind::Disk, "name a scope in the catalog", "the disk failed");
        self.fail(&error);
        // Views are made one at a time; a number of its own is all that a scope in memory needs.
        self.store().scope(name).unwrap_or_else(|_| u32::try_from(self.new_generation()).unwrap_or(u32::MAX))
    }

    /// Removes the chunks of a generation that did not become a listing. Needs a tokio runtime.
    pub(crate) fn abandon(self: &Arc<Self>, store: &Arc<Store>, generation: u64) {
        let mut queue = self.queue();
        queue.loose.push((store.clone(), generation));
        self.start(queue);
    }

    /// Keeps what was learnt of a name, without waiting; a queue that is full loses it. Needs a tokio runtime.
    pub(crate) fn keep_name(self: &Arc<Self>, store: &Arc<Store>, key: Vec<u8>, row: Vec<u8>) {
        if self.queue().batches.len() < NAMES_QUEUED {
            drop(self.submit(store, vec![Change::Name { key, row }]));
        }
    }

    /// Commits and makes durable what is queued, on this thread.
    pub(crate) fn close(&self) -> Result<()> {
        self.guard(|| {
            while self.commit_some() {}
            self.store().flush(self.timeline.now())
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that somebody works on the queue, and that it is flushed in time.
    fn start(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) {
        if !queue.flush_planned {
            queue.flush_planned = true;
            let writer = Arc::downgrade(self);
            tokio::spawn(async move {
                tokio::time::sleep(FLUSH_AFTER).await;
                if let Some(writer) = writer.upgrade() {
                    let mut queue = writer.queue();
                    queue.flush_planned = false;
                    queue.flush_due = true;
                    writer.run(queue);
                }
            });
        }
        self.run(queue);
    }

    fn run(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) {
        if !std::mem::replace(&mut queue.running, true) {
            let writer = self.clone();
            tokio::task::spawn_blocking(move || {
                // What a broken step held is dropped, so that who waits for it hears of it.
                while writer.guard(|| Ok(writer.step())).unwrap_or(true) {}
            });
        }
    }

    /// Runs something that reads or writes the store. A damaged file can make `redb` panic: that is a failure of the
    /// disk like any other.
    pub(crate) fn guard<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            let error = Error::new(ErrorKind::Disk, "use the catalog", "its file is damaged");
            self.fail(&error);
            Err(error)
        })
    }

    /// One piece of work; `false` when there is none left, and then nobody is working on the queue.
    fn step(&self) -> bool {
        if self.commit_some() {
            return true;
        }
        let mut queue = self.queue();
        if !queue.batches.is_empty() {
            return true;
        }
        if queue.flush_due || queue.bytes_since_flush > FLUSH_BYTES {
            queue.flush_due = false;
            queue.bytes_since_flush = 0;
            drop(queue);
            if let Err(error) = self.store().flush(self.timeline.now()) {
                self.fail(&error);
            }
            return true;
        }
        let Some((store, generation)) = queue.loose.pop() else {
            queue.running = false;
            return false;
        };
        drop(queue);
        if let Ok(false) = store.sweep(generation) {
            self.queue().loose.push((store, generation));
        }
        true
    }

    /// Commits what is queued; `false` when nothing is.
    fn commit_some(&self) -> bool {
        let batches = std::mem::take(&mut self.queue().batches);
        let Some(store) = batches.first().map(|batch| batch.store.clone()) else { return false };
        let (now, later): (Vec<_>, Vec<_>) = batches.into_iter().partition(|batch| Arc::ptr_eq(&batch.store, &store));
        if !later.is_empty() {
            self.queue().batches.splice(0..0, later);
        }
        let mut waiting = Vec::with_capacity(now.len());
        let mut changes = Vec::new();
        for batch in now {
            waiting.push(batch.done);
            changes.extend(batch.changes);
        }
        let bytes: usize = changes.iter().map(Change::size).sum();
        let applied = store.apply(changes);
        if let Err(error) = &applied {
            self.fail(error);
        }
        let outcome = applied.map(|loose| {
            let mut queue = self.queue();
            queue.bytes_since_flush += bytes;
            queue.bytes_in_memory += bytes;
            queue.loose.extend(loose.into_iter().map(|generation| (store.clone(), generation)));
        });
        self.bound_memory();
        for done in waiting {
            // Whoever asked may have gone.
            let _ = done.send(outcome.clone());
        }
        true
    }

    /// A catalog in memory that has grown is begun anew; listings under way keep theirs until they end.
    fn bound_memory(&self) {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        let mut queue = self.queue();
        if !store.is_in_memory() {
            queue.bytes_in_memory = 0;
        } else if queue.bytes_in_memory > MEMORY_BYTES
            && let Ok(memory) = Store::in_memory(self.timeline.now())
        {
            queue.bytes_in_memory = 0;
            *store = Arc::new(memory);
        }
    }

    /// The disk fails: facts are kept in memory from now on, so that sources can still be read. What was learnt
    /// before is asked for again; listings that were being written fail, for their chunks are lost.
    pub(crate) fn fail(&self, error: &Error) {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        if store.is_in_memory() {
            return;
        }
        tracing::warn!(%error, "the catalog cannot be written: kept in memory until the node restarts");
        match Store::in_memory(self.timeline.now()) {
            Ok(memory) => *store = Arc::new(memory),
            Err(error) => tracing::error!(%error, "no catalog in memory either"),
        }
    }
}
