//! Curvature and surfaces of a LeNet, timed: our side of `scripts/bench geometry`, whose contract is in
//! scripts/reference/bench_geometry.py. One JSON line a measurement.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use flatland_data::{DataSetName, LoadOptions, Size32, grey_values, load, to_32};
use flatland_geometry::{
    Curvature, CurvatureOperator, DensitySettings, EigenSettings, Subspace, Symmetric, eigenpairs,
    hutchinson, spectral_density,
};
use flatland_network::device::{DeviceChoice, choose};
use flatland_network::snapshot::from_safetensors;
use flatland_network::{
    Examples, Loss, Model, Network, Precision, allocator, set_deterministic, set_precision,
};
use safetensors::SafeTensors;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Times one task on a LeNet with these weights.
#[derive(Parser)]
struct Arguments {
    /// hvp, ggn, top, trace, surface or spectrum
    task: String,
    /// The weights, a safetensors file
    #[arg(long)]
    weights: PathBuf,
    /// A safetensors file with `vectors` `[8, P]`, `u` and `v` `[P]`
    #[arg(long)]
    directions: PathBuf,
    /// The folder with the folder `mnist`
    #[arg(long)]
    data: PathBuf,
    /// Training images, the first so many
    #[arg(long, default_value_t = 10_000)]
    examples: usize,
    /// Vectors of a block
    #[arg(long, default_value_t = 1)]
    vectors: i64,
    /// Of residuals, or of the trace's standard error
    #[arg(long, default_value_t = 1e-3)]
    tolerance: f64,
    /// On each side of the surface
    #[arg(long, default_value_t = 51)]
    points: i64,
    /// Of what is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Vectors in a block of the search for eigenvalues
    #[arg(long, default_value_t = 1)]
    block: usize,
    /// cpu or cuda
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Measurements
    #[arg(long, default_value_t = 1)]
    rounds: u32,
}

/// The largest eigenvalues of the task `top`.
const LARGEST: usize = 5;
/// Products are repeated for at least so long.
const SECONDS: f64 = 2.;
/// Points of the surface that meet a chunk of the data together.
const TOGETHER: i64 = 64;

fn main() -> Result<()> {
    allocator::keep_large_blocks();
    let arguments = Arguments::parse();
    let network = Network::lenet();
    let bytes = std::fs::read(&arguments.weights)
        .with_context(|| format!("cannot read {}", arguments.weights.display()))?;
    // As every run of the lab has it.
    let device = choose(arguments.device)?.device;
    set_precision(Precision::F32)?;
    set_deterministic(true)?;
    let theta = from_safetensors(&network, &bytes)?.f_to_kind(Kind::Float)?.f_to_device(device)?;
    let examples = images(&arguments.data, arguments.examples, device)?;
    // As in the lab: the products have all cores, what is between them one.
    let cores = tch::get_num_threads();
    let operator = CurvatureOperator::with_threads(
        &network,
        &theta,
        &examples,
        Loss::CrossEntropy,
        cores.max(1) as usize,
    )?;
    if arguments.task != "surface" {
        tch::set_num_threads(1);
    }
    let hessian = operator.of(Curvature::Hessian);
    let of_file =
        |name: &str| -> Result<Tensor> { Ok(tensor(&arguments.directions, name)?.f_to_device(device)?) };

    for round in 0..u64::from(arguments.rounds) {
        let seed = arguments.seed + round;
        let line = match arguments.task.as_str() {
            "hvp" => products(&hessian, &of_file("vectors")?.f_narrow(0, 0, arguments.vectors)?)?,
            "ggn" => products(
                &operator.of(Curvature::GaussNewton),
                &of_file("vectors")?.f_narrow(0, 0, arguments.vectors)?,
            )?,
            "top" => {
                let _ = hessian.products(&of_file("vectors")?)?;
                let settings = EigenSettings {
                    largest: LARGEST,
                    tolerance: arguments.tolerance,
                    block: arguments.block,
                    seed,
                    ..EigenSettings::default()
                };
                let begin = Instant::now();
                let found = eigenpairs(&hessian, settings, &|_| true)?;
                let seconds = begin.elapsed().as_secs_f64();
                ensure!(found.converged, "the eigenvalues did not converge");
                let residuals: Vec<f64> =
                    found.residuals.iter().zip(&found.values).map(|(r, value)| r / value.abs()).collect();
                json!({"eigenvalues": found.values, "residuals": residuals, "products": found.products, "seconds": seconds})
            }
            "trace" => {
                let _ = hessian.products(&of_file("vectors")?)?;
                let begin = Instant::now();
                let found = hutchinson(&hessian, arguments.tolerance, 100_000, seed, &|_| true)?.trace;
                let seconds = begin.elapsed().as_secs_f64();
                json!({"trace": found.value, "standard_error": found.standard_error, "probes": found.products, "seconds": seconds})
            }
            "surface" => {
                surface(&network, &theta, &examples, [of_file("u")?, of_file("v")?], arguments.points)?
            }
            "spectrum" => {
                let _ = hessian.products(&of_file("vectors")?)?;
                let begin = Instant::now();
                let settings = DensitySettings { probes: 8, steps: 50, seed };
                let found = spectral_density(&hessian, settings, &|_| true)?;
                let negative: Vec<f64> = found.iter().map(|one| one.negative_mass(0.1)).collect();
                json!({"products": 400, "seconds": begin.elapsed().as_secs_f64(), "negative_mass": negative})
            }
            other => bail!("unknown task {other:?}: hvp, ggn, top, trace, surface or spectrum"),
        };
        let mut line = line;
        line["task"] = arguments.task.clone().into();
        println!("{line}");
    }
    Ok(())
}

