//! The experiments, one file each, and what they share on the way from a command line to a run's folder.
//!
//! An experiment ([`flatness`] is the first) says what it trains, measures and draws. This crate's other files do the rest
//! for all of them: settings, device, progress, trials, the run's folder.

mod command;
mod experiment;
pub mod flatness;
mod images;
mod parallel;
mod progress;
mod run;
mod settings;
mod trial;

pub use experiment::{Experiment, main};
