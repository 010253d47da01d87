//! Which pages of an extent are present, and the CRC32C of each. Readers take no lock: a bit that is seen set
//! means that the page's bytes and its checksum were there before it.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use penstock_types::{ByteRange, PAGE_SIZE, STRIPE_SIZE};

/// Pages in a whole stripe.
pub const PAGES_PER_STRIPE: u64 = STRIPE_SIZE / PAGE_SIZE;
const BITS_PER_WORD: u64 = u64::BITS as u64;
/// Words of a stripe's bitmap.
pub const WORDS_PER_STRIPE: usize = (PAGES_PER_STRIPE / BITS_PER_WORD) as usize;

/// A stripe's part of the map as the index keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StripeImage {
    /// One bit per page, lowest first.
    pub bits: [u64; WORDS_PER_STRIPE],
    /// One checksum per page of the stripe; without meaning where the bit is not set.
    pub sums: Vec<u32>,
}

/// Where the parts of a map come from that were stored by an earlier process or trimmed from memory.
pub trait StoredStripes: Send + Sync {
    /// The stored image of one stripe; `None` when there is none that can be believed.
    fn load(&self, stripe: u64) -> Option<StripeImage>;
}

/// The map of one extent.
pub struct PageMap {
    size: u64,
    present: AtomicU64,
    stripes: Box<[OnceLock<Box<Stripe>>]>,
    stored: Option<Box<dyn StoredStripes>>,
}

struct Stripe {
    bits: [AtomicU64; WORDS_PER_STRIPE],
    sums: Box<[AtomicU32]>,
    changed: AtomicBool,
}

impl PageMap {
    /// An empty map for an object of `size` bytes.
    pub fn new(size: u64) -> Self {
        let stripes = size.div_ceil(STRIPE_SIZE);
        Self {
            size,
            present: AtomicU64::new(0),
            stripes: (0..stripes).map(|_| OnceLock::new()).collect(),
            stored: None,
        }
    }

    /// The map of an extent that is complete, whose checksums are loaded stripe by stripe when they are wanted.
    pub fn complete(size: u64, stored: Box<dyn StoredStripes>) -> Self {
        let map = Self { stored: Some(stored), ..Self::new(size) };
        map.present.store(map.pages(), Ordering::Release);
        map
    }

    /// The map of an extent that is partial, loaded at once.
    pub fn partial(size: u64, stored: &dyn StoredStripes) -> Self {
        let map = Self::new(size);
        for stripe in 0..map.stripes.len() {
            if let Some(image) = stored.load(stripe as u64) {
                let loaded = map.decode(stripe, &image);
                map.present.fetch_add(loaded.count(), Ordering::AcqRel);
                map.stripes[stripe].get_or_init(|| Box::new(loaded));
            }
        }
        map
    }

    /// Pages of the object.
    pub fn pages(&self) -> u64 {
        self.size.div_ceil(PAGE_SIZE)
    }

    /// Pages that are present.
    pub fn present(&self) -> u64 {
        self.present.load(Ordering::Acquire)
    }

    /// Whether every page is present.
    pub fn is_complete(&self) -> bool {
        self.present() == self.pages()
    }

    /// Bytes of the object that are present.
    pub fn present_bytes(&self) -> u64 {
        let present = self.present();
        if present == self.pages() {
            return self.size;
        }
        let last = self.pages() - 1;
        let short = if self.contains(last) { self.pages() * PAGE_SIZE - self.size } else { 0 };
        present * PAGE_SIZE - short
    }

    /// The bytes of one page; the last is cut off at the object's end.
    pub fn page_range(&self, page: u64) -> ByteRange {
        let start = page * PAGE_SIZE;
        ByteRange::new(start, (start + PAGE_SIZE).min(self.size))
    }

    /// Whether one page is present.
    pub fn contains(&self, page: u64) -> bool {
        self.is_complete() || self.stripe(page).has(page)
    }

    /// The checksum of a page that is present.
    pub fn sum(&self, page: u64) -> Option<u32> {
        let stripe = self.stripe(page);
        stripe.has(page).then(|| stripe.sums[position(page)].load(Ordering::Relaxed))
    }

