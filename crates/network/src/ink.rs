//! A dense layer on images that are mostly paper, on a CPU with AVX-512.
//!
//! Of MNIST's pixels four in five are exactly 0, and of the runs of eight pixels three in five hold nothing else. Products with these are left
//! out, forwards and in the gradient of the weights. Where few runs are empty (normalised images, for instance), libtorch's dense
//! product is the faster one, and runs.
//!
//! The same numbers as the plain operators, but for the order of sums: tested below. Weights that are not finite are not seen where
//! all that they are multiplied with is 0.

use crate::slices::{slice, slice_mut};
use crate::{Result, block};
use tch::{Device, Kind, Tensor};

/// Pixels of a run.
const RUN: usize = 8;
/// Above this share of runs that are not empty, the dense product is faster.
const MOST_INK: f64 = 0.6;
/// Fewer outputs than this are not worth the search for empty runs.
const FEWEST_OUTPUTS: usize = 4;

/// Where the runs of a batch are that are not empty.
#[derive(Debug)]
pub struct Ink {
    /// Indices of the first pixels of these runs, image by image.
    runs: Vec<u32>,
    /// `[B + 1]`, where each image's begin.
    starts: Vec<usize>,
}

impl Ink {
    /// Of inputs `[B, F]`, if leaving out empty runs pays for a layer with these weights `[O, F]`.
    pub fn of(x: &Tensor, weight: &Tensor) -> Option<Self> {
        let on_cpu = |t: &Tensor| t.device() == Device::Cpu && t.kind() == Kind::Float && t.is_contiguous();
        let fits = block::available()
            && on_cpu(x)
            && on_cpu(weight)
            && x.dim() == 2
            && weight.dim() == 2
            && x.numel() > 0
            && (x.size()[1] as usize).is_multiple_of(RUN)
            && x.size()[1] == weight.size()[1]
            && weight.size()[0] as usize >= FEWEST_OUTPUTS;
        if !fits {
            return None;
        }
        let features = x.size()[1] as usize;
        // SAFETY: the processor was asked above.
        let ink = unsafe { kernels::ink(slice(x), features) };
        let share = ink.runs.len() as f64 * RUN as f64 / x.numel() as f64;
        (share <= MOST_INK).then_some(ink)
    }
}

/// `y = x Wᵀ + b`: `[B, F]`, `[O, F]` and `[O]` to `[B, O]`. No graph is built.
pub fn forward(ink: &Ink, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let bias = bias.f_contiguous()?;
    let (outputs, features) = weight.size2()?;
    let y = Tensor::f_empty([x.size()[0], outputs], (Kind::Float, Device::Cpu))?;
    // SAFETY: y was just made; `Ink::of` asked the processor.
    unsafe {
        kernels::forward(ink, slice(x), slice(weight), slice(&bias), slice_mut(&y), features as usize);
    }
    Ok(y)
}

