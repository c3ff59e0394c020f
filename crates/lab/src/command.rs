//! The command line, the same for every experiment.

use clap::Parser;
use std::path::PathBuf;

/// What every experiment's binary takes. Flags go over `--set`, `--set` over `--config`, `--config` over the preset.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Arguments {
    /// Settings to start from: `paper` (the report's) or `quick` (about a minute on 2 cores)
    #[arg(long, default_value = "paper", value_name = "NAME")]
    pub preset: String,

    /// TOML file with settings that go over the preset's
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// One setting, for instance --set epochs=5 or --set alpha.points=21; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Data set: mnist, fashion-mnist, kmnist, or digits, which needs no files
    #[arg(long, value_name = "NAME")]
    pub dataset: Option<String>,

    /// How many independent repetitions, for error bars
    #[arg(long, value_name = "N")]
    pub seeds: Option<u64>,

    /// The first seed; the others follow it
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,

    #[arg(
        long,
        value_name = "DIR",
        help = "Folder with the data sets [default: $FLATLAND_DATA, else the platform's data folder]"
    )]
    pub data_dir: Option<PathBuf>,

    /// Folder for runs: this one goes to DIR/<experiment>/<time>-<settings>/
    #[arg(long, default_value = "outputs", value_name = "DIR")]
    pub out: PathBuf,

    /// Trials side by side on the CPU, one thread each; results do not depend on it [default: one per core]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,

    /// Go on with the newest unfinished run that has the same settings
    #[arg(long)]
    pub resume: bool,

    /// No progress on stderr
    #[arg(long, short)]
    pub quiet: bool,

    /// Print the settings as they come out of preset, file and flags, and stop
    #[arg(long)]
    pub show_settings: bool,
}
