//! Where everything goes: heading, grid of panels with aligned frames, notes, legend.

use super::clip::Frame;
use super::describe::Figure;
use super::font;
use super::legend::{self, Entry};
use super::panel::{Prepared, fitted};
use super::scene::{Anchor, Ink, Scene, Text};
use crate::Result;

const MARGIN: f64 = 16.0;
const GUTTER: f64 = 24.0;
const TITLE_SIZE: f64 = 16.0;
const SUBTITLE_SIZE: f64 = 11.5;
const NOTE_SIZE: f64 = 10.5;
const NOTE_ROW: f64 = 15.0;
const GREY: Ink = Ink::grey(105);

/// The whole figure as shapes.
pub(super) fn scene(figure: &Figure) -> Result<Scene> {
    let count = figure.panels.len();
    let columns = figure.columns.unwrap_or(if count <= 4 { 2 } else { 3 }).clamp(1, count.max(1));
    let (wide, high) =
        figure.panel_size.unwrap_or(if columns == 1 { (760.0, 430.0) } else { (580.0, 400.0) });
    // Smaller panels would have no room left for data beside their labels.
    let (wide, high) = (wide.max(320.0), high.max(240.0));
    let width = 2.0 * MARGIN + columns as f64 * wide + (columns - 1) as f64 * GUTTER;

    let prepared = figure
        .panels
        .iter()
        .map(|panel| Prepared::new(panel, high - Prepared::BOTTOM - 40.0))
        .collect::<Result<Vec<_>>>()?;
    // The same room for labels in every panel keeps the frames aligned.
    let left = prepared.iter().map(Prepared::left).fold(0.0, f64::max);
    let right = prepared.iter().map(Prepared::right).fold(0.0, f64::max);
    let top = prepared.iter().map(|p| p.top(wide - left - right)).fold(0.0, f64::max);

    let shared = legend::entries(figure.panels.iter(), &figure.band_meaning);
    let single = |p: &Prepared| legend::entries(std::iter::once(p.panel), &figure.band_meaning);
    // One legend serves all panels that show the same things.
    let legends: Vec<Vec<Entry>> = if prepared.iter().all(|p| single(p) == shared) {
        vec![Vec::new(); count]
    } else {
        prepared.iter().map(single).collect()
    };
    let common = if legends.iter().all(Vec::is_empty) { shared } else { Vec::new() };
    let notes: Vec<Vec<String>> =
        prepared.iter().map(|p| wrap(&p.notes(), "  ·  ", NOTE_SIZE, wide)).collect();

    let mut scene = Scene { size: (width, 0.0), shapes: Vec::new() };
    let mut y = heading(&mut scene, figure, width);
    for row in (0..count).step_by(columns) {
        let cells = row..(row + columns).min(count);
        let below = |cell: usize| notes[cell].len() as f64 * NOTE_ROW + legend::height(&legends[cell], wide);
        let below_frame =
            prepared[cells.clone()].iter().map(|p| p.bottom(wide - left - right)).fold(0.0, f64::max);
        for cell in cells.clone() {
            let x = MARGIN + (cell - row) as f64 * (wide + GUTTER);
            let bottom = y + high - below_frame;
            let frame = Frame { left: x + left, top: y + top, right: x + wide - right, bottom };
            prepared[cell].draw(&mut scene, frame, top - 12.0);
            let mut under = y + high;
            for note in &notes[cell] {
                let at = (x + left, under + NOTE_ROW / 2.0);
                scene.text(Text::new(note.clone(), at, NOTE_SIZE, Anchor::Start, GREY));
                under += NOTE_ROW;
            }
            legend::draw(&mut scene, &legends[cell], x, wide, under + 4.0);
        }
        y += high + cells.map(below).fold(0.0, f64::max) + if row + columns < count { GUTTER } else { 4.0 };
    }
    if !common.is_empty() {
        legend::draw(&mut scene, &common, MARGIN, width - 2.0 * MARGIN, y);
        y += legend::height(&common, width - 2.0 * MARGIN);
    }
    scene.size.1 = (y + MARGIN).ceil();
    Ok(scene)
}

/// Title and origin; returns where the panels begin.
fn heading(scene: &mut Scene, figure: &Figure, width: f64) -> f64 {
    let room = width - 2.0 * MARGIN;
    let mut y = MARGIN;
    if !figure.title.is_empty() {
        let at = (MARGIN, y + 8.0);
        let mut title = Text::new(figure.title.clone(), at, TITLE_SIZE, Anchor::Start, Ink::grey(20));
        title.bold = true;
        scene.text(fitted(title, room));
        y += 24.0;
    }
    let words: Vec<String> = figure.subtitle.split_whitespace().map(str::to_owned).collect();
    for line in wrap(&words, " ", SUBTITLE_SIZE, room) {
        scene.text(fitted(Text::new(line, (MARGIN, y + 6.0), SUBTITLE_SIZE, Anchor::Start, GREY), room));
        y += 16.0;
    }
    y + 6.0
}

/// Joins `parts` into lines no wider than `room`.
pub(super) fn wrap(parts: &[String], between: &str, size: f64, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if font::width(&format!("{line}{between}{part}"), size, false) <= room => {
                line.push_str(between);
                line.push_str(part);
            }
            _ => lines.push(part.clone()),
        }
    }
    lines
}
