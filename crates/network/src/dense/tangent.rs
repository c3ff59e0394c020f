//! Products with the curvature of a stack of narrow dense networks, by the same kernels: one model after the other, each in the cache from
//! its activations to the products with all its directions.
//!
//! With `a_l = σ(W_l a_{l-1} + b_l)` and g_l the loss's gradient by what is before σ, a direction's `ȧ_l = σ' (Ẇ a_{l-1} + ḃ + W ȧ_{l-1})`
//! goes forwards, and backwards from `u = H_L ȧ`
//!
//! `Ẇ-part = u a_{l-1}ᵀ + g ȧ_{l-1}ᵀ`, `u ← σ' (Wᵀ u + Ẇᵀ g)`,
//!
//! without the terms of g for the Gauss-Newton matrix. σ'' is 0. Activations and gradients are computed anew with each call: less than
//! half of the work of one direction, and nothing to hold.

use super::kernels::{
    After, Columns, LANES, MOST_ROWS, Row, bent, disjoint, errors, product, rectify_gradient, weight_gradient,
};
use super::{DenseLayer, Rectified, fitting};
use crate::slices::{slice, slice_mut};
use crate::{Curvature, Loss, Network, Result};
use std::cell::RefCell;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// A stack around its θ, with its examples.
#[derive(Debug)]
pub struct Stack {
    layers: Vec<Rectified>,
    /// `[M, P]`.
    theta: Tensor,
    /// Once for all models, or one each.
    x: Vec<Columns>,
    targets: Vec<Columns>,
    examples: usize,
    /// Of the errors in the gradient by the outputs.
    factor: f32,
}

thread_local! {
    /// Of the call before: cleared anew each time, it would take as long as a model.
    static ROOM: RefCell<Vec<Row>> = const { RefCell::new(Vec::new()) };
}

impl Stack {
    /// θ `[M, P]`, inputs `[B, F]` or `[M, B, F]` and targets `[B, D]` or `[M, B, D]`; the loss is `share` times the sum over examples of
    /// the mean over D. `None` where the kernels do not fit.
    pub fn of(
        network: &Network,
        theta: &Tensor,
        x: &Tensor,
        targets: &Tensor,
        loss: Loss,
        share: f64,
    ) -> Result<Option<Self>> {
        let plain = |t: &Tensor| t.kind() == Kind::Float && t.device() == Device::Cpu && t.numel() > 0;
        let (size, outputs) = (x.size(), [network.outputs()]);
        let whole = [&size[..size.len() - 1], &outputs].concat();
        let shared = &whole[whole.len() - 2..];
        let own = [&theta.size()[..1], shared].concat();
        let shaped = targets.size() == own || targets.size() == shared;
        if !shaped || ![theta, x, targets].into_iter().all(plain) {
            return Ok(None);
        }
        let Some(layers) = fitting(network, loss, (theta.kind(), theta.device())) else { return Ok(None) };
        let columns = |t: &Tensor| -> Result<Vec<Columns>> {
            if t.dim() == 2 {
                return Ok(vec![Columns::of(t)?]);
            }
            (0..t.size()[0]).map(|model| Ok(Columns::of(&t.f_select(0, model)?)?)).collect()
        };
        Ok(Some(Self {
            layers,
            theta: theta.f_contiguous()?,
            x: columns(x)?,
            targets: columns(targets)?,
            examples: x.size()[x.dim() - 2] as usize,
            factor: (2. * share / network.outputs() as f64) as f32,
        }))
    }

    /// `H v` or `G v` for directions `[M, K, P]`, of θ's kind and device.
    pub fn products(&self, curvature: Curvature, directions: &Tensor) -> Result<Tensor> {
        let directions = directions.f_contiguous()?;
        let hessian = curvature == Curvature::Hessian;
        let (_, count, parameters) = directions.size3()?;
        let products = directions.f_zeros_like()?;
        let size = (count * parameters) as usize;
        // SAFETY: just made above.
        let into = unsafe { slice_mut(&products) }.chunks_mut(size);
        let models = slice(&self.theta).chunks(parameters as usize).zip(slice(&directions).chunks(size));
        ROOM.with_borrow_mut(|room| {
            for (model, ((theta, directions), into)) in models.zip(into).enumerate() {
                let of = |all: &[Columns]| model.min(all.len() - 1);
                let (x, targets) = (&self.x[of(&self.x)], &self.targets[of(&self.targets)]);
                let mut left = self.examples;
                for (x, targets) in x.pieces.iter().zip(&targets.pieces) {
                    let examples = left.min(MOST_ROWS * LANES);
                    left -= examples;
                    let piece = Piece { theta, x, targets, examples, hessian };
                    // SAFETY: `fitting` looked at the processor.
                    unsafe { self.piece(piece, directions, into, room) };
                }
            }
        });
        Ok(products)
    }

