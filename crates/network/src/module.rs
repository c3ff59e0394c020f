//! A model of the user's own: a TorchScript module as a function of one flat θ.

use crate::evaluation::Sums;
use crate::{Evaluation, Examples, Loss, Network, NetworkError, Parameter, Result, graph};
use std::sync::Arc;
use tch::{CModule, Device, Kind, TchError, Tensor};

/// A TorchScript module (`torch.jit.script` or `torch.jit.trace`) that takes one tensor of inputs `[B, …]` and returns one of outputs,
/// `[B, C]` or `[B, D]`.
///
/// θ `[P]` is made of its parameters that require a gradient, flattened, one after the other in the module's order; a parameter with several
/// names is there once. The others stay as they are. It is always in evaluation mode: batch normalisation takes its running mean and variance, dropout
/// does nothing. f32 or f64, whatever its parameters are.
#[derive(Debug)]
pub struct Module {
    name: String,
    /// The file's, for other threads.
    bytes: Arc<[u8]>,
    script: CModule,
    parameters: Vec<Parameter>,
    /// The module's own tensors.
    leaves: Vec<Tensor>,
    options: (Kind, Device),
}

/// A module does not say how large its activations are: they are taken to be so many times as wide as its input.
const WIDEST: i64 = 16;
/// Numbers of the widest activation of a piece, on a CPU and on an accelerator.
const PIECE: [i64; 2] = [1 << 19, 1 << 26];
/// Examples of a piece at most, there and there.
const MOST: [i64; 2] = [256, 4096];
/// In libtorch's words for a device that is full.
const FULL: &str = "out of memory";
/// With so many a module is tried.
const TRIED: i64 = 8;

impl Module {
    /// From the bytes of a file that `torch.jit.save` wrote; `name` is for messages.
    ///
    /// # Errors
    /// [`NetworkError::Module`] for another file, and for a module without parameters to differentiate by, or whose parameters are not all f32
    /// or all f64.
    pub fn load(name: &str, bytes: Arc<[u8]>, device: Device) -> Result<Self> {
        let refuse = |reason: String| NetworkError::Module { name: name.to_owned(), reason };
        let mut script = CModule::load_data_on_device(&mut bytes.as_ref(), device).map_err(|error| {
            refuse(format!(
                "it is no TorchScript file; write one with torch.jit.script(model).save(path), not with torch.save ({})",
                cause(&error)
            ))
        })?;
        script.f_set_eval()?;
        let (mut parameters, mut leaves, mut offset) = (Vec::<Parameter>::new(), Vec::<Tensor>::new(), 0);
        for (name, mut leaf) in script.named_parameters()? {
            if !leaf.requires_grad() || leaf.numel() == 0 {
                continue;
            }
            if let Some(known) = leaves.iter().position(|known| known.data_ptr() == leaf.data_ptr()) {
                // One tensor under two names moves as one; two tensors that share memory would part.
                leaf.f_set_data(&leaf.f_detach_copy()?)?;
                if leaf.data_ptr() == leaves[known].data_ptr() {
                    continue;
                }
                let other = &parameters[known].name;
                return Err(refuse(format!(
                    "its parameters {other} and {name} are two tensors in one memory"
                )));
            }
            if !matches!(leaf.kind(), Kind::Float | Kind::Double) {
                let kind = leaf.kind();
                return Err(refuse(format!(
                    "its parameter {name} holds {kind:?} numbers, expected f32 or f64: save model.float()"
                )));
            }
            let shape = leaf.size();
            let fan_in = shape.iter().skip(1).product();
            parameters.push(Parameter { name, shape, offset, fan_in });
            offset += leaf.numel() as i64;
            leaves.push(leaf);
        }
        let Some(kind) = leaves.first().map(Tensor::kind) else {
            return Err(refuse(
                "it has no parameters that require a gradient; save it neither frozen nor after requires_grad_(False)".into(),
            ));
        };
        if leaves.iter().any(|leaf| leaf.kind() != kind) {
            return Err(refuse("its parameters are partly f32 and partly f64: save model.float()".into()));
        }
        Ok(Self { name: name.to_owned(), bytes, script, parameters, leaves, options: (kind, device) })
    }

    /// The same for another thread, with θ as it is in the file.
    ///
    /// # Errors
    /// When the device is full.
    pub fn again(&self) -> Result<Self> {
        Self::load(&self.name, Arc::clone(&self.bytes), self.options.1)
    }

