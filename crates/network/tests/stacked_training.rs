//! Models trained as a stack `[M, P]` are the models trained alone, whatever each has for itself.
//!
//! Sums may be taken in another order, and an error in the last bit of a weight grows from step to step: after four epochs of small
//! networks, numbers agree to 1e-4 of their size. Within stacks, numbers are equal bit for bit.

use flatland_network::{
    Epoch, Examples, Layer, Loss, Network, NetworkError, Optimiser, OptimiserSettings, StackedTraining,
    Training, initialise,
};
use tch::{Device, Kind, Tensor};

const COUNT: i64 = 31;
const BATCH: i64 = 8;

fn networks() -> [Network; 2] {
    let layers = [
        Layer::Convolution { channels: 3, kernel: 3, padding: 1 },
        Layer::Relu,
        Layer::MaxPool { size: 2 },
        Layer::Convolution { channels: 4, kernel: 3, padding: 0 },
        Layer::Relu,
        Layer::Dense { width: 6 },
        Layer::Relu,
        Layer::Dense { width: 4 },
    ];
    [Network::new("small", &[1, 8, 8], &layers).unwrap(), Network::dense(&[9, 8, 4], &Layer::Relu).unwrap()]
}

/// Numbers that look irregular, the same in every run, with labels that the numbers decide.
fn examples(network: &Network, salt: f64) -> Examples {
    let shape = [&[COUNT], network.input()].concat();
    let index = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu));
    let inputs = ((&index * &index) * 0.7 + &index * salt).sin().to_kind(Kind::Float).view(shape.as_slice());
    let labels = inputs.flatten(1, -1).narrow(1, 0, network.outputs()).argmax(-1, false);
    Examples::new(inputs, labels).unwrap()
}

/// Each kind of optimiser, with numbers of its own for each of three rows.
fn optimisers() -> Vec<[OptimiserSettings; 3]> {
    let sgd = |momentum: [f64; 3], nesterov, decay: [f64; 3]| {
        [(0.1, 0), (0.02, 1), (0.05, 2)].map(|(lr, row): (f64, usize)| OptimiserSettings::Sgd {
            lr,
            momentum: momentum[row],
            nesterov,
            weight_decay: decay[row],
        })
    };
    vec![
        sgd([0.; 3], false, [0.; 3]),
        sgd([0.9, 0.5, 0.8], false, [0., 0.01, 0.001]),
        sgd([0.9, 0.5, 0.8], true, [0.; 3]),
        [(0.01, 0.), (0.003, 0.1), (0.001, 0.01)]
            .map(|(lr, weight_decay)| OptimiserSettings::Adam { lr, weight_decay }),
        [(0.01, 0.), (0.003, 0.), (0.001, 0.)]
            .map(|(lr, weight_decay)| OptimiserSettings::RmsProp { lr, weight_decay }),
    ]
}

fn training<'a>(
    network: &'a Network,
    examples: &'a Examples,
    optimiser: OptimiserSettings,
    batch: i64,
    row: u32,
) -> Training<'a> {
    Training {
        network,
        loss: Loss::CrossEntropy,
        examples,
        batch,
        stream: (u64::from(row % 2), row),
        theta: initialise(network, 0, row, Kind::Float, Device::Cpu).unwrap(),
        optimiser: Optimiser::new(optimiser).unwrap(),
        epochs: 0,
    }
}

/// θ, the optimiser's state, epochs and steps.
fn numbers(training: &Training) -> (Vec<Tensor>, u32, u64) {
    let state = training.optimiser.state().map(|(_, tensor)| tensor.shallow_clone());
    let all = std::iter::once(training.theta.shallow_clone()).chain(state).collect();
    (all, training.epochs, training.optimiser.steps())
}

