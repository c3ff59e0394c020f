//! `simulate`: see [`flatland_lab::simulate`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::simulate::Simulate>()
}
