//! Flatness against generalisation, part 1: the loss along the straight line through two minima.
//!
//! LeNet is trained twice with settings that differ in one thing, batch size or learning rate. On the line
//! `θ(α) = (1 - α) θ₁ + α θ₂`, loss and accuracy show how wide each minimum is (after Keskar et al. 2017, "On large-batch
//! training for deep learning", and Goodfellow et al. 2015).

use crate::experiment::{Experiment, check_seeds};
use crate::images::{ImageSettings, Images};
use crate::parallel::in_parallel;
use crate::run::Run;
use crate::trial::{EpochRow, Trained, Trial, train};
use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::DataSetName;
use flatland_geometry::{AlphaGrid, interpolate};
use flatland_network::{Evaluation, Loss, Network, OptimiserSettings, Training, evaluate};
use flatland_record::{Axis, Colour, Figure, Panel, Series, Table, cells, sha256_hex};
use flatland_statistics::{Interval, geometric_mean_interval, mean_interval};
use serde::{Deserialize, Serialize};
use std::fmt;
use tch::Tensor;

/// `configs/flatness.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub dataset: DataSetName,
    pub seeds: u64,
    pub seed: u64,
    pub epochs: u32,
    pub momentum: f64,
    pub nesterov: bool,
    pub weight_decay: f64,
    pub images: ImageSettings,
    pub alpha: Alpha,
    pub pairings: Vec<Pairing>,
}

/// Where on the line to look; α = 0 and 1 are added.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Alpha {
    pub from: f64,
    pub to: f64,
    pub points: usize,
}

/// Two minima to compare.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Pairing {
    pub name: String,
    pub first: Minimum,
    pub second: Minimum,
}

/// How a minimum is found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Minimum {
    pub batch: i64,
    pub lr: f64,
    /// Which of several with the same batch and lr.
    #[serde(default)]
    pub draw: u32,
}

impl Minimum {
    /// Each minimum starts from weights of its own and sees the examples in an order of its own, whatever else is trained:
    /// 24 bits of its description's hash.
    fn stream(&self) -> u32 {
        let hash = sha256_hex(self.to_string().as_bytes());
        u32::from_str_radix(&hash[..6], 16).unwrap_or_default()
    }
}

impl fmt::Display for Minimum {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "batch {}, lr {}", self.batch, self.lr)?;
        if self.draw > 0 { write!(f, ", draw {}", self.draw) } else { Ok(()) }
    }
}

/// One model on a line, measured.
struct Point {
    seed: u64,
    alpha: f64,
    train: Evaluation,
    test: Evaluation,
}

/// The experiment.
#[derive(Debug)]
pub struct Flatness;

impl Experiment for Flatness {
    const NAME: &'static str = "flatness";
    const ABOUT: &'static str = "Is the minimum found with large batches, or small steps, sharper? \
        Loss and accuracy on the straight line through two minima of LeNet.";
    const EXAMPLES: &'static str = "Examples:
  flatness --preset quick --dataset digits      about a minute, no files needed
  flatness --seeds 5 --device cuda              the report's settings with error bars
  flatness --set epochs=10 --set alpha.points=101
  flatness --resume                             after Ctrl-C or a crash

Exit codes: 0 done, 1 failed, 2 wrong command line or settings, 75 interrupted (--resume goes on).";
    const PRESETS: &'static str = include_str!("../../../configs/flatness.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        settings.images.check()?;
        ensure!(settings.epochs > 0, "epochs must be at least 1, found 0");
        ensure!(!settings.pairings.is_empty(), "pairings must name at least one pair of minima, found none");
        AlphaGrid::with_minima(settings.alpha.from, settings.alpha.to, settings.alpha.points)?;
        for (index, pairing) in settings.pairings.iter().enumerate() {
            // Tables and figures tell pairings apart by name.
            ensure!(
                settings.pairings[..index].iter().all(|other| other.name != pairing.name),
                "pairings must have different names, found {:?} twice",
                pairing.name
            );
            if pairing.first == pairing.second {
                bail!(
                    "pairing {:?} compares {} with itself; give one of them draw = 1",
                    pairing.name,
                    pairing.first
                );
            }
            for minimum in [pairing.first, pairing.second] {
                let found_at = || format!("pairing {:?}", pairing.name);
                settings.optimiser(minimum).check().with_context(found_at)?;
                let most = if settings.images.train == 0 { 60_000 } else { settings.images.train as i64 };
                Training::check_batch(minimum.batch, most).with_context(found_at)?;
            }
        }
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        (settings.seed..settings.seed.saturating_add(settings.seeds)).collect()
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let images = Images::load(run, settings.dataset, &settings.images)?;
        let network = Network::lenet();
        let seeds = Self::seeds(settings);

