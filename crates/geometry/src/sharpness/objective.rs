//! The mean loss over a whole data set as a function of θ: `L(θ) = Σ ℓ_i(θ) / N`, and its gradient.

use flatland_network::{Examples, Loss, Model, Network, NetworkError, Result, loss_and_gradient};
use tch::{Device, Tensor};

/// Bytes that the widest activation of a chunk may take on a CPU; memory only, as in evaluation.
const CPU_CHUNK_BYTES: i64 = 4 << 20;
/// Backwards, an accelerator keeps every layer's activations.
const DEVICE_CHUNK_BYTES: i64 = 1 << 28;
/// Sums that are kept apart until the end, so that as many threads may share the chunks and the numbers not depend on how many do.
const GROUPS: usize = 16;

/// What sharpness is measured of.
#[derive(Debug, Clone, Copy)]
pub struct Objective<'a> {
    /// A network, or a module of the user's own, whose θ is then the one that was asked for last.
    pub model: &'a Model,
    /// The data set.
    pub examples: &'a Examples,
    /// What is averaged over it.
    pub loss: Loss,
}

impl Objective<'_> {
    /// `L(θ)` and `∇L(θ)` `[P]` for θ `[P]`, over all examples in chunks.
    ///
    /// On a CPU, a network's chunks are shared out to as many threads as libtorch is set to (`tch::set_num_threads`, of the calling
    /// thread), and sums are added in an order that does not depend on them. A module's operators have these threads to themselves.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when θ or the examples do not fit the network; as [`flatland_network::Module::loss_and_gradient`].
    pub fn loss_and_gradient(&self, theta: &Tensor) -> Result<(f64, Tensor)> {
        self.check(theta)?;
        let theta = theta.f_detach()?;
        let network = match self.model {
            Model::Network(network) => network,
            Model::Module(module) => {
                module.set(&theta)?;
                let (found, gradient) = module.loss_and_gradient(self.examples, self.loss)?;
                return Ok((found.loss, gradient));
            }
        };
        let (examples, loss) = (self.examples, self.loss);
        let on_cpu = theta.device() == Device::Cpu;
        let budget = if on_cpu { CPU_CHUNK_BYTES } else { DEVICE_CHUNK_BYTES };
        let bytes = network.widest() * theta.kind().elt_size_in_bytes() as i64;
        let chunk = (budget / bytes).clamp(1, examples.count());
        let starts: Vec<i64> = (0..examples.count()).step_by(chunk as usize).collect();
        let groups: Vec<&[i64]> = starts.chunks(starts.len().div_ceil(GROUPS)).collect();
        let threads = if on_cpu { tch::get_num_threads().max(1) as usize } else { 1 };
        let threads = threads.min(groups.len());
        let sums = if threads > 1 {
            // Tensors are handles that threads cannot share, so each gets its own.
            let handles: Vec<(Tensor, Examples)> =
                (0..threads).map(|_| (theta.shallow_clone(), examples.share())).collect();
            let parts = std::thread::scope(|scope| {
                let shares = groups.chunks(groups.len().div_ceil(threads));
                let workers: Vec<_> = handles
                    .into_iter()
                    .zip(shares)
                    .map(|((theta, examples), groups)| {
                        scope.spawn(move || {
                            tch::set_num_threads(1);
                            sums(network, &theta, (&examples, loss), groups, chunk)
                        })
                    })
                    .collect();
                workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
            });
            let mut sums = Vec::with_capacity(groups.len());
            for part in parts {
                let stopped = |_| NetworkError::Setting("a thread stopped while taking a gradient".into());
                sums.extend(part.map_err(stopped)??);
            }
            sums
        } else {
            sums(network, &theta, (examples, loss), &groups, chunk)?
        };
        let count = examples.count() as f64;
        let (loss, gradient) = added(sums)?;
        Ok((loss / count, gradient.f_div_scalar(count)?))
    }

    /// `L(θ)` of each row of θ `[M, P]`.
    ///
    /// # Errors
    /// As [`Objective::loss_and_gradient`].
    pub fn losses(&self, thetas: &Tensor) -> Result<Vec<f64>> {
        let evaluations = self.model.evaluate_many(thetas, self.examples, self.loss)?;
        Ok(evaluations.into_iter().map(|evaluation| evaluation.loss).collect())
    }

    pub(super) fn check(&self, theta: &Tensor) -> Result<()> {
        if theta.size() == [self.model.count()] {
            return Ok(());
        }
        let expected = format!("[{}]", self.model.count());
        Err(NetworkError::Shape { what: "θ", found: theta.size(), expected })
    }
}

