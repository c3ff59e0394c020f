//! What is wrong is said in one sentence, with the exit code that says whose fault it is, and without a panic.

mod common;

use assert_cmd::Command;
use common::{assert_same_files, complaint, manifest, parts, unfinish};
use flate2::Compression;
use flate2::write::GzEncoder;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_flatness");

/// The run failed.
const FAILED: i32 = 1;
/// The command line or a setting is wrong; nothing was run.
const USAGE: i32 = 2;

/// Two models trained for two epochs on `digits`, one after the other.
const TINY: &[&str] = &[
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--workers",
    "1",
    "--set",
    "epochs=2",
    "--set",
    "images.train=300",
    "--set",
    "images.test=100",
    "--set",
    "alpha.points=3",
    "--set",
    r#"pairings=[{name="batch size",first={batch=20,lr=0.01},second={batch=60,lr=0.01}}]"#,
];

/// The experiment, cut off from every network: what wants to go out is refused by this machine at once.
fn flatness(out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments).arg("--out").arg(out);
    for proxy in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy"] {
        command.env(proxy, "http://127.0.0.1:9");
    }
    for variable in ["NO_PROXY", "no_proxy", "FLATLAND_MIRRORS", "FLATLAND_DATA"] {
        command.env_remove(variable);
    }
    command
}

/// A wrong command line leaves this sentence, and no folder.
fn refused(arguments: &[&str]) -> String {
    let place = TempDir::new().unwrap();
    let out = place.path().join("outputs");
    let said = complaint(flatness(&out, arguments), USAGE);
    assert!(!out.exists(), "nothing was run: {said}");
    said
}

#[test]
fn a_setting_that_cannot_be_is_refused_before_anything_runs() {
    let pairing =
        |first: &str| format!(r#"pairings=[{{name="sizes",first={first},second={{batch=60,lr=0.01}}}}]"#);
    let [batch_0, batch_70000, batch_500, lr_0] = [
        pairing("{batch=0,lr=0.01}"),
        pairing("{batch=70000,lr=0.01}"),
        pairing("{batch=500,lr=0.01}"),
        pairing("{batch=50,lr=0}"),
    ];
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["--dataset", "minst"],
            &["no data set `minst`", "mnist, fashion-mnist, kmnist, digits", "did you mean `mnist`"],
        ),
        (&["--dataset", ""], &["no data set ``", "digits"]),
        (&["--preset", "quikc"], &["unknown preset \"quikc\"", "did you mean \"quick\"?", "paper"]),
        (&["--set", "epoch=3"], &["unknown setting \"epoch\"", "did you mean \"epochs\"?"]),
        (&["--set", "alpha.pionts=3"], &["unknown setting \"alpha.pionts\"", "did you mean \"points\"?"]),
        (&["--set", "images.size32=crop"], &["--set images.size32=crop", "expected `pad` or `resize`"]),
        (&["--set", "epochs"], &["--set \"epochs\" is no KEY=VALUE"]),
        (&["--set", "epochs=0"], &["epochs must be at least 1, found 0"]),
        (&["--set", "epochs=many"], &["--set epochs=many", "expected u32"]),
        (&["--set", "alpha.points=0"], &["α grid", "found 0"]),
        (&["--set", "alpha.from=2"], &["α grid", "smaller to a larger", "2 to 2"]),
        (&["--set", "alpha.to=inf"], &["α grid", "finite"]),
        (&["--set", "pairings=[]"], &["pairings", "found none"]),
        (&["--set", &batch_0], &["pairing \"sizes\"", "between 1 and the 60000", "found 0"]),
        (&["--set", &batch_70000], &["pairing \"sizes\"", "between 1 and the 60000", "found 70000"]),
        (&["--set", "images.train=300", "--set", &batch_500], &["between 1 and the 300", "found 500"]),
        (&["--set", &lr_0], &["pairing \"sizes\"", "learning rate must be above 0", "found 0"]),
        (&["--set", &pairing("{batch=60,lr=0.01}")], &["pairing \"sizes\"", "with itself", "draw"]),
        (&["--seeds", "0"], &["seeds must lie between 1 and 100,000, found 0"]),
        (&["--set", "images.train=70000"], &["images.train", "at most 60000", "found 70000"]),
        (&["--set", "images.test=10001"], &["images.test", "at most 10000", "found 10001"]),
        (&["--workers", "0"], &["--workers must be at least 1, found 0"]),
        (&["--device", "bogus"], &["unknown device \"bogus\"", "auto, cpu, cuda or cuda:N"]),
        (&["--precision", "bf16"], &["unknown precision \"bf16\"", "f32 or tf32"]),
        (&["--device", "cpu", "--precision", "tf32"], &["--precision tf32 is for GPUs", "--device cuda"]),
    ];
    for (arguments, expected) in cases {
        let said = refused(arguments);
        for part in *expected {
            assert!(said.contains(part), "{arguments:?}: {said}");
        }
    }
}

