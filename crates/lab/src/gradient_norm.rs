//! The norm of the gradient in the course of training: whole and by layer, from several seeds, and where it spikes.

use crate::experiment::{Experiment, check_seeds, is_preset, seeds_from};
use crate::fitting::{Fit, Fitted, Grid, Record, check, fit_all, network};
use crate::run::Run;
use crate::summary::{mean_number, quartiles, short, subtitle};
use anyhow::{Context, Result, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::Function;
use flatland_network::{Layer, Network, OptimiserSettings};
use flatland_record::{Axis, Cell, Colour, Figure, Marker, Panel, Series, Table, cells};
use flatland_statistics::{Claim, Outcome, Rule, geometric_mean_interval, median};
use serde::{Deserialize, Serialize};

/// `configs/gradient-norm.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub target: Function,
    pub widths: Vec<i64>,
    pub seeds: u64,
    pub seed: u64,
    pub epochs: u32,
    pub grid: Grid,
    pub optimiser: OptimiserSettings,
    pub spikes: SpikeSettings,
}

/// What counts as a spike.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SpikeSettings {
    pub window: usize,
    pub factor: f64,
}

/// A norm far above those around it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spike {
    /// Of its highest norm.
    epoch: usize,
    /// There.
    norm: f64,
    /// Of the norms around it.
    median: f64,
}

impl SpikeSettings {
    /// The spikes of the norms of successive epochs, in order: those above the bound less than half a window apart are one, its
    /// highest epoch counts. Nearer to an end than half the window nothing is judged: the fall from the initial weights is no
    /// spike.
    fn find(&self, norms: &[f64]) -> Vec<Spike> {
        let half = self.window / 2;
        let mut spikes: Vec<Spike> = Vec::new();
        let mut last_above = None;
        for epoch in half..norms.len().saturating_sub(half) {
            let norm = norms[epoch];
            let around = median(&norms[epoch - half..=epoch + half]);
            let Some(median) = around.filter(|median| norm > self.factor * median) else { continue };
            let spike = Spike { epoch, norm, median };
            let near = last_above.is_some_and(|last| epoch - last < half);
            match spikes.last_mut() {
                Some(last) if near && last.norm >= norm => {}
                Some(last) if near => *last = spike,
                _ => spikes.push(spike),
            }
            last_above = Some(epoch);
        }
        spikes
    }
}

/// A seed with everything that came out of it.
struct Course<'a> {
    seed: u64,
    records: &'a [Record],
    /// Whole norms, one an epoch.
    norms: Vec<f64>,
    spikes: Vec<Spike>,
}

/// More norms than this would be no table.
const MOST_ROWS: u64 = 10_000_000;

/// The experiment.
#[derive(Debug)]
pub struct GradientNorm;

impl Experiment for GradientNorm {
    const NAME: &'static str = "gradient-norm";
    const ABOUT: &'static str = "How large is the gradient in the course of training, whole and by layer? Does it shrink as the \
        loss falls, and where does it spike?";
    const EXAMPLES: &'static str = "Examples:
  gradient-norm --preset quick                  a second
  gradient-norm                                 the report's settings, 32 seeds as one stack
  gradient-norm --set 'target=\"sign(sin(5*PI*x))\"' --set epochs=20000
  gradient-norm --resume                        after Ctrl-C or a crash";
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 2.), ("quick", 1.)];
    const PRESETS: &'static str = include_str!("../../../configs/gradient-norm.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        settings.network()?;
        let (epochs, SpikeSettings { window, factor }) = (settings.epochs, settings.spikes);
        check(settings.grid, std::slice::from_ref(&settings.target), &settings.optimiser, epochs)?;
        let rows = settings.seeds * u64::from(epochs);
        ensure!(rows <= MOST_ROWS, "seeds times epochs must be at most {MOST_ROWS}, found {rows}");
        ensure!(window >= 3 && window % 2 == 1, "spikes.window must be odd and at least 3, found {window}");
        ensure!(
            factor > 1. && factor.is_finite(),
            "spikes.factor must be above 1 and finite, found {factor}"
        );
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        seeds_from(settings.seed, settings.seeds)
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let network = settings.network()?;
        let seeds = Self::seeds(settings);
        let Settings { target, grid, optimiser, epochs, .. } = settings;
        let fit = Fit::new(&network, target, *grid, &seeds, *optimiser, *epochs);
        let fit = Fit { every: 1, gradients: true, ..fit };
        let fitted: Vec<Fitted> = fit_all(run, &[fit])?.into_iter().flatten().collect();
        let courses: Vec<Course> = seeds
            .iter()
            .zip(&fitted)
            .map(|(&seed, fitted)| {
                let norms: Vec<f64> = fitted.records.iter().map(Record::gradient_norm).collect();
                let spikes = settings.spikes.find(&norms);
                Course { seed, records: &fitted.records, norms, spikes }
            })
            .collect();

        let table = gradient_table(&network, &courses)?;
        run.write_table("gradient", &table, "loss and gradient norm by epoch, each seed")?;
        run.write_table("spikes", &spike_table(&courses)?, "where the norm spikes, each seed")?;
        let figure = gradient_figure(settings, run, &network, &courses);
        run.write_figure("gradient", &figure, "loss and gradient norm by epoch")?;
        let figure = layer_figure(settings, run, &network, &courses);
        run.write_figure("layers", &figure, "gradient norm of each layer by epoch")?;
        let figure = spike_figure(settings, run, &network, &courses);
        run.write_figure("spikes", &figure, "when each seed's norm spikes, and how high")?;
        run.write_claims(judge(settings, &courses))?;
        Ok(closing_table(&courses))
    }
}

