//! Jacobians of a convolutional classifier's outputs by its input, of many examples, on a CPU with AVX-512.
//!
//! By reverse mode a Jacobian takes a pass backwards for each of the C outputs. All C passes go the same way: where ReLU is open and which
//! number of a pooling window won does not depend on the output. So one pass carries a vector of C numbers, one lane each, and walks the
//! list of winners once. Dense layers at the end are products `J W` with the closed units' columns of J left out.
//!
//! The same numbers as autograd's, but for the order of sums: tested below. At kinks, as there: 0 where ReLU is closed, the first of equal
//! maxima.

use crate::network::Step;
use crate::{Network, Result, block};
use tch::{Device, Kind, Tensor};

/// Numbers that go side by side: a vector of f32.
const LANES: i64 = 16;

/// `∂f(x_i) / ∂x_i` of each of the inputs `[B, C, H, W]`, as `[B, C H W, outputs]`, for θ `[P]`; `None` where this way does not fit: other
/// layers than unpadded convolutions, each with ReLU and 2x2 pooling, and then dense layers with ReLU; over 16 outputs; not f32 on a CPU
/// with AVX-512.
///
/// # Errors
/// [`crate::NetworkError::Shape`] when θ or x do not fit.
pub fn input_jacobians(network: &Network, theta: &Tensor, x: &Tensor) -> Result<Option<Tensor>> {
    network.check_theta(theta)?;
    network.check_inputs(x, None)?;
    if theta.dim() != 1 || theta.kind() != Kind::Float || network.outputs() > LANES || x.numel() == 0 {
        return Ok(None);
    }
    let _no_grad = tch::no_grad_guard();
    let parameters = network.parameters();
    let of_theta = parameters.iter().map(|parameter| parameter.of(theta)).collect::<Result<Vec<_>>>()?;

    let mut steps = network.steps();
    let mut y = x.shallow_clone();
    let mut blocks = Vec::new();
    while let [
        Step::Convolution { weight, padding: 0 },
        Step::MaxPool { size: 2, rectified: true },
        rest @ ..,
    ] = steps
    {
        if !block::fits(&y, &of_theta[*weight]) {
            return Ok(None);
        }
        let (pooled, saved) = block::forward(&y, &of_theta[*weight], &of_theta[*weight + 1], 0, true)?;
        blocks.push((*weight, saved));
        y = pooled;
        steps = rest;
    }
    if blocks.is_empty() {
        return Ok(None);
    }
    let (mut dense, mut open) = (Vec::new(), Vec::new());
    let mut activation = y.f_flatten(1, -1)?;
    while let [Step::Dense { weight }, rest @ ..] = steps {
        dense.push(*weight);
        steps = rest;
        if let [Step::Relu, rest @ ..] = rest {
            activation = activation.f_linear(&of_theta[*weight], Some(&of_theta[*weight + 1]))?.f_relu_()?;
            open.push(activation.f_gt(0.)?.f_to_kind(Kind::Float)?);
            steps = rest;
        }
    }
    if !steps.is_empty() || dense.len() != open.len() + 1 {
        return Ok(None);
    }

    // Backwards through the dense layers, `[B, outputs, units]`.
    let batch = x.size()[0];
    let mut jacobian = of_theta[dense[dense.len() - 1]].f_unsqueeze(0)?;
    for (weight, open) in dense.iter().zip(&open).rev() {
        jacobian = jacobian.f_mul(&open.f_unsqueeze(1)?)?.f_matmul(&of_theta[*weight])?;
    }
    let units = jacobian.size()[2];
    let mut lanes = Tensor::f_zeros([batch, units, LANES], (Kind::Float, Device::Cpu))?;
    let columns = jacobian.f_transpose(1, 2)?.f_expand([batch, units, network.outputs()], false)?;
    lanes.f_narrow(2, 0, network.outputs())?.f_copy_(&columns)?;
    for (weight, saved) in blocks.iter().rev() {
        lanes = block::backward_lanes(saved, &of_theta[*weight], &lanes)?;
    }
    Ok(Some(lanes.f_narrow(2, 0, network.outputs())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layer, initialise};

    /// One pass backwards for each output.
    fn by_autograd(network: &Network, theta: &Tensor, x: &Tensor) -> Tensor {
        let x = x.detach().set_requires_grad(true);
        let outputs = network.forward(theta, &x).unwrap();
        let rows: Vec<Tensor> = (0..network.outputs())
            .map(|c| {
                let sum = outputs.select(1, c).sum(Kind::Float);
                Tensor::run_backward(&[sum], &[&x], true, false).remove(0).flatten(1, -1)
            })
            .collect();
        Tensor::stack(&rows, 2)
    }

    #[test]
    fn equals_a_pass_for_each_output() {
        if !block::available() {
            eprintln!("no AVX-512 here: nothing to compare");
            return;
        }
        tch::set_num_threads(1);
        let convolution = |channels, kernel| Layer::Convolution { channels, kernel, padding: 0 };
        let (pool, dense) = (Layer::MaxPool { size: 2 }, |width| Layer::Dense { width });
        let small = [convolution(3, 3), Layer::Relu, pool.clone(), dense(4)];
        let deep = [
            convolution(9, 2),
            Layer::Relu,
            pool.clone(),
            convolution(2, 3),
            Layer::Relu,
            pool,
            dense(5),
            Layer::Relu,
            dense(16),
        ];
        for network in [
            Network::lenet(),
            Network::new("small", &[2, 7, 9], &small).unwrap(),
            Network::new("deep", &[1, 13, 11], &deep).unwrap(),
        ] {
            let theta = initialise(&network, 1, 0, Kind::Float, Device::Cpu).unwrap() * 1.5;
            let size = [&[5], network.input()].concat();
            let x = (Tensor::arange(size.iter().product::<i64>(), (Kind::Float, Device::Cpu)) * 0.7).sin();
            let x = x.view(size.as_slice());
            let found = input_jacobians(&network, &theta, &x).unwrap().unwrap();
            let expected = by_autograd(&network, &theta, &x);
            assert_eq!(found.size(), expected.size());
            assert!(found.allclose(&expected, 1e-4, 1e-6, false), "{}", network.name());
        }
    }

    #[test]
    fn says_where_it_does_not_fit() {
        let padded = [
            Layer::Convolution { channels: 2, kernel: 3, padding: 1 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Dense { width: 3 },
        ];
        for network in [
            Network::dense(&[6, 4, 3], &Layer::Relu).unwrap(),
            Network::new("padded", &[1, 6, 6], &padded).unwrap(),
        ] {
            let theta = initialise(&network, 1, 0, Kind::Float, Device::Cpu).unwrap();
            let x = Tensor::ones([&[2], network.input()].concat(), (Kind::Float, Device::Cpu));
            assert!(input_jacobians(&network, &theta, &x).unwrap().is_none());
            assert!(input_jacobians(&network, &theta, &x.narrow(1, 0, 1)).is_err() || x.size()[1] == 1);
        }
    }
}
