//! What a kernel asks to be changed. Whatever it changed by itself is not taken back from it: it knows already, and may
//! hold what taking back would wait for.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use penstock_types::{
    Answer, ByteRange, CreatedNode, Error, ErrorKind, Looked, NodeFile, NodeId, NodeWriter, OpenedNode, Posix, Replace,
    Result, TreePath,
};
use tokio::task::block_in_place;

use crate::kernel::nodes::{Node, Way};
use crate::kernel::{Mounted, forgotten, tree_path};
use crate::live::{self, LiveFile, Opening, is_gone};

/// A live file as one mount sees it; as a writer, one handle of it.
pub(super) struct MountedLive {
    mounted: Arc<Mounted>,
    live: Arc<LiveFile>,
    is_closed: AtomicBool,
}

/// Paths that this mount's kernel is changing by itself right now, with all that is below.
pub(super) struct Changing<'a> {
    mounted: &'a Mounted,
    paths: Vec<TreePath>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut own = self.mounted.own_changes();
        for path in &self.paths {
            if let Some(at) = own.iter().position(|known| known == path) {
                own.swap_remove(at);
            }
        }
    }
}

impl Mounted {
    /// Notes that the kernel changes these paths by itself, as long as what is returned is there.
    pub(super) fn changing(&self, paths: &[&TreePath]) -> Changing<'_> {
        let paths: Vec<TreePath> = paths.iter().map(|path| (*path).clone()).collect();
        self.own_changes().extend(paths.iter().cloned());
        Changing { mounted: self, paths }
    }

    /// Whether anything may be written below the mount.
    pub(super) fn is_writable(&self) -> bool {
        let attached = self.engine.tree.find(&self.base);
        attached.is_some_and(|(attached, _)| attached.spec.write.is_some())
    }

    /// The live file of a node; `None` for a node of another kind.
    pub(super) fn live_of(&self, node: &Node) -> Option<Result<Arc<LiveFile>>> {
        let file = node.file.as_ref().filter(|file| file.way == Way::Live)?;
        let live = live::number_of(&file.version).and_then(|number| self.engine.live.numbered(number));
        let gone = || Error::new(ErrorKind::StaleVersion, format!("use {}", file.name), "it is not open any more");
        Some(live.ok_or_else(gone))
    }

    /// The live file at a path, as the kernel is told of it: it never believes that for any time.
    pub(super) async fn tell_live(
        &self,
        directory: &Arc<str>,
        path: &TreePath,
        live: &Arc<LiveFile>,
    ) -> Result<Looked> {
        let (looked, node) = self.looked_live(directory, path, live).await?;
        self.hold(looked.found.as_ref(), node);
        Ok(looked)
    }

    /// A handle that only reads what others write.
    pub(super) fn opened_live(self: &Arc<Self>, live: Arc<LiveFile>) -> OpenedNode {
        let lent = live.lent();
        let file = Arc::new(MountedLive { mounted: Arc::clone(self), live, is_closed: AtomicBool::new(true) });
        OpenedNode { file, keep_pages: lent.is_none(), lent, writer: None }
    }

    /// A handle that writes; it was counted already.
    fn opened_writer(self: &Arc<Self>, live: Arc<LiveFile>) -> OpenedNode {
        let file = Arc::new(MountedLive { mounted: Arc::clone(self), live, is_closed: AtomicBool::new(false) });
        OpenedNode { file: Arc::clone(&file) as Arc<dyn NodeFile>, lent: None, keep_pages: true, writer: Some(file) }
    }

    fn child(&self, parent: NodeId, name: &str) -> Result<(Arc<str>, TreePath)> {
        let directory = self.directory(parent)?;
        let path = tree_path(&directory)?.join(name);
        Ok((directory, path))
    }

    pub(super) async fn open_for_writing(self: Arc<Self>, id: NodeId, truncate: bool) -> Result<OpenedNode> {
        let node = self.nodes.get(id).ok_or_else(|| forgotten(id))?;
        if node.file.is_none() {
            let path = tree_path(&node.directory)?;
            return Err(Error::new(ErrorKind::IsADirectory, format!("write {path}"), "it is a directory"));
        }
        // What nobody has open any more is looked for where it was when it was looked up, or went since.
        let known = self.live_of(&node).and_then(Result::ok);
        let path = match known.as_ref().and_then(|live| live.path()) {
            Some(path) => path,
            None => self.file_path(id)?,
        };
        let live = LiveFile::open(&self.engine, &path, Opening::Existing, truncate).await?;
        if known.is_some_and(|known| known.number() == live.number()) {
            block_in_place(|| live.end_waiting(&self.engine));
            return Ok(self.opened_writer(live));
        }
        // The kernel looks the name up again, once, and finds the live file: it stays until then.
        self.wait_for_opener(live);
        self.engine.announce(&path).await;
        Err(Error::new(ErrorKind::StaleVersion, format!("write {path}"), "others read this version"))
    }

    pub(super) fn file_path(&self, id: NodeId) -> Result<TreePath> {
        tree_path(&self.nodes.file_path(id).ok_or_else(|| forgotten(id))?)
    }

    /// Keeps a live file open for who was just told to look for it.
    fn wait_for_opener(&self, live: Arc<LiveFile>) {
        const PATIENCE: Duration = Duration::from_secs(2);
        live.await_opener();
        let engine = Arc::clone(&self.engine);
        self.engine.parts.runtime.spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            block_in_place(|| live.end_waiting(&engine));
        });
    }

    /// Whether making a file waits for no disk: its bytes go into memory first.
    pub(super) fn creates_quickly(&self, parent: NodeId, name: &str) -> bool {
        let now = self.engine.parts.clock.monotonic();
        self.child(parent, name).is_ok_and(|(_, path)| self.engine.live.makes_small(&path, now))
    }

    pub(super) async fn create(
        self: Arc<Self>,
        (parent, name): (NodeId, String),
        posix: Posix,
        (exclusive, truncate): (bool, bool),
    ) -> Result<CreatedNode> {
        let (directory, path) = self.child(parent, &name)?;
        let _changing = self.changing(&[&path]);
        let live = LiveFile::open(&self.engine, &path, Opening::New(exclusive), truncate).await?;
        if !posix.is_empty() {
            block_in_place(|| live.set_posix_of_new(posix));
        }
        let opened = self.opened_writer(Arc::clone(&live));
        // Others who show the same directory learn of it when it is closed.
        let looked = self.tell_live(&directory, &path, &live).await?;
        self.note_change(&path);
        Ok(CreatedNode { looked, opened })
    }

    pub(super) async fn make_directory(self: Arc<Self>, parent: NodeId, name: String, posix: Posix) -> Result<Looked> {
        let (directory, path) = self.child(parent, &name)?;
        let _changing = self.changing(&[&path]);
        self.engine.make_directory(&path, posix).await?;
        let known = self.engine.learn(&path).await?;
        let changes = self.changes();
        self.tell(&directory, &path, known, changes)
    }

    pub(super) async fn remove(self: Arc<Self>, parent: NodeId, name: String) -> Result<()> {
        let (_, path) = self.child(parent, &name)?;
        let _changing = self.changing(&[&path]);
        self.engine.remove(&path).await?;
        self.engine.keep_directory(&path).await;
        self.note_change(&path);
        Ok(())
    }

    pub(super) async fn remove_directory(self: Arc<Self>, parent: NodeId, name: String) -> Result<()> {
        let (_, path) = self.child(parent, &name)?;
        let _changing = self.changing(&[&path]);
        self.engine.remove_directory(&path).await?;
        self.engine.keep_directory(&path).await;
        self.note_change(&path);
        Ok(())
    }

    pub(super) async fn rename(
        self: Arc<Self>,
        from: (NodeId, String),
        to: (NodeId, String),
        replace: Replace,
    ) -> Result<()> {
        let ((_, from), (_, to)) = (self.child(from.0, &from.1)?, self.child(to.0, &to.1)?);
        let _changing = self.changing(&[&from, &to]);
        if replace == Replace::Exchange {
            self.engine.exchange(&from, &to).await?;
            self.nodes.exchange_files(from.as_str(), to.as_str());
            self.note_move(&from);
            self.note_move(&to);
            return Ok(());
        }
        self.engine.rename(&from, &to, replace == Replace::Yes).await?;
        if from.parent() != to.parent() {
            self.engine.keep_directory(&from).await;
        }
        // The kernel goes on with the nodes that it has.
        self.nodes.move_directory(from.as_str(), to.as_str());
        self.nodes.move_file(from.as_str(), to.as_str());
        self.note_change(&from);
        self.note_move(&to);
        Ok(())
    }

    /// Commits what was written, and tells everybody but this mount's kernel, which has it.
    pub(super) async fn flush(&self, live: &Arc<LiveFile>) -> Result<()> {
        let Some((path, change)) = block_in_place(|| live.commit())? else { return Ok(()) };
        let _changing = self.changing(&[&path]);
        self.engine.announce(&path).await;
        self.engine.promised(&change).await
    }
}

