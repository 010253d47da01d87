//! The nodes that the kernel holds: which path and version each id stands for, until it is forgotten.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use penstock_types::{AttachmentId, NodeAttributes, NodeId, ObjectKey, Posix, Version};

use crate::kernel::renamed::Renamed;
use crate::kernel::told::Told;

/// Tables, so that threads seldom meet.
const SHARDS: usize = 16;

/// How the kernel gets the bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// It reads the extent file by itself: complete files, and small ones, which are complete once they are open.
    Lent,
    /// It asks for them and keeps the pages, until the file is complete and can be lent.
    Served,
    /// It asks for them and keeps the pages, always: this kernel cannot read extent files.
    Kept,
    /// It is open for writing: the kernel asks for everything, and all handles see the same bytes.
    Live,
}

/// What an id stands for. Never changes as long as the kernel holds it.
#[derive(Clone, Debug)]
pub struct Node {
    /// Path in the tree: of the directory itself, or of the directory that holds the file.
    pub directory: Arc<str>,
    /// The file; `None` is the directory itself.
    pub file: Option<Arc<FileNode>>,
}

impl Node {
    /// Path of the directory that it has a name in; `None` for the root of the tree.
    fn parent(&self) -> Option<&str> {
        if self.file.is_some() {
            return Some(&self.directory);
        }
        let (parent, name) = self.directory.rsplit_once('/')?;
        if name.is_empty() { None } else { Some(if parent.is_empty() { "/" } else { parent }) }
    }

    /// The name that it has there.
    pub fn name(&self) -> Arc<str> {
        match &self.file {
            Some(file) => Arc::clone(&file.name),
            None => self.directory.rsplit('/').next().unwrap_or_default().into(),
        }
    }
}

/// One version of one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileNode {
    pub name: Arc<str>,
    pub size: u64,
    pub modified_ms: i64,
    pub posix: Posix,
    pub version: Version,
    pub way: Way,
    /// Its inode number, where that is not its id.
    pub number: Option<u64>,
}

struct Held {
    node: Node,
    lookups: u64,
    /// The time that the kernel was told last, milliseconds since the Unix epoch; `None` when that is not so any more.
    modified_ms: Option<i64>,
    /// What the name means since something was said of the file by this node.
    adorned: Option<Version>,
    /// Which lookup was counted last: of two nodes of one name, the kernel takes the name for the later one.
    told: u64,
}

/// Nodes by id. A few hundred bytes for each that the kernel holds, none for others.
pub struct Nodes {
    shards: [Mutex<HashMap<u64, Held>>; SHARDS],
    counted: AtomicU64,
    /// What the kernel was told of directories. Locked inside a shard, never around one.
    told: Told,
    renamed: Renamed,
}

impl Nodes {
    /// The table of a mount; `base` is the tree path of its root.
    pub fn new(base: &str) -> Self {
        let (told, renamed) = (Told::default(), Renamed::default());
        let nodes = Self { shards: Default::default(), counted: AtomicU64::new(0), told, renamed };
        let root = Node { directory: base.into(), file: None };
        nodes
            .shard(NodeId::ROOT)
            .insert(NodeId::ROOT.0, Held { node: root, lookups: 1, modified_ms: None, adorned: None, told: 0 });
        nodes
    }

    /// What the kernel was told of directories.
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// What an id stands for; `None` when the kernel does not hold it.
    pub fn get(&self, id: NodeId) -> Option<Node> {
        self.shard(id).get(&id.0).map(|held| held.node.clone())
    }

    /// As [`Nodes::get`], and which of all lookups was the last of it.
    pub fn get_told(&self, id: u64) -> Option<(Node, u64)> {
        self.shard(NodeId(id)).get(&id).map(|held| (held.node.clone(), held.told))
    }

    /// The path that the file of a node has by now; `None` for a directory, and when the kernel does not hold it.
    pub fn file_path(&self, id: NodeId) -> Option<String> {
        let (node, told) = self.get_told(id.0)?;
        let path = format!("{}/{}", node.directory.trim_end_matches('/'), node.file?.name);
        Some(self.renamed.follow(path, told))
    }

    /// A file has another path from now on; the kernel gives that name to the node that it has.
    pub fn move_file(&self, from: &str, to: &str) {
        self.renamed.note(from, to, self.counted.fetch_add(1, Ordering::Relaxed));
    }

