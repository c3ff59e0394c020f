//! Dense layers with ReLU between them under cross-entropy, on a CPU: forwards and backwards by hand.
//!
//! The products are libtorch's. What is saved is a graph of dozens of small operators: softmax, loss, hits and their gradient are one
//! pass over the logits, and gradients are written where they belong.
//!
//! With `p = softmax(z)`, the gradient of the mean loss of B examples by the logits is `(p - onehot(y)) / B`; behind a dense layer
//! `z = a Wᵀ + b` it is `gᵀ a` by W, `Σ g` by b and `g W` by a. The same numbers as autograd's, but for the order of sums: tested below.

use crate::network::Step;
use crate::slices::{is_plain, slice, slice_mut};
use crate::{Loss, Network, NetworkError, Result};
use tch::{Device, Kind, Tensor};

/// The end of a network, from its convolutions or its first layer on.
#[derive(Debug)]
pub struct Head {
    /// Whether ReLU comes before the first layer.
    rectified_input: bool,
    /// Index of each layer's weight, and whether ReLU follows.
    layers: Vec<(usize, bool)>,
}

/// What it yields for a batch; the gradients of its parameters are written elsewhere.
#[derive(Debug)]
pub struct HeadGradient {
    /// Mean loss, a scalar.
    pub loss: Tensor,
    /// Hits, a scalar (i64).
    pub correct: Tensor,
    /// Of the head's input, of its shape, where it was asked for.
    pub input: Option<Tensor>,
}

impl Head {
    /// These last steps of a network, if they can be done by hand.
    pub fn of(steps: &[Step], theta: &Tensor, input: &Tensor, targets: &Tensor, loss: Loss) -> Option<Self> {
        let fits = loss == Loss::CrossEntropy
            && [theta, input].into_iter().all(is_plain::<f32>)
            && is_plain::<i64>(targets)
            && targets.dim() == 1
            && input.dim() >= 2
            && targets.size()[0] == input.size()[0];
        let (rectified_input, mut steps) = match steps {
            [Step::Relu, rest @ ..] => (true, rest),
            _ => (false, steps),
        };
        let mut layers = Vec::new();
        while let [Step::Dense { weight }, rest @ ..] = steps {
            let rectified = rest.first() == Some(&Step::Relu);
            layers.push((*weight, rectified));
            steps = &rest[usize::from(rectified)..];
        }
        let ends = layers.last().is_some_and(|(_, rectified)| !rectified);
        (fits && ends && steps.is_empty()).then_some(Self { rectified_input, layers })
    }

    /// Loss, hits and gradients at θ `[P]` for a batch. The gradients of the head's parameters go to their places in `flat` `[P]`.
    pub fn loss_and_gradient(
        &self,
        network: &Network,
        theta: &Tensor,
        input: &Tensor,
        targets: &Tensor,
        flat: &Tensor,
        with_input: bool,
    ) -> Result<HeadGradient> {
        let _no_grad = tch::no_grad_guard();
        let parameters = network.parameters();
        let mut activation = if input.dim() > 2 { input.f_flatten(1, -1)? } else { input.shallow_clone() };
        if self.rectified_input {
            activation = activation.f_relu()?;
        }
        let mut inputs = Vec::with_capacity(self.layers.len());
        for &(weight, rectified) in &self.layers {
            let [w, b] = [parameters[weight].of(theta)?, parameters[weight + 1].of(theta)?];
            let mut z = activation.f_linear(&w, Some(&b))?;
            if rectified {
                z = z.f_relu_()?;
            }
            inputs.push(activation);
            activation = z;
        }

        let (loss, correct, mut gradient) = cross_entropy(&activation, targets)?;
        let mut into = None;
        for (index, &(weight, _)) in self.layers.iter().enumerate().rev() {
            let dw = parameters[weight].of(flat)?;
            let _ = gradient.f_transpose(0, 1)?.f_mm_out(&dw, &inputs[index])?;
            add_up(&gradient, &parameters[weight + 1].of(flat)?);
            if index == 0 && !with_input {
                break;
            }
            let back = gradient.f_mm(&parameters[weight].of(theta)?)?;
            let rectified = if index == 0 { self.rectified_input } else { self.layers[index - 1].1 };
            if rectified {
                rectify(&back, &inputs[index]);
            }
            if index == 0 {
                into = Some(back.f_view(input.size().as_slice())?);
                break;
            }
            gradient = back;
        }
        Ok(HeadGradient { loss, correct, input: into })
    }
}

/// Mean loss, hits and the gradient by the logits, `[B, C]`, in one pass.
fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
    let (batch, classes) = logits.size2()?;
    let gradient = Tensor::f_empty([batch, classes], (Kind::Float, Device::Cpu))?;
    let classes = classes as usize;
    // SAFETY: just made.
    let rows = unsafe { slice_mut::<f32>(&gradient) }.chunks_exact_mut(classes);
    let examples = slice::<f32>(logits).chunks_exact(classes).zip(rows).zip(slice::<i64>(targets));
    let (mut sum, mut hits) = (0., 0i64);
    let share = 1. / batch as f32;
    for ((logits, gradient), &target) in examples {
        let Some(target) = usize::try_from(target).ok().filter(|target| *target < classes) else {
            let expected = format!("0 to {}", classes - 1);
            return Err(NetworkError::Setting(format!("a target is class {target}, expected {expected}")));
        };
        let best = first_largest(logits);
        hits += i64::from(best == target);
        let most = logits[best];
        let mut total = 0.;
        for (g, &z) in gradient.iter_mut().zip(logits) {
            *g = (z - most).exp();
            total += *g;
        }
        sum += f64::from(total.ln() - (logits[target] - most));
        let scale = share / total;
        for g in gradient.iter_mut() {
            *g *= scale;
        }
        gradient[target] -= share;
    }
    let loss = Tensor::from((sum / batch as f64) as f32);
    Ok((loss, Tensor::from(hits), gradient))
}

