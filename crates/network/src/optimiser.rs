//! Optimisers: elementwise on θ, so that each row of a stack `[M, P]` is a run of its own.
//!
//! The same formulas, in the same order of operations, as PyTorch 2.11's `SGD`, `Adam` and `RMSprop` (tested against it).
//! libtorch's own, as tch binds them, cannot save their state.

use crate::{NetworkError, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

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
    /// `[lr, momentum, weight_decay]`.
    fn numbers(&self) -> [f64; 3] {
        match *self {
            Self::Sgd { lr, momentum, weight_decay, .. } => [lr, momentum, weight_decay],
            Self::Adam { lr, weight_decay } | Self::RmsProp { lr, weight_decay } => [lr, 0., weight_decay],
        }
    }

    /// Says what is out of range.
    ///
    /// # Errors
    /// [`NetworkError::Setting`] for a learning rate that is not above 0, a momentum outside of [0, 1), a negative weight
    /// decay, Nesterov without momentum, or a value that is not finite.
    pub fn check(&self) -> Result<()> {
        let [lr, _, weight_decay] = self.numbers();
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
    pub fn step(&mut self, theta: &mut Tensor, gradient: Tensor) -> Result<()> {
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
        if one_pass::step(self, theta, &gradient)? {
            return Ok(());
        }
        self.zeros(theta)?;
        let [lr, momentum, weight_decay] = self.settings.numbers();
        let factors = Factors {
            minus_lr: Factor::Number(-lr),
            momentum: Factor::Number(momentum),
            weight_decay: (weight_decay != 0.).then_some(Factor::Number(weight_decay)),
        };
        by_operators(self.settings, self.steps, &factors, &mut self.state, theta, gradient)
    }

    /// The state before the first step, of SGD too: `μ 0 + g` is the first gradient.
    fn zeros(&mut self, theta: &Tensor) -> Result<()> {
        for &name in self.names() {
            if !self.state.contains_key(name) {
                self.state.insert(name, theta.f_zeros_like()?);
            }
        }
        Ok(())
    }
}

/// Hyperparameters, for [`by_operators`].
#[derive(Debug)]
struct Factors {
    /// A column is f64: Adam divides it first.
    minus_lr: Factor,
    momentum: Factor,
    weight_decay: Option<Factor>,
}

/// One number, or one for each row of a stack, `[M, 1]` of θ's precision.
#[derive(Debug)]
enum Factor {
    Number(f64),
    Column(Tensor),
}

impl Factor {
    fn times(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Number(number) => tensor.f_mul_scalar(*number)?,
            Self::Column(column) => tensor.f_mul(column)?,
        })
    }

    /// In place.
    fn times_(&self, tensor: &mut Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Number(number) => tensor.f_mul_scalar_(*number)?,
            Self::Column(column) => tensor.f_mul_(column)?,
        })
    }

    /// Divided, and then of this precision.
    fn over(&self, number: f64, kind: Kind) -> Result<Self> {
        Ok(match self {
            Self::Number(own) => Self::Number(own / number),
            Self::Column(column) => Self::Column(column.f_div_scalar(number)?.f_to_kind(kind)?),
        })
    }
}

