//! Paths between minima: loss and accuracy on the straight line, on trained curves, and on both once the hidden units are in the same
//! order.
//!
//! A network is trained twice, from different initial weights. Between the two minima lie the straight line; a polygonal chain and a
//! Bézier curve whose bends are trained to keep the loss low along them (Garipov et al. 2018, "Loss surfaces, mode connectivity, and fast
//! ensembling of DNNs"); and the line and the Bézier curve to the second minimum as it is after alignment, its units permuted to lie
//! nearest to the first's (Ainsworth et al. 2023, "Git Re-Basin"). `flatland_geometry` has the formulas.

use crate::command::Flag;
use crate::curves::{Group, curve_panels, curve_table};
use crate::experiment::{Experiment, check_seeds, seeds_from};
use crate::images::{ImageSettings, Images};
use crate::parallel::in_parallel;
use crate::progress::Stage;
use crate::run::{Numbers, Run, fingerprint};
use crate::subject::{self, NETWORK, WEIGHTS};
use crate::summary::{number, points, series, subtitle};
use crate::trial::{Both, SPLITS, Trained, Trial, describe, stream_of, train_all};
use anyhow::{Context, Result, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::DataSetName;
use flatland_geometry::{AlphaGrid, Curve, CurveTraining, Shape, align, barrier};
use flatland_network::snapshot::{tensors_from_bytes, tensors_to_bytes, to_safetensors};
use flatland_network::{
    Epoch, Evaluation, Examples, Loss, Network, Optimiser, OptimiserSettings, Training, evaluate_many,
};
use flatland_record::{Axis, Colour, Figure, Panel, Series, Table, cells, write_atomically};
use flatland_statistics::{Claim, Interval, LEVEL, Outcome, Rule, geometric_mean_interval, mean_interval};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

/// `configs/paths.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub dataset: DataSetName,
    pub seeds: u64,
    pub seed: u64,
    pub network: String,
    pub weights: Vec<String>,
    pub epochs: u32,
    pub batch: i64,
    pub lr: f64,
    pub momentum: f64,
    pub nesterov: bool,
    pub weight_decay: f64,
    pub points: usize,
    pub sweeps: u32,
    pub images: ImageSettings,
    pub curve: CurveSettings,
}

/// How bends are trained.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct CurveSettings {
    pub bends: usize,
    pub epochs: u32,
    pub batch: i64,
    pub lr: f64,
    pub momentum: f64,
    pub nesterov: bool,
    pub weight_decay: f64,
}

/// A way from θ₁ to θ₂, or to π θ₂.
#[derive(Debug, Clone, Copy)]
struct Way {
    /// In tables and file names.
    name: &'static str,
    /// In figures.
    title: &'static str,
    colour: Colour,
    /// Of a trained curve; `None` for the straight line.
    shape: Option<Shape>,
    /// Whether θ₂'s units are put in θ₁'s order first.
    aligned: bool,
}

const LINE: usize = 0;
const CHAIN: usize = 1;
const BEZIER: usize = 2;
const ALIGNED_LINE: usize = 3;

/// In the order of tables and legends.
const WAYS: [Way; 5] = [
    Way { name: "line", title: "straight line", colour: Colour::Black, shape: None, aligned: false },
    Way {
        name: "chain",
        title: "polygonal chain",
        colour: Colour::Green,
        shape: Some(Shape::Chain),
        aligned: false,
    },
    Way {
        name: "bezier",
        title: "Bézier curve",
        colour: Colour::Blue,
        shape: Some(Shape::Bezier),
        aligned: false,
    },
    Way {
        name: "aligned-line",
        title: "straight line, aligned",
        colour: Colour::Vermillion,
        shape: None,
        aligned: true,
    },
    Way {
        name: "aligned-bezier",
        title: "Bézier curve, aligned",
        colour: Colour::Purple,
        shape: Some(Shape::Bezier),
        aligned: true,
    },
];

/// One way of one seed, measured.
#[derive(Debug)]
struct Measured {
    seed: u64,
    way: usize,
    /// In weight units.
    length: f64,
    /// By t, ascending from 0 to 1.
    points: Vec<(f64, Both)>,
}

/// The experiment.
#[derive(Debug)]
pub struct Paths;

