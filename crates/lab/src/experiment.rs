//! What an experiment is, and the way from its command line to its run's folder.

use crate::command::{Arguments, Flag};
use crate::panics::{self, caught};
use crate::progress::Progress;
use crate::run::{Interrupted, Run};
use crate::settings::resolve;
use crate::summary::short;
use anyhow::{Context, Result, ensure};
use flatland_network::allocator;
use flatland_network::device::{ChosenDevice, DeviceChoice, choose};
use flatland_network::{Precision, set_deterministic, set_precision};
use flatland_record::{DeviceRecord, MANIFEST_FILE, Manifest, NumbersRecord, RunFolder, Status};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;
use tch::Device;

/// Success.
pub(crate) const OK: u8 = 0;
/// The run failed; the message says why.
pub(crate) const FAILED: u8 = 1;
/// The command line or a setting is wrong (also clap's own code). Nothing was run.
pub(crate) const USAGE: u8 = 2;
/// Interrupted by a signal; `--resume` goes on. `EX_TEMPFAIL`, which schedulers take as "try again".
pub(crate) const INTERRUPTED: u8 = 75;

/// Trials side by side on a GPU, where `--workers` says nothing. Four were faster on an H100 (small nets 2.3 times), but libtorch
/// failed in one of 18 runs; what is done about it (`network::graph::backward`) came after the last hour with a card.
const GPU_WORKERS: usize = 1;
/// libtorch has 32 streams to compute on.
const MOST_GPU_WORKERS: usize = 16;

/// One experiment: what it is called, what may be set, and how it runs.
pub trait Experiment {
    /// Name of its binary, its settings file and its folder of runs.
    const NAME: &'static str;
    /// The question that it answers, in one sentence.
    const ABOUT: &'static str;
    /// Examples for `--help`.
    const EXAMPLES: &'static str;
    /// Flags of its own, beside those that all experiments have.
    const FLAGS: &'static [Flag] = &[];
    /// How many seconds each preset takes on 2 cores, as measured.
    const SECONDS: &'static [(&'static str, f64)];
    /// Its presets: the text of `configs/<name>.toml`.
    const PRESETS: &'static str;
    /// Everything that may be set.
    type Settings: Serialize + DeserializeOwned;

    /// Refuses settings that cannot be run, before anything is.
    ///
    /// # Errors
    /// One sentence with the key, what was expected and what was found.
    fn check(settings: &Self::Settings) -> Result<()>;

    /// The seeds of its repetitions.
    fn seeds(settings: &Self::Settings) -> Vec<u64>;

    /// Trains, measures, writes tables and figures; returns a table of the main numbers for the end of the output.
    ///
    /// # Errors
    /// Whatever went wrong. What was finished before stays in the run's folder.
    fn run(settings: &Self::Settings, run: &Run) -> Result<comfy_table::Table>;
}

/// An experiment among others, for `lab`.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// The question that it answers.
    pub about: &'static str,
    /// The text of its presets.
    pub presets: &'static str,
    /// How many seconds each preset takes on 2 cores.
    pub seconds: &'static [(&'static str, f64)],
    /// Flags of its own.
    pub flags: &'static [Flag],
    /// Its command line.
    pub command: fn() -> clap::Command,
    /// Refuses settings that cannot be run.
    pub check: fn(&Arguments) -> Result<()>,
    /// Runs it.
    pub run: fn(&Arguments) -> Ending,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ending {
    /// The exit code.
    pub code: u8,
    /// The run's folder, where there is one.
    pub folder: Option<PathBuf>,
}

impl Entry {
    /// The entry of one experiment.
    pub const fn of<E: Experiment>() -> Self {
        Self {
            name: E::NAME,
            about: E::ABOUT,
            presets: E::PRESETS,
            seconds: E::SECONDS,
            flags: E::FLAGS,
            command: command::<E>,
            check: |arguments| E::check(&resolve(E::PRESETS, arguments)?),
            run: run::<E>,
        }
    }
}

