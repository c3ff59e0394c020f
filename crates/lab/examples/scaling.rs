//! How time grows with the number of models, of images and of workers: one JSON line per measurement, and a figure.
//!
//! `scaling <folder> [--rounds N] [--small]`; `scaling.svg` and `scaling.png` go into the folder. Noise of MNIST's
//! shape stands in for images, so that no files are needed. scripts/bench scaling makes the table of the lines.

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use flatland_network::{
    BatchGradient, Examples, Layer, Loss, Network, Optimiser, OptimiserSettings, Training, allocator,
    evaluate, initialise, initialise_stacked, loss_and_gradient, own_kernels_available,
};
use flatland_record::{Axis, Colour, Figure, Panel, Series};
use flatland_statistics::median;
use ndarray::{Array3, s};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use serde_json::json;
use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

const NETWORKS: [&[i64]; 3] = [&[1, 190, 1], &[1, 9, 17, 17, 4, 1], &[1, 5, 10, 12, 12, 12, 4, 1]];
/// Models in each worker's stack, as `simulate` has them.
const STACK: u64 = 32;
const KERNELS: &str = "own kernels";
const OPERATORS: &str = "libtorch's operators";

/// Measures how time grows with models, images and workers.
#[derive(Parser)]
struct Arguments {
    /// Where the figure goes.
    folder: PathBuf,
    /// How often everything is measured, in turn.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Few and small measurements, to see that it works.
    #[arg(long)]
    small: bool,
}

/// What is measured.
struct Plan {
    models: Vec<u64>,
    images: Vec<i64>,
    workers: Vec<usize>,
    /// Images, and epochs, of each worker's LeNet.
    lenet: (i64, u32),
    /// Steps of each worker's stack.
    steps: u32,
    /// A measurement is repeated for so long.
    at_least: Duration,
}

impl Plan {
    fn new(small: bool) -> Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let workers = (1..=2 * cores).collect();
        Ok(if small {
            Self {
                models: vec![1, 4, 16],
                images: vec![200, 400, 800],
                workers,
                lenet: (200, 1),
                steps: 10,
                at_least: Duration::ZERO,
            }
        } else {
            Self {
                models: (0..=10).map(|power| 1 << power).collect(),
                images: vec![500, 1_000, 2_000, 5_000, 10_000, 20_000, 60_000],
                workers,
                lenet: (10_000, 2),
                steps: 2_000,
                at_least: Duration::from_millis(200),
            }
        })
    }
}

/// A value of a series at x, in one round.
struct Measurement {
    /// `models`, `images` or `workers`: what x counts, and the panel.
    over: &'static str,
    series: String,
    x: f64,
    value: f64,
}

fn main() -> Result<()> {
    allocator::keep_large_blocks();
    let arguments = Arguments::parse();
    ensure!(arguments.rounds > 0, "--rounds must be above 0");
    let plan = Plan::new(arguments.small)?;
    tch::set_num_threads(1);
    check_operators()?;
    let examples = noise(*plan.images.iter().max().context("no images")?)?;
    let mut measurements: Vec<Measurement> = Vec::new();
    for round in 1..=arguments.rounds {
        eprintln!("scaling: round {round} of {}", arguments.rounds);
        let from = measurements.len();
        over_models(&plan, &mut measurements)?;
        over_images(&plan, &examples, &mut measurements)?;
        over_workers(&plan, &examples, &mut measurements)?;
        for Measurement { over, series, x, value } in &measurements[from..] {
            println!("{}", json!({ "over": over, "series": series, "x": x, "value": value }));
        }
    }
    figure(&plan, arguments.rounds, &measurements)?.write(&arguments.folder, "scaling")?;
    Ok(())
}

/// Loss and gradient of a stack.
type Gradient = fn(&Network, &Tensor, &Tensor, &Tensor) -> Result<BatchGradient>;

fn by_kernels(network: &Network, theta: &Tensor, x: &Tensor, y: &Tensor) -> Result<BatchGradient> {
    Ok(loss_and_gradient(network, theta, x, y, Loss::MeanSquaredError)?)
}

