//! One run: its folder, device, progress and manifest, from the command line to the closing table.

use crate::progress::Progress;
use anyhow::Result;
use flatland_network::device::ChosenDevice;
use flatland_record::{DataSetRecord, Figure, FileRecord, MANIFEST_FILE, Manifest, RunFolder, Status, Table};
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
    pub(crate) written: Mutex<Vec<(String, String)>>,
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
        self.note_written(file, what);
        Ok(())
    }

    /// Writes `<name>.svg` and `<name>.png`.
    pub fn write_figure(&self, name: &str, figure: &Figure, what: &str) -> Result<()> {
        figure.write(self.folder.path(), name)?;
        self.note_written(format!("{name}.svg, {name}.png"), what);
        Ok(())
    }

    fn note_written(&self, file: String, what: &str) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push((file, what.to_owned()));
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
    ) -> Result<()> {
        let files: Vec<FileRecord> = self.folder.file_records()?;
        self.update_manifest(|manifest| {
            manifest.status = status;
            manifest.error = error;
            manifest.exit_code = Some(exit_code.into());
            manifest.ended = Some(flatland_record::now_rfc3339());
            manifest.seconds = Some(manifest.seconds.unwrap_or(0.) + seconds);
            manifest.peak_memory_mib = flatland_record::peak_memory_mib();
            manifest.files = files;
        })
    }
}
