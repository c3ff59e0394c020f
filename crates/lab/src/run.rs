//! One run: its folder, device, progress and manifest, from the command line to the closing table.

use crate::progress::Progress;
use anyhow::{Context, Result};
use flatland_network::Precision;
use flatland_network::device::ChosenDevice;
use flatland_network::snapshot::{tensors_from_bytes, tensors_to_bytes};
use flatland_record::{
    DataSetRecord, Figure, MANIFEST_FILE, Manifest, NumbersRecord, REPORT_FILE, RunFolder, Status, Table,
    cells, sha256_hex, write_atomically, write_report,
};
use flatland_statistics::Outcome;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// The user or the system asked to stop. What is finished is kept.
#[derive(Debug, Error)]
#[error("interrupted; the same command with --resume goes on from here")]
pub struct Interrupted;

/// What an experiment works with.
#[derive(Debug)]
pub struct Run {
    /// Where everything is written.
    pub folder: RunFolder,
    /// Where to compute.
    pub device: ChosenDevice,
    /// How it multiplies.
    pub precision: Precision,
    /// How far it is.
    pub progress: Progress,
    /// How many jobs run side by side.
    pub workers: usize,
    /// Where the data sets are, if the user said so.
    pub data_dir: Option<PathBuf>,
    /// For every figure: the preset that the settings started from.
    pub preset: String,
    pub(crate) interrupted: Arc<AtomicBool>,
    pub(crate) manifest: Mutex<Manifest>,
    /// Files that belong together, and what they hold.
    pub(crate) written: Mutex<Vec<(Vec<String>, String)>>,
    pub(crate) outcomes: Mutex<Vec<Outcome>>,
}

/// Numbers under their names, each a tensor on the CPU: what a trial leaves behind.
pub type Numbers = BTreeMap<String, tch::Tensor>;

/// The hash of θ, of any shape, on any device: whatever it comes from, what is computed of it depends on nothing else of it.
pub fn fingerprint(theta: &tch::Tensor) -> Result<String> {
    let named = Numbers::from([("theta".to_owned(), theta.f_to_device(tch::Device::Cpu)?)]);
    Ok(sha256_hex(&tensors_to_bytes(&named)?))
}

impl Run {
    /// An error if the user asked to stop; called between epochs and between jobs.
    pub fn check_interrupted(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
    }

    /// Writes `<name>.csv`; `what` describes a row for the closing table.
    pub fn write_table(&self, name: &str, table: &Table, what: &str) -> Result<()> {
        let file = format!("{name}.csv");
        table.write(&self.folder.file(&file))?;
        self.note_written(vec![file], what);
        Ok(())
    }

    /// Writes `<name>.svg` and `<name>.png`.
    pub fn write_figure(&self, name: &str, figure: &Figure, what: &str) -> Result<()> {
        figure.write(self.folder.path(), name)?;
        self.note_written(vec![format!("{name}.svg"), format!("{name}.png")], what);
        Ok(())
    }

    /// Writes a file of another program's format, by its path in the run's folder.
    pub fn write_file(&self, path: &str, bytes: &[u8], what: &str) -> Result<()> {
        let file = self.folder.file(path);
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        write_atomically(&file, bytes)?;
        self.note_written(vec![path.to_owned()], what);
        Ok(())
    }

    /// Writes `weights/<name>.safetensors`.
    pub fn write_weights(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let folder = self.folder.file("weights");
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(write_atomically(&folder.join(format!("{name}.safetensors")), bytes)?)
    }

