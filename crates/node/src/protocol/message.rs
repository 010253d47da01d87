//! Requests and their replies. The order of variants is the wire format: add at the end and raise the version.

use bytes::Bytes;
use penstock_engine::{Entry, EntryPage, Keep, Patch, Prefetched, ReadHint, SetRef, Verified};
use penstock_types::{ByteRange, Durability, Error, Priority, Version};
use serde::{Deserialize, Serialize};

use super::octets;

/// Names a session and proves that one belongs to it. A session is one client process: its leases and arenas are
/// reached through any of its connections and end with the last one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionKey {
    /// Which session of this node.
    pub id: u64,
    /// Random; another process cannot guess it.
    pub secret: [u8; 16],
}

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first frame of a connection. Answer: [`Reply::Welcome`].
    Hello {
        /// Who, for `status`.
        client: String,
        /// A further connection of that session; a session that is gone is answered with a new one.
        session: Option<SessionKey>,
    },
    /// Whether somebody is there. Answer: [`Reply::Pong`].
    Ping,
    /// Attributes of a path. Answer: [`Reply::Entry`].
    Stat {
        /// Absolute path.
        path: String,
    },
    /// A page of a directory. Answer: [`Reply::Entries`].
    List {
        /// Absolute path.
        path: String,
        /// Cursor of the page before.
        after: Option<String>,
        /// At most so many.
        limit: u32,
    },
    /// A page of everything below a directory. Answer: [`Reply::Entries`].
    Walk {
        /// Absolute path.
        path: String,
        /// Cursor of the page before.
        after: Option<String>,
        /// At most so many.
        limit: u32,
    },
    /// Opens a file. Answer: [`Reply::Opened`] with a descriptor.
    Open {
        /// Absolute path.
        path: String,
        /// Exactly this version, or `StaleVersion`.
        version: Option<Version>,
        /// Who waits.
        priority: Priority,
    },
    /// Makes bytes of an open file present. Answer: [`Reply::Ready`], with a descriptor where it changed.
    Ensure {
        /// The open file.
        lease: u64,
        /// What will be read.
        range: ByteRange,
        /// The reader's plan.
        hint: ReadHint,
    },
    /// Ends leases and gives arenas back. No answer.
    Release {
        /// Open files.
        leases: Vec<u64>,
        /// Arenas.
        arenas: Vec<ArenaReturn>,
    },
    /// Whole files, as many of the first ones as fit one arena. Answer: [`Reply::Batch`].
    ReadMany {
        /// Absolute paths.
        paths: Vec<String>,
        /// Who waits.
        priority: Priority,
    },
    /// Ranges of one file, as many of the first ones as fit one arena. Answer: [`Reply::Batch`].
    ReadRanges {
        /// Absolute path.
        path: String,
        /// Exactly this version, or `StaleVersion`.
        version: Option<Version>,
        /// Half-open; clipped to the file.
        ranges: Vec<ByteRange>,
    },
    /// A whole file as a path of the local file system. Answer: [`Reply::Linked`].
    Link {
        /// Absolute path.
        path: String,
    },
    /// Brings whole files into the cache. Answer: [`Reply::Prefetched`].
    Prefetch {
        /// Absolute paths.
        paths: Vec<String>,
    },
    /// Drops files from the cache. Answer: [`Reply::Evicted`].
    Evict {
        /// Absolute paths.
        paths: Vec<String>,
    },
    /// Checks the checksums of what is cached. Answer: [`Reply::Verified`].
    Verify {
        /// Absolute paths.
        paths: Vec<String>,
    },
    /// What is known of a path and its cache. Answer: [`Reply::Json`].
    Why {
        /// Absolute path.
        path: String,
        /// Ask no source: `NotFound` where nothing is known of the path.
        known_only: bool,
    },
    /// A page of the cache's extents. Answer: [`Reply::Json`].
    CacheEntries {
        /// Number of the last extent of the page before.
        after: Option<u64>,
        /// At most so many.
        limit: u32,
    },
    /// Closes this connection in good order: every reply was read. No answer.
    Goodbye,
    /// Begins a new content of a file. Answer: [`Reply::Created`] with a descriptor to read and write.
    Create {
        /// Absolute path.
        path: String,
        /// `AlreadyExists` where the path has a file.
        exclusive: bool,
        /// What a successful commit promises; `None` for what the attachment says.
        durability: Option<Durability>,
        /// It is a file of this set, which is being written.
        set: Option<SetRef>,
    },
    /// Makes room for the bytes of a draft. Answer: [`Reply::Done`], perhaps after a wait for others' uploads.
    Grow {
        /// The draft.
        lease: u64,
        /// Where what will be written ends.
        to: u64,
    },
    /// Makes a draft the content of its file, and ends the lease. Answer: [`Reply::Entry`]. Goes on when the client
    /// goes; a failure leaves the draft as it was.
    Commit {
        /// The draft.
        lease: u64,
    },
    /// Makes a small content the content of a file. Answer: [`Reply::Entry`]. Goes on when the client goes.
    WriteSmall {
        /// Absolute path.
        path: String,
        /// All of it, at most [`SMALL_WRITE_BYTES_MAX`](super::SMALL_WRITE_BYTES_MAX) bytes.
        #[serde(with = "octets")]
        data: Bytes,
        /// `AlreadyExists` where the path has a file.
        exclusive: bool,
        /// What success promises; `None` for what the attachment says.
        durability: Option<Durability>,
        /// It is a file of this set, which is being written.
        set: Option<SetRef>,
    },
    /// Removes a file. Answer: [`Reply::Done`]. Goes on when the client goes.
    Remove {
        /// Absolute path.
        path: String,
    },
    /// Waits until the source has everything below a path. Answer: [`Reply::Done`].
    Persist {
        /// Absolute path.
        path: String,
        /// `Timeout` after so many milliseconds; `None` waits for as long as it takes.
        timeout_ms: Option<u64>,
    },
    /// Gives a file or directory another name. Answer: [`Reply::Done`]. Goes on when the client goes.
    Rename {
        /// Absolute path.
        from: String,
        /// Absolute path, in the same attachment.
        to: String,
        /// Take the place of what has that name.
        replace: bool,
    },
    /// Makes a directory, which stays while it is empty. Answer: [`Reply::Done`].
    MakeDirectory {
        /// Absolute path.
        path: String,
    },
    /// Removes an empty directory. Answer: [`Reply::Done`].
    RemoveDirectory {
        /// Absolute path.
        path: String,
    },
    /// A page of what is in conflict. Answer: [`Reply::Json`].
    Conflicts {
        /// Absolute path.
        path: String,
        /// What is below it as well; otherwise `NotFound` where nothing of the path is in conflict.
        below: bool,
        /// Ask the sources what they have now.
        look: bool,
        /// Last operation of the page before.
        after: Option<String>,
        /// At most so many.
        limit: u32,
    },
    /// What a change in conflict holds. Answer: [`Reply::Done`] with a descriptor to read.
    ConflictContent {
        /// Absolute path.
        path: String,
        /// The change.
        operation: String,
    },
    /// Settles a conflict. Answer: [`Reply::Json`], the conflict as it was. Goes on when the client goes.
    ResolveConflict {
        /// Absolute path.
        path: String,
        /// The change.
        operation: String,
        /// Whose content stays.
        keep: Keep,
    },
    /// Begins a set of files. Answer: [`Reply::Json`], its id.
    BeginSet {
        /// Absolute path.
        path: String,
    },
    /// Makes the files of a set appear. Answer: [`Reply::Done`]. Goes on when the client goes.
    PublishSet {
        /// The set.
        set: SetRef,
        /// What success promises; `None` for what the attachment says.
        durability: Option<Durability>,
    },
    /// Gives a set up that was not published. Answer: [`Reply::Done`].
    DiscardSet {
        /// The set.
        set: SetRef,
        /// `root` is the directory that it was begun in: whose set it was is not known any more.
        left_behind: bool,
    },
    /// Removes a set. Answer: [`Reply::Done`]. Goes on when the client goes.
    RemoveSet {
        /// Absolute path.
        path: String,
    },
    /// The sets at and below a path. Answer: [`Reply::Json`].
    Sets {
        /// Absolute path.
        path: String,
    },
    /// A page of the files of a set. Answer: [`Reply::Json`].
    SetFiles {
        /// Absolute path.
        path: String,
        /// Last path of the page before.
        after: Option<String>,
        /// At most so many.
        limit: u32,
    },
    /// Whether a file of that path may be written, as far as no source is asked. Answer: [`Reply::Done`].
    CheckWritable {
        /// Absolute path.
        path: String,
    },
    /// Begins to change a version of a file. Answer: [`Reply::Editing`] with a descriptor to read and write.
    Edit {
        /// Absolute path.
        path: String,
        /// The newest one, or `StaleVersion`.
        version: Version,
        /// What a successful commit promises; `None` for what the attachment says.
        durability: Option<Durability>,
    },
    /// As [`Request::Commit`], of a draft that lies over the version which is changed.
    CommitPatched {
        /// The draft.
        lease: u64,
        /// Which bytes are its own.
        patch: Patch,
    },
}

