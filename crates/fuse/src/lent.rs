//! Which open files the kernel reads by itself, and the ids by which it knows what backs them.
//!
//! The kernel has rules of its own for a node that is open in more than one way; breaking one fails the open with EIO.
//! All handles of a node that are open at the same moment are therefore of one kind, and the first of them decides:
//!
//! | handles of the node that are open | the tree lends           | the tree does not lend |
//! |-----------------------------------|--------------------------|------------------------|
//! | none                              | lent, by the id kept     | served                 |
//! |                                   | or a new one             |                        |
//! | lent                              | lent, by the same id     | lent, by the same id   |
//! | served                            | served                   | served                 |
//!
//! Of those that are served, the first decides whether the kernel keeps pages of the node, too: what is written past the
//! pages would not reach those that another handle is just filling.
//!
//! Lent beside served would break even where the kernel takes it: mapping a served handle makes the node one whose
//! pages are cached, and nobody tells us. A node names one version, so that both kinds read the same bytes; the handle
//! that is served though it could be lent is only slower.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use fuser::FopenFlags;
use penstock_types::{NodeFile, NodeId};

/// A file that is larger than this part of all that is kept is not kept: it would drive out many others.
const IDLE_SHARE: u64 = 16;

/// What backs a node in the kernel, and the file whose bytes it holds.
#[derive(Debug)]
pub struct Lent<I> {
    /// Closes itself when the last one who has it lets go.
    pub id: Arc<I>,
    /// Keeps the bytes from being taken back.
    pub file: Arc<dyn NodeFile>,
    /// How many bytes that are.
    pub bytes: u64,
}

/// How much is kept for the next open when nobody has it open. The cache cannot have the space back before we let go,
/// and for a large file a new id costs nothing beside reading it.
#[derive(Clone, Copy, Debug)]
pub struct IdleMax {
    /// Ids, together with those of open files.
    pub ids: usize,
    /// Bytes of files that are not open.
    pub bytes: u64,
}

impl<I> Clone for Lent<I> {
    fn clone(&self) -> Self {
        Self { id: Arc::clone(&self.id), file: Arc::clone(&self.file), bytes: self.bytes }
    }
}

/// Whether the kernel keeps what a served handle reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Pages {
    /// In its page cache, and writes through it.
    #[default]
    Kept,
    /// Only for who maps the file: every read and write comes here.
    Direct,
}

impl Pages {
    /// What the kernel is told at the open.
    pub fn flags(self) -> FopenFlags {
        match self {
            Self::Kept => FopenFlags::FOPEN_KEEP_CACHE,
            Self::Direct => FopenFlags::FOPEN_DIRECT_IO,
        }
    }
}

/// How a handle is opened.
#[derive(Debug)]
pub enum Opening<I> {
    /// The kernel reads what is behind the id.
    Lent(Lent<I>),
    /// The kernel asks for bytes; with the error that kept them from being lent, where there was one.
    Served(Pages, Option<io::Error>),
}

/// Ids of the files that are open, and of some that were: the next open of those costs no call.
pub struct LentFiles<I> {
    nodes: HashMap<NodeId, Node<I>>,
    /// Nodes whose id nobody uses, the one that was used longest ago first.
    idle: BTreeMap<u64, NodeId>,
    next_idle: u64,
    idle_bytes: u64,
    ids: usize,
    max: IdleMax,
}

struct Node<I> {
    lent: Option<Lent<I>>,
    lent_handles: usize,
    served_handles: usize,
    /// Of the served handles.
    pages: Pages,
    /// Key in `idle`, where it is there.
    idle: Option<u64>,
}

impl<I> Default for Node<I> {
    fn default() -> Self {
        Self { lent: None, lent_handles: 0, served_handles: 0, pages: Pages::default(), idle: None }
    }
}

impl<I> LentFiles<I> {
    /// Keeps up to `max`; more only while files are open.
    pub fn new(max: IdleMax) -> Self {
        Self { nodes: HashMap::new(), idle: BTreeMap::new(), next_idle: 0, idle_bytes: 0, ids: 0, max }
    }

