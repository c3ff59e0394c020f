//! The trace and the Frobenius norm of a matrix from its products with random vectors.
//!
//! - Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix": `tr A = E vᵀ A v` for random signs v; the variance is
//!   `2 Σ_{i≠j} A_ij²`.
//! - Hutch++ (Meyer et al. 2021, "Hutch++: optimal stochastic trace estimation"): the trace of A on the range Q of `A S`, S random, exactly, plus
//!   Hutchinson on the rest, `(I - QQᵀ) A (I - QQᵀ)`; a third of the products each for S, Q and the probes.
//! - XTrace (Epperly, Tropp and Webber 2024, "XTrace: making the most of every sample in stochastic trace estimation"): the same with every probe's turn
//!   at being left out of the sketch. With `Y = A Ω = Q R`, the i-th estimate is
//!   `tr Q_iᵀ A Q_i + ω_iᵀ (I - Q_i Q_iᵀ) A (I - Q_i Q_iᵀ) ω_i`, Q_i an orthonormal basis of all columns of Y but the i-th:
//!   `Q_i Q_iᵀ = Q (I - s_i s_iᵀ) Qᵀ`, s_i the i-th column of `R⁻ᵀ` scaled to length 1. Their mean is the estimate.
//!
//! `‖A‖_F² = E ‖A v‖²` comes from the same products.

use crate::operator::{CurvatureError, Symmetric};
use crate::probe::signs;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Which estimator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceEstimator {
    /// The mean over probes.
    Hutchinson,
    /// Exact on a random range, the mean over probes beside it.
    HutchPlusPlus,
    /// The same, exchangeable.
    #[serde(rename = "xtrace")]
    XTrace,
}

impl TraceEstimator {
    /// Trace and Frobenius norm with at most `products` products: [`hutchinson`] ends as soon as `relative_error` is met, the others spend
    /// all. `observe` is Hutchinson's.
    ///
    /// # Errors
    /// Those of the estimator.
    pub fn estimate(
        self,
        operator: &dyn Symmetric,
        relative_error: f64,
        products: usize,
        seed: u64,
        observe: &dyn Fn(Estimate) -> bool,
    ) -> Result<TraceEstimates, CurvatureError> {
        match self {
            Self::Hutchinson => hutchinson(operator, relative_error, products, seed, observe),
            Self::HutchPlusPlus => hutch_plus_plus(operator, products, seed),
            Self::XTrace => xtrace(operator, products, seed),
        }
    }
}

/// What is estimated, with what it may be off by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Its standard error, from the spread of what it is the mean of; NaN for a single one.
    pub standard_error: f64,
    /// Vectors that were multiplied.
    pub products: usize,
}

/// Trace and Frobenius norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceEstimates {
    /// `tr A`.
    pub trace: Estimate,
    /// `‖A‖_F`; the standard error is that of its square over twice the norm.
    pub frobenius: Estimate,
}

/// Vectors multiplied at once; the numbers do not depend on it.
const TOGETHER: usize = 16;

/// The mean of some values with its standard error.
fn mean(values: &[f64], products: usize) -> Estimate {
    let count = values.len() as f64;
    let value = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|one| (one - value).powi(2)).sum();
    let standard_error = if values.len() > 1 { (squares / (count - 1.) / count).sqrt() } else { f64::NAN };
    Estimate { value, standard_error, products }
}

fn root(square: Estimate) -> Estimate {
    let value = square.value.max(0.).sqrt();
    Estimate { value, standard_error: square.standard_error / (2. * value), ..square }
}

