//! The training core: networks as pure functions of one flat parameter vector θ.
//!
//! A network holds no weights. `network.forward(θ, x)` takes θ of shape `[P]`, or `[M, P]` for M models at once, so that
//! a snapshot, an interpolation or a perturbation of a network is plain vector algebra on θ.
//!
//! The way of the data: [`device`] → [`Examples`] → [`Network`] and [`initialise`] → [`Training`] → [`evaluate`] and
//! [`snapshot`].

pub mod allocator;
mod block;
mod dense;
pub mod device;
mod error;
mod evaluation;
mod examples;
mod gradient;
pub mod graph;
mod head;
mod initialise;
mod jacobian;
mod layers;
mod linearised;
mod loss;
mod module;
mod network;
mod optimiser;
mod pooling;
mod precision;
mod slices;
pub mod snapshot;
mod sparse;
pub mod streams;
mod subspace;
mod training;

pub use block::available as own_kernels_available;
pub use dense::{Activation, DenseLayer};
pub use error::NetworkError;
pub use evaluation::{Evaluation, evaluate, evaluate_many};
pub use examples::Examples;
pub use gradient::{BatchGradient, loss_and_gradient};
pub use initialise::{initialise, initialise_stacked};
pub use jacobian::input_jacobians;
pub use layers::LayerView;
pub use linearised::{Curvature, Directions, Linearised, Products, StackedLinearised, by_kernels};
pub use loss::Loss;
pub use module::{Model, Module, flat};
pub use network::{Layer, Network, Parameter};
pub use optimiser::{Optimiser, OptimiserSettings};
pub use precision::{Precision, set_deterministic, set_precision};
pub use subspace::{Points, evaluate_points};
pub use training::{Epoch, StackedTraining, Training, epoch_order};

/// Result of this crate's fallible operations.
pub type Result<T, E = NetworkError> = std::result::Result<T, E>;