    /// Each of two files has the path of the other from now on; so have the nodes that the kernel has.
    pub fn exchange_files(&self, one: &str, other: &str) {
        let at = self.counted.fetch_add(1, Ordering::Relaxed);
        self.renamed.note(one, other, at);
        self.renamed.note(other, one, at);
    }

    /// Counts a lookup of a node that the kernel is told these attributes of.
    pub fn count(&self, found: &NodeAttributes, node: impl FnOnce() -> Node) {
        let (id, modified_ms) = (found.node, Some(found.modified_ms));
        let told = self.counted.fetch_add(1, Ordering::Relaxed);
        match self.shard(id).entry(id.0) {
            Entry::Occupied(mut held) => {
                let held = held.get_mut();
                (held.lookups, held.modified_ms, held.told) = (held.lookups + 1, modified_ms, told);
            }
            Entry::Vacant(free) => {
                let node = node();
                if let Some(directory) = node.parent() {
                    self.told.hold(directory, id.0);
                }
                free.insert(Held { node, lookups: 1, modified_ms, adorned: None, told });
            }
        }
    }

    /// Something was said anew of a file, by who holds this node of it: it has the same bytes as `version`, which the name
    /// means from now on.
    pub fn adorn(&self, id: NodeId, posix: Posix, version: Version) {
        let mut shard = self.shard(id);
        let Some(held) = shard.get_mut(&id.0) else { return };
        if let Some(file) = &held.node.file {
            let posix = file.posix.merged(posix);
            held.node.file = Some(Arc::new(FileNode { posix, ..(**file).clone() }));
            held.adorned = Some(version);
        }
    }

    /// The version that has the bytes of a node, of which something was said anew.
    pub fn adorned(&self, id: NodeId) -> Option<Version> {
        self.shard(id).get(&id.0)?.adorned.clone()
    }

    /// Notes the time of a node that the kernel is told, or that the one it was told is not so any more.
    pub fn show_time(&self, id: NodeId, modified_ms: Option<i64>) {
        if let Some(held) = self.shard(id).get_mut(&id.0) {
            held.modified_ms = modified_ms;
        }
    }

    /// The time of a node that the kernel was told last.
    pub fn shown_time(&self, id: NodeId) -> Option<i64> {
        self.shard(id).get(&id.0)?.modified_ms
    }

    /// Takes lookups back; the last one ends the node. The root stays.
    pub fn forget(&self, id: NodeId, lookups: u64) {
        if id == NodeId::ROOT {
            return;
        }
        if let Entry::Occupied(mut held) = self.shard(id).entry(id.0) {
            let left = held.get().lookups.saturating_sub(lookups);
            held.get_mut().lookups = left;
            if left == 0 {
                let node = held.remove().node;
                if let Some(directory) = node.parent() {
                    self.told.release(directory, id.0);
                }
                if node.file.is_none() {
                    self.told.close(&node.directory);
                }
            }
        }
    }

    /// A directory has another path from now on: so has everything that is held below it.
    pub fn move_directory(&self, from: &str, to: &str) {
        self.renamed.move_directory(from, to);
        for shard in &self.shards {
            let mut shard = shard.lock().expect("no panic while nodes are looked up");
            for (id, held) in shard.iter_mut() {
                let Some(below) = held.node.directory.strip_prefix(from) else { continue };
                if !below.is_empty() && !below.starts_with('/') {
                    continue;
                }
                let moved = Node { directory: format!("{to}{below}").into(), file: held.node.file.clone() };
                if let (Some(before), Some(after)) = (held.node.parent(), moved.parent()) {
                    self.told.release(before, *id);
                    self.told.hold(after, *id);
                }
                if held.node.file.is_none() {
                    self.told.close(&held.node.directory);
                }
                held.node = moved;
            }
        }
    }

    /// The id of a directory: its path alone, for other mounts may hang on it.
    pub fn directory_id(&self, path: &str) -> NodeId {
        let is_it = |node: &Node| node.file.is_none() && &*node.directory == path;
        self.free_id(hash(&[b"directory", path.as_bytes()]), is_it)
    }

    /// The id of a file: its attachment, key, version and way.
    pub fn file_id(&self, attachment: &AttachmentId, key: &ObjectKey, directory: &str, file: &FileNode) -> NodeId {
        let way: &[u8] = if file.way == Way::Served { b"served" } else { b"" };
        let parts = parts_of(attachment, key, &file.version, way);
        let is_it = |node: &Node| node.file.as_deref() == Some(file) && &*node.directory == directory;
        self.free_id(hash(&parts), is_it)
    }

