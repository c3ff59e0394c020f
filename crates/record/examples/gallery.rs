//! Draws the kinds of figures that experiments need, from made-up numbers, to be looked at:
//! `cargo run -p flatland-record --example gallery -- <folder>`.

use std::path::Path;

use flatland_record::{Axis, Colour, Field, FieldLook, Figure, Marker, Panel, RecordError, Series, ecdf};

fn main() -> Result<(), RecordError> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    for (name, figure) in [
        ("interpolation", interpolation()),
        ("curves", curves()),
        ("scatter", scatter()),
        ("grid", grid()),
        ("markers", markers()),
        ("categories", categories()),
        ("values", values()),
        ("distributions", distributions()),
        ("many", many()),
        ("fields", fields()),
        ("empty", empty()),
    ] {
        for path in figure.write(Path::new(&folder), name)? {
            println!("{}", path.display());
        }
    }
    Ok(())
}

const ORIGIN: &str = "made-up numbers · digits (1437 train, 360 test) · preset quick · seeds 0–4 · 10 models";

/// Two double-axis panels: loss on a log axis left, accuracy right, over the line through two minima.
fn interpolation() -> Figure {
    let panel = |title: &str, second: &str, width: f64| {
        let alphas = || (0..=80).map(|i| -2.0 + 0.05 * f64::from(i));
        let loss = |factor: f64| {
            let value = move |a: f64| {
                let far = (a - 0.5).abs();
                if far > 1.47 { f64::NAN } else { factor * 1e-3 * (width * far * far).exp() }
            };
            let mut points: Vec<_> = alphas().map(|a| (a, value(a))).collect();
            points[0].1 = f64::INFINITY;
            points[80].1 = f64::INFINITY;
            points
        };
        let accuracy =
            |drop: f64| alphas().map(move |a| (a, 10.0 + 88.0 * (-drop * (a - 0.5).powi(4)).exp()));
        let band = |drop| accuracy(drop).map(|(a, v)| (a, v - 4.0, (v + 4.0).min(100.0))).collect();
        let loss_band = loss(3.0).into_iter().map(|(a, v)| (a, v / 2.0, v * 2.0)).collect();
        Panel::new(title, Axis::linear("α in (1 − α) θ₁ + α θ₂"), Axis::log10("loss (nats)"))
            .with_right_axis(Axis::linear("accuracy (%)").with_range(0.0, 100.0))
            .with(Series::line("train loss", Colour::Blue, loss(1.0)))
            .with(Series::line("test loss", Colour::Blue, loss(3.0)).dashed().with_band(loss_band))
            .with(Series::line("train accuracy", Colour::Vermillion, accuracy(0.3).collect()).on_right_axis())
            .with(
                Series::line("test accuracy", Colour::Vermillion, accuracy(0.5).collect())
                    .dashed()
                    .on_right_axis()
                    .with_band(band(0.5)),
            )
            .with_mark(0.0, "θ₁: SGD, batch 64")
            .with_mark(1.0, second)
    };
    let panels = vec![
        panel("Batch size 64 → 1024", "θ₂: SGD, batch 1024", 9.0),
        panel("Learning rate 0.001 → 0.01", "θ₂: Adam, η = 10⁻²", 7.0),
    ];
    Figure::new("Loss and accuracy on the line through two minima", ORIGIN, panels)
}

