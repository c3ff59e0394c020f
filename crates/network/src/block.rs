//! Convolution, ReLU and 2x2 max-pooling as one block, on a CPU with AVX-512.
//!
//! Two facts make it faster than the operators one by one. ReLU commutes with the maximum, so a block needs its
//! convolution's output for no longer than it takes to compare four numbers. And of the gradient with respect to that
//! output at most a quarter is not zero: only each window's winner gets any, and none where ReLU is closed. The backward
//! pass therefore walks a list of winners instead of convolving.
//!
//! The same numbers as the plain operators, but for the order of sums: tested below, ties included. NaN and infinities pass
//! forward as they do there; backward, plain operators multiply them with the zeros of the losing places and so spread NaN
//! further. Where these kernels do not fit (f64, another processor, other windows), the plain operators run.

use crate::Result;
use crate::slices::{slice, slice_mut};
use tch::{Device, Kind, Tensor};

pub mod tangent;

/// What the backward pass needs of a block's forward pass.
#[derive(Debug)]
pub struct Saved {
    /// `[B, C, H, W]`, with the zeros of the padding.
    x: Tensor,
    /// Per pooled number, which of its window won (row by row, 0 to 3), or 4 where ReLU is closed.
    winners: Vec<u8>,
    padding: i64,
}

/// Gradients of a block.
#[derive(Debug)]
pub struct BlockGradient {
    /// Of the weight's shape.
    pub weight: Tensor,
    /// Of the bias's shape.
    pub bias: Tensor,
    /// Of x's shape, if it was asked for.
    pub x: Option<Tensor>,
}

/// Rows of a kernel are handled as vectors of eight.
pub const MAX_KERNEL: usize = 8;
/// Below this many input channels our convolution is faster than libtorch's, which is made for more.
const OWN_CONVOLUTION_CHANNELS: usize = 3;

/// Whether the kernels can do it: f32 on a CPU with AVX-512, a square kernel of at most 8x8.
pub fn fits(x: &Tensor, weight: &Tensor) -> bool {
    let on_cpu = |tensor: &Tensor| tensor.device() == Device::Cpu && tensor.kind() == Kind::Float;
    available()
        && on_cpu(x)
        && on_cpu(weight)
        && x.dim() == 4
        && x.numel() > 0
        && weight.dim() == 4
        && weight.size()[2] as usize <= MAX_KERNEL
}

/// Whether this processor has what the kernels need.
#[cfg(target_arch = "x86_64")]
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("fma")
}

/// Whether this processor has what the kernels need.
#[cfg(not(target_arch = "x86_64"))]
pub fn available() -> bool {
    false
}

/// `[B, C, H, W]`, `[O, C, K, K]` and `[O]` to `[B, O, H' / 2, W' / 2]`, with H' and W' the convolution's sizes.
///
/// `rectified` says whether ReLU comes before (or, the same, after) the pooling. No graph is built.
pub fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    padding: i64,
    rectified: bool,
) -> Result<(Tensor, Saved)> {
    assert!(fits(x, weight), "callers ask first");
    let _no_grad = tch::no_grad_guard();
    let x =
        if padding > 0 { x.f_constant_pad_nd([padding; 4])? } else { x.shallow_clone() }.f_contiguous()?;
    let shape = Shape::of(&x, weight);
    let (weight, bias) = (weight.f_contiguous()?, bias.f_contiguous()?);
    let y = Tensor::f_empty(shape.pooled(), (Kind::Float, Device::Cpu))?;
    let mut winners = vec![0; y.numel()];
    if shape.inputs <= OWN_CONVOLUTION_CHANNELS {
        kernels::convolve_and_pool(
            slice(&x),
            slice(&weight),
            slice(&bias),
            // SAFETY: y was just made.
            unsafe { slice_mut(&y) },
            &mut winners,
            shape,
            rectified,
        );
    } else {
        let convolved = x.f_conv2d(&weight, Some(&bias), 1, 0, 1, 1)?.f_contiguous()?;
        // SAFETY: y was just made.
        let rows = unsafe { slice_mut(&y) };
        kernels::pool(slice(&convolved), rows, &mut winners, shape, rectified);
    }
    Ok((y, Saved { x, winners, padding }))
}

/// From so many output channels on, they fill a vector well enough.
const LANES_OF_OUTPUTS: i64 = 12;

