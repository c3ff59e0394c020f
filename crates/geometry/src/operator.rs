//! Curvature as something to multiply vectors with: the Hessian and the Gauss-Newton matrix over all examples, without forming them.
//!
//! Networks are multiplied by the R-operator (Pearlmutter 1994), modules of the user's own by differentiating a graph twice:
//! `H v = ∇(g · v)` for several v on one graph of g, and `G v = Jᵀ (H_L (J v))` with `J v = ∂(Jᵀu · v)/∂u`, u being any.
//!
//! The examples go through in pieces of a fixed size, and their sums are added in a fixed order: the numbers do not depend on the number
//! of threads, and the same product comes out the same, bit for bit. `⟨u, H v⟩` and `⟨v, H u⟩` differ by rounding only.

use crate::worker::{Alone, Worker};
use flatland_network::graph::backward;
use flatland_network::{
    Curvature, Directions, Examples, Linearised, Loss, Model, Module, Network, NetworkError, Products,
    by_kernels, flat,
};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};
use thiserror::Error;

/// Curvature that cannot be had.
#[derive(Debug, Error)]
pub enum CurvatureError {
    /// θ, the examples or libtorch.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The loss or one of its derivatives overflowed, or θ is not finite.
    #[error("the curvature is not finite at this θ")]
    NotFinite,
    /// Vectors of another length.
    #[error("{what} must have shape {expected}, found {found:?}")]
    Shape {
        /// Which.
        what: &'static str,
        /// What would have fitted.
        expected: String,
        /// Theirs.
        found: Vec<i64>,
    },
    /// More than there are, or too few.
    #[error("{what} must be {expected}, found {found}")]
    Count {
        /// The number of what.
        what: &'static str,
        /// What could be.
        expected: String,
        /// As asked.
        found: usize,
    },
    /// A thread of the computation ended without a result, or could not be started.
    #[error("a thread of the curvature's products stopped, or could not be started")]
    Thread,
    /// Whoever asked does not want the rest.
    #[error("stopped on the way")]
    Stopped,
}

impl From<tch::TchError> for CurvatureError {
    fn from(error: tch::TchError) -> Self {
        Self::Network(error.into())
    }
}

/// A symmetric matrix `[P, P]` that need not exist as numbers.
pub trait Symmetric {
    /// P.
    fn dimension(&self) -> i64;

    /// In what the products are computed, and where.
    fn options(&self) -> (Kind, Device);

    /// `A v` for each row v of `[K, P]`, as `[K, P]`, of [`Symmetric::options`]' kind and device.
    ///
    /// # Errors
    /// [`CurvatureError::Shape`] for rows of another length, [`CurvatureError::NotFinite`] for products that are not.
    fn products(&self, vectors: &Tensor) -> Result<Tensor, CurvatureError>;
}

/// A matrix whose numbers are there, `[P, P]`: for small P, and as the truth that others are compared with.
#[derive(Debug)]
pub struct Matrix(pub Tensor);

impl Symmetric for Matrix {
    fn dimension(&self) -> i64 {
        self.0.size()[0]
    }

    fn options(&self) -> (Kind, Device) {
        (self.0.kind(), self.0.device())
    }

    fn products(&self, vectors: &Tensor) -> Result<Tensor, CurvatureError> {
        check_vectors(self, vectors)?;
        Ok(vectors.f_to_kind(self.0.kind())?.f_mm(&self.0)?)
    }
}

pub(crate) fn check_vectors(operator: &dyn Symmetric, vectors: &Tensor) -> Result<(), CurvatureError> {
    let (found, dimension) = (vectors.size(), operator.dimension());
    if found.len() == 2 && found[0] >= 1 && found[1] == dimension {
        return Ok(());
    }
    Err(CurvatureError::Shape { what: "vectors", expected: format!("[K, {dimension}]"), found })
}

