//! How long a training step of stacked narrow networks takes, per model: one JSON line a network.
//!
//! `stack <steps>`; 32 models in a stack, 300 points, RMSprop, one thread, as `simulate` trains them. The other side is
//! scripts/reference/stacks.py.

use flatland_network::{
    Layer, Loss, Network, Optimiser, OptimiserSettings, allocator, initialise_stacked, loss_and_gradient,
};
use serde_json::json;
use std::error::Error;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

const NETWORKS: [&[i64]; 3] = [&[1, 190, 1], &[1, 9, 17, 17, 4, 1], &[1, 5, 10, 12, 12, 12, 4, 1]];
const MODELS: u64 = 32;

fn main() -> Result<(), Box<dyn Error>> {
    allocator::keep_large_blocks();
    let steps: u32 = std::env::args().nth(1).ok_or("usage: stack <steps>")?.parse()?;
    tch::set_num_threads(1);
    let x = Tensor::f_arange(300, (Kind::Float, Device::Cpu))?.f_view([300, 1])?;
    let x = x.f_mul_scalar(0.01)?.f_sub_scalar(1.5)?;
    let y = x.f_mul_scalar(5. * std::f64::consts::PI)?.f_sin()?;
    for widths in NETWORKS {
        let network = Network::dense(widths, &Layer::Relu)?;
        let models: Vec<(u64, u32)> = (0..MODELS).map(|seed| (seed, 0)).collect();
        let mut theta = initialise_stacked(&network, &models, Kind::Float, Device::Cpu)?;
        let mut optimiser = Optimiser::new(OptimiserSettings::RmsProp { lr: 1e-3, weight_decay: 1e-4 })?;
        let mut train = |steps: u32| -> Result<Tensor, Box<dyn Error>> {
            let mut loss = Tensor::new();
            for _ in 0..steps {
                let batch = loss_and_gradient(&network, &theta, &x, &y, Loss::MeanSquaredError)?;
                optimiser.step(&mut theta, batch.gradient)?;
                loss = batch.loss;
            }
            Ok(loss)
        };
        let _ = train(steps / 10)?;
        let start = Instant::now();
        let loss = train(steps)?;
        let seconds = start.elapsed().as_secs_f64() / (f64::from(steps) * MODELS as f64);
        let loss = loss.f_mean(Kind::Double)?.f_double_value(&[])?;
        let line = json!({
            "side": "flatland", "work": network.name(), "seconds": seconds, "found": { "loss": loss },
        });
        println!("{line}");
    }
    Ok(())
}
