//! The allocator of the process that hosts a node.

/// What is as large as this is taken from the system and given back to it. Each thread that speaks to a kernel has a
/// buffer of 16 MiB and one page, of which it touches two pages.
#[cfg(target_env = "gnu")]
const APART_BYTES: libc::c_int = 16 * 1024 * 1024;
/// What is free in smaller pieces is given back from here on.
#[cfg(target_env = "gnu")]
const FREE_BYTES: libc::c_int = 32 * 1024 * 1024;

/// What is free in between and below that is left to the next who needs it.
#[cfg(target_env = "gnu")]
const FREE_BYTES_KEPT: usize = 64 * 1024 * 1024;

/// Keeps glibc from learning that large buffers come and go: once one of them was freed it takes the next ones from
/// heaps that it keeps, and clears them, so that a buffer of which nothing is used costs all of its memory for good.
/// Other allocators need no telling.
pub fn give_large_buffers_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call keeps a number, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, APART_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, FREE_BYTES);
    }
}

/// Gives free memory back to the system where there is much of it. Bytes of sources come in pieces that many threads
/// take and others free, each in a heap of its own, and glibc gives only the end of a heap back by itself.
///
/// Cost: microseconds; with much to give back, about a millisecond for 10 MiB.
pub fn give_free_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: both calls look at the allocator's own state, under its own locks.
    unsafe {
        if libc::mallinfo2().fordblks > FREE_BYTES_KEPT {
            libc::malloc_trim(FREE_BYTES_KEPT / 4);
        }
    }
}
