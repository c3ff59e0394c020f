//! Output margins, and norms over them. The margin of an example of class y is `f(x)_y - max_{j≠y} f(x)_j`; γ is the 10th percentile over the
//! training set, since the smallest is an outlier's (Jiang et al. 2020, appendix C.2). With the norms of `norms.rs`:
//!
//! | measure | formula | source |
//! | --- | --- | --- |
//! | `inverse_margin` | `1/γ²` | Jiang et al. 2020, (22) |
//! | `frobenius_over_margin` | `ln Π ‖W_i‖_F² / γ²` | (36) |
//! | `spectral_over_margin` | `ln Π ‖W_i‖₂² / γ²` | (31) |
//! | `spectral_origin` | `ln Π ‖W_i‖₂² Σ ‖W_j‖_F² / ‖W_j‖₂² / γ²` | (30); Neyshabur et al. 2018, "A PAC-Bayesian approach to spectrally-normalized margin bounds" |
//! | `spectral_initial` | `ln Π ‖W_i‖₂² Σ ‖W_j - W_j⁰‖_F² / ‖W_j‖₂² / γ²` | (29) |
//! | `bartlett` | `ln Π ‖W_i‖₂ (Σ (‖W_jᵀ‖_{2,1} / ‖W_j‖₂)^{2/3})^{3/2} / γ` | Bartlett et al. 2017, "Spectrally-normalized margin bounds for neural networks", (1.2), reference matrices 0 |
//! | `path_over_margin` | `Σ_paths Π w² / γ²` | Jiang et al. 2020, (43) |
//!
//! A network of ReLU without biases stays the same where one layer is multiplied by c and another by 1/c, its classes where one is multiplied
//! alone: so do all of these but the first. They have no value where γ ≤ 0: where a tenth of the examples is classified wrongly.

use super::norms::log_product;
use super::{Family, LayerNorms, Measure, Measured, one_model};
use flatland_network::{Examples, Network, Result};
use tch::{Device, Kind, Tensor};

const fn margin(
    name: &'static str,
    label: &'static str,
    formula: &'static str,
    source: &'static str,
) -> Measure {
    Measure::new(Family::Margin, name, label, formula, source)
}
const INVERSE_MARGIN: Measure = margin("inverse_margin", "1 / γ²", "1/γ²", "Jiang et al. 2020");
const FROBENIUS_OVER_MARGIN: Measure =
    margin("frobenius_over_margin", "Π ‖W‖F² / γ²", "ln Π ‖W_i‖_F² / γ²", "Neyshabur et al. 2015");
const SPECTRAL_OVER_MARGIN: Measure =
    margin("spectral_over_margin", "Π ‖W‖₂² / γ²", "ln Π ‖W_i‖₂² / γ²", "Bartlett et al. 2017");
const SPECTRAL_ORIGIN: Measure = margin(
    "spectral_origin",
    "Π ‖W‖₂² Σ ‖W‖F² / ‖W‖₂² / γ²",
    "ln Π ‖W_i‖₂² Σ ‖W_j‖_F² / ‖W_j‖₂² / γ²",
    "Neyshabur et al. 2018",
);
const SPECTRAL_INITIAL: Measure = margin(
    "spectral_initial",
    "Π ‖W‖₂² Σ ‖W − W⁰‖F² / ‖W‖₂² / γ²",
    "ln Π ‖W_i‖₂² Σ ‖W_j - W_j⁰‖_F² / ‖W_j‖₂² / γ²",
    "Jiang et al. 2020",
);
const BARTLETT: Measure = margin(
    "bartlett",
    "Bartlett's R / γ",
    "ln Π ‖W_i‖₂ (Σ (‖W_jᵀ‖_{2,1} / ‖W_j‖₂)^{2/3})^{3/2} / γ",
    "Bartlett et al. 2017",
);
const PATH_OVER_MARGIN: Measure =
    margin("path_over_margin", "path norm / γ²", "Σ over paths of Π w² / γ²", "Neyshabur et al. 2015");

pub(super) const ALL: [Measure; 7] = [
    INVERSE_MARGIN,
    FROBENIUS_OVER_MARGIN,
    SPECTRAL_OVER_MARGIN,
    SPECTRAL_ORIGIN,
    SPECTRAL_INITIAL,
    BARTLETT,
    PATH_OVER_MARGIN,
];

/// Examples at once. Memory only.
const CHUNK: i64 = 1000;

