//! Flatness as PAC-Bayes has it: how much Gaussian noise on the weights the training error bears (Neyshabur et al. 2017, "Exploring
//! generalization in deep learning"; Jiang et al. 2020, appendix C.4 to C.6). σ is the largest standard deviation under which the expected training
//! error rises by no more than a target, 0.1 in the paper. With w all P parameters, w⁰ their initial values, m training examples:
//!
//! | measure | formula | Jiang et al. 2020 |
//! | --- | --- | --- |
//! | `flatness` | `1/σ²`, noise `N(0, σ²)` on each weight | (53) |
//! | `pac_bayes_origin` | `‖w‖² / 4σ² + ln(m/σ) + 10` | (49) |
//! | `pac_bayes_initial` | `‖w - w⁰‖² / 4σ² + ln(m/σ) + 10` | (48) |
//! | `magnitude_flatness` | `1/σ'²`, noise `N(0, σ'² w_i² + ε²)`: as large as the weight | (61) |
//! | `pac_bayes_magnitude_origin` | `¼ Σ ln((ε² + (σ'² + 1) ‖w‖² / P) / (ε² + σ'² (w_i - w_i⁰)²)) + ln(m/σ') + 10` | (57) |
//! | `pac_bayes_magnitude_initial` | the same with `‖w - w⁰‖²` above | (56) |
//!
//! Noise that is the same for all weights is no property of the function: where one layer is multiplied by c and the next by 1/c, σ changes
//! (Dinh et al. 2017, "Sharp minima can generalize for deep nets"). Noise by magnitude all but escapes that.

use super::{Family, Measure, Measured, one_model};
use flatland_network::streams::{Purpose, stream};
use flatland_network::{Examples, Loss, Network, NetworkError, Result, evaluate, evaluate_many};
use rand::Rng;
use rand_distr::StandardNormal;
use tch::{Kind, Tensor};

const fn flatness(
    name: &'static str,
    label: &'static str,
    formula: &'static str,
    source: &'static str,
) -> Measure {
    Measure::new(Family::Flatness, name, label, formula, source)
}
const FLATNESS: Measure = flatness("flatness", "1 / σ²", "1/σ²", "Jiang et al. 2020");
const ORIGIN: Measure = flatness(
    "pac_bayes_origin",
    "PAC-Bayes, ‖w‖² / 4σ²",
    "‖w‖² / 4σ² + ln(m/σ) + 10",
    "Neyshabur et al. 2017",
);
const INITIAL: Measure = flatness(
    "pac_bayes_initial",
    "PAC-Bayes, ‖w − w⁰‖² / 4σ²",
    "‖w - w⁰‖² / 4σ² + ln(m/σ) + 10",
    "Dziugaite and Roy 2017",
);
const MAGNITUDE_FLATNESS: Measure = flatness("magnitude_flatness", "1 / σ′²", "1/σ'²", "Jiang et al. 2020");
const MAGNITUDE_ORIGIN: Measure = flatness(
    "pac_bayes_magnitude_origin",
    "PAC-Bayes by magnitude, ‖w‖²",
    "¼ Σ ln((ε² + (σ'² + 1) ‖w‖² / P) / (ε² + σ'² (w_i - w_i⁰)²)) + ln(m/σ') + 10",
    "Jiang et al. 2020",
);
const MAGNITUDE_INITIAL: Measure = flatness(
    "pac_bayes_magnitude_initial",
    "PAC-Bayes by magnitude, ‖w − w⁰‖²",
    "¼ Σ ln((ε² + (σ'² + 1) ‖w - w⁰‖² / P) / (ε² + σ'² (w_i - w_i⁰)²)) + ln(m/σ') + 10",
    "Jiang et al. 2020",
);

pub(super) const ALL: [Measure; 6] =
    [FLATNESS, ORIGIN, INITIAL, MAGNITUDE_FLATNESS, MAGNITUDE_ORIGIN, MAGNITUDE_INITIAL];

/// The standard deviation of the noise on a weight w.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Noise {
    /// σ.
    Equal,
    /// `√(σ² w² + ε²)`.
    Magnitude {
        /// ε, so that a weight of 0 has noise too.
        epsilon: f64,
    },
}

/// How σ is sought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseSettings {
    /// How much the expected error may rise, a share: 0.1 in the paper.
    pub rise: f64,
    /// Draws of noise that the expectation is a mean over.
    pub draws: usize,
    /// Chooses the draws.
    pub seed: u64,
}

/// Between the first guess and the least or most σ that is looked at: factors of 2.
const REACH: u32 = 20;
/// Halvings of an octave: σ is found to a factor of 2^(1/128).
const HALVINGS: u32 = 7;

