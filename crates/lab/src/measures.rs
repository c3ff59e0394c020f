//! Generalisation measures against the generalisation gap, over a grid of trained networks (Jiang et al. 2020, "Fantastic generalization
//! measures and where to find them"; Dziugaite et al. 2020, "In search of robust measures of generalization").
//!
//! Each network is trained to the same loss; the measures of `flatland_geometry::measure` are taken of it on training examples only; and
//! Kendall's rank correlation says whether a measure orders the networks as their gap does: over all of them, and granulated, between
//! networks that differ in one hyperparameter alone.

use crate::command::Flag;
use crate::experiment::{Experiment, check_seeds, seeds_from};
use crate::images::{ImageSettings, Images, PixelData};
use crate::parallel::in_parallel;
use crate::run::{Numbers, Run, fingerprint};
use crate::subject::{NETWORK, WEIGHTS, network, preparation, weights};
use crate::summary::{number, short, subtitle};
use crate::trial::{Both, describe, evaluate_both};
use anyhow::{Context, Result, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::DataSetName;
use flatland_geometry::measure::{
    Family, Measure, Measured, NoiseSettings, catalogue, curvature_measures, gradient_noise_measures,
    layer_norms, margin_measures, margin_percentile, margins, norm_measures, pac_bayes_measures, path_norm,
    reaction_measures,
};
use flatland_network::snapshot::to_safetensors;
use flatland_network::{
    Evaluation, Examples, Layer, Loss, Network, Optimiser, OptimiserSettings, Training, initialise,
};
use flatland_record::{Axis, Colour, Figure, Marker, Panel, Scale, Series, Table, cells};
use flatland_statistics::{
    Claim, Granulated, Interval, LEVEL, Outcome, Rule, granulated_kendall, kendall, kendall_interval,
};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// `configs/measures.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub dataset: DataSetName,
    pub seeds: u64,
    pub seed: u64,
    pub network: String,
    pub weights: Vec<String>,
    pub widths: Vec<f64>,
    pub batches: Vec<i64>,
    pub lrs: Vec<f64>,
    pub weight_decays: Vec<f64>,
    pub label_noise: Vec<f64>,
    pub momentum: f64,
    pub nesterov: bool,
    pub epochs: u32,
    pub stop_at_loss: f64,
    pub curvature_examples: usize,
    pub gradient_examples: usize,
    pub sensitivity_examples: usize,
    pub resamples: usize,
    pub images: ImageSettings,
    pub noise: Noise,
}

/// How σ is sought.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Noise {
    pub rise: f64,
    pub draws: usize,
    pub epsilon: f64,
    pub examples: usize,
}

/// Known from the training alone, and a yardstick for all others.
const TRAIN_LOSS: Measure = Measure {
    name: "train_loss",
    label: "training loss",
    family: Family::Training,
    formula: "mean ℓ_i over the training examples (nats)",
    source: "Jiang et al. 2020",
};
const STEPS: Measure = Measure {
    name: "steps",
    label: "steps of training",
    family: Family::Training,
    formula: "steps until the loss to stop at",
    source: "Jiang et al. 2020",
};

/// The grid's axes, in the tables' order.
const HYPERPARAMETERS: [&str; 5] = ["network", "batch", "lr", "weight_decay", "label_noise"];

/// One point of the grid.
#[derive(Debug, Clone)]
struct Setting {
    /// Which value of each of [`HYPERPARAMETERS`].
    levels: [usize; 5],
    batch: i64,
    lr: f64,
    weight_decay: f64,
    label_noise: f64,
}

/// A network with its weights, trained here or given.
#[derive(Debug)]
struct Model {
    name: String,
    /// Of the networks and of the images.
    network: usize,
    images: usize,
    /// `None` for weights of the user's own.
    trained: Option<Course>,
    /// θ `[P]` on the CPU.
    theta: Tensor,
    end: Both,
    /// In the order of [`all_measures`]; `None` where it is not defined.
    values: Vec<Option<f64>>,
}

/// How it was trained.
#[derive(Debug, Clone)]
struct Course {
    seed: u64,
    setting: Setting,
    epochs: u32,
    steps: f64,
    /// Whether the loss to stop at was reached.
    reached: bool,
}

/// What a measure is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    Error,
    Loss,
}

impl Gap {
    const BOTH: [Self; 2] = [Self::Error, Self::Loss];

    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Loss => "loss",
        }
    }

    fn of(self, model: &Model) -> f64 {
        let Both { train, test } = model.end;
        match self {
            Self::Error => accuracy(train) - accuracy(test),
            Self::Loss => test.loss - train.loss,
        }
    }
}

/// A measure over all models.
#[derive(Debug)]
struct Correlation {
    /// Of [`all_measures`].
    measure: usize,
    gap: Gap,
    models: usize,
    tau: Option<Interval>,
    granulated: Option<Granulated>,
}

/// Below this, a rank correlation says nothing.
const FEWEST: usize = 3;

/// The experiment.
#[derive(Debug)]
pub struct Measures;