fn command<E: Experiment>() -> clap::Command {
    Arguments::command_with(E::FLAGS).name(E::NAME).about(E::ABOUT).after_help(format!(
        "{}\n\nExit codes: 0 done, 1 failed, 2 wrong command line or settings, 75 interrupted (--resume goes on).",
        E::EXAMPLES
    ))
}

/// The whole of an experiment's binary.
pub fn main<E: Experiment>() -> ExitCode {
    panics::keep();
    allocator::keep_large_blocks();
    let command = command::<E>().bin_name(E::NAME);
    match Arguments::read(&command.get_matches(), E::FLAGS) {
        Ok(arguments) => ExitCode::from(run::<E>(&arguments).code),
        Err(error) => error.exit(),
    }
}

/// From a command line to an exit code.
fn run<E: Experiment>(arguments: &Arguments) -> Ending {
    match prepare::<E>(arguments) {
        Ok(Prepared::Nothing) => Ending { code: OK, folder: None },
        Ok(Prepared::Finished(folder)) => Ending { code: OK, folder: Some(folder) },
        Ok(Prepared::Ready(settings, run)) => {
            let code = execute::<E>(&settings, &run);
            if let Some(reason) = flatland_network::graph::refused() {
                run.progress.note(&format!(
                    "training was slower than it could be, its steps were not recorded: {reason}"
                ));
            }
            Ending { code, folder: Some(run.folder.path().to_path_buf()) }
        }
        Err((error, code)) => {
            complain(&error);
            Ending { code, folder: None }
        }
    }
}

pub(crate) fn complain(error: &anyhow::Error) {
    // One sentence: what was attempted, then the cause.
    match panics::take() {
        // Of a thread that stopped.
        Some(cause) => eprintln!("error: {error:#}: {cause}"),
        None => eprintln!("error: {error:#}"),
    }
}

/// To stdout, whose reader may have gone away (`… | head`): no failure, and no panic.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ => Ok(()),
    }
}

/// What a command line comes to.
enum Prepared<S> {
    /// A run that can start.
    Ready(S, Box<Run>),
    /// A run that an earlier `lab run all` has finished.
    Finished(PathBuf),
    /// Nothing to run.
    Nothing,
}

/// From the command line to a run that can start, or an error with the exit code that it means.
fn prepare<E: Experiment>(arguments: &Arguments) -> Result<Prepared<E::Settings>, (anyhow::Error, u8)> {
    let usage = |error: anyhow::Error| (error, USAGE);
    let settings: E::Settings = resolve(E::PRESETS, arguments).map_err(|error| usage(error.into()))?;
    E::check(&settings).map_err(usage)?;
    let text = toml::to_string(&settings).map_err(|error| usage(error.into()))?;
    if arguments.show_settings {
        print(&text).map_err(|error| (error, FAILED))?;
        return Ok(Prepared::Nothing);
    }
    if arguments.workers == Some(0) {
        return Err(usage(anyhow::anyhow!("--workers must be at least 1, found 0")));
    }
    let choice: DeviceChoice = arguments.device.parse().map_err(|error| usage(anyhow::Error::new(error)))?;
    let precision: Precision =
        arguments.precision.parse().map_err(|error| usage(anyhow::Error::new(error)))?;
    let device = choose(choice).map_err(|error| (error.into(), FAILED))?;
    if precision == Precision::Tf32 && device.device == Device::Cpu {
        let reason = device.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        return Err(usage(anyhow::anyhow!(
            "--precision tf32 is for GPUs, and this run is on the CPU{reason}: leave it out, or give --device cuda"
        )));
    }
    if device.device != Device::Cpu && arguments.workers.is_some_and(|workers| workers > MOST_GPU_WORKERS) {
        return Err(usage(anyhow::anyhow!("on a GPU --workers must be at most {MOST_GPU_WORKERS}")));
    }
    let failed = |error: anyhow::Error| (error, FAILED);
    if device.device != Device::Cpu {
        set_precision(precision).map_err(|error| failed(error.into()))?;
        // Else two runs of one seed part after a few hundred steps.
        set_deterministic(true).map_err(|error| failed(error.into()))?;
    }
    if arguments.resume && arguments.all {
        let fresh = new_manifest::<E>(&settings, arguments, &device).map_err(failed)?;
        if let Some(folder) =
            finished::<E>(arguments, &identity(&device, precision, &text), &fresh).map_err(failed)?
        {
            if !arguments.quiet {
                eprintln!("finished already: {}", folder.display());
            }
            return Ok(Prepared::Finished(folder));
        }
    }
    let run = open::<E>(&settings, &text, arguments, device, precision).map_err(failed)?;
    Ok(Prepared::Ready(settings, Box::new(run)))
}

