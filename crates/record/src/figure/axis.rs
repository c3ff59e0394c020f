//! From values to an axis: its range, where a value lies on it, its ticks and their labels.

use super::describe::{Axis, Scale};
use crate::{RecordError, Result};

/// An axis whose range is settled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    pub(super) scale: Scale,
    pub(super) low: f64,
    pub(super) high: f64,
    /// No value and no wish told the range: it is a placeholder and gets no ticks.
    pub(super) empty: bool,
    /// See [`Axis::whole`].
    pub(super) whole: bool,
}

/// Why a value has no place on an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Misfit {
    /// Not-a-number or an infinity.
    NotFinite,
    /// Zero or negative on a log axis.
    NotPositive,
    /// Above the range shown.
    Above,
    /// Below the range shown.
    Below,
}

impl Span {
    /// The range asked for, or one that holds all `values` that can be shown, with a margin if `padded`.
    pub(super) fn of(axis: &Axis, values: impl Iterator<Item = f64>, padded: bool) -> Result<Self> {
        if !axis.categories.is_empty() {
            let high = axis.categories.len() as f64 - 0.5;
            return Ok(Self { scale: Scale::Linear, low: -0.5, high, empty: false, whole: false });
        }
        let scale = axis.scale;
        let log = scale == Scale::Log10;
        if let Some((low, high)) = axis.range {
            if !(low.is_finite() && high.is_finite() && low < high && (!log || low > 0.0)) {
                return Err(RecordError::AxisRange { axis: axis.label.clone(), low, high });
            }
            return Ok(Self { scale, low, high, empty: false, whole: axis.whole });
        }
        let (low, high) = values
            .filter(|v| v.is_finite() && (!log || *v > 0.0))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            let (low, high) = if log { (1.0, 10.0) } else { (0.0, 1.0) };
            return Ok(Self { scale, low, high, empty: true, whole: axis.whole });
        }
        let margin = if padded { 0.04 } else { 0.0 };
        let (low, high) = if log {
            let (low, high) = (low.log10(), high.log10());
            let pad = if high - low < 1e-9 { 0.3 } else { margin * (high - low) };
            // The smallest positive numbers have no smaller neighbour to be padded with.
            (10_f64.powf((low - pad).max(-307.0)), 10_f64.powf((high + pad).min(307.0)))
        } else {
            let (low, high) = (low.max(-1e300), high.min(1e300));
            let size = low.abs().max(high.abs());
            let flat = high - low <= 1e-12 * size;
            let pad = if !flat {
                margin * (high - low)
            } else if size == 0.0 {
                1.0
            } else {
                0.1 * size
            };
            (low - pad, high + pad)
        };
        Ok(Self { scale, low, high, empty: false, whole: axis.whole })
    }

    /// Where `value` lies, 0 at the low end and 1 at the high end; `None` if it is nowhere on such an axis.
    pub(super) fn fraction(&self, value: f64) -> Option<f64> {
        let fraction = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log10 if value > 0.0 => (value / self.low).log10() / (self.high / self.low).log10(),
            Scale::Log10 => return None,
        };
        // Far outside, only the direction matters.
        value.is_finite().then(|| fraction.clamp(-1e4, 1e4))
    }

    /// Why `value` is not to be seen, if it is not.
    pub(super) fn misfit(&self, value: f64) -> Option<Misfit> {
        if !value.is_finite() {
            return Some(Misfit::NotFinite);
        }
        match self.fraction(value) {
            None => Some(Misfit::NotPositive),
            Some(f) if f > 1.0 + 1e-9 => Some(Misfit::Above),
            Some(f) if f < -1e-9 => Some(Misfit::Below),
            Some(_) => None,
        }
    }

    /// Round values within the range: at most about `most` of them with labels.
    pub(super) fn ticks(&self, most: usize) -> Ticks {
        if self.empty {
            return Ticks::default();
        }
        match self.scale {
            Scale::Linear => self.linear_ticks(most),
            Scale::Log10 => self.log_ticks(most),
        }
    }

    /// As many ticks as fit side by side over `length`, given the width of a label.
    pub(super) fn ticks_over(&self, length: f64, width: impl Fn(&str) -> f64) -> Ticks {
        let gap = 14.0;
        let mut most = ((length / 60.0) as usize).clamp(2, 12);
        loop {
            let ticks = self.ticks(most);
            let place = |value: f64| self.fraction(value).unwrap_or(0.0) * length;
            let apart = ticks.labelled.windows(2).all(|pair| {
                let half = f64::midpoint(width(&pair[0].1), width(&pair[1].1));
                place(pair[1].0) - place(pair[0].0) >= half + gap
            });
            if apart || most <= 2 {
                return ticks;
            }
            most -= 1;
        }
    }

    fn linear_ticks(&self, most: usize) -> Ticks {
        let most = most.max(2) as f64;
        let finest = if self.whole { 1.0 } else { 0.0 };
        let raw = ((self.high - self.low) / most).max(finest);
        let power = 10_f64.powf(raw.log10().floor());
        let at = |step: f64| -> Vec<f64> {
            let slack = 1e-6;
            let first = (self.low / step - slack).ceil();
            let last = (self.high / step + slack).floor();
            (0..50).map(|i| first + f64::from(i)).take_while(|&k| k <= last).map(|k| k * step).collect()
        };
        let steps = [10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1].map(|m| m * power);
        let coarse = steps.iter().rposition(|&step| step >= raw * 0.999).unwrap_or(0);
        // One number alone is no scale: then rather more of them than asked for.
        let mut finer = steps[coarse..].iter().copied().take_while(|&step| step >= finest);
        let step = finer.find(|&step| at(step).len() >= 2).unwrap_or(steps[coarse]);
        let values = at(step);
        let labelled = values.iter().map(|&v| (v, linear_label(v, step, &values))).collect();
        Ticks { labelled, minor: Vec::new() }
    }

    fn log_ticks(&self, most: usize) -> Ticks {
        let (low, high) = (self.low.log10(), self.high.log10());
        if high - low < 0.5 {
            return self.linear_ticks(most);
        }
        let decades: Vec<i32> = ((low - 1e-9).ceil() as i32..=(high + 1e-9).floor() as i32).collect();
        let around = (low.floor() as i32)..=(high.floor() as i32);
        let within = |v: &f64| (self.low * (1.0 - 1e-9)..=self.high * (1.0 + 1e-9)).contains(v);
        let multiples = |factors: &'static [f64]| {
            around
                .clone()
                .flat_map(move |k| factors.iter().map(move |m| m * 10_f64.powi(k)))
                .filter(within)
                .collect::<Vec<f64>>()
        };
        if high - low < 1.3 || decades.len() < 2 {
            let labelled = multiples(&[1.0, 2.0, 5.0]);
            if labelled.len() <= most.max(3) {
                let labelled = labelled.into_iter().map(|v| (v, log_label(v))).collect();
                return Ticks { labelled, minor: multiples(&[3.0, 4.0, 6.0, 7.0, 8.0, 9.0]) };
            }
        }
        let stride = decades.len().div_ceil(most.max(2)) as i32;
        let plain = high - low <= 6.0 && decades.iter().all(|k| (-4..=4).contains(k));
        let labelled = decades
            .iter()
            .filter(|&&k| k.rem_euclid(stride) == 0)
            .map(|&k| (10_f64.powi(k), if plain { log_label(10_f64.powi(k)) } else { power_of_ten(k) }))
            .collect();
        let minor = if stride > 1 {
            decades.iter().filter(|&&k| k.rem_euclid(stride) != 0).map(|&k| 10_f64.powi(k)).collect()
        } else {
            multiples(&[2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
        };
        Ticks { labelled, minor }
    }
}