    /// The run of pages that are present, from `page` up to `limit`.
    pub fn run(&self, page: u64, limit: u64) -> Range<u64> {
        if self.is_complete() {
            return page..limit.max(page);
        }
        let mut end = page;
        while end < limit && self.stripe(end).has(end) {
            end += 1;
        }
        page..end
    }

    /// The runs of pages in `pages` that are absent, in order.
    pub fn missing(&self, pages: Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        if self.is_complete() {
            return runs;
        }
        for page in pages.filter(|page| !self.stripe(*page).has(*page)) {
            match runs.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    /// Publishes pages whose bytes are in the file: checksum first, then the bit.
    pub fn insert(&self, first: u64, sums: &[u32]) {
        for (page, sum) in (first..).zip(sums) {
            let stripe = self.stripe(page);
            stripe.sums[position(page)].store(*sum, Ordering::Relaxed);
            let before = stripe.bits[word(page)].fetch_or(bit(page), Ordering::AcqRel);
            stripe.changed.store(true, Ordering::Release);
            if before & bit(page) == 0 {
                self.present.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Drops a page; whether it was there.
    pub fn remove(&self, page: u64) -> bool {
        let stripe = self.stripe(page);
        let before = stripe.bits[word(page)].fetch_and(!bit(page), Ordering::AcqRel);
        let was_there = before & bit(page) != 0;
        if was_there {
            stripe.changed.store(true, Ordering::Release);
            self.present.fetch_sub(1, Ordering::AcqRel);
        }
        was_there
    }

    /// Drops every page: the file as a whole is not what it was.
    pub fn clear(&self) {
        for (index, slot) in self.stripes.iter().enumerate() {
            let stripe = slot.get_or_init(|| Box::new(Stripe::empty(self.pages_in(index))));
            stripe.bits.iter().for_each(|word| word.store(0, Ordering::Release));
            stripe.changed.store(true, Ordering::Release);
        }
        self.present.store(0, Ordering::Release);
    }

    /// The stripes that changed since the last call, as they are now.
    pub fn take_changed(&self) -> Vec<(u64, StripeImage)> {
        let loaded = self.stripes.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.get()?)));
        let changed = loaded.filter(|(_, stripe)| stripe.changed.swap(false, Ordering::AcqRel));
        changed.map(|(index, stripe)| (index as u64, stripe.image())).collect()
    }

    /// Makes stripes count as changed again: storing them failed.
    pub fn mark_changed(&self, stripes: impl Iterator<Item = u64>) {
        for stripe in stripes {
            if let Some(stripe) = self.stripes.get(stripe as usize).and_then(OnceLock::get) {
                stripe.changed.store(true, Ordering::Release);
            }
        }
    }

    fn stripe(&self, page: u64) -> &Stripe {
        let index = (page / PAGES_PER_STRIPE) as usize;
        self.stripes[index].get_or_init(|| Box::new(self.load(index)))
    }

    /// The stripe as it is stored. Only complete maps load late; what cannot be believed is absent from then on.
    fn load(&self, index: usize) -> Stripe {
        let Some(stored) = &self.stored else { return Stripe::empty(self.pages_in(index)) };
        let pages = self.pages_in(index);
        let image = stored.load(index as u64);
        let stripe = image.map_or_else(|| Stripe::empty(pages), |image| self.decode(index, &image));
        self.present.fetch_sub(pages as u64 - stripe.count(), Ordering::AcqRel);
        stripe
    }

    fn decode(&self, index: usize, image: &StripeImage) -> Stripe {
        let stripe = Stripe::empty(self.pages_in(index));
        for page in 0..stripe.sums.len().min(image.sums.len()) {
            let page = page as u64;
            if image.bits[word(page)] & bit(page) != 0 {
                stripe.sums[position(page)].store(image.sums[position(page)], Ordering::Relaxed);
                stripe.bits[word(page)].fetch_or(bit(page), Ordering::AcqRel);
            }
        }
        stripe
    }

    fn pages_in(&self, stripe: usize) -> usize {
        let first = stripe as u64 * PAGES_PER_STRIPE;
        (self.pages() - first).min(PAGES_PER_STRIPE) as usize
    }
}

impl Stripe {
    fn empty(pages: usize) -> Self {
        Self {
            bits: Default::default(),
            sums: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            changed: AtomicBool::new(false),
        }
    }

    fn has(&self, page: u64) -> bool {
        self.bits[word(page)].load(Ordering::Acquire) & bit(page) != 0
    }

    fn count(&self) -> u64 {
        self.bits.iter().map(|word| u64::from(word.load(Ordering::Acquire).count_ones())).sum()
    }

    fn image(&self) -> StripeImage {
        StripeImage {
            bits: std::array::from_fn(|index| self.bits[index].load(Ordering::Acquire)),
            sums: self.sums.iter().map(|sum| sum.load(Ordering::Relaxed)).collect(),
        }
    }
}

fn position(page: u64) -> usize {
    (page % PAGES_PER_STRIPE) as usize
}

fn word(page: u64) -> usize {
    (page % PAGES_PER_STRIPE / BITS_PER_WORD) as usize
}

fn bit(page: u64) -> u64 {
    1 << (page % BITS_PER_WORD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Remove(u64),
        Store,
        Reload,
    }

    fn step(pages: u64) -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (0..pages, 1u64..40).prop_map(|(first, count)| Step::Insert(first, count)),
            2 => (0..pages).prop_map(Step::Remove),
            1 => Just(Step::Store),
            1 => Just(Step::Reload),
        ]
    }