impl Experiment for Measures {
    const NAME: &'static str = "measures";
    const ABOUT: &'static str = "Which measure of a trained network tells how well it generalises? Norms, margins, flatness \
        and sensitivity against the generalisation gap, over a grid of hyperparameters.";
    const EXAMPLES: &'static str = "Examples:
  measures --preset quick --dataset digits              no files needed
  measures --network lenet --set 'lrs=[0.01,0.03]'      another family of networks
  measures --set 'label_noise=[0.0,0.1]'                one more hyperparameter
  measures --network lenet --weights a.safetensors      the measures of weights of your own
  measures --resume                                     after Ctrl-C or a crash";
    const FLAGS: &'static [Flag] = &[NETWORK, WEIGHTS];
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 181.), ("quick", 16.)];
    const PRESETS: &'static str = include_str!("../../../configs/measures.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        let networks = settings.networks()?;
        for (index, one) in networks.iter().enumerate() {
            let twice = networks[..index].iter().any(|other| other.name() == one.name());
            ensure!(!twice, "widths must give different networks, found {} twice", one.name());
        }
        let preparation = settings.images.preparation();
        preparation.check()?;
        different("batches", &settings.batches)?;
        different("lrs", &settings.lrs)?;
        different("weight_decays", &settings.weight_decays)?;
        different("label_noise", &settings.label_noise)?;
        for setting in settings.grid(networks.len()) {
            Training::check_batch(setting.batch, preparation.most()).context("batches")?;
            settings.optimiser(&setting).check()?;
            let noise = setting.label_noise;
            ensure!((0. ..=1.).contains(&noise), "label_noise must lie between 0 and 1, found {noise}");
        }
        ensure!(settings.epochs > 0, "epochs must be at least 1, found 0");
        ensure!(
            settings.stop_at_loss >= 0.,
            "stop_at_loss must be 0 or more, found {}",
            settings.stop_at_loss
        );
        let Noise { rise, draws, epsilon, .. } = settings.noise;
        ensure!(rise > 0. && rise < 1., "noise.rise must lie between 0 and 1, found {rise}");
        ensure!((1..=1000).contains(&draws), "noise.draws must lie between 1 and 1,000, found {draws}");
        ensure!(epsilon > 0. && epsilon.is_finite(), "noise.epsilon must be above 0, found {epsilon}");
        let resamples = settings.resamples;
        ensure!(resamples <= 1_000_000, "resamples must be at most 1,000,000, found {resamples}");
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        seeds_from(settings.seed, if settings.weights.is_empty() { settings.seeds } else { 1 })
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let networks = settings.networks()?;
        let given = settings
            .weights
            .iter()
            .map(|path| weights(&networks[0], Path::new(path)))
            .collect::<Result<Vec<_>>>()?;
        let data = PixelData::load(run, settings.dataset, preparation(&networks[0], &settings.images))?;
        let images = settings.images(run, &data)?;
        let mut models = if given.is_empty() {
            train(settings, run, &networks, &images)?
        } else {
            settings.models_of(&networks[0], &images[0], given, run)?
        };
        run.write_table("models", &model_table(&networks, &models)?, "each model: how trained, and its gap")?;

        measure(settings, run, &networks, &images, &mut models)?;
        run.write_table("measures", &measure_table(&networks, &models)?, "each measure of each model")?;
        run.write_table("catalogue", &catalogue_table()?, "what each measure is, and whose")?;

        // Only models that were trained equally far are compared.
        let compared: Vec<&Model> = models
            .iter()
            .filter(|model| model.trained.as_ref().is_none_or(|course| course.reached))
            .collect();
        if compared.len() < models.len() {
            let left = models.len() - compared.len();
            run.progress.note(&format!(
                "{left} of {} models did not reach a loss of {}: they are measured, not correlated",
                models.len(),
                settings.stop_at_loss
            ));
        }
        if compared.len() < FEWEST {
            return Ok(value_table(&models));
        }
        let correlations = correlate(settings, &compared);
        run.write_table(
            "correlation",
            &correlation_table(&correlations)?,
            "Kendall's τ of each measure with the gap",
        )?;
        run.write_figure(
            "correlation",
            &correlation_figure(settings, run, &correlations, compared.len()),
            "the same, with intervals",
        )?;
        if correlations.iter().any(|one| one.granulated.is_some()) {
            run.write_table(
                "granulated",
                &granulated_table(&correlations)?,
                "τ along each hyperparameter alone",
            )?;
            run.write_figure(
                "granulated",
                &granulated_figure(settings, run, &correlations, compared.len()),
                "the same, drawn",
            )?;
        }
        run.write_figure("scatter", &scatter_figure(settings, run, &compared), "the gap over some measures")?;
        if settings.weights.is_empty() {
            run.write_claims(judge(settings, &compared))?;
        }
        Ok(closing_table(&correlations))
    }
}

fn different<T: PartialEq + std::fmt::Display>(key: &str, values: &[T]) -> Result<()> {
    ensure!(!values.is_empty(), "{key} must name at least one value, found none");
    for (index, value) in values.iter().enumerate() {
        ensure!(!values[..index].contains(value), "{key} must be different, found {value} twice");
    }
    Ok(())
}

fn accuracy(of: Evaluation) -> f64 {
    of.accuracy.unwrap_or(f64::NAN)
}

/// Those of geometry, then those that the training itself gives.
fn all_measures() -> Vec<Measure> {
    [catalogue(), vec![TRAIN_LOSS, STEPS]].concat()
}

impl Settings {
    /// The named one, or for dense ones each of its widths.
    fn networks(&self) -> Result<Vec<Network>> {
        let named = network(&self.network)?;
        if named.dense_layers().is_none() || !self.weights.is_empty() {
            return Ok(vec![named]);
        }
        different("widths", &self.widths)?;
        let scaled = |&factor: &f64| {
            ensure!(factor > 0. && factor <= 1000., "widths must lie between 0 and 1,000, found {factor}");
            let last = named.parameters().len() / 2 - 1;
            let outputs = named.parameters().iter().step_by(2).enumerate().map(|(layer, weight)| {
                let width = weight.shape[0];
                if layer == last { width } else { ((width as f64 * factor).round() as i64).max(1) }
            });
            let widths: Vec<i64> = named.input().iter().copied().chain(outputs).collect();
            Ok(Network::dense(&widths, &Layer::Relu)?)
        };
        self.widths.iter().map(scaled).collect()
    }

    fn optimiser(&self, setting: &Setting) -> OptimiserSettings {
        let &Self { momentum, nesterov, .. } = self;
        OptimiserSettings::Sgd { lr: setting.lr, momentum, nesterov, weight_decay: setting.weight_decay }
    }

    /// Every combination.
    fn grid(&self, networks: usize) -> Vec<Setting> {
        let mut grid = Vec::new();
        for network in 0..networks {
            for (b, &batch) in self.batches.iter().enumerate() {
                for (l, &lr) in self.lrs.iter().enumerate() {
                    for (w, &weight_decay) in self.weight_decays.iter().enumerate() {
                        for (n, &label_noise) in self.label_noise.iter().enumerate() {
                            let levels = [network, b, l, w, n];
                            grid.push(Setting { levels, batch, lr, weight_decay, label_noise });
                        }
                    }
                }
            }
        }
        grid
    }

    /// By share of random labels, then by seed. Given weights are measured on the true labels.
    fn images(&self, run: &Run, data: &PixelData) -> Result<Vec<Images>> {
        let all = data.images(run, &data.train, &data.test, data.prepared.clone())?;
        if !self.weights.is_empty() {
            return Ok(vec![all]);
        }
        let mut images = Vec::new();
        for &noise in &self.label_noise {
            for seed in Measures::seeds(self) {
                images.push(if noise == 0. {
                    all.share()
                } else {
                    let labels = data.random_labels(data.train.labels.len(), noise, seed);
                    let prepared =
                        format!("{}; labels random with probability {noise} by seed {seed}", data.prepared);
                    all.relabelled(&labels, prepared)?
                });
            }
        }
        Ok(images)
    }

