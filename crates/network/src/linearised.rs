//! A network and its loss around one θ: derivatives along many directions at once, by Pearlmutter's R-operator.
//!
//! With z = f(θ, x) the outputs of N examples, J = ∂z/∂θ, L the mean loss and H_L = ∂²L/∂z²:
//!
//! - `J v`: one pass forwards, with the derivative of every activation along v beside the activation;
//! - `Jᵀ u`: one pass backwards;
//! - `G v = Jᵀ H_L J v`, G the generalised Gauss-Newton matrix (Schraudolph 2002, "Fast curvature matrix-vector products for second-order
//!   gradient descent"): both;
//! - `H v`, H the Hessian (Pearlmutter 1994, "Fast exact multiplication by the Hessian"): both, with what the backward pass itself changes
//!   along v.
//!
//! No graph is built and nothing is differentiated twice: a product costs about two gradients, and the forward pass, its winners and the
//! gradients by the activations are computed once for all products. Derivatives by ReLU, LeakyReLU and max-pooling are those of autograd:
//! second derivatives 0, at a kink the first one as there. Tested against autograd's double backward.
//!
//! Convolutions go by the kernels of [`crate::block`] where these fit, else by libtorch's operators: forwards as convolutions, with
//! the directions as further output channels; the gradients by weights as products with the unfolded input.

use crate::network::Step;
use crate::{Layer, Loss, Network, NetworkError, Parameter, Result, block};
use block::tangent::{self, Cotangent};
use tch::{Device, Kind, Tensor};

mod stacked;
pub use stacked::StackedLinearised;

/// A second-order derivative of the loss by θ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curvature {
    /// `H = ∂²L/∂θ²`.
    Hessian,
    /// `G = Jᵀ H_L J`: H without the second derivatives of the network, positive semi-definite.
    GaussNewton,
}

/// A piece of the examples, and all that the products need of it.
#[derive(Debug)]
pub struct Linearised {
    network: Network,
    /// Of θ, as views of their shapes.
    parameters: Vec<Tensor>,
    blocks: Vec<Block>,
    stages: Vec<Stage>,
    batch: i64,
    bend: Bend,
}

/// A convolution with its pooling.
#[derive(Debug)]
struct Block {
    weight: usize,
    saved: block::Saved,
    /// ∂L/∂y, of its output's shape.
    gradient: Option<Tensor>,
}

/// A convolution by libtorch's operators.
#[derive(Debug)]
struct Convolution {
    weight: usize,
    padding: i64,
    /// `[B, C, H, W]`.
    input: Tensor,
    /// ∂L/∂z by its outputs, `[B, O, H', W']`.
    gradient: Option<Tensor>,
}

/// A step behind the blocks; F is what it has as its input: of images, C H W.
#[derive(Debug)]
enum Stage {
    Convolution(Convolution),
    Pool {
        /// Of each window the place of its maximum in the plane, `[B, C, H' W']`.
        winners: Tensor,
        /// H W.
        plane: i64,
    },
    Dense {
        weight: usize,
        /// `[B, F]`.
        input: Tensor,
        /// ∂L/∂z by its outputs, `[B, outputs]`.
        gradient: Option<Tensor>,
    },
    Activation {
        /// σ'(z), `[B, F]`.
        slope: Tensor,
        /// σ''(z) ∂L/∂σ, `[B, F]`, where it is not 0 for all z.
        bend: Option<Tensor>,
    },
}

/// H_L, of the loss by the outputs.
#[derive(Debug)]
enum Bend {
    /// `share (diag p - p pᵀ)` of each example's softmax p, `[B, C]`; of a stack `[M, C, B]`.
    Softmax { probabilities: Tensor, share: f64 },
    /// A multiple of the identity.
    Multiple(f64),
}

/// Directions `[K, P]` in the forms that the products take them in. One for all pieces.
#[derive(Debug)]
pub struct Directions {
    count: i64,
    /// By the index of a layer's weight: of convolutions and dense layers.
    layers: Vec<Option<Direction>>,
}

#[derive(Debug)]
enum Direction {
    /// Ẇ `[O, C, K, K]` and ḃ `[O]` of one direction.
    One { weight: Tensor, bias: Tensor },
    /// Ẇ `[O, C K K, L]` and ḃ `[O, L]`, L eight or sixteen.
    Lanes { weight: Tensor, bias: Tensor },
    /// Ẇ `[K outputs, inputs]` and `[outputs, K inputs]`, ḃ `[K outputs]`. Of a convolution by libtorch's operators, the inputs are
    /// C K K.
    Dense { rows: Tensor, columns: Tensor, bias: Tensor },
}

