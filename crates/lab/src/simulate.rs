//! Functions of one variable, fitted by dense networks of equal size and different depth: which depth fits best, and how many
//! networks die (ReLU units that are off at every point pass no gradient; Lu et al. 2020, "Dying ReLU and initialization").

use crate::command::Flag;
use crate::experiment::{Experiment, check_seeds, is_preset, seeds_from};
use crate::fitting::{Fit, Fitted, Grid, Stop, check, fit_all, network};
use crate::run::Run;
use crate::summary::{quartiles, short, subtitle, thousands};
use crate::trial::stream_of;
use anyhow::{Context, Result, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::Function;
use flatland_network::{Layer, Network, OptimiserSettings, initialise};
use flatland_record::{Axis, Cell, Colour, Figure, Marker, Panel, Series, Table, cells, ecdf};
use flatland_statistics::{Claim, LEVEL, Outcome, Rule, quantile, share_interval};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// `configs/simulate.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub seeds: u64,
    pub seed: u64,
    pub targets: Vec<Function>,
    pub networks: Vec<Vec<i64>>,
    pub epochs: u32,
    pub every: u32,
    pub grid: Grid,
    pub stop: Settled,
    pub optimiser: OptimiserSettings,
}

/// When a network is done before its last epoch.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settled {
    pub below: f64,
    pub change: f64,
}

/// A trained network is dead if its output's range over the grid is below this share of the target's: a flat line to the eye.
const FLAT: f64 = 0.01;
/// An initial network is dead if its output is constant up to the rounding of f32. A deep one's is nearly so, and alive.
const ROUNDING: f64 = 1e-6;

/// More losses than this would be no table.
const MOST_ROWS: u64 = 10_000_000;

/// A function and its samples.
struct Target {
    function: Function,
    x: Vec<f64>,
    y: Vec<f64>,
    /// The loss of the best constant.
    variance: f64,
}

/// A network fitted to a target, a run a seed.
struct Results<'a> {
    target: &'a Target,
    network: &'a Network,
    runs: Vec<OneSeed>,
}

/// What one seed came to.
struct OneSeed {
    seed: u64,
    fitted: Fitted,
    /// At each point of the grid, at the end.
    predictions: Vec<f64>,
    dead: bool,
    dead_at_start: bool,
}

/// The experiment.
#[derive(Debug)]
pub struct Simulate;

impl Experiment for Simulate {
    const NAME: &'static str = "simulate";
    const ABOUT: &'static str = "At equal numbers of parameters, which depth fits a function of one variable best, and how \
        many networks die? Loss by epoch, predictions, final loss and share of dead networks over seeds.";
    const EXAMPLES: &'static str = "Examples:
  simulate --preset quick
  simulate --function 'sin(3*x)+x^2' --function 'exp(-x^2)'     your own targets
  simulate --preset notebook                                    the nets that the notebook really trained
  simulate --set 'networks=[[1,64,1],[1,8,8,8,1]]'              your own widths
  simulate --resume                                             after Ctrl-C or a crash";
    const FLAGS: &'static [Flag] = &[Flag {
        name: "function",
        key: "targets",
        many: true,
        file: false,
        value_name: "EXPR",
        help: "Function of x to fit, for instance 'sin(3*x)+x^2', in place of the preset's; may be repeated",
        excludes: &[],
    }];
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 47.), ("notebook", 57.), ("quick", 3.)];
    const PRESETS: &'static str = include_str!("../../../configs/simulate.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        let (epochs, every) = (settings.epochs, settings.every);
        check(settings.grid, &settings.targets, &settings.optimiser, epochs)?;
        ensure!(every > 0, "every must be at least 1, found 0");
        let fits = (settings.targets.len() * settings.networks.len()) as u64 * settings.seeds;
        let rows = fits.saturating_mul(u64::from(epochs / every));
        ensure!(
            rows <= MOST_ROWS,
            "losses to record are targets x networks x seeds x epochs / every, at most {MOST_ROWS}, found {rows}: raise every"
        );
        for (key, bound) in [("below", settings.stop.below), ("change", settings.stop.change)] {
            ensure!(
                bound >= 0. && bound.is_finite(),
                "stop.{key} must be 0 or more and finite, found {bound}"
            );
        }
        ensure!(!settings.targets.is_empty(), "targets must name at least one function, found none");
        for (index, function) in settings.targets.iter().enumerate() {
            ensure!(
                !settings.targets[..index].contains(function),
                "targets must differ, found {function} twice"
            );
            let target = Target::new(function, settings.grid).context("targets")?;
            ensure!(
                target.range() > 0.,
                "targets must vary over the grid, found {function}, which is {} everywhere",
                target.y[0]
            );
        }
        ensure!(!settings.networks.is_empty(), "networks must name at least one network, found none");
        for (index, widths) in settings.networks.iter().enumerate() {
            network(widths, &Layer::Relu).context("networks")?;
            ensure!(
                !settings.networks[..index].contains(widths),
                "networks must differ, found {widths:?} twice"
            );
        }
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        seeds_from(settings.seed, settings.seeds)
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let targets = settings.targets.iter().map(|function| Target::new(function, settings.grid));
        let targets = targets.collect::<Result<Vec<_>>>()?;
        let networks = settings.networks.iter().map(|widths| network(widths, &Layer::Relu));
        let networks = networks.collect::<Result<Vec<_>>>()?;
        let results = settings.fit(run, &targets, &networks)?;

        run.write_table("training", &training_table(&results)?, "loss by epoch, each seed")?;
        run.write_table("final", &final_table(&results)?, "the trained networks, each seed")?;
        run.write_table(
            "summary",
            &summary_table(&results)?,
            "final loss over seeds, and the share of dead networks",
        )?;
        run.write_table(
            "predictions",
            &predictions_table(&results)?,
            "the targets and what was made of them",
        )?;
        run.write_figure("training", &training_figure(settings, run, &results), "loss by epoch")?;
        run.write_figure(
            "predictions",
            &predictions_figure(settings, run, &results),
            "predictions over the targets",
        )?;
        run.write_figure(
            "final",
            &final_figure(settings, run, &results),
            "the final loss over seeds, by depth",
        )?;
        run.write_figure("dead", &dead_figure(settings, run, &results), "share of dead networks")?;
        run.write_claims(judge(settings, &results))?;
        Ok(closing_table(&results))
    }
}

