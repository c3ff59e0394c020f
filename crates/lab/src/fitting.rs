//! Networks fitted to a sampled function, many at once: each row of a stack `[M, P]` is a run of its own, from its own seed.
//!
//! Stacks are cut into chunks whose size does not depend on the number of workers (on a GPU it is found by trying, once a run), and a
//! finished chunk is kept for `--resume`.

use crate::parallel::in_parallel;
use crate::progress::Stage;
use crate::run::{Numbers, Run};
use crate::stacks::kept_fastest;
use crate::trial::{describe, stream_of};
use anyhow::{Context, Result, ensure};
use flatland_data::Function;
use flatland_network::graph::{Graph, Recorder};
use flatland_network::{
    Examples, Layer, Loss, Network, NetworkError, Optimiser, OptimiserSettings, Parameter,
    initialise_stacked, loss_and_gradient,
};
use serde::{Deserialize, Serialize};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Where a function is sampled: `points` values of x from `from` on, `step` apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Grid {
    pub from: f64,
    pub step: f64,
    pub points: usize,
}

impl Grid {
    /// Refuses a grid that cannot be sampled.
    ///
    /// # Errors
    /// One sentence, when it has no points, no extent, or surely too many points.
    pub fn check(&self) -> Result<()> {
        let Self { from, step, points } = *self;
        ensure!((2..=1_000_000).contains(&points), "points must lie between 2 and 1,000,000, found {points}");
        ensure!(from.is_finite(), "from must be finite, found {from}");
        ensure!(step > 0. && step.is_finite(), "step must be above 0 and finite, found {step}");
        Ok(())
    }

    /// Samples as inputs and targets `[points, 1]`.
    ///
    /// # Errors
    /// Where the function has no finite value, or the device is full.
    pub fn examples(&self, target: &Function, kind: Kind, device: Device) -> Result<Examples> {
        let (x, y) = target.sample(self.from, self.step, self.points)?;
        let column = |values: ndarray::Array2<f64>| -> Result<Tensor> {
            let values = Tensor::f_from_slice(&values.into_raw_vec_and_offset().0)?;
            Ok(values.f_view([-1, 1])?.f_to_kind(kind)?.f_to_device(device)?)
        };
        Ok(Examples::new(column(x)?, column(y)?)?)
    }
}

/// A dense network of y over x, of these widths.
///
/// # Errors
/// When it does not begin and end with 1, a width is below 1, or a stack of such networks would be no small one.
pub fn network(widths: &[i64], activation: &Layer) -> Result<Network> {
    let fits = widths.len() > 1 && widths.first() == Some(&1) && widths.last() == Some(&1);
    ensure!(fits, "a network from x to y has widths that begin and end with 1, found {widths:?}");
    let network = Network::dense(widths, activation)?;
    let count = network.count();
    ensure!(count <= MOST_PARAMETERS, "widths must give at most {MOST_PARAMETERS} parameters, found {count}");
    Ok(network)
}

/// Refuses what no network can be fitted to, or with.
///
/// # Errors
/// One sentence with the key at fault.
pub fn check(grid: Grid, targets: &[Function], optimiser: &OptimiserSettings, epochs: u32) -> Result<()> {
    grid.check().context("grid")?;
    for target in targets {
        target.sample(grid.from, grid.step, grid.points).context("target")?;
    }
    optimiser.check().context("optimiser")?;
    ensure!(
        (1..=MOST_EPOCHS).contains(&epochs),
        "epochs must lie between 1 and {MOST_EPOCHS}, found {epochs}"
    );
    Ok(())
}

/// When a row is done before its last epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Stop {
    /// Never.
    Never,
    /// The loss is under `below`, and each of its last two changes under `change`.
    Settled {
        /// Of the loss.
        below: f64,
        /// From epoch to epoch.
        change: f64,
    },
    /// The 2-norm of the gradient of the loss, weight decay left out, is under this.
    GradientBelow(f64),
}

