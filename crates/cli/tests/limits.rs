//! What the process may have, where less than the machine has, is what it plans with.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Server, vecmill};

/// What a command without a model prints as JSON, behind `setup`.
fn devices(setup: &str) -> Value {
    let mut command = Command::new("sh");
    let script = format!("{setup}\nexec \"$0\" devices --json");
    let output = command.args(["-c", &script, env!("CARGO_BIN_EXE_vecmill")]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["devices"][0].clone()
}

/// The default budget of a plan, behind `setup`.
fn budget(setup: &str) -> u64 {
    let output = vecmill(setup, &["plan", "--json"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["budget_bytes"].as_u64().unwrap()
}

#[test]
fn limits_of_the_process_are_planned_with() {
    for (limit, by) in [("ulimit -v 1500000", "ulimit -v"), ("ulimit -d 1500000", "ulimit -d")] {
        let cpu = devices(limit);
        assert_eq!(cpu["memory_bytes"], 1_500_000 * 1024, "{cpu}");
        assert_eq!(cpu["memory_limited_by"], by, "{cpu}");
        let budget = budget(limit);
        assert!((1 << 20..750_000 * 1024).contains(&budget), "{limit}: {budget}");
    }
}

/// A control group that ends with the test.
struct Group(PathBuf);

impl Group {
    /// One that limits memory to so many bytes, if that is allowed here.
    fn new(bytes: u64) -> std::io::Result<Self> {
        let name = format!("vecmill-test-{}", std::process::id());
        let old = PathBuf::from("/sys/fs/cgroup/memory");
        let (top, file) = match old.is_dir() {
            true => (old, "memory.limit_in_bytes"),
            false => ("/sys/fs/cgroup".into(), "memory.max"),
        };
        let group = Self(top.join(name));
        fs::create_dir(&group.0)?;
        fs::write(group.0.join(file), bytes.to_string())?;
        // The limit is of the group above.
        fs::create_dir(group.inner())?;
        Ok(group)
    }

    fn inner(&self) -> PathBuf {
        self.0.join("inner")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.inner());
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn limits_of_control_groups_are_planned_with() {
    let bytes = 700 << 20;
    let group = match Group::new(bytes) {
        Ok(group) => group,
        Err(error) => {
            let skipped = format!("skipped: no control group can be made here: {error}\n");
            std::io::stderr().write_all(skipped.as_bytes()).unwrap();
            return;
        }
    };
    let enter = format!("echo $$ > {}/cgroup.procs", group.inner().display());
    let cpu = devices(&enter);
    assert_eq!(cpu["memory_bytes"], bytes, "{cpu}");
    let by = cpu["memory_limited_by"].as_str().unwrap();
    // The old kind of groups tells of limits above in each group.
    assert!(by.starts_with(&format!("the cgroup {}", group.0.display())), "{cpu}");
    assert!(cpu["free_memory_bytes"].as_u64().unwrap() <= bytes, "{cpu}");
    let budget = budget(&enter);
    assert!((300 << 20..=600 << 20).contains(&budget), "{budget}");
}

#[test]
fn more_memory_than_there_is_does_not_go_unsaid() {
    for (budget, warned) in [("4000GiB", true), ("64MiB", false)] {
        let output = vecmill("", &["embed", "--memory-budget", budget, "text"]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let warning = "the memory budget is more than this process can have";
        assert_eq!(said.contains(warning), warned, "{said}");
    }
}

#[test]
fn files_that_may_be_open_are_as_many_as_the_system_allows() {
    let mut server = Server::start("ulimit -Sn 200", &[], Stdio::piped());
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.process.0.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = files.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{files}");
    server.process.signal("TERM");
    assert_eq!(server.process.end().code(), Some(0));

    let mut server = Server::start("ulimit -n 200", &[], Stdio::piped());
    let mut log = BufReader::new(server.process.0.stderr.take().unwrap()).lines();
    let warned = log.find(|line| line.as_ref().unwrap().contains("ulimit -n")).unwrap().unwrap();
    assert!(warned.contains("100 connections at once") && warned.contains("8192"), "{warned}");
    // More than that wait, and are answered when others have gone.
    let mut clients: Vec<_> = (0..120).map(|_| server.connect()).collect();
    for mut client in clients.drain(..) {
        assert_eq!(client.get(), 200);
    }
    server.process.signal("TERM");
    assert_eq!(server.process.end().code(), Some(0));
}
