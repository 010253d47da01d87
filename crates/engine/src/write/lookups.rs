//! What is there before something is written: many new files in one directory are one listing, not a question each.

use std::sync::{Arc, Mutex};

use penstock_catalog::Item;
use penstock_types::{ErrorKind, Result, TreePath};

use crate::attachment::Attached;
use crate::engine::Engine;

/// From so many questions about names in one directory on, the directory is listed.
const LIST_FROM: u32 = 3;
/// Directories whose questions are counted.
const DIRECTORIES_MAX: usize = 64;

/// How many names were asked for one by one, by directory; the one asked about last comes last.
#[derive(Default)]
pub(crate) struct Lookups(Mutex<Vec<(TreePath, u32)>>);

impl Lookups {
    /// Notes a question; says whether a listing is due instead.
    fn note(&self, directory: TreePath) -> bool {
        let mut asked = self.0.lock().expect("no panic while questions are counted");
        let known = asked.iter().position(|(known, _)| *known == directory);
        let count = known.map_or(0, |at| asked.remove(at).1) + 1;
        if asked.len() >= DIRECTORIES_MAX {
            asked.remove(0);
        }
        let due = count >= LIST_FROM;
        asked.push((directory, if due { 0 } else { count }));
        due
    }
}

impl Engine {
    /// What has the name now, as far as this node may know it; `None` for nothing.
    pub(super) async fn look_before_writing(
        &self,
        path: &TreePath,
        attached: &Arc<Attached>,
        inner: &str,
    ) -> Result<Option<Item>> {
        if attached.view.stat_cached(inner).is_none()
            && let Some(directory) = path.parent()
            && self.lookups.note(directory)
        {
            let parent = inner.rsplit_once('/').map_or("", |(parent, _)| parent);
            // Should it fail, the question about the name alone tells why.
            let _ = self.timely(attached, path, attached.view.list(parent, None, 1)).await;
        }
        match self.timely(attached, path, attached.view.stat(inner)).await {
            Ok(item) => Ok(Some(item)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
