//! The tree as a kernel mount sees it: which node a name is, how long that may be believed, and how its bytes are read.
//!
//! A node is one (path, version, way of I/O) and never changes. Where an open needs another version or way, it says
//! `StaleVersion`: the kernel then looks the name up again and opens the node that it gets.

mod attributes;
mod changes;
mod expiry;
mod file;
mod nodes;
mod renamed;
mod review;
mod told;

pub(crate) use file::MountedFile;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use penstock_types::{
    Answer, AttributeChange, ByteRange, CreatedNode, Error, ErrorKind, Freshness, KernelExpiry, KernelTree, ListedNode,
    Looked, NodeAttributes, NodeId, NodePage, ObjectAttributes, OpenedNode, Posix, Replace, Result, TreePath,
    TreeSpace,
};

use crate::attachment::Attached;
use crate::engine::{Engine, nothing_attached};
use crate::entry::{Entry, EntryKind, EntryPage};
use crate::kernel::nodes::{FileNode, Node, Nodes, Way, number_of};
use crate::kernel::review::Review;
use crate::kernel::told::{Names, NamesDigest};
use crate::open::{OpenFile, OpenOptions, Target, WHOLE_MAX, object_id};

/// Names of one page of a directory.
const PAGE_NAMES: usize = 1000;
/// Attributes of a version never change.
const VERSION_VALID: Duration = Duration::from_secs(86_400);
/// How long directories above attachments are believed: attachments come and go.
const SKELETON_VALID: Duration = Duration::from_secs(1);

/// The part of the tree below one path, for one kernel mount.
pub(crate) struct Mounted {
    engine: Arc<Engine>,
    /// Whether the kernel can read extent files by itself.
    lending: bool,
    base: TreePath,
    nodes: Nodes,
    mounted_ms: i64,
    /// Takes back what the kernel was told.
    expiry: Mutex<Option<Weak<dyn KernelExpiry>>>,
    /// Changes that were announced: who looked something up before one and tells it after it, tells what was.
    changes: AtomicU64,
    /// What its kernel is changing by itself.
    own: Mutex<Vec<TreePath>>,
    review: Mutex<Review>,
}

/// What the door holds.
struct MountedTree(Arc<Mounted>);

/// A name and how long it may be believed to mean this; `None` is nothing.
struct Known {
    entry: Option<Entry>,
    valid: Duration,
}

impl Engine {
    /// The tree below `base` for a kernel mount; `lending` says whether the kernel can read lent files by itself.
    pub fn kernel_tree(self: &Arc<Self>, base: &TreePath, lending: bool) -> Arc<dyn KernelTree> {
        let (nodes, mounted_ms) = (Nodes::new(base.as_str()), self.parts.clock.wall_ms());
        let (engine, base) = (Arc::clone(self), base.clone());
        let (expiry, changes, own, review) = (Mutex::default(), AtomicU64::new(0), Mutex::default(), Mutex::default());
        let mounted = Arc::new(Mounted { engine, lending, base, nodes, mounted_ms, expiry, changes, own, review });
        self.watchers.add(&mounted);
        Arc::new(MountedTree(mounted))
    }

    /// Space of the cache.
    pub(crate) fn space(&self) -> TreeSpace {
        let usage = self.cache.usage();
        let total_bytes = usage.tiers.iter().map(|tier| tier.size_bytes).sum::<u64>();
        let used = usage.tiers.iter().map(|tier| tier.used_bytes).sum::<u64>();
        TreeSpace { total_bytes, free_bytes: total_bytes.saturating_sub(used) }
    }

    /// What is at `path`, where that is known and fresh, and for how long.
    fn known(&self, path: &TreePath) -> Option<Result<Known>> {
        let skeleton = || Known { entry: Some(Entry::directory(path.name())), valid: SKELETON_VALID };
        let Some((attached, inner)) = self.tree.find(path) else {
            return Some(if self.tree.is_directory(path) { Ok(skeleton()) } else { Err(nothing_attached(path)) });
        };
        let (found, valid) = attached.view.stat_valid(&inner)?;
        Some(match self.known_whole(&attached, path, found)? {
            Ok(item) => Ok(Known { entry: Some(self.entry(&attached, (&inner, ""), path.name(), item)), valid }),
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            Err(_) if self.tree.is_directory(path) => Ok(skeleton()),
            Err(_) => Ok(Known { entry: None, valid }),
        })
    }