/// The `steps`-th step, from 1, of θ `[P]` or `[M, P]`, whose state is there. The gradient's memory is reused.
fn by_operators(
    settings: OptimiserSettings,
    steps: u64,
    factors: &Factors,
    state: &mut BTreeMap<&'static str, Tensor>,
    theta: &mut Tensor,
    mut gradient: Tensor,
) -> Result<()> {
    let kind = theta.kind();
    let Factors { minus_lr, momentum, weight_decay } = factors;
    if let Some(decay) = weight_decay {
        gradient = gradient.f_add_(&decay.times(theta)?)?;
    }
    let step = match settings {
        OptimiserSettings::Sgd { nesterov, .. } => {
            let rate = minus_lr.over(1., kind)?;
            match state.get_mut("momentum_buffer") {
                None => rate.times_(&mut gradient)?,
                Some(buffer) => {
                    let _ = momentum.times_(buffer)?.f_add_(&gradient)?;
                    if nesterov {
                        gradient = gradient.f_add_(&momentum.times(buffer)?)?;
                        rate.times_(&mut gradient)?
                    } else {
                        rate.times(buffer)?
                    }
                }
            }
        }
        OptimiserSettings::Adam { .. } => {
            let steps = i32::try_from(steps).unwrap_or(i32::MAX);
            let (correction1, correction2) = (1. - ADAM_BETA1.powi(steps), 1. - ADAM_BETA2.powi(steps));
            if let Some(mean) = state.get_mut("exp_avg") {
                let _ = mean.f_lerp_(&gradient, 1. - ADAM_BETA1)?;
            }
            if let Some(square) = state.get_mut("exp_avg_sq") {
                let _ = square
                    .f_mul_scalar_(ADAM_BETA2)?
                    .f_add_(&gradient.f_square()?.f_mul_scalar_(1. - ADAM_BETA2)?)?;
            }
            let root = state["exp_avg_sq"].f_sqrt()?.f_div_scalar_(correction2.sqrt())?;
            let mut step = state["exp_avg"].f_div(&root.f_add_scalar(EPSILON)?)?;
            minus_lr.over(correction1, kind)?.times_(&mut step)?
        }
        OptimiserSettings::RmsProp { .. } => {
            if let Some(square) = state.get_mut("square_avg") {
                let _ = square
                    .f_mul_scalar_(RMSPROP_ALPHA)?
                    .f_add_(&gradient.f_square()?.f_mul_scalar_(1. - RMSPROP_ALPHA)?)?;
            }
            let root = state["square_avg"].f_sqrt()?.f_add_scalar_(EPSILON)?;
            minus_lr.over(1., kind)?.times_(&mut gradient.f_div_(&root)?)?
        }
    };
    let _ = theta.f_add_(&step)?;
    Ok(())
}

/// A step on a CPU in one pass: by operators, θ, gradient and state go through the cache once for each operation. The same operations
/// in the same order on each number, and for SGD the same bits. Else there are two roundings' difference: square roots, which libtorch
/// (MKL) does not round rightly at times and this does, and Adam's division by √(1 - β₂ᵗ), a product with its inverse here. Tested below.
mod one_pass {
    use super::{Optimiser, OptimiserSettings};
    use crate::slices::{is_plain, slice, slice_mut};
    use crate::{Result, block};
    use tch::Tensor;

    /// Whether it could be done: everything must be f32 and contiguous, on a CPU with AVX-512.
    pub fn step(optimiser: &mut Optimiser, theta: &mut Tensor, gradient: &Tensor) -> Result<bool> {
        let all = || [&*theta, gradient].into_iter().chain(optimiser.state.values());
        if !block::available() || !all().all(is_plain::<f32>) {
            return Ok(false);
        }
        // A handle onto θ's own numbers is no gradient that this can read while it writes.
        let place = |t: &Tensor| (t.data_ptr() as usize, t.data_ptr() as usize + 4 * t.numel());
        let (own, read) = (place(theta), place(gradient));
        if own.0 < read.1 && read.0 < own.1 {
            return Ok(false);
        }
        optimiser.zeros(theta)?;
        let mut state: Vec<&mut [f32]> = Vec::new();
        for name in optimiser.names() {
            // SAFETY: the optimiser owns its state, and each name stands for a tensor of its own.
            state.push(unsafe { slice_mut(&optimiser.state[name]) });
        }
        // SAFETY: θ is borrowed mutably, and no handle onto it is used meanwhile.
        let theta: &mut [f32] = unsafe { slice_mut(theta) };
        // SAFETY: the processor was asked above.
        unsafe { numbers(optimiser.settings, optimiser.steps, theta, slice(gradient), &mut state) };
        Ok(true)
    }

