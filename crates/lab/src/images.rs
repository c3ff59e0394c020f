//! A data set of images, made ready for a network and put on the device.

use crate::run::Run;
use anyhow::{Context, Result, bail, ensure};
use flatland_data::{DataSet, DataSetName, LoadOptions, Size32, Split, load, to_32, to_f32};
use flatland_network::Examples;
use flatland_record::DataSetRecord;
use ndarray::s;
use serde::{Deserialize, Serialize};

/// How images are made ready.
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

impl ImageSettings {
    /// Refuses subsets of more examples than every data set here has.
    pub fn check(&self) -> Result<()> {
        for (key, count, all) in [("images.train", self.train, 60_000), ("images.test", self.test, 10_000)] {
            ensure!(count <= all, "{key} must be at most {all}, or 0 for all, found {count}");
        }
        Ok(())
    }
}

/// Both splits on the device: `[N, 1, 32, 32]`, normalised by the mean and standard deviation of the training images.
#[derive(Debug)]
pub struct Images {
    /// For training.
    pub train: Examples,
    /// For testing.
    pub test: Examples,
}

impl Images {
    /// A handle for another thread.
    pub fn share(&self) -> Self {
        Self { train: self.train.share(), test: self.test.share() }
    }

    /// Loads (or makes) the data set, writes into the manifest what it is, and puts it on the run's device.
    pub fn load(run: &Run, name: DataSetName, settings: &ImageSettings) -> Result<Self> {
        let options = LoadOptions { data_dir: run.data_dir.clone(), ..LoadOptions::default() };
        let DataSet { name, mut train, mut test, checksums, origin } = load(name, &options, &run.progress)?;
        take_first(&mut train, settings.train, "images.train")?;
        take_first(&mut test, settings.test, "images.test")?;

        let (mean, deviation) = mean_and_deviation(&train);
        let way = match settings.size32 {
            Size32::Pad => "padded by 2",
            Size32::Resize => "resized bilinearly",
        };
        run.record_data_set(DataSetRecord {
            name: name.to_string(),
            origin,
            checksums,
            train: train.labels.len(),
            test: test.labels.len(),
            preparation: format!("28x28 {way} to 32x32, then (p / 255 - {mean}) / {deviation}"),
        })?;
        let ready = |split: Split| -> Result<Examples> {
            let Split { images, labels } = split;
            let large = to_32(&images, settings.size32);
            drop(images);
            let numbers = to_f32(&large, mean, deviation);
            drop(large);
            Examples::images(&numbers, &labels, run.device.device)
                .context("the images do not fit on the device")
        };
        Ok(Self { train: ready(train)?, test: ready(test)? })
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
