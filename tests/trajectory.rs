//! `trajectory` from its command line to its files: a small run on `digits`, with the built binary.

mod common;

use common::{Out, assert_same_files, complaint, files_in, header, number, parts, rows, unfinish};
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

const BINARY: &str = env!("CARGO_BIN_EXE_trajectory");

/// Three runs of six epochs.
const SMALL: &[&str] = &[
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--quiet",
    "--seeds",
    "3",
    "--set",
    "images.train=400",
    "--set",
    "images.test=200",
    "--set",
    "batch=50",
    "--set",
    "epochs=6",
    "--set",
    "hidden=[5,4]",
    "--set",
    "optimiser.lr=0.01",
];

const FILES: &[&str] = &[
    "training.csv",
    "projection.csv",
    "variance.csv",
    "similarity.csv",
    "claims.csv",
    "training.svg",
    "projection_whole.svg",
    "projection_layer1.svg",
    "projection_error.svg",
    "variance.svg",
    "similarity.svg",
];

static UNDISTURBED: LazyLock<(Out, std::path::PathBuf)> = LazyLock::new(|| {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--workers", "1"]]);
    (out, run)
});

/// The weight matrices of a trained model, read by their names.
fn weights(run: &Path, name: &str, matrices: &[&str]) -> Vec<f64> {
    let bytes = fs::read(run.join("weights").join(name)).unwrap();
    let (header, data) = parts(&bytes);
    let of = |matrix: &&str| {
        let place = |end: usize| header[*matrix]["data_offsets"][end].as_u64().unwrap() as usize;
        let numbers = data[place(0)..place(1)].as_chunks::<4>().0;
        numbers.iter().map(|&number| f64::from(f32::from_le_bytes(number))).collect::<Vec<_>>()
    };
    matrices.iter().flat_map(of).collect()
}

#[test]
fn a_small_run_has_every_row_whatever_the_number_of_workers() {
    let run = &UNDISTURBED.1;
    let out = Out::new(BINARY);
    assert_same_files(run, &out.run(&[SMALL, &["--workers", "2"]]), FILES);
    assert_eq!(rows(run, "training.csv").len(), 3 * 6 * 2, "seeds, epochs, splits");
    assert_eq!(
        header(run, "projection.csv"),
        "part,seed,epoch,component_1,component_2,train_loss_nats,train_accuracy,test_loss_nats,test_accuracy"
    );
    let projection = rows(run, "projection.csv");
    assert_eq!(projection.len(), 2 * 3 * 7, "parts, seeds, snapshots");
    for part in ["whole", "layer1"] {
        // Scores are centred, and their variances are those that the components explain.
        let variance = rows(run, "variance.csv");
        for component in ["1", "2"] {
            let scores: Vec<f64> = projection
                .iter()
                .filter(|row| row["part"] == part)
                .map(|row| number(row, &format!("component_{component}")))
                .collect();
            assert!(scores.iter().sum::<f64>().abs() < 1e-9 * scores.len() as f64);
            let explained = variance
                .iter()
                .find(|row| row["part"] == part && row["seed"].is_empty() && row["component"] == component)
                .unwrap();
            let squares = scores.iter().map(|score| score * score).sum::<f64>() / 20.;
            let expected = number(explained, "explained_variance");
            assert!((squares / expected - 1.).abs() < 1e-9, "{part} {component}: {squares} {expected}");
        }
    }
    // Two ways to the same number: the test split in training, and the snapshot's.
    for row in rows(run, "training.csv").iter().filter(|row| row["split"] == "test") {
        let snapshot = projection.iter().find(|other| {
            other["part"] == "whole" && other["seed"] == row["seed"] && other["epoch"] == row["epoch"]
        });
        let snapshot = snapshot.unwrap();
        assert_eq!(
            (&snapshot["test_loss_nats"], &snapshot["test_accuracy"]),
            (&row["loss_nats"], &row["accuracy"])
        );
    }
    // Neither the notebook's network nor its data: what is claimed of runs in general.
    assert_eq!(rows(run, "claims.csv").len(), 3);
}