impl Directions {
    /// Directions `[K, P]`, at most 16 where the network has convolutions.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when they are not the network's, or too many.
    pub fn of(network: &Network, directions: &Tensor) -> Result<Self> {
        let most = if network.is_convolutional() { tangent::LANES } else { i64::MAX };
        let size = directions.size();
        if size.len() != 2 || size[1] != network.count() || size[0] < 1 || size[0] > most {
            let most = if most == i64::MAX { String::new() } else { format!(", K at most {most}") };
            let expected = format!("[K, {}]{most}", network.count());
            return Err(NetworkError::Shape { what: "directions", found: size, expected });
        }
        let _no_grad = tch::no_grad_guard();
        let count = size[0];
        let parameters = network.parameters();
        let mut layers: Vec<Option<Direction>> = parameters.iter().map(|_| None).collect();
        let kernels = by_kernels(network, (directions.kind(), directions.device()));
        for step in network.steps() {
            match *step {
                Step::Convolution { weight, .. } if kernels => {
                    let [w, b] = [parameters[weight].of(directions)?, parameters[weight + 1].of(directions)?];
                    layers[weight] = Some(if count == 1 {
                        Direction::One {
                            weight: w.f_squeeze_dim(0)?.f_contiguous()?,
                            bias: b.f_squeeze_dim(0)?.f_contiguous()?,
                        }
                    } else {
                        let outputs = parameters[weight].shape[0];
                        let lanes = |t: &Tensor, size: &[i64]| -> Result<Tensor> {
                            let room = [size, &[tangent::lanes(count)]].concat();
                            let lanes = Tensor::f_zeros(room.as_slice(), (t.kind(), t.device()))?;
                            let last =
                                t.f_reshape([&[count], size].concat().as_slice())?.f_movedim_int(0, -1)?;
                            lanes.f_narrow(-1, 0, count)?.f_copy_(&last)?;
                            Ok(lanes)
                        };
                        let taps = parameters[weight].count() / outputs;
                        Direction::Lanes {
                            weight: lanes(&w, &[outputs, taps])?,
                            bias: lanes(&b, &[outputs])?,
                        }
                    });
                }
                Step::Dense { weight } | Step::Convolution { weight, .. } => {
                    let [w, b] = [parameters[weight].of(directions)?, parameters[weight + 1].of(directions)?];
                    let [outputs, inputs] = sizes(&parameters[weight]);
                    let w = w.f_reshape([count, outputs, inputs])?;
                    layers[weight] = Some(Direction::Dense {
                        columns: w.f_transpose(0, 1)?.f_reshape([outputs, count * inputs])?,
                        rows: w.f_reshape([count * outputs, inputs])?,
                        bias: b.f_reshape([count * outputs])?,
                    });
                }
                _ => {}
            }
        }
        Ok(Self { count, layers })
    }

    /// K.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// The same for another thread: handles onto the same memory.
    #[must_use]
    pub fn share(&self) -> Self {
        let share = |direction: &Direction| match direction {
            Direction::One { weight, bias } => {
                Direction::One { weight: weight.shallow_clone(), bias: bias.shallow_clone() }
            }
            Direction::Lanes { weight, bias } => {
                Direction::Lanes { weight: weight.shallow_clone(), bias: bias.shallow_clone() }
            }
            Direction::Dense { rows, columns, bias } => Direction::Dense {
                rows: rows.shallow_clone(),
                columns: columns.shallow_clone(),
                bias: bias.shallow_clone(),
            },
        };
        Self {
            count: self.count,
            layers: self.layers.iter().map(|layer| layer.as_ref().map(share)).collect(),
        }
    }
}

/// Sums of products over pieces, in the forms that they are added up in.
#[derive(Debug)]
pub struct Products {
    count: i64,
    /// As [`Directions`], with a second sum for what comes as columns.
    layers: Vec<Option<Direction>>,
}

impl Products {
    /// K zeros. θ says of which kind and where.
    ///
    /// # Errors
    /// When the device is full.
    pub fn zeros(network: &Network, count: i64, theta: &Tensor) -> Result<Self> {
        let options = (theta.kind(), theta.device());
        let parameters = network.parameters();
        let mut layers: Vec<Option<Direction>> = parameters.iter().map(|_| None).collect();
        let kernels = by_kernels(network, options);
        let zeros = |size: &[i64]| Tensor::f_zeros(size, options);
        for step in network.steps() {
            match *step {
                Step::Convolution { weight, .. } if kernels => {
                    let shape = &parameters[weight].shape;
                    layers[weight] = Some(if count == 1 {
                        Direction::One { weight: zeros(shape)?, bias: zeros(&shape[..1])? }
                    } else {
                        let taps = parameters[weight].count() / shape[0];
                        let lanes = tangent::lanes(count);
                        Direction::Lanes {
                            weight: zeros(&[shape[0], taps, lanes])?,
                            bias: zeros(&[shape[0], lanes])?,
                        }
                    });
                }
                Step::Dense { weight } | Step::Convolution { weight, .. } => {
                    let [outputs, inputs] = sizes(&parameters[weight]);
                    layers[weight] = Some(Direction::Dense {
                        rows: zeros(&[count * outputs, inputs])?,
                        columns: zeros(&[outputs, count * inputs])?,
                        bias: zeros(&[count * outputs])?,
                    });
                }
                _ => {}
            }
        }
        Ok(Self { count, layers })
    }

    /// As `[K, P]`.
    ///
    /// # Errors
    /// When the device is full.
    pub fn flat(&self, network: &Network) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let count = self.count;
        let mut parts = Vec::new();
        for (parameter, layer) in network.parameters().iter().zip(&self.layers) {
            match layer {
                Some(Direction::One { weight, bias }) => {
                    parts.push(weight.f_reshape([1, -1])?);
                    parts.push(bias.f_reshape([1, -1])?);
                }
                Some(Direction::Lanes { weight, bias }) => {
                    for lanes in [weight, bias] {
                        let last = lanes.f_narrow(-1, 0, count)?.f_movedim_int(-1, 0)?;
                        parts.push(last.f_reshape([count, -1])?);
                    }
                }
                Some(Direction::Dense { rows, columns, bias }) => {
                    let [outputs, inputs] = sizes(parameter);
                    let columns = columns.f_view([outputs, count, inputs])?.f_transpose(0, 1)?;
                    let weight = rows.f_view([count, outputs, inputs])?.f_add(&columns)?;
                    parts.push(weight.f_reshape([count, -1])?);
                    parts.push(bias.f_view([count, outputs])?);
                }
                None => {}
            }
        }
        Ok(Tensor::f_cat(&parts, 1)?)
    }

    fn at(&self, weight: usize) -> Result<&Direction> {
        self.layers[weight].as_ref().ok_or_else(other_network)
    }
}

/// Whether, for θ of these options, kernels of our own take all convolutions of a network, of which there may be none: unpadded ones with 2x2 pooling right behind them (and perhaps ReLU
/// between) that come before everything else, f32 on a CPU with AVX-512.
pub fn by_kernels(network: &Network, options: (Kind, Device)) -> bool {
    let mut steps = network.steps();
    while let [Step::Convolution { weight, padding: 0 }, Step::MaxPool { size: 2, .. }, rest @ ..] = steps {
        if network.parameters()[*weight].shape[2] as usize > block::MAX_KERNEL {
            return false;
        }
        steps = rest;
    }
    let rest = steps.iter().any(|step| matches!(step, Step::Convolution { .. } | Step::MaxPool { .. }));
    !rest && options == (Kind::Float, Device::Cpu) && block::available()
}

