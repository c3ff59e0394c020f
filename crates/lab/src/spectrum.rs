//! The spectrum of the loss's curvature: its ends, its trace and its density, along training.
//!
//! A network is trained, and at chosen epochs the Hessian of the mean training loss over the first examples is looked at
//! (Ghorbani, Krishnan and Xiao 2019, "An investigation into neural net optimization via Hessian eigenvalue density"): largest and smallest
//! eigenvalues with their residuals, trace and Frobenius norm with standard errors, and at the end the whole density with its spread
//! over probes. Beside the largest eigenvalue stands the largest with which gradient descent at this learning rate is stable, 2 / η, and what
//! momentum makes of it (Cohen et al. 2021, "Gradient descent on neural networks typically occurs at the edge of stability").

use crate::command::Flag;
use crate::curves::{Group, curve_panels, curve_table};
use crate::experiment::{Experiment, check_seeds, seeds_from};
use crate::images::{ImageSettings, Images};
use crate::module::{self, DATA, MODULE, Splits, file_name};
use crate::parallel::in_parallel;
use crate::progress::Stage;
use crate::run::{Numbers, Run, fingerprint};
use crate::subject::{NETWORK, WEIGHTS, network, preparation, weights};
use crate::summary::{series, short, subtitle, thousands};
use crate::trial::{Trained, Trial, describe_model, train_all};
use crate::watched::Watched;
use anyhow::{Context, Result, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::DataSetName;
use flatland_geometry::{
    Curvature, CurvatureError, CurvatureOperator, DensitySettings, EigenSettings, Quadrature, Symmetric,
    TraceEstimator, eigenpairs, spectral_density,
};
use flatland_network::{Examples, Model, OptimiserSettings, Training};
use flatland_record::{Axis, Colour, Figure, Marker, Panel, Series, Table, cells};
use flatland_statistics::{Claim, LEVEL, Outcome, Rule, geometric_mean_interval, mean_interval};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::Tensor;

/// `configs/spectrum.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub dataset: DataSetName,
    pub seeds: u64,
    pub seed: u64,
    pub network: String,
    pub weights: Vec<String>,
    pub module: String,
    pub data: String,
    pub epochs: u32,
    pub batch: i64,
    pub lr: f64,
    pub momentum: f64,
    pub nesterov: bool,
    pub weight_decay: f64,
    pub at: Vec<u32>,
    pub matrix: MatrixName,
    pub examples: usize,
    pub largest: usize,
    pub smallest: usize,
    pub tolerance: f64,
    pub block: usize,
    pub products: usize,
    pub trace_estimator: TraceEstimator,
    pub trace_error: f64,
    pub trace_products: usize,
    pub images: ImageSettings,
    pub density: Density,
}

/// Stochastic Lanczos quadrature.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Density {
    pub probes: usize,
    pub steps: usize,
    pub width: f64,
    pub points: usize,
}

/// Which matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum MatrixName {
    Hessian,
    GaussNewton,
}

impl MatrixName {
    fn curvature(self) -> Curvature {
        match self {
            Self::Hessian => Curvature::Hessian,
            Self::GaussNewton => Curvature::GaussNewton,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Hessian => "Hessian",
            Self::GaussNewton => "Gauss-Newton matrix",
        }
    }
}

/// A point whose curvature is measured.
#[derive(Debug)]
struct Place {
    /// For messages, and for the tables' `model`.
    model: String,
    /// The seed of a trained model.
    seed: Option<u64>,
    /// After which epoch.
    epoch: Option<u32>,
    /// Whether it has the density too.
    last: bool,
    theta: Tensor,
}

/// What was measured there.
#[derive(Debug)]
struct Found {
    place: usize,
    /// Descending: the largest, then the smallest.
    values: Vec<f64>,
    residuals: Vec<f64>,
    converged: bool,
    trace: [f64; 2],
    frobenius: [f64; 2],
    density: Vec<Quadrature>,
}

impl Found {
    fn largest(&self) -> f64 {
        self.values.first().copied().unwrap_or(f64::NAN)
    }

