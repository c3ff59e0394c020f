//! Curves between two minima, and their training (Garipov et al. 2018, "Loss surfaces, mode connectivity, and fast ensembling of
//! DNNs").
//!
//! Both kinds of curve are sums of control points, the minima θ₁ and θ₂ first and last and n bends between them:
//!
//! `φ(t) = Σ_k c_k(t) θ_k`, 0 ≤ t ≤ 1, so that `∂L(φ(t)) / ∂θ_k = c_k(t) ∇L(φ(t))`.
//!
//! The Bézier curve has Bernstein's polynomials for c, which with one bend is `(1-t)² θ₁ + 2 t (1-t) θ + t² θ₂`; the polygonal chain has
//! hat functions. Either without a bend is the straight line. The bends are trained to minimise `E_{t ~ U(0, 1)} L(φ(t))`, with one t for
//! each batch.

use flatland_network::streams::{Purpose, stream};
use flatland_network::{
    Epoch, Examples, Loss, Network, NetworkError, Optimiser, Result, Training, epoch_order, loss_and_gradient,
};
use rand::Rng;
use tch::{Device, Kind, Tensor};
use thiserror::Error;

/// How a curve runs by its control points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `c_k(t) = C(n + 1, k) tᵏ (1 - t)ⁿ⁺¹⁻ᵏ`: smooth, and by its bends only drawn towards them.
    Bezier,
    /// Straight from control point to control point, each stretch for the same share of t.
    Chain,
}

impl Shape {
    /// `c_0(t) … c_{n+1}(t)` for n bends; their sum is 1. At t = 0 and t = 1 they are exactly 0 and 1.
    pub fn coefficients(self, bends: usize, t: f64) -> Vec<f64> {
        let last = bends + 1;
        match self {
            Self::Bezier => bernstein(last, t),
            Self::Chain => {
                let place = t * last as f64;
                let stretch = (place.max(0.) as usize).min(bends);
                let within = place - stretch as f64;
                let mut coefficients = vec![0.; last + 1];
                coefficients[stretch] = 1. - within;
                coefficients[stretch + 1] = within;
                coefficients
            }
        }
    }
}

/// Bernstein's polynomials of this degree at t.
fn bernstein(degree: usize, t: f64) -> Vec<f64> {
    let mut binomial = 1.;
    let term = |k: usize| {
        let value = binomial * t.powi(k as i32) * (1. - t).powi((degree - k) as i32);
        binomial *= (degree - k) as f64 / (k + 1) as f64;
        value
    };
    (0..=degree).map(term).collect()
}

/// Of [0, 1], in which a Bézier curve's length is integrated.
const PIECES: u32 = 1000;

/// A curve from θ₁ to θ₂.
#[derive(Debug)]
pub struct Curve {
    shape: Shape,
    /// θ₁ and θ₂, `[P]` each.
    ends: [Tensor; 2],
    /// `[n, P]`; n may be 0.
    bends: Tensor,
}

impl Curve {
    /// The straight line from θ₁ to θ₂, `[P]` both.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when they are no vectors of one length.
    pub fn line(theta1: &Tensor, theta2: &Tensor) -> Result<Self> {
        Self::straight(Shape::Bezier, theta1, theta2, 0)
    }

    /// A curve that is not bent yet: its n bends divide the straight line evenly, as training begins.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when θ₁ and θ₂ are no vectors of one length.
    pub fn straight(shape: Shape, theta1: &Tensor, theta2: &Tensor, bends: usize) -> Result<Self> {
        let place = |k: usize| k as f64 / (bends + 1) as f64;
        let rows = (1..=bends)
            .map(|k| Ok(theta1.f_mul_scalar(1. - place(k))?.f_add(&theta2.f_mul_scalar(place(k))?)?))
            .collect::<Result<Vec<_>>>()?;
        let bends = if rows.is_empty() {
            theta1.f_unsqueeze(0)?.f_narrow(0, 0, 0)?
        } else {
            Tensor::f_stack(&rows, 0)?
        };
        Self::new(shape, theta1, theta2, &bends)
    }