impl Settings {
    fn network(&self) -> Result<Network> {
        network(&self.widths, &Layer::LeakyRelu).context("widths")
    }

    fn subtitle(&self, run: &Run, network: &Network, more: &str) -> String {
        let subject =
            format!("{} with LeakyReLU, {} parameters, on {}", network.name(), network.count(), self.target);
        subtitle::<GradientNorm>(self, run, &subject, more)
    }
}

/// The networks compute in f32: more digits would say nothing.
fn gradient_table(network: &Network, courses: &[Course]) -> Result<Table> {
    let layers: Vec<String> =
        (1..=network.parameters().len() / 2).map(|layer| format!("gradient_norm_layer_{layer}")).collect();
    let mut columns = vec!["seed", "epoch", "mean_squared_error", "gradient_norm"];
    columns.extend(layers.iter().map(String::as_str));
    let mut table = Table::new(&columns);
    for course in courses {
        for (record, &norm) in course.records.iter().zip(&course.norms) {
            let whole = cells![course.seed, record.epoch, record.loss as f32, norm as f32];
            table.row(whole.into_iter().chain(record.layers.iter().map(|&norm| Cell::from(norm as f32))))?;
        }
    }
    Ok(table)
}

fn spike_table(courses: &[Course]) -> Result<Table> {
    let mut table =
        Table::new(&["seed", "epoch", "gradient_norm", "median_norm_around", "mean_squared_error"]);
    for course in courses {
        for spike in &course.spikes {
            let loss = course.records[spike.epoch].loss;
            let [norm, median, loss] = [spike.norm, spike.median, loss].map(|value| value as f32);
            table.row(cells![course.seed, spike.epoch as u64, norm, median, loss])?;
        }
    }
    Ok(table)
}

/// Points that a figure can tell apart: of more epochs than this, every n-th is drawn where many seeds are summed up.
const DRAWN: usize = 400;

/// For each drawn epoch the values of all seeds.
fn over_seeds<'a>(
    courses: &'a [Course],
    of: impl Fn(&Course, usize) -> f64 + 'a,
) -> impl Iterator<Item = (f64, Vec<f64>)> + 'a {
    let epochs = courses.iter().map(|course| course.norms.len()).min().unwrap_or(0);
    let every = epochs.div_ceil(DRAWN).max(1);
    (0..epochs)
        .step_by(every)
        .map(move |epoch| (epoch as f64, courses.iter().map(|course| of(course, epoch)).collect()))
}

