//! A snapshot as names and files, for where the kernel cannot mount its image.

use std::sync::Arc;

use penstock_image::ImageNode;
use penstock_types::{
    Answer, KernelTree, ListedNode, Looked, NodeAttributes, NodeId, NodePage, OpenedNode, Posix, Result, TreeSpace,
};

use super::FOREVER;
use super::content::Frozen;
use super::part::Part;

/// Blocks of a directory that make a page: about a thousand names.
const PAGE_BLOCKS: u64 = 8;

/// The names of the image; a node is the number of an inode there.
struct Files(Arc<Frozen>);

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
        let id =
            |node: &ImageNode| if node.number == self.0.image().root() { NodeId::ROOT } else { NodeId(node.number) };
        let attributes = |node: &ImageNode| NodeAttributes {
            node: id(node),
            number: id(node).0,
            is_directory: node.is_directory,
            size: if node.is_directory { 0 } else { node.size },
            modified_ms: node.modified_ms,
            posix: Posix::default(),
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
        let opened = self.node(self.number(node)).map(|node| Part::open(&self.0, node.place, node.size));
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
