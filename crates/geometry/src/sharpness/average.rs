//! The average case: `E_{z ~ N(0, I)} L(θ + σ T z) - L(θ)` (Andriushchenko et al. 2023, "A modern look at the relationship between sharpness and
//! generalization", with their c = T; T = 1 is the older form, as in Neyshabur et al. 2017, "Exploring generalization in deep learning").
//!
//! Estimated by antithetic pairs, `v = (L(θ + σ T z) + L(θ - σ T z)) / 2 - L(θ)`: the gradient's share, which is 0 in the mean and most of the
//! scatter, cancels in each of them. For a quadratic L, v is `σ² (T z)ᵀ H (T z) / 2`, of mean `σ² Σ T_i² H_ii / 2`.

use super::ascent::check_length;
use super::{Objective, Scale};
use flatland_network::streams::{Purpose, stream};
use flatland_network::{NetworkError, Result};
use rand::Rng;
use rand_distr::StandardNormal;
use tch::Tensor;

/// Pairs of models that meet a chunk of the data while it is in the cache; memory only.
const PAIRS_TOGETHER: u32 = 4;

/// How much the loss rises on average, in its unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AverageCase {
    /// The mean over the pairs: unbiased.
    pub rise: f64,
    /// Its standard error: the pairs' sample standard deviation over the root of their number. Rises are skewed to the right where
    /// few eigenvalues of H are large: 1.96 of it then cover a little less than 95 % (91 % by 40 pairs, for one large eigenvalue).
    pub standard_error: f64,
}

/// Of the loss around θ `[P]`, for normal perturbations of standard deviation σ in the lengths of `scale`. Their stream: seed and which of
/// the seed; the same stream gives the same z, so that models are compared under the same noise.
///
/// # Errors
/// [`NetworkError::Setting`] for σ not above 0 or fewer than 2 pairs; [`NetworkError::Shape`] when θ or the examples do not fit the network.
pub fn average_case(
    objective: &Objective,
    theta: &Tensor,
    sigma: f64,
    scale: Scale,
    pairs: u32,
    (seed, trial): (u64, u32),
) -> Result<AverageCase> {
    check_length("the standard deviation σ", sigma)?;
    objective.check(theta)?;
    if pairs < 2 {
        let reason = format!("an average over perturbations needs at least 2 pairs, found {pairs}");
        return Err(NetworkError::Setting(reason));
    }
    let theta = theta.f_detach()?;
    let lengths = scale.of(objective.model.parameters(), &theta)?.f_mul_scalar(sigma)?;
    let centre = objective.losses(&theta.f_unsqueeze(0)?)?[0];
    if !centre.is_finite() {
        return Ok(AverageCase { rise: f64::NAN, standard_error: f64::NAN });
    }
    let mut rises = Vec::with_capacity(pairs as usize);
    for first in (0..pairs).step_by(PAIRS_TOGETHER as usize) {
        let mut models = Vec::new();
        for pair in first..(first + PAIRS_TOGETHER).min(pairs) {
            let mut generator = stream(seed, trial, pair, Purpose::Perturbation);
            let normal: Vec<f64> = (0..theta.size()[0]).map(|_| generator.sample(StandardNormal)).collect();
            let normal =
                Tensor::f_from_slice(&normal)?.f_to_kind(theta.kind())?.f_to_device(theta.device())?;
            let step = normal.f_mul(&lengths)?;
            models.extend([theta.f_add(&step)?, theta.f_sub(&step)?]);
        }
        let losses = objective.losses(&Tensor::f_stack(&models, 0)?)?;
        rises.extend(losses.chunks_exact(2).map(|pair| f64::midpoint(pair[0], pair[1]) - centre));
    }
    let count = f64::from(pairs);
    let rise = rises.iter().sum::<f64>() / count;
    let variance = rises.iter().map(|one| (one - rise).powi(2)).sum::<f64>() / (count - 1.);
    Ok(AverageCase { rise, standard_error: (variance / count).sqrt() })
}