/// All seeds as median and quartiles, and the first one as it went, with its spikes.
fn gradient_figure(settings: &Settings, run: &Run, network: &Network, courses: &[Course]) -> Figure {
    let epoch = || Axis::whole("epoch").with_range(0., f64::from(settings.epochs));
    let mut loss = Panel::new("loss", epoch(), Axis::linear("mean squared error"));
    let mut norm = Panel::new("gradient", epoch(), Axis::log10("2-norm of the gradient"));
    if courses.len() > 1 {
        let all = "all seeds: median, quartiles";
        loss =
            loss.with(quartiles(all, Colour::Blue, over_seeds(courses, |course, e| course.records[e].loss)));
        norm = norm.with(quartiles(all, Colour::Blue, over_seeds(courses, |course, e| course.norms[e])));
    }
    if let Some(course) = courses.first() {
        let name = format!("seed {}", course.seed);
        let line = |values: &mut dyn Iterator<Item = f64>| {
            let points = values.enumerate().map(|(epoch, value)| (epoch as f64, value)).collect();
            Series::line(name.as_str(), Colour::Vermillion, points)
        };
        loss = loss.with(line(&mut course.records.iter().map(|record| record.loss)));
        norm = norm.with(line(&mut course.norms.iter().copied()));
        if !course.spikes.is_empty() {
            let points = course.spikes.iter().map(|spike| (spike.epoch as f64, spike.norm)).collect();
            let name = format!("seed {}: spikes", course.seed);
            norm = norm.with(Series::scatter(name, Colour::Black, points).with_marker(Marker::TriangleDown));
        }
    }
    let mut figure = Figure::new(
        "Loss and gradient norm in training",
        settings.subtitle(run, network, ""),
        vec![loss, norm],
    );
    "quartiles over seeds".clone_into(&mut figure.band_meaning);
    figure.columns = Some(1);
    figure
}

fn layer_figure(settings: &Settings, run: &Run, network: &Network, courses: &[Course]) -> Figure {
    let mut panel = Panel::new("", Axis::whole("epoch"), Axis::log10("2-norm of the layer's gradient"));
    for layer in 0..network.parameters().len() / 2 {
        let shape = &network.parameters()[2 * layer].shape;
        let name = format!("layer {}: {} to {}", layer + 1, shape[1], shape[0]);
        let values = over_seeds(courses, move |course, epoch| course.records[epoch].layers[layer]);
        let medians = values.map(|(epoch, values)| (epoch, median(&values).unwrap_or(f64::NAN))).collect();
        panel = panel.with(Series::line(name, Colour::nth(layer), medians));
    }
    let more = "median over seeds of the norm over a layer's weights and biases";
    Figure::new("Gradient norm by layer", settings.subtitle(run, network, more), vec![panel])
}

fn spike_figure(settings: &Settings, run: &Run, network: &Network, courses: &[Course]) -> Figure {
    let spikes: Vec<(f64, f64, f64)> = courses
        .iter()
        .flat_map(|course| {
            let at = move |spike: &Spike| {
                (spike.epoch as f64, course.seed as f64, (spike.norm / spike.median).log10())
            };
            course.spikes.iter().map(at)
        })
        .collect();
    let points = spikes.iter().map(|&(epoch, seed, _)| (epoch, seed)).collect();
    let heights = spikes.iter().map(|&(.., height)| height).collect();
    let (first, last) = (settings.seed as f64, (settings.seed + settings.seeds - 1) as f64);
    let panel = Panel::new(
        "",
        Axis::whole("epoch").with_range(0., f64::from(settings.epochs)),
        Axis::whole("seed").with_range(first - 0.5, last + 0.5),
    )
    .with_colour_bar(Axis::linear("log10 of norm / median around it"))
    .with(Series::scatter("", Colour::Black, points).with_values(heights));
    let SpikeSettings { window, factor } = settings.spikes;
    let more = format!("norm over {factor} times the median of {window} epochs");
    Figure::new("Spikes of the gradient norm", settings.subtitle(run, network, &more), vec![panel])
}

