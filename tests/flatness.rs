//! `flatness` from its command line to its files: small runs on `digits`, with the built binary.

mod common;

use assert_cmd::Command;
use common::{Out, assert_same_files, files_in, header, manifest, number, parts, rows};
use flatland_record::sha256_hex;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_flatness");

/// 600 examples, 300 for testing, and a line of 5 points that meets 0 and 1.
const SMALL: &[&str] = &[
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--quiet",
    "--set",
    "images.train=600",
    "--set",
    "images.test=300",
    "--set",
    "alpha.points=5",
];

/// Two epochs of two models.
const QUICK: &[&str] = &[
    "--set",
    "epochs=2",
    "--set",
    r#"pairings=[{name="batch size",first={batch=20,lr=0.01},second={batch=60,lr=0.01}}]"#,
];

/// Two models, each trained for seconds: time enough to be disturbed, and to be saved on the way.
const LONG: &[&str] = &[
    "--set",
    "images.train=1200",
    "--set",
    "epochs=24",
    "--set",
    r#"pairings=[{name="batch size",first={batch=20,lr=0.01},second={batch=30,lr=0.01}}]"#,
    "--workers",
    "1",
];

const TABLES: [&str; 5] =
    ["training.csv", "interpolation.csv", "interpolation_mean.csv", "barrier.csv", "claims.csv"];

fn assert_same_tables(left: &Path, right: &Path) {
    assert_same_files(left, right, &TABLES);
}

/// One undisturbed quick run by one worker, shared by the tests that only look.
static BASE: LazyLock<(Out, PathBuf)> = LazyLock::new(|| {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, QUICK, &["--workers", "1"]]);
    (out, run)
});

/// One undisturbed long run.
static UNDISTURBED: LazyLock<(Out, PathBuf)> = LazyLock::new(|| {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, LONG]);
    (out, run)
});

