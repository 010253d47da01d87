//! What one attachment sees: names, answered from what is known as long as that is fresh, else asked of the source.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use penstock_types::{Error, ErrorKind, Freshness, ObjectKey, Overlay, Result, Source};

use crate::adorned::Asked;
use crate::cursor::Cursor;
use crate::flights::{Flights, Stale};
use crate::hot::{Hot, HotFact, hot};
use crate::keymap::{self, Place, Shape};
use crate::known::{self, Answer, Covering, Fact};
use crate::laid_rows::changes_below;
use crate::named;
use crate::present::{self, Directory};
use crate::scan::Sight;
use crate::scope::Scope;
use crate::sets::{Layered, Sets, is_hidden};
use crate::store::Kind;
use crate::timeline::{ABSENCE_LIMIT, fresh_for, is_fresh, is_fresh_absence, keeps_names};
use crate::{Catalog, Item, ItemPage, NamedItem};

/// Entries of one page at most, whatever is asked for.
pub(crate) const PAGE_LIMIT: usize = 16_384;

/// What a view is made of.
pub(crate) struct ViewParts {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) scope: Arc<Scope>,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) prefix: ObjectKey,
    pub(crate) freshness: Freshness,
    /// What is laid over what the source says: changes made here, and sets.
    pub(crate) overlay: Option<Arc<dyn Overlay>>,
    /// The changes made here alone.
    pub(crate) written: Option<Arc<dyn Overlay>>,
    pub(crate) sets: Arc<Sets>,
}

/// The tree below one prefix of one source, as paths; `""` is its root. Every method may be called at once from many
/// tasks; what needs a request is asked once for all who wait.
pub struct View {
    pub(crate) parts: ViewParts,
    hot: Hot,
    pub(crate) flights: Flights,
    pub(crate) stale: Stale,
    pub(crate) asked: OnceLock<Asked>,
}

impl View {
    pub(crate) fn new(parts: ViewParts) -> Arc<Self> {
        let (flights, stale, asked) = (Flights::default(), Stale::default(), OnceLock::new());
        Arc::new(Self { parts, hot: hot(), flights, stale, asked })
    }

    /// What is known of a path and fresh; `None` when that has to be asked. A name that was changed here and that the
    /// source has not got is known by that alone.
    ///
    /// Cost: no request. About a microsecond for a path that was asked for lately; a look into the store for others.
    pub fn stat_cached(&self, path: &str) -> Option<Result<Item>> {
        let fact = self.known_whole(path)?;
        self.parts.catalog.metrics.catalog_hits.inc();
        Some(self.result(path, fact))
    }

    /// As [`View::stat_cached`], and how much longer it may be believed.
    pub fn stat_valid(&self, path: &str) -> Option<(Result<Item>, Duration)> {
        let fact = self.known_whole(path)?;
        self.parts.catalog.metrics.catalog_hits.inc();
        let left = fresh_for(self.parts.freshness, fact.sent, self.parts.catalog.timeline.now());
        let absent = !matches!(fact.answer, Answer::Found(_));
        let valid = if absent { left.min(Duration::from_micros(ABSENCE_LIMIT.unsigned_abs())) } else { left };
        Some((self.result(path, fact), valid))
    }

    /// When the listing was asked for that shows a directory now, milliseconds since the Unix epoch, and how much
    /// longer it may be believed; `None` when none is fresh.
    ///
    /// Cost: no request; a look into the store.
    pub fn listed(&self, path: &str) -> Option<(i64, Duration)> {
        let directory = self.directory(path).ok()?;
        let now = self.parts.catalog.timeline.now();
        let fresh = self.covering(&directory.prefix).ok()?.into_iter().map(|covering| covering.sight.sent);
        let fresh =
            fresh.filter(|&sent| is_fresh(self.parts.freshness, sent, now) && !self.parts.scope.distrusts(sent));
        fresh.max().map(|sent| (sent / 1000, fresh_for(self.parts.freshness, sent, now)))
    }

