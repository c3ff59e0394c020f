//! Flatness against generalisation, part 3: sharpness itself, by the field's measures.
//!
//! A network is trained over a grid of batch sizes and learning rates, for the same number of epochs. Of each model: Keskar's sharpness, the
//! worst and the average case around θ, plain and adaptive, the Hessian's largest eigenvalue and trace, next to the generalisation gap; and which measure ranks the models as their
//! gaps do. One model a seed is also written with other weights, which leaves the function as it is (Dinh et al. 2017).
//! `flatland_geometry` has the formulas.

use crate::command::Flag;
use crate::curves::{Group, curve_panels, curve_table};
use crate::experiment::{Experiment, check_seeds, seeds_from};
use crate::images::{ImageSettings, Images};
use crate::module::{self, DATA, MODULE, Splits, file_name};
use crate::parallel::in_parallel;
use crate::run::{Numbers, Run, fingerprint};
use crate::subject::{self, NETWORK, WEIGHTS};
use crate::summary::{loss_words, number, subtitle};
use crate::trial::{Both, Trained, Trial, describe_model, evaluate_all_kept, train_all};
use crate::watched::Watched;
use anyhow::{Context, Result, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::DataSetName;
use flatland_geometry::{
    Ascent, Curvature, CurvatureError, CurvatureOperator, EigenSettings, Objective, Scale, average_case,
    eigenpairs, hutch_plus_plus, keskar, keskar_in_subspace, rescaled, worst_case,
};
use flatland_network::{Examples, Loss, Model as Subject, OptimiserSettings, Training};
use flatland_record::{Axis, Cell, Colour, Figure, Marker, Panel, Series, Table, cells};
use flatland_statistics::{
    Claim, Interval, LEVEL, Outcome, Rule, geometric_mean_interval, kendall, kendall_interval,
};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::Tensor;

/// `configs/sharpness.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub dataset: DataSetName,
    pub network: String,
    pub weights: Vec<String>,
    pub module: String,
    pub data: String,
    pub seeds: u64,
    pub seed: u64,
    pub epochs: u32,
    pub batches: Vec<i64>,
    pub lrs: Vec<f64>,
    pub momentum: f64,
    pub nesterov: bool,
    pub weight_decay: f64,
    pub examples: usize,
    pub steps: u32,
    pub restarts: u32,
    pub pairs: u32,
    pub rescale: f64,
    pub keskar: Keskar,
    pub unit: Lengths,
    pub elementwise: Lengths,
    pub filter: Lengths,
    pub hessian: Hessian,
    pub images: ImageSettings,
}

/// How well the Hessian's largest eigenvalue and its trace are found.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Hessian {
    pub tolerance: f64,
    pub products: usize,
}

/// Keskar's box.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Keskar {
    pub epsilon: f64,
    pub dimension: i64,
}

/// How far around θ, in the lengths of one scale.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Lengths {
    pub rho: f64,
    pub sigma: f64,
}

/// How a model of the grid is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Setting {
    batch: i64,
    lr: f64,
}

/// Something measured of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measure {
    name: &'static str,
    unit: &'static str,
    /// For panels and tables that people read.
    label: &'static str,
}

impl Measure {
    const fn new(name: &'static str, unit: &'static str, label: &'static str) -> Self {
        Self { name, unit, label }
    }

    /// Units are written for cross-entropy.
    fn unit(self, loss: Loss) -> String {
        let [unit, ..] = loss_words(loss);
        self.unit.replace("nat", unit.strip_suffix('s').unwrap_or(unit))
    }
}

const KESKAR: Measure = Measure::new("keskar", "%", "Keskar's φ");
const SUBSPACE: Measure = Measure::new("keskar_subspace", "%", "Keskar's φ, random subspace");
const BALL: Measure = Measure::new("worst_unit", "nat", "worst case in a ball");
const ELEMENTWISE: Measure = Measure::new("worst_elementwise", "nat", "worst case, adaptive");
const FILTER: Measure = Measure::new("worst_filter", "nat", "worst case, adaptive by filter");
const BALL_STEP: Measure = Measure::new("one_step_unit", "nat", "SAM's step");
const ELEMENTWISE_STEP: Measure = Measure::new("one_step_elementwise", "nat", "ASAM's step");
const FILTER_STEP: Measure = Measure::new("one_step_filter", "nat", "ASAM's step, by filter");
const AVERAGE: Measure = Measure::new("average_unit", "nat", "average case");
const AVERAGE_ELEMENTWISE: Measure = Measure::new("average_elementwise", "nat", "average case, adaptive");
const AVERAGE_FILTER: Measure = Measure::new("average_filter", "nat", "average case, adaptive by filter");
const LAMBDA: Measure = Measure::new("hessian_lambda_max", "nat/weight unit²", "λmax of the Hessian");
const TRACE: Measure = Measure::new("hessian_trace", "nat/weight unit²", "trace of the Hessian");

/// All of them, in the tables' order.
const MEASURES: [Measure; 13] = [
    KESKAR,
    SUBSPACE,
    BALL,
    ELEMENTWISE,
    FILTER,
    BALL_STEP,
    ELEMENTWISE_STEP,
    FILTER_STEP,
    AVERAGE,
    AVERAGE_ELEMENTWISE,
    AVERAGE_FILTER,
    LAMBDA,
    TRACE,
];

/// What gives some of the measures in one go.
#[derive(Debug, Clone, Copy)]
enum Estimator {
    Keskar,
    Subspace,
    Worst(Scale),
    Average(Scale),
    Hessian,
}

const ESTIMATORS: [Estimator; 9] = [
    Estimator::Keskar,
    Estimator::Subspace,
    Estimator::Worst(Scale::Unit),
    Estimator::Worst(Scale::Elementwise),
    Estimator::Worst(Scale::Filter),
    Estimator::Average(Scale::Unit),
    Estimator::Average(Scale::Elementwise),
    Estimator::Average(Scale::Filter),
    Estimator::Hessian,
];

/// The streams of a seed: the same for all its models, which are thus compared in the same directions and under the same noise.
const STARTS: u32 = 0;
const SUBSPACES: u32 = 1;
const NOISE: u32 = 2;

/// A measured model.
#[derive(Debug)]
struct Model {
    name: String,
    seed: u64,
    /// `None` for a model that was given.
    setting: Option<Setting>,
    end: Both,
    /// One for each of [`MEASURES`].
    values: Vec<Value>,
}

/// A measure's value, with its standard error where it has one.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Value {
    value: f64,
    standard_error: Option<f64>,
}

/// How much worse a model does on the test images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    Loss,
    Error,
}

const GAPS: [Gap; 2] = [Gap::Loss, Gap::Error];

impl Gap {
    fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Error => "error",
        }
    }
}

impl Model {
    fn of(&self, measure: Measure) -> f64 {
        let place = MEASURES.iter().position(|one| *one == measure);
        place.and_then(|place| self.values.get(place)).map_or(f64::NAN, |one| one.value)
    }

    /// Test loss less training loss (of the loss's unit), or test error less training error (a fraction).
    fn gap(&self, gap: Gap) -> f64 {
        let Both { train, test } = self.end;
        match gap {
            Gap::Loss => test.loss - train.loss,
            Gap::Error => train.accuracy.unwrap_or(f64::NAN) - test.accuracy.unwrap_or(f64::NAN),
        }
    }