impl NodeFile for MountedLive {
    fn read_now(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        match self.live.laid_now().transpose()? {
            None => Ok(None),
            Some(Some(laid)) => laid.read_now(offset, out),
            Some(None) => self.live.read_now(offset, out).transpose(),
        }
    }

    fn bring(self: Arc<Self>, range: ByteRange) -> BoxFuture<'static, Result<Vec<u8>>> {
        async move {
            let live = Arc::clone(&self.live);
            if let Some(laid) = block_in_place(|| live.laid())? {
                return match laid.read(range).await {
                    Err(error) if is_gone(&error) => match live.renew(laid).await? {
                        Some(renewed) => renewed.read(range).await,
                        None => Err(error),
                    },
                    read => read,
                };
            }
            let read = move || {
                let mut out = vec![0; usize::try_from(range.len()).expect("a read fits memory")];
                let length = live.read(range.start, &mut out)?;
                out.truncate(length);
                Ok(out)
            };
            self.mounted.engine.blocking(read).await
        }
        .boxed()
    }

    fn is_evicted(&self) -> bool {
        // The next open means another node.
        true
    }
}

impl NodeWriter for MountedLive {
    fn lend(&self, begins: bool) -> Option<Arc<OwnedFd>> {
        block_in_place(|| self.live.lend(begins))
    }

    fn take_back(&self) {
        block_in_place(|| self.live.take_back());
    }

    fn write(&self, offset: u64, data: &[u8]) -> Answer<()> {
        self.live.write(offset, data)
    }

    fn allocate(&self, mode: i32, offset: u64, length: u64) -> Answer<()> {
        self.live.allocate(mode, offset, length)
    }

    fn flush(&self) -> Answer<()> {
        if self.live.is_flushed() {
            return Answer::Now(Ok(()));
        }
        let (mounted, live) = (Arc::clone(&self.mounted), Arc::clone(&self.live));
        Answer::Later(async move { mounted.flush(&live).await }.boxed())
    }

    fn close(&self) {
        if self.is_closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (mounted, live) = (Arc::clone(&self.mounted), Arc::clone(&self.live));
        if live.is_committed() {
            return live.release();
        }
        let runtime = mounted.engine.parts.runtime.clone();
        runtime.spawn(async move {
            if let Err(error) = mounted.flush(&live).await {
                tracing::error!(code = error.kind().code(), %error, "what was written last is lost: nobody flushed it");
            }
            block_in_place(|| live.release());
        });
    }
}

impl fmt::Debug for MountedLive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MountedLive({})", self.live.number())
    }
}
