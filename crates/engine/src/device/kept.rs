//! Learned speeds, kept from one run to the next: a file per device, model and number format.
//!
//! The choice behind it: a file that can't be read or written costs only what it would have saved, a
//! few batches until speeds are known, so nothing here is an error.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vecmill_scheduler::Coefficients;

use crate::aside::Aside;

/// Where a device's speed is kept.
#[derive(Debug, Clone)]
pub(crate) struct KeptSpeed {
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

impl KeptSpeed {
    /// In `folder`, for what `of` names: device, driver, model, number format.
    pub(crate) fn new(folder: &Path, of: String) -> Self {
        let digest = Sha256::digest(of.as_bytes());
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self { path: folder.join(format!("{name}.json")), of }
    }

    /// What was kept, if it is of use.
    pub(crate) fn read(&self) -> Option<Coefficients> {
        let content: Content = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
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
        let write = || -> std::io::Result<()> {
            if let Some(folder) = self.path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&self.path, serde_json::to_vec(&content)?)
        };
        if let Err(error) = write() {
            tracing::debug!(path = %self.path.display(), %error, "a learned speed can't be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_comes_back_for_the_same_device_and_model_only() {
        let folder = tempfile::tempdir().unwrap();
        let kept = |of: &str| KeptSpeed::new(folder.path(), of.to_owned());
        assert_eq!(kept("cuda:0 model-a").read(), None);
        let speed = Coefficients { fixed: 0.001, per_token: 1e-6, per_square: 0.0 };
        kept("cuda:0 model-a").write(speed);
        assert_eq!(kept("cuda:0 model-a").read(), Some(speed));
        assert_eq!(kept("cuda:0 model-b").read(), None);
    }

    #[test]
    fn what_makes_no_sense_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let kept = KeptSpeed::new(folder.path(), "cpu".to_owned());
        kept.write(Coefficients { fixed: -1.0, per_token: 1e-6, per_square: 0.0 });
        assert_eq!(kept.read(), None);
        fs::write(&kept.path, "{").unwrap();
        assert_eq!(kept.read(), None);
    }
}