    /// Counts another handle of `node`, and says of which kind it is: with `pages` where it is the first that is served.
    /// `register` makes an id for so many bytes and is
    /// there when the tree lends; it is called at most once. What is put into `let_go` is to be dropped without the lock: the last use of
    /// a file may end there.
    pub fn open(
        &mut self,
        node: NodeId,
        file: &Arc<dyn NodeFile>,
        pages: Pages,
        register: Option<impl FnOnce() -> io::Result<(I, u64)>>,
        let_go: &mut Vec<Lent<I>>,
    ) -> Opening<I> {
        let known = self.nodes.entry(node).or_default();
        if let Some(key) = known.idle.take() {
            self.idle.remove(&key);
            self.idle_bytes -= known.lent.as_ref().map_or(0, |lent| lent.bytes);
        }
        let in_use = known.lent_handles > 0;
        let outlived = known.lent.as_ref().is_some_and(|lent| register.is_none() || lent.file.is_evicted());
        if !in_use && outlived {
            let_go.extend(known.lent.take());
            self.ids -= 1;
        }
        if known.served_handles > 0 {
            known.served_handles += 1;
            return Opening::Served(known.pages, None);
        }
        let mut failed = None;
        if let (None, Some(register)) = (&known.lent, register) {
            match register() {
                Ok((id, bytes)) => {
                    known.lent = Some(Lent { id: Arc::new(id), file: Arc::clone(file), bytes });
                    self.ids += 1;
                }
                Err(error) => failed = Some(error),
            }
        }
        let Some(lent) = known.lent.clone() else {
            (known.served_handles, known.pages) = (1, pages);
            return Opening::Served(pages, failed);
        };
        known.lent_handles += 1;
        self.shrink(let_go);
        Opening::Lent(lent)
    }

    /// Counts another handle of `node` where its file is lent, or kept for the next open: the tree need not be asked for
    /// it. `None` where it has to be.
    pub fn open_again(&mut self, node: NodeId) -> Option<Lent<I>> {
        let known = self.nodes.get_mut(&node)?;
        let lent = known.lent.clone()?;
        if known.lent_handles == 0 && (known.served_handles > 0 || lent.file.is_evicted()) {
            return None;
        }
        if let Some(key) = known.idle.take() {
            self.idle.remove(&key);
            self.idle_bytes -= lent.bytes;
        }
        known.lent_handles += 1;
        Some(lent)
    }

