//! Which trials train side by side as one θ `[M, P]`, and how many: as many as make the time of a model fall.

use crate::images::Images;
use crate::run::{Numbers, Run};
use crate::trial::{Trial, describe};
use anyhow::{Context, Result};
use flatland_network::{Loss, Network, Optimiser, StackedTraining, Training, initialise};
use std::time::Instant;
use tch::{Kind, Tensor};

/// Shares out trials to stacks. `rows` says of trials that are alike how many train fastest side by side; stacks of one kind are
/// about equally large.
pub fn stacks(
    images: &[Images],
    trials: &[Trial],
    rows: impl Fn(&[usize]) -> Result<usize>,
) -> Result<Vec<Vec<usize>>> {
    let mut kinds: Vec<Vec<usize>> = Vec::new();
    for (index, trial) in trials.iter().enumerate() {
        let mut place = None;
        for (kind, members) in kinds.iter().enumerate() {
            let other = &trials[members[0]];
            let [mine, others] = [trial, other].map(|trial| &images[trial.images].train);
            if alike(trial, other) && mine.stacks_with(others)? {
                place = Some(kind);
                break;
            }
        }
        match place {
            Some(kind) => kinds[kind].push(index),
            None => kinds.push(vec![index]),
        }
    }
    let mut stacks = Vec::new();
    for members in kinds {
        let most = if members.len() == 1 { 1 } else { rows(&members)?.max(1) };
        let even = members.len().div_ceil(members.len().div_ceil(most));
        stacks.extend(members.chunks(even).map(<[usize]>::to_vec));
    }
    Ok(stacks)
}

/// Whether the two differ only in what each row of a stack has for itself.
fn alike(trial: &Trial, other: &Trial) -> bool {
    let shared = |trial: &Trial| (trial.network, trial.batch, trial.epochs, trial.snapshots);
    shared(trial) == shared(other) && trial.optimiser.stacks_with(&other.optimiser)
}

/// With how many models side by side, of `most` that there are, one takes the least time on this device: timed once and kept, so that
/// a resumed run forms the same stacks.
pub fn fastest_rows(
    run: &Run,
    network: &Network,
    images: &Images,
    trial: &Trial,
    most: usize,
) -> Result<usize> {
    let content = serde_json::json!({
        "rows of a stack": describe(network),
        "examples": images.train.count(),
        "batch": trial.batch,
        "optimiser": trial.optimiser,
        "most": most,
    });
    let rows = kept_fastest(run, &content, most, |rows| seconds_a_model(network, images, trial, rows))?;
    let how =
        if rows > 1 { format!("up to {rows} models side by side") } else { "one model at a time".into() };
    run.progress.note(&format!("{}: {how}", network.name()));
    Ok(rows)
}

/// [`fastest`], or what an earlier process of this run found to be so for the same `content`.
pub fn kept_fastest(
    run: &Run,
    content: &serde_json::Value,
    most: usize,
    mut seconds: impl FnMut(usize) -> Result<f64>,
) -> Result<usize> {
    let kept = run.kept(content, || {
        let rows = fastest(most, |rows| {
            run.check_interrupted()?;
            seconds(rows)
        })?;
        Ok(Numbers::from([(ROWS.to_owned(), Tensor::f_from_slice(&[rows as f64])?)]))
    })?;
    Ok(kept.get(ROWS).context("the kept size of the stacks is missing")?.f_double_value(&[0])? as usize)
}

/// The name of the kept number.
const ROWS: &str = "rows";

/// More rows are worth their memory while each doubling brings a model's time under this share of what it was.
const FALL: f64 = 0.9;

/// Doubles the rows until the seconds that one model takes fall no more, the device is full, or there are no more models.
fn fastest(most: usize, mut seconds: impl FnMut(usize) -> Result<f64>) -> Result<usize> {
    let (mut rows, mut best) = (1, seconds(1)?);
    while rows < most {
        let next = (2 * rows).min(most);
        let found = match seconds(next) {
            Err(error) if format!("{error:#}").contains("out of memory") => break,
            found => found?,
        };
        if found > FALL * best {
            break;
        }
        (rows, best) = (next, found);
    }
    Ok(rows)
}

/// Steps that are timed together: enough for a GPU's to be recorded, as they are in training.
const STEPS: i64 = 24;
/// So many times, after a first that the device warms up with; the fastest counts.
const TIMES: usize = 3;

