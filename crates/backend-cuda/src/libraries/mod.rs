//! NVIDIA's libraries beside the driver, found when the program runs: the compiler of kernels and
//! the matrix products.
//!
//! - [`open`] finds one and looks its functions up; [`Missing`] says why there is none.
//! - `places` are the folders that are searched.
//! - [`libraries`] and [`driver_library`] say what there is, for people (`report`); `loaded` knows where
//!   the loader found it.
//!
//! The choice behind it: they come with CUDA's toolkit, with a distribution's packages, or with
//! Python packages that most machines with a GPU have anyway and that the loader doesn't know. All
//! of those places are searched, so that nobody has to set a path.

mod loaded;
mod places;
mod report;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::driver;
use places::{FOLDERS_VARIABLE, Machine, folders};
pub use report::{driver_library, libraries};

/// A library of NVIDIA's beside the driver's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NvidiaLibrary {
    /// The compiler of kernels.
    Nvrtc,
    /// The matrix products.
    CublasLt,
}

impl NvidiaLibrary {
    /// The name that it is known by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvrtc => "NVRTC",
            Self::CublasLt => "cuBLASLt",
        }
    }

    /// What vecmill needs it for.
    pub fn purpose(self) -> &'static str {
        match self {
            Self::Nvrtc => "the compiler of GPU kernels",
            Self::CublasLt => "matrix products",
        }
    }

    /// What its file may be called, best first, where the driver supports CUDA `driver`: a driver
    /// runs what is made for its own major version or an older one.
    fn names(self, driver: (u32, u32)) -> Vec<String> {
        let (mut names, bare): (Vec<_>, _) = match (self, cfg!(windows)) {
            (Self::Nvrtc, false) => (versions("libnvrtc.so.", ""), Some("libnvrtc.so")),
            (Self::CublasLt, false) => (versions("libcublasLt.so.", ""), Some("libcublasLt.so")),
            (Self::Nvrtc, true) => (versions("nvrtc64_", "0_0.dll"), None),
            (Self::CublasLt, true) => (versions("cublasLt64_", ".dll"), None),
        };
        if driver.0 < 13 {
            names.remove(0);
        }
        names.extend(bare.map(str::to_owned));
        names
    }

    /// Where Python packages put it, below `site-packages`.
    fn packages(self) -> [&'static str; 2] {
        match self {
            Self::Nvrtc => ["nvidia/cu13", "nvidia/cuda_nvrtc"],
            Self::CublasLt => ["nvidia/cu13", "nvidia/cublas"],
        }
    }

    /// What the names of files begin with that it looks for by name when it is used.
    fn companions(self) -> Option<&'static str> {
        match (self, cfg!(windows)) {
            (Self::Nvrtc, false) => Some("libnvrtc-builtins.so."),
            (Self::Nvrtc, true) => Some("nvrtc-builtins64_"),
            (Self::CublasLt, _) => None,
        }
    }
}

fn versions(before: &str, after: &str) -> Vec<String> {
    ["13", "12"].map(|version| format!("{before}{version}{after}")).to_vec()
}

/// A library that was opened, with the functions that were looked up in it.
#[derive(Debug)]
pub(crate) struct Opened<T> {
    pub(crate) functions: T,
    /// Its path, or its name where the loader found it.
    pub(crate) file: PathBuf,
}

/// Finds a library, and its functions by `find`, whose error is the name of one that is missing. A
/// file without them is passed over.
pub(crate) fn open<T>(
    library: NvidiaLibrary,
    find: impl Fn(&'static libloading::Library) -> Result<T, &'static str>,
) -> Result<Opened<T>, Missing> {
    // Without a driver nothing runs; then the newest are looked for.
    let driver = driver::version().unwrap_or((13, 0));
    open_on(&Machine::this(), library, driver, find)
}

fn open_on<T>(
    machine: &Machine<'_>,
    library: NvidiaLibrary,
    driver: (u32, u32),
    find: impl Fn(&'static libloading::Library) -> Result<T, &'static str>,
) -> Result<Opened<T>, Missing> {
    let (names, places) = (library.names(driver), folders(machine, library));
    let inside = |folder: &PathBuf| names.iter().map(|name| folder.join(name)).collect::<Vec<_>>();
    let chosen = places.chosen.iter().flat_map(inside).filter(|path| path.exists());
    let by_loader = names.iter().map(PathBuf::from);
    let usual = places.usual.iter().flat_map(inside).filter(|path| path.exists());
    let mut unusable = Vec::new();
    for file in chosen.chain(by_loader).chain(usual) {
        match load(library, &file).and_then(|loaded| {
            find(loaded).map_err(|symbol| format!("it has no function {symbol}"))
        }) {
            Ok(functions) => return Ok(Opened { functions, file }),
            // Of a bare name nobody knows whether there is such a file.
            Err(reason) if file.is_absolute() => unusable.push((file, reason)),
            Err(_) => {}
        }
    }
    let folders = [places.chosen, places.usual].concat();
    Err(Missing { library, driver, names, folders, unusable })
}

fn load(library: NvidiaLibrary, file: &Path) -> Result<&'static libloading::Library, String> {
    if let (Some(prefix), Some(folder)) = (library.companions(), file.parent()) {
        // NVRTC asks the loader for its built-in functions by name, which finds them beside NVRTC
        // only if they are loaded already. What fails here NVRTC will report itself.
        for companion in places::children(folder, prefix) {
            let _ = driver::load_library(&companion);
        }
    }
    driver::load_library(file)
}

/// A library was not found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    library: NvidiaLibrary,
    driver: (u32, u32),
    names: Vec<String>,
    folders: Vec<PathBuf>,
    unusable: Vec<(PathBuf, String)>,
}

impl std::error::Error for Missing {}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { library, names, folders, .. } = self;
        let (name, purpose) = (library.name(), library.purpose());
        write!(f, "{name} ({purpose}) was not found: looked for {}", one_of(names))?;
        write!(f, " where the loader looks")?;
        let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        if !folders.is_empty() {
            write!(f, " and in {}", folders.join(", "))?;
        }
        for (file, reason) in &self.unusable {
            write!(f, "; {} can't be used: {reason}", file.display())?;
        }
        let suffix = if self.driver.0 < 13 { "-cu12" } else { "" };
        write!(
            f,
            "; install it (`pip install nvidia-cuda-nvrtc{suffix} nvidia-cublas{suffix}`, or the \
             runtime packages of CUDA {}), or name its folder in {FOLDERS_VARIABLE}",
            self.driver.0.min(13)
        )
    }
}

fn one_of(names: &[String]) -> String {
    match names {
        [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        names => names.concat(),
    }
}

/// A library that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// Its path; only its name where the loader found it and the system does not tell where.
    pub file: PathBuf,
    /// The driver: the CUDA version that it supports. NVRTC: the one that it is part of. cuBLASLt:
    /// its own. Major and minor number.
    pub version: (u32, u32),
}
