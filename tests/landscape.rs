//! `landscape` from its command line to its files: small runs on `digits`, with the built binary.
#![allow(clippy::float_cmp)] // Numbers are to be the same to the last bit.

mod common;

use common::{Out, assert_same_files, complaint, files_in, header, manifest, number, rows, unfinish};
use ndarray::{Array1, Array2};
use ndarray_npy::NpzReader;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const BINARY: &str = env!("CARGO_BIN_EXE_landscape");

/// Two epochs of a small dense network, and grids that hold 0.
const SMALL: &[&str] = &[
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--quiet",
    "--set",
    r#"network="784-12-10""#,
    "--set",
    "images.train=150",
    "--set",
    "images.test=60",
    "--set",
    "batch=30",
    "--set",
    "epochs=3",
    "--set",
    "line.points=7",
    "--set",
    "plane.points=5",
    "--set",
    "minima.points=4",
    "--set",
    "pca.points=4",
];

const TABLES: [&str; 6] =
    ["training.csv", "surface.csv", "marks.csv", "directions.csv", "measures.csv", "claims.csv"];
const ARRAYS: [&str; 7] = [
    "surfaces/line-seed0.npz",
    "surfaces/minima-seed0.npz",
    "surfaces/minima-seed0.vtk",
    "surfaces/pca-seed0.npz",
    "surfaces/pca-seed0.vtk",
    "surfaces/plane-seed0.npz",
    "surfaces/plane-seed0.vtk",
];

fn assert_same_run(left: &Path, right: &Path) {
    assert_same_files(left, right, &TABLES);
    for name in ARRAYS {
        assert!(fs::read(left.join(name)).unwrap() == fs::read(right.join(name)).unwrap(), "{name} differs");
    }
}

/// One undisturbed run of all surfaces by one worker.
static BASE: LazyLock<(Out, PathBuf)> = LazyLock::new(|| {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--workers", "1"]]);
    (out, run)
});

/// The cells of the rows in which all of `wanted` hold.
fn select(run: &Path, file: &str, wanted: &[(&str, &str)]) -> Vec<BTreeMap<String, String>> {
    let mut all = rows(run, file);
    all.retain(|row| wanted.iter().all(|(column, value)| row[*column] == *value));
    all
}

#[test]
fn every_file_of_a_run_is_there() {
    let run = &BASE.1;
    let mut expected: BTreeSet<String> = TABLES.iter().map(|name| (*name).to_owned()).collect();
    for figure in ["training", "line", "plane", "plane_3d", "minima", "minima_3d", "pca", "pca_3d"] {
        expected.extend([format!("{figure}.svg"), format!("{figure}.png")]);
        let svg = fs::read_to_string(run.join(format!("{figure}.svg"))).unwrap();
        assert!(svg.contains("digits") && svg.contains("seed 0"), "{figure}");
        assert!(!svg.contains("NaN") && !svg.contains("no finite value"), "{figure}");
    }
    let more = [".lock", "manifest.json", "report.html", "settings.toml", "surfaces", "trials", "weights"];
    expected.extend(more.map(str::to_owned));
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(files_in(run).iter().map(name).collect::<BTreeSet<_>>(), expected);
    let arrays = files_in(&run.join("surfaces"))
        .iter()
        .map(|path| format!("surfaces/{}", name(path)))
        .collect::<Vec<_>>();
    assert_eq!(arrays, ARRAYS);
    assert_eq!(files_in(&run.join("weights")).len(), 3);
    assert_eq!(manifest(run)["status"], "finished");
}

#[test]
fn lenets_grid_agrees_with_its_model() {
    let out = Out::new(BINARY);
    let more = [
        "--set",
        r#"network="lenet""#,
        "--set",
        "images.train=150",
        "--set",
        "epochs=1",
        "--set",
        "line.points=3",
    ];
    let run = out.run(&[SMALL, &more, &["--surface", "line", "--surface", "plane"]]);
    for surface in ["line", "plane"] {
        for split in ["train", "test"] {
            let model = &select(&run, "marks.csv", &[("surface", surface), ("split", split)])[0];
            let mut centre = select(&run, "surface.csv", &[("surface", surface), ("split", split)]);
            assert_eq!(centre.len(), if surface == "line" { 3 } else { 25 });
            centre.retain(|row| number(row, "x") == 0. && row["y"].parse().unwrap_or(0.) == 0.);
            let [model, centre] = [model, &centre[0]].map(|row| number(row, "loss_nats"));
            assert!((centre / model - 1.).abs() < 1e-5, "{surface} {split}: {centre} and {model}");
        }
    }
}

