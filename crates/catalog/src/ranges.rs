//! The plan of one listing: ranges of keys, each listed page by page, cut into more while requests are to spare.
//! Pure: pages go in, requests and what may be shown come out.

use penstock_types::{Error, ErrorKind, Result};

use crate::chunk::Entry;
use crate::shadows::Shadows;
use crate::split::{self, Span};

/// Pages' worth of keys that requests may ask for in vain before any key has come: pages behind a cut that are empty,
/// or not full because the range ends.
const FREE_WASTE: usize = 10;
/// One page's worth more for so many pages' worth of keys: useless requests are a quarter of the useful ones at most.
const USEFUL_PER_WASTE: usize = 4;
/// Parts that known keys cut a listing into at most; larger ones are cut again as they are listed.
const PART_LIMIT: usize = 64;
/// Share of a page that a part cut by known keys should fill, in percent: parts that just overflow cost a request.
const PART_FILL_PERCENT: usize = 85;

/// A request to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ask {
    pub(crate) range: u32,
    pub(crate) start_after: Option<Vec<u8>>,
    pub(crate) continuation: Option<String>,
}

/// What a page added.
#[derive(Debug)]
pub(crate) struct Taken {
    /// New entries, sorted.
    pub(crate) entries: Vec<Entry>,
    /// Objects of earlier pages that turned out to lie beside a directory.
    pub(crate) beside: Vec<Vec<u8>>,
    /// Once this page is committed, keys of its range below this one can be shown.
    pub(crate) below: Vec<u8>,
}

/// The ranges of one listing, in key order.
#[derive(Debug)]
pub(crate) struct Ranges {
    prefix: Vec<u8>,
    divisible: bool,
    ranges: Vec<Range>,
    next_id: u32,
    pages: usize,
    entries: usize,
    /// Entries of ranges that are done, at the front.
    passed: usize,
    /// The largest page so far.
    page: usize,
    /// Objects whose directory may lie in a later range.
    unsettled: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Range {
    id: u32,
    /// Keys after this one; `None` for the beginning of the prefix.
    after: Option<Vec<u8>>,
    /// Up to this one; `None` for the end of the prefix.
    end: Option<Vec<u8>>,
    /// Pages that are expected: a range is cut on a guess only when it has had them and goes on.
    expected: u32,
    /// Whether it began at a guess.
    guessed: bool,
    pages: u32,
    listed: usize,
    first: Option<Vec<u8>>,
    /// The first key of the last page.
    page_first: Option<Vec<u8>>,
    position: Option<Vec<u8>>,
    next: Next,
    asked: bool,
    uncommitted: u32,
    below: Vec<u8>,
    shadows: Shadows,
}

#[derive(PartialEq, Eq, Debug)]
enum Next {
    Start,
    Continue(String),
    Done,
}

impl Ranges {
    /// One range over all of `prefix`. `divisible` when the source can list from a given key.
    pub(crate) fn new(prefix: &[u8], divisible: bool) -> Self {
        let mut ranges = Self {
            prefix: prefix.to_vec(),
            divisible,
            ranges: vec![],
            next_id: 0,
            pages: 0,
            entries: 0,
            passed: 0,
            page: 1,
            unsettled: vec![],
        };
        let whole = ranges.range(None, None);
        ranges.ranges.push(whole);
        ranges
    }

    /// Cuts at keys that are known to lie about `entries_apart` entries from each other, so that a part fits a page.
    pub(crate) fn cut_at_known(&mut self, known: &[Vec<u8>], entries_apart: usize, page: usize) {
        if !self.divisible || known.is_empty() {
            return;
        }
        let per_part = (page * PART_FILL_PERCENT / 100 / entries_apart.max(1)).max(1);
        let parts = known.len().div_ceil(per_part).min(PART_LIMIT);
        let pages = (known.len() / parts * entries_apart).div_ceil(page);
        // What comes before the first cut joins what is being listed already.
        for cut in split::spread(known, parts).into_iter().skip(1) {
            if let Some(at) = self.ranges.iter().position(|range| range.holds(&cut)) {
                self.cut(at, vec![cut]);
                self.ranges[at + 1].expected = u32::try_from(pages + 1).unwrap_or(u32::MAX);
            }
        }
    }

