//! A trial: one classifier trained from one seed, kept by its content so that no run trains it twice.

use crate::images::Images;
use crate::module::Splits;
use crate::parallel::in_parallel;
use crate::progress::Stage;
use crate::run::{Numbers, Run, fingerprint};
use crate::stacks::{fastest_rows, stacks};
use anyhow::{Context, Result, ensure};
use flatland_geometry::Subspace;
use flatland_network::snapshot::{Checkpoint, tensors_from_bytes, tensors_to_bytes, to_safetensors};
use flatland_network::{
    Epoch, Evaluation, Examples, Loss, Model, Network, Optimiser, OptimiserSettings, StackedTraining,
    Training, evaluate, evaluate_many, initialise,
};
use flatland_record::{sha256_hex, write_atomically};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// What is trained, and from which random stream.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trial {
    /// For messages and file names, for instance `seed0-batch100-lr0.01`.
    #[serde(skip)]
    pub name: String,
    /// Which of the networks that [`train_all`] is given.
    #[serde(skip)]
    pub network: usize,
    /// Which of the images that [`train_all`] is given.
    #[serde(skip)]
    pub images: usize,
    /// The repetition.
    pub seed: u64,
    /// Which model of the repetition: its own initial weights and order of examples.
    pub stream: u32,
    /// How θ moves.
    pub optimiser: OptimiserSettings,
    /// Examples per step.
    pub batch: i64,
    /// Passes over the training examples, at most.
    pub epochs: u32,
    /// The first epoch whose mean training accuracy reaches this is the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_at: Option<f64>,
    /// Whether θ is kept before training and after every epoch: [`Trained::snapshots`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub snapshots: bool,
}

/// The stream of a model that `description` tells apart from the others of its seed: 24 bits of its hash. A model thus starts
/// from weights of its own and sees the examples in an order of its own, whatever else is trained.
pub fn stream_of(description: &str) -> u32 {
    let hash = sha256_hex(description.as_bytes());
    u32::from_str_radix(&hash[..6], 16).unwrap_or_default()
}

/// Train and test loss and accuracy after an epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpochRow {
    /// From 1.
    pub epoch: u32,
    /// Means over the epoch, each example seen just before its step (as PyTorch notebooks report them).
    pub train: Evaluation,
    /// After the epoch, over all test examples.
    pub test: Evaluation,
    /// Time spent in training so far, evaluation left out. It depends on the machine and on what else runs.
    pub seconds: f64,
}

/// Loss and accuracy over all examples of both splits, of one θ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Both {
    /// On the training examples.
    pub train: Evaluation,
    /// On the test examples.
    pub test: Evaluation,
}

