//! Whether two quantities rise together, whatever the shape of their curve.

/// Spearman's rank correlation of pairs: Pearson's correlation of their ranks, -1 to 1; tied values share the mean of their
/// ranks (Spearman, *American Journal of Psychology* 15, 1904). Infinities are values like others.
///
/// `None` for fewer than 2 pairs, where one of the quantities is the same in all of them, or where a value is NaN.
#[must_use]
pub fn rank_correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let products = rank_products(pairs)?;
    Some((products.iter().sum::<f64>() / products.len() as f64).clamp(-1., 1.))
}

/// What each pair adds to Spearman's rank correlation: the product of its two ranks, each less the mean rank and over the ranks'
/// standard deviation. Their mean is [`rank_correlation`].
///
/// Where the quantities are independent, the products have mean 0 and variance 1, uncorrelated but for 1/n: the t interval of their
/// mean then misses 0 as often as its level says, and so tells whether there is a correlation at all. As an interval of the
/// correlation itself it is rough.
///
/// `None` as for [`rank_correlation`].
#[must_use]
pub fn rank_products(pairs: &[(f64, f64)]) -> Option<Vec<f64>> {
    let (left, right): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let (left, right) = (standardised_ranks(&left)?, standardised_ranks(&right)?);
    Some(left.iter().zip(&right).map(|(a, b)| a * b).collect())
}

/// Ranks less their mean, over their standard deviation (of all of them, not a sample's).
fn standardised_ranks(values: &[f64]) -> Option<Vec<f64>> {
    let ranks = ranks(values)?;
    let count = ranks.len() as f64;
    // Ranks with shared means keep the mean of 1 to n.
    let mean = f64::midpoint(count, 1.);
    let deviation = (ranks.iter().map(|rank| (rank - mean).powi(2)).sum::<f64>() / count).sqrt();
    (deviation > 0.).then(|| ranks.iter().map(|rank| (rank - mean) / deviation).collect())
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
    use crate::mean_interval;
    use approx::assert_relative_eq;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::StandardNormal;

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

    /// Under independence the t interval of the products misses 0 as often as it should; with a correlation, far more often.
    #[test]
    fn products_tell_whether_there_is_a_correlation() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut missed = |slope: f64, count: usize| {
            let sets = 2000;
            let misses = (0..sets).filter(|_| {
                let pairs: Vec<(f64, f64)> = (0..count)
                    .map(|_| {
                        let x: f64 = random.sample(StandardNormal);
                        // Ties among the second, as counts have them.
                        (x, (slope * x + 2. * random.sample::<f64, _>(StandardNormal)).round())
                    })
                    .collect();
                let products = rank_products(&pairs).unwrap();
                let interval = mean_interval(&products, 0.95).unwrap();
                assert_relative_eq!(interval.mean, rank_correlation(&pairs).unwrap(), epsilon = 1e-12);
                let (low, high) = interval.ends.unwrap();
                low > 0. || high < 0.
            });
            misses.count() as f64 / f64::from(sets)
        };
        // 2000 sets scatter by 0.005.
        assert_relative_eq!(missed(0., 20), 0.05, epsilon = 0.016);
        assert_relative_eq!(missed(0., 100), 0.05, epsilon = 0.016);
        assert!(missed(1., 100) > 0.95);
    }

    #[test]
    fn what_has_no_order_has_no_correlation() {
        assert_eq!(rank_correlation(&[]), None);
        assert_eq!(rank_correlation(&[(1., 2.)]), None);
        assert_eq!(rank_correlation(&[(1., 2.), (1., 3.)]), None);
        assert_eq!(rank_correlation(&[(1., 2.), (f64::NAN, 3.)]), None);
    }
}
