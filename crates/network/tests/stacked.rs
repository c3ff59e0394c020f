//! M models in one tensor `[M, P]` are M models alone: outputs, losses, gradients, steps.
//!
//! A batched matmul may sum in another order, hence 1e-12 in f64 and 1e-5 in f32 instead of equality.

use flatland_network::{
    Layer, Loss, Network, NetworkError, Optimiser, OptimiserSettings, initialise_stacked, loss_and_gradient,
};
use tch::{Device, Kind, Tensor};

const MODELS: i64 = 3;
/// As many examples as models, so that nothing may tell the two apart by their count.
const BATCH: i64 = 3;

fn networks() -> Vec<(Network, Loss)> {
    let small = [
        Layer::Convolution { channels: 4, kernel: 3, padding: 1 },
        Layer::Relu,
        Layer::MaxPool { size: 2 },
        Layer::Convolution { channels: 5, kernel: 3, padding: 0 },
        Layer::LeakyRelu,
        Layer::MaxPool { size: 2 },
        Layer::Dense { width: 3 },
    ];
    let first_pooled = [Layer::MaxPool { size: 2 }, Layer::Dense { width: 3 }];
    vec![
        (Network::dense(&[1, 4, 9, 10, 4, 1], &Layer::LeakyRelu).unwrap(), Loss::MeanSquaredError),
        (Network::dense(&[7, 5, 3], &Layer::Relu).unwrap(), Loss::CrossEntropy),
        (Network::new("small", &[2, 9, 11], &small).unwrap(), Loss::CrossEntropy),
        (Network::new("small", &[2, 9, 11], &small).unwrap(), Loss::MeanSquaredError),
        (Network::new("pooled", &[2, 5, 4], &first_pooled).unwrap(), Loss::CrossEntropy),
        (Network::lenet(), Loss::CrossEntropy),
    ]
}

/// Numbers that look irregular, the same in every run.
fn numbers(shape: &[i64], kind: Kind) -> Tensor {
    let index = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu));
    ((&index * &index) * 0.7 + index * 1.3).sin().view(shape).to_kind(kind)
}

fn targets(network: &Network, loss: Loss, stack: &[i64], kind: Kind) -> Tensor {
    match loss {
        Loss::MeanSquaredError => numbers(&[stack, &[network.outputs()]].concat(), kind).cos(),
        Loss::CrossEntropy => Tensor::arange(stack.iter().product::<i64>(), (Kind::Int64, Device::Cpu))
            .g_mul_scalar(7)
            .remainder(network.outputs())
            .view(stack),
    }
}

fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let tolerance = if found.kind() == Kind::Double { 1e-12 } else { 1e-5 };
    let norm = expected.norm().double_value(&[]).max(1e-3);
    let error = (found - expected).norm().double_value(&[]) / norm;
    assert!(error < tolerance, "{what}: relative error {error:.1e}, allowed {tolerance:.0e}");
}

/// Calls `check` with θ, x and targets, for inputs and targets shared or of each model's own.
fn each_case(check: impl Fn(&Network, Loss, &Tensor, [(&Tensor, bool); 2], &str)) {
    tch::set_num_threads(1);
    for kind in [Kind::Double, Kind::Float] {
        for (network, loss) in networks() {
            let seeds = [(5, 0), (5, 1), (6, 0)];
            let theta = initialise_stacked(&network, &seeds, kind, Device::Cpu).unwrap();
            for (own_x, own_targets) in [(false, false), (true, false), (false, true), (true, true)] {
                let stack = |own| if own { vec![MODELS, BATCH] } else { vec![BATCH] };
                let x = numbers(&[&stack(own_x), network.input()].concat(), kind);
                let targets = targets(&network, loss, &stack(own_targets), kind);
                let what =
                    format!("{} {loss:?} {kind:?}, own x {own_x}, own targets {own_targets}", network.name());
                check(&network, loss, &theta, [(&x, own_x), (&targets, own_targets)], &what);
            }
        }
    }
}

fn pick((tensor, own): (&Tensor, bool), model: i64) -> Tensor {
    if own { tensor.get(model) } else { tensor.shallow_clone() }
}

#[test]
fn outputs() {
    each_case(|network, _, theta, [x, _], what| {
        let forward = network.forward(theta, x.0).unwrap();
        let predict = network.predict(theta, x.0).unwrap();
        assert_eq!(forward.size(), [MODELS, BATCH, network.outputs()]);
        for model in 0..MODELS {
            let alone = network.forward(&theta.get(model), &pick(x, model)).unwrap();
            assert_close(&forward.get(model), &alone, what);
            assert_close(&predict.get(model), &alone, what);
        }
    });
}

#[test]
fn losses_hits_and_gradients() {
    each_case(|network, loss, theta, [x, targets], what| {
        let together = loss_and_gradient(network, theta, x.0, targets.0, loss).unwrap();
        assert_eq!(together.loss.size(), [MODELS], "{what}");
        for model in 0..MODELS {
            let alone =
                loss_and_gradient(network, &theta.get(model), &pick(x, model), &pick(targets, model), loss)
                    .unwrap();
            assert_close(&together.loss.get(model), &alone.loss, what);
            assert_close(&together.gradient.get(model), &alone.gradient, what);
            let hits = |correct: Option<Tensor>| correct.map(|correct| correct.int64_value(&[]));
            assert_eq!(hits(together.correct.as_ref().map(|c| c.get(model))), hits(alone.correct), "{what}");
        }
    });
}

