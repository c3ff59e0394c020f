//! Critical points, whatever their kind: the minima of the gradient's own norm.
//!
//! With `g(θ) = ∇L(θ)` for the mean loss L without weight decay and `H(θ)` its Hessian, `½ ‖g‖²` has the gradient `H g`, and is 0 at
//! minima, saddles and maxima of L alike. As a nonlinear least-squares problem in the residual g, whose Jacobian is H, it is
//! solved by Levenberg and Marquardt's method (Nocedal and Wright 2006, *Numerical Optimization*, section 10.3):
//!
//! `δ(λ) = -(HᵀH + λ I)⁻¹ Hᵀ g = -Q diag(Λ / (Λ² + λ)) Qᵀ g`, with `H = Q Λ Qᵀ`,
//!
//! which is Newton's step at λ → 0 and a short step down `½ ‖g‖²` at λ → ∞. Since the eigenvectors give δ for any λ at the price of a
//! product, and a stack gives the gradients of many θ at once, λ is not adapted from step to step: a whole grid of them
//! is tried, and the step that leaves the smallest ‖g‖ is taken, if that is smaller than before. Steps longer than a tenth of ‖θ‖ are left
//! out: they often have a small ‖g‖ too, but leap to another part of the landscape.
//!
//! It need not succeed. Where g lies in the kernel of H, ‖g‖ can have a minimum that is not 0, a *gradient-flat* point (Frye et al. 2021,
//! "Critical point-finding methods reveal gradient-flat regions of deep network losses", *Neural Computation* 33; they found such points where others had
//! reported critical ones). And g jumps where a unit of a piecewise linear network switches for some example: the
//! search can come to rest at such a kink. [`CriticalPoint::ended`] and [`CriticalPoint::curvature_along_gradient`] say what was found.

use crate::hessian::{HessianError, chunk, hessian, over_chunks, widened};
use flatland_network::{Examples, Loss, Network, loss_and_gradient};
use std::fmt;
use tch::{Device, Kind, Tensor};

/// λ over the square of the largest eigenvalue: from where rounding of H drowns it, to steps of a ten-thousandth of `g / Λ`.
const DAMPING: std::ops::RangeInclusive<i32> = -26..=4;
/// A step is at most this share of ‖θ‖.
const REACH: f64 = 0.1;
/// A search that in so many steps brings ‖g‖ down by less than 1 % has stalled.
pub const PATIENCE: usize = 20;
/// That is, to no less than this share of what it was.
const PROGRESS: f64 = 0.99;

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CriticalSettings {
    /// Steps at most; each takes a Hessian.
    pub steps: u32,
    /// ‖g‖ of a point that counts as critical.
    pub tolerance: f64,
}

/// How a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// ‖g‖ is within the tolerance.
    Reached,
    /// No step makes ‖g‖ smaller, or 20 of them only by 1 % together.
    Stalled,
    /// It was still getting smaller.
    OutOfSteps,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Reached => "reached",
            Self::Stalled => "stalled",
            Self::OutOfSteps => "out of steps",
        })
    }
}

/// Where a search went.
#[derive(Debug)]
pub struct CriticalPoint {
    /// Its end: `[P]`, f64, on the device of the θ it began at.
    pub theta: Tensor,
    /// L and ‖g‖ at each step's θ, the first and the last included.
    pub path: Vec<Step>,
    /// `‖H g‖ / (‖H‖ ‖g‖)` at the end, with ‖H‖ the largest eigenvalue in size: 0 to 1. Near 0 the point is gradient-flat. `None` where
    /// the tolerance is met, since the direction of g says nothing there, or H is 0.
    pub curvature_along_gradient: Option<f64>,
    /// Why it ended.
    pub ended: Ended,
}

/// A θ of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Mean loss over the examples, in its unit.
    pub loss: f64,
    /// 2-norm of its gradient.
    pub gradient_norm: f64,
}