/// Training curves with bands, one of them beyond the range.
fn curves() -> Figure {
    let mut panel =
        Panel::new("", Axis::linear("epoch"), Axis::log10("training loss (nats)").with_range(1e-2, 10.0));
    for (index, name) in ["SGD", "SGD, momentum 0.9", "Adam", "full batch"].into_iter().enumerate() {
        let rate = 0.05 * (index as f64 + 1.0);
        let points: Vec<_> = (0..=60)
            .map(f64::from)
            .map(|t| (t, 2.3 * (-rate * t).exp() + 0.03 * (1.0 + (t * 0.9).sin() * 0.3)))
            .collect();
        let band = points.iter().map(|&(t, v)| (t, v * 0.8, v * 1.25)).collect();
        panel = panel.with(Series::line(name, Colour::nth(index), points).with_band(band));
    }
    let diverged = (0..=60).map(f64::from).map(|t| (t, if t > 40.0 { f64::NAN } else { (0.3 * t).exp() }));
    panel = panel.with(Series::line("SGD, η = 3", Colour::Purple, diverged.collect()).dotted());
    Figure::new("Training loss of five optimisers", ORIGIN, vec![panel])
}

/// Points over a log axis.
fn scatter() -> Figure {
    let points = |shift: f64| {
        (0..40)
            .map(f64::from)
            .map(move |i| (10_f64.powf(i / 10.0 - 1.5), 3.0 + shift + (i * 1.7).sin() + 0.05 * i))
            .collect()
    };
    let panel = Panel::new("", Axis::log10("sharpness λ₁ of the Hessian"), Axis::linear("test error (%)"))
        .with(Series::scatter("batch 32", Colour::Blue, points(0.0)))
        .with(Series::scatter("batch 1024", Colour::Vermillion, points(1.0)));
    Figure::new("Does sharpness predict the test error?", ORIGIN, vec![panel])
}

/// Panels that show different things, over narrow ranges.
fn grid() -> Figure {
    let wave =
        |f: f64, low: f64| (0..=50).map(move |i| (f64::from(i), low + (f64::from(i) * f).sin())).collect();
    let one = |title: &str, y: Axis, name: &str, low: f64| {
        Panel::new(title, Axis::linear("step (thousands)"), y)
            .with(Series::line(name, Colour::Green, wave(0.2, low)).with_points())
    };
    let panels = vec![
        one("a. Few decades", Axis::log10("loss (nats)"), "loss", 1.4),
        one("b. Under one decade", Axis::log10("‖∇L‖²"), "squared gradient norm", 3.0),
        one("c. Large numbers", Axis::linear("FLOPs"), "work", 2e6),
        one("d. A large offset", Axis::linear("accuracy (%)"), "accuracy", 97.25),
        one("e. Crossing zero on a log axis", Axis::log10("eigenvalue λ"), "eigenvalue", 0.0),
    ];
    Figure::new("Axes of many kinds", ORIGIN, panels)
}

/// A number between 0 and 1 that looks like chance.
fn noise(index: usize) -> f64 {
    (index as f64 * 12.9898).sin().mul_add(43_758.545, 0.0).rem_euclid(1.0)
}

