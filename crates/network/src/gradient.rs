//! Loss and gradient of a batch with respect to θ.

use crate::network::{Step, apply};
use crate::{Loss, Network, NetworkError, Parameter, Result, block, dense};
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

/// Loss, hits and gradient on one batch, with x and targets as in [`Network::forward`] and [`Loss::mean`].
///
/// The same numbers as autograd through [`Network::forward`], but for the order of sums; on a CPU, convolutions with their
/// pooling are differentiated by our own kernels, in pieces of the batch that fit the cache.
///
/// # Errors
/// [`NetworkError::Shape`] when θ, x or the targets do not fit.
pub fn loss_and_gradient(
    network: &Network,
    theta: &Tensor,
    x: &Tensor,
    targets: &Tensor,
    loss: Loss,
) -> Result<BatchGradient> {
    network.check_theta(theta)?;
    let convolutional = network.steps().iter().any(|step| matches!(step, Step::Convolution { .. }));
    match (theta.dim(), convolutional && theta.device() == Device::Cpu) {
        (1, _) => single(network, theta, x, targets, loss),
        (_, false) => stacked(network, theta, x, targets, loss),
        (_, true) => one_after_the_other(network, theta, x, targets, loss),
    }
}

/// On a CPU, a batch of images goes through in pieces of about this many, which stay in the cache.
const CPU_PIECE: i64 = 100;

fn single(
    network: &Network,
    theta: &Tensor,
    x: &Tensor,
    targets: &Tensor,
    loss: Loss,
) -> Result<BatchGradient> {
    network.check_inputs(x, None)?;
    let count = x.size()[0];
    if count == 0 || targets.size().first() != Some(&count) {
        let expected = format!("one for each of the {count} inputs, and at least one");
        return Err(NetworkError::Shape { what: "targets", found: targets.size(), expected });
    }
    if count <= CPU_PIECE || theta.device() != Device::Cpu || !network.is_convolutional() {
        return piece(network, theta, x, targets, loss);
    }
    let pieces = (count + CPU_PIECE / 2) / CPU_PIECE;
    let mut sum: Option<BatchGradient> = None;
    for index in 0..pieces {
        let (start, end) = (index * count / pieces, (index + 1) * count / pieces);
        let cut = |t: &Tensor| t.f_narrow(0, start, end - start);
        let part = piece(network, theta, &cut(x)?, &cut(targets)?, loss)?;
        let weight = (end - start) as f64 / count as f64;
        let (mut part_loss, mut part_gradient) = (part.loss, part.gradient);
        let (part_loss, part_gradient) =
            (part_loss.f_mul_scalar_(weight)?, part_gradient.f_mul_scalar_(weight)?);
        sum = Some(match sum {
            None => BatchGradient { loss: part_loss, correct: part.correct, gradient: part_gradient },
            Some(mut sum) => BatchGradient {
                loss: sum.loss.f_add_(&part_loss)?,
                correct: match (sum.correct, part.correct) {
                    (Some(mut sum), Some(part)) => Some(sum.f_add_(&part)?),
                    _ => None,
                },
                gradient: sum.gradient.f_add_(&part_gradient)?,
            },
        });
    }
    sum.ok_or_else(|| NetworkError::Setting("a batch of no examples".into()))
}

/// A whole batch, or a piece of one.
fn piece(
    network: &Network,
    theta: &Tensor,
    x: &Tensor,
    targets: &Tensor,
    loss: Loss,
) -> Result<BatchGradient> {
    let leaves = leaves(network, theta)?;

    // Convolutions with their pooling, from the input on, by our own kernels where these fit.
    let mut steps = network.steps();
    let mut input = x.shallow_clone();
    let mut blocks: Vec<(usize, block::Saved)> = Vec::new();
    while let [Step::Convolution { weight, padding }, Step::MaxPool { size: 2, rectified }, rest @ ..] = steps
    {
        let (weight, padding, rectified) = (*weight, *padding, *rectified);
        if !block::fits(&input, &leaves[weight]) {
            break;
        }
        let (y, saved) = block::forward(&input, &leaves[weight], &leaves[weight + 1], padding, rectified)?;
        blocks.push((weight, saved));
        input = y;
        steps = rest;
    }
    // The rest by autograd.
    if !blocks.is_empty() {
        input = input.f_set_requires_grad(true)?;
    }
    let outputs = steps.iter().try_fold(input.shallow_clone(), |y, step| apply(*step, &y, &leaves, false))?;
    let mean = loss.mean(&outputs, targets)?;
    let correct = loss.correct(&outputs.f_detach()?, targets)?;

    let head = 2 * blocks.len();
    let mut wanted: Vec<&Tensor> = leaves[head..].iter().collect();
    if !blocks.is_empty() {
        wanted.push(&input);
    }
    let mut gradients = Tensor::f_run_backward(&[&mean], &wanted, false, false)?;
    let mut into = if blocks.is_empty() { None } else { gradients.pop() };
    for (index, (weight, saved)) in blocks.iter().enumerate().rev() {
        let Some(gradient) = into.take() else { break };
        let block = block::backward(saved, &leaves[*weight], &gradient, index > 0)?;
        gradients.splice(0..0, [block.weight, block.bias]);
        into = block.x;
    }
    let flat = gradients.iter().map(|g| Ok(g.f_flatten(0, -1)?)).collect::<Result<Vec<_>>>()?;
    Ok(BatchGradient { loss: mean.f_detach()?, correct, gradient: Tensor::f_cat(&flat, 0)? })
}

