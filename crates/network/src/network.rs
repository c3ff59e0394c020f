//! Networks as pure functions of θ.

use crate::sparse::{self, NonzeroBlocks};
use crate::{NetworkError, Result, block, pooling};
use tch::{Device, Tensor};

/// One layer. Shapes are without the batch dimension.
#[derive(Debug, Clone, PartialEq)]
pub enum Layer {
    /// 2-D convolution (cross-correlation) of stride 1 with bias: `[C, H, W]` to
    /// `[channels, H + 2 padding - kernel + 1, W + 2 padding - kernel + 1]`.
    Convolution {
        /// Output channels.
        channels: i64,
        /// Side of the square kernel.
        kernel: i64,
        /// Zeros added on every side.
        padding: i64,
    },
    /// Maximum over windows of `size` by `size`, stride `size`: `[C, H, W]` to `[C, H / size, W / size]`, a remainder
    /// at the right and lower edge is left out.
    MaxPool {
        /// Side of the window.
        size: i64,
    },
    /// `y = x Wᵀ + b` with W of shape `[width, F]`: `[F]` to `[width]`. An input of several dimensions is flattened.
    Dense {
        /// Number of outputs.
        width: i64,
    },
    /// `max(x, 0)`.
    Relu,
    /// `x` where x > 0, `0.01 x` elsewhere: PyTorch's default slope, the only one that tch binds.
    LeakyRelu,
    /// `tanh x`: smooth, so that the loss has all derivatives everywhere.
    Tanh,
}

/// Where a weight or bias lies in θ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// PyTorch's name, for instance `conv1.weight` or `fc2.bias`.
    pub name: String,
    /// PyTorch's shape: `[out, in, k, k]`, `[out, in]` or `[out]`.
    pub shape: Vec<i64>,
    /// Index of its first entry in θ.
    pub offset: i64,
    /// Number of inputs that each output sums over: `in k²` or `in`; also for the bias.
    pub fan_in: i64,
}

impl Parameter {
    /// Number of entries.
    pub fn count(&self) -> i64 {
        self.shape.iter().product()
    }

    /// Its part of θ, `[P]` or `[M, P]`, as a view of shape `shape` or `[M, shape…]`.
    ///
    /// # Errors
    /// When θ is shorter than the network's.
    pub fn of(&self, theta: &Tensor) -> Result<Tensor> {
        let slice = theta.f_narrow(-1, self.offset, self.count())?;
        let stack = &theta.size()[..theta.dim() - 1];
        Ok(slice.f_view([stack, &self.shape].concat().as_slice())?)
    }
}

/// Beyond this no machine holds the parameters of a layer.
const MOST_PARAMETERS: i128 = 1 << 40;

/// What is computed, in order; indices point into the parameters, the bias following its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Step {
    Convolution {
        weight: usize,
        padding: i64,
    },
    /// `rectified`: the maximum, then ReLU. It stands for ReLU then maximum, which is the same with four times the work.
    MaxPool {
        size: i64,
        rectified: bool,
    },
    Dense {
        weight: usize,
    },
    Relu,
    LeakyRelu,
    Tanh,
}

/// A feed-forward network: a checked list of layers and the place of each weight in θ. It holds no weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    name: String,
    input: Vec<i64>,
    outputs: i64,
    parameters: Vec<Parameter>,
    steps: Vec<Step>,
    widest: i64,
}

