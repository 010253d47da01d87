//! What is there before something is written: many new files in one directory are one listing, not a question each.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use penstock_catalog::Item;
use penstock_types::{Error, ErrorKind, Result, TreePath};

use crate::attachment::Attached;
use crate::engine::Engine;

/// From so many questions about names in one directory on, the directory is listed.
const LIST_FROM: u32 = 3;
/// A source that failed so lately is not asked again.
pub(super) const AWAY: Duration = Duration::from_secs(5);
/// How long one that failed before that is waited for.
const SHORT: Duration = Duration::from_secs(1);
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
    /// What has the name now, as far as this node may know it; `None` for nothing. A source that is away does not keep
    /// anybody from writing: what was last known has to do, unless it must be `certain`. Should that be wrong, the
    /// upload finds out, and replaces nothing that was never seen.
    pub(super) async fn look_before_writing(
        &self,
        path: &TreePath,
        (attached, inner): (&Arc<Attached>, &str),
        certain: bool,
    ) -> Result<Option<Item>> {
        let found = self.found_before_writing(path, (attached, inner), certain).await?;
        let set = attached.view.set_holding(inner).and_then(|set| attached.view.path_of_set(&set));
        match set.filter(|set| set.len() < inner.len()) {
            Some(set) => {
                let reason =
                    format!("it is part of the set {}/{set}, which changes as a whole or not at all", attached.path);
                Err(Error::new(ErrorKind::ReadOnly, format!("change {path}"), reason)
                    .advise(format!("remove the set: penstock rm -r {}/{set}", attached.path)))
            }
            None => Ok(found),
        }
    }

    async fn found_before_writing(
        &self,
        path: &TreePath,
        (attached, inner): (&Arc<Attached>, &str),
        certain: bool,
    ) -> Result<Option<Item>> {
        let found = match attached.view.stat_cached(inner) {
            Some(known) => known,
            None if !certain && attached.health.failed_ago().is_some_and(|ago| ago < AWAY) => {
                return Ok(attached.view.recalled(inner));
            }
            None => self.ask_before_writing(path, (attached, inner), certain).await,
        };
        match found {
            Ok(item) => Ok(Some(item)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.is_transient() && !certain => Ok(attached.view.recalled(inner)),
            Err(error) => Err(error),
        }
    }

    /// Lists the directory of a name that is about to be asked for, where many of its names were before.
    pub(crate) async fn list_if_due(&self, path: &TreePath, (attached, inner): (&Arc<Attached>, &str)) {
        if let Some(directory) = path.parent()
            && self.lookups.note(directory)
        {
            let parent = inner.rsplit_once('/').map_or("", |(parent, _)| parent);
            // Should it fail, the question about the name alone tells why.
            let _ = self.timely(attached, path, attached.view.list(parent, None, 1)).await;
        }
    }

    async fn ask_before_writing(
        &self,
        path: &TreePath,
        (attached, inner): (&Arc<Attached>, &str),
        certain: bool,
    ) -> Result<Item> {
        let is_failing = attached.health.failed_ago().is_some();
        let question = async {
            self.list_if_due(path, (attached, inner)).await;
            self.timely(attached, path, attached.view.stat(inner)).await
        };
        if !is_failing || certain {
            return question.await;
        }
        // It was away when it was asked last: a short question shows whether it is back.
        let answer = tokio::time::timeout(SHORT, question).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, format!("look up {path}"), "the source is still away"))
        });
        attached.health.note(&answer);
        answer
    }
}