#[test]
fn every_file_of_a_run_is_there() {
    let run = &BASE.1;
    let found: BTreeSet<String> =
        files_in(run).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let expected = [
        ".lock",
        "barrier.csv",
        "claims.csv",
        "interpolation.csv",
        "interpolation.png",
        "interpolation.svg",
        "interpolation_mean.csv",
        "manifest.json",
        "report.html",
        "settings.toml",
        "training.csv",
        "training.png",
        "training.svg",
        "trials",
        "weights",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
    let weights: Vec<PathBuf> = files_in(&run.join("weights"));
    let expected = ["seed0-batch20-lr0.01", "seed0-batch60-lr0.01"]
        .map(|name| run.join(format!("weights/{name}.safetensors")));
    assert_eq!(weights, expected);
    for path in weights {
        let bytes = fs::read(&path).unwrap();
        let (header, numbers) = parts(&bytes);
        assert_eq!(header["conv1.weight"]["shape"], serde_json::json!([6, 1, 5, 5]), "{header}");
        assert_eq!(numbers.len(), 4 * 61_706, "LeNet has 61,706 weights");
    }
    assert_eq!(files_in(&run.join("trials")).len(), 2);
}

#[test]
fn tables_have_a_row_for_every_observation() {
    let run = &BASE.1;
    assert_eq!(header(run, "training.csv"), "seed,batch,lr,draw,epoch,split,loss_nats,accuracy");
    assert_eq!(header(run, "interpolation.csv"), "pairing,theta1,theta2,seed,alpha,split,loss_nats,accuracy");
    assert_eq!(
        header(run, "interpolation_mean.csv"),
        "pairing,alpha,split,seeds,loss_geometric_mean_nats,loss_low_nats,loss_high_nats,\
         accuracy_mean,accuracy_low,accuracy_high"
    );

    let keys = |rows: &[BTreeMap<String, String>], columns: &[&str]| -> Vec<String> {
        rows.iter()
            .map(|row| columns.iter().map(|&column| row[column].as_str()).collect::<Vec<_>>().join("|"))
            .collect()
    };
    let line: Vec<String> = ["-2", "-1", "0", "1", "2"]
        .iter()
        .flat_map(|alpha| ["train", "test"].map(|split| format!("{alpha}|{split}")))
        .collect();
    let interpolation = rows(run, "interpolation.csv");
    let expected: Vec<String> =
        line.iter().map(|end| format!("batch size|batch 20, lr 0.01|batch 60, lr 0.01|0|{end}")).collect();
    assert_eq!(keys(&interpolation, &["pairing", "theta1", "theta2", "seed", "alpha", "split"]), expected);
    let mean = rows(run, "interpolation_mean.csv");
    let expected: Vec<String> = line.iter().map(|end| format!("batch size|1|{end}")).collect();
    assert_eq!(keys(&mean, &["pairing", "seeds", "alpha", "split"]), expected);
    let training = rows(run, "training.csv");
    let expected =
        ["20|1", "20|2", "60|1", "60|2"].map(|end| ["train", "test"].map(|split| format!("{end}|{split}")));
    assert_eq!(keys(&training, &["batch", "epoch", "split"]), expected.concat());

    for row in interpolation.iter().chain(&training) {
        assert!(number(row, "loss_nats") > 0., "{row:?}");
        assert!((0. ..=1.).contains(&number(row, "accuracy")), "{row:?}");
    }
    // One seed says nothing of spread: empty cells, never 0.
    for row in &mean {
        for end in ["loss_low_nats", "loss_high_nats", "accuracy_low", "accuracy_high"] {
            assert_eq!(row[end], "", "{row:?}");
        }
    }
}

/// Two ways to the same number: the test loss after the last epoch, and the line's value at its ends.
#[test]
fn the_ends_of_the_line_are_the_trained_models() {
    let run = &BASE.1;
    let training = rows(run, "training.csv");
    let interpolation = rows(run, "interpolation.csv");
    for (alpha, batch) in [("0", "20"), ("1", "60")] {
        let at_end = |row: &&BTreeMap<String, String>| row["alpha"] == alpha && row["split"] == "test";
        let trained = |row: &&BTreeMap<String, String>| {
            row["batch"] == batch && row["epoch"] == "2" && row["split"] == "test"
        };
        let on_line = interpolation.iter().find(at_end).unwrap();
        let after_training = training.iter().find(trained).unwrap();
        for column in ["loss_nats", "accuracy"] {
            let [left, right] = [number(on_line, column), number(after_training, column)];
            assert!(
                (left - right).abs() <= 1e-6 * right.abs(),
                "{column} at α = {alpha}: {left} and {right}"
            );
        }
    }
}

#[test]
fn figures_are_whole_and_say_what_they_show() {
    let run = &BASE.1;
    for (name, right) in [("training", "error (%)"), ("interpolation", "accuracy (%)")] {
        let svg = fs::read_to_string(run.join(format!("{name}.svg"))).unwrap();
        assert!(svg.contains("<svg") && svg.trim_end().ends_with("</svg>"), "{name}");
        assert!(svg.contains("digits") && svg.contains("seed 0"), "{name}.svg names data and seed");
        assert!(svg.contains("cross-entropy (nats)") && svg.contains(right), "{name}.svg");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}.svg has no broken coordinate");
        let (width, height) = png_size(&fs::read(run.join(format!("{name}.png"))).unwrap());
        assert!(width >= 600 && height >= 400, "{name}.png is {width}x{height}");
    }
}

/// Walks a PNG file's chunks from its signature to its end; gives width and height.
fn png_size(bytes: &[u8]) -> (u32, u32) {
    assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"));
    let word = |at: usize| u32::from_be_bytes(*bytes[at..].first_chunk().unwrap());
    let (mut at, mut kinds) = (8, Vec::new());
    while at < bytes.len() {
        kinds.push(String::from_utf8(bytes[at + 4..at + 8].to_vec()).unwrap());
        at += 12 + word(at) as usize;
    }
    assert_eq!(at, bytes.len(), "the last chunk ends with the file");
    assert!(kinds[0] == "IHDR" && kinds.last().unwrap() == "IEND" && kinds.iter().any(|kind| kind == "IDAT"));
    (word(16), word(20))
}

