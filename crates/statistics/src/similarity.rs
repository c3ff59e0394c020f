//! How alike the rows of a matrix are, for instance the weights of models: cosines and Euclidean distances.
//!
//! Sums are in f64, whatever the rows are given as, and nothing is copied. Distances come from differences, not from inner
//! products, which would lose the digits of rows that nearly agree.

use ndarray::{Array2, ArrayView1, ArrayView2};

/// Euclidean distance ‖a - b‖.
///
/// # Panics
/// When the lengths differ.
pub fn distance<A: Copy + Into<f64>>(a: ArrayView1<A>, b: ArrayView1<A>) -> f64 {
    sum(a, b, |a, b| (a - b) * (a - b)).sqrt()
}

/// Cosine of the angle between a and b, aᵀb / (‖a‖ ‖b‖), from -1 to 1; NaN where one is zero.
///
/// # Panics
/// When the lengths differ.
pub fn cosine<A: Copy + Into<f64>>(a: ArrayView1<A>, b: ArrayView1<A>) -> f64 {
    let norms = sum(a, a, |a, b| a * b).sqrt() * sum(b, b, |a, b| a * b).sqrt();
    // Rounding may carry the quotient of parallel vectors past 1; clamp keeps a NaN.
    (sum(a, b, |a, b| a * b) / norms).clamp(-1., 1.)
}

/// Euclidean distances between all rows, `[n, n]`: symmetric, zeros on the diagonal.
pub fn distances<A: Copy + Into<f64>>(rows: ArrayView2<A>) -> Array2<f64> {
    pairs(rows, 0., distance)
}

/// Cosines between all rows, `[n, n]`: symmetric, 1 on the diagonal. NaN in the row and column of a zero row.
pub fn cosines<A: Copy + Into<f64>>(rows: ArrayView2<A>) -> Array2<f64> {
    let mut all = pairs(rows, 1., cosine);
    for (index, row) in rows.rows().into_iter().enumerate() {
        if cosine(row, row).is_nan() {
            all[[index, index]] = f64::NAN;
        }
    }
    all
}

fn pairs<A: Copy + Into<f64>>(
    rows: ArrayView2<A>,
    diagonal: f64,
    of: impl Fn(ArrayView1<A>, ArrayView1<A>) -> f64,
) -> Array2<f64> {
    let count = rows.nrows();
    let mut all = Array2::from_diag(&ndarray::Array1::from_elem(count, diagonal));
    for first in 0..count {
        for second in first + 1..count {
            let value = of(rows.row(first), rows.row(second));
            all[[first, second]] = value;
            all[[second, first]] = value;
        }
    }
    all
}

fn sum<A: Copy + Into<f64>>(a: ArrayView1<A>, b: ArrayView1<A>, term: impl Fn(f64, f64) -> f64) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of different lengths");
    a.iter().zip(b).map(|(&a, &b)| term(a.into(), b.into())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;
    use ndarray::{Array, array};

    #[test]
    fn angles_and_lengths_that_are_known() {
        let rows = array![[3., 0.], [0., 4.], [1., 1.], [-6., 0.]];
        let half = 0.5f64.sqrt();
        let cosines = cosines(rows.view());
        let expected =
            array![[1., 0., half, -1.], [0., 1., half, 0.], [half, half, 1., -half], [-1., 0., -half, 1.]];
        assert_abs_diff_eq!(cosines, expected, epsilon = 1e-15);
        let (five, tenth, long) = (5f64.sqrt(), 10f64.sqrt(), 50f64.sqrt());
        let expected = array![
            [0., 5., five, 9.],
            [5., 0., tenth, 52f64.sqrt()],
            [five, tenth, 0., long],
            [9., 52f64.sqrt(), long, 0.]
        ];
        assert_abs_diff_eq!(distances(rows.view()), expected, epsilon = 1e-14);
    }

    #[test]
    fn rows_that_nearly_agree_keep_their_distance() {
        let row = Array::from_elem(10_000, 1e3);
        let mut near = row.clone();
        near[7] += 1e-9;
        let expected = near[7] - 1e3;
        assert!(expected > 0.);
        assert_abs_diff_eq!(distance(row.view(), near.view()), expected);
    }

    #[test]
    fn singles_are_summed_in_f64() {
        // In f32, a sum of ones stops at 2^24.
        let ones = Array::from_elem(1 << 25, 1f32);
        let zeros = Array::zeros(1 << 25);
        assert_abs_diff_eq!(distance(ones.view(), zeros.view()), f64::from(1 << 25).sqrt());
        assert_abs_diff_eq!(cosine(ones.view(), ones.view()), 1.);
    }

    #[test]
    fn a_zero_row_has_no_direction() {
        let rows = array![[0., 0.], [1., 2.]];
        let cosines = cosines(rows.view());
        assert!(cosines[[0, 0]].is_nan() && cosines[[0, 1]].is_nan() && cosines[[1, 0]].is_nan());
        assert_abs_diff_eq!(cosines[[1, 1]], 1.);
        assert_abs_diff_eq!(distances(rows.view())[[0, 1]], 5f64.sqrt());
        assert_eq!(distances(Array2::<f64>::zeros((0, 3)).view()).dim(), (0, 0));
    }
}
