//! Traces of memory, kept when a lease was refused: what had been asked for until then.

use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vecmill_memory::trace::Trace;

/// At most one file in so long: refusals come in bursts, and one trace shows them all.
const INTERVAL: Duration = Duration::from_secs(60);

/// The most files that are kept. The first ones say most; nothing is deleted for later ones.
const FILES: usize = 16;

const PREFIX: &str = "refusal-";

/// A folder for traces.
#[derive(Debug)]
pub(crate) struct RefusalTraces {
    folder: PathBuf,
    last: Mutex<Option<Instant>>,
}

impl RefusalTraces {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, last: Mutex::new(None) }
    }

    /// Writes what `trace` gives to a new file, unless that was done a moment ago or there are
    /// enough files.
    pub(crate) fn refused(&self, device: &str, trace: impl FnOnce() -> Trace) {
        {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| last.elapsed() < INTERVAL) {
                return;
            }
            *last = Some(Instant::now());
        }
        match write(&self.folder, device, trace) {
            Ok(Some(path)) => {
                tracing::warn!(device, path = %path.display(), "a lease was refused: trace written");
            }
            Ok(None) => {}
            Err(error) => {
                let folder = self.folder.display();
                tracing::warn!(device, %folder, %error, "a trace of memory can't be written");
            }
        }
    }
}

/// The file that was written; `None` when there are enough.
fn write(
    folder: &Path,
    device: &str,
    trace: impl FnOnce() -> Trace,
) -> io::Result<Option<PathBuf>> {
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
    trace().write(BufWriter::new(&file))?;
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
    fn one_trace_is_kept_of_a_burst_of_refusals() {
        let folder = tempfile::tempdir().unwrap();
        let traces = RefusalTraces::new(folder.path().join("new"));
        for _ in 0..3 {
            traces.refused("cuda:0/sms=32", Trace::default);
        }
        let [file] = &files(&folder.path().join("new"))[..] else { panic!("one file") };
        assert!(file.file_name().unwrap().to_string_lossy().starts_with("refusal-cuda-0-sms-32-"));
        let text = std::fs::read(file).unwrap();
        assert_eq!(Trace::read(&*text).unwrap(), Trace::default());
    }

    #[test]
    fn a_full_folder_gets_no_more() {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..FILES {
            std::fs::write(folder.path().join(format!("{PREFIX}{index}.csv")), "").unwrap();
        }
        let unwanted = || panic!("the trace is not even taken");
        assert!(write(folder.path(), "cpu", unwanted).unwrap().is_none());
        RefusalTraces::new(folder.path().to_owned()).refused("cpu", unwanted);
        assert_eq!(files(folder.path()).len(), FILES);
    }
}