/// From the gradient of y `[B, O]`, that of W, `gᵀ x`, and of b, `Σ g`: into the first numbers of `flat`, W's before b's.
pub fn backward(ink: &Ink, x: &Tensor, gradient: &Tensor, flat: &Tensor) -> Result<()> {
    let gradient = gradient.f_contiguous()?;
    let (_, outputs) = gradient.size2()?;
    let features = x.size()[1];
    let weight = flat.f_narrow(0, 0, outputs * features)?;
    // SAFETY: nothing else looks at these numbers meanwhile; `Ink::of` asked the processor.
    unsafe {
        kernels::weight_gradient(ink, slice(x), slice(&gradient), slice_mut(&weight), features as usize);
    }
    let bias = gradient.f_sum_dim_intlist(Some([0i64].as_slice()), false, Kind::Float)?;
    flat.f_narrow(0, outputs * features, outputs)?.f_copy_(&bias)?;
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
mod kernels {
    //! Never called: [`super::Ink::of`] finds none.
    use super::Ink;

    pub unsafe fn ink(_: &[f32], _: usize) -> Ink {
        unreachable!()
    }

    pub unsafe fn forward(_: &Ink, _: &[f32], _: &[f32], _: &[f32], _: &mut [f32], _: usize) {
        unreachable!()
    }

    pub unsafe fn weight_gradient(_: &Ink, _: &[f32], _: &[f32], _: &mut [f32], _: usize) {
        unreachable!()
    }
}

#[cfg(target_arch = "x86_64")]
mod kernels {
    use super::{Ink, RUN};
    use std::arch::x86_64::{
        __m256, _CMP_NEQ_UQ, _mm_add_ps, _mm_storeu_ps, _mm256_castps256_ps128, _mm256_cmp_ps_mask,
        _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_hadd_ps, _mm256_loadu_ps, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_storeu_ps,
    };

    /// Outputs at a time: their weights for one image stay in the first-level cache, and no sum waits for another.
    const TILE: usize = 8;

    /// A run of pixels, weights or gradients.
    ///
    /// # Safety
    /// [`RUN`] numbers from `at` on are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn load(numbers: &[f32], at: usize) -> __m256 {
        debug_assert!(at + RUN <= numbers.len());
        // SAFETY: by the caller's word.
        unsafe { _mm256_loadu_ps(numbers.as_ptr().add(at)) }
    }

    #[target_feature(enable = "avx512f,avx512vl,fma")]
    pub fn ink(x: &[f32], features: usize) -> Ink {
        let mut runs = Vec::with_capacity(x.len() / RUN);
        let mut starts = Vec::with_capacity(x.len() / features + 1);
        for image in x.chunks_exact(features) {
            starts.push(runs.len());
            for at in (0..features).step_by(RUN) {
                // SAFETY: features are a multiple of a run.
                let run = unsafe { load(image, at) };
                // NaN is ink.
                if _mm256_cmp_ps_mask::<_CMP_NEQ_UQ>(run, _mm256_setzero_ps()) != 0 {
                    runs.push(at as u32);
                }
            }
        }
        starts.push(runs.len());
        Ink { runs, starts }
    }

    /// Images at a time: they stay near while tile after tile meets them.
    const IMAGES: usize = 32;

    #[target_feature(enable = "avx512f,avx512vl,fma")]
    pub fn forward(ink: &Ink, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32], features: usize) {
        let outputs = bias.len();
        let parts = x.chunks(IMAGES * features).zip(y.chunks_mut(IMAGES * outputs));
        for (part, (x, y)) in parts.enumerate() {
            let mut output = 0;
            while output < outputs {
                let units = match outputs - output {
                    TILE.. => TILE,
                    4.. => 4,
                    _ => 1,
                };
                let weight = &weight[output * features..(output + units) * features];
                let bias = &bias[output..output + units];
                let images = x.chunks_exact(features).zip(y.chunks_exact_mut(outputs));
                for (image, (x, y)) in images.enumerate() {
                    let image = part * IMAGES + image;
                    let runs = &ink.runs[ink.starts[image]..ink.starts[image + 1]];
                    let mut sums = [_mm256_setzero_ps(); TILE];
                    // SAFETY: every run lies within an image and, for every unit, within its weights.
                    unsafe {
                        match units {
                            TILE => sums = products::<TILE>(runs, x, weight, features),
                            4 => sums[..4].copy_from_slice(&products::<4>(runs, x, weight, features)),
                            _ => sums[..1].copy_from_slice(&products::<1>(runs, x, weight, features)),
                        }
                    }
                    let y = &mut y[output..output + units];
                    for ((y, sum), bias) in y.iter_mut().zip(eight_totals(&sums)).zip(bias) {
                        *y = sum + bias;
                    }
                }
                output += units;
            }
        }
    }

    /// For N units, the sum over an image's runs, each lane by itself.
    ///
    /// # Safety
    /// Every run lies within `x`, and `weight` holds N times as many numbers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn products<const N: usize>(
        runs: &[u32],
        x: &[f32],
        weight: &[f32],
        features: usize,
    ) -> [__m256; N] {
        let mut sums = [_mm256_setzero_ps(); N];
        for &run in runs {
            let run = run as usize;
            // SAFETY: by the caller's word.
            let pixels = unsafe { load(x, run) };
            for (unit, sum) in sums.iter_mut().enumerate() {
                // SAFETY: by the caller's word.
                *sum = _mm256_fmadd_ps(pixels, unsafe { load(weight, unit * features + run) }, *sum);
            }
        }
        sums
    }

    /// The sum of each one's lanes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    fn eight_totals(sums: &[__m256; TILE]) -> [f32; TILE] {
        let four = |of: &[__m256]| {
            let pairs = _mm256_hadd_ps(_mm256_hadd_ps(of[0], of[1]), _mm256_hadd_ps(of[2], of[3]));
            _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs))
        };
        let mut totals = [0.; TILE];
        // SAFETY: four numbers each.
        unsafe {
            _mm_storeu_ps(totals.as_mut_ptr(), four(&sums[..4]));
            _mm_storeu_ps(totals.as_mut_ptr().add(4), four(&sums[4..]));
        }
        totals
    }

    /// Each run of a tile's weights is summed over the images with ink there before it is stored.
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    pub fn weight_gradient(ink: &Ink, x: &[f32], gradient: &[f32], dw: &mut [f32], features: usize) {
        let outputs = dw.len() / features;
        let (images, starts) = images_by_run(ink, features);
        let mut output = 0;
        while output < outputs {
            let units = match outputs - output {
                TILE.. => TILE,
                4.. => 4,
                _ => 1,
            };
            let dw = &mut dw[output * features..(output + units) * features];
            for (run, range) in starts.windows(2).enumerate() {
                let (images, at) = (&images[range[0]..range[1]], run * RUN);
                let place = [features, outputs, output, at];
                // SAFETY: the images are those of x and of the gradient, and the run lies within each.
                unsafe {
                    match units {
                        TILE => outer::<TILE>(images, x, gradient, dw, place),
                        4 => outer::<4>(images, x, gradient, dw, place),
                        _ => outer::<1>(images, x, gradient, dw, place),
                    }
                }
            }
            output += units;
        }
    }

    /// For each run of an image, which images have ink there, and where its list begins.
    fn images_by_run(ink: &Ink, features: usize) -> (Vec<u32>, Vec<usize>) {
        let mut starts = vec![0; features / RUN + 1];
        for &at in &ink.runs {
            starts[at as usize / RUN + 1] += 1;
        }
        for run in 1..starts.len() {
            starts[run] += starts[run - 1];
        }
        let (mut images, mut ends) = (vec![0; ink.runs.len()], starts.clone());
        for (image, range) in ink.starts.windows(2).enumerate() {
            for &at in &ink.runs[range[0]..range[1]] {
                let end = &mut ends[at as usize / RUN];
                images[*end] = image as u32;
                *end += 1;
            }
        }
        (images, starts)
    }

    /// Of N units, one run: stores `Σ g x` over the images.
    ///
    /// # Safety
    /// For every image, x and the gradient `[B, outputs]` hold its row; the run at `at` lies within it, and N units from `output` on exist.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn outer<const N: usize>(
        images: &[u32],
        x: &[f32],
        gradient: &[f32],
        dw: &mut [f32],
        [features, outputs, output, at]: [usize; 4],
    ) {
        let mut sums = [_mm256_setzero_ps(); N];
        for &image in images {
            let image = image as usize;
            // SAFETY: by the caller's word.
            let (pixels, g) = unsafe {
                let g = gradient.get_unchecked(image * outputs + output..image * outputs + output + N);
                (load(x, image * features + at), g)
            };
            for (sum, &g) in sums.iter_mut().zip(g) {
                *sum = _mm256_fmadd_ps(_mm256_set1_ps(g), pixels, *sum);
            }
        }
        for (unit, &sum) in sums.iter().enumerate() {
            let run = &mut dw[unit * features + at..][..RUN];
            // SAFETY: as many numbers.
            unsafe { _mm256_storeu_ps(run.as_mut_ptr(), sum) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Small whole numbers, of which so many in a hundred are not 0: sums are exact, so that their order does not matter.
    fn numbers(size: &[i64], filled: u64, salt: u64) -> Tensor {
        let mut state = salt.wrapping_mul(2).wrapping_add(1);
        let count: i64 = size.iter().product();
        let numbers: Vec<f32> = (0..count)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (filled_here, value) = ((state >> 33) % 100 < filled, (state >> 40) % 7);
                if filled_here { value as f32 - 3. } else { 0. }
            })
            .collect();
        Tensor::from_slice(&numbers).view(size)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn equals_plain_operators(
            batch in 1i64..6, runs in 1i64..6, outputs in 4i64..30, filled in 0u64..15, salt: u64,
        ) {
            let features = runs * RUN as i64;
            let (x, weight) = (numbers(&[batch, features], filled, salt), numbers(&[outputs, features], 90, salt ^ 1));
            let (bias, gradient) = (numbers(&[outputs], 90, salt ^ 2), numbers(&[batch, outputs], 50, salt ^ 3));
            if let Some(ink) = Ink::of(&x, &weight) {
                let y = forward(&ink, &x, &weight, &bias).unwrap();
                prop_assert!(y.equal(&x.linear(&weight, Some(&bias))));
                let flat = Tensor::zeros([outputs * features + outputs + 3], (Kind::Float, Device::Cpu));
                backward(&ink, &x, &gradient, &flat).unwrap();
                let expected = [
                    gradient.transpose(0, 1).matmul(&x).flatten(0, -1),
                    gradient.sum_dim_intlist([0i64].as_slice(), false, Kind::Float),
                    Tensor::zeros([3], (Kind::Float, Device::Cpu)),
                ];
                prop_assert!(flat.equal(&Tensor::cat(&expected, 0)));
            }
        }
    }

    #[test]
    fn says_where_it_does_not_pay() {
        let (paper, ink) = (numbers(&[3, 16], 0, 1), numbers(&[3, 16], 100, 1) + 10.);
        let weight = numbers(&[5, 16], 90, 2);
        assert_eq!(Ink::of(&paper, &weight).is_some(), block::available());
        assert!(Ink::of(&ink, &weight).is_none());
        assert!(Ink::of(&paper, &weight.narrow(0, 0, 3)).is_none());
        assert!(Ink::of(&paper.to_kind(Kind::Double), &weight).is_none());
        assert!(Ink::of(&numbers(&[3, 15], 0, 1), &numbers(&[5, 15], 90, 2)).is_none());
        let nan = &paper + numbers(&[3, 16], 0, 1).fill_(f64::NAN);
        assert!(Ink::of(&nan, &weight).is_none());
    }
}
