//! `paths` from its command line to its files: small runs on `digits`, with the built binary.

mod common;

use common::{Out, assert_same_files, complaint, files_in, header, number, parts, rows, unfinish};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const BINARY: &str = env!("CARGO_BIN_EXE_paths");

/// Three epochs of two minima and of the curves for each of two seeds; nine points are one more than a kept piece of a path.
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
    "epochs=3",
    "--set",
    "batch=20",
    "--set",
    "curve.epochs=2",
    "--set",
    "curve.batch=70",
    "--set",
    "points=9",
];
/// LeNet or a dense network: the latter is the faster.
const DENSE: &[&str] = &["--network", "784-20-15-10"];

/// What stands before `--set` in [`SMALL`], for one seed.
const ONE_SEED: &[&str] = &["--dataset", "digits", "--device", "cpu", "--quiet"];

const TABLES: &[&str] = &[
    "training.csv",
    "alignment.csv",
    "curve_training.csv",
    "paths.csv",
    "paths_mean.csv",
    "barrier.csv",
    "barrier_mean.csv",
    "claims.csv",
];
const PATHS: [&str; 5] = ["line", "chain", "bezier", "aligned-line", "aligned-bezier"];

/// LeNet, by one worker.
static UNDISTURBED: LazyLock<(Out, PathBuf)> = LazyLock::new(|| {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--workers", "1"]]);
    (out, run)
});

type Row = BTreeMap<String, String>;

fn find<'a>(rows: &'a [Row], wanted: &[(&str, &str)]) -> &'a Row {
    let is_it = |row: &&Row| wanted.iter().all(|(column, value)| row[*column] == *value);
    rows.iter().find(is_it).unwrap_or_else(|| panic!("no row {wanted:?}"))
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-5 * b.abs().max(1e-3), "{a} and {b}");
}

#[test]
fn tables_hold_every_path_and_agree_with_each_other() {
    let run = &UNDISTURBED.1;
    assert_eq!(header(run, "paths.csv"), "seed,path,t,split,loss_nats,accuracy");
    let [training, paths, barriers] =
        ["training.csv", "paths.csv", "barrier.csv"].map(|file| rows(run, file));
    assert_eq!(training.len(), 2 * 2 * 3 * 2);
    assert_eq!(paths.len(), 2 * 5 * 9 * 2);
    assert_eq!(barriers.len(), 2 * 5 * 2);
    assert_eq!(rows(run, "curve_training.csv").len(), 2 * 3 * 2);
    for seed in ["0", "1"] {
        for path in PATHS {
            for split in ["train", "test"] {
                let at =
                    |t: &str| find(&paths, &[("seed", seed), ("path", path), ("t", t), ("split", split)]);
                // Every path ends where the line does; a permutation of units changes no more than rounding.
                for (t, minimum) in [("0", "1"), ("1", "2")] {
                    let end = at(t);
                    if split == "test" {
                        let own = [("seed", seed), ("minimum", minimum), ("epoch", "3"), ("split", "test")];
                        let own = find(&training, &own);
                        close(number(end, "loss_nats"), number(own, "loss_nats"));
                        close(number(end, "accuracy"), number(own, "accuracy"));
                        if t == "0" || !path.starts_with("aligned") {
                            assert_eq!(end["loss_nats"], own["loss_nats"], "bit for bit");
                        }
                    }
                }
                // The barrier by hand.
                let rise = |value: &dyn Fn(&Row) -> f64| {
                    let t = |k: usize| k as f64 / 8.;
                    let value = |k: usize| value(at(&t(k).to_string()));
                    let rises = (0..9).map(|k| value(k) - (1. - t(k)) * value(0) - t(k) * value(8));
                    rises.fold(0., f64::max)
                };
                let barrier = find(&barriers, &[("seed", seed), ("path", path), ("split", split)]);
                close(number(barrier, "loss_barrier_nats"), rise(&|row| number(row, "loss_nats")));
                close(number(barrier, "error_barrier"), rise(&|row| 1. - number(row, "accuracy")));
            }
        }
        // The straight lines are as long as the alignment says: the first before, the second after it.
        let alignment = rows(run, "alignment.csv");
        let distances: Vec<f64> = alignment
            .iter()
            .filter(|row| row["seed"] == seed)
            .map(|row| number(row, "distance_weight_units"))
            .collect();
        let length = |path| number(find(&barriers, &[("seed", seed), ("path", path)]), "length_weight_units");
        close(length("line"), distances[0]);
        close(length("aligned-line"), distances[distances.len() - 1]);
        assert!(distances.windows(2).all(|pair| pair[1] < pair[0]) && distances.len() > 1);
        assert!(length("bezier") > length("line") && length("chain") > length("line"));
        assert!(length("aligned-bezier") > length("aligned-line"));
    }
    // Two seeds: the mean by hand.
    let means = rows(run, "barrier_mean.csv");
    let mean = find(&means, &[("path", "chain"), ("measure", "loss_barrier"), ("split", "test")]);
    let of_seed = |seed| find(&barriers, &[("seed", seed), ("path", "chain"), ("split", "test")]);
    let [a, b] = ["0", "1"].map(|seed| number(of_seed(seed), "loss_barrier_nats"));
    close(number(mean, "mean"), f64::midpoint(a, b));
    for figure in ["training", "paths", "barrier"] {
        let svg = fs::read_to_string(run.join(format!("{figure}.svg"))).unwrap();
        assert!(
            svg.contains("LeNet on digits") && svg.contains("2 seeds") && !svg.contains("NaN"),
            "{figure}"
        );
    }
    // The one on wide dense networks is not about LeNet.
    assert_eq!(rows(run, "claims.csv").len(), 5);
}

