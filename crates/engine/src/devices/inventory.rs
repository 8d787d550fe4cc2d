//! The devices of this machine, and the libraries that they need.

use std::path::PathBuf;

use vecmill_backend_cuda::GpuState;

use super::KINDS;
use crate::info::DeviceName;
use crate::machine::Limiter;

/// A kind of device, and those of this machine.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct KindFound {
    /// What the names of such devices begin with, for example `cuda`.
    pub kind: &'static str,
    /// The devices, or why there is none.
    pub devices: Result<Vec<Found>, String>,
}

/// A device of this machine.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Found {
    /// Its name, as [`DeviceSpec`](crate::DeviceSpec) takes it.
    pub name: DeviceName,
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

/// The devices of each kind, or why there is none; the CPU is the first. Asking a GPU that is not in use
/// yet for its free memory takes some tenths of a second.
///
/// ```
/// let kinds = vecmill_engine::inventory::devices();
/// let Ok(cpu) = &kinds[0].devices else { panic!() };
/// assert_eq!(cpu[0].name, "cpu");
/// ```
pub fn devices() -> Vec<KindFound> {
    let found = |kind: &&dyn super::Kind| KindFound { kind: kind.name(), devices: kind.find() };
    KINDS.iter().rev().map(found).collect()
}

/// The libraries that devices need: the drivers', and those that are looked for beside them. Opens
/// them.
///
/// ```
/// let libraries = vecmill_engine::inventory::libraries();
/// assert_eq!(libraries[0].name, "driver");
/// ```
pub fn libraries() -> Vec<Library> {
    KINDS.iter().flat_map(|kind| kind.libraries()).collect()
}