/// Outputs, and the inputs that enter each of them.
fn sizes(weight: &Parameter) -> [i64; 2] {
    [weight.shape[0], weight.shape[1..].iter().product()]
}

fn other_network() -> NetworkError {
    NetworkError::Setting("directions of another network".into())
}

/// What the forward pass along the directions leaves for the one backwards.
struct Forward {
    /// ẋ of each block, where it is not 0.
    blocks: Vec<Option<Tensor>>,
    /// The derivative of each stage's input, `[B, K, F]`, where it is not 0.
    stages: Vec<Option<Tensor>>,
    /// ż, `[B, K, outputs]`.
    outputs: Tensor,
}

impl Linearised {
    /// Around θ `[P]`, for B examples with inputs x `[B, input…]`; `L = share Σ ℓ` over them, so that 1/N as the share gives the mean over
    /// all N when the pieces' products are added.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when θ `[P]`, x or the targets do not fit, there is no example, or x is on another device than θ.
    #[allow(clippy::too_many_lines)] // one arm a step
    pub fn of(
        network: &Network,
        theta: &Tensor,
        x: &Tensor,
        targets: &Tensor,
        loss: Loss,
        share: f64,
    ) -> Result<Self> {
        network.check_theta(theta)?;
        network.check_inputs(x, None)?;
        for (what, found, fits, expected) in [
            ("θ", theta.size(), theta.dim() == 1, "[P]"),
            ("inputs", x.size(), x.size()[0] > 0, "at least one example"),
            ("inputs", x.size(), x.device() == theta.device(), "to be where θ is"),
        ] {
            if !fits {
                return Err(NetworkError::Shape { what, found, expected: expected.to_owned() });
            }
        }
        let _no_grad = tch::no_grad_guard();
        let theta = theta.f_detach()?.f_contiguous()?;
        let parameters = network.parameters().iter().map(|p| p.of(&theta)).collect::<Result<Vec<_>>>()?;
        let mut steps = network.steps();
        let mut y = x.f_to_kind(theta.kind())?;
        let mut blocks = Vec::new();
        let kernels = by_kernels(network, (theta.kind(), theta.device()));
        while kernels
            && let [Step::Convolution { weight, padding: 0 }, Step::MaxPool { size: 2, rectified }, rest @ ..] =
                steps
        {
            let weight = *weight;
            let (pooled, saved) =
                block::forward(&y, &parameters[weight], &parameters[weight + 1], 0, *rectified)?;
            debug_assert!(tangent::fits(&saved));
            blocks.push(Block { weight, saved, gradient: None });
            y = pooled;
            steps = rest;
        }
        let mut stages = Vec::new();
        let slopes =
            |of: &Tensor| -> Result<Tensor> { Ok(of.f_gt(0.)?.f_to_kind(of.kind())?.f_flatten(1, -1)?) };
        for step in steps {
            match *step {
                Step::Convolution { weight, padding } => {
                    let z =
                        y.f_conv2d(&parameters[weight], Some(&parameters[weight + 1]), 1, padding, 1, 1)?;
                    let convolution = Convolution { weight, padding, input: y, gradient: None };
                    stages.push(Stage::Convolution(convolution));
                    y = z;
                }
                Step::MaxPool { size, rectified } => {
                    let plane = y.size()[2..].iter().product();
                    let (pooled, winners) = y.f_max_pool2d_with_indices(size, size, 0, 1, false)?;
                    stages.push(Stage::Pool { winners: winners.f_flatten(2, -1)?, plane });
                    y = pooled;
                    if rectified {
                        y = y.f_relu()?;
                        stages.push(Stage::Activation { slope: slopes(&y)?, bend: None });
                    }
                }
                Step::Dense { weight } => {
                    if y.dim() > 2 {
                        y = y.f_flatten(1, -1)?;
                    }
                    let z = y.f_linear(&parameters[weight], Some(&parameters[weight + 1]))?;
                    stages.push(Stage::Dense { weight, input: y, gradient: None });
                    y = z;
                }
                Step::Relu => {
                    y = y.f_relu()?;
                    stages.push(Stage::Activation { slope: slopes(&y)?, bend: None });
                }
                Step::LeakyRelu => {
                    // 0.01 where z <= 0.
                    let slope = slopes(&y)?.f_mul_scalar(0.99)?.f_add_scalar(0.01)?;
                    y = y.f_leaky_relu()?;
                    stages.push(Stage::Activation { slope, bend: None });
                }
                Step::Tanh => {
                    y = y.f_tanh()?;
                    let flat = y.f_flatten(1, -1)?;
                    let slope = flat.f_square()?.f_neg()?.f_add_scalar(1.)?;
                    // tanh'' = -2 tanh tanh'; the gradient comes to it below.
                    let bend = flat.f_mul(&slope)?.f_mul_scalar(-2.)?;
                    stages.push(Stage::Activation { slope, bend: Some(bend) });
                }
            }
        }
        // Shapes, for an error that can be read.
        let _ = loss.mean(&y, targets)?;
        let (bend, gradient) = match loss {
            Loss::CrossEntropy => {
                let probabilities = y.f_softmax(-1, None)?;
                let hot = Tensor::f_zeros_like(&y)?.f_scatter_value(-1, &targets.f_unsqueeze(-1)?, 1.)?;
                let gradient = probabilities.f_sub(&hot)?.f_mul_scalar(share)?;
                (Bend::Softmax { probabilities, share }, gradient)
            }
            Loss::MeanSquaredError => {
                let scale = 2. * share / network.outputs() as f64;
                (Bend::Multiple(scale), y.f_sub(targets)?.f_mul_scalar(scale)?)
            }
        };
        let batch = x.size()[0];
        let mut made = Self { network: network.clone(), parameters, blocks, stages, batch, bend };
        made.backward_once(gradient)?;
        Ok(made)
    }

