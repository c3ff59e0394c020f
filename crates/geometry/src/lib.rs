//! What the loss looks like around θ, or between two of them, and how strongly it reacts to the input.

mod critical;
mod dense_hessian;
mod direction;
mod hessian;
mod line;
mod sensitivity;

pub use critical::{CriticalPoint, CriticalSettings, Ended, PATIENCE, Step, critical_point, loss_and_norm};
pub use direction::{Biases, DirectionError, Normalisation, Subspace, even_grid, random_direction};
pub use hessian::{HessianError, eigenvalues, hessian};
pub use line::{AlphaGrid, GridError, barrier, interpolate};
pub use sensitivity::{
    InputNorms, JacobianNorms, frobenius_of_mean, input_gradient_norms, input_norms, jacobian_norms,
    parameter_gradient_norm,
};
