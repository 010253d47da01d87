//! A part of the data devices of a snapshot as a file that a kernel reads: one file, or a whole device.

use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use penstock_image::Place;
use penstock_types::{ByteRange, NodeFile, OpenedNode, Result};

use super::content::Frozen;

/// What lies from a place on; nothing where there are no bytes.
pub(super) struct Part {
    frozen: Arc<Frozen>,
    place: Option<Place>,
    size: u64,
}

impl Part {
    /// It as an open file, whose pages the kernel keeps: nothing of them ever changes.
    pub(super) fn open(frozen: &Arc<Frozen>, place: Option<Place>, size: u64) -> OpenedNode {
        let file = Arc::new(Self { frozen: Arc::clone(frozen), place, size });
        OpenedNode { file, lent: None, keep_pages: true, writer: None }
    }

    /// Where a range of it is in its data device.
    fn lies(&self, range: ByteRange) -> Option<(u16, ByteRange)> {
        let range = range.intersect(ByteRange::new(0, self.size));
        let place = self.place.filter(|_| !range.is_empty())?;
        Some((place.device, ByteRange::new(place.offset + range.start, place.offset + range.end)))
    }
}

impl NodeFile for Part {
    fn read_now(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        match self.lies(ByteRange::new(offset, offset.saturating_add(out.len() as u64))) {
            Some((device, range)) => {
                let length = usize::try_from(range.len()).expect("a read fits its buffer");
                self.frozen.read_now(device, range.start, &mut out[..length])
            }
            None => Ok(Some(0)),
        }
    }

    fn bring(self: Arc<Self>, range: ByteRange) -> BoxFuture<'static, Result<Vec<u8>>> {
        async move {
            match self.lies(range) {
                Some((device, range)) => Arc::clone(&self.frozen).bring(device, range).await,
                None => Ok(Vec::new()),
            }
        }
        .boxed()
    }

    fn is_evicted(&self) -> bool {
        false
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({:?} of {})", self.place, self.frozen.facts().name)
    }
}
