//! Where NVIDIA's libraries may be: in the loader's path, in a toolkit, or in a Python package.
//!
//! - [`NvidiaLibrary`] names the two that vecmill calls beside the driver; [`Missing`] says where
//!   one was looked for and what to install.
//!
//! The choice behind it: many machines have PyTorch and no toolkit, and its packages bring both
//! libraries. So the places that `pip` uses are looked into as well, and nothing has to be set.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders to look into first, separated as in `PATH`.
const OVERRIDE: &str = "VECMILL_CUDA_LIBRARIES";

/// A library beside the driver's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NvidiaLibrary {
    /// Compiles kernels for the GPU that is there.
    Nvrtc,
    /// Multiplies matrices.
    CublasLt,
}

/// A library was found nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name} was not found in the loader's path or in {folders} folders of CUDA toolkits and Python \
     packages{opened}; install it with `pip install {package}`, or name its folder in {OVERRIDE}"
)]
pub struct Missing {
    name: &'static str,
    package: &'static str,
    folders: usize,
    opened: String,
}

impl NvidiaLibrary {
    /// The name that it is known by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvrtc => "libnvrtc",
            Self::CublasLt => "libcublasLt",
        }
    }

    /// File names, newest first.
    pub(crate) fn file_names(self) -> &'static [&'static str] {
        match (self, cfg!(windows)) {
            (Self::Nvrtc, false) => &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
            (Self::CublasLt, false) => {
                &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"]
            }
            (Self::Nvrtc, true) => &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"],
            (Self::CublasLt, true) => &["cublasLt64_13.dll", "cublasLt64_12.dll"],
        }
    }

    /// How the names of files begin that it opens itself, by bare name: they must be open before.
    pub(crate) fn needs(self) -> Option<&'static str> {
        (self == Self::Nvrtc).then_some("libnvrtc-builtins.so")
    }

    /// It was not found in `folders`; `failures` are of files that were there and did not open.
    pub(crate) fn missing(self, folders: usize, failures: &[String]) -> Missing {
        let package = match self {
            Self::Nvrtc => "nvidia-cuda-nvrtc",
            Self::CublasLt => "nvidia-cublas",
        };
        let opened = match failures {
            [] => String::new(),
            failures => format!(" ({})", failures.join("; ")),
        };
        Missing { name: self.name(), package, folders, opened }
    }
}

/// All folders to look into, in order.
pub(crate) fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        env::var_os(OVERRIDE).iter().flat_map(|value| env::split_paths(value)).collect();
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        folders.extend(env::var_os(variable).map(PathBuf::from).iter().flat_map(|at| toolkit(at)));
    }
    for at in children(Path::new("/usr/local"), "cuda") {
        folders.extend(toolkit(&at));
    }
    for prefix in prefixes() {
        for python in children(&prefix.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                folders.extend(python_package(&python.join(packages)));
            }
        }
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

fn toolkit(at: &Path) -> [PathBuf; 3] {
    ["lib64", "targets/x86_64-linux/lib", "bin"].map(|folder| at.join(folder))
}

/// Folders with the libraries of one folder of Python packages: those of CUDA 13, then of 12.
fn python_package(packages: &Path) -> [PathBuf; 3] {
    ["cu13/lib", "cuda_nvrtc/lib", "cublas/lib"].map(|folder| packages.join("nvidia").join(folder))
}

/// Where Python may be installed.
fn prefixes() -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .iter()
        .filter_map(|variable| env::var_os(variable).map(PathBuf::from))
        .collect();
    prefixes.extend(env::var_os("HOME").map(|home| PathBuf::from(home).join(".local")));
    prefixes.extend(["/usr/local", "/usr", "/opt/conda", "/opt/venv"].map(PathBuf::from));
    // `python3` of the path may be in a prefix of its own.
    let path = env::var_os("PATH").unwrap_or_default();
    let python = env::split_paths(&path).map(|folder| folder.join("python3"));
    let python = python.filter_map(|file| fs::canonicalize(file).ok());
    prefixes.extend(python.filter_map(|file| Some(file.parent()?.parent()?.to_owned())));
    prefixes
}

/// What in `folder` has a name that begins so, the highest first.
pub(crate) fn children(folder: &Path, begin: &str) -> Vec<PathBuf> {
    let begins = |path: &PathBuf| {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(begin))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries.filter(begins).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_says_what_to_install() {
        let failures = ["libnvrtc.so.12: wrong ELF class".to_owned()];
        let text = NvidiaLibrary::Nvrtc.missing(3, &failures).to_string();
        assert!(text.starts_with("libnvrtc was not found"), "{text}");
        assert!(text.contains("in 3 folders") && text.contains("wrong ELF class"), "{text}");
        assert!(text.contains("`pip install nvidia-cuda-nvrtc`") && text.contains(OVERRIDE));
    }

    #[test]
    fn higher_versions_come_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["cuda-12.4", "cuda-13.0", "other"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let found = children(folder.path(), "cuda");
        assert_eq!(found, ["cuda-13.0", "cuda-12.4"].map(|name| folder.path().join(name)));
    }
}
