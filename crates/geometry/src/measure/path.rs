//! Path norm: the sum over all paths from an input, or a bias, to an output of the product of the squared weights on it (Neyshabur et al.
//! 2015, "Path-SGD: path-normalized optimization in deep neural networks"; Jiang et al. 2020, (44)).
//!
//! It needs no walk over paths: they are summed by one pass forwards with squared weights and an input of ones. ReLU lets every path through, and
//! a max-pooling has one from each number of its window (Gonon et al. 2024, "A path-norm toolkit for modern networks"), so that it becomes a
//! sum. Where ReLU's units are rescaled, their inputs by c and their outputs by 1/c, the network stays the same and so does this norm.

use super::one_model;
use flatland_network::{Layer, Network, Result};
use tch::{Kind, Tensor};

/// `Σ_paths Π w²` of θ `[P]`, in f64; `None` with tanh, under which a path has no weight of its own. A leaky ReLU's paths count in full.
///
/// # Errors
/// [`flatland_network::NetworkError::Shape`] when θ is not the network's.
pub fn path_norm(network: &Network, theta: &Tensor) -> Result<Option<f64>> {
    let squares = one_model(network, theta)?.f_to_kind(Kind::Double)?.f_square()?;
    let shape = [&[1], network.input()].concat();
    let mut y = Tensor::f_ones(shape.as_slice(), (Kind::Double, theta.device()))?;
    for view in network.layers() {
        let parameters = view
            .parameters
            .map(|(w, b)| Ok::<_, flatland_network::NetworkError>((w.of(&squares)?, b.of(&squares)?)));
        y = match (view.layer, parameters.transpose()?) {
            (Layer::Convolution { padding, .. }, Some((w, b))) => {
                y.f_conv2d(&w, Some(&b), 1, padding, 1, 1)?
            }
            (Layer::Dense { .. }, Some((w, b))) => y.f_flatten(1, -1)?.f_linear(&w, Some(&b))?,
            (Layer::MaxPool { size }, _) => {
                y.f_avg_pool2d(size, size, 0, false, true, None)?.f_mul_scalar((size * size) as f64)?
            }
            (Layer::Tanh, _) => return Ok(None),
            _ => y,
        };
    }
    Ok(Some(y.f_sum(Kind::Double)?.f_double_value(&[])?))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{close, small, theta};
    use super::*;
    use tch::Device;

    /// One layer as a matrix `[outputs, inputs]` of weights with its biases `[outputs]`.
    struct Edges(Vec<Vec<f64>>, Vec<f64>);

    /// Of every layer that has edges.
    fn edges(network: &Network, theta: &Tensor) -> Vec<Edges> {
        let rows = |matrix: &Tensor| -> Vec<Vec<f64>> {
            (0..matrix.size()[0]).map(|row| Vec::try_from(matrix.get(row).contiguous()).unwrap()).collect()
        };
        let mut all = Vec::new();
        for view in network.layers() {
            let size: i64 = view.input.iter().product();
            let units = Tensor::eye(size, (Kind::Double, Device::Cpu))
                .view([&[size], &view.input[..]].concat().as_slice());
            match (view.layer, view.parameters) {
                (Layer::Convolution { padding, .. }, Some((w, b))) => {
                    let y = units.conv2d(&w.of(theta).unwrap(), None::<Tensor>, 1, padding, 1, 1);
                    let each = y.size()[2] * y.size()[3];
                    let biases = b.of(theta).unwrap().repeat_interleave_self_int(each, 0, None);
                    all.push(Edges(rows(&y.flatten(1, -1).transpose(0, 1)), Vec::try_from(biases).unwrap()));
                }
                (Layer::Dense { .. }, Some((w, b))) => {
                    all.push(Edges(
                        rows(&w.of(theta).unwrap()),
                        Vec::try_from(b.of(theta).unwrap()).unwrap(),
                    ));
                }
                (Layer::MaxPool { size }, _) => {
                    let (h, w) = (view.input[1], view.input[2]);
                    let (out_h, out_w) = (h / size, w / size);
                    let mut matrix = vec![
                        vec![0.; (view.input[0] * h * w) as usize];
                        (view.input[0] * out_h * out_w) as usize
                    ];
                    for c in 0..view.input[0] {
                        for i in 0..out_h * size {
                            for j in 0..out_w * size {
                                let to = (c * out_h + i / size) * out_w + j / size;
                                matrix[to as usize][((c * h + i) * w + j) as usize] = 1.;
                            }
                        }
                    }
                    let count = matrix.len();
                    all.push(Edges(matrix, vec![0.; count]));
                }
                _ => {}
            }
        }
        all
    }

    /// Every path that ends in `unit` of layer `layer`, one after the other: the products so far, squared.
    fn walk(layers: &[Edges], unit: usize, product: f64, paths: &mut Vec<f64>) {
        let Some((Edges(weights, biases), before)) = layers.split_last() else {
            paths.push(product);
            return;
        };
        paths.push(product * biases[unit].powi(2));
        for (from, weight) in weights[unit].iter().enumerate().filter(|(_, weight)| **weight != 0.) {
            walk(before, from, product * weight.powi(2), paths);
        }
    }

    #[test]
    fn it_is_the_sum_over_all_paths() {
        for network in [
            Network::dense(&[3, 4, 3, 2], &Layer::Relu).unwrap(),
            Network::dense(&[3, 4, 2], &Layer::LeakyRelu).unwrap(),
            small(),
        ] {
            let theta = theta(&network, 2);
            let layers = edges(&network, &theta);
            let mut paths = Vec::new();
            for output in 0..network.outputs() as usize {
                walk(&layers, output, 1., &mut paths);
            }
            assert!(paths.len() > 30, "{}", paths.len());
            close(path_norm(&network, &theta).unwrap().unwrap(), paths.iter().sum(), 1e-12);
        }
        let smooth = Network::dense(&[3, 4, 2], &Layer::Tanh).unwrap();
        assert_eq!(path_norm(&smooth, &theta(&smooth, 0)).unwrap(), None);
    }

    /// Each hidden unit's inputs by a factor of its own, its outputs by the inverse: the same function, the same norm.
    #[test]
    fn rescaled_units_change_nothing() {
        let network = Network::dense(&[3, 4, 2], &Layer::Relu).unwrap();
        let before = theta(&network, 3);
        let factors = Tensor::from_slice(&[0.1, 3., 20., 0.7]);
        let after = before.copy();
        let parameters = network.parameters();
        let _ = parameters[0].of(&after).unwrap().multiply_(&factors.unsqueeze(1));
        let _ = parameters[1].of(&after).unwrap().multiply_(&factors);
        let _ = parameters[2].of(&after).unwrap().divide_(&factors);
        let x = super::super::tests::waves(&[5, 3], Kind::Double);
        let outputs = [&before, &after].map(|theta| network.predict(theta, &x).unwrap());
        assert!(outputs[0].allclose(&outputs[1], 1e-12, 1e-12, false));
        let norms = [&before, &after].map(|theta| path_norm(&network, theta).unwrap().unwrap());
        close(norms[0], norms[1], 1e-12);
    }
}
