//! Derivatives of a block along directions in θ: Pearlmutter's R-operator (1994, "Fast exact multiplication by the Hessian") for
//! convolution, ReLU and pooling.
//!
//! Let y be the block's output, W and b its weights, x its input, and Ẇ, ḃ, ẋ their derivatives along a direction. Which number of a window
//! won, and where ReLU is closed, does not change for small steps, so for an open window with its winner's patch of x
//!
//! `ẏ = Σ W ẋ + Σ Ẇ x + ḃ`,
//!
//! and with g the gradient by y and ġ its derivative, that of the block's own gradient is
//!
//! `Ẇ-part: ġ x + g ẋ`, `b-part: ġ`, `x-part: ġ W + g Ẇ`.
//!
//! One direction goes alone; several go as the eight or sixteen lanes of a vector, so that a window is looked up once for all of them.

use super::{Saved, Shape, kernels};
use crate::Result;
use crate::slices::{slice, slice_mut};
use tch::{Device, Kind, Tensor};

/// Directions side by side at most.
pub const LANES: i64 = 16;

/// So many lanes carry so many directions, from two on.
pub fn lanes(directions: i64) -> i64 {
    if directions <= LANES / 2 { LANES / 2 } else { LANES }
}

/// The blocks that have derivatives here: without padding.
pub fn fits(saved: &Saved) -> bool {
    saved.padding == 0
}

/// ẏ `[B, O, H' / 2, W' / 2]` along one direction: Ẇ of the weight's shape, ḃ `[O]`, and ẋ of x's shape, if it is not 0.
pub fn forward_one(
    saved: &Saved,
    weight: &Tensor,
    (dw, db): (&Tensor, &Tensor),
    dx: Option<&Tensor>,
) -> Result<Tensor> {
    let shape = Shape::of(&saved.x, weight);
    let y = Tensor::f_empty(shape.pooled(), (Kind::Float, Device::Cpu))?;
    patches::dot(
        &saved.winners,
        (slice(&saved.x), slice(dw)),
        dx.map(|dx| (slice(dx), slice(weight))),
        slice(db),
        // SAFETY: just made.
        unsafe { slice_mut(&y) },
        shape,
    );
    Ok(y)
}

/// ẏ `[B, O H' / 2 W' / 2, L]` along L, eight or sixteen: Ẇ `[O, C K K, L]`, ḃ `[O, L]`, and ẋ `[B, C H W, L]`, if it is not 0.
pub fn forward(
    saved: &Saved,
    weight: &Tensor,
    (dw, db): (&Tensor, &Tensor),
    dx: Option<&Tensor>,
) -> Result<Tensor> {
    let shape = Shape::of(&saved.x, weight);
    let [batch, outputs, rows, columns] = shape.pooled();
    let lanes = dw.size()[2];
    let y = Tensor::f_zeros([batch, outputs * rows * columns, lanes], (Kind::Float, Device::Cpu))?;
    patches::dot_lanes(
        &saved.winners,
        slice(&saved.x),
        slice(weight),
        dx.map(slice),
        (slice(dw), slice(db)),
        // SAFETY: just made.
        unsafe { slice_mut(&y) },
        shape,
    );
    Ok(y)
}

/// What the backward pass along one direction, or several, is given: ġ, and for the Hessian g with Ẇ and ẋ.
#[derive(Debug, Clone, Copy)]
pub struct Cotangent<'a> {
    /// ġ, of ẏ's shape.
    pub tangent: &'a Tensor,
    /// g and Ẇ; none for the Gauss-Newton matrix, which leaves out what they bring.
    pub curved: Option<(&'a Tensor, &'a Tensor)>,
    /// ẋ, if it is not 0.
    pub dx: Option<&'a Tensor>,
}