/// The largest σ for which the mean error over the draws on these examples is at most the error without noise plus `rise`, to half a per
/// cent; θ `[P]`. By doubling and then halving (of ln σ), all with the same draws: where the error does not rise steadily with σ, it is one
/// crossing of several. `None` where no σ from 1e-7 to 1e5 is such a crossing: the error is high from the start, or ε alone is too much.
///
/// # Errors
/// [`NetworkError::Shape`] when θ or the examples do not fit the network, [`NetworkError::Setting`] without draws.
pub fn largest_noise(
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    noise: Noise,
    settings: &NoiseSettings,
) -> Result<Option<f64>> {
    let theta = one_model(network, theta)?;
    if settings.draws == 0 {
        return Err(NetworkError::Setting("noise needs at least one draw, found 0".into()));
    }
    let mut generator = stream(settings.seed, 0, 0, Purpose::Noise);
    let count = settings.draws * network.count() as usize;
    let draws: Vec<f32> = (0..count).map(|_| generator.sample(StandardNormal)).collect();
    let draws = Tensor::f_from_slice(&draws)?
        .f_view([settings.draws as i64, network.count()])?
        .f_to_kind(theta.kind())?
        .f_to_device(theta.device())?;
    let error = |accuracy: Option<f64>| 1. - accuracy.unwrap_or(f64::NAN);
    let limit = error(evaluate(network, &theta, examples, Loss::CrossEntropy)?.accuracy) + settings.rise;
    let bears = |sigma: f64| -> Result<bool> {
        let noise = match noise {
            Noise::Equal => draws.f_mul_scalar(sigma)?,
            Noise::Magnitude { epsilon } => {
                let variance =
                    theta.f_square()?.f_mul_scalar(sigma * sigma)?.f_add_scalar(epsilon * epsilon)?;
                draws.f_mul(&variance.f_sqrt()?)?
            }
        };
        let found = evaluate_many(network, &noise.f_add(&theta)?, examples, Loss::CrossEntropy)?;
        let sum: f64 = found.iter().map(|one| error(one.accuracy)).sum();
        Ok(sum / found.len() as f64 <= limit)
    };
    // A bracket: `low` is borne, twice as much is not.
    let mut low = 0.1;
    if bears(low)? {
        for step in 0.. {
            if step == REACH {
                return Ok(None);
            }
            if !bears(2. * low)? {
                break;
            }
            low *= 2.;
        }
    } else {
        for step in 0.. {
            if step == REACH {
                return Ok(None);
            }
            low /= 2.;
            if bears(low)? {
                break;
            }
        }
    }
    let mut factor = 2_f64;
    for _ in 0..HALVINGS {
        factor = factor.sqrt();
        if bears(low * factor)? {
            low *= factor;
        }
    }
    Ok(Some(low))
}

/// The measures of this file, of θ `[P]` trained on `trained_on` examples from `initial`, with noise borne on `examples`.
///
/// # Errors
/// As [`largest_noise`].
pub fn pac_bayes_measures(
    network: &Network,
    theta: &Tensor,
    initial: Option<&Tensor>,
    (examples, trained_on): (&Examples, i64),
    epsilon: f64,
    settings: &NoiseSettings,
) -> Result<Vec<Measured>> {
    let sigma = largest_noise(network, theta, examples, Noise::Equal, settings)?;
    let by_magnitude = largest_noise(network, theta, examples, Noise::Magnitude { epsilon }, settings)?;
    let initial = initial.map(|initial| one_model(network, initial)).transpose()?;
    formulas(&one_model(network, theta)?, initial.as_ref(), trained_on, (sigma, by_magnitude), epsilon)
}

