//! Several models in training side by side, as one θ `[M, P]`: on an accelerator a launch costs the same for one as for many.

use super::{Epoch, Mover, Source, Training, epoch_order, pass};
use crate::examples::StackedExamples;
use crate::optimiser::StackedOptimiser;
use crate::{Examples, Loss, Network, NetworkError, Result};
use tch::Tensor;

/// Models that differ in their initial weights, order of examples, examples of one shape and count, and hyperparameters of one
/// optimiser. No row touches another.
#[derive(Debug)]
pub struct StackedTraining<'a> {
    network: &'a Network,
    loss: Loss,
    batch: i64,
    examples: StackedExamples,
    rows: Vec<Row<'a>>,
    /// `[M, P]`.
    theta: Tensor,
    optimiser: StackedOptimiser,
}

/// What a row has for itself beside its numbers.
#[derive(Debug)]
struct Row<'a> {
    examples: &'a Examples,
    stream: (u64, u32),
    epochs: u32,
    steps: u64,
}

/// A stack's optimiser with the steps that the rows in motion have behind them.
struct Moved<'a> {
    optimiser: &'a mut StackedOptimiser,
    steps: u64,
}

impl Mover for Moved<'_> {
    fn step(&mut self, theta: &mut Tensor, gradient: Tensor) -> Result<()> {
        self.steps += 1;
        self.optimiser.step(theta, gradient, self.steps)
    }

    fn recorded_step(&mut self, theta: &mut Tensor, gradient: Tensor, row: &Tensor) -> Result<()> {
        self.optimiser.recorded_step(theta, gradient, row)
    }

    fn corrections(&self, count: u64, theta: &Tensor) -> Result<Option<Tensor>> {
        self.optimiser.corrections(self.steps, count, theta)
    }

    fn count(&mut self, steps: u64) {
        self.steps += steps;
    }

    fn steps(&self) -> u64 {
        self.steps
    }
}

impl<'a> StackedTraining<'a> {
    /// Goes on where these stand.
    ///
    /// # Errors
    /// [`NetworkError::Setting`] when there are none, or they differ in network, loss, batch, shape or count of the examples or
    /// kind of optimiser; an error of libtorch when the device is full.
    pub fn new(models: &[Training<'a>]) -> Result<Self> {
        let refuse = |reason: &str| NetworkError::Setting(reason.into());
        let first = models.first().ok_or_else(|| refuse("a stack of no models"))?;
        let (network, loss, batch) = (first.network, first.loss, first.batch);
        if models.iter().any(|model| model.network != network || (model.loss, model.batch) != (loss, batch)) {
            return Err(refuse("the models of a stack need one network, one loss and one size of batch"));
        }
        let examples: Vec<&Examples> = models.iter().map(|model| model.examples).collect();
        let theta = Tensor::f_stack(&models.iter().map(|model| &model.theta).collect::<Vec<_>>(), 0)?;
        network.check_theta(&theta)?;
        let optimisers: Vec<_> = models.iter().map(|model| &model.optimiser).collect();
        let row = |model: &Training<'a>| Row {
            examples: model.examples,
            stream: model.stream,
            epochs: model.epochs,
            steps: model.optimiser.steps(),
        };
        Ok(Self {
            network,
            loss,
            batch,
            examples: StackedExamples::new(&examples)?,
            rows: models.iter().map(row).collect(),
            optimiser: StackedOptimiser::new(&optimisers, &theta)?,
            theta,
        })
    }