        // Training: each distinct minimum of each seed, once.
        let minima = settings.minima();
        let trials: Vec<Trial> = seeds.iter().flat_map(|&seed| settings.trials(seed, &minima)).collect();
        let trained = train_all(run, &network, &images, &trials)?;
        run.write_table(
            "training",
            &training_table(&trials, &minima, &trained)?,
            "loss and accuracy by epoch",
        )?;
        let training = training_figure(settings, run, &seeds, &minima, &trained);
        run.write_figure("training", &training, "training curves")?;

        // Measurement: every model on every line.
        let grid = AlphaGrid::with_minima(settings.alpha.from, settings.alpha.to, settings.alpha.points)?;
        let lines = measure(settings, run, &network, &images, &seeds, &minima, &trained, grid.alphas())?;
        run.write_table(
            "interpolation",
            &interpolation_table(settings, &lines)?,
            "loss and accuracy by α, each seed",
        )?;
        run.write_table(
            "interpolation_mean",
            &interpolation_mean_table(settings, &lines, grid.alphas())?,
            "the same over seeds: mean and 95 % interval",
        )?;
        let figure = interpolation_figure(settings, run, &seeds, &lines, grid.alphas());
        run.write_figure("interpolation", &figure, "loss and accuracy on the line through two minima")?;
        Ok(closing_table(settings, &lines))
    }
}

impl Settings {
    fn optimiser(&self, minimum: Minimum) -> OptimiserSettings {
        OptimiserSettings::Sgd {
            lr: minimum.lr,
            momentum: self.momentum,
            nesterov: self.nesterov,
            weight_decay: self.weight_decay,
        }
    }

    /// Each minimum once, in the order in which the pairings name them.
    fn minima(&self) -> Vec<Minimum> {
        let mut minima: Vec<Minimum> = Vec::new();
        for pairing in &self.pairings {
            for minimum in [pairing.first, pairing.second] {
                if !minima.contains(&minimum) {
                    minima.push(minimum);
                }
            }
        }
        minima
    }

    fn trials(&self, seed: u64, minima: &[Minimum]) -> Vec<Trial> {
        let trial = |minimum: &Minimum| Trial {
            name: format!("seed {seed}, {minimum}").replace(", ", "-").replace(' ', ""),
            seed,
            stream: minimum.stream(),
            optimiser: self.optimiser(*minimum),
            batch: minimum.batch,
            epochs: self.epochs,
        };
        minima.iter().map(trial).collect()
    }

    /// What every figure says below its title.
    fn subtitle(&self, run: &Run, seeds: &[u64], models: &str) -> String {
        let seeds = match seeds {
            [one] => format!("seed {one}"),
            many => format!("{} seeds", many.len()),
        };
        format!(
            "LeNet on {} · preset {} · {} epochs · {seeds} · {models}",
            self.dataset, run.preset, self.epochs
        )
    }
}

/// In the order of the trials.
fn train_all(run: &Run, network: &Network, images: &Images, trials: &[Trial]) -> Result<Vec<Trained>> {
    let work = trials.iter().map(|trial| u64::from(trial.epochs) * images.train.count() as u64).sum();
    let stage = run.progress.stage("training", work);
    let contexts = (0..run.workers.min(trials.len())).map(|_| images.share()).collect();
    in_parallel(contexts, trials, |images, trial| train(run, &stage, network, images, trial))
}

