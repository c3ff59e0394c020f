//! The training loop, one epoch at a time. What happens between epochs stands in the experiment.

use crate::examples::StackedExamples;
use crate::graph::{Graph, Recorder};
use crate::streams::{Purpose, stream};
use crate::{Examples, Loss, Network, NetworkError, Optimiser, Result, loss_and_gradient};
use rand::seq::SliceRandom;
use tch::{Kind, Tensor};

mod stacked;
pub use stacked::StackedTraining;

/// One model in training.
#[derive(Debug)]
pub struct Training<'a> {
    /// What is trained.
    pub network: &'a Network,
    /// What is minimised.
    pub loss: Loss,
    /// What it is trained on.
    pub examples: &'a Examples,
    /// Examples per step; the last batch of an epoch holds what is left.
    pub batch: i64,
    /// Seed and trial, which choose the order of the examples.
    pub stream: (u64, u32),
    /// θ `[P]`.
    pub theta: Tensor,
    /// Optimiser with its state.
    pub optimiser: Optimiser,
    /// Epochs done.
    pub epochs: u32,
}

/// What an epoch of training showed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Epoch {
    /// Mean over the epoch's examples of the loss that each had when its batch was used, before the step.
    pub loss: f64,
    /// The same for the share classified rightly, 0 to 1.
    pub accuracy: Option<f64>,
}

impl Training<'_> {
    /// Says what cannot be trained, before it is.
    ///
    /// # Errors
    /// [`NetworkError::Setting`] for a batch of 0 or larger than the data set.
    pub fn check_batch(batch: i64, examples: i64) -> Result<()> {
        if (1..=examples).contains(&batch) {
            return Ok(());
        }
        Err(NetworkError::Setting(format!(
            "the batch must lie between 1 and the {examples} training examples, found {batch}"
        )))
    }

    /// One pass over all examples in a fresh order, drawn from the stream of this seed, trial and epoch: an epoch does
    /// not depend on what was drawn before it, so that a resumed run sees the same order. Nothing is read back from the
    /// device before the end.
    ///
    /// # Errors
    /// When the batch, θ or the examples do not fit, or the device fails.
    pub fn epoch(&mut self) -> Result<Epoch> {
        let count = self.examples.count();
        Self::check_batch(self.batch, count)?;
        if self.theta.dim() != 1 {
            let expected = format!("[{}]", self.network.count());
            return Err(NetworkError::Shape { what: "θ", found: self.theta.size(), expected });
        }
        let order = (self.batch < count).then(|| self.order(count)).transpose()?;
        let (total, hits) = pass(
            (self.network, self.loss),
            (self.batch, count),
            &mut self.theta,
            &Source::One { examples: self.examples, order },
            &mut self.optimiser,
        )?;
        self.epochs += 1;
        let count = count as f64;
        let hits = hits.map(|hits| hits.f_int64_value(&[])).transpose()?;
        Ok(Epoch { loss: total.f_double_value(&[])? / count, accuracy: hits.map(|hits| hits as f64 / count) })
    }

    fn order(&self, count: i64) -> Result<Tensor> {
        let order = epoch_order(self.stream, self.epochs, count);
        Ok(Tensor::f_from_slice(&order)?.f_to_device(self.theta.device())?)
    }
}

