//! A tree in memory that is written, counts what it is asked, and misbehaves when it is told to.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use penstock_types::{
    Answer, AttributeChange, ByteRange, CreatedNode, Error, ErrorKind, KernelTree, ListedNode, Looked, NodeAttributes,
    NodeFile, NodeId, NodePage, NodeWriter, OpenedNode, Posix, Replace, Result, TreeSpace,
};

use tokio::sync::Notify;

const VALID: Duration = Duration::from_secs(60);
/// `FALLOC_FL_KEEP_SIZE` and `FALLOC_FL_PUNCH_HOLE`.
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;

/// What the tree was asked, and what it is to answer.
#[derive(Debug, Default)]
pub struct Counts {
    pub lookups: AtomicU64,
    pub flushes: AtomicU64,
    /// Flushes that had something to make durable.
    pub commits: AtomicU64,
    pub closes: AtomicU64,
    pub stale_opens: AtomicU64,
    pub truncating_opens: AtomicU64,
    pub fails_flushes: AtomicBool,
    pub is_full: AtomicBool,
    /// Flushes end only once it is opened, where there is one.
    pub gate: Mutex<Option<Arc<Notify>>>,
    answers: AtomicU64,
}

impl Counts {
    /// Every second answer has to be waited for.
    fn answer<T: Send + 'static>(&self, result: Result<T>) -> Answer<T> {
        if self.answers.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            return Answer::Now(result);
        }
        Answer::Later(Box::pin(async {
            tokio::task::yield_now().await;
            result
        }))
    }
}

/// The content of one file, for all of its handles.
#[derive(Debug, Default)]
struct Content {
    bytes: Mutex<Vec<u8>>,
    dirty: AtomicBool,
    counts: Arc<Counts>,
}

impl Content {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap()
    }

    fn resize(&self, size: usize) {
        self.bytes().resize(size, 0);
        self.dirty.store(true, Ordering::SeqCst);
    }
}

impl NodeFile for Content {
    fn read_now(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        let bytes = self.bytes();
        let start = usize::try_from(offset).unwrap().min(bytes.len());
        let length = out.len().min(bytes.len() - start);
        out[..length].copy_from_slice(&bytes[start..start + length]);
        Ok(Some(length))
    }

    fn bring(self: Arc<Self>, _: ByteRange) -> BoxFuture<'static, Result<Vec<u8>>> {
        unreachable!("all of it is there")
    }

    fn is_evicted(&self) -> bool {
        false
    }
}

/// One handle that is open for writing.
#[derive(Debug)]
struct Handle(Arc<Content>);

impl NodeWriter for Handle {
    fn lend(&self, _: bool) -> Option<Arc<OwnedFd>> {
        None
    }

    fn take_back(&self) {
        unreachable!("nothing is lent");
    }

    fn write(&self, offset: u64, data: &[u8]) -> Answer<()> {
        let counts = &self.0.counts;
        if counts.is_full.load(Ordering::SeqCst) {
            return counts.answer(Err(Error::new(ErrorKind::NoSpace, "write", "as the test wants")));
        }
        let start = usize::try_from(offset).unwrap();
        let mut bytes = self.0.bytes();
        let end = bytes.len().max(start + data.len());
        bytes.resize(end, 0);
        bytes[start..start + data.len()].copy_from_slice(data);
        self.0.dirty.store(true, Ordering::SeqCst);
        counts.answer(Ok(()))
    }