impl Experiment for Paths {
    const NAME: &'static str = "paths";
    const ABOUT: &'static str = "Are two minima joined by a way of low loss, and is it straight once their hidden units \
        are in the same order? Loss and accuracy on the line, on trained curves, and on both after alignment.";
    const EXAMPLES: &'static str = "Examples:
  paths --preset quick --dataset digits           half a minute, no files needed
  paths --preset wide --seeds 5                   a dense network of 512 units a layer, with error bars
  paths --network 784-100-10 --set epochs=5
  paths --weights a.safetensors --weights b.safetensors
  paths --resume                                  after Ctrl-C or a crash";
    const FLAGS: &'static [Flag] = &[NETWORK, WEIGHTS];
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 153.), ("quick", 15.), ("wide", 150.)];
    const PRESETS: &'static str = include_str!("../../../configs/paths.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        let network = subject::network(&settings.network)?;
        let preparation = subject::preparation(&network, &settings.images);
        preparation.check()?;
        let most = preparation.most();
        match settings.weights.len() {
            0 => {}
            2 => ensure!(
                settings.seeds == 1,
                "seeds must be 1 where weights are given, since these are one pair of minima, found {}",
                settings.seeds
            ),
            other => {
                anyhow::bail!("a path joins two minima: give --weights twice, or not at all, found {other}")
            }
        }
        ensure!(settings.epochs > 0, "epochs must be at least 1, found 0");
        settings.optimiser().check()?;
        Training::check_batch(settings.batch, most)?;
        ensure!(
            (2..=10_000).contains(&settings.points),
            "points must lie between 2 and 10,000, found {}",
            settings.points
        );
        ensure!(settings.sweeps > 0, "sweeps must be at least 1, found 0");
        let CurveSettings { bends, epochs, batch, weight_decay, .. } = settings.curve;
        ensure!((1..=100).contains(&bends), "curve.bends must lie between 1 and 100, found {bends}");
        ensure!(epochs > 0, "curve.epochs must be at least 1, found 0");
        OptimiserSettings::check(&settings.curve.optimiser(weight_decay)).context("curve")?;
        Training::check_batch(batch, most).context("curve.batch")
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        seeds_from(settings.seed, settings.seeds)
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let network = subject::network(&settings.network)?;
        let given = settings.weights.iter().map(|path| subject::weights(&network, Path::new(path)));
        let given = given.collect::<Result<Vec<Tensor>>>()?;
        let images = [Images::load(run, settings.dataset, subject::preparation(&network, &settings.images))?];

        // The minima.
        let trained = if given.is_empty() {
            train_all(run, std::slice::from_ref(&network), &images, &settings.trials())?
        } else {
            Vec::new()
        };
        if !trained.is_empty() {
            run.write_table(
                "training",
                &training_table(settings, &trained)?,
                "the minima: loss and accuracy by epoch",
            )?;
        }
        let minima = given.iter().chain(trained.iter().map(|one| &one.theta)).map(Tensor::shallow_clone);
        let pairs = pairs(settings, minima.collect())?;
        let [images] = images;

        // The ways between them.
        let aligned = align_all(settings, run, &network, &pairs)?;
        run.write_table(
            "alignment",
            &alignment_table(settings, &aligned)?,
            "distance of the minima by sweep of the alignment",
        )?;
        let straight = straight(settings, &pairs, &aligned)?;
        let trainings = train_curves(settings, run, &network, &images, &straight)?;
        run.write_table(
            "curve_training",
            &curve_training_table(settings, &trainings)?,
            "the curves: loss and accuracy by epoch",
        )?;
        let figure = training_figure(settings, run, &trained, &trainings);
        run.write_figure("training", &figure, "training of the minima and of the curves")?;
        let curves = straight.iter().zip(&trainings).map(|(curve, trained)| match trained {
            Some(trained) => Ok(curve.with_bends(&trained.bends)?),
            None => Ok(curve.with_bends(curve.bends())?),
        });
        let curves = curves.collect::<Result<Vec<_>>>()?;

        // Measurement: models on every way.
        let measured = measure(settings, run, &network, &images, &curves)?;
        run.write_table("paths", &paths_table(&measured)?, "loss and accuracy by t, each seed")?;
        let means = paths_mean_table(settings, &measured)?;
        run.write_table("paths_mean", &means, "the same over seeds: mean and 95 % interval")?;
        run.write_table(
            "barrier",
            &barrier_table(&measured)?,
            "how far loss and error rise along each path, and its length",
        )?;
        let means = barrier_mean_table(&measured)?;
        run.write_table("barrier_mean", &means, "the same over seeds: mean and 95 % interval")?;
        run.write_figure("paths", &paths_figure(settings, run, &measured), "loss and error along each path")?;
        run.write_figure("barrier", &barrier_figure(settings, run, &measured), "barrier of each path")?;
        run.write_claims(judge(settings, &network, &measured))?;
        Ok(closing_table(&measured))
    }
}

impl CurveSettings {
    /// Without weight decay as it is used: that belongs to the weights on the curve.
    fn optimiser(&self, weight_decay: f64) -> OptimiserSettings {
        let Self { lr, momentum, nesterov, .. } = *self;
        OptimiserSettings::Sgd { lr, momentum, nesterov, weight_decay }
    }
}

impl Settings {
    fn optimiser(&self) -> OptimiserSettings {
        let Self { lr, momentum, nesterov, weight_decay, .. } = *self;
        OptimiserSettings::Sgd { lr, momentum, nesterov, weight_decay }
    }

    /// By seed, then minimum by minimum.
    fn trials(&self) -> Vec<Trial> {
        let trial = |seed: u64, minimum: usize| Trial {
            name: format!("seed{seed}-minimum{minimum}"),
            network: 0,
            images: 0,
            seed,
            // Initial weights and an order of examples of its own.
            stream: stream_of(&format!("minimum {minimum}")),
            optimiser: self.optimiser(),
            batch: self.batch,
            epochs: self.epochs,
            stop_at: None,
            snapshots: false,
        };
        Paths::seeds(self).into_iter().flat_map(|seed| [1, 2].map(|minimum| trial(seed, minimum))).collect()
    }

    fn subtitle(&self, run: &Run, more: &str) -> String {
        let name = if self.network == "lenet" { "LeNet" } else { &self.network };
        let own = if self.weights.is_empty() { "" } else { ", weights as given" };
        subtitle::<Paths>(self, run, &format!("{name} on {}{own}", self.dataset), more)
    }
}

/// The two minima of each seed, on the CPU.
fn pairs(settings: &Settings, minima: Vec<Tensor>) -> Result<Vec<[Tensor; 2]>> {
    let mut minima = minima.into_iter();
    let mut pairs = Vec::new();
    for seed in Paths::seeds(settings) {
        let (Some(first), Some(second)) = (minima.next(), minima.next()) else {
            anyhow::bail!("seed {seed} has no two minima");
        };
        for (theta, minimum) in [(&first, 1), (&second, 2)] {
            ensure!(
                theta.f_isfinite()?.f_all()?.f_int64_value(&[])? == 1,
                "minimum {minimum} of seed {seed} diverged in training: a smaller lr than {} may help",
                settings.lr
            );
        }
        pairs.push([first, second]);
    }
    Ok(pairs)
}

/// The second minimum of a seed in the first's order.
#[derive(Debug)]
struct Aligned {
    theta: Tensor,
    /// Before the first sweep and after each.
    distances: Vec<f64>,
}

