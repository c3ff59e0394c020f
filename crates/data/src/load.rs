//! Loading a data set: from its folder, from the network, or made on the spot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::Array3;
use rayon::prelude::*;

use crate::catalogue::{Part, Published, published};
use crate::folder::data_folder;
use crate::idx::sha256;
use crate::{DataError, DataSetName, Progress, digits, download, idx};

/// Images and their classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Grey values, 0 (paper) to 255 (ink): shape [N, 28, 28].
    pub images: Array3<u8>,
    /// Classes, one an image, 0 to 9: shape \[N\].
    pub labels: Vec<u8>,
}

/// A data set in memory, with what a run's manifest must say about it.
#[derive(Clone, Debug)]
pub struct DataSet {
    /// Which one.
    pub name: DataSetName,
    /// For training: 60,000 images.
    pub train: Split,
    /// For testing: 10,000 images.
    pub test: Split,
    /// sha256 in hex of each file's unpacked bytes; for `digits`, of the pixels and labels of each split.
    pub checksums: BTreeMap<String, String>,
    /// The folder that it was read from, or `generated, seed 0`.
    pub origin: String,
}

/// Where a data set may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// The data folder, with a folder per data set; see [`data_folder`] for the default.
    pub data_dir: Option<PathBuf>,
    /// Whether missing files may be downloaded.
    pub download: bool,
    /// The seed of `digits`.
    pub digits_seed: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { data_dir: None, download: true, digits_seed: 0 }
    }
}

/// Loads a data set: verified files of `<data folder>/<name>/`, downloaded first where missing; or `digits`,
/// generated.
///
/// A folder that cannot be written to is fine as long as its files are there. Never puts one data set for
/// another.
///
/// # Errors
/// One sentence on what is wrong with which file, or which mirrors were tried and why they failed.
pub fn load(name: DataSetName, options: &LoadOptions, progress: &dyn Progress) -> Result<DataSet, DataError> {
    let Some(published) = published(name) else {
        return Ok(generate(options.digits_seed));
    };
    let folder = data_folder(options.data_dir.as_deref())?.join(name.as_str());
    let mirrors = options.download.then(|| download::mirrors(&published));
    read(&published, &folder, mirrors.as_deref(), progress)
}

fn generate(seed: u64) -> DataSet {
    let (train, test) = digits::generate(seed);
    let sums: Vec<(String, String)> = [("train", &train), ("test", &test)]
        .into_par_iter()
        .flat_map_iter(|(split, Split { images, labels })| {
            let pixels = images.as_slice().map(sha256).unwrap_or_default();
            [(format!("{split}-images"), pixels), (format!("{split}-labels"), sha256(labels))]
        })
        .collect();
    let checksums = sums.into_iter().collect();
    DataSet { name: DataSetName::Digits, train, test, checksums, origin: format!("generated, seed {seed}") }
}

/// Reads a published data set from `folder`, fetching from `mirrors` (none: no download) what is missing.
pub(crate) fn read(
    published: &Published,
    folder: &Path,
    mirrors: Option<&[String]>,
    progress: &dyn Progress,
) -> Result<DataSet, DataError> {
    let name = published.name;
    let locate = |part: &Part| match (download::find(folder, part), mirrors) {
        (Some(path), _) => Ok(path),
        (None, Some(mirrors)) => download::fetch(name, part, folder, mirrors, progress),
        (None, None) => Err(DataError::Missing { name, file: part.file, folder: folder.into() }),
    };
    // One after the other: so that the first missing file is reported before the next is asked for.
    let paths: Vec<PathBuf> = published.parts.iter().map(locate).collect::<Result<_, _>>()?;
    let [train_images, train_labels, test_images, test_labels] = &published.parts;
    let ((train, train_sums), (test, test_sums)) = {
        let (train, test) = rayon::join(
            || read_split([train_images, train_labels], [&paths[0], &paths[1]]),
            || read_split([test_images, test_labels], [&paths[2], &paths[3]]),
        );
        (train?, test?)
    };
    let checksums = train_sums.into_iter().chain(test_sums).collect();
    Ok(DataSet { name, train, test, checksums, origin: folder.display().to_string() })
}

/// File name and sha256 of its unpacked bytes.
type Sum = (String, String);