    /// The id of a live file, wherever it is.
    pub fn live_id(&self, version: &Version) -> NodeId {
        let is_it =
            |node: &Node| node.file.as_ref().is_some_and(|file| file.way == Way::Live && file.version == *version);
        self.free_id(hash(&[b"live", version.as_str().as_bytes()]), is_it)
    }

    /// The first id from `hash` on that is free or `is_it`: two names never share one.
    fn free_id(&self, mut hash: u64, is_it: impl Fn(&Node) -> bool) -> NodeId {
        loop {
            let id = NodeId(hash);
            let fits = hash > NodeId::ROOT.0 && self.shard(id).get(&hash).is_none_or(|held| is_it(&held.node));
            if fits {
                return id;
            }
            hash = mix(hash.wrapping_add(1));
        }
    }

    fn shard(&self, id: NodeId) -> MutexGuard<'_, HashMap<u64, Held>> {
        let shard = &self.shards[id.0 as usize % SHARDS];
        shard.lock().expect("no panic while nodes are looked up")
    }
}

/// The inode number of a version that is read in a way, where that is not the id: it stays when the file is complete, and
/// its name means another id.
pub fn number_of(attachment: &AttachmentId, key: &ObjectKey, version: &Version, way: Way) -> Option<u64> {
    (way == Way::Served).then(|| hash(&parts_of(attachment, key, version, b"")))
}

fn parts_of<'a>(
    attachment: &'a AttachmentId,
    key: &'a ObjectKey,
    version: &'a Version,
    way: &'a [u8],
) -> [&'a [u8]; 4] {
    [attachment.as_str().as_bytes(), key.as_bytes(), version.as_str().as_bytes(), way]
}

/// FNV-1a over the parts, each closed by a byte that no text has, then mixed: the same in every run and build.
pub fn hash(parts: &[&[u8]]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let closed = parts.iter().flat_map(|part| part.iter().copied().chain([0xff]));
    mix(closed.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME)))
}

/// Spreads every bit over all others (the finalizer of SplitMix64).
pub fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: &str, way: Way) -> FileNode {
        FileNode {
            name: "f".into(),
            size: 1,
            modified_ms: 2,
            posix: Posix::default(),
            version: Version::from(version),
            number: None,
            way,
        }
    }

    fn shown(node: NodeId) -> NodeAttributes {
        NodeAttributes::directory(node, 0)
    }

    #[test]
    fn an_id_is_the_same_in_every_mount_and_another_for_every_version_and_way() {
        let (one, other) = (Nodes::new("/"), Nodes::new("/"));
        let (attachment, key) = (AttachmentId::from("a"), ObjectKey::from("k/f"));
        let id = |nodes: &Nodes, file: &FileNode| nodes.file_id(&attachment, &key, "/k", file);
        let first = id(&one, &file("v1", Way::Lent));
        assert_eq!(first, id(&other, &file("v1", Way::Lent)));
        assert_ne!(first, id(&one, &file("v2", Way::Lent)));
        assert_ne!(first, id(&one, &file("v1", Way::Served)));
        assert_eq!(one.directory_id("/k"), other.directory_id("/k"));
    }

    #[test]
    fn two_names_of_one_object_version_never_share_an_id() {
        let nodes = Nodes::new("/");
        let (attachment, key, file) = (AttachmentId::from("a"), ObjectKey::from("k/f"), file("v1", Way::Lent));
        let id = nodes.file_id(&attachment, &key, "/k", &file);
        nodes.count(&shown(id), || Node { directory: "/k".into(), file: Some(Arc::new(file.clone())) });
        assert_eq!(nodes.file_id(&attachment, &key, "/k", &file), id);
        assert_ne!(nodes.file_id(&attachment, &key, "/other", &file), id);
    }

    #[test]
    fn a_node_lives_as_long_as_lookups_are_held_and_the_root_for_ever() {
        let nodes = Nodes::new("/data");
        let id = nodes.directory_id("/data/x");
        for _ in 0..3 {
            nodes.count(&shown(id), || Node { directory: "/data/x".into(), file: None });
        }
        assert_eq!(nodes.told().comparable("/data", 0).held, [id.0]);
        nodes.forget(id, 2);
        assert_eq!(&*nodes.get(id).unwrap().directory, "/data/x");
        nodes.forget(id, 1);
        assert!(nodes.get(id).is_none());
        assert_eq!(nodes.told().count(), 0);
        nodes.forget(NodeId::ROOT, 99);
        assert_eq!(&*nodes.get(NodeId::ROOT).unwrap().directory, "/data");
    }
}