    /// Whether it classifies.
    fn is_classifier(&self) -> bool {
        self.end.train.accuracy.is_some()
    }
}

/// A model before and after a rescaling of its layers.
#[derive(Debug)]
struct Rescaling {
    /// Which of the models.
    before: usize,
    after: Model,
}

impl Rescaling {
    fn ln_ratio(&self, models: &[Model], measure: Measure) -> f64 {
        (self.after.of(measure) / models[self.before].of(measure)).ln()
    }
}

/// The experiment.
#[derive(Debug)]
pub struct Sharpness;

impl Experiment for Sharpness {
    const NAME: &'static str = "sharpness";
    const ABOUT: &'static str = "Are minima found with large batches sharper, and does sharpness tell how they generalise? \
        Keskar's, worst-case and average-case sharpness, plain and adaptive, and the Hessian, over batch sizes and \
        learning rates.";
    const EXAMPLES: &'static str = "Examples:
  sharpness --preset quick --dataset digits            no files needed
  sharpness --set batches=[50,5000] --set lrs=[0.01]   another grid
  sharpness --weights mine.safetensors                 of your own model, nothing is trained
  sharpness --network 784-100-10 --set examples=0      a dense network, over all training images
  sharpness --module mine.pt --data mine.npz           a TorchScript module of your own, with data of your own";
    const FLAGS: &'static [Flag] = &[NETWORK, WEIGHTS, MODULE, DATA];
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 515.), ("quick", 18.)];
    const PRESETS: &'static str = include_str!("../../../configs/sharpness.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        settings.images.preparation().check()?;
        let network = subject::network(&settings.network)?;
        module::check(&settings.module, &settings.data, &settings.weights, &settings.network)?;
        if settings.trains() {
            settings.check_grid()?;
        }
        ensure!(settings.steps > 0, "steps must be at least 1, found 0");
        ensure!(settings.pairs > 1, "pairs must be at least 2, found {}", settings.pairs);
        let Hessian { tolerance, products } = settings.hessian;
        ensure!(
            tolerance > 0. && tolerance < 1.,
            "hessian.tolerance must lie between 0 and 1, found {tolerance}"
        );
        ensure!(products >= 6, "hessian.products must be at least 6, found {products}");
        if settings.module.is_empty() {
            settings.check_dimension(&Subject::Network(network))?;
        }
        let Settings { keskar, unit, elementwise, filter, rescale, .. } = settings;
        for (key, length) in [
            ("keskar.epsilon", keskar.epsilon),
            ("unit.rho", unit.rho),
            ("unit.sigma", unit.sigma),
            ("elementwise.rho", elementwise.rho),
            ("elementwise.sigma", elementwise.sigma),
            ("filter.rho", filter.rho),
            ("filter.sigma", filter.sigma),
            ("rescale", *rescale),
        ] {
            ensure!(length > 0. && length.is_finite(), "{key} must be above 0 and finite, found {length}");
        }
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        // Of models that are given there are no repetitions.
        seeds_from(settings.seed, if settings.trains() { settings.seeds } else { 1 })
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        // What is measured: the grid of every seed, or the user's own models.
        let (subject, splits, thetas, mut models) = if settings.module.is_empty() {
            let network = subject::network(&settings.network)?;
            // Before anything else: a file that cannot be used shall not be found out after minutes.
            let files = settings.weights.iter().map(|path| subject::weights(&network, Path::new(path)));
            let files = files.collect::<Result<Vec<_>>>()?;
            let images =
                Images::load(run, settings.dataset, subject::preparation(&network, &settings.images))?;
            let splits = Splits::of(&images);
            if files.is_empty() {
                let trials = settings.trials();
                let trained = train_all(run, std::slice::from_ref(&network), &[images], &trials)?;
                let table = training_table(&trials, &trained)?;
                run.write_table("training", &table, "loss and accuracy by epoch")?;
                let figure = training_figure(settings, run, &trained);
                run.write_figure("training", &figure, "training curves")?;
                let (thetas, models) = settings.models(trials, trained);
                (Subject::Network(network), splits, thetas, models)
            } else {
                let subject = Subject::Network(network);
                let models = settings.given(run, &subject, &splits, &files, settings.names())?;
                (subject, splits, files, models)
            }
        } else {
            let (module, splits) = module::load(run, &settings.module, &settings.data)?;
            let thetas = vec![module.theta()?];
            let subject = Subject::Module(module);
            settings.check_dimension(&subject)?;
            let names = vec![file_name(&settings.module).to_owned()];
            let models = settings.given(run, &subject, &splits, &thetas, names)?;
            (subject, splits, thetas, models)
        };
        // The same functions with other weights.
        let (others, mut rescalings) = settings.rescalings(run, &subject, &splits, &thetas, &models)?;

        let all: Vec<Tensor> = thetas.iter().chain(&others).map(Tensor::shallow_clone).collect();
        let seeds: Vec<u64> =
            models.iter().chain(rescalings.iter().map(|one| &one.after)).map(|model| model.seed).collect();
        let values = measure(settings, run, &subject, &splits, &all, &seeds)?;
        let measured = models.iter_mut().chain(rescalings.iter_mut().map(|one| &mut one.after));
        for (model, values) in measured.zip(values) {
            model.values = values;
        }

        let table = models_table(&models, &splits)?;
        run.write_table("models", &table, "each model: loss, accuracy, generalisation gap")?;
        let table = sharpness_table(&models, splits.loss)?;
        run.write_table("sharpness", &table, "each model: every measure of sharpness")?;
        if !rescalings.is_empty() {
            let table = rescaling_table(settings, &models, &rescalings)?;
            run.write_table("rescaling", &table, "the same function with rescaled layers: its sharpness")?;
        }
        if models.len() > 1 {
            for gap in GAPS {
                let figure = gap_figure(settings, run, &models, gap);
                let what = format!("{} gap over each measure", gap.name());
                run.write_figure(&format!("{}_gap", gap.name()), &figure, &what)?;
            }
        }
        if settings.trains() {
            let means = mean_table(settings, &models)?;
            run.write_table("sharpness_mean", &means, "each measure over seeds: mean and 95 % interval")?;
            let figure = batch_figure(settings, run, &models);
            run.write_figure("sharpness", &figure, "each measure over batch size, by learning rate")?;
            let correlations = correlations(settings, &models);
            let table = correlation_table(&correlations)?;
            run.write_table("correlation", &table, "Kendall's τ of each measure and the gaps")?;
            let figure = correlation_figure(settings, run, &correlations);
            run.write_figure("correlation", &figure, "Kendall's τ of each measure and the gaps")?;
            run.write_claims(judge(settings, &models, &rescalings))?;
            return Ok(closing_table(settings, &models, &rescalings, &correlations));
        }
        Ok(weights_table(&models, splits.loss))
    }
}

impl Settings {
    /// Whether no model is given.
    fn trains(&self) -> bool {
        self.weights.is_empty() && self.module.is_empty()
    }

