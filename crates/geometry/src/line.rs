//! The straight line through two minima: `θ(α) = (1 - α) θ₁ + α θ₂` (Goodfellow et al. 2015, "Qualitatively characterizing
//! neural network optimization problems"; the report after Keskar et al. 2017).

use flatland_network::Result;
use tch::Tensor;
use thiserror::Error;

/// Where on the line to look.
#[derive(Debug, Clone, PartialEq)]
pub struct AlphaGrid {
    alphas: Vec<f64>,
}

/// A grid that cannot be walked.
#[derive(Debug, Error, PartialEq)]
pub enum GridError {
    /// Nothing to look at, or more than can be looked at.
    #[error("the α grid needs 1 to 1,000,000 points, found {0}")]
    Points(usize),
    /// The ends are no interval.
    #[error("the α grid must run from a smaller to a larger finite value, found {0} to {1}")]
    Ends(f64, f64),
}

impl AlphaGrid {
    /// `points` values from `from` to `to`, evenly spaced and both included (the middle, for a single point), **and** α = 0
    /// and α = 1 exactly, the two minima themselves, which an even grid rarely hits. Ascending, without repetition.
    ///
    /// # Errors
    /// [`GridError`] for no points or over a million, or ends that are not finite and ascending.
    pub fn with_minima(from: f64, to: f64, points: usize) -> std::result::Result<Self, GridError> {
        if !(1..=1_000_000).contains(&points) {
            return Err(GridError::Points(points));
        }
        if !(from < to && from.is_finite() && to.is_finite()) {
            return Err(GridError::Ends(from, to));
        }
        let last = points - 1;
        let place = |k: usize| {
            if last == 0 { f64::midpoint(from, to) } else { from + (to - from) * k as f64 / last as f64 }
        };
        let mut alphas: Vec<f64> = (0..points).map(place).chain([0., 1.]).collect();
        alphas.sort_by(f64::total_cmp);
        // -0.0 and 0.0 are one point, and so are values that differ by rounding alone.
        alphas.dedup_by(|a, b| (*a - *b).abs() < 1e-12);
        for alpha in &mut alphas {
            if alpha.abs() < 1e-12 {
                *alpha = 0.;
            } else if (*alpha - 1.).abs() < 1e-12 {
                *alpha = 1.;
            }
        }
        Ok(Self { alphas })
    }

    /// The values, ascending.
    pub fn alphas(&self) -> &[f64] {
        &self.alphas
    }
}

/// `(1 - α) θ₁ + α θ₂`, of the shape of both; θ₁ itself at α = 0 and θ₂ itself at α = 1, to the last bit, even if the other
/// has diverged.
///
/// # Errors
/// When the shapes differ.
pub fn interpolate(theta1: &Tensor, theta2: &Tensor, alpha: f64) -> Result<Tensor> {
    if alpha == 0. {
        return Ok(theta1.f_detach_copy()?);
    }
    if (alpha - 1.).abs() == 0. {
        return Ok(theta2.f_detach_copy()?);
    }
    Ok(theta1.f_mul_scalar(1. - alpha)?.f_add(&theta2.f_mul_scalar(alpha)?)?)
}

/// The barrier between two minima: the largest rise of a loss or an error over 0 ≤ α ≤ 1 above the straight line between its
/// values at the ends, `max (L(α) - (1 - α) L(0) - α L(1))` (Frankle et al. 2020, "Linear mode connectivity and the lottery
/// ticket hypothesis"); 0 when it rises nowhere.
///
/// `values` are `(α, L)`, in any order, with α = 0 and 1 among them, else `None`. An infinite or NaN value carries over.
pub fn barrier(values: &[(f64, f64)]) -> Option<f64> {
    let at = |end: f64| values.iter().find(|(alpha, _)| (alpha - end).abs() < 1e-12).map(|(_, value)| *value);
    let (first, second) = (at(0.)?, at(1.)?);
    let within = values.iter().filter(|(alpha, _)| (0. ..=1.).contains(alpha));
    let rises = within.map(|(alpha, value)| value - (1. - alpha) * first - alpha * second);
    // f64::max would pass over a NaN.
    Some(rises.fold(0., |most: f64, rise| if most.is_nan() || rise <= most { most } else { rise }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn the_reports_grid_has_fifty_points_and_the_two_minima() {
        let grid = AlphaGrid::with_minima(-2., 2., 50).unwrap();
        assert_eq!(grid.alphas().len(), 52);
        assert!(grid.alphas().contains(&0.) && grid.alphas().contains(&1.));
        assert_eq!((grid.alphas()[0], grid.alphas()[51]), (-2., 2.));
        assert!(grid.alphas().windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_grid_that_meets_the_minima_does_not_repeat_them() {
        assert_eq!(AlphaGrid::with_minima(-2., 2., 5).unwrap().alphas(), [-2., -1., 0., 1., 2.]);
        assert_eq!(AlphaGrid::with_minima(0., 1., 11).unwrap().alphas().len(), 11);
        assert_eq!(AlphaGrid::with_minima(-1., 2., 1).unwrap().alphas(), [0., 0.5, 1.]);
    }

    #[test]
    fn refuses_what_is_no_grid() {
        assert_eq!(AlphaGrid::with_minima(-2., 2., 0), Err(GridError::Points(0)));
        assert!(AlphaGrid::with_minima(-2., 2., usize::MAX).is_err());
        assert!(AlphaGrid::with_minima(2., -2., 5).is_err());
        assert!(AlphaGrid::with_minima(f64::NAN, 2., 5).is_err());
    }

    #[test]
    fn the_barrier_is_measured_from_the_line_between_the_ends() {
        let tent = [(-1., 9.), (0., 1.), (0.25, 2.5), (0.5, 4.), (0.75, 4.), (1., 3.), (2., 50.)];
        assert_eq!(barrier(&tent), Some(2.));
        assert_eq!(barrier(&[(1., 0.), (0.5, -1.), (0., 0.)]), Some(0.));
        assert_eq!(barrier(&[(0.5, 1.), (1., 0.)]), None);
        assert_eq!(barrier(&[(0., 1.), (0.5, f64::INFINITY), (0.6, 2.), (1., 1.)]), Some(f64::INFINITY));
        assert!(barrier(&[(0., 1.), (0.5, f64::NAN), (0.6, 2.), (1., 1.)]).unwrap().is_nan());
    }

    #[test]
    fn the_ends_are_the_minima_bit_for_bit() {
        let [a, b] = [1e20, -3.7].map(|scale| Tensor::randn([100], (Kind::Float, Device::Cpu)) * scale);
        assert_eq!(interpolate(&a, &b, 0.).unwrap(), a);
        assert_eq!(interpolate(&a, &b, 1.).unwrap(), b);
        let diverged = &a * f64::NAN;
        assert_eq!(interpolate(&diverged, &b, 1.).unwrap(), b);
        let middle = interpolate(&a, &b, 0.5).unwrap();
        assert!(middle.allclose(&((&a + &b) / 2.), 1e-6, 0., false));
    }
}
