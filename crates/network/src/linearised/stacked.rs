//! The same of a stack of dense networks: one call of libtorch for all models.
//!
//! A product of a network of some hundred parameters is all calls. Here a layer is a batched product over the models, with the examples
//! last, so that vectors of the processor run along them however narrow a layer is: activations are `[M, F, B]`, their derivatives
//! `[M, K, F, B]`. The mathematics is [`Linearised`](super::Linearised)'s. Where the kernels of `dense.rs` fit, these multiply, model by
//! model.

use super::{Bend, Curvature, sizes};
use crate::dense;
use crate::network::{Step, apply};
use crate::{Loss, Network, NetworkError, Result};
use tch::{Device, Kind, Tensor};

/// A piece of the examples around each of M models' θ, and all that the products need of it.
///
/// Networks with convolutions are not taken: one model alone keeps the cores busy there.
#[derive(Debug)]
pub struct StackedLinearised {
    models: i64,
    /// P.
    count: i64,
    /// θ's.
    options: (Kind, Device),
    way: Way,
}

#[derive(Debug)]
enum Way {
    Kernels(dense::Stack),
    Operators(Operators),
}

/// What libtorch's operators need.
#[derive(Debug)]
struct Operators {
    network: Network,
    models: i64,
    batch: i64,
    /// Of θ, as views `[M, shape…]`.
    parameters: Vec<Tensor>,
    stages: Vec<Stage>,
    bend: Bend,
}

/// A step from the first weights on.
#[derive(Debug)]
enum Stage {
    Dense {
        weight: usize,
        /// `[M, F, B]`; of inputs that all models share, the same memory for each.
        input: Tensor,
        /// ∂L/∂z by its outputs, `[M, outputs, B]`, where something before it has weights.
        gradient: Option<Tensor>,
    },
    Activation {
        /// σ'(z), `[M, F, B]`.
        slope: Tensor,
        /// σ''(z) ∂L/∂σ, `[M, F, B]`, where it is not 0 for all z.
        bend: Option<Tensor>,
    },
}

/// A layer's part of the directions, in the forms that the products take it in.
struct Direction {
    /// Ẇ, `[M, K outputs, inputs]`.
    rows: Tensor,
    /// Ẇᵀ, `[M, K inputs, outputs]`.
    transposed: Tensor,
    /// ḃ, `[M, K outputs, 1]`.
    bias: Tensor,
    /// W for each direction, `[M K, outputs, inputs]`.
    weight: Tensor,
}

impl StackedLinearised {
    /// Around the θ of M models `[M, P]`, for B examples: inputs x that all share, `[B, input…]`, or of their own, `[M, B, input…]`, and so
    /// the targets, `[B]` or `[B, D]`, or `[M, B]` or `[M, B, D]`. `L = share Σ ℓ` over the B of each model. Inputs, and targets that are
    /// values, are cast to θ's kind.
    ///
    /// # Errors
    /// [`NetworkError::Setting`] for a network with convolutions; [`NetworkError::Shape`] when θ, x or the targets do not fit, there is no
    /// example, or x is on another device than θ.
    pub fn of(
        network: &Network,
        theta: &Tensor,
        x: &Tensor,
        targets: &Tensor,
        loss: Loss,
        share: f64,
    ) -> Result<Self> {
        if network.is_convolutional() {
            let reason = format!("{} has convolutions: its models are linearised one by one", network.name());
            return Err(NetworkError::Setting(reason));
        }
        network.check_theta(theta)?;
        let models = if theta.dim() == 2 { theta.size()[0] } else { 0 };
        let own = network.check_inputs(x, Some(models))?;
        let batch = x.size()[usize::from(own)];
        for (what, found, fits, expected) in [
            ("θ", theta.size(), models > 0, "[M, P]"),
            ("inputs", x.size(), batch > 0, "at least one example"),
            ("inputs", x.size(), x.device() == theta.device(), "to be where θ is"),
        ] {
            if !fits {
                return Err(NetworkError::Shape { what, found, expected: expected.to_owned() });
            }
        }
        let _no_grad = tch::no_grad_guard();
        let theta = theta.f_detach()?.f_contiguous()?;
        let options = (theta.kind(), theta.device());
        let x = x.f_to_kind(options.0)?;
        let targets =
            if targets.is_floating_point() { targets.f_to_kind(options.0)? } else { targets.shallow_clone() };
        let way = match dense::Stack::of(network, &theta, &x, &targets, loss, share)? {
            Some(stack) => Way::Kernels(stack),
            None => Way::Operators(Operators::of(network, &theta, (&x, own), &targets, loss, share)?),
        };
        Ok(Self { models, count: network.count(), options, way })
    }