/// As libtorch takes it: the first of equals, and NaN before all.
fn first_largest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, &z) in logits.iter().enumerate().skip(1) {
        if !logits[best].is_nan() && (z > logits[best] || z.is_nan()) {
            best = index;
        }
    }
    best
}

/// Σ over the rows of `[B, N]`, into `[N]`.
fn add_up(rows: &Tensor, sums: &Tensor) {
    // SAFETY: a part of the gradient that nothing else looks at meanwhile.
    let sums = unsafe { slice_mut::<f32>(sums) };
    sums.fill(0.);
    for row in slice::<f32>(rows).chunks_exact(sums.len()) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
}

/// 0 where ReLU is closed.
fn rectify(gradient: &Tensor, activation: &Tensor) {
    // SAFETY: just made by the caller.
    let gradient = unsafe { slice_mut::<f32>(gradient) };
    for (gradient, &activation) in gradient.iter_mut().zip(slice::<f32>(activation)) {
        *gradient = if activation <= 0. { 0. } else { *gradient };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layer, initialise};

    fn wave(size: &[i64], speed: f64) -> Tensor {
        let count: i64 = size.iter().product();
        (Tensor::arange(count, (Kind::Float, Device::Cpu)) * speed).sin().view(size)
    }

    #[test]
    fn equals_autograd() {
        tch::set_num_threads(1);
        let relu_first = [
            Layer::Relu,
            Layer::Dense { width: 5 },
            Layer::Dense { width: 6 },
            Layer::Relu,
            Layer::Dense { width: 3 },
        ];
        for network in [
            Network::dense(&[7, 4], &Layer::Relu).unwrap(),
            Network::dense(&[7, 9, 8, 4], &Layer::Relu).unwrap(),
            Network::new("relu first", &[2, 3, 2], &relu_first).unwrap(),
        ] {
            let theta = initialise(&network, 3, 0, Kind::Float, Device::Cpu).unwrap() * 2.;
            let x = wave(&[&[11], network.input()].concat(), 0.7) * 3.;
            let targets = Tensor::arange(11, (Kind::Int64, Device::Cpu)).remainder(network.outputs());
            let leaf = theta.detach().set_requires_grad(true);
            let input = x.detach().set_requires_grad(true);
            let outputs = network.forward(&leaf, &input).unwrap();
            let loss = Loss::CrossEntropy.mean(&outputs, &targets).unwrap();
            let expected = Tensor::run_backward(&[&loss], &[&leaf, &input], false, false);
            let head = Head::of(network.steps(), &theta, &x, &targets, Loss::CrossEntropy).unwrap();
            let flat = Tensor::full([network.count()], f64::NAN, (Kind::Float, Device::Cpu));
            let found = head.loss_and_gradient(&network, &theta, &x, &targets, &flat, true).unwrap();
            assert!(found.loss.allclose(&loss.detach(), 1e-6, 1e-7, false));
            let hits = Loss::CrossEntropy.correct(&outputs.detach(), &targets).unwrap().unwrap();
            assert_eq!(found.correct, hits);
            assert!(flat.allclose(&expected[0], 1e-5, 1e-7, false), "{}", network.name());
            assert!(found.input.unwrap().allclose(&expected[1], 1e-5, 1e-7, false), "{}", network.name());
        }
    }

    #[test]
    fn takes_only_what_it_can_do() {
        let network = Network::dense(&[7, 9, 4], &Layer::Relu).unwrap();
        let theta = wave(&[network.count()], 0.1);
        let (x, targets) = (wave(&[5, 7], 0.3), Tensor::zeros([5], (Kind::Int64, Device::Cpu)));
        let fits = |network: &Network, x: &Tensor, loss| {
            Head::of(network.steps(), &theta, x, &targets, loss).is_some()
        };
        assert!(fits(&network, &x, Loss::CrossEntropy));
        assert!(!fits(&network, &x, Loss::MeanSquaredError));
        assert!(!fits(&network, &x.to_kind(Kind::Double), Loss::CrossEntropy));
        assert!(!fits(&network, &x.narrow(0, 0, 4), Loss::CrossEntropy));
        for activation in [Layer::Tanh, Layer::LeakyRelu] {
            let network = Network::dense(&[7, 9, 4], &activation).unwrap();
            assert!(!fits(&network, &x, Loss::CrossEntropy));
        }
        let head = Head::of(network.steps(), &theta, &x, &targets, Loss::CrossEntropy).unwrap();
        let flat = theta.zeros_like();
        for wrong in [-1, 4] {
            let targets = targets.full_like(wrong);
            let error = head.loss_and_gradient(&network, &theta, &x, &targets, &flat, false).unwrap_err();
            assert!(error.to_string().contains("expected 0 to 3"), "{error}");
        }
    }

    #[test]
    fn nan_is_not_hidden() {
        let logits = Tensor::from_slice(&[1f32, f32::NAN, 2., 0., 1., 2.]).view([2, 3]);
        let (loss, correct, gradient) = cross_entropy(&logits, &Tensor::from_slice(&[1i64, 2])).unwrap();
        assert!(loss.double_value(&[]).is_nan() && correct.int64_value(&[]) == 2);
        assert!(gradient.get(0).isnan().all().int64_value(&[]) == 1);
        assert!(gradient.get(1).isnan().any().int64_value(&[]) == 0);
    }
}
