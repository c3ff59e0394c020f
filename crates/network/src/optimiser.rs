//! Optimisers: elementwise on θ, so that each row of a stack `[M, P]` is a run of its own.
//!
//! The same formulas, in the same order of operations, as PyTorch 2.11's `SGD`, `Adam` and `RMSprop` (tested against it).
//! libtorch's own, as tch binds them, cannot save their state.

use crate::{NetworkError, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::Tensor;

mod stacked;
pub use stacked::StackedOptimiser;

/// An optimiser and its hyperparameters, as PyTorch names them. Weight decay is L2: it is added to the gradient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OptimiserSettings {
    /// Stochastic gradient descent with momentum, optionally Nesterov's (Sutskever et al. 2013):
    /// `g += wd θ; v = μ v + g; θ -= lr (g + μ v)` (Nesterov) or `θ -= lr v`. v starts as the first gradient.
    Sgd {
        /// Learning rate.
        lr: f64,
        /// μ; 0 for none.
        momentum: f64,
        /// Nesterov's form; needs momentum.
        nesterov: bool,
        /// wd.
        weight_decay: f64,
    },
    /// Kingma and Ba 2015, with bias correction; PyTorch's default β = (0.9, 0.999), ε = 1e-8 outside of the root.
    Adam {
        /// Learning rate.
        lr: f64,
        /// wd, as L2.
        weight_decay: f64,
    },
    /// Hinton 2012, lecture 6: `s = 0.99 s + 0.01 g²; θ -= lr g / (√s + 1e-8)`; not centred, no momentum.
    RmsProp {
        /// Learning rate.
        lr: f64,
        /// wd, as L2.
        weight_decay: f64,
    },
}

const ADAM_BETA1: f64 = 0.9;
const ADAM_BETA2: f64 = 0.999;
const RMSPROP_ALPHA: f64 = 0.99;
const EPSILON: f64 = 1e-8;

impl OptimiserSettings {
    /// Says what is out of range.
    ///
    /// # Errors
    /// [`NetworkError::Setting`] for a learning rate that is not above 0, a momentum outside of [0, 1), a negative weight
    /// decay, Nesterov without momentum, or a value that is not finite.
    pub fn check(&self) -> Result<()> {
        let (Self::Sgd { lr, weight_decay, .. }
        | Self::Adam { lr, weight_decay }
        | Self::RmsProp { lr, weight_decay }) = *self;
        let refuse = |what: String| Err(NetworkError::Setting(what));
        if !(lr > 0. && lr.is_finite()) {
            return refuse(format!("the learning rate must be above 0 and finite, found {lr}"));
        }
        if !(weight_decay >= 0. && weight_decay.is_finite()) {
            return refuse(format!("weight decay must be 0 or more and finite, found {weight_decay}"));
        }
        if let Self::Sgd { momentum, nesterov, .. } = *self {
            if !(0. ..1.).contains(&momentum) {
                return refuse(format!("momentum must lie in [0, 1), found {momentum}"));
            }
            if nesterov && momentum == 0. {
                return refuse("Nesterov's form needs a momentum above 0, found 0".into());
            }
        }
        Ok(())
    }
}

/// An optimiser at work: its settings and its state, which has θ's shape.
#[derive(Debug)]
pub struct Optimiser {
    settings: OptimiserSettings,
    steps: u64,
    state: BTreeMap<&'static str, Tensor>,
}

impl Optimiser {
    /// Before its first step.
    ///
    /// # Errors
    /// See [`OptimiserSettings::check`].
    pub fn new(settings: OptimiserSettings) -> Result<Self> {
        settings.check()?;
        Ok(Self { settings, steps: 0, state: BTreeMap::new() })
    }

    /// Goes on from saved state: what [`Optimiser::steps`] and [`Optimiser::state`] gave.
    ///
    /// # Errors
    /// [`NetworkError::Setting`] when the state is another optimiser's, be there too little of it or too much.
    pub fn restore(
        settings: OptimiserSettings,
        steps: u64,
        mut saved: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        let mut optimiser = Self::new(settings)?;
        optimiser.steps = steps;
        if steps > 0 {
            for &name in optimiser.names() {
                let tensor = saved.remove(name).ok_or_else(|| {
                    NetworkError::Setting(format!("the checkpoint holds no optimiser state named {name}"))
                })?;
                optimiser.state.insert(name, tensor);
            }
        }
        if let Some(name) = saved.keys().next() {
            let reason = format!("the checkpoint holds {name}, which is the state of another optimiser");
            return Err(NetworkError::Setting(reason));
        }
        Ok(optimiser)
    }

