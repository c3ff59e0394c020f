//! Directions in θ's space, and the line or plane that they span: where a loss surface is looked at.
//!
//! A network with ReLU computes the same when one filter is scaled by c and the next layer's weights by 1 / c; a step of one length
//! then means different things in the two. Random directions are therefore scaled filter by filter to the weights that they
//! start from (Li et al. 2018, "Visualizing the loss landscape of neural nets"). The plane through three points is Garipov
//! et al.'s (2018, "Loss surfaces, mode connectivity, and fast ensembling of DNNs").
//!
//! Directions and points are computed in f64, whatever θ's kind, and in one order.

use flatland_network::{Evaluation, Examples, Loss, Model, NetworkError, Parameter, Points, evaluate_points};
use rand::Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use thiserror::Error;

/// To what the parts of a random direction d are scaled, by the parts of θ in the same places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalisation {
    /// ‖dᵢ‖ = ‖wᵢ‖ for each filter: an output channel of a convolution, a neuron's row of a dense layer (Li et al. 2018).
    Filter,
    /// ‖d‖ = ‖w‖ for each weight tensor.
    Layer,
    /// |d| = |w| for each weight: random signs alone.
    Weight,
    /// Standard normal numbers as they are.
    None,
}

/// What becomes of biases in a random direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Biases {
    /// They stay as they are: 0 in the direction, as Li et al. have it.
    Ignore,
    /// Each is a filter of one number.
    Filter,
}

/// What cannot be looked at.
#[derive(Debug, Error)]
pub enum DirectionError {
    /// Three points on one line span no plane.
    #[error("the three points lie on one straight line, and span no plane")]
    Collinear,
    /// Nothing lies between points that are not there.
    #[error("the three points hold numbers that are not finite")]
    NotFinite,
    /// No grid.
    #[error("a grid needs 2 to 10,000 points a side, found {0}")]
    Points(usize),
    /// The ends are no interval.
    #[error("a grid must run from a smaller to a larger finite value, found {0} to {1}")]
    Ends(f64, f64),
    /// θ does not fit, or libtorch failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

type Result<T> = std::result::Result<T, DirectionError>;

/// A random direction from θ `[P]`, whose parts `parameters` are: `[P]`, f64, on the CPU. Standard normal numbers, drawn for every entry in θ's order (so that
/// weights do not depend on what becomes of biases), then scaled.
///
/// # Errors
/// [`NetworkError::Shape`] when θ has another number of entries.
pub fn random_direction(
    parameters: &[Parameter],
    theta: &Tensor,
    normalisation: Normalisation,
    biases: Biases,
    random: &mut impl Rng,
) -> Result<Tensor> {
    let count: i64 = parameters.iter().map(Parameter::count).sum();
    if theta.size() != [count] {
        let expected = format!("[{count}]");
        return Err(NetworkError::Shape { what: "θ", found: theta.size(), expected }.into());
    }
    let weights = numbers(theta)?;
    let mut direction: Vec<f64> = (0..weights.len()).map(|_| random.sample(StandardNormal)).collect();
    for parameter in parameters {
        let places = parameter.offset as usize..(parameter.offset + parameter.count()) as usize;
        let (d, w) = (&mut direction[places.clone()], &weights[places]);
        if biases == Biases::Ignore && is_bias(parameter) {
            d.fill(0.);
            continue;
        }
        let part = match normalisation {
            Normalisation::Filter => d.len() / parameter.shape.first().map_or(1, |&rows| rows as usize),
            Normalisation::Layer => d.len(),
            Normalisation::Weight => 1,
            Normalisation::None => continue,
        };
        for (d, w) in d.chunks_mut(part).zip(w.chunks(part)) {
            scale_to(d, norm(w));
        }
    }
    Ok(Tensor::f_from_slice(&direction).map_err(NetworkError::from)?)
}

fn is_bias(parameter: &Parameter) -> bool {
    parameter.shape.len() < 2
}

/// Gives d the length `length`; a d of 0 stays.
fn scale_to(d: &mut [f64], length: f64) {
    if let [one] = d {
        *one = length.copysign(*one);
        return;
    }
    let found = norm(d);
    if found > 0. {
        for x in d {
            *x *= length / found;
        }
    }
}

/// A line θ + a u or a plane θ + a u + b v.
#[derive(Debug)]
pub struct Subspace {
    /// θ itself.
    origin: Tensor,
    /// The same in f64.
    exact: Tensor,
    /// u, or u and v: `[P]` each, f64.
    axes: Vec<Tensor>,
}

impl Subspace {
    /// Through θ `[P]`, along each of `axes` (`[P]`); on θ's device.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when an axis has another shape than θ.
    pub fn new(origin: &Tensor, axes: &[Tensor]) -> Result<Self> {
        if let Some(other) = axes.iter().find(|axis| axis.size() != origin.size()) {
            let expected = format!("{:?}", origin.size());
            return Err(NetworkError::Shape { what: "a direction", found: other.size(), expected }.into());
        }
        let on_device = |axis: &Tensor| -> Result<Tensor> {
            let axis = axis.f_to_device(origin.device()).and_then(|axis| axis.f_to_kind(Kind::Double));
            Ok(axis.map_err(NetworkError::from)?)
        };
        let axes = axes.iter().map(on_device).collect::<Result<_>>()?;
        Ok(Self { exact: on_device(origin)?, origin: origin.shallow_clone(), axes })
    }