/// Adds the weight's and the bias's parts along one direction to `into`, of their shapes; returns x's part, if it is asked for.
pub fn backward_one(
    saved: &Saved,
    weight: &Tensor,
    cotangent: Cotangent,
    into: (&Tensor, &Tensor),
    with_x: bool,
) -> Result<Option<Tensor>> {
    let Cotangent { tangent, curved, dx } = cotangent;
    let part = |gradient: &Tensor, x: &Tensor, weight: &Tensor| -> Result<[Option<Tensor>; 3]> {
        let shape = Shape::of(x, weight);
        let open = kernels::Open::list(&saved.winners, slice(gradient), shape);
        let (dw, db) =
            (weight.f_empty_like()?, Tensor::f_zeros([shape.outputs as i64], (Kind::Float, Device::Cpu))?);
        // SAFETY: both were just made.
        kernels::weight_gradient(
            &open,
            slice(x),
            unsafe { slice_mut(&dw) },
            unsafe { slice_mut(&db) },
            shape,
        );
        let into_x = with_x.then(|| x.f_empty_like()).transpose()?;
        if let Some(into_x) = &into_x {
            // SAFETY: just made.
            kernels::input_gradient(&open, slice(weight), unsafe { slice_mut(into_x) }, shape);
        }
        Ok([Some(dw), Some(db), into_x])
    };
    let (mut into_w, mut into_b) = (into.0.shallow_clone(), into.1.shallow_clone());
    let [dw, db, mut into_x] = part(tangent, &saved.x, weight)?;
    if let (Some(dw), Some(db)) = (dw, db) {
        let _ = (into_w.f_add_(&dw)?, into_b.f_add_(&db)?);
    }
    let Some((gradient, direction)) = curved else { return Ok(into_x) };
    if let Some(dx) = dx {
        // g ẋ, and g Ẇ in one go.
        let [dw, _, more] = part(gradient, dx, direction)?;
        if let Some(dw) = dw {
            let _ = into_w.f_add_(&dw)?;
        }
        if let (Some(into_x), Some(more)) = (&mut into_x, more) {
            let _ = into_x.f_add_(&more)?;
        }
    } else if let Some(into_x) = &mut into_x {
        let _ = into_x.f_add_(&input_gradient(saved, direction, gradient)?)?;
    }
    Ok(into_x)
}

/// The same along L, eight or sixteen: the weight's part is added to `[O, C K K, L]`, the bias's to `[O, L]`; x's is `[B, C H W, L]`.
pub fn backward(
    saved: &Saved,
    weight: &Tensor,
    cotangent: Cotangent,
    into: (&Tensor, &Tensor),
    with_x: bool,
) -> Result<Option<Tensor>> {
    let Cotangent { tangent, curved, dx } = cotangent;
    let shape = Shape::of(&saved.x, weight);
    let plane = (shape.inputs * shape.height * shape.width) as i64;
    let into_x = with_x
        .then(|| Tensor::f_zeros([shape.batch as i64, plane, tangent.size()[2]], (Kind::Float, Device::Cpu)))
        .transpose()?;
    patches::spread_lanes(
        &saved.winners,
        slice(&saved.x),
        slice(weight),
        slice(tangent),
        curved.map(|(gradient, direction)| (slice(gradient), slice(direction))),
        dx.map(slice),
        // SAFETY: the caller's own, which nothing else looks at; x's was just made.
        (unsafe { slice_mut(into.0) }, unsafe { slice_mut(into.1) }),
        into_x.as_ref().map(|into_x| unsafe { slice_mut(into_x) }),
        shape,
    );
    Ok(into_x)
}

/// The gradient by x, of its shape, from the one by the block's output.
pub fn input_gradient(saved: &Saved, weight: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let shape = Shape::of(&saved.x, weight);
    let open = kernels::Open::list(&saved.winners, slice(gradient), shape);
    let dx = saved.x.f_empty_like()?;
    // SAFETY: just made.
    kernels::input_gradient(&open, slice(weight), unsafe { slice_mut(&dx) }, shape);
    Ok(dx)
}

/// An open window: its index, its output, and where its winner's patch begins in x.
#[cfg(target_arch = "x86_64")]
struct Window {
    index: u32,
    output: u32,
    first: u32,
}