impl Target {
    fn new(function: &Function, grid: Grid) -> Result<Self> {
        let (x, y) = function.sample(grid.from, grid.step, grid.points)?;
        let variance = y.var(0.);
        let [x, y] = [x, y].map(|values| values.into_raw_vec_and_offset().0);
        Ok(Self { function: function.clone(), x, y, variance })
    }

    fn range(&self) -> f64 {
        range(&self.y)
    }

    fn name(&self) -> String {
        self.function.to_string()
    }
}

/// Largest minus smallest; NaN where a value is.
fn range(values: &[f64]) -> f64 {
    if values.iter().any(|value| value.is_nan()) {
        return f64::NAN;
    }
    let (low, high) = values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)));
    high - low
}

/// Outputs at x, on the CPU.
fn predictions(network: &Network, theta: &Tensor, x: &[f64]) -> Result<Vec<f64>> {
    let inputs = Tensor::f_from_slice(x)?.f_view([-1, 1])?.f_to_kind(Kind::Float)?;
    let outputs = network.predict(theta, &inputs)?.f_view([-1])?.f_to_kind(Kind::Double)?;
    Ok(Vec::<f64>::try_from(&outputs)?)
}

impl Settings {
    /// Every network on every target, from every seed. A seed starts from the same weights on each target.
    fn fit<'a>(&self, run: &Run, targets: &'a [Target], networks: &'a [Network]) -> Result<Vec<Results<'a>>> {
        let seeds = Simulate::seeds(self);
        let pairs: Vec<(&Target, &Network)> =
            targets.iter().flat_map(|target| networks.iter().map(move |network| (target, network))).collect();
        let stop = Stop::Settled { below: self.stop.below, change: self.stop.change };
        let fit = |&(target, network): &(&'a Target, &'a Network)| Fit {
            stop,
            every: self.every,
            ..Fit::new(network, &target.function, self.grid, &seeds, self.optimiser, self.epochs)
        };
        let fits: Vec<Fit> = pairs.iter().map(fit).collect();
        let all = fit_all(run, &fits)?;
        pairs
            .into_iter()
            .zip(all)
            .map(|((target, network), fitted)| {
                run.check_interrupted()?;
                let runs = seeds
                    .iter()
                    .zip(fitted)
                    .map(|(&seed, fitted)| OneSeed::new(target, network, seed, fitted));
                Ok(Results { target, network, runs: runs.collect::<Result<_>>()? })
            })
            .collect()
    }

    fn subtitle(&self, run: &Run, more: &str) -> String {
        let subject = format!("dense ReLU networks on {} points", thousands(self.grid.points as i64));
        subtitle::<Simulate>(self, run, &subject, more)
    }

    fn recorded(&self) -> impl Iterator<Item = u32> {
        (0..=self.epochs).step_by(self.every as usize)
    }
}

impl OneSeed {
    fn new(target: &Target, network: &Network, seed: u64, fitted: Fitted) -> Result<Self> {
        let start = initialise(network, seed, stream_of(network.name()), Kind::Float, Device::Cpu)?;
        let start = predictions(network, &start, &target.x)?;
        let predictions = predictions(network, &fitted.theta, &target.x)?;
        Ok(Self {
            seed,
            dead: range(&predictions) < FLAT * target.range(),
            dead_at_start: range(&start) < ROUNDING * target.range(),
            predictions,
            fitted,
        })
    }

