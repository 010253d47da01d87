//! The ordered index of one bucket, and listing it: each page costs its own length, however large the bucket is.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::object::Object;

/// Keys in byte order. Keys come from the protocol as text; their order is that of their bytes.
pub type Index = BTreeMap<Box<[u8]>, Arc<Object>>;

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only keys that start with it.
    pub prefix: Vec<u8>,
    /// Roll keys up at the next occurrence behind the prefix; empty does not.
    pub delimiter: Vec<u8>,
    /// Only keys and common prefixes greater than this; a common prefix counts as its own text.
    pub after: Vec<u8>,
    /// Most keys and common prefixes together.
    pub limit: usize,
}

/// One row of a listing.
#[derive(Clone, Debug)]
pub enum Row {
    /// An object.
    Object(Box<[u8]>, Arc<Object>),
    /// What several keys have in common.
    Prefix(Vec<u8>),
}

impl Row {
    /// The text by which the row is ordered.
    pub fn text(&self) -> &[u8] {
        match self {
            Row::Object(key, _) => key,
            Row::Prefix(prefix) => prefix,
        }
    }
}

/// Rows in order.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// At most `limit` rows.
    pub rows: Vec<Row>,
    /// Whether there is more.
    pub truncated: bool,
}

/// Lists one page. Whole common prefixes are skipped by seeking behind them.
pub fn list(index: &Index, query: &Query) -> Page {
    let mut page = Page::default();
    if query.limit == 0 {
        return page;
    }
    let mut from = first_bound(query);
    loop {
        let range = index.range::<[u8], _>((as_slice(&from), Bound::Unbounded));
        let mut seek = None;
        for (key, object) in range {
            if !key.starts_with(&query.prefix) {
                return page;
            }
            let row = match common_prefix(key, query) {
                None => Row::Object(key.clone(), object.clone()),
                Some(common) => {
                    seek = Some(prefix_end(common));
                    Row::Prefix(common.to_vec())
                }
            };
            if row.text() > query.after.as_slice() || query.after.is_empty() {
                if page.rows.len() == query.limit {
                    page.truncated = true;
                    return page;
                }
                page.rows.push(row);
            }
            if seek.is_some() {
                break;
            }
        }
        match seek {
            Some(Some(end)) => from = Bound::Included(end),
            Some(None) | None => return page,
        }
    }
}

fn first_bound(query: &Query) -> Bound<Vec<u8>> {
    if query.after.is_empty() || query.after < query.prefix {
        Bound::Included(query.prefix.clone())
    } else {
        Bound::Excluded(query.after.clone())
    }
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    match bound {
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}

fn common_prefix<'a>(key: &'a [u8], query: &Query) -> Option<&'a [u8]> {
    let rest = &key[query.prefix.len()..];
    let length = query.delimiter.len();
    if length == 0 {
        return None;
    }
    let position = rest.windows(length).position(|window| window == query.delimiter)?;
    Some(&key[..query.prefix.len() + position + length])
}

/// The smallest text greater than everything that starts with `prefix`.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn index_of(keys: &BTreeSet<String>) -> Index {
        let object = Arc::new(Object::default());
        keys.iter().map(|key| (key.as_bytes().into(), object.clone())).collect()
    }

    /// Everything, rolled up, filtered: without any cleverness.
    fn model(keys: &BTreeSet<String>, query: &Query) -> Vec<Vec<u8>> {
        let mut rows = BTreeSet::new();
        for key in keys.iter().map(String::as_bytes).filter(|key| key.starts_with(&query.prefix)) {
            let text = common_prefix(key, query).unwrap_or(key).to_vec();
            if query.after.is_empty() || text > query.after {
                rows.insert(text);
            }
        }
        rows.into_iter().collect()
    }

    fn key() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "/", "//", ".", "..", "\u{10ffff}", "é"]), 1..6)
            .prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn listing_page_by_page_gives_what_a_naive_model_gives(
            keys in prop::collection::btree_set(key(), 0..40),
            prefix in prop::option::of(key()),
            after in prop::option::of(key()),
            delimiter in prop::sample::select(vec!["", "/", "//", "a"]),
            limit in 1_usize..5,
        ) {
            let index = index_of(&keys);
            let mut query = Query {
                prefix: prefix.unwrap_or_default().into_bytes(),
                delimiter: delimiter.into(),
                after: after.unwrap_or_default().into_bytes(),
                limit,
            };
            let expected = model(&keys, &query);
            let mut seen: Vec<Vec<u8>> = Vec::new();
            loop {
                let page = list(&index, &query);
                prop_assert!(page.rows.len() <= limit);
                seen.extend(page.rows.iter().map(|row| row.text().to_vec()));
                if !page.truncated {
                    break;
                }
                prop_assert_eq!(page.rows.len(), limit);
                query.after = page.rows.last().unwrap().text().to_vec();
            }
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn a_key_beside_a_prefix_of_the_same_name_is_a_row_of_its_own() {
        let keys = ["a", "a/b", "a/c", "c//d", "c/e"].map(String::from).into();
        let query = Query { delimiter: b"/".to_vec(), limit: 10, ..Query::default() };
        let texts: Vec<_> = list(&index_of(&keys), &query).rows.iter().map(|row| row.text().to_vec()).collect();
        assert_eq!(texts, [&b"a"[..], b"a/", b"c/"]);
        let below = Query { prefix: b"c/".to_vec(), ..query };
        let texts: Vec<_> = list(&index_of(&keys), &below).rows.iter().map(|row| row.text().to_vec()).collect();
        assert_eq!(texts, [&b"c//"[..], b"c/e"]);
    }
}
