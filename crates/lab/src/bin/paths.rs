//! `paths`: see [`flatland_lab::paths`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::paths::Paths>()
}
