//! Sensitivity: how strongly a network reacts to its input, and the figure that the report's notebook takes for it.
//!
//! With f the network, x_i `[input…]` the N examples, ℓ_i the loss of example i in nats, p = softmax(f):
//!
//! | quantity | formula | source |
//! | --- | --- | --- |
//! | [`input_gradient_norms`] | `g_i = ‖∂ℓ_i / ∂x_i‖₂` | the assignment, one example at a time |
//! | [`frobenius_of_mean`] | `‖∂L / ∂X‖_F = √(Σ g_i²) / N` with `L = Σ ℓ_i / N` and X all examples, `[N, input…]` | the assignment, to the letter |
//! | [`JacobianNorms::probabilities`] | `‖∂p(x_i) / ∂x_i‖_F` | Novak et al. 2018, "Sensitivity and generalization in neural networks: an empirical study", section 2.1 |
//! | [`JacobianNorms::logits`] | `‖∂f(x_i) / ∂x_i‖_F` | the same before the softmax |
//! | [`parameter_gradient_norm`] | `Σ_k ‖∂L_B / ∂W_k‖₂ / K` over the K weights and biases, for one batch B | the report's notebook; no sensitivity to the input |
//!
//! [`frobenius_of_mean`] falls as 1/√N for the same network: it compares networks only over equally many examples. The means
//! over examples of the others do not depend on N.
//!
//! All are exact derivatives by reverse mode, one pass backwards a loss or an output. At the kinks of ReLU and
//! max-pooling they are libtorch's choice: 0 where ReLU is closed, the first of equal maxima.

use flatland_network::graph::backward;
use flatland_network::{Examples, Loss, Network, NetworkError, Result, input_jacobians, loss_and_gradient};
use tch::{Device, Kind, Tensor};

/// Examples at once on a CPU: what stays in its cache. Memory only; the numbers do not depend on it.
const CPU_CHUNK: i64 = 100;
/// Examples at once by our own kernels: a Jacobian takes 64 KiB.
const KERNEL_CHUNK: i64 = 25;
/// On an accelerator, launches weigh more.
const DEVICE_CHUNK: i64 = 2000;

/// Norms of the Jacobians of the outputs with respect to the input.
#[derive(Debug)]
pub struct JacobianNorms {
    /// Of the logits: `[N]`, f64, on the CPU.
    pub logits: Tensor,
    /// Of the class probabilities, Novak's: `[N]`, f64, on the CPU.
    pub probabilities: Tensor,
}

/// `‖∂ℓ_i / ∂x_i‖₂` for each example: `[N]`, f64, on the CPU. θ `[P]`.
///
/// # Errors
/// [`NetworkError::Shape`] when θ or the examples do not fit the network.
pub fn input_gradient_norms(
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    loss: Loss,
) -> Result<Tensor> {
    input_gradient_norms_by(chunk(theta), network, theta, examples, loss)
}

fn input_gradient_norms_by(
    chunk: i64,
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    loss: Loss,
) -> Result<Tensor> {
    let theta = one_model(network, theta)?;
    let norms = in_chunks(examples.count(), chunk, |start, length| {
        let (x, targets) = examples.part(start, length)?;
        let x = leaf(&x)?;
        let mean = loss.mean(&network.forward(&theta, &x)?, &targets)?;
        // Examples do not touch each other: the gradient of the summed loss holds each one's own.
        let gradient = only(backward(&[mean.f_mul_scalar(length as f64)?], &[&x], false, false)?)?;
        row_norms(&gradient.f_flatten(1, -1)?)
    })?;
    Ok(Tensor::f_cat(&norms, 0)?)
}

/// `√(Σ g_i²) / N` of the norms `[N]` of [`input_gradient_norms`]: the Frobenius norm of the gradient of the mean loss with
/// respect to all the inputs.
///
/// # Errors
/// When the norms are no numbers.
pub fn frobenius_of_mean(norms: &Tensor) -> Result<f64> {
    let squares = norms.f_to_kind(Kind::Double)?.f_square()?.f_sum(Kind::Double)?;
    Ok(squares.f_double_value(&[])?.sqrt() / norms.numel() as f64)
}

