//! Curvature of several models of one network at once.
//!
//! A product of a network of some hundred parameters is all calls of libtorch, on a GPU all launches. A [`StackedCurvature`] multiplies for a
//! stack of models in one ([`StackedLinearised`]), and lends each of them to an estimator as a [`Symmetric`] of its own, so that all
//! that is written for one matrix works on all of them side by side.
//!
//! Models are computed in blocks whose sizes follow from the network, the examples and M alone, each with all its rows even where few are
//! asked for: a model's numbers depend neither on what the others do, nor on the number of threads, bit for bit.

use crate::operator::{
    CurvatureError, CurvatureOperator, GROUPS, KEPT_BYTES, Symmetric, TOGETHER, WORKING_BYTES, check_vectors,
};
use crate::worker::{Alone, Worker};
use flatland_network::{Curvature, Examples, Linearised, Loss, Network, NetworkError, StackedLinearised};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, scope};
use tch::{Device, Kind, Tensor};

/// Models of a block on a CPU at most: calls weigh an eighth, and there are blocks for several threads.
const CPU_MODELS: i64 = 8;
/// Numbers in a layer's activations of a block on a CPU, for one direction, or in θ with two copies of the direction: what stays near
/// the cache.
const CPU_NUMBERS: i64 = 1 << 18;
/// Examples of a piece, on a CPU and on an accelerator.
const PIECE: [i64; 2] = [512, 2048];
/// Models whose estimators run at once, each on a thread: further ones come after them. Also the most of a block on an accelerator, so
/// that those at once are whole blocks.
const AT_ONCE: i64 = 64;

/// H or G of the mean loss of M models θ `[M, P]`, f32 or f64, each over all its examples.
///
/// Dense networks are multiplied together. On a CPU the stack has threads of its own, each computing alone, until it is dropped. Networks
/// with convolutions go one model after the other, whose kernels keep the cores busy: each model has a [`CurvatureOperator`] with as many
/// threads of its own.
///
/// A model whose θ or products are not finite has no curvature; the others have theirs.
#[derive(Debug)]
pub struct StackedCurvature {
    models: i64,
    count: i64,
    options: (Kind, Device),
    /// Of each model's θ.
    finite: Vec<bool>,
    /// Models of each block but the last, which may have fewer.
    size: i64,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Together {
        /// The block of each task. The n-th task is that of worker n modulo their number.
        tasks: Vec<usize>,
        workers: Vec<Worker<Job, Result<Tensor, CurvatureError>>>,
    },
    /// A block is a model.
    OneByOne(Vec<CurvatureOperator>),
}

/// What is to be multiplied.
#[derive(Debug)]
struct Job {
    curvature: Curvature,
    /// Of each block, `[m, K, P]`, where something is asked for.
    blocks: Vec<Option<Tensor>>,
}

impl StackedCurvature {
    /// The curvature of the models `theta` `[M, P]` over their `examples`: one that all share, or M that stack. With as many threads as
    /// libtorch is set to (`tch::set_num_threads`, of the calling thread).
    ///
    /// # Errors
    /// [`CurvatureError::Network`] when θ or the examples do not fit the network, or examples of their own are not of one count, shape and kind;
    /// [`CurvatureError::Thread`] when a thread cannot be started.
    pub fn new(
        network: &Network,
        theta: &Tensor,
        examples: &[&Examples],
        loss: Loss,
    ) -> Result<Self, CurvatureError> {
        Self::with_threads(network, theta, examples, loss, tch::get_num_threads().max(1) as usize)
    }

    /// The same with so many threads.
    ///
    /// # Errors
    /// As [`StackedCurvature::new`].
    pub fn with_threads(
        network: &Network,
        theta: &Tensor,
        examples: &[&Examples],
        loss: Loss,
        threads: usize,
    ) -> Result<Self, CurvatureError> {
        let (found, count) = (theta.size(), network.count());
        let models = if found.len() == 2 { found[0] } else { 0 };
        if models < 1 || found[1] != count {
            let expected = format!("[M, {count}]");
            return Err(NetworkError::Shape { what: "θ", found, expected }.into());
        }
        let first = *examples.first().filter(|_| [1, models].contains(&(examples.len() as i64))).ok_or_else(
            || {
                NetworkError::Setting(format!(
                    "a stack needs examples once or {models} times, found {}",
                    examples.len()
                ))
            },
        )?;
        for other in examples {
            if !other.stacks_with(first)? {
                let reason = "the models of a stack need examples of one count, shape and kind";
                return Err(NetworkError::Setting(reason.into()).into());
            }
        }
        // With a dimension more, one model would take them for stacked inputs of its own.
        let found = first.part(0, 1)?.0.size();
        if found[1..] != *network.input() {
            let expected = format!("[1, input…] with an input of {:?}", network.input());
            return Err(NetworkError::Shape { what: "an example", found, expected }.into());
        }
        let theta = theta.f_detach()?.f_contiguous()?;
        let kept_apart = theta.f_isfinite()?.f_all_dim(1, false)?;
        let finite: Vec<bool> = Vec::try_from(&kept_apart.f_to_device(Device::Cpu)?)?;
        // 0 in their place: they are computed with the others.
        let theta = theta.f_masked_fill(&kept_apart.f_logical_not()?.f_unsqueeze(1)?, 0.)?;
        let options = (theta.kind(), theta.device());
        let stack = Stack {
            network: network.clone(),
            theta,
            examples: examples.iter().map(|one| one.share()).collect(),
            loss,
        };
        let convolutional = network
            .layers()
            .iter()
            .any(|view| matches!(view.layer, flatland_network::Layer::Convolution { .. }));
        let (size, way) =
            if convolutional { (1, stack.one_by_one(threads)?) } else { stack.together(threads)? };
        Ok(Self { models, count, options, finite, size, way })
    }

