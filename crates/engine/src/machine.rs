//! What this machine has, and how much of it this process can have: [`memory`] in [`Memory`], with
//! the control groups in `cgroup`; processors and open files here.

mod cgroup;
mod memory;

use std::path::Path;

pub use memory::{Limiter, Memory};

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
