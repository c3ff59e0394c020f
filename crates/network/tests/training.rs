//! Training goes on where it stopped; epochs and evaluations count every example; damaged files are errors.

use flatland_network::snapshot::{self, Checkpoint};
use flatland_network::{
    Examples, Layer, Loss, Network, NetworkError, Optimiser, OptimiserSettings, Training, evaluate,
    evaluate_many, initialise, initialise_stacked, loss_and_gradient,
};
use proptest::prelude::*;
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

const STREAM: (u64, u32) = (11, 2);

fn small() -> Network {
    let layers = [
        Layer::Convolution { channels: 3, kernel: 3, padding: 1 },
        Layer::Relu,
        Layer::MaxPool { size: 2 },
        Layer::Dense { width: 4 },
    ];
    Network::new("small", &[1, 6, 6], &layers).unwrap()
}

fn examples(network: &Network, count: i64) -> Examples {
    let shape = [&[count], network.input()].concat();
    let index = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu));
    let inputs = ((&index * &index) * 0.7 + &index * 1.3).sin().to_kind(Kind::Float).view(shape.as_slice());
    let labels = inputs.flatten(1, -1).narrow(1, 0, network.outputs()).argmax(-1, false);
    Examples::new(inputs, labels).unwrap()
}

fn optimisers() -> [OptimiserSettings; 5] {
    let sgd = |momentum, nesterov, weight_decay| OptimiserSettings::Sgd {
        lr: 0.05,
        momentum,
        nesterov,
        weight_decay,
    };
    [
        sgd(0., false, 0.),
        sgd(0.9, false, 0.01),
        sgd(0.9, true, 0.),
        OptimiserSettings::Adam { lr: 0.01, weight_decay: 0.01 },
        OptimiserSettings::RmsProp { lr: 0.001, weight_decay: 0. },
    ]
}

fn training<'a>(
    network: &'a Network,
    examples: &'a Examples,
    settings: OptimiserSettings,
    batch: i64,
) -> Training<'a> {
    Training {
        network,
        loss: Loss::CrossEntropy,
        examples,
        batch,
        stream: STREAM,
        theta: initialise(network, STREAM.0, STREAM.1, Kind::Float, Device::Cpu).unwrap(),
        optimiser: Optimiser::new(settings).unwrap(),
        epochs: 0,
    }
}

fn checkpoint(training: &Training, notes: &str) -> Vec<u8> {
    Checkpoint::save(training.network, &training.theta, &training.optimiser, training.epochs, notes).unwrap()
}

fn assert_same(one: &[u8], other: &[u8], what: &str) {
    assert!(one == other, "{what}");
}

#[test]
fn a_resumed_run_equals_an_undisturbed_one_bit_for_bit() {
    tch::set_num_threads(1);
    let (network, notes) = (small(), "θ, \"quoted\"\nand {braces}");
    let examples = examples(&network, 50);
    for settings in optimisers() {
        for stop in [0, 1, 3] {
            let mut whole = training(&network, &examples, settings, 7);
            let mut first = training(&network, &examples, settings, 7);
            for _ in 0..stop {
                assert_eq!(whole.epoch().unwrap(), first.epoch().unwrap());
            }
            let loaded = Checkpoint::load(&network, &checkpoint(&first, notes)).unwrap();
            assert_eq!((loaded.epochs, loaded.notes.as_str()), (stop, notes));
            drop(first);
            let mut second = training(&network, &examples, settings, 7);
            second.optimiser = loaded.optimiser(settings, Device::Cpu).unwrap();
            (second.theta, second.epochs) = (loaded.theta, loaded.epochs);
            for _ in 0..3 {
                assert_eq!(whole.epoch().unwrap(), second.epoch().unwrap());
            }
            assert_same(&checkpoint(&whole, ""), &checkpoint(&second, ""), &format!("{settings:?}"));
        }
    }
}

#[test]
fn a_checkpoint_of_a_run_that_diverged_keeps_its_nan() {
    tch::set_num_threads(1);
    let network = small();
    let theta = initialise(&network, 0, 0, Kind::Float, Device::Cpu).unwrap();
    let _ = theta.narrow(0, 3, 2).fill_(f64::NAN);
    let optimiser = Optimiser::new(optimisers()[0]).unwrap();
    let bytes = Checkpoint::save(&network, &theta, &optimiser, 1, "").unwrap();
    let loaded = Checkpoint::load(&network, &bytes).unwrap();
    assert!(loaded.theta.allclose(&theta, 0., 0., true));
    assert_eq!(loaded.theta.isnan().sum(Kind::Int64).int64_value(&[]), 2);
}

