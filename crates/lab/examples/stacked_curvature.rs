//! Curvature of a stack of small networks, all at once and one after the other, timed: a table on the standard output.
//!
//! 32 models of 571 parameters, 300 points of a wave, mean squared error, f32. Both ways have the same threads and take turns; what is
//! printed are medians over the rounds, per model. One after the other, the models go to the threads as the lab sends them: each thread
//! has one at a time.

use anyhow::{Result, anyhow, ensure};
use clap::Parser;
use flatland_geometry::{
    Curvature, CurvatureError, CurvatureOperator, EigenSettings, StackedCurvature, Symmetric, eigenpairs,
};
use flatland_network::device::{DeviceChoice, choose};
use flatland_network::{
    Examples, Layer, Loss, Network, Optimiser, OptimiserSettings, Precision, allocator, initialise_stacked,
    loss_and_gradient, set_precision,
};
use std::thread::ScopedJoinHandle;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Times products and eigenvalues of stacks.
#[derive(Parser)]
struct Arguments {
    /// Models of a stack
    #[arg(long, default_value_t = 32)]
    models: u32,
    /// Threads of both sides, as many as there are cores (between products, `each` takes all); on a GPU one
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Measurements of each
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Steps of training before, where the curvature is measured
    #[arg(long, default_value_t = 300)]
    steps: u32,
    /// Products a measurement
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    products: u32,
    /// cpu or cuda
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
}

const NETWORKS: [&[i64]; 2] = [&[1, 190, 1], &[1, 9, 17, 17, 4, 1]];
const POINTS: i64 = 300;
const LOSS: Loss = Loss::MeanSquaredError;

/// What is timed of one matrix.
#[derive(Clone, Copy)]
enum Task {
    /// So many products, one after the other.
    Products(u32),
    /// The five largest eigenvalues.
    Lanczos,
}

impl Task {
    /// What it comes to, and how many products that took.
    fn of(self, matrix: &dyn Symmetric) -> Result<(f64, f64), CurvatureError> {
        match self {
            Self::Products(count) => {
                let ones = Tensor::f_ones([1, matrix.dimension()], matrix.options())?;
                let mut last = ones.shallow_clone();
                for _ in 0..count {
                    last = matrix.products(&ones)?;
                }
                Ok((last.f_norm()?.f_double_value(&[])?, f64::from(count)))
            }
            Self::Lanczos => {
                let found = eigenpairs(matrix, EigenSettings::default(), &|_| true)?;
                Ok((found.values[0], found.products as f64))
            }
        }
    }
}

