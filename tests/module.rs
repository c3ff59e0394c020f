//! `--module` and `--data` with the built binaries: a TorchScript module of the user's own.
#![allow(clippy::float_cmp)] // Numbers are to be the same to the last bit.

mod common;

use common::{Out, assert_same_files, complaint, manifest, rows, unfinish};
use flatland_data::{DataSetName, LoadOptions, grey_values, load};
use flatland_network::snapshot::to_safetensors;
use flatland_network::{Layer, Loss, Module, Network};
use ndarray::{Array, Array1, ArrayD};
use ndarray_npy::NpzWriter;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

const SPECTRUM: &str = env!("CARGO_BIN_EXE_spectrum");
const LANDSCAPE: &str = env!("CARGO_BIN_EXE_landscape");
const SHARPNESS: &str = env!("CARGO_BIN_EXE_sharpness");

const SMALL: &[&str] = &["--preset", "quick", "--device", "cpu", "--set", "density.steps=12"];
const GRIDS: &[&str] = &["--device", "cpu", "--set", "line.points=5", "--set", "plane.points=3"];
const SHARP: &[&str] =
    &["--device", "cpu", "--set", "pairs=4", "--set", "steps=3", "--set", "hessian.products=6"];
const QUIET: &[&str] = &["--quiet"];

fn fixture(name: &str) -> String {
    format!("{}/../network/tests/fixtures/modules/{name}.pt", env!("CARGO_MANIFEST_DIR"))
}

fn folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// As NumPy writes it.
fn write_npz(path: &Path, x: &ArrayD<f32>, y: &Array1<i64>, test: bool) {
    let mut npz = NpzWriter::new(File::create(path).unwrap());
    npz.add_array("x", x).unwrap();
    npz.add_array("y", y).unwrap();
    if test {
        npz.add_array("x_test", x).unwrap();
        npz.add_array("y_test", y).unwrap();
    }
    npz.finish().unwrap();
}

fn ramp(shape: &[usize]) -> ArrayD<f32> {
    let count = shape.iter().product::<usize>();
    Array::from_iter((0..count).map(|n| (n as f32 * 0.37).sin())).into_shape_with_order(shape).unwrap()
}

fn classes(count: usize, of: usize) -> Array1<i64> {
    (0..count).map(|n| (n % of) as i64).collect()
}

fn words<'a>(module: &'a str, data: &'a Path) -> Vec<&'a str> {
    vec!["--module", module, "--data", data.to_str().unwrap()]
}

fn numbers(run: &Path, table: &str, column: &str) -> Vec<f64> {
    rows(run, table).iter().map(|row| row[column].parse().unwrap()).collect()
}

/// The first 300 of `digits`, and the network of the module `digits`.
const IMAGES: &[&str] = &[
    "--dataset",
    "digits",
    "--set",
    "images.train=300",
    "--set",
    "images.test=100",
    "--network",
    "784-2-10",
];

