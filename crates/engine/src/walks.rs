//! Walking ahead: who lists the directories of a directory one after another has the whole tree listed, which takes few
//! requests, many at once, instead of one and a round trip for each.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use penstock_types::Freshness;
use tokio::time::Instant;

use crate::attachment::Attached;
use crate::engine::Engine;

/// Directories whose children are watched at once; beyond it all are forgotten.
const PARENTS_MAX: usize = 1024;
/// Unknown directories that are listed in one directory before all of it is.
const WALK_AFTER: u32 = 3;
/// A walk that was not finished doubles what the next one takes, up to this.
const WALK_AFTER_MAX: u32 = 1024;
/// A walk goes so many entries ahead, and so many more for each directory that was listed since it began.
const LEAD: usize = 256 * 1024;
const LEAD_PER_DIRECTORY: usize = 16 * 1024;
/// Entries that are asked for at once.
const PAGE: usize = 16 * 1024;
/// How long a walk that is far enough ahead waits to be caught up with before it ends.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// Which directories had children listed.
#[derive(Default)]
pub struct Walks {
    parents: Mutex<HashMap<(usize, String), Parent>>,
}

struct Parent {
    unknown: u32,
    walk_after: u32,
    /// Directories that were listed since the walk began, as long as it goes on.
    listed: Weak<AtomicUsize>,
}

impl Walks {
    /// Notes that a directory, of which nothing was known, is being listed.
    pub fn note_unknown(&self, engine: &Arc<Engine>, attached: &Arc<Attached>, directory: &str) {
        if directory.is_empty() || attached.spec.freshness == Freshness::Seconds(0.0) {
            return;
        }
        let parent = directory.rsplit_once('/').map_or("", |(parent, _)| parent);
        let Some(listed) = self.begin(attached, parent) else { return };
        let (walks, attached, parent) = (Arc::downgrade(engine), Arc::clone(attached), parent.to_string());
        engine.carrier.runtime.spawn(async move {
            let finished = walk(&attached, &parent, &listed).await;
            if let Some(engine) = walks.upgrade() {
                engine.walks.end(&attached, &parent, finished);
            }
        });
    }

    /// Counts a directory; when it is worth walking its parent, what counts those that are listed from then on.
    fn begin(&self, attached: &Arc<Attached>, parent: &str) -> Option<Arc<AtomicUsize>> {
        let mut parents = self.parents.lock().expect("no panic while walks are noted");
        if parents.len() >= PARENTS_MAX {
            parents.clear();
        }
        let known = parents.entry(key(attached, parent)).or_insert(Parent {
            unknown: 0,
            walk_after: WALK_AFTER,
            listed: Weak::new(),
        });
        if let Some(listed) = known.listed.upgrade() {
            listed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        known.unknown += 1;
        if known.unknown < known.walk_after {
            return None;
        }
        known.unknown = 0;
        let listed = Arc::default();
        known.listed = Arc::downgrade(&listed);
        Some(listed)
    }

    fn end(&self, attached: &Arc<Attached>, parent: &str, finished: bool) {
        let mut parents = self.parents.lock().expect("no panic while walks are noted");
        if let Some(known) = parents.get_mut(&key(attached, parent)).filter(|_| !finished) {
            known.walk_after = (known.walk_after * 2).min(WALK_AFTER_MAX);
        }
    }
}

fn key(attached: &Arc<Attached>, parent: &str) -> (usize, String) {
    (Arc::as_ptr(attached) as usize, parent.to_string())
}

/// Lists everything below a directory as long as somebody follows; whether it came to the end.
async fn walk(attached: &Arc<Attached>, directory: &str, listed: &AtomicUsize) -> bool {
    let (mut after, mut entries) = (None, 0);
    loop {
        // A failure shows when somebody lists; a guess has nobody to tell.
        let Ok(page) = attached.view.walk(directory, after.as_deref(), PAGE).await else { return false };
        entries += page.items.len();
        after = page.next;
        if after.is_none() {
            return true;
        }
        let begun = Instant::now();
        while entries >= LEAD + LEAD_PER_DIRECTORY * listed.load(Ordering::Relaxed) {
            if begun.elapsed() > PATIENCE {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
