//! `sensitivity` from its command line to its files: small runs on `digits`, with the built binary.

mod common;

use common::{Out, assert_same_files, complaint, header, number, rows};
use std::collections::BTreeMap;
use std::fs;

const BINARY: &str = env!("CARGO_BIN_EXE_sensitivity");

/// Two epochs of three models for each of two seeds; batches of 300 leave none over, those of 70 a smaller one.
const SMALL: &[&str] = &[
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--quiet",
    "--seeds",
    "2",
    "--set",
    "images.train=300",
    "--set",
    "images.test=90",
    "--set",
    "epochs=2",
    "--set",
    "lr=0.01",
    "--set",
    "batches=[300,20,70]",
    "--set",
    "examples=110",
];

#[test]
fn tables_hold_every_model_and_agree_with_each_other() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--workers", "1"]]);
    assert_eq!(header(&run, "sensitivity.csv"), "seed,batch,lr,measure,unit,split,examples,value");
    let all = rows(&run, "sensitivity.csv");
    // Five measures on both splits, two gaps, the notebook's.
    assert_eq!(all.len(), 2 * 3 * (6 * 2 + 2 + 1));
    let keyed: BTreeMap<[&str; 4], f64> = all
        .iter()
        .map(|row| {
            let key = ["seed", "batch", "measure", "split"].map(|column| row[column].as_str());
            (key, number(row, "value"))
        })
        .collect();
    assert_eq!(keyed.len(), all.len());
    let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} and {b}");

    let training = rows(&run, "training.csv");
    assert_eq!(training.len(), 2 * 3 * 2 * 2);
    for seed in ["0", "1"] {
        for batch in ["20", "70", "300"] {
            let at = |measure, split| keyed[&[seed, batch, measure, split]];
            let last = training.iter().find(|row| {
                row["seed"] == seed && row["batch"] == batch && row["epoch"] == "2" && row["split"] == "test"
            });
            close(at("loss", "test"), number(last.unwrap(), "loss_nats"));
            close(at("loss_gap", "both"), at("loss", "test") - at("loss", "train"));
            for (split, examples) in [("train", 110_f64), ("test", 90.)] {
                let [gradient, whole, jacobian, logits] = [
                    "input_gradient_norm",
                    "input_gradient_frobenius_norm",
                    "jacobian_norm",
                    "logit_jacobian_norm",
                ]
                .map(|measure| at(measure, split));
                // A root mean square is no smaller than its mean.
                assert!(gradient > 0. && whole * examples.sqrt() >= gradient * (1. - 1e-6));
                // ‖p - y‖ is at most √2, and diag p - p pᵀ has no eigenvalue above 1/2.
                assert!(gradient <= 2_f64.sqrt() * logits && jacobian > 0. && jacobian <= 0.5 * logits);
            }
            assert!(at("notebook_parameter_gradient_norm", "last batch") > 0.);
        }
    }
    let last = all.iter().filter(|row| row["split"] == "last batch");
    let sizes: Vec<&str> = last.map(|row| row["examples"].as_str()).collect();
    assert_eq!(sizes, ["300", "20", "20", "300", "20", "20"], "300 = 15 x 20 = 4 x 70 + 20");

    // Two seeds: the geometric mean, by hand.
    for row in rows(&run, "sensitivity_mean.csv").iter().filter(|row| row["measure"] == "jacobian_norm") {
        let [a, b] = ["0", "1"].map(|seed| keyed[&[seed, &row["batch"], "jacobian_norm", &row["split"]]]);
        close(number(row, "mean"), (a * b).sqrt());
        assert!(number(row, "low") < a.min(b) && number(row, "high") > a.max(b));
    }
    for figure in ["training", "sensitivity", "gap"] {
        let svg = fs::read_to_string(run.join(format!("{figure}.svg"))).unwrap();
        assert!(svg.contains("digits") && svg.contains("2 seeds") && !svg.contains("NaN"), "{figure}");
    }
    // No batch of at least 5,000: the claims that need none are judged.
    assert_eq!(rows(&run, "claims.csv").len(), 2);

    let other = Out::new(BINARY);
    let again = other.run(&[SMALL, &["--workers", "2"]]);
    let tables = ["training.csv", "sensitivity.csv", "sensitivity_mean.csv", "claims.csv"];
    assert_same_files(&run, &again, &tables);
}

#[test]
fn a_batch_larger_than_the_data_is_refused() {
    let out = Out::new(BINARY);
    let said = complaint(out.command(&[&SMALL[..4], &SMALL[5..], &["--set", "batches=[20,301]"]]), 2);
    assert!(said.contains("batches: the batch must lie between 1 and the 300 training examples, found 301"));
    assert!(out.runs().is_empty());
}
