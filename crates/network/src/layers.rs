//! A network's layers as seen from outside: for what is computed of them one by one.

use crate::network::Step;
use crate::{Layer, Network, Parameter};

/// A layer, and what it works on.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerView<'a> {
    /// What it computes.
    pub layer: Layer,
    /// Shape of one example before it: `[C, H, W]` or `[F]`. Before a dense layer always `[F]`: flattening is part of no layer.
    pub input: Vec<i64>,
    /// Its weight and its bias, if it has any.
    pub parameters: Option<(&'a Parameter, &'a Parameter)>,
}

impl Network {
    /// Its layers from the input to the output. ReLU before a max-pooling stands behind it, where it is the same and computed.
    pub fn layers(&self) -> Vec<LayerView<'_>> {
        let mut shape = self.input().to_vec();
        let mut layers = Vec::new();
        for step in self.steps() {
            let of = |weight: usize| (&self.parameters()[weight], &self.parameters()[weight + 1]);
            let (layer, parameters, after) = match *step {
                Step::Convolution { weight, padding } => {
                    let (w, b) = of(weight);
                    let (channels, kernel) = (w.shape[0], w.shape[2]);
                    let grow = 2 * padding - kernel + 1;
                    let after = vec![channels, shape[1] + grow, shape[2] + grow];
                    (Layer::Convolution { channels, kernel, padding }, Some((w, b)), after)
                }
                Step::MaxPool { size, .. } => {
                    (Layer::MaxPool { size }, None, vec![shape[0], shape[1] / size, shape[2] / size])
                }
                Step::Dense { weight } => {
                    let (w, b) = of(weight);
                    shape = vec![w.shape[1]];
                    (Layer::Dense { width: w.shape[0] }, Some((w, b)), vec![w.shape[0]])
                }
                Step::Relu => (Layer::Relu, None, shape.clone()),
                Step::LeakyRelu => (Layer::LeakyRelu, None, shape.clone()),
                Step::Tanh => (Layer::Tanh, None, shape.clone()),
            };
            layers.push(LayerView { layer, input: std::mem::replace(&mut shape, after), parameters });
            if matches!(step, Step::MaxPool { rectified: true, .. }) {
                layers.push(LayerView { layer: Layer::Relu, input: shape.clone(), parameters: None });
            }
        }
        layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_view_rebuilds_the_network() {
        let padded = [
            Layer::Convolution { channels: 4, kernel: 5, padding: 2 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Convolution { channels: 3, kernel: 3, padding: 1 },
            Layer::MaxPool { size: 3 },
            Layer::LeakyRelu,
            Layer::Dense { width: 7 },
            Layer::Tanh,
            Layer::Dense { width: 2 },
        ];
        for network in [
            Network::lenet(),
            Network::new("padded", &[2, 15, 13], &padded).unwrap(),
            Network::dense(&[5, 4, 3], &Layer::Relu).unwrap(),
        ] {
            let views = network.layers();
            let swap_back = |views: &[LayerView]| {
                let mut layers: Vec<Layer> = views.iter().map(|view| view.layer.clone()).collect();
                for at in 1..layers.len() {
                    if matches!(layers[at - 1], Layer::MaxPool { .. }) && layers[at] == Layer::Relu {
                        layers.swap(at - 1, at);
                    }
                }
                layers
            };
            assert_eq!(Network::new(network.name(), network.input(), &swap_back(&views)).unwrap(), network);
            assert_eq!(views[0].input, network.input());
            let parameters: Vec<&Parameter> =
                views.iter().filter_map(|view| view.parameters).flat_map(|(w, b)| [w, b]).collect();
            assert_eq!(parameters, network.parameters().iter().collect::<Vec<_>>());
        }
        let lenet = Network::lenet();
        let inputs: Vec<Vec<i64>> = lenet
            .layers()
            .into_iter()
            .filter(|view| view.parameters.is_some())
            .map(|view| view.input)
            .collect();
        assert_eq!(inputs, [vec![1, 32, 32], vec![6, 14, 14], vec![400], vec![120], vec![84]]);
    }
}
