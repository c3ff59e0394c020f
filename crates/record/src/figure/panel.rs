//! One panel: frame, grid, axes, data.

use super::axis::{Span, Ticks};
use super::clip::Frame;
use super::describe::{AxisSide, Dash, Panel, Scale, Series, SeriesShape};
use super::edge::{self, Missing};
use super::font;
use super::scene::{Anchor, Ink, Place, Scene, Text};
use crate::Result;

pub(super) const LINE_WIDTH: f64 = 1.8;
pub(super) const POINT_RADIUS: f64 = 3.0;
pub(super) const BAND_ALPHA: f64 = 0.2;

const TITLE_SIZE: f64 = 13.0;
const LABEL_SIZE: f64 = 12.5;
const TICK_SIZE: f64 = 11.5;
const MARK_SIZE: f64 = 11.0;
const MARK_ROW: f64 = 15.0;
const MARK_GAP: f64 = 12.0;
const TICK_LENGTH: f64 = 4.0;

const TEXT: Ink = Ink::grey(40);
const FRAME: Ink = Ink::grey(90);
const GRID: Ink = Ink::grey(228);
const MINOR_GRID: Ink = Ink::grey(242);

/// A panel whose axes are settled.
pub(super) struct Prepared<'a> {
    pub(super) panel: &'a Panel,
    x: Span,
    y: Span,
    y2: Option<Span>,
    y_ticks: Ticks,
    y2_ticks: Ticks,
    pub(super) missing: Vec<Missing>,
}

impl<'a> Prepared<'a> {
    /// Settles ranges, and the vertical ticks for a frame of about `height`.
    pub(super) fn new(panel: &'a Panel, height: f64) -> Result<Self> {
        let dots = panel.series.iter().any(|series| series.style.shape != SeriesShape::Line);
        let x = Span::of(&panel.x, panel.series.iter().flat_map(xs).chain(mark_places(panel)), dots)?;
        let right = |series: &&Series| panel.y2.is_some() && series.side == AxisSide::Right;
        let y = Span::of(&panel.y, panel.series.iter().filter(|s| !right(s)).flat_map(ys), true)?;
        let y2 = match &panel.y2 {
            Some(axis) => Some(Span::of(axis, panel.series.iter().filter(right).flat_map(ys), true)?),
            None => None,
        };
        // Decades can stand closer than other ticks: their labels need no reading between.
        let most = |span: &Span| match span.scale {
            Scale::Linear => ((height / 48.0) as usize).clamp(3, 10),
            Scale::Log10 => ((height / 30.0) as usize).clamp(3, 12),
        };
        let missing = edge::missing(panel, &x, &y, y2.as_ref());
        let y2_ticks = y2.as_ref().map(|span| span.ticks(most(span))).unwrap_or_default();
        Ok(Self { panel, x, y, y2, y_ticks: y.ticks(most(&y)), y2_ticks, missing })
    }

    /// Room needed left of the frame for labels.
    pub(super) fn left(&self) -> f64 {
        widest(&self.y_ticks) + TICK_LENGTH + 34.0
    }

    /// Room needed right of the frame for labels.
    pub(super) fn right(&self) -> f64 {
        if self.y2.is_some() { widest(&self.y2_ticks) + TICK_LENGTH + 34.0 } else { 20.0 }
    }

    /// Room needed above a frame of the given width: title and rows of mark labels.
    pub(super) fn top(&self, width: f64) -> f64 {
        let title = if self.panel.title.is_empty() { 0.0 } else { 24.0 };
        let rows = self.mark_rows(0.0, width).iter().map(|row| row.1 + 1).max().unwrap_or(0);
        title + rows as f64 * MARK_ROW + 8.0
    }

    /// Room needed below the frame.
    pub(super) const BOTTOM: f64 = 46.0;