/// Trajectories with a start and an end, points with texts beside them, a crowd of them among these.
fn markers() -> Figure {
    let mut paths =
        Panel::new("a. Where the runs go", Axis::linear("first direction"), Axis::linear("second"));
    for run in 0..4_usize {
        let turn = 1.6 * run as f64;
        let path = (0..40).map(f64::from).map(|t| {
            let radius = 2.0 * (-t / 14.0).exp() + 0.15 * run as f64;
            (radius * (t / 9.0 + turn).cos(), radius * (t / 9.0 + turn).sin())
        });
        let name = ["SGD", "SGD, momentum 0.9", "Adam", "full batch"][run];
        let series = Series::line(name, Colour::nth(run), path.collect()).nth_look(run);
        paths = paths.with(series.with_ends(Marker::Circle, Marker::Star));
    }
    let sizes =
        [26_506.0, 44_426.0, 55_210.0, 61_706.0, 101_770.0, 118_282.0, 203_530.0, 269_322.0, 407_050.0];
    let mut networks =
        Panel::new("b. Size and accuracy", Axis::log10("parameters"), Axis::linear("test accuracy"))
            .with_level(0.98, "human readers")
            .with_level(0.905, "linear model");
    for (index, family) in ["MLP", "LeNet", "CNN"].into_iter().enumerate() {
        let points: Vec<(f64, f64)> = (0..3)
            .map(|i| (sizes[3 * i + index], 0.91 + 0.02 * i as f64 + 0.01 * noise(3 * i + index)))
            .collect();
        let labels: Vec<String> = points.iter().map(|p| format!("{:.3} ({:.0} k)", p.1, p.0 / 1e3)).collect();
        let whiskers = points.iter().map(|p| (p.1 - 0.006, p.1 + 0.006)).collect();
        networks = networks.with(
            Series::scatter(family, Colour::nth(index), points)
                .nth_look(index)
                .with_whiskers(whiskers)
                .with_labels(labels),
        );
    }
    let all = (0..8).map(|i| (f64::from(i), 0.0)).map(|(x, _)| vec![(x, 1.0)]);
    let mut signs = Panel::new("c. All markers, both whiskers", Axis::linear("x"), Axis::linear("y"));
    for (index, point) in all.enumerate() {
        let (x, y) = point[0];
        let y = y + 0.3 * noise(index);
        signs = signs.with(
            Series::scatter(format!("{:?}", Marker::nth(index)), Colour::nth(index), vec![(x, y)])
                .nth_look(index)
                .with_whiskers(vec![(y - 0.1, y + 0.15)])
                .with_x_whiskers(vec![(x - 0.3, x + 0.4)]),
        );
    }
    let crowd: Vec<(f64, f64)> = (0..24).map(|i| (0.2 * noise(i), 0.2 * noise(i + 100))).collect();
    let labels: Vec<String> = (0..24).map(|i| format!("trial {i}")).collect();
    let crowded = Panel::new("d. A crowd", Axis::linear("x"), Axis::linear("y"))
        .with(Series::scatter("trials", Colour::Blue, crowd).with_labels(labels));
    Figure::new("Markers, texts, levels", ORIGIN, vec![paths, networks, signs, crowded])
}

/// Bars and points over names.
fn categories() -> Figure {
    let names = ["SGD", "SGD, momentum 0.9", "Adam", "full-batch gradient descent"];
    let share = |shift: f64| -> Vec<(f64, f64)> {
        (0..4).map(|i| (f64::from(i), 0.35 + shift + 0.4 * noise(i as usize))).collect()
    };
    let whiskers = |points: &[(f64, f64)]| points.iter().map(|p| (p.1 - 0.08, p.1 + 0.06)).collect();
    let (small, large) = (share(0.0), share(0.12));
    let bars = Panel::new(
        "a. Shares",
        Axis::categories("", names),
        Axis::linear("share of runs").with_range(0.0, 1.0),
    )
    .with(Series::bars("batch 32", Colour::Blue, small.clone()).with_whiskers(whiskers(&small)))
    .with(Series::bars("batch 1024", Colour::Vermillion, large.clone()).with_whiskers(whiskers(&large)))
    .with_level(0.5, "chance");
    let mut points =
        Panel::new("b. Means over seeds", Axis::categories("optimiser", names), Axis::log10("sharpness λ₁"));
    for (index, batch) in ["batch 32", "batch 1024"].into_iter().enumerate() {
        let shift = 0.24 * index as f64 - 0.12;
        let means: Vec<(f64, f64)> =
            (0..4).map(|i| (f64::from(i) + shift, 10.0 * 3_f64.powi(i) * (1.5 - index as f64))).collect();
        let ends = means.iter().map(|p| (p.1 / 1.6, p.1 * 1.6)).collect();
        let seeds: Vec<(f64, f64)> = (0..20)
            .map(|i| (means[i / 5].0 + 0.07, means[i / 5].1 * 2_f64.powf(2.0 * noise(i) - 1.0)))
            .collect();
        points = points
            .with(Series::scatter("", Colour::nth(index), seeds).thin())
            .with(Series::scatter(batch, Colour::nth(index), means).nth_look(index).with_whiskers(ends));
    }
    let counts = (0..12).map(|i| (f64::from(i), (30.0 * noise(i as usize + 3)).round())).collect();
    let histogram =
        Panel::new("c. Bars over numbers", Axis::linear("epoch"), Axis::linear("runs that stopped"))
            .with(Series::bars("runs", Colour::Green, counts));
    let effects: Vec<(f64, f64)> = (0..4).map(|i| (0.6 * noise(i as usize) - 0.2, f64::from(i))).collect();
    let ends = effects.iter().map(|p| (p.0 - 0.2, p.0 + 0.15)).collect();
    let forest = Panel::new(
        "d. Effects",
        Axis::linear("difference of test accuracy (points)"),
        Axis::categories("", names),
    )
    .with(Series::scatter("mean", Colour::Wine, effects).with_x_whiskers(ends))
    .with_mark(0.0, "no difference");
    Figure::new("Names on an axis", ORIGIN, vec![bars, points, histogram, forest])
}