    /// Mean over probes, and its standard error.
    fn over_probes(&self, of: impl Fn(&Quadrature) -> f64) -> Option<[f64; 2]> {
        let values: Vec<f64> = self.density.iter().map(of).collect();
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        (!values.is_empty()).then(|| [mean, (squares / (count - 1.) / count).sqrt()])
    }
}

/// The experiment.
#[derive(Debug)]
pub struct Spectrum;

impl Experiment for Spectrum {
    const NAME: &'static str = "spectrum";
    const ABOUT: &'static str = "How curved is the loss where training leads, in how many directions, and how much of that \
        curvature is negative? Eigenvalues, trace and spectral density of the Hessian along training.";
    const EXAMPLES: &'static str = "Examples:
  spectrum --preset quick --dataset digits                 no files needed
  spectrum --set examples=0                                over all 60,000 training images
  spectrum --set matrix=gauss-newton                       the part that is never negative
  spectrum --network 784-100-10 --weights mine.safetensors weights of your own
  spectrum --module mine.pt --data mine.npz                a TorchScript module of your own, with data of your own
  spectrum --resume                                        after Ctrl-C or a crash";
    const FLAGS: &'static [Flag] = &[NETWORK, WEIGHTS, MODULE, DATA];
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 339.), ("quick", 13.)];
    const PRESETS: &'static str = include_str!("../../../configs/spectrum.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        module::check(&settings.module, &settings.data, &settings.weights, &settings.network)?;
        let network = network(&settings.network)?;
        let preparation = preparation(&network, &settings.images);
        preparation.check()?;
        settings.optimiser().check()?;
        Training::check_batch(settings.batch, preparation.most()).context("batch")?;
        ensure!(settings.epochs > 0, "epochs must be at least 1, found 0");
        let ascending = settings.at.windows(2).all(|pair| pair[0] < pair[1]);
        ensure!(
            ascending && settings.at.last().is_some_and(|&last| last <= settings.epochs),
            "at must name epochs from 0 to {}, ascending, found {:?}",
            settings.epochs,
            settings.at
        );
        settings.check_count(if settings.module.is_empty() { network.count() } else { i64::MAX })?;
        let positive = [
            ("tolerance", settings.tolerance),
            ("trace_error", settings.trace_error),
            ("density.width", settings.density.width),
        ];
        for (key, value) in positive {
            ensure!(value > 0. && value < 1., "{key} must lie between 0 and 1, found {value}");
        }
        let counts = [
            ("block", settings.block, 1, 256),
            ("products", settings.products, 1, 1_000_000),
            ("trace_products", settings.trace_products, 6, 1_000_000),
            ("density.probes", settings.density.probes, 1, 10_000),
            ("density.steps", settings.density.steps, 2, 1000),
            ("density.points", settings.density.points, 2, 100_000),
        ];
        for (key, found, least, most) in counts {
            ensure!(
                (least..=most).contains(&found),
                "{key} must lie between {least} and {most}, found {found}"
            );
        }
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        if settings.trains() { seeds_from(settings.seed, settings.seeds) } else { vec![settings.seed] }
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let trials = if settings.trains() { settings.trials() } else { Vec::new() };
        let (model, splits, trained, places) = if settings.module.is_empty() {
            let network = network(&settings.network)?;
            // Read first: a file that does not fit is no reason to load anything.
            let own =
                settings.weights.iter().map(|file| Ok((file.clone(), weights(&network, Path::new(file))?)));
            let own: Vec<(String, Tensor)> = own.collect::<Result<_>>()?;
            let images = [Images::load(run, settings.dataset, preparation(&network, &settings.images))?];
            let trained = train_all(run, std::slice::from_ref(&network), &images, &trials)?;
            let places = places(settings, &trials, &trained, own)?;
            (Model::Network(network), Splits::of(&images[0]), trained, places)
        } else {
            let (module, splits) = module::load(run, &settings.module, &settings.data)?;
            settings.check_count(module.count())?;
            let own = vec![(file_name(&settings.module).to_owned(), module.theta()?)];
            (Model::Module(module), splits, Vec::new(), places(settings, &[], &[], own)?)
        };
        if !trained.is_empty() {
            let keys = trials.iter().map(|trial| cells![trial.seed].to_vec());
            let curves = trained.iter().map(|one| one.curve.as_slice());
            run.write_table(
                "training",
                &curve_table(&["seed"], keys.zip(curves))?,
                "loss and accuracy by epoch",
            )?;
            run.write_figure("training", &training_figure(settings, run, &trained), "training curves")?;
        }

        let found = measure(settings, run, &model, &splits, &places)?;
        run.write_table(
            "eigenvalues",
            &eigenvalue_table(settings, &places, &found)?,
            "each eigenvalue with its residual",
        )?;
        run.write_table(
            "spectrum",
            &spectrum_table(settings, &places, &found)?,
            "each spectrum: ends, trace, norm, negative share, with standard errors",
        )?;
        let curves: Vec<Curve> = found.iter().filter_map(|one| Curve::of(settings, one)).collect();
        run.write_table(
            "density",
            &density_table(settings, &places, &curves)?,
            "the density with its spread over probes",
        )?;
        run.write_table(
            "quadrature",
            &quadrature_table(settings, &places, &found)?,
            "nodes and weights of each probe",
        )?;
        run.write_figure(
            "density",
            &density_figure(settings, run, &places, &curves),
            "spectral density at the end",
        )?;
        if settings.trains() && settings.at.len() > 1 {
            let figure = along_figure(settings, run, &places, &found);
            run.write_figure("along", &figure, "ends and trace of the spectrum along training")?;
        }
        if settings.trains() {
            run.write_claims(judge(settings, &places, &found))?;
        }
        Ok(closing_table(settings, &places, &found))
    }
}

