//! Loss and accuracy of many models on a line or in a plane, `θ_m = f_0 + Σ_d c_md f_d`.
//!
//! What a network's first layer with weights makes of an example is linear in them, so that of each model it is the same combination of
//! what it makes under the f_d: computed once for all models, then a few multiplications a number, whatever the layer's size. Nothing of
//! this holds behind the first activation: from there on each model's own weights count.
//!
//! On a CPU with AVX-512, networks like LeNet go by kernels of their own ([`kernels`]).

use crate::evaluation::{Sums, chunk_of, over_chunks};
use crate::network::Step;
#[cfg(target_arch = "x86_64")]
use crate::slices::slice;
use crate::{Evaluation, Examples, Loss, Network, NetworkError, Result, block, evaluate_many};
#[cfg(target_arch = "x86_64")]
use std::thread::Builder;
use tch::{Device, Kind, Tensor};

#[cfg(target_arch = "x86_64")]
mod kernels;

/// Models on a line or in a plane.
#[derive(Debug, Clone, Copy)]
pub struct Points<'a> {
    /// `[D + 1, P]`: a point, and the directions from it. Of θ's kind, on its device.
    pub frame: &'a Tensor,
    /// c, D numbers for each of the M models.
    pub coordinates: &'a [Vec<f64>],
    /// `[M, P]`: the same models as weights, as exactly as they are known.
    pub thetas: &'a Tensor,
}

/// No number of a model may get beyond this in our kernels, whose maxima would pass over a NaN. Else the model goes the plain way.
#[cfg(target_arch = "x86_64")]
const LARGEST: f64 = 1e30;
/// Models whose features our kernels hold at once.
#[cfg(target_arch = "x86_64")]
const MODELS: usize = 64;
/// Images of a chunk for our kernels at most, and the bytes of all models' features: what stays in the third-level cache.
#[cfg(target_arch = "x86_64")]
const CHUNK: [i64; 2] = [72, 8 << 20];

/// [`evaluate_many`] of models on a line or in a plane: the same numbers but for rounding. They do not depend on which models are
/// evaluated together.
///
/// # Errors
/// [`NetworkError::Shape`] when the points or the examples do not fit the network.
pub fn evaluate_points(
    network: &Network,
    points: Points,
    examples: &Examples,
    loss: Loss,
) -> Result<Vec<Evaluation>> {
    let Points { frame, coordinates, thetas } = points;
    network.check_theta(thetas)?;
    network.check_theta(frame)?;
    let dimensions = frame.size()[0] - 1;
    let fits = frame.dim() == 2
        && thetas.size() == [coordinates.len() as i64, network.count()]
        && coordinates.iter().all(|at| at.len() as i64 == dimensions);
    if !fits || dimensions < 1 || coordinates.is_empty() {
        let expected = format!("[M, {}] with [D + 1, {0}] and D coordinates for each", network.count());
        return Err(NetworkError::Shape { what: "θ", found: thetas.size(), expected });
    }
    if frame.kind() != thetas.kind() || frame.device() != thetas.device() {
        let [frame, theta] = [frame, thetas].map(|t| format!("{:?} on {:?}", t.kind(), t.device()));
        return Err(NetworkError::Setting(format!(
            "the frame of a plane is {frame}, the models are {theta}"
        )));
    }
    let (x, _) = examples.part(0, 1)?;
    if x.kind() != thetas.kind() || x.device() != thetas.device() || examples.device() != thetas.device() {
        let [x, theta] = [&x, thetas].map(|t| format!("{:?} on {:?}", t.kind(), t.device()));
        return Err(NetworkError::Setting(format!("the inputs are {x}, the models are {theta}")));
    }
    let _no_grad = tch::no_grad_guard();
    #[cfg(target_arch = "x86_64")]
    if let Some(plan) = plan(network, points, loss)? {
        return by_plan(network, points, examples, &plan);
    }
    // Convolution and pooling in one pass are faster than such a combination in memory.
    let fused = matches!(network.steps(), [Step::Convolution { .. }, Step::MaxPool { size: 2, .. }, ..])
        && block::available()
        && (thetas.kind(), thetas.device()) == (Kind::Float, Device::Cpu);
    if fused {
        return evaluate_many(network, thetas, examples, loss);
    }
    by_operators(network, points, examples, loss)
}

