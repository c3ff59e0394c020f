//! The examples of several models, gathered for all of them at once.

use super::{Examples, Inputs};
use crate::{NetworkError, Result};
use tch::Tensor;

impl Examples {
    /// Whether models that train on the two can train as one stack: as many examples, of the same shapes, held in the same way.
    ///
    /// # Errors
    /// When the device fails.
    pub fn stacks_with(&self, other: &Self) -> Result<bool> {
        let alike = |a: &Tensor, b: &Tensor| a.size() == b.size() && a.kind() == b.kind();
        let held = match (&self.inputs, &other.inputs) {
            (Inputs::Values(_), Inputs::Values(_)) => true,
            (Inputs::Pixels { values: a, .. }, Inputs::Pixels { values: b, .. }) => a.f_equal(b)?,
            _ => false,
        };
        Ok(held
            && self.device() == other.device()
            && alike(self.inputs.stored(), other.inputs.stored())
            && alike(&self.targets, &other.targets))
    }
}

/// The examples of M models, N each: inputs or targets that several share are held once.
#[derive(Debug)]
pub struct StackedExamples {
    /// `[K N, input…]` for K different ones.
    inputs: Inputs,
    /// `[L N]` or `[L N, D]` for L different ones.
    targets: Tensor,
    /// Where each model's inputs and targets begin, `[M, 1]` (i64).
    begins: [Tensor; 2],
}

impl StackedExamples {
    /// Those of each model. Nothing is copied where all models share it.
    ///
    /// # Errors
    /// [`NetworkError::Setting`] when there are none or they do not stack; an error of libtorch when the device is full.
    pub fn new(models: &[&Examples]) -> Result<Self> {
        let first = models.first().ok_or_else(|| NetworkError::Setting("a stack of no models".into()))?;
        for model in models {
            if !model.stacks_with(first)? {
                let reason = "the models of a stack need examples of one count, shape and kind";
                return Err(NetworkError::Setting(reason.into()));
            }
        }
        let (inputs, inputs_begin) = one_after_another(models.iter().map(|model| model.inputs.stored()))?;
        let (targets, targets_begin) = one_after_another(models.iter().map(|model| &model.targets))?;
        Ok(Self { inputs: first.inputs.with(inputs), targets, begins: [inputs_begin, targets_begin] })
    }

    /// Where the examples with these indices `[M, B]` lie, for [`StackedExamples::at`]: once an epoch, not once a batch.
    ///
    /// # Errors
    /// When the device is full.
    pub fn places(&self, indices: &Tensor) -> Result<[Tensor; 2]> {
        let [inputs, targets] = &self.begins;
        Ok([indices.f_add(inputs)?, indices.f_add(targets)?])
    }

    /// Inputs `[M, length, input…]` and targets `[M, length]` or `[M, length, D]` at these places, from `start` on.
    ///
    /// # Errors
    /// When a place is out of range.
    pub fn at(&self, places: &[Tensor; 2], start: i64, length: i64) -> Result<(Tensor, Tensor)> {
        let [inputs, targets] = places;
        let inputs = self.inputs.with(chosen(self.inputs.stored(), &inputs.f_narrow(1, start, length)?)?);
        Ok((inputs.numbers()?, chosen(&self.targets, &targets.f_narrow(1, start, length)?)?))
    }
}

/// Rows of `[N, …]` with the indices `[M, B]`, as `[M, B, …]`.
fn chosen(rows: &Tensor, indices: &Tensor) -> Result<Tensor> {
    let size = [&indices.size(), &rows.size()[1..]].concat();
    Ok(rows.f_index_select(0, &indices.f_flatten(0, -1)?)?.f_view(size.as_slice())?)
}

/// The different ones among tensors of one shape, one after another; and where each of them all begins, `[M, 1]`.
fn one_after_another<'t>(tensors: impl Iterator<Item = &'t Tensor>) -> Result<(Tensor, Tensor)> {
    let mut different: Vec<&Tensor> = Vec::new();
    let mut begins = Vec::new();
    for tensor in tensors {
        // Slices and handles of one memory begin at one address.
        let same =
            |other: &&Tensor| other.data_ptr() == tensor.data_ptr() && other.stride() == tensor.stride();
        let place = different.iter().position(same).unwrap_or_else(|| {
            different.push(tensor);
            different.len() - 1
        });
        begins.push(place as i64 * tensor.size()[0]);
    }
    let all = match different.as_slice() {
        [one] => one.shallow_clone(),
        several => Tensor::f_cat(several, 0)?,
    };
    let begins = Tensor::f_from_slice(&begins)?.f_view([-1, 1])?.f_to_device(all.device())?;
    Ok((all, begins))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;
    use tch::Device;

    #[test]
    fn each_model_gets_its_own_and_shared_ones_are_held_once() {
        let images =
            |salt: usize| Array3::from_shape_fn((5, 2, 3), |(n, i, j)| (n * 41 + i * 3 + j * salt) as u8);
        let values: [f32; 256] = std::array::from_fn(|p| p as f32 / 255.);
        let pixels = |salt, labels: [u8; 5]| {
            Examples::pixels(&images(salt), &[1, 2, 3], &values, &labels, Device::Cpu).unwrap()
        };
        let first = pixels(97, [0, 1, 2, 3, 4]);
        let relabelled = first.relabelled(Tensor::from_slice(&[9i64, 8, 7, 6, 5])).unwrap();
        let other = pixels(13, [5, 5, 6, 6, 7]);
        let shared = StackedExamples::new(&[&first, &relabelled, &first.share()]).unwrap();
        assert_eq!((shared.inputs.stored().size()[0], shared.targets.size()[0]), (5, 10));
        assert_eq!(shared.inputs.stored().data_ptr(), first.inputs.stored().data_ptr());

        let models = [&first, &relabelled, &other];
        let stack = StackedExamples::new(&models).unwrap();
        assert_eq!((stack.inputs.stored().size()[0], stack.targets.size()[0]), (10, 15));
        let indices = Tensor::from_slice(&[4i64, 0, 3, 3, 1, 2, 0, 4, 2]).view([3, 3]);
        let (x, targets) = stack.at(&stack.places(&indices).unwrap(), 1, 2).unwrap();
        assert_eq!(x.size(), [3, 2, 1, 2, 3]);
        for (model, examples) in models.iter().enumerate() {
            let expected = examples.chosen(&indices.get(model as i64).narrow(0, 1, 2)).unwrap();
            assert_eq!((x.get(model as i64), targets.get(model as i64)), expected);
        }

        let plain = |count| {
            Examples::new(first.inputs().unwrap().narrow(0, 0, count), first.targets.narrow(0, 0, count))
        };
        assert!(!first.stacks_with(&plain(5).unwrap()).unwrap(), "pixels and numbers");
        assert!(!plain(4).unwrap().stacks_with(&plain(5).unwrap()).unwrap(), "4 and 5 examples");
        assert!(
            StackedExamples::new(&[&first, &plain(5).unwrap()]).is_err()
                && StackedExamples::new(&[]).is_err()
        );
    }
}
