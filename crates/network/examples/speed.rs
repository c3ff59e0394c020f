//! How long an epoch of training LeNet, and its evaluation, take: one JSON line per measurement.
//!
//! `speed <folder> <threads> <batch>`; the folder holds `images` (u8, N x 28 x 28) and `labels` (u8, N), as
//! scripts/bench writes them. The other side is scripts/reference/training.py.

use flatland_network::{
    Examples, Loss, Network, Optimiser, OptimiserSettings, Result, Training, allocator, evaluate, initialise,
};
use ndarray::{Array3, s};
use serde_json::json;
use std::error::Error;
use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    allocator::keep_large_blocks();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, threads, batch] = arguments.as_slice() else {
        return Err("usage: speed <folder> <threads> <batch>".into());
    };
    let (threads, batch) = (threads.parse::<i32>()?, batch.parse::<i64>()?);
    let examples = load(Path::new(folder))?;
    let network = Network::lenet();

    tch::set_num_threads(threads);
    let warm_up = examples.first(10_000.min(examples.count()))?;
    let theta = epochs(&network, &[&warm_up, &examples], batch, &Barrier::new(1), "train")?;

    evaluate(&network, &theta, &warm_up, Loss::CrossEntropy)?;
    let start = Instant::now();
    let found = evaluate(&network, &theta, &examples, Loss::CrossEntropy)?;
    report("evaluate", start, &json!({ "loss": found.loss, "accuracy": found.accuracy }));

    let (chunk, _) = [100, 200, 500, 1000]
        .into_iter()
        .map(|chunk| {
            let start = Instant::now();
            let _ = evaluate_views(&network, &theta, &warm_up, chunk);
            (chunk, start.elapsed())
        })
        .min_by_key(|(_, elapsed)| *elapsed)
        .ok_or("no chunk")?;
    let start = Instant::now();
    let (loss, accuracy) = evaluate_views(&network, &theta, &examples, chunk)?;
    report("evaluate-views", start, &json!({ "loss": loss, "accuracy": accuracy, "chunk": chunk }));

    pair(&network, &examples, batch)
}

/// Two models side by side, each with a thread of its own.
fn pair(network: &Network, examples: &Examples, batch: i64) -> Result<(), Box<dyn Error>> {
    let barrier = Barrier::new(3);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let (examples, barrier) = (examples.share(), &barrier);
                scope.spawn(move || -> Result<()> {
                    tch::set_num_threads(1);
                    let warm_up = examples.first(10_000.min(examples.count()))?;
                    let _ = epochs(network, &[&warm_up, &examples], batch, barrier, "")?;
                    Ok(())
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        let ends: Result<Vec<()>> =
            workers.into_iter().map(|worker| worker.join().expect("no panic")).collect();
        ends?;
        report_seconds("train-pair", start.elapsed().as_secs_f64() / 2., &json!({}));
        Ok(())
    })
}

/// A model trained for an epoch on each; the last one is timed, and reported under `name` unless that is empty.
fn epochs(
    network: &Network,
    on: &[&Examples],
    batch: i64,
    start_together: &Barrier,
    name: &str,
) -> Result<Tensor> {
    let mut theta = initialise(network, 0, 0, Kind::Float, Device::Cpu)?;
    for (index, examples) in on.iter().enumerate() {
        let settings = OptimiserSettings::Sgd { lr: 1e-2, momentum: 0.9, nesterov: true, weight_decay: 0. };
        let optimiser = Optimiser::new(settings)?;
        let loss = Loss::CrossEntropy;
        let mut training =
            Training { network, loss, examples, batch, stream: (0, 0), theta, optimiser, epochs: 0 };
        let last = index + 1 == on.len();
        if last {
            start_together.wait();
        }
        let start = Instant::now();
        let found = training.epoch()?;
        if last && !name.is_empty() {
            report(name, start, &json!({ "loss": found.loss, "accuracy": found.accuracy }));
        }
        theta = training.theta;
    }
    Ok(theta)
}

/// A peer: plain operators on the same flat θ, pooling as the maximum of four strided
/// views, ReLU after it.
fn evaluate_views(network: &Network, theta: &Tensor, examples: &Examples, chunk: i64) -> Result<(f64, f64)> {
    let _no_grad = tch::no_grad_guard();
    let parameters: Vec<Tensor> = network
        .parameters()
        .iter()
        .map(|p| theta.narrow(0, p.offset, p.count()).view(p.shape.as_slice()))
        .collect();
    let pool = |x: &Tensor| -> Result<Tensor> {
        let rows = |from| x.f_slice(2, from, None, 2);
        let pick = |rows: &Tensor, from| rows.f_slice(3, from, None, 2);
        let (upper, lower) = (rows(0)?, rows(1)?);
        let above = pick(&upper, 0)?.f_maximum(&pick(&upper, 1)?)?;
        let below = pick(&lower, 0)?.f_maximum(&pick(&lower, 1)?)?;
        Ok(above.f_maximum(&below)?.f_relu_()?)
    };
    let (mut total, mut hits) = (Tensor::f_zeros([], (Kind::Double, Device::Cpu))?, Tensor::from(0i64));
    let count = examples.count();
    for start in (0..count).step_by(chunk as usize) {
        let length = chunk.min(count - start);
        let (x, targets) = examples.part(start, length)?;
        let [w1, b1, w2, b2, w3, b3, w4, b4, w5, b5] = parameters.as_slice() else {
            unreachable!("LeNet has ten")
        };
        let y = pool(&x.f_conv2d(w1, Some(b1), 1, 0, 1, 1)?)?;
        let y = pool(&y.f_conv2d(w2, Some(b2), 1, 0, 1, 1)?)?.f_flatten(1, -1)?;
        let y = y.f_linear(w3, Some(b3))?.f_relu_()?;
        let y = y.f_linear(w4, Some(b4))?.f_relu_()?;
        let y = y.f_linear(w5, Some(b5))?;
        let loss = y.f_cross_entropy_loss::<Tensor>(&targets, None, tch::Reduction::Sum, -100, 0.)?;
        let _ = total.f_add_(&loss.f_to_kind(Kind::Double)?)?;
        let _ = hits.f_add_(&y.f_argmax(-1, false)?.f_eq_tensor(&targets)?.f_sum(Kind::Int64)?)?;
    }
    Ok((total.double_value(&[]) / count as f64, hits.int64_value(&[]) as f64 / count as f64))
}

/// 28 x 28 in the middle of 32 x 32, scaled by the mean and standard deviation of MNIST; bytes, as the experiments keep them.
fn load(folder: &Path) -> Result<Examples, Box<dyn Error>> {
    let (pixels, labels) = (std::fs::read(folder.join("images"))?, std::fs::read(folder.join("labels"))?);
    let small = Array3::from_shape_vec((labels.len(), 28, 28), pixels)?;
    let mut large = Array3::zeros((labels.len(), 32, 32));
    large.slice_mut(s![.., 2..30, 2..30]).assign(&small);
    let values = std::array::from_fn(|p| (p as f32 / 255. - 0.1307) / 0.3081);
    Ok(Examples::pixels(&large, &[1, 32, 32], &values, &labels, Device::Cpu)?)
}

fn report(work: &str, start: Instant, found: &serde_json::Value) {
    report_seconds(work, start.elapsed().as_secs_f64(), found);
}

fn report_seconds(work: &str, seconds: f64, found: &serde_json::Value) {
    println!("{}", json!({ "side": "flatland", "work": work, "seconds": seconds, "found": found }));
}
