//! Sets of files, as rows: what a manifest says is laid over what a source says of its directory, and the keys that
//! hold bytes and manifests are hidden. A manifest never changes; whether it is there is asked as often as whether a
//! name is.

mod find;
mod layered;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use penstock_types::{Manifest, ObjectAttributes, ObjectKey, SetFile, Version, data_prefix};

use crate::timeline::Moment;

pub(crate) use find::is_hidden;
pub(crate) use layered::{Layered, hide};

/// Files of sets that one scope holds in memory; beyond that manifests are read again when they are met.
const FILES_MAX: usize = 2_000_000;
/// Directories of which it is remembered what sets are in them.
const DIRECTORIES_MAX: usize = 16_384;

/// A set whose manifest was read.
#[derive(Debug)]
pub struct SetPlace {
    /// What the keys begin with that its files are shown under.
    pub root: ObjectKey,
    /// The directory that it is in, as a key with its `/`.
    pub directory: ObjectKey,
    /// What the keys of its bytes begin with.
    pub data: ObjectKey,
    /// Key of the manifest.
    pub key: ObjectKey,
    /// Attributes of the manifest.
    pub attributes: ObjectAttributes,
    /// What it says.
    pub manifest: Manifest,
    by_path: BTreeMap<Bytes, usize>,
}

/// What manifests are in a directory, and since when that is known.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) sent: Moment,
    pub(crate) names: BTreeMap<String, ObjectAttributes>,
}

/// The sets of one scope that are known.
#[derive(Default)]
pub(crate) struct Sets {
    count: AtomicUsize,
    /// Grows with everything that changes.
    changes: AtomicU64,
    /// Grows with every set that is shown.
    shown: AtomicU64,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    by_root: BTreeMap<Bytes, Arc<SetPlace>>,
    files: usize,
    directories: HashMap<Vec<u8>, Known>,
    /// Manifests that a listing has and that were not read yet.
    met: BTreeMap<Vec<u8>, ObjectAttributes>,
    /// Manifests that cannot be read.
    broken: HashMap<Vec<u8>, Version>,
}

impl SetPlace {
    /// The set of a manifest.
    pub(crate) fn new(directory: &[u8], key: &[u8], attributes: ObjectAttributes, manifest: Manifest) -> Arc<Self> {
        let bytes = |text: &SetFile| Bytes::copy_from_slice(text.path.as_bytes());
        let by_path = manifest.files.iter().enumerate().map(|(at, file)| (bytes(file), at)).collect();
        Arc::new(Self {
            root: ObjectKey::new([directory, manifest.name.as_bytes(), b"/"].concat()),
            directory: ObjectKey::new(directory.to_vec()),
            data: ObjectKey::new(data_prefix(directory, &manifest.id)),
            key: ObjectKey::new(key.to_vec()),
            attributes,
            manifest,
            by_path,
        })
    }

    /// The file of a path in the set.
    pub fn file(&self, path: &[u8]) -> Option<&SetFile> {
        self.by_path.get(path).map(|at| &self.manifest.files[*at])
    }

    fn next(&self, from: Bound<&[u8]>) -> Option<(&Bytes, &SetFile)> {
        let (path, at) = self.by_path.range::<[u8], _>((from, Bound::Unbounded)).next()?;
        Some((path, &self.manifest.files[*at]))
    }
}

impl Sets {
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(crate) fn shown(&self) -> u64 {
        self.shown.load(Ordering::Acquire)
    }

