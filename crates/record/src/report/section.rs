//! One run's part of the page, read from its folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::figures::Figure;
use super::link;
use crate::run::SETTINGS_FILE;
use crate::{MANIFEST_FILE, Manifest, RecordError, Result, Status, short};

/// The claims' table.
const CLAIMS_FILE: &str = "claims.csv";

/// So many rows of each table are shown.
const PREVIEW: usize = 6;

/// One run.
#[derive(Debug)]
pub(super) struct Section {
    /// Its anchor in the page.
    pub(super) id: String,
    /// The experiment.
    pub(super) name: String,
    /// What the run is called among others.
    pub(super) label: String,
    pub(super) question: Option<String>,
    pub(super) status: &'static str,
    /// Why there may be less than a finished run has.
    pub(super) warning: Option<String>,
    /// What was run, where, and how long it took.
    pub(super) facts: Vec<(&'static str, String)>,
    pub(super) claims: Claims,
    pub(super) numbers: Option<Grid>,
    pub(super) figures: Vec<Figure>,
    pub(super) tables: Vec<Preview>,
    /// From the data to the versions: where the numbers come from.
    pub(super) origin: Vec<(&'static str, String)>,
    pub(super) checksums: Vec<(String, String)>,
    pub(super) settings: String,
    /// The command line, its words as a shell takes them.
    pub(super) command: Vec<String>,
    pub(super) folder_name: String,
    pub(super) folder_link: String,
    pub(super) manifest_link: String,
    /// Where `settings.toml` is there.
    pub(super) settings_link: Option<String>,
}

/// What the run says of its claims.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) rows: Vec<ClaimRow>,
    pub(super) link: Option<String>,
    /// Why there are none.
    pub(super) problem: Option<String>,
}

/// A row of `claims.csv`.
#[derive(Debug, Deserialize)]
pub(super) struct ClaimRow {
    pub(super) statement: String,
    pub(super) verdict: String,
    #[serde(default)]
    pub(super) source: String,
    #[serde(default)]
    pub(super) statistic: String,
    #[serde(default)]
    estimate: String,
    #[serde(default)]
    low: String,
    #[serde(default)]
    high: String,
    #[serde(default)]
    level: String,
    #[serde(default)]
    seeds: String,
    #[serde(default)]
    pub(super) rule: String,
    #[serde(default)]
    pub(super) remark: String,
}

/// Cells in rows, and which columns are numbers.
#[derive(Debug)]
pub(super) struct Grid {
    pub(super) columns: Vec<(String, bool)>,
    pub(super) rows: Vec<Vec<(String, bool)>>,
}

/// The beginning of a table.
#[derive(Debug)]
pub(super) struct Preview {
    pub(super) file: String,
    pub(super) what: String,
    pub(super) link: String,
    pub(super) grid: Option<Grid>,
    pub(super) count: usize,
    /// Why there is no grid.
    pub(super) problem: Option<String>,
}

impl Section {
    /// Reads the run in `folder` for a page that will lie in the folder `place`, an absolute path.
    ///
    /// # Errors
    /// A manifest that cannot be read. All else that is missing is part of the section.
    pub(super) fn read(folder: &Path, place: &Path) -> Result<Self> {
        let manifest = Manifest::read(&folder.join(MANIFEST_FILE))?;
        let folder = folder.canonicalize().map_err(|source| RecordError::read(folder, source))?;
        let to = |name: &str| link(place, &folder.join(name));
        let files = files(&folder, &manifest);
        let what = |name: &str| {
            manifest.files.iter().find(|file| file.name == name).and_then(|file| file.what.as_deref())
        };
        let mut names: Vec<&str> = Vec::new();
        for file in &files {
            if let Some(name) = file.strip_suffix(".svg").or_else(|| file.strip_suffix(".png"))
                && !names.contains(&name)
            {
                names.push(name);
            }
        }
        let said = |name: &str| what(&format!("{name}.svg")).or_else(|| what(&format!("{name}.png")));
        let tables = files.iter().filter(|file| file.strip_suffix(".csv").is_some() && *file != CLAIMS_FILE);
        let settings = fs::read_to_string(folder.join(SETTINGS_FILE)).ok();
        let folder_name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Self {
            id: String::new(),
            name: manifest.experiment.clone(),
            label: manifest.experiment.clone(),
            question: manifest.question.clone(),
            status: status(manifest.status),
            warning: warning(&manifest),
            facts: facts(&manifest),
            claims: Claims::read(&folder, manifest.status, to(CLAIMS_FILE)),
            numbers: manifest
                .numbers
                .as_ref()
                .map(|numbers| Grid::new(&numbers.header, numbers.rows.clone())),
            figures: names.iter().map(|name| Figure::find(&folder, name, said(name), to)).collect(),
            tables: tables.map(|file| Preview::read(&folder, file, what(file), to(file))).collect(),
            origin: origin(&manifest),
            checksums: manifest.data_set.iter().flat_map(|data| data.checksums.clone()).collect(),
            settings_link: settings.is_some().then(|| to(SETTINGS_FILE)),
            settings: settings.unwrap_or_else(|| {
                serde_json::to_string_pretty(&manifest.settings)
                    .unwrap_or_else(|_| manifest.settings.to_string())
            }),
            command: manifest.command.iter().map(|word| quoted(word)).collect(),
            folder_link: to(""),
            manifest_link: to(MANIFEST_FILE),
            folder_name: folder_name.unwrap_or_default(),
        })
    }

