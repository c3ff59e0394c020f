//! Eigenpairs at the ends of a spectrum, by block Lanczos with full reorthogonalisation and thick restarts.
//!
//! The Krylov space of a block X of b random vectors, span{X, AX, A²X, …}, is built with an orthonormal basis Q. Its Ritz pairs
//! `Qᵀ A Q s = θ s`, `u = Q s`, approach the extreme eigenpairs first (Golub and Underwood 1977, "The block Lanczos method for computing
//! eigenvalues"). With R the part of `A X_last` outside of the basis, a Ritz pair's residual is `‖A u - θ u‖ = ‖R s_last‖`, and some eigenvalue lies within it
//! of θ. When the basis is full, it is replaced by its best Ritz vectors, which with R span a Krylov space again (Wu and Simon 2000, "Thick-restart Lanczos method
//! for large symmetric eigenvalue problems").
//!
//! A block finds eigenvalues that are several times there, and b products on one pass over the data cost less than b passes. The basis
//! and its algebra are f64, whatever the products are computed in.

use crate::operator::{CurvatureError, Symmetric};
use crate::probe::gaussian;
use tch::{Device, Kind, Tensor};

/// What is wanted, and how well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EigenSettings {
    /// How many of the largest eigenvalues.
    pub largest: usize,
    /// How many of the smallest.
    pub smallest: usize,
    /// A pair has converged when `‖A u - θ u‖ ≤ tolerance max(|θ|, 1e-3 max |θ|)`.
    pub tolerance: f64,
    /// b, vectors in a block.
    pub block: usize,
    /// Vectors multiplied at most; what has been found then is returned as it is.
    pub products: usize,
    /// Of the first block.
    pub seed: u64,
}

impl Default for EigenSettings {
    fn default() -> Self {
        Self { largest: 5, smallest: 0, tolerance: 1e-3, block: 1, products: 2000, seed: 0 }
    }
}

/// Eigenpairs, descending.
#[derive(Debug)]
pub struct Eigenpairs {
    /// The Ritz values.
    pub values: Vec<f64>,
    /// Their unit vectors `[k, P]`, f64, where the operator is.
    pub vectors: Tensor,
    /// `‖A u - θ u‖`: some eigenvalue lies within it of θ.
    pub residuals: Vec<f64>,
    /// Vectors that were multiplied.
    pub products: usize,
    /// Whether every pair has met the tolerance.
    pub converged: bool,
}

/// How far a search is, after a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Vectors multiplied so far.
    pub products: usize,
    /// Pairs that have met the tolerance.
    pub converged: usize,
    /// Pairs that are wanted.
    pub wanted: usize,
}

/// Ritz pairs of a full basis that are kept beyond the wanted ones.
const KEPT_BEYOND: usize = 4;
/// Below this share of its length before, what is left of a vector after projection is rounding.
const NOTHING_LEFT: f64 = 1e-10;

