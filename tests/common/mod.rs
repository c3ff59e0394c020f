//! What the tests of the binaries share: a folder for runs, and readers for what lies in a run's folder.
#![allow(dead_code)] // Each test uses some of it.

use assert_cmd::Command;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use tempfile::TempDir;

/// The folder for runs, which lives as long as this value.
pub struct Out {
    folder: TempDir,
    binary: &'static str,
}

impl Out {
    /// For runs of `binary`, a path.
    pub fn new(binary: &'static str) -> Self {
        // In the build folder, since what statics hold is never dropped.
        Self { folder: TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), binary }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of the experiment's runs: named like its binary.
    fn experiment(&self) -> PathBuf {
        self.path().join(Path::new(self.binary).file_stem().unwrap())
    }

    /// The experiment with these arguments, not yet started.
    pub fn command(&self, arguments: &[&[&str]]) -> Command {
        let mut command = Command::new(self.binary);
        command.args(arguments.concat()).arg("--out").arg(self.path());
        command
    }

    /// Runs it to its end, which must be a good one.
    pub fn run(&self, arguments: &[&[&str]]) -> PathBuf {
        self.command(arguments).assert().success().stderr("");
        self.newest()
    }

    /// Runs it in the background.
    pub fn start(&self, arguments: &[&[&str]]) -> Child {
        std::process::Command::new(self.binary)
            .args(arguments.concat())
            .arg("--out")
            .arg(self.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub fn newest(&self) -> PathBuf {
        self.experiment().join("latest").canonicalize().unwrap()
    }

    /// All runs' folders.
    pub fn runs(&self) -> Vec<PathBuf> {
        let all = files_in(&self.experiment());
        all.into_iter().filter(|path| !path.is_symlink()).collect()
    }
}

pub fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

pub fn manifest(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("manifest.json")).unwrap()).unwrap()
}

/// As if its process had been killed on the way: `--resume` goes on with it.
pub fn unfinish(run: &Path) {
    let mut record = manifest(run);
    record["status"] = "interrupted".into();
    fs::write(run.join("manifest.json"), serde_json::to_vec(&record).unwrap()).unwrap();
}

/// A CSV file's rows, each by column.
pub fn rows(run: &Path, file: &str) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(run.join(file)).unwrap();
    reader.deserialize().map(Result::unwrap).collect()
}

/// A safetensors file: its header with PyTorch's names, whose entries have no order, and its numbers.
pub fn parts(bytes: &[u8]) -> (Value, &[u8]) {
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), &bytes[8 + length..])
}

pub fn header(run: &Path, file: &str) -> String {
    fs::read_to_string(run.join(file)).unwrap().lines().next().unwrap().to_owned()
}

pub fn number(row: &BTreeMap<String, String>, column: &str) -> f64 {
    row[column].parse().unwrap_or_else(|_| panic!("{column}: {:?}", row[column]))
}

/// Byte for byte.
pub fn assert_same_files(left: &Path, right: &Path, names: &[&str]) {
    for name in names {
        let [left, right] = [left, right].map(|run| fs::read_to_string(run.join(name)).unwrap());
        assert!(left == right, "{name} differs:\n{left}\n{right}");
    }
}

/// Runs it, expects this exit code and one sentence on stderr, and gives the sentence.
pub fn complaint(mut command: Command, code: i32) -> String {
    let output = command.arg("--quiet").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty(), "{said}");
    assert!(said.starts_with("error: ") && said.ends_with('\n'), "{said:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for noise in ["panicked", "RUST_BACKTRACE", "Error {", "Exception raised"] {
        assert!(!said.contains(noise), "{said}");
    }
    said
}
