//! Kendall's rank correlation: whether the larger of two values goes with the larger of two others, pair by pair.
//!
//! For models ranked by a measure and by how well they generalise (Jiang et al. 2020, "Fantastic generalization measures and where to
//! find them", section 3).

use crate::interval::is_level;
use crate::{Interval, quantile};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Kendall's τ-b of pairs `(x[i], y[i])`, -1 to 1 (Kendall, *Biometrika* 33, 1945):
///
/// `τ = Σ_{i<j} sign(x_i - x_j) sign(y_i - y_j) / √(n_x n_y)`
///
/// with `n_x` how many of the pairs of indices differ in x, `n_y` in y. Without ties it is the share of concordant pairs less the share
/// of discordant ones. Infinities are values like others. O(n²).
///
/// `None` for slices of different lengths, fewer than 2 values, a NaN, or where one of the quantities is the same throughout.
#[must_use]
pub fn kendall(x: &[f64], y: &[f64]) -> Option<f64> {
    Pairs::of(x, y)?.tau(&vec![1; x.len()])
}

/// [`kendall`] with its percentile bootstrap interval (Efron, *Annals of Statistics* 7, 1979), as [`Interval::mean`] and
/// [`Interval::ends`]: the middle `level` of τ over samples of models drawn with replacement. [`Interval::count`] is the number of models.
///
/// With `clusters`, one number a model, all models of a number are drawn together (Davison and Hinkley 1997, *Bootstrap methods and their
/// application*, section 3.8): models that differ in their seed only say little more than one of them.
///
/// Copies of one model tie in both quantities and so add nothing. A sample in which one quantity is the same throughout has no τ and is
/// left out. Where τ is 1 it is 1 in every sample, and the interval has no width. It covers less than `level` where models are few.
/// Equal `seed` and arguments give equal ends; there are none for a level outside (0, 1), without resamples, for a single cluster, or
/// where no sample has a τ. `None` as for [`kendall`], and for clusters that are not as many as the models.
#[must_use]
pub fn kendall_interval(
    x: &[f64],
    y: &[f64],
    clusters: Option<&[u64]>,
    level: f64,
    resamples: usize,
    seed: u64,
) -> Option<Interval> {
    let pairs = Pairs::of(x, y)?;
    let count = x.len();
    let mean = pairs.tau(&vec![1; count])?;
    let clusters = clusters.map_or_else(|| (0..count as u64).collect(), <[u64]>::to_vec);
    if clusters.len() != count {
        return None;
    }
    let mut members: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (model, cluster) in clusters.into_iter().enumerate() {
        members.entry(cluster).or_default().push(model);
    }
    let members: Vec<Vec<usize>> = members.into_values().collect();
    if members.len() < 2 || !is_level(level) {
        return Some(Interval { mean, ends: None, count });
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let found: Vec<f64> = (0..resamples)
        .filter_map(|_| {
            let mut copies = vec![0; count];
            for _ in 0..members.len() {
                // u64, since a usize is drawn otherwise on machines of 32 bits.
                for &model in &members[random.gen_range(0..members.len() as u64) as usize] {
                    copies[model] += 1;
                }
            }
            pairs.tau(&copies)
        })
        .collect();
    let ends = quantile(&found, (1. - level) / 2.).zip(quantile(&found, 0.5 + level / 2.));
    Some(Interval { mean, ends, count })
}

/// The granulated Kendall coefficient of Jiang et al. 2020, section 3.
#[derive(Debug, Clone, PartialEq)]
pub struct Granulated {
    /// ψ_i of each hyperparameter; `None` where no two models differ in it alone.
    pub each: Vec<Option<f64>>,
    /// Ψ: the mean of those that there are.
    pub mean: f64,
}

/// ψ_i and Ψ of models with a measure x and a generalisation gap y (Jiang et al. 2020, section 3, equations 4 and 5).
///
/// `hyperparameters[k][i]` is which value hyperparameter i has for model k, `seeds[k]` its repetition. Models that agree in the seed and in
/// all hyperparameters but i form a group; the τ of a group is the mean of `sign(x_a - x_b) sign(y_a - y_b)` over its pairs (ties count 0,
/// as in the paper); ψ_i is the mean of τ over groups, Ψ the mean of ψ_i over hyperparameters. A measure that only follows one
/// hyperparameter, whatever this does to the gap, thus gains nothing from the others.
///
/// The grid may have holes: groups are what is there. `None` for lengths that do not agree, a NaN, or where no two models differ in one
/// hyperparameter alone.
#[must_use]
pub fn granulated_kendall(
    x: &[f64],
    y: &[f64],
    hyperparameters: &[Vec<usize>],
    seeds: &[u64],
) -> Option<Granulated> {
    let pairs = Pairs::of(x, y)?;
    let count = hyperparameters.first()?.len();
    if hyperparameters.len() != x.len()
        || seeds.len() != x.len()
        || hyperparameters.iter().any(|model| model.len() != count)
    {
        return None;
    }
    let each: Vec<Option<f64>> = (0..count)
        .map(|hyperparameter| {
            let mut groups: BTreeMap<(u64, Vec<usize>), Vec<usize>> = BTreeMap::new();
            for (model, values) in hyperparameters.iter().enumerate() {
                let mut others = values.clone();
                others.remove(hyperparameter);
                groups.entry((seeds[model], others)).or_default().push(model);
            }
            let taus = groups.values().filter_map(|models| {
                let (mut sum, mut number) = (0, 0);
                for (place, &a) in models.iter().enumerate() {
                    for &b in &models[..place] {
                        if hyperparameters[a][hyperparameter] != hyperparameters[b][hyperparameter] {
                            let (x, y) = pairs.signs(a, b);
                            sum += x * y;
                            number += 1;
                        }
                    }
                }
                (number > 0).then(|| sum as f64 / f64::from(number))
            });
            mean(&taus.collect::<Vec<_>>())
        })
        .collect();
    let mean = mean(&each.iter().flatten().copied().collect::<Vec<_>>())?;
    Some(Granulated { each, mean })
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Two quantities of as many models, without NaN.
struct Pairs<'a> {
    x: &'a [f64],
    y: &'a [f64],
}

impl<'a> Pairs<'a> {
    fn of(x: &'a [f64], y: &'a [f64]) -> Option<Self> {
        let strange = x.iter().chain(y).any(|value| value.is_nan());
        (x.len() == y.len() && !strange).then_some(Self { x, y })
    }

    /// Of x and of y: -1, 0 or 1.
    fn signs(&self, a: usize, b: usize) -> (i64, i64) {
        let sign = |values: &[f64]| match values[a].partial_cmp(&values[b]) {
            Some(Ordering::Less) => -1,
            Some(Ordering::Greater) => 1,
            _ => 0,
        };
        (sign(self.x), sign(self.y))
    }

    /// τ-b of a sample that holds each model so many times. Integers, so that no order of sums matters.
    fn tau(&self, copies: &[i64]) -> Option<f64> {
        let (mut concordance, mut differ_x, mut differ_y) = (0, 0, 0);
        for a in (0..copies.len()).filter(|&a| copies[a] > 0) {
            for b in 0..a {
                let (x, y) = self.signs(a, b);
                let number = copies[a] * copies[b];
                concordance += number * x * y;
                differ_x += number * x.abs();
                differ_y += number * y.abs();
            }
        }
        let all = (differ_x as f64 * differ_y as f64).sqrt();
        (all > 0.).then(|| (concordance as f64 / all).clamp(-1., 1.))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LEVEL;
    use approx::assert_relative_eq;
    use rand_distr::StandardNormal;

    #[test]
    fn agrees_with_scipy() {
        // scipy.stats.kendalltau(x, y).statistic; the first is the example of its documentation.
        let cases: [(&[f64], &[f64], f64); 6] = [
            (&[12., 2., 1., 12., 2.], &[1., 4., 7., 1., 0.], -0.471_404_520_791_031_6),
            (&[1., 2., 3., 4., 5.], &[5., 6., 7., 8., 7.], 0.737_864_787_372_621_8),
            (&[1., 2., 3., 4.], &[4., 3., 2., 1.], -1.),
            (&[1., 2., 2., 3., 3., 3., 5., 8.], &[2., 1., 4., 4., 3., 7., 7., 6.], 0.560_448_538_317_805_1),
            (&[0.3, -1.2, 2.5, 2.5, 0., 7.1, -3.3], &[1., 0., 1., 0., 1., 1., 0.], 0.451_848_057_057_532),
            (&[1., 2., 3., f64::INFINITY], &[2., 3., 3., 9.], 0.912_870_929_175_276_9),
        ];
        for (x, y, expected) in cases {
            assert_relative_eq!(kendall(x, y).unwrap(), expected, max_relative = 1e-12);
            assert_relative_eq!(kendall(y, x).unwrap(), expected, max_relative = 1e-12);
        }
    }

    /// τ of bivariate normal values is 2 asin(ρ) / π (Kendall and Gibbons 1990, *Rank correlation methods*, 10.5).
    #[test]
    fn normal_values_have_a_closed_form_and_the_interval_covers_it() {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut draw = |correlation: f64, count: usize| -> (Vec<f64>, Vec<f64>) {
            let one = |_| {
                let [a, b]: [f64; 2] = [random.sample(StandardNormal), random.sample(StandardNormal)];
                (a, correlation * a + (1. - correlation * correlation).sqrt() * b)
            };
            (0..count).map(one).unzip()
        };
        for correlation in [-0.9, 0., 0.5_f64] {
            let truth = 2. * correlation.asin() / std::f64::consts::PI;
            let (x, y) = draw(correlation, 2000);
            // Independent values scatter by √(4 / 9n) = 0.015.
            assert_relative_eq!(kendall(&x, &y).unwrap(), truth, epsilon = 0.045);
            let covered = (0..200).filter(|&trial| {
                let (x, y) = draw(correlation, 40);
                let (low, high) = kendall_interval(&x, &y, None, LEVEL, 200, trial).unwrap().ends.unwrap();
                low <= truth && truth <= high
            });
            // 200 trials scatter by 0.016, and percentiles cover a little less than they say.
            assert_relative_eq!(covered.count() as f64 / 200., 0.94, epsilon = 0.05);
        }
    }

    /// Four models of each setting that are all but the same: drawn one by one, they feign knowledge that there is not.
    #[test]
    fn clusters_are_drawn_whole() {
        let mut random = ChaCha8Rng::seed_from_u64(6);
        let settings: Vec<(f64, f64)> =
            (0..8).map(|_| (random.sample(StandardNormal), random.sample(StandardNormal))).collect();
        let (mut x, mut y, mut clusters) = (Vec::new(), Vec::new(), Vec::new());
        for (cluster, (a, b)) in settings.iter().enumerate() {
            for copy in 0..4 {
                x.push(a + 1e-6 * f64::from(copy));
                y.push(b + 1e-6 * f64::from(copy));
                clusters.push(cluster as u64 + 10);
            }
        }
        let width = |clusters: Option<&[u64]>| {
            let interval = kendall_interval(&x, &y, clusters, LEVEL, 500, 0).unwrap();
            assert_eq!((interval.mean, interval.count), (kendall(&x, &y).unwrap(), 32));
            let (low, high) = interval.ends.unwrap();
            high - low
        };
        assert!(width(Some(&clusters)) > 1.5 * width(None));
        // Each a cluster of its own: as without.
        let own: Vec<u64> = (0..32).collect();
        assert_relative_eq!(width(Some(&own)), width(None));
        let one = kendall_interval(&x, &y, Some(&[7; 32]), LEVEL, 500, 0).unwrap();
        assert_eq!(one.ends, None, "one cluster says nothing of others");
        assert_eq!(kendall_interval(&x, &y, Some(&own[1..]), LEVEL, 500, 0), None);
    }

    #[test]
    fn intervals_repeat_with_their_seed_only() {
        let x: Vec<f64> = (0..20).map(f64::from).collect();
        let y: Vec<f64> = x.iter().map(|x| (x * 1.7).sin() + 0.1 * x).collect();
        let of = |seed| kendall_interval(&x, &y, None, LEVEL, 300, seed).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1).ends, of(2).ends);
        let same = kendall_interval(&x, &x, None, LEVEL, 300, 0).unwrap();
        assert_eq!((same.mean, same.ends), (1., Some((1., 1.))));
        for (level, resamples) in [(LEVEL, 0), (0., 9), (1., 9), (f64::NAN, 9)] {
            let interval = kendall_interval(&x, &y, None, level, resamples, 0).unwrap();
            assert_eq!(interval.ends, None);
        }
    }

    #[test]
    fn what_has_no_order_has_no_correlation() {
        let cases: [(&[f64], &[f64]); 5] = [
            (&[], &[]),
            (&[1.], &[2.]),
            (&[1., 1.], &[2., 3.]),
            (&[1., 2.], &[f64::NAN, 1.]),
            (&[1., 2.], &[1.]),
        ];
        for (x, y) in cases {
            assert_eq!(kendall(x, y), None);
            assert_eq!(kendall_interval(x, y, None, LEVEL, 10, 0), None);
        }
        assert_eq!(kendall(&[0., -0.], &[1., 2.]), None, "0 and -0 are the same");
    }

    /// By hand. Two hyperparameters of 2 and 3 values; the measure is the first's value and nothing else.
    #[test]
    fn granulated_by_hand() {
        let grid: Vec<Vec<usize>> = (0..2).flat_map(|a| (0..3).map(move |b| vec![a, b])).collect();
        let x: Vec<f64> = grid.iter().map(|model| model[0] as f64).collect();
        // Rises with the first at b = 0 and 1, falls at b = 2.
        let y = [1., 2., 9., 3., 4., 5.];
        let found = granulated_kendall(&x, &y, &grid, &[0; 6]).unwrap();
        assert_eq!(found.each, [Some(1. / 3.), Some(0.)]);
        assert_relative_eq!(found.mean, 1. / 6.);

        // Along the second, the groups' own: (1, 2, 9) against (1, 3, 2) has 2 pairs of 3 concordant, (3, 4, 5) against (1, 2, 3) all.
        let x = [1., 3., 2., 1., 2., 3.];
        let found = granulated_kendall(&x, &y, &grid, &[0; 6]).unwrap();
        assert_relative_eq!(found.each[1].unwrap(), f64::midpoint(1. / 3., 1.));
        // Along the first: (1, 3) with (1, 1): 0; (2, 4) with (3, 2): -1; (9, 5) with (2, 3): -1.
        assert_relative_eq!(found.each[0].unwrap(), -2. / 3.);
    }

    #[test]
    fn granulated_compares_within_a_seed_and_leaves_holes_out() {
        // Two seeds of one hyperparameter: a measure that only tells seeds apart.
        let grid = vec![vec![0], vec![1], vec![0], vec![1]];
        let (x, y) = ([0., 0., 1., 1.], [0., 1., 5., 6.]);
        assert!(kendall(&x, &y).unwrap() > 0.8);
        assert_eq!(granulated_kendall(&x, &y, &grid, &[0, 0, 1, 1]).unwrap().each, [Some(0.)]);
        // A second hyperparameter that never varies has no ψ, and no say in Ψ.
        let held: Vec<Vec<usize>> = grid.iter().map(|model| vec![model[0], 7]).collect();
        let found = granulated_kendall(&y, &y, &held, &[0, 0, 1, 1]).unwrap();
        assert_eq!((found.each, found.mean), (vec![Some(1.), None], 1.));
        // A hole: the seed that has one model only says nothing.
        let found = granulated_kendall(&[2., 1., 3.], &[1., 2., 3.], &grid[..3], &[0, 0, 1]).unwrap();
        assert_eq!(found.each, [Some(-1.)]);
        for (x, seeds) in [(&[1., 2.][..], &[0, 1][..]), (&[1., 2.], &[0]), (&[1., f64::NAN], &[0, 0])] {
            assert_eq!(granulated_kendall(x, &[1., 2.], &grid[..2], seeds), None);
        }
        assert_eq!(granulated_kendall(&[], &[], &[], &[]), None);
    }
}
