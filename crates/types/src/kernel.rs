//! What a kernel asks of a tree: the one narrow trait between the door that speaks FUSE and the engine, so that tests
//! ask without a kernel and the transport can be replaced.

use std::any::Any;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::{ByteRange, Error, ErrorKind, Posix, Result};

/// The kernel's name of one (path, version, way of I/O); it never changes any of them. It is the `st_ino`, too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The directory that is mounted.
    pub const ROOT: Self = Self(1);
}

/// An answer that is known now, or one that has to be waited for: a thread that speaks to the kernel never waits.
pub enum Answer<T> {
    /// Known without waiting.
    Now(Result<T>),
    /// Comes within the foreground deadline, as an error at the latest; what became of a change, when that is known.
    /// Polling a change may block its thread on the disk, where that is not one of a runtime's workers.
    Later(BoxFuture<'static, Result<T>>),
}

/// What `stat` shows. Owner and mode are the mount's where nobody has said others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeAttributes {
    /// Which node.
    pub node: NodeId,
    /// What `stat` shows as its inode number: that of the node, or of another one that its name means as well, before or
    /// after, with the same bytes. Programs take another number for another file.
    pub number: u64,
    /// Directory or file.
    pub is_directory: bool,
    /// Bytes; 0 for a directory.
    pub size: u64,
    /// Milliseconds since the Unix epoch, where nobody has said a time; of a directory, when its listing was learnt last.
    pub modified_ms: i64,
    /// What was said of it.
    pub posix: Posix,
}

impl NodeAttributes {
    /// Those of a directory of which nobody has said anything.
    pub fn directory(node: NodeId, modified_ms: i64) -> Self {
        Self { node, number: node.0, is_directory: true, size: 0, modified_ms, posix: Posix::default() }
    }
}

/// A name that was looked up.
#[derive(Clone, Copy, Debug)]
pub struct Looked {
    /// What has the name; `None` when nothing has.
    pub found: Option<NodeAttributes>,
    /// How long the name may be believed to mean this.
    pub name_valid: Duration,
    /// How long the attributes may be believed.
    pub attributes_valid: Duration,
}

/// One name of a directory.
#[derive(Clone, Debug)]
pub struct ListedNode {
    /// Last component.
    pub name: Arc<str>,
    /// What it is and how long that may be believed; `found` is there.
    pub looked: Looked,
    /// What the tree wants back in [`KernelTree::remember`].
    pub token: Arc<dyn Any + Send + Sync>,
}

/// Some names of a directory and how to go on.
#[derive(Clone, Debug, Default)]
pub struct NodePage {
    /// In an order that stays the same.
    pub entries: Vec<ListedNode>,
    /// Pass as `after` for the next page; `None` on the last.
    pub next: Option<String>,
}

/// A file that was opened.
pub struct OpenedNode {
    /// Its bytes; the version is pinned as long as somebody holds it.
    pub file: Arc<dyn NodeFile>,
    /// The file that holds all of its bytes at their own offsets, for the kernel to read by itself. `None` when the
    /// bytes have to be asked for by [`NodeFile::read_now`] and [`NodeFile::bring`].
    pub lent: Option<Arc<OwnedFd>>,
    /// Whether the kernel may keep pages of it: not where the next open of the node may lend.
    pub keep_pages: bool,
    /// Where it was opened for writing: the same file, to be written, and lent by [`NodeWriter::lend`] alone.
    pub writer: Option<Arc<dyn NodeWriter>>,
}

/// A file that was made and opened in one step.
pub struct CreatedNode {
    /// What the name means; `found` is there, and one lookup is counted.
    pub looked: Looked,
    /// Open for writing.
    pub opened: OpenedNode,
}

/// What a rename does where its new name is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replace {
    /// Takes the place of a file or of an empty directory.
    Yes,
    /// Fails with `AlreadyExists`.
    No,
    /// Gets the old name; something has to have it.
    Exchange,
}

/// What `setattr` asks for; what is `None` stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AttributeChange {
    /// Cut or grown with zeros to so many bytes.
    pub size: Option<u64>,
    /// Mode, owner and modification time.
    pub posix: Posix,
    /// What the mount shows of a file where nobody has said anything: saying that changes nothing.
    pub shown: Posix,
    /// As that, of a directory.
    pub shown_of_directory: Posix,
}

/// What `statfs` shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeSpace {
    /// Bytes that fit the cache in all.
    pub total_bytes: u64,
    /// Bytes of it that nothing is cached in.
    pub free_bytes: u64,
}