    /// A curve by its bends `[n, P]`.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when θ₁ and θ₂ are no vectors of one length, or the bends not of theirs.
    pub fn new(shape: Shape, theta1: &Tensor, theta2: &Tensor, bends: &Tensor) -> Result<Self> {
        let size = theta1.size();
        let refuse =
            |what, found: &Tensor, expected| Err(NetworkError::Shape { what, found: found.size(), expected });
        if size.len() != 1 {
            return refuse("θ₁", theta1, "[P]".into());
        }
        if theta2.size() != size {
            return refuse("θ₂", theta2, format!("θ₁'s, {size:?}"));
        }
        let ends = [theta1.f_detach_copy()?, theta2.f_detach_copy()?];
        let unbent = theta1.f_unsqueeze(0)?.f_narrow(0, 0, 0)?;
        Self { shape, ends, bends: unbent }.with_bends(bends)
    }

    /// The same ends, sharing memory, with other bends `[n, P]`, which are copied.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when they are not of the ends' length.
    pub fn with_bends(&self, bends: &Tensor) -> Result<Self> {
        let length = self.ends[0].size()[0];
        if bends.dim() != 2 || bends.size()[1] != length {
            let expected = format!("[n, {length}]");
            return Err(NetworkError::Shape { what: "the bends", found: bends.size(), expected });
        }
        let ends = self.ends.each_ref().map(Tensor::shallow_clone);
        let bends = bends.f_detach_copy()?.f_to_device(ends[0].device())?;
        Ok(Self { shape: self.shape, ends, bends })
    }

    /// How it runs by its control points.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The bends, `[n, P]`.
    pub fn bends(&self) -> &Tensor {
        &self.bends
    }

    /// θ₁, the bends, θ₂: `[n + 2, P]`.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn control_points(&self) -> Result<Tensor> {
        let [theta1, theta2] = self.ends.each_ref().map(|end| end.f_unsqueeze(0));
        Ok(Tensor::f_cat(&[&theta1?, &self.bends, &theta2?], 0)?)
    }

    /// A handle onto the same memory, on `device`.
    ///
    /// # Errors
    /// When the device cannot hold it.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        let [theta1, theta2] = &self.ends;
        let ends = [theta1.f_to_device(device)?, theta2.f_to_device(device)?];
        Ok(Self { shape: self.shape, ends, bends: self.bends.f_to_device(device)? })
    }

    /// φ(t), `[P]`; θ₁ itself at t = 0 and θ₂ itself at t = 1, to the last bit. A control point without weight is not looked at, be it
    /// finite or not.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn point(&self, t: f64) -> Result<Tensor> {
        let coefficients = self.coefficients(t);
        let mut sum: Option<Tensor> = None;
        for (k, &coefficient) in
            coefficients.iter().enumerate().filter(|(_, coefficient)| **coefficient != 0.)
        {
            let term = self.control_point(k)?.f_mul_scalar(coefficient)?;
            sum = Some(match sum {
                Some(mut sum) => sum.f_add_(&term)?,
                None => term,
            });
        }
        sum.ok_or_else(|| NetworkError::Setting(format!("a curve has no point at t = {t}")))
    }

    /// The gradient of L(φ(t)) with respect to the bends, `[n, P]`, from the one with respect to φ(t), `[P]`: `c_k(t) ∇L` for the k-th.
    ///
    /// # Errors
    /// When the gradient has another shape than φ(t).
    pub fn bend_gradient(&self, t: f64, gradient: &Tensor) -> Result<Tensor> {
        let coefficients = self.coefficients(t);
        let inner = &coefficients[1..coefficients.len() - 1];
        let column =
            Tensor::f_from_slice(inner)?.f_to_kind(gradient.kind())?.f_to_device(gradient.device())?;
        Ok(column.f_unsqueeze(1)?.f_mul(&gradient.f_unsqueeze(0)?)?)
    }

    /// The curve's length `∫ ‖φ'(t)‖ dt` in weight units, in f64. A chain's is the sum of its stretches. A Bézier curve's speed is
    /// `‖φ'(t)‖² = (n + 1)² Σ_jk B_j(t) B_k(t) Δ_j · Δ_k`, with Bernstein's polynomials of degree n and `Δ_k = θ_{k+1} - θ_k`, integrated by
    /// Simpson's rule over 1,000 pieces.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn length(&self) -> Result<f64> {
        let points = self.control_points()?.f_to_kind(Kind::Double)?;
        let count = points.size()[0] as usize;
        let steps = points.f_diff::<Tensor>(1, 0, None, None)?;
        let products = Vec::<f64>::try_from(
            steps.f_matmul(&steps.f_transpose(0, 1)?)?.f_to_device(Device::Cpu)?.f_flatten(0, -1)?,
        )?;
        let product = |j: usize, k: usize| products[j * (count - 1) + k];
        let degree = count - 2;
        if self.shape == Shape::Chain || degree == 0 {
            return Ok((0..=degree).map(|k| product(k, k).sqrt()).sum());
        }
        let speed = |t: f64| {
            let weights = bernstein(degree, t);
            let square: f64 = (0..=degree)
                .flat_map(|j| (0..=degree).map(move |k| (j, k)))
                .map(|(j, k)| weights[j] * weights[k] * product(j, k))
                .sum();
            // Rounding may leave it below 0 where the curve stands still.
            (degree + 1) as f64 * if square < 0. { 0. } else { square.sqrt() }
        };
        let width = 1. / f64::from(PIECES);
        let piece = |k: u32| {
            let start = f64::from(k) * width;
            (speed(start) + 4. * speed(start + width / 2.) + speed(start + width)) * width / 6.
        };
        Ok((0..PIECES).map(piece).sum())
    }

    fn coefficients(&self, t: f64) -> Vec<f64> {
        self.shape.coefficients(self.bend_count(), t)
    }

    fn bend_count(&self) -> usize {
        self.bends.size()[0] as usize
    }

    /// θ₁, the bends, θ₂.
    fn control_point(&self, k: usize) -> Result<Tensor> {
        Ok(match k {
            0 => self.ends[0].shallow_clone(),
            k if k <= self.bend_count() => self.bends.f_get(k as i64 - 1)?,
            _ => self.ends[1].shallow_clone(),
        })
    }
}