    /// Whether kernels of our own multiply, model by model, for θ of these options: f32 on a CPU with AVX-512, mean squared error, a
    /// network of dense layers of at most 256 inputs and outputs with ReLU or LeakyReLU.
    pub fn by_kernels(network: &Network, loss: Loss, options: (Kind, Device)) -> bool {
        dense::fitting(network, loss, options).is_some()
    }

    /// `H v` or `G v` for K directions of each model, `[M, K, P]`, as `[M, K, P]`. Directions of another kind, or elsewhere, are brought to
    /// θ's kind and device; the products are of these.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when they are not the stack's.
    pub fn products(&self, curvature: Curvature, directions: &Tensor) -> Result<Tensor> {
        let size = directions.size();
        if size.len() != 3 || size[0] != self.models || size[1] < 1 || size[2] != self.count {
            let expected = format!("[{}, K, {}]", self.models, self.count);
            return Err(NetworkError::Shape { what: "directions", found: size, expected });
        }
        let _no_grad = tch::no_grad_guard();
        let directions = directions.f_to_device(self.options.1)?.f_to_kind(self.options.0)?;
        match &self.way {
            Way::Kernels(stack) => stack.products(curvature, &directions),
            Way::Operators(operators) => operators.products(curvature, &directions),
        }
    }
}