#[test]
fn the_manifest_tells_where_the_numbers_come_from() {
    let run = &BASE.1;
    let manifest = manifest(run);
    assert_eq!(manifest["experiment"], "flatness");
    assert_eq!(manifest["status"], "finished");
    assert_eq!(manifest["exit_code"], 0);
    assert_eq!(manifest["error"], Value::Null);
    assert_eq!(manifest["seeds"], serde_json::json!([0]));
    assert_eq!(manifest["settings"]["epochs"], 2);
    assert_eq!(manifest["settings"]["pairings"][0]["second"]["batch"], 60);
    assert_eq!(manifest["data_set"]["name"], "digits");
    assert_eq!((&manifest["data_set"]["train"], &manifest["data_set"]["test"]), (&600.into(), &300.into()));
    let checksums = manifest["data_set"]["checksums"].as_object().unwrap();
    assert!(
        checksums.len() == 4 && checksums.values().all(|sum| sum.as_str().unwrap().len() == 64),
        "{checksums:?}"
    );
    assert_eq!(
        (&manifest["device"]["requested"], &manifest["device"]["used"]),
        (&"cpu".into(), &"cpu".into())
    );
    for version in ["flatland", "libtorch", "tch", "rustc", "os"] {
        assert!(manifest["versions"][version].as_str().is_some_and(|text| !text.is_empty()), "{version}");
    }
    assert!(manifest["command"].as_array().unwrap().iter().any(|word| word == "images.train=600"));
    for time in ["started", "ended"] {
        assert!(manifest[time].as_str().is_some_and(|text| text.ends_with('Z')), "{time}");
    }
    assert!(manifest["seconds"].as_f64().unwrap() > 0.);

    let files: BTreeMap<&str, &Value> = manifest["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (file["name"].as_str().unwrap(), file))
        .collect();
    for name in
        TABLES.into_iter().chain(["settings.toml", "interpolation.svg", "interpolation.png", "training.svg"])
    {
        let bytes = fs::read(run.join(name)).unwrap();
        assert_eq!(files[name]["sha256"].as_str().unwrap(), sha256_hex(&bytes), "{name}");
        assert_eq!(files[name]["bytes"].as_u64().unwrap(), bytes.len() as u64, "{name}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers() {
    let out = Out::new(BINARY);
    let again = out.run(&[SMALL, QUICK, &["--workers", "2"]]);
    assert_same_tables(&BASE.1, &again);
    for weights in files_in(&again.join("weights")) {
        let same = BASE.1.join("weights").join(weights.file_name().unwrap());
        let [left, right] = [&weights, &same].map(|path| fs::read(path).unwrap());
        assert!(left == right, "{}", weights.display());
    }
}

/// Two seeds: the first gives what it gave alone, the second something else, both together an interval.
#[test]
fn more_seeds_add_intervals_and_change_nothing_else() {
    let out = Out::new(BINARY);
    let both = out.run(&[SMALL, QUICK, &["--seeds", "2"]]);
    assert_eq!(manifest(&both)["seeds"], serde_json::json!([0, 1]));
    for table in ["training.csv", "interpolation.csv"] {
        let of_seed =
            |seed: &str| rows(&both, table).into_iter().filter(|row| row["seed"] == seed).collect::<Vec<_>>();
        let (first, second) = (of_seed("0"), of_seed("1"));
        assert_eq!(first, rows(&BASE.1, table), "{table}");
        assert_eq!(first.len(), second.len());
        let equal =
            first.iter().zip(&second).filter(|(one, other)| one["loss_nats"] == other["loss_nats"]).count();
        assert_eq!(equal, 0, "{table}: another seed gives another loss everywhere");
    }
    let single = rows(&both, "interpolation.csv");
    for row in rows(&both, "interpolation_mean.csv") {
        let [mean, low, high] =
            ["loss_geometric_mean_nats", "loss_low_nats", "loss_high_nats"].map(|end| number(&row, end));
        assert!(0. < low && low < mean && mean < high, "{row:?}");
        let of = |single: &&BTreeMap<String, String>| {
            single["alpha"] == row["alpha"] && single["split"] == row["split"]
        };
        let logs: Vec<f64> =
            single.iter().filter(of).map(|single| number(single, "loss_nats").ln()).collect();
        assert_eq!((logs.len(), row["seeds"].as_str()), (2, "2"));
        let by_hand = logs.iter().sum::<f64>() / 2.;
        assert!((mean.ln() - by_hand).abs() < 1e-9, "{row:?}");
        // Student's t with 1 degree of freedom at 97.5 % is 12.7062; of two values, s / √2 is half the distance.
        let half = 12.706_204_736 * (logs[0] - logs[1]).abs() / 2.;
        assert!((high.ln() - by_hand - half).abs() < 1e-6 * half.max(1.), "{row:?}");
        assert!(number(&row, "accuracy_low") <= number(&row, "accuracy_mean"), "{row:?}");
    }
}

/// Waits until `ready` or, after far too long, gives up.
fn wait_for(what: &str, ready: impl Fn() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < Duration::from_secs(100), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn safetensors_in(out: &Out, folder: &str) -> Vec<PathBuf> {
    let runs = out.runs();
    let files = runs.iter().flat_map(|run| files_in(&run.join(folder)));
    files.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).collect()
}

#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_and_gives_the_same_bytes() {
    let out = Out::new(BINARY);
    let mut child = out.start(&[SMALL, LONG]);
    wait_for("a checkpoint", || !safetensors_in(&out, "trials").is_empty());
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None, "ended by the signal, not by itself");
    let run = out.newest();
    assert_eq!(manifest(&run)["status"], "running", "it had no chance to say anything else");
    assert!(!run.join("interpolation.csv").exists());

    let resumed = out.run(&[SMALL, LONG, &["--resume"]]);
    assert_eq!(resumed, run);
    assert_same_tables(&UNDISTURBED.1, &resumed);
    let manifest = manifest(&resumed);
    assert_eq!(manifest["status"], "finished");
    assert_eq!(manifest["resumed"].as_array().unwrap().len(), 1);
    let left: Vec<PathBuf> = files_in(&run.join("trials"));
    assert_eq!(left.len(), 2, "nothing half-written stays: {left:?}");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_without_training_again_what_is_finished() {
    let out = Out::new(BINARY);
    let mut child = out.start(&[SMALL, LONG]);
    // The weights of a model are written when its trial is finished; the next one is at work then.
    wait_for("a finished trial", || !safetensors_in(&out, "weights").is_empty());
    let finished = safetensors_in(&out, "trials").remove(0);
    let written = |path: &Path| -> SystemTime { fs::metadata(path).unwrap().modified().unwrap() };
    let before = written(&finished);
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(75));
    let run = out.newest();
    let stopped = manifest(&run);
    assert_eq!((&stopped["status"], &stopped["exit_code"]), (&"interrupted".into(), &75.into()));
    assert!(stopped["error"].as_str().unwrap().contains("--resume"), "{stopped}");

    assert_eq!(out.run(&[SMALL, LONG, &["--resume"]]), run);
    assert_same_tables(&UNDISTURBED.1, &run);
    let manifest = manifest(&run);
    assert_eq!((&manifest["status"], &manifest["exit_code"]), (&"finished".into(), &0.into()));
    assert_eq!(manifest["error"], Value::Null);
    assert_eq!(written(&finished), before, "the finished trial was not touched");

    // What is finished is not resumed: this one starts anew, beside it, and says so.
    let mut quietly_refused = out.command(&[SMALL, QUICK, &["--resume"]]);
    quietly_refused.assert().success();
    assert_eq!(out.runs().len(), 2);
    assert_ne!(out.newest(), run);
}

/// With lr 1000 the weights overflow. The run says so in its numbers and does not stop for it.
#[test]
fn a_model_that_diverges_is_shown_as_it_is() {
    let out = Out::new(BINARY);
    let pairing = r#"pairings=[{name="steps",first={batch=60,lr=1000},second={batch=60,lr=0.01}}]"#;
    let run = out.run(&[SMALL, &["--set", "epochs=1", "--set", pairing]]);
    let at = |table: &str, column: &str, value: &str| -> Vec<f64> {
        let rows = rows(&run, table);
        rows.iter().filter(|row| row[column] == value).map(|row| number(row, "loss_nats")).collect()
    };
    for loss in at("training.csv", "lr", "1000").into_iter().chain(at("interpolation.csv", "alpha", "0")) {
        // Overflowed or on its way there, never an innocent number.
        assert!(!loss.is_finite() || loss > 1e3, "{loss}");
    }
    let text = fs::read_to_string(run.join("interpolation.csv")).unwrap();
    assert!(text.contains("NaN") || text.contains("inf"), "{text}");
    assert!(at("training.csv", "lr", "0.01").into_iter().all(f64::is_finite));
    for figure in ["training", "interpolation"] {
        assert!(
            fs::read_to_string(run.join(format!("{figure}.svg"))).unwrap().trim_end().ends_with("</svg>")
        );
        png_size(&fs::read(run.join(format!("{figure}.png"))).unwrap());
    }
    assert_eq!(manifest(&run)["status"], "finished");
}

/// Called from elsewhere without `--out`, a run lies where its user stands. It resizes where told to.
#[test]
fn outputs_lie_where_the_user_stands_and_latest_points_at_the_newest() {
    let place = TempDir::new().unwrap();
    let mut command = Command::new(BINARY);
    command.current_dir(place.path()).args([SMALL, QUICK].concat()).args(["--set", "images.size32=resize"]);
    // With nothing to resume, --resume begins.
    command
        .arg("--resume")
        .assert()
        .success()
        .stdout(contains("interpolation.csv").and(contains("in outputs/flatness/")));
    let all = place.path().join("outputs/flatness");
    let latest = all.join("latest");
    assert!(latest.is_symlink());
    let run = latest.canonicalize().unwrap();
    assert_eq!(run.parent().unwrap(), all.canonicalize().unwrap());
    let manifest = manifest(&run);
    assert_eq!(manifest["status"], "finished");
    assert!(manifest["data_set"]["preparation"].as_str().unwrap().contains("resized"), "{manifest}");
    assert_ne!(
        fs::read(run.join("interpolation.csv")).unwrap(),
        fs::read(BASE.1.join("interpolation.csv")).unwrap(),
        "resized images are other images"
    );
}

#[test]
fn settings_shown_are_settings_that_can_be_given() {
    let show = |arguments: &[&str]| -> String {
        let output = Command::new(BINARY).args(arguments).arg("--show-settings").output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = show(&["--preset", "quick", "--seeds", "3", "--set", "alpha.points=9"]);
    let table: toml::Table = shown.parse().unwrap();
    assert_eq!(table["seeds"].as_integer(), Some(3));
    assert_eq!(table["alpha"]["points"].as_integer(), Some(9));
    let place = TempDir::new().unwrap();
    let file = place.path().join("mine.toml");
    fs::write(&file, &shown).unwrap();
    assert_eq!(show(&["--config", file.to_str().unwrap()]), shown);
}

#[test]
fn help_has_examples_and_exit_codes() {
    let help = Command::new(BINARY).arg("--help").assert().success();
    help.stdout(
        contains("Examples:").and(contains("flatness --preset quick")).and(contains("75 interrupted")),
    );
    Command::new(BINARY).arg("--version").assert().success().stdout(contains("flatness 0."));
}

/// `flatness --show-settings | head -1` is no reason for a panic.
#[cfg(unix)]
#[test]
fn a_reader_that_stops_listening_is_no_failure() {
    let mut child = std::process::Command::new(BINARY)
        .arg("--show-settings")
        .stdin(Stdio::null())
        .stdout(closed_pipe())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(said, "");
}

/// The writing end of a pipe that nobody reads.
#[cfg(unix)]
fn closed_pipe() -> std::io::PipeWriter {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer
}