#[test]
fn an_optimiser_refuses_the_state_of_another() {
    tch::set_num_threads(1);
    let network = small();
    let examples = examples(&network, 20);
    // Plain and Nesterov momentum share one state; so does weight decay, which has none.
    let kind = |settings: &OptimiserSettings| match settings {
        OptimiserSettings::Sgd { momentum: 0., .. } => 0,
        OptimiserSettings::Sgd { .. } => 1,
        OptimiserSettings::Adam { .. } => 2,
        OptimiserSettings::RmsProp { .. } => 3,
    };
    for saved in optimisers() {
        let mut training = training(&network, &examples, saved, 10);
        training.epoch().unwrap();
        let loaded = Checkpoint::load(&network, &checkpoint(&training, "")).unwrap();
        for asked in optimisers() {
            let found = loaded.optimiser(asked, Device::Cpu);
            assert_eq!(found.is_ok(), kind(&saved) == kind(&asked), "{saved:?} as {asked:?}");
        }
    }
}

#[test]
fn a_batch_of_none_or_more_than_all_is_refused() {
    tch::set_num_threads(1);
    let network = small();
    let examples = examples(&network, 20);
    for batch in [i64::MIN, -1, 0, 21, i64::MAX] {
        assert!(Training::check_batch(batch, 20).is_err());
        let mut training = training(&network, &examples, optimisers()[1], batch);
        let before = training.theta.copy();
        assert!(matches!(training.epoch(), Err(NetworkError::Setting(_))), "{batch}");
        assert_eq!((training.theta, training.epochs), (before, 0));
    }
    for batch in [1, 19, 20] {
        assert!(training(&network, &examples, optimisers()[0], batch).epoch().is_ok());
    }
}

/// With a learning rate that moves nothing, an epoch is an evaluation: the last batch counts by its examples.
#[test]
fn the_last_incomplete_batch_counts() {
    tch::set_num_threads(1);
    let network = small();
    let examples = examples(&network, 23);
    let still = OptimiserSettings::Sgd { lr: 1e-300, momentum: 0., nesterov: false, weight_decay: 0. };
    for batch in [1, 5, 22, 23] {
        let mut training = training(&network, &examples, still, batch);
        let expected = evaluate(&network, &training.theta, &examples, Loss::CrossEntropy).unwrap();
        let found = training.epoch().unwrap();
        assert!((found.loss - expected.loss).abs() < 1e-6, "{batch}: {found:?} {expected:?}");
        assert_eq!(found.accuracy, expected.accuracy);
        assert_eq!(training.optimiser.steps(), 23u64.div_ceil(batch as u64));
    }
}

#[test]
fn an_epoch_goes_through_every_example_in_an_order_of_its_own() {
    tch::set_num_threads(1);
    // θ starts at zero and each input has one entry of its own: with one example a step, the loss of every example is
    // ln 4, and any example left out would leave its weights untouched.
    let network = Network::dense(&[30, 4], &Layer::Relu).unwrap();
    let inputs = Tensor::eye(30, (Kind::Float, Device::Cpu));
    let targets = Tensor::arange(30, (Kind::Int64, Device::Cpu)).remainder(4);
    let examples = Examples::new(inputs, targets).unwrap();
    let settings = OptimiserSettings::Sgd { lr: 0.1, momentum: 0., nesterov: false, weight_decay: 0. };
    let run = |stream, epochs| {
        let mut training = training(&network, &examples, settings, 4);
        (training.stream, training.epochs) = (stream, epochs);
        training.theta = Tensor::zeros([network.count()], (Kind::Float, Device::Cpu));
        training.epoch().unwrap();
        training.theta
    };
    let theta = run(STREAM, 0);
    assert_eq!(theta, run(STREAM, 0));
    let touched = theta.narrow(0, 0, 120).view([4, 30]).abs().sum_dim_intlist(0, false, Kind::Float);
    assert!(touched.min().double_value(&[]) > 0.);
    for other in [run(STREAM, 1), run((STREAM.0, 3), 0), run((12, STREAM.1), 0)] {
        assert_ne!(theta, other);
    }
}

