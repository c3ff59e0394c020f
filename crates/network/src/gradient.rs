//! Loss and gradient of a batch with respect to θ.

use crate::network::{Step, apply};
use crate::{Loss, Network, NetworkError, Result, pooling};
use tch::{Device, Tensor};

/// What one batch yields. Nothing here was brought to the host.
#[derive(Debug)]
pub struct BatchGradient {
    /// Mean loss over the batch: a scalar, or `[M]`.
    pub loss: Tensor,
    /// Examples classified rightly (i64, a scalar or `[M]`), `None` for a loss that is no classification's.
    pub correct: Option<Tensor>,
    /// Gradient of the mean loss with respect to θ, of θ's shape.
    pub gradient: Tensor,
}

/// A stretch of layers between two of our own pooling kernels. Autograd sees one segment at a time.
struct Segment {
    /// What comes in; a leaf, but for the data itself.
    input: Tensor,
    /// What goes into the pooling that ends the segment.
    output: Tensor,
    /// What the pooling gave, the next segment's input.
    pooled: Tensor,
    rectified: bool,
    /// How many of the parameters belong to this segment or one before it.
    parameters: usize,
}

/// Loss, hits and gradient on one batch, with x and targets as in [`Network::forward`] and [`Loss::mean`].
///
/// The same numbers as autograd through [`Network::forward`]; on a CPU, for a single model, the layers between two
/// poolings are differentiated by autograd and the poolings by our own kernels.
///
/// # Errors
/// [`NetworkError::Shape`] when θ, x or the targets do not fit.
pub fn loss_and_gradient(network: &Network, theta: &Tensor, x: &Tensor, targets: &Tensor, loss: Loss) -> Result<BatchGradient> {
    network.check_theta(theta)?;
    let convolutional = network.steps().iter().any(|step| matches!(step, Step::Convolution { .. }));
    match (theta.dim(), convolutional && theta.device() == Device::Cpu) {
        (1, _) => single(network, theta, x, targets, loss),
        (_, false) => stacked(network, theta, x, targets, loss),
        (_, true) => one_after_the_other(network, theta, x, targets, loss),
    }
}

fn single(network: &Network, theta: &Tensor, x: &Tensor, targets: &Tensor, loss: Loss) -> Result<BatchGradient> {
    network.check_inputs(x, None)?;
    // Leaves of their own instead of views: the gradient of a view is a zero-filled vector of θ's length per layer.
    let leaves = network
        .parameters()
        .iter()
        .map(|parameter| Ok(parameter.of(theta)?.f_detach()?.f_set_requires_grad(true)?))
        .collect::<Result<Vec<_>>>()?;

    let mut segments: Vec<Segment> = Vec::new();
    let mut input = x.shallow_clone();
    let mut y = x.shallow_clone();
    let mut used = 0;
    for step in network.steps() {
        match *step {
            Step::MaxPool { size, rectified } if used > 0 && pooling::fits(&y, size) => {
                let pooled = pooling::forward(&y, rectified)?.f_set_requires_grad(true)?;
                let next = pooled.shallow_clone();
                let input = std::mem::replace(&mut input, next.shallow_clone());
                let output = std::mem::replace(&mut y, next);
                segments.push(Segment { input, output, pooled, rectified, parameters: used });
            }
            step => {
                if let Step::Convolution { weight, .. } | Step::Dense { weight } = step {
                    used = weight + 2;
                }
                y = apply(step, &y, &leaves, false)?;
            }
        }
    }
    let mean = loss.mean(&y, targets)?;
    let correct = loss.correct(&y.f_detach()?, targets)?;

    let mut gradients: Vec<Tensor> = Vec::with_capacity(leaves.len());
    let mut scalar = mean.shallow_clone();
    let mut last = leaves.len();
    let mut input = &input;
    for segment in segments.iter().rev() {
        let mut wanted: Vec<&Tensor> = leaves[segment.parameters..last].iter().collect();
        wanted.push(input);
        let mut found = Tensor::f_run_backward(&[&scalar], &wanted, false, false)?;
        let Some(into_pooled) = found.pop() else { break };
        gradients.splice(0..0, found);
        let into_output = pooling::backward(&segment.output, &segment.pooled, &into_pooled, segment.rectified)?;
        // libtorch's gradients start from ones; the inner product makes that `into_output`.
        scalar = segment.output.f_flatten(0, -1)?.f_dot(&into_output.f_flatten(0, -1)?)?;
        last = segment.parameters;
        input = &segment.input;
    }
    let found = Tensor::f_run_backward(&[&scalar], &leaves[..last], false, false)?;
    gradients.splice(0..0, found);
    let flat = gradients.iter().map(|g| Ok(g.f_flatten(0, -1)?)).collect::<Result<Vec<_>>>()?;
    Ok(BatchGradient { loss: mean.f_detach()?, correct, gradient: Tensor::f_cat(&flat, 0)? })
}

/// All models in one graph. Rows do not touch each other, so the gradient of the summed losses holds each model's own.
fn stacked(network: &Network, theta: &Tensor, x: &Tensor, targets: &Tensor, loss: Loss) -> Result<BatchGradient> {
    let theta = theta.f_detach()?.f_set_requires_grad(true)?;
    let outputs = network.forward(&theta, x)?;
    let losses = loss.mean(&outputs, targets)?;
    let correct = loss.correct(&outputs.f_detach()?, targets)?;
    let gradient = Tensor::f_run_backward(&[&losses], &[&theta], false, false)?
        .pop()
        .ok_or_else(|| NetworkError::Setting("libtorch returned no gradient".into()))?;
    Ok(BatchGradient { loss: losses.f_detach()?, correct, gradient })
}

/// On a CPU, models with convolutions are faster one by one than as groups.
fn one_after_the_other(network: &Network, theta: &Tensor, x: &Tensor, targets: &Tensor, loss: Loss) -> Result<BatchGradient> {
    let models = theta.size()[0];
    let own_inputs = network.check_inputs(x, Some(models))?;
    let own_targets = own_inputs && targets.size()[0] == models;
    let pick = |t: &Tensor, own: bool, m| if own { t.f_select(0, m) } else { Ok(t.shallow_clone()) };
    let rows = (0..models)
        .map(|m| single(network, &theta.f_select(0, m)?, &pick(x, own_inputs, m)?, &pick(targets, own_targets, m)?, loss))
        .collect::<Result<Vec<_>>>()?;
    let stack = |of: &dyn Fn(&BatchGradient) -> Option<Tensor>| -> Result<Option<Tensor>> {
        let all: Option<Vec<Tensor>> = rows.iter().map(of).collect();
        Ok(all.map(|all| Tensor::f_stack(&all, 0)).transpose()?)
    };
    let none = || NetworkError::Setting("a stack of no models".into());
    Ok(BatchGradient {
        loss: stack(&|row| Some(row.loss.shallow_clone()))?.ok_or_else(none)?,
        correct: stack(&|row| row.correct.as_ref().map(Tensor::shallow_clone))?,
        gradient: stack(&|row| Some(row.gradient.shallow_clone()))?.ok_or_else(none)?,
    })
}