/// [`forward`] without what the backward pass needs. Many output channels go side by side in a vector, and the convolution's outputs never
/// leave the registers.
pub fn evaluate(x: &Tensor, weight: &Tensor, bias: &Tensor, padding: i64, rectified: bool) -> Result<Tensor> {
    let few = (x.size()[1] as usize) <= OWN_CONVOLUTION_CHANNELS;
    if few || weight.size()[0] < LANES_OF_OUTPUTS {
        return Ok(forward(x, weight, bias, padding, rectified)?.0);
    }
    assert!(fits(x, weight), "callers ask first");
    let _no_grad = tch::no_grad_guard();
    let x =
        if padding > 0 { x.f_constant_pad_nd([padding; 4])? } else { x.shallow_clone() }.f_contiguous()?;
    let shape = Shape::of(&x, weight);
    let y = Tensor::f_empty(shape.pooled(), (Kind::Float, Device::Cpu))?;
    // Taps by outputs, these padded with zeros to whole vectors.
    let room = (16 - weight.size()[0] % 16) % 16;
    let wide = |t: &Tensor| t.f_constant_pad_nd([0, room])?.f_contiguous();
    let taps = wide(&weight.f_flatten(1, -1)?.f_transpose(0, 1)?)?;
    let bias = wide(bias)?;
    // SAFETY: y was just made.
    kernels::convolve_outputs_side_by_side(
        slice(&x),
        slice(&taps),
        slice(&bias),
        unsafe { slice_mut(&y) },
        shape,
        rectified,
    );
    Ok(y)
}

/// Gradients from the one with respect to the block's output, `[B, O, H' / 2, W' / 2]`.
pub fn backward(saved: &Saved, weight: &Tensor, gradient: &Tensor, with_x: bool) -> Result<BlockGradient> {
    let _no_grad = tch::no_grad_guard();
    let (weight, gradient) = (weight.f_contiguous()?, gradient.f_contiguous()?);
    let shape = Shape::of(&saved.x, &weight);
    let result = BlockGradient {
        weight: weight.f_zeros_like()?,
        bias: Tensor::f_zeros([shape.outputs as i64], (Kind::Float, Device::Cpu))?,
        x: with_x.then(|| saved.x.f_empty_like()).transpose()?,
    };
    let open = kernels::Open::list(&saved.winners, slice(&gradient), shape);
    kernels::weight_gradient(
        &open,
        slice(&saved.x),
        // SAFETY: both were just made.
        unsafe { slice_mut(&result.weight) },
        unsafe { slice_mut(&result.bias) },
        shape,
    );
    let Some(mut dx) = result.x else { return Ok(result) };
    // SAFETY: dx was just made.
    kernels::input_gradient(&open, slice(&weight), unsafe { slice_mut(&dx) }, shape);
    if saved.padding > 0 {
        let size = dx.size();
        for (dimension, length) in [(2, size[2]), (3, size[3])] {
            dx = dx.f_narrow(dimension, saved.padding, length - 2 * saved.padding)?;
        }
    }
    Ok(BlockGradient { x: Some(dx), ..result })
}

/// The gradients of sixteen numbers at once: from those by the output of an unpadded block, `[B, O H' / 2 W' / 2, 16]`, those by its input,
/// `[B, C H W, 16]`.
pub fn backward_lanes(saved: &Saved, weight: &Tensor, gradients: &Tensor) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let (weight, gradients) = (weight.f_contiguous()?, gradients.f_contiguous()?);
    let shape = Shape::of(&saved.x, &weight);
    assert!(saved.padding == 0, "callers have no padding");
    let plane = (shape.inputs * shape.height * shape.width) as i64;
    let dx = Tensor::f_zeros([shape.batch as i64, plane, kernels::LANES as i64], (Kind::Float, Device::Cpu))?;
    kernels::scatter_lanes(
        &saved.winners,
        slice(&gradients),
        slice(&weight),
        // SAFETY: just made.
        unsafe { slice_mut(&dx) },
        shape,
    );
    Ok(dx)
}

/// Sizes of a block; height and width include the padding.
#[derive(Debug, Clone, Copy)]
struct Shape {
    batch: usize,
    inputs: usize,
    height: usize,
    width: usize,
    outputs: usize,
    kernel: usize,
}

impl Shape {
    fn of(x: &Tensor, weight: &Tensor) -> Self {
        let (x, weight) = (x.size(), weight.size());
        let [batch, inputs, height, width] = [0, 1, 2, 3].map(|dimension: usize| x[dimension] as usize);
        Self { batch, inputs, height, width, outputs: weight[0] as usize, kernel: weight[2] as usize }
    }

    /// Height and width of the convolution's output.
    fn convolved(self) -> (usize, usize) {
        (self.height - self.kernel + 1, self.width - self.kernel + 1)
    }

    fn windows(self) -> (usize, usize) {
        let (height, width) = self.convolved();
        (height / 2, width / 2)
    }

