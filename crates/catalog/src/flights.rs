//! Questions to the source that are under way, one per name for all who wait; and when a directory is listed again
//! instead of asking for its names one by one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use penstock_types::{Error, ErrorKind, Freshness, Priority, Result};
use tokio::sync::Semaphore;

use crate::Item;
use crate::ask::ask;
use crate::ingest::{Ingest, Order, PAGE_KEYS};
use crate::keymap::Place;
use crate::known::{self, Answer, Fact};
use crate::scope::lock;
use crate::store::Kind;
use crate::timeline::{ABSENCE_LIMIT, Moment, is_fresh};
use crate::view::{View, holder};

/// Names of one view that are asked for at once; each takes two requests.
const QUESTIONS: usize = 64;
/// Requests that asking for one name costs.
const REQUESTS_PER_NAME: u64 = 2;
/// Stale names of a directory before listing it again is considered.
const STALE_NAMES: u64 = 3;
/// Entries of a directory that is listed again at most.
const RELIST_ENTRIES: u64 = 100_000;
/// Directories whose stale names are counted at once.
const STALE_DIRECTORIES: usize = 1024;
/// Names above an absent one that are asked for, to tell what is missing from what cannot be.
const ABSENT_DEPTH: usize = 3;
/// A question that has not been sent yet.
const UNSENT: Moment = Moment::MAX;

type Outcome = Shared<BoxFuture<'static, Result<Fact>>>;

/// The questions of one view.
pub(crate) struct Flights {
    under_way: Mutex<HashMap<String, Flight>>,
    permits: Arc<Semaphore>,
}

impl Default for Flights {
    fn default() -> Self {
        Self { under_way: Mutex::default(), permits: Arc::new(Semaphore::new(QUESTIONS)) }
    }
}

#[derive(Clone)]
struct Flight {
    sent: Arc<AtomicI64>,
    outcome: Outcome,
}

/// How often names of a listed directory were found stale: by its prefix, the generation of its listing and a count.
#[derive(Default)]
pub(crate) struct Stale(Mutex<HashMap<Vec<u8>, (u64, u64)>>);