    /// What a path names.
    ///
    /// Cost: as [`View::stat_cached`]; one round trip where nothing fresh is known. In a directory that was listed
    /// before, several such questions become one listing.
    ///
    /// # Errors
    /// `NotFound`; `NotADirectory` when something above it is a file; what the source says.
    pub async fn stat(self: &Arc<Self>, path: &str) -> Result<Item> {
        if let Some(known) = self.stat_cached(path) {
            return known;
        }
        self.parts.catalog.metrics.catalog_misses.inc();
        if is_hidden(path) {
            return Err(self.not_found(path));
        }
        self.refresh_set(path, false).await?;
        let fact = match self.known(path) {
            Some(known) => known,
            None => {
                let place = self.place(path)?;
                let mut told = self.told_under_way(&place);
                if told.is_none() {
                    told = self.relist(path, &place).await;
                }
                let told = match told {
                    Some(told) => told,
                    None => self.ask(path, place, self.parts.freshness, 0).await?,
                };
                self.lay(path, told).await?
            }
        };
        self.or_set(path, fact, false).await
    }

    /// Asks the source what a path names, whatever is known. A name that was changed here and that the source has not
    /// got is not asked for.
    ///
    /// Cost: one round trip, shared with those who ask at the same moment.
    ///
    /// # Errors
    /// As [`View::stat`].
    pub async fn revalidate(self: &Arc<Self>, path: &str) -> Result<Item> {
        self.refresh_set(path, true).await?;
        if let Some(fact) = self.known_of_set(path).or_else(|| self.unsettled(path)) {
            self.parts.catalog.metrics.catalog_hits.inc();
            return self.result(path, fact);
        }
        self.parts.catalog.metrics.catalog_misses.inc();
        let told = self.ask(path, self.place(path)?, Freshness::Seconds(0.0), 0).await?;
        let fact = self.lay(path, told).await?;
        self.or_set(path, fact, true).await
    }

    /// What was learnt of a path, or what a set says of it of which the source says nothing.
    async fn or_set(&self, path: &str, fact: Fact, ask: bool) -> Result<Item> {
        let is_absent = matches!(fact.answer, Answer::Absent | Answer::BelowFile);
        if is_absent && let Some(fact) = self.read_met_below(path).await? {
            return self.result(path, fact);
        }
        if is_absent && !is_hidden(path) && self.set_holding(path).is_none() && self.find_set(path, ask).await? {
            return self.result(path, self.known_of_set(path).unwrap_or(fact));
        }
        self.result(path, fact)
    }

    /// What is known and fresh, also of the sets that a path may be in. Nobody sees hidden keys.
    fn known_whole(&self, path: &str) -> Option<Fact> {
        let fact = self.known(path)?;
        match is_hidden(path) {
            true => Some(Fact { answer: Answer::Absent, ..fact }),
            false => Some(fact).filter(|fact| self.knows_sets(path, fact)),
        }
    }

    /// The names of a directory, `limit` at most, in an order that stays the same. `after` is the position that the
    /// page before gave; a listing that was fresh when it was begun is read to its end.
    ///
    /// Cost: no request while a listing of the directory, or a walk from above it, is fresh. Otherwise the source is
    /// listed, once for all who ask, and pages are given as they come.
    ///
    /// # Errors
    /// `NotFound`; `NotADirectory`; `InvalidInput` for an `after` that no page gave; what the source says.
    pub async fn list(self: &Arc<Self>, path: &str, after: Option<&str>, limit: usize) -> Result<ItemPage> {
        self.page(path, (Kind::Directory, self.parts.overlay.as_ref()), after, limit).await
    }

    /// Everything below a directory, `limit` at most, in key order, parents before children; names are paths below
    /// it. `after` as for [`View::list`].
    ///
    /// Cost: no request while a walk from here or above is fresh. Otherwise about one request per 1,000 keys, many at
    /// once, and pages are given as they come. Afterwards stat and list below cost nothing.
    ///
    /// # Errors
    /// As [`View::list`].
    pub async fn walk(self: &Arc<Self>, path: &str, after: Option<&str>, limit: usize) -> Result<ItemPage> {
        self.page(path, (Kind::Tree, self.parts.overlay.as_ref()), after, limit).await
    }

