//! `lab`: lists the experiments, runs one or all, and gathers runs on one page.

use crate::EXPERIMENTS;
use crate::command::Arguments;
use crate::experiment::{Entry, FAILED, INTERRUPTED, OK, USAGE, complain, print, wrapped_table};
use crate::panics;
use crate::settings::nearest;
use anyhow::{Result, bail, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use flatland_network::allocator;
use flatland_record::{MANIFEST_FILE, Manifest, REPORT_FILE, Status, contact_sheet, write_report};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Figures side by side on a contact sheet.
const SHEET_COLUMNS: u32 = 3;

/// The whole of `lab`'s binary.
pub fn main() -> ExitCode {
    panics::keep();
    allocator::keep_large_blocks();
    let matches = command().get_matches();
    let code = match matches.subcommand() {
        Some(("list", of)) => answer(list(&path(of, "out"))),
        Some(("run", of)) => run(of),
        Some(("report", of)) => answer(report(of)),
        _ => USAGE,
    };
    ExitCode::from(code)
}

fn command() -> Command {
    let out = || {
        let out = Arg::new("out").long("out").value_name("DIR").default_value("outputs");
        out.value_parser(value_parser!(PathBuf)).help("Folder with the runs")
    };
    let list =
        Command::new("list").about("The experiments: what each answers, its presets, and how long they take");
    let all = Arguments::command_with(&[])
        .name("all")
        .about("Every experiment, one after the other, then one page over all of them: report.html in --out")
        .after_help(
            "--dataset goes to the experiments that have one; --config and --set belong to one experiment.",
        );
    let run = Command::new("run")
        .about("Runs an experiment, or all of them")
        .subcommand_required(true)
        .subcommand_value_name("EXPERIMENT")
        .subcommand_help_heading("Experiments")
        .subcommands(EXPERIMENTS.iter().map(|entry| (entry.command)()))
        .subcommand(all);
    let file = |name: &'static str, help: &'static str| {
        let file = Arg::new(name).long(name).value_name("FILE").help(help);
        file.value_parser(value_parser!(PathBuf))
    };
    let runs = Arg::new("runs")
        .value_name("RUN")
        .action(ArgAction::Append)
        .help("Folders of runs, or experiments, whose newest run is taken [default: every experiment]");
    let report = Command::new("report")
        .about("One self-contained page over runs: questions, verdicts, figures, tables")
        .after_help(
            "Of an experiment's runs the newest finished one is taken, or the newest where none is finished.",
        )
        .arg(runs)
        .arg(out())
        .arg(file("to", "The page [default: report.html in --out]"))
        .arg(file("contact-sheet", "Also all figures together, as one PNG"));
    Command::new("lab")
        .about("Flatland's experiments under one roof")
        .version(env!("CARGO_PKG_VERSION"))
        .max_term_width(100)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(list.arg(out()))
        .subcommand(run)
        .subcommand(report)
}

fn path(matches: &ArgMatches, name: &str) -> PathBuf {
    matches.get_one::<PathBuf>(name).cloned().unwrap_or_default()
}

fn answer(result: Result<()>) -> u8 {
    match result {
        Ok(()) => OK,
        Err(error) => {
            complain(&error);
            FAILED
        }
    }
}

fn list(out: &Path) -> Result<()> {
    let mut table = wrapped_table();
    table.set_header(["experiment", "question", "presets, and how long they take"]);
    for entry in EXPERIMENTS {
        let times: Vec<String> = preset_names(entry)
            .iter()
            .map(|name| format!("{name}: {}", rough_time(entry, name, out)))
            .collect();
        table.add_row([entry.name, entry.about, &times.join("\n")]);
    }
    let note = "Times marked * are those of the newest finished run here; the others were measured on 2 cores, with the \
                preset's seeds.\nRun one with `lab run <experiment> --preset <preset>`, or all with `lab run all`.";
    print(&format!("{table}\n{note}\n"))
}

fn preset_names(entry: &Entry) -> Vec<String> {
    let presets: toml::Table = toml::from_str(entry.presets).unwrap_or_default();
    presets.keys().cloned().collect()
}

fn rough_time(entry: &Entry, preset: &str, out: &Path) -> String {
    let here = runs_of(out, entry.name)
        .into_iter()
        .filter(|(_, manifest)| manifest.preset == preset && manifest.status == Status::Finished)
        .max_by(|(_, a), (_, b)| a.started.cmp(&b.started))
        .and_then(|(_, manifest)| manifest.seconds);
    let told = entry.seconds.iter().find(|(name, _)| *name == preset).map(|(_, seconds)| *seconds);
    match (here, told) {
        (Some(seconds), _) => format!("{} *", duration(seconds)),
        (None, Some(seconds)) => format!("about {}", duration(seconds)),
        (None, None) => "not measured".into(),
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 90. { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.) }
}

/// The runs of an experiment whose manifests can be read.
fn runs_of(out: &Path, name: &str) -> Vec<(PathBuf, Manifest)> {
    let entries = std::fs::read_dir(out.join(name)).into_iter().flatten().flatten();
    let runs = entries.map(|entry| entry.path()).filter(|path| !path.is_symlink());
    runs.filter_map(|path| Manifest::read(&path.join(MANIFEST_FILE)).ok().map(|manifest| (path, manifest)))
        .collect()
}

fn run(matches: &ArgMatches) -> u8 {
    let Some((name, of)) = matches.subcommand() else { return USAGE };
    let entry = EXPERIMENTS.iter().find(|entry| entry.name == name);
    let arguments = match Arguments::read(of, entry.map_or(&[], |entry| entry.flags)) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    match entry {
        Some(entry) => (entry.run)(&arguments).code,
        None => run_all(&arguments),
    }
}

/// An experiment that fails does not keep the others from running; an interruption does.
fn run_all(arguments: &Arguments) -> u8 {
    if !arguments.set.is_empty() || arguments.config.is_some() {
        complain(&anyhow::anyhow!(
            "--set and --config belong to one experiment, use them with `lab run <experiment>`"
        ));
        return USAGE;
    }
    let mine = |entry: &Entry| {
        let mut mine = arguments.clone();
        mine.all = true;
        if !has_data_set(entry) {
            mine.dataset = None;
        }
        mine
    };
    // What one of them cannot run is found out before the first has run.
    for entry in EXPERIMENTS {
        if let Err(error) = (entry.check)(&mine(entry)) {
            complain(&error.context(entry.name));
            return USAGE;
        }
    }
    let start = Instant::now();
    let (mut runs, mut failed, mut stopped) = (Vec::new(), Vec::new(), None);
    for (index, entry) in EXPERIMENTS.iter().enumerate() {
        if !arguments.quiet {
            eprintln!("== {} ({} of {})", entry.name, index + 1, EXPERIMENTS.len());
        }
        let ending = (entry.run)(&mine(entry));
        runs.extend(ending.folder);
        match ending.code {
            OK => {}
            code @ (USAGE | INTERRUPTED) => {
                stopped = Some(code);
                break;
            }
            _ => failed.push(entry.name),
        }
    }
    let page = arguments.out.join(REPORT_FILE);
    if !runs.is_empty()
        && let Err(error) = write_page(&runs, &page)
    {
        complain(&error);
        return stopped.unwrap_or(FAILED);
    }
    if let Some(code) = stopped {
        return code;
    }
    if arguments.show_settings {
        return OK;
    }
    if !arguments.quiet {
        eprintln!("== all in {}", duration(start.elapsed().as_secs_f64()));
    }
    if failed.is_empty() {
        return OK;
    }
    complain(&anyhow::anyhow!("these failed, as said above: {}", failed.join(", ")));
    FAILED
}

fn write_page(runs: &[PathBuf], page: &Path) -> Result<()> {
    write_report(runs, page)?;
    print(&format!("all of this on one page: {}\n", page.display()))
}

fn has_data_set(entry: &Entry) -> bool {
    let presets: toml::Table = toml::from_str(entry.presets).unwrap_or_default();
    presets.get("paper").and_then(toml::Value::as_table).is_some_and(|paper| paper.contains_key("dataset"))
}

fn report(matches: &ArgMatches) -> Result<()> {
    let out = path(matches, "out");
    let named: Vec<&String> = matches.get_many::<String>("runs").into_iter().flatten().collect();
    let runs = if named.is_empty() {
        let runs: Vec<PathBuf> = EXPERIMENTS.iter().filter_map(|entry| best_run(&out, entry.name)).collect();
        ensure!(
            !runs.is_empty(),
            "there are no runs in {}: make one with `lab run <experiment>`, or name another folder with --out",
            out.display()
        );
        runs
    } else {
        named.into_iter().map(|name| named_run(name, &out)).collect::<Result<_>>()?
    };
    let page = matches.get_one::<PathBuf>("to").cloned().unwrap_or_else(|| out.join(REPORT_FILE));
    write_report(&runs, &page)?;
    print(&format!("{}\n", page.display()))?;
    if let Some(sheet) = matches.get_one::<PathBuf>("contact-sheet") {
        contact_sheet(&figures_of(&runs)?, SHEET_COLUMNS, sheet)?;
        print(&format!("{}\n", sheet.display()))?;
    }
    Ok(())
}

/// A run by its folder, or the newest of an experiment by the experiment's name.
fn named_run(name: &str, out: &Path) -> Result<PathBuf> {
    let folder = Path::new(name);
    if folder.join(MANIFEST_FILE).is_file() {
        return Ok(folder.to_path_buf());
    }
    let known: Vec<&str> = EXPERIMENTS.iter().map(|entry| entry.name).collect();
    if known.contains(&name) {
        let Some(run) = best_run(out, name) else {
            bail!(
                "there are no runs of {name} in {}: make one with `lab run {name}`, or name another folder with --out",
                out.display()
            )
        };
        return Ok(run);
    }
    ensure!(!folder.is_dir(), "{name} is no run's folder: there is no {MANIFEST_FILE} in it");
    bail!(
        "{name:?} is neither a run's folder nor an experiment{}; the experiments are {}",
        nearest(name, &known),
        known.join(", ")
    )
}

/// The newest finished run of an experiment, or the newest where none is finished.
fn best_run(out: &Path, name: &str) -> Option<PathBuf> {
    let order = |manifest: &Manifest| (manifest.status == Status::Finished, manifest.started.clone());
    let runs = runs_of(out, name).into_iter();
    // Times are whole seconds; folders of the same second are told apart by their names.
    runs.max_by_key(|(path, manifest)| (order(manifest), path.clone())).map(|(path, _)| path)
}

/// The PNGs of the runs, each with a caption.
fn figures_of(runs: &[PathBuf]) -> Result<Vec<(String, PathBuf)>> {
    let mut figures = Vec::new();
    for run in runs {
        let manifest = Manifest::read(&run.join(MANIFEST_FILE))?;
        for name in manifest.files.iter().filter_map(|file| file.name.strip_suffix(".png")) {
            figures.push((format!("{} · {name}", manifest.experiment), run.join(format!("{name}.png"))));
        }
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_experiment_has_its_places() {
        command().debug_assert();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let stems = |folder: &Path, extension: &str| {
            let mut stems: Vec<String> = std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|found| found == extension))
                .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            stems.sort();
            stems
        };
        let mut names: Vec<String> = EXPERIMENTS.iter().map(|entry| entry.name.to_owned()).collect();
        names.sort();
        assert_eq!(stems(&root.join("../../configs"), "toml"), names);
        let binaries: Vec<String> =
            stems(&root.join("src/bin"), "rs").into_iter().filter(|name| name != "lab").collect();
        assert_eq!(binaries, names);
        for entry in EXPERIMENTS {
            let presets = preset_names(entry);
            assert!(["paper", "quick"].iter().all(|name| presets.iter().any(|found| found == name)));
            for (name, seconds) in entry.seconds {
                assert!(presets.iter().any(|found| found == name) && *seconds > 0., "{}: {name}", entry.name);
            }
        }
    }
}