    /// H or G of each model times its K vectors, `[M, K, P]`, as `[M, K, P]`. All NaN for a model whose θ is not finite; else what came out,
    /// finite or not (of a network with convolutions, NaN for all vectors of a call in which one's product is not finite).
    ///
    /// # Errors
    /// [`CurvatureError::Shape`] for vectors that are not the stack's, [`CurvatureError::Network`] when libtorch refuses the targets or the
    /// memory of any model, [`CurvatureError::Thread`] when a thread has stopped.
    pub fn products_of(&self, curvature: Curvature, vectors: &Tensor) -> Result<Tensor, CurvatureError> {
        let found = vectors.size();
        if found.len() != 3 || found[0] != self.models || found[1] < 1 || found[2] != self.count {
            let expected = format!("[{}, K, {}]", self.models, self.count);
            return Err(CurvatureError::Shape { what: "vectors", expected, found });
        }
        let (kind, device) = self.options;
        let vectors = vectors.f_detach()?.f_to_kind(kind)?.f_to_device(device)?.f_contiguous()?;
        let block = |start: i64| vectors.f_narrow(0, start, self.size.min(self.models - start)).map(Some);
        let blocks = self.starts().map(block).collect::<Result<Vec<_>, _>>()?;
        let products: Vec<Tensor> = self.blocks(curvature, &blocks)?.into_iter().flatten().collect();
        let products = Tensor::f_cat(&products, 0)?;
        for (model, _) in self.finite.iter().enumerate().filter(|(_, finite)| !**finite) {
            let _ = products.f_select(0, model as i64)?.f_fill_(f64::NAN)?;
        }
        Ok(products)
    }

    /// What `work` makes of each model's matrix, in the models' order; [`CurvatureError::NotFinite`] for one whose θ is not finite.
    ///
    /// `work` gets the model's number and its matrix. It runs once for each model, in groups of at most 64 at once, each on a thread of its
    /// own where libtorch computes with one. A product waits until every model of the group that still runs asks for one; then those with
    /// the fewest vectors get theirs, together. Models that are in one phase of a computation thus stay together, and one that is ahead waits
    /// for the others. A model's results do not depend on what the others ask, or when.
    ///
    /// What the estimators compute between products takes all cores, whatever the number of threads for products is.
    ///
    /// `work` must not wait for another model by other means: that one may be waiting for it here.
    ///
    /// # Errors
    /// Those of `work`, for its model alone. A panic in it becomes [`CurvatureError::Thread`], as does a thread that cannot be started. Products
    /// that are not finite are [`CurvatureError::NotFinite`] for their model alone. Any other error, such as a class that the network does not
    /// have, reaches all models whose products are computed together then: as [`CurvatureError::Thread`] where it is that, else as
    /// [`CurvatureError::Network`] with its sentence.
    pub fn each<T: Send>(
        &self,
        curvature: Curvature,
        work: impl Fn(usize, &dyn Symmetric) -> Result<T, CurvatureError> + Sync,
    ) -> Vec<Result<T, CurvatureError>> {
        // Of whole blocks.
        let step = AT_ONCE / self.size * self.size;
        let groups = (0..self.models).step_by(step as usize);
        groups
            .flat_map(|start| {
                let group = start as usize..(start + step).min(self.models) as usize;
                self.group(curvature, group, &work)
            })
            .collect()
    }

    fn group<T: Send>(
        &self,
        curvature: Curvature,
        group: std::ops::Range<usize>,
        work: &(impl Fn(usize, &dyn Symmetric) -> Result<T, CurvatureError> + Sync),
    ) -> Vec<Result<T, CurvatureError>> {
        // As for the workers: the models' threads need the cores.
        let _alone = Alone::new();
        let meeting = Meeting::default();
        scope(|scope| {
            let mut replies = BTreeMap::new();
            let start = |model: usize| {
                if !self.finite[model] {
                    return Err(CurvatureError::NotFinite);
                }
                let (reply, answers) = channel();
                let guest =
                    Guest { model, count: self.count, options: self.options, meeting: &meeting, answers };
                meeting.state().running += 1;
                let run = move || {
                    tch::set_num_threads(1);
                    // Dropped in a panic too: the others must not wait for it.
                    let leaving = Leaving(guest);
                    work(model, &leaving.0)
                };
                let thread = Builder::new().spawn_scoped(scope, run).map_err(|_| {
                    meeting.leave();
                    CurvatureError::Thread
                })?;
                replies.insert(model, reply);
                Ok(thread)
            };
            let threads: Vec<_> = group.map(start).collect();
            while let Some((asked, vectors)) = meeting.next() {
                for (model, answer) in self.answers(curvature, &asked, vectors) {
                    // One that is gone has said so.
                    let _ = replies[&model].send(answer);
                }
            }
            threads.into_iter().map(|thread| thread?.join().unwrap_or(Err(CurvatureError::Thread))).collect()
        })
    }

