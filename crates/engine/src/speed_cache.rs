//! Learned speeds, kept from one run to the next: a file per device, model and number format.
//!
//! The choice behind it: a file that can't be read or written costs only what it would have saved, a
//! few batches until speeds are known, so nothing here is an error. Files are there whole or not at
//! all, and the oldest make room for new ones.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vecmill_scheduler::Coefficients;

use crate::aside::Aside;
use vecmill_model::disk;

/// The most files that are kept.
const FILES: usize = 64;
/// The most of a file that is read: one has about 300 bytes.
const LIMIT: u64 = 16 << 10;
/// What the names of unfinished files start with, and when nobody is at work on one any more.
const PARTIAL: &str = ".partial-";
const STALE: Duration = Duration::from_secs(3600);

/// Where a device's speed is kept.
#[derive(Debug, Clone)]
pub(crate) struct CachedSpeed {
    path: PathBuf,
    /// What the speed holds for. It is in the file's name as a digest, and in the file for readers.
    of: String,
}

#[derive(Serialize, Deserialize)]
struct Content {
    of: String,
    fixed: f64,
    per_token: f64,
    per_square: f64,
}

impl CachedSpeed {
    /// In `folder`, for what `of` names: device, driver, model, number format.
    pub(crate) fn new(folder: &Path, of: String) -> Self {
        let digest = Sha256::digest(of.as_bytes());
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self { path: folder.join(format!("{name}.json")), of }
    }

    /// What was kept, if it is of use.
    pub(crate) fn read(&self) -> Option<Coefficients> {
        let content: Content =
            serde_json::from_slice(&disk::read_regular(&self.path, LIMIT).ok()?).ok()?;
        let Content { of, fixed, per_token, per_square } = content;
        let speed = Coefficients { fixed, per_token, per_square };
        (of == self.of && speed.are_sound()).then_some(speed)
    }

    /// Keeps these for the next run; waits but a moment for a disk that does not answer.
    pub(crate) fn write_all(speeds: Vec<(Self, Coefficients)>) {
        let write = move || speeds.iter().for_each(|(kept, speed)| kept.write(*speed));
        if let Err(error) = Aside::start("keep", write) {
            tracing::debug!(%error, "learned speeds can't be kept");
        }
    }

    /// Keeps `speed` for the next run.
    fn write(&self, speed: Coefficients) {
        let Coefficients { fixed, per_token, per_square } = speed;
        let content = Content { of: self.of.clone(), fixed, per_token, per_square };
        let write = || -> io::Result<()> {
            let Some(folder) = self.path.parent() else { return Ok(()) };
            fs::create_dir_all(folder)?;
            let mut file = disk::temporary(folder, PARTIAL)?;
            serde_json::to_writer(&mut file, &content)?;
            file.persist(&self.path)?;
            prune(folder, FILES)
        };
        if let Err(error) = write() {
            tracing::debug!(path = %self.path.display(), %error, "a learned speed can't be kept");
        }
    }
}

/// Removes all but the newest `most` files, and what processes that were killed left.
fn prune(folder: &Path, most: usize) -> io::Result<()> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if !metadata.is_file() {
            continue;
        }
        let age = metadata.modified()?.elapsed().unwrap_or_default();
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            if age > STALE {
                fs::remove_file(path)?;
            }
        } else if path.extension().is_some_and(|ending| ending == "json") {
            kept.push((age, path));
        }
    }
    kept.sort_unstable();
    kept.into_iter().skip(most).try_for_each(|(_, path)| fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_comes_back_for_the_same_device_and_model_only() {
        let folder = tempfile::tempdir().unwrap();
        let kept = |of: &str| CachedSpeed::new(folder.path(), of.to_owned());
        assert_eq!(kept("cuda:0 model-a").read(), None);
        let speed = Coefficients { fixed: 0.001, per_token: 1e-6, per_square: 0.0 };
        kept("cuda:0 model-a").write(speed);
        assert_eq!(kept("cuda:0 model-a").read(), Some(speed));
        assert_eq!(kept("cuda:0 model-b").read(), None);
    }

    #[test]
    fn what_makes_no_sense_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let kept = CachedSpeed::new(folder.path(), "cpu".to_owned());
        kept.write(Coefficients { fixed: -1.0, per_token: 1e-6, per_square: 0.0 });
        assert_eq!(kept.read(), None);
        fs::write(&kept.path, "{").unwrap();
        assert_eq!(kept.read(), None);
    }

    #[test]
    fn the_folder_does_not_grow_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let speed = Coefficients { fixed: 0.001, per_token: 1e-6, per_square: 0.0 };
        // Other people's files are not ours to remove, whatever they are called.
        fs::create_dir(folder.path().join("folder.json")).unwrap();
        fs::write(folder.path().join("note.txt"), "").unwrap();
        let kept = |index: usize| CachedSpeed::new(folder.path(), format!("device {index}"));
        let hour_ago = std::time::SystemTime::now() - STALE * 2;
        let age = |path: &Path| {
            fs::File::options().append(true).open(path).unwrap().set_modified(hour_ago).unwrap();
        };
        let stale = folder.path().join(".partial-dead");
        fs::write(&stale, "{").unwrap();
        age(&stale);
        for index in 0..FILES + 10 {
            kept(index).write(speed);
            if index < 10 {
                age(&kept(index).path);
            }
        }
        let known = (0..FILES + 10).filter(|&index| kept(index).read().is_some());
        assert_eq!(known.collect::<Vec<_>>(), (10..FILES + 10).collect::<Vec<_>>());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), FILES + 2);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_small_file_is_neither_waited_for_nor_read() {
        let folder = tempfile::tempdir().unwrap();
        let kept = CachedSpeed::new(folder.path(), "cpu".to_owned());
        assert!(std::process::Command::new("mkfifo").arg(&kept.path).status().unwrap().success());
        assert_eq!(kept.read(), None);
        let speed = Coefficients { fixed: 0.001, per_token: 1e-6, per_square: 0.0 };
        kept.write(speed);
        assert_eq!(kept.read(), Some(speed), "it is replaced");
        fs::File::options().append(true).open(&kept.path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(kept.read(), None);
    }
}
