//! A model of the user's own as a TorchScript module, with data of their own: `--module` and `--data`.

use crate::command::Flag;
use crate::images::Images;
use crate::run::Run;
use crate::subject::check_finite;
use anyhow::{Context, Result, bail, ensure};
use flatland_network::{Examples, Loss, Module};
use flatland_record::{DataSetRecord, sha256_hex};
use ndarray::{ArrayD, OwnedRepr};
use ndarray_npy::{NpzReader, ReadNpyError, ReadNpzError, ReadableElement};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// `--module`, for the key `module`.
pub const MODULE: Flag = Flag {
    name: "module",
    key: "module",
    many: false,
    file: true,
    value_name: "FILE",
    help: "Model of your own, a TorchScript module (torch.jit.script(model).save(FILE)), in place of training; needs --data",
    excludes: &["weights", "network", "dataset"],
};

/// `--data`, for the key `data`.
pub const DATA: Flag = Flag {
    name: "data",
    key: "data",
    many: false,
    file: true,
    value_name: "FILE",
    help: "Data for --module, .npz or .safetensors: x [N, ...], y [N] (classes) or [N, D] (values); x_test and y_test if there are any",
    excludes: &["dataset"],
};

/// Names of the inputs and of the targets, any of each.
const NAMES: [[&str; 3]; 2] = [["x", "images", "inputs"], ["y", "labels", "targets"]];

/// What a model is looked at with.
#[derive(Debug)]
pub struct Splits {
    pub train: Examples,
    /// Not all data have one.
    pub test: Option<Examples>,
    pub loss: Loss,
    /// What was done to them, in words.
    pub prepared: String,
}

impl Splits {
    pub fn of(images: &Images) -> Self {
        let Images { train, test, prepared } = images.share();
        Self { train, test: Some(test), loss: Loss::CrossEntropy, prepared }
    }

    /// A handle for another thread.
    pub fn share(&self) -> Self {
        let test = self.test.as_ref().map(Examples::share);
        Self { train: self.train.share(), test, loss: self.loss, prepared: self.prepared.clone() }
    }
}

/// Refuses settings that name two models, or one without data. Empty words are none, and `lenet`, which every preset has, no network
/// that was asked for.
pub fn check(module: &str, data: &str, weights: &[String], network: &str) -> Result<()> {
    ensure!(module.is_empty() || weights.is_empty(), "module and weights are two models: give one of them");
    ensure!(
        module.is_empty() || network == "lenet",
        "a module is its own network: leave out network, found {network:?}"
    );
    ensure!(module.is_empty() || !data.is_empty(), "a module needs data of its own: give --data FILE");
    ensure!(
        data.is_empty() || !module.is_empty(),
        "data are for a module: give --module FILE, or leave out data"
    );
    Ok(())
}

/// The last part of a path, for figures and tables.
pub fn file_name(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path)
}

/// Module and data on the run's device, tried on each other; the manifest then says which files they are.
pub fn load(run: &Run, module: &str, data: &str) -> Result<(Module, Splits)> {
    let device = run.device.device;
    let read = |what: &str, path: &str| {
        std::fs::read(path).with_context(|| format!("cannot read the {what} {path}"))
    };
    let bytes = read("module", module)?;
    let mut checksums = BTreeMap::from([(file_name(module).to_owned(), sha256_hex(&bytes))]);
    let found = Module::load(file_name(module), bytes.into(), device)?;
    check_finite(&found.theta()?, &format!("the module {module} holds"))?;

    let bytes = read("data", data)?;
    checksums.insert(file_name(data).to_owned(), sha256_hex(&bytes));
    let splits = splits(data, &bytes, device).with_context(|| format!("cannot use the data {data}"))?;
    for examples in [Some(&splits.train), splits.test.as_ref()].into_iter().flatten() {
        found.check(examples, splits.loss)?;
    }
    run.record_data_set(DataSetRecord {
        name: file_name(data).to_owned(),
        origin: data.to_owned(),
        checksums,
        train: splits.train.count() as usize,
        test: splits.test.as_ref().map_or(0, |test| test.count() as usize),
        preparation: splits.prepared.clone(),
    })?;
    Ok((found, splits))
}

/// The arrays of a file, by name.
type Arrays = BTreeMap<String, Tensor>;

fn splits(path: &str, bytes: &[u8], device: Device) -> Result<Splits> {
    let arrays = match Path::new(path).extension().and_then(|end| end.to_str()) {
        Some("npz") => from_npz(bytes)?,
        Some("safetensors") => Tensor::read_safetensors(path)
            .map_err(|error| anyhow::anyhow!("it is no safetensors file ({error})"))?
            .into_iter()
            .collect(),
        _ => bail!("its name must end in .npz or .safetensors"),
    };
    let (x, y) = pair(&arrays, "")?.with_context(|| {
        let [x, y] = NAMES.map(|names| names.join(" or "));
        let found = arrays.keys().cloned().collect::<Vec<_>>().join(", ");
        format!("it must have an array {x} and an array {y}, found {found}")
    })?;
    let loss = if y.is_floating_point() { Loss::MeanSquaredError } else { Loss::CrossEntropy };
    let test = pair(&arrays, "_test")?;
    if let Some((_, test)) = &test {
        ensure!(
            test.kind() == y.kind() && test.size()[1..] == y.size()[1..],
            "y and y_test are of two kinds or shapes"
        );
    }
    let examples = |(x, y): (Tensor, Tensor)| -> Result<Examples> {
        Ok(Examples::new(x.f_to_device(device)?, y.f_to_device(device)?)?)
    };
    let bytes = if x.kind() == Kind::Uint8 { ", bytes as numbers from 0 to 255" } else { "" };
    Ok(Splits {
        train: examples((x, y))?,
        test: test.map(examples).transpose()?,
        loss,
        prepared: format!("as they are in the file{bytes}"),
    })
}

