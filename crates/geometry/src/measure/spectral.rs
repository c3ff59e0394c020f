//! Spectral norms: the largest singular value of a layer's linear map, `‖A‖₂ = max ‖A x‖ / ‖x‖`.
//!
//! A dense layer's map is its matrix. A convolution has two that the literature calls its spectral norm:
//!
//! - of the kernel as a matrix `[out, in k²]` (Yoshida and Miyato 2017, "Spectral norm regularization"), which is that of one window:
//!   [`matrix_norm`] of the reshaped kernel;
//! - of the map from `[in, H, W]` to `[out, H', W']` with its padding: [`convolution_norm`]. It is what bounds how much the layer stretches an
//!   input, up to k times the former. Sedghi et al. 2019, "The singular values of convolutional layers", have it in closed form where the
//!   input is taken as a torus; with an edge, as here, it is an iteration.

use flatland_network::streams::{Purpose, stream};
use flatland_network::{NetworkError, Result};
use rand::Rng;
use tch::{Kind, Tensor};

/// The largest singular value of a matrix `[R, C]`, in f64: the root of the largest eigenvalue of the smaller of `A Aᵀ` and `Aᵀ A`, by
/// LAPACK. NaN for entries that are not finite.
///
/// # Errors
/// [`NetworkError::Shape`] for what is no matrix.
pub fn matrix_norm(matrix: &Tensor) -> Result<f64> {
    let &[rows, columns] = matrix.size().as_slice() else {
        let expected = "a matrix [R, C]".to_owned();
        return Err(NetworkError::Shape { what: "the weights", found: matrix.size(), expected });
    };
    let matrix = matrix.f_to_kind(Kind::Double)?;
    let transposed = matrix.f_transpose(0, 1)?;
    let gram = if rows <= columns { matrix.f_matmul(&transposed)? } else { transposed.f_matmul(&matrix)? };
    largest_root(&gram)
}

/// Vectors that are iterated together: convergence goes with the ratio of the ninth singular value to the first.
const BLOCK: i64 = 8;
/// Relative change of the estimate's square at which it stands still.
const STILL: f64 = 1e-13;
/// Beyond, the estimate is taken as it is: it never exceeds the norm.
const MOST: usize = 1000;

/// The largest singular value of the convolution with `kernel` `[out, in, k, k]`, stride 1 and `padding` zeros on every side, as a map from
/// inputs of shape `input` `[in, H, W]`, in f64, by block power iteration with Rayleigh-Ritz (Golub and Van Loan 2013, *Matrix computations*,
/// section 8.2.4) on `Aᵀ A`; Aᵀ is the transposed convolution. From a fixed start: the same number every time. NaN for entries that are not
/// finite.
///
/// # Errors
/// When the kernel does not fit the input.
pub fn convolution_norm(kernel: &Tensor, input: &[i64], padding: i64) -> Result<f64> {
    let kernel = kernel.f_to_kind(Kind::Double)?;
    let size: i64 = input.iter().product();
    let block = BLOCK.min(size);
    let mut generator = stream(0, 0, 0, Purpose::Noise);
    let start: Vec<f64> = (0..size * block).map(|_| generator.gen_range(-1. ..1.)).collect();
    let mut vectors = Tensor::f_from_slice(&start)?.f_to_device(kernel.device())?.f_view([size, block])?;
    let mut norm = f64::NAN;
    for _ in 0..MOST {
        let (orthonormal, _) = Tensor::f_linalg_qr(&vectors, "reduced")?;
        let x = orthonormal.f_transpose(0, 1)?.f_reshape([&[block], input].concat().as_slice())?;
        let y = x.f_conv2d(&kernel, None::<Tensor>, 1, padding, 1, 1)?;
        let flat = y.f_flatten(1, -1)?;
        let next = largest_root(&flat.f_matmul(&flat.f_transpose(0, 1)?)?)?;
        let still = (next * next - norm * norm).abs() <= STILL * next * next;
        norm = next;
        if still || norm.is_nan() {
            break;
        }
        let back = y.f_conv_transpose2d(&kernel, None::<Tensor>, 1, padding, 0, 1, 1)?;
        vectors = back.f_flatten(1, -1)?.f_transpose(0, 1)?;
    }
    Ok(norm)
}