/// A slip of the keyboard neither fills the memory nor becomes another number silently.
#[test]
fn numbers_beyond_measure_are_refused() {
    let said = refused(&["--seeds", "9223372036854775807"]);
    assert!(said.contains("seeds must lie between 1 and") && said.contains("9223372036854775807"), "{said}");
    let said = refused(&["--seed", "18446744073709551615"]);
    assert!(said.contains("--seed: ") && said.contains("found 18446744073709551615"), "{said}");
}

#[test]
fn two_pairings_of_one_name_could_not_be_told_apart() {
    let pairing = r#"{name="a",first={batch=20,lr=0.01},second={batch=60,lr=0.01}}"#;
    let said = refused(&["--set", &format!("pairings=[{pairing},{pairing}]")]);
    assert!(said.contains("different names") && said.contains("\"a\" twice"), "{said}");
}

#[test]
fn a_settings_file_that_cannot_be_used_is_named() {
    let place = TempDir::new().unwrap();
    let file = |name: &str, text: &str| -> String {
        let path = place.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    for (path, expected) in [
        (place.path().join("none.toml").to_str().unwrap().to_owned(), "No such file"),
        (place.path().to_str().unwrap().to_owned(), "directory"),
        (file("malformed.toml", "epochs = \n[alpha\n"), "TOML parse error at line"),
        (file("unknown.toml", "[alpha]\nponits = 3\n"), "unknown setting \"alpha.ponits\""),
        (file("typed.toml", "epochs = \"three\"\n"), "expected u32"),
        (file("binary.toml", "\0\u{1}\u{2}"), "TOML parse error"),
    ] {
        let said = refused(&["--config", &path]);
        assert!(said.contains(&path) && said.contains(expected), "{said}");
    }
    let misspelt = file("unknown.toml", "[alpha]\nponits = 3\n");
    assert!(refused(&["--config", &misspelt]).contains("did you mean \"points\"?"));
}

#[test]
fn cuda_without_a_graphics_card_says_which_step_failed() {
    let out = TempDir::new().unwrap();
    let arguments: Vec<&str> = TINY.iter().map(|&word| if word == "cpu" { "cuda" } else { word }).collect();
    let output = flatness(out.path(), &arguments).arg("--quiet").output().unwrap();
    if output.status.success() {
        println!("skipped: here is a graphics card");
        return;
    }
    let said = complaint(flatness(out.path(), &arguments), FAILED);
    let steps = ["no CUDA libtorch: ", "no usable NVIDIA driver: "];
    assert!(steps.iter().any(|step| said.contains(step)) && said.contains("--device cpu"), "{said}");
    assert!(!out.path().join("flatness").exists(), "never the CPU instead: {said}");
}

// ------------------------------------------------------------------------------------------------ data sets

/// The four files of a tiny, well-formed data set: 3 images for training, 2 for testing.
struct Files([(&'static str, Vec<u8>); 4]);

const TRAIN_IMAGES: usize = 0;
const TRAIN_LABELS: usize = 1;

impl Files {
    fn tiny() -> Self {
        let images = |count: u32| {
            let mut bytes = [0x0803, count, 28, 28].map(u32::to_be_bytes).concat();
            bytes.resize(16 + count as usize * 784, 7);
            bytes
        };
        let labels =
            |labels: &[u8]| [&[0x0801, labels.len() as u32].map(u32::to_be_bytes).concat(), labels].concat();
        Self([
            ("train-images-idx3-ubyte", images(3)),
            ("train-labels-idx1-ubyte", labels(&[1, 2, 3])),
            ("t10k-images-idx3-ubyte", images(2)),
            ("t10k-labels-idx1-ubyte", labels(&[4, 5])),
        ])
    }

    /// Writes them, as they are or packed, into `<data folder>/mnist`.
    fn write(&self, data: &Path, packed: bool) {
        let folder = data.join("mnist");
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in &self.0 {
            if packed {
                fs::write(folder.join(format!("{name}.gz")), gzip(bytes)).unwrap();
            } else {
                fs::write(folder.join(name), bytes).unwrap();
            }
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What a run says that finds this data folder. It fails, and its manifest says so in the same words.
fn with_data(data: &Path) -> String {
    let out = TempDir::new().unwrap();
    let arguments = ["--dataset", "mnist", "--device", "cpu", "--data-dir", data.to_str().unwrap()];
    let mut command = flatness(out.path(), &arguments);
    command.env("FLATLAND_MIRRORS", "http://127.0.0.1:9/");
    let said = complaint(command, FAILED);
    let manifest = manifest(&newest(out.path()));
    assert_eq!((&manifest["status"], &manifest["exit_code"]), (&"failed".into(), &FAILED.into()));
    assert_eq!(format!("error: {}\n", manifest["error"].as_str().unwrap()), said);
    assert_eq!(manifest["data_set"], Value::Null, "no other data set took its place");
    said
}

fn newest(out: &Path) -> PathBuf {
    out.join("flatness/latest").canonicalize().unwrap()
}

/// Which file, what is done to it, and what must be said of it.
type Damaged = (usize, fn(&mut Vec<u8>), &'static [&'static str]);

#[test]
fn a_damaged_data_file_is_named_with_what_is_wrong() {
    let cases: [Damaged; 9] = [
        (TRAIN_IMAGES, |bytes| bytes.truncate(1000), &["is truncated", "expected 2368 bytes", "found 1000"]),
        (TRAIN_IMAGES, |bytes| bytes.truncate(7), &["is truncated", "found 7"]),
        (TRAIN_IMAGES, |bytes| bytes.push(0), &["trailing bytes", "expected 2368", "found 2369"]),
        (TRAIN_IMAGES, Vec::clear, &["is empty"]),
        (TRAIN_IMAGES, |bytes| bytes[3] = 1, &["is no IDX file of images", "0x00000803", "0x00000801"]),
        (TRAIN_LABELS, |bytes| bytes[3] = 3, &["is no IDX file of labels", "0x00000801", "0x00000803"]),
        (TRAIN_IMAGES, |bytes| bytes[15] = 27, &["28x27 pixels", "expected 28x28"]),
        (TRAIN_LABELS, |bytes| bytes[9] = 10, &["label 10 at position 1", "expected 0 to 9"]),
        (TRAIN_IMAGES, |bytes| bytes[100] = 8, &["wrong checksum", "ba891046e6505d7aadcbbe25680a0738"]),
    ];
    for (file, damage, expected) in cases {
        for packed in [false, true] {
            let data = TempDir::new().unwrap();
            let mut files = Files::tiny();
            damage(&mut files.0[file].1);
            files.write(data.path(), packed);
            let said = with_data(data.path());
            assert!(said.contains(files.0[file].0), "the file is named: {said}");
            assert!(said.contains("delete the file, so that it is fetched again"), "{said}");
            for part in expected {
                assert!(said.contains(part), "{said}");
            }
        }
    }
}

#[test]
fn images_and_labels_that_do_not_belong_together_are_refused() {
    let data = TempDir::new().unwrap();
    let mut files = Files::tiny();
    let labels = &mut files.0[TRAIN_LABELS].1;
    labels.pop();
    labels[7] = 2;
    files.write(data.path(), true);
    let said = with_data(data.path());
    assert!(said.contains("3 images") && said.contains("2 labels"), "{said}");
    assert!(said.contains("train-images") && said.contains("train-labels"), "{said}");
}

#[test]
fn gzip_garbage_is_refused() {
    for damage in [|bytes: &mut Vec<u8>| bytes.truncate(30), |bytes: &mut Vec<u8>| bytes[20] ^= 0xff] {
        let data = TempDir::new().unwrap();
        Files::tiny().write(data.path(), true);
        let file = data.path().join("mnist/train-images-idx3-ubyte.gz");
        let mut bytes = fs::read(&file).unwrap();
        damage(&mut bytes);
        fs::write(&file, &bytes).unwrap();
        let said = with_data(data.path());
        assert!(said.contains("train-images-idx3-ubyte.gz is a damaged gzip file"), "{said}");
    }
    // No gzip at all behind the name, and something that only begins like it.
    let data = TempDir::new().unwrap();
    Files::tiny().write(data.path(), true);
    let file = data.path().join("mnist/train-images-idx3-ubyte.gz");
    fs::write(&file, "<html>404</html>").unwrap();
    assert!(with_data(data.path()).contains("is no IDX file of images"));
    fs::write(&file, b"\x1f\x8b rubbish").unwrap();
    assert!(with_data(data.path()).contains("damaged gzip file"));
}

/// No files and no network: every address that was tried, where to put the files, and what needs none.
#[test]
fn without_files_and_network_the_way_out_is_named() {
    let data = TempDir::new().unwrap();
    let said = with_data(data.path());
    assert!(said.contains("cannot download train-images-idx3-ubyte.gz of the data set mnist"), "{said}");
    // One's own mirror first, then those built in.
    let own = said.find("http://127.0.0.1:9/mnist/train-images").expect("the own mirror was tried");
    let built_in = said.find("https://").expect("a built-in mirror was tried");
    assert!(own < built_in, "{said}");
    assert!(said.contains(data.path().join("mnist").to_str().unwrap()), "{said}");
    assert!(said.contains("FLATLAND_MIRRORS") && said.contains("--dataset digits"), "{said}");
    // What was not received leaves nothing that could be taken for it.
    let left: Vec<_> =
        fs::read_dir(data.path().join("mnist")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == ".lock"), "{left:?}");
}

// ------------------------------------------------------------------------------------------------ outputs

#[cfg(target_os = "linux")]
#[test]
fn an_output_folder_that_cannot_be_is_named() {
    let said = complaint(flatness(Path::new("/proc/x"), TINY), FAILED);
    assert!(said.contains("cannot write /proc/x/flatness"), "{said}");
    let place = TempDir::new().unwrap();
    let file = place.path().join("taken");
    fs::write(&file, "mine").unwrap();
    let said = complaint(flatness(&file, TINY), FAILED);
    assert!(said.contains("cannot write") && said.contains("taken"), "{said}");
    assert_eq!(fs::read_to_string(file).unwrap(), "mine");
}

/// A small file system that is taken away at the end.
#[cfg(target_os = "linux")]
struct SmallDisk(TempDir);

#[cfg(target_os = "linux")]
impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount(size: &str) -> Option<Self> {
        let disk = Self(TempDir::new().unwrap());
        disk.tool("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).then_some(disk)
    }

    fn tool(&self, program: &str, arguments: &[&str]) -> bool {
        let mut command = std::process::Command::new(program);
        command.args(arguments).arg(self.0.path()).stderr(std::process::Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.tool("umount", &[]);
    }
}

/// The disk fills up while the second model is trained. What is finished stays whole; with more room, the run
/// goes on.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_no_finished_work() {
    // A checkpoint takes 0.5 MB, a model's weights 0.25 MB.
    let Some(disk) = SmallDisk::mount("1100k") else {
        println!("skipped: mounting a small file system needs root");
        return;
    };
    let out = disk.0.path();
    let said = complaint(flatness(out, TINY), FAILED);
    assert!(said.contains("no space left; free some or choose another --out"), "{said}");
    let run = newest(out);
    let after = manifest(&run);
    assert_eq!((&after["status"], &after["exit_code"]), (&"failed".into(), &FAILED.into()));
    let hidden = walk(&run)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "part"))
        .count();
    assert_eq!(hidden, 0, "half-written files are cleared away");
    let trials: Vec<PathBuf> = walk(&run.join("trials"));
    assert_eq!(trials.len(), 1, "{trials:?}");
    let finished = fs::metadata(&trials[0]).unwrap().modified().unwrap();

    assert!(disk.tool("mount", &["-o", "remount,size=16m"]));
    flatness(out, TINY).args(["--resume", "--quiet"]).assert().success();
    assert_eq!(newest(out), run);
    assert_eq!(manifest(&run)["status"], "finished");
    assert!(fs::metadata(&trials[0]).unwrap().modified().unwrap() == finished, "the finished trial was kept");
    let elsewhere = TempDir::new().unwrap();
    flatness(elsewhere.path(), TINY).arg("--quiet").assert().success();
    assert_same_tables(&run, &newest(elsewhere.path()));
}

/// All files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn assert_same_tables(left: &Path, right: &Path) {
    assert_same_files(left, right, &["training.csv", "interpolation.csv", "interpolation_mean.csv"]);
}

type Damage = fn(&[u8]) -> Vec<u8>;

/// Checkpoints that are cut, blank or of another kind: their trials are trained again, to the same numbers.
#[test]
fn a_damaged_checkpoint_costs_its_trial_and_no_more() {
    let out = TempDir::new().unwrap();
    flatness(out.path(), TINY).arg("--quiet").assert().success();
    let run = newest(out.path());
    let kept = TempDir::new().unwrap();
    for table in ["training.csv", "interpolation.csv", "interpolation_mean.csv"] {
        fs::rename(run.join(table), kept.path().join(table)).unwrap();
    }
    let trials = walk(&run.join("trials"));
    let whole: Vec<Vec<u8>> = trials.iter().map(|path| fs::read(path).unwrap()).collect();
    let damages: [Damage; 4] = [
        |bytes| bytes[..bytes.len() / 2].to_vec(),
        |bytes| vec![0; bytes.len()],
        |_| Vec::new(),
        |_| b"{}".to_vec(),
    ];
    for pair in damages.chunks(2) {
        for ((path, bytes), damage) in trials.iter().zip(&whole).zip(pair) {
            fs::write(path, damage(bytes)).unwrap();
        }
        unfinish(&run);

        let resumed = flatness(out.path(), TINY).arg("--resume").assert().success();
        resumed.stderr(contains("is not usable").count(2).and(contains("trained again")));
        assert_eq!(newest(out.path()), run);
        assert_same_tables(&run, kept.path());
        for (path, bytes) in trials.iter().zip(&whole) {
            let now = fs::read(path).unwrap();
            // The header tells how long the training took, which is never the same.
            assert!(parts(&now).1 == parts(bytes).1, "{} is what it was", path.display());
        }
    }
}