    /// As [`View::walk`], of what the source itself has: without what was changed here.
    ///
    /// # Errors
    /// As [`View::list`].
    pub async fn walk_source(self: &Arc<Self>, path: &str, after: Option<&str>, limit: usize) -> Result<ItemPage> {
        let sets: Arc<dyn Overlay> = Layered::new(None, self.parts.sets.clone());
        self.page(path, (Kind::Tree, Some(&sets)), after, limit).await
    }

    /// Forgets what is known of a path: it turned out to be wrong.
    pub fn forget(&self, path: &str) {
        self.hot.remove(path);
        if let Ok(Place::Name(key) | Place::Beside(key)) = self.place(path) {
            let full = self.parts.prefix.join(&key);
            self.parts.scope.doubt(full.as_bytes().to_vec(), self.parts.catalog.timeline.now());
        }
    }

    /// Believes nothing that was asked for up to now, here and in every view of the scope: what comes next is asked.
    pub fn distrust(&self) {
        self.parts.scope.distrust(self.parts.catalog.timeline.now());
    }

    /// The full key that a path stands for.
    ///
    /// # Errors
    /// `NotFound` for a path that no key has.
    pub fn key_of(&self, path: &str) -> Result<ObjectKey> {
        match self.place(path)? {
            Place::Root => Ok(self.parts.prefix.clone()),
            Place::Name(key) | Place::Beside(key) => Ok(self.parts.prefix.join(&key)),
            Place::Piece(_) => Err(self.not_found(path)),
        }
    }

    /// The path that names a key here, unless a directory takes that name; `None` for keys that are not below.
    pub fn path_of(&self, key: &ObjectKey) -> Option<String> {
        let below = key.as_bytes().strip_prefix(self.parts.prefix.as_bytes())?;
        Some(keymap::encode(below, Shape::Plain))
    }

    /// What was last known of a path, fresh or not; `None` when that is nothing. For when the source cannot be asked.
    pub fn recalled(&self, path: &str) -> Option<Item> {
        let place = self.place(path).ok()?;
        let (Place::Name(key) | Place::Beside(key)) = &place else { return None };
        let directory = holder(self.parts.prefix.as_bytes(), key);
        let listed = || -> Result<Option<Fact>> {
            let newest = self.covering(&directory)?.into_iter().max_by_key(|covering| covering.sight.sent);
            newest.map(|newest| known::look_up(&newest.sight, &place, self.parts.prefix.as_bytes())).transpose()
        };
        let listed = self.parts.catalog.writer.guard(listed).ok().flatten();
        let newest = self.remembered(path).into_iter().chain(listed).max_by_key(|fact| fact.sent)?;
        match self.changes(path).map_or_else(|| newest.clone(), |changes| changes.over(&newest)).answer {
            Answer::Found(item) => Some(item),
            Answer::Absent | Answer::BelowFile => None,
        }
    }

    /// The next files of the same directory in listing order that the source has, from what is known, fresh or not;
    /// empty when that is nothing. Names are those in the directory.
    pub fn following(&self, path: &str, count: usize) -> Vec<NamedItem> {
        let found = || -> Result<Vec<NamedItem>> {
            let (Place::Name(key) | Place::Beside(key)) = self.place(path)? else { return Ok(Vec::new()) };
            let directory = self.directory(path.rsplit_once('/').map_or("", |(parent, _)| parent))?;
            let key = self.parts.prefix.join(&key).as_bytes().to_vec();
            let cursor = Cursor { generation: 0, key, inclusive: false, shown: Vec::new() };
            // A few more than asked for: directories lie between files.
            let wanted = count.saturating_mul(2).min(PAGE_LIMIT);
            let newest = self.covering(&directory.prefix)?.into_iter().max_by_key(|covering| covering.sight.sent);
            let shown = match newest {
                Some(newest) => present::list(&self.laid(newest.sight), &directory, cursor, wanted)?,
                None => self.list_under_way(&directory, cursor, wanted)?,
            };
            let files = shown.items.into_iter().filter(|item| self.is_in_source(&item.item));
            Ok(files.take(count).collect())
        };
        self.parts.catalog.writer.guard(found).unwrap_or_default()
    }

