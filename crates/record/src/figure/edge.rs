//! Values that cannot be drawn: a sign at the panel's edge for each place, and a count below the panel.

use super::axis::{Misfit, Span};
use super::clip::Frame;
use super::describe::{AxisSide, Panel};
use super::scene::{Ink, Place, Scene};

/// Half the size of a sign.
const HALF: f64 = 3.4;

/// Closest that two signs of one series stand.
const APART: f64 = 7.5;

/// A value of a series without a place on its axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Missing {
    pub(super) series: usize,
    /// The place along the horizontal axis, if at least that is known.
    pub(super) x: Option<f64>,
    pub(super) why: Misfit,
    /// At the upper edge, else at the lower one.
    pub(super) top: bool,
}

/// All values of a panel that cannot be drawn.
pub(super) fn missing(panel: &Panel, x: &Span, y: &Span, y2: Option<&Span>) -> Vec<Missing> {
    let mut missing = Vec::new();
    for (series, data) in panel.series.iter().enumerate() {
        let span = if data.side == AxisSide::Right { y2.unwrap_or(y) } else { y };
        for &(at, value) in &data.points {
            // A place beside the plot is the choice of whoever set the range; it is counted as above or below it.
            let why_x = x.misfit(at);
            let Some(why) = why_x.or_else(|| span.misfit(value)) else {
                continue;
            };
            let top = match why {
                Misfit::NotFinite => value != f64::NEG_INFINITY,
                Misfit::Above => true,
                Misfit::NotPositive | Misfit::Below => false,
            };
            missing.push(Missing { series, x: why_x.is_none().then_some(at), why, top });
        }
    }
    missing
}

/// The sentences below a panel: what the signs mean and how many values they stand for.
pub(super) fn notes(missing: &[Missing]) -> Vec<String> {
    let count =
        |why, placed: bool| missing.iter().filter(|m| m.why == why && m.x.is_some() == placed).count();
    let mut notes = Vec::new();
    let mut note = |text: &str, count: usize| {
        if count > 0 {
            notes.push(format!("{text}: {count} {}", if count == 1 { "value" } else { "values" }));
        }
    };
    note("× not finite", count(Misfit::NotFinite, true));
    note("▲ above the axis", count(Misfit::Above, true));
    note("▼ below the axis", count(Misfit::Below, true));
    note("◇ not above 0, so not on a log axis", count(Misfit::NotPositive, true));
    note("at no finite x", count(Misfit::NotFinite, false));
    note("at an x not above 0", count(Misfit::NotPositive, false));
    note("beside the x axis", count(Misfit::Above, false) + count(Misfit::Below, false));
    notes
}

/// Draws the signs: each series in a row of its own, so that none hides another.
pub(super) fn draw(scene: &mut Scene, panel: &Panel, missing: &[Missing], x: &Span, frame: Frame) {
    for top in [true, false] {
        let here = |m: &&Missing| m.top == top && m.x.is_some();
        let mut rows: Vec<usize> = missing.iter().filter(here).map(|m| m.series).collect();
        rows.dedup();
        for (row, &series) in rows.iter().enumerate() {
            let away = 6.0 + 9.0 * row as f64;
            let height = if top { frame.top + away } else { frame.bottom - away };
            let ink = Ink::solid(panel.series[series].style.colour.rgb());
            let mut last: Option<(f64, Misfit)> = None;
            for m in missing.iter().filter(here).filter(|m| m.series == series) {
                let Some(fraction) = m.x.and_then(|at| x.fraction(at)) else {
                    continue;
                };
                let across = frame.left + fraction * frame.width();
                if last.is_some_and(|(at, why)| why == m.why && (across - at).abs() < APART) {
                    continue;
                }
                sign(scene, m.why, (across, height), ink);
                last = Some((across, m.why));
            }
        }
    }
}

fn sign(scene: &mut Scene, why: Misfit, (x, y): Place, ink: Ink) {
    match why {
        Misfit::NotFinite => {
            scene.line(vec![(x - HALF, y - HALF), (x + HALF, y + HALF)], 1.5, ink);
            scene.line(vec![(x - HALF, y + HALF), (x + HALF, y - HALF)], 1.5, ink);
        }
        Misfit::Above => {
            scene.area(vec![(x, y - HALF), (x + HALF, y + HALF), (x - HALF, y + HALF)], ink);
        }
        Misfit::Below => {
            scene.area(vec![(x, y + HALF), (x + HALF, y - HALF), (x - HALF, y - HALF)], ink);
        }
        Misfit::NotPositive => {
            let corners = [(x, y - HALF), (x + HALF, y), (x, y + HALF), (x - HALF, y), (x, y - HALF)];
            scene.line(corners.to_vec(), 1.2, ink);
        }
    }
}
