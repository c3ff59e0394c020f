//! A run's folder and everything that is written into it.
//!
//! - [`RunFolder`]: where a run lives, how it is named, found again, locked;
//! - [`Manifest`]: what was run, on what, with what result (`manifest.json`);
//! - [`Table`]: tidy tables (`*.csv`);
//! - [`Figure`]: figures described once and drawn as SVG and as PNG;
//! - [`npz`], [`vtk`]: arrays and grids for other programs;
//! - [`write_report`]: one self-contained page over one run or several (`report.html`), [`contact_sheet`]: all figures on
//!   one image;
//! - [`write_atomically`]: the one way by which a file comes into being.
//!
//! The crate knows nothing of networks and never links libtorch.

mod contact_sheet;
mod error;
mod figure;
mod files;
mod git;
mod grid;
mod manifest;
mod process;
mod report;
mod run;
mod table;

pub use contact_sheet::contact_sheet;
pub use error::RecordError;
pub use figure::{
    Axis, AxisSide, Colour, Dash, Field, FieldLook, Figure, Level, Marker, Panel, Scale, Series, SeriesShape,
    Style, VerticalMark, ecdf,
};
pub use files::{sha256_hex, sha256_of_file, write_atomically};
pub use git::GitState;
pub use grid::{npz, vtk};
pub use manifest::{DataSetRecord, DeviceRecord, FileRecord, MANIFEST_FILE, Manifest, NumbersRecord, Status};
pub use process::{forget_peak_memory, peak_memory_mib};
pub use report::{REPORT_FILE, write_report};
pub use run::{LockGuard, RunFolder, now_rfc3339};
pub use table::{Cell, Table, short};

/// What this crate's fallible calls return.
pub type Result<T> = std::result::Result<T, RecordError>;