impl Network {
    /// A network on inputs of shape `input` (`[C, H, W]` or `[F]`) that ends in a [`Layer::Dense`].
    ///
    /// # Errors
    /// [`NetworkError::Layer`] for the first layer that does not fit what comes before it; [`NetworkError::Setting`] for
    /// an input of another shape, or an end that is no dense layer.
    #[allow(clippy::too_many_lines)] // one arm a layer
    pub fn new(name: &str, input: &[i64], layers: &[Layer]) -> Result<Self> {
        if !matches!(input.len(), 1 | 3) || input.iter().any(|&n| n < 1) {
            let reason = format!(
                "the input of network {name} has shape {input:?}, expected [F] or [C, H, W] without zeros"
            );
            return Err(NetworkError::Setting(reason));
        }
        let mut shape = input.to_vec();
        let mut parameters: Vec<Parameter> = Vec::new();
        let mut steps: Vec<Step> = Vec::new();
        let (mut convolutions, mut dense, mut offset) = (0, 0, 0);
        let mut widest: i64 = shape.iter().product();
        let mut add = |name: String, shape: &[i64], fan_in: i64, offset: &mut i64| {
            let parameter = Parameter { name, shape: shape.to_vec(), offset: *offset, fan_in };
            *offset += parameter.count();
            parameters.push(parameter);
            parameters.len() - 1
        };
        for (index, layer) in layers.iter().enumerate() {
            let refuse = |reason: String| NetworkError::Layer { index, layer: format!("{layer:?}"), reason };
            match *layer {
                Layer::Convolution { channels, kernel, padding } => {
                    let &[inputs, height, width] = shape.as_slice() else {
                        return Err(refuse(format!("its input has shape {shape:?}, expected [C, H, W]")));
                    };
                    if channels < 1 || kernel < 1 || padding < 0 || kernel > height.min(width) + 2 * padding {
                        return Err(refuse(format!(
                            "its kernel must lie between 1 and the input of {shape:?}"
                        )));
                    }
                    check_size(&[channels, inputs, kernel, kernel]).map_err(refuse)?;
                    convolutions += 1;
                    let fan_in = inputs * kernel * kernel;
                    let weight = add(
                        format!("conv{convolutions}.weight"),
                        &[channels, inputs, kernel, kernel],
                        fan_in,
                        &mut offset,
                    );
                    add(format!("conv{convolutions}.bias"), &[channels], fan_in, &mut offset);
                    steps.push(Step::Convolution { weight, padding });
                    let shrink = 2 * padding - kernel + 1;
                    shape = vec![channels, height + shrink, width + shrink];
                }
                Layer::MaxPool { size } => {
                    let &[channels, height, width] = shape.as_slice() else {
                        return Err(refuse(format!("its input has shape {shape:?}, expected [C, H, W]")));
                    };
                    if size < 1 || size > height.min(width) {
                        return Err(refuse(format!(
                            "its window must lie between 1 and the input of {shape:?}"
                        )));
                    }
                    let rectified = steps.last() == Some(&Step::Relu);
                    if rectified {
                        steps.pop();
                    }
                    steps.push(Step::MaxPool { size, rectified });
                    shape = vec![channels, height / size, width / size];
                }
                Layer::Dense { width } => {
                    if width < 1 {
                        return Err(refuse("it needs at least one output".into()));
                    }
                    let inputs: i64 = shape.iter().product();
                    check_size(&[width, inputs]).map_err(refuse)?;
                    dense += 1;
                    let weight = add(format!("fc{dense}.weight"), &[width, inputs], inputs, &mut offset);
                    add(format!("fc{dense}.bias"), &[width], inputs, &mut offset);
                    steps.push(Step::Dense { weight });
                    shape = vec![width];
                }
                Layer::Relu => steps.push(Step::Relu),
                Layer::LeakyRelu => steps.push(Step::LeakyRelu),
                Layer::Tanh => steps.push(Step::Tanh),
            }
            widest = widest.max(shape.iter().product());
        }
        match shape.as_slice() {
            &[outputs] if dense > 0 => {
                Ok(Self { name: name.to_owned(), input: input.to_vec(), outputs, parameters, steps, widest })
            }
            _ => Err(NetworkError::Setting(format!(
                "network {name} must end in a dense layer, it ends in {shape:?}"
            ))),
        }
    }

    /// A dense network of the given widths, input and output included, with `activation` between the layers.
    ///
    /// # Errors
    /// When there are fewer than two widths or one is below 1.
    pub fn dense(widths: &[i64], activation: &Layer) -> Result<Self> {
        let name = widths.iter().map(ToString::to_string).collect::<Vec<_>>().join("-");
        let [input, rest @ ..] = widths else {
            return Err(NetworkError::Setting(
                "a dense network needs at least two widths, found none".into(),
            ));
        };
        let mut layers = Vec::new();
        for (index, &width) in rest.iter().enumerate() {
            if index > 0 {
                layers.push(activation.clone());
            }
            layers.push(Layer::Dense { width });
        }
        Self::new(&name, &[*input], &layers)
    }