/// Searches from θ `[P]` for a critical point of the mean loss over all examples, in f64.
///
/// # Errors
/// As [`hessian`], at the θ where it begins. A step to where the loss or its Hessian overflows is not taken.
pub fn critical_point(
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    loss: Loss,
    settings: CriticalSettings,
) -> Result<CriticalPoint, HessianError> {
    let examples = widened(examples)?;
    let mut matrix = hessian(network, theta, &examples, loss)?;
    let mut theta = theta.f_detach()?.f_to_kind(Kind::Double)?;
    let (losses, gradients) = gradients(network, &theta.f_unsqueeze(0)?, &examples, loss)?;
    let mut gradient = gradients.f_select(0, 0)?;
    let mut path = vec![Step {
        loss: losses.f_double_value(&[0])?,
        gradient_norm: gradient.f_norm()?.f_double_value(&[])?,
    }];
    loop {
        let (values, vectors) = matrix.f_linalg_eigh("L")?;
        let along = vectors.f_transpose(0, 1)?.f_mv(&gradient.f_to_device(Device::Cpu)?)?;
        let largest = values.f_abs()?.f_max()?.f_double_value(&[])?;
        let here = path[path.len() - 1].gradient_norm;
        let end = |theta: Tensor, path: Vec<Step>, ended: Ended| -> Result<CriticalPoint, HessianError> {
            let curved = values.f_mul(&along)?.f_norm()?.f_double_value(&[])?;
            let most = largest * here;
            let curvature_along_gradient = (ended != Ended::Reached && most > 0.).then(|| curved / most);
            Ok(CriticalPoint { theta, path, curvature_along_gradient, ended })
        };
        if here <= settings.tolerance {
            return end(theta, path, Ended::Reached);
        }
        let before = path.len().checked_sub(PATIENCE + 1).map(|k| path[k].gradient_norm);
        if before.is_some_and(|before| here > PROGRESS * before) || largest == 0. {
            return end(theta, path, Ended::Stalled);
        }
        if path.len() > settings.steps as usize {
            return end(theta, path, Ended::OutOfSteps);
        }

        // All δ(λ), `[K, P]`: for each λ a row of Λ / (Λ² + λ), times Qᵀ g, back through Q.
        let damping: Vec<f64> = DAMPING.rev().map(|power| largest.powi(2) * 10f64.powi(power)).collect();
        let damped =
            values.f_square()?.f_unsqueeze(0)?.f_add(&Tensor::f_from_slice(&damping)?.f_unsqueeze(1)?)?;
        let filtered = values.f_mul(&along)?.f_unsqueeze(0)?.f_div(&damped)?;
        let steps = filtered.f_matmul(&vectors.f_transpose(0, 1)?)?.f_to_device(theta.device())?;
        let candidates = theta.f_unsqueeze(0)?.f_sub(&steps)?;
        let (losses, gradients) = self::gradients(network, &candidates, &examples, loss)?;
        let norms = gradients.f_norm_scalaropt_dim(2., [1i64].as_slice(), false)?;
        let norms: Vec<f64> = Vec::try_from(norms.f_to_device(Device::Cpu)?)?;
        let lengths = steps.f_norm_scalaropt_dim(2., [1i64].as_slice(), false)?;
        let lengths: Vec<f64> = Vec::try_from(lengths.f_to_device(Device::Cpu)?)?;
        let reach = REACH * theta.f_norm()?.f_double_value(&[])?;
        let within = lengths.iter().take_while(|length| **length <= reach).count();
        let Some((index, norm)) = lowest(here, &norms[..within]) else {
            return end(theta, path, Ended::Stalled);
        };
        let next = candidates.f_select(0, index as i64)?;
        match hessian(network, &next, &examples, loss) {
            Ok(there) => matrix = there,
            Err(HessianError::NotFinite) => return end(theta, path, Ended::Stalled),
            Err(error) => return Err(error),
        }
        theta = next.f_detach_copy()?;
        gradient = gradients.f_select(0, index as i64)?;
        path.push(Step { loss: losses.f_double_value(&[index as i64])?, gradient_norm: norm });
    }
}

/// L and ‖g‖ at θ `[P]`, the mean over all examples, in f64.
///
/// # Errors
/// [`HessianError::Network`] when θ or the examples do not fit the network.
pub fn loss_and_norm(
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    loss: Loss,
) -> Result<Step, HessianError> {
    let theta = theta.f_detach()?.f_to_kind(Kind::Double)?.f_unsqueeze(0)?;
    let (losses, gradients) = gradients(network, &theta, &widened(examples)?, loss)?;
    let gradient_norm = gradients.f_norm()?.f_double_value(&[])?;
    Ok(Step { loss: losses.f_double_value(&[0])?, gradient_norm })
}

