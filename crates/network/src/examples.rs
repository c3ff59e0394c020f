//! Examples, resident on the device.

use crate::slices::{slice, slice_mut};
use crate::{NetworkError, Result};
use ndarray::{Array3, Array4};
use tch::{Device, Kind, Tensor};

mod stacked;
pub use stacked::StackedExamples;

/// Inputs and targets of one split, on the device where they are used.
#[derive(Debug)]
pub struct Examples {
    inputs: Inputs,
    /// Class indices `[N]` (i64), or values `[N, D]`.
    targets: Tensor,
}

/// `[N, input…]`.
#[derive(Debug)]
enum Inputs {
    /// As they are.
    Values(Tensor),
    /// Grey values (u8), and what each of the 256 stands for, `[256]`: a quarter of the memory of numbers.
    Pixels { pixels: Tensor, values: Tensor },
}

impl Inputs {
    fn stored(&self) -> &Tensor {
        match self {
            Self::Values(inputs) => inputs,
            Self::Pixels { pixels, .. } => pixels,
        }
    }

    /// The same, of other rows.
    fn with(&self, stored: Tensor) -> Self {
        match self {
            Self::Values(_) => Self::Values(stored),
            Self::Pixels { values, .. } => Self::Pixels { pixels: stored, values: values.shallow_clone() },
        }
    }

    /// As numbers.
    fn numbers(&self) -> Result<Tensor> {
        match self {
            Self::Values(inputs) => Ok(inputs.shallow_clone()),
            Self::Pixels { pixels, values } => looked_up(pixels, values),
        }
    }
}

impl Examples {
    /// Images of numbers, `[N, C, H, W]`, and their labels.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when the counts differ or there is none; an error of libtorch when the device is full.
    pub fn images(images: &Array4<f32>, labels: &[u8], device: Device) -> Result<Self> {
        let inputs = match images.as_slice() {
            Some(numbers) => Tensor::f_from_slice(numbers)?,
            None => Tensor::f_from_slice(&images.iter().copied().collect::<Vec<_>>())?,
        };
        let shape: Vec<i64> = images.shape().iter().map(|&n| n as i64).collect();
        Self::new(inputs.f_view(shape.as_slice())?.f_to_device(device)?, classes(labels, device)?)
    }

    /// Images of grey values, `[N, H, W]`, and their labels. Each grey value stands for one of the 256 numbers; an image
    /// is an input of shape `input`, for instance `[1, H, W]` or `[H W]`. They stay bytes until a batch is asked for.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when the counts differ, there is none, or `input` is of another size; an error of libtorch
    /// when the device is full.
    pub fn pixels(
        images: &Array3<u8>,
        input: &[i64],
        values: &[f32; 256],
        labels: &[u8],
        device: Device,
    ) -> Result<Self> {
        let (count, rows, columns) = images.dim();
        if input.iter().product::<i64>() != (rows * columns) as i64 {
            let expected = format!("{input:?} from images of {rows}x{columns}");
            return Err(NetworkError::Shape { what: "an input", found: input.to_vec(), expected });
        }
        let pixels = match images.as_slice() {
            Some(pixels) => Tensor::f_from_slice(pixels)?,
            None => Tensor::f_from_slice(&images.iter().copied().collect::<Vec<_>>())?,
        };
        let pixels = pixels.f_view([&[count as i64], input].concat().as_slice())?.f_to_device(device)?;
        let values = Tensor::f_from_slice(values)?.f_to_device(device)?;
        Self::of(Inputs::Pixels { pixels, values }, classes(labels, device)?)
    }

    /// Inputs `[N, input…]` with targets `[N]` or `[N, D]`.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when the counts differ or there is none.
    pub fn new(inputs: Tensor, targets: Tensor) -> Result<Self> {
        Self::of(Inputs::Values(inputs), targets)
    }

    fn of(inputs: Inputs, targets: Tensor) -> Result<Self> {
        let n = inputs.stored().size().first().copied().unwrap_or(0);
        let found = targets.size();
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
        self.inputs.stored().size()[0]
    }

    /// Where they are.
    pub fn device(&self) -> Device {
        self.targets.device()
    }

    /// All inputs, `[N, input…]`: made anew where they are kept as grey values, so not for large data sets.
    ///
    /// # Errors
    /// When the device is full.
    pub fn inputs(&self) -> Result<Tensor> {
        self.inputs.numbers()
    }

    /// All targets: class indices `[N]` (i64), or values `[N, D]`.
    pub fn targets(&self) -> &Tensor {
        &self.targets
    }

