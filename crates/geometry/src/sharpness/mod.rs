//! Sharpness: how much the training loss L rises around θ.
//!
//! | measure | formula | source |
//! | --- | --- | --- |
//! | [`keskar`] | `100 (max_{δ in a box} L(θ + δ) - L(θ)) / (1 + L(θ))` | Keskar et al. 2017, "On large-batch training for deep learning", metric 2.1 |
//! | [`keskar_in_subspace`] | the same over `δ = A z`, A random with p columns | the same |
//! | [`worst_case`] | `max_{‖T⁻¹ δ‖₂ ≤ ρ} L(θ + δ) - L(θ)` | T = 1: Foret et al. 2021, "Sharpness-aware minimization for efficiently improving generalization"; T by θ: Kwon et al. 2021, "ASAM" |
//! | [`average_case`] | `E L(θ + σ T z) - L(θ)`, z standard normal | Andriushchenko et al. 2023, "A modern look at the relationship between sharpness and generalization" |
//!
//! [`Scale`] has the T. With T = 1, and in Keskar's box, sharpness depends on how a function is written: [`rescaled`] makes a network of
//! ReLU as sharp as one likes without changing its outputs (Dinh et al. 2017, "Sharp minima can generalize for deep nets"). The
//! adaptive forms, whose T goes with θ, are the same for both.
//!
//! All take θ `[P]` of f32 or f64 on any device, and the mean loss over all the examples, in chunks. Values have the loss's unit, but
//! Keskar's, which has none. Where L(θ) is not finite, neither is its sharpness: NaN.

mod ascent;
mod average;
mod keskar;
mod objective;
mod rescaling;
mod scale;
mod worst;

pub use ascent::Ascent;
pub use average::{AverageCase, average_case};
pub use keskar::{keskar, keskar_in_subspace};
pub use objective::Objective;
pub use rescaling::rescaled;
pub use scale::Scale;
pub use worst::{WorstCase, worst_case};

#[cfg(test)]
mod tests;
