//! Why a model could not be had, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

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
    #[error(
        "'{found}' names no model: give a folder (./path/to/folder) or a Hugging Face id \
         (owner/name or owner/name@revision)"
    )]
    Reference {
        /// What was given.
        found: String,
    },
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
    /// The weights are not the published ones.
    #[error(
        "{}: the weights have SHA-256 {found}, but {expected} was published: they were damaged or \
         replaced on the way and have not been kept; try again",
        path.display()
    )]
    Hash {
        /// The file.
        path: PathBuf,
        /// The published hash, in hexadecimal.
        expected: String,
        /// The file's hash, in hexadecimal.
        found: String,
    },
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
const NEEDED: &str = "config.json, model.safetensors, tokenizer.json and, where the model has \
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
    /// For `map_err` on what is done in the cache.
    pub(super) fn cache(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Cache { path, error }
    }

    /// For `map_err` on what is missing in a folder.
    pub(crate) fn incomplete(path: &Path) -> impl FnOnce(String) -> Self {
        let path = path.to_owned();
        move |reason| Self::Incomplete { path, reason }
    }
}
