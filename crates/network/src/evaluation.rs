//! Loss and accuracy over all examples.

use crate::{Examples, Loss, Network, NetworkError, Result};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, ScopedJoinHandle};
use tch::{Device, Tensor};

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

/// Evaluates θ `[P]` on all examples, in chunks.
///
/// On a CPU, the chunks are shared out to as many threads as libtorch is set to (`tch::set_num_threads`, of the calling
/// thread), each computing alone; sums are added in the chunks' order, so that the numbers do not depend on the threads. On an
/// accelerator, a chunk is so large that reading its sums is no cost.
///
/// # Errors
/// [`crate::NetworkError::Shape`] when θ or the examples do not fit the network.
pub fn evaluate(network: &Network, theta: &Tensor, examples: &Examples, loss: Loss) -> Result<Evaluation> {
    if theta.dim() != 1 {
        let expected = format!("[{}]", network.count());
        return Err(NetworkError::Shape { what: "θ", found: theta.size(), expected });
    }
    let all = evaluate_many(network, &theta.f_unsqueeze(0)?, examples, loss)?;
    all.into_iter().next().ok_or_else(|| NetworkError::Setting("a stack of no models".into()))
}

/// Evaluates each row of θ `[M, P]` on all examples, in one pass over them: a chunk is loaded once and met by every model while it
/// is in the cache. The same numbers as [`evaluate`] of each row, bit for bit.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_many(
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    loss: Loss,
) -> Result<Vec<Evaluation>> {
    network.check_theta(theta)?;
    let models = if theta.dim() == 2 { theta.size()[0] } else { 0 };
    if models == 0 {
        let expected = format!("[M, {}], M at least 1", network.count());
        return Err(NetworkError::Shape { what: "θ", found: theta.size(), expected });
    }
    let chunk = chunk_of(network, theta, examples, 1);
    let thetas = |tensors: &[Tensor]| Ok(tensors[0].f_unbind(0)?);
    over_chunks(examples, (theta.device(), chunk), &[theta], thetas, |thetas, examples, start, length| {
        chunk_sums(network, thetas, examples, loss, start, length)
    })
}

/// How many examples meet the models at once, where `held` such activations are there together.
pub(crate) fn chunk_of(network: &Network, theta: &Tensor, examples: &Examples, held: i64) -> i64 {
    let budget = if theta.device() == Device::Cpu { CPU_CHUNK_BYTES } else { DEVICE_CHUNK_BYTES };
    let bytes = network.widest() * theta.kind().elt_size_in_bytes() as i64;
    (budget / (bytes * held)).clamp(1, examples.count())
}

/// The sums of all models over all chunks: `of` gives a chunk's, from where it starts and how long it is, with what `own` made for the
/// thread from its handles of the tensors. On a CPU the chunks are shared out to threads.
pub(crate) fn over_chunks<S>(
    examples: &Examples,
    (device, chunk): (Device, i64),
    tensors: &[&Tensor],
    own: impl Fn(&[Tensor]) -> Result<S> + Sync,
    of: impl Fn(&mut S, &Examples, i64, i64) -> Result<Vec<Sums>> + Sync,
) -> Result<Vec<Evaluation>> {
    let on_cpu = device == Device::Cpu;
    let count = examples.count();
    let starts: Vec<i64> = (0..count).step_by(chunk as usize).collect();
    // A thread takes the next chunk when it is done with one, so that none waits for another whose core is slow.
    let next = AtomicUsize::new(0);
    let sums_of = |tensors: &[Tensor], examples: &Examples| -> Result<Vec<(usize, Result<Vec<Sums>>)>> {
        let _no_grad = tch::no_grad_guard();
        let mut own = own(tensors)?;
        let mut found = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(&start) = starts.get(index) else { return Ok(found) };
            let sums = of(&mut own, examples, start, chunk.min(count - start));
            if sums.is_err() {
                next.store(starts.len(), Ordering::Relaxed);
            }
            found.push((index, sums));
        }
    };
    let handles = || tensors.iter().map(|tensor| tensor.shallow_clone()).collect::<Vec<Tensor>>();
    let threads = if on_cpu { tch::get_num_threads() } else { 1 };
    let threads = threads.clamp(1, i32::try_from(starts.len()).unwrap_or(i32::MAX)) as usize;
    let mut chunks = if threads > 1 {
        // Tensors are handles that threads cannot share, so each gets its own.
        let all: Vec<(Vec<Tensor>, Examples)> = (0..threads).map(|_| (handles(), examples.share())).collect();
        let parts = std::thread::scope(|scope| {
            let start = |(tensors, examples): (Vec<Tensor>, Examples)| {
                let sums_of = &sums_of;
                Builder::new().spawn_scoped(scope, move || {
                    tch::set_num_threads(1);
                    sums_of(&tensors, &examples)
                })
            };
            // The others take the chunks of one that the system refuses.
            let workers: Vec<_> = all.into_iter().filter_map(|handles| start(handles).ok()).collect();
            workers.into_iter().map(ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        if parts.is_empty() {
            return Err(NetworkError::Setting("no thread can be started to evaluate".into()));
        }
        let mut chunks = Vec::with_capacity(starts.len());
        for part in parts {
            let stopped = |_| NetworkError::Setting("a thread stopped during evaluation".into());
            chunks.extend(part.map_err(stopped)??);
        }
        chunks
    } else {
        sums_of(&handles(), examples)?
    };
    // Of errors the first chunk's, as with one thread: all chunks before it had been taken.
    chunks.sort_by_key(|(index, _)| *index);
    let chunks = chunks.into_iter().map(|(_, sums)| sums).collect::<Result<Vec<_>>>()?;
    let models = chunks.first().map_or(0, Vec::len);
    let of_model = |model: usize| {
        let all = chunks.iter().map(|sums| sums[model]);
        all.reduce(Sums::plus).map(|sums| sums.mean(examples))
    };
    Ok((0..models).filter_map(of_model).collect())
}

/// Summed loss and hits of a chunk.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub loss: f64,
    pub hits: Option<i64>,
}

impl Sums {
    /// Of a chunk's outputs.
    pub fn of(outputs: &Tensor, targets: &Tensor, loss: Loss) -> Result<Self> {
        let mean = loss.mean(outputs, targets)?.f_double_value(&[])?;
        let hits = loss.correct(outputs, targets)?.map(|hits| hits.f_int64_value(&[])).transpose()?;
        Ok(Self { loss: mean * outputs.size()[0] as f64, hits })
    }

    pub fn plus(self, other: Self) -> Self {
        Self { loss: self.loss + other.loss, hits: self.hits.zip(other.hits).map(|(a, b)| a + b) }
    }

    pub fn mean(self, examples: &Examples) -> Evaluation {
        let count = examples.count() as f64;
        Evaluation { loss: self.loss / count, accuracy: self.hits.map(|hits| hits as f64 / count) }
    }
}

/// Of each model. Numbers at once, not tensors: on a CPU, small tensors that stay would take places in the holes that large ones leave, these
/// would not fit there again, and the heap would grow with every chunk.
fn chunk_sums(
    network: &Network,
    thetas: &[Tensor],
    examples: &Examples,
    loss: Loss,
    start: i64,
    length: i64,
) -> Result<Vec<Sums>> {
    let (x, targets) = examples.part(start, length)?;
    thetas.iter().map(|theta| Sums::of(&network.predict(theta, &x)?, &targets, loss)).collect()
}
