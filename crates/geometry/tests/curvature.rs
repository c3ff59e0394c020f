//! The same curvature as torch.func computes it in f64, from the fixtures that `scripts/reference/geometry_fixtures.py` writes.

use flatland_geometry::{
    Curvature, CurvatureOperator, DensitySettings, EigenSettings, Symmetric, TraceEstimates, eigenpairs,
    eigenvalues, hessian, hutch_plus_plus, hutchinson, spectral_density, xtrace,
};
use flatland_network::{Examples, Layer, Loss, Module, Network};
use safetensors::tensor::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};

struct Case {
    name: &'static str,
    network: Network,
    loss: Loss,
    bytes: &'static [u8],
}

impl Case {
    fn stored(&self, name: &str) -> Tensor {
        let file = SafeTensors::deserialize(self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        let kind = if view.dtype() == Dtype::F64 { Kind::Double } else { Kind::Int64 };
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        Tensor::from_data_size(view.data(), &shape, kind)
    }

    fn number(&self, name: &str) -> f64 {
        self.stored(name).double_value(&[])
    }

    fn theta(&self, kind: Kind) -> Tensor {
        self.stored("theta").to_kind(kind)
    }

    fn examples(&self, kind: Kind) -> Examples {
        let cast = |t: Tensor| if t.is_floating_point() { t.to_kind(kind) } else { t };
        Examples::new(cast(self.stored("inputs")), cast(self.stored("targets"))).unwrap()
    }

    fn operator(&self, kind: Kind) -> CurvatureOperator {
        CurvatureOperator::new(&self.network, &self.theta(kind), &self.examples(kind), self.loss).unwrap()
    }
}

fn cases() -> Vec<Case> {
    let convolutional = |side, channels: &[i64], hidden| {
        let mut layers = Vec::new();
        for &channels in channels {
            layers.extend([
                Layer::Convolution { channels, kernel: 3, padding: 0 },
                Layer::Relu,
                Layer::MaxPool { size: 2 },
            ]);
        }
        layers.extend([Layer::Dense { width: hidden }, Layer::Relu, Layer::Dense { width: 4 }]);
        Network::new("convolutional", &[1, side, side], &layers).unwrap()
    };
    let (entropy, squares) = (Loss::CrossEntropy, Loss::MeanSquaredError);
    let dense = |widths: &[i64], activation| Network::dense(widths, &activation).unwrap();
    let case = |name, network, loss, bytes| Case { name, network, loss, bytes };
    vec![
        case(
            "convolution",
            convolutional(8, &[3], 6),
            entropy,
            include_bytes!("fixtures/convolution.safetensors"),
        ),
        case(
            "two convolutions",
            convolutional(10, &[2, 3], 5),
            entropy,
            include_bytes!("fixtures/two-convolutions.safetensors"),
        ),
        case(
            "dense",
            dense(&[7, 9, 6, 4], Layer::Relu),
            entropy,
            include_bytes!("fixtures/dense.safetensors"),
        ),
        case(
            "regression",
            dense(&[2, 7, 5, 3], Layer::Tanh),
            squares,
            include_bytes!("fixtures/regression.safetensors"),
        ),
    ]
}

fn error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let expected = expected.to_kind(Kind::Double);
    ((found.to_kind(Kind::Double) - &expected).norm() / expected.norm()).double_value(&[])
}

/// In f32 by our own kernels where they fit, else by libtorch's operators.
#[test]
fn products() {
    for case in cases() {
        for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-5)] {
            let operator = case.operator(kind);
            for (curvature, name) in [(Curvature::Hessian, "hvp"), (Curvature::GaussNewton, "ggnvp")] {
                let found = operator.products_of(curvature, &case.stored("vectors")).unwrap();
                let error = error(&found, &case.stored(name));
                assert!(error < tolerance, "{}, {name} in {kind:?}: {error:.1e}", case.name);
                let one = case.stored("vectors").narrow(0, 1, 1);
                let alone = operator.products_of(curvature, &one).unwrap();
                assert!(self::error(&alone, &found.narrow(0, 1, 1)) < tolerance);
            }
        }
    }
}