    fn check_dimension(&self, subject: &Subject) -> Result<()> {
        let (most, name, dimension) = (subject.count(), subject.name(), self.keskar.dimension);
        ensure!(
            (1..=most).contains(&dimension),
            "keskar.dimension must lie between 1 and the {most} parameters of {name}, found {dimension}"
        );
        Ok(())
    }

    /// Models that were not trained here.
    fn given(
        &self,
        run: &Run,
        subject: &Subject,
        splits: &Splits,
        thetas: &[Tensor],
        names: Vec<String>,
    ) -> Result<Vec<Model>> {
        let ends = evaluate(run, subject, splits, thetas)?;
        let model = |(name, end)| Model { name, seed: self.seed, setting: None, end, values: Vec::new() };
        Ok(names.into_iter().zip(ends).map(model).collect())
    }

    fn check_grid(&self) -> Result<()> {
        ensure!(self.epochs > 0, "epochs must be at least 1, found 0");
        ensure!(!self.batches.is_empty(), "batches must name at least one batch size, found none");
        ensure!(!self.lrs.is_empty(), "lrs must name at least one learning rate, found none");
        for (index, &batch) in self.batches.iter().enumerate() {
            Training::check_batch(batch, self.images.preparation().most()).context("batches")?;
            ensure!(
                !self.batches[..index].contains(&batch),
                "batches must be different, found {batch} twice"
            );
        }
        for (index, &lr) in self.lrs.iter().enumerate() {
            self.optimiser(lr).check().context("lrs")?;
            ensure!(!self.lrs[..index].contains(&lr), "lrs must be different, found {lr} twice");
        }
        Ok(())
    }

    fn optimiser(&self, lr: f64) -> OptimiserSettings {
        let Self { momentum, nesterov, weight_decay, .. } = *self;
        OptimiserSettings::Sgd { lr, momentum, nesterov, weight_decay }
    }

    /// By batch size, then by learning rate.
    fn grid(&self) -> Vec<Setting> {
        let of_batch = |&batch| self.lrs.iter().map(move |&lr| Setting { batch, lr });
        self.batches.iter().flat_map(of_batch).collect()
    }

    /// By seed, then by the grid.
    fn trials(&self) -> Vec<Trial> {
        let trial = |seed: u64, Setting { batch, lr }: Setting| Trial {
            name: format!("seed{seed}-batch{batch}-lr{lr}"),
            network: 0,
            images: 0,
            seed,
            // The same for all: settings are compared from the same initial weights.
            stream: 0,
            optimiser: self.optimiser(lr),
            batch,
            epochs: self.epochs,
            stop_at: None,
            snapshots: false,
        };
        let of_seed = |seed| self.grid().into_iter().map(move |setting| trial(seed, setting));
        Sharpness::seeds(self).into_iter().flat_map(of_seed).collect()
    }

    fn models(&self, trials: Vec<Trial>, trained: Vec<Trained>) -> (Vec<Tensor>, Vec<Model>) {
        let settings = self.grid().into_iter().cycle();
        let of_trial = |((trial, trained), setting): ((Trial, Trained), Setting)| {
            let Trial { name, seed, .. } = trial;
            let Trained { theta, end, .. } = trained;
            (theta, Model { name, seed, setting: Some(setting), end, values: Vec::new() })
        };
        trials.into_iter().zip(trained).zip(settings).map(of_trial).unzip()
    }

    /// Of the files: without folder and ending, if that tells them apart.
    fn names(&self) -> Vec<String> {
        let stem = |path: &String| {
            Path::new(path).file_stem().map_or_else(|| path.clone(), |stem| stem.to_string_lossy().into())
        };
        let mut stems: Vec<String> = self.weights.iter().map(stem).collect();
        stems.sort();
        stems.dedup();
        if stems.len() == self.weights.len() {
            self.weights.iter().map(stem).collect()
        } else {
            self.weights.clone()
        }
    }

    /// The first model of each seed, its first layer multiplied by `rescale` and its second divided by it.
    fn rescalings(
        &self,
        run: &Run,
        subject: &Subject,
        splits: &Splits,
        thetas: &[Tensor],
        models: &[Model],
    ) -> Result<(Vec<Tensor>, Vec<Rescaling>)> {
        // Of a module it is not known which weights may be balanced against which.
        let Subject::Network(network) = subject else {
            return Ok((Vec::new(), Vec::new()));
        };
        // A weight and a bias a layer; a single layer has nothing to be balanced against.
        if network.parameters().len() < 4 {
            return Ok((Vec::new(), Vec::new()));
        }
        let each = models.len() / Sharpness::seeds(self).len();
        let firsts: Vec<usize> = (0..models.len()).step_by(each).collect();
        let others = firsts.iter().map(|&first| Ok(rescaled(network, &thetas[first], 0, self.rescale)?));
        let others = others.collect::<Result<Vec<_>>>()?;
        let ends = evaluate(run, subject, splits, &others)?;
        let rescalings = firsts.into_iter().zip(ends).map(|(before, end)| {
            let Model { name, seed, setting, .. } = &models[before];
            let after = Model { name: name.clone(), seed: *seed, setting: *setting, end, values: Vec::new() };
            Rescaling { before, after }
        });
        Ok((others, rescalings.collect()))
    }

    /// The first images of the training set.
    fn measured(&self, train: &Examples) -> Result<Examples> {
        let wanted = i64::try_from(self.examples).context("examples is too large a number")?;
        Ok(train.first(if wanted == 0 { train.count() } else { wanted.min(train.count()) })?)
    }

    fn lengths(&self, scale: Scale) -> Lengths {
        match scale {
            Scale::Unit => self.unit,
            Scale::Elementwise => self.elementwise,
            Scale::Filter => self.filter,
        }
    }

    fn subtitle(&self, run: &Run, more: &str) -> String {
        let network = if self.network == "lenet" { "LeNet" } else { &self.network };
        let subject = format!("{network} on {}", self.dataset);
        // One model alone has no figure, so that a module is not drawn.
        let trained = if self.trains() {
            format!("{} epochs of SGD", self.epochs)
        } else {
            "weights from files".to_owned()
        };
        let count =
            if self.examples == 0 { "all".to_owned() } else { format!("the first {}", self.examples) };
        let more = format!("{trained} · sharpness on {count} training images{more}");
        subtitle::<Sharpness>(self, run, &subject, &more)
    }
}

/// Loss and accuracy of models that were not just trained.
fn evaluate(run: &Run, subject: &Subject, splits: &Splits, thetas: &[Tensor]) -> Result<Vec<Both>> {
    let device = run.device.device;
    evaluate_all_kept(
        run,
        "evaluation",
        (subject, splits),
        thetas.len(),
        || thetas.iter().map(|theta| Ok(theta.f_to_device(device)?)).collect::<Result<Vec<_>>>(),
        |thetas, index| Ok(thetas[index].shallow_clone()),
        |index| format!("model {}", index + 1),
    )
}

