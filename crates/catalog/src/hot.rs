//! The names that were asked for last, by path: answers without a look at the store. Bounded by weight.

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::Item;
use crate::known::{Answer, Fact};

/// Memory of one view's hot names, bytes.
const HOT_BYTES: u64 = 16 << 20;
/// Names expected, for the first allocation.
const HOT_NAMES: usize = 16_384;
/// What an entry costs beside its texts, bytes.
const ENTRY_BYTES: u64 = 256;

/// A fact, and how many listings had ended when it was put here.
#[derive(Clone)]
pub(crate) struct HotFact {
    pub(crate) fact: Fact,
    pub(crate) listings: u64,
}

/// Facts by path.
pub(crate) type Hot = Cache<Box<str>, HotFact, ByBytes>;

/// An empty set of hot names.
pub(crate) fn hot() -> Hot {
    Cache::with_weighter(HOT_NAMES, HOT_BYTES, ByBytes)
}

/// Weighs what an entry holds.
#[derive(Clone)]
pub(crate) struct ByBytes;

impl Weighter<Box<str>, HotFact> for ByBytes {
    fn weight(&self, path: &Box<str>, fact: &HotFact) -> u64 {
        let texts = match &fact.fact.answer {
            Answer::Found(Item::File { key, attributes }) => key.as_bytes().len() + attributes.version.as_str().len(),
            _ => 0,
        };
        ENTRY_BYTES + (path.len() + texts) as u64
    }
}
