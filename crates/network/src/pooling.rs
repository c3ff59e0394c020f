//! Maximum pooling over 2x2 windows on a CPU, with ReLU in the same pass, for evaluation where the kernels of
//! [`crate::block`] do not fit (f64, processors without AVX-512).
//!
//! libtorch's `max_pool2d` takes nearly half of LeNet's forward pass on `[B, C, H, W]`. This gives the same numbers, NaN
//! included. ReLU commutes with the maximum and has a quarter of the work after it.

use crate::Result;
use crate::slices::{slice, slice_mut};
use tch::kind::Element;
use tch::{Device, Kind, Tensor};

/// Whether these kernels can do it: 2x2 windows of f32 or f64 on a CPU.
pub fn fits(x: &Tensor, size: i64) -> bool {
    size == 2 && x.device() == Device::Cpu && matches!(x.kind(), Kind::Float | Kind::Double) && x.dim() == 4
}

/// `[B, C, H, W]` to `[B, C, H / 2, W / 2]`: the maximum of each window, then ReLU where `rectified`.
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

#[derive(Clone, Copy)]
struct Shape {
    height: usize,
    width: usize,
}

fn size4(x: &Tensor) -> [i64; 4] {
    let size = x.size();
    [size[0], size[1], size[2], size[3]]
}

trait Number: Element + Copy + PartialOrd + Default + Send + Sync {}
impl Number for f32 {}
impl Number for f64 {}

fn forward_planes<T: Number>(x: &Tensor, y: &Tensor, shape: Shape, rectified: bool) {
    let Shape { height, width } = shape;
    let (from, to) = (height * width, (height / 2) * (width / 2));
    // SAFETY: y was just made, by the caller.
    let (x, y) = (slice::<T>(x), unsafe { slice_mut::<T>(y) });
    for (x, y) in x.chunks_exact(from).zip(y.chunks_exact_mut(to)) {
        dispatch_forward(x, y, shape, rectified);
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
#[allow(clippy::inline_always, clippy::eq_op)] // as above; the test for NaN
fn larger<T: Number>(a: T, b: T) -> T {
    if b > a || b != b { b } else { a }
}

#[inline(always)]
#[allow(clippy::inline_always)] // compiled anew inside of the AVX2 function
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tch::IndexOp;

    /// ReLU, then libtorch's pooling.
    fn assert_same(x: &Tensor, rectified: bool) {
        let before = if rectified { x.relu() } else { x.shallow_clone() };
        let expected = before.max_pool2d(2, 2, 0, 1, false);
        let ours = forward(x, rectified).unwrap();
        assert!(ours.allclose(&expected, 0., 0., true), "{x} {ours} {expected}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

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
            f32::NAN,
            1.,
            2.,
            3.,
            f32::NEG_INFINITY,
            f32::NEG_INFINITY,
            f32::NEG_INFINITY,
            f32::NEG_INFINITY,
            0.,
            f32::INFINITY,
            f32::INFINITY,
            1.,
            1.,
            2.,
            3.,
            f32::NAN,
        ])
        .view([4, 1, 2, 2]);
        let y = forward(&x, false).unwrap();
        let expected =
            Tensor::from_slice(&[f32::NAN, f32::NEG_INFINITY, f32::INFINITY, f32::NAN]).view([4, 1, 1, 1]);
        assert!(y.allclose(&expected, 0., 0., true));
        let y = forward(&x, true).unwrap();
        let expected = Tensor::from_slice(&[f32::NAN, 0., f32::INFINITY, f32::NAN]).view([4, 1, 1, 1]);
        assert!(y.allclose(&expected, 0., 0., true));
    }
}