/// Hutchinson's estimates, with probes until the trace's standard error is at most `relative_error` of its size, or `most` probes are spent.
/// `observe` is given the estimate so far after some probes; when it says false, [`CurvatureError::Stopped`] is returned.
///
/// # Errors
/// [`CurvatureError::Count`] for no probe, and those of the products.
pub fn hutchinson(
    operator: &dyn Symmetric,
    relative_error: f64,
    most: usize,
    seed: u64,
    observe: &dyn Fn(Estimate) -> bool,
) -> Result<TraceEstimates, CurvatureError> {
    check_count(most, 1)?;
    let (_, device) = operator.options();
    let dimension = operator.dimension() as usize;
    let (mut traces, mut squares): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    loop {
        let size = TOGETHER.min(most - traces.len());
        let v = signs(seed, traces.len() as u32, size, dimension, device)?;
        let image = operator.products(&v)?.f_to_kind(Kind::Double)?;
        traces.extend(row_products(&v, &image)?);
        squares.extend(row_products(&image, &image)?);
        let trace = mean(&traces, traces.len());
        if !observe(trace) {
            return Err(CurvatureError::Stopped);
        }
        if traces.len() >= most || trace.standard_error <= relative_error * trace.value.abs() {
            return Ok(TraceEstimates { trace, frobenius: root(mean(&squares, squares.len())) });
        }
    }
}

/// Hutch++ with about `products` products, a third each. The standard error is that of the probes: the rest is exact.
///
/// # Errors
/// [`CurvatureError::Count`] for fewer than 6 products, and those of the products.
pub fn hutch_plus_plus(
    operator: &dyn Symmetric,
    products: usize,
    seed: u64,
) -> Result<TraceEstimates, CurvatureError> {
    check_count(products, 6)?;
    let (_, device) = operator.options();
    let dimension = operator.dimension() as usize;
    let size = (products / 3).min(dimension);
    let sketch = signs(seed, 0, size, dimension, device)?;
    let (image, squares) = images(operator, &sketch)?;
    let basis = orthonormal(&image)?;
    let exact = {
        let (image, _) = images(operator, &basis)?;
        row_products(&basis, &image)?.iter().sum::<f64>()
    };
    let probes = signs(seed, u32::MAX, size, dimension, device)?;
    let beside = probes.f_sub(&probes.f_mm(&basis.f_transpose(0, 1)?)?.f_mm(&basis)?)?;
    let rest = row_products(&beside, &images(operator, &beside)?.0)?;
    let spent = 2 * size + basis.size()[0] as usize;
    let Estimate { value, standard_error, .. } = mean(&rest, spent);
    // Of the sketch alone: the probes beside its range miss most of it.
    let frobenius = root(mean(&squares, size));
    Ok(TraceEstimates {
        trace: Estimate { value: exact + value, standard_error, products: spent },
        frobenius,
    })
}

