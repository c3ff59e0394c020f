//! The largest loss in a region around θ, by projected gradient ascent.
//!
//! The region is a ball or a box of coordinates u, with `δ = M u`. From u with the slope `s = Mᵀ ∇L(θ + M u)`, where p is the
//! point of the region furthest along s,
//!
//! `p = argmax_{v in the region} s·v = ρ s / ‖s‖₂` in the ball, `sign(s)` in the box,
//!
//! the next u is `p` itself, or, where L is not higher there, the projection of `u + η p` with η = 1, 1/4, 1/16, …: a step straight to p is the limit
//! η → ∞ of the projected step. It never goes down in a convex L, since `L(p) ≥ L(u) + s·(p - u) ≥ L(u)`, and is then the generalized power
//! method (Journée et al. 2010, "Generalized power method for sparse principal component analysis"); in a ball around the minimum of
//! a quadratic it is the power method for λmax. SAM's one step is the first of it, from u = 0.
//!
//! What comes out is the loss at some point of the region, hence a **lower bound** of the maximum, up to rounding: in a box even the maximum of a
//! quadratic is NP-hard. More starts can only raise it.

use super::Objective;
use flatland_network::streams::{Purpose, stream};
use flatland_network::{NetworkError, Result};
use rand::Rng;
use rand_distr::StandardNormal;
use tch::Tensor;

/// After so many steps that do not rise, the last with η near 1e-7, the ascent has come to rest.
const MOST_RETREATS: i32 = 12;

/// How hard to look for a maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ascent {
    /// Steps from each start, at least 1; each takes a gradient over all examples.
    pub steps: u32,
    /// Starts at random points of the region (in a ball, of its surface), beside the one at θ itself.
    pub restarts: u32,
    /// The stream of the random starts: seed and which of the seed.
    pub stream: (u64, u32),
}

impl Ascent {
    pub(super) fn check(self) -> Result<Self> {
        if self.steps == 0 {
            return Err(NetworkError::Setting("an ascent needs at least 1 step, found 0".into()));
        }
        Ok(self)
    }
}

/// The region, in u.
#[derive(Debug, Clone, Copy)]
pub(super) enum Region {
    /// `‖u‖₂ ≤ ρ`.
    Ball(f64),
    /// `|u_i| ≤ 1`.
    Box,
}

/// M, from u to δ.
#[derive(Debug)]
pub(super) enum Map {
    /// `δ = t u`, elementwise, t `[P]`.
    Diagonal(Tensor),
    /// `δ = A (b u)`, A `[P, p]`, b `[p]`.
    Subspace(Tensor, Tensor),
}

impl Map {
    /// Number of coordinates.
    fn count(&self) -> i64 {
        match self {
            Self::Diagonal(lengths) | Self::Subspace(_, lengths) => lengths.size()[0],
        }
    }

    /// `M u`.
    fn step(&self, u: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Diagonal(lengths) => lengths.f_mul(u)?,
            Self::Subspace(directions, lengths) => directions.f_mv(&lengths.f_mul(u)?)?,
        })
    }

    /// `Mᵀ g`.
    fn slope(&self, gradient: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Diagonal(lengths) => lengths.f_mul(gradient)?,
            Self::Subspace(directions, lengths) => {
                directions.f_transpose(0, 1)?.f_mv(gradient)?.f_mul(lengths)?
            }
        })
    }
}

impl Region {
    /// The point furthest along a slope; `None` for a slope of 0, or one that is not finite.
    fn furthest(self, slope: &Tensor) -> Result<Option<Tensor>> {
        let norm = slope.f_norm()?.f_double_value(&[])?;
        if norm == 0. || !norm.is_finite() {
            return Ok(None);
        }
        Ok(Some(match self {
            Self::Ball(radius) => slope.f_mul_scalar(radius / norm)?,
            Self::Box => slope.f_sign()?,
        }))
    }

    fn project(self, u: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Ball(radius) => {
                let norm = u.f_norm()?.f_double_value(&[])?;
                if norm > radius { u.f_mul_scalar(radius / norm)? } else { u.shallow_clone() }
            }
            Self::Box => u.f_clamp(-1., 1.)?,
        })
    }

    fn random(self, like: &Tensor, count: i64, (seed, trial): (u64, u32), start: u32) -> Result<Tensor> {
        let mut generator = stream(seed, trial, start, Purpose::Perturbation);
        let numbers: Vec<f64> = (0..count)
            .map(|_| match self {
                Self::Ball(_) => generator.sample(StandardNormal),
                Self::Box => generator.gen_range(-1. ..=1.),
            })
            .collect();
        let numbers = Tensor::f_from_slice(&numbers)?;
        let point = match self {
            Self::Ball(radius) => {
                let norm = numbers.f_norm()?.f_double_value(&[])?;
                numbers.f_mul_scalar(radius / norm)?
            }
            Self::Box => numbers,
        };
        Ok(point.f_to_kind(like.kind())?.f_to_device(like.device())?)
    }
}

/// What an ascent found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Highest {
    /// L(θ).
    pub centre: f64,
    /// L where the first step from θ leads.
    pub one_step: f64,
    /// The highest L met.
    pub most: f64,
}

/// All from θ `[P]`. NaN thrice where L(θ) is not finite; where L is infinite in the region, the highest is.
pub(super) fn highest(
    objective: &Objective,
    theta: &Tensor,
    region: Region,
    map: &Map,
    ascent: Ascent,
) -> Result<Highest> {
    let ascent = ascent.check()?;
    let theta = theta.f_detach()?;
    let at = |u: &Tensor| -> Result<(f64, Tensor)> {
        let (loss, gradient) = objective.loss_and_gradient(&theta.f_add(&map.step(u)?)?)?;
        Ok((loss, map.slope(&gradient)?))
    };
    let (centre, gradient) = objective.loss_and_gradient(&theta)?;
    if !centre.is_finite() {
        return Ok(Highest { centre: f64::NAN, one_step: f64::NAN, most: f64::NAN });
    }
    let mut found = Highest { centre, one_step: centre, most: centre };
    for start in 0..=ascent.restarts {
        let (mut u, (mut here, mut slope)) = if start == 0 {
            let zero = Tensor::f_zeros([map.count()], (theta.kind(), theta.device()))?;
            (zero, (centre, map.slope(&gradient)?))
        } else {
            let u = region.random(&theta, map.count(), ascent.stream, start)?;
            let there = at(&u)?;
            (u, there)
        };
        let mut retreats = 0;
        for step in 0..ascent.steps {
            let Some(furthest) = region.furthest(&slope)? else { break };
            let next = match retreats {
                0 => furthest,
                _ => region.project(&u.f_add(&furthest.f_mul_scalar(4f64.powi(1 - retreats))?)?)?,
            };
            if retreats > MOST_RETREATS || next.f_equal(&u)? {
                break;
            }
            let (there, slope_there) = at(&next)?;
            if start == 0 && step == 0 {
                found.one_step = there;
            }
            if there > here {
                (u, here, slope) = (next, there, slope_there);
                retreats = (retreats - 1).max(0);
            } else {
                retreats += 1;
            }
        }
        // A NaN is no maximum, f64::max passes over it.
        found.most = found.most.max(here);
    }
    Ok(found)
}

/// A radius or an ε that bounds something.
pub(super) fn check_length(what: &str, length: f64) -> Result<()> {
    if length > 0. && length.is_finite() {
        return Ok(());
    }
    Err(NetworkError::Setting(format!("{what} must be positive and finite, found {length}")))
}
