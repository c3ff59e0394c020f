//! A figure as simple shapes at coordinates, in SVG units with y downwards. Both painters draw exactly this.

use super::describe::{Dash, Marker};
use super::font;

pub(super) type Place = (f64, f64);

/// A colour with opacity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ink {
    pub(super) rgb: (u8, u8, u8),
    pub(super) alpha: f64,
}

impl Ink {
    pub(super) const fn solid(rgb: (u8, u8, u8)) -> Self {
        Self { rgb, alpha: 1.0 }
    }

    pub(super) const fn grey(level: u8) -> Self {
        Self::solid((level, level, level))
    }
}

/// Which end of a text its place fixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A line of text, its x-height centred on `at`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Text {
    pub(super) words: String,
    pub(super) at: Place,
    pub(super) size: f64,
    pub(super) bold: bool,
    pub(super) anchor: Anchor,
    /// Read from bottom to top.
    pub(super) upwards: bool,
    pub(super) ink: Ink,
}

impl Text {
    pub(super) fn new(words: impl Into<String>, at: Place, size: f64, anchor: Anchor, ink: Ink) -> Self {
        Self { words: words.into(), at, size, bold: false, anchor, upwards: false, ink }
    }

    pub(super) fn width(&self) -> f64 {
        font::width(&self.words, self.size, self.bold)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    Line {
        path: Vec<Place>,
        width: f64,
        ink: Ink,
    },
    Area {
        path: Vec<Place>,
        ink: Ink,
    },
    /// What an odd number of the closed rings goes round: areas with holes.
    Region {
        rings: Vec<Vec<Place>>,
        ink: Ink,
    },
    Disc {
        at: Place,
        radius: f64,
        ink: Ink,
    },
    Text(Text),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scene {
    pub(super) size: (f64, f64),
    pub(super) shapes: Vec<Shape>,
}

impl Scene {
    pub(super) fn line(&mut self, path: Vec<Place>, width: f64, ink: Ink) {
        if path.len() > 1 {
            self.shapes.push(Shape::Line { path, width, ink });
        }
    }

    pub(super) fn dashed_line(&mut self, path: Vec<Place>, width: f64, ink: Ink, dash: Dash) {
        match dash {
            Dash::Solid => self.line(path, width, ink),
            Dash::Dashed => self.strokes(&path, width, ink, &[6.0, 3.5]),
            Dash::Dotted => self.strokes(&path, width, ink, &[1.6, 2.4]),
            Dash::DashDotted => self.strokes(&path, width, ink, &[7.0, 2.6, 1.6, 2.6]),
        }
    }

    pub(super) fn area(&mut self, path: Vec<Place>, ink: Ink) {
        if path.len() > 2 {
            self.shapes.push(Shape::Area { path, ink });
        }
    }

    pub(super) fn region(&mut self, rings: Vec<Vec<Place>>, ink: Ink) {
        let rings: Vec<Vec<Place>> = rings.into_iter().filter(|ring| ring.len() > 2).collect();
        if !rings.is_empty() {
            self.shapes.push(Shape::Region { rings, ink });
        }
    }

    pub(super) fn disc(&mut self, at: Place, radius: f64, ink: Ink) {
        self.shapes.push(Shape::Disc { at, radius, ink });
    }

    /// A sign about as heavy as a disc of `radius`.
    pub(super) fn marker(&mut self, marker: Marker, (x, y): Place, radius: f64, ink: Ink) {
        let round = |corners: &[(f64, f64)], size: f64| -> Vec<Place> {
            corners.iter().map(|&(dx, dy)| (x + dx * size, y + dy * size)).collect()
        };
        let r = radius;
        match marker {
            Marker::Circle => self.disc((x, y), r, ink),
            Marker::Square => self.area(round(&[(-1., -1.), (1., -1.), (1., 1.), (-1., 1.)], 0.9 * r), ink),
            Marker::Diamond => self.area(round(&[(0., -1.), (1., 0.), (0., 1.), (-1., 0.)], 1.3 * r), ink),
            Marker::TriangleUp => {
                self.area(round(&[(0., -1.), (0.95, 0.72), (-0.95, 0.72)], 1.25 * r), ink);
            }
            Marker::TriangleDown => {
                self.area(round(&[(0., 1.), (-0.95, -0.72), (0.95, -0.72)], 1.25 * r), ink);
            }
            Marker::Star => {
                let corners: Vec<(f64, f64)> = (0..10)
                    .map(|i| {
                        let (sin, cos) = (f64::from(i) * std::f64::consts::PI / 5.0).sin_cos();
                        let length = if i % 2 == 0 { 1.0 } else { 0.42 };
                        (length * sin, -length * cos)
                    })
                    .collect();
                self.area(round(&corners, 1.6 * r), ink);
            }
            Marker::Cross => {
                for tip in [(1., 1.), (1., -1.)] {
                    let ends = round(&[(-tip.0, -tip.1), tip], 0.95 * r);
                    self.line(ends, 0.6 * r, ink);
                }
            }
            Marker::Plus => {
                for tip in [(1., 0.), (0., 1.)] {
                    let ends = round(&[(-tip.0, -tip.1), tip], 1.25 * r);
                    self.line(ends, 0.6 * r, ink);
                }
            }
        }
    }

    pub(super) fn text(&mut self, text: Text) {
        if !text.words.is_empty() {
            self.shapes.push(Shape::Text(text));
        }
    }

    /// Cuts a path into strokes: `pattern` is the length of a stroke, of a gap, of a stroke, … (plotters' backends know
    /// no dashes).
    fn strokes(&mut self, path: &[Place], width: f64, ink: Ink, pattern: &[f64]) {
        let Some(&first) = path.first() else { return };
        let (mut piece, mut left) = (0, pattern[0]);
        let mut stroke = vec![first];
        let mut from = first;
        for &to in &path[1..] {
            loop {
                let drawing = piece % 2 == 0;
                let length = (to.0 - from.0).hypot(to.1 - from.1);
                if length <= left {
                    left -= length;
                    from = to;
                    if drawing {
                        stroke.push(to);
                    }
                    break;
                }
                let t = left / length;
                from = (from.0 + t * (to.0 - from.0), from.1 + t * (to.1 - from.1));
                if drawing {
                    stroke.push(from);
                    self.line(std::mem::take(&mut stroke), width, ink);
                } else {
                    stroke = vec![from];
                }
                piece = (piece + 1) % pattern.len();
                left = pattern[piece];
            }
        }
        if piece % 2 == 0 {
            self.line(stroke, width, ink);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strokes_follow_the_path_round_corners() {
        let mut scene = Scene { size: (100.0, 100.0), shapes: Vec::new() };
        scene.strokes(&[(0.0, 0.0), (5.0, 0.0), (5.0, 10.0)], 1.0, Ink::grey(0), &[6.0, 3.0]);
        let paths: Vec<_> = scene
            .shapes
            .iter()
            .map(|shape| match shape {
                Shape::Line { path, .. } => path.clone(),
                _ => panic!("only lines"),
            })
            .collect();
        assert_eq!(paths, [vec![(0.0, 0.0), (5.0, 0.0), (5.0, 1.0)], vec![(5.0, 4.0), (5.0, 10.0)]]);
    }
}