    /// The name that it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where each parameter lies in θ. `fan_in` is the product of the shape's dimensions but the first.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// P.
    pub fn count(&self) -> i64 {
        self.parameters.iter().map(Parameter::count).sum()
    }

    /// In what it computes, and where.
    pub fn options(&self) -> (Kind, Device) {
        self.options
    }

    /// The parameters themselves: what [`Module::forward`]'s outputs are differentiated by, in θ's order.
    pub fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    /// θ `[P]` as it is now, a copy.
    ///
    /// # Errors
    /// When the device is full.
    pub fn theta(&self) -> Result<Tensor> {
        let parts = self.leaves.iter().map(|leaf| leaf.f_detach()?.f_reshape([-1]));
        Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>, TchError>>()?, 0)?)
    }

    /// Gives the module a copy of θ `[P]`, in its own precision and on its device. It is changed though it is borrowed, as a
    /// `Cell`: no two threads share one.
    ///
    /// # Errors
    /// [`NetworkError::Shape`] for another number of entries.
    pub fn set(&self, theta: &Tensor) -> Result<()> {
        if theta.size() != [self.count()] {
            let expected = format!("[{}]", self.count());
            return Err(NetworkError::Shape { what: "θ", found: theta.size(), expected });
        }
        let (kind, device) = self.options;
        let theta = theta.f_detach_copy()?.f_to_device(device)?.f_to_kind(kind)?;
        for (leaf, parameter) in self.leaves.iter().zip(&self.parameters) {
            leaf.shallow_clone().f_set_data(&parameter.of(&theta)?)?;
        }
        Ok(())
    }

    /// The outputs of inputs `[B, …]`, with their graph where libtorch records one. Inputs become numbers of the module's precision: bytes 0
    /// to 255.
    ///
    /// # Errors
    /// [`NetworkError::Module`] when the module refuses them.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // Operator by operator: what libtorch makes of a module after its first calls has other rounding, and derivatives of its own. It
        // remembers that by thread.
        tch::jit::f_set_graph_executor_optimize(false)?;
        let x = x.f_to_kind(self.options.0)?;
        self.script.forward_ts(&[&x]).map_err(|error| {
            let cause = cause(&error);
            self.refuse(if cause.contains(FULL) {
                cause
            } else {
                format!("it cannot be applied to inputs of shape {:?}: {cause}", x.size())
            })
        })
    }

    /// Loss and accuracy over all examples, in pieces, at θ as it is now.
    ///
    /// # Errors
    /// [`NetworkError::Module`] or [`NetworkError::Shape`] when the examples do not fit.
    pub fn evaluate(&self, examples: &Examples, loss: Loss) -> Result<Evaluation> {
        let _no_grad = tch::no_grad_guard();
        let sums = self.pieces(examples)?.into_iter().map(|(start, length)| {
            let (x, targets) = examples.part(start, length)?;
            self.sums(&self.forward(&x)?, &targets, loss).map(|(sums, _)| sums)
        });
        let all = sums.reduce(|sum, piece| Ok(sum?.plus(piece?)));
        Ok(all.ok_or_else(|| self.refuse("there are no examples".into()))??.mean(examples))
    }

    /// The same, and the gradient of the mean loss with respect to θ, `[P]`.
    ///
    /// # Errors
    /// As [`Module::evaluate`]; and [`NetworkError::Module`] where the loss has no gradient.
    pub fn loss_and_gradient(&self, examples: &Examples, loss: Loss) -> Result<(Evaluation, Tensor)> {
        let mut all: Option<(Sums, Tensor)> = None;
        for (start, length) in self.pieces(examples)? {
            let (x, targets) = examples.part(start, length)?;
            let (sums, mean) = self.sums(&self.forward(&x)?, &targets, loss)?;
            if !mean.requires_grad() {
                return Err(self.not_differentiable());
            }
            let share = length as f64 / examples.count() as f64;
            let gradients = graph::backward(&[mean.f_mul_scalar(share)?], &self.leaves, false, false)
                .map_err(|error| self.refuse(format!("its loss has no gradient: {}", cause(&error))))?;
            let gradient = flat(&gradients, &self.leaves)?;
            all = Some(match all {
                None => (sums, gradient),
                Some((sum, mut so_far)) => (sum.plus(sums), so_far.f_add_(&gradient)?),
            });
        }
        let (sums, gradient) = all.ok_or_else(|| self.refuse("there are no examples".into()))?;
        Ok((sums.mean(examples), gradient))
    }

    /// Tries it on the first examples.
    ///
    /// # Errors
    /// [`NetworkError::Module`], in one sentence, when it does not take them or returns anything but one tensor that fits the targets; when that
    /// does not depend differentiably on θ; when it changes its input or its parameters; or when it returns something else each time.
    pub fn check(&self, examples: &Examples, loss: Loss) -> Result<()> {
        let few = examples.first(TRIED.min(examples.count()))?;
        let x = few.inputs()?.f_to_kind(self.options.0)?;
        let versions = || self.leaves.iter().map(Tensor::f_internal_version).collect::<Result<Vec<_>, _>>();
        let (version, before) = (x.f_internal_version()?, versions()?);
        let outputs = self.forward(&x)?;
        if x.f_internal_version()? != version {
            let reason = "it changes its input in place, so that no second pass sees the same: let it work on x.clone()";
            return Err(self.refuse(reason.into()));
        }
        if let Some(changed) = before.iter().zip(versions()?).position(|(before, after)| *before != after) {
            let name = &self.parameters[changed].name;
            return Err(self.refuse(format!(
                "it changes its parameter {name} in place: compute a new tensor from it instead"
            )));
        }
        if !outputs.is_floating_point() || !outputs.requires_grad() {
            return Err(self.not_differentiable());
        }
        let size = outputs.size();
        if size.len() != 2 || size[0] != few.count() {
            let count = few.count();
            return Err(self.refuse(format!(
                "of {count} inputs its outputs have shape {size:?}, expected [{count}, C] for classes or [{count}, D] for values"
            )));
        }
        if loss == Loss::CrossEntropy {
            // All of them: on an accelerator, a class that is not there would end the process.
            let (low, high) = examples.targets().f_aminmax(None, false)?;
            let (low, high) = (low.f_int64_value(&[])?, high.f_int64_value(&[])?);
            if low < 0 || high >= size[1] {
                return Err(self.refuse(format!(
                    "its {} outputs are for the classes 0 to {}, and the data have classes from {low} to {high}",
                    size[1],
                    size[1] - 1
                )));
            }
        }
        let _ = self.loss_and_gradient(&few, loss)?;
        let again = self.forward(&x)?;
        if !again.f_allclose(&outputs, 1e-4, 1e-6, true)? {
            let reason = "it returns something else for the same input each time: leave out what is random, such as dropout with training=True";
            return Err(self.refuse(reason.into()));
        }
        Ok(())
    }

    /// How many examples go through at once, by the size of an input.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn piece(&self, examples: &Examples) -> Result<i64> {
        let device = usize::from(self.options.1 != Device::Cpu);
        let width = (WIDEST * examples.part(0, 1)?.0.numel() as i64).max(1);
        Ok((PIECE[device] / width).clamp(1, MOST[device]).min(examples.count()))
    }

    /// Where each piece begins, and how long it is.
    fn pieces(&self, examples: &Examples) -> Result<Vec<(i64, i64)>> {
        let (piece, count) = (self.piece(examples)?, examples.count());
        Ok((0..count).step_by(piece as usize).map(|start| (start, piece.min(count - start))).collect())
    }

    /// Of a piece: its sums, and its mean loss with the graph.
    fn sums(&self, outputs: &Tensor, targets: &Tensor, loss: Loss) -> Result<(Sums, Tensor)> {
        let targets = if targets.is_floating_point() {
            targets.f_to_kind(self.options.0)?
        } else {
            targets.shallow_clone()
        };
        let mean = loss.mean(outputs, &targets)?;
        let hits = loss.correct(outputs, &targets)?.map(|hits| hits.f_int64_value(&[])).transpose()?;
        Ok((Sums { loss: mean.f_double_value(&[])? * targets.size()[0] as f64, hits }, mean))
    }

    /// The error of a second derivative that libtorch does not have.
    pub fn not_twice(&self, error: &TchError) -> NetworkError {
        let cause = cause(error);
        if cause.contains(FULL) {
            return self.refuse(cause);
        }
        let hint =
            if cause.contains("scaled_dot_product") { "; write attention as matmul and softmax" } else { "" };
        self.refuse(format!("its loss cannot be differentiated twice: {cause}{hint}"))
    }

    fn refuse(&self, reason: String) -> NetworkError {
        NetworkError::Module { name: self.name.clone(), reason }
    }

    fn not_differentiable(&self) -> NetworkError {
        let reason = "its output does not depend differentiably on its parameters: leave out detach, no_grad and argmax, and let it return what \
            the loss takes, such as logits";
        self.refuse(reason.into())
    }
}

