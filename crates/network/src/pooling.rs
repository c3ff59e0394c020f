//! Maximum pooling over 2x2 windows on a CPU, with `ReLU` in the same pass.
//!
//! libtorch's `max_pool2d` takes nearly half of `LeNet`'s forward pass on `[B, C, H, W]`. These kernels give the same
//! numbers, ties and NaN included: the first maximum of a window (row by row) takes the gradient, NaN passes through.
//! `ReLU` commutes with the maximum and has a quarter of the work after it. Tested against the plain operators below.

use crate::Result;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

/// Planes (one channel of one example) per task when several threads share the work.
const PLANES_PER_TASK: usize = 64;

/// Whether these kernels can do it: 2x2 windows of f32 or f64 on a CPU.
pub fn fits(x: &Tensor, size: i64) -> bool {
    size == 2 && x.device() == Device::Cpu && matches!(x.kind(), Kind::Float | Kind::Double) && x.dim() == 4
}

/// `[B, C, H, W]` to `[B, C, H / 2, W / 2]`: the maximum of each window, then `ReLU` where `rectified`.
pub fn forward(x: &Tensor, rectified: bool) -> Result<Tensor> {
    let x = x.f_contiguous()?;
    let [batch, channels, height, width] = size4(&x);
    let y = Tensor::f_empty([batch, channels, height / 2, width / 2], (x.kind(), Device::Cpu))?;
    let shape = Shape { height: height as usize, width: width as usize };
    match x.kind() {
        Kind::Double => forward_planes::<f64>(&x, &y, shape, rectified),
        _ => forward_planes::<f32>(&x, &y, shape, rectified),
    }
    Ok(y)
}

/// The gradient with respect to x, from the gradient with respect to y = `forward(x, rectified)`.
pub fn backward(x: &Tensor, y: &Tensor, gradient: &Tensor, rectified: bool) -> Result<Tensor> {
    let (x, gradient) = (x.f_contiguous()?, gradient.f_contiguous()?);
    let [_, _, height, width] = size4(&x);
    let result = x.f_empty_like()?;
    let shape = Shape { height: height as usize, width: width as usize };
    match x.kind() {
        Kind::Double => backward_planes::<f64>(&x, y, &gradient, &result, shape, rectified),
        _ => backward_planes::<f32>(&x, y, &gradient, &result, shape, rectified),
    }
    Ok(result)
}

#[derive(Clone, Copy)]
struct Shape {
    height: usize,
    width: usize,
}

fn size4(x: &Tensor) -> [i64; 4] {
    let size = x.size();
    [size[0], size[1], size[2], size[3]]
}

trait Number: Copy + PartialOrd + Default + Send + Sync + 'static {
    /// One plane's gradient by the widest vectors there are; false where only the plain loop will do.
    fn backward_plane_wide(_: &[Self], _: &mut [Self], _: &[Self], _: &[Self], _: Shape, _rectified: bool) -> bool {
        false
    }
}
impl Number for f64 {}
impl Number for f32 {
    #[cfg(target_arch = "x86_64")]
    fn backward_plane_wide(x: &[f32], dx: &mut [f32], y: &[f32], dy: &[f32], shape: Shape, rectified: bool) -> bool {
        if !is_x86_feature_detected!("avx512f") {
            return false;
        }
        // SAFETY: the processor has AVX-512.
        unsafe { avx512::backward_plane(x, dx, y, dy, shape, rectified) };
        true
    }
}

/// The numbers of a contiguous CPU tensor of kind T.
fn slice<T>(tensor: &Tensor) -> &[T] {
    // SAFETY: callers pass contiguous CPU tensors of T's kind; the borrow keeps the storage alive.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>(), tensor.numel()) }
}

