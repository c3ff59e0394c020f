//! Whose minimum is looked at: a model that the run trains, or weights of the user's own.

use crate::command::Flag;
use crate::images::{Form, ImageSettings, Preparation};
use anyhow::{Context, Result, ensure};
use flatland_network::snapshot::from_safetensors;
use flatland_network::{Layer, Network};
use std::path::Path;
use tch::{Kind, Tensor};

/// `--network`, for the key `network`.
pub const NETWORK: Flag = Flag {
    name: "network",
    key: "network",
    many: false,
    file: false,
    value_name: "NAME",
    help: "Network: lenet, or the widths of a dense one with ReLU, for instance 784-100-10",
    excludes: &[],
};

/// `--weights`, for the key `weights`.
pub const WEIGHTS: Flag = Flag {
    name: "weights",
    key: "weights",
    many: true,
    file: true,
    value_name: "FILE",
    help: "Weights of your own, a .safetensors file from PyTorch or from a run here, in place of training; may be repeated",
    excludes: &[],
};

/// Classes of every data set here.
const CLASSES: i64 = 10;
/// Pixels of an image as dense networks take them.
const PIXELS: i64 = 28 * 28;

/// The network of the setting `network`: `lenet`, or a dense one by its widths.
///
/// # Errors
/// One sentence, for another name, or widths that do not go from 784 pixels to 10 classes.
pub fn network(name: &str) -> Result<Network> {
    if name == "lenet" {
        return Ok(Network::lenet());
    }
    let widths: Option<Vec<i64>> = name.split('-').map(|width| width.parse().ok()).collect();
    let widths = widths.with_context(|| {
        format!("network must be lenet or widths such as {PIXELS}-100-{CLASSES}, found {name:?}")
    })?;
    ensure!(
        widths.len() >= 2 && widths[0] == PIXELS && widths[widths.len() - 1] == CLASSES,
        "network must go from {PIXELS} pixels to {CLASSES} classes, for instance {PIXELS}-100-{CLASSES}, found {name:?}"
    );
    Network::dense(&widths, &Layer::Relu).with_context(|| format!("network {name:?}"))
}

/// How the images of `settings` are made ready for it: normalised, 32x32 for LeNet, 784 numbers for dense networks.
pub fn preparation(network: &Network, settings: &ImageSettings) -> Preparation {
    let preparation = settings.preparation();
    if network.input().len() == 1 { Preparation { form: Form::Flat, ..preparation } } else { preparation }
}

/// θ `[P]` on the CPU (f32) from a file of weights.
///
/// # Errors
/// One sentence with the path: when it cannot be read, is of another network, or holds numbers that are not finite.
pub fn weights(network: &Network, path: &Path) -> Result<Tensor> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the weights {}", path.display()))?;
    let theta = from_safetensors(network, &bytes)
        .with_context(|| format!("cannot use the weights {}", path.display()))?
        .f_to_kind(Kind::Float)?;
    check_finite(&theta, &format!("the weights {} hold", path.display()))?;
    Ok(theta)
}

/// Refuses NaN and infinity; `what` is for the sentence.
pub fn check_finite(numbers: &Tensor, what: &str) -> Result<()> {
    let count = numbers.numel() as i64 - numbers.f_isfinite()?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    ensure!(count == 0, "{what} {count} numbers that are not finite (NaN or infinite)");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_network::initialise;
    use flatland_network::snapshot::to_safetensors;
    use tch::Device;

    #[test]
    fn networks_by_name() {
        assert_eq!(network("lenet").unwrap().count(), 61_706);
        assert_eq!(network("784-100-10").unwrap().count(), 79_510);
        for wrong in ["", "lenet5", "784", "784-10-", "10-784", "784-0-10", "784--10", "784-x-10"] {
            let error = format!("{:#}", network(wrong).unwrap_err());
            assert!(error.starts_with("network "), "{error}");
        }
    }

    #[test]
    fn weights_are_read_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (path, network) = (folder.path().join("w.safetensors"), network("784-3-10").unwrap());
        let theta = initialise(&network, 0, 0, Kind::Float, Device::Cpu).unwrap();
        let error = |network: &Network| format!("{:#}", weights(network, &path).unwrap_err());
        assert!(error(&network).contains("w.safetensors"));
        std::fs::write(&path, to_safetensors(&network, &theta).unwrap()).unwrap();
        assert_eq!(weights(&network, &path).unwrap(), theta);
        assert!(error(&Network::lenet()).contains("w.safetensors"));
        let _ = theta.get(7).fill_(f64::NAN);
        std::fs::write(&path, to_safetensors(&network, &theta).unwrap()).unwrap();
        assert!(error(&network).contains("1 numbers that are not finite"), "{}", error(&network));
    }
}