/// Reads and verifies the images and labels of one split.
fn read_split(parts: [&Part; 2], paths: [&Path; 2]) -> Result<(Split, [Sum; 2]), DataError> {
    let files = [idx::read(paths[0])?, idx::read(paths[1])?];
    let images = idx::images(paths[0], &files[0].bytes)?;
    let labels = idx::labels(paths[1], &files[1].bytes)?;
    if images.dim().0 != labels.len() {
        return Err(DataError::Count {
            images_path: paths[0].into(),
            labels_path: paths[1].into(),
            images: images.dim().0,
            labels: labels.len(),
        });
    }
    for index in 0..2 {
        idx::verify(paths[index], parts[index], &files[index])?;
    }
    let [images_file, labels_file] = files;
    let sums =
        [(parts[0].file.to_owned(), images_file.sha256), (parts[1].file.to_owned(), labels_file.sha256)];
    Ok((Split { images, labels }, sums))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::catalogue::Checksum;
    use crate::idx::tests::{gzip, idx_images, idx_labels};

    /// A tiny data set of 3 training and 2 test images: what is published, and the unpacked files.
    pub(crate) fn tiny() -> (Published, [Vec<u8>; 4]) {
        let files = [
            idx_images(3, 28, 28, 40),
            idx_labels(&[1, 2, 3]),
            idx_images(2, 28, 28, 80),
            idx_labels(&[4, 5]),
        ];
        let mut published = published(DataSetName::Mnist).unwrap();
        for (part, file) in published.parts.iter_mut().zip(&files) {
            part.checksum = Checksum::Unpacked(Box::leak(sha256(file).into_boxed_str()));
        }
        (published, files)
    }

    fn write(folder: &Path, names: [&str; 4], files: &[Vec<u8>; 4]) {
        for (name, file) in names.iter().zip(files) {
            let packed = Path::new(name).extension().is_some_and(|extension| extension == "gz");
            fs::write(folder.join(name), if packed { gzip(file) } else { file.clone() }).unwrap();
        }
    }

    #[test]
    fn all_four_ways_to_name_a_file_are_read() {
        let (published, files) = tiny();
        let names = [
            "train-images-idx3-ubyte.gz",
            "train-labels.idx1-ubyte.gz",
            "t10k-images-idx3-ubyte",
            "t10k-labels.idx1-ubyte",
        ];
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), names, &files);
        let data = read(&published, folder.path(), None, &()).unwrap();
        assert_eq!(data.train.images.dim(), (3, 28, 28));
        assert_eq!(data.train.labels, [1, 2, 3]);
        assert_eq!(data.test.images[(1, 27, 27)], 80);
        assert_eq!(data.test.labels, [4, 5]);
        assert_eq!(data.checksums["t10k-labels-idx1-ubyte"], sha256(&files[3]));
        assert_eq!(data.origin, folder.path().display().to_string());
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_read() {
        let (published, files) = tiny();
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), published.parts.map(|part| part.file), &files);
        let before = fs::read_dir(folder.path()).unwrap().count();
        let mut permissions = fs::metadata(folder.path()).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(folder.path(), permissions).unwrap();
        let data = read(&published, folder.path(), Some(&[]), &());
        assert!(data.is_ok());
        // (As root the folder can be written to all the same: nothing may have been put there.)
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before);
    }

    #[test]
    fn counts_that_differ_are_refused() {
        let (published, mut files) = tiny();
        files[1] = idx_labels(&[1, 2]);
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), published.parts.map(|part| part.file), &files);
        let message = read(&published, folder.path(), None, &()).unwrap_err().to_string();
        assert!(message.contains("3 images") && message.contains("2 labels"), "{message}");
        assert!(message.contains("train-images") && message.contains("train-labels"), "{message}");
    }

    #[test]
    fn a_well_formed_file_with_the_wrong_checksum_is_refused() {
        let (published, mut files) = tiny();
        files[0] = idx_images(3, 28, 28, 41);
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), published.parts.map(|part| part.file), &files);
        let message = read(&published, folder.path(), None, &()).unwrap_err().to_string();
        assert!(message.contains("wrong checksum"), "{message}");
        assert!(message.contains("delete the file, so that it is fetched again"), "{message}");
    }

    #[test]
    fn without_download_a_missing_file_is_named() {
        let options = LoadOptions { download: false, ..folder_option(&tempfile::tempdir().unwrap()) };
        let message = load(DataSetName::Kmnist, &options, &()).unwrap_err().to_string();
        assert!(message.contains("train-images-idx3-ubyte.gz is not in"), "{message}");
        assert!(message.contains("kmnist") && message.contains("--dataset digits"), "{message}");
    }

    fn folder_option(folder: &tempfile::TempDir) -> LoadOptions {
        LoadOptions { data_dir: Some(folder.path().into()), ..LoadOptions::default() }
    }

    #[test]
    fn digits_need_no_folder_and_say_their_seed() {
        let data = load(DataSetName::Digits, &LoadOptions::default(), &()).unwrap();
        assert_eq!(data.origin, "generated, seed 0");
        assert_eq!(data.train.images.dim(), (60_000, 28, 28));
        assert_eq!(data.test.labels.len(), 10_000);
        let names: Vec<&str> = data.checksums.keys().map(String::as_str).collect();
        assert_eq!(names, ["test-images", "test-labels", "train-images", "train-labels"]);
    }

    #[test]
    fn the_real_mnist_is_read() {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
        if !shared.join("mnist").is_dir() {
            println!("skipped: {} has no mnist", shared.display());
            return;
        }
        let options = LoadOptions { data_dir: Some(shared), download: false, digits_seed: 0 };
        let data = load(DataSetName::Mnist, &options, &()).unwrap();
        assert_eq!(data.train.images.dim(), (60_000, 28, 28));
        assert_eq!(data.test.images.dim(), (10_000, 28, 28));
        assert_eq!(data.train.labels[..10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]);
        assert_eq!(data.test.labels[..10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]);
        let mean = data.train.images.iter().map(|&p| f64::from(p)).sum::<f64>() / (255.0 * 47_040_000.0);
        assert!((mean - 0.1307).abs() < 1e-4, "{mean}");
    }
}