/// One network fitted to one function from several seeds, with full batches and the mean squared error.
#[derive(Debug)]
pub struct Fit<'a> {
    /// For messages.
    pub name: String,
    /// What is fitted.
    pub network: &'a Network,
    /// To what.
    pub target: &'a Function,
    /// Where it is sampled.
    pub grid: Grid,
    /// A row each.
    pub seeds: &'a [u64],
    /// Which model of a seed: its own initial weights.
    pub stream: u32,
    /// How θ moves.
    pub optimiser: OptimiserSettings,
    /// Steps, at most.
    pub epochs: u32,
    /// What ends a row earlier.
    pub stop: Stop,
    /// The loss is recorded every so many epochs.
    pub every: u32,
    /// Whether the gradient's norm by layer is recorded too.
    pub gradients: bool,
}

/// What became of one seed.
#[derive(Debug)]
pub struct Fitted {
    /// θ `[P]`, f32, on the CPU.
    pub theta: Tensor,
    /// Steps that led to it.
    pub epochs: u32,
    /// Mean squared error with it.
    pub loss: f64,
    /// 2-norm of the gradient of that error, weight decay left out.
    pub gradient_norm: f64,
    /// What was recorded on the way.
    pub records: Vec<Record>,
}

/// Before a step: epoch 0 is the initial θ.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Steps taken.
    pub epoch: u32,
    /// Mean squared error.
    pub loss: f64,
    /// 2-norm of its gradient with respect to each layer's weights and biases; empty where not asked for.
    pub layers: Vec<f64>,
}

impl Record {
    /// 2-norm of the whole gradient.
    pub fn gradient_norm(&self) -> f64 {
        self.layers.iter().map(|norm| norm * norm).sum::<f64>().sqrt()
    }
}

/// 32 networks of this size, with their gradients and optimisers, take half a gigabyte.
const MOST_PARAMETERS: i64 = 1_000_000;
/// More steps than this are surely a slip.
const MOST_EPOCHS: u32 = 10_000_000;

/// Rows of a chunk on a CPU, at most: a row's time hardly depends on it (docs/benchmarks.md, "How time grows"), and two workers still share the
/// chunks evenly.
const CPU_ROWS: usize = 16;
/// Steps of a trial of how many rows an accelerator takes best.
const TRIED_STEPS: u32 = 20;
/// Epochs before one is recorded for a GPU: then there are two losses to compare with.
const WARM: u32 = 2;
/// Recording takes the time of a few epochs.
const WORTH_RECORDING: u32 = 10;
/// Between two looks at interruption, progress and whether all rows are done.
const PAUSE: u32 = 100;

/// What counts of each row.
#[derive(Debug)]
struct Rows {
    /// θ when it was done, `[M, P]`.
    end: Tensor,
    /// After so many epochs (f64, `[M]`).
    epochs: Tensor,
    /// Whether it is (Boolean, `[M]`).
    done: Tensor,
}

impl Rows {
    /// The same after those that are over `now` were put aside as they stand.
    fn over(&self, now: &Tensor, theta: &Tensor, at: &Tensor) -> Result<Self, NetworkError> {
        Ok(Self {
            end: theta.f_where_self(&now.f_unsqueeze(1)?, &self.end)?,
            epochs: at.f_where_self(now, &self.epochs)?,
            done: self.done.f_logical_or(now)?,
        })
    }
}

/// A recorded epoch, with what it reads and writes.
#[derive(Debug)]
struct Replayed {
    graph: Graph,
    /// Of this epoch, `[M]`, and the squares of its gradient by layer, `[M, L]`.
    loss: Tensor,
    squares: Tensor,
    /// Adam's, `[epochs, 2]` (16 bytes an epoch, on the host and there), and where it reads those of this epoch.
    corrections: Option<Tensor>,
    row: Tensor,
    /// Where it keeps the losses of the last and the last but one epoch, and counts epochs, `[M]` each: to be there as long as it is.
    _kept: [Tensor; 3],
}

