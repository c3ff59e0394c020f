//! `simulate` from its command line to its files: a small run with the built binary.

mod common;

use common::{Out, assert_same_files, complaint, header, number, rows};
use std::collections::BTreeMap;

const BINARY: &str = env!("CARGO_BIN_EXE_simulate");

/// 120 epochs of two networks on two functions, from each of 40 seeds: more than one chunk.
const SMALL: &[&str] = &[
    "--device",
    "cpu",
    "--quiet",
    "--seeds",
    "40",
    "--function",
    "sin(3*x)+x^2",
    "--function",
    "-x",
    "--set",
    "networks=[[1,6,1],[1,1,4,3,1]]",
    "--set",
    "grid={from=-1.0,step=0.1,points=21}",
    "--set",
    "epochs=120",
    "--set",
    "every=40",
    "--set",
    "optimiser.lr=0.01",
];

#[test]
fn a_small_run_has_every_row_whatever_the_number_of_workers() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--workers", "1"]]);
    let again = out.run(&[SMALL, &["--workers", "2"]]);
    let tables = ["training.csv", "final.csv", "summary.csv", "predictions.csv", "claims.csv"];
    assert_same_files(&run, &again, &tables);
    assert_same_files(&run, &again, &["training.svg", "predictions.svg", "final.svg", "dead.svg"]);

    assert_eq!(
        header(&run, "training.csv"),
        "target,network,layers,parameters,seed,epoch,mean_squared_error"
    );
    let training = rows(&run, "training.csv");
    let ends = rows(&run, "final.csv");
    assert_eq!(ends.len(), 2 * 2 * 40);
    let recorded: f64 = ends.iter().map(|row| 1. + (number(row, "epochs") / 40.).floor()).sum();
    assert_eq!(training.len(), recorded as usize, "epochs 0, 40, 80, 120, as far as a seed went");
    for row in &ends {
        let (layers, parameters) =
            if row["network"] == "1-6-1" { (2, 2 * 6 + 7) } else { (4, 2 + 2 * 4 + 5 * 3 + 4) };
        assert_eq!(
            (number(row, "layers"), number(row, "parameters")),
            (f64::from(layers), f64::from(parameters))
        );
        // At lr 0.01 every network that lives has moved towards its target.
        let first = training.iter().find(|other| same(row, other) && other["epoch"] == "0").unwrap();
        assert!(number(row, "mean_squared_error") < number(first, "mean_squared_error"), "{row:?}");
    }

    // Two ways to the same numbers: the mean squared error of one seed's predictions, and the counts of the dead.
    let predictions = rows(&run, "predictions.csv");
    assert_eq!(predictions.len(), 2 * 2 * 21);
    for row in rows(&run, "summary.csv") {
        let of = |other: &&BTreeMap<String, String>| {
            ["target", "network"].iter().all(|&key| other[key] == row[key])
        };
        let points: Vec<_> = predictions.iter().filter(of).collect();
        let truth = |x: f64| if row["target"] == "-x" { -x } else { (3. * x).sin() + x * x };
        assert!(points.iter().all(|point| (number(point, "y") - truth(number(point, "x"))).abs() < 1e-12));
        let squares = points.iter().map(|point| (number(point, "best_seed") - number(point, "y")).powi(2));
        let loss = squares.sum::<f64>() / 21.;
        assert!(
            (loss - number(&row, "mean_squared_error_best")).abs() < 1e-5 * (1. + loss),
            "{loss} {row:?}"
        );
        let dead = ends.iter().filter(of).filter(|end| end["dead"] == "true").count();
        assert_eq!(row["dead"], dead.to_string());
        assert!(number(&row, "dead_share_low") <= dead as f64 / 40.);
        assert!(number(&row, "dead_share_high") >= dead as f64 / 40.);
        let some = row["dead_at_start"] != "0";
        // A leading 1-to-1 layer with ReLU is off everywhere from one start in six; six units in parallel never all are.
        assert_eq!(some, row["network"] == "1-1-4-3-1", "{row:?}");
    }
    assert_eq!(rows(&run, "claims.csv").len(), 0, "neither the report's networks nor its targets");
}

fn same(row: &BTreeMap<String, String>, other: &BTreeMap<String, String>) -> bool {
    ["target", "network", "seed"].iter().all(|&key| other[key] == row[key])
}

#[test]
fn an_interrupted_run_ends_with_the_same_tables() {
    let out = Out::new(BINARY);
    let whole = out.run(&[SMALL, &["--workers", "1"]]);
    // A finished chunk counts; what a killed process lacked is computed again.
    let trials = common::files_in(&whole.join("trials"));
    assert_eq!(trials.len(), 2 * 2 * 3, "targets, networks, chunks");
    std::fs::remove_file(&trials[1]).unwrap();
    let manifest = whole.join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap().replace("\"finished\"", "\"running\"");
    let before = std::fs::read_to_string(whole.join("final.csv")).unwrap();
    std::fs::write(&manifest, text).unwrap();
    std::fs::remove_file(whole.join("final.csv")).unwrap();
    let resumed = out.command(&[SMALL, &["--resume"]]).assert().success();
    drop(resumed);
    assert_eq!(out.newest(), whole);
    assert_eq!(std::fs::read_to_string(whole.join("final.csv")).unwrap(), before);
}

#[test]
fn what_cannot_be_fitted_is_refused() {
    let out = Out::new(BINARY);
    let refusal = |arguments: &[&str]| complaint(out.command(&[arguments]), 2);
    for (arguments, expected) in [
        (&["--function", "sin("][..], "`sin(` is no function of x"),
        (&["--function", "y"], "`y`"),
        (
            &["--function", "1/x", "--set", "grid.from=-1.0", "--set", "grid.step=0.5"],
            "no finite value at x = 0",
        ),
        (&["--function", "x", "--function", "x"], "twice"),
        (&["--function", "3"], "must vary"),
        (&["--set", "targets=[]"], "targets must name"),
        (&["--set", "networks=[]"], "networks must name"),
        (&["--set", "networks=[[2,5,1]]"], "begin and end with 1"),
        (&["--set", "networks=[[1,5,2]]"], "begin and end with 1"),
        (&["--set", "networks=[[1]]"], "begin and end with 1"),
        (&["--set", "networks=[[]]"], "begin and end with 1"),
        (&["--set", "networks=[[1,0,1]]"], "networks"),
        (&["--set", "networks=[[1,9000000000000000000,9000000000000000000,1]]"], "2^40"),
        (&["--set", "networks=[[1,1000,1000,1]]"], "1000000 parameters"),
        (&["--set", "epochs=4000000000"], "epochs"),
        (&["--set", "networks=[[1,5,1],[1,5,1]]"], "twice"),
        (&["--seeds", "0"], "seeds"),
        (&["--set", "epochs=0"], "epochs"),
        (&["--set", "every=0"], "every"),
        (&["--set", "grid.step=0"], "grid"),
        (&["--set", "grid.points=1"], "points"),
        (&["--set", "stop.below=-1"], "stop.below"),
        (&["--set", "stop.change=inf"], "stop.change"),
        (&["--set", "optimiser.lr=-1"], "optimiser"),
        (&["--dataset", "digits"], "dataset"),
    ] {
        let said = refusal(arguments);
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}
