//! Flatness against generalisation, part 1: the loss along the straight line through two minima.
//!
//! LeNet is trained twice with settings that differ in one thing, batch size or learning rate. On the line
//! `θ(α) = (1 - α) θ₁ + α θ₂`, loss and accuracy show how wide each minimum is (after Keskar et al. 2017, "On large-batch
//! training for deep learning", and Goodfellow et al. 2015).

use crate::curves::{Group, curve_panels, curve_table};
use crate::experiment::{Experiment, check_seeds, seeds_from};
use crate::images::{ImageSettings, Images};
use crate::run::Run;
use crate::summary::{number, series, subtitle};
use crate::trial::{Both, SPLITS, Trained, Trial, evaluate_all, stream_of, train_all};
use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::DataSetName;
use flatland_geometry::{AlphaGrid, barrier, interpolate};
use flatland_network::{Evaluation, Network, OptimiserSettings, Training};
use flatland_record::{Axis, Colour, Figure, Panel, Series, Table, cells};
use flatland_statistics::{Claim, Interval, LEVEL, Outcome, Rule, geometric_mean_interval, mean_interval};
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
    /// Each minimum starts from weights of its own and sees the examples in an order of its own, whatever else is trained.
    fn stream(&self) -> u32 {
        stream_of(&self.to_string())
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
    both: Both,
}

/// The experiment.
#[derive(Debug)]
pub struct Flatness;

impl Experiment for Flatness {
    const NAME: &'static str = "flatness";
    const ABOUT: &'static str = "Is the minimum found with large batches, or small steps, sharper? \
        Loss and accuracy on the straight line through two minima of LeNet.";
    const EXAMPLES: &'static str = "Examples:
  flatness --preset quick --dataset digits      a third of a minute, no files needed
  flatness --seeds 5 --device cuda              the report's settings with error bars
  flatness --set epochs=10 --set alpha.points=101
  flatness --resume                             after Ctrl-C or a crash";
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 120.), ("quick", 20.)];
    const PRESETS: &'static str = include_str!("../../../configs/flatness.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        settings.images.preparation().check()?;
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
                let most = settings.images.preparation().most();
                Training::check_batch(minimum.batch, most).with_context(found_at)?;
            }
        }
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        seeds_from(settings.seed, settings.seeds)
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let images = [Images::load(run, settings.dataset, settings.images.preparation())?];
        let network = Network::lenet();
        let seeds = Self::seeds(settings);

        // Training: each distinct minimum of each seed, once.
        let minima = settings.minima();
        let trials: Vec<Trial> = seeds.iter().flat_map(|&seed| settings.trials(seed, &minima)).collect();
        let trained = train_all(run, std::slice::from_ref(&network), &images, &trials)?;
        run.write_table(
            "training",
            &training_table(&trials, &minima, &trained)?,
            "loss and accuracy by epoch",
        )?;
        let training = training_figure(settings, run, &minima, &trained);
        run.write_figure("training", &training, "training curves")?;

        // Measurement: every model on every line.
        let grid = AlphaGrid::with_minima(settings.alpha.from, settings.alpha.to, settings.alpha.points)?;
        let lines = measure(settings, run, &network, &images[0], &minima, &trained, grid.alphas())?;
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
        run.write_table(
            "barrier",
            &barrier_table(settings, &lines)?,
            "how far loss and error rise above the straight line between the minima",
        )?;
        let figure = interpolation_figure(settings, run, &lines, grid.alphas());
        run.write_figure("interpolation", &figure, "loss and accuracy on the line through two minima")?;
        run.write_claims(judge(settings, &lines))?;
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
            network: 0,
            images: 0,
            seed,
            stream: minimum.stream(),
            optimiser: self.optimiser(*minimum),
            batch: minimum.batch,
            epochs: self.epochs,
            stop_at: None,
            snapshots: false,
        };
        minima.iter().map(trial).collect()
    }

    fn subtitle(&self, run: &Run, models: &str) -> String {
        let subject = format!("LeNet on {}", self.dataset);
        subtitle::<Flatness>(self, run, &subject, &format!("{} epochs · {models}", self.epochs))
    }
}