    /// Adds the products of one model on one piece of the examples, for all its directions.
    #[target_feature(enable = "avx512f,fma")]
    fn piece(&self, piece: Piece, directions: &[f32], into: &mut [f32], room: &mut Vec<Row>) {
        let Piece { theta, x, targets, examples, hessian } = piece;
        let layers = self.layers.as_slice();
        let (rows, last) = (examples.div_ceil(LANES), layers.len() - 1);
        let units: usize = layers.iter().map(|(layer, _)| layer.outputs).sum();
        let widest = layers.iter().map(|(layer, _)| layer.inputs.max(layer.outputs)).max().unwrap_or(0);
        let size = (3 * units + 2 * widest) * rows;
        if room.len() < size {
            room.resize(size, [0.; LANES]);
        }
        let mut room = room.as_mut_slice();
        let mut by_layer = || -> Vec<&mut [Row]> {
            let cut = |(layer, _): &Rectified| {
                let (part, rest) = std::mem::take(&mut room).split_at_mut(layer.outputs * rows);
                room = rest;
                part
            };
            layers.iter().map(cut).collect()
        };
        // a_l, g_l and ȧ_l.
        let (mut a, mut g, mut t) = (by_layer(), by_layer(), by_layer());
        let (mut u, rest) = room.split_at_mut(widest * rows);
        let mut next = &mut rest[..widest * rows];
        let mut no_biases = [0.; super::MOST_WIDTH];

        for (index, &(layer, slope)) in layers.iter().enumerate() {
            let (before, here) = a.split_at_mut(index);
            let from = before.last().map_or(x, |a| &**a);
            let after = slope.map_or(After::Nothing, After::Rectify);
            let bias = Some(&theta[biases(&layer)]);
            product(&theta[weights(&layer)], [layer.inputs, 1], bias, from, here[0], rows, after);
        }
        // The first layer's is not asked for: its input does not change along any direction.
        if hessian && last > 0 {
            errors(a[last], targets, g[last], rows, examples, self.factor);
            if let Some(slope) = layers[last].1 {
                rectify_gradient(g[last], a[last], slope);
            }
            for index in (2..=last).rev() {
                let layer = layers[index].0;
                let (before, here) = g.split_at_mut(index);
                let after = behind(layers[index - 1].1, a[index - 1]);
                let weight = &theta[weights(&layer)];
                product(weight, [1, layer.inputs], None, here[0], before[index - 1], rows, after);
            }
        }

        let parameters = theta.len();
        for (v, into) in directions.chunks(parameters).zip(into.chunks_mut(parameters)) {
            for (index, &(layer, slope)) in layers.iter().enumerate() {
                let (before, here) = t.split_at_mut(index);
                let strides = [layer.inputs, 1];
                let mut after = behind(slope, a[index]);
                if let Some(before) = before.last() {
                    let weight = &theta[weights(&layer)];
                    product(weight, strides, None, before, here[0], rows, After::Nothing);
                    after = added(slope, a[index]);
                }
                let from = if index == 0 { x } else { &*a[index - 1] };
                product(&v[weights(&layer)], strides, Some(&v[biases(&layer)]), from, here[0], rows, after);
            }
            let outputs = t[last].len();
            bent(t[last], &mut u[..outputs], rows, examples, self.factor);
            if let Some(slope) = layers[last].1 {
                rectify_gradient(&mut u[..outputs], a[last], slope);
            }
            for (index, (layer, _)) in layers.iter().enumerate().rev() {
                let here = &u[..layer.outputs * rows];
                let from = if index == 0 { x } else { &*a[index - 1] };
                let [into_weights, into_biases] = disjoint(into, weights(layer), biases(layer));
                weight_gradient(here, from, rows, into_weights, into_biases);
                if index == 0 {
                    break;
                }
                let (strides, slope) = ([1, layer.inputs], layers[index - 1].1);
                let to = &mut next[..layer.inputs * rows];
                let weight = &theta[weights(layer)];
                if hessian {
                    let unused = &mut no_biases[..layer.outputs];
                    weight_gradient(g[index], t[index - 1], rows, into_weights, unused);
                    product(weight, strides, None, here, to, rows, After::Nothing);
                    let after = added(slope, from);
                    product(&v[weights(layer)], strides, None, g[index], to, rows, after);
                } else {
                    product(weight, strides, None, here, to, rows, behind(slope, from));
                }
                std::mem::swap(&mut u, &mut next);
            }
        }
    }
}

/// One model on some of the examples.
#[derive(Clone, Copy)]
struct Piece<'a> {
    theta: &'a [f32],
    x: &'a [Row],
    targets: &'a [Row],
    examples: usize,
    hessian: bool,
}

fn weights(layer: &DenseLayer) -> Range<usize> {
    layer.weight..layer.weight + layer.outputs * layer.inputs
}

fn biases(layer: &DenseLayer) -> Range<usize> {
    layer.bias..layer.bias + layer.outputs
}

/// A derivative behind this activation.
fn behind(slope: Option<f32>, activation: &[Row]) -> After<'_> {
    slope.map_or(After::Nothing, |slope| After::RectifyGradient(activation, slope))
}

