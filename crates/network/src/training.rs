//! The training loop, one epoch at a time. What happens between epochs stands in the experiment.

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
            |start, length| match &order {
                None => self.examples.part(start, length),
                Some(order) => self.examples.chosen(&order.f_narrow(0, start, length)?),
            },
            |theta, gradient| self.optimiser.step(theta, gradient),
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

/// The loop: batches of `batch` examples until `count` are done, the last one holds what is left. `examples` gives inputs and targets
/// of so many from a start on, `step` moves θ. Returns the summed losses (f64) and hits, each `[]` or `[M]`, still on the device.
fn pass(
    (network, loss): (&Network, Loss),
    (batch, count): (i64, i64),
    theta: &mut Tensor,
    examples: impl Fn(i64, i64) -> Result<(Tensor, Tensor)>,
    mut step: impl FnMut(&mut Tensor, Tensor) -> Result<()>,
) -> Result<(Tensor, Option<Tensor>)> {
    let size = theta.size();
    let (models, device) = (&size[..size.len() - 1], theta.device());
    let mut total = Tensor::f_zeros(models, (Kind::Double, device))?;
    let mut hits = Tensor::f_zeros(models, (Kind::Int64, device))?;
    let mut classifies = false;
    let mut start = 0;
    while start < count {
        let length = batch.min(count - start);
        let (x, targets) = examples(start, length)?;
        let batch = loss_and_gradient(network, theta, &x, &targets, loss)?;
        step(theta, batch.gradient)?;
        let _ = total.f_add_(&batch.loss.f_to_kind(Kind::Double)?.f_mul_scalar_(length as f64)?)?;
        if let Some(correct) = batch.correct {
            classifies = true;
            let _ = hits.f_add_(&correct)?;
        }
        start += length;
    }
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