    /// Mean squared error after `epoch` steps, if that was recorded; one that was done earlier stays where it was.
    fn loss_after(&self, epoch: u32) -> Option<f64> {
        if epoch >= self.fitted.epochs {
            return Some(self.fitted.loss);
        }
        let records = &self.fitted.records;
        records.binary_search_by_key(&epoch, |record| record.epoch).ok().map(|index| records[index].loss)
    }
}

impl Results<'_> {
    fn layers(&self) -> usize {
        self.network.parameters().len() / 2
    }

    /// `5 layers (1-9-17-17-4-1)`.
    fn name(&self) -> String {
        let plural = if self.layers() == 1 { "" } else { "s" };
        format!("{} layer{plural} ({})", self.layers(), self.network.name())
    }

    /// What a row about one of its runs begins with: target, network, layers, parameters, seed.
    fn keys(&self, run: &OneSeed) -> [Cell; 5] {
        cells![self.target.name(), self.network.name(), self.layers(), self.network.count(), run.seed]
    }

    fn losses(&self) -> Vec<f64> {
        self.runs.iter().map(|run| run.fitted.loss).collect()
    }

    /// Of the seeds, after `epoch` steps, where that was recorded.
    fn losses_after(&self, epoch: u32) -> Vec<f64> {
        self.runs.iter().filter_map(|run| run.loss_after(epoch)).collect()
    }

    /// Of the seeds, at a point of the grid.
    fn predictions(&self, point: usize) -> Vec<f64> {
        self.runs.iter().map(|run| run.predictions[point]).collect()
    }

    /// The seed with the lowest final loss, and the one in the middle (of an even number, the lower).
    fn best_and_median(&self) -> Option<(&OneSeed, &OneSeed)> {
        let mut runs: Vec<&OneSeed> = self.runs.iter().collect();
        runs.sort_by(|a, b| a.fitted.loss.total_cmp(&b.fitted.loss));
        Some((runs.first()?, runs.get((runs.len() - 1) / 2)?))
    }

    fn count(&self, of: impl Fn(&OneSeed) -> bool) -> usize {
        self.runs.iter().filter(|run| of(run)).count()
    }

    /// How many are dead, and the interval of their share.
    fn dead(&self) -> (usize, Option<(f64, f64)>) {
        let dead = self.count(|run| run.dead);
        // One seed says nothing of a share.
        let interval = if self.runs.len() > 1 { share_interval(dead, self.runs.len(), LEVEL) } else { None };
        (dead, interval)
    }
}

/// Lower quartile, median, upper quartile; `None` where a value is NaN.
fn quarters(values: &[f64]) -> Option<[f64; 3]> {
    let [low, middle, high] = [0.25, 0.5, 0.75].map(|share| quantile(values, share));
    Some([low?, middle?, high?])
}

/// Results of the same target, in the order of the settings.
fn by_target<'a, 'b>(results: &'b [Results<'a>]) -> impl Iterator<Item = &'b [Results<'a>]> {
    results.chunk_by(|a, b| a.target.function == b.target.function)
}

/// The networks compute in f32: more digits would say nothing.
fn training_table(results: &[Results]) -> Result<Table> {
    let mut table =
        Table::new(&["target", "network", "layers", "parameters", "seed", "epoch", "mean_squared_error"]);
    for result in results {
        for run in &result.runs {
            for record in &run.fitted.records {
                table.row(result.keys(run).into_iter().chain(cells![record.epoch, record.loss as f32]))?;
            }
        }
    }
    Ok(table)
}

fn final_table(results: &[Results]) -> Result<Table> {
    let mut table = Table::new(&[
        "target",
        "network",
        "layers",
        "parameters",
        "seed",
        "epochs",
        "mean_squared_error",
        "gradient_norm",
        "prediction_range",
        "dead",
        "dead_at_start",
    ]);
    for result in results {
        for run in &result.runs {
            let values = cells![
                run.fitted.epochs,
                run.fitted.loss as f32,
                run.fitted.gradient_norm as f32,
                range(&run.predictions) as f32,
                run.dead,
                run.dead_at_start
            ];
            table.row(result.keys(run).into_iter().chain(values))?;
        }
    }
    Ok(table)
}

