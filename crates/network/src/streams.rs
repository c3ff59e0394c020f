//! Random streams: one for each trial and purpose, the same on every device and for any number of models or workers.
//!
//! libtorch's own generator is global, differs between CPU and CUDA, and depends on threads; initial weights and
//! permutations therefore come from ChaCha8, keyed by the seed and set to a stream of its own.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a stream is used for. Streams of different purposes are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Initial weights.
    Weights = 0,
    /// The order of examples within an epoch.
    Order = 1,
    /// What is put in the place of labels or pixels.
    Corruption = 2,
    /// Where to look around θ: noise on the weights, random directions and starts.
    Perturbation = 3,
    /// Noise on the weights, for measures of flatness, and where an iteration for a singular value starts.
    Noise = 7,
    /// Vectors that a matrix is probed with.
    Probe = 16,
    /// Where on a curve each step of its training looks.
    Curve = 5,
    /// The order of layers within a sweep of an alignment.
    Alignment = 6,
    /// Random directions in the space of θ.
    Direction = 4,
}

/// The generator of one purpose of one trial; `epoch` is 0 where the purpose does not depend on it.
///
/// `seed` chooses the key, `trial` (which model of the seed, below 2^24), `epoch` (below 2^32) and `purpose` the stream.
pub fn stream(seed: u64, trial: u32, epoch: u32, purpose: Purpose) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(u64::from(trial) << 40 | u64::from(epoch) << 8 | purpose as u64);
    generator
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, trial, epoch, purpose| stream(seed, trial, epoch, purpose).r#gen::<u64>();
        let first = draw(1, 0, 0, Purpose::Weights);
        assert_eq!(first, draw(1, 0, 0, Purpose::Weights));
        for other in [
            draw(2, 0, 0, Purpose::Weights),
            draw(1, 1, 0, Purpose::Weights),
            draw(1, 0, 1, Purpose::Weights),
            draw(1, 0, 0, Purpose::Order),
        ] {
            assert_ne!(first, other);
        }
    }
}
