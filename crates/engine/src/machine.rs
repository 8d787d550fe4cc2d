//! What this machine has.

use std::path::{Path, PathBuf};

use vecmill_backend_cuda::{self as cuda, DeviceInfo, DeviceState};

use crate::device::{DeviceSpec, cpu_info, free_memory, gpus, state};

/// A device of this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its name, as [`DeviceSpec`](crate::DeviceSpec) takes it.
    pub name: String,
    /// What it is, for example `2 threads, AVX2`.
    pub description: String,
    /// The processor's name, where the system tells.
    pub processor: Option<String>,
    /// Bytes of memory, where the system tells.
    pub memory_bytes: Option<usize>,
    /// Bytes of it that nobody uses now: of a GPU, where its driver tells.
    pub free_memory_bytes: Option<usize>,
    /// What it says of itself, if it does.
    pub state: Option<DeviceState>,
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
    let cpu = Found {
        name: info.name,
        description: info.description,
        processor: processor(),
        memory_bytes: memory_bytes(),
        free_memory_bytes: None,
        state: None,
    };
    let gpus = gpus().map_err(|reason| reason.to_string());
    (cpu, gpus.map(|gpus| gpus.iter().map(found).collect()))
}

fn found(gpu: &DeviceInfo) -> Found {
    let (major, minor) = gpu.compute_capability;
    Found {
        name: DeviceSpec::Cuda(Some(gpu.ordinal)).to_string(),
        description: format!("compute capability {major}.{minor}"),
        processor: Some(gpu.name.clone()),
        memory_bytes: Some(gpu.total_memory),
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

/// Threads that this process may run at once.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Bytes of memory that this process may use: the machine's, or its container's if that is less.
/// `None` where the system does not tell.
pub fn memory_bytes() -> Option<usize> {
    let machine = read("/proc/meminfo").and_then(|text| total_memory(&text));
    let container = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(container).min()
}

/// The processor's name, where the system tells.
pub fn processor() -> Option<String> {
    let text = read("/proc/cpuinfo")?;
    field(&text, "model name").map(str::to_owned)
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(path)).ok()
}

fn total_memory(meminfo: &str) -> Option<usize> {
    let kibibytes = field(meminfo, "MemTotal")?.strip_suffix("kB")?.trim_end();
    kibibytes.parse::<usize>().ok()?.checked_mul(1024)
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
    fn memory_is_read_in_kibibytes() {
        let text = "MemFree:  12 kB\nMemTotal:       24576000 kB\n";
        assert_eq!(total_memory(text), Some(24_576_000 * 1024));
        assert_eq!(total_memory("MemTotal: much"), None);
    }

    #[test]
    fn the_first_processor_names_them_all() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Other\n";
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2 GHz"));
    }
}
