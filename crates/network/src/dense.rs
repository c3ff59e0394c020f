//! Stacks of narrow dense networks on a CPU with AVX-512: loss and gradient of one model after the other, each in one pass.
//!
//! By operators, every layer of the whole stack goes through memory several times, and each operator has a price. Here a model's
//! activations stay in the cache from the first layer to the gradient of its last weight. Sixteen examples are a vector, so that
//! a layer of one unit costs no more than its share.
//!
//! The same numbers as the plain operators, but for the order of sums, as long as they are finite: tested below. Where a network has
//! overflowed, its gradient is spoilt here and there alike, if not in the same places. Each sum has a fixed order, whatever the
//! stack. Where this does not fit (f64, cross-entropy, tanh, wide layers, another processor), the plain operators run.

use crate::network::Step;
use crate::{Loss, Network, block};
use tch::{Device, Kind, Tensor};

#[cfg(target_arch = "x86_64")]
mod tangent;
#[cfg(target_arch = "x86_64")]
pub use tangent::Stack;

/// Above this, libtorch's matrix product is the faster one.
const MOST_WIDTH: usize = 256;

/// What follows a dense layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // see `Layer`
pub enum Activation {
    Identity,
    Relu,
    LeakyRelu,
    Tanh,
}

/// A dense layer and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DenseLayer {
    /// Of one example.
    pub inputs: usize,
    /// Of one example.
    pub outputs: usize,
    /// Where its weights `[outputs, inputs]` begin in θ.
    pub weight: usize,
    /// Where its biases `[outputs]` begin in θ.
    pub bias: usize,
    /// What its outputs go through.
    pub activation: Activation,
}

impl Network {
    /// Its layers from the input to the output, if it has none but dense ones with at most one activation behind each.
    pub fn dense_layers(&self) -> Option<Vec<DenseLayer>> {
        let mut layers: Vec<DenseLayer> = Vec::new();
        for step in self.steps() {
            let activation = match *step {
                Step::Dense { weight } => {
                    let [w, b] = [&self.parameters()[weight], &self.parameters()[weight + 1]];
                    let [outputs, inputs] = [w.shape[0] as usize, w.shape[1] as usize];
                    let [weight, bias] = [w.offset as usize, b.offset as usize];
                    let activation = Activation::Identity;
                    layers.push(DenseLayer { inputs, outputs, weight, bias, activation });
                    continue;
                }
                Step::Relu => Activation::Relu,
                Step::LeakyRelu => Activation::LeakyRelu,
                Step::Tanh => Activation::Tanh,
                Step::Convolution { .. } | Step::MaxPool { .. } => return None,
            };
            layers.last_mut().filter(|layer| layer.activation == Activation::Identity)?.activation =
                activation;
        }
        Some(layers)
    }
}

/// A layer with what its outputs below 0 are multiplied with, if there is such a kink.
type Rectified = (DenseLayer, Option<f32>);

/// The layers of a network that is dense, piecewise linear and narrow enough.
fn layers(network: &Network) -> Option<Vec<Rectified>> {
    let rectified = |layer: DenseLayer| match layer.activation {
        Activation::Identity => Some((layer, None)),
        Activation::Relu => Some((layer, Some(0.))),
        Activation::LeakyRelu => Some((layer, Some(0.01))),
        Activation::Tanh => None,
    };
    let layers = network.dense_layers()?.into_iter().map(rectified).collect::<Option<Vec<_>>>()?;
    let narrow = |(layer, _): &Rectified| layer.inputs.max(layer.outputs) <= MOST_WIDTH;
    layers.iter().all(narrow).then_some(layers)
}

/// The layers of a network whose loss the kernels take for a θ of these options.
pub fn fitting(network: &Network, loss: Loss, options: (Kind, Device)) -> Option<Vec<Rectified>> {
    let fits = block::available()
        && loss == Loss::MeanSquaredError
        && options == (Kind::Float, Device::Cpu)
        && network.input().len() == 1;
    if fits { layers(network) } else { None }
}

