//! Open files: opened the way that the tree and the kernel's rules admit, read from memory and cache or brought first.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, OpenAccMode, OpenFlags, ReplyData, ReplyOpen};
use penstock_types::{Answer, ByteRange, Looked, NodeFile, NodeId, OpenedNode};
use rustix::fs::OFlags;

use crate::lent::{Lent, Opening, Pages};
use crate::service::Service;
use crate::writing::{self, Writing};

thread_local! {
    // Grows to the largest read that the kernel was granted, which is 1 MiB, and stays.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Late reads that are remembered: those of every program that waited.
const LATE_MAX: usize = 256;
/// After so long at most a late read is forgotten.
const LATE_FOR_MAX: Duration = Duration::from_secs(1);

/// Reads that failed at their deadline a moment ago. Where reading ahead failed, the kernel asks once more for the first
/// page that somebody waits for, at once; without this, whoever waits would wait for two deadlines.
#[derive(Default)]
pub struct LateReads {
    reads: Mutex<VecDeque<(Asked, Duration)>>,
    /// Whether there are any: nearly never.
    any: AtomicBool,
}

impl LateReads {
    fn note(&self, asked: Asked, now: Duration) {
        let mut reads = self.reads.lock().expect("no panic while late reads are noted");
        if reads.len() >= LATE_MAX {
            reads.pop_front();
        }
        reads.push_back((asked, now));
        self.any.store(true, Ordering::Relaxed);
    }

    /// Whether this is a part of what failed since `since`.
    fn covers(&self, asked: &Asked, since: Duration) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let mut reads = self.reads.lock().expect("no panic while late reads are looked for");
        reads.retain(|(_, failed)| *failed >= since);
        self.any.store(!reads.is_empty(), Ordering::Relaxed);
        let same = |late: &Asked| late.node == asked.node && late.range().contains(asked.range());
        reads.iter().any(|(late, _)| same(late))
    }
}

/// What a handle of the kernel stands for.
pub struct OpenFile {
    pub node: NodeId,
    /// Where it is open for writing.
    pub writing: Option<Writing>,
    file: Arc<dyn NodeFile>,
    is_lent: bool,
    /// Whether it was found that its version is gone.
    is_stale: AtomicBool,
}

impl OpenFile {
    fn new(node: NodeId, file: Arc<dyn NodeFile>, is_lent: bool) -> Self {
        Self { node, writing: None, file, is_lent, is_stale: AtomicBool::new(false) }
    }

    /// What is read.
    pub fn file(&self) -> &Arc<dyn NodeFile> {
        &self.file
    }

    /// Open for writing.
    pub fn written(node: NodeId, file: Arc<dyn NodeFile>, writing: Writing, is_lent: bool) -> Self {
        Self { writing: Some(writing), ..Self::new(node, file, is_lent) }
    }
}

/// Opens a file: for reading here, for writing where it is to be written or emptied.
pub fn open(service: &Arc<Service>, node: NodeId, flags: OpenFlags, reply: ReplyOpen) {
    let wanted = OFlags::from_bits_retain(flags.0.cast_unsigned());
    if wanted.contains(OFlags::TRUNC) || flags.acc_mode() != OpenAccMode::O_RDONLY {
        return writing::open(service, node, wanted, reply);
    }
    if service.options.no_open {
        // The kernel never asks again, and asks for pages by their node.
        return reply.error(Errno::ENOSYS);
    }
    service.surroundings.metrics.kernel_opens.inc();
    if let Some(lent) = open_again(service, node) {
        return opened_lent(service, node, lent, reply);
    }
    let answer = service.tree().open(node);
    service.answer("open", answer, move |service, opened| match opened {
        Ok(opened) => opened_as(service, node, &opened, reply),
        Err(errno) => reply.error(errno),
    });
}

/// Opens a file that the kernel reads by itself already, or was reading a while ago: nothing is looked up, and nothing
/// registered.
fn open_again(service: &Service, node: NodeId) -> Option<Lent<BackingId>> {
    let lent = service.lent().open_again(node)?;
    if lent.file.open_again() {
        return Some(lent);
    }
    let_go_of(service, node, true);
    None
}

fn opened_lent(service: &Service, node: NodeId, lent: Lent<BackingId>, reply: ReplyOpen) {
    service.surroundings.metrics.kernel_lent_opens.inc();
    let handle = service.files.insert(OpenFile::new(node, lent.file, true));
    reply.opened_passthrough(FileHandle(handle), FopenFlags::FOPEN_NOFLUSH, &lent.id);
}

/// Answers an open: lent where that is possible, and then with nothing but NOFLUSH, which is all that may go with it.
fn opened_as(service: &Service, node: NodeId, opened: &OpenedNode, reply: ReplyOpen) {
    let lent = opened.lent.as_ref().filter(|_| service.lends());
    let register = lent.map(|descriptor| {
        let reply = &reply;
        move || {
            let bytes = rustix::fs::fstat(descriptor)?.st_size;
            let id = reply.open_backing(descriptor)?;
            service.surroundings.metrics.kernel_lent_files.inc();
            Ok((id, u64::try_from(bytes).unwrap_or(0)))
        }
    });
    let mut let_go = Vec::new();
    // Under the lock, so that two opens of a node never make two ids; making one reads and waits for nothing.
    let wanted = if opened.keep_pages { Pages::Kept } else { Pages::Direct };
    let opening = service.lent().open(node, &opened.file, wanted, register, &mut let_go);
    drop(let_go);
    match opening {
        Opening::Lent(lent) => opened_lent(service, node, lent, reply),
        Opening::Served(pages, failed) => {
            failed.iter().for_each(|error| service.not_lent(error));
            let file = Arc::clone(&opened.file);
            let handle = service.files.insert(OpenFile::new(node, file, false));
            reply.opened(FileHandle(handle), pages.flags() | FopenFlags::FOPEN_NOFLUSH);
        }
    }
}

