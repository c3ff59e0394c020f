//! How much the examples' gradients differ. With `g_i = ∂ℓ_i / ∂θ` of n training examples and ḡ their mean:
//!
//! | measure | formula | source |
//! | --- | --- | --- |
//! | `gradient_norm` | `‖ḡ‖₂` | Zhao et al. 2022, "Penalizing gradient norm for efficiently improving generalization" |
//! | `gradient_variance` | `Σ ‖g_i - ḡ‖² / (n - 1)`, the trace of their covariance | Jiang et al. 2020, appendix C.8: gradient noise at the end of training |

use super::{Family, Measure, Measured, one_model};
use flatland_network::{Examples, Loss, Network, Result, loss_and_gradient};
use tch::{Kind, Tensor};

const GRADIENT_NORM: Measure = Measure::new(
    Family::Gradient,
    "gradient_norm",
    "‖∂L/∂θ‖",
    "‖ḡ‖₂, ḡ = mean ∂ℓ_i / ∂θ",
    "Zhao et al. 2022",
);
const GRADIENT_VARIANCE: Measure = Measure::new(
    Family::Gradient,
    "gradient_variance",
    "gradient noise",
    "Σ ‖g_i - ḡ‖² / (n - 1)",
    "Jiang et al. 2020",
);

pub(super) const ALL: [Measure; 2] = [GRADIENT_NORM, GRADIENT_VARIANCE];

/// Of the gradients of single examples by θ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradientNoise {
    /// `‖ḡ‖₂`.
    pub norm: f64,
    /// `Σ ‖g_i - ḡ‖² / (n - 1)`; `None` for a single example.
    pub variance: Option<f64>,
}

/// One gradient after the other, θ `[P]`; sums in f64.
///
/// # Errors
/// [`flatland_network::NetworkError::Shape`] when θ or the examples do not fit the network.
pub fn gradient_noise(
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    loss: Loss,
) -> Result<GradientNoise> {
    let theta = one_model(network, theta)?;
    let count = examples.count();
    let mut sum = theta.f_zeros_like()?.f_to_kind(Kind::Double)?;
    let mut squares = Tensor::f_zeros([0i64; 0].as_slice(), (Kind::Double, theta.device()))?;
    for index in 0..count {
        let (x, targets) = examples.part(index, 1)?;
        let gradient =
            loss_and_gradient(network, &theta, &x, &targets, loss)?.gradient.f_to_kind(Kind::Double)?;
        squares = squares.f_add(&gradient.f_dot(&gradient)?)?;
        sum = sum.f_add_(&gradient)?;
    }
    let mean = sum.f_div_scalar(count as f64)?;
    let square = mean.f_dot(&mean)?.f_double_value(&[])?;
    // Rounding can leave it a little below 0.
    let spread = (squares.f_double_value(&[])? - count as f64 * square).max(0.);
    Ok(GradientNoise { norm: square.sqrt(), variance: (count > 1).then(|| spread / (count - 1) as f64) })
}

/// The measures of this file, of θ `[P]` under the cross-entropy.
///
/// # Errors
/// As [`gradient_noise`].
pub fn gradient_noise_measures(
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
) -> Result<Vec<Measured>> {
    let GradientNoise { norm, variance } = gradient_noise(network, theta, examples, Loss::CrossEntropy)?;
    Ok(vec![GRADIENT_NORM.of(norm), GRADIENT_VARIANCE.of(variance)])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{close, small, theta, waves};
    use super::*;
    use flatland_network::Layer;

    /// f(x) = w x + b under the squared error: g_i = 2 (f(x_i) - y_i) (x_i, 1).
    #[test]
    fn linear_regression_by_hand() {
        let network = Network::dense(&[1, 1], &Layer::Relu).unwrap();
        let theta = Tensor::from_slice(&[2., 1.]);
        let x = Tensor::from_slice(&[0., 1., 3.]).view([3, 1]);
        let y = Tensor::from_slice(&[0., 1., 8.]).view([3, 1]);
        // Residuals 1, 2, -1: gradients (0, 2), (4, 4), (-6, -2); mean (-2/3, 4/3).
        let found =
            gradient_noise(&network, &theta, &Examples::new(x, y).unwrap(), Loss::MeanSquaredError).unwrap();
        close(found.norm, 20_f64.sqrt() / 3., 1e-12);
        close(found.variance.unwrap(), (4. + 32. + 40. - 20. / 3.) / 2., 1e-12);
    }

    #[test]
    fn agrees_with_gradients_by_autograd() {
        let network = small();
        let theta = theta(&network, 1);
        let labels: Vec<i64> = (0..12).map(|i| i * 7 % 3).collect();
        let examples =
            Examples::new(waves(&[12, 2, 5, 4], Kind::Double), Tensor::from_slice(&labels)).unwrap();
        let rows: Vec<Tensor> = (0..12)
            .map(|index| {
                let leaf = theta.detach().copy().set_requires_grad(true);
                let (x, targets) = examples.part(index, 1).unwrap();
                let loss = Loss::CrossEntropy.mean(&network.forward(&leaf, &x).unwrap(), &targets).unwrap();
                Tensor::run_backward(&[loss], &[&leaf], false, false).remove(0)
            })
            .collect();
        let rows = Tensor::stack(&rows, 0);
        let mean = rows.mean_dim([0i64].as_slice(), true, Kind::Double);
        let found = gradient_noise(&network, &theta, &examples, Loss::CrossEntropy).unwrap();
        close(found.norm, mean.norm().double_value(&[]), 1e-10);
        close(
            found.variance.unwrap(),
            (&rows - &mean).square().sum(Kind::Double).double_value(&[]) / 11.,
            1e-10,
        );
        let one = gradient_noise(&network, &theta, &examples.first(1).unwrap(), Loss::CrossEntropy).unwrap();
        assert_eq!(one.variance, None);
    }
}
