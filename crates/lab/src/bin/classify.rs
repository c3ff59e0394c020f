//! `classify`: see [`flatland_lab::classify`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::classify::Classify>()
}