/// All models in one graph. Rows do not touch each other, so the gradient of the summed losses holds each model's own.
fn stacked(
    network: &Network,
    theta: &Tensor,
    x: &Tensor,
    targets: &Tensor,
    loss: Loss,
) -> Result<BatchGradient> {
    let models = theta.size()[0];
    let own = network.check_inputs(x, Some(models))?;
    if let Some((loss, gradient)) = dense::loss_and_gradient(network, theta, x, targets, loss) {
        return Ok(BatchGradient { loss, correct: None, gradient });
    }
    let leaves = leaves(network, theta)?;
    let outputs = network.forward_grouped(&leaves, models, x, own)?;
    let losses = loss.mean(&outputs, targets)?;
    let correct = loss.correct(&outputs.f_detach()?, targets)?;
    let wanted: Vec<&Tensor> = leaves.iter().collect();
    let gradients = Tensor::f_run_backward(&[&losses], &wanted, false, false)?;
    let flat = gradients.iter().map(|g| Ok(g.f_flatten(1, -1)?)).collect::<Result<Vec<_>>>()?;
    Ok(BatchGradient { loss: losses.f_detach()?, correct, gradient: Tensor::f_cat(&flat, 1)? })
}

/// Each weight and bias as the leaf of a graph: the gradient of a view would be a zero-filled tensor of θ's size for each of them.
fn leaves(network: &Network, theta: &Tensor) -> Result<Vec<Tensor>> {
    let leaf = |parameter: &Parameter| Ok(parameter.of(theta)?.f_detach()?.f_set_requires_grad(true)?);
    network.parameters().iter().map(leaf).collect()
}

/// On a CPU, models with convolutions are faster one by one than as groups.
fn one_after_the_other(
    network: &Network,
    theta: &Tensor,
    x: &Tensor,
    targets: &Tensor,
    loss: Loss,
) -> Result<BatchGradient> {
    let models = theta.size()[0];
    let own_inputs = network.check_inputs(x, Some(models))?;
    let own_targets = loss.own_targets(targets);
    if own_targets && targets.size()[0] != models {
        let expected = format!("one row for each of the {models} models");
        return Err(NetworkError::Shape { what: "targets", found: targets.size(), expected });
    }
    let pick = |t: &Tensor, own: bool, m| {
        if own { t.f_select(0, m) } else { Ok(t.shallow_clone()) }
    };
    let rows = (0..models)
        .map(|m| {
            single(
                network,
                &theta.f_select(0, m)?,
                &pick(x, own_inputs, m)?,
                &pick(targets, own_targets, m)?,
                loss,
            )
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layer, initialise_stacked};
    use tch::Kind;

    /// What a GPU computes, against what a CPU does: the public way never takes the groups there.
    #[test]
    fn the_gradient_of_groups_is_that_of_one_model_after_the_other() {
        tch::set_num_threads(1);
        let layers = [
            Layer::Convolution { channels: 4, kernel: 3, padding: 1 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Dense { width: 3 },
        ];
        for network in [Network::lenet(), Network::new("small", &[2, 6, 7], &layers).unwrap()] {
            let theta =
                initialise_stacked(&network, &[(0, 0), (0, 1), (1, 0)], Kind::Double, Device::Cpu).unwrap();
            let shape = [&[3, 4], network.input()].concat();
            let x = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu));
            let x = x.f_sin().unwrap().view(shape.as_slice());
            let labels = Tensor::arange(12, (Kind::Int64, Device::Cpu)).remainder(3).view([3, 4]);
            for (x, targets) in [(&x, &labels), (&x.get(1), &labels), (&x, &labels.get(1))] {
                let [groups, alone] = [stacked, one_after_the_other]
                    .map(|way| way(&network, &theta, x, targets, Loss::CrossEntropy).unwrap());
                assert!(groups.loss.allclose(&alone.loss, 1e-12, 1e-12, false));
                assert!(groups.gradient.allclose(&alone.gradient, 1e-10, 1e-12, false));
                assert_eq!(groups.correct, alone.correct);
            }
        }
    }
}
