//! The legend: outside of the data, with samples that show colour, dashes, points and bands.

use super::describe::{Panel, SeriesShape, Style};
use super::font;
use super::panel::{BAND_ALPHA, LINE_WIDTH, POINT_RADIUS};
use super::scene::{Anchor, Ink, Scene, Text};

const SIZE: f64 = 11.5;
const ROW: f64 = 19.0;
const SAMPLE: f64 = 30.0;
const SAMPLE_GAP: f64 = 7.0;
const ENTRY_GAP: f64 = 22.0;

/// One entry: a series, or (without a style) the meaning of all bands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    name: String,
    style: Option<Style>,
    band: bool,
}

/// The entries for some panels, each name and style once.
pub(super) fn entries<'a>(panels: impl Iterator<Item = &'a Panel>, band_meaning: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut any_band = false;
    for series in panels.flat_map(|panel| &panel.series) {
        let band = series.band.as_ref().is_some_and(|band| !band.is_empty());
        any_band |= band;
        if series.name.is_empty() {
            continue;
        }
        let known = entries.iter_mut().find(|e| e.name == series.name && e.style == Some(series.style));
        match known {
            Some(entry) => entry.band |= band,
            None => entries.push(Entry { name: series.name.clone(), style: Some(series.style), band }),
        }
    }
    if any_band {
        entries.push(Entry { name: format!("band: {band_meaning}"), style: None, band: true });
    }
    entries
}

/// Height of a legend in a column of the given width.
pub(super) fn height(entries: &[Entry], width: f64) -> f64 {
    rows(entries, width).len() as f64 * ROW
}

/// Draws the legend from `top` down, each row centred in the column.
pub(super) fn draw(scene: &mut Scene, entries: &[Entry], left: f64, width: f64, top: f64) {
    let rows = rows(entries, width);
    for (number, row) in rows.iter().enumerate() {
        let y = top + (number as f64 + 0.5) * ROW;
        let length: f64 =
            row.iter().map(|e| entry_width(e)).sum::<f64>() + ENTRY_GAP * (row.len().max(1) - 1) as f64;
        let mut x = left + ((width - length) / 2.0).max(0.0);
        for entry in row {
            sample(scene, entry, x, y);
            let at = (x + sample_width(entry) + SAMPLE_GAP, y);
            scene.text(Text::new(entry.name.clone(), at, SIZE, Anchor::Start, Ink::grey(40)));
            x += entry_width(entry) + ENTRY_GAP;
        }
    }
}

fn sample(scene: &mut Scene, entry: &Entry, x: f64, y: f64) {
    let rgb = entry.style.map_or((110, 110, 110), |style| style.colour.rgb());
    if entry.band {
        let (top, bottom) = (y - 5.5, y + 5.5);
        let corners = vec![(x, top), (x + SAMPLE, top), (x + SAMPLE, bottom), (x, bottom)];
        scene.area(corners, Ink { rgb, alpha: BAND_ALPHA });
    }
    let Some(style) = entry.style else { return };
    if style.shape != SeriesShape::Points {
        scene.dashed_line(vec![(x, y), (x + SAMPLE, y)], LINE_WIDTH, Ink::solid(rgb), style.dash);
    }
    if style.shape != SeriesShape::Line {
        scene.disc((x + sample_width(entry) / 2.0, y), POINT_RADIUS, Ink::solid(rgb));
    }
}

/// A lone point needs less room than a line that is to show its dashes.
fn sample_width(entry: &Entry) -> f64 {
    let point = entry.style.is_some_and(|style| style.shape == SeriesShape::Points);
    if point && !entry.band { 10.0 } else { SAMPLE }
}

fn entry_width(entry: &Entry) -> f64 {
    sample_width(entry) + SAMPLE_GAP + font::width(&entry.name, SIZE, false)
}

fn rows(entries: &[Entry], width: f64) -> Vec<Vec<&Entry>> {
    let mut rows: Vec<Vec<&Entry>> = Vec::new();
    let mut used = 0.0;
    for entry in entries {
        let needed = entry_width(entry);
        match rows.last_mut() {
            Some(row) if used + ENTRY_GAP + needed <= width => {
                row.push(entry);
                used += ENTRY_GAP + needed;
            }
            _ => {
                rows.push(vec![entry]);
                used = needed;
            }
        }
    }
    rows
}
