//! `measures`: see [`flatland_lab::measures`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::measures::Measures>()
}