fn align_all(
    settings: &Settings,
    run: &Run,
    network: &Network,
    pairs: &[[Tensor; 2]],
) -> Result<Vec<Aligned>> {
    let jobs: Vec<(usize, u64)> = Paths::seeds(settings).into_iter().enumerate().collect();
    let stage = run.progress.stage("alignment", jobs.len() as u64);
    let handles =
        || Ok(pairs.iter().map(|pair| pair.each_ref().map(Tensor::shallow_clone)).collect::<Vec<_>>());
    let contexts = run.contexts(jobs.len(), handles)?;
    in_parallel(contexts, &jobs, |pairs, &(index, seed)| {
        run.check_interrupted()?;
        let [first, second] = &pairs[index];
        let content = serde_json::json!({
            "what": "alignment",
            "network": describe(network),
            "weights": [fingerprint(first)?, fingerprint(second)?],
            "seed": seed,
            "sweeps": settings.sweeps,
        });
        let numbers = run.kept(&content, || {
            let found = align(network, first, second, (seed, 0), settings.sweeps)
                .with_context(|| format!("the minima of seed {seed}"))?;
            if !found.settled {
                let sweeps = settings.sweeps;
                run.progress
                    .note(&format!("seed {seed}: the alignment was not settled after {sweeps} sweeps"));
            }
            let distances = Tensor::f_from_slice(&found.distances)?;
            Ok(Numbers::from([("theta".to_owned(), found.theta), ("distances".to_owned(), distances)]))
        })?;
        let get = |name: &str| {
            numbers.get(name).with_context(|| format!("the alignment of seed {seed} lacks {name}"))
        };
        let theta = get("theta")?.shallow_clone();
        run.write_weights(&format!("seed{seed}-aligned-minimum2"), &to_safetensors(network, &theta)?)?;
        stage.advance(1, format!("seed {seed}"));
        Ok(Aligned { theta, distances: Vec::try_from(get("distances")?)? })
    })
}

/// Every way before its training, by seed, then in the order of [`WAYS`].
fn straight(settings: &Settings, pairs: &[[Tensor; 2]], aligned: &[Aligned]) -> Result<Vec<Curve>> {
    let mut curves = Vec::new();
    for ([first, second], aligned) in pairs.iter().zip(aligned) {
        for way in WAYS {
            let second = if way.aligned { &aligned.theta } else { second };
            curves.push(match way.shape {
                Some(shape) => Curve::straight(shape, first, second, settings.curve.bends)?,
                None => Curve::line(first, second)?,
            });
        }
    }
    Ok(curves)
}

/// A curve's training, over.
#[derive(Debug)]
struct TrainedCurve {
    /// `[n, P]` on the CPU.
    bends: Tensor,
    /// One an epoch.
    epochs: Vec<Epoch>,
}

/// At most this often a training in progress is saved.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// Of each way that is a curve, side by side, in the order of `straight`.
fn train_curves(
    settings: &Settings,
    run: &Run,
    network: &Network,
    images: &Images,
    straight: &[Curve],
) -> Result<Vec<Option<TrainedCurve>>> {
    let seeds = Paths::seeds(settings);
    let bent = |index: &usize| WAYS[index % WAYS.len()].shape.is_some();
    let jobs: Vec<usize> = (0..straight.len()).filter(bent).collect();
    let each = u64::from(settings.curve.epochs) * images.train.count() as u64;
    let stage = run.progress.stage("curves", each * jobs.len() as u64);
    let contexts = run.contexts(jobs.len(), || Ok((images.share(), on_device(run, straight)?)))?;
    let trained = in_parallel(contexts, &jobs, |(images, straight), &index| {
        let (seed, way) = (seeds[index / WAYS.len()], WAYS[index % WAYS.len()]);
        train_curve(settings, run, &stage, (network, images), &straight[index], (seed, way))
    })?;
    let mut all: Vec<Option<TrainedCurve>> = straight.iter().map(|_| None).collect();
    for (index, trained) in jobs.into_iter().zip(trained) {
        all[index] = Some(trained);
    }
    Ok(all)
}

fn on_device(run: &Run, curves: &[Curve]) -> Result<Vec<Curve>> {
    Ok(curves.iter().map(|curve| curve.to_device(run.device.device)).collect::<Result<_, _>>()?)
}

/// From the straight line, or where an earlier process stopped: the numbers are the same.
fn train_curve(
    settings: &Settings,
    run: &Run,
    stage: &Stage,
    (network, images): (&Network, &Images),
    straight: &Curve,
    (seed, way): (u64, Way),
) -> Result<TrainedCurve> {
    let stream = stream_of(&format!("curve {}", way.name));
    let key = run.key(&serde_json::json!({
        "what": "curve",
        "network": describe(network),
        "shape": format!("{:?}", straight.shape()),
        "from": fingerprint(&straight.control_points()?)?,
        "training": settings.curve,
        "seed": seed,
        "stream": stream,
        "prepared": images.prepared,
        "train": images.train.count(),
    }))?;
    let path = run.folder.trial_path(&key, "curve.safetensors");
    let wanted = settings.curve.optimiser(0.);
    let saved = if path.exists() { read_saved(run, &path, straight, wanted) } else { None };
    let (curve, optimiser, mut epochs) = match saved {
        Some(saved) => saved,
        None => (straight.with_bends(straight.bends())?, Optimiser::new(wanted)?, Vec::new()),
    };
    let count = images.train.count() as u64;
    stage.skip(epochs.len() as u64 * count);
    let mut training = CurveTraining {
        network,
        loss: Loss::CrossEntropy,
        examples: &images.train,
        batch: settings.curve.batch,
        weight_decay: settings.curve.weight_decay,
        stream: (seed, stream),
        curve,
        optimiser,
        epochs: epochs.len() as u32,
    };
    let mut last_save = Instant::now();
    while training.epochs < settings.curve.epochs {
        run.check_interrupted()?;
        let epoch = training.epoch().with_context(|| {
            format!("the {} of seed {seed} (curve.lr = {})", way.title, settings.curve.lr)
        })?;
        epochs.push(epoch);
        let now = format!("seed {seed}, {}: epoch {}/{}", way.title, training.epochs, settings.curve.epochs);
        stage.advance(count, now);
        if training.epochs == settings.curve.epochs || last_save.elapsed() >= SAVE_EVERY {
            write_atomically(&path, &tensors_to_bytes(&to_numbers(&training, &epochs)?)?)?;
            last_save = Instant::now();
        }
    }
    let bends = training.curve.bends().f_to_device(Device::Cpu)?;
    for index in 0..bends.size()[0] {
        let name = format!("seed{seed}-{}-bend{}", way.name, index + 1);
        run.write_weights(&name, &to_safetensors(network, &bends.f_get(index)?)?)?;
    }
    Ok(TrainedCurve { bends, epochs })
}

