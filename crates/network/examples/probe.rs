use flatland_network::*;
use tch::{Device, Kind, Tensor};
use std::time::Instant;
fn main() {
    allocator::keep_large_blocks();
    let threads: i32 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1);
    tch::set_num_threads(threads);
    tch::set_num_interop_threads(1);
    let x = Tensor::randn([60000, 1, 32, 32], (Kind::Float, Device::Cpu));
    let t = Tensor::randint(10, [60000], (Kind::Int64, Device::Cpu));
    let examples = Examples::new(x, t).unwrap();
    let network = Network::lenet();
    for batch in [100] {
        let theta = initialise(&network, 0, 0, Kind::Float, Device::Cpu).unwrap();
        let optimiser = Optimiser::new(OptimiserSettings::Sgd { lr: 1e-2, momentum: 0.9, nesterov: true, weight_decay: 0. }).unwrap();
        let mut training = Training { network: &network, loss: Loss::CrossEntropy, examples: &examples, batch, stream: (0, 0), theta, optimiser, epochs: 0 };
        for _ in 0..3 {
            let start = Instant::now();
            let e = training.epoch().unwrap();
            println!("batch {batch} threads {threads}: epoch {:.3} s {e:?}", start.elapsed().as_secs_f64());
        }
        for _ in 0..3 {
            let start = Instant::now();
            let e = evaluate(&network, &training.theta, &examples, Loss::CrossEntropy).unwrap();
            println!("evaluate {:.3} s {e:?}", start.elapsed().as_secs_f64());
        }
    }
}
