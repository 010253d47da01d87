//! Which extent leaves next: S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023),
//! weighed in bytes. Pure: no I/O, no clock, no lock.
//!
//! New extents enter a *small* queue of a tenth of the bytes. Those that were used more than once on their way
//! through it move to the *main* queue, the others leave and are remembered as *ghosts*; a ghost that comes back
//! enters the main queue at once. The main queue is a clock: a used extent goes round again. So one pass over more
//! data than fits flushes only the small queue.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Uses are counted up to here (two bits in the paper).
pub const MAX_USES: u8 = 3;
/// Uses in the small queue above which an extent moves to the main queue.
const PROMOTE_ABOVE: u8 = 1;
/// The small queue's share of the bytes is one of so many.
const SMALL_SHARE: u64 = 10;
/// Most ghosts that are remembered: about 2 MiB of memory.
const MAX_GHOSTS: usize = 65_536;
/// Ghosts that are remembered however few extents there are.
const MIN_GHOSTS: usize = 64;

/// Marks a counter whose extent is in the main queue, so that it gets there again after a restart.
const IN_MAIN: u8 = 0x80;

/// How often an extent was used, shared with whoever uses it.
#[derive(Clone, Debug, Default)]
pub struct Uses(Arc<AtomicU8>);

impl Uses {
    /// The counter that [`stored`](Self::stored) gave.
    pub fn restore(stored: u8) -> Self {
        Self(Arc::new(AtomicU8::new(stored & IN_MAIN | (stored & !IN_MAIN).min(MAX_USES))))
    }

    /// Counts one use, without a lock.
    pub fn add(&self) {
        if self.count() < MAX_USES {
            let more = |uses: u8| (uses & !IN_MAIN < MAX_USES).then_some(uses.wrapping_add(1));
            let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        }
    }

    /// Uses counted, at most [`MAX_USES`].
    pub fn count(&self) -> u8 {
        self.0.load(Ordering::Relaxed) & !IN_MAIN
    }

    /// All that [`restore`](Self::restore) needs.
    pub fn stored(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    fn is_in_main(&self) -> bool {
        self.0.load(Ordering::Relaxed) & IN_MAIN != 0
    }

    fn enter_main(&self, uses: u8) {
        self.0.store(uses | IN_MAIN, Ordering::Relaxed);
    }
}

/// Why a candidate stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// It is in use right now.
    Busy,
    /// It is pinned: it is not asked for again until [`Policy::unpin_all`].
    Pinned,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Small,
    Main,
    /// Handed out as a candidate; came from the small queue or not.
    Out {
        of_small: bool,
    },
    Pinned,
}

struct Entry {
    bytes: u64,
    /// Names the object whatever its number.
    object: u64,
    uses: Uses,
    place: Place,
}

/// The queues of one tier.
pub struct Policy {
    capacity: u64,
    entries: HashMap<u64, Entry>,
    small: VecDeque<u64>,
    main: VecDeque<u64>,
    small_bytes: u64,
    /// Objects that left, oldest first, each with the moment it left.
    ghosts: VecDeque<(u64, u64)>,
    /// The latest moment of each.
    ghost_moments: HashMap<u64, u64>,
    moment: u64,
}

