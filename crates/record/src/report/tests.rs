//! The page is read as text; how it looks is for eyes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::{
    Axis, Colour, DataSetRecord, DeviceRecord, Figure, MANIFEST_FILE, Manifest, NumbersRecord, Panel,
    RunFolder, Series, Status, Table, cells,
};

/// A finished run of `experiment` with two claims, a table of ten rows and a figure.
fn a_run(out: &Path, experiment: &str) -> RunFolder {
    let run = RunFolder::create(out, experiment, "seeds = 3\n").unwrap();
    let mut claims = Table::new(&[
        "id",
        "statement",
        "source",
        "statistic",
        "estimate",
        "low",
        "high",
        "level",
        "seeds",
        "verdict",
        "rule",
        "remark",
    ]);
    claims
        .row(cells![
            "a",
            "deeper nets learn <faster> & better",
            "report",
            "test loss, nats",
            0.123_456_789,
            -0.000_123_4,
            0.25,
            0.95,
            3_usize,
            "supported",
            "the mean is above 0",
            None::<&str>
        ])
        .unwrap();
    claims
        .row(cells![
            "b",
            "so do wider ones",
            "Flatland",
            "accuracy",
            0.5,
            None::<f64>,
            None::<f64>,
            0.95,
            1_usize,
            "inconclusive",
            "the mean is above 0",
            "one seed decides nothing"
        ])
        .unwrap();
    claims.write(&run.file("claims.csv")).unwrap();
    let mut table = Table::new(&["seed", "loss_nats", "split"]);
    for seed in 0..10_usize {
        table.row(cells![seed, 1. / (3. + seed as f64), "train"]).unwrap();
    }
    table.write(&run.file("training.csv")).unwrap();
    let line = Series::line("loss", Colour::Blue, vec![(0., 1.), (1., 2.)]);
    let panel = Panel::new("", Axis::linear("epoch"), Axis::linear("loss")).with(line);
    Figure::new("Loss < 1 & falling", "made up", vec![panel]).write(run.path(), "training").unwrap();

    let mut manifest = Manifest::new(experiment, "quick", serde_json::json!({"seeds": 3}));
    manifest.question = Some("What is a \"deep\" <net>?".into());
    manifest.status = Status::Finished;
    manifest.command =
        ["lab", "run", experiment, "--set", "models=[{name=\"a b\"}]"].map(String::from).into();
    manifest.seeds = vec![0, 1, 2];
    manifest.seconds = Some(75.4);
    manifest.peak_memory_mib = Some(123.4);
    manifest.git_commit = Some("0123abcd".into());
    manifest.git_dirty = Some(true);
    manifest.versions = BTreeMap::from([("libtorch".into(), "2.11.0".into())]);
    manifest.device = DeviceRecord {
        requested: "auto".into(),
        used: "cpu".into(),
        name: "A Processor".into(),
        precision: "f32".into(),
    };
    manifest.data_set = Some(DataSetRecord {
        name: "digits".into(),
        origin: "generated".into(),
        checksums: BTreeMap::from([("digits.csv".into(), "feed".into())]),
        train: 400,
        test: 200,
        preparation: "scaled to [0, 1]".into(),
    });
    manifest.numbers = Some(NumbersRecord {
        header: vec!["model".into(), "test accuracy".into()],
        rows: vec![vec!["16-32".into(), "98.60 % [98.10, 99.10]".into()]],
    });
    manifest.files = run.file_records().unwrap();
    for file in &mut manifest.files {
        file.what = (file.name.starts_with("training.")).then(|| "loss by epoch".into());
    }
    manifest.write(&run.file(MANIFEST_FILE)).unwrap();
    run
}

fn page_of(runs: &[&RunFolder], target: &Path) -> String {
    let runs: Vec<PathBuf> = runs.iter().map(|run| run.path().to_path_buf()).collect();
    write_report(&runs, target).unwrap();
    fs::read_to_string(target).unwrap()
}

fn change(run: &RunFolder, change: impl FnOnce(&mut Manifest)) {
    let path = run.file(MANIFEST_FILE);
    let mut manifest = Manifest::read(&path).unwrap();
    change(&mut manifest);
    manifest.write(&path).unwrap();
}

fn has(page: &str, parts: &[&str]) {
    for part in parts {
        assert!(page.contains(part), "{part:?} is missing in {page}");
    }
}

