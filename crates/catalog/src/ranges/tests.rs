use std::collections::{BTreeMap, BTreeSet};

use penstock_types::ObjectAttributes;
use proptest::prelude::*;

use super::*;
use crate::shadows::directory_of;

const PAGE: usize = 4;

enum Commit {
    Page(u32, Taken),
    Beside(Vec<u8>),
}

/// A source, a store and a scheduler that does things in any order.
struct Simulation {
    keys: BTreeSet<Vec<u8>>,
    ranges: Ranges,
    asked: Vec<Ask>,
    committing: Vec<Commit>,
    marking: BTreeSet<Vec<u8>>,
    committed: BTreeMap<Vec<u8>, bool>,
    requests: usize,
}

impl Simulation {
    fn new(keys: BTreeSet<Vec<u8>>) -> Self {
        Self {
            keys,
            ranges: Ranges::new(b"", true),
            asked: Vec::new(),
            committing: Vec::new(),
            marking: BTreeSet::new(),
            committed: BTreeMap::new(),
            requests: 0,
        }
    }

    fn ask(&mut self) {
        if let Some(ask) = self.ranges.next_ask() {
            self.requests += 1;
            self.asked.push(ask);
        }
    }

    fn answer(&mut self, ask: Ask) {
        let after = ask.continuation.map(String::into_bytes).or(ask.start_after);
        let rest = self.keys.iter().filter(|key| after.as_ref().is_none_or(|after| *key > after));
        let page: Vec<&Vec<u8>> = rest.take(PAGE + 1).collect();
        let next = (page.len() > PAGE).then(|| String::from_utf8(page[PAGE - 1].clone()).unwrap());
        let attributes = ObjectAttributes { size: 1, modified_ms: 0, version: "v".into() };
        let entry = |key: &&Vec<u8>| Entry { key: (*key).clone(), attributes: Some(attributes.clone()), beside: false };
        let entries = page.iter().take(PAGE).map(entry).collect();
        let taken = self.ranges.take_page(ask.range, entries, next).unwrap();
        self.committing.push(Commit::Page(ask.range, taken));
    }

    /// Commits what is oldest: the store's queue keeps the order.
    fn commit(&mut self) {
        if self.committing.is_empty() {
            return;
        }
        match self.committing.remove(0) {
            Commit::Page(range, taken) => {
                for entry in taken.entries {
                    assert!(self.committed.insert(entry.key, entry.beside).is_none(), "an entry came twice");
                }
                for object in taken.beside {
                    *self.committed.get_mut(&object).expect("it was committed before") = true;
                }
                self.ranges.committed(range, taken.below);
            }
            Commit::Beside(object) => {
                *self.committed.get_mut(&object).expect("it was committed before") = true;
                self.marking.remove(&object);
                self.ranges.settle(&object);
            }
        }
        let below = self.ranges.committed_below().map(<[u8]>::to_vec);
        for object in self.ranges.unsettled().to_vec() {
            let directory = directory_of(&object);
            if self.marking.contains(&object) {
                continue;
            }
            if self.committed.keys().any(|key| key.starts_with(&directory)) {
                self.marking.insert(object.clone());
                self.committing.push(Commit::Beside(object));
            } else if below.as_ref().is_none_or(|below| *below >= after_directory_of(&object)) {
                self.ranges.settle(&object);
            }
        }
    }

    /// What can be shown is complete and final.
    fn check(&self) {
        let below = self.ranges.shown_below();
        for key in self.keys.iter().filter(|key| below.as_ref().is_none_or(|below| *key < below)) {
            let directory = directory_of(key);
            let beside = self.keys.iter().any(|other| other.starts_with(&directory));
            assert_eq!(self.committed.get(key), Some(&beside), "{}", key.escape_ascii());
        }
    }
}

fn keys() -> impl Strategy<Value = BTreeSet<Vec<u8>>> {
    let key =
        prop_oneof!["[a-c]{1,3}(/[a-c]{1,2}){0,2}", "img-?[0-9]{0,3}(/x)?", "[0-9a-f]{4}", "d[0-9]{2}/f[0-9]{2}",];
    proptest::collection::btree_set(key.prop_map(String::into_bytes), 0..120)
}

proptest! {
    #[test]
    fn every_key_comes_once_and_is_shown_only_when_all_before_it_are_final(
        keys in keys(),
        steps in proptest::collection::vec((0..6u8, any::<prop::sample::Index>()), 0..400),
    ) {
        let names: Vec<_> = keys.iter().filter_map(|key| Some(key[..=key.iter().position(|b| *b == b'/')?].to_vec())).collect();
        let mut simulation = Simulation::new(keys);
        for (step, at) in steps {
            match step {
                0 | 1 => simulation.ask(),
                2 | 3 if !simulation.asked.is_empty() => {
                    let ask = simulation.asked.remove(at.index(simulation.asked.len()));
                    simulation.answer(ask);
                }
                4 => simulation.commit(),
                5 if at.index(2) == 0 => simulation.ranges.cut_for(5, None),
                5 => {
                    let mut names = names.clone();
                    names.dedup();
                    if let Some(id) = simulation.ranges.first_id() {
                        simulation.ranges.cut_at_names(id, &names, PAGE);
                    }
                }
                _ => {}
            }
            simulation.check();
        }
        while !simulation.ranges.is_done() || !simulation.committing.is_empty() {
            simulation.ask();
            if let Some(ask) = simulation.asked.pop() {
                simulation.answer(ask);
            }
            simulation.commit();
            simulation.check();
        }
        prop_assert!(simulation.ranges.unsettled().is_empty());
        prop_assert_eq!(simulation.committed.len(), simulation.keys.len());
    }

    #[test]
    fn guesses_cost_a_bounded_share_of_the_requests(keys in keys()) {
        let mut simulation = Simulation::new(keys);
        while !simulation.ranges.is_done() {
            simulation.ranges.cut_for(16 - simulation.asked.len(), None);
            while simulation.asked.len() < 16 && simulation.ranges.ranges.iter().any(|range| !range.asked && range.next != Next::Done) {
                simulation.ask();
            }
            for ask in std::mem::take(&mut simulation.asked) {
                simulation.answer(ask);
            }
            while !simulation.committing.is_empty() {
                simulation.commit();
            }
        }
        let pages = simulation.keys.len().div_ceil(PAGE);
        prop_assert!(simulation.requests <= pages + pages / 4 + FREE_WASTE + 16, "{} for {pages}", simulation.requests);
    }
}

#[test]
fn a_listing_out_of_order_is_refused() {
    let entry = |key: &str| Entry { key: key.into(), attributes: None, beside: false };
    for keys in [vec!["p/b", "p/a"], vec!["p/a", "p/a"], vec!["q"]] {
        let mut ranges = Ranges::new(b"p/", true);
        let ask = ranges.next_ask().unwrap();
        let refused = ranges.take_page(ask.range, keys.into_iter().map(entry).collect(), None);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