    /// ∂L by every output that the Hessian's products ask for, from the one by the network's.
    fn backward_once(&mut self, by_outputs: Tensor) -> Result<()> {
        let mut g = by_outputs;
        let lowest = self.lowest();
        for (index, stage) in self.stages.iter_mut().enumerate().rev() {
            // What enters it does not change along any direction.
            if Some(index) == lowest {
                return Ok(());
            }
            match stage {
                Stage::Convolution(convolution) => {
                    let w = &self.parameters[convolution.weight];
                    let (above, _, [height, width]) = convolution.planes(w);
                    let z = g.f_reshape([self.batch, above, height, width])?;
                    g = convolution.to_input(&z, w)?.f_flatten(1, -1)?;
                    convolution.gradient = Some(z);
                }
                Stage::Pool { winners, plane } => {
                    let [channels, pooled] = [winners.size()[1], winners.size()[2]];
                    let room = Tensor::f_zeros([self.batch, channels, *plane], (g.kind(), g.device()))?;
                    let parts = g.f_reshape([self.batch, channels, pooled])?;
                    g = room.f_scatter(2, winners, &parts)?.f_flatten(1, -1)?;
                }
                Stage::Dense { weight, gradient, .. } => {
                    let back = g.f_mm(&self.parameters[*weight])?;
                    *gradient = Some(g);
                    g = back;
                }
                Stage::Activation { slope, bend } => {
                    if let Some(bend) = bend {
                        *bend = bend.f_mul(&g)?;
                    }
                    g = g.f_mul(slope)?;
                }
            }
        }
        for (index, block) in self.blocks.iter_mut().enumerate().rev() {
            let gradient = g.f_contiguous()?;
            if index > 0 {
                g = tangent::input_gradient(&block.saved, &self.parameters[block.weight], &gradient)?;
            }
            block.gradient = Some(gradient);
        }
        Ok(())
    }

    /// The first stage with weights, where no block is before it: nothing goes further back.
    fn lowest(&self) -> Option<usize> {
        let weighted = |stage: &Stage| matches!(stage, Stage::Convolution(_) | Stage::Dense { .. });
        if self.blocks.is_empty() { self.stages.iter().position(weighted) } else { None }
    }

    /// B.
    pub fn batch(&self) -> i64 {
        self.batch
    }

    /// About how many bytes it holds of each example, for θ of these options.
    pub fn bytes(network: &Network, options: (Kind, Device)) -> i64 {
        let (kernels, size) = (by_kernels(network, options), options.0.elt_size_in_bytes() as i64);
        let input: i64 = network.input().iter().product();
        let layers = network.layers().into_iter().map(|layer| {
            let before: i64 = layer.input.iter().product();
            match layer.layer {
                // Its input, and the gradient by its outputs.
                Layer::Convolution { channels, kernel, padding } if !kernels => {
                    let after = |side: i64| side + 2 * padding - kernel + 1;
                    size * (before + channels * after(layer.input[1]) * after(layer.input[2]))
                }
                Layer::MaxPool { size: window } => {
                    let pooled = layer.input[0] * (layer.input[1] / window) * (layer.input[2] / window);
                    // Winners in a byte, output and gradient; or winners as indices, and slopes.
                    pooled * if kernels { 1 + 2 * size } else { 8 + size }
                }
                // Input, gradient, and slopes behind it.
                Layer::Dense { width } => size * (before + 2 * width),
                _ => 0,
            }
        });
        size * input + layers.sum::<i64>()
    }

    /// About how many bytes the largest intermediate result takes of each example and direction, where libtorch's operators convolve.
    pub fn working_bytes(network: &Network, kind: Kind) -> i64 {
        let unfolded = network.layers().into_iter().map(|layer| match layer.layer {
            Layer::Convolution { kernel, padding, .. } => {
                let after = |side: i64| side + 2 * padding - kernel + 1;
                layer.input[0] * kernel * kernel * after(layer.input[1]) * after(layer.input[2])
            }
            _ => 0,
        });
        unfolded.fold(network.widest(), i64::max) * kind.elt_size_in_bytes() as i64
    }