impl Settings {
    /// Or it looks at what is given.
    fn trains(&self) -> bool {
        self.weights.is_empty() && self.module.is_empty()
    }

    fn check_count(&self, parameters: i64) -> Result<()> {
        let (largest, smallest) = (self.largest, self.smallest);
        ensure!(
            largest >= 1 && largest.saturating_add(smallest) as u64 <= parameters as u64,
            "largest must be at least 1, and with smallest at most the model's {parameters} parameters, found {largest} and {smallest}"
        );
        Ok(())
    }

    fn optimiser(&self) -> OptimiserSettings {
        let Self { lr, momentum, nesterov, weight_decay, .. } = *self;
        OptimiserSettings::Sgd { lr, momentum, nesterov, weight_decay }
    }

    fn trials(&self) -> Vec<Trial> {
        let trial = |seed: u64| Trial {
            name: format!("seed{seed}"),
            network: 0,
            images: 0,
            seed,
            stream: 0,
            optimiser: self.optimiser(),
            batch: self.batch,
            epochs: self.epochs,
            stop_at: None,
            snapshots: true,
        };
        seeds_from(self.seed, self.seeds).into_iter().map(trial).collect()
    }

    /// The largest eigenvalue with which descent on a quadratic by the whole gradient is stable: `(2 + 2β) / η`, with Nesterov's
    /// momentum `(2 + 2β) / ((1 + 2β) η)` (Cohen et al. 2021, section 2 and appendix B); less the weight decay, which is not in the loss.
    fn stable(&self) -> f64 {
        let Self { lr, momentum, nesterov, weight_decay, .. } = *self;
        (2. + 2. * momentum) / (lr * if nesterov { 1. + 2. * momentum } else { 1. }) - weight_decay
    }

    /// Eigenvalues within this of 0 count as 0: what the density is widened by.
    fn threshold(&self, one: &Found) -> f64 {
        self.density.width * one.largest().abs()
    }

    fn measured(&self, train: &Examples) -> i64 {
        let wanted = i64::try_from(self.examples).unwrap_or(i64::MAX);
        if wanted == 0 { train.count() } else { wanted.min(train.count()) }
    }

