//! Each kind of container as files: what it shows of itself, and what must be read from that.

use super::*;

/// A machine made of files.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    /// With these files, by their path and content.
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            let path = tree.root().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        tree
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    /// Folder, limit and use of each level, the innermost first.
    fn memory(&self) -> Vec<(String, u64, u64)> {
        let limits = memory_limits(self.root(), PID).into_iter();
        let below = |folder: &Path| folder.strip_prefix(self.root()).unwrap().display().to_string();
        limits.map(|limit| (below(&limit.folder), limit.bytes, limit.used)).collect()
    }

    fn processors(&self) -> Option<usize> {
        processors(self.root(), PID)
    }
}

const PID: u32 = 4711;

const CGROUP: &str = "proc/self/cgroup";
const MOUNTINFO: &str = "proc/self/mountinfo";

/// What a container of version 2 sees, and systemd's host.
const WHOLE_2: &str = "23 20 0:22 / / rw - overlay overlay rw\n\
    30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate\n";

fn level(folder: &str, bytes: u64, used: u64) -> (String, u64, u64) {
    (folder.to_owned(), bytes, used)
}

#[test]
fn docker_with_version_2_has_a_namespace() {
    let tree = Tree::new(&[
        (CGROUP, "0::/\n"),
        (MOUNTINFO, WHOLE_2),
        ("sys/fs/cgroup/memory.max", "734003200\n"),
        ("sys/fs/cgroup/memory.high", "max\n"),
        ("sys/fs/cgroup/memory.current", "100000000\n"),
        (
            "sys/fs/cgroup/memory.stat",
            "anon 20000000\ninactive_file 50000000\nactive_file 10000000\nslab_reclaimable 5000000\n",
        ),
        ("sys/fs/cgroup/cpu.max", "150000 100000\n"),
    ]);
    // What the system can take back from files is free.
    assert_eq!(tree.memory(), [level("sys/fs/cgroup", 734_003_200, 35_000_000)]);
    assert_eq!(tree.processors(), Some(1));
}

#[test]
fn docker_with_version_1_sees_its_own_part() {
    let id = "/docker/0123abcd";
    let mounts = format!(
        "40 30 0:30 {id} /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
         41 30 0:31 {id} /sys/fs/cgroup/memory ro master:17 - cgroup cgroup rw,memory\n"
    );
    let tree = Tree::new(&[
        (CGROUP, &format!("11:memory:{id}\n4:cpu,cpuacct:{id}\n1:name=systemd:{id}\n")),
        (MOUNTINFO, &mounts),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "734003200\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "90000000\n"),
        (
            "sys/fs/cgroup/memory/memory.stat",
            "cache 1\ninactive_file 7\nhierarchical_memory_limit 734003200\n\
             total_inactive_file 30000000\ntotal_active_file 10000000\n",
        ),
        ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "350000\n"),
        ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
    ]);
    assert_eq!(tree.memory(), [level("sys/fs/cgroup/memory", 734_003_200, 50_000_000)]);
    assert_eq!(tree.processors(), Some(3));
}

#[test]
fn version_1_knows_of_limits_that_can_t_be_seen() {
    let tree = Tree::new(&[
        (CGROUP, "4:memory:/\n"),
        (MOUNTINFO, "41 30 0:31 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n"),
        ("sys/fs/cgroup/memory/memory.stat", "hierarchical_memory_limit 524288000\n"),
    ]);
    assert_eq!(tree.memory(), [level("sys/fs/cgroup/memory", 524_288_000, 1000)]);
}

#[test]
fn nobody_is_limited_by_a_group_that_does_not_pass_its_limit_on() {
    let tree = Tree::new(&[
        (CGROUP, "4:memory:/a/b\n"),
        (MOUNTINFO, "41 30 0:31 / /cg rw - cgroup cgroup rw,memory\n"),
        ("cg/a/b/memory.limit_in_bytes", "5000\n"),
        ("cg/a/memory.limit_in_bytes", "1000\n"),
        ("cg/a/memory.use_hierarchy", "0\n"),
    ]);
    assert_eq!(tree.memory(), [level("cg/a/b", 5000, 0)]);
}

#[test]
fn podman_without_root_has_a_namespace_in_the_user_s_slice() {
    let tree = Tree::new(&[
        (CGROUP, "0::/\n"),
        (MOUNTINFO, "900 880 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"),
        ("sys/fs/cgroup/memory.max", "536870912"),
        ("sys/fs/cgroup/memory.current", "max"),
    ]);
    assert_eq!(tree.memory(), [level("sys/fs/cgroup", 536_870_912, 0)]);
    assert_eq!(tree.processors(), None);
}