    /// Draws the panel; its title stands `title_above` the frame, as in its neighbours.
    pub(super) fn draw(&self, scene: &mut Scene, frame: Frame, title_above: f64) {
        let x_ticks = self.x.ticks_over(frame.width(), |label| font::width(label, TICK_SIZE, false));
        self.draw_grid(scene, frame, &x_ticks);
        for series in &self.panel.series {
            self.draw_band(scene, frame, series);
        }
        self.draw_mark_lines(scene, frame);
        self.draw_axes(scene, frame, &x_ticks);
        for series in &self.panel.series {
            self.draw_series(scene, frame, series);
        }
        edge::draw(scene, self.panel, &self.missing, &self.x, frame);
        self.draw_words(scene, frame, title_above);
        if self.y.empty && self.y2.is_none_or(|span| span.empty) {
            let middle = (f64::midpoint(frame.left, frame.right), f64::midpoint(frame.top, frame.bottom));
            scene.text(Text::new("no finite value", middle, LABEL_SIZE, Anchor::Middle, Ink::grey(110)));
        }
    }

    fn draw_grid(&self, scene: &mut Scene, frame: Frame, x_ticks: &Ticks) {
        let across = |y: f64| vec![(frame.left, y), (frame.right, y)];
        let down = |x: f64| vec![(x, frame.top), (x, frame.bottom)];
        let values = |ticks: &Ticks| ticks.labelled.iter().map(|tick| tick.0).collect::<Vec<_>>();
        for (ink, xs, ys) in [
            (MINOR_GRID, x_ticks.minor.clone(), self.y_ticks.minor.clone()),
            (GRID, values(x_ticks), values(&self.y_ticks)),
        ] {
            for x in xs {
                scene.line(down(place_x(&self.x, frame, x)), 0.8, ink);
            }
            for y in ys {
                scene.line(across(place_y(&self.y, frame, y)), 0.8, ink);
            }
        }
    }

    fn draw_axes(&self, scene: &mut Scene, frame: Frame, x_ticks: &Ticks) {
        let Frame { left, top, right, bottom } = frame;
        for side in [
            [(left, top), (right, top)],
            [(left, bottom), (right, bottom)],
            [(left, top), (left, bottom)],
            [(right, top), (right, bottom)],
        ] {
            scene.line(side.to_vec(), 1.0, FRAME);
        }
        for (value, label) in &x_ticks.labelled {
            let x = place_x(&self.x, frame, *value);
            scene.line(vec![(x, bottom), (x, bottom + TICK_LENGTH)], 1.0, FRAME);
            let at = (x, bottom + TICK_LENGTH + 9.5);
            scene.text(Text::new(label.clone(), at, TICK_SIZE, Anchor::Middle, TEXT));
        }
        let left_ink = self.axis_ink(AxisSide::Left);
        for (value, label) in &self.y_ticks.labelled {
            let y = place_y(&self.y, frame, *value);
            scene.line(vec![(left - TICK_LENGTH, y), (left, y)], 1.0, FRAME);
            let at = (left - TICK_LENGTH - 4.0, y);
            scene.text(Text::new(label.clone(), at, TICK_SIZE, Anchor::End, left_ink));
        }
        let Some(y2) = &self.y2 else { return };
        let right_ink = self.axis_ink(AxisSide::Right);
        for (value, label) in &self.y2_ticks.labelled {
            let y = place_y(y2, frame, *value);
            scene.line(vec![(right, y), (right + TICK_LENGTH, y)], 1.0, FRAME);
            let at = (right + TICK_LENGTH + 4.0, y);
            scene.text(Text::new(label.clone(), at, TICK_SIZE, Anchor::Start, right_ink));
        }
    }