impl Replayed {
    /// Replays it, `index` epochs after the one that was recorded.
    fn replay(&self, index: u32) -> Result<()> {
        if let Some(corrections) = &self.corrections {
            self.row.shallow_clone().f_copy_(&corrections.f_get(i64::from(index))?)?;
        }
        Ok(self.graph.replay()?)
    }
}

/// Fits all, chunks side by side, the longest first; returns one [`Fitted`] a seed for each fit, in the order given.
///
/// # Errors
/// When a function has no value on its grid, the device fails, or the user interrupts; finished chunks are kept.
pub fn fit_all(run: &Run, fits: &[Fit]) -> Result<Vec<Vec<Fitted>>> {
    let mut chunks: Vec<(usize, &[u64])> = Vec::new();
    for (index, fit) in fits.iter().enumerate() {
        let on_cpu = run.device.device == Device::Cpu;
        let rows = if on_cpu { CPU_ROWS } else { fit.fastest_rows(run)? };
        let mut pieces = fit.seeds.len().div_ceil(rows).max(1);
        if on_cpu && fits.len() == 1 {
            // Nothing else keeps the other cores busy, of which there are mostly an even number.
            pieces = pieces.next_multiple_of(2);
        }
        let even = fit.seeds.len().div_ceil(pieces).max(1);
        chunks.extend(fit.seeds.chunks(even).map(|seeds| (index, seeds)));
    }
    let steps = |&(index, seeds): &(usize, &[u64])| u64::from(fits[index].epochs) * seeds.len() as u64;
    let stage = run.progress.stage("fitting", chunks.iter().map(steps).sum());
    // A unit costs its weights' products, and going through memory (some three of them). The sort is stable: chunks of a fit stay in
    // order.
    let work = |network: &Network| {
        network.count()
            + 3 * network
                .parameters()
                .iter()
                .filter(|p| p.shape.len() == 1)
                .map(Parameter::count)
                .sum::<i64>()
    };
    let cost = |chunk: &(usize, &[u64])| steps(chunk) * work(fits[chunk.0].network) as u64;
    chunks.sort_by_key(|chunk| std::cmp::Reverse(cost(chunk)));
    let contexts = run.contexts(chunks.len(), || Ok(()))?;
    let fitted = in_parallel(contexts, &chunks, |(), &(index, seeds)| fits[index].chunk(run, &stage, seeds))?;
    let mut all: Vec<Vec<Fitted>> = fits.iter().map(|fit| Vec::with_capacity(fit.seeds.len())).collect();
    for ((index, _), rows) in chunks.iter().zip(fitted) {
        all[*index].extend(rows);
    }
    Ok(all)
}

impl<'a> Fit<'a> {
    /// A network fitted to one function, with nothing recorded between its start and its end and no early stop; its weights
    /// begin in a stream of its own.
    pub fn new(
        network: &'a Network,
        target: &'a Function,
        grid: Grid,
        seeds: &'a [u64],
        optimiser: OptimiserSettings,
        epochs: u32,
    ) -> Self {
        Self {
            name: format!("{} on {target}", network.name()),
            network,
            target,
            grid,
            seeds,
            stream: stream_of(network.name()),
            optimiser,
            epochs,
            stop: Stop::Never,
            every: epochs,
            gradients: false,
        }
    }

    /// On an accelerator, where launches are most of the cost of a small stack: by trying.
    fn fastest_rows(&self, run: &Run) -> Result<usize> {
        let content = serde_json::json!({
            "rows of a chunk": describe(self.network),
            "points": self.grid.points,
            "optimiser": self.optimiser,
            "stop": self.stop,
            "every": self.every,
            "gradients": self.gradients,
            "most": self.seeds.len(),
        });
        let few =
            Fit { name: self.name.clone(), epochs: TRIED_STEPS, every: self.every.min(TRIED_STEPS), ..*self };
        kept_fastest(run, &content, self.seeds.len(), |rows| {
            let seeds = &self.seeds[..rows.min(self.seeds.len())];
            // The first time warms up; both end with numbers read from the device.
            few.train(run.device.device, seeds, |_| Ok(()))?;
            let begin = Instant::now();
            few.train(run.device.device, seeds, |_| Ok(()))?;
            Ok(begin.elapsed().as_secs_f64() / seeds.len() as f64)
        })
    }

