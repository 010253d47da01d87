//! A snapshot as names and files, for where the kernel cannot mount its image.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use penstock_image::{ImageNode, Place};
use penstock_types::{
    Answer, ByteRange, KernelTree, ListedNode, Looked, NodeAttributes, NodeFile, NodeId, NodePage, OpenedNode, Result,
    TreeSpace,
};

use super::content::Frozen;

/// Nothing of it ever changes.
const FOREVER: Duration = Duration::from_secs(86_400);
/// Blocks of a directory that make a page: about a thousand names.
const PAGE_BLOCKS: u64 = 8;

/// The names of the image; a node is the number of an inode there.
struct Files(Arc<Frozen>);

/// One file of it.
struct SnapshotFile {
    frozen: Arc<Frozen>,
    place: Option<Place>,
    size: u64,
}

impl Frozen {
    /// Names and files, for a kernel that opens nothing.
    pub fn file_tree(self: &Arc<Self>) -> Arc<dyn KernelTree> {
        Arc::new(Files(Arc::clone(self)))
    }
}

impl Files {
    fn number(&self, node: NodeId) -> u64 {
        if node == NodeId::ROOT { self.0.image().root() } else { node.0 }
    }

    fn node(&self, number: u64) -> Result<ImageNode> {
        self.0.image().node(number)
    }

    fn looked(&self, found: Option<&ImageNode>) -> Looked {
        let attributes = |node: &ImageNode| NodeAttributes {
            node: if node.number == self.0.image().root() { NodeId::ROOT } else { NodeId(node.number) },
            is_directory: node.is_directory,
            size: if node.is_directory { 0 } else { node.size },
            modified_ms: node.modified_ms,
        };
        Looked { found: found.map(attributes), name_valid: FOREVER, attributes_valid: FOREVER }
    }

    fn page(&self, directory: NodeId, after: Option<&str>) -> Result<NodePage> {
        let directory = self.node(self.number(directory))?;
        let first = after.and_then(|after| after.parse().ok()).unwrap_or(0);
        let mut entries = Vec::new();
        for block in first..first + PAGE_BLOCKS {
            let Some(names) = self.0.image().names(&directory, block)? else {
                return Ok(NodePage { entries, next: None });
            };
            for each in names {
                let looked = self.looked(Some(&self.node(each.number)?));
                entries.push(ListedNode { name: each.name.into(), looked, token: Arc::new(()) });
            }
        }
        Ok(NodePage { entries, next: Some((first + PAGE_BLOCKS).to_string()) })
    }
}

impl KernelTree for Files {
    fn lookup(&self, parent: NodeId, name: &str) -> Answer<Looked> {
        let look = || {
            let number = self.0.image().look_up(&self.node(self.number(parent))?, name)?;
            Ok(self.looked(number.map(|number| self.node(number)).transpose()?.as_ref()))
        };
        Answer::Now(look())
    }

    fn attributes(&self, node: NodeId) -> Answer<Looked> {
        Answer::Now(self.node(self.number(node)).map(|node| self.looked(Some(&node))))
    }

    fn forget(&self, _: NodeId, _: u64) {}

    fn open(&self, node: NodeId) -> Answer<OpenedNode> {
        let opened = self.node(self.number(node)).map(|node| {
            let file = Arc::new(SnapshotFile { frozen: Arc::clone(&self.0), place: node.place, size: node.size });
            OpenedNode { file, lent: None, keep_pages: true }
        });
        Answer::Now(opened)
    }

    fn open_directory(&self, _: NodeId) -> Answer<bool> {
        Answer::Now(Ok(true))
    }

    fn list(&self, node: NodeId, after: Option<&str>) -> Answer<NodePage> {
        Answer::Now(self.page(node, after))
    }

    fn remember(&self, _: &ListedNode) {}

    fn name_of(&self, _: NodeId) -> Option<(NodeId, Arc<str>)> {
        None
    }

    fn extended_attributes(&self, _: NodeId) -> Answer<Vec<(&'static str, String)>> {
        Answer::Now(Ok(vec![("user.penstock.snapshot", self.0.facts().name.clone())]))
    }

    fn space(&self) -> TreeSpace {
        self.0.engine().space()
    }
}

impl SnapshotFile {
    /// Where a part of the file is in its data device.
    fn lies(&self, range: ByteRange) -> Option<(u16, ByteRange)> {
        let range = range.intersect(ByteRange::new(0, self.size));
        let place = self.place.filter(|_| !range.is_empty())?;
        Some((place.device, ByteRange::new(place.offset + range.start, place.offset + range.end)))
    }
}

impl NodeFile for SnapshotFile {
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

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotFile({:?} of {})", self.place, self.frozen.facts().name)
    }
}
