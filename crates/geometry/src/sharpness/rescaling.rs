//! The same function, written with other weights (Dinh et al. 2017, "Sharp minima can generalize for deep nets", section 3).
//!
//! Where `a(α y) = α a(y)` for α > 0, as for ReLU, LeakyReLU and max-pooling, `W₂ a(W₁ x + b₁) + b₂` is
//! `(W₂ / α) a(α W₁ x + α b₁) + b₂`.

use flatland_network::{Network, NetworkError, Result};
use tch::Tensor;

/// θ `[P]` with weights and biases of layer `layer` (from 0; convolutions and dense layers count) multiplied by α > 0 and the weights of
/// the next divided by it. The network's outputs are the same, to rounding, if what lies between the two is ReLU, LeakyReLU, pooling, or
/// nothing; not if it is tanh.
///
/// # Errors
/// [`NetworkError::Setting`] for α not above 0, or without a next layer; [`NetworkError::Shape`] when θ does not fit the network.
pub fn rescaled(network: &Network, theta: &Tensor, layer: usize, alpha: f64) -> Result<Tensor> {
    if alpha <= 0. || !alpha.is_finite() {
        let reason = format!("layers are rescaled by a positive, finite factor, found {alpha}");
        return Err(NetworkError::Setting(reason));
    }
    if theta.size() != [network.count()] {
        let expected = format!("[{}]", network.count());
        return Err(NetworkError::Shape { what: "θ", found: theta.size(), expected });
    }
    let [weight, bias, next] =
        [2 * layer, 2 * layer + 1, 2 * layer + 2].map(|index| network.parameters().get(index));
    let (Some(weight), Some(bias), Some(next)) = (weight, bias, next) else {
        let reason = format!("{} has no layer after layer {layer}, counted from 0", network.name());
        return Err(NetworkError::Setting(reason));
    };
    let theta = theta.f_detach_copy()?;
    for (parameter, factor) in [(weight, alpha), (bias, alpha), (next, 1. / alpha)] {
        let _ = theta.f_narrow(0, parameter.offset, parameter.count())?.f_mul_scalar_(factor)?;
    }
    Ok(theta)
}
