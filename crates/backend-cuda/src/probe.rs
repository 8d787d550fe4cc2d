//! What GPUs there are.

use crate::driver;
use crate::error::Unavailable;

/// A GPU that the driver shows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuInfo {
    /// Its number, as [`Gpu::open`](crate::Gpu::open) takes it. `CUDA_VISIBLE_DEVICES`
    /// changes the numbering.
    pub ordinal: usize,
    /// For example `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// What `nvidia-smi -L` shows behind `GPU-` or `MIG-`; stays the same when numbers change.
    pub uuid: String,
    /// Major and minor number: `(9, 0)` is Hopper.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub total_memory: usize,
    /// Bytes that nobody uses, beside what a context needs. Only a device that was
    /// [opened](crate::Gpu::open) tells: [`devices`] makes no context to ask with.
    pub free_memory: Option<usize>,
    /// Whether memory can be mapped to reserved addresses, as [`MappedSource`](crate::MappedSource)
    /// does.
    pub maps_memory: bool,
    /// Whether the driver has pools of its own, as
    /// [`StreamOrderedSource`](crate::StreamOrderedSource) uses them.
    pub pools_memory: bool,
    /// The CUDA version that the driver supports, for example `(12, 4)`.
    pub driver: (u32, u32),
}

/// The GPUs of this machine, by number. Takes nothing of them.
///
/// ```
/// match vecmill_backend_cuda::devices() {
///     Ok(devices) => devices.iter().for_each(|gpu| println!("{}: {}", gpu.ordinal, gpu.name)),
///     Err(reason) => println!("no GPU: {reason}"),
/// }
/// ```
///
/// # Errors
/// [`Unavailable`] says why no GPU can be used.
pub fn devices() -> Result<Vec<GpuInfo>, Unavailable> {
    (0..driver::device_count()?).map(driver::device_info).collect()
}
