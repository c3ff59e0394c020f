//! Curvature whose products end with the run.

use crate::run::Run;
use flatland_geometry::{CurvatureError, Symmetric};
use tch::{Device, Kind, Tensor};

/// A matrix that looks, before every product, whether the user wants to stop: then [`CurvatureError::Stopped`].
pub struct Watched<'a> {
    /// What is multiplied.
    pub matrix: &'a dyn Symmetric,
    /// Whose run it is.
    pub run: &'a Run,
}

impl Symmetric for Watched<'_> {
    fn dimension(&self) -> i64 {
        self.matrix.dimension()
    }

    fn options(&self) -> (Kind, Device) {
        self.matrix.options()
    }

    fn products(&self, vectors: &Tensor) -> Result<Tensor, CurvatureError> {
        self.run.check_interrupted().map_err(|_| CurvatureError::Stopped)?;
        self.matrix.products(vectors)
    }
}
