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
            scene::Shape::Region { rings, .. } => assert!(rings.iter().flatten().all(inside), "{shape:?}"),
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

/// A bowl with a hole of infinities, as a map and as a surface.
fn bowl(look: FieldLook) -> Figure {
    let places: Vec<f64> = (0..21).map(|k| -1.0 + 0.1 * f64::from(k)).collect();
    let value = |x: f64, y: f64| if x + y > 1.75 { f64::INFINITY } else { 0.01 + 5.0 * (x * x + y * y) };
    let values = places.iter().flat_map(|&y| places.iter().map(move |&x| value(x, y))).collect();
    let field = Field { x: places.clone(), y: places.clone(), values, look };
    let panel = Panel::new("train loss", Axis::linear("first direction"), Axis::linear("second direction"))
        .with_field(field, Axis::log10("loss (nats)"))
        .with(Series::scatter("model", Colour::Vermillion, vec![(0.0, 0.0)]).with_labels(["θ"]));
    Figure::new("A bowl", "digits · seed 0", vec![panel])
}

#[test]
fn a_field_fills_its_frame_as_a_map_or_as_a_surface() {
    for look in [FieldLook::Map, FieldLook::Surface] {
        let figure = bowl(look);
        let svg = figure.to_svg().unwrap();
        for text in [
            "first direction",
            "second direction",
            "loss (nats)",
            "train loss",
            "grey: not finite: 6 of 441 points",
        ] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf\"") && !svg.contains("2147483647"));
        assert!(svg.contains(">\n0.1\n<"), "a tick");
        // The darkest and the brightest colour are where the values are.
        let (width, _, pixels) = decoded(&figure.to_png().unwrap());
        let count = |rgb: [u8; 3]| pixels.chunks(3).filter(|&p| p == rgb).count();
        let (Colour::Rgb(r, g, b), Colour::Rgb(r1, g1, b1)) =
            (Colour::scale(31.5 / 32.0), Colour::scale(0.5 / 32.0))
        else {
            panic!("colours of a scale");
        };
        if look == FieldLook::Map {
            assert!(count([r, g, b]) > 1000 && count([r1, g1, b1]) > 10 && width > 600);
            assert_eq!(svg.matches(">\n0.1\n<").count(), 2, "on the bar, and on its isoline");
        }
        let scene = layout::scene(&figure).unwrap();
        let inside =
            |&(x, y): &(f64, f64)| (0.0..=scene.size.0).contains(&x) && (0.0..=scene.size.1).contains(&y);
        for shape in &scene.shapes {
            match shape {
                scene::Shape::Line { path, .. } | scene::Shape::Area { path, .. } => {
                    assert!(path.iter().all(inside), "{shape:?}");
                }
                scene::Shape::Region { rings, .. } => {
                    assert!(rings.iter().flatten().all(inside), "{shape:?}");
                }
                scene::Shape::Disc { at, .. } => assert!(inside(at), "{shape:?}"),
                scene::Shape::Text(text) => assert!(inside(&text.at), "{text:?}"),
            }
        }
    }
}

#[test]
fn a_field_without_a_value_for_each_place_is_an_error() {
    let mut figure = bowl(FieldLook::Map);
    figure.panels[0].field.as_mut().unwrap().values.pop();
    assert!(matches!(figure.to_svg(), Err(RecordError::Field { columns: 21, rows: 21, values: 440 })));
}