    fn subtitle(&self, run: &Run, more: &str) -> String {
        let examples = if self.examples == 0 { "all".to_owned() } else { thousands(self.examples as i64) };
        let (subject, examples) = if self.module.is_empty() {
            let name = if self.network == "lenet" { "LeNet" } else { &self.network };
            (format!("{name} on {}", self.dataset), format!("{examples} training images"))
        } else {
            let most = if self.examples == 0 { "" } else { "at most " };
            let subject = format!("{} on {}", file_name(&self.module), file_name(&self.data));
            (subject, format!("{most}{examples} training examples"))
        };
        let more = format!("{}, {examples}{more}", self.matrix.name());
        subtitle::<Spectrum>(self, run, &subject, &more)
    }
}

/// By seed, then by epoch; or the user's own.
fn places(
    settings: &Settings,
    trials: &[Trial],
    trained: &[Trained],
    own: Vec<(String, Tensor)>,
) -> Result<Vec<Place>> {
    let mut places: Vec<Place> = own
        .into_iter()
        .map(|(model, theta)| Place { model, seed: None, epoch: None, last: true, theta })
        .collect();
    for (trial, trained) in trials.iter().zip(trained) {
        let snapshots =
            trained.snapshots.as_ref().with_context(|| format!("{}: no snapshots", trial.name))?;
        for &epoch in &settings.at {
            places.push(Place {
                model: trial.name.clone(),
                seed: Some(trial.seed),
                epoch: Some(epoch),
                last: Some(&epoch) == settings.at.last(),
                theta: snapshots.f_select(0, i64::from(epoch))?,
            });
        }
    }
    Ok(places)
}

/// Measures every place, several side by side, each with its share of the cores.
fn measure(
    settings: &Settings,
    run: &Run,
    model: &Model,
    splits: &Splits,
    places: &[Place],
) -> Result<Vec<Found>> {
    let stage = run.progress.stage("spectrum", places.len() as u64);
    let device = run.device.device;
    let count = settings.measured(&splits.train);
    let thetas = || places.iter().map(|one| Ok(one.theta.f_to_device(device)?)).collect::<Result<Vec<_>>>();
    let contexts = run.contexts(places.len(), || Ok((model.again()?, splits.share(), thetas()?)))?;
    let threads = (run.workers / contexts.len().max(1)).max(1);
    // Without their θ, which threads cannot share.
    let mut jobs: Vec<(usize, String, bool)> =
        places.iter().enumerate().map(|(index, place)| (index, place.name(), place.last)).collect();
    // The longest first: those with a density.
    jobs.sort_by_key(|(_, _, last)| !last);
    let mut measured = in_parallel(contexts, &jobs, |(model, splits, thetas), (index, name, last)| {
        let (model, theta) = (&*model, &thetas[*index]);
        let content = serde_json::json!({
            "what": "spectrum",
            "network": describe_model(model),
            "theta": fingerprint(theta)?,
            "prepared": splits.prepared,
            "examples": count,
            "matrix": settings.matrix,
            "eigen": [settings.largest, settings.smallest, settings.block, settings.products],
            "tolerance": settings.tolerance,
            "trace": (settings.trace_estimator, settings.trace_error, settings.trace_products),
            "seed": settings.seed,
            "density": last.then_some([settings.density.probes, settings.density.steps]),
        });
        let numbers = run.kept(&content, || {
            let measured = || {
                let (examples, loss) = (splits.train.first(count)?, splits.loss);
                let operator = match model {
                    Model::Network(network) => {
                        CurvatureOperator::with_threads(network, theta, &examples, loss, threads)
                    }
                    Model::Module(module) => {
                        CurvatureOperator::of_module(module, theta, &examples, loss, threads)
                    }
                }?;
                let matrix = operator.of(settings.matrix.curvature());
                numbers(settings, &Watched { matrix: &matrix, run }, (name, *last), &stage)
            };
            match measured() {
                // A model that diverged says so in its numbers, and the others are still measured.
                Err(CurvatureError::NotFinite) => Ok(nowhere(settings)?),
                found => {
                    run.check_interrupted()?;
                    found.with_context(|| format!("the curvature of {name}"))
                }
            }
        })?;
        stage.advance(1, format!("{}: λ {}", name, short(numbers["values"].f_double_value(&[0])?)));
        found(*index, &numbers)
    })?;
    measured.sort_by_key(|one| one.place);
    Ok(measured)
}