/// One pinned version of one file.
pub trait NodeFile: Send + Sync + fmt::Debug {
    /// Copies the bytes from `offset` on, up to the end of the file, into `out` where they are all present; says how
    /// many. `None` when they have to be brought first. Every byte was checked, or is in memory.
    ///
    /// # Errors
    /// `Disk` where the cache cannot be read.
    fn read_now(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>>;

    /// Brings `range` and hands it over, cut at the end of the file.
    ///
    /// # Errors
    /// `StaleVersion` when the pinned version is gone and not cached; `Timeout`, `Unavailable`, `RateLimited`,
    /// `PermissionDenied` from the source; `ResourceLimit` when memory stays used up.
    fn bring(self: Arc<Self>, range: ByteRange) -> BoxFuture<'static, Result<Vec<u8>>>;

    /// Whether the cache wants its bytes back: who keeps the file only for the next open should let go.
    fn is_evicted(&self) -> bool;

    /// Counts another open of its node by who has the file still, as if the tree had been asked; `false` where it has to
    /// be.
    fn open_again(&self) -> bool {
        false
    }
}

/// One handle of a file that is open for writing. All of its handles write the same bytes, and whoever opens the node
/// reads them. Whoever lets go of it says so first: [`NodeWriter::close`].
pub trait NodeWriter: Send + Sync + fmt::Debug {
    /// Writes all of `data` at `offset`. Waits only where the stage is full or the file was committed before.
    ///
    /// # Errors
    /// `NoSpace`, `Disk`; what a commit said that failed before.
    fn write(&self, offset: u64, data: &[u8]) -> Answer<()>;

    /// Calls `fallocate` on the file with the kernel's own `mode`.
    ///
    /// # Errors
    /// As [`NodeWriter::write`]; `Unsupported` for a mode that the disk does not know.
    fn allocate(&self, mode: i32, offset: u64, length: u64) -> Answer<()>;

    /// Makes what was written durable as declared, and visible to all who open the name afterwards; nothing where
    /// nothing was written since. Comes at every close of every descriptor, and with `fsync`.
    ///
    /// # Errors
    /// What keeps it from being so, also when it is asked again.
    fn flush(&self) -> Answer<()>;

    /// The file for the kernel to read and write by itself, from now on and for every handle of the node, where that
    /// may begin (only with `begins`) or has begun. Whatever is written so is told apart from what was flushed by the
    /// size and the time of the file.
    fn lend(&self, begins: bool) -> Option<Arc<OwnedFd>>;

    /// The kernel did not take what was lent by this handle: it asks for every read and write.
    fn take_back(&self);

    /// The handle is gone: what was written since the last flush is flushed, where nobody hears of a failure.
    fn close(&self);
}

/// What a kernel was told and is not so any more.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Expired {
    /// What a name of a directory means, or that nothing has it.
    Name(NodeId, Arc<str>),
    /// Which names a directory has, and its time.
    Names(NodeId),
}

/// Takes back what a kernel was told.
pub trait KernelExpiry: Send + Sync {
    /// Begins at once to take all of it back; who waits for what is returned knows that the kernel has let go of it, or
    /// is told to believe nothing from then on. That takes about a second at most.
    fn expire(&self, expired: Vec<Expired>) -> BoxFuture<'static, ()>;
}

/// A tree as one kernel mount sees it. Methods may be called from many threads at once and never wait.
pub trait KernelTree: Send + Sync {
    /// What `name` means in a directory. Where something is found, one lookup of its node is counted until
    /// [`KernelTree::forget`].
    ///
    /// # Errors
    /// `NotADirectory`; what the source says.
    fn lookup(&self, parent: NodeId, name: &str) -> Answer<Looked>;

    /// What `stat` shows of a node.
    ///
    /// # Errors
    /// `StaleVersion` for a node that was forgotten.
    fn attributes(&self, node: NodeId) -> Answer<Looked>;

    /// The kernel gave `lookups` lookups of a node back.
    fn forget(&self, node: NodeId, lookups: u64);

    /// Opens a node on its version. Small files are complete afterwards.
    ///
    /// # Errors
    /// `StaleVersion` when the node's version is gone, or its way of I/O is not the one it should have now: looking the
    /// name up again gives another node. `IsADirectory`; what the source says.
    fn open(&self, node: NodeId) -> Answer<OpenedNode>;

    /// Whether anything may be written below the mount.
    fn is_writable(&self) -> bool {
        false
    }