#[test]
fn a_field_of_nothing_says_so() {
    for look in [FieldLook::Map, FieldLook::Surface] {
        let mut figure = bowl(look);
        figure.panels[0].field.as_mut().unwrap().values.fill(f64::NAN);
        assert!(figure.to_svg().unwrap().contains("no finite value"));
        figure.panels[0].field.as_mut().unwrap().values.fill(1.0);
        figure.to_png().unwrap();
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
        let axis = || Axis { scale, ..Axis::linear("v") };
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

/// Every way of drawing a series, with all that can hang on it.
fn dressed(points: &[(f64, f64)]) -> Vec<Series> {
    let dress = |series: Series| {
        let ys = points.iter().map(|p| (p.1 - 1.0, p.1 + 1.0)).collect();
        let xs = points.iter().map(|p| (p.0 / 2.0, p.0 * 2.0)).collect();
        series
            .with_whiskers(ys)
            .with_x_whiskers(xs)
            .with_labels(points.iter().map(|p| format!("label {}", p.1)))
            .with_values(points.iter().map(|p| p.1).collect())
            .with_ends(Marker::Star, Marker::Cross)
    };
    let points = points.to_vec();
    vec![
        dress(Series::line("line", Colour::Blue, points.clone()).with_points()),
        dress(Series::scatter("points", Colour::Green, points.clone()).with_marker(Marker::Diamond)),
        dress(Series::bars("bars", Colour::Wine, points.clone())),
        dress(Series::bars("more bars", Colour::Olive, points.clone()).thin()),
        dress(Series::steps("steps", Colour::Brown, points)),
    ]
}

#[test]
fn bad_data_break_no_kind_of_series_on_no_kind_of_axis() {
    let data: [&[(f64, f64)]; 8] = [
        &[],
        &[(1.0, 2.0)],
        &[(0.0, 0.0)],
        &[(f64::NAN, f64::NAN), (1.0, f64::INFINITY)],
        &[(1.0, 3.0), (1.0, 3.0), (1.0, 3.0)],
        &[(0.0, 0.0), (1.0, -1.0), (2.0, 5.0)],
        &[(1.0, f64::NAN), (2.0, 1.0), (3.0, f64::NAN), (4.0, 2.0)],
        &[(f64::MAX, f64::MIN), (5e-324, f64::MAX), (-1.0, 1.0)],
    ];
    let names = || Axis::categories("kind", ["a", "a name of several words", "c"]);
    for points in data {
        for x in [Axis::linear("x"), Axis::log10("x"), names()] {
            for y in [Axis::linear("y"), Axis::log10("y"), names()] {
                let mut panel = Panel::new("", x.clone(), y)
                    .with_level(0.0, "zero")
                    .with_level(f64::NAN, "nowhere")
                    .with_mark(1.0, "one")
                    .with_colour_bar(Axis::log10("value"));
                panel.series = dressed(points);
                let figure = Figure::new("", "", vec![panel]);
                let svg = figure.to_svg().unwrap();
                assert!(!svg.contains("2147483647") && !svg.contains("nowhere"), "{points:?}");
                assert!(svg.contains(">\nvalue\n<"));
            }
        }
    }
    let mut panel = Panel::new("", names(), Axis::linear("y"));
    panel.series = dressed(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)]);
    Figure::new("", "", vec![panel]).to_png().unwrap();
    let nothing: [&str; 0] = [];
    let empty = Panel::new("", Axis::categories("kind", nothing), Axis::linear("y"));
    assert!(Figure::new("", "", vec![empty]).to_svg().unwrap().contains("no finite value"));
}

#[test]
fn whiskers_fewer_than_points_and_labels_more_are_fine() {
    let series = Series::scatter("a", Colour::Blue, vec![(0.0, 1.0), (1.0, 2.0)])
        .with_whiskers(vec![(0.5, 1.5)])
        .with_labels(["first", "", "third"])
        .with_values(vec![3.0]);
    let panel = Panel::new("", Axis::linear("x"), Axis::linear("y")).with(series);
    let svg = Figure::new("", "", vec![panel]).to_svg().unwrap();
    assert!(svg.contains("first") && !svg.contains("third"));
    assert!(svg.contains("whiskers: 95 % interval of the mean"));
}

#[test]
fn texts_beside_points_cover_neither_points_nor_each_other() {
    let points: Vec<(f64, f64)> =
        (0..30_u32).map(|i| (f64::from(i * 7919 % 101), f64::from(i * 104_729 % 89))).collect();
    let labels: Vec<String> = (0..30).map(|i| format!("text {i}")).collect();
    let series = Series::scatter("a", Colour::Blue, points).with_labels(labels);
    let panel = Panel::new("", Axis::linear("x"), Axis::linear("y")).with(series);
    let scene = layout::scene(&Figure::new("", "", vec![panel])).unwrap();
    let texts: Vec<(f64, f64, f64)> = scene
        .shapes
        .iter()
        .filter_map(|s| match s {
            scene::Shape::Text(t) if t.words.starts_with("text") => {
                Some((t.at.0, t.at.0 + t.width(), t.at.1))
            }
            _ => None,
        })
        .collect();
    assert_eq!(texts.len(), 30);
    for (i, a) in texts.iter().enumerate() {
        for b in &texts[i + 1..] {
            assert!(a.1 <= b.0 || b.1 <= a.0 || (a.2 - b.2).abs() >= 10.0, "{a:?} {b:?}");
        }
        for shape in &scene.shapes {
            if let scene::Shape::Disc { at, .. } = shape {
                assert!(at.0 < a.0 || at.0 > a.1 || (at.1 - a.2).abs() > 5.0, "{a:?} {at:?}");
            }
        }
    }
}

