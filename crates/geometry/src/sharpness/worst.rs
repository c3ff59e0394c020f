//! The worst case in a ball: `max_{‖T⁻¹ δ‖₂ ≤ ρ} L(θ + δ) - L(θ)`.
//!
//! With T = 1 it is what SAM minimises (Foret et al. 2021, "Sharpness-aware minimization for efficiently improving generalization"),
//! in one step `δ = ρ ∇L / ‖∇L‖₂`; with T by θ, its adaptive form, `δ = ρ T² ∇L / ‖T ∇L‖₂` (Kwon et al. 2021, "ASAM").
//! Several steps, as in Andriushchenko et al. 2023, come closer to the maximum: `ascent.rs` says how, and why the rise is a lower bound.

use super::ascent::{Map, Region, check_length, highest};
use super::{Ascent, Objective, Scale};
use flatland_network::Result;
use tch::Tensor;

/// How much the loss rises, in its unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorstCase {
    /// At SAM's one step. Below 0 where the loss is lower there.
    pub one_step: f64,
    /// The most that was found: a lower bound of the worst case, no less than 0 and than `one_step`.
    pub rise: f64,
}

/// Of the loss around θ `[P]`, within ρ in the lengths of `scale`.
///
/// # Errors
/// [`flatland_network::NetworkError::Setting`] for ρ not above 0 or no steps; [`flatland_network::NetworkError::Shape`] when θ or the examples
/// do not fit the network.
pub fn worst_case(
    objective: &Objective,
    theta: &Tensor,
    rho: f64,
    scale: Scale,
    ascent: Ascent,
) -> Result<WorstCase> {
    check_length("the radius ρ", rho)?;
    objective.check(theta)?;
    let map = Map::Diagonal(scale.of(objective.model.parameters(), theta)?);
    let found = highest(objective, theta, Region::Ball(rho), &map, ascent)?;
    Ok(WorstCase { one_step: found.one_step - found.centre, rise: found.most - found.centre })
}
