//! Makes one listing: asks for pages, several ranges at once, stores them, and tells how far it has come. Its memory is
//! a few pages, whatever the size of the listing; it stops asking when nobody reads what it found.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use penstock_types::{Error, ErrorKind, ListPage, ListRequest, ObjectKey, Result};
use tokio::task::{JoinHandle, JoinSet};

use crate::chunk::{CHUNK_ENTRIES, Entry, pack};
use crate::ingest::{Ingest, PAGE_KEYS};
use crate::ranges::{Ask, Ranges};
use crate::scan::{Sight, Step, scan};
use crate::scope::lock;
use crate::shadows::directory_of;
use crate::store::{Change, Kind, Listing};
use crate::timeline::{Moment, Timeline};
use crate::writer::Writer;

/// Requests of one listing under way at once.
const WIDTH: usize = 16;
/// Pages of one listing on their way to the store at once.
const COMMITS: usize = 32;
/// Entries that a listing may be ahead of its fastest reader.
const LEAD_ENTRIES: u64 = 64 * 1024;
/// A listing that is ahead and that nobody reads for so long is given up.
const IDLE_LIMIT: Duration = Duration::from_secs(600);
/// Times that a walk asks for the names of one directory to know where to cut.
const NAMES: usize = 8;
/// Chunks of an earlier listing that tell where to cut, at most.
const KNOWN_CUTS: usize = 4096;

/// What is under way for one range.
struct Page {
    range: u32,
    sent: Moment,
    page: Result<ListPage>,
}

/// The names of a directory, for cutting a range; `None` is the one that is listed first.
struct Names {
    range: Option<u32>,
    page: JoinHandle<Result<ListPage>>,
}

enum Event {
    Page(Page),
    Names(Option<u32>, Result<ListPage>),
    Probed(Vec<u8>, Result<bool>),
    Committed(Commit, Result<()>),
    Demand,
    Idle,
}

enum Commit {
    Page { range: u32, below: Vec<u8> },
    Beside { object: Vec<u8> },
}

type CommitFuture = futures_util::future::BoxFuture<'static, (Commit, Result<()>)>;

/// Makes the requests of one listing and stores the answers.
pub(crate) struct Driver {
    ingest: Arc<Ingest>,
    writer: Arc<Writer>,
    timeline: Arc<Timeline>,
    ranges: Ranges,
    pages: JoinSet<Page>,
    commits: FuturesUnordered<CommitFuture>,
    /// The names of a directory, on their way: where to cut a tree.
    names: Option<Names>,
    /// Directories whose names were asked for.
    named: Vec<Vec<u8>>,
    /// An object that readers wait at, and the question whether a directory has its name.
    probe: Option<(Vec<u8>, JoinHandle<Result<bool>>)>,
    stored: u64,
    /// Objects whose mark is on its way to the store.
    marking: Vec<Vec<u8>>,
}

impl Driver {
    pub(crate) fn new(ingest: &Arc<Ingest>, writer: &Arc<Writer>, timeline: &Arc<Timeline>) -> Self {
        Self {
            ranges: Ranges::new(&ingest.order.prefix, ingest.order.source.capabilities().list_start_after),
            writer: writer.clone(),
            timeline: timeline.clone(),
            pages: JoinSet::new(),
            commits: FuturesUnordered::new(),
            names: None,
            named: Vec::new(),
            probe: None,
            stored: 0,
            marking: Vec::new(),
            ingest: ingest.clone(),
        }
    }

    /// Lists to the end; the result is a complete listing, or an error and nothing.
    pub(crate) async fn run(mut self) -> Result<()> {
        let begin = vec![Change::Begin { generation: self.ingest.generation }];
        let begun = self.writer.submit(&self.ingest.store, begin);
        let outcome = match self.list().await {
            Ok(()) => begun.wait().await,
            Err(error) => Err(error),
        };
        if let Some(names) = self.names.take() {
            names.page.abort();
        }
        if let Some((_, probe)) = self.probe.take() {
            probe.abort();
        }
        let outcome = match outcome {
            Ok(()) => self.finish().await,
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            self.writer.abandon(&self.ingest.store, self.ingest.generation);
        }
        outcome
    }

