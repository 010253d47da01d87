//! Files that are open for writing. Where the tree lends a new one, the kernel writes and reads it by itself; else every
//! write comes here. What is written is the tree's to keep, and closing asks the tree to make it durable.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyEmpty,
    ReplyOpen, ReplyWrite, TimeOrNow,
};
use penstock_types::faults::{Safeguard, is_left_out};
use penstock_types::{
    AttributeChange, Clock, CreatedNode, Error, ErrorKind, Looked, NodeId, NodeWriter, OpenedNode, Posix,
};
use rustix::fs::OFlags;

use crate::files::{OpenFile, let_go_of};
use crate::lent::{Opening, Pages};
use crate::names::{self, change_done};
use crate::service::Service;

/// A writer of the tree that was given to us; is told, once, when the last one who uses it lets go. That is so when the
/// kernel closes the handle, and when the connection ends without it.
#[derive(Debug)]
pub struct Writing(Arc<dyn NodeWriter>);

impl Writing {
    /// The writer that came with an open for writing.
    pub fn of(service: &Service, opened: &OpenedNode) -> Result<Self, Errno> {
        match &opened.writer {
            Some(writer) => Ok(Self(Arc::clone(writer))),
            None => Err(service.fail("open", &defect("the tree gave no writer"))),
        }
    }

