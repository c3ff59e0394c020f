//! Loss and gradient of a batch with respect to θ.

use crate::head::Head;
use crate::network::{Step, apply};
use crate::sparse::{self, NonzeroBlocks};
use crate::{Loss, Network, NetworkError, Result, block, dense, graph};
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
/// The same numbers as autograd through [`Network::forward`], but for the order of sums. On a CPU our own kernels differentiate what they
/// can: convolutions with their pooling, in pieces of the batch that fit the cache, block-sparse first layers, dense layers under
/// cross-entropy, and stacks of narrow dense networks.
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
    match (theta.dim(), network.is_convolutional() && theta.device() == Device::Cpu) {
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
    let parameters = network.parameters();
    let of_theta = parameters.iter().map(|parameter| parameter.of(theta)).collect::<Result<Vec<_>>>()?;

    // Convolutions with their pooling, from the input on, by our own kernels where these fit.
    let mut steps = network.steps();
    let mut input = x.shallow_clone();
    let mut blocks: Vec<(usize, block::Saved)> = Vec::new();
    while let [Step::Convolution { weight, padding }, Step::MaxPool { size: 2, rectified }, rest @ ..] = steps
    {
        let (weight, padding, rectified) = (*weight, *padding, *rectified);
        if !block::fits(&input, &of_theta[weight]) {
            break;
        }
        let (y, saved) =
            block::forward(&input, &of_theta[weight], &of_theta[weight + 1], padding, rectified)?;
        blocks.push((weight, saved));
        input = y;
        steps = rest;
    }
    // Or a dense layer on a block-sparse input.
    let mut first: Option<NonzeroBlocks> = None;
    if blocks.is_empty()
        && let [Step::Dense { weight: 0 }, rest @ ..] = steps
        && let Some(nonzero) = NonzeroBlocks::of(&input, &of_theta[0])
    {
        input = sparse::forward(&nonzero, &input, &of_theta[0], &of_theta[1])?;
        first = Some(nonzero);
        steps = rest;
    }

    // Dense layers under cross-entropy by hand too, all else by autograd.
    let by_hand = if first.is_some() { 2 } else { 2 * blocks.len() };
    let head = Head::of(steps, theta, &input, targets, loss);
    if by_hand == 0 && head.is_none() {
        return by_autograd(network, &of_theta, x, targets, loss);
    }
    let flat = Tensor::f_empty([network.count()], (theta.kind(), theta.device()))?;
    let keep = |index: usize, gradient: &Tensor| -> Result<()> {
        parameters[index].of(&flat)?.f_copy_(gradient)?;
        Ok(())
    };
    let (loss, correct, mut into) = if let Some(head) = head {
        let found = head.loss_and_gradient(network, theta, &input, targets, &flat, by_hand > 0)?;
        (found.loss, Some(found.correct), found.input)
    } else {
        let leaves = leaves(&of_theta)?;
        let input = input.f_set_requires_grad(true)?;
        let wanted: Vec<&Tensor> = leaves[by_hand..].iter().chain([&input]).collect();
        let found = differentiated(steps, &leaves, &input, &wanted, targets, loss)?;
        for (index, gradient) in (by_hand..parameters.len()).zip(&found.gradients) {
            keep(index, gradient)?;
        }
        (found.loss, found.correct, found.gradients.last().map(Tensor::shallow_clone))
    };
    for (index, (weight, saved)) in blocks.iter().enumerate().rev() {
        let Some(gradient) = into.take() else { break };
        let block = block::backward(saved, &of_theta[*weight], &gradient, index > 0)?;
        keep(*weight, &block.weight)?;
        keep(*weight + 1, &block.bias)?;
        into = block.x;
    }
    if let (Some(nonzero), Some(gradient)) = (&first, &into) {
        sparse::backward(nonzero, x, gradient, &flat)?;
    }
    Ok(BatchGradient { loss, correct, gradient: flat })
}

/// All layers by libtorch's operators.
fn by_autograd(
    network: &Network,
    of_theta: &[Tensor],
    x: &Tensor,
    targets: &Tensor,
    loss: Loss,
) -> Result<BatchGradient> {
    let leaves = leaves(of_theta)?;
    let wanted: Vec<&Tensor> = leaves.iter().collect();
    let found = differentiated(network.steps(), &leaves, x, &wanted, targets, loss)?;
    let flat = found.gradients.iter().map(|g| Ok(g.f_flatten(0, -1)?)).collect::<Result<Vec<_>>>()?;
    Ok(BatchGradient { loss: found.loss, correct: found.correct, gradient: Tensor::f_cat(&flat, 0)? })
}

/// Mean loss, hits and the mean loss's gradients.
struct Differentiated {
    loss: Tensor,
    correct: Option<Tensor>,
    gradients: Vec<Tensor>,
}

fn differentiated(
    steps: &[Step],
    leaves: &[Tensor],
    input: &Tensor,
    wanted: &[&Tensor],
    targets: &Tensor,
    loss: Loss,
) -> Result<Differentiated> {
    let start = input.shallow_clone();
    let outputs = steps.iter().try_fold(start, |y, step| apply(*step, &y, leaves, false))?;
    let mean = loss.mean(&outputs, targets)?;
    let correct = loss.correct(&outputs.f_detach()?, targets)?;
    let gradients = graph::backward(&[&mean], wanted, false, false)?;
    Ok(Differentiated { loss: mean.f_detach()?, correct, gradients })
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
    let of_theta = network.parameters().iter().map(|p| p.of(theta)).collect::<Result<Vec<_>>>()?;
    let leaves = leaves(&of_theta)?;
    let outputs = network.forward_grouped(&leaves, models, x, own)?;
    let losses = loss.mean(&outputs, targets)?;
    let correct = loss.correct(&outputs.f_detach()?, targets)?;
    let wanted: Vec<&Tensor> = leaves.iter().collect();
    let gradients = graph::backward(&[&losses], &wanted, false, false)?;
    let flat = gradients.iter().map(|g| Ok(g.f_flatten(1, -1)?)).collect::<Result<Vec<_>>>()?;
    Ok(BatchGradient { loss: losses.f_detach()?, correct, gradient: Tensor::f_cat(&flat, 1)? })
}

/// Each weight and bias as the leaf of a graph: the gradient of a view would be a zero-filled tensor of θ's size for each of them.
fn leaves(of_theta: &[Tensor]) -> Result<Vec<Tensor>> {
    of_theta.iter().map(|part| Ok(part.f_detach()?.f_set_requires_grad(true)?)).collect()
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