fn to_numbers(training: &CurveTraining, epochs: &[Epoch]) -> Result<Numbers> {
    let column = |of: fn(&Epoch) -> f64| Tensor::f_from_slice(&epochs.iter().map(of).collect::<Vec<_>>());
    let mut numbers = Numbers::from([
        ("bends".to_owned(), training.curve.bends().shallow_clone()),
        ("steps".to_owned(), Tensor::f_from_slice(&[training.optimiser.steps() as f64])?),
        ("loss".to_owned(), column(|epoch| epoch.loss)?),
        ("accuracy".to_owned(), column(|epoch| epoch.accuracy.unwrap_or(f64::NAN))?),
    ]);
    numbers.extend(training.optimiser.state().map(|(name, t)| (format!("{STATE}{name}"), t.shallow_clone())));
    Ok(numbers)
}

/// What the optimiser's state is called in a file.
const STATE: &str = "optimiser.";

/// A file that cannot be read costs its training's time, not the run.
fn read_saved(
    run: &Run,
    path: &Path,
    straight: &Curve,
    optimiser: OptimiserSettings,
) -> Option<(Curve, Optimiser, Vec<Epoch>)> {
    let read = || -> Result<_> {
        let numbers = tensors_from_bytes(&std::fs::read(path)?)?;
        let get = |name: &str| numbers.get(name).with_context(|| format!("{name} is missing"));
        let values = |name: &str| -> Result<Vec<f64>> { Ok(Vec::try_from(get(name)?)?) };
        let curve = straight.with_bends(get("bends")?)?;
        let steps = values("steps")?.first().copied().unwrap_or_default() as u64;
        let state = numbers.iter().filter_map(|(name, t)| Some((name.strip_prefix(STATE)?, t)));
        let state = state.map(|(name, t)| Ok((name.to_owned(), t.f_to_device(run.device.device)?)));
        let optimiser = Optimiser::restore(optimiser, steps, state.collect::<Result<_>>()?)?;
        let epochs = values("loss")?.into_iter().zip(values("accuracy")?);
        let epochs = epochs.map(|(loss, accuracy)| Epoch { loss, accuracy: Some(accuracy) }).collect();
        Ok((curve, optimiser, epochs))
    };
    read()
        .inspect_err(|error| {
            run.progress.note(&format!("{} is not usable ({error:#}): trained again", path.display()));
        })
        .ok()
}

/// So many models meet a chunk of the data while it is in the cache; a fixed number, since each such piece of a path is kept.
const TOGETHER: usize = 8;

/// Loss and accuracy on every way, over all examples of both splits.
fn measure(
    settings: &Settings,
    run: &Run,
    network: &Network,
    images: &Images,
    curves: &[Curve],
) -> Result<Vec<Measured>> {
    let grid = AlphaGrid::with_minima(0., 1., settings.points)?;
    let pieces: Vec<&[f64]> = grid.alphas().chunks(TOGETHER).collect();
    let jobs: Vec<(usize, &[f64])> =
        (0..curves.len()).flat_map(|index| pieces.iter().map(move |ts| (index, *ts))).collect();
    let fingerprints = curves.iter().map(|curve| fingerprint(&curve.control_points()?));
    let fingerprints = fingerprints.collect::<Result<Vec<_>>>()?;
    let stage = run.progress.stage("paths", (curves.len() * grid.alphas().len()) as u64);
    let contexts = run.contexts(jobs.len(), || Ok((images.share(), on_device(run, curves)?)))?;
    let found = in_parallel(contexts, &jobs, |(images, curves), &(index, ts)| {
        run.check_interrupted()?;
        let curve = &curves[index];
        let content = serde_json::json!({
            "what": "points of a path",
            "network": describe(network),
            "shape": format!("{:?}", curve.shape()),
            "control points": fingerprints[index],
            "t": ts,
            "prepared": images.prepared,
            "train": images.train.count(),
            "test": images.test.count(),
        });
        let numbers = run.kept(&content, || {
            let thetas = ts.iter().map(|&t| Ok(curve.point(t)?)).collect::<Result<Vec<_>>>()?;
            let thetas = Tensor::f_stack(&thetas, 0)?;
            let mut numbers = Numbers::new();
            for (split, examples) in [("train", &images.train), ("test", &images.test)] {
                numbers.insert(split.to_owned(), evaluated(network, &thetas, examples)?);
            }
            Ok(numbers)
        })?;
        stage.advance(ts.len() as u64, WAYS[index % WAYS.len()].title);
        let of = |split: &str| {
            from_numbers(numbers.get(split))
                .with_context(|| format!("the {split} values of a path are missing"))
        };
        let both = of("train")?.into_iter().zip(of("test")?).map(|(train, test)| Both { train, test });
        Ok(ts.iter().copied().zip(both).collect::<Vec<_>>())
    })?;
    let seeds = Paths::seeds(settings);
    let measured =
        curves.iter().zip(found.chunks(pieces.len())).enumerate().map(|(index, (curve, pieces))| {
            Ok(Measured {
                seed: seeds[index / WAYS.len()],
                way: index % WAYS.len(),
                length: curve.length()?,
                points: pieces.concat(),
            })
        });
    measured.collect()
}

/// Loss and accuracy of each θ, `[n, 2]`.
fn evaluated(network: &Network, thetas: &Tensor, examples: &Examples) -> Result<Tensor> {
    let found = evaluate_many(network, thetas, examples, Loss::CrossEntropy)?;
    let numbers =
        found.iter().flat_map(|one| [one.loss, one.accuracy.unwrap_or(f64::NAN)]).collect::<Vec<_>>();
    Ok(Tensor::f_from_slice(&numbers)?.f_view([-1, 2])?)
}

fn from_numbers(numbers: Option<&Tensor>) -> Option<Vec<Evaluation>> {
    let numbers = Vec::<f64>::try_from(numbers?.f_flatten(0, -1).ok()?).ok()?;
    let one = |pair: &[f64]| Evaluation { loss: pair[0], accuracy: Some(pair[1]) };
    Some(numbers.chunks_exact(2).map(one).collect())
}

