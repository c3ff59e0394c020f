//! The published data sets: their files, checksums and mirrors.
//!
//! All three are four gzip-packed IDX files of the same names. For MNIST the sums are of the *unpacked*
//! bytes, since mirrors pack them differently. For Fashion-MNIST and KMNIST the authors publish no sums of the
//! unpacked bytes; the sums here are of the packed files: sha256 as recorded by several independent projects
//! (among them torchvision's prototype data sets) beside the md5 sums that the authors (Fashion-MNIST's
//! README) and torchvision publish. These packed files are kept and verified as they are.

use crate::DataSetName;

/// A published sha256, in hex.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Checksum {
    /// Of the unpacked bytes.
    Unpacked(&'static str),
    /// Of the gzip file as published.
    Packed(&'static str),
}

/// One file of a data set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// The published name, without `.gz`.
    pub file: &'static str,
    /// The published sum.
    pub checksum: Checksum,
}

/// A published data set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    pub name: DataSetName,
    /// Addresses of the folder with the files, in the order of trying, each ending in `/`.
    pub mirrors: &'static [&'static str],
    /// Training images, training labels, test images, test labels.
    pub parts: [Part; 4],
}

const fn parts(checksums: [Checksum; 4]) -> [Part; 4] {
    [
        Part { file: "train-images-idx3-ubyte", checksum: checksums[0] },
        Part { file: "train-labels-idx1-ubyte", checksum: checksums[1] },
        Part { file: "t10k-images-idx3-ubyte", checksum: checksums[2] },
        Part { file: "t10k-labels-idx1-ubyte", checksum: checksums[3] },
    ]
}

const MNIST: Published = Published {
    name: DataSetName::Mnist,
    mirrors: &[
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ],
    parts: parts([
        Checksum::Unpacked("ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        Checksum::Unpacked("65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        Checksum::Unpacked("0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        Checksum::Unpacked("ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ]),
};

const FASHION_MNIST: Published = Published {
    name: DataSetName::FashionMnist,
    mirrors: &[
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ],
    parts: parts([
        Checksum::Packed("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        Checksum::Packed("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        Checksum::Packed("346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        Checksum::Packed("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ]),
};

const KMNIST: Published = Published {
    name: DataSetName::Kmnist,
    mirrors: &[
        "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
    ],
    parts: parts([
        Checksum::Packed("51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
        Checksum::Packed("e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
        Checksum::Packed("edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
        Checksum::Packed("20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
    ]),
};

/// The published files of a data set; none for `digits`, which is made on the spot.
pub(crate) const fn published(name: DataSetName) -> Option<Published> {
    match name {
        DataSetName::Mnist => Some(MNIST),
        DataSetName::FashionMnist => Some(FASHION_MNIST),
        DataSetName::Kmnist => Some(KMNIST),
        DataSetName::Digits => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_64_hex_digits_and_mirrors_are_folders() {
        for published in DataSetName::ALL.into_iter().filter_map(published) {
            for part in published.parts {
                let (Checksum::Unpacked(sum) | Checksum::Packed(sum)) = part.checksum;
                assert!(sum.len() == 64 && sum.bytes().all(|b| b"0123456789abcdef".contains(&b)), "{sum}");
            }
            assert!(published.mirrors.iter().all(|m| m.starts_with("http") && m.ends_with('/')));
        }
    }
}
