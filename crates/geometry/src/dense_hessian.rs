//! The exact Hessian of a dense network under the mean squared error, in closed form.
//!
//! With `z_l = W_l a_{l-1} + b_l`, `a_l = σ(z_l)`, the outputs a_L, D of them, and N examples, per example
//!
//! `H = (2 / D) Jᵀ J + Σ_l Σ_u (∂ℓ/∂a_l)_u σ''(z_l)_u ∇z_lu ∇z_luᵀ + C`, `J = ∂a_L/∂θ`,
//!
//! and L's Hessian is its mean over the examples. C couples the weights of different layers: for k < m,
//!
//! `C[W_m[o, i], W_k[p, q]] = (∂ℓ/∂z_m)_o (∂a_{m-1}/∂z_k)_ip (a_{k-1})_q`,
//!
//! with a bias as the weight of an input that is always 1. It follows from `∂ℓ/∂W_m[o, i] = (∂ℓ/∂z_m)_o (a_{m-1})_i` by the chain rule;
//! where σ is piecewise linear σ'' is 0 and only the first term and C are left. Everything is a few matrix products, where backpropagation
//! through a graph of P gradients (Pearlmutter 1994) takes P passes: compared with that in `hessian.rs`.

use flatland_network::{Activation, DenseLayer, Result};
use tch::{Kind, Tensor};

/// Numbers in the largest tensor of a chunk: 4 MiB of f64. Memory only.
const CHUNK: i64 = 1 << 19;

/// So many examples at once.
pub fn chunk(layers: &[DenseLayer]) -> i64 {
    let size = |layer: &DenseLayer| (layer.outputs * (layer.inputs + 1)) as i64;
    let parameters: i64 = layers.iter().map(size).sum();
    let widest = layers.iter().map(|layer| layer.outputs as i64).max().unwrap_or(1);
    let coupled = layers.iter().map(size).max().unwrap_or(1) * widest;
    // ∇z of every unit of a layer whose curvature counts.
    let bent = |layer: &&DenseLayer| layer.activation == Activation::Tanh;
    let bent = layers.iter().filter(bent).chain(layers.last()).map(|layer| layer.outputs as i64).max();
    (CHUNK / coupled.max(parameters * bent.unwrap_or(1))).max(1)
}

/// What one layer is and does, for B examples.
struct Pass {
    /// `[outputs, inputs]`.
    weight: Tensor,
    /// Its inputs and a 1, `[B, inputs + 1]`.
    extended: Tensor,
    /// `[B, outputs]`.
    output: Tensor,
    /// σ'(z), `[B, outputs]`.
    slope: Tensor,
    /// σ''(z), `[B, outputs]`, where it is not 0 for all z.
    bend: Option<Tensor>,
    /// Where its parameters begin if every unit's bias follows its weights, and how many there are.
    place: [i64; 2],
}

/// The Hessian of these examples' mean loss: `[P, P]`, f64. θ `[P]`, x `[B, F]` and targets `[B, D]` in f64.
pub fn mean(layers: &[DenseLayer], theta: &Tensor, x: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let passes = forward(layers, theta, x)?;
    let count: i64 = passes.iter().map(|pass| pass.place[1]).sum();
    let hessian = Tensor::f_zeros([count, count], (Kind::Double, theta.device()))?;
    // Of (z - y)², whose mean is taken over B and D.
    let scale = 2. / targets.numel() as f64;

    // Backwards: ∂ℓ/∂a_l, of the last layer to begin with.
    let mut by_output = passes[passes.len() - 1].output.f_sub(targets)?.f_mul_scalar(scale)?;
    for (index, pass) in passes.iter().enumerate().rev() {
        let last = index + 1 == passes.len();
        // From each earlier layer k, ∂z_l/∂z_k and ∂a_{l-1}/∂z_k, transposed: `[B, n_k, n_l]`.
        let chain = chain(&passes, index)?;
        let mut curvature = pass.bend.as_ref().map(|bend| by_output.f_mul(bend)).transpose()?;
        if last {
            let of_loss = pass.slope.f_square()?.f_mul_scalar(scale)?;
            curvature = Some(curvature.map_or_else(|| Ok(of_loss.shallow_clone()), |c| c.f_add(&of_loss))?);
        }
        if let Some(curvature) = curvature {
            add_outer(&hessian, &passes, index, &chain, &curvature)?;
        }
        let by_z = by_output.f_mul(&pass.slope)?;
        for (earlier, (_, of_input)) in passes[..index].iter().zip(&chain) {
            add_coupling(&hessian, pass, earlier, &by_z, of_input)?;
        }
        by_output = by_z.f_matmul(&pass.weight)?;
    }
    let order = order(layers, &passes, theta)?;
    Ok(hessian.f_index_select(0, &order)?.f_index_select(1, &order)?)
}