fn links(page: &str) -> Vec<&str> {
    page.split("href=\"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(link, _)| link).collect()
}

#[test]
fn a_run_s_page_holds_all_that_is_known_of_it() {
    let out = tempfile::tempdir().unwrap();
    let run = a_run(out.path(), "lines");
    let page = page_of(&[&run], &run.file(REPORT_FILE));
    has(
        &page,
        &[
            "<title>lines · Flatland</title>",
            "<h1>lines</h1>",
            "digits (generated): 400 training and 200 test examples; scaled to [0, 1]",
            "<code>feed</code>",
            "A Processor (cpu, asked for: auto)",
            "1 min 15 s",
            "123 MiB",
            "<dd>0 to 2</dd>",
            "commit 0123abcd with uncommitted changes",
            "libtorch 2.11.0",
            "<span class=\"verdict supported\">supported</span>",
            "<span class=\"verdict inconclusive\">inconclusive</span>",
            "<dd>0.1235</dd>",
            "<dt>95 % interval</dt><dd>-1.234e-4 to 0.25</dd>",
            "<dd>3 seeds</dd>",
            "<dd>1 seed</dd>",
            "the mean is above 0",
            "one seed decides nothing",
            "<td><span>16-32</span></td><td class=\"number\"><span>98.60 %</span> <span>[98.10, 99.10]</span></td>",
            "<figcaption>loss by epoch",
            "<td class=\"number\"><span>0.3333</span></td><td><span>train</span></td>",
            "10 rows",
            "and 4 more rows",
            "seeds = 3",
            "lines --config settings.toml",
        ],
    );
    assert_eq!(page.matches("<tr>").count(), 1 + 1 + 1 + 6, "the numbers', and a head with six rows");
    for outside in ["http://", "https://", "<script", "url(", "@import", "src=\"training"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn what_runs_say_is_text_and_never_markup() {
    let out = tempfile::tempdir().unwrap();
    let run = a_run(out.path(), "lines");
    change(&run, |manifest| manifest.question = Some("<script>alert('x')</script> \"&\"".into()));
    let page = page_of(&[&run], &run.file(REPORT_FILE));
    assert!(!page.contains("<script") && !page.contains("<faster>"));
    // Askama writes &#60; for <.
    has(&page, &["&#60;script&#62;", "deeper nets learn &#60;faster&#62; &#38; better"]);
    has(
        &page,
        &["alt=\"Loss &#60; 1 &#38; falling: loss by epoch\"", "models=[{name=&#34;a b&#34;}]&#39;</span>"],
    );
}

#[test]
fn links_lead_from_the_page_s_own_place_to_files_that_are_there() {
    let out = tempfile::tempdir().unwrap();
    let all = out.path().join("all my runs, 100 %");
    let run = a_run(&all, "lines");
    let elsewhere = out.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for target in [run.file(REPORT_FILE), all.join(REPORT_FILE), elsewhere.join("page.html")] {
        let page = page_of(&[&run], &target);
        let files: Vec<PathBuf> = links(&page)
            .into_iter()
            .filter(|link| !link.starts_with('#'))
            .map(|link| {
                let plain = percent_encoding::percent_decode_str(link).decode_utf8().unwrap();
                target.parent().unwrap().join(plain.as_ref())
            })
            .collect();
        assert!(files.len() >= 7, "{files:?}");
        for file in &files {
            assert!(file.exists(), "{}", file.display());
        }
        for name in ["training.csv", "claims.csv", "training.svg", "training.png", MANIFEST_FILE] {
            assert!(files.iter().any(|file| file.ends_with(name)), "{name}");
        }
    }
    let page = page_of(&[&run], &run.file(REPORT_FILE));
    assert!(links(&page).contains(&"training.csv") && links(&page).contains(&"."), "{:?}", links(&page));
}

#[test]
fn several_runs_begin_with_all_verdicts() {
    let out = tempfile::tempdir().unwrap();
    let runs = [a_run(out.path(), "lines"), a_run(out.path(), "circles")];
    let page = page_of(&[&runs[0], &runs[1]], &out.path().join(REPORT_FILE));
    has(&page, &["Flatland: 2 runs", "<h2 class=\"name\">circles</h2>", "href=\"#run-2\"", "id=\"run-2\""]);
    has(&page, &["<span class=\"verdict supported\">1 supported</span>", "href=\"lines/"]);
    let (overview, rest) = page.split_once("<article").unwrap();
    assert_eq!(overview.matches("<td>deeper nets learn").count(), 2);
    assert_eq!(rest.matches("<article").count(), 1);
    assert_eq!(page.matches("data:image/svg+xml;base64,").count(), 2);

    let again = a_run(out.path(), "lines");
    let page = page_of(&[&runs[0], &again], &out.path().join(REPORT_FILE));
    let name = again.path().file_name().unwrap().to_str().unwrap();
    has(&page, &[&format!("<h2 class=\"name\">lines, {name}</h2>")]);
}

#[test]
fn what_is_missing_is_said_in_its_place() {
    let out = tempfile::tempdir().unwrap();
    let run = a_run(out.path(), "lines");
    let target = run.file(REPORT_FILE);
    let page = || page_of(&[&run], &target);

    fs::remove_file(run.file("training.svg")).unwrap();
    let of_png = page();
    has(&of_png, &["data:image/png;base64,", "width=\""]);
    assert!(!links(&of_png).contains(&"training.svg"));
    fs::remove_file(run.file("training.png")).unwrap();
    has(&page(), &["training: neither its SVG nor its PNG"]);
    fs::write(run.file("training.svg"), "<svg><title>cut").unwrap();
    has(&page(), &["its SVG is not whole, and there is no PNG"]);

    fs::write(run.file("training.csv"), b"a,b\n1,2\n1\n").unwrap();
    has(&page(), &["training.csv cannot be read: ", "found record with 1 fields"]);
    fs::write(run.file("training.csv"), b"a,b\n\xff,2\n").unwrap();
    has(&page(), &["training.csv cannot be read: ", "UTF-8"]);
    fs::remove_file(run.file("training.csv")).unwrap();
    has(&page(), &["training.csv cannot be read: ", "No such file"]);

    fs::write(run.file("claims.csv"), "id,statement\na,b\n").unwrap();
    has(&page(), &["claims.csv cannot be read: ", "missing field `verdict`"]);
    fs::write(run.file("claims.csv"), "id,statement,verdict\n").unwrap();
    has(&page(), &["No claim is about what was run here."]);
    fs::remove_file(run.file("claims.csv")).unwrap();
    has(&page(), &["claims.csv is missing from the run&#39;s folder."]);

    fs::remove_file(run.file("settings.toml")).unwrap();
    has(&page(), &["&#34;seeds&#34;: 3"]);
    change(&run, |manifest| {
        (manifest.question, manifest.numbers, manifest.data_set) = (None, None, None);
        (manifest.seconds, manifest.ended, manifest.git_commit) = (None, None, None);
        manifest.seeds.clear();
    });
    has(&page(), &["The manifest holds no main numbers."]);
}

#[test]
fn a_run_that_did_not_end_says_so_and_shows_what_there_is() {
    let out = tempfile::tempdir().unwrap();
    let run = a_run(out.path(), "lines");
    fs::remove_file(run.file("claims.csv")).unwrap();
    for (status, expected) in [
        (Status::Running, "at work, or it was killed"),
        (Status::Interrupted, "with --resume goes on"),
        (Status::Failed, "The run failed: the loss is not finite. Below"),
    ] {
        change(&run, |manifest| {
            manifest.status = status;
            manifest.error = Some("the loss is not finite".into());
            manifest.files.clear();
        });
        let page = page_of(&[&run], &run.file(REPORT_FILE));
        has(&page, &[expected, "the run did not come that far", "data:image/svg+xml", "training.csv"]);
    }
}

#[test]
fn large_figures_give_way_to_smaller_ones() {
    let out = tempfile::tempdir().unwrap();
    let run = a_run(out.path(), "lines");
    let svg = |bytes: usize| format!("<svg>{}</svg>", " ".repeat(bytes));
    fs::write(run.file("training.svg"), svg(1_100_000)).unwrap();
    let page = page_of(&[&run], &run.file(REPORT_FILE));
    assert!(page.contains("data:image/png") && page.len() < 500_000, "{}", page.len());

    for index in 0..30 {
        fs::write(run.file(&format!("f{index}.svg")), svg(900_000)).unwrap();
        fs::copy(run.file("training.png"), run.file(&format!("f{index}.png"))).unwrap();
    }
    let page = page_of(&[&run], &run.file(REPORT_FILE));
    assert_eq!(page.matches("data:image/png").count(), 31);
    for index in 0..30 {
        fs::remove_file(run.file(&format!("f{index}.png"))).unwrap();
    }
    let page = page_of(&[&run], &run.file(REPORT_FILE));
    assert!(page.len() < 15_000_000 && page.contains("left out, so that the page does not grow too large"));
}

#[test]
fn without_a_run_there_is_no_page() {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join(REPORT_FILE);
    assert!(matches!(write_report(&[], &target), Err(RecordError::Page { .. })));
    assert!(matches!(write_report(&[out.path().into()], &target), Err(RecordError::Read { .. })));
    assert!(!target.exists());
    let run = a_run(out.path(), "lines");
    let error = write_report(&[run.path().into()], &out.path().join("none/page.html")).unwrap_err();
    assert!(error.to_string().contains("none/page.html"), "{error}");
}
