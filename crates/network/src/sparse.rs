//! A dense layer on a block-sparse input, on a CPU with AVX-512.
//!
//! Of MNIST's pixels four in five are exactly 0, and of its blocks of eight pixels three in five hold nothing else. Products with these are
//! left out, forwards and in the gradient of the weights. Where few blocks are zero (normalised images, for instance), libtorch's
//! dense product is the faster one, and runs.
//!
//! The same numbers as the plain operators, but for the order of sums: tested below. Weights or gradients that are not finite are not
//! seen where all that they are multiplied with is 0: a network that has diverged stays so, but not with NaN in every weight.

use crate::slices::{is_plain, slice, slice_mut};
use crate::{Result, block};
use tch::{Device, Kind, Tensor};

/// Pixels of a block.
const BLOCK: usize = 8;
/// Above this share of blocks that are not zero, the dense product is faster.
const MOST_NONZERO: f64 = 0.6;
/// Fewer outputs than this are not worth the search for zero blocks.
const FEWEST_OUTPUTS: usize = 4;

/// Where the blocks of a batch are that are not zero.
#[derive(Debug)]
pub struct NonzeroBlocks {
    /// Indices of their first pixels, image by image.
    offsets: Vec<u32>,
    /// `[B + 1]`, where each image's begin.
    starts: Vec<usize>,
    /// Of one image.
    features: usize,
}

impl NonzeroBlocks {
    /// Of inputs `[B, F]`, if leaving out zero blocks pays for a layer with these weights `[O, F]`.
    pub fn of(x: &Tensor, weight: &Tensor) -> Option<Self> {
        let fits = block::available()
            && is_plain::<f32>(x)
            && is_plain::<f32>(weight)
            && x.dim() == 2
            && weight.dim() == 2
            && x.numel() > 0
            && (x.size()[1] as usize).is_multiple_of(BLOCK)
            && x.size()[1] == weight.size()[1]
            && weight.size()[0] as usize >= FEWEST_OUTPUTS;
        if !fits {
            return None;
        }
        let features = x.size()[1] as usize;
        // SAFETY: the processor was asked above.
        let blocks = unsafe { kernels::nonzero_blocks(slice(x), features) };
        let share = blocks.offsets.len() as f64 * BLOCK as f64 / x.numel() as f64;
        (share <= MOST_NONZERO).then_some(blocks)
    }

    /// The kernels read where these blocks say.
    fn check(&self, x: &Tensor, features: i64) {
        let whose = [self.starts.len() as i64 - 1, self.features as i64];
        assert!(x.size() == whose && features == whose[1], "blocks of another batch");
    }
}

/// `y = x Wᵀ + b`: `[B, F]`, `[O, F]` and `[O]` to `[B, O]`. No graph is built.
pub fn forward(blocks: &NonzeroBlocks, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let bias = bias.f_contiguous()?;
    let (outputs, features) = weight.size2()?;
    blocks.check(x, features);
    let y = Tensor::f_empty([x.size()[0], outputs], (Kind::Float, Device::Cpu))?;
    // SAFETY: y was just made; `NonzeroBlocks::of` asked the processor.
    unsafe {
        kernels::forward(blocks, slice(x), slice(weight), slice(&bias), slice_mut(&y), features as usize);
    }
    Ok(y)
}

