//! Intervals of a mean over independent seeds.

use statrs::distribution::{ContinuousCDF, StudentsT};

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
/// `level` lies in (0, 1), for instance 0.95. NaN and infinities carry over into the mean, and leave no interval. Returns
/// `None` for no values at all.
pub fn mean_interval(values: &[f64], level: f64) -> Option<Interval> {
    let count = values.len();
    if count == 0 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / count as f64;
    let freedom = count as f64 - 1.;
    let ends = StudentsT::new(0., 1., freedom).ok().and_then(|t| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

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
}