/// Mean squared errors `[M]` and their gradients `[M, P]` of a stack θ `[M, P]`, for inputs `[B, F]` and targets `[B, D]` that all
/// models share; `None` where it does not fit.
pub fn loss_and_gradient(
    network: &Network,
    theta: &Tensor,
    x: &Tensor,
    targets: &Tensor,
    loss: Loss,
) -> Option<(Tensor, Tensor)> {
    let plain =
        |t: &Tensor| t.dim() == 2 && t.kind() == Kind::Float && t.device() == Device::Cpu && t.numel() > 0;
    let fits = block::available()
        && loss == Loss::MeanSquaredError
        && plain(theta)
        && plain(x)
        && plain(targets)
        && x.size()[0] == targets.size()[0]
        && network.input().len() == 1
        && x.size()[1] == network.input()[0]
        && targets.size()[1] == network.outputs();
    let layers = if fits { layers(network)? } else { return None };
    kernels::loss_and_gradient(&layers, theta, x, targets)
}

/// Never made: no kernel fits there.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Debug)]
pub enum Stack {}

#[cfg(not(target_arch = "x86_64"))]
impl Stack {
    pub fn of(
        _: &Network,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: Loss,
        _: f64,
    ) -> crate::Result<Option<Self>> {
        Ok(None)
    }

