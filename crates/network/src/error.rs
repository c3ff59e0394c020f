//! What can go wrong in the training core.

use thiserror::Error;

/// An error of the training core. Each message is one sentence that names what was expected and what was found.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The layers do not fit together or onto the input.
    #[error("layer {index} ({layer}) does not fit: {reason}")]
    Layer {
        /// Position in the list of layers, from 0.
        index: usize,
        /// The layer as written.
        layer: String,
        /// Why it does not fit.
        reason: String,
    },
    /// θ, an input or a target has another shape than the network asks for.
    #[error("{what} has shape {found:?}, expected {expected}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        found: Vec<i64>,
        /// What would have fitted.
        expected: String,
    },
    /// A setting outside of its range.
    #[error("{0}")]
    Setting(String),
    /// A weights file or a checkpoint that does not belong to this network.
    #[error("these weights do not belong to the network {network}: {reason}")]
    Weights {
        /// The network that should take them.
        network: String,
        /// What is missing, superfluous or of another shape.
        reason: String,
    },
    /// A TorchScript module that cannot be used.
    #[error("the module {name}: {reason}")]
    Module {
        /// Its file.
        name: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {}", first_line(.0))]
    Torch(tch::TchError),
}

/// Not by `#[from]`, which makes of it a source too: whoever prints the chain would say it twice, and the backtrace with it.
impl From<tch::TchError> for NetworkError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(error)
    }
}

/// libtorch appends its C++ backtrace to every message; the first line says what happened.
fn first_line(error: &tch::TchError) -> String {
    let message = error.to_string();
    message.lines().next().unwrap_or_default().trim_end().to_owned()
}
