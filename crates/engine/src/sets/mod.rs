//! Sets of files that appear as a whole. Their files are staged and uploaded like any other, under hidden keys; a
//! manifest makes them appear: here when it is staged, everywhere when the source has it, which is after all of them.
//!
//! ```text
//! begin ─▶ files (hidden) ─ publish ─▶ manifest staged: seen here ─▶ every file uploaded ─▶ manifest uploaded: seen
//!            └ discard ─▶ nothing                                                            everywhere
//! ```

mod bring;
mod look;
mod publish;
mod remove;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use penstock_stage::{Change, Content, OperationId, Pin, Stage, Target};
use penstock_types::{
    Error, ErrorKind, ObjectKey, Result, TreePath, Version, data_prefix, is_set_name, is_set_path, manifest_key,
    set_of_data, set_of_manifest,
};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::write::{Place, base_of, check_key};

pub use look::{SetFiles, SetState, SetStatus};

/// Metadata of a manifest: the id of its set.
pub(crate) const SET_METADATA: &str = "penstock-set";
/// Longest name: with the mark of a manifest it has to fit a file name.
const NAME_BYTES_MAX: usize = 200;
/// Sets that are being written which one node remembers: of others it asks the source.
const OPEN_MAX: usize = 1024;
/// It is looked at most so often whether the files of a set are in the source.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes that are summed at a time.
const SUMMED_BYTES: usize = 1 << 20;

/// A set that is being written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetRef {
    /// Where it will be.
    pub root: String,
    /// Names the place of its bytes.
    pub id: String,
}

/// What this node knows of the sets that are written through it.
#[derive(Default)]
pub(crate) struct Sets(Mutex<State>);

#[derive(Default)]
struct State {
    open: HashMap<String, Open>,
    /// Manifests that wait for the files of their sets.
    waiting: HashMap<OperationId, Waiting>,
    /// Directories that manifests are being removed from in the source: bytes go after those.
    removing: HashMap<(Arc<str>, Vec<u8>), usize>,
    looked: Option<Duration>,
}

#[derive(Default)]
struct Open {
    /// It was begun here, and everything written into it is known.
    is_whole: bool,
    sums: BTreeMap<String, Sum>,
    pins: Vec<Pin>,
}

struct Sum {
    version: Version,
    task: JoinHandle<Result<u32>>,
}

struct Waiting {
    scope: Arc<str>,
    data: Vec<u8>,
    is_ready: bool,
    /// Its files are told of by the stage until the manifest is in the source.
    pins: Vec<Pin>,
}

impl Sets {
    /// Whether a change is not to be brought yet. Takes no lock of the stage.
    pub(crate) fn holds(&self, change: &Change) -> bool {
        let target = change.target();
        let key = target.key.as_bytes();
        if let (Content::Put { metadata, .. }, Some((directory, _))) = (change.content(), set_of_manifest(key)) {
            let id = metadata.iter().find(|(name, _)| name == SET_METADATA).map(|(_, id)| id.as_str());
            let Some(id) = id else { return false };
            let waiting = || Waiting {
                scope: Arc::clone(&target.scope),
                data: data_prefix(directory, id),
                is_ready: false,
                pins: Vec::new(),
            };
            return !self.state().waiting.entry(change.operation()).or_insert_with(waiting).is_ready;
        }
        match (change.content(), set_of_data(key)) {
            (Content::Remove, Some((directory, _, _))) => {
                self.state().removing.contains_key(&(Arc::clone(&target.scope), directory.to_vec()))
            }
            _ => false,
        }
    }

    /// Looks which manifests wait for nothing any more.
    pub(crate) fn look(&self, stage: &Stage, now: Duration) {
        let waiting: Vec<(OperationId, Arc<str>, Vec<u8>)> = {
            let mut state = self.state();
            if state.looked.is_some_and(|looked| now.saturating_sub(looked) < LOOK) {
                return;
            }
            state.looked = Some(now);
            let waiting = state.waiting.iter().filter(|(_, one)| !one.is_ready);
            waiting.map(|(operation, one)| (*operation, Arc::clone(&one.scope), one.data.clone())).collect()
        };
        for (operation, scope, data) in waiting {
            if stage.pending_below(&scope, &data).is_empty()
                && let Some(one) = self.state().waiting.get_mut(&operation)
            {
                one.is_ready = true;
            }
        }
    }

    /// Nothing waits for a manifest any more.
    pub(crate) fn done(&self, change: &Change) {
        self.state().waiting.remove(&change.operation());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while sets are held")
    }
}

/// Where a set is, or will be.
pub(super) struct SetAt {
    attached: Arc<Attached>,
    /// The key of the directory that it is in, with its `/`.
    directory: Vec<u8>,
    name: String,
}

impl SetAt {
    fn target(&self, key: Vec<u8>) -> Target {
        let (scope, attachment) = (Arc::clone(&self.attached.scope), self.attached.spec.id.clone());
        Target { scope, attachment, key: ObjectKey::new(key) }
    }

    fn manifest(&self) -> Target {
        self.target(manifest_key(&self.directory, &self.name))
    }

