//! Images as networks want them: 32x32 where asked, and as normalised floats.

use std::fmt;
use std::str::FromStr;

use ndarray::{Array3, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::DataError;

/// How 28x28 becomes 32x32, the size that LeNet takes. In settings: `pad`, `resize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size32 {
    /// Two pixels of paper (0) on each side: the usual way; the ink is unchanged.
    Pad,
    /// Bilinear enlarging, to the last bit as PIL (and torchvision on PIL images) does it.
    Resize,
}

impl fmt::Display for Size32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pad => "pad",
            Self::Resize => "resize",
        })
    }
}

impl FromStr for Size32 {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        match text {
            "pad" => Ok(Self::Pad),
            "resize" => Ok(Self::Resize),
            _ => Err(DataError::UnknownSize32 { found: text.to_owned() }),
        }
    }
}

const SMALL: usize = 28;
const LARGE: usize = 32;

/// Brings images [N, 28, 28] to [N, 32, 32].
///
/// # Panics
/// If the images are not 28x28, which those of a [`crate::DataSet`] always are.
pub fn to_32(images: &Array3<u8>, way: Size32) -> Array3<u8> {
    let (count, rows, columns) = images.dim();
    assert_eq!((rows, columns), (SMALL, SMALL), "to_32 takes images of 28x28");
    let mut large = Array3::zeros((count, LARGE, LARGE));
    let taps = taps();
    large.axis_iter_mut(Axis(0)).into_par_iter().zip(images.axis_iter(Axis(0))).for_each(
        |(mut large, small)| match way {
            Size32::Pad => large.slice_mut(ndarray::s![2..30, 2..30]).assign(&small),
            Size32::Resize => {
                // Columns first, rounded to bytes, then rows: as PIL.
                let mut wide = [[0_u8; LARGE]; SMALL];
                for (row, wide) in wide.iter_mut().enumerate() {
                    for (value, tap) in wide.iter_mut().zip(&taps) {
                        *value = tap.mix(|column| small[(row, column)]);
                    }
                }
                for (row, tap) in taps.iter().enumerate() {
                    for column in 0..LARGE {
                        large[(row, column)] = tap.mix(|row| wide[row][column]);
                    }
                }
            }
        },
    );
    large
}

/// The two source pixels of one enlarged pixel, with weights in units of 2⁻²² (PIL's fixed point).
#[derive(Clone, Copy)]
struct Tap {
    first: usize,
    second: usize,
    weights: (u32, u32),
}

const ONE: f64 = 4_194_304.0;

impl Tap {
    fn mix(self, source: impl Fn(usize) -> u8) -> u8 {
        let sum =
            u32::from(source(self.first)) * self.weights.0 + u32::from(source(self.second)) * self.weights.1;
        ((sum + (1 << 21)) >> 22) as u8
    }
}

/// Half-pixel centres: enlarged pixel i looks at (i + 1/2)·28/32 − 1/2. At the border the one pixel there
/// counts alone.
fn taps() -> [Tap; LARGE] {
    std::array::from_fn(|i| {
        let at = (i as f64 + 0.5) * SMALL as f64 / LARGE as f64 - 0.5;
        let below = at.floor();
        let weight = ((at - below) * ONE).round() as u32;
        if below < 0.0 {
            return Tap { first: 0, second: 0, weights: (ONE as u32, 0) };
        }
        let first = below as usize;
        if first + 1 >= SMALL {
            return Tap { first: SMALL - 1, second: SMALL - 1, weights: (ONE as u32, 0) };
        }
        Tap { first, second: first + 1, weights: (ONE as u32 - weight, weight) }
    })
}

/// The number that each grey value stands for: (p / 255 − mean) / std, in `f32` as torchvision computes it.
///
/// MNIST's own mean and standard deviation over the training pixels are 0.1307 and 0.3081; 0 and 1 leave [0,
/// 1].
pub fn grey_values(mean: f32, std: f32) -> [f32; 256] {
    std::array::from_fn(|p| (p as f32 / 255.0 - mean) / std)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idx::sha256;

    /// Two images without any symmetry.
    fn pattern() -> Array3<u8> {
        Array3::from_shape_fn((2, 28, 28), |(n, i, j)| ((n * 50 + i * 37 + j * 91 + i * j * 13) % 256) as u8)
    }

    #[test]
    fn padding_puts_the_image_in_the_middle() {
        let images = pattern();
        let large = to_32(&images, Size32::Pad);
        assert_eq!(large.slice(ndarray::s![.., 2..30, 2..30]), images);
        let sum = |a: &Array3<u8>| a.iter().map(|&p| u64::from(p)).sum::<u64>();
        assert_eq!(sum(&large), sum(&images));
    }

    #[test]
    fn resizing_is_pils_to_the_last_bit() {
        // From Pillow 13: Image.fromarray(a).resize((32, 32), Image.BILINEAR) of the two patterns, bytes in a
        // row.
        let large = to_32(&pattern(), Size32::Resize);
        assert_eq!(
            sha256(large.as_slice().unwrap()),
            "8c45031a875fc5dcc0f4842a6572ac6c080a734a074d7c43aec49de4293bed84"
        );
    }

    #[test]
    fn resizing_keeps_a_constant_image() {
        let large = to_32(&Array3::from_elem((1, 28, 28), 255), Size32::Resize);
        assert!(large.iter().all(|&p| p == 255));
    }

    #[test]
    fn grey_values_are_normalised() {
        let values = grey_values(0.1307, 0.3081);
        // torchvision's transforms.Normalize of transforms.ToTensor: 0 and 255, for MNIST.
        assert!((values[0] - -0.424_212_93).abs() < 1e-7 && (values[255] - 2.821_486_7).abs() < 1e-6);
        assert!(values.windows(2).all(|pair| pair[0] < pair[1]));
        let plain = grey_values(0.0, 1.0);
        assert!((plain[0], plain[51], plain[255]) == (0.0, 0.2, 1.0));
    }

    #[test]
    fn ways_are_read_from_settings() {
        for way in [Size32::Pad, Size32::Resize] {
            assert_eq!(way.to_string().parse::<Size32>().unwrap(), way);
            assert_eq!(serde_json::to_string(&way).unwrap(), format!("\"{way}\""));
        }
        assert!("crop".parse::<Size32>().unwrap_err().to_string().contains("pad, resize"));
    }
}
