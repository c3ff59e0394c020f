//! `flatness`: see [`flatland_lab::flatness`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::flatness::Flatness>()
}