/// The same, to be written to; only for tensors that were just made and are not shared.
#[allow(clippy::mut_from_ref)] // a Tensor is a handle: its numbers are not behind the reference
fn slice_mut<T>(tensor: &Tensor) -> &mut [T] {
    // SAFETY: as above; the tensor is fresh, so nothing else looks at its storage.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), tensor.numel()) }
}

fn forward_planes<T: Number>(x: &Tensor, y: &Tensor, shape: Shape, rectified: bool) {
    let Shape { height, width } = shape;
    let (from, to) = (height * width, (height / 2) * (width / 2));
    let (x, y) = (slice::<T>(x), slice_mut::<T>(y));
    let work = |(x, y): (&[T], &mut [T])| {
        for (x, y) in x.chunks_exact(from).zip(y.chunks_exact_mut(to)) {
            dispatch_forward(x, y, shape, rectified);
        }
    };
    if tch::get_num_threads() > 1 {
        x.par_chunks(from * PLANES_PER_TASK).zip(y.par_chunks_mut(to * PLANES_PER_TASK)).for_each(work);
    } else {
        work((x, y));
    }
}

fn backward_planes<T: Number>(x: &Tensor, y: &Tensor, gradient: &Tensor, result: &Tensor, shape: Shape, rectified: bool) {
    let Shape { height, width } = shape;
    let (from, to) = (height * width, (height / 2) * (width / 2));
    let (x, y, gradient, result) = (slice::<T>(x), slice::<T>(y), slice::<T>(gradient), slice_mut::<T>(result));
    let work = |((x, result), (y, gradient)): ((&[T], &mut [T]), (&[T], &[T]))| {
        let inputs = x.chunks_exact(from).zip(result.chunks_exact_mut(from));
        let outputs = y.chunks_exact(to).zip(gradient.chunks_exact(to));
        for ((x, result), (y, gradient)) in inputs.zip(outputs) {
            if !T::backward_plane_wide(x, result, y, gradient, shape, rectified) {
                backward_plane(x, result, y, gradient, shape, rectified);
            }
        }
    };
    if tch::get_num_threads() > 1 {
        let inputs = x.par_chunks(from * PLANES_PER_TASK).zip(result.par_chunks_mut(from * PLANES_PER_TASK));
        let outputs = y.par_chunks(to * PLANES_PER_TASK).zip(gradient.par_chunks(to * PLANES_PER_TASK));
        inputs.zip(outputs).for_each(work);
    } else {
        work(((x, result), (y, gradient)));
    }
}

/// Runs the same code compiled for AVX2 where the processor has it: the baseline of x86-64 is SSE2.
fn dispatch_forward<T: Number>(x: &[T], y: &mut [T], shape: Shape, rectified: bool) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2<T: Number>(x: &[T], y: &mut [T], shape: Shape, rectified: bool) {
            forward_plane(x, y, shape, rectified);
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { avx2(x, y, shape, rectified) };
        }
    }
    forward_plane(x, y, shape, rectified);
}

/// NaN wins, else the larger; the left one on a tie.
#[inline(always)]
#[allow(clippy::eq_op)] // the test for NaN
fn larger<T: Number>(a: T, b: T) -> T {
    if b > a || b != b { b } else { a }
}

#[inline(always)]
fn forward_plane<T: Number>(x: &[T], y: &mut [T], Shape { width, .. }: Shape, rectified: bool) {
    let zero = T::default();
    for (rows, y) in x.chunks_exact(2 * width).zip(y.chunks_exact_mut(width / 2)) {
        let (upper, lower) = rows.split_at(width);
        for ((y, a), b) in y.iter_mut().zip(upper.chunks_exact(2)).zip(lower.chunks_exact(2)) {
            let largest = larger(larger(a[0], a[1]), larger(b[0], b[1]));
            *y = if rectified && largest <= zero { zero } else { largest };
        }
    }
}