/// The peer: batched matrix products and autograd, each weight a leaf.
fn by_operators(network: &Network, theta: &Tensor, x: &Tensor, y: &Tensor) -> Result<BatchGradient> {
    let models = theta.size()[0];
    let leaves = network
        .parameters()
        .iter()
        .map(|p| {
            let shape = [&[models], p.shape.as_slice()].concat();
            let leaf = theta.f_narrow(1, p.offset, p.count())?.f_view(shape.as_slice())?;
            leaf.f_detach()?.f_set_requires_grad(true)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut h = x.f_expand([models, -1, -1], false)?;
    for (index, layer) in leaves.chunks_exact(2).enumerate() {
        if index > 0 {
            h = h.f_relu()?;
        }
        h = layer[1].f_unsqueeze(1)?.f_baddbmm(&h, &layer[0].f_transpose(1, 2)?, 1, 1)?;
    }
    let loss = Loss::MeanSquaredError.mean(&h, y)?;
    let wanted: Vec<&Tensor> = leaves.iter().collect();
    let gradients = Tensor::f_run_backward(&[&loss], &wanted, false, false)?;
    let flat = gradients.iter().map(|g| g.f_flatten(1, -1)).collect::<Result<Vec<_>, _>>()?;
    Ok(BatchGradient { loss: loss.f_detach()?, correct: None, gradient: Tensor::f_cat(&flat, 1)? })
}

/// A speed is worth nothing where the work is not the same.
fn check_operators() -> Result<()> {
    let (x, y) = points()?;
    for widths in NETWORKS {
        let network = Network::dense(widths, &Layer::Relu)?;
        let theta = stack(&network, 2)?;
        let [a, b] = [by_kernels, by_operators].map(|by: Gradient| by(&network, &theta, &x, &y));
        let (a, b) = (a?.gradient, b?.gradient);
        ensure!(a.f_allclose(&b, 1e-3, 1e-5, false)?, "the two ways disagree for {}", network.name());
    }
    Ok(())
}

fn points() -> Result<(Tensor, Tensor)> {
    let x = Tensor::f_arange(300, (Kind::Float, Device::Cpu))?.f_view([300, 1])?;
    let x = x.f_mul_scalar(0.01)?.f_sub_scalar(1.5)?;
    let y = x.f_mul_scalar(5. * std::f64::consts::PI)?.f_sin()?;
    Ok((x, y))
}

fn stack(network: &Network, models: u64) -> Result<Tensor> {
    let seeds: Vec<(u64, u32)> = (0..models).map(|seed| (seed, 0)).collect();
    Ok(initialise_stacked(network, &seeds, Kind::Float, Device::Cpu)?)
}

fn rmsprop() -> Result<Optimiser> {
    Ok(Optimiser::new(OptimiserSettings::RmsProp { lr: 1e-3, weight_decay: 1e-4 })?)
}

/// Seconds of one call, over as many as `at_least` takes, after one that is not timed.
fn seconds(at_least: Duration, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let (start, mut calls) = (Instant::now(), 0_u32);
    loop {
        work()?;
        calls += 1;
        let elapsed = start.elapsed();
        if elapsed >= at_least {
            return Ok(elapsed.as_secs_f64() / f64::from(calls));
        }
    }
}

fn over_models(plan: &Plan, measurements: &mut Vec<Measurement>) -> Result<()> {
    let (x, y) = points()?;
    for widths in NETWORKS {
        let network = Network::dense(widths, &Layer::Relu)?;
        for &models in &plan.models {
            for (way, gradient) in [(KERNELS, by_kernels as Gradient), (OPERATORS, by_operators)] {
                let (mut theta, mut optimiser) = (stack(&network, models)?, rmsprop()?);
                let seconds = seconds(plan.at_least, || {
                    let batch = gradient(&network, &theta, &x, &y)?;
                    Ok(optimiser.step(&mut theta, batch.gradient)?)
                })?;
                measurements.push(Measurement {
                    over: "models",
                    series: format!("{}, {way}", network.name()),
                    x: models as f64,
                    value: 1e6 * seconds / models as f64,
                });
            }
        }
    }
    Ok(())
}

fn lenet<'a>(network: &'a Network, examples: &'a Examples) -> Result<Training<'a>> {
    let sgd = OptimiserSettings::Sgd { lr: 1e-2, momentum: 0.9, nesterov: true, weight_decay: 0. };
    Ok(Training {
        network,
        loss: Loss::CrossEntropy,
        examples,
        batch: 100,
        stream: (0, 0),
        theta: initialise(network, 0, 0, Kind::Float, Device::Cpu)?,
        optimiser: Optimiser::new(sgd)?,
        epochs: 0,
    })
}

fn over_images(plan: &Plan, examples: &Examples, measurements: &mut Vec<Measurement>) -> Result<()> {
    let network = Network::lenet();
    for &images in &plan.images {
        let examples = examples.first(images)?;
        let mut training = lenet(&network, &examples)?;
        let train = seconds(plan.at_least, || Ok(training.epoch().map(drop)?))?;
        let evaluate = seconds(plan.at_least, || {
            Ok(evaluate(&network, &training.theta, &examples, Loss::CrossEntropy).map(drop)?)
        })?;
        for (series, value) in [("train an epoch", train), ("evaluate", evaluate)] {
            measurements.push(Measurement { over: "images", series: series.into(), x: images as f64, value });
        }
    }
    Ok(())
}

fn over_workers(plan: &Plan, examples: &Examples, measurements: &mut Vec<Measurement>) -> Result<()> {
    let (images, epochs) = plan.lenet;
    let examples = examples.first(images)?;
    let network = Network::lenet();
    let lenets = |workers: usize| {
        let shares = (0..workers).map(|_| examples.share()).collect();
        side_by_side(shares, |examples, start| {
            let mut training = lenet(&network, &examples)?;
            training.epoch()?;
            start();
            (0..epochs).try_for_each(|_| Ok(training.epoch().map(drop)?))
        })
    };
    let small = Network::dense(NETWORKS[1], &Layer::Relu)?;
    let stacks = |workers: usize| {
        side_by_side(vec![(); workers], |(), start| {
            let (x, y) = points()?;
            let (mut theta, mut optimiser) = (stack(&small, STACK)?, rmsprop()?);
            let mut steps = |count: u32| {
                (0..count).try_for_each(|_| {
                    let batch = by_kernels(&small, &theta, &x, &y)?;
                    Ok::<(), anyhow::Error>(optimiser.step(&mut theta, batch.gradient)?)
                })
            };
            steps(plan.steps / 10)?;
            start();
            steps(plan.steps)
        })
    };
    for &workers in &plan.workers {
        let mut add = |series: String, done: f64, seconds: f64| {
            let value = workers as f64 * done / seconds;
            measurements.push(Measurement { over: "workers", series, x: workers as f64, value });
        };
        add("LeNet".into(), f64::from(epochs), lenets(workers)?);
        let done = STACK as f64 * f64::from(plan.steps);
        add(format!("stack of {STACK}, {}", small.name()), done, stacks(workers)?);
    }
    Ok(())
}

/// Seconds from when the first worker, after `start`, goes on, until the last is done. Each computes with one thread,
/// as the experiments' workers do.
fn side_by_side<C: Send>(contexts: Vec<C>, work: impl Fn(C, &dyn Fn()) -> Result<()> + Sync) -> Result<f64> {
    let barrier = Barrier::new(contexts.len());
    let times: Vec<Result<(Instant, Instant)>> = std::thread::scope(|scope| {
        let workers: Vec<_> = contexts
            .into_iter()
            .map(|context| {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    tch::set_num_threads(1);
                    let begin = Cell::new(None);
                    let start = || {
                        barrier.wait();
                        begin.set(Some(Instant::now()));
                    };
                    let result = work(context, &start);
                    let end = Instant::now();
                    // After an error the others would wait for ever.
                    if begin.get().is_none() {
                        start();
                    }
                    result.map(|()| (begin.get().unwrap_or(end), end))
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| Err(anyhow!("a worker stopped"))))
            .collect()
    });
    let times = times.into_iter().collect::<Result<Vec<_>>>()?;
    let begin = times.iter().map(|time| time.0).min().context("no workers")?;
    let end = times.iter().map(|time| time.1).max().context("no workers")?;
    Ok((end - begin).as_secs_f64())
}

/// `count` images of noise, prepared as MNIST is: 28 x 28 in the middle of 32 x 32.
fn noise(count: i64) -> Result<Examples> {
    let mut random = StdRng::seed_from_u64(0);
    let count = count as usize;
    let (mut small, mut labels) = (vec![0; count * 28 * 28], vec![0; count]);
    random.fill_bytes(&mut small);
    random.fill_bytes(&mut labels);
    for label in &mut labels {
        *label %= 10;
    }
    let mut images = Array3::zeros((count, 32, 32));
    images.slice_mut(s![.., 2..30, 2..30]).assign(&Array3::from_shape_vec((count, 28, 28), small)?);
    let values = std::array::from_fn(|p| (p as f32 / 255. - 0.1307) / 0.3081);
    Ok(Examples::pixels(&images, &[1, 32, 32], &values, &labels, Device::Cpu)?)
}

/// Medians over the rounds, from the smallest to the largest value.
fn figure(plan: &Plan, rounds: u32, measurements: &[Measurement]) -> Result<Figure> {
    let mut models = Panel::new(
        "a. Stacked networks",
        Axis::log10("models in the stack"),
        Axis::log10("time per model and step (µs)"),
    );
    for (index, widths) in NETWORKS.iter().enumerate() {
        let name = Network::dense(widths, &Layer::Relu)?.name().to_owned();
        for way in [KERNELS, OPERATORS] {
            let line = line(measurements, "models", &format!("{name}, {way}"), 1.)?.nth_look(index);
            models = models.with(if way == KERNELS { line } else { line.dashed() });
        }
    }

    let mut images = Panel::new("b. LeNet", Axis::log10("images"), Axis::log10("time (s)"));
    for (index, name) in ["train an epoch", "evaluate"].into_iter().enumerate() {
        images = images.with(line(measurements, "images", name, 1.)?.nth_look(index));
    }

    let cores = plan.workers.len() as f64 / 2.;
    let mut workers = Panel::new(
        "c. Models side by side",
        Axis::whole("workers"),
        Axis::linear("throughput relative to one worker"),
    )
    .with_mark(cores, format!("{cores} cores"));
    let mut series: Vec<&str> = Vec::new();
    for measurement in measurements.iter().filter(|m| m.over == "workers") {
        if !series.contains(&measurement.series.as_str()) {
            series.push(&measurement.series);
        }
    }
    for (index, name) in series.into_iter().enumerate() {
        let one = line(measurements, "workers", name, 1.)?.points[0].1;
        workers = workers.with(line(measurements, "workers", name, 1. / one)?.nth_look(index));
    }
    let ideal = vec![(1., 1.), (cores, cores), (2. * cores, cores)];
    let most =
        workers.series.iter().flat_map(|s| &s.whiskers).fold(cores, |most, whisker| most.max(whisker.1));
    workers.y = workers.y.with_range(0., 1.08 * most);
    let workers = workers.with(Series::line("at best: one worker a core", Colour::Grey, ideal).dotted());

    let kernels = if own_kernels_available() { "" } else { " · no AVX-512: operators everywhere" };
    let medians = if rounds == 1 { "one round".into() } else { format!("medians of {rounds} rounds") };
    let subtitle = format!(
        "dense networks: 300 points, RMSprop · LeNet: noise of MNIST's shape, batch 100 · f32 · \
         one thread, in c one a worker · {medians}{kernels}"
    );
    Ok(Figure {
        columns: Some(3),
        band_meaning: "smallest to largest".into(),
        panel_size: Some((460., 400.)),
        ..Figure::new(
            "How time grows with models, images and workers",
            subtitle,
            vec![models, images, workers],
        )
    })
}

/// Medians of a series, times `factor`, with whiskers over the rounds.
fn line(measurements: &[Measurement], over: &str, series: &str, factor: f64) -> Result<Series> {
    let of_series: Vec<&Measurement> =
        measurements.iter().filter(|m| m.over == over && m.series == series).collect();
    let mut places: Vec<f64> = of_series.iter().map(|m| m.x).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let (mut points, mut whiskers) = (Vec::new(), Vec::new());
    for x in places {
        let values: Vec<f64> =
            of_series.iter().filter(|m| m.x.total_cmp(&x).is_eq()).map(|m| factor * m.value).collect();
        points.push((x, median(&values).context("a measurement is no number")?));
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        whiskers.push((low, values.iter().copied().fold(f64::NEG_INFINITY, f64::max)));
    }
    ensure!(!points.is_empty(), "nothing was measured for {series}");
    Ok(Series::line(series, Colour::Blue, points).with_points().with_whiskers(whiskers))
}
