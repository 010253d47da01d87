//! The data devices of a snapshot as a kernel mount: one directory with a file for each.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use penstock_types::{
    Answer, ByteRange, Error, ErrorKind, KernelTree, ListedNode, Looked, NodeAttributes, NodeFile, NodeId, NodePage,
    OpenedNode, Result, TreeSpace,
};

use super::content::Frozen;

/// Nothing of it ever changes.
const FOREVER: Duration = Duration::from_secs(86_400);

/// The files `0`, `1`, … that an image of the snapshot takes its bytes from.
struct Devices(Arc<Frozen>);

/// One of them.
struct Device {
    frozen: Arc<Frozen>,
    number: u16,
}

impl Frozen {
    /// The data devices, for a kernel mount of their own.
    pub fn device_tree(self: &Arc<Self>) -> Arc<dyn KernelTree> {
        Arc::new(Devices(Arc::clone(self)))
    }
}

impl Devices {
    fn node(&self, number: usize) -> NodeAttributes {
        let (node, size) = (NodeId(number as u64 + NodeId::ROOT.0 + 1), self.0.devices()[number]);
        NodeAttributes { node, is_directory: false, size, modified_ms: self.0.facts().created_ms }
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
        let modified_ms = self.0.facts().created_ms;
        let found = match self.number(node) {
            Some(number) => self.node(number),
            None => NodeAttributes { node: NodeId::ROOT, is_directory: true, size: 0, modified_ms },
        };
        Answer::Now(Ok(Self::looked(Some(found))))
    }

    fn forget(&self, _: NodeId, _: u64) {}

    fn open(&self, node: NodeId) -> Answer<OpenedNode> {
        let opened = self.number(node).map(|number| {
            let number = u16::try_from(number).expect("an image has 256 devices at most");
            let file = Arc::new(Device { frozen: Arc::clone(&self.0), number });
            OpenedNode { file, lent: None, keep_pages: true }
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

impl NodeFile for Device {
    fn read_now(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        self.frozen.read_now(self.number, offset, out)
    }

    fn bring(self: Arc<Self>, range: ByteRange) -> BoxFuture<'static, Result<Vec<u8>>> {
        Arc::clone(&self.frozen).bring(self.number, range).boxed()
    }

    fn is_evicted(&self) -> bool {
        false
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({} of {})", self.number, self.frozen.facts().name)
    }
}