/// The margin of each example, in logits: `[N]`, f64, on the CPU. θ `[P]`.
///
/// # Errors
/// [`flatland_network::NetworkError::Shape`] when θ or the examples do not fit the network.
pub fn margins(network: &Network, theta: &Tensor, examples: &Examples) -> Result<Tensor> {
    let theta = one_model(network, theta)?;
    let parts = (0..examples.count()).step_by(CHUNK as usize).map(|start| {
        let (x, targets) = examples.part(start, CHUNK.min(examples.count() - start))?;
        let logits = network.predict(&theta, &x)?.f_to_kind(Kind::Double)?;
        let at = targets.f_unsqueeze(1)?;
        let right = logits.f_gather(1, &at, false)?.f_squeeze_dim(1)?;
        let others = logits.f_scatter_value(1, &at, f64::NEG_INFINITY)?;
        Ok(right.f_sub(&others.f_amax([1i64].as_slice(), false)?)?.f_to_device(Device::Cpu)?)
    });
    Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
}

/// γ: the 10th percentile of the [`margins`] `[N]`, interpolated linearly.
///
/// # Errors
/// When there are none.
pub fn margin_percentile(margins: &Tensor) -> Result<f64> {
    // Sorted by hand: libtorch's quantile has a limit of 16 million.
    let mut sorted = Vec::<f64>::try_from(margins.f_to_kind(Kind::Double)?)?;
    sorted.sort_by(f64::total_cmp);
    let place = 0.1 * (sorted.len().max(1) - 1) as f64;
    match (sorted.get(place.floor() as usize), sorted.get(place.ceil() as usize)) {
        (Some(low), Some(high)) => Ok(low + (high - low) * place.fract()),
        _ => Err(flatland_network::NetworkError::Setting("a percentile of no margins".into())),
    }
}

