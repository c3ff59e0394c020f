//! Figures as a whole: what must be seen is there, in both formats.

use super::*;
use crate::RecordError;

fn interpolation() -> Figure {
    let alphas: Vec<f64> = (0..=40).map(|i| -2.0 + 0.1 * f64::from(i)).collect();
    let mut loss: Vec<(f64, f64)> =
        alphas.iter().map(|&a| (a, 1e-3 * 10_f64.powf(2.0 * (a - 0.5).abs()))).collect();
    loss[0].1 = f64::INFINITY;
    loss[1].1 = f64::NAN;
    loss[20].1 = 0.0;
    loss[40].1 = 1e20;
    let accuracy: Vec<(f64, f64)> = alphas.iter().map(|&a| (a, 100.0 - 20.0 * (a - 0.5).abs())).collect();
    let band = accuracy.iter().map(|&(a, v)| (a, v - 3.0, v + 3.0)).collect();
    let panel =
        Panel::new("SGD <64> & Adam", Axis::linear("α"), Axis::log10("loss (nats)").with_range(1e-4, 1e3))
            .with_right_axis(Axis::linear("accuracy (%)").with_range(0.0, 100.0))
            .with(Series::line("train loss", Colour::Blue, loss))
            .with(
                Series::line("test accuracy", Colour::Vermillion, accuracy)
                    .dashed()
                    .on_right_axis()
                    .with_band(band),
            )
            .with_mark(0.0, "θ₁: batch 64")
            .with_mark(1.0, "θ₂: batch 1024");
    Figure::new(
        "Between two minima",
        "digits · preset quick · seeds 0–4 · 10 models",
        vec![panel.clone(), panel],
    )
}

fn decoded(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
    let mut reader = ::png::Decoder::new(bytes).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (info.width, info.height, pixels)
}

#[test]
fn the_svg_says_all_and_has_a_number_for_every_place() {
    let svg = interpolation().to_svg().unwrap();
    for text in [
        "Between two minima",
        "digits · preset quick · seeds 0–4 · 10 models",
        "SGD &lt;64&gt; &amp; Adam",
        "loss (nats)",
        "accuracy (%)",
        "θ₁: batch 64",
        "θ₂: batch 1024",
        "train loss",
        "test accuracy",
        "band: 95 % interval of the mean",
        "× not finite: 2 values",
        "▲ above the axis: 1 value",
        "◇ not above 0, so not on a log axis: 1 value",
    ] {
        assert!(svg.contains(text), "{text} is missing");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf\"") && !svg.contains("2147483647"));
    assert_eq!(svg.matches("× not finite").count(), 2, "once a panel");
    assert_eq!(svg.matches(">\ntrain loss\n<").count(), 1, "one legend for both panels");
    assert_eq!(svg.matches("<svg ").count(), svg.matches("</svg>").count());
    assert!(svg.contains("text-anchor=\"middle\""));
}

#[test]
fn what_cannot_be_drawn_breaks_the_line_and_is_signed_at_the_edge() {
    let mut figure = interpolation();
    figure.panels.truncate(1);
    let blue = scene::Ink::solid(Colour::Blue.rgb());
    let scene = layout::scene(&figure).unwrap();
    let lines = |width: f64| {
        scene
            .shapes
            .iter()
            .filter(|s| matches!(s, scene::Shape::Line { ink, width: w, .. } if *ink == blue && (*w - width).abs() < 1e-9))
            .count()
    };
    // Two pieces of the curve (broken at the zero) and the legend's sample.
    assert_eq!(lines(panel::LINE_WIDTH), 3);
    // The first two places stand closer than two signs can: 2 strokes of a cross each, if apart.
    assert_eq!(lines(1.5), 4);
    assert_eq!(lines(1.2), 1);
    let triangles =
        scene.shapes.iter().filter(|s| matches!(s, scene::Shape::Area { ink, .. } if *ink == blue)).count();
    assert_eq!(triangles, 1);
}

