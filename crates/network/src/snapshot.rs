//! θ outside of libtorch: ndarray for analysis, safetensors for PyTorch, checkpoints to go on from.

use crate::{Network, NetworkError, Optimiser, OptimiserSettings, Result};
use ndarray::{Array1, Array2};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use tch::{Device, Kind, Tensor};

/// θ `[P]` as numbers on the host.
///
/// # Errors
/// When θ is not a vector of floats.
pub fn to_ndarray(theta: &Tensor) -> Result<Array1<f64>> {
    Ok(Array1::from(Vec::<f64>::try_from(host(theta, Kind::Double)?)?))
}

/// Stacked θ `[M, P]` as numbers on the host.
///
/// # Errors
/// When θ is not a matrix of floats.
pub fn to_ndarray_stacked(theta: &Tensor) -> Result<Array2<f64>> {
    let size = theta.size();
    let refuse = || NetworkError::Shape { what: "θ", found: theta.size(), expected: "[M, P]".into() };
    let &[models, count] = size.as_slice() else {
        return Err(refuse());
    };
    let numbers = Vec::<f64>::try_from(host(&theta.f_reshape([-1])?, Kind::Double)?)?;
    Array2::from_shape_vec((models as usize, count as usize), numbers).map_err(|_| refuse())
}

/// θ from numbers on the host.
///
/// # Errors
/// When the device cannot hold it.
pub fn from_ndarray(theta: &Array1<f64>, kind: Kind, device: Device) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(&theta.to_vec())?.f_to_kind(kind)?.f_to_device(device)?)
}

/// The bytes of a safetensors file with PyTorch's names and shapes (`conv1.weight` `[6, 1, 5, 5]`, …), so that
/// `module.load_state_dict(safetensors.torch.load_file(path))` takes it.
///
/// # Errors
/// [`NetworkError::Shape`] when θ is not the network's.
pub fn to_safetensors(network: &Network, theta: &Tensor) -> Result<Vec<u8>> {
    let mut tensors = BTreeMap::new();
    insert_parameters(network, theta, &mut tensors)?;
    serialise(&host_bytes(&tensors)?, "format", "pt".into())
}

/// θ `[P]` on the CPU from the bytes of a safetensors file, in the file's precision (f32 or f64).
///
/// # Errors
/// [`NetworkError::Weights`] when the file is damaged, or a tensor is missing, superfluous or of another shape.
pub fn from_safetensors(network: &Network, bytes: &[u8]) -> Result<Tensor> {
    let refuse = |reason: String| NetworkError::Weights { network: network.name().into(), reason };
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| refuse(format!("not a safetensors file ({error})")))?;
    let known: Vec<&str> = network.parameters().iter().map(|parameter| parameter.name.as_str()).collect();
    if let Some(stranger) = file.names().into_iter().find(|name| !known.contains(name)) {
        return Err(refuse(format!(
            "it has no parameter named {stranger:?}; its own are {}",
            known.join(", ")
        )));
    }
    parameters_of(network, &file)
}

/// Where a training stands between two epochs: everything that the next epoch depends on.
#[derive(Debug)]
pub struct Checkpoint {
    /// θ `[P]`, on the CPU.
    pub theta: Tensor,
    /// Epochs done.
    pub epochs: u32,
    /// The caller's own notes, for instance the curves so far.
    pub notes: String,
    steps: u64,
    state: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// The bytes of a checkpoint: a safetensors file with θ by PyTorch's names, the optimiser's state as
    /// `optimiser.<name>`, and the counts in its metadata.
    ///
    /// # Errors
    /// When θ is not the network's.
    pub fn save(
        network: &Network,
        theta: &Tensor,
        optimiser: &Optimiser,
        epochs: u32,
        notes: &str,
    ) -> Result<Vec<u8>> {
        let mut tensors = BTreeMap::new();
        insert_parameters(network, theta, &mut tensors)?;
        for (name, tensor) in optimiser.state() {
            tensors.insert(format!("optimiser.{name}"), tensor.f_to_device(Device::Cpu)?.f_contiguous()?);
        }
        let mut header = Header {
            network: network.name().to_owned(),
            epochs,
            steps: optimiser.steps(),
            notes: notes.to_owned(),
            sha256: String::new(),
        };
        let data = host_bytes(&tensors)?;
        header.sha256 =
            header.checksum(data.iter().map(|(name, .., bytes)| (name.as_str(), bytes.as_slice())));
        let text = serde_json::to_string(&header)
            .map_err(|error| NetworkError::Setting(format!("a checkpoint's header: {error}")))?;
        serialise(&data, HEADER, text)
    }

