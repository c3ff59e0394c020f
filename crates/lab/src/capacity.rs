//! Number of parameters against generalisation: the report's ten nets, and a wider grid across the interpolation threshold,
//! where double descent can show (Belkin et al. 2019, "Reconciling modern machine-learning practice and the classical
//! bias-variance trade-off"; Nakkiran et al. 2020, "Deep double descent").

use crate::curves::curve_table;
use crate::experiment::{Experiment, check_seeds, seeds_from};
use crate::images::{Images, PixelData, PixelSettings};
use crate::parallel::in_parallel;
use crate::progress::Stage;
use crate::run::{Numbers, Run};
use crate::summary::{mean_number, series, subtitle, thousands};
use crate::trial::{Both, Trained, Trial, describe, evaluate_both, stream_of, train_all};
use anyhow::{Context, Result, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::DataSetName;
use flatland_network::{
    Evaluation, Layer, Loss, Network, Optimiser, OptimiserSettings, Training, initialise,
};
use flatland_record::{Axis, Colour, Figure, Panel, Series, Table, cells};
use flatland_statistics::{Claim, LEVEL, Outcome, Rule, geometric_mean_interval, mean_interval};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `configs/capacity.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub dataset: DataSetName,
    pub seeds: u64,
    pub seed: u64,
    pub images: PixelSettings,
    pub report: Report,
    pub wide: Wide,
}

/// The report's nets.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Report {
    pub widths: Vec<[i64; 2]>,
    pub batch: i64,
    pub epochs: u32,
    pub optimiser: OptimiserSettings,
}

/// The grid across the interpolation threshold.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Wide {
    pub widths: Vec<i64>,
    pub hidden_layers: usize,
    pub train: usize,
    pub label_noise: f64,
    pub batch: i64,
    pub epochs: u32,
    pub stop_at_loss: f64,
    pub threshold_error: f64,
    pub optimiser: OptimiserSettings,
}

/// A trained net.
struct Fitted {
    seed: u64,
    net: String,
    parameters: i64,
    epochs: u32,
    /// Means over its last epoch, each example seen just before its step.
    running: Evaluation,
    /// With the final weights.
    end: Both,
}

impl Fitted {
    fn train_error(&self) -> f64 {
        error(self.end.train)
    }

    fn test_error(&self) -> f64 {
        error(self.end.test)
    }

    fn loss_gap(&self) -> f64 {
        self.end.test.loss - self.end.train.loss
    }

    fn error_gap(&self) -> f64 {
        self.test_error() - self.train_error()
    }
}

fn error(value: Evaluation) -> f64 {
    1. - value.accuracy.unwrap_or(f64::NAN)
}

/// The experiment.
#[derive(Debug)]
pub struct Capacity;

impl Experiment for Capacity {
    const NAME: &'static str = "capacity";
    const ABOUT: &'static str = "Does a network with more parameters generalise worse? Loss, accuracy and gap by parameter \
        count: the report's ten nets, and a grid across the interpolation threshold.";
    const EXAMPLES: &'static str = "Examples:
  capacity --preset quick --dataset digits           a quarter of a minute, no files needed
  capacity --seeds 5                                 the report's nets and double descent, with error bars
  capacity --set report.optimiser.lr=0.0001          the notebook's learning rate
  capacity --set wide.label_noise=0 --set wide.train=4000
  capacity --resume                                  after Ctrl-C or a crash";
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 150.), ("quick", 15.)];
    const PRESETS: &'static str = include_str!("../../../configs/capacity.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        let Settings { images, report, wide, .. } = settings;
        let most = images.flat().most();
        images.flat().check()?;
        ensure!(!report.widths.is_empty(), "report.widths must name at least one net, found none");
        ensure!(report.epochs > 0, "report.epochs must be at least 1, found 0");
        for (index, [a, b]) in report.widths.iter().enumerate() {
            ensure!(*a > 0 && *b > 0, "report.widths must be at least 1, found [{a}, {b}]");
            let twice = report.widths[..index].contains(&[*a, *b]);
            ensure!(!twice, "report.widths must differ, found [{a}, {b}] twice");
        }
        report.optimiser.check().context("report.optimiser")?;
        Training::check_batch(report.batch, most).context("report.batch")?;
        for (index, width) in wide.widths.iter().enumerate() {
            ensure!(*width > 0, "wide.widths must be at least 1, found {width}");
            ensure!(!wide.widths[..index].contains(width), "wide.widths must differ, found {width} twice");
        }
        ensure!(wide.hidden_layers > 0, "wide.hidden_layers must be at least 1, found 0");
        ensure!(wide.epochs > 0, "wide.epochs must be at least 1, found 0");
        ensure!(
            (1..=most).contains(&(wide.train as i64)),
            "wide.train must lie between 1 and the {most} training images, found {}",
            wide.train
        );
        for (key, share) in [("label_noise", wide.label_noise), ("threshold_error", wide.threshold_error)] {
            ensure!((0. ..=1.).contains(&share), "wide.{key} must lie between 0 and 1, found {share}");
        }
        ensure!(wide.stop_at_loss >= 0., "wide.stop_at_loss must be 0 or more, found {}", wide.stop_at_loss);
        wide.optimiser.check().context("wide.optimiser")?;
        Training::check_batch(wide.batch, wide.train as i64).context("wide.batch")?;
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        seeds_from(settings.seed, settings.seeds)
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let data = PixelData::load(run, settings.dataset, settings.images.flat())?;
        let images = [data.images(run, &data.train, &data.test, data.prepared.clone())?];

        // The report's ten.
        let networks = settings.report.networks()?;
        let trials = settings.trials(&networks);
        let trained = train_all(run, &networks, &images, &trials)?;
        let keys = trials.iter().map(|trial| {
            let net = &networks[trial.network];
            cells![trial.seed, net.name(), net.count()].to_vec()
        });
        let curves = trained.iter().map(|one| one.curve.as_slice());
        let table = curve_table(&["seed", "net", "parameters"], keys.zip(curves))?;
        run.write_table("training", &table, "the report's nets: loss and accuracy by epoch")?;
        let ten = fitted(&networks, &trials, &trained);
        run.write_table("capacity", &table_of(&ten)?, "the report's nets at their end, by parameters")?;
        run.write_figure(
            "capacity",
            &capacity_figure(settings, run, &ten),
            "loss, accuracy and gap by parameters",
        )?;

        // The wider grid.
        let grid = fit_grid(settings, run, &data, &images[0])?;
        if !grid.is_empty() {
            run.write_table("wide", &table_of(&grid)?, "the wider grid at its end, by parameters")?;
            run.write_figure(
                "wide",
                &wide_figure(settings, run, &grid),
                "the same across the interpolation threshold",
            )?;
        }
        run.write_claims(judge(settings, &ten, &grid))?;
        Ok(closing_table(settings, &ten, &grid))
    }
}

impl Report {
    /// 784-a-b-10 with ReLU.
    fn networks(&self) -> Result<Vec<Network>> {
        self.widths.iter().map(|[a, b]| Ok(Network::dense(&[784, *a, *b, 10], &Layer::Relu)?)).collect()
    }
}

impl Wide {
    fn networks(&self) -> Result<Vec<Network>> {
        let network = |&width: &i64| {
            let hidden = std::iter::repeat_n(width, self.hidden_layers);
            let widths: Vec<i64> = std::iter::once(784).chain(hidden).chain([10]).collect();
            Ok(Network::dense(&widths, &Layer::Relu)?)
        };
        self.widths.iter().map(network).collect()
    }
}

impl Settings {
    fn trials(&self, networks: &[Network]) -> Vec<Trial> {
        let Report { batch, epochs, optimiser, .. } = self.report;
        let trial = |seed: u64, index: usize| Trial {
            name: format!("seed{seed}-{}", networks[index].name()),
            network: index,
            images: 0,
            seed,
            stream: stream_of(networks[index].name()),
            optimiser,
            batch,
            epochs,
            stop_at: None,
            snapshots: false,
        };
        let seeds = Capacity::seeds(self).into_iter();
        seeds.flat_map(|seed| (0..networks.len()).map(move |index| trial(seed, index))).collect()
    }

    fn subtitle(&self, run: &Run, more: &str) -> String {
        subtitle::<Capacity>(self, run, &format!("dense networks on {}", self.dataset), more)
    }
}

fn fitted(networks: &[Network], trials: &[Trial], trained: &[Trained]) -> Vec<Fitted> {
    let one = |(trial, trained): (&Trial, &Trained)| {
        let last = trained.curve.last()?;
        let net = &networks[trial.network];
        Some(Fitted {
            seed: trial.seed,
            net: net.name().to_owned(),
            parameters: net.count(),
            epochs: last.epoch,
            running: last.train,
            end: trained.end,
        })
    };
    trials.iter().zip(trained).filter_map(one).collect()
}

/// Every width of every seed, the widest first; returned by seed and width.
fn fit_grid(settings: &Settings, run: &Run, data: &PixelData, all: &Images) -> Result<Vec<Fitted>> {
    let wide = &settings.wide;
    let networks = wide.networks()?;
    let seeds = Capacity::seeds(settings);
    let noisy = |&seed: &u64| {
        let labels = data.random_labels(wide.train, wide.label_noise, seed);
        let noise = wide.label_noise;
        all.relabelled(
            &labels,
            format!("{}; labels random with probability {noise} by seed {seed}", data.prepared),
        )
    };
    let images = seeds.iter().map(noisy).collect::<Result<Vec<_>>>()?;
    let mut jobs: Vec<(usize, usize)> =
        (0..seeds.len()).flat_map(|seed| (0..networks.len()).map(move |net| (seed, net))).collect();
    jobs.sort_by_key(|&(seed, net)| (std::cmp::Reverse(networks[net].count()), seed));

    let stage = run.progress.stage("wider grid", jobs.len() as u64);
    let contexts = run.contexts(jobs.len(), || Ok(images.iter().map(Images::share).collect::<Vec<_>>()))?;
    let mut grid = in_parallel(contexts, &jobs, |images, &(seed, net)| {
        fit(run, &stage, &networks[net], &images[seed], seeds[seed], wide)
    })?;
    grid.sort_by_key(|fitted| (fitted.seed, fitted.parameters));
    Ok(grid)
}

/// Trains until the training loss is as low as asked, or not a number, and evaluates once: test loss after every epoch would cost more than
/// training.
fn fit(
    run: &Run,
    stage: &Stage,
    network: &Network,
    images: &Images,
    seed: u64,
    wide: &Wide,
) -> Result<Fitted> {
    let content = serde_json::json!({
        "network": describe(network), "seed": seed, "prepared": images.prepared, "optimiser": wide.optimiser,
        "train": images.train.count(), "test": images.test.count(),
        "batch": wide.batch, "epochs": wide.epochs, "stop_at_loss": wide.stop_at_loss,
    });
    let mut numbers = run.kept(&content, || {
        let stream = stream_of(network.name());
        let mut training = Training {
            network,
            loss: Loss::CrossEntropy,
            examples: &images.train,
            batch: wide.batch,
            stream: (seed, stream),
            theta: initialise(network, seed, stream, Kind::Float, run.device.device)?,
            optimiser: Optimiser::new(wide.optimiser)?,
            epochs: 0,
        };
        let mut running = Evaluation { loss: f64::INFINITY, accuracy: None };
        while training.epochs < wide.epochs && running.loss > wide.stop_at_loss {
            run.check_interrupted()?;
            let epoch = training.epoch().with_context(|| format!("net {} failed", network.name()))?;
            running = Evaluation { loss: epoch.loss, accuracy: epoch.accuracy };
        }
        let end = evaluate_both(network, &training.theta, images)?;
        let pairs =
            [running, end.train, end.test].map(|value| [value.loss, value.accuracy.unwrap_or(f64::NAN)]);
        let row = [&pairs.concat()[..], &[f64::from(training.epochs)]].concat();
        Ok(Numbers::from([("fit".to_owned(), Tensor::f_from_slice(&row)?)]))
    })?;
    let row = numbers.remove("fit").context("a net's numbers are missing")?;
    let row = Vec::<f64>::try_from(row)?;
    let &[loss, accuracy, train_loss, train_accuracy, test_loss, test_accuracy, epochs] = row.as_slice()
    else {
        anyhow::bail!("a net's numbers are damaged: {} of them", row.len());
    };
    stage.advance(1, format!("{}: {epochs} epochs, training loss {train_loss:.4}", network.name()));
    let value = |loss: f64, accuracy: f64| Evaluation { loss, accuracy: Some(accuracy) };
    Ok(Fitted {
        seed,
        net: network.name().to_owned(),
        parameters: network.count(),
        epochs: epochs as u32,
        running: value(loss, accuracy),
        end: Both { train: value(train_loss, train_accuracy), test: value(test_loss, test_accuracy) },
    })
}

fn table_of(nets: &[Fitted]) -> Result<Table> {
    let mut table = Table::new(&[
        "seed",
        "net",
        "parameters",
        "epochs",
        "last_epoch_train_loss_nats",
        "last_epoch_train_accuracy",
        "train_loss_nats",
        "train_accuracy",
        "test_loss_nats",
        "test_accuracy",
        "loss_gap_nats",
        "error_gap",
    ]);
    for net in nets {
        let Both { train, test } = net.end;
        table.row(cells![
            net.seed,
            net.net.as_str(),
            net.parameters,
            net.epochs,
            net.running.loss,
            net.running.accuracy,
            train.loss,
            train.accuracy,
            test.loss,
            test.accuracy,
            net.loss_gap(),
            net.error_gap()
        ])?;
    }
    Ok(table)
}

/// Each count of parameters once, rising.
fn counts(nets: &[Fitted]) -> Vec<i64> {
    let mut counts: Vec<i64> = nets.iter().map(|net| net.parameters).collect();
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// The mean over seeds of a value, by parameters. `factors`: of a value that varies by factors, geometric.
fn by_parameters(
    nets: &[Fitted],
    name: &str,
    colour: Colour,
    scale: f64,
    factors: bool,
    of: fn(&Fitted) -> f64,
) -> Series {
    let points = counts(nets).into_iter().filter_map(|count| {
        let values: Vec<f64> = nets.iter().filter(|net| net.parameters == count).map(of).collect();
        let interval = if factors { geometric_mean_interval } else { mean_interval };
        Some((count as f64, interval(&values, LEVEL)?))
    });
    series(name, colour, scale, points).with_points()
}

/// Loss, error, and the gaps of both, by parameters.
fn panels(nets: &[Fitted]) -> [Panel; 4] {
    let panel = |title: &str, y: Axis| Panel::new(title, Axis::log10("parameters"), y);
    let line = |name, colour, scale, of| by_parameters(nets, name, colour, scale, false, of);
    [
        panel("loss", Axis::log10("cross-entropy (nats)"))
            .with(by_parameters(nets, "train", Colour::Blue, 1., true, |net| net.end.train.loss))
            .with(
                by_parameters(nets, "test", Colour::Vermillion, 1., true, |net| net.end.test.loss).dashed(),
            ),
        panel("classification error", Axis::linear("error (%)"))
            .with(line("train", Colour::Blue, 100., Fitted::train_error))
            .with(line("test", Colour::Vermillion, 100., Fitted::test_error).dashed()),
        panel("gap in loss", Axis::linear("test minus training loss (nats)")).with(line(
            "",
            Colour::Green,
            1.,
            Fitted::loss_gap,
        )),
        panel("gap in error", Axis::linear("test minus training error (points)")).with(line(
            "",
            Colour::Green,
            100.,
            Fitted::error_gap,
        )),
    ]
}

fn capacity_figure(settings: &Settings, run: &Run, nets: &[Fitted]) -> Figure {
    let Report { batch, epochs, ref widths, .. } = settings.report;
    let more = format!("{} nets 784-a-b-10 · batch {batch}, {epochs} epochs · final weights", widths.len());
    let subtitle = settings.subtitle(run, &more);
    Figure::new("Generalisation against the number of parameters", subtitle, panels(nets).to_vec())
}

/// The smallest count of parameters whose mean training error is no more than what counts as none.
fn threshold(settings: &Settings, nets: &[Fitted]) -> Option<i64> {
    let fits = |&count: &i64| {
        let errors = nets.iter().filter(|net| net.parameters == count).map(Fitted::train_error);
        let errors: Vec<f64> = errors.collect();
        mean_interval(&errors, LEVEL).is_some_and(|error| error.mean <= settings.wide.threshold_error)
    };
    counts(nets).into_iter().find(fits)
}

fn wide_figure(settings: &Settings, run: &Run, nets: &[Fitted]) -> Figure {
    let Wide { hidden_layers, train, label_noise, threshold_error, .. } = settings.wide;
    // Where there are as many parameters as outputs to fit (Belkin et al. 2019).
    let equations = 10 * train as i64;
    let shown = counts(nets);
    let within = shown.first() < Some(&equations) && Some(&equations) < shown.last();
    let panels = panels(nets).map(|mut panel| {
        if let Some(count) = threshold(settings, nets) {
            panel = panel.with_mark(count as f64, format!("training error ≤ {} %", 100. * threshold_error));
        }
        if within { panel.with_mark(equations as f64, "10 n") } else { panel }
    });
    let layers =
        if hidden_layers == 1 { "one hidden layer".into() } else { format!("{hidden_layers} hidden layers") };
    let n = thousands(train as i64);
    let more = format!("{layers} · n = {n} images, {} % random labels · final weights", 100. * label_noise);
    Figure::new("Across the interpolation threshold", settings.subtitle(run, &more), panels.to_vec())
}

/// Fixed before the data.
const CLAIMS: [Claim; 6] = [
    Claim {
        id: "gap-grows",
        statement: "The more parameters, the larger the gap between training and test loss",
        source: "report",
        statistic: "test minus training loss of the largest net minus that of the smallest (nats)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "test-loss-falls",
        statement: "For all that, the largest net has a lower test loss than the smallest",
        source: "report",
        statistic: "test loss of the largest net minus that of the smallest (nats)",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "accuracy-rises",
        statement: "The largest net classifies more test images rightly than the smallest",
        source: "report",
        statistic: "test accuracy of the largest net minus that of the smallest (fractions)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "second-descent",
        statement: "Beyond the interpolation threshold the test error falls again",
        source: "Belkin et al. 2019",
        statistic: "test error at the threshold (smallest net that fits its examples) minus at the largest net (fractions)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "peak",
        statement: "With wrong labels, the test error at the interpolation threshold is above that of a smaller net",
        source: "Nakkiran et al. 2020",
        statistic: "test error at the threshold minus the lowest of the nets below it (fractions)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "loss-peak",
        statement: "The test loss is highest at the interpolation threshold, by a factor of two in parameters at most",
        source: "Belkin et al. 2019",
        statistic: "ln of the parameters of the net with the highest test loss over those at the threshold (no unit)",
        rule: Rule::MeanWithin(-std::f64::consts::LN_2, std::f64::consts::LN_2),
    },
];

/// One value a seed. Where no net, or every net, fits its examples there is no threshold, and what is said of it stays open.
fn judge(settings: &Settings, ten: &[Fitted], grid: &[Fitted]) -> Vec<Outcome> {
    let by_seed = |nets: &[Fitted], of: &dyn Fn(&[&Fitted]) -> f64| -> Vec<f64> {
        let mine = |seed: u64| {
            let mut nets: Vec<&Fitted> = nets.iter().filter(|net| net.seed == seed).collect();
            nets.sort_by_key(|net| net.parameters);
            nets
        };
        Capacity::seeds(settings).into_iter().map(|seed| of(&mine(seed))).collect()
    };
    let rise = |of: fn(&Fitted) -> f64| {
        by_seed(ten, &|nets| match nets {
            [smallest, .., largest] => of(largest) - of(smallest),
            _ => f64::NAN,
        })
    };
    let at_threshold = |nets: &[&Fitted]| -> Option<usize> {
        let fits = |net: &&Fitted| net.train_error() <= settings.wide.threshold_error;
        nets.iter().position(fits).filter(|&index| index > 0 && index + 1 < nets.len())
    };
    let second = by_seed(grid, &|nets| {
        let Some(index) = at_threshold(nets) else { return f64::NAN };
        nets[index].test_error() - nets[nets.len() - 1].test_error()
    });
    let peak = by_seed(grid, &|nets| {
        let Some(index) = at_threshold(nets) else { return f64::NAN };
        let below = nets[..index].iter().map(|net| net.test_error());
        nets[index].test_error() - below.fold(f64::INFINITY, f64::min)
    });
    let loss_peak = by_seed(grid, &|nets| {
        let Some(index) = at_threshold(nets) else { return f64::NAN };
        let highest = nets.iter().max_by(|a, b| a.end.test.loss.total_cmp(&b.end.test.loss));
        highest.map_or(f64::NAN, |net| (net.parameters as f64 / nets[index].parameters as f64).ln())
    });
    let wide = !grid.is_empty();
    let values = [
        Some(rise(Fitted::loss_gap)),
        Some(rise(|net| net.end.test.loss)),
        Some(rise(|net| 1. - net.test_error())),
        wide.then_some(second),
        (wide && settings.wide.label_noise > 0.).then_some(peak),
        wide.then_some(loss_peak),
    ];
    CLAIMS.iter().zip(values).filter_map(|(claim, values)| Some(claim.judge(&values?))).collect()
}

fn closing_table(settings: &Settings, ten: &[Fitted], grid: &[Fitted]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["net", "parameters", "train loss", "test loss", "train error", "test error", "epochs"]);
    let mut rows = |nets: &[Fitted], note: &dyn Fn(i64) -> &'static str| {
        for count in counts(nets) {
            let nets: Vec<&Fitted> = nets.iter().filter(|net| net.parameters == count).collect();
            let number = |of: fn(&Fitted) -> f64, scale, decimals, unit| {
                mean_number(&nets.iter().map(|net| of(net)).collect::<Vec<_>>(), scale, decimals, unit)
            };
            table.add_row([
                format!("{}{}", nets[0].net, note(count)),
                thousands(count),
                number(|net| net.end.train.loss, 1., 4, ""),
                number(|net| net.end.test.loss, 1., 4, ""),
                number(Fitted::train_error, 100., 2, " %"),
                number(Fitted::test_error, 100., 2, " %"),
                number(|net| f64::from(net.epochs), 1., 0, ""),
            ]);
        }
    };
    rows(ten, &|_| "");
    let first = threshold(settings, grid);
    rows(grid, &|count| if Some(count) == first { " (threshold)" } else { "" });
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_statistics::Verdict;

    fn settings(arguments: &[&str]) -> Settings {
        let arguments = [&["capacity"], arguments].concat();
        let arguments = <crate::command::Arguments as clap::Parser>::parse_from(arguments);
        crate::settings::resolve(Capacity::PRESETS, &arguments).unwrap()
    }

    fn net(seed: u64, parameters: i64, [train_error, test_error, test_loss]: [f64; 3]) -> Fitted {
        let value = |loss: f64, error: f64| Evaluation { loss, accuracy: Some(1. - error) };
        let end = Both { train: value(0.1, train_error), test: value(test_loss, test_error) };
        Fitted { seed, net: parameters.to_string(), parameters, epochs: 1, running: end.train, end }
    }

    /// Three seeds that differ a little, given as (training error, test error, test loss) of nets of 100, 200, 300, …
    fn nets(rows: &[[f64; 3]]) -> Vec<Fitted> {
        let mine = |seed: u64| {
            let shift = 1e-3 * seed as f64;
            let one = move |(index, row): (usize, &[f64; 3])| {
                net(seed, 100 * (index as i64 + 1), [row[0], row[1] + shift * index as f64, row[2]])
            };
            rows.iter().enumerate().map(one).collect::<Vec<_>>()
        };
        (0..3).flat_map(mine).collect()
    }

    #[test]
    fn the_reports_nets_have_the_reports_parameters() {
        let networks = settings(&[]).report.networks().unwrap();
        let counts: Vec<i64> = networks.iter().map(Network::count).collect();
        assert_eq!((counts.len(), counts[0], counts[4], counts[9]), (10, 4079, 100_710, 491_360));
        assert!(counts.is_sorted());
        let wide = settings(&["--set", "wide.hidden_layers=2", "--set", "wide.widths=[7]"]).wide;
        assert_eq!(wide.networks().unwrap()[0].name(), "784-7-7-10");
    }

    #[test]
    fn claims_on_known_curves() {
        use Verdict::{Contradicted, Inconclusive, Supported};
        let settings = settings(&["--seeds", "3"]);
        let verdicts = |rows: &[[f64; 3]]| -> Vec<Verdict> {
            let nets = nets(rows);
            judge(&settings, &nets, &nets).iter().map(|outcome| outcome.verdict).collect()
        };
        // Double descent: down, up to a peak where the training error vanishes, and down again.
        let double = [[0.5, 0.5, 2.], [0.2, 0.3, 1.5], [0.005, 0.4, 4.], [0., 0.2, 1.2], [0., 0.1, 1.]];
        // The gap falls with the test loss.
        assert_eq!(verdicts(&double), [Contradicted, Supported, Supported, Supported, Supported, Supported]);
        assert_eq!(threshold(&settings, &nets(&double)), Some(300));
        // One descent of the loss, and an error that is no better beyond the threshold than at it, nor worse than before.
        let single = [[0.5, 0.5, 6.], [0.2, 0.4, 1.5], [0.005, 0.3, 1.], [0., 0.3, 1.], [0., 0.4, 5.]];
        let found = verdicts(&single);
        assert_eq!(found, [Contradicted, Supported, Supported, Contradicted, Contradicted, Contradicted]);
        let worse = [[0.5, 0.5, 1.], [0.4, 0.6, 2.]];
        assert_eq!(verdicts(&worse)[..3], [Supported, Contradicted, Contradicted]);
        // No net fits its examples: nothing can be said of the threshold.
        let none = [[0.5, 0.5, 2.], [0.4, 0.4, 1.], [0.3, 0.3, 1.]];
        assert_eq!(verdicts(&none)[3..], [Inconclusive; 3]);
        assert_eq!(threshold(&settings, &nets(&none)), None);
    }
}