/// From σ and σ' to the measures.
fn formulas(
    theta: &Tensor,
    initial: Option<&Tensor>,
    trained_on: i64,
    (sigma, by_magnitude): (Option<f64>, Option<f64>),
    epsilon: f64,
) -> Result<Vec<Measured>> {
    let theta = theta.f_to_kind(Kind::Double)?;
    let sum = |values: &Tensor| -> Result<f64> { Ok(values.f_sum(Kind::Double)?.f_double_value(&[])?) };
    let square = sum(&theta.f_square()?)?;
    // (w_i - w_i⁰)² of each.
    let moved =
        initial.map(|initial| theta.f_sub(&initial.f_to_kind(Kind::Double)?)?.f_square()).transpose()?;
    let distance = moved.as_ref().map(&sum).transpose()?;
    let rest = |sigma: f64| (trained_on as f64 / sigma).ln() + 10.;
    let bound = |square: f64| sigma.map(|sigma| square / (4. * sigma * sigma) + rest(sigma));
    let count = theta.numel() as f64;
    let magnitude = |square: f64| -> Result<Option<f64>> {
        let (Some(sigma), Some(moved)) = (by_magnitude, &moved) else { return Ok(None) };
        let above = epsilon * epsilon + (sigma * sigma + 1.) * square / count;
        let below = moved.f_mul_scalar(sigma * sigma)?.f_add_scalar(epsilon * epsilon)?;
        Ok(Some(0.25 * (count * above.ln() - sum(&below.f_log()?)?) + rest(sigma)))
    };
    Ok(vec![
        FLATNESS.of(sigma.map(|sigma| sigma.powi(-2))),
        ORIGIN.of(bound(square)),
        INITIAL.of(distance.and_then(bound)),
        MAGNITUDE_FLATNESS.of(by_magnitude.map(|sigma| sigma.powi(-2))),
        MAGNITUDE_ORIGIN.of(magnitude(square)?),
        MAGNITUDE_INITIAL.of(distance.map(magnitude).transpose()?.flatten()),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{close, value};
    use super::*;
    use flatland_network::Layer;
    use tch::Device;

    const SETTINGS: NoiseSettings = NoiseSettings { rise: 0.1, draws: 250, seed: 3 };

    /// Two classes, x = 1, θ = (a, b, 0, 0): with noise on all four parameters the difference of the logits is a - b + σ s, with s of each draw a
    /// sum of four normal numbers, and the draw is missed from σ = (a - b) / -s on.
    #[test]
    fn a_linear_model_bears_what_its_draws_say() {
        let network = Network::dense(&[1, 2], &Layer::Relu).unwrap();
        let theta = Tensor::from_slice(&[2., 0.5, 0., 0.]);
        let examples = |kind, label: i64| {
            let ones = Tensor::ones([3, 1], (kind, Device::Cpu));
            Examples::new(ones, Tensor::from_slice(&[label; 3])).unwrap()
        };
        let right = examples(Kind::Double, 0);
        let mut generator = stream(SETTINGS.seed, 0, 0, Purpose::Noise);
        let draws: Vec<[f32; 4]> =
            (0..SETTINGS.draws).map(|_| std::array::from_fn(|_| generator.sample(StandardNormal))).collect();
        // Of the draws' σ at which they are missed, a tenth may be.
        let bound = |of: &dyn Fn(&[f64; 4]) -> f64| {
            let mut missed: Vec<f64> = draws.iter().map(|draw| of(&draw.map(f64::from))).collect();
            missed.retain(|sigma| *sigma > 0.);
            missed.sort_by(f64::total_cmp);
            missed[SETTINGS.draws / 10]
        };
        let found = largest_noise(&network, &theta, &right, Noise::Equal, &SETTINGS).unwrap().unwrap();
        let expected = bound(&|[a, b, c, d]| 1.5 / (b - a + d - c));
        assert!(found <= expected && found > expected / 1.006, "{found} {expected}");
        // Φ(-1.2816) = 0.1, and s has a standard deviation of 2: 250 draws scatter by 8 %.
        close(found, 1.5 / 2. / 1.281_551_565_544_6, 0.25);
        let single = examples(Kind::Float, 0);
        let theta32 = theta.to_kind(Kind::Float);
        let single = largest_noise(&network, &theta32, &single, Noise::Equal, &SETTINGS).unwrap();
        close(single.unwrap(), found, 0.006);

        // By magnitude and ε = 0: s = 2 n₁ - 0.5 n₂.
        let noise = |epsilon| Noise::Magnitude { epsilon };
        let found = largest_noise(&network, &theta, &right, noise(0.), &SETTINGS).unwrap().unwrap();
        let expected = bound(&|[a, b, ..]| 1.5 / (0.5 * b - 2. * a));
        assert!(found <= expected && found > expected / 1.006, "{found} {expected}");
        // ε takes a part of what is borne.
        let less = largest_noise(&network, &theta, &right, noise(0.3), &SETTINGS).unwrap().unwrap();
        assert!(less < found, "{less} {found}");

        // Nothing bears an ε that is too much, nothing is worse than all wrong.
        let few = NoiseSettings { draws: 20, ..SETTINGS };
        assert_eq!(largest_noise(&network, &theta, &right, noise(100.), &few).unwrap(), None);
        let wrong = examples(Kind::Double, 1);
        assert_eq!(largest_noise(&network, &theta, &wrong, Noise::Equal, &few).unwrap(), None);
        let none = NoiseSettings { draws: 0, ..few };
        assert!(largest_noise(&network, &theta, &right, Noise::Equal, &none).is_err());
    }

    #[test]
    fn formulas_by_hand() {
        let theta = Tensor::from_slice(&[1., 2.]);
        let initial = Tensor::from_slice(&[1., -1.]);
        let (sigma, by_magnitude, epsilon) = (0.5_f64, 2_f64, 0.1_f64);
        let given = (Some(sigma), Some(by_magnitude));
        let measured = formulas(&theta, Some(&initial), 100, given, epsilon).unwrap();
        assert_eq!(measured.iter().map(|one| one.measure).collect::<Vec<_>>(), ALL);
        let magnitude = |square: f64| {
            let above = 0.01 + 5. * square / 2.;
            0.25 * ((above / 0.01_f64).ln() + (above / (0.01 + 4. * 9.)).ln()) + 50_f64.ln() + 10.
        };
        for (name, expected) in [
            ("flatness", 4.),
            ("pac_bayes_origin", 5. + 200_f64.ln() + 10.),
            ("pac_bayes_initial", 9. + 200_f64.ln() + 10.),
            ("magnitude_flatness", 0.25),
            ("pac_bayes_magnitude_origin", magnitude(5.)),
            ("pac_bayes_magnitude_initial", magnitude(9.)),
        ] {
            close(value(&measured, name).unwrap(), expected, 1e-12);
        }
        let without = formulas(&theta, None, 100, given, epsilon).unwrap();
        let there: Vec<bool> = without.iter().map(|one| one.value.is_some()).collect();
        assert_eq!(there, [true, true, false, true, false, false]);
    }
}