/// Examples of a piece on a CPU, for convolutions and for dense layers: what stays near the cache with sixteen directions.
const CPU_PIECE: [i64; 2] = [64, 256];
/// On an accelerator, launches weigh more: the most, where memory allows it.
const DEVICE_PIECE: i64 = 16_384;
/// Sums that are added in order; so many threads can be kept busy at most.
pub(crate) const GROUPS: usize = 32;
/// What the largest intermediate result of a piece with sixteen directions may take where libtorch's operators convolve, on a CPU and
/// on an accelerator; there also that of a stack's block of dense networks.
pub(crate) const WORKING_BYTES: [i64; 2] = [1 << 25, 3 << 30];
/// What the linearised pieces may take together, on a CPU and on an accelerator: beyond, they are made anew for each product.
pub(crate) const KEPT_BYTES: [i64; 2] = [1 << 30, 4 << 30];
/// Vectors at once.
pub(crate) const TOGETHER: i64 = 16;

/// Up to so many take no more time one after the other than in the eight lanes of convolutions: for LeNet and 10,000 images on two cores, 0.29 s
/// each alone, 0.30 two together, 0.22 three, 0.12 eight.
const ONE_BY_ONE: i64 = 2;

/// H or G of the mean loss over all examples at θ `[P]`, f32 or f64.
///
/// On a CPU it has threads of its own, each computing alone, until it is dropped.
#[derive(Debug)]
pub struct CurvatureOperator {
    count: i64,
    /// Whether a few vectors are faster one after the other.
    one_by_one: bool,
    options: (Kind, Device),
    groups: usize,
    workers: Vec<Worker<Job, Found>>,
}

/// What is to be multiplied.
#[derive(Debug)]
struct Job {
    curvature: Curvature,
    vectors: Tensor,
}

/// Of a group.
type Found = Result<Tensor, CurvatureError>;

impl CurvatureOperator {
    /// The curvature of the mean loss over `examples` at `theta` `[P]`, with as many threads as libtorch is set to (`tch::set_num_threads`, of
    /// the calling thread). Which of the two matrices is said with every product.
    ///
    /// # Errors
    /// [`CurvatureError::Network`] when θ or the examples do not fit the network, [`CurvatureError::NotFinite`] for a θ that is not,
    /// [`CurvatureError::Thread`] when a thread cannot be started.
    pub fn new(
        network: &Network,
        theta: &Tensor,
        examples: &Examples,
        loss: Loss,
    ) -> Result<Self, CurvatureError> {
        Self::with_threads(network, theta, examples, loss, tch::get_num_threads().max(1) as usize)
    }

    /// The same with so many threads.
    ///
    /// # Errors
    /// As [`CurvatureOperator::new`].
    pub fn with_threads(
        network: &Network,
        theta: &Tensor,
        examples: &Examples,
        loss: Loss,
        threads: usize,
    ) -> Result<Self, CurvatureError> {
        Self::one_of(1, network, theta, examples, loss, threads)
    }

    /// The same as one of several that are there at once: with its part of the memory.
    pub(crate) fn one_of(
        models: i64,
        network: &Network,
        theta: &Tensor,
        examples: &Examples,
        loss: Loss,
        threads: usize,
    ) -> Result<Self, CurvatureError> {
        let theta = ready(theta, network.count())?;
        // Shapes first, for an error that can be read.
        let (x, targets) = examples.part(0, 1)?;
        let x = x.f_to_kind(theta.kind())?;
        let _ = Linearised::of(network, &theta, &x, &cast(&targets, theta.kind())?, loss, 1.)?;
        let convolutional = network.input().len() == 3;
        let options = (theta.kind(), theta.device());
        let device = usize::from(options.1 != Device::Cpu);
        let kernels = by_kernels(network, options);
        let piece = if device == 0 { CPU_PIECE[usize::from(!convolutional)] } else { DEVICE_PIECE };
        let room = WORKING_BYTES[device] / (TOGETHER * Linearised::working_bytes(network, options));
        let mut piece = if kernels { piece } else { piece.min(room).max(1) };
        if device == 1 {
            // As many pieces, of about one size.
            let count = examples.count().max(1);
            let pieces = (count - 1) / piece + 1;
            piece = (count - 1) / pieces + 1;
        }
        let keeps = Linearised::bytes(network, options) * examples.count() * models <= KEPT_BYTES[device];
        let model = || Ok(Model::Network(network.clone()));
        let one_by_one = convolutional && kernels;
        Self::start(&model, &theta, (examples, loss), Plan { piece, keeps, one_by_one }, threads)
    }