    /// Inputs `[length, input…]` and targets of `length` examples from `start` on.
    ///
    /// # Errors
    /// When they are not all there.
    pub fn part(&self, start: i64, length: i64) -> Result<(Tensor, Tensor)> {
        let part = self.slice(start, length)?;
        Ok((part.inputs()?, part.targets))
    }

    /// Inputs `[B, input…]` and targets of the examples with these indices `[B]` (i64), on the examples' device.
    ///
    /// # Errors
    /// When an index is out of range.
    pub fn chosen(&self, indices: &Tensor) -> Result<(Tensor, Tensor)> {
        let inputs = self.inputs.with(self.inputs.stored().f_index_select(0, indices)?);
        Ok((inputs.numbers()?, self.targets.f_index_select(0, indices)?))
    }

    /// `length` of them from `start` on, sharing memory.
    ///
    /// # Errors
    /// When they are not all there, or are none.
    pub fn slice(&self, start: i64, length: i64) -> Result<Self> {
        let inputs = self.inputs.with(self.inputs.stored().f_narrow(0, start, length)?);
        Self::of(inputs, self.targets.f_narrow(0, start, length)?)
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
        self.slice(0, count)
    }

    /// The same inputs, sharing memory, with other targets.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when there are not as many.
    pub fn relabelled(&self, targets: Tensor) -> Result<Self> {
        Self::of(self.inputs.with(self.inputs.stored().shallow_clone()), targets)
    }

    /// The same examples for another thread: a handle onto the same memory.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            inputs: self.inputs.with(self.inputs.stored().shallow_clone()),
            targets: self.targets.shallow_clone(),
        }
    }
}

fn classes(labels: &[u8], device: Device) -> Result<Tensor> {
    let labels: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
    Ok(Tensor::f_from_slice(&labels)?.f_to_device(device)?)
}

/// The number that each grey value stands for.
fn looked_up(pixels: &Tensor, values: &Tensor) -> Result<Tensor> {
    if pixels.device() != Device::Cpu {
        let places = pixels.f_flatten(0, -1)?.f_to_kind(Kind::Int)?;
        return Ok(values.f_index_select(0, &places)?.f_view(pixels.size().as_slice())?);
    }
    let pixels = pixels.f_contiguous()?;
    let numbers = Tensor::f_empty(pixels.size(), (Kind::Float, Device::Cpu))?;
    let values: &[f32; 256] = slice(values)
        .try_into()
        .map_err(|_| NetworkError::Setting("grey values need 256 numbers to stand for".into()))?;
    // SAFETY: just made above.
    for (number, &pixel) in unsafe { slice_mut::<f32>(&numbers) }.iter_mut().zip(slice::<u8>(&pixels)) {
        *number = values[usize::from(pixel)];
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_values_become_the_numbers_that_they_stand_for() {
        let images = Array3::from_shape_fn((7, 2, 3), |(n, i, j)| (n * 41 + i * 3 + j * 97) as u8);
        let values: [f32; 256] = std::array::from_fn(|p| (p as f32 / 255. - 0.13) / 0.31);
        let labels: Vec<u8> = (0..7).collect();
        let floats =
            images.mapv(|pixel| values[usize::from(pixel)]).into_shape_with_order((7, 1, 2, 3)).unwrap();
        let plain = Examples::images(&floats, &labels, Device::Cpu).unwrap();
        let kept = Examples::pixels(&images, &[1, 2, 3], &values, &labels, Device::Cpu).unwrap();
        assert_eq!(kept.inputs().unwrap(), plain.inputs().unwrap());
        let indices = Tensor::from_slice(&[6i64, 0, 3, 3]);
        for (found, expected) in [
            (kept.part(2, 4), plain.part(2, 4)),
            (kept.chosen(&indices), plain.chosen(&indices)),
            (kept.share().first(3).unwrap().part(1, 2), plain.part(1, 2)),
        ] {
            assert_eq!(found.unwrap(), expected.unwrap());
        }
        let flat = Examples::pixels(&images, &[6], &values, &labels, Device::Cpu).unwrap();
        assert_eq!(flat.inputs().unwrap(), plain.inputs().unwrap().flatten(1, -1));
        let other = kept.relabelled(Tensor::from_slice(&[1i64; 7])).unwrap();
        assert_eq!((other.count(), other.part(0, 1).unwrap().1), (7, Tensor::from_slice(&[1i64])));
        assert!(kept.part(5, 3).is_err() && kept.chosen(&Tensor::from_slice(&[7i64])).is_err());
        assert!(Examples::pixels(&images, &[1, 3, 3], &values, &labels, Device::Cpu).is_err());
        assert!(Examples::pixels(&images, &[6], &values, &labels[1..], Device::Cpu).is_err());
    }
}
