//! Shared memory of two processes, mapped.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A mapping of a file or memory file; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is plain memory; who may access it when is up to its users.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared references only give out the address or read-only slices of unchanging bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes from `offset` (a multiple of the page size) read-only.
    pub fn read_only(file: BorrowedFd<'_>, offset: u64, len: usize) -> std::io::Result<Self> {
        Self::map(file, offset, len, ProtFlags::READ, MapFlags::SHARED)
    }

    /// Maps the first `len` bytes read-only and fills the page tables now, so that later accesses do not fault.
    pub fn populated(file: BorrowedFd<'_>, len: usize) -> std::io::Result<Self> {
        Self::map(file, 0, len, ProtFlags::READ, MapFlags::SHARED | MapFlags::POPULATE)
    }

    /// Maps the first `len` bytes for reading and writing.
    pub fn writable(file: BorrowedFd<'_>, len: usize) -> std::io::Result<Self> {
        Self::map(file, 0, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)
    }

    fn map(file: BorrowedFd<'_>, offset: u64, len: usize, prot: ProtFlags, flags: MapFlags) -> std::io::Result<Self> {
        // SAFETY: a null hint lets the kernel choose a free place, so no existing mapping is replaced.
        let start = unsafe { mmap(std::ptr::null_mut(), len, prot, flags, file, offset)? };
        let start = NonNull::new(start.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Address of the first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing; never, the kernel refuses it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let start = self.start.as_ptr().cast::<c_void>();
        // SAFETY: the range was mapped by `map`, and nothing that borrows it outlives this value.
        let unmapped = unsafe { munmap(start, self.len) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours can be unmapped");
    }
}
