//! How a file comes into being: complete, or not at all.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{RecordError, Result};

/// Ending of files that are still being written; see [`remove_partial`].
const PARTIAL_SUFFIX: &str = ".part";

/// Writes `bytes` to `path` so that a reader sees the old file or the whole new one, never a part.
///
/// The bytes go to a temporary name in the same folder, are flushed to the disk and renamed over `path`. The
/// temporary file is removed if any of this fails.
///
/// # Errors
/// [`RecordError::NoSpace`], [`RecordError::NotWritable`] or [`RecordError::Write`], each with `path`.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |source| RecordError::write(path, source);
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let (temporary, mut file) = create_partial(folder, &name).map_err(fail)?;
    let written =
        file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(fail(error));
    }
    // The rename itself is durable only once the folder is; not every file system can do this.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// A new hidden file that no other process or thread has, with the permissions of any new file.
fn create_partial(folder: &Path, name: &str) -> io::Result<(PathBuf, File)> {
    let process = std::process::id();
    let mut count = 0_u64;
    loop {
        let path = folder.join(format!(".{name}.{process}-{count}{PARTIAL_SUFFIX}"));
        match File::options().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => count += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Removes what a killed process left half-written in `folder`. Only for the holder of the run's lock.
pub(crate) fn remove_partial(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(PARTIAL_SUFFIX) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// SHA-256 of `bytes`, as 64 lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Size in bytes and SHA-256, hexadecimal, of a file, which is never held in memory as a whole.
///
/// # Errors
/// [`RecordError::Read`].
pub fn sha256_of_file(path: &Path) -> Result<(u64, String)> {
    let mut hash = Sha256::new();
    let size = File::open(path).and_then(|mut file| io::copy(&mut file, &mut hash));
    let size = size.map_err(|source| RecordError::read(path, source))?;
    Ok((size, hex(&hash.finalize())))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn replaces_the_whole_file_and_leaves_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        write_atomically(&path, b"a long first version").unwrap();
        write_atomically(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(names(folder.path()), ["a.csv"]);
    }

    #[test]
    fn a_failed_rename_removes_the_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write_atomically(&path, b"x").unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(names(folder.path()), ["taken"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomically(&folder.path().join("none/a.csv"), b"x").unwrap_err().to_string();
        assert!(error.contains("none/a.csv") && error.contains("No such file"), "{error}");
        assert!(!error.contains(".part"), "{error}");
    }

    #[test]
    fn threads_that_write_the_same_file_leave_one_of_their_versions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        std::thread::scope(|scope| {
            for version in 0..8_u8 {
                let path = &path;
                scope.spawn(move || write_atomically(path, &vec![version; 10_000]).unwrap());
            }
        });
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() == 10_000 && bytes.iter().all(|b| *b == bytes[0]));
        assert_eq!(names(folder.path()), ["a.csv"]);
    }

    #[cfg(unix)]
    #[test]
    fn an_unwritable_folder_gets_advice() {
        // Root passes every permission bit, so the kernel's own read-only folder stands in for a user's.
        let Err(error) = write_atomically(Path::new("/proc/a.csv"), b"x") else {
            panic!("/proc took a file");
        };
        assert!(error.to_string().contains("/proc/a.csv"), "{error}");
        let denied = RecordError::write(Path::new("out/a.csv"), std::io::Error::from_raw_os_error(13));
        assert!(denied.to_string().contains("choose another --out"), "{denied}");
        let read_only = RecordError::write(Path::new("out/a.csv"), std::io::Error::from_raw_os_error(30));
        assert!(read_only.to_string().contains("choose another --out"), "{read_only}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_gets_advice_and_keeps_the_old_file() {
        struct Mounted(std::path::PathBuf);
        impl Drop for Mounted {
            fn drop(&mut self) {
                let _ = std::process::Command::new("umount").arg(&self.0).status();
            }
        }
        let full = RecordError::write(Path::new("out/a.csv"), std::io::Error::from_raw_os_error(28));
        assert_eq!(
            full.to_string(),
            "cannot write out/a.csv: no space left; free some or choose another --out"
        );

        let folder = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(folder.path())
            .stderr(std::process::Stdio::null())
            .status();
        if !mount.is_ok_and(|status| status.success()) {
            eprintln!("skipped: mounting a small file system needs root");
            return;
        }
        let mounted = Mounted(folder.path().to_path_buf());
        let path = mounted.0.join("a.csv");
        write_atomically(&path, b"old").unwrap();
        let error = write_atomically(&path, &vec![0; 1 << 20]).unwrap_err();
        assert!(matches!(error, RecordError::NoSpace { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(&mounted.0), ["a.csv"]);
    }

    #[test]
    fn the_empty_string_has_its_known_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, b"abc").unwrap();
        assert_eq!(sha256_of_file(&path).unwrap(), (3, sha256_hex(b"abc")));
        assert!(matches!(sha256_of_file(folder.path()), Err(RecordError::Read { .. })));
        assert_eq!(sha256_hex(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
