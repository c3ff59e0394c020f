//! Against a loss whose every sharpness is known: linear regression under the mean squared error, `L = ‖X w - y‖² / N` with a column of
//! ones in X, gradient g and Hessian `H = 2 XᵀX / N`.

use super::*;
use flatland_network::{Examples, Layer, Loss, Model, Module, Network, initialise};
use tch::{Device, Kind, Tensor};

pub(super) struct Quadratic {
    pub model: Model,
    pub examples: Examples,
    pub theta: Tensor,
    pub gradient: Tensor,
    pub hessian: Tensor,
}

impl Quadratic {
    /// `inputs` and a bias, from 12 examples; away from the minimum, or at it.
    pub fn new(inputs: i64, kind: Kind, at_minimum: bool) -> Self {
        let waves = |rows: i64, columns: i64, speed: f64| {
            let count = (Tensor::arange(rows * columns, (Kind::Double, Device::Cpu)) + 1.).square() * speed;
            count.sin().view([rows, columns])
        };
        let (x, y) = (waves(12, inputs, 0.7), waves(12, 1, 0.31));
        Self::of(&x, &y, kind, at_minimum)
    }

    pub fn of(x: &Tensor, y: &Tensor, kind: Kind, at_minimum: bool) -> Self {
        let (count, inputs) = x.size2().unwrap();
        let network = Network::dense(&[inputs, 1], &Layer::Relu).unwrap();
        let wide = Tensor::cat(&[x, &Tensor::ones([count, 1], (Kind::Double, Device::Cpu))], 1);
        let hessian = wide.tr().matmul(&wide) * (2. / count as f64);
        let theta = if at_minimum {
            Tensor::linalg_solve(&hessian, &(wide.tr().matmul(y) * (2. / count as f64)).flatten(0, -1), true)
        } else {
            (Tensor::arange(inputs + 1, (Kind::Double, Device::Cpu)) * 0.9 + 0.4).cos()
        };
        let error = wide.matmul(&theta.unsqueeze(1)) - y;
        let gradient = (wide.tr().matmul(&error) * (2. / count as f64)).flatten(0, -1);
        let examples = Examples::new(x.to_kind(kind), y.to_kind(kind)).unwrap();
        Self { model: Model::Network(network), examples, theta: theta.to_kind(kind), gradient, hessian }
    }

    pub fn objective(&self) -> Objective<'_> {
        Objective { model: &self.model, examples: &self.examples, loss: Loss::MeanSquaredError }
    }

    /// `L(θ + δ) - L(θ)`, in f64.
    pub fn rise(&self, delta: &Tensor) -> f64 {
        (self.gradient.dot(delta) + self.hessian.mv(delta).dot(delta) / 2.).double_value(&[])
    }

    pub fn loss(&self) -> f64 {
        self.objective().losses(&self.theta.unsqueeze(0)).unwrap()[0]
    }

    /// `diag(T)` in f64.
    fn lengths(&self, scale: Scale) -> Tensor {
        scale.of(self.model.parameters(), &self.theta).unwrap().to_kind(Kind::Double)
    }
}

pub(super) const THOROUGH: Ascent = Ascent { steps: 2000, restarts: 3, stream: (1, 0) };

/// The trust-region problem for the maximum: `(μ I - H) δ = g`, `‖δ‖ = ρ`, μ above λmax, by bisection in the secular equation (Conn, Gould and
/// Toint 2000, *Trust-Region Methods*, chapter 7).
fn largest_in_ball(gradient: &Tensor, hessian: &Tensor, rho: f64) -> f64 {
    let (values, vectors) = hessian.linalg_eigh("L");
    let values: Vec<f64> = Vec::try_from(values).unwrap();
    let along: Vec<f64> = Vec::try_from(vectors.tr().mv(gradient)).unwrap();
    let top = values[values.len() - 1];
    let norm = |mu: f64| values.iter().zip(&along).map(|(h, g)| (g / (mu - h)).powi(2)).sum::<f64>().sqrt();
    if norm(top * (1. + 1e-12)) < rho {
        // The hard case, a minimum among them: the rest of ρ goes along the top eigenvector.
        return top * rho * rho / 2.;
    }
    let (mut low, mut high) = (top, top + gradient.norm().double_value(&[]) / rho);
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if norm(middle) > rho { low = middle } else { high = middle }
    }
    values
        .iter()
        .zip(&along)
        .map(|(h, g)| {
            let d = g / (high - h);
            g * d + h * d * d / 2.
        })
        .sum()
}