fn module(name: &str) -> Module {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../network/tests/fixtures/modules");
    let bytes = std::fs::read(format!("{folder}/{name}.pt")).unwrap();
    Module::load(name, bytes.into(), Device::Cpu).unwrap()
}

/// TorchScript modules with the same weights, whatever the number of threads; more examples than a piece has.
#[test]
fn products_of_modules() {
    for case in cases().into_iter().filter(|case| case.name != "two convolutions") {
        let module = module(case.name);
        let theta = module.theta().unwrap();
        assert!(error(&theta, &case.theta(Kind::Double)) == 0., "{}", case.name);
        for copies in [1, 40] {
            let few = case.examples(Kind::Double);
            let repeated = |t: &Tensor| Tensor::cat(&vec![t; copies], 0);
            let examples = Examples::new(repeated(&few.inputs().unwrap()), repeated(few.targets())).unwrap();
            let [one, three] = [1, 3].map(|threads| {
                CurvatureOperator::of_module(&module, &theta, &examples, case.loss, threads).unwrap()
            });
            for (curvature, name) in [(Curvature::Hessian, "hvp"), (Curvature::GaussNewton, "ggnvp")] {
                let found = one.products_of(curvature, &case.stored("vectors")).unwrap();
                let error = error(&found, &case.stored(name));
                assert!(error < 1e-12, "{}, {name}: {error:.1e}", case.name);
                assert_eq!(three.products_of(curvature, &case.stored("vectors")).unwrap(), found);
            }
        }
    }
}

/// Batch normalisation, dropout and a parameter that is not trained: the Hessian is the gradient's own derivative.
#[test]
fn a_module_in_evaluation_mode_has_the_hessian_of_its_own_gradient() {
    let module = module("smooth");
    let (theta, options) = (module.theta().unwrap(), (Kind::Double, Device::Cpu));
    let x = (Tensor::arange(20 * 36, options) * 0.7).sin().view([20, 1, 6, 6]);
    let labels = Tensor::arange(20, (Kind::Int64, Device::Cpu)).remainder(3);
    let examples = Examples::new(x, labels).unwrap();
    let loss = Loss::CrossEntropy;
    let v = (Tensor::arange(module.count(), options) * 1.3).cos();
    let operator = CurvatureOperator::of_module(&module, &theta, &examples, loss, 1).unwrap();
    let found = operator.products_of(Curvature::Hessian, &v.unsqueeze(0)).unwrap().squeeze_dim(0);
    let gradient = |step: f64| {
        module.set(&(&theta + &v * step)).unwrap();
        module.loss_and_gradient(&examples, loss).unwrap().1
    };
    let expected = (gradient(1e-5) - gradient(-1e-5)) / 2e-5;
    assert!(error(&found, &expected) < 1e-8);
}

#[test]
fn modules_that_cannot_be_looked_at_are_refused() {
    let of = |name: &str| {
        let module = module(name);
        let labels = Tensor::zeros([5], (Kind::Int64, Device::Cpu));
        let examples = Examples::new(Tensor::ones([5, 4], (Kind::Float, Device::Cpu)), labels).unwrap();
        let theta = module.theta().unwrap();
        CurvatureOperator::of_module(&module, &theta, &examples, Loss::CrossEntropy, 1)
            .unwrap_err()
            .to_string()
    };
    assert!(of("detached").contains("differentiably"));
    assert!(of("not-finite").contains("not finite"));
}

#[test]
fn the_whole_spectrum() {
    for case in cases() {
        let matrix =
            hessian(&case.network, &case.theta(Kind::Double), &case.examples(Kind::Double), case.loss)
                .unwrap();
        let found = Tensor::from_slice(&eigenvalues(&matrix).unwrap());
        assert!(error(&found, &case.stored("eigenvalues")) < 1e-10, "{}", case.name);
    }
}