    /// LeNet as the report has it, 61,706 parameters on `[1, 32, 32]`: convolution 6@5x5, pooling, convolution
    /// 16@5x5, pooling, dense 400-120-84-10, ReLU (after LeCun et al. 1998, "Gradient-based learning applied to document
    /// recognition").
    ///
    /// # Panics
    /// Never: the layers fit.
    pub fn lenet() -> Self {
        let layers = [
            Layer::Convolution { channels: 6, kernel: 5, padding: 0 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Convolution { channels: 16, kernel: 5, padding: 0 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Dense { width: 120 },
            Layer::Relu,
            Layer::Dense { width: 84 },
            Layer::Relu,
            Layer::Dense { width: 10 },
        ];
        Self::new("lenet", &[1, 32, 32], &layers).expect("LeNet's layers fit together")
    }

    /// The name that it was given; for dense networks the widths, `784-16-14-10`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Shape of one input: `[C, H, W]` or `[F]`.
    pub fn input(&self) -> &[i64] {
        &self.input
    }

    /// Number of outputs: classes, or dimensions of the target.
    pub fn outputs(&self) -> i64 {
        self.outputs
    }

    /// P, the length of θ.
    pub fn count(&self) -> i64 {
        self.parameters.iter().map(Parameter::count).sum()
    }

    /// Weights and biases in the order in which they lie in θ.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub(crate) fn is_convolutional(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Convolution { .. }))
    }

    /// The largest activation of one example, in numbers.
    pub fn widest(&self) -> i64 {
        self.widest
    }

    /// The network's outputs, differentiable in θ and x to any order, by plain libtorch operators.
    ///
    /// θ `[P]` and x `[B, input…]` give `[B, outputs]`. θ `[M, P]` gives `[M, B, outputs]`, with x either shared,
    /// `[B, input…]`, or of its own for each model, `[M, B, input…]`.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when θ or x do not fit.
    pub fn forward(&self, theta: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.check_theta(theta)?;
        if theta.dim() == 1 {
            self.forward_single(theta, x, false)
        } else {
            self.forward_stacked(theta, x, false)
        }
    }

    /// The same outputs without a graph: for evaluation. On a CPU, our own kernels run where they fit: convolution blocks, pooling, a
    /// first dense layer on a block-sparse input.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when θ or x do not fit.
    pub fn predict(&self, theta: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.check_theta(theta)?;
        let _no_grad = tch::no_grad_guard();
        if theta.dim() == 1 {
            self.forward_single(theta, x, true)
        } else {
            self.forward_stacked(theta, x, true)
        }
    }

    pub(crate) fn check_theta(&self, theta: &Tensor) -> Result<()> {
        let size = theta.size();
        if (size.len() == 1 || size.len() == 2) && size.last() == Some(&self.count()) {
            return Ok(());
        }
        let p = self.count();
        Err(NetworkError::Shape {
            what: "θ",
            found: size,
            expected: format!("[{p}] or [M, {p}] for {}", self.name),
        })
    }

    /// Whether each model has inputs of its own, `[M, B, input…]`, rather than shared ones, `[B, input…]`.
    pub(crate) fn check_inputs(&self, x: &Tensor, models: Option<i64>) -> Result<bool> {
        let size = x.size();
        match size.len().checked_sub(self.input.len()) {
            Some(1) if size[1..] == self.input => return Ok(false),
            Some(2) if size[2..] == self.input && models == Some(size[0]) => return Ok(true),
            _ => {}
        }
        let input = self.input.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let stacked = models.map(|m| format!(" or [{m}, B, {input}]")).unwrap_or_default();
        Err(NetworkError::Shape { what: "x", found: size, expected: format!("[B, {input}]{stacked}") })
    }

    fn forward_single(&self, theta: &Tensor, x: &Tensor, fused: bool) -> Result<Tensor> {
        self.check_inputs(x, None)?;
        self.run(&self.steps, theta, x, fused)
    }

    /// The steps before the first one with weights, and that one: linear in these.
    pub(crate) fn first_linear(&self, theta: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.check_inputs(x, None)?;
        let first = self.first_weights();
        self.run(&self.steps[..=first], theta, x, true)
    }

    /// The outputs, from what [`Network::first_linear`] gives.
    pub(crate) fn behind_first_linear(&self, theta: &Tensor, y: &Tensor) -> Result<Tensor> {
        self.run(&self.steps[self.first_weights() + 1..], theta, y, true)
    }

    /// A network has a dense layer.
    fn first_weights(&self) -> usize {
        let weighted = |step: &Step| matches!(step, Step::Convolution { .. } | Step::Dense { .. });
        self.steps.iter().position(weighted).unwrap_or(self.steps.len() - 1)
    }

    /// Steps one after the other, which are the network's or a part of them.
    fn run(&self, mut steps: &[Step], theta: &Tensor, x: &Tensor, fused: bool) -> Result<Tensor> {
        let parameters = self.parameters.iter().map(|p| p.of(theta)).collect::<Result<Vec<_>>>()?;
        let mut y = x.shallow_clone();
        while let [step, rest @ ..] = steps {
            if fused
                && let Step::Convolution { weight, padding } = *step
                && let [Step::MaxPool { size: 2, rectified }, after @ ..] = rest
                && block::fits(&y, &parameters[weight])
            {
                y = block::evaluate(&y, &parameters[weight], &parameters[weight + 1], padding, *rectified)?;
                steps = after;
            } else if fused
                && let Step::Dense { weight } = *step
                // The very first step: its input is the images.
                && steps.as_ptr() == self.steps.as_ptr()
                && let Some(blocks) = NonzeroBlocks::of(&y, &parameters[weight])
            {
                y = sparse::forward(&blocks, &y, &parameters[weight], &parameters[weight + 1])?;
                steps = rest;
            } else {
                y = apply(*step, &y, &parameters, fused)?;
                steps = rest;
            }
        }
        Ok(y)
    }

    fn forward_stacked(&self, theta: &Tensor, x: &Tensor, fused: bool) -> Result<Tensor> {
        let models = theta.size()[0];
        let own = self.check_inputs(x, Some(models))?;
        let convolutional = self.steps.iter().any(|step| matches!(step, Step::Convolution { .. }));
        if convolutional && theta.device() == Device::Cpu {
            // Grouped convolution is three times slower than one model after the other on a CPU.
            let outputs = (0..models)
                .map(|m| {
                    let x = if own { x.f_select(0, m)? } else { x.shallow_clone() };
                    self.forward_single(&theta.f_select(0, m)?, &x, fused)
                })
                .collect::<Result<Vec<_>>>()?;
            return Ok(Tensor::f_stack(&outputs, 0)?);
        }
        let parameters = self.parameters.iter().map(|p| p.of(theta)).collect::<Result<Vec<_>>>()?;
        self.forward_grouped(&parameters, models, x, own)
    }

    /// All models at once: dense layers by batched matmul, convolutions as groups of one `[B, M C, H, W]`. `parameters` are
    /// views into θ or leaves of a graph, `[M, …]` each.
    #[allow(clippy::many_single_char_names)] // the field's own: x, y, w, b and the sizes
    pub(crate) fn forward_grouped(
        &self,
        parameters: &[Tensor],
        models: i64,
        x: &Tensor,
        own: bool,
    ) -> Result<Tensor> {
        let batch = x.size()[usize::from(own)];
        let mut y = x.shallow_clone();
        // Inputs that all models share stay one until the first weights come: a convolution then has all models' output channels.
        let mut shared = !own;
        let mut grouped = self.input.len() == 3;
        if own && grouped {
            let [c, h, w] = [self.input[0], self.input[1], self.input[2]];
            y = y.f_transpose(0, 1)?.f_reshape([batch, models * c, h, w])?;
        }
        for step in &self.steps {
            y = match *step {
                Step::Convolution { weight, padding } => {
                    let [w, b] = [&parameters[weight], &parameters[weight + 1]];
                    let groups = if shared { 1 } else { models };
                    shared = false;
                    y.f_conv2d(&w.f_flatten(0, 1)?, Some(b.f_flatten(0, 1)?), 1, padding, 1, groups)?
                }
                Step::Dense { weight } => {
                    if shared {
                        y = y.f_reshape([1, batch, -1])?.f_expand([models, -1, -1], true)?;
                    } else if grouped {
                        y = y.f_reshape([batch, models, -1])?.f_transpose(0, 1)?;
                    }
                    (shared, grouped) = (false, false);
                    let [w, b] = [&parameters[weight], &parameters[weight + 1]];
                    b.f_unsqueeze(1)?.f_baddbmm(&y, &w.f_transpose(1, 2)?, 1, 1)?
                }
                other => apply(other, &y, parameters, false)?,
            };
        }
        Ok(y)
    }
}

fn check_size(shape: &[i64]) -> Result<(), String> {
    let count = shape.iter().try_fold(1i128, |count, &n| count.checked_mul(i128::from(n)));
    if count.is_some_and(|count| count <= MOST_PARAMETERS) {
        return Ok(());
    }
    Err(format!("its weights, {shape:?}, are more than 2^40"))
}

/// One step of one model; `parameters` are views into θ or leaves of a graph.
pub(crate) fn apply(step: Step, x: &Tensor, parameters: &[Tensor], fused: bool) -> Result<Tensor> {
    Ok(match step {
        Step::Convolution { weight, padding } => {
            x.f_conv2d(&parameters[weight], Some(&parameters[weight + 1]), 1, padding, 1, 1)?
        }
        Step::MaxPool { size, rectified } if fused && pooling::fits(x, size) => {
            pooling::forward(x, rectified)?
        }
        Step::MaxPool { size, rectified } => {
            let y = x.f_max_pool2d(size, size, 0, 1, false)?;
            if rectified { y.f_relu()? } else { y }
        }
        Step::Dense { weight } => {
            let x = if x.dim() > 2 { x.f_flatten(1, -1)? } else { x.shallow_clone() };
            x.f_linear(&parameters[weight], Some(&parameters[weight + 1]))?
        }
        Step::Relu => x.f_relu()?,
        Step::LeakyRelu => x.f_leaky_relu()?,
        Step::Tanh => x.f_tanh()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::initialise_stacked;
    use tch::Kind;

    /// What a GPU computes, against what a CPU does: the public way never takes the groups there.
    #[test]
    fn groups_equal_one_model_after_the_other() {
        tch::set_num_threads(1);
        let padded = [
            Layer::Convolution { channels: 4, kernel: 5, padding: 2 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Convolution { channels: 3, kernel: 3, padding: 1 },
            Layer::MaxPool { size: 3 },
            Layer::LeakyRelu,
            Layer::Dense { width: 7 },
            Layer::Relu,
            Layer::Dense { width: 2 },
        ];
        let pixels =
            [Layer::MaxPool { size: 2 }, Layer::Dense { width: 5 }, Layer::Relu, Layer::Dense { width: 2 }];
        for network in [
            Network::lenet(),
            Network::new("padded", &[2, 15, 13], &padded).unwrap(),
            Network::new("pixels", &[2, 6, 7], &pixels).unwrap(),
            Network::dense(&[5, 4, 3], &Layer::LeakyRelu).unwrap(),
            Network::dense(&[5, 4, 3], &Layer::Tanh).unwrap(),
        ] {
            let seeds = [(0, 0), (0, 1), (1, 0)];
            let theta = initialise_stacked(&network, &seeds, Kind::Double, Device::Cpu).unwrap();
            for own in [false, true] {
                let stack: &[i64] = if own { &[3, 4] } else { &[4] };
                let count: i64 = stack.iter().chain(network.input()).product();
                let x = Tensor::arange(count, (Kind::Double, Device::Cpu)).f_sin().unwrap();
                let x = x.view([stack, network.input()].concat().as_slice());
                let parameters: Vec<Tensor> =
                    network.parameters.iter().map(|p| p.of(&theta).unwrap()).collect();
                let grouped = network.forward_grouped(&parameters, 3, &x, own).unwrap();
                assert_eq!(grouped.size(), [3, 4, network.outputs()]);
                for m in 0..3 {
                    let x = if own { x.get(m) } else { x.shallow_clone() };
                    let single = network.forward(&theta.get(m), &x).unwrap();
                    assert!(grouped.get(m).allclose(&single, 1e-12, 1e-12, false), "{} {m}", network.name());
                }
            }
        }
    }

    #[test]
    fn refuses_what_cannot_be_computed() {
        assert!(Network::dense(&[0, 3], &Layer::Relu).is_err());
        assert!(Network::dense(&[3], &Layer::Relu).is_err());
        assert!(Network::dense(&[3, 0], &Layer::Relu).is_err());
        let huge = Network::dense(&[1, i64::MAX, i64::MAX, 1], &Layer::Relu);
        assert!(huge.unwrap_err().to_string().contains("2^40"));
        assert!(Network::new("flat", &[28, 28], &[Layer::Dense { width: 1 }]).is_err());
        assert!(Network::new("open", &[1, 4, 4], &[Layer::MaxPool { size: 2 }]).is_err());
        let large = [Layer::Convolution { channels: 1, kernel: 5, padding: 0 }, Layer::Dense { width: 1 }];
        assert!(Network::new("large", &[1, 4, 9], &large).unwrap_err().to_string().starts_with("layer 0"));
    }
}