    fn allocate(&self, mode: i32, offset: u64, length: u64) -> Answer<()> {
        let (start, end) = (usize::try_from(offset).unwrap(), usize::try_from(offset + length).unwrap());
        let size = self.0.bytes().len();
        let result = match mode {
            0 => {
                self.0.resize(size.max(end));
                Ok(())
            }
            mode if mode == KEEP_SIZE | PUNCH_HOLE => {
                self.0.bytes()[start.min(size)..end.min(size)].fill(0);
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::Unsupported, "allocate", "no such mode here")),
        };
        self.0.counts.answer(result)
    }

    fn flush(&self) -> Answer<()> {
        let counts = &self.0.counts;
        counts.flushes.fetch_add(1, Ordering::SeqCst);
        if counts.fails_flushes.load(Ordering::SeqCst) {
            return counts.answer(Err(Error::new(ErrorKind::NoSpace, "close", "as the test wants")));
        }
        counts.commits.fetch_add(self.0.dirty.swap(false, Ordering::SeqCst).into(), Ordering::SeqCst);
        match counts.gate.lock().unwrap().clone() {
            Some(gate) => Answer::Later(Box::pin(async move {
                gate.notified().await;
                Ok(())
            })),
            None => counts.answer(Ok(())),
        }
    }

    fn close(&self) {
        self.0.counts.closes.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
enum Node {
    Directory(BTreeMap<String, u64>),
    File {
        content: Arc<Content>,
        posix: Posix,
        /// Whether it is a version that stays what it is.
        is_settled: bool,
    },
}

/// A tree that is written.
pub struct WritableTree {
    nodes: Mutex<BTreeMap<u64, Node>>,
    pub counts: Arc<Counts>,
}

fn failed<T>(kind: ErrorKind) -> Result<T> {
    Err(Error::new(kind, "change the tree", "as a file system would"))
}

impl WritableTree {
    /// With some files in its root, which are versions that others read.
    pub fn with(files: &[(&str, &[u8])]) -> Self {
        let tree = Self {
            nodes: Mutex::new([(NodeId::ROOT.0, Node::Directory(BTreeMap::new()))].into()),
            counts: Arc::default(),
        };
        for (name, bytes) in files {
            tree.add(&mut tree.nodes(), NodeId::ROOT.0, name, tree.file(bytes.to_vec(), true));
        }
        tree
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<u64, Node>> {
        self.nodes.lock().unwrap()
    }

    fn file(&self, bytes: Vec<u8>, is_settled: bool) -> Node {
        let counts = Arc::clone(&self.counts);
        let content = Content { bytes: Mutex::new(bytes), dirty: AtomicBool::new(!is_settled), counts };
        Node::File { content: Arc::new(content), posix: Posix::default(), is_settled }
    }

    fn add(&self, nodes: &mut BTreeMap<u64, Node>, parent: u64, name: &str, node: Node) -> u64 {
        let number = nodes.last_key_value().unwrap().0 + 10;
        nodes.insert(number, node);
        names_of(nodes, parent).insert(name.to_owned(), number);
        number
    }

    fn opened(content: &Arc<Content>, for_writing: bool) -> OpenedNode {
        let writer = for_writing.then(|| Arc::new(Handle(Arc::clone(content))) as Arc<dyn NodeWriter>);
        OpenedNode { file: Arc::clone(content) as Arc<dyn NodeFile>, lent: None, keep_pages: true, writer }
    }
}

fn names_of(nodes: &mut BTreeMap<u64, Node>, node: u64) -> &mut BTreeMap<String, u64> {
    match nodes.get_mut(&node) {
        Some(Node::Directory(names)) => names,
        other => panic!("{other:?} is no directory"),
    }
}

fn shown(nodes: &BTreeMap<u64, Node>, node: Option<u64>) -> Looked {
    let found = node.map(|number| {
        let (is_directory, size, modified_ms, posix) = match &nodes[&number] {
            Node::Directory(_) => (true, 0, 0, Posix::default()),
            Node::File { content, posix, .. } => (false, content.bytes().len() as u64, 1_700_000_000_123, *posix),
        };
        NodeAttributes { node: NodeId(number), number, is_directory, size, modified_ms, posix }
    });
    Looked { found, name_valid: VALID, attributes_valid: VALID }
}

/// Takes the place of what has the name, where that may be.
fn make_room(nodes: &mut BTreeMap<u64, Node>, moved: u64, to: u64, name: &str, replace: Replace) -> Result<()> {
    let Some(there) = names_of(nodes, to).get(name).copied() else { return Ok(()) };
    match (&nodes[&moved], &nodes[&there]) {
        _ if replace == Replace::No => failed(ErrorKind::AlreadyExists),
        (Node::File { .. }, Node::Directory(_)) => failed(ErrorKind::IsADirectory),
        (Node::Directory(_), Node::File { .. }) => failed(ErrorKind::NotADirectory),
        (_, Node::Directory(names)) if !names.is_empty() => failed(ErrorKind::NotEmpty),
        _ => Ok(()),
    }
}

impl KernelTree for WritableTree {
    fn lookup(&self, parent: NodeId, name: &str) -> Answer<Looked> {
        self.counts.lookups.fetch_add(1, Ordering::SeqCst);
        if name == "hangs" {
            return Answer::Later(Box::pin(std::future::pending()));
        }
        let mut nodes = self.nodes();
        let node = names_of(&mut nodes, parent.0).get(name).copied();
        self.counts.answer(Ok(shown(&nodes, node)))
    }

    fn attributes(&self, node: NodeId) -> Answer<Looked> {
        self.counts.answer(Ok(shown(&self.nodes(), Some(node.0))))
    }

    fn forget(&self, _: NodeId, _: u64) {}

    fn open(&self, node: NodeId) -> Answer<OpenedNode> {
        match &self.nodes()[&node.0] {
            Node::File { content, .. } => self.counts.answer(Ok(Self::opened(content, false))),
            Node::Directory(_) => self.counts.answer(failed(ErrorKind::IsADirectory)),
        }
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn open_for_writing(&self, node: NodeId, truncate: bool) -> Answer<OpenedNode> {
        let mut nodes = self.nodes();
        let Node::File { content, is_settled, .. } = &nodes[&node.0] else {
            return self.counts.answer(failed(ErrorKind::IsADirectory));
        };
        if *is_settled {
            // From now on the name means another node, which can be written.
            let bytes = content.bytes().clone();
            let has_it = |(number, each): (&u64, &Node)| match each {
                Node::Directory(names) => {
                    names.iter().find(|(_, named)| **named == node.0).map(|(name, _)| (*number, name.clone()))
                }
                Node::File { .. } => None,
            };
            let (parent, name) = nodes.iter().find_map(has_it).unwrap();
            self.add(&mut nodes, parent, &name, self.file(bytes, false));
            self.counts.stale_opens.fetch_add(1, Ordering::SeqCst);
            return self.counts.answer(failed(ErrorKind::StaleVersion));
        }
        if truncate {
            self.counts.truncating_opens.fetch_add(1, Ordering::SeqCst);
            content.resize(0);
        }
        self.counts.answer(Ok(Self::opened(content, true)))
    }

    fn create(
        &self,
        parent: NodeId,
        name: &str,
        made: Posix,
        (exclusive, truncate): (bool, bool),
    ) -> Answer<CreatedNode> {
        let mut nodes = self.nodes();
        let there = names_of(&mut nodes, parent.0).get(name).copied();
        if there.is_some() && exclusive {
            return self.counts.answer(failed(ErrorKind::AlreadyExists));
        }
        let node = there.unwrap_or_else(|| self.add(&mut nodes, parent.0, name, self.file(Vec::new(), false)));
        let Some(Node::File { content, posix, .. }) = nodes.get_mut(&node) else {
            return self.counts.answer(failed(ErrorKind::IsADirectory));
        };
        *posix = posix.merged(made);
        if truncate {
            content.resize(0);
        }
        let opened = Self::opened(content, true);
        self.counts.answer(Ok(CreatedNode { looked: shown(&nodes, Some(node)), opened }))
    }

    fn make_directory(&self, parent: NodeId, name: &str, _: Posix) -> Answer<Looked> {
        let mut nodes = self.nodes();
        if names_of(&mut nodes, parent.0).contains_key(name) {
            return self.counts.answer(failed(ErrorKind::AlreadyExists));
        }
        let node = self.add(&mut nodes, parent.0, name, Node::Directory(BTreeMap::new()));
        self.counts.answer(Ok(shown(&nodes, Some(node))))
    }

    fn remove(&self, parent: NodeId, name: &str) -> Answer<()> {
        let gone = names_of(&mut self.nodes(), parent.0).remove(name);
        self.counts.answer(if gone.is_some() { Ok(()) } else { failed(ErrorKind::NotFound) })
    }

    fn remove_directory(&self, parent: NodeId, name: &str) -> Answer<()> {
        let mut nodes = self.nodes();
        let Some(node) = names_of(&mut nodes, parent.0).get(name).copied() else {
            return self.counts.answer(failed(ErrorKind::NotFound));
        };
        if !names_of(&mut nodes, node).is_empty() {
            return self.counts.answer(failed(ErrorKind::NotEmpty));
        }
        names_of(&mut nodes, parent.0).remove(name);
        self.counts.answer(Ok(()))
    }

    fn rename(&self, from: (NodeId, &str), to: (NodeId, &str), replace: Replace) -> Answer<()> {
        if to.1 == "elsewhere" {
            return self.counts.answer(failed(ErrorKind::CrossDevice));
        }
        let mut nodes = self.nodes();
        let Some(moved) = names_of(&mut nodes, from.0.0).get(from.1).copied() else {
            return self.counts.answer(failed(ErrorKind::NotFound));
        };
        if replace == Replace::Exchange {
            let Some(other) = names_of(&mut nodes, to.0.0).insert(to.1.to_owned(), moved) else {
                names_of(&mut nodes, to.0.0).remove(to.1);
                return self.counts.answer(failed(ErrorKind::NotFound));
            };
            names_of(&mut nodes, from.0.0).insert(from.1.to_owned(), other);
            return self.counts.answer(Ok(()));
        }
        let room = make_room(&mut nodes, moved, to.0.0, to.1, replace);
        if room.is_ok() {
            names_of(&mut nodes, from.0.0).remove(from.1);
            names_of(&mut nodes, to.0.0).insert(to.1.to_owned(), moved);
        }
        self.counts.answer(room)
    }

    fn set_attributes(&self, node: NodeId, change: AttributeChange) -> Answer<Looked> {
        let mut nodes = self.nodes();
        if let Some(Node::File { content, posix, .. }) = nodes.get_mut(&node.0) {
            *posix = posix.merged(change.posix.beyond(change.shown));
            if let Some(size) = change.size {
                content.resize(usize::try_from(size).unwrap());
            }
        }
        self.counts.answer(Ok(shown(&nodes, Some(node.0))))
    }

    fn open_directory(&self, _: NodeId) -> Answer<bool> {
        self.counts.answer(Ok(true))
    }

    fn list(&self, node: NodeId, _: Option<&str>) -> Answer<NodePage> {
        let mut nodes = self.nodes();
        let names = names_of(&mut nodes, node.0).clone();
        let listed = |(name, node): (String, u64)| ListedNode {
            name: name.into(),
            looked: shown(&nodes, Some(node)),
            token: Arc::new(()),
        };
        let entries = names.into_iter().map(listed).collect();
        self.counts.answer(Ok(NodePage { entries, next: None }))
    }

    fn remember(&self, _: &ListedNode) {}

    fn name_of(&self, _: NodeId) -> Option<(NodeId, Arc<str>)> {
        None
    }

    fn extended_attributes(&self, _: NodeId) -> Answer<Vec<(&'static str, String)>> {
        self.counts.answer(Ok(Vec::new()))
    }

    fn space(&self) -> TreeSpace {
        TreeSpace { total_bytes: 1 << 40, free_bytes: 1 << 39 }
    }
}
