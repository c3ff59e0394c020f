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
//! Convolutions go by the kernels of [`crate::block`] where these fit, else by libtorch's operators. On a GPU those of few channels on
//! small images are products of matrices (`linearised/rows.rs`). The others: forwards as convolutions, with the directions as
//! further output channels; the gradients by weights as products with the unfolded input.

mod rows;

use crate::network::Step;
use crate::{Layer, Loss, Network, NetworkError, Parameter, Result, block};
use block::tangent::{self, Cotangent};
use rows::{Rows, add_transposed_product};
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

/// A convolution by rows.
#[derive(Debug)]
struct ByRows {
    weight: usize,
    shape: Rows,
    /// Its input unfolded, with the ones, `[B H', k C W + …]`.
    input: Tensor,
    /// w as a matrix, `[k C W, O W']`.
    matrix: Tensor,
    /// ∂L/∂z by its outputs, `[B H', O W']`.
    gradient: Option<Tensor>,
}

/// How the derivatives of B images along K directions lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// `[B, K, C H W]`; and all that are no images, `[B, K, F]`.
    Planes,
    /// `[B, H, K, C W]`.
    Rows,
}

/// A max-pooling. Windows do not overlap, so that each number of its input is the maximum of one at most.
#[derive(Debug)]
struct Pool {
    /// Of each window its maximum's distance from its first number, in [`Pool::from`]'s order for one direction: `[B, 1, C, H', W']`, of
    /// rows `[B, H', 1, C, W']`, as [`Pool::to`] has it.
    places: Tensor,
    size: i64,
    /// C, H and W of its input.
    plane: [i64; 3],
    from: Order,
    to: Order,
}

/// A step behind the blocks; F is what it has as its input: of images, C H W.
#[derive(Debug)]
enum Stage {
    Convolution(Convolution),
    ByRows(ByRows),
    Pool(Pool),
    /// To another order, of images of this C, H and W.
    Turn {
        plane: [i64; 3],
        to: Order,
    },
    Dense {
        weight: usize,
        /// `[B, F]`.
        input: Tensor,
        /// ∂L/∂z by its outputs, `[B, outputs]`.
        gradient: Option<Tensor>,
    },
    Activation {
        /// σ'(z), `[B, 1, F]`, of rows `[B, H, 1, C W]`.
        slope: Tensor,
        /// σ''(z) ∂L/∂σ of the same shape, where it is not 0 for all z.
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
    /// Ẇ and ḃ as matrices side by side, `[k C W + …, K O W']`, and transposed, `[O W', K k C W]`, of a convolution by rows.
    ByRows { spread: Tensor, transposed: Tensor },
}

impl Directions {
    /// Directions `[K, P]`, at most 16 where the network has convolutions.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when they are not the network's, or too many.
    pub fn of(network: &Network, directions: &Tensor) -> Result<Self> {
        let by_rows = Rows::chosen(network, (directions.kind(), directions.device()));
        Self::of_ways(network, directions, &by_rows)
    }

