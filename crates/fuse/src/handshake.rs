//! The first words with a kernel: what both sides can, and whether it may read lent files by itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use fuser::{BackingId, InitFlags, KernelConfig};
use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl, opcode};

/// Reads and readahead that the kernel may have under way at once; its own default of 12 is made for one slow disk.
const BACKGROUND_REQUESTS_MAX: u16 = 512;
/// The kernel writes so much in one request, and learns by it how much it may ask for in one read: 1 MiB is its limit.
const REQUEST_BYTES_MAX: u32 = 1024 * 1024;
/// Lent files lie on a file system that is no overlay, so that an overlay can still be laid over the mount.
const STACK_DEPTH: u32 = 1;
/// `FUSE_DEV_IOC_BACKING_CLOSE`, from `linux/fuse.h`.
const BACKING_CLOSE: rustix::ioctl::Opcode = opcode::write::<u32>(229, 2);

/// What a kernel offers, of what a mount can do without.
#[derive(Clone, Copy, Default, Debug)]
pub struct Offered {
    /// It reads lent files by itself.
    pub lends: bool,
    /// A file whose pages are not kept can be mapped shared all the same.
    pub maps_direct: bool,
}

/// Asks for what makes a mount quick, as far as the kernel offers it. Never for writing from the kernel's pages later:
/// what `write` said would not be here when the file is closed.
pub fn configure(config: &mut KernelConfig) -> Offered {
    for wanted in [
        InitFlags::FUSE_ASYNC_READ,
        InitFlags::FUSE_ASYNC_DIO,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_MAX_PAGES,
        // An open that empties the file is one request, which cannot be half done.
        InitFlags::FUSE_ATOMIC_O_TRUNC,
        // No file has rights that a write takes away. Without it, the kernel asks before every write.
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    ] {
        // An older kernel lacks some: the mount works without each of them.
        let _ = config.add_capabilities(wanted);
    }
    let _ = config.set_max_background(BACKGROUND_REQUESTS_MAX);
    let _ = config.set_max_write(REQUEST_BYTES_MAX);
    Offered {
        lends: config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok(),
        // As readers of weights map them.
        maps_direct: config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok(),
    }
}

/// Tries to lend `file` and takes it back at once; why the kernel does not take it, in words for `mounts`.
pub fn probe(device: BorrowedFd<'_>, file: impl AsFd) -> Result<(), String> {
    let id = BackingId::create_raw(device, file).map_err(|error| refusal(&error))?;
    // SAFETY: the call reads one u32 and keeps nothing of it; `id` was made for this device and nobody else has it.
    unsafe { ioctl(device, Setter::<BACKING_CLOSE, u32>::new(id)) }.map_err(|error| refusal(&error.into()))
}

fn refusal(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::PERM) => "the node lacks CAP_SYS_ADMIN, which reading of lent files by the kernel needs".into(),
        Some(Errno::LOOP) => "the cache lies on a stacked file system such as overlayfs".into(),
        Some(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP) => "the kernel cannot read lent files by itself".into(),
        _ => format!("the kernel takes no lent file: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_is_missing() {
        let said = |errno: Errno| refusal(&errno.into());
        assert!(said(Errno::PERM).contains("CAP_SYS_ADMIN"));
        assert!(said(Errno::LOOP).contains("overlayfs"));
        assert!(said(Errno::NOTTY).contains("kernel"));
        assert!(said(Errno::BADF).contains("takes no lent file"));
    }
}