    fn pooled(self) -> [i64; 4] {
        let (height, width) = self.windows();
        [self.batch as i64, self.outputs as i64, height as i64, width as i64]
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod kernels {
    //! Never called: [`super::fits`] says no.
    use super::Shape;

    pub struct Open;

    impl Open {
        pub fn list(_: &[u8], _: &[f32], _: Shape) -> Self {
            unreachable!()
        }
    }

    #[rustfmt::skip]
    pub fn convolve_and_pool(_: &[f32], _: &[f32], _: &[f32], _: &mut [f32], _: &mut [u8], _: Shape, _: bool) {
        unreachable!()
    }

    pub fn pool(_: &[f32], _: &mut [f32], _: &mut [u8], _: Shape, _: bool) {
        unreachable!()
    }

    #[rustfmt::skip]
    pub fn convolve_outputs_side_by_side(_: &[f32], _: &[f32], _: &[f32], _: &mut [f32], _: Shape, _: bool) {
        unreachable!()
    }

    pub fn weight_gradient(_: &Open, _: &[f32], _: &mut [f32], _: &mut [f32], _: Shape) {
        unreachable!()
    }

    pub fn input_gradient(_: &Open, _: &[f32], _: &mut [f32], _: Shape) {
        unreachable!()
    }

    pub const LANES: usize = 16;

    pub fn scatter_lanes(_: &[u8], _: &[f32], _: &[f32], _: &mut [f32], _: Shape) {
        unreachable!()
    }
}

#[cfg(target_arch = "x86_64")]
mod kernels {
    //! Callers have checked that the processor has AVX-512F, AVX-512VL and FMA.

    use super::{MAX_KERNEL, Shape};
    use std::arch::x86_64::{
        __m256, __m512, _CMP_GT_OQ, _CMP_LE_OQ, _CMP_UNORD_Q, _mm256_cmp_ps_mask, _mm256_fmadd_ps,
        _mm256_loadu_ps, _mm256_mask_blend_epi32, _mm256_mask_cvtepi32_storeu_epi8, _mm256_mask_mov_ps,
        _mm256_mask_storeu_ps, _mm256_maskz_loadu_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
        _mm256_setzero_si256, _mm256_storeu_ps, _mm512_castps512_ps256, _mm512_cmp_ps_mask, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_mask_mov_ps, _mm512_maskz_loadu_ps, _mm512_permutexvar_ps, _mm512_set_epi32,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    /// The lowest `count` lanes.
    fn lanes(count: usize) -> u32 {
        (1 << count) - 1
    }

    /// Even lanes below, odd lanes above.
    #[target_feature(enable = "avx512f")]
    fn split(v: __m512) -> (__m256, __m256) {
        let even = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 14, 12, 10, 8, 6, 4, 2, 0);
        let odd = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 15, 13, 11, 9, 7, 5, 3, 1);
        (
            _mm512_castps512_ps256(_mm512_permutexvar_ps(even, v)),
            _mm512_castps512_ps256(_mm512_permutexvar_ps(odd, v)),
        )
    }

    /// Up to eight windows of two rows: the first maximum of each, row by row, as PyTorch takes it; NaN wins.
    ///
    /// # Safety
    /// `count` numbers can be written behind both pointers.
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn pool_windows(
        upper: __m512,
        lower: __m512,
        y: *mut f32,
        winners: *mut u8,
        count: usize,
        rectified: bool,
    ) {
        let (first, second) = split(upper);
        let (third, fourth) = split(lower);
        let mut largest = first;
        let mut winner = _mm256_setzero_si256();
        for (index, next) in [(1, second), (2, third), (3, fourth)] {
            let greater = _mm256_cmp_ps_mask::<_CMP_GT_OQ>(next, largest)
                | _mm256_cmp_ps_mask::<_CMP_UNORD_Q>(next, next);
            largest = _mm256_mask_mov_ps(largest, greater, next);
            winner = _mm256_mask_blend_epi32(greater, winner, _mm256_set1_epi32(index));
        }
        if rectified {
            let closed = _mm256_cmp_ps_mask::<_CMP_LE_OQ>(largest, _mm256_setzero_ps());
            largest = _mm256_mask_mov_ps(largest, closed, _mm256_setzero_ps());
            winner = _mm256_mask_blend_epi32(closed, winner, _mm256_set1_epi32(4));
        }
        let mask = lanes(count) as u8;
        // SAFETY: only `count` lanes are written.
        unsafe {
            _mm256_mask_storeu_ps(y, mask, largest);
            _mm256_mask_cvtepi32_storeu_epi8(winners.cast(), mask, winner);
        }
    }

    /// 2x2 max-pooling of `[B, O, H', W']`, remembering the winners.
    pub fn pool(x: &[f32], y: &mut [f32], winners: &mut [u8], shape: Shape, rectified: bool) {
        let (height, width) = shape.convolved();
        let (rows, columns) = shape.windows();
        assert!(x.len() == shape.batch * shape.outputs * height * width);
        assert!(y.len() == shape.batch * shape.outputs * rows * columns && winners.len() == y.len());
        // SAFETY: the caller checked the processor; the lengths were checked here.
        unsafe { pool_planes(x, y, winners, [height, width, rows, columns], rectified) }
    }

    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn pool_planes(x: &[f32], y: &mut [f32], winners: &mut [u8], sizes: [usize; 4], rectified: bool) {
        let [height, width, rows, columns] = sizes;
        for plane in 0..x.len() / (height * width) {
            for row in 0..rows {
                for column in (0..columns).step_by(8) {
                    let count = (columns - column).min(8);
                    let mask = lanes(2 * count) as u16;
                    let from = plane * height * width + 2 * row * width + 2 * column;
                    let to = (plane * rows + row) * columns + column;
                    // SAFETY: 2 `count` numbers of two rows and `count` windows lie within their slices.
                    unsafe {
                        let upper = _mm512_maskz_loadu_ps(mask, x.as_ptr().add(from));
                        let lower = _mm512_maskz_loadu_ps(mask, x.as_ptr().add(from + width));
                        pool_windows(
                            upper,
                            lower,
                            y.as_mut_ptr().add(to),
                            winners.as_mut_ptr().add(to),
                            count,
                            rectified,
                        );
                    }
                }
            }
        }
    }

    /// Convolution, bias, pooling and ReLU in one pass: sixteen columns of two rows at a time, for several outputs.
    pub fn convolve_and_pool(
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        y: &mut [f32],
        winners: &mut [u8],
        shape: Shape,
        rectified: bool,
    ) {
        let (rows, columns) = shape.windows();
        let image = shape.inputs * shape.height * shape.width;
        assert!(x.len() == shape.batch * image && bias.len() == shape.outputs);
        assert!(weight.len() == shape.outputs * shape.inputs * shape.kernel * shape.kernel);
        assert!(y.len() == shape.batch * shape.outputs * rows * columns && winners.len() == y.len());
        for (example, x) in x.chunks_exact(image).enumerate() {
            let mut output = 0;
            while output < shape.outputs {
                let place = Place { example, output, rectified };
                // SAFETY: the caller checked the processor; the lengths were checked above.
                output += unsafe {
                    match shape.outputs - output {
                        6.. => convolve_outputs::<6>(x, weight, bias, y, winners, shape, place),
                        4.. => convolve_outputs::<4>(x, weight, bias, y, winners, shape, place),
                        2.. => convolve_outputs::<2>(x, weight, bias, y, winners, shape, place),
                        _ => convolve_outputs::<1>(x, weight, bias, y, winners, shape, place),
                    }
                };
            }
        }
    }

    #[derive(Clone, Copy)]
    struct Place {
        example: usize,
        output: usize,
        rectified: bool,
    }

    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn convolve_outputs<const N: usize>(
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        y: &mut [f32],
        winners: &mut [u8],
        shape: Shape,
        place: Place,
    ) -> usize {
        let Shape { inputs, height, width, outputs, kernel, .. } = shape;
        let (rows, columns) = shape.windows();
        let taps = inputs * kernel * kernel;
        for row in 0..rows {
            for column in (0..columns).step_by(8) {
                let count = (columns - column).min(8);
                let mask = lanes(2 * count) as u16;
                let mut upper = [_mm512_setzero_ps(); N];
                let mut lower = [_mm512_setzero_ps(); N];
                for n in 0..N {
                    upper[n] = _mm512_set1_ps(bias[place.output + n]);
                    lower[n] = upper[n];
                }
                for input in 0..inputs {
                    for ky in 0..kernel {
                        let from = (input * height + 2 * row + ky) * width + 2 * column;
                        for kx in 0..kernel {
                            // SAFETY: the last lane reads column 2 (columns - 1) + 1 + kx < width of a row below
                            // 2 rows + kernel <= height.
                            let (above, below) = unsafe {
                                let at = x.as_ptr().add(from + kx);
                                (_mm512_maskz_loadu_ps(mask, at), _mm512_maskz_loadu_ps(mask, at.add(width)))
                            };
                            let tap = (input * kernel + ky) * kernel + kx;
                            for n in 0..N {
                                // SAFETY: one of `outputs * taps` weights.
                                let w = _mm512_set1_ps(unsafe {
                                    *weight.get_unchecked((place.output + n) * taps + tap)
                                });
                                upper[n] = _mm512_fmadd_ps(w, above, upper[n]);
                                lower[n] = _mm512_fmadd_ps(w, below, lower[n]);
                            }
                        }
                    }
                }
                for n in 0..N {
                    let to = ((place.example * outputs + place.output + n) * rows + row) * columns + column;
                    // SAFETY: `count` windows from there lie within y and winners.
                    unsafe {
                        let (y, winners) = (y.as_mut_ptr().add(to), winners.as_mut_ptr().add(to));
                        pool_windows(upper[n], lower[n], y, winners, count, place.rectified);
                    }
                }
            }
        }
        N
    }

    /// Windows of a row whose sums are kept in registers together, four vectors each.
    const WINDOWS: usize = 5;

    /// Convolution, bias, pooling and ReLU in one pass, sixteen outputs at a time. `taps` `[C K K, O']` and `bias` `[O']`, O' the next
    /// multiple of sixteen.
    pub fn convolve_outputs_side_by_side(
        x: &[f32],
        taps: &[f32],
        bias: &[f32],
        y: &mut [f32],
        shape: Shape,
        rectified: bool,
    ) {
        let (rows, columns) = shape.windows();
        let image = shape.inputs * shape.height * shape.width;
        let (windows, wide) = (rows * columns, bias.len());
        assert!(wide == shape.outputs.next_multiple_of(LANES));
        assert!(taps.len() == shape.inputs * shape.kernel * shape.kernel * wide);
        assert!(x.len() == shape.batch * image && y.len() == shape.batch * shape.outputs * windows);
        let mut pooled = vec![0f32; windows * LANES];
        for (x, y) in x.chunks_exact(image).zip(y.chunks_exact_mut(shape.outputs * windows)) {
            for output in (0..shape.outputs).step_by(LANES) {
                for row in 0..rows {
                    let mut column = 0;
                    while column < columns {
                        let place = [row, column, output];
                        let into = &mut pooled[(row * columns + column) * LANES..];
                        // SAFETY: the caller checked the processor; the lengths were checked above.
                        column += unsafe {
                            match columns - column {
                                WINDOWS.. => windows_of::<WINDOWS>(x, taps, bias, into, shape, place),
                                4 => windows_of::<4>(x, taps, bias, into, shape, place),
                                3 => windows_of::<3>(x, taps, bias, into, shape, place),
                                2 => windows_of::<2>(x, taps, bias, into, shape, place),
                                _ => windows_of::<1>(x, taps, bias, into, shape, place),
                            }
                        };
                    }
                }
                let here = (shape.outputs - output).min(LANES);
                for (lane, y) in y[output * windows..].chunks_exact_mut(windows).take(here).enumerate() {
                    for (y, lanes) in y.iter_mut().zip(pooled.chunks_exact(LANES)) {
                        let value = lanes[lane];
                        // NaN stays.
                        *y = if rectified && value <= 0. { 0. } else { value };
                    }
                }
            }
        }
    }

    /// N windows of a row for sixteen outputs: the largest of each window's four sums, `[N, 16]`.
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn windows_of<const N: usize>(
        x: &[f32],
        taps: &[f32],
        bias: &[f32],
        into: &mut [f32],
        shape: Shape,
        [row, column, output]: [usize; 3],
    ) -> usize {
        let Shape { inputs, height, width, kernel, .. } = shape;
        let wide = bias.len();
        assert!(into.len() >= N * LANES);
        // SAFETY: `output + 16 <= wide`; a window's last number is in row 2 rows - 1 + kernel - 1 < height and in column
        // 2 columns - 1 + kernel - 1 < width.
        unsafe {
            let start = _mm512_loadu_ps(bias.as_ptr().add(output));
            let mut sums = [[[start; 2]; 2]; N];
            for input in 0..inputs {
                for ky in 0..kernel {
                    let from = x.as_ptr().add((input * height + 2 * row + ky) * width + 2 * column);
                    let tap = taps.as_ptr().add((input * kernel + ky) * kernel * wide + output);
                    for kx in 0..kernel {
                        let w = _mm512_loadu_ps(tap.add(kx * wide));
                        for (n, sums) in sums.iter_mut().enumerate() {
                            for (lower, sums) in sums.iter_mut().enumerate() {
                                for (right, sum) in sums.iter_mut().enumerate() {
                                    let at = from.add(lower * width + 2 * n + right + kx);
                                    *sum = _mm512_fmadd_ps(w, _mm512_set1_ps(*at), *sum);
                                }
                            }
                        }
                    }
                }
            }
            for (n, [[a, b], [c, d]]) in sums.into_iter().enumerate() {
                let mut largest = a;
                for next in [b, c, d] {
                    let greater = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(next, largest)
                        | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(next, next);
                    largest = _mm512_mask_mov_ps(largest, greater, next);
                }
                _mm512_storeu_ps(into.as_mut_ptr().add(n * LANES), largest);
            }
        }
        N
    }

    /// The numbers of the convolution's output that get a gradient: for each example and output, where and how much.
    pub struct Open {
        /// Row and column as an offset into a plane of the (padded) input: where the kernel's first row begins.
        offsets: Vec<u32>,
        gradients: Vec<f32>,
        /// `[B O + 1]`, where each example's and output's entries begin.
        starts: Vec<u32>,
    }

    impl Open {
        pub fn list(winners: &[u8], gradient: &[f32], shape: Shape) -> Self {
            let (rows, columns) = shape.windows();
            assert!(
                winners.len() == gradient.len()
                    && winners.len() == shape.batch * shape.outputs * rows * columns
            );
            let mut offsets = vec![0; winners.len()];
            let mut gradients = vec![0.; winners.len()];
            let mut starts = Vec::with_capacity(shape.batch * shape.outputs + 1);
            let mut count = 0;
            let planes = winners.chunks_exact(rows * columns).zip(gradient.chunks_exact(rows * columns));
            for (winners, gradient) in planes {
                starts.push(count as u32);
                for row in 0..rows {
                    let cells = row * columns..(row + 1) * columns;
                    for (column, (&winner, &g)) in
                        winners[cells.clone()].iter().zip(&gradient[cells]).enumerate()
                    {
                        let winner_row = 2 * row + usize::from(winner >> 1 & 1);
                        let winner_column = 2 * column + usize::from(winner & 1);
                        // Written in any case and kept only if open: a branch here would be a coin toss.
                        offsets[count] = (winner_row * shape.width + winner_column) as u32;
                        gradients[count] = g;
                        count += usize::from(winner < 4);
                    }
                }
            }
            starts.push(count as u32);
            Self { offsets, gradients, starts }
        }

        fn of(
            &self,
            example: usize,
            output: usize,
            outputs: usize,
        ) -> impl Iterator<Item = (usize, f32)> + '_ {
            let plane = example * outputs + output;
            let range = self.starts[plane] as usize..self.starts[plane + 1] as usize;
            let offsets = self.offsets[range.clone()].iter().map(|&offset| offset as usize);
            offsets.zip(self.gradients[range].iter().copied())
        }
    }

