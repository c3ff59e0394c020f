//! Size, and norms of the weights. With W_i the d weight matrices (a convolution's reshaped to `[out, in k²]`), W_i⁰ their initial values, θ all P
//! parameters, biases included, and `‖·‖₂` of a convolution that of its linear map (`spectral.rs`):
//!
//! | measure | formula | Jiang et al. 2020 |
//! | --- | --- | --- |
//! | `parameters` | `P` | (20) |
//! | `l2_norm` | `‖θ‖₂` | |
//! | `l2_distance` | `‖θ - θ⁰‖₂` | |
//! | `frobenius_sum` | `Σ ‖W_i‖_F²` | (42) |
//! | `frobenius_product` | `ln Π ‖W_i‖_F²` | (37) |
//! | `spectral_sum` | `Σ ‖W_i‖₂²` | |
//! | `spectral_product` | `ln Π ‖W_i‖₂²` | (32) |
//! | `kernel_spectral_product` | the same with `‖·‖₂` of the reshaped kernels; none without convolutions, where it is no other | (32) |
//! | `spectral_distance` | `Σ ‖W_i - W_i⁰‖₂²` | (41) |
//! | `frobenius_over_spectral` | `Σ ‖W_i‖_F² / ‖W_i‖₂²` | (33) |
//! | `path_norm` | `path.rs` | (44) |

use super::{Family, Measure, Measured, one_model, path_norm};
use super::{convolution_norm, matrix_norm};
use flatland_network::{Layer, Network, NetworkError, Result};
use tch::{Kind, Tensor};

const JIANG: &str = "Jiang et al. 2020";
const fn norm(
    name: &'static str,
    label: &'static str,
    formula: &'static str,
    source: &'static str,
) -> Measure {
    Measure::new(Family::Norm, name, label, formula, source)
}
const PARAMETERS: Measure = Measure::new(Family::Size, "parameters", "parameters P", "P", JIANG);
const L2_NORM: Measure = norm("l2_norm", "‖θ‖", "‖θ‖₂", JIANG);
const L2_DISTANCE: Measure = norm("l2_distance", "‖θ − θ⁰‖", "‖θ - θ⁰‖₂", "Nagarajan and Kolter 2019");
const FROBENIUS_SUM: Measure = norm("frobenius_sum", "Σ ‖W‖F²", "Σ ‖W_i‖_F²", JIANG);
const FROBENIUS_PRODUCT: Measure =
    norm("frobenius_product", "Π ‖W‖F²", "ln Π ‖W_i‖_F²", "Neyshabur et al. 2015");
const SPECTRAL_SUM: Measure = norm("spectral_sum", "Σ ‖W‖₂²", "Σ ‖W_i‖₂²", "Yoshida and Miyato 2017");
const SPECTRAL_PRODUCT: Measure = norm("spectral_product", "Π ‖W‖₂²", "ln Π ‖W_i‖₂²", "Bartlett et al. 2017");
const KERNEL_SPECTRAL_PRODUCT: Measure = norm(
    "kernel_spectral_product",
    "Π ‖W‖₂², kernels reshaped",
    "ln Π ‖W_i‖₂², kernels as [out, in k²]",
    "Yoshida and Miyato 2017",
);
const SPECTRAL_DISTANCE: Measure = norm("spectral_distance", "Σ ‖W − W⁰‖₂²", "Σ ‖W_i - W_i⁰‖₂²", JIANG);
const FROBENIUS_OVER_SPECTRAL: Measure =
    norm("frobenius_over_spectral", "Σ ‖W‖F² / ‖W‖₂²", "Σ ‖W_i‖_F² / ‖W_i‖₂²", JIANG);
const PATH_NORM: Measure = norm("path_norm", "path norm", "Σ over paths of Π w²", "Neyshabur et al. 2015");

pub(super) const ALL: [Measure; 11] = [
    PARAMETERS,
    L2_NORM,
    L2_DISTANCE,
    FROBENIUS_SUM,
    FROBENIUS_PRODUCT,
    SPECTRAL_SUM,
    SPECTRAL_PRODUCT,
    KERNEL_SPECTRAL_PRODUCT,
    SPECTRAL_DISTANCE,
    FROBENIUS_OVER_SPECTRAL,
    PATH_NORM,
];