    /// Reads what [`Checkpoint::save`] wrote.
    ///
    /// # Errors
    /// [`NetworkError::Weights`] when the file is damaged or another network's.
    pub fn load(network: &Network, bytes: &[u8]) -> Result<Self> {
        let refuse = |reason: String| NetworkError::Weights { network: network.name().into(), reason };
        let damaged = |error| refuse(format!("not a checkpoint ({error})"));
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let text = metadata.metadata().as_ref().and_then(|entries| entries.get(HEADER));
        let text = text.ok_or_else(|| refuse("a file of weights, not a checkpoint".into()))?;
        let header: Header = serde_json::from_str(text)
            .map_err(|error| refuse(format!("the checkpoint's header is damaged ({error})")))?;
        let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let theta = parameters_of(network, &file)?;
        let mut state = BTreeMap::new();
        for (name, view) in file.iter() {
            if let Some(name) = name.strip_prefix("optimiser.") {
                let tensor = tensor_of(&view, &refuse)?;
                if tensor.size() != theta.size() || tensor.kind() != theta.kind() {
                    return Err(refuse(format!(
                        "the optimiser's {name} has another shape or precision than the weights"
                    )));
                }
                state.insert(name.to_owned(), tensor);
            } else if !network.parameters().iter().any(|parameter| parameter.name == name) {
                return Err(refuse(format!("it has no parameter named {name:?}")));
            }
        }
        if header.network != network.name() {
            return Err(refuse(format!("they were saved from the network {}", header.network)));
        }
        let mut views: Vec<_> = file.iter().collect();
        views.sort_by_key(|(name, _)| *name);
        if header.checksum(views.iter().map(|(name, view)| (*name, view.data()))) != header.sha256 {
            return Err(refuse("the checkpoint's numbers are not those that were saved".into()));
        }
        Ok(Self { theta, epochs: header.epochs, notes: header.notes, steps: header.steps, state })
    }

    /// The optimiser as it was, on `device`.
    ///
    /// # Errors
    /// When the state is another optimiser's, or the device cannot hold it.
    pub fn optimiser(&self, settings: OptimiserSettings, device: Device) -> Result<Optimiser> {
        let state = self
            .state
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), tensor.f_to_device(device)?.f_detach_copy()?)))
            .collect::<Result<_>>()?;
        Optimiser::restore(settings, self.steps, state)
    }
}

/// The bytes of a safetensors file with these tensors (f32 or f64) under these names, and a checksum in its metadata.
///
/// # Errors
/// [`NetworkError::Setting`] for a tensor of another kind.
pub fn tensors_to_bytes(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    if let Some((name, tensor)) =
        tensors.iter().find(|(_, tensor)| !matches!(tensor.kind(), Kind::Float | Kind::Double))
    {
        let kind = tensor.kind();
        return Err(NetworkError::Setting(format!(
            "{name} holds {kind:?} numbers, expected Float or Double"
        )));
    }
    let hosted = tensors.iter().map(|(name, tensor)| Ok((name.clone(), host(tensor, tensor.kind())?)));
    let data = host_bytes(&hosted.collect::<Result<_>>()?)?;
    let sum = checksum(data.iter().map(|(name, .., bytes)| (name.as_str(), bytes.as_slice())), "");
    serialise(&data, HEADER, sum)
}