#[test]
fn nothing_leaves_the_picture() {
    let scene = layout::scene(&interpolation()).unwrap();
    let (width, height) = scene.size;
    let inside = |&(x, y): &(f64, f64)| (0.0..=width).contains(&x) && (0.0..=height).contains(&y);
    for shape in &scene.shapes {
        match shape {
            scene::Shape::Line { path, .. } | scene::Shape::Area { path, .. } => {
                assert!(path.iter().all(inside), "{shape:?}");
            }
            scene::Shape::Disc { at, .. } => assert!(inside(at), "{shape:?}"),
            scene::Shape::Text(text) => {
                let before = match text.anchor {
                    scene::Anchor::Start => 0.0,
                    scene::Anchor::Middle => 0.5,
                    scene::Anchor::End => 1.0,
                } * text.width();
                let ends = [-before, text.width() - before].map(|d| {
                    if text.upwards { (text.at.0, text.at.1 - d) } else { (text.at.0 + d, text.at.1) }
                });
                assert!(ends.iter().all(inside), "{text:?}");
            }
        }
    }
}

#[test]
fn the_png_has_twice_the_size_and_the_same_colours() {
    let figure = interpolation();
    let size = layout::scene(&figure).unwrap().size;
    let (width, height, pixels) = decoded(&figure.to_png().unwrap());
    assert_eq!((width, height), (2 * size.0 as u32, 2 * size.1 as u32));
    let count = |rgb: [u8; 3]| pixels.chunks(3).filter(|&p| p == rgb).count();
    assert!(count([0, 114, 178]) > 500 && count([213, 94, 0]) > 500);
    assert!(count([255, 255, 255]) > pixels.len() / 6);
}

#[test]
fn empty_figures_are_drawn_and_say_so() {
    let axes = || (Axis::linear("x"), Axis::log10("loss"));
    let nothing = vec![(0.0, f64::NAN), (1.0, f64::INFINITY), (f64::NAN, 1.0), (2.0, -1.0)];
    for panel in [
        Panel::new("", axes().0, axes().1),
        Panel::new("", axes().0, axes().1).with(Series::line("a", Colour::Blue, Vec::new())),
        Panel::new("", axes().0, axes().1).with(Series::line("a", Colour::Blue, nothing[..2].to_vec())),
    ] {
        let figure = Figure::new("", "", vec![panel]);
        assert!(figure.to_svg().unwrap().contains("no finite value"));
        figure.to_png().unwrap();
    }
    let some = Series::scatter("a", Colour::Blue, nothing).with_band(vec![(0.0, f64::NAN, 1.0)]);
    let svg = Figure::new("", "", vec![Panel::new("", axes().0, axes().1).with(some)]).to_svg().unwrap();
    assert!(svg.contains("× not finite: 2 values") && svg.contains("at no finite x: 1 value"), "{svg}");
    Figure::new("no panel", "", Vec::new()).to_png().unwrap();
}

#[test]
fn extreme_values_do_not_break_the_drawing() {
    let values = [f64::MIN, f64::MAX, f64::MIN_POSITIVE, 5e-324, 0.0, -0.0, 1e-300, 1.0];
    let points: Vec<(f64, f64)> = values.iter().flat_map(|&x| values.iter().map(move |&y| (x, y))).collect();
    for scale in [Scale::Linear, Scale::Log10] {
        let axis = || Axis { label: "v".into(), scale, range: None, categories: Vec::new() };
        let series = Series::line("a", Colour::Blue, points.clone()).with_points();
        let svg = Figure::new("", "", vec![Panel::new("", axis(), axis()).with(series)]).to_svg().unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("2147483647"));
    }
}

#[test]
fn both_files_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let paths = interpolation().write(folder.path(), "interpolation").unwrap();
    assert_eq!(paths, ["svg", "png"].map(|kind| folder.path().join(format!("interpolation.{kind}"))));
    assert!(paths.iter().all(|path| path.metadata().unwrap().len() > 1000));
    let error = interpolation().write(&folder.path().join("none"), "a").unwrap_err();
    assert!(matches!(error, RecordError::Write { .. }), "{error}");
}
