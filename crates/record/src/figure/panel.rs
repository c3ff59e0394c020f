//! One panel: frame, grid, axes, data.

use super::axis::{Span, Ticks};
use super::clip::Frame;
use super::describe::{Axis, AxisSide, Colour, Dash, FieldLook, Marker, Panel, Scale, Series, SeriesShape};
use super::edge::{self, Missing};
use super::field;
use super::font;
use super::label::Occupied;
use super::layout::wrap;
use super::scene::{Anchor, Ink, Place, Scene, Text};
use super::surface;
use crate::Result;

pub(super) const LINE_WIDTH: f64 = 1.8;
pub(super) const POINT_RADIUS: f64 = 3.0;
pub(super) const BAND_ALPHA: f64 = 0.2;

const TITLE_SIZE: f64 = 13.0;
pub(super) const LABEL_SIZE: f64 = 12.5;
pub(super) const TICK_SIZE: f64 = 11.5;
const MARK_SIZE: f64 = 11.0;
const MARK_ROW: f64 = 15.0;
const MARK_GAP: f64 = 12.0;
const TICK_LENGTH: f64 = 4.0;
const CATEGORY_ROW: f64 = 13.5;
const BAR_SHARE: f64 = 0.8;
const COLOUR_BAR: f64 = 12.0;
const COLOUR_BAR_GAP: f64 = 14.0;
pub(super) const BAR_ALPHA: f64 = 0.55;

/// Around what is drawn on colours.
const RIM: Ink = Ink { rgb: (255, 255, 255), alpha: 0.85 };
pub(super) const TEXT: Ink = Ink::grey(40);
pub(super) const FRAME: Ink = Ink::grey(90);
pub(super) const GRID: Ink = Ink::grey(228);
const MINOR_GRID: Ink = Ink::grey(242);

/// A panel whose axes are settled.
pub(super) struct Prepared<'a> {
    pub(super) panel: &'a Panel,
    x: Span,
    y: Span,
    y2: Option<Span>,
    y_ticks: Ticks,
    y2_ticks: Ticks,
    colours: Option<Span>,
    colour_ticks: Ticks,
    pub(super) missing: Vec<Missing>,
}

impl<'a> Prepared<'a> {
    /// Settles ranges, and the vertical ticks for a frame of about `height`.
    pub(super) fn new(panel: &'a Panel, height: f64) -> Result<Self> {
        let line = |series: &Series| matches!(series.style.shape, SeriesShape::Line | SeriesShape::Steps);
        let dots = panel.series.iter().any(|series| !line(series) || series.style.ends.is_some());
        let all = || panel.series.iter();
        if let Some(field) = &panel.field {
            field::check(field)?;
        }
        // A field fills its frame.
        let filled =
            |axis: &Axis, of: fn(&super::describe::Field) -> &[f64]| match panel.field.as_ref().map(of) {
                Some([low, .., high]) if axis.range.is_none() => axis.clone().with_range(*low, *high),
                _ => axis.clone(),
            };
        let (x_axis, y_axis) = (filled(&panel.x, |field| &field.x), filled(&panel.y, |field| &field.y));
        let x = Span::of(&x_axis, all().flat_map(xs).chain(mark_places(panel)).chain(bar_ends(panel)), dots)?;
        let right = |series: &&Series| panel.y2.is_some() && series.side == AxisSide::Right;
        let levels = panel.levels.iter().map(|level| level.value);
        let mut y = Span::of(&y_axis, all().filter(|s| !right(s)).flat_map(ys).chain(levels), true)?;
        stand_on_zero(&mut y, &panel.y, all().filter(|s| !right(s)));
        let mut y2 = None;
        if let Some(axis) = &panel.y2 {
            let mut span = Span::of(axis, all().filter(right).flat_map(ys), true)?;
            stand_on_zero(&mut span, axis, all().filter(right));
            y2 = Some(span);
        }
        let colours = match &panel.colours {
            Some(axis) => {
                let field = panel.field.iter().flat_map(|field| &field.values);
                Some(Span::of(axis, all().flat_map(|s| &s.values).chain(field).copied(), false)?)
            }
            None => None,
        };
        // Decades can stand closer than other ticks: their labels need no reading between.
        let most = |span: &Span| match span.scale {
            Scale::Linear => ((height / 48.0) as usize).clamp(3, 10),
            Scale::Log10 => ((height / 30.0) as usize).clamp(3, 12),
        };
        let missing = edge::missing(panel, &x, &y, y2.as_ref());
        let ticks = |span: &Span, names: &[String]| {
            if names.is_empty() { span.ticks(most(span)) } else { Ticks::of_categories(names) }
        };
        let none = Ticks::default();
        let y_ticks = ticks(&y, &panel.y.categories);
        let y2_ticks =
            y2.zip(panel.y2.as_ref()).map_or(none.clone(), |(span, axis)| ticks(&span, &axis.categories));
        let colour_ticks =
            colours.zip(panel.colours.as_ref()).map_or(none, |(span, axis)| ticks(&span, &axis.categories));
        Ok(Self { panel, x, y, y2, y_ticks, y2_ticks, colours, colour_ticks, missing })
    }

