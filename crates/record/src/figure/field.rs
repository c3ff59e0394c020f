//! A field as a filled contour map: bands of colour, isolines, their labels.

use contour::ContourBuilder;

use super::axis::{Span, Ticks};
use super::clip::Frame;
use super::describe::{Colour, Field, Scale};
use super::label::Occupied;
use super::panel::{place_x, place_y};
use super::scene::{Ink, Place, Scene};
use crate::{RecordError, Result};

/// Bands of colour over the whole range.
pub(super) const BANDS: u32 = 32;

const LINE_WIDTH: f64 = 0.9;
/// Shorter isolines get no label.
const LABELLED_LENGTH: f64 = 70.0;
/// Where a value is missing.
const MISSING: Ink = Ink::grey(200);

/// Refuses a field without a value for each place.
pub(super) fn check(field: &Field) -> Result<()> {
    let (columns, rows, values) = (field.x.len(), field.y.len(), field.values.len());
    if columns < 2 || rows < 2 || values != columns * rows {
        return Err(RecordError::Field { columns, rows, values });
    }
    Ok(())
}

/// Below the panel: what is not drawn as it is.
pub(super) fn notes(field: &Field, span: &Span) -> Vec<String> {
    let strange = field.values.iter().filter(|value| !value.is_finite()).count();
    let low =
        field.values.iter().filter(|value| value.is_finite() && span.fraction(**value).is_none()).count();
    let words = |text: &str, count: usize| {
        (count > 0).then(|| format!("{text}: {count} of {} points", field.values.len()))
    };
    [words("grey: not finite", strange), words("not above 0, drawn as the lowest value", low)]
        .into_iter()
        .flatten()
        .collect()
}

/// Heights on the axis, 0 to 1 within its range; those that are not finite stand at its top, where they are most often neighbours of
/// what is high.
pub(super) fn heights(field: &Field, span: &Span) -> Vec<f64> {
    let height = |value: &f64| {
        if !value.is_finite() {
            return 1.0;
        }
        span.fraction(*value).unwrap_or(0.0).clamp(-0.5, 1.5)
    };
    field.values.iter().map(height).collect()
}

/// Closed rings around everything that is at least `level` high, in the scene's coordinates. At the edge of the field they run half a
/// step outside of it.
fn rings(field: &Field, heights: &[f64], level: f64, spans: (&Span, &Span), frame: Frame) -> Vec<Vec<Place>> {
    let (columns, rows) = (field.x.len(), field.y.len());
    let lines = ContourBuilder::new(columns, rows, true).lines(heights, &[level]);
    let on = |places: &[f64], at: f64| {
        // The crate sees values in the middle of cells of length 1.
        let step = (places[places.len() - 1] - places[0]) / (places.len() - 1) as f64;
        places[0] + (at - 0.5) * step
    };
    let place =
        |x: f64, y: f64| (place_x(spans.0, frame, on(&field.x, x)), place_y(spans.1, frame, on(&field.y, y)));
    let rings = lines.into_iter().flatten().flat_map(|line| line.into_inner().0.0);
    rings.map(|ring| ring.0.into_iter().map(|at| place(at.x, at.y)).collect()).collect()
}

/// The bands: each covers all that is at least as high, so that no seams show.
pub(super) fn fill(scene: &mut Scene, field: &Field, span: &Span, spans: (&Span, &Span), frame: Frame) {
    let whole = vec![
        (frame.left, frame.top),
        (frame.right, frame.top),
        (frame.right, frame.bottom),
        (frame.left, frame.bottom),
    ];
    if span.empty {
        scene.area(whole, MISSING);
        return;
    }
    let heights = heights(field, span);
    let colour = |band: u32| Ink::solid(Colour::scale((f64::from(band) + 0.5) / f64::from(BANDS)).rgb());
    scene.area(whole, colour(0));
    for band in 1..BANDS {
        let rings = rings(field, &heights, f64::from(band) / f64::from(BANDS), spans, frame);
        scene.region(rings.into_iter().map(|ring| frame.clip_area(ring)).collect(), colour(band));
    }
    let half = |places: &[f64]| (places[1] - places[0]) / 2.0;
    let cell = |number: usize| {
        let (x, y) = (field.x[number % field.x.len()], field.y[number / field.x.len()]);
        let across = [x - half(&field.x), x + half(&field.x)].map(|x| place_x(spans.0, frame, x));
        let down = [y - half(&field.y), y + half(&field.y)].map(|y| place_y(spans.1, frame, y));
        frame.clip_area(vec![
            (across[0], down[0]),
            (across[1], down[0]),
            (across[1], down[1]),
            (across[0], down[1]),
        ])
    };
    let missing = field.values.iter().enumerate().filter(|(_, value)| !value.is_finite());
    scene.region(missing.map(|(number, _)| cell(number)).collect(), MISSING);
}