/// The same of what is there and the sums together.
fn added(slope: Option<f32>, activation: &[Row]) -> After<'_> {
    slope.map_or(After::Add, |slope| After::AddRectifyGradient(activation, slope))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Directions, Layer, Linearised, Products, block, initialise_stacked};

    /// Of one model, by libtorch's operators, which are compared with autograd.
    fn plain(
        network: &Network,
        theta: &Tensor,
        x: &Tensor,
        targets: &Tensor,
        curvature: Curvature,
        v: &Tensor,
    ) -> Tensor {
        let share = 1. / x.size()[0] as f64;
        let at = Linearised::of(network, theta, x, targets, Loss::MeanSquaredError, share).unwrap();
        let sums = Products::zeros(network, v.size()[0], theta).unwrap();
        at.add_products(curvature, &Directions::of(network, v).unwrap(), &sums).unwrap();
        sums.flat(network).unwrap()
    }

    #[test]
    fn is_as_near_to_f64_as_the_plain_operators() {
        if !block::available() {
            eprintln!("no AVX-512 here: nothing to compare");
            return;
        }
        tch::set_num_threads(1);
        let ending = [Layer::Dense { width: 3 }, Layer::Relu, Layer::Dense { width: 2 }, Layer::LeakyRelu];
        let dense = |widths: &[i64], activation| Network::dense(widths, &activation).unwrap();
        for (network, batch) in [
            (dense(&[1, 190, 1], Layer::Relu), 300),
            (dense(&[1, 9, 17, 17, 4, 1], Layer::Relu), 300),
            (dense(&[1, 4, 9, 10, 4, 1], Layer::LeakyRelu), 32),
            (dense(&[3, 7, 2], Layer::LeakyRelu), 1301),
            (dense(&[2, 3], Layer::Relu), 17),
            (Network::new("ending", &[2], &ending).unwrap(), 40),
        ] {
            let seeds = [(0, 0), (1, 0), (2, 0)];
            let theta = initialise_stacked(&network, &seeds, Kind::Float, Device::Cpu).unwrap() * 1.5;
            let wave = |size: &[i64], speed: f64| {
                let count: i64 = size.iter().product();
                (Tensor::arange(count, (Kind::Float, Device::Cpu)).square() * speed).sin().view(size)
            };
            let own = wave(&[3, batch, network.input()[0]], 0.37);
            let targets = wave(&[batch, network.outputs()], 0.11);
            let v = wave(&[3, 4, network.count()], 0.23);
            for x in [own.get(0), own] {
                let share = 1. / batch as f64;
                let stack = Stack::of(&network, &theta, &x, &targets, Loss::MeanSquaredError, share)
                    .unwrap()
                    .unwrap();
                for curvature in [Curvature::Hessian, Curvature::GaussNewton] {
                    let found = stack.products(curvature, &v).unwrap();
                    for model in 0..3 {
                        let of = |t: &Tensor| if t.dim() == 3 { t.get(model) } else { t.shallow_clone() };
                        let parts = [theta.get(model), of(&x), targets.shallow_clone(), v.get(model)];
                        let by = |[theta, x, targets, v]: &[Tensor; 4]| {
                            plain(&network, theta, x, targets, curvature, v)
                        };
                        let exact = by(&parts.each_ref().map(|t| t.to_kind(Kind::Double)));
                        let off = |a: &Tensor| {
                            ((a.to_kind(Kind::Double) - &exact).norm() / exact.norm()).double_value(&[])
                        };
                        let (ours, theirs) = (off(&found.get(model)), off(&by(&parts)));
                        let what = format!("{} {curvature:?} {model}: {ours:.1e}", network.name());
                        assert!(ours <= 3. * theirs + 1e-6, "{what} {theirs:.1e}");
                    }
                    // A direction does not depend on the others.
                    let alone = stack.products(curvature, &v.narrow(1, 2, 1)).unwrap();
                    assert_eq!(alone, found.narrow(1, 2, 1));
                }
            }
        }
    }

    #[test]
    fn leaves_to_libtorch_what_it_cannot_do() {
        if !block::available() {
            eprintln!("no AVX-512 here: all is left");
            return;
        }
        let network = Network::dense(&[1, 3, 1], &Layer::Relu).unwrap();
        let ones = |size: &[i64], kind| Tensor::ones(size, (kind, Device::Cpu));
        let (theta, x) = (ones(&[2, network.count()], Kind::Float), ones(&[5, 1], Kind::Float));
        let none = |network: &Network, theta: &Tensor, targets: &Tensor, loss| {
            Stack::of(network, theta, &x, targets, loss, 1.).unwrap().is_none()
        };
        let loss = Loss::MeanSquaredError;
        assert!(!none(&network, &theta, &x, loss));
        assert!(none(&network, &theta.to_kind(Kind::Double), &x, loss));
        assert!(none(&network, &theta, &x, Loss::CrossEntropy));
        assert!(none(&network, &theta, &x.narrow(0, 0, 4), loss));
        assert!(none(&Network::dense(&[1, 3, 1], &Layer::Tanh).unwrap(), &theta, &x, loss));
        let wide = Network::dense(&[1, 1000, 1], &Layer::Relu).unwrap();
        assert!(none(&wide, &ones(&[2, wide.count()], Kind::Float), &x, loss));
    }
}