    /// Stripes as an index would keep them.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<BTreeMap<u64, StripeImage>>>);

    impl StoredStripes for Kept {
        fn load(&self, stripe: u64) -> Option<StripeImage> {
            self.0.lock().unwrap().get(&stripe).cloned()
        }
    }

    fn store(map: &PageMap, kept: &Kept) {
        kept.0.lock().unwrap().extend(map.take_changed());
    }

    fn reload(map: &PageMap, size: u64, kept: &Kept) -> PageMap {
        if map.is_complete() { PageMap::complete(size, Box::new(kept.clone())) } else { PageMap::partial(size, kept) }
    }

    fn sum_of(page: u64) -> u32 {
        (page as u32).wrapping_mul(0x9e37_79b9)
    }

    proptest! {
        #[test]
        fn the_map_is_what_was_put_into_it_across_restarts(
            (size, steps) in (1u64..3 * STRIPE_SIZE).prop_flat_map(|size| {
                (Just(size), prop::collection::vec(step(size.div_ceil(PAGE_SIZE)), 0..60))
            }),
        ) {
            let (mut map, kept, mut model) = (PageMap::new(size), Kept::default(), BTreeMap::new());
            let pages = map.pages();
            for step in steps {
                match step {
                    Step::Insert(first, count) => {
                        let sums: Vec<u32> = (first..(first + count).min(pages)).map(sum_of).collect();
                        map.insert(first, &sums);
                        model.extend((first..).zip(sums));
                    }
                    Step::Remove(page) => prop_assert_eq!(map.remove(page), model.remove(&page).is_some()),
                    Step::Store => store(&map, &kept),
                    Step::Reload => {
                        store(&map, &kept);
                        map = reload(&map, size, &kept);
                    }
                }
                prop_assert_eq!(map.present(), model.len() as u64);
                prop_assert_eq!(map.is_complete(), model.len() as u64 == pages);
            }
            for page in 0..pages {
                prop_assert_eq!(map.contains(page), model.contains_key(&page));
                prop_assert_eq!(map.sum(page), model.get(&page).copied());
            }
            let bytes: u64 = model.keys().map(|page| map.page_range(*page).len()).sum();
            prop_assert_eq!(map.present_bytes(), bytes);
            check_runs(&map, &model)?;
        }

        #[test]
        fn the_runs_that_are_missing_and_present_cover_everything_once(size in 1u64..2 * STRIPE_SIZE, holes in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
            let map = PageMap::new(size);
            let all: Vec<u32> = (0..map.pages()).map(sum_of).collect();
            map.insert(0, &all);
            for hole in holes {
                map.remove(hole.index(all.len()) as u64);
            }
            let mut page = 0;
            for run in map.missing(0..map.pages()) {
                prop_assert_eq!(map.run(page, map.pages()), page..run.start);
                prop_assert!(map.run(run.start, map.pages()).is_empty());
                page = run.end;
            }
            prop_assert_eq!(map.run(page, map.pages()), page..map.pages());
        }
    }