    async fn list(&mut self) -> Result<()> {
        let writer = self.writer.clone();
        let known = writer.guard(|| self.cut_as_before())?;
        self.ask();
        if !known && self.is_divisible_tree() {
            self.ask_for_names(None, self.ingest.order.prefix.clone());
        }
        loop {
            match self.next_event().await {
                Event::Page(page) => self.take_page(page)?,
                Event::Names(range, names) => self.cut_at_names(range, names),
                Event::Committed(commit, outcome) => {
                    outcome?;
                    self.committed(commit)?;
                }
                Event::Probed(object, beside) => self.probed(object, beside?),
                Event::Demand => {}
                Event::Idle => {
                    return Err(Error::new(ErrorKind::Cancelled, self.action(), "nobody read it any more"));
                }
            }
            if self.ranges.is_done() && self.ranges.unsettled().is_empty() && self.commits.is_empty() {
                return Ok(());
            }
            self.probe();
            // A listing of one page is done before its names are; a longer one is first cut at them.
            if self.names.as_ref().is_none_or(|names| names.range.is_some()) {
                self.ask_for_more_names();
                self.ask();
            }
        }
    }

    /// Cuts where the listing before had its chunks; `false` when there was none worth it.
    fn cut_as_before(&mut self) -> Result<bool> {
        let order = &self.ingest.order;
        let reader = self.ingest.store.reader()?;
        let Some(before) = reader.listing(order.scope, order.kind, &order.prefix)? else { return Ok(false) };
        let keys = reader.first_keys_from(before.generation, b"")?.take(KNOWN_CUTS).collect::<Result<Vec<_>>>()?;
        if before.entries <= PAGE_KEYS as u64 || keys.len() == KNOWN_CUTS {
            return Ok(false);
        }
        // Only keys that a request can carry; a store that has others is cut between them.
        let apart = usize::try_from(before.entries).unwrap_or(usize::MAX) / keys.len();
        let keys: Vec<_> = keys.into_iter().filter(|key| std::str::from_utf8(key).is_ok()).collect();
        self.ranges.cut_at_known(&keys, apart, PAGE_KEYS);
        Ok(true)
    }

    fn is_divisible_tree(&self) -> bool {
        self.ingest.order.kind == Kind::Tree && self.ingest.order.source.capabilities().list_start_after
    }

    /// Cuts a tree at the names of a directory, after a page has shown about how many keys one has.
    fn cut_at_names(&mut self, range: Option<u32>, names: Result<ListPage>) {
        // Only speed depends on them.
        let (Ok(names), Some(range)) = (names, range.or(self.ranges.first_id())) else { return };
        let names: Vec<_> = names.prefixes.iter().map(|name| name.as_bytes().to_vec()).collect();
        self.ranges.cut_at_names(range, &names, PAGE_KEYS);
    }

    /// Asks for the names of a directory in which a range goes on longer than expected.
    fn ask_for_more_names(&mut self) {
        if self.names.is_some() || self.named.len() >= NAMES || !self.is_divisible_tree() {
            return;
        }
        if let Some((range, directory)) = self.ranges.names_wanted(&self.named) {
            self.ask_for_names(Some(range), directory);
        }
    }

    /// Makes as many requests as may be under way.
    fn ask(&mut self) {
        // Only what can be read counts: parts further behind must never keep the front from going on.
        let readable = self.ranges.entries_in_front() as u64;
        let ahead = readable.saturating_sub(self.ingest.delivered());
        if ahead > LEAD_ENTRIES || self.commits.len() >= COMMITS {
            return;
        }
        loop {
            while self.pages.len() < WIDTH {
                let Some(ask) = self.ranges.next_ask() else { break };
                self.ask_page(ask);
            }
            let idle = WIDTH - self.pages.len();
            if idle == 0 {
                return;
            }
            let waits = self.names.as_ref().and_then(|names| names.range);
            self.ranges.cut_for(idle, waits);
            match self.ranges.next_ask() {
                Some(ask) => self.ask_page(ask),
                None => return,
            }
        }
    }