impl Measured {
    /// How far the loss (nats) and the classification error (fraction) rise above the straight line between the ends, over t.
    fn barriers(&self, of: fn(&Both) -> Evaluation) -> [f64; 2] {
        let along = |value: &dyn Fn(Evaluation) -> f64| {
            let values: Vec<(f64, f64)> = self.points.iter().map(|(t, both)| (*t, value(of(both)))).collect();
            barrier(&values).unwrap_or(f64::NAN)
        };
        [along(&|one| one.loss), along(&error)]
    }
}

fn error(one: Evaluation) -> f64 {
    1. - one.accuracy.unwrap_or(f64::NAN)
}

fn of_way(measured: &[Measured], way: usize) -> impl Iterator<Item = &Measured> {
    measured.iter().filter(move |one| one.way == way)
}

fn training_table(settings: &Settings, trained: &[Trained]) -> Result<Table> {
    let keys =
        Paths::seeds(settings).into_iter().flat_map(|seed| [1_u64, 2].map(|m| cells![seed, m].to_vec()));
    curve_table(&["seed", "minimum"], keys.zip(trained.iter().map(|one| one.curve.as_slice())))
}

fn alignment_table(settings: &Settings, aligned: &[Aligned]) -> Result<Table> {
    let mut table = Table::new(&["seed", "sweep", "distance_weight_units"]);
    for (seed, aligned) in Paths::seeds(settings).into_iter().zip(aligned) {
        for (sweep, &distance) in aligned.distances.iter().enumerate() {
            table.row(cells![seed, sweep, distance])?;
        }
    }
    Ok(table)
}

fn curve_training_table(settings: &Settings, trainings: &[Option<TrainedCurve>]) -> Result<Table> {
    let mut table = Table::new(&["seed", "path", "epoch", "train_loss_nats", "train_accuracy"]);
    for (seed, of_seed) in Paths::seeds(settings).into_iter().zip(trainings.chunks(WAYS.len())) {
        for (way, trained) in WAYS.iter().zip(of_seed) {
            for (index, epoch) in trained.iter().flat_map(|trained| trained.epochs.iter().enumerate()) {
                table.row(cells![seed, way.name, index + 1, epoch.loss, epoch.accuracy])?;
            }
        }
    }
    Ok(table)
}

fn paths_table(measured: &[Measured]) -> Result<Table> {
    let mut table = Table::new(&["seed", "path", "t", "split", "loss_nats", "accuracy"]);
    for one in measured {
        for (t, both) in &one.points {
            for (split, of) in SPLITS {
                let value = of(both);
                table.row(cells![one.seed, WAYS[one.way].name, *t, split, value.loss, value.accuracy])?;
            }
        }
    }
    Ok(table)
}

/// Mean loss and mean error over seeds, by t. Loss varies by factors along a path, so its mean is geometric.
fn over_seeds(
    measured: &[Measured],
    way: usize,
    of: fn(&Both) -> Evaluation,
) -> Vec<(f64, Interval, Interval)> {
    let Some(first) = of_way(measured, way).next() else {
        return Vec::new();
    };
    let at = |(index, (t, _)): (usize, &(f64, Both))| {
        let here: Vec<Evaluation> = of_way(measured, way).map(|one| of(&one.points[index].1)).collect();
        let losses: Vec<f64> = here.iter().map(|one| one.loss).collect();
        let errors: Vec<f64> = here.into_iter().map(error).collect();
        Some((*t, geometric_mean_interval(&losses, LEVEL)?, mean_interval(&errors, LEVEL)?))
    };
    first.points.iter().enumerate().filter_map(at).collect()
}

fn paths_mean_table(settings: &Settings, measured: &[Measured]) -> Result<Table> {
    let mut table = Table::new(&[
        "path",
        "t",
        "split",
        "seeds",
        "loss_geometric_mean_nats",
        "loss_low_nats",
        "loss_high_nats",
        "error_mean",
        "error_low",
        "error_high",
    ]);
    for (index, way) in WAYS.iter().enumerate() {
        for (split, of) in SPLITS {
            for (t, loss, error) in over_seeds(measured, index, of) {
                let ends =
                    |interval: Interval| (interval.ends.map(|ends| ends.0), interval.ends.map(|ends| ends.1));
                let ((low, high), (error_low, error_high)) = (ends(loss), ends(error));
                table.row(cells![
                    way.name,
                    t,
                    split,
                    settings.seeds,
                    loss.mean,
                    low,
                    high,
                    error.mean,
                    error_low,
                    error_high
                ])?;
            }
        }
    }
    Ok(table)
}

fn barrier_table(measured: &[Measured]) -> Result<Table> {
    let mut table =
        Table::new(&["seed", "path", "length_weight_units", "split", "loss_barrier_nats", "error_barrier"]);
    for one in measured {
        for (split, of) in SPLITS {
            let [loss, error] = one.barriers(of);
            table.row(cells![one.seed, WAYS[one.way].name, one.length, split, loss, error])?;
        }
    }
    Ok(table)
}

/// Of loss and error; barriers come near 0, so that their means are arithmetic.
fn mean_barriers(measured: &[Measured], way: usize, of: fn(&Both) -> Evaluation) -> [Option<Interval>; 2] {
    let all: Vec<[f64; 2]> = of_way(measured, way).map(|one| one.barriers(of)).collect();
    [0, 1].map(|which| mean_interval(&all.iter().map(|one| one[which]).collect::<Vec<_>>(), LEVEL))
}

fn mean_length(measured: &[Measured], way: usize) -> Option<Interval> {
    mean_interval(&of_way(measured, way).map(|one| one.length).collect::<Vec<_>>(), LEVEL)
}