/// Reads what [`tensors_to_bytes`] wrote, on the CPU.
///
/// # Errors
/// [`NetworkError::Setting`] when the file is damaged.
pub fn tensors_from_bytes(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    let refuse = |reason: String| NetworkError::Setting(format!("not a file of kept numbers: {reason}"));
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| refuse(error.to_string()))?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| refuse(error.to_string()))?;
    let mut views: Vec<_> = file.iter().collect();
    views.sort_by_key(|(name, _)| *name);
    let sum = checksum(views.iter().map(|(name, view)| (*name, view.data())), "");
    if metadata.metadata().as_ref().and_then(|entries| entries.get(HEADER)) != Some(&sum) {
        return Err(refuse("its numbers are not those that were saved".into()));
    }
    views.into_iter().map(|(name, view)| Ok((name.to_owned(), tensor_of(&view, &refuse)?))).collect()
}

/// A checkpoint's counts, as one entry of its metadata: safetensors writes several in no fixed order.
#[derive(Serialize, Deserialize)]
struct Header {
    network: String,
    epochs: u32,
    steps: u64,
    notes: String,
    /// Of the tensors and of everything above.
    sha256: String,
}

const HEADER: &str = "flatland";

impl Header {
    fn checksum<'a>(&self, tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
        let Self { network, epochs, steps, notes, .. } = self;
        checksum(tensors, &format!("{network}\n{epochs}\n{steps}\n{notes}"))
    }
}

fn checksum<'a>(tensors: impl Iterator<Item = (&'a str, &'a [u8])>, text: &str) -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in tensors {
        hash.update(name);
        hash.update(bytes);
    }
    hash.update(text);
    format!("{:x}", hash.finalize())
}

fn host(tensor: &Tensor, kind: Kind) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(kind)?.f_contiguous()?)
}

fn insert_parameters(
    network: &Network,
    theta: &Tensor,
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<()> {
    network.check_theta(theta)?;
    if theta.dim() != 1 {
        return Err(NetworkError::Shape {
            what: "θ",
            found: theta.size(),
            expected: format!("[{}]", network.count()),
        });
    }
    let theta = host(theta, theta.kind())?;
    for parameter in network.parameters() {
        tensors.insert(parameter.name.clone(), parameter.of(&theta)?);
    }
    Ok(())
}

/// Name, precision, shape and bytes of a tensor.
type HostTensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn host_bytes(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<HostTensor>> {
    tensors
        .iter()
        .map(|(name, tensor)| {
            let double = tensor.kind() == Kind::Double;
            let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
            tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
            let shape = tensor.size().iter().map(|&n| n as usize).collect();
            Ok((name.clone(), if double { Dtype::F64 } else { Dtype::F32 }, shape, bytes))
        })
        .collect()
}

/// A safetensors file with one entry of metadata.
fn serialise(data: &[HostTensor], key: &str, value: String) -> Result<Vec<u8>> {
    let failed = |error| NetworkError::Setting(format!("safetensors: {error}"));
    let views = data
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    safetensors::serialize(views, Some(HashMap::from([(key.to_owned(), value)]))).map_err(failed)
}

fn parameters_of(network: &Network, file: &SafeTensors) -> Result<Tensor> {
    let refuse = |reason: String| NetworkError::Weights { network: network.name().into(), reason };
    let mut parts = Vec::new();
    for parameter in network.parameters() {
        let name = &parameter.name;
        let view = file.tensor(name).map_err(|_| refuse(format!("the file has no tensor named {name:?}")))?;
        let found: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        if found != parameter.shape {
            return Err(refuse(format!(
                "{name} has shape {found:?} in the file, expected {:?}",
                parameter.shape
            )));
        }
        parts.push(tensor_of(&view, &refuse)?.f_flatten(0, -1)?);
    }
    if parts.iter().any(|part| part.kind() != parts[0].kind()) {
        return Err(refuse("its tensors are of mixed precision".into()));
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}

fn tensor_of(view: &TensorView, refuse: &dyn Fn(String) -> NetworkError) -> Result<Tensor> {
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        other => return Err(refuse(format!("its numbers are {other:?}, expected F32 or F64"))),
    };
    let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
    Ok(Tensor::f_from_data_size(view.data(), &shape, kind)?)
}