    /// Of these models, with as many vectors each.
    fn answers(
        &self,
        curvature: Curvature,
        asked: &BTreeMap<usize, Tensor>,
        vectors: i64,
    ) -> Vec<(usize, Answer)> {
        let found = || -> Result<Vec<(usize, Answer)>, CurvatureError> {
            let none = Tensor::f_zeros([vectors, self.count], self.options)?;
            let models = |start: i64| start as usize..(start + self.size).min(self.models) as usize;
            let block = |start: i64| -> Result<Option<Tensor>, CurvatureError> {
                if asked.range(models(start)).next().is_none() {
                    return Ok(None);
                }
                let rows: Vec<&Tensor> =
                    models(start).map(|model| asked.get(&model).unwrap_or(&none)).collect();
                Ok(Some(Tensor::f_stack(&rows, 0)?))
            };
            let blocks = self.starts().map(block).collect::<Result<Vec<_>, _>>()?;
            let mut answers = Vec::with_capacity(asked.len());
            for (start, products) in self.starts().zip(self.blocks(curvature, &blocks)?) {
                let Some(products) = products else { continue };
                let finite = products.f_isfinite()?.f_flatten(1, -1)?.f_all_dim(1, false)?;
                let finite: Vec<bool> = Vec::try_from(&finite.f_to_device(Device::Cpu)?)?;
                for (&model, _) in asked.range(models(start)) {
                    let row = model as i64 - start;
                    let answer = if finite[row as usize] {
                        Ok(products.f_select(0, row)?)
                    } else {
                        Err(CurvatureError::NotFinite)
                    };
                    answers.push((model, answer));
                }
            }
            Ok(answers)
        };
        found().unwrap_or_else(|error| asked.keys().map(|&model| (model, Err(again(&error)))).collect())
    }

    /// Where the blocks begin.
    fn starts(&self) -> impl Iterator<Item = i64> {
        (0..self.models).step_by(self.size as usize)
    }

