//! The exact Hessian of a small network's loss, and its eigenvalues.
//!
//! With `L(θ)` the mean loss over the examples, without any weight decay, and `g(θ) = ∇L(θ)`:
//!
//! `H_ij = ∂²L / ∂θ_i ∂θ_j`; row i is the Hessian-vector product `H e_i = ∇(g · e_i)` (Pearlmutter 1994, "Fast exact
//! multiplication by the Hessian").
//!
//! All P products are one: θ repeated as a stack `[P, P]` gives P gradients in one graph, and the gradient of their dot products
//! with the identity is the whole Hessian. Dense networks under the mean squared error have it in closed form
//! (`dense_hessian.rs`), which takes a fraction of the time.
//!
//! Everything is computed in f64. Networks of ReLU or LeakyReLU have a Hessian almost everywhere: where no pre-activation is
//! exactly 0, the loss is smooth around θ, and this is its second derivative.

use crate::dense_hessian;
use flatland_network::graph::backward;
use flatland_network::{DenseLayer, Examples, Loss, Network, NetworkError};
use tch::{Device, Kind, Tensor};
use thiserror::Error;

/// Numbers in one layer's activations of a chunk on a CPU, 4 MiB of f64: what stays near its cache. Memory only.
const CPU_CHUNK: i64 = 1 << 19;
/// On an accelerator, launches weigh more.
const DEVICE_CHUNK: i64 = 1 << 25;
/// The largest P: above it the matrix alone takes 2 GiB.
const MOST_PARAMETERS: i64 = 1 << 14;
/// The closed form holds several matrices of H's size at once: 128 MiB each at this P.
const MOST_IN_CLOSED_FORM: i64 = 1 << 12;
/// What rounding leaves is near 1e-16.
const MOST_ASYMMETRY: f64 = 1e-8;

/// A Hessian that cannot be had.
#[derive(Debug, Error)]
pub enum HessianError {
    /// θ, the examples or libtorch.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// More parameters than a matrix of them can hold.
    #[error("an exact Hessian is for at most {MOST_PARAMETERS} parameters, the network has {0}")]
    Size(i64),
    /// The loss or one of its derivatives overflowed.
    #[error("the Hessian is not finite at this θ")]
    NotFinite,
    /// What came out is no Hessian.
    #[error("the Hessian is not symmetric: ‖H - Hᵀ‖ / ‖H‖ = {0:.1e}")]
    Asymmetric(f64),
}

impl From<tch::TchError> for HessianError {
    fn from(error: tch::TchError) -> Self {
        Self::Network(error.into())
    }
}

/// The Hessian of the mean loss over all examples at θ `[P]`: `[P, P]`, f64, on the CPU.
///
/// θ and the examples may be f32; they are widened first. Memory is bounded by cutting the stack into rows and the examples into
/// chunks; the numbers depend on that only in the last bits. Rounding leaves an asymmetry `‖H - Hᵀ‖ / ‖H‖` near 1e-16; the mean
/// of H and Hᵀ is returned.
///
/// # Errors
/// [`HessianError::Network`] when θ or the examples do not fit the network, [`HessianError::Size`] for more than 16,384
/// parameters, [`HessianError::NotFinite`] where the loss has overflowed, [`HessianError::Asymmetric`] for an asymmetry above
/// 1e-8.
pub fn hessian(
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    loss: Loss,
) -> Result<Tensor, HessianError> {
    check(network, theta)?;
    let layers = network.dense_layers().filter(|_| loss == Loss::MeanSquaredError);
    if let Some(layers) = layers.filter(|_| network.count() <= MOST_IN_CLOSED_FORM) {
        let length = dense_hessian::chunk(&layers);
        return closed_form(length, network, &layers, theta, examples);
    }
    let whole = chunk(network, theta, 1);
    let rows = chunk(network, theta, whole.min(examples.count()));
    hessian_by([rows, whole], network, theta, examples, loss)
}

fn check(network: &Network, theta: &Tensor) -> Result<(), HessianError> {
    let count = network.count();
    if count > MOST_PARAMETERS {
        return Err(HessianError::Size(count));
    }
    if theta.size() != [count] {
        let expected = format!("[{count}]");
        return Err(NetworkError::Shape { what: "θ", found: theta.size(), expected }.into());
    }
    Ok(())
}

