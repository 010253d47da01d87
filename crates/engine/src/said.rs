//! Attachments whose listings show what was said of every file: what a listing of the source does not tell is asked for,
//! once for each version.

use futures_util::{StreamExt, TryStreamExt, stream};
use penstock_catalog::Item;
use penstock_stage::Target;
use penstock_types::{ObjectAttributes, ObjectKey, Result, TreePath};

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::write::is_staged;

/// Files of one listing that are asked for at once.
const QUESTIONS: usize = 64;

impl Engine {
    /// What is known of `path`, where that is everything that is to be shown of it.
    pub(crate) fn known_whole(
        &self,
        attached: &Attached,
        path: &TreePath,
        known: Result<Item>,
    ) -> Option<Result<Item>> {
        let known = self.unless_gone(path, known);
        let is_unknown = known.as_ref().is_ok_and(|item| attached.unasked(self, item).is_some());
        (!is_unknown).then_some(known)
    }

    /// Asks for what is to be shown of items at or below `path` and is not known.
    ///
    /// # Errors
    /// What the source says; nothing where it may not be asked, or has them no more.
    pub(crate) async fn ask_said(
        &self,
        attached: &Attached,
        path: &TreePath,
        items: impl Iterator<Item = &Item>,
    ) -> Result<()> {
        let unknown = items.filter_map(|item| attached.unasked(self, item));
        let unknown: Vec<_> = unknown.map(|(key, attributes)| (key.clone(), attributes.clone())).collect();
        let ask = |(key, attributes): (ObjectKey, ObjectAttributes)| async move {
            self.timely(attached, path, attached.view.ask_posix(&key, &attributes)).await
        };
        stream::iter(unknown.into_iter().map(ask)).buffer_unordered(QUESTIONS).try_collect().await
    }
}

impl Attached {
    /// The object of an item, where the source is to be asked what was said of it.
    fn unasked<'a>(&self, engine: &Engine, item: &'a Item) -> Option<(&'a ObjectKey, &'a ObjectAttributes)> {
        let Item::File { key, attributes } = item else { return None };
        // What was written here is known.
        if !self.spec.posix || is_staged(&attributes.version) || self.view.knows_posix(key, attributes) {
            return None;
        }
        let target = Target { scope: self.scope.clone(), attachment: self.spec.id.clone(), key: key.clone() };
        engine.stage.settled_posix(&target, &attributes.version).is_none().then_some((key, attributes))
    }
}