/// Inputs and targets of one split, if the file has both.
fn pair(arrays: &Arrays, split: &str) -> Result<Option<(Tensor, Tensor)>> {
    let find = |names: [&str; 3]| {
        let names = names.map(|name| format!("{name}{split}"));
        let there: Vec<&String> = names.iter().filter(|name| arrays.contains_key(*name)).collect();
        ensure!(there.len() < 2, "its arrays {} and {} are one too many", there[0], there[1]);
        Ok(there.first().map(|name| ((*name).clone(), arrays[*name].shallow_clone())))
    };
    let ((x_name, x), (y_name, y)) = match (find(NAMES[0])?, find(NAMES[1])?) {
        (Some(x), Some(y)) => (x, y),
        (None, None) => return Ok(None),
        (Some((name, _)), None) | (None, Some((name, _))) => {
            let [x, y] = NAMES.map(|names| names.map(|name| format!("{name}{split}")).join(" or "));
            bail!("its array {name} is alone: it must have both {x}, and {y}");
        }
    };
    ensure!(
        matches!(x.kind(), Kind::Float | Kind::Double | Kind::Uint8),
        "its array {x_name} holds {:?} numbers, expected float32, float64 or uint8",
        x.kind()
    );
    let (shape, count) = (y.size(), x.size().first().copied().unwrap_or(0));
    ensure!(
        count > 0 && x.numel() > 0 && shape.first() == Some(&count),
        "its array {x_name} has shape {:?} and {y_name} {shape:?}: both must begin with the number of examples, at least 1",
        x.size()
    );
    let y = match y.kind() {
        Kind::Uint8 | Kind::Int | Kind::Int64 => {
            ensure!(
                shape.len() == 1,
                "its array {y_name} holds classes and has shape {shape:?}, expected [{count}]"
            );
            y.f_to_kind(Kind::Int64)?
        }
        Kind::Float | Kind::Double => {
            ensure!(
                shape.len() == 2,
                "its array {y_name} holds values and has shape {shape:?}, expected [{count}, D] (for classes, integers)"
            );
            y
        }
        other => bail!(
            "its array {y_name} holds {other:?} numbers, expected integers (int64, int32, uint8) for classes, or float32 or float64"
        ),
    };
    for (name, array) in [(&x_name, &x), (&y_name, &y)] {
        check_finite(array, &format!("its array {name} holds"))?;
    }
    Ok(Some((x, y)))
}

/// Those of its arrays that have one of the names.
fn from_npz(bytes: &[u8]) -> Result<Arrays> {
    let mut file = NpzReader::new(Cursor::new(bytes)).context("it is no .npz file")?;
    let mut arrays = Arrays::new();
    for name in file.names().context("it is no .npz file")? {
        let known = NAMES.concat().iter().any(|known| name.strip_suffix("_test").unwrap_or(&name) == *known);
        if known {
            arrays
                .insert(name.clone(), array(&mut file, &name).with_context(|| format!("its array {name}"))?);
        }
    }
    Ok(arrays)
}

type File<'a> = NpzReader<Cursor<&'a [u8]>>;

fn array(file: &mut File, name: &str) -> Result<Tensor> {
    let found = match (typed::<f32>(file, name)?, typed::<f64>(file, name)?, typed::<u8>(file, name)?) {
        (Some(array), ..) | (_, Some(array), _) | (.., Some(array)) => Some(array),
        _ => match typed::<i64>(file, name)? {
            None => typed::<i32>(file, name)?,
            found => found,
        },
    };
    found.context("its numbers must be float32, float64, uint8, int32 or int64")
}

/// `None` where it holds other numbers.
fn typed<T: ReadableElement + tch::kind::Element + Clone>(
    file: &mut File,
    name: &str,
) -> Result<Option<Tensor>> {
    let array: ArrayD<T> = match file.by_name::<OwnedRepr<T>, _>(name) {
        Ok(array) => array,
        Err(ReadNpzError::Npy(ReadNpyError::WrongDescriptor(_))) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let shape: Vec<i64> = array.shape().iter().map(|&n| n as i64).collect();
    // NumPy may have stored it column by column.
    let numbers: Vec<T> = array.iter().cloned().collect();
    Ok(Some(Tensor::f_from_slice(&numbers)?.f_view(shape.as_slice())?))
}
