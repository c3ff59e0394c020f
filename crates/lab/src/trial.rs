//! A trial: one classifier trained from one seed, kept by its content so that no run trains it twice.

use crate::images::Images;
use crate::parallel::in_parallel;
use crate::progress::Stage;
use crate::run::{Numbers, Run};
use anyhow::{Context, Result, ensure};
use flatland_network::snapshot::{Checkpoint, tensors_from_bytes, tensors_to_bytes, to_safetensors};
use flatland_network::{
    Evaluation, Loss, Network, Optimiser, OptimiserSettings, Training, evaluate, evaluate_many, initialise,
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

/// The splits' names, and how to take a split's value.
#[allow(clippy::type_complexity)] // A name for the pair would say no more.
pub const SPLITS: [(&str, fn(&Both) -> Evaluation); 2] =
    [("train", |both| both.train), ("test", |both| both.test)];

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

/// At most this often a trial in progress is saved; a crash costs no more than this and the epoch under way.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// Trains every trial, side by side, the longest first; returns them in the trials' order.
pub fn train_all(
    run: &Run,
    networks: &[Network],
    images: &[Images],
    trials: &[Trial],
) -> Result<Vec<Trained>> {
    let examples = |trial: &Trial| u64::from(trial.epochs) * images[trial.images].train.count() as u64;
    let stage = run.progress.stage("training", trials.iter().map(examples).sum());
    let mut order: Vec<usize> = (0..trials.len()).collect();
    let cost = |&index: &usize| examples(&trials[index]) * networks[trials[index].network].count() as u64;
    order.sort_by_key(|index| std::cmp::Reverse(cost(index)));
    let contexts = run.contexts(trials.len(), || Ok(images.iter().map(Images::share).collect::<Vec<_>>()))?;
    let trained = in_parallel(contexts, &order, |images, &index| {
        let trial = &trials[index];
        train(run, &stage, &networks[trial.network], &images[trial.images], trial)
    })?;
    let mut sorted: Vec<(usize, Trained)> = order.into_iter().zip(trained).collect();
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
    (network, images): (&Network, &Images),
    count: usize,
    context: impl Fn() -> Result<C>,
    theta: impl Fn(&C, usize) -> Result<Tensor> + Sync,
    name: impl Fn(usize) -> String + Sync,
) -> Result<Vec<Both>> {
    // Small enough for the workers to end together.
    let together = (count / (8 * run.workers)).clamp(1, MOST_TOGETHER);
    let all: Vec<usize> = (0..count).collect();
    let jobs: Vec<&[usize]> = all.chunks(together).collect();
    let stage = run.progress.stage(what, count as u64);
    let contexts = run.contexts(jobs.len(), || Ok((images.share(), context()?)))?;
    let evaluated = in_parallel(contexts, &jobs, |(images, context), job| {
        run.check_interrupted()?;
        let thetas = job.iter().map(|&index| theta(context, index)).collect::<Result<Vec<_>>>()?;
        let thetas = Tensor::f_stack(&thetas, 0)?;
        let on = |examples| evaluate_many(network, &thetas, examples, Loss::CrossEntropy);
        let (train, test) = (on(&images.train)?, on(&images.test)?);
        stage.advance(job.len() as u64, name(job[job.len() - 1]));
        Ok(train.into_iter().zip(test).map(|(train, test)| Both { train, test }).collect::<Vec<_>>())
    })?;
    Ok(evaluated.into_iter().flatten().collect())
}

/// Trains with cross-entropy, or takes up where an earlier process stopped, or returns what one finished: the numbers are
/// the same in all three cases. Also writes the final weights as `weights/<name>.safetensors` for PyTorch.
fn train(run: &Run, stage: &Stage, network: &Network, images: &Images, trial: &Trial) -> Result<Trained> {
    let device = run.device.device;
    let key = key(run, network, images, trial)?;
    let files = Files {
        checkpoint: run.folder.trial_path(&key, "safetensors"),
        snapshots: trial.snapshots.then(|| run.folder.trial_path(&key, "snapshots.safetensors")),
    };
    let saved = if files.checkpoint.exists() { read_saved(run, network, trial, &files) } else { None };
    let examples = images.train.count() as u64;
    let (mut training, mut curve, mut snapshots) = if let Some(saved) = saved {
        let Saved { checkpoint, optimiser, curve, snapshots } = saved;
        let theta = checkpoint.theta.f_to_device(device)?;
        stage.skip(u64::from(checkpoint.epochs) * examples);
        (start(network, images, trial, theta, optimiser, checkpoint.epochs), curve, snapshots)
    } else {
        let theta = initialise(network, trial.seed, trial.stream, Kind::Float, device)?;
        let first = if trial.snapshots { vec![snapshot_of(&theta)?] } else { Vec::new() };
        (start(network, images, trial, theta, Optimiser::new(trial.optimiser)?, 0), Vec::new(), first)
    };

    let mut seconds = curve.last().map_or(0., |row| row.seconds);
    let mut last_save = Instant::now();
    while !trial.is_over(&curve) {
        run.check_interrupted()?;
        let begin = Instant::now();
        let train = training.epoch().with_context(|| format!("trial {} failed", trial.name))?;
        seconds += begin.elapsed().as_secs_f64();
        let test = evaluate(network, &training.theta, &images.test, Loss::CrossEntropy)?;
        let train = Evaluation { loss: train.loss, accuracy: train.accuracy };
        curve.push(EpochRow { epoch: training.epochs, train, test, seconds });
        if trial.snapshots {
            snapshots.push(snapshot_of(&training.theta)?);
        }
        if trial.is_over(&curve) || last_save.elapsed() >= SAVE_EVERY {
            // First, so that no checkpoint is ahead of its snapshots, whenever the process ends.
            if let Some(path) = &files.snapshots {
                let stacked = Numbers::from([(SNAPSHOTS.to_owned(), Tensor::f_stack(&snapshots, 0)?)]);
                write_atomically(path, &tensors_to_bytes(&stacked)?)?;
            }
            let notes = to_notes(&curve);
            write_atomically(
                &files.checkpoint,
                &Checkpoint::save(network, &training.theta, &training.optimiser, training.epochs, &notes)?,
            )?;
            last_save = Instant::now();
        }
        let accuracy = test.accuracy.unwrap_or(f64::NAN) * 100.;
        stage.advance(
            examples,
            format!(
                "{}: epoch {}/{}, test accuracy {accuracy:.2} %",
                trial.name, training.epochs, trial.epochs
            ),
        );
    }
    stage.skip(u64::from(trial.epochs.saturating_sub(training.epochs)) * examples);
    let end = evaluate_both(network, &training.theta, images)?;
    let theta = training.theta.f_to_device(Device::Cpu)?;
    run.write_weights(&trial.name, &to_safetensors(network, &theta)?)?;
    let snapshots = trial.snapshots.then(|| Tensor::f_stack(&snapshots, 0)).transpose()?;
    Ok(Trained { theta, snapshots, curve, end })
}

impl Trial {
    fn is_over(&self, curve: &[EpochRow]) -> bool {
        let reached = |row: &EpochRow| {
            self.stop_at.is_some_and(|enough| row.train.accuracy.is_some_and(|accuracy| accuracy >= enough))
        };
        curve.last().is_some_and(|row| row.epoch >= self.epochs || reached(row))
    }
}

fn start<'a>(
    network: &'a Network,
    images: &'a Images,
    trial: &Trial,
    theta: Tensor,
    optimiser: Optimiser,
    epochs: u32,
) -> Training<'a> {
    Training {
        network,
        loss: Loss::CrossEntropy,
        examples: &images.train,
        batch: trial.batch,
        stream: (trial.seed, trial.stream),
        theta,
        optimiser,
        epochs,
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
mod tests {
    use super::*;

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