/// For each pairing its points, by seed and α.
fn measure(
    settings: &Settings,
    run: &Run,
    network: &Network,
    images: &Images,
    minima: &[Minimum],
    trained: &[Trained],
    alphas: &[f64],
) -> Result<Vec<Vec<Point>>> {
    struct Job {
        seed: u64,
        ends: [usize; 2],
        alpha: f64,
    }
    let seeds = Flatness::seeds(settings);
    let place = |minimum: Minimum| minima.iter().position(|known| *known == minimum).unwrap_or_default();
    let mut jobs = Vec::new();
    for pairing in &settings.pairings {
        for (repetition, &seed) in seeds.iter().enumerate() {
            let ends =
                [pairing.first, pairing.second].map(|minimum| repetition * minima.len() + place(minimum));
            jobs.extend(alphas.iter().map(|&alpha| Job { seed, ends, alpha }));
        }
    }
    let device = run.device.device;
    let evaluated = evaluate_all(
        run,
        "interpolation",
        (network, images),
        jobs.len(),
        || trained.iter().map(|one| Ok(one.theta.f_to_device(device)?)).collect::<Result<Vec<Tensor>>>(),
        |thetas, index| {
            let Job { ends, alpha, .. } = jobs[index];
            Ok(interpolate(&thetas[ends[0]], &thetas[ends[1]], alpha)?)
        },
        |index| format!("α = {:.2}", jobs[index].alpha),
    )?;
    let points = jobs.iter().zip(evaluated);
    let mut points = points.map(|(job, both)| Point { seed: job.seed, alpha: job.alpha, both });
    let each = seeds.len() * alphas.len();
    Ok(settings.pairings.iter().map(|_| points.by_ref().take(each).collect()).collect())
}

fn training_table(trials: &[Trial], minima: &[Minimum], trained: &[Trained]) -> Result<Table> {
    let keys = trials.iter().zip(minima.iter().cycle()).map(|(trial, minimum)| {
        let Minimum { batch, lr, draw } = *minimum;
        cells![trial.seed, batch, lr, draw].to_vec()
    });
    let curves = trained.iter().map(|one| one.curve.as_slice());
    curve_table(&["seed", "batch", "lr", "draw"], keys.zip(curves))
}