#[test]
fn weights_of_bends_and_of_the_aligned_minimum_are_kept() {
    let run = &UNDISTURBED.1;
    let names: Vec<String> = files_in(&run.join("weights"))
        .iter()
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name.starts_with("seed1"))
        .collect();
    let kinds =
        ["aligned-bezier-bend1", "aligned-minimum2", "bezier-bend1", "chain-bend1", "minimum1", "minimum2"];
    assert_eq!(names, kinds.map(|kind| format!("seed1-{kind}")));
    let bias = |name: &str| {
        let bytes = fs::read(run.join(format!("weights/{name}.safetensors"))).unwrap();
        let (header, numbers) = parts(&bytes);
        let place = |index: usize| header["fc1.bias"]["data_offsets"][index].as_u64().unwrap() as usize;
        let mut bias: Vec<[u8; 4]> =
            numbers[place(0)..place(1)].chunks_exact(4).map(|b| b.try_into().unwrap()).collect();
        let as_it_is = bias.clone();
        bias.sort_unstable();
        (as_it_is, bias)
    };
    let (found, aligned) = (bias("seed1-minimum2"), bias("seed1-aligned-minimum2"));
    assert_ne!(found.0, aligned.0, "moved");
    assert_eq!(found.1, aligned.1, "but the same numbers");
}

#[test]
fn workers_do_not_matter() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--workers", "3"]]);
    assert_same_files(&UNDISTURBED.1, &run, TABLES);
}

/// As after a crash: some of what was kept is there, some is gone, some is damaged.
#[test]
fn a_run_that_is_taken_up_gives_the_same_bytes() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL]);
    unfinish(&run);
    let kept = files_in(&run.join("trials"));
    let of = |ending: &str| {
        let ends = |path: &&PathBuf| path.to_str().unwrap().ends_with(ending);
        kept.iter().filter(ends).collect::<Vec<_>>()
    };
    let (curves, numbers) = (of(".curve.safetensors"), of(".numbers.safetensors"));
    // An alignment a seed, and of each path a piece of eight points and one of one.
    assert_eq!((curves.len(), numbers.len()), (2 * 3, 2 + 2 * 5 * 2));
    fs::remove_file(curves[0]).unwrap();
    fs::write(curves[1], "damaged").unwrap();
    for path in numbers.iter().step_by(3) {
        fs::remove_file(path).unwrap();
    }
    for table in TABLES {
        fs::remove_file(run.join(table)).unwrap();
    }
    let arguments: Vec<&str> = SMALL.iter().copied().filter(|&argument| argument != "--quiet").collect();
    let said = out.command(&[&arguments, &["--resume"]]).output().unwrap();
    assert!(said.status.success());
    let said = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.matches("is not usable").count(), 1, "{said}");
    assert_eq!(out.newest(), run);
    assert_same_files(&UNDISTURBED.1, &run, TABLES);
}

