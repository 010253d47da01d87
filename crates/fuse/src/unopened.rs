//! Files that are read without having been opened: where the kernel was told that nothing needs to be opened, it asks
//! for pages of a node, and keeps them. A file is then used for a moment, not for as long as a program has it open.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use penstock_types::{NodeFile, NodeId};

/// Files that are kept for the next read: of every program that reads, and of the kernel's reading ahead.
const FILES_MAX: usize = 64;

/// The files that were read last.
#[derive(Default)]
pub struct Unopened {
    /// The one that was used last is at the end.
    files: Mutex<VecDeque<(NodeId, Arc<dyn NodeFile>)>>,
}

impl Unopened {
    /// The file of a node, where it is kept.
    pub fn get(&self, node: NodeId) -> Option<Arc<dyn NodeFile>> {
        used(&mut self.files(), node)
    }

    /// Keeps the file of a node and says which one to read: reads that came at the same time opened it more than once,
    /// and share the first. Lets go of the one that was not used for longest.
    pub fn keep(&self, node: NodeId, file: Arc<dyn NodeFile>) -> Arc<dyn NodeFile> {
        let let_go = {
            let mut files = self.files();
            if let Some(known) = used(&mut files, node) {
                return known;
            }
            files.push_back((node, Arc::clone(&file)));
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
            files.iter().position(|(known, _)| *known == node).and_then(|position| files.remove(position))
        };
        drop(let_go);
    }

    /// Lets go of files whose bytes the cache wants back.
    pub fn tidy(&self) {
        let mut let_go = Vec::new();
        self.files().retain(|(_, file)| {
            let evicted = file.is_evicted();
            if evicted {
                let_go.push(Arc::clone(file));
            }
            !evicted
        });
    }

    fn files(&self) -> MutexGuard<'_, VecDeque<(NodeId, Arc<dyn NodeFile>)>> {
        self.files.lock().expect("no panic while files are looked for")
    }
}

/// The file of a node, which is the one that was used last from now on.
fn used(files: &mut VecDeque<(NodeId, Arc<dyn NodeFile>)>, node: NodeId) -> Option<Arc<dyn NodeFile>> {
    let position = files.iter().rposition(|(known, _)| *known == node)?;
    let entry = files.remove(position)?;
    let file = Arc::clone(&entry.1);
    files.push_back(entry);
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
        let files = Unopened::default();
        let kept = |node: u64| files.get(NodeId(node)).is_some();
        let first = Arc::new(Content::default());
        files.keep(NodeId(1), Arc::clone(&first) as Arc<dyn NodeFile>);
        for node in 2..FILES_MAX as u64 + 2 {
            assert!(kept(1), "it was used lately");
            files.keep(NodeId(node), Arc::new(Content::default()));
        }
        assert!(kept(1) && !kept(2) && kept(3));
        first.0.store(true, Ordering::Relaxed);
        files.tidy();
        assert!(!kept(1) && kept(3));
        files.forget(NodeId(3));
        assert!(!kept(3));
        assert_eq!(Arc::strong_count(&first), 1);
        let again: Arc<dyn NodeFile> = files.keep(NodeId(4), first);
        assert!(Arc::ptr_eq(&again, &files.get(NodeId(4)).unwrap()), "all read the file that was opened first");
    }
}