impl Policy {
    /// Empty queues for `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            entries: HashMap::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            small_bytes: 0,
            ghosts: VecDeque::new(),
            ghost_moments: HashMap::new(),
            moment: 0,
        }
    }

    /// Extents that are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes a new extent in; `object` names what it holds.
    pub fn insert(&mut self, number: u64, object: u64, bytes: u64, uses: Uses) {
        if !self.entries.contains_key(&number) {
            let place = if self.forget_ghost(object) { Place::Main } else { Place::Small };
            self.enter(number, Entry { bytes, object, uses, place });
        }
    }

    /// Takes in an extent of an earlier process, into the queue that it was in. The counter of its uses, the one it
    /// has where it is known already.
    pub fn adopt(&mut self, number: u64, object: u64, bytes: u64, uses: u8) -> Uses {
        if let Some(known) = self.entries.get(&number) {
            return known.uses.clone();
        }
        let uses = Uses::restore(uses);
        let place = if uses.is_in_main() { Place::Main } else { Place::Small };
        self.enter(number, Entry { bytes, object, uses: uses.clone(), place });
        uses
    }

    /// The object and the bytes of an extent.
    pub fn charge(&self, number: u64) -> Option<(u64, u64)> {
        self.entries.get(&number).map(|entry| (entry.object, entry.bytes))
    }

    /// Notes how many bytes an extent has now.
    pub fn resize(&mut self, number: u64, bytes: u64) {
        if let Some(entry) = self.entries.get_mut(&number) {
            if entry.place == Place::Small {
                self.small_bytes = self.small_bytes - entry.bytes + bytes;
            }
            entry.bytes = bytes;
        }
    }

    /// Hands out the next candidate. It is out of the queues until [`keep`](Self::keep), or
    /// [`remove`](Self::remove) or [`evicted`](Self::evicted) ends it, so two threads never get the same one.
    pub fn candidate(&mut self) -> Option<u64> {
        loop {
            let from_small = self.small_bytes > self.capacity / SMALL_SHARE || self.main.is_empty();
            let found = if from_small { self.next_of_small() } else { self.next_of_main() };
            if found.is_some() || (self.small.is_empty() && self.main.is_empty()) {
                return found;
            }
        }
    }

    /// Takes a candidate back.
    pub fn keep(&mut self, number: u64, why: Keep) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let Place::Out { of_small } = entry.place else { return };
        match why {
            Keep::Pinned => entry.place = Place::Pinned,
            Keep::Busy => {
                // What is in use was used. In a small queue full of such extents they would come by again and again,
                // and nothing of the main queue would ever leave.
                if of_small {
                    entry.uses.enter_main(entry.uses.count());
                }
                entry.place = Place::Main;
                self.main.push_back(number);
            }
        }
    }

    /// Notes that a candidate has left the cache.
    pub fn evicted(&mut self, number: u64) {
        let Some(entry) = self.entries.get(&number) else { return };
        let (of_small, object) = (entry.place == Place::Out { of_small: true }, entry.object);
        self.remove(number);
        if of_small {
            self.remember_ghost(object);
        }
    }

    /// Forgets an extent wherever it is.
    pub fn remove(&mut self, number: u64) {
        if let Some(entry) = self.entries.remove(&number) {
            if entry.place == Place::Small {
                self.small_bytes -= entry.bytes;
            }
            self.compact();
        }
    }

    /// Lets everything that was pinned be a candidate again.
    pub fn unpin_all(&mut self) {
        for (number, entry) in &mut self.entries {
            if entry.place == Place::Pinned {
                entry.place = Place::Main;
                entry.uses.enter_main(entry.uses.count());
                self.main.push_back(*number);
            }
        }
    }

    fn enter(&mut self, number: u64, entry: Entry) {
        if entry.place == Place::Small {
            self.small_bytes += entry.bytes;
            self.small.push_back(number);
        } else {
            entry.uses.enter_main(entry.uses.count());
            self.main.push_back(number);
        }
        self.entries.insert(number, entry);
    }

    /// The oldest of the small queue that was not used; used ones move to the main queue on the way.
    fn next_of_small(&mut self) -> Option<u64> {
        while let Some(number) = self.small.pop_front() {
            let Some(entry) = self.entries.get_mut(&number).filter(|entry| entry.place == Place::Small) else {
                continue;
            };
            self.small_bytes -= entry.bytes;
            if entry.uses.count() > PROMOTE_ABOVE {
                entry.uses.enter_main(0);
                entry.place = Place::Main;
                self.main.push_back(number);
            } else {
                entry.place = Place::Out { of_small: true };
                return Some(number);
            }
        }
        None
    }

    /// The oldest of the main queue that was not used since it came by last.
    fn next_of_main(&mut self) -> Option<u64> {
        while let Some(number) = self.main.pop_front() {
            let Some(entry) = self.entries.get_mut(&number).filter(|entry| entry.place == Place::Main) else {
                continue;
            };
            let uses = entry.uses.count();
            if uses == 0 {
                entry.place = Place::Out { of_small: false };
                return Some(number);
            }
            entry.uses.enter_main(uses - 1);
            self.main.push_back(number);
        }
        None
    }

    fn remember_ghost(&mut self, object: u64) {
        self.moment += 1;
        self.ghosts.push_back((object, self.moment));
        self.ghost_moments.insert(object, self.moment);
        let most = self.entries.len().clamp(MIN_GHOSTS, MAX_GHOSTS);
        while self.ghosts.len() > most {
            let Some((oldest, moment)) = self.ghosts.pop_front() else { return };
            if self.ghost_moments.get(&oldest) == Some(&moment) {
                self.ghost_moments.remove(&oldest);
            }
        }
    }

    fn forget_ghost(&mut self, object: u64) -> bool {
        self.ghost_moments.remove(&object).is_some()
    }

    /// Drops the places of removed extents from the queues once they are most of them.
    fn compact(&mut self) {
        const SLACK: usize = 64;
        if self.small.len() + self.main.len() > 2 * self.entries.len() + SLACK {
            self.small.retain(|number| self.entries.get(number).is_some_and(|entry| entry.place == Place::Small));
            self.main.retain(|number| self.entries.get(number).is_some_and(|entry| entry.place == Place::Main));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A cache of entries of one byte each, driven as the cache drives the policy.
    struct Simulated {
        policy: Policy,
        held: HashMap<u64, (u64, Uses)>,
        next: u64,
        capacity: usize,
    }

    impl Simulated {
        fn new(capacity: usize) -> Self {
            Self { policy: Policy::new(capacity as u64), held: HashMap::new(), next: 1, capacity }
        }

        fn read(&mut self, object: u64) {
            if let Some((_, uses)) = self.held.get(&object) {
                return uses.add();
            }
            while self.held.len() >= self.capacity {
                let victim = self.policy.candidate().expect("a full cache has a candidate");
                self.held.retain(|_, (number, _)| *number != victim);
                self.policy.evicted(victim);
            }
            let uses = Uses::default();
            self.policy.insert(self.next, object, 1, uses.clone());
            self.held.insert(object, (self.next, uses));
            self.next += 1;
        }
    }

    #[test]
    fn a_scan_larger_than_the_cache_does_not_flush_what_is_used() {
        let mut cache = Simulated::new(100);
        for _ in 0..4 {
            (0..50).for_each(|object| cache.read(object));
        }
        (1_000..11_000).for_each(|object| cache.read(object));
        let kept = (0..50).filter(|object| cache.held.contains_key(object)).count();
        assert_eq!(kept, 50, "the working set survives a scan of a hundred times the cache");
    }

    #[test]
    fn what_comes_back_soon_after_it_left_enters_the_main_queue() {
        let mut cache = Simulated::new(20);
        (0..40).for_each(|object| cache.read(object));
        let ghost = (0..40).find(|object| !cache.held.contains_key(object)).unwrap();
        cache.read(ghost);
        let (number, _) = cache.held[&ghost].clone();
        assert_eq!(cache.policy.entries[&number].place, Place::Main);
    }

    #[test]
    fn a_small_queue_full_of_extents_in_use_does_not_hide_the_main_queue() {
        let mut policy = Policy::new(100);
        let used = Uses::restore(2);
        (0..80).for_each(|number| policy.insert(number, number, 1, Uses::restore(used.count())));
        let first = policy.candidate().expect("all moved to the main queue");
        policy.evicted(first);
        let in_use = 80..100;
        in_use.clone().for_each(|number| policy.insert(number, number, 1, Uses::default()));
        for _ in 0..60 {
            let victim = (0..policy.len()).find_map(|_| {
                let candidate = policy.candidate()?;
                if in_use.contains(&candidate) {
                    policy.keep(candidate, Keep::Busy);
                    return None;
                }
                Some(candidate)
            });
            policy.evicted(victim.expect("most extents are in nobody's hands"));
        }
    }

    #[test]
    fn a_pinned_candidate_is_not_asked_for_again_until_pins_change() {
        let mut policy = Policy::new(10);
        policy.insert(1, 1, 5, Uses::default());
        let candidate = policy.candidate().unwrap();
        policy.keep(candidate, Keep::Pinned);
        assert_eq!(policy.candidate(), None);
        policy.unpin_all();
        assert_eq!(policy.candidate(), Some(1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8, u16),
        Use(u8),
        Resize(u8, u16),
        Evict,
        Busy,
        Pin,
        Remove(u8),
        Unpin,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (any::<u8>(), any::<u16>()).prop_map(|(number, bytes)| Step::Insert(number, bytes)),
            3 => any::<u8>().prop_map(Step::Use),
            1 => (any::<u8>(), any::<u16>()).prop_map(|(number, bytes)| Step::Resize(number, bytes)),
            3 => Just(Step::Evict),
            1 => Just(Step::Busy),
            1 => Just(Step::Pin),
            1 => any::<u8>().prop_map(Step::Remove),
            1 => Just(Step::Unpin),
        ]
    }

    proptest! {
        #[test]
        fn candidates_are_known_never_pinned_never_twice_and_every_extent_is_reached(steps in prop::collection::vec(step(), 0..400)) {
            let mut policy = Policy::new(100_000);
            let mut known: BTreeMap<u64, (u64, Uses, bool)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(number, bytes) => {
                        let number = u64::from(number);
                        let uses = Uses::default();
                        policy.insert(number, number, u64::from(bytes), uses.clone());
                        known.entry(number).or_insert((u64::from(bytes), uses, false));
                    }
                    Step::Use(number) => drop(known.get(&u64::from(number)).map(|(_, uses, _)| uses.add())),
                    Step::Resize(number, bytes) => {
                        policy.resize(u64::from(number), u64::from(bytes));
                        if let Some(entry) = known.get_mut(&u64::from(number)) { entry.0 = u64::from(bytes); }
                    }
                    Step::Evict | Step::Busy | Step::Pin => {
                        let free = known.values().filter(|entry| !entry.2).count();
                        let candidate = policy.candidate();
                        prop_assert_eq!(candidate.is_some(), free > 0);
                        let Some(candidate) = candidate else { continue };
                        prop_assert!(known.get(&candidate).is_some_and(|entry| !entry.2));
                        match step {
                            Step::Evict => { policy.evicted(candidate); known.remove(&candidate); }
                            Step::Busy => policy.keep(candidate, Keep::Busy),
                            _ => { policy.keep(candidate, Keep::Pinned); known.get_mut(&candidate).unwrap().2 = true; }
                        }
                    }
                    Step::Remove(number) => { policy.remove(u64::from(number)); known.remove(&u64::from(number)); }
                    Step::Unpin => { policy.unpin_all(); known.values_mut().for_each(|entry| entry.2 = false); }
                }
                let small: u64 = policy.entries.values().filter(|entry| entry.place == Place::Small).map(|entry| entry.bytes).sum();
                prop_assert_eq!(policy.small_bytes, small);
                prop_assert_eq!(policy.len(), known.len());
                prop_assert!(policy.ghost_moments.len() <= policy.ghosts.len() && policy.ghosts.len() <= MAX_GHOSTS);
                prop_assert!(policy.small.len() + policy.main.len() <= 2 * policy.len() + 130);
            }
            policy.unpin_all();
            let drained: Vec<u64> = std::iter::from_fn(|| policy.candidate()).collect();
            let mut sorted = drained.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, known.keys().copied().collect::<Vec<_>>());
        }
    }
}