    fn chunk(&self, run: &Run, stage: &Stage, seeds: &[u64]) -> Result<Vec<Fitted>> {
        let content = serde_json::json!({
            "network": describe(self.network),
            "target": self.target,
            "grid": self.grid,
            "seeds": seeds,
            "stream": self.stream,
            "optimiser": self.optimiser,
            "epochs": self.epochs,
            "stop": self.stop,
            "every": self.every,
            "gradients": self.gradients,
        });
        let (count, mut shown) = (seeds.len() as u64, 0);
        let train = || {
            self.train(run.device.device, seeds, |epochs| {
                run.check_interrupted()?;
                stage.advance(u64::from(epochs - shown) * count, format!("{}: epoch {epochs}", self.name));
                shown = epochs;
                Ok(())
            })
        };
        let numbers = run.kept(&content, train)?;
        stage.skip(u64::from(self.epochs - shown) * count);
        self.unpack(&numbers, seeds.len())
    }

    /// The recorded epochs.
    fn recorded(&self) -> Vec<u32> {
        (0..=self.epochs).step_by(self.every as usize).collect()
    }

    /// The loop. A row that is done goes on moving, but what counts is its θ at that moment, which is put aside: no row waits
    /// for the host, and none touches another. On a GPU all epochs but the first and the last are replays of one.
    fn train(
        &self,
        device: Device,
        seeds: &[u64],
        mut pause: impl FnMut(u32) -> Result<()>,
    ) -> Result<Numbers> {
        let recorder = (self.epochs >= WORTH_RECORDING).then(|| Recorder::new(device)).flatten();
        let examples = self.grid.examples(self.target, Kind::Float, device)?;
        let (x, targets) = (examples.inputs()?, examples.targets());
        let models: Vec<(u64, u32)> = seeds.iter().map(|&seed| (seed, self.stream)).collect();
        let mut theta = initialise_stacked(self.network, &models, Kind::Float, device)?;
        let mut optimiser = Optimiser::new(self.optimiser)?;
        let (count, recorded) = (seeds.len() as i64, self.recorded().len() as i64);
        let layers = layer_of_parameter(self.network, device)?;
        let losses = Tensor::f_zeros([recorded, count], (Kind::Float, device))?;
        let kept_layers = if self.gradients { recorded } else { 0 };
        let squares = Tensor::f_zeros([kept_layers, count, layers.size()[1]], (Kind::Float, device))?;

        let mut rows = Rows {
            end: theta.f_detach_copy()?,
            epochs: Tensor::f_full([count], f64::from(self.epochs), (Kind::Double, device))?,
            done: Tensor::f_zeros([count], (Kind::Bool, device))?,
        };
        let mut before: [Option<Tensor>; 2] = [None, None];
        let mut replayed: Option<Replayed> = None;
        for epoch in 0..=self.epochs {
            if epoch == WARM
                && let Some(recorder) = &recorder
            {
                let work = (&x, targets, &layers);
                replayed = self.record(recorder, work, &mut theta, &mut optimiser, &mut rows, &before)?;
            }
            let replay = replayed.as_ref().filter(|_| epoch < self.epochs);
            let (loss, gradient, of_layers) = if let Some(replayed) = replay {
                replayed.replay(epoch - WARM)?;
                optimiser.count(1);
                let [loss, squares] = [&replayed.loss, &replayed.squares].map(Tensor::shallow_clone);
                (loss, None, Some(squares))
            } else {
                let batch = loss_and_gradient(self.network, &theta, &x, targets, Loss::MeanSquaredError)?;
                (batch.loss, Some(batch.gradient), None)
            };
            if epoch % self.every == 0 {
                let row = i64::from(epoch / self.every);
                losses.f_select(0, row)?.f_copy_(&loss)?;
                if self.gradients {
                    let of_layers = match (&of_layers, &gradient) {
                        (None, Some(gradient)) => gradient.f_square()?.f_matmul(&layers)?,
                        (of_layers, _) => of_layers.as_ref().context("no gradients")?.shallow_clone(),
                    };
                    squares.f_select(0, row)?.f_copy_(&of_layers)?;
                }
            }
            if let Some(gradient) = &gradient {
                let over = if epoch == self.epochs {
                    Some(rows.done.f_logical_not()?)
                } else {
                    let stops = self.stops(&loss, gradient, &before)?;
                    stops.map(|now| now.f_logical_and(&rows.done.f_logical_not()?)).transpose()?
                };
                if let Some(now) = over {
                    let at = Tensor::f_full([count], f64::from(epoch), (Kind::Double, device))?;
                    rows = rows.over(&now, &theta, &at)?;
                }
                before = [Some(loss), before[0].take()];
            }
            if epoch % PAUSE == PAUSE - 1 {
                pause((epoch + 1).min(self.epochs))?;
                if !matches!(self.stop, Stop::Never) && rows.done.f_all()?.f_int64_value(&[])? != 0 {
                    break;
                }
            }
            if epoch < self.epochs
                && let Some(gradient) = gradient
            {
                optimiser.step(&mut theta, gradient)?;
            }
        }
        let Rows { end, epochs, .. } = rows;
        let last = loss_and_gradient(self.network, &end, &x, targets, Loss::MeanSquaredError)?;
        let norms =
            last.gradient.f_to_kind(Kind::Double)?.f_norm_scalaropt_dim(2., [1i64].as_slice(), false)?;
        let all = [
            ("theta", end),
            ("epochs", epochs),
            ("loss", last.loss.f_to_kind(Kind::Double)?),
            ("gradient_norm", norms),
            ("losses", losses),
            ("squares", squares),
        ];
        Ok(all.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.to_device(Device::Cpu))).collect())
    }

    /// An epoch as the loop has it, once the optimiser has its state and two losses are there. All that it keeps is made before it is
    /// recorded: memory that is asked for between replays may be theirs.
    fn record(
        &self,
        recorder: &Recorder,
        (x, targets, layers): (&Tensor, &Tensor, &Tensor),
        theta: &mut Tensor,
        optimiser: &mut Optimiser,
        rows: &mut Rows,
        before: &[Option<Tensor>; 2],
    ) -> Result<Option<Replayed>> {
        let [Some(last), Some(earlier)] = before else { return Ok(None) };
        let device = theta.device();
        let count = theta.size()[0];
        let (mut last, mut earlier) = (last.f_detach_copy()?, earlier.f_detach_copy()?);
        let mut loss = last.f_detach_copy()?;
        let mut squares = Tensor::f_zeros([count, layers.size()[1]], (Kind::Float, device))?;
        let mut clock = Tensor::f_full([count], f64::from(WARM), (Kind::Double, device))?;
        let corrections = optimiser.corrections(u64::from(self.epochs - WARM), theta)?;
        let row = Tensor::f_zeros([2], (Kind::Double, device))?;
        let graph = recorder.record(|| {
            let batch = loss_and_gradient(self.network, theta, x, targets, Loss::MeanSquaredError)?;
            loss.f_copy_(&batch.loss)?;
            if self.gradients {
                squares.f_copy_(&batch.gradient.f_square()?.f_matmul(layers)?)?;
            }
            let before = [&last, &earlier].map(|loss| Some(loss.shallow_clone()));
            let stops = self.stops(&batch.loss, &batch.gradient, &before);
            if let Some(now) = stops.map_err(|error| NetworkError::Setting(format!("{error:#}")))? {
                let now = now.f_logical_and(&rows.done.f_logical_not()?)?;
                let new = rows.over(&now, theta, &clock)?;
                rows.end.f_copy_(&new.end)?;
                rows.epochs.f_copy_(&new.epochs)?;
                rows.done.f_copy_(&new.done)?;
            }
            earlier.f_copy_(&last)?;
            last.f_copy_(&batch.loss)?;
            let _ = clock.f_add_scalar_(1.)?;
            optimiser.recorded_step(theta, batch.gradient, &row)
        });
        Ok(graph.map(|graph| Replayed {
            graph,
            loss,
            squares,
            corrections,
            row,
            _kept: [last, earlier, clock],
        }))
    }

    /// Which rows are done, a Boolean `[M]`; `before` holds the losses of the last and the last but one epoch.
    fn stops(
        &self,
        loss: &Tensor,
        gradient: &Tensor,
        before: &[Option<Tensor>; 2],
    ) -> Result<Option<Tensor>> {
        Ok(match self.stop {
            Stop::Never => None,
            Stop::GradientBelow(bound) => {
                Some(gradient.f_norm_scalaropt_dim(2., [1i64].as_slice(), false)?.f_lt(bound)?)
            }
            Stop::Settled { below, change } => Some(match before {
                [Some(last), Some(earlier)] => {
                    let small =
                        |a: &Tensor, b: &Tensor| -> Result<Tensor> { Ok(a.f_sub(b)?.f_abs()?.f_lt(change)?) };
                    let changes = small(loss, last)?.f_logical_and(&small(last, earlier)?)?;
                    loss.f_lt(below)?.f_logical_and(&changes)?
                }
                _ => loss.f_zeros_like()?.f_to_kind(Kind::Bool)?,
            }),
        })
    }

    fn unpack(&self, numbers: &Numbers, count: usize) -> Result<Vec<Fitted>> {
        let find = |name: &str| {
            numbers.get(name).with_context(|| format!("the kept numbers of {} lack {name}", self.name))
        };
        let values = |name: &str| -> Result<Vec<f64>> {
            let flat = find(name)?.f_to_kind(Kind::Double)?.f_contiguous()?.f_view([-1])?;
            Ok(Vec::<f64>::try_from(&flat)?)
        };
        let (epochs, loss, norms) = (values("epochs")?, values("loss")?, values("gradient_norm")?);
        let (losses, squares, theta) = (values("losses")?, values("squares")?, find("theta")?);
        let (recorded, layers) = (self.recorded(), self.network.parameters().len() / 2);
        let fits = epochs.len() == count && losses.len() == count * recorded.len();
        ensure!(fits, "the kept numbers of {} are those of another run", self.name);
        (0..count)
            .map(|row| {
                let records =
                    recorded.iter().enumerate().filter(|(_, epoch)| f64::from(**epoch) <= epochs[row]);
                let record = |(index, &epoch): (usize, &u32)| {
                    let at = index * count + row;
                    let of_layers = squares.get(at * layers..(at + 1) * layers).unwrap_or(&[]);
                    Record { epoch, loss: losses[at], layers: of_layers.iter().map(|s| s.sqrt()).collect() }
                };
                Ok(Fitted {
                    theta: theta.f_get(row as i64)?,
                    epochs: epochs[row] as u32,
                    loss: loss[row],
                    gradient_norm: norms[row],
                    records: records.map(record).collect(),
                })
            })
            .collect()
    }
}

