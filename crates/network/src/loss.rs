//! Losses: the mean over a batch, and per model where models are stacked.

use crate::{NetworkError, Result};
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

/// What training minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Softmax cross-entropy of logits `[…, B, C]` against class indices `[…, B]` (i64): `mean(-log softmax(z)[y])`, in
    /// nats. PyTorch's `CrossEntropyLoss`.
    CrossEntropy,
    /// Mean squared error of outputs `[…, B, D]` against targets of the same shape: `mean((z - y)²)` over B and D.
    /// PyTorch's `MSELoss`.
    MeanSquaredError,
}

impl Loss {
    /// The mean loss over a batch: a scalar, or `[M]` for stacked outputs `[M, B, D]`. Stacked outputs take targets of
    /// their own for each model, `[M, B]` or `[M, B, D]`, or shared ones.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when the targets do not fit the outputs.
    pub fn mean(self, outputs: &Tensor, targets: &Tensor) -> Result<Tensor> {
        self.check_targets(outputs, targets)?;
        let stacked = outputs.dim() == 3;
        match self {
            Self::CrossEntropy if stacked => {
                let log_probabilities = outputs.f_log_softmax(-1, None)?;
                let targets = targets.f_expand([outputs.size()[0], outputs.size()[1]], true)?;
                let chosen = log_probabilities.f_gather(-1, &targets.f_unsqueeze(-1)?, false)?;
                Ok(chosen.f_squeeze_dim(-1)?.f_mean_dim(Some([-1i64].as_slice()), false, None)?.f_neg()?)
            }
            Self::CrossEntropy => {
                let log_probabilities = outputs.f_log_softmax(-1, None)?;
                Ok(log_probabilities.f_nll_loss::<Tensor>(targets, None, Reduction::Mean, -100)?)
            }
            Self::MeanSquaredError if stacked => Ok(outputs.f_sub(targets)?.f_square()?.f_mean_dim(
                Some([-2i64, -1].as_slice()),
                false,
                None,
            )?),
            Self::MeanSquaredError => Ok(outputs.f_mse_loss(targets, Reduction::Mean)?),
        }
    }

    /// Whether these are targets of their own for each of several models.
    pub(crate) fn own_targets(self, targets: &Tensor) -> bool {
        targets.dim() == if self == Self::CrossEntropy { 2 } else { 3 }
    }

    /// Where targets do not fit, libtorch would broadcast and at most warn.
    fn check_targets(self, outputs: &Tensor, targets: &Tensor) -> Result<()> {
        let (size, found) = (outputs.size(), targets.size());
        let whole = if self == Self::CrossEntropy { &size[..size.len().saturating_sub(1)] } else { &size };
        let shared = if size.len() == 3 { &whole[1..] } else { whole };
        if found == whole || found == shared {
            return Ok(());
        }
        let or = if shared == whole { String::new() } else { format!(" or {shared:?}") };
        Err(NetworkError::Shape { what: "targets", found, expected: format!("{whole:?}{or}") })
    }

    /// How many examples of the batch are classified rightly: i64, a scalar or `[M]`; `None` where the loss is no
    /// classification's. Ties go to the first of the largest logits.
    ///
    /// # Errors
    /// When libtorch refuses the shapes.
    pub fn correct(self, outputs: &Tensor, targets: &Tensor) -> Result<Option<Tensor>> {
        match self {
            Self::CrossEntropy => {
                let hits = outputs.f_argmax(-1, false)?.f_eq_tensor(targets)?;
                Ok(Some(hits.f_sum_dim_intlist(Some([-1i64].as_slice()), false, Kind::Int64)?))
            }
            Self::MeanSquaredError => Ok(None),
        }
    }
}