/// A split's name, and how to take its value.
pub type OfSplit = (&'static str, fn(&Both) -> Evaluation);

/// Both splits.
pub const SPLITS: [OfSplit; 2] = [("train", |both| both.train), ("test", |both| both.test)];

/// A finished trial.
#[derive(Debug)]
pub struct Trained {
    /// θ `[P]` on the CPU.
    pub theta: Tensor,
    /// θ before training and after each epoch, `[epochs + 1, P]` on the CPU, where the trial asks for it.
    pub snapshots: Option<Tensor>,
    /// One row an epoch.
    pub curve: Vec<EpochRow>,
    /// With the final θ, over all examples.
    pub end: Both,
}

/// At most this often a trial in progress is saved; a crash costs no more than this and the epoch under way, or a little more where
/// many are saved together.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// Trains every trial, side by side, the longest first; returns them in the trials' order. On an accelerator, trials that are alike
/// train as one stack.
pub fn train_all(
    run: &Run,
    networks: &[Network],
    images: &[Images],
    trials: &[Trial],
) -> Result<Vec<Trained>> {
    let stacks = if run.device.device == Device::Cpu {
        // A model alone keeps a core busy there, and groups of convolutions are slower than one model after the other.
        (0..trials.len()).map(|index| vec![index]).collect()
    } else {
        stacks(images, trials, |alike| {
            let first = &trials[alike[0]];
            fastest_rows(run, &networks[first.network], &images[first.images], first, alike.len())
        })?
    };
    train_stacks(run, networks, images, trials, stacks)
}

/// The same for stacks that are formed already: of each, which trials.
fn train_stacks(
    run: &Run,
    networks: &[Network],
    images: &[Images],
    trials: &[Trial],
    mut stacks: Vec<Vec<usize>>,
) -> Result<Vec<Trained>> {
    let examples = |trial: &Trial| u64::from(trial.epochs) * images[trial.images].train.count() as u64;
    let stage = run.progress.stage("training", trials.iter().map(examples).sum());
    let cost = |&index: &usize| examples(&trials[index]) * networks[trials[index].network].count() as u64;
    stacks.sort_by_key(|stack| std::cmp::Reverse(stack.iter().map(cost).sum::<u64>()));
    let contexts = run.contexts(stacks.len(), || Ok(images.iter().map(Images::share).collect::<Vec<_>>()))?;
    let trained = in_parallel(contexts, &stacks, |images, stack| {
        let network = &networks[trials[stack[0]].network];
        let courses = stack.iter().map(|&index| {
            let trial = &trials[index];
            Course::begin(run, &stage, network, &images[trial.images], trial)
        });
        let courses = courses.collect::<Result<Vec<_>>>()?;
        match <[_; 1]>::try_from(courses) {
            Ok([(course, training)]) => Ok(vec![train_alone(run, &stage, course, training)?]),
            Err(courses) => train_stack(run, &stage, courses),
        }
    })?;
    let mut sorted: Vec<(usize, Trained)> =
        stacks.into_iter().flatten().zip(trained.into_iter().flatten()).collect();
    sorted.sort_by_key(|(index, _)| *index);
    Ok(sorted.into_iter().map(|(_, trained)| trained).collect())
}

/// Evaluates one θ on both splits.
pub fn evaluate_both(network: &Network, theta: &Tensor, images: &Images) -> Result<Both> {
    Ok(Both {
        train: evaluate(network, theta, &images.train, Loss::CrossEntropy)?,
        test: evaluate(network, theta, &images.test, Loss::CrossEntropy)?,
    })
}

/// The most models that meet a chunk of the data while it is in the cache: beyond, its loading no longer counts.
const MOST_TOGETHER: usize = 8;

/// Evaluates `count` θ on both splits, several in each pass over the data, the passes side by side. `theta` gives the `[P]` of a number
/// below `count` from a worker's context, `name` what is shown of it.
pub fn evaluate_all<C: Send>(
    run: &Run,
    what: &str,
    subject: (&Network, &Images),
    count: usize,
    context: impl Fn() -> Result<C>,
    theta: impl Fn(&C, usize) -> Result<Tensor> + Sync,
    name: impl Fn(usize) -> String + Sync,
) -> Result<Vec<Both>> {
    // Small enough for the workers to end together.
    let together = (count / (8 * run.workers)).clamp(1, MOST_TOGETHER);
    let (network, images) = subject;
    let context = || Ok((images.share(), context()?));
    evaluate_passes(run, what, (count, together), context, name, |(images, context), pass| {
        let thetas = stacked(context, pass, &theta)?;
        let on = |examples| evaluate_many(network, &thetas, examples, Loss::CrossEntropy);
        let (train, test) = (on(&images.train)?, on(&images.test)?);
        Ok(train.into_iter().zip(test).map(|(train, test)| Both { train, test }).collect())
    })
}

/// The same of any model, and keeps each pass in the run's folder, by its θ, to the last bit: a resumed run computes none of them again.
/// Without test examples, their loss is NaN.
pub fn evaluate_all_kept<C: Send>(
    run: &Run,
    what: &str,
    (model, splits): (&Model, &Splits),
    count: usize,
    context: impl Fn() -> Result<C>,
    theta: impl Fn(&C, usize) -> Result<Tensor> + Sync,
    name: impl Fn(usize) -> String + Sync,
) -> Result<Vec<Both>> {
    // Whatever the number of workers, so that a run may go on with another.
    let together = count.div_ceil(32).clamp(1, MOST_TOGETHER);
    let context = || Ok((model.again()?, splits.share(), context()?));
    evaluate_passes(run, what, (count, together), context, name, |(model, splits, context), pass| {
        let thetas = stacked(context, pass, &theta)?;
        let evaluate = |examples: &Examples| Ok(model.evaluate_many(&thetas, examples, splits.loss)?);
        kept_pass(run, (model, splits), &fingerprint(&thetas)?, pass.len(), evaluate)
    })
}

/// The most points of a line or plane in a pass: what its axes make of the examples is computed once for all of them.
const POINTS_TOGETHER: usize = 64;

/// The same of the points of a line or plane, given by their coordinates. Equal to those of [`evaluate_all_kept`] but for rounding.
pub fn evaluate_points_kept(
    run: &Run,
    what: &str,
    (model, splits): (&Model, &Splits),
    subspace: &Subspace,
    coordinates: &[Vec<f64>],
    name: impl Fn(usize) -> String + Sync,
) -> Result<Vec<Both>> {
    let most = match model {
        Model::Network(_) => POINTS_TOGETHER,
        Model::Module(_) => MOST_TOGETHER,
    };
    let together = coordinates.len().div_ceil(16).clamp(1, most);
    let context = || Ok((model.again()?, splits.share(), subspace.share()));
    let frame = fingerprint(&subspace.frame()?)?;
    let count = coordinates.len();
    evaluate_passes(run, what, (count, together), context, name, |(model, splits, subspace), pass| {
        let at = &coordinates[pass[0]..][..pass.len()];
        let evaluate = |examples: &Examples| Ok(subspace.evaluate(model, at, examples, splits.loss)?);
        let content = serde_json::json!({ "frame": frame, "coordinates": at });
        kept_pass(run, (model, splits), &content, pass.len(), evaluate)
    })
}

fn stacked<C>(context: &C, pass: &[usize], theta: impl Fn(&C, usize) -> Result<Tensor>) -> Result<Tensor> {
    let thetas = pass.iter().map(|&index| theta(context, index)).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_stack(&thetas, 0)?)
}

