//! Flatness against generalisation, part 2: sensitivity over batch size.
//!
//! LeNet is trained with batches of several sizes, for the same number of epochs. Of each model, loss, accuracy and how
//! strongly it reacts to its input: the norm of the loss's gradient with respect to the input (the assignment), and of the
//! input-output Jacobian (Novak et al. 2018, "Sensitivity and generalization in neural networks: an empirical study");
//! and the figure that the report's notebook calls sensitivity. `flatland_geometry` has their formulas.

use crate::curves::{Group, curve_panels, curve_table};
use crate::experiment::{Experiment, check_seeds, seeds_from};
use crate::images::{ImageSettings, Images};
use crate::parallel::in_parallel;
use crate::run::{Numbers, Run};
use crate::summary::{number, series, subtitle};
use crate::trial::{Both, SPLITS, Trained, Trial, describe, train_all};
use anyhow::{Context, Result, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::DataSetName;
use flatland_geometry::{frobenius_of_mean, input_norms, parameter_gradient_norm};
use flatland_network::{Evaluation, Examples, Loss, Network, OptimiserSettings, Training, epoch_order};
use flatland_record::{Axis, Colour, Figure, Panel, Series, Table, cells};
use flatland_statistics::{
    Claim, Interval, LEVEL, Outcome, Rule, geometric_mean_interval, mean_interval, rank_correlation,
};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `configs/sensitivity.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub dataset: DataSetName,
    pub seeds: u64,
    pub seed: u64,
    pub epochs: u32,
    pub batches: Vec<i64>,
    pub lr: f64,
    pub momentum: f64,
    pub nesterov: bool,
    pub weight_decay: f64,
    pub examples: usize,
    pub images: ImageSettings,
}

/// Something measured of a trained model.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measure {
    name: &'static str,
    unit: &'static str,
    /// It varies by factors, so that its mean over seeds is geometric.
    by_factors: bool,
}

impl Measure {
    const fn new(name: &'static str, unit: &'static str, by_factors: bool) -> Self {
        Self { name, unit, by_factors }
    }

    fn mean(self, values: &[f64]) -> Option<Interval> {
        if self.by_factors { geometric_mean_interval(values, LEVEL) } else { mean_interval(values, LEVEL) }
    }
}

const LOSS: Measure = Measure::new("loss", "nat", true);
const ACCURACY: Measure = Measure::new("accuracy", "fraction", false);
const LOSS_GAP: Measure = Measure::new("loss_gap", "nat", false);
const ACCURACY_GAP: Measure = Measure::new("accuracy_gap", "fraction", false);
/// Inputs are normalised: a unit is a standard deviation of the training images' pixels.
const INPUT_GRADIENT: Measure = Measure::new("input_gradient_norm", "nat/input unit", true);
const INPUT_GRADIENT_FROBENIUS: Measure =
    Measure::new("input_gradient_frobenius_norm", "nat/input unit", true);
const JACOBIAN: Measure = Measure::new("jacobian_norm", "1/input unit", true);
const LOGIT_JACOBIAN: Measure = Measure::new("logit_jacobian_norm", "nat/input unit", true);
const NOTEBOOK: Measure = Measure::new("notebook_parameter_gradient_norm", "nat/weight unit", true);

/// All of them, in the tables' order.
const MEASURES: [Measure; 9] = [
    LOSS,
    ACCURACY,
    LOSS_GAP,
    ACCURACY_GAP,
    INPUT_GRADIENT,
    INPUT_GRADIENT_FROBENIUS,
    JACOBIAN,
    LOGIT_JACOBIAN,
    NOTEBOOK,
];

/// The `split` of a gap.
const BOTH: &str = "both";
/// The `split` of the notebook's figure: the last batch of the last epoch.
const LAST_BATCH: &str = "last batch";

/// One measure of one model.
#[derive(Debug)]
struct Observation {
    seed: u64,
    batch: i64,
    split: &'static str,
    measure: Measure,
    value: f64,
    /// Over how many examples; `None` for a gap, which has two such numbers.
    examples: Option<i64>,
}

/// All observations, in the order of seeds, batches and measures.
#[derive(Debug)]
struct Observations(Vec<Observation>);

impl Observations {
    /// Of one model.
    fn at(&self, seed: u64, batch: i64, split: &str, measure: Measure) -> Option<f64> {
        let is_it = |one: &&Observation| {
            (one.seed, one.batch, one.split, one.measure) == (seed, batch, split, measure)
        };
        self.0.iter().find(is_it).map(|one| one.value)
    }

    /// Of all seeds.
    fn over_seeds(&self, batch: i64, split: &str, measure: Measure) -> Option<Interval> {
        let these =
            self.0.iter().filter(|one| (one.batch, one.split, one.measure) == (batch, split, measure));
        measure.mean(&these.map(|one| one.value).collect::<Vec<_>>())
    }
}

/// The experiment.
#[derive(Debug)]
pub struct Sensitivity;

impl Experiment for Sensitivity {
    const NAME: &'static str = "sensitivity";
    const ABOUT: &'static str = "Do larger batches give networks that react less to their input, and does that tell \
        how they generalise? Loss, accuracy and sensitivity of LeNet over batch size.";
    const EXAMPLES: &'static str = "Examples:
  sensitivity --preset quick --dataset digits     no files needed
  sensitivity --seeds 5                           the report's settings with error bars
  sensitivity --seeds 5 --set lr=0.01             near the notebook's losses
  sensitivity --resume                            after Ctrl-C or a crash";
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 159.), ("quick", 14.)];
    const PRESETS: &'static str = include_str!("../../../configs/sensitivity.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        let preparation = settings.images.preparation();
        preparation.check()?;
        ensure!(settings.epochs > 0, "epochs must be at least 1, found 0");
        settings.optimiser().check()?;
        ensure!(!settings.batches.is_empty(), "batches must name at least one batch size, found none");
        for (index, &batch) in settings.batches.iter().enumerate() {
            Training::check_batch(batch, preparation.most()).context("batches")?;
            ensure!(
                !settings.batches[..index].contains(&batch),
                "batches must be different, found {batch} twice"
            );
        }
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        seeds_from(settings.seed, settings.seeds)
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let images = [Images::load(run, settings.dataset, settings.images.preparation())?];
        let network = Network::lenet();

        // Training: every batch size of every seed.
        let trials = settings.trials();
        let trained = train_all(run, std::slice::from_ref(&network), &images, &trials)?;
        run.write_table(
            "training",
            &training_table(&trials, &trained, settings.lr)?,
            "loss and accuracy by epoch",
        )?;
        run.write_figure("training", &training_figure(settings, run, &trained), "training curves")?;

        // Measurement: derivatives with respect to the input, on both splits.
        let observed = measure(settings, run, &network, &images[0], &trials, &trained)?;
        run.write_table(
            "sensitivity",
            &sensitivity_table(settings, &observed)?,
            "each model: loss, gap, sensitivity",
        )?;
        let means = sensitivity_mean_table(settings, &observed)?;
        run.write_table("sensitivity_mean", &means, "the same over seeds: mean and 95 % interval")?;
        run.write_figure(
            "sensitivity",
            &sensitivity_figure(settings, run, &observed),
            "loss, accuracy, gap and sensitivity over batch size",
        )?;
        let gap = gap_figure(settings, run, &observed);
        run.write_figure("gap", &gap, "generalisation gap over sensitivity")?;
        run.write_claims(judge(settings, &observed))?;
        Ok(closing_table(settings, &observed))
    }
}

impl Settings {
    fn optimiser(&self) -> OptimiserSettings {
        let Self { lr, momentum, nesterov, weight_decay, .. } = *self;
        OptimiserSettings::Sgd { lr, momentum, nesterov, weight_decay }
    }

    /// By seed, then by batch size.
    fn trials(&self) -> Vec<Trial> {
        let trial = |seed: u64, batch: i64| Trial {
            name: format!("seed{seed}-batch{batch}-lr{}", self.lr),
            network: 0,
            images: 0,
            seed,
            // The same for all: batch sizes are compared from the same initial weights.
            stream: 0,
            optimiser: self.optimiser(),
            batch,
            epochs: self.epochs,
            stop_at: None,
            snapshots: false,
        };
        let of_seed = |seed| self.batches.iter().map(move |&batch| trial(seed, batch));
        Sensitivity::seeds(self).into_iter().flat_map(of_seed).collect()
    }

    /// Ascending.
    fn sorted_batches(&self) -> Vec<i64> {
        let mut batches = self.batches.clone();
        batches.sort_unstable();
        batches
    }

    fn subtitle(&self, run: &Run, more: &str) -> String {
        let subject = format!("LeNet on {}", self.dataset);
        let more = format!("SGD, lr {} · {} epochs{more}", self.lr, self.epochs);
        subtitle::<Sensitivity>(self, run, &subject, &more)
    }
}

/// Measures every model on both splits.
fn measure(
    settings: &Settings,
    run: &Run,
    network: &Network,
    images: &Images,
    trials: &[Trial],
    trained: &[Trained],
) -> Result<Observations> {
    let jobs: Vec<(usize, &str)> =
        (0..trials.len()).flat_map(|index| SPLITS.map(|(split, _)| (index, split))).collect();
    let [train, test] = [&images.train, &images.test].map(|split| settings.measured(split));
    let stage = run.progress.stage("sensitivity", trials.len() as u64 * (train? + test?) as u64);
    let device = run.device.device;
    let thetas = || trained.iter().map(|one| Ok(one.theta.f_to_device(device)?)).collect::<Result<Vec<_>>>();
    let contexts = run.contexts(jobs.len(), || Ok((images.share(), thetas()?)))?;
    let found = in_parallel(contexts, &jobs, |(images, thetas), &(index, split)| {
        let (trial, theta) = (&trials[index], &thetas[index]);
        let (examples, last_batch) = match split {
            "train" => (&images.train, Some(last_batch(&images.train, trial)?)),
            _ => (&images.test, None),
        };
        let count = settings.measured(examples)?;
        let content = serde_json::json!({
            "what": "sensitivity",
            "network": describe(network),
            "trial": trial,
            "prepared": images.prepared,
            "train": images.train.count(),
            "split": split,
            "examples": count,
        });
        run.kept(&content, || {
            let advance = |examples| stage.advance(examples, format!("{}: {split}", trial.name));
            norms(run, network, theta, &examples.first(count)?, last_batch, &advance)
        })
    })?;
    observe(images, trials, trained, &found)
}

impl Settings {
    /// How many of a split's examples are measured.
    fn measured(&self, split: &Examples) -> Result<i64> {
        let wanted = i64::try_from(self.examples).context("examples is too large a number")?;
        Ok(if wanted == 0 { split.count() } else { wanted.min(split.count()) })
    }
}

/// Between two looks at whether the user wants to stop.
const PIECE: i64 = 500;

/// The norms of each example, and the notebook's figure where its batch is given.
fn norms(
    run: &Run,
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    last_batch: Option<(Tensor, Tensor)>,
    advance: &dyn Fn(u64),
) -> Result<Numbers> {
    let (mut gradients, mut probabilities, mut logits) = (Vec::new(), Vec::new(), Vec::new());
    for start in (0..examples.count()).step_by(PIECE as usize) {
        run.check_interrupted()?;
        let length = PIECE.min(examples.count() - start);
        let piece = examples.slice(start, length)?;
        let norms = input_norms(network, theta, &piece)?;
        gradients.push(norms.gradient);
        probabilities.push(norms.jacobian.probabilities);
        logits.push(norms.jacobian.logits);
        advance(length as u64);
    }
    let mut numbers = Numbers::new();
    for (measure, pieces) in
        [(INPUT_GRADIENT, gradients), (JACOBIAN, probabilities), (LOGIT_JACOBIAN, logits)]
    {
        numbers.insert(measure.name.to_owned(), Tensor::f_cat(&pieces, 0)?);
    }
    if let Some((x, targets)) = last_batch {
        let norm = parameter_gradient_norm(network, theta, &x, &targets, Loss::CrossEntropy)?;
        numbers.insert(NOTEBOOK.name.to_owned(), Tensor::f_from_slice(&[norm])?);
    }
    Ok(numbers)
}

/// The batch of the last step of the last epoch.
fn last_batch(train: &Examples, trial: &Trial) -> Result<(Tensor, Tensor)> {
    let count = train.count();
    if trial.batch >= count {
        return Ok(train.part(0, count)?);
    }
    let order = epoch_order((trial.seed, trial.stream), trial.epochs - 1, count);
    let chosen = Tensor::f_from_slice(&order[last_start(count, trial.batch) as usize..])?
        .f_to_device(train.device())?;
    Ok(train.chosen(&chosen)?)
}

/// Where the last batch of an epoch begins: it holds what is left.
fn last_start(count: i64, batch: i64) -> i64 {
    (count - 1) / batch * batch
}

/// From norms of each example to one number a model, split and measure. `found` goes by trial, then by split.
fn observe(
    images: &Images,
    trials: &[Trial],
    trained: &[Trained],
    found: &[Numbers],
) -> Result<Observations> {
    let mut observations = Vec::new();
    for ((trial, trained), found) in trials.iter().zip(trained).zip(found.chunks_exact(SPLITS.len())) {
        let mut add = |split, measure, value, examples| {
            let Trial { seed, batch, .. } = *trial;
            observations.push(Observation { seed, batch, split, measure, value, examples });
        };
        for ((split, of), all) in SPLITS.into_iter().zip([&images.train, &images.test]) {
            add(split, LOSS, of(&trained.end).loss, Some(all.count()));
            add(split, ACCURACY, accuracy(of(&trained.end)), Some(all.count()));
        }
        let Both { train, test } = trained.end;
        add(BOTH, LOSS_GAP, test.loss - train.loss, None);
        add(BOTH, ACCURACY_GAP, accuracy(train) - accuracy(test), None);
        for ((split, _), numbers) in SPLITS.into_iter().zip(found) {
            let get = |measure: Measure| {
                numbers
                    .get(measure.name)
                    .with_context(|| format!("{}: {} is missing", trial.name, measure.name))
            };
            let mean = |norms: &Tensor| norms.f_mean(Kind::Double)?.f_double_value(&[]);
            let gradients = get(INPUT_GRADIENT)?;
            let examples = Some(gradients.numel() as i64);
            add(split, INPUT_GRADIENT, mean(gradients)?, examples);
            add(split, INPUT_GRADIENT_FROBENIUS, frobenius_of_mean(gradients)?, examples);
            for measure in [JACOBIAN, LOGIT_JACOBIAN] {
                add(split, measure, mean(get(measure)?)?, examples);
            }
        }
        let last = found[0].get(NOTEBOOK.name).context("the last batch is missing")?;
        let examples = images.train.count() - last_start(images.train.count(), trial.batch);
        add(LAST_BATCH, NOTEBOOK, last.f_double_value(&[0])?, Some(examples));
    }
    Ok(Observations(observations))
}

/// NaN where it is unknown: a claim then says so.
fn accuracy(of: Evaluation) -> f64 {
    of.accuracy.unwrap_or(f64::NAN)
}

fn training_table(trials: &[Trial], trained: &[Trained], lr: f64) -> Result<Table> {
    let keys = trials.iter().map(|trial| cells![trial.seed, trial.batch, lr].to_vec());
    curve_table(&["seed", "batch", "lr"], keys.zip(trained.iter().map(|one| one.curve.as_slice())))
}

fn sensitivity_table(settings: &Settings, observed: &Observations) -> Result<Table> {
    let mut table = Table::new(&["seed", "batch", "lr", "measure", "unit", "split", "examples", "value"]);
    for one in &observed.0 {
        let Measure { name, unit, .. } = one.measure;
        table.row(cells![
            one.seed,
            one.batch,
            settings.lr,
            name,
            unit,
            one.split,
            one.examples,
            one.value
        ])?;
    }
    Ok(table)
}

fn sensitivity_mean_table(settings: &Settings, observed: &Observations) -> Result<Table> {
    let mut table =
        Table::new(&["batch", "lr", "measure", "unit", "split", "seeds", "mean_kind", "mean", "low", "high"]);
    for batch in settings.sorted_batches() {
        for measure in MEASURES {
            for split in ["train", "test", BOTH, LAST_BATCH] {
                let Some(Interval { mean, ends, count }) = observed.over_seeds(batch, split, measure) else {
                    continue;
                };
                let kind = if measure.by_factors { "geometric" } else { "arithmetic" };
                let Measure { name, unit, .. } = measure;
                let (low, high) = ends.unzip();
                table.row(cells![batch, settings.lr, name, unit, split, count, kind, mean, low, high])?;
            }
        }
    }
    Ok(table)
}

fn training_figure(settings: &Settings, run: &Run, trained: &[Trained]) -> Figure {
    let each = settings.batches.len();
    let group = |(index, batch): (usize, &i64)| Group {
        name: format!("batch {batch}"),
        colour: Colour::nth(index),
        curves: trained.iter().skip(index).step_by(each).map(|one| one.curve.as_slice()).collect(),
    };
    let groups: Vec<Group> = settings.batches.iter().enumerate().map(group).collect();
    let subtitle = settings.subtitle(run, " · train: mean over the epoch; test: after it");
    Figure::new("Training with batches of several sizes", subtitle, curve_panels(&groups))
}

/// The report's graphs: everything over batch size.
fn sensitivity_figure(settings: &Settings, run: &Run, observed: &Observations) -> Figure {
    let line = |name: &str, colour, scale, split, measure| {
        let values = settings
            .sorted_batches()
            .into_iter()
            .filter_map(|batch| Some((batch as f64, observed.over_seeds(batch, split, measure)?)));
        series(name, colour, scale, values).with_points()
    };
    let panel = |title: &str, y| Panel::new(title, Axis::log10("batch size"), y);
    let both = |panel: Panel, colour, scale, measure| {
        let test: Series = line("test", colour, scale, "test", measure).dashed();
        panel.with(line("train", colour, scale, "train", measure)).with(test)
    };
    let gap = panel("generalisation gap", Axis::linear("test − train loss (nats)"))
        .with_right_axis(Axis::linear("train − test accuracy (points)"))
        .with(line("loss", Colour::Blue, 1., BOTH, LOSS_GAP))
        .with(line("accuracy", Colour::Vermillion, 100., BOTH, ACCURACY_GAP).dashed().on_right_axis());
    let last = line("last batch", Colour::Purple, 1., LAST_BATCH, NOTEBOOK);
    let panels = vec![
        both(panel("loss", Axis::log10("cross-entropy (nats)")), Colour::Blue, 1., LOSS),
        both(panel("accuracy", Axis::linear("accuracy (%)")), Colour::Vermillion, 100., ACCURACY),
        gap,
        both(
            panel("sensitivity: input gradient", Axis::log10("mean ‖∂ℓ/∂x‖ (nats per input unit)")),
            Colour::Green,
            1.,
            INPUT_GRADIENT,
        ),
        both(
            panel("sensitivity: input-output Jacobian", Axis::log10("mean ‖∂p/∂x‖ (per input unit)")),
            Colour::Green,
            1.,
            JACOBIAN,
        ),
        panel("the notebook's figure", Axis::log10("mean ‖∂L/∂W‖ over tensors")).with(last),
    ];
    let subtitle = settings.subtitle(run, "");
    let mut figure = Figure::new("Loss, accuracy and sensitivity over batch size", subtitle, panels);
    figure.columns = Some(3);
    figure
}

/// Whether sensitivity tells the gap: a dot a model.
fn gap_figure(settings: &Settings, run: &Run, observed: &Observations) -> Figure {
    let seeds = Sensitivity::seeds(settings);
    let panel = |title: &str, x, measure| {
        let panel = Panel::new(title, Axis::log10(x), Axis::linear("train − test accuracy (points)"));
        settings.sorted_batches().into_iter().enumerate().fold(panel, |panel, (index, batch)| {
            let dots = seeds.iter().filter_map(|&seed| {
                let x = observed.at(seed, batch, "test", measure)?;
                Some((x, 100. * observed.at(seed, batch, BOTH, ACCURACY_GAP)?))
            });
            panel.with(Series::scatter(format!("batch {batch}"), Colour::nth(index), dots.collect()))
        })
    };
    let panels = vec![
        panel("input-output Jacobian", "mean ‖∂p/∂x‖ over test examples (per input unit)", JACOBIAN),
        panel("input gradient", "mean ‖∂ℓ/∂x‖ over test examples (nats per input unit)", INPUT_GRADIENT),
    ];
    Figure::new("Generalisation gap over sensitivity", settings.subtitle(run, " · one dot a model"), panels)
}

/// What the report calls past the turn.
const LARGE: i64 = 5000;
/// Well before it.
const SMALL: i64 = 500;

/// Fixed before the data. "Large" is the largest batch size of at least 5,000, "small" the largest of at most 500.
const CLAIMS: [Claim; 8] = [
    Claim {
        id: "sensitivity-falls",
        statement: "Sensitivity is lower at batch sizes past 5,000 than at small ones",
        source: "report",
        statistic: "ln of the mean input-gradient norm over test examples with the large batch over the one \
                    with the small (no unit)",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "sensitivity-turns",
        statement: "Sensitivity falls more steeply past a batch size of 5,000 than up to 500",
        source: "report",
        statistic: "d ln (input-gradient norm) / d ln (batch size) from the smallest batch of at least \
                    5,000 to the large one, minus the same from the smallest batch to the small one (no \
                    unit)",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "accuracy-falls",
        statement: "Where sensitivity falls, at batch sizes past 5,000, accuracy is lower",
        source: "report",
        statistic: "test accuracy with the large batch minus the one with the small (fractions)",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "notebook-measure-falls",
        statement: "The notebook's figure, the norm of the parameters' gradient, is lower past 5,000 too",
        source: "notebook",
        statistic: "ln of the mean norm over tensors of the last batch's gradient with the large batch over \
                    the one with the small (no unit)",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "jacobian-falls",
        statement: "The input-output Jacobian is smaller at batch sizes past 5,000 than at small ones",
        source: "report, by the measure of Novak et al. 2018",
        statistic: "ln of the mean Jacobian norm over test examples with the large batch over the one with \
                    the small (no unit)",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "jacobian-tells-gap",
        statement: "Over batch sizes, models with a larger input-output Jacobian generalise worse",
        source: "Novak et al. 2018",
        statistic: "Spearman's rank correlation over batch sizes of the Jacobian norm on test examples and \
                    train minus test accuracy",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "large-batch-gap",
        statement: "Larger batches leave a larger generalisation gap",
        source: "Keskar et al. 2017",
        statistic: "Spearman's rank correlation of batch size and train minus test accuracy",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "undertrained",
        statement: "After equally many epochs, large batches have fitted the training images less: their \
                    models differ in more than the batch size",
        source: "Flatland",
        statistic: "ln of the training loss with the large batch over the one with the small (no unit)",
        rule: Rule::MeanAbove(0.),
    },
];

/// One seed's models, for the claims.
struct OneSeed<'a> {
    observed: &'a Observations,
    seed: u64,
    batches: &'a [i64],
}

impl OneSeed<'_> {
    fn at(&self, batch: i64, split: &str, measure: Measure) -> Option<f64> {
        self.observed.at(self.seed, batch, split, measure)
    }

    /// The small and the large batch size.
    fn ends(&self) -> Option<(i64, i64)> {
        let small = self.batches.iter().filter(|&&batch| batch <= SMALL).max()?;
        let large = self.batches.iter().filter(|&&batch| batch >= LARGE).max()?;
        Some((*small, *large))
    }

    fn ln_ratio(&self, split: &str, measure: Measure) -> Option<f64> {
        let (small, large) = self.ends()?;
        Some((self.at(large, split, measure)? / self.at(small, split, measure)?).ln())
    }

    /// Of the input gradient, on double logarithmic axes.
    fn slope(&self, from: i64, to: i64) -> Option<f64> {
        let [low, high] = [from, to].map(|batch| self.at(batch, "test", INPUT_GRADIENT));
        (from < to).then_some((high? / low?).ln() / (to as f64 / from as f64).ln())
    }

    fn turn(&self) -> Option<f64> {
        let (small, large) = self.ends()?;
        let first_large = self.batches.iter().filter(|&&batch| batch >= LARGE).min()?;
        Some(self.slope(*first_large, large)? - self.slope(*self.batches.iter().min()?, small)?)
    }

    fn accuracy_change(&self) -> Option<f64> {
        let (small, large) = self.ends()?;
        Some(self.at(large, "test", ACCURACY)? - self.at(small, "test", ACCURACY)?)
    }

    /// Of the accuracy's gap with something, over batch sizes; at least 3, since 2 always agree or disagree.
    fn gap_correlation(&self, of: impl Fn(i64) -> Option<f64>) -> Option<f64> {
        let pair = |&batch: &i64| Some((of(batch)?, self.at(batch, BOTH, ACCURACY_GAP)?));
        let pairs = self.batches.iter().map(pair).collect::<Option<Vec<_>>>()?;
        if pairs.len() < 3 {
            return None;
        }
        // Where there is no correlation to compute, the seed must not vanish from the verdict.
        Some(rank_correlation(&pairs).unwrap_or(f64::NAN))
    }
}

/// Claims that need batch sizes which were not trained are left out.
fn judge(settings: &Settings, observed: &Observations) -> Vec<Outcome> {
    let judged = |claim: &Claim, of: &dyn Fn(OneSeed) -> Option<f64>| {
        let one = |seed| OneSeed { observed, seed, batches: &settings.batches };
        let values = Sensitivity::seeds(settings).into_iter().map(|seed| of(one(seed)));
        values.collect::<Option<Vec<f64>>>().map(|values| claim.judge(&values))
    };
    let [falls, turns, less_accurate, notebook, jacobian, tells, larger_gap, undertrained] = &CLAIMS;
    [
        judged(falls, &|one| one.ln_ratio("test", INPUT_GRADIENT)),
        judged(turns, &|one| one.turn()),
        judged(less_accurate, &|one| one.accuracy_change()),
        judged(notebook, &|one| one.ln_ratio(LAST_BATCH, NOTEBOOK)),
        judged(jacobian, &|one| one.ln_ratio("test", JACOBIAN)),
        judged(tells, &|one| one.gap_correlation(|batch| one.at(batch, "test", JACOBIAN))),
        judged(larger_gap, &|one| one.gap_correlation(|batch| Some(batch as f64))),
        judged(undertrained, &|one| one.ln_ratio("train", LOSS)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn closing_table(settings: &Settings, observed: &Observations) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "batch",
        "train loss",
        "test loss",
        "train accuracy",
        "test accuracy",
        "input gradient",
        "Jacobian",
        "notebook's",
    ]);
    for batch in settings.sorted_batches() {
        let cell = |split, measure, scale, decimals, unit| {
            let interval = observed.over_seeds(batch, split, measure);
            interval.map_or_else(String::new, |interval| number(interval, scale, decimals, unit))
        };
        table.add_row([
            batch.to_string(),
            cell("train", LOSS, 1., 4, ""),
            cell("test", LOSS, 1., 4, ""),
            cell("train", ACCURACY, 100., 2, " %"),
            cell("test", ACCURACY, 100., 2, " %"),
            cell("test", INPUT_GRADIENT, 1., 4, ""),
            cell("test", JACOBIAN, 1., 4, ""),
            cell(LAST_BATCH, NOTEBOOK, 1., 4, ""),
        ]);
    }
    table
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // Ties are exact.
mod tests {
    use super::*;
    use crate::command::Arguments;
    use clap::Parser;
    use flatland_statistics::Verdict::{self, Contradicted, Inconclusive, Supported};
    use std::collections::BTreeMap;

    const BATCHES: [i64; 5] = [50, 100, 500, 5000, 10_000];

    fn settings(seeds: u64) -> Settings {
        let paper = Arguments::parse_from(["sensitivity"]);
        let paper: Settings = crate::settings::resolve(Sensitivity::PRESETS, &paper).unwrap();
        Settings { seeds, batches: BATCHES.to_vec(), ..paper }
    }

    /// Every measure has the value that `of` gives for seed and batch, on every split.
    fn observations(seeds: u64, of: impl Fn(f64, f64, Measure) -> f64) -> Observations {
        let mut all = Vec::new();
        for seed in 0..seeds {
            for batch in BATCHES {
                for measure in MEASURES {
                    for split in ["train", "test", BOTH, LAST_BATCH] {
                        let value = of(seed as f64, batch as f64, measure);
                        all.push(Observation { seed, batch, split, measure, value, examples: None });
                    }
                }
            }
        }
        Observations(all)
    }

    fn verdicts(seeds: u64, of: impl Fn(f64, f64, Measure) -> f64) -> BTreeMap<&'static str, Verdict> {
        let outcomes = judge(&settings(seeds), &observations(seeds, of));
        outcomes.iter().map(|outcome| (outcome.claim.id, outcome.verdict)).collect()
    }

    /// Flat up to 500, then falling as a power of the batch size (rising, for a negative one).
    fn turning(batch: f64, power: f64) -> f64 {
        (batch / 500.).max(1.).powf(-power)
    }

    #[test]
    fn known_models_give_known_verdicts() {
        let world = |sign: f64| {
            move |seed: f64, batch: f64, measure: Measure| {
                let scatter = 1. + 0.01 * seed;
                match measure {
                    LOSS => scatter * turning(batch, -sign),
                    LOSS_GAP | ACCURACY_GAP => -sign * batch.ln() * scatter,
                    ACCURACY => 0.5 + sign * 0.1 * turning(batch, 1.) * scatter,
                    JACOBIAN => scatter * batch.powf(-0.1 * sign),
                    _ => scatter * turning(batch, sign),
                }
            }
        };
        let report = verdicts(5, world(1.));
        assert_eq!(report.len(), CLAIMS.len());
        for (id, verdict) in &report {
            // The gap falls with the batch size here, as the Jacobian does.
            assert_eq!(*verdict, if *id == "large-batch-gap" { Contradicted } else { Supported }, "{id}");
        }
        for (id, verdict) in verdicts(5, world(-1.)) {
            // Jacobian and gap rise together: Novak et al. are right either way.
            let right = ["large-batch-gap", "jacobian-tells-gap"].contains(&id);
            assert_eq!(verdict, if right { Supported } else { Contradicted }, "{id}");
        }
    }

    #[test]
    fn seeds_that_disagree_one_seed_and_a_diverged_one_decide_nothing() {
        let torn = |seed: f64, batch: f64, _: Measure| {
            let sign = if seed % 2. == 0. { 1. } else { -1. };
            2. + sign * turning(batch, 1.)
        };
        // Gap and Jacobian are one number here, which leaves their correlation at 1.
        let open = |found: BTreeMap<&str, Verdict>, but: &[&str]| {
            for (id, verdict) in found {
                assert!(verdict == Inconclusive || but.contains(&id), "{id}: {verdict}");
            }
        };
        open(verdicts(6, torn), &["jacobian-tells-gap"]);
        open(verdicts(1, torn), &[]);
        open(verdicts(4, |seed, batch, _| if seed == 3. { f64::NAN } else { turning(batch, 1.) }), &[]);
        // The same everywhere: no change, and no correlation.
        open(verdicts(4, |_, _, _| 1.), &[]);
    }

    /// Just above and just below what the interval can tell from 0.
    #[test]
    fn the_interval_decides_at_the_border() {
        // ln ratios 0.1 + s for s of mean 0: Student's t of 4 seeds is 3.182, the standard error 0.0866 / 2 for width 1.
        let world = |width: f64| {
            move |seed: f64, batch: f64, _: Measure| {
                let scatter = width * 0.075 * (seed - 1.5) / 1.118;
                if batch >= 5000. { (-0.1 + scatter).exp() } else { 1. }
            }
        };
        // Sample deviation 0.075 * 1.291 / 1.118 * width: half-width 0.1378 * width, which is 0.1 at 0.7258.
        assert_eq!(verdicts(4, world(0.72))["sensitivity-falls"], Supported);
        assert_eq!(verdicts(4, world(0.73))["sensitivity-falls"], Inconclusive);
    }

    #[test]
    fn claims_without_their_batch_sizes_are_left_out() {
        let of = |batches: &[i64]| {
            let settings = Settings { batches: batches.to_vec(), ..settings(3) };
            let observed = observations(3, |seed, batch, _| batch + seed);
            judge(&settings, &observed).iter().map(|outcome| outcome.claim.id).collect::<Vec<_>>()
        };
        assert_eq!(of(&[50, 100, 500]), ["jacobian-tells-gap", "large-batch-gap"]);
        assert_eq!(of(&[500, 5000]).len(), 5);
        assert_eq!(of(&BATCHES).len(), CLAIMS.len());
        assert_eq!(of(&[100]).len(), 0);
    }

    #[test]
    fn refuses_what_cannot_be_trained() {
        let paper = settings(1);
        Sensitivity::check(&paper).unwrap();
        let images = ImageSettings { train: 600, ..paper.images.clone() };
        for (settings, expected) in [
            (Settings { images, ..paper.clone() }, "between 1 and the 600 training examples, found 5000"),
            (Settings { batches: vec![], ..paper.clone() }, "found none"),
            (Settings { batches: vec![0], ..paper.clone() }, "found 0"),
            (Settings { batches: vec![10, 20, 10], ..paper.clone() }, "found 10 twice"),
            (Settings { epochs: 0, ..paper.clone() }, "epochs must be at least 1"),
            (Settings { lr: -1., ..paper.clone() }, "learning rate"),
        ] {
            let message = format!("{:#}", Sensitivity::check(&settings).unwrap_err());
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn the_last_batch_is_the_one_that_training_ends_with() {
        let numbers = Tensor::arange(10, (Kind::Float, tch::Device::Cpu));
        let train = Examples::new(numbers.view([10, 1]), numbers.to_kind(Kind::Int64)).unwrap();
        let trial = |batch| Trial { batch, epochs: 3, ..settings(1).trials()[0].clone() };
        let order = epoch_order((0, 0), 2, 10);
        for (batch, start) in [(4, 8), (5, 5), (9, 9), (1, 9)] {
            let (x, targets) = last_batch(&train, &trial(batch)).unwrap();
            assert_eq!(Vec::<i64>::try_from(&targets).unwrap(), order[start..]);
            assert_eq!(x.flatten(0, -1).to_kind(Kind::Int64), targets);
        }
        assert_eq!(&last_batch(&train, &trial(10)).unwrap().1, train.targets());
    }
}