#[test]
fn kubernetes_limits_the_pod_and_the_containers_in_it() {
    let pod = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice";
    let container = format!("{pod}/cri-containerd-2.scope");
    let at = |folder: &str, file: &str| format!("sys/fs/cgroup/{folder}/{file}");
    let tree = Tree::new(&[
        (CGROUP, &format!("0::/{container}\n")),
        (MOUNTINFO, WHOLE_2),
        (&at(&container, "memory.max"), "2000000000"),
        (&at(&container, "memory.current"), "5"),
        (&at(&container, "cpu.max"), "max 100000"),
        (&at(pod, "memory.max"), "1000000000"),
        (&at(pod, "memory.current"), "400000000"),
        (&at(pod, "cpu.max"), "250000 100000"),
        (&at("kubepods.slice", "memory.max"), "8000000000"),
        (&at("kubepods.slice", "memory.current"), "3000000000"),
        (&at("kubepods.slice", "cpu.max"), "400000 100000"),
    ]);
    let levels = [
        level(&format!("sys/fs/cgroup/{container}"), 2_000_000_000, 5),
        level(&format!("sys/fs/cgroup/{pod}"), 1_000_000_000, 400_000_000),
        level("sys/fs/cgroup/kubepods.slice", 8_000_000_000, 3_000_000_000),
    ];
    assert_eq!(tree.memory(), levels);
    assert_eq!(tree.processors(), Some(2));
}

#[test]
fn systemd_limits_slices_and_slows_down_above_high() {
    let service = "sys/fs/cgroup/system.slice/vecmill.service";
    let tree = Tree::new(&[
        (CGROUP, "0::/system.slice/vecmill.service\n"),
        (MOUNTINFO, WHOLE_2),
        (&format!("{service}/memory.max"), "max"),
        (&format!("{service}/memory.high"), "600000000"),
        (&format!("{service}/cpu.max"), "50000 100000"),
        ("sys/fs/cgroup/system.slice/memory.max", "900000000"),
        ("sys/fs/cgroup/system.slice/memory.high", "800000000"),
    ]);
    let levels =
        [level(service, 600_000_000, 0), level("sys/fs/cgroup/system.slice", 800_000_000, 0)];
    assert_eq!(tree.memory(), levels);
    assert_eq!(tree.processors(), Some(1), "half a processor is one thread");
}

#[test]
fn lxc_runs_an_init_of_its_own() {
    let tree = Tree::new(&[
        (CGROUP, "0::/system.slice/vecmill.service\n"),
        (MOUNTINFO, "612 600 0:27 / /sys/fs/cgroup rw - cgroup2 none rw,nsdelegate\n"),
        ("sys/fs/cgroup/system.slice/vecmill.service/memory.max", "max"),
        ("sys/fs/cgroup/system.slice/memory.max", "max"),
        ("sys/fs/cgroup/memory.max", "1073741824"),
    ]);
    assert_eq!(tree.memory(), [level("sys/fs/cgroup", 1 << 30, 0)]);
}

#[test]
fn both_versions_side_by_side_are_both_heeded() {
    let mounts = "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        35 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        36 31 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    let tree = Tree::new(&[
        (CGROUP, "9:name=systemd:/user.slice\n4:memory:/user.slice\n0::/user.slice/a\n"),
        (MOUNTINFO, mounts),
        ("sys/fs/cgroup/memory/user.slice/memory.limit_in_bytes", "700000000"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
        ("sys/fs/cgroup/unified/user.slice/a/cgroup.procs", "4711\n"),
    ]);
    assert_eq!(tree.memory(), [level("sys/fs/cgroup/memory/user.slice", 700_000_000, 0)]);
}

#[test]
fn groups_may_be_mounted_anywhere() {
    let tree = Tree::new(&[
        (CGROUP, "0::/a b/with:colon\n"),
        (MOUNTINFO, "36 35 98:0 /a\\040b /my\\040groups\\134 rw shared:1 - cgroup2 none rw\n"),
        ("my groups\\/with:colon/memory.max", "3000"),
        ("my groups\\/memory.max", "2000"),
        ("my groups\\/cpu.max", "200000 100000"),
    ]);
    let levels = [level("my groups\\/with:colon", 3000, 0), level("my groups\\", 2000, 0)];
    assert_eq!(tree.memory(), levels);
    assert_eq!(tree.processors(), Some(2));
}