fn barrier_mean_table(measured: &[Measured]) -> Result<Table> {
    let mut table = Table::new(&["path", "measure", "unit", "split", "seeds", "mean", "low", "high"]);
    for (index, way) in WAYS.iter().enumerate() {
        let mut rows = vec![("length", "weight unit", "", mean_length(measured, index))];
        for (split, of) in SPLITS {
            let [loss, error] = mean_barriers(measured, index, of);
            rows.extend([("loss_barrier", "nat", split, loss), ("error_barrier", "fraction", split, error)]);
        }
        for (measure, unit, split, interval) in rows {
            let Some(Interval { mean, ends, count }) = interval else { continue };
            let (low, high) = (ends.map(|ends| ends.0), ends.map(|ends| ends.1));
            table.row(cells![way.name, measure, unit, split, count, mean, low, high])?;
        }
    }
    Ok(table)
}

fn paths_figure(settings: &Settings, run: &Run, measured: &[Measured]) -> Figure {
    let mut losses = Vec::new();
    let mut errors = Vec::new();
    for (split, of) in SPLITS {
        let x = || Axis::linear("t along the path").with_range(0., 1.);
        let panel = |what: &str, y: Axis| {
            Panel::new(format!("{split}: {what}"), x(), y).with_mark(0., "θ₁").with_mark(1., "θ₂")
        };
        let mut loss = panel("loss", Axis::log10("cross-entropy (nats)"));
        let mut error = panel("classification error", Axis::log10("error (%)"));
        for (index, way) in WAYS.iter().enumerate() {
            let values = over_seeds(measured, index, of);
            let dash = |series: Series| if way.aligned { series.dashed() } else { series };
            let of_loss = values.iter().map(|(t, loss, _)| (*t, *loss));
            loss = loss.with(dash(series(way.title, way.colour, 1., of_loss)));
            let of_error = values.iter().map(|(t, _, error)| (*t, *error));
            error = error.with(dash(series(way.title, way.colour, 100., of_error)));
        }
        losses.push(loss);
        errors.push(error);
    }
    losses.extend(errors);
    let models = format!("{} models on each path · aligned: θ₂'s units in θ₁'s order", settings.points);
    let mut figure =
        Figure::new("Loss and error on paths between two minima", settings.subtitle(run, &models), losses);
    figure.columns = Some(2);
    figure
}

fn barrier_figure(settings: &Settings, run: &Run, measured: &[Measured]) -> Figure {
    let names = || WAYS.map(|way| way.title.replace(", ", ",\n"));
    let mut loss = Panel::new("loss", Axis::categories("path", names()), Axis::log10("barrier (nats)"));
    let mut error = Panel::new(
        "classification error",
        Axis::categories("path", names()),
        Axis::linear("barrier (percentage points)"),
    );
    for ((split, of), (colour, shift)) in
        SPLITS.into_iter().zip([(Colour::Blue, -0.08), (Colour::Vermillion, 0.08)])
    {
        let values: Vec<[Option<Interval>; 2]> =
            (0..WAYS.len()).map(|way| mean_barriers(measured, way, of)).collect();
        let at = |which: usize| {
            let place =
                |(way, value): (usize, &[Option<Interval>; 2])| Some((way as f64 + shift, value[which]?));
            values.iter().enumerate().filter_map(place).collect::<Vec<_>>()
        };
        loss = loss.with(points(split, colour, 1., at(0)));
        error = error.with(points(split, colour, 100., at(1)));
    }
    let more = "largest rise above the straight line between the ends' values";
    Figure::new("Barriers on paths between two minima", settings.subtitle(run, more), vec![loss, error])
}

fn training_figure(
    settings: &Settings,
    run: &Run,
    trained: &[Trained],
    trainings: &[Option<TrainedCurve>],
) -> Figure {
    let mut panels = Vec::new();
    if !trained.is_empty() {
        let groups = [("minimum 1", Colour::Blue), ("minimum 2", Colour::Vermillion)].into_iter().enumerate();
        let groups: Vec<Group> = groups
            .map(|(index, (name, colour))| Group {
                name: name.to_owned(),
                colour,
                curves: trained.iter().skip(index).step_by(2).map(|one| one.curve.as_slice()).collect(),
            })
            .collect();
        panels = curve_panels(&groups);
        for panel in &mut panels {
            panel.title = format!("minima: {}", panel.title);
        }
    }
    let mut loss = Panel::new("curves: loss", Axis::whole("epoch"), Axis::log10("cross-entropy (nats)"));
    let mut error =
        Panel::new("curves: classification error", Axis::whole("epoch"), Axis::log10("error (%)"));
    for (index, way) in WAYS.iter().enumerate().filter(|(_, way)| way.shape.is_some()) {
        let all: Vec<&TrainedCurve> = trainings.iter().skip(index).step_by(WAYS.len()).flatten().collect();
        let at = |epoch: usize| all.iter().map(move |one| one.epochs[epoch]);
        let epochs = 0..settings.curve.epochs as usize;
        let losses = epochs.clone().filter_map(|epoch| {
            let values: Vec<f64> = at(epoch).map(|one| one.loss).collect();
            Some((epoch as f64 + 1., geometric_mean_interval(&values, LEVEL)?))
        });
        loss = loss.with(series(format!("{}, train", way.title), way.colour, 1., losses));
        let errors = epochs.filter_map(|epoch| {
            let values: Vec<f64> = at(epoch).map(|one| 1. - one.accuracy.unwrap_or(f64::NAN)).collect();
            Some((epoch as f64 + 1., mean_interval(&values, LEVEL)?))
        });
        error = error.with(series(format!("{}, train", way.title), way.colour, 100., errors));
    }
    panels.extend([loss, error]);
    let more = "train: mean over the epoch, on curves each batch at a t of its own; test: after it";
    let mut figure =
        Figure::new("Training of the minima and of the curves", settings.subtitle(run, more), panels);
    figure.columns = Some(2);
    figure
}