/// Fixed before the data.
const CLAIMS: [Claim; 6] = [
    Claim {
        id: "rises",
        statement: "The gradient norm rises near epoch 750: it is larger from there to epoch 1,500 than from 100 to 700",
        source: "report",
        statistic: "log10 of the median norm of epochs 750 to 1,500 over that of epochs 100 to 700",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "spikes",
        statement: "The gradient norm spikes",
        source: "report",
        statistic: "1 if the seed's norm has a spike after epoch 750, else 0",
        rule: Rule::ShareAbove(0.5),
    },
    Claim {
        id: "late-peak",
        statement: "The highest norm after epoch 100 comes in the last quarter of training (the report's near 3,250 of 4,000)",
        source: "report",
        statistic: "1 if it does, else 0",
        rule: Rule::ShareAbove(0.5),
    },
    Claim {
        id: "plateau",
        statement: "The loss stands still, within 5 %, from epoch 1,600 to 2,800",
        source: "notebook",
        statistic: "highest minus lowest loss from epoch 1,600 to 2,800, as a share of the loss of epoch 1,600",
        rule: Rule::MedianBelow(0.05),
    },
    Claim {
        id: "loss-3600",
        statement: "The loss at epoch 3,600 is 0.4573, give or take 10 %",
        source: "notebook",
        statistic: "mean squared error at epoch 3,600",
        rule: Rule::MeanWithin(0.411_57, 0.503_03),
    },
    Claim {
        id: "does-not-shrink",
        statement: "The gradient norm does not shrink as training goes on, though the loss falls",
        source: "Goodfellow et al. 2016, Deep Learning, section 8.2.2",
        statistic: "log10 of the geometric mean norm in the last quarter over that in the first, epochs from 100 on",
        rule: Rule::MeanAbove(0.),
    },
];

/// The report's and the notebook's claims are judged for their settings alone.
fn judge(settings: &Settings, courses: &[Course]) -> Vec<Outcome> {
    let theirs = is_preset::<GradientNorm>(settings, "paper", &["seeds", "seed"]);
    let each = |of: &dyn Fn(&Course) -> f64| courses.iter().map(of).collect::<Vec<f64>>();
    let median_of =
        |course: &Course, from: usize, to: usize| median(&course.norms[from..to]).unwrap_or(f64::NAN);
    let reports = |of: &dyn Fn(&Course) -> f64| theirs.then(|| each(of));
    let holds = |fact: bool| if fact { 1. } else { 0. };
    let values = [
        reports(&|course| (median_of(course, 750, 1500) / median_of(course, 100, 700)).log10()),
        reports(&|course| holds(course.spikes.iter().any(|spike| spike.epoch > 750))),
        reports(&|course| {
            let peak = peak(&course.norms, 100);
            peak.map_or(f64::NAN, |peak| holds(peak >= 3 * course.norms.len() / 4))
        }),
        reports(&|course| spread(&course.records[1600..=2800]) / course.records[1600].loss),
        reports(&|course| course.records[3600].loss),
        (settings.epochs >= 1000).then(|| each(&|course| growth(&course.norms[100..]))),
    ];
    CLAIMS.iter().zip(values).filter_map(|(claim, values)| Some(claim.judge(&values?))).collect()
}

/// The epoch of the highest norm from epoch `from` on; `None` for a run that has diverged.
fn peak(norms: &[f64], from: usize) -> Option<usize> {
    let later = norms.iter().enumerate().skip(from);
    let (epoch, norm) = later.max_by(|a, b| a.1.total_cmp(b.1))?;
    norm.is_finite().then_some(epoch)
}

/// Highest minus lowest loss; NaN for a run that has diverged.
fn spread(records: &[Record]) -> f64 {
    let losses = || records.iter().map(|record| record.loss);
    if losses().any(f64::is_nan) {
        return f64::NAN;
    }
    losses().fold(f64::NEG_INFINITY, f64::max) - losses().fold(f64::INFINITY, f64::min)
}

/// log10 of the geometric mean of the last quarter over that of the first.
fn growth(norms: &[f64]) -> f64 {
    let quarter = norms.len() / 4;
    let mean = |part: &[f64]| {
        geometric_mean_interval(part, flatland_statistics::LEVEL).map_or(f64::NAN, |interval| interval.mean)
    };
    (mean(&norms[norms.len() - quarter..]) / mean(&norms[..quarter])).log10()
}