    /// Whether it is a file as the source has it, as far as is known.
    fn is_in_source(&self, item: &Item) -> bool {
        let Item::File { key, .. } = item else { return false };
        let change = self.overlay().and_then(|overlay| overlay.at(key.as_bytes()));
        change.is_none_or(|laid| laid.settled.is_some())
    }

    /// A listing with what was changed here laid over it.
    pub(crate) fn laid(&self, sight: Sight) -> Sight {
        Sight { overlay: self.parts.overlay.clone(), ..sight }
    }

    /// What is known and fresh.
    pub(crate) fn known(&self, path: &str) -> Option<Fact> {
        if let Some(fact) = self.known_of_set(path) {
            return Some(fact);
        }
        match self.changes(path) {
            Some(changes) => self.known_laid(path, &changes),
            None => self.known_source(path),
        }
    }

    /// What is known of the source and fresh.
    pub(crate) fn known_source(&self, path: &str) -> Option<Fact> {
        let listings = self.parts.scope.listings();
        let hot = self.hot.get(path).filter(|hot| self.believes(&hot.fact));
        if let Some(hot) = &hot
            && hot.listings == listings
        {
            return Some(hot.fact.clone());
        }
        let stored = self.parts.catalog.writer.guard(|| Ok(self.stored(path))).ok().flatten();
        // Of two fresh facts the younger one counts, so that nobody sees a file go back.
        let fact = match (hot.map(|hot| hot.fact), stored) {
            (Some(hot), Some(stored)) => {
                if stored.sent > hot.sent {
                    stored
                } else {
                    hot
                }
            }
            (hot, stored) => hot.or(stored)?,
        };
        self.hot.insert(path.into(), HotFact { fact: fact.clone(), listings });
        Some(fact)
    }

    /// What a stored listing says that is fresh.
    fn stored(&self, path: &str) -> Option<Fact> {
        let Some(place) = keymap::decode(path) else {
            // A path that no key has: nothing can change that.
            return Some(Fact { answer: Answer::Absent, sent: self.parts.catalog.timeline.now() });
        };
        let attached = self.parts.prefix.as_bytes();
        let (directory, doubted) = match &place {
            Place::Root => {
                return Some(Fact { answer: Answer::Found(Item::Directory), sent: self.parts.catalog.timeline.now() });
            }
            Place::Name(key) | Place::Beside(key) => (holder(attached, key), Some([attached, key].concat())),
            Place::Piece(bytes) => (holder(attached, bytes), None),
        };
        if self.parts.freshness == Freshness::Seconds(0.0) {
            return None;
        }
        let now = self.parts.catalog.timeline.now();
        let mut best = self.kept(&place).filter(|fact| self.believes(fact));
        for covering in self.covering(&directory).ok()? {
            if !is_fresh(self.parts.freshness, covering.sight.sent, now) || self.may_be_of_a_file(&covering, &directory)
            {
                continue;
            }
            match known::look_up(&covering.sight, &place, attached) {
                Ok(fact) => best = best.filter(|best| best.sent >= fact.sent).or(Some(fact)),
                Err(error) => self.drop_damaged(&covering, &error),
            }
        }
        best.filter(|fact| self.believes_listing(fact))
            .filter(|fact| doubted.is_none_or(|key| !self.parts.scope.doubts(&key, fact.sent)))
    }

    /// An empty listing of a directory may be the listing of a file, unless something was written into it here.
    fn may_be_of_a_file(&self, covering: &Covering, directory: &[u8]) -> bool {
        let written = || self.overlay().is_some_and(|overlay| changes_below(&**overlay, directory).next().is_some());
        covering.listing.entries == 0 && !written()
    }

