//! Flatness as the Hessian H of the training loss has it:
//!
//! | measure | formula | source |
//! | --- | --- | --- |
//! | `hessian_largest` | λ_max, the largest eigenvalue, to a thousandth ([`eigenpairs`]) | Keskar et al. 2017, "On large-batch training for deep learning" |
//! | `hessian_trace` | `tr H`, by 60 products ([`hutch_plus_plus`]) | Hochreiter and Schmidhuber 1997, "Flat minima" |
//!
//! As 1/σ², both change where one layer is multiplied by c and the next by 1/c (Dinh et al. 2017).

use super::{Family, Measure, Measured};
use crate::operator::{CurvatureError, CurvatureOperator};
use crate::{EigenSettings, eigenpairs, hutch_plus_plus};
use flatland_network::{Curvature, Examples, Loss, Network};
use tch::Tensor;

const LARGEST: Measure =
    Measure::new(Family::Flatness, "hessian_largest", "λmax(H)", "λ_max(H)", "Keskar et al. 2017");
const TRACE: Measure =
    Measure::new(Family::Flatness, "hessian_trace", "tr H", "tr H", "Hochreiter and Schmidhuber 1997");

pub(super) const ALL: [Measure; 2] = [LARGEST, TRACE];

/// Products for the trace.
const PRODUCTS: usize = 60;

/// The measures of this file, of θ `[P]` under the cross-entropy of these examples. `seed` chooses the vectors that H is probed with;
/// `go_on` is asked now and then, and [`CurvatureError::Stopped`] is returned when it says no. No values for a θ at which the loss or its
/// derivatives are not finite, nor where the largest eigenvalue is not found.
///
/// # Errors
/// [`CurvatureError::Network`] when θ or the examples do not fit the network.
pub fn curvature_measures(
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    seed: u64,
    go_on: &dyn Fn() -> bool,
) -> Result<Vec<Measured>, CurvatureError> {
    let measure = || {
        let operator = CurvatureOperator::new(network, theta, examples, Loss::CrossEntropy)?;
        let hessian = operator.of(Curvature::Hessian);
        let settings = EigenSettings { largest: 1, seed, ..EigenSettings::default() };
        let found = eigenpairs(&hessian, settings, &|_| go_on())?;
        let largest = found.values.first().copied().filter(|_| found.converged);
        if !go_on() {
            return Err(CurvatureError::Stopped);
        }
        let trace = hutch_plus_plus(&hessian, PRODUCTS, seed)?.trace.value;
        Ok(vec![LARGEST.of(largest), TRACE.of(trace)])
    };
    match measure() {
        Err(CurvatureError::NotFinite) => Ok(ALL.map(|measure| measure.of(None)).to_vec()),
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{close, small, theta, value, waves};
    use super::*;
    use crate::{eigenvalues, hessian};
    use flatland_network::Layer;
    use tch::Kind;

    #[test]
    fn agrees_with_the_exact_hessian() {
        tch::set_num_threads(1);
        // So few parameters that the trace is exact, and so many that it scatters by a few per cent.
        for (network, relative) in [(Network::dense(&[3, 2, 3], &Layer::Relu).unwrap(), 1e-9), (small(), 0.1)]
        {
            let theta = theta(&network, 1) * 2.;
            let labels: Vec<i64> = (0..30).map(|i| i * 7 % 3).collect();
            let x = waves(&[&[30], network.input()].concat(), Kind::Double);
            let examples = Examples::new(x, Tensor::from_slice(&labels)).unwrap();
            let exact =
                eigenvalues(&hessian(&network, &theta, &examples, Loss::CrossEntropy).unwrap()).unwrap();
            let found = curvature_measures(&network, &theta, &examples, 0, &|| true).unwrap();
            close(value(&found, "hessian_largest").unwrap(), *exact.last().unwrap(), 1e-3);
            close(value(&found, "hessian_trace").unwrap(), exact.iter().sum(), relative);

            let stopped = curvature_measures(&network, &theta, &examples, 0, &|| false);
            assert!(matches!(stopped, Err(CurvatureError::Stopped)));
            let nowhere = curvature_measures(&network, &(theta * f64::NAN), &examples, 0, &|| true).unwrap();
            assert!(nowhere.iter().all(|one| one.value.is_none()));
        }
    }
}