impl Estimator {
    /// What its numbers depend on, beside θ, the examples and the seed.
    fn content(self, settings: &Settings) -> serde_json::Value {
        let Settings { steps, restarts, pairs, keskar, hessian, .. } = settings;
        match self {
            Self::Keskar => serde_json::json!(["box", keskar.epsilon, steps, restarts]),
            Self::Subspace => {
                serde_json::json!(["subspace", keskar.epsilon, keskar.dimension, steps, restarts])
            }
            Self::Worst(scale) => {
                let rho = settings.lengths(scale).rho;
                serde_json::json!(["worst", scale.to_string(), rho, steps, restarts])
            }
            Self::Average(scale) => {
                serde_json::json!(["average", scale.to_string(), settings.lengths(scale).sigma, pairs])
            }
            Self::Hessian => serde_json::json!(["hessian", hessian.tolerance, hessian.products]),
        }
    }

    /// Under each measure's name its value, and its standard error where it has one.
    fn numbers(
        self,
        settings: &Settings,
        run: &Run,
        objective: &Objective,
        theta: &Tensor,
        seed: u64,
    ) -> Result<Numbers> {
        let Settings { steps, restarts, pairs, keskar: Keskar { epsilon, dimension }, .. } = *settings;
        let ascent = Ascent { steps, restarts, stream: (seed, STARTS) };
        let values = match self {
            Self::Keskar => vec![(KESKAR, vec![keskar(objective, theta, epsilon, ascent)?])],
            Self::Subspace => {
                let directions = (seed, SUBSPACES);
                let phi = keskar_in_subspace(objective, theta, epsilon, dimension, directions, ascent)?;
                vec![(SUBSPACE, vec![phi])]
            }
            Self::Worst(scale) => {
                let found = worst_case(objective, theta, settings.lengths(scale).rho, scale, ascent)?;
                let (step, worst) = match scale {
                    Scale::Unit => (BALL_STEP, BALL),
                    Scale::Elementwise => (ELEMENTWISE_STEP, ELEMENTWISE),
                    Scale::Filter => (FILTER_STEP, FILTER),
                };
                vec![(step, vec![found.one_step]), (worst, vec![found.rise])]
            }
            Self::Average(scale) => {
                let sigma = settings.lengths(scale).sigma;
                let found = average_case(objective, theta, sigma, scale, pairs, (seed, NOISE))?;
                let measure = match scale {
                    Scale::Unit => AVERAGE,
                    Scale::Elementwise => AVERAGE_ELEMENTWISE,
                    Scale::Filter => AVERAGE_FILTER,
                };
                vec![(measure, vec![found.rise, found.standard_error])]
            }
            Self::Hessian => {
                let (lambda, trace) = curvature(settings.hessian, run, objective, theta, seed)?;
                vec![(LAMBDA, vec![lambda]), (TRACE, trace)]
            }
        };
        let numbers = values
            .into_iter()
            .map(|(measure, values)| Ok((measure.name.to_owned(), Tensor::f_from_slice(&values)?)));
        numbers.collect()
    }
}

/// Vectors in a block of Lanczos' method, for one eigenvalue.
const BLOCK: usize = 1;
/// It converges long before.
const MOST_PRODUCTS: usize = 1000;

/// λmax, and the trace with its standard error; NaN where θ, the loss or its derivatives are not finite.
fn curvature(
    settings: Hessian,
    run: &Run,
    objective: &Objective,
    theta: &Tensor,
    seed: u64,
) -> Result<(f64, Vec<f64>)> {
    let Objective { model, examples, loss } = *objective;
    let wanted = EigenSettings {
        largest: 1,
        smallest: 0,
        tolerance: settings.tolerance,
        block: BLOCK,
        products: MOST_PRODUCTS,
        seed,
    };
    let both = || -> Result<(f64, Vec<f64>), CurvatureError> {
        let operator = match model {
            Subject::Network(network) => CurvatureOperator::new(network, theta, examples, loss),
            Subject::Module(module) => {
                let threads = tch::get_num_threads().max(1) as usize;
                CurvatureOperator::of_module(module, theta, examples, loss, threads)
            }
        }?;
        let hessian = Watched { matrix: &operator.of(Curvature::Hessian), run };
        let pairs = eigenpairs(&hessian, wanted, &|_| true)?;
        let trace = hutch_plus_plus(&hessian, settings.products, seed)?.trace;
        Ok((pairs.values[0], vec![trace.value, trace.standard_error]))
    };
    match both() {
        Err(CurvatureError::NotFinite) => Ok((f64::NAN, vec![f64::NAN; 2])),
        found => {
            run.check_interrupted()?;
            Ok(found?)
        }
    }
}

/// All measures of each θ, each with the streams of its seed.
fn measure(
    settings: &Settings,
    run: &Run,
    subject: &Subject,
    splits: &Splits,
    thetas: &[Tensor],
    seeds: &[u64],
) -> Result<Vec<Vec<Value>>> {
    let hashes = thetas.iter().map(fingerprint).collect::<Result<Vec<_>>>()?;
    let of_model = |index| ESTIMATORS.map(|estimator| (index, estimator));
    let jobs: Vec<(usize, Estimator)> = (0..thetas.len()).flat_map(of_model).collect();
    let stage = run.progress.stage("sharpness", jobs.len() as u64);
    let device = run.device.device;
    let contexts = run.contexts(jobs.len(), || {
        let on_device = thetas.iter().map(|theta| Ok(theta.f_to_device(device)?));
        Ok((subject.again()?, settings.measured(&splits.train)?, on_device.collect::<Result<Vec<_>>>()?))
    })?;
    let (described, loss, prepared) = (describe_model(subject), splits.loss, splits.prepared.as_str());
    let found = in_parallel(contexts, &jobs, |(model, examples, thetas), &(index, estimator)| {
        run.check_interrupted()?;
        let what = estimator.content(settings);
        let content = serde_json::json!({
            "what": "sharpness",
            "network": described,
            "theta": hashes[index],
            "prepared": prepared,
            "examples": examples.count(),
            "estimator": what,
            "seed": seeds[index],
        });
        let numbers = run.kept(&content, || {
            let objective = Objective { model, examples, loss };
            estimator.numbers(settings, run, &objective, &thetas[index], seeds[index])
        })?;
        stage.advance(1, format!("model {} of {}: {what}", index + 1, thetas.len()));
        Ok(numbers)
    })?;
    let of_model = |found: &[Numbers]| -> Result<Vec<Value>> {
        let value = |measure: &Measure| {
            let numbers = found.iter().find_map(|numbers| numbers.get(measure.name));
            let numbers = numbers.with_context(|| format!("{} is missing", measure.name))?;
            let numbers: Vec<f64> = Vec::try_from(numbers)?;
            let value = *numbers.first().with_context(|| format!("{} is empty", measure.name))?;
            Ok(Value { value, standard_error: numbers.get(1).copied() })
        };
        MEASURES.iter().map(value).collect()
    };
    found.chunks_exact(ESTIMATORS.len()).map(of_model).collect()
}

fn training_table(trials: &[Trial], trained: &[Trained]) -> Result<Table> {
    let lr = |trial: &Trial| match trial.optimiser {
        OptimiserSettings::Sgd { lr, .. } => Some(lr),
        _ => None,
    };
    let keys = trials.iter().map(|trial| cells![trial.seed, trial.batch, lr(trial)].to_vec());
    curve_table(&["seed", "batch", "lr"], keys.zip(trained.iter().map(|one| one.curve.as_slice())))
}

