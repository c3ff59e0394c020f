//! Initial weights.

use crate::streams::{Purpose, stream};
use crate::{Network, Result};
use rand::Rng;
use tch::{Device, Kind, Tensor};

/// θ `[P]` drawn as PyTorch draws by default: kaiming uniform with a = √5 for weights (He et al. 2015, "Delving deep into
/// rectifiers"), which comes to `U(-1/√fan_in, 1/√fan_in)`, and the same interval for biases.
///
/// Drawn in f64 on the host from the stream of `(seed, trial)`, then rounded to `kind`: the same on every device, and the
/// same whether the model stands alone or in a stack.
///
/// # Errors
/// When the device cannot hold it.
pub fn initialise(network: &Network, seed: u64, trial: u32, kind: Kind, device: Device) -> Result<Tensor> {
    let mut generator = stream(seed, trial, 0, Purpose::Weights);
    let mut theta = Vec::with_capacity(network.count() as usize);
    for parameter in network.parameters() {
        let bound = 1. / (parameter.fan_in as f64).sqrt();
        theta.extend((0..parameter.count()).map(|_| generator.gen_range(-bound..bound)));
    }
    Ok(Tensor::f_from_slice(&theta)?.f_to_kind(kind)?.f_to_device(device)?)
}

/// θ `[M, P]`, one row for each `(seed, trial)`.
///
/// # Errors
/// When the device cannot hold it, or there is no model.
pub fn initialise_stacked(
    network: &Network,
    models: &[(u64, u32)],
    kind: Kind,
    device: Device,
) -> Result<Tensor> {
    let rows = models
        .iter()
        .map(|&(seed, trial)| initialise(network, seed, trial, kind, device))
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_stack(&rows, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_uniform_within_the_bound_of_each_layer_and_the_same_in_a_stack() {
        let network = Network::lenet();
        let theta = initialise(&network, 3, 1, Kind::Float, Device::Cpu).unwrap();
        let stack = initialise_stacked(&network, &[(3, 0), (3, 1)], Kind::Float, Device::Cpu).unwrap();
        assert_eq!(stack.get(1), theta);
        assert_ne!(stack.get(0), theta);
        for parameter in network.parameters() {
            let slice = parameter.of(&theta).unwrap();
            let bound = 1. / (parameter.fan_in as f64).sqrt();
            assert!(slice.abs().max().double_value(&[]) <= bound);
            if parameter.count() > 1000 {
                // The standard deviation of U(-b, b) is b / √3, its standard error here below 2 %.
                let deviation = slice.std(true).double_value(&[]) * 3f64.sqrt() / bound;
                assert!((deviation - 1.).abs() < 0.05, "{}: {deviation}", parameter.name);
            }
        }
    }
}