/// The ticks of an axis.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Ticks {
    /// Value and label, lowest first.
    pub(super) labelled: Vec<(f64, String)>,
    /// Values with a faint line only.
    pub(super) minor: Vec<f64>,
}

impl Ticks {
    /// The names of an axis of categories, each at its place.
    pub(super) fn of_categories(names: &[String]) -> Self {
        let labelled = names.iter().enumerate().map(|(i, name)| (i as f64, name.clone())).collect();
        Self { labelled, minor: Vec::new() }
    }
}

fn linear_label(value: f64, step: f64, all: &[f64]) -> String {
    let largest = all.iter().fold(0.0_f64, |largest, v| largest.max(v.abs()));
    // Multiples of a step are not exact; labels are rounded, and zero must not become −0.
    if value.abs() < 1e-6 * step {
        return "0".into();
    }
    let digits_of_step = step.log10().floor() as i32;
    let exponent = largest.log10().floor() as i32;
    // A small change of a large number is easier to see in its plain digits.
    let needs_power = largest >= 1e6 && (exponent - digits_of_step <= 3 || largest >= 1e10);
    if needs_power || step < 1e-5 {
        let decimals = (exponent - digits_of_step).clamp(0, 12) as usize;
        let mantissa = value / 10_f64.powi(exponent);
        return with_minus(&format!("{mantissa:.decimals$}×{}", power_of_ten(exponent)));
    }
    let decimals = (-digits_of_step).max(0) as usize;
    with_minus(&format!("{value:.decimals$}"))
}

fn log_label(value: f64) -> String {
    let exponent = (value.log10() + 1e-9).floor() as i32;
    if (-4..6).contains(&exponent) {
        let decimals = (-exponent).max(0) as usize;
        return format!("{value:.decimals$}");
    }
    let mantissa = (value / 10_f64.powi(exponent)).round();
    format!("{mantissa}×{}", power_of_ten(exponent))
}