/// What every table of models begins with.
const KEYS: [&str; 4] = ["model", "seed", "batch", "lr"];

impl Model {
    fn keys(&self) -> [Cell; 4] {
        let (batch, lr) = self.setting.map(|Setting { batch, lr }| (batch, lr)).unzip();
        cells![self.name.as_str(), self.seed, batch, lr]
    }
}

/// Without test examples, what is said of them stays empty.
fn models_table(models: &[Model], splits: &Splits) -> Result<Table> {
    let gap = match splits.loss {
        Loss::CrossEntropy => "loss_gap_nats",
        Loss::MeanSquaredError => "mean_squared_error_gap",
    };
    let [.., loss] = loss_words(splits.loss);
    let [train, test] = ["train", "test"].map(|split| format!("{split}_{loss}"));
    let columns = [&train, &test, "train_accuracy", "test_accuracy", gap, "error_gap"];
    let mut table = Table::new(&[&KEYS[..], &columns].concat());
    for model in models {
        let Both { train, test } = model.end;
        let tested = |value| splits.test.as_ref().map(|_| value);
        let [loss, error] = GAPS.map(|gap| tested(model.gap(gap)));
        let error = error.filter(|_| model.is_classifier());
        let values = cells![train.loss, tested(test.loss), train.accuracy, test.accuracy, loss, error];
        table.row(model.keys().into_iter().chain(values))?;
    }
    Ok(table)
}

fn sharpness_table(models: &[Model], loss: Loss) -> Result<Table> {
    let mut table = Table::new(&[&KEYS[..], &["measure", "unit", "value", "standard_error"]].concat());
    for model in models {
        for (measure, value) in MEASURES.iter().zip(&model.values) {
            let values = cells![measure.name, measure.unit(loss), value.value, value.standard_error];
            table.row(model.keys().into_iter().chain(values))?;
        }
    }
    Ok(table)
}

/// Loss and accuracy first: they show that the function is the same.
fn rescaling_table(settings: &Settings, models: &[Model], rescalings: &[Rescaling]) -> Result<Table> {
    let mut table =
        Table::new(&[&KEYS[..], &["factor", "measure", "unit", "value", "rescaled_value", "ratio"]].concat());
    for Rescaling { before, after } in rescalings {
        let before = &models[*before];
        let mut add = |name: &str, unit: &str, [value, other]: [f64; 2]| {
            let values = cells![settings.rescale, name, unit, value, other, other / value];
            table.row(before.keys().into_iter().chain(values))
        };
        let of = |value: &dyn Fn(&Model) -> f64| [value(before), value(after)];
        add("train_loss", "nat", of(&|model| model.end.train.loss))?;
        add("test_loss", "nat", of(&|model| model.end.test.loss))?;
        add("test_accuracy", "fraction", of(&|model| model.end.test.accuracy.unwrap_or(f64::NAN)))?;
        for measure in MEASURES {
            add(measure.name, measure.unit, of(&|model| model.of(measure)))?;
        }
    }
    Ok(table)
}

/// Over seeds. Sharpness varies by factors, so its mean is geometric.
fn over_seeds(models: &[Model], setting: Setting, measure: Measure) -> Option<Interval> {
    let these = models.iter().filter(|model| model.setting == Some(setting));
    geometric_mean_interval(&these.map(|model| model.of(measure)).collect::<Vec<_>>(), LEVEL)
}

fn mean_table(settings: &Settings, models: &[Model]) -> Result<Table> {
    let mut table = Table::new(&["batch", "lr", "measure", "unit", "seeds", "geometric_mean", "low", "high"]);
    for setting in settings.grid() {
        for measure in MEASURES {
            if let Some(Interval { mean, ends, count }) = over_seeds(models, setting, measure) {
                let (Setting { batch, lr }, (low, high)) = (setting, ends.unzip());
                table.row(cells![batch, lr, measure.name, measure.unit, count, mean, low, high])?;
            }
        }
    }
    Ok(table)
}

/// How the ranks of the models by a measure agree with those by a gap.
struct Correlation {
    /// `None` for the training loss, which is no sharpness: what any measure that only follows it would reach.
    measure: Option<Measure>,
    gap: Gap,
    /// How many models have both numbers.
    models: usize,
    tau: Option<Interval>,
}

/// Of the bootstrap.
const RESAMPLES: usize = 2000;

/// Over all models of all seeds. The interval draws settings, each with all its seeds: models that differ in the seed alone say little more than
/// one of them.
fn correlations(settings: &Settings, models: &[Model]) -> Vec<Correlation> {
    let grid = settings.grid();
    let cluster = |model: &Model| grid.iter().position(|setting| model.setting == Some(*setting));
    let of = |measure: Option<Measure>, gap| {
        let numbers = models.iter().map(|model| {
            let x = measure.map_or(model.end.train.loss, |measure| model.of(measure));
            (x, model.gap(gap), cluster(model).unwrap_or_default() as u64)
        });
        let numbers: Vec<(f64, f64, u64)> = numbers.filter(|(x, y, _)| !x.is_nan() && !y.is_nan()).collect();
        let x: Vec<f64> = numbers.iter().map(|(x, ..)| *x).collect();
        let y: Vec<f64> = numbers.iter().map(|(_, y, _)| *y).collect();
        let clusters: Vec<u64> = numbers.iter().map(|(.., cluster)| *cluster).collect();
        let tau = kendall_interval(&x, &y, Some(&clusters), LEVEL, RESAMPLES, settings.seed);
        Correlation { measure, gap, models: numbers.len(), tau }
    };
    let all = MEASURES.into_iter().map(Some).chain([None]);
    all.flat_map(|measure| GAPS.map(|gap| of(measure, gap))).collect()
}

impl Correlation {
    fn name(&self) -> &'static str {
        self.measure.map_or("train_loss", |measure| measure.name)
    }

    fn label(&self) -> &'static str {
        self.measure.map_or("training loss", |measure| measure.label)
    }
}

fn correlation_table(correlations: &[Correlation]) -> Result<Table> {
    let mut table = Table::new(&["measure", "gap", "models", "kendall_tau_b", "low", "high", "level"]);
    for one in correlations {
        let (low, high) = one.tau.and_then(|tau| tau.ends).unzip();
        let tau = one.tau.map(|tau| tau.mean);
        table.row(cells![one.name(), one.gap.name(), one.models, tau, low, high, LEVEL])?;
    }
    Ok(table)
}

/// Two panels a learning rate.
fn training_figure(settings: &Settings, run: &Run, trained: &[Trained]) -> Figure {
    let grid = settings.grid();
    let curves = |setting: Setting| {
        let index = grid.iter().position(|one| *one == setting).unwrap_or_default();
        trained.iter().skip(index).step_by(grid.len()).map(|one| one.curve.as_slice()).collect()
    };
    let panels = settings.lrs.iter().flat_map(|&lr| {
        let group = |(index, &batch): (usize, &i64)| Group {
            name: format!("batch {batch}"),
            colour: Colour::nth(index),
            curves: curves(Setting { batch, lr }),
        };
        let groups: Vec<Group> = settings.batches.iter().enumerate().map(group).collect();
        curve_panels(&groups).into_iter().map(move |panel| {
            let title = format!("lr {lr}: {}", panel.title);
            Panel { title, ..panel }
        })
    });
    let subtitle = settings.subtitle(run, " · train: mean over the epoch; test: after it");
    let mut figure = Figure::new("Training over batch sizes and learning rates", subtitle, panels.collect());
    figure.columns = Some(2);
    figure
}

