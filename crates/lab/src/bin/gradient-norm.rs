//! `gradient-norm`: see [`flatland_lab::gradient_norm`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::gradient_norm::GradientNorm>()
}
