//! What a GPU needs for a training step, with steps recorded and without: one JSON line a measurement.
//!
//! `card <folder with MNIST's images and labels, raw> <device> <f32 or tf32> <deterministic or free>`. The other side is scripts/reference/card.py.

use flatland_network::device::{DeviceChoice, choose};
use flatland_network::{
    Examples, Loss, Network, Optimiser, OptimiserSettings, Precision, StackedTraining, Training, evaluate,
    initialise, set_deterministic, set_precision,
};
use serde_json::json;
use std::error::Error;
use std::time::Instant;
use tch::{Device, Kind};

type Fallible<T> = Result<T, Box<dyn Error>>;

const COUNT: usize = 60_000;
const SGD: OptimiserSettings =
    OptimiserSettings::Sgd { lr: 0.01, momentum: 0.9, nesterov: true, weight_decay: 0. };

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, device, precision, sums] = arguments.as_slice() else {
        return Err(
            "usage: card <folder with images and labels> <device> <precision> <deterministic or free>".into(),
        );
    };
    let device = choose(device.parse::<DeviceChoice>()?)?;
    set_precision(precision.parse::<Precision>()?)?;
    set_deterministic(sums == "deterministic")?;
    let recorded = std::env::var("FLATLAND_CUDA_GRAPHS").map_or(true, |value| value != "0");
    let say = |work: &str, models: usize, seconds: &[f64], found: f64| {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let line = json!({
            "side": "flatland", "work": work, "models": models, "recorded": recorded,
            "precision": precision, "sums": sums,
            "microseconds": 1e6 * sorted[sorted.len() / 2], "found": found,
        });
        println!("{line}");
    };
    let images = std::fs::read(format!("{folder}/images"))?;
    let labels = std::fs::read(format!("{folder}/labels"))?;
    let examples = padded(&images, &labels[..COUNT], device.device)?;
    let lenet = Network::lenet();
    let model = |examples, batch, stream| -> Fallible<Training> {
        Ok(Training {
            network: &lenet,
            loss: Loss::CrossEntropy,
            examples,
            batch,
            stream: (stream, 0),
            theta: initialise(&lenet, stream, 0, Kind::Float, device.device)?,
            optimiser: Optimiser::new(SGD)?,
            epochs: 0,
        })
    };
    for batch in [100, 500] {
        let mut alone = model(&examples, batch, 0)?;
        let mut seconds = Vec::new();
        let mut found = 0.;
        for _ in 0..4 {
            let begin = Instant::now();
            found = alone.epoch()?.loss;
            seconds.push(begin.elapsed().as_secs_f64() / (COUNT as f64 / batch as f64));
        }
        say(&format!("LeNet, batch {batch}"), 1, &seconds[1..], found);
        let mut times = Vec::new();
        let mut accuracy = 0.;
        for _ in 0..4 {
            let begin = Instant::now();
            accuracy = evaluate(&lenet, &alone.theta, &examples, Loss::CrossEntropy)?.accuracy.unwrap_or(0.);
            times.push(begin.elapsed().as_secs_f64());
        }
        say("LeNet, evaluation of 60,000", 1, &times[1..], accuracy);
    }
    let few = examples.first(6_000)?;
    for rows in [4, 16] {
        let models = (0..rows).map(|row| model(&few, 100, row)).collect::<Fallible<Vec<_>>>()?;
        let mut stack = StackedTraining::new(&models)?;
        let mut seconds = Vec::new();
        let mut found = 0.;
        for _ in 0..3 {
            let begin = Instant::now();
            let epochs = stack.epoch(&vec![true; rows as usize])?;
            found = epochs[0].as_ref().map_or(f64::NAN, |epoch| epoch.loss);
            seconds.push(begin.elapsed().as_secs_f64() / 60. / rows as f64);
        }
        say("LeNet, batch 100", rows as usize, &seconds[1..], found);
    }
    Ok(())
}

/// Padded to 32x32, grey values from 0 to 1.
fn padded(images: &[u8], labels: &[u8], device: Device) -> Fallible<Examples> {
    let mut all = ndarray::Array3::<u8>::zeros((COUNT, 32, 32));
    for (index, image) in images.chunks_exact(784).take(COUNT).enumerate() {
        for (row, line) in image.chunks_exact(28).enumerate() {
            for (column, &value) in line.iter().enumerate() {
                all[[index, row + 2, column + 2]] = value;
            }
        }
    }
    let values = std::array::from_fn(|value| value as f32 / 255.);
    Ok(Examples::pixels(&all, &[1, 32, 32], &values, labels, device)?)
}