#[test]
fn evaluation_is_the_plain_mean_across_chunks() {
    tch::set_num_threads(1);
    // Chunks are of 4 MiB of the widest layer: 1024 f32 numbers in the 32x32 input, 6 x 28 x 28 after LeNet's first.
    let wide = Network::dense(&[1024, 3], &Layer::Relu).unwrap();
    for (network, counts) in
        [(wide, vec![1, 1023, 1024, 1025, 2049]), (Network::lenet(), vec![1, 222, 223, 500])]
    {
        let theta = initialise(&network, 1, 0, Kind::Float, Device::Cpu).unwrap();
        for count in counts {
            let examples = examples(&network, count);
            let found = evaluate(&network, &theta, &examples, Loss::CrossEntropy).unwrap();
            let outputs = network.forward(&theta, &examples.inputs().unwrap()).unwrap().to_kind(Kind::Double);
            let log_probabilities = outputs.log_softmax(-1, Kind::Double);
            let chosen = log_probabilities.gather(1, &examples.targets().unsqueeze(1), false);
            let loss = -chosen.mean(Kind::Double).double_value(&[]);
            let hits =
                outputs.argmax(1, false).eq_tensor(examples.targets()).sum(Kind::Int64).int64_value(&[]);
            assert!(
                (found.loss - loss).abs() < 1e-6 * loss.abs(),
                "{} {count}: {found:?} {loss}",
                network.name()
            );
            assert_eq!(found.accuracy, Some(hits as f64 / count as f64));
        }
    }
}

#[test]
fn evaluation_does_not_depend_on_the_threads() {
    let network = Network::lenet();
    let examples = examples(&network, 1000);
    let theta = initialise(&network, 1, 0, Kind::Float, Device::Cpu).unwrap();
    let found = [1, 2, 3, 8, 1].map(|threads| {
        tch::set_num_threads(threads);
        let found = evaluate(&network, &theta, &examples, Loss::CrossEntropy).unwrap();
        // Workers of its own must not change the caller's setting.
        assert_eq!(tch::get_num_threads(), threads);
        found
    });
    assert!(found.iter().all(|other| other == &found[0]), "{found:?}");
}

#[test]
fn models_are_evaluated_together_as_alone() {
    let network = Network::lenet();
    let examples = examples(&network, 700);
    let models = [(1, 0), (2, 0), (3, 0)];
    let theta = initialise_stacked(&network, &models, Kind::Float, Device::Cpu).unwrap();
    for threads in [1, 3] {
        tch::set_num_threads(threads);
        let found = evaluate_many(&network, &theta, &examples, Loss::CrossEntropy).unwrap();
        let alone = (0..3).map(|m| evaluate(&network, &theta.get(m), &examples, Loss::CrossEntropy).unwrap());
        assert_eq!(found, alone.collect::<Vec<_>>());
    }
    assert!(evaluate_many(&network, &theta.get(0), &examples, Loss::CrossEntropy).is_err());
    assert!(evaluate_many(&network, &theta.narrow(0, 0, 0), &examples, Loss::CrossEntropy).is_err());
    assert!(evaluate(&network, &theta, &examples, Loss::CrossEntropy).is_err());
}

#[test]
fn evaluation_of_a_regression_has_no_accuracy() {
    tch::set_num_threads(1);
    let network = Network::dense(&[1, 5, 1], &Layer::LeakyRelu).unwrap();
    let x = Tensor::linspace(-1., 1., 300, (Kind::Float, Device::Cpu)).view([300, 1]);
    let examples = Examples::new(x.shallow_clone(), x.sin()).unwrap();
    let theta = initialise(&network, 1, 0, Kind::Float, Device::Cpu).unwrap();
    let found = evaluate(&network, &theta, &examples, Loss::MeanSquaredError).unwrap();
    let plain = loss_and_gradient(&network, &theta, &x, &x.sin(), Loss::MeanSquaredError).unwrap();
    assert!((found.loss - plain.loss.double_value(&[])).abs() < 1e-6);
    assert_eq!(found.accuracy, None);
}

#[test]
fn a_checkpoint_of_another_network_is_refused() {
    tch::set_num_threads(1);
    let dense = |widths: &[i64]| Network::dense(widths, &Layer::Relu).unwrap();
    let network = dense(&[6, 5, 4, 3]);
    let theta = initialise(&network, 0, 0, Kind::Float, Device::Cpu).unwrap();
    let bytes = Checkpoint::save(&network, &theta, &Optimiser::new(optimisers()[0]).unwrap(), 1, "").unwrap();
    // The second has the same first layers; the third another width; the fourth one layer more.
    for (other, reason) in [
        (dense(&[6, 5, 4]), "no parameter named \"fc3."),
        (dense(&[6, 5, 5, 3]), "has shape"),
        (dense(&[6, 5, 4, 3, 2]), "no tensor named \"fc4."),
        (small(), "no tensor named \"conv1."),
    ] {
        let error = Checkpoint::load(&other, &bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    // Weights alone are no checkpoint.
    let weights = snapshot::to_safetensors(&network, &theta).unwrap();
    assert!(Checkpoint::load(&network, &weights).unwrap_err().to_string().contains("not a checkpoint"));
}

/// A checkpoint with everything in it: Adam's state, notes.
fn valid() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        tch::set_num_threads(1);
        let network = small();
        let examples = examples(&network, 20);
        let mut training = training(&network, &examples, optimisers()[3], 10);
        training.epoch().unwrap();
        checkpoint(&training, "{\"loss\":[1.5]}")
    })
}

