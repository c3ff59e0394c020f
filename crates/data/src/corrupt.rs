//! Corruption of labels and pixels, as in Zhang et al. 2017, "Understanding deep learning requires rethinking
//! generalization", section 2.
//!
//! Random numbers come from the caller's generator: the same generator gives the same corruption.

use ndarray::{Array3, Array4, Axis};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_distr::StandardNormal;

/// Replaces each label, with probability `share`, by one drawn uniformly from `classes` classes, which may be the true one: a
/// share of `share (classes - 1) / classes` becomes wrong.
///
/// As many numbers are drawn for a small share as for a large one, so that with the same generator the labels replaced at
/// a small share are among those replaced at a larger one, and by the same.
///
/// # Panics
/// If there are no classes.
pub fn corrupt_labels(labels: &mut [u8], classes: u8, share: f64, rng: &mut impl Rng) {
    for label in labels {
        let (chance, other) = (rng.r#gen::<f64>(), rng.gen_range(0..classes));
        if chance < share {
            *label = other;
        }
    }
}

/// A permutation of `count` pixels, for [`shuffle_pixels`].
pub fn permutation(count: usize, rng: &mut impl Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(rng);
    order
}

/// The same permutation for every image of [N, H, W]: pixel k, row by row, becomes what pixel `permutation[k]` was.
///
/// # Panics
/// If the permutation is not one of H W pixels.
pub fn shuffle_pixels(images: &mut Array3<u8>, permutation: &[usize]) {
    let (_, rows, columns) = images.dim();
    assert_eq!(permutation.len(), rows * columns, "one place for each pixel");
    for mut image in images.axis_iter_mut(Axis(0)) {
        let before: Vec<u8> = image.iter().copied().collect();
        image.iter_mut().zip(permutation).for_each(|(pixel, &from)| *pixel = before[from]);
    }
}

/// A permutation of its own for every image of [N, H, W]: what is left is how many pixels have each grey value.
pub fn randomise_pixels(images: &mut Array3<u8>, rng: &mut impl Rng) {
    for mut image in images.axis_iter_mut(Axis(0)) {
        let mut pixels: Vec<u8> = image.iter().copied().collect();
        pixels.shuffle(rng);
        image.iter_mut().zip(pixels).for_each(|(pixel, new)| *pixel = new);
    }
}

/// Noise in the place of images [count, 1, side, side]: every pixel standard normal, which has the mean and the standard
/// deviation of normalised pixels.
pub fn gaussian_images(count: usize, side: usize, rng: &mut impl Rng) -> Array4<f32> {
    Array4::from_shape_simple_fn((count, 1, side, side), || rng.sample(StandardNormal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    fn labels(count: usize) -> Vec<u8> {
        (0..count).map(|n| (n % 10) as u8).collect()
    }

    fn corrupted(share: f64, seed: u64) -> Vec<u8> {
        let mut labels = labels(20_000);
        corrupt_labels(&mut labels, 10, share, &mut rng(seed));
        labels
    }

    /// Two images of 256 different grey values.
    fn images() -> Array3<u8> {
        Array3::from_shape_fn((2, 16, 16), |(n, i, j)| (16 * i + j) as u8 ^ (n as u8))
    }

    fn sorted(image: ndarray::ArrayView2<u8>) -> Vec<u8> {
        let mut pixels: Vec<u8> = image.iter().copied().collect();
        pixels.sort_unstable();
        pixels
    }

    #[test]
    fn nine_tenths_of_the_replaced_labels_are_wrong() {
        let truth = labels(20_000);
        for share in [0., 0.25, 0.5, 1.] {
            let found = corrupted(share, 1);
            let wrong = found.iter().zip(&truth).filter(|(a, b)| a != b).count() as f64 / 20_000.;
            // Four standard deviations of a share of 20,000.
            let expected = 0.9 * share;
            let tolerance = 4. * (expected * (1. - expected) / 20_000.).sqrt();
            assert!((wrong - expected).abs() <= tolerance, "{wrong} at {share}");
        }
        let mut counts = [0_usize; 10];
        for label in corrupted(1., 1) {
            counts[usize::from(label)] += 1;
        }
        // Uniform: chi-squared with 9 degrees of freedom passes 27.9 once in a thousand.
        let chi: f64 = counts.iter().map(|&count| (count as f64 - 2000.).powi(2) / 2000.).sum();
        assert!(chi < 27.9, "{counts:?}");
    }

    #[test]
    fn a_larger_share_replaces_what_a_smaller_one_does_and_more() {
        let [truth, few, many] = [0., 0.25, 0.75].map(|share| corrupted(share, 1));
        assert_eq!(truth, labels(20_000));
        for ((truth, few), many) in truth.iter().zip(&few).zip(&many) {
            assert!(few == truth || few == many);
        }
        assert_eq!(few, corrupted(0.25, 1));
        assert_ne!(few, corrupted(0.25, 2));
    }

    #[test]
    fn one_permutation_keeps_what_is_common_to_images() {
        let before = images();
        let order = permutation(256, &mut rng(1));
        assert_eq!(order, permutation(256, &mut rng(1)));
        let mut after = before.clone();
        shuffle_pixels(&mut after, &order);
        assert_ne!(after, before);
        for (k, &from) in order.iter().enumerate() {
            for n in 0..2 {
                assert_eq!(after[(n, k / 16, k % 16)], before[(n, from / 16, from % 16)]);
            }
        }
        let mut everywhere = order.clone();
        everywhere.sort_unstable();
        assert!(everywhere.into_iter().eq(0..256), "every pixel goes somewhere");
    }

    #[test]
    fn permutations_of_their_own_keep_each_images_grey_values() {
        let before = images();
        let mut after = before.clone();
        randomise_pixels(&mut after, &mut rng(1));
        for n in 0..2 {
            let [old, new] = [&before, &after].map(|images| images.index_axis(Axis(0), n));
            assert_eq!(sorted(old), sorted(new));
            assert_ne!(old, new);
        }
        // Were the permutation the same, so would be the difference, which is 1 in the last bit everywhere.
        let same = (0..256).filter(|k| after[(0, k / 16, k % 16)] ^ 1 == after[(1, k / 16, k % 16)]).count();
        assert!(same < 20, "{same} of 256");
        let mut again = before;
        randomise_pixels(&mut again, &mut rng(1));
        assert_eq!(again, after);
    }

    #[test]
    fn noise_is_standard_normal() {
        let noise = gaussian_images(100, 32, &mut rng(1));
        assert_eq!(noise.dim(), (100, 1, 32, 32));
        let moment =
            |power| noise.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / noise.len() as f64;
        // Standard errors with 102,400 numbers: 0.003, 0.0044, 0.012, 0.031.
        for (power, expected, error) in [(1, 0., 0.003), (2, 1., 0.0044), (3, 0., 0.012), (4, 3., 0.031)] {
            assert!((moment(power) - expected).abs() < 4. * error, "moment {power}: {}", moment(power));
        }
        assert_eq!(noise, gaussian_images(100, 32, &mut rng(1)));
    }
}
