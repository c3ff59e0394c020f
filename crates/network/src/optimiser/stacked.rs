//! The optimiser of a stack whose rows may have hyperparameters of their own.

use super::{Corrections, Factor, Factors, Optimiser, OptimiserSettings, by_operators};
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
}

/// [`Optimiser`] on θ `[M, P]`.
#[derive(Debug)]
pub struct StackedOptimiser {
    settings: Vec<OptimiserSettings>,
    /// `[M, P]` each.
    pub state: BTreeMap<&'static str, Tensor>,
    factors: Factors,
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
        let factors = Factors {
            minus_lr: Factor::Column(column(0, Kind::Double)?.f_neg()?),
            momentum: Factor::Column(column(1, theta.kind())?),
            weight_decay: decays.then(|| column(2, theta.kind())).transpose()?.map(Factor::Column),
        };
        Ok(Self { settings, state, factors })
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
    pub fn step(&mut self, theta: &mut Tensor, gradient: Tensor, steps: u64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        if gradient.size() != theta.size() {
            let expected = format!("θ's, {:?}", theta.size());
            return Err(NetworkError::Shape { what: "the gradient", found: gradient.size(), expected });
        }
        self.moved(theta, gradient, Corrections::after(steps))
    }

    /// As [`Optimiser::recorded_step`].
    ///
    /// # Errors
    /// When the device is full.
    pub fn recorded_step(&mut self, theta: &mut Tensor, gradient: Tensor, row: &Tensor) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.moved(theta, gradient, Corrections::Recorded(row))
    }

    /// As [`Optimiser::corrections`], after so many steps.
    ///
    /// # Errors
    /// When the device is full.
    pub fn corrections(&self, done: u64, count: u64, theta: &Tensor) -> Result<Option<Tensor>> {
        self.settings[0].corrections(1., done, count, theta)
    }

    fn moved(&mut self, theta: &mut Tensor, gradient: Tensor, corrections: Corrections) -> Result<()> {
        by_operators(self.settings[0], corrections, &self.factors, &mut self.state, theta, gradient)
    }
}