/// A pass over both splits, or what was kept of it by `content`, the models' description.
fn kept_pass(
    run: &Run,
    (model, splits): (&Model, &Splits),
    content: &impl Serialize,
    count: usize,
    evaluate: impl Fn(&Examples) -> Result<Vec<Evaluation>>,
) -> Result<Vec<Both>> {
    let content = serde_json::json!({
        "evaluation": content,
        "network": describe_model(model),
        "prepared": splits.prepared,
        "train": splits.train.count(),
        "test": splits.test.as_ref().map(Examples::count),
    });
    let numbers = run.kept(&content, || {
        let train = evaluate(&splits.train)?;
        let test = match &splits.test {
            Some(test) => evaluate(test)?,
            None => vec![Evaluation { loss: f64::NAN, accuracy: None }; train.len()],
        };
        let both: Vec<Both> = train.into_iter().zip(test).map(|(train, test)| Both { train, test }).collect();
        both_to_numbers(&both)
    })?;
    both_from_numbers(&numbers, count)
}

/// `count` models, `together` in each pass: `evaluate` gets the numbers of a pass.
fn evaluate_passes<C: Send>(
    run: &Run,
    what: &str,
    (count, together): (usize, usize),
    context: impl Fn() -> Result<C>,
    name: impl Fn(usize) -> String + Sync,
    evaluate: impl Fn(&mut C, &[usize]) -> Result<Vec<Both>> + Sync,
) -> Result<Vec<Both>> {
    let all: Vec<usize> = (0..count).collect();
    let passes: Vec<&[usize]> = all.chunks(together).collect();
    let stage = run.progress.stage(what, count as u64);
    let contexts = run.contexts(passes.len(), context)?;
    let evaluated = in_parallel(contexts, &passes, |context, pass| {
        run.check_interrupted()?;
        let both = evaluate(context, pass)?;
        stage.advance(pass.len() as u64, name(pass[pass.len() - 1]));
        Ok(both)
    })?;
    Ok(evaluated.into_iter().flatten().collect())
}

/// `[M, 4]`: loss and accuracy (NaN where there is none) on training and test examples.
fn both_to_numbers(all: &[Both]) -> Result<Numbers> {
    let of = |value: Evaluation| [value.loss, value.accuracy.unwrap_or(f64::NAN)];
    let rows: Vec<f64> = all.iter().flat_map(|both| [of(both.train), of(both.test)].concat()).collect();
    let rows = Tensor::f_from_slice(&rows)?.f_view([all.len() as i64, 4])?;
    Ok(Numbers::from([("evaluation".to_owned(), rows)]))
}

fn both_from_numbers(numbers: &Numbers, count: usize) -> Result<Vec<Both>> {
    let rows = numbers.get("evaluation").context("a kept evaluation holds no numbers")?;
    ensure!(rows.size() == [count as i64, 4], "a kept evaluation has another shape");
    let rows = Vec::<f64>::try_from(rows.f_flatten(0, -1)?)?;
    let of = |pair: &[f64]| Evaluation { loss: pair[0], accuracy: (!pair[1].is_nan()).then_some(pair[1]) };
    Ok(rows.chunks(4).map(|row| Both { train: of(&row[..2]), test: of(&row[2..]) }).collect())
}

fn train_alone(run: &Run, stage: &Stage, mut course: Course, mut training: Training) -> Result<Trained> {
    let mut last_save = Instant::now();
    while !course.is_over() {
        run.check_interrupted()?;
        let begin = Instant::now();
        let epoch = training.epoch().with_context(|| format!("trial {} failed", course.trial.name))?;
        course.record(stage, &training, epoch, begin.elapsed().as_secs_f64())?;
        if course.is_over() || last_save.elapsed() >= SAVE_EVERY {
            course.save(&training)?;
            last_save = Instant::now();
        }
    }
    course.finish(run, stage, &training)
}

