//! What is staged, as the catalog lays it over its names.

use std::sync::Arc;

use bytes::Bytes;
use penstock_stage::{Stage, operation_of};
use penstock_types::{Error, ErrorKind, Laid, ObjectKey, Overlay, Result, Version};

use crate::write::read_staged;

/// The changes of one scope, and the content of small ones.
pub(crate) struct Staged {
    stage: Arc<Stage>,
    scope: Arc<str>,
    names: Arc<dyn Overlay>,
}

impl Staged {
    pub(crate) fn of(stage: &Arc<Stage>, scope: &Arc<str>) -> Self {
        Self { stage: Arc::clone(stage), scope: Arc::clone(scope), names: stage.overlay(scope) }
    }
}

impl Overlay for Staged {
    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn at(&self, key: &[u8]) -> Option<Laid> {
        self.names.at(key)
    }

    fn next(&self, from: &[u8], inclusive: bool) -> Option<(Bytes, Laid)> {
        self.names.next(from, inclusive)
    }

    fn staged(&self, key: &[u8], version: &Version) -> Option<Result<Bytes>> {
        operation_of(version)?;
        let found = self.stage.find(&self.scope, &ObjectKey::new(key.to_vec()), version);
        let gone = || Error::new(ErrorKind::StaleVersion, "read what is staged", "it is not staged any more");
        Some(found.ok_or_else(gone).and_then(|change| tokio::task::block_in_place(|| read_staged(&change))))
    }
}
