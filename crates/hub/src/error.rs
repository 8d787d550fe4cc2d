//! Why a model could not be had, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use vecmill_model::InvalidModelRef;
use vecmill_model::disk::NoRoom;

/// A source that was tried, and why it gave no model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The source.
    pub source: String,
    /// Why it failed.
    pub reason: String,
}

/// Why a model could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The model's name is no name.
    #[error(transparent)]
    Reference(#[from] InvalidModelRef),
    /// The folder isn't there.
    #[error("{}: there is no such folder: a model folder has {NEEDED}", path.display())]
    NoFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The hub answered that it won't give the model.
    #[error("the model {model} can't be had: {reason}")]
    Refused {
        /// The model.
        model: String,
        /// What the hub said, and what to do.
        reason: String,
    },
    /// A file is not the published one.
    #[error(
        "{}: the file has the hash {found}, but {expected} was published: it was damaged or \
         replaced on the way and has not been kept; try again",
        path.display()
    )]
    Hash {
        /// The file.
        path: PathBuf,
        /// The published hash, in hexadecimal: SHA-256, or for small files git's.
        expected: String,
        /// The file's hash, in hexadecimal.
        found: String,
    },
    /// A file is shorter or longer than it says itself.
    #[error("{}: the file is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A disk is full.
    #[error("{0}: make room, or set VECMILL_CACHE and HF_HOME to folders on another disk")]
    NoRoom(NoRoom),
    /// What was fetched is not a whole model.
    #[error("{}: not a complete model: {reason}; a model folder has {NEEDED}", path.display())]
    Incomplete {
        /// The folder.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// The cache can't be used.
    #[error(
        "{}: the cache can't be used: {error}: \
         set VECMILL_CACHE to a folder that can be written to",
        path.display()
    )]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// No source could be reached.
    #[error(
        "the model {model} can't be fetched:{}\n\
         To run a model that is on this machine, point at its folder: --model-id /path/to/folder \
         (it needs {NEEDED})",
        Listed(attempts)
    )]
    Unavailable {
        /// The model.
        model: String,
        /// What was tried, in order.
        attempts: Vec<Attempt>,
    },
}

/// What a model folder needs.
const NEEDED: &str = "config.json, model.safetensors (or pytorch_model.bin), tokenizer.json and, where the model has \
                      them, modules.json with its folders";

struct Listed<'a>(&'a [Attempt]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|attempt| write!(f, "\n- {}: {}", attempt.source, attempt.reason))
    }
}

impl FetchError {
    /// The file that is not what it should be, if this is about one.
    pub(super) fn damaged(&self) -> Option<&Path> {
        match self {
            Self::Hash { path, .. } | Self::Damaged { path, .. } => Some(path),
            _ => None,
        }
    }

    /// For `map_err` on what is done in the cache.
    pub(super) fn cache(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Cache { path, error }
    }

    /// For `map_err` on what is written to `path`, which takes so many bytes.
    pub(super) fn written(path: &Path, needed: Option<u64>) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| match NoRoom::of(&error, &path, needed) {
            Some(full) => Self::NoRoom(full),
            None => Self::Cache { path, error },
        }
    }

    /// For `map_err` on what is missing in a folder.
    pub fn incomplete(path: &Path) -> impl FnOnce(String) -> Self {
        let path = path.to_owned();
        move |reason| Self::Incomplete { path, reason }
    }
}