/// Points and lines coloured by a quantity.
fn values() -> Figure {
    let points: Vec<(f64, f64)> =
        (0..150).map(|i| (10_f64.powf(3.0 * noise(i)), 1.0 + 3.0 * noise(i + 500))).collect();
    let rates = points.iter().map(|p| 1e-4 * p.0 * (1.0 + p.1)).chain([]).collect();
    let scatter =
        Panel::new("a. Points by value", Axis::log10("sharpness λ₁"), Axis::linear("test error (%)"))
            .with(Series::scatter("run", Colour::Blue, points).with_values(rates))
            .with_colour_bar(Axis::log10("learning rate"));
    let mut lines = Panel::new("b. Lines by value", Axis::linear("epoch"), Axis::linear("loss (nats)"))
        .with_right_axis(Axis::linear("accuracy (%)"))
        .with_colour_bar(Axis::linear("share of random labels").with_range(0.0, 1.0));
    for step in 0..=5 {
        let share = f64::from(step) / 5.0;
        let curve = (0..=30).map(f64::from).map(|t| (t, 2.3 * (-t / (4.0 + 20.0 * share)).exp())).collect();
        lines = lines.with(Series::line("", Colour::scale(share), curve));
    }
    let accuracy = (0..=30).map(f64::from).map(|t| (t, 97.0 - 80.0 * (-t / 6.0).exp())).collect();
    let lines = lines.with(Series::line("accuracy", Colour::Grey, accuracy).dashed().on_right_axis());
    Figure::new("Colour as a quantity", ORIGIN, vec![scatter, lines])
}

/// Empirical distributions, single runs behind their mean.
fn distributions() -> Figure {
    let mut steps = Panel::new(
        "a. Distributions",
        Axis::linear("‖θ‖"),
        Axis::linear("share of runs").with_range(0.0, 1.0),
    );
    for (index, name) in ["batch 32", "batch 256", "batch 1024"].into_iter().enumerate() {
        let sample: Vec<f64> =
            (0..25).map(|i| index as f64 + noise(i + 50 * index) + noise(i + 50 * index + 25)).collect();
        steps = steps.with(Series::steps(name, Colour::nth(index), ecdf(&sample)));
    }
    let curve = |seed: usize| {
        move |t: f64| (t, 2.0 * (-t / (5.0 + 3.0 * noise(seed))).exp() + 0.05 * noise(seed + t as usize))
    };
    let mut runs = Panel::new("b. Single runs", Axis::linear("epoch"), Axis::linear("loss (nats)"));
    for seed in 0..12 {
        let name = if seed == 0 { "one seed" } else { "" };
        runs = runs
            .with(Series::line(name, Colour::Blue, (0..40).map(f64::from).map(curve(seed)).collect()).thin());
    }
    let mean = (0..40).map(f64::from).map(|t| (t, (0..12).map(|seed| curve(seed)(t).1).sum::<f64>() / 12.0));
    let runs = runs.with(Series::line("mean", Colour::Indigo, mean.collect()));
    Figure::new("Distributions and single runs", ORIGIN, vec![steps, runs])
}

