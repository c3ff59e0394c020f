//! Principal component analysis (Pearson 1901, "On lines and planes of closest fit"), through linfa.
//!
//! With the rows of X as n points of P numbers, centred to Xc = X - 1 meanᵀ, the components are the right singular vectors of
//! Xc = U diag(s) Vᵀ with the largest singular values: scores = Xc V, explained variance = s² / (n - 1), and its ratio is to the
//! total variance ‖Xc‖² / (n - 1), as scikit-learn has it.
//!
//! linfa-reduction 0.8.1 is not used bare, because
//! - its solver (LOBPCG of linfa-linalg) stops at an absolute residual, panics on large numbers and is inexact on small ones: Xc
//!   gets one Frobenius norm, and the results are scaled back;
//! - its `explained_variance` divides by components - 1, and its ratio is to the sum of the components kept: both are computed
//!   here from the singular values;
//! - what has not converged comes back as `Ok`, at times with fewer components than asked for: count, orthonormality and
//!   residual are checked;
//! - signs are arbitrary: here the loading of largest magnitude is positive in each component.
//!
//! Where it fails one of the checks, or for few rows, the eigenvectors of the n x n matrix Xc Xcᵀ (linfa-linalg's `eigh`) take its
//! place; [`Pca::solver`] tells which was used.
//!
//! Memory: beside the rows, which may be f32, two copies of them in f64, and n² or a few times P k numbers. There is no P x P
//! matrix.

use linfa::DatasetBase;
use linfa::traits::Fit;
use linfa_linalg::eigh::{EigSort, Eigh};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};
use std::panic::{AssertUnwindSafe, catch_unwind};
use thiserror::Error;

/// What cannot be analysed.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum PcaError {
    /// Variance needs two points.
    #[error("principal components need at least 2 rows, found {0}")]
    Rows(usize),
    /// n centred points span n - 1 dimensions at most.
    #[error(
        "the components must be 1 to {most} in number for {rows} rows of {columns} columns, found {asked}"
    )]
    Components {
        /// How many were asked for.
        asked: usize,
        /// The lesser of rows - 1 and columns.
        most: usize,
        /// n.
        rows: usize,
        /// P.
        columns: usize,
    },
    /// A NaN, an infinity, or numbers whose squares overflow.
    #[error(
        "principal components need finite numbers; row {row}, column {column} is not, or is too large to square"
    )]
    NotFinite {
        /// From 0.
        row: usize,
        /// From 0.
        column: usize,
    },
    /// All rows are the same point, which lies in no direction.
    #[error("all {0} rows are the same: there is no variance to explain")]
    NoVariance(usize),
    /// The points span fewer dimensions than components were asked for.
    #[error("the rows vary in {found} directions only, {asked} components were asked for")]
    Rank {
        /// How many were asked for.
        asked: usize,
        /// How many there are.
        found: usize,
    },
    /// Neither solver passed the checks.
    #[error("no solver found the components: linfa: {linfa}; Gram matrix: {gram}")]
    Unsolved {
        /// What was wrong with linfa's result.
        linfa: String,
        /// What was wrong with the other's.
        gram: String,
    },
}

/// How the components were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Solver {
    /// linfa-reduction: LOBPCG on the centred rows.
    Linfa,
    /// linfa-linalg: all eigenvectors of Xc Xcᵀ.
    Gram,
}

/// Principal components of n points of P numbers, the k largest, in falling order.
///
/// ```
/// use flatland_statistics::Pca;
/// use ndarray::array;
/// let points = array![[0., 0.], [3., 4.], [6., 8.], [9., 12.]];
/// let pca = Pca::fit(points.view(), 1)?;
/// assert!((pca.components[[0, 0]] - 0.6).abs() < 1e-12, "along (3, 4) / 5");
/// assert!((pca.scores[[3, 0]] - 7.5).abs() < 1e-12);
/// assert!((pca.explained_variance_ratio[0] - 1.).abs() < 1e-12);
/// # Ok::<(), flatland_statistics::PcaError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Pca {
    /// The centred rows in the components' coordinates, `[n, k]`, in the rows' unit.
    pub scores: Array2<f64>,
    /// Orthonormal, `[k, P]`; in each, the loading of largest magnitude is positive (the first, of equals).
    pub components: Array2<f64>,
    /// Variance of each score, `[k]`: s² / (n - 1).
    pub explained_variance: Array1<f64>,
    /// The same over [`Pca::total_variance`], `[k]`; it sums to 1 only where the components hold all variance.
    pub explained_variance_ratio: Array1<f64>,
    /// Sum of the variances of all columns: ‖Xc‖² / (n - 1).
    pub total_variance: f64,
    /// Of each column, `[P]`.
    pub mean: Array1<f64>,
    /// How they were found.
    pub solver: Solver,
}