    fn forward(&self, directions: &Directions) -> Result<Forward> {
        let count = directions.count;
        let at =
            |weight: usize| directions.layers.get(weight).and_then(Option::as_ref).ok_or_else(other_network);
        let mut dx: Option<Tensor> = None;
        let mut of_blocks = Vec::with_capacity(self.blocks.len());
        for Block { weight, saved, .. } in &self.blocks {
            let w = &self.parameters[*weight];
            let dy = match at(*weight)? {
                Direction::One { weight: dw, bias } => {
                    tangent::forward_one(saved, w, (dw, bias), dx.as_ref())?
                }
                Direction::Lanes { weight: dw, bias } => tangent::forward(saved, w, (dw, bias), dx.as_ref())?,
                Direction::Dense { .. } => return Err(other_network()),
            };
            of_blocks.push(dx.take());
            dx = Some(dy);
        }
        // From lanes to rows: `[B, F, L]` to `[B, K, F]`.
        let mut t = match dx {
            Some(one) if count == 1 => Some(one.f_view([self.batch, 1, -1])?),
            Some(lanes) => Some(lanes.f_transpose(1, 2)?.f_narrow(1, 0, count)?.f_contiguous()?),
            None => None,
        };
        let mut of_stages = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            match stage {
                Stage::Convolution(convolution) => {
                    let Direction::Dense { rows, bias, .. } = at(convolution.weight)? else {
                        return Err(other_network());
                    };
                    let w = &self.parameters[convolution.weight];
                    let next = convolution.along(w, (rows, bias), t.as_ref(), count)?;
                    of_stages.push(t.take());
                    t = Some(next);
                }
                Stage::Pool { winners, plane } => {
                    let [channels, pooled] = [winners.size()[1], winners.size()[2]];
                    let of = |t: &Tensor| -> Result<Tensor> {
                        let t = t.f_reshape([self.batch, count, channels, *plane])?;
                        let taken = t.f_gather(
                            3,
                            &winners.f_unsqueeze(1)?.f_expand([-1, count, -1, -1], false)?,
                            false,
                        )?;
                        Ok(taken.f_reshape([self.batch, count, channels * pooled])?)
                    };
                    let next = t.as_ref().map(of).transpose()?;
                    of_stages.push(t.take());
                    t = next;
                }
                Stage::Dense { weight, input, .. } => {
                    let Direction::Dense { rows, bias, .. } = at(*weight)? else {
                        return Err(other_network());
                    };
                    let w = &self.parameters[*weight];
                    let (outputs, inputs) = w.size2()?;
                    let mut z = bias
                        .f_addmm(input, &rows.f_transpose(0, 1)?)?
                        .f_view([self.batch * count, outputs])?;
                    if let Some(t) = &t {
                        z = z.f_addmm_(&t.f_view([self.batch * count, inputs])?, &w.f_transpose(0, 1)?)?;
                    }
                    of_stages.push(t.take());
                    t = Some(z.f_view([self.batch, count, outputs])?);
                }
                Stage::Activation { slope, .. } => {
                    let next = t.as_ref().map(|t| t.f_mul(&slope.f_unsqueeze(1)?)).transpose()?;
                    of_stages.push(t.take());
                    t = next;
                }
            }
        }
        let outputs = t.ok_or_else(|| NetworkError::Setting("a network without layers".into()))?;
        Ok(Forward { blocks: of_blocks, stages: of_stages, outputs })
    }

    /// `H_L ż`, `[B, K, outputs]`.
    fn bent(&self, outputs: &Tensor) -> Result<Tensor> {
        Ok(match &self.bend {
            Bend::Softmax { probabilities, share } => {
                let p = probabilities.f_unsqueeze(1)?;
                let weighted = p.f_mul(outputs)?;
                let sum = weighted.f_sum_dim_intlist(Some([-1i64].as_slice()), true, None)?;
                weighted.f_sub(&p.f_mul(&sum)?)?.f_mul_scalar(*share)?
            }
            Bend::Multiple(scale) => outputs.f_mul_scalar(*scale)?,
        })
    }

    /// `Jᵀ u`, and with the directions and their forward pass what the backward pass itself changes along them.
    fn backward(
        &self,
        by_outputs: Tensor,
        along: Option<(&Directions, &Forward)>,
        into: &Products,
    ) -> Result<()> {
        let count = into.count;
        let rows = self.batch * count;
        let mut u = by_outputs;
        for (index, stage) in self.stages.iter().enumerate().rev() {
            match stage {
                Stage::Convolution(convolution) => {
                    let sums = into.at(convolution.weight)?;
                    let w = &self.parameters[convolution.weight];
                    let along = along.and_then(|(directions, forward)| {
                        Some((
                            directions.layers[convolution.weight].as_ref()?,
                            forward.stages[index].as_ref(),
                        ))
                    });
                    convolution.add_weights(&u, along.and_then(|(_, t)| t), sums, count)?;
                    if Some(index) == self.lowest() {
                        return Ok(());
                    }
                    u = convolution.back(&u, w, along.map(|(direction, _)| direction), count)?;
                }
                Stage::Pool { winners, plane } => {
                    let [channels, pooled] = [winners.size()[1], winners.size()[2]];
                    let room =
                        Tensor::f_zeros([self.batch, count, channels, *plane], (u.kind(), u.device()))?;
                    let places = winners.f_unsqueeze(1)?.f_expand([-1, count, -1, -1], false)?;
                    let parts = u.f_reshape([self.batch, count, channels, pooled])?;
                    u = room.f_scatter(3, &places, &parts)?.f_reshape([
                        self.batch,
                        count,
                        channels * plane,
                    ])?;
                }
                Stage::Dense { weight, input, gradient } => {
                    let Direction::Dense { rows: sum, columns, bias } = into.at(*weight)? else {
                        return Err(other_network());
                    };
                    let (mut sum, mut columns, mut bias) =
                        (sum.shallow_clone(), columns.shallow_clone(), bias.shallow_clone());
                    let w = &self.parameters[*weight];
                    let (outputs, inputs) = w.size2()?;
                    let wide = u.f_reshape([self.batch, count * outputs])?;
                    let _ = sum.f_addmm_(&wide.f_transpose(0, 1)?, input)?;
                    let _ = bias.f_add_(&wide.f_sum_dim_intlist(Some([0i64].as_slice()), false, None)?)?;
                    let curved = along.zip(gradient.as_ref());
                    if let Some(((_, forward), g)) = curved
                        && let Some(t) = &forward.stages[index]
                    {
                        let _ = columns
                            .f_addmm_(&g.f_transpose(0, 1)?, &t.f_view([self.batch, count * inputs])?)?;
                    }
                    if Some(index) == self.lowest() {
                        return Ok(());
                    }
                    let back = u.f_reshape([rows, outputs])?.f_mm(w)?;
                    if let Some(((directions, _), g)) = curved {
                        let Some(Direction::Dense { columns, .. }) = &directions.layers[*weight] else {
                            return Err(other_network());
                        };
                        let mut wide = back.f_view([self.batch, count * inputs])?;
                        let _ = wide.f_addmm_(g, columns)?;
                    }
                    u = back.f_view([self.batch, count, inputs])?;
                }
                Stage::Activation { slope, bend } => {
                    let mut back = u.f_mul(&slope.f_unsqueeze(1)?)?;
                    if let (Some((_, forward)), Some(bend)) = (along, bend)
                        && let Some(t) = &forward.stages[index]
                    {
                        back = back.f_add_(&bend.f_unsqueeze(1)?.f_mul(t)?)?;
                    }
                    u = back;
                }
            }
        }
        if self.blocks.is_empty() { Ok(()) } else { self.backward_blocks(&u, along, into) }
    }

    fn backward_blocks(
        &self,
        u: &Tensor,
        along: Option<(&Directions, &Forward)>,
        into: &Products,
    ) -> Result<()> {
        let count = into.count;
        // From rows to lanes: `[B, K, F]` to `[B, F, L]`.
        let mut tangent = if count == 1 {
            u.f_contiguous()?
        } else {
            let units = u.size()[2];
            let lanes = Tensor::f_zeros([self.batch, units, tangent::lanes(count)], (u.kind(), u.device()))?;
            lanes.f_narrow(2, 0, count)?.f_copy_(&u.f_transpose(1, 2)?)?;
            lanes
        };
        for (index, Block { weight, saved, gradient }) in self.blocks.iter().enumerate().rev() {
            let w = &self.parameters[*weight];
            let (mut curved, mut dx) = (None, None);
            if let (Some((directions, forward)), Some(gradient)) = (along, gradient) {
                dx = forward.blocks[index].as_ref();
                curved = match &directions.layers[*weight] {
                    Some(Direction::One { weight, .. } | Direction::Lanes { weight, .. }) => {
                        Some((gradient, weight))
                    }
                    _ => return Err(other_network()),
                };
            }
            let cotangent = Cotangent { tangent: &tangent, curved, dx };
            let back = match into.at(*weight)? {
                Direction::One { weight, bias } => {
                    tangent::backward_one(saved, w, cotangent, (weight, bias), index > 0)?
                }
                Direction::Lanes { weight, bias } => {
                    tangent::backward(saved, w, cotangent, (weight, bias), index > 0)?
                }
                Direction::Dense { .. } => return Err(other_network()),
            };
            if let Some(back) = back {
                tangent = back;
            }
        }
        Ok(())
    }

    /// Adds `H v` or `G v` of each direction, of this piece's share of the loss.
    ///
    /// # Errors
    /// When directions and sums are another network's, or of other numbers.
    pub fn add_products(&self, curvature: Curvature, directions: &Directions, into: &Products) -> Result<()> {
        check_count(directions.count, into)?;
        let _no_grad = tch::no_grad_guard();
        let forward = self.forward(directions)?;
        let by_outputs = self.bent(&forward.outputs)?;
        let along = (curvature == Curvature::Hessian).then_some((directions, &forward));
        self.backward(by_outputs, along, into)
    }

    /// `J v` of each direction, `[K, B, outputs]`.
    ///
    /// # Errors
    /// When the directions are another network's.
    pub fn jacobian_products(&self, directions: &Directions) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        Ok(self.forward(directions)?.outputs.f_transpose(0, 1)?.f_contiguous()?)
    }

    /// Adds `Jᵀ u` of each u of `[K, B, outputs]`.
    ///
    /// # Errors
    /// When u or the sums do not fit.
    pub fn add_transposed_products(&self, u: &Tensor, into: &Products) -> Result<()> {
        let expected = [into.count, self.batch, self.network.outputs()];
        if u.size() != expected {
            let expected = format!("{expected:?}");
            return Err(NetworkError::Shape { what: "vectors by the outputs", found: u.size(), expected });
        }
        let _no_grad = tch::no_grad_guard();
        self.backward(u.f_transpose(0, 1)?.f_contiguous()?, None, into)
    }
}