    /// As [`Engine::known`], asking the source where it has to.
    async fn learn(&self, path: &TreePath) -> Result<Known> {
        // Before a file is made, a kernel looks whether it is there.
        let is_due =
            |attached: &Attached| attached.spec.write.is_some() && attached.spec.freshness != Freshness::Seconds(0.0);
        if let Some((attached, inner)) = self.tree.find(path).filter(|(attached, _)| is_due(attached)) {
            self.list_if_due(path, (&attached, &inner)).await;
        }
        let entry = match self.stat(path).await {
            Ok(entry) => Some(entry),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // Nothing is known when nothing is believed for any time.
        let known = self.known(path).and_then(Result::ok).filter(|known| known.entry == entry);
        Ok(known.unwrap_or(Known { entry, valid: Duration::ZERO }))
    }
}

impl Mounted {
    fn directory(&self, id: NodeId) -> Result<Arc<str>> {
        match self.nodes.get(id) {
            Some(Node { directory, file: None }) => Ok(directory),
            Some(Node { directory, file: Some(file) }) => Err(Error::new(
                ErrorKind::NotADirectory,
                format!("use {}/{}", directory, file.name),
                "it is a file and a directory was asked for",
            )),
            None => Err(forgotten(id)),
        }
    }

    fn lookup(self: &Arc<Self>, parent: NodeId, name: &str) -> Answer<Looked> {
        let (directory, path) = match self.directory(parent) {
            Ok(directory) => {
                let path = tree_path(&directory).map(|path| path.join(name));
                match path {
                    Ok(path) => (directory, path),
                    Err(error) => return Answer::Now(Err(error)),
                }
            }
            Err(error) => return Answer::Now(Err(error)),
        };
        if let Some(live) = self.engine.live.at(&path) {
            let me = Arc::clone(self);
            return self.ask(async move { me.tell_live(&directory, &path, &live).await });
        }
        let changes = self.changes();
        if let Some(known) = self.engine.known(&path) {
            return Answer::Now(known.and_then(|known| self.tell(&directory, &path, known, changes)));
        }
        let me = Arc::clone(self);
        Answer::Later(
            async move {
                let known = me.engine.learn(&path).await?;
                me.tell(&directory, &path, known, changes)
            }
            .boxed(),
        )
    }

    /// Hands a name, as it was known after so many changes, to the kernel: its node is held from now on.
    fn tell(&self, directory: &Arc<str>, path: &TreePath, known: Known, changes: u64) -> Result<Looked> {
        let mut looked = match known.entry {
            Some(entry) => {
                let (looked, node) = self.looked(directory, path, &entry, known.valid)?;
                self.hold(looked.found.as_ref(), node);
                looked
            }
            None => {
                let name_valid = self.believe_absent(directory, path.name(), known.valid);
                Looked { found: None, name_valid, attributes_valid: Duration::ZERO }
            }
        };
        if self.changes() != changes {
            looked.name_valid = Duration::ZERO;
        }
        Ok(looked)
    }

    /// The kernel holds a node that it was told of.
    fn hold(&self, found: Option<&NodeAttributes>, node: Node) {
        let Some(found) = found else { return };
        if let Some(file) = &node.file {
            self.nodes.told().is_there(&node.directory, &file.name);
        }
        self.nodes.count(found, || node);
    }

    /// How long the kernel may believe that nothing has a name, of what that is known for.
    fn believe_absent(&self, directory: &str, name: &str, valid: Duration) -> Duration {
        let now_ms = self.now_ms();
        let until_ms = now_ms.saturating_add(u64::try_from(valid.as_millis()).unwrap_or(u64::MAX));
        let remembered = until_ms > now_ms && self.nodes.told().is_absent(directory, name, now_ms, until_ms);
        if remembered { valid } else { Duration::ZERO }
    }