/// `‖∂f(x_i) / ∂x_i‖_F` and `‖∂softmax(f(x_i)) / ∂x_i‖_F` for each of the inputs `[N, input…]`. θ `[P]`.
///
/// One pass forwards and, on the same graph, one backwards for each of the C outputs give the logits' Jacobian J `[C, D]` of
/// an example; `(diag p - p pᵀ) J` is that of the probabilities, whose row c is `p_c (J_c - Σ_k p_k J_k)`. Taken in f64:
/// where the network is sure of a class, the difference nearly cancels.
///
/// # Errors
/// [`NetworkError::Shape`] when θ or the inputs do not fit the network.
pub fn jacobian_norms(network: &Network, theta: &Tensor, inputs: &Tensor) -> Result<JacobianNorms> {
    jacobian_norms_by(chunk(theta), network, theta, inputs)
}

fn jacobian_norms_by(
    chunk: i64,
    network: &Network,
    theta: &Tensor,
    inputs: &Tensor,
) -> Result<JacobianNorms> {
    let theta = one_model(network, theta)?;
    let count = inputs.size().first().copied().unwrap_or(0);
    if count == 0 {
        let expected = "at least one input".to_owned();
        return Err(NetworkError::Shape { what: "x", found: inputs.size(), expected });
    }
    let norms = in_chunks(count, chunk, |start, length| {
        let x = leaf(&inputs.f_narrow(0, start, length)?)?;
        let outputs = network.forward(&theta, &x)?;
        let classes = network.outputs();
        let rows = (0..classes)
            .map(|class| {
                let sum = outputs.f_select(1, class)?.f_sum(outputs.kind())?;
                let keep_graph = class + 1 < classes;
                let gradient = only(backward(&[sum], &[&x], keep_graph, false)?)?;
                Ok(gradient.f_flatten(1, -1)?.f_to_kind(Kind::Double)?)
            })
            .collect::<Result<Vec<_>>>()?;
        let jacobian = Tensor::f_stack(&rows, 1)?; // [B, C, D]
        let p = outputs.f_detach()?.f_to_kind(Kind::Double)?.f_softmax(-1, Kind::Double)?;
        let mean = p.f_unsqueeze(1)?.f_bmm(&jacobian)?; // [B, 1, D]
        let of_probabilities = jacobian.f_sub(&mean)?.f_mul(&p.f_unsqueeze(-1)?)?;
        let norms = [jacobian, of_probabilities].map(|each| row_norms(&each.f_flatten(1, -1)?));
        let [logits, probabilities] = norms;
        Ok(Tensor::f_stack(&[logits?, probabilities?], 0)?)
    })?;
    let norms = Tensor::f_cat(&norms, 1)?;
    Ok(JacobianNorms { logits: norms.f_select(0, 0)?, probabilities: norms.f_select(0, 1)? })
}

/// How strongly a network reacts to its inputs: all that there is by the input, for each example.
#[derive(Debug)]
pub struct InputNorms {
    /// As [`input_gradient_norms`], of the cross-entropy: `[N]`, f64, on the CPU.
    pub gradient: Tensor,
    /// As [`jacobian_norms`].
    pub jacobian: JacobianNorms,
}