/// The module's weights, for the network.
fn weights_of(module: &str, folder: &Path) -> String {
    let path = folder.join("weights.safetensors");
    let network = Network::dense(&[784, 2, 10], &Layer::Relu).unwrap();
    let loaded = Module::load("digits", fs::read(module).unwrap().into(), Device::Cpu).unwrap();
    fs::write(&path, to_safetensors(&network, &loaded.theta().unwrap()).unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// [`IMAGES`] as a run prepared them, as a file of the user's own, as `numpy.savez_compressed` writes it: with the test images, if they are wanted.
fn data_of(run: &Path, folder: &Path, test: bool) -> PathBuf {
    let preparation = manifest(run)["data_set"]["preparation"].as_str().unwrap().to_owned();
    let (_, rest) = preparation.split_once("(p / 255 - ").unwrap();
    let (mean, deviation) = rest.split_once(") / ").unwrap();
    let values = grey_values(mean.parse().unwrap(), deviation.parse().unwrap());
    let digits = load(DataSetName::Digits, &LoadOptions::default(), &()).unwrap();
    let path = folder.join("digits.npz");
    let mut npz = NpzWriter::new_compressed(File::create(&path).unwrap());
    for (split, end, count) in [(&digits.train, "", 300), (&digits.test, "_test", 100)] {
        if end.is_empty() || test {
            let pixels = split.images.iter().take(count * 784).map(|&pixel| values[usize::from(pixel)]);
            let x = Array::from_iter(pixels).into_shape_with_order(vec![count, 784]).unwrap();
            let y: Array1<i64> = split.labels.iter().take(count).map(|&label| i64::from(label)).collect();
            npz.add_array(format!("x{end}"), &x).unwrap();
            npz.add_array(format!("y{end}"), &y).unwrap();
        }
    }
    npz.finish().unwrap();
    path
}

/// The same weights and images, once as a module with a file of data, once as weights of a network and a data set.
#[test]
fn a_module_has_the_spectrum_of_the_network_with_its_weights() {
    let (out, folder) = (Out::new(SPECTRUM), folder());
    let module = fixture("digits");
    let one = out.run(&[SMALL, QUIET, IMAGES, &["--weights", &weights_of(&module, folder.path())]]);
    let data = data_of(&one, folder.path(), false);
    let other = out.run(&[SMALL, QUIET, &words(&module, &data)]);

    assert!(!other.join("training.csv").exists() && !other.join("claims.csv").exists());
    for (table, column) in [
        ("eigenvalues.csv", "eigenvalue"),
        ("spectrum.csv", "trace"),
        ("spectrum.csv", "frobenius_norm"),
        ("density.csv", "density"),
    ] {
        let (found, expected) = (numbers(&other, table, column), numbers(&one, table, column));
        let largest = expected.iter().fold(0f64, |most, value| most.max(value.abs()));
        assert_eq!(found.len(), expected.len(), "{table}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 2e-3 * largest, "{table} {column}: {found} {expected}");
        }
    }
    let record = &manifest(&other)["data_set"];
    assert_eq!((record["name"].as_str(), record["train"].as_u64()), (Some("digits.npz"), Some(300)));
    assert!(record["checksums"]["digits.pt"].is_string() && record["checksums"]["digits.npz"].is_string());

    // Whatever the number of workers; and the Gauss-Newton matrix, all of whose eigenvalues are at least 0.
    let again = out.run(&[SMALL, QUIET, &words(&module, &data), &["--workers", "3"]]);
    assert_same_files(&other, &again, &["eigenvalues.csv", "spectrum.csv", "quadrature.csv"]);
    let gauss_newton = out.run(&[SMALL, QUIET, &words(&module, &data), &["--set", "matrix=gauss-newton"]]);
    let values = numbers(&gauss_newton, "eigenvalues.csv", "eigenvalue");
    assert!(values.iter().all(|&value| value > -1e-3 * values[0]), "{values:?}");
}

#[test]
fn a_module_is_as_sharp_as_the_network_with_its_weights() {
    let (out, folder) = (Out::new(SHARPNESS), folder());
    let module = fixture("digits");
    let one = out.run(&[SHARP, QUIET, IMAGES, &["--weights", &weights_of(&module, folder.path())]]);
    let data = data_of(&one, folder.path(), true);
    let other = out.run(&[SHARP, QUIET, &words(&module, &data)]);
    for column in ["train_loss_nats", "test_loss_nats", "train_accuracy", "loss_gap_nats", "error_gap"] {
        let (found, expected) = (numbers(&other, "models.csv", column), numbers(&one, "models.csv", column));
        assert!((found[0] - expected[0]).abs() < 1e-5, "{column}: {found:?} {expected:?}");
    }
    assert_eq!([&one, &other].map(|run| rows(run, "sharpness.csv").len()), [13; 2]);
    for (found, expected) in rows(&other, "sharpness.csv").iter().zip(rows(&one, "sharpness.csv")) {
        assert_eq!((&found["measure"], &found["unit"]), (&expected["measure"], &expected["unit"]));
        let [a, b] = [found, &expected].map(|row| row["value"].parse::<f64>().unwrap());
        assert!((a - b).abs() < 5e-3 * b.abs() + 1e-5, "{}: {a} {b}", found["measure"]);
    }
    // Which layers could be balanced against each other is not known of a module, and one model has no order.
    assert!(one.join("rescaling.csv").exists() && !other.join("rescaling.csv").exists());
    assert!(!other.join("claims.csv").exists() && !other.join("training.csv").exists());

    // What is kept is not computed again.
    unfinish(&other);
    let before = rows(&other, "sharpness.csv");
    assert_eq!(out.run(&[SHARP, QUIET, &words(&module, &data), &["--resume", "--workers", "2"]]), other);
    assert_eq!(rows(&other, "sharpness.csv"), before);

    let more = ["--set", "keskar.dimension=20000"];
    let found = complaint(out.command(&[SHARP, &words(&module, &data), &more]), 1);
    assert!(found.contains("parameters of digits.pt, found 20000"), "{found}");
}

#[test]
fn the_landscape_of_a_module_with_batch_normalisation() {
    let (out, folder) = (Out::new(LANDSCAPE), folder());
    let (module, data) = (fixture("smooth"), folder.path().join("data.npz"));
    write_npz(&data, &ramp(&[40, 1, 6, 6]), &classes(40, 3), true);
    let run = out.run(&[GRIDS, QUIET, &words(&module, &data)]);
    let points = rows(&run, "surface.csv");
    assert_eq!(points.len(), 2 * (5 + 9));
    // Both splits are the same examples; in the middle is the module itself.
    for pair in points.chunks(2) {
        assert_eq!(pair[0]["loss_nats"], pair[1]["loss_nats"]);
        assert_eq!(pair[0]["accuracy"], pair[1]["accuracy"]);
    }
    let own = Module::load("smooth", fs::read(&module).unwrap().into(), Device::Cpu).unwrap();
    let x = Tensor::try_from(ramp(&[40, 1, 6, 6])).unwrap().to_kind(Kind::Double);
    let y = Tensor::from_slice(classes(40, 3).as_slice().unwrap());
    let expected = Loss::CrossEntropy.mean(&own.forward(&x).unwrap(), &y).unwrap().double_value(&[]);
    let middle: f64 = points[2 * 2]["loss_nats"].parse().unwrap();
    assert!((middle - expected).abs() < 1e-12, "{middle} {expected}");

    // Points that are kept are not computed again, and a module with other weights is another.
    unfinish(&run);
    let before = fs::read_dir(run.join("trials")).unwrap().count();
    assert_eq!(out.run(&[GRIDS, QUIET, &words(&module, &data), &["--resume", "--workers", "2"]]), run);
    assert_eq!(fs::read_dir(run.join("trials")).unwrap().count(), before);
    assert_eq!(rows(&run, "surface.csv"), points);
}

/// Values in place of classes, and no test examples: nothing is said of either.
#[test]
fn a_regression_without_test_examples() {
    let (out, folder) = (Out::new(LANDSCAPE), folder());
    let data = folder.path().join("data.safetensors");
    let kind = (Kind::Double, Device::Cpu);
    let x = (Tensor::arange(40, kind) * 0.3).sin().view([20, 2]);
    let y = (Tensor::arange(60, kind) * 0.7).cos().view([20, 3]);
    Tensor::write_safetensors(&[("inputs", &x), ("targets", &y)], &data).unwrap();
    let run = out.run(&[GRIDS, QUIET, &words(&fixture("regression"), &data)]);
    let points = rows(&run, "surface.csv");
    assert_eq!(points.len(), 5 + 9);
    assert!(points.iter().all(|row| row["split"] == "train" && row["accuracy"].is_empty()));
    assert!(numbers(&run, "surface.csv", "mean_squared_error").iter().all(|loss| *loss > 0.));
    for figure in ["line.svg", "plane.svg", "plane_3d.svg"] {
        let svg = fs::read_to_string(run.join(figure)).unwrap();
        assert!(svg.contains("mean squared error") && !svg.contains("no finite value"), "{figure}");
        assert!(!svg.contains("accuracy") && !svg.contains("test loss"), "{figure}");
    }
    let out = Out::new(SPECTRUM);
    let run = out.run(&[SMALL, QUIET, &words(&fixture("regression"), &data)]);
    assert_eq!(numbers(&run, "eigenvalues.csv", "eigenvalue").len(), 7);
    let out = Out::new(SHARPNESS);
    let run =
        out.run(&[SHARP, QUIET, &words(&fixture("regression"), &data), &["--set", "keskar.dimension=3"]]);
    let values = rows(&run, "sharpness.csv");
    assert!(values.iter().all(|row| !row["unit"].contains("nat")), "{values:?}");
    let finite = numbers(&run, "sharpness.csv", "value").iter().filter(|value| value.is_finite()).count();
    assert_eq!((values.len(), finite), (13, 13));
    let model = &rows(&run, "models.csv")[0];
    assert!(!model["train_mean_squared_error"].is_empty() && model["test_mean_squared_error"].is_empty());
    assert!(model["mean_squared_error_gap"].is_empty() && model["error_gap"].is_empty());
    // With test examples there is a gap, and still no accuracy.
    let tested = folder.path().join("tested.safetensors");
    Tensor::write_safetensors(&[("x", &x), ("y", &y), ("x_test", &x), ("y_test", &y)], &tested).unwrap();
    let run =
        out.run(&[SHARP, QUIET, &words(&fixture("regression"), &tested), &["--set", "keskar.dimension=3"]]);
    let model = &rows(&run, "models.csv")[0];
    assert_eq!(model["mean_squared_error_gap"].parse::<f64>().unwrap(), 0.);
    assert!(model["error_gap"].is_empty() && model["test_accuracy"].is_empty());
}

#[test]
fn bad_input_is_one_sentence() {
    let (out, folder) = (Out::new(SPECTRUM), folder());
    let path = |name: &str| folder.path().join(name);
    let data = path("data.npz");
    write_npz(&data, &ramp(&[10, 4]), &classes(10, 3), false);
    let refuse = |more: &[&str], code: i32, text: &str| {
        let found =
            complaint(out.command(&[SMALL, &["--set", "largest=3", "--set", "smallest=0"], more]), code);
        assert!(found.contains(text), "{found}");
    };
    let module = fixture("not-finite");
    refuse(&["--module", &module], 2, "--data");
    refuse(&["--data", data.to_str().unwrap()], 2, "--module");
    for (flag, value) in [("--weights", "w.safetensors"), ("--network", "lenet"), ("--dataset", "digits")] {
        refuse(
            &[words(&module, &data), vec![flag, value]].concat(),
            2,
            &format!("{flag} cannot be given together"),
        );
    }
    let network = ["--set", "network=784-10-10"];
    refuse(&[words(&module, &data), network.to_vec()].concat(), 2, "a module is its own network");
    refuse(&words(&module, &data), 1, "holds 1 numbers that are not finite");
    for name in [
        "detached",
        "classes",
        "pair",
        "in-place-input",
        "in-place-parameter",
        "random",
        "attention",
        "frozen",
    ] {
        refuse(&words(&fixture(name), &data), 1, &format!("{name}.pt"));
    }
    refuse(&words("no-such.pt", &data), 1, "no-such.pt");
    refuse(&words(data.to_str().unwrap(), &data), 1, "no TorchScript file");
    refuse(&words(&fixture("tied"), Path::new("no-such.npz")), 1, "no-such.npz");
    let more = ["--set", "largest=20"];
    write_npz(&path("four.npz"), &ramp(&[10, 4]), &classes(10, 4), false);
    refuse(&[words(&fixture("tied"), &path("four.npz")), more.to_vec()].concat(), 1, "16 parameters");

    let tied = fixture("tied");
    fs::write(path("torn.npz"), &fs::read(&data).unwrap()[..200]).unwrap();
    refuse(&words(&tied, &path("torn.npz")), 1, "no .npz file");
    fs::write(path("data.csv"), "x,y\n").unwrap();
    refuse(&words(&tied, &path("data.csv")), 1, ".npz or .safetensors");
    fs::write(path("torn.safetensors"), "x").unwrap();
    refuse(&words(&tied, &path("torn.safetensors")), 1, "no safetensors file");
    let single = |name: &str, array: &str| {
        let mut npz = NpzWriter::new(File::create(path(name)).unwrap());
        npz.add_array(array, &ramp(&[10, 4])).unwrap();
        npz.finish().unwrap();
    };
    single("lonely.npz", "images");
    refuse(&words(&tied, &path("lonely.npz")), 1, "array images is alone");
    single("other.npz", "z");
    refuse(&words(&tied, &path("other.npz")), 1, "x or images or inputs");
    write_npz(&path("short.npz"), &ramp(&[10, 4]), &classes(9, 3), false);
    refuse(&words(&tied, &path("short.npz")), 1, "both must begin with the number of examples");
    let mut holed = ramp(&[10, 4]);
    holed[[3, 2]] = f32::NAN;
    write_npz(&path("holed.npz"), &holed, &classes(10, 3), false);
    refuse(&words(&tied, &path("holed.npz")), 1, "array x holds 1 numbers");
}