    /// Of the user's own weights.
    fn models_of(
        &self,
        network: &Network,
        images: &Images,
        given: Vec<Tensor>,
        run: &Run,
    ) -> Result<Vec<Model>> {
        let model = |(path, theta): (&String, Tensor)| {
            run.check_interrupted()?;
            let name = Path::new(path)
                .file_stem()
                .map_or_else(|| path.clone(), |s| s.to_string_lossy().into_owned());
            let end = evaluate_both(network, &theta.f_to_device(run.device.device)?, images)?;
            Ok(Model { name, network: 0, images: 0, trained: None, theta, end, values: Vec::new() })
        };
        self.weights.iter().zip(given).map(model).collect()
    }

    fn subtitle(&self, run: &Run, more: &str) -> String {
        let names = self.networks().unwrap_or_default();
        let names: Vec<&str> = names.iter().map(Network::name).collect();
        subtitle::<Measures>(self, run, &format!("{} on {}", names.join(", "), self.dataset), more)
    }
}

/// Trains every setting of every seed, the longest first; returned by seed and setting.
fn train(settings: &Settings, run: &Run, networks: &[Network], images: &[Images]) -> Result<Vec<Model>> {
    let seeds = Measures::seeds(settings);
    let grid = settings.grid(networks.len());
    let mut jobs: Vec<(usize, usize)> =
        (0..seeds.len()).flat_map(|seed| (0..grid.len()).map(move |setting| (seed, setting))).collect();
    jobs.sort_by_key(|&(seed, setting)| {
        let Setting { levels, batch, .. } = grid[setting];
        (std::cmp::Reverse(networks[levels[0]].count()), batch, seed, setting)
    });
    let stage = run.progress.stage("training", jobs.len() as u64);
    let contexts = run.contexts(jobs.len(), || Ok(images.iter().map(Images::share).collect::<Vec<_>>()))?;
    let trained = in_parallel(contexts, &jobs, |images, &(seed, setting)| {
        let setting = &grid[setting];
        let place = setting.levels[4] * seeds.len() + seed;
        let network = &networks[setting.levels[0]];
        let model = fit(settings, run, network, (place, &images[place]), seeds[seed], setting)?;
        let epochs = model.trained.as_ref().map_or(0, |course| course.epochs);
        stage.advance(1, format!("{}: {epochs} epochs, loss {:.4}", model.name, model.end.train.loss));
        Ok(model)
    })?;
    let mut sorted: Vec<((usize, usize), Model)> = jobs.into_iter().zip(trained).collect();
    sorted.sort_by_key(|(job, _)| *job);
    Ok(sorted.into_iter().map(|(_, model)| model).collect())
}

/// Until the loss to stop at, or the last epoch, or a loss that is no number. Test loss after every epoch would cost as much as training.
fn fit(
    settings: &Settings,
    run: &Run,
    network: &Network,
    (place, images): (usize, &Images),
    seed: u64,
    setting: &Setting,
) -> Result<Model> {
    let Setting { batch, lr, weight_decay, label_noise, levels } = *setting;
    let noise = if label_noise > 0. { format!("-noise{label_noise}") } else { String::new() };
    let name = format!("seed{seed}-{}-batch{batch}-lr{lr}-wd{weight_decay}{noise}", network.name());
    let optimiser = settings.optimiser(setting);
    let content = serde_json::json!({
        "what": "measures: training", "network": describe(network), "seed": seed, "prepared": images.prepared,
        "optimiser": optimiser, "batch": batch, "epochs": settings.epochs, "stop_at_loss": settings.stop_at_loss,
        "train": images.train.count(), "test": images.test.count(),
    });
    let mut numbers = run.kept(&content, || {
        let mut training = Training {
            network,
            loss: Loss::CrossEntropy,
            examples: &images.train,
            batch,
            // The same for all settings of a seed: they differ in nothing else.
            stream: (seed, 0),
            theta: initialise(network, seed, 0, Kind::Float, run.device.device)?,
            optimiser: Optimiser::new(optimiser)?,
            epochs: 0,
        };
        let mut running = f64::INFINITY;
        while training.epochs < settings.epochs && running > settings.stop_at_loss {
            run.check_interrupted()?;
            running = training.epoch().with_context(|| format!("model {name} failed"))?.loss;
        }
        let end = evaluate_both(network, &training.theta, images)?;
        let pair = |of: Evaluation| [of.loss, accuracy(of)];
        let row = [&[running, f64::from(training.epochs)], &pair(end.train)[..], &pair(end.test)].concat();
        Ok(Numbers::from([
            ("theta".to_owned(), training.theta.f_to_device(Device::Cpu)?),
            ("row".to_owned(), Tensor::f_from_slice(&row)?),
        ]))
    })?;
    let row = Vec::<f64>::try_from(numbers.remove("row").context("a model's numbers are missing")?)?;
    let theta = numbers.remove("theta").context("a model's weights are missing")?;
    let &[running, epochs, train_loss, train_accuracy, test_loss, test_accuracy] = row.as_slice() else {
        anyhow::bail!("a model's numbers are damaged: {} of them", row.len());
    };
    run.write_weights(&name, &to_safetensors(network, &theta)?)?;
    let value = |loss: f64, accuracy: f64| Evaluation { loss, accuracy: Some(accuracy) };
    let trained = Course {
        seed,
        setting: setting.clone(),
        epochs: epochs as u32,
        steps: epochs * ((images.train.count() + batch - 1) / batch) as f64,
        reached: running <= settings.stop_at_loss,
    };
    Ok(Model {
        name,
        network: levels[0],
        images: place,
        trained: Some(trained),
        theta,
        end: Both { train: value(train_loss, train_accuracy), test: value(test_loss, test_accuracy) },
        values: Vec::new(),
    })
}

/// A model without its tensor, which threads cannot share.
struct Job {
    index: usize,
    name: String,
    network: usize,
    images: usize,
    trained: Option<Course>,
    loss: f64,
}