    /// The set that a key is in, or whose directory it is.
    pub(crate) fn holding(&self, key: &[u8]) -> Option<Arc<SetPlace>> {
        if self.is_empty() {
            return None;
        }
        let state = self.state();
        let slashes = key.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at + 1);
        let mut above = slashes.filter_map(|end| state.by_root.get(&key[..end]).cloned());
        above.next().or_else(|| state.by_root.get(&[key, b"/"].concat()[..]).cloned())
    }

    /// The sets whose keys begin with `prefix`, in order.
    pub(crate) fn below(&self, prefix: &[u8]) -> Vec<Arc<SetPlace>> {
        let state = self.state();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let below = state.by_root.range::<[u8], _>(from).take_while(|(root, _)| root.starts_with(prefix));
        below.map(|(_, set)| Arc::clone(set)).collect()
    }

    /// The first file of a set whose key is not less than `from`; with `inclusive` false, that is greater.
    fn next<T>(&self, from: &[u8], inclusive: bool, told: impl Fn(Bytes, &SetPlace, &SetFile) -> T) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let key = |set: &SetPlace, path: &Bytes| Bytes::from([set.root.as_bytes(), path].concat());
        let state = self.state();
        let before = state.by_root.range::<[u8], _>((Bound::Unbounded, Bound::Included(from))).next_back();
        if let Some((root, set)) = before
            && let Some(path) = from.strip_prefix(&root[..])
        {
            let from = if inclusive { Bound::Included(path) } else { Bound::Excluded(path) };
            if let Some((path, file)) = set.next(from) {
                return Some(told(key(set, path), set, file));
            }
        }
        let after = (Bound::Excluded(from), Bound::Unbounded);
        let (_, set) = state.by_root.range::<[u8], _>(after).next()?;
        let (path, file) = set.next(Bound::Unbounded)?;
        Some(told(key(set, path), set, file))
    }

    /// What is known of the manifests in a directory.
    pub(crate) fn known(&self, directory: &[u8]) -> Option<Moment> {
        self.state().directories.get(directory).map(|known| known.sent)
    }

    /// The manifest of a name of a directory that is there and was not read.
    pub(crate) fn unread(&self, directory: &[u8], name: &str) -> Option<ObjectAttributes> {
        let state = self.state();
        let attributes = state.directories.get(directory)?.names.get(name)?;
        let key = penstock_types::manifest_key(directory, name);
        let root = [directory, name.as_bytes(), b"/"].concat();
        let is_read = state.by_root.get(&root[..]).is_some_and(|set| set.attributes.version == attributes.version);
        let is_broken = state.broken.get(&key) == Some(&attributes.version);
        (!is_read && !is_broken).then(|| attributes.clone())
    }

    /// Notes which manifests are in a directory, unless something changed since `changes`; sets that are gone go.
    pub(crate) fn learn(&self, directory: &[u8], known: Known, changes: u64) -> bool {
        let mut state = self.state_mut();
        if self.changes() != changes {
            return false;
        }
        if state.directories.len() >= DIRECTORIES_MAX {
            state.directories.clear();
        }
        let is_gone = |set: &SetPlace| {
            set.directory.as_bytes() == directory
                && known.names.get(&set.manifest.name).is_none_or(|there| there.version != set.attributes.version)
        };
        let gone: Vec<Bytes> =
            state.by_root.iter().filter(|(_, set)| is_gone(set)).map(|(root, _)| root.clone()).collect();
        gone.iter().for_each(|root| self.drop_root(&mut state, root));
        state.directories.insert(directory.to_vec(), known);
        true
    }

    /// What is in a directory was changed here, or is to be asked again.
    pub(crate) fn forget(&self, directory: &[u8]) {
        let mut state = self.state_mut();
        state.directories.remove(directory);
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// The set of a name in a directory is gone.
    pub(crate) fn remove(&self, directory: &[u8], name: &str) {
        let mut state = self.state_mut();
        let root = [directory, name.as_bytes(), b"/"].concat();
        self.drop_root(&mut state, &root);
        state.directories.remove(directory);
        state.met.remove(&penstock_types::manifest_key(directory, name));
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Shows a set.
    pub(crate) fn put(&self, set: Arc<SetPlace>) {
        let mut state = self.state_mut();
        if state.files + set.manifest.files.len() > FILES_MAX {
            state.by_root.clear();
            state.files = 0;
        }
        let root = Bytes::copy_from_slice(set.root.as_bytes());
        self.drop_root(&mut state, &root);
        state.met.remove(set.key.as_bytes());
        state.files += set.manifest.files.len();
        state.by_root.insert(root, set);
        self.count.store(state.by_root.len(), Ordering::Release);
        self.shown.fetch_add(1, Ordering::AcqRel);
    }

    /// A manifest cannot be read and never will be.
    pub(crate) fn break_off(&self, key: &[u8], version: &Version) {
        let mut state = self.state_mut();
        state.met.remove(key);
        state.broken.insert(key.to_vec(), version.clone());
    }

    /// A listing that was asked for at `sent` has a manifest.
    fn meet(&self, key: &[u8], attributes: &ObjectAttributes, sent: Moment) {
        let Some((directory, name)) = penstock_types::set_of_manifest(key) else { return };
        let newer = self.state().directories.get(directory).filter(|known| known.sent > sent).cloned();
        let attributes = match &newer {
            // What the listing says is out of date.
            Some(known) => match known.names.get(name) {
                Some(attributes) => attributes,
                None => return,
            },
            None => attributes,
        };
        let root = [directory, name.as_bytes(), b"/"].concat();
        let is_known = |state: &State| {
            state.by_root.get(&root[..]).is_some_and(|set| set.attributes.version == attributes.version)
                || state.broken.get(key) == Some(&attributes.version)
        };
        if !is_known(&self.state()) {
            self.state_mut().met.insert(key.to_vec(), attributes.clone());
        }
    }

    /// Manifests with this prefix that were met and not read.
    pub(crate) fn met_below(&self, prefix: &[u8]) -> Vec<(Vec<u8>, ObjectAttributes)> {
        let state = self.state();
        let below = state.met.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        let below = below.take_while(|(key, _)| key.starts_with(prefix));
        below.map(|(key, attributes)| (key.clone(), attributes.clone())).collect()
    }

    /// Manifests that were met are not asked for any more.
    pub(crate) fn unmeet(&self, key: &[u8]) {
        self.state_mut().met.remove(key);
    }

    fn drop_root(&self, state: &mut State, root: &[u8]) {
        if let Some(dropped) = state.by_root.remove(root) {
            state.files -= dropped.manifest.files.len();
            self.count.store(state.by_root.len(), Ordering::Release);
        }
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("no panic while sets are held")
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("no panic while sets are held")
    }
}