/// A curve that cannot be trained further.
#[derive(Debug, Error)]
pub enum CurveError {
    /// θ, the examples or libtorch.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The loss overflowed.
    #[error("the loss on the curve is {loss} in epoch {epoch}: a smaller learning rate may help")]
    NotFinite {
        /// From 1.
        epoch: u32,
        /// NaN or an infinity.
        loss: f64,
    },
}

impl From<tch::TchError> for CurveError {
    fn from(error: tch::TchError) -> Self {
        Self::Network(error.into())
    }
}

/// A curve in training: its ends stay, its bends move.
#[derive(Debug)]
pub struct CurveTraining<'a> {
    /// Whose θ the curve joins.
    pub network: &'a Network,
    /// What is minimised along the curve.
    pub loss: Loss,
    /// What it is trained on.
    pub examples: &'a Examples,
    /// Examples per step; the last batch of an epoch holds what is left.
    pub batch: i64,
    /// L2 of the weights on the curve: `weight_decay ‖φ(t)‖² / 2` is added to the loss at t, as Garipov et al. do. An optimiser's own
    /// would pull the bends alone.
    pub weight_decay: f64,
    /// Seed and trial, which choose the order of the examples and each step's t.
    pub stream: (u64, u32),
    /// The curve.
    pub curve: Curve,
    /// Optimiser with its state, of the bends' shape `[n, P]`.
    pub optimiser: Optimiser,
    /// Epochs done.
    pub epochs: u32,
}

