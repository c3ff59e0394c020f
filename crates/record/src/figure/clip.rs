//! Cutting lines and areas at a panel's frame.

use super::scene::Place;

/// A rectangle with y downwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Frame {
    pub(super) fn width(&self) -> f64 {
        self.right - self.left
    }

    pub(super) fn height(&self) -> f64 {
        self.bottom - self.top
    }

    pub(super) fn contains(&self, (x, y): Place) -> bool {
        // Half a unit of tolerance: a value on the limit belongs to the plot.
        (self.left - 0.5..=self.right + 0.5).contains(&x) && (self.top - 0.5..=self.bottom + 0.5).contains(&y)
    }

    /// The pieces of a path inside the frame (Liang and Barsky, segment by segment).
    pub(super) fn clip_path(&self, path: &[Place]) -> Vec<Vec<Place>> {
        let mut pieces: Vec<Vec<Place>> = Vec::new();
        let mut joined = false;
        for pair in path.windows(2) {
            let Some((from, to, leaves)) = self.clip_segment(pair[0], pair[1]) else {
                joined = false;
                continue;
            };
            match pieces.last_mut() {
                Some(piece) if joined => piece.push(to),
                _ => pieces.push(vec![from, to]),
            }
            joined = !leaves;
        }
        pieces
    }

    fn clip_segment(&self, from: Place, to: Place) -> Option<(Place, Place, bool)> {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let (mut start, mut end) = (0.0_f64, 1.0_f64);
        for (direction, room) in [
            (-dx, from.0 - self.left),
            (dx, self.right - from.0),
            (-dy, from.1 - self.top),
            (dy, self.bottom - from.1),
        ] {
            if direction == 0.0 {
                if room < 0.0 {
                    return None;
                }
            } else if direction < 0.0 {
                start = start.max(room / direction);
            } else {
                end = end.min(room / direction);
            }
        }
        let at = |t: f64| (from.0 + t * dx, from.1 + t * dy);
        (start <= end).then(|| (at(start), at(end), end < 1.0))
    }

    /// The part of an area inside the frame (Sutherland and Hodgman, side by side).
    pub(super) fn clip_area(&self, path: Vec<Place>) -> Vec<Place> {
        let path = cut(path, |p| p.0 - self.left);
        let path = cut(path, |p| self.right - p.0);
        let path = cut(path, |p| p.1 - self.top);
        cut(path, |p| self.bottom - p.1)
    }
}

/// Keeps the part of an area where `inside` is not negative; `inside` is linear.
fn cut(path: Vec<Place>, inside: impl Fn(Place) -> f64) -> Vec<Place> {
    let Some(&last) = path.last() else { return path };
    let mut kept = Vec::with_capacity(path.len() + 4);
    let mut previous = last;
    for point in path {
        let (a, b) = (inside(previous), inside(point));
        if (a < 0.0) != (b < 0.0) {
            let t = a / (a - b);
            kept.push((previous.0 + t * (point.0 - previous.0), previous.1 + t * (point.1 - previous.1)));
        }
        if b >= 0.0 {
            kept.push(point);
        }
        previous = point;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Frame = Frame { left: 0.0, top: 0.0, right: 10.0, bottom: 10.0 };

    #[test]
    fn a_path_that_leaves_and_returns_is_two_pieces() {
        let pieces = FRAME.clip_path(&[(1.0, 5.0), (3.0, 5.0), (5.0, -5.0), (7.0, 5.0), (8.0, 5.0)]);
        assert_eq!(
            pieces,
            [vec![(1.0, 5.0), (3.0, 5.0), (4.0, 0.0)], vec![(6.0, 0.0), (7.0, 5.0), (8.0, 5.0)]]
        );
        assert!(FRAME.clip_path(&[(-5.0, -1.0), (20.0, -1.0)]).is_empty());
    }

    #[test]
    fn an_area_is_cut_at_the_frame() {
        let square = vec![(-5.0, 2.0), (5.0, 2.0), (5.0, 4.0), (-5.0, 4.0)];
        let mut cut = FRAME.clip_area(square);
        cut.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert_eq!(cut, [(0.0, 2.0), (0.0, 4.0), (5.0, 2.0), (5.0, 4.0)]);
        assert!(FRAME.clip_area(vec![(-5.0, 2.0), (-4.0, 2.0), (-5.0, 4.0)]).is_empty());
    }
}
