//! A run's folder: `<outputs>/<experiment>/<UTC time>-<short hash of the settings>/`.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::files::{remove_partial, sha256_hex, sha256_of_file, write_atomically};
use crate::manifest::{MANIFEST_FILE, Manifest, Status};
use crate::report::REPORT_FILE;
use crate::{FileRecord, RecordError, Result};

pub(crate) const SETTINGS_FILE: &str = "settings.toml";
const TRIALS_FOLDER: &str = "trials";
const LOCK_FILE: &str = ".lock";
const LATEST: &str = "latest";

/// The folder in which one run of one experiment keeps all it produces.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
}

/// Keeps other processes out of a run's folder until it is dropped (or the process ends, however it ends).
#[derive(Debug)]
pub struct LockGuard {
    _file: File,
}

impl RunFolder {
    /// Creates `<outputs>/<experiment>/<UTC time>-<hash>/` with `trials/` and `settings.toml` in it.
    ///
    /// The hash is the first 8 hexadecimal digits of the SHA-256 of `settings_toml`. A second run in the same
    /// second gets `-2` appended, a third `-3`: no run ever overwrites another.
    ///
    /// # Errors
    /// If the name cannot name a folder, or the folder cannot be written to — found out here, before training.
    pub fn create(outputs: &Path, experiment: &str, settings_toml: &str) -> Result<Self> {
        let all = experiment_folder(outputs, experiment)?;
        fs::create_dir_all(&all).map_err(|source| RecordError::write(&all, source))?;
        let stem = format!("{}-{}", utc_stamp(OffsetDateTime::now_utc()), short_hash(settings_toml));
        let mut count = 1_u32;
        let path = loop {
            let name = if count == 1 { stem.clone() } else { format!("{stem}-{count}") };
            let path = all.join(name);
            match fs::create_dir(&path) {
                Ok(()) => break path,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => count += 1,
                Err(error) => return Err(RecordError::write(&path, error)),
            }
        };
        let trials = path.join(TRIALS_FOLDER);
        fs::create_dir(&trials).map_err(|source| RecordError::write(&trials, source))?;
        write_atomically(&path.join(SETTINGS_FILE), settings_toml.as_bytes())?;
        Ok(Self { path })
    }

    /// The newest run of `experiment` with exactly these settings that its manifest calls unfinished, if any.
    ///
    /// A folder without a readable manifest is passed over: nothing is known of it.
    ///
    /// # Errors
    /// If the name cannot name a folder, or the experiment's folder exists but cannot be listed.
    pub fn resume_latest(outputs: &Path, experiment: &str, settings_toml: &str) -> Result<Option<Self>> {
        Self::newest(outputs, experiment, settings_toml, |status| status != Status::Finished)
    }

    /// The newest run of `experiment` with exactly these settings that its manifest calls finished, if any.
    ///
    /// # Errors
    /// As [`RunFolder::resume_latest`].
    pub fn finished_latest(outputs: &Path, experiment: &str, settings_toml: &str) -> Result<Option<Self>> {
        Self::newest(outputs, experiment, settings_toml, |status| status == Status::Finished)
    }