/// XTrace with `products` products, half of them for the sketch.
///
/// The standard error is √2 times the spread of the n estimates over √n; Epperly et al. (section 1.3) leave out the √2. Each probe is also in
/// the sketch of all the others, so the estimates depend on each other. Where an estimate's error is mostly its own probe's, as with a
/// flat spectrum, they hardly do and √2 is too cautious; where it is mostly one of pairs of probes, as with a spectrum that falls
/// fast, the variance is about twice what the spread says (that of a degenerate U-statistic of order two, Hoeffding 1948).
///
/// # Errors
/// [`CurvatureError::Count`] for fewer than 6 products, and those of the products.
#[allow(clippy::many_single_char_names)] // the paper's
pub fn xtrace(
    operator: &dyn Symmetric,
    products: usize,
    seed: u64,
) -> Result<TraceEstimates, CurvatureError> {
    check_count(products, 6)?;
    let (_, device) = operator.options();
    let dimension = operator.dimension() as usize;
    let size = (products / 2).min(dimension);
    // Rows are vectors: Ω is omega's transpose.
    let omega = signs(seed, 0, size, dimension, device)?;
    let (y, squares) = images(operator, &omega)?;
    let (q, r) = Tensor::f_linalg_qr(&y.f_transpose(0, 1)?, "reduced")?;
    let (z, _) = images(operator, &q.f_transpose(0, 1)?.f_contiguous()?)?;
    let cpu = |t: Tensor| t.f_to_device(Device::Cpu);
    // H = Qᵀ A Q, W = Qᵀ Ω, and Qᵀ A ω_i = Qᵀ y_i = r_i.
    let h = cpu(z.f_mm(&q)?)?;
    let w = cpu(q.f_transpose(0, 1)?.f_mm(&omega.f_transpose(0, 1)?)?)?;
    let r = cpu(r)?;
    let own = row_products(&omega, &y)?;
    let identity = Tensor::f_eye(r.size()[0], (Kind::Double, Device::Cpu))?;
    // Where the sketch is all of space, or saw all of A's range, its trace is exact.
    let largest = r.f_diag(0)?.f_abs()?.f_max()?.f_double_value(&[])?;
    let least = r.f_diag(0)?.f_abs()?.f_min()?.f_double_value(&[])?;
    let trace_h = h.f_trace()?.f_double_value(&[])?;
    if size == dimension || least <= 1e-12 * largest {
        let spent = size + r.size()[0] as usize;
        let trace = Estimate { value: trace_h, standard_error: 0., products: spent };
        return Ok(TraceEstimates { trace, frobenius: root(mean(&squares, size)) });
    }
    // Columns of R⁻ᵀ.
    let inverse = Tensor::f_linalg_solve_triangular(&r.f_transpose(0, 1)?, &identity, false, true, false)?;
    let s = inverse.f_div(&inverse.f_norm_scalaropt_dim(2., [0i64], true)?)?;
    let columns = |a: &Tensor, b: &Tensor| -> Result<Tensor, tch::TchError> {
        a.f_mul(b)?.f_sum_dim_intlist(Some([0i64].as_slice()), true, None)
    };
    let hs = h.f_mm(&s)?;
    let left_out = w.f_sub(&s.f_mul(&columns(&s, &w)?)?)?;
    let rest = columns(&left_out, &h.f_mm(&left_out)?)?.f_sub(&columns(&left_out, &r)?.f_mul_scalar(2.)?)?;
    let rest: Vec<f64> = Vec::try_from(rest.f_flatten(0, -1)?)?;
    let range: Vec<f64> = Vec::try_from(columns(&s, &hs)?.f_flatten(0, -1)?)?;
    let estimates: Vec<f64> = (0..size).map(|i| trace_h - range[i] + own[i] + rest[i]).collect();
    let mut trace = mean(&estimates, 2 * size);
    trace.standard_error *= std::f64::consts::SQRT_2;
    Ok(TraceEstimates { trace, frobenius: root(mean(&squares, size)) })
}

fn check_count(found: usize, least: usize) -> Result<(), CurvatureError> {
    if found >= least {
        return Ok(());
    }
    Err(CurvatureError::Count {
        what: "the number of products",
        expected: format!("at least {least}"),
        found,
    })
}

/// `A v` of each row, and `‖A v‖²`.
fn images(operator: &dyn Symmetric, rows: &Tensor) -> Result<(Tensor, Vec<f64>), CurvatureError> {
    let image = operator.products(rows)?.f_to_kind(Kind::Double)?;
    let squares = row_products(&image, &image)?;
    Ok((image, squares))
}

fn row_products(a: &Tensor, b: &Tensor) -> Result<Vec<f64>, CurvatureError> {
    Ok(Vec::try_from(a.f_mul(b)?.f_sum_dim_intlist(Some([-1i64].as_slice()), false, None)?)?)
}