fn summary_table(results: &[Results]) -> Result<Table> {
    let mut table = Table::new(&[
        "target",
        "target_variance",
        "network",
        "layers",
        "parameters",
        "seeds",
        "mean_squared_error_best",
        "mean_squared_error_lower_quartile",
        "mean_squared_error_median",
        "mean_squared_error_upper_quartile",
        "dead",
        "dead_at_start",
        "dead_share",
        "dead_share_low",
        "dead_share_high",
    ]);
    for result in results {
        let quartiles = quarters(&result.losses());
        let (dead, interval) = result.dead();
        table.row(cells![
            result.target.name(),
            result.target.variance,
            result.network.name(),
            result.layers(),
            result.network.count(),
            result.runs.len(),
            result.best_and_median().map(|(best, _)| best.fitted.loss as f32),
            quartiles.map(|[low, _, _]| low as f32),
            quartiles.map(|[_, middle, _]| middle as f32),
            quartiles.map(|[_, _, high]| high as f32),
            dead,
            result.count(|run| run.dead_at_start),
            dead as f64 / result.runs.len() as f64,
            interval.map(|(low, _)| low),
            interval.map(|(_, high)| high)
        ])?;
    }
    Ok(table)
}

fn predictions_table(results: &[Results]) -> Result<Table> {
    let mut table = Table::new(&[
        "target",
        "network",
        "x",
        "y",
        "best_seed",
        "median_seed",
        "lower_quartile",
        "median",
        "upper_quartile",
    ]);
    for result in results {
        let (target, network) = (result.target.name(), result.network.name());
        let ends = result.best_and_median();
        for (index, (&x, &y)) in result.target.x.iter().zip(&result.target.y).enumerate() {
            let quartiles = quarters(&result.predictions(index));
            table.row(cells![
                target.as_str(),
                network,
                x,
                y,
                ends.map(|(best, _)| best.predictions[index] as f32),
                ends.map(|(_, median)| median.predictions[index] as f32),
                quartiles.map(|[low, _, _]| low as f32),
                quartiles.map(|[_, middle, _]| middle as f32),
                quartiles.map(|[_, _, high]| high as f32)
            ])?;
        }
    }
    Ok(table)
}

fn training_figure(settings: &Settings, run: &Run, results: &[Results]) -> Figure {
    let panels = by_target(results).map(|of_target| {
        let target = of_target[0].target;
        let panel = Panel::new(target.name(), Axis::whole("epoch"), Axis::log10("mean squared error"));
        let lines = of_target.iter().enumerate().map(|(index, result)| {
            let at = |epoch: u32| (f64::from(epoch), result.losses_after(epoch));
            quartiles(result.name(), Colour::nth(index), settings.recorded().map(at))
        });
        lines.fold(panel, Panel::with).with_level(target.variance, "variance of the target")
    });
    let panels = panels.collect();
    let subtitle = settings.subtitle(run, "median over seeds; a network that is done keeps its loss");
    Figure {
        columns: Some(settings.targets.len().min(3)),
        band_meaning: "middle half of the seeds".into(),
        ..Figure::new("Fitting a function: loss", subtitle, panels)
    }
}

/// A row of panels for each target, a column for each network.
fn predictions_figure(settings: &Settings, run: &Run, results: &[Results]) -> Figure {
    let panels = results.iter().enumerate().map(|(index, result)| {
        let target = result.target;
        let colour = Colour::nth(index % settings.networks.len());
        let title = format!("{}: {}", target.function, result.name());
        let line = |y: &[f64]| target.x.iter().copied().zip(y.iter().copied()).collect::<Vec<_>>();
        let panel = Panel::new(title, Axis::linear("x"), Axis::linear("y"));
        let panel = panel.with(Series::line("target", Colour::Grey, line(&target.y)));
        let Some((_, median)) = result.best_and_median() else { return panel };
        let band = target.x.iter().enumerate().filter_map(|(index, &x)| {
            let [low, _, high] = quarters(&result.predictions(index))?;
            Some((x, low, high))
        });
        let series = Series::line("seed of median loss", colour, line(&median.predictions));
        panel.with(series.with_band(band.collect()))
    });
    let panels = panels.collect();
    let subtitle = settings.subtitle(run, "after training");
    Figure {
        columns: Some(settings.networks.len().min(4)),
        band_meaning: "middle half of the seeds at each x".into(),
        ..Figure::new("Fitting a function: predictions", subtitle, panels)
    }
}