    /// Of each block `[m, K, P]` that is there.
    fn blocks(
        &self,
        curvature: Curvature,
        blocks: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>, CurvatureError> {
        let _alone = (self.options.1 == Device::Cpu).then(Alone::new);
        let count = blocks.iter().flatten().next().map_or(0, |block| block.size()[1]);
        let mut all: Vec<Vec<Tensor>> = blocks.iter().map(|_| Vec::new()).collect();
        for start in (0..count).step_by(TOGETHER as usize) {
            let cut = |block: &Option<Tensor>| {
                block.as_ref().map(|t| t.f_narrow(1, start, TOGETHER.min(count - start))).transpose()
            };
            let some = blocks.iter().map(cut).collect::<Result<Vec<_>, _>>()?;
            for (all, found) in all.iter_mut().zip(self.some_blocks(curvature, &some)?) {
                all.extend(found);
            }
        }
        let whole = |mut parts: Vec<Tensor>| -> Result<Option<Tensor>, CurvatureError> {
            Ok(if parts.len() > 1 { Some(Tensor::f_cat(&parts, 1)?) } else { parts.pop() })
        };
        all.into_iter().map(whole).collect()
    }

    fn some_blocks(
        &self,
        curvature: Curvature,
        blocks: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>, CurvatureError> {
        match &self.way {
            Way::OneByOne(operators) => {
                let one = |(operator, block): (&CurvatureOperator, &Option<Tensor>)| {
                    let Some(block) = block else { return Ok(None) };
                    match operator.products_of(curvature, &block.f_select(0, 0)?) {
                        Ok(products) => Ok(Some(products.f_unsqueeze(0)?)),
                        Err(CurvatureError::NotFinite) => Ok(Some(block.f_full_like(f64::NAN)?)),
                        Err(error) => Err(error),
                    }
                };
                operators.iter().zip(blocks).map(one).collect()
            }
            Way::Together { tasks, workers } => {
                for worker in workers {
                    let blocks = blocks.iter().map(|block| block.as_ref().map(Tensor::shallow_clone));
                    worker.send(Job { curvature, blocks: blocks.collect() })?;
                }
                // In the tasks' order. After an error the others are still fetched: the next product must not find them.
                let mut sums: Vec<Option<Tensor>> = blocks.iter().map(|_| None).collect();
                let mut failed = None;
                for (index, &block) in tasks.iter().enumerate() {
                    if blocks[block].is_none() {
                        continue;
                    }
                    let part = workers[index % workers.len()].receive().and_then(|part| part);
                    let sum = part.and_then(|part| match sums[block].take() {
                        None => Ok(part),
                        Some(mut sum) => Ok(sum.f_add_(&part)?),
                    });
                    match sum {
                        Ok(sum) => sums[block] = Some(sum),
                        Err(error) => failed = Some(failed.unwrap_or(error)),
                    }
                }
                failed.map_or(Ok(sums), Err)
            }
        }
    }
}

/// The same for another model. Errors cannot be copied; what they say can.
fn again(error: &CurvatureError) -> CurvatureError {
    match error {
        CurvatureError::Thread => CurvatureError::Thread,
        other => NetworkError::Setting(other.to_string()).into(),
    }
}

/// What a stack's curvature is of; θ `[M, P]` is finite.
#[derive(Debug)]
struct Stack {
    network: Network,
    theta: Tensor,
    /// One for all models, or one each.
    examples: Vec<Examples>,
    loss: Loss,
}

impl Stack {
    fn share(&self) -> Self {
        Self {
            network: self.network.clone(),
            theta: self.theta.shallow_clone(),
            examples: self.examples.iter().map(Examples::share).collect(),
            loss: self.loss,
        }
    }

    /// Each model's operator, with its part of the memory.
    fn one_by_one(&self, threads: usize) -> Result<Way, CurvatureError> {
        let models = self.theta.size()[0];
        let operator = |model: i64| {
            let examples = &self.examples[if self.examples.len() == 1 { 0 } else { model as usize }];
            let theta = self.theta.f_select(0, model)?;
            CurvatureOperator::one_of(models, &self.network, &theta, examples, self.loss, threads)
        };
        Ok(Way::OneByOne((0..models).map(operator).collect::<Result<_, _>>()?))
    }

    /// How many models a block has, and the threads that multiply.
    fn together(&self, threads: usize) -> Result<(i64, Way), CurvatureError> {
        let (models, kind, device) = (self.theta.size()[0], self.theta.kind(), self.theta.device());
        // Shapes first, for an error that can be read.
        let _ = self.linearised((0, models), 0, 1)?;
        let on_cpu = device == Device::Cpu;
        let examples = self.examples[0].count();
        let piece = PIECE[usize::from(!on_cpu)].min(examples);
        // θ and the two forms of a direction, all for each direction.
        let weights = 3 * self.network.count();
        let (most, room) = if StackedLinearised::by_kernels(&self.network, self.loss, (kind, device)) {
            // These go model by model: nothing is computed that nobody asks for.
            (1, 1)
        } else if on_cpu {
            (CPU_MODELS, CPU_NUMBERS / (piece * self.network.widest()).max(weights))
        } else {
            let activations = piece * Linearised::working_bytes(&self.network, (kind, device));
            let each = activations.max(weights * kind.elt_size_in_bytes() as i64);
            (AT_ONCE, WORKING_BYTES[1] / (TOGETHER * each))
        };
        let size = room.clamp(1, most).min(models);
        let keeps = Linearised::bytes(&self.network, (kind, device)) * examples * models
            <= KEPT_BYTES[usize::from(!on_cpu)];

        let blocks: Vec<(i64, i64)> =
            (0..models).step_by(size as usize).map(|start| (start, size.min(models - start))).collect();
        let pieces: Vec<i64> = (0..examples).step_by(piece as usize).collect();
        // Sums of pieces that one thread adds up: as many as keep the threads of a large machine busy, whatever their number is here.
        let groups = (GROUPS / blocks.len()).clamp(1, pieces.len());
        let tasks: Vec<Task> = blocks
            .iter()
            .enumerate()
            .flat_map(|(block, &models)| (0..groups).map(move |group| (block, models, group)))
            .map(|(block, models, group)| {
                let range = group * pieces.len() / groups..(group + 1) * pieces.len() / groups;
                Task { block, models, pieces: pieces[range].to_vec() }
            })
            .collect();
        let threads = if on_cpu { threads.max(1) } else { 1 }.min(tasks.len());
        let worker = |worker: usize| {
            let mut mine = Share {
                stack: self.share(),
                piece,
                keeps,
                tasks: tasks.iter().skip(worker).step_by(threads).cloned().collect(),
                kept: BTreeMap::new(),
            };
            Worker::start(on_cpu, move |job: Job, done| {
                (0..mine.tasks.len()).try_for_each(|task| match &job.blocks[mine.tasks[task].block] {
                    Some(vectors) => done.send(mine.products(task, job.curvature, vectors)),
                    None => Ok(()),
                })
            })
        };
        let workers = (0..threads).map(worker).collect::<Result<_, _>>()?;
        Ok((size, Way::Together { tasks: tasks.iter().map(|task| task.block).collect(), workers }))
    }

    /// Some models, from one on, around some examples.
    fn linearised(
        &self,
        (first, models): (i64, i64),
        start: i64,
        length: i64,
    ) -> Result<StackedLinearised, CurvatureError> {
        let theta = self.theta.f_narrow(0, first, models)?;
        let (x, targets) = match self.examples.as_slice() {
            [shared] => shared.part(start, length)?,
            own => {
                let own = &own[first as usize..(first + models) as usize];
                let parts = own.iter().map(|one| one.part(start, length)).collect::<Result<Vec<_>, _>>()?;
                let (x, targets): (Vec<Tensor>, Vec<Tensor>) = parts.into_iter().unzip();
                (Tensor::f_stack(&x, 0)?, Tensor::f_stack(&targets, 0)?)
            }
        };
        let share = 1. / self.examples[0].count() as f64;
        Ok(StackedLinearised::of(&self.network, &theta, &x, &targets, self.loss, share)?)
    }
}

/// A block of models with some of the examples.
#[derive(Debug, Clone)]
struct Task {
    block: usize,
    /// The first, and how many.
    models: (i64, i64),
    /// Where they begin.
    pieces: Vec<i64>,
}

/// A worker's part.
struct Share {
    stack: Stack,
    piece: i64,
    keeps: bool,
    tasks: Vec<Task>,
    /// By block and where they begin.
    kept: BTreeMap<(usize, i64), StackedLinearised>,
}

impl Share {
    fn products(
        &mut self,
        task: usize,
        curvature: Curvature,
        vectors: &Tensor,
    ) -> Result<Tensor, CurvatureError> {
        let Task { block, models, pieces } = &self.tasks[task];
        let mut sum: Option<Tensor> = None;
        for &start in pieces {
            let part = if let Some(piece) = self.kept.get(&(*block, start)) {
                piece.products(curvature, vectors)?
            } else {
                let length = self.piece.min(self.stack.examples[0].count() - start);
                let piece = self.stack.linearised(*models, start, length)?;
                let part = piece.products(curvature, vectors)?;
                if self.keeps {
                    self.kept.insert((*block, start), piece);
                }
                part
            };
            sum = Some(match sum {
                None => part,
                Some(mut sum) => sum.f_add_(&part)?,
            });
        }
        sum.ok_or(CurvatureError::Thread)
    }
}

type Answer = Result<Tensor, CurvatureError>;

/// Where the models' threads hand in what they ask for. Only the last to come wakes the one that answers.
#[derive(Default)]
struct Meeting {
    state: Mutex<State>,
    complete: Condvar,
}

#[derive(Default)]
struct State {
    running: usize,
    /// By model, vectors `[K, P]`.
    asked: BTreeMap<usize, Tensor>,
}

impl State {
    fn complete(&self) -> bool {
        self.asked.len() >= self.running
    }
}

impl Meeting {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, model: usize, vectors: Tensor) {
        let mut state = self.state();
        state.asked.insert(model, vectors);
        if state.complete() {
            self.complete.notify_one();
        }
    }

    fn leave(&self) {
        let mut state = self.state();
        state.running -= 1;
        if state.complete() {
            self.complete.notify_one();
        }
    }

    /// Waits for all that run, then takes out those with the fewest vectors, and how many these are. `None` when all have left.
    fn next(&self) -> Option<(BTreeMap<usize, Tensor>, i64)> {
        let mut state = self.state();
        while !state.complete() {
            state = self.complete.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let count = |vectors: &Tensor| vectors.size()[0];
        let least = state.asked.values().map(count).min()?;
        let all = std::mem::take(&mut state.asked);
        let (now, later) = all.into_iter().partition(|(_, vectors)| count(vectors) == least);
        state.asked = later;
        Some((now, least))
    }
}

/// A model's matrix on its own thread.
struct Guest<'a> {
    model: usize,
    count: i64,
    options: (Kind, Device),
    meeting: &'a Meeting,
    answers: Receiver<Answer>,
}

impl Symmetric for Guest<'_> {
    fn dimension(&self) -> i64 {
        self.count
    }