/// All side by side. A stack is formed anew from all its trials, be they over or not: what a row computes may depend, in its last bits,
/// on how many there are.
fn train_stack(run: &Run, stage: &Stage, courses: Vec<(Course, Training)>) -> Result<Vec<Trained>> {
    let (mut courses, mut models): (Vec<Course>, Vec<Training>) = courses.into_iter().unzip();
    if !courses.iter().all(Course::is_over) {
        let mut stack = StackedTraining::new(&std::mem::take(&mut models))?;
        let (mut last_save, mut pause) = (Instant::now(), SAVE_EVERY);
        while !courses.iter().all(Course::is_over) {
            run.check_interrupted()?;
            stacked_epoch(stage, &mut courses, &mut stack)?;
            if last_save.elapsed() >= pause {
                let begin = Instant::now();
                save_stack(&courses, &stack)?;
                // Many files: they shall not take more than a tenth of the time.
                pause = SAVE_EVERY.max(10 * begin.elapsed());
                last_save = Instant::now();
            }
        }
        models = (0..courses.len()).map(|row| stack.row(row)).collect::<Result<_, _>>()?;
    }
    courses.into_iter().zip(models).map(|(course, model)| course.finish(run, stage, &model)).collect()
}

/// An epoch of the trials that are not over; a row's time is its share of the stack's.
fn stacked_epoch(stage: &Stage, courses: &mut [Course], stack: &mut StackedTraining) -> Result<()> {
    let wanted: Vec<bool> = courses.iter().map(|course| !course.is_over()).collect();
    let begin = Instant::now();
    let epochs = stack.epoch(&wanted).with_context(|| {
        let names: Vec<&str> = courses.iter().map(|course| course.trial.name.as_str()).collect();
        format!("the stack of the trials {} failed", names.join(", "))
    })?;
    let seconds = begin.elapsed().as_secs_f64() / epochs.iter().flatten().count() as f64;
    for (row, (course, epoch)) in courses.iter_mut().zip(epochs).enumerate() {
        if let Some(epoch) = epoch {
            let model = stack.row(row)?;
            course.record(stage, &model, epoch, seconds)?;
            if course.is_over() {
                course.save(&model)?;
            }
        }
    }
    Ok(())
}

/// Those that are over were saved when they were.
fn save_stack(courses: &[Course], stack: &StackedTraining) -> Result<()> {
    for (row, course) in courses.iter().enumerate().filter(|(_, course)| !course.is_over()) {
        course.save(&stack.row(row)?)?;
    }
    Ok(())
}

/// A trial on its way: all but its model.
struct Course<'a> {
    trial: &'a Trial,
    images: &'a Images,
    files: Files,
    curve: Vec<EpochRow>,
    /// So far; empty where the trial asks for none.
    snapshots: Vec<Tensor>,
}

impl<'a> Course<'a> {
    /// From the start, or where an earlier process stopped, or at the end that one reached: the numbers are the same in all
    /// three cases. Trains with cross-entropy.
    fn begin(
        run: &Run,
        stage: &Stage,
        network: &'a Network,
        images: &'a Images,
        trial: &'a Trial,
    ) -> Result<(Self, Training<'a>)> {
        let device = run.device.device;
        let key = key(run, network, images, trial)?;
        let files = Files {
            checkpoint: run.folder.trial_path(&key, "safetensors"),
            snapshots: trial.snapshots.then(|| run.folder.trial_path(&key, "snapshots.safetensors")),
        };
        let saved = if files.checkpoint.exists() { read_saved(run, network, trial, &files) } else { None };
        let (theta, optimiser, epochs, curve, snapshots) = if let Some(saved) = saved {
            let Saved { checkpoint, optimiser, curve, snapshots } = saved;
            stage.skip(u64::from(checkpoint.epochs) * images.train.count() as u64);
            (checkpoint.theta.f_to_device(device)?, optimiser, checkpoint.epochs, curve, snapshots)
        } else {
            let theta = initialise(network, trial.seed, trial.stream, Kind::Float, device)?;
            let first = if trial.snapshots { vec![snapshot_of(&theta)?] } else { Vec::new() };
            (theta, Optimiser::new(trial.optimiser)?, 0, Vec::new(), first)
        };
        let training = Training {
            network,
            loss: Loss::CrossEntropy,
            examples: &images.train,
            batch: trial.batch,
            stream: (trial.seed, trial.stream),
            theta,
            optimiser,
            epochs,
        };
        Ok((Self { trial, images, files, curve, snapshots }, training))
    }

    fn is_over(&self) -> bool {
        self.trial.is_over(&self.curve)
    }