    /// `dW[o, c, :, :] = Σ g x[c, patch]` over the open entries of o, and `db[o] = Σ g`.
    pub fn weight_gradient(open: &Open, x: &[f32], dw: &mut [f32], db: &mut [f32], shape: Shape) {
        let Shape { batch, inputs, outputs, kernel, .. } = shape;
        assert!(x.len() == batch * inputs * shape.height * shape.width && db.len() == outputs);
        assert!(dw.len() == outputs * inputs * kernel * kernel);
        for (output, db) in db.iter_mut().enumerate() {
            for example in 0..batch {
                *db += open.of(example, output, outputs).map(|(_, g)| g).sum::<f32>();
            }
            let mut input = 0;
            while input < inputs {
                // SAFETY: the caller checked the processor; the lengths were checked above; every patch of an open entry
                // lies within its plane.
                input += unsafe {
                    match (kernel, inputs - input) {
                        (5, 6..) => patches::<5, 6>(open, x, dw, shape, output, input),
                        (5, 2..) => patches::<5, 2>(open, x, dw, shape, output, input),
                        (5, _) => patches::<5, 1>(open, x, dw, shape, output, input),
                        (3, 8..) => patches::<3, 8>(open, x, dw, shape, output, input),
                        (3, 2..) => patches::<3, 2>(open, x, dw, shape, output, input),
                        (3, _) => patches::<3, 1>(open, x, dw, shape, output, input),
                        _ => patches::<0, 1>(open, x, dw, shape, output, input),
                    }
                };
            }
        }
    }