    fn of_ways(network: &Network, directions: &Tensor, by_rows: &[Option<Rows>]) -> Result<Self> {
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
                Step::Convolution { weight, .. } if by_rows[weight].is_some() => {
                    let rows = by_rows[weight].ok_or_else(other_network)?;
                    let [w, b] = [parameters[weight].of(directions)?, parameters[weight + 1].of(directions)?];
                    let spread = rows.spread(&w, &b)?;
                    let transposed = rows.transposed(&spread, count)?;
                    layers[weight] = Some(Direction::ByRows { spread, transposed });
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
            Direction::ByRows { spread, transposed } => {
                Direction::ByRows { spread: spread.shallow_clone(), transposed: transposed.shallow_clone() }
            }
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
    /// As [`Directions`], with a second sum for what comes as columns or transposed.
    layers: Vec<Option<Direction>>,
    /// By the index of its weight, each convolution by rows.
    by_rows: Vec<Option<Rows>>,
}

impl Products {
    /// K zeros. θ says of which kind and where.
    ///
    /// # Errors
    /// When the device is full.
    pub fn zeros(network: &Network, count: i64, theta: &Tensor) -> Result<Self> {
        let options = (theta.kind(), theta.device());
        Self::of_ways(network, count, options, Rows::chosen(network, options))
    }

    fn of_ways(
        network: &Network,
        count: i64,
        options: (Kind, Device),
        by_rows: Vec<Option<Rows>>,
    ) -> Result<Self> {
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
                Step::Convolution { weight, .. } if by_rows[weight].is_some() => {
                    let rows = by_rows[weight].ok_or_else(other_network)?;
                    layers[weight] = Some(Direction::ByRows {
                        spread: zeros(&[rows.inputs_and_one(), count * rows.outputs()])?,
                        transposed: zeros(&[rows.outputs(), count * rows.inputs()])?,
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
        Ok(Self { count, layers, by_rows })
    }

    /// As `[K, P]`.
    ///
    /// # Errors
    /// When the device is full.
    pub fn flat(&self, network: &Network) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let count = self.count;
        let mut parts = Vec::new();
        for ((parameter, layer), rows) in network.parameters().iter().zip(&self.layers).zip(&self.by_rows) {
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
                Some(Direction::ByRows { spread, transposed }) => {
                    let rows = rows.as_ref().ok_or_else(other_network)?;
                    parts.extend(rows.gathered(spread, transposed, count)?);
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
    pub fn of(
        network: &Network,
        theta: &Tensor,
        x: &Tensor,
        targets: &Tensor,
        loss: Loss,
        share: f64,
    ) -> Result<Self> {
        let by_rows = Rows::chosen(network, (theta.kind(), theta.device()));
        Self::of_ways(network, theta, (x, targets), loss, share, &by_rows)
    }

    #[allow(clippy::too_many_lines)] // one arm a step
    fn of_ways(
        network: &Network,
        theta: &Tensor,
        (x, targets): (&Tensor, &Tensor),
        loss: Loss,
        share: f64,
        by_rows: &[Option<Rows>],
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
        let mut order = Order::Planes;
        let slopes = |of: &Tensor, order: Order| -> Result<Tensor> {
            order.of_one(&of.f_gt(0.)?.f_to_kind(of.kind())?)
        };
        for (index, step) in steps.iter().enumerate() {
            match *step {
                Step::Convolution { weight, padding } => {
                    let rows = by_rows[weight];
                    let to = if rows.is_some() { Order::Rows } else { Order::Planes };
                    turn(&mut stages, &mut order, to, &y)?;
                    let (w, bias) = (&parameters[weight], &parameters[weight + 1]);
                    let z = y.f_conv2d(w, Some(bias), 1, padding, 1, 1)?;
                    stages.push(match rows {
                        Some(shape) => Stage::ByRows(ByRows {
                            weight,
                            shape,
                            input: shape.unfolded_and_one(&Order::Rows.of_one(&y)?)?,
                            matrix: shape.spread(&w.f_unsqueeze(0)?, &bias.f_unsqueeze(0)?)?.f_narrow(
                                0,
                                0,
                                shape.inputs(),
                            )?,
                            gradient: None,
                        }),
                        None => Stage::Convolution(Convolution { weight, padding, input: y, gradient: None }),
                    });
                    y = z;
                }
                Step::MaxPool { size, rectified } => {
                    let (pooled, winners) = y.f_max_pool2d_with_indices(size, size, 0, 1, false)?;
                    let to = Order::wanted(&steps[index + 1..], by_rows);
                    stages.push(Stage::Pool(Pool::of(&winners, size, plane(&y)?, order, to)?));
                    order = to;
                    y = pooled;
                    if rectified {
                        y = y.f_relu()?;
                        stages.push(Stage::Activation { slope: slopes(&y, order)?, bend: None });
                    }
                }
                Step::Dense { weight } => {
                    turn(&mut stages, &mut order, Order::Planes, &y)?;
                    if y.dim() > 2 {
                        y = y.f_flatten(1, -1)?;
                    }
                    let z = y.f_linear(&parameters[weight], Some(&parameters[weight + 1]))?;
                    stages.push(Stage::Dense { weight, input: y, gradient: None });
                    y = z;
                }
                Step::Relu => {
                    y = y.f_relu()?;
                    stages.push(Stage::Activation { slope: slopes(&y, order)?, bend: None });
                }
                Step::LeakyRelu => {
                    // 0.01 where z <= 0.
                    let slope = slopes(&y, order)?.f_mul_scalar(0.99)?.f_add_scalar(0.01)?;
                    y = y.f_leaky_relu()?;
                    stages.push(Stage::Activation { slope, bend: None });
                }
                Step::Tanh => {
                    y = y.f_tanh()?;
                    let tanh = order.of_one(&y)?;
                    let slope = tanh.f_square()?.f_neg()?.f_add_scalar(1.)?;
                    // tanh'' = -2 tanh tanh'; the gradient comes to it below.
                    let bend = tanh.f_mul(&slope)?.f_mul_scalar(-2.)?;
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
        made.backward_once(&gradient)?;
        Ok(made)
    }

    /// ∂L by every output that the Hessian's products ask for, from the one by the network's.
    fn backward_once(&mut self, by_outputs: &Tensor) -> Result<()> {
        let mut g = by_outputs.f_unsqueeze(1)?;
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
                    g = convolution.to_input(&z, w)?.f_reshape([self.batch, 1, -1])?;
                    convolution.gradient = Some(z);
                }
                Stage::ByRows(rows) => {
                    let z = g.f_reshape([-1, rows.shape.outputs()])?;
                    g = rows.back(&z, None, 1)?;
                    rows.gradient = Some(z);
                }
                Stage::Pool(pool) => g = pool.back(&g, 1)?,
                Stage::Turn { plane, to } => g = to.other().turned(&g, *plane)?,
                Stage::Dense { weight, gradient, .. } => {
                    let z = g.f_squeeze_dim(1)?;
                    g = z.f_mm(&self.parameters[*weight])?.f_unsqueeze(1)?;
                    *gradient = Some(z);
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
        let weighted =
            |stage: &Stage| matches!(stage, Stage::Convolution(_) | Stage::ByRows(_) | Stage::Dense { .. });
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
        let mut by_rows = Rows::chosen(network, options).into_iter().step_by(2);
        // Nothing goes back behind the first weights: no gradient is held there.
        let mut first = true;
        let layers = network.layers().into_iter().map(|layer| {
            let before: i64 = layer.input.iter().product();
            let rows = layer.parameters.and_then(|_| by_rows.next().flatten());
            let gradient = i64::from(layer.parameters.is_none() || !std::mem::take(&mut first));
            match layer.layer {
                Layer::Convolution { channels, kernel, padding } if !kernels => {
                    let after = |side: i64| side + 2 * padding - kernel + 1;
                    let outputs = channels * after(layer.input[1]) * after(layer.input[2]);
                    let input = rows.map_or(before, |rows| rows.height() * rows.inputs_and_one());
                    size * (input + gradient * outputs)
                }
                Layer::MaxPool { size: window } => {
                    let pooled = layer.input[0] * (layer.input[1] / window) * (layer.input[2] / window);
                    // Winners in a byte, output and gradient; or winners as indices.
                    pooled * if kernels { 1 + 2 * size } else { 8 }
                }
                Layer::Dense { width } => size * (before + gradient * width),
                // The kernels' own.
                Layer::Relu if kernels && layer.input.len() == 3 => 0,
                // Slopes, and where they change by how much.
                Layer::Relu | Layer::LeakyRelu => size * before,
                Layer::Tanh => 2 * size * before,
                Layer::Convolution { .. } => 0,
            }
        });
        // The others hold it as a layer's.
        i64::from(kernels) * size * input + layers.sum::<i64>()
    }

    /// About how many bytes the largest intermediate result of libtorch's operators takes of each example and direction, for θ of these
    /// options.
    pub fn working_bytes(network: &Network, options: (Kind, Device)) -> i64 {
        let mut by_rows = Rows::chosen(network, options).into_iter().step_by(2);
        let unfolded = network.layers().into_iter().map(|layer| {
            let rows = layer.parameters.and_then(|_| by_rows.next().flatten());
            match (layer.layer, rows) {
                (_, Some(rows)) => rows.height() * rows.inputs(),
                (Layer::Convolution { kernel, padding, .. }, None) => {
                    let after = |side: i64| side + 2 * padding - kernel + 1;
                    layer.input[0] * kernel * kernel * after(layer.input[1]) * after(layer.input[2])
                }
                _ => 0,
            }
        });
        unfolded.fold(network.widest(), i64::max) * options.0.elt_size_in_bytes() as i64
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
                _ => return Err(other_network()),
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
                Stage::ByRows(rows) => {
                    let Direction::ByRows { spread, .. } = at(rows.weight)? else {
                        return Err(other_network());
                    };
                    let (next, unfolded) = rows.along(spread, t.as_ref(), count)?;
                    of_stages.push(unfolded);
                    t = Some(next);
                }
                Stage::Pool(pool) => {
                    let next = t.as_ref().map(|t| pool.along(t, count)).transpose()?;
                    of_stages.push(None);
                    t = next;
                }
                Stage::Turn { plane, to } => {
                    let next = t.as_ref().map(|t| to.turned(t, *plane)).transpose()?;
                    of_stages.push(None);
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
                Stage::Activation { slope, bend } => {
                    let next = t.as_ref().map(|t| t.f_mul(slope)).transpose()?;
                    of_stages.push(t.take().filter(|_| bend.is_some()));
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
                Stage::ByRows(rows) => {
                    let Direction::ByRows { spread, transposed } = into.at(rows.weight)? else {
                        return Err(other_network());
                    };
                    let z = u.f_reshape([-1, count * rows.shape.outputs()])?;
                    add_transposed_product(spread, &rows.input, &z)?;
                    let curved = along.zip(rows.gradient.as_ref());
                    if let Some(((_, forward), g)) = curved
                        && let Some(t) = &forward.stages[index]
                    {
                        add_transposed_product(transposed, g, &t.f_view([-1, count * rows.shape.inputs()])?)?;
                    }
                    if Some(index) == self.lowest() {
                        return Ok(());
                    }
                    let along = match along.map(|(directions, _)| &directions.layers[rows.weight]) {
                        Some(Some(Direction::ByRows { transposed, .. })) => Some(transposed),
                        None => None,
                        _ => return Err(other_network()),
                    };
                    u = rows.back(&z, along, count)?;
                }
                Stage::Pool(pool) => u = pool.back(&u, count)?,
                Stage::Turn { plane, to } => u = to.other().turned(&u, *plane)?,
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
                    let mut back = u.f_mul(slope)?;
                    if let (Some((_, forward)), Some(bend)) = (along, bend)
                        && let Some(t) = &forward.stages[index]
                    {
                        back = back.f_add_(&bend.f_mul(t)?)?;
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
                _ => return Err(other_network()),
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

impl ByRows {
    /// From the derivatives of its input, `[B, H, K, C W]` (`None`: 0), along K directions to those of its outputs, `[B, H', K, O W']`; with the
    /// former unfolded.
    fn along(&self, spread: &Tensor, t: Option<&Tensor>, count: i64) -> Result<(Tensor, Option<Tensor>)> {
        let outputs = self.shape.outputs();
        let mut z = self.input.f_mm(spread)?.f_view([-1, outputs])?;
        let unfolded = t.map(|t| self.shape.unfolded(t)).transpose()?;
        if let Some(unfolded) = &unfolded {
            z = z.f_addmm_(unfolded, &self.matrix)?;
        }
        Ok((z.f_view([-1, self.shape.height(), count, outputs])?, unfolded))
    }

    /// `Jᵀ u` by its input, `[B, H, K, C W]`, u `[B H', K O W']`; along directions, transposed, with what the backward pass itself changes.
    fn back(&self, u: &Tensor, along: Option<&Tensor>, count: i64) -> Result<Tensor> {
        let u = u.f_view([-1, self.shape.outputs()])?;
        let w = self.matrix.f_transpose(0, 1)?;
        let back = match along.zip(self.gradient.as_ref()) {
            Some((along, gradient)) => {
                gradient.f_mm(along)?.f_view([-1, self.shape.inputs()])?.f_addmm_(&u, &w)?
            }
            None => u.f_mm(&w)?,
        };
        self.shape.folded(&back, count)
    }
}

/// C, H and W of images `[B, C, H, W]`.
fn plane(images: &Tensor) -> Result<[i64; 3]> {
    let (_, channels, height, width) = images.size4()?;
    Ok([channels, height, width])
}

/// A stage that brings the derivatives of images y to another order.
fn turn(stages: &mut Vec<Stage>, order: &mut Order, to: Order, y: &Tensor) -> Result<()> {
    // Before the first stage there are none.
    if *order != to && !stages.is_empty() {
        stages.push(Stage::Turn { plane: plane(y)?, to });
    }
    *order = to;
    Ok(())
}

impl Order {
    /// What the next layer with weights takes.
    fn wanted(steps: &[Step], by_rows: &[Option<Rows>]) -> Self {
        let weighted = |step: &Step| match *step {
            Step::Convolution { weight, .. } => Some(by_rows[weight].is_some()),
            Step::Dense { .. } => Some(false),
            _ => None,
        };
        if steps.iter().find_map(weighted) == Some(true) { Self::Rows } else { Self::Planes }
    }

    fn other(self) -> Self {
        match self {
            Self::Planes => Self::Rows,
            Self::Rows => Self::Planes,
        }
    }

    /// Numbers of the examples themselves, `[B, C, H, W]` or `[B, F]`, as those along one direction.
    fn of_one(self, y: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Planes => y.f_flatten(1, -1)?.f_unsqueeze(1)?,
            Self::Rows => y.f_transpose(1, 2)?.f_flatten(2, 3)?.f_unsqueeze(2)?,
        })
    }

    /// What is in the other order in this one.
    fn turned(self, t: &Tensor, [channels, height, width]: [i64; 3]) -> Result<Tensor> {
        let size = t.size();
        Ok(match self {
            Self::Planes => t
                .f_reshape([size[0], height, size[2], channels, width])?
                .f_permute([0, 2, 3, 1, 4])?
                .f_reshape([size[0], size[2], -1])?,
            Self::Rows => t
                .f_reshape([size[0], size[1], channels, height, width])?
                .f_permute([0, 3, 1, 2, 4])?
                .f_reshape([size[0], height, size[1], -1])?,
        })
    }
}

impl Pool {
    /// From the places of the maxima in their planes, `[B, C, H', W']`.
    fn of(winners: &Tensor, size: i64, plane: [i64; 3], from: Order, to: Order) -> Result<Self> {
        let (_, _, height, width) = winners.size4()?;
        let [channels, _, wide] = plane;
        let firsts = |count: i64| -> Result<Tensor> {
            Ok(Tensor::f_arange(count, (Kind::Int64, winners.device()))?.f_mul_scalar(size)?)
        };
        let rows = winners.f_floor_divide_scalar(wide)?.f_sub(&firsts(height)?.f_unsqueeze(1)?)?;
        let columns = winners.f_remainder(wide)?.f_sub(&firsts(width)?)?;
        let row = if from == Order::Rows { channels * wide } else { wide };
        let places = rows.f_mul_scalar(row)?.f_add(&columns)?;
        let places = match to {
            Order::Planes => places.f_unsqueeze(1)?,
            Order::Rows => places.f_transpose(1, 2)?.f_unsqueeze(2)?.f_contiguous()?,
        };
        Ok(Self { places, size, plane, from, to })
    }

    /// Numbers a row of its input, all directions.
    fn row(&self, count: i64) -> i64 {
        let [channels, _, wide] = self.plane;
        if self.from == Order::Rows { count * channels * wide } else { wide }
    }

    /// Of its input's derivatives each window's first number, and behind it all up to its last one: views that overlap, of the size of
    /// the outputs' and one dimension more.
    fn windows(&self, t: &Tensor, batch: i64, count: i64) -> Result<Tensor> {
        let ([channels, high, wide], size, row) = (self.plane, self.size, self.row(count));
        let image = count * channels * high * wide;
        let (direction, channel) = match self.from {
            Order::Planes => (channels * high * wide, high * wide),
            Order::Rows => (channels * wide, wide),
        };
        let (height, width, span) = (high / size, wide / size, (size - 1) * row + size);
        Ok(match self.to {
            Order::Planes => t.f_as_strided(
                [batch, count, channels, height, width, span],
                [image, direction, channel, size * row, size, 1],
                None,
            )?,
            Order::Rows => t.f_as_strided(
                [batch, height, count, channels, width, span],
                [image, size * row, direction, channel, size, 1],
                None,
            )?,
        })
    }

    /// [`Pool::places`] for K directions.
    fn places(&self, count: i64) -> Result<Tensor> {
        let mut places = self.places.shallow_clone();
        if self.from == Order::Rows && count > 1 {
            let row = self.row(1);
            places = places.f_floor_divide_scalar(row)?.f_mul_scalar(row * (count - 1))?.f_add_(&places)?;
        }
        let mut size = places.size();
        size[if self.to == Order::Rows { 2 } else { 1 }] = count;
        Ok(places.f_expand(size, false)?.f_unsqueeze(-1)?)
    }

    /// From the derivatives of its input to those of its outputs.
    fn along(&self, t: &Tensor, count: i64) -> Result<Tensor> {
        let (t, batch) = (t.f_contiguous()?, self.places.size()[0]);
        let taken = self.windows(&t, batch, count)?.f_gather(-1, &self.places(count)?, false)?;
        Ok(match self.to {
            Order::Planes => taken.f_flatten(2, -1)?,
            Order::Rows => taken.f_flatten(3, -1)?,
        })
    }

    /// The transposed.
    fn back(&self, u: &Tensor, count: i64) -> Result<Tensor> {
        let ([channels, high, wide], batch) = (self.plane, self.places.size()[0]);
        let size = match self.from {
            Order::Planes => vec![batch, count, channels * high * wide],
            Order::Rows => vec![batch, high, count, channels * wide],
        };
        let room = Tensor::f_zeros(size, (u.kind(), u.device()))?;
        let places = self.places(count)?;
        let u = u.f_reshape(places.size())?;
        let _ = self.windows(&room, batch, count)?.f_scatter_(-1, &places, &u)?;
        Ok(room)
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
        // A third convolution, windows of three with a remainder on both sides behind rows, a smooth activation between, no pooling at the end.
        let three = [
            padded(2, 3),
            Layer::MaxPool { size: 3 },
            Layer::Tanh,
            Layer::Convolution { channels: 3, kernel: 3, padding: 2 },
            Layer::MaxPool { size: 2 },
            Layer::Relu,
            padded(2, 2),
            Layer::Tanh,
            dense(3),
        ];
        vec![
            Network::new("three", &[2, 11, 14], &three).unwrap(),
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

    /// Which convolutions go by rows: none, all, the first and third, the second; each way once.
    fn ways(network: &Network) -> Vec<Vec<Option<Rows>>> {
        let all = Rows::all(network);
        let mut ways: Vec<Vec<Option<Rows>>> = Vec::new();
        for takes in [[false, false], [true, true], [true, false], [false, true]] {
            let mut takes = takes.into_iter().cycle();
            let way = all.iter().map(|rows| rows.filter(|_| takes.next() == Some(true))).collect();
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        ways
    }

    #[test]
    fn products_are_those_of_autograd() {
        tch::set_num_threads(1);
        for network in networks() {
            for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-4)] {
                // In f32 all or none.
                let most = if kind == Kind::Double { 4 } else { 2 };
                for by_rows in ways(&network).into_iter().take(most) {
                    for loss in [Loss::CrossEntropy, Loss::MeanSquaredError] {
                        compare(&network, (kind, tolerance), &by_rows, loss);
                    }
                }
            }
        }
    }

    #[allow(clippy::many_single_char_names)] // the field's own
    fn compare(network: &Network, (kind, tolerance): (Kind, f64), by_rows: &[Option<Rows>], loss: Loss) {
        let theta = initialise(network, 2, 0, kind, Device::Cpu).unwrap() * 1.5;
        let (batch, outputs) = (7, network.outputs());
        let x = waves(&[&[batch], network.input()].concat(), 0.37, kind);
        let targets = match loss {
            Loss::CrossEntropy => Tensor::arange(batch, (Kind::Int64, Device::Cpu)).remainder(outputs),
            Loss::MeanSquaredError => waves(&[batch, outputs], 0.11, kind),
        };
        let at =
            Linearised::of_ways(network, &theta, (&x, &targets), loss, 1. / batch as f64, by_rows).unwrap();
        for count in [1, 3, 9, 16] {
            let rows: Vec<usize> = (0..by_rows.len()).filter(|&weight| by_rows[weight].is_some()).collect();
            let what = format!("{} {kind:?} {loss:?} {count} by rows: {rows:?}", network.name());
            let v = waves(&[count, network.count()], 0.23, kind);
            let directions = Directions::of_ways(network, &v, by_rows).unwrap();
            let zeros = || Products::of_ways(network, count, (kind, Device::Cpu), by_rows.to_vec()).unwrap();
            let products = |curvature| {
                let sums = zeros();
                at.add_products(curvature, &directions, &sums).unwrap();
                sums.flat(network).unwrap()
            };
            let expected = by_autograd(network, &theta, &x, &targets, loss, &v);
            close(&products(Curvature::Hessian), &expected, tolerance, &what);

            let j = jacobian(network, &theta, &x);
            let found = at.jacobian_products(&directions).unwrap();
            assert_eq!(found.size(), [count, batch, outputs]);
            close(&found.flatten(1, 2), &v.matmul(&j.tr()), tolerance, &what);
            let u = waves(&[count, batch, outputs], 0.71, kind);
            let sums = zeros();
            at.add_transposed_products(&u, &sums).unwrap();
            close(&sums.flat(network).unwrap(), &u.flatten(1, 2).matmul(&j), tolerance, &what);

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

    /// What a GPU holds, and how it convolves, is decided without one.
    #[test]
    fn bytes_are_those_held() {
        tch::set_num_threads(1);
        let on_gpu = |kind| (kind, Device::Cuda(0));
        for network in networks() {
            let by_rows = Rows::chosen(&network, on_gpu(Kind::Double));
            assert_eq!(by_rows, Rows::all(&network), "{}: all of these are small", network.name());
            let theta = initialise(&network, 2, 0, Kind::Double, Device::Cpu).unwrap();
            let batch = 3;
            let x = waves(&[&[batch], network.input()].concat(), 0.37, Kind::Double);
            let targets = waves(&[batch, network.outputs()], 0.11, Kind::Double);
            let at = (&x, &targets);
            let made =
                Linearised::of_ways(&network, &theta, at, Loss::MeanSquaredError, 1., &by_rows).unwrap();
            let size = |t: &Tensor| t.numel() as i64 * t.kind().elt_size_in_bytes() as i64;
            let held = |stage: &Stage| match stage {
                Stage::ByRows(ByRows { input, gradient, .. }) | Stage::Dense { input, gradient, .. } => {
                    size(input) + gradient.as_ref().map_or(0, size)
                }
                Stage::Pool(pool) => size(&pool.places),
                Stage::Activation { slope, bend } => size(slope) + bend.as_ref().map_or(0, size),
                Stage::Convolution(_) | Stage::Turn { .. } => 0,
            };
            let held = made.stages.iter().map(held).sum::<i64>() / batch;
            assert_eq!(Linearised::bytes(&network, on_gpu(Kind::Double)), held, "{}", network.name());
        }
        // Wide images of many channels are convolved.
        let convolution = |channels| Layer::Convolution { channels, kernel: 3, padding: 1 };
        let large = [convolution(64), Layer::Relu, convolution(64), Layer::Relu, Layer::Dense { width: 3 }];
        let large = Network::new("large", &[3, 32, 32], &large).unwrap();
        assert!(Rows::chosen(&large, on_gpu(Kind::Float)).iter().all(Option::is_none));
        let unfolded = 64 * 9 * 32 * 32 * 4;
        assert_eq!(Linearised::working_bytes(&large, on_gpu(Kind::Float)), unfolded);
        // LeNet's first convolution has the most outputs.
        let lenet = Network::lenet();
        assert_eq!(Linearised::working_bytes(&lenet, on_gpu(Kind::Float)), 6 * 28 * 28 * 4);
        let on_cpu = (Kind::Double, Device::Cpu);
        assert!(Rows::chosen(&lenet, on_cpu).iter().all(Option::is_none));
        assert_eq!(Linearised::working_bytes(&lenet, on_cpu), 25 * 28 * 28 * 8);
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
