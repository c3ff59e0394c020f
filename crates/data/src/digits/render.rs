//! From a skeleton to 28x28 grey values: points, curve, shear and warp, framing, ink.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::skeletons::FORMS;
use super::writer::{MAX_POINTS, Warp, Writer, bell};

/// Height and width of an image, in pixels.
pub(super) const SIDE: usize = 28;
/// The ink fits into a box of this side (as in MNIST), in pixels.
const BOX: f32 = 20.0;
/// Straight pieces between two points of a skeleton.
const PIECES: usize = 5;
/// Standard deviation of the framing, in pixels: no centring of real scans is exact.
const SHIFT: f32 = 0.7;
/// Size of each term of the warp that differs from one digit to the next, in boxes.
const WARP: f32 = 0.048;

/// A point of the pen's path; `radius` is half the pen's width there, in pixels.
#[derive(Clone, Copy)]
struct Dot {
    x: f32,
    y: f32,
    radius: f32,
}

/// Writes `digit` once in the hand of `writer`: grey values 0 (paper) to 255 (ink), row by row.
pub(super) fn draw(writer: &Writer, digit: usize, rng: &mut ChaCha8Rng) -> [u8; SIDE * SIDE] {
    let mut strokes = path(writer, digit, rng);
    frame(&mut strokes, (SHIFT * bell(rng), SHIFT * bell(rng)));
    ink(&strokes, writer, rng)
}

/// The path of the pen in the digit's own box, centred at (0, 0), slanted and warped.
fn path(writer: &Writer, digit: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<Dot>> {
    let form = writer.form(digit, rng);
    let habit = &writer.habits[digit];
    let warp = Warp::random(WARP, rng);
    let slant = writer.slant + 0.12 * bell(rng);
    let turn = 0.10 * bell(rng);
    // The rotation by the angle whose tangent is `turn`, without sin and cos.
    let cosine = 1.0 / (1.0 + turn * turn).sqrt();
    let sine = turn * cosine;
    let aspect = writer.aspect * (1.0 + 0.12 * bell(rng));
    let radius = (0.5 * writer.pen * (1.0 + 0.10 * bell(rng))).max(0.6);
    let (level, trend, swell) = (bell(rng), bell(rng), bell(rng));

    let mut taken = 0;
    let mut strokes = Vec::new();
    for skeleton in FORMS[digit][form].strokes {
        let mut points: Vec<(f32, f32)> = Vec::with_capacity(skeleton.len());
        for (index, &(x, y)) in skeleton.iter().enumerate() {
            // A corner is one point given twice: both halves move together.
            if index > 0 && skeleton[index - 1] == (x, y) {
                points.push(points[index - 1]);
                continue;
            }
            let end = index == 0 || index + 1 == skeleton.len();
            let jitter = if end { 1.6 * writer.jitter } else { writer.jitter };
            let (dx, dy) = habit.shifts[(taken + index) % MAX_POINTS];
            points.push((x - 0.5 + dx + jitter * bell(rng), y - 0.5 + dy + jitter * bell(rng)));
        }
        taken += skeleton.len();

        let mut curve = curve(&points);
        let passes = (writer.roundness * 4.0) as usize;
        (0..passes).for_each(|_| smooth(&mut curve));
        let last = curve.len().max(2) - 1;
        strokes.push(
            curve
                .iter()
                .enumerate()
                .map(|(index, &(x, y))| {
                    let (x, y) = habit.warp.apply(x, y);
                    let (x, y) = warp.apply(x, y);
                    let x = aspect * x - slant * y;
                    let (x, y) = (cosine * x - sine * y, sine * x + cosine * y);
                    let along = 2.0 * index as f32 / last as f32 - 1.0;
                    let press = 0.3 * level + 0.5 * trend * along + 0.5 * swell * (0.5 - along * along);
                    Dot { x, y, radius: radius * (1.0 + writer.pressure * press).clamp(0.55, 1.6) }
                })
                .collect(),
        );
    }
    strokes
}

/// The curve through the points: uniform Catmull-Rom, broken at the corners (points given twice).
fn curve(points: &[(f32, f32)]) -> Vec<(f32, f32)> {
    let mut curve = vec![points[0]];
    for section in points.chunk_by(|a, b| a != b) {
        for i in 1..section.len() {
            let (from, to) = (section[i - 1], section[i]);
            let before = if i >= 2 { section[i - 2] } else { (2.0 * from.0 - to.0, 2.0 * from.1 - to.1) };
            let after = section.get(i + 1).copied().unwrap_or((2.0 * to.0 - from.0, 2.0 * to.1 - from.1));
            for piece in 1..=PIECES {
                let t = piece as f32 / PIECES as f32;
                let x = catmull_rom([before.0, from.0, to.0, after.0], t);
                let y = catmull_rom([before.1, from.1, to.1, after.1], t);
                curve.push((x, y));
            }
        }
    }
    curve
}

/// The cubic through p₁ (at t = 0) and p₂ (at t = 1) with slopes (p₂ − p₀)/2 and (p₃ − p₁)/2 there.
fn catmull_rom(p: [f32; 4], t: f32) -> f32 {
    let slope = p[2] - p[0];
    let square = 2.0 * p[0] - 5.0 * p[1] + 4.0 * p[2] - p[3];
    let cube = 3.0 * (p[1] - p[2]) + p[3] - p[0];
    0.5 * (2.0 * p[1] + t * (slope + t * (square + t * cube)))
}

/// Moves each inner point towards its neighbours: rounds the corners off.
fn smooth(curve: &mut [(f32, f32)]) {
    let mut before = curve[0];
    for i in 1..curve.len() - 1 {
        let (here, after) = (curve[i], curve[i + 1]);
        curve[i] = (0.25 * (before.0 + after.0) + 0.5 * here.0, 0.25 * (before.1 + after.1) + 0.5 * here.1);
        before = here;
    }
}

/// Scales the path so that the ink fits the 20x20 box, and puts its centre of mass at the centre of the image
/// (as in MNIST) plus `shift`. Coordinates are pixels from then on.
fn frame(strokes: &mut [Vec<Dot>], shift: (f32, f32)) {
    let (mut low, mut high) = ((f32::MAX, f32::MAX), (f32::MIN, f32::MIN));
    let mut widest = 0.0_f32;
    for dot in strokes.iter().flatten() {
        low = (low.0.min(dot.x), low.1.min(dot.y));
        high = (high.0.max(dot.x), high.1.max(dot.y));
        widest = widest.max(dot.radius);
    }
    let scale = (BOX - 2.0 * widest) / (high.0 - low.0).max(high.1 - low.1);

    let (mut mass, mut moment) = (0.0, (0.0, 0.0));
    for stroke in strokes.iter() {
        for pair in stroke.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            let length = ((b.x - a.x) * (b.x - a.x) + (b.y - a.y) * (b.y - a.y)).sqrt();
            let ink = length * (a.radius + b.radius);
            mass += ink;
            moment = (moment.0 + ink * 0.5 * (a.x + b.x), moment.1 + ink * 0.5 * (a.y + b.y));
        }
    }
    let (cx, cy) = (moment.0 / mass, moment.1 / mass);
    for dot in strokes.iter_mut().flatten() {
        dot.x = SIDE as f32 / 2.0 + shift.0 + scale * (dot.x - cx);
        dot.y = SIDE as f32 / 2.0 + shift.1 + scale * (dot.y - cy);
    }
}