/// On a CPU, large batches go through convolutions in pieces, by kernels of our own.
#[test]
fn a_large_batch_equals_autograd_on_the_whole() {
    tch::set_num_threads(1);
    for kind in [Kind::Double, Kind::Float] {
        for (network, loss) in networks() {
            let theta = initialise_stacked(&network, &[(5, 0)], kind, Device::Cpu).unwrap().get(0);
            for batch in [1, 99, 101, 149, 150, 257] {
                let x = numbers(&[&[batch], network.input()].concat(), kind);
                let targets = targets(&network, loss, &[batch], kind);
                let found = loss_and_gradient(&network, &theta, &x, &targets, loss).unwrap();
                let leaf = theta.detach().set_requires_grad(true);
                let outputs = network.forward(&leaf, &x).unwrap();
                let mean = loss.mean(&outputs, &targets).unwrap();
                let gradient = Tensor::run_backward(&[&mean], &[&leaf], false, false).remove(0);
                let what = format!("{} {loss:?} {kind:?}, batch {batch}", network.name());
                assert_close(&found.loss, &mean, &what);
                assert_close(&found.gradient, &gradient, &what);
                let correct = loss.correct(&outputs.detach(), &targets).unwrap();
                assert_eq!(
                    found.correct.map(|c| c.int64_value(&[])),
                    correct.map(|c| c.int64_value(&[])),
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn training() {
    let settings = [
        OptimiserSettings::Sgd { lr: 0.05, momentum: 0.9, nesterov: true, weight_decay: 0.01 },
        OptimiserSettings::Adam { lr: 0.001, weight_decay: 0.01 },
        OptimiserSettings::RmsProp { lr: 0.0001, weight_decay: 0. },
    ];
    each_case(|network, loss, theta, [x, targets], what| {
        if theta.kind() != Kind::Double {
            return; // rounding grows with the steps
        }
        for settings in settings {
            let steps = |mut theta: Tensor, x: &Tensor, targets: &Tensor| {
                let mut optimiser = Optimiser::new(settings).unwrap();
                for _ in 0..5 {
                    let found = loss_and_gradient(network, &theta, x, targets, loss).unwrap();
                    optimiser.step(&mut theta, found.gradient).unwrap();
                }
                theta
            };
            let together = steps(theta.copy(), x.0, targets.0);
            for model in 0..MODELS {
                let alone = steps(theta.get(model).copy(), &pick(x, model), &pick(targets, model));
                let error =
                    (together.get(model) - &alone).norm().double_value(&[]) / alone.norm().double_value(&[]);
                assert!(error < 1e-10, "{what} {settings:?}: relative error {error:.1e}");
            }
        }
    });
}

#[test]
fn an_optimiser_keeps_rows_apart_bit_for_bit() {
    tch::set_num_threads(1);
    let rows = [numbers(&[40], Kind::Float), numbers(&[40], Kind::Float).cos()];
    let gradient = |theta: &Tensor, step: i64| (theta * 3. + step).sin();
    for settings in [
        OptimiserSettings::Sgd { lr: 0.05, momentum: 0., nesterov: false, weight_decay: 0. },
        OptimiserSettings::Sgd { lr: 0.05, momentum: 0.9, nesterov: false, weight_decay: 0.01 },
        OptimiserSettings::Adam { lr: 0.01, weight_decay: 0.01 },
        OptimiserSettings::RmsProp { lr: 0.01, weight_decay: 0.01 },
    ] {
        let run = |mut theta: Tensor| {
            let mut optimiser = Optimiser::new(settings).unwrap();
            for step in 0..10 {
                let gradient = gradient(&theta, step);
                optimiser.step(&mut theta, gradient).unwrap();
            }
            theta
        };
        let together = run(Tensor::stack(&rows, 0));
        for (model, row) in rows.iter().enumerate() {
            assert_eq!(together.get(model as i64), run(row.copy()), "{settings:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_not_broadcast() {
    tch::set_num_threads(1);
    let shape_error = |found: Result<Tensor, NetworkError>| matches!(found, Err(NetworkError::Shape { .. }));
    let network = Network::dense(&[2, 3], &Layer::Relu).unwrap();
    let theta = numbers(&[MODELS, network.count()], Kind::Float);
    for x in [&[4, 3][..], &[4], &[2, 4, 2], &[1, 3, 4, 2]] {
        assert!(shape_error(network.forward(&theta, &numbers(x, Kind::Float))), "{x:?}");
    }
    assert!(shape_error(network.forward(&numbers(&[8], Kind::Float), &numbers(&[4, 2], Kind::Float))));
    let outputs = network.forward(&theta, &numbers(&[4, 2], Kind::Float)).unwrap();
    for targets in [&[3][..], &[4], &[1, 3], &[4, 1], &[1, 4, 3], &[MODELS, 4, 1]] {
        assert!(
            shape_error(Loss::MeanSquaredError.mean(&outputs, &numbers(targets, Kind::Float))),
            "{targets:?}"
        );
    }
    for targets in [&[1][..], &[3], &[4, 1], &[1, 4]] {
        let targets = Tensor::zeros(targets, (Kind::Int64, Device::Cpu));
        assert!(shape_error(Loss::CrossEntropy.mean(&outputs, &targets)), "{targets:?}");
    }
    let settings = OptimiserSettings::Sgd { lr: 0.1, momentum: 0.9, nesterov: false, weight_decay: 0.1 };
    let (mut optimiser, mut moved) = (Optimiser::new(settings).unwrap(), theta.copy());
    assert!(matches!(optimiser.step(&mut moved, theta.get(0)), Err(NetworkError::Shape { .. })));
    assert_eq!((moved, optimiser.steps()), (theta, 0));
}