/// As the lab prepares them for LeNet: padded, normalised by MNIST's own mean and deviation.
fn images(folder: &Path, count: usize, device: Device) -> Result<Examples> {
    struct Silent;
    impl flatland_data::Progress for Silent {
        fn begin(&self, _: &str, _: Option<u64>) {}
        fn advance(&self, _: u64) {}
        fn end(&self) {}
    }
    let options =
        LoadOptions { data_dir: Some(folder.to_owned()), download: false, ..LoadOptions::default() };
    let train = load(DataSetName::Mnist, &options, &Silent)?.train;
    let values = grey_values(0.1307, 0.3081);
    let images = to_32(&train.images, Size32::Pad);
    let all = Examples::pixels(&images, &[1, 32, 32], &values, &train.labels, device)?;
    Ok(all.first(count as i64)?)
}

fn tensor(path: &Path, name: &str) -> Result<Tensor> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let view = file.tensor(name)?;
    let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
    Ok(Tensor::from_data_size(view.data(), &shape, Kind::Float))
}

fn products(operator: &dyn Symmetric, vectors: &Tensor) -> Result<serde_json::Value> {
    let first = operator.products(vectors)?;
    let (begin, mut count) = (Instant::now(), 0);
    while begin.elapsed().as_secs_f64() < SECONDS {
        // Whether they are finite is read back, so that a GPU has done it.
        let _ = operator.products(vectors)?;
        count += vectors.size()[0];
    }
    let seconds = begin.elapsed().as_secs_f64();
    let norms: Vec<f64> =
        Vec::try_from(first.f_norm_scalaropt_dim(2., [1i64], false)?.f_to_kind(Kind::Double)?)?;
    Ok(json!({"vectors": vectors.size()[0], "products": count, "seconds": seconds, "norms": norms}))
}

fn surface(
    network: &Network,
    theta: &Tensor,
    examples: &Examples,
    [u, v]: [Tensor; 2],
    points: i64,
) -> Result<serde_json::Value> {
    let place = |k: i64| 2. * k as f64 / (points - 1) as f64 - 1.;
    let at = |index: i64| vec![place(index % points), place(index / points)];
    let plane = Subspace::new(theta, &[u, v])?;
    let model = Model::Network(network.clone());
    let evaluate =
        |coordinates: &[Vec<f64>]| plane.evaluate(&model, coordinates, examples, Loss::CrossEntropy);
    evaluate(&[at(0)])?;
    let begin = Instant::now();
    let mut losses = Vec::new();
    let all = points * points;
    for start in (0..all).step_by(TOGETHER as usize) {
        let some: Vec<Vec<f64>> = (start..all.min(start + TOGETHER)).map(at).collect();
        losses.extend(evaluate(&some)?.iter().map(|one| one.loss));
    }
    Ok(json!({"points": all, "seconds": begin.elapsed().as_secs_f64(), "losses": losses}))
}
