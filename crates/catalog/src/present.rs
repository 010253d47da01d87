//! Entries of a listing as names: of one directory, or of a tree with its directories. A page knows of the one before
//! only what its cursor says.

use penstock_types::{ObjectKey, Result};

use crate::chunk::shared_length;
use crate::cursor::Cursor;
use crate::keymap::{self, PIECE, Shape};
use crate::scan::{Seen, Sight, Step, scan};
use crate::{Item, NamedItem};

/// A directory as it is to be shown.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    /// What every full key in it begins with.
    pub(crate) prefix: Vec<u8>,
    /// Length of the attached prefix.
    pub(crate) attached: usize,
    /// Its path below the attached prefix.
    pub(crate) path: String,
}

/// A part of what is shown.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) items: Vec<NamedItem>,
    /// Where to go on.
    pub(crate) cursor: Cursor,
    /// Everything that can be read now has been shown.
    pub(crate) exhausted: bool,
}

/// The names in a directory, `limit` at most.
pub(crate) fn list(sight: &Sight, directory: &Directory, cursor: Cursor, limit: usize) -> Result<Shown> {
    let slash = directory.prefix.iter().rposition(|&byte| byte == b'/');
    let base = slash.map_or(0, |slash| slash + 1).max(directory.attached);
    Page::collect(sight, cursor, limit, |page, seen| list_entry(directory, base, page, seen))
}

/// Everything below a directory, parents first, `limit` at most; names are paths below it.
pub(crate) fn walk(sight: &Sight, directory: &Directory, cursor: Cursor, limit: usize) -> Result<Shown> {
    let mut walker = Walker { directory, parent: None, path: String::new() };
    Page::collect(sight, cursor, limit, |page, seen| walker.entry(page, seen))
}

/// What has been collected, and how far that is.
struct Page {
    cursor: Cursor,
    items: Vec<NamedItem>,
    limit: usize,
    full: bool,
}

impl Page {
    fn collect(
        sight: &Sight,
        cursor: Cursor,
        limit: usize,
        mut entry: impl FnMut(&mut Self, &Seen<'_>) -> Result<Step>,
    ) -> Result<Shown> {
        let (from, inclusive) = (cursor.key.clone(), cursor.inclusive);
        let cursor = Cursor { generation: sight.generation, ..cursor };
        let mut page = Self { cursor, items: Vec::with_capacity(limit.min(1024)), limit, full: false };
        scan(sight, &from, inclusive, |seen| if page.is_full() { Ok(Step::Stop) } else { entry(&mut page, seen) })?;
        Ok(Shown { items: page.items, cursor: page.cursor, exhausted: !page.full })
    }

    /// Asked before something is added.
    fn is_full(&mut self) -> bool {
        self.full = self.items.len() >= self.limit;
        self.full
    }

    fn push(&mut self, name: String, item: Item) {
        self.items.push(NamedItem { name, item });
    }

    /// Moves to an entry. What was shown as a directory and is no beginning of its key will not come again.
    fn move_to(&mut self, key: &[u8], inclusive: bool) {
        if !self.cursor.shown.is_empty() {
            let shared = shared_length(&self.cursor.key, key);
            self.cursor.shown.retain(|&length| length <= shared);
        }
        self.cursor.key.clear();
        self.cursor.key.extend_from_slice(key);
        self.cursor.inclusive = inclusive;
    }

    /// Notes that the first `length` bytes of the key are shown as a directory; `false` when they were already.
    fn show(&mut self, length: usize) -> bool {
        match self.cursor.shown.binary_search(&length) {
            Ok(_) => false,
            Err(at) => {
                self.cursor.shown.insert(at, length);
                true
            }
        }
    }
}

/// Shows one entry of a directory, whose names begin at `base` in a key.
fn list_entry(directory: &Directory, base: usize, page: &mut Page, seen: &Seen<'_>) -> Result<Step> {
    let key = &seen.key;
    if !key.starts_with(&directory.prefix) {
        return Ok(Step::Stop);
    }
    let tail = &key[base..];
    let slash = tail.iter().position(|&byte| byte == b'/');
    let component = &tail[..slash.unwrap_or(tail.len())];
    let shape = if slash.is_none() && seen.is_beside() { Shape::Beside } else { Shape::Plain };
    // Everything of a directory is passed over; `0` follows `/`.
    let after = slash.map(|slash| [&key[..base + slash], b"0"].concat());
    page.move_to(after.as_deref().unwrap_or(key), after.is_some());
    let step = after.map_or(Step::Next, Step::Seek);
    if slash.is_none() && seen.is_marker()? {
        return Ok(step);
    }
    let pieces = directory.prefix.len().saturating_sub(base) / PIECE;
    let mut names = String::with_capacity(component.len());
    keymap::push_component(component, shape, &mut names);
    let mut rest = names.split('/').skip(pieces);
    let in_pieces = names.contains('/');
    match (rest.next(), rest.next()) {
        (Some(name), Some(_)) if page.show(base + (pieces + 1) * PIECE) => page.push(name.into(), Item::Directory),
        (Some(name), None) if in_pieces || pieces == 0 => {
            let item = item_of(seen, slash.is_some())?;
            let name = if in_pieces { name.into() } else { names };
            page.push(name, item);
        }
        _ => {}
    }
    Ok(step)
}

/// Shows a tree; remembers the path of the last entry's directory.
struct Walker<'a> {
    directory: &'a Directory,
    parent: Option<Vec<u8>>,
    path: String,
}