/// The largest and smallest eigenvalues of `operator` with their vectors. `observe` is called after every block; when it says false,
/// [`CurvatureError::Stopped`] is returned.
///
/// # Errors
/// [`CurvatureError::Count`] for no pair, or more than P, or an empty block; and those of the products.
pub fn eigenpairs(
    operator: &dyn Symmetric,
    settings: EigenSettings,
    observe: &dyn Fn(Progress) -> bool,
) -> Result<Eigenpairs, CurvatureError> {
    let EigenSettings { largest, smallest, tolerance, .. } = settings;
    let (wanted, dimension) = (largest + smallest, operator.dimension() as usize);
    if wanted < 1 || wanted > dimension {
        let expected = format!("between 1 and {dimension}, the number of parameters");
        return Err(CurvatureError::Count { what: "the number of eigenvalues", expected, found: wanted });
    }
    if settings.block < 1 {
        let expected = "at least 1".to_owned();
        return Err(CurvatureError::Count { what: "the number of vectors in a block", expected, found: 0 });
    }
    let block = settings.block.min(dimension);
    let kept = wanted + KEPT_BEYOND;
    let most = (2 * kept + 4 * block).max(24).min(dimension);
    let device = operator.options().1;
    let mut random = (0u32..).map(|draw| gaussian(settings.seed, draw, block, dimension, device));

    let mut basis = Basis::empty(dimension, device)?;
    let mut next = basis.extended_by(&random.next().ok_or(CurvatureError::Thread)??)?;
    let mut products = 0;
    loop {
        let size = next.size()[0] as usize;
        let image = operator.products(&next)?.f_to_kind(Kind::Double)?;
        products += size;
        basis.append(&next, &image)?;
        let (values, vectors) = basis.ritz()?;
        // What A does to the last block outside of the basis.
        let rest = basis.projected(&image)?;
        let chosen: Vec<usize> = wanted_of(&values, largest, smallest);
        let last = vectors.f_narrow(0, (basis.count() - size) as i64, size as i64)?;
        let residuals: Vec<f64> =
            Vec::try_from(rest.f_transpose(0, 1)?.f_mm(&last)?.f_norm_scalaropt_dim(2., [0i64], false)?)?;
        let scale = values.iter().fold(0f64, |most, value| most.max(value.abs()));
        let meets = |&index: &usize| residuals[index] <= tolerance * values[index].abs().max(1e-3 * scale);
        let converged = chosen.iter().filter(|index| meets(index)).count();
        let full = basis.count() == dimension;
        if !observe(Progress { products, converged, wanted }) {
            return Err(CurvatureError::Stopped);
        }
        if (converged == wanted && chosen.len() == wanted) || full || products >= settings.products {
            let order = Tensor::f_from_slice(&chosen.iter().map(|&index| index as i64).collect::<Vec<_>>())?;
            let of_basis = vectors.f_index_select(1, &order.f_to_device(device)?)?;
            return Ok(Eigenpairs {
                values: chosen.iter().map(|&index| values[index]).collect(),
                vectors: of_basis.f_transpose(0, 1)?.f_mm(&basis.vectors()?)?,
                residuals: chosen.iter().map(|&index| residuals[index]).collect(),
                products,
                converged: chosen.len() == wanted && (full || converged == wanted),
            });
        }
        if basis.count() + size > most {
            basis.restart(&values, &vectors, &keep_of(&values, largest, smallest, kept))?;
        }
        next = basis.extended_by(&rest)?;
        if next.size()[0] == 0 {
            // An invariant subspace: what is left is looked for from elsewhere.
            next = basis.extended_by(&random.next().ok_or(CurvatureError::Thread)??)?;
        }
        let room = dimension - basis.count();
        if next.size()[0] as usize > room {
            next = next.f_narrow(0, 0, room as i64)?;
        }
    }
}

/// The largest, then the smallest, of ascending values, as indices of descending values.
fn wanted_of(values: &[f64], largest: usize, smallest: usize) -> Vec<usize> {
    let count = values.len();
    let (top, bottom) = (largest.min(count), smallest.min(count - largest.min(count)));
    (count - top..count).rev().chain((0..bottom).rev()).collect()
}

/// Those and some beyond, ascending, at both ends if both are wanted.
fn keep_of(values: &[f64], largest: usize, smallest: usize, kept: usize) -> Vec<usize> {
    let beyond = kept - largest - smallest;
    let (top, bottom) = match (largest, smallest) {
        (_, 0) => (kept, 0),
        (0, _) => (0, kept),
        _ => (largest + beyond / 2, smallest + beyond - beyond / 2),
    };
    let mut all = wanted_of(values, top, bottom);
    all.sort_unstable();
    all
}

/// An orthonormal basis Q and `T = Q A Qᵀ`.
struct Basis {
    rows: Vec<Tensor>,
    count: usize,
    /// `[m, m]`, on the CPU.
    projected: Tensor,
    dimension: usize,
    device: Device,
}

impl Basis {
    fn empty(dimension: usize, device: Device) -> Result<Self, CurvatureError> {
        let projected = Tensor::f_zeros([0, 0], (Kind::Double, Device::Cpu))?;
        Ok(Self { rows: Vec::new(), count: 0, projected, dimension, device })
    }

    fn count(&self) -> usize {
        self.count
    }

