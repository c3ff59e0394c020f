//! The legend: outside of the data, with samples that show colour, dashes, points and bands.

use super::describe::{Marker, Panel, SeriesShape, Style};
use super::font;
use super::panel::{BAND_ALPHA, BAR_ALPHA, LINE_WIDTH, POINT_RADIUS, fitted};
use super::scene::{Anchor, Ink, Scene, Text};

const SIZE: f64 = 11.5;
const ROW: f64 = 19.0;
const SAMPLE: f64 = 30.0;
const SAMPLE_GAP: f64 = 7.0;
const ENTRY_GAP: f64 = 22.0;

/// One entry: a series, or (without a style) the meaning of all bands and whiskers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    name: String,
    style: Option<Style>,
    band: bool,
    whiskers: bool,
    /// Its points have colours of their own.
    valued: bool,
}

/// The entries for some panels, each name and style once.
pub(super) fn entries<'a>(panels: impl Iterator<Item = &'a Panel>, band_meaning: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let (mut any_band, mut any_whiskers) = (false, false);
    for series in panels.flat_map(|panel| &panel.series) {
        let band = series.band.as_ref().is_some_and(|band| !band.is_empty());
        let drawn = |w: &(f64, f64)| !(w.0.is_nan() || w.1.is_nan());
        let whiskers = series.whiskers.iter().chain(&series.x_whiskers).any(drawn);
        any_band |= band;
        any_whiskers |= whiskers;
        if series.name.is_empty() {
            continue;
        }
        let valued = !series.values.is_empty();
        let same =
            |e: &&mut Entry| e.name == series.name && e.style == Some(series.style) && e.valued == valued;
        match entries.iter_mut().find(same) {
            Some(entry) => {
                entry.band |= band;
                entry.whiskers |= whiskers;
            }
            None => entries.push(Entry {
                name: series.name.clone(),
                style: Some(series.style),
                band,
                whiskers,
                valued,
            }),
        }
    }
    let kind = match (any_band, any_whiskers) {
        (true, true) => "band, whiskers",
        (true, false) => "band",
        (false, true) => "whiskers",
        (false, false) => return entries,
    };
    let name = format!("{kind}: {band_meaning}");
    entries.push(Entry { name, style: None, band: any_band, whiskers: any_whiskers, valued: false });
    entries
}

/// Height of a legend in a column of the given width.
pub(super) fn height(entries: &[Entry], width: f64) -> f64 {
    let columns = column_widths(entries, width).len();
    if columns == 0 { 0.0 } else { entries.len().div_ceil(columns) as f64 * ROW }
}

/// Draws the legend from `top` down, centred; the entries of several rows stand in columns.
pub(super) fn draw(scene: &mut Scene, entries: &[Entry], left: f64, width: f64, top: f64) {
    let columns = column_widths(entries, width);
    if columns.is_empty() {
        return;
    }
    let length = columns.iter().sum::<f64>() + ENTRY_GAP * (columns.len() - 1) as f64;
    let start = left + ((width - length) / 2.0).max(0.0);
    for (number, row) in entries.chunks(columns.len()).enumerate() {
        let y = top + (number as f64 + 0.5) * ROW;
        let mut x = start;
        for (entry, column) in row.iter().zip(&columns) {
            sample(scene, entry, x, y);
            let before = sample_width(entry) + SAMPLE_GAP;
            let text = Text::new(entry.name.clone(), (x + before, y), SIZE, Anchor::Start, Ink::grey(40));
            scene.text(fitted(text, width - before));
            x += column + ENTRY_GAP;
        }
    }
}

fn sample(scene: &mut Scene, entry: &Entry, x: f64, y: f64) {
    let coloured = entry.style.filter(|_| !entry.valued);
    let rgb = coloured.map_or((110, 110, 110), |style| style.colour.rgb());
    if entry.band {
        let (top, bottom) = (y - 5.5, y + 5.5);
        let corners = vec![(x, top), (x + SAMPLE, top), (x + SAMPLE, bottom), (x, bottom)];
        scene.area(corners, Ink { rgb, alpha: BAND_ALPHA });
    }
    let middle = x + sample_width(entry) / 2.0;
    let bars = entry.style.is_some_and(|style| style.shape == SeriesShape::Bars);
    if entry.whiskers && !bars {
        let ink = Ink::solid(rgb);
        scene.line(vec![(middle, y - 6.5), (middle, y + 6.5)], 1.3, ink);
        for end in [y - 6.5, y + 6.5] {
            scene.line(vec![(middle - 3.0, end), (middle + 3.0, end)], 1.3, ink);
        }
    }
    let Some(style) = entry.style else { return };
    let alpha = if style.thin { 0.45 } else { 1.0 };
    let ink = Ink { rgb, alpha };
    match style.shape {
        SeriesShape::Bars => {
            let corners =
                [(x, y - 5.0), (x + 12.0, y - 5.0), (x + 12.0, y + 5.0), (x, y + 5.0), (x, y - 5.0)];
            scene.area(corners[..4].to_vec(), Ink { alpha: BAR_ALPHA, ..ink });
            scene.line(corners.to_vec(), 1.2, ink);
        }
        SeriesShape::Points => {}
        SeriesShape::Line | SeriesShape::LineAndPoints | SeriesShape::Steps => {
            let width = if style.thin { 0.9 } else { LINE_WIDTH };
            scene.dashed_line(vec![(x, y), (x + SAMPLE, y)], width, ink, style.dash);
        }
    }
    let mut sign = |marker: Marker, at: f64, radius: f64| scene.marker(marker, (at, y), radius, ink);
    if matches!(style.shape, SeriesShape::Points | SeriesShape::LineAndPoints) {
        sign(style.marker, middle, POINT_RADIUS);
    }
    if let Some((first, last)) = style.ends {
        let radius = 1.5 * POINT_RADIUS;
        sign(first, x + radius, radius);
        sign(last, x + sample_width(entry) - radius, radius);
    }
}

/// A lone point needs less room than a line that is to show its dashes.
fn sample_width(entry: &Entry) -> f64 {
    match entry.style {
        Some(style) if style.ends.is_some() => SAMPLE,
        Some(style) if style.shape == SeriesShape::Bars => 12.0,
        Some(style) if style.shape == SeriesShape::Points && !entry.band => 10.0,
        None if !entry.band => 10.0,
        _ => SAMPLE,
    }
}

fn entry_width(entry: &Entry) -> f64 {
    sample_width(entry) + SAMPLE_GAP + font::width(&entry.name, SIZE, false)
}

/// The widths of as many columns as fit; the entries fill them row by row.
fn column_widths(entries: &[Entry], width: f64) -> Vec<f64> {
    let widths: Vec<f64> = entries.iter().map(entry_width).collect();
    let split = |count: usize| -> Vec<f64> {
        (0..count).map(|c| widths.iter().skip(c).step_by(count).copied().fold(0.0, f64::max)).collect()
    };
    let fits = |columns: &Vec<f64>| {
        columns.iter().sum::<f64>() + ENTRY_GAP * columns.len().saturating_sub(1) as f64 <= width
    };
    let most = (1..=entries.len()).rev().map(split).find(fits);
    let columns = most.unwrap_or_else(|| vec![width; 1.min(entries.len())]);
    // No more columns than the rows need, so that the last row is about as long as the others.
    let rows = entries.len().div_ceil(columns.len().max(1));
    let even = split(entries.len().div_ceil(rows.max(1)));
    if fits(&even) { even } else { columns }
}
