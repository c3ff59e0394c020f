//! Convolutions as products of large matrices, a row of outputs at a time.
//!
//! With images in the order row, channel, column, the k rows that a row of outputs depends on are k C W numbers, and the row is their
//! product with one matrix `[k C W, O W']`: w along its diagonals, a Toeplitz matrix by column and by row. All rows of all images are one
//! product. It multiplies W / k times as often as a convolution does, at a GPU's full speed, where convolutions of few channels are
//! far from it; and the input is kept unfolded along one side of the kernel only, H' k C W numbers an image instead of H' W' k² C.

use crate::{Layer, Network, Result};
use tch::{Device, Kind, Tensor};

/// A convolution's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rows {
    /// C, H and W of its input.
    pub plane: [i64; 3],
    /// O.
    pub channels: i64,
    /// k.
    pub kernel: i64,
    pub padding: i64,
}

/// W / k at most: so many times the products of a convolution. On an H100 in f32, 10,000 images 32x32 of one channel to six of 28x28, 2.4
/// GFLOP, take cuDNN 1.06 ms; 6.4 times as many take 0.3 at the card's best, 51 TFLOP/s.
const MOST_WASTE: i64 = 8;
/// W / k times the channels of the narrower side, at most: with more channels cuDNN wastes less. There, 14x14 of six channels to sixteen of 10x10,
/// 4.8 GFLOP, take it 0.4 ms, and 2.2 from the gradient by the outputs to the one by the inputs; 2.8 times as many 0.26 at best. Between and
/// beyond these two shapes the bounds are an estimate.
const MOST_CHANNELS: i64 = 48;
/// Entries of the matrix: beyond, sixteen directions are a burden of their own.
const MOST_ENTRIES: i64 = 1 << 20;

impl Rows {
    /// By the index of its weight, each convolution that is faster so for θ of these options. None on a CPU, where fewer products are faster.
    pub fn chosen(network: &Network, (_, device): (Kind, Device)) -> Vec<Option<Self>> {
        let all = Self::all(network);
        all.into_iter().map(|rows| rows.filter(|rows| device != Device::Cpu && rows.pays())).collect()
    }

    /// The same, whether it is faster or not.
    pub fn all(network: &Network) -> Vec<Option<Self>> {
        let layers = network.layers().into_iter().filter(|layer| layer.parameters.is_some());
        let all = layers.flat_map(|view| {
            let rows = match view.layer {
                Layer::Convolution { channels, kernel, padding } => {
                    let plane = [view.input[0], view.input[1], view.input[2]];
                    Some(Self { plane, channels, kernel, padding })
                }
                _ => None,
            };
            // A layer's weight, then its bias.
            [rows, None]
        });
        all.collect()
    }

    fn pays(&self) -> bool {
        let [channels, _, width] = self.plane;
        width <= self.kernel * MOST_WASTE
            && width * channels.min(self.channels) <= self.kernel * MOST_CHANNELS
            && self.inputs() * self.outputs() <= MOST_ENTRIES
    }

    /// H'.
    pub fn height(&self) -> i64 {
        self.plane[1] + 2 * self.padding - self.kernel + 1
    }

    /// W'.
    fn width(&self) -> i64 {
        self.plane[2] + 2 * self.padding - self.kernel + 1
    }

    /// k C W.
    pub fn inputs(&self) -> i64 {
        self.kernel * self.plane[0] * self.plane[2]
    }

    /// The same with a one for the bias, and zeros up to a multiple of four, as a GPU's products like them.
    pub fn inputs_and_one(&self) -> i64 {
        self.inputs() + self.beyond()
    }

    fn beyond(&self) -> i64 {
        4 - self.inputs() % 4
    }

    /// O W'.
    pub fn outputs(&self) -> i64 {
        self.channels * self.width()
    }

    /// The places of weights `[K, O, C, k, k, W']` in a matrix `[k C (W + 2 padding), K O W']` or longer: each W' times, along a diagonal.
    fn diagonals(&self, matrix: &Tensor, count: i64) -> Result<Tensor> {
        let ([channels, _, wide], outputs, kernel, width) =
            (self.plane, self.channels, self.kernel, self.width());
        let line = count * outputs * width;
        let row = (wide + 2 * self.padding) * line;
        Ok(matrix.f_as_strided(
            [count, outputs, channels, kernel, kernel, width],
            [outputs * width, width, row, channels * row, line, line + 1],
            None,
        )?)
    }

    /// Of weights `[K, O, C, k, k]` and biases `[K, O]` the matrices side by side, `[k C W + …, K O W']`, the biases below the weights.
    pub fn spread(&self, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let ([channels, _, wide], kernel, width) = (self.plane, self.kernel, self.width());
        let (count, padded) = (weight.size()[0], wide + 2 * self.padding);
        let line = count * self.outputs();
        let (body, beyond) = (kernel * channels * padded, self.beyond());
        let matrix = Tensor::f_zeros([body + beyond, line], (weight.kind(), weight.device()))?;
        self.diagonals(&matrix, count)?.f_copy_(&weight.f_unsqueeze(-1)?)?;
        let ones = matrix.f_narrow(0, body, 1)?.f_view([count, self.channels, width])?;
        ones.shallow_clone().f_copy_(&bias.f_unsqueeze(-1)?)?;
        if self.padding == 0 {
            return Ok(matrix);
        }
        // What zeros are multiplied with.
        let inside = matrix.f_narrow(0, 0, body)?.f_view([kernel * channels, padded, line])?;
        let inside = inside.f_narrow(1, self.padding, wide)?.f_reshape([-1, line])?;
        Ok(Tensor::f_cat(&[inside, matrix.f_narrow(0, body, beyond)?], 0)?)
    }

