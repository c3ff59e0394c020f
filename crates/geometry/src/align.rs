//! Alignment of two models by weight matching (Ainsworth et al. 2023, "Git Re-Basin: Merging models modulo permutation symmetries",
//! algorithm 1).
//!
//! The units of a hidden layer, or the channels of a convolution, may change places without a change of the function: permutation π of θ₂
//! moves the rows of their weights, their biases, and the columns of the next layer's weights that take them. Among all of these, one is
//! sought with
//!
//! `min_π ‖θ₁ - π θ₂‖`, which is `max_π ⟨θ₁, π θ₂⟩`,
//!
//! by coordinate descent: layer by layer, in a random order, the permutation of this layer alone that is best while the others stay. With
//! `W^l` and `b^l` of θ₁ and `V^l`, `c^l` of θ₂ as permuted so far, this is the linear assignment problem
//!
//! `max_σ Σ_i A_{i σ(i)}`, `A_ij = ⟨W^l_{i·}, V^l_{j·}⟩ + b^l_i c^l_j + ⟨W^{l+1}_{·i}, V^{l+1}_{·j}⟩`,
//!
//! where a row of a convolution is a filter, a column of one an input channel, and a column behind the flattening the H W columns of a
//! channel. It ends when no layer has a better one: a minimum with respect to single layers, not to all of them at once.

use flatland_network::streams::{Purpose, stream};
use flatland_network::{Network, NetworkError};
use pathfinding::kuhn_munkres::kuhn_munkres;
use pathfinding::matrix::Matrix;
use rand::seq::SliceRandom;
use tch::{Device, Kind, Tensor};
use thiserror::Error;

/// θ₂ in θ₁'s order.
#[derive(Debug)]
pub struct Alignment {
    /// π θ₂ `[P]`, with θ₂'s precision, on its device: its very numbers in other places.
    pub theta: Tensor,
    /// Of each layer but the last: the i-th unit of π θ₂ is this unit of θ₂.
    pub permutations: Vec<Vec<i64>>,
    /// `‖θ₁ - π θ₂‖` in weight units, before the first sweep over the layers and after each.
    pub distances: Vec<f64>,
    /// Whether the last sweep changed nothing, rather than being the last that was allowed.
    pub settled: bool,
}

/// An alignment that cannot be had.
#[derive(Debug, Error)]
pub enum AlignError {
    /// θ or libtorch.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A model that has diverged has no place.
    #[error("models cannot be aligned where weights are not finite")]
    NotFinite,
    /// Permutations of another network.
    #[error("layer {layer} has {units} units, which its permutation does not put in an order")]
    Permutation {
        /// From 0.
        layer: usize,
        /// How many.
        units: i64,
    },
}

impl From<tch::TchError> for AlignError {
    fn from(error: tch::TchError) -> Self {
        Self::Network(error.into())
    }
}

/// Moves θ₂'s units to where they lie nearest to θ₁'s; θ `[P]` both.
///
/// `of` is the seed and trial whose stream orders the layers of each sweep. At most `most_sweeps` sweeps are made. All sums are in f64 on
/// the CPU, whatever θ's precision and device. A permutation is changed only for a gain that rounding does not explain, so that the
/// distance never rises and equal units stay where they are.
///
/// # Errors
/// [`AlignError::NotFinite`] for weights that are not finite; [`NetworkError::Shape`] when θ₁ or θ₂ is not the network's.
pub fn align(
    network: &Network,
    theta1: &Tensor,
    theta2: &Tensor,
    of: (u64, u32),
    most_sweeps: u32,
) -> Result<Alignment, AlignError> {
    let [first, mut second] = [weights(network, theta1)?, weights(network, theta2)?];
    let mut permutations: Vec<Vec<i64>> =
        units(network).into_iter().map(|units| (0..units).collect()).collect();
    let mut distances = vec![distance(&first, &second)?];
    if !distances[0].is_finite() {
        return Err(AlignError::NotFinite);
    }
    let mut settled = false;
    for sweep in 0..most_sweeps {
        let mut order: Vec<usize> = (0..permutations.len()).collect();
        order.shuffle(&mut stream(of.0, of.1, sweep, Purpose::Alignment));
        settled = true;
        for layer in order {
            if let Some(better) = best(&similarity(&first, &second, layer)?)? {
                move_units(&mut second, layer, &better)?;
                permutations[layer] = better.iter().map(|&unit| permutations[layer][unit as usize]).collect();
                settled = false;
            }
        }
        if settled {
            break;
        }
        distances.push(distance(&first, &second)?);
    }
    let theta = permute(network, theta2, &permutations)?;
    Ok(Alignment { theta, permutations, distances, settled })
}

