//! The directory itself: which keys it can hold, how a file is opened without leaving it, what its version is.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use penstock_types::{Error, ErrorKind, ObjectAttributes, ObjectKey, Result, Version};

/// Where unfinished writes and uploads are; never shown as keys.
pub(super) const HIDDEN: &str = ".penstock";
/// Linux: longest name of a directory's entry, bytes.
const MAX_NAME_BYTES: usize = 255;
/// Linux: longest path, bytes, without its NUL.
const MAX_PATH_BYTES: usize = 4095;
/// `openat2` gives EAGAIN when something is renamed while it looks; so often it is asked again.
const MAX_RACES: usize = 16;

/// An open directory that nothing is looked up outside of.
#[derive(Debug)]
pub(crate) struct Root {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

impl Root {
    /// Opens the directory.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let action = format!("open directory {}", path.display());
        if !path.is_absolute() {
            return Err(Error::new(ErrorKind::InvalidInput, action, "its path is not absolute")
                .advise("write file:///ABSOLUTE/PATH"));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path: path.to_owned() }),
            Err(Errno::NOENT) => Err(Error::new(ErrorKind::NotFound, action, "there is no such directory")
                .advise("check the path, and that its file system is mounted")),
            Err(Errno::NOTDIR) => Err(Error::new(ErrorKind::NotADirectory, action, "it is not a directory")
                .advise("attach the directory that it is in")),
            Err(errno) => Err(error_of(&action, errno)),
        }
    }

    /// How messages name a key.
    pub(super) fn describe(&self, key: &ObjectKey) -> String {
        format!("file://{}/{key}", self.path.display())
    }

    /// Opens a key's file with its attributes; only regular files are objects. A symbolic link counts as the file
    /// it leads to, as long as it stays inside; linked directories are not entered.
    pub(super) fn open_object(
        &self,
        action: &str,
        key: &ObjectKey,
        flags: OFlags,
    ) -> Result<(OwnedFd, ObjectAttributes)> {
        let Some(path) = path_of(key) else { return Err(crate::check::no_such_object(action)) };
        let fd = self.open_file(&path, flags).map_err(|errno| error_of(action, errno))?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| error_of(action, errno))?;
        match attributes_of(&stat) {
            Some(attributes) => Ok((fd, attributes)),
            None => Err(crate::check::no_such_object(action)),
        }
    }

    fn open_file(&self, path: &CString, flags: OFlags) -> Result<OwnedFd, Errno> {
        // Not blocking, so that a fifo cannot hold us; a descriptor that only names a file takes no such flags.
        let careful = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK | OFlags::NOCTTY };
        let flags = flags | OFlags::CLOEXEC | careful;
        let strict = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        match self.openat2(path, flags, Mode::empty(), strict) {
            Err(Errno::LOOP) => {}
            Err(Errno::NOSYS) => return self.open_stepwise(path, flags),
            other => return other,
        }
        // A link is on the way. As the last component it is followed inside the root; before that it is not.
        if let Some(slash) = path.as_bytes().iter().rposition(|byte| *byte == b'/') {
            let parent = CString::new(&path.as_bytes()[..slash]).map_err(|_| Errno::INVAL)?;
            self.openat2(&parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), strict)?;
        }
        self.openat2(path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
    }

    fn openat2(&self, path: &CString, flags: OFlags, mode: Mode, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        for _ in 0..MAX_RACES {
            match rustix::fs::openat2(&self.fd, path, flags, mode, resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// For kernels and sandboxes without `openat2`: one component at a time, following no link at all.
    fn open_stepwise(&self, path: &CString, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut parts = path.as_bytes().split(|byte| *byte == b'/').peekable();
        let mut directory: Option<OwnedFd> = None;
        while let Some(part) = parts.next() {
            let at = directory.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            if parts.peek().is_none() {
                return rustix::fs::openat(at, part, flags | OFlags::NOFOLLOW, Mode::empty());
            }
            let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            directory = Some(rustix::fs::openat(at, part, step, Mode::empty())?);
        }
        Err(Errno::NOENT)
    }

    /// Opens a directory below the root, given as components joined by `/`; the root itself for the empty path.
    pub(super) fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if path.is_empty() {
            return rustix::fs::openat(&self.fd, ".", flags, Mode::empty());
        }
        let path = CString::new(path).map_err(|_| Errno::NOENT)?;
        let strict = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        match self.openat2(&path, flags, Mode::empty(), strict) {
            Err(Errno::NOSYS) => self.open_stepwise(&path, flags),
            other => other,
        }
    }

    /// Attributes of an entry of an open directory; `None` where it is no object.
    pub(super) fn entry_attributes(&self, directory: &OwnedFd, prefix: &[u8], name: &[u8]) -> Option<ObjectAttributes> {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return attributes_of(&stat);
        }
        let path = CString::new([prefix, name].concat()).ok()?;
        let fd = self.open_file(&path, OFlags::PATH).ok()?;
        attributes_of(&rustix::fs::fstat(&fd).ok()?)
    }
}