/// [`input_gradient_norms`] of the cross-entropy and [`jacobian_norms`] together, θ `[P]`. Where our own kernels have the logits' Jacobian J
/// `[C, D]` in one pass, all are forms in its Gram matrix `G = J Jᵀ`, taken in f64:
///
/// `‖J‖² = tr G`, `‖(diag p - p pᵀ) J‖² = tr(S G S)` with `S = diag p - p pᵀ`, and `‖∂ℓ/∂x‖² = (p - e_y)ᵀ G (p - e_y)`.
///
/// # Errors
/// [`NetworkError::Shape`] when θ or the examples do not fit the network.
pub fn input_norms(network: &Network, theta: &Tensor, examples: &Examples) -> Result<InputNorms> {
    let theta = one_model(network, theta)?;
    let mut parts = Vec::new();
    for start in (0..examples.count()).step_by(KERNEL_CHUNK as usize) {
        let (x, targets) = examples.part(start, KERNEL_CHUNK.min(examples.count() - start))?;
        let Some(jacobian) = input_jacobians(network, &theta, &x)? else {
            let gradient = input_gradient_norms(network, &theta, examples, Loss::CrossEntropy)?;
            let jacobian = jacobian_norms(network, &theta, &examples.inputs()?)?;
            return Ok(InputNorms { gradient, jacobian });
        };
        let jacobian = jacobian.f_to_kind(Kind::Double)?; // [B, D, C]
        let gram = jacobian.f_transpose(1, 2)?.f_bmm(&jacobian)?;
        let p = network.predict(&theta, &x)?.f_to_kind(Kind::Double)?.f_softmax(-1, Kind::Double)?;
        let s = p.f_diag_embed(0, 1, 2)?.f_sub(&p.f_unsqueeze(2)?.f_matmul(&p.f_unsqueeze(1)?)?)?;
        let trace = |matrix: &Tensor| {
            matrix.f_diagonal(0, 1, 2)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)
        };
        let error =
            p.f_sub(&targets.f_one_hot(network.outputs())?.f_to_kind(Kind::Double)?)?.f_unsqueeze(1)?;
        let along = error.f_bmm(&gram)?.f_bmm(&error.f_transpose(1, 2)?)?.f_flatten(0, -1)?;
        let squares = [trace(&gram)?, trace(&s.f_bmm(&gram)?.f_bmm(&s)?)?, along];
        // Rounding can leave a square a little below 0.
        parts.push(Tensor::f_stack(&squares, 0)?.f_clamp_min(0.)?.f_sqrt()?);
    }
    let norms = Tensor::f_cat(&parts, 1)?;
    let jacobian = JacobianNorms { logits: norms.f_select(0, 0)?, probabilities: norms.f_select(0, 1)? };
    Ok(InputNorms { gradient: norms.f_select(0, 2)?, jacobian })
}

/// The mean over the network's weights and biases of the 2-norm of each one's gradient of the mean loss of one batch, x
/// `[B, input…]` with its targets: what the report's notebook calls sensitivity.
///
/// # Errors
/// [`NetworkError::Shape`] when θ, x or the targets do not fit.
pub fn parameter_gradient_norm(
    network: &Network,
    theta: &Tensor,
    x: &Tensor,
    targets: &Tensor,
    loss: Loss,
) -> Result<f64> {
    let theta = one_model(network, theta)?;
    let gradient = loss_and_gradient(network, &theta, x, targets, loss)?.gradient.f_to_kind(Kind::Double)?;
    let parameters = network.parameters();
    let mut sum = 0.;
    for parameter in parameters {
        sum += gradient.f_narrow(0, parameter.offset, parameter.count())?.f_norm()?.f_double_value(&[])?;
    }
    Ok(sum / parameters.len() as f64)
}

fn chunk(theta: &Tensor) -> i64 {
    if theta.device() == Device::Cpu { CPU_CHUNK } else { DEVICE_CHUNK }
}

/// θ as a constant: only the input is differentiated.
fn one_model(network: &Network, theta: &Tensor) -> Result<Tensor> {
    if theta.dim() == 1 {
        return Ok(theta.f_detach()?);
    }
    let expected = format!("[{}]", network.count());
    Err(NetworkError::Shape { what: "θ", found: theta.size(), expected })
}

fn in_chunks(count: i64, chunk: i64, of: impl Fn(i64, i64) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let starts = (0..count).step_by(chunk as usize);
    starts.map(|start| Ok(of(start, chunk.min(count - start))?.f_to_device(Device::Cpu)?)).collect()
}

/// A part of the inputs as the leaf of a graph of its own.
fn leaf(inputs: &Tensor) -> Result<Tensor> {
    Ok(inputs.f_detach()?.f_set_requires_grad(true)?)
}

fn only(mut gradients: Vec<Tensor>) -> Result<Tensor> {
    // An input that the output does not depend on would come back undefined; a dense layer always connects them.
    gradients
        .pop()
        .filter(Tensor::defined)
        .ok_or_else(|| NetworkError::Setting("libtorch returned no gradient of the input".into()))
}