fn main() -> Result<()> {
    allocator::keep_large_blocks();
    let arguments = Arguments::parse();
    let device = choose(arguments.device)?.device;
    set_precision(Precision::F32)?;
    println!("| network | task | one after the other | stacked products, `each` | ratio |");
    println!("| --- | --- | --- | --- | --- |");
    for widths in NETWORKS {
        let network = Network::dense(widths, &Layer::Relu)?;
        let (theta, examples) = trained(&network, &arguments, device)?;
        let tasks =
            [("a product, µs", Task::Products(arguments.products)), ("five eigenvalues, ms", Task::Lanczos)];
        for (name, task) in tasks {
            let (mut alone, mut stacked) = (Vec::new(), Vec::new());
            let mut products = [0.; 2];
            // The first round warms up.
            for round in 0..=arguments.rounds {
                let (single, seconds_alone) =
                    timed(|| one_by_one(&network, &theta, &examples, task, &arguments))?;
                let (together, seconds) = timed(|| at_once(&network, &theta, &examples, task, &arguments))?;
                for ((single, _), (together, _)) in single.iter().zip(&together) {
                    ensure!(
                        (single - together).abs() <= 2e-3 * single.abs(),
                        "{single} and {together} differ"
                    );
                }
                products =
                    [&single, &together].map(|found| found.iter().map(|(_, count)| count).sum::<f64>());
                if round > 0 {
                    alone.push(seconds_alone);
                    stacked.push(seconds);
                }
            }
            let models = f64::from(arguments.models);
            let per = |seconds: &mut Vec<f64>, products: f64| match task {
                Task::Products(_) => 1e6 * median(seconds) / products,
                Task::Lanczos => 1e3 * median(seconds) / models,
            };
            let [a, b] = [per(&mut alone, products[0]), per(&mut stacked, products[1])];
            let [few, many] = products.map(|products| products / models);
            println!(
                "| {} | {name} ({few:.1} and {many:.1} products) | {a:.2} | {b:.2} | {:.2} |",
                network.name(),
                a / b
            );
        }
        // Without the models' threads.
        let stack = StackedCurvature::with_threads(&network, &theta, &[&examples], LOSS, arguments.threads)?;
        let v = Tensor::f_ones([i64::from(arguments.models), 1, network.count()], (Kind::Float, device))?;
        let norm = || -> Result<f64> {
            Ok(stack.products_of(Curvature::Hessian, &v)?.f_norm()?.f_double_value(&[])?)
        };
        norm()?;
        let mut all =
            (0..arguments.products.max(20)).map(|_| Ok(timed(norm)?.1)).collect::<Result<Vec<f64>>>()?;
        println!(
            "| {} | a product, µs, `products_of` | | {:.2} | |",
            network.name(),
            1e6 * median(&mut all) / f64::from(arguments.models)
        );
    }
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let begin = Instant::now();
    let found = work()?;
    Ok((found, begin.elapsed().as_secs_f64()))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// A stack somewhere along training, and its points.
fn trained(network: &Network, arguments: &Arguments, device: Device) -> Result<(Tensor, Examples)> {
    let x = Tensor::f_arange(POINTS, (Kind::Float, Device::Cpu))?.f_view([POINTS, 1])?;
    let x = x.f_mul_scalar(0.01)?.f_sub_scalar(1.5)?;
    let y = x.f_mul_scalar(5. * std::f64::consts::PI)?.f_sin()?;
    let seeds: Vec<(u64, u32)> = (0..arguments.models).map(|model| (u64::from(model), 0)).collect();
    let mut theta = initialise_stacked(network, &seeds, Kind::Float, Device::Cpu)?;
    let mut optimiser = Optimiser::new(OptimiserSettings::RmsProp { lr: 1e-3, weight_decay: 0. })?;
    for _ in 0..arguments.steps {
        let batch = loss_and_gradient(network, &theta, &x, &y, LOSS)?;
        optimiser.step(&mut theta, batch.gradient)?;
    }
    Ok((theta.f_to_device(device)?, Examples::new(x.f_to_device(device)?, y.f_to_device(device)?)?))
}

type Found = Vec<(f64, f64)>;

fn at_once(
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    task: Task,
    arguments: &Arguments,
) -> Result<Found> {
    let stack = StackedCurvature::with_threads(network, theta, &[examples], LOSS, arguments.threads)?;
    Ok(stack.each(Curvature::Hessian, |_, matrix| task.of(matrix)).into_iter().collect::<Result<_, _>>()?)
}

fn one_by_one(
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    task: Task,
    arguments: &Arguments,
) -> Result<Found> {
    let models = theta.size()[0];
    let threads = if theta.device() == Device::Cpu { arguments.threads.max(1) as i64 } else { 1 };
    let parts = (0..threads).map(|thread| thread * models / threads..(thread + 1) * models / threads);
    // Tensors are handles that cannot be shared, only cloned.
    let parts: Vec<(Tensor, Examples)> = parts
        .map(|part| Ok((theta.f_narrow(0, part.start, part.end - part.start)?, examples.share())))
        .collect::<Result<_>>()?;
    let found = std::thread::scope(|scope| {
        let threads: Vec<_> = parts
            .into_iter()
            .map(|(theta, examples)| {
                scope.spawn(move || -> Result<Found> {
                    tch::set_num_threads(1);
                    let of = |model| {
                        let theta = theta.f_select(0, model)?;
                        let single = CurvatureOperator::with_threads(network, &theta, &examples, LOSS, 1)?;
                        Ok(task.of(&single.of(Curvature::Hessian))?)
                    };
                    (0..theta.size()[0]).map(of).collect()
                })
            })
            .collect();
        let joined = |thread: ScopedJoinHandle<Result<Found>>| {
            thread.join().map_err(|_| anyhow!("a thread stopped"))?
        };
        threads.into_iter().map(joined).collect::<Result<Vec<Found>>>()
    })?;
    Ok(found.into_iter().flatten().collect())
}
