//! A data set of images, made ready for a network and put on the device.

use crate::run::Run;
use anyhow::{Context, Result, bail, ensure};
use flatland_data::{
    DataSet, DataSetName, LoadOptions, Size32, Split, corrupt_labels, grey_values, load, to_32,
};
use flatland_network::Examples;
use flatland_network::streams::{Purpose, stream};
use flatland_record::DataSetRecord;
use ndarray::{Array3, s};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Images for LeNet: 32x32, normalised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSettings {
    /// From 28x28 to 32x32: `pad` with 2 zeros on every side, or `resize` bilinearly as the report's notebook does.
    pub size32: Size32,
    /// Training examples used, from the first; 0 for all.
    pub train: usize,
    /// Test examples used, from the first; 0 for all.
    pub test: usize,
}

/// Images as they are, 28x28, for the other networks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PixelSettings {
    /// Whether pixels are normalised by the mean and standard deviation of the training images, rather than in [0, 1].
    pub normalise: bool,
    /// Training examples used, from the first; 0 for all.
    pub train: usize,
    /// Test examples used, from the first; 0 for all.
    pub test: usize,
}

/// What becomes of the images on their way to a network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preparation {
    /// How one image lies in a tensor.
    pub form: Form,
    /// See [`PixelSettings::normalise`].
    pub normalise: bool,
    /// Training examples used, from the first; 0 for all.
    pub train: usize,
    /// Test examples used, from the first; 0 for all.
    pub test: usize,
}

/// How one image lies in a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// `[1, 32, 32]`.
    Large(Size32),
    /// `[1, 28, 28]`.
    Image,
    /// `[784]`, row by row.
    Flat,
}

impl ImageSettings {
    /// As LeNet takes them.
    pub fn preparation(&self) -> Preparation {
        Preparation { form: Form::Large(self.size32), normalise: true, train: self.train, test: self.test }
    }
}

impl PixelSettings {
    /// As convolutions take them.
    pub fn image(&self) -> Preparation {
        Preparation { form: Form::Image, normalise: self.normalise, train: self.train, test: self.test }
    }

    /// As dense networks take them.
    pub fn flat(&self) -> Preparation {
        Preparation { form: Form::Flat, ..self.image() }
    }
}

impl Preparation {
    /// Refuses subsets of more examples than every data set here has.
    pub fn check(&self) -> Result<()> {
        for (key, count, all) in [("images.train", self.train, 60_000), ("images.test", self.test, 10_000)] {
            ensure!(count <= all, "{key} must be at most {all}, or 0 for all, found {count}");
        }
        Ok(())
    }

    /// The largest batch that can be.
    pub fn most(&self) -> i64 {
        if self.train == 0 { 60_000 } else { self.train as i64 }
    }
}

/// Both splits on the device.
#[derive(Debug)]
pub struct Images {
    /// For training.
    pub train: Examples,
    /// For testing.
    pub test: Examples,
    /// What was done to them, in words: with the files' checksums, all that their numbers depend on.
    pub prepared: String,
}

impl Images {
    /// A handle for another thread.
    pub fn share(&self) -> Self {
        Self { train: self.train.share(), test: self.test.share(), prepared: self.prepared.clone() }
    }

    /// Loads (or makes) the data set, writes into the manifest what it is, and puts it on the run's device.
    pub fn load(run: &Run, name: DataSetName, preparation: Preparation) -> Result<Self> {
        let data = PixelData::load(run, name, preparation)?;
        data.images(run, &data.train, &data.test, data.prepared.clone())
    }

    /// The first training images with these labels, and the same test images; inputs share memory.
    pub fn relabelled(&self, labels: &[u8], prepared: String) -> Result<Self> {
        let classes: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
        let targets = Tensor::f_from_slice(&classes)?.f_to_device(self.train.device())?;
        let train = self.train.first(labels.len() as i64)?.relabelled(targets)?;
        Ok(Self { train, test: self.test.share(), prepared })
    }
}

/// Both splits before they go to the device, for experiments that tamper with the training examples.
#[derive(Debug)]
pub struct PixelData {
    /// Grey values and labels for training.
    pub train: Split,
    /// For testing.
    pub test: Split,
    /// What will be done to them, in words.
    pub prepared: String,
    preparation: Preparation,
    mean: f32,
    deviation: f32,
}

