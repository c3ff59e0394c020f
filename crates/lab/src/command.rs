//! The command line, the same for every experiment.

use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, Parser};
use std::path::PathBuf;

/// A flag of one experiment alone, for one key of its settings.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Without the dashes.
    pub name: &'static str,
    /// The key in the settings.
    pub key: &'static str,
    /// Whether it may be repeated: the key's value is then the list of what it was given.
    pub many: bool,
    /// Whether it is given files: a path is then taken as where it leads now, since `outputs/…/latest` leads elsewhere once the run has begun.
    pub file: bool,
    /// What stands for its value in `--help`.
    pub value_name: &'static str,
    /// What it does.
    pub help: &'static str,
    /// Flags that say something else of the same thing: with one of them it is refused.
    pub excludes: &'static [&'static str],
}

/// What every experiment's binary takes. Flags go over `--set`, `--set` over `--config`, `--config` over the preset.
#[derive(Debug, Clone, Parser)]
#[command(version, max_term_width = 100)]
#[allow(clippy::struct_excessive_bools)] // flags are
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

    /// How a GPU multiplies: f32, or tf32, faster and rounded to 10 bits of mantissa
    #[arg(long, default_value = "f32", value_name = "PRECISION")]
    pub precision: String,

    #[arg(
        long,
        value_name = "DIR",
        help = "Folder with the data sets [default: $FLATLAND_DATA, else the platform's data folder]"
    )]
    pub data_dir: Option<PathBuf>,

    /// Folder for runs: this one goes to DIR/<experiment>/<time>-<settings>/
    #[arg(long, default_value = "outputs", value_name = "DIR")]
    pub out: PathBuf,

    /// Trials side by side, on the CPU with one thread each; results do not depend on it there [default: one per core; on a GPU 1]
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

    /// Whether this is a part of `lab run all`: with `--resume`, a finished run with the same settings is then taken as it is.
    #[arg(skip)]
    pub all: bool,

    /// What the experiment's own flags were given.
    #[arg(skip)]
    pub own: Vec<(Flag, Vec<String>)>,
}

impl Arguments {
    /// The command of an experiment with flags of its own.
    pub fn command_with(flags: &[Flag]) -> Command {
        flags.iter().fold(Self::command(), |command, flag| {
            let own = Arg::new(flag.name).long(flag.name).value_name(flag.value_name).help(flag.help);
            let action = if flag.many { ArgAction::Append } else { ArgAction::Set };
            command.arg(own.action(action).allow_hyphen_values(true))
        })
    }

    /// Reads what [`Arguments::command_with`] matched.
    pub fn read(matches: &ArgMatches, flags: &[Flag]) -> Result<Self, clap::Error> {
        let mut arguments = Self::from_arg_matches(matches)?;
        for flag in flags {
            if let Some(values) = matches.get_many::<String>(flag.name) {
                arguments.own.push((*flag, values.cloned().collect()));
            }
        }
        Ok(arguments)
    }
}
