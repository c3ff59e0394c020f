//! Draws the kinds of figures that experiments need, from made-up numbers, to be looked at:
//! `cargo run -p flatland-record --example gallery -- <folder>`.

use std::path::Path;

use flatland_record::{Axis, Colour, Figure, Panel, RecordError, Series};

fn main() -> Result<(), RecordError> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    for (name, figure) in [
        ("interpolation", interpolation()),
        ("curves", curves()),
        ("scatter", scatter()),
        ("grid", grid()),
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