/// The same function by other weights: θ `[P]` with the units of each layer but the last in this order, `permutations[l][i]` being the
/// former number of what becomes unit i of layer l. Outputs differ by rounding alone.
///
/// # Errors
/// [`AlignError::Permutation`] where one is none, or of another length than its layer; [`NetworkError::Shape`] when θ is not the network's.
pub fn permute(network: &Network, theta: &Tensor, permutations: &[Vec<i64>]) -> Result<Tensor, AlignError> {
    let units = units(network);
    for (layer, &units) in units.iter().enumerate() {
        let mut sorted = permutations.get(layer).cloned().unwrap_or_default();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..units) {
            return Err(AlignError::Permutation { layer, units });
        }
    }
    check(network, theta)?;
    let mut parts = parts(network, theta)?;
    for (layer, permutation) in permutations.iter().enumerate().take(units.len()) {
        move_units(&mut parts, layer, permutation)?;
    }
    let parts =
        parts.iter().map(|part| Ok(part.f_flatten(0, -1)?)).collect::<Result<Vec<_>, NetworkError>>()?;
    Ok(Tensor::f_cat(&parts, 0)?)
}

/// How many units each layer but the last has.
fn units(network: &Network) -> Vec<i64> {
    // A weight, then its bias.
    let layers: Vec<i64> = network.parameters().chunks(2).map(|layer| layer[0].shape[0]).collect();
    layers[..layers.len().saturating_sub(1)].to_vec()
}

fn check(network: &Network, theta: &Tensor) -> Result<(), NetworkError> {
    if theta.size() == [network.count()] {
        return Ok(());
    }
    let expected = format!("[{}] for {}", network.count(), network.name());
    Err(NetworkError::Shape { what: "θ", found: theta.size(), expected })
}

/// Weights and biases in turn, layer by layer.
fn parts(network: &Network, theta: &Tensor) -> Result<Vec<Tensor>, NetworkError> {
    network.parameters().iter().map(|parameter| parameter.of(theta)).collect()
}

/// The same in f64 on the CPU.
fn weights(network: &Network, theta: &Tensor) -> Result<Vec<Tensor>, NetworkError> {
    check(network, theta)?;
    parts(network, &theta.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.f_contiguous()?)
}