fn interpolation_table(settings: &Settings, lines: &[Vec<Point>]) -> Result<Table> {
    let mut table =
        Table::new(&["pairing", "theta1", "theta2", "seed", "alpha", "split", "loss_nats", "accuracy"]);
    for (Pairing { name, first, second }, points) in settings.pairings.iter().zip(lines) {
        let (first, second) = (first.to_string(), second.to_string());
        for point in points {
            for (split, of) in SPLITS {
                let value = of(&point.both);
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
fn over_seeds(points: &[Point], alpha: f64, of: fn(&Both) -> Evaluation) -> Option<(Interval, Interval)> {
    let here = points.iter().filter(|point| point.alpha == alpha);
    let values: Vec<Evaluation> = here.map(|point| of(&point.both)).collect();
    let losses: Vec<f64> = values.iter().map(|value| value.loss).collect();
    let accuracies: Vec<f64> = values.iter().filter_map(|value| value.accuracy).collect();
    Some((geometric_mean_interval(&losses, LEVEL)?, mean_interval(&accuracies, LEVEL)?))
}

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

/// How far the loss rises above the straight line between the ends (Frankle et al. 2020, "Linear mode connectivity and the
/// lottery ticket hypothesis"), and the same for the classification error.
fn barriers(points: &[Point], seed: u64, of: fn(&Both) -> Evaluation) -> [Option<f64>; 2] {
    let on_line = |value: &dyn Fn(Evaluation) -> Option<f64>| -> Option<f64> {
        let mine = points.iter().filter(|point| point.seed == seed);
        let values: Option<Vec<(f64, f64)>> =
            mine.map(|point| Some((point.alpha, value(of(&point.both))?))).collect();
        barrier(&values?)
    };
    [on_line(&|value| Some(value.loss)), on_line(&|value| value.accuracy.map(|accuracy| 1. - accuracy))]
}

fn barrier_table(settings: &Settings, lines: &[Vec<Point>]) -> Result<Table> {
    let mut table = Table::new(&["pairing", "seed", "split", "loss_barrier_nats", "error_barrier"]);
    for (pairing, points) in settings.pairings.iter().zip(lines) {
        for seed in Flatness::seeds(settings) {
            for (split, of) in SPLITS {
                let [loss, error] = barriers(points, seed, of);
                table.row(cells![pairing.name.as_str(), seed, split, loss, error])?;
            }
        }
    }
    Ok(table)
}

/// The report's graph: loss on a log axis at the left, accuracy at the right.
fn interpolation_figure(settings: &Settings, run: &Run, lines: &[Vec<Point>], alphas: &[f64]) -> Figure {
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
            loss.push(dash(series(format!("{split} loss"), Colour::Blue, 1., losses)));
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
        settings.subtitle(run, &models),
        panels.collect(),
    )
}

fn training_figure(settings: &Settings, run: &Run, minima: &[Minimum], trained: &[Trained]) -> Figure {
    let groups: Vec<Group> = minima
        .iter()
        .enumerate()
        .map(|(index, minimum)| Group {
            name: minimum.to_string(),
            colour: Colour::nth(index),
            curves: trained
                .iter()
                .skip(index)
                .step_by(minima.len())
                .map(|one| one.curve.as_slice())
                .collect(),
        })
        .collect();
    let subtitle = settings.subtitle(run, "train: mean over the epoch; test: after it");
    Figure::new("Training of the minima", subtitle, curve_panels(&groups))
}

/// Fixed before the data.
const CLAIMS: [Claim; 5] = [
    Claim {
        id: "lr-lowest",
        statement: "On the line from the smaller to the larger learning rate, test accuracy falls until α = 1.5",
        source: "report",
        statistic: "α of the lowest test accuracy among 0 ≤ α ≤ 2",
        rule: Rule::MeanWithin(1.25, 1.75),
    },
    Claim {
        id: "lr-rise",
        statement: "On the line from the smaller to the larger learning rate, test accuracy rises sharply at α = 1.5",
        source: "report",
        statistic: "test accuracy at the end of the line minus the one at α = 1.5 (fractions)",
        rule: Rule::MeanAbove(0.05),
    },
    Claim {
        id: "batch-sharper",
        statement: "The minimum found with the larger batch is the sharper one",
        source: "Keskar et al. 2017",
        statistic: "ln of the rise of the training loss half a step beyond the larger batch's minimum over the rise half \
                    a step beyond the other (no unit)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "batch-generalises",
        statement: "The minimum found with the smaller batch classifies test images better",
        source: "Keskar et al. 2017",
        statistic: "test accuracy with the smaller batch minus the one with the larger (fractions)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "barrier",
        statement: "Two minima found with the same settings from different initial weights are not linearly connected",
        source: "Frankle et al. 2020",
        statistic: "rise of the test error on the line above the mean error of its ends, at its highest (fraction)",
        rule: Rule::MeanAbove(0.02),
    },
];

/// One seed's points on a line.
struct Line<'a>(Vec<&'a Point>);

impl Line<'_> {
    /// A value at α, between two points of the grid by a straight line; `None` beyond its ends.
    fn at(&self, alpha: f64, of: impl Fn(&Both) -> f64) -> Option<f64> {
        let upper = self.0.iter().position(|point| point.alpha >= alpha)?;
        let (high, value) = (self.0[upper], of(&self.0[upper].both));
        if upper == 0 || high.alpha <= alpha {
            return (high.alpha <= alpha).then_some(value);
        }
        let low = self.0[upper - 1];
        let share = (alpha - low.alpha) / (high.alpha - low.alpha);
        Some(of(&low.both) * (1. - share) + value * share)
    }

    /// How much steeper the training loss rises beyond θ₂ than beyond θ₁.
    fn sharper(&self) -> Option<f64> {
        let loss = |both: &Both| both.train.loss;
        let beyond = self.at(1.5, loss)? - self.at(1., loss)?;
        let before = self.at(-0.5, loss)? - self.at(0., loss)?;
        Some((beyond / before).ln())
    }

    /// α of the lowest test accuracy from 0 to 2.
    fn lowest(&self) -> Option<f64> {
        let within = self.0.iter().filter(|point| (0. ..=2.).contains(&point.alpha));
        within
            .min_by(|a, b| test_accuracy(&a.both).total_cmp(&test_accuracy(&b.both)))
            .map(|point| point.alpha)
    }

    fn rise(&self) -> Option<f64> {
        Some(test_accuracy(&self.0.last()?.both) - self.at(1.5, test_accuracy)?)
    }

    fn better_first(&self) -> Option<f64> {
        Some(self.at(0., test_accuracy)? - self.at(1., test_accuracy)?)
    }
}

fn test_accuracy(both: &Both) -> f64 {
    both.test.accuracy.unwrap_or(f64::NAN)
}

/// Each claim is judged on the first pairing that it is about; where there is none, it is left out.
fn judge(settings: &Settings, lines: &[Vec<Point>]) -> Vec<Outcome> {
    let by_seed = |fits: &dyn Fn(Minimum, Minimum) -> bool| -> Option<Vec<Line>> {
        let mut pairs = settings.pairings.iter().zip(lines);
        let (_, points) = pairs.find(|(pairing, _)| fits(pairing.first, pairing.second))?;
        let line = |seed| Line(points.iter().filter(|point| point.seed == seed).collect());
        Some(Flatness::seeds(settings).into_iter().map(line).collect())
    };
    let same_lr = |a: Minimum, b: Minimum| (a.lr - b.lr).abs() < f64::EPSILON;
    let rates = by_seed(&|a, b| a.batch == b.batch && a.lr < b.lr);
    let batches = by_seed(&|a, b| a.batch < b.batch && same_lr(a, b));
    let twins = by_seed(&|a, b| a.batch == b.batch && same_lr(a, b));
    let judged = |claim: &Claim, lines: &Option<Vec<Line>>, of: &dyn Fn(&Line) -> Option<f64>| {
        let values: Vec<f64> = lines.as_ref()?.iter().filter_map(of).collect();
        Some(claim.judge(&values))
    };
    let error_barrier = |line: &Line| {
        let error = |point: &&Point| (point.alpha, 1. - test_accuracy(&point.both));
        barrier(&line.0.iter().map(error).collect::<Vec<_>>())
    };
    let [lowest, rise, sharper, generalises, twin] = &CLAIMS;
    [
        judged(lowest, &rates, &|line| line.lowest()),
        judged(rise, &rates, &|line| line.rise()),
        judged(sharper, &batches, &|line| line.sharper()),
        judged(generalises, &batches, &|line| line.better_first()),
        judged(twin, &twins, &error_barrier),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The minima themselves.
fn closing_table(settings: &Settings, lines: &[Vec<Point>]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["pairing", "minimum", "train loss", "test loss", "train accuracy", "test accuracy"]);
    for (pairing, points) in settings.pairings.iter().zip(lines) {
        for (alpha, minimum) in [(0., pairing.first), (1., pairing.second)] {
            let [train, test] = SPLITS.map(|(_, of)| over_seeds(points, alpha, of));
            let (Some((train_loss, train_accuracy)), Some((test_loss, test_accuracy))) = (train, test) else {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A line whose test accuracy and training loss are known.
    fn points(accuracy: impl Fn(f64) -> f64, loss: impl Fn(f64) -> f64) -> Vec<Point> {
        let at = |alpha: f64| Point {
            seed: 0,
            alpha,
            both: Both {
                train: Evaluation { loss: loss(alpha), accuracy: None },
                test: Evaluation { loss: 0., accuracy: Some(accuracy(alpha)) },
            },
        };
        (-20..=20).map(|k| at(f64::from(k) / 10.)).collect()
    }

    #[test]
    fn statistics_of_a_known_line() {
        let points = points(
            |alpha| if alpha <= 1.5 { 0.9 - 0.2 * alpha } else { 0.6 + 0.6 * (alpha - 1.5) },
            |alpha| if alpha < 0.5 { alpha * alpha } else { 3. * (alpha - 1.).powi(2) },
        );
        let line = Line(points.iter().collect());
        assert!((line.lowest().unwrap() - 1.5).abs() < 1e-9);
        assert!((line.rise().unwrap() - 0.3).abs() < 1e-9);
        assert!((line.better_first().unwrap() - 0.2).abs() < 1e-9);
        assert!((line.sharper().unwrap() - 3f64.ln()).abs() < 1e-9);
        assert!((line.at(0.55, test_accuracy).unwrap() - 0.79).abs() < 1e-9);
        assert_eq!(line.at(2.1, test_accuracy), None);
        assert_eq!(line.at(-2.1, test_accuracy), None);
    }
}