#[test]
fn both_ends_of_the_spectrum() {
    for case in cases() {
        for (curvature, name) in
            [(Curvature::Hessian, "eigenvalues"), (Curvature::GaussNewton, "ggn_eigenvalues")]
        {
            let all: Vec<f64> = Vec::try_from(case.stored(name)).unwrap();
            let operator = case.operator(Kind::Double);
            // The bottom of the Gauss-Newton matrix is its kernel.
            let smallest = if curvature == Curvature::Hessian { 2 } else { 0 };
            let settings =
                EigenSettings { largest: 5, smallest, tolerance: 1e-9, ..EigenSettings::default() };
            let found = eigenpairs(&operator.of(curvature), settings, &|_| true).unwrap();
            assert!(found.converged, "{}", case.name);
            let expected = all.iter().rev().take(5).chain(all.iter().take(smallest).rev());
            let scale = all[all.len() - 1];
            for (value, expected) in found.values.iter().zip(expected) {
                assert!((value - expected).abs() < 1e-8 * scale, "{}, {name}: {value} {expected}", case.name);
            }
            // In f32 to what rounding leaves.
            let found = eigenpairs(
                &case.operator(Kind::Float).of(curvature),
                EigenSettings { smallest: 0, tolerance: 1e-4, ..settings },
                &|_| true,
            );
            assert!((found.unwrap().values[0] / scale - 1.).abs() < 1e-4, "{}", case.name);
        }
    }
}

/// Over 200 seeds, the interval of two standard errors holds the exact trace as often as one may expect.
#[test]
fn traces() {
    type Estimator = fn(&dyn Symmetric, u64) -> TraceEstimates;
    let estimators: [(&str, Estimator); 3] = [
        ("Hutchinson", |a, seed| hutchinson(a, 0., 32, seed, &|_| true).unwrap()),
        ("Hutch++", |a, seed| hutch_plus_plus(a, 48, seed).unwrap()),
        ("XTrace", |a, seed| xtrace(a, 48, seed).unwrap()),
    ];
    for case in cases() {
        // The matrix stands for the operator, whose products were compared above: 200 seeds of it would take minutes.
        let identity = Tensor::eye(case.network.count(), (Kind::Double, Device::Cpu));
        let matrix = case.operator(Kind::Double).products_of(Curvature::Hessian, &identity).unwrap();
        assert!((matrix.norm().double_value(&[]) / case.number("frobenius") - 1.).abs() < 1e-12);
        let matrix = flatland_geometry::Matrix(matrix);
        let truth = case.number("trace");
        for (name, estimate) in estimators {
            let hits = (0..200).filter(|&seed| {
                let found = estimate(&matrix, seed).trace;
                (found.value - truth).abs() <= 2. * found.standard_error
            });
            let share = hits.count() as f64 / 200.;
            assert!((0.90..=0.99).contains(&share), "{}, {name}: {share}", case.name);
        }
    }
}

/// The density's first moments are the trace and the squared Frobenius norm over P.
#[test]
fn densities() {
    for case in cases() {
        let count = case.network.count() as f64;
        let settings = DensitySettings { probes: 64, steps: 12, seed: 0 };
        let operator = case.operator(Kind::Double);
        let found = spectral_density(&operator.of(Curvature::Hessian), settings, &|_| true).unwrap();
        for (power, truth) in [(1, case.number("trace")), (2, case.number("frobenius").powi(2))] {
            let values: Vec<f64> =
                found.iter().map(|one| count * one.mean(|node| node.powi(power))).collect();
            let mean = values.iter().sum::<f64>() / 64.;
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 63.;
            assert!((mean - truth).abs() < 4. * (variance / 64.).sqrt(), "{}: {mean} {truth}", case.name);
        }
    }
}