/// What the node answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The request failed.
    Failed(Error),
    /// The request is still under way; another reply follows.
    Working,
    /// To `Hello`; a descriptor of the release ring comes with a new session.
    Welcome(Welcome),
    /// To `Ping`: version of the node.
    Pong(String),
    /// To `Stat`, `Commit`, `CommitPatched` and `WriteSmall`.
    Entry(Entry),
    /// To `List` and `Walk`.
    Entries(EntryPage),
    /// To `Open`.
    Opened(Opened),
    /// To `Ensure`.
    Ready(Ready),
    /// To `Ensure`, `Grow`, `Commit` and `CommitPatched`: the session holds no such lease; open the file again.
    NotLeased,
    /// To `ReadMany` and `ReadRanges`: one item for each of the first so many asked for, at least one.
    Batch {
        /// Where the bytes are; `None` when there are none. Its descriptor comes when the session has not had it.
        arena: Option<ArenaGrant>,
        /// Where each one's bytes are in the arena.
        items: Vec<Result<Slot, Error>>,
        /// Arenas that are no more; their mappings can go.
        gone: Vec<u64>,
        /// The version all ranges are of; `None` for whole files.
        version: Option<Version>,
    },
    /// To `Link`.
    Linked(Link),
    /// To `Prefetch`, one each.
    Prefetched(Vec<Result<Prefetched, Error>>),
    /// To `Evict`, bytes freed of each.
    Evicted(Vec<Result<u64, Error>>),
    /// To `Verify`, one each.
    Verified(Vec<Result<Verified, Error>>),
    /// To `Why`, `CacheEntries`, `Conflicts`, `ResolveConflict`, `BeginSet`, `Sets` and `SetFiles`.
    Json(String),
    /// To `Create`.
    Created {
        /// The right to fill the file whose descriptor comes with it; released without a commit, it is discarded.
        lease: u64,
    },
    /// To `Grow`, `Remove`, `Rename`, `MakeDirectory`, `RemoveDirectory`, `Persist`, `ConflictContent`, `PublishSet`,
    /// `DiscardSet`, `RemoveSet` and `CheckWritable`.
    Done,
    /// To `Edit`.
    Editing {
        /// As that of [`Reply::Created`].
        lease: u64,
        /// Where the draft has not all bytes: which are its own. The others are those of the version that is changed.
        patch: Option<Patch>,
    },
}

