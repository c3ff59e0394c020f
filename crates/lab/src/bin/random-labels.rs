//! `random-labels`: see [`flatland_lab::random_labels`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flatland_lab::main::<flatland_lab::random_labels::RandomLabels>()
}