/// By libtorch's operators, of any network.
fn by_operators(
    network: &Network,
    points: Points,
    examples: &Examples,
    loss: Loss,
) -> Result<Vec<Evaluation>> {
    let Points { frame, coordinates, thetas } = points;
    // Beside a model's activations there are the maps and their partial sums.
    let held = 2 * coordinates[0].len() as i64 + 1;
    let chunk = chunk_of(network, thetas, examples, held);
    let own = |tensors: &[Tensor]| Ok([tensors[0].f_unbind(0)?, tensors[1].f_unbind(0)?]);
    let tensors = [frame, thetas];
    over_chunks(
        examples,
        (thetas.device(), chunk),
        &tensors,
        own,
        |[frame, thetas], examples, start, length| {
            let (x, targets) = examples.part(start, length)?;
            let maps = frame.iter().map(|f| network.first_linear(f, &x)).collect::<Result<Vec<_>>>()?;
            let mut sums = PartialSums { maps, sums: Vec::new() };
            let of_model = |(at, theta): (&Vec<f64>, &Tensor)| {
                let outputs = network.behind_first_linear(theta, sums.at(at)?)?;
                Sums::of(&outputs, &targets, loss)
            };
            coordinates.iter().zip(thetas.iter()).map(of_model).collect()
        },
    )
}

/// `map_0 + Σ_d c_d map_d`, the last axis first: along the rows of a grid only the first coordinate changes, and the rest stays.
struct PartialSums {
    maps: Vec<Tensor>,
    /// With the last axis, the last two, …, and the coordinates that they belong to.
    sums: Vec<(f64, Tensor)>,
}

impl PartialSums {
    fn at(&mut self, coordinates: &[f64]) -> Result<&Tensor> {
        let axes = coordinates.len();
        let same = self.sums.iter().zip(coordinates.iter().rev());
        let same = same.take_while(|((had, _), at)| had.to_bits() == at.to_bits()).count();
        self.sums.truncate(same);
        for axis in (0..axes - same).rev() {
            let before = self.sums.last().map_or(&self.maps[0], |(_, sum)| sum);
            // Nothing along an axis is 0, even if that axis is infinite.
            let sum = if coordinates[axis] == 0. {
                before.shallow_clone()
            } else {
                self.maps[axis + 1].f_mul_scalar(coordinates[axis])?.f_add_(before)?
            };
            self.sums.push((coordinates[axis], sum));
        }
        Ok(self.sums.last().map_or(&self.maps[0], |(_, sum)| sum))
    }
}

/// What our kernels need to know of a network, and of the models.
#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
struct Plan {
    shape: kernels::Shape,
    first: kernels::First,
    models: Vec<kernels::Model>,
    /// The largest sum of absolute weights and bias of an output: of the first layer under each of the frame, and of each model's layers.
    of_first: Vec<f64>,
    sums: Vec<Vec<f64>>,
    outputs: usize,
}

#[cfg(target_arch = "x86_64")]
impl Plan {
    /// Whether no number of a model exceeds [`LARGEST`], for inputs of at most `largest`.
    fn is_bounded(&self, model: usize, largest: f64) -> bool {
        let mut bound = largest;
        let mut layers = self.sums[model].iter().map(|sum| {
            bound = (bound + 1.) * sum;
            bound
        });
        let coordinates = &self.models[model].coordinates;
        layers.all(|bound| bound < LARGEST)
            && self.of_first.iter().all(|sum| (largest + 1.) * sum < LARGEST)
            && coordinates.iter().all(|c| f64::from(c.abs()) < LARGEST)
    }
}