    /// Of [`Rows::spread`]'s matrices without biases, each transposed, `[O W', K k C W]`.
    pub fn transposed(&self, matrices: &Tensor, count: i64) -> Result<Tensor> {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        let matrices = matrices.f_narrow(0, 0, inputs)?.f_view([inputs, count, outputs])?;
        Ok(matrices.f_permute([2, 1, 0])?.f_reshape([outputs, count * inputs])?)
    }

    /// What weights and biases have of gradients by [`Rows::spread`]'s matrices and by [`Rows::transposed`]'s: `[K, O C k k]` and `[K, O]`.
    pub fn gathered(&self, spread: &Tensor, transposed: &Tensor, count: i64) -> Result<[Tensor; 2]> {
        let ([channels, _, wide], outputs, inputs) = (self.plane, self.outputs(), self.inputs());
        let shape = [self.kernel * channels, wide, count * outputs];
        let back = transposed.f_view([outputs, count, inputs])?.f_permute([2, 1, 0])?.f_reshape(shape)?;
        let mut both = spread.f_narrow(0, 0, inputs)?.f_view(shape)?.f_add(&back)?;
        if self.padding > 0 {
            both = both.f_constant_pad_nd([0, 0, self.padding, self.padding])?;
        }
        let last = Some([-1i64].as_slice());
        let both = both.f_contiguous()?;
        let weight = self.diagonals(&both, count)?.f_sum_dim_intlist(last, false, None)?;
        let bias = spread.f_select(0, inputs)?.f_view([count, self.channels, self.width()])?;
        Ok([weight.f_reshape([count, -1])?, bias.f_sum_dim_intlist(last, false, None)?])
    }

    /// Of images `[B, H, K, C W]` the rows that a row of outputs depends on, as a view `[B, H', K, k, C W]`.
    fn windows(&self, images: &Tensor) -> Result<Tensor> {
        let padded = if self.padding > 0 {
            images.f_constant_pad_nd([0, 0, 0, 0, self.padding, self.padding])?
        } else {
            images.shallow_clone()
        };
        Ok(padded.f_unfold(1, self.kernel, 1)?.f_transpose(3, 4)?)
    }

    /// Of images `[B, H, K, C W]` what [`Rows::spread`]'s matrices are multiplied with, but for the one: `[B H' K, k C W]`.
    pub fn unfolded(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.windows(images)?.f_reshape([-1, self.inputs()])?)
    }

    /// The same with the one, of images `[B, H, 1, C W]`.
    pub fn unfolded_and_one(&self, images: &Tensor) -> Result<Tensor> {
        let windows = self.windows(images)?;
        let rows = images.size()[0] * self.height();
        let options = (images.kind(), images.device());
        let room = Tensor::f_zeros([rows, self.inputs_and_one()], options)?;
        room.f_narrow(1, 0, self.inputs())?.f_view(windows.size().as_slice())?.f_copy_(&windows)?;
        let _ = room.f_narrow(1, self.inputs(), 1)?.f_fill_(1.)?;
        Ok(room)
    }

    /// From gradients by what [`Rows::unfolded`] returns, `[B H' K, k C W]`, to those by its images.
    pub fn folded(&self, by_rows: &Tensor, count: i64) -> Result<Tensor> {
        let ([channels, high, wide], height) = (self.plane, self.height());
        let by_rows = by_rows.f_view([-1, height, count, self.kernel, channels * wide])?;
        let size = [by_rows.size()[0], high + 2 * self.padding, count, channels * wide];
        let images = Tensor::f_zeros(size, (by_rows.kind(), by_rows.device()))?;
        for row in 0..self.kernel {
            let (mut to, from) = (images.f_narrow(1, row, height)?, by_rows.f_select(3, row)?);
            if row == 0 {
                to.f_copy_(&from)?;
            } else {
                let _ = to.f_add_(&from)?;
            }
        }
        Ok(images.f_narrow(1, self.padding, high)?)
    }
}

/// Parts of a sum over rows that are computed side by side: a small matrix alone keeps few of a GPU's processors busy.
const MOST_PARTS: i64 = 64;
/// Rows a part, at least.
const PART: i64 = 1024;
/// Entries of all parts' matrices together.
const PARTS_ENTRIES: i64 = 1 << 23;

/// `sum += aᵀ b`: `[m, n]`, of `[rows, m]` and `[rows, n]`.
pub(super) fn add_transposed_product(sum: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    let size = sum.size();
    let most = (PARTS_ENTRIES / (size[0] * size[1])).min(MOST_PARTS);
    add_by_parts(sum, a, b, most.min(a.size()[0] / PART).max(1))
}