/// Reads the bytes in every way there is, and uses what was read; returns whether the checkpoint was taken.
fn read(bytes: &[u8]) -> bool {
    let network = small();
    let _ = snapshot::from_safetensors(&network, bytes);
    let Ok(loaded) = Checkpoint::load(&network, bytes) else {
        return false;
    };
    for settings in optimisers() {
        let Ok(mut optimiser) = loaded.optimiser(settings, Device::Cpu) else {
            continue;
        };
        let (mut theta, gradient) = (loaded.theta.copy(), loaded.theta.ones_like());
        optimiser.step(&mut theta, gradient).unwrap();
    }
    true
}

#[test]
fn garbage_is_an_error_that_says_so() {
    tch::set_num_threads(1);
    for bytes in [&[][..], &[0xFF; 4096], &[0; 4096], b"PK\x03\x04 a zip file of torch.save", "{}".as_bytes()]
    {
        let error = Checkpoint::load(&small(), bytes).unwrap_err();
        assert!(matches!(error, NetworkError::Weights { .. }), "{error}");
        assert!(error.to_string().contains("not a checkpoint"), "{error}");
        let error = snapshot::from_safetensors(&small(), bytes).unwrap_err();
        assert!(error.to_string().contains("not a safetensors file"), "{error}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    tch::set_num_threads(1);
    assert!(read(valid()));
    for length in 0..valid().len() {
        assert!(!read(&valid()[..length]), "{length} bytes of {}", valid().len());
    }
    assert!(!read(&[valid(), &[0]].concat()));
}

/// The header is JSON: numbers in it that lie are the nastiest damage.
#[test]
fn a_header_that_lies_is_an_error() {
    tch::set_num_threads(1);
    let text = |bytes: &[u8]| bytes.iter().map(|&b| b as char).collect::<String>();
    let whole = text(valid());
    for (from, to) in [
        ("F32", "F64"),
        ("F32", "I32"),
        ("[3,1,3,3]", "[3,1,9,1]"),
        (r#"epochs\":1"#, r#"epochs\":x"#),
        (r#"epochs\":1"#, r#"epochs\":7"#),
        (r#"steps\":2"#, r#"steps\":3"#),
        (r#"steps\""#, r#"stops\""#),
        ("1.5", "1.6"),
        ("optimiser.", "optimizer."),
        ("conv1.bias", "conv2.bias"),
    ] {
        assert!(whole.contains(from), "{from}");
        let bytes: Vec<u8> = whole.replacen(from, to, 1).chars().map(|c| c as u8).collect();
        assert!(!read(&bytes), "{from} to {to}");
    }
}

/// A disk that forgets a bit costs the trial's time, not its truth.
#[test]
fn a_flipped_bit_among_the_numbers_is_found() {
    tch::set_num_threads(1);
    let numbers = valid().len() - 4 * small().count() as usize;
    for at in (numbers..valid().len()).step_by(97) {
        let mut bytes = valid().to_vec();
        bytes[at] ^= 1;
        assert!(!read(&bytes), "byte {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(!read(&bytes));
    }

    /// A header length that fits, so that the JSON parser sees the noise.
    #[test]
    fn a_random_header_never_panics(header in "[\\[\\]{}:,\"a-z0-9_. -]{0,200}", data in prop::collection::vec(any::<u8>(), 0..64)) {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        prop_assert!(!read(&bytes));
    }

    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..6)) {
        let mut bytes = valid().to_vec();
        for (place, bit) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
        }
        read(&bytes);
    }

    /// Most of the file is numbers, where a flip is harmless: these all hit the header.
    #[test]
    fn a_damaged_header_never_panics(place in any::<prop::sample::Index>(), byte: u8, flip: bool) {
        let mut bytes = valid().to_vec();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let place = place.index(header);
        bytes[place] = if flip { bytes[place] ^ (1 << (byte % 8)) } else { byte };
        read(&bytes);
    }
}