/// Takes every measure of every model.
fn measure(
    settings: &Settings,
    run: &Run,
    networks: &[Network],
    images: &[Images],
    models: &mut [Model],
) -> Result<()> {
    let stage = run.progress.stage("measures", models.len() as u64);
    let job = |(index, model): (usize, &Model)| {
        let Model { name, network, images, trained, end, .. } = model;
        let (name, trained) = (name.clone(), trained.clone());
        Job { index, name, network: *network, images: *images, trained, loss: end.train.loss }
    };
    let jobs: Vec<Job> = models.iter().enumerate().map(job).collect();
    let contexts = run.contexts(jobs.len(), || {
        let thetas = models.iter().map(|model| model.theta.f_to_device(run.device.device));
        Ok((images.iter().map(Images::share).collect::<Vec<_>>(), thetas.collect::<Result<Vec<_>, _>>()?))
    })?;
    let found = in_parallel(contexts, &jobs, |(images, thetas), job| {
        let (network, images, theta) = (&networks[job.network], &images[job.images], &thetas[job.index]);
        let seed = job.trained.as_ref().map(|course| course.seed);
        let mut values = measures_of(settings, run, network, theta, seed, images)?;
        values.extend([Some(job.loss), job.trained.as_ref().map(|course| course.steps)]);
        stage.advance(1, job.name.clone());
        Ok(values)
    })?;
    for (model, values) in models.iter_mut().zip(found) {
        model.values = values;
    }
    Ok(())
}

/// Of one model, in the catalogue's order. `seed`: whose initial weights it started from.
fn measures_of(
    settings: &Settings,
    run: &Run,
    network: &Network,
    theta: &Tensor,
    seed: Option<u64>,
    images: &Images,
) -> Result<Vec<Option<f64>>> {
    let train = &images.train;
    let first = |count: usize| -> Result<Examples> {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        Ok(if count == 0 { train.share() } else { train.first(count.min(train.count()))? })
    };
    let Noise { rise, draws, epsilon, examples } = settings.noise;
    let content = serde_json::json!({
        "what": "measures: values", "network": describe(network), "seed": seed, "prepared": images.prepared,
        "theta": fingerprint(theta)?,
        "train": train.count(), "curvature_examples": settings.curvature_examples, "gradient_examples": settings.gradient_examples,
        "sensitivity_examples": settings.sensitivity_examples, "noise": settings.noise,
    });
    let mut numbers = run.kept(&content, || {
        let initial =
            seed.map(|seed| initialise(network, seed, 0, theta.kind(), theta.device())).transpose()?;
        let initial = initial.as_ref();
        let mut measured: Vec<Measured> = Vec::new();
        run.check_interrupted()?;
        let norms = layer_norms(network, theta, initial)?;
        measured.extend(norm_measures(network, theta, initial, &norms)?);
        let margin = margin_percentile(&margins(network, theta, train)?)?;
        measured.extend(margin_measures(&norms, path_norm(network, theta)?, margin));
        run.check_interrupted()?;
        // The same draws for all models of one network: their differences are the models'.
        let noise = NoiseSettings { rise, draws, seed: settings.seed };
        let borne = (&first(examples)?, train.count());
        measured.extend(pac_bayes_measures(network, theta, initial, borne, epsilon, &noise)?);
        let go_on = || run.check_interrupted().is_ok();
        let curved = first(settings.curvature_examples)?;
        let curvature = curvature_measures(network, theta, &curved, settings.seed, &go_on);
        run.check_interrupted()?;
        measured.extend(curvature?);
        measured.extend(reaction_measures(network, theta, &first(settings.sensitivity_examples)?)?);
        measured.extend(gradient_noise_measures(network, theta, &first(settings.gradient_examples)?)?);
        let values: Vec<f64> = measured.iter().map(|one| one.value.unwrap_or(f64::NAN)).collect();
        Ok(Numbers::from([("values".to_owned(), Tensor::f_from_slice(&values)?)]))
    })?;
    let values = Vec::<f64>::try_from(numbers.remove("values").context("a model's measures are missing")?)?;
    ensure!(values.len() == catalogue().len(), "a model's measures are damaged: {} of them", values.len());
    Ok(values.into_iter().map(|value| (!value.is_nan()).then_some(value)).collect())
}

/// Every measure with both gaps.
fn correlate(settings: &Settings, models: &[&Model]) -> Vec<Correlation> {
    let mut all = Vec::new();
    for gap in Gap::BOTH {
        for measure in 0..all_measures().len() {
            // Where a measure is not defined for a model, it says nothing of it.
            let with: Vec<&Model> = models
                .iter()
                .copied()
                .filter(|model| model.values[measure].is_some_and(f64::is_finite))
                .collect();
            let x: Vec<f64> = with.iter().filter_map(|model| model.values[measure]).collect();
            let y: Vec<f64> = with.iter().map(|model| gap.of(model)).collect();
            let courses: Option<Vec<&Course>> = with.iter().map(|model| model.trained.as_ref()).collect();
            let (mut clusters, mut granulated) = (None, None);
            if let Some(courses) = courses {
                // Models that differ in the seed alone are drawn together.
                let cluster = |course: &&Course| {
                    course.setting.levels.iter().fold(0, |number, &level| number * 1000 + level as u64)
                };
                clusters = Some(courses.iter().map(cluster).collect::<Vec<u64>>());
                let levels: Vec<Vec<usize>> =
                    courses.iter().map(|course| course.setting.levels.to_vec()).collect();
                let seeds: Vec<u64> = courses.iter().map(|course| course.seed).collect();
                // Where the measure is the same for all models, it orders nothing.
                if kendall(&x, &y).is_some() {
                    granulated = granulated_kendall(&x, &y, &levels, &seeds);
                }
            }
            let seed = measure as u64;
            let enough = with.len() >= FEWEST;
            let tau = enough
                .then(|| kendall_interval(&x, &y, clusters.as_deref(), LEVEL, settings.resamples, seed))
                .flatten();
            all.push(Correlation { measure, gap, models: with.len(), tau, granulated });
        }
    }
    all
}

fn model_table(networks: &[Network], models: &[Model]) -> Result<Table> {
    let mut table = Table::new(&[
        "model",
        "seed",
        "network",
        "parameters",
        "batch",
        "lr",
        "weight_decay",
        "label_noise",
        "epochs",
        "reached_the_loss",
        "train_loss_nats",
        "train_accuracy",
        "test_loss_nats",
        "test_accuracy",
        "error_gap",
        "loss_gap_nats",
    ]);
    for model in models {
        let network = &networks[model.network];
        let Both { train, test } = model.end;
        let course = model.trained.as_ref();
        table.row(cells![
            model.name.as_str(),
            course.map(|course| course.seed),
            network.name(),
            network.count(),
            course.map(|course| course.setting.batch),
            course.map(|course| course.setting.lr),
            course.map(|course| course.setting.weight_decay),
            course.map(|course| course.setting.label_noise),
            course.map(|course| course.epochs),
            course.map(|course| course.reached),
            train.loss,
            train.accuracy,
            test.loss,
            test.accuracy,
            Gap::Error.of(model),
            Gap::Loss.of(model)
        ])?;
    }
    Ok(table)
}

