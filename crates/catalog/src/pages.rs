//! Pages of lists and walks: from a stored listing, or from one that is under way.

use std::sync::Arc;

use penstock_types::{Error, ErrorKind, Overlay, Result};

use crate::ask::sayable;
use crate::cursor::Cursor;
use crate::ingest::Ingest;
use crate::known::Covering;
use crate::present::{self, Directory, Shown};
use crate::scan::Sight;
use crate::scope::is_of;
use crate::sets::is_hidden;
use crate::store::{Change, Kind};
use crate::timeline::{Moment, is_fresh};
use crate::view::{PAGE_LIMIT, View};
use crate::{Item, ItemPage};

/// A page is tried so often when the catalog itself, not the source, fails.
const ATTEMPTS: usize = 3;
/// A generation that no listing has.
const NO_LISTING: u64 = u64::MAX - 1;

/// What a page is of.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    kind: Kind,
    directory: &'a Directory,
    limit: usize,
    /// What is laid over the listing.
    overlay: Option<&'a Arc<dyn Overlay>>,
    /// When it was asked for: a listing whose first request was sent since is never too old for it.
    asked: Moment,
}

/// Where a page comes from.
enum Feed {
    Stored(Sight),
    Live(Arc<Ingest>),
}

impl View {
    /// A page of a list or a walk, with the changes of an overlay or without.
    pub(crate) async fn page(
        self: &Arc<Self>,
        path: &str,
        (kind, overlay): (Kind, Option<&Arc<dyn Overlay>>),
        after: Option<&str>,
        limit: usize,
    ) -> Result<ItemPage> {
        if is_hidden(path) {
            return Err(self.not_found(path));
        }
        let directory = self.directory(path)?;
        self.refresh_set(path, false).await?;
        self.refresh_below(&directory.prefix).await?;
        let cursor = after.map(Cursor::parse).transpose()?;
        let asked = self.parts.catalog.timeline.now();
        let wanted = Wanted { kind, directory: &directory, limit: limit.clamp(1, PAGE_LIMIT), overlay, asked };
        let mut attempt = 1;
        loop {
            let shown = self.parts.sets.shown();
            let page = self.try_page(wanted, cursor.clone()).await;
            // A set whose manifest was passed is shown behind it: read what it says, and read the page again.
            if page.is_ok() && self.read_met(&directory.prefix).await? {
                continue;
            }
            match page {
                // The catalog's own trouble: a damaged listing was dropped, a failing disk was left. Begin again.
                Err(error) if attempt < ATTEMPTS && matches!(error.kind(), ErrorKind::Disk | ErrorKind::Cancelled) => {
                    attempt += 1;
                }
                Ok(page) if page.items.is_empty() && page.next.is_none() && cursor.is_none() => {
                    let empty = self.empty_page(path, page).await?;
                    if self.set_holding(path).is_some() && self.parts.sets.shown() != shown {
                        continue;
                    }
                    return Ok(empty);
                }
                page => return page,
            }
        }
    }

    async fn try_page(self: &Arc<Self>, wanted: Wanted<'_>, cursor: Option<Cursor>) -> Result<ItemPage> {
        let directory = wanted.directory;
        let metrics = &self.parts.catalog.metrics;
        let feed = match self.set_holding(&directory.path) {
            Some(_) => Feed::Stored(self.sight_of_nothing()?),
            None => self.feed(wanted, cursor.as_ref().map(|cursor| cursor.generation))?,
        };
        let cursor = cursor.unwrap_or_else(|| Cursor::start(0, &directory.prefix));
        match feed {
            Feed::Stored(sight) => {
                metrics.catalog_hits.inc();
                let writer = &self.parts.catalog.writer;
                let generation = sight.generation;
                let shown = writer.guard(|| show(wanted, sight, cursor));
                let shown = shown.inspect_err(|error| self.drop_generation(directory, generation, error))?;
                Ok(page_of(shown, true))
            }
            Feed::Live(ingest) => {
                metrics.catalog_misses.inc();
                self.follow(&ingest, wanted, cursor).await
            }
        }
    }

    /// No listing: what is in a set the set alone says.
    fn sight_of_nothing(&self) -> Result<Sight> {
        let (reader, sent) = (Arc::new(self.parts.catalog.writer.store().reader()?), self.parts.catalog.timeline.now());
        Ok(Sight { reader, generation: NO_LISTING, sent, below: None, overlay: None })
    }

    /// The listing to read: the one that was begun with, else one that is fresh, else one that is under way or new. What
    /// took the place of the one that was begun with or waited for is fresh enough, however many list the same at once.
    fn feed(self: &Arc<Self>, wanted: Wanted<'_>, begun: Option<u64>) -> Result<Feed> {
        let Wanted { kind, directory, asked, .. } = wanted;
        let scope = &self.parts.scope;
        let now = self.parts.catalog.timeline.now();
        if let Some(generation) = begun {
            let covers = |ingest: &Ingest| {
                ingest.generation == generation
                    && directory.prefix.starts_with(&ingest.order.prefix)
                    && ingest.progress().borrow().outcome.is_none()
            };
            if let Some(ingest) = scope.find(covers) {
                return Ok(Feed::Live(ingest));
            }
        }
        // Looked at after those under way: one that has ended meanwhile is stored, or what took its place.
        let covering = self.readable(kind, directory)?;
        if let Some(found) = covering.iter().find(|covering| Some(covering.listing.generation) == begun) {
            return Ok(Feed::Stored(found.sight.clone()));
        }
        let fresh = covering.into_iter().filter(|covering| {
            let Sight { sent, generation, .. } = covering.sight;
            let follows = sent > asked || begun.is_some_and(|begun| generation > begun);
            (follows || is_fresh(self.parts.freshness, sent, now)) && !scope.distrusts(sent)
        });
        if let Some(found) = fresh.max_by_key(|covering| covering.sight.sent) {
            return Ok(Feed::Stored(found.sight));
        }
        Ok(Feed::Live(self.listing(kind, &listed_prefix(kind, directory))))
    }

