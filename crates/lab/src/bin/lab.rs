//! `lab`: see [`flatland_lab::lab`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::lab::main()
}