fn measure_table(networks: &[Network], models: &[Model]) -> Result<Table> {
    let mut table = Table::new(&[
        "model",
        "seed",
        "network",
        "batch",
        "lr",
        "weight_decay",
        "label_noise",
        "reached_the_loss",
        "error_gap",
        "loss_gap_nats",
        "family",
        "measure",
        "value",
    ]);
    for model in models {
        let course = model.trained.as_ref();
        for (measure, value) in all_measures().iter().zip(&model.values) {
            table.row(cells![
                model.name.as_str(),
                course.map(|course| course.seed),
                networks[model.network].name(),
                course.map(|course| course.setting.batch),
                course.map(|course| course.setting.lr),
                course.map(|course| course.setting.weight_decay),
                course.map(|course| course.setting.label_noise),
                course.map(|course| course.reached),
                Gap::Error.of(model),
                Gap::Loss.of(model),
                measure.family.name(),
                measure.name,
                *value
            ])?;
        }
    }
    Ok(table)
}

fn catalogue_table() -> Result<Table> {
    let mut table = Table::new(&["measure", "family", "formula", "source"]);
    for measure in all_measures() {
        table.row(cells![measure.name, measure.family.name(), measure.formula, measure.source])?;
    }
    Ok(table)
}

fn correlation_table(correlations: &[Correlation]) -> Result<Table> {
    let mut table = Table::new(&[
        "measure",
        "family",
        "gap",
        "models",
        "kendall_tau",
        "low",
        "high",
        "level",
        "granulated_kendall",
    ]);
    let measures = all_measures();
    for one in correlations {
        let measure = measures[one.measure];
        let (low, high) = one.tau.and_then(|tau| tau.ends).unzip();
        table.row(cells![
            measure.name,
            measure.family.name(),
            one.gap.name(),
            one.models,
            one.tau.map(|tau| tau.mean),
            low,
            high,
            LEVEL,
            one.granulated.as_ref().map(|granulated| granulated.mean)
        ])?;
    }
    Ok(table)
}

fn granulated_table(correlations: &[Correlation]) -> Result<Table> {
    let mut table = Table::new(&["measure", "family", "gap", "hyperparameter", "psi"]);
    let measures = all_measures();
    for one in correlations {
        let Some(granulated) = &one.granulated else { continue };
        for (hyperparameter, psi) in HYPERPARAMETERS.iter().zip(&granulated.each) {
            if psi.is_some() {
                let measure = measures[one.measure];
                let (name, family) = (measure.name, measure.family.name());
                table.row(cells![name, family, one.gap.name(), *hyperparameter, *psi])?;
            }
        }
    }
    Ok(table)
}

const FAMILIES: [(Family, Colour); 7] = [
    (Family::Size, Colour::Black),
    (Family::Norm, Colour::Blue),
    (Family::Margin, Colour::Sky),
    (Family::Flatness, Colour::Vermillion),
    (Family::Sensitivity, Colour::Green),
    (Family::Gradient, Colour::Purple),
    (Family::Training, Colour::Grey),
];

/// Measures that have a τ with either gap, from the bottom up, so that they read as in the tables.
fn shown(correlations: &[Correlation]) -> Vec<usize> {
    let has = |measure: &usize| correlations.iter().any(|one| one.measure == *measure && one.tau.is_some());
    (0..all_measures().len()).rev().filter(has).collect()
}

/// The panels' common frame: a row a measure.
fn rows_panel(gap: Gap, x: &str, rows: &[usize]) -> Panel {
    let measures = all_measures();
    let names = rows.iter().map(|&measure| measures[measure].label);
    let title = match gap {
        Gap::Error => "with the gap in error",
        Gap::Loss => "with the gap in loss",
    };
    Panel::new(title, Axis::linear(x).with_range(-1., 1.), Axis::categories("", names)).with_mark(0., "")
}

/// Wide enough for the names, high enough for a row each.
fn rows_size(rows: &[usize]) -> (f64, f64) {
    (560., 110. + 19. * rows.len() as f64)
}

fn correlation_figure(settings: &Settings, run: &Run, correlations: &[Correlation], models: usize) -> Figure {
    let measures = all_measures();
    let rows = shown(correlations);
    let panels = Gap::BOTH.map(|gap| {
        let panel = rows_panel(gap, "Kendall's τ", &rows);
        FAMILIES.iter().fold(panel, |panel, &(family, colour)| {
            let (mut points, mut whiskers) = (Vec::new(), Vec::new());
            for one in
                correlations.iter().filter(|one| one.gap == gap && measures[one.measure].family == family)
            {
                if let (Some(tau), Some(row)) = (one.tau, rows.iter().position(|&row| row == one.measure)) {
                    points.push((tau.mean, row as f64));
                    whiskers.push(tau.ends.unwrap_or((f64::NAN, f64::NAN)));
                }
            }
            if points.is_empty() {
                return panel;
            }
            panel.with(Series::scatter(family.name(), colour, points).with_x_whiskers(whiskers))
        })
    });
    let bars = if settings.weights.is_empty() {
        "intervals over settings, all seeds of one drawn together"
    } else {
        "intervals over models"
    };
    let subtitle = settings.subtitle(run, &format!("{models} models · {bars}"));
    let mut figure = Figure::new("Which measures order models as their gap does", subtitle, panels.to_vec());
    figure.band_meaning = "95 % bootstrap interval".into();
    figure.panel_size = Some(rows_size(&rows));
    figure
}

