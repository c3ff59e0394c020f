//! The optimiser of a stack whose rows may have hyperparameters of their own.

use super::{ADAM_BETA1, ADAM_BETA2, EPSILON, Optimiser, OptimiserSettings, RMSPROP_ALPHA};
use crate::{NetworkError, Result};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

impl OptimiserSettings {
    /// Whether the two can move rows of one stack: the same formula, with numbers of their own in it. Momentum or none is not
    /// a matter of numbers: without, there is no state.
    pub fn stacks_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Sgd { momentum, nesterov, .. }, Self::Sgd { momentum: other, nesterov: form, .. }) => {
                nesterov == form && (*momentum == 0.) == (*other == 0.)
            }
            (Self::Adam { .. }, Self::Adam { .. }) | (Self::RmsProp { .. }, Self::RmsProp { .. }) => true,
            _ => false,
        }
    }

    /// `[lr, momentum, weight_decay]`.
    fn numbers(&self) -> [f64; 3] {
        match *self {
            Self::Sgd { lr, momentum, weight_decay, .. } => [lr, momentum, weight_decay],
            Self::Adam { lr, weight_decay } | Self::RmsProp { lr, weight_decay } => [lr, 0., weight_decay],
        }
    }
}

/// [`Optimiser`] on θ `[M, P]`, with the same formulas in the same order; hyperparameters are `[M, 1]`.
#[derive(Debug)]
pub struct StackedOptimiser {
    settings: Vec<OptimiserSettings>,
    /// `[M, P]` each. All zero is the state before the first step, of SGD too: `μ 0 + g` is the first gradient.
    pub state: BTreeMap<&'static str, Tensor>,
    /// f64, `[M, 1]`.
    minus_lr: Tensor,
    /// Of θ's precision, `[M, 1]`, like the other.
    momentum: Tensor,
    /// `None` where no row has any.
    weight_decay: Option<Tensor>,
}

impl StackedOptimiser {
    /// Goes on where these, one for each row of `theta`, stand.
    ///
    /// # Errors
    /// [`NetworkError::Setting`] when they cannot be stacked; an error of libtorch when the device is full.
    pub fn new(rows: &[&Optimiser], theta: &Tensor) -> Result<Self> {
        let first = rows.first().ok_or_else(|| NetworkError::Setting("a stack of no models".into()))?;
        if let Some(other) = rows.iter().find(|row| !row.settings.stacks_with(&first.settings)) {
            let reason = format!("no stack moves by both {:?} and {:?}", first.settings, other.settings);
            return Err(NetworkError::Setting(reason));
        }
        let settings: Vec<OptimiserSettings> = rows.iter().map(|row| row.settings).collect();
        let blank = theta.f_get(0)?.f_zeros_like()?;
        let mut state = BTreeMap::new();
        for &name in first.names() {
            let of_rows: Vec<&Tensor> =
                rows.iter().map(|row| row.state.get(name).unwrap_or(&blank)).collect();
            state.insert(name, Tensor::f_stack(&of_rows, 0)?);
        }
        if let Some(other) = state.values().find(|tensor| tensor.size() != theta.size()) {
            let expected = format!("θ's, {:?}", theta.size());
            return Err(NetworkError::Shape { what: "the optimiser's state", found: other.size(), expected });
        }
        let column = |which: usize, kind: Kind| -> Result<Tensor> {
            let numbers: Vec<f64> = settings.iter().map(|settings| settings.numbers()[which]).collect();
            Ok(Tensor::f_from_slice(&numbers)?
                .f_view([-1, 1])?
                .f_to_device(theta.device())?
                .f_to_kind(kind)?)
        };
        let decays = settings.iter().any(|settings| settings.numbers()[2] != 0.);
        Ok(Self {
            minus_lr: column(0, Kind::Double)?.f_neg()?,
            momentum: column(1, theta.kind())?,
            weight_decay: decays.then(|| column(2, theta.kind())).transpose()?,
            settings,
            state,
        })
    }

    /// The optimiser of one row after so many steps, with a copy of its state.
    ///
    /// # Errors
    /// When there is no such row, or the device is full.
    pub fn row(&self, row: usize, steps: u64) -> Result<Optimiser> {
        let mut state = BTreeMap::new();
        if steps > 0 {
            for (name, tensor) in &self.state {
                state.insert((*name).to_owned(), tensor.f_get(row as i64)?.f_detach_copy()?);
            }
        }
        Optimiser::restore(self.settings[row], steps, state)
    }

    /// Moves all rows of θ by one step, their `steps`-th, from 1. The gradient, of θ's shape, is consumed.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when the gradient has another shape than θ; nothing is changed then.
    pub fn step(&mut self, theta: &mut Tensor, mut gradient: Tensor, steps: u64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        if gradient.size() != theta.size() {
            let expected = format!("θ's, {:?}", theta.size());
            return Err(NetworkError::Shape { what: "the gradient", found: gradient.size(), expected });
        }
        let kind = theta.kind();
        if let Some(decay) = &self.weight_decay {
            gradient = gradient.f_add_(&theta.f_mul(decay)?)?;
        }
        let minus_lr = self.minus_lr.f_to_kind(kind)?;
        match self.settings[0] {
            OptimiserSettings::Sgd { nesterov, .. } => {
                if let Some(buffer) = self.state.get_mut("momentum_buffer") {
                    let _ = buffer.f_mul_(&self.momentum)?.f_add_(&gradient)?;
                    if !nesterov {
                        let _ = theta.f_add_(&buffer.f_mul(&minus_lr)?)?;
                        return Ok(());
                    }
                    gradient = gradient.f_add_(&buffer.f_mul(&self.momentum)?)?;
                }
                let _ = theta.f_add_(&gradient.f_mul_(&minus_lr)?)?;
            }
            OptimiserSettings::Adam { .. } => {
                let steps = i32::try_from(steps).unwrap_or(i32::MAX);
                let (correction1, correction2) = (1. - ADAM_BETA1.powi(steps), 1. - ADAM_BETA2.powi(steps));
                if let Some(mean) = self.state.get_mut("exp_avg") {
                    let _ = mean.f_lerp_(&gradient, 1. - ADAM_BETA1)?;
                }
                if let Some(square) = self.state.get_mut("exp_avg_sq") {
                    let _ = square
                        .f_mul_scalar_(ADAM_BETA2)?
                        .f_add_(&gradient.f_square()?.f_mul_scalar_(1. - ADAM_BETA2)?)?;
                }
                let (mean, square) = (&self.state["exp_avg"], &self.state["exp_avg_sq"]);
                let denominator =
                    square.f_sqrt()?.f_div_scalar_(correction2.sqrt())?.f_add_scalar_(EPSILON)?;
                let rate = self.minus_lr.f_div_scalar(correction1)?.f_to_kind(kind)?;
                let _ = theta.f_add_(&mean.f_div(&denominator)?.f_mul_(&rate)?)?;
            }
            OptimiserSettings::RmsProp { .. } => {
                if let Some(square) = self.state.get_mut("square_avg") {
                    let _ = square
                        .f_mul_scalar_(RMSPROP_ALPHA)?
                        .f_add_(&gradient.f_square()?.f_mul_scalar_(1. - RMSPROP_ALPHA)?)?;
                }
                let denominator = self.state["square_avg"].f_sqrt()?.f_add_scalar_(EPSILON)?;
                let _ = theta.f_add_(&gradient.f_div_(&denominator)?.f_mul_(&minus_lr)?)?;
            }
        }
        Ok(())
    }
}
