//! Recordings of memory, kept when a lease was refused: what had been asked for until then.
//!
//! They are written beside the batches: a full disk costs the recording, a slow one not even time.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vecmill_memory::recording::Recording;

use crate::aside::Aside;
use vecmill_model::disk::NoRoom;

/// At most one file in so long: refusals come in bursts, and one recording shows them all.
const INTERVAL: Duration = Duration::from_secs(60);

/// The most files that are kept. The first ones say most; nothing is deleted for later ones.
const FILES: usize = 16;

const PREFIX: &str = "refusal-";

/// A folder for recordings.
#[derive(Debug)]
pub(crate) struct RefusalRecordings {
    folder: PathBuf,
    /// When the last one was begun, and its writing.
    last: Mutex<Option<(Instant, Option<Aside>)>>,
}

impl RefusalRecordings {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, last: Mutex::new(None) }
    }

    /// Has what `recording` gives written to a new file, unless that was done a moment ago, is still
    /// being done, or there are enough files.
    pub(crate) fn refused(&self, device: &str, recording: impl FnOnce() -> Recording) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let too_soon = last.as_ref().is_some_and(|(begun, writing)| {
            begun.elapsed() < INTERVAL || writing.as_ref().is_some_and(Aside::is_running)
        });
        if too_soon {
            return;
        }
        let (folder, device, recording) = (self.folder.clone(), device.to_owned(), recording());
        let writing =
            Aside::start("recording", move || write_or_warn(&folder, &device, &recording));
        let refused =
            |error: &io::Error| tracing::warn!(%error, "a recording of memory needs a thread");
        *last = Some((Instant::now(), writing.inspect_err(refused).ok()));
    }
}

fn write_or_warn(folder: &Path, device: &str, recording: &Recording) {
    match write(folder, device, recording) {
        Ok(Some(path)) => {
            tracing::warn!(device, path = %path.display(), "a lease was refused: recording written");
        }
        Ok(None) => {}
        Err(error) => {
            let full = NoRoom::of(&error, folder, None);
            let reason = full.map_or_else(|| error.to_string(), |full| full.to_string());
            let folder = folder.display();
            tracing::warn!(device, %folder, reason, "a recording of memory can't be written");
        }
    }
}

/// The file that was written; `None` when there are enough.
fn write(folder: &Path, device: &str, recording: &Recording) -> io::Result<Option<PathBuf>> {
    std::fs::create_dir_all(folder)?;
    let ours = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with(PREFIX);
    if std::fs::read_dir(folder)?.filter_map(Result::ok).filter(ours).count() >= FILES {
        return Ok(None);
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Names of devices have colons and slashes.
    let device = device.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let path = folder.join(format!("{PREFIX}{device}-{seconds}.csv"));
    let file = tempfile::NamedTempFile::new_in(folder)?;
    let mut out = BufWriter::new(&file);
    recording.write(&mut out)?;
    out.flush()?;
    drop(out);
    file.persist(&path)?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn one_recording_is_kept_of_a_burst_of_refusals() {
        let folder = tempfile::tempdir().unwrap();
        let recordings = RefusalRecordings::new(folder.path().join("new"));
        for _ in 0..3 {
            recordings.refused("cuda:0/sms=32", Recording::default);
        }
        drop(recordings);
        let [file] = &files(&folder.path().join("new"))[..] else { panic!("one file") };
        assert!(file.file_name().unwrap().to_string_lossy().starts_with("refusal-cuda-0-sms-32-"));
        let text = std::fs::read(file).unwrap();
        assert_eq!(Recording::read(&*text).unwrap(), Recording::default());
    }

    #[test]
    fn a_full_folder_gets_no_more() {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..FILES {
            std::fs::write(folder.path().join(format!("{PREFIX}{index}.csv")), "").unwrap();
        }
        assert!(write(folder.path(), "cpu", &Recording::default()).unwrap().is_none());
        RefusalRecordings::new(folder.path().to_owned()).refused("cpu", Recording::default);
        assert_eq!(files(folder.path()).len(), FILES);
    }

    #[test]
    fn a_folder_that_does_not_answer_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let recordings = RefusalRecordings::new(folder.path().join("recordings"));
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let stuck = Aside::start("stuck", move || held.iter().for_each(drop)).unwrap();
        let long_ago = Instant::now().checked_sub(INTERVAL).unwrap();
        *recordings.last.lock().unwrap() = Some((long_ago, Some(stuck)));
        recordings.refused("cpu", || panic!("it is not even taken"));
        drop(hold);
        drop(recordings);
        assert!(!folder.path().join("recordings").exists());
    }
}
