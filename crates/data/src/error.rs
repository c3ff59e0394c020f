//! What can go wrong with data, each in one sentence: what, where, expected and found, what to do.

use std::io;
use std::path::PathBuf;

use crate::DataSetName;

/// Why a data set could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// No data set has this name.
    #[error("there is no data set `{found}`: known are {known}; did you mean `{nearest}`?")]
    UnknownName {
        /// The name given.
        found: String,
        /// The names known, separated by commas.
        known: String,
        /// The known name most like it.
        nearest: DataSetName,
    },
    /// No way to turn 28x28 into 32x32 has this name.
    #[error("there is no way to 32x32 called `{found}`: known are pad, resize")]
    UnknownSize32 {
        /// The name given.
        found: String,
    },
    /// Text that is no function of one variable.
    #[error("`{found}` is no function of x: {reason}; an example is sin(3*x)+x^2")]
    Function {
        /// The text given.
        found: String,
        /// What does not fit.
        reason: String,
    },
    /// A function without a finite value where it is sampled.
    #[error("the function {function} has no finite value at x = {x}: found {y}; sample it elsewhere")]
    Pole {
        /// The function.
        function: String,
        /// The first such place.
        x: f64,
        /// What came out there.
        y: f64,
    },
    /// The platform names no home, so there is no default data folder.
    #[error(
        "no default data folder is known, since there is no home directory: set FLATLAND_DATA to a folder"
    )]
    NoFolder,
    /// A file operation failed.
    #[error("cannot {action} {}: {source}; check that the path exists and may be used, or set FLATLAND_DATA to another folder", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Files are missing and downloading was switched off.
    #[error("the data set {name} is incomplete: {file}.gz is not in {} and downloading is switched off; put it there, allow the download, or use `--dataset digits`, which needs no files", folder.display())]
    Missing {
        /// The data set.
        name: DataSetName,
        /// The first missing file, without `.gz`.
        file: &'static str,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// No mirror delivered the file.
    #[error("cannot download {file}.gz of the data set {name}: tried {tried}; put its four files by hand into {}, name a mirror of your own in FLATLAND_MIRRORS, or use `--dataset digits`, which needs no download", folder.display())]
    Unreachable {
        /// The data set.
        name: DataSetName,
        /// The file, without `.gz`.
        file: &'static str,
        /// Each address with the reason why it failed.
        tried: String,
        /// Where the files belong.
        folder: PathBuf,
    },
    /// The file has no bytes.
    #[error("{} is empty: expected an IDX file; {DELETE}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The gzip container is damaged.
    #[error("{} is a damaged gzip file ({reason}): expected a complete one; {DELETE}", path.display())]
    Gzip {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// The file does not start as an IDX file of this kind does.
    #[error("{} is no IDX file of {what}: expected it to start with 0x{expected:08x}, found 0x{found:08x}; {DELETE}", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
        /// `images` or `labels`.
        what: &'static str,
        /// The magic number of this kind.
        expected: u32,
        /// The first four bytes.
        found: u32,
    },
    /// The file ends too early.
    #[error("{} is truncated: expected {expected} bytes (unpacked), found {found}; {DELETE}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that the header announces, or the header's own length.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// The file goes on after its last item.
    #[error("{} has trailing bytes: expected {expected} bytes (unpacked), found {found}; {DELETE}", path.display())]
    Trailing {
        /// The file.
        path: PathBuf,
        /// Bytes that the header announces.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// The images have another size.
    #[error("{} has images of {rows}x{columns} pixels: expected 28x28; {DELETE}", path.display())]
    ImageSize {
        /// The file.
        path: PathBuf,
        /// Height found.
        rows: u32,
        /// Width found.
        columns: u32,
    },
    /// A label is no class.
    #[error("{} has label {label} at position {position}: expected 0 to 9; {DELETE}", path.display())]
    Label {
        /// The file.
        path: PathBuf,
        /// Position of the first such label, from 0.
        position: usize,
        /// The label found.
        label: u8,
    },
    /// There is not one label an image.
    #[error("{} has {images} images but {} has {labels} labels: expected as many; delete both files, so that they are fetched again", images_path.display(), labels_path.display())]
    Count {
        /// The file of images.
        images_path: PathBuf,
        /// The file of labels.
        labels_path: PathBuf,
        /// Images found.
        images: usize,
        /// Labels found.
        labels: usize,
    },
    /// The file is well formed, but not the published one.
    #[error("{} has the wrong checksum: expected sha256 {expected} of {of}, found {found}; {DELETE}", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Which bytes were summed.
        of: &'static str,
        /// The published sum.
        expected: &'static str,
        /// The sum found.
        found: String,
    },
    /// The file is unpacked, but only the packed file has a published checksum.
    #[error("{} cannot be verified, since a checksum is published only for the packed file: expected {file}.gz as published, found it unpacked; put the published .gz beside it or delete it, so that it is fetched", path.display())]
    Unverifiable {
        /// The file.
        path: PathBuf,
        /// The published file, without `.gz`.
        file: &'static str,
    },
}

const DELETE: &str = "delete the file, so that it is fetched again";

impl DataError {
    /// For `map_err`: a [`DataError::Io`] of this action on this path.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