/// Fixed before the data.
const CLAIMS: [Claim; 6] = [
    Claim {
        id: "line-barrier",
        statement: "Two minima found from different initial weights are not joined by the straight line",
        source: "Garipov et al. 2018; Frankle et al. 2020",
        statistic: "barrier of the training error on the line (fraction)",
        rule: Rule::MeanAbove(0.02),
    },
    Claim {
        id: "bezier-joins",
        statement: "A trained Bézier curve joins them with a far smaller barrier than the straight line's",
        source: "Garipov et al. 2018",
        statistic: "barrier of the training loss on the Bézier curve minus a tenth of the one on the line (nats)",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "chain-joins",
        statement: "So does a trained polygonal chain",
        source: "Garipov et al. 2018",
        statistic: "barrier of the training loss on the chain minus a tenth of the one on the line (nats)",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "bezier-test",
        statement: "Along the Bézier curve, the test error stays near that of its ends",
        source: "Garipov et al. 2018",
        statistic: "barrier of the test error on the Bézier curve (fraction)",
        rule: Rule::MeanBelow(0.01),
    },
    Claim {
        id: "alignment-lowers",
        statement: "Once hidden units are in the same order, the straight line's barrier is lower",
        source: "Ainsworth et al. 2023",
        statistic: "barrier of the training loss on the line after alignment minus the one before (nats)",
        rule: Rule::MeanBelow(0.),
    },
    Claim {
        id: "alignment-removes",
        statement: "For wide dense networks, alignment leaves next to no barrier",
        source: "Ainsworth et al. 2023",
        statistic: "barrier of the training error on the line after alignment (fraction)",
        rule: Rule::MeanBelow(0.01),
    },
];

/// Units of each hidden layer from which on a dense network counts as wide: as Ainsworth et al. 2023 have it on MNIST.
const WIDE: usize = 512;

fn is_wide(network: &Network) -> bool {
    let layers = network.dense_layers().unwrap_or_default();
    let hidden = &layers[..layers.len().saturating_sub(1)];
    !hidden.is_empty() && hidden.iter().all(|layer| layer.outputs >= WIDE)
}

/// One seed's paths, for the claims.
struct OneSeed<'a> {
    measured: &'a [Measured],
    seed: u64,
}

impl OneSeed<'_> {
    fn barriers(&self, way: usize, of: fn(&Both) -> Evaluation) -> [f64; 2] {
        let mine = of_way(self.measured, way).find(|one| one.seed == self.seed);
        mine.map_or([f64::NAN; 2], |one| one.barriers(of))
    }

    fn train_loss(&self, way: usize) -> f64 {
        self.barriers(way, |both| both.train)[0]
    }

    fn train_error(&self, way: usize) -> f64 {
        self.barriers(way, |both| both.train)[1]
    }

    fn test_error(&self, way: usize) -> f64 {
        self.barriers(way, |both| both.test)[1]
    }

    /// Below 0 where the barrier of the training loss is less than a tenth of the line's.
    fn beyond_a_tenth(&self, way: usize) -> f64 {
        self.train_loss(way) - 0.1 * self.train_loss(LINE)
    }
}

/// The claim on wide networks is judged on such alone.
fn judge(settings: &Settings, network: &Network, measured: &[Measured]) -> Vec<Outcome> {
    let judged = |claim: &Claim, of: &dyn Fn(OneSeed) -> f64| {
        let values = Paths::seeds(settings).into_iter().map(|seed| of(OneSeed { measured, seed }));
        claim.judge(&values.collect::<Vec<_>>())
    };
    let [line, bezier, chain, bezier_test, lowers, removes] = &CLAIMS;
    let mut outcomes = vec![
        judged(line, &|one| one.train_error(LINE)),
        judged(bezier, &|one| one.beyond_a_tenth(BEZIER)),
        judged(chain, &|one| one.beyond_a_tenth(CHAIN)),
        judged(bezier_test, &|one| one.test_error(BEZIER)),
        judged(lowers, &|one| one.train_loss(ALIGNED_LINE) - one.train_loss(LINE)),
    ];
    if is_wide(network) {
        outcomes.push(judged(removes, &|one| one.train_error(ALIGNED_LINE)));
    }
    outcomes
}

