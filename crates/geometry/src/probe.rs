//! Random vectors that a matrix is probed with, the same on every device.

use crate::operator::CurvatureError;
use flatland_network::streams::{Purpose, stream};
use rand::Rng;
use rand_distr::StandardNormal;
use tch::{Device, Tensor};

/// `count` vectors of independent standard normal numbers, `[count, P]`, f64. `draw` tells apart what one seed is asked for more than once.
pub fn gaussian(
    seed: u64,
    draw: u32,
    count: usize,
    dimension: usize,
    device: Device,
) -> Result<Tensor, CurvatureError> {
    rows(seed, draw, count, dimension, device, |generator| generator.sample(StandardNormal))
}

/// The same of signs, 1 or -1: `E v vᵀ = 1`, with the least variance of `vᵀ A v` (Hutchinson 1990).
pub fn signs(
    seed: u64,
    draw: u32,
    count: usize,
    dimension: usize,
    device: Device,
) -> Result<Tensor, CurvatureError> {
    rows(seed, draw, count, dimension, device, |generator| if generator.r#gen::<bool>() { 1. } else { -1. })
}

/// Each row has a stream of its own, so that it does not depend on how many are asked for together.
fn rows<G>(
    seed: u64,
    draw: u32,
    count: usize,
    dimension: usize,
    device: Device,
    number: G,
) -> Result<Tensor, CurvatureError>
where
    G: Fn(&mut rand_chacha::ChaCha8Rng) -> f64,
{
    let mut numbers = Vec::with_capacity(count * dimension);
    for row in 0..count {
        let mut generator = stream(seed, row as u32, draw, Purpose::Probe);
        numbers.extend((0..dimension).map(|_| number(&mut generator)));
    }
    Ok(Tensor::f_from_slice(&numbers)?.f_view([count as i64, dimension as i64])?.f_to_device(device)?)
}
