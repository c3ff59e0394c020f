//! `sharpness`: see [`flatland_lab::sharpness`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::sharpness::Sharpness>()
}
