//! The calls of [`Disk`] as the machine carries them out.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use penstock_types::{Disk, FileFacts, OpenMode, Space};
use rustix::fs::{CWD, Dir, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::process::Resource;

/// The machine itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            other => Ok(other?),
        }
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OwnedFd> {
        let (flags, bits) = match mode {
            OpenMode::Read => (OFlags::RDONLY, 0),
            OpenMode::Write => (OFlags::RDWR, 0),
            OpenMode::Create(bits) => (OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, bits),
            OpenMode::WriteOrCreate => (OFlags::RDWR | OFlags::CREATE, 0o600),
        };
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(bits))?)
    }

    fn read_at(&self, file: BorrowedFd<'_>, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *out, offset))?)
    }

    fn write_at(&self, file: BorrowedFd<'_>, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::pwritev(file, parts, offset))?)
    }

    fn set_size(&self, file: BorrowedFd<'_>, size: u64) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::ftruncate(file, size))?)
    }

    fn sync_data(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::fdatasync(file))?)
    }

    #[allow(clippy::unnecessary_cast, reason = "the width of these fields differs between architectures")]
    fn facts(&self, file: BorrowedFd<'_>) -> io::Result<FileFacts> {
        /// `st_blocks` counts in this unit whatever the file system's block size.
        const STAT_BLOCK_BYTES: u64 = 512;
        let stat = rustix::fs::fstat(file)?;
        Ok(FileFacts {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            inode: stat.st_ino as u64,
            allocated: u64::try_from(stat.st_blocks).unwrap_or(0) * STAT_BLOCK_BYTES,
        })
    }

    fn set_permissions(&self, path: &Path, bits: u32) -> io::Result<()> {
        Ok(rustix::fs::chmod(path, Mode::from_raw_mode(bits))?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::unlink(path)?)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::rmdir(path)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::rename(from, to)?)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::link(from, to)?)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let directory = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rustix::io::retry_on_intr(|| rustix::fs::fsync(&directory))?)
    }

    fn allocate(&self, file: BorrowedFd<'_>, size: u64) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size))?)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        use std::os::unix::ffi::OsStringExt;
        let directory = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::new(directory)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let facts = rustix::fs::statvfs(path)?;
        Ok(Space {
            total: facts.f_blocks.saturating_mul(facts.f_frsize),
            available: facts.f_bavail.saturating_mul(facts.f_frsize),
        })
    }

    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "the type of a magic differs between targets")]
    fn filesystem(&self, path: &Path) -> io::Result<u64> {
        /// Magics are 32 bits; some targets sign-extend them.
        const MAGIC_BITS: u64 = 0xffff_ffff;
        Ok(rustix::fs::statfs(path)?.f_type as u64 & MAGIC_BITS)
    }

    fn try_lock(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn is_written(&self, file: BorrowedFd<'_>) -> bool {
        let lease = |kind: i32| {
            // SAFETY: the call takes numbers alone, and the descriptor is open as long as `file` is there.
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }
        };
        // Who only reads is given it, as long as nobody writes.
        let is_refused = lease(libc::F_RDLCK) != 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock;
        lease(libc::F_UNLCK);
        is_refused
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
    }

    fn descriptor_limit(&self) -> u64 {
        rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
    }
}