fn granulated_figure(settings: &Settings, run: &Run, correlations: &[Correlation], models: usize) -> Figure {
    let rows = shown(correlations);
    let varied: Vec<usize> = (0..HYPERPARAMETERS.len())
        .filter(|&index| {
            correlations
                .iter()
                .flat_map(|one| &one.granulated)
                .any(|granulated| granulated.each[index].is_some())
        })
        .collect();
    let panels = Gap::BOTH.map(|gap| {
        let points = |of: &dyn Fn(&Granulated) -> Option<f64>, lift: f64| {
            let these = correlations.iter().filter(|one| one.gap == gap);
            these
                .filter_map(|one| {
                    let row = rows.iter().position(|&row| row == one.measure)?;
                    Some((of(one.granulated.as_ref()?)?, row as f64 + lift))
                })
                .collect::<Vec<_>>()
        };
        let mut panel = rows_panel(gap, "granulated Kendall coefficient", &rows);
        for (place, &index) in varied.iter().enumerate() {
            // Side by side, so that equal ones are all seen.
            let lift = 0.16 * (f64::midpoint(varied.len() as f64, -1.) - place as f64);
            let name = format!("ψ: {} alone", HYPERPARAMETERS[index].replace('_', " "));
            let series =
                Series::scatter(name, Colour::Blue, points(&|granulated| granulated.each[index], lift));
            panel = panel.with(series.nth_look(place));
        }
        let mean = Series::scatter("Ψ, their mean", Colour::Black, points(&|one| Some(one.mean), 0.));
        panel.with(mean.with_marker(Marker::Plus))
    });
    let subtitle =
        settings.subtitle(run, &format!("{models} models · pairs that differ in one hyperparameter"));
    let mut figure =
        Figure::new("Measures against the gap, one hyperparameter at a time", subtitle, panels.to_vec());
    figure.panel_size = Some(rows_size(&rows));
    figure
}

/// One or two of each family.
const DRAWN: [&str; 12] = [
    "parameters",
    "l2_norm",
    "l2_distance",
    "frobenius_product",
    "spectral_product",
    "path_norm",
    "inverse_margin",
    "spectral_origin",
    "magnitude_flatness",
    "hessian_trace",
    "jacobian",
    "gradient_variance",
];

/// From here on, a quantity varies by factors.
const BY_FACTORS: f64 = 10.;

fn scatter_figure(settings: &Settings, run: &Run, models: &[&Model]) -> Figure {
    // Coloured by the hyperparameter that is varied most.
    let count = |index: usize| {
        let mut levels: Vec<usize> = models
            .iter()
            .filter_map(|model| model.trained.as_ref().map(|course| course.setting.levels[index]))
            .collect();
        levels.sort_unstable();
        levels.dedup();
        levels.len()
    };
    let colour = (0..HYPERPARAMETERS.len()).rev().max_by_key(|&index| count(index)).unwrap_or(0);
    let groups: Vec<(String, Vec<&Model>)> = if settings.weights.is_empty() {
        (0..count_of(settings, colour))
            .map(|level| {
                let in_it = |model: &&&Model| {
                    model.trained.as_ref().is_some_and(|course| course.setting.levels[colour] == level)
                };
                (settings.level_name(colour, level), models.iter().filter(in_it).copied().collect())
            })
            .collect()
    } else {
        vec![(String::new(), models.to_vec())]
    };
    let measures = all_measures();
    let panels = DRAWN.iter().filter_map(|name| {
        let index = measures.iter().position(|measure| measure.name == *name)?;
        let values: Vec<f64> = models.iter().filter_map(|model| model.values[index]).collect();
        let (low, high) = values
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)));
        // A measure that is the same for all, or for none, has no picture.
        if low >= high || values.is_empty() {
            return None;
        }
        let by_factors = low > 0. && high > BY_FACTORS * low;
        let logarithm = measures[index].formula.starts_with("ln ");
        let label = if logarithm {
            format!("ln {}", measures[index].label)
        } else {
            measures[index].label.to_owned()
        };
        let mut x = Axis::linear(label);
        x.scale = if by_factors { Scale::Log10 } else { Scale::Linear };
        let panel = Panel::new("", x, Axis::linear("gap in error (points)"));
        Some(groups.iter().enumerate().fold(panel, |panel, (place, (name, models))| {
            let points = models
                .iter()
                .filter_map(|model| Some((model.values[index]?, 100. * Gap::Error.of(model))))
                .collect();
            panel.with(Series::scatter(name.as_str(), Colour::Blue, points).nth_look(place))
        }))
    });
    let subtitle = settings.subtitle(run, &format!("{} models, one point each", models.len()));
    let mut figure = Figure::new("The generalisation gap over some measures", subtitle, panels.collect());
    figure.columns = Some(4);
    figure
}

fn count_of(settings: &Settings, hyperparameter: usize) -> usize {
    [
        settings.networks().map_or(0, |networks| networks.len()),
        settings.batches.len(),
        settings.lrs.len(),
        settings.weight_decays.len(),
        settings.label_noise.len(),
    ][hyperparameter]
}

impl Settings {
    /// For a legend: `lr 0.1`.
    fn level_name(&self, hyperparameter: usize, level: usize) -> String {
        let value = match hyperparameter {
            0 => self.networks().ok().map(|networks| networks[level].name().to_owned()),
            1 => self.batches.get(level).map(ToString::to_string),
            2 => self.lrs.get(level).map(ToString::to_string),
            3 => self.weight_decays.get(level).map(ToString::to_string),
            _ => self.label_noise.get(level).map(ToString::to_string),
        };
        format!("{} {}", HYPERPARAMETERS[hyperparameter].replace('_', " "), value.unwrap_or_default())
    }
}

/// Fixed before the data. τ is Kendall's, over the models of one seed that reached the loss, with the gap in error.
const CLAIMS: [Claim; 8] = [
    Claim {
        id: "flatness-tells-gap",
        statement: "Networks that bear less noise on their weights generalise worse",
        source: "Jiang et al. 2020",
        statistic: "τ of 1/σ² with the gap in error, over the grid",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "magnitude-is-better",
        statement: "Noise in proportion to the weights tells the gap better than noise that is the same for all",
        source: "Jiang et al. 2020",
        statistic: "τ of 1/σ'² minus τ of 1/σ² with the gap in error",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "spectral-norms-mislead",
        statement: "The product of spectral norms correlates negatively with the gap",
        source: "Jiang et al. 2020",
        statistic: "τ of Π ‖W‖₂² with the gap in error, over the grid",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "flatness-beats-norms",
        statement: "Flatness tells the gap better than a norm-based bound over the margin",
        source: "Jiang et al. 2020",
        statistic: "τ of 1/σ'² minus τ of Π ‖W‖₂² Σ ‖W‖F²/‖W‖₂² / γ² with the gap in error",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "path-norm-tells-gap",
        statement: "Networks of larger path norm generalise worse",
        source: "Jiang et al. 2020",
        statistic: "τ of the path norm with the gap in error, over the grid",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "jacobian-tells-gap",
        statement: "Networks that react more to their input generalise worse",
        source: "Novak et al. 2018",
        statistic: "τ of the mean ‖∂p/∂x‖F over training examples with the gap in error, over the grid",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "more-parameters-generalise-no-worse",
        statement: "Networks of more parameters, trained to the same loss, do not generalise worse",
        source: "Neyshabur et al. 2017",
        statistic: "ψ of the parameter count: its granulated Kendall coefficient with the gap in error",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "none-is-robust",
        statement: "No measure goes with the gap along every hyperparameter",
        source: "Dziugaite et al. 2020",
        statistic: "the largest over all measures of the smallest ψ over hyperparameters, with the gap in error",
        rule: Rule::MeanBelow(0.),
    },
];

