//! Where to compute: `auto`, `cpu`, `cuda` or `cuda:N`, chosen at run time by one binary.
//!
//! The binary has no reference to `libtorch_cuda.so`: opening it registers libtorch's CUDA half. That must come before the
//! first CUDA query of any kind, because libtorch looks for its CUDA hooks only once.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;
use tch::{Cuda, Device};
use thiserror::Error;

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA where it works, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this index, or an error.
    Cuda(usize),
}

/// Why a device cannot be used. Each names the step that failed.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The word is not one that we know.
    #[error("unknown device {0:?}: expected auto, cpu, cuda or cuda:N")]
    Unknown(String),
    /// libtorch here is CPU-only.
    #[error(
        "no CUDA libtorch: {library} could not be opened ({reason}); run scripts/setup --cuda, or use --device cpu"
    )]
    NoCudaLibtorch {
        /// What was looked for, and where.
        library: String,
        /// The loader's words.
        reason: String,
    },
    /// No driver answers.
    #[error(
        "no usable NVIDIA driver: {0}; install the driver (in Docker: run with --gpus all), or use --device cpu"
    )]
    NoDriver(String),
    /// Fewer devices than the index asks for.
    #[error("no CUDA device with index {index}: this machine has {count}, numbered from 0")]
    NoSuchIndex {
        /// What was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The word is not one that we know.
    #[error("unknown precision {0:?}: expected f32 or tf32")]
    UnknownPrecision(String),
    /// libtorch cannot be told.
    #[error("this libtorch has no switch for TF32 ({0}); libtorch 2.11 is expected: run scripts/setup")]
    NoPrecision(String),
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| DeviceError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// A device that answers.
#[derive(Debug, Clone)]
pub struct ChosenDevice {
    /// For libtorch.
    pub device: Device,
    /// Its name, for instance the graphics card's.
    pub name: String,
    /// Why `auto` chose it; `None` where the user did.
    pub reason: Option<String>,
}

/// Opens what the choice needs and makes sure that it answers.
///
/// # Errors
/// [`DeviceError`] when CUDA was asked for and cannot be used; never a silent CPU run. `auto` takes the CPU then.
pub fn choose(choice: DeviceChoice) -> Result<ChosenDevice, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(cpu(None)),
        DeviceChoice::Cuda(index) => cuda(index),
        DeviceChoice::Auto => match cuda(0) {
            Ok(chosen) => Ok(ChosenDevice { reason: Some("an NVIDIA device answers".into()), ..chosen }),
            Err(error) => Ok(cpu(Some(short(&error)))),
        },
    }
}

fn short(error: &DeviceError) -> String {
    match error {
        DeviceError::NoCudaLibtorch { .. } => "this libtorch is CPU-only".into(),
        DeviceError::NoDriver(_) => "no NVIDIA driver answers".into(),
        other => other.to_string(),
    }
}

fn cpu(reason: Option<String>) -> ChosenDevice {
    let name = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|info| {
        info.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1).map(str::to_owned))
    });
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let name = format!("{} ({cores} cores)", name.as_deref().map_or("CPU", str::trim));
    ChosenDevice { device: Device::Cpu, name, reason }
}

fn cuda(index: usize) -> Result<ChosenDevice, DeviceError> {
    open_cuda_libtorch()?;
    let names = driver_devices().map_err(DeviceError::NoDriver)?;
    if !Cuda::is_available() {
        return Err(DeviceError::NoDriver(
            "the driver answers, but libtorch finds it unusable (too old for CUDA 13?)".into(),
        ));
    }
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    if index >= count {
        return Err(DeviceError::NoSuchIndex { index, count });
    }
    let name = names.get(index).cloned().unwrap_or_else(|| format!("CUDA device {index}"));
    Ok(ChosenDevice { device: Device::Cuda(index), name, reason: None })
}

/// Opens `libtorch_cuda.so` once, for good.
fn open_cuda_libtorch() -> Result<(), DeviceError> {
    static OPENED: OnceLock<Result<(), (String, String)>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| {
        let file = "libtorch_cuda.so";
        // Beside the libtorch that is loaded already, else wherever the loader looks.
        let candidates =
            loaded_libtorch_folder().map(|folder| folder.join(file)).into_iter().chain([PathBuf::from(file)]);
        let mut first = None;
        for candidate in candidates {
            // SAFETY: libtorch's own library; its initialisers register the CUDA backend.
            match unsafe { Library::open(Some(&candidate), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => {
                    std::mem::forget(library);
                    return Ok(());
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error)
                        .map_or_else(|| error.to_string(), ToString::to_string);
                    let reason = if candidate.is_absolute() && !candidate.exists() {
                        "it is not there".into()
                    } else {
                        cause
                    };
                    let _ = first.get_or_insert((candidate.display().to_string(), reason));
                }
            }
        }
        Err(first.unwrap_or_default())
    });
    opened.clone().map_err(|(library, reason)| DeviceError::NoCudaLibtorch { library, reason })
}

/// The folder of the `libtorch_cpu.so` in this process.
fn loaded_libtorch_folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"))?;
    PathBuf::from(&line[line.find('/')?..]).parent().map(PathBuf::from)
}

/// Names of the devices that the NVIDIA driver reports, asked of the driver itself (tch binds no names), or the step that
/// failed.
fn driver_devices() -> Result<Vec<String>, String> {
    // SAFETY: the driver's documented C interface: int cuInit(unsigned), int cuDeviceGetCount(int*),
    // int cuDeviceGetName(char*, int, int).
    unsafe {
        let driver = Library::open(Some("libcuda.so.1"), RTLD_NOW)
            .map_err(|_| "libcuda.so.1 was not found".to_owned())?;
        let missing = |error: libloading::Error| error.to_string();
        let init = driver.get::<unsafe extern "C" fn(c_int) -> c_int>(b"cuInit\0").map_err(missing)?;
        let get_count = driver
            .get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount\0")
            .map_err(missing)?;
        let get_name = driver
            .get::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(b"cuDeviceGetName\0")
            .map_err(missing)?;
        let status = init(0);
        if status != 0 {
            return Err(format!("cuInit failed with status {status}"));
        }
        let mut count = 0;
        let status = get_count(&raw mut count);
        if status != 0 {
            return Err(format!("cuDeviceGetCount failed with status {status}"));
        }
        let mut names = Vec::new();
        for index in 0..count {
            let mut name: [c_char; 256] = [0; 256];
            let named = get_name(name.as_mut_ptr(), 255, index) == 0;
            let text = if named {
                CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
            } else {
                String::new()
            };
            names.push(text);
        }
        // The driver stays: libtorch uses it from here on.
        std::mem::forget(driver);
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_the_command_line_offers() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
        }
        for text in ["gpu", "cuda:", "cuda:x", "CUDA:0", "cpu:1", ""] {
            assert!(
                text.parse::<DeviceChoice>()
                    .unwrap_err()
                    .to_string()
                    .contains("expected auto, cpu, cuda or cuda:N")
            );
        }
    }

    #[test]
    fn auto_always_finds_a_device_and_says_why() {
        let chosen = choose(DeviceChoice::Auto).unwrap();
        assert!(chosen.reason.is_some() && !chosen.name.is_empty());
    }

    #[test]
    fn cuda_is_never_the_cpu() {
        match choose(DeviceChoice::Cuda(0)) {
            Ok(chosen) => assert_eq!(chosen.device, Device::Cuda(0)),
            Err(error) => assert!(
                matches!(error, DeviceError::NoCudaLibtorch { .. } | DeviceError::NoDriver(_)),
                "{error}"
            ),
        }
    }
}