    /// The same of a module, by differentiating its graph twice; on a CPU each thread has a copy of it.
    ///
    /// # Errors
    /// As [`CurvatureOperator::new`], and what [`Module::check`] says.
    pub fn of_module(
        module: &Module,
        theta: &Tensor,
        examples: &Examples,
        loss: Loss,
        threads: usize,
    ) -> Result<Self, CurvatureError> {
        let theta = ready(theta, module.count())?;
        module.check(examples, loss)?;
        let model = || -> Result<Model, NetworkError> {
            let module = module.again()?;
            module.set(&theta)?;
            Ok(Model::Module(module))
        };
        let plan = Plan { piece: module.piece(examples)?, keeps: false, one_by_one: false };
        Self::start(&model, &theta, (examples, loss), plan, threads)
    }

    fn start(
        model: &dyn Fn() -> Result<Model, NetworkError>,
        theta: &Tensor,
        (examples, loss): (&Examples, Loss),
        Plan { piece, keeps, one_by_one }: Plan,
        threads: usize,
    ) -> Result<Self, CurvatureError> {
        let on_cpu = theta.device() == Device::Cpu;
        let piece = piece.clamp(1, examples.count());
        let starts: Vec<i64> = (0..examples.count()).step_by(piece as usize).collect();
        let groups = starts.len().min(GROUPS);
        let threads = if on_cpu { threads.max(1) } else { 1 }.min(groups);
        let worker = |worker: usize| {
            let mine = (worker..groups).step_by(threads).map(|group| {
                starts[group * starts.len() / groups..(group + 1) * starts.len() / groups].to_vec()
            });
            let mut share = Share {
                model: model()?,
                theta: theta.shallow_clone(),
                examples: examples.share(),
                loss,
                piece,
                keeps,
                groups: mine.collect(),
                kept: BTreeMap::new(),
            };
            Worker::start(on_cpu, move |job: Job, done| {
                (0..share.groups.len()).try_for_each(|index| done.send(share.group(index, &job)))
            })
        };
        let workers = (0..threads).map(worker).collect::<Result<_, CurvatureError>>()?;
        let options = (theta.kind(), theta.device());
        Ok(Self { count: theta.size()[0], one_by_one, options, groups, workers })
    }

    /// H or G times each row of `[K, P]`.
    ///
    /// # Errors
    /// As [`Symmetric::products`].
    pub fn products_of(&self, curvature: Curvature, vectors: &Tensor) -> Result<Tensor, CurvatureError> {
        let (kind, device) = self.options;
        let found = vectors.size();
        if found.len() != 2 || found[0] < 1 || found[1] != self.count {
            let expected = format!("[K, {}]", self.count);
            return Err(CurvatureError::Shape { what: "vectors", expected, found });
        }
        // libtorch's own threads would go on spinning on the cores that the workers need.
        let _alone = (device == Device::Cpu).then(Alone::new);
        let vectors = vectors.f_detach()?.f_to_kind(kind)?.f_to_device(device)?.f_contiguous()?;
        let mut all = Vec::new();
        let mut start = 0;
        while start < found[0] {
            let left = found[0] - start;
            let size = if self.one_by_one && left <= ONE_BY_ONE { 1 } else { TOGETHER.min(left) };
            all.push(self.some_products(curvature, &vectors.f_narrow(0, start, size)?)?);
            start += size;
        }
        let products = if all.len() == 1 { all.remove(0) } else { Tensor::f_cat(&all, 0)? };
        if products.f_isfinite()?.f_all()?.f_int64_value(&[])? != 1 {
            return Err(CurvatureError::NotFinite);
        }
        Ok(products)
    }

