//! `sensitivity`: see [`flatland_lab::sensitivity`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::sensitivity::Sensitivity>()
}