    /// Counts a handle less. As for `open`, `let_go` is to be dropped without the lock.
    pub fn close(&mut self, node: NodeId, was_lent: bool, let_go: &mut Vec<Lent<I>>) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        if was_lent {
            known.lent_handles = known.lent_handles.saturating_sub(1);
            if known.lent_handles == 0 {
                self.rest(node, let_go);
            }
        } else {
            known.served_handles = known.served_handles.saturating_sub(1);
            if known.served_handles == 0 && known.lent.is_none() {
                self.nodes.remove(&node);
            }
        }
        self.shrink(let_go);
    }

    /// Nobody has the node open any more.
    fn rest(&mut self, node: NodeId, let_go: &mut Vec<Lent<I>>) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        let Some(lent) = &known.lent else { return };
        known.idle = Some(self.next_idle);
        self.idle.insert(self.next_idle, node);
        self.idle_bytes += lent.bytes;
        self.next_idle += 1;
        if lent.file.is_evicted() || lent.bytes > self.max.bytes / IDLE_SHARE {
            self.forget_idle(self.next_idle - 1, let_go);
        }
    }

    /// Lets go of idle ids whose files the cache wants back.
    pub fn tidy(&mut self, let_go: &mut Vec<Lent<I>>) {
        let unwanted: Vec<u64> =
            self.idle.iter().filter(|(_, node)| self.is_evicted(**node)).map(|(key, _)| *key).collect();
        for key in unwanted {
            self.forget_idle(key, let_go);
        }
    }

    fn is_evicted(&self, node: NodeId) -> bool {
        let lent = self.nodes.get(&node).and_then(|known| known.lent.as_ref());
        lent.is_some_and(|lent| lent.file.is_evicted())
    }

    fn shrink(&mut self, let_go: &mut Vec<Lent<I>>) {
        while self.ids > self.max.ids || self.idle_bytes > self.max.bytes {
            let Some((&key, _)) = self.idle.first_key_value() else { return };
            self.forget_idle(key, let_go);
        }
    }

    fn forget_idle(&mut self, key: u64, let_go: &mut Vec<Lent<I>>) {
        let Some(node) = self.idle.remove(&key) else { return };
        if let Some(lent) = self.nodes.remove(&node).and_then(|known| known.lent) {
            self.ids -= 1;
            self.idle_bytes -= lent.bytes;
            let_go.push(lent);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use futures_util::future::BoxFuture;
    use penstock_types::{ByteRange, Result};

    use super::*;

    #[derive(Debug, Default)]
    struct Content {
        bytes: u64,
        evicted: AtomicBool,
    }

    impl NodeFile for Content {
        fn read_now(&self, _: u64, _: &mut [u8]) -> Result<Option<usize>> {
            Ok(None)
        }

        fn bring(self: Arc<Self>, _: ByteRange) -> BoxFuture<'static, Result<Vec<u8>>> {
            Box::pin(async { Ok(Vec::new()) })
        }

        fn is_evicted(&self) -> bool {
            self.evicted.load(Ordering::Relaxed)
        }
    }

    struct Bench {
        files: LentFiles<u32>,
        next: AtomicU32,
        closed: Vec<u32>,
    }

    impl Bench {
        fn new(ids: usize) -> Self {
            Self { files: LentFiles::new(IdleMax { ids, bytes: 1000 }), next: AtomicU32::new(1), closed: Vec::new() }
        }

        /// The id by which the handle is lent; `None` when it is served.
        fn open(&mut self, node: u64, content: &Arc<Content>, lends: bool) -> Option<u32> {
            let file: Arc<dyn NodeFile> = Arc::clone(content) as Arc<dyn NodeFile>;
            let register = lends.then_some(|| Ok((self.next.fetch_add(1, Ordering::Relaxed), content.bytes)));
            let mut let_go = Vec::new();
            let opening = self.files.open(NodeId(node), &file, Pages::Kept, register, &mut let_go);
            self.closed.extend(let_go.iter().map(|lent| *lent.id));
            match opening {
                Opening::Lent(lent) => Some(*lent.id),
                Opening::Served(..) => None,
            }
        }

        fn close(&mut self, node: u64, was_lent: bool) {
            let mut let_go = Vec::new();
            self.files.close(NodeId(node), was_lent, &mut let_go);
            self.closed.extend(let_go.iter().map(|lent| *lent.id));
        }

        fn tidy(&mut self) {
            let mut let_go = Vec::new();
            self.files.tidy(&mut let_go);
            self.closed.extend(let_go.iter().map(|lent| *lent.id));
        }
    }

    #[test]
    fn an_id_is_reused_while_its_file_is_open_and_by_the_next_open() {
        let (mut bench, content) = (Bench::new(8), Arc::new(Content::default()));
        assert_eq!(bench.open(7, &content, true), Some(1));
        assert_eq!(bench.open(7, &content, true), Some(1));
        assert_eq!(bench.open(7, &content, false), Some(1), "what is lent stays lent while it is open");
        (0..3).for_each(|_| bench.close(7, true));
        assert_eq!(bench.open(7, &content, true), Some(1));
        assert!(bench.closed.is_empty());
    }

    #[test]
    fn what_is_lent_or_was_is_opened_again_without_the_tree_unless_the_cache_wants_it_back() {
        let (mut bench, content) = (Bench::new(8), Arc::new(Content { bytes: 10, ..Content::default() }));
        let again = |bench: &mut Bench| bench.files.open_again(NodeId(7)).map(|lent| *lent.id);
        assert_eq!(again(&mut bench), None, "nobody had it open");
        assert_eq!(bench.open(7, &content, true), Some(1));
        assert_eq!(again(&mut bench), Some(1), "it is open");
        (0..2).for_each(|_| bench.close(7, true));
        assert_eq!((again(&mut bench), bench.files.idle_bytes), (Some(1), 0), "it was open");
        content.evicted.store(true, Ordering::Relaxed);
        assert_eq!(again(&mut bench), Some(1), "one id for all handles that are open");
        (0..2).for_each(|_| bench.close(7, true));
        assert_eq!((again(&mut bench), bench.files.nodes.len()), (None, 0));
        assert_eq!(bench.open(8, &content, false), None);
        assert!(bench.files.open_again(NodeId(8)).is_none(), "it is served");
        assert_eq!(bench.closed, [1]);
    }

    #[test]
    fn a_node_that_is_served_is_not_lent_until_it_is_closed() {
        let (mut bench, content) = (Bench::new(8), Arc::new(Content::default()));
        assert_eq!(bench.open(7, &content, false), None);
        assert_eq!(bench.open(7, &content, true), None);
        bench.close(7, false);
        assert_eq!(bench.open(7, &content, true), None);
        (0..2).for_each(|_| bench.close(7, false));
        assert_eq!(bench.open(7, &content, true), Some(1));
        bench.close(7, true);
        assert_eq!(bench.open(7, &content, false), None, "an idle id does not decide");
        assert_eq!(bench.closed, [1]);
    }

    #[test]
    fn the_first_handle_that_is_served_decides_whether_pages_are_kept() {
        let (mut files, mut let_go) = (LentFiles::<u32>::new(IdleMax { ids: 8, bytes: 0 }), Vec::new());
        let file: Arc<dyn NodeFile> = Arc::new(Content::default());
        for (first, other) in [(Pages::Direct, Pages::Kept), (Pages::Kept, Pages::Direct)] {
            for pages in [first, other, other] {
                let opening = files.open(NodeId(7), &file, pages, None::<fn() -> io::Result<(u32, u64)>>, &mut let_go);
                assert!(matches!(opening, Opening::Served(pages, None) if pages == first));
            }
            (0..3).for_each(|_| files.close(NodeId(7), false, &mut let_go));
        }
    }

    #[test]
    fn ids_are_bounded_but_none_of_an_open_file_is_closed() {
        let (mut bench, content) = (Bench::new(2), Arc::new(Content::default()));
        for node in 1..=4 {
            bench.open(node, &content, true);
        }
        assert!(bench.closed.is_empty());
        for node in [3, 1, 2, 4] {
            bench.close(node, true);
        }
        assert_eq!(bench.closed, [3, 1], "used longest ago first");
        assert_eq!(bench.open(2, &content, true), Some(2));
        assert_eq!(bench.open(3, &content, true), Some(5));
        assert_eq!(bench.closed, [3, 1, 4]);
        assert_eq!((bench.files.nodes.len(), bench.files.idle.len(), bench.files.ids), (2, 0, 2));
    }

    #[test]
    fn a_large_file_is_kept_only_while_it_is_open() {
        let mut bench = Bench::new(8);
        let of = |bytes| Arc::new(Content { bytes, ..Content::default() });
        assert_eq!(bench.open(1, &of(40), true), Some(1));
        assert_eq!(bench.open(2, &of(5000), true), Some(2));
        bench.close(1, true);
        bench.close(2, true);
        assert_eq!(bench.closed, [2]);
        assert_eq!(bench.open(1, &of(40), true), Some(1));
        assert_eq!((bench.files.idle_bytes, bench.files.ids, bench.files.nodes.len()), (0, 1, 1));
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_too() {
        let mut bench = Bench::new(100);
        let content = Arc::new(Content { bytes: 60, ..Content::default() });
        for node in 0..20 {
            bench.open(node, &content, true);
            bench.close(node, true);
        }
        assert_eq!((bench.files.idle_bytes, bench.files.ids), (960, 16));
        assert_eq!(bench.closed, [1, 2, 3, 4]);
    }

    #[test]
    fn an_evicted_file_loses_its_id_when_nobody_has_it_open() {
        let (mut bench, content) = (Bench::new(8), Arc::new(Content::default()));
        bench.open(7, &content, true);
        content.evicted.store(true, Ordering::Relaxed);
        bench.tidy();
        assert!(bench.closed.is_empty());
        assert_eq!(bench.open(7, &Arc::default(), true), Some(1), "one id for all handles that are open");
        (0..2).for_each(|_| bench.close(7, true));
        assert_eq!(bench.open(7, &Arc::default(), true), Some(2), "not even before the next round");
        bench.close(7, true);
        bench.tidy();
        assert_eq!(bench.closed, [1]);
        assert_eq!(bench.files.nodes.len(), 1);
    }

    #[test]
    fn a_kernel_that_makes_no_id_is_served() {
        let (mut files, mut let_go) = (LentFiles::<u32>::new(IdleMax { ids: 8, bytes: 0 }), Vec::new());
        let file: Arc<dyn NodeFile> = Arc::new(Content::default());
        let register = || Err(io::Error::from_raw_os_error(1));
        let opening = files.open(NodeId(7), &file, Pages::Kept, Some(register), &mut let_go);
        assert!(matches!(opening, Opening::Served(Pages::Kept, Some(_))));
        files.close(NodeId(7), false, &mut let_go);
        assert!(files.nodes.is_empty() && let_go.is_empty());
    }
}