    /// One output against N input channels; K is the kernel's side, or 0 for one that was not foreseen.
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn patches<const K: usize, const N: usize>(
        open: &Open,
        x: &[f32],
        dw: &mut [f32],
        shape: Shape,
        output: usize,
        input: usize,
    ) -> usize {
        let Shape { batch, inputs, height, width, outputs, .. } = shape;
        let kernel = if K == 0 { shape.kernel } else { K };
        let mask = lanes(kernel) as u8;
        let mut sums = [[_mm256_setzero_ps(); MAX_KERNEL]; N];
        for example in 0..batch {
            let first = (example * inputs + input) * height * width;
            for (offset, g) in open.of(example, output, outputs) {
                let g = _mm256_set1_ps(g);
                for (n, sums) in sums.iter_mut().enumerate() {
                    for (ky, sum) in sums.iter_mut().enumerate().take(kernel) {
                        // SAFETY: `kernel` numbers of a row of the patch, within the plane.
                        let row = unsafe {
                            _mm256_maskz_loadu_ps(
                                mask,
                                x.as_ptr().add(first + (n * height + ky) * width + offset),
                            )
                        };
                        *sum = _mm256_fmadd_ps(g, row, *sum);
                    }
                }
            }
        }
        for (n, sums) in sums.iter().enumerate() {
            for (ky, sum) in sums.iter().enumerate().take(kernel) {
                let to = ((output * inputs + input + n) * kernel + ky) * kernel;
                // SAFETY: a row of dW.
                unsafe { _mm256_mask_storeu_ps(dw.as_mut_ptr().add(to), mask, *sum) };
            }
        }
        N
    }