    fn some_products(&self, curvature: Curvature, vectors: &Tensor) -> Result<Tensor, CurvatureError> {
        for worker in &self.workers {
            worker.send(Job { curvature, vectors: vectors.shallow_clone() })?;
        }
        // In the groups' order, each from its worker, who sends its own in order. After an error the others are still fetched: the next
        // product must not find them.
        let mut sum: Result<Option<Tensor>, CurvatureError> = Ok(None);
        for group in 0..self.groups {
            let part = self.workers[group % self.workers.len()].receive().and_then(|part| part);
            sum = match (sum, part) {
                (Ok(None), Ok(part)) => Ok(Some(part)),
                (Ok(Some(mut sum)), Ok(part)) => sum.f_add_(&part).map(Some).map_err(CurvatureError::from),
                (Err(error), _) | (_, Err(error)) => Err(error),
            };
        }
        sum?.ok_or(CurvatureError::Thread)
    }

    /// One of the two as a matrix.
    pub fn of(&self, curvature: Curvature) -> Of<'_> {
        Of { operator: self, curvature }
    }
}

/// How the examples go through.
struct Plan {
    piece: i64,
    keeps: bool,
    one_by_one: bool,
}

/// θ `[P]`, which must be finite.
fn ready(theta: &Tensor, count: i64) -> Result<Tensor, CurvatureError> {
    if theta.size() != [count] {
        let expected = format!("[{count}]");
        return Err(NetworkError::Shape { what: "θ", found: theta.size(), expected }.into());
    }
    let theta = theta.f_detach()?.f_contiguous()?;
    if theta.f_isfinite()?.f_all()?.f_int64_value(&[])? != 1 {
        return Err(CurvatureError::NotFinite);
    }
    Ok(theta)
}

/// H or G of a [`CurvatureOperator`].
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    operator: &'a CurvatureOperator,
    curvature: Curvature,
}

impl Symmetric for Of<'_> {
    fn dimension(&self) -> i64 {
        self.operator.count
    }

    fn options(&self) -> (Kind, Device) {
        self.operator.options
    }

    fn products(&self, vectors: &Tensor) -> Result<Tensor, CurvatureError> {
        self.operator.products_of(self.curvature, vectors)
    }
}

/// A worker's part of the examples.
struct Share {
    model: Model,
    theta: Tensor,
    examples: Examples,
    loss: Loss,
    piece: i64,
    keeps: bool,
    /// Where each one's pieces begin.
    groups: Vec<Vec<i64>>,
    /// By where they begin.
    kept: BTreeMap<i64, Linearised>,
}

impl Share {
    fn group(&mut self, index: usize, job: &Job) -> Result<Tensor, CurvatureError> {
        let starts = self.groups[index].clone();
        let network = match &self.model {
            Model::Network(network) => network,
            Model::Module(module) => {
                let mut sum = job.vectors.f_zeros_like()?;
                for start in starts {
                    let part = self.by_graph(module, start, job).map_err(|error| match error {
                        CurvatureError::Network(NetworkError::Torch(error)) => {
                            module.not_twice(&error).into()
                        }
                        error => error,
                    })?;
                    sum = sum.f_add_(&part)?;
                }
                return Ok(sum);
            }
        };
        let directions = Directions::of(network, &job.vectors)?;
        let sums = Products::zeros(network, directions.count(), &self.theta)?;
        for start in starts {
            if let Some(piece) = self.kept.get(&start) {
                piece.add_products(job.curvature, &directions, &sums)?;
                continue;
            }
            let (x, targets, share) = self.part(start)?;
            let piece = Linearised::of(network, &self.theta, &x, &targets, self.loss, share)?;
            piece.add_products(job.curvature, &directions, &sums)?;
            if self.keeps {
                self.kept.insert(start, piece);
            }
        }
        Ok(sums.flat(network)?)
    }

