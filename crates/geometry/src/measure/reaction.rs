//! Sensitivity to the input, over training examples (Novak et al. 2018, "Sensitivity and generalization in neural networks: an empirical
//! study"); the formulas are those of [`crate::input_norms`].
//!
//! | measure | formula |
//! | --- | --- |
//! | `input_gradient` | mean `‖∂ℓ_i / ∂x_i‖₂` |
//! | `jacobian` | mean `‖∂softmax f(x_i) / ∂x_i‖_F` |
//! | `logit_jacobian` | mean `‖∂f(x_i) / ∂x_i‖_F` |

use super::{Family, Measure, Measured};
use crate::input_norms;
use flatland_network::{Examples, Network, Result};
use tch::{Kind, Tensor};

const fn reaction(name: &'static str, label: &'static str, formula: &'static str) -> Measure {
    Measure::new(Family::Sensitivity, name, label, formula, "Novak et al. 2018")
}
const INPUT_GRADIENT: Measure = reaction("input_gradient", "‖∂ℓ/∂x‖", "mean ‖∂ℓ_i / ∂x_i‖₂");
const JACOBIAN: Measure = reaction("jacobian", "‖∂p/∂x‖F", "mean ‖∂softmax f(x_i) / ∂x_i‖_F");
const LOGIT_JACOBIAN: Measure = reaction("logit_jacobian", "‖∂f/∂x‖F", "mean ‖∂f(x_i) / ∂x_i‖_F");

pub(super) const ALL: [Measure; 3] = [INPUT_GRADIENT, JACOBIAN, LOGIT_JACOBIAN];

/// The measures of this file, of θ `[P]`.
///
/// # Errors
/// [`flatland_network::NetworkError::Shape`] when θ or the examples do not fit the network.
pub fn reaction_measures(network: &Network, theta: &Tensor, examples: &Examples) -> Result<Vec<Measured>> {
    let norms = input_norms(network, theta, examples)?;
    let mean = |norms: &Tensor| -> Result<f64> { Ok(norms.f_mean(Kind::Double)?.f_double_value(&[])?) };
    Ok(vec![
        INPUT_GRADIENT.of(mean(&norms.gradient)?),
        JACOBIAN.of(mean(&norms.jacobian.probabilities)?),
        LOGIT_JACOBIAN.of(mean(&norms.jacobian.logits)?),
    ])
}