fn closing_table(measured: &[Measured]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "path",
        "length",
        "train loss barrier",
        "test loss barrier",
        "train error barrier",
        "test error barrier",
    ]);
    for (index, way) in WAYS.iter().enumerate() {
        let [train, test] = SPLITS.map(|(_, of)| mean_barriers(measured, index, of));
        let cell = |interval: Option<Interval>, scale, decimals, unit| {
            interval.map_or_else(String::new, |interval| number(interval, scale, decimals, unit))
        };
        table.add_row([
            way.title.to_owned(),
            cell(mean_length(measured, index), 1., 2, ""),
            cell(train[0], 1., 4, ""),
            cell(test[0], 1., 4, ""),
            cell(train[1], 100., 2, " %"),
            cell(test[1], 100., 2, " %"),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Arguments;
    use crate::trial::tests::{images, networks, run};
    use flatland_network::initialise;
    use flatland_statistics::Verdict::{Contradicted, Inconclusive, Supported};
    use std::collections::BTreeMap;
    use tch::Kind;

    fn settings(words: &[&str]) -> Settings {
        let command = Arguments::command_with(Paths::FLAGS).get_matches_from([&["paths"], words].concat());
        crate::settings::resolve(Paths::PRESETS, &Arguments::read(&command, Paths::FLAGS).unwrap()).unwrap()
    }

    /// Each way has a tent of this height in loss and error, over ends of loss 0.25 and error 0.
    fn measured(seeds: u64, height: impl Fn(u64, usize) -> f64) -> Vec<Measured> {
        let mut all = Vec::new();
        for seed in 0..seeds {
            for way in 0..WAYS.len() {
                let at = |t: f64| {
                    let rise = height(seed, way) * (1. - (2. * t - 1.).abs());
                    let one = Evaluation { loss: 0.25 + rise, accuracy: Some(1. - rise) };
                    (t, Both { train: one, test: one })
                };
                let points = (0..=4).map(|k| at(f64::from(k) / 4.)).collect();
                all.push(Measured { seed, way, length: 1., points });
            }
        }
        all
    }

    #[test]
    fn known_paths_give_known_verdicts() {
        let verdicts = |network: &str, seeds: u64, heights: [f64; 5]| -> BTreeMap<_, _> {
            let settings = settings(&["--seeds", &seeds.to_string(), "--network", network]);
            let scattered = measured(seeds, |seed, way| heights[way] * (1. + 0.01 * seed as f64));
            let network = subject::network(network).unwrap();
            let outcomes = judge(&settings, &network, &scattered);
            outcomes.into_iter().map(|outcome| (outcome.claim.id, outcome.verdict)).collect()
        };
        let papers = verdicts("784-512-512-10", 5, [0.5, 0.005, 0.004, 0.003, 0.]);
        assert_eq!(papers.len(), CLAIMS.len());
        assert!(papers.values().all(|verdict| *verdict == Supported), "{papers:?}");
        let other = verdicts("784-512-512-10", 5, [0.01, 0.005, 0.04, 0.03, 0.]);
        assert!(other.values().all(|verdict| *verdict == Contradicted), "{other:?}");
        let narrow = verdicts("784-512-100-10", 5, [0.5, 0.005, 0.004, 0.003, 0.]);
        assert!(narrow.len() == CLAIMS.len() - 1 && !narrow.contains_key("alignment-removes"));
        assert_eq!(verdicts("lenet", 5, [0.5; 5]).len(), CLAIMS.len() - 1);
        assert_eq!(verdicts("784-10", 5, [0.5; 5]).len(), CLAIMS.len() - 1);
        // One seed, or no barriers at all.
        let one = verdicts("lenet", 1, [0.5, 0.005, 0.004, 0.003, 0.]);
        assert!(one.values().all(|verdict| *verdict == Inconclusive), "{one:?}");
        assert_eq!(verdicts("lenet", 5, [0.; 5])["bezier-joins"], Inconclusive);
    }

    #[test]
    fn the_barrier_is_the_tents_height() {
        for one in measured(2, |seed, way| 0.1 * (seed + 1) as f64 + 0.01 * way as f64) {
            let height = 0.1 * (one.seed + 1) as f64 + 0.01 * one.way as f64;
            for (_, of) in SPLITS {
                assert!(one.barriers(of).iter().all(|found| (found - height).abs() < 1e-12));
            }
        }
    }

    #[test]
    fn refuses_what_cannot_be_run() {
        for preset in ["paper", "quick", "wide"] {
            Paths::check(&settings(&["--preset", preset])).unwrap();
        }
        Paths::check(&settings(&["--weights", "a", "--weights", "b"])).unwrap();
        for (words, expected) in [
            (vec!["--weights", "a"], "give --weights twice, or not at all, found 1"),
            (vec!["--weights", "a", "--weights", "b", "--weights", "c"], "found 3"),
            (vec!["--weights", "a", "--weights", "b", "--seeds", "2"], "seeds must be 1"),
            (vec!["--network", "lenet5"], "network must be lenet or widths"),
            (vec!["--set", "curve.bends=0"], "curve.bends must lie between 1 and 100"),
            (vec!["--set", "curve.epochs=0"], "curve.epochs must be at least 1"),
            (vec!["--set", "curve.lr=-1.0"], "curve: the learning rate"),
            (vec!["--set", "curve.weight_decay=-1.0"], "curve: weight decay"),
            (vec!["--set", "curve.batch=70000"], "curve.batch: the batch must lie between 1 and the 60000"),
            (vec!["--set", "epochs=0"], "epochs must be at least 1"),
            (vec!["--set", "points=1"], "points must lie between 2"),
            (vec!["--set", "sweeps=0"], "sweeps must be at least 1"),
        ] {
            let message = format!("{:#}", Paths::check(&settings(&words)).unwrap_err());
            assert!(message.contains(expected), "{message}");
        }
    }

    /// An earlier process has left two epochs of five, the first of them marked so that one can see that it was read.
    #[test]
    fn a_curve_is_taken_up_where_it_was_left() {
        let folder = tempfile::tempdir().unwrap();
        let (network, images) = (&networks()[0], &images(44, 0));
        let mut settings =
            settings(&["--set", "curve.epochs=5", "--set", "curve.batch=8", "--set", "curve.bends=2"]);
        settings.curve.weight_decay = 1e-3;
        let [first, second] =
            [0, 1].map(|trial| initialise(network, 0, trial, Kind::Float, Device::Cpu).unwrap());
        let straight = Curve::straight(Shape::Chain, &first, &second, 2).unwrap();
        let train = |run: &Run| {
            let stage = run.progress.stage("curves", 1);
            train_curve(&settings, run, &stage, (network, images), &straight, (7, WAYS[CHAIN]))
        };
        let whole = run(&folder.path().join("whole"));
        let expected = train(&whole).unwrap();
        let again = train(&whole).unwrap();
        assert_eq!((&again.bends, &again.epochs), (&expected.bends, &expected.epochs));

        let mut training = CurveTraining {
            network,
            loss: Loss::CrossEntropy,
            examples: &images.train,
            batch: 8,
            weight_decay: 1e-3,
            stream: (7, stream_of("curve chain")),
            curve: straight.with_bends(straight.bends()).unwrap(),
            optimiser: Optimiser::new(settings.curve.optimiser(0.)).unwrap(),
            epochs: 0,
        };
        let mut epochs: Vec<Epoch> = (0..2).map(|_| training.epoch().unwrap()).collect();
        assert_eq!(epochs, expected.epochs[..2]);
        epochs[0].loss = 123.;
        let part = run(&folder.path().join("part"));
        let file =
            std::fs::read_dir(whole.folder.file("trials")).unwrap().next().unwrap().unwrap().file_name();
        let bytes = tensors_to_bytes(&to_numbers(&training, &epochs).unwrap()).unwrap();
        std::fs::write(part.folder.file("trials").join(file), bytes).unwrap();
        let resumed = train(&part).unwrap();
        assert_eq!(resumed.bends, expected.bends);
        assert_eq!((resumed.epochs[0].loss, &resumed.epochs[1..]), (123., &expected.epochs[1..]));
    }

    #[test]
    fn a_minimum_that_diverged_is_named() {
        let good = || Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let settings = settings(&["--seeds", "2"]);
        assert_eq!(pairs(&settings, vec![good(), good(), good(), good()]).unwrap().len(), 2);
        let error = pairs(&settings, vec![good(), good(), good(), good() / 0.]).unwrap_err().to_string();
        assert!(error.contains("minimum 2 of seed 1 diverged"), "{error}");
    }
}
