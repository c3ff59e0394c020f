//! The experiments, one file each, and what they share on the way from a command line to a run's folder.
//!
//! An experiment says what it trains, measures, draws and claims. This crate's other files do the rest for all of them:
//! settings, device, progress, trials, the run's folder.

mod command;
mod curves;
mod experiment;
mod fitting;
mod images;
pub mod lab;
mod module;
mod panics;
mod parallel;
mod progress;
mod run;
mod settings;
mod stacks;
mod subject;
mod summary;
mod trial;
mod watched;

pub mod capacity;
pub mod classify;
pub mod flatness;
pub mod gradient_norm;
pub mod landscape;
pub mod measures;
pub mod minimal_ratio;
pub mod paths;
pub mod random_labels;
pub mod sensitivity;
pub mod sharpness;
pub mod simulate;
pub mod spectrum;
pub mod trajectory;

pub use experiment::{Ending, Entry, Experiment, main};

/// Every experiment: the report's in its order, then those on what a minimum looks like.
pub const EXPERIMENTS: &[Entry] = &[
    Entry::of::<simulate::Simulate>(),
    Entry::of::<classify::Classify>(),
    Entry::of::<trajectory::Trajectory>(),
    Entry::of::<gradient_norm::GradientNorm>(),
    Entry::of::<minimal_ratio::MinimalRatio>(),
    Entry::of::<random_labels::RandomLabels>(),
    Entry::of::<capacity::Capacity>(),
    Entry::of::<flatness::Flatness>(),
    Entry::of::<sensitivity::Sensitivity>(),
    Entry::of::<spectrum::Spectrum>(),
    Entry::of::<sharpness::Sharpness>(),
    Entry::of::<landscape::Landscape>(),
    Entry::of::<paths::Paths>(),
    Entry::of::<measures::Measures>(),
];