/// `[P, L]`: 1 where a parameter belongs to a layer. Squares of a gradient times this are summed by layer.
fn layer_of_parameter(network: &Network, device: Device) -> Result<Tensor> {
    let layers = network.parameters().len() as i64 / 2;
    let of = Tensor::f_zeros([network.count(), layers], (Kind::Float, Device::Cpu))?;
    for (index, parameter) in network.parameters().iter().enumerate() {
        // Each layer has a weight and a bias.
        let mut part = of.f_narrow(0, parameter.offset, parameter.count())?.f_select(1, index as i64 / 2)?;
        let _ = part.f_fill_(1.)?;
    }
    Ok(of.f_to_device(device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_network::device::{DeviceChoice, choose};
    use flatland_network::evaluate;

    const SEEDS: [u64; 3] = [4, 5, 6];

    fn fit<'a>(network: &'a Network, target: &'a Function, epochs: u32, stop: Stop) -> Fit<'a> {
        Fit {
            name: "test".into(),
            network,
            target,
            grid: Grid { from: -1., step: 0.1, points: 21 },
            seeds: &SEEDS,
            stream: 7,
            optimiser: OptimiserSettings::Adam { lr: 1e-2, weight_decay: 1e-3 },
            epochs,
            stop,
            every: 1,
            gradients: true,
        }
    }

    fn fitted(fit: &Fit, seeds: &[u64]) -> Vec<Fitted> {
        fit.unpack(&fit.train(Device::Cpu, seeds, |_| Ok(())).unwrap(), seeds.len()).unwrap()
    }

    fn small() -> Network {
        network(&[1, 6, 5, 1], &Layer::LeakyRelu).unwrap()
    }

    #[test]
    fn a_pause_in_the_last_epoch_tells_no_more_epochs_than_there_are() {
        let (network, target) = (small(), "x".parse().unwrap());
        let mut told = Vec::new();
        let all = fit(&network, &target, 99, Stop::Never);
        all.train(Device::Cpu, &SEEDS, |epochs| {
            told.push(epochs);
            Ok(())
        })
        .unwrap();
        assert_eq!(told, [99]);
    }

    #[test]
    fn a_row_of_a_stack_is_the_run_of_its_seed() {
        let (network, target) = (small(), "sin(3*x)".parse().unwrap());
        let fit = fit(&network, &target, 150, Stop::Never);
        let together = fitted(&fit, &SEEDS);
        for (seed, row) in SEEDS.iter().zip(&together) {
            let alone = fitted(&fit, &[*seed]).remove(0);
            assert_eq!((row.epochs, row.records.len()), (150, 151));
            for (a, b) in row.records.iter().zip(&alone.records) {
                assert!((a.loss - b.loss).abs() < 1e-4 * b.loss, "{} {}", a.loss, b.loss);
            }
            assert!(row.loss < row.records[0].loss);
            // Two ways to the same number.
            assert!((row.loss - row.records[150].loss).abs() < 1e-9);
            assert!((row.gradient_norm - row.records[150].gradient_norm()).abs() < 1e-5 * row.gradient_norm);
            let examples = fit.grid.examples(&target, Kind::Float, Device::Cpu).unwrap();
            let evaluated = evaluate(&network, &row.theta, &examples, Loss::MeanSquaredError).unwrap();
            assert!((evaluated.loss - row.loss).abs() < 1e-6);
        }
    }

    /// On an accelerator, where there is one: against the CPU, whose epochs are not recorded.
    #[test]
    fn recorded_epochs_are_those_of_the_cpu() {
        let Ok(chosen) = choose(DeviceChoice::Cuda(0)) else { return };
        let (network, target) = (small(), "sin(3*x)".parse().unwrap());
        let stops = [Stop::Never, Stop::GradientBelow(0.3)];
        for optimiser in [
            OptimiserSettings::Adam { lr: 1e-2, weight_decay: 1e-3 },
            OptimiserSettings::RmsProp { lr: 1e-3, weight_decay: 0. },
        ] {
            for stop in stops {
                let fit = Fit { optimiser, ..fit(&network, &target, 250, stop) };
                let of = |device| {
                    let numbers = fit.train(device, &SEEDS, |_| Ok(())).unwrap();
                    fit.unpack(&numbers, SEEDS.len()).unwrap()
                };
                for (found, expected) in of(chosen.device).iter().zip(of(Device::Cpu)) {
                    assert!(found.epochs.abs_diff(expected.epochs) < 3, "{optimiser:?}, {stop:?}");
                    for (a, b) in found.records.iter().zip(&expected.records) {
                        let close = (a.loss - b.loss).abs() < 1e-3 * b.loss
                            && (a.gradient_norm() - b.gradient_norm()).abs()
                                < 1e-2 * b.gradient_norm() + 1e-4;
                        assert!(close, "{optimiser:?}, {stop:?}: {a:?} {b:?}");
                    }
                }
            }
        }
        assert!(Recorder::new(chosen.device).is_some(), "a recording was refused");
    }

    /// What an accelerator would do.
    #[test]
    fn the_size_of_a_chunk_is_tried_once() {
        let folder = tempfile::tempdir().unwrap();
        let run = crate::trial::tests::run(folder.path());
        let (network, target) = (small(), "x".parse().unwrap());
        let fit = fit(&network, &target, 10, Stop::Never);
        let rows = fit.fastest_rows(&run).unwrap();
        assert!((1..=4).contains(&rows), "{rows}");
        // Timed again, another number could come out.
        assert!((0..20).all(|_| fit.fastest_rows(&run).unwrap() == rows));
    }

    #[test]
    fn layers_norms_are_those_of_their_parts_of_the_gradient() {
        let (network, target) = (small(), "x^2".parse().unwrap());
        let fit = fit(&network, &target, 1, Stop::Never);
        let row = fitted(&fit, &SEEDS).remove(1);
        let examples = fit.grid.examples(&target, Kind::Float, Device::Cpu).unwrap();
        let theta = flatland_network::initialise(&network, 5, 7, Kind::Float, Device::Cpu).unwrap();
        let gradient = loss_and_gradient(
            &network,
            &theta,
            &examples.inputs().unwrap(),
            examples.targets(),
            Loss::MeanSquaredError,
        )
        .unwrap()
        .gradient;
        let mut offset = 0;
        for (layer, size) in [12, 35, 6].into_iter().enumerate() {
            let norm = gradient.narrow(0, offset, size).norm().double_value(&[]);
            assert!((row.records[0].layers[layer] - norm).abs() < 1e-5 * norm);
            offset += size;
        }
    }

    #[test]
    fn a_row_ends_at_the_first_epoch_at_which_its_rule_holds() {
        let (network, target) = (small(), "sin(3*x)".parse().unwrap());
        let free = fitted(&fit(&network, &target, 250, Stop::Never), &SEEDS);
        let first = |holds: &dyn Fn(&[Record]) -> bool, row: &Fitted| {
            (0..250).find(|&epoch| holds(&row.records[..=epoch])).unwrap_or(250) as u32
        };
        // Bounds that some rows reach and some do not.
        let mut norms: Vec<f64> = free
            .iter()
            .map(|row| row.records[..250].iter().map(Record::gradient_norm).fold(f64::INFINITY, f64::min))
            .collect();
        norms.sort_by(f64::total_cmp);
        let bound = f64::midpoint(norms[1], norms[2]);
        let by_norm = fitted(&fit(&network, &target, 250, Stop::GradientBelow(bound)), &SEEDS);
        let (below, change) = (free[0].records[200].loss, 1e-3);
        let settled = fitted(&fit(&network, &target, 250, Stop::Settled { below, change }), &SEEDS);
        for (row, free) in by_norm.iter().zip(&free) {
            assert_eq!(row.epochs, first(&|seen| seen[seen.len() - 1].gradient_norm() < bound, free));
            assert_eq!(row.records, free.records[..=row.epochs as usize]);
        }
        assert_eq!(by_norm.iter().filter(|row| row.epochs < 250).count(), 2);
        for (row, free) in settled.iter().zip(&free) {
            let holds = |seen: &[Record]| {
                let [.., a, b, c] = seen else { return false };
                c.loss < below && (b.loss - c.loss).abs() < change && (a.loss - b.loss).abs() < change
            };
            assert_eq!(row.epochs, first(&holds, free));
            assert!((row.loss - free.records[row.epochs as usize].loss).abs() < 1e-9);
        }
        assert!(settled.iter().any(|row| row.epochs < 250));
    }
}