    /// Cuts range `id` at the names of a directory in it; the names it has passed tell how many keys one has.
    pub(crate) fn cut_at_names(&mut self, id: u32, names: &[Vec<u8>], page: usize) {
        let Some(range) = self.ranges.iter().find(|range| range.id == id) else { return };
        let (Some(first), Some(position)) = (&range.first, &range.position) else { return };
        let passed =
            names.iter().filter(|name| *name <= position && (name > &first || first.starts_with(name))).count();
        let apart = range.listed / passed.max(1);
        let ahead = names.iter().filter(|name| *name > position && range.end.as_ref().is_none_or(|end| *name < end));
        let ahead: Vec<_> = ahead.cloned().collect();
        self.cut_at_known(&ahead, apart, page);
    }

    /// The range that would gain most from the names of a directory, and that directory: all its keys so far are in
    /// directories of it.
    pub(crate) fn names_wanted(&self, known: &[Vec<u8>]) -> Option<(u32, Vec<u8>)> {
        let ranges = self.ranges.iter().filter(|range| self.divisible && range.is_longer_than_expected());
        let mut wanted: Vec<_> = ranges
            .filter_map(|range| {
                let (first, position) = (range.first.as_ref()?, range.position.as_ref()?);
                let shared = crate::chunk::shared_length(first, position);
                let slash = position[..shared].iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
                let directory = position[..slash.max(self.prefix.len())].to_vec();
                let has_directories = position[directory.len()..].contains(&b'/');
                (has_directories && !known.contains(&directory)).then_some((
                    range.width(self.prefix.len()),
                    range.id,
                    directory,
                ))
            })
            .collect();
        wanted.sort_unstable();
        wanted.into_iter().next().map(|(_, id, directory)| (id, directory))
    }

    /// Cuts ranges that go on longer than expected into up to `idle` parts more, where keys are likely. `except` waits
    /// for something better.
    pub(crate) fn cut_for(&mut self, idle: usize, except: Option<u32>) {
        let mut wanted = idle.min(self.affordable_cuts());
        if !self.divisible || wanted == 0 {
            return;
        }
        let open = self.ranges.iter().filter(|range| range.is_longer_than_expected() && Some(range.id) != except);
        let mut open: Vec<(usize, u32)> = open.map(|range| (range.width(self.prefix.len()), range.id)).collect();
        open.sort_unstable();
        let count = open.len();
        for (done, (_, id)) in open.into_iter().enumerate() {
            let Some(at) = self.ranges.iter().position(|range| range.id == id) else { continue };
            let cuts = self.ranges[at].cuts(self.prefix.len(), self.page, wanted.div_ceil(count - done));
            let made = cuts.len();
            wanted -= made;
            self.cut(at, cuts);
            for part in &mut self.ranges[at + 1..=at + made] {
                part.guessed = true;
            }
        }
    }

    /// The next request, of the first range that waits for one: readers follow from the front.
    pub(crate) fn next_ask(&mut self) -> Option<Ask> {
        let range = self.ranges.iter_mut().find(|range| !range.asked && range.next != Next::Done)?;
        range.asked = true;
        let continuation = match &range.next {
            Next::Continue(token) => Some(token.clone()),
            Next::Start | Next::Done => None,
        };
        Some(Ask { range: range.id, start_after: range.after.clone(), continuation })
    }