#[test]
fn bars_stand_on_zero_side_by_side() {
    let bars = |name, colour| Series::bars(name, colour, vec![(0.0, 1.0), (1.0, 2.0)]);
    let axis = Axis::categories("", ["a", "b"]);
    let panel = Panel::new("", axis, Axis::linear("n"))
        .with(bars("first", Colour::Blue))
        .with(bars("second", Colour::Green));
    let scene = layout::scene(&Figure::new("", "", vec![panel])).unwrap();
    let spans = |colour: Colour| -> Vec<(f64, f64, f64, f64)> {
        let areas = scene.shapes.iter().filter_map(|s| match s {
            scene::Shape::Area { path, ink } if ink.rgb == colour.rgb() => Some(path),
            _ => None,
        });
        areas
            .map(|path| {
                let fold = |of: fn(&(f64, f64)) -> f64, with: fn(f64, f64) -> f64| {
                    path.iter().map(of).reduce(with).unwrap()
                };
                (
                    fold(|p| p.0, f64::min),
                    fold(|p| p.0, f64::max),
                    fold(|p| p.1, f64::min),
                    fold(|p| p.1, f64::max),
                )
            })
            .collect()
    };
    let (first, second) = (spans(Colour::Blue), spans(Colour::Green));
    // The last area of each is the legend's sample.
    assert_eq!((first.len(), second.len()), (3, 3));
    assert!(first[0].1 < second[0].0 && second[0].1 < first[1].0);
    assert!((first[0].3 - first[1].3).abs() < 1e-9, "one foot");
    let heights = [first[0].3 - first[0].2, first[1].3 - first[1].2];
    assert!((heights[1] - 2.0 * heights[0]).abs() < 1e-6, "lengths are as the values");
}

#[test]
fn looks_and_colours_of_a_scale_are_told_apart() {
    let looks: Vec<_> = (0..44)
        .map(|i| {
            let style = Series::line("", Colour::Blue, Vec::new()).nth_look(i).style;
            (style.colour, style.dash)
        })
        .collect();
    assert!(looks.iter().enumerate().all(|(i, look)| !looks[..i].contains(look)));
    let light = |t: f64| {
        let (r, g, b) = Colour::scale(t).rgb();
        0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b)
    };
    for step in 0..50 {
        assert!(light(f64::from(step) / 50.0) < light(f64::from(step + 1) / 50.0), "brighter all the way");
    }
    assert_eq!(Colour::scale(f64::NAN), Colour::Grey);
    assert_eq!(Colour::scale(-3.0), Colour::scale(0.0));
    assert_eq!(Colour::scale(f64::INFINITY), Colour::Rgb(253, 231, 37));
}

#[test]
fn a_distribution_counts_what_is_infinite_and_leaves_out_what_is_not_a_number() {
    assert_eq!(ecdf(&[]), []);
    assert_eq!(ecdf(&[f64::NAN, f64::INFINITY]), []);
    assert_eq!(ecdf(&[5.0]), [(5.0, 0.0), (5.0, 1.0)]);
    assert_eq!(ecdf(&[1.0, 1.0]), [(1.0, 0.0), (1.0, 1.0)]);
    assert_eq!(ecdf(&[f64::NEG_INFINITY, 3.0, f64::NAN]), [(3.0, 0.5), (3.0, 1.0)]);
}

#[test]
fn a_long_legend_stands_in_columns() {
    let mut panel = Panel::new("", Axis::linear("x"), Axis::linear("y"));
    for index in 0..20 {
        let points = vec![(0.0, 0.0), (1.0, index as f64)];
        panel = panel.with(Series::line(format!("series {index}"), Colour::Blue, points).nth_look(index));
    }
    panel = panel.with(Series::line("a name far wider than any panel ".repeat(8), Colour::Grey, Vec::new()));
    let scene = layout::scene(&Figure::new("", "", vec![panel.clone()])).unwrap();
    assert!(scene.shapes.len() > 20);
    panel.series.pop();
    let scene = layout::scene(&Figure::new("", "", vec![panel])).unwrap();
    let mut starts: Vec<i64> = scene
        .shapes
        .iter()
        .filter_map(|s| match s {
            scene::Shape::Text(t) if t.words.starts_with("series") => Some(t.at.0.round() as i64),
            _ => None,
        })
        .collect();
    starts.sort_unstable();
    starts.dedup();
    assert!((2..=8).contains(&starts.len()), "{starts:?}");
}
