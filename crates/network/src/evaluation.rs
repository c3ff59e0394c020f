//! Loss and accuracy over all examples.

use crate::{Examples, Loss, Network, Result};
use tch::{Device, Kind, Tensor};

/// Loss and accuracy over a whole split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Mean loss per example (cross-entropy: nats).
    pub loss: f64,
    /// Share of examples classified rightly, 0 to 1; `None` where the loss is no classification's.
    pub accuracy: Option<f64>,
}

/// Bytes that the widest activation of a chunk may take on a CPU: chunks that stay in the second-level cache are twice
/// as fast as large ones.
const CPU_CHUNK_BYTES: i64 = 4 << 20;
/// On an accelerator, chunks are sized for its memory instead, and launches weigh more.
const DEVICE_CHUNK_BYTES: i64 = 1 << 30;

/// Evaluates θ `[P]` on all examples, in chunks; sums are accumulated in f64 on the device and read once.
///
/// # Errors
/// [`crate::NetworkError::Shape`] when θ or the examples do not fit the network.
pub fn evaluate(network: &Network, theta: &Tensor, examples: &Examples, loss: Loss) -> Result<Evaluation> {
    let _no_grad = tch::no_grad_guard();
    let device = theta.device();
    let budget = if device == Device::Cpu { CPU_CHUNK_BYTES } else { DEVICE_CHUNK_BYTES };
    let bytes = network.widest() * theta.kind().elt_size_in_bytes() as i64;
    let chunk = (budget / bytes).clamp(1, examples.count());
    let mut total = Tensor::f_zeros([], (Kind::Double, device))?;
    let mut hits: Option<Tensor> = None;
    let mut start = 0;
    while start < examples.count() {
        let length = chunk.min(examples.count() - start);
        let outputs = network.predict(theta, &examples.inputs.f_narrow(0, start, length)?)?;
        let targets = examples.targets.f_narrow(0, start, length)?;
        let sum = loss.mean(&outputs, &targets)?.f_to_kind(Kind::Double)?.f_mul_scalar_(length as f64)?;
        let _ = total.f_add_(&sum)?;
        if let Some(correct) = loss.correct(&outputs, &targets)? {
            hits = Some(match hits {
                Some(mut hits) => hits.f_add_(&correct)?,
                None => correct,
            });
        }
        start += length;
    }
    let count = examples.count() as f64;
    Ok(Evaluation {
        loss: total.f_double_value(&[])? / count,
        accuracy: hits.map(|hits| hits.f_int64_value(&[])).transpose()?.map(|hits| hits as f64 / count),
    })
}
