//! `random-labels` from its command line to its files: a small run on `digits`, with the built binary.

mod common;

use common::{Out, assert_same_files, complaint, header, number, rows};
use std::collections::BTreeMap;

const BINARY: &str = env!("CARGO_BIN_EXE_random-labels");

/// Two epochs at the report's setting; three variants that end with the epoch that fits a tenth, or the third.
const SMALL: &[&str] = &[
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--quiet",
    "--set",
    "images.train=400",
    "--set",
    "images.test=100",
    "--set",
    "report.epochs=2",
    "--set",
    "memorise.train=300",
    "--set",
    "memorise.epochs=3",
    "--set",
    "memorise.stop_at=0.2",
    "--set",
    r#"memorise.variants=[
        { name = "half", labels = 0.5, pixels = "true" }, { name = "all", labels = 1, pixels = "true" },
        { name = "shuffled", labels = 0, pixels = "shuffled" }, { name = "random", labels = 0, pixels = "random" },
        { name = "noise", labels = 0, pixels = "gaussian" } ]"#,
];

#[test]
fn tables_agree_with_each_other_whatever_the_number_of_workers() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--seeds", "2", "--workers", "1"]]);
    let again = out.run(&[SMALL, &["--seeds", "2", "--workers", "2"]]);
    let files = ["report.csv", "training.csv", "memorisation.csv", "claims.csv", "memorisation.svg"];
    assert_same_files(&run, &again, &files);
    for figure in ["report.png", "training.png", "memorisation.png"] {
        assert!(run.join(figure).exists(), "{figure}");
    }

    assert_eq!(rows(&run, "report.csv").len(), 2 * 2 * 2, "seeds, epochs, splits");
    assert_eq!(header(&run, "training.csv"), "seed,variant,epoch,split,loss_nats,accuracy");
    let training = rows(&run, "training.csv");
    let memorisation = rows(&run, "memorisation.csv");
    assert_eq!(memorisation.len(), 2 * 5);
    for row in &memorisation {
        // What the curve says, recomputed.
        let mine = |split: &str| -> Vec<&BTreeMap<String, String>> {
            let same = |other: &&BTreeMap<String, String>| {
                other["seed"] == row["seed"] && other["variant"] == row["variant"] && other["split"] == split
            };
            training.iter().filter(same).collect()
        };
        let (train, test) = (mine("train"), mine("test"));
        let reached = train.iter().find(|epoch| number(epoch, "accuracy") >= 0.2);
        assert_eq!(row["epochs_to_goal"], reached.map_or("", |epoch| epoch["epoch"].as_str()), "{row:?}");
        assert_eq!(row["reached"], reached.is_some().to_string());
        assert_eq!(row["epochs_trained"], reached.map_or("3", |epoch| epoch["epoch"].as_str()));
        assert_eq!(test.last().unwrap()["loss_nats"], row["test_loss_nats"]);
        let gap = number(row, "train_accuracy") - number(row, "test_accuracy");
        assert!((gap - number(row, "error_gap")).abs() < 1e-12);
        // Nine in ten of the labels replaced are wrong; four standard deviations of 300.
        let expected = 0.9 * number(row, "random_label_probability");
        let wrong = number(row, "wrong_label_fraction");
        assert!((wrong - expected).abs() <= 4. * (expected * (1. - expected) / 300.).sqrt(), "{row:?}");
    }
    // A variant does not depend on what else is trained, nor a seed on the others.
    let alone = [r#"memorise.variants=[{ name = "all", labels = 1, pixels = "true" }]"#];
    let one = out.run(&[SMALL, &["--seed", "1", "--set"], &alone]);
    let find = |rows: Vec<BTreeMap<String, String>>| {
        rows.into_iter().find(|row| row["variant"] == "all" && row["seed"] == "1").unwrap()
    };
    assert_eq!(find(rows(&one, "memorisation.csv")), find(memorisation));
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let out = Out::new(BINARY);
    let refusal = |setting: &str| complaint(out.command(&[&["--set", setting]]), 2);
    assert!(refusal("report.labels=1.5").contains("report.labels must lie between 0 and 1"));
    assert!(refusal("memorise.train=70000").contains("memorise.train"));
    assert!(refusal(r#"memorise.variants=[{name="a",labels=0,pixels="torn"}]"#).contains("torn"));
}