impl Operators {
    fn of(
        network: &Network,
        theta: &Tensor,
        (x, own): (&Tensor, bool),
        targets: &Tensor,
        loss: Loss,
        share: f64,
    ) -> Result<Self> {
        let (models, batch) = (theta.size()[0], x.size()[usize::from(own)]);
        let parameters = network.parameters().iter().map(|p| p.of(theta)).collect::<Result<Vec<_>>>()?;
        let (before, steps) = {
            let first = network.steps().iter().position(|step| matches!(step, Step::Dense { .. }));
            network.steps().split_at(first.unwrap_or_default())
        };
        // What is before the first weights is the same for all models that share their inputs.
        let mut y = if own { x.f_flatten(0, 1)? } else { x.shallow_clone() };
        for &step in before {
            y = apply(step, &y, &parameters, false)?;
        }
        // Images need not lie in their order.
        y = y.f_reshape([if own { models } else { 1 }, batch, -1])?.f_transpose(1, 2)?.f_contiguous()?;
        y = y.f_expand([models, -1, -1], false)?;

        let mut stages = Vec::new();
        let slopes = |of: &Tensor| of.f_gt(0.)?.f_to_kind(of.kind());
        for step in steps {
            match *step {
                Step::Dense { weight } => {
                    let bias = parameters[weight + 1].f_unsqueeze(2)?;
                    let z = bias.f_baddbmm(&parameters[weight], &y, 1, 1)?;
                    stages.push(Stage::Dense { weight, input: y, gradient: None });
                    y = z;
                }
                Step::Relu => {
                    y = y.f_relu()?;
                    stages.push(Stage::Activation { slope: slopes(&y)?, bend: None });
                }
                Step::LeakyRelu => {
                    // 0.01 where z <= 0.
                    let slope = slopes(&y)?.f_mul_scalar(0.99)?.f_add_scalar(0.01)?;
                    y = y.f_leaky_relu()?;
                    stages.push(Stage::Activation { slope, bend: None });
                }
                Step::Tanh => {
                    y = y.f_tanh()?;
                    let slope = y.f_square()?.f_neg()?.f_add_scalar(1.)?;
                    // tanh'' = -2 tanh tanh'; the gradient comes to it below.
                    let bend = y.f_mul(&slope)?.f_mul_scalar(-2.)?;
                    stages.push(Stage::Activation { slope, bend: Some(bend) });
                }
                Step::Convolution { .. } | Step::MaxPool { .. } => {
                    // No network is made with them behind a dense layer.
                    return Err(NetworkError::Setting("images behind a dense layer".into()));
                }
            }
        }
        // Shapes, for an error that can be read.
        let _ = loss.mean(&y.f_transpose(1, 2)?, targets)?;
        let (bend, gradient) = match loss {
            Loss::CrossEntropy => {
                let probabilities = y.f_softmax(1, None)?;
                let classes = targets.f_unsqueeze(-2)?.f_expand([models, 1, batch], false)?;
                let hot = Tensor::f_zeros_like(&y)?.f_scatter_value(1, &classes, 1.)?;
                let gradient = probabilities.f_sub(&hot)?.f_mul_scalar(share)?;
                (Bend::Softmax { probabilities, share }, gradient)
            }
            Loss::MeanSquaredError => {
                let scale = 2. * share / network.outputs() as f64;
                let errors = y.f_sub(&targets.f_transpose(-1, -2)?)?;
                (Bend::Multiple(scale), errors.f_mul_scalar(scale)?)
            }
        };
        let mut made = Self { network: network.clone(), parameters, stages, models, batch, bend };
        made.backward_once(gradient)?;
        Ok(made)
    }

    /// ∂L by every output that the Hessian's products ask for, from the one by the network's.
    fn backward_once(&mut self, by_outputs: Tensor) -> Result<()> {
        let mut g = by_outputs;
        // What enters the first does not change along any direction.
        for stage in self.stages[1..].iter_mut().rev() {
            match stage {
                Stage::Dense { weight, gradient, .. } => {
                    let back = self.parameters[*weight].f_transpose(1, 2)?.f_bmm(&g)?;
                    *gradient = Some(g);
                    g = back;
                }
                Stage::Activation { slope, bend } => {
                    if let Some(bend) = bend {
                        *bend = bend.f_mul(&g)?;
                    }
                    g = g.f_mul(slope)?;
                }
            }
        }
        Ok(())
    }

    fn products(&self, curvature: Curvature, directions: &Tensor) -> Result<Tensor> {
        let count = directions.size()[1];
        let layers = self.layers(directions)?;
        let (inputs, outputs) = self.forward(&layers, count)?;
        let along = (curvature == Curvature::Hessian).then_some(inputs.as_slice());
        self.backward(self.bent(&outputs)?, &layers, along, count)
    }

    /// By the index of a layer's weight.
    fn layers(&self, directions: &Tensor) -> Result<Vec<Option<Direction>>> {
        let (models, count) = (self.models, directions.size()[1]);
        let parameters = self.network.parameters();
        let mut layers: Vec<Option<Direction>> = parameters.iter().map(|_| None).collect();
        for stage in &self.stages {
            let Stage::Dense { weight, .. } = *stage else { continue };
            let [w, b] = [parameters[weight].of(directions)?, parameters[weight + 1].of(directions)?];
            let [outputs, inputs] = sizes(&parameters[weight]);
            // Of one direction, nothing is copied.
            layers[weight] = Some(Direction {
                transposed: w.f_transpose(2, 3)?.f_reshape([models, count * inputs, outputs])?,
                rows: w.f_reshape([models, count * outputs, inputs])?,
                bias: b.f_reshape([models, count * outputs, 1])?,
                weight: self.parameters[weight]
                    .f_unsqueeze(1)?
                    .f_expand([-1, count, -1, -1], false)?
                    .f_reshape([models * count, outputs, inputs])?,
            });
        }
        Ok(layers)
    }