    /// Title, axis labels and mark labels.
    fn draw_words(&self, scene: &mut Scene, frame: Frame, title_above: f64) {
        let panel = self.panel;
        let (middle_x, middle_y) =
            (f64::midpoint(frame.left, frame.right), f64::midpoint(frame.top, frame.bottom));
        let room = frame.width() + self.left();
        let at = (middle_x, frame.bottom + TICK_LENGTH + 30.0);
        scene.text(fitted(Text::new(panel.x.label.clone(), at, LABEL_SIZE, Anchor::Middle, TEXT), room));

        let at = (frame.left - self.left() + 10.0, middle_y);
        let ink = self.axis_ink(AxisSide::Left);
        let mut label = Text::new(panel.y.label.clone(), at, LABEL_SIZE, Anchor::Middle, ink);
        label.upwards = true;
        scene.text(fitted(label, frame.height() + 30.0));
        if let Some(axis) = &panel.y2 {
            let at = (frame.right + self.right() - 8.0, middle_y);
            let ink = self.axis_ink(AxisSide::Right);
            let mut label = Text::new(axis.label.clone(), at, LABEL_SIZE, Anchor::Middle, ink);
            label.upwards = true;
            scene.text(fitted(label, frame.height() + 30.0));
        }

        let rows = self.mark_rows(frame.left, frame.width());
        for (mark, (centre, row)) in self.shown_marks().zip(&rows) {
            let y = frame.top - 9.0 - *row as f64 * MARK_ROW;
            let label = Text::new(mark.label.clone(), (*centre, y), MARK_SIZE, Anchor::Middle, Ink::grey(70));
            scene.text(fitted(label, room));
        }
        let at = (middle_x, frame.top - title_above);
        let mut title = Text::new(panel.title.clone(), at, TITLE_SIZE, Anchor::Middle, TEXT);
        title.bold = true;
        scene.text(fitted(title, room));
    }

    fn draw_mark_lines(&self, scene: &mut Scene, frame: Frame) {
        for mark in self.shown_marks() {
            let x = place_x(&self.x, frame, mark.x);
            scene.dashed_line(
                vec![(x, frame.top - 3.0), (x, frame.bottom)],
                1.1,
                Ink::grey(120),
                Dash::Dotted,
            );
        }
    }

    fn shown_marks(&self) -> impl Iterator<Item = &super::describe::VerticalMark> {
        self.panel.marks.iter().filter(|mark| self.x.misfit(mark.x).is_none())
    }

    /// Centre and row (0 is next to the frame) of each mark's label, so that none overlap.
    fn mark_rows(&self, left: f64, width: f64) -> Vec<(f64, usize)> {
        let right = left + width;
        let labels: Vec<(f64, f64)> = self
            .shown_marks()
            .map(|mark| {
                let half = font::width(&mark.label, MARK_SIZE, false) / 2.0;
                (left + self.x.fraction(mark.x).unwrap_or(0.0) * width, half)
            })
            .collect();
        // Two close marks, as at α = 0 and 1: their labels give way to either side before one climbs a row.
        if let &[(x0, half0), (x1, half1)] = labels.as_slice()
            && x0 + half0 + MARK_GAP > x1 - half1
        {
            let (first, second) = (x0 - half0 + MARK_GAP, x1 + half1 - MARK_GAP);
            let apart = first + half0 + MARK_GAP <= second - half1;
            if apart && first - half0 >= left && second + half1 <= right {
                return vec![(first, 0), (second, 0)];
            }
        }
        let mut taken: Vec<Vec<(f64, f64)>> = Vec::new();
        labels
            .into_iter()
            .map(|(x, half)| {
                // Kept within the frame as far as it fits, so that neighbouring panels stay clear.
                let centre = x.min(right - half).max(left + half);
                let (from, to) = (centre - half - MARK_GAP / 2.0, centre + half + MARK_GAP / 2.0);
                let free = |row: &Vec<(f64, f64)>| row.iter().all(|&(a, b)| to <= a || b <= from);
                let row = taken.iter().position(free).unwrap_or(taken.len());
                if row == taken.len() {
                    taken.push(Vec::new());
                }
                taken[row].push((from, to));
                (centre, row)
            })
            .collect()
    }