    /// The node of an entry, with its attributes.
    fn looked(
        &self,
        directory: &Arc<str>,
        path: &TreePath,
        entry: &Entry,
        name_valid: Duration,
    ) -> Result<(Looked, Node)> {
        let Some(version) = entry.version.clone().filter(|_| entry.kind == EntryKind::File) else {
            let node = self.nodes.directory_id(path.as_str());
            let found = self.directory_attributes(node, path);
            let looked = Looked { found: Some(found), name_valid, attributes_valid: name_valid };
            return Ok((looked, Node { directory: path.as_str().into(), file: None }));
        };
        let attributes = ObjectAttributes { size: entry.size, modified_ms: entry.modified_ms, version };
        let target = self.target(path, attributes)?;
        let (way, id) = (self.way(&target), &target.attached.spec.id);
        let file = FileNode {
            name: entry.name.as_str().into(),
            size: entry.size,
            modified_ms: entry.modified_ms,
            posix: entry.posix,
            version: target.attributes.version.clone(),
            way,
            number: number_of(id, &target.object.key, &target.attributes.version, way),
        };
        let node = self.nodes.file_id(id, &target.object.key, directory, &file);
        let looked = Looked { found: Some(file_attributes(node, &file)), name_valid, attributes_valid: VERSION_VALID };
        Ok((looked, Node { directory: Arc::clone(directory), file: Some(Arc::new(file)) }))
    }

    fn way(&self, target: &Target) -> Way {
        if !self.lending {
            return Way::Kept;
        }
        let small = target.attributes.size <= WHOLE_MAX;
        if small || self.engine.is_complete(&target.attached, &target.object) { Way::Lent } else { Way::Served }
    }

    /// The object that a path and a version name.
    fn target(&self, path: &TreePath, attributes: ObjectAttributes) -> Result<Target> {
        let (attached, inner) = self.engine.tree.find(path).ok_or_else(|| nothing_attached(path))?;
        let object = object_id(&attached, attached.view.place_of_bytes(&inner)?, &attributes.version);
        Ok(Target { path: path.clone(), attached, inner, object, attributes })
    }

    fn attributes(self: &Arc<Self>, id: NodeId) -> Answer<Looked> {
        match self.nodes.get(id).as_ref().and_then(|node| self.live_of(node)) {
            Some(Ok(live)) => self.live_attributes(id, live),
            Some(Err(error)) => Answer::Now(Err(error)),
            None => Answer::Now(self.still_attributes(id)),
        }
    }

    /// What is shown of a node that is not open for writing.
    fn still_attributes(&self, id: NodeId) -> Result<Looked> {
        let node = self.nodes.get(id).ok_or_else(|| forgotten(id))?;
        if let Some(file) = node.file {
            let found = Some(file_attributes(id, &file));
            return Ok(Looked { found, name_valid: Duration::ZERO, attributes_valid: VERSION_VALID });
        }
        let path = tree_path(&node.directory)?;
        let found = self.directory_attributes(id, &path);
        self.nodes.show_time(id, Some(found.modified_ms));
        Ok(Looked { found: Some(found), name_valid: Duration::ZERO, attributes_valid: self.listing_valid(&path) })
    }

    /// How long what is shown of a directory may be believed.
    fn listing_valid(&self, path: &TreePath) -> Duration {
        match self.engine.tree.find(path) {
            Some((attached, inner)) => attached.view.listed(&inner).map_or(Duration::ZERO, |(_, valid)| valid),
            None => SKELETON_VALID,
        }
    }

    fn name_of(&self, id: NodeId) -> Option<(NodeId, Arc<str>)> {
        let node = self.nodes.get(id)?;
        if let Some(live) = self.live_of(&node) {
            let path = live.ok()?.path()?;
            return Some((self.directory_node(&path.parent()?), path.name().into()));
        }
        let Node { directory, file } = node;
        let path = tree_path(&directory).ok()?;
        if let Some(file) = file {
            return Some((self.directory_node(&path), Arc::clone(&file.name)));
        }
        let parent = path.parent().filter(|_| id != NodeId::ROOT)?;
        Some((self.directory_node(&parent), path.name().into()))
    }