impl Convolution {
    /// Its output channels, its input's shape, and its outputs' height and width.
    fn planes(&self, weight: &Tensor) -> (i64, [i64; 3], [i64; 2]) {
        let (input, weight) = (self.input.size(), weight.size());
        let after = |side: i64| side + 2 * self.padding - weight[2] + 1;
        (weight[0], [input[1], input[2], input[3]], [after(input[2]), after(input[3])])
    }

    /// Of images `[B, C, H, W]` all that enters each output, `[B, C K K, H' W']`. By views and one copy: libtorch's `im2col` launches
    /// a kernel an image on a GPU.
    fn unfolded(&self, images: &Tensor, kernel: i64) -> Result<Tensor> {
        let padded = if self.padding > 0 {
            images.f_constant_pad_nd([self.padding; 4])?
        } else {
            images.shallow_clone()
        };
        let windows = padded.f_unfold(2, kernel, 1)?.f_unfold(3, kernel, 1)?;
        let size = windows.size();
        let (inputs, spots) = (size[1] * kernel * kernel, size[2] * size[3]);
        Ok(windows.f_permute([0, 1, 4, 5, 2, 3])?.f_reshape([size[0], inputs, spots])?)
    }

    /// From a gradient by its outputs, `[B, O, H', W']`, to the one by its inputs.
    fn to_input(&self, gradient: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(gradient.f_conv_transpose2d::<Tensor>(weight, None, 1, self.padding, 0, 1, 1)?)
    }

    /// From the derivatives of its input, `[B, K, C H W]` (`None`: 0), along K directions to those of its outputs.
    fn along(
        &self,
        weight: &Tensor,
        (rows, bias): (&Tensor, &Tensor),
        t: Option<&Tensor>,
        count: i64,
    ) -> Result<Tensor> {
        let (above, [channels, high, wide], [height, width]) = self.planes(weight);
        let (batch, kernel) = (self.input.size()[0], weight.size()[2]);
        // The directions as output channels.
        let dw = rows.f_view([count * above, channels, kernel, kernel])?;
        let mut z = self.input.f_conv2d(&dw, Some(bias), 1, self.padding, 1, 1)?;
        if let Some(t) = t {
            let t = t.f_reshape([batch * count, channels, high, wide])?;
            let more = t.f_conv2d::<Tensor>(weight, None, 1, self.padding, 1, 1)?;
            z = z.f_add_(&more.f_reshape([batch, count * above, height, width])?)?;
        }
        Ok(z.f_reshape([batch, count, above * height * width])?)
    }

