//! When the gradient is almost zero: minimum or saddle? The eigenvalues of the exact Hessian where training ended, and at the critical
//! points that a search finds from there.
//!
//! The minimal ratio is the share of eigenvalues above 0 (the assignment, after Choromanska et al. 2015, "The loss surfaces of multilayer
//! networks"). A network of ReLU's kind has directions along which its loss does not change at all: eigenvalues that are 0 but for
//! rounding, which a plain count puts on either side by chance. So both are counted: all above 0, and those above a tolerance.

use crate::experiment::{Experiment, check_seeds, is_preset, seeds_from};
use crate::fitting::{Fit, Fitted, Grid, Stop, check, fit_all, network};
use crate::parallel::in_parallel;
use crate::run::{Numbers, Run, fingerprint};
use crate::summary::{mean_number, short, subtitle};
use crate::trial::describe;
use anyhow::{Context, Result, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::Function;
use flatland_geometry::{
    CriticalSettings, Ended, HessianError, PATIENCE, critical_point, eigenvalues, hessian, loss_and_norm,
};
use flatland_network::{Examples, Layer, Loss, Network, OptimiserSettings};
use flatland_record::{Axis, Colour, Figure, Marker, Panel, Series, Table, cells, ecdf};
use flatland_statistics::{Claim, Outcome, Rule, median, rank_correlation, rank_products};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `configs/minimal-ratio.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub target: Function,
    pub widths: Vec<i64>,
    pub activation: Activation,
    pub seeds: u64,
    pub seed: u64,
    pub epochs: u32,
    pub gradient_norm: f64,
    pub tolerance: f64,
    pub grid: Grid,
    pub optimiser: OptimiserSettings,
    pub critical: CriticalKeys,
}

/// What stands between the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Activation {
    LeakyRelu,
    Tanh,
}

impl Activation {
    /// The layer and its name.
    fn layer(self) -> (Layer, &'static str) {
        match self {
            Self::LeakyRelu => (Layer::LeakyRelu, "LeakyReLU"),
            Self::Tanh => (Layer::Tanh, "tanh"),
        }
    }
}

/// When the search for a critical point stops.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct CriticalKeys {
    pub steps: u32,
    pub tolerance: f64,
}

/// A θ with its loss, gradient and curvature.
#[derive(Debug, Clone, PartialEq)]
struct Point {
    /// Mean squared error.
    loss: f64,
    /// 2-norm of its gradient.
    gradient_norm: f64,
    /// Of its Hessian, ascending; none where the run has diverged.
    eigenvalues: Vec<f64>,
}

/// How many eigenvalues are what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    /// Above 0, as the notebook counts.
    above_zero: usize,
    /// Above the tolerance.
    positive: usize,
    /// Within it.
    zero: usize,
    /// Below its negative.
    negative: usize,
}

impl Point {
    fn counts(&self, tolerance: f64) -> Counts {
        let bound = tolerance * self.largest();
        let count = |of: &dyn Fn(f64) -> bool| self.eigenvalues.iter().filter(|value| of(**value)).count();
        Counts {
            above_zero: count(&|value| value > 0.),
            positive: count(&|value| value > bound),
            zero: count(&|value| value.abs() <= bound),
            negative: count(&|value| value < -bound),
        }
    }

    /// The largest eigenvalue in size.
    fn largest(&self) -> f64 {
        self.eigenvalues.iter().fold(0., |most: f64, value| most.max(value.abs()))
    }

    /// The notebook's minimal ratio.
    fn plain_ratio(&self) -> Option<f64> {
        self.ratio(self.counts(0.).above_zero)
    }

    /// The minimal ratio of eigenvalues that are clearly positive.
    fn clear_ratio(&self, tolerance: f64) -> Option<f64> {
        self.ratio(self.counts(tolerance).positive)
    }

    fn ratio(&self, count: usize) -> Option<f64> {
        let all = self.eigenvalues.len();
        (all > 0).then(|| count as f64 / all as f64)
    }
}

/// A seed with everything that came out of it.
#[derive(Debug)]
struct Course {
    seed: u64,
    /// Steps of training.
    epochs: u32,
    /// Whether training ended because the gradient was small enough.
    small_gradient: bool,
    /// Where training ended.
    end: Point,
    /// What the search found from there.
    search: Option<Search>,
}

/// A search for a critical point.
#[derive(Debug)]
struct Search {
    /// Where it ended.
    point: Point,
    ended: Ended,
    /// ‖g‖ from step to step, the first that of [`Course::end`].
    norms: Vec<f64>,
    /// See [`flatland_geometry::CriticalPoint::curvature_along_gradient`].
    curvature: Option<f64>,
}

impl Course {
    /// The critical point, if one was reached.
    fn critical(&self) -> Option<&Point> {
        self.search.as_ref().filter(|search| search.ended == Ended::Reached).map(|search| &search.point)
    }
}

/// The experiment.
#[derive(Debug)]
pub struct MinimalRatio;

impl Experiment for MinimalRatio {
    const NAME: &'static str = "minimal-ratio";
    const ABOUT: &'static str = "Are the points at which the gradient is almost zero minima or saddles? Eigenvalues of the exact \
        Hessian where training ends, and at critical points found from there, against the loss.";
    const EXAMPLES: &'static str = "Examples:
  minimal-ratio --preset quick                  some ten seconds
  minimal-ratio                                 the report's settings, 100 runs, then a search from each
  minimal-ratio --set activation=tanh           a smooth loss, without kinks that hold the search up
  minimal-ratio --set critical.steps=0          only where training ends, as in the notebook
  minimal-ratio --set tolerance=1e-6            what counts as a zero eigenvalue
  minimal-ratio --resume                        after Ctrl-C or a crash";
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 13.), ("quick", 2.)];
    const PRESETS: &'static str = include_str!("../../../configs/minimal-ratio.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        let parameters = settings.network()?.count();
        ensure!(parameters <= 2000, "widths must give at most 2,000 parameters, found {parameters}");
        let Settings { epochs, gradient_norm, tolerance, critical, .. } = *settings;
        check(settings.grid, std::slice::from_ref(&settings.target), &settings.optimiser, epochs)?;
        ensure!(gradient_norm >= 0., "gradient_norm must be 0 or more, found {gradient_norm}");
        ensure!((0. ..1.).contains(&tolerance), "tolerance must lie in [0, 1), found {tolerance}");
        ensure!(critical.tolerance > 0., "critical.tolerance must be above 0, found {}", critical.tolerance);
        let steps = critical.steps;
        ensure!(steps <= 100_000, "critical.steps must be at most 100,000, found {steps}");
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
        let fit = Fit { stop: Stop::GradientBelow(settings.gradient_norm), ..fit };
        let fitted: Vec<Fitted> = fit_all(run, &[fit])?.into_iter().flatten().collect();
        let courses = measure(settings, run, &network, &seeds, &fitted)?;

        let table = points_table(settings, &courses)?;
        run.write_table(
            "points",
            &table,
            "loss, gradient and minimal ratio where training and search ended",
        )?;
        run.write_table("eigenvalues", &eigenvalues_table(&courses)?, "every eigenvalue of these points")?;
        let figure = ratio_figure(settings, run, &network, &courses);
        run.write_figure("minimal_ratio", &figure, "loss against minimal ratio")?;
        let figure = eigenvalues_figure(settings, run, &network, &courses);
        run.write_figure("eigenvalues", &figure, "how large the eigenvalues are, by sign")?;
        if settings.critical.steps > 0 {
            run.write_table(
                "search",
                &search_table(&courses)?,
                "the gradient norm on the way to a critical point",
            )?;
            let figure = search_figure(settings, run, &network, &courses);
            run.write_figure("search", &figure, "the gradient norm before, during and after the search")?;
        }
        run.write_claims(judge(settings, &courses))?;
        Ok(closing_table(settings, &courses))
    }
}

impl Settings {
    fn network(&self) -> Result<Network> {
        network(&self.widths, &self.activation.layer().0).context("widths")
    }

    fn subtitle(&self, run: &Run, network: &Network, more: &str) -> String {
        let activation = self.activation.layer().1;
        let (name, count) = (network.name(), network.count());
        let subject = format!("{name} with {activation}, {count} parameters, on {}", self.target);
        subtitle::<MinimalRatio>(self, run, &subject, more)
    }
}

/// Hessians at the end of each run and the search from there, side by side.
fn measure(
    settings: &Settings,
    run: &Run,
    network: &Network,
    seeds: &[u64],
    fitted: &[Fitted],
) -> Result<Vec<Course>> {
    let stage = run.progress.stage("curvature", seeds.len() as u64);
    let examples = settings.grid.examples(&settings.target, Kind::Double, run.device.device)?;
    let contexts = run.contexts(seeds.len(), || {
        let thetas = fitted.iter().map(|fitted| fitted.theta.shallow_clone()).collect::<Vec<_>>();
        Ok((examples.share(), thetas))
    })?;
    let jobs: Vec<usize> = (0..seeds.len()).collect();
    let measured = in_parallel(contexts, &jobs, |(examples, thetas), &index| {
        run.check_interrupted()?;
        let theta = &thetas[index];
        let content = serde_json::json!({
            "network": describe(network),
            "target": settings.target,
            "grid": settings.grid,
            "theta": fingerprint(theta)?,
            "critical": settings.critical,
        });
        let numbers = run.kept(&content, || {
            let theta = theta.f_to_device(run.device.device)?;
            search(network, &theta, examples, settings.critical)
        })?;
        stage.advance(1, format!("seed {}", seeds[index]));
        unpack(&numbers, settings.critical.steps > 0)
    })?;
    Ok(measured
        .into_iter()
        .zip(seeds.iter().zip(fitted))
        .map(|((end, search), (&seed, fitted))| Course {
            seed,
            epochs: fitted.epochs,
            // The last epoch may be the one.
            small_gradient: fitted.epochs < settings.epochs || fitted.gradient_norm < settings.gradient_norm,
            end,
            search,
        })
        .collect())
}

/// The numbers of one θ, for [`unpack`].
fn search(network: &Network, theta: &Tensor, examples: &Examples, keys: CriticalKeys) -> Result<Numbers> {
    let settings = CriticalSettings { steps: keys.steps, tolerance: keys.tolerance };
    let loss = Loss::MeanSquaredError;
    let spectrum = |theta: &Tensor| eigenvalues(&hessian(network, theta, examples, loss)?);
    let mut numbers = Numbers::new();
    let mut keep = |name: &str, values: &[f64]| -> Result<()> {
        numbers.insert(name.to_owned(), Tensor::f_from_slice(values)?);
        Ok(())
    };
    if keys.steps == 0 {
        match spectrum(theta) {
            Ok(values) => {
                let here = loss_and_norm(network, theta, examples, loss)?;
                keep("end", &values)?;
                keep("losses", &[here.loss])?;
                keep("norms", &[here.gradient_norm])?;
            }
            Err(HessianError::NotFinite) => {}
            Err(error) => return Err(error.into()),
        }
        return Ok(numbers);
    }
    match critical_point(network, theta, examples, loss, settings) {
        Ok(found) => {
            keep("end", &spectrum(theta)?)?;
            keep("point", &spectrum(&found.theta)?)?;
            keep("losses", &found.path.iter().map(|step| step.loss).collect::<Vec<_>>())?;
            keep("norms", &found.path.iter().map(|step| step.gradient_norm).collect::<Vec<_>>())?;
            keep("curvature", found.curvature_along_gradient.as_slice())?;
            let ended = ENDS.iter().position(|end| *end == found.ended).unwrap_or_default();
            keep("ended", &[ended as f64])?;
        }
        // A run that has diverged: it has a row, without a Hessian.
        Err(HessianError::NotFinite) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(numbers)
}

/// What stands for each in [`search`]'s numbers.
const ENDS: [Ended; 3] = [Ended::Reached, Ended::Stalled, Ended::OutOfSteps];

fn unpack(numbers: &Numbers, searched: bool) -> Result<(Point, Option<Search>)> {
    if numbers.is_empty() {
        let end = Point { loss: f64::NAN, gradient_norm: f64::NAN, eigenvalues: Vec::new() };
        return Ok((end, None));
    }
    let values = |name: &str| -> Result<Vec<f64>> {
        let tensor = numbers.get(name).with_context(|| format!("the kept numbers of a point lack {name}"))?;
        Ok(Vec::<f64>::try_from(tensor)?)
    };
    let (losses, norms) = (values("losses")?, values("norms")?);
    let at = |values: &[f64], last: bool| {
        let value = if last { values.last() } else { values.first() };
        value.copied().context("the kept numbers of a point are empty")
    };
    let point = |name: &str, last: bool| -> Result<Point> {
        Ok(Point { loss: at(&losses, last)?, gradient_norm: at(&norms, last)?, eigenvalues: values(name)? })
    };
    let end = point("end", false)?;
    if !searched {
        return Ok((end, None));
    }
    let ended = ENDS.get(at(&values("ended")?, true)? as usize).context("the kept end is unknown")?;
    let search = Search {
        point: point("point", true)?,
        ended: *ended,
        curvature: values("curvature")?.first().copied(),
        norms: norms.clone(),
    };
    Ok((end, Some(search)))
}

fn points_table(settings: &Settings, courses: &[Course]) -> Result<Table> {
    let mut table = Table::new(&[
        "seed",
        "phase",
        "status",
        "epochs",
        "steps",
        "loss",
        "gradient_norm",
        "above_zero",
        "positive",
        "zero",
        "negative",
        "minimal_ratio_plain",
        "minimal_ratio",
        "lowest_eigenvalue",
        "highest_eigenvalue",
        "curvature_along_gradient",
    ]);
    for course in courses {
        let status = match course {
            Course { small_gradient: true, .. } => "small gradient",
            Course { end, .. } if end.eigenvalues.is_empty() => "diverged",
            _ => "out of epochs",
        };
        let mut row = |phase, status: String, steps: Option<usize>, point: &Point, curvature: Option<f64>| {
            let counts = (!point.eigenvalues.is_empty()).then(|| point.counts(settings.tolerance));
            table.row(cells![
                course.seed,
                phase,
                status,
                course.epochs,
                steps,
                point.loss,
                point.gradient_norm,
                counts.map(|counts| counts.above_zero),
                counts.map(|counts| counts.positive),
                counts.map(|counts| counts.zero),
                counts.map(|counts| counts.negative),
                point.plain_ratio(),
                point.clear_ratio(settings.tolerance),
                point.eigenvalues.first().copied(),
                point.eigenvalues.last().copied(),
                curvature,
            ])
        };
        row("training", status.to_owned(), None, &course.end, None)?;
        if let Some(search) = &course.search {
            let steps = Some(search.norms.len() - 1);
            row("search", search.ended.to_string(), steps, &search.point, search.curvature)?;
        }
    }
    Ok(table)
}

/// The points of a phase, with their seeds.
fn phases(courses: &[Course]) -> impl Iterator<Item = (u64, &'static str, &Point)> {
    courses.iter().flat_map(|course| {
        let search = course.search.as_ref().map(|search| (course.seed, "search", &search.point));
        [(course.seed, "training", &course.end)].into_iter().chain(search)
    })
}

fn eigenvalues_table(courses: &[Course]) -> Result<Table> {
    let mut table = Table::new(&["seed", "phase", "index", "eigenvalue"]);
    for (seed, phase, point) in phases(courses) {
        for (index, &value) in point.eigenvalues.iter().enumerate() {
            table.row(cells![seed, phase, index, value])?;
        }
    }
    Ok(table)
}

fn search_table(courses: &[Course]) -> Result<Table> {
    let mut table = Table::new(&["seed", "step", "gradient_norm"]);
    for course in courses {
        for (step, &norm) in course.search.iter().flat_map(|search| search.norms.iter().enumerate()) {
            table.row(cells![course.seed, step, norm])?;
        }
    }
    Ok(table)
}

/// What a search ended as: name, colour, marker.
const LOOKS: [(Ended, &str, Colour, Marker); 3] = [
    (Ended::Reached, "critical point", Colour::Vermillion, Marker::Square),
    (Ended::Stalled, "search stalled", Colour::Grey, Marker::Cross),
    (Ended::OutOfSteps, "search out of steps", Colour::Orange, Marker::Plus),
];

/// The searches that ended so.
fn searches(courses: &[Course], ended: Ended) -> impl Iterator<Item = &Search> {
    courses.iter().filter_map(|course| course.search.as_ref()).filter(move |search| search.ended == ended)
}

fn ratio_figure(settings: &Settings, run: &Run, network: &Network, courses: &[Course]) -> Figure {
    let panel =
        |title: String, of: &dyn Fn(&Point) -> Option<f64>| {
            let place = |point: &Point| Some((of(point)?, point.loss));
            let ends = courses.iter().filter_map(|course| place(&course.end)).collect();
            let x = Axis::linear("minimal ratio (share of eigenvalues)");
            let panel = Panel::new(title, x, Axis::linear("loss (mean squared error)"))
                .with(Series::scatter("end of training", Colour::Blue, ends));
            LOOKS.iter().fold(panel, |panel, &(ended, name, colour, marker)| {
                let points: Vec<(f64, f64)> =
                    searches(courses, ended).filter_map(|search| place(&search.point)).collect();
                if points.is_empty() {
                    return panel;
                }
                panel.with(Series::scatter(name, colour, points).with_marker(marker))
            })
        };
    let tolerance = settings.tolerance;
    let panels = vec![
        panel("Eigenvalues above 0".into(), &Point::plain_ratio),
        panel(format!("Eigenvalues above {tolerance:e} of the largest"), &|point| {
            point.clear_ratio(tolerance)
        }),
    ];
    Figure::new("Loss against minimal ratio", settings.subtitle(run, network, "a point a run"), panels)
}

/// Steps drawn of a distribution: more than a figure can show.
const STEPS_DRAWN: usize = 400;

fn eigenvalues_figure(settings: &Settings, run: &Run, network: &Network, courses: &[Course]) -> Figure {
    let panel = |title: &str, points: &[&Point]| {
        let all: usize = points.iter().map(|point| point.eigenvalues.len()).sum();
        let sides = [("above 0", Colour::Blue, 1.), ("below 0", Colour::Vermillion, -1.)];
        let x = Axis::log10("size of an eigenvalue, over the largest of its point");
        let panel = Panel::new(title, x.with_range(1e-20, 1.), Axis::linear("share of all eigenvalues"))
            .with_mark(settings.tolerance, "tolerance");
        sides.into_iter().fold(panel, |panel, (name, colour, sign)| {
            let sizes: Vec<f64> = points
                .iter()
                .flat_map(|point| point.eigenvalues.iter().map(|value| sign * value / point.largest()))
                .filter(|size| *size > 0.)
                .collect();
            let share = sizes.len() as f64 / all.max(1) as f64;
            let steps = ecdf(&sizes);
            let last = steps.len().saturating_sub(1);
            let stride = steps.len().div_ceil(STEPS_DRAWN).max(1);
            let drawn = steps.iter().enumerate().filter(|(index, _)| index % stride == 0 || *index == last);
            let drawn = drawn.map(|(_, (size, of))| (*size, share * of)).collect();
            panel.with(Series::steps(name, colour, drawn))
        })
    };
    let ends: Vec<&Point> = courses.iter().map(|course| &course.end).collect();
    let mut panels = vec![panel("End of training", &ends)];
    for &(ended, name, ..) in &LOOKS {
        let points: Vec<&Point> = searches(courses, ended).map(|search| &search.point).collect();
        if !points.is_empty() {
            let runs = points.len();
            panels.push(panel(&format!("{}: {runs} of {} runs", capital(name), courses.len()), &points));
        }
    }
    let subtitle = settings.subtitle(run, network, "all runs' eigenvalues together");
    // Three stand in a row: two rows would leave a place empty.
    let columns = Some(if panels.len() == 4 { 2 } else { panels.len() });
    Figure { columns, ..Figure::new("Eigenvalues of the Hessian", subtitle, panels) }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn search_figure(settings: &Settings, run: &Run, network: &Network, courses: &[Course]) -> Figure {
    let mut paths = Panel::new("On the way", Axis::whole("step of the search"), Axis::log10("gradient norm"))
        .with_level(settings.critical.tolerance, "critical");
    for &(ended, name, colour, _) in &LOOKS {
        for (index, search) in searches(courses, ended).enumerate() {
            let name = if index == 0 { name } else { "" };
            let path = search.norms.iter().enumerate().map(|(step, norm)| (step as f64, *norm)).collect();
            paths = paths.with(Series::line(name, colour, path).thin());
        }
    }
    let norms =
        |of: &dyn Fn(&Course) -> Option<f64>| ecdf(&courses.iter().filter_map(of).collect::<Vec<_>>());
    let ends = norms(&|course| Some(course.end.gradient_norm));
    let found = norms(&|course| course.search.as_ref().map(|search| search.point.gradient_norm));
    let shares = Panel::new("Before and after", Axis::log10("gradient norm"), Axis::linear("share of runs"))
        .with(Series::steps("end of training", Colour::Blue, ends))
        .with(Series::steps("end of the search", Colour::Vermillion, found))
        .with_mark(settings.critical.tolerance, "critical")
        .with_mark(settings.gradient_norm, "training stops");
    let subtitle = settings.subtitle(run, network, "the search minimises the gradient norm itself");
    Figure::new("From the end of training to a critical point", subtitle, vec![paths, shares])
}

/// Fixed before the data.
const CLAIMS: [Claim; 8] = [
    Claim {
        id: "ratio-range",
        statement: "Where training ends, minimal ratios lie between 0.50 and 0.63 (in more than 9 of 10 runs)",
        source: "notebook",
        statistic: "1 if the share of eigenvalues above 0 lies in [0.50, 0.63], else 0",
        rule: Rule::ShareAbove(0.9),
    },
    Claim {
        id: "loss-range",
        statement: "Where training ends, losses lie between 0.09 and 0.50 (in more than 9 of 10 runs)",
        source: "notebook",
        statistic: "1 if the mean squared error, to two decimals, lies in [0.09, 0.50], else 0",
        rule: Rule::ShareAbove(0.9),
    },
    Claim {
        id: "lower-loss-higher-ratio",
        statement: "Where training ends, a lower loss goes with a higher minimal ratio",
        source: "assignment",
        statistic: "product of the standardised ranks of loss and share of eigenvalues above 0; the mean is Spearman's correlation, and the interval a test of it against 0 that may pass -1 or 1",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "lower-loss-higher-ratio-critical",
        statement: "Among critical points, a lower loss goes with a higher minimal ratio",
        source: "assignment",
        statistic: "the same at the critical points that were reached, eigenvalues counted above the tolerance",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "critical-points-are-saddles",
        statement: "Points of zero gradient that a search finds from the end of training are mostly saddles, not minima",
        source: "assignment",
        statistic: "1 if the critical point has an eigenvalue below minus the tolerance, else 0",
        rule: Rule::ShareAbove(0.5),
    },
    Claim {
        id: "training-ends-before",
        statement: "Most runs spend all their epochs without a gradient norm below the threshold: training does not end at critical points",
        source: "Flatland",
        statistic: "1 if the gradient norm never was below the threshold, else 0",
        rule: Rule::ShareAbove(0.5),
    },
    Claim {
        id: "searches-stall",
        statement: "Most searches for a critical point stall where the gradient is not zero",
        source: "Flatland",
        statistic: "1 if the search stalled above the tolerance, else 0",
        rule: Rule::ShareAbove(0.5),
    },
    Claim {
        id: "plain-ratio-counts-rounding",
        statement: "At critical points the plain ratio is more than 0.05 too high: it counts flat directions that rounding made positive",
        source: "Flatland",
        statistic: "share of eigenvalues above 0 minus share above the tolerance, at the critical points that were reached",
        rule: Rule::MeanAbove(0.05),
    },
];

/// The notebook's numbers are left out where something else was trained, and claims about a search where there was none.
fn judge(settings: &Settings, courses: &[Course]) -> Vec<Outcome> {
    let notebooks = is_preset::<MinimalRatio>(settings, "paper", &["seeds", "seed", "tolerance", "critical"]);
    let truth = |is: bool| f64::from(u8::from(is));
    let tolerance = settings.tolerance;
    let critical: Vec<&Point> = courses.iter().filter_map(Course::critical).collect();
    let products = |pairs: Vec<(f64, f64)>| rank_products(&pairs).unwrap_or_default();
    let ends =
        |of: &dyn Fn(&Point) -> f64| courses.iter().map(|course| of(&course.end)).collect::<Vec<f64>>();
    let searched = settings.critical.steps > 0;
    let values = [
        notebooks.then(|| {
            ends(&|end| truth(end.plain_ratio().is_some_and(|ratio| (0.5..=0.63).contains(&ratio))))
        }),
        notebooks.then(|| ends(&|end| truth((0.085..0.505).contains(&end.loss)))),
        Some(products(courses.iter().filter_map(|course| pair(&course.end, Point::plain_ratio)).collect())),
        searched.then(|| {
            products(critical.iter().filter_map(|point| pair(point, |p| p.clear_ratio(tolerance))).collect())
        }),
        searched.then(|| critical.iter().map(|point| truth(point.counts(tolerance).negative > 0)).collect()),
        // A run that diverged says nothing.
        Some(
            courses
                .iter()
                .map(|course| if course.end.loss.is_nan() { f64::NAN } else { truth(!course.small_gradient) })
                .collect(),
        ),
        // A shorter search could not be told to stall.
        (settings.critical.steps as usize > PATIENCE).then(|| {
            let searches = courses.iter().filter_map(|course| course.search.as_ref());
            searches.map(|search| truth(search.ended == Ended::Stalled)).collect()
        }),
        searched.then(|| {
            critical.iter().filter_map(|p| Some(p.plain_ratio()? - p.clear_ratio(tolerance)?)).collect()
        }),
    ];
    CLAIMS.iter().zip(values).filter_map(|(claim, values)| Some(claim.judge(&values?))).collect()
}

/// Loss and ratio.
fn pair(point: &Point, ratio: impl Fn(&Point) -> Option<f64>) -> Option<(f64, f64)> {
    Some((point.loss, ratio(point)?))
}

fn closing_table(settings: &Settings, courses: &[Course]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "points",
        "runs",
        "loss",
        "gradient norm, median",
        "ratio above 0",
        "ratio above tolerance",
        "negative, median",
        "Spearman, loss and ratio",
    ]);
    let mut row = |name: &str, points: Vec<&Point>| {
        let all =
            |of: &dyn Fn(&Point) -> Option<f64>| points.iter().filter_map(|p| of(p)).collect::<Vec<f64>>();
        let tolerance = settings.tolerance;
        let middle = |values: Vec<f64>| median(&values).map(short).unwrap_or_default();
        let mean = |of: &dyn Fn(&Point) -> Option<f64>| mean_number(&all(of), 1., 3, "");
        let pairs: Vec<(f64, f64)> =
            points.iter().filter_map(|p| pair(p, |point| point.clear_ratio(tolerance))).collect();
        table.add_row([
            name.to_owned(),
            points.len().to_string(),
            mean(&|point| Some(point.loss)),
            middle(all(&|point| Some(point.gradient_norm))),
            mean(&Point::plain_ratio),
            mean(&|point| point.clear_ratio(tolerance)),
            middle(all(&|point| Some(point.counts(tolerance).negative as f64))),
            rank_correlation(&pairs).map(short).unwrap_or_default(),
        ]);
    };
    row("end of training", courses.iter().map(|course| &course.end).collect());
    for &(ended, name, ..) in &LOOKS {
        let points: Vec<&Point> = searches(courses, ended).map(|search| &search.point).collect();
        if !points.is_empty() {
            row(name, points);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_statistics::Verdict;
    use tch::Device;

    fn settings(more: &[&str]) -> Settings {
        let words = [&["minimal-ratio"], more].concat();
        crate::settings::resolve(
            MinimalRatio::PRESETS,
            &<crate::command::Arguments as clap::Parser>::parse_from(words),
        )
        .unwrap()
    }

    #[test]
    fn the_reports_network_has_its_parameters() {
        assert_eq!(settings(&[]).network().unwrap().count(), 202);
    }

    fn point(loss: f64, eigenvalues: &[f64]) -> Point {
        Point { loss, gradient_norm: 1e-9, eigenvalues: eigenvalues.to_vec() }
    }

    #[test]
    fn eigenvalues_are_counted_with_and_without_a_tolerance() {
        let point = point(0.1, &[-2., -1e-7, -0., 0., 1e-7, 2e-6, 1.]);
        let counts = point.counts(1e-6);
        assert_eq!(counts, Counts { above_zero: 3, positive: 1, zero: 5, negative: 1 });
        // At the tolerance itself, 1e-6 of 2, an eigenvalue counts as zero.
        assert_eq!(point.counts(0.99e-6).positive, 2);
        assert_eq!(point.counts(0.), Counts { above_zero: 3, positive: 3, zero: 2, negative: 2 });
        assert_eq!((point.plain_ratio(), point.clear_ratio(1e-6)), (Some(3. / 7.), Some(1. / 7.)));
        let diverged = self::point(f64::NAN, &[]);
        assert_eq!((diverged.plain_ratio(), diverged.clear_ratio(1e-6)), (None, None));
    }

    #[test]
    fn numbers_survive_being_kept() {
        let network = network(&[1, 2, 1], &Layer::LeakyRelu).unwrap();
        let examples =
            settings(&[]).grid.examples(&"x^2".parse().unwrap(), Kind::Double, Device::Cpu).unwrap();
        let theta = flatland_network::initialise(&network, 0, 0, Kind::Float, Device::Cpu).unwrap();
        let keys = CriticalKeys { steps: 3, tolerance: 1e-12 };
        let (end, found) = unpack(&search(&network, &theta, &examples, keys).unwrap(), true).unwrap();
        let found = found.unwrap();
        assert_eq!((found.ended, found.norms.len()), (Ended::OutOfSteps, 4));
        assert_eq!((end.gradient_norm, found.point.gradient_norm), (found.norms[0], found.norms[3]));
        assert_eq!((end.eigenvalues.len(), found.point.eigenvalues.len()), (7, 7));
        assert!(end.loss > found.point.loss && found.curvature.is_some());
        let keys = CriticalKeys { steps: 0, tolerance: 1e-12 };
        let (same, none) = unpack(&search(&network, &theta, &examples, keys).unwrap(), false).unwrap();
        assert!(same == end && none.is_none());
        let diverged = search(&network, &(theta * f64::NAN), &examples, keys).unwrap();
        assert!(unpack(&diverged, true).unwrap().0.eigenvalues.is_empty());
    }

    /// Ten eigenvalues of 1, of which so many are replaced by as many clearly negative ones and so many by rounding's.
    fn spectrum(negative: usize, rounding: usize) -> Vec<f64> {
        let values = std::iter::repeat_n(-0.5, negative).chain(std::iter::repeat_n(1e-15, rounding));
        values.chain(std::iter::repeat(1.)).take(10).collect()
    }

    fn course(seed: u64, end: Point, search: Option<(Point, Ended)>) -> Course {
        let search = search.map(|(point, ended)| Search { point, ended, norms: vec![1.], curvature: None });
        Course { seed, epochs: 4000, small_gradient: false, end, search }
    }

    fn verdicts(settings: &Settings, courses: &[Course]) -> Vec<(&'static str, Verdict)> {
        judge(settings, courses).iter().map(|outcome| (outcome.claim.id, outcome.verdict)).collect()
    }

    #[test]
    fn claims_on_known_points() {
        use Verdict::{Contradicted, Inconclusive, Supported};
        let settings = settings(&[]);
        // Ratios at the end 0.6 in all; at critical points the ratio falls from 0.8 to 0.3 as the loss rises.
        let courses: Vec<Course> = (0..60)
            .map(|k| {
                let loss = 0.1 + 0.005 * k as f64;
                let critical = point(loss, &spectrum(1 + k / 10, 1));
                let ended = if k < 30 { Ended::Reached } else { Ended::Stalled };
                course(k as u64, point(loss, &spectrum(4, 0)), Some((critical, ended)))
            })
            .collect();
        let found = verdicts(&settings, &courses);
        let expected = [
            ("ratio-range", Supported),
            ("loss-range", Supported),
            // Equal ratios have no order.
            ("lower-loss-higher-ratio", Inconclusive),
            ("lower-loss-higher-ratio-critical", Supported),
            ("critical-points-are-saddles", Supported),
            ("training-ends-before", Supported),
            // 30 of 60.
            ("searches-stall", Inconclusive),
            ("plain-ratio-counts-rounding", Supported),
        ];
        assert_eq!(found, expected);

        // Minima, the higher the ratio the higher the loss, and nothing within the notebook's ranges.
        let courses: Vec<Course> = (0..60)
            .map(|k| {
                let loss = 0.6 + 0.005 * k as f64;
                let mut course = course(
                    k as u64,
                    point(loss, &spectrum(9 - k / 20, 0)),
                    Some((point(loss, &spectrum(0, 6 - k / 10)), Ended::Reached)),
                );
                course.small_gradient = true;
                course
            })
            .collect();
        let expected = [
            ("ratio-range", Contradicted),
            ("loss-range", Contradicted),
            ("lower-loss-higher-ratio", Contradicted),
            ("lower-loss-higher-ratio-critical", Contradicted),
            ("critical-points-are-saddles", Contradicted),
            ("training-ends-before", Contradicted),
            ("searches-stall", Contradicted),
            ("plain-ratio-counts-rounding", Supported),
        ];
        assert_eq!(verdicts(&settings, &courses), expected);
    }

    #[test]
    fn claims_about_what_was_not_done_are_left_out() {
        let settings = settings(&["--set", "critical.steps=0", "--set", "target=x^2"]);
        let courses = [course(0, point(0.3, &spectrum(4, 0)), None)];
        let expected = [
            ("lower-loss-higher-ratio", Verdict::Inconclusive),
            ("training-ends-before", Verdict::Inconclusive),
        ];
        assert_eq!(verdicts(&settings, &courses), expected);
    }

    #[test]
    fn a_ratio_on_the_border_is_within() {
        let settings = settings(&[]);
        let half: Vec<f64> = [-1., 1.].repeat(5);
        let courses: Vec<Course> = (0..60).map(|k| course(k, point(0.5, &half), None)).collect();
        assert_eq!(verdicts(&settings, &courses)[0], ("ratio-range", Verdict::Supported));
        // 4 of 60 outside leave the share open.
        let courses: Vec<Course> =
            (0..60).map(|k| course(k, point(0.5, if k < 4 { &[1.; 10] } else { &half }), None)).collect();
        assert_eq!(verdicts(&settings, &courses)[0], ("ratio-range", Verdict::Inconclusive));
    }
}