/// What the first signal sets; the second ends the process at once. Listened to once, however many runs a process makes.
pub(crate) fn interruption() -> Result<Arc<AtomicBool>> {
    static INTERRUPTION: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if let Some(interrupted) = INTERRUPTION.get() {
        return Ok(Arc::clone(interrupted));
    }
    let interrupted = Arc::clone(INTERRUPTION.get_or_init(Arc::default));
    for signal in signal_hook::consts::TERM_SIGNALS {
        signal_hook::flag::register_conditional_shutdown(
            *signal,
            INTERRUPTED.into(),
            Arc::clone(&interrupted),
        )
        .and_then(|_| signal_hook::flag::register(*signal, Arc::clone(&interrupted)))
        .context("cannot listen to signals")?;
    }
    Ok(interrupted)
}

fn open<E: Experiment>(
    settings: &E::Settings,
    text: &str,
    arguments: &Arguments,
    device: ChosenDevice,
    precision: Precision,
) -> Result<Run> {
    let progress = Progress::new(arguments.quiet);
    let interrupted = interruption()?;
    let identity = identity(&device, precision, text);
    let fresh = new_manifest::<E>(settings, arguments, &device)?;
    let resumed = if arguments.resume { resumable::<E>(arguments, &identity, &fresh)? } else { None };
    if arguments.resume && resumed.is_none() {
        progress
            .note("nothing to resume with these settings and this build: this run starts from the beginning");
    }
    let (folder, manifest) = if let Some((folder, mut manifest)) = resumed {
        manifest.resumed.push(flatland_record::now_rfc3339());
        manifest.status = Status::Running;
        (manifest.error, manifest.ended, manifest.exit_code) = (None, None, None);
        progress.note(&format!("resuming {}", folder.path().display()));
        (folder, manifest)
    } else {
        let folder = RunFolder::create(&arguments.out, E::NAME, &identity)?;
        (folder, fresh)
    };
    folder.lock().map(std::mem::forget)?;
    let _ = flatland_record::forget_peak_memory();
    let on = device.reason.as_deref().map(|reason| format!(" (auto: {reason})")).unwrap_or_default();
    progress.note(&format!("{} on {}{on}", E::NAME, device.name));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let on_cpu = device.device == Device::Cpu;
    let run = Run {
        folder,
        workers: arguments.workers.unwrap_or(if on_cpu { cores } else { GPU_WORKERS }),
        device,
        precision,
        progress,
        data_dir: arguments.data_dir.clone(),
        preset: manifest.preset.clone(),
        interrupted,
        manifest: Mutex::new(manifest),
        written: Mutex::new(Vec::new()),
        outcomes: Mutex::new(Vec::new()),
    };
    run.update_manifest(|_| ())?;
    if let Err(error) = run.folder.point_latest() {
        run.progress.note(&format!("note: {error}"));
    }
    Ok(run)
}

/// What a run's folder is found by. Numbers differ between devices in their last bits: a run is resumed only where it began.
fn identity(device: &ChosenDevice, precision: Precision, text: &str) -> String {
    format!("# device: {:?}, {precision}\n{text}", device.device)
}

/// What else must be the same for numbers to be of one kind.
fn origin(manifest: &Manifest) -> (BTreeMap<String, String>, Option<String>, String) {
    (manifest.versions.clone(), manifest.git_commit.clone(), manifest.device.name.clone())
}

/// The newest finished run with these settings, if the same code on the same machine made it.
fn finished<E: Experiment>(
    arguments: &Arguments,
    identity: &str,
    fresh: &Manifest,
) -> Result<Option<PathBuf>> {
    let Some(folder) = RunFolder::finished_latest(&arguments.out, E::NAME, identity)? else {
        return Ok(None);
    };
    let manifest = Manifest::read(&folder.file(MANIFEST_FILE))?;
    Ok((origin(&manifest) == origin(fresh)).then(|| folder.path().to_path_buf()))
}