    /// Adds its weights' part of `Jᵀ u`, u `[B, K, O H' W']`; with the derivatives t of its input, what the backward pass itself changes.
    fn add_weights(&self, u: &Tensor, t: Option<&Tensor>, sums: &Direction, count: i64) -> Result<()> {
        let Direction::Dense { rows, columns, bias } = sums else { return Err(other_network()) };
        let size = self.input.size();
        let (batch, channels) = (size[0], size[1]);
        let (above, inputs) = (rows.size()[0] / count, rows.size()[1]);
        let kernel = (inputs / channels).isqrt();
        let u = u.f_reshape([batch, count * above, -1])?;
        let over = |t: &Tensor, dimensions: &[i64]| t.f_sum_dim_intlist(Some(dimensions), false, None);
        let found = u.f_bmm(&self.unfolded(&self.input, kernel)?.f_transpose(1, 2)?)?;
        let _ = rows.shallow_clone().f_add_(&over(&found, &[0])?)?;
        let _ = bias.shallow_clone().f_add_(&over(&u, &[0, 2])?)?;
        if let (Some(t), Some(gradient)) = (t, &self.gradient) {
            let t = t.f_reshape([batch * count, channels, size[2], size[3]])?;
            let t = self.unfolded(&t, kernel)?.f_reshape([batch, count * inputs, -1])?;
            let found = gradient.f_flatten(2, -1)?.f_bmm(&t.f_transpose(1, 2)?)?;
            let _ = columns.shallow_clone().f_add_(&over(&found, &[0])?)?;
        }
        Ok(())
    }

    /// `Jᵀ u` by its input, `[B, K, C H W]`; along a direction with what the backward pass itself changes.
    fn back(&self, u: &Tensor, weight: &Tensor, along: Option<&Direction>, count: i64) -> Result<Tensor> {
        let (above, [channels, high, wide], [height, width]) = self.planes(weight);
        let (batch, kernel) = (self.input.size()[0], weight.size()[2]);
        let back = self.to_input(&u.f_reshape([batch * count, above, height, width])?, weight)?;
        let mut back = back.f_reshape([batch, count * channels, high, wide])?;
        if let (Some(direction), Some(gradient)) = (along, &self.gradient) {
            let Direction::Dense { columns, .. } = direction else { return Err(other_network()) };
            let dw = columns.f_view([above, count * channels, kernel, kernel])?;
            back = back.f_add_(&self.to_input(gradient, &dw)?)?;
        }
        Ok(back.f_reshape([batch, count, channels * high * wide])?)
    }
}

