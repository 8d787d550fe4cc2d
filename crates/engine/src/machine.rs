//! What this machine has, and how much of it this process can have: [`memory`] in [`Memory`], with
//! the control groups in `cgroup`; processors and open files here.

mod cgroup;
mod memory;

use std::path::{Path, PathBuf};

use vecmill_backend_cuda::{self as cuda, GpuInfo, GpuState};

use crate::devices::{DeviceSpec, cpu_info, free_memory, gpus, state};
pub use memory::{Limiter, Memory};

/// A device of this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its name, as [`DeviceSpec`] takes it.
    pub name: String,
    /// What it is, for example `2 threads, AVX2`.
    pub description: String,
    /// The processor's name, where the system tells.
    pub processor: Option<String>,
    /// Bytes of memory, where the system tells: of the CPU, the most that this process may have.
    pub memory_bytes: Option<usize>,
    /// What limits the memory of the CPU, if it is less than the machine's.
    pub memory_limited_by: Option<Limiter>,
    /// Bytes of it that can be had now, where system or driver tells.
    pub free_memory_bytes: Option<usize>,
    /// What it says of itself, if it does.
    pub state: Option<GpuState>,
}

/// A library that GPUs need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// The name that it is known by, for example `NVRTC`.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
    /// Where it is, or where it was looked for and how to get it.
    pub found: Result<LibraryFile, String>,
}

/// A library that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibraryFile {
    /// For example `13.0`; the driver's is the CUDA version that it supports.
    pub version: String,
    /// Its path, or its name where the system's loader found it.
    pub file: PathBuf,
}

/// The CPU, and the GPUs or why there is none. Asking a GPU that is not in use yet for its free
/// memory takes some tenths of a second.
///
/// ```
/// let (cpu, _) = vecmill_engine::machine::devices();
/// assert_eq!(cpu.name, "cpu");
/// ```
pub fn devices() -> (Found, Result<Vec<Found>, String>) {
    let info = cpu_info(threads());
    let memory = memory();
    let cpu = Found {
        name: info.name,
        description: info.description,
        processor: processor(),
        memory_bytes: memory.as_ref().map(|memory| memory.limit_bytes),
        free_memory_bytes: memory.as_ref().map(|memory| memory.free_bytes),
        memory_limited_by: memory
            .map(|memory| memory.limited_by)
            .filter(|limiter| *limiter != Limiter::Machine),
        state: None,
    };
    let gpus = gpus().map_err(|reason| reason.to_string());
    (cpu, gpus.map(|gpus| gpus.iter().map(found).collect()))
}

fn found(gpu: &GpuInfo) -> Found {
    let (major, minor) = gpu.compute_capability;
    Found {
        name: DeviceSpec::Cuda(Some(gpu.ordinal)).to_string(),
        description: format!("compute capability {major}.{minor}"),
        processor: Some(gpu.name.clone()),
        memory_bytes: Some(gpu.total_memory),
        memory_limited_by: None,
        free_memory_bytes: free_memory(gpu.ordinal),
        state: state(gpu),
    }
}

/// The libraries that GPUs need: the driver's, and those that are looked for beside it. Opens them.
///
/// ```
/// let [driver, ..] = vecmill_engine::machine::libraries();
/// assert_eq!(driver.name, "driver");
/// ```
pub fn libraries() -> [Library; 3] {
    let file = |found: cuda::Found| {
        let (major, minor) = found.version;
        LibraryFile { version: format!("{major}.{minor}"), file: found.file }
    };
    let driver = Library {
        name: "driver",
        purpose: "all work on GPUs",
        found: cuda::driver_library().map(file).map_err(|reason| reason.to_string()),
    };
    let [nvrtc, cublaslt] = cuda::libraries().map(|(library, found)| Library {
        name: library.name(),
        purpose: library.purpose(),
        found: found.map(file).map_err(|missing| missing.to_string()),
    });
    [driver, nvrtc, cublaslt]
}

/// Threads that this process may run at once: as many as it has processors, and no more than its
/// control groups let it keep busy.
pub fn threads() -> usize {
    // Knows groups where they usually are, but not where else they may be mounted.
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cgroup::processors(Path::new("/"), std::process::id())
        .map_or(threads, |quota| threads.min(quota))
}

/// The memory that this process can have. `None` where the system does not tell.
///
/// ```
/// if let Some(memory) = vecmill_engine::machine::memory() {
///     assert!(memory.free_bytes <= memory.limit_bytes);
/// }
/// ```
pub fn memory() -> Option<Memory> {
    memory::memory(Path::new("/"), memory::Process::this())
}

/// The most bytes of memory that this process may have. `None` where the system does not tell.
pub fn memory_bytes() -> Option<usize> {
    memory().map(|memory| memory.limit_bytes)
}

/// Raises the number of files that this process may have open at once, connections among them, as
/// far as the system lets it, and says how many that are. `None` without such a limit.
#[cfg(unix)]
pub fn raise_open_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Where that is refused, the limit stays as it is.
    let _ = setrlimit(Resource::Nofile, most);
    getrlimit(Resource::Nofile).current
}

/// There is no such limit here.
#[cfg(not(unix))]
pub fn raise_open_files() -> Option<u64> {
    None
}

/// The processor's name, where the system tells.
pub fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    field(&text, "model name").map(str::to_owned)
}

/// The value on the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(key, _)| key.trim_end() == name).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_processor_names_them_all() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Other\n";
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2 GHz"));
    }
}
