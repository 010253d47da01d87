//! The data devices of a snapshot as a kernel mount: one directory with a file for each.

use std::sync::Arc;

use penstock_image::Place;
use penstock_types::{
    Answer, Error, ErrorKind, KernelTree, ListedNode, Looked, NodeAttributes, NodeId, NodePage, OpenedNode, Posix,
    TreeSpace,
};

use super::FOREVER;
use super::content::Frozen;
use super::part::Part;

/// The files `0`, `1`, … that an image of the snapshot takes its bytes from.
struct Devices(Arc<Frozen>);

impl Frozen {
    /// The data devices, for a kernel mount of their own.
    pub fn device_tree(self: &Arc<Self>) -> Arc<dyn KernelTree> {
        Arc::new(Devices(Arc::clone(self)))
    }
}

impl Devices {
    fn node(&self, number: usize) -> NodeAttributes {
        let (node, size) = (NodeId(number as u64 + NodeId::ROOT.0 + 1), self.0.devices()[number]);
        let (modified_ms, posix) = (self.0.facts().created_ms, Posix::default());
        NodeAttributes { node, number: node.0, is_directory: false, size, modified_ms, posix }
    }

    fn number(&self, node: NodeId) -> Option<usize> {
        let number = usize::try_from(node.0.checked_sub(NodeId::ROOT.0 + 1)?).ok()?;
        (number < self.0.devices().len()).then_some(number)
    }

    fn looked(found: Option<NodeAttributes>) -> Looked {
        Looked { found, name_valid: FOREVER, attributes_valid: FOREVER }
    }
}

impl KernelTree for Devices {
    fn lookup(&self, parent: NodeId, name: &str) -> Answer<Looked> {
        let number = name.parse().ok().filter(|number| *number < self.0.devices().len() && parent == NodeId::ROOT);
        Answer::Now(Ok(Self::looked(number.map(|number| self.node(number)))))
    }

    fn attributes(&self, node: NodeId) -> Answer<Looked> {
        let found = match self.number(node) {
            Some(number) => self.node(number),
            None => NodeAttributes::directory(NodeId::ROOT, self.0.facts().created_ms),
        };
        Answer::Now(Ok(Self::looked(Some(found))))
    }

    fn forget(&self, _: NodeId, _: u64) {}

    fn open(&self, node: NodeId) -> Answer<OpenedNode> {
        let opened = self.number(node).map(|number| {
            let device = u16::try_from(number).expect("an image has 256 devices at most");
            Part::open(&self.0, Some(Place { device, offset: 0 }), self.0.devices()[number])
        });
        let absent = || Error::new(ErrorKind::IsADirectory, "open a data device", "it is the directory");
        Answer::Now(opened.ok_or_else(absent))
    }

    fn open_directory(&self, _: NodeId) -> Answer<bool> {
        Answer::Now(Ok(true))
    }

    fn list(&self, _: NodeId, _: Option<&str>) -> Answer<NodePage> {
        let entries = (0..self.0.devices().len()).map(|number| ListedNode {
            name: number.to_string().into(),
            looked: Self::looked(Some(self.node(number))),
            token: Arc::new(()),
        });
        Answer::Now(Ok(NodePage { entries: entries.collect(), next: None }))
    }

    fn remember(&self, _: &ListedNode) {}

    fn name_of(&self, _: NodeId) -> Option<(NodeId, Arc<str>)> {
        None
    }

    fn extended_attributes(&self, _: NodeId) -> Answer<Vec<(&'static str, String)>> {
        Answer::Now(Ok(Vec::new()))
    }

    fn space(&self) -> TreeSpace {
        self.0.engine().space()
    }
}
