//! The folders in which libraries are looked for.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::NvidiaLibrary;

/// The environment variable that names folders to look in before all others, separated as in
/// `PATH`.
pub(super) const FOLDERS_VARIABLE: &str = "VECMILL_CUDA_LIBRARIES";

/// What is asked of a machine.
pub(super) struct Machine<'a> {
    /// An environment variable.
    pub(super) variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The user's folder.
    pub(super) home: Option<PathBuf>,
    /// `/`, except in tests.
    pub(super) root: PathBuf,
}

impl Machine<'_> {
    /// The one that this runs on.
    pub(super) fn this() -> Self {
        Self { variable: &variable, home: dirs::home_dir(), root: PathBuf::from("/") }
    }

    fn folder(&self, variable: &str) -> Option<PathBuf> {
        (self.variable)(variable).map(PathBuf::from)
    }
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Folders that exist, in order and each once.
#[derive(Debug, Default)]
pub(super) struct Folders {
    /// Before the loader's.
    pub(super) chosen: Vec<PathBuf>,
    /// After them.
    pub(super) usual: Vec<PathBuf>,
}

/// Where `library` may be on `machine`.
pub(super) fn folders(machine: &Machine<'_>, library: NvidiaLibrary) -> Folders {
    let chosen = (machine.variable)(FOLDERS_VARIABLE);
    let chosen = chosen.iter().flat_map(std::env::split_paths).filter(|path| path.is_absolute());
    let mut folders = Folders { chosen: chosen.collect(), usual: toolkits(machine) };
    for site in site_packages(machine) {
        for package in library.packages() {
            folders.usual.extend(["lib", "bin", "bin/x86_64"].map(|f| site.join(package).join(f)));
        }
    }
    for list in [&mut folders.chosen, &mut folders.usual] {
        let mut seen = Vec::new();
        list.retain(|folder| {
            let new = folder.is_dir() && !seen.contains(folder);
            seen.push(folder.clone());
            new
        });
    }
    folders
}

/// Where CUDA's own installer, distributions and Conda put it.
fn toolkits(machine: &Machine<'_>) -> Vec<PathBuf> {
    let mut toolkits = Vec::new();
    toolkits.extend(
        ["CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"].iter().filter_map(|v| machine.folder(v)),
    );
    // `cuda` is a link to the version that was chosen, and comes first.
    let mut installed = children(&machine.root.join("usr/local"), "cuda");
    installed.sort_by_key(|path| !path.ends_with("cuda"));
    toolkits.extend(installed);
    toolkits.push(machine.root.join("opt/cuda"));
    let below = ["lib64", "lib", "targets/x86_64-linux/lib", "bin", "bin/x64"];
    toolkits.iter().flat_map(|toolkit| below.map(|folder| toolkit.join(folder))).collect()
}

/// Where Python's packages are.
fn site_packages(machine: &Machine<'_>) -> Vec<PathBuf> {
    let mut sites = Vec::new();
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].map(|variable| machine.folder(variable));
    let user = machine.home.as_ref().map(|home| home.join(".local"));
    let system = ["usr/local", "usr", "opt/conda", "opt/venv"];
    let system = system.map(|prefix| Some(machine.root.join(prefix)));
    let prefixes = environments.into_iter().chain([user]).chain(system).flatten();
    for prefix in prefixes.chain(pythons(machine)) {
        // Windows has one Python per prefix.
        sites.push(prefix.join("Lib/site-packages"));
        for lib in ["lib", "lib64"] {
            for python in children(&prefix.join(lib), "python3") {
                sites.extend(["site-packages", "dist-packages"].map(|name| python.join(name)));
            }
        }
    }
    sites
}

/// The prefixes of the Pythons that the shell would find.
fn pythons(machine: &Machine<'_>) -> Vec<PathBuf> {
    let path = (machine.variable)("PATH").unwrap_or_default();
    let python = std::env::split_paths(&path).map(|folder| folder.join("python3"));
    let python = python.filter_map(|file| std::fs::canonicalize(file).ok());
    python.filter_map(|file| Some(file.parent()?.parent()?.to_owned())).collect()
}

/// What is in `folder` under names that begin with `prefix`, the last in the alphabet first.
pub(super) fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let mut paths: Vec<_> = named.map(|entry| entry.path()).collect();
    paths.sort();
    paths.reverse();
    paths
}