#[cfg(target_arch = "x86_64")]
fn open_windows(winners: &[u8], shape: Shape) -> Vec<Window> {
    let Shape { batch, inputs, outputs, height, width, .. } = shape;
    let (rows, columns) = shape.windows();
    assert!(u32::try_from(winners.len().max(batch * inputs * height * width)).is_ok(), "pieces are small");
    let mut open = Vec::with_capacity(winners.len());
    // Nested, since a division for each window would cost more than what is computed for it.
    let mut lines = winners.chunks_exact(columns).zip((0u32..).step_by(columns));
    for example in 0..batch {
        for output in 0..outputs as u32 {
            for (row, (line, start)) in lines.by_ref().take(rows).enumerate() {
                let above = (example * inputs * height + 2 * row) * width;
                for (column, &winner) in line.iter().enumerate() {
                    if winner < 4 {
                        let first =
                            above + usize::from(winner >> 1) * width + 2 * column + usize::from(winner & 1);
                        open.push(Window { index: start + column as u32, output, first: first as u32 });
                    }
                }
            }
        }
    }
    open
}

#[cfg(not(target_arch = "x86_64"))]
mod patches {
    //! Never called: [`super::super::fits`] says no.
    #![allow(clippy::too_many_arguments)]
    use super::Shape;

    pub fn dot(
        _: &[u8],
        _: (&[f32], &[f32]),
        _: Option<(&[f32], &[f32])>,
        _: &[f32],
        _: &mut [f32],
        _: Shape,
    ) {
        unreachable!()
    }

    #[rustfmt::skip]
    pub fn dot_lanes(_: &[u8], _: &[f32], _: &[f32], _: Option<&[f32]>, _: (&[f32], &[f32]), _: &mut [f32], _: Shape) {
        unreachable!()
    }

    #[rustfmt::skip]
    pub fn spread_lanes(_: &[u8], _: &[f32], _: &[f32], _: &[f32], _: Option<(&[f32], &[f32])>, _: Option<&[f32]>, _: (&mut [f32], &mut [f32]), _: Option<&mut [f32]>, _: Shape) {
        unreachable!()
    }
}

#[cfg(target_arch = "x86_64")]
mod patches {
    //! Callers have checked that the processor has AVX-512F, AVX-512VL and FMA.
    #![allow(clippy::too_many_arguments, clippy::needless_range_loop)] // what a sum of products needs, and its indices