/// The newest unfinished run with these settings, if the same code on the same machine began it: otherwise its numbers would
/// be of two kinds.
fn resumable<E: Experiment>(
    arguments: &Arguments,
    identity: &str,
    fresh: &Manifest,
) -> Result<Option<(RunFolder, Manifest)>> {
    let Some(folder) = RunFolder::resume_latest(&arguments.out, E::NAME, identity)? else { return Ok(None) };
    let manifest = Manifest::read(&folder.file(MANIFEST_FILE))?;
    Ok((origin(&manifest) == origin(fresh)).then_some((folder, manifest)))
}

fn new_manifest<E: Experiment>(
    settings: &E::Settings,
    arguments: &Arguments,
    device: &ChosenDevice,
) -> Result<Manifest> {
    let changed = arguments.config.is_some() || !arguments.set.is_empty() || !arguments.own.is_empty();
    let preset = format!("{}{}", arguments.preset, if changed { ", changed" } else { "" });
    let mut manifest = Manifest::new(E::NAME, &preset, serde_json::to_value(settings)?);
    if arguments.all {
        manifest.command = command_of_one(&manifest.command, E::NAME, arguments.dataset.is_some());
    }
    manifest.question = Some(E::ABOUT.to_owned());
    manifest.seeds = E::seeds(settings);
    manifest.device = DeviceRecord {
        requested: arguments.device.clone(),
        used: format!("{:?}", device.device).to_lowercase(),
        name: device.name.clone(),
        precision: arguments.precision.clone(),
    };
    manifest.versions = BTreeMap::from(
        [
            ("flatland", env!("CARGO_PKG_VERSION")),
            ("libtorch", "2.11.0"),
            ("tch", "0.24.0"),
            ("rustc", env!("FLATLAND_RUSTC")),
            ("os", std::env::consts::OS),
        ]
        .map(|(name, version)| (name.to_owned(), version.to_owned())),
    );
    // Two builds of one commit may differ; a run is resumed by the same program only.
    let program = std::env::current_exe().ok().and_then(|path| flatland_record::sha256_of_file(&path).ok());
    if let Some((_, hash)) = program {
        // Sixteen digits tell programs apart, and can be read.
        manifest.versions.insert("program".to_owned(), hash[..16].to_owned());
    }
    Ok(manifest)
}

/// The command that repeats one experiment of a `lab run all`.
fn command_of_one(all: &[String], name: &str, data_set: bool) -> Vec<String> {
    let mut command = Vec::new();
    let mut words = all.iter();
    while let Some(word) = words.next() {
        let follows_run = command.last().is_some_and(|last| last == "run");
        match word.as_str() {
            "all" if follows_run => command.push(name.to_owned()),
            // It has none.
            "--dataset" if !data_set => drop(words.next()),
            word if !data_set && word.starts_with("--dataset=") => {}
            word => command.push(word.to_owned()),
        }
    }
    command
}

fn execute<E: Experiment>(settings: &E::Settings, run: &Run) -> u8 {
    let start = Instant::now();
    let result = caught(|| E::run(settings, run));
    let (status, code) = match &result {
        Ok(_) => (Status::Finished, OK),
        Err(error) if error.is::<Interrupted>() => (Status::Interrupted, INTERRUPTED),
        Err(_) => (Status::Failed, FAILED),
    };
    let message = result.as_ref().err().map(|error| format!("{error:#}"));
    let numbers = result.as_ref().ok().map(numbers_record);
    let closed = run.close(status, message, code, start.elapsed().as_secs_f64(), numbers);
    if closed.is_ok() {
        run.write_page();
    }
    let closed = match result {
        Ok(numbers) => {
            closed.and_then(|()| print(&format!("{numbers}\n{}{}\n", verdicts(run), closing_table(run))))
        }
        Err(error) => {
            complain(&error);
            return code;
        }
    };
    match closed {
        Ok(()) => code,
        Err(error) => {
            complain(&error);
            FAILED
        }
    }
}

