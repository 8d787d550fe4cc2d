//! How much memory this process can have: the least of what the machine, the control groups and the
//! limits of the process leave.
//!
//! The limit on the resident set (`RLIMIT_RSS`) is not among them: Linux has not heeded it since 2.4.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::{cgroup, field};

/// Bytes that are left over beside weights and batches, where there are so many: the program itself,
/// its threads, the tokenizer, requests and replies.
const BESIDE: u64 = 128 << 20;

/// The memory that this process can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The most bytes, whether used or not.
    pub limit_bytes: usize,
    /// Where that limit comes from.
    pub limited_by: Limiter,
    /// The bytes that can be had now. Another limit may leave less than the smallest does.
    pub free_bytes: usize,
    /// Where those come from.
    pub scarcest: Limiter,
}

/// What limits the memory of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limiter {
    /// The machine: it has no more, or a container that shows its limit as the machine's.
    Machine,
    /// The control group with this folder.
    Cgroup(PathBuf),
    /// The process's address space, as `ulimit -v` limits it.
    AddressSpace,
    /// The process's data, as `ulimit -d` limits them.
    Data,
}

impl fmt::Display for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => f.write_str("the machine"),
            Self::Cgroup(folder) => write!(f, "the cgroup {}", folder.display()),
            Self::AddressSpace => f.write_str("ulimit -v"),
            Self::Data => f.write_str("ulimit -d"),
        }
    }
}

impl Memory {
    /// Bytes that weights and batches may take unless a setting says otherwise: what is free but for
    /// a tenth of it, or 128 MiB if that is more and there is plenty.
    ///
    /// ```
    /// use vecmill_engine::machine::{Limiter, Memory};
    ///
    /// let (limited_by, scarcest) = (Limiter::Machine, Limiter::Machine);
    /// let memory = Memory { limit_bytes: 20 << 30, limited_by, free_bytes: 10 << 30, scarcest };
    /// assert_eq!(memory.usable_bytes(), 9 << 30);
    /// ```
    pub fn usable_bytes(&self) -> usize {
        let free = self.free_bytes as u64;
        let beside = (free / 10).max(BESIDE.min(free / 4));
        bytes(free - beside)
    }
}

/// What one limit says.
struct Limit {
    by: Limiter,
    bytes: u64,
    free: u64,
}

/// The process that asks, where its own limits are known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// Bytes of `RLIMIT_AS`.
    pub(super) address_space: Option<u64>,
    /// Bytes of `RLIMIT_DATA`.
    pub(super) data: Option<u64>,
}

impl Process {
    /// This one.
    #[cfg(unix)]
    pub(super) fn this() -> Self {
        use rustix::process::{Resource, getrlimit};
        Self {
            pid: std::process::id(),
            address_space: getrlimit(Resource::As).current,
            data: getrlimit(Resource::Data).current,
        }
    }

    /// This one.
    #[cfg(not(unix))]
    pub(super) fn this() -> Self {
        Self { pid: std::process::id(), address_space: None, data: None }
    }
}

/// The memory that `process` can have; the system's files are below `root`. `None` where nothing
/// tells.
pub(super) fn memory(root: &Path, process: Process) -> Option<Memory> {
    let limits = limits(root, process);
    let least = limits.iter().min_by_key(|limit| limit.bytes)?;
    let scarcest = limits.iter().min_by_key(|limit| limit.free)?;
    Some(Memory {
        limit_bytes: bytes(least.bytes),
        limited_by: least.by.clone(),
        free_bytes: bytes(scarcest.free.min(least.bytes)),
        scarcest: scarcest.by.clone(),
    })
}

fn limits(root: &Path, process: Process) -> Vec<Limit> {
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
    let (machine, status) = (read("proc/meminfo"), read("proc/self/status"));
    let mut limits = Vec::new();
    if let Some(bytes) = size(&machine, "MemTotal") {
        let free = size(&machine, "MemAvailable").or_else(|| size(&machine, "MemFree"));
        let free = free.unwrap_or(bytes).min(bytes);
        limits.push(Limit { by: Limiter::Machine, bytes, free });
    }
    for group in cgroup::memory_limits(root, process.pid) {
        let free = group.bytes.saturating_sub(group.used);
        limits.push(Limit { by: Limiter::Cgroup(group.folder), bytes: group.bytes, free });
    }
    let own = [
        (Limiter::AddressSpace, process.address_space, "VmSize"),
        (Limiter::Data, process.data, "VmData"),
    ];
    for (by, bytes, used) in own {
        let Some(bytes) = bytes else { continue };
        let left = bytes.saturating_sub(size(&status, used).unwrap_or_default());
        // Stacks of threads and the allocator's arenas take addresses by far more than they use.
        limits.push(Limit { by, bytes, free: left / 2 });
    }
    limits
}

/// The bytes on the line `name: number kB`.
fn size(text: &str, name: &str) -> Option<u64> {
    let kibibytes = field(text, name)?.strip_suffix("kB")?.trim_end();
    kibibytes.parse::<u64>().ok()?.checked_mul(1024)
}

fn bytes(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