/// For each pairing its points, by seed and α. One pass over the data for each model.
#[allow(clippy::too_many_arguments)]
fn measure(
    settings: &Settings,
    run: &Run,
    network: &Network,
    images: &Images,
    seeds: &[u64],
    minima: &[Minimum],
    trained: &[Trained],
    alphas: &[f64],
) -> Result<Vec<Vec<Point>>> {
    struct Job {
        seed: u64,
        ends: [usize; 2],
        alpha: f64,
    }
    let place = |minimum: Minimum| minima.iter().position(|known| *known == minimum).unwrap_or_default();
    let mut jobs = Vec::new();
    for pairing in &settings.pairings {
        for (repetition, &seed) in seeds.iter().enumerate() {
            let ends =
                [pairing.first, pairing.second].map(|minimum| repetition * minima.len() + place(minimum));
            jobs.extend(alphas.iter().map(|&alpha| Job { seed, ends, alpha }));
        }
    }
    let stage = run.progress.stage("interpolation", jobs.len() as u64);
    let device = run.device.device;
    let on_device =
        || trained.iter().map(|one| Ok(one.theta.f_to_device(device)?)).collect::<Result<Vec<Tensor>>>();
    let contexts = (0..run.workers.min(jobs.len()))
        .map(|_| Ok((images.share(), on_device()?)))
        .collect::<Result<Vec<_>>>()?;
    let points = in_parallel(contexts, &jobs, |(images, thetas), job| {
        run.check_interrupted()?;
        let theta = interpolate(&thetas[job.ends[0]], &thetas[job.ends[1]], job.alpha)?;
        let train = evaluate(network, &theta, &images.train, Loss::CrossEntropy)?;
        let test = evaluate(network, &theta, &images.test, Loss::CrossEntropy)?;
        stage.advance(1, format!("α = {:.2}", job.alpha));
        Ok(Point { seed: job.seed, alpha: job.alpha, train, test })
    })?;
    let mut points = points.into_iter();
    let each = seeds.len() * alphas.len();
    Ok(settings.pairings.iter().map(|_| points.by_ref().take(each).collect()).collect())
}

fn training_table(trials: &[Trial], minima: &[Minimum], trained: &[Trained]) -> Result<Table> {
    let mut table = Table::new(&["seed", "batch", "lr", "draw", "epoch", "split", "loss_nats", "accuracy"]);
    for ((trial, minimum), Trained { curve, .. }) in trials.iter().zip(minima.iter().cycle()).zip(trained) {
        for row in curve {
            for (split, value) in [("train", row.train), ("test", row.test)] {
                let Minimum { batch, lr, draw } = *minimum;
                table.row(cells![
                    trial.seed,
                    batch,
                    lr,
                    draw,
                    row.epoch,
                    split,
                    value.loss,
                    value.accuracy
                ])?;
            }
        }
    }
    Ok(table)
}

fn interpolation_table(settings: &Settings, lines: &[Vec<Point>]) -> Result<Table> {
    let mut table =
        Table::new(&["pairing", "theta1", "theta2", "seed", "alpha", "split", "loss_nats", "accuracy"]);
    for (Pairing { name, first, second }, points) in settings.pairings.iter().zip(lines) {
        let (first, second) = (first.to_string(), second.to_string());
        for point in points {
            for (split, value) in [("train", point.train), ("test", point.test)] {
                let ends = (first.as_str(), second.as_str());
                table.row(cells![
                    name.as_str(),
                    ends.0,
                    ends.1,
                    point.seed,
                    point.alpha,
                    split,
                    value.loss,
                    value.accuracy
                ])?;
            }
        }
    }
    Ok(table)
}