fn distance(first: &[Tensor], second: &[Tensor]) -> Result<f64, NetworkError> {
    let mut square = 0.;
    for (a, b) in first.iter().zip(second) {
        square += a.f_sub(b)?.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(square.sqrt())
}

/// A layer's incoming weights, `[units, F]`, and the next one's by the unit that they take, `[units, G]`.
fn rows_and_columns(parts: &[Tensor], layer: usize) -> Result<(Tensor, Tensor), NetworkError> {
    let weight = &parts[2 * layer];
    let next = by_input(&parts[2 * layer + 2], weight.size()[0])?;
    Ok((weight.f_flatten(1, -1)?, next.f_transpose(0, 1)?.f_flatten(1, -1)?))
}

/// The weight of a layer as `[outputs, units, …]`: behind a flattening, a unit's H W columns lie side by side.
fn by_input(weight: &Tensor, units: i64) -> Result<Tensor, NetworkError> {
    Ok(weight.f_reshape([weight.size()[0], units, -1])?)
}

/// The matrix A, `[units, units]`.
fn similarity(first: &[Tensor], second: &[Tensor], layer: usize) -> Result<Tensor, NetworkError> {
    let (rows1, columns1) = rows_and_columns(first, layer)?;
    let (rows2, columns2) = rows_and_columns(second, layer)?;
    let biases = first[2 * layer + 1].f_unsqueeze(1)?.f_mul(&second[2 * layer + 1].f_unsqueeze(0)?)?;
    let rows = rows1.f_matmul(&rows2.f_transpose(0, 1)?)?;
    Ok(rows.f_add(&columns1.f_matmul(&columns2.f_transpose(0, 1)?)?)?.f_add(&biases)?)
}

fn move_units(parts: &mut [Tensor], layer: usize, permutation: &[i64]) -> Result<(), NetworkError> {
    let order = Tensor::f_from_slice(permutation)?.f_to_device(parts[0].device())?;
    for index in [2 * layer, 2 * layer + 1] {
        parts[index] = parts[index].f_index_select(0, &order)?;
    }
    let next = &parts[2 * layer + 2];
    let moved = by_input(next, permutation.len() as i64)?.f_index_select(1, &order)?;
    parts[2 * layer + 2] = moved.f_reshape(next.size().as_slice())?;
    Ok(())
}

/// Gains below this share of the largest entry, times their number, are rounding's.
const LEAST_GAIN: f64 = 1e-12;

/// The permutation σ with the largest `Σ_i A_{i σ(i)}`; `None` where it gains nothing over the present order.
fn best(similarity: &Tensor) -> Result<Option<Vec<i64>>, AlignError> {
    let units = similarity.size()[0] as usize;
    let values =
        Vec::<f64>::try_from(similarity.f_contiguous()?.f_flatten(0, -1)?).map_err(NetworkError::from)?;
    let permutation = assign(&values, units)?;
    let chosen = permutation.iter().enumerate().map(|(i, &j)| values[i * units + j] - values[i * units + i]);
    let most = values.iter().fold(0., |most: f64, value| most.max(value.abs()));
    let gains = chosen.sum::<f64>() > LEAST_GAIN * most * units as f64;
    Ok(gains.then(|| permutation.into_iter().map(|unit| unit as i64).collect()))
}

/// The column of each row in the assignment with the largest sum, of a square matrix, row by row.
///
/// Kuhn and Munkres' algorithm compares sums for equality, and may not end where they are rounded. Values are therefore made whole
/// numbers first, with 51 bits for up to 512 units and fewer for more, so that no sum overflows.
fn assign(values: &[f64], units: usize) -> Result<Vec<usize>, AlignError> {
    let most = values.iter().fold(0., |most: f64, value| most.max(value.abs()));
    // f64::max passes over a NaN.
    if !values.iter().all(|value| value.is_finite()) {
        return Err(AlignError::NotFinite);
    }
    if units == 0 || most == 0. {
        return Ok((0..units).collect());
    }
    let bits = 60 - units.next_power_of_two().trailing_zeros() as i32;
    let whole = values.iter().map(|value| (value / most * 2f64.powi(bits)).round() as i64).collect();
    let matrix = Matrix::from_vec(units, units, whole)
        .map_err(|error| NetworkError::Setting(format!("an assignment of {units} units: {error}")))?;
    Ok(kuhn_munkres(&matrix).1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_network::{Layer, initialise};
    use rand::Rng;

    fn networks() -> Vec<Network> {
        let padded = [
            Layer::Convolution { channels: 8, kernel: 3, padding: 1 },
            Layer::Tanh,
            Layer::Convolution { channels: 7, kernel: 3, padding: 0 },
            Layer::LeakyRelu,
            Layer::MaxPool { size: 2 },
            Layer::Dense { width: 12 },
            Layer::Relu,
            Layer::Dense { width: 3 },
        ];
        vec![
            Network::lenet(),
            Network::dense(&[20, 30, 25, 4], &Layer::Relu).unwrap(),
            Network::dense(&[20, 4], &Layer::Relu).unwrap(),
            Network::new("padded", &[2, 9, 12], &padded).unwrap(),
        ]
    }

    fn shuffled(network: &Network, seed: u64) -> Vec<Vec<i64>> {
        let mut numbers = stream(seed, 0, 0, Purpose::Order);
        let shuffle = |units: i64| {
            let mut order: Vec<i64> = (0..units).collect();
            order.shuffle(&mut numbers);
            order
        };
        units(network).into_iter().map(shuffle).collect()
    }

    fn theta(network: &Network, trial: u32, kind: Kind) -> Tensor {
        initialise(network, 5, trial, kind, Device::Cpu).unwrap()
    }

    const KINDS: [(Kind, f64); 2] = [(Kind::Float, 1e-5), (Kind::Double, 1e-13)];

    #[test]
    fn a_permuted_network_computes_the_same() {
        tch::set_num_threads(1);
        for network in networks() {
            for (kind, tolerance) in KINDS {
                let theta = theta(&network, 0, kind);
                let moved = permute(&network, &theta, &shuffled(&network, 1)).unwrap();
                assert_eq!(moved.kind(), kind);
                assert_eq!(moved == theta, units(&network).is_empty());
                assert_eq!(moved.sort(0, false).0, theta.sort(0, false).0, "the same numbers");
                let size = [&[5], network.input()].concat();
                let x = Tensor::arange(size.iter().product::<i64>(), (kind, Device::Cpu))
                    .sin()
                    .view(size.as_slice());
                let [before, after] = [&theta, &moved].map(|theta| network.forward(theta, &x).unwrap());
                assert!(after.allclose(&before, tolerance, tolerance, false), "{}", network.name());
            }
        }
    }

    #[test]
    fn a_permuted_copy_is_put_back_exactly() {
        tch::set_num_threads(1);
        for network in networks() {
            for (kind, _) in KINDS {
                for seed in 0..5 {
                    let theta = theta(&network, seed as u32, kind);
                    let away = shuffled(&network, seed);
                    let moved = permute(&network, &theta, &away).unwrap();
                    let found = align(&network, &theta, &moved, (seed, 0), 100).unwrap();
                    let Alignment { permutations, distances, settled, .. } = &found;
                    assert!(*settled, "{}", network.name());
                    assert_eq!(found.theta, theta, "{} {distances:?}", network.name());
                    assert_eq!(distances.last(), Some(&0.));
                    for (there, back) in away.iter().zip(permutations) {
                        assert!(back.iter().enumerate().all(|(i, &unit)| there[unit as usize] == i as i64));
                    }
                }
            }
        }
    }

    #[test]
    fn the_distance_never_rises_and_is_the_distance() {
        tch::set_num_threads(1);
        for network in networks() {
            for (kind, _) in KINDS {
                let [first, second] = [0, 1].map(|trial| theta(&network, trial, kind));
                let found = align(&network, &first, &second, (0, 0), 100).unwrap();
                assert!(found.settled && found.distances.windows(2).all(|pair| pair[1] <= pair[0]));
                let apart = (&first - &found.theta).to_kind(Kind::Double).norm().double_value(&[]);
                let last = found.distances[found.distances.len() - 1];
                assert!((apart - last).abs() < 1e-6 * apart, "{apart} {last}");
                assert_eq!(permute(&network, &second, &found.permutations).unwrap(), found.theta);
                if !found.permutations.is_empty() {
                    assert!(last < 0.99 * found.distances[0], "{:?}", found.distances);
                }
                // Where it ended, no other stream goes on; one sweep says that it is not yet settled.
                let again = align(&network, &first, &found.theta, (9, 9), 1).unwrap();
                assert!(again.settled && again.theta == found.theta);
                let once = align(&network, &first, &second, (0, 0), 1).unwrap();
                assert_eq!(once.settled, found.permutations.is_empty());
            }
        }
    }

    /// Two hidden units are few enough for every permutation to be tried.
    #[test]
    fn two_small_layers_end_where_no_single_layer_can_do_better() {
        let network = Network::dense(&[3, 4, 3, 2], &Layer::Relu).unwrap();
        let orders = |count: i64| {
            let mut all: Vec<Vec<i64>> = vec![vec![]];
            for unit in 0..count {
                let longer = |order: &Vec<i64>| {
                    (0..=order.len())
                        .map(|at| [&order[..at], &[unit], &order[at..]].concat())
                        .collect::<Vec<_>>()
                };
                all = all.iter().flat_map(longer).collect();
            }
            all
        };
        for seed in 0..10 {
            let [first, second] =
                [0, 1].map(|t| initialise(&network, seed, t, Kind::Double, Device::Cpu).unwrap());
            let found = align(&network, &first, &second, (seed, 0), 100).unwrap();
            let apart = |permutations: &[Vec<i64>]| {
                (&first - permute(&network, &second, permutations).unwrap()).norm().double_value(&[])
            };
            let here = apart(&found.permutations);
            for layer in 0..2 {
                for order in orders(found.permutations[layer].len() as i64) {
                    let mut other = found.permutations.clone();
                    other[layer] = order;
                    assert!(apart(&other) > here - 1e-9);
                }
            }
        }
    }

    #[test]
    fn assignments_are_the_best_of_all() {
        fn most(values: &[f64], units: usize, row: usize, taken: &mut Vec<usize>) -> f64 {
            if row == units {
                return 0.;
            }
            let mut best = f64::NEG_INFINITY;
            for column in 0..units {
                if !taken.contains(&column) {
                    taken.push(column);
                    best = best.max(values[row * units + column] + most(values, units, row + 1, taken));
                    taken.pop();
                }
            }
            best
        }
        let mut numbers = stream(0, 0, 0, Purpose::Corruption);
        for units in 0..=7 {
            for scale in [1e-30, 1., 1e30] {
                for steps in [1, 3, 1_000_000] {
                    // Few steps give many ties.
                    let mut value =
                        || f64::from(numbers.gen_range(-steps..=steps)) * scale / f64::from(steps);
                    let values: Vec<f64> = (0..units * units).map(|_| value()).collect();
                    let found = assign(&values, units).unwrap();
                    let sum: f64 = found.iter().enumerate().map(|(i, &j)| values[i * units + j]).sum();
                    let mut sorted = found.clone();
                    sorted.sort_unstable();
                    assert!(sorted.into_iter().eq(0..units), "{found:?}");
                    let best = most(&values, units, 0, &mut Vec::new());
                    assert!((sum - best).abs() <= 1e-12 * scale, "{sum} {best}");
                }
            }
        }
    }

    #[test]
    fn equal_units_stay_where_they_are() {
        let network = Network::dense(&[6, 5, 5, 2], &Layer::Relu).unwrap();
        for kind in [Kind::Float, Kind::Double] {
            let equal = Tensor::ones([network.count()], (kind, Device::Cpu));
            let found = align(&network, &equal, &equal, (0, 0), 10).unwrap();
            assert!(found.settled && found.distances == [0.]);
            assert!(found.permutations.iter().all(|order| order.iter().copied().eq(0..5)));
            // Nothing to go by: θ₁ is 0 everywhere.
            let found = align(&network, &equal.zeros_like(), &theta(&network, 0, kind), (0, 0), 10).unwrap();
            assert!(found.settled && found.distances.len() == 1);
            // Two units of θ₂ are one and the same: either may go to either place.
            let one = theta(&network, 1, kind);
            let twins = parts(&network, &one).unwrap();
            twins[0].get(1).copy_(&twins[0].get(0));
            twins[1].get(1).copy_(&twins[1].get(0));
            twins[2].select(1, 1).copy_(&twins[2].select(1, 0));
            let moved = permute(&network, &one, &shuffled(&network, 3)).unwrap();
            let found = align(&network, &one, &moved, (0, 0), 50).unwrap();
            assert_eq!(found.distances.last(), Some(&0.), "{:?}", found.distances);
        }
    }

    #[test]
    fn refuses_what_cannot_be_aligned() {
        let network = Network::dense(&[3, 4, 2], &Layer::Relu).unwrap();
        let good = theta(&network, 0, Kind::Float);
        for value in [f64::NAN, f64::INFINITY] {
            let bad = good.copy();
            let _ = bad.get(3).fill_(value);
            for (first, second) in [(&good, &bad), (&bad, &good)] {
                let error = align(&network, first, second, (0, 0), 5).unwrap_err();
                assert!(matches!(error, AlignError::NotFinite), "{error}");
            }
        }
        assert!(assign(&[1., f64::NAN, 2., 3.], 2).is_err());
        assert!(align(&network, &good, &good.view([1, -1]), (0, 0), 5).is_err());
        for wrong in [vec![], vec![vec![0, 1, 2]], vec![vec![0, 1, 2, 2]], vec![vec![0, 1, 2, 4]]] {
            let error = permute(&network, &good, &wrong).unwrap_err();
            assert!(matches!(error, AlignError::Permutation { layer: 0, units: 4 }), "{error}");
        }
    }
}