    /// The derivative of each stage's input, `[M, K, F, B]`, where it is not 0; and ż, `[M, K, outputs, B]`.
    fn forward(&self, layers: &[Option<Direction>], count: i64) -> Result<(Vec<Option<Tensor>>, Tensor)> {
        let (models, batch) = (self.models, self.batch);
        let mut t: Option<Tensor> = None;
        let mut of_stages = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let next = match stage {
                Stage::Dense { weight, input, .. } => {
                    let Direction { rows, bias, weight: w, .. } = at(layers, *weight)?;
                    let (_, outputs, inputs) = w.size3()?;
                    let mut z = bias.f_baddbmm(rows, input, 1, 1)?;
                    if let Some(t) = &t {
                        let t = t.f_view([models * count, inputs, batch])?;
                        z = z.f_view([models * count, outputs, batch])?.f_baddbmm_(w, &t)?;
                    }
                    Some(z.f_view([models, count, outputs, batch])?)
                }
                Stage::Activation { slope, .. } => {
                    t.as_ref().map(|t| t.f_mul(&slope.f_unsqueeze(1)?)).transpose()?
                }
            };
            of_stages.push(std::mem::replace(&mut t, next));
        }
        let outputs = t.ok_or_else(|| NetworkError::Setting("a network without layers".into()))?;
        Ok((of_stages, outputs))
    }

    /// `H_L ż`, `[M, K, outputs, B]`.
    fn bent(&self, outputs: &Tensor) -> Result<Tensor> {
        Ok(match &self.bend {
            Bend::Softmax { probabilities, share } => {
                let p = probabilities.f_unsqueeze(1)?;
                let weighted = p.f_mul(outputs)?;
                let sum = weighted.f_sum_dim_intlist(Some([2i64].as_slice()), true, None)?;
                weighted.f_sub(&p.f_mul(&sum)?)?.f_mul_scalar(*share)?
            }
            Bend::Multiple(scale) => outputs.f_mul_scalar(*scale)?,
        })
    }

    /// `Jᵀ u` `[M, K, P]`, and with the derivatives of the stages' inputs what the backward pass itself changes.
    fn backward(
        &self,
        by_outputs: Tensor,
        layers: &[Option<Direction>],
        along: Option<&[Option<Tensor>]>,
        count: i64,
    ) -> Result<Tensor> {
        let (models, batch) = (self.models, self.batch);
        let mut parts: Vec<Option<Tensor>> = self.parameters.iter().map(|_| None).collect();
        let mut u = by_outputs;
        for (index, stage) in self.stages.iter().enumerate().rev() {
            match stage {
                Stage::Dense { weight, input, gradient } => {
                    let Direction { transposed, weight: w, .. } = at(layers, *weight)?;
                    let (_, outputs, inputs) = w.size3()?;
                    let rows = u.f_view([models, count * outputs, batch])?;
                    let mut by_weight = rows.f_bmm(&input.f_transpose(1, 2)?)?;
                    let curved = along.zip(gradient.as_ref());
                    if let Some((inputs_along, g)) = curved
                        && let Some(t) = &inputs_along[index]
                    {
                        let t = t.f_view([models, count * inputs, batch])?;
                        let columns = g.f_bmm(&t.f_transpose(1, 2)?)?;
                        let columns = columns.f_view([models, outputs, count, inputs])?.f_transpose(1, 2)?;
                        by_weight = by_weight.f_view([models, count, outputs, inputs])?.f_add_(&columns)?;
                    }
                    parts[*weight] = Some(by_weight.f_view([models, count, -1])?);
                    parts[*weight + 1] = Some(u.f_sum_dim_intlist(Some([3i64].as_slice()), false, None)?);
                    if index == 0 {
                        break;
                    }
                    let mut back =
                        w.f_transpose(1, 2)?.f_bmm(&u.f_view([models * count, outputs, batch])?)?;
                    if let Some((_, g)) = curved {
                        back = back.f_view([models, count * inputs, batch])?.f_baddbmm_(transposed, g)?;
                    }
                    u = back.f_view([models, count, inputs, batch])?;
                }
                Stage::Activation { slope, bend } => {
                    let mut back = u.f_mul(&slope.f_unsqueeze(1)?)?;
                    if let (Some(inputs_along), Some(bend)) = (along, bend)
                        && let Some(t) = &inputs_along[index]
                    {
                        back = back.f_add_(&bend.f_unsqueeze(1)?.f_mul(t)?)?;
                    }
                    u = back;
                }
            }
        }
        let parts: Vec<Tensor> = parts.into_iter().flatten().collect();
        Ok(Tensor::f_cat(&parts, 2)?)
    }
}

