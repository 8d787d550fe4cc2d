//! What this machine has.

use std::fs;

use vecmill_backend_cpu::CpuBackend;

use crate::info::Device;

/// The devices of this machine that can run batches.
///
/// ```
/// let devices = vecmill_engine::devices();
/// assert_eq!(devices[0].name, "cpu");
/// ```
pub fn devices() -> Vec<Device> {
    vec![cpu_device(threads())]
}

pub(crate) fn cpu_device(threads: usize) -> Device {
    let plural = if threads == 1 { "" } else { "s" };
    let instructions = CpuBackend::detected_instructions();
    Device { name: "cpu".into(), description: format!("{threads} thread{plural}, {instructions}") }
}

/// Threads that this process may run at once.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Bytes of main memory; without limit where the system does not tell.
pub(crate) fn memory_bytes() -> usize {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    kibibytes.map_or(usize::MAX, |kibibytes: usize| kibibytes.saturating_mul(1024))
}
