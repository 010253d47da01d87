//! A tree in memory that counts what it is asked, and misbehaves by name.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use penstock_types::{
    Answer, ByteRange, Error, ErrorKind, Expired, KernelExpiry, KernelTree, ListedNode, Looked, NodeAttributes,
    NodeFile, NodeId, NodePage, OpenedNode, Posix, Result, TreeSpace,
};

const VALID: Duration = Duration::from_secs(60);
const PAGE_NAMES: usize = 700;
/// The directory with many names, and the node of the first of them.
pub const MANY: u64 = 2;
const FIRST_OF_MANY: u64 = 1_000_000;
pub const MANY_NAMES: u64 = 5_000;

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Lent,
    Kept,
    Served,
    /// Its version is gone.
    Gone,
}

/// Bytes that say where they belong.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17) ^ seed) as u8).collect()
}

fn gone(action: &str) -> Error {
    Error::new(ErrorKind::StaleVersion, action, "its version is gone")
}

#[derive(Debug)]
pub struct MemoryFile {
    bytes: Vec<u8>,
    lent: Arc<OwnedFd>,
    way: Mutex<Way>,
    /// Whether reads are answered without being brought.
    pub present: AtomicBool,
    pub evicted: AtomicBool,
    pub reads: AtomicU64,
}

impl MemoryFile {
    /// How the next open opens it.
    pub fn set_way(&self, way: Way) {
        *self.way.lock().unwrap() = way;
    }

    fn cut(&self, range: ByteRange) -> &[u8] {
        let end = usize::try_from(range.end).unwrap().min(self.bytes.len());
        &self.bytes[usize::try_from(range.start).unwrap().min(end)..end]
    }
}

impl NodeFile for MemoryFile {
    fn read_now(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if !self.present.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let bytes = self.cut(ByteRange::new(offset, offset + out.len() as u64));
        out[..bytes.len()].copy_from_slice(bytes);
        Ok(Some(bytes.len()))
    }

    fn bring(self: Arc<Self>, range: ByteRange) -> BoxFuture<'static, Result<Vec<u8>>> {
        Box::pin(async move {
            if *self.way.lock().unwrap() == Way::Gone {
                return Err(gone("read a file"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(self.cut(range).to_vec())
        })
    }

    fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::SeqCst)
    }

    fn open_again(&self) -> bool {
        *self.way.lock().unwrap() == Way::Lent
    }
}

#[derive(Default)]
pub struct MemoryTree {
    names: BTreeMap<String, u64>,
    files: BTreeMap<u64, Arc<MemoryFile>>,
    pub lookups: AtomicU64,
    pub opens: AtomicU64,
    pub remembered: AtomicU64,
    pub lists: AtomicU64,
    /// Whether the kernel may go on using names that it keeps.
    pub keeps_names: AtomicBool,
    expiry: Mutex<Option<Weak<dyn KernelExpiry>>>,
    /// Opens this before a lookup of `blocks` goes on.
    gate: (Mutex<bool>, Condvar),
}

impl MemoryTree {
    pub fn with(files: &[(&str, usize, Way)]) -> Self {
        let mut tree = Self::default();
        for (node, (name, length, way)) in (10_u64..).zip(files) {
            let bytes = content(node, *length);
            let mut backing = tempfile::tempfile().unwrap();
            backing.write_all(&bytes).unwrap();
            tree.names.insert((*name).to_string(), node);
            let file = MemoryFile {
                bytes,
                lent: Arc::new(backing.into()),
                way: Mutex::new(*way),
                present: AtomicBool::new(true),
                evicted: AtomicBool::new(false),
                reads: AtomicU64::new(0),
            };
            tree.files.insert(node, Arc::new(file));
        }
        tree.names.insert("many".into(), MANY);
        tree
    }

    pub fn file(&self, name: &str) -> &Arc<MemoryFile> {
        &self.files[&self.names[name]]
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        &self.file(name).bytes
    }

