//! Directories as the kernel reads them: `.` and `..`, then pages of the tree, as much of one as fits a reply.

use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus,
    ReplyOpen,
};
use penstock_types::{Answer, ListedNode, NodeAttributes, NodeId};

use crate::directory::{OpenDirectory, Page, Place};
use crate::service::Service;

/// `.` and `..` come before the names of the tree.
const DOTS: [&str; 2] = [".", ".."];

/// The two forms in which a kernel reads a directory.
pub enum Listing {
    /// Names and what they are.
    Names(ReplyDirectory),
    /// With attributes: each counts as a lookup.
    Attributes(ReplyDirectoryPlus),
}

/// Where the names that were asked for are.
type Names = Option<(Arc<Page>, usize)>;

/// Opens a directory. The kernel keeps its names; the tree says whether those of the last time will do.
pub fn open(service: &Arc<Service>, node: NodeId, reply: ReplyOpen) {
    let answer = service.tree().open_directory(node);
    service.answer("opendir", answer, move |service, opened| match opened {
        Ok(keep_names) => {
            let handle = FileHandle(service.directories.insert(OpenDirectory::new(node)));
            let keep =
                if keep_names && service.expiry.works() { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
            reply.opened(handle, FopenFlags::FOPEN_CACHE_DIR | keep);
        }
        Err(errno) => reply.error(errno),
    });
}

/// Answers with the names from `offset` on.
pub fn read(service: &Arc<Service>, handle: u64, offset: u64, listing: Listing) {
    let Some(directory) = service.directories.get(handle) else { return listing.error(Errno::EBADF) };
    if offset == 0 {
        directory.rewind();
    }
    let position = offset.saturating_sub(DOTS.len() as u64);
    let wanted = find(Arc::clone(service), Arc::clone(&directory), position);
    service.answer("readdir", wanted, move |service, found| match found {
        Ok(names) => fill(service, &directory, offset, names, listing),
        Err(errno) => listing.error(errno),
    });
}

/// Asks the tree for pages until the one that has `position` is there.
fn find(service: Arc<Service>, directory: Arc<OpenDirectory>, position: u64) -> Answer<Names> {
    loop {
        let (start, after) = match directory.find(position) {
            Place::Here(page, index) => return Answer::Now(Ok(Some((page, index)))),
            Place::End => return Answer::Now(Ok(None)),
            Place::Ask { start, after } => (start, after),
        };
        let orders = service.expiry.orders();
        match service.tree().list(directory.node, after.as_deref()) {
            Answer::Now(Ok(names)) => directory.keep(start, Page { names, orders }),
            Answer::Now(Err(error)) => return Answer::Now(Err(error)),
            Answer::Later(names) => {
                return Answer::Later(Box::pin(async move {
                    directory.keep(start, Page { names: names.await?, orders });
                    match find(service, directory, position) {
                        Answer::Now(found) => found,
                        Answer::Later(found) => found.await,
                    }
                }));
            }
        }
    }
}

/// Puts as many names into the reply as fit.
fn fill(service: &Service, directory: &OpenDirectory, offset: u64, names: Names, mut listing: Listing) {
    let dots = DOTS.iter().zip(1..).skip(usize::try_from(offset).unwrap_or(usize::MAX));
    for (name, following) in dots {
        if listing.add_dot(service, directory.node, following, name) {
            return listing.ok();
        }
    }
    let Some((page, index)) = names else { return listing.ok() };
    let first = offset.max(DOTS.len() as u64);
    // Since the page was made, some of it may have been taken back.
    let believable = page.orders == service.expiry.orders();
    for (entry, following) in page.names.entries[index..].iter().zip(first + 1..) {
        if listing.add(service, following, entry, believable) {
            break;
        }
    }
    listing.ok();
}

impl Listing {
    /// Adds a name; whether it did not fit. What is added with attributes is remembered as looked up.
    fn add(&mut self, service: &Service, following: u64, entry: &ListedNode, believable: bool) -> bool {
        let Some(found) = entry.looked.found.as_ref() else { return false };
        match self {
            Self::Names(reply) => reply.add(INodeNo(found.number), following, kind(found), &*entry.name),
            Self::Attributes(reply) => {
                let shown = service.shown(found);
                // There is one time for both in this form.
                let looked = &entry.looked;
                let believed = if believable { service.name_valid(looked) } else { Duration::ZERO };
                let believed = believed.min(service.entry_valid(looked));
                let full = reply.add(shown.ino, following, &*entry.name, &believed, &shown, Generation(0));
                if !full {
                    service.tree().remember(entry);
                }
                full
            }
        }
    }

    /// Adds `.` or `..`, which the kernel knows itself: it neither keeps nor counts them.
    fn add_dot(&mut self, service: &Service, node: NodeId, following: u64, name: &str) -> bool {
        let shown = directory_itself(service, node);
        match self {
            Self::Names(reply) => reply.add(shown.ino, following, FileType::Directory, name),
            Self::Attributes(reply) => reply.add(shown.ino, following, name, &Duration::ZERO, &shown, Generation(0)),
        }
    }

    fn ok(self) {
        match self {
            Self::Names(reply) => reply.ok(),
            Self::Attributes(reply) => reply.ok(),
        }
    }

    fn error(self, errno: Errno) {
        match self {
            Self::Names(reply) => reply.error(errno),
            Self::Attributes(reply) => reply.error(errno),
        }
    }
}

fn directory_itself(service: &Service, node: NodeId) -> FileAttr {
    service.shown(&NodeAttributes::directory(node, 0))
}

fn kind(found: &NodeAttributes) -> FileType {
    if found.is_directory { FileType::Directory } else { FileType::RegularFile }
}
