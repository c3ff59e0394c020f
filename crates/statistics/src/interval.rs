//! Intervals of a mean, a median, a share, or any statistic of values from independent seeds.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{Beta, Binomial, ContinuousCDF, DiscreteCDF, StudentsT};

/// A mean and an interval around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Arithmetic mean.
    pub mean: f64,
    /// Lower and upper end; `None` for a single value, which says nothing of spread, or where the spread is not finite.
    pub ends: Option<(f64, f64)>,
    /// How many values.
    pub count: usize,
}

/// Mean and Student's t interval `mean ± t(level, n - 1) s / √n`, with s the sample standard deviation.
///
/// `level` lies in (0, 1), for instance 0.95; any other leaves no interval. NaN and infinities carry over into the mean,
/// and leave no interval. Equal values give exactly their value, thrice. Returns `None` for no values at all.
pub fn mean_interval(values: &[f64], level: f64) -> Option<Interval> {
    let count = values.len();
    let first = *values.first()?;
    // Rounding would move the mean of 0.1, 0.1, 0.1 off 0.1, and give it a spread.
    if count > 1
        && first.is_finite()
        && is_level(level)
        && values.iter().all(|value| value.total_cmp(&first).is_eq())
    {
        return Some(Interval { mean: first, ends: Some((first, first)), count });
    }
    let mean = values.iter().sum::<f64>() / count as f64;
    let freedom = count as f64 - 1.;
    let ends = StudentsT::new(0., 1., freedom).ok().filter(|_| is_level(level)).and_then(|t| {
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / freedom;
        let half = t.inverse_cdf(0.5 + level / 2.) * (variance / count as f64).sqrt();
        half.is_finite().then_some((mean - half, mean + half))
    });
    Some(Interval { mean, ends, count })
}

/// The same for the geometric mean of positive values: the interval of the mean logarithm, exponentiated.
///
/// For what varies by factors, such as a loss far from its minimum; its ends are positive. A value of 0 gives a mean of 0,
/// a negative one NaN, both without an interval.
pub fn geometric_mean_interval(values: &[f64], level: f64) -> Option<Interval> {
    let logarithms: Vec<f64> = values.iter().map(|value| value.ln()).collect();
    let Interval { mean, ends, count } = mean_interval(&logarithms, level)?;
    Some(Interval { mean: mean.exp(), ends: ends.map(|(low, high)| (low.exp(), high.exp())), count })
}

/// Exact interval of a share (Clopper and Pearson, *Biometrika* 26, 1934), for `successes` of `trials` independent trials.
///
/// Its ends are quantiles of beta distributions: the lower leaves (1 - level) / 2 for as many successes or more, the upper
/// as much for as many or fewer. It covers with at least `level`, often with more. `None` without trials, for more
/// successes than trials, or a level outside (0, 1).
pub fn share_interval(successes: usize, trials: usize, level: f64) -> Option<(f64, f64)> {
    if trials == 0 || successes > trials || !is_level(level) {
        return None;
    }
    let (hits, misses) = (successes as f64, (trials - successes) as f64);
    let tail = (1. - level) / 2.;
    let low = if successes == 0 { 0. } else { Beta::new(hits, misses + 1.).ok()?.inverse_cdf(tail) };
    let high =
        if successes == trials { 1. } else { Beta::new(hits + 1., misses).ok()?.inverse_cdf(1. - tail) };
    Some((low, high))
}

/// The median: the middle value, or the mean of the two in the middle. `None` for no values, or where one is NaN.
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values)?;
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[half]),
        _ => Some(f64::midpoint(sorted[half - 1], sorted[half])),
    }
}

/// The value below which a `share` (0 to 1) of the values lies, interpolated linearly between neighbours as NumPy does by
/// default. `None` for no values, where one is NaN, or for a share outside [0, 1].
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let sorted = sorted(values)?;
    if sorted.is_empty() || !(0. ..=1.).contains(&share) {
        return None;
    }
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    // Between two equal infinities, interpolation would give NaN.
    Some(if low < high { low + (high - low) * place.fract() } else { low })
}