    /// How many claims have each verdict, those that none has left out.
    pub(super) fn tally(&self) -> Vec<(&'static str, usize)> {
        let count = |verdict: &'static str| {
            (verdict, self.claims.rows.iter().filter(|claim| claim.class() == verdict).count())
        };
        ["supported", "contradicted", "inconclusive"].map(count).into_iter().filter(|(_, n)| *n > 0).collect()
    }
}

/// The files of a run: first those that the manifest lists, in its order, then whatever else is there, by name. A run that
/// did not end has no list yet.
fn files(folder: &Path, manifest: &Manifest) -> Vec<String> {
    let mut files: Vec<String> = manifest.files.iter().map(|file| file.name.clone()).collect();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let found: BTreeSet<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && !files.contains(name))
        .collect();
    files.extend(found);
    files
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Running => "running",
        Status::Finished => "finished",
        Status::Interrupted => "interrupted",
        Status::Failed => "failed",
    }
}

fn warning(manifest: &Manifest) -> Option<String> {
    let what = match manifest.status {
        Status::Finished => return None,
        Status::Running => "The run has not ended: it is at work, or it was killed.".to_owned(),
        Status::Interrupted => {
            "The run was interrupted; the same command with --resume goes on from there.".to_owned()
        }
        Status::Failed => match &manifest.error {
            Some(error) => format!("The run failed: {}.", error.trim_end_matches('.')),
            None => "The run failed.".to_owned(),
        },
    };
    Some(format!("{what} Below is what it had written."))
}

fn facts(manifest: &Manifest) -> Vec<(&'static str, String)> {
    let device = &manifest.device;
    let data_set = manifest.data_set.as_ref().map(|data| data.name.clone());
    let facts = [
        ("data set", data_set),
        ("preset", Some(manifest.preset.clone())),
        (if manifest.seeds.len() == 1 { "seed" } else { "seeds" }, seeds(&manifest.seeds)),
        ("device", Some(if device.name.is_empty() { device.used.clone() } else { device.name.clone() })),
        ("time at work", manifest.seconds.map(duration)),
        ("peak memory", manifest.peak_memory_mib.map(|size| format!("{size:.0} MiB"))),
        ("started", Some(plain_time(&manifest.started))),
    ];
    known(facts)
}

fn origin(manifest: &Manifest) -> Vec<(&'static str, String)> {
    let data = manifest.data_set.as_ref().map(|data| {
        format!(
            "{} ({}): {} training and {} test examples; {}",
            data.name, data.origin, data.train, data.test, data.preparation
        )
    });
    let dirty = match manifest.git_dirty {
        Some(true) => " with uncommitted changes",
        Some(false) => "",
        None => " (whether changed is not known)",
    };
    // rustc's version begins with its name.
    let named = |(name, version): (&String, &String)| {
        if version.starts_with(name.as_str()) { version.clone() } else { format!("{name} {version}") }
    };
    let versions: Vec<String> = manifest.versions.iter().map(named).collect();
    let device = &manifest.device;
    let resumed: Vec<String> = manifest.resumed.iter().map(|time| plain_time(time)).collect();
    known([
        ("data set", data),
        ("source", manifest.git_commit.as_ref().map(|commit| format!("commit {commit}{dirty}"))),
        ("versions", Some(versions.join(", "))),
        (
            "device",
            Some(format!(
                "{} ({}, asked for: {}{})",
                device.name,
                device.used,
                device.requested,
                if device.precision == "tf32" { "; products in TF32" } else { "" }
            )),
        ),
        ("started", Some(plain_time(&manifest.started))),
        ("resumed", Some(resumed.join(", "))),
        ("ended", manifest.ended.as_deref().map(plain_time)),
    ])
}