    fn ask_page(&mut self, ask: Ask) {
        let order = &self.ingest.order;
        let request = ListRequest {
            prefix: ObjectKey::new(order.prefix.clone()),
            delimited: order.kind == Kind::Directory,
            start_after: ask.start_after.map(ObjectKey::new),
            continuation: ask.continuation,
            limit: PAGE_KEYS,
            priority: order.priority,
        };
        let (source, sent) = (order.source.clone(), self.timeline.now());
        self.pages.spawn(async move { Page { range: ask.range, sent, page: source.list(request).await } });
    }

    fn ask_for_names(&mut self, range: Option<u32>, directory: Vec<u8>) {
        let order = &self.ingest.order;
        let request = ListRequest {
            prefix: ObjectKey::new(directory.clone()),
            delimited: true,
            limit: PAGE_KEYS,
            priority: order.priority,
            ..ListRequest::default()
        };
        let source = order.source.clone();
        self.named.push(directory);
        self.names = Some(Names { range, page: tokio::spawn(async move { source.list(request).await }) });
    }

    async fn next_event(&mut self) -> Event {
        let waiting = self.pages.is_empty() && self.commits.is_empty() && self.names.is_none() && self.probe.is_none();
        tokio::select! {
            biased;
            Some((commit, outcome)) = self.commits.next(), if !self.commits.is_empty() => Event::Committed(commit, outcome),
            Some(page) = self.pages.join_next(), if !self.pages.is_empty() => match page {
                Ok(page) => Event::Page(page),
                Err(error) => Event::Page(Page { range: 0, sent: 0, page: Err(broken(&self.action(), &error)) }),
            },
            page = async { (&mut self.names.as_mut().expect("guarded").page).await }, if self.names.is_some() => {
                let range = self.names.take().and_then(|names| names.range);
                Event::Names(range, page.unwrap_or_else(|error| Err(broken(&self.action(), &error))))
            }
            answer = async { (&mut self.probe.as_mut().expect("guarded").1).await }, if self.probe.is_some() => {
                let object = self.probe.take().map_or_else(Vec::new, |(object, _)| object);
                Event::Probed(object, answer.unwrap_or_else(|error| Err(broken(&self.action(), &error))))
            }
            () = self.ingest.demand.notified() => Event::Demand,
            () = tokio::time::sleep(IDLE_LIMIT), if waiting => Event::Idle,
        }
    }

    fn take_page(&mut self, page: Page) -> Result<()> {
        let listed = page.page?;
        let mut entries: Vec<Entry> = Vec::with_capacity(listed.objects.len() + listed.prefixes.len());
        entries.extend(listed.objects.into_iter().map(|object| Entry {
            key: object.key.as_bytes().to_vec(),
            attributes: Some(object.attributes),
            beside: false,
        }));
        entries.extend(listed.prefixes.into_iter().map(|prefix| Entry {
            key: prefix.as_bytes().to_vec(),
            attributes: None,
            beside: false,
        }));
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let taken =
            self.ranges.take_page(page.range, entries, listed.continuation).map_err(|e| e.during(self.action()))?;
        self.stored += taken.entries.len() as u64;
        let generation = self.ingest.generation;
        let beside = taken.beside.into_iter().map(|key| Change::Beside { generation, key });
        let chunks = taken.entries.chunks(CHUNK_ENTRIES);
        let chunks =
            chunks.map(|chunk| Change::Chunk { generation, first: chunk[0].key.clone(), row: pack(chunk, page.sent) });
        let changes = chunks.chain(beside).collect();
        self.commit(changes, Commit::Page { range: page.range, below: taken.below });
        Ok(())
    }

