//! Training curves of classifiers, the same for every experiment that trains some.

use crate::summary::series;
use crate::trial::EpochRow;
use anyhow::Result;
use flatland_network::Evaluation;
use flatland_record::{Axis, Cell, Colour, Panel, Series, Table, cells};
use flatland_statistics::{LEVEL, geometric_mean_interval, mean_interval};

/// Models that differ in their seed alone.
#[derive(Debug)]
pub struct Group<'a> {
    /// Their name in the legend.
    pub name: String,
    /// Their colour.
    pub colour: Colour,
    /// A curve a seed; they may end at different epochs.
    pub curves: Vec<&'a [EpochRow]>,
}

/// A table with `keys` in front of `epoch`, `split`, `loss_nats`, `accuracy`: one row an epoch and split. Each curve comes
/// with the cells of its keys.
pub fn curve_table<'a>(
    keys: &[&str],
    curves: impl IntoIterator<Item = (Vec<Cell>, &'a [EpochRow])>,
) -> Result<Table> {
    let mut table = Table::new(&[keys, &["epoch", "split", "loss_nats", "accuracy"]].concat());
    for (key, curve) in curves {
        for row in curve {
            for (split, value) in [("train", row.train), ("test", row.test)] {
                let values = cells![row.epoch, split, value.loss, value.accuracy];
                table.row(key.iter().cloned().chain(values))?;
            }
        }
    }
    Ok(table)
}

/// A split's name, and how to take its value from a row.
#[allow(clippy::type_complexity)] // A name for the pair would say no more.
pub const CURVES: [(&str, fn(&EpochRow) -> Evaluation); 2] =
    [("train", |row| row.train), ("test", |row| row.test)];

/// Two panels: the loss, and the classification error, both on log axes over epochs; training solid, test dashed. Loss varies
/// by factors, so its mean over seeds is geometric.
///
/// At an epoch, only the seeds that reach it count.
pub fn curve_panels(groups: &[Group]) -> Vec<Panel> {
    let mut loss = Panel::new("loss", Axis::whole("epoch"), Axis::log10("cross-entropy (nats)"));
    // Accuracies crowd below 100 %; what is left to it spreads out on a log axis.
    let mut error = Panel::new("classification error", Axis::whole("epoch"), Axis::log10("error (%)"));
    for group in groups {
        let epochs = group.curves.iter().map(|curve| curve.len()).max().unwrap_or(0);
        for (split, of) in CURVES {
            let name = format!("{}, {split}", group.name);
            let dash = |series: Series| if split == "test" { series.dashed() } else { series };
            let at = |epoch: usize| {
                group.curves.iter().filter_map(move |curve| curve.get(epoch)).map(of).collect::<Vec<_>>()
            };
            let losses = (0..epochs).filter_map(|epoch| {
                let values: Vec<f64> = at(epoch).iter().map(|value| value.loss).collect();
                Some((epoch as f64 + 1., geometric_mean_interval(&values, LEVEL)?))
            });
            loss = loss.with(dash(series(&name, group.colour, 1., losses)));
            let errors = (0..epochs).filter_map(|epoch| {
                let accuracies = at(epoch).into_iter().filter_map(|value| value.accuracy);
                let values: Vec<f64> = accuracies.map(|accuracy| 1. - accuracy).collect();
                Some((epoch as f64 + 1., mean_interval(&values, LEVEL)?))
            });
            error = error.with(dash(series(&name, group.colour, 100., errors)));
        }
    }
    vec![loss, error]
}
