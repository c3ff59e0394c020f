//! Whether two quantities rise together, whatever the shape of their curve.

/// Spearman's rank correlation of pairs: Pearson's correlation of their ranks, -1 to 1; tied values share the mean of their
/// ranks (Spearman, *American Journal of Psychology* 15, 1904). Infinities are values like others.
///
/// `None` for fewer than 2 pairs, where one of the quantities is the same in all of them, or where a value is NaN.
#[must_use]
pub fn rank_correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let (left, right): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let (left, right) = (ranks(&left)?, ranks(&right)?);
    // Ranks with shared means keep the mean of 1 to n.
    let mean = f64::midpoint(pairs.len() as f64, 1.);
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let spread = product(&left, &left) * product(&right, &right);
    (spread > 0.).then(|| (product(&left, &right) / spread.sqrt()).clamp(-1., 1.))
}

/// Ranks from 1, in the values' order; `None` with a NaN among them.
#[allow(clippy::float_cmp)] // Ties are exact.
fn ranks(values: &[f64]) -> Option<Vec<f64>> {
    let rank = |value: &f64| {
        let below = values.iter().filter(|other| *other < value).count();
        let equal = values.iter().filter(|other| *other == value).count();
        below as f64 + f64::midpoint(equal as f64, 1.)
    };
    (!values.iter().any(|value| value.is_nan())).then(|| values.iter().map(rank).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn agrees_with_scipy() {
        // scipy.stats.spearmanr(x, y).statistic
        for (x, y, expected) in [
            (vec![1., 2., 3., 4., 5.], vec![5., 6., 7., 8., 7.], 0.820_782_681_668_123_3),
            (vec![1., 2., 3., 4.], vec![10., 100., 1000., f64::INFINITY], 1.),
            (vec![1., 2., 3., 4.], vec![4., 3., 2., 1.], -1.),
            (vec![1., 2., 3., 4.], vec![1., -1., -1., 1.], 0.),
        ] {
            let pairs: Vec<(f64, f64)> = x.into_iter().zip(y).collect();
            assert_relative_eq!(rank_correlation(&pairs).unwrap(), expected, epsilon = 1e-12);
        }
    }

    #[test]
    fn what_has_no_order_has_no_correlation() {
        assert_eq!(rank_correlation(&[]), None);
        assert_eq!(rank_correlation(&[(1., 2.)]), None);
        assert_eq!(rank_correlation(&[(1., 2.), (1., 3.)]), None);
        assert_eq!(rank_correlation(&[(1., 2.), (f64::NAN, 3.)]), None);
    }
}