#[test]
fn models_have_the_losses_of_their_training_bit_for_bit() {
    let run = &BASE.1;
    assert_eq!(header(run, "surface.csv"), "surface,seed,x,y,split,loss_nats,accuracy");
    assert_eq!(rows(run, "surface.csv").len(), 2 * (7 + 25 + 16 + 16));
    let one = |file: &str, wanted: &[(&str, &str)]| {
        let found = select(run, file, wanted);
        assert_eq!(found.len(), 1, "{file} {wanted:?}");
        (found[0]["loss_nats"].clone(), found[0]["accuracy"].clone())
    };
    let trained =
        |draw: &str, epoch: &str| one("training.csv", &[("draw", draw), ("epoch", epoch), ("split", "test")]);
    let mark = |surface: &str, mark: &str| {
        one("marks.csv", &[("surface", surface), ("mark", mark), ("split", "test")])
    };
    let centre = |surface: &str| {
        let mut all = select(run, "surface.csv", &[("surface", surface), ("split", "test")]);
        all.retain(|row| number(row, "x") == 0. && row["y"].parse().unwrap_or(0.) == 0.);
        assert_eq!(all.len(), 1, "{surface}");
        (all[0]["loss_nats"].clone(), all[0]["accuracy"].clone())
    };
    for surface in ["line", "plane"] {
        assert_eq!(mark(surface, "model"), trained("0", "3"));
        assert_eq!(centre(surface), trained("0", "3"));
    }
    for (draw, name) in [("0", "θ₀"), ("1", "θ₁"), ("2", "θ₂")] {
        assert_eq!(mark("minima", name), trained(draw, "3"));
    }
    for epoch in ["1", "2", "3"] {
        assert_eq!(mark("pca", &format!("epoch {epoch}")), trained("0", epoch));
    }
    // The end of the way is where its plane is hung up.
    let end = select(run, "marks.csv", &[("surface", "pca"), ("mark", "epoch 3")]);
    assert!(end.iter().all(|row| number(row, "x") == 0. && number(row, "y") == 0.));
}

#[test]
fn measures_agree_with_the_tables() {
    let run = &BASE.1;
    let measure = |surface: &str, name: &str, split: &str| {
        let found = select(run, "measures.csv", &[("surface", surface), ("measure", name), ("split", split)]);
        assert_eq!(found.len(), 1, "{surface} {name} {split}");
        number(&found[0], "value")
    };
    let loss = |surface: &str, x: f64, split: &str| {
        let all = select(run, "surface.csv", &[("surface", surface), ("split", split)]);
        let row =
            all.iter().find(|row| number(row, "x") == x && (row["y"].is_empty() || number(row, "y") == 0.));
        number(row.unwrap(), "loss_nats")
    };
    for split in ["train", "test"] {
        let ends = f64::midpoint(loss("line", -1., split), loss("line", 1., split));
        let rise = ends - loss("line", 0., split);
        assert!((measure("line", "mean_rise_1", split) - rise).abs() < 1e-12);
        assert!(measure("plane", "largest_rise_0.5", split) >= measure("plane", "mean_rise_0.5", split));
        let lowest = select(run, "surface.csv", &[("surface", "plane"), ("split", split)])
            .iter()
            .map(|row| number(row, "loss_nats"))
            .fold(f64::INFINITY, f64::min);
        assert_eq!(measure("plane", "lowest_loss", split), lowest);
    }
    assert!((0. ..=1.).contains(&measure("plane", "rank_correlation", "both")));
    let shares = select(run, "directions.csv", &[("surface", "pca")]);
    let shares: f64 = shares.iter().map(|row| number(row, "explained_variance_ratio")).sum();
    assert!((measure("pca", "explained_by_two", "train") - shares).abs() < 1e-12 && shares <= 1. + 1e-9);
    // Directions within planes of one unit are orthonormal; random ones are as long as the weights.
    for surface in ["minima", "pca"] {
        let axes = select(run, "directions.csv", &[("surface", surface)]);
        assert!(axes.iter().all(|row| (number(row, "length") - 1.).abs() < 1e-9));
        assert!(number(&axes[1], "cosine_to_x").abs() < 1e-9);
    }
    assert_eq!(rows(run, "claims.csv").len(), 5);
}

#[test]
fn arrays_hold_the_table() {
    let run = &BASE.1;
    let mut arrays = NpzReader::new(File::open(run.join("surfaces/plane-seed0.npz")).unwrap()).unwrap();
    let [x, y]: [Array1<f64>; 2] = ["x", "y"].map(|name| arrays.by_name(name).unwrap());
    for split in ["train", "test"] {
        let loss: Array2<f64> = arrays.by_name(&format!("{split}_loss")).unwrap();
        let accuracy: Array2<f64> = arrays.by_name(&format!("{split}_accuracy")).unwrap();
        let table = select(run, "surface.csv", &[("surface", "plane"), ("split", split)]);
        assert_eq!((loss.dim(), table.len()), ((5, 5), 25));
        for (index, row) in table.iter().enumerate() {
            let (j, i) = (index / 5, index % 5);
            assert_eq!((number(row, "x"), number(row, "y")), (x[i], y[j]));
            assert_eq!(number(row, "loss_nats"), loss[[j, i]]);
            assert_eq!(number(row, "accuracy"), accuracy[[j, i]]);
        }
    }
    let grid = fs::read_to_string(run.join("surfaces/plane-seed0.vtk")).unwrap();
    assert!(
        grid.starts_with("# vtk DataFile Version 3.0\n")
            && grid.contains("\nDIMENSIONS 5 5 1\nPOINTS 25 double\n")
    );
    assert!(grid.contains("\nSCALARS log10_test_loss double 1\n") && grid.lines().count() == 7 + 25 + 6 * 27);
}

