//! `capacity`: see [`flatland_lab::capacity`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::capacity::Capacity>()
}