#[test]
fn the_worst_case_in_a_ball_solves_the_secular_equation() {
    for (kind, tolerance) in [(Kind::Double, 1e-7), (Kind::Float, 2e-3)] {
        for at_minimum in [false, true] {
            let quadratic = Quadratic::new(4, kind, at_minimum);
            for scale in [Scale::Unit, Scale::Elementwise, Scale::Filter] {
                let lengths = quadratic.lengths(scale);
                let gradient = &quadratic.gradient * &lengths;
                let hessian = &quadratic.hessian * lengths.unsqueeze(0) * lengths.unsqueeze(1);
                for rho in [0.1, 1., 10.] {
                    let objective = quadratic.objective();
                    let found = worst_case(&objective, &quadratic.theta, rho, scale, THOROUGH).unwrap();
                    let expected = largest_in_ball(&gradient, &hessian, rho);
                    assert!(
                        (found.rise / expected - 1.).abs() < tolerance,
                        "{kind:?} {at_minimum} {scale} {rho}: {} {expected}",
                        found.rise
                    );
                    if !at_minimum {
                        let along = &gradient * rho / gradient.norm();
                        let expected = quadratic.rise(&(along * &lengths));
                        assert!((found.one_step / expected - 1.).abs() < tolerance);
                        assert!(found.one_step <= found.rise);
                    }
                }
            }
        }
    }
}

/// A Hessian of 2 I: the rise along every direction is known, and so is the worst, `‖g‖ ρ + ρ²`.
#[test]
fn where_the_hessian_is_a_multiple_of_the_identity_all_is_closed() {
    let signs = [1f64, 1., 1., 1., -1., -1., -1., 1., -1., -1., -1., 1.];
    let x = Tensor::from_slice(&signs).view([4, 3]);
    let y = Tensor::from_slice(&[0.3, -1., 2., 0.7]).view([4, 1]);
    let quadratic = Quadratic::of(&x, &y, Kind::Double, false);
    assert!(quadratic.hessian.allclose(
        &(Tensor::eye(4, (Kind::Double, Device::Cpu)) * 2.),
        0.,
        1e-14,
        false
    ));
    let norm = quadratic.gradient.norm().double_value(&[]);
    for rho in [1e-3, 0.5, 30.] {
        let found = worst_case(&quadratic.objective(), &quadratic.theta, rho, Scale::Unit, THOROUGH).unwrap();
        let expected = norm * rho + rho * rho;
        for rise in [found.one_step, found.rise] {
            assert!((rise / expected - 1.).abs() < 1e-9, "{rho}: {rise} {expected}");
        }
    }
    // The gradient cancels in each pair, and what is left is σ² ‖z‖²: of mean 4 σ².
    let sigma = 0.2;
    let found =
        average_case(&quadratic.objective(), &quadratic.theta, sigma, Scale::Unit, 20_000, (0, 0)).unwrap();
    let expected = 4. * sigma * sigma;
    assert!((found.rise - expected).abs() < 4. * found.standard_error, "{found:?} {expected}");
    // ‖z‖² of 4 has the variance 8.
    assert!((found.standard_error / (sigma * sigma * (8f64 / 20_000.).sqrt()) - 1.).abs() < 0.05);
}

#[test]
fn keskars_box_has_its_maximum_at_a_corner() {
    for (kind, tolerance) in [(Kind::Double, 1e-9), (Kind::Float, 2e-3)] {
        for at_minimum in [false, true] {
            let quadratic = Quadratic::new(5, kind, at_minimum);
            for epsilon in [0.05, 0.5] {
                let bounds = (quadratic.theta.to_kind(Kind::Double).abs() + 1.) * epsilon;
                let most = corners(6).map(|signs| quadratic.rise(&(&bounds * signs))).fold(0., f64::max);
                let expected = 100. * most / (1. + quadratic.loss());
                let ascent = Ascent { steps: 100, restarts: 40, stream: (1, 0) };
                let found = keskar(&quadratic.objective(), &quadratic.theta, epsilon, ascent).unwrap();
                assert!((found / expected - 1.).abs() < tolerance, "{kind:?} {epsilon}: {found} {expected}");
                // Few steps give less, but nothing above it.
                let short = Ascent { steps: 1, restarts: 0, ..ascent };
                let lower = keskar(&quadratic.objective(), &quadratic.theta, epsilon, short).unwrap();
                assert!(lower <= found && lower >= 0.);
            }
        }
    }
}

/// All vectors of signs.
pub(super) fn corners(count: i64) -> impl Iterator<Item = Tensor> {
    (0..1i64 << count).map(move |bits| {
        let signs: Vec<f64> = (0..count).map(|bit| if bits >> bit & 1 == 1 { 1. } else { -1. }).collect();
        Tensor::from_slice(&signs)
    })
}

