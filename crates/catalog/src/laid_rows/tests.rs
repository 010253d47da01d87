//! What is shown of a listing with changes laid over it is what is shown of the plain merge of both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use penstock_types::{Laid, ObjectAttributes};
use proptest::prelude::*;

use crate::cursor::Cursor;
use crate::present::tests::{keys, pages, root, sight_of};
use crate::present::{list, walk};
use crate::scan::Sight;
use crate::support::Written;
use crate::timeline::Moment;
use crate::{Item, NamedItem};

type Objects = BTreeMap<Vec<u8>, ObjectAttributes>;

/// What changes do to keys: most are among those that are listed too.
type Changes = BTreeMap<Vec<u8>, Laid>;

/// When the page of each chunk of a listing was asked for that began at 0.
const fn sent(chunk: usize) -> Moment {
    chunk as Moment * 10
}

fn attributes(key: &[u8], version: &str) -> ObjectAttributes {
    ObjectAttributes { size: u64::from(!key.ends_with(b"/")), modified_ms: 0, version: version.into() }
}

fn cases() -> impl Strategy<Value = (Objects, Changes)> {
    let fate = (any::<bool>(), proptest::option::weighted(0.5, -1i64..40));
    let change = (any::<prop::sample::Index>(), fate);
    (keys(), keys(), proptest::collection::vec(change, 0..12)).prop_map(|(listed, others, changes)| {
        let known: Vec<_> = listed.iter().chain(&others).cloned().collect();
        let changes = changes.into_iter().filter(|_| !known.is_empty()).map(|(index, (put, settled))| {
            let key = index.get(&known).clone();
            let attributes = put.then(|| attributes(&key, "written"));
            (key, Laid { attributes, settled, at: None })
        });
        let changes = changes.collect();
        let objects = listed.into_iter().map(|key| (key.clone(), attributes(&key, "listed")));
        (objects.collect(), changes)
    })
}

/// The listing as it is and with the changes laid over it.
fn laid(entries: Vec<(Vec<u8>, Option<ObjectAttributes>)>, changes: &Changes) -> Sight {
    let written = Written::default();
    changes.iter().for_each(|(key, laid)| written.lay(key, laid.clone()));
    Sight { overlay: Some(Arc::new(written)), ..sight_of(entries, sent) }
}

fn entries(objects: &Objects) -> Vec<(Vec<u8>, Option<ObjectAttributes>)> {
    objects.iter().map(|(key, attributes)| (key.clone(), Some(attributes.clone()))).collect()
}

/// The objects of a listing as the changes leave them; `asked` says when the page of a listed key was asked for.
fn merged(objects: &Objects, changes: &Changes, asked: impl Fn(&[u8]) -> Moment) -> Objects {
    let mut merged = objects.clone();
    for (key, laid) in changes {
        if laid.hides(if objects.contains_key(key) { asked(key) } else { 0 }) {
            match &laid.attributes {
                Some(attributes) => drop(merged.insert(key.clone(), attributes.clone())),
                None => drop(merged.remove(key)),
            }
        }
    }
    merged
}

fn asked<'a>(rows: impl Iterator<Item = &'a Vec<u8>>) -> impl Fn(&[u8]) -> Moment {
    let numbers: BTreeMap<Vec<u8>, usize> = rows.cloned().enumerate().map(|(number, key)| (key, number)).collect();
    move |key| numbers.get(key).map_or(0, |number| sent(number / 3))
}

/// What a source says of the names of its root: objects and common prefixes.
fn delimited(objects: &Objects) -> BTreeMap<Vec<u8>, Option<ObjectAttributes>> {
    let entry = |(key, attributes): (&Vec<u8>, &ObjectAttributes)| match key.iter().position(|&byte| byte == b'/') {
        Some(slash) => (key[..=slash].to_vec(), None),
        None => (key.clone(), Some(attributes.clone())),
    };
    objects.iter().map(entry).collect()
}

fn files(items: &[NamedItem]) -> Vec<Vec<u8>> {
    let key = |item: &NamedItem| match &item.item {
        Item::File { key, .. } => Some(key.as_bytes().to_vec()),
        Item::Directory => None,
    };
    items.iter().filter_map(key).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn list_and_walk_show_what_the_plain_merge_of_listing_and_changes_shows(
        (objects, changes) in cases(), limit in 1usize..7,
    ) {
        let laid = laid(entries(&objects), &changes);
        let plain = sight_of(entries(&merged(&objects, &changes, asked(objects.keys()))), |_| 0);
        prop_assert_eq!(pages(&laid, &root(), limit, walk), pages(&plain, &root(), limit, walk));
        prop_assert_eq!(pages(&laid, &root(), limit, list), pages(&plain, &root(), limit, list));
    }

    #[test]
    fn names_of_one_directory_are_those_of_the_plain_merge_but_emptied_directories_go_on_to_show(
        (objects, changes) in cases(), limit in 1usize..7,
    ) {
        let rows = delimited(&objects);
        let listed = rows.iter().filter_map(|(key, object)| Some((key.clone(), object.clone()?))).collect();
        let mut plain = delimited(&merged(&listed, &changes, asked(rows.keys())));
        plain.extend(rows.iter().filter(|(_, object)| object.is_none()).map(|(key, _)| (key.clone(), None)));
        let laid = laid(rows.into_iter().collect(), &changes);
        let plain = sight_of(plain.into_iter().collect(), |_| 0);
        prop_assert_eq!(pages(&laid, &root(), limit, list), pages(&plain, &root(), limit, list));
    }

    #[test]
    fn a_listing_under_way_shows_changes_only_as_far_as_it_has_come_and_everything_once_in_the_end(
        (objects, changes) in cases(), below in "[-/ab]{0,4}", limit in 1usize..7,
    ) {
        let whole = laid(entries(&objects), &changes);
        let below = below.into_bytes();
        let part = Sight { below: Some(below.clone()), ..whole.clone() };
        let mut items = Vec::new();
        let mut cursor = Cursor::start(1, b"");
        for sight in [&part, &whole] {
            loop {
                let shown = walk(sight, &root(), cursor, limit).unwrap();
                items.extend(shown.items);
                cursor = shown.cursor;
                if shown.exhausted {
                    break;
                }
            }
            if sight.below.is_some() {
                prop_assert!(files(&items).iter().all(|key| *key < below));
            }
        }
        let expected = merged(&objects, &changes, asked(objects.keys()));
        let expected: Vec<_> = expected.into_keys().filter(|key| !key.ends_with(b"/")).collect();
        prop_assert_eq!(files(&items), expected);
        let names: BTreeSet<_> = items.iter().map(|item| &item.name).collect();
        prop_assert_eq!(names.len(), items.len(), "{:?}", items);
    }
}