fn final_figure(settings: &Settings, run: &Run, results: &[Results]) -> Figure {
    let panels = by_target(results).map(|of_target| {
        let target = of_target[0].target;
        // Wider than the losses, so that no step lies on the frame.
        let all = of_target.iter().flat_map(Results::losses).filter(|loss| loss.is_finite() && *loss > 0.);
        let ends = (target.variance, target.variance);
        let (low, high) = all.fold(ends, |(low, high), loss| (loss.min(low), loss.max(high)));
        let margin = (high / low).powf(0.05).max(1.02);
        let axis = Axis::log10("final mean squared error").with_range(low / margin, high * margin);
        let panel = Panel::new(target.name(), axis, Axis::linear("share of seeds (%)").with_range(0., 100.));
        let steps = of_target.iter().enumerate().map(|(index, result)| {
            let steps = ecdf(&result.losses()).into_iter().map(|(loss, share)| (loss, 100. * share));
            Series::steps(result.name(), Colour::nth(index), steps.collect())
        });
        steps.fold(panel, Panel::with).with_mark(target.variance, "variance")
    });
    let panels = panels.collect();
    let subtitle = settings.subtitle(run, "share of seeds whose loss is no higher");
    Figure {
        columns: Some(settings.targets.len().min(3)),
        ..Figure::new("Fitting a function: the final loss", subtitle, panels)
    }
}

fn dead_figure(settings: &Settings, run: &Run, results: &[Results]) -> Figure {
    let names: Vec<String> = by_target(results).next().unwrap_or(&[]).iter().map(Results::name).collect();
    let axis = Axis::categories("network", names);
    let mut panel = Panel::new("", axis, Axis::linear("dead networks (%)").with_range(0., 100.));
    let count = settings.targets.len();
    for (index, of_target) in by_target(results).enumerate() {
        // Side by side within a network's place.
        let shift = 0.16 * (index as f64 - (count - 1) as f64 / 2.) / (count as f64 / 3.).max(1.);
        let points = of_target.iter().enumerate().map(|(place, result)| {
            (place as f64 + shift, 100. * result.dead().0 as f64 / result.runs.len() as f64)
        });
        let whiskers = of_target.iter().map(|result| {
            result.dead().1.map_or((f64::NAN, f64::NAN), |(low, high)| (100. * low, 100. * high))
        });
        let series = Series::scatter(of_target[0].target.name(), Colour::nth(index), points.collect());
        panel = panel.with(series.with_whiskers(whiskers.collect()).with_marker(Marker::nth(index)));
    }
    let more = format!("dead: the output's range is below {} % of the target's", 100. * FLAT);
    Figure {
        band_meaning: "95 % interval of the share".into(),
        ..Figure::new("Fitting a function: dead networks", settings.subtitle(run, &more), vec![panel])
    }
}

/// Models 1, 2 and 3: of the report's sizes, and as the notebook built them.
const MODELS: [[&str; 3]; 2] = [
    ["1-190-1", "1-9-17-17-4-1", "1-5-10-12-12-12-4-1"],
    ["1-1-190-1", "1-1-10-18-15-4-1", "1-1-5-10-10-10-10-4-1"],
];
const SINC: &str = "sinc(5*PI*x)";
const SINE: &str = "sin(5*PI*x)";
const STEPS: &str = "sign(sin(5*PI*x))";

/// Fixed before the data.
const CLAIMS: [Claim; 11] = [
    Claim {
        id: "sinc-model-1-best",
        statement: "On sinc(5πx), model 1 (the shallowest) fits better than models 2 and 3",
        source: "report",
        statistic: "ln of the lower final loss of models 2 and 3 over model 1's",
        rule: Rule::MedianAbove(0.),
    },
    Claim {
        id: "sinc-model-2-mean",
        statement: "On sinc(5πx), model 2 predicts the mean, from more than half of the seeds",
        source: "report",
        statistic: "1 if the trained network is dead",
        rule: Rule::ShareAbove(0.5),
    },
    Claim {
        id: "sinc-model-3-mean", // The notebook's too.
        statement: "On sinc(5πx), model 3 (the deepest) predicts the mean, stuck at the variance 0.0613, from more than \
            half of the seeds",
        source: "report",
        statistic: "1 if the trained network is dead",
        rule: Rule::ShareAbove(0.5),
    },
    Claim {
        id: "sine-model-2-best",
        statement: "On sin(5πx), model 2 fits better than models 1 and 3",
        source: "report",
        statistic: "ln of the lower final loss of models 1 and 3 over model 2's",
        rule: Rule::MedianAbove(0.),
    },
    Claim {
        id: "sine-model-3-constant",
        statement: "On sin(5πx), model 3 predicts a constant, from more than half of the seeds",
        source: "report",
        statistic: "1 if the trained network is dead",
        rule: Rule::ShareAbove(0.5),
    },
    Claim {
        id: "steps-model-2-best",
        statement: "On sign(sin(5πx)), which the report's graph shows, model 2 fits better than models 1 and 3",
        source: "report",
        statistic: "ln of the lower final loss of models 1 and 3 over model 2's",
        rule: Rule::MedianAbove(0.),
    },
    Claim {
        id: "steps-model-3-constant",
        statement: "On sign(sin(5πx)), model 3 is stuck at the variance 1.0, from more than half of the seeds",
        source: "notebook",
        statistic: "1 if the trained network is dead",
        rule: Rule::ShareAbove(0.5),
    },
    Claim {
        id: "sinc-1-1-190-1",
        statement: "On sinc(5πx), the notebook's model 1 has a loss of 0.0050 after 5,000 epochs, within a factor of 2",
        source: "notebook",
        statistic: "ln of the loss after 5,000 epochs over 0.0050",
        rule: Rule::MeanWithin(-std::f64::consts::LN_2, std::f64::consts::LN_2),
    },
    Claim {
        id: "steps-1-1-190-1",
        statement: "On sign(sin(5πx)), the notebook's model 1 has a loss of 0.834 after 5,500 epochs, give or take 0.05",
        source: "notebook",
        statistic: "loss after 5,500 epochs",
        rule: Rule::MeanWithin(0.784, 0.884),
    },
    Claim {
        id: "steps-5-layers-over-2",
        statement: "With 571 parameters each, 5 layers fit sign(sin(5πx)) better than 2",
        source: "Flatland",
        statistic: "ln of the final loss with 2 layers over that with 5",
        rule: Rule::MedianAbove(0.),
    },
    Claim {
        id: "steps-7-layers-over-2",
        statement: "With 571 parameters each, 7 layers fit sign(sin(5πx)) better than 2",
        source: "Flatland",
        statistic: "ln of the final loss with 2 layers over that with 7",
        rule: Rule::MedianAbove(0.),
    },
];

