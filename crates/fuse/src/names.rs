//! Names that the kernel asks to be found, made, removed and changed.

use std::ffi::OsStr;
use std::sync::Arc;

use fuser::{Errno, Generation, RenameFlags, ReplyEmpty, ReplyEntry};
use penstock_types::{Answer, CreatedNode, Looked, NodeId, Replace};
use rustix::fs::FileType;

use crate::service::Service;
use crate::writing::Writing;

/// Longest name that `statfs` promises; the kernel's own limit is higher.
pub const NAME_BYTES_MAX: u32 = 255;

/// Looks a name up.
pub fn look(service: &Arc<Service>, parent: NodeId, name: &OsStr, reply: ReplyEntry) {
    service.surroundings.metrics.kernel_lookups.inc();
    let name = match checked(name) {
        Ok(name) => name,
        // Nothing has a name that the tree cannot have.
        Err(Errno::EILSEQ) => return reply.error(Errno::ENOENT),
        Err(errno) => return reply.error(errno),
    };
    let answer = service.tree().lookup(parent, name);
    service.answer("lookup", answer, |service, looked| match looked {
        Ok(looked) => entry(service, &looked, reply),
        Err(errno) => reply.error(errno),
    });
}

/// Makes a directory with that mode.
pub fn make_directory(service: &Arc<Service>, parent: NodeId, name: &OsStr, mode: u32, reply: ReplyEntry) {
    let name = match changed(service, name) {
        Ok(name) => name,
        Err(errno) => return reply.error(errno),
    };
    let answer = service.tree().make_directory(parent, name, service.made_directory(mode));
    service.change("mkdir", answer, |service, made| match made {
        Ok(made) => entry(service, &made, reply),
        Err(errno) => reply.error(errno),
    });
}

/// Makes a file that nobody opens.
pub fn make_file(service: &Arc<Service>, parent: NodeId, name: &OsStr, mode: u32, reply: ReplyEntry) {
    let name = match changed(service, name) {
        Ok(name) => name,
        Err(errno) => return reply.error(errno),
    };
    if FileType::from_raw_mode(mode) != FileType::RegularFile {
        return reply.error(Errno::EOPNOTSUPP);
    }
    let answer = service.tree().create(parent, name, service.made(mode), (true, false));
    service.change("mknod", answer, move |service, created| match created {
        Ok(created) => finish_file(service, created, reply),
        Err(errno) => reply.error(errno),
    });
}

/// Closes a file that was made without being opened, which is durable then.
fn finish_file(service: &Arc<Service>, created: CreatedNode, reply: ReplyEntry) {
    let CreatedNode { looked, opened } = created;
    let writing = match Writing::of(service, &opened) {
        Ok(writing) => writing,
        Err(errno) => return reply.error(errno),
    };
    service.change("mknod", writing.writer().flush(), move |service, flushed| {
        drop(writing);
        match (flushed, looked.found) {
            (Ok(()), _) => entry(service, &looked, reply),
            (Err(errno), found) => {
                found.iter().for_each(|found| service.tree().forget(found.node, 1));
                reply.error(errno);
            }
        }
    });
}

/// Removes a file.
pub fn remove(service: &Arc<Service>, parent: NodeId, name: &OsStr, reply: ReplyEmpty) {
    match changed(service, name) {
        Ok(name) => change_done(service, "unlink", service.tree().remove(parent, name), reply),
        Err(errno) => reply.error(errno),
    }
}

/// Removes an empty directory.
pub fn remove_directory(service: &Arc<Service>, parent: NodeId, name: &OsStr, reply: ReplyEmpty) {
    match changed(service, name) {
        Ok(name) => change_done(service, "rmdir", service.tree().remove_directory(parent, name), reply),
        Err(errno) => reply.error(errno),
    }
}

/// Gives a file or directory another name.
pub fn rename(
    service: &Arc<Service>,
    (from, name): (NodeId, &OsStr),
    (to, new_name): (NodeId, &OsStr),
    flags: RenameFlags,
    reply: ReplyEmpty,
) {
    let (name, new_name) = match (changed(service, name), changed(service, new_name)) {
        (Ok(name), Ok(new_name)) => (name, new_name),
        (Err(errno), _) | (_, Err(errno)) => return reply.error(errno),
    };
    let replace = match flags {
        none if none.is_empty() => Replace::Yes,
        RenameFlags::RENAME_NOREPLACE => Replace::No,
        RenameFlags::RENAME_EXCHANGE => Replace::Exchange,
        _ => return reply.error(Errno::EINVAL),
    };
    change_done(service, "rename", service.tree().rename((from, name), (to, new_name), replace), reply);
}

/// A name that is to be changed, where anything may be and the tree can have it.
pub fn changed<'a>(service: &Service, name: &'a OsStr) -> Result<&'a str, Errno> {
    if service.is_writable() { checked(name) } else { Err(Errno::EROFS) }
}

/// Names of the tree are UTF-8 of bounded length.
fn checked(name: &OsStr) -> Result<&str, Errno> {
    if name.len() > NAME_BYTES_MAX as usize {
        return Err(Errno::ENAMETOOLONG);
    }
    name.to_str().ok_or(Errno::EILSEQ)
}

/// Passes on that something was changed, or why not.
pub fn change_done(service: &Arc<Service>, operation: &'static str, answer: Answer<()>, reply: ReplyEmpty) {
    service.change(operation, answer, |_, done| match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    });
}

/// Answers with what a name means. That nothing has it is an answer, too, and the kernel keeps it as long as it is valid.
fn entry(service: &Service, looked: &Looked, reply: ReplyEntry) {
    let name_valid = service.name_valid(looked);
    match &looked.found {
        Some(found) => {
            let attributes_valid = service.entry_valid(looked);
            reply.entry_with_ttls(&attributes_valid, &name_valid, &service.shown(found), Generation(0));
        }
        None if name_valid.is_zero() => reply.error(Errno::ENOENT),
        None => reply.entry(&name_valid, &service.absent(), Generation(0)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_name_is_of_utf8_and_not_too_long() {
        assert_eq!(checked(OsStr::new("für")), Ok("für"));
        assert_eq!(checked(OsStr::from_bytes(b"f\xfcr")), Err(Errno::EILSEQ));
        let longest = "a".repeat(NAME_BYTES_MAX as usize);
        assert_eq!(checked(OsStr::new(&longest)), Ok(longest.as_str()));
        assert_eq!(checked(OsStr::new(&(longest + "b"))), Err(Errno::ENAMETOOLONG));
    }
}