/// Draws the strokes: each pixel's ink is a soft step of its distance to the nearest stroke, with a little
/// grain.
fn ink(strokes: &[Vec<Dot>], writer: &Writer, rng: &mut ChaCha8Rng) -> [u8; SIDE * SIDE] {
    // Width of the soft edge in pixels: 1 is plain anti-aliasing, more is blur.
    let edge = 1.1 + 0.9 * rng.r#gen::<f32>();
    let mut grey = [0.0_f32; SIDE * SIDE];
    for stroke in strokes {
        for pair in stroke.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            let reach = a.radius.max(b.radius) + 0.5 * edge;
            // The casts saturate: what lies outside the image is cut off.
            let columns = (a.x.min(b.x) - reach) as usize..((a.x.max(b.x) + reach) as usize + 1).min(SIDE);
            let rows = (a.y.min(b.y) - reach) as usize..((a.y.max(b.y) + reach) as usize + 1).min(SIDE);
            let (dx, dy) = (b.x - a.x, b.y - a.y);
            let per_length = 1.0 / (dx * dx + dy * dy).max(1e-6);
            for row in rows {
                for column in columns.clone() {
                    let (px, py) = (column as f32 + 0.5 - a.x, row as f32 + 0.5 - a.y);
                    let t = ((px * dx + py * dy) * per_length).clamp(0.0, 1.0);
                    let (ex, ey) = (px - t * dx, py - t * dy);
                    let radius = a.radius + t * (b.radius - a.radius);
                    let outer = radius + 0.5 * edge;
                    let squared = ex * ex + ey * ey;
                    if squared < outer * outer {
                        let ink = ((outer - squared.sqrt()) / edge).min(1.0);
                        let cell = &mut grey[row * SIDE + column];
                        *cell = cell.max(ink);
                    }
                }
            }
        }
    }
    let mut pixels = [0; SIDE * SIDE];
    for (pixel, &ink) in pixels.iter_mut().zip(&grey) {
        if ink > 0.0 {
            // Grain is strongest at the edges of the ink, where paper shows.
            let grain = 0.25 * (rng.r#gen::<f32>() - 0.5) * (1.2 - ink);
            *pixel = (255.0 * (writer.ink * ink + grain * ink)).clamp(0.0, 255.0) as u8;
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_passes_through_its_points_and_keeps_its_corners() {
        let points = [(0.0, 0.0), (0.5, 0.4), (1.0, 0.0), (1.0, 0.0), (1.0, 1.0)];
        let curve = curve(&points);
        for point in points {
            assert!(curve.iter().any(|c| (c.0 - point.0).abs() < 1e-6 && (c.1 - point.1).abs() < 1e-6));
        }
        // After the corner the path is a straight line down.
        assert!(curve.iter().rev().take(PIECES).all(|c| (c.0 - 1.0).abs() < 1e-6));
    }

    #[test]
    fn the_frame_centres_the_mass_and_fills_the_box() {
        let dot = |x, y| Dot { x, y, radius: 1.0 };
        let mut strokes = vec![vec![dot(-0.2, -0.5), dot(-0.2, 0.5)], vec![dot(0.3, -0.5), dot(0.3, 0.5)]];
        frame(&mut strokes, (0.0, 0.0));
        let all: Vec<Dot> = strokes.concat();
        let mean = all.iter().map(|d| d.x).sum::<f32>() / 4.0;
        assert!((mean - 14.0).abs() < 1e-4);
        assert!((all[1].y - all[0].y - 18.0).abs() < 1e-4);
    }
}