fn power_of_ten(exponent: i32) -> String {
    let digit = |c: char| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        // The other superscripts lie side by side in Unicode.
        _ => c.to_digit(10).and_then(|d| char::from_u32(0x2070 + d)).unwrap_or(c),
    };
    format!("10{}", exponent.to_string().chars().map(digit).collect::<String>())
}

fn with_minus(number: &str) -> String {
    number.replacen('-', "−", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(scale: Scale, low: f64, high: f64) -> Span {
        Span { scale, low, high, empty: false, whole: false }
    }

    fn labels(span: Span, most: usize) -> Vec<String> {
        span.ticks(most).labelled.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn linear_ticks_are_round() {
        assert_eq!(labels(span(Scale::Linear, -2.0, 2.0), 5), ["−2", "−1", "0", "1", "2"]);
        assert_eq!(labels(span(Scale::Linear, 0.0, 100.0), 6), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(labels(span(Scale::Linear, 0.0, 0.31), 4), ["0", "0.1", "0.2", "0.3"]);
        assert_eq!(labels(span(Scale::Linear, 0.0, 3e6), 3), ["0", "1×10⁶", "2×10⁶", "3×10⁶"]);
        assert_eq!(labels(span(Scale::Linear, 0.0105, 0.0195), 2), ["0.012", "0.014", "0.016", "0.018"]);
    }

    #[test]
    fn what_is_counted_has_no_halves() {
        let epochs = |high| Span { whole: true, ..span(Scale::Linear, 1.0, high) };
        assert_eq!(labels(span(Scale::Linear, 1.0, 3.0), 5), ["1.0", "1.5", "2.0", "2.5", "3.0"]);
        assert_eq!(labels(epochs(3.0), 5), ["1", "2", "3"]);
        assert_eq!(labels(epochs(1.2), 5), ["1"]);
        assert_eq!(labels(epochs(30.0), 6), ["5", "10", "15", "20", "25", "30"]);
    }

    #[test]
    fn log_ticks_are_decades_or_one_two_five() {
        assert_eq!(labels(span(Scale::Log10, 0.01, 100.0), 6), ["0.01", "0.1", "1", "10", "100"]);
        assert_eq!(labels(span(Scale::Log10, 1e-3, 1e6), 5), ["10⁻²", "10⁰", "10²", "10⁴", "10⁶"]);
        assert_eq!(labels(span(Scale::Log10, 0.8, 12.0), 6), ["1", "2", "5", "10"]);
        assert_eq!(labels(span(Scale::Log10, 2.0, 4.0), 3), ["2", "3", "4"]);
        assert!(labels(span(Scale::Log10, 1e-300, 1e300), 6).len() <= 6);
    }

    #[test]
    fn a_range_holds_the_finite_values_only() {
        let values = [f64::NAN, 0.0, -1.0, 0.1, 1000.0, f64::INFINITY];
        let log = Span::of(&Axis::log10("loss"), values.into_iter(), false).unwrap();
        assert!((log.low - 0.1).abs() < 1e-12 && (log.high - 1000.0).abs() < 1e-9);
        let linear = Span::of(&Axis::linear("loss"), values.into_iter(), false).unwrap();
        assert_eq!((linear.low, linear.high), (-1.0, 1000.0));
        assert!(Span::of(&Axis::log10("loss"), [f64::NAN].into_iter(), true).unwrap().empty);
        for flat in [0.0, 5.0, -1e-9] {
            let span = Span::of(&Axis::linear("loss"), [flat].into_iter(), true).unwrap();
            assert!(span.low < flat && flat < span.high);
        }
        let extreme = Span::of(&Axis::linear("loss"), [f64::MIN, f64::MAX].into_iter(), true).unwrap();
        assert!((extreme.high - extreme.low).is_finite());
    }

    #[test]
    fn an_impossible_range_is_an_error() {
        for axis in [
            Axis::log10("loss").with_range(0.0, 1.0),
            Axis::linear("loss").with_range(1.0, 1.0),
            Axis::linear("loss").with_range(0.0, f64::NAN),
        ] {
            let error = Span::of(&axis, std::iter::empty(), false).unwrap_err();
            assert!(matches!(error, RecordError::AxisRange { .. }), "{error}");
        }
    }

    #[test]
    fn every_value_without_a_place_has_a_reason() {
        let log = span(Scale::Log10, 0.1, 10.0);
        assert_eq!(log.misfit(f64::INFINITY), Some(Misfit::NotFinite));
        assert_eq!(log.misfit(f64::NAN), Some(Misfit::NotFinite));
        assert_eq!(log.misfit(0.0), Some(Misfit::NotPositive));
        assert_eq!(log.misfit(1e20), Some(Misfit::Above));
        assert_eq!(log.misfit(0.01), Some(Misfit::Below));
        assert_eq!(log.misfit(10.0), None);
        assert_eq!(log.fraction(1.0), Some(0.5));
    }
}
