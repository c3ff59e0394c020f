//! The same numbers as PyTorch 2.11, from the fixtures that `scripts/reference/fixtures.py` writes.
//!
//! Errors are relative to the norm of the whole vector: below 1e-10 in f64, below 1e-5 in f32.

use flatland_network::{
    Layer, Loss, Network, NetworkError, Optimiser, OptimiserSettings, loss_and_gradient, snapshot,
};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::path::Path;
use std::process::Command;
use tch::{Kind, Tensor};

const GRADIENTS: &[u8] = include_bytes!("fixtures/gradients.safetensors");
const TRAJECTORIES: &[u8] = include_bytes!("fixtures/trajectories.safetensors");
const LENET: &[u8] = include_bytes!("fixtures/lenet-state-dict.safetensors");
const LENET_OUTPUTS: &[u8] = include_bytes!("fixtures/lenet-outputs.safetensors");

/// `uniform` of scripts/reference/networks.py: numbers in [-1, 1), `SplitMix64` of their index.
fn uniform(salt: u64, count: i64) -> Vec<f64> {
    (0..count as u64)
        .map(|index| {
            let mut z = index.wrapping_add(salt << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 11) as f64 / 2f64.powi(52) - 1.
        })
        .collect()
}

fn theta(network: &Network, kind: Kind) -> Tensor {
    let mut theta = uniform(1, network.count());
    for parameter in network.parameters() {
        let bound = (parameter.fan_in as f64).sqrt();
        let start = parameter.offset as usize;
        theta[start..start + parameter.count() as usize].iter_mut().for_each(|entry| *entry /= bound);
    }
    Tensor::from_slice(&theta).to_kind(kind)
}

fn inputs(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::from_slice(&uniform(2, shape.iter().product())).view(shape).to_kind(kind)
}

fn labels(count: i64, classes: i64) -> Tensor {
    Tensor::from_slice(&(0..count).map(|index| index * 7 % classes).collect::<Vec<_>>())
}

fn stored(bytes: &[u8], name: &str) -> Tensor {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let kind = if view.dtype() == Dtype::F64 { Kind::Double } else { Kind::Float };
    let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
    Tensor::from_data_size(view.data(), &shape, kind)
}

fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let tolerance = if found.kind() == Kind::Double { 1e-10 } else { 1e-5 };
    let expected = expected.to_kind(Kind::Double);
    let error = (found.to_kind(Kind::Double) - &expected).norm().double_value(&[])
        / expected.norm().double_value(&[]);
    assert!(
        error < tolerance,
        "{what} in {:?}: relative error {error:.1e}, allowed {tolerance:.0e}",
        found.kind()
    );
}

fn padded() -> Network {
    let mut layers = Vec::new();
    for channels in [6, 32, 32] {
        let convolution = Layer::Convolution { channels, kernel: 5, padding: 2 };
        layers.extend([convolution, Layer::Relu, Layer::MaxPool { size: 2 }]);
    }
    layers.push(Layer::Dense { width: 10 });
    Network::new("padded", &[1, 28, 28], &layers).unwrap()
}

/// Outputs, mean loss and gradient; the gradient both by [`loss_and_gradient`] and by autograd through
/// [`Network::forward`].
fn check_gradient(case: &str, network: &Network, batch: i64, targets: &Tensor, loss: Loss) {
    tch::set_num_threads(1);
    let expected = |what| stored(GRADIENTS, &format!("{case}.{what}"));
    for kind in [Kind::Double, Kind::Float] {
        let theta = theta(network, kind);
        let x = inputs(&[&[batch], network.input()].concat(), kind);
        let targets =
            if targets.kind() == Kind::Int64 { targets.shallow_clone() } else { targets.to_kind(kind) };
        assert_close(&network.forward(&theta, &x).unwrap(), &expected("outputs"), case);
        assert_close(&network.predict(&theta, &x).unwrap(), &expected("outputs"), case);
        let found = loss_and_gradient(network, &theta, &x, &targets, loss).unwrap();
        assert_close(&found.loss, &expected("loss"), case);
        assert_close(&found.gradient, &expected("gradient"), case);
        let leaf = theta.set_requires_grad(true);
        let mean = loss.mean(&network.forward(&leaf, &x).unwrap(), &targets).unwrap();
        assert_close(&Tensor::run_backward(&[mean], &[leaf], false, false)[0], &expected("gradient"), case);
    }
}

#[test]
fn lenet() {
    assert_eq!(Network::lenet().count(), 61_706);
    check_gradient("lenet", &Network::lenet(), 4, &labels(4, 10), Loss::CrossEntropy);
}

#[test]
fn padded_convolutions_with_a_remainder_in_pooling() {
    check_gradient("padded", &padded(), 4, &labels(4, 10), Loss::CrossEntropy);
}

#[test]
fn dense_with_relu() {
    let network = Network::dense(&[20, 16, 14, 10], &Layer::Relu).unwrap();
    check_gradient("relu", &network, 6, &labels(6, 10), Loss::CrossEntropy);
}

#[test]
fn dense_with_leaky_relu() {
    let network = Network::dense(&[1, 4, 9, 10, 4, 1], &Layer::LeakyRelu).unwrap();
    assert_eq!(network.count(), 202);
    let targets = Tensor::from_slice(&uniform(3, 16)).view([16, 1]);
    check_gradient("leaky", &network, 16, &targets, Loss::MeanSquaredError);
}

