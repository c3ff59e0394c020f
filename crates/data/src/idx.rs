//! IDX, the file format of the MNIST family, packed with gzip or not.
//!
//! Big-endian: the magic number 0x00000801 (labels: bytes, one dimension) or 0x00000803 (images: bytes,
//! three), then each dimension as u32, then the bytes. Format: the MNIST page of Yann LeCun, Corinna Cortes
//! and Christopher Burges.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use ndarray::Array3;
use sha2::{Digest, Sha256};

use crate::DataError;
use crate::catalogue::{Checksum, Part};

const LABELS: u32 = 0x0000_0801;
const IMAGES: u32 = 0x0000_0803;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// No file of the family is a quarter as large: a bound against archives that unpack without end.
pub(crate) const MOST_BYTES: u64 = 256 << 20;

/// A file's unpacked bytes and checksums.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub bytes: Vec<u8>,
    /// sha256 of `bytes`, in hex.
    pub sha256: String,
    /// sha256 of the gzip file, in hex; none if the file was not packed.
    packed_sha256: Option<String>,
}

/// The sha256 of some bytes, in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Reads a file, unpacked if its content is gzip, whatever its name.
pub(crate) fn read(path: &Path) -> Result<Unpacked, DataError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes))
        .map_err(DataError::io("read", path))?;
    if bytes.is_empty() {
        return Err(DataError::Empty { path: path.into() });
    }
    if !bytes.starts_with(&GZIP) {
        let sha256 = sha256(&bytes);
        return Ok(Unpacked { bytes, sha256, packed_sha256: None });
    }
    let mut unpacked = Vec::with_capacity(4 * bytes.len());
    MultiGzDecoder::new(&bytes[..])
        .take(MOST_BYTES)
        .read_to_end(&mut unpacked)
        .map_err(|error| DataError::Gzip { path: path.into(), reason: error.to_string() })?;
    if unpacked.is_empty() {
        return Err(DataError::Empty { path: path.into() });
    }
    let sums = rayon::join(|| sha256(&unpacked), || sha256(&bytes));
    Ok(Unpacked { bytes: unpacked, sha256: sums.0, packed_sha256: Some(sums.1) })
}

/// Whether the file is the published one.
pub(crate) fn verify(path: &Path, part: &Part, file: &Unpacked) -> Result<(), DataError> {
    let (of, expected, found) = match (part.checksum, &file.packed_sha256) {
        (Checksum::Unpacked(expected), _) => ("the unpacked bytes", expected, &file.sha256),
        (Checksum::Packed(expected), Some(packed)) => ("the gzip file", expected, packed),
        (Checksum::Packed(_), None) => {
            return Err(DataError::Unverifiable { path: path.into(), file: part.file });
        }
    };
    if expected == found.as_str() {
        return Ok(());
    }
    Err(DataError::Checksum { path: path.into(), of, expected, found: found.clone() })
}

/// The images in an IDX file's bytes, [N, 28, 28].
pub(crate) fn images(path: &Path, bytes: &[u8]) -> Result<Array3<u8>, DataError> {
    let [count, rows, columns] = header(path, bytes, IMAGES, "images")?;
    if (rows, columns) != (28, 28) {
        return Err(DataError::ImageSize { path: path.into(), rows, columns });
    }
    let pixels = body(path, bytes, 16, u64::from(count) * 28 * 28)?.to_vec();
    let found = pixels.len() as u64;
    Array3::from_shape_vec((count as usize, 28, 28), pixels).map_err(|_| DataError::Truncated {
        path: path.into(),
        expected: u64::from(count) * 28 * 28,
        found,
    })
}

/// The labels in an IDX file's bytes, [N], each 0 to 9.
pub(crate) fn labels(path: &Path, bytes: &[u8]) -> Result<Vec<u8>, DataError> {
    let [count] = header(path, bytes, LABELS, "labels")?;
    let labels = body(path, bytes, 8, u64::from(count))?;
    match labels.iter().position(|&label| label > 9) {
        Some(position) => Err(DataError::Label { path: path.into(), position, label: labels[position] }),
        None => Ok(labels.to_vec()),
    }
}

/// Checks the magic number and gives the dimensions.
fn header<const D: usize>(
    path: &Path,
    bytes: &[u8],
    magic: u32,
    what: &'static str,
) -> Result<[u32; D], DataError> {
    let word = |index: usize| {
        let word = bytes.get(4 * index..)?.first_chunk()?;
        Some(u32::from_be_bytes(*word))
    };
    let truncated =
        || DataError::Truncated { path: path.into(), expected: 4 + 4 * D as u64, found: bytes.len() as u64 };
    let found = word(0).ok_or_else(truncated)?;
    if found != magic {
        return Err(DataError::Magic { path: path.into(), what, expected: magic, found });
    }
    let mut dimensions = [0; D];
    for (index, dimension) in dimensions.iter_mut().enumerate() {
        *dimension = word(1 + index).ok_or_else(truncated)?;
    }
    Ok(dimensions)
}

