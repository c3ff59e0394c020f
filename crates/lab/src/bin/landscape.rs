//! `landscape`: see [`flatland_lab::landscape`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::landscape::Landscape>()
}
