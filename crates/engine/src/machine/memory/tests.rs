use super::super::cgroup::tests::Tree;
use super::*;

const MACHINE: (&str, &str) =
    ("proc/meminfo", "MemTotal:  1000000 kB\nMemFree:  2 kB\nMemAvailable:   600000 kB\n");

const FREE: Process = Process { pid: 1, address_space: None, data: None };

/// Limit and what is free, in units of 1,000 KiB, and where they come from.
fn least(tree: &Tree, process: Process) -> (usize, usize, String, String) {
    let Memory { limit_bytes, limited_by, free_bytes, scarcest } =
        memory(tree.root(), process).unwrap();
    let unit = 1_024_000;
    (limit_bytes / unit, free_bytes / unit, limited_by.to_string(), scarcest.to_string())
}

#[test]
fn without_other_limits_there_is_what_the_machine_has() {
    let machine = "the machine".to_owned();
    let expected = (1000, 600, machine.clone(), machine.clone());
    assert_eq!(least(&Tree::new(&[MACHINE]), FREE), expected);
    let old = ("proc/meminfo", "MemTotal: 1000000 kB\nMemFree: 200000 kB\n");
    assert_eq!(least(&Tree::new(&[old]), FREE), (1000, 200, machine.clone(), machine));
    for nonsense in ["", "MemTotal: much\n", "MemTotal: 99999999999999999999 kB\n", "MemTotal"] {
        assert_eq!(memory(Tree::new(&[("proc/meminfo", nonsense)]).root(), FREE), None);
    }
}

#[test]
fn the_smallest_limit_and_the_scarcest_need_not_be_the_same() {
    let tree = Tree::new(&[
        MACHINE,
        ("proc/self/cgroup", "0::/a/b\n"),
        ("proc/self/mountinfo", "1 1 0:1 / /cg rw - cgroup2 cgroup2 rw\n"),
        ("cg/a/memory.max", "819200000"),
        ("cg/a/memory.current", "716800000"),
        ("cg/a/b/memory.max", "716800000"),
        ("cg/a/b/memory.current", "0"),
    ]);
    let group = |name: &str| format!("the cgroup {}", tree.root().join(name).display());
    assert_eq!(least(&tree, FREE), (700, 100, group("cg/a/b"), group("cg/a")));
}

#[test]
fn a_process_may_limit_itself() {
    let status = ("proc/self/status", "VmSize:\t  102400 kB\nVmData:\t   51200 kB\n");
    let tree = Tree::new(&[MACHINE, status]);
    // Half of the addresses that are left are for stacks and arenas.
    let limited = Process { address_space: Some(700 << 20), ..FREE };
    let by = || "ulimit -v".to_owned();
    assert_eq!(least(&tree, limited), (716, 307, by(), by()));
    let limited = Process { data: Some(150 << 20), ..FREE };
    let by = || "ulimit -d".to_owned();
    assert_eq!(least(&tree, limited), (153, 51, by(), by()));
    let exhausted = Process { data: Some(1 << 20), ..FREE };
    assert_eq!(least(&tree, exhausted).1, 0);
}

#[test]
fn something_is_left_beside_weights_and_batches() {
    let usable = |free: usize| {
        let (limited_by, scarcest) = (Limiter::Machine, Limiter::Machine);
        Memory { limit_bytes: free, limited_by, free_bytes: free, scarcest }.usable_bytes()
    };
    assert_eq!(usable(0), 0);
    assert_eq!(usable(100 << 20), 75 << 20);
    assert_eq!(usable(640 << 20), 512 << 20);
    assert_eq!(usable(20 << 30), 18 << 30);
    assert!(usable(usize::MAX) < usize::MAX);
}