fn add_by_parts(sum: &Tensor, a: &Tensor, b: &Tensor, parts: i64) -> Result<()> {
    let mut sum = sum.shallow_clone();
    let rows = a.size()[0];
    let each = rows / parts;
    let taken = if parts > 1 { parts * each } else { 0 };
    if taken > 0 {
        let side = |t: &Tensor| t.f_narrow(0, 0, taken)?.f_view([parts, each, t.size()[1]]);
        let found = side(a)?.f_transpose(1, 2)?.f_bmm(&side(b)?)?;
        let _ = sum.f_add_(&found.f_sum_dim_intlist(Some([0i64].as_slice()), false, None)?)?;
    }
    if taken < rows {
        let left = |t: &Tensor| t.f_narrow(0, taken, rows - taken);
        let _ = sum.f_addmm_(&left(a)?.f_transpose(0, 1)?, &left(b)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: (Kind, Device) = (Kind::Double, Device::Cpu);

    fn waves(size: &[i64], speed: f64) -> Tensor {
        let count: i64 = size.iter().product();
        (Tensor::arange(count, OPTIONS).square() * speed).sin().view(size)
    }

    fn close(found: &Tensor, expected: &Tensor) {
        assert_eq!(found.size(), expected.size());
        let error = ((found - expected).norm() / expected.norm()).double_value(&[]);
        assert!(error < 1e-13, "{error:.1e}");
    }

    /// Images `[B, C, H, W]` in the order of rows, `[B, H, 1, C W]`, and back.
    fn to_rows(images: &Tensor) -> Tensor {
        images.transpose(1, 2).flatten(2, 3).unsqueeze(2).contiguous()
    }

    #[test]
    fn a_convolution_and_its_gradients() {
        for (plane, channels, kernel, padding) in
            [([1, 7, 9], 3, 3, 0), ([2, 6, 5], 4, 2, 1), ([3, 5, 8], 1, 5, 2), ([2, 3, 4], 2, 1, 1)]
        {
            let rows = Rows { plane, channels, kernel, padding };
            let [inputs, high, wide] = plane;
            let (batch, count) = (3, 2);
            let x = waves(&[batch, inputs, high, wide], 0.37).set_requires_grad(true);
            let weight = waves(&[count, channels, inputs, kernel, kernel], 0.23).set_requires_grad(true);
            let bias = waves(&[count, channels], 0.11).set_requires_grad(true);
            let z = x.conv2d(&weight.flatten(0, 1), Some(&bias.flatten(0, 1)), 1, padding, 1, 1);
            let [height, width] = [z.size()[2], z.size()[3]];
            let u = waves(&z.size(), 0.71);
            let truth = Tensor::run_backward(&[(&z * &u).sum(OPTIONS.0)], &[&x, &weight, &bias], true, false);

            let _no_grad = tch::no_grad_guard();
            let matrices = rows.spread(&weight, &bias).unwrap();
            let input = rows.unfolded_and_one(&to_rows(&x)).unwrap();
            let found = input.mm(&matrices);
            // `[B, K O, H', W']` to `[B H', K O W']`.
            let by_rows = |z: &Tensor| z.transpose(1, 2).reshape([batch * height, -1]);
            close(&found, &by_rows(&z));

            let u = by_rows(&u);
            let sums = [matrices.zeros_like(), rows.transposed(&matrices, count).unwrap().zeros_like()];
            add_by_parts(&sums[0], &input, &u, 1).unwrap();
            let [dw, db] = rows.gathered(&sums[0], &sums[1], count).unwrap();
            close(&dw, &truth[1].flatten(1, -1));
            close(&db, &truth[2]);
            // The weights' part again, by the transposed matrices: what a gradient without directions and the unfolded
            // derivatives along them have.
            let u = u.view([batch * height, count, channels * width]);
            for k in 0..count {
                let back = u.select(1, k).tr().mm(&rows.unfolded(&to_rows(&x)).unwrap());
                let none = matrices.narrow(1, 0, channels * width).zeros_like();
                let [dw, _] = rows.gathered(&none, &back, 1).unwrap();
                close(&dw, &truth[1].get(k).flatten(0, -1).unsqueeze(0));
            }

            // By the input: all directions added up.
            let transposed = rows.transposed(&matrices, count).unwrap().view([-1, count, rows.inputs()]);
            let by_input = (0..count).map(|k| u.select(1, k).mm(&transposed.select(1, k)));
            let by_input: Tensor = by_input.sum();
            close(&rows.folded(&by_input, 1).unwrap().contiguous(), &to_rows(&truth[0]));
        }
    }

    #[test]
    fn sums_by_parts() {
        let (a, b) = (waves(&[23, 3], 0.37), waves(&[23, 4], 0.71));
        for parts in [1, 2, 5, 23, 30] {
            let sum = Tensor::ones([3, 4], OPTIONS);
            add_by_parts(&sum, &a, &b, parts).unwrap();
            close(&sum, &(a.tr().mm(&b) + 1.));
        }
    }
}