/// Norms of one layer's weight W.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNorms {
    /// Of the layer, as PyTorch has it: `conv1`, `fc2`.
    pub layer: String,
    /// `‖W‖_F`.
    pub frobenius: f64,
    /// `‖W‖₂` of the layer's linear map: [`matrix_norm`], for convolutions [`convolution_norm`].
    pub spectral: f64,
    /// `‖W‖₂` of the matrix `[out, in k²]`: the same for dense layers.
    pub kernel_spectral: f64,
    /// `‖Wᵀ‖_{2,1}`: the sum over outputs of the 2-norm of their weights, of the matrix `[out, in k²]`.
    pub rows: f64,
    /// `‖W - W⁰‖_F` and `‖W - W⁰‖₂` of the map, where the initial weights are known.
    pub distance: Option<(f64, f64)>,
}

/// The norms of each layer with weights of θ `[P]`, from the input to the output, in f64. `initial` is θ⁰, of the same shape.
///
/// # Errors
/// [`NetworkError::Shape`] when θ or θ⁰ is not the network's.
pub fn layer_norms(network: &Network, theta: &Tensor, initial: Option<&Tensor>) -> Result<Vec<LayerNorms>> {
    let theta = one_model(network, theta)?;
    let initial = initial.map(|initial| one_model(network, initial)).transpose()?;
    let mut all = Vec::new();
    for view in network.layers() {
        let Some((parameter, _)) = view.parameters else { continue };
        let map_norm = |weight: &Tensor| match view.layer {
            Layer::Convolution { padding, .. } => convolution_norm(weight, &view.input, padding),
            _ => matrix_norm(weight),
        };
        let weight = parameter.of(&theta)?.f_to_kind(Kind::Double)?;
        let matrix = weight.f_flatten(1, -1)?;
        let frobenius = |weight: &Tensor| -> Result<f64> { Ok(weight.f_norm()?.f_double_value(&[])?) };
        let distance = initial.as_ref().map(|initial| {
            let change = weight.f_sub(&parameter.of(initial)?.f_to_kind(Kind::Double)?)?;
            Ok::<_, NetworkError>((frobenius(&change)?, map_norm(&change)?))
        });
        let rows = matrix.f_norm_scalaropt_dim(2., [1i64].as_slice(), false)?.f_sum(Kind::Double)?;
        let spectral = map_norm(&weight)?;
        all.push(LayerNorms {
            layer: parameter.name.trim_end_matches(".weight").to_owned(),
            frobenius: frobenius(&weight)?,
            spectral,
            kernel_spectral: if weight.dim() == 2 { spectral } else { matrix_norm(&matrix)? },
            rows: rows.f_double_value(&[])?,
            distance: distance.transpose()?,
        });
    }
    Ok(all)
}

/// The measures of this file, of θ `[P]` with its [`layer_norms`].
///
/// # Errors
/// [`NetworkError::Shape`] when θ or θ⁰ is not the network's.
pub fn norm_measures(
    network: &Network,
    theta: &Tensor,
    initial: Option<&Tensor>,
    norms: &[LayerNorms],
) -> Result<Vec<Measured>> {
    let theta = one_model(network, theta)?.f_to_kind(Kind::Double)?;
    let l2 = |theta: &Tensor| -> Result<f64> { Ok(theta.f_norm()?.f_double_value(&[])?) };
    let distance = initial
        .map(|initial| l2(&theta.f_sub(&one_model(network, initial)?.f_to_kind(Kind::Double)?)?))
        .transpose()?;
    let sum = |of: &dyn Fn(&LayerNorms) -> f64| norms.iter().map(of).sum::<f64>();
    let spectral_distance: Option<f64> =
        norms.iter().map(|layer| layer.distance.map(|(_, spectral)| spectral * spectral)).sum();
    let convolves = network.layers().iter().any(|view| matches!(view.layer, Layer::Convolution { .. }));
    let kernels = convolves.then(|| log_product(norms, |layer| layer.kernel_spectral));
    Ok(vec![
        PARAMETERS.of(network.count() as f64),
        L2_NORM.of(l2(&theta)?),
        L2_DISTANCE.of(distance),
        FROBENIUS_SUM.of(sum(&|layer| layer.frobenius.powi(2))),
        FROBENIUS_PRODUCT.of(log_product(norms, |layer| layer.frobenius)),
        SPECTRAL_SUM.of(sum(&|layer| layer.spectral.powi(2))),
        SPECTRAL_PRODUCT.of(log_product(norms, |layer| layer.spectral)),
        KERNEL_SPECTRAL_PRODUCT.of(kernels),
        SPECTRAL_DISTANCE.of(spectral_distance),
        FROBENIUS_OVER_SPECTRAL.of(sum(&|layer| (layer.frobenius / layer.spectral).powi(2))),
        PATH_NORM.of(path_norm(network, &theta)?),
    ])
}

