//! What the operating system knows of this process.

/// Forgets the largest resident memory so far, so that a process that makes several runs can tell each one's own. `false` where
/// the system cannot: then the peak of the whole process stays.
pub fn forget_peak_memory() -> bool {
    // Linux: see proc(5), clear_refs.
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Largest resident memory of this process since [`forget_peak_memory`], or since it began, in MiB; `None` where the system does
/// not tell.
pub fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn a_peak_is_forgotten() {
        let block = vec![1_u8; 256 << 20];
        let before = super::peak_memory_mib().unwrap();
        drop(std::hint::black_box(block));
        // Tests run side by side, but none of this crate's holds so much.
        assert!(!super::forget_peak_memory() || super::peak_memory_mib().unwrap() < before - 128.);
    }

    #[test]
    fn this_process_uses_some_memory() {
        assert!(super::peak_memory_mib().is_some_and(|mib| mib > 0.1));
    }
}
