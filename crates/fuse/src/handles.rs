//! What the kernel holds open, by the numbers that it was given.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Threads of a mount that look for handles at the same moment seldom meet in one of so many parts.
const SHARDS: usize = 16;

/// Open files, or open directories. Bounded by what the kernel lets programs open.
pub struct Handles<T> {
    shards: [Mutex<HashMap<u64, Arc<T>>>; SHARDS],
    next: AtomicU64,
}

impl<T> Default for Handles<T> {
    /// Numbers begin at 1: 0 is what the kernel says where nothing was opened.
    fn default() -> Self {
        Self { shards: Default::default(), next: AtomicU64::new(1) }
    }
}

impl<T> Handles<T> {
    /// Keeps `value`; the number it is found by.
    pub fn insert(&self, value: T) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(handle).insert(handle, Arc::new(value));
        handle
    }

    /// What was kept under a number.
    pub fn get(&self, handle: u64) -> Option<Arc<T>> {
        self.shard(handle).get(&handle).cloned()
    }

    /// Something that was kept and is as wanted. Looks at all of it.
    pub fn find(&self, wanted: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        let found = |shard: &Mutex<HashMap<u64, Arc<T>>>| {
            let kept = shard.lock().expect("no panic while handles are kept");
            kept.values().find(|value| wanted(value)).cloned()
        };
        self.shards.iter().find_map(found)
    }

    /// Forgets a number.
    pub fn remove(&self, handle: u64) -> Option<Arc<T>> {
        self.shard(handle).remove(&handle)
    }

    /// How many are kept.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().expect("no panic while handles are kept").len()).sum()
    }

    fn shard(&self, handle: u64) -> MutexGuard<'_, HashMap<u64, Arc<T>>> {
        let number = usize::try_from(handle % SHARDS as u64).expect("the remainder is small");
        self.shards[number].lock().expect("no panic while handles are kept")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_never_nought_and_never_given_twice() {
        let handles = Handles::default();
        let first = handles.insert("a");
        assert_ne!(first, 0);
        assert_eq!(handles.remove(first).as_deref(), Some(&"a"));
        assert_ne!(handles.insert("b"), first);
        assert_eq!((handles.count(), handles.get(first)), (1, None));
        assert_eq!(handles.find(|value| *value == "b").as_deref(), Some(&"b"));
        assert_eq!(handles.find(|value| *value == "a"), None);
    }
}