/// Loss varies by factors along a line, so its mean over seeds is geometric; accuracy's is arithmetic.
#[allow(clippy::float_cmp)] // Points carry the very value of the grid.
fn over_seeds(
    points: &[Point],
    alpha: f64,
    of: impl Fn(&Point) -> Evaluation,
) -> Option<(Interval, Interval)> {
    let values: Vec<Evaluation> = points.iter().filter(|point| point.alpha == alpha).map(of).collect();
    let losses: Vec<f64> = values.iter().map(|value| value.loss).collect();
    let accuracies: Vec<f64> = values.iter().filter_map(|value| value.accuracy).collect();
    Some((geometric_mean_interval(&losses, LEVEL)?, mean_interval(&accuracies, LEVEL)?))
}

const LEVEL: f64 = 0.95;
/// A split's name, and how to take its value from a point or a row.
type Of<T> = (&'static str, fn(&T) -> Evaluation);
const SPLITS: [Of<Point>; 2] = [("train", |point| point.train), ("test", |point| point.test)];

fn interpolation_mean_table(settings: &Settings, lines: &[Vec<Point>], alphas: &[f64]) -> Result<Table> {
    let mut table = Table::new(&[
        "pairing",
        "alpha",
        "split",
        "seeds",
        "loss_geometric_mean_nats",
        "loss_low_nats",
        "loss_high_nats",
        "accuracy_mean",
        "accuracy_low",
        "accuracy_high",
    ]);
    for (pairing, points) in settings.pairings.iter().zip(lines) {
        for &alpha in alphas {
            for (split, of) in SPLITS {
                let Some((loss, accuracy)) = over_seeds(points, alpha, of) else {
                    continue;
                };
                let [low, high] = [loss.ends.map(|ends| ends.0), loss.ends.map(|ends| ends.1)];
                let [accuracy_low, accuracy_high] =
                    [accuracy.ends.map(|ends| ends.0), accuracy.ends.map(|ends| ends.1)];
                table.row(cells![
                    pairing.name.as_str(),
                    alpha,
                    split,
                    loss.count,
                    loss.mean,
                    low,
                    high,
                    accuracy.mean,
                    accuracy_low,
                    accuracy_high
                ])?;
            }
        }
    }
    Ok(table)
}

/// A series of means over x, with the intervals as its band.
fn series(name: &str, colour: Colour, scale: f64, values: impl Iterator<Item = (f64, Interval)>) -> Series {
    let values: Vec<(f64, Interval)> = values.collect();
    let line = values.iter().map(|(x, interval)| (*x, scale * interval.mean)).collect();
    let band: Vec<(f64, f64, f64)> = values
        .iter()
        .filter_map(|(x, interval)| interval.ends.map(|(low, high)| (*x, scale * low, scale * high)))
        .collect();
    let series = Series::line(name, colour, line);
    if band.is_empty() { series } else { series.with_band(band) }
}

/// The report's graph: loss on a log axis at the left, accuracy at the right.
fn interpolation_figure(
    settings: &Settings,
    run: &Run,
    seeds: &[u64],
    lines: &[Vec<Point>],
    alphas: &[f64],
) -> Figure {
    let panels = settings.pairings.iter().zip(lines).map(|(pairing, points)| {
        let (mut loss, mut accuracy) = (Vec::new(), Vec::new());
        for (split, of) in SPLITS {
            let values: Vec<(f64, Interval, Interval)> = alphas
                .iter()
                .filter_map(|&alpha| {
                    over_seeds(points, alpha, of).map(|(loss, accuracy)| (alpha, loss, accuracy))
                })
                .collect();
            let dash = |series: Series| if split == "test" { series.dashed() } else { series };
            let losses = values.iter().map(|(alpha, loss, _)| (*alpha, *loss));
            loss.push(dash(series(&format!("{split} loss"), Colour::Blue, 1., losses)));
            let accuracies = values.iter().map(|(alpha, _, accuracy)| (*alpha, *accuracy));
            let name = format!("{split} accuracy");
            accuracy.push(dash(series(&name, Colour::Vermillion, 100., accuracies)).on_right_axis());
        }
        let title = format!("{} (θ₁: {}; θ₂: {})", pairing.name, pairing.first, pairing.second);
        let panel =
            Panel::new(title, Axis::linear("α in (1 − α) θ₁ + α θ₂"), Axis::log10("cross-entropy (nats)"))
                .with_right_axis(Axis::linear("accuracy (%)").with_range(0., 100.))
                .with_mark(0., "θ₁")
                .with_mark(1., "θ₂");
        loss.into_iter().chain(accuracy).fold(panel, Panel::with)
    });
    let models = format!("{} models on each line", alphas.len());
    Figure::new(
        "Loss and accuracy on the straight line through two minima",
        settings.subtitle(run, seeds, &models),
        panels.collect(),
    )
}

fn training_figure(
    settings: &Settings,
    run: &Run,
    seeds: &[u64],
    minima: &[Minimum],
    trained: &[Trained],
) -> Figure {
    let mut loss = Panel::new("loss", Axis::linear("epoch"), Axis::log10("cross-entropy (nats)"));
    // Accuracies crowd below 100 %; what is left to it spreads out on a log axis.
    let mut error = Panel::new("classification error", Axis::linear("epoch"), Axis::log10("error (%)"));
    for (index, minimum) in minima.iter().enumerate() {
        let curves: Vec<&[EpochRow]> =
            trained.iter().skip(index).step_by(minima.len()).map(|one| one.curve.as_slice()).collect();
        let splits: [Of<EpochRow>; 2] = [("train", |row| row.train), ("test", |row| row.test)];
        for (split, of) in splits {
            let name = format!("{minimum}, {split}");
            let dash = |series: Series| if split == "test" { series.dashed() } else { series };
            let at = |epoch: usize| curves.iter().map(move |curve| of(&curve[epoch])).collect::<Vec<_>>();
            let epochs = 0..settings.epochs as usize;
            let losses = epochs.clone().filter_map(|epoch| {
                let values: Vec<f64> = at(epoch).iter().map(|value| value.loss).collect();
                Some((epoch as f64 + 1., geometric_mean_interval(&values, LEVEL)?))
            });
            loss = loss.with(dash(series(&name, Colour::nth(index), 1., losses)));
            let errors = epochs.filter_map(|epoch| {
                let values: Vec<f64> = at(epoch)
                    .iter()
                    .filter_map(|value| value.accuracy)
                    .map(|accuracy| 1. - accuracy)
                    .collect();
                Some((epoch as f64 + 1., mean_interval(&values, LEVEL)?))
            });
            error = error.with(dash(series(&name, Colour::nth(index), 100., errors)));
        }
    }
    let subtitle = settings.subtitle(run, seeds, "train: mean over the epoch; test: after it");
    Figure::new("Training of the minima", subtitle, vec![loss, error])
}

/// The minima themselves.
fn closing_table(settings: &Settings, lines: &[Vec<Point>]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["pairing", "minimum", "train loss", "test loss", "train accuracy", "test accuracy"]);
    for (pairing, points) in settings.pairings.iter().zip(lines) {
        for (alpha, minimum) in [(0., pairing.first), (1., pairing.second)] {
            let Some((train_loss, train_accuracy)) = over_seeds(points, alpha, |point| point.train) else {
                continue;
            };
            let Some((test_loss, test_accuracy)) = over_seeds(points, alpha, |point| point.test) else {
                continue;
            };
            table.add_row([
                pairing.name.clone(),
                format!("α = {alpha}: {minimum}"),
                number(train_loss, 1., 4, ""),
                number(test_loss, 1., 4, ""),
                number(train_accuracy, 100., 2, " %"),
                number(test_accuracy, 100., 2, " %"),
            ]);
        }
    }
    table
}

/// `0.0123 [0.0110, 0.0137]`, the interval where there is one.
fn number(interval: Interval, scale: f64, decimals: usize, unit: &str) -> String {
    let mean = scale * interval.mean;
    match interval.ends {
        Some((low, high)) => {
            format!("{mean:.decimals$}{unit} [{:.decimals$}, {:.decimals$}]", scale * low, scale * high)
        }
        None => format!("{mean:.decimals$}{unit}"),
    }
}