    /// Opens a node for writing, empty where `truncate` says so.
    ///
    /// # Errors
    /// `StaleVersion` where the node is a version that others read: looking the name up again gives the node to write.
    /// `ReadOnly`, `IsADirectory`, `NoSpace`; what the source says.
    fn open_for_writing(&self, _node: NodeId, _truncate: bool) -> Answer<OpenedNode> {
        Answer::Now(Err(read_only("open for writing")))
    }

    /// Makes a file of these attributes, or opens the one that has the name unless `exclusive`; empty where it is new or
    /// `truncate` says so.
    ///
    /// # Errors
    /// `AlreadyExists` with `exclusive`; as [`KernelTree::open_for_writing`].
    fn create(
        &self,
        _parent: NodeId,
        _name: &str,
        _posix: Posix,
        (_exclusive, _truncate): (bool, bool),
    ) -> Answer<CreatedNode> {
        Answer::Now(Err(read_only("create a file")))
    }

    /// Makes a directory of these attributes, which stays while it is empty.
    ///
    /// # Errors
    /// `AlreadyExists`, `ReadOnly`; what the source says.
    fn make_directory(&self, _parent: NodeId, _name: &str, _posix: Posix) -> Answer<Looked> {
        Answer::Now(Err(read_only("make a directory")))
    }

    /// Removes a file; who has it open goes on reading and writing.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`, `ReadOnly`; what the source says.
    fn remove(&self, _parent: NodeId, _name: &str) -> Answer<()> {
        Answer::Now(Err(read_only("remove a file")))
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotEmpty`, `NotFound`, `NotADirectory`, `ReadOnly`; what the source says.
    fn remove_directory(&self, _parent: NodeId, _name: &str) -> Answer<()> {
        Answer::Now(Err(read_only("remove a directory")))
    }

    /// Gives a file or directory another name, in one step for whoever looks.
    ///
    /// # Errors
    /// `CrossDevice` where more would have to be renamed or fetched than a rename may wait for; `NotEmpty`, `AlreadyExists`,
    /// `IsADirectory`, `NotADirectory`, `NotFound`, `ReadOnly`; what the source says.
    fn rename(&self, _from: (NodeId, &str), _to: (NodeId, &str), _replace: Replace) -> Answer<()> {
        Answer::Now(Err(read_only("rename")))
    }

    /// Changes size, mode, owner and time of a node; what is shown of it afterwards. Of a directory, and of a file that is not
    /// open for writing, the change is durable when this returns.
    ///
    /// # Errors
    /// As [`KernelTree::open_for_writing`]; `Unsupported` where the source keeps no such thing.
    fn set_attributes(&self, _node: NodeId, _change: AttributeChange) -> Answer<Looked> {
        Answer::Now(Err(read_only("change attributes")))
    }

    /// Begins to read a directory: whether the kernel may go on using the names it keeps from the last time.
    ///
    /// # Errors
    /// `NotADirectory`; `StaleVersion` for a node that was forgotten.
    fn open_directory(&self, node: NodeId) -> Answer<bool>;

    /// A page of the names in a directory. Counts no lookups.
    ///
    /// # Errors
    /// `NotADirectory`, `NotFound`; what the source says.
    fn list(&self, node: NodeId, after: Option<&str>) -> Answer<NodePage>;

    /// Counts a lookup of a listed name that was handed to the kernel with its attributes.
    fn remember(&self, entry: &ListedNode);

    /// The directory and the name that a node was looked up by, for who has to take a name back from the kernel; `None`
    /// for the root and for a node that was forgotten.
    fn name_of(&self, node: NodeId) -> Option<(NodeId, Arc<str>)>;

    /// Names and values of a node's extended attributes.
    fn extended_attributes(&self, node: NodeId) -> Answer<Vec<(&'static str, String)>>;

    /// Space of the cache.
    fn space(&self) -> TreeSpace;

    /// Has `expiry` take back what is not so any more, as long as it is there. A tree that never changes has nothing to
    /// take back.
    fn watch(&self, _expiry: Weak<dyn KernelExpiry>) {}

    /// Compares what the kernel was told with what has been learnt since, and has taken back what differs. A step of
    /// bounded size; asks the source nothing. Blocks for some milliseconds: to be called about once a second, where
    /// that does no harm.
    fn review(&self) {}
}

fn read_only(action: &str) -> Error {
    Error::new(ErrorKind::ReadOnly, action, "nothing may be written below this mount")
}