impl Place {
    fn name(&self) -> String {
        match self.epoch {
            Some(epoch) => format!("{}, epoch {epoch}", self.model),
            None => self.model.clone(),
        }
    }
}

fn numbers(
    settings: &Settings,
    matrix: &dyn Symmetric,
    (name, last): (&str, bool),
    stage: &Stage,
) -> Result<Numbers, CurvatureError> {
    let eigen = EigenSettings {
        largest: settings.largest,
        smallest: settings.smallest,
        tolerance: settings.tolerance,
        block: settings.block,
        products: settings.products,
        seed: settings.seed,
    };
    let pairs = eigenpairs(matrix, eigen, &|progress| {
        stage.advance(
            0,
            format!(
                "{name}: {} of {} eigenvalues after {} products",
                progress.converged, progress.wanted, progress.products
            ),
        );
        true
    })?;
    let Settings { trace_estimator, trace_error, trace_products, seed, .. } = *settings;
    let trace = trace_estimator.estimate(matrix, trace_error, trace_products, seed, &|so_far| {
        stage.advance(0, format!("{name}: trace {} ± {}", short(so_far.value), short(so_far.standard_error)));
        true
    })?;
    let mut numbers = Numbers::new();
    let mut keep = |name: &str, values: &[f64]| -> Result<(), CurvatureError> {
        numbers.insert(name.to_owned(), Tensor::f_from_slice(values)?);
        Ok(())
    };
    keep("values", &pairs.values)?;
    keep("residuals", &pairs.residuals)?;
    keep("converged", &[f64::from(u8::from(pairs.converged))])?;
    keep("trace", &[trace.trace.value, trace.trace.standard_error])?;
    keep("frobenius", &[trace.frobenius.value, trace.frobenius.standard_error])?;
    if last {
        let Density { probes, steps, .. } = settings.density;
        let density =
            spectral_density(matrix, DensitySettings { probes, steps, seed: settings.seed }, &|products| {
                stage.advance(0, format!("{name}: density, {products} of {} products", probes * steps));
                true
            })?;
        for (probe, one) in density.iter().enumerate() {
            keep(&format!("nodes{probe:05}"), &one.nodes)?;
            keep(&format!("weights{probe:05}"), &one.weights)?;
        }
    }
    Ok(numbers)
}

/// The same where the curvature is not finite.
fn nowhere(settings: &Settings) -> Result<Numbers> {
    let pairs = vec![f64::NAN; settings.largest + settings.smallest];
    let named = [
        ("values", pairs.clone()),
        ("residuals", pairs),
        ("converged", vec![0.]),
        ("trace", vec![f64::NAN; 2]),
        ("frobenius", vec![f64::NAN; 2]),
    ];
    named.into_iter().map(|(name, values)| Ok((name.to_owned(), Tensor::f_from_slice(&values)?))).collect()
}

fn found(place: usize, numbers: &Numbers) -> Result<Found> {
    let get = |name: &str| -> Result<Vec<f64>> {
        Ok(Vec::try_from(numbers.get(name).with_context(|| format!("{name} is missing"))?)?)
    };
    let pair = |name: &str| -> Result<[f64; 2]> {
        get(name)?.try_into().map_err(|_| anyhow::anyhow!("{name} is not a value with its error"))
    };
    let probes = numbers.keys().filter_map(|name| name.strip_prefix("nodes"));
    let density = probes.map(|probe| {
        Ok(Quadrature { nodes: get(&format!("nodes{probe}"))?, weights: get(&format!("weights{probe}"))? })
    });
    Ok(Found {
        place,
        values: get("values")?,
        residuals: get("residuals")?,
        converged: get("converged")? == [1.],
        trace: pair("trace")?,
        frobenius: pair("frobenius")?,
        density: density.collect::<Result<_>>()?,
    })
}