    /// After an epoch that took so many seconds.
    fn record(&mut self, stage: &Stage, training: &Training, epoch: Epoch, seconds: f64) -> Result<()> {
        let Training { network, theta, epochs, .. } = training;
        let test = evaluate(network, theta, &self.images.test, Loss::CrossEntropy)?;
        let train = Evaluation { loss: epoch.loss, accuracy: epoch.accuracy };
        let seconds = self.curve.last().map_or(0., |row| row.seconds) + seconds;
        self.curve.push(EpochRow { epoch: *epochs, train, test, seconds });
        if self.trial.snapshots {
            self.snapshots.push(snapshot_of(theta)?);
        }
        let accuracy = test.accuracy.unwrap_or(f64::NAN) * 100.;
        let Trial { name, epochs: all, .. } = self.trial;
        stage.advance(
            self.images.train.count() as u64,
            format!("{name}: epoch {epochs}/{all}, test accuracy {accuracy:.2} %"),
        );
        Ok(())
    }

    fn save(&self, training: &Training) -> Result<()> {
        let Training { network, theta, optimiser, epochs, .. } = training;
        // First, so that no checkpoint is ahead of its snapshots, whenever the process ends.
        if let Some(path) = &self.files.snapshots {
            let stacked = Numbers::from([(SNAPSHOTS.to_owned(), Tensor::f_stack(&self.snapshots, 0)?)]);
            write_atomically(path, &tensors_to_bytes(&stacked)?)?;
        }
        let bytes = Checkpoint::save(network, theta, optimiser, *epochs, &to_notes(&self.curve))?;
        Ok(write_atomically(&self.files.checkpoint, &bytes)?)
    }

    /// Also writes the final weights as `weights/<name>.safetensors` for PyTorch.
    fn finish(self, run: &Run, stage: &Stage, training: &Training) -> Result<Trained> {
        let Self { trial, images, curve, snapshots, .. } = self;
        stage.skip(u64::from(trial.epochs.saturating_sub(training.epochs)) * images.train.count() as u64);
        let end = evaluate_both(training.network, &training.theta, images)?;
        let theta = training.theta.f_to_device(Device::Cpu)?;
        run.write_weights(&trial.name, &to_safetensors(training.network, &theta)?)?;
        let snapshots = trial.snapshots.then(|| Tensor::f_stack(&snapshots, 0)).transpose()?;
        Ok(Trained { theta, snapshots, curve, end })
    }
}

impl Trial {
    fn is_over(&self, curve: &[EpochRow]) -> bool {
        let reached = |row: &EpochRow| {
            self.stop_at.is_some_and(|enough| row.train.accuracy.is_some_and(|accuracy| accuracy >= enough))
        };
        curve.last().is_some_and(|row| row.epoch >= self.epochs || reached(row))
    }
}

/// Everything that the trial's numbers depend on, as one hash.
fn key(run: &Run, network: &Network, images: &Images, trial: &Trial) -> Result<String> {
    run.key(&serde_json::json!({
        "network": describe(network),
        "trial": trial,
        "prepared": images.prepared,
        "train": images.train.count(),
        "test": images.test.count(),
    }))
}

/// A network in a trial's key.
pub fn describe(network: &Network) -> serde_json::Value {
    // Layers, shapes and activations.
    serde_json::json!(format!("{network:?}"))
}

/// The same of either; the checksum of a module's file is in every key.
pub fn describe_model(model: &Model) -> serde_json::Value {
    match model {
        Model::Network(network) => describe(network),
        Model::Module(module) => module.name().into(),
    }
}

/// Where a trial is kept.
struct Files {
    checkpoint: PathBuf,
    /// `None` where the trial asks for no snapshots.
    snapshots: Option<PathBuf>,
}

/// What an earlier process left of a trial.
struct Saved {
    checkpoint: Checkpoint,
    optimiser: Optimiser,
    curve: Vec<EpochRow>,
    snapshots: Vec<Tensor>,
}

/// The name of the snapshots in their file.
const SNAPSHOTS: &str = "snapshots";

/// θ `[P]` as it is now, on the CPU, whatever becomes of θ.
fn snapshot_of(theta: &Tensor) -> Result<Tensor> {
    Ok(theta.f_detach_copy()?.f_to_device(Device::Cpu)?)
}

/// Files that cannot be read cost their trial's time, not the run.
fn read_saved(run: &Run, network: &Network, trial: &Trial, files: &Files) -> Option<Saved> {
    let read = || -> Result<Saved> {
        let checkpoint = Checkpoint::load(network, &std::fs::read(&files.checkpoint)?)?;
        let optimiser = checkpoint.optimiser(trial.optimiser, run.device.device)?;
        let curve = from_notes(&checkpoint.notes)?;
        ensure!(curve.len() == checkpoint.epochs as usize, "its curve has {} epochs", curve.len());
        let snapshots = match &files.snapshots {
            Some(path) => read_snapshots(path, &checkpoint).context("its snapshots")?,
            None => Vec::new(),
        };
        Ok(Saved { checkpoint, optimiser, curve, snapshots })
    };
    read()
        .inspect_err(|error| {
            let path = files.checkpoint.display();
            run.progress.note(&format!("{path} is not usable ({error:#}): trained again"));
        })
        .ok()
}