/// The lowest of the norms and its place, the first of equals, if it is below `here`. NaN is below nothing.
fn lowest(here: f64, norms: &[f64]) -> Option<(usize, f64)> {
    let start = (None, here);
    let (index, norm) =
        norms.iter().enumerate().fold(
            start,
            |(least, most), (index, &norm)| {
                if norm < most { (Some(index), norm) } else { (least, most) }
            },
        );
    index.map(|index| (index, norm))
}

/// L `[M]` and g `[M, P]` of a stack of θ over all examples.
fn gradients(
    network: &Network,
    stack: &Tensor,
    examples: &Examples,
    loss: Loss,
) -> Result<(Tensor, Tensor), HessianError> {
    let length = chunk(network, stack, stack.size()[0]);
    let both = over_chunks::<HessianError>(length, examples, |part| {
        let found = loss_and_gradient(network, stack, &part.inputs()?, part.targets(), loss)?;
        Ok(Tensor::f_cat(&[found.loss.f_unsqueeze(1)?, found.gradient], 1)?)
    })?;
    let (_, parameters) = both.size2()?;
    Ok((both.f_select(1, 0)?, both.f_narrow(1, 1, parameters - 1)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eigenvalues;
    use flatland_network::{Layer, initialise};

    const SETTINGS: CriticalSettings = CriticalSettings { steps: 200, tolerance: 1e-10 };

    fn tensor(values: &[f64]) -> Tensor {
        Tensor::from_slice(values)
    }

    fn index(matrix: &Tensor) -> (usize, usize, usize) {
        let values = eigenvalues(matrix).unwrap();
        let large = values.iter().fold(0., |most: f64, value| most.max(value.abs())) * 1e-7;
        let count = |of: &dyn Fn(f64) -> bool| values.iter().filter(|&&value| of(value)).count();
        (count(&|v| v > large), count(&|v| v.abs() <= large), count(&|v| v < -large))
    }

    #[test]
    fn takes_the_lowest_norm_and_no_rise() {
        let nan = f64::NAN;
        for (norms, expected) in [
            (vec![0.9, 0.5, 0.6, 0.1], Some((3, 0.1))),
            (vec![nan, 0.9, 0.9, 1.1], Some((1, 0.9))),
            (vec![1., 2., nan], None),
            (vec![], None),
        ] {
            assert_eq!(lowest(1., &norms), expected, "{norms:?}");
        }
    }

    /// One step is enough for a quadratic, and it leads to the least-squares solution.
    #[test]
    fn linear_regression_takes_one_step() {
        let network = Network::dense(&[2, 1], &Layer::Relu).unwrap();
        let x = Tensor::arange(24, (Kind::Double, Device::Cpu)).sin().view([12, 2]);
        let y = x.matmul(&tensor(&[2., -1.]).unsqueeze(1)) + 0.5;
        let examples = Examples::new(x, y).unwrap();
        let theta = tensor(&[1.9, -0.95, 0.6]);
        let found = critical_point(&network, &theta, &examples, Loss::MeanSquaredError, SETTINGS).unwrap();
        assert_eq!((found.ended, found.path.len()), (Ended::Reached, 2));
        assert!((&found.theta - tensor(&[2., -1., 0.5])).norm().double_value(&[]) < 1e-12);
        assert!(found.path[1].loss < 1e-24);
    }

    /// f(x) = a (b x + d) + c with y = x: at a = b = 0 and c, d such that the mean is met, L has a saddle. With x of mean 0 and mean square s,
    /// L = s (ab - 1)² + (ad + c)²; LeakyReLU is the identity while b x + d > 0.
    #[test]
    #[allow(clippy::many_single_char_names)] // the formula's own
    fn finds_a_saddle_and_not_the_minimum_below_it() {
        let network = Network::dense(&[1, 1, 1], &Layer::LeakyRelu).unwrap();
        let x = tensor(&[-1., -0.5, 0.5, 1.]).unsqueeze(1);
        let examples = Examples::new(x.copy(), x).unwrap();
        // θ = (b, d, a, c): near (0, 1, 0, 0).
        let theta = tensor(&[0.05, 1., -0.04, 0.03]);
        let found = critical_point(&network, &theta, &examples, Loss::MeanSquaredError, SETTINGS).unwrap();
        assert_eq!(found.ended, Ended::Reached);
        let [b, d, a, c] = [0, 1, 2, 3].map(|k| found.theta.double_value(&[k]));
        assert!(a.abs() < 1e-9 && b.abs() < 1e-9 && c.abs() < 1e-9, "{a} {b} {c}");
        assert!((found.path.last().unwrap().loss - 0.625).abs() < 1e-12);
        // By hand, with s = 0.625: ∂²L/∂a∂b = -2 s; over (a, c) the term (ad + c)² adds 2 (d, 1)(d, 1)ᵀ; d is free.
        let matrix = hessian(&network, &found.theta, &examples, Loss::MeanSquaredError).unwrap();
        let expected =
            tensor(&[0., 0., -1.25, 0., 0., 0., 0., 0., -1.25, 0., 2. * d * d, 2. * d, 0., 0., 2. * d, 2.])
                .view([4, 4]);
        assert!((matrix.copy() - expected).norm().double_value(&[]) < 1e-8);
        assert_eq!(index(&matrix), (2, 1, 1));
    }

    fn wave() -> (Network, Examples) {
        let network = Network::dense(&[1, 4, 3, 1], &Layer::LeakyRelu).unwrap();
        let x = Tensor::linspace(-1.5, 1.5, 25, (Kind::Double, Device::Cpu)).unsqueeze(1);
        let y = (&x * 2.).sin();
        (network, Examples::new(x, y).unwrap())
    }

    /// Scaling a unit's input weights and bias by c > 0 and its output weights by 1/c changes nothing: at a critical point, each of the 7
    /// hidden units leaves the Hessian an eigenvalue of exactly 0, whatever else it has.
    #[test]
    fn a_critical_point_of_a_net_is_flat_along_its_symmetries() {
        tch::set_num_threads(1);
        let (network, examples) = wave();
        let mut reached = 0;
        for seed in 0..5 {
            let theta = initialise(&network, seed, 0, Kind::Float, Device::Cpu).unwrap();
            let found =
                critical_point(&network, &theta, &examples, Loss::MeanSquaredError, SETTINGS).unwrap();
            let norms: Vec<f64> = found.path.iter().map(|step| step.gradient_norm).collect();
            assert!(norms.windows(2).all(|pair| pair[1] < pair[0]), "{norms:?}");
            if found.ended != Ended::Reached {
                assert!(norms.last().unwrap() > &SETTINGS.tolerance);
                assert!((0. ..=1.).contains(&found.curvature_along_gradient.unwrap()));
                continue;
            }
            reached += 1;
            let matrix = hessian(&network, &found.theta, &examples, Loss::MeanSquaredError).unwrap();
            assert!(index(&matrix).1 >= 7, "{:?}", eigenvalues(&matrix));
            // Going on changes nothing any more.
            let again = CriticalSettings { steps: 2, tolerance: 0. };
            let further =
                critical_point(&network, &found.theta, &examples, Loss::MeanSquaredError, again).unwrap();
            let other = hessian(&network, &further.theta, &examples, Loss::MeanSquaredError).unwrap();
            assert_eq!(index(&matrix), index(&other));
        }
        assert!(reached >= 3, "{reached} of 5");
    }

    #[test]
    fn says_when_it_had_too_few_steps() {
        let (network, examples) = wave();
        let theta = initialise(&network, 1, 0, Kind::Float, Device::Cpu).unwrap();
        let few = CriticalSettings { steps: 1, tolerance: 1e-10 };
        let found = critical_point(&network, &theta, &examples, Loss::MeanSquaredError, few).unwrap();
        assert_eq!((found.ended, found.path.len()), (Ended::OutOfSteps, 2));
        let none = CriticalSettings { steps: 0, tolerance: 1e-10 };
        let found = critical_point(&network, &theta, &examples, Loss::MeanSquaredError, none).unwrap();
        assert_eq!((found.ended, found.path.len()), (Ended::OutOfSteps, 1));
        let all = CriticalSettings { steps: 9, tolerance: f64::INFINITY };
        let found = critical_point(&network, &theta, &examples, Loss::MeanSquaredError, all).unwrap();
        assert_eq!((found.ended, found.path.len()), (Ended::Reached, 1));
    }
}
