//! Directories as objects: a key that ends in `/` stands for a directory that may be empty, as in other stores. It has
//! no content, and goes only when it is empty.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use penstock_types::{
    CopyRequest, Error, ErrorKind, ObjectAttributes, ObjectKey, ObjectStat, Precondition, PutRequest, Result,
};

use super::publish::{describe, keep_metadata, make_parent, metadata_of, writable_path};
use super::root::{Root, error_of, marker_attributes};
use crate::check;

/// The path of the directory that a key stands for, with its `/`; `None` for other keys.
pub(super) fn of(key: &ObjectKey) -> Option<&[u8]> {
    let path = key.as_bytes();
    (path.ends_with(b"/") && path.len() > 1).then_some(path)
}

pub(super) fn stat(root: &Root, action: &str, path: &[u8]) -> Result<ObjectStat> {
    let opened = root.open_directory(&path[..path.len() - 1]);
    let directory = opened.map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => check::no_such_object(action),
        errno => error_of(action, errno),
    })?;
    let attributes = marker_attributes(&directory).ok_or_else(|| check::no_such_object(action))?;
    Ok(ObjectStat { attributes, metadata: metadata_of(&directory), headers: Vec::new() })
}

/// Makes a directory, and what is missing above it. One that is there gets other metadata.
pub(super) fn make(root: &Root, action: &str, path: &[u8], request: &PutRequest) -> Result<ObjectAttributes> {
    if !request.body.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, action, "a directory has no content")
            .advise("use a key that does not end in /"));
    }
    writable_path(action, &ObjectKey::new(Bytes::copy_from_slice(&path[..path.len() - 1])))?;
    let there = match stat(root, action, path) {
        Ok(found) => Some(found.attributes.version),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    check::precondition(action, &request.precondition, there.as_ref())?;
    let path_and_name = std::ffi::CString::new(path)
        .map_err(|_| Error::new(ErrorKind::InvalidInput, action, "the key has a NUL byte"))?;
    let (directory, _) = make_parent(root, action, &path_and_name)?;
    // What is known by an entry of it is there once that is.
    describe(&directory, action, &request.metadata)?;
    keep_metadata(&directory, action, &request.metadata)?;
    rustix::fs::fsync(&directory).map_err(|errno| error_of(action, errno))?;
    marker_attributes(&directory).ok_or_else(|| check::no_such_object(action))
}

/// Makes a directory with the metadata of another one, or gives one other metadata.
pub(super) fn copy(root: &Root, action: &str, path: &[u8], request: &CopyRequest) -> Result<ObjectAttributes> {
    let found = match (of(&request.from).map(|from| stat(root, action, from)), &request.from_version) {
        (None, _) => {
            return Err(Error::new(ErrorKind::InvalidInput, action, "a directory has no content")
                .advise("use a key that does not end in /"));
        }
        (Some(Err(error)), Some(_)) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::new(ErrorKind::Conflict, action, "the object is gone"));
        }
        (Some(found), _) => found?,
    };
    if let Some(version) = &request.from_version {
        check::precondition(action, &Precondition::Version(version.clone()), Some(&found.attributes.version))?;
    }
    let metadata = request.description.as_ref().map_or(found.metadata, |description| description.metadata.clone());
    let (key, precondition) = (request.to.clone(), request.precondition.clone());
    make(root, action, path, &PutRequest { key, body: Bytes::new(), precondition, metadata })
}

/// Directories that were to go and were not empty: they go with the last that is in them. Whoever removes a tree does
/// so in no order. Forgotten with the process: then they stay, empty.
#[derive(Default)]
pub(super) struct Leaving(Mutex<HashSet<Vec<u8>>>);

impl Leaving {
    /// Removes a directory where it is empty. What is in it keeps it, as it keeps the name of a directory in other
    /// stores.
    pub(super) fn remove(&self, root: &Root, action: &str, path: &[u8]) -> Result<()> {
        if !remove_empty(root, action, path)? {
            self.paths().insert(path.to_vec());
            return Ok(());
        }
        self.follow(root, action, path)
    }

    /// A key was removed: directories above it that were to go and are empty now go, too.
    pub(super) fn follow(&self, root: &Root, action: &str, key: &[u8]) -> Result<()> {
        let mut left = key.strip_suffix(b"/").unwrap_or(key);
        while let Some(slash) = left.iter().rposition(|byte| *byte == b'/') {
            let directory = &left[..=slash];
            if !self.paths().contains(directory) || !remove_empty(root, action, directory)? {
                break;
            }
            self.paths().remove(directory);
            left = &left[..slash];
        }
        Ok(())
    }

    /// Something is written: what is above it stays.
    pub(super) fn stay(&self, key: &[u8]) {
        let mut paths = self.paths();
        if !paths.is_empty() {
            paths.retain(|path| !key.starts_with(path));
        }
    }

    fn paths(&self) -> MutexGuard<'_, HashSet<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the directory is gone.
fn remove_empty(root: &Root, action: &str, path: &[u8]) -> Result<bool> {
    let path = &path[..path.len() - 1];
    let slash = path.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = slash.map_or((&b""[..], path), |slash| (&path[..slash], &path[slash + 1..]));
    let parent = match root.open_directory(parent) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(true),
        Err(errno) => return Err(error_of(action, errno)),
    };
    match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) => rustix::fs::fsync(&parent).map(|()| true).map_err(|errno| error_of(action, errno)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(errno) => Err(error_of(action, errno)),
    }
}