    /// The plane through three points `[P]`, and their coordinates in it: by Gram and Schmidt, u = (θ₁ - θ₀) / ‖θ₁ - θ₀‖ and v
    /// the part of θ₂ - θ₀ orthogonal to it, of length 1, so that distances in the plane are those of θ's space. θ₀ lies at
    /// (0, 0), θ₁ at (‖θ₁ - θ₀‖, 0), θ₂ above.
    ///
    /// # Errors
    /// [`DirectionError::Collinear`], [`DirectionError::NotFinite`], or [`NetworkError::Shape`] when their shapes differ.
    pub fn through(points: [&Tensor; 3]) -> Result<(Self, [[f64; 2]; 3])> {
        let [first, rest @ ..] = points;
        if let Some(other) = rest.into_iter().find(|point| point.size() != first.size()) {
            let expected = format!("{:?}", first.size());
            return Err(NetworkError::Shape { what: "θ", found: other.size(), expected }.into());
        }
        let [base, second, third] = [numbers(points[0])?, numbers(points[1])?, numbers(points[2])?];
        let difference = |to: &[f64]| to.iter().zip(&base).map(|(a, b)| a - b).collect::<Vec<f64>>();
        let (mut u, mut v) = (difference(&second), difference(&third));
        let (length, other) = (norm(&u), norm(&v));
        if !(length.is_finite() && other.is_finite()) {
            return Err(DirectionError::NotFinite);
        }
        if length == 0. {
            return Err(DirectionError::Collinear);
        }
        scale_to(&mut u, 1.);
        let along = dot(&v, &u);
        // Twice: once leaves rounding of the size of what is taken away.
        for _ in 0..2 {
            let along = dot(&v, &u);
            v.iter_mut().zip(&u).for_each(|(v, u)| *v -= along * u);
        }
        let height = norm(&v);
        // θ is f32 as a rule: nearer to the line than its rounding there is no plane.
        if height <= 1e-7 * other {
            return Err(DirectionError::Collinear);
        }
        scale_to(&mut v, 1.);
        let axes = [u, v].map(|axis| Tensor::f_from_slice(&axis).map_err(NetworkError::from));
        let [u, v] = axes;
        let plane = Self::new(first, &[u?, v?])?;
        Ok((plane, [[0., 0.], [length, 0.], [along, height]]))
    }