fn forward(layers: &[DenseLayer], theta: &Tensor, x: &Tensor) -> Result<Vec<Pass>> {
    let mut input = x.shallow_clone();
    let ones = Tensor::f_ones([x.size()[0], 1], (Kind::Double, theta.device()))?;
    let mut start = 0;
    let mut passes = Vec::new();
    for layer in layers {
        let (inputs, outputs) = (layer.inputs as i64, layer.outputs as i64);
        let weight = theta.f_narrow(0, layer.weight as i64, outputs * inputs)?.f_view([outputs, inputs])?;
        let bias = theta.f_narrow(0, layer.bias as i64, outputs)?;
        let z = input.f_linear(&weight, Some(&bias))?;
        let steps =
            |slope: f64| z.f_gt(0.)?.f_to_kind(Kind::Double)?.f_mul_scalar(1. - slope)?.f_add_scalar(slope);
        let (output, slope, bend) = match layer.activation {
            Activation::Identity => (z.shallow_clone(), z.f_ones_like()?, None),
            Activation::Relu => (z.f_relu()?, steps(0.)?, None),
            Activation::LeakyRelu => (z.f_leaky_relu()?, steps(0.01)?, None),
            Activation::Tanh => {
                let output = z.f_tanh()?;
                let slope = output.f_square()?.f_neg()?.f_add_scalar(1.)?;
                let bend = output.f_mul(&slope)?.f_mul_scalar(-2.)?;
                (output, slope, Some(bend))
            }
        };
        let extended = Tensor::f_cat(&[&input, &ones], 1)?;
        let place = [start, outputs * (inputs + 1)];
        start += place[1];
        input = output.shallow_clone();
        passes.push(Pass { weight, extended, output, slope, bend, place });
    }
    Ok(passes)
}

/// For each layer k before the `index`-th, ∂z/∂z_k of that one and ∂a/∂z_k of its input, transposed: `[B, n_k, n]`.
fn chain(passes: &[Pass], index: usize) -> Result<Vec<(Tensor, Tensor)>> {
    (0..index)
        .map(|k| {
            let mut of_input = passes[k].slope.f_diag_embed(0, 1, 2)?;
            for pass in &passes[k + 1..index] {
                of_input =
                    of_input.f_matmul(&pass.weight.f_transpose(0, 1)?)?.f_mul(&pass.slope.f_unsqueeze(1)?)?;
            }
            Ok((of_input.f_matmul(&passes[index].weight.f_transpose(0, 1)?)?, of_input))
        })
        .collect()
}

/// Adds `Σ_u c_u ∇z_u ∇z_uᵀ` over the units of the `index`-th layer and the examples.
fn add_outer(
    hessian: &Tensor,
    passes: &[Pass],
    index: usize,
    chain: &[(Tensor, Tensor)],
    c: &Tensor,
) -> Result<()> {
    let (batch, units) = c.size2()?;
    let mut blocks = Vec::new();
    for (pass, (of_z, _)) in passes.iter().zip(chain) {
        // `[B, u, p, 1] [B, 1, 1, q]`
        let by_unit = of_z.f_transpose(1, 2)?.f_unsqueeze(-1)?;
        let product = by_unit.f_mul(&pass.extended.f_unsqueeze(1)?.f_unsqueeze(1)?)?;
        blocks.push(product.f_reshape([batch * units, -1])?);
    }
    let own = &passes[index].extended;
    let diagonal = Tensor::f_eye(units, (Kind::Double, c.device()))?.f_unsqueeze(-1)?;
    blocks.push(diagonal.f_mul(&own.f_unsqueeze(1)?.f_unsqueeze(1)?)?.f_reshape([batch * units, -1])?);
    let gradients = Tensor::f_cat(&blocks, 1)?;
    let weighted = gradients.f_mul(&c.f_reshape([batch * units, 1])?)?;
    let size = gradients.size()[1];
    let outer = gradients.f_transpose(0, 1)?.f_matmul(&weighted)?;
    let _ = hessian.f_narrow(0, 0, size)?.f_narrow(1, 0, size)?.f_add_(&outer)?;
    Ok(())
}

/// Adds C's block of a layer and an earlier one, and its transpose.
fn add_coupling(
    hessian: &Tensor,
    later: &Pass,
    earlier: &Pass,
    by_z: &Tensor,
    of_input: &Tensor,
) -> Result<()> {
    let (batch, units) = by_z.size2()?;
    let (_, before, inputs) = of_input.size3()?;
    // `[B, o, p, i]`, over the examples with q.
    let left =
        by_z.f_unsqueeze(-1)?.f_unsqueeze(-1)?.f_mul(&of_input.f_unsqueeze(1)?)?.f_view([batch, -1])?;
    // In this order libtorch's product takes half as long.
    let block = earlier.extended.f_transpose(0, 1)?.f_matmul(&left)?;
    let block = block.f_view([-1, units, before, inputs])?.f_permute([1, 3, 2, 0])?;
    // The later bias's input does not depend on anything.
    let block = block.f_constant_pad_nd([0, 0, 0, 0, 0, 1])?.f_reshape([later.place[1], earlier.place[1]])?;
    let at = |rows: [i64; 2], columns: [i64; 2]| {
        hessian.f_narrow(0, rows[0], rows[1])?.f_narrow(1, columns[0], columns[1])
    };
    let _ = at(later.place, earlier.place)?.f_add_(&block)?;
    let _ = at(earlier.place, later.place)?.f_add_(&block.f_transpose(0, 1)?)?;
    Ok(())
}

/// For each entry of θ, its place where every unit's bias follows its weights.
fn order(layers: &[DenseLayer], passes: &[Pass], theta: &Tensor) -> Result<Tensor> {
    let mut order = vec![0; theta.size()[0] as usize];
    for (layer, pass) in layers.iter().zip(passes) {
        for unit in 0..layer.outputs {
            let first = pass.place[0] + (unit * (layer.inputs + 1)) as i64;
            for input in 0..layer.inputs {
                order[layer.weight + unit * layer.inputs + input] = first + input as i64;
            }
            order[layer.bias + unit] = first + layer.inputs as i64;
        }
    }
    Ok(Tensor::f_from_slice(&order)?.f_to_device(theta.device())?)
}