fn at(layers: &[Option<Direction>], weight: usize) -> Result<&Direction> {
    layers[weight].as_ref().ok_or_else(super::other_network)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{by_autograd, close, jacobian, waves};
    use super::*;
    use crate::{Directions, Products};
    use crate::{Layer, Linearised, initialise_stacked};
    use tch::{Device, Kind};

    fn networks() -> Vec<Network> {
        let (pool, dense) = (Layer::MaxPool { size: 2 }, |width| Layer::Dense { width });
        // Steps before the first weights, and two behind them.
        let pixels = [Layer::Tanh, pool, dense(5), Layer::LeakyRelu, Layer::Tanh, dense(3)];
        vec![
            Network::dense(&[5, 3], &Layer::Relu).unwrap(),
            Network::dense(&[1, 7, 2], &Layer::Relu).unwrap(),
            Network::dense(&[5, 6, 4, 3], &Layer::Tanh).unwrap(),
            Network::dense(&[5, 6, 4, 3], &Layer::LeakyRelu).unwrap(),
            Network::new("pixels", &[2, 4, 5], &pixels).unwrap(),
        ]
    }

    /// `Σ Jᵀ H_L J` over the examples, of their mean loss, `[P, P]`.
    fn gauss_newton(network: &Network, theta: &Tensor, x: &Tensor, loss: Loss) -> Tensor {
        let (j, z) = (jacobian(network, theta, x), network.forward(theta, x).unwrap());
        let (batch, outputs) = z.size2().unwrap();
        let blocks: Vec<Tensor> = (0..batch)
            .map(|i| match loss {
                Loss::CrossEntropy => {
                    let p = z.get(i).softmax(-1, None);
                    (p.diag(0) - p.outer(&p)) / batch as f64
                }
                Loss::MeanSquaredError => {
                    Tensor::eye(outputs, (z.kind(), z.device())) * (2. / (batch * outputs) as f64)
                }
            })
            .collect();
        j.tr().matmul(&Tensor::block_diag(&blocks)).matmul(&j)
    }

    /// For inputs and targets that the models share and for their own, one direction and several.
    #[test]
    fn products_are_those_of_autograd_for_each_model() {
        tch::set_num_threads(1);
        let (models, batch) = (3, 7);
        for network in networks() {
            for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-4)] {
                let seeds: Vec<(u64, u32)> = (0..models as u64).map(|seed| (seed, 0)).collect();
                let theta = initialise_stacked(&network, &seeds, kind, Device::Cpu).unwrap() * 1.5;
                for (loss, own) in [
                    (Loss::CrossEntropy, false),
                    (Loss::CrossEntropy, true),
                    (Loss::MeanSquaredError, false),
                    (Loss::MeanSquaredError, true),
                ] {
                    let stack: &[i64] = if own { &[models, batch] } else { &[batch] };
                    let x = waves(&[stack, network.input()].concat(), 0.37, kind);
                    let targets = match loss {
                        Loss::CrossEntropy => {
                            let count = stack.iter().product::<i64>();
                            let labels = Tensor::arange(count, (Kind::Int64, Device::Cpu)) * 2;
                            labels.remainder(network.outputs()).view(stack)
                        }
                        Loss::MeanSquaredError => waves(&[stack, &[network.outputs()]].concat(), 0.11, kind),
                    };
                    let of = |t: &Tensor, model| if own { t.get(model) } else { t.shallow_clone() };
                    let share = 1. / batch as f64;
                    let at = StackedLinearised::of(&network, &theta, &x, &targets, loss, share).unwrap();
                    for count in [1, 4] {
                        let v = waves(&[models, count, network.count()], 0.23, kind);
                        let [h, g] = [Curvature::Hessian, Curvature::GaussNewton]
                            .map(|curvature| at.products(curvature, &v).unwrap());
                        for model in 0..models {
                            let what = format!("{} {kind:?} {loss:?} {own} {count} {model}", network.name());
                            let (x, targets) = (of(&x, model), of(&targets, model));
                            let (theta, v) = (theta.get(model), v.get(model));
                            let expected = by_autograd(&network, &theta, &x, &targets, loss, &v);
                            close(&h.get(model), &expected, tolerance, &what);
                            let exact = gauss_newton(&network, &theta, &x, loss);
                            close(&g.get(model), &v.matmul(&exact), tolerance, &what);

                            let single = Linearised::of(&network, &theta, &x, &targets, loss, share).unwrap();
                            let sums = Products::zeros(&network, count, &theta).unwrap();
                            let directions = Directions::of(&network, &v).unwrap();
                            single.add_products(Curvature::Hessian, &directions, &sums).unwrap();
                            close(&h.get(model), &sums.flat(&network).unwrap(), tolerance, &what);
                        }
                    }
                }
            }
        }
    }

    /// Of images that lie channels last, shared and own; of values and directions of another kind.
    #[test]
    fn the_form_of_what_comes_in_does_not_matter() {
        tch::set_num_threads(1);
        let layers = [Layer::Dense { width: 5 }, Layer::Relu, Layer::Dense { width: 3 }];
        let loss = Loss::MeanSquaredError;
        let images = [Network::new("images", &[2, 4, 5], &layers).unwrap(), networks().swap_remove(4)];
        for network in images {
            let theta = initialise_stacked(&network, &[(0, 0), (1, 0)], Kind::Double, Device::Cpu).unwrap();
            let v = waves(&[2, 3, network.count()], 0.23, Kind::Double);
            for stack in [&[7][..], &[2, 7]] {
                let x = waves(&[stack, network.input()].concat(), 0.37, Kind::Double);
                let targets = waves(&[7, 3], 0.11, Kind::Double);
                let lying = x.movedim_int(-3, -1).contiguous().movedim_int(-1, -3);
                assert!(lying.equal(&x) && !lying.is_contiguous());
                let [h, other] = [&x, &lying].map(|x| {
                    let at = StackedLinearised::of(&network, &theta, x, &targets, loss, 1.).unwrap();
                    at.products(Curvature::Hessian, &v).unwrap()
                });
                assert_eq!(h, other, "{} {stack:?}", network.name());
            }
        }
        // By the kernels, where they are, and by operators.
        for (network, kind) in [Layer::Relu, Layer::Tanh]
            .into_iter()
            .flat_map(|layer| [Kind::Float, Kind::Double].map(|kind| (layer.clone(), kind)))
            .map(|(layer, kind)| (Network::dense(&[5, 6, 3], &layer).unwrap(), kind))
        {
            let other = if kind == Kind::Float { Kind::Double } else { Kind::Float };
            let theta = initialise_stacked(&network, &[(0, 0), (1, 0)], kind, Device::Cpu).unwrap();
            // Numbers of f32, so that nothing is lost either way.
            let x = waves(&[7, 5], 0.37, Kind::Float);
            let targets = waves(&[7, 3], 0.11, Kind::Float);
            let v = waves(&[2, 3, network.count()], 0.23, Kind::Float);
            let products = |of: Kind| {
                let [x, targets, v] = [&x, &targets, &v].map(|t| t.to_kind(of));
                let at = StackedLinearised::of(&network, &theta, &x, &targets, loss, 1.).unwrap();
                at.products(Curvature::Hessian, &v).unwrap()
            };
            let [same, cast] = [kind, other].map(products);
            assert_eq!((cast.kind(), &cast), (kind, &same), "{} {kind:?}", network.name());
        }
    }

    #[test]
    fn a_model_that_is_not_finite_leaves_the_others_their_numbers() {
        tch::set_num_threads(1);
        let network = Network::dense(&[5, 6, 3], &Layer::Tanh).unwrap();
        let seeds = [(0, 0), (1, 0), (2, 0)];
        let theta = initialise_stacked(&network, &seeds, Kind::Float, Device::Cpu).unwrap();
        let (x, targets) = (waves(&[9, 5], 0.37, Kind::Float), waves(&[9, 3], 0.11, Kind::Float));
        let v = waves(&[3, 2, network.count()], 0.23, Kind::Float);
        let products = |theta: &Tensor| {
            let loss = Loss::MeanSquaredError;
            let at = StackedLinearised::of(&network, theta, &x, &targets, loss, 1.).unwrap();
            at.products(Curvature::Hessian, &v).unwrap()
        };
        let whole = products(&theta);
        let _ = theta.get(1).fill_(f64::NAN);
        let spoilt = products(&theta);
        for model in [0, 2] {
            assert_eq!(spoilt.get(model), whole.get(model));
        }
        assert!(bool::try_from(spoilt.get(1).isnan().any()).unwrap());
    }

    #[test]
    fn says_what_does_not_fit() {
        let options = (Kind::Float, Device::Cpu);
        let network = Network::dense(&[5, 3], &Layer::Relu).unwrap();
        let zeros = |size: &[i64]| Tensor::zeros(size, options);
        let labels = |size: &[i64]| Tensor::zeros(size, (Kind::Int64, Device::Cpu));
        let of = |theta: &Tensor, x: &Tensor, targets: &Tensor| {
            StackedLinearised::of(&network, theta, x, targets, Loss::CrossEntropy, 1.)
        };
        let theta = zeros(&[2, network.count()]);
        assert!(of(&theta, &zeros(&[4, 5]), &labels(&[4])).is_ok());
        assert!(of(&theta.get(0), &zeros(&[4, 5]), &labels(&[4])).is_err());
        assert!(of(&theta, &zeros(&[4, 6]), &labels(&[4])).is_err());
        assert!(of(&theta, &zeros(&[3, 4, 5]), &labels(&[4])).is_err());
        assert!(of(&theta, &zeros(&[4, 5]), &labels(&[5])).is_err());
        assert!(of(&theta, &zeros(&[0, 5]), &labels(&[0])).is_err());
        let at = of(&theta, &zeros(&[4, 5]), &labels(&[4])).unwrap();
        let error = at.products(Curvature::Hessian, &zeros(&[2, network.count()])).unwrap_err();
        assert!(error.to_string().contains("[2, K, 18]"), "{error}");

        let lenet = Network::lenet();
        let (theta, x) = (zeros(&[1, lenet.count()]), zeros(&[1, 1, 32, 32]));
        let error = StackedLinearised::of(&lenet, &theta, &x, &labels(&[1]), Loss::CrossEntropy, 1.);
        assert!(error.unwrap_err().to_string().contains("one by one"));
    }
}