fn check_count(count: i64, into: &Products) -> Result<()> {
    if count == into.count {
        return Ok(());
    }
    let expected = format!("as many as sums, {}", into.count);
    Err(NetworkError::Shape { what: "directions", found: vec![count], expected })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::initialise;
    use tch::Device;

    pub(super) fn waves(size: &[i64], speed: f64, kind: Kind) -> Tensor {
        let count: i64 = size.iter().product();
        (Tensor::arange(count, (Kind::Double, Device::Cpu)).square() * speed).sin().to_kind(kind).view(size)
    }

    /// By differentiating a graph twice.
    pub(super) fn by_autograd(
        network: &Network,
        theta: &Tensor,
        x: &Tensor,
        targets: &Tensor,
        loss: Loss,
        v: &Tensor,
    ) -> Tensor {
        let rows: Vec<Tensor> = (0..v.size()[0])
            .map(|k| {
                let leaf = theta.detach().set_requires_grad(true);
                let mean = loss.mean(&network.forward(&leaf, x).unwrap(), targets).unwrap();
                let gradient = Tensor::run_backward(&[mean], &[&leaf], true, true).remove(0);
                let along = gradient.dot(&v.get(k));
                Tensor::run_backward(&[along], &[&leaf], false, false).remove(0)
            })
            .collect();
        Tensor::stack(&rows, 0)
    }

    /// J `[B outputs, P]`, row by row.
    pub(super) fn jacobian(network: &Network, theta: &Tensor, x: &Tensor) -> Tensor {
        let leaf = theta.detach().set_requires_grad(true);
        let outputs = network.forward(&leaf, x).unwrap().flatten(0, 1);
        let rows: Vec<Tensor> = (0..outputs.size()[0])
            .map(|row| Tensor::run_backward(&[outputs.get(row)], &[&leaf], true, false).remove(0))
            .collect();
        Tensor::stack(&rows, 0)
    }

    fn networks() -> Vec<Network> {
        let convolution = |channels, kernel| Layer::Convolution { channels, kernel, padding: 0 };
        let (pool, dense) = (Layer::MaxPool { size: 2 }, |width| Layer::Dense { width });
        let small = [convolution(3, 3), Layer::Relu, pool.clone(), dense(4)];
        let deep = [
            convolution(4, 2),
            pool.clone(),
            convolution(5, 3),
            Layer::Relu,
            pool,
            dense(5),
            Layer::Tanh,
            dense(6),
            Layer::LeakyRelu,
            dense(3),
        ];
        // What the kernels do not take: padding, other windows, a remainder, no pooling, a smooth activation.
        let padded = |channels, kernel| Layer::Convolution { channels, kernel, padding: 1 };
        let others = [
            padded(3, 3),
            Layer::Tanh,
            Layer::MaxPool { size: 3 },
            padded(4, 2),
            Layer::LeakyRelu,
            convolution(2, 3),
            dense(3),
        ];
        // Nothing changes along a direction before the first weights.
        let late = [Layer::MaxPool { size: 2 }, Layer::Tanh, padded(2, 3), Layer::Relu, dense(3)];
        vec![
            Network::new("late", &[2, 8, 6], &late).unwrap(),
            Network::new("others", &[2, 11, 10], &others).unwrap(),
            Network::new("bare", &[1, 4, 5], &[convolution(2, 3), dense(3)]).unwrap(),
            Network::dense(&[5, 3], &Layer::Relu).unwrap(),
            Network::dense(&[5, 6, 4, 3], &Layer::Relu).unwrap(),
            Network::dense(&[5, 6, 4, 3], &Layer::Tanh).unwrap(),
            Network::dense(&[5, 6, 4, 3], &Layer::LeakyRelu).unwrap(),
            Network::new("small", &[2, 6, 7], &small).unwrap(),
            Network::new("deep", &[1, 13, 12], &deep).unwrap(),
            Network::lenet(),
        ]
    }

    pub(super) fn close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
        let error = (found - expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
        assert!(error < tolerance, "{what}: {error:.1e}");
    }

    #[test]
    #[allow(clippy::many_single_char_names)] // the field's own
    fn products_are_those_of_autograd() {
        tch::set_num_threads(1);
        for network in networks() {
            for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-4)] {
                let theta = initialise(&network, 2, 0, kind, Device::Cpu).unwrap() * 1.5;
                let (batch, outputs) = (7, network.outputs());
                let x = waves(&[&[batch], network.input()].concat(), 0.37, kind);
                let labels = Tensor::arange(batch, (Kind::Int64, Device::Cpu)).remainder(outputs);
                let values = waves(&[batch, outputs], 0.11, kind);
                for (loss, targets) in [(Loss::CrossEntropy, &labels), (Loss::MeanSquaredError, &values)] {
                    let at = Linearised::of(&network, &theta, &x, targets, loss, 1. / batch as f64).unwrap();
                    for count in [1, 3, 9, 16] {
                        let what = format!("{} {kind:?} {loss:?} {count}", network.name());
                        let v = waves(&[count, network.count()], 0.23, kind);
                        let directions = Directions::of(&network, &v).unwrap();
                        let products = |curvature| {
                            let sums = Products::zeros(&network, count, &theta).unwrap();
                            at.add_products(curvature, &directions, &sums).unwrap();
                            sums.flat(&network).unwrap()
                        };
                        let expected = by_autograd(&network, &theta, &x, targets, loss, &v);
                        close(&products(Curvature::Hessian), &expected, tolerance, &what);

                        let j = jacobian(&network, &theta, &x);
                        let found = at.jacobian_products(&directions).unwrap();
                        assert_eq!(found.size(), [count, batch, outputs]);
                        close(&found.flatten(1, 2), &v.matmul(&j.tr()), tolerance, &what);
                        let u = waves(&[count, batch, outputs], 0.71, kind);
                        let sums = Products::zeros(&network, count, &theta).unwrap();
                        at.add_transposed_products(&u, &sums).unwrap();
                        close(&sums.flat(&network).unwrap(), &u.flatten(1, 2).matmul(&j), tolerance, &what);

                        // G = Jᵀ H_L J, with H_L example by example.
                        let z = network.forward(&theta, &x).unwrap();
                        let bent: Vec<Tensor> = (0..batch)
                            .map(|i| {
                                let jv = found.select(1, i).tr();
                                match loss {
                                    Loss::CrossEntropy => {
                                        let p = z.get(i).softmax(-1, None);
                                        (p.diag(0) - p.outer(&p)).matmul(&jv) / batch as f64
                                    }
                                    Loss::MeanSquaredError => jv * (2. / (batch * outputs) as f64),
                                }
                            })
                            .collect();
                        let expected = Tensor::cat(&bent, 0).tr().matmul(&j);
                        close(&products(Curvature::GaussNewton), &expected, tolerance, &what);
                    }
                }
            }
        }
    }

    #[test]
    fn pieces_add_up() {
        tch::set_num_threads(1);
        let network = Network::dense(&[5, 6, 4, 3], &Layer::Tanh).unwrap();
        let theta = initialise(&network, 2, 0, Kind::Double, Device::Cpu).unwrap();
        let x = waves(&[10, 5], 0.37, Kind::Double);
        let targets = Tensor::arange(10, (Kind::Int64, Device::Cpu)).remainder(3);
        let v = waves(&[2, network.count()], 0.23, Kind::Double);
        let directions = Directions::of(&network, &v).unwrap();
        let sums = Products::zeros(&network, 2, &theta).unwrap();
        for (start, length) in [(0, 3), (3, 6), (9, 1)] {
            let (x, targets) = (x.narrow(0, start, length), targets.narrow(0, start, length));
            let piece = Linearised::of(&network, &theta, &x, &targets, Loss::CrossEntropy, 0.1).unwrap();
            assert_eq!(piece.batch(), length);
            piece.add_products(Curvature::Hessian, &directions.share(), &sums).unwrap();
        }
        let expected = by_autograd(&network, &theta, &x, &targets, Loss::CrossEntropy, &v);
        close(&sums.flat(&network).unwrap(), &expected, 1e-13, "three pieces");
    }

    #[test]
    fn says_what_does_not_fit() {
        let network = Network::lenet();
        let error = |v: &Tensor| Directions::of(&network, v).unwrap_err().to_string();
        let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
        assert!(error(&zeros(&[17, network.count()])).contains("at most 16"));
        assert!(error(&zeros(&[2, 5])).contains("[K, 61706]"));
        let padded = [
            Layer::Convolution { channels: 2, kernel: 3, padding: 1 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Dense { width: 3 },
        ];
        let padded = Network::new("padded", &[1, 6, 6], &padded).unwrap();
        let theta = initialise(&padded, 1, 0, Kind::Float, Device::Cpu).unwrap();
        let (x, targets) = (zeros(&[2, 1, 6, 6]), Tensor::zeros([2], (Kind::Int64, Device::Cpu)));
        let of = |x: &Tensor, targets: &Tensor| {
            Linearised::of(&padded, &theta, x, targets, Loss::CrossEntropy, 0.5)
        };
        assert!(of(&x, &targets).is_ok());
        assert!(of(&x.narrow(2, 0, 5), &targets).is_err());
        assert!(of(&x.narrow(0, 0, 0), &targets.narrow(0, 0, 0)).is_err());
    }
}