    fn names(&self) -> &'static [&'static str] {
        match self.settings {
            OptimiserSettings::Sgd { momentum: 0., .. } => &[],
            OptimiserSettings::Sgd { .. } => &["momentum_buffer"],
            OptimiserSettings::Adam { .. } => &["exp_avg", "exp_avg_sq"],
            OptimiserSettings::RmsProp { .. } => &["square_avg"],
        }
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// State by PyTorch's names (`momentum_buffer`; `exp_avg`, `exp_avg_sq`; `square_avg`), each of θ's shape.
    pub fn state(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        self.state.iter().map(|(name, tensor)| (*name, tensor))
    }

    /// Moves θ by one step, in place. The gradient, of θ's shape, is consumed: its memory is reused.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when the gradient or the state has another shape than θ; nothing is changed then.
    pub fn step(&mut self, theta: &mut Tensor, mut gradient: Tensor) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let size = theta.size();
        // libtorch would broadcast: one gradient over all the models of a stack, for instance.
        let strange = [("the gradient", &gradient)]
            .into_iter()
            .chain(self.state.values().map(|tensor| ("the optimiser's state", tensor)))
            .find(|(_, tensor)| tensor.size() != size);
        if let Some((what, tensor)) = strange {
            return Err(NetworkError::Shape {
                what,
                found: tensor.size(),
                expected: format!("θ's, {size:?}"),
            });
        }
        self.steps = self.steps.saturating_add(1);
        let (OptimiserSettings::Sgd { weight_decay, .. }
        | OptimiserSettings::Adam { weight_decay, .. }
        | OptimiserSettings::RmsProp { weight_decay, .. }) = self.settings;
        if weight_decay != 0. {
            gradient = gradient.f_add_(&theta.f_mul_scalar(weight_decay)?)?;
        }
        match self.settings {
            OptimiserSettings::Sgd { lr, momentum, nesterov, .. } => {
                if momentum != 0. {
                    if let Some(buffer) = self.state.get_mut("momentum_buffer") {
                        let _ = buffer.f_mul_scalar_(momentum)?.f_add_(&gradient)?;
                    } else {
                        self.state.insert("momentum_buffer", gradient.f_detach_copy()?);
                    }
                    let buffer = &self.state["momentum_buffer"];
                    if !nesterov {
                        let _ = theta.f_add_(&buffer.f_mul_scalar(-lr)?)?;
                        return Ok(());
                    }
                    gradient = gradient.f_add_(&buffer.f_mul_scalar(momentum)?)?;
                }
                let _ = theta.f_add_(&gradient.f_mul_scalar_(-lr)?)?;
            }
            OptimiserSettings::Adam { lr, .. } => {
                self.zeros(&["exp_avg", "exp_avg_sq"], theta)?;
                let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
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
                let _ = theta.f_add_(&mean.f_div(&denominator)?.f_mul_scalar_(-lr / correction1)?)?;
            }
            OptimiserSettings::RmsProp { lr, .. } => {
                self.zeros(&["square_avg"], theta)?;
                if let Some(square) = self.state.get_mut("square_avg") {
                    let _ = square
                        .f_mul_scalar_(RMSPROP_ALPHA)?
                        .f_add_(&gradient.f_square()?.f_mul_scalar_(1. - RMSPROP_ALPHA)?)?;
                }
                let denominator = self.state["square_avg"].f_sqrt()?.f_add_scalar_(EPSILON)?;
                let _ = theta.f_add_(&gradient.f_div_(&denominator)?.f_mul_scalar_(-lr)?)?;
            }
        }
        Ok(())
    }

    fn zeros(&mut self, names: &[&'static str], theta: &Tensor) -> Result<()> {
        for &name in names {
            if !self.state.contains_key(name) {
                self.state.insert(name, theta.f_zeros_like()?);
            }
        }
        Ok(())
    }
}
