//! glibc's allocator, told to keep large blocks.

/// Keeps freed tensor memory in the process instead of handing every large block back to the kernel.
///
/// By default glibc maps each block over 128 kB afresh, so that every tensor of every operation is paid for with page
/// faults: a factor of three on LeNet's evaluation at large chunks. Call once, first thing in `main`; without glibc it
/// does nothing. 32 MiB is the largest threshold that glibc takes; chunks of data are sized to stay below it.
pub fn keep_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator; it is called before other threads start.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 20);
    }
}