/// `ln Π n_i²`.
pub(super) fn log_product(norms: &[LayerNorms], of: impl Fn(&LayerNorms) -> f64) -> f64 {
    2. * norms.iter().map(|layer| of(layer).ln()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{close, small, theta, value};
    use super::*;

    /// W₁ = diag(3, 4), W₂ = (1, 2): all norms by hand.
    #[test]
    fn a_small_net_by_hand() {
        let network = Network::dense(&[2, 2, 1], &Layer::Relu).unwrap();
        let weights = Tensor::from_slice(&[3., 0., 0., 4., 1., 0., 1., 2., 0.]);
        let initial = Tensor::from_slice(&[3., 0., 0., 1., 1., 0., 1., 0., 2.]);
        let norms = layer_norms(&network, &weights, Some(&initial)).unwrap();
        assert_eq!(norms.iter().map(|layer| layer.layer.as_str()).collect::<Vec<_>>(), ["fc1", "fc2"]);
        let measured = norm_measures(&network, &weights, Some(&initial), &norms).unwrap();
        assert_eq!(measured.iter().map(|one| one.measure).collect::<Vec<_>>(), ALL);
        for (name, expected) in [
            ("parameters", 9.),
            ("l2_norm", 31_f64.sqrt()),
            ("l2_distance", 17_f64.sqrt()),
            ("frobenius_sum", 30.),
            ("frobenius_product", 125_f64.ln()),
            ("spectral_sum", 21.),
            ("spectral_product", 80_f64.ln()),
            ("spectral_distance", 13.),
            ("frobenius_over_spectral", 25. / 16. + 1.),
            // Paths to the output: 3·1, 4·2 from the input, 1·1 and 0·2 from the biases, 0.
            ("path_norm", 9. + 64. + 1.),
        ] {
            close(value(&measured, name).unwrap(), expected, 1e-12);
        }
        assert_eq!(value(&measured, "kernel_spectral_product"), None, "no convolution");
        close(norms[0].rows, 7., 1e-12);
        // Without the initial weights, no distances.
        let norms = layer_norms(&network, &weights, None).unwrap();
        let measured = norm_measures(&network, &weights, None, &norms).unwrap();
        assert_eq!(value(&measured, "l2_distance").or(value(&measured, "spectral_distance")), None);
        assert!(layer_norms(&network, &weights.narrow(0, 0, 8), None).is_err());
    }

    #[test]
    fn convolutions_have_two_spectral_norms_and_single_precision_the_same_numbers() {
        let network = small();
        let theta = theta(&network, 1);
        let norms = layer_norms(&network, &theta, None).unwrap();
        let layers: Vec<&str> = norms.iter().map(|layer| layer.layer.as_str()).collect();
        assert_eq!(layers, ["conv1", "conv2", "fc1", "fc2"]);
        for (index, layer) in norms.iter().enumerate() {
            let apart = (layer.spectral / layer.kernel_spectral - 1.).abs();
            assert_eq!(apart > 0.05, index < 2, "{layer:?}");
        }
        let measured = norm_measures(&network, &theta, None, &norms).unwrap();
        let product = norms.iter().map(|layer| layer.kernel_spectral.powi(2)).product::<f64>();
        close(value(&measured, "kernel_spectral_product").unwrap(), product.ln(), 1e-12);
        let single = layer_norms(&network, &theta.to_kind(Kind::Float), None).unwrap();
        for (a, b) in norms.iter().zip(&single) {
            close(b.spectral, a.spectral, 1e-6);
            close(b.frobenius, a.frobenius, 1e-6);
        }
    }
}