/// Those up to the checkpoint; later ones, whose checkpoint was not written, come again.
fn read_snapshots(path: &Path, checkpoint: &Checkpoint) -> Result<Vec<Tensor>> {
    let stacked = tensors_from_bytes(&std::fs::read(path)?)?.remove(SNAPSHOTS).context("none are there")?;
    let wanted = i64::from(checkpoint.epochs) + 1;
    ensure!(stacked.dim() == 2 && stacked.size()[0] >= wanted, "fewer than {wanted} are there");
    let last = stacked.f_get(wanted - 1)?;
    ensure!(last.size() == checkpoint.theta.size() && last.f_equal(&checkpoint.theta)?, "they are another's");
    Ok((0..wanted).map(|index| stacked.f_get(index)).collect::<Result<_, _>>()?)
}

/// Curves as text that keeps every bit, and NaN and infinities, which JSON has no words for.
#[derive(Serialize, Deserialize)]
struct Notes(Vec<(u32, [String; 5])>);

fn to_notes(curve: &[EpochRow]) -> String {
    let text = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:?}"));
    let rows = curve.iter().map(|row| {
        let (train, test) = (row.train, row.test);
        let numbers =
            [Some(train.loss), train.accuracy, Some(test.loss), test.accuracy, Some(row.seconds)].map(text);
        (row.epoch, numbers)
    });
    serde_json::to_string(&Notes(rows.collect())).unwrap_or_default()
}

