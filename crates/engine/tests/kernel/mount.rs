//! A tree as a kernel would use it, without a kernel.

use std::sync::Arc;

use penstock_types::{
    Answer, ByteRange, KernelTree, ListedNode, Looked, NodeAttributes, NodeFile, NodeId, OpenedNode, Result, TreePath,
};

use crate::support::Bench;

/// A mount of an engine's tree.
pub struct Mount {
    pub bench: Bench,
    pub tree: Arc<dyn KernelTree>,
}

impl Mount {
    pub fn of(bench: Bench, base: &str, lending: bool) -> Self {
        let tree = bench.engine.kernel_tree(&TreePath::parse(base).unwrap(), lending);
        Self { bench, tree }
    }

    pub fn wait<T>(&self, answer: Answer<T>) -> Result<T> {
        match answer {
            Answer::Now(answer) => answer,
            Answer::Later(answer) => self.bench.runtime.block_on(answer),
        }
    }

    pub fn look(&self, parent: NodeId, name: &str) -> Looked {
        self.wait(self.tree.lookup(parent, name)).unwrap()
    }

    pub fn found(&self, parent: NodeId, name: &str) -> NodeAttributes {
        self.look(parent, name).found.unwrap()
    }

    pub fn open(&self, node: NodeId) -> Result<OpenedNode> {
        self.wait(self.tree.open(node))
    }

    pub fn names(&self, directory: NodeId) -> Vec<ListedNode> {
        let (mut names, mut after) = (Vec::new(), None);
        loop {
            let page = self.wait(self.tree.list(directory, after.as_deref())).unwrap();
            names.extend(page.entries);
            after = page.next;
            if after.is_none() {
                return names;
            }
        }
    }

    /// Reads as a door does.
    pub fn read(&self, file: &Arc<dyn NodeFile>, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; length];
        match file.read_now(offset, &mut out)? {
            Some(read) => {
                out.truncate(read);
                Ok(out)
            }
            None => {
                let range = ByteRange::new(offset, offset + length as u64);
                self.bench.runtime.block_on(Arc::clone(file).bring(range))
            }
        }
    }
}