    /// A handle for another thread.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            origin: self.origin.shallow_clone(),
            exact: self.exact.shallow_clone(),
            axes: self.axes.iter().map(Tensor::shallow_clone).collect(),
        }
    }

    /// The inner products of the directions: `products[i][j]` is that of the i-th and the j-th.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn products(&self) -> Result<Vec<Vec<f64>>> {
        let axes = self.axes.iter().map(numbers).collect::<Result<Vec<_>>>()?;
        Ok(axes.iter().map(|a| axes.iter().map(|b| dot(a, b)).collect()).collect())
    }

    /// How many coordinates a point has.
    pub fn dimensions(&self) -> usize {
        self.axes.len()
    }

    /// Loss and accuracy of a model at points, each given by its coordinates; what a network's first layer makes of an example is computed
    /// once for all of them ([`evaluate_points`]).
    ///
    /// # Errors
    /// [`NetworkError::Shape`] when the model, the coordinates or the examples do not fit, and what the model itself says.
    pub fn evaluate(
        &self,
        model: &Model,
        coordinates: &[Vec<f64>],
        examples: &Examples,
        loss: Loss,
    ) -> Result<Vec<Evaluation>> {
        let thetas = {
            let each = coordinates.iter().map(|at| self.at(at)).collect::<Result<Vec<_>>>()?;
            Tensor::f_stack(&each, 0).map_err(NetworkError::from)?
        };
        Ok(match model {
            Model::Network(network) => {
                let frame = self.frame()?.f_to_kind(self.origin.kind()).map_err(NetworkError::from)?;
                let points = Points { frame: &frame, coordinates, thetas: &thetas };
                evaluate_points(network, points, examples, loss)?
            }
            Model::Module(_) => model.evaluate_many(&thetas, examples, loss)?,
        })
    }

    /// `[D + 1, P]`: θ and the axes, f64, on θ's device.
    ///
    /// # Errors
    /// When the device is full.
    pub fn frame(&self) -> Result<Tensor> {
        let rows: Vec<&Tensor> = [&self.exact].into_iter().chain(&self.axes).collect();
        Ok(Tensor::f_stack(&rows, 0).map_err(NetworkError::from)?)
    }

    /// θ + a u (+ b v), `[P]`, of θ's kind and on its device: computed in f64, then rounded once. At 0 it is θ itself, to the
    /// last bit.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] for another number of coordinates.
    pub fn at(&self, coordinates: &[f64]) -> Result<Tensor> {
        if coordinates.len() != self.axes.len() {
            let (found, expected) = (vec![coordinates.len() as i64], format!("[{}]", self.axes.len()));
            return Err(NetworkError::Shape { what: "the coordinates", found, expected }.into());
        }
        let point = || -> std::result::Result<Tensor, tch::TchError> {
            // Adding 0 would turn -0 into 0.
            let mut moved = coordinates.iter().zip(&self.axes).filter(|(at, _)| **at != 0.).peekable();
            if moved.peek().is_none() {
                return self.origin.f_detach_copy();
            }
            let mut point = self.exact.shallow_clone();
            for (at, axis) in moved {
                point = point.f_add(&axis.f_mul_scalar(*at)?)?;
            }
            point.f_to_kind(self.origin.kind())
        };
        Ok(point().map_err(NetworkError::from)?)
    }
}

/// `points` values from `from` to `to`, evenly spaced and both included. A value that differs from 0 by rounding alone is 0, so that
/// an interval around 0 with an odd number of points holds θ itself.
///
/// # Errors
/// [`DirectionError::Points`] for fewer than 2 or more than 10,000; [`DirectionError::Ends`] for ends that are not finite and
/// ascending.
pub fn even_grid(from: f64, to: f64, points: usize) -> Result<Vec<f64>> {
    if !(2..=10_000).contains(&points) {
        return Err(DirectionError::Points(points));
    }
    if !(from < to && (to - from).is_finite()) {
        return Err(DirectionError::Ends(from, to));
    }
    let last = points - 1;
    let place = |k: usize| {
        let value = if k == last { to } else { from + (to - from) * (k as f64 / last as f64) };
        if value.abs() < 1e-12 * (to - from) { 0. } else { value }
    };
    Ok((0..points).map(place).collect())
}