    fn directory_node(&self, path: &TreePath) -> NodeId {
        if *path == self.base { NodeId::ROOT } else { self.nodes.directory_id(path.as_str()) }
    }

    /// The object of a file node, where the node still stands for it.
    fn target_of(&self, id: NodeId) -> Result<(Target, Way)> {
        let Node { directory, file } = self.nodes.get(id).ok_or_else(|| forgotten(id))?;
        let path = tree_path(&directory)?;
        let Some(file) = file else {
            return Err(Error::new(ErrorKind::IsADirectory, format!("open {path}"), "it is a directory"));
        };
        let (size, modified_ms, version) = (file.size, file.modified_ms, file.version.clone());
        let target = self.target(&path.join(&file.name), ObjectAttributes { size, modified_ms, version });
        // Something else may be attached there by now.
        let same =
            |target: &Target| self.nodes.file_id(&target.attached.spec.id, &target.object.key, &directory, &file) == id;
        match target {
            Ok(target) if same(&target) => Ok((target, file.way)),
            _ => Err(forgotten(id)),
        }
    }

    fn open(self: &Arc<Self>, id: NodeId) -> Answer<OpenedNode> {
        if let Some(live) = self.nodes.get(id).as_ref().and_then(|node| self.live_of(node)) {
            return Answer::Now(live.map(|live| self.opened_live(live)));
        }
        let (target, way) = match self.target_of(id) {
            Ok(target) => target,
            Err(error) => return Answer::Now(Err(error)),
        };
        if let Some(file) = self.engine.lend_complete(&target) {
            return Answer::Now(opened(way, file));
        }
        let me = Arc::clone(self);
        Answer::Later(
            async move {
                let path = target.path.clone();
                let file = me.engine.open_version(target).await;
                if file.as_ref().is_err_and(|error| error.kind() == ErrorKind::StaleVersion) {
                    // The kernel looks the name up again and opens what it finds, once: that should be here by then.
                    match me.engine.open(&path, OpenOptions::default()).await {
                        // It has another name by now.
                        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
                opened(way, file?)
            }
            .boxed(),
        )
    }

    /// Names are kept as long as the listing that they are of is believed: where a newer one differs, they are taken
    /// back.
    fn open_directory(&self, id: NodeId) -> Result<bool> {
        let directory = self.directory(id)?;
        let told = self.nodes.told();
        let Some(names) = told.names(&directory) else { return Ok(false) };
        let newest = self.listed_alone(&tree_path(&directory)?);
        let kept = newest.is_some_and(|(newest_ms, valid)| names.are_believed(newest_ms, valid));
        if !kept {
            told.drop_names(&directory);
        }
        Ok(kept)
    }

    /// When the listing was asked for whose names the kernel may keep, and for how long.
    fn listed_alone(&self, path: &TreePath) -> Option<(i64, Duration)> {
        let (attached, inner) = self.engine.tree.find(path)?;
        // Attachments come and go without a listing.
        let alone = self.engine.tree.children(path).is_empty();
        attached.view.listed(&inner).filter(|_| alone)
    }

    /// A page of names. One that a listing under way gives has fewer than there are: what fits a page is waited for,
    /// for names may be believed once their listing is complete.
    async fn page(&self, path: &TreePath, after: Option<&str>) -> Result<EntryPage> {
        let mut page = self.engine.list(path, after, PAGE_NAMES).await?;
        while page.entries.len() < PAGE_NAMES
            && let Some(next) = &page.next
        {
            let more = self.engine.list(path, Some(next), PAGE_NAMES - page.entries.len()).await?;
            page.entries.extend(more.entries);
            page.next = more.next;
        }
        Ok(page)
    }

    /// Notes which names the kernel is given, as they were known after so many changes.
    fn note_page(&self, directory: &str, after: Option<&str>, page: &EntryPage, changes: u64) -> Result<()> {
        let mut digest = NamesDigest::default();
        page.entries.iter().for_each(|entry| digest.add(&entry.name, entry.version.as_ref()));
        let told = self.nodes.told();
        if let Some(digest) = told.read(directory, after, page.next.as_deref(), digest)
            && let Some((of_ms, _)) = self.listed_alone(&tree_path(directory)?)
        {
            told.keep(directory, Names { of_ms, digest });
        }
        if self.changes() != changes {
            told.drop_names(directory);
        }
        Ok(())
    }

    async fn list(self: Arc<Self>, id: NodeId, after: Option<String>) -> Result<NodePage> {
        let changes = self.changes();
        let directory = self.directory(id)?;
        let path = tree_path(&directory)?;
        let mut live = self.engine.live.names_in(&path);
        let page = match self.page(&path, after.as_deref()).await {
            // Nothing but what is open is in it.
            Err(error) if error.kind() == ErrorKind::NotFound && !live.is_empty() => EntryPage::default(),
            page => page?,
        };
        self.note_page(&directory, after.as_deref(), &page, changes)?;
        let valid = if self.changes() == changes { self.listing_valid(&path) } else { Duration::ZERO };
        let mut entries = Vec::with_capacity(page.entries.len());
        for entry in &page.entries {
            let path = path.join(&entry.name);
            let (looked, node) = match live.iter().position(|(open, _)| *open == path) {
                Some(at) => self.looked_live(&directory, &path, &live.swap_remove(at).1).await?,
                None => self.looked(&directory, &path, entry, valid)?,
            };
            entries.push(ListedNode { name: entry.name.as_str().into(), looked, token: Arc::new(node) });
        }
        if page.next.is_none() {
            // What was made and not closed yet comes last.
            for (path, file) in live {
                if self.engine.stat_cached(&path).is_none_or(|known| known.is_err()) {
                    let (looked, node) = self.looked_live(&directory, &path, &file).await?;
                    entries.push(ListedNode { name: path.name().into(), looked, token: Arc::new(node) });
                }
            }
        }
        Ok(NodePage { entries, next: page.next })
    }

    async fn extended_attributes(self: Arc<Self>, id: NodeId) -> Result<Vec<(&'static str, String)>> {
        let node = self.nodes.get(id).ok_or_else(|| forgotten(id))?;
        if node.file.is_none() {
            let path = tree_path(&node.directory)?;
            let Some((attached, inner)) = self.engine.tree.find(&path) else { return Ok(Vec::new()) };
            return Ok(vec![("user.penstock.source", attached.describe(&attached.view.place_of_bytes(&inner)?))]);
        }
        let (Target { attached, object, attributes, .. }, _) = self.target_of(id)?;
        let extent = self.engine.cache.peek(&object);
        let absent: Option<u64> =
            extent.map(|extent| extent.missing(ByteRange::new(0, attributes.size)).iter().map(ByteRange::len).sum());
        let cached = attributes.size - absent.unwrap_or(attributes.size);
        Ok(vec![
            ("user.penstock.source", attached.describe(&object.key)),
            ("user.penstock.version", attributes.version.to_string()),
            ("user.penstock.etag", attributes.version.to_string()),
            ("user.penstock.cached", cached.to_string()),
        ])
    }

    /// Asks a question that is often answered without waiting.
    fn ask<T: Send + 'static>(&self, question: impl Future<Output = Result<T>> + Send + 'static) -> Answer<T> {
        let mut question = question.boxed();
        let _entered = self.engine.parts.runtime.enter();
        match (&mut question).now_or_never() {
            Some(answer) => Answer::Now(answer),
            None => Answer::Later(question),
        }
    }
}

impl MountedTree {
    /// Begins a change when it is waited for: what blocks on the disk is not for a thread that speaks to the kernel.
    fn change<T, F>(&self, change: impl FnOnce(Arc<Mounted>) -> F) -> Answer<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        Answer::Later(change(Arc::clone(&self.0)).boxed())
    }
}

impl KernelTree for MountedTree {
    fn lookup(&self, parent: NodeId, name: &str) -> Answer<Looked> {
        self.0.lookup(parent, name)
    }

