//! Writing whole objects: a hidden file is filled and synced, then takes its name in one step under the lock.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use penstock_types::{
    CopyRequest, Error, ErrorKind, ObjectAttributes, ObjectKey, Precondition, PutRequest, Result, Version,
};

use super::root::{HIDDEN, Root, attributes_of, error_of, path_of};
use crate::check;

/// User metadata are extended attributes with this prefix.
const METADATA_PREFIX: &str = "user.penstock.";
/// Most bytes of names, and of each value, of extended attributes (the kernel's own bound).
const MAX_XATTR_BYTES: usize = 64 << 10;
/// Files that a crash left unfinished are removed after this time, seconds.
const ABANDONED_AFTER_S: i64 = 24 * 3600;

/// Orders writes of this process; the lock file orders them between processes.
static WRITES: Mutex<()> = Mutex::new(());
/// Tells hidden files of this process apart.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// An unfinished file. Removed when it is dropped before it took its name.
pub(super) struct Draft {
    hidden: OwnedFd,
    name: String,
    pub(super) file: File,
    named: bool,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.named {
            // Nothing to do about a failure here: it is swept later.
            let _ = rustix::fs::unlinkat(&self.hidden, self.name.as_str(), AtFlags::empty());
        }
    }
}

/// The hidden directory, made when it is missing.
pub(super) fn hidden_directory(root: &Root, action: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let failed = |errno| error_of(action, errno);
    match rustix::fs::openat(&root.fd, HIDDEN, flags, Mode::empty()) {
        Err(Errno::NOENT) => {}
        other => return other.map_err(failed),
    }
    match rustix::fs::mkdirat(&root.fd, HIDDEN, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let hidden = rustix::fs::openat(&root.fd, HIDDEN, flags, Mode::empty()).map_err(failed)?;
    Ok(hidden)
}

impl Draft {
    /// An empty hidden file.
    pub(super) fn new(root: &Root, action: &str) -> Result<Self> {
        let hidden = hidden_directory(root, action)?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        if serial == 0 {
            sweep(&hidden);
        }
        let name = format!("draft-{:x}-{:x}-{serial:x}", std::process::id(), started_ns());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // The mode that a plain program's file would get, cut by the umask.
        let mode = Mode::from_raw_mode(0o666);
        let fd = rustix::fs::openat(&hidden, name.as_str(), flags, mode).map_err(|errno| error_of(action, errno))?;
        Ok(Self { hidden, name, file: File::from(fd), named: false })
    }

    /// Adds user metadata.
    pub(super) fn describe(&self, action: &str, metadata: &[(String, String)]) -> Result<()> {
        describe(&self.file, action, metadata)
    }

    /// Gives the file its name if the condition holds, and makes both durable.
    pub(super) fn publish(
        mut self,
        root: &Root,
        action: &str,
        key: &ObjectKey,
        condition: &Precondition,
    ) -> Result<ObjectAttributes> {
        let failed = |errno| error_of(action, errno);
        let path = writable_path(action, key)?;
        rustix::fs::fdatasync(&self.file).map_err(failed)?;
        let (parent, name) = make_parent(root, action, &path)?;
        let lock = WriteLock::take(&self.hidden, action)?;
        check_condition(root, action, key, condition)?;
        match rename(&self.hidden, &self.name, &parent, &name, condition == &Precondition::Absent) {
            Ok(()) => {}
            Err(Errno::EXIST) if condition == &Precondition::Absent => {
                return Err(Error::new(ErrorKind::Conflict, action, "the object exists already"));
            }
            Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
                return Err(Error::new(ErrorKind::InvalidInput, action, "a directory has that name"));
            }
            Err(Errno::XDEV) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    action,
                    "the key lies on another file system than the source",
                )
                .advise("attach the directory of that file system by itself"));
            }
            Err(errno) => return Err(failed(errno)),
        }
        self.named = true;
        drop(lock);
        rustix::fs::fsync(&parent).map_err(failed)?;
        let stat = rustix::fs::fstat(&self.file).map_err(failed)?;
        attributes_of(&stat).ok_or_else(|| Error::new(ErrorKind::Internal, action, "what was written is no file"))
    }
}

fn rename(hidden: &OwnedFd, from: &str, parent: &OwnedFd, to: &CString, absent: bool) -> Result<(), Errno> {
    if !absent {
        return rustix::fs::renameat(hidden, from, parent, to);
    }
    match rustix::fs::renameat_with(hidden, from, parent, to, RenameFlags::NOREPLACE) {
        // File systems that cannot do it in one call can link without replacing.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rustix::fs::linkat(hidden, from, parent, to, AtFlags::empty())?;
            rustix::fs::unlinkat(hidden, from, AtFlags::empty())
        }
        other => other,
    }
}

