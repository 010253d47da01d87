//! Keys that are being written: what is known of them is not forgotten meanwhile, however long that takes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::change::Target;

type Counts = HashMap<(Arc<str>, Bytes), usize>;

/// How many drafts each key has. Clones share it.
#[derive(Clone, Default)]
pub struct Pins(Arc<Mutex<Counts>>);

/// One draft of a key.
pub struct Pin {
    pins: Pins,
    key: (Arc<str>, Bytes),
}

impl Pins {
    pub fn pin(&self, target: &Target) -> Pin {
        let key = (Arc::clone(&target.scope), Bytes::copy_from_slice(target.key.as_bytes()));
        *self.counts().entry(key.clone()).or_default() += 1;
        Pin { pins: self.clone(), key }
    }

    pub fn is_pinned(&self, scope: &Arc<str>, key: &Bytes) -> bool {
        self.counts().contains_key(&(Arc::clone(scope), key.clone()))
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().expect("no panic while pins are held")
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut counts = self.pins.counts();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}
