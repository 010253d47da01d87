//! The operations of FUSE, each translated into what a [`KernelTree`](penstock_types::KernelTree) is asked. The tree is
//! read-only: whatever would change it is answered EROFS, whatever the kernel can do alone ENOSYS, after which it no
//! longer asks.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use penstock_types::{Looked, NodeId};

use crate::files::{self, Asked};
use crate::handshake;
use crate::listing::{self, Listing};
use crate::service::Service;

/// Unit of `statfs`.
const STATFS_BLOCK_BYTES: u32 = 4096;
/// Longest name that `statfs` promises.
const NAME_BYTES_MAX: u32 = 255;
/// Extended attributes of other kinds (capabilities, access lists) are asked for all the time, and nothing has any.
const ATTRIBUTE_PREFIX: &str = "user.";

/// One mount's side of the conversation.
pub struct Door(pub Arc<Service>);

impl Filesystem for Door {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.0.offer(handshake::configure(config));
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.0.work("lookup", || {
            self.0.surroundings.metrics.kernel_lookups.inc();
            if name.len() > NAME_BYTES_MAX as usize {
                // The kernel's own limit is higher.
                return reply.error(Errno::ENAMETOOLONG);
            }
            // Names of the tree are UTF-8.
            let Some(name) = name.to_str() else { return reply.error(Errno::ENOENT) };
            let answer = self.0.tree().lookup(NodeId(parent.0), name);
            self.0.answer("lookup", answer, |service, looked| match looked {
                Ok(looked) => entry(service, &looked, reply),
                Err(errno) => reply.error(errno),
            });
        });
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        self.0.work("forget", || self.0.tree().forget(NodeId(node.0), lookups));
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.0.work("getattr", || {
            let answer = self.0.tree().attributes(NodeId(node.0));
            self.0.answer("getattr", answer, |service, looked| match looked {
                Ok(looked) => match looked.found {
                    Some(found) => reply.attr(&service.attributes_valid(&looked), &service.shown(&found)),
                    None => reply.error(Errno::ESTALE),
                },
                Err(errno) => reply.error(errno),
            });
        });
    }

    fn open(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.0.work("open", || files::open(&self.0, NodeId(node.0), flags, reply));
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let asked = Asked { node: NodeId(node.0), handle: handle.0, offset, size };
        self.0.work("read", || files::read(&self.0, asked, reply));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.work("release", || {
            files::close(&self.0, handle.0);
            reply.ok();
        });
    }

    fn opendir(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.0.work("opendir", || listing::open(&self.0, NodeId(node.0), reply));
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.0.work("readdir", || listing::read(&self.0, handle.0, offset, Listing::Names(reply)));
    }

    fn readdirplus(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.0.work("readdir", || listing::read(&self.0, handle.0, offset, Listing::Attributes(reply)));
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.work("releasedir", || {
            drop(self.0.directories.remove(handle.0));
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.0.work("statfs", || {
            let space = self.0.tree().space();
            let unit = STATFS_BLOCK_BYTES;
            let (total, free) = (space.total_bytes / u64::from(unit), space.free_bytes / u64::from(unit));
            reply.statfs(total, free, free, 0, 0, unit, NAME_BYTES_MAX, unit);
        });
    }

    fn getxattr(&self, _: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.0.work("getxattr", || {
            let Some(name) = name.to_str().filter(|name| name.starts_with(ATTRIBUTE_PREFIX)) else {
                return reply.error(Errno::ENODATA);
            };
            let name = name.to_owned();
            let answer = self.0.tree().extended_attributes(NodeId(node.0));
            self.0.answer("getxattr", answer, move |_, known| match known {
                Ok(known) => match known.iter().find(|(known, _)| *known == name) {
                    Some((_, value)) => sized(value.as_bytes(), size, reply),
                    None => reply.error(Errno::ENODATA),
                },
                Err(errno) => reply.error(errno),
            });
        });
    }

    fn listxattr(&self, _: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.0.work("listxattr", || {
            let answer = self.0.tree().extended_attributes(NodeId(node.0));
            self.0.answer("listxattr", answer, move |_, known| match known {
                Ok(known) => {
                    let names: String = known.iter().flat_map(|(name, _)| [name, "\0"]).collect();
                    sized(names.as_bytes(), size, reply);
                }
                Err(errno) => reply.error(errno),
            });
        });
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        reply.error(Errno::EINVAL);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Nothing is written, and the kernel need not ask at every close.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: fuser::AccessFlags, reply: ReplyEmpty) {
        // The kernel decides by owner and mode.
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: fuser::ReplyLseek) {
        // The kernel answers by the size: no file has holes.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}

/// Answers a lookup. That nothing has the name is an answer, too, and the kernel keeps it as long as it is valid.
fn entry(service: &Service, looked: &Looked, reply: ReplyEntry) {
    let name_valid = service.name_valid(looked);
    match &looked.found {
        Some(found) => {
            let attributes_valid = service.attributes_valid(looked);
            reply.entry_with_ttls(&attributes_valid, &name_valid, &service.shown(found), Generation(0));
        }
        None if name_valid.is_zero() => reply.error(Errno::ENOENT),
        None => reply.entry(&name_valid, &service.absent(), Generation(0)),
    }
}

/// The value of an extended attribute, or its size for who asks with no room.
fn sized(value: &[u8], room: u32, reply: ReplyXattr) {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    match room {
        0 => reply.size(length),
        room if room < length => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}
