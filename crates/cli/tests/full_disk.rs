//! Disks without room, on each path that is written to, and files given by name that are none.
//!
//! Where the system lets a test mount a small file system, that is the disk; elsewhere a limit on the
//! size of files stands for it.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name)
}

/// Runs its arguments with a file system of `$KIB` KiB at `$DISK`, which goes away with them, and
/// lists what they left there.
const MOUNT: &str = r#"mount -t tmpfs -o size="$KIB"k tmpfs "$DISK" || exit 99
"$@"; code=$?; ls -A "$DISK"; exit $code"#;
/// The same with no file larger than that; a block has 512 bytes in some shells, 1024 in others.
const LIMIT: &str = r#"ulimit -f "$KIB" || exit 99
"$@"; code=$?; ls -A "$DISK"; exit $code"#;

struct SmallDisk {
    home: TempDir,
    kib: usize,
    mounts: bool,
}

impl SmallDisk {
    fn new(kib: usize) -> Self {
        let mut disk = Self { home: TempDir::new().unwrap(), kib, mounts: true };
        let tried = disk.command().arg("true").stderr(Stdio::null()).status();
        disk.mounts = tried.is_ok_and(|status| status.success());
        disk
    }

    fn path(&self) -> PathBuf {
        self.home.path().to_owned()
    }

    /// A command to which the program and its arguments are to be added.
    fn command(&self) -> Command {
        let mut command = if self.mounts {
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--mount", "sh", "-c", MOUNT, "sh"]);
            command
        } else {
            let mut command = Command::new("sh");
            command.args(["-c", LIMIT, "sh"]);
            command
        };
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("KIB", self.kib.to_string()).env("DISK", self.home.path());
        command.env("VECMILL_DEVICE", "cpu").env("HF_HOME", self.home.path().join("hf"));
        command.stdin(Stdio::null());
        command
    }

    /// `vecmill` with the disk as its cache.
    fn vecmill(&self, arguments: &[&str]) -> Command {
        let mut command = self.command();
        command.arg(env!("CARGO_BIN_EXE_vecmill")).args(arguments);
        command.env("VECMILL_CACHE", self.home.path());
        command
    }
}

/// Standard error of a command that must fail and leave nothing, but for what it learned of speeds.
fn failed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let left = String::from_utf8_lossy(&output.stdout).replace("speeds\n", "");
    assert_eq!(left, "", "nothing is printed, nor left");
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    words
}

#[test]
fn vectors_that_find_no_room_are_an_error_that_says_so() {
    let disk = SmallDisk::new(16);
    let model = model("bert-mean");
    for name in ["vectors.jsonl", "vectors.npy"] {
        let output = disk.path().join(name);
        let texts = vec!["text"; 400];
        let arguments =
            [&["embed", "--model-id", model.to_str().unwrap(), "--output"][..]].concat();
        let mut command = disk.vecmill(&arguments);
        let words = failed(command.arg(&output).args(texts));
        assert!(words.contains("no space left") && words.contains(name), "{words}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_device_that_is_always_full_is_a_full_disk() {
    let model = model("bert-mean");
    let arguments = ["embed", "--model-id", model.to_str().unwrap(), "--output", "/dev/full", "x"];
    let words = failed(&mut SmallDisk::new(1024).vecmill(&arguments));
    assert!(words.contains("/dev/full: no space left"), "{words}");
}

#[test]
fn a_conversion_that_finds_no_room_leaves_nothing() {
    let disk = SmallDisk::new(8);
    let output = disk.path().join("new");
    let model = model("bert-mean");
    let arguments = ["convert", "--model", model.to_str().unwrap(), "--dtype", "f32", "--output"];
    let words = failed(disk.vecmill(&arguments).arg(&output));
    assert!(words.contains("no space left"), "{words}");
}

#[test]
fn speeds_that_find_no_room_are_done_without() {
    let disk = SmallDisk::new(4);
    let model = model("bert-mean");
    // So full that not even a folder could be made.
    let mut command = disk.command();
    let fill = r#"head -c 100000 /dev/zero > "$DISK/fill" 2>/dev/null; exec "$@""#;
    command.args(["sh", "-c", fill, "sh", env!("CARGO_BIN_EXE_vecmill"), "embed", "--model-id"]);
    command.arg(model).arg("x").env("VECMILL_CACHE", disk.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A folder of programs of which `python3` is this script.
fn with_python(script: &str) -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let python = folder.path().join("python3");
    fs::write(&python, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn a_model_for_which_there_is_no_room_is_not_fetched() {
    let disk = SmallDisk::new(20 << 10);
    let python = with_python("echo 'ERROR: [Errno 28] No space left on device' >&2; exit 2");
    let path = format!("{}:/bin:/usr/bin:/sbin", python.path().display());
    let mut command = disk.vecmill(&["embed", "x"]);
    let output = command.env("PATH", path).env("HF_ENDPOINT", "http://127.0.0.1:9").output();
    let output = output.unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    if disk.mounts {
        assert!(words.contains("no space left"), "{words}");
        assert!(words.contains("171 MiB needed") && words.contains("free"), "{words}");
        assert!(words.contains("VECMILL_CACHE"), "{words}");
        assert!(words.contains(disk.path().to_str().unwrap()), "{words}");
    } else {
        assert!(words.contains("[Errno 28] No space left on device"), "{words}");
    }
}

#[test]
fn settings_and_keys_are_regular_files() {
    let folder = TempDir::new().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let huge = folder.path().join("huge");
    fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    let binary = folder.path().join("binary");
    fs::write(&binary, [0xff, 0xfe]).unwrap();
    for setting in ["--config", "--api-key-file"] {
        for (file, expected) in [
            (pipe.as_path(), "regular file"),
            (Path::new("/dev/zero"), "regular file"),
            (huge.as_path(), "larger than"),
            (folder.path(), "directory"),
            (binary.as_path(), "UTF-8"),
        ] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_vecmill"));
            command.args(["serve", "--port", "0", setting]).arg(file).env_clear();
            let output = command.stdin(Stdio::null()).output().unwrap();
            let words = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{words}");
            assert!(words.contains(expected) && words.len() < 2000, "{setting}: {words}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn texts_do_not_come_from_a_device_without_an_end() {
    let model = model("bert-mean");
    let arguments = ["embed", "--model-id", model.to_str().unwrap(), "--input"];
    let disk = SmallDisk::new(1024);
    for device in ["/dev/zero", "/dev/urandom", "/dev/full"] {
        let words = failed(disk.vecmill(&arguments).arg(device));
        assert!(words.contains(device) && words.contains("a device"), "{words}");
    }
    let empty = disk.vecmill(&arguments).arg("/dev/null").output().unwrap();
    assert!(empty.status.success(), "{}", String::from_utf8_lossy(&empty.stderr));
}