/// Only one writer at a time looks and then acts, in this process and in others.
struct WriteLock {
    _in_process: std::sync::MutexGuard<'static, ()>,
    /// Closing it gives the lock of the file up.
    _file: OwnedFd,
}

impl WriteLock {
    fn take(hidden: &OwnedFd, action: &str) -> Result<Self> {
        let in_process = WRITES.lock().unwrap_or_else(PoisonError::into_inner);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let failed = |errno| error_of(action, errno);
        let file = rustix::fs::openat(hidden, "lock", flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self { _in_process: in_process, _file: file }),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
}

pub(super) fn writable_path(action: &str, key: &ObjectKey) -> Result<CString> {
    path_of(key).ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, action, "no file can have that name")
            .advise("use a key without empty, . or .. components, NUL bytes and components over 255 bytes")
    })
}

/// Opens the directory of a path, making what is missing of it, and returns the last component.
pub(super) fn make_parent(root: &Root, action: &str, path: &CString) -> Result<(OwnedFd, CString)> {
    let bytes = path.as_bytes();
    let slash = bytes.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = slash.map_or((&b""[..], bytes), |slash| (&bytes[..slash], &bytes[slash + 1..]));
    let name = CString::new(name).map_err(|_| Error::new(ErrorKind::InvalidInput, action, "the key has a NUL byte"))?;
    let failed = |errno| match errno {
        Errno::NOTDIR | Errno::LOOP | Errno::EXIST => {
            Error::new(ErrorKind::InvalidInput, action, "a file or link has the name of a directory on the way")
        }
        errno => error_of(action, errno),
    };
    match root.open_directory(parent) {
        Err(Errno::NOENT) => {}
        other => return Ok((other.map_err(failed)?, name)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory = root.open_directory(b"").map_err(failed)?;
    for part in parent.split(|byte| *byte == b'/') {
        match rustix::fs::mkdirat(&directory, part, Mode::from_raw_mode(0o777)) {
            Ok(()) => rustix::fs::fsync(&directory).map_err(failed)?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        directory = rustix::fs::openat(&directory, part, flags, Mode::empty()).map_err(failed)?;
    }
    Ok((directory, name))
}

fn check_condition(root: &Root, action: &str, key: &ObjectKey, condition: &Precondition) -> Result<()> {
    if condition == &Precondition::None {
        return Ok(());
    }
    let current = match root.open_object(action, key, OFlags::PATH) {
        Ok((_, attributes)) => Some(attributes.version),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    check::precondition(action, condition, current.as_ref())
}

pub(super) fn put(root: &Root, action: &str, request: &PutRequest) -> Result<ObjectAttributes> {
    writable_path(action, &request.key)?;
    let mut draft = Draft::new(root, action)?;
    draft.file.write_all(&request.body).map_err(|error| io_error(action, &error))?;
    draft.describe(action, &request.metadata)?;
    draft.publish(root, action, &request.key, &request.precondition)
}

pub(super) fn copy(root: &Root, action: &str, request: &CopyRequest) -> Result<ObjectAttributes> {
    writable_path(action, &request.to)?;
    let opened = root.open_object(action, &request.from, OFlags::RDONLY);
    let (from, attributes) = match (opened, &request.from_version) {
        (Err(error), Some(_)) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::new(ErrorKind::Conflict, action, "the object is gone"));
        }
        (opened, _) => opened?,
    };
    if let Some(version) = &request.from_version {
        check::precondition(action, &Precondition::Version(version.clone()), Some(&attributes.version))?;
    }
    let metadata = request.description.as_ref().map(|kept| kept.metadata.clone());
    let metadata = metadata.unwrap_or_else(|| metadata_of(&from));
    let mut draft = Draft::new(root, action)?;
    let mut from = File::from(from);
    std::io::copy(&mut from, &mut draft.file).map_err(|error| io_error(action, &error))?;
    let stat = rustix::fs::fstat(&from).map_err(|errno| error_of(action, errno))?;
    if attributes_of(&stat).as_ref() != Some(&attributes) {
        return Err(Error::new(ErrorKind::Conflict, action, "the object changed while it was copied"));
    }
    draft.describe(action, &metadata)?;
    draft.publish(root, action, &request.to, &request.precondition)
}

pub(super) fn delete(root: &Root, action: &str, key: &ObjectKey, version: Option<&Version>) -> Result<()> {
    let condition = version.map_or(Precondition::None, |version| Precondition::Version(version.clone()));
    let gone = || check_condition(root, action, key, &condition);
    let Some(path) = path_of(key) else { return gone() };
    let bytes = path.as_bytes();
    let slash = bytes.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = slash.map_or((&b""[..], bytes), |slash| (&bytes[..slash], &bytes[slash + 1..]));
    let parent = match root.open_directory(parent) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return gone(),
        Err(errno) => return Err(error_of(action, errno)),
    };
    let hidden = hidden_directory(root, action)?;
    let _lock = WriteLock::take(&hidden, action)?;
    check_condition(root, action, key, &condition)?;
    let kind = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW);
    match kind.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::RegularFile | FileType::Symlink) => {}
        // No object has that key.
        Ok(_) | Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(error_of(action, errno)),
    }
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => rustix::fs::fsync(&parent).map_err(|errno| error_of(action, errno)),
        Err(errno) => Err(error_of(action, errno)),
    }
}

