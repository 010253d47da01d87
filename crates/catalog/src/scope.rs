//! What views with the same source and credentials share: listings under way, and doubts about what is stored.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ingest::Ingest;
use crate::sets::Sets;
use crate::store::Kind;
use crate::timeline::Moment;

/// Names in doubt that are remembered one by one.
const DOUBTS: usize = 65_536;

/// One scope of facts.
pub(crate) struct Scope {
    pub(crate) number: u32,
    /// The sets that are known.
    pub(crate) sets: Arc<Sets>,
    /// Listings that ended so far: what was cached before one is compared with it once.
    listings: AtomicU64,
    under_way: Mutex<Vec<Arc<Ingest>>>,
    doubts: Mutex<HashMap<Vec<u8>, Moment>>,
    /// Nothing that was asked for up to this moment is believed.
    distrusted_to: AtomicI64,
}

impl Scope {
    pub(crate) fn new(number: u32) -> Self {
        Self {
            number,
            sets: Arc::default(),
            listings: AtomicU64::new(0),
            under_way: Mutex::default(),
            doubts: Mutex::default(),
            distrusted_to: AtomicI64::new(Moment::MIN),
        }
    }

    /// How many listings have ended.
    pub(crate) fn listings(&self) -> u64 {
        self.listings.load(Ordering::Acquire)
    }

    /// Finds a listing under way, or starts one; both under one lock, so that there is one at a time.
    pub(crate) fn join_or_start(
        &self,
        suits: impl Fn(&Ingest) -> bool,
        start: impl FnOnce() -> Arc<Ingest>,
    ) -> Arc<Ingest> {
        let mut under_way = lock(&self.under_way);
        let suits = |ingest: &&Arc<Ingest>| suits(ingest) && !ingest.is_overtaken();
        if let Some(found) = under_way.iter().filter(suits).max_by_key(|ingest| ingest.sent) {
            return found.clone();
        }
        let started = start();
        under_way.push(started.clone());
        started
    }

    /// The listing under way that suits and was asked for last.
    pub(crate) fn find(&self, suits: impl Fn(&Ingest) -> bool) -> Option<Arc<Ingest>> {
        lock(&self.under_way).iter().filter(|ingest| suits(ingest)).max_by_key(|ingest| ingest.sent).cloned()
    }

    /// Nobody joins those listings under way any more, and they are not kept.
    pub(crate) fn overtake(&self, suits: impl Fn(&Ingest) -> bool) -> Vec<Arc<Ingest>> {
        let overtaken: Vec<_> = lock(&self.under_way).iter().filter(|ingest| suits(ingest)).cloned().collect();
        overtaken.iter().for_each(|ingest| ingest.overtake());
        self.listings.fetch_add(1, Ordering::AcqRel);
        overtaken
    }

    /// A listing has ended.
    pub(crate) fn ended(&self, ended: &Ingest) {
        lock(&self.under_way).retain(|ingest| ingest.generation != ended.generation);
        self.listings.fetch_add(1, Ordering::AcqRel);
    }

    /// What is stored of `key` was wrong at `now`.
    pub(crate) fn doubt(&self, key: Vec<u8>, now: Moment) {
        let mut doubts = lock(&self.doubts);
        if doubts.len() >= DOUBTS {
            doubts.clear();
            self.distrusted_to.fetch_max(now, Ordering::AcqRel);
        }
        doubts.insert(key, now);
    }

    /// Nothing that was asked for up to `now` is believed.
    pub(crate) fn distrust(&self, now: Moment) {
        self.distrusted_to.fetch_max(now, Ordering::AcqRel);
        self.listings.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether nothing that was asked for at `sent` is believed.
    pub(crate) fn distrusts(&self, sent: Moment) -> bool {
        sent <= self.distrusted_to.load(Ordering::Acquire)
    }

    /// Whether something stored about `key`, asked for at `sent`, is in doubt.
    pub(crate) fn doubts(&self, key: &[u8], sent: Moment) -> bool {
        self.distrusts(sent) || lock(&self.doubts).get(key).is_some_and(|&since| sent <= since)
    }
}

/// Whether the listing is of `prefix` as `kind`.
pub(crate) fn is_of(ingest: &Ingest, kind: Kind, prefix: &[u8]) -> bool {
    ingest.order.kind == kind && ingest.order.prefix == prefix
}

/// A lock whose holder panicked still guards whole values: every change under it is one step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
