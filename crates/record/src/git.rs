//! Which commit of this project's source is at work.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The source's commit; `None` where it cannot be known (an installed binary, no git).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitState {
    /// Full hash of the commit.
    pub commit: Option<String>,
    /// Whether tracked files differ from it, or untracked ones exist.
    pub dirty: Option<bool>,
}

impl GitState {
    /// `FLATLAND_GIT_COMMIT` if set (images are built without the repository), else what git says of the
    /// repository around the program or the current folder, provided that it is this project's.
    pub fn of_this_source() -> Self {
        if let Ok(commit) = std::env::var("FLATLAND_GIT_COMMIT")
            && !commit.is_empty()
        {
            return Self { commit: Some(commit), dirty: None };
        }
        let program = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
        let current = std::env::current_dir().ok();
        program.into_iter().chain(current).find_map(|folder| Self::around(&folder)).unwrap_or_default()
    }

    fn around(folder: &Path) -> Option<Self> {
        let root = PathBuf::from(git(folder, &["rev-parse", "--show-toplevel"])?);
        // A user may stand in the repository of something else; its commit would be a lie here.
        if !root.join("crates/record/src/git.rs").is_file() {
            return None;
        }
        let commit = git(folder, &["rev-parse", "--verify", "HEAD"])?;
        let dirty = git(folder, &["status", "--porcelain"]).map(|changes| !changes.is_empty());
        Some(Self { commit: Some(commit), dirty })
    }
}

fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_folder_has_no_commit() {
        assert_eq!(GitState::around(&std::env::temp_dir()), None);
    }
}