    /// Inputs and targets of a piece, and 1/N.
    fn part(&self, start: i64) -> Result<(Tensor, Tensor, f64), CurvatureError> {
        let count = self.examples.count();
        let (x, targets) = self.examples.part(start, self.piece.min(count - start))?;
        let kind = self.theta.kind();
        Ok((x.f_to_kind(kind)?, cast(&targets, kind)?, 1. / count as f64))
    }

    fn by_graph(&self, module: &Module, start: i64, job: &Job) -> Result<Tensor, CurvatureError> {
        let (x, targets, share) = self.part(start)?;
        let share = share * x.size()[0] as f64;
        let (leaves, outputs) = (module.leaves(), module.forward(&x)?);
        let count = job.vectors.size()[0];
        let mut rows = Vec::with_capacity(count as usize);
        match job.curvature {
            Curvature::Hessian => {
                let mean = self.loss.mean(&outputs, &targets)?.f_mul_scalar(share)?;
                let gradient = derivative(&mean, leaves, true, true)?;
                if !gradient.requires_grad() {
                    // A loss that is linear in θ.
                    return Ok(job.vectors.f_zeros_like()?);
                }
                for row in 0..count {
                    let along = gradient.f_dot(&job.vectors.f_select(0, row)?)?;
                    rows.push(derivative(&along, leaves, row + 1 < count, false)?);
                }
            }
            Curvature::GaussNewton => {
                let u = outputs.f_zeros_like()?.f_set_requires_grad(true)?;
                let along_u = outputs.f_mul(&u)?.f_sum(None)?;
                let pulled = derivative(&along_u, leaves, true, true)?;
                // The loss as a function of the outputs alone.
                let by_outputs = outputs.f_detach()?.f_set_requires_grad(true)?;
                let mean = self.loss.mean(&by_outputs, &targets)?.f_mul_scalar(share)?;
                let slope = derivative_by(&mean, &by_outputs, true)?;
                for row in 0..count {
                    let pushed = derivative_by(&pulled.f_dot(&job.vectors.f_select(0, row)?)?, &u, false)?;
                    let along = slope.f_mul(&pushed.f_detach()?)?.f_sum(None)?;
                    let bent = derivative_by(&along, &by_outputs, false)?.f_detach()?;
                    let back = outputs.f_mul(&bent)?.f_sum(None)?;
                    rows.push(derivative(&back, leaves, row + 1 < count, false)?);
                }
            }
        }
        Ok(Tensor::f_stack(&rows, 0)?.f_detach()?)
    }
}

/// With respect to θ's parts, as one vector.
fn derivative(of: &Tensor, by: &[Tensor], keep: bool, create: bool) -> Result<Tensor, CurvatureError> {
    Ok(flat(&backward(&[of], by, keep, create)?, by)?)
}

/// With respect to one tensor, in its shape; the graph is kept.
fn derivative_by(of: &Tensor, by: &Tensor, create: bool) -> Result<Tensor, CurvatureError> {
    let mut found = backward(&[of], &[by], true, create)?;
    let found = found.pop().filter(Tensor::defined);
    Ok(found.ok_or_else(|| NetworkError::Setting("libtorch returned no derivative".into()))?)
}