    fn attributes(&self, node: NodeId) -> Answer<Looked> {
        self.0.attributes(node)
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        self.0.nodes.forget(node, lookups);
    }

    fn open(&self, node: NodeId) -> Answer<OpenedNode> {
        self.0.open(node)
    }

    fn is_writable(&self) -> bool {
        self.0.is_writable()
    }

    fn open_for_writing(&self, node: NodeId, truncate: bool) -> Answer<OpenedNode> {
        self.change(|mounted| mounted.open_for_writing(node, truncate))
    }

    fn create(&self, parent: NodeId, name: &str, posix: Posix, how: (bool, bool)) -> Answer<CreatedNode> {
        let (name, is_quick) = (name.to_owned(), self.0.creates_quickly(parent, name));
        let create = |mounted: Arc<Mounted>| mounted.create((parent, name), posix, how);
        if is_quick { self.0.ask(create(Arc::clone(&self.0))) } else { self.change(create) }
    }

    fn make_directory(&self, parent: NodeId, name: &str, posix: Posix) -> Answer<Looked> {
        self.change(|mounted| mounted.make_directory(parent, name.to_owned(), posix))
    }

    fn remove(&self, parent: NodeId, name: &str) -> Answer<()> {
        self.change(|mounted| mounted.remove(parent, name.to_owned()))
    }

