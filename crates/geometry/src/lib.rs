//! What the loss looks like around θ, or between two of them, and how strongly it reacts to the input.

mod align;
mod critical;
mod curve;
mod dense_hessian;
mod density;
mod direction;
mod eigenpairs;
mod hessian;
mod line;
pub mod measure;
mod operator;
mod probe;
mod sensitivity;
mod sharpness;
mod stacked;
mod trace;
mod worker;

pub use align::{AlignError, Alignment, align, permute};
pub use critical::{CriticalPoint, CriticalSettings, Ended, PATIENCE, Step, critical_point, loss_and_norm};
pub use curve::{Curve, CurveError, CurveTraining, Shape};
pub use density::{DensitySettings, Quadrature, spectral_density};
pub use direction::{Biases, DirectionError, Normalisation, Subspace, even_grid, random_direction};
pub use eigenpairs::{EigenSettings, Eigenpairs, Progress, eigenpairs};
pub use flatland_network::Curvature;
pub use hessian::{HessianError, eigenvalues, hessian};
pub use line::{AlphaGrid, GridError, barrier, interpolate};
pub use operator::{CurvatureError, CurvatureOperator, Matrix, Of, Symmetric};
pub use sensitivity::{
    InputNorms, JacobianNorms, frobenius_of_mean, input_gradient_norms, input_norms, jacobian_norms,
    parameter_gradient_norm,
};
pub use sharpness::{
    Ascent, AverageCase, Objective, Scale, WorstCase, average_case, keskar, keskar_in_subspace, rescaled,
    worst_case,
};
pub use stacked::StackedCurvature;
pub use trace::{Estimate, TraceEstimates, TraceEstimator, hutch_plus_plus, hutchinson, xtrace};
