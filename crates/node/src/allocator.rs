//! The allocator of the process that hosts a node.

/// What is as large as this is taken from the system and given back to it. Each thread that speaks to a kernel has a
/// buffer of 16 MiB and one page, of which it touches two pages.
#[cfg(target_env = "gnu")]
const APART_BYTES: libc::c_int = 16 * 1024 * 1024;
/// What is free in smaller pieces is given back from here on.
#[cfg(target_env = "gnu")]
const FREE_BYTES: libc::c_int = 32 * 1024 * 1024;

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
