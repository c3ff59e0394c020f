//! T, the lengths in which a perturbation of each weight is measured (Kwon et al. 2021, "ASAM: adaptive sharpness-aware minimization for
//! scale-invariant learning of deep neural networks").

use flatland_network::{Parameter, Result};
use std::fmt;
use tch::Tensor;

/// How far a step of length 1 moves each weight: `δ = T u`, T diagonal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// T = 1.
    Unit,
    /// T = |θ|: every weight by its own size; one that is 0 stays 0.
    Elementwise,
    /// Weights by the 2-norm of all that enter the same unit, that is, of a convolution's filter or of a dense layer's row; biases, and
    /// whatever else has one dimension, by their own size. (Kwon et al. speak of convolutions alone; a dense layer is one of 1x1.)
    /// Of a module's other weights, by what shares the first index.
    Filter,
}

impl Scale {
    /// T's diagonal at θ `[P]`: `[P]`, of θ's kind and device. None is widened by a constant, as ASAM's are in training (its η): that would
    /// break the invariance.
    ///
    /// # Errors
    /// When θ does not fit these parameters.
    pub fn of(self, parameters: &[Parameter], theta: &Tensor) -> Result<Tensor> {
        let theta = theta.f_detach()?;
        match self {
            Self::Unit => Ok(theta.f_ones_like()?),
            Self::Elementwise => Ok(theta.f_abs()?),
            Self::Filter => {
                let parts = parameters.iter().map(|parameter| {
                    let part = theta.f_narrow(0, parameter.offset, parameter.count())?;
                    if parameter.shape.len() < 2 {
                        return Ok(part.f_abs()?);
                    }
                    let rows = part.f_view([parameter.shape[0], -1])?;
                    let norms = rows.f_norm_scalaropt_dim(2., [1i64].as_slice(), true)?;
                    Ok(norms.f_expand_as(&rows)?.f_flatten(0, -1)?)
                });
                Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
            }
        }
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Unit => "unit",
            Self::Elementwise => "elementwise",
            Self::Filter => "filter",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_network::{Layer, Network};

    #[test]
    fn a_filter_is_what_enters_one_unit() {
        let layers = [Layer::Convolution { channels: 2, kernel: 2, padding: 0 }, Layer::Dense { width: 1 }];
        let network = Network::new("small", &[1, 2, 2], &layers).unwrap();
        // Two filters of 4, two biases, a row of 2, a bias.
        let theta = Tensor::from_slice(&[1f64, -1., 1., 1., 0., 3., 4., 0., -5., 0., 6., -8., 0.5]);
        let expected = [2f64, 2., 2., 2., 5., 5., 5., 5., 5., 0., 10., 10., 0.5];
        assert_eq!(Scale::Filter.of(network.parameters(), &theta).unwrap(), Tensor::from_slice(&expected));
        assert_eq!(Scale::Elementwise.of(network.parameters(), &theta).unwrap(), theta.abs());
        assert_eq!(Scale::Unit.of(network.parameters(), &theta).unwrap(), theta.ones_like());
        assert!(Scale::Filter.of(network.parameters(), &theta.narrow(0, 0, 5)).is_err());
    }
}