    /// Q `[m, P]`.
    fn vectors(&self) -> Result<Tensor, CurvatureError> {
        if self.rows.is_empty() {
            return Ok(Tensor::f_zeros([0, self.dimension as i64], (Kind::Double, self.device))?);
        }
        Ok(Tensor::f_cat(&self.rows, 0)?)
    }

    /// What is left of rows `[b, P]` beside the basis: twice, since once leaves what rounding brings back.
    fn projected(&self, rows: &Tensor) -> Result<Tensor, CurvatureError> {
        let mut left = rows.shallow_clone();
        for _ in 0..2 {
            for part in &self.rows {
                let within = left.f_mm(&part.f_transpose(0, 1)?)?;
                left = left.f_sub(&within.f_mm(part)?)?;
            }
        }
        Ok(left)
    }

    /// An orthonormal block from what rows `[b, P]` have beside the basis; fewer rows where they have nothing.
    fn extended_by(&self, rows: &Tensor) -> Result<Tensor, CurvatureError> {
        let nothing = || Tensor::f_zeros([0, self.dimension as i64], (Kind::Double, self.device));
        let mut left = rows.shallow_clone();
        // The second time mends what the first, which may leave little, took from the precision.
        for _ in 0..2 {
            let beside = self.projected(&left)?;
            let mut found: Vec<Tensor> = Vec::new();
            for row in 0..beside.size()[0] {
                let before = left.f_select(0, row)?.f_norm()?.f_double_value(&[])?;
                let mut vector = beside.f_select(0, row)?;
                for other in &found {
                    vector = vector.f_sub(&other.f_mul(&other.f_dot(&vector)?)?)?;
                }
                let norm = vector.f_norm()?.f_double_value(&[])?;
                if norm > NOTHING_LEFT * before && norm > f64::MIN_POSITIVE {
                    found.push(vector.f_div_scalar(norm)?);
                }
            }
            if found.is_empty() {
                return Ok(nothing()?);
            }
            left = Tensor::f_stack(&found, 0)?;
        }
        Ok(left)
    }

    /// Takes in an orthonormal block and what A makes of it.
    fn append(&mut self, block: &Tensor, image: &Tensor) -> Result<(), CurvatureError> {
        let size = block.size()[0];
        self.rows.push(block.shallow_clone());
        let old = self.count as i64;
        self.count += size as usize;
        let all = self.count as i64;
        let parts = self.rows.iter().map(|part| part.f_mm(&image.f_transpose(0, 1)?));
        let coupled = Tensor::f_cat(&parts.collect::<Result<Vec<_>, _>>()?, 0)?.f_to_device(Device::Cpu)?;
        let grown = Tensor::f_zeros([all, all], (Kind::Double, Device::Cpu))?;
        grown.f_narrow(0, 0, old)?.f_narrow(1, 0, old)?.f_copy_(&self.projected)?;
        grown.f_narrow(1, old, size)?.f_copy_(&coupled)?;
        grown.f_narrow(0, old, size)?.f_copy_(&coupled.f_transpose(0, 1)?)?;
        // The block with itself: symmetric but for rounding.
        let own = coupled.f_narrow(0, old, size)?;
        let own = own.f_add(&own.f_transpose(0, 1)?)?.f_mul_scalar(0.5)?;
        grown.f_narrow(0, old, size)?.f_narrow(1, old, size)?.f_copy_(&own)?;
        self.projected = grown;
        Ok(())
    }

    /// Ritz values, ascending, and their vectors in the basis, as columns, where the basis is.
    fn ritz(&self) -> Result<(Vec<f64>, Tensor), CurvatureError> {
        let (values, vectors) = self.projected.f_linalg_eigh("L")?;
        Ok((Vec::try_from(values)?, vectors.f_to_device(self.device)?))
    }

