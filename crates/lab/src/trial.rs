//! A trial: one classifier trained from one seed, kept by its content so that no run trains it twice.

use crate::images::Images;
use crate::progress::Stage;
use crate::run::Run;
use anyhow::{Context, Result};
use flatland_network::snapshot::{Checkpoint, to_safetensors};
use flatland_network::{
    Evaluation, Loss, Network, Optimiser, OptimiserSettings, Training, evaluate, initialise,
};
use flatland_record::{sha256_hex, write_atomically};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// What is trained, and from which random stream.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trial {
    /// For messages and file names, for instance `seed0-batch100-lr0.01`.
    #[serde(skip)]
    pub name: String,
    /// The repetition.
    pub seed: u64,
    /// Which model of the repetition: its own initial weights and order of examples.
    pub stream: u32,
    /// How θ moves.
    pub optimiser: OptimiserSettings,
    /// Examples per step.
    pub batch: i64,
    /// Passes over the training examples.
    pub epochs: u32,
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
}

/// A finished trial.
#[derive(Debug)]
pub struct Trained {
    /// θ `[P]` on the CPU.
    pub theta: Tensor,
    /// One row an epoch.
    pub curve: Vec<EpochRow>,
}

/// At most this often a trial in progress is saved; a crash costs no more than this and the epoch under way.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// Trains with cross-entropy, or takes up where an earlier process stopped, or returns what one finished: the numbers are
/// the same in all three cases. Also writes the final weights as `weights/<name>.safetensors` for PyTorch.
pub fn train(run: &Run, stage: &Stage, network: &Network, images: &Images, trial: &Trial) -> Result<Trained> {
    let device = run.device.device;
    let path = run.folder.trial_path(&key(run, network, images, trial)?, "safetensors");
    let saved = if path.exists() { read_checkpoint(run, network, trial, &path) } else { None };
    let (mut training, mut curve) = if let Some((checkpoint, optimiser, curve)) = saved {
        let theta = checkpoint.theta.f_to_device(device)?;
        stage.skip(u64::from(checkpoint.epochs) * images.train.count() as u64);
        (start(network, images, trial, theta, optimiser, checkpoint.epochs), curve)
    } else {
        let theta = initialise(network, trial.seed, trial.stream, Kind::Float, device)?;
        (start(network, images, trial, theta, Optimiser::new(trial.optimiser)?, 0), Vec::new())
    };

    let mut last_save = Instant::now();
    while training.epochs < trial.epochs {
        run.check_interrupted()?;
        let train = training.epoch().with_context(|| format!("trial {} failed", trial.name))?;
        let test = evaluate(network, &training.theta, &images.test, Loss::CrossEntropy)?;
        let train = Evaluation { loss: train.loss, accuracy: train.accuracy };
        curve.push(EpochRow { epoch: training.epochs, train, test });
        let finished = training.epochs == trial.epochs;
        if finished || last_save.elapsed() >= SAVE_EVERY {
            let notes = to_notes(&curve);
            write_atomically(
                &path,
                &Checkpoint::save(network, &training.theta, &training.optimiser, training.epochs, &notes)?,
            )?;
            last_save = Instant::now();
        }
        let accuracy = test.accuracy.unwrap_or(f64::NAN) * 100.;
        stage.advance(
            images.train.count() as u64,
            format!(
                "{}: epoch {}/{}, test accuracy {accuracy:.2} %",
                trial.name, training.epochs, trial.epochs
            ),
        );
    }
    let theta = training.theta.f_to_device(Device::Cpu)?;
    let folder = run.folder.file("weights");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    write_atomically(&folder.join(format!("{}.safetensors", trial.name)), &to_safetensors(network, &theta)?)?;
    Ok(Trained { theta, curve })
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
    let data_set = run.manifest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).data_set.clone();
    let content = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernels": flatland_network::own_kernels_available(),
        "network_name": network.name(),
        "trial": trial,
        "network": network.parameters().iter().map(|p| format!("{} {:?}", p.name, p.shape)).collect::<Vec<_>>(),
        "data": data_set.map(|data| (data.name, data.checksums, data.preparation)),
        "train": images.train.count(),
        "test": images.test.count(),
        "device": format!("{:?}", run.device.device),
    });
    Ok(sha256_hex(&serde_json::to_vec(&content)?))
}

/// A checkpoint that cannot be read costs its trial's time, not the run.
fn read_checkpoint(
    run: &Run,
    network: &Network,
    trial: &Trial,
    path: &std::path::Path,
) -> Option<(Checkpoint, Optimiser, Vec<EpochRow>)> {
    let read = || -> Result<(Checkpoint, Optimiser, Vec<EpochRow>)> {
        let checkpoint = Checkpoint::load(network, &std::fs::read(path)?)?;
        let optimiser = checkpoint.optimiser(trial.optimiser, run.device.device)?;
        let curve = from_notes(&checkpoint.notes)?;
        anyhow::ensure!(curve.len() == checkpoint.epochs as usize, "its curve has {} epochs", curve.len());
        Ok((checkpoint, optimiser, curve))
    };
    read()
        .inspect_err(|error| {
            run.progress.note(&format!("{} is not usable ({error}): trained again", path.display()));
        })
        .ok()
}

/// Curves as text that keeps every bit, and NaN and infinities, which JSON has no words for.
#[derive(Serialize, Deserialize)]
struct Notes(Vec<(u32, [String; 4])>);

fn to_notes(curve: &[EpochRow]) -> String {
    let text = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:?}"));
    let rows = curve.iter().map(|row| {
        let (train, test) = (row.train, row.test);
        (
            row.epoch,
            [text(Some(train.loss)), text(train.accuracy), text(Some(test.loss)), text(test.accuracy)],
        )
    });
    serde_json::to_string(&Notes(rows.collect())).unwrap_or_default()
}

fn from_notes(notes: &str) -> Result<Vec<EpochRow>> {
    let number = |text: &String| (!text.is_empty()).then(|| text.parse::<f64>()).transpose();
    let Notes(rows) = serde_json::from_str(notes).context("the curve is damaged")?;
    rows.iter()
        .map(|(epoch, [train_loss, train_accuracy, test_loss, test_accuracy])| {
            let evaluation = |loss, accuracy| -> Result<Evaluation> {
                Ok(Evaluation {
                    loss: number(loss)?.context("a loss is missing")?,
                    accuracy: number(accuracy)?,
                })
            };
            let train = evaluation(train_loss, train_accuracy)?;
            Ok(EpochRow { epoch: *epoch, train, test: evaluation(test_loss, test_accuracy)? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_survive_their_notes_bit_for_bit() {
        let row = |epoch, loss| EpochRow {
            epoch,
            train: Evaluation { loss, accuracy: Some(0.1 + 0.2) },
            test: Evaluation { loss: -loss, accuracy: None },
        };
        let curve = [row(1, 1. / 3.), row(2, f64::INFINITY), row(3, 5e-324), row(4, f64::MAX)];
        assert_eq!(from_notes(&to_notes(&curve)).unwrap(), curve);
        let diverged = from_notes(&to_notes(&[row(1, f64::NAN)])).unwrap();
        assert!(diverged[0].train.loss.is_nan());
        for damaged in ["", "{}", "[[1,[\"x\",\"\",\"1\",\"\"]]]", "[[1,[\"\",\"\",\"1\",\"\"]]]"] {
            assert!(from_notes(damaged).is_err(), "{damaged}");
        }
    }
}