    #[cfg(not(target_arch = "x86_64"))]
    unsafe fn numbers(_: OptimiserSettings, _: u64, _: &mut [f32], _: &[f32], _: &mut [&mut [f32]]) {
        unreachable!("callers ask for AVX-512 first");
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,fma")]
    fn numbers(
        settings: OptimiserSettings,
        steps: u64,
        theta: &mut [f32],
        gradient: &[f32],
        state: &mut [&mut [f32]],
    ) {
        use super::{ADAM_BETA1, ADAM_BETA2, EPSILON, RMSPROP_ALPHA};
        let decay = settings.numbers()[2] as f32;
        let decayed =
            |gradient: f32, theta: f32| if decay == 0. { gradient } else { gradient + theta * decay };
        let both = theta.iter_mut().zip(gradient);
        match (settings, state) {
            (OptimiserSettings::Sgd { lr, momentum, nesterov, .. }, [buffer]) => {
                let (rate, momentum) = (-lr as f32, momentum as f32);
                for ((theta, &gradient), buffer) in both.zip(buffer.iter_mut()) {
                    let gradient = decayed(gradient, *theta);
                    *buffer = *buffer * momentum + gradient;
                    let step = if nesterov { gradient + *buffer * momentum } else { *buffer };
                    *theta += step * rate;
                }
            }
            (OptimiserSettings::Adam { lr, .. }, [mean, square]) => {
                let steps = i32::try_from(steps).unwrap_or(i32::MAX);
                let (correction1, correction2) = (1. - ADAM_BETA1.powi(steps), 1. - ADAM_BETA2.powi(steps));
                // Times the inverse of the root: a division less, a rounding apart.
                let (rate, root) = ((-lr / correction1) as f32, (1. / correction2.sqrt()) as f32);
                let (rest1, rest2) = ((1. - ADAM_BETA1) as f32, (1. - ADAM_BETA2) as f32);
                let (beta2, epsilon) = (ADAM_BETA2 as f32, EPSILON as f32);
                let state = mean.iter_mut().zip(square.iter_mut());
                for ((theta, &gradient), (mean, square)) in both.zip(state) {
                    let gradient = decayed(gradient, *theta);
                    *mean = rest1.mul_add(gradient - *mean, *mean);
                    *square = *square * beta2 + gradient * gradient * rest2;
                    *theta += *mean / (square.sqrt() * root + epsilon) * rate;
                }
            }
            (OptimiserSettings::RmsProp { lr, .. }, [square]) => {
                let (rate, epsilon) = (-lr as f32, EPSILON as f32);
                let (alpha, rest) = (RMSPROP_ALPHA as f32, (1. - RMSPROP_ALPHA) as f32);
                for ((theta, &gradient), square) in both.zip(square.iter_mut()) {
                    let gradient = decayed(gradient, *theta);
                    *square = *square * alpha + gradient * gradient * rest;
                    *theta += gradient / (square.sqrt() + epsilon) * rate;
                }
            }
            // SGD without momentum has no state; the other pairs do not occur.
            (OptimiserSettings::Sgd { lr, .. }, _) => {
                let rate = -lr as f32;
                for (theta, &gradient) in both {
                    *theta += decayed(gradient, *theta) * rate;
                }
            }
            _ => unreachable!("an optimiser has the state that its names say"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn one_pass_equals_the_operators() {
        let sgd =
            |momentum, nesterov| OptimiserSettings::Sgd { lr: 0.03, momentum, nesterov, weight_decay: 0. };
        for settings in [
            sgd(0., false),
            sgd(0.9, false),
            sgd(0.9, true),
            OptimiserSettings::Sgd { lr: 0.1, momentum: 0.5, nesterov: true, weight_decay: 0.01 },
            OptimiserSettings::Adam { lr: 1e-3, weight_decay: 1e-4 },
            OptimiserSettings::RmsProp { lr: 1e-3, weight_decay: 1e-4 },
        ] {
            let start = (Tensor::arange(3 * 101, (Kind::Float, Device::Cpu)) * 0.37).sin().view([3, 101]);
            // A view with gaps goes the way of the operators.
            let gaps = Tensor::zeros([3, 202], (Kind::Float, Device::Cpu)).slice(1, 0, None, 2);
            let (mut fused, mut plain) = (start.copy(), gaps);
            plain.copy_(&start);
            let (mut one, mut other) = (Optimiser::new(settings).unwrap(), Optimiser::new(settings).unwrap());
            for step in 0..20 {
                let gradient = (&start * (1.3 * f64::from(step))).cos() * 0.1;
                one.step(&mut fused, gradient.copy()).unwrap();
                other.step(&mut plain, gradient).unwrap();
                assert!(!plain.is_contiguous());
                let off = (&fused - &plain).abs().max().double_value(&[]);
                let most = if matches!(settings, OptimiserSettings::Sgd { .. }) { 0. } else { 1e-6 };
                assert!(off <= most, "{settings:?}, step {step}: {off}");
            }
        }
    }
}
