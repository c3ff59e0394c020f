//! `minimal-ratio`: see [`flatland_lab::minimal_ratio`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::minimal_ratio::MinimalRatio>()
}
