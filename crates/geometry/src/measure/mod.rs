//! Generalisation measures: numbers of a trained network and its training examples that are said to tell how well it generalises. The
//! larger, the worse.
//!
//! | file | family |
//! | --- | --- |
//! | `norms.rs` | size, norms of the weights and their distance from the initial ones |
//! | `spectral.rs` | spectral norms of dense layers and of convolutions |
//! | `path.rs` | path norm |
//! | `margin.rs` | output margins, and norms over them |
//! | `pac_bayes.rs` | how much noise on the weights the training error bears |
//! | `curvature.rs` | the Hessian's largest eigenvalue and trace |
//! | `reaction.rs` | sensitivity to the input |
//! | `gradient_noise.rs` | how much the examples' gradients differ |
//!
//! The catalogue is the appendix of Jiang et al. 2020, "Fantastic generalization measures and where to find them"; numbers in brackets are its
//! equations. A factor that is the same for all models of one training set, `1/m` or a root, is left out: it moves no rank. Products over
//! layers are given as natural logarithms. A measure that is not defined for a model has no value: distances without the initial weights,
//! quotients by a margin that is not positive, the path norm with tanh.

mod curvature;
mod gradient_noise;
mod margin;
mod norms;
mod pac_bayes;
mod path;
mod reaction;
mod spectral;

pub use curvature::curvature_measures;
pub use gradient_noise::{GradientNoise, gradient_noise, gradient_noise_measures};
pub use margin::{margin_measures, margin_percentile, margins};
pub use norms::{LayerNorms, layer_norms, norm_measures};
pub use pac_bayes::{Noise, NoiseSettings, largest_noise, pac_bayes_measures};
pub use path::path_norm;
pub use reaction::reaction_measures;
pub use spectral::{convolution_norm, matrix_norm};

use flatland_network::{Network, NetworkError, Result};
use tch::Tensor;

/// Measures of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Of the network alone.
    Size,
    /// Of the weights.
    Norm,
    /// Norms over the output margin.
    Margin,
    /// Noise that the weights bear, curvature.
    Flatness,
    /// Derivatives by the input.
    Sensitivity,
    /// Derivatives by the weights.
    Gradient,
    /// Of the way to them: loss, steps. Known to who trained, so not computed here.
    Training,
}

impl Family {
    /// For tables and legends.
    pub fn name(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Norm => "norm",
            Self::Margin => "margin",
            Self::Flatness => "flatness",
            Self::Sensitivity => "sensitivity",
            Self::Gradient => "gradient",
            Self::Training => "training",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// For tables: `path_norm`.
    pub name: &'static str,
    /// For figures.
    pub label: &'static str,
    /// Its kind.
    pub family: Family,
    /// In the words of its file.
    pub formula: &'static str,
    /// Whose it is.
    pub source: &'static str,
}

impl Measure {
    const fn new(
        family: Family,
        name: &'static str,
        label: &'static str,
        formula: &'static str,
        source: &'static str,
    ) -> Self {
        Self { name, label, family, formula, source }
    }

    fn of(self, value: impl Into<Option<f64>>) -> Measured {
        Measured { measure: self, value: value.into() }
    }
}

/// A measure of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// What.
    pub measure: Measure,
    /// How much; `None` where it is not defined.
    pub value: Option<f64>,
}

/// Every measure here, in the order in which the families' functions give them.
pub fn catalogue() -> Vec<Measure> {
    [
        norms::ALL.as_slice(),
        margin::ALL.as_slice(),
        pac_bayes::ALL.as_slice(),
        curvature::ALL.as_slice(),
        reaction::ALL.as_slice(),
        gradient_noise::ALL.as_slice(),
    ]
    .concat()
}

/// θ `[P]` without a graph.
fn one_model(network: &Network, theta: &Tensor) -> Result<Tensor> {
    if theta.size() == [network.count()] {
        return Ok(theta.f_detach()?);
    }
    let expected = format!("[{}] for {}", network.count(), network.name());
    Err(NetworkError::Shape { what: "θ", found: theta.size(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_network::{Layer, initialise};
    use tch::{Device, Kind};

    /// Of this shape, between -1 and 1, without a pattern.
    pub fn waves(shape: &[i64], kind: Kind) -> Tensor {
        let count = shape.iter().product::<i64>();
        (Tensor::arange(count, (Kind::Double, Device::Cpu)).square() * 0.7).sin().view(shape).to_kind(kind)
    }

    /// LeNet's kinds of layers, with padding, small enough for brute force.
    pub fn small() -> Network {
        let layers = [
            Layer::Convolution { channels: 3, kernel: 3, padding: 1 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Convolution { channels: 2, kernel: 2, padding: 1 },
            Layer::Relu,
            Layer::Dense { width: 4 },
            Layer::Relu,
            Layer::Dense { width: 3 },
        ];
        Network::new("small", &[2, 5, 4], &layers).unwrap()
    }

    pub fn theta(network: &Network, seed: u64) -> Tensor {
        initialise(network, seed, 0, Kind::Double, Device::Cpu).unwrap()
    }

    pub fn close(found: f64, expected: f64, relative: f64) {
        assert!((found - expected).abs() <= relative * expected.abs(), "{found} and {expected}");
    }

    /// Of one measure among many.
    pub fn value(measured: &[Measured], name: &str) -> Option<f64> {
        measured.iter().find(|one| one.measure.name == name).unwrap_or_else(|| panic!("{name}")).value
    }

    #[test]
    fn names_differ() {
        let mut names: Vec<&str> = catalogue().iter().map(|measure| measure.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
