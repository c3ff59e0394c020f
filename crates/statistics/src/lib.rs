//! What several seeds together say. It knows nothing of networks: numbers in, numbers out.

mod interval;

pub use interval::{Interval, geometric_mean_interval, mean_interval};
