//! Examples, resident on the device.

use crate::{NetworkError, Result};
use ndarray::Array4;
use tch::{Device, Tensor};

/// Inputs and targets of one split, on the device where they are used.
#[derive(Debug)]
pub struct Examples {
    /// `[N, input…]`.
    pub inputs: Tensor,
    /// Class indices `[N]` (i64), or values `[N, D]`.
    pub targets: Tensor,
}

impl Examples {
    /// Images `[N, C, H, W]` and their labels.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when the counts differ or there is none; an error of libtorch when the device is full.
    pub fn images(images: &Array4<f32>, labels: &[u8], device: Device) -> Result<Self> {
        let inputs = match images.as_slice() {
            Some(numbers) => Tensor::f_from_slice(numbers)?,
            None => Tensor::f_from_slice(&images.iter().copied().collect::<Vec<_>>())?,
        };
        let shape: Vec<i64> = images.shape().iter().map(|&n| n as i64).collect();
        let labels: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
        Self::new(
            inputs.f_view(shape.as_slice())?.f_to_device(device)?,
            Tensor::f_from_slice(&labels)?.f_to_device(device)?,
        )
    }

    /// Inputs `[N, input…]` with targets `[N]` or `[N, D]`.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when the counts differ or there is none.
    pub fn new(inputs: Tensor, targets: Tensor) -> Result<Self> {
        let (n, found) = (inputs.size().first().copied().unwrap_or(0), targets.size());
        if n == 0 || found.first() != Some(&n) {
            return Err(NetworkError::Shape {
                what: "targets",
                found,
                expected: format!("one for each of the {n} inputs, and at least one"),
            });
        }
        Ok(Self { inputs, targets })
    }

    /// N.
    pub fn count(&self) -> i64 {
        self.inputs.size()[0]
    }

    /// The first `count` of them, sharing memory.
    ///
    /// # Errors
    /// [`NetworkError::Setting`] when there are fewer.
    pub fn first(&self, count: i64) -> Result<Self> {
        if count < 1 || count > self.count() {
            return Err(NetworkError::Setting(format!(
                "a subset must have 1 to {} examples, found {count}",
                self.count()
            )));
        }
        Self::new(self.inputs.f_narrow(0, 0, count)?, self.targets.f_narrow(0, 0, count)?)
    }

    /// The same examples for another thread: a handle onto the same memory.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { inputs: self.inputs.shallow_clone(), targets: self.targets.shallow_clone() }
    }
}