/// Adds user metadata to a file or directory.
pub(super) fn describe(fd: &impl AsFd, action: &str, metadata: &[(String, String)]) -> Result<()> {
    for (name, value) in metadata {
        let name = format!("{METADATA_PREFIX}{}", name.to_lowercase());
        match rustix::fs::fsetxattr(fd, name.as_str(), value.as_bytes(), XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => {
                return Err(Error::new(ErrorKind::Unsupported, action, "the file system keeps no user metadata"));
            }
            Err(Errno::RANGE | Errno::TOOBIG | Errno::INVAL) => {
                return Err(Error::new(ErrorKind::InvalidInput, action, "an entry of the metadata is too long"));
            }
            Err(errno) => return Err(error_of(action, errno)),
        }
    }
    Ok(())
}

/// Takes all user metadata of a directory away but what has these names.
pub(super) fn keep_metadata(fd: &impl AsFd, action: &str, kept: &[(String, String)]) -> Result<()> {
    for (name, _) in metadata_of(fd) {
        if kept.iter().any(|(kept, _)| kept.to_lowercase() == name) {
            continue;
        }
        match rustix::fs::fremovexattr(fd, format!("{METADATA_PREFIX}{name}").as_str()) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(errno) => return Err(error_of(action, errno)),
        }
    }
    Ok(())
}

/// Whether the file system of a directory keeps user metadata.
pub(super) fn keeps_metadata(root: &Root) -> bool {
    let mut value = [0u8; 1];
    let asked = rustix::fs::fgetxattr(&root.fd, format!("{METADATA_PREFIX}trial"), &mut value[..]);
    !matches!(asked, Err(Errno::OPNOTSUPP | Errno::NOSYS))
}

/// User metadata of a file, sorted by name; none where the file system keeps none.
pub(super) fn metadata_of(fd: &impl AsFd) -> Vec<(String, String)> {
    use std::os::fd::AsRawFd;
    // A descriptor that only names a file cannot be asked itself.
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let mut names = vec![0u8; MAX_XATTR_BYTES];
    let Ok(length) = rustix::fs::listxattr(path.as_str(), &mut names[..]) else { return Vec::new() };
    let mut metadata = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        let Some(short) = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix(METADATA_PREFIX)) else {
            continue;
        };
        let mut value = vec![0u8; MAX_XATTR_BYTES];
        if let Ok(length) = rustix::fs::getxattr(path.as_str(), name, &mut value[..]) {
            metadata.push((short.to_owned(), String::from_utf8_lossy(&value[..length]).into_owned()));
        }
    }
    metadata.sort();
    metadata
}

/// Removes what writers left behind that are long dead.
fn sweep(hidden: &OwnedFd) {
    let now_s = i64::try_from(started_ns() / 1_000_000_000).unwrap_or(i64::MAX);
    let Ok(entries) = rustix::fs::Dir::read_from(hidden) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_bytes().starts_with(b"draft-") {
            continue;
        }
        let stat = rustix::fs::statat(hidden, name, AtFlags::SYMLINK_NOFOLLOW);
        if stat.is_ok_and(|stat| stat.st_mtime < now_s - ABANDONED_AFTER_S) {
            let _ = rustix::fs::unlinkat(hidden, name, AtFlags::empty());
        }
    }
}

/// Only makes names unlike those of other processes; no decision depends on it.
fn started_ns() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos()
}

pub(super) fn io_error(action: &str, error: &std::io::Error) -> Error {
    match error.raw_os_error() {
        Some(code) => error_of(action, Errno::from_raw_os_error(code)),
        None => Error::new(ErrorKind::Disk, action, error.to_string()),
    }
}
