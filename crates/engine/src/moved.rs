//! Where the bytes of object versions went that were renamed in their source: who has such a version open reads on.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use penstock_types::ObjectId;

/// Versions that are remembered: more than are open at a time.
const MOVED_MAX: usize = 65_536;

/// Copies that were made in sources, by what they were made of.
#[derive(Default)]
pub struct Moved(Mutex<Known>);

#[derive(Default)]
struct Known {
    to: HashMap<ObjectId, ObjectId>,
    oldest_first: VecDeque<ObjectId>,
}

impl Moved {
    /// Notes that a source has the bytes of `from` as `to` as well.
    pub fn note(&self, from: ObjectId, to: ObjectId) {
        let mut known = self.known();
        // It is there: a version that is only a checksum of the content comes back with that.
        known.to.remove(&to);
        if from == to {
            return;
        }
        if known.to.insert(from.clone(), to).is_none() {
            known.oldest_first.push_back(from);
        }
        while known.oldest_first.len() > MOVED_MAX {
            if let Some(oldest) = known.oldest_first.pop_front() {
                known.to.remove(&oldest);
            }
        }
    }

    /// What has the same bytes as a version, which may be gone.
    pub fn to(&self, object: &ObjectId) -> Option<ObjectId> {
        self.known().to.get(object).cloned()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("no panic while moved versions are held")
    }
}

#[cfg(test)]
mod tests {
    use penstock_types::{ObjectKey, SourceId, Version};

    use super::*;

    #[test]
    fn the_oldest_of_too_many_is_forgotten() {
        let object = |number: usize, key: &str| ObjectId {
            source: SourceId::from("s"),
            key: ObjectKey::from(key),
            version: Version::from(number.to_string().as_str()),
        };
        let moved = Moved::default();
        // There and back again is no circle.
        moved.note(object(0, "a"), object(0, "b"));
        moved.note(object(0, "b"), object(0, "a"));
        assert_eq!((moved.to(&object(0, "a")), moved.to(&object(0, "b"))), (None, Some(object(0, "a"))));
        for number in 0..=MOVED_MAX {
            moved.note(object(number, "a"), object(number, "b"));
        }
        assert_eq!(moved.to(&object(0, "a")), None);
        assert_eq!(moved.to(&object(1, "a")), Some(object(1, "b")));
        assert_eq!(moved.to(&object(MOVED_MAX, "a")), Some(object(MOVED_MAX, "b")));
    }
}
