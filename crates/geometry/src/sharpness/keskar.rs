//! Keskar's sharpness (Keskar et al. 2017, "On large-batch training for deep learning: generalization gap and sharp minima", metric 2.1):
//!
//! `φ = 100 (max_{z in C} L(θ + A z) - L(θ)) / (1 + L(θ))`, `C = {z : |z_i| ≤ ε (|(A⁺ θ)_i| + 1)}`,
//!
//! with A the identity, or `[P, p]` of random columns with norm 1, A⁺ its pseudoinverse. Keskar et al. take p = 100 and ε of 1e-3 and
//! 5e-4, and look for the maximum by at most 10 iterations of L-BFGS-B. Here it is projected gradient ascent (`ascent.rs`), whose steps go along the gradient's
//! signs: the box's corners are where a convex loss is highest, and no line search is needed to get there. Either search gives a lower bound.

use super::ascent::{Map, Region, check_length, highest};
use super::{Ascent, Objective};
use flatland_network::streams::{Purpose, stream};
use flatland_network::{NetworkError, Result};
use rand::Rng;
use rand_distr::StandardNormal;
use tch::{Kind, Tensor};

/// φ (no unit, in percent) of the loss around θ `[P]`, in the box `|δ_i| ≤ ε (|θ_i| + 1)`: a lower bound.
///
/// # Errors
/// [`NetworkError::Setting`] for ε not above 0 or no steps; [`NetworkError::Shape`] when θ or the examples do not fit the network.
pub fn keskar(objective: &Objective, theta: &Tensor, epsilon: f64, ascent: Ascent) -> Result<f64> {
    check_length("the box's ε", epsilon)?;
    objective.check(theta)?;
    let map = Map::Diagonal(bounds(&theta.f_detach()?, epsilon)?);
    phi(objective, theta, &map, ascent)
}

/// The same in a random subspace of `dimension` p, whose columns come from `directions`: seed and which of the seed.
///
/// # Errors
/// As [`keskar`], and for a dimension outside 1 to P.
pub fn keskar_in_subspace(
    objective: &Objective,
    theta: &Tensor,
    epsilon: f64,
    dimension: i64,
    directions: (u64, u32),
    ascent: Ascent,
) -> Result<f64> {
    check_length("the box's ε", epsilon)?;
    objective.check(theta)?;
    let all = theta.size()[0];
    if !(1..=all).contains(&dimension) {
        let reason = format!("the subspace must have 1 to {all} dimensions, found {dimension}");
        return Err(NetworkError::Setting(reason));
    }
    let columns = columns(theta, dimension, directions)?;
    let coordinates = least_squares(&columns, &theta.f_detach()?)?;
    let map = Map::Subspace(columns, bounds(&coordinates, epsilon)?);
    phi(objective, theta, &map, ascent)
}

/// `ε (|x| + 1)`.
fn bounds(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    Ok(x.f_abs()?.f_add_scalar(1.)?.f_mul_scalar(epsilon)?)
}

fn phi(objective: &Objective, theta: &Tensor, map: &Map, ascent: Ascent) -> Result<f64> {
    let found = highest(objective, theta, Region::Box, map, ascent)?;
    Ok(100. * (found.most - found.centre) / (1. + found.centre))
}

/// A: standard normal numbers, each column divided by its norm.
fn columns(like: &Tensor, dimension: i64, (seed, trial): (u64, u32)) -> Result<Tensor> {
    let columns = (0..dimension).map(|column| {
        let mut generator = stream(seed, trial, column as u32, Purpose::Perturbation);
        let numbers: Vec<f64> = (0..like.size()[0]).map(|_| generator.sample(StandardNormal)).collect();
        let numbers = Tensor::f_from_slice(&numbers)?;
        let norm = numbers.f_norm()?.f_double_value(&[])?;
        Ok(numbers.f_div_scalar(norm)?.f_to_kind(like.kind())?)
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_stack(&columns, 1)?.f_to_device(like.device())?)
}

/// `A⁺ θ = (AᵀA)⁻¹ Aᵀ θ`. Random columns are independent, and P is far above p as a rule: AᵀA is near the identity.
fn least_squares(columns: &Tensor, theta: &Tensor) -> Result<Tensor> {
    let transposed = columns.f_transpose(0, 1)?;
    let gram = transposed.f_matmul(columns)?.f_to_kind(Kind::Double)?;
    let product = transposed.f_mv(theta)?.f_to_kind(Kind::Double)?;
    Ok(Tensor::f_linalg_solve(&gram, &product, true)?.f_to_kind(theta.kind())?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Quadratic, corners};
    use super::*;

    /// By brute force over the corners, with libtorch's pseudoinverse.
    #[test]
    fn in_a_subspace_too_the_maximum_is_at_a_corner() {
        for (kind, tolerance) in [(Kind::Double, 1e-9), (Kind::Float, 5e-3)] {
            let quadratic = Quadratic::new(9, kind, false);
            let theta = quadratic.theta.to_kind(Kind::Double);
            for dimension in [1, 4, 10] {
                let columns = columns(&theta, dimension, (3, 1)).unwrap();
                assert!(columns.square().sum_dim_intlist([0i64].as_slice(), false, Kind::Double).allclose(
                    &Tensor::ones([dimension], (Kind::Double, theta.device())),
                    1e-12,
                    0.,
                    false
                ));
                let bounds = (columns.pinverse(1e-15).mv(&theta).abs() + 1.) * 0.1;
                let rises = corners(dimension).map(|signs| quadratic.rise(&columns.mv(&(&bounds * signs))));
                let expected = 100. * rises.fold(0., f64::max) / (1. + quadratic.loss());
                let ascent = Ascent { steps: 100, restarts: 60, stream: (1, 0) };
                let found = keskar_in_subspace(
                    &quadratic.objective(),
                    &quadratic.theta,
                    0.1,
                    dimension,
                    (3, 1),
                    ascent,
                );
                let found = found.unwrap();
                assert!(
                    (found / expected - 1.).abs() < tolerance,
                    "{kind:?} {dimension}: {found} {expected}"
                );
            }
        }
    }
}