/// A model's share of the time of [`STEPS`] steps, on the first of the very examples that it will be trained on.
fn seconds_a_model(network: &Network, images: &Images, trial: &Trial, rows: usize) -> Result<f64> {
    let examples = images.train.first(images.train.count().min(STEPS * trial.batch))?;
    let model = |row: usize| -> Result<Training> {
        let stream = (trial.seed, row as u32);
        Ok(Training {
            network,
            loss: Loss::CrossEntropy,
            examples: &examples,
            batch: trial.batch,
            stream,
            theta: initialise(network, stream.0, stream.1, Kind::Float, examples.device())?,
            optimiser: Optimiser::new(trial.optimiser)?,
            epochs: 0,
        })
    };
    if rows == 1 {
        let mut alone = model(0)?;
        return shortest(|| alone.epoch().map(drop).map_err(Into::into));
    }
    let models = (0..rows).map(model).collect::<Result<Vec<_>>>()?;
    let mut stack = StackedTraining::new(&models)?;
    drop(models);
    let wanted = vec![true; rows];
    Ok(shortest(|| stack.epoch(&wanted).map(drop).map_err(Into::into))? / rows as f64)
}

/// An epoch ends with reading its loss, so that all of its work is in its time.
fn shortest(mut epoch: impl FnMut() -> Result<()>) -> Result<f64> {
    epoch()?;
    let mut shortest = f64::INFINITY;
    for _ in 0..TIMES {
        let begin = Instant::now();
        epoch()?;
        shortest = shortest.min(begin.elapsed().as_secs_f64());
    }
    Ok(shortest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::tests::{images, trial};
    use anyhow::anyhow;
    use flatland_network::OptimiserSettings;

    #[test]
    fn trials_that_differ_only_in_what_a_row_has_for_itself_share_a_stack() {
        let (all, fewer) = (images(30, 0), images(20, 0));
        let relabelled = all.relabelled(&[3; 30], "all 3".into()).unwrap();
        let images = [all, relabelled, fewer];
        let adam = OptimiserSettings::Adam { lr: 0.1, weight_decay: 0. };
        let trials = [
            trial(0, 0),
            trial(1, 0),
            Trial { stop_at: Some(0.9), ..trial(0, 1) },
            Trial { images: 2, ..trial(0, 0) },
            Trial { images: 1, ..trial(0, 0) },
            Trial { optimiser: adam, ..trial(0, 0) },
            Trial { batch: 3, ..trial(0, 0) },
            trial(2, 0),
            Trial { epochs: 9, ..trial(0, 0) },
            Trial { snapshots: true, ..trial(0, 0) },
            Trial { network: 1, ..trial(0, 0) },
        ];
        let others: [&[usize]; 6] = [&[3], &[5], &[6], &[8], &[9], &[10]];
        for (rows, first) in [
            (1, vec![&[0][..], &[1], &[2], &[4], &[7]]),
            (3, vec![&[0, 1, 2], &[4, 7]]),
            (4, vec![&[0, 1, 2], &[4, 7]]),
            (8, vec![&[0, 1, 2, 4, 7]]),
        ] {
            let found = stacks(&images, &trials, |alike| {
                assert_eq!(alike, [0, 1, 2, 4, 7], "nothing to ask of one that is alone");
                Ok(rows)
            });
            assert_eq!(found.unwrap(), [&first, &others[..]].concat());
        }
    }

    #[test]
    fn rows_are_doubled_while_a_models_time_falls() {
        let full = || Err(anyhow!("CUDA out of memory. Tried to allocate 2.00 GiB").context("the stack"));
        // A step costs a launch whatever the rows, and its share of computing.
        let seconds = |compute: f64| move |rows: usize| Ok(1. / rows as f64 + compute);
        assert_eq!(fastest(1000, seconds(0.)).unwrap(), 1000);
        // 0.131 with 32 rows, 0.116 with 64, 0.108 with 128.
        assert_eq!(fastest(1000, seconds(0.1)).unwrap(), 64);
        assert_eq!(fastest(5, seconds(0.1)).unwrap(), 5);
        assert_eq!(fastest(5, seconds(100.)).unwrap(), 1);
        let fits = |most| move |rows| if rows > most { full() } else { seconds(0.)(rows) };
        assert_eq!(fastest(1000, fits(20)).unwrap(), 16);
        assert!(fastest(1000, fits(0)).is_err(), "not even one fits");
        let broken = |rows| {
            if rows > 2 { Err(anyhow!("CUDA error: unspecified launch failure")) } else { seconds(0.)(rows) }
        };
        assert!(fastest(1000, broken).is_err());
    }

    #[test]
    fn rows_are_measured_once_a_run() {
        tch::set_num_threads(1);
        let folder = tempfile::tempdir().unwrap();
        let run = crate::trial::tests::run(folder.path());
        let (network, images) = (crate::trial::tests::networks().remove(0), images(30, 0));
        let measured = fastest_rows(&run, &network, &images, &trial(0, 0), 2).unwrap();
        assert!((1..=2).contains(&measured));
        let kept: Vec<_> = std::fs::read_dir(run.folder.path().join("trials")).unwrap().collect();
        assert_eq!(kept.len(), 1);
        assert_eq!(fastest_rows(&run, &network, &images, &trial(1, 0), 2).unwrap(), measured);
        assert_eq!(std::fs::read_dir(run.folder.path().join("trials")).unwrap().count(), 1);
    }
}