fn backward_plane<T: Number>(x: &[T], result: &mut [T], y: &[T], gradient: &[T], shape: Shape, rectified: bool) {
    let Shape { height, width } = shape;
    let zero = T::default();
    if height % 2 == 1 || width % 2 == 1 {
        // The remainder at the edge is in no window.
        result.fill(zero);
    }
    let windows = y.chunks_exact(width / 2).zip(gradient.chunks_exact(width / 2));
    let rows = x.chunks_exact(2 * width).zip(result.chunks_exact_mut(2 * width));
    for ((x, result), (y, gradient)) in rows.zip(windows) {
        let (upper, lower) = x.split_at(width);
        let (result_upper, result_lower) = result.split_at_mut(width);
        let above = upper.chunks_exact(2).zip(result_upper.chunks_exact_mut(2));
        let below = lower.chunks_exact(2).zip(result_lower.chunks_exact_mut(2));
        for (((a, ra), (b, rb)), (&y, &g)) in above.zip(below).zip(y.iter().zip(gradient)) {
            // Where ReLU cut the maximum off, nothing flows.
            let g = if rectified && y <= zero { zero } else { g };
            let (h0, h1, h2) = (a[0] == y, a[1] == y, b[0] == y);
            let h3 = !(h0 | h1 | h2);
            ra[0] = if h0 { g } else { zero };
            ra[1] = if h1 & !h0 { g } else { zero };
            rb[0] = if h2 & !(h0 | h1) { g } else { zero };
            rb[1] = if h3 { g } else { zero };
        }
    }
}