/// What follows the header, exactly as long as announced.
fn body<'a>(path: &Path, bytes: &'a [u8], header: u64, announced: u64) -> Result<&'a [u8], DataError> {
    let (expected, found) = (header + announced, bytes.len() as u64);
    let path = path.into();
    match found.cmp(&expected) {
        std::cmp::Ordering::Less => Err(DataError::Truncated { path, expected, found }),
        std::cmp::Ordering::Greater => Err(DataError::Trailing { path, expected, found }),
        std::cmp::Ordering::Equal => Ok(&bytes[header as usize..]),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// An IDX file of images of any size, all pixels `value`.
    pub(crate) fn idx_images(count: u32, rows: u32, columns: u32, value: u8) -> Vec<u8> {
        let mut bytes = [IMAGES, count, rows, columns].map(u32::to_be_bytes).concat();
        bytes.resize(16 + (count * rows * columns) as usize, value);
        bytes
    }

    /// An IDX file of labels.
    pub(crate) fn idx_labels(labels: &[u8]) -> Vec<u8> {
        let mut bytes = [LABELS, labels.len() as u32].map(u32::to_be_bytes).concat();
        bytes.extend(labels);
        bytes
    }

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Writes the bytes to a file, reads it with `parse`, and gives the error's sentence.
    fn complaint<T>(bytes: &[u8], parse: impl Fn(&Path, &[u8]) -> Result<T, DataError>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some-file.gz");
        fs::write(&path, bytes).unwrap();
        let error = match read(&path) {
            Err(error) => error,
            Ok(file) => parse(&path, &file.bytes).err().expect("the file is bad"),
        };
        let message = error.to_string();
        assert!(message.contains("some-file.gz"), "the path is named: {message}");
        assert!(message.contains("expected") && message.contains("delete"), "{message}");
        assert!(!message.contains(". ") && !message.contains('\n'), "one sentence: {message}");
        message
    }

    #[test]
    fn packed_and_plain_files_give_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let plain = idx_images(3, 28, 28, 7);
        for (name, bytes) in [("plain.gz", plain.clone()), ("packed", gzip(&plain))] {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            let file = read(&path).unwrap();
            assert_eq!(file.sha256, sha256(&plain));
            let images = images(&path, &file.bytes).unwrap();
            assert_eq!(images.dim(), (3, 28, 28));
            assert!(images.iter().all(|&p| p == 7));
        }
        let bytes = idx_labels(&[0, 9, 5]);
        assert_eq!(labels(Path::new("x"), &bytes).unwrap(), [0, 9, 5]);
    }

    #[test]
    fn a_truncated_file_says_both_lengths() {
        let whole = idx_images(2, 28, 28, 1);
        let message = complaint(&whole[..1000], images);
        assert!(message.contains("truncated: expected 1584 bytes (unpacked), found 1000"), "{message}");
        let message = complaint(&gzip(&whole[..1000]), images);
        assert!(message.contains("expected 1584 bytes (unpacked), found 1000"), "{message}");
        // Not even a header.
        assert!(complaint(&whole[..10], images).contains("expected 16 bytes (unpacked), found 10"));
        assert!(complaint(&whole[..3], images).contains("expected 16 bytes (unpacked), found 3"));
    }

    #[test]
    fn an_absurd_count_is_truncation_not_a_crash() {
        let mut bytes = idx_images(1, 28, 28, 1);
        bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(complaint(&bytes, images).contains("truncated"));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = idx_labels(&[1, 2, 3]);
        bytes.push(0);
        let message = complaint(&bytes, labels);
        assert!(message.contains("trailing bytes: expected 11 bytes (unpacked), found 12"), "{message}");
    }

    #[test]
    fn a_wrong_magic_number_is_refused() {
        let message = complaint(&idx_labels(&[1; 30]), images);
        assert!(message.contains("expected it to start with 0x00000803, found 0x00000801"), "{message}");
        assert!(complaint(b"<html>not found</html>", labels).contains("no IDX file of labels"));
    }

    #[test]
    fn damaged_gzip_is_refused() {
        let packed = gzip(&idx_images(2, 28, 28, 1));
        assert!(complaint(&packed[..packed.len() - 6], images).contains("damaged gzip"));
        let mut garbled = packed.clone();
        garbled[15] ^= 0xff;
        assert!(complaint(&garbled, images).contains("damaged gzip"));
        let mut garbage = GZIP.to_vec();
        garbage.extend([9; 100]);
        assert!(complaint(&garbage, images).contains("damaged gzip"));
    }

    #[test]
    fn other_sizes_labels_and_empty_files_are_refused() {
        assert!(complaint(&idx_images(1, 32, 30, 0), images).contains("32x30 pixels: expected 28x28"));
        assert!(complaint(&idx_labels(&[3, 10]), labels).contains("label 10 at position 1: expected 0 to 9"));
        assert!(complaint(&[], labels).contains("is empty"));
        assert!(complaint(&gzip(&[]), labels).contains("is empty"));
    }

    #[test]
    fn checksums_are_of_the_unpacked_or_the_packed_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let plain = idx_labels(&[1, 2]);
        let packed = gzip(&plain);
        let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
        let by_unpacked = Part { file: "x", checksum: Checksum::Unpacked(leak(sha256(&plain))) };
        let by_packed = Part { file: "x", checksum: Checksum::Packed(leak(sha256(&packed))) };
        let path = folder.path().join("labels");
        let check = |bytes: &[u8], part: &Part| {
            fs::write(&path, bytes).unwrap();
            verify(&path, part, &read(&path).unwrap()).map_err(|error| error.to_string())
        };
        check(&plain, &by_unpacked).unwrap();
        check(&packed, &by_unpacked).unwrap();
        check(&packed, &by_packed).unwrap();
        let other = idx_labels(&[2, 1]);
        let message = check(&other, &by_unpacked).unwrap_err();
        assert!(
            message.contains("wrong checksum: expected sha256") && message.contains("delete"),
            "{message}"
        );
        assert!(message.contains(&sha256(&plain)) && message.contains(&sha256(&other)), "{message}");
        assert!(check(&gzip(&other), &by_packed).unwrap_err().contains("of the gzip file"));
        assert!(check(&plain, &by_packed).unwrap_err().contains("cannot be verified"));
    }
}
