//! One listing under way, as its readers see it: what can be read of it so far, and how it ended.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use penstock_types::{Error, ErrorKind, Priority, Result, Source};
use tokio::sync::{Notify, watch};

use crate::driver::Driver;
use crate::scan::Sight;
use crate::store::{Kind, Store};
use crate::timeline::{Moment, Timeline};
use crate::writer::Writer;

/// Keys of one page: what S3 gives at most.
pub(crate) const PAGE_KEYS: usize = 1000;

/// What a listing is of, and what it works with.
#[derive(Clone)]
pub(crate) struct Order {
    pub(crate) scope: u32,
    pub(crate) kind: Kind,
    /// Full prefix.
    pub(crate) prefix: Vec<u8>,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) priority: Priority,
}

/// A listing under way, as its readers see it.
pub(crate) struct Ingest {
    pub(crate) order: Order,
    pub(crate) generation: u64,
    /// When its first request was sent.
    pub(crate) sent: Moment,
    pub(crate) store: Arc<Store>,
    progress: watch::Sender<Progress>,
    delivered: AtomicU64,
    pub(crate) demand: Notify,
    /// What it says may be older than what everybody was shown meanwhile.
    pub(crate) overtaken: Mutex<bool>,
}

/// How far a listing has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Keys below this one can be read; meaningless once there is an outcome.
    below: Vec<u8>,
    /// How many those are, about.
    entries: u64,
    /// Set at the end.
    pub(crate) outcome: Option<Result<()>>,
}

impl Progress {
    /// Whether every key below `key` can be read.
    pub(crate) fn is_past(&self, key: &[u8]) -> bool {
        self.below.as_slice() >= key
    }
}

impl Ingest {
    /// Begins a listing. It goes on by itself, on the current runtime; `ended` is called when it has ended.
    pub(crate) fn start(
        order: Order,
        writer: &Arc<Writer>,
        timeline: &Arc<Timeline>,
        ended: impl FnOnce(&Ingest) + Send + 'static,
    ) -> Arc<Self> {
        let progress = Progress { below: order.prefix.clone(), entries: 0, outcome: None };
        let ingest = Arc::new(Self {
            generation: writer.new_generation(),
            sent: timeline.now(),
            store: writer.store(),
            progress: watch::Sender::new(progress),
            delivered: AtomicU64::new(0),
            demand: Notify::new(),
            overtaken: Mutex::new(false),
            order,
        });
        let driver = Driver::new(&ingest, writer, timeline);
        let spawned = ingest.clone();
        tokio::spawn(async move {
            // A task of its own, so that readers hear of its end even if it breaks.
            let outcome = tokio::spawn(driver.run()).await.unwrap_or_else(|error| {
                Err(Error::new(ErrorKind::Internal, "list", format!("the listing broke off: {error}")))
            });
            spawned.progress.send_modify(|progress| progress.outcome = Some(outcome));
            ended(&spawned);
        });
        ingest
    }

    /// Follows how far it has come.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// What can be read at that progress.
    ///
    /// # Errors
    /// `Cancelled` when the listing has ended and another has taken its place; `Disk`; what it failed with.
    pub(crate) fn sight(&self, progress: &Progress) -> Result<Sight> {
        let reader = self.store.reader()?;
        // Looked at after the tables: as long as it is under way its chunks are there.
        if let Some(outcome) = &self.progress.borrow().outcome {
            outcome.clone()?;
            let listed = reader.listing(self.order.scope, self.order.kind, &self.order.prefix)?;
            if listed.is_none_or(|listing| listing.generation != self.generation) {
                return Err(Error::new(ErrorKind::Cancelled, "read a listing", "a newer one has taken its place"));
            }
        }
        let below = if progress.outcome == Some(Ok(())) { None } else { Some(progress.below.clone()) };
        Ok(Sight { reader: Arc::new(reader), generation: self.generation, sent: self.sent, below, overlay: None })
    }

    /// Entries that readers have taken, about.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Readers may see keys below `below`, about `entries`; never fewer than before.
    pub(crate) fn show_below(&self, below: Option<Vec<u8>>, entries: u64) {
        self.progress.send_if_modified(|progress| match below {
            Some(below) if below > progress.below => {
                (progress.below, progress.entries) = (below, entries);
                true
            }
            _ => false,
        });
    }

    /// A reader took so many entries: the listing may go on.
    pub(crate) fn took(&self, entries: usize) {
        self.delivered.fetch_add(entries as u64, Ordering::Relaxed);
        self.demand.notify_one();
    }

    /// A reader has seen all that there was at `progress` and waits for more.
    pub(crate) fn took_all(&self, progress: &Progress) {
        self.delivered.fetch_max(progress.entries, Ordering::Relaxed);
        self.demand.notify_one();
    }
}
