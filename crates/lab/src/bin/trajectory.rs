//! `trajectory`: see [`flatland_lab::trajectory`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::trajectory::Trajectory>()
}
