//! How exactly a GPU multiplies f32 numbers: as they are, or rounded to TF32's 10 bits of mantissa first, which its tensor cores
//! take several times as fast.
//!
//! libtorch's own default is TF32 for convolutions and f32 for matrix products. Here it is f32 for both, and TF32 only where it is
//! asked for. Sums are f32 in either case; a CPU knows no TF32.

use crate::device::DeviceError;
use libloading::os::unix::Library;
use std::ffi::c_void;
use std::fmt;
use std::str::FromStr;

/// What the factors of a product are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Not at all: 23 bits of mantissa.
    F32,
    /// 10 bits of mantissa: a relative error near 5e-4 in each factor.
    Tf32,
}

impl FromStr for Precision {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "f32" => Ok(Self::F32),
            "tf32" => Ok(Self::Tf32),
            _ => Err(DeviceError::UnknownPrecision(text.to_owned())),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
        })
    }
}

/// Of everything that this process computes on a GPU from here on.
///
/// # Errors
/// [`DeviceError::NoPrecision`] where this libtorch has no such switch.
pub fn set_precision(precision: Precision) -> Result<(), DeviceError> {
    let allow = precision == Precision::Tf32;
    // `void setAllowTF32CuDNN(bool)` and `void setAllowTF32CuBLAS(bool)`.
    switch(b"_ZN2at7Context17setAllowTF32CuDNNEb\0", allow)?;
    switch(b"_ZN2at7Context18setAllowTF32CuBLASEb\0", allow)
}

/// Whether cuDNN may choose algorithms whose sums come in another order each time. libtorch's own default is that it may.
///
/// # Errors
/// [`DeviceError::NoPrecision`] where this libtorch has no such switch.
pub fn set_deterministic(deterministic: bool) -> Result<(), DeviceError> {
    // `void setDeterministicCuDNN(bool)`.
    switch(b"_ZN2at7Context21setDeterministicCuDNNEb\0", deterministic)
}

/// Sets a switch of libtorch's global context, `void at::Context::…(bool)` by its exported name: tch binds none of them.
fn switch(name: &[u8], on: bool) -> Result<(), DeviceError> {
    let missing = |error: libloading::Error| DeviceError::NoPrecision(error.to_string());
    let libtorch = Library::this();
    // SAFETY: the types are those of libtorch's own declarations, `Context& at::globalContext()` and the above.
    unsafe {
        let context = libtorch
            .get::<unsafe extern "C" fn() -> *mut c_void>(b"_ZN2at13globalContextEv\0")
            .map_err(missing)?;
        libtorch.get::<unsafe extern "C" fn(*mut c_void, bool)>(name).map_err(missing)?(context(), on);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_does_as_it_is_told() {
        // `bool allowTF32CuBLAS() const` and `bool allowTF32CuDNN(std::optional<Float32Op>) const`, of nothing.
        let allowed = || unsafe {
            let libtorch = Library::this();
            let context =
                libtorch.get::<unsafe extern "C" fn() -> *mut c_void>(b"_ZN2at13globalContextEv\0").unwrap();
            let products = libtorch
                .get::<unsafe extern "C" fn(*mut c_void) -> bool>(b"_ZNK2at7Context15allowTF32CuBLASEv\0")
                .unwrap();
            let convolutions = libtorch
                .get::<unsafe extern "C" fn(*mut c_void, u64) -> bool>(
                    b"_ZNK2at7Context14allowTF32CuDNNESt8optionalINS_9Float32OpEE\0",
                )
                .unwrap();
            (products(context()), convolutions(context(), 0))
        };
        // Linked, so that there is something to ask.
        let _ = tch::Tensor::from(0.);
        assert_eq!(allowed(), (false, true));
        set_precision(Precision::F32).unwrap();
        assert_eq!(allowed(), (false, false));
        set_precision(Precision::Tf32).unwrap();
        assert_eq!(allowed(), (true, true));
    }

    #[test]
    fn parses_what_the_command_line_offers() {
        for precision in [Precision::F32, Precision::Tf32] {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), precision);
        }
        assert!("bf16".parse::<Precision>().unwrap_err().to_string().contains("expected f32 or tf32"));
    }
}