/// More series than colours, and a legend that stays readable.
fn many() -> Figure {
    let mut panel = Panel::new("", Axis::linear("epoch"), Axis::linear("test accuracy (%)"));
    for index in 0..16_usize {
        let curve = (0..=12).map(f64::from).map(|t| (t, 95.0 - 3.0 * index as f64 - 60.0 * (-t / 3.0).exp()));
        let name = format!("width {}, η = {}", 16 << (index % 4), ["0.001", "0.01", "0.1", "1"][index / 4]);
        panel = panel.with(Series::line(name, Colour::Blue, curve.collect()).nth_look(index).with_points());
    }
    let mut figure = Figure::new("Sixteen series", ORIGIN, vec![panel]);
    figure.panel_size = Some((760.0, 520.0));
    figure
}

/// A panel without a finite value.
fn empty() -> Figure {
    let nowhere = (0..10).map(|i| (f64::from(i), f64::NAN)).collect();
    let panel = Panel::new("", Axis::linear("step"), Axis::log10("loss (nats)")).with(Series::line(
        "diverged at once",
        Colour::Blue,
        nowhere,
    ));
    Figure::new("Nothing to see", ORIGIN, vec![panel])
}

/// A function of two variables as maps and as surfaces, with values that are not finite.
fn fields() -> Figure {
    let axis: Vec<f64> = (0..51).map(|k| -1.0 + 0.04 * f64::from(k)).collect();
    let loss = |x: f64, y: f64| {
        let bowl = 0.005 + 3.0 * x * x + 1.2 * y * y + 1.5 * x * y;
        bowl.powf(1.3) * (1.0 + 0.5 * (7.0 * x).sin() * (5.0 * y).cos())
    };
    let field = |look: FieldLook, of: &dyn Fn(f64, f64) -> f64| {
        let values = axis.iter().flat_map(|&y| axis.iter().map(move |&x| (x, y))).map(|(x, y)| of(x, y));
        Field { x: axis.clone(), y: axis.clone(), values: values.collect(), look }
    };
    let panel =
        |title: &str| Panel::new(title, Axis::linear("first direction"), Axis::linear("second direction"));
    let path: Vec<(f64, f64)> =
        (0..16).map(|k| (0.9 * 0.75_f64.powi(k), -0.8 * 0.6_f64.powi(k) + 0.01 * f64::from(k))).collect();
    let broken = |x: f64, y: f64| if x + y > 1.7 { f64::INFINITY } else { loss(x, y) };
    let panels = vec![
        panel("train loss").with_field(field(FieldLook::Map, &loss), Axis::log10("loss (nats)")).with(
            Series::line("path", Colour::Vermillion, path)
                .with_points()
                .with_ends(Marker::Square, Marker::Star),
        ),
        panel("accuracy").with_field(
            field(FieldLook::Map, &|x, y| 100.0 * (-loss(x, y) / 3.0).exp()),
            Axis::linear("accuracy (%)"),
        ),
        panel("not finite").with_field(field(FieldLook::Map, &broken), Axis::log10("loss (nats)")),
        panel("train loss").with_field(field(FieldLook::Surface, &loss), Axis::log10("loss (nats)")),
        panel("not finite").with_field(field(FieldLook::Surface, &broken), Axis::log10("loss (nats)")),
        panel("all NaN").with_field(field(FieldLook::Surface, &|_, _| f64::NAN), Axis::log10("loss (nats)")),
        panel("all NaN").with_field(field(FieldLook::Map, &|_, _| f64::NAN), Axis::log10("loss (nats)")),
        panel("flat").with_field(field(FieldLook::Map, &|_, _| 1.0), Axis::log10("loss (nats)")),
    ];
    let figure = Figure::new("A surface", ORIGIN, panels);
    Figure { columns: Some(2), ..figure }
}