/// Derivatives with respect to several tensors as one vector; where there is none, zeros.
///
/// # Errors
/// When libtorch fails.
pub fn flat(derivatives: &[Tensor], by: &[Tensor]) -> Result<Tensor> {
    let parts = derivatives.iter().zip(by).map(|(part, by)| {
        if part.defined() { part.f_reshape([-1]) } else { by.f_detach()?.f_zeros_like()?.f_reshape([-1]) }
    });
    Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>, TchError>>()?, 0)?)
}

/// What libtorch says of an error in a module: one sentence, below TorchScript's own trace and above that of C++.
fn cause(error: &TchError) -> String {
    let message = error.to_string();
    let lines = || message.lines().map(str::trim).filter(|line| !line.is_empty());
    let told = lines().find_map(|line| line.split_once("Error: ").map(|(_, told)| told));
    let told = told.or_else(|| lines().next()).unwrap_or_default();
    let told = told.strip_prefix("Internal torch error: ").unwrap_or(told);
    told.split(". ").next().unwrap_or_default().to_owned()
}

/// What computes outputs from inputs and one flat θ: a network of ours, or a module of the user's own.
#[derive(Debug)]
pub enum Model {
    /// Ours.
    Network(Network),
    /// Theirs.
    Module(Module),
}

impl Model {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Network(network) => network.name(),
            Self::Module(module) => module.name(),
        }
    }

    /// Where each parameter lies in θ.
    pub fn parameters(&self) -> &[Parameter] {
        match self {
            Self::Network(network) => network.parameters(),
            Self::Module(module) => module.parameters(),
        }
    }

    /// P.
    pub fn count(&self) -> i64 {
        match self {
            Self::Network(network) => network.count(),
            Self::Module(module) => module.count(),
        }
    }

    /// The same for another thread.
    ///
    /// # Errors
    /// As [`Module::again`].
    pub fn again(&self) -> Result<Self> {
        Ok(match self {
            Self::Network(network) => Self::Network(network.clone()),
            Self::Module(module) => Self::Module(module.again()?),
        })
    }

    /// [`crate::evaluate_many`] of either. A module keeps the last θ.
    ///
    /// # Errors
    /// As [`crate::evaluate_many`] and [`Module::evaluate`].
    pub fn evaluate_many(&self, thetas: &Tensor, examples: &Examples, loss: Loss) -> Result<Vec<Evaluation>> {
        match self {
            Self::Network(network) => crate::evaluate_many(network, thetas, examples, loss),
            Self::Module(module) => {
                let of = |theta: Tensor| {
                    module.set(&theta)?;
                    module.evaluate(examples, loss)
                };
                thetas.f_unbind(0)?.into_iter().map(of).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn bytes(name: &str) -> Arc<[u8]> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/modules");
        std::fs::read(folder.join(format!("{name}.pt"))).unwrap().into()
    }

    fn module(name: &str) -> Module {
        Module::load(name, bytes(name), Device::Cpu).unwrap()
    }

    fn ramp(shape: &[i64], kind: Kind) -> Tensor {
        let count: i64 = shape.iter().product();
        (Tensor::arange(count, (kind, Device::Cpu)) * 0.37).sin().view(shape)
    }

    fn examples(shape: &[i64], classes: i64, kind: Kind) -> Examples {
        let labels = Tensor::arange(shape[0], (Kind::Int64, Device::Cpu)).remainder(classes);
        Examples::new(ramp(shape, kind), labels).unwrap()
    }

    #[test]
    fn a_module_computes_what_the_network_with_its_weights_computes() {
        let network = Network::dense(&[7, 9, 6, 4], &crate::Layer::Relu).unwrap();
        let (module, examples) = (module("dense"), examples(&[300, 7], 4, Kind::Double));
        for (ours, theirs) in network.parameters().iter().zip(module.parameters()) {
            assert_eq!((&ours.name, &ours.shape, ours.offset), (&theirs.name, &theirs.shape, theirs.offset));
        }
        assert_eq!(module.options(), (Kind::Double, Device::Cpu));
        module.check(&examples, Loss::CrossEntropy).unwrap();
        for scale in [1., -0.7] {
            let theta = module.theta().unwrap() * scale;
            module.set(&theta).unwrap();
            assert_eq!(module.theta().unwrap(), theta);
            let expected = crate::evaluate(&network, &theta, &examples, Loss::CrossEntropy).unwrap();
            let (found, gradient) = module.loss_and_gradient(&examples, Loss::CrossEntropy).unwrap();
            assert!((found.loss - expected.loss).abs() < 1e-14 && found.accuracy == expected.accuracy);
            assert_eq!(module.evaluate(&examples, Loss::CrossEntropy).unwrap(), found);
            let (x, targets) = (examples.inputs().unwrap(), examples.targets());
            let batch = crate::loss_and_gradient(&network, &theta, &x, targets, Loss::CrossEntropy).unwrap();
            assert!(gradient.allclose(&batch.gradient, 1e-12, 1e-14, false));
        }
        assert!(module.set(&Tensor::zeros([3], (Kind::Double, Device::Cpu))).is_err());
    }

    /// What is saved in training mode is evaluated without dropout, and each example alone.
    #[test]
    fn it_is_in_evaluation_mode_and_frozen_parameters_stay() {
        let module = module("smooth");
        let names: Vec<&str> = module.parameters().iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["conv.weight", "conv.bias", "norm.weight", "norm.bias", "fc.weight", "fc.bias"]);
        module.check(&examples(&[20, 1, 6, 6], 3, Kind::Double), Loss::CrossEntropy).unwrap();
        let x = ramp(&[5, 1, 6, 6], Kind::Double);
        let all = module.forward(&x).unwrap();
        assert!(module.forward(&x.narrow(0, 3, 1)).unwrap().allclose(
            &all.narrow(0, 3, 1),
            1e-12,
            1e-14,
            false
        ));
    }

    #[test]
    fn a_parameter_with_two_names_is_one() {
        let module = module("tied");
        assert_eq!(module.count(), 16);
        let theta = module.theta().unwrap() * 3.;
        module.set(&theta).unwrap();
        let (weight, x) = (theta.view([4, 4]), ramp(&[2, 4], Kind::Float));
        let expected = x.matmul(&weight.tr()).tanh().matmul(&weight.tr());
        assert!(module.forward(&x).unwrap().allclose(&expected, 1e-5, 1e-6, false));
    }

    #[test]
    fn bytes_are_the_numbers_0_to_255() {
        let module = module("dense");
        let x = Tensor::arange(14, (Kind::Uint8, Device::Cpu)).view([2, 7]);
        assert_eq!(module.forward(&x).unwrap(), module.forward(&x.to_kind(Kind::Double)).unwrap());
    }

    #[test]
    fn what_cannot_be_used_is_said_in_one_sentence() {
        let classified = examples(&[10, 4], 3, Kind::Float);
        for (name, said) in [
            ("detached", "does not depend differentiably"),
            ("classes", "does not depend differentiably"),
            ("pair", "inputs of shape [8, 4]: forward did not return a tensor"),
            ("in-place-input", "changes its input in place"),
            ("in-place-parameter", "changes its parameter fc.bias in place"),
            ("random", "something else for the same input"),
        ] {
            let error = module(name).check(&classified, Loss::CrossEntropy).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(name) && error.lines().count() == 1, "{error}");
        }
        let refused = |examples: Examples, loss: Loss| {
            module("not-finite").check(&examples, loss).unwrap_err().to_string()
        };
        let error = refused(examples(&[10, 5], 3, Kind::Float), Loss::CrossEntropy);
        assert!(error.contains("cannot be multiplied") && error.lines().count() == 1, "{error}");
        let error = refused(examples(&[10, 4], 4, Kind::Float), Loss::CrossEntropy);
        assert!(error.contains("classes 0 to 2, and the data have classes from 0 to 3"), "{error}");
        let values = Examples::new(ramp(&[10, 4], Kind::Float), ramp(&[10, 2], Kind::Float)).unwrap();
        assert!(refused(values, Loss::MeanSquaredError).contains("targets"));
        for (bytes, said) in
            [(bytes("frozen"), "no parameters that require"), (b"PK no".as_slice().into(), "no TorchScript")]
        {
            let error = Module::load("m.pt", bytes, Device::Cpu).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("m.pt") && error.lines().count() == 1, "{error}");
        }
    }
}