    /// Numbers of a vector.
    pub const LANES: usize = 16;

    /// `dx[c, patch, :] += g W[o, c, patch]` for the sixteen numbers g of every window whose ReLU is open, where its winner is.
    pub fn scatter_lanes(winners: &[u8], gradients: &[f32], weight: &[f32], dx: &mut [f32], shape: Shape) {
        let Shape { batch, inputs, height, width, outputs, kernel } = shape;
        let (rows, columns) = shape.windows();
        let (windows, plane) = (outputs * rows * columns, inputs * height * width);
        assert!(winners.len() == batch * windows && gradients.len() == winners.len() * LANES);
        assert!(weight.len() == outputs * inputs * kernel * kernel && dx.len() == batch * plane * LANES);
        let examples = winners.chunks_exact(windows).zip(gradients.chunks_exact(windows * LANES));
        for ((winners, gradients), dx) in examples.zip(dx.chunks_exact_mut(plane * LANES)) {
            // SAFETY: callers checked the processor; the lengths were checked above.
            unsafe {
                match kernel {
                    5 => scatter_example::<5>(winners, gradients, weight, dx, shape),
                    3 => scatter_example::<3>(winners, gradients, weight, dx, shape),
                    _ => scatter_example::<0>(winners, gradients, weight, dx, shape),
                }
            }
        }
    }