/// What a read asks for.
#[derive(Clone, Copy)]
pub struct Asked {
    pub node: NodeId,
    pub handle: u64,
    pub offset: u64,
    pub size: u32,
}

impl Asked {
    fn range(&self) -> ByteRange {
        ByteRange::new(self.offset, self.offset.saturating_add(u64::from(self.size)))
    }
}

/// Answers a read: at once with what is present, otherwise when it has been brought.
pub fn read(service: &Arc<Service>, asked: Asked, reply: ReplyData) {
    service.surroundings.metrics.kernel_reads.inc();
    let late_for = (service.options.request_timeout / 8).min(LATE_FOR_MAX);
    if service.late_reads.covers(&asked, service.surroundings.clock.monotonic().saturating_sub(late_for)) {
        return reply.error(Errno::ETIMEDOUT);
    }
    if !service.options.no_open {
        return match service.files.get(asked.handle) {
            Some(open) => read_file(service, &open.file, asked, reply),
            None => reply.error(Errno::EBADF),
        };
    }
    if let Some(file) = service.unopened.get(asked.node) {
        return read_file(service, &file, asked, reply);
    }
    match service.tree().open(asked.node) {
        Answer::Now(Ok(opened)) => {
            let file = keep_unopened(service, asked.node, opened.file);
            read_file(service, &file, asked, reply);
        }
        Answer::Now(Err(error)) => unread(service, asked, service.fail("read", &error), reply),
        Answer::Later(opening) => {
            service.surroundings.metrics.kernel_late_reads.inc();
            let keeper = Arc::clone(service);
            let reading = async move {
                let file = keep_unopened(&keeper, asked.node, opening.await?.file);
                file.bring(asked.range()).await
            };
            service.park("read", Box::pin(reading), move |service, brought| match brought {
                Ok(bytes) => reply.data(&bytes),
                Err(errno) => unread(service, asked, errno, reply),
            });
        }
    }
}

fn keep_unopened(service: &Service, node: NodeId, file: Arc<dyn NodeFile>) -> Arc<dyn NodeFile> {
    let bytes = match service.tree().attributes(node) {
        Answer::Now(Ok(Looked { found: Some(found), .. })) => found.size,
        // What is not known counts as large.
        _ => u64::MAX,
    };
    service.unopened.keep(node, file, bytes)
}

/// Answers a read that failed. Where the version is gone the kernel may go on to believe that the name means it, so that
/// every open would fail: the name is taken back, once for each handle.
fn unread(service: &Service, asked: Asked, errno: Errno, reply: ReplyData) {
    if errno == Errno::ETIMEDOUT {
        service.late_reads.note(asked, service.surroundings.clock.monotonic());
    }
    if errno == Errno::ESTALE {
        let known = if service.options.no_open {
            service.unopened.forget(asked.node);
            false
        } else {
            service.files.get(asked.handle).is_none_or(|open| open.is_stale.swap(true, Ordering::Relaxed))
        };
        if !known {
            service.expire(asked.node);
        }
    }
    reply.error(errno);
}

fn read_file(service: &Arc<Service>, file: &Arc<dyn NodeFile>, asked: Asked, reply: ReplyData) {
    let length = asked.size as usize;
    let absent = BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < length {
            buffer.resize(length.next_power_of_two(), 0);
        }
        match file.read_now(asked.offset, &mut buffer[..length]) {
            Ok(Some(count)) => {
                reply.data(&buffer[..count]);
                None
            }
            Ok(None) => Some((reply, None)),
            Err(error) => Some((reply, Some(error))),
        }
    });
    match absent {
        None => {}
        Some((reply, Some(error))) => unread(service, asked, service.fail("read", &error), reply),
        Some((reply, None)) => {
            service.surroundings.metrics.kernel_late_reads.inc();
            service.park("read", Arc::clone(file).bring(asked.range()), move |service, brought| match brought {
                Ok(bytes) => reply.data(&bytes),
                Err(errno) => unread(service, asked, errno, reply),
            });
        }
    }
}

/// The kernel closed a handle: the last program that had it is gone, or has unmapped it.
pub fn close(service: &Service, handle: u64) {
    let Some(open) = service.files.remove(handle) else { return };
    let_go_of(service, open.node, open.is_lent);
}

/// Counts a handle of a node less.
pub fn let_go_of(service: &Service, node: NodeId, is_lent: bool) {
    let mut let_go = Vec::new();
    service.lent().close(node, is_lent, &mut let_go);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_a_read_that_failed_late_is_late_too_for_a_moment() {
        let late = LateReads::default();
        let asked = |node: u64, offset, size| Asked { node: NodeId(node), handle: 0, offset, size };
        let second = Duration::from_secs(1);
        assert!(!late.covers(&asked(1, 0, 4096), Duration::ZERO));
        late.note(asked(1, 8192, 65_536), 5 * second);
        assert!(late.covers(&asked(1, 8192, 4096), 4 * second));
        assert!(!late.covers(&asked(1, 4096, 8192), 4 * second), "some of it is somewhere else");
        assert!(!late.covers(&asked(2, 8192, 4096), 4 * second));
        assert!(!late.covers(&asked(1, 8192, 4096), 6 * second), "it was long ago");
        assert!(!late.any.load(Ordering::Relaxed));
        (0..2 * LATE_MAX as u64).for_each(|node| late.note(asked(node, 0, 1), second));
        assert_eq!(late.reads.lock().unwrap().len(), LATE_MAX);
    }
}