#[test]
fn optimisers_take_the_same_20_steps() {
    tch::set_num_threads(1);
    let sgd = |lr, momentum, nesterov, weight_decay| OptimiserSettings::Sgd {
        lr,
        momentum,
        nesterov,
        weight_decay,
    };
    let cases = [
        ("sgd", sgd(0.1, 0., false, 0.)),
        ("sgd-decay", sgd(0.1, 0., false, 0.01)),
        ("momentum", sgd(0.05, 0.9, false, 0.)),
        ("nesterov", sgd(0.05, 0.9, true, 0.)),
        ("nesterov-decay", sgd(0.05, 0.9, true, 0.01)),
        ("adam", OptimiserSettings::Adam { lr: 0.01, weight_decay: 0. }),
        ("adam-decay", OptimiserSettings::Adam { lr: 0.01, weight_decay: 0.01 }),
        ("rmsprop", OptimiserSettings::RmsProp { lr: 0.001, weight_decay: 0. }),
        ("rmsprop-decay", OptimiserSettings::RmsProp { lr: 0.001, weight_decay: 0.01 }),
    ];
    let network = Network::dense(&[4, 6, 3], &Layer::LeakyRelu).unwrap();
    let targets = labels(8, 3);
    for (name, settings) in cases {
        let path = stored(TRAJECTORIES, name);
        assert_eq!(path.size(), [20, network.count()]);
        for kind in [Kind::Double, Kind::Float] {
            let (mut theta, x) = (theta(&network, kind), inputs(&[8, 4], kind));
            let mut optimiser = Optimiser::new(settings).unwrap();
            for step in 0..20 {
                let found = loss_and_gradient(&network, &theta, &x, &targets, Loss::CrossEntropy).unwrap();
                optimiser.step(&mut theta, found.gradient).unwrap();
                assert_close(&theta, &path.get(step), &format!("{name}, step {}", step + 1));
            }
            assert_eq!(optimiser.steps(), 20);
        }
    }
}

#[test]
fn a_file_of_pytorch_loads_and_comes_back_the_same() {
    tch::set_num_threads(1);
    let network = Network::lenet();
    let theta = snapshot::from_safetensors(&network, LENET).unwrap();
    assert_eq!((theta.size(), theta.kind()), (vec![61_706], Kind::Float));
    let outputs = network.predict(&theta, &inputs(&[4, 1, 32, 32], Kind::Float)).unwrap();
    assert_close(&outputs, &stored(LENET_OUTPUTS, "outputs"), "outputs");

    let ours = snapshot::to_safetensors(&network, &theta).unwrap();
    let (theirs, ours) = (SafeTensors::deserialize(LENET).unwrap(), SafeTensors::deserialize(&ours).unwrap());
    assert_eq!(theirs.len(), ours.len());
    for (name, view) in theirs.iter() {
        assert_eq!(view, ours.tensor(name).unwrap(), "{name}");
    }
}

/// Only where `FLATLAND_REFERENCE_PYTHON` names a Python with torch.
#[test]
fn pytorch_loads_a_file_of_ours() {
    let Some(python) = std::env::var_os("FLATLAND_REFERENCE_PYTHON") else {
        return;
    };
    tch::set_num_threads(1);
    let network = Network::lenet();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/reference/check_load.py");
    for kind in [Kind::Float, Kind::Double] {
        let (theta, x) = (theta(&network, kind), inputs(&[4, 1, 32, 32], kind));
        let outputs = network.predict(&theta, &x).unwrap();
        let dtype = if kind == Kind::Double { Dtype::F64 } else { Dtype::F32 };
        let bytes = [("inputs", &x), ("outputs", &outputs)].map(|(name, tensor)| {
            let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
            tensor.copy_data_u8(&mut bytes, tensor.numel());
            (name, tensor.size().iter().map(|&n| n as usize).collect::<Vec<_>>(), bytes)
        });
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| (*name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (weights, expected) = (folder.join("weights.safetensors"), folder.join("expected.safetensors"));
        std::fs::write(&weights, snapshot::to_safetensors(&network, &theta).unwrap()).unwrap();
        std::fs::write(&expected, safetensors::serialize(views, None).unwrap()).unwrap();
        let output = Command::new(&python)
            .arg("-B")
            .arg(&script)
            .args([&weights, &expected])
            .output()
            .expect("python starts");
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{kind:?}: {said}");
    }
}

#[test]
fn a_file_of_another_network_is_refused_by_name() {
    tch::set_num_threads(1);
    let message = |network: &Network| match snapshot::from_safetensors(network, LENET) {
        Err(error @ NetworkError::Weights { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    // Strange names, then a missing one, then another shape.
    assert!(message(&Network::dense(&[400, 120, 84, 10], &Layer::Relu).unwrap()).contains("\"conv"));
    let mut layers = vec![
        Layer::Convolution { channels: 6, kernel: 5, padding: 0 },
        Layer::MaxPool { size: 2 },
        Layer::Convolution { channels: 16, kernel: 5, padding: 0 },
        Layer::MaxPool { size: 2 },
        Layer::Dense { width: 120 },
        Layer::Dense { width: 84 },
        Layer::Dense { width: 10 },
    ];
    let deeper =
        Network::new("deeper", &[1, 32, 32], &[layers.as_slice(), &[Layer::Dense { width: 10 }]].concat());
    assert!(message(&deeper.unwrap()).contains("no tensor named \"fc4.weight\""));
    layers[5] = Layer::Dense { width: 83 };
    let found = message(&Network::new("narrower", &[1, 32, 32], &layers).unwrap());
    assert!(found.contains("fc2.weight has shape [84, 120] in the file, expected [83, 120]"), "{found}");
    let theta = theta(&Network::lenet(), Kind::Float);
    let other = Network::dense(&[784, 60, 10], &Layer::Relu).unwrap();
    assert!(matches!(snapshot::to_safetensors(&other, &theta), Err(NetworkError::Shape { .. })));
}