/// The plan for networks of two blocks of convolution and 2x2 pooling, the second with kernels of 5x5, and dense layers with ReLU between;
/// for lines and planes, in f32 on a CPU with AVX-512.
#[cfg(target_arch = "x86_64")]
fn plan(network: &Network, points: Points, loss: Loss) -> Result<Option<Plan>> {
    let Points { frame, coordinates, thetas } = points;
    let [
        Step::Convolution { weight: first, padding: 0 },
        Step::MaxPool { size: 2, rectified: rectified1 },
        Step::Convolution { weight: second, padding: 0 },
        Step::MaxPool { size: 2, rectified: rectified2 },
        tail @ ..,
    ] = network.steps()
    else {
        return Ok(None);
    };
    // Dense, (ReLU, dense)*: it ends in a dense layer.
    let dense = tail.iter().step_by(2).map(|step| match step {
        Step::Dense { weight } => Some(*weight),
        _ => None,
    });
    let Some(dense) = dense.collect::<Option<Vec<usize>>>() else { return Ok(None) };
    let rectified = tail.iter().skip(1).step_by(2).all(|step| *step == Step::Relu);
    let parameters = network.parameters();
    let (w1, w2) = (&parameters[*first].shape, &parameters[*second].shape);
    let options = (thetas.kind(), thetas.device()) == (Kind::Float, Device::Cpu);
    let fits = options
        && block::available()
        && loss == Loss::CrossEntropy
        && rectified
        && tail.len() % 2 == 1
        && w1[2] as usize <= block::MAX_KERNEL
        && w2[2] as usize == kernels::KERNEL
        && coordinates[0].len() <= 2;
    if !fits {
        return Ok(None);
    }
    let size = |dimension: usize| network.input()[dimension] as usize;
    let shape = kernels::Shape {
        image: [size(0), size(1), size(2)],
        first: [w1[0] as usize, w1[2] as usize],
        second: w2[0] as usize,
        rectified: [*rectified1, *rectified2],
    };
    let (frame, thetas) = (frame.f_contiguous()?, thetas.f_contiguous()?);
    let count = network.count() as usize;
    let part = |theta: &'_ [f32], index: usize| -> Vec<f32> {
        let parameter = &parameters[index];
        theta[parameter.offset as usize..][..parameter.count() as usize].to_vec()
    };
    let layer = |theta: &[f32], weight: usize| (part(theta, weight), part(theta, weight + 1));
    let of_frame: Vec<_> = slice::<f32>(&frame).chunks_exact(count).map(|f| layer(f, *first)).collect();
    let views: Vec<_> = of_frame.iter().map(|(w, b)| (w.as_slice(), b.as_slice())).collect();
    let of_first: Vec<f64> = of_frame.iter().map(|(w, b)| largest_sum(w, b)).collect();
    let windows: usize = shape.windows().iter().product();
    let model = |(theta, at): (&[f32], &Vec<f64>)| {
        let (w, b) = layer(theta, *second);
        let mut sums =
            vec![of_first[0] + at.iter().zip(&of_first[1..]).map(|(c, sum)| c.abs() * sum).sum::<f64>()];
        sums.push(largest_sum(&w, &b));
        let second = kernels::Second::of(&w, &b, shape);
        let mut inputs = shape.features();
        let mut layers: Vec<kernels::Dense> = Vec::new();
        for &weight in &dense {
            let (w, b) = layer(theta, weight);
            sums.push(largest_sum(&w, &b));
            let place =
                |f: usize| if layers.is_empty() { shape.feature(f / windows, f % windows) } else { f };
            let one = kernels::Dense::of(&w, &b, inputs, place);
            inputs = b.len();
            layers.push(one);
        }
        let coordinates = at.iter().map(|&c| c as f32).collect();
        (kernels::Model { coordinates, second, dense: layers }, sums)
    };
    let all: Vec<_> = slice::<f32>(&thetas).chunks_exact(count).zip(coordinates).collect();
    let (models, sums) = in_threads(&all, model)?.into_iter().unzip();
    let outputs = network.outputs() as usize;
    let first = kernels::First::of(&views, shape);
    Ok(Some(Plan { shape, first, models, of_first, sums, outputs }))
}