    /// One of the models, as it is now, with numbers of its own.
    ///
    /// # Errors
    /// When there is no such row, or the device is full.
    pub fn row(&self, row: usize) -> Result<Training<'a>> {
        let Row { examples, stream, epochs, steps } =
            self.rows.get(row).ok_or_else(|| NetworkError::Setting(format!("a stack without row {row}")))?;
        Ok(Training {
            network: self.network,
            loss: self.loss,
            examples,
            batch: self.batch,
            stream: *stream,
            theta: self.theta.f_get(row as i64)?.f_detach_copy()?,
            optimiser: self.optimiser.row(row, *steps)?,
            epochs: *epochs,
        })
    }

    /// [`Training::epoch`] for those of the `wanted` rows that have the fewest epochs behind them; `None` for the others, which hold
    /// still. All go through the computation, so that no row's numbers depend on which others are wanted; those that hold still
    /// are put back at the end.
    ///
    /// # Errors
    /// When there is not one word for each row, the batch does not fit, or the device fails. The stack is of no use then.
    pub fn epoch(&mut self, wanted: &[bool]) -> Result<Vec<Option<Epoch>>> {
        if wanted.len() != self.rows.len() {
            let reason = format!("a stack of {} models, {} of them named", self.rows.len(), wanted.len());
            return Err(NetworkError::Setting(reason));
        }
        let count = self.rows[0].examples.count();
        Training::check_batch(self.batch, count)?;
        let at = |row: &Row| (row.epochs, row.steps);
        let Some(behind) =
            self.rows.iter().zip(wanted).filter(|(_, wanted)| **wanted).map(|(row, _)| at(row)).min()
        else {
            return Ok(vec![None; wanted.len()]);
        };
        let moves: Vec<bool> =
            self.rows.iter().zip(wanted).map(|(row, &wanted)| wanted && at(row) == behind).collect();
        let places = self.examples.places(&self.orders(&moves, count)?)?;
        let held = self.hold(&moves)?;
        let mut mover = Moved { optimiser: &mut self.optimiser, steps: behind.1 };
        let (total, hits) = pass(
            (self.network, self.loss),
            (self.batch, count),
            &mut self.theta,
            &Source::Many { examples: &self.examples, places },
            &mut mover,
        )?;
        let steps = mover.steps;
        self.put_back(held)?;
        let total = Vec::<f64>::try_from(&total)?;
        let hits = hits.map(|hits| Vec::<i64>::try_from(&hits)).transpose()?;
        let mut epochs = Vec::with_capacity(moves.len());
        for (index, (row, moved)) in self.rows.iter_mut().zip(moves).enumerate() {
            epochs.push(moved.then(|| Epoch {
                loss: total[index] / count as f64,
                accuracy: hits.as_ref().map(|hits| hits[index] as f64 / count as f64),
            }));
            if moved {
                (row.epochs, row.steps) = (row.epochs + 1, steps);
            }
        }
        Ok(epochs)
    }

    /// The order of each row's examples, `[M, N]`, in one upload.
    fn orders(&self, moves: &[bool], count: i64) -> Result<Tensor> {
        let mut orders = Vec::with_capacity(self.rows.len() * count as usize);
        for (row, &moves) in self.rows.iter().zip(moves) {
            if moves && self.batch < count {
                orders.extend(epoch_order(row.stream, row.epochs, count));
            } else {
                orders.extend(0..count);
            }
        }
        Ok(Tensor::f_from_slice(&orders)?.f_view([-1, count])?.f_to_device(self.theta.device())?)
    }

    /// θ and the optimiser's state.
    fn numbers(&mut self) -> impl Iterator<Item = &mut Tensor> {
        std::iter::once(&mut self.theta).chain(self.optimiser.state.values_mut())
    }

    /// The rows that hold still, and copies of their numbers.
    fn hold(&mut self, moves: &[bool]) -> Result<Option<(Tensor, Vec<Tensor>)>> {
        let still: Vec<i64> = (0..).zip(moves).filter(|(_, moves)| !**moves).map(|(row, _)| row).collect();
        if still.is_empty() {
            return Ok(None);
        }
        let still = Tensor::f_from_slice(&still)?.f_to_device(self.theta.device())?;
        let copies =
            self.numbers().map(|tensor| Ok(tensor.f_index_select(0, &still)?)).collect::<Result<_>>()?;
        Ok(Some((still, copies)))
    }

    fn put_back(&mut self, held: Option<(Tensor, Vec<Tensor>)>) -> Result<()> {
        if let Some((still, copies)) = held {
            for (tensor, copy) in self.numbers().zip(&copies) {
                let _ = tensor.f_index_copy_(0, &still, copy)?;
            }
        }
        Ok(())
    }
}