/// `σ² Σ T_i² H_ii / 2`, and how often its interval of 1.96 standard errors holds it.
#[test]
fn the_average_case_is_half_the_trace_and_its_error_is_honest() {
    tch::set_num_threads(1);
    for (scale, at_minimum, kind) in [
        (Scale::Unit, true, Kind::Float),
        (Scale::Elementwise, false, Kind::Float),
        (Scale::Filter, false, Kind::Double),
    ] {
        let quadratic = Quadratic::new(4, kind, at_minimum);
        let lengths = quadratic.lengths(scale);
        let sigma = 0.3;
        let trace = (quadratic.hessian.diagonal(0, 0, 1) * lengths.square()).sum(Kind::Double);
        let expected = sigma * sigma * trace.double_value(&[]) / 2.;
        let mut covered = 0;
        let mut sum = 0.;
        for seed in 0..200 {
            let of =
                average_case(&quadratic.objective(), &quadratic.theta, sigma, scale, 80, (seed, 0)).unwrap();
            sum += of.rise;
            covered += i32::from((of.rise - expected).abs() <= 1.96 * of.standard_error);
        }
        assert!((180..=198).contains(&covered), "{scale}: {covered} of 200");
        assert!((sum / 200. / expected - 1.).abs() < 0.02, "{scale}: {} {expected}", sum / 200.);
    }
}

/// Dinh et al. 2017: the same function, other weights. Adaptive sharpness is a property of the function, the others are not.
#[test]
fn adaptive_sharpness_does_not_change_with_the_scale_of_layers() {
    let convolutional = [
        Layer::Convolution { channels: 3, kernel: 3, padding: 1 },
        Layer::Relu,
        Layer::MaxPool { size: 2 },
        Layer::Convolution { channels: 4, kernel: 3, padding: 0 },
        Layer::LeakyRelu,
        Layer::Dense { width: 5 },
        Layer::Relu,
        Layer::Dense { width: 3 },
    ];
    tch::set_num_threads(1);
    for (network, layers) in [
        (Network::dense(&[64, 7, 5, 3], &Layer::Relu).unwrap(), 2),
        (Network::new("small", &[1, 8, 8], &convolutional).unwrap(), 3),
    ] {
        let shape = [&[30], network.input()].concat();
        let x = (Tensor::arange(30 * 64, (Kind::Double, Device::Cpu)) * 0.37).sin().view(shape.as_slice());
        let labels = Tensor::arange(30, (Kind::Int64, Device::Cpu)).remainder(3);
        let examples = Examples::new(x, labels).unwrap();
        let model = Model::Network(network.clone());
        let objective = Objective { model: &model, examples: &examples, loss: Loss::CrossEntropy };
        let theta = initialise(&network, 0, 0, Kind::Double, Device::Cpu).unwrap();
        let ascent = Ascent { steps: 4, restarts: 1, stream: (0, 0) };
        let all = |theta: &Tensor| -> (Vec<f64>, Vec<f64>) {
            let of_scale = |scale| {
                let worst = worst_case(&objective, theta, 0.3, scale, ascent).unwrap();
                let average = average_case(&objective, theta, 0.1, scale, 5, (0, 0)).unwrap();
                [worst.one_step, worst.rise, average.rise, average.standard_error]
            };
            let boxes = [
                keskar(&objective, theta, 0.01, ascent).unwrap(),
                keskar_in_subspace(&objective, theta, 0.01, 20, (0, 1), ascent).unwrap(),
            ];
            (
                [of_scale(Scale::Elementwise), of_scale(Scale::Filter)].concat(),
                [&of_scale(Scale::Unit)[1..], &boxes].concat(),
            )
        };
        let (adaptive, plain) = all(&theta);
        for layer in 0..layers {
            for alpha in [0.03, 7., 50.] {
                let other = rescaled(&network, &theta, layer, alpha).unwrap();
                let outputs = |theta: &Tensor| network.forward(theta, &examples.inputs().unwrap()).unwrap();
                assert!(outputs(&other).allclose(&outputs(&theta), 1e-12, 1e-12, false));
                let (same, different) = all(&other);
                for (a, b) in adaptive.iter().zip(&same) {
                    assert!((a / b - 1.).abs() < 1e-8, "{} {layer} {alpha}: {a} {b}", network.name());
                }
                // In between, a measure may happen to be the same again.
                let far = if (0.1..10.).contains(&alpha) { &[][..] } else { &plain };
                for (a, b) in far.iter().zip(&different) {
                    assert!((a / b).ln().abs() > 0.2, "{} {layer} {alpha}: {a} {b}", network.name());
                }
            }
        }
        assert!(rescaled(&network, &theta, layers, 2.).is_err());
        assert!(rescaled(&network, &theta, 0, 0.).is_err());
    }
}