    /// The sentences below the panel.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = edge::notes(&self.missing);
        if let Some((field, span)) = self.panel.field.as_ref().zip(self.colours.as_ref()) {
            notes.extend(field::notes(field, span));
        }
        notes
    }

    /// Whether the panel is a mountain, with axes of its own.
    fn is_surface(&self) -> bool {
        self.panel.field.as_ref().is_some_and(|field| field.look == FieldLook::Surface)
    }

    /// Room needed left of the frame for labels.
    pub(super) fn left(&self) -> f64 {
        widest(&self.y_ticks) + TICK_LENGTH + 34.0
    }

    /// Room needed right of the frame for labels.
    pub(super) fn right(&self) -> f64 {
        self.right_axis() + self.colour_bar()
    }

    fn right_axis(&self) -> f64 {
        if self.y2.is_some() {
            widest(&self.y2_ticks) + TICK_LENGTH + 34.0
        } else if self.colours.is_some() {
            0.0
        } else {
            20.0
        }
    }

    fn colour_bar(&self) -> f64 {
        if self.colours.is_none() {
            return 0.0;
        }
        COLOUR_BAR_GAP + COLOUR_BAR + widest(&self.colour_ticks) + TICK_LENGTH + 32.0
    }

    /// Room needed above a frame of the given width: title and rows of mark labels.
    pub(super) fn top(&self, width: f64) -> f64 {
        let title = if self.panel.title.is_empty() { 0.0 } else { 24.0 };
        let rows = self.mark_rows(0.0, width).iter().map(|row| row.1 + 1).max().unwrap_or(0);
        title + rows as f64 * MARK_ROW + 8.0
    }

    /// Room needed below a frame of the given width.
    pub(super) fn bottom(&self, width: f64) -> f64 {
        let rows = self.category_names(width).iter().map(Vec::len).max().unwrap_or(1);
        let label = if self.panel.x.label.is_empty() { 20.0 } else { 0.0 };
        Self::BOTTOM - label + (rows.max(1) - 1) as f64 * CATEGORY_ROW
    }

    /// Room needed below a frame with one row of tick labels.
    pub(super) const BOTTOM: f64 = 46.0;

    /// The lines of each name on the horizontal axis, if it is one of names.
    fn category_names(&self, width: f64) -> Vec<Vec<String>> {
        let names = &self.panel.x.categories;
        let room = (width / names.len().max(1) as f64 - 8.0).max(10.0);
        let words = |name: &String| name.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        names.iter().map(|name| wrap(&words(name), " ", TICK_SIZE, room)).collect()
    }

    fn x_ticks(&self, width: f64) -> Ticks {
        if self.panel.x.categories.is_empty() {
            self.x.ticks_over(width, |label| font::width(label, TICK_SIZE, false))
        } else {
            Ticks::of_categories(&self.panel.x.categories)
        }
    }

    /// Draws the panel; its title stands `title_above` the frame, as in its neighbours.
    pub(super) fn draw(&self, scene: &mut Scene, frame: Frame, title_above: f64) {
        let x_ticks = self.x_ticks(frame.width());
        let map = self.panel.field.as_ref().zip(self.colours.as_ref());
        if let Some((field, span)) = map.filter(|_| self.is_surface()) {
            let axes = surface::Axes {
                x: (&self.x, &self.panel.x.label),
                y: (&self.y, &self.panel.y.label),
                z: (span, &self.colour_ticks),
            };
            surface::draw(scene, field, &axes, frame);
            self.draw_colour_bar(scene, frame);
            self.draw_title(scene, frame, title_above);
            return;
        }
        if let Some((field, span)) = map {
            field::fill(scene, field, span, (&self.x, &self.y), frame);
            field::isolines(scene, field, span, &self.colour_ticks, (&self.x, &self.y), frame);
        } else {
            self.draw_grid(scene, frame, &x_ticks);
        }
        for series in &self.panel.series {
            self.draw_band(scene, frame, series);
        }
        self.draw_mark_lines(scene, frame);
        self.draw_bars(scene, frame);
        self.draw_levels(scene, frame);
        self.draw_axes(scene, frame, &x_ticks);
        let mut occupied = Occupied::new(frame);
        for (index, series) in self.panel.series.iter().enumerate() {
            self.draw_series(scene, frame, index, series, &mut occupied);
        }
        edge::draw(scene, self.panel, &self.missing, &self.x, frame);
        self.draw_colour_bar(scene, frame);
        self.draw_labels(scene, frame, &mut occupied);
        self.draw_words(scene, frame, title_above);
        let nothing = self.panel.field.as_ref().is_none_or(|_| self.colours.is_some_and(|span| span.empty));
        if nothing && (self.panel.field.is_some() || self.y.empty && self.y2.is_none_or(|span| span.empty)) {
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
            // Between names there is nothing to be read off.
            for x in xs.into_iter().filter(|_| self.panel.x.categories.is_empty()) {
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
        let names = self.category_names(frame.width());
        let room = frame.width() / names.len().max(1) as f64 - 4.0;
        for (index, (value, label)) in x_ticks.labelled.iter().enumerate() {
            let x = place_x(&self.x, frame, *value);
            scene.line(vec![(x, bottom), (x, bottom + TICK_LENGTH)], 1.0, FRAME);
            if let Some(lines) = names.get(index) {
                for (row, line) in lines.iter().enumerate() {
                    let at = (x, bottom + TICK_LENGTH + 9.5 + row as f64 * CATEGORY_ROW);
                    scene.text(fitted(Text::new(line.clone(), at, TICK_SIZE, Anchor::Middle, TEXT), room));
                }
                continue;
            }
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
        let at = (middle_x, frame.bottom + self.bottom(frame.width()) - 12.0);
        scene.text(fitted(Text::new(panel.x.label.clone(), at, LABEL_SIZE, Anchor::Middle, TEXT), room));

        let at = (frame.left - self.left() + 10.0, middle_y);
        let ink = self.axis_ink(AxisSide::Left);
        let mut label = Text::new(panel.y.label.clone(), at, LABEL_SIZE, Anchor::Middle, ink);
        label.upwards = true;
        scene.text(fitted(label, frame.height() + 30.0));
        if let Some(axis) = &panel.y2 {
            let at = (frame.right + self.right_axis() - 8.0, middle_y);
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
        self.draw_title(scene, frame, title_above);
    }

    fn draw_title(&self, scene: &mut Scene, frame: Frame, title_above: f64) {
        let at = (f64::midpoint(frame.left, frame.right), frame.top - title_above);
        let mut title = Text::new(self.panel.title.clone(), at, TITLE_SIZE, Anchor::Middle, TEXT);
        title.bold = true;
        scene.text(fitted(title, frame.width() + self.left()));
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
        let beyond = |value: f64| beyond(span, value);
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

    fn draw_series(
        &self,
        scene: &mut Scene,
        frame: Frame,
        index: usize,
        series: &Series,
        occupied: &mut Occupied,
    ) {
        let style = series.style;
        let alpha = if style.thin { 0.45 } else { 1.0 };
        let ink = Ink { rgb: style.colour.rgb(), alpha };
        let width = if style.thin { 0.9 } else { LINE_WIDTH };
        let mut radius = if style.thin { 0.75 * POINT_RADIUS } else { POINT_RADIUS };
        if self.panel.field.is_some() && style.shape == SeriesShape::Points {
            // Few, and on colours.
            radius *= 1.6;
        }
        let places = self.places(frame, index, series);
        if !matches!(style.shape, SeriesShape::Points | SeriesShape::Bars) {
            for run in places.split(Option::is_none) {
                let mut run: Vec<Place> = run.iter().flatten().copied().collect();
                // A value between two that cannot be drawn has no line to be seen by.
                if let &[alone] = run.as_slice()
                    && frame.contains(alone)
                {
                    scene.disc(alone, width, ink);
                }
                if style.shape == SeriesShape::Steps {
                    run = stairs(&run);
                }
                for piece in frame.clip_path(&run) {
                    occupied.path(&piece);
                    if self.panel.field.is_some() {
                        scene.line(piece.clone(), width + 1.6, RIM);
                    }
                    scene.dashed_line(piece, width, ink, style.dash);
                }
            }
        }
        self.draw_whiskers(scene, frame, series, &places, occupied);
        if matches!(style.shape, SeriesShape::Points | SeriesShape::LineAndPoints) {
            for (number, at) in places.iter().enumerate() {
                let Some(at) = at.filter(|&at| frame.contains(at)) else { continue };
                let ink = Ink { alpha, ..self.ink_of(series, number) };
                if !series.values.is_empty() && !matches!(style.marker, Marker::Cross | Marker::Plus) {
                    // The bright end of the colours is pale on white.
                    scene.marker(style.marker, at, radius + 1.3, Ink::grey(70));
                    scene.marker(style.marker, at, radius + 0.5, ink);
                } else {
                    if self.panel.field.is_some() {
                        scene.marker(style.marker, at, radius + 1.2, RIM);
                    }
                    scene.marker(style.marker, at, radius, ink);
                }
                occupied.point(at);
            }
        }
        let mut seen = places.iter().flatten().copied().filter(|&at| frame.contains(at));
        if let Some((first, last)) = style.ends
            && let Some(start) = seen.next()
        {
            let end = seen.next_back().unwrap_or(start);
            for (marker, at) in [(first, start), (last, end)] {
                scene.marker(marker, at, 2.1 * POINT_RADIUS, Ink::grey(255));
                scene.marker(marker, at, 1.7 * POINT_RADIUS, Ink::solid(style.colour.rgb()));
                occupied.point(at);
            }
        }
    }

    /// Where the points of a series lie: for bars the middle of their ends.
    fn places(&self, frame: Frame, index: usize, series: &Series) -> Vec<Option<Place>> {
        let span = self.span_of(series);
        let shift = match self.bar_slot(frame, index) {
            Some((left, width)) => left + width / 2.0,
            None => 0.0,
        };
        let place = |&(x, y): &(f64, f64)| -> Option<Place> {
            let (x, y) = (self.x.fraction(x)?, span.fraction(y)?);
            Some((frame.left + x * frame.width() + shift, frame.bottom - y * frame.height()))
        };
        series.points.iter().map(place).collect()
    }

    /// Where the bars of a series begin, measured from their point, and how wide they are; `None` if it has no bars.
    fn bar_slot(&self, frame: Frame, index: usize) -> Option<(f64, f64)> {
        let bars = |series: &Series| series.style.shape == SeriesShape::Bars;
        if !bars(&self.panel.series[index]) {
            return None;
        }
        let before = self.panel.series[..index].iter().filter(|s| bars(s)).count() as f64;
        let count = self.panel.series.iter().filter(|s| bars(s)).count() as f64;
        let apart = if self.panel.x.categories.is_empty() {
            let places = self.panel.series.iter().filter(|s| bars(s)).flat_map(|s| &s.points);
            let gap = smallest_gap(places.filter_map(|p| self.x.fraction(p.0)));
            gap.unwrap_or(0.25) * frame.width()
        } else {
            frame.width() / self.panel.x.categories.len() as f64
        };
        let width = BAR_SHARE * apart / count;
        Some(((before - count / 2.0) * width, width))
    }

    fn draw_bars(&self, scene: &mut Scene, frame: Frame) {
        for (index, series) in self.panel.series.iter().enumerate() {
            let Some((_, width)) = self.bar_slot(frame, index) else { continue };
            let span = self.span_of(series);
            let foot = frame.bottom - span.fraction(0.0).unwrap_or(0.0) * frame.height();
            for (number, place) in self.places(frame, index, series).into_iter().enumerate() {
                let Some((x, y)) = place else { continue };
                let (left, right) = (x - 0.47 * width, x + 0.47 * width);
                let corners = vec![(left, foot), (left, y), (right, y), (right, foot)];
                let ink = self.ink_of(series, number);
                scene.area(frame.clip_area(corners.clone()), Ink { alpha: BAR_ALPHA, ..ink });
                for piece in frame.clip_path(&corners) {
                    scene.line(piece, 1.2, ink);
                }
            }
        }
    }

    fn draw_whiskers(
        &self,
        scene: &mut Scene,
        frame: Frame,
        series: &Series,
        places: &[Option<Place>],
        occupied: &mut Occupied,
    ) {
        let span = self.span_of(series);
        let bars = series.style.shape == SeriesShape::Bars;
        let cap = 3.5;
        for (number, place) in places.iter().enumerate() {
            let Some((x, y)) = *place else { continue };
            let ink = if bars { TEXT } else { self.ink_of(series, number) };
            let mut draw = |path: &[Place]| {
                for piece in frame.clip_path(path) {
                    occupied.path(&piece);
                    scene.line(piece, 1.3, ink);
                }
            };
            if let Some(&(low, high)) = series.whiskers.get(number)
                && let Some((low, high)) = beyond(span, low).zip(beyond(span, high))
            {
                let (low, high) = (frame.bottom - low * frame.height(), frame.bottom - high * frame.height());
                draw(&[(x, low), (x, high)]);
                draw(&[(x - cap, low), (x + cap, low)]);
                draw(&[(x - cap, high), (x + cap, high)]);
            }
            if let Some(&(low, high)) = series.x_whiskers.get(number)
                && let Some((low, high)) = beyond(&self.x, low).zip(beyond(&self.x, high))
            {
                let (low, high) = (frame.left + low * frame.width(), frame.left + high * frame.width());
                draw(&[(low, y), (high, y)]);
                draw(&[(low, y - cap), (low, y + cap)]);
                draw(&[(high, y - cap), (high, y + cap)]);
            }
        }
    }

    /// The lines only: their names come last, where there is room.
    fn draw_levels(&self, scene: &mut Scene, frame: Frame) {
        for level in &self.panel.levels {
            if self.y.misfit(level.value).is_none() {
                let y = place_y(&self.y, frame, level.value);
                scene.dashed_line(vec![(frame.left, y), (frame.right, y)], 1.1, Ink::grey(110), Dash::Dashed);
            }
        }
    }

    /// Names of levels, then texts beside points.
    fn draw_labels(&self, scene: &mut Scene, frame: Frame, occupied: &mut Occupied) {
        if let Some((field, span)) = self.panel.field.as_ref().zip(self.colours.as_ref()) {
            field::labels(scene, field, span, &self.colour_ticks, (&self.x, &self.y), frame, occupied);
        }
        for level in &self.panel.levels {
            if self.y.misfit(level.value).is_none() {
                let y = place_y(&self.y, frame, level.value);
                occupied.path(&[(frame.left, y), (frame.right, y)]);
                occupied.along(scene, &level.label, y, Ink::grey(70));
            }
        }
        for (index, series) in self.panel.series.iter().enumerate() {
            let places = self.places(frame, index, series);
            for (at, label) in places.into_iter().zip(&series.labels) {
                if let Some(at) = at.filter(|&at| frame.contains(at) && !label.is_empty()) {
                    // The series' colour, darkened: small letters need more contrast than lines.
                    let dark = |c: u8| (f64::from(c) * 0.7) as u8;
                    let (r, g, b) = series.style.colour.rgb();
                    let ink =
                        if series.values.is_empty() { Ink::solid((dark(r), dark(g), dark(b))) } else { TEXT };
                    occupied.beside(scene, label, at, ink, self.panel.field.as_ref().map(|_| RIM));
                }
            }
        }
    }

    fn draw_colour_bar(&self, scene: &mut Scene, frame: Frame) {
        let Some((span, axis)) = self.colours.as_ref().zip(self.panel.colours.as_ref()) else { return };
        let left = frame.right + self.right_axis() + COLOUR_BAR_GAP;
        let right = left + COLOUR_BAR;
        // As many as the map has, so that they are the same colours.
        let map = self.panel.field.as_ref().is_some_and(|field| field.look == FieldLook::Map);
        let pieces = if map { field::BANDS } else { 96 };
        for piece in 0..pieces {
            // Each reaches to the top, so that no seam shows between neighbours.
            let y = frame.bottom - f64::from(piece) / f64::from(pieces) * frame.height();
            let colour = Colour::scale((f64::from(piece) + 0.5) / f64::from(pieces));
            let corners = vec![(left, y), (right, y), (right, frame.top), (left, frame.top)];
            scene.area(corners, Ink::solid(colour.rgb()));
        }
        let Frame { top, bottom, .. } = frame;
        scene.line(vec![(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], 1.0, FRAME);
        for (value, label) in &self.colour_ticks.labelled {
            let y = place_y(span, frame, *value);
            scene.line(vec![(right, y), (right + TICK_LENGTH, y)], 1.0, FRAME);
            let at = (right + TICK_LENGTH + 4.0, y);
            scene.text(Text::new(label.clone(), at, TICK_SIZE, Anchor::Start, TEXT));
        }
        let at = (frame.right + self.right() - 9.0, f64::midpoint(top, bottom));
        let mut label = Text::new(axis.label.clone(), at, LABEL_SIZE, Anchor::Middle, TEXT);
        label.upwards = true;
        scene.text(fitted(label, frame.height() + 30.0));
    }

    /// The colour of a point: by its value if the panel says what values mean.
    fn ink_of(&self, series: &Series, number: usize) -> Ink {
        let Some(span) = self.colours.as_ref().filter(|_| !series.values.is_empty()) else {
            return Ink::solid(series.style.colour.rgb());
        };
        let value = series.values.get(number).copied().unwrap_or(f64::NAN);
        let colour = span.fraction(value).map_or(Colour::Grey, Colour::scale);
        Ink::solid(colour.rgb())
    }

    fn span_of(&self, series: &Series) -> &Span {
        if series.side == AxisSide::Right { self.y2.as_ref().unwrap_or(&self.y) } else { &self.y }
    }

    /// With two axes, each is written in the colour of its first series that has a name.
    fn axis_ink(&self, side: AxisSide) -> Ink {
        let first = self.panel.series.iter().find(|series| series.side == side && !series.name.is_empty());
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

pub(super) fn place_x(span: &Span, frame: Frame, value: f64) -> f64 {
    frame.left + span.fraction(value).unwrap_or(0.0) * frame.width()
}

pub(super) fn place_y(span: &Span, frame: Frame, value: f64) -> f64 {
    frame.bottom - span.fraction(value).unwrap_or(0.0) * frame.height()
}

/// Where an end of an interval lies: beyond the axis it is outside of the frame; only NaN is nowhere.
fn beyond(span: &Span, value: f64) -> Option<f64> {
    match span.fraction(value) {
        Some(fraction) => Some(fraction),
        None if value.is_nan() => None,
        None if value > 0.0 => Some(1e4),
        None => Some(-1e4),
    }
}

/// The corners of steps through some points.
fn stairs(run: &[Place]) -> Vec<Place> {
    let mut path = Vec::with_capacity(2 * run.len());
    for (index, &(x, y)) in run.iter().enumerate() {
        if index > 0 {
            path.push((x, run[index - 1].1));
        }
        path.push((x, y));
    }
    path
}

/// The least distance between two different places.
fn smallest_gap(places: impl Iterator<Item = f64>) -> Option<f64> {
    let mut places: Vec<f64> = places.filter(|x| x.is_finite()).collect();
    places.sort_by(f64::total_cmp);
    places.windows(2).map(|pair| pair[1] - pair[0]).filter(|gap| *gap > 0.0).min_by(f64::total_cmp)
}

/// The outer edges of the first and the last bar on an axis of numbers.
fn bar_ends(panel: &Panel) -> Vec<f64> {
    let bars = panel.series.iter().filter(|s| s.style.shape == SeriesShape::Bars);
    let places: Vec<f64> = bars.flat_map(|s| &s.points).map(|p| p.0).filter(|x| x.is_finite()).collect();
    let (low, high) = (places.iter().copied().reduce(f64::min), places.iter().copied().reduce(f64::max));
    let Some((low, high)) = low.zip(high) else { return Vec::new() };
    if panel.x.scale == Scale::Log10 {
        let gap = smallest_gap(places.iter().filter(|x| **x > 0.0).map(|x| x.log10())).unwrap_or(0.6);
        let half = 10_f64.powf(gap / 2.0);
        return vec![low / half, high * half];
    }
    let half = smallest_gap(places.into_iter()).unwrap_or(1.0) / 2.0;
    vec![low - half, high + half]
}

/// Bars that all rise stand on the frame itself.
fn stand_on_zero<'a>(span: &mut Span, axis: &Axis, mut series: impl Iterator<Item = &'a Series>) {
    let bars = series.any(|s| s.style.shape == SeriesShape::Bars && s.points.iter().any(|p| p.1.is_finite()));
    let chosen = axis.range.is_some() || !axis.categories.is_empty() || axis.scale == Scale::Log10;
    if bars && !chosen && span.low < 0.0 && span.low > -0.1 * (span.high - span.low) {
        span.low = 0.0;
    } else if bars && !chosen && span.high > 0.0 && span.high < 0.1 * (span.high - span.low) {
        span.high = 0.0;
    }
}

fn xs(series: &Series) -> impl Iterator<Item = f64> + '_ {
    let whiskers = series.x_whiskers.iter().flat_map(|w| [w.0, w.1]);
    series.points.iter().map(|p| p.0).chain(series.band.iter().flatten().map(|b| b.0)).chain(whiskers)
}

fn ys(series: &Series) -> impl Iterator<Item = f64> + '_ {
    let band = series.band.iter().flatten().flat_map(|b| [b.1, b.2]);
    let whiskers = series.whiskers.iter().flat_map(|w| [w.0, w.1]);
    let bars = series.style.shape == SeriesShape::Bars && series.points.iter().any(|p| p.1.is_finite());
    series.points.iter().map(|p| p.1).chain(band).chain(whiskers).chain(bars.then_some(0.0))
}

fn mark_places(panel: &Panel) -> impl Iterator<Item = f64> + '_ {
    panel.marks.iter().map(|mark| mark.x)
}

fn widest(ticks: &Ticks) -> f64 {
    ticks.labelled.iter().map(|tick| font::width(&tick.1, TICK_SIZE, false)).fold(0.0, f64::max)
}