fn eigenvalue_table(settings: &Settings, places: &[Place], found: &[Found]) -> Result<Table> {
    let mut table = Table::new(&[
        "model",
        "seed",
        "epoch",
        "matrix",
        "end",
        "rank",
        "eigenvalue",
        "residual",
        "converged",
    ]);
    for one in found {
        let place = &places[one.place];
        let largest = settings.largest.min(one.values.len());
        for (index, (value, residual)) in one.values.iter().zip(&one.residuals).enumerate() {
            // From its own end on.
            let (end, rank) =
                if index < largest { ("largest", index + 1) } else { ("smallest", one.values.len() - index) };
            table.row(cells![
                place.model.as_str(),
                place.seed,
                place.epoch,
                settings.matrix.name(),
                end,
                rank as u64,
                *value,
                *residual,
                one.converged.to_string()
            ])?;
        }
    }
    Ok(table)
}

fn spectrum_table(settings: &Settings, places: &[Place], found: &[Found]) -> Result<Table> {
    let mut table = Table::new(&[
        "model",
        "seed",
        "epoch",
        "matrix",
        "largest_eigenvalue",
        "smallest_eigenvalue",
        "trace",
        "trace_standard_error",
        "frobenius_norm",
        "frobenius_norm_standard_error",
        "largest_stable_eigenvalue",
        "negative_mass",
        "negative_mass_standard_error",
        "negative_share",
        "negative_share_standard_error",
    ]);
    for one in found {
        let place = &places[one.place];
        let threshold = settings.threshold(one);
        let mass = negative_mass(settings, one);
        let share = one.over_probes(|probe| probe.negative_share(threshold));
        let finite = |value: f64| value.is_finite().then_some(value);
        table.row(cells![
            place.model.as_str(),
            place.seed,
            place.epoch,
            settings.matrix.name(),
            one.largest(),
            (settings.smallest > 0).then(|| one.values.last().copied()).flatten(),
            one.trace[0],
            finite(one.trace[1]),
            one.frobenius[0],
            finite(one.frobenius[1]),
            place.epoch.map(|_| settings.stable()),
            mass.map(|mass| mass[0]),
            mass.and_then(|mass| finite(mass[1])),
            share.map(|share| share[0]),
            share.and_then(|share| finite(share[1]))
        ])?;
    }
    Ok(table)
}

/// The density of one place over λ, with the spread over its probes.
struct Curve {
    place: usize,
    /// λ, mean, and one standard error below and above it.
    points: Vec<(f64, f64, f64, f64)>,
    largest: Vec<f64>,
}

impl Curve {
    fn of(settings: &Settings, one: &Found) -> Option<Self> {
        let nodes = || one.density.iter().flat_map(|probe| probe.nodes.iter().copied());
        let (low, high) = (nodes().reduce(f64::min)?, nodes().reduce(f64::max)?);
        let width = settings.density.width * high.abs().max(low.abs()).max(f64::MIN_POSITIVE);
        let (low, high) = (low - 5. * width, high + 5. * width);
        let points = (0..settings.density.points).map(|index| {
            let lambda = low + (high - low) * index as f64 / (settings.density.points - 1) as f64;
            let [mean, error] =
                one.over_probes(|probe| probe.density(lambda, width)).unwrap_or([f64::NAN; 2]);
            let error = if error.is_finite() { error } else { 0. };
            (lambda, mean, (mean - error).max(0.), mean + error)
        });
        Some(Self {
            place: one.place,
            points: points.collect(),
            largest: one.values[..settings.largest.min(one.values.len())].to_vec(),
        })
    }
}

fn density_table(settings: &Settings, places: &[Place], curves: &[Curve]) -> Result<Table> {
    let mut table = Table::new(&["model", "seed", "epoch", "matrix", "eigenvalue", "density", "low", "high"]);
    for curve in curves {
        let place = &places[curve.place];
        for &(lambda, mean, low, high) in &curve.points {
            table.row(cells![
                place.model.as_str(),
                place.seed,
                place.epoch,
                settings.matrix.name(),
                lambda,
                mean,
                low,
                high
            ])?;
        }
    }
    Ok(table)
}