    use super::super::MAX_KERNEL;
    use super::{Shape, Window, open_windows};
    use std::arch::x86_64::{
        __m256, __m512, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps, _mm_shuffle_ps, _mm256_add_ps,
        _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_maskz_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    /// Eight or sixteen numbers. Its functions are inlined into ones that may use the processor's vectors, whose callers have checked them.
    trait Vector: Copy {
        const LANES: usize;
        unsafe fn zero() -> Self;
        unsafe fn all(number: f32) -> Self;
        unsafe fn load(from: *const f32) -> Self;
        unsafe fn store(self, to: *mut f32);
        unsafe fn add(self, other: Self) -> Self;
        /// `self × other + sum`.
        unsafe fn times(self, other: Self, sum: Self) -> Self;
    }

    macro_rules! vector {
        ($type:ty, $lanes:literal, $zero:ident, $all:ident, $load:ident, $store:ident, $add:ident, $times:ident) => {
            impl Vector for $type {
                const LANES: usize = $lanes;

                #[inline(always)]
                unsafe fn zero() -> Self {
                    // SAFETY: the caller's.
                    unsafe { $zero() }
                }

                #[inline(always)]
                unsafe fn all(number: f32) -> Self {
                    // SAFETY: the caller's.
                    unsafe { $all(number) }
                }

                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: the caller's.
                    unsafe { $load(from) }
                }

                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: the caller's.
                    unsafe { $store(to, self) }
                }

                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: the caller's.
                    unsafe { $add(self, other) }
                }

                #[inline(always)]
                unsafe fn times(self, other: Self, sum: Self) -> Self {
                    // SAFETY: the caller's.
                    unsafe { $times(self, other, sum) }
                }
            }
        };
    }

    vector!(
        __m256,
        8,
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_fmadd_ps
    );
    vector!(
        __m512,
        16,
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_fmadd_ps
    );

    /// Of every open window of y: `Σ Ẇ x + ḃ`, and where ẋ and W are given, `+ Σ W ẋ`; 0 where ReLU is closed.
    pub fn dot(
        winners: &[u8],
        own: (&[f32], &[f32]),
        through: Option<(&[f32], &[f32])>,
        db: &[f32],
        y: &mut [f32],
        shape: Shape,
    ) {
        let Shape { batch, inputs, outputs, kernel, height, width } = shape;
        let (rows, columns) = shape.windows();
        let image = inputs * height * width;
        let taps = outputs * inputs * kernel * kernel;
        for (x, w) in [own].into_iter().chain(through) {
            assert!(x.len() == batch * image && w.len() == taps);
        }
        assert!(winners.len() == batch * outputs * rows * columns && y.len() == winners.len());
        assert!(db.len() == outputs && kernel <= MAX_KERNEL);
        // SAFETY: the caller checked the processor; the lengths were checked here.
        unsafe {
            match kernel {
                5 => dot_windows::<5>(winners, own, through, db, y, shape),
                3 => dot_windows::<3>(winners, own, through, db, y, shape),
                _ => dot_windows::<0>(winners, own, through, db, y, shape),
            }
        }
    }

    /// K is the kernel's side, or 0 for one that was not foreseen.
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn dot_windows<const K: usize>(
        winners: &[u8],
        own: (&[f32], &[f32]),
        through: Option<(&[f32], &[f32])>,
        db: &[f32],
        y: &mut [f32],
        shape: Shape,
    ) {
        let Shape { inputs, height, width, .. } = shape;
        let kernel = if K == 0 { shape.kernel } else { K };
        let taps = inputs * kernel * kernel;
        let mask = ((1u32 << kernel) - 1) as u8;
        y.fill(0.);
        for Window { index, output, first } in open_windows(winners, shape) {
            let [index, output, first] = [index, output, first].map(|n| n as usize);
            let mut sums = [[_mm256_setzero_ps(); 4]; 2];
            for (sums, (x, w)) in sums.iter_mut().zip([own].into_iter().chain(through)) {
                for input in 0..inputs {
                    for ky in 0..kernel {
                        let at = first + (input * height + ky) * width;
                        let tap = output * taps + (input * kernel + ky) * kernel;
                        // SAFETY: `kernel` numbers of a row of the patch, within its plane, and of the weight.
                        unsafe {
                            let x = _mm256_maskz_loadu_ps(mask, x.as_ptr().add(at));
                            let w = _mm256_maskz_loadu_ps(mask, w.as_ptr().add(tap));
                            sums[ky % 4] = _mm256_fmadd_ps(x, w, sums[ky % 4]);
                        }
                    }
                }
            }
            let four = |s: [_; 4]| _mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3]));
            let eight = _mm256_add_ps(four(sums[0]), four(sums[1]));
            let low = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(low, _mm_movehl_ps(low, low));
            let one = _mm_add_ss(two, _mm_shuffle_ps::<1>(two, two));
            y[index] = db[output] + _mm_cvtss_f32(one);
        }
    }

    fn check(winners: &[u8], x: &[f32], weight: &[f32], dx: Option<&[f32]>, lanes: usize, shape: Shape) {
        assert!(lanes == 8 || lanes == 16);
        let Shape { batch, inputs, outputs, kernel, height, width } = shape;
        let (rows, columns) = shape.windows();
        assert!(winners.len() == batch * outputs * rows * columns && kernel <= MAX_KERNEL);
        assert!(
            x.len() == batch * inputs * height * width && weight.len() == outputs * inputs * kernel * kernel
        );
        assert!(dx.is_none_or(|dx| dx.len() == x.len() * lanes));
    }

    /// The same as [`dot`] for eight or sixteen directions: of every open window, a vector. y was filled with zeros.
    pub fn dot_lanes(
        winners: &[u8],
        x: &[f32],
        weight: &[f32],
        dx: Option<&[f32]>,
        (dw, db): (&[f32], &[f32]),
        y: &mut [f32],
        shape: Shape,
    ) {
        let lanes = db.len() / shape.outputs;
        check(winners, x, weight, dx, lanes, shape);
        assert!(dw.len() == weight.len() * lanes && db.len() == shape.outputs * lanes);
        assert!(y.len() == winners.len() * lanes);
        // SAFETY: the caller checked the processor; the lengths were checked here.
        unsafe {
            match (shape.kernel, lanes) {
                (5, 8) => dot_windows_lanes::<__m256, 5>(winners, x, weight, dx, dw, db, y, shape),
                (5, _) => dot_windows_lanes::<__m512, 5>(winners, x, weight, dx, dw, db, y, shape),
                (3, 8) => dot_windows_lanes::<__m256, 3>(winners, x, weight, dx, dw, db, y, shape),
                (3, _) => dot_windows_lanes::<__m512, 3>(winners, x, weight, dx, dw, db, y, shape),
                (_, 8) => dot_windows_lanes::<__m256, 0>(winners, x, weight, dx, dw, db, y, shape),
                _ => dot_windows_lanes::<__m512, 0>(winners, x, weight, dx, dw, db, y, shape),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn dot_windows_lanes<V: Vector, const K: usize>(
        winners: &[u8],
        x: &[f32],
        weight: &[f32],
        dx: Option<&[f32]>,
        dw: &[f32],
        db: &[f32],
        y: &mut [f32],
        shape: Shape,
    ) {
        let Shape { inputs, height, width, .. } = shape;
        let kernel = if K == 0 { shape.kernel } else { K };
        let taps = inputs * kernel * kernel;
        for Window { index, output, first } in open_windows(winners, shape) {
            let [index, output, first] = [index, output, first].map(|n| n as usize);
            // A sum for each column of the kernel: one alone would wait for itself.
            // SAFETY: the caller checked the processor.
            let zero = unsafe { V::zero() };
            let (mut own, mut through) = ([zero; MAX_KERNEL], [zero; MAX_KERNEL]);
            for input in 0..inputs {
                for ky in 0..kernel {
                    let at = first + (input * height + ky) * width;
                    let tap = output * taps + (input * kernel + ky) * kernel;
                    for kx in 0..kernel {
                        // SAFETY: a number of the patch and one of the weight, and their vectors.
                        unsafe {
                            let x = V::all(*x.get_unchecked(at + kx));
                            let dw = V::load(dw.as_ptr().add((tap + kx) * V::LANES));
                            own[kx] = x.times(dw, own[kx]);
                        }
                    }
                    let Some(dx) = dx else { continue };
                    for kx in 0..kernel {
                        // SAFETY: as above.
                        unsafe {
                            let w = V::all(*weight.get_unchecked(tap + kx));
                            let dx = V::load(dx.as_ptr().add((at + kx) * V::LANES));
                            through[kx] = w.times(dx, through[kx]);
                        }
                    }
                }
            }
            // SAFETY: a vector each.
            unsafe {
                let mut sum = V::load(db.as_ptr().add(output * V::LANES));
                for kx in 0..kernel {
                    sum = sum.add(own[kx].add(through[kx]));
                }
                sum.store(y.as_mut_ptr().add(index * V::LANES));
            }
        }
    }

    /// For every open window, eight or sixteen ġ at its winner's patch: `ġ x + g ẋ` to the weight's part, ġ to the bias's, `ġ W + g Ẇ` to x's.
    pub fn spread_lanes(
        winners: &[u8],
        x: &[f32],
        weight: &[f32],
        tangent: &[f32],
        curved: Option<(&[f32], &[f32])>,
        dx: Option<&[f32]>,
        (into_w, into_b): (&mut [f32], &mut [f32]),
        into_x: Option<&mut [f32]>,
        shape: Shape,
    ) {
        let lanes = into_b.len() / shape.outputs;
        check(winners, x, weight, dx, lanes, shape);
        assert!(tangent.len() == winners.len() * lanes);
        assert!(into_w.len() == weight.len() * lanes && into_b.len() == shape.outputs * lanes);
        assert!(curved.is_none_or(|(g, dw)| g.len() == winners.len() && dw.len() == into_w.len()));
        assert!(into_x.as_ref().is_none_or(|into_x| into_x.len() == x.len() * lanes));
        let all = Spread { winners, x, weight, tangent, curved, dx, shape };
        // SAFETY: the caller checked the processor; the lengths were checked here.
        unsafe {
            match (shape.kernel, lanes) {
                (5, 8) => spread_windows::<__m256, 5>(all, into_w, into_b, into_x),
                (5, _) => spread_windows::<__m512, 5>(all, into_w, into_b, into_x),
                (3, 8) => spread_windows::<__m256, 3>(all, into_w, into_b, into_x),
                (3, _) => spread_windows::<__m512, 3>(all, into_w, into_b, into_x),
                (_, 8) => spread_windows::<__m256, 0>(all, into_w, into_b, into_x),
                _ => spread_windows::<__m512, 0>(all, into_w, into_b, into_x),
            }
        }
    }

    #[derive(Clone, Copy)]
    struct Spread<'a> {
        winners: &'a [u8],
        x: &'a [f32],
        weight: &'a [f32],
        tangent: &'a [f32],
        curved: Option<(&'a [f32], &'a [f32])>,
        dx: Option<&'a [f32]>,
        shape: Shape,
    }

    #[target_feature(enable = "avx512f,avx512vl,fma")]
    unsafe fn spread_windows<V: Vector, const K: usize>(
        all: Spread,
        into_w: &mut [f32],
        into_b: &mut [f32],
        mut into_x: Option<&mut [f32]>,
    ) {
        let Spread { winners, x, weight, tangent, curved, dx, shape } = all;
        let Shape { inputs, height, width, .. } = shape;
        let kernel = if K == 0 { shape.kernel } else { K };
        let taps = inputs * kernel * kernel;
        for Window { index, output, first } in open_windows(winners, shape) {
            let [index, output, first] = [index, output, first].map(|n| n as usize);
            // SAFETY: the vector of a window, and of an output.
            let (t, g) = unsafe {
                let t = V::load(tangent.as_ptr().add(index * V::LANES));
                let b = into_b.as_mut_ptr().add(output * V::LANES);
                V::load(b).add(t).store(b);
                (t, curved.map(|(g, _)| V::all(*g.get_unchecked(index))))
            };
            for input in 0..inputs {
                for ky in 0..kernel {
                    let at = first + (input * height + ky) * width;
                    let tap = output * taps + (input * kernel + ky) * kernel;
                    for kx in 0..kernel {
                        // SAFETY: a number of the patch and one of the weight, and their vectors.
                        unsafe {
                            let to = into_w.as_mut_ptr().add((tap + kx) * V::LANES);
                            let x = V::all(*x.get_unchecked(at + kx));
                            let mut sum = t.times(x, V::load(to));
                            if let (Some(g), Some(dx)) = (g, dx) {
                                let dx = V::load(dx.as_ptr().add((at + kx) * V::LANES));
                                sum = g.times(dx, sum);
                            }
                            sum.store(to);
                        }
                    }
                    let Some(into_x) = &mut into_x else { continue };
                    for kx in 0..kernel {
                        // SAFETY: as above.
                        unsafe {
                            let to = into_x.as_mut_ptr().add((at + kx) * V::LANES);
                            let w = V::all(*weight.get_unchecked(tap + kx));
                            let mut sum = t.times(w, V::load(to));
                            if let (Some(g), Some((_, dw))) = (g, curved) {
                                let dw = V::load(dw.as_ptr().add((tap + kx) * V::LANES));
                                sum = g.times(dw, sum);
                            }
                            sum.store(to);
                        }
                    }
                }
            }
        }
    }
}