/// Interval of a median that holds for every distribution: the j-th smallest and the j-th largest value.
///
/// j is the largest with 2 P(B < j) ≤ 1 - level, for B binomial with n trials of 1/2 (David and Nagaraja, *Order
/// Statistics*, 3rd edition, section 7.1): the narrowest such interval that covers with at least `level`. Infinities are
/// values like others. `None` for too few values (at 0.95: fewer than 6), a NaN, or a level outside (0, 1).
pub fn median_interval(values: &[f64], level: f64) -> Option<(f64, f64)> {
    let sorted = sorted(values)?;
    if !is_level(level) {
        return None;
    }
    let count = sorted.len();
    let below = Binomial::new(0.5, count as u64).ok()?;
    let rank = (0..count as u64 / 2).take_while(|&beaten| 2. * below.cdf(beaten) <= 1. - level).count();
    (rank > 0).then(|| (sorted[rank - 1], sorted[count - rank]))
}

/// Percentile bootstrap (Efron, *Annals of Statistics* 7, 1979): the middle `level` of what `statistic` gives on samples
/// drawn with replacement from the values, each as large as they are.
///
/// For statistics that have no interval of their own. Percentiles are interpolated linearly. It covers less than `level`
/// where values are few (for a mean of 10, about 0.9 instead of 0.95). Equal `seed` and arguments give equal ends. `None` for
/// fewer than 2 values, no resamples, a level outside (0, 1), or where the statistic of a sample is NaN.
pub fn bootstrap_interval(
    values: &[f64],
    statistic: impl Fn(&[f64]) -> f64,
    level: f64,
    resamples: usize,
    seed: u64,
) -> Option<(f64, f64)> {
    if values.len() < 2 || resamples == 0 || !is_level(level) {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut sample = vec![0.; values.len()];
    let found: Vec<f64> = (0..resamples)
        .map(|_| {
            // u64, since a usize is drawn otherwise on machines of 32 bits.
            sample.fill_with(|| values[random.gen_range(0..values.len() as u64) as usize]);
            statistic(&sample)
        })
        .collect();
    Some((quantile(&found, (1. - level) / 2.)?, quantile(&found, 0.5 + level / 2.)?))
}

pub(crate) fn is_level(level: f64) -> bool {
    level > 0. && level < 1.
}

fn sorted(values: &[f64]) -> Option<Vec<f64>> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (!sorted.iter().any(|value| value.is_nan())).then_some(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use rand_distr::{Distribution, Exp1, StandardNormal};
    use statrs::distribution::Discrete;

    #[test]
    fn agrees_with_scipy() {
        // scipy.stats.t.interval(0.95, 4, numpy.mean(v), scipy.stats.sem(v)) for v = [1.2, 0.7, 1.9, 1.1, 1.4]
        let interval = mean_interval(&[1.2, 0.7, 1.9, 1.1, 1.4], 0.95).unwrap();
        let (low, high) = interval.ends.unwrap();
        assert_relative_eq!(interval.mean, 1.26, max_relative = 1e-12);
        assert_relative_eq!(low, 0.714_515_086_830_053_9, max_relative = 1e-9);
        assert_relative_eq!(high, 1.805_484_913_169_946_6, max_relative = 1e-9);
    }

    #[test]
    fn quantiles_are_numpys() {
        // numpy.quantile([3, 1, 4, 1, 5, 9, 2, 6], [0, 0.25, 0.5, 0.9, 1])
        let values = [3., 1., 4., 1., 5., 9., 2., 6.];
        for (share, expected) in [(0., 1.), (0.25, 1.75), (0.5, 3.5), (0.9, 6.9), (1., 9.)] {
            assert_relative_eq!(quantile(&values, share).unwrap(), expected, max_relative = 1e-12);
        }
        assert_eq!(quantile(&[], 0.5).or(quantile(&[f64::NAN], 0.5)).or(quantile(&[1.], 1.5)), None);
    }

    #[test]
    fn geometric_mean_of_factors() {
        let interval = geometric_mean_interval(&[0.1, 10.], 0.95).unwrap();
        assert_relative_eq!(interval.mean, 1., max_relative = 1e-12);
        let (low, high) = interval.ends.unwrap();
        assert!(low > 0.);
        assert_relative_eq!(low * high, 1., max_relative = 1e-9);
        assert_eq!(
            geometric_mean_interval(&[0., 1.], 0.95).unwrap(),
            Interval { mean: 0., ends: None, count: 2 }
        );
    }

    #[test]
    fn one_value_has_no_interval_and_none_no_mean() {
        assert_eq!(mean_interval(&[3.], 0.95), Some(Interval { mean: 3., ends: None, count: 1 }));
        assert_eq!(mean_interval(&[], 0.95), None);
    }

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        let interval = mean_interval(&[1., f64::INFINITY], 0.95).unwrap();
        assert_eq!((interval.mean, interval.ends), (f64::INFINITY, None));
        assert!(mean_interval(&[1., f64::NAN, 2.], 0.95).unwrap().mean.is_nan());
    }

    #[test]
    fn equal_values_give_exactly_their_value() {
        let interval = mean_interval(&[0.1; 3], 0.95).unwrap();
        assert_eq!(interval, Interval { mean: 0.1, ends: Some((0.1, 0.1)), count: 3 });
    }

    #[test]
    fn a_level_that_is_none_gives_no_interval() {
        for level in [0., 1., -0.5, 95., f64::NAN] {
            assert_eq!(mean_interval(&[1., 2.], level).unwrap().ends, None);
            assert_eq!(mean_interval(&[1., 1.], level).unwrap().ends, None);
            assert_eq!(share_interval(1, 2, level), None);
            assert_eq!(median_interval(&[1.; 10], level), None);
            assert_eq!(bootstrap_interval(&[1.; 10], |_| 0., level, 10, 0), None);
        }
    }

    #[test]
    fn shares_agree_with_scipy() {
        // scipy.stats.binomtest(k, n).proportion_ci(level, "exact")
        for (successes, trials, level, low, high) in [
            (0, 10, 0.95, 0., 0.308_497_107_818_762_6),
            (10, 10, 0.95, 0.691_502_892_181_237_1, 1.),
            (7, 10, 0.95, 0.347_547_149_939_992_1, 0.933_260_488_822_265_5),
            (3, 20, 0.95, 0.032_070_937_185_544_77, 0.378_926_826_545_295_64),
            (1, 2, 0.95, 0.012_579_117_093_678_99, 0.987_420_882_906_321),
            (3, 20, 0.99, 0.017_642_637_954_110_2, 0.449_465_406_739_486),
        ] {
            let found = share_interval(successes, trials, level).unwrap();
            assert_relative_eq!(found.0, low, max_relative = 1e-9);
            assert_relative_eq!(found.1, high, max_relative = 1e-9);
        }
        assert_eq!(share_interval(0, 0, 0.95), None);
        assert_eq!(share_interval(3, 2, 0.95), None);
    }

    #[test]
    fn shares_cover_at_least_the_level() {
        for trials in [5, 10, 30] {
            for share in [0.1, 0.5, 0.83] {
                let hits = Binomial::new(share, trials).unwrap();
                let covers = |&successes: &u64| {
                    let (low, high) = share_interval(successes as usize, trials as usize, 0.95).unwrap();
                    low <= share && share <= high
                };
                let covered: f64 = (0..=trials).filter(covers).map(|successes| hits.pmf(successes)).sum();
                assert!(covered >= 0.95, "{covered} for {share} of {trials}");
            }
        }
    }

    #[test]
    fn medians_take_the_order_statistics_of_the_binomial() {
        // The largest j with scipy.stats.binom.cdf(j - 1, n, 0.5) <= 0.025; the values are their own ranks.
        let rank = [(6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (25, 8), (50, 18), (100, 40)];
        for (count, expected) in rank {
            let values: Vec<f64> = (1..=count).rev().map(f64::from).collect();
            let (low, high) = median_interval(&values, 0.95).unwrap();
            assert_eq!((low, high), (f64::from(expected), f64::from(count + 1 - expected)));
            assert_relative_eq!(median(&values).unwrap(), f64::from(count + 1) / 2.);
        }
        for count in 0..6 {
            assert_eq!(median_interval(&vec![1.; count], 0.95), None);
        }
        // scipy.stats.quantile_test(v, q=1, p=0.5).confidence_interval(0.95)
        let values = [1.2, 0.7, 1.9, 1.1, 1.4, 2.2, 0.3, 1.0, 1.6, 0.9];
        assert_eq!(median_interval(&values, 0.95), Some((0.7, 1.9)));
        assert_eq!(median_interval(&[f64::NAN; 10], 0.95), None);
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3., 1., f64::INFINITY]), Some(3.));
    }

    #[test]
    fn medians_cover_for_a_skewed_distribution() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let truth = 2_f64.ln();
        let covered = (0..4000)
            .filter(|_| {
                let values: Vec<f64> = (0..9).map(|_| Exp1.sample(&mut random)).collect();
                let (low, high) = median_interval(&values, 0.95).unwrap();
                low <= truth && truth <= high
            })
            .count();
        // The exact coverage at n = 9 is 0.9609; 4000 trials scatter by 0.003.
        assert_relative_eq!(covered as f64 / 4000., 0.9609, epsilon = 0.01);
    }

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    #[test]
    fn the_bootstrap_covers_a_known_mean() {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        let covered = (0..1000)
            .filter(|&trial| {
                let values: Vec<f64> = (0..40).map(|_| StandardNormal.sample(&mut random)).collect();
                let (low, high) = bootstrap_interval(&values, mean, 0.95, 400, trial).unwrap();
                low <= 0. && 0. <= high
            })
            .count();
        // Without bias correction it covers about P(|t| < 1.96 √(39/40)) = 0.94 here; 1000 trials scatter by 0.0075.
        assert_relative_eq!(covered as f64 / 1000., 0.94, epsilon = 0.025);
    }

    #[test]
    fn the_bootstrap_of_a_mean_comes_near_the_normal_interval() {
        let values: Vec<f64> = (0..100).map(|k| f64::from(k) / 100.).collect();
        let (low, high) = bootstrap_interval(&values, mean, 0.95, 20_000, 3).unwrap();
        let deviation = (values.iter().map(|v| (v - mean(&values)).powi(2)).sum::<f64>() / 100.).sqrt() / 10.;
        assert_relative_eq!(low, 0.495 - 1.96 * deviation, epsilon = 0.003);
        assert_relative_eq!(high, 0.495 + 1.96 * deviation, epsilon = 0.003);
        assert_eq!(bootstrap_interval(&values, mean, 0.95, 20_000, 3), Some((low, high)));
        assert_ne!(bootstrap_interval(&values, mean, 0.95, 20_000, 4), Some((low, high)));
    }

    #[test]
    fn a_bootstrap_that_says_nothing_is_none() {
        assert_eq!(bootstrap_interval(&[1.], mean, 0.95, 100, 0), None);
        assert_eq!(bootstrap_interval(&[1., 2.], mean, 0.95, 0, 0), None);
        assert_eq!(bootstrap_interval(&[1., f64::NAN], mean, 0.95, 100, 0), None);
        assert_eq!(bootstrap_interval(&[2., 2.], mean, 0.95, 100, 0), Some((2., 2.)));
        assert_eq!(
            bootstrap_interval(&[1., 2.], |_| f64::INFINITY, 0.95, 9, 0),
            Some((f64::INFINITY, f64::INFINITY))
        );
    }
}