/// The measures of this file, from the norms of the layers, the path norm, and γ.
pub fn margin_measures(norms: &[LayerNorms], path_norm: Option<f64>, margin: f64) -> Vec<Measured> {
    let positive = |value: f64| (margin > 0.).then_some(value);
    let log_square = 2. * margin.ln();
    let frobenius = log_product(norms, |layer| layer.frobenius);
    let spectral = log_product(norms, |layer| layer.spectral);
    let over = |of: &dyn Fn(&LayerNorms) -> f64| {
        norms.iter().map(|layer| (of(layer) / layer.spectral).powi(2)).sum::<f64>().ln()
    };
    let distances: Option<f64> =
        norms.iter().map(|layer| layer.distance.map(|(of, _)| (of / layer.spectral).powi(2))).sum();
    let rows: f64 = norms.iter().map(|layer| (layer.rows / layer.spectral).powf(2. / 3.)).sum();
    vec![
        INVERSE_MARGIN.of(positive(margin.powi(-2))),
        FROBENIUS_OVER_MARGIN.of(positive(frobenius - log_square)),
        SPECTRAL_OVER_MARGIN.of(positive(spectral - log_square)),
        SPECTRAL_ORIGIN.of(positive(spectral + over(&|layer| layer.frobenius) - log_square)),
        SPECTRAL_INITIAL.of(distances.and_then(|sum| positive(spectral + sum.ln() - log_square))),
        BARTLETT.of(positive(0.5 * spectral + 1.5 * rows.ln() - margin.ln())),
        PATH_OVER_MARGIN.of(path_norm.and_then(|norm| positive(norm / margin.powi(2)))),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::{close, small, theta, value, waves};
    use super::super::{layer_norms, path_norm};
    use super::*;
    use flatland_network::Layer;

    fn examples(network: &Network, count: i64) -> Examples {
        let x = waves(&[&[count], network.input()].concat(), Kind::Double);
        let labels: Vec<i64> = (0..count).map(|i| i * 7 % network.outputs()).collect();
        Examples::new(x, Tensor::from_slice(&labels)).unwrap()
    }

    #[test]
    fn margins_are_those_of_a_loop() {
        let network = small();
        let (theta, examples) = (theta(&network, 1), examples(&network, 2 * CHUNK + 7));
        let logits = network.forward(&theta, &examples.inputs().unwrap()).unwrap();
        let found = Vec::<f64>::try_from(margins(&network, &theta, &examples).unwrap()).unwrap();
        for (example, found) in found.iter().enumerate() {
            let outputs = Vec::<f64>::try_from(logits.get(example as i64)).unwrap();
            let label = example * 7 % 3;
            let other = (0..3).filter(|&j| j != label).map(|j| outputs[j]).fold(f64::NEG_INFINITY, f64::max);
            assert!((found - (outputs[label] - other)).abs() < 1e-12);
        }
    }

    #[test]
    fn the_percentile_is_numpys() {
        // numpy.quantile([3, 1, 4, 1, 5, 9, 2, 6], 0.1) = 1.0; of [0, 1, …, 10] = 1; of [2, 7] = 2.5
        for (values, expected) in [
            (vec![3., 1., 4., 1., 5., 9., 2., 6.], 1.),
            ((0..11).map(f64::from).collect(), 1.),
            (vec![7., 2.], 2.5),
            (vec![4.], 4.),
        ] {
            close(margin_percentile(&Tensor::from_slice(&values)).unwrap(), expected, 1e-12);
        }
        assert!(margin_percentile(&Tensor::from_slice::<f64>(&[])).is_err());
    }

    /// W₁ = diag(3, 4), W₂ = (1, 2) from W₁⁰ = diag(3, 1), W₂⁰ = (1, 0), γ = 2.
    #[test]
    fn a_small_net_by_hand() {
        let network = Network::dense(&[2, 2, 1], &Layer::Relu).unwrap();
        let weights = Tensor::from_slice(&[3., 0., 0., 4., 1., 0., 1., 2., 0.]);
        let initial = Tensor::from_slice(&[3., 0., 0., 1., 1., 0., 1., 0., 2.]);
        let norms = layer_norms(&network, &weights, Some(&initial)).unwrap();
        let path = path_norm(&network, &weights).unwrap();
        let measured = margin_measures(&norms, path, 2.);
        assert_eq!(measured.iter().map(|one| one.measure).collect::<Vec<_>>(), ALL);
        for (name, expected) in [
            ("inverse_margin", 0.25),
            ("frobenius_over_margin", (125_f64 / 4.).ln()),
            ("spectral_over_margin", (80_f64 / 4.).ln()),
            ("spectral_origin", (80_f64 * (25. / 16. + 1.) / 4.).ln()),
            ("spectral_initial", (80_f64 * (9. / 16. + 4. / 5.) / 4.).ln()),
            ("bartlett", (80_f64.sqrt() * ((7_f64 / 4.).powf(2. / 3.) + 1.).powf(1.5) / 2.).ln()),
            ("path_over_margin", 74. / 4.),
        ] {
            close(value(&measured, name).unwrap(), expected, 1e-12);
        }
        let none = margin_measures(&norms, path, -0.1);
        assert!(none.iter().all(|one| one.value.is_none()));
    }

    /// Layers by factors whose product is not 1, biases 0: the logits are multiplied by it, and no quotient by the margin changes.
    #[test]
    fn rescaled_layers_change_no_quotient() {
        // Wide enough for no example to end in zeros.
        let layers = [
            Layer::Convolution { channels: 8, kernel: 3, padding: 1 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Convolution { channels: 6, kernel: 2, padding: 0 },
            Layer::Relu,
            Layer::Dense { width: 20 },
            Layer::Relu,
            Layer::Dense { width: 3 },
        ];
        let network = Network::new("wide", &[2, 6, 6], &layers).unwrap();
        let theta = theta(&network, 4);
        for parameter in network.parameters().iter().filter(|parameter| parameter.name.ends_with("bias")) {
            let _ = parameter.of(&theta).unwrap().fill_(0.);
        }
        let examples = examples(&network, 40);
        let labels = network.predict(&theta, &examples.inputs().unwrap()).unwrap().argmax(1, false);
        let examples = examples.relabelled(labels).unwrap();
        let measure = |theta: &Tensor| {
            let margin = margin_percentile(&margins(&network, theta, &examples).unwrap()).unwrap();
            assert!(margin > 0.);
            let norms = layer_norms(&network, theta, None).unwrap();
            margin_measures(&norms, path_norm(&network, theta).unwrap(), margin)
        };
        let before = measure(&theta);
        let scaled = theta.copy();
        for (index, factor) in [(0, 3.), (2, 0.05), (4, 11.), (6, 0.4)] {
            let _ = network.parameters()[index].of(&scaled).unwrap().multiply_scalar_(factor);
        }
        let after = measure(&scaled);
        for (a, b) in before.iter().zip(&after).filter(|(a, _)| a.measure.name != "spectral_initial") {
            if a.measure == INVERSE_MARGIN {
                let factor: f64 = 3. * 0.05 * 11. * 0.4;
                close(b.value.unwrap(), a.value.unwrap() / factor.powi(2), 1e-9);
            } else {
                assert!(
                    (a.value.unwrap() - b.value.unwrap()).abs() < 1e-9 * a.value.unwrap().abs().max(1.),
                    "{a:?} {b:?}"
                );
            }
        }
    }
}
