//! `classify` from its command line to its files: a small run on `digits`, with the built binary.

mod common;

use common::{Out, assert_same_files, complaint, header, number, rows};
use std::collections::BTreeMap;

const BINARY: &str = env!("CARGO_BIN_EXE_classify");

/// Two epochs of two networks for each of two seeds.
const SMALL: &[&str] = &[
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--quiet",
    "--seeds",
    "2",
    "--set",
    "images.train=400",
    "--set",
    "images.test=200",
    "--set",
    "batch=50",
    "--set",
    "epochs=2",
    "--set",
    r#"models=[{name="deep",channels=[2,3,4]},{name="wide",channels=[5]}]"#,
];

#[test]
fn a_small_run_has_every_row_whatever_the_number_of_workers() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--workers", "1"]]);
    let again = out.run(&[SMALL, &["--workers", "2"]]);
    assert_same_files(
        &run,
        &again,
        &["training.csv", "final.csv", "claims.csv", "training.svg", "parameters.svg"],
    );
    assert_eq!(header(&run, "training.csv"), "seed,model,parameters,epoch,split,loss_nats,accuracy");
    let training = rows(&run, "training.csv");
    assert_eq!(training.len(), 2 * 2 * 2 * 2, "seeds, models, epochs, splits");
    // 5x5 kernels and biases, then ten classes on what three halvings, or one, leave of 28x28.
    let convolution = |inputs: i64, outputs: i64| outputs * (25 * inputs + 1);
    let deep = convolution(1, 2) + convolution(2, 3) + convolution(3, 4) + 10 * (4 * 3 * 3 + 1);
    let wide = convolution(1, 5) + 10 * (5 * 14 * 14 + 1);
    for row in &training {
        let expected = if row["model"] == "deep" { deep } else { wide };
        assert_eq!(row["parameters"], expected.to_string());
        assert!((0. ..=1.).contains(&number(row, "accuracy")) && number(row, "loss_nats") > 0., "{row:?}");
    }

    // Two ways to the same number: the test split after the last epoch, and the final weights'.
    let last = rows(&run, "final.csv");
    assert_eq!(last.len(), 2 * 2 * 2);
    for row in last.iter().filter(|row| row["split"] == "test") {
        let same = |other: &&BTreeMap<String, String>| {
            ["seed", "model", "split"].iter().all(|&key| other[key] == row[key]) && other["epoch"] == "2"
        };
        let after = training.iter().find(same).unwrap();
        assert_eq!((&after["loss_nats"], &after["accuracy"]), (&row["loss_nats"], &row["accuracy"]));
    }

    let timing = rows(&run, "timing.csv");
    assert_eq!(timing.len(), 2 * 2 * 2);
    assert!(timing.iter().all(|row| number(row, "training_seconds") > 0.));
    assert!(run.join("seconds.png").exists());
    // Neither the notebook's networks nor its data: no claim is about them.
    assert_eq!(rows(&run, "claims.csv").len(), 0);
}

#[test]
fn networks_that_do_not_fit_are_refused() {
    let out = Out::new(BINARY);
    let refusal = |setting: &str| complaint(out.command(&[&["--set", setting]]), 2);
    let said = refusal(r#"models=[{name="deep",channels=[2,2,2,2,2,2]}]"#);
    assert!(said.contains(r#"model "deep""#), "{said}");
    assert!(refusal(r#"models=[{name="a",channels=[2]},{name="a",channels=[3]}]"#).contains("twice"));
    assert!(refusal("batch=0").contains("batch"));
}