fn closing_table(courses: &[Course]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["epoch", "loss", "gradient norm, median over seeds"]);
    let epochs = courses.iter().map(|course| course.norms.len()).min().unwrap_or(0);
    for quarter in 0..=4 {
        let epoch = (epochs.saturating_sub(1)) * quarter / 4;
        let losses: Vec<f64> = courses.iter().map(|course| course.records[epoch].loss).collect();
        let norms: Vec<f64> = courses.iter().map(|course| course.norms[epoch]).collect();
        let norm = median(&norms).map(short).unwrap_or_default();
        table.add_row([epoch.to_string(), mean_number(&losses, 1., 4, ""), norm]);
    }
    let spikes: Vec<f64> = courses.iter().map(|course| course.spikes.len() as f64).collect();
    table.add_row(["spikes a seed", "", &mean_number(&spikes, 1., 1, "")]);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use flatland_statistics::Verdict;

    #[test]
    fn the_reports_network_has_its_parameters() {
        assert_eq!(settings().network().unwrap().count(), 202);
    }

    fn settings() -> Settings {
        let arguments = crate::command::Arguments::parse_from(["gradient-norm"]);
        crate::settings::resolve(GradientNorm::PRESETS, &arguments).unwrap()
    }

    #[test]
    fn a_spike_is_the_top_of_a_run_of_high_norms() {
        let rule = SpikeSettings { window: 7, factor: 3. };
        let mut norms = [1.; 30];
        (norms[0], norms[29]) = (100., 100.); // too near the ends
        (norms[10], norms[11]) = (4., 9.); // neighbours
        norms[16] = 3.; // not above three times the median
        (norms[20], norms[22]) = (3.1, 3.2); // less than half a window apart
        norms[25] = 3.3; // half a window from the last
        let spike = |epoch, norm| Spike { epoch, norm, median: 1. };
        assert_eq!(rule.find(&norms), [spike(11, 9.), spike(22, 3.2), spike(25, 3.3)]);
        assert_eq!(rule.find(&norms[..4]), []);
        assert_eq!(rule.find(&[f64::NAN; 9]), []);
    }

    /// Made-up courses: the norm and the loss of each epoch.
    fn verdicts(norm: impl Fn(usize) -> f64, loss: impl Fn(usize) -> f64) -> Vec<(&'static str, Verdict)> {
        let settings = settings();
        let records: Vec<Vec<Record>> = (0..8)
            .map(|seed| {
                let scale = 1. + 0.001 * f64::from(seed);
                let record = |e: usize| Record {
                    epoch: e as u32,
                    loss: scale * loss(e),
                    layers: vec![scale * norm(e)],
                };
                (0..=4000).map(record).collect()
            })
            .collect();
        let courses: Vec<Course> = records
            .iter()
            .map(|records| {
                let norms: Vec<f64> = records.iter().map(Record::gradient_norm).collect();
                let spikes = settings.spikes.find(&norms);
                Course { seed: 0, records, norms, spikes }
            })
            .collect();
        judge(&settings, &courses).iter().map(|outcome| (outcome.claim.id, outcome.verdict)).collect()
    }

    #[test]
    fn claims_on_known_courses() {
        use Verdict::{Contradicted, Inconclusive, Supported};
        let reports = verdicts(
            |e| {
                if e == 3250 {
                    9.
                } else if e < 750 {
                    0.1
                } else {
                    1.
                }
            },
            |e| if e < 3000 { 0.47 } else { 0.457 },
        );
        assert_eq!(reports.iter().map(|(_, verdict)| *verdict).collect::<Vec<_>>(), [Supported; 6]);
        let opposite = verdicts(|e| 1. / (e + 1) as f64, |e| if e < 2000 { 0.9 } else { 0.2 });
        assert_eq!(opposite.iter().map(|(_, verdict)| *verdict).collect::<Vec<_>>(), [Contradicted; 6]);
        // A norm that stands still rises for no one; the loss crosses the border of its ten per cent.
        let still = verdicts(|_| 1., |_| 0.5013);
        let find = |id: &str| still.iter().find(|(found, _)| *found == id).unwrap().1;
        assert_eq!((find("rises"), find("loss-3600")), (Inconclusive, Inconclusive));
        assert_eq!((find("spikes"), find("plateau")), (Contradicted, Supported));
    }

    #[test]
    fn other_networks_are_judged_by_the_general_claim_alone() {
        let settings = Settings { widths: vec![1, 5, 1], ..settings() };
        let records: Vec<Record> =
            (0..=4000).map(|epoch| Record { epoch, loss: 1., layers: vec![1.] }).collect();
        let course = Course { seed: 0, records: &records, norms: vec![1.; 4001], spikes: Vec::new() };
        let outcomes = judge(&settings, &[course]);
        assert_eq!(outcomes.iter().map(|outcome| outcome.claim.id).collect::<Vec<_>>(), ["does-not-shrink"]);
    }
}