    /// Leaves only some Ritz vectors.
    fn restart(&mut self, values: &[f64], vectors: &Tensor, keep: &[usize]) -> Result<(), CurvatureError> {
        let order = Tensor::f_from_slice(&keep.iter().map(|&index| index as i64).collect::<Vec<_>>())?;
        let chosen = vectors.f_index_select(1, &order.f_to_device(self.device)?)?;
        self.rows = vec![chosen.f_transpose(0, 1)?.f_mm(&self.vectors()?)?];
        let left: Vec<f64> = keep.iter().map(|&index| values[index]).collect();
        self.projected = Tensor::f_from_slice(&left)?.f_diag(0)?;
        self.count = keep.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::Matrix;

    /// A symmetric matrix with these eigenvalues.
    fn with_spectrum(values: &[f64]) -> Matrix {
        let count = values.len();
        let random = gaussian(7, 0, count, count, Device::Cpu).unwrap();
        let (q, _) = Tensor::linalg_qr(&random, "reduced");
        Matrix(q.matmul(&Tensor::from_slice(values).diag(0)).matmul(&q.tr()))
    }

    fn check(values: &[f64], settings: EigenSettings) -> Eigenpairs {
        let matrix = with_spectrum(values);
        let found = eigenpairs(&matrix, settings, &|_| true).unwrap();
        let mut sorted = values.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let bottom = &sorted[sorted.len() - settings.smallest..];
        let expected: Vec<f64> = sorted[..settings.largest].iter().chain(bottom).copied().collect();
        assert!(found.converged);
        assert_eq!(found.values.len(), expected.len());
        let scale = values.iter().fold(0f64, |most, value| most.max(value.abs()));
        for (index, (value, expected)) in found.values.iter().zip(&expected).enumerate() {
            assert!((value - expected).abs() <= 2. * settings.tolerance * scale, "{value} {expected}");
            let vector = found.vectors.get(index as i64).unsqueeze(0);
            let residual = (matrix.products(&vector).unwrap() - &vector * *value).norm().double_value(&[]);
            assert!((residual - found.residuals[index]).abs() <= 1e-9 * scale, "{residual}");
        }
        let gram = found.vectors.matmul(&found.vectors.tr());
        assert!(gram.allclose(
            &Tensor::eye(expected.len() as i64, (Kind::Double, Device::Cpu)),
            1e-9,
            1e-9,
            false
        ));
        found
    }

    #[test]
    fn finds_both_ends_of_a_known_spectrum() {
        let spread: Vec<f64> = (0..200).map(|k| 1. / f64::from(k + 1) - 5. / f64::from(202 - k)).collect();
        for block in [1, 2, 4, 16] {
            let settings =
                EigenSettings { largest: 4, smallest: 3, tolerance: 1e-9, block, ..EigenSettings::default() };
            check(&spread, settings);
            check(&spread, EigenSettings { smallest: 0, ..settings });
            check(&spread, EigenSettings { largest: 0, smallest: 2, ..settings });
        }
    }

    /// One vector alone would see each only once.
    #[test]
    fn finds_eigenvalues_that_are_several_times_there() {
        let mut values = vec![3., 3., 3., 2.];
        values.extend((0..96).map(|k| f64::from(k) / 100.));
        check(&values, EigenSettings { largest: 4, tolerance: 1e-10, block: 4, ..EigenSettings::default() });
    }

    #[test]
    fn small_and_degenerate_matrices() {
        let all = EigenSettings { largest: 3, tolerance: 1e-12, block: 8, ..EigenSettings::default() };
        check(&[1., -2., 5.], all);
        check(&[0., 0., 0.], all);
        check(&[2.], EigenSettings { largest: 1, ..all });
        check(&[1.; 40], EigenSettings { largest: 3, block: 2, ..all });
    }

    #[test]
    fn says_how_far_it_came() {
        let values: Vec<f64> = (0..300).map(|k| 1. + f64::from(k) * 1e-6).collect();
        let settings = EigenSettings { tolerance: 1e-13, products: 40, ..EigenSettings::default() };
        let matrix = with_spectrum(&values);
        let found = eigenpairs(&matrix, settings, &|_| true).unwrap();
        assert!(!found.converged && found.products >= 40 && found.values.len() == 5);
        let stopped = eigenpairs(&matrix, settings, &|progress| progress.products < 10);
        assert!(matches!(stopped, Err(CurvatureError::Stopped)));
        let too_many = eigenpairs(&matrix, EigenSettings { largest: 301, ..settings }, &|_| true);
        assert!(
            too_many
                .unwrap_err()
                .to_string()
                .contains("between 1 and 300, the number of parameters, found 301")
        );
    }
}
