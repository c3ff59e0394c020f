//! `spectrum`: see [`flatland_lab::spectrum`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::spectrum::Spectrum>()
}