/// Values in θ's precision; class indices stay what they are.
pub(crate) fn cast(targets: &Tensor, kind: Kind) -> Result<Tensor, tch::TchError> {
    if targets.is_floating_point() { targets.f_to_kind(kind) } else { Ok(targets.shallow_clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hessian;
    use crate::probe::gaussian;
    use flatland_network::device::{DeviceChoice, choose};
    use flatland_network::{Layer, Precision, initialise, set_deterministic, set_precision};

    fn convolutional(padding: i64) -> Network {
        let layers = [
            Layer::Convolution { channels: 3, kernel: 3, padding },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Dense { width: 5 },
            Layer::Relu,
            Layer::Dense { width: 3 },
        ];
        Network::new("convolutional", &[1, 8, 8], &layers).unwrap()
    }

    fn examples(network: &Network, count: i64, loss: Loss, kind: Kind) -> Examples {
        let size = [&[count], network.input()].concat();
        let all: i64 = size.iter().product();
        let x = gaussian(5, 0, 1, all as usize, Device::Cpu).unwrap().to_kind(kind).view(size.as_slice());
        let targets = match loss {
            Loss::CrossEntropy => {
                Tensor::arange(count, (Kind::Int64, Device::Cpu)).remainder(network.outputs())
            }
            Loss::MeanSquaredError => x.flatten(1, -1).narrow(1, 0, network.outputs()).sin(),
        };
        Examples::new(x, targets).unwrap()
    }

    fn distance(found: &Tensor, expected: &Tensor) -> f64 {
        let expected = expected.to_kind(Kind::Double);
        ((found.to_kind(Kind::Double) - &expected).norm() / expected.norm()).double_value(&[])
    }

    /// Every way to a product, in both precisions, against the exact matrix.
    #[test]
    fn products_are_those_of_the_exact_hessian() {
        tch::set_num_threads(2);
        let cases = [
            (Network::dense(&[4, 6, 3], &Layer::Relu).unwrap(), Loss::MeanSquaredError),
            (Network::dense(&[4, 6, 5, 3], &Layer::Tanh).unwrap(), Loss::CrossEntropy),
            (convolutional(0), Loss::CrossEntropy),
            (convolutional(1), Loss::CrossEntropy),
            (convolutional(1), Loss::MeanSquaredError),
        ];
        for (network, loss) in cases {
            let wide = initialise(&network, 1, 0, Kind::Double, Device::Cpu).unwrap() * 1.5;
            let exact = hessian(&network, &wide, &examples(&network, 150, loss, Kind::Double), loss).unwrap();
            let v = gaussian(0, 0, 18, network.count() as usize, Device::Cpu).unwrap();
            for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-4)] {
                let examples = examples(&network, 150, loss, kind);
                let operator =
                    CurvatureOperator::new(&network, &wide.to_kind(kind), &examples, loss).unwrap();
                let found = operator.of(Curvature::Hessian).products(&v).unwrap();
                assert_eq!((found.size(), found.kind()), (v.size(), kind));
                let error = distance(&found, &v.mm(&exact));
                assert!(error < tolerance, "{} {kind:?}: {error:.1e}", network.name());
                // The second time from what was kept.
                assert_eq!(operator.of(Curvature::Hessian).products(&v).unwrap(), found);
            }
        }
    }

    /// On an accelerator, where there is one: against the CPU in f64.
    #[test]
    fn products_on_an_accelerator() {
        let Ok(chosen) = choose(DeviceChoice::Cuda(0)) else { return };
        tch::set_num_threads(1);
        set_precision(Precision::F32).unwrap();
        set_deterministic(true).unwrap();
        for network in [convolutional(1), Network::lenet()] {
            let theta = initialise(&network, 1, 0, Kind::Double, Device::Cpu).unwrap() * 1.5;
            let examples = examples(&network, 3000, Loss::CrossEntropy, Kind::Double);
            let truth = CurvatureOperator::new(&network, &theta, &examples, Loss::CrossEntropy).unwrap();
            let there = Examples::new(
                examples.inputs().unwrap().to_kind(Kind::Float).to_device(chosen.device),
                examples.targets().to_device(chosen.device),
            )
            .unwrap();
            let theta = theta.to_kind(Kind::Float).to_device(chosen.device);
            let operator = CurvatureOperator::new(&network, &theta, &there, Loss::CrossEntropy).unwrap();
            for curvature in [Curvature::Hessian, Curvature::GaussNewton] {
                for count in [1, 3, 16] {
                    let v = gaussian(0, 0, count, network.count() as usize, Device::Cpu).unwrap();
                    let expected = truth.products_of(curvature, &v).unwrap();
                    for _ in 0..2 {
                        let found = operator.products_of(curvature, &v).unwrap().to_device(Device::Cpu);
                        let error = distance(&found, &expected);
                        assert!(error < 1e-4, "{} {curvature:?} {count}: {error:.1e}", network.name());
                    }
                }
            }
        }
    }

    /// For a softmax regression both matrices are the same; elsewhere G is positive semi-definite, and symmetric as H is.
    #[test]
    fn the_gauss_newton_matrix() {
        tch::set_num_threads(1);
        for loss in [Loss::CrossEntropy, Loss::MeanSquaredError] {
            let linear = Network::dense(&[4, 3], &Layer::Relu).unwrap();
            for network in [linear, Network::dense(&[4, 6, 3], &Layer::Tanh).unwrap(), convolutional(1)] {
                let theta = initialise(&network, 1, 0, Kind::Double, Device::Cpu).unwrap();
                let examples = examples(&network, 40, loss, Kind::Double);
                let operator = CurvatureOperator::new(&network, &theta, &examples, loss).unwrap();
                let identity = Tensor::eye(network.count(), (Kind::Double, Device::Cpu));
                let [g, h] = [Curvature::GaussNewton, Curvature::Hessian]
                    .map(|curvature| operator.products_of(curvature, &identity).unwrap());
                for matrix in [&g, &h] {
                    assert!(distance(matrix, &matrix.tr()) < 1e-13);
                }
                let (values, _) = g.linalg_eigh("L");
                assert!(values.min().double_value(&[]) > -1e-13 * values.max().double_value(&[]));
                let same = distance(&g, &h) < 1e-13;
                assert_eq!(same, network.parameters().len() == 2, "{}", network.name());
            }
        }
    }

    #[test]
    fn numbers_do_not_depend_on_threads() {
        let network = convolutional(0);
        let theta = initialise(&network, 1, 0, Kind::Float, Device::Cpu).unwrap();
        let examples = examples(&network, 700, Loss::CrossEntropy, Kind::Float);
        let v = gaussian(0, 0, 3, network.count() as usize, Device::Cpu).unwrap();
        let products = |threads| {
            tch::set_num_threads(threads);
            let operator = CurvatureOperator::new(&network, &theta, &examples, Loss::CrossEntropy).unwrap();
            operator.products_of(Curvature::Hessian, &v).unwrap()
        };
        let alone = products(1);
        for threads in [2, 3] {
            assert_eq!(products(threads), alone);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        tch::set_num_threads(2);
        let network = convolutional(0);
        let theta = initialise(&network, 1, 0, Kind::Float, Device::Cpu).unwrap();
        let examples = examples(&network, 70, Loss::CrossEntropy, Kind::Float);
        let new = |theta: &Tensor, loss| CurvatureOperator::new(&network, theta, &examples, loss);
        assert!(new(&theta.narrow(0, 0, 5), Loss::CrossEntropy).unwrap_err().to_string().contains("θ"));
        assert!(new(&theta, Loss::MeanSquaredError).is_err());
        let _ = theta.get(0).fill_(f64::NAN);
        assert!(matches!(new(&theta, Loss::CrossEntropy), Err(CurvatureError::NotFinite)));
        let _ = theta.get(0).fill_(0.);
        let operator = new(&theta, Loss::CrossEntropy).unwrap();
        let v = Tensor::ones([2, network.count()], (Kind::Float, Device::Cpu));
        let error = operator.products_of(Curvature::Hessian, &v.narrow(1, 0, 3)).unwrap_err();
        assert!(error.to_string().contains("must have shape"), "{error}");
        let overflow = operator.products_of(Curvature::Hessian, &(&v * f64::INFINITY));
        assert!(matches!(overflow, Err(CurvatureError::NotFinite)));
        // And it still works.
        assert!(operator.products_of(Curvature::Hessian, &v).is_ok());
    }
}