/// Of a symmetric matrix without negative eigenvalues: the root of its largest.
fn largest_root(gram: &Tensor) -> Result<f64> {
    if gram.f_isfinite()?.f_all()?.f_int64_value(&[])? != 1 {
        return Ok(f64::NAN);
    }
    // Rounding can leave a zero a little below 0.
    Ok(gram.f_linalg_eigvalsh("L")?.f_max()?.f_double_value(&[])?.max(0.).sqrt())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{close, waves};
    use super::*;
    use tch::Device;

    /// Of the whole matrix, column by column, and its SVD.
    fn explicit(kernel: &Tensor, input: &[i64], padding: i64) -> f64 {
        let size: i64 = input.iter().product();
        let units = Tensor::eye(size, (Kind::Double, Device::Cpu)).view([&[size], input].concat().as_slice());
        let columns = units.conv2d(kernel, None::<Tensor>, 1, padding, 1, 1).flatten(1, -1);
        columns.svd(true, false).1.max().double_value(&[])
    }

    #[test]
    fn convolutions_have_the_norm_of_their_matrix() {
        for (shape, input, padding) in [
            ([6, 1, 5, 5], [1, 12, 12], 0),
            ([6, 1, 5, 5], [1, 9, 12], 2),
            ([4, 3, 3, 3], [3, 7, 5], 1),
            ([2, 5, 1, 1], [5, 4, 4], 0),
            ([3, 2, 4, 4], [2, 4, 4], 0),
        ] {
            let kernel = waves(&shape, Kind::Double);
            close(
                convolution_norm(&kernel, &input, padding).unwrap(),
                explicit(&kernel, &input, padding),
                1e-9,
            );
        }
    }

    /// All weights and inputs positive, singular values that crowd: the hardest for a power iteration.
    #[test]
    fn a_constant_kernel_converges_all_the_same() {
        let kernel = Tensor::ones([1, 1, 3, 3], (Kind::Double, Device::Cpu));
        let found = convolution_norm(&kernel, &[1, 20, 20], 1).unwrap();
        close(found, explicit(&kernel, &[1, 20, 20], 1), 1e-9);
        // The sum of three neighbours on a line of n: 1 + 2 cos(π / (n + 1)), in each direction.
        close(found, (1. + 2. * (std::f64::consts::PI / 21.).cos()).powi(2), 1e-9);
    }

    #[test]
    fn a_one_by_one_convolution_is_its_matrix_and_a_map_stretches_no_less_than_a_window() {
        let kernel = waves(&[5, 3, 1, 1], Kind::Double);
        close(
            convolution_norm(&kernel, &[3, 4, 4], 0).unwrap(),
            matrix_norm(&kernel.view([5, 3])).unwrap(),
            1e-12,
        );
        let kernel = waves(&[4, 2, 3, 3], Kind::Double);
        let (window, map) =
            (matrix_norm(&kernel.flatten(1, -1)).unwrap(), convolution_norm(&kernel, &[2, 9, 9], 0).unwrap());
        assert!(window < map && map < 3. * window, "{window} {map}");
    }

    #[test]
    fn matrices_have_their_largest_singular_value() {
        for shape in [[4, 7], [7, 4], [1, 5], [3, 3]] {
            let matrix = waves(&shape, Kind::Double);
            let expected = matrix.svd(true, false).1.max().double_value(&[]);
            close(matrix_norm(&matrix).unwrap(), expected, 1e-12);
            close(matrix_norm(&matrix.to_kind(Kind::Float)).unwrap(), expected, 1e-6);
        }
        assert!(matrix_norm(&Tensor::from_slice(&[f64::NAN, 1.]).view([1, 2])).unwrap().is_nan());
        assert!(matrix_norm(&Tensor::from_slice(&[1.])).is_err());
        let zero = Tensor::zeros([2, 1, 3, 3], (Kind::Double, Device::Cpu));
        assert!(convolution_norm(&zero, &[1, 5, 5], 0).unwrap().abs() < 1e-300);
    }
}