    /// Asks whether a directory has the name of the object that keeps readers waiting.
    fn probe(&mut self) {
        let Some(object) = self.ranges.blocking().filter(|_| self.probe.is_none()) else { return };
        if self.marking.iter().any(|marking| marking == object) {
            return;
        }
        let request = ListRequest {
            prefix: ObjectKey::new(directory_of(object)),
            limit: 1,
            priority: self.ingest.order.priority,
            ..ListRequest::default()
        };
        let source = self.ingest.order.source.clone();
        let asked = tokio::spawn(async move { Ok(!source.list(request).await?.objects.is_empty()) });
        self.probe = Some((object.to_vec(), asked));
    }

    fn probed(&mut self, object: Vec<u8>, beside: bool) {
        if beside {
            self.mark_beside(object);
        } else {
            self.ranges.settle(&object);
        }
    }

    fn mark_beside(&mut self, object: Vec<u8>) {
        let change = Change::Beside { generation: self.ingest.generation, key: object.clone() };
        self.marking.push(object.clone());
        self.commit(vec![change], Commit::Beside { object });
    }

    fn commit(&mut self, changes: Vec<Change>, commit: Commit) {
        let committed = self.writer.submit(&self.ingest.store, changes);
        self.commits.push(Box::pin(async move { (commit, committed.wait().await) }));
    }

    /// Readers may see more; objects whose directory can be looked up now are settled.
    fn committed(&mut self, commit: Commit) -> Result<()> {
        match commit {
            Commit::Page { range, below } => self.ranges.committed(range, below),
            Commit::Beside { object } => {
                self.marking.retain(|marking| *marking != object);
                self.ranges.settle(&object);
            }
        }
        let committed = self.ranges.committed_below().map(<[u8]>::to_vec);
        for object in self.ranges.unsettled().to_vec() {
            if self.marking.contains(&object) {
                continue;
            }
            match self.writer.guard(|| self.lies_beside(&object, committed.as_deref()))? {
                Some(true) => self.mark_beside(object),
                Some(false) => self.ranges.settle(&object),
                None => {}
            }
        }
        let (below, entries) = (self.ranges.shown_below(), self.ranges.entries_in_front() as u64);
        self.ingest.show_below(below, entries);
        Ok(())
    }

    /// Whether keys below `object/` came; `None` while they may still come.
    fn lies_beside(&self, object: &[u8], committed: Option<&[u8]>) -> Result<Option<bool>> {
        let directory = directory_of(object);
        let after = ObjectKey::new(directory.clone()).prefix_end();
        // Ranges further behind may have brought them already.
        let reader = Arc::new(self.ingest.store.reader()?);
        let sight = Sight { reader, generation: self.ingest.generation, sent: 0, below: None, overlay: None };
        let mut found = false;
        scan(&sight, &directory, true, |seen| {
            found = seen.key.starts_with(&directory);
            Ok(Step::Stop)
        })?;
        let passed = committed.is_none_or(|committed| after.is_some_and(|after| committed >= after.as_bytes()));
        Ok(if found { Some(true) } else { passed.then_some(false) })
    }

    async fn finish(&mut self) -> Result<()> {
        let order = &self.ingest.order;
        let listing = Listing {
            generation: self.ingest.generation,
            sent: self.ingest.sent,
            epoch: self.ingest.store.epoch(),
            entries: self.stored,
        };
        let change = Change::Finish { scope: order.scope, kind: order.kind, prefix: order.prefix.clone(), listing };
        let committed = {
            // Whoever overtakes it either is seen here, or has it forgotten afterwards.
            let overtaken = lock(&self.ingest.overtaken);
            let forgetting = overtaken.then(|| self.ingest.forgetting());
            self.writer.submit(&self.ingest.store, std::iter::once(change).chain(forgetting).collect())
        };
        committed.wait().await
    }

    fn action(&self) -> String {
        let order = &self.ingest.order;
        format!("list {}", order.source.describe(&ObjectKey::new(order.prefix.clone())))
    }
}

fn broken(action: &str, error: &tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, action, format!("a request ended without an answer: {error}"))
}