    fn remove_directory(&self, parent: NodeId, name: &str) -> Answer<()> {
        self.change(|mounted| mounted.remove_directory(parent, name.to_owned()))
    }

    fn rename(&self, from: (NodeId, &str), to: (NodeId, &str), replace: Replace) -> Answer<()> {
        let (from, to) = ((from.0, from.1.to_owned()), (to.0, to.1.to_owned()));
        self.change(|mounted| mounted.rename(from, to, replace))
    }

    fn set_attributes(&self, node: NodeId, change: AttributeChange) -> Answer<Looked> {
        self.change(|mounted| mounted.set_attributes(node, change))
    }

    fn open_directory(&self, node: NodeId) -> Answer<bool> {
        Answer::Now(self.0.open_directory(node))
    }

    fn list(&self, node: NodeId, after: Option<&str>) -> Answer<NodePage> {
        self.0.ask(Arc::clone(&self.0).list(node, after.map(str::to_string)))
    }

    fn remember(&self, entry: &ListedNode) {
        let node = entry.token.downcast_ref::<Node>().expect("the token of an entry is its node");
        self.0.hold(entry.looked.found.as_ref(), node.clone());
    }

    fn name_of(&self, node: NodeId) -> Option<(NodeId, Arc<str>)> {
        self.0.name_of(node)
    }

    fn extended_attributes(&self, node: NodeId) -> Answer<Vec<(&'static str, String)>> {
        self.0.ask(Arc::clone(&self.0).extended_attributes(node))
    }

    fn space(&self) -> TreeSpace {
        self.0.engine.space()
    }

    fn watch(&self, expiry: Weak<dyn KernelExpiry>) {
        self.0.watch(expiry);
    }

    fn review(&self) {
        self.0.review();
    }
}

/// How the kernel gets the bytes of a file that was opened as a node of this way.
fn opened(way: Way, file: OpenFile) -> Result<OpenedNode> {
    let lent = match (way, file.is_complete()) {
        (Way::Lent, true) => Some(file.descriptor()),
        // Complete by now: the name means another node.
        (Way::Served, true) => {
            return Err(Error::new(ErrorKind::StaleVersion, format!("open {}", file.path()), "it can be lent now"));
        }
        _ => None,
    };
    Ok(OpenedNode { file: MountedFile::new(file, way == Way::Kept), lent, keep_pages: way != Way::Lent, writer: None })
}

fn file_attributes(node: NodeId, file: &FileNode) -> NodeAttributes {
    let FileNode { size, modified_ms, posix, .. } = *file;
    NodeAttributes { node, number: file.number.unwrap_or(node.0), is_directory: false, size, modified_ms, posix }
}

fn tree_path(directory: &str) -> Result<TreePath> {
    TreePath::parse(directory)
}

fn forgotten(id: NodeId) -> Error {
    Error::new(ErrorKind::StaleVersion, format!("use node {:x}", id.0), "it names nothing any more")
}