/// The measures of one seed's models against their gap in error.
struct OneSeed<'a> {
    models: Vec<(&'a Model, &'a Course)>,
}

impl OneSeed<'_> {
    /// The values of a measure, the gaps, and where on the grid: of the models that have it.
    #[allow(clippy::type_complexity)] // three columns
    fn columns(&self, measure: usize) -> (Vec<f64>, Vec<f64>, Vec<Vec<usize>>) {
        let mut columns = (Vec::new(), Vec::new(), Vec::new());
        for (model, course) in &self.models {
            if let Some(value) = model.values[measure].filter(|value| value.is_finite()) {
                columns.0.push(value);
                columns.1.push(Gap::Error.of(model));
                columns.2.push(course.setting.levels.to_vec());
            }
        }
        columns
    }

    /// NaN where there is none: the seed must not vanish from the verdict.
    fn tau(&self, name: &str) -> f64 {
        let measure = all_measures().iter().position(|measure| measure.name == name);
        let tau = measure.and_then(|measure| {
            let (x, y, _) = self.columns(measure);
            if x.len() < FEWEST { None } else { kendall(&x, &y) }
        });
        tau.unwrap_or(f64::NAN)
    }

    fn granulated(&self, measure: usize) -> Option<Granulated> {
        let (x, y, levels) = self.columns(measure);
        kendall(&x, &y)?;
        granulated_kendall(&x, &y, &levels, &vec![0; x.len()])
    }

    /// Of the hyperparameters that vary at all.
    fn most_robust(&self) -> f64 {
        let smallest = |measure: usize| {
            let each = self.granulated(measure)?.each;
            each.into_iter().flatten().min_by(f64::total_cmp)
        };
        (0..all_measures().len()).filter_map(smallest).max_by(f64::total_cmp).unwrap_or(f64::NAN)
    }
}

/// A claim on the number of parameters needs networks of several sizes.
fn judge(settings: &Settings, models: &[&Model]) -> Vec<Outcome> {
    let of_seed = |seed: u64| {
        let of = models.iter().filter_map(|model| Some((*model, model.trained.as_ref()?)));
        OneSeed { models: of.filter(|(_, course)| course.seed == seed).collect() }
    };
    let seeds: Vec<OneSeed> = Measures::seeds(settings).into_iter().map(of_seed).collect();
    let judged = |claim: &Claim, of: &dyn Fn(&OneSeed) -> f64| {
        claim.judge(&seeds.iter().map(of).collect::<Vec<f64>>())
    };
    let [flat, magnitude, spectral, beats, path, jacobian, parameters, robust] = &CLAIMS;
    let mut outcomes = vec![
        judged(flat, &|one| one.tau("flatness")),
        judged(magnitude, &|one| one.tau("magnitude_flatness") - one.tau("flatness")),
        judged(spectral, &|one| one.tau("spectral_product")),
        judged(beats, &|one| one.tau("magnitude_flatness") - one.tau("spectral_origin")),
        judged(path, &|one| one.tau("path_norm")),
        judged(jacobian, &|one| one.tau("jacobian")),
    ];
    if count_of(settings, 0) > 1 {
        let count = |one: &OneSeed| one.granulated(0).and_then(|found| found.each[0]).unwrap_or(f64::NAN);
        outcomes.push(judged(parameters, &count));
    }
    outcomes.push(judged(robust, &|one| one.most_robust()));
    outcomes
}

fn closing_table(correlations: &[Correlation]) -> ClosingTable {
    let measures = all_measures();
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["measure", "family", "τ, gap in error", "Ψ", "τ, gap in loss", "Ψ"]);
    for measure in shown(correlations).into_iter().rev() {
        let of = |gap| correlations.iter().find(|one| one.gap == gap && one.measure == measure);
        let tau = |one: Option<&Correlation>| {
            one.and_then(|one| one.tau).map_or_else(String::new, |tau| number(tau, 1., 2, ""))
        };
        let psi = |one: Option<&Correlation>| {
            let found = one.and_then(|one| one.granulated.as_ref());
            found.map_or_else(String::new, |found| format!("{:.2}", found.mean))
        };
        let [error, loss] = [of(Gap::Error), of(Gap::Loss)];
        let (name, family) = (measures[measure].name.to_owned(), measures[measure].family.name().to_owned());
        table.add_row([name, family, tau(error), psi(error), tau(loss), psi(loss)]);
    }
    table
}