    /// K is the kernel's side, or 0 for one that was not foreseen.
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn scatter_example<const K: usize>(
        winners: &[u8],
        gradients: &[f32],
        weight: &[f32],
        dx: &mut [f32],
        shape: Shape,
    ) {
        let Shape { inputs, height, width, .. } = shape;
        let kernel = if K == 0 { shape.kernel } else { K };
        let (rows, columns) = shape.windows();
        let taps = inputs * kernel * kernel;
        for (window, (&winner, gradients)) in winners.iter().zip(gradients.chunks_exact(LANES)).enumerate() {
            if winner >= 4 {
                continue;
            }
            let (output, cell) = (window / (rows * columns), window % (rows * columns));
            let row = 2 * (cell / columns) + usize::from(winner >> 1);
            let column = 2 * (cell % columns) + usize::from(winner & 1);
            let weight = &weight[output * taps..(output + 1) * taps];
            // SAFETY: sixteen numbers.
            let g = unsafe { _mm512_loadu_ps(gradients.as_ptr()) };
            for input in 0..inputs {
                for ky in 0..kernel {
                    let first = ((input * height + row + ky) * width + column) * LANES;
                    let to = &mut dx[first..first + kernel * LANES];
                    let weight = &weight[(input * kernel + ky) * kernel..][..kernel];
                    for (to, &w) in to.chunks_exact_mut(LANES).zip(weight) {
                        // SAFETY: sixteen numbers.
                        unsafe {
                            let sum = _mm512_fmadd_ps(g, _mm512_set1_ps(w), _mm512_loadu_ps(to.as_ptr()));
                            _mm512_storeu_ps(to.as_mut_ptr(), sum);
                        }
                    }
                }
            }
        }
    }