    /// Has something taken back from the kernel.
    pub fn expire(&self, expired: Vec<Expired>) -> BoxFuture<'static, ()> {
        let expiry = self.expiry.lock().unwrap().as_ref().and_then(Weak::upgrade);
        expiry.expect("the door watches").expire(expired)
    }

    pub fn open_gate(&self) {
        *self.gate.0.lock().unwrap() = true;
        self.gate.1.notify_all();
    }

    fn looked(&self, node: Option<u64>) -> Looked {
        let found = node.map(|node| NodeAttributes {
            node: NodeId(node),
            number: node,
            is_directory: node <= MANY,
            size: self.files.get(&node).map_or(0, |file| file.bytes.len() as u64),
            modified_ms: 1_700_000_000_123,
            posix: Posix::default(),
        });
        Looked { found, name_valid: VALID, attributes_valid: VALID }
    }

    fn names(&self, directory: NodeId) -> Vec<(String, u64)> {
        match directory.0 {
            1 => self.names.iter().map(|(name, node)| (name.clone(), *node)).collect(),
            _ => (0..MANY_NAMES).map(|number| (format!("{number:05}"), FIRST_OF_MANY + number)).collect(),
        }
    }
}

impl KernelTree for MemoryTree {
    fn lookup(&self, parent: NodeId, name: &str) -> Answer<Looked> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        match name {
            "hangs" => return Answer::Later(Box::pin(std::future::pending())),
            "blocks" => {
                let open = self.gate.0.lock().unwrap();
                drop(self.gate.1.wait_while(open, |open| !*open).unwrap());
            }
            "panics" => panic!("as the test wants"),
            "panics-later" => return Answer::Later(Box::pin(async { panic!("as the test wants") })),
            "throttled" => {
                return Answer::Now(Err(Error::new(ErrorKind::RateLimited, "look a name up", "the source is busy")));
            }
            _ => {}
        }
        let node = if parent.0 == MANY {
            name.parse().ok().filter(|number| *number < MANY_NAMES).map(|number: u64| FIRST_OF_MANY + number)
        } else {
            self.names.get(name).copied()
        };
        Answer::Now(Ok(self.looked(node)))
    }

    fn attributes(&self, node: NodeId) -> Answer<Looked> {
        Answer::Now(Ok(self.looked(Some(node.0))))
    }

    fn forget(&self, _: NodeId, _: u64) {}

    fn open(&self, node: NodeId) -> Answer<OpenedNode> {
        self.opens.fetch_add(1, Ordering::SeqCst);
        let file = Arc::clone(&self.files[&node.0]);
        let way = *file.way.lock().unwrap();
        if way == Way::Gone {
            return Answer::Now(Err(gone("open a file")));
        }
        let lent = (way == Way::Lent).then(|| Arc::clone(&file.lent));
        Answer::Now(Ok(OpenedNode { file, lent, keep_pages: way == Way::Kept, writer: None }))
    }

    fn open_directory(&self, _: NodeId) -> Answer<bool> {
        Answer::Now(Ok(self.keeps_names.load(Ordering::SeqCst)))
    }

    fn list(&self, node: NodeId, after: Option<&str>) -> Answer<NodePage> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        let names = self.names(node);
        let from = after.map_or(0, |after| names.iter().position(|(name, _)| name == after).unwrap() + 1);
        let to = names.len().min(from + PAGE_NAMES);
        let next = (to < names.len()).then(|| names[to - 1].0.clone());
        let entries = names[from..to].iter().map(|(name, node)| ListedNode {
            name: name.as_str().into(),
            looked: self.looked(Some(*node)),
            token: Arc::new(()),
        });
        let page = NodePage { entries: entries.collect(), next };
        // Every second page has to be waited for.
        if (from / PAGE_NAMES).is_multiple_of(2) {
            Answer::Now(Ok(page))
        } else {
            Answer::Later(Box::pin(async { Ok(page) }))
        }
    }

    fn remember(&self, _: &ListedNode) {
        self.remembered.fetch_add(1, Ordering::SeqCst);
    }

    fn name_of(&self, node: NodeId) -> Option<(NodeId, Arc<str>)> {
        let named = self.names.iter().find(|(_, known)| **known == node.0)?;
        Some((NodeId::ROOT, named.0.as_str().into()))
    }

    fn extended_attributes(&self, node: NodeId) -> Answer<Vec<(&'static str, String)>> {
        Answer::Now(Ok(vec![("user.penstock.node", node.0.to_string()), ("user.penstock.state", "cached".into())]))
    }

    fn space(&self) -> TreeSpace {
        TreeSpace { total_bytes: 1 << 40, free_bytes: 1 << 39 }
    }

    fn watch(&self, expiry: Weak<dyn KernelExpiry>) {
        *self.expiry.lock().unwrap() = Some(expiry);
    }
}
