//! What is shown of files besides their bytes, and of directories, and changing that.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use penstock_types::{Answer, AttributeChange, ErrorKind, Looked, NodeAttributes, NodeId, Posix, Result, TreePath};
use tokio::task::block_in_place;

use crate::kernel::nodes::{FileNode, Node, Way};
use crate::kernel::{Mounted, forgotten, tree_path};
use crate::live::{self, LiveFile, Opening};

/// Size, time, and what was said.
type Facts = (u64, i64, Posix);

impl Mounted {
    /// A live file as its node, with what is shown of it.
    pub(super) async fn looked_live(
        &self,
        directory: &Arc<str>,
        path: &TreePath,
        live: &Arc<LiveFile>,
    ) -> Result<(Looked, Node)> {
        let (size, modified_ms, posix) = match live.shown_now() {
            Some(facts) => facts?,
            // It is being committed.
            None => {
                let live = Arc::clone(live);
                self.engine.blocking(move || live.shown()).await?
            }
        };
        let version = live::version_of(live.number());
        let file =
            FileNode { name: path.name().into(), size, modified_ms, posix, version, way: Way::Live, number: None };
        let node = self.nodes.live_id(&file.version);
        let looked = live_looked(node, (size, modified_ms, posix));
        Ok((looked, Node { directory: Arc::clone(directory), file: Some(Arc::new(file)) }))
    }

    /// What is shown of a live node.
    pub(super) fn live_attributes(self: &Arc<Self>, id: NodeId, live: Arc<LiveFile>) -> Answer<Looked> {
        let shown = move |facts| live_looked(id, facts);
        if let Some(facts) = live.shown_now() {
            return Answer::Now(facts.map(shown));
        }
        let engine = Arc::clone(&self.engine);
        Answer::Later(async move { engine.blocking(move || live.shown()).await.map(shown) }.boxed())
    }

    /// A directory changes when its listing was learnt anew, and always while none is believed: who keeps names by
    /// its time asks again. It does not while the kernel keeps its names, for it would forget them. Where somebody has said
    /// a time of it, that is shown.
    pub(super) fn directory_attributes(&self, node: NodeId, path: &TreePath) -> NodeAttributes {
        let Some((attached, inner)) = self.engine.tree.find(path) else {
            return NodeAttributes::directory(node, self.mounted_ms);
        };
        let modified_ms = match attached.view.listed(&inner) {
            Some((newest_ms, valid)) => self.shown_time(node, path, newest_ms, valid).unwrap_or(newest_ms),
            None => self.engine.parts.clock.wall_ms(),
        };
        let posix = self.engine.posix_of_directory(&attached, &inner, "");
        NodeAttributes { posix, ..NodeAttributes::directory(node, modified_ms) }
    }

    /// The time of a directory whose names the kernel keeps.
    fn shown_time(&self, node: NodeId, path: &TreePath, newest_ms: i64, valid: Duration) -> Option<i64> {
        let names = self.nodes.told().names(path.as_str())?;
        names.are_believed(newest_ms, valid).then(|| self.nodes.shown_time(node)).flatten()
    }

    pub(super) async fn set_attributes(self: Arc<Self>, id: NodeId, change: AttributeChange) -> Result<Looked> {
        let node = self.nodes.get(id).ok_or_else(|| forgotten(id))?;
        let live = self.live_of(&node).transpose()?;
        if node.file.is_none() {
            self.adorn_directory(&tree_path(&node.directory)?, change).await?;
        }
        if let Some(file) = &node.file {
            let known = match &live {
                Some(live) => block_in_place(|| live.shown())?.2,
                None => file.posix,
            };
            // What is shown already need not be said.
            let posix = change.posix.beyond(change.shown.merged(known));
            let change = AttributeChange { posix, ..change };
            match live {
                Some(live) => change_live(&live, change)?,
                None if change.size.is_some() => return self.cut_closed(id, change).await,
                None if !posix.is_empty() => return self.adorn_closed(id, posix).await,
                None => {}
            }
        }
        match self.attributes(id) {
            Answer::Now(looked) => looked,
            Answer::Later(looked) => looked.await,
        }
    }

    /// Says something anew of a directory. Of where something is attached it is passed over: programs that copy or unpack
    /// say it of the directory that they are given, too, and would give up.
    async fn adorn_directory(&self, path: &TreePath, change: AttributeChange) -> Result<()> {
        let Some((attached, inner)) = self.engine.tree.find(path) else { return Ok(()) };
        let known = self.engine.posix_of_directory(&attached, &inner, "");
        let posix = change.posix.beyond(change.shown_of_directory.merged(known));
        if posix.is_empty() || !self.engine.keeps_posix_of(path) {
            return Ok(());
        }
        let _changing = self.changing(&[path]);
        self.engine.set_posix_of_directory(path, posix).await
    }

    /// Cuts or grows a file that nobody has open for writing.
    async fn cut_closed(self: &Arc<Self>, id: NodeId, change: AttributeChange) -> Result<Looked> {
        let path = self.file_path(id)?;
        let live = LiveFile::open(&self.engine, &path, Opening::Existing, change.size == Some(0)).await?;
        let committed = match change_live(&live, change) {
            Ok(()) => self.flush(&live).await,
            Err(error) => Err(error),
        };
        let shown = live.shown();
        block_in_place(|| live.release());
        committed?;
        self.engine.announce(&path).await;
        Ok(live_looked(id, shown?))
    }

    /// Says something anew of a file that nobody has open for writing. Its name means another node afterwards; who has
    /// this one open sees it, too.
    async fn adorn_closed(self: &Arc<Self>, id: NodeId, posix: Posix) -> Result<Looked> {
        let ((target, _), path) = (self.target_of(id)?, self.file_path(id)?);
        let meant = self.nodes.adorned(id).unwrap_or_else(|| target.object.version.clone());
        let version = match self.engine.set_posix(&path, Some(&meant), posix).await {
            // It was settled meanwhile: the same bytes.
            Err(error) if error.kind() == ErrorKind::StaleVersion && meant != target.object.version => {
                self.engine.set_posix(&path, Some(&target.object.version), posix).await?
            }
            version => version?,
        };
        self.nodes.adorn(id, posix, version);
        let mut looked = self.still_attributes(id)?;
        looked.attributes_valid = Duration::ZERO;
        Ok(looked)
    }
}

fn live_looked(node: NodeId, (size, modified_ms, posix): Facts) -> Looked {
    let found = Some(NodeAttributes { node, number: node.0, is_directory: false, size, modified_ms, posix });
    Looked { found, name_valid: Duration::ZERO, attributes_valid: Duration::ZERO }
}

fn change_live(live: &Arc<LiveFile>, change: AttributeChange) -> Result<()> {
    block_in_place(|| {
        change.size.map_or(Ok(()), |size| live.set_size(size))?;
        if !change.posix.is_empty() {
            live.set_posix(change.posix);
        }
        Ok(())
    })
}