fn assert_close(row: &Training, alone: &Training, what: &str) {
    let (found, expected) = (numbers(row), numbers(alone));
    assert_eq!((found.0.len(), found.1, found.2), (expected.0.len(), expected.1, expected.2), "{what}");
    for (found, expected) in found.0.iter().zip(&expected.0) {
        let error = (found - expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
        assert!(error < 1e-4, "{what}: relative error {error:.1e}");
    }
}

fn assert_close_epochs(found: Epoch, expected: Epoch, what: &str) {
    assert!((found.loss - expected.loss).abs() < 1e-4 * expected.loss, "{what}: {found:?} {expected:?}");
    // One example of 31 may change sides.
    let accuracy = |epoch: Epoch| epoch.accuracy.unwrap();
    assert!(
        (accuracy(found) - accuracy(expected)).abs() < 1.5 / COUNT as f64,
        "{what}: {found:?} {expected:?}"
    );
}

#[test]
fn a_row_is_the_training_of_its_model_alone() {
    tch::set_num_threads(1);
    for network in networks() {
        let first = examples(&network, 1.3);
        let relabelled = first.relabelled(first.targets().flip([0])).unwrap();
        let other = examples(&network, 0.4);
        for of_rows in [[&first, &first, &first], [&first, &relabelled, &other]] {
            for settings in optimisers() {
                for batch in [BATCH, COUNT] {
                    let begin = || -> Vec<Training> {
                        let rows = (0..).zip(of_rows).zip(settings);
                        rows.map(|((row, examples), settings)| {
                            training(&network, examples, settings, batch, row)
                        })
                        .collect()
                    };
                    let mut alone = begin();
                    let mut stack = StackedTraining::new(&begin()).unwrap();
                    let what = format!("{} {settings:?} batch {batch}", network.name());
                    for _ in 0..4 {
                        let epochs = stack.epoch(&[true; 3]).unwrap();
                        for (row, alone) in alone.iter_mut().enumerate() {
                            assert_close_epochs(epochs[row].unwrap(), alone.epoch().unwrap(), &what);
                            assert_close(&stack.row(row).unwrap(), alone, &what);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_that_stops_holds_still_and_the_others_never_notice() {
    tch::set_num_threads(1);
    for network in networks() {
        let examples = examples(&network, 1.3);
        for settings in optimisers() {
            let begin = || {
                let rows: Vec<Training> = (0..)
                    .zip(settings)
                    .map(|(row, settings)| training(&network, &examples, settings, BATCH, row))
                    .collect();
                StackedTraining::new(&rows).unwrap()
            };
            let (mut whole, mut stopping) = (begin(), begin());
            let mut seen = Vec::new();
            for epoch in 0..4 {
                let all = whole.epoch(&[true; 3]).unwrap();
                let some = stopping.epoch(&[true, epoch < 2, true]).unwrap();
                seen.push(numbers(&whole.row(1).unwrap()));
                assert_eq!((some[0], some[2]), (all[0], all[2]));
                assert_eq!(some[1], all[1].filter(|_| epoch < 2));
                assert_eq!(numbers(&stopping.row(1).unwrap()), seen[epoch.min(1)]);
                for row in [0, 2] {
                    assert_eq!(numbers(&stopping.row(row).unwrap()), numbers(&whole.row(row).unwrap()));
                }
            }
            assert_ne!(seen[1], seen[3]);
            // It goes on where it stood, the others wait until it is as far as they are; then all are.
            assert_eq!(stopping.epoch(&[false; 3]).unwrap(), [None; 3]);
            for expected in &seen[2..] {
                let epochs = stopping.epoch(&[true; 3]).unwrap();
                assert!(epochs[0].is_none() && epochs[1].is_some() && epochs[2].is_none());
                assert_eq!(&numbers(&stopping.row(1).unwrap()), expected);
            }
            assert_eq!(stopping.epoch(&[true; 3]).unwrap(), whole.epoch(&[true; 3]).unwrap());
        }
    }
}

#[test]
fn a_row_that_diverges_spoils_no_other_and_may_hold_still() {
    tch::set_num_threads(1);
    let [network, _] = networks();
    let examples = examples(&network, 1.3);
    let sgd = |lr| OptimiserSettings::Sgd { lr, momentum: 0.9, nesterov: true, weight_decay: 0.01 };
    let begin = |lr| {
        let rows = [0, 1]
            .map(|row| training(&network, &examples, sgd(if row == 0 { lr } else { 0.05 }), BATCH, row));
        StackedTraining::new(&rows).unwrap()
    };
    let (mut wild, mut tame) = (begin(1e30), begin(0.05));
    for _ in 0..2 {
        let found = wild.epoch(&[true; 2]).unwrap();
        assert!(!found[0].unwrap().loss.is_finite());
        assert_eq!(found[1], tame.epoch(&[true; 2]).unwrap()[1]);
    }
    assert_eq!(wild.epoch(&[false, true]).unwrap()[1], tame.epoch(&[true; 2]).unwrap()[1]);
    assert_eq!(numbers(&wild.row(1).unwrap()), numbers(&tame.row(1).unwrap()));
}

#[test]
fn a_stack_goes_on_from_its_rows_bit_for_bit() {
    tch::set_num_threads(1);
    for network in networks() {
        let examples = examples(&network, 1.3);
        for settings in optimisers() {
            let rows: Vec<Training> = (0..)
                .zip(settings)
                .map(|(row, settings)| training(&network, &examples, settings, BATCH, row))
                .collect();
            let mut whole = StackedTraining::new(&rows).unwrap();
            whole.epoch(&[true; 3]).unwrap();
            let rows: Vec<Training> = (0..3).map(|row| whole.row(row).unwrap()).collect();
            let mut second = StackedTraining::new(&rows).unwrap();
            for _ in 0..2 {
                assert_eq!(whole.epoch(&[true; 3]).unwrap(), second.epoch(&[true; 3]).unwrap());
            }
            for row in 0..3 {
                assert_eq!(numbers(&whole.row(row).unwrap()), numbers(&second.row(row).unwrap()));
            }
        }
    }
}

#[test]
fn what_does_not_stack_is_refused() {
    tch::set_num_threads(1);
    let [network, dense] = networks();
    let (images, flat) = (examples(&network, 1.3), examples(&dense, 1.3));
    let adam = OptimiserSettings::Adam { lr: 0.01, weight_decay: 0. };
    let sgd = |momentum| OptimiserSettings::Sgd { lr: 0.01, momentum, nesterov: false, weight_decay: 0. };
    let few = images.first(9).unwrap();
    let model = |examples, optimiser, batch| training(&network, examples, optimiser, batch, 0);
    for (one, other) in [
        (model(&images, adam, 4), model(&images, adam, 5)),
        (model(&images, adam, 4), model(&few, adam, 4)),
        (model(&images, adam, 4), model(&images, sgd(0.), 4)),
        (model(&images, sgd(0.5), 4), model(&images, sgd(0.), 4)),
        (model(&images, adam, 4), training(&dense, &flat, adam, 4, 0)),
    ] {
        assert!(matches!(StackedTraining::new(&[one, other]), Err(NetworkError::Setting(_))));
    }
    assert!(StackedTraining::new(&[]).is_err());
    let mut stack = StackedTraining::new(&[model(&images, adam, 32)]).unwrap();
    assert!(stack.epoch(&[true]).is_err(), "a batch larger than the data set");
    assert!(stack.epoch(&[]).is_err() && stack.row(1).is_err());
}