/// Claims about networks or targets that were not trained are left out; so are the report's and the notebook's where points or
/// epochs are others than theirs.
fn judge(settings: &Settings, results: &[Results]) -> Vec<Outcome> {
    let find = |function: &str, network: &str| {
        results.iter().find(|result| result.target.name() == function && result.network.name() == network)
    };
    // Presets differ in targets and networks, which the claims name.
    let free = ["seeds", "seed", "targets", "networks", "every"];
    let trained_as_reported = is_preset::<Simulate>(settings, "paper", &free);
    let so_far_as_reported = is_preset::<Simulate>(settings, "paper", &[&free[..], &["epochs"]].concat());
    let of_settings = |network: &str| results.iter().any(|result| result.network.name() == network);
    let models = if MODELS[0].into_iter().any(of_settings) { MODELS[0] } else { MODELS[1] };
    let loss = |result: &Results| result.losses();
    let ln_ratio = |over: &[f64], under: &[f64]| -> Vec<f64> {
        over.iter().zip(under).map(|(over, under)| (over / under).ln()).collect()
    };
    let best = |function: &str, model: usize| -> Option<Vec<f64>> {
        trained_as_reported.then_some(())?;
        let mut others = (0..3).filter(|&other| other != model).map(|other| find(function, models[other]));
        let (a, b) = (loss(others.next()??), loss(others.next()??));
        let lower: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a.min(*b)).collect();
        Some(ln_ratio(&lower, &loss(find(function, models[model])?)))
    };
    let dead = |function: &str, model: usize| -> Option<Vec<f64>> {
        trained_as_reported.then_some(())?;
        let runs = &find(function, models[model])?.runs;
        Some(runs.iter().map(|run| f64::from(u8::from(run.dead))).collect())
    };
    let after = |function: &str, epoch: u32| -> Option<Vec<f64>> {
        (so_far_as_reported && settings.epochs >= epoch).then_some(())?;
        find(function, MODELS[1][0])?.runs.iter().map(|run| run.loss_after(epoch)).collect()
    };
    let deeper = |deep: usize| -> Option<Vec<f64>> {
        Some(ln_ratio(&loss(find(STEPS, MODELS[0][0])?), &loss(find(STEPS, MODELS[0][deep])?)))
    };
    let values = [
        best(SINC, 0),
        dead(SINC, 1),
        dead(SINC, 2),
        best(SINE, 1),
        dead(SINE, 2),
        best(STEPS, 1),
        dead(STEPS, 2),
        after(SINC, 5000).map(|losses| losses.iter().map(|loss| (loss / 0.0050).ln()).collect()),
        after(STEPS, 5500),
        deeper(1),
        deeper(2),
    ];
    CLAIMS.iter().zip(values).filter_map(|(claim, values)| Some(claim.judge(&values?))).collect()
}

