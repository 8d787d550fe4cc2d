//! The control groups that this process is in, and what they let it have of memory and processors.
//!
//! A group's limit holds for all groups in it, so each folder counts from the process's own up to the
//! top of what is mounted: a limit of systemd's slice, of a Kubernetes pod or of the container. Both
//! versions are read, also side by side. Where the own folder is comes from `/proc/self/cgroup` and
//! `/proc/self/mountinfo`; nothing is assumed about `/sys/fs/cgroup`.
//!
//! The choice behind it: own code, because what there is reads the process's own level alone
//! (`sysinfo`), manages groups (`cgroups-rs`), or fails at the first line that it does not know
//! (`procfs`). Whatever can't be read or makes no sense is no limit.

use std::collections::VecDeque;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// What version 1 says where there is no limit: the largest number of whole pages.
const BOUNDLESS: u64 = (i64::MAX as u64) / 4096 * 4096;

/// The most folders that are searched for the one with this process in it.
const SEARCHED: usize = 1024;

/// A limit on memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MemoryLimit {
    /// The group's folder.
    pub(super) folder: PathBuf,
    /// The most bytes that processes in the group may have.
    pub(super) bytes: u64,
    /// Bytes that they have and that the system can't take back by itself.
    pub(super) used: u64,
}

/// The limits on the memory of the process `pid`, whose system's files are below `root`.
pub(super) fn memory_limits(root: &Path, pid: u32) -> Vec<MemoryLimit> {
    let mut limits = Vec::new();
    for (version, folder) in folders(root, "memory", pid) {
        let read = |file: &str| number(&folder.join(file));
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let stat = |name: &str| statistic(&stat, name).unwrap_or_default();
        let sum = |names: &[&str]| names.iter().fold(0, |sum, name| stat(name).saturating_add(sum));
        let (bytes, held, taken_back) = match version {
            // Above `high` the system takes memory back so hard that nothing else is done.
            Version::Two => (
                [read("memory.max"), read("memory.high")].into_iter().flatten().min(),
                read("memory.current"),
                sum(&["inactive_file", "active_file", "slab_reclaimable"]),
            ),
            // The second also knows the groups above those that can be seen.
            Version::One => (
                [read("memory.limit_in_bytes"), Some(stat("hierarchical_memory_limit"))]
                    .into_iter()
                    .flatten()
                    .filter(|bytes| (1..BOUNDLESS).contains(bytes))
                    .min(),
                read("memory.usage_in_bytes"),
                sum(&["total_inactive_file", "total_active_file"]),
            ),
        };
        if let Some(bytes) = bytes.filter(|bytes| *bytes > 0) {
            let used = held.unwrap_or_default().saturating_sub(taken_back);
            limits.push(MemoryLimit { folder, bytes, used });
        }
    }
    limits
}

/// The most processors that the process `pid` may keep busy; `None` without such a limit. A part of
/// one counts as one.
pub(super) fn processors(root: &Path, pid: u32) -> Option<usize> {
    let quota = |(version, folder): (Version, PathBuf)| {
        let (quota, period) = match version {
            Version::Two => {
                let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
                let mut numbers = text.split_ascii_whitespace().map(str::parse::<u64>);
                (numbers.next()?.ok()?, numbers.next()?.ok()?)
            }
            Version::One => {
                let read = |file: &str| number(&folder.join(file));
                (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
            }
        };
        usize::try_from(quota.checked_div(period)?).ok()
    };
    folders(root, "cpu", pid).into_iter().filter_map(quota).min().map(|whole| whole.max(1))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A hierarchy of groups, or a part of one, as it is mounted.
struct Mount {
    version: Version,
    /// Which part of the hierarchy.
    part: PathBuf,
    folder: PathBuf,
}

/// The folders of the groups with the process in them: the innermost first in each mount.
fn folders(root: &Path, controller: &str, pid: u32) -> Vec<(Version, PathBuf)> {
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
    let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mut found = Vec::new();
    for mount in mounts.lines().filter_map(|line| mount(line, controller, root)) {
        let Some(group) = groups.lines().find_map(|line| group(line, controller, mount.version))
        else {
            continue;
        };
        let mut folder = own_folder(&mount, group, pid);
        loop {
            found.push((mount.version, folder.clone()));
            if folder == mount.folder || !folder.pop() || !inherits(&folder) {
                break;
            }
        }
    }
    found
}

/// Whether limits of this folder hold for the groups in it: in version 1 that can be turned off.
fn inherits(folder: &Path) -> bool {
    number(&folder.join("memory.use_hierarchy")) != Some(0)
}

/// The process's folder in a mount.
fn own_folder(mount: &Mount, group: &Path, pid: u32) -> PathBuf {
    let known = group.strip_prefix(&mount.part).ok().filter(|rest| is_plain(rest));
    if let Some(rest) = known {
        let mut folder = mount.folder.join(rest);
        // A part of the path may not be there, where a container has another view of the groups.
        while !folder.is_dir() && folder != mount.folder && folder.pop() {}
        return folder;
    }
    // Seen from a namespace of groups, what is above it has no names (`/../..`).
    search(&mount.folder, pid).unwrap_or_else(|| mount.folder.clone())
}

fn is_plain(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// The folder at or below `top` that has the process in it.
fn search(top: &Path, pid: u32) -> Option<PathBuf> {
    let pid = pid.to_string();
    let mut left = VecDeque::from([top.to_owned()]);
    for _ in 0..SEARCHED {
        let folder = left.pop_front()?;
        let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        if processes.lines().any(|line| line == pid) {
            return Some(folder);
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok);
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        left.extend(folders.map(|entry| entry.path()));
    }
    None
}

/// The group that a line of `/proc/self/cgroup` names, if it is of this version and controller.
fn group<'a>(line: &'a str, controller: &str, version: Version) -> Option<&'a Path> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let named = match version {
        Version::Two => number == "0" && controllers.is_empty(),
        Version::One => controllers.split(',').any(|name| name == controller),
    };
    named.then(|| Path::new(path))
}

/// The mount that a line of `/proc/self/mountinfo` describes, if it has groups of this controller.
fn mount(line: &str, controller: &str, root: &Path) -> Option<Mount> {
    let (mount, about) = line.split_once(" - ")?;
    let mut about = about.split(' ');
    let version = match about.next()? {
        "cgroup2" => Version::Two,
        "cgroup" if about.nth(1)?.split(',').any(|name| name == controller) => Version::One,
        _ => return None,
    };
    let mut fields = mount.split(' ').skip(3);
    let (part, folder) = (unescaped(fields.next()?), unescaped(fields.next()?));
    let folder = root.join(folder.strip_prefix('/').unwrap_or(&folder));
    Some(Mount { version, part: part.into(), folder })
}

/// A path of `mountinfo`, where blanks and backslashes are written as `\040` and the like.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => plain.extend([char::from(code)].into_iter().chain(part[3..].chars())),
            None => plain.extend(['\\'].into_iter().chain(part.chars())),
        }
    }
    plain
}

/// The number that a file has in it; `max` and anything else is none.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number on the line `name number`.
fn statistic(text: &str, name: &str) -> Option<u64> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

#[cfg(test)]
pub(super) mod tests;