    fn newest(
        outputs: &Path,
        experiment: &str,
        settings_toml: &str,
        fits: impl Fn(Status) -> bool,
    ) -> Result<Option<Self>> {
        let all = experiment_folder(outputs, experiment)?;
        let entries = match fs::read_dir(&all) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RecordError::read(&all, error)),
        };
        let hash = short_hash(settings_toml);
        let mut candidates = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| RecordError::read(&all, source))?;
            if let Some(key) = entry.file_name().to_str().and_then(|name| order_of(name, &hash)) {
                candidates.push((key, entry.path()));
            }
        }
        candidates.sort();
        Ok(candidates.into_iter().rev().map(|(_, path)| path).find_map(|path| {
            let same = fs::read_to_string(path.join(SETTINGS_FILE)).is_ok_and(|text| text == settings_toml);
            let status = || Manifest::read(&path.join(MANIFEST_FILE)).map(|manifest| manifest.status);
            (same && status().is_ok_and(&fits)).then_some(Self { path })
        }))
    }

    /// Opens a run's folder that exists.
    ///
    /// # Errors
    /// [`RecordError::Read`] if there is no such folder, or if it holds no `settings.toml` and so is no run.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let settings = path.join(SETTINGS_FILE);
        fs::metadata(&settings).map_err(|source| RecordError::read(&settings, source))?;
        let trials = path.join(TRIALS_FOLDER);
        fs::create_dir_all(&trials).map_err(|source| RecordError::write(&trials, source))?;
        Ok(Self { path })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the file `name` in this folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where a finished trial is kept: `trials/<first 16 digits of key>.<extension>`.
    ///
    /// `key` is [`sha256_hex`] of a description of everything that determines the trial's result.
    pub fn trial_path(&self, key: &str, extension: &str) -> PathBuf {
        let short: String = key.chars().take(16).collect();
        self.path.join(TRIALS_FOLDER).join(format!("{short}.{extension}"))
    }

    /// Claims the folder for this process, and clears away what a killed one left half-written.
    ///
    /// # Errors
    /// [`RecordError::Locked`] if another process holds it, [`RecordError::Lock`] if the file system has no locks.
    pub fn lock(&self) -> Result<LockGuard> {
        let path = self.file(LOCK_FILE);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| RecordError::write(&path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RecordError::Locked { path: self.path.clone() });
            }
            Err(TryLockError::Error(source)) => return Err(RecordError::Lock { path, source }),
        }
        remove_partial(&self.path);
        remove_partial(&self.path.join(TRIALS_FOLDER));
        remove_partial(&self.path.join("weights"));
        Ok(LockGuard { _file: file })
    }

    /// Points `<outputs>/<experiment>/latest` at this run, in one step.
    ///
    /// # Errors
    /// [`RecordError::Latest`] where symbolic links cannot be made or `latest` is a real file or folder. The run is
    /// complete all the same, so a caller may print it as a warning.
    pub fn point_latest(&self) -> Result<()> {
        let Some((all, name)) = self.path.parent().zip(self.path.file_name()) else {
            return Err(RecordError::Latest {
                path: self.path.join(LATEST),
                reason: "the run's folder has no name".into(),
            });
        };
        let link = all.join(LATEST);
        let fail = |reason: String| RecordError::Latest { path: link.clone(), reason };
        match fs::symlink_metadata(&link) {
            Ok(found) if !found.is_symlink() => {
                return Err(fail("a file or folder of that name is in the way; move it away".into()));
            }
            _ => {}
        }
        let temporary = all.join(format!(".{LATEST}-{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        symlink(Path::new(name), &temporary).map_err(|error| fail(error.to_string()))?;
        fs::rename(&temporary, &link).map_err(|error| {
            let _ = fs::remove_file(&temporary);
            fail(error.to_string())
        })
    }

    /// Name, size and checksum of every file of the run, sorted by name; the manifest and hidden files are left out, as
    /// are the trials, and the page, which is made from the manifest and may be made anew.
    ///
    /// # Errors
    /// [`RecordError::Read`] if a file cannot be read.
    pub fn file_records(&self) -> Result<Vec<FileRecord>> {
        let mut records = Vec::new();
        records_below(&self.path, "", &mut records)?;
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }
}

/// Adds the files of a folder and of those in it, by their path from the run's folder.
fn records_below(folder: &Path, prefix: &str, records: &mut Vec<FileRecord>) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|source| RecordError::read(folder, source))?;
    for entry in entries {
        let path = entry.map_err(|source| RecordError::read(folder, source))?.path();
        let Some(file) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let name = format!("{prefix}{file}");
        if file.starts_with('.') || [MANIFEST_FILE, REPORT_FILE, TRIALS_FOLDER].contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            records_below(&path, &format!("{name}/"), records)?;
            continue;
        }
        let (bytes, sha256) = sha256_of_file(&path)?;
        records.push(FileRecord { name, bytes, sha256, what: None });
    }
    Ok(())
}