/// What `of` gives for each, by as many threads as libtorch is set to.
#[cfg(target_arch = "x86_64")]
fn in_threads<T: Sync + Copy, R: Send>(all: &[T], of: impl Fn(T) -> R + Sync) -> Result<Vec<R>> {
    let share = all.len().div_ceil(tch::get_num_threads().max(1) as usize);
    let of = &of;
    let run = |some: &[T]| some.iter().map(|&one| of(one)).collect::<Vec<R>>();
    let (own, others) = all.split_at(share.min(all.len()));
    let parts: Vec<Result<Vec<R>>> = std::thread::scope(|scope| {
        let start = |some| (some, Builder::new().spawn_scoped(scope, move || run(some)));
        let workers: Vec<_> = others.chunks(share).map(start).collect();
        let mut parts = vec![Ok(run(own))];
        parts.extend(workers.into_iter().map(|(some, worker)| match worker {
            Ok(worker) => worker.join().map_err(|_| {
                NetworkError::Setting("a thread stopped while it prepared the models of a plane".into())
            }),
            // The system refused a thread.
            Err(_) => Ok(run(some)),
        }));
        parts
    });
    Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The largest of numbers that are not below 0; NaN if one is NaN, over which `f64::max` passes.
#[cfg(target_arch = "x86_64")]
fn largest(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.fold(0., |most, number| if number > most || number.is_nan() { number } else { most })
}

/// The largest sum of absolute weights and bias of an output.
#[cfg(target_arch = "x86_64")]
fn largest_sum(weight: &[f32], bias: &[f32]) -> f64 {
    let rows = weight.chunks_exact(weight.len() / bias.len()).zip(bias);
    let sum = |(row, b): (&[f32], &f32)| row.iter().chain([b]).map(|w| f64::from(w.abs())).sum::<f64>();
    largest(rows.map(sum))
}

/// What a thread has of its own: room, and the models as weights for what goes the plain way.
#[cfg(target_arch = "x86_64")]
struct Room {
    thetas: Vec<Tensor>,
    scratch: kernels::Scratch,
    /// Of some of the models, `[MODELS, B, features]`.
    features: Vec<f32>,
    /// Of two layers of a model, one after the other.
    layers: [Vec<f32>; 2],
}

#[cfg(target_arch = "x86_64")]
fn by_plan(network: &Network, points: Points, examples: &Examples, plan: &Plan) -> Result<Vec<Evaluation>> {
    let (shape, dimensions) = (plan.shape, points.coordinates[0].len());
    let [most, bytes] = CHUNK;
    let chunk = (bytes / (4 * MODELS * shape.features()) as i64).clamp(1, most.min(examples.count()));
    let room = |tensors: &[Tensor]| {
        Ok(Room {
            thetas: tensors[0].f_unbind(0)?,
            scratch: kernels::Scratch::new(shape, dimensions),
            features: vec![0.; plan.models.len().min(MODELS) * chunk as usize * shape.features()],
            layers: [Vec::new(), Vec::new()],
        })
    };
    over_chunks(examples, (Device::Cpu, chunk), &[points.thetas], room, |room, examples, start, length| {
        let (x, targets) = examples.part(start, length)?;
        network.check_inputs(&x, None)?;
        let (x, targets) = (x.f_contiguous()?, targets.f_contiguous()?);
        let largest = largest(slice::<f32>(&x).iter().map(|x| f64::from(x.abs())));
        let labelled = targets.size() == [length] && targets.kind() == Kind::Int64 && {
            let labels = slice::<i64>(&targets);
            labels.iter().all(|label| (0..plan.outputs as i64).contains(label))
        };
        let each = length as usize * shape.features();
        let mut sums = Vec::with_capacity(plan.models.len());
        for some in plan.models.chunks(MODELS) {
            let features = &mut room.features[..some.len() * each];
            kernels::features(&plan.first, some, slice(&x), features, shape, &mut room.scratch);
            for (model, features) in some.iter().zip(features.chunks_exact(each)) {
                sums.push(if labelled && plan.is_bounded(sums.len(), largest) {
                    let outputs = outputs_of(model, features, length as usize, &mut room.layers);
                    cross_entropy(outputs, plan.outputs, slice(&targets))
                } else {
                    let outputs = network.predict(&room.thetas[sums.len()], &x)?;
                    Sums::of(&outputs, &targets, Loss::CrossEntropy)?
                });
            }
        }
        Ok(sums)
    })
}

/// The dense layers of a model: rows of outputs.
#[cfg(target_arch = "x86_64")]
fn outputs_of<'a>(
    model: &kernels::Model,
    features: &[f32],
    rows: usize,
    [from, to]: &'a mut [Vec<f32>; 2],
) -> &'a [f32] {
    for (index, layer) in model.dense.iter().enumerate() {
        let x = if index == 0 { features } else { from.as_slice() };
        to.resize(rows * layer.wide(), 0.);
        layer.apply(x, x.len() / rows, to, index + 1 < model.dense.len());
        std::mem::swap(from, to);
    }
    from
}

