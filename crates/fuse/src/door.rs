//! The operations of FUSE, each translated into what a [`KernelTree`](penstock_types::KernelTree) is asked. Whatever would
//! change a tree that is read-only is answered EROFS, whatever the kernel can do alone ENOSYS, after which it no longer
//! asks.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use penstock_types::NodeId;

use crate::copying::{self, At};
use crate::files::{self, Asked};
use crate::handshake;
use crate::listing::{self, Listing};
use crate::names::{self, NAME_BYTES_MAX};
use crate::service::Service;
use crate::writing::{self, Wanted};

/// Unit of `statfs`.
const STATFS_BLOCK_BYTES: u32 = 4096;
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
        self.0.work("lookup", || names::look(&self.0, NodeId(parent.0), name, reply));
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        self.0.work("forget", || self.0.tree().forget(NodeId(node.0), lookups));
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.0.work("getattr", || writing::attributes(&self.0, NodeId(node.0), reply));
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

    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.0.work("flush", || writing::flush(&self.0, handle.0, reply));
    }

    fn fsync(&self, _: &Request, node: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.work("fsync", || writing::sync(&self.0, NodeId(node.0), handle.0, reply));
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // What is acknowledged is durable, or there is nothing to be. The kernel says so by itself from now on, and does
        // not wait for whoever makes a file in the directory.
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
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let wanted = Wanted { mode, owner: (uid, gid), size, modified };
        self.0.work("setattr", || writing::set_attributes(&self.0, NodeId(node.0), &wanted, reply));
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        self.0.work("mknod", || names::make_file(&self.0, NodeId(parent.0), name, mode, reply));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        self.0.work("mkdir", || names::make_directory(&self.0, NodeId(parent.0), name, mode, reply));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.work("unlink", || names::remove(&self.0, NodeId(parent.0), name, reply));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.work("rmdir", || names::remove_directory(&self.0, NodeId(parent.0), name, reply));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((NodeId(parent.0), name), (NodeId(new_parent.0), new_name));
        self.0.work("rename", || names::rename(&self.0, from, to, flags, reply));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, flags: i32, reply: ReplyCreate) {
        self.0.work("create", || writing::create(&self.0, (NodeId(parent.0), name), mode, flags, reply));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.0.work("write", || writing::write(&self.0, handle.0, offset, data, reply));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.0.work("fallocate", || writing::allocate(&self.0, handle.0, (offset, length), mode, reply));
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        from: FileHandle,
        offset: u64,
        _: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = (At { handle: from.0, offset }, At { handle: to.0, offset: to_offset });
        self.0.work("copy_file_range", || copying::copy(&self.0, from, to, length, reply));
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(self.0.never());
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(self.0.never());
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(self.0.never());
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(self.0.never());
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