impl CurveTraining<'_> {
    /// One pass over all examples, each batch at a t of its own: `U(0, 1)`, drawn as the order is from the stream of this seed, trial and
    /// epoch. Loss and accuracy are means over the epoch's examples, each at its batch's t before the step. Nothing is read back from the
    /// device before the end.
    ///
    /// # Errors
    /// [`CurveError::NotFinite`] when the mean loss is not; others when batch, θ or examples do not fit, or the device fails.
    pub fn epoch(&mut self) -> Result<Epoch, CurveError> {
        let count = self.examples.count();
        Training::check_batch(self.batch, count)?;
        let device = self.curve.bends.device();
        let order = if self.batch < count {
            Some(Tensor::f_from_slice(&epoch_order(self.stream, self.epochs, count))?.f_to_device(device)?)
        } else {
            None
        };
        let mut places = stream(self.stream.0, self.stream.1, self.epochs, Purpose::Curve);
        let mut total = Tensor::f_zeros([0; 0], (Kind::Double, device))?;
        let mut hits = Tensor::f_zeros([0; 0], (Kind::Int64, device))?;
        let mut classifies = false;
        let mut start = 0;
        while start < count {
            let length = self.batch.min(count - start);
            let (x, targets) = match &order {
                None => self.examples.part(start, length)?,
                Some(order) => self.examples.chosen(&order.f_narrow(0, start, length)?)?,
            };
            let t: f64 = places.r#gen();
            let theta = self.curve.point(t)?;
            let mut found = loss_and_gradient(self.network, &theta, &x, &targets, self.loss)?;
            if self.weight_decay != 0. {
                found.gradient = found.gradient.f_add_(&theta.f_mul_scalar(self.weight_decay)?)?;
            }
            let gradient = self.curve.bend_gradient(t, &found.gradient)?;
            self.optimiser.step(&mut self.curve.bends, gradient)?;
            let _ = total.f_add_(&found.loss.f_to_kind(Kind::Double)?.f_mul_scalar_(length as f64)?)?;
            if let Some(correct) = found.correct {
                classifies = true;
                let _ = hits.f_add_(&correct)?;
            }
            start += length;
        }
        self.epochs += 1;
        let loss = total.f_double_value(&[])? / count as f64;
        if !loss.is_finite() {
            return Err(CurveError::NotFinite { epoch: self.epochs, loss });
        }
        let accuracy = if classifies { Some(hits.f_int64_value(&[])? as f64 / count as f64) } else { None };
        Ok(Epoch { loss, accuracy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_network::{Layer, OptimiserSettings, evaluate, initialise};

    const KINDS: [(Kind, f64); 2] = [(Kind::Float, 1e-5), (Kind::Double, 1e-12)];

    fn random(size: &[i64], trial: u32, kind: Kind) -> Tensor {
        let mut numbers = stream(1, trial, 0, Purpose::Corruption);
        let count = size.iter().product::<i64>();
        let values: Vec<f64> = (0..count).map(|_| numbers.gen_range(-1. ..1.)).collect();
        Tensor::from_slice(&values).view(size).to_kind(kind)
    }

    fn curve(shape: Shape, bends: i64, kind: Kind) -> Curve {
        Curve::new(shape, &random(&[7], 0, kind), &random(&[7], 1, kind), &random(&[bends, 7], 2, kind))
            .unwrap()
    }

    #[test]
    fn points_are_the_papers_formulas() {
        for (kind, tolerance) in KINDS {
            let [bezier, chain] = [Shape::Bezier, Shape::Chain].map(|shape| curve(shape, 1, kind));
            let (a, b, w) = (&bezier.ends[0], &bezier.ends[1], bezier.bends.get(0));
            for t in [0., 0.125, 0.3, 0.5, 0.77, 1.] {
                let close = |found: Tensor, expected: Tensor| {
                    assert!(
                        found.allclose(&expected, tolerance, tolerance, false),
                        "{t}: {found} {expected}"
                    );
                };
                let u = 1. - t;
                close(bezier.point(t).unwrap(), a * (u * u) + &w * (2. * t * u) + b * (t * t));
                let expected =
                    if t <= 0.5 { (&w * t + a * (0.5 - t)) * 2. } else { (b * (t - 0.5) + &w * u) * 2. };
                close(chain.point(t).unwrap(), expected);
                close(Curve::line(a, b).unwrap().point(t).unwrap(), a * u + b * t);
                for shape in [Shape::Bezier, Shape::Chain] {
                    for bends in [1, 3] {
                        let straight = Curve::straight(shape, a, b, bends).unwrap();
                        close(straight.point(t).unwrap(), a * u + b * t);
                        let sum: f64 = shape.coefficients(bends, t).iter().sum();
                        assert!((sum - 1.).abs() < 1e-14);
                    }
                }
            }
        }
    }

    #[test]
    fn the_ends_are_the_minima_bit_for_bit() {
        for (kind, _) in KINDS {
            for shape in [Shape::Bezier, Shape::Chain] {
                for bends in [0, 1, 2, 5] {
                    let curve = curve(shape, bends, kind);
                    assert_eq!(curve.point(0.).unwrap(), curve.ends[0]);
                    assert_eq!(curve.point(1.).unwrap(), curve.ends[1]);
                }
            }
        }
        let good = random(&[7], 0, Kind::Float);
        let diverged = &good * f64::NAN;
        assert_eq!(Curve::line(&diverged, &good).unwrap().point(1.).unwrap(), good);
    }

    /// de Casteljau's construction, which knows no polynomial.
    #[test]
    fn bezier_curves_of_many_bends_are_repeated_interpolations() {
        let curve = curve(Shape::Bezier, 4, Kind::Double);
        for t in [0.1, 0.5, 0.9] {
            let mut points: Vec<Tensor> = (0..6).map(|k| curve.control_point(k).unwrap()).collect();
            while points.len() > 1 {
                points = points.windows(2).map(|pair| &pair[0] * (1. - t) + &pair[1] * t).collect();
            }
            assert!(curve.point(t).unwrap().allclose(&points[0], 1e-12, 1e-12, false));
        }
    }

    #[test]
    fn bend_gradients_agree_with_autograd() {
        for (kind, tolerance) in KINDS {
            for shape in [Shape::Bezier, Shape::Chain] {
                for bends in [1, 3] {
                    for t in [0.2, 0.5, 0.83] {
                        let Curve { ends, bends: free, .. } = &curve(shape, bends, kind);
                        let free = free.copy().set_requires_grad(true);
                        let coefficients = shape.coefficients(bends as usize, t);
                        let inner: Tensor =
                            (0..bends).map(|k| free.get(k) * coefficients[k as usize + 1]).sum();
                        let point =
                            inner + &ends[0] * coefficients[0] + &ends[1] * coefficients[bends as usize + 1];
                        // A function whose gradient at φ(t) is known: Σ sin φ.
                        point.sin().sum(kind).backward();
                        let curve = Curve::new(shape, &ends[0], &ends[1], &free.detach()).unwrap();
                        let at = curve.point(t).unwrap();
                        let found = curve.bend_gradient(t, &at.cos()).unwrap();
                        assert!(found.allclose(&free.grad(), tolerance, tolerance, false));
                    }
                }
            }
        }
    }

    #[test]
    fn lengths_are_known() {
        let at = |numbers: [f64; 2]| Tensor::from_slice(&numbers);
        let bent = |shape, bends: &[f64]| {
            let bends = Tensor::from_slice(bends).view([-1, 2]);
            Curve::new(shape, &at([0., 0.]), &at([4., 0.]), &bends).unwrap().length().unwrap()
        };
        let close =
            |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        close(Curve::line(&at([0., 0.]), &at([3., 4.])).unwrap().length().unwrap(), 5.);
        close(bent(Shape::Chain, &[0., 3.]), 8.);
        close(bent(Shape::Chain, &[0., 3., 4., 3.]), 10.);
        // A parabola: x = 4 t, y = 2 h t (1 - t), whose arc is ½ √(16 + 4 h²) + (4 / h) asinh(h / 2).
        let h: f64 = 3.;
        close(bent(Shape::Bezier, &[2., h]), 0.5 * (16. + 4. * h * h).sqrt() + 4. / h * (h / 2.).asinh());
        close(bent(Shape::Bezier, &[1., 0., 2., 0., 3., 0.]), 4.);
        let straight = Curve::straight(Shape::Bezier, &at([0., 0.]), &at([3., 4.]), 1).unwrap();
        close(straight.length().unwrap(), 5.);
        // There and back: the bend lies beyond θ₂, the curve turns at t = 2/3 and x = 16/3.
        close(bent(Shape::Bezier, &[8., 0.]), 16. / 3. + 4. / 3.);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let [a, b] = [7, 8].map(|count| random(&[count], 0, Kind::Float));
        assert!(Curve::line(&a, &b).is_err() && Curve::line(&a.view([1, 7]), &a.view([1, 7])).is_err());
        assert!(Curve::new(Shape::Chain, &a, &a, &b.view([1, 8])).is_err());
    }

    /// Two classes; three examples are left over for the last batch of twenty.
    fn examples(kind: Kind) -> Examples {
        let x = random(&[63, 4], 3, kind);
        let targets = x.sum_dim_intlist(1i64, false, kind).gt(0.).to_kind(Kind::Int64);
        Examples::new(x, targets).unwrap()
    }

    fn training<'a>(network: &'a Network, examples: &'a Examples, lr: f64, kind: Kind) -> CurveTraining<'a> {
        let [a, b] = [0, 1].map(|trial| initialise(network, 0, trial, kind, Device::Cpu).unwrap());
        let settings = OptimiserSettings::Sgd { lr, momentum: 0.9, nesterov: false, weight_decay: 0. };
        CurveTraining {
            network,
            loss: Loss::CrossEntropy,
            examples,
            batch: 20,
            weight_decay: 0.01,
            stream: (3, 1),
            curve: Curve::straight(Shape::Bezier, &a, &b, 1).unwrap(),
            optimiser: Optimiser::new(settings).unwrap(),
            epochs: 0,
        }
    }

    /// By autograd from the curve to its bends, and SGD by hand.
    #[test]
    fn an_epoch_agrees_with_one_written_out() {
        let network = Network::dense(&[4, 5, 2], &Layer::Tanh).unwrap();
        for (kind, tolerance) in KINDS {
            let examples = examples(kind);
            let mut trained = training(&network, &examples, 0.1, kind);
            let Curve { ends, bends, .. } = &trained.curve;
            let (first, second, mut bend) = (ends[0].copy(), ends[1].copy(), bends.get(0).copy());
            let mut velocity = bend.zeros_like();
            let mut losses = Vec::new();
            for epoch in 0..2 {
                let order = epoch_order((3, 1), epoch, 63);
                let mut places = stream(3, 1, epoch, Purpose::Curve);
                let mut sum = 0.;
                for batch in order.chunks(20) {
                    let t: f64 = places.r#gen();
                    let (x, targets) = examples.chosen(&Tensor::from_slice(batch)).unwrap();
                    let free = bend.detach().copy().set_requires_grad(true);
                    let point =
                        &first * ((1. - t) * (1. - t)) + &free * (2. * t * (1. - t)) + &second * (t * t);
                    let loss =
                        Loss::CrossEntropy.mean(&network.forward(&point, &x).unwrap(), &targets).unwrap();
                    sum += loss.double_value(&[]) * batch.len() as f64;
                    (loss + point.square().sum(kind) * 0.005).backward();
                    velocity = velocity * 0.9 + free.grad();
                    bend = (bend - &velocity * 0.1).detach();
                }
                losses.push(sum / 63.);
            }
            for expected in losses {
                let found = trained.epoch().unwrap().loss;
                assert!((found - expected).abs() < 100. * tolerance, "{found} {expected}");
            }
            assert!(trained.curve.bends.get(0).allclose(&bend, 100. * tolerance, 100. * tolerance, false));
            assert_eq!((&trained.curve.ends[0], &trained.curve.ends[1]), (&first, &second));
        }
    }

    #[test]
    fn training_lowers_the_loss_on_the_curve_and_can_be_taken_up_again() {
        let network = Network::dense(&[4, 5, 2], &Layer::Relu).unwrap();
        let examples = examples(Kind::Float);
        let mut whole = training(&network, &examples, 0.1, Kind::Float);
        let middle = |curve: &Curve| {
            evaluate(&network, &curve.point(0.5).unwrap(), &examples, Loss::CrossEntropy).unwrap().loss
        };
        let before = middle(&whole.curve);
        whole.epoch().unwrap();
        let mut halves = training(&network, &examples, 0.1, Kind::Float);
        halves.epoch().unwrap();
        let state = halves.optimiser.state().map(|(name, tensor)| (name.to_owned(), tensor.copy())).collect();
        let settings = OptimiserSettings::Sgd { lr: 0.1, momentum: 0.9, nesterov: false, weight_decay: 0. };
        let optimiser = Optimiser::restore(settings, halves.optimiser.steps(), state).unwrap();
        let [a, b] = &halves.curve.ends;
        let curve = Curve::new(Shape::Bezier, a, b, halves.curve.bends()).unwrap();
        let mut resumed = CurveTraining { curve, optimiser, ..halves };
        for _ in 1..30 {
            assert_eq!(whole.epoch().unwrap(), resumed.epoch().unwrap());
        }
        assert_eq!(whole.curve.bends, resumed.curve.bends);
        let after = middle(&whole.curve);
        assert!(after < 0.8 * before, "{after} {before}");
    }

    #[test]
    fn a_loss_that_is_no_number_stops_the_training() {
        let network = Network::dense(&[4, 5, 2], &Layer::Relu).unwrap();
        let examples = examples(Kind::Float);
        let mut training = training(&network, &examples, 1e30, Kind::Float);
        let error = (0..5).find_map(|_| training.epoch().err()).unwrap().to_string();
        assert!(error.contains("smaller learning rate"), "{error}");
    }
}