/// From the gradient of y `[B, O]`, that of W, `gᵀ x`, and of b, `Σ g`: into the first numbers of `flat`, W's before b's.
pub fn backward(blocks: &NonzeroBlocks, x: &Tensor, gradient: &Tensor, flat: &Tensor) -> Result<()> {
    let gradient = gradient.f_contiguous()?;
    let (_, outputs) = gradient.size2()?;
    let features = x.size()[1];
    blocks.check(x, features);
    assert_eq!(gradient.size()[0], x.size()[0], "a gradient for each image");
    let weight = flat.f_narrow(0, 0, outputs * features)?;
    // SAFETY: nothing else looks at these numbers meanwhile; `NonzeroBlocks::of` asked the processor.
    unsafe {
        kernels::weight_gradient(blocks, slice(x), slice(&gradient), slice_mut(&weight), features as usize);
    }
    let bias = gradient.f_sum_dim_intlist(Some([0i64].as_slice()), false, Kind::Float)?;
    flat.f_narrow(0, outputs * features, outputs)?.f_copy_(&bias)?;
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
mod kernels {
    //! Never called: [`super::NonzeroBlocks::of`] finds none.
    use super::NonzeroBlocks;

    pub unsafe fn nonzero_blocks(_: &[f32], _: usize) -> NonzeroBlocks {
        unreachable!()
    }

    pub unsafe fn forward(_: &NonzeroBlocks, _: &[f32], _: &[f32], _: &[f32], _: &mut [f32], _: usize) {
        unreachable!()
    }

    pub unsafe fn weight_gradient(_: &NonzeroBlocks, _: &[f32], _: &[f32], _: &mut [f32], _: usize) {
        unreachable!()
    }
}

#[cfg(target_arch = "x86_64")]
mod kernels {
    use super::{BLOCK, NonzeroBlocks};
    use std::arch::x86_64::{
        __m256, _CMP_NEQ_UQ, _mm_add_ps, _mm_storeu_ps, _mm256_castps256_ps128, _mm256_cmp_ps_mask,
        _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_hadd_ps, _mm256_loadu_ps, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_storeu_ps,
    };

    /// Outputs at a time: their weights for one image stay in the first-level cache, and no sum waits for another.
    const TILE: usize = 8;

    /// How many of the outputs that are left come next.
    fn units(left: usize) -> usize {
        match left {
            TILE.. => TILE,
            4.. => 4,
            _ => 1,
        }
    }

    /// A block of pixels, weights or gradients.
    ///
    /// # Safety
    /// [`BLOCK`] numbers from `at` on are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn load(numbers: &[f32], at: usize) -> __m256 {
        debug_assert!(at + BLOCK <= numbers.len());
        // SAFETY: the caller guarantees it.
        unsafe { _mm256_loadu_ps(numbers.as_ptr().add(at)) }
    }

    #[target_feature(enable = "avx512f,avx512vl,fma")]
    pub fn nonzero_blocks(x: &[f32], features: usize) -> NonzeroBlocks {
        let mut offsets = Vec::with_capacity(x.len() / BLOCK);
        let mut starts = Vec::with_capacity(x.len() / features + 1);
        for image in x.chunks_exact(features) {
            starts.push(offsets.len());
            for at in (0..features).step_by(BLOCK) {
                // SAFETY: features are a multiple of a block.
                let block = unsafe { load(image, at) };
                // NaN is not zero.
                if _mm256_cmp_ps_mask::<_CMP_NEQ_UQ>(block, _mm256_setzero_ps()) != 0 {
                    offsets.push(at as u32);
                }
            }
        }
        starts.push(offsets.len());
        NonzeroBlocks { offsets, starts, features }
    }

    /// Images at a time: they stay near while tile after tile meets them.
    const IMAGES: usize = 32;

    #[target_feature(enable = "avx512f,avx512vl,fma")]
    pub fn forward(
        blocks: &NonzeroBlocks,
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        y: &mut [f32],
        features: usize,
    ) {
        let outputs = bias.len();
        let parts = x.chunks(IMAGES * features).zip(y.chunks_mut(IMAGES * outputs));
        for (part, (x, y)) in parts.enumerate() {
            let mut output = 0;
            while output < outputs {
                let units = units(outputs - output);
                let weight = &weight[output * features..(output + units) * features];
                let bias = &bias[output..output + units];
                let images = x.chunks_exact(features).zip(y.chunks_exact_mut(outputs));
                for (image, (x, y)) in images.enumerate() {
                    let image = part * IMAGES + image;
                    let offsets = &blocks.offsets[blocks.starts[image]..blocks.starts[image + 1]];
                    let mut sums = [_mm256_setzero_ps(); TILE];
                    // SAFETY: every block lies within an image and, for every unit, within its weights.
                    unsafe {
                        match units {
                            TILE => sums = products::<TILE>(offsets, x, weight, features),
                            4 => sums[..4].copy_from_slice(&products::<4>(offsets, x, weight, features)),
                            _ => sums[..1].copy_from_slice(&products::<1>(offsets, x, weight, features)),
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

    /// For N units, the sum over an image's blocks, each lane by itself.
    ///
    /// # Safety
    /// Every block lies within `x`, and `weight` holds N times as many numbers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn products<const N: usize>(
        offsets: &[u32],
        x: &[f32],
        weight: &[f32],
        features: usize,
    ) -> [__m256; N] {
        let mut sums = [_mm256_setzero_ps(); N];
        for &block in offsets {
            let block = block as usize;
            // SAFETY: the caller guarantees it.
            let pixels = unsafe { load(x, block) };
            for (unit, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller guarantees it.
                *sum = _mm256_fmadd_ps(pixels, unsafe { load(weight, unit * features + block) }, *sum);
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

    /// Each block of a tile's weights is summed over the images in which it is not zero before it is stored.
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    pub fn weight_gradient(
        blocks: &NonzeroBlocks,
        x: &[f32],
        gradient: &[f32],
        dw: &mut [f32],
        features: usize,
    ) {
        let outputs = dw.len() / features;
        let (images, starts) = images_by_block(blocks, features);
        let mut output = 0;
        while output < outputs {
            let units = units(outputs - output);
            let dw = &mut dw[output * features..(output + units) * features];
            for (block, range) in starts.windows(2).enumerate() {
                let (images, at) = (&images[range[0]..range[1]], block * BLOCK);
                let place = [features, outputs, output, at];
                // SAFETY: the images are those of x and of the gradient, and the block lies within each.
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

    /// For each block of an image, in which images it is not zero, and where its list begins.
    fn images_by_block(blocks: &NonzeroBlocks, features: usize) -> (Vec<u32>, Vec<usize>) {
        let mut starts = vec![0; features / BLOCK + 1];
        for &at in &blocks.offsets {
            starts[at as usize / BLOCK + 1] += 1;
        }
        for block in 1..starts.len() {
            starts[block] += starts[block - 1];
        }
        let (mut images, mut ends) = (vec![0; blocks.offsets.len()], starts.clone());
        for (image, range) in blocks.starts.windows(2).enumerate() {
            for &at in &blocks.offsets[range[0]..range[1]] {
                let end = &mut ends[at as usize / BLOCK];
                images[*end] = image as u32;
                *end += 1;
            }
        }
        (images, starts)
    }

    /// Of N units, one block: stores `Σ g x` over the images.
    ///
    /// # Safety
    /// For every image, x and the gradient `[B, outputs]` hold its row; the block at `at` lies within it, and N units from `output` on exist.
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
            // SAFETY: the caller guarantees it.
            let (pixels, g) = unsafe {
                let g = gradient.get_unchecked(image * outputs + output..image * outputs + output + N);
                (load(x, image * features + at), g)
            };
            for (sum, &g) in sums.iter_mut().zip(g) {
                *sum = _mm256_fmadd_ps(_mm256_set1_ps(g), pixels, *sum);
            }
        }
        for (unit, &sum) in sums.iter().enumerate() {
            let block = &mut dw[unit * features + at..][..BLOCK];
            // SAFETY: as many numbers.
            unsafe { _mm256_storeu_ps(block.as_mut_ptr(), sum) };
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
            batch in 1i64..6, blocks in 1i64..6, outputs in 4i64..30, filled in 0u64..15, salt: u64,
        ) {
            let features = blocks * BLOCK as i64;
            let (x, weight) = (numbers(&[batch, features], filled, salt), numbers(&[outputs, features], 90, salt ^ 1));
            let (bias, gradient) = (numbers(&[outputs], 90, salt ^ 2), numbers(&[batch, outputs], 50, salt ^ 3));
            if let Some(blocks) = NonzeroBlocks::of(&x, &weight) {
                let y = forward(&blocks, &x, &weight, &bias).unwrap();
                prop_assert!(y.equal(&x.linear(&weight, Some(&bias))));
                let flat = Tensor::zeros([outputs * features + outputs + 3], (Kind::Float, Device::Cpu));
                backward(&blocks, &x, &gradient, &flat).unwrap();
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
        let (zeros, full) = (numbers(&[3, 16], 0, 1), numbers(&[3, 16], 100, 1) + 10.);
        let weight = numbers(&[5, 16], 90, 2);
        assert_eq!(NonzeroBlocks::of(&zeros, &weight).is_some(), block::available());
        assert!(NonzeroBlocks::of(&full, &weight).is_none());
        assert!(NonzeroBlocks::of(&zeros, &weight.narrow(0, 0, 3)).is_none());
        assert!(NonzeroBlocks::of(&zeros.to_kind(Kind::Double), &weight).is_none());
        assert!(NonzeroBlocks::of(&numbers(&[3, 15], 0, 1), &numbers(&[5, 15], 90, 2)).is_none());
        let nan = &zeros + numbers(&[3, 16], 0, 1).fill_(f64::NAN);
        assert!(NonzeroBlocks::of(&nan, &weight).is_none());
    }
}
