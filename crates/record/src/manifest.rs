//! `manifest.json`: what was run, on what, with what result.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::git::GitState;
use crate::run::now_rfc3339;
use crate::{RecordError, Result, write_atomically};

/// The manifest's name in a run's folder.
pub const MANIFEST_FILE: &str = "manifest.json";

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// At work; or killed without a chance to say so.
    Running,
    /// All results are there.
    Finished,
    /// Stopped by a signal; can be resumed.
    Interrupted,
    /// Ended by an error; see [`Manifest::error`].
    Failed,
}

/// Everything needed to say where a run's numbers come from. An unknown value is `null`, never 0 or "".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The experiment's name.
    pub experiment: String,
    /// The question that the experiment answers, in one sentence.
    #[serde(default)]
    pub question: Option<String>,
    /// The preset the settings started from.
    pub preset: String,
    /// How far the run has come.
    pub status: Status,
    /// The error that ended the run.
    pub error: Option<String>,
    /// The command line, program first.
    pub command: Vec<String>,
    /// The settings as resolved.
    pub settings: serde_json::Value,
    /// The seeds of the trials.
    pub seeds: Vec<u64>,
    /// The data set that was really used.
    pub data_set: Option<DataSetRecord>,
    /// The device that was really used.
    pub device: DeviceRecord,
    /// Versions of `flatland`, `libtorch`, `tch`, `rustc`, `os`; of the `program`, the first 16 digits of its SHA-256.
    pub versions: BTreeMap<String, String>,
    /// The commit of the source.
    pub git_commit: Option<String>,
    /// Whether the source differed from that commit.
    pub git_dirty: Option<bool>,
    /// Start, RFC 3339 in UTC.
    pub started: String,
    /// End, RFC 3339 in UTC.
    pub ended: Option<String>,
    /// Time at work, in seconds.
    pub seconds: Option<f64>,
    /// Largest resident memory of the process since the run began, in MiB.
    pub peak_memory_mib: Option<f64>,
    /// Exit code of the process.
    pub exit_code: Option<i32>,
    /// The main numbers, as the run's output closes with them.
    #[serde(default)]
    pub numbers: Option<NumbersRecord>,
    /// The files of the run.
    pub files: Vec<FileRecord>,
    /// When the run was resumed, RFC 3339 in UTC.
    #[serde(default)]
    pub resumed: Vec<String>,
}

/// A data set, so that another person can tell whether theirs is the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSetRecord {
    /// Its name.
    pub name: String,
    /// Where it came from.
    pub origin: String,
    /// SHA-256 of each file.
    pub checksums: BTreeMap<String, String>,
    /// Number of training examples used.
    pub train: usize,
    /// Number of test examples used.
    pub test: usize,
    /// What was done to it: scaling, subsets, corruption.
    pub preparation: String,
}

/// A device as asked for and as found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// What `--device` said.
    pub requested: String,
    /// What was used.
    pub used: String,
    /// Its name, such as the processor's or the GPU's model.
    pub name: String,
    /// How it multiplies: `f32`, or `tf32`.
    #[serde(default)]
    pub precision: String,
}

/// A small table for people: numbers as they are to be read, with their units.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumbersRecord {
    /// The columns' names.
    pub header: Vec<String>,
    /// The rows, a cell for each column.
    pub rows: Vec<Vec<String>>,
}

/// One file of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Name in the run's folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// What it holds, in a few words.
    #[serde(default)]
    pub what: Option<String>,
}

impl Manifest {
    /// A manifest for a run that starts now: this process's command line, the source's commit, status "running".
    pub fn new(experiment: &str, preset: &str, settings: serde_json::Value) -> Self {
        let git = GitState::of_this_source();
        Self {
            experiment: experiment.to_owned(),
            question: None,
            preset: preset.to_owned(),
            status: Status::Running,
            error: None,
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            settings,
            seeds: Vec::new(),
            data_set: None,
            device: DeviceRecord::default(),
            versions: BTreeMap::new(),
            git_commit: git.commit,
            git_dirty: git.dirty,
            started: now_rfc3339(),
            ended: None,
            seconds: None,
            peak_memory_mib: None,
            exit_code: None,
            numbers: None,
            files: Vec::new(),
            resumed: Vec::new(),
        }
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// [`RecordError::Read`] or [`RecordError::Manifest`].
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| RecordError::read(path, source))?;
        serde_json::from_slice(&bytes)
            .map_err(|source| RecordError::Manifest { path: path.to_path_buf(), source })
    }

    /// Writes the manifest as indented JSON, in one step.
    ///
    /// # Errors
    /// As [`write_atomically`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|source| RecordError::Manifest { path: path.to_path_buf(), source })?;
        json.push(b'\n');
        write_atomically(path, &json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_unknown_is_null() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(MANIFEST_FILE);
        let mut manifest = Manifest::new("lines", "quick", serde_json::json!({"z": 1, "a": [0.1, null]}));
        manifest.seeds = vec![0, u64::MAX];
        manifest.data_set = Some(DataSetRecord {
            name: "digits".into(),
            origin: "embedded".into(),
            checksums: BTreeMap::from([("digits.csv".into(), "ab".into())]),
            train: 1437,
            test: 360,
            preparation: "scaled to [0, 1]".into(),
        });
        manifest.write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"status\": \"running\"") && text.contains("\"seconds\": null"), "{text}");
        assert!(text.find("\"z\"") < text.find("\"a\""), "settings keep their order");
    }

    #[test]
    fn a_manifest_from_before_there_were_questions_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(MANIFEST_FILE);
        let mut manifest = Manifest::new("lines", "quick", serde_json::json!({}));
        manifest.files = vec![FileRecord { name: "a.csv".into(), bytes: 2, sha256: "ab".into(), what: None }];
        let mut old = serde_json::to_value(&manifest).unwrap();
        for key in ["question", "numbers"] {
            old.as_object_mut().unwrap().remove(key).unwrap();
        }
        old["files"][0].as_object_mut().unwrap().remove("what").unwrap();
        fs::write(&path, serde_json::to_vec(&old).unwrap()).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
    }

    #[test]
    fn a_broken_manifest_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(MANIFEST_FILE);
        fs::write(&path, b"{").unwrap();
        let error = Manifest::read(&path).unwrap_err();
        assert!(matches!(error, RecordError::Manifest { .. }) && error.to_string().contains("manifest.json"));
    }
}