#[test]
fn a_namespace_without_names_for_what_is_above_is_searched() {
    for (group, part) in [("/", "/../.."), ("/inner", "/../../.."), ("/../other", "/")] {
        let tree = Tree::new(&[
            (CGROUP, &format!("0::{group}\n")),
            (MOUNTINFO, &format!("30 23 0:26 {part} /sys/fs/cgroup rw - cgroup2 cgroup rw\n")),
            ("sys/fs/cgroup/other/cgroup.procs", "1\n47\n"),
            ("sys/fs/cgroup/slice/cgroup.procs", ""),
            ("sys/fs/cgroup/slice/memory.max", "5000"),
            ("sys/fs/cgroup/slice/own/cgroup.procs", "12\n4711\n"),
            ("sys/fs/cgroup/slice/own/memory.max", "9000"),
        ]);
        let levels =
            [level("sys/fs/cgroup/slice/own", 9000, 0), level("sys/fs/cgroup/slice", 5000, 0)];
        assert_eq!(tree.memory(), levels, "{group} {part}");
    }
}

#[test]
fn where_the_own_folder_is_not_there_the_nearest_one_is_taken() {
    for (group, part) in [("/docker/ab/cd", "/docker"), ("/gone (deleted)", "/"), ("/x", "/y")] {
        let tree = Tree::new(&[
            (CGROUP, &format!("4:memory:{group}\n")),
            (MOUNTINFO, &format!("41 30 0:31 {part} /cg rw - cgroup cgroup rw,memory\n")),
            ("cg/memory.limit_in_bytes", "5000"),
        ]);
        assert_eq!(tree.memory(), [level("cg", 5000, 0)], "{group} {part}");
    }
}

#[test]
fn what_makes_no_sense_is_no_limit() {
    for text in ["", "max", "-1", "much", "0", "1e9", "99999999999999999999999", "\u{0}"] {
        let tree = Tree::new(&[
            (CGROUP, "0::/\n"),
            (MOUNTINFO, WHOLE_2),
            ("sys/fs/cgroup/memory.max", text),
            ("sys/fs/cgroup/cpu.max", text),
        ]);
        assert_eq!((tree.memory(), tree.processors()), (vec![], None), "{text:?}");
    }
    let huge = u64::MAX;
    let stat = format!("inactive_file {huge}\nactive_file {huge}\nslab_reclaimable x\nlone\n");
    let tree = Tree::new(&[
        (CGROUP, "0::/\n"),
        (MOUNTINFO, WHOLE_2),
        ("sys/fs/cgroup/memory.max", "5000"),
        ("sys/fs/cgroup/memory.current", "4000"),
        ("sys/fs/cgroup/memory.stat", &stat),
        ("sys/fs/cgroup/cpu.max", "100 0"),
    ]);
    assert_eq!((tree.memory(), tree.processors()), (vec![level("sys/fs/cgroup", 5000, 0)], None));
}

#[test]
fn lines_that_make_no_sense_are_skipped() {
    for (groups, mounts) in [
        ("", ""),
        ("0::/", ""),
        ("", WHOLE_2),
        ("0:", WHOLE_2),
        ("::::::", "- - - - -"),
        ("0::/", "30 23 0:26 - cgroup2"),
        ("0::/", "30 23 0:26 / /cg rw - cgroup"),
        ("5:memory:/", "41 30 0:31 / /cg rw - cgroup cgroup\n\\0\\4\\"),
    ] {
        let tree = Tree::new(&[
            (CGROUP, groups),
            (MOUNTINFO, mounts),
            ("sys/fs/cgroup/memory.max", "5000"),
            ("cg/memory.limit_in_bytes", "5000"),
        ]);
        assert_eq!((tree.memory(), tree.processors()), (vec![], None), "{groups:?} {mounts:?}");
    }
    // After nonsense, what makes sense is read.
    let tree = Tree::new(&[
        (CGROUP, "nonsense\n\n0::/\n"),
        (MOUNTINFO, &format!("nonsense\n\n{WHOLE_2}")),
        ("sys/fs/cgroup/memory.max", "5000"),
    ]);
    assert_eq!(tree.memory(), [level("sys/fs/cgroup", 5000, 0)]);
}
