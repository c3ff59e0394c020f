//! `spectrum` from its command line to its files: small runs on `digits`, with the built binary.

mod common;

use common::{Out, assert_same_files, complaint, files_in, rows, unfinish};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const BINARY: &str = env!("CARGO_BIN_EXE_spectrum");

/// A small dense network on 400 examples, two places.
const SMALL: &[&str] = &[
    "--preset",
    "quick",
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--set",
    "network=784-6-10",
    "--set",
    "images.train=400",
    "--set",
    "images.test=200",
    "--set",
    "examples=300",
    "--set",
    "epochs=2",
    "--set",
    "at=[0,2]",
    "--set",
    "lr=0.03",
    "--set",
    "density.steps=12",
];

const TABLES: [&str; 6] =
    ["training.csv", "eigenvalues.csv", "spectrum.csv", "density.csv", "quadrature.csv", "claims.csv"];

static BASE: LazyLock<(Out, PathBuf)> = LazyLock::new(|| {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--quiet", "--workers", "1"]]);
    (out, run)
});

fn column(run: &Path, table: &str, name: &str) -> Vec<String> {
    rows(run, table).into_iter().map(|row| row[name].clone()).collect()
}

fn numbers(run: &Path, table: &str, name: &str) -> Vec<f64> {
    column(run, table, name).iter().map(|cell| cell.parse().unwrap()).collect()
}

#[test]
fn every_file_of_a_run_is_there() {
    let run = &BASE.1;
    for name in TABLES.iter().copied().chain(["density.svg", "along.svg", "training.svg", "report.html"]) {
        assert!(run.join(name).is_file(), "{name}");
    }
    // Five of the largest and two of the smallest, at two places.
    let values = numbers(run, "eigenvalues.csv", "eigenvalue");
    assert_eq!(values.len(), 14);
    let ends: BTreeSet<String> = column(run, "eigenvalues.csv", "end").into_iter().collect();
    assert_eq!(ends, BTreeSet::from(["largest".to_owned(), "smallest".to_owned()]));
    for place in values.chunks(7) {
        assert!(place.windows(2).all(|pair| pair[0] >= pair[1]), "{place:?}");
    }
    let residuals = numbers(run, "eigenvalues.csv", "residual");
    assert!(residuals.iter().zip(&values).all(|(r, v)| *r <= 1.1e-3 * v.abs().max(1e-3 * values[0])));
    // The density integrates to 1, and its weights sum to 1.
    let (at, density) = (numbers(run, "density.csv", "eigenvalue"), numbers(run, "density.csv", "density"));
    let integral: f64 =
        at.windows(2).zip(density.windows(2)).map(|(x, y)| (x[1] - x[0]) * (y[0] + y[1]) / 2.).sum();
    assert!((integral - 1.).abs() < 1e-3, "{integral}");
    let weights: f64 = numbers(run, "quadrature.csv", "weight").iter().sum();
    assert!((weights - 4.).abs() < 1e-9, "{weights}");
}

#[test]
fn numbers_do_not_depend_on_workers() {
    let out = Out::new(BINARY);
    let other = out.run(&[SMALL, &["--quiet", "--workers", "3"]]);
    assert_same_files(&BASE.1, &other, &TABLES);
}

/// One of the two spectra is kept, the other is computed again.
#[test]
fn a_run_goes_on_where_it_ended() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--quiet"]]);
    unfinish(&run);
    let kept = files_in(&run.join("trials"));
    let spectra: Vec<&PathBuf> =
        kept.iter().filter(|path| path.to_str().unwrap().ends_with(".numbers.safetensors")).collect();
    assert_eq!(spectra.len(), 2, "{kept:?}");
    fs::remove_file(spectra[0]).unwrap();
    let written = fs::metadata(spectra[1]).unwrap().modified().unwrap();
    for table in TABLES {
        fs::remove_file(run.join(table)).unwrap();
    }
    assert_eq!(out.run(&[SMALL, &["--quiet", "--resume"]]), run);
    assert_eq!(fs::metadata(spectra[1]).unwrap().modified().unwrap(), written);
    assert_same_files(&BASE.1, &run, &TABLES);
}

/// Each estimates the same trace.
#[test]
fn every_estimator_of_the_trace_can_be_asked_for() {
    let out = Out::new(BINARY);
    let expected = numbers(&BASE.1, "spectrum.csv", "trace");
    for estimator in ["hutch-plus-plus", "xtrace"] {
        let set = format!("trace_estimator={estimator}");
        let run = out.run(&[SMALL, &["--quiet", "--set", &set]]);
        let errors = |run: &Path| numbers(run, "spectrum.csv", "trace_standard_error");
        let (found, errors) =
            (numbers(&run, "spectrum.csv", "trace"), errors(&run).into_iter().zip(errors(&BASE.1)));
        for ((found, expected), (error, other)) in found.iter().zip(&expected).zip(errors) {
            assert!((found - expected).abs() < 4. * error.hypot(other), "{estimator}: {found} {expected}");
        }
    }
}

/// With lr 1e30 the weights overflow. The run says so in its numbers and does not stop for it.
#[test]
fn a_model_that_diverges_is_shown_as_far_as_it_goes() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--quiet", "--set", "lr=1e30"]]);
    let values = numbers(&run, "eigenvalues.csv", "eigenvalue");
    assert!(
        values[..7].iter().all(|value| value.is_finite()) && values[7..].iter().all(|value| value.is_nan())
    );
    assert!(rows(&run, "density.csv").is_empty());
}

#[test]
fn own_weights_are_looked_at_and_nothing_is_trained() {
    let run = &BASE.1;
    let weights = fs::read_dir(run.join("weights")).unwrap().next().unwrap().unwrap().path();
    let out = Out::new(BINARY);
    let own = out.run(&[SMALL, &["--quiet", "--weights", weights.to_str().unwrap()]]);
    assert!(!own.join("training.csv").exists());
    let found = numbers(&own, "eigenvalues.csv", "eigenvalue");
    assert_eq!(found, numbers(run, "eigenvalues.csv", "eigenvalue")[7..]);
}

#[test]
fn bad_input_is_one_sentence() {
    let out = Out::new(BINARY);
    let refuse = |more: &[&str], code: i32, text: &str| {
        let found = complaint(out.command(&[SMALL, more]), code);
        assert!(found.contains(text), "{found}");
    };
    refuse(&["--set", "largest=100000"], 2, "parameters, found 100000");
    refuse(&["--set", "at=[0,9]"], 2, "at must name epochs from 0 to 2");
    refuse(&["--set", "matrix=fisher"], 2, "fisher");
    refuse(&["--set", "network=784-x-10"], 2, "network must be");
    refuse(&["--weights", "no-such-file.safetensors"], 1, "no-such-file.safetensors");
    let weights = fs::read_dir(BASE.1.join("weights")).unwrap().next().unwrap().unwrap().path();
    refuse(&["--set", "network=784-7-10", "--weights", weights.to_str().unwrap()], 1, "784-7-10");
}