#[test]
fn neither_workers_nor_a_loss_of_points_change_a_byte() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--workers", "2"]]);
    assert_same_run(&BASE.1, &run);

    // As if the process had been killed on its way, with some points kept and some not.
    unfinish(&run);
    let kept: Vec<PathBuf> = files_in(&run.join("trials"))
        .into_iter()
        .filter(|path| path.to_string_lossy().ends_with(".numbers.safetensors"))
        .collect();
    assert!(kept.len() > 20);
    for path in kept.iter().step_by(3) {
        fs::remove_file(path).unwrap();
    }
    for name in TABLES.iter().chain(&ARRAYS) {
        fs::remove_file(run.join(name)).unwrap();
    }
    let untouched = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    let before = untouched(&kept[1]);
    out.command(&[SMALL, &["--workers", "1", "--resume"]]).assert().success();
    assert_eq!(out.runs(), std::slice::from_ref(&run));
    assert_same_run(&BASE.1, &run);
    assert!(kept.iter().all(|path| path.exists()) && untouched(&kept[1]) == before);
}

#[test]
fn weights_of_ones_own_are_looked_at_and_not_trained() {
    let weights = files_in(&BASE.1.join("weights"));
    let weights: Vec<&str> = weights.iter().map(|path| path.to_str().unwrap()).collect();
    let out = Out::new(BINARY);
    let one = out.run(&[SMALL, &["--weights", weights[0], "--seeds", "2"]]);
    let all = rows(&one, "surface.csv");
    assert_eq!(all.len(), 2 * 2 * (7 + 25), "two seeds of line and plane");
    assert!(!one.join("training.csv").exists() && !one.join("weights").exists());
    // The first seed's directions are those of the trained model, whose surface this is.
    let there =
        rows(&BASE.1, "surface.csv").into_iter().filter(|row| ["line", "plane"].contains(&&*row["surface"]));
    assert!(all.into_iter().filter(|row| row["seed"] == "0").eq(there));

    let three: Vec<&str> = weights.iter().flat_map(|path| ["--weights", path]).collect();
    let three = out.run(&[SMALL, &three, &["--surface", "minima", "--seeds", "2"]]);
    let there = rows(&BASE.1, "surface.csv").into_iter().filter(|row| row["surface"] == "minima");
    assert!(rows(&three, "surface.csv").into_iter().eq(there), "one plane, whatever the seeds");
}

#[test]
fn what_cannot_be_looked_at_is_said_in_a_sentence() {
    let weights = files_in(&BASE.1.join("weights"));
    let weights = weights[0].to_str().unwrap();
    let out = Out::new(BINARY);
    let said = |arguments: &[&str], code: i32| {
        let said = complaint(out.command(&[&SMALL[..4], &SMALL[5..], arguments]), code);
        assert!(said.len() < 400, "{said}");
        said
    };
    for (arguments, sentence) in [
        (&["--set", "plane.points=1"][..], "plane: a grid needs 2 to 10,000 points a side, found 1"),
        (&["--set", "pca.points=5000"], "pca.points must be at most 1001, found 5000"),
        (
            &["--set", "line.from=2"],
            "line: a grid must run from a smaller to a larger finite value, found 2 to 1",
        ),
        (&["--set", "minima.margin=-1"], "minima.margin must lie between 0 and 10, found -1"),
        (&["--surface", "volume"], "unknown variant `volume`"),
        (&["--surface", "line", "--surface", "line"], "surfaces must be different, found line twice"),
        (&["--set", "normalisation=row"], "unknown variant `row`"),
        (&["--weights", "a", "--weights", "b"], "weights must be none, one file, or 3"),
        (&["--weights", "a", "--surface", "pca"], "the surface pca needs a course of training"),
        (&["--weights", "a", "--surface", "minima"], "the surface minima goes through 3 minima"),
        (&["--set", "epochs=1"], "epochs must be at least 2, found 1"),
        (&["--network", "784"], "network must"),
    ] {
        let said = said(arguments, 2);
        assert!(said.contains(sentence), "{said}");
    }
    assert!(out.runs().is_empty(), "nothing was run");

    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.safetensors");
    let mut bytes = fs::read(weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&bad, bytes).unwrap();
    let told = said(&["--weights", bad.to_str().unwrap()], 1);
    assert!(told.contains("bad.safetensors hold 1 numbers that are not finite"), "{told}");
    let told = said(&["--weights", weights, "--network", "lenet"], 1);
    assert!(told.contains(weights), "{told}");
    let told = said(&["--weights", "/nowhere.safetensors"], 1);
    assert!(told.contains("cannot read the weights /nowhere.safetensors"), "{told}");
    let same = ["--weights", weights, "--weights", weights, "--weights", weights];
    let told = said(&same, 1);
    assert!(told.contains("the three points lie on one straight line"), "{told}");
}
