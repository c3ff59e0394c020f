//! Texts inside the frame: each is put where it hides no point and no other text, as far as there is room.

use super::clip::Frame;
use super::scene::{Anchor, Ink, Place, Scene, Text};

const SIZE: f64 = 10.0;

/// Half the height of a text, with a little air.
const HALF_HEIGHT: f64 = 6.0;

/// Distances from its point at which a text is tried.
const AWAY: [f64; 3] = [6.0, 15.0, 26.0];

/// What is drawn already and is better not covered.
pub(super) struct Occupied {
    frame: Frame,
    /// Places with the cost of covering each.
    points: Vec<(Place, f64)>,
    texts: Vec<Frame>,
}

impl Occupied {
    pub(super) fn new(frame: Frame) -> Self {
        Self { frame, points: Vec::new(), texts: Vec::new() }
    }

    /// A marker: hidden, a value could not be read.
    pub(super) fn point(&mut self, at: Place) {
        self.points.push((at, 10.0));
    }

    /// A line: a text across it can still be read.
    pub(super) fn path(&mut self, path: &[Place]) {
        for pair in path.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let steps = ((to.0 - from.0).hypot(to.1 - from.1) / 8.0).ceil().min(500.0);
            for step in 0..=steps as usize {
                let t = step as f64 / steps.max(1.0);
                self.points.push(((from.0 + t * (to.0 - from.0), from.1 + t * (to.1 - from.1)), 1.0));
            }
        }
    }

    fn cost(&self, text: Frame) -> f64 {
        let out = (self.frame.left - text.left).max(0.0)
            + (text.right - self.frame.right).max(0.0)
            + (self.frame.top - text.top).max(0.0)
            + (text.bottom - self.frame.bottom).max(0.0);
        let inside = |&&((x, y), _): &&(Place, f64)| {
            (text.left - 2.5..=text.right + 2.5).contains(&x)
                && (text.top - 1.0..=text.bottom + 1.0).contains(&y)
        };
        let hidden: f64 = self.points.iter().filter(inside).map(|p| p.1).sum();
        let crossed = self.texts.iter().filter(|other| {
            text.left < other.right
                && other.left < text.right
                && text.top < other.bottom
                && other.top < text.bottom
        });
        out * 20.0 + hidden + 100.0 * crossed.count() as f64
    }

    /// The cheapest of some places (a text's left edge and middle height), the first of equals.
    fn best(&self, width: f64, places: &[Place]) -> Option<(usize, Frame)> {
        let boxes = places.iter().map(|&(x, y)| Frame {
            left: x,
            top: y - HALF_HEIGHT,
            right: x + width,
            bottom: y + HALF_HEIGHT,
        });
        let costs: Vec<(f64, Frame)> = boxes.map(|frame| (self.cost(frame), frame)).collect();
        let best = costs.iter().enumerate().min_by(|a, b| a.1.0.total_cmp(&b.1.0))?;
        Some((best.0, best.1.1))
    }

    /// Writes `words` beside the point `at`; from further away a hair line leads back to it.
    /// `ground`: a patch below it, where it stands on colours.
    pub(super) fn beside(
        &mut self,
        scene: &mut Scene,
        words: &str,
        at: Place,
        ink: Ink,
        ground: Option<Ink>,
    ) {
        let text = Text::new(words, at, SIZE, Anchor::Start, ink);
        let width = text.width();
        let mut places = Vec::new();
        for away in AWAY {
            // Signs are larger on colours, and the patch must not cover them.
            let away = if ground.is_some() { away + 5.0 } else { away };
            let slant = 0.75 * away;
            let (right, left, middle) = (at.0 + away, at.0 - away - width, at.0 - width / 2.0);
            let (above, below) = (at.1 - away - HALF_HEIGHT + 1.0, at.1 + away + HALF_HEIGHT - 1.0);
            places.extend([(right, at.1), (left, at.1), (middle, above), (middle, below)]);
            for y in [at.1 - slant - 2.0, at.1 + slant + 2.0] {
                places.extend([(at.0 + slant, y), (at.0 - slant - width, y)]);
            }
        }
        let Some((number, frame)) = self.best(width, &places) else { return };
        let middle = f64::midpoint(frame.top, frame.bottom);
        if number >= places.len() / AWAY.len() {
            let end = (at.0.clamp(frame.left, frame.right), at.1.clamp(frame.top + 1.5, frame.bottom - 1.5));
            scene.line(vec![at, end], 0.6, Ink::grey(130));
        }
        if let Some(ground) = ground {
            let Frame { left, top, right, bottom } = frame;
            scene.area(
                vec![(left - 1.5, top), (right + 1.5, top), (right + 1.5, bottom), (left - 1.5, bottom)],
                ground,
            );
        }
        scene.text(Text { at: (frame.left, middle), ..text });
        self.texts.push(frame);
    }

    /// Writes `words` on a line, centred at the cheapest of some places, over a patch of the colour `ground`.
    pub(super) fn on(&mut self, scene: &mut Scene, words: &str, places: &[Place], ground: Ink, ink: Ink) {
        let text = Text::new(words, (0.0, 0.0), SIZE, Anchor::Start, ink);
        let width = text.width();
        let lefts: Vec<Place> = places.iter().map(|&(x, y)| (x - width / 2.0, y)).collect();
        let Some((_, frame)) = self.best(width, &lefts) else { return };
        // Better none than one that hides another.
        if self.cost(frame) >= 10.0 {
            return;
        }
        let Frame { left, top, right, bottom } = frame;
        scene.area(
            vec![(left - 1.5, top), (right + 1.5, top), (right + 1.5, bottom), (left - 1.5, bottom)],
            ground,
        );
        scene.text(Text { at: (left, f64::midpoint(top, bottom)), ..text });
        self.texts.push(Frame { left: left - 8.0, top: top - 4.0, right: right + 8.0, bottom: bottom + 4.0 });
    }

    /// Names a level line at height `y`, at one of its ends or in its middle, above or below it.
    pub(super) fn along(&mut self, scene: &mut Scene, words: &str, y: f64, ink: Ink) {
        let text = Text::new(words, (0.0, y), SIZE, Anchor::Start, ink);
        let width = text.width();
        let (left, right) = (self.frame.left + 5.0, self.frame.right - 5.0 - width);
        let places: Vec<Place> = [right, left, f64::midpoint(left, right)]
            .into_iter()
            .flat_map(|x| [(x, y - HALF_HEIGHT - 2.0), (x, y + HALF_HEIGHT + 2.0)])
            .collect();
        let Some((_, frame)) = self.best(width, &places) else { return };
        let Frame { left, top, right, bottom } = frame;
        let backdrop = vec![(left - 2., top), (right + 2., top), (right + 2., bottom), (left - 2., bottom)];
        scene.area(backdrop, Ink { rgb: (255, 255, 255), alpha: 0.7 });
        scene.text(Text { at: (left, f64::midpoint(top, bottom)), ..text });
        self.texts.push(frame);
    }
}