    fn data(&self, id: &str) -> Vec<u8> {
        data_prefix(&self.directory, id)
    }
}

impl Engine {
    /// Where a set with this path is kept, and that it can be.
    pub(super) fn set_at(&self, path: &TreePath) -> Result<SetAt> {
        let refuse = |reason: &str, advice: &str| {
            Err(Error::new(ErrorKind::InvalidInput, format!("commit {path}"), reason).advise(advice))
        };
        let (attached, inner) = self.writable_at(path)?;
        let name = path.name();
        if !is_set_name(name) || name.len() > NAME_BYTES_MAX {
            return refuse("no set can have that name", "begin it with a letter or a digit, and keep it short");
        }
        let key = check_key(path, &attached, attached.view.key_of(&inner))?;
        match key.as_bytes().strip_suffix(name.as_bytes()) {
            Some(directory) if directory.is_empty() || directory.ends_with(b"/") => {
                Ok(SetAt { directory: directory.to_vec(), name: name.to_owned(), attached })
            }
            _ => refuse("no set can have that name", "choose a plainer name"),
        }
    }

    /// Where a file of a set is written to.
    pub(crate) fn place_in_set(&self, path: &TreePath, set: &SetRef, exclusive: bool) -> Result<Place> {
        let root = TreePath::parse(&set.root)?;
        let at = self.set_at(&root)?;
        let refuse = |reason: &str| Err(Error::new(ErrorKind::InvalidInput, format!("write {path}"), reason));
        let Some(inner) = path.below(&root).filter(|inner| is_set_path(inner)) else {
            return refuse("it is no path in the set");
        };
        check_id(&set.id)?;
        let own = [&at.directory[..], at.name.as_bytes(), b"/", inner.as_bytes()].concat();
        let whole = path.below(&at.attached.path).unwrap_or_default();
        if at.attached.view.key_of(whole)?.as_bytes() != own {
            return refuse("a file of a set cannot have that name");
        }
        let overlay = self.stage.overlay(&at.attached.scope);
        let manifest = overlay.at(at.manifest().key.as_bytes()).and_then(|laid| laid.attributes);
        if manifest.is_some() {
            return refuse("the set was published already, or another one has its name");
        }
        let target = at.target([&at.data(&set.id)[..], inner.as_bytes()].concat());
        let key = check_key(path, &at.attached, Ok(target.key.clone()))?;
        let laid = overlay.at(key.as_bytes());
        let base = laid.as_ref().and_then(|laid| laid.attributes.as_ref());
        let base = base.map_or(penstock_stage::Base::Absent, |attributes| base_of(&attributes.version));
        Ok(Place::in_set(path.clone(), target, exclusive, (base, laid), (set.id.clone(), inner.to_owned())))
    }

    /// A file of a set was committed: its checksum is computed while others are written.
    pub(crate) fn note_set_file(&self, (id, path): &(String, String), change: &Arc<Change>) {
        let pin = self.stage.remember(change.target());
        let summed = Arc::clone(change);
        let task = self.parts.runtime.spawn_blocking(move || sum_of(&summed));
        let mut state = self.sets.state();
        if state.open.len() >= OPEN_MAX && !state.open.contains_key(id) {
            return;
        }
        let open = state.open.entry(id.clone()).or_default();
        open.pins.push(pin);
        open.sums.insert(path.clone(), Sum { version: change.version(), task });
    }
}

/// The CRC32C of what was staged.
fn sum_of(change: &Change) -> Result<u32> {
    let descriptor = change.open()?;
    let size = change.size().unwrap_or(0);
    sum_of_file(&descriptor, size)
}

fn sum_of_file(descriptor: &OwnedFd, size: u64) -> Result<u32> {
    let failed =
        |error: std::io::Error| Error::new(ErrorKind::of_disk(&error), "sum a file of a set", error.to_string());
    let file = std::fs::File::from(descriptor.try_clone().map_err(failed)?);
    let (mut buffer, mut sum, mut at) = (vec![0; SUMMED_BYTES], 0, 0);
    while at < size {
        let length = SUMMED_BYTES.min(usize::try_from(size - at).unwrap_or(SUMMED_BYTES));
        file.read_exact_at(&mut buffer[..length], at).map_err(failed)?;
        sum = crc32c::crc32c_append(sum, &buffer[..length]);
        at += length as u64;
    }
    Ok(sum)
}

/// A new id: the time it was made comes first, so that what was left behind tells its age.
fn new_id(now_ms: i64) -> Result<String> {
    let mut random = [0u8; 8];
    getrandom(&mut random, GetRandomFlags::empty())
        .map_err(|error| Error::new(ErrorKind::ResourceLimit, "begin a set", error.to_string()))?;
    Ok(format!("{:012x}{:016x}", now_ms.max(0), u64::from_be_bytes(random)))
}

/// When a set with this id was begun, milliseconds since the Unix epoch.
fn begun_ms(id: &str) -> Option<i64> {
    i64::from_str_radix(id.get(..12)?, 16).ok()
}

fn check_id(id: &str) -> Result<()> {
    let is_id = id.len() == 28 && id.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase());
    match is_id {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::InvalidInput, "write into a set", "no set has that id")),
    }
}