impl Measure {
    fn axis(self) -> Axis {
        Axis::log10(match self.unit {
            "nat" => "rise of the loss (nats)",
            "%" => "φ (%)",
            _ => "nats per weight unit²",
        })
    }
}

/// The seeds thin, their geometric mean bold: of so few, an interval would hide them.
fn batch_figure(settings: &Settings, run: &Run, models: &[Model]) -> Figure {
    let seeds = Sharpness::seeds(settings);
    let mut batches = settings.batches.clone();
    batches.sort_unstable();
    let line = |index: usize, name: String, points| {
        Series::line(name, Colour::nth(index), points).with_points().with_marker(Marker::nth(index))
    };
    let panel = |measure: Measure| {
        let panel = Panel::new(measure.label, Axis::log10("batch size"), measure.axis());
        settings.lrs.iter().enumerate().fold(panel, |panel, (index, &lr)| {
            let over = |of: &dyn Fn(Setting) -> Option<f64>| {
                let point = |&batch: &i64| Some((batch as f64, of(Setting { batch, lr })?));
                batches.iter().filter_map(point).collect::<Vec<_>>()
            };
            let of_seed = |seed: u64| {
                let is_it = |model: &&Model, setting| model.seed == seed && model.setting == Some(setting);
                over(&|setting| Some(models.iter().find(|model| is_it(model, setting))?.of(measure)))
            };
            let several: &[u64] = if seeds.len() > 1 { &seeds } else { &[] };
            let panel = several.iter().fold(panel, |panel, &seed| {
                panel.with(Series::line("", Colour::nth(index), of_seed(seed)).thin())
            });
            let means = over(&|setting| Some(over_seeds(models, setting, measure)?.mean));
            panel.with(line(index, format!("lr {lr}"), means))
        })
    };
    let seeds = if seeds.len() > 1 { " · thin: each seed; bold: their geometric mean" } else { "" };
    let mut figure = Figure::new(
        "Sharpness over batch size",
        settings.subtitle(run, seeds),
        MEASURES.into_iter().map(panel).collect(),
    );
    figure.columns = Some(3);
    figure.panel_size = Some((420., 340.));
    figure
}

/// A dot a model: its colour says the batch size, its sign the learning rate.
fn gap_figure(settings: &Settings, run: &Run, models: &[Model], gap: Gap) -> Figure {
    let (label, scale) = match gap {
        Gap::Loss => ("test − train loss (nats)", 1.),
        Gap::Error => ("test − train error (points)", 100.),
    };
    let dot = |model: &Model, measure| (model.of(measure), scale * model.gap(gap));
    let panel = |measure: Measure| {
        let panel = Panel::new(measure.label, measure.axis(), Axis::linear(label));
        if !settings.weights.is_empty() {
            return models.iter().enumerate().fold(panel, |panel, (index, model)| {
                let name = model.name.as_str();
                let series = Series::scatter(name, Colour::nth(index), vec![dot(model, measure)]);
                panel.with(series.with_marker(Marker::nth(index)))
            });
        }
        settings.grid().into_iter().enumerate().fold(panel, |panel, (index, setting)| {
            let (batch, lr) = (index / settings.lrs.len(), index % settings.lrs.len());
            let these = models.iter().filter(|model| model.setting == Some(setting));
            let dots = these.map(|model| dot(model, measure)).collect();
            let name = format!("batch {}, lr {}", setting.batch, setting.lr);
            panel.with(Series::scatter(name, Colour::nth(batch), dots).with_marker(Marker::nth(lr)))
        })
    };
    let mut figure = Figure::new(
        "Generalisation gap over sharpness",
        settings.subtitle(run, " · one dot a model"),
        MEASURES.into_iter().map(panel).collect(),
    );
    figure.columns = Some(3);
    figure.panel_size = Some((420., 340.));
    figure
}

fn correlation_figure(settings: &Settings, run: &Run, correlations: &[Correlation]) -> Figure {
    let labels: Vec<&str> =
        correlations.iter().filter(|one| one.gap == Gap::Loss).map(Correlation::label).rev().collect();
    let axis = Axis::linear("Kendall's τ").with_range(-1., 1.);
    let panel = Panel::new("", axis, Axis::categories("", labels.clone())).with_mark(0., "");
    let panel = GAPS.into_iter().enumerate().fold(panel, |panel, (index, gap)| {
        let these: Vec<(f64, Interval)> = correlations
            .iter()
            .filter(|one| one.gap == gap)
            .rev()
            .enumerate()
            .filter_map(|(place, one)| Some((place as f64 + 0.12 - 0.24 * index as f64, one.tau?)))
            .collect();
        let ends = these.iter().map(|(_, tau)| tau.ends.unwrap_or((f64::NAN, f64::NAN))).collect();
        let dots = these.iter().map(|(place, tau)| (tau.mean, *place)).collect();
        let series = Series::scatter(format!("with the {} gap", gap.name()), Colour::nth(index), dots);
        panel.with(series.with_marker(Marker::nth(index)).with_x_whiskers(ends))
    });
    let mut figure = Figure::new(
        "Does sharpness rank models as the generalisation gap does?",
        settings.subtitle(run, ""),
        vec![panel],
    );
    figure.columns = Some(1);
    figure.band_meaning = "95 % bootstrap interval over settings".into();
    figure.panel_size = Some((860., 80. + 34. * labels.len() as f64));
    figure
}

/// Fixed before the data; those of τ need 6 models a seed. "Largest" and "smallest" are those of the grid; the rescaled model is the first of each seed's grid.
const CLAIMS: [Claim; 9] = [
    Claim {
        id: "keskar-batch",
        statement: "The larger the batch, the sharper the minimum",
        source: "Keskar et al. 2017",
        statistic: "ln of Keskar's φ with the largest batch over the one with the smallest, mean over learning rates (no unit)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "keskar-gap",
        statement: "The larger the batch, the larger the generalisation gap",
        source: "Keskar et al. 2017",
        statistic: "test minus train error with the largest batch less the same with the smallest, mean over learning rates \
                    (fractions)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "keskar-tells-gap",
        statement: "Sharper minima generalise worse",
        source: "Keskar et al. 2017",
        statistic: "Kendall's τ over the grid of Keskar's φ and test minus train error",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "dinh",
        statement: "The same function, written with other weights, has another sharpness",
        source: "Dinh et al. 2017",
        statistic: "size of ln of the worst case in a ball of the rescaled model over the one before (no unit)",
        rule: Rule::MeanAbove(0.1),
    },
    Claim {
        id: "adaptive-invariant",
        statement: "Adaptive sharpness does not depend on how the function is written",
        source: "Kwon et al. 2021",
        statistic: "size of ln of the adaptive worst case (elementwise) of the rescaled model over the one before (no unit)",
        rule: Rule::MeanBelow(0.01),
    },
    Claim {
        id: "adaptive-better",
        statement: "Adaptive sharpness goes with the generalisation gap more than sharpness in a ball does",
        source: "Kwon et al. 2021",
        statistic: "Kendall's τ over the grid of the adaptive worst case (elementwise) and test minus train error, less the same of \
                    the worst case in a ball",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "adaptive-weak",
        statement: "Adaptive sharpness is no strong indicator of generalisation: τ lies between -0.5 and 0.5",
        source: "Andriushchenko et al. 2023",
        statistic: "Kendall's τ over the grid of the adaptive average case (elementwise) and test minus train error",
        rule: Rule::MeanWithin(-0.5, 0.5),
    },
    Claim {
        id: "lr-flatter",
        statement: "Adaptive sharpness goes with the learning rate: the larger it is, the flatter the minimum",
        source: "Andriushchenko et al. 2023",
        statistic: "ln of the adaptive worst case (elementwise) with the largest learning rate over the one with the smallest, mean \
                    over batch sizes (no unit)",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "undertrained",
        statement: "After equally many epochs, large batches have fitted the training images less: their models differ in more than \
                    the batch size",
        source: "Flatland",
        statistic: "ln of the training loss with the largest batch over the one with the smallest, mean over learning rates (no \
                    unit)",
        rule: Rule::MeanAbove(0.),
    },
];