#[test]
fn what_cannot_be_measured_is_refused_or_no_number() {
    let quadratic = Quadratic::new(3, Kind::Double, false);
    let (objective, theta) = (quadratic.objective(), &quadratic.theta);
    let message = |result: flatland_network::Result<f64>| result.unwrap_err().to_string();
    let worst =
        |theta: &Tensor, rho, ascent| Ok(worst_case(&objective, theta, rho, Scale::Unit, ascent)?.rise);
    let average = |sigma, pairs| Ok(average_case(&objective, theta, sigma, Scale::Unit, pairs, (0, 0))?.rise);
    let subspace = |p| keskar_in_subspace(&objective, theta, 0.1, p, (0, 0), THOROUGH);
    for (found, expected) in [
        (message(worst(theta, 0., THOROUGH)), "ρ must be positive"),
        (message(worst(theta, f64::NAN, THOROUGH)), "ρ must be positive"),
        (message(worst(theta, 1., Ascent { steps: 0, ..THOROUGH })), "at least 1 step"),
        (message(worst(&theta.narrow(0, 0, 2), 1., THOROUGH)), "θ has shape [2]"),
        (message(average(-1., 5)), "σ must be positive"),
        (message(average(1., 1)), "at least 2 pairs"),
        (message(keskar(&objective, theta, f64::INFINITY, THOROUGH)), "ε must be positive"),
        (message(subspace(0)), "1 to 4 dimensions"),
        (message(subspace(5)), "1 to 4 dimensions"),
    ] {
        assert!(found.contains(expected), "{found}");
    }
    // Diverged models have no sharpness; a region that reaches to infinity has an infinite one.
    let diverged = theta * f64::NAN;
    assert!(worst(&diverged, 1., THOROUGH).unwrap().is_nan());
    assert!(keskar(&objective, &diverged, 0.1, THOROUGH).unwrap().is_nan());
    let noisy = average_case(&objective, &diverged, 1., Scale::Unit, 2, (0, 0)).unwrap();
    assert!(noisy.rise.is_nan() && noisy.standard_error.is_nan());
    assert!(worst(theta, 1e200, THOROUGH).unwrap().is_infinite());
}

/// A module of the user's own has the sharpness of the network with its weights.
#[test]
fn a_module_is_as_sharp_as_the_network_with_its_weights() {
    let path = format!("{}/../network/tests/fixtures/modules/dense.pt", env!("CARGO_MANIFEST_DIR"));
    let module = Module::load("dense", std::fs::read(path).unwrap().into(), Device::Cpu).unwrap();
    let theta = module.theta().unwrap();
    let network = Network::dense(&[7, 9, 6, 4], &Layer::Relu).unwrap();
    let x = (Tensor::arange(300 * 7, (Kind::Double, Device::Cpu)) * 0.37).sin().view([300, 7]);
    let labels = Tensor::arange(300, (Kind::Int64, Device::Cpu)).remainder(4);
    let examples = Examples::new(x, labels).unwrap();
    let ascent = Ascent { steps: 5, restarts: 1, stream: (0, 0) };
    let all = |model: Model| {
        let objective = Objective { model: &model, examples: &examples, loss: Loss::CrossEntropy };
        let mut values = vec![
            keskar(&objective, &theta, 0.01, ascent).unwrap(),
            keskar_in_subspace(&objective, &theta, 0.01, 20, (0, 1), ascent).unwrap(),
        ];
        for scale in [Scale::Unit, Scale::Elementwise, Scale::Filter] {
            let worst = worst_case(&objective, &theta, 0.3, scale, ascent).unwrap();
            let average = average_case(&objective, &theta, 0.1, scale, 5, (0, 0)).unwrap();
            values.extend([worst.one_step, worst.rise, average.rise, average.standard_error]);
        }
        assert!(objective.losses(&theta.narrow(0, 1, 5).unsqueeze(0)).is_err());
        assert!(keskar(&objective, &theta.narrow(0, 1, 5), 0.01, ascent).is_err());
        values
    };
    let (ours, theirs) = (all(Model::Network(network)), all(Model::Module(module)));
    for (index, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert!((a / b - 1.).abs() < 1e-9, "{index}: {a} {b}");
    }
}