/// The sum of the losses and the hits of rows of logits, of which `classes` count.
#[cfg(target_arch = "x86_64")]
fn cross_entropy(logits: &[f32], classes: usize, labels: &[i64]) -> Sums {
    let (mut loss, mut hits) = (0., 0);
    for (row, &label) in logits.chunks_exact(logits.len() / labels.len()).zip(labels) {
        let row = &row[..classes];
        let (mut first, mut largest) = (0, row[0]);
        for (class, &z) in row.iter().enumerate() {
            if z > largest {
                (first, largest) = (class, z);
            }
        }
        let sum: f32 = row.iter().map(|z| (z - largest).exp()).sum();
        loss += f64::from(sum.ln() - (row[label as usize] - largest));
        hits += i64::from(first as i64 == label);
    }
    Sums { loss, hits: Some(hits) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layer, initialise};

    fn waves(size: &[i64], speed: f64, kind: Kind) -> Tensor {
        let count: i64 = size.iter().product();
        let at = Tensor::arange(count, (Kind::Double, Device::Cpu));
        ((at.square() * speed).sin() * 1.7).to_kind(kind).view(size)
    }

    /// Two blocks of 5x5 whose rows and columns have remainders, more outputs than a vector has, or fewer.
    fn blocks(
        input: [i64; 3],
        [first, kernel]: [i64; 2],
        second: i64,
        rectified: bool,
        dense: &[i64],
    ) -> Network {
        let mut layers = vec![Layer::Convolution { channels: first, kernel, padding: 0 }];
        if rectified {
            layers.push(Layer::Relu);
        }
        layers.push(Layer::MaxPool { size: 2 });
        layers.push(Layer::Convolution { channels: second, kernel: 5, padding: 0 });
        if rectified {
            layers.push(Layer::Relu);
        }
        layers.push(Layer::MaxPool { size: 2 });
        for (index, &width) in dense.iter().enumerate() {
            if index > 0 {
                layers.push(Layer::Relu);
            }
            layers.push(Layer::Dense { width });
        }
        Network::new("blocks", &input, &layers).unwrap()
    }

    fn networks() -> Vec<Network> {
        let dense = |widths: &[i64]| Network::dense(widths, &Layer::Tanh).unwrap();
        let padded = [
            Layer::MaxPool { size: 2 },
            Layer::Convolution { channels: 3, kernel: 3, padding: 1 },
            Layer::Tanh,
            Layer::Dense { width: 4 },
        ];
        vec![
            Network::lenet(),
            blocks([2, 19, 22], [3, 4], 17, true, &[5]),
            blocks([1, 44, 31], [1, 1], 40, false, &[33, 130, 3]),
            blocks([3, 17, 90], [7, 2], 2, true, &[7, 4]),
            blocks([1, 19, 27], [2, 8], 16, true, &[3]),
            // One window; as many numbers in a row as vectors have; a rest of four windows.
            blocks([1, 14, 15], [16, 3], 3, true, &[2]),
            blocks([1, 12, 72], [1, 1], 4, true, &[5]),
            blocks([2, 14, 26], [2, 3], 5, true, &[4]),
            dense(&[6, 5, 3]),
            dense(&[16, 4]),
            Network::new("padded", &[2, 8, 6], &padded).unwrap(),
        ]
    }

    /// θ, two directions, and M models on their line or plane: in rows, as of a grid, some from one group of models to the next.
    fn points(network: &Network, dimensions: usize, kind: Kind) -> (Tensor, Vec<Vec<f64>>, Tensor) {
        // More than are held at once, where that costs little.
        let models = if network.name() == "lenet" { 70 } else { 19 };
        let theta = initialise(network, 3, 0, Kind::Double, Device::Cpu).unwrap() * 1.5;
        let axes =
            [waves(&[network.count()], 0.21, Kind::Double), waves(&[network.count()], 0.57, Kind::Double)];
        let axes = axes.map(|axis| axis * 0.05);
        let frame: Vec<&Tensor> = [&theta].into_iter().chain(&axes[..dimensions]).collect();
        let frame = Tensor::stack(&frame, 0);
        let second = |m: i32| if m == 7 { -0. } else { f64::from((m + 2) / 4 % 5 - 2) * 0.4 };
        let coordinates: Vec<Vec<f64>> =
            (0..models).map(|m| [f64::from(m * 3 % 7 - 3) * 0.4, second(m)][..dimensions].to_vec()).collect();
        let flat: Vec<f64> = coordinates.iter().flat_map(|at| [&[1.], at.as_slice()].concat()).collect();
        let thetas = Tensor::from_slice(&flat).view([i64::from(models), -1]).matmul(&frame);
        (frame.to_kind(kind), coordinates, thetas.to_kind(kind))
    }

    #[test]
    fn points_are_evaluated_as_models_alone() {
        tch::set_num_threads(2);
        for network in networks() {
            for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 2e-5)] {
                let x = waves(&[&[150], network.input()].concat(), 0.37, kind);
                let labels = Tensor::arange(150, (Kind::Int64, Device::Cpu)).remainder(network.outputs());
                let values = waves(&[150, network.outputs()], 0.11, kind);
                for (loss, targets) in [(Loss::CrossEntropy, labels), (Loss::MeanSquaredError, values)] {
                    let examples = Examples::new(x.shallow_clone(), targets).unwrap();
                    for dimensions in [1, 2] {
                        let (frame, coordinates, thetas) = points(&network, dimensions, kind);
                        let points = Points { frame: &frame, coordinates: &coordinates, thetas: &thetas };
                        #[cfg(target_arch = "x86_64")]
                        {
                            let ours = network.name() == "lenet" || network.name() == "blocks";
                            let fits = (kind, loss) == (Kind::Float, Loss::CrossEntropy);
                            let expected = ours && fits && block::available();
                            assert_eq!(
                                plan(&network, points, loss).unwrap().is_some(),
                                expected,
                                "{network:?}"
                            );
                        }
                        let found = evaluate_points(&network, points, &examples, loss).unwrap();
                        // In f64 by autograd's forward pass, whatever the kind.
                        let exact = thetas.to_kind(Kind::Double);
                        let z = network.forward(&exact, &x.to_kind(Kind::Double)).unwrap();
                        for (m, found) in found.iter().enumerate() {
                            let z = z.get(m as i64);
                            let targets = examples.targets();
                            let targets = if loss == Loss::CrossEntropy {
                                targets.shallow_clone()
                            } else {
                                targets.to_kind(Kind::Double)
                            };
                            let expected = Sums::of(&z, &targets, loss).unwrap();
                            let error = (found.loss * 150. / expected.loss - 1.).abs();
                            assert!(error < tolerance, "{network:?} {kind:?} {m}: {error:.1e}");
                            if let (Some(accuracy), Some(hits)) = (found.accuracy, expected.hits) {
                                // A tie of f32 may fall either way.
                                assert!((accuracy * 150. - hits as f64).abs() < 1.1, "{accuracy} {hits}");
                            }
                        }
                        // Whoever else is there, and by however many threads.
                        tch::set_num_threads(1);
                        assert_eq!(evaluate_points(&network, points, &examples, loss).unwrap(), found);
                        tch::set_num_threads(2);
                        let one = Points {
                            frame: &frame,
                            coordinates: &coordinates[4..5],
                            thetas: &thetas.narrow(0, 4, 1),
                        };
                        assert_eq!(evaluate_points(&network, one, &examples, loss).unwrap()[0], found[4]);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so_and_alone() {
        for network in [Network::lenet(), Network::dense(&[1024, 5, 10], &Layer::Relu).unwrap()] {
            let shape = [&[9], network.input()].concat();
            let labels = Tensor::arange(9, (Kind::Int64, Device::Cpu));
            let x = waves(&shape, 0.37, Kind::Float);
            let (frame, mut coordinates, thetas) = points(&network, 2, Kind::Float);
            let evaluate = |x: &Tensor, frame: &Tensor, coordinates: &[Vec<f64>], thetas: &Tensor| {
                let examples = Examples::new(x.copy(), labels.shallow_clone()).unwrap();
                let points = Points { frame, coordinates, thetas };
                evaluate_points(&network, points, &examples, Loss::CrossEntropy).unwrap()
            };
            let before = evaluate(&x, &frame, &coordinates, &thetas);
            // The first weight of each layer but the first, where other numbers come behind it; the last bias; a model beyond what f32 holds.
            let weights = network.parameters().iter().filter(|p| p.shape.len() > 1).skip(1);
            let places: Vec<i64> = weights.map(|p| p.offset).chain([network.count() - 1]).collect();
            for (m, place) in places.iter().enumerate() {
                let _ = thetas.get(m as i64).narrow(0, *place, 1).fill_(f64::NAN);
            }
            coordinates[7] = vec![1e38, 0.];
            thetas.get(7).copy_(&(frame.get(0) + frame.get(1) * 1e38));
            let after = evaluate(&x, &frame, &coordinates, &thetas);
            for (m, (before, after)) in before.iter().zip(&after).enumerate() {
                let spoilt = m < places.len() || m == 7;
                assert_eq!(spoilt, !after.loss.is_finite(), "{} {m}: {after:?}", network.name());
                assert!(spoilt || before == after);
            }
            // The first layer's are the frame's too, and those of an image everybody's.
            let spoilt = frame.copy();
            let _ = spoilt.narrow(1, 0, 1).fill_(f64::NAN);
            let all = thetas.narrow(0, 8, thetas.size()[0] - 8);
            let _ = all.narrow(1, 0, 1).fill_(f64::NAN);
            assert!(evaluate(&x, &spoilt, &coordinates[8..], &all).iter().all(|one| one.loss.is_nan()));
            // A layer beyond f32's range, and one of zeros behind it: what is not finite must not become 0.
            let (frame, _, thetas) = points(&network, 2, Kind::Float);
            let parameters = network.parameters();
            let (first, second) = (parameters[2].offset, parameters[2].count() + parameters[3].count());
            let direction = frame.get(1);
            let _ = direction.narrow(0, 0, first).multiply_scalar_(1e10);
            let _ = direction.narrow(0, first, network.count() - first).fill_(0.);
            let mut one = thetas.narrow(0, 0, 1);
            one.copy_(&(frame.get(0) + direction * 1e29));
            let _ = one.narrow(1, first, second).fill_(0.);
            assert!(evaluate(&x, &frame, &[vec![1e29, 0.]], &one)[0].loss.is_nan());
            let (frame, coordinates, thetas) = points(&network, 2, Kind::Float);
            let _ = x.get(4).view([-1]).narrow(0, 512, 1).fill_(f64::NAN);
            assert!(evaluate(&x, &frame, &coordinates, &thetas).iter().all(|one| one.loss.is_nan()));
        }
    }

    #[test]
    fn a_network_may_end_in_relu() {
        let layers = [
            Layer::Convolution { channels: 2, kernel: 3, padding: 0 },
            Layer::MaxPool { size: 2 },
            Layer::Convolution { channels: 3, kernel: 5, padding: 0 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Dense { width: 4 },
            Layer::Relu,
        ];
        let network = Network::new("open", &[1, 16, 16], &layers).unwrap();
        let labels = Tensor::arange(4, (Kind::Int64, Device::Cpu));
        // Labels as a column of something larger.
        let labels = Tensor::stack(&[&labels, &labels], 1).select(1, 0);
        let examples = Examples::new(waves(&[4, 1, 16, 16], 0.37, Kind::Float), labels).unwrap();
        let (frame, coordinates, thetas) = points(&network, 2, Kind::Float);
        let all = Points { frame: &frame, coordinates: &coordinates, thetas: &thetas };
        let found = evaluate_points(&network, all, &examples, Loss::CrossEntropy).unwrap();
        let expected = evaluate_many(&network, &thetas, &examples, Loss::CrossEntropy).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((found.loss / expected.loss - 1.).abs() < 1e-5);
        }
    }

    #[test]
    fn says_what_does_not_fit() {
        let network = Network::dense(&[3, 2], &Layer::Relu).unwrap();
        let examples =
            Examples::new(waves(&[4, 3], 0.3, Kind::Float), Tensor::from_slice(&[0i64, 1, 0, 1])).unwrap();
        let zeros = |rows: i64| Tensor::zeros([rows, 8], (Kind::Float, Device::Cpu));
        let found = |frame: &Tensor, coordinates: &[Vec<f64>], thetas: &Tensor| {
            evaluate_points(&network, Points { frame, coordinates, thetas }, &examples, Loss::CrossEntropy)
        };
        assert!(found(&zeros(2), &[vec![1.]], &zeros(1)).is_ok());
        assert!(found(&zeros(1), &[vec![]], &zeros(1)).is_err());
        assert!(found(&zeros(2), &[vec![1., 2.]], &zeros(1)).is_err());
        assert!(found(&zeros(2), &[vec![1.]], &zeros(2)).is_err());
        assert!(found(&zeros(2), &[], &zeros(0)).is_err());
        assert!(found(&zeros(2).to_kind(Kind::Double), &[vec![1.]], &zeros(1)).is_err());
        // Inputs of another kind, labels that are no classes or of no classification.
        let lenet = Network::lenet();
        let (frame, coordinates, thetas) = points(&lenet, 1, Kind::Float);
        let with = |kind: Kind, targets: Tensor| {
            let examples = Examples::new(waves(&[4, 1, 32, 32], 0.3, kind), targets).unwrap();
            let points = Points { frame: &frame, coordinates: &coordinates, thetas: &thetas };
            evaluate_points(&lenet, points, &examples, Loss::CrossEntropy)
        };
        let labels = || Tensor::from_slice(&[0i64, 1, 2, 9]);
        assert!(with(Kind::Float, labels().view([2, 2]).transpose(0, 1).reshape([4])).is_ok());
        assert!(with(Kind::Double, labels()).is_err());
        assert!(with(Kind::Float, labels() + 1).is_err());
        assert!(with(Kind::Float, labels().to_kind(Kind::Float)).is_err());
    }
}