fn quadrature_table(settings: &Settings, places: &[Place], found: &[Found]) -> Result<Table> {
    let mut table = Table::new(&["model", "seed", "epoch", "matrix", "probe", "node", "weight"]);
    for one in found {
        let place = &places[one.place];
        for (probe, quadrature) in one.density.iter().enumerate() {
            for (node, weight) in quadrature.nodes.iter().zip(&quadrature.weights) {
                table.row(cells![
                    place.model.as_str(),
                    place.seed,
                    place.epoch,
                    settings.matrix.name(),
                    probe as u64,
                    *node,
                    *weight
                ])?;
            }
        }
    }
    Ok(table)
}

/// Densities below this are drawn at it: an eigenvalue of 61,706 has 1.6e-5 of the mass.
const LEAST_DENSITY: f64 = 1e-7;

fn density_figure(settings: &Settings, run: &Run, places: &[Place], curves: &[Curve]) -> Figure {
    let title = format!("spectral density of the {}", settings.matrix.name());
    let mut panel = Panel::new(title, Axis::linear("eigenvalue λ"), Axis::log10("density (1/λ)"));
    for (index, curve) in curves.iter().enumerate() {
        let place = &places[curve.place];
        let line = curve.points.iter().map(|&(x, y, ..)| (x, y.max(LEAST_DENSITY)));
        let band = curve
            .points
            .iter()
            .map(|&(x, _, low, high)| (x, low.max(LEAST_DENSITY), high.max(LEAST_DENSITY)));
        let band = band.collect();
        let colour = Colour::nth(index);
        panel = panel.with(Series::line(place.name(), colour, line.collect()).with_band(band));
        if curves.len() == 1 {
            let marks = curve.largest.iter().map(|&value| (value, 2. * LEAST_DENSITY)).collect();
            let marks = Series::scatter("largest eigenvalues (Lanczos)", Colour::Vermillion, marks);
            panel = panel.with(marks.with_marker(Marker::TriangleUp));
        }
    }
    let Density { probes, steps, width, .. } = settings.density;
    let more = format!(" · {probes} probes of {steps} steps, each node widened to {width} of the largest");
    let mut figure =
        Figure::new("How the curvature is distributed", settings.subtitle(run, &more), vec![panel]);
    figure.band_meaning = "one standard error over the probes".into();
    figure
}

/// Values at an epoch over the seeds.
fn at_epoch<'a>(
    places: &'a [Place],
    found: &'a [Found],
    epoch: u32,
    of: impl Fn(&Found) -> f64 + 'a,
) -> Vec<f64> {
    found.iter().filter(|one| places[one.place].epoch == Some(epoch)).map(of).collect()
}

fn along_figure(settings: &Settings, run: &Run, places: &[Place], found: &[Found]) -> Figure {
    let epochs = || settings.at.iter().map(|&epoch| (f64::from(epoch), epoch));
    let rank = |index: usize| {
        epochs().filter_map(move |(x, epoch)| {
            let values =
                at_epoch(places, found, epoch, |one| one.values.get(index).copied().unwrap_or(f64::NAN));
            Some((x, geometric_mean_interval(&values, LEVEL)?))
        })
    };
    let mut largest = Panel::new("largest eigenvalues", Axis::whole("epoch"), Axis::log10("eigenvalue"))
        .with_level(settings.stable(), "largest stable with the whole gradient");
    let shown = settings.largest.min(5);
    for index in 0..shown {
        let line = series(format!("λ{}", index + 1), Colour::nth(index), 1., rank(index));
        largest = largest.with(line.with_points());
    }
    let over = |of: &dyn Fn(&Found) -> f64| {
        let values = epochs()
            .filter_map(|(x, epoch)| Some((x, mean_interval(&at_epoch(places, found, epoch, of), LEVEL)?)));
        values.collect::<Vec<_>>()
    };
    let mut panels = vec![largest];
    if settings.smallest > 0 {
        let lowest = over(&|one| one.values.last().copied().unwrap_or(f64::NAN));
        panels.push(
            Panel::new("smallest eigenvalue", Axis::whole("epoch"), Axis::linear("eigenvalue"))
                .with(series("smallest", Colour::Vermillion, 1., lowest).with_points()),
        );
    }
    panels.push(
        Panel::new("trace and Frobenius norm", Axis::whole("epoch"), Axis::linear("trace, norm"))
            .with(series("trace", Colour::Blue, 1., over(&|one| one.trace[0])).with_points())
            .with(series("Frobenius norm", Colour::Green, 1., over(&|one| one.frobenius[0])).with_points()),
    );
    let more = format!(" · SGD, batch {}, lr {}", settings.batch, settings.lr);
    Figure::new("Curvature along training", settings.subtitle(run, &more), panels)
}