/// The present time as RFC 3339 in UTC, to the second: `2026-11-24T18:37:12Z`.
pub fn now_rfc3339() -> String {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_else(|_| utc_stamp(now))
}

fn experiment_folder(outputs: &Path, experiment: &str) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if experiment.is_empty() || !experiment.chars().all(plain) {
        return Err(RecordError::ExperimentName { name: experiment.to_owned() });
    }
    Ok(outputs.join(experiment))
}

fn utc_stamp(t: OffsetDateTime) -> String {
    // Formatting such a fixed pattern into a string cannot fail; the Unix time is a name as good.
    t.format(format_description!("[year][month][day]T[hour][minute][second]Z"))
        .unwrap_or_else(|_| t.unix_timestamp().to_string())
}

fn short_hash(settings_toml: &str) -> String {
    let mut hash = sha256_hex(settings_toml.as_bytes());
    hash.truncate(8);
    hash
}

/// What runs are ordered by, oldest first, if `folder` is the name of a run with these settings.
fn order_of(folder: &str, hash: &str) -> Option<(String, u32)> {
    let (stamp, rest) = folder.split_once('-')?;
    let rest = rest.strip_prefix(hash)?;
    let count = match rest.strip_prefix('-') {
        Some(count) => count.parse().ok()?,
        None if rest.is_empty() => 1,
        None => return None,
    };
    Some((stamp.to_owned(), count))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: &str = "seeds = 3\n";

    fn save(run: &RunFolder, status: Status) {
        let mut manifest = Manifest::new("lines", "quick", serde_json::json!({"seeds": 3}));
        manifest.status = status;
        manifest.write(&run.file(MANIFEST_FILE)).unwrap();
    }

    #[test]
    fn a_folder_is_named_by_time_and_settings_and_never_used_twice() {
        let out = tempfile::tempdir().unwrap();
        let runs: Vec<RunFolder> =
            (0..3).map(|_| RunFolder::create(out.path(), "lines", SETTINGS).unwrap()).collect();
        let name = runs[0].path().file_name().unwrap().to_str().unwrap();
        let (stamp, hash) = name.split_once('-').unwrap();
        assert!(stamp.len() == 16 && stamp.ends_with('Z') && stamp.as_bytes()[8] == b'T', "{name}");
        assert_eq!(hash, &sha256_hex(SETTINGS.as_bytes())[..8]);
        assert!(runs[1].path() != runs[0].path() && runs[2].path() != runs[1].path());
        assert_eq!(fs::read_to_string(runs[2].file("settings.toml")).unwrap(), SETTINGS);
        assert!(runs[2].path().join("trials").is_dir());
        assert!(
            runs[0]
                .trial_path(&sha256_hex(b"t"), "safetensors")
                .ends_with("trials/e3b98a4da31a127d.safetensors")
        );
    }

    #[test]
    fn a_name_that_leaves_the_folder_is_refused() {
        let out = tempfile::tempdir().unwrap();
        for name in ["", "..", "a/b", "a b"] {
            assert!(matches!(
                RunFolder::create(out.path(), name, SETTINGS),
                Err(RecordError::ExperimentName { .. })
            ));
        }
    }

    #[test]
    fn names_are_ordered_by_time_then_count() {
        let order = |name| order_of(name, "00112233");
        assert!(order("20260101T000000Z-00112233-2") < order("20260101T000000Z-00112233-10"));
        assert!(order("20260101T000000Z-00112233-10") < order("20260101T000001Z-00112233"));
        assert_eq!(order("20260101T000000Z-99112233"), None);
        assert_eq!(order("20260101T000000Z-00112233x"), None);
        assert_eq!(order("latest"), None);
    }

    #[test]
    fn only_the_newest_unfinished_run_of_the_same_settings_is_resumed() {
        let out = tempfile::tempdir().unwrap();
        let resume =
            |settings| RunFolder::resume_latest(out.path(), "lines", settings).unwrap().map(|run| run.path);
        assert_eq!(resume(SETTINGS), None);
        let first = RunFolder::create(out.path(), "lines", SETTINGS).unwrap();
        assert_eq!(resume(SETTINGS), None, "without a manifest nothing is known");
        save(&first, Status::Interrupted);
        let second = RunFolder::create(out.path(), "lines", SETTINGS).unwrap();
        save(&second, Status::Running);
        assert_eq!(resume(SETTINGS).as_deref(), Some(second.path()));
        save(&second, Status::Finished);
        assert_eq!(resume(SETTINGS).as_deref(), Some(first.path()));
        let finished =
            |settings| RunFolder::finished_latest(out.path(), "lines", settings).unwrap().map(|run| run.path);
        assert_eq!(finished(SETTINGS).as_deref(), Some(second.path()));
        assert_eq!(finished("seeds = 4\n"), None);
        save(&first, Status::Finished);
        assert_eq!(resume(SETTINGS), None);
        save(&first, Status::Failed);
        assert_eq!(resume("seeds = 4\n"), None);
        assert_eq!(resume(SETTINGS).as_deref(), Some(first.path()));
    }

    #[test]
    fn opening_something_else_is_an_error() {
        let out = tempfile::tempdir().unwrap();
        let error = RunFolder::open(out.path()).unwrap_err().to_string();
        assert!(error.contains("settings.toml"), "{error}");
        let run = RunFolder::create(out.path(), "lines", SETTINGS).unwrap();
        assert_eq!(RunFolder::open(run.path()).unwrap().path(), run.path());
    }

    #[test]
    fn one_holder_at_a_time_and_partial_files_are_cleared() {
        let out = tempfile::tempdir().unwrap();
        let run = RunFolder::create(out.path(), "lines", SETTINGS).unwrap();
        let partial = run.file("trials/.t.npz.x1.part");
        fs::write(&partial, b"half").unwrap();
        let guard = run.lock().unwrap();
        assert!(!partial.exists());
        let error = run.lock().unwrap_err();
        assert!(matches!(error, RecordError::Locked { .. }), "{error}");
        drop(guard);
        run.lock().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn latest_follows_the_newest_and_spares_real_folders() {
        let out = tempfile::tempdir().unwrap();
        let first = RunFolder::create(out.path(), "lines", SETTINGS).unwrap();
        let second = RunFolder::create(out.path(), "lines", SETTINGS).unwrap();
        let link = out.path().join("lines/latest");
        first.point_latest().unwrap();
        second.point_latest().unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(second.path().file_name().unwrap()));
        assert!(link.join("settings.toml").is_file());
        fs::remove_file(&link).unwrap();
        fs::create_dir(&link).unwrap();
        assert!(matches!(first.point_latest(), Err(RecordError::Latest { .. })));
        assert!(link.is_dir());
    }

    #[test]
    fn files_are_listed_with_size_and_checksum() {
        let out = tempfile::tempdir().unwrap();
        let run = RunFolder::create(out.path(), "lines", SETTINGS).unwrap();
        save(&run, Status::Running);
        write_atomically(&run.file("a.csv"), b"").unwrap();
        write_atomically(&run.file(REPORT_FILE), b"").unwrap();
        let _guard = run.lock().unwrap();
        let records = run.file_records().unwrap();
        assert_eq!(records.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["a.csv", "settings.toml"]);
        assert_eq!((records[0].bytes, records[1].bytes), (0, 10));
        assert_eq!(records[0].sha256, sha256_hex(b""));
    }

    #[test]
    fn the_time_is_rfc_3339_in_utc() {
        let now = now_rfc3339();
        assert!(now.len() == 20 && now.ends_with('Z'), "{now}");
    }
}