/// The node's side of the handshake.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The session this connection belongs to.
    pub session: SessionKey,
    /// Process id of the node.
    pub node_pid: u32,
    /// Version of the node.
    pub version: String,
}

/// An open file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// The right to use the descriptor that comes with it.
    pub lease: u64,
    /// Bytes.
    pub size: u64,
    /// Milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// The pinned version.
    pub version: Version,
    /// Every byte is present and stays so: read at will. Otherwise `Ensure` first.
    pub complete: bool,
}

/// Bytes that may be read now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Present until the next `Ensure` of this lease; starts at the range asked for.
    pub range: ByteRange,
    /// Every byte of the file is present and stays so.
    pub complete: bool,
}

/// Shared memory that holds a batch until it is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArenaGrant {
    /// Its name in this session; the same name is the same memory.
    pub id: u64,
    /// Its size, bytes.
    pub capacity: u64,
    /// A descriptor comes with this reply.
    pub fresh: bool,
}

/// An arena given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArenaReturn {
    /// Its name.
    pub id: u64,
    /// Somebody else may still look at it (a forked child): never fill it again.
    pub shared: bool,
}

/// Bytes of one item of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Slot {
    /// Offset in the arena.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

/// A file under a local name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Link {
    /// Ends the name when released.
    pub lease: u64,
    /// Absolute path on this machine; read-only.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// The pinned version.
    pub version: Version,
}