    /// Writes `claims.csv`, and keeps the verdicts for the closing table.
    pub fn write_claims(&self, outcomes: Vec<Outcome>) -> Result<()> {
        let mut table = Table::new(&[
            "id",
            "statement",
            "source",
            "statistic",
            "estimate",
            "low",
            "high",
            "level",
            "seeds",
            "verdict",
            "rule",
            "remark",
        ]);
        for outcome in &outcomes {
            let claim = &outcome.claim;
            table.row(cells![
                claim.id,
                claim.statement,
                claim.source,
                claim.statistic,
                outcome.estimate,
                outcome.interval.map(|ends| ends.0),
                outcome.interval.map(|ends| ends.1),
                outcome.level,
                outcome.seeds,
                outcome.verdict.to_string(),
                claim.rule.to_string(),
                outcome.remark.clone()
            ])?;
        }
        self.write_table("claims", &table, "what the seeds say of each claim, by a rule fixed before")?;
        *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner) = outcomes;
        Ok(())
    }

    /// One context for each worker that `jobs` keep busy.
    pub fn contexts<C>(&self, jobs: usize, context: impl Fn() -> Result<C>) -> Result<Vec<C>> {
        (0..self.workers.min(jobs)).map(|_| context()).collect()
    }

    /// The hash of everything that a trial's numbers depend on: what `content` says, the data set, the build and the device.
    pub fn key(&self, content: &serde_json::Value) -> Result<String> {
        let data_set = self.manifest.lock().unwrap_or_else(PoisonError::into_inner).data_set.clone();
        let all = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "kernels": flatland_network::own_kernels_available(),
            "content": content,
            "data": data_set.map(|data| (data.name, data.checksums)),
            "device": format!("{:?}, {}", self.device.device, self.precision),
        });
        Ok(sha256_hex(&serde_json::to_vec(&all)?))
    }

    /// What an earlier process of this run computed from the same `content`, or else computes and keeps it. A file that
    /// cannot be read costs its numbers' time, not the run.
    pub fn kept(
        &self,
        content: &serde_json::Value,
        compute: impl FnOnce() -> Result<Numbers>,
    ) -> Result<Numbers> {
        let path = self.folder.trial_path(&self.key(content)?, "numbers.safetensors");
        if path.exists() {
            match std::fs::read(&path).map_err(anyhow::Error::from).and_then(|b| Ok(tensors_from_bytes(&b)?))
            {
                Ok(numbers) => return Ok(numbers),
                Err(error) => {
                    self.progress
                        .note(&format!("{} is not usable ({error}): computed again", path.display()));
                }
            }
        }
        let numbers = compute()?;
        write_atomically(&path, &tensors_to_bytes(&numbers)?)?;
        Ok(numbers)
    }

    fn note_written(&self, files: Vec<String>, what: &str) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push((files, what.to_owned()));
    }

    /// Writes into the manifest which data were really used.
    pub fn record_data_set(&self, data_set: DataSetRecord) -> Result<()> {
        self.update_manifest(|manifest| manifest.data_set = Some(data_set))
    }

    pub(crate) fn update_manifest(&self, change: impl FnOnce(&mut Manifest)) -> Result<()> {
        let mut manifest = self.manifest.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut manifest);
        Ok(manifest.write(&self.folder.file(MANIFEST_FILE))?)
    }

    /// Closes the manifest.
    pub(crate) fn close(
        &self,
        status: Status,
        error: Option<String>,
        exit_code: u8,
        seconds: f64,
        numbers: Option<NumbersRecord>,
    ) -> Result<()> {
        let mut files = self.folder.file_records()?;
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let order = |name: &String| written.iter().position(|(files, _)| files.contains(name));
        for file in &mut files {
            file.what = order(&file.name).map(|index| written[index].1.clone());
        }
        // As the experiment wrote them; what it did not say anything of comes last.
        files.sort_by_key(|file| order(&file.name).unwrap_or(written.len()));
        self.update_manifest(|manifest| {
            manifest.status = status;
            manifest.error = error;
            manifest.exit_code = Some(exit_code.into());
            manifest.ended = Some(flatland_record::now_rfc3339());
            manifest.seconds = Some(manifest.seconds.unwrap_or(0.) + seconds);
            manifest.peak_memory_mib = flatland_record::peak_memory_mib();
            manifest.numbers = numbers;
            manifest.files = files;
        })
    }

    /// Writes the run's page from its closed manifest. Without it the run is whole all the same: a failure is a note.
    pub(crate) fn write_page(&self) {
        let page = self.folder.file(REPORT_FILE);
        match write_report(&[self.folder.path().to_path_buf()], &page) {
            Ok(()) => {
                self.note_written(vec![REPORT_FILE.to_owned()], "all of this on one page, for a browser");
            }
            Err(error) => self.progress.note(&format!("note: {error}")),
        }
    }
}
