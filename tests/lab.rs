//! `lab` over small runs on `digits`, with the built binary: the page of a run, of several, the contact sheet.

mod common;

use common::{Out, complaint, files_in, manifest, unfinish};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const BINARY: &str = env!("CARGO_BIN_EXE_lab");

/// One network, one epoch.
const CLASSIFY: &[&str] = &[
    "run",
    "classify",
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--quiet",
    "--set",
    "images.train=100",
    "--set",
    "images.test=50",
    "--set",
    "batch=50",
    "--set",
    "epochs=1",
    "--set",
    r#"models=[{name="<wide> & flat",channels=[2]}]"#,
];

/// Two nets, one epoch.
const CAPACITY: &[&str] = &[
    "run",
    "capacity",
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--quiet",
    "--set",
    "images.train=100",
    "--set",
    "images.test=50",
    "--set",
    "report.widths=[[5,9],[20,30]]",
    "--set",
    "report.epochs=1",
    "--set",
    "wide.widths=[]",
    "--set",
    "wide.train=100",
    "--set",
    "wide.batch=50",
];

fn newest(out: &Out, experiment: &str) -> PathBuf {
    out.path().join(experiment).join("latest").canonicalize().unwrap()
}

fn run(out: &Out, arguments: &[&str], more: &[&str]) -> PathBuf {
    out.command(&[arguments, more]).assert().success();
    newest(out, arguments[1])
}

/// `lab report` with these arguments prints where it wrote.
fn report(out: &Out, arguments: &[&str]) -> Vec<PathBuf> {
    let output =
        out.command(&[&["report"], arguments]).assert().success().stderr("").get_output().stdout.clone();
    String::from_utf8(output).unwrap().lines().map(PathBuf::from).collect()
}

fn complaint_of(out: &Out, arguments: &[&str]) -> String {
    let output = out.command(&[arguments]).assert().code(1).get_output().stderr.clone();
    let said = String::from_utf8(output).unwrap();
    assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    said
}

fn has(page: &Path, parts: &[&str]) {
    let text = fs::read_to_string(page).unwrap();
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {}", page.display());
    }
}

fn folder_name(run: &Path) -> &str {
    run.file_name().unwrap().to_str().unwrap()
}

#[test]
fn a_run_has_its_page_and_several_have_one_together() {
    let out = Out::new(BINARY);
    let first = run(&out, CLASSIFY, &[]);
    let second = run(&out, CLASSIFY, &["--seeds", "2"]);
    let other = run(&out, CAPACITY, &[]);
    assert_ne!(first, second);

    let page = first.join("report.html");
    has(&page, &["<h1>classify</h1>", "How well do three small convolutional networks learn"]);
    has(&page, &["&#60;wide&#62; &#38; flat", "href=\"training.csv\"", "loss and accuracy by epoch"]);
    has(
        &page,
        &[
            "src=\"data:image/svg+xml;base64,",
            "<span>classify</span> <span>--dataset</span> <span>digits</span>",
            "channels = [2]",
        ],
    );
    has(&page, &["train accuracy, last epoch", "No claim is about what was run here."]);

    // The page may be made anew at any time: the manifest's checksums are of what it is made from.
    let manifest = manifest(&first);
    let files: Vec<&Value> = manifest["files"].as_array().unwrap().iter().collect();
    assert!(files.iter().all(|file| file["name"] != "report.html"));
    assert_eq!(
        (&files[0]["name"], &files[0]["what"]),
        (&"training.csv".into(), &"loss and accuracy by epoch".into())
    );
    assert!(manifest["question"].as_str().unwrap().ends_with("training and test."));
    assert_eq!(manifest["numbers"]["header"][0], "model");
    assert_eq!(manifest["numbers"]["rows"][0][0], "<wide> & flat");

    // In the report's order, the newest of each.
    assert_eq!(report(&out, &[]), [out.path().join("report.html")]);
    has(&out.path().join("report.html"), &["Flatland: 2 runs", folder_name(&second), folder_name(&other)]);
    let together = fs::read_to_string(out.path().join("report.html")).unwrap();
    assert!(!together.contains(folder_name(&first)));
    assert!(
        together.find("<h2 class=\"name\">classify</h2>") < together.find("<h2 class=\"name\">capacity</h2>")
    );
    let link = format!("href=\"capacity/{}/training.csv\"", folder_name(&other));
    assert!(together.contains(&link), "{link}");

    // A finished run goes before a newer one that is not.
    unfinish(&second);
    let target = out.path().join("page.html");
    let sheet = out.path().join("sheet.png");
    let said = report(
        &out,
        &["classify", "--to", target.to_str().unwrap(), "--contact-sheet", sheet.to_str().unwrap()],
    );
    assert_eq!(said, [target.clone(), sheet.clone()]);
    has(&target, &["<h1>classify</h1>", folder_name(&first)]);
    let png = fs::read(&sheet).unwrap();
    assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000, "{} bytes", png.len());
    report(&out, &[second.to_str().unwrap(), "capacity", "--to", target.to_str().unwrap()]);
    has(&target, &["Flatland: 2 runs", folder_name(&second), "The run was interrupted", folder_name(&other)]);
}

#[test]
fn a_run_that_failed_has_a_page_that_says_why() {
    let out = Out::new(BINARY);
    let nowhere = out.path().join("no data here");
    let data = ["--dataset", "mnist", "--data-dir", nowhere.to_str().unwrap()];
    let mut command = out.command(&[&["run", "classify", "--device", "cpu"], &data]);
    for proxy in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy"] {
        command.env(proxy, "http://127.0.0.1:9");
    }
    for variable in ["NO_PROXY", "no_proxy", "FLATLAND_MIRRORS", "FLATLAND_DATA"] {
        command.env_remove(variable);
    }
    complaint(command, 1);
    let run = newest(&out, "classify");
    assert_eq!(manifest(&run)["status"], "failed");
    has(&run.join("report.html"), &["The run failed: ", "the run did not come that far", "no figures"]);
    // It is all there is, so it is what the page over all shows.
    report(&out, &[]);
    has(&out.path().join("report.html"), &["The run failed: ", folder_name(&run)]);
}

#[test]
fn what_cannot_be_shown_is_said_in_one_sentence() {
    let out = Out::new(BINARY);
    let said = complaint_of(&out, &["report"]);
    assert!(said.contains("there are no runs in") && said.contains("lab run <experiment>"), "{said}");
    let said = complaint_of(&out, &["report", "classify"]);
    assert!(said.contains("no runs of classify") && said.contains("`lab run classify`"), "{said}");
    let said = complaint_of(&out, &["report", "clasify"]);
    assert!(said.contains("did you mean \"classify\"?") && said.contains("random-labels"), "{said}");
    let said = complaint_of(&out, &["report", out.path().to_str().unwrap()]);
    assert!(said.contains("is no run's folder: there is no manifest.json"), "{said}");
    let broken = out.path().join("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("manifest.json"), "{").unwrap();
    let said = complaint_of(&out, &["report", broken.to_str().unwrap()]);
    assert!(said.contains("is not a manifest"), "{said}");
    assert!(files_in(out.path()).iter().all(|path| path.extension().is_none()), "nothing was written");
}

#[test]
fn all_is_refused_before_anything_runs_where_one_of_them_cannot() {
    let out = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut command = assert_cmd::Command::new(BINARY);
    command.args(["run", "all", "--preset", "notebook", "--out"]).arg(out.path());
    // simulate has this preset, classify does not.
    let said = complaint(command, 2);
    assert!(said.contains("classify") && said.contains("notebook"), "{said}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}
