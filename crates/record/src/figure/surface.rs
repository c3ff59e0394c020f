//! A field as a surface in three dimensions, seen from the front, a little from the right and above.

use super::axis::{Span, Ticks};
use super::clip::Frame;
use super::describe::{Colour, Field};
use super::field::heights;
use super::font;
use super::panel::{FRAME, GRID, LABEL_SIZE, TEXT, TICK_SIZE, fitted};
use super::scene::{Anchor, Ink, Place, Scene, Text};

/// Turn about the vertical axis, and how far the eye stands above the horizon; radians.
const TURN: f64 = -0.6;
const ELEVATION: f64 = 0.52;
/// Height of the box; its sides are 2.
const HEIGHT: f64 = 1.2;
/// Lines of the mesh along each side, about.
const MESH: usize = 25;

/// What the three axes show.
pub(super) struct Axes<'a> {
    pub(super) x: (&'a Span, &'a str),
    pub(super) y: (&'a Span, &'a str),
    pub(super) z: (&'a Span, &'a Ticks),
}

/// From the box, x and y in -1 to 1 and z in 0 to 1, to the scene: an orthographic view.
struct View {
    middle: Place,
    scale: f64,
}

/// x, y, z in the box.
type Point = [f64; 3];

impl View {
    /// The largest that leaves room for the labels.
    fn within(frame: Frame) -> Self {
        // What stands below the frame of other panels, the ticks of the horizontal axis and its name, stands here below its edges.
        let (left, right, bottom) = (46.0, 20.0, -8.0);
        let wide = 2.0 * (TURN.cos() + TURN.sin().abs());
        let high = wide * ELEVATION.sin() + HEIGHT * ELEVATION.cos();
        let room = (frame.width() - left - right, frame.height() - bottom);
        let scale = (room.0 / wide).min(room.1 / high);
        let lower = frame.top + f64::midpoint(room.1, scale * high) - scale * wide / 2.0 * ELEVATION.sin();
        Self { middle: (frame.left + left + room.0 / 2.0, lower), scale }
    }

    fn place(&self, [x, y, z]: Point) -> Place {
        let across = x * TURN.cos() - y * TURN.sin();
        let up = away([x, y, z]) * ELEVATION.sin() + HEIGHT * z * ELEVATION.cos();
        (self.middle.0 + self.scale * across, self.middle.1 - self.scale * up)
    }
}

/// How far from the eye, on the ground.
fn away([x, y, _]: Point) -> f64 {
    x * TURN.sin() + y * TURN.cos()
}

pub(super) fn draw(scene: &mut Scene, field: &Field, axes: &Axes, frame: Frame) {
    let view = View::within(frame);
    draw_walls(scene, &view, axes, frame);
    if axes.z.0.empty {
        let middle = (f64::midpoint(frame.left, frame.right), f64::midpoint(frame.top, frame.bottom));
        scene.text(Text::new("no finite value", middle, LABEL_SIZE, Anchor::Middle, Ink::grey(110)));
        return;
    }
    draw_patches(scene, &view, field, axes);
}

/// A value's place along a side of the box.
fn side(span: &Span, value: f64) -> f64 {
    2.0 * span.fraction(value).unwrap_or(0.0) - 1.0
}