    /// Who writes.
    pub fn writer(&self) -> &Arc<dyn NodeWriter> {
        &self.0
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Opens a file for writing, empty where `truncate` says so.
pub fn open(service: &Arc<Service>, node: NodeId, flags: OFlags, reply: ReplyOpen) {
    if !service.is_writable() {
        return reply.error(Errno::EROFS);
    }
    service.surroundings.metrics.kernel_opens.inc();
    let answer = service.tree().open_for_writing(node, flags.contains(OFlags::TRUNC));
    service.change("open", answer, move |service, opened| {
        let register = |file: &OwnedFd| reply.open_backing(file);
        match opened.and_then(|opened| keep(service, node, &opened, flags, register)) {
            // Every close has to be heard of, so that it can fail.
            Ok((handle, Opening::Served(pages, _))) => reply.opened(handle, pages.flags()),
            Ok((handle, Opening::Lent(lent))) => reply.opened_passthrough(handle, FopenFlags::empty(), &lent.id),
            Err(errno) => reply.error(errno),
        }
    });
}

/// Makes a file with that mode, or opens the one that has the name, for writing.
pub fn create(service: &Arc<Service>, (parent, name): (NodeId, &OsStr), mode: u32, flags: i32, reply: ReplyCreate) {
    let name = match names::changed(service, name) {
        Ok(name) => name,
        Err(errno) => return reply.error(errno),
    };
    service.surroundings.metrics.kernel_opens.inc();
    let flags = OFlags::from_bits_retain(flags.cast_unsigned());
    let how = (flags.contains(OFlags::EXCL), flags.contains(OFlags::TRUNC));
    let answer = service.tree().create(parent, name, service.made(mode), how);
    service.change("create", answer, move |service, created| match created {
        Ok(created) => created_as(service, &created, flags, reply),
        Err(errno) => reply.error(errno),
    });
}

fn created_as(service: &Service, created: &CreatedNode, flags: OFlags, reply: ReplyCreate) {
    let Some(found) = &created.looked.found else {
        return reply.error(service.fail("create", &defect("the tree made nothing")));
    };
    // There is one time for both in this form.
    let valid = service.name_valid(&created.looked).min(service.entry_valid(&created.looked));
    let (shown, generation) = (service.shown(found), Generation(0));
    match keep(service, found.node, &created.opened, flags, |file| reply.open_backing(file)) {
        Ok((handle, Opening::Served(pages, _))) => reply.created(&valid, &shown, generation, handle, pages.flags()),
        Ok((handle, Opening::Lent(lent))) => {
            reply.created_passthrough(&valid, &shown, generation, handle, FopenFlags::empty(), &lent.id);
        }
        Err(errno) => {
            service.tree().forget(found.node, 1);
            reply.error(errno);
        }
    }
}

/// Keeps a file that was opened for writing until the kernel closes it. Who only writes has nothing to read: the file is
/// lent where the tree and the kernel can, and where not, pages of the kernel would hold every byte a second time.
fn keep(
    service: &Service,
    node: NodeId,
    opened: &OpenedNode,
    flags: OFlags,
    register: impl FnOnce(&OwnedFd) -> io::Result<BackingId>,
) -> Result<(FileHandle, Opening<BackingId>), Errno> {
    let begins_empty = flags.intersects(OFlags::TRUNC | OFlags::EXCL);
    let only_writes = flags.contains(OFlags::WRONLY);
    let direct = (only_writes || begins_empty) && service.offered().maps_direct;
    let wanted = if direct { Pages::Direct } else { Pages::Kept };
    let writing = Writing::of(service, opened)?;
    let offered = if service.lends() { writing.writer().lend(only_writes) } else { None };
    // What is open for writing is of no use to a later open: its bytes are not kept then.
    let register = offered.as_ref().map(|file| {
        || {
            let id = register(file)?;
            service.surroundings.metrics.kernel_lent_files.inc();
            Ok((id, 0))
        }
    });
    let mut let_go = Vec::new();
    let opening = service.lent().open(node, &opened.file, wanted, register, &mut let_go);
    drop(let_go);
    let is_lent = matches!(opening, Opening::Lent(_));
    match (&opening, &offered) {
        (Opening::Lent(_), Some(_)) => drop(service.surroundings.metrics.kernel_lent_opens.inc()),
        // The kernel reads it by itself and would not see what is written: the name has to mean another node.
        (Opening::Lent(_), None) => {
            let_go_of(service, node, is_lent);
            return Err(Errno::ESTALE);
        }
        (Opening::Served(_, failed), Some(_)) => {
            writing.writer().take_back();
            failed.iter().for_each(|error| service.not_lent(error));
        }
        (Opening::Served(..), None) => {}
    }
    let handle = service.files.insert(OpenFile::written(node, Arc::clone(&opened.file), writing, is_lent));
    Ok((FileHandle(handle), opening))
}

/// Writes all of `data`.
pub fn write(service: &Arc<Service>, handle: u64, offset: u64, data: &[u8], reply: ReplyWrite) {
    service.surroundings.metrics.kernel_writes.inc();
    let Some(writer) = writer(service, handle) else { return reply.error(Errno::EBADF) };
    let length = u32::try_from(data.len()).expect("a request of the kernel is smaller");
    service.change("write", writer.write(offset, data), move |service, written| match written {
        Ok(()) => {
            service.surroundings.metrics.kernel_written_bytes.inc_by(length.into());
            reply.written(length);
        }
        Err(errno) => reply.error(errno),
    });
}

/// Calls `fallocate`.
pub fn allocate(service: &Arc<Service>, handle: u64, (offset, length): (u64, u64), mode: i32, reply: ReplyEmpty) {
    match writer(service, handle) {
        Some(writer) => change_done(service, "fallocate", writer.allocate(mode, offset, length), reply),
        None => reply.error(Errno::EBADF),
    }
}

/// Makes durable what was written, at a close of one of a handle's descriptors.
pub fn flush(service: &Arc<Service>, handle: u64, reply: ReplyEmpty) {
    if !service.is_writable() {
        // Nothing is written, and the kernel need not ask at every close.
        return reply.error(Errno::ENOSYS);
    }
    match writer(service, handle) {
        Some(writer) if !is_left_out(Safeguard::Flush) => change_done(service, "flush", writer.flush(), reply),
        _ => reply.ok(),
    }
}

/// Makes durable what was written to a file, be it by another handle than the one that asks.
pub fn sync(service: &Arc<Service>, node: NodeId, handle: u64, reply: ReplyEmpty) {
    if !service.is_writable() {
        return reply.error(Errno::ENOSYS);
    }
    let writer = writer(service, handle).or_else(|| {
        let open = service.files.find(|open| open.node == node && open.writing.is_some())?;
        open.writing.as_ref().map(|writing| Arc::clone(writing.writer()))
    });
    match writer {
        Some(writer) => change_done(service, "fsync", writer.flush(), reply),
        None => reply.ok(),
    }
}

fn writer(service: &Service, handle: u64) -> Option<Arc<dyn NodeWriter>> {
    service.files.get(handle)?.writing.as_ref().map(|writing| Arc::clone(writing.writer()))
}

/// What a `setattr` wants changed, of what could be.
pub struct Wanted {
    pub mode: Option<u32>,
    pub owner: (Option<u32>, Option<u32>),
    pub size: Option<u64>,
    pub modified: Option<TimeOrNow>,
}

/// Changes size, permissions, owner and modification time. Other times are passed over: programs that copy or unpack set
/// them of everything, and would give up.
pub fn set_attributes(service: &Arc<Service>, node: NodeId, wanted: &Wanted, reply: ReplyAttr) {
    if !service.is_writable() {
        return reply.error(Errno::EROFS);
    }
    let posix = Posix {
        mode: wanted.mode.map(Posix::permissions),
        uid: wanted.owner.0,
        gid: wanted.owner.1,
        modified_ns: wanted.modified.map(|time| nanoseconds(service.surroundings.clock.as_ref(), time)),
    };
    let change = AttributeChange {
        size: wanted.size,
        posix,
        shown: service.unsaid(),
        shown_of_directory: service.unsaid_of_directory(),
    };
    if change.size.is_none() && posix.is_empty() {
        return attributes(service, node, reply);
    }
    service.change("setattr", service.tree().set_attributes(node, change), |service, changed| match changed {
        Ok(looked) => shown(service, &looked, reply),
        Err(errno) => reply.error(errno),
    });
}

/// Tells what is to be shown of a node.
pub fn attributes(service: &Arc<Service>, node: NodeId, reply: ReplyAttr) {
    service.answer("getattr", service.tree().attributes(node), |service, looked| match looked {
        Ok(looked) => shown(service, &looked, reply),
        Err(errno) => reply.error(errno),
    });
}

fn shown(service: &Service, looked: &Looked, reply: ReplyAttr) {
    match &looked.found {
        Some(found) => {
            let shown = FileAttr { ino: INodeNo(found.number), ..service.shown(found) };
            reply.attr(&service.attributes_valid(looked), &shown);
        }
        None => reply.error(Errno::ESTALE),
    }
}

/// Since the Unix epoch.
fn nanoseconds(clock: &dyn Clock, time: TimeOrNow) -> i64 {
    let TimeOrNow::SpecificTime(time) = time else { return clock.wall_ms().saturating_mul(1_000_000) };
    let whole = |age: std::time::Duration| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(age) => whole(age),
        Err(before) => -whole(before.duration()),
    }
}

fn defect(reason: &str) -> Error {
    Error::new(ErrorKind::Internal, "open a file for writing", reason).advise("report it")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use penstock_testkit::ManualClock;

    use super::*;

    #[test]
    fn a_time_may_lie_before_the_epoch_or_be_now() {
        let clock = ManualClock::default();
        let at = |time: SystemTime| nanoseconds(&clock, TimeOrNow::SpecificTime(time));
        assert_eq!(at(UNIX_EPOCH + Duration::from_nanos(1_500_900_001)), 1_500_900_001);
        assert_eq!(at(UNIX_EPOCH - Duration::from_millis(1500)), -1_500_000_000);
        assert_eq!(nanoseconds(&clock, TimeOrNow::Now), clock.wall_ms() * 1_000_000);
    }
}