/// θ's entries in f64.
fn numbers(theta: &Tensor) -> Result<Vec<f64>> {
    let on_host = theta.f_to_device(Device::Cpu).and_then(|theta| theta.f_to_kind(Kind::Double));
    let numbers = on_host.and_then(|theta| Vec::<f64>::try_from(theta.f_contiguous()?));
    Ok(numbers.map_err(NetworkError::from)?)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_network::streams::{Purpose, stream};
    use flatland_network::{Network, initialise};

    const NORMALISATIONS: [Normalisation; 4] =
        [Normalisation::Filter, Normalisation::Layer, Normalisation::Weight, Normalisation::None];

    fn draw(network: &Network, theta: &Tensor, normalisation: Normalisation, biases: Biases) -> Tensor {
        let mut random = stream(3, 0, 0, Purpose::Direction);
        random_direction(network.parameters(), theta, normalisation, biases, &mut random).unwrap()
    }

    /// A parameter's part of θ, `[out, …]`, and its norm by libtorch over all but the first dimension, `[out]`.
    fn part(parameter: &Parameter, theta: &Tensor) -> (Tensor, Tensor) {
        let part = theta.narrow(0, parameter.offset, parameter.count()).to_kind(Kind::Double);
        let rows = part.view([parameter.shape[0], -1]);
        let norms = rows.square().sum_dim_intlist(-1, false, Kind::Double).sqrt();
        (part, norms)
    }

    fn close(a: &Tensor, b: &Tensor) -> bool {
        a.size() == b.size() && a.allclose(b, 1e-12, 0., false)
    }

    #[test]
    fn each_part_is_as_long_as_the_weights_that_it_changes() {
        let dense = Network::dense(&[7, 5, 3], &flatland_network::Layer::Relu).unwrap();
        for network in [Network::lenet(), dense] {
            for kind in [Kind::Float, Kind::Double] {
                let theta = initialise(&network, 5, 0, kind, Device::Cpu).unwrap();
                for normalisation in NORMALISATIONS {
                    for biases in [Biases::Ignore, Biases::Filter] {
                        let direction = draw(&network, &theta, normalisation, biases);
                        assert_eq!((direction.kind(), direction.size()), (Kind::Double, theta.size()));
                        for parameter in network.parameters() {
                            let ((d, d_rows), (w, w_rows)) =
                                (part(parameter, &direction), part(parameter, &theta));
                            let name = format!("{} {normalisation:?} {biases:?}", parameter.name);
                            let bias = parameter.name.contains("bias");
                            if bias && biases == Biases::Ignore {
                                assert_eq!(d, d.zeros_like(), "{name}");
                                continue;
                            }
                            match normalisation {
                                Normalisation::Filter => assert!(close(&d_rows, &w_rows), "{name}"),
                                Normalisation::Layer => assert!(close(&d.norm(), &w.norm()), "{name}"),
                                Normalisation::Weight => assert_eq!(d.abs(), w.abs(), "{name}"),
                                Normalisation::None => {
                                    let count = parameter.count() as f64;
                                    let square = d.square().mean(Kind::Double).double_value(&[]);
                                    assert!((square - 1.).abs() < 8. / count.sqrt(), "{name}: {square}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// The network computes the same after a filter is scaled; the direction scales with it, so that the surface is the same.
    #[test]
    fn a_rescaled_filter_rescales_its_part_and_nothing_else() {
        let network = Network::lenet();
        let theta = initialise(&network, 1, 0, Kind::Double, Device::Cpu).unwrap();
        let weight = &network.parameters()[2];
        let length = weight.count() / weight.shape[0];
        let scaled = theta.copy();
        let _ = scaled.narrow(0, weight.offset + 3 * length, length).multiply_scalar_(7.);
        let [before, after] =
            [&theta, &scaled].map(|theta| draw(&network, theta, Normalisation::Filter, Biases::Filter));
        let _ = before.narrow(0, weight.offset + 3 * length, length).multiply_scalar_(7.);
        assert!(after.allclose(&before, 1e-12, 0., false));
        // By layer it does not: there, a long filter hides the others.
        let [before, after] =
            [&theta, &scaled].map(|theta| draw(&network, theta, Normalisation::Layer, Biases::Filter));
        let _ = before.narrow(0, weight.offset + 3 * length, length).multiply_scalar_(7.);
        assert!(!after.allclose(&before, 1e-3, 0., false));
    }

    #[test]
    fn filters_of_zeros_stay_and_weights_do_not_depend_on_biases() {
        let network = Network::dense(&[4, 3, 2], &flatland_network::Layer::Relu).unwrap();
        let theta = initialise(&network, 1, 0, Kind::Float, Device::Cpu).unwrap();
        let _ = theta.narrow(0, 4, 4).fill_(0.);
        let [ignored, kept] = [Biases::Ignore, Biases::Filter]
            .map(|biases| draw(&network, &theta, Normalisation::Filter, biases));
        assert_eq!(kept.narrow(0, 4, 4), Tensor::zeros([4], (Kind::Double, Device::Cpu)));
        assert_eq!(kept.narrow(0, 0, 12), ignored.narrow(0, 0, 12));
        assert!(kept.narrow(0, 12, 3).abs().sum(Kind::Double).double_value(&[]) > 0.);
        let other = Tensor::zeros([5], (Kind::Float, Device::Cpu));
        let mut random = stream(0, 0, 0, Purpose::Direction);
        let refused =
            random_direction(network.parameters(), &other, Normalisation::None, Biases::Ignore, &mut random)
                .unwrap_err();
        assert!(refused.to_string().contains("[23]"), "{refused}");
    }

    #[test]
    fn the_origin_is_theta_bit_for_bit_and_steps_are_rounded_once() {
        let network = Network::lenet();
        let theta = initialise(&network, 2, 0, Kind::Float, Device::Cpu).unwrap();
        let _ = theta.narrow(0, 0, 9).fill_(-0.);
        let u = draw(&network, &theta, Normalisation::Filter, Biases::Ignore);
        let plane = Subspace::new(&theta, &[u.shallow_clone(), &u * f64::NAN]).unwrap();
        let bits = |tensor: &Tensor| {
            Vec::<f32>::try_from(tensor).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(bits(&plane.at(&[0., -0.]).unwrap()), bits(&theta));
        let moved = plane.at(&[-0.3, 0.]).unwrap();
        let exact: Vec<f32> = numbers(&theta)
            .unwrap()
            .iter()
            .zip(numbers(&u).unwrap())
            .map(|(theta, u)| (theta + u * -0.3) as f32)
            .collect();
        assert_eq!(Vec::<f32>::try_from(&moved).unwrap(), exact);
        assert!(plane.at(&[1.]).unwrap_err().to_string().contains("coordinates"));
        assert!(Subspace::new(&theta, &[u.narrow(0, 0, 5)]).is_err());
    }

    #[test]
    fn three_points_lie_at_their_coordinates() {
        let network = Network::lenet();
        for kind in [Kind::Float, Kind::Double] {
            let thetas: Vec<Tensor> =
                (0..3).map(|stream| initialise(&network, 9, stream, kind, Device::Cpu).unwrap()).collect();
            let (plane, coordinates) = Subspace::through([&thetas[0], &thetas[1], &thetas[2]]).unwrap();
            let distance = |a: &Tensor, b: &Tensor| {
                (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).norm().double_value(&[])
            };
            for (a, theta) in coordinates.iter().zip(&thetas) {
                assert!(distance(&plane.at(a).unwrap(), theta) < 1e-6, "{a:?}");
                for (b, other) in coordinates.iter().zip(&thetas) {
                    let within = (a[0] - b[0]).hypot(a[1] - b[1]);
                    assert!((within - distance(theta, other)).abs() < 1e-9, "distances are the space's");
                }
            }
            assert!(coordinates[2][1] > 0. && coordinates[0] == [0., 0.]);
            let products = plane.products().unwrap();
            assert!((products[0][0] - 1.).abs() < 1e-12 && (products[1][1] - 1.).abs() < 1e-12);
            assert!(products[0][1].abs() < 1e-12);
        }
    }

    #[test]
    fn what_spans_no_plane_is_refused() {
        let point = |numbers: [f32; 3]| Tensor::from_slice(&numbers);
        let through = |a, b, c| Subspace::through([&point(a), &point(b), &point(c)]).unwrap_err();
        let (a, b) = ([0., 1., 2.], [1., 1., 3.]);
        assert!(matches!(through(a, b, b), DirectionError::Collinear));
        assert!(matches!(through(a, a, b), DirectionError::Collinear));
        assert!(matches!(through(a, b, [3., 1., 5.]), DirectionError::Collinear));
        assert!(matches!(through(a, b, [f32::NAN, 1., 5.]), DirectionError::NotFinite));
        let short = Tensor::from_slice(&[1f32]);
        assert!(Subspace::through([&point(a), &short, &point(b)]).is_err());
    }

    #[test]
    fn grids_hold_both_ends_and_zero() {
        assert_eq!(even_grid(-1., 1., 5).unwrap(), [-1., -0.5, 0., 0.5, 1.]);
        for half in [1., 0.7, 0.1, 1e-3, 3e5] {
            for points in [3, 15, 51, 101] {
                let grid = even_grid(-half, half, points).unwrap();
                assert_eq!((grid[0], grid[points / 2], grid[points - 1]), (-half, 0., half));
                assert!(grid[points / 2].is_sign_positive());
            }
        }
        assert!(matches!(even_grid(-1., 1., 1), Err(DirectionError::Points(1))));
        assert!(even_grid(-1., 1., 20_000).is_err());
        for (from, to) in [(1., 1.), (1., -1.), (f64::NAN, 1.), (f64::MIN, f64::MAX)] {
            assert!(matches!(even_grid(from, to, 3), Err(DirectionError::Ends(..))));
        }
    }
}
