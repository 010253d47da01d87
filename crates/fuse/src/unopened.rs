//! Files that are read without having been opened: where the kernel was told that nothing needs to be opened, it asks
//! for pages of a node, and keeps them. A file is then used for a moment, not for as long as a program has it open.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use penstock_types::{NodeFile, NodeId};

/// Files that are kept for the next read: of every program that reads, and of the kernel's reading ahead.
const FILES_MAX: usize = 64;

/// The files that were read last.
pub struct Unopened {
    bytes_max: u64,
    /// The one that was used last is at the end.
    files: Mutex<VecDeque<Kept>>,
}

struct Kept {
    node: NodeId,
    file: Arc<dyn NodeFile>,
    /// What of the cache it may hold.
    bytes: u64,
    /// Whether it was read since somebody tidied up.
    used: bool,
}

impl Unopened {
    /// Keeps files of `bytes_max` together: the cache cannot have their space back. Those that are being read are kept
    /// whatever they hold, as if a program had them open.
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, files: Mutex::default() }
    }

    /// The file of a node, where it is kept.
    pub fn get(&self, node: NodeId) -> Option<Arc<dyn NodeFile>> {
        used(&mut self.files(), node)
    }

    /// Keeps the file of a node, which has so many bytes, and says which one to read: reads that came at the same time
    /// opened it more than once, and share the first. Lets go of the one that was not used for longest.
    pub fn keep(&self, node: NodeId, file: Arc<dyn NodeFile>, bytes: u64) -> Arc<dyn NodeFile> {
        let let_go = {
            let mut files = self.files();
            if let Some(known) = used(&mut files, node) {
                return known;
            }
            files.push_back(Kept { node, file: Arc::clone(&file), bytes, used: true });
            if files.len() > FILES_MAX { files.pop_front() } else { None }
        };
        // Without the lock: the last use of a file may end here.
        drop(let_go);
        file
    }

    /// Lets go of a node's file: its bytes cannot be had any more.
    pub fn forget(&self, node: NodeId) {
        let let_go = {
            let mut files = self.files();
            files.iter().position(|kept| kept.node == node).and_then(|position| files.remove(position))
        };
        drop(let_go);
    }

    /// Lets go of files whose bytes the cache wants back, and of those that were not read since the last time as long as
    /// all together are too large.
    pub fn tidy(&self) {
        let mut let_go = Vec::new();
        {
            let mut files = self.files();
            let mut bytes: u128 = files.iter().map(|kept| u128::from(kept.bytes)).sum();
            for mut kept in std::mem::take(&mut *files) {
                let too_many = bytes > u128::from(self.bytes_max) && !kept.used;
                if too_many || kept.file.is_evicted() {
                    bytes -= u128::from(kept.bytes);
                    let_go.push(kept);
                } else {
                    kept.used = false;
                    files.push_back(kept);
                }
            }
        }
        drop(let_go);
    }

    fn files(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.files.lock().expect("no panic while files are looked for")
    }
}

/// The file of a node, which is the one that was used last from now on.
fn used(files: &mut VecDeque<Kept>, node: NodeId) -> Option<Arc<dyn NodeFile>> {
    let position = files.iter().rposition(|kept| kept.node == node)?;
    let mut kept = files.remove(position)?;
    kept.used = true;
    let file = Arc::clone(&kept.file);
    files.push_back(kept);
    Some(file)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::future::BoxFuture;
    use penstock_types::{ByteRange, Result};

    use super::*;

    #[derive(Debug, Default)]
    struct Content(AtomicBool);

    impl NodeFile for Content {
        fn read_now(&self, _: u64, _: &mut [u8]) -> Result<Option<usize>> {
            Ok(None)
        }

        fn bring(self: Arc<Self>, _: ByteRange) -> BoxFuture<'static, Result<Vec<u8>>> {
            Box::pin(async { Ok(Vec::new()) })
        }

        fn is_evicted(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn the_files_that_were_read_last_are_kept_and_none_that_was_evicted() {
        let files = Unopened::new(u64::MAX);
        let kept = |node: u64| files.get(NodeId(node)).is_some();
        let first = Arc::new(Content::default());
        files.keep(NodeId(1), Arc::clone(&first) as Arc<dyn NodeFile>, 1);
        for node in 2..FILES_MAX as u64 + 2 {
            assert!(kept(1), "it was used lately");
            files.keep(NodeId(node), Arc::new(Content::default()), 1);
        }
        assert!(kept(1) && !kept(2) && kept(3));
        first.0.store(true, Ordering::Relaxed);
        files.tidy();
        assert!(!kept(1) && kept(3));
        files.forget(NodeId(3));
        assert!(!kept(3));
        assert_eq!(Arc::strong_count(&first), 1);
        let again: Arc<dyn NodeFile> = files.keep(NodeId(4), first, 1);
        assert!(Arc::ptr_eq(&again, &files.get(NodeId(4)).unwrap()), "all read the file that was opened first");
    }

    #[test]
    fn files_that_are_too_large_together_are_kept_only_while_they_are_read() {
        let files = Unopened::new(100);
        let kept = |node: u64| files.files().iter().any(|kept| kept.node == NodeId(node));
        for (node, bytes) in [(1, 60), (2, 60), (3, 70), (4, u64::MAX)] {
            files.keep(NodeId(node), Arc::new(Content::default()), bytes);
        }
        files.tidy();
        assert!((1..=4).all(kept), "all were read since");
        assert!(files.get(NodeId(1)).is_some() && files.get(NodeId(4)).is_some());
        files.tidy();
        assert!(kept(1) && !kept(2) && !kept(3) && kept(4));
        files.tidy();
        assert!(!kept(1) && !kept(4), "nobody reads them");
        files.keep(NodeId(5), Arc::new(Content::default()), 100);
        files.tidy();
        files.tidy();
        assert!(kept(5), "it is small enough for the next read");
    }
}