/// Models that a τ is judged of.
const FEWEST: usize = 6;

/// One seed's models, for the claims.
struct OneSeed<'a> {
    settings: &'a Settings,
    models: Vec<&'a Model>,
}

impl OneSeed<'_> {
    fn at(&self, batch: i64, lr: f64) -> Option<&Model> {
        let setting = Some(Setting { batch, lr });
        self.models.iter().find(|model| model.setting == setting).copied()
    }

    /// How a number changes from the smallest to the largest batch, mean over learning rates.
    fn over_batches(&self, change: impl Fn(&Model, &Model) -> f64) -> Option<f64> {
        let Settings { batches, lrs, .. } = self.settings;
        let (small, large) = (*batches.iter().min()?, *batches.iter().max()?);
        let changes = lrs.iter().map(|&lr| Some(change(self.at(small, lr)?, self.at(large, lr)?)));
        (small < large).then(|| mean(changes))?
    }

    /// From the smallest to the largest learning rate, mean over batches.
    fn over_rates(&self, change: impl Fn(&Model, &Model) -> f64) -> Option<f64> {
        let Settings { batches, lrs, .. } = self.settings;
        let small = lrs.iter().copied().min_by(f64::total_cmp)?;
        let large = lrs.iter().copied().max_by(f64::total_cmp)?;
        let changes =
            batches.iter().map(|&batch| Some(change(self.at(batch, small)?, self.at(batch, large)?)));
        (small < large).then(|| mean(changes))?
    }

    /// Kendall's τ of a measure and the error gap. Of few models it has so few values that seeds agree by chance.
    fn tau(&self, measure: Measure) -> Option<f64> {
        let x: Vec<f64> = self.models.iter().map(|model| model.of(measure)).collect();
        let y: Vec<f64> = self.models.iter().map(|model| model.gap(Gap::Error)).collect();
        // Where there is no correlation to compute, the seed must not vanish from the verdict.
        (x.len() >= FEWEST).then(|| kendall(&x, &y).unwrap_or(f64::NAN))
    }
}

fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values = values.collect::<Option<Vec<f64>>>()?;
    Some(values.iter().sum::<f64>() / values.len() as f64)
}

fn ln_ratio(of: impl Fn(&Model) -> f64) -> impl Fn(&Model, &Model) -> f64 {
    move |small, large| (of(large) / of(small)).ln()
}