    /// Takes the page that was asked for: its entries, sorted by key, and how to go on.
    ///
    /// # Errors
    /// `Corrupt` when keys are out of order or out of the prefix: such a listing would lose entries.
    pub(crate) fn take_page(&mut self, id: u32, mut entries: Vec<Entry>, next: Option<String>) -> Result<Taken> {
        self.pages += 1;
        self.page = self.page.max(entries.len());
        let Some(range) = self.ranges.iter_mut().find(|range| range.id == id) else {
            return Err(Error::new(ErrorKind::Internal, "list", "a page came for a range that is gone"));
        };
        range.asked = false;
        range.uncommitted += 1;
        range.pages += 1;
        check_order(&entries, &self.prefix, range.position.as_ref().or(range.after.as_ref()))?;
        let kept = range.end.as_ref().map_or(entries.len(), |end| entries.partition_point(|entry| entry.key <= *end));
        let past_end = kept < entries.len();
        entries.truncate(kept);
        self.entries += entries.len();
        let beside = range.note(&mut entries);
        range.next = match next {
            Some(token) if !past_end => Next::Continue(token),
            _ => Next::Done,
        };
        if range.next == Next::Done {
            let shadows = std::mem::take(&mut range.shadows).into_open();
            let leftover = range.end.as_ref().map_or(Vec::new(), |end| {
                let open = |object: &Vec<u8>| after_directory_of(object) > *end;
                shadows.into_iter().filter(open).collect()
            });
            self.unsettled.extend(leftover);
        }
        let below = range.shadows.first().map_or_else(|| range.listed(), <[u8]>::to_vec);
        Ok(Taken { entries, beside, below })
    }

    /// A page of a range is committed.
    pub(crate) fn committed(&mut self, id: u32, below: Vec<u8>) {
        if let Some(range) = self.ranges.iter_mut().find(|range| range.id == id) {
            range.uncommitted -= 1;
            range.below = std::mem::take(&mut range.below).max(below);
        }
        // What is done at the front plays no part any more.
        let done = self.ranges.iter().take_while(|range| range.is_committed()).count();
        self.passed += self.ranges.drain(..done).map(|range| range.listed).sum::<usize>();
    }

    /// Keys below this one are committed; `None` when all are. Whether each lies beside a directory may be unknown.
    pub(crate) fn committed_below(&self) -> Option<&[u8]> {
        self.ranges.first().map(|range| range.below.as_slice())
    }

    /// Objects of which it must be looked up whether a directory of their name came in another range.
    pub(crate) fn unsettled(&self) -> &[Vec<u8>] {
        &self.unsettled
    }

    /// An object is settled: it lies beside a directory and is marked, or there is none.
    pub(crate) fn settle(&mut self, object: &[u8]) {
        self.unsettled.retain(|unsettled| unsettled != object);
        for range in &mut self.ranges {
            range.shadows.settle_by_hand(object);
        }
    }

    /// An object that has kept readers from the front for a page and more: `img` beside `img-000001`, `img-000002`, …
    /// The source has to be asked whether there is an `img/`.
    pub(crate) fn blocking(&self) -> Option<&[u8]> {
        let front = self.ranges.first()?;
        let in_front =
            front.shadows.first().filter(|object| front.page_first.as_deref().is_some_and(|first| *object < first));
        self.unsettled.iter().map(Vec::as_slice).chain(in_front).min()
    }

    /// Keys below this one can be shown; `None` when all can.
    pub(crate) fn shown_below(&self) -> Option<Vec<u8>> {
        let unsettled = self.unsettled.iter().min().map(Vec::as_slice);
        match (self.committed_below(), unsettled) {
            (Some(committed), Some(unsettled)) => Some(committed.min(unsettled).to_vec()),
            (one, other) => one.or(other).map(<[u8]>::to_vec),
        }
    }

    /// Entries that readers can see, about: what came without a gap.
    pub(crate) fn entries_in_front(&self) -> usize {
        self.passed + self.ranges.first().map_or(0, |range| range.listed)
    }

    /// The range at the front.
    pub(crate) fn first_id(&self) -> Option<u32> {
        self.ranges.first().map(|range| range.id)
    }