impl PixelData {
    /// Loads (or makes) the data set, and writes into the manifest what it is.
    pub fn load(run: &Run, name: DataSetName, preparation: Preparation) -> Result<Self> {
        let options = LoadOptions { data_dir: run.data_dir.clone(), ..LoadOptions::default() };
        let DataSet { name, mut train, mut test, checksums, origin } = load(name, &options, &run.progress)?;
        take_first(&mut train, preparation.train, "images.train")?;
        take_first(&mut test, preparation.test, "images.test")?;
        let (mean, deviation) = if preparation.normalise { mean_and_deviation(&train) } else { (0., 1.) };
        let way = match preparation.form {
            Form::Large(Size32::Pad) => "28x28 padded by 2 to 32x32",
            Form::Large(Size32::Resize) => "28x28 resized bilinearly to 32x32",
            Form::Image => "28x28",
            Form::Flat => "28x28 as 784 numbers",
        };
        let values = if preparation.normalise {
            format!("(p / 255 - {mean}) / {deviation}")
        } else {
            "p / 255".into()
        };
        let prepared = format!("{way}, then {values}");
        run.record_data_set(DataSetRecord {
            name: name.to_string(),
            origin,
            checksums,
            train: train.labels.len(),
            test: test.labels.len(),
            preparation: prepared.clone(),
        })?;
        Ok(Self { train, test, prepared, preparation, mean, deviation })
    }

    /// The labels of the first `count` training images, each replaced with probability `share` by a uniformly drawn one: for
    /// one seed always the same, in every experiment.
    pub fn random_labels(&self, count: usize, share: f64, seed: u64) -> Vec<u8> {
        let mut labels = self.train.labels[..count].to_vec();
        corrupt_labels(&mut labels, 10, share, &mut stream(seed, 0, 0, Purpose::Corruption));
        labels
    }

    /// On the device: these splits, whatever was done to them (`prepared` says it).
    pub fn images(&self, run: &Run, train: &Split, test: &Split, prepared: String) -> Result<Images> {
        let ready = |split: &Split| -> Result<Examples> {
            let (values, device) = (grey_values(self.mean, self.deviation), run.device.device);
            let on_device = |images: &Array3<u8>, input: &[i64]| {
                Examples::pixels(images, input, &values, &split.labels, device)
            };
            match self.preparation.form {
                Form::Large(way) => on_device(&to_32(&split.images, way), &[1, 32, 32]),
                Form::Image => on_device(&split.images, &[1, 28, 28]),
                Form::Flat => on_device(&split.images, &[28 * 28]),
            }
            .context("the images do not fit on the device")
        };
        Ok(Images { train: ready(train)?, test: ready(test)?, prepared })
    }
}

fn take_first(split: &mut Split, count: usize, key: &str) -> Result<()> {
    let all = split.labels.len();
    if count > all {
        bail!(
            "{key} must lie between 1 and the {all} examples that there are, or be 0 for all, found {count}"
        );
    }
    if count > 0 {
        split.images = split.images.slice(s![..count, .., ..]).to_owned();
        split.labels.truncate(count);
    }
    Ok(())
}

/// Of the pixels in [0, 1], over the training images, to four decimals as the field writes them: 0.1307 and 0.3081 for
/// MNIST.
fn mean_and_deviation(train: &Split) -> (f32, f32) {
    let mut histogram = [0u64; 256];
    for &pixel in &train.images {
        histogram[usize::from(pixel)] += 1;
    }
    let count = train.images.len() as f64;
    let moment = |f: &dyn Fn(f64) -> f64| {
        histogram.iter().enumerate().map(|(p, &n)| n as f64 * f(p as f64 / 255.)).sum::<f64>() / count
    };
    let mean = moment(&|p| p);
    let deviation = moment(&|p| (p - mean).powi(2)).sqrt();
    let rounded = |x: f64| ((x * 1e4).round() / 1e4) as f32;
    // A data set of one grey level has no spread to divide by.
    (rounded(mean), if deviation < 1e-4 { 1. } else { rounded(deviation) })
}