/// Against the final weights as a PyTorch user reads them.
#[test]
fn similarities_are_those_of_the_weights() {
    let run = &UNDISTURBED.1;
    let names: Vec<String> = files_in(&run.join("weights"))
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 3);
    let similarity = rows(run, "similarity.csv");
    assert_eq!(similarity.len(), 2 * 7 * (3 + 3), "parts, epochs, pairs and own starts");
    let matrices = ["fc1.weight", "fc2.weight", "fc3.weight"];
    for (part, matrices) in [("whole", &matrices[..]), ("layer1", &matrices[..1])] {
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let [left, right] = [a, b].map(|index: usize| weights(run, &names[index], matrices));
            let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            let cosine = dot(&left, &right) / (dot(&left, &left) * dot(&right, &right)).sqrt();
            let difference: Vec<f64> = left.iter().zip(&right).map(|(x, y)| x - y).collect();
            let (a, b) = (a.to_string(), b.to_string());
            let end = |row: &&std::collections::BTreeMap<String, String>| {
                row["part"] == part && row["seed_a"] == a && row["seed_b"] == b && row["epoch_a"] == "6"
            };
            let row = similarity.iter().find(end).unwrap();
            assert!((number(row, "cosine") - cosine).abs() < 1e-12);
            assert!((number(row, "distance") - dot(&difference, &difference).sqrt()).abs() < 1e-12);
        }
    }
    for row in similarity.iter().filter(|row| row["seed_a"] == row["seed_b"] && row["epoch_b"] == "0") {
        assert!(number(row, "distance") == 0. && (number(row, "cosine") - 1.).abs() < 1e-12, "{row:?}");
    }
}

/// As after a crash between the epochs: all trials stand where their checkpoint stands, one of them without its snapshots.
#[test]
fn a_run_that_is_taken_up_has_the_same_snapshots() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL]);
    unfinish(&run);
    let kept = files_in(&run.join("trials"));
    assert_eq!(kept.len(), 6, "a checkpoint and its snapshots, each of three runs: {kept:?}");
    let snapshots = kept.iter().find(|path| path.to_str().unwrap().ends_with(".snapshots.safetensors"));
    fs::remove_file(snapshots.unwrap()).unwrap();
    for file in FILES {
        fs::remove_file(run.join(file)).unwrap();
    }
    let arguments: Vec<&str> = SMALL.iter().copied().filter(|&argument| argument != "--quiet").collect();
    let said = out.command(&[&arguments, &["--resume"]]).output().unwrap();
    assert!(said.status.success());
    let said = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.matches("is not usable (its snapshots").count(), 1, "{said}");
    assert_eq!(out.newest(), run);
    assert_same_files(&UNDISTURBED.1, &run, FILES);
}

/// With lr 1e30 the weights overflow. The run says so in its numbers and does not stop for it.
#[test]
fn runs_that_diverge_are_shown_as_far_as_they_go() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--set", "optimiser.lr=1e30"]]);
    let projection = rows(&run, "projection.csv");
    assert_eq!(projection.len(), 2 * 3 * 7);
    assert!(projection.iter().any(|row| row["component_1"] == "NaN"), "{projection:?}");
    for row in rows(&run, "claims.csv") {
        assert!(["inconclusive", "supported", "contradicted"].contains(&row["verdict"].as_str()), "{row:?}");
    }
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    let out = Out::new(BINARY);
    let refusal = |setting: &str| complaint(out.command(&[&["--set", setting]]), 2);
    assert!(refusal("layer=4").contains("between 1 and the 3 layers"));
    assert!(refusal("layer=0").contains("found 0"));
    assert!(refusal("epochs=1").contains("epochs"));
    assert!(refusal("every=0").contains("every"));
    assert!(refusal("seeds=51").contains("at most 50"));
    assert!(refusal("hidden=[0]").contains("hidden"));
    assert!(refusal("hidden=[100000]").contains("parameters"));
    assert!(refusal("batch=0").contains("batch"));
}
