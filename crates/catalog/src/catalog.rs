//! The catalog as a whole: one per node, one file.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use penstock_types::{Clock, Freshness, Metrics, ObjectKey, Overlay, Result, Source};

use crate::scope::{Scope, lock};
use crate::sets::Layered;
use crate::store::{Change, Store};
use crate::timeline::Timeline;
use crate::view::{View, ViewParts};
use crate::writer::Writer;

/// What is known of every source of a node.
pub struct Catalog {
    pub(crate) writer: Arc<Writer>,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) metrics: Metrics,
    scopes: Mutex<HashMap<String, Arc<Scope>>>,
    /// Something may be known of attributes that were said.
    pub(crate) has_adorned: AtomicBool,
}

impl Catalog {
    /// Opens the catalog kept at `path`, or begins one. A damaged file is set aside as `path.damaged`.
    ///
    /// Cost: independent of what is in it, after a kill too.
    ///
    /// # Errors
    /// `Disk` when the file cannot be opened or made, `Busy` when another process has it open.
    pub fn open(path: &Path, clock: Arc<dyn Clock>, metrics: Metrics) -> Result<Arc<Self>> {
        let timeline = Arc::new(Timeline::new(clock));
        let store = Store::open(path, timeline.now())?;
        Self::with(store, timeline, metrics)
    }

    fn with(store: Store, timeline: Arc<Timeline>, metrics: Metrics) -> Result<Arc<Self>> {
        let has_adorned = AtomicBool::new(store.has_adorned()?);
        let writer = Arc::new(Writer::new(store, timeline.clone())?);
        Ok(Arc::new(Self { writer, timeline, metrics, scopes: Mutex::default(), has_adorned }))
    }

    /// What one attachment sees: the keys of `source` below `prefix`, which is empty or ends in `/`. Facts are shared
    /// by the views of one `scope`, which names source and credentials, and by no others. Changes that `overlay` has
    /// of keys of the scope are shown over what the source says.
    pub fn view(
        self: &Arc<Self>,
        scope: &str,
        source: Arc<dyn Source>,
        prefix: ObjectKey,
        freshness: Freshness,
        overlay: Option<Arc<dyn Overlay>>,
    ) -> Arc<View> {
        let scope = self.scope(scope);
        let (sets, written) = (scope.sets.clone(), overlay);
        let overlay: Option<Arc<dyn Overlay>> = Some(Layered::new(written.clone(), sets.clone()));
        View::new(ViewParts { catalog: self.clone(), scope, source, prefix, freshness, overlay, written, sets })
    }

    /// This moment on the time line by which facts are judged, µs: whatever is asked of a source later is newer.
    pub fn now(&self) -> i64 {
        self.timeline.now()
    }

    /// Forgets every listing of a scope. Facts that views hold in memory go when they are next asked for.
    pub fn forget_scope(&self, scope: &str) {
        let scope = self.scope(scope);
        scope.distrust(self.timeline.now());
        let store = self.writer.store();
        if let Err(error) = self.writer.apply(&store, vec![Change::ForgetScope { scope: scope.number }]) {
            tracing::warn!(%error, "listings of a scope could not be removed; they are not believed any more");
        }
    }

    /// Makes everything that was learnt durable. Called once at the end; the catalog can still be read.
    pub fn close(&self) {
        if let Err(error) = self.writer.close() {
            tracing::warn!(%error, "the last facts of the catalog were not kept");
        }
    }

    pub(crate) fn scope(&self, name: &str) -> Arc<Scope> {
        let mut scopes = lock(&self.scopes);
        if let Some(scope) = scopes.get(name) {
            return scope.clone();
        }
        let number = self.writer.scope(name);
        let scope = Arc::new(Scope::new(number));
        scopes.insert(name.into(), scope.clone());
        scope
    }
}

#[cfg(test)]
mod tests;