    fn options(&self) -> (Kind, Device) {
        self.options
    }

    fn products(&self, vectors: &Tensor) -> Result<Tensor, CurvatureError> {
        check_vectors(self, vectors)?;
        let (kind, device) = self.options;
        let vectors = vectors.f_detach()?.f_to_kind(kind)?.f_to_device(device)?;
        self.meeting.ask(self.model, vectors);
        self.answers.recv().unwrap_or(Err(CurvatureError::Thread))
    }
}

/// Says that its model asks for nothing more.
struct Leaving<'a>(Guest<'a>);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.meeting.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::gaussian;
    use crate::{
        DensitySettings, EigenSettings, Matrix, eigenpairs, hessian, hutch_plus_plus, hutchinson,
        spectral_density,
    };
    use flatland_network::device::{DeviceChoice, choose};
    use flatland_network::{Layer, Precision, initialise_stacked, set_deterministic, set_precision};
    use std::sync::mpsc::RecvTimeoutError;
    use std::time::Duration;

    fn relu() -> Network {
        Network::dense(&[4, 6, 3], &Layer::Relu).unwrap()
    }

    fn tanh() -> Network {
        Network::dense(&[4, 6, 5, 3], &Layer::Tanh).unwrap()
    }

    fn convolutional() -> Network {
        let layers = [
            Layer::Convolution { channels: 3, kernel: 3, padding: 0 },
            Layer::Relu,
            Layer::MaxPool { size: 2 },
            Layer::Dense { width: 3 },
        ];
        Network::new("convolutional", &[1, 6, 6], &layers).unwrap()
    }

    fn thetas(network: &Network, models: i64, kind: Kind) -> Tensor {
        let seeds: Vec<(u64, u32)> = (0..models as u64).map(|seed| (seed, 0)).collect();
        initialise_stacked(network, &seeds, kind, Device::Cpu).unwrap() * 1.5
    }

    fn examples(network: &Network, count: i64, loss: Loss, seed: u64) -> Examples {
        let size = [&[count], network.input()].concat();
        let all: i64 = size.iter().product();
        let x = gaussian(seed, 0, 1, all as usize, Device::Cpu).unwrap().view(size.as_slice());
        let targets = match loss {
            Loss::CrossEntropy => {
                Tensor::arange(count, (Kind::Int64, Device::Cpu)).remainder(network.outputs())
            }
            Loss::MeanSquaredError => x.flatten(1, -1).narrow(1, 0, network.outputs()).sin(),
        };
        Examples::new(x, targets).unwrap()
    }

    fn vectors(models: i64, count: i64, dimension: i64) -> Tensor {
        let all = gaussian(0, 0, (models * count) as usize, dimension as usize, Device::Cpu).unwrap();
        all.view([models, count, dimension])
    }

    fn distance(found: &Tensor, expected: &Tensor) -> f64 {
        let expected = expected.to_kind(Kind::Double);
        ((found.to_kind(Kind::Double) - &expected).norm() / expected.norm()).double_value(&[])
    }

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance * expected.abs(), "{found} {expected}");
    }

    /// More models than a block, more examples than a piece, more vectors than go at once; shared examples and their own.
    #[test]
    fn products_are_those_of_the_exact_hessians() {
        tch::set_num_threads(2);
        let cases = [
            (relu(), Loss::MeanSquaredError, 11),
            (tanh(), Loss::MeanSquaredError, 3),
            (tanh(), Loss::CrossEntropy, 3),
            (convolutional(), Loss::CrossEntropy, 2),
        ];
        for (network, loss, models) in cases {
            let theta = thetas(&network, models, Kind::Double);
            let shared = examples(&network, 600, loss, 5);
            let own: Vec<Examples> =
                (0..models).map(|model| examples(&network, 600, loss, 7 + model as u64)).collect();
            for own in [vec![&shared], own.iter().collect()] {
                let v = vectors(models, 18, network.count());
                for (kind, tolerance) in [(Kind::Double, 1e-10), (Kind::Float, 1e-4)] {
                    let stack = StackedCurvature::new(&network, &theta.to_kind(kind), &own, loss).unwrap();
                    let [h, g] = [Curvature::Hessian, Curvature::GaussNewton]
                        .map(|curvature| stack.products_of(curvature, &v).unwrap());
                    assert_eq!((h.size(), h.kind()), (v.size(), kind));
                    // From what was kept.
                    assert_eq!(stack.products_of(Curvature::Hessian, &v).unwrap(), h);
                    for model in 0..models {
                        let examples = own[if own.len() == 1 { 0 } else { model as usize }];
                        let (theta, v) = (theta.get(model), v.get(model));
                        let exact = hessian(&network, &theta, examples, loss).unwrap();
                        let error = distance(&h.get(model), &v.mm(&exact));
                        assert!(error < tolerance, "{} {loss:?} {model}: {error:.1e}", network.name());
                        let single = CurvatureOperator::new(&network, &theta, examples, loss).unwrap();
                        for (curvature, found) in [(Curvature::Hessian, &h), (Curvature::GaussNewton, &g)] {
                            let expected = single.products_of(curvature, &v).unwrap();
                            let error = distance(&found.get(model), &expected);
                            assert!(
                                error < tolerance,
                                "{} {curvature:?} {model}: {error:.1e}",
                                network.name()
                            );
                        }
                    }
                }
            }
        }
    }

    /// In phases of different lengths, with blocks of vectors of different sizes.
    #[test]
    fn estimators_find_for_each_model_what_they_find_alone() {
        tch::set_num_threads(2);
        for (network, loss, models) in [
            (relu(), Loss::MeanSquaredError, 10),
            (tanh(), Loss::CrossEntropy, 3),
            (convolutional(), Loss::CrossEntropy, 2),
        ] {
            let (theta, examples) = (thetas(&network, models, Kind::Double), examples(&network, 60, loss, 5));
            let estimate = |model: usize, matrix: &dyn Symmetric| {
                let eigen = EigenSettings {
                    largest: 2,
                    smallest: 1,
                    tolerance: 1e-9,
                    block: 1 + model % 3,
                    ..EigenSettings::default()
                };
                let pairs = eigenpairs(matrix, eigen, &|_| true)?;
                let range = hutch_plus_plus(matrix, 12 + 6 * (model % 4), 3)?.trace.value;
                let trace = hutchinson(matrix, 1e-9, 20, 3, &|_| true)?;
                let density =
                    spectral_density(matrix, DensitySettings { probes: 2, steps: 5, seed: 1 }, &|_| true)?;
                let nodes = density.into_iter().flat_map(|one| one.nodes);
                let numbers = [range, trace.trace.value, trace.frobenius.value];
                Ok::<Vec<f64>, CurvatureError>(pairs.values.into_iter().chain(numbers).chain(nodes).collect())
            };
            for curvature in [Curvature::Hessian, Curvature::GaussNewton] {
                let stack = StackedCurvature::new(&network, &theta, &[&examples], loss).unwrap();
                let found = stack.each(curvature, estimate);
                assert_eq!(found.len(), models as usize);
                for (model, found) in found.into_iter().enumerate() {
                    let theta = theta.get(model as i64);
                    let single = CurvatureOperator::new(&network, &theta, &examples, loss).unwrap();
                    let expected = estimate(model, &single.of(curvature)).unwrap();
                    let found = found.unwrap();
                    assert_eq!(found.len(), expected.len());
                    let scale = expected[0].abs();
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((found - expected).abs() < 1e-8 * scale, "{model}: {found} {expected}");
                    }
                }
            }
            // And what is found is the exact matrix's.
            let exact = hessian(&network, &theta.get(0), &examples, loss).unwrap();
            let expected = estimate(0, &Matrix(exact)).unwrap();
            let stack = StackedCurvature::new(&network, &theta, &[&examples], loss).unwrap();
            let found = stack.each(Curvature::Hessian, estimate).swap_remove(0).unwrap();
            for (found, expected) in found.iter().zip(&expected).take(3) {
                close(*found, *expected, 1e-7);
            }
        }
    }

    /// What a model asks for: so many rounds of so many vectors each, and the sum of what comes back.
    fn asks(model: usize, matrix: &dyn Symmetric) -> Result<Tensor, CurvatureError> {
        let dimension = matrix.dimension() as usize;
        let mut sum = Tensor::f_zeros([matrix.dimension()], matrix.options())?;
        for round in 0..3 + model % 4 {
            let v = gaussian(model as u64, round as u32, 1 + (model + round) % 3, dimension, Device::Cpu)?;
            let products = matrix.products(&v)?;
            assert_eq!(products.size(), v.size());
            sum = sum.f_add(&products.f_sum_dim_intlist(Some([0i64].as_slice()), false, None)?)?;
        }
        Ok(sum)
    }

    /// In f32 by kernels where they fit, in f64 by libtorch's operators.
    #[test]
    fn numbers_depend_on_nothing_but_the_model() {
        let (network, loss) = (relu(), Loss::MeanSquaredError);
        let examples = examples(&network, 700, loss, 5);
        for (kind, overflowing) in [(Kind::Float, 1e30), (Kind::Double, 1e200)] {
            let theta = thetas(&network, 19, kind);
            let found = |threads: usize, theta: &Tensor| {
                tch::set_num_threads(1);
                let stack =
                    StackedCurvature::with_threads(&network, theta, &[&examples], loss, threads).unwrap();
                stack.each(Curvature::Hessian, asks)
            };
            let alone: Vec<Tensor> = found(1, &theta).into_iter().map(Result::unwrap).collect();
            for threads in [1, 2, 3] {
                let again: Vec<Tensor> = found(threads, &theta).into_iter().map(Result::unwrap).collect();
                assert!(again == alone, "{kind:?}, {threads} threads");
            }
            // One that is not finite, and one that overflows on the way, leave the others their numbers.
            let spoilt = theta.copy();
            let _ = spoilt.get(3).get(7).fill_(f64::NAN);
            let _ = spoilt.get(12).fill_(overflowing);
            for (model, found) in found(2, &spoilt).into_iter().enumerate() {
                if [3, 12].contains(&model) {
                    assert!(matches!(found, Err(CurvatureError::NotFinite)), "{kind:?} {model}: {found:?}");
                } else {
                    assert_eq!(found.unwrap(), alone[model], "{kind:?} {model}");
                }
            }
            let stack = StackedCurvature::new(&network, &spoilt, &[&examples], loss).unwrap();
            let products = stack.products_of(Curvature::Hessian, &vectors(19, 1, network.count())).unwrap();
            let finite: Vec<bool> =
                Vec::try_from(&products.isfinite().flatten(1, -1).all_dim(1, false)).unwrap();
            assert!((0..19).all(|model| finite[model] != [3, 12].contains(&model)), "{kind:?} {finite:?}");
        }
    }

    /// Fails where `work` does, and where it does not come to an end: a test of threads must not hang.
    fn comes_to_an_end(work: impl FnOnce() + Send + 'static) {
        let (done, ended) = channel();
        let thread = std::thread::spawn(move || {
            work();
            let _ = done.send(());
        });
        assert!(ended.recv_timeout(Duration::from_secs(600)) != Err(RecvTimeoutError::Timeout), "a deadlock");
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    #[test]
    fn a_model_that_stops_early_holds_up_nobody() {
        comes_to_an_end(stop_early);
    }

    fn stop_early() {
        tch::set_num_threads(2);
        for (network, models) in [(relu(), 70), (convolutional(), 5)] {
            let loss = Loss::MeanSquaredError;
            let theta = thetas(&network, models, Kind::Double);
            let examples = examples(&network, 20, loss, 5);
            let stack = StackedCurvature::new(&network, &theta, &[&examples], loss).unwrap();
            let all: Vec<Tensor> =
                stack.each(Curvature::Hessian, asks).into_iter().map(Result::unwrap).collect();
            let found = stack.each(Curvature::Hessian, |model, matrix| match model {
                0 => Ok(Tensor::new()),
                1 => Err(CurvatureError::Stopped),
                2 => {
                    let _ = matrix.products(&Tensor::ones([1, matrix.dimension()], matrix.options()))?;
                    panic!("as a test wants it")
                }
                // Refused before it is asked for, and the model goes on.
                3 => {
                    let short = Tensor::ones([1, 2], matrix.options());
                    assert!(matches!(matrix.products(&short), Err(CurvatureError::Shape { .. })));
                    asks(model, matrix)
                }
                _ => asks(model, matrix),
            });
            assert_eq!(found.len(), models as usize);
            for (model, found) in found.into_iter().enumerate() {
                match (model, found) {
                    (0, Ok(nothing)) => assert!(!nothing.defined()),
                    (1, Err(CurvatureError::Stopped)) | (2, Err(CurvatureError::Thread)) => {}
                    (_, Ok(found)) => assert_eq!(found, all[model]),
                    (model, other) => panic!("{model}: {other:?}"),
                }
            }
            let none =
                stack.each(Curvature::Hessian, |_, _| -> Result<(), _> { Err(CurvatureError::Stopped) });
            assert!(none.into_iter().all(|one| matches!(one, Err(CurvatureError::Stopped))));
            // And it still works.
            assert_eq!(stack.each(Curvature::Hessian, asks).swap_remove(4).unwrap(), all[4]);
        }
    }

    /// One model has a class that the network does not: those that are multiplied with it get its error, one that asks for nothing its result.
    #[test]
    fn an_error_reaches_those_that_wait_with_it() {
        tch::set_num_threads(2);
        let (network, loss) = (tanh(), Loss::CrossEntropy);
        let theta = thetas(&network, 10, Kind::Double);
        let good = examples(&network, 20, loss, 5);
        let targets = good.targets().copy();
        let _ = targets.get(7).fill_(network.outputs());
        let bad = good.relabelled(targets).unwrap();
        let own: Vec<&Examples> = (0..10).map(|model| if model == 1 { &bad } else { &good }).collect();
        let stack = StackedCurvature::new(&network, &theta, &own, loss).unwrap();
        let is_said = |error: &CurvatureError| {
            matches!(error, CurvatureError::Network(_)) && error.to_string().contains("out of bounds")
        };
        // Twice: nothing of the first is left for the second.
        for _ in 0..2 {
            let error = stack.products_of(Curvature::Hessian, &vectors(10, 2, network.count())).unwrap_err();
            assert!(is_said(&error), "{error}");
            let found = stack.each(Curvature::Hessian, |model, matrix| match model {
                4 => Ok(None),
                _ => asks(model, matrix).map(Some),
            });
            for (model, found) in found.into_iter().enumerate() {
                match (model, found) {
                    (4, Ok(None)) => {}
                    (model, Err(error)) if model != 4 => assert!(is_said(&error), "{model}: {error}"),
                    (model, other) => panic!("{model}: {other:?}"),
                }
            }
        }
        assert!(matches!(again(&CurvatureError::Thread), CurvatureError::Thread));
    }

    /// On an accelerator, where there is one: against the CPU in f64.
    #[test]
    fn products_on_an_accelerator() {
        let Ok(chosen) = choose(DeviceChoice::Cuda(0)) else { return };
        tch::set_num_threads(1);
        set_precision(Precision::F32).unwrap();
        set_deterministic(true).unwrap();
        for (network, loss, models) in [
            (relu(), Loss::MeanSquaredError, 70),
            (tanh(), Loss::CrossEntropy, 3),
            (convolutional(), Loss::CrossEntropy, 2),
        ] {
            let theta = thetas(&network, models, Kind::Double);
            let examples = examples(&network, 3000, loss, 5);
            let there = |t: &Tensor| {
                let t = if t.is_floating_point() { t.to_kind(Kind::Float) } else { t.shallow_clone() };
                t.to_device(chosen.device)
            };
            let on_card =
                Examples::new(there(&examples.inputs().unwrap()), there(examples.targets())).unwrap();
            let truth = StackedCurvature::new(&network, &theta, &[&examples], loss).unwrap();
            let stack = StackedCurvature::new(&network, &there(&theta), &[&on_card], loss).unwrap();
            let v = vectors(models, 3, network.count());
            for curvature in [Curvature::Hessian, Curvature::GaussNewton] {
                let found = stack.products_of(curvature, &v).unwrap().to_device(Device::Cpu);
                let error = distance(&found, &truth.products_of(curvature, &v).unwrap());
                assert!(error < 1e-4, "{} {curvature:?}: {error:.1e}", network.name());
                let largest = |_: usize, matrix: &dyn Symmetric| {
                    let one = EigenSettings { largest: 1, tolerance: 1e-5, ..EigenSettings::default() };
                    Ok(eigenpairs(matrix, one, &|_| true)?.values[0])
                };
                let found = stack.each(curvature, largest);
                for (found, expected) in found.into_iter().zip(truth.each(curvature, largest)) {
                    close(found.unwrap(), expected.unwrap(), 1e-3);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        tch::set_num_threads(1);
        let (network, loss) = (tanh(), Loss::CrossEntropy);
        let theta = thetas(&network, 3, Kind::Float);
        let [some, fewer] = [20, 19].map(|count| examples(&network, count, loss, 5));
        let new = |theta: &Tensor, examples: &[&Examples], loss| {
            StackedCurvature::new(&network, theta, examples, loss)
        };
        assert!(new(&theta.get(0), &[&some], loss).unwrap_err().to_string().contains("[M, 83]"));
        assert!(new(&theta, &[&some, &some], loss).unwrap_err().to_string().contains("once or 3 times"));
        assert!(new(&theta, &[&some, &some, &fewer], loss).is_err());
        assert!(new(&theta, &[], loss).is_err());
        assert!(new(&theta, &[&some], Loss::MeanSquaredError).is_err());
        let stack = new(&theta, &[&some], loss).unwrap();
        // A dimension too many, though the examples are as many as the models.
        for inputs in [&[1, 5, 4][..], &[5, 1, 4]] {
            let targets = Tensor::zeros([inputs[0]], (Kind::Int64, Device::Cpu));
            let deep = Examples::new(Tensor::ones(inputs, (Kind::Float, Device::Cpu)), targets).unwrap();
            let error = new(&theta.narrow(0, 0, 1), &[&deep], loss).unwrap_err();
            assert!(error.to_string().contains("an example has shape"), "{error}");
        }
        let error = stack.products_of(Curvature::Hessian, &vectors(2, 1, network.count())).unwrap_err();
        assert!(error.to_string().contains("[3, K, 83]"), "{error}");
    }
}