/// Readable on the colour of this height.
fn contrast(height: f64) -> (u8, u8, u8) {
    if height < 0.6 { (255, 255, 255) } else { (20, 20, 20) }
}

/// The pieces of an isoline inside the frame; what runs round the edge lies outside.
fn pieces(
    field: &Field,
    heights: &[f64],
    level: f64,
    spans: (&Span, &Span),
    frame: Frame,
) -> Vec<Vec<Place>> {
    let close = |mut ring: Vec<Place>| {
        ring.extend(ring.first().copied());
        ring
    };
    let rings = rings(field, heights, level, spans, frame).into_iter().map(close);
    let mut pieces: Vec<Vec<Place>> = rings.flat_map(|ring| frame.clip_path(&ring)).collect();
    pieces.retain(|piece| length(piece) > 2.0);
    pieces
}

/// At the colour bar's ticks, and finer ones between decades, where these are few.
pub(super) fn isolines(
    scene: &mut Scene,
    field: &Field,
    span: &Span,
    ticks: &Ticks,
    spans: (&Span, &Span),
    frame: Frame,
) {
    if span.empty {
        return;
    }
    let heights = heights(field, span);
    let between = ticks.minor.iter().filter(|_| span.scale == Scale::Log10 && ticks.labelled.len() <= 4);
    // Twos and fives: all nine would be a thicket.
    let leading = |value: f64| value / 10_f64.powf(value.log10().floor());
    let fine = between.filter(|value| [2.0, 5.0].iter().any(|m| (leading(**value) - m).abs() < 1e-6));
    let labelled = ticks.labelled.iter().map(|(value, _)| (*value, LINE_WIDTH));
    for (value, width) in labelled.chain(fine.map(|value| (*value, 0.5 * LINE_WIDTH))) {
        let Some(level) = span.fraction(value) else { continue };
        let ink = Ink { rgb: contrast(level), alpha: 0.8 };
        for piece in pieces(field, &heights, level, spans, frame) {
            scene.line(piece, width, ink);
        }
    }
}

/// The value of each isoline, on its longest piece, where it hides no point and no other text.
pub(super) fn labels(
    scene: &mut Scene,
    field: &Field,
    span: &Span,
    ticks: &Ticks,
    spans: (&Span, &Span),
    frame: Frame,
    occupied: &mut Occupied,
) {
    if span.empty {
        return;
    }
    let heights = heights(field, span);
    for (value, words) in &ticks.labelled {
        let Some(level) = span.fraction(*value) else { continue };
        let pieces = pieces(field, &heights, level, spans, frame);
        let longest = pieces.into_iter().max_by(|a, b| length(a).total_cmp(&length(b)));
        let Some(longest) = longest.filter(|piece| length(piece) > LABELLED_LENGTH) else { continue };
        // A twelfth from the frame at least, and a place every few units.
        let (dx, dy) = (frame.width() / 24.0, frame.height() / 24.0);
        let inner = Frame {
            left: frame.left + dx,
            top: frame.top + dy,
            right: frame.right - dx,
            bottom: frame.bottom - dy,
        };
        let places: Vec<Place> = longest.into_iter().filter(|&at| inner.contains(at)).collect();
        let ground = Ink::solid(Colour::scale(level).rgb());
        occupied.on(scene, words, &places, ground, Ink::solid(contrast(level)));
    }
}