/// The path of a key below the root; `None` where no file can have that name.
pub(super) fn path_of(key: &ObjectKey) -> Option<CString> {
    let bytes = key.as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_PATH_BYTES {
        return None;
    }
    let fits = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && part.len() <= MAX_NAME_BYTES;
    let mut parts = bytes.split(|byte| *byte == b'/');
    let first = parts.next()?;
    if first == HIDDEN.as_bytes() || !fits(first) || !parts.all(fits) {
        return None;
    }
    CString::new(bytes).ok()
}

/// Attributes of a regular file. Its version changes whenever the kernel saw a change of content, name or mode.
pub(super) fn attributes_of(stat: &Stat) -> Option<ObjectAttributes> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let version = format!(
        "{:x}-{:x}-{:x}.{:x}-{:x}.{:x}-{:x}",
        stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec, stat.st_mtime, stat.st_mtime_nsec, stat.st_size
    );
    attributes_with(stat, u64::try_from(stat.st_size).ok()?, &version)
}

/// Attributes of a directory as other stores keep an empty one: an empty object whose key ends in `/`. What is in the
/// directory is not in the object: its version stays.
pub(super) fn marker_attributes(directory: &OwnedFd) -> Option<ObjectAttributes> {
    let stat = rustix::fs::fstat(directory).ok()?;
    attributes_with(&stat, 0, &format!("{:x}-{:x}", stat.st_dev, stat.st_ino))
}

fn attributes_with(stat: &Stat, size: u64, version: &str) -> Option<ObjectAttributes> {
    Some(ObjectAttributes {
        size,
        modified_ms: stat
            .st_mtime
            .saturating_mul(1000)
            .saturating_add(i64::try_from(stat.st_mtime_nsec).ok()? / 1_000_000),
        version: Version::from(version),
    })
}

/// The error of a failed call by what the caller can do.
pub(super) fn error_of(action: &str, errno: Errno) -> Error {
    let say = |kind, reason: &str| Error::new(kind, action, reason);
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG | Errno::NXIO => {
            crate::check::no_such_object(action)
        }
        Errno::ACCESS | Errno::PERM => say(ErrorKind::PermissionDenied, "the file system denies it to the node's user")
            .advise("give the user that runs the node access to the directory"),
        Errno::MFILE | Errno::NFILE => say(ErrorKind::ResourceLimit, "no file descriptor is left")
            .advise("raise the limit of open files (ulimit -n)"),
        Errno::NOSPC | Errno::DQUOT => say(ErrorKind::NoSpace, "the file system is full"),
        Errno::ROFS => say(ErrorKind::ReadOnly, "the file system is read-only"),
        Errno::IO | Errno::STALE | Errno::TIMEDOUT | Errno::AGAIN => {
            say(ErrorKind::Unavailable, "the file system fails").fact("errno", errno)
        }
        _ => say(ErrorKind::Disk, "the file system refuses").fact("errno", errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_that_has_a_path_never_leads_out_of_the_root(key in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), Just(0u8), any::<u8>()], 0..24)) {
            if let Some(path) = path_of(&ObjectKey::new(key.clone())) {
                prop_assert_eq!(path.as_bytes(), &key[..]);
                let path = Path::new(std::str::from_utf8(&key).unwrap_or("x"));
                prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }
    }

    #[test]
    fn names_that_no_file_can_have_are_no_paths() {
        for bad in ["", "/a", "a/", "a//b", ".", "a/../b", "a/.", ".penstock/x", "a\0b"] {
            assert_eq!(path_of(&ObjectKey::from(bad)), None, "{bad:?}");
        }
        assert!(path_of(&ObjectKey::new(vec![0xff, b'/', 0xfe])).is_some());
        assert!(path_of(&ObjectKey::from(".penstock2/x")).is_some());
        assert_eq!(path_of(&ObjectKey::from("a".repeat(256).as_str())), None);
    }
}
