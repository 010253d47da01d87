//! What the kernel was told of each directory: by this it is found what to take back once it is not so any more.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use penstock_catalog::Item;
use penstock_types::Version;

use crate::kernel::nodes::{hash, mix};

/// Names without a file that are remembered; the kernel is to believe in no more.
const ABSENT_MAX: usize = 65_536;

/// The names of a directory, whatever their order, with what they mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NamesDigest(u64);

impl NamesDigest {
    /// Adds a name that means this version of a file, or a directory.
    pub fn add(&mut self, name: &str, version: Option<&Version>) {
        let meaning = version.map_or(&b"/"[..], |version| version.as_str().as_bytes());
        self.0 = self.0.wrapping_add(mix(hash(&[name.as_bytes(), meaning])));
    }

    /// Adds an item of a listing.
    pub fn add_item(&mut self, name: &str, item: &Item) {
        match item {
            Item::Directory => self.add(name, None),
            Item::File { attributes, .. } => self.add(name, Some(&attributes.version)),
        }
    }

    fn join(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

/// Names that the kernel keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Names {
    /// When the listing was asked for that they are of, milliseconds.
    pub of_ms: i64,
    pub digest: NamesDigest,
}

impl Names {
    /// Whether they may still be believed, where the newest listing is of `newest_ms` and may be for `valid`.
    pub fn are_believed(&self, newest_ms: i64, valid: Duration) -> bool {
        let older_ms = newest_ms.saturating_sub(self.of_ms).max(0);
        valid > Duration::from_millis(older_ms.unsigned_abs())
    }
}

/// A directory whose names are being read, page by page.
struct Reading {
    next: String,
    digest: NamesDigest,
}

/// What the kernel was told of one directory.
#[derive(Default)]
struct Directory {
    /// Nodes that it holds of names in it.
    held: HashSet<u64>,
    /// It has given a name in it to a node of another directory.
    has_moved: bool,
    /// Names that nothing had, each with the moment until which that may be believed, milliseconds.
    absent: HashMap<Arc<str>, u64>,
    reading: Option<Reading>,
    names: Option<Names>,
    /// When the listing was asked for that all this was compared with last.
    compared_ms: Option<i64>,
}

impl Directory {
    fn is_empty(&self) -> bool {
        self.held.is_empty()
            && !self.has_moved
            && self.absent.is_empty()
            && self.reading.is_none()
            && self.names.is_none()
    }
}

/// What is to be compared with a listing.
pub struct Comparable {
    pub held: Vec<u64>,
    pub absent: Vec<Arc<str>>,
}

/// Directories by path. About 16 bytes for each node that the kernel holds.
#[derive(Default)]
pub struct Told(Mutex<Table>);

#[derive(Default)]
struct Table {
    directories: BTreeMap<Arc<str>, Directory>,
    /// Names that nothing had, in all directories.
    absent: usize,
}

impl Table {
    fn at(&mut self, path: &str) -> &mut Directory {
        if !self.directories.contains_key(path) {
            self.directories.insert(path.into(), Directory::default());
        }
        self.directories.get_mut(path).expect("it was just made sure of")
    }

    /// Changes what is known of a directory, where something is.
    fn change<T>(&mut self, path: &str, change: impl FnOnce(&mut Directory) -> T) -> Option<T> {
        let directory = self.directories.get_mut(path)?;
        let absent = directory.absent.len();
        let changed = change(directory);
        self.absent = self.absent + directory.absent.len() - absent;
        if directory.is_empty() {
            self.directories.remove(path);
        }
        Some(changed)
    }

    fn drop_late(&mut self, now_ms: u64) {
        self.directories.retain(|_, directory| {
            directory.absent.retain(|_, until_ms| *until_ms > now_ms);
            !directory.is_empty()
        });
        self.absent = self.directories.values().map(|directory| directory.absent.len()).sum();
    }
}

impl Told {
    /// The kernel holds the node of a name in a directory.
    pub fn hold(&self, directory: &str, node: u64) {
        self.table().at(directory).held.insert(node);
    }