/// Of a dense network under the mean squared error, in so many examples at once.
fn closed_form(
    length: i64,
    network: &Network,
    layers: &[DenseLayer],
    theta: &Tensor,
    examples: &Examples,
) -> Result<Tensor, HessianError> {
    let theta = theta.f_detach()?.f_to_kind(Kind::Double)?;
    let examples = widened(examples)?;
    // Shapes first, for an error that can be read.
    let (x, targets) = examples.part(0, 1)?;
    let _ = Loss::MeanSquaredError.mean(&network.predict(&theta, &x)?, &targets)?;
    let mean = over_chunks::<HessianError>(length, &examples, |part| {
        Ok(dense_hessian::mean(layers, &theta, &part.inputs()?.f_flatten(1, -1)?, part.targets())?)
    })?;
    symmetric(&mean.f_to_device(Device::Cpu)?)
}

/// In so many rows and examples at once.
fn hessian_by(
    [rows, length]: [i64; 2],
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    loss: Loss,
) -> Result<Tensor, HessianError> {
    check(network, theta)?;
    let count = network.count();
    let theta = theta.f_detach()?.f_to_kind(Kind::Double)?;
    let examples = widened(examples)?;
    let identity = Tensor::f_eye(count, (Kind::Double, theta.device()))?;
    let mut found = Vec::new();
    for start in (0..count).step_by(rows as usize) {
        let directions = identity.f_narrow(0, start, rows.min(count - start))?;
        let product = products(length, network, &theta, &examples, loss, &directions)?;
        found.push(product.f_to_device(Device::Cpu)?);
    }
    symmetric(&Tensor::f_cat(&found, 0)?)
}

/// The mean of a matrix and its transpose, if these are finite and nearly the same.
fn symmetric(matrix: &Tensor) -> Result<Tensor, HessianError> {
    let transposed = matrix.f_transpose(0, 1)?;
    let norm = matrix.f_norm()?.f_double_value(&[])?;
    if !norm.is_finite() {
        return Err(HessianError::NotFinite);
    }
    let asymmetry = matrix.f_sub(&transposed)?.f_norm()?.f_double_value(&[])? / norm.max(f64::MIN_POSITIVE);
    if asymmetry > MOST_ASYMMETRY {
        return Err(HessianError::Asymmetric(asymmetry));
    }
    Ok(matrix.f_add(&transposed)?.f_mul_scalar(0.5)?)
}

/// `H v` for each row v of `directions` `[R, P]`, all at once.
fn products(
    length: i64,
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    loss: Loss,
    directions: &Tensor,
) -> Result<Tensor, HessianError> {
    let stack = theta.f_unsqueeze(0)?.f_repeat([directions.size()[0], 1])?;
    over_chunks(length, examples, |part| {
        let leaf = stack.f_detach()?.f_set_requires_grad(true)?;
        let losses = loss.mean(&network.forward(&leaf, &part.inputs()?)?, part.targets())?;
        let gradient = only(backward(&[losses.f_sum(Kind::Double)?], &[&leaf], true, true)?)?;
        if !gradient.requires_grad() {
            // A loss that is linear in θ.
            return Ok(leaf.f_zeros_like()?);
        }
        let along = gradient.f_mul(directions)?.f_sum(Kind::Double)?;
        Ok(only(backward(&[along], &[&leaf], false, false)?)?.f_detach()?)
    })
}

/// The mean over all examples of what `of` gives as the mean over some, added in the examples' order.
pub(crate) fn over_chunks<E: From<NetworkError> + From<tch::TchError>>(
    length: i64,
    examples: &Examples,
    of: impl Fn(&Examples) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    let count = examples.count();
    let mut sum: Option<Tensor> = None;
    for start in (0..count).step_by(length as usize) {
        let here = length.min(count - start);
        let part = examples.slice(start, here)?;
        let weighted = of(&part)?.f_mul_scalar(here as f64 / count as f64)?;
        sum = Some(match sum {
            None => weighted,
            Some(sum) => sum.f_add(&weighted)?,
        });
    }
    Ok(sum.ok_or_else(|| NetworkError::Setting("a loss needs at least one example".into()))?)
}