fn length(path: &[Place]) -> f64 {
    path.windows(2).map(|pair| (pair[1].0 - pair[0].0).hypot(pair[1].1 - pair[0].1)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::describe::{Axis, FieldLook};
    use super::*;

    const FRAME: Frame = Frame { left: 0.0, top: 0.0, right: 200.0, bottom: 200.0 };

    fn grid(count: usize) -> Vec<f64> {
        (0..count).map(|k| -1.0 + 2.0 * k as f64 / (count - 1) as f64).collect()
    }

    fn field(count: usize, of: impl Fn(f64, f64) -> f64) -> Field {
        let (x, y) = (grid(count), grid(count));
        let values = y.iter().flat_map(|&y| x.iter().map(move |&x| (x, y))).map(|(x, y)| of(x, y)).collect();
        Field { x, y, values, look: FieldLook::Map }
    }

    fn spans(field: &Field) -> (Span, Span) {
        let axis = Axis::linear("").with_range(-1.0, 1.0);
        let span = Span::of(&axis, std::iter::empty(), false).unwrap();
        let values = Span::of(&Axis::linear(""), field.values.iter().copied(), false).unwrap();
        (span, values)
    }

    #[test]
    fn an_isoline_lies_where_the_value_is() {
        let field = field(41, f64::hypot);
        let (place, value) = spans(&field);
        let level = value.fraction(0.5).unwrap();
        let pieces = pieces(&field, &heights(&field, &value), level, (&place, &place), FRAME);
        assert_eq!(pieces.len(), 1, "one circle");
        for (x, y) in &pieces[0] {
            let radius = (x - 100.0).hypot(y - 100.0);
            assert!((radius - 50.0).abs() < 0.2, "{radius}");
        }
        assert!((length(&pieces[0]) - 100.0 * std::f64::consts::PI).abs() < 1.0);
    }

    #[test]
    fn a_band_covers_what_is_higher_with_its_holes() {
        // A ring of height above 0.5 between two circles, and what is outside.
        let field = field(81, |x, y| (10.0 * x.hypot(y)).cos());
        let (place, value) = spans(&field);
        let inside = |radius: f64| (10.0 * radius).cos() >= 0.0;
        let level = value.fraction(0.0).unwrap();
        let rings = rings(&field, &heights(&field, &value), level, (&place, &place), FRAME);
        let rings: Vec<Vec<Place>> = rings.into_iter().map(|ring| FRAME.clip_area(ring)).collect();
        let covered = |at: Place| {
            let edges = rings.iter().flat_map(|ring| ring.iter().zip(ring.iter().cycle().skip(1)));
            let crossings = edges.filter(|(a, b)| {
                (a.1 > at.1) != (b.1 > at.1) && at.0 < (b.0 - a.0) * (at.1 - a.1) / (b.1 - a.1) + a.0
            });
            crossings.count() % 2 == 1
        };
        for i in 0..40 {
            for j in 0..40 {
                let at = (5.0 * f64::from(i) + 2.3, 5.0 * f64::from(j) + 1.7);
                let radius = ((at.0 - 100.0) / 100.0).hypot((at.1 - 100.0) / 100.0);
                if (10.0 * radius).cos().abs() > 0.15 {
                    assert_eq!(covered(at), inside(radius), "{at:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_or_not_positive_is_said() {
        let mut field = field(5, |x, y| 1.0 + x * x + y * y);
        field.values[..3].copy_from_slice(&[f64::NAN, f64::INFINITY, 0.0]);
        let span = Span::of(&Axis::log10(""), field.values.iter().copied(), false).unwrap();
        let said = notes(&field, &span);
        assert_eq!(
            said,
            ["grey: not finite: 2 of 25 points", "not above 0, drawn as the lowest value: 1 of 25 points"]
        );
        assert_eq!(heights(&field, &span)[..3], [1.0, 1.0, 0.0]);
        field.values.pop();
        assert!(matches!(check(&field), Err(RecordError::Field { columns: 5, rows: 5, values: 24 })));
    }
}
