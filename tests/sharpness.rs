//! `sharpness` from its command line to its files: small runs on `digits`, with the built binary.

mod common;

use common::{Out, assert_same_files, complaint, files_in, header, number, rows};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const BINARY: &str = env!("CARGO_BIN_EXE_sharpness");

/// Two epochs of four small dense networks for each of two seeds.
const SMALL: &[&str] = &[
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--quiet",
    "--network",
    "784-12-8-10",
    "--set",
    "images.train=300",
    "--set",
    "images.test=90",
    "--set",
    "epochs=2",
    "--set",
    "steps=3",
    "--set",
    "pairs=4",
    "--set",
    "keskar.dimension=7",
    "--set",
    "examples=150",
    "--set",
    "rescale=50.0",
];

const GRID: &[&str] = &["--seeds", "2", "--set", "lrs=[0.01,0.05]", "--set", "batches=[100,20]"];

const MEASURES: usize = 13;

#[test]
fn tables_hold_every_model_and_agree_with_each_other() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, GRID, &["--workers", "1"]]);
    assert_eq!(header(&run, "sharpness.csv"), "model,seed,batch,lr,measure,unit,value,standard_error");
    let all = rows(&run, "sharpness.csv");
    assert_eq!(all.len(), 2 * 4 * MEASURES);
    let of = |model: &str, measure: &str| {
        let row = all.iter().find(|row| row["model"] == model && row["measure"] == measure).unwrap();
        number(row, "value")
    };
    let models = rows(&run, "models.csv");
    assert_eq!(models.len(), 8);
    for model in &models {
        let (name, at) = (model["model"].as_str(), |column| number(model, column));
        assert!((at("loss_gap_nats") - (at("test_loss_nats") - at("train_loss_nats"))).abs() < 1e-12);
        assert!((at("error_gap") - (at("train_accuracy") - at("test_accuracy"))).abs() < 1e-12);
        // The first step is one of those that are looked at, and the subspace lies in no larger a box.
        for scale in ["unit", "elementwise", "filter"] {
            assert!(of(name, &format!("worst_{scale}")) >= of(name, &format!("one_step_{scale}")));
            assert!(of(name, &format!("worst_{scale}")) > 0.);
        }
        assert!(of(name, "keskar") > 0. && of(name, "keskar_subspace") > 0.);
    }
    // What is estimated has an error, maxima have none.
    for row in &all {
        let estimated = row["measure"].starts_with("average") || row["measure"].ends_with("trace");
        assert_eq!(row["standard_error"].is_empty(), !estimated, "{row:?}");
    }

    // The same function, other weights: the adaptive measures agree, the others do not.
    let rescaling = rows(&run, "rescaling.csv");
    assert_eq!(rescaling.len(), 2 * (3 + MEASURES));
    for row in &rescaling {
        let change = number(row, "ratio").ln().abs();
        let kept =
            ["loss", "accuracy", "elementwise", "filter"].iter().any(|part| row["measure"].contains(part));
        assert!(if kept { change < 1e-2 } else { change > 0.05 }, "{row:?}");
        if !row["measure"].contains("loss") && !row["measure"].contains("accuracy") {
            assert!((number(row, "value") - of(&row["model"], &row["measure"])).abs() < 1e-12);
        }
    }

    // τ by hand: concordant less discordant pairs, where nothing ties.
    let correlations = rows(&run, "correlation.csv");
    assert_eq!(correlations.len(), 2 * (MEASURES + 1));
    let row = correlations.iter().find(|row| row["measure"] == "keskar" && row["gap"] == "loss").unwrap();
    let points: Vec<(f64, f64)> =
        models.iter().map(|model| (of(&model["model"], "keskar"), number(model, "loss_gap_nats"))).collect();
    let pairs = (0..8).flat_map(|i| (0..i).map(move |j| (i, j)));
    let signs = pairs.map(|(i, j)| ((points[i].0 - points[j].0) * (points[i].1 - points[j].1)).signum());
    assert!((number(row, "kendall_tau_b") - signs.sum::<f64>() / 28.).abs() < 1e-12);
    assert_eq!(row["models"], "8");

    let claims: BTreeMap<String, String> =
        rows(&run, "claims.csv").into_iter().map(|row| (row["id"].clone(), row["seeds"].clone())).collect();
    // Four models a seed are too few for the claims of τ.
    assert_eq!(claims.len(), 6);
    assert!(claims.values().all(|seeds| seeds == "2"));
    for figure in ["training", "sharpness", "loss_gap", "error_gap", "correlation"] {
        let svg = fs::read_to_string(run.join(format!("{figure}.svg"))).unwrap();
        assert!(svg.contains("784-12-8-10 on digits") && svg.contains("2 seeds"), "{figure}");
        assert!(!svg.contains("NaN"), "{figure}");
    }

    let other = Out::new(BINARY);
    let again = other.run(&[SMALL, GRID, &["--workers", "3"]]);
    let tables = [
        "training.csv",
        "models.csv",
        "sharpness.csv",
        "sharpness_mean.csv",
        "rescaling.csv",
        "correlation.csv",
        "claims.csv",
    ];
    assert_same_files(&run, &again, &tables);

    // The weights that the run left are measured as the user's own, to the same numbers.
    let weights = files_in(&run.join("weights"));
    let files: Vec<&str> = weights.iter().take(2).map(|path| path.to_str().unwrap()).collect();
    let given = Out::new(BINARY);
    let mine = given.run(&[SMALL, &["--weights", files[0], "--weights", files[1]]]);
    let found = rows(&mine, "sharpness.csv");
    assert_eq!(found.len(), 2 * MEASURES);
    let names: BTreeSet<&str> = found.iter().map(|row| row["model"].as_str()).collect();
    assert_eq!(names.len(), 2);
    for row in &found {
        assert!(row["batch"].is_empty() && row["lr"].is_empty());
        assert!((number(row, "value") - of(&row["model"], &row["measure"])).abs() < 1e-12, "{row:?}");
    }
    for absent in ["training.csv", "correlation.csv", "claims.csv", "weights"] {
        assert!(!mine.join(absent).exists(), "{absent}");
    }
    assert!(mine.join("loss_gap.svg").exists() && mine.join("rescaling.csv").exists());
}

#[test]
fn what_cannot_be_measured_is_refused_at_once() {
    let out = Out::new(BINARY);
    for (arguments, code, expected) in [
        (&["--set", "batches=[20,301]"][..], 2, "batches: the batch must lie between 1 and the 300"),
        (&["--set", "lrs=[0.1,0.1]"], 2, "lrs must be different, found 0.1 twice"),
        (&["--set", "lrs=[-1.0]"], 2, "lrs: "),
        (&["--set", "lrs=[]"], 2, "found none"),
        (&["--set", "unit.rho=0.0"], 2, "unit.rho must be above 0"),
        (&["--set", "keskar.dimension=100000"], 2, "keskar.dimension must lie between 1 and the 9614"),
        (&["--set", "pairs=1"], 2, "pairs must be at least 2"),
        (&["--set", "steps=0"], 2, "steps must be at least 1"),
        (&["--weights", "nowhere.safetensors"], 1, "cannot read the weights nowhere.safetensors"),
    ] {
        let small: Vec<&str> = SMALL.iter().copied().filter(|word| *word != "--quiet").collect();
        let said = complaint(out.command(&[&small, GRID, arguments]), code);
        assert!(said.contains(expected), "{said}");
    }
    let said = complaint(out.command(&[&["--network", "resnet"]]), 2);
    assert!(said.contains("network must be lenet or widths"), "{said}");
    assert!(out.runs().iter().all(|run| !run.join("weights").exists()));
}
