//! `gradient-norm` from its command line to its files: a small run with the built binary.

mod common;

use common::{Out, assert_same_files, complaint, header, number, rows};

const BINARY: &str = env!("CARGO_BIN_EXE_gradient-norm");

/// 40 seeds, which take two chunks, for 300 steps of a network of 37 parameters.
const SMALL: &[&str] = &[
    "--device",
    "cpu",
    "--quiet",
    "--seeds",
    "40",
    "--set",
    "widths=[1,4,4,2,1]",
    "--set",
    "epochs=300",
    "--set",
    "spikes={window=21,factor=1.5}",
];

#[test]
fn a_small_run_has_every_row_whatever_the_number_of_workers() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--workers", "1"]]);
    let again = out.run(&[SMALL, &["--workers", "2"]]);
    let files = ["gradient.csv", "spikes.csv", "claims.csv", "gradient.svg", "layers.svg", "spikes.svg"];
    assert_same_files(&run, &again, &files);
    let columns: Vec<String> = (1..=4).map(|layer| format!("gradient_norm_layer_{layer}")).collect();
    let expected = format!("seed,epoch,mean_squared_error,gradient_norm,{}", columns.join(","));
    assert_eq!(header(&run, "gradient.csv"), expected);
    let gradient = rows(&run, "gradient.csv");
    assert_eq!(gradient.len(), 40 * 301, "seeds, epochs from 0 to 300");
    for row in gradient.iter().step_by(97) {
        // The whole norm is that of its parts.
        let parts = columns.iter().map(|column| number(row, column).powi(2)).sum::<f64>().sqrt();
        let whole = number(row, "gradient_norm");
        assert!((parts - whole).abs() <= 1e-6 * whole, "{row:?}");
    }
    // Seeds differ, and each learns.
    let at = |seed: &str, epoch: &str| {
        let row = gradient.iter().find(|row| row["seed"] == seed && row["epoch"] == epoch).unwrap();
        number(row, "mean_squared_error")
    };
    assert_ne!(at("0", "0").to_bits(), at("39", "0").to_bits());
    let falls = (0..40).filter(|seed| at(&seed.to_string(), "300") < at(&seed.to_string(), "0")).count();
    assert!(falls > 30, "{falls} of 40 losses fall");

    for spike in rows(&run, "spikes.csv") {
        let same = |row: &&std::collections::BTreeMap<String, String>| {
            row["seed"] == spike["seed"] && row["epoch"] == spike["epoch"]
        };
        let row = gradient.iter().find(same).unwrap();
        assert_eq!(row["gradient_norm"], spike["gradient_norm"]);
        assert!(number(&spike, "gradient_norm") > 1.5 * number(&spike, "median_norm_around"));
    }
    // Another network than the notebook's, and too few epochs: no claim is about it.
    assert_eq!(rows(&run, "claims.csv").len(), 0);
}

#[test]
fn what_cannot_run_is_refused_before_it_does() {
    let out = Out::new(BINARY);
    let refusal = |setting: &str| complaint(out.command(&[&["--set", setting]]), 2);
    assert!(refusal("target=1/x").contains("no finite value"), "{}", refusal("target=1/x"));
    assert!(refusal("target=sin(y)").contains("`y`"));
    assert!(refusal("widths=[2,3,1]").contains("begin and end with 1"));
    assert!(refusal("grid.points=1").contains("points"));
    assert!(refusal("spikes.window=4").contains("odd"));
    assert!(refusal("epochs=0").contains("epochs"));
}