/// Frobenius norm of what linfa is given. Its solver stops at a residual of 1e-10, whatever the scale; components whose variances
/// differ by a share d of the total are then wrong by some 1e-10 / (d 16²). A power of 2, so that scaling rounds nothing.
const SOLVER_NORM: f64 = 16.;
/// ‖XcᵀXc v - s² v‖ over ‖Xc‖² that a component may have.
const RESIDUAL: f64 = 1e-9;
/// How far the components' inner products may be from 0 and 1.
const ORTHONORMAL: f64 = 1e-8;
/// Share of the total variance below which a direction is rounding.
const NEGLIGIBLE: f64 = 1e-12;
/// LOBPCG works on blocks of 3 k vectors; with fewer rows than this times k it is none of its cases (scipy has the same bound).
const ROWS_PER_COMPONENT: usize = 5;

impl Pca {
    /// The `components` directions of largest variance.
    ///
    /// # Errors
    /// [`PcaError`]: for fewer than 2 rows, more components than rows - 1 or columns, numbers that are not finite, rows that
    /// are all equal or vary in fewer directions than asked for, or a failure of both solvers.
    pub fn fit<A: Copy + Into<f64>>(rows: ArrayView2<A>, components: usize) -> Result<Self, PcaError> {
        let mut centred = Centred::new(rows, components)?;
        match centred.by_linfa(components) {
            Ok(found) => Ok(centred.finish(found, Solver::Linfa)),
            Err(reason) => centred.by_gram(components, &reason),
        }
    }

    /// The same by the Gram matrix alone.
    ///
    /// # Errors
    /// As [`Pca::fit`].
    pub fn fit_by_gram<A: Copy + Into<f64>>(
        rows: ArrayView2<A>,
        components: usize,
    ) -> Result<Self, PcaError> {
        Centred::new(rows, components)?.by_gram(components, "not asked")
    }

    /// Other points in the components' coordinates: `[m, P]` to `[m, k]`. Takes one row in f64 at a time.
    ///
    /// # Panics
    /// When the points have other than P columns.
    pub fn transform<A: Copy + Into<f64>>(&self, rows: ArrayView2<A>) -> Array2<f64> {
        assert_eq!(rows.ncols(), self.mean.len(), "points of another dimension");
        let mut scores = Array2::zeros((rows.nrows(), self.components.nrows()));
        for (row, mut score) in rows.rows().into_iter().zip(scores.rows_mut()) {
            let centred: Array1<f64> = row.iter().zip(&self.mean).map(|(&x, mean)| x.into() - mean).collect();
            score.assign(&self.components.dot(&centred));
        }
        scores
    }
}

/// The centred rows, made fit for the solvers.
struct Centred {
    /// Xc / ‖Xc‖, `[n, P]`.
    unit: Array2<f64>,
    /// ‖Xc‖, above 0.
    norm: f64,
    mean: Array1<f64>,
}

/// Right singular vectors `[k, P]` of [`Centred::unit`], with their singular values.
struct Found {
    components: Array2<f64>,
    singular: Array1<f64>,
}

