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

    /// What Adam multiplies by in the `count` steps after the `done` first, `[count, 2]` (f64): `first` / (1 - β₁ᵗ) and
    /// 1 / √(1 - β₂ᵗ), rounded as the other steps round it. `None` for the others, whose steps are all alike.
    fn corrections(&self, first: f64, done: u64, count: u64, theta: &Tensor) -> Result<Option<Tensor>> {
        if !matches!(self, Self::Adam { .. }) {
            return Ok(None);
        }
        let mut rows = Vec::with_capacity(2 * count as usize);
        for step in done + 1..=done + count {
            let Corrections::Known([one, other]) = Corrections::after(step) else { continue };
            let inverse = if theta.kind() == Kind::Float { f64::from(1. / other as f32) } else { 1. / other };
            rows.extend([first / one, inverse]);
        }
        Ok(Some(Tensor::f_from_slice(&rows)?.f_view([-1, 2])?.f_to_device(theta.device())?))
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
        let corrections = Corrections::after(self.steps);
        by_operators(self.settings, corrections, &self.factors(), &mut self.state, theta, gradient)
    }

    /// [`Optimiser::step`] for a [`Graph`](crate::graph::Graph), which does the same at each replay: what changes from step to step
    /// comes from `row`, into which the next of [`Optimiser::corrections`] is copied before. Steps are not counted: see
    /// [`Optimiser::count`].
    ///
    /// # Errors
    /// [`NetworkError::Setting`] before the first step, which makes the state.
    pub fn recorded_step(&mut self, theta: &mut Tensor, gradient: Tensor, row: &Tensor) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        if self.state.len() < self.names().len() {
            return Err(NetworkError::Setting("a recorded step comes after a first one".into()));
        }
        let corrections = Corrections::Recorded(row);
        by_operators(self.settings, corrections, &self.factors(), &mut self.state, theta, gradient)
    }

    /// What changes in the next `count` steps, for [`Optimiser::recorded_step`]: see [`OptimiserSettings::corrections`].
    ///
    /// # Errors
    /// When the device is full.
    pub fn corrections(&self, count: u64, theta: &Tensor) -> Result<Option<Tensor>> {
        self.settings.corrections(-self.settings.numbers()[0], self.steps, count, theta)
    }

    /// Counts steps that a graph did.
    pub fn count(&mut self, steps: u64) {
        self.steps = self.steps.saturating_add(steps);
    }

    fn factors(&self) -> Factors {
        let [lr, momentum, weight_decay] = self.settings.numbers();
        Factors {
            minus_lr: Factor::Number(-lr),
            momentum: Factor::Number(momentum),
            weight_decay: (weight_decay != 0.).then_some(Factor::Number(weight_decay)),
        }
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

/// What Adam divides by in a step: its moments begin at 0 and are too small by these factors.
#[derive(Debug, Clone, Copy)]
enum Corrections<'a> {
    /// 1 - β₁ᵗ and √(1 - β₂ᵗ).
    Known([f64; 2]),
    /// A row of [`OptimiserSettings::corrections`], on the device.
    Recorded(&'a Tensor),
}

impl Corrections<'_> {
    /// Of the `steps`-th step, from 1.
    fn after(steps: u64) -> Self {
        let steps = i32::try_from(steps).unwrap_or(i32::MAX);
        Self::Known([1. - ADAM_BETA1.powi(steps), (1. - ADAM_BETA2.powi(steps)).sqrt()])
    }

    /// The learning rate, divided.
    fn rate(&self, minus_lr: &Factor, kind: Kind) -> Result<Factor> {
        match *self {
            Self::Known([first, _]) => minus_lr.over(first, kind),
            Self::Recorded(row) => {
                let first = row.f_get(0)?;
                let rate = match minus_lr {
                    Factor::Number(_) => first,
                    Factor::Column(column) => column.f_mul(&first)?,
                };
                Ok(Factor::Column(rate.f_to_kind(kind)?))
            }
        }
    }

    /// In place.
    fn divide(&self, root: &mut Tensor) -> Result<Tensor> {
        Ok(match *self {
            Self::Known([_, second]) => root.f_div_scalar_(second)?,
            Self::Recorded(row) => root.f_mul_(&row.f_get(1)?.f_to_kind(root.kind())?)?,
        })
    }
}

/// A step of θ `[P]` or `[M, P]`, whose state is there. The gradient's memory is reused.
fn by_operators(
    settings: OptimiserSettings,
    corrections: Corrections,
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
            if let Some(mean) = state.get_mut("exp_avg") {
                let _ = mean.f_lerp_(&gradient, 1. - ADAM_BETA1)?;
            }
            if let Some(square) = state.get_mut("exp_avg_sq") {
                let _ = square
                    .f_mul_scalar_(ADAM_BETA2)?
                    .f_add_(&gradient.f_square()?.f_mul_scalar_(1. - ADAM_BETA2)?)?;
            }
            let root = corrections.divide(&mut state["exp_avg_sq"].f_sqrt()?)?;
            let mut step = state["exp_avg"].f_div(&root.f_add_scalar(EPSILON)?)?;
            corrections.rate(minus_lr, kind)?.times_(&mut step)?
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
    use tch::Device;

    #[test]
    fn recorded_steps_equal_the_others() {
        let sgd = OptimiserSettings::Sgd { lr: 0.03, momentum: 0.9, nesterov: true, weight_decay: 0.01 };
        for settings in [
            sgd,
            OptimiserSettings::Adam { lr: 1e-3, weight_decay: 1e-4 },
            OptimiserSettings::RmsProp { lr: 1e-3, weight_decay: 1e-4 },
        ] {
            let start = (Tensor::arange(303, (Kind::Double, Device::Cpu)) * 0.37).sin();
            let (mut one, mut other) = (Optimiser::new(settings).unwrap(), Optimiser::new(settings).unwrap());
            let (mut plain, mut recorded) = (start.copy(), start.copy());
            let mut row = Tensor::zeros([2], (Kind::Double, Device::Cpu));
            assert!(other.recorded_step(&mut recorded, start.copy(), &row).is_err(), "no state yet");
            let gradient = |step: i64| (&start * (1.3 * step as f64)).cos() * 0.1;
            let mut rows = None;
            for step in 0..20 {
                one.step(&mut plain, gradient(step)).unwrap();
                if step < 3 {
                    other.step(&mut recorded, gradient(step)).unwrap();
                    rows = other.corrections(17, &recorded).unwrap();
                    continue;
                }
                if let Some(rows) = &rows {
                    row.copy_(&rows.get(step - 3));
                }
                other.recorded_step(&mut recorded, gradient(step), &row).unwrap();
            }
            other.count(17);
            assert_eq!(one.steps(), other.steps());
            let off = (&plain - &recorded).abs().max().double_value(&[]);
            assert!(off < 1e-14, "{settings:?}: {off:.1e}");
        }
    }

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