/// An orthonormal basis of the rows' span, as rows.
fn orthonormal(rows: &Tensor) -> Result<Tensor, CurvatureError> {
    let (q, _) = Tensor::f_linalg_qr(&rows.f_transpose(0, 1)?, "reduced")?;
    Ok(q.f_transpose(0, 1)?.f_contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::Matrix;
    use crate::probe::gaussian;

    /// A matrix like a Hessian: a few large eigenvalues, many small ones of both signs.
    fn matrix(count: usize) -> Matrix {
        let (q, _) = Tensor::linalg_qr(&gaussian(3, 0, count, count, Device::Cpu).unwrap(), "reduced");
        let values: Vec<f64> =
            (0..count).map(|k| 10. / (1. + k as f64).powi(2) - 0.01 * (k % 3) as f64).collect();
        Matrix(q.matmul(&Tensor::from_slice(&values).diag(0)).matmul(&q.tr()))
    }

    type Estimator = fn(&dyn Symmetric, u64) -> TraceEstimates;
    const ESTIMATORS: [(&str, Estimator); 3] = [
        ("Hutchinson", |a, seed| hutchinson(a, 0., 32, seed, &|_| true).unwrap()),
        ("Hutch++", |a, seed| hutch_plus_plus(a, 48, seed).unwrap()),
        ("XTrace", |a, seed| xtrace(a, 48, seed).unwrap()),
    ];

    /// Of 300 seeds, the interval of two standard errors holds the truth as often as one may expect.
    #[test]
    fn standard_errors_mean_what_they_say() {
        let a = matrix(60);
        let truth = a.0.trace().double_value(&[]);
        let norm = a.0.norm().double_value(&[]);
        for (name, estimate) in ESTIMATORS {
            let all: Vec<TraceEstimates> = (0..300).map(|seed| estimate(&a, seed)).collect();
            let covers = |value: fn(&TraceEstimates) -> Estimate, truth: f64| {
                let hits = all.iter().map(value).filter(|e| (e.value - truth).abs() <= 2. * e.standard_error);
                hits.count() as f64 / all.len() as f64
            };
            let share = covers(|e| e.trace, truth);
            assert!((0.90..=0.99).contains(&share), "{name}: {share}");
            let share = covers(|e| e.frobenius, norm);
            assert!((0.85..=0.99).contains(&share), "{name}, Frobenius norm: {share}");
            // Unbiased.
            let values: Vec<f64> = all.iter().map(|e| e.trace.value).collect();
            let overall = mean(&values, 0);
            assert!((overall.value - truth).abs() < 4. * overall.standard_error, "{name}");
        }
    }

    /// The formula with s against leaving each column out and orthogonalising anew.
    #[test]
    fn xtrace_is_what_it_says() {
        let (a, seed, size, dimension) = (matrix(20), 5, 6, 20);
        let omega = signs(seed, 0, size, dimension, Device::Cpu).unwrap();
        let y = omega.matmul(&a.0);
        let estimates: Vec<f64> = (0..size as i64)
            .map(|i| {
                let others: Vec<i64> = (0..size as i64).filter(|&j| j != i).collect();
                let q = orthonormal(&y.index_select(0, &Tensor::from_slice(&others))).unwrap();
                let beside = Tensor::eye(20, (Kind::Double, Device::Cpu)) - q.tr().matmul(&q);
                let rest = beside.matmul(&omega.get(i));
                let on_range = q.matmul(&a.0).matmul(&q.tr()).trace();
                (on_range + rest.dot(&a.0.matmul(&rest))).double_value(&[])
            })
            .collect();
        let found = xtrace(&a, 2 * size, seed).unwrap().trace;
        let expected = mean(&estimates, 12);
        assert!((found.value - expected.value).abs() < 1e-10, "{found:?} {expected:?}");
        assert!((found.standard_error - 2f64.sqrt() * expected.standard_error).abs() < 1e-10);
        assert_eq!(found.products, 12);
    }

    #[test]
    fn exact_where_the_sketch_sees_everything() {
        let a = matrix(12);
        let truth = a.0.trace().double_value(&[]);
        let found = xtrace(&a, 48, 0).unwrap();
        assert!((found.trace.value - truth).abs() < 1e-10 && found.trace.standard_error < 1e-8);
        let found = hutch_plus_plus(&a, 60, 0).unwrap();
        assert!((found.trace.value - truth).abs() < 1e-10);
        // A multiple of the identity has no spread.
        let identity = Matrix(Tensor::eye(30, (Kind::Double, Device::Cpu)) * 2.);
        let found = hutchinson(&identity, 0.01, 100, 0, &|_| true).unwrap();
        assert_eq!((found.trace.value, found.trace.standard_error, found.trace.products), (60., 0., 16));
        assert!(hutchinson(&a, 0.1, 0, 0, &|_| true).is_err() && xtrace(&a, 5, 0).is_err());
        assert!(matches!(hutchinson(&a, 0.1, 9, 0, &|_| false), Err(CurvatureError::Stopped)));
    }
}