impl Centred {
    fn new<A: Copy + Into<f64>>(rows: ArrayView2<A>, components: usize) -> Result<Self, PcaError> {
        let (count, columns) = rows.dim();
        if count < 2 {
            return Err(PcaError::Rows(count));
        }
        let most = (count - 1).min(columns);
        if !(1..=most).contains(&components) {
            return Err(PcaError::Components { asked: components, most, rows: count, columns });
        }
        let mut unit = rows.mapv(Into::into);
        // A sum of squares of all of these must not overflow.
        let limit = (f64::MAX / (count * columns) as f64).sqrt() / 4.;
        // (A NaN is not below the limit either.)
        let strange = unit.indexed_iter().find(|(_, x)| x.is_nan() || x.abs() > limit);
        if let Some(((row, column), _)) = strange {
            return Err(PcaError::NotFinite { row, column });
        }
        // From the first row, so that equal rows give zeros, not rounding.
        let first = unit.row(0).to_owned();
        unit -= &first;
        let mut offset = Array1::zeros(columns);
        for row in unit.rows() {
            offset += &row;
        }
        offset /= count as f64;
        unit -= &offset;
        let largest = unit.iter().fold(0., |largest: f64, x| largest.max(x.abs()));
        if largest == 0. {
            return Err(PcaError::NoVariance(count));
        }
        // Small numbers must not vanish when squared.
        unit /= largest;
        let norm = unit.iter().map(|x| x * x).sum::<f64>().sqrt();
        unit /= norm;
        Ok(Self { unit, norm: norm * largest, mean: first + offset })
    }

