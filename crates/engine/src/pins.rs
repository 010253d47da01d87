//! What eviction leaves alone: what somebody pinned, the newest of what is written, by somebody else's decision, and what
//! was written so lately that nobody has decided yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use penstock_cache::PinRule;
use penstock_types::{ObjectId, ObjectKey, SET_DATA_MARK, SourceId, TreePath};

use crate::attachment::Attached;
use crate::engine::Engine;

/// Objects at most that stay because nobody has decided yet: beyond, nobody does.
const UNDECIDED_MAX: usize = 100_000;
/// Why a pinned object stays.
const PINNED: &str = "a pin keeps it";
/// Why an object stays that was written just now.
const UNDECIDED: &str = "it stays until it is known what the newest is: it was written just now";

/// A path that stays in the cache with what is below it, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// The path.
    pub path: TreePath,
    /// Goes on after "all of it is cached and".
    pub reason: String,
    /// It was listed since the start, so that its sets are known. Until then, the bytes of all sets beside it stay.
    pub is_listed: bool,
}

/// How much was written through this node, in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WrittenCount {
    /// Changes that were acknowledged.
    pub changes: u64,
    /// Files that became cached ones.
    pub cached: u64,
}

/// The rules, and what is not decided.
#[derive(Default)]
pub(crate) struct Pins(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    /// Somebody decides what is kept, and what was cached since the last decision waits for the next one.
    is_decided: bool,
    cached: u64,
    /// As which file in all it was cached.
    undecided: HashMap<ObjectId, u64>,
}

struct Rule {
    source: SourceId,
    key: ObjectKey,
    reason: Arc<str>,
}

impl Pins {
    /// Why an object stays in the cache; `None` where eviction may have it.
    pub fn of(&self, object: &ObjectId) -> Option<String> {
        reason(&state(&self.0), object).map(str::to_owned)
    }

    /// An object is about to become a cached one, from what was written here.
    pub fn note_written(&self, object: &ObjectId) {
        let mut state = state(&self.0);
        state.cached += 1;
        let number = state.cached;
        if state.is_decided && state.undecided.len() < UNDECIDED_MAX {
            state.undecided.insert(object.clone(), number);
        }
    }

    fn cached(&self) -> u64 {
        state(&self.0).cached
    }

    fn set(&self, rules: Vec<Rule>, decided: Option<u64>) {
        let mut state = state(&self.0);
        state.rules = rules;
        state.is_decided = decided.is_some();
        match decided {
            Some(decided) => state.undecided.retain(|_, number| *number > decided),
            None => state.undecided.clear(),
        }
    }

    fn rule(&self) -> PinRule {
        let known = Arc::clone(&self.0);
        Arc::new(move |object: &ObjectId| reason(&state(&known), object).is_some())
    }
}

impl Engine {
    /// What was written so far: when it has grown, what is the newest may be something else.
    pub fn written_so_far(&self) -> WrittenCount {
        WrittenCount { changes: self.parts.metrics.stage_commits.get(), cached: self.pins.cached() }
    }

    /// What eviction leaves alone: paths with everything below them, pinned by somebody, and kept for another reason.
    ///
    /// # Arguments
    /// `decided` is [`WrittenCount::cached`] as it was before `kept` was decided: files that were cached later stay as well,
    /// until the next decision. With `None`, nobody decides.
    pub fn set_pins(&self, pins: Vec<TreePath>, kept: Vec<Kept>, decided: Option<u64>) {
        let pins = pins.into_iter().map(|path| Kept { path, reason: PINNED.to_owned(), is_listed: true });
        let attached = self.tree.all();
        let mut rules = Vec::new();
        for Kept { path, reason, is_listed } in pins.chain(kept) {
            let reason: Arc<str> = reason.into();
            for known in attached.iter() {
                let rule = |key| Rule { source: known.source.id().clone(), key, reason: Arc::clone(&reason) };
                rules.extend(keys_of(known, &path, is_listed).into_iter().map(rule));
            }
        }
        self.pins.set(rules, decided);
        // Anew, so that the cache asks again of what it was refused before.
        self.cache.set_pins(self.pins.rule());
    }
}