    fn draw_band(&self, scene: &mut Scene, frame: Frame, series: &Series) {
        let Some(band) = &series.band else { return };
        let span = self.span_of(series);
        let ink = Ink { rgb: series.style.colour.rgb(), alpha: BAND_ALPHA };
        // An end of the interval beyond the axis lies outside of the frame; only NaN is nowhere.
        let beyond = |value: f64| match span.fraction(value) {
            Some(fraction) => Some(fraction),
            None if value.is_nan() => None,
            None if value > 0.0 => Some(1e4),
            None => Some(-1e4),
        };
        let mut upper: Vec<Place> = Vec::new();
        let mut lower: Vec<Place> = Vec::new();
        let mut flush = |upper: &mut Vec<Place>, lower: &mut Vec<Place>| {
            let outline = upper.drain(..).chain(lower.drain(..).rev()).collect();
            scene.area(frame.clip_area(outline), ink);
        };
        for &(x, low, high) in band {
            match (self.x.fraction(x), beyond(low), beyond(high)) {
                (Some(x), Some(low), Some(high)) => {
                    let across = frame.left + x * frame.width();
                    lower.push((across, frame.bottom - low * frame.height()));
                    upper.push((across, frame.bottom - high * frame.height()));
                }
                _ => flush(&mut upper, &mut lower),
            }
        }
        flush(&mut upper, &mut lower);
    }

    fn draw_series(&self, scene: &mut Scene, frame: Frame, series: &Series) {
        let span = self.span_of(series);
        let ink = Ink::solid(series.style.colour.rgb());
        let place = |&(x, y): &(f64, f64)| -> Option<Place> {
            let (x, y) = (self.x.fraction(x)?, span.fraction(y)?);
            Some((frame.left + x * frame.width(), frame.bottom - y * frame.height()))
        };
        let places: Vec<Option<Place>> = series.points.iter().map(place).collect();
        if series.style.shape != SeriesShape::Points {
            for run in places.split(Option::is_none) {
                let run: Vec<Place> = run.iter().flatten().copied().collect();
                for piece in frame.clip_path(&run) {
                    scene.dashed_line(piece, LINE_WIDTH, ink, series.style.dash);
                }
                // A value between two that cannot be drawn has no line to be seen by.
                if let &[alone] = run.as_slice()
                    && frame.contains(alone)
                {
                    scene.disc(alone, LINE_WIDTH, ink);
                }
            }
        }
        if series.style.shape != SeriesShape::Line {
            for &at in places.iter().flatten().filter(|&&at| frame.contains(at)) {
                scene.disc(at, POINT_RADIUS, ink);
            }
        }
    }

    fn span_of(&self, series: &Series) -> &Span {
        if series.side == AxisSide::Right { self.y2.as_ref().unwrap_or(&self.y) } else { &self.y }
    }

    /// With two axes, each is written in the colour of its first series.
    fn axis_ink(&self, side: AxisSide) -> Ink {
        let first = self.panel.series.iter().find(|series| series.side == side);
        match first {
            Some(series) if self.y2.is_some() => Ink::solid(series.style.colour.rgb()),
            _ => TEXT,
        }
    }
}

/// Shrinks a text that is wider than `room`.
pub(super) fn fitted(mut text: Text, room: f64) -> Text {
    let width = text.width();
    if width > room {
        text.size *= room / width;
    }
    text
}

fn place_x(span: &Span, frame: Frame, value: f64) -> f64 {
    frame.left + span.fraction(value).unwrap_or(0.0) * frame.width()
}

fn place_y(span: &Span, frame: Frame, value: f64) -> f64 {
    frame.bottom - span.fraction(value).unwrap_or(0.0) * frame.height()
}

fn xs(series: &Series) -> impl Iterator<Item = f64> + '_ {
    series.points.iter().map(|p| p.0).chain(series.band.iter().flatten().map(|b| b.0))
}

fn ys(series: &Series) -> impl Iterator<Item = f64> + '_ {
    series.points.iter().map(|p| p.1).chain(series.band.iter().flatten().flat_map(|b| [b.1, b.2]))
}

fn mark_places(panel: &Panel) -> impl Iterator<Item = f64> + '_ {
    panel.marks.iter().map(|mark| mark.x)
}

fn widest(ticks: &Ticks) -> f64 {
    ticks.labelled.iter().map(|tick| font::width(&tick.1, TICK_SIZE, false)).fold(0.0, f64::max)
}