fn known<const N: usize>(facts: [(&'static str, Option<String>); N]) -> Vec<(&'static str, String)> {
    let known = facts.into_iter().filter_map(|(name, value)| Some((name, value?)));
    known.filter(|(_, value)| !value.is_empty()).collect()
}

/// `0 to 4`, or one by one where they do not follow each other.
fn seeds(seeds: &[u64]) -> Option<String> {
    let follow = seeds.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1]));
    match seeds {
        [] => None,
        [first, .., last] if follow => Some(format!("{first} to {last}")),
        few => Some(few.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

fn quoted(word: &str) -> String {
    // Only a word with a NUL byte cannot be quoted, and no command line has one.
    shlex::try_quote(word).map_or_else(|_| word.to_owned(), Into::into)
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `2026-11-24 18:37 UTC` for `2026-11-24T18:37:12Z`.
pub(super) fn plain_time(rfc3339: &str) -> String {
    match (rfc3339.get(..10), rfc3339.get(11..16), rfc3339.ends_with('Z')) {
        (Some(day), Some(minute), true) => format!("{day} {minute} UTC"),
        _ => rfc3339.to_owned(),
    }
}

impl Claims {
    fn read(folder: &Path, status: Status, link: String) -> Self {
        let path = folder.join(CLAIMS_FILE);
        let none = |problem: String, link| Self { rows: Vec::new(), link, problem: Some(problem) };
        if !path.exists() {
            return none(
                if status == Status::Finished {
                    format!("{CLAIMS_FILE} is missing from the run's folder.")
                } else {
                    format!("There is no {CLAIMS_FILE}: the run did not come that far.")
                },
                None,
            );
        }
        match read_claims(&path) {
            Ok(rows) if rows.is_empty() => none("No claim is about what was run here.".into(), Some(link)),
            Ok(rows) => Self { rows, link: Some(link), problem: None },
            Err(error) => none(format!("{CLAIMS_FILE} cannot be read: {error}"), Some(link)),
        }
    }
}

fn read_claims(path: &PathBuf) -> std::result::Result<Vec<ClaimRow>, csv::Error> {
    csv::Reader::from_path(path)?.deserialize().collect()
}

impl ClaimRow {
    /// The verdict's colour: one of the three that there are.
    pub(super) fn class(&self) -> &'static str {
        match self.verdict.as_str() {
            "supported" => "supported",
            "contradicted" => "contradicted",
            _ => "inconclusive",
        }
    }

    pub(super) fn estimate(&self) -> String {
        rounded(&self.estimate)
    }

    /// `0.012 to 0.034`; empty where there is none.
    pub(super) fn interval(&self) -> String {
        if self.low.is_empty() || self.high.is_empty() {
            return String::new();
        }
        format!("{} to {}", rounded(&self.low), rounded(&self.high))
    }

    /// `95 %`.
    pub(super) fn level(&self) -> String {
        self.level
            .parse::<f64>()
            .map(|level| format!("{} %", short(100. * level).trim_end_matches(".00")))
            .unwrap_or_default()
    }

    pub(super) fn seeds(&self) -> String {
        match self.seeds.as_str() {
            "" => String::new(),
            "1" => "1 seed".into(),
            many => format!("{many} seeds"),
        }
    }
}

/// A number of a table as people read it: whole ones as they are, others with four digits.
fn rounded(cell: &str) -> String {
    match cell.parse::<f64>() {
        Ok(number) if cell.len() > 7 && !cell.bytes().all(|b| b.is_ascii_digit()) => short(number),
        _ => cell.to_owned(),
    }
}

impl Grid {
    fn new(header: &[String], rows: Vec<Vec<String>>) -> Self {
        let numeric: Vec<bool> = (0..header.len()).map(|column| is_number_column(&rows, column)).collect();
        let is_number = |column: usize| numeric.get(column).copied().unwrap_or(false);
        let mark = |cells: Vec<String>| {
            cells.into_iter().enumerate().map(|(column, cell)| (cell, is_number(column))).collect()
        };
        Self { columns: mark(header.to_vec()), rows: rows.into_iter().map(mark).collect() }
    }
}

/// Whether what stands in a column begins with a number, such as `28,938` or `0.5 [0.4, 0.6]`.
fn is_number_column(rows: &[Vec<String>], column: usize) -> bool {
    let mut cells = rows.iter().filter_map(|row| row.get(column)).filter(|cell| !cell.is_empty()).peekable();
    let is_number = |cell: &String| {
        cell.split_whitespace().next().is_some_and(|first| first.replace(',', "").parse::<f64>().is_ok())
    };
    cells.peek().is_some() && cells.all(is_number)
}

impl Preview {
    fn read(folder: &Path, file: &str, what: Option<&str>, link: String) -> Self {
        let (grid, count, problem) = match read_preview(&folder.join(file)) {
            Ok((grid, count)) => (Some(grid), count, None),
            Err(error) => (None, 0, Some(format!("{file} cannot be read: {error}"))),
        };
        Self { file: file.to_owned(), what: what.unwrap_or_default().to_owned(), link, grid, count, problem }
    }

    /// How many rows are not shown.
    pub(super) fn more(&self) -> usize {
        self.count.saturating_sub(PREVIEW)
    }
}

/// The first rows, and how many there are.
fn read_preview(path: &Path) -> std::result::Result<(Grid, usize), csv::Error> {
    let mut reader = csv::Reader::from_path(path)?;
    let header: Vec<String> = reader.headers()?.iter().map(str::to_owned).collect();
    let (mut rows, mut count) = (Vec::new(), 0);
    for record in reader.records() {
        let record = record?;
        if count < PREVIEW {
            rows.push(record.iter().map(rounded).collect());
        }
        count += 1;
    }
    Ok((Grid::new(&header, rows), count))
}