impl Walker<'_> {
    fn entry(&mut self, page: &mut Page, seen: &Seen<'_>) -> Result<Step> {
        let key = &seen.key;
        if !key.starts_with(&self.directory.prefix) {
            return Ok(Step::Stop);
        }
        let shape = if seen.is_beside() { Shape::Beside } else { Shape::Plain };
        let slash = key.iter().rposition(|&byte| byte == b'/');
        let base = slash.map_or(0, |slash| slash + 1).max(self.directory.attached);
        let component = &key[base..];
        let long = keymap::is_long(component, shape);
        if long || self.parent.as_deref() != Some(&key[..base]) {
            return self.entry_elsewhere(page, seen, shape, (!long).then_some(base));
        }
        page.move_to(key, false);
        if !seen.is_marker()? {
            let mut name = String::with_capacity(self.path.len() + component.len());
            name.push_str(&self.path);
            keymap::push_component(component, shape, &mut name);
            page.push(name, item_of(seen, false)?);
        }
        Ok(Step::Next)
    }

    /// Shows an entry that is not in the directory of the one before: new directories on its way come first.
    fn entry_elsewhere(&mut self, page: &mut Page, seen: &Seen<'_>, shape: Shape, base: Option<usize>) -> Result<Step> {
        let (key, attached) = (&seen.key, self.directory.attached);
        let path = keymap::encode(&key[attached..], shape);
        let root = &self.directory.path;
        let below = if root.is_empty() {
            Some(path.as_str())
        } else {
            path.strip_prefix(root.as_str()).and_then(|rest| rest.strip_prefix('/'))
        };
        let Some(below) = below else {
            page.move_to(key, false);
            return Ok(Step::Next);
        };
        page.move_to(key, true);
        let start = path.len() - below.len();
        for (slash, _) in below.match_indices('/') {
            let place = keymap::decode(&path[..start + slash]).and_then(|place| place.directory_prefix());
            let length = attached + place.map_or(0, |prefix| prefix.len());
            if page.cursor.shown.binary_search(&length).is_err() {
                if page.is_full() {
                    return Ok(Step::Stop);
                }
                page.show(length);
                page.push(below[..slash].into(), Item::Directory);
            }
        }
        if !seen.is_marker()? {
            if page.is_full() {
                return Ok(Step::Stop);
            }
            page.push(below.into(), item_of(seen, false)?);
        }
        page.move_to(key, false);
        self.parent = base.map(|base| key[..base].to_vec());
        self.path = below[..below.rfind('/').map_or(0, |slash| slash + 1)].into();
        Ok(Step::Next)
    }
}