    /// By linfa; a sentence where it panics, or what it gives is not what it should be.
    fn by_linfa(&mut self, components: usize) -> Result<Found, String> {
        if self.unit.nrows() < ROWS_PER_COMPONENT * components {
            return Err(format!("fewer than {ROWS_PER_COMPONENT} rows per component"));
        }
        // In place: another copy would be the largest thing in memory.
        self.unit *= SOLVER_NORM;
        let data = DatasetBase::from(self.unit.view());
        let solved = catch_unwind(AssertUnwindSafe(|| linfa_reduction::Pca::params(components).fit(&data)));
        self.unit /= SOLVER_NORM;
        let pca = match solved {
            Ok(Ok(pca)) => pca,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|&text| text.to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                return Err(format!("it panicked: {}", text.unwrap_or_default()));
            }
        };
        let found =
            Found { components: pca.components().to_owned(), singular: pca.singular_values() / SOLVER_NORM };
        self.check(&found, components)?;
        Ok(found)
    }

    /// By the eigenvectors of Xc Xcᵀ: with u of eigenvalue s², v = Xcᵀ u / s.
    fn by_gram(self, components: usize, linfa: &str) -> Result<Pca, PcaError> {
        let unsolved = |gram: String| PcaError::Unsolved { linfa: linfa.to_owned(), gram };
        let gram = self.unit.dot(&self.unit.t());
        let solved = catch_unwind(AssertUnwindSafe(|| gram.eigh().map(EigSort::sort_eig_desc)));
        let (squares, vectors) = match solved {
            Ok(Ok(solved)) => solved,
            Ok(Err(error)) => return Err(unsolved(error.to_string())),
            Err(_) => return Err(unsolved("it panicked".to_owned())),
        };
        // The unit matrix has a total of 1.
        let rank = squares.iter().take_while(|&&square| square > NEGLIGIBLE).count();
        if rank < components {
            return Err(PcaError::Rank { asked: components, found: rank });
        }
        let singular = squares.slice(s![..components]).mapv(f64::sqrt);
        let left = &vectors.slice(s![.., ..components]) / &singular;
        let found = Found { components: left.t().dot(&self.unit), singular };
        self.check(&found, components).map_err(unsolved)?;
        Ok(self.finish(found, Solver::Gram))
    }

    /// Whether these are k singular vectors, in falling order.
    fn check(&self, found: &Found, components: usize) -> Result<(), String> {
        let Found { components: vectors, singular } = found;
        if vectors.nrows() != components || singular.len() != components {
            return Err(format!("{} components came back instead of {components}", vectors.nrows()));
        }
        if !singular.iter().chain(vectors).all(|x| x.is_finite()) {
            return Err("the result is not finite".to_owned());
        }
        if singular.windows(2).into_iter().any(|pair| pair[0] < pair[1]) {
            return Err("the components came back in another order".to_owned());
        }
        let products = vectors.dot(&vectors.t()) - Array2::<f64>::eye(components);
        let skew = products.iter().fold(0., |most: f64, x| most.max(x.abs()));
        if skew > ORTHONORMAL {
            return Err(format!("the components are {skew:.1e} from orthonormal"));
        }
        for (vector, s) in vectors.rows().into_iter().zip(singular) {
            let residual = self.residual(vector, *s);
            if residual > RESIDUAL {
                return Err(format!("a component's residual is {residual:.1e}"));
            }
        }
        Ok(())
    }

    /// ‖XcᵀXc v - s² v‖ for the unit matrix.
    fn residual(&self, vector: ArrayView1<f64>, s: f64) -> f64 {
        let mut difference = self.unit.t().dot(&self.unit.dot(&vector));
        difference.scaled_add(-s * s, &vector);
        difference.dot(&difference).sqrt()
    }

    /// Fixes the signs and scales back.
    fn finish(self, found: Found, solver: Solver) -> Pca {
        let Found { mut components, singular } = found;
        for mut vector in components.axis_iter_mut(Axis(0)) {
            let largest =
                vector.iter().fold(0., |largest: f64, &x| if x.abs() > largest.abs() { x } else { largest });
            if largest < 0. {
                vector.mapv_inplace(|x| -x);
            }
        }
        let freedom = (self.unit.nrows() - 1) as f64;
        let total_variance = self.norm * (self.norm / freedom);
        let explained_variance_ratio = singular.mapv(|s| s * s);
        Pca {
            scores: self.unit.dot(&components.t()) * self.norm,
            components,
            explained_variance: &explained_variance_ratio * total_variance,
            explained_variance_ratio,
            total_variance,
            mean: self.mean,
            solver,
        }
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // Exact values are meant.
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;
    use ndarray::array;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn random(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        Array2::from_shape_simple_fn((rows, columns), || generator.gen_range(-1.0..1.0))
    }

    /// Runs of a training: each row one small step from the one before.
    fn walks(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
        let mut steps = random(rows, columns, seed);
        for row in 1..rows {
            let (before, mut here) = steps.multi_slice_mut((s![row - 1, ..], s![row, ..]));
            here += &before;
        }
        steps
    }

    /// Everything that must hold whatever the data.
    fn check_sense(pca: &Pca, rows: &Array2<f64>) {
        let k = pca.components.nrows();
        let (n, columns) = rows.dim();
        assert_eq!((pca.scores.dim(), pca.components.dim()), ((n, k), (k, columns)));
        assert_abs_diff_eq!(pca.components.dot(&pca.components.t()), Array2::eye(k), epsilon = 1e-8);
        let total = rows.var_axis(Axis(0), 1.).sum();
        assert!((pca.total_variance / total - 1.).abs() < 1e-10);
        for (index, score) in pca.scores.columns().into_iter().enumerate() {
            assert!((score.var(1.) / pca.explained_variance[index] - 1.).abs() < 1e-7);
            assert!(score.sum().abs() < 1e-8 * n as f64 * score.var(1.).sqrt());
            let ratio = pca.explained_variance[index] / total;
            assert_abs_diff_eq!(pca.explained_variance_ratio[index], ratio, epsilon = 1e-10);
            let loadings = pca.components.row(index);
            let largest = loadings.iter().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
            assert!(*largest > 0.);
        }
        let scale = pca.explained_variance[0].sqrt();
        assert_abs_diff_eq!(pca.transform(rows.view()) / scale, &pca.scores / scale, epsilon = 1e-9);
    }

    #[test]
    fn linfa_and_the_gram_matrix_agree_at_every_scale() {
        for (scale, offset) in [(1., 0.), (1e-12, 0.), (1e9, 0.), (1e145, 0.), (1e-150, 0.), (1., 1e4)] {
            let rows = walks(72, 12_908, 1) * scale + offset;
            let pca = Pca::fit(rows.view(), 2).unwrap();
            let gram = Pca::fit_by_gram(rows.view(), 2).unwrap();
            assert_eq!((pca.solver, gram.solver), (Solver::Linfa, Solver::Gram), "{scale}");
            if scale == 1. {
                check_sense(&pca, &rows);
                check_sense(&gram, &rows);
            }
            let unit = pca.explained_variance[0].sqrt();
            assert_abs_diff_eq!(&pca.scores / unit, &gram.scores / unit, epsilon = 1e-8);
            assert_abs_diff_eq!(
                &pca.explained_variance_ratio,
                &gram.explained_variance_ratio,
                epsilon = 1e-10
            );
        }
    }

    #[test]
    fn the_ratio_is_to_the_total_and_one_component_is_enough_for_it() {
        // Variances 8/3, 2/3 and 0 along the axes: total 10/3.
        let rows = array![[2., 0., 5.], [-2., 0., 5.], [0., 1., 5.], [0., -1., 5.]];
        for k in [1, 2] {
            let pca = Pca::fit(rows.view(), k).unwrap();
            assert_abs_diff_eq!(pca.total_variance, 10. / 3., epsilon = 1e-12);
            let expected = array![8. / 3., 2. / 3.].slice_move(s![..k]);
            assert_abs_diff_eq!(pca.explained_variance, expected, epsilon = 1e-12);
            assert_abs_diff_eq!(pca.explained_variance_ratio, expected / (10. / 3.), epsilon = 1e-12);
            check_sense(&pca, &rows);
        }
    }

    #[test]
    fn tall_square_and_wide_rows_with_few_and_all_components() {
        for (n, columns, k) in
            [(2, 1, 1), (2, 7, 1), (3, 3, 2), (8, 40, 7), (200, 6, 6), (200, 6, 2), (60, 60, 9)]
        {
            let rows = random(n, columns, (n + columns) as u64);
            let pca = Pca::fit(rows.view(), k).unwrap();
            check_sense(&pca, &rows);
            if k == columns {
                assert_abs_diff_eq!(pca.explained_variance_ratio.sum(), 1., epsilon = 1e-10);
            }
        }
    }

    #[test]
    fn singles_give_what_the_same_doubles_give() {
        let singles = walks(30, 500, 4).mapv(|x| x as f32);
        let doubles = singles.mapv(f64::from);
        assert_eq!(Pca::fit(singles.view(), 3), Pca::fit(doubles.view(), 3));
    }

    #[test]
    fn what_cannot_be_analysed_is_said() {
        let fit = |rows: &Array2<f64>, k| Pca::fit(rows.view(), k).unwrap_err();
        let rows = random(6, 4, 0);
        assert_eq!(fit(&random(1, 4, 0), 1), PcaError::Rows(1));
        assert_eq!(fit(&Array2::zeros((0, 4)), 1), PcaError::Rows(0));
        for (n, columns, most) in [(6, 4, 4), (4, 6, 3), (4, 0, 0)] {
            for asked in [0, most + 1] {
                let error = fit(&Array2::zeros((n, columns)), asked);
                assert_eq!(error, PcaError::Components { asked, most, rows: n, columns });
            }
        }
        for strange in [f64::NAN, f64::INFINITY, f64::MAX] {
            let mut rows = rows.clone();
            rows[[3, 2]] = strange;
            assert_eq!(fit(&rows, 2), PcaError::NotFinite { row: 3, column: 2 });
        }
        // 0.1 + 0.1 + 0.1 is not 0.3, but there is no variance in it.
        assert_eq!(fit(&Array2::from_elem((3, 5), 0.1), 1), PcaError::NoVariance(3));
        let line = Array2::from_shape_fn((12, 5), |(row, column)| (row * (column + 1)) as f64);
        assert_eq!(fit(&line, 2), PcaError::Rank { asked: 2, found: 1 });
        assert!(Pca::fit(line.view(), 1).is_ok());
    }

    #[test]
    fn a_wrong_result_does_not_pass() {
        let rows = walks(40, 100, 7);
        let mut centred = Centred::new(rows.view(), 2).unwrap();
        let solved = centred.by_linfa(2).unwrap();
        let right = || Found { components: solved.components.clone(), singular: solved.singular.clone() };
        assert!(centred.check(&right(), 2).is_ok());
        let refused = |change: &dyn Fn(&mut Found), reason: &str| {
            let mut found = right();
            change(&mut found);
            let said = centred.check(&found, 2).unwrap_err();
            assert!(said.contains(reason), "{said}");
        };
        refused(&|found| found.components = found.components.slice(s![..1, ..]).to_owned(), "instead of 2");
        refused(&|found| found.components[[0, 3]] = f64::NAN, "not finite");
        refused(&|found| found.components *= 1.01, "orthonormal");
        refused(&|found| found.singular[0] *= 1.01, "residual");
        refused(&|found| found.singular.invert_axis(Axis(0)), "order");
        // Rotated within their plane, they are orthonormal still, but no longer singular vectors.
        let rotation = array![[0.6, 0.8], [-0.8, 0.6]];
        refused(&|found| found.components = rotation.dot(&found.components), "residual");
    }
}