fn closing_table(results: &[Results]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "target",
        "variance",
        "network",
        "parameters",
        "final loss: median [quartiles]",
        "best",
        "dead",
        "share dead (95 %)",
        "dead at start",
    ]);
    for result in results {
        let (dead, interval) = result.dead();
        let quartiles = quarters(&result.losses());
        table.add_row([
            result.target.name(),
            short(result.target.variance),
            result.network.name().to_owned(),
            thousands(result.network.count()),
            quartiles.map_or_else(String::new, |[low, middle, high]| {
                format!("{} [{}, {}]", short(middle), short(low), short(high))
            }),
            result.best_and_median().map_or_else(String::new, |(best, _)| short(best.fitted.loss)),
            format!("{dead} of {}", result.runs.len()),
            interval
                .map_or_else(String::new, |(low, high)| format!("{:.0} to {:.0} %", 100. * low, 100. * high)),
            result.count(|run| run.dead_at_start).to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fitting::Record;
    use flatland_statistics::Verdict;

    fn settings(arguments: &[&str]) -> Settings {
        let arguments = [&["simulate"], arguments].concat();
        let arguments = <crate::command::Arguments as clap::Parser>::parse_from(arguments);
        crate::settings::resolve(Simulate::PRESETS, &arguments).unwrap()
    }

    fn counts(settings: &Settings) -> Vec<(usize, i64)> {
        let nets = settings.networks.iter().map(|widths| network(widths, &Layer::Relu).unwrap());
        nets.map(|net| (net.parameters().len() / 2, net.count())).collect()
    }

    #[test]
    fn the_reports_networks_have_571_parameters_each() {
        assert_eq!(counts(&settings(&[])), [(2, 571), (5, 571), (7, 571)]);
        let notebook = settings(&["--preset", "notebook"]);
        assert_eq!(counts(&notebook), [(3, 573), (6, 574), (8, 451)]);
        for preset in ["paper", "notebook", "quick"] {
            let settings = settings(&["--preset", preset]);
            Simulate::check(&settings).unwrap();
            let name = |widths: &Vec<i64>| network(widths, &Layer::Relu).unwrap().name().to_owned();
            let names: Vec<String> = settings.networks.iter().map(name).collect();
            assert_eq!(names, MODELS[usize::from(preset == "notebook")]);
            assert!(settings.targets.iter().all(|f| [SINC, SINE, STEPS].contains(&f.to_string().as_str())));
        }
    }

    fn fitted(theta: Tensor, loss: f64) -> Fitted {
        Fitted { theta, epochs: 20_000, loss, gradient_norm: 0., records: Vec::new() }
    }

    #[test]
    fn a_leading_layer_of_one_unit_is_off_from_one_start_in_six() {
        // With w and b uniform in (-1, 1), w x + b < 0 on all of [-1.5, 1.49] has probability (1/1.49 + 1/1.5) / 8 = 0.1672.
        let target = Target::new(&"x".parse().unwrap(), settings(&[]).grid).unwrap();
        let dead = |widths: &[i64]| {
            let net = network(widths, &Layer::Relu).unwrap();
            let theta = || Tensor::zeros([net.count()], (Kind::Float, Device::Cpu));
            let one = |seed| OneSeed::new(&target, &net, seed, fitted(theta(), 1.)).unwrap().dead_at_start;
            (0..500).filter(|&seed| one(seed)).count() as f64 / 500.
        };
        // 500 starts scatter by 0.017.
        let share = dead(&[1, 1, 190, 1]);
        assert!((share - 0.1672).abs() < 0.05, "{share}");
        assert!(dead(&[1, 20, 1]) < 0.001, "twenty units in parallel are never all off");
    }

    #[test]
    fn dead_is_flat_against_the_target() {
        let target = Target::new(&"3*x".parse().unwrap(), settings(&[]).grid).unwrap();
        let net = network(&[1, 1], &Layer::Relu).unwrap();
        for (slope, dead) in
            [(0., true), (0.0299, true), (0.0301, false), (-0.0301, false), (f64::NAN, false)]
        {
            let theta = Tensor::from_slice(&[slope as f32, 5.]);
            let one = OneSeed::new(&target, &net, 0, fitted(theta, 1.)).unwrap();
            assert_eq!((one.dead, one.dead_at_start), (dead, false), "{slope}");
        }
    }

    #[test]
    fn a_network_that_is_done_keeps_its_loss() {
        let record = |epoch, loss| Record { epoch, loss, layers: Vec::new() };
        let records = vec![record(0, 3.), record(50, 2.)];
        let fitted = Fitted { epochs: 77, records, ..fitted(Tensor::new(), 1.) };
        let one = OneSeed { seed: 0, fitted, predictions: Vec::new(), dead: false, dead_at_start: false };
        let found = [0, 50, 60, 77, 100, 5000].map(|epoch| one.loss_after(epoch));
        assert_eq!(found, [Some(3.), Some(2.), None, Some(1.), Some(1.), Some(1.)]);
    }

    /// Eight seeds of each network on each target: the final losses, the loss after 5,000 and 5,500 epochs, how many are dead.
    fn verdicts(
        settings: &Settings,
        of: impl Fn(&str, &str) -> ([f64; 8], f64, usize),
    ) -> Vec<(&'static str, Verdict)> {
        let targets: Vec<Target> =
            settings.targets.iter().map(|f| Target::new(f, settings.grid).unwrap()).collect();
        let nets: Vec<Network> =
            settings.networks.iter().map(|w| network(w, &Layer::Relu).unwrap()).collect();
        let pairs = targets.iter().flat_map(|target| nets.iter().map(move |net| (target, net)));
        let results: Vec<Results> = pairs
            .map(|(target, network)| {
                let (losses, early, dead) = of(&target.name(), network.name());
                let runs = losses.iter().enumerate().map(|(index, &loss)| OneSeed {
                    seed: index as u64,
                    fitted: Fitted {
                        records: [5000, 5500]
                            .map(|epoch| Record {
                                epoch,
                                loss: early * (1. + 0.001 * index as f64),
                                layers: Vec::new(),
                            })
                            .into(),
                        ..fitted(Tensor::new(), loss)
                    },
                    predictions: Vec::new(),
                    dead: index < dead,
                    dead_at_start: false,
                });
                Results { target, network, runs: runs.collect() }
            })
            .collect();
        judge(settings, &results).iter().map(|outcome| (outcome.claim.id, outcome.verdict)).collect()
    }

    #[test]
    fn claims_on_known_losses() {
        use Verdict::{Contradicted, Inconclusive, Supported};
        let low = [0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17];
        let high = low.map(|loss| 2. * loss);
        // Half better, half worse, whatever the size.
        let mixed = [0.05, 0.06, 0.06, 0.06, 0.3, 0.3, 0.3, 0.3];
        let paper = settings(&[]);
        // By target and model: the final losses, and how many are dead.
        let found = [
            [(low, 0), (high, 8), (high, 4)],
            [(low, 0), (mixed, 0), (high, 0)],
            [(low, 0), (high, 0), (mixed, 8)],
        ];
        let of = |target: &str, net: &str| {
            let place = |names: [&str; 3], name: &str| names.iter().position(|n| *n == name).unwrap();
            let (losses, dead) = found[place([SINC, SINE, STEPS], target)][place(MODELS[0], net)];
            (losses, 1., dead)
        };
        let expected = [
            ("sinc-model-1-best", Supported),
            ("sinc-model-2-mean", Supported),
            ("sinc-model-3-mean", Inconclusive),
            ("sine-model-2-best", Inconclusive),
            ("sine-model-3-constant", Contradicted),
            ("steps-model-2-best", Contradicted),
            ("steps-model-3-constant", Supported),
            ("steps-5-layers-over-2", Contradicted),
            ("steps-7-layers-over-2", Inconclusive),
        ];
        assert_eq!(verdicts(&paper, of), expected);
        // Fewer epochs, or other points, than the report's: only ours is left.
        let short = Settings { epochs: 19_999, ..paper.clone() };
        assert_eq!(verdicts(&short, of), expected[7..]);
        let elsewhere = Settings { grid: Grid { from: -1., ..paper.grid }, ..paper.clone() };
        assert_eq!(verdicts(&elsewhere, of), expected[7..]);
        let two = Settings { networks: paper.networks[..2].to_vec(), ..paper.clone() };
        let left: Vec<&str> = verdicts(&two, of).into_iter().map(|(id, _)| id).collect();
        assert_eq!(left, ["sinc-model-2-mean", "steps-5-layers-over-2"]);
        let other = Settings { targets: vec!["x^2".parse().unwrap()], ..paper };
        assert_eq!(verdicts(&other, |_, _| (low, 1., 0)), []);
    }

    #[test]
    fn the_notebooks_numbers_are_claims_about_its_networks() {
        use Verdict::{Contradicted, Inconclusive, Supported};
        let notebook = settings(&["--preset", "notebook"]);
        let losses = [1.; 8];
        let early = |early: f64| {
            let found =
                verdicts(&notebook, |target, _| (losses, if target == SINC { early } else { 0.8 }, 8));
            let of = |id: &str| found.iter().find(|(found, _)| *found == id).map(|(_, verdict)| *verdict);
            assert_eq!(of("steps-1-1-190-1"), Some(Supported));
            assert_eq!(of("sinc-model-3-mean"), Some(Supported));
            assert_eq!((of("sine-model-2-best"), of("steps-5-layers-over-2")), (None, None));
            of("sinc-1-1-190-1")
        };
        // Seeds differ by 0.7 %: 0.0100 itself is the upper bound.
        let found = [0.005, 0.0098, 0.00996, 0.0101, 0.0026, 0.0024].map(|loss| early(loss).unwrap());
        assert_eq!(found, [Supported, Supported, Inconclusive, Contradicted, Supported, Contradicted]);
        let coarse = Settings { every: 300, ..notebook.clone() };
        assert!(coarse.recorded().all(|epoch| epoch != 5000));
    }
}