fn item_of(seen: &Seen<'_>, directory: bool) -> Result<Item> {
    match seen.attributes()? {
        Some(attributes) if !directory => {
            let key = seen.at.clone().unwrap_or_else(|| ObjectKey::new(seen.key.clone()));
            Ok(Item::File { key, attributes })
        }
        _ => Ok(Item::Directory),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use penstock_types::ObjectAttributes;
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::{Entry, pack};
    use crate::keymap::Place;
    use crate::shadows::Shadows;
    use crate::store::{Change, Store};

    /// A tree listing of these keys, in chunks of three; keys that end in `/` have no content.
    fn sight(keys: &BTreeSet<Vec<u8>>) -> Sight {
        let entry = |key: &Vec<u8>| {
            let attributes =
                ObjectAttributes { size: u64::from(!key.ends_with(b"/")), modified_ms: 0, version: "v".into() };
            (key.clone(), Some(attributes))
        };
        sight_of(keys.iter().map(entry).collect(), |_| 0)
    }

    /// A listing of these entries, sorted by key, in chunks of three, each asked for when `sent` says for its number.
    pub(crate) fn sight_of(entries: Vec<(Vec<u8>, Option<ObjectAttributes>)>, sent: fn(usize) -> i64) -> Sight {
        let store = Store::in_memory(0).unwrap();
        let mut beside = BTreeSet::new();
        let mut shadows = Shadows::default();
        for (key, attributes) in &entries {
            shadows.take(key, attributes.is_some(), |object| {
                beside.insert(object.to_vec());
            });
        }
        let entry = |(key, attributes): (Vec<u8>, Option<ObjectAttributes>)| {
            let beside = beside.contains(&key);
            Entry { key, attributes, beside }
        };
        let entries: Vec<Entry> = entries.into_iter().map(entry).collect();
        let chunks = entries.chunks(3).enumerate();
        let changes = chunks.map(|(number, chunk)| Change::Chunk {
            generation: 1,
            first: chunk[0].key.clone(),
            row: pack(chunk, sent(number)),
        });
        store.apply(changes.collect()).unwrap();
        Sight { reader: Arc::new(store.reader().unwrap()), generation: 1, sent: 0, below: None, overlay: None }
    }

    pub(crate) fn pages(
        sight: &Sight,
        directory: &Directory,
        limit: usize,
        show: fn(&Sight, &Directory, Cursor, usize) -> Result<Shown>,
    ) -> Vec<NamedItem> {
        let mut cursor = Cursor::start(1, &directory.prefix);
        let mut items = Vec::new();
        loop {
            let shown = show(sight, directory, cursor, limit).unwrap();
            assert!(shown.items.len() <= limit);
            items.extend(shown.items);
            if shown.exhausted {
                return items;
            }
            cursor = Cursor::parse(&shown.cursor.text()).unwrap();
        }
    }

    pub(crate) fn root() -> Directory {
        Directory { prefix: Vec::new(), attached: 0, path: String::new() }
    }

    /// The walk by one listing a directory.
    fn walk_by_lists(sight: &Sight, directory: &Directory, limit: usize, found: &mut Vec<NamedItem>) {
        for item in pages(sight, directory, limit, list) {
            let path =
                if directory.path.is_empty() { item.name.clone() } else { format!("{}/{}", directory.path, item.name) };
            found.push(NamedItem { name: path.clone(), item: item.item.clone() });
            if item.item == Item::Directory {
                let prefix = keymap::decode(&path).unwrap().directory_prefix().unwrap();
                walk_by_lists(sight, &Directory { prefix, attached: 0, path }, limit, found);
            }
        }
    }

    pub(crate) fn keys() -> impl Strategy<Value = BTreeSet<Vec<u8>>> {
        let part = prop_oneof![
            4 => "[ab]".prop_map(String::into_bytes),
            3 => Just(b"/".to_vec()),
            1 => Just(b"-".to_vec()),
            1 => Just(b"@%".to_vec()),
            1 => Just(vec![0xff]),
            1 => Just(vec![b'n'; 80]),
            1 => Just(vec![b'n'; 240]),
        ];
        let key = proptest::collection::vec(part, 1..7).prop_map(|parts| parts.concat());
        proptest::collection::btree_set(key, 0..30)
    }

    proptest! {
        #[test]
        fn a_walk_shows_every_object_once_with_its_parents_before_it(keys in keys(), limit in 1usize..7) {
            let sight = sight(&keys);
            let items = pages(&sight, &root(), limit, walk);
            let mut seen = BTreeSet::new();
            for NamedItem { name, item } in &items {
                if let Some((parent, _)) = name.rsplit_once('/') {
                    prop_assert!(seen.contains(parent), "{} before its parent", name);
                }
                prop_assert!(seen.insert(name.clone()), "{} twice", name);
                match (item, keymap::decode(name)) {
                    (Item::File { key, .. }, Some(Place::Name(named) | Place::Beside(named))) => prop_assert_eq!(key.as_bytes(), named),
                    (Item::Directory, Some(Place::Name(_) | Place::Piece(_))) => {}
                    other => prop_assert!(false, "{} is {:?}", name, other),
                }
            }
            let files = items.iter().filter_map(|item| match &item.item {
                Item::File { key, .. } => Some(key.as_bytes().to_vec()),
                Item::Directory => None,
            });
            let expected: BTreeSet<_> = keys.iter().filter(|key| !key.ends_with(b"/")).cloned().collect();
            prop_assert_eq!(files.collect::<BTreeSet<_>>(), expected);
            for marker in keys.iter().filter(|key| key.ends_with(b"/")) {
                let directory = keymap::encode(&marker[..marker.len() - 1], Shape::Plain);
                prop_assert!(seen.contains(&directory), "{} is not shown", directory);
            }
        }

        #[test]
        fn a_walk_shows_what_the_lists_of_its_directories_show(keys in keys(), limit in 1usize..7) {
            let sight = sight(&keys);
            let mut by_lists = Vec::new();
            walk_by_lists(&sight, &root(), limit, &mut by_lists);
            let mut walked = pages(&sight, &root(), limit, walk);
            walked.sort_by(|a, b| a.name.cmp(&b.name));
            by_lists.sort_by(|a, b| a.name.cmp(&b.name));
            prop_assert_eq!(walked, by_lists);
        }

        #[test]
        fn a_walk_of_a_directory_is_the_part_of_the_whole_walk_below_it(keys in keys(), limit in 1usize..7) {
            let sight = sight(&keys);
            let whole = pages(&sight, &root(), 100, walk);
            for directory in whole.iter().filter(|item| item.item == Item::Directory) {
                let prefix = keymap::decode(&directory.name).unwrap().directory_prefix().unwrap();
                let below = Directory { prefix, attached: 0, path: directory.name.clone() };
                let expected: Vec<NamedItem> = whole
                    .iter()
                    .filter_map(|item| {
                        let name = item.name.strip_prefix(&directory.name)?.strip_prefix('/')?;
                        Some(NamedItem { name: name.into(), item: item.item.clone() })
                    })
                    .collect();
                prop_assert_eq!(pages(&sight, &below, limit, walk), expected);
            }
        }
    }
}