/// Claims that need what the grid does not have are left out.
fn judge(settings: &Settings, models: &[Model], rescalings: &[Rescaling]) -> Vec<Outcome> {
    let judged = |claim: &Claim, of: &dyn Fn(OneSeed) -> Option<f64>| {
        let values = Sharpness::seeds(settings).into_iter().map(|seed| {
            of(OneSeed { settings, models: models.iter().filter(|model| model.seed == seed).collect() })
        });
        values.collect::<Option<Vec<f64>>>().map(|values| claim.judge(&values))
    };
    let written_otherwise = |claim: &Claim, measure| {
        let values = rescalings.iter().map(|one| one.ln_ratio(models, measure).abs());
        let values: Vec<f64> = values.collect();
        (!values.is_empty()).then(|| claim.judge(&values))
    };
    let [batch, gap, tells, dinh, invariant, better, weak, rate, undertrained] = &CLAIMS;
    [
        judged(batch, &|one| one.over_batches(ln_ratio(|model| model.of(KESKAR)))),
        judged(gap, &|one| one.over_batches(|small, large| large.gap(Gap::Error) - small.gap(Gap::Error))),
        judged(tells, &|one| one.tau(KESKAR)),
        written_otherwise(dinh, BALL),
        written_otherwise(invariant, ELEMENTWISE),
        judged(better, &|one| Some(one.tau(ELEMENTWISE)? - one.tau(BALL)?)),
        judged(weak, &|one| one.tau(AVERAGE_ELEMENTWISE)),
        judged(rate, &|one| one.over_rates(ln_ratio(|model| model.of(ELEMENTWISE)))),
        judged(undertrained, &|one| one.over_batches(ln_ratio(|model| model.end.train.loss))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn table() -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table
}

/// Each measure: how it ranks the models, and what a rescaling makes of it.
fn closing_table(
    settings: &Settings,
    models: &[Model],
    rescalings: &[Rescaling],
    correlations: &[Correlation],
) -> ClosingTable {
    let mut table = table();
    table.set_header([
        "measure".to_owned(),
        "τ with the loss gap".to_owned(),
        "τ with the error gap".to_owned(),
        format!("same function, layers x {}", settings.rescale),
    ]);
    for pair in correlations.chunks_exact(GAPS.len()) {
        let tau = |one: &Correlation| one.tau.map_or_else(String::new, |tau| number(tau, 1., 2, ""));
        let ratio = pair[0].measure.and_then(|measure| {
            let values = rescalings.iter().map(|one| one.ln_ratio(models, measure).exp());
            geometric_mean_interval(&values.collect::<Vec<_>>(), LEVEL)
        });
        let ratio = ratio.map_or_else(String::new, |ratio| format!("x {:.3}", ratio.mean));
        table.add_row([pair[0].label().to_owned(), tau(&pair[0]), tau(&pair[1]), ratio]);
    }
    table
}

/// Of the user's own models, every number.
fn weights_table(models: &[Model], loss: Loss) -> ClosingTable {
    let mut table = table();
    table.set_header(["model", "measure", "value"]);
    for model in models {
        for (measure, value) in MEASURES.iter().zip(&model.values) {
            let error = value.standard_error.map_or_else(String::new, |error| format!(" ± {error:.2e}"));
            let value = format!("{:.4e}{error} {}", value.value, measure.unit(loss));
            table.add_row([model.name.clone(), measure.label.to_owned(), value]);
        }
    }
    table
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // Seeds are whole numbers.
mod tests {
    use super::*;
    use crate::command::Arguments;
    use clap::Parser;
    use flatland_network::Evaluation;
    use flatland_statistics::Verdict::{self, Contradicted, Inconclusive, Supported};
    use std::collections::BTreeMap;

    fn settings(seeds: u64) -> Settings {
        let paper = Arguments::parse_from(["sharpness"]);
        let paper: Settings = crate::settings::resolve(Sharpness::PRESETS, &paper).unwrap();
        Settings { seeds, batches: vec![1000, 10, 100], lrs: vec![0.1, 0.01], ..paper }
    }

    /// What is known of a model: seed, batch and learning rate to its measures, and to training loss and error gap.
    type World<'a> = &'a dyn Fn(f64, f64, f64, Measure) -> f64;
    type Ends<'a> = &'a dyn Fn(f64, f64, f64) -> (f64, f64);

    fn models(settings: &Settings, of: World, ends: Ends) -> Vec<Model> {
        let model = |seed: u64, setting: Setting| {
            let Setting { batch, lr } = setting;
            let (loss, gap) = ends(seed as f64, batch as f64, lr);
            let end = Both {
                train: Evaluation { loss, accuracy: Some(0.9) },
                test: Evaluation { loss: loss + gap, accuracy: Some(0.9 - gap) },
            };
            let value =
                |measure| Value { value: of(seed as f64, batch as f64, lr, measure), standard_error: None };
            let values = MEASURES.map(value).to_vec();
            Model { name: String::new(), seed, setting: Some(setting), end, values }
        };
        let of_seed = |seed| settings.grid().into_iter().map(move |setting| model(seed, setting));
        Sharpness::seeds(settings).into_iter().flat_map(of_seed).collect()
    }

    /// The first of each seed, with every measure as `factor` says of it.
    fn rescalings(models: &[Model], factor: impl Fn(Measure) -> f64) -> Vec<Rescaling> {
        let firsts =
            (0..models.len()).filter(|&index| index == 0 || models[index].seed != models[index - 1].seed);
        let other = |before: usize| {
            let Model { name, seed, setting, end, .. } = &models[before];
            let value =
                |measure| Value { value: models[before].of(measure) * factor(measure), standard_error: None };
            let values = MEASURES.map(value).to_vec();
            Rescaling {
                before,
                after: Model { name: name.clone(), seed: *seed, setting: *setting, end: *end, values },
            }
        };
        firsts.map(other).collect()
    }

    fn verdicts(
        settings: &Settings,
        of: World,
        ends: Ends,
        factor: impl Fn(Measure) -> f64,
    ) -> BTreeMap<&'static str, Verdict> {
        let models = models(settings, of, ends);
        let outcomes = judge(settings, &models, &rescalings(&models, factor));
        outcomes.iter().map(|outcome| (outcome.claim.id, outcome.verdict)).collect()
    }

    #[test]
    fn known_models_give_known_verdicts() {
        let scatter = |seed: f64| 1. + 0.01 * seed;
        // Sharpness and gap rise with the batch; the adaptive average follows neither; lr flattens.
        let keskar = verdicts(
            &settings(4),
            &|seed, batch, lr, measure| {
                scatter(seed)
                    * match measure {
                        KESKAR => batch,
                        BALL => 1. / batch,
                        ELEMENTWISE => batch / lr.powf(0.1),
                        AVERAGE_ELEMENTWISE => (batch.ln() - 4.6).powi(2) + lr,
                        _ => 1.,
                    }
            },
            &|seed, batch, lr| (scatter(seed) * batch / 1e4, scatter(seed) * (batch + lr) / 1e5),
            |measure| if measure == BALL { 3. } else { 1.001 },
        );
        assert_eq!(keskar.len(), CLAIMS.len());
        for (id, verdict) in keskar {
            assert_eq!(verdict, Supported, "{id}");
        }
        let other = verdicts(
            &settings(4),
            &|seed, batch, lr, measure| {
                scatter(seed)
                    * match measure {
                        KESKAR => 1. / batch,
                        BALL => batch,
                        ELEMENTWISE => lr / batch,
                        AVERAGE_ELEMENTWISE => lr - batch,
                        _ => 1.,
                    }
            },
            &|seed, batch, lr| (scatter(seed) / batch, scatter(seed) * (0.1 - (batch + lr) / 1e5)),
            |measure| if measure == BALL { 1.001 } else { 0.5 },
        );
        for (id, verdict) in other {
            // Sharper models still generalise worse, and the adaptive measure still tells more than the ball.
            let right = ["keskar-tells-gap", "adaptive-better"].contains(&id);
            assert_eq!(verdict, if right { Supported } else { Contradicted }, "{id}");
        }
    }

    #[test]
    fn one_seed_and_a_diverged_one_decide_nothing() {
        let of: World = &|_, batch, lr, _| batch + lr;
        let ends: Ends = &|_, batch, lr| (1., (batch + lr) / 1e4);
        for (_, verdict) in verdicts(&settings(1), of, ends, |_| 2.) {
            assert_eq!(verdict, Inconclusive);
        }
        let diverged: World = &|seed, batch, lr, _| if seed == 2. { f64::NAN } else { batch + lr };
        let lost: Ends = &|seed, batch, lr| {
            if seed == 2. { (f64::NAN, f64::NAN) } else { (1., (batch + lr) / 1e4) }
        };
        for (id, verdict) in verdicts(&settings(5), diverged, lost, |_| 2.) {
            assert_eq!(verdict, Inconclusive, "{id}");
        }
        // Correlations go over those that did not diverge.
        let settings = settings(5);
        let found = correlations(&settings, &models(&settings, diverged, lost));
        assert!(found.iter().all(|one| one.models == 4 * 6));
        assert!((found[0].tau.unwrap().mean - 1.).abs() < 1e-12);
    }

    #[test]
    fn claims_without_their_grid_are_left_out() {
        let ids = |batches: &[i64], lrs: &[f64]| {
            let settings = Settings { batches: batches.to_vec(), lrs: lrs.to_vec(), ..settings(3) };
            let found =
                verdicts(&settings, &|_, batch, lr, _| batch * lr, &|_, batch, lr| (batch, lr), |_| 2.);
            found.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(ids(&[10], &[0.1]), ["adaptive-invariant", "dinh"]);
        assert_eq!(ids(&[10], &[0.1, 0.2]), ["adaptive-invariant", "dinh", "lr-flatter"]);
        assert_eq!(ids(&[10, 20, 30], &[0.1]).len(), 5);
        // Four models are too few for τ.
        assert_eq!(ids(&[10, 20], &[0.1, 0.2]).len(), 6);
        assert_eq!(ids(&[10, 20, 30], &[0.1, 0.2]).len(), CLAIMS.len());
    }

    #[test]
    fn files_are_named_by_what_tells_them_apart() {
        let names = |weights: &[&str]| {
            let weights = weights.iter().map(|&path| path.to_owned()).collect();
            Settings { weights, ..settings(3) }.names()
        };
        assert_eq!(names(&["a/x.safetensors", "b/y.safetensors"]), ["x", "y"]);
        assert_eq!(names(&["a/x.safetensors", "b/x.safetensors"]), ["a/x.safetensors", "b/x.safetensors"]);
    }
}