impl View {
    /// Asks the source what a path names. Joins a question under way only if its answer is fresh enough for who asks
    /// now: with freshness 0 that is one which has not been sent. `depth` is how many names below were absent.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        path: &str,
        place: Place,
        freshness: Freshness,
        depth: usize,
    ) -> Result<Fact> {
        let now = self.parts.catalog.timeline.now();
        let outcome = {
            let mut under_way = lock(&self.flights.under_way);
            let joinable = |flight: &&Flight| {
                let sent = flight.sent.load(Ordering::Acquire);
                sent == UNSENT || is_fresh(freshness, sent, now)
            };
            match under_way.get(path).filter(joinable) {
                Some(flight) => flight.outcome.clone(),
                None => {
                    let flight = self.start(path, place, depth);
                    under_way.insert(path.into(), flight.clone());
                    flight.outcome
                }
            }
        };
        outcome.await
    }

    /// Starts a question that goes on by itself, whoever of those that wait goes away.
    fn start(self: &Arc<Self>, path: &str, place: Place, depth: usize) -> Flight {
        let sent = Arc::new(AtomicI64::new(UNSENT));
        let (view, path, flag) = (self.clone(), path.to_owned(), sent.clone());
        let task = tokio::spawn(async move {
            let outcome = view.answer(&path, place, &flag, depth).await;
            let mut under_way = lock(&view.flights.under_way);
            if under_way.get(&path).is_some_and(|flight| Arc::ptr_eq(&flight.sent, &flag)) {
                under_way.remove(&path);
            }
            outcome
        });
        let outcome = async move {
            task.await.unwrap_or_else(|error| {
                Err(Error::new(ErrorKind::Cancelled, "look up a name", format!("the question ended: {error}")))
            })
        };
        Flight { sent, outcome: outcome.boxed().shared() }
    }

    async fn answer(self: &Arc<Self>, path: &str, place: Place, sent: &AtomicI64, depth: usize) -> Result<Fact> {
        let permit = self.flights.permits.clone().acquire_owned().await;
        let now = self.parts.catalog.timeline.now();
        sent.store(now, Ordering::Release);
        let (answer, said) = ask(&*self.parts.source, &self.parts.prefix, &place).await?;
        drop(permit);
        if let Answer::Found(Item::File { key, attributes }) = &answer {
            self.take_in(key, attributes, said, now).await;
        }
        let answer = match answer {
            Answer::Absent if depth < ABSENT_DEPTH => self.kind_of_absence(path, depth + 1).await?,
            answer => answer,
        };
        let fact = Fact { answer, sent: now };
        self.doubt_listings(&place, &fact);
        self.learn(path, &place, fact.clone());
        Ok(fact)
    }

    /// Whether a name is absent because something above it is a file.
    async fn kind_of_absence(self: &Arc<Self>, path: &str, depth: usize) -> Result<Answer> {
        let Some((parent, _)) = path.rsplit_once('/') else { return Ok(Answer::Absent) };
        let known = self.recent(parent).map(|fact| fact.answer);
        let parent = match known {
            Some(answer) => answer,
            // That the name is absent is certain, whatever can be learnt of its parent.
            None => match Box::pin(self.ask(parent, self.place(parent)?, self.parts.freshness, depth)).await {
                Ok(fact) => fact.answer,
                Err(_) => Answer::Absent,
            },
        };
        Ok(match parent {
            Answer::Found(Item::File { .. }) | Answer::BelowFile => Answer::BelowFile,
            Answer::Found(Item::Directory) | Answer::Absent => Answer::Absent,
        })
    }

    /// What was learnt of a path lately, fresh or not: good enough to word an error.
    fn recent(&self, path: &str) -> Option<Fact> {
        let now = self.parts.catalog.timeline.now();
        let lately = |fact: &Fact| now.saturating_sub(fact.sent) < ABSENCE_LIMIT;
        self.known(path).or_else(|| self.remembered(path).filter(lately))
    }

    /// What was just learnt goes before what stored listings say, even when it is no longer held in memory.
    fn doubt_listings(&self, place: &Place, fact: &Fact) {
        let (Place::Name(key) | Place::Beside(key)) = place else { return };
        let attached = self.parts.prefix.as_bytes();
        for covering in self.covering(&holder(attached, key)).unwrap_or_default() {
            if !is_fresh(self.parts.freshness, covering.sight.sent, fact.sent) {
                continue;
            }
            let stored = known::look_up(&covering.sight, place, attached);
            if stored.is_ok_and(|stored| stored.sent < fact.sent && !stored.answer.agrees(&fact.answer)) {
                self.parts.scope.doubt([attached, key].concat(), fact.sent - 1);
            }
        }
    }

    /// What a fresh listing under way has told of a name already: who works on what a walk has given so far asks nothing.
    pub(crate) fn told_under_way(&self, place: &Place) -> Option<Fact> {
        let (Place::Name(key) | Place::Beside(key)) = place else { return None };
        let (attached, scope) = (self.parts.prefix.as_bytes(), &self.parts.scope);
        let (full, directory) = ([attached, key].concat(), holder(attached, key));
        // Also what would make a directory of the name.
        let below = [full.as_slice(), b"0"].concat();
        let now = self.parts.catalog.timeline.now();
        let ingest = scope.find(|ingest| {
            let order = &ingest.order;
            let covers = match order.kind {
                Kind::Directory => directory == order.prefix,
                Kind::Tree => known::ancestors(&directory).any(|above| above == order.prefix),
            };
            covers
                && is_fresh(self.parts.freshness, ingest.sent, now)
                && !scope.doubts(&full, ingest.sent)
                && ingest.progress().borrow().is_past(&below)
        })?;
        let progress = ingest.progress().borrow().clone();
        known::look_up(&ingest.sight(&progress).ok()?, place, attached).ok()
    }

    /// Lists a directory again when several of its names have been found stale and that is cheaper than asking for
    /// each; `None` when the name has to be asked for.
    pub(crate) async fn relist(self: &Arc<Self>, path: &str, place: &Place) -> Option<Fact> {
        let attached = self.parts.prefix.as_bytes();
        let (Place::Name(key) | Place::Beside(key)) = place else { return None };
        if self.parts.freshness == Freshness::Seconds(0.0) {
            return None;
        }
        let directory = holder(attached, key);
        let before = self.covering(&directory).ok()?.into_iter().max_by_key(|covering| covering.sight.sent)?;
        let entries = before.entries_in(&directory, RELIST_ENTRIES).ok()?;
        let requests = entries.div_ceil(PAGE_KEYS as u64);
        let stale = self.stale.count(&directory, before.listing.generation);
        if entries > RELIST_ENTRIES || stale < STALE_NAMES || stale * REQUESTS_PER_NAME < requests {
            return None;
        }
        let ingest = self.listing(Kind::Directory, &directory);
        let below = [attached, key, b"0"].concat();
        // It is worth its end, whoever of those that wait goes away.
        ingest.took(usize::try_from(RELIST_ENTRIES).unwrap_or(usize::MAX));
        let mut progress = ingest.progress();
        let reached = loop {
            let reached = progress.borrow_and_update().clone();
            if reached.outcome.is_some() || reached.is_past(&below) {
                break reached;
            }
            ingest.took_all(&reached);
            progress.changed().await.ok()?;
        };
        if matches!(reached.outcome, Some(Err(_))) {
            return None;
        }
        let fact = known::look_up(&ingest.sight(&reached).ok()?, place, attached).ok()?;
        self.learn(path, place, fact.clone());
        Some(fact)
    }

    /// A listing under way that is fresh for who asks now, or a new one.
    pub(crate) fn listing(self: &Arc<Self>, kind: Kind, prefix: &[u8]) -> Arc<Ingest> {
        let parts = &self.parts;
        let now = parts.catalog.timeline.now();
        let suits =
            |ingest: &Ingest| crate::scope::is_of(ingest, kind, prefix) && is_fresh(parts.freshness, ingest.sent, now);
        parts.scope.join_or_start(suits, || {
            let order = Order {
                scope: parts.scope.number,
                kind,
                prefix: prefix.to_vec(),
                source: parts.source.clone(),
                priority: Priority::Foreground,
            };
            let scope = parts.scope.clone();
            Ingest::start(order, &parts.catalog.writer, &parts.catalog.timeline, move |ingest| scope.ended(ingest))
        })
    }
}

impl Stale {
    /// Counts one more stale name; the count begins anew with every listing.
    fn count(&self, directory: &[u8], generation: u64) -> u64 {
        let mut counts = lock(&self.0);
        if counts.len() >= STALE_DIRECTORIES && !counts.contains_key(directory) {
            counts.clear();
        }
        let (counted, count) = counts.entry(directory.to_vec()).or_insert((generation, 0));
        if *counted != generation {
            (*counted, *count) = (generation, 0);
        }
        *count += 1;
        *count
    }
}