    /// Images that no map of ours made: bits without checksums, pages behind the end.
    fn image() -> impl Strategy<Value = StripeImage> {
        let bits = prop_oneof![any::<[u64; WORDS_PER_STRIPE]>(), Just([u64::MAX; WORDS_PER_STRIPE])];
        (bits, prop::collection::vec(any::<u32>(), 0..300)).prop_map(|(bits, sums)| StripeImage { bits, sums })
    }

    proptest! {
        #[test]
        fn whatever_a_stored_stripe_says_the_map_counts_what_it_shows(
            size in 1u64..3 * STRIPE_SIZE,
            images in prop::collection::btree_map(0u64..4, image(), 0..4),
            complete in any::<bool>(),
        ) {
            let kept = Kept(Arc::new(Mutex::new(images)));
            let map = if complete { PageMap::complete(size, Box::new(kept)) } else { PageMap::partial(size, &kept) };
            let shown = (0..map.pages()).filter_map(|page| Some((page, map.sum(page)?)));
            let shown: BTreeMap<u64, u32> = shown.collect();
            prop_assert_eq!(map.present(), shown.len() as u64);
            prop_assert_eq!(map.is_complete(), shown.len() as u64 == map.pages());
            let bytes: u64 = shown.keys().map(|page| map.page_range(*page).len()).sum();
            prop_assert_eq!(map.present_bytes(), bytes);
            check_runs(&map, &shown)?;
        }
    }

    fn check_runs(map: &PageMap, model: &BTreeMap<u64, u32>) -> Result<(), TestCaseError> {
        let missing: Vec<u64> = map.missing(0..map.pages()).into_iter().flatten().collect();
        let expected: Vec<u64> = (0..map.pages()).filter(|page| !model.contains_key(page)).collect();
        prop_assert_eq!(missing, expected);
        Ok(())
    }

    #[test]
    fn what_cannot_be_believed_of_a_complete_map_is_absent() {
        let size = 2 * STRIPE_SIZE;
        let (map, kept) = (PageMap::new(size), Kept::default());
        let sums: Vec<u32> = (0..map.pages()).map(sum_of).collect();
        map.insert(0, &sums);
        store(&map, &kept);
        kept.0.lock().unwrap().remove(&1);
        let map = PageMap::complete(size, Box::new(kept));
        assert!(map.is_complete(), "nobody has looked yet");
        assert_eq!(map.sum(PAGES_PER_STRIPE), None);
        assert!(!map.is_complete());
        assert_eq!(map.present(), PAGES_PER_STRIPE);
        let missing: Vec<u64> = map.missing(0..map.pages()).into_iter().flatten().collect();
        assert!(missing.into_iter().eq(PAGES_PER_STRIPE..2 * PAGES_PER_STRIPE));
    }

    #[test]
    fn a_cleared_map_is_empty_whether_it_was_loaded_or_not() {
        let kept = Kept::default();
        let map = PageMap::complete(2 * STRIPE_SIZE, Box::new(kept));
        map.clear();
        assert_eq!((map.present(), map.present_bytes(), map.is_complete()), (0, 0, false));
        assert!(map.run(0, map.pages()).is_empty() && map.sum(300).is_none());
    }

    #[test]
    fn a_reader_who_sees_a_page_sees_its_checksum() {
        let map = PageMap::new(64 * PAGE_SIZE);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..2_000u64 {
                    let page = round % 64;
                    map.remove(page);
                    map.insert(page, &[sum_of(page)]);
                }
            });
            scope.spawn(|| {
                for round in 0..200_000u64 {
                    if let Some(sum) = map.sum(round % 64) {
                        assert_eq!(sum, sum_of(round % 64));
                    }
                }
            });
        });
    }
}
