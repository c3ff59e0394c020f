//! Where data sets are kept: one folder each, in the data folder.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use directories::ProjectDirs;

use crate::DataError;

/// The environment variable that names the data folder.
pub const DATA_VARIABLE: &str = "FLATLAND_DATA";

/// The data folder: the one given, else `FLATLAND_DATA`, else the platform's data folder for `flatland` (on
/// Linux `~/.local/share/flatland`). It need not exist yet.
///
/// # Errors
/// [`DataError::NoFolder`] where none is given and the platform knows no home directory.
pub fn data_folder(given: Option<&Path>) -> Result<PathBuf, DataError> {
    choose(given, env::var_os(DATA_VARIABLE))
}

fn choose(given: Option<&Path>, variable: Option<OsString>) -> Result<PathBuf, DataError> {
    let named = variable.filter(|value| !value.is_empty()).map(PathBuf::from);
    given
        .map(Path::to_path_buf)
        .or(named)
        .or_else(|| ProjectDirs::from("", "", "flatland").map(|dirs| dirs.data_dir().to_path_buf()))
        .ok_or(DataError::NoFolder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_goes_before_the_variable_and_that_before_the_platform() {
        let variable = Some(OsString::from("/from/variable"));
        assert_eq!(choose(Some(Path::new("/given")), variable.clone()).unwrap(), Path::new("/given"));
        assert_eq!(choose(None, variable).unwrap(), Path::new("/from/variable"));
        for unset in [None, Some(OsString::new())] {
            assert!(choose(None, unset).unwrap().to_string_lossy().to_lowercase().contains("flatland"));
        }
    }
}