fn from_notes(notes: &str) -> Result<Vec<EpochRow>> {
    let number = |text: &String| (!text.is_empty()).then(|| text.parse::<f64>()).transpose();
    let Notes(rows) = serde_json::from_str(notes).context("the curve is damaged")?;
    rows.iter()
        .map(|(epoch, [train_loss, train_accuracy, test_loss, test_accuracy, seconds])| {
            let evaluation = |loss, accuracy| -> Result<Evaluation> {
                Ok(Evaluation {
                    loss: number(loss)?.context("a loss is missing")?,
                    accuracy: number(accuracy)?,
                })
            };
            Ok(EpochRow {
                epoch: *epoch,
                train: evaluation(train_loss, train_accuracy)?,
                test: evaluation(test_loss, test_accuracy)?,
                seconds: number(seconds)?.context("a time is missing")?,
            })
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::progress::Progress;
    use flatland_network::device::{DeviceChoice, choose};
    use flatland_network::{Examples, Layer};
    use flatland_record::{Manifest, RunFolder};
    use ndarray::Array3;
    use std::sync::Mutex;

    /// A run on the CPU that is asked for by no experiment.
    pub fn run(folder: &Path) -> Run {
        Run {
            precision: flatland_network::Precision::F32,
            folder: RunFolder::create(folder, "test", "").unwrap(),
            device: choose(DeviceChoice::Cpu).unwrap(),
            progress: Progress::new(true),
            workers: 2,
            data_dir: None,
            preset: "test".into(),
            interrupted: std::sync::Arc::default(),
            manifest: Mutex::new(Manifest::new("test", "test", serde_json::Value::Null)),
            written: Mutex::default(),
            outcomes: Mutex::default(),
        }
    }

    /// A small convolutional network and a dense one, of images 8x8.
    pub fn networks() -> Vec<Network> {
        let layers = [
            Layer::Convolution { channels: 3, kernel: 3, padding: 0 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Dense { width: 4 },
        ];
        let dense = [Layer::Dense { width: 9 }, Layer::Relu, Layer::Dense { width: 4 }];
        vec![
            Network::new("small", &[1, 8, 8], &layers).unwrap(),
            Network::new("dense", &[1, 8, 8], &dense).unwrap(),
        ]
    }

    /// Bars, brighter with their label, in noise of their own.
    pub fn images(count: usize, salt: usize) -> Images {
        let split = |count: usize, salt: usize| {
            let labels: Vec<u8> = (0..count).map(|n| (n * 7 % 4) as u8).collect();
            let pixels = Array3::from_shape_fn((count, 8, 8), |(n, i, j)| {
                let noise = (n * 193 + i * 71 + j * 37 + salt * 11) * 2_654_435_761 % 97;
                (if j / 2 == usize::from(labels[n]) { 150 + noise } else { noise }) as u8
            });
            let values = std::array::from_fn(|p| p as f32 / 255.);
            Examples::pixels(&pixels, &[1, 8, 8], &values, &labels, Device::Cpu).unwrap()
        };
        Images {
            train: split(count, salt),
            test: split(20, salt + 1),
            prepared: format!("bars {count} {salt}"),
        }
    }

    pub fn trial(seed: u64, images: usize) -> Trial {
        Trial {
            name: format!("seed{seed}-images{images}"),
            network: 0,
            images,
            seed,
            stream: 3,
            optimiser: OptimiserSettings::Sgd { lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0. },
            batch: 8,
            epochs: 6,
            stop_at: None,
            snapshots: false,
        }
    }

    /// Trials of one stack: other seeds, learning rates, labels, images, and ends.
    fn stack(network: usize) -> (Vec<Images>, Vec<Trial>) {
        let all = images(44, 0);
        let relabelled = all.relabelled(&[1, 0, 2, 2].repeat(11), "bars relabelled".into()).unwrap();
        let images = vec![all, relabelled, images(44, 5)];
        let slow = OptimiserSettings::Sgd { lr: 0.02, momentum: 0.5, nesterov: true, weight_decay: 1e-3 };
        let trials = [
            trial(0, 0),
            trial(1, 0),
            Trial { optimiser: slow, name: "slow".into(), ..trial(0, 0) },
            trial(0, 1),
            // It is reached before the last epoch.
            Trial { stop_at: Some(0.3), name: "early".into(), ..trial(2, 0) },
            trial(0, 2),
        ];
        let trials = trials.map(|trial| Trial { network, snapshots: true, ..trial });
        (images, trials.into())
    }

    fn theta_bits(trained: &Trained) -> (Vec<f32>, Vec<f32>) {
        let numbers = |tensor: &Tensor| Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
        (numbers(&trained.theta), numbers(trained.snapshots.as_ref().unwrap()))
    }

    /// All but the time.
    fn losses(trained: &Trained) -> Vec<(u32, [Evaluation; 2])> {
        trained.curve.iter().map(|row| (row.epoch, [row.train, row.test])).collect()
    }

    fn assert_same(some: &[Trained], others: &[Trained]) {
        assert_eq!(some.len(), others.len());
        for (one, other) in some.iter().zip(others) {
            assert_eq!(theta_bits(one), theta_bits(other));
            assert_eq!((losses(one), one.end), (losses(other), other.end));
        }
    }

    /// To 1e-4: an error in the last bit grows over 36 steps.
    #[test]
    fn a_stack_trains_what_each_of_its_trials_does_alone() {
        tch::set_num_threads(1);
        for network in 0..2 {
            let (images, trials) = stack(network);
            let train = |stacks: Vec<Vec<usize>>| {
                let folder = tempfile::tempdir().unwrap();
                let run = run(folder.path());
                let trained = train_stacks(&run, &networks(), &images, &trials, stacks).unwrap();
                let weights = std::fs::read_dir(run.folder.file("weights")).unwrap().count();
                assert_eq!(weights, trials.len());
                trained
            };
            let alone = train((0..6).map(|index| vec![index]).collect());
            let stacked = train(vec![vec![4, 1], vec![0, 2, 3, 5]]);
            for (trial, (row, alone)) in trials.iter().zip(stacked.iter().zip(&alone)) {
                let epochs = alone.curve.len();
                assert_eq!(row.curve.len(), epochs, "{}", trial.name);
                assert_eq!(epochs < 6, trial.stop_at.is_some(), "{}: {epochs} epochs", trial.name);
                assert!(row.curve[0].seconds > 0. && row.curve.is_sorted_by_key(|row| row.seconds));
                let close =
                    |a: f64, b: f64| assert!((a - b).abs() < 1e-4 * b.abs(), "{}: {a} {b}", trial.name);
                for (row, alone) in row.curve.iter().zip(&alone.curve) {
                    close(row.train.loss, alone.train.loss);
                    close(row.test.loss, alone.test.loss);
                }
                close(row.end.train.loss, alone.end.train.loss);
                let [snapshots, others] = [row, alone].map(|trained| trained.snapshots.as_ref().unwrap());
                assert_eq!(snapshots.size()[0], epochs as i64 + 1);
                assert!(snapshots.allclose(others, 1e-4, 1e-4, false), "{}", trial.name);
                assert_eq!(snapshots.get(-1), row.theta);
            }
            assert!(alone[0].end.train.loss < 0.5 * alone[0].curve[0].train.loss, "it learns");
        }
    }

    #[test]
    fn a_resumed_stack_equals_an_undisturbed_one_bit_for_bit() {
        tch::set_num_threads(1);
        for network in 0..2 {
            let (images, trials) = stack(network);
            let networks = networks();
            let all = || vec![(0..trials.len()).collect()];
            let folder = tempfile::tempdir().unwrap();
            let whole = train_stacks(&run(folder.path()), &networks, &images, &trials, all()).unwrap();

            let files = |run: &Run, index: usize| {
                let trial = &trials[index];
                let key = key(run, &networks[network], &images[trial.images], trial).unwrap();
                run.folder.trial_path(&key, "safetensors")
            };
            // What a process leaves that ends after so many epochs; one that was killed while it saved lacks some files.
            for (epochs, lost) in [(1, vec![]), (4, vec![]), (5, vec![1, 3]), (6, vec![]), (6, vec![0])] {
                let folder = tempfile::tempdir().unwrap();
                let run = run(folder.path());
                let stage = run.progress.stage("training", 1);
                let courses = trials.iter().map(|trial| {
                    let images = &images[trial.images];
                    Course::begin(&run, &stage, &networks[network], images, trial).unwrap()
                });
                let (mut courses, models): (Vec<Course>, Vec<Training>) = courses.unzip();
                let mut half = StackedTraining::new(&models).unwrap();
                for _ in 0..epochs {
                    stacked_epoch(&stage, &mut courses, &mut half).unwrap();
                    save_stack(&courses, &half).unwrap();
                }
                for &index in &lost {
                    std::fs::remove_file(files(&run, index)).unwrap();
                }
                let resumed = train_stacks(&run, &networks, &images, &trials, all()).unwrap();
                assert_same(&resumed, &whole);
            }
        }
    }

    #[test]
    fn kept_evaluations_are_those_of_each_theta_whatever_was_kept() {
        tch::set_num_threads(1);
        let (network, images) = (&networks()[0], images(44, 0));
        let theta = |index: usize| initialise(network, 7, index as u32, Kind::Float, Device::Cpu);
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let evaluate = || {
            let thetas = |(): &(), index| Ok(theta(index)?);
            let subject = (&Model::Network(network.clone()), &Splits::of(&images));
            evaluate_all_kept(&run, "test", subject, 70, || Ok(()), thetas, |_| String::new()).unwrap()
        };
        let first = evaluate();
        for (index, both) in first.iter().enumerate() {
            assert_eq!(*both, evaluate_both(network, &theta(index).unwrap(), &images).unwrap());
        }
        let kept = |run: &Run| {
            let entries = std::fs::read_dir(run.folder.file("trials")).unwrap();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            paths
        };
        let files = kept(&run);
        assert_eq!(files.len(), 24, "70 in passes of 3");
        std::fs::remove_file(&files[3]).unwrap();
        std::fs::write(&files[9], b"torn").unwrap();
        assert_eq!(evaluate(), first);
        assert_eq!(kept(&run), files);
    }

    fn row(epoch: u32, loss: f64) -> EpochRow {
        EpochRow {
            epoch,
            train: Evaluation { loss, accuracy: Some(0.1 + 0.2) },
            test: Evaluation { loss: -loss, accuracy: None },
            seconds: 0.1,
        }
    }

    #[test]
    fn curves_survive_their_notes_bit_for_bit() {
        let curve = [row(1, 1. / 3.), row(2, f64::INFINITY), row(3, 5e-324), row(4, f64::MAX)];
        assert_eq!(from_notes(&to_notes(&curve)).unwrap(), curve);
        let diverged = from_notes(&to_notes(&[row(1, f64::NAN)])).unwrap();
        assert!(diverged[0].train.loss.is_nan());
        for damaged in ["", "{}", "[[1,[\"x\",\"\",\"1\",\"\",\"1\"]]]", "[[1,[\"\",\"\",\"1\",\"\",\"1\"]]]"]
        {
            assert!(from_notes(damaged).is_err(), "{damaged}");
        }
    }

    #[test]
    fn a_trial_ends_with_its_epochs_or_its_goal() {
        let mut trial = Trial {
            name: String::new(),
            network: 0,
            images: 0,
            seed: 0,
            stream: 0,
            optimiser: OptimiserSettings::Adam { lr: 1e-3, weight_decay: 0. },
            batch: 1,
            epochs: 2,
            stop_at: None,
            snapshots: false,
        };
        let curve = [row(1, 1.), row(2, 1.)];
        assert!(!trial.is_over(&[]) && !trial.is_over(&curve[..1]) && trial.is_over(&curve));
        trial.stop_at = Some(0.3);
        assert!(trial.is_over(&curve[..1]), "0.1 + 0.2 reaches 0.3");
        trial.stop_at = Some(0.31);
        assert!(!trial.is_over(&curve[..1]));
    }
}