    pub fn products(&self, _: crate::Curvature, _: &Tensor) -> crate::Result<Tensor> {
        match *self {}
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod kernels {
    use super::{Rectified, Tensor};

    pub fn loss_and_gradient(
        _: &[Rectified],
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Option<(Tensor, Tensor)> {
        None
    }
}

#[cfg(target_arch = "x86_64")]
mod kernels {
    use super::Rectified;
    use crate::slices::{slice, slice_mut};
    use std::arch::x86_64::{
        __m512, _CMP_GT_OQ, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_cmp_ps_mask,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_blend_ps, _mm512_maskz_mov_ps, _mm512_maskz_mul_ps,
        _mm512_max_ps, _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_sub_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
        _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };
    use std::ops::Range;
    use tch::{Kind, TchError, Tensor};

    pub const LANES: usize = 16;
    // What is called from an inner loop is `#[inline]`: otherwise it may land in another codegen unit, and cost four times the time.

    /// One number of each of sixteen examples.
    pub type Row = [f32; LANES];
    /// So many rows of examples go through the network at once: 512 examples.
    pub const MOST_ROWS: usize = 32;

    /// The examples, feature by feature.
    #[derive(Debug)]
    pub struct Columns {
        /// `[rows, features, 16]` in pieces of at most [`MOST_ROWS`]: of a piece, `[features, its rows, 16]`.
        pub pieces: Vec<Vec<Row>>,
    }

    impl Columns {
        /// Of `[B, F]`; what is beyond the last example is 0.
        pub fn of(tensor: &Tensor) -> Result<Self, TchError> {
            let tensor = tensor.f_contiguous()?;
            let (values, features) = (slice(&tensor), tensor.size()[1] as usize);
            let piece = |values: &[f32]| {
                let rows = (values.len() / features).div_ceil(LANES);
                let mut columns = vec![[0.; LANES]; features * rows];
                for (example, values) in values.chunks(features).enumerate() {
                    for (feature, &value) in values.iter().enumerate() {
                        columns[feature * rows + example / LANES][example % LANES] = value;
                    }
                }
                columns
            };
            Ok(Self { pieces: values.chunks(MOST_ROWS * LANES * features).map(piece).collect() })
        }
    }

    pub fn loss_and_gradient(
        layers: &[Rectified],
        theta: &Tensor,
        x: &Tensor,
        targets: &Tensor,
    ) -> Option<(Tensor, Tensor)> {
        let theta = theta.f_contiguous().ok()?;
        let (models, parameters) = theta.size2().ok()?;
        let (examples, outputs) = targets.size2().ok()?;
        let gradient = Tensor::f_zeros([models, parameters], (Kind::Float, theta.device())).ok()?;
        let (x, targets) = (Columns::of(x).ok()?, Columns::of(targets).ok()?);
        let mut rooms = Rooms::new(layers);
        let mut losses = Vec::with_capacity(models as usize);
        let parameters = parameters as usize;
        // SAFETY: just made above.
        let rows = unsafe { slice_mut(&gradient) }.chunks_mut(parameters);
        let stack = slice(&theta).chunks(parameters).zip(rows);
        for (theta, gradient) in stack {
            let mut sum = 0.;
            let mut left = examples as usize;
            for (x, targets) in x.pieces.iter().zip(&targets.pieces) {
                let here = left.min(MOST_ROWS * LANES);
                left -= here;
                let scale = 1. / (examples * outputs) as f32;
                // SAFETY: the caller checked the processor.
                sum += unsafe { rooms.piece(layers, theta, x, targets, here, scale, gradient) };
            }
            losses.push((sum / (examples * outputs) as f64) as f32);
        }
        Some((Tensor::f_from_slice(&losses).ok()?, gradient))
    }

    /// Room for one model's activations and their gradients.
    struct Rooms {
        /// After each layer.
        activations: Vec<Vec<Row>>,
        /// Of the layer at hand and of the one before it.
        deltas: [Vec<Row>; 2],
    }

    impl Rooms {
        fn new(layers: &[Rectified]) -> Self {
            let room = |width: usize| vec![[0.; LANES]; width * MOST_ROWS];
            let widest = layers.iter().map(|(layer, _)| layer.inputs.max(layer.outputs)).max().unwrap_or(0);
            Self {
                activations: layers.iter().map(|(layer, _)| room(layer.outputs)).collect(),
                deltas: [room(widest), room(widest)],
            }
        }

        /// One model on one piece of the examples: adds to its gradient, returns the sum of its squared errors.
        #[target_feature(enable = "avx512f,fma")]
        #[allow(clippy::too_many_arguments)]
        fn piece(
            &mut self,
            layers: &[Rectified],
            theta: &[f32],
            x: &[Row],
            targets: &[Row],
            examples: usize,
            scale: f32,
            gradient: &mut [f32],
        ) -> f64 {
            let rows = examples.div_ceil(LANES);
            for (index, &(layer, slope)) in layers.iter().enumerate() {
                let (before, after) = self.activations.split_at_mut(index);
                let from = before.last().map_or(x, |a| &a[..layer.inputs * rows]);
                let to = &mut after[0][..layer.outputs * rows];
                let weight = &theta[layer.weight..layer.weight + layer.outputs * layer.inputs];
                let bias = &theta[layer.bias..layer.bias + layer.outputs];
                let after = slope.map_or(After::Nothing, After::Rectify);
                product(weight, [layer.inputs, 1], Some(bias), from, to, rows, after);
            }

            let [delta, next] = &mut self.deltas;
            let last = layers.len() - 1;
            let outputs = &self.activations[last][..targets.len()];
            let sum = errors(outputs, targets, &mut delta[..targets.len()], rows, examples, 2. * scale);
            if let Some(slope) = layers[last].1 {
                rectify_gradient(&mut delta[..targets.len()], outputs, slope);
            }
            let (mut delta, mut next) = (delta, next);
            for (index, &(layer, _)) in layers.iter().enumerate().rev() {
                let here = &delta[..layer.outputs * rows];
                let weight = layer.weight..layer.weight + layer.outputs * layer.inputs;
                let from = if index == 0 { x } else { &self.activations[index - 1][..layer.inputs * rows] };
                let (weights, biases) = (weight.clone(), layer.bias..layer.bias + layer.outputs);
                let [into_weights, into_biases] = disjoint(gradient, weights, biases);
                weight_gradient(here, from, rows, into_weights, into_biases);
                if index > 0 {
                    let to = &mut next[..layer.inputs * rows];
                    let slope = layers[index - 1].1;
                    let after = slope.map_or(After::Nothing, |slope| After::RectifyGradient(from, slope));
                    product(&theta[weight], [1, layer.inputs], None, here, to, rows, after);
                    std::mem::swap(&mut delta, &mut next);
                }
            }
            sum
        }
    }

    /// A layer's weights and, behind them, its biases.
    pub fn disjoint(gradient: &mut [f32], weights: Range<usize>, biases: Range<usize>) -> [&mut [f32]; 2] {
        let (before, after) = gradient.split_at_mut(biases.start);
        [&mut before[weights], &mut after[..biases.len()]]
    }

    /// What is done to a product's sums before they are stored.
    #[derive(Clone, Copy)]
    pub enum After<'a> {
        Nothing,
        Rectify(f32),
        /// They are a gradient behind this activation, which is above 0 where its input was.
        RectifyGradient(&'a [Row], f32),
        /// They come to what is there.
        Add,
        /// Both.
        AddRectifyGradient(&'a [Row], f32),
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(row: &Row) -> __m512 {
        // SAFETY: sixteen numbers.
        unsafe { _mm512_loadu_ps(row.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(row: &mut Row, values: __m512) {
        // SAFETY: sixteen numbers.
        unsafe { _mm512_storeu_ps(row.as_mut_ptr(), values) }
    }

    /// As many parts as are needed for none to be larger than `most`, and these as even as can be: their borders.
    #[inline]
    fn parts(count: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
        let parts = count.div_ceil(most);
        (0..parts).map(move |part| (part * count / parts, (part + 1) * count / parts))
    }

    /// `y[o] = bias[o] + Σ_i W[o, i] a[i]` for each example, with a `[inputs, rows]`, y `[outputs, rows]` and W's entries `strides`
    /// apart along o and i: W as it lies, or transposed.
    #[inline]
    #[target_feature(enable = "avx512f,fma")]
    pub fn product(
        weight: &[f32],
        strides: [usize; 2],
        bias: Option<&[f32]>,
        a: &[Row],
        y: &mut [Row],
        rows: usize,
        after: After,
    ) {
        let outputs = y.len() / rows;
        assert!(weight.len() > (outputs - 1) * strides[0] + (a.len() / rows - 1) * strides[1]);
        for (output, end) in parts(outputs, 4) {
            for (row, row_end) in parts(rows, 5) {
                let place = [rows, output, row];
                macro_rules! tiles {
                    ($($units:literal $rows:literal),*) => {
                        match (end - output, row_end - row) {
                            // SAFETY: W holds every product of a unit and an input, checked above.
                            $(($units, $rows) => unsafe {
                                tile::<$units, $rows>(weight, strides, bias, a, y, place, after);
                            })*
                            _ => unreachable!("parts are of at most 4 and 5"),
                        }
                    };
                }
                tiles!(
                    4 5, 4 4, 4 3, 4 2, 4 1, 3 5, 3 4, 3 3, 3 2, 3 1, 2 5, 2 4, 2 3, 2 2, 2 1, 1 5, 1 4, 1 3, 1 2, 1 1
                );
            }
        }
    }

    /// So many sums at a time that none waits for another, and few loads: N units for R rows.
    ///
    /// # Safety
    /// W reaches as far as the strides lead.
    #[inline]
    #[target_feature(enable = "avx512f,fma")]
    unsafe fn tile<const N: usize, const R: usize>(
        weight: &[f32],
        [along, across]: [usize; 2],
        bias: Option<&[f32]>,
        a: &[Row],
        y: &mut [Row],
        [rows, output, row]: [usize; 3],
        after: After,
    ) {
        let mut sums = [[_mm512_setzero_ps(); R]; N];
        if let Some(bias) = bias {
            for (sums, &bias) in sums.iter_mut().zip(&bias[output..output + N]) {
                *sums = [_mm512_set1_ps(bias); R];
            }
        }
        for (input, a) in a.chunks_exact(rows).enumerate() {
            let a: &[Row] = &a[row..row + R];
            let mut loaded = [_mm512_setzero_ps(); R];
            for (loaded, a) in loaded.iter_mut().zip(a) {
                *loaded = load(a);
            }
            for (unit, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller guarantees it.
                let w = unsafe { *weight.get_unchecked((output + unit) * along + input * across) };
                let w = _mm512_set1_ps(w);
                for (sum, &a) in sums.iter_mut().zip(&loaded) {
                    *sum = _mm512_fmadd_ps(w, a, *sum);
                }
            }
        }
        // The sums stay in registers where every loop over them is of a known length, with nothing to decide inside.
        macro_rules! store_all {
            (|$sum:ident, $at:ident| $value:expr) => {
                for (unit, sums) in sums.iter().enumerate() {
                    let first = (output + unit) * rows + row;
                    for r in 0..R {
                        let ($sum, $at) = (sums[r], first + r);
                        let value = $value;
                        store(&mut y[$at], value);
                    }
                }
            };
        }
        match after {
            After::Nothing => store_all!(|sum, at| sum),
            After::Rectify(slope) => store_all!(|sum, at| rectified(sum, slope)),
            After::RectifyGradient(activation, slope) => {
                store_all!(|sum, at| gradient_behind(sum, load(&activation[at]), slope));
            }
            After::Add => store_all!(|sum, at| _mm512_add_ps(sum, load(&y[at]))),
            After::AddRectifyGradient(activation, slope) => store_all!(|sum, at| gradient_behind(
                _mm512_add_ps(sum, load(&y[at])),
                load(&activation[at]),
                slope
            )),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn rectified(z: __m512, slope: f32) -> __m512 {
        let zero = _mm512_setzero_ps();
        if slope == 0. {
            // In this order NaN passes.
            _mm512_max_ps(zero, z)
        } else {
            let open = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(z, zero);
            _mm512_mask_blend_ps(open, _mm512_mul_ps(_mm512_set1_ps(slope), z), z)
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn gradient_behind(delta: __m512, activation: __m512, slope: f32) -> __m512 {
        let open = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(activation, _mm512_setzero_ps());
        _mm512_mask_blend_ps(open, _mm512_mul_ps(_mm512_set1_ps(slope), delta), delta)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn rectify_gradient(delta: &mut [Row], activation: &[Row], slope: f32) {
        for (delta, activation) in delta.iter_mut().zip(activation) {
            let value = gradient_behind(load(delta), load(activation), slope);
            store(delta, value);
        }
    }

    /// Sum of squared errors, and `factor` times the errors, 0 beyond the last example.
    #[inline]
    #[target_feature(enable = "avx512f,fma")]
    pub fn errors(
        outputs: &[Row],
        targets: &[Row],
        delta: &mut [Row],
        rows: usize,
        examples: usize,
        factor: f32,
    ) -> f64 {
        let mut sum = _mm512_setzero_ps();
        let factor = _mm512_set1_ps(factor);
        for (index, ((output, target), delta)) in outputs.iter().zip(targets).zip(delta).enumerate() {
            let mask = real(index, rows, examples);
            let error = _mm512_maskz_mov_ps(mask, _mm512_sub_ps(load(output), load(target)));
            sum = _mm512_fmadd_ps(error, error, sum);
            store(delta, _mm512_mul_ps(factor, error));
        }
        f64::from(_mm512_reduce_add_ps(sum))
    }

    /// `factor` times the outputs' derivatives, 0 beyond the last example.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn bent(outputs: &[Row], u: &mut [Row], rows: usize, examples: usize, factor: f32) {
        let factor = _mm512_set1_ps(factor);
        for (index, (output, u)) in outputs.iter().zip(u).enumerate() {
            store(u, _mm512_maskz_mul_ps(real(index, rows, examples), factor, load(output)));
        }
    }

    /// Which lanes of a layer's row hold examples.
    #[inline]
    fn real(index: usize, rows: usize, examples: usize) -> u16 {
        let real = (examples - index % rows * LANES).min(LANES);
        if real == LANES { u16::MAX } else { (1 << real) - 1 }
    }

    /// `dW[o, i] += Σ delta[o] a[i]` and `db[o] += Σ delta[o]` over the examples.
    #[inline]
    #[target_feature(enable = "avx512f,fma")]
    pub fn weight_gradient(delta: &[Row], a: &[Row], rows: usize, weights: &mut [f32], biases: &mut [f32]) {
        let (outputs, inputs) = (delta.len() / rows, a.len() / rows);
        for (output, end) in parts(outputs, 4) {
            for (input, input_end) in parts(inputs, 4) {
                let place = [rows, inputs, output, input];
                macro_rules! blocks {
                    ($($units:literal $inputs:literal),*) => {
                        match (end - output, input_end - input) {
                            $(($units, $inputs) if input == 0 => {
                                outer::<$units, $inputs, true>(delta, a, weights, biases, place);
                            }
                            ($units, $inputs) => {
                                outer::<$units, $inputs, false>(delta, a, weights, biases, place);
                            })*
                            _ => unreachable!("parts are of at most 4"),
                        }
                    };
                }
                blocks!(4 4, 4 3, 4 2, 4 1, 3 4, 3 3, 3 2, 3 1, 2 4, 2 3, 2 2, 2 1, 1 4, 1 3, 1 2, 1 1);
            }
        }
    }

    /// N by I of them, and the N biases where B says so.
    #[inline]
    #[target_feature(enable = "avx512f,fma")]
    fn outer<const N: usize, const I: usize, const B: bool>(
        delta: &[Row],
        a: &[Row],
        weights: &mut [f32],
        biases: &mut [f32],
        [rows, inputs, output, input]: [usize; 4],
    ) {
        let mut sums = [[_mm512_setzero_ps(); 4]; N];
        let mut totals = [_mm512_setzero_ps(); 4];
        let delta = &delta[output * rows..(output + N) * rows];
        let a = &a[input * rows..(input + I) * rows];
        for row in 0..rows {
            let mut loaded = [_mm512_setzero_ps(); I];
            for (i, loaded) in loaded.iter_mut().enumerate() {
                *loaded = load(&a[i * rows + row]);
            }
            for (n, sums) in sums.iter_mut().enumerate() {
                let d = load(&delta[n * rows + row]);
                for (sum, &a) in sums.iter_mut().zip(&loaded) {
                    *sum = _mm512_fmadd_ps(d, a, *sum);
                }
                if B {
                    totals[n] = _mm512_add_ps(totals[n], d);
                }
            }
        }
        for (n, sums) in sums.iter().enumerate() {
            let at = (output + n) * inputs + input;
            for (weight, total) in weights[at..at + I].iter_mut().zip(four_totals(sums)) {
                *weight += total;
            }
        }
        if B {
            for (bias, total) in biases[output..output + N].iter_mut().zip(four_totals(&totals)) {
                *bias += total;
            }
        }
    }

    /// The sum of each one's lanes: four together take half as long as one by one.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn four_totals(sums: &[__m512; 4]) -> [f32; 4] {
        let [a, b, c, d] = *sums;
        let halves = |a, b| _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (ab, cd) = (_mm512_castps_pd(halves(a, b)), _mm512_castps_pd(halves(c, d)));
        // In each 128 bits, what is left of a, b, c and d.
        let all = _mm512_add_ps(
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
        );
        let folded = _mm512_add_ps(all, _mm512_shuffle_f32x4::<0b01_00_11_10>(all, all));
        let folded = _mm512_add_ps(folded, _mm512_shuffle_f32x4::<0b10_11_00_01>(folded, folded));
        let mut row = [0.; LANES];
        store(&mut row, folded);
        [row[0], row[1], row[2], row[3]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layer, initialise_stacked};
    use proptest::prelude::*;
    use rand::Rng;

    /// By the plain operators and autograd.
    fn plain(network: &Network, theta: &Tensor, x: &Tensor, targets: &Tensor) -> (Tensor, Tensor) {
        let theta = theta.detach().set_requires_grad(true);
        let losses = Loss::MeanSquaredError.mean(&network.forward(&theta, x).unwrap(), targets).unwrap();
        let gradient = Tensor::run_backward(&[&losses], &[&theta], false, false).remove(0);
        (losses.detach(), gradient)
    }

    /// Small whole numbers: sums are exact, so that their order does not matter. Activations are often exactly 0.
    fn whole_numbers(size: &[i64], most: i8, salt: u64) -> Tensor {
        let count: i64 = size.iter().product();
        let mut generator = crate::streams::stream(salt, 0, 0, crate::streams::Purpose::Weights);
        let numbers: Vec<f32> = (0..count).map(|_| f32::from(generator.gen_range(-most..=most))).collect();
        Tensor::from_slice(&numbers).view(size)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        /// Widths, depth and batch are so small that every sum of the gradient is exact in f32, and the means are over powers of
        /// two: equality can be asked to the last bit. (Not with LeakyReLU, whose 0.01 is not exact: at a kink, rounding decides.)
        #[test]
        fn equals_plain_operators(
            widths in prop::collection::vec(1i64..=5, 2..=4), models in 1i64..4, power in 0u32..=5, seed: u64,
        ) {
            tch::set_num_threads(1);
            let batch = 1i64 << power;
            let outputs = widths[widths.len() - 1];
            let outputs = if outputs.count_ones() == 1 { outputs } else { 8 };
            let widths = [&widths[..widths.len() - 1], &[outputs]].concat();
            let network = Network::dense(&widths, &Layer::Relu).unwrap();
            let theta = whole_numbers(&[models, network.count()], 1, seed);
            let x = whole_numbers(&[batch, network.input()[0]], 2, seed ^ 1);
            let targets = whole_numbers(&[batch, network.outputs()], 3, seed ^ 2);
            if let Some((losses, gradient)) =
                loss_and_gradient(&network, &theta, &x, &targets, Loss::MeanSquaredError)
            {
                let (expected, expected_gradient) = plain(&network, &theta, &x, &targets);
                // A large sum of squares need not be exact.
                prop_assert!(losses.allclose(&expected, 1e-6, 0., false), "{losses} {expected}");
                prop_assert!(gradient.equal(&expected_gradient), "{gradient} {expected_gradient}");
            }
        }
    }

    #[test]
    fn is_as_near_to_f64_as_the_plain_operators() {
        if !block::available() {
            eprintln!("no AVX-512 here: nothing to compare");
            return;
        }
        tch::set_num_threads(1);
        for (widths, activation, batch) in [
            (&[1, 190, 1][..], Layer::Relu, 300),
            (&[1, 5, 10, 10, 10, 10, 4, 1], Layer::Relu, 300),
            (&[1, 4, 9, 10, 4, 1], Layer::LeakyRelu, 300),
            (&[3, 7, 2], Layer::LeakyRelu, 1301),
            (&[2, 3], Layer::Relu, 17),
        ] {
            let network = Network::dense(widths, &activation).unwrap();
            let seeds = [(0, 0), (1, 0), (2, 0)];
            let theta = initialise_stacked(&network, &seeds, Kind::Float, Device::Cpu).unwrap() * 1.5;
            let wave = |columns: i64, speed: f64| {
                let x = Tensor::arange(batch * columns, (Kind::Float, Device::Cpu)) * speed;
                x.sin().view([batch, columns])
            };
            let (x, targets) = (wave(network.input()[0], 0.37), wave(network.outputs(), 0.11));
            let (losses, gradient) =
                loss_and_gradient(&network, &theta, &x, &targets, Loss::MeanSquaredError).unwrap();
            let [wide_theta, wide_x, wide_targets] = [&theta, &x, &targets].map(|t| t.to_kind(Kind::Double));
            let (exact, exact_gradient) = plain(&network, &wide_theta, &wide_x, &wide_targets);
            let (plain, plain_gradient) = plain(&network, &theta, &x, &targets);
            let off = |a: &Tensor, exact: &Tensor| {
                ((a.to_kind(Kind::Double) - exact).norm() / exact.norm()).double_value(&[])
            };
            assert!(off(&losses, &exact) <= 3. * off(&plain, &exact) + 1e-7, "{widths:?}");
            assert!(off(&gradient, &exact_gradient) <= 3. * off(&plain_gradient, &exact_gradient) + 1e-7);
            // A row does not depend on the stack.
            let (_, alone) =
                loss_and_gradient(&network, &theta.narrow(0, 1, 1), &x, &targets, Loss::MeanSquaredError)
                    .unwrap();
            assert_eq!(alone.get(0), gradient.get(1));
        }
    }

    #[test]
    fn leaves_to_libtorch_what_it_cannot_do() {
        let network = Network::dense(&[1, 3, 1], &Layer::Relu).unwrap();
        let stack = |kind| Tensor::ones([2, network.count()], (kind, Device::Cpu));
        let x = Tensor::ones([5, 1], (Kind::Float, Device::Cpu));
        let none = |theta: &Tensor, x: &Tensor, targets: &Tensor, loss: Loss| {
            loss_and_gradient(&network, theta, x, targets, loss).is_none()
        };
        let theta = stack(Kind::Float);
        assert!(none(&stack(Kind::Double), &x, &x, Loss::MeanSquaredError));
        assert!(none(&theta, &x, &x, Loss::CrossEntropy));
        assert!(none(&theta, &x, &x.narrow(0, 0, 4), Loss::MeanSquaredError));
        assert!(none(&theta, &x.unsqueeze(0), &x, Loss::MeanSquaredError));
        let wide = Network::dense(&[1, 1000, 1], &Layer::Relu).unwrap();
        assert!(layers(&wide).is_none() && layers(&Network::lenet()).is_none());
    }

    #[test]
    fn nan_is_not_hidden() {
        let network = Network::dense(&[1, 3, 1], &Layer::Relu).unwrap();
        let theta = Tensor::full([1, network.count()], f64::NAN, (Kind::Float, Device::Cpu));
        let x = Tensor::ones([5, 1], (Kind::Float, Device::Cpu));
        if let Some((loss, gradient)) = loss_and_gradient(&network, &theta, &x, &x, Loss::MeanSquaredError) {
            assert!(loss.double_value(&[0]).is_nan());
            assert!(bool::try_from(gradient.isnan().any()).unwrap());
        }
    }
}