/// The same as [`backward_plane`], sixteen numbers at a time: compilers leave the plain loop unvectorised.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::Shape;
    use std::arch::x86_64::{
        _CMP_EQ_OQ, _CMP_NLE_UQ, __mmask16, _mm512_cmp_ps_mask, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
        _mm512_maskz_mov_ps, _mm512_permutexvar_ps, _mm512_set_epi32, _mm512_setzero_ps,
    };

    const LEFT: __mmask16 = 0x5555;

    /// # Safety
    /// The processor has AVX-512F; x and dx hold `height * width` numbers, y and dy a quarter, rounded down by axis.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn backward_plane(x: &[f32], dx: &mut [f32], y: &[f32], dy: &[f32], shape: Shape, rectified: bool) {
        let Shape { height, width } = shape;
        let windows = width / 2;
        assert!(x.len() == height * width && dx.len() == x.len());
        assert!(y.len() == (height / 2) * windows && dy.len() == y.len());
        if height % 2 == 1 || width % 2 == 1 {
            dx.fill(0.);
        }
        // Each window stands over two numbers of a row.
        let twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
        for row in 0..height / 2 {
            for start in (0..windows).step_by(8) {
                let count = (windows - start).min(8);
                let window_lanes = ((1u32 << count) - 1) as __mmask16;
                let lanes = ((1u32 << (2 * count)) - 1) as __mmask16;
                let small = row * windows + start;
                let upper = 2 * row * width + 2 * start;
                let lower = upper + width;
                // SAFETY: the lanes end with the row, and the lengths were checked above.
                unsafe {
                    let load = |from: &[f32], at, lanes| _mm512_maskz_loadu_ps(lanes, from.as_ptr().add(at));
                    let largest = _mm512_permutexvar_ps(twice, load(y, small, window_lanes));
                    let mut gradient = _mm512_permutexvar_ps(twice, load(dy, small, window_lanes));
                    if rectified {
                        let open = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(largest, _mm512_setzero_ps());
                        gradient = _mm512_maskz_mov_ps(open, gradient);
                    }
                    let above = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(load(x, upper, lanes), largest);
                    let below = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(load(x, lower, lanes), largest);
                    // The first of each window takes it all; the last one where NaN left no match.
                    let both = |mask: __mmask16| (mask & LEFT) | ((mask & LEFT) << 1);
                    let taken = both(above | (above >> 1));
                    let below = below & !taken;
                    let unmatched = !(taken | both(below | (below >> 1))) & !LEFT;
                    let first_above = above & !((above & LEFT) << 1);
                    let first_below = (below & !((below & LEFT) << 1)) | unmatched;
                    let to = dx.as_mut_ptr();
                    _mm512_mask_storeu_ps(to.add(upper), lanes, _mm512_maskz_mov_ps(first_above, gradient));
                    _mm512_mask_storeu_ps(to.add(lower), lanes, _mm512_maskz_mov_ps(first_below, gradient));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tch::IndexOp;

    /// ReLU, then libtorch's pooling, and their gradient by autograd.
    fn plain(x: &Tensor, gradient: &Tensor, rectified: bool) -> (Tensor, Tensor) {
        let x = x.detach().set_requires_grad(true);
        let before = if rectified { x.relu() } else { x.shallow_clone() };
        let y = before.max_pool2d(2, 2, 0, 1, false);
        let dx = Tensor::run_backward(&[(&y * gradient).sum(y.kind())], &[&x], false, false).remove(0);
        (y.detach(), dx)
    }

    fn assert_same(x: &Tensor, rectified: bool) {
        let [batch, channels, height, width] = size4(x);
        let gradient = Tensor::arange(batch * channels * (height / 2) * (width / 2), (x.kind(), Device::Cpu))
            .view([batch, channels, height / 2, width / 2])
            + 1;
        let (y, dx) = plain(x, &gradient, rectified);
        let ours = forward(x, rectified).unwrap();
        assert!(ours.allclose(&y, 0., 0., true), "{x} {ours} {y}");
        let ours = backward(x, &ours, &gradient, rectified).unwrap();
        assert!(ours.allclose(&dx, 0., 0., true), "{x} {ours} {dx}");
    }

    proptest! {
        /// Few distinct values, so that nearly every window has a tie.
        #[test]
        fn equals_plain_operators_with_ties(
            values in prop::collection::vec(-2i8..=2, 2 * 3 * 7 * 9),
            height in 2i64..=7, width in 2i64..=9, rectified: bool, double: bool,
        ) {
            let kind = if double { Kind::Double } else { Kind::Float };
            let x = Tensor::from_slice(&values).to_kind(kind).view([2, 3, 7, 9]).i((.., .., ..height, ..width));
            assert_same(&x.contiguous(), rectified);
        }
    }

    #[test]
    fn equals_plain_operators_on_random_images() {
        for kind in [Kind::Float, Kind::Double] {
            let x = Tensor::randn([70, 6, 28, 28], (kind, Device::Cpu));
            assert_same(&x, true);
            assert_same(&x, false);
        }
    }

    #[test]
    fn infinities_and_nan_pass_through() {
        let x = Tensor::from_slice(&[
            f32::NAN, 1., 2., 3., f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY,
            0., f32::INFINITY, f32::INFINITY, 1., 1., 2., 3., f32::NAN,
        ])
        .view([4, 1, 2, 2]);
        let y = forward(&x, false).unwrap();
        let expected = Tensor::from_slice(&[f32::NAN, f32::NEG_INFINITY, f32::INFINITY, f32::NAN]).view([4, 1, 1, 1]);
        assert!(y.allclose(&expected, 0., 0., true));
        let y = forward(&x, true).unwrap();
        let expected = Tensor::from_slice(&[f32::NAN, 0., f32::INFINITY, f32::NAN]).view([4, 1, 1, 1]);
        assert!(y.allclose(&expected, 0., 0., true));
        // Whatever the place, a NaN keeps a gradient of its window's sum.
        let gradient = Tensor::ones([4, 1, 1, 1], (Kind::Float, Device::Cpu));
        let dx = backward(&x, &y, &gradient, true).unwrap();
        assert_eq!(Vec::<f32>::try_from(dx.sum_dim_intlist([1i64, 2, 3].as_slice(), false, Kind::Float)).unwrap(), [1., 0., 1., 1.]);
    }
}