/// Where a pass takes its batches from.
enum Source<'a> {
    /// A model's examples, and the order `[N]` in which they come; without one, as they lie.
    One { examples: &'a Examples, order: Option<Tensor> },
    /// Those of a stack's models, and where they lie in their orders.
    Many { examples: &'a StackedExamples, places: [Tensor; 2] },
}

impl Source<'_> {
    /// Inputs and targets of so many from a start on.
    fn batch(&self, start: i64, length: i64) -> Result<(Tensor, Tensor)> {
        match self {
            Self::One { examples, order: None } => examples.part(start, length),
            Self::One { examples, order: Some(order) } => examples.chosen(&order.f_narrow(0, start, length)?),
            Self::Many { examples, places } => examples.at(places, start, length),
        }
    }

    /// The same examples in an order of `length` places of its own, for [`Source::fill`]. `None` where there is no order.
    fn window(&self, length: i64) -> Result<Option<Self>> {
        Ok(match self {
            Self::One { order: None, .. } => None,
            Self::One { examples, order: Some(order) } => {
                Some(Self::One { examples, order: Some(order.f_narrow(0, 0, length)?.f_detach_copy()?) })
            }
            Self::Many { examples, places: [inputs, targets] } => {
                let copy = |places: &Tensor| places.f_narrow(1, 0, length)?.f_detach_copy();
                Some(Self::Many { examples, places: [copy(inputs)?, copy(targets)?] })
            }
        })
    }

    /// Puts into a window's order what stands in this one from `start` on.
    fn fill(&self, window: &Self, start: i64) -> Result<()> {
        match (self, window) {
            (Self::One { order: Some(all), .. }, Self::One { order: Some(some), .. }) => {
                some.shallow_clone().f_copy_(&all.f_narrow(0, start, some.size()[0])?)?;
            }
            (Self::Many { places: all, .. }, Self::Many { places: some, .. }) => {
                for (all, some) in all.iter().zip(some) {
                    some.shallow_clone().f_copy_(&all.f_narrow(1, start, some.size()[1])?)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// What moves θ, one model's or a stack's.
trait Mover {
    fn step(&mut self, theta: &mut Tensor, gradient: Tensor) -> Result<()>;
    /// See [`Optimiser::recorded_step`], [`Optimiser::corrections`] and [`Optimiser::count`].
    fn recorded_step(&mut self, theta: &mut Tensor, gradient: Tensor, row: &Tensor) -> Result<()>;
    fn corrections(&self, count: u64, theta: &Tensor) -> Result<Option<Tensor>>;
    fn count(&mut self, steps: u64);
    /// Steps done.
    fn steps(&self) -> u64;
}

impl Mover for Optimiser {
    fn step(&mut self, theta: &mut Tensor, gradient: Tensor) -> Result<()> {
        Self::step(self, theta, gradient)
    }

    fn recorded_step(&mut self, theta: &mut Tensor, gradient: Tensor, row: &Tensor) -> Result<()> {
        Self::recorded_step(self, theta, gradient, row)
    }

    fn corrections(&self, count: u64, theta: &Tensor) -> Result<Option<Tensor>> {
        Self::corrections(self, count, theta)
    }

    fn count(&mut self, steps: u64) {
        Self::count(self, steps);
    }

    fn steps(&self) -> u64 {
        Self::steps(self)
    }
}

/// Steps that a thread does before it records the first of a kind: libraries set themselves up in them.
const WARM: i64 = 2;
/// Recording takes the time of a few steps; fewer than this are not worth it.
const WORTH_RECORDING: i64 = 10;

/// The loop: batches of `batch` examples until `count` are done, the last one holds what is left. Returns the summed losses (f64) and
/// hits, each `[]` or `[M]`, still on the device. On a GPU all whole batches but the first few are replays of one recorded step.
fn pass<M: Mover>(
    (network, loss): (&Network, Loss),
    (batch, count): (i64, i64),
    theta: &mut Tensor,
    source: &Source,
    mover: &mut M,
) -> Result<(Tensor, Option<Tensor>)> {
    let size = theta.size();
    let (models, device) = (&size[..size.len() - 1], theta.device());
    let whole = count / batch;
    let recorder = (whole >= WORTH_RECORDING).then(|| Recorder::new(device)).flatten();
    let mut total = Tensor::f_zeros(models, (Kind::Double, device))?;
    let mut hits = Tensor::f_zeros(models, (Kind::Int64, device))?;
    let mut classifies = false;
    let mut step = |examples: (Tensor, Tensor), theta: &mut Tensor, mover: &mut M, row: Option<&Tensor>| {
        let (x, targets) = examples;
        let length = (if models.is_empty() { x.size()[0] } else { targets.size()[1] }) as f64;
        let batch = loss_and_gradient(network, theta, &x, &targets, loss)?;
        match row {
            None => mover.step(theta, batch.gradient)?,
            Some(row) => mover.recorded_step(theta, batch.gradient, row)?,
        }
        let _ = total.f_add_(&batch.loss.f_to_kind(Kind::Double)?.f_mul_scalar_(length)?)?;
        if let Some(correct) = batch.correct {
            classifies = true;
            let _ = hits.f_add_(&correct)?;
        }
        Ok::<_, NetworkError>(())
    };

    let mut start = 0;
    // What it reads and writes may go before it has done so: memory of its stream is given out in the stream's order.
    let mut graph: Option<Graph> = None;
    if let Some(recorder) = &recorder {
        // A first step makes the optimiser's state.
        let warm = recorder.warm(&format!("{} {size:?} {batch}", network.name())) && mover.steps() > 0;
        for _ in 0..if warm { 0 } else { WARM } {
            step(source.batch(start, batch)?, theta, mover, None)?;
            start += batch;
        }
        if let Some(window) = source.window(batch)? {
            let steps = whole - start / batch;
            let rows = mover.corrections(steps as u64, theta)?;
            let mut row = Tensor::f_zeros([2], (Kind::Double, device))?;
            graph = recorder.record(|| step(window.batch(0, batch)?, theta, mover, Some(&row)));
            if let Some(graph) = &graph {
                for index in 0..steps {
                    source.fill(&window, start)?;
                    if let Some(rows) = &rows {
                        row.f_copy_(&rows.f_get(index)?)?;
                    }
                    graph.replay()?;
                    start += batch;
                }
                mover.count(steps as u64);
            }
        }
    }
    while start < count {
        let length = batch.min(count - start);
        step(source.batch(start, length)?, theta, mover, None)?;
        start += length;
    }
    drop(recorder);
    drop(graph);
    Ok((total, classifies.then_some(hits)))
}

/// The order in which the `epoch`-th epoch, from 0, of the training with this seed and trial takes `count` examples. An epoch
/// of a single batch takes them as they lie.
pub fn epoch_order(of: (u64, u32), epoch: u32, count: i64) -> Vec<i64> {
    let (seed, trial) = of;
    let mut order: Vec<i64> = (0..count).collect();
    order.shuffle(&mut stream(seed, trial, epoch, Purpose::Order));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DeviceChoice, choose};
    use crate::{OptimiserSettings, Precision, initialise, set_deterministic, set_precision};
    use tch::Device;

    fn examples(network: &Network, count: i64, device: Device) -> Examples {
        let size = [&[count], network.input()].concat();
        let x = (Tensor::arange(size.iter().product::<i64>(), (Kind::Float, Device::Cpu)) * 0.7).sin();
        let targets = Tensor::arange(count, (Kind::Int64, Device::Cpu)).remainder(network.outputs());
        Examples::new(x.view(size.as_slice()).to_device(device), targets.to_device(device)).unwrap()
    }

    #[test]
    fn a_window_shows_a_part_of_the_order() {
        let network = Network::dense(&[3, 2], &crate::Layer::Relu).unwrap();
        let examples = examples(&network, 12, Device::Cpu);
        let order = Tensor::from_slice(&[3i64, 1, 4, 5, 9, 2, 6, 8, 7, 0, 11, 10]);
        let one = Source::One { examples: &examples, order: Some(order.shallow_clone()) };
        let stacked = StackedExamples::new(&[&examples, &examples]).unwrap();
        let orders = Tensor::stack(&[&order, &order.flip([0])], 0);
        let many = Source::Many { examples: &stacked, places: stacked.places(&orders).unwrap() };
        for source in [one, many] {
            let window = source.window(4).unwrap().unwrap();
            for start in [4, 0, 8] {
                source.fill(&window, start).unwrap();
                assert_eq!(window.batch(0, 4).unwrap(), source.batch(start, 4).unwrap());
            }
        }
        assert!(Source::One { examples: &examples, order: None }.window(4).unwrap().is_none());
    }

    /// On a GPU, where there is one: an epoch of recorded steps against the steps one by one. Adam in f64: it divides by small gradients, and so
    /// makes of f32's rounding 1e-4 (seen on an H100).
    #[test]
    fn recorded_epochs_equal_others() {
        let Ok(chosen) = choose(DeviceChoice::Cuda(0)) else { return };
        set_precision(Precision::F32).unwrap();
        set_deterministic(true).unwrap();
        let network = Network::lenet();
        let (count, batch) = (1250, 50);
        let all = examples(&network, count, chosen.device);
        let sgd = OptimiserSettings::Sgd { lr: 0.01, momentum: 0.9, nesterov: true, weight_decay: 1e-3 };
        let adam = OptimiserSettings::Adam { lr: 1e-3, weight_decay: 1e-3 };
        for (settings, kind) in [(sgd, Kind::Float), (adam, Kind::Double)] {
            let x = all.inputs().unwrap().to_kind(kind);
            let examples = Examples::new(x, all.targets().shallow_clone()).unwrap();
            let model = |seed| Training {
                network: &network,
                loss: Loss::CrossEntropy,
                examples: &examples,
                batch,
                stream: (seed, 0),
                theta: initialise(&network, seed, 0, kind, chosen.device).unwrap(),
                optimiser: Optimiser::new(settings).unwrap(),
                epochs: 0,
            };
            assert!(Recorder::new(chosen.device).is_some());
            let (mut recorded, mut plain) = (model(0), model(0));
            let mut stack = StackedTraining::new(&[model(0), model(1)]).unwrap();
            for epoch in 0..2 {
                let found = recorded.epoch().unwrap();
                let mut losses = 0.;
                let order = Tensor::from_slice(&epoch_order((0, 0), epoch, count)).to_device(chosen.device);
                for start in (0..count).step_by(batch as usize) {
                    let (x, targets) = examples.chosen(&order.narrow(0, start, batch)).unwrap();
                    let step = loss_and_gradient(&network, &plain.theta, &x, &targets, plain.loss).unwrap();
                    plain.optimiser.step(&mut plain.theta, step.gradient).unwrap();
                    losses += step.loss.double_value(&[]) * batch as f64;
                }
                let off = (&recorded.theta - &plain.theta).abs().max().double_value(&[]);
                assert!(off < 1e-5, "{settings:?}: {off:.1e}");
                assert!((found.loss - losses / count as f64).abs() < 1e-5, "{} {losses}", found.loss);
                let rows = stack.epoch(&[true, true]).unwrap();
                let off = (&stack.row(0).unwrap().theta - &plain.theta).abs().max().double_value(&[]);
                // Other algorithms, for groups of convolutions.
                assert!(off < 1e-2 && rows[1].is_some(), "{settings:?}, stacked: {off:.1e}");
            }
            assert_eq!(recorded.optimiser.steps(), plain.optimiser.steps());
            assert!(Recorder::new(chosen.device).is_some(), "a recording was refused");
        }
    }
}