fn minimum(run: &Path, name: &str) -> String {
    run.join(format!("weights/{name}.safetensors")).to_str().unwrap().to_owned()
}

#[test]
fn weights_of_ones_own_are_joined_without_training_them() {
    let trained = &UNDISTURBED.1;
    let out = Out::new(BINARY);
    let [first, second] = ["seed0-minimum1", "seed0-minimum2"].map(|name| minimum(trained, name));
    let run = out.run(&[ONE_SEED, &SMALL[7..], &["--weights", &first, "--weights", &second]]);
    assert!(!run.join("training.csv").exists());
    // The same ends, seed and streams: the same paths.
    let of_seed_0 =
        |run: &Path| rows(run, "paths.csv").into_iter().filter(|row| row["seed"] == "0").collect::<Vec<_>>();
    assert_eq!(of_seed_0(&run), of_seed_0(trained));
    let svg = fs::read_to_string(run.join("paths.svg")).unwrap();
    assert!(svg.contains("weights as given"));
}

#[test]
fn dense_networks_have_paths_too() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, DENSE, &["--set", "curve.bends=3"]]);
    assert_eq!(rows(&run, "paths.csv").len(), 2 * 5 * 9 * 2);
    let bends = files_in(&run.join("weights"));
    assert_eq!(bends.iter().filter(|path| path.to_str().unwrap().contains("seed0-chain-bend")).count(), 3);
}

#[test]
fn what_is_wrong_is_said_in_one_sentence() {
    let out = Out::new(BINARY);
    let said = complaint(out.command(&[&["--weights", "a.safetensors"]]), 2);
    assert!(said.contains("give --weights twice, or not at all, found 1"), "{said}");
    assert!(out.runs().is_empty());

    let trained = &UNDISTURBED.1;
    let first = minimum(trained, "seed0-minimum1");
    let failing = |weights: [&str; 2], more: &[&str]| {
        let weights = ["--weights", weights[0], "--weights", weights[1]];
        complaint(out.command(&[&ONE_SEED[..4], &SMALL[7..], &weights, more]), 1)
    };
    // Of another network.
    let said = failing([&first, &first], DENSE);
    assert!(said.contains("seed0-minimum1.safetensors") && said.contains("784-20-15-10"), "{said}");
    let said = failing([&first, "nowhere.safetensors"], &[]);
    assert!(said.contains("cannot read the weights nowhere.safetensors"), "{said}");
    // A NaN among them.
    let mut bytes = fs::read(&first).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    let broken = out.path().join("broken.safetensors");
    fs::write(&broken, bytes).unwrap();
    let said = failing([&first, broken.to_str().unwrap()], &[]);
    assert!(said.contains("1 numbers that are not finite"), "{said}");

    // Training that overflows: of the minima, then of a curve.
    let said = complaint(out.command(&[&ONE_SEED[..4], &SMALL[7..], &["--set", "lr=1e30"]]), 1);
    assert!(said.contains("minimum 1 of seed 0 diverged in training: a smaller lr"), "{said}");
    let said = complaint(out.command(&[&ONE_SEED[..4], &SMALL[7..], &["--set", "curve.lr=1e30"]]), 1);
    assert!(said.contains("of seed 0 (curve.lr = 1") && said.contains("smaller learning rate"), "{said}");
}
