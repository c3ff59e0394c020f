//! Data sets as arrays: MNIST and its family, read and downloaded with care, and `digits`, which needs
//! neither file nor network.
//!
//! A data set is 60,000 training and 10,000 test images of 28x28 grey values (`u8`) in ten classes, with the
//! checksums and the origin that a run's manifest records. It is never swapped silently: a file is used only
//! if its sha256 is the published one, and what cannot be had is an error.
//!
//! ```
//! use flatland_data::{DataSetName, LoadOptions, Size32, grey_values, load, to_32};
//!
//! let name: DataSetName = "digits".parse()?;
//! let data = load(name, &LoadOptions::default(), &())?;
//! assert_eq!(data.train.images.dim(), (60_000, 28, 28));
//!
//! let images = to_32(&data.test.images, Size32::Pad);
//! let values = grey_values(0.1307, 0.3081);
//! let x = images.mapv(|pixel| values[usize::from(pixel)]);
//! assert_eq!(x.dim(), (10_000, 32, 32));
//! # Ok::<(), flatland_data::DataError>(())
//! ```
//!
//! Files are looked for in `<data folder>/<name>/`. The data folder is the one given, else `FLATLAND_DATA`,
//! else the platform's ([`data_folder`]). Missing files are downloaded; `FLATLAND_MIRRORS` names mirrors of
//! one's own.
//!
//! [`Function`] is a data set of another kind: a function of one variable, sampled.
//!
//! This crate does not know libtorch, run folders or progress bars ([`Progress`] is how a caller sees a
//! download).

mod catalogue;
mod corrupt;
mod digits;
mod download;
mod error;
mod folder;
mod function;
mod idx;
mod image;
mod load;
mod name;
mod progress;

pub use corrupt::{corrupt_labels, gaussian_images, permutation, randomise_pixels, shuffle_pixels};
pub use download::MIRRORS_VARIABLE;
pub use error::DataError;
pub use folder::{DATA_VARIABLE, data_folder};
pub use function::Function;
pub use image::{Size32, grey_values, to_32};
pub use load::{DataSet, LoadOptions, Split, load};
pub use name::DataSetName;
pub use progress::Progress;
