//! What the loss looks like around θ, or between two of them.

mod line;

pub use line::{AlphaGrid, GridError, barrier, interpolate};