    /// Whether every page has come and is committed.
    pub(crate) fn is_done(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many cuts are worth their risk: each may ask for a page in vain, and ends with half a page.
    fn affordable_cuts(&self) -> usize {
        let wasted = (self.pages * self.page).saturating_sub(self.entries);
        let open = self.ranges.iter().filter(|range| range.guessed && range.next != Next::Done);
        let risked: usize = open.map(|range| if range.pages == 0 { self.page } else { self.page / 2 }).sum();
        let allowed = FREE_WASTE * self.page + self.entries / USEFUL_PER_WASTE;
        allowed.saturating_sub(wasted + risked) / self.page
    }

    fn range(&mut self, after: Option<Vec<u8>>, end: Option<Vec<u8>>) -> Range {
        self.next_id += 1;
        let below = after.as_deref().map_or_else(|| self.prefix.clone(), successor);
        Range {
            id: self.next_id,
            after,
            end,
            expected: 1,
            guessed: false,
            pages: 0,
            listed: 0,
            first: None,
            page_first: None,
            position: None,
            next: Next::Start,
            asked: false,
            uncommitted: 0,
            below,
            shadows: Shadows::default(),
        }
    }

    /// Cuts range `at` at keys inside it, ascending.
    fn cut(&mut self, at: usize, cuts: Vec<Vec<u8>>) {
        let Some(first) = cuts.first().cloned() else { return };
        let mut end = self.ranges[at].end.replace(first);
        for cut in cuts.into_iter().rev() {
            let part = self.range(Some(cut.clone()), end.replace(cut));
            self.ranges.insert(at + 1, part);
        }
    }
}

impl Range {
    /// Whether a cut at `key` leaves something on both sides as far as is known.
    fn holds(&self, key: &Vec<u8>) -> bool {
        let start = self.position.as_ref().or(self.after.as_ref());
        self.next != Next::Done
            && start.is_none_or(|start| start < key)
            && self.end.as_ref().is_none_or(|end| key < end)
    }

    fn is_longer_than_expected(&self) -> bool {
        matches!(self.next, Next::Continue(_)) && self.pages >= self.expected
    }

    fn is_committed(&self) -> bool {
        self.next == Next::Done && self.uncommitted == 0
    }

    /// The shorter what position and end share, the more may lie between them.
    fn width(&self, prefix: usize) -> usize {
        match (&self.position, &self.end) {
            (Some(position), Some(end)) => crate::chunk::shared_length(position, end),
            _ => prefix,
        }
    }

    fn cuts(&self, prefix: usize, page: usize, wanted: usize) -> Vec<Vec<u8>> {
        let (Some(first), Some(position)) = (&self.first, &self.position) else { return Vec::new() };
        let (end, after) = (self.end.as_deref(), self.after.as_deref());
        let listed_percent = self.listed * 100 / page.max(1);
        split::cuts(Span { first, position, end, prefix, after, listed_percent }, wanted)
    }

    /// Notes new entries: which lie beside a directory, and how far the range has come.
    fn note(&mut self, entries: &mut [Entry]) -> Vec<Vec<u8>> {
        let mut beside = Vec::new();
        self.listed += entries.len();
        for at in 0..entries.len() {
            let (before, rest) = entries.split_at_mut(at);
            let entry = &rest[0];
            self.shadows.take(&entry.key, entry.attributes.is_some(), |object| {
                match before.binary_search_by(|entry| entry.key.as_slice().cmp(object)) {
                    Ok(found) => before[found].beside = true,
                    Err(_) => beside.push(object.to_vec()),
                }
            });
        }
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            self.first.get_or_insert_with(|| first.key.clone());
            self.page_first = Some(first.key.clone());
            self.position = Some(last.key.clone());
        }
        beside
    }

    /// Keys below this one have come.
    fn listed(&self) -> Vec<u8> {
        self.position.as_deref().map_or_else(|| self.below.clone(), successor)
    }
}

fn check_order(entries: &[Entry], prefix: &[u8], start: Option<&Vec<u8>>) -> Result<()> {
    let mut before = start;
    for entry in entries {
        if before.is_some_and(|before| entry.key <= *before) || !entry.key.starts_with(prefix) {
            return Err(Error::new(ErrorKind::Corrupt, "list", "the source's listing is out of order")
                .advise("Penstock needs a store that lists keys in byte order, each once")
                .fact("key", entry.key.escape_ascii())
                .fact("after", before.map_or_else(|| prefix.escape_ascii(), |before| before.escape_ascii())));
        }
        before = Some(&entry.key);
    }
    Ok(())
}

/// The first key after all those below an object's name; `0` follows `/`.
fn after_directory_of(object: &[u8]) -> Vec<u8> {
    [object, b"0"].concat()
}

/// The next key after `key`.
fn successor(key: &[u8]) -> Vec<u8> {
    [key, b"\0"].concat()
}

#[cfg(test)]
mod tests;