    /// The kernel holds the node no more.
    pub fn release(&self, directory: &str, node: u64) {
        self.table().change(directory, |directory| directory.held.remove(&node));
    }

    /// The kernel has given a name in a directory to a node that it holds: until it holds the directory no more, that may be
    /// the only one there.
    pub fn moved_into(&self, directory: &str) {
        self.table().at(directory).has_moved = true;
    }

    /// The kernel is told until `until_ms` that nothing has a name; whether that may be.
    pub fn is_absent(&self, directory: &str, name: &str, now_ms: u64, until_ms: u64) -> bool {
        let mut table = self.table();
        if table.absent >= ABSENT_MAX {
            table.drop_late(now_ms);
        }
        if table.absent >= ABSENT_MAX {
            return false;
        }
        if table.at(directory).absent.insert(name.into(), until_ms).is_none() {
            table.absent += 1;
        }
        true
    }

    /// The kernel is told that something has a name.
    pub fn is_there(&self, directory: &str, name: &str) {
        let mut table = self.table();
        if table.absent > 0 {
            table.change(directory, |directory| directory.absent.remove(name));
        }
    }

    /// The kernel is given a page of names, which follows `after` and is followed by `next`; the digest of all of them
    /// when that was the last.
    pub fn read(
        &self,
        directory: &str,
        after: Option<&str>,
        next: Option<&str>,
        page: NamesDigest,
    ) -> Option<NamesDigest> {
        let mut table = self.table();
        table.at(directory);
        let read = table.change(directory, |directory| {
            let before = directory.reading.take();
            let digest = match after {
                None => {
                    directory.names = None;
                    page
                }
                // Otherwise somebody else reads it, too, or it has changed.
                Some(after) => before.filter(|reading| reading.next == after)?.digest.join(page),
            };
            directory.reading = next.map(|next| Reading { next: next.to_string(), digest });
            directory.reading.is_none().then_some(digest)
        });
        read.flatten()
    }

    /// The names of a directory that the kernel keeps from now on.
    pub fn keep(&self, directory: &str, names: Names) {
        self.table().at(directory).names = Some(names);
    }

    /// The names of a directory that it keeps.
    pub fn names(&self, directory: &str) -> Option<Names> {
        self.table().directories.get(directory)?.names
    }

    /// The kernel is to read the names of a directory again.
    pub fn drop_names(&self, directory: &str) {
        self.table().change(directory, |directory| (directory.names, directory.reading) = (None, None));
    }

    /// The kernel does not hold a directory any more, and keeps nothing of it.
    pub fn close(&self, directory: &str) {
        self.table().change(directory, |directory| {
            (directory.names, directory.reading, directory.has_moved) = (None, None, false);
            directory.absent.clear();
        });
    }

    /// A name of a directory means something else from now on: whether the kernel was told anything of that directory.
    pub fn change(&self, directory: &str, name: &str) -> bool {
        let told = self.table().change(directory, |directory| {
            (directory.names, directory.reading) = (None, None);
            directory.absent.remove(name);
        });
        told.is_some()
    }

    /// The directories that follow a path, `count` at most, each with the listing that it was compared with.
    pub fn following(&self, path: &str, count: usize) -> Vec<(Arc<str>, Option<i64>)> {
        let table = self.table();
        let following = table.directories.range::<str, _>((Bound::Excluded(path), Bound::Unbounded));
        following.take(count).map(|(path, directory)| (Arc::clone(path), directory.compared_ms)).collect()
    }

    /// How many directories there are.
    pub fn count(&self) -> usize {
        self.table().directories.len()
    }

    /// What the kernel believes of a directory now.
    pub fn comparable(&self, directory: &str, now_ms: u64) -> Comparable {
        let believed = self.table().change(directory, |directory| {
            directory.absent.retain(|_, until_ms| *until_ms > now_ms);
            Comparable {
                held: directory.held.iter().copied().collect(),
                absent: directory.absent.keys().cloned().collect(),
            }
        });
        believed.unwrap_or(Comparable { held: Vec::new(), absent: Vec::new() })
    }