/// What the keys begin with of all that is at and below a path in an attachment, sets included that are known; where they
/// are not, all that the path may be a set of.
fn keys_of(attached: &Attached, path: &TreePath, is_listed: bool) -> Vec<ObjectKey> {
    let inner = match (path.below(&attached.path), attached.path.below(path)) {
        (Some(inner), _) => inner,
        (None, Some(_)) => "",
        (None, None) => return Vec::new(),
    };
    let own = match inner.is_empty() {
        true => Some(Attached::prefix(&attached.spec)),
        false => attached.view.key_of(inner).ok(),
    };
    let sets = attached.view.sets_below(inner);
    let unknown = own.as_ref().filter(|_| !is_listed && sets.is_empty()).map(beside);
    own.into_iter().chain(sets.iter().map(|set| set.data.clone())).chain(unknown).collect()
}

/// What the keys begin with of the bytes of all sets in the directory of a key, whatever comes after the mark.
fn beside(key: &ObjectKey) -> ObjectKey {
    let key = key.as_bytes();
    let directory = key.iter().rposition(|byte| *byte == b'/').map_or(&key[..0], |slash| &key[..=slash]);
    ObjectKey::new([directory, SET_DATA_MARK.as_bytes()].concat())
}

fn reason<'a>(state: &'a State, object: &ObjectId) -> Option<&'a str> {
    let stays = |rule: &&Rule| {
        let (ruled, key) = (rule.key.as_bytes(), object.key.as_bytes());
        let is_beside = ruled.ends_with(SET_DATA_MARK.as_bytes()) && key.starts_with(ruled);
        rule.source == object.source && (is_beside || covers(ruled, key))
    };
    let ruled = state.rules.iter().find(stays).map(|rule| &*rule.reason);
    ruled.or_else(|| state.undecided.contains_key(object).then_some(UNDECIDED))
}

fn state(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no panic while pins are held")
}

/// Whether a key covers another: the same object, or a directory above it.
pub(crate) fn covers(pinned: &[u8], key: &[u8]) -> bool {
    let rest = match key.strip_prefix(pinned) {
        Some(rest) => rest,
        None => return false,
    };
    rest.is_empty() || pinned.is_empty() || pinned.ends_with(b"/") || rest.starts_with(b"/")
}

#[cfg(test)]
mod tests {
    use penstock_types::Version;

    use super::*;

    fn object(key: &str) -> ObjectId {
        let (key, version) = (ObjectKey::from(key), Version::from("v1"));
        ObjectId { source: SourceId("memory:test".into()), key, version }
    }

    #[test]
    fn what_was_written_since_a_decision_stays_until_the_next_one() {
        let pins = Pins::default();
        pins.note_written(&object("before"));
        assert_eq!(pins.of(&object("before")), None, "nobody decides");
        pins.set(Vec::new(), Some(pins.cached()));
        pins.note_written(&object("a"));
        let decided = pins.cached();
        pins.note_written(&object("b"));
        let rule = pins.rule();
        assert!(rule(&object("a")) && rule(&object("b")) && !rule(&object("c")));
        let (source, key) = (SourceId("memory:test".into()), ObjectKey::from("c"));
        pins.set(vec![Rule { source, key, reason: "it is new".into() }], Some(decided));
        assert!(!rule(&object("a")) && rule(&object("b")) && rule(&object("c")));
        assert_eq!(pins.of(&object("c")).as_deref(), Some("it is new"));
        pins.set(Vec::new(), None);
        assert!(!rule(&object("b")));
    }

    #[test]
    fn the_bytes_of_the_sets_of_a_directory_stay_until_it_is_known_which_they_are() {
        let (source, key) = (SourceId("memory:test".into()), beside(&ObjectKey::from("runs/step-1")));
        let pins = Pins::default();
        pins.set(vec![Rule { source, key, reason: "it is new".into() }], Some(0));
        let rule = pins.rule();
        assert!(rule(&object("runs/.penstock-data.a1/model")));
        assert!(!rule(&object("runs/model")) && !rule(&object("other/.penstock-data.a1/model")));
        assert_eq!(beside(&ObjectKey::from("step-1")).as_bytes(), SET_DATA_MARK.as_bytes());
    }

    #[test]
    fn a_pin_covers_its_object_and_what_lies_below_but_not_its_neighbours() {
        assert!(covers(b"data/a", b"data/a"));
        assert!(covers(b"data/a", b"data/a/b"));
        assert!(covers(b"data/", b"data/a"));
        assert!(covers(b"", b"anything"));
        assert!(!covers(b"data/a", b"data/ab"));
        assert!(!covers(b"data/a", b"data"));
    }
}