/// Of each group of chunks the summed loss and gradient over its examples.
fn sums(
    network: &Network,
    theta: &Tensor,
    (examples, loss): (&Examples, Loss),
    groups: &[&[i64]],
    chunk: i64,
) -> Result<Vec<(f64, Tensor)>> {
    let of_chunk = |&start: &i64| -> Result<(f64, Tensor)> {
        let length = chunk.min(examples.count() - start);
        let (x, targets) = examples.part(start, length)?;
        let mut found = loss_and_gradient(network, theta, &x, &targets, loss)?;
        let sum = found.loss.f_double_value(&[])? * length as f64;
        Ok((sum, found.gradient.f_mul_scalar_(length as f64)?))
    };
    let of_group = |group: &&[i64]| {
        let mut chunks = group.iter().map(of_chunk);
        let first = chunks.next().ok_or_else(nothing)??;
        chunks.try_fold(first, |sum, chunk| plus(sum, &chunk?))
    };
    groups.iter().map(of_group).collect()
}

fn plus((loss, mut gradient): (f64, Tensor), more: &(f64, Tensor)) -> Result<(f64, Tensor)> {
    Ok((loss + more.0, gradient.f_add_(&more.1)?))
}

fn added(sums: Vec<(f64, Tensor)>) -> Result<(f64, Tensor)> {
    let mut sums = sums.into_iter();
    let first = sums.next().ok_or_else(nothing)?;
    sums.try_fold(first, |sum, more| plus(sum, &more))
}

fn nothing() -> NetworkError {
    NetworkError::Setting("a loss needs at least one example".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_network::{Layer, initialise};
    use tch::Kind;

    /// Against autograd over all examples at once; chunks, groups and threads change at most the last bits, threads none.
    #[test]
    fn chunks_and_threads_add_up() {
        let layers = [
            Layer::Convolution { channels: 3, kernel: 3, padding: 1 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Dense { width: 4 },
        ];
        // So wide that a chunk holds few examples.
        let network = Network::new("wide", &[1, 128, 128], &layers).unwrap();
        for (kind, tolerance) in [(Kind::Double, 1e-11), (Kind::Float, 1e-4)] {
            let x = (Tensor::arange(50 * 128 * 128, (Kind::Double, Device::Cpu)) * 0.37).sin();
            let x = x.view([50, 1, 128, 128]).to_kind(kind);
            let labels = Tensor::arange(50, (Kind::Int64, Device::Cpu)).remainder(4);
            let theta = initialise(&network, 0, 0, kind, Device::Cpu).unwrap();
            let leaf = theta.copy().set_requires_grad(true);
            let expected = Loss::CrossEntropy.mean(&network.forward(&leaf, &x).unwrap(), &labels).unwrap();
            let gradient = Tensor::run_backward(&[&expected], &[&leaf], false, false).pop().unwrap();
            let examples = Examples::new(x, labels).unwrap();
            let model = Model::Network(network.clone());
            let objective = Objective { model: &model, examples: &examples, loss: Loss::CrossEntropy };
            let of_threads = |threads| {
                tch::set_num_threads(threads);
                objective.loss_and_gradient(&theta).unwrap()
            };
            let (loss, found) = of_threads(1);
            assert!((loss - expected.double_value(&[])).abs() < tolerance);
            assert!(found.allclose(&gradient, tolerance, tolerance * 1e-2, false));
            for threads in [2, 3, 40] {
                let (other, again) = of_threads(threads);
                assert_eq!((other.to_bits(), &again), (loss.to_bits(), &found), "{threads} threads");
            }
            tch::set_num_threads(1);
            let both = objective.losses(&Tensor::stack(&[&theta, &theta], 0)).unwrap();
            assert!(both.iter().all(|one| (one - loss).abs() < tolerance));
            assert!(objective.loss_and_gradient(&theta.narrow(0, 1, 5)).is_err());
        }
    }
}