/// The table of the main numbers, for the manifest.
fn numbers_record(table: &comfy_table::Table) -> NumbersRecord {
    let cells = |row: &comfy_table::Row| row.cell_iter().map(comfy_table::Cell::content).collect();
    NumbersRecord {
        header: table.header().map(cells).unwrap_or_default(),
        rows: table.row_iter().map(cells).collect(),
    }
}

/// What the seeds say of each claim; nothing where there is none.
fn verdicts(run: &Run) -> String {
    let outcomes = run.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    if outcomes.is_empty() {
        return String::new();
    }
    let mut table = wrapped_table();
    table.set_header(["claim", "verdict", "estimate", "95 % interval", "seeds"]);
    for outcome in outcomes.iter() {
        let claim = &outcome.claim;
        let interval = outcome.interval.map(|(low, high)| format!("{} to {}", short(low), short(high)));
        table.add_row([
            format!("{} ({})", claim.statement, claim.source),
            outcome.verdict.to_string(),
            outcome.estimate.map(short).unwrap_or_default(),
            interval.unwrap_or_default(),
            outcome.seeds.to_string(),
        ]);
    }
    format!("{table}\n")
}

/// A table of sentences, which wrap at the terminal's width, or where there is none at 120 characters.
pub(crate) fn wrapped_table() -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    if table.width().is_none() {
        table.set_width(120);
    }
    table
}

/// Where everything lies.
fn closing_table(run: &Run) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    for (files, what) in run.written.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        table.add_row([&files.join(", "), what]);
    }
    table.add_row([MANIFEST_FILE, "settings, seeds, data, versions, checksums of the files"]);
    table.add_row([format!("in {}", run.folder.path().display())]);
    table
}

/// Whether these are the settings of a preset, but for some keys.
pub(crate) fn is_preset<E: Experiment>(settings: &E::Settings, preset: &str, but_for: &[&str]) -> bool {
    let table = |settings: &E::Settings| {
        let mut table = toml::Table::try_from(settings).ok()?;
        table.retain(|key, _| !but_for.contains(&key));
        Some(table)
    };
    let arguments = <Arguments as clap::Parser>::try_parse_from([E::NAME, "--preset", preset]).ok();
    let presets = arguments.and_then(|arguments| resolve::<E::Settings>(E::PRESETS, &arguments).ok());
    presets.is_some_and(|theirs| table(settings).is_some() && table(settings) == table(&theirs))
}

/// The seeds from `first` on.
pub(crate) fn seeds_from(first: u64, count: u64) -> Vec<u64> {
    (first..first.saturating_add(count)).collect()
}

/// Refuses a count of repetitions that is none, or surely a slip.
///
/// # Errors
/// One sentence, when it is not between 1 and 100,000.
pub(crate) fn check_seeds(seeds: u64) -> Result<()> {
    ensure!((1..=100_000).contains(&seeds), "seeds must lie between 1 and 100,000, found {seeds}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_all_is_repeated_by_a_command_of_its_own() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let all = words("lab run all --dataset digits --out all");
        assert_eq!(
            command_of_one(&all, "flatness", true),
            words("lab run flatness --dataset digits --out all")
        );
        assert_eq!(command_of_one(&all, "simulate", false), words("lab run simulate --out all"));
    }

    #[test]
    fn a_preset_is_known_whatever_the_seeds() {
        use crate::gradient_norm::{GradientNorm, Settings};
        let resolved = |words: &[&str]| -> Settings {
            let words = [&["gradient-norm"], words].concat();
            let arguments = <Arguments as clap::Parser>::parse_from(words);
            resolve(GradientNorm::PRESETS, &arguments).unwrap()
        };
        let is = |words: &[&str]| is_preset::<GradientNorm>(&resolved(words), "paper", &["seeds", "seed"]);
        assert!(is(&[]) && is(&["--seeds", "3"]) && is(&["--set", "epochs=4000"]));
        assert!(!is(&["--set", "optimiser.lr=0.1"]) && !is(&["--preset", "quick"]));
    }
}