/// 2-norm of each row, in f64.
fn row_norms(rows: &Tensor) -> Result<Tensor> {
    Ok(rows.f_to_kind(Kind::Double)?.f_norm_scalaropt_dim(2., [1i64].as_slice(), false)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_network::{Layer, initialise};

    fn waves(shape: &[i64], kind: Kind) -> Tensor {
        let count = shape.iter().product::<i64>();
        (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 0.7).sin().view(shape).to_kind(kind)
    }

    fn examples(network: &Network, count: i64, kind: Kind) -> Examples {
        let x = waves(&[&[count], network.input()].concat(), kind);
        let labels: Vec<i64> = (0..count).map(|i| i * 7 % network.outputs()).collect();
        Examples::new(x, Tensor::from_slice(&labels)).unwrap()
    }

    fn theta(network: &Network, kind: Kind) -> Tensor {
        initialise(network, 1, 0, kind, Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
    }

    fn assert_close(left: &[f64], right: &[f64], relative: f64) {
        assert_eq!(left.len(), right.len());
        for (a, b) in left.iter().zip(right) {
            assert!((a - b).abs() <= relative * b.abs(), "{a} and {b}");
        }
    }

    /// LeNet's kinds of layers, small enough for finite differences.
    fn small() -> Network {
        let layers = [
            Layer::Convolution { channels: 3, kernel: 3, padding: 1 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Dense { width: 7 },
            Layer::Relu,
            Layer::Dense { width: 4 },
        ];
        Network::new("small", &[1, 6, 6], &layers).unwrap()
    }

    /// f(x) = W x + b: the gradient is Wᵀ (p - y), the Jacobians are W and (diag p - p pᵀ) W.
    #[test]
    fn a_linear_softmax_model_has_a_closed_form() {
        let network = Network::dense(&[5, 3], &Layer::Relu).unwrap();
        let theta = theta(&network, Kind::Double) * 3.;
        let examples = examples(&network, 8, Kind::Double);
        let w = theta.narrow(0, 0, 15).view([3, 5]);
        let p = network.predict(&theta, &examples.inputs().unwrap()).unwrap().softmax(-1, Kind::Double);
        let y = examples.targets().one_hot(3).to_kind(Kind::Double);
        let gradients = (&p - &y).matmul(&w);
        let expected = gradients.norm_scalaropt_dim(2., [1i64].as_slice(), false);
        let found = input_gradient_norms(&network, &theta, &examples, Loss::CrossEntropy).unwrap();
        assert_close(&values(&found), &values(&expected), 1e-12);
        let whole = (gradients / 8.).norm().double_value(&[]);
        assert_close(&[frobenius_of_mean(&found).unwrap()], &[whole], 1e-12);

        let norms = jacobian_norms(&network, &theta, &examples.inputs().unwrap()).unwrap();
        assert_close(&values(&norms.logits), &[w.norm().double_value(&[]); 8], 1e-12);
        let expected: Vec<f64> = (0..8)
            .map(|i| {
                let p = p.get(i);
                let softmax = p.diag(0) - p.outer(&p);
                softmax.matmul(&w).norm().double_value(&[])
            })
            .collect();
        assert_close(&values(&norms.probabilities), &expected, 1e-12);
    }

    /// Central differences in f64, entry by entry of the input.
    #[test]
    fn agrees_with_finite_differences() {
        let network = small();
        let theta = theta(&network, Kind::Double);
        let examples = examples(&network, 3, Kind::Double);
        let step = 1e-6;
        let (mut gradients, mut logits, mut probabilities) = ([0.; 3], [0.; 3], [0.; 3]);
        for entry in 0..36 {
            let nudge = Tensor::zeros([36], (Kind::Double, Device::Cpu));
            let _ = nudge.get(entry).fill_(step);
            let nudge = nudge.view([1, 1, 6, 6]);
            let at = |sign: f64| {
                let outputs =
                    network.predict(&theta, &(&examples.inputs().unwrap() + &nudge * sign)).unwrap();
                let log_p = outputs.log_softmax(-1, Kind::Double);
                let losses = -log_p.gather(1, &examples.targets().unsqueeze(1), false).squeeze_dim(1);
                (losses, outputs.shallow_clone(), log_p.exp())
            };
            let ((l1, f1, p1), (l0, f0, p0)) = (at(1.), at(-1.));
            let slope = |high: &Tensor, low: &Tensor, i: i64| {
                ((high - low) / (2. * step)).get(i).square().sum(Kind::Double).double_value(&[])
            };
            for i in 0..3usize {
                gradients[i] += slope(&l1, &l0, i as i64);
                logits[i] += slope(&f1, &f0, i as i64);
                probabilities[i] += slope(&p1, &p0, i as i64);
            }
        }
        let roots = |squares: [f64; 3]| squares.map(f64::sqrt);
        let found = input_gradient_norms(&network, &theta, &examples, Loss::CrossEntropy).unwrap();
        assert_close(&values(&found), &roots(gradients), 1e-6);
        let norms = jacobian_norms(&network, &theta, &examples.inputs().unwrap()).unwrap();
        assert_close(&values(&norms.logits), &roots(logits), 1e-6);
        assert_close(&values(&norms.probabilities), &roots(probabilities), 1e-6);
    }

    #[test]
    fn all_norms_together_are_those_one_by_one() {
        tch::set_num_threads(1);
        // By our own kernels, and where they do not fit.
        for network in [Network::lenet(), small()] {
            let theta = theta(&network, Kind::Float) * 1.5;
            let examples = examples(&network, 60, Kind::Float);
            let found = input_norms(&network, &theta, &examples).unwrap();
            let gradient = input_gradient_norms(&network, &theta, &examples, Loss::CrossEntropy).unwrap();
            let norms = jacobian_norms(&network, &theta, &examples.inputs().unwrap()).unwrap();
            assert_close(&values(&found.gradient), &values(&gradient), 1e-4);
            assert_close(&values(&found.jacobian.logits), &values(&norms.logits), 1e-4);
            assert_close(&values(&found.jacobian.probabilities), &values(&norms.probabilities), 1e-4);
        }
    }

    /// f32 with the kernels' networks against f64, and any cut into chunks against any other.
    #[test]
    fn numbers_do_not_depend_on_chunks_and_little_on_precision() {
        let network = Network::lenet();
        let [single, double] = [Kind::Float, Kind::Double].map(|kind| {
            let (theta, examples) = (theta(&network, kind), examples(&network, 13, kind));
            [1, 5, 13, 100].map(|chunk| {
                let gradients =
                    input_gradient_norms_by(chunk, &network, &theta, &examples, Loss::CrossEntropy).unwrap();
                let norms = jacobian_norms_by(chunk, &network, &theta, &examples.inputs().unwrap()).unwrap();
                [values(&gradients), values(&norms.logits), values(&norms.probabilities)]
            })
        });
        for (chunks, relative) in [(&single, 1e-5), (&double, 1e-12)] {
            for other in &chunks[1..] {
                for (a, b) in other.iter().zip(&chunks[0]) {
                    assert_close(a, b, relative);
                }
            }
        }
        for (a, b) in single[3].iter().zip(&double[3]) {
            assert_close(a, b, 1e-4);
        }
    }

    /// One number, by autograd through the plain operators and tensor by tensor.
    #[test]
    fn the_notebooks_figure_is_the_mean_norm_over_tensors() {
        let network = small();
        let theta = theta(&network, Kind::Double);
        let (inputs, targets) = examples(&network, 9, Kind::Double).part(0, 9).unwrap();
        let leaf = theta.copy().set_requires_grad(true);
        let outputs = network.forward(&leaf, &inputs).unwrap();
        let loss = Loss::CrossEntropy.mean(&outputs, &targets).unwrap();
        let gradient = Tensor::run_backward(&[&loss], &[&leaf], false, false).remove(0);
        // conv1 27 + 3, fc1 7 x 27 + 7, fc2 4 x 7 + 4
        let parts = gradient.split_with_sizes([27, 3, 189, 7, 28, 4], 0);
        let expected = parts.iter().map(|part| part.norm().double_value(&[])).sum::<f64>() / 6.;
        let found = parameter_gradient_norm(&network, &theta, &inputs, &targets, Loss::CrossEntropy).unwrap();
        assert_close(&[found], &[expected], 1e-12);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let network = small();
        let theta = theta(&network, Kind::Float);
        let examples = examples(&network, 2, Kind::Float);
        let stack = theta.unsqueeze(0);
        assert!(input_gradient_norms(&network, &stack, &examples, Loss::CrossEntropy).is_err());
        assert!(jacobian_norms(&network, &theta.narrow(0, 0, 5), &examples.inputs().unwrap()).is_err());
        assert!(jacobian_norms(&network, &theta, &waves(&[2, 1, 5, 5], Kind::Float)).is_err());
        assert!(jacobian_norms(&network, &theta, &waves(&[0, 1, 6, 6], Kind::Float)).is_err());
    }
}