/// How many rows of so many examples each, or examples, fit into a chunk.
pub(crate) fn chunk(network: &Network, theta: &Tensor, examples: i64) -> i64 {
    let budget = if theta.device() == Device::Cpu { CPU_CHUNK } else { DEVICE_CHUNK };
    (budget / (network.widest() * examples)).clamp(1, MOST_PARAMETERS)
}

/// The examples in f64; class indices stay what they are.
pub(crate) fn widened(examples: &Examples) -> Result<Examples, NetworkError> {
    let wide =
        |t: &Tensor| if t.is_floating_point() { t.f_to_kind(Kind::Double) } else { Ok(t.shallow_clone()) };
    Examples::new(wide(&examples.inputs()?)?, wide(examples.targets())?)
}

fn only(mut gradients: Vec<Tensor>) -> Result<Tensor, NetworkError> {
    gradients
        .pop()
        .filter(Tensor::defined)
        .ok_or_else(|| NetworkError::Setting("libtorch returned no derivative by θ".into()))
}

/// The eigenvalues of a symmetric matrix `[P, P]`, ascending, by libtorch's `linalg_eigvalsh` (LAPACK's `dsyevd`) in f64. Rounding moves
/// each by some 1e-16 of the largest in size.
///
/// # Errors
/// [`HessianError::NotFinite`] for a matrix that is not finite, [`HessianError::Network`] when libtorch refuses it.
pub fn eigenvalues(matrix: &Tensor) -> Result<Vec<f64>, HessianError> {
    let matrix = matrix.f_to_kind(Kind::Double)?;
    if matrix.f_isfinite()?.f_all()?.f_int64_value(&[])? != 1 {
        return Err(HessianError::NotFinite);
    }
    let values = matrix.f_linalg_eigvalsh("L")?.f_to_device(Device::Cpu)?;
    Ok(Vec::try_from(values)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_network::{Layer, initialise, loss_and_gradient};

    fn waves(shape: &[i64]) -> Tensor {
        let count = shape.iter().product::<i64>();
        // Without the square, three columns would depend on each other.
        (Tensor::arange(count, (Kind::Double, Device::Cpu)).square() * 0.7).sin().view(shape)
    }

    fn theta(network: &Network) -> Tensor {
        initialise(network, 1, 0, Kind::Double, Device::Cpu).unwrap()
    }

    fn largest(difference: &Tensor) -> f64 {
        difference.abs().max().double_value(&[])
    }

    fn with_ones(x: &Tensor) -> Tensor {
        Tensor::cat(&[x.shallow_clone(), x.ones_like().narrow(1, 0, 1)], 1)
    }

    /// f(x) = w·x + b under the mean squared error: H = 2 XᵀX / N with a column of ones in X, wherever θ is.
    #[test]
    fn linear_regression_has_a_closed_form() {
        let network = Network::dense(&[3, 1], &Layer::Relu).unwrap();
        let examples = Examples::new(waves(&[20, 3]), waves(&[20, 1])).unwrap();
        let x = with_ones(&examples.inputs().unwrap());
        let expected = x.transpose(0, 1).matmul(&x) * (2. / 20.);
        let found = hessian(&network, &theta(&network), &examples, Loss::MeanSquaredError).unwrap();
        assert_eq!((found.size(), found.kind()), (vec![4, 4], Kind::Double));
        assert!(largest(&(&found - &expected)) < 1e-15, "{}", largest(&(&found - &expected)));

        // Two numbers whose sum and product are known.
        let values = eigenvalues(&found).unwrap();
        assert!(values.is_sorted());
        assert!((values.iter().sum::<f64>() - expected.trace().double_value(&[])).abs() < 1e-14);
        let determinant = Tensor::linalg_det(&expected).double_value(&[]);
        assert!((values.iter().product::<f64>() / determinant - 1.).abs() < 1e-12);
    }

    /// Softmax regression: H = Σ (diag p - p pᵀ) ⊗ x xᵀ / N, for the weights.
    #[test]
    fn logistic_regression_has_a_closed_form() {
        let network = Network::dense(&[3, 4], &Layer::Relu).unwrap();
        let labels: Vec<i64> = (0..10).map(|i| i * 7 % 4).collect();
        let examples = Examples::new(waves(&[10, 3]), Tensor::from_slice(&labels)).unwrap();
        let theta = theta(&network) * 3.;
        let p = network.predict(&theta, &examples.inputs().unwrap()).unwrap().softmax(-1, Kind::Double);
        let x = with_ones(&examples.inputs().unwrap());
        let mut expected = Tensor::zeros([16, 16], (Kind::Double, Device::Cpu));
        for i in 0..10 {
            let (p, x) = (p.get(i), x.get(i));
            expected += (p.diag(0) - p.outer(&p)).kron(&x.outer(&x)) / 10.;
        }
        // θ holds the weights [4, 3] before the biases [4]; the formula's rows are (w, b) of one class after the other.
        let order: Vec<i64> =
            (0..4).flat_map(|c| (0..3).map(move |k| 4 * c + k)).chain((0..4).map(|c| 4 * c + 3)).collect();
        let order = Tensor::from_slice(&order);
        let expected = expected.index_select(0, &order).index_select(1, &order);
        let found = hessian(&network, &theta, &examples, Loss::CrossEntropy).unwrap();
        assert!(largest(&(&found - &expected)) < 1e-15);
        // The loss does not see what is added to all logits of a class alike: a direction for each of x's numbers.
        let values = eigenvalues(&found).unwrap();
        assert!(values[..4].iter().all(|value| value.abs() < 1e-15) && values[4] > 1e-6, "{values:?}");
    }

    /// A net of the report's kind, on its target.
    fn small() -> (Network, Tensor, Examples) {
        let network = Network::dense(&[1, 4, 5, 1], &Layer::LeakyRelu).unwrap();
        let x = Tensor::linspace(-1.5, 1.5, 31, (Kind::Double, Device::Cpu)).unsqueeze(1);
        let y = (&x * (5. * std::f64::consts::PI)).sin();
        let theta = theta(&network) * 2.;
        (network, theta, Examples::new(x, y).unwrap())
    }

    fn gradient(network: &Network, theta: &Tensor, examples: &Examples, loss: Loss) -> Tensor {
        loss_and_gradient(network, theta, &examples.inputs().unwrap(), examples.targets(), loss)
            .unwrap()
            .gradient
    }

    /// Central differences of the gradient, column by column. The steps are too small to reach a kink, as the agreement of
    /// two of them says.
    #[test]
    fn agrees_with_finite_differences() {
        let (network, theta, examples) = small();
        let found = hessian(&network, &theta, &examples, Loss::MeanSquaredError).unwrap();
        for step in [1e-6, 2e-6] {
            let columns: Vec<Tensor> = (0..network.count())
                .map(|entry| {
                    let nudge = theta.zeros_like();
                    let _ = nudge.get(entry).fill_(step);
                    let at = |theta: Tensor| gradient(&network, &theta, &examples, Loss::MeanSquaredError);
                    (at(&theta + &nudge) - at(&theta - &nudge)) / (2. * step)
                })
                .collect();
            let expected = Tensor::stack(&columns, 1);
            assert!(largest(&(&found - &expected)) < 1e-8 * largest(&found));
        }
    }

    /// Convolution, pooling and ReLU, in one class of graphs with dense layers.
    #[test]
    fn agrees_with_finite_differences_for_convolutions() {
        let layers = [
            Layer::Convolution { channels: 2, kernel: 3, padding: 1 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Dense { width: 3 },
        ];
        let network = Network::new("small", &[1, 4, 4], &layers).unwrap();
        let labels: Vec<i64> = (0..5).map(|i| i * 7 % 3).collect();
        let examples = Examples::new(waves(&[5, 1, 4, 4]), Tensor::from_slice(&labels)).unwrap();
        let theta = theta(&network);
        let found = hessian(&network, &theta, &examples, Loss::CrossEntropy).unwrap();
        for entry in 0..network.count() {
            let nudge = theta.zeros_like();
            let _ = nudge.get(entry).fill_(1e-6);
            let at = |theta: Tensor| gradient(&network, &theta, &examples, Loss::CrossEntropy);
            let column = (at(&theta + &nudge) - at(&theta - &nudge)) / 2e-6;
            assert!(largest(&(found.select(1, entry) - column)) < 1e-8);
        }
    }

    /// Pearlmutter's products, through libtorch's graphs.
    #[test]
    fn the_closed_form_equals_backpropagation() {
        let relu_at_the_end =
            [Layer::Dense { width: 4 }, Layer::Tanh, Layer::Dense { width: 3 }, Layer::Relu];
        for network in [
            Network::dense(&[1, 4, 9, 10, 4, 1], &Layer::LeakyRelu).unwrap(),
            Network::dense(&[3, 5, 4, 2], &Layer::Relu).unwrap(),
            Network::dense(&[2, 6, 3, 3, 2], &Layer::Tanh).unwrap(),
            Network::dense(&[3, 2], &Layer::Tanh).unwrap(),
            Network::new("ends in ReLU", &[2], &relu_at_the_end).unwrap(),
            Network::new("image", &[1, 2, 3], &relu_at_the_end).unwrap(),
        ] {
            let theta = theta(&network) * 2.;
            let (inputs, outputs) = ([&[23], network.input()].concat(), network.outputs());
            let examples = Examples::new(waves(&inputs), waves(&[23, outputs]) * 2.).unwrap();
            let expected =
                hessian_by([1000, 1000], &network, &theta, &examples, Loss::MeanSquaredError).unwrap();
            let layers = network.dense_layers().unwrap();
            for length in [1000, 23, 7, 1] {
                let found = closed_form(length, &network, &layers, &theta, &examples).unwrap();
                let off = largest(&(&found - &expected)) / largest(&expected);
                assert!(off < 1e-13, "{}, {length}: {off}", network.name());
            }
            assert!(
                closed_form(
                    9,
                    &network,
                    &layers,
                    &theta,
                    &Examples::new(waves(&[23, 9]), waves(&[23, 1])).unwrap()
                )
                .is_err()
            );
        }
    }

    #[test]
    fn chunks_change_nothing_but_rounding() {
        let (network, theta, examples) = small();
        let whole = hessian_by([1000, 1000], &network, &theta, &examples, Loss::MeanSquaredError).unwrap();
        for chunks in [[1, 1000], [7, 1000], [1000, 7], [5, 30]] {
            let cut = hessian_by(chunks, &network, &theta, &examples, Loss::MeanSquaredError).unwrap();
            assert!(largest(&(&whole - &cut)) < 1e-14 * largest(&whole), "{chunks:?}");
        }
        assert_eq!(whole, whole.transpose(0, 1));
        // f32 is widened, not computed with.
        let single = Examples::new(
            examples.inputs().unwrap().to_kind(Kind::Float),
            examples.targets().to_kind(Kind::Float),
        );
        let theta = theta.to_kind(Kind::Float);
        let found = hessian(&network, &theta, &single.unwrap(), Loss::MeanSquaredError).unwrap();
        assert!(largest(&(&whole - &found)) < 1e-5 * largest(&whole));
    }

    #[test]
    fn refuses_what_has_no_hessian() {
        let (network, theta, examples) = small();
        let of = |theta: &Tensor| hessian(&network, theta, &examples, Loss::MeanSquaredError);
        assert!(matches!(of(&theta.narrow(0, 0, 5)), Err(HessianError::Network(_))));
        assert!(matches!(of(&theta.unsqueeze(0)), Err(HessianError::Network(_))));
        assert!(matches!(of(&(&theta * 1e200)), Err(HessianError::NotFinite)));
        let nan = Tensor::eye(3, (Kind::Double, Device::Cpu)) * f64::NAN;
        assert!(matches!(eigenvalues(&nan), Err(HessianError::NotFinite)));
        assert!(eigenvalues(&waves(&[3, 4])).is_err());
        let examples = Examples::new(waves(&[2, 200]), waves(&[2, 100])).unwrap();
        let large = Network::dense(&[200, 100], &Layer::Relu).unwrap();
        let refused = hessian(&large, &self::theta(&large), &examples, Loss::MeanSquaredError);
        assert!(matches!(refused, Err(HessianError::Size(20_100))));
    }
}