    /// What is kept on disk of this name alone.
    pub(crate) fn kept(&self, place: &Place) -> Option<Fact> {
        if !keeps_names(self.parts.freshness) {
            return None;
        }
        let store = self.parts.catalog.writer.store();
        let row_key = named::row_key(self.parts.scope.number, self.parts.prefix.as_bytes(), place)?;
        let row = store.name(&row_key).ok()??;
        named::from_row(&row, &row_key[named::KEY_AT..], store.epoch())
    }

    /// Whether what was learnt of a name may still be believed.
    pub(crate) fn believes(&self, fact: &Fact) -> bool {
        let now = self.parts.catalog.timeline.now();
        if self.parts.scope.distrusts(fact.sent) {
            return false;
        }
        match fact.answer {
            Answer::Found(_) => is_fresh(self.parts.freshness, fact.sent, now),
            Answer::Absent | Answer::BelowFile => is_fresh_absence(self.parts.freshness, fact.sent, now),
        }
    }

    /// As [`View::believes`]; a listing shows what is absent as well as what is there, for as long.
    pub(crate) fn believes_listing(&self, fact: &Fact) -> bool {
        let now = self.parts.catalog.timeline.now();
        let forever = self.parts.freshness == Freshness::Immutable && !matches!(fact.answer, Answer::Found(_));
        if forever { self.believes(fact) } else { is_fresh(self.parts.freshness, fact.sent, now) }
    }

    /// What was learnt of a path and is still in memory, fresh or not.
    pub(crate) fn remembered(&self, path: &str) -> Option<Fact> {
        self.hot.get(path).map(|hot| hot.fact)
    }

    /// Remembers what was just learnt of a path.
    pub(crate) fn learn(&self, path: &str, place: &Place, fact: Fact) {
        if keeps_names(self.parts.freshness) {
            let writer = &self.parts.catalog.writer;
            let store = writer.store();
            let row_key = named::row_key(self.parts.scope.number, self.parts.prefix.as_bytes(), place);
            if let (Some(key), Some(row)) = (row_key, named::to_row(&fact, store.epoch())) {
                writer.keep_name(&store, key, row);
            }
        }
        let listings = self.parts.scope.listings();
        self.hot.insert(path.into(), HotFact { fact, listings });
    }

    /// A fact as the caller wants it.
    pub(crate) fn result(&self, path: &str, fact: Fact) -> Result<Item> {
        match fact.answer {
            Answer::Found(item) => Ok(item),
            Answer::Absent => Err(self.not_found(path)),
            Answer::BelowFile => {
                Err(Error::new(ErrorKind::NotADirectory, self.action(path), "something above it is a file"))
            }
        }
    }

    /// What a path stands for.
    pub(crate) fn place(&self, path: &str) -> Result<Place> {
        keymap::decode(path).ok_or_else(|| self.not_found(path))
    }

    /// A path as a directory.
    pub(crate) fn directory(&self, path: &str) -> Result<Directory> {
        let attached = self.parts.prefix.as_bytes();
        let below = self.place(path)?.directory_prefix().ok_or_else(|| self.not_a_directory(path))?;
        Ok(Directory { prefix: [attached, &below].concat(), attached: attached.len(), path: path.into() })
    }

    pub(crate) fn not_found(&self, path: &str) -> Error {
        Error::new(ErrorKind::NotFound, self.action(path), "nothing has that name")
            .advise("look for a slip in it; what was put there lately shows within the attachment's freshness")
    }

    pub(crate) fn not_a_directory(&self, path: &str) -> Error {
        Error::new(ErrorKind::NotADirectory, self.action(path), "it is a file")
    }

    fn action(&self, path: &str) -> String {
        format!("look up {}", self.parts.source.describe(&self.parts.prefix.join(path.as_bytes())))
    }

    pub(crate) fn covering(&self, directory: &[u8]) -> Result<Vec<known::Covering>> {
        let writer = &self.parts.catalog.writer;
        let covering = writer.guard(|| known::covering(&writer.store(), self.parts.scope.number, directory));
        covering.inspect_err(|error| writer.fail(error))
    }
}

/// The prefix of the directory that holds a key.
pub(crate) fn holder(attached: &[u8], key: &[u8]) -> Vec<u8> {
    let end = key.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    [attached, &key[..end]].concat()
}
