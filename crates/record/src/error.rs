//! What can go wrong when a run is recorded, in one sentence each.

use std::io;
use std::path::{Path, PathBuf};

/// A failure to write or read a part of a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The file system, or the user's quota on it, is full.
    #[error("cannot write {}: no space left; free some or choose another --out", path.display())]
    NoSpace {
        /// What was to be written.
        path: PathBuf,
    },
    /// The folder is read-only or belongs to someone else.
    #[error("cannot write {}: {source}; make the folder writable or choose another --out", path.display())]
    NotWritable {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Any other failure to write.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or folder that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A manifest that is no manifest.
    #[error("{} is not a manifest that this version reads: {source}; move the run's folder away or delete it", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// Where and why the JSON does not fit.
        source: serde_json::Error,
    },
    /// An experiment's name that is no plain folder name.
    #[error("the experiment name {name:?} cannot name a folder; use letters, digits, '-' and '_' only")]
    ExperimentName {
        /// The name as given.
        name: String,
    },
    /// Another process works in the same run's folder.
    #[error("{} is in use by another process; wait for it to end, stop it, or start a new run", path.display())]
    Locked {
        /// The run's folder.
        path: PathBuf,
    },
    /// The file system offers no locks.
    #[error("cannot lock {}: {source}; choose an --out on a file system with file locks", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `latest` could not be pointed at the run; the run itself is complete.
    #[error("cannot point {} at the run: {reason}; the run's own folder is unaffected", path.display())]
    Latest {
        /// The link.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A table's row with more or fewer cells than the table has columns.
    #[error("a row of {found} cells does not fit the {expected} columns of the table ({columns})")]
    RowLength {
        /// Number of columns.
        expected: usize,
        /// Number of cells given.
        found: usize,
        /// The columns' names.
        columns: String,
    },
    /// An axis range that no axis can have.
    #[error(
        "the axis {axis:?} has the range {low} to {high}; give two finite numbers, the lower one first\
         , both above 0 on a log axis"
    )]
    AxisRange {
        /// The axis label.
        axis: String,
        /// Lower end as given.
        low: f64,
        /// Upper end as given.
        high: f64,
    },
    /// A field whose values fill no rectangle.
    #[error(
        "a field of {columns} x {rows} places holds {values} values; give one for each place, and at least 2 x 2"
    )]
    Field {
        /// Places along x.
        columns: usize,
        /// Places along y.
        rows: usize,
        /// Values given.
        values: usize,
    },
    /// Arrays that could not be encoded.
    #[error("cannot encode the array {name:?}: {reason}")]
    Array {
        /// The array's name.
        name: String,
        /// What the library said.
        reason: String,
    },
    /// A page that could not be made.
    #[error("cannot make the page {}: {reason}", path.display())]
    Page {
        /// The page.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A figure that could not be drawn or encoded.
    #[error("cannot draw the figure {figure:?}: {reason}")]
    Drawing {
        /// The figure's title.
        figure: String,
        /// What the drawing library said.
        reason: String,
    },
}

impl RecordError {
    /// Sorts a failed write into the cases for which there is advice.
    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::NotWritable { path, source }
            }
            _ => Self::Write { path, source },
        }
    }

    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_path_buf(), source }
    }
}
