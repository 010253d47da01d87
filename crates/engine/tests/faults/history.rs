//! What a source held when: the plain model that an engine is compared with.

use std::collections::BTreeMap;
use std::time::Duration;

use penstock_types::{Freshness, Version};

/// Content that was written once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// Number for the oracle: no two contents share one.
    pub number: u64,
    pub size: u64,
    /// What the source calls it.
    pub token: Version,
}

/// Everything that each key ever was.
#[derive(Default)]
pub struct History {
    states: BTreeMap<&'static str, Vec<(Duration, Option<Written>)>>,
    writes: u64,
}

impl History {
    /// A number that no content had.
    pub fn next_number(&mut self) -> u64 {
        self.writes += 1;
        self.writes
    }

    /// Notes that `key` holds `content` from `now` on.
    pub fn note(&mut self, key: &'static str, now: Duration, content: Option<Written>) {
        self.states.entry(key).or_default().push((now, content));
    }

    /// What `key` holds now.
    pub fn current(&self, key: &str) -> Option<&Written> {
        self.states.get(key)?.last()?.1.as_ref()
    }

    /// Every state that somebody may see who asks at `now` and believes facts for `freshness`.
    pub fn visible(&self, key: &str, now: Duration, freshness: Freshness) -> Vec<Option<&Written>> {
        let Some(states) = self.states.get(key) else { return vec![None] };
        let oldest = match freshness {
            Freshness::Immutable => Duration::ZERO,
            // The clock of the test stands still between steps, so that "now" alone would be too much.
            Freshness::Seconds(0.0) => return vec![self.current(key)],
            Freshness::Seconds(seconds) => now.saturating_sub(Duration::from_secs_f64(seconds)),
        };
        let ends = states.iter().skip(1).map(|(since, _)| *since).chain([Duration::MAX]);
        let before = (states[0].0 >= oldest).then_some(None);
        let seen = states.iter().zip(ends).filter(|(_, end)| *end >= oldest).map(|((_, content), _)| content.as_ref());
        before.into_iter().chain(seen).collect()
    }
}