fn training_figure(settings: &Settings, run: &Run, trained: &[Trained]) -> Figure {
    let curves = trained.iter().map(|one| one.curve.as_slice()).collect();
    let group =
        Group { name: format!("batch {}, lr {}", settings.batch, settings.lr), colour: Colour::Blue, curves };
    let subtitle = settings.subtitle(run, " · train: mean over the epoch; test: after it");
    Figure::new("Training", subtitle, curve_panels(&[group]))
}

/// Fixed before the data.
const CLAIMS: [Claim; 3] = [
    Claim {
        id: "negative-mass",
        statement: "At the end of training next to none of the curvature is negative",
        source: "Ghorbani et al. 2019",
        statistic: "sum of the sizes of the negative eigenvalues over that of all, those within a hundredth of the largest left out, at the \
                    last epoch measured (fraction)",
        rule: Rule::MeanBelow(0.1),
    },
    Claim {
        id: "outliers",
        statement: "As many eigenvalues as there are classes, less one, stand apart from the rest",
        source: "Sagun et al. 2017",
        statistic: "ln of the ratio of the ninth largest eigenvalue to the tenth (no unit)",
        rule: Rule::MeanAbove(0.1),
    },
    Claim {
        id: "edge",
        statement: "With small batches the largest eigenvalue stays below what gradient descent with the whole gradient could bear",
        source: "Cohen et al. 2021",
        statistic: "largest eigenvalue at the last epoch measured over the largest stable one (no unit)",
        rule: Rule::MeanBelow(1.),
    },
];

fn negative_mass(settings: &Settings, one: &Found) -> Option<[f64; 2]> {
    let threshold = settings.threshold(one);
    one.over_probes(|probe| probe.negative_mass(threshold))
}

fn judge(settings: &Settings, places: &[Place], found: &[Found]) -> Vec<Outcome> {
    let last: Vec<&Found> = found.iter().filter(|one| places[one.place].last).collect();
    let [negative, outliers, edge] = &CLAIMS;
    let mut outcomes = Vec::new();
    if settings.matrix == MatrixName::Hessian {
        let masses: Vec<f64> =
            last.iter().filter_map(|one| negative_mass(settings, one)).map(|mass| mass[0]).collect();
        outcomes.push(negative.judge(&masses));
    }
    if settings.largest >= 10 {
        let ratio = |one: &&Found| (one.values[8] / one.values[9]).ln();
        outcomes.push(
            outliers.judge(&last.iter().filter(|one| one.values.len() >= 10).map(ratio).collect::<Vec<_>>()),
        );
    }
    outcomes.push(edge.judge(&last.iter().map(|one| one.largest() / settings.stable()).collect::<Vec<_>>()));
    outcomes
}

fn closing_table(settings: &Settings, places: &[Place], found: &[Found]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["model", "epoch", "largest eigenvalues", "smallest", "trace", "negative mass"]);
    let with_error = |[value, error]: [f64; 2]| {
        if error.is_finite() { format!("{} ± {}", short(value), short(error)) } else { short(value) }
    };
    for one in found {
        let place = &places[one.place];
        let largest: Vec<String> = one.values.iter().take(5).map(|&value| short(value)).collect();
        let mark = if one.converged { "" } else { " (not converged)" };
        table.add_row([
            place.model.clone(),
            place.epoch.map(|epoch| epoch.to_string()).unwrap_or_default(),
            format!("{}{mark}", largest.join(", ")),
            one.values.last().map(|&value| short(value)).unwrap_or_default(),
            with_error(one.trace),
            negative_mass(settings, one).map(with_error).unwrap_or_default(),
        ]);
    }
    table
}
