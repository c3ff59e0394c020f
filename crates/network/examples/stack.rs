//! How long a training step of stacked narrow networks takes, per model: one JSON line a network.
//!
//! `stack <steps> <workers>`; each worker has a stack of 32 models, 300 points, RMSprop, and computes with one thread, as `simulate`
//! trains them. The other side is scripts/reference/stacks.py.

use flatland_network::{
    Layer, Loss, Network, Optimiser, OptimiserSettings, Result, allocator, initialise_stacked,
    loss_and_gradient,
};
use serde_json::json;
use std::error::Error;
use std::sync::Barrier;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

const NETWORKS: [&[i64]; 3] = [&[1, 190, 1], &[1, 9, 17, 17, 4, 1], &[1, 5, 10, 12, 12, 12, 4, 1]];
const MODELS: u64 = 32;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    allocator::keep_large_blocks();
    let arguments: Vec<u32> =
        std::env::args().skip(1).map(|word| word.parse()).collect::<std::result::Result<_, _>>()?;
    let [steps, workers] = arguments[..] else { return Err("usage: stack <steps> <workers>".into()) };
    for widths in NETWORKS {
        let network = Network::dense(widths, &Layer::Relu)?;
        let together = Barrier::new(workers as usize);
        let found = std::thread::scope(|scope| {
            let (network, together) = (&network, &together);
            let threads: Vec<_> = (0..workers)
                .map(|worker| scope.spawn(move || train(network, steps, worker, together)))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<Vec<_>>>()
        })?;
        let seconds = found.iter().map(|(seconds, _)| *seconds).fold(0., f64::max);
        let seconds = seconds / (f64::from(steps) * MODELS as f64 * f64::from(workers));
        let loss = found.iter().map(|(_, loss)| loss).sum::<f64>() / f64::from(workers);
        let line = json!({
            "side": "flatland", "work": network.name(), "seconds": seconds, "found": { "loss": loss },
        });
        println!("{line}");
    }
    Ok(())
}

/// A stack, with its seconds and its mean loss.
fn train(network: &Network, steps: u32, worker: u32, together: &Barrier) -> Result<(f64, f64)> {
    tch::set_num_threads(1);
    let x = Tensor::f_arange(300, (Kind::Float, Device::Cpu))?.f_view([300, 1])?;
    let x = x.f_mul_scalar(0.01)?.f_sub_scalar(1.5)?;
    let y = x.f_mul_scalar(5. * std::f64::consts::PI)?.f_sin()?;
    let models: Vec<(u64, u32)> = (0..MODELS).map(|seed| (seed, worker)).collect();
    let mut theta = initialise_stacked(network, &models, Kind::Float, Device::Cpu)?;
    let mut optimiser = Optimiser::new(OptimiserSettings::RmsProp { lr: 1e-3, weight_decay: 1e-4 })?;
    let mut train = |steps: u32| -> Result<Tensor> {
        let mut loss = Tensor::new();
        for _ in 0..steps {
            let batch = loss_and_gradient(network, &theta, &x, &y, Loss::MeanSquaredError)?;
            optimiser.step(&mut theta, batch.gradient)?;
            loss = batch.loss;
        }
        Ok(loss)
    };
    let _ = train(steps / 10)?;
    together.wait();
    let start = Instant::now();
    let loss = train(steps)?;
    Ok((start.elapsed().as_secs_f64(), loss.f_mean(Kind::Double)?.f_double_value(&[])?))
}