    /// A directory was compared with the listing that was asked for at `listed_ms`.
    pub fn compared(&self, directory: &str, listed_ms: i64) {
        let mut table = self.table();
        if let Entry::Occupied(mut known) = table.directories.entry(directory.into()) {
            known.get_mut().compared_ms = Some(listed_ms);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("no panic while it is noted what the kernel was told")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(names: &[(&str, Option<&str>)]) -> NamesDigest {
        let mut digest = NamesDigest::default();
        for (name, version) in names {
            digest.add(name, version.map(Version::from).as_ref());
        }
        digest
    }

    #[test]
    fn a_digest_is_of_names_and_what_they_mean_and_of_no_order() {
        let (a, b) = (("a", Some("v1")), ("b", None));
        assert_eq!(digest(&[a, b]), digest(&[b, a]));
        assert_eq!(digest(&[a]).join(digest(&[b])), digest(&[a, b]));
        for other in [vec![a], vec![a, ("b", Some("v1"))], vec![("a", Some("v2")), b], vec![a, b, ("c", None)]] {
            assert_ne!(digest(&other), digest(&[a, b]), "{other:?}");
        }
    }

    #[test]
    fn names_are_read_when_every_page_followed_the_one_before() {
        let told = Told::default();
        let (one, two) = (digest(&[("a", None)]), digest(&[("b", None)]));
        assert_eq!(told.read("/d", None, Some("1"), one), None);
        assert_eq!(told.read("/d", Some("1"), None, two), Some(one.join(two)));
        assert_eq!(told.read("/d", Some("1"), None, two), None, "it was read to its end");
        told.read("/d", None, Some("1"), one);
        assert!(told.change("/d", "a"));
        assert_eq!(told.read("/d", Some("1"), None, two), None, "it has changed meanwhile");
        assert_eq!(told.read("/e", None, None, one), Some(one));
    }

    #[test]
    fn a_directory_of_which_nothing_was_told_takes_no_room() {
        let told = Told::default();
        assert!(!told.change("/d", "a"));
        told.hold("/d", 7);
        assert!(told.is_absent("/d", "none", 0, 10));
        assert!(told.change("/d", "a"));
        told.release("/d", 7);
        assert_eq!(told.comparable("/d", 9).absent, ["none".into()]);
        assert!(told.comparable("/d", 10).absent.is_empty());
        assert_eq!(told.count(), 0);
        told.keep("/d", Names { of_ms: 5, digest: NamesDigest::default() });
        assert_eq!(told.count(), 1);
        told.close("/d");
        assert_eq!(told.count(), 0);
    }

    #[test]
    fn a_directory_that_a_name_was_moved_into_is_told_of_changes_until_it_is_closed() {
        let told = Told::default();
        told.moved_into("/d");
        assert!(told.change("/d", "a"));
        assert!(told.change("/d", "a"), "there may be others");
        told.close("/d");
        assert!(!told.change("/d", "a"));
        assert_eq!(told.count(), 0);
    }

    #[test]
    fn no_more_absent_names_are_believed_in_than_are_remembered() {
        let told = Told::default();
        for number in 0..ABSENT_MAX {
            assert!(told.is_absent("/d", &number.to_string(), 0, 10));
        }
        assert!(!told.is_absent("/d", "one more", 9, 20));
        assert!(told.is_absent("/d", "one more", 10, 20), "the others are not believed any more");
        told.is_there("/d", "one more");
        assert_eq!(told.count(), 0);
    }

    #[test]
    fn names_are_believed_as_long_as_their_own_listing() {
        let names = Names { of_ms: 1_000, digest: NamesDigest::default() };
        let left = Duration::from_secs(5);
        assert!(names.are_believed(1_000, left) && names.are_believed(5_999, left) && names.are_believed(0, left));
        assert!(!names.are_believed(6_000, left));
    }
}