/// Of few models: the values themselves.
fn value_table(models: &[Model]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(std::iter::once("measure").chain(models.iter().map(|model| model.name.as_str())));
    let mut row = |name: &str, of: &dyn Fn(&Model) -> Option<f64>| {
        let values = models.iter().map(|model| of(model).map(short).unwrap_or_default());
        table.add_row(std::iter::once(name.to_owned()).chain(values));
    };
    for gap in Gap::BOTH {
        row(&format!("gap in {}", gap.name()), &|model| Some(gap.of(model)));
    }
    for (index, measure) in all_measures().iter().enumerate() {
        row(measure.name, &|model| model.values[index]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Arguments;
    use clap::Parser;
    use flatland_statistics::Verdict::{self, Contradicted, Inconclusive, Supported};
    use std::collections::BTreeMap;

    fn settings() -> Settings {
        let paper = Arguments::parse_from(["measures"]);
        crate::settings::resolve(Measures::PRESETS, &paper).unwrap()
    }

    /// A grid of models with a gap of their own; measure and seed say how each measure follows it.
    fn models(settings: &Settings, of: impl Fn(&str, f64, u64) -> f64) -> Vec<Model> {
        let (grid, all) = (settings.grid(settings.networks().unwrap().len()), all_measures());
        let mut models = Vec::new();
        for seed in Measures::seeds(settings) {
            for (place, setting) in grid.iter().enumerate() {
                // Falls with the network, rises with the others.
                let levels = setting.levels.map(|level| level as f64);
                let gap = 0.1 - 0.04 * levels[0] + 0.001 * levels[1] + 0.004 * levels[2] + 0.02 * levels[3];
                let train = Evaluation { loss: 0., accuracy: Some(1.) };
                let test = Evaluation { loss: gap, accuracy: Some(1. - gap) };
                let values = all.iter().map(|measure| match measure.name {
                    "parameters" => Some(levels[0]),
                    name => Some(of(name, gap, seed)),
                });
                models.push(Model {
                    name: format!("{seed}-{place}"),
                    network: setting.levels[0],
                    images: 0,
                    trained: Some(Course {
                        seed,
                        setting: setting.clone(),
                        epochs: 1,
                        steps: 1.,
                        reached: true,
                    }),
                    theta: Tensor::from_slice(&[0.]),
                    end: Both { train, test },
                    values: values.collect(),
                });
            }
        }
        models
    }

    fn verdicts(settings: &Settings, models: &[Model]) -> BTreeMap<&'static str, Verdict> {
        let outcomes = judge(settings, &models.iter().collect::<Vec<_>>());
        outcomes.iter().map(|outcome| (outcome.claim.id, outcome.verdict)).collect()
    }

    #[test]
    fn known_models_give_known_verdicts() {
        let settings = settings();
        // As the papers have it, but for noise that all but tells: a seed differs from the next in it.
        let as_claimed = models(&settings, |name, gap, seed| match name {
            "flatness" => (1000. * gap).rem_euclid(37. + seed as f64) + 1000. * gap,
            "spectral_product" | "spectral_origin" => -gap,
            _ => gap,
        });
        let found = verdicts(&settings, &as_claimed);
        assert_eq!(found.len(), CLAIMS.len());
        for (id, verdict) in found {
            // Here a measure is the gap itself.
            assert_eq!(verdict, if id == "none-is-robust" { Contradicted } else { Supported }, "{id}");
        }
        let reversed = models(&settings, |name, gap, seed| match name {
            "magnitude_flatness" => -gap + 1e-3 * (gap * 1e4 + seed as f64).sin(),
            "spectral_product" | "spectral_origin" => gap,
            _ => -gap,
        });
        let found = verdicts(&settings, &reversed);
        for id in
            ["flatness-tells-gap", "spectral-norms-mislead", "flatness-beats-norms", "path-norm-tells-gap"]
        {
            assert_eq!(found[id], Contradicted, "{id}");
        }
        assert_eq!(found["jacobian-tells-gap"], Contradicted);
    }

    #[test]
    fn a_measure_without_order_decides_nothing() {
        let settings = settings();
        let constant = models(&settings, |_, _, _| 1.);
        for (id, verdict) in verdicts(&settings, &constant) {
            let on_parameters = ["more-parameters-generalise-no-worse", "none-is-robust"].contains(&id);
            assert!(on_parameters || verdict == Inconclusive, "{id}: {verdict}");
        }
        let one = Settings { seeds: 1, ..settings.clone() };
        assert!(verdicts(&one, &models(&one, |_, gap, _| gap)).values().all(|&found| found == Inconclusive));
        let one_size = Settings { widths: vec![1.], ..settings };
        let found = verdicts(&one_size, &models(&one_size, |_, gap, _| gap));
        assert_eq!(found.len(), CLAIMS.len() - 1, "no claim on sizes where there is one");
    }

    #[test]
    fn models_without_a_value_are_left_out_of_its_correlation_alone() {
        let settings = Settings { resamples: 20, ..settings() };
        let mut all = models(&settings, |_, gap, _| gap);
        let margin = all_measures().iter().position(|measure| measure.name == "inverse_margin").unwrap();
        all[0].values[margin] = None;
        all[1].values[margin] = Some(f64::INFINITY);
        let found = correlate(&settings, &all.iter().collect::<Vec<_>>());
        assert_eq!(found.len(), 2 * all_measures().len());
        for one in &found {
            assert_eq!(one.models, if one.measure == margin { all.len() - 2 } else { all.len() });
            if one.measure > 0 {
                assert!((one.tau.unwrap().mean - 1.).abs() < 1e-12);
                assert!((one.granulated.as_ref().unwrap().mean - 1.).abs() < 1e-12);
            }
        }
        // The network's size orders along the network alone, and against the gap.
        let parameters = found[0].granulated.as_ref().unwrap();
        assert_eq!(parameters.each, [Some(-1.), Some(0.), Some(0.), Some(0.), None]);
    }

    #[test]
    fn widths_scale_dense_networks_only() {
        let names = |settings: &Settings| -> Vec<String> {
            settings.networks().unwrap().iter().map(|network| network.name().to_owned()).collect()
        };
        let settings = Settings { network: "784-30-21-10".into(), ..settings() };
        assert_eq!(names(&settings), ["784-15-11-10", "784-60-42-10"]);
        let lenet = Settings { network: "lenet".into(), ..settings.clone() };
        assert_eq!(names(&lenet), ["lenet"]);
        let given = Settings { weights: vec!["a.safetensors".into()], ..settings };
        assert_eq!(names(&given), ["784-30-21-10"]);
    }

    #[test]
    fn refuses_what_cannot_be_run() {
        let paper = settings();
        Measures::check(&paper).unwrap();
        let noise = |noise: Noise| Settings { noise, ..paper.clone() };
        for (settings, expected) in [
            (Settings { widths: vec![1., 1.], ..paper.clone() }, "widths must be different, found 1 twice"),
            (Settings { widths: vec![0.001, 0.002], ..paper.clone() }, "found 784-1-10 twice"),
            (Settings { widths: vec![], ..paper.clone() }, "widths must name at least one value"),
            (Settings { widths: vec![-1.], ..paper.clone() }, "widths must lie between 0 and 1,000"),
            (Settings { batches: vec![5000], ..paper.clone() }, "4000 training examples, found 5000"),
            (Settings { lrs: vec![0.], ..paper.clone() }, "learning rate"),
            (Settings { label_noise: vec![1.5], ..paper.clone() }, "label_noise must lie between 0 and 1"),
            (Settings { epochs: 0, ..paper.clone() }, "epochs must be at least 1"),
            (Settings { stop_at_loss: f64::NAN, ..paper.clone() }, "stop_at_loss must be 0 or more"),
            (Settings { network: "784".into(), ..paper.clone() }, "network must go from 784"),
            (noise(Noise { rise: 0., ..paper.noise.clone() }), "noise.rise"),
            (noise(Noise { draws: 0, ..paper.noise.clone() }), "noise.draws"),
            (noise(Noise { epsilon: 0., ..paper.noise.clone() }), "noise.epsilon"),
        ] {
            let message = format!("{:#}", Measures::check(&settings).unwrap_err());
            assert!(message.contains(expected), "{message}");
        }
    }
}