/// Floor and the two walls behind, with grid and labels.
fn draw_walls(scene: &mut Scene, view: &View, axes: &Axes, frame: Frame) {
    let mut line = |points: &[Point], width: f64, ink: Ink| {
        scene.line(points.iter().map(|&point| view.place(point)).collect(), width, ink);
    };
    let (x_ticks, y_ticks) = (axes.x.0.ticks(6), axes.y.0.ticks(6));
    for (value, _) in &x_ticks.labelled {
        let x = side(axes.x.0, *value);
        line(&[[x, -1.0, 0.0], [x, 1.0, 0.0], [x, 1.0, 1.0]], 0.8, GRID);
    }
    for (value, _) in &y_ticks.labelled {
        let y = side(axes.y.0, *value);
        line(&[[1.0, y, 0.0], [-1.0, y, 0.0], [-1.0, y, 1.0]], 0.8, GRID);
    }
    for (value, _) in &axes.z.1.labelled {
        let z = axes.z.0.fraction(*value).unwrap_or(0.0);
        line(&[[-1.0, -1.0, z], [-1.0, 1.0, z], [1.0, 1.0, z]], 0.8, GRID);
    }
    for edge in [
        [[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0]],
        [[1.0, -1.0, 0.0], [1.0, 1.0, 0.0]],
        [[-1.0, -1.0, 0.0], [-1.0, -1.0, 1.0]],
        [[-1.0, 1.0, 0.0], [-1.0, 1.0, 1.0]],
        [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]],
        [[-1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]],
        [[-1.0, 1.0, 0.0], [1.0, 1.0, 0.0]],
        [[-1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]],
        [[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
    ] {
        line(&edge, 1.0, Ink::grey(170));
    }
    for edge in [
        [[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0]],
        [[1.0, -1.0, 0.0], [1.0, 1.0, 0.0]],
        [[-1.0, -1.0, 0.0], [-1.0, -1.0, 1.0]],
    ] {
        line(&edge, 1.0, FRAME);
    }
    let mut write = |words: &str, (x, y): Place, anchor: Anchor, size: f64| {
        scene.text(Text::new(words, (x, y), size, anchor, TEXT));
    };
    for (value, label) in &x_ticks.labelled {
        let at = view.place([side(axes.x.0, *value), -1.0, 0.0]);
        write(label, (at.0 - 3.0, at.1 + 12.0), Anchor::End, TICK_SIZE);
    }
    for (value, label) in &y_ticks.labelled {
        let at = view.place([1.0, side(axes.y.0, *value), 0.0]);
        write(label, (at.0 + 6.0, at.1 + 10.0), Anchor::Start, TICK_SIZE);
    }
    for (value, label) in &axes.z.1.labelled {
        let at = view.place([-1.0, -1.0, axes.z.0.fraction(*value).unwrap_or(0.0)]);
        write(label, (at.0 - 7.0, at.1), Anchor::End, TICK_SIZE);
    }
    // Below the edges' middles, beyond their ticks.
    let widest = |ticks: &Ticks| {
        ticks.labelled.iter().map(|t| font::width(&t.1, TICK_SIZE, false)).fold(0.0, f64::max)
    };
    let (x, corner) = (view.place([0.1, -1.0, 0.0]), view.place([1.0, -1.0, 0.0]));
    let x = (x.0 - widest(&x_ticks) / 2.0, x.1 + 34.0);
    let label = Text::new(axes.x.1, x, LABEL_SIZE, Anchor::End, TEXT);
    scene.text(fitted(label, x.0 - frame.left + 30.0));
    let y = (frame.right + 8.0, corner.1 + 32.0);
    let label = Text::new(axes.y.1, y, LABEL_SIZE, Anchor::End, TEXT);
    scene.text(fitted(label, y.0 - x.0 - 12.0));
}

/// The surface's cells, the farthest first, so that the nearer ones hide them.
fn draw_patches(scene: &mut Scene, view: &View, field: &Field, axes: &Axes) {
    let heights = heights(field, axes.z.0);
    let (columns, rows) = (field.x.len(), field.y.len());
    let point = |i: usize, j: usize| -> Point {
        let height = heights[j * columns + i].clamp(0.0, 1.0);
        [side(axes.x.0, field.x[i]), side(axes.y.0, field.y[j]), height]
    };
    let mut cells: Vec<(usize, usize)> =
        (0..rows - 1).flat_map(|j| (0..columns - 1).map(move |i| (i, j))).collect();
    // Rows and columns run away from the eye: a cell hides none that stands behind it.
    cells.sort_by(|a, b| away(point(b.0, b.1)).total_cmp(&away(point(a.0, a.1))));
    let every = |count: usize| (count - 1).div_ceil(MESH).max(1);
    for (i, j) in cells {
        let corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)];
        if corners.iter().any(|&(i, j)| !field.values[j * columns + i].is_finite()) {
            continue;
        }
        let points = corners.map(|(i, j)| point(i, j));
        let places = points.map(|point| view.place(point));
        let height = points.iter().map(|point| point[2]).sum::<f64>() / 4.0;
        let shade = light(points);
        let (red, green, blue) = Colour::scale(height).rgb();
        let rgb = [red, green, blue].map(|c| (f64::from(c) * shade) as u8);
        scene.area(grown(&places), Ink::solid((rgb[0], rgb[1], rgb[2])));
        let mesh = Ink { rgb: (25, 25, 25), alpha: 0.45 };
        let mut line = |from: usize, to: usize| scene.line(vec![places[from], places[to]], 0.5, mesh);
        // The edges away from the eye, which no later cell covers; at the front the others.
        if (j + 1).is_multiple_of(every(rows)) || j + 2 == rows {
            line(3, 2);
        }
        if i.is_multiple_of(every(columns)) {
            line(0, 3);
        }
        if j == 0 {
            line(0, 1);
        }
        if i + 2 == columns {
            line(1, 2);
        }
    }
}

/// A little larger about its middle: neighbours overlap, and no seam shows.
fn grown(places: &[Place; 4]) -> Vec<Place> {
    let middle = (
        places.iter().map(|place| place.0).sum::<f64>() / 4.0,
        places.iter().map(|place| place.1).sum::<f64>() / 4.0,
    );
    let grow = |&(x, y): &Place| {
        let (dx, dy) = (x - middle.0, y - middle.1);
        let length = dx.hypot(dy).max(1e-9);
        (x + 0.35 * dx / length, y + 0.35 * dy / length)
    };
    places.iter().map(grow).collect()
}

/// Brightness of a cell under a lamp at the upper left, 0.72 to 1: enough to see its shape, too little to change its colour's meaning.
fn light([a, b, c, d]: [Point; 4]) -> f64 {
    let across = [c[0] - a[0], c[1] - a[1], HEIGHT * (c[2] - a[2])];
    let along = [d[0] - b[0], d[1] - b[1], HEIGHT * (d[2] - b[2])];
    let normal = [
        across[1] * along[2] - across[2] * along[1],
        across[2] * along[0] - across[0] * along[2],
        across[0] * along[1] - across[1] * along[0],
    ];
    let length = normal.iter().map(|n| n * n).sum::<f64>().sqrt().max(1e-12);
    let lamp = [-0.55, -0.35, 0.76];
    let cosine = normal.iter().zip(lamp).map(|(n, l)| n * l).sum::<f64>() / length;
    0.72 + 0.28 * cosine.max(0.0)
}