    /// `dx[c, patch] += g W[o, c, :, :]` for every open entry: eight input channels are the lanes, so that what is added to
    /// lies in the same places again and again.
    pub fn input_gradient(open: &Open, weight: &[f32], dx: &mut [f32], shape: Shape) {
        let Shape { batch, inputs, height, width, outputs, kernel } = shape;
        let plane = height * width;
        assert!(dx.len() == batch * inputs * plane && weight.len() == outputs * inputs * kernel * kernel);
        let mut tile = vec![0f32; plane * 8];
        let mut taps = vec![0f32; outputs * kernel * kernel * 8];
        for first in (0..inputs).step_by(8) {
            let count = (inputs - first).min(8);
            for output in 0..outputs {
                for tap in 0..kernel * kernel {
                    for lane in 0..count {
                        taps[(output * kernel * kernel + tap) * 8 + lane] =
                            weight[(output * inputs + first + lane) * kernel * kernel + tap];
                    }
                }
            }
            for example in 0..batch {
                tile.fill(0.);
                // SAFETY: the caller checked the processor; the lengths were checked above.
                unsafe {
                    match kernel {
                        5 => scatter::<5>(open, &taps, &mut tile, shape, example),
                        3 => scatter::<3>(open, &taps, &mut tile, shape, example),
                        _ => scatter::<0>(open, &taps, &mut tile, shape, example),
                    }
                }
                for lane in 0..count {
                    let to = (example * inputs + first + lane) * plane;
                    for (value, cell) in dx[to..to + plane].iter_mut().zip(tile.chunks_exact(8)) {
                        *value = cell[lane];
                    }
                }
            }
            taps.fill(0.);
        }
    }

    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn scatter<const K: usize>(
        open: &Open,
        taps: &[f32],
        tile: &mut [f32],
        shape: Shape,
        example: usize,
    ) {
        let kernel = if K == 0 { shape.kernel } else { K };
        for output in 0..shape.outputs {
            // SAFETY: `kernel²` vectors of eight per output.
            let taps = unsafe { taps.as_ptr().add(output * kernel * kernel * 8) };
            for (offset, g) in open.of(example, output, shape.outputs) {
                let g = _mm256_set1_ps(g);
                for ky in 0..kernel {
                    // SAFETY: the patch lies within the plane, of eight lanes each.
                    unsafe {
                        let row = tile.as_mut_ptr().add((offset + ky * shape.width) * 8);
                        for kx in 0..kernel {
                            let weight = _mm256_loadu_ps(taps.add((ky * kernel + kx) * 8));
                            let cell = row.add(kx * 8);
                            _mm256_storeu_ps(cell, _mm256_fmadd_ps(g, weight, _mm256_loadu_ps(cell)));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::Rng;

    /// The same block by plain operators and autograd: output, then gradients of weight, bias and x.
    fn plain(
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        padding: i64,
        rectified: bool,
        gradient: &Tensor,
    ) -> [Tensor; 4] {
        let [x, weight, bias] = [x, weight, bias].map(|tensor| tensor.detach().set_requires_grad(true));
        let y = x.conv2d(&weight, Some(&bias), 1, padding, 1, 1);
        let y = if rectified { y.relu() } else { y };
        let y = y.max_pool2d(2, 2, 0, 1, false);
        let loss = (&y * gradient).sum(y.kind());
        let mut found = Tensor::run_backward(&[loss], &[&weight, &bias, &x], false, false).into_iter();
        [y.detach(), found.next().unwrap(), found.next().unwrap(), found.next().unwrap()]
    }

    /// Small whole numbers, the same for the same salt: every sum is exact in f32, so that the order of sums does not matter
    /// and equality can be asked to the last bit. Nearly every window has a tie.
    fn whole_numbers(size: &[i64], salt: u64) -> Tensor {
        let count: i64 = size.iter().product();
        let mut generator = crate::streams::stream(salt, 0, 0, crate::streams::Purpose::Weights);
        let numbers: Vec<f32> = (0..count).map(|_| f32::from(generator.gen_range(-3i8..=3))).collect();
        Tensor::from_slice(&numbers).view(size)
    }

    fn compare(x: &Tensor, weight: &Tensor, bias: &Tensor, padding: i64, rectified: bool) {
        if !fits(x, weight) {
            eprintln!("no AVX-512 here: nothing to compare");
            return;
        }
        let (y, saved) = forward(x, weight, bias, padding, rectified).unwrap();
        let gradient = whole_numbers(&y.size(), 99);
        let [expected, dw, db, dx] = plain(x, weight, bias, padding, rectified, &gradient);
        let ours = backward(&saved, weight, &gradient, true).unwrap();
        let alone = evaluate(x, weight, bias, padding, rectified).unwrap();
        for (name, ours, plain) in [
            ("y alone", alone, expected.shallow_clone()),
            ("y", y, expected),
            ("dW", ours.weight, dw),
            ("db", ours.bias, db),
            ("dx", ours.x.unwrap(), dx),
        ] {
            assert!(ours.equal(&plain), "{name}: {ours} instead of {plain}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn equals_plain_operators(
            batch in 1i64..4, inputs in 1i64..11, outputs in 1i64..35, kernel in 1i64..=8, padding in 0i64..3,
            height in 9i64..22, width in 9i64..40, rectified: bool, seed: u64,
        ) {
            tch::set_num_threads(1);
            let x = whole_numbers(&[batch, inputs, height, width], seed);
            let weight = whole_numbers(&[outputs, inputs, kernel, kernel], seed ^ 1);
            compare(&x, &weight, &whole_numbers(&[outputs], seed ^ 2), padding, rectified);
        }
    }

    #[test]
    fn equals_plain_operators_on_lenets_blocks() {
        tch::set_num_threads(1);
        for (channels, outputs, side) in [(1, 6, 32), (6, 16, 14)] {
            let x = whole_numbers(&[100, channels, side, side], 1);
            let weight = whole_numbers(&[outputs, channels, 5, 5], 2);
            compare(&x, &weight, &whole_numbers(&[outputs], 3), 0, true);
        }
    }

    #[test]
    fn an_input_in_another_layout_is_the_same_input() {
        tch::set_num_threads(1);
        let x = whole_numbers(&[2, 9, 11, 4], 5).permute([0, 3, 1, 2]);
        let weight = whole_numbers(&[3, 4, 3, 3], 6);
        let many = whole_numbers(&[17, 4, 3, 3], 8);
        for padding in [0, 2] {
            compare(&x, &weight, &whole_numbers(&[3], 7), padding, true);
            compare(&x, &many, &whole_numbers(&[17], 7), padding, true);
        }
    }

    #[test]
    fn nan_passes_through() {
        // One NaN reaches the windows whose kernels see it, wherever in a window it is.
        let weight = whole_numbers(&[17, 4, 3, 3], 8);
        for place in 0..36 {
            let x = whole_numbers(&[1, 4, 6, 6], 5);
            let _ = x.select(1, 3).view(-1).get(place).fill_(f64::NAN);
            if fits(&x, &weight) {
                let bias = whole_numbers(&[17], 9);
                let y = evaluate(&x, &weight, &bias, 0, true).unwrap();
                let expected =
                    x.conv2d(&weight, Some(&bias), 1, 0, 1, 1).relu().max_pool2d(2, 2, 0, 1, false);
                assert!(y.allclose(&expected, 0., 0., true), "{place}: {y} {expected}");
            }
        }
        let x = Tensor::zeros([1, 1, 6, 6], (Kind::Float, Device::Cpu));
        let weight = Tensor::full([1, 1, 3, 3], f64::NAN, (Kind::Float, Device::Cpu));
        let bias = Tensor::zeros([1], (Kind::Float, Device::Cpu));
        if fits(&x, &weight) {
            let (y, saved) = forward(&x, &weight, &bias, 0, true).unwrap();
            assert!(bool::try_from(y.isnan().all()).unwrap());
            let gradient = backward(&saved, &weight, &y.ones_like(), true).unwrap();
            assert!((gradient.bias.double_value(&[0]) - 4.).abs() < 1e-12);
            // Where winners are, dx is NaN; the plain operators make it NaN everywhere that a kernel reaches.
            assert!(bool::try_from(gradient.x.unwrap().isnan().any()).unwrap());
            let x = Tensor::full([1, 1, 6, 6], f64::NAN, (Kind::Float, Device::Cpu));
            let (_, saved) = forward(&x, &weight.ones_like(), &bias, 0, true).unwrap();
            let gradient = backward(&saved, &weight.ones_like(), &y.ones_like(), false).unwrap();
            assert!(bool::try_from(gradient.weight.isnan().all()).unwrap());
        }
    }
}
