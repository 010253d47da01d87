//! The local disk as a parameter: every call to a file system, so that each can be made to fail.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Read only; it must exist.
    Read,
    /// Read and write; it must exist.
    Write,
    /// Read and write; made with these permission bits, and it must not exist.
    Create(u32),
    /// Read and write; made, private to the user, when it is missing.
    WriteOrCreate,
}

/// What `fstat` tells of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileFacts {
    /// Length, bytes.
    pub size: u64,
    /// Inode number.
    pub inode: u64,
    /// Bytes that are allocated for it.
    pub allocated: u64,
}

/// What `statvfs` tells of a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Size, bytes.
    pub total: u64,
    /// Bytes that this user may still take.
    pub available: u64,
}

/// The machine as cache and stage see it: file calls, limits, boot. Calls behave as the system calls of their name:
/// reads and writes may be short, errors are those of `errno`.
pub trait Disk: Send + Sync + 'static {
    /// Makes a directory, mode 0700; one that is there is a success.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Opens a file; descriptors are closed on exec.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OwnedFd>;
    /// `pread`.
    fn read_at(&self, file: BorrowedFd<'_>, offset: u64, out: &mut [u8]) -> io::Result<usize>;
    /// `pwritev`.
    fn write_at(&self, file: BorrowedFd<'_>, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize>;
    /// `ftruncate`.
    fn set_size(&self, file: BorrowedFd<'_>, size: u64) -> io::Result<()>;
    /// `fdatasync`.
    fn sync_data(&self, file: BorrowedFd<'_>) -> io::Result<()>;
    /// `fstat`.
    fn facts(&self, file: BorrowedFd<'_>) -> io::Result<FileFacts>;
    /// `chmod`.
    fn set_permissions(&self, path: &Path, bits: u32) -> io::Result<()>;
    /// `unlink`.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// `rmdir`.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
    /// `rename`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// `link`: another name of the same file, on the same file system.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// `fsync` of a directory: the names in it are kept from then on.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// `fallocate` from the start up to `size`: the file grows, and no write below fails for lack of space. Not every
    /// file system can.
    fn allocate(&self, file: BorrowedFd<'_>, size: u64) -> io::Result<()>;
    /// Names in a directory, without `.` and `..`, in any order.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;
    /// `statvfs`.
    fn space(&self, path: &Path) -> io::Result<Space>;
    /// The magic number of the file system, by `statfs`.
    fn filesystem(&self, path: &Path) -> io::Result<u64>;
    /// Takes an exclusive `flock` without waiting; `false` when somebody else holds it.
    fn try_lock(&self, file: BorrowedFd<'_>) -> io::Result<bool>;
    /// Whether anybody has a file open for writing that is open for reading here; `false` where that cannot be told.
    fn is_written(&self, file: BorrowedFd<'_>) -> bool;
    /// A value that changes with each boot of the machine.
    fn boot_id(&self) -> io::Result<String>;
    /// Descriptors that this process may hold.
    fn descriptor_limit(&self) -> u64;
}
