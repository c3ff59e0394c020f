//! Values over seeds, for tables and figures: means with intervals.

use crate::experiment::Experiment;
use crate::run::Run;
use flatland_network::Loss;
pub use flatland_record::short;
use flatland_record::{Colour, Series};
use flatland_statistics::{Interval, LEVEL, mean_interval, quantile};

/// `0.0123 [0.0110, 0.0137]`, the interval where there is one.
pub fn number(interval: Interval, scale: f64, decimals: usize, unit: &str) -> String {
    let mean = scale * interval.mean;
    match interval.ends {
        Some((low, high)) => {
            format!("{mean:.decimals$}{unit} [{:.decimals$}, {:.decimals$}]", scale * low, scale * high)
        }
        None => format!("{mean:.decimals$}{unit}"),
    }
}

/// The mean of some values, as [`number`] writes it; empty for none.
pub fn mean_number(values: &[f64], scale: f64, decimals: usize, unit: &str) -> String {
    mean_interval(values, LEVEL).map_or_else(String::new, |interval| number(interval, scale, decimals, unit))
}

/// A loss's unit, as an axis, and as a column.
pub fn loss_words(loss: Loss) -> [&'static str; 3] {
    match loss {
        Loss::CrossEntropy => ["nats", "loss (nats)", "loss_nats"],
        Loss::MeanSquaredError => ["squared units", "mean squared error", "mean_squared_error"],
    }
}

/// `28,938`.
pub fn thousands(number: i64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A series of means over x, with the intervals as its band.
pub fn series(
    name: impl Into<String>,
    colour: Colour,
    scale: f64,
    values: impl IntoIterator<Item = (f64, Interval)>,
) -> Series {
    let values: Vec<(f64, Interval)> = values.into_iter().collect();
    let line = values.iter().map(|(x, interval)| (*x, scale * interval.mean)).collect();
    let ends = whiskers(scale, &values);
    let series = Series::line(name, colour, line);
    if ends.is_empty() { series } else { series.with_band(ends) }
}

/// Points of means, with the intervals as whiskers.
pub fn points(
    name: impl Into<String>,
    colour: Colour,
    scale: f64,
    values: impl IntoIterator<Item = (f64, Interval)>,
) -> Series {
    let values: Vec<(f64, Interval)> = values.into_iter().collect();
    let means = values.iter().map(|(x, interval)| (*x, scale * interval.mean)).collect();
    let ends = values.iter().map(|(_, interval)| interval.ends.unwrap_or((f64::NAN, f64::NAN)));
    let ends = ends.map(|(low, high)| (scale * low, scale * high)).collect();
    Series::scatter(name, colour, means).with_whiskers(ends)
}

/// A series of medians over x, with the quartiles as its band: for values that a mean would not describe.
pub fn quartiles(
    name: impl Into<String>,
    colour: Colour,
    values: impl IntoIterator<Item = (f64, Vec<f64>)>,
) -> Series {
    let of = |share: f64, values: &[f64]| quantile(values, share).unwrap_or(f64::NAN);
    let (line, band) = values
        .into_iter()
        .map(|(x, values)| ((x, of(0.5, &values)), (x, of(0.25, &values), of(0.75, &values))))
        .unzip();
    Series::line(name, colour, line).with_band(band)
}

/// `(x, low, high)` of each interval that there is.
pub fn whiskers(scale: f64, values: &[(f64, Interval)]) -> Vec<(f64, f64, f64)> {
    let ends =
        |(x, interval): &(f64, Interval)| interval.ends.map(|(low, high)| (*x, scale * low, scale * high));
    values.iter().filter_map(ends).collect()
}

/// What every figure says below its title: the subject, the preset, the seeds, and what else there is to say.
pub fn subtitle<E: Experiment>(settings: &E::Settings, run: &Run, subject: &str, more: &str) -> String {
    let seeds = match E::seeds(settings).as_slice() {
        [one] => format!("seed {one}"),
        many => format!("{} seeds", many.len()),
    };
    let more = if more.is_empty() { String::new() } else { format!(" · {more}") };
    format!("{subject} · preset {} · {seeds}{more}", run.preset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_numbers_have_commas() {
        assert_eq!([1, 12, 123, 1234, 1_234_567].map(thousands), ["1", "12", "123", "1,234", "1,234,567"]);
    }
}