    /// What a listing of the directory that is under way has found behind the cursor so far; it may go on.
    pub(crate) fn list_under_way(&self, directory: &Directory, cursor: Cursor, limit: usize) -> Result<Shown> {
        let covers = |ingest: &Ingest| is_of(ingest, Kind::Directory, &listed_prefix(Kind::Directory, directory));
        let Some(ingest) = self.parts.scope.find(covers) else {
            return Ok(Shown { items: Vec::new(), cursor, exhausted: true });
        };
        let reached = ingest.progress().borrow().clone();
        let shown = present::list(&self.laid(ingest.sight(&reached)?), directory, cursor, limit)?;
        if shown.exhausted {
            ingest.took_all(&reached);
        }
        Ok(shown)
    }

    /// The complete listings that a page of this kind can be read from.
    fn readable(&self, kind: Kind, directory: &Directory) -> Result<Vec<Covering>> {
        let mut covering = self.covering(&listed_prefix(kind, directory))?;
        covering.retain(|covering| kind == Kind::Directory || covering.kind == Kind::Tree);
        Ok(covering)
    }

    /// Reads what a listing under way has found; waits when there is nothing new.
    async fn follow(&self, ingest: &Ingest, wanted: Wanted<'_>, cursor: Cursor) -> Result<ItemPage> {
        let mut progress = ingest.progress();
        let mut cursor = cursor;
        loop {
            let reached = progress.borrow_and_update().clone();
            let shown = self.parts.catalog.writer.guard(|| show(wanted, ingest.sight(&reached)?, cursor))?;
            let complete = reached.outcome.is_some();
            if !shown.items.is_empty() || (shown.exhausted && complete) {
                ingest.took(shown.items.len());
                return Ok(page_of(shown, complete));
            }
            cursor = shown.cursor;
            ingest.took_all(&reached);
            // The sender lives as long as the listing that `ingest` holds.
            let _ = progress.changed().await;
        }
    }

    /// A directory without names: it exists if it is the root or has a marker.
    async fn empty_page(self: &Arc<Self>, path: &str, page: ItemPage) -> Result<ItemPage> {
        if path.is_empty() {
            return Ok(page);
        }
        match self.stat(path).await? {
            Item::Directory => Ok(page),
            Item::File { .. } => Err(self.not_a_directory(path)),
        }
    }

    /// A row of a listing cannot be read: the listing is dropped, so that the source is asked again.
    pub(crate) fn drop_damaged(&self, covering: &Covering, error: &Error) {
        if error.kind() != ErrorKind::Disk && error.kind() != ErrorKind::Corrupt {
            return;
        }
        tracing::warn!(%error, "a listing of the catalog is damaged: dropped");
        let change = Change::Forget {
            scope: self.parts.scope.number,
            kind: covering.kind,
            prefix: covering.prefix.clone(),
            generation: covering.listing.generation,
        };
        let writer = &self.parts.catalog.writer;
        if let Err(error) = writer.apply(&covering.store, vec![change]) {
            tracing::warn!(%error, "the damaged listing could not be dropped");
        }
    }

    fn drop_generation(&self, directory: &Directory, generation: u64, error: &Error) {
        for covering in self.covering(&directory.prefix).unwrap_or_default() {
            if covering.listing.generation == generation {
                self.drop_damaged(&covering, error);
            }
        }
    }
}

/// What is listed to show a directory. Steps into long components are shown from their directory's listing, and walked
/// from as much of their bytes as a request can say.
fn listed_prefix(kind: Kind, directory: &Directory) -> Vec<u8> {
    let prefix = directory.prefix.as_slice();
    if prefix.len() == directory.attached || prefix.ends_with(b"/") {
        return prefix.to_vec();
    }
    let slash = prefix.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1).max(directory.attached);
    match kind {
        Kind::Directory => prefix[..slash].to_vec(),
        Kind::Tree => prefix[..sayable(prefix).len().max(slash)].to_vec(),
    }
}

fn show(wanted: Wanted<'_>, sight: Sight, cursor: Cursor) -> Result<Shown> {
    let Wanted { directory, limit, .. } = wanted;
    let sight = Sight { overlay: wanted.overlay.cloned(), ..sight };
    let shown = match wanted.kind {
        Kind::Directory => present::list(&sight, directory, cursor, limit),
        Kind::Tree => present::walk(&sight, directory, cursor, limit),
    };
    // A damaged row is the disk's doing, not the source's.
    shown.map_err(|error| if error.kind() == ErrorKind::Corrupt { error.with_kind(ErrorKind::Disk) } else { error })
}

fn page_of(shown: Shown, complete: bool) -> ItemPage {
    let ended = shown.exhausted && complete;
    ItemPage { items: shown.items, next: (!ended).then(|| shown.cursor.text()) }
}
