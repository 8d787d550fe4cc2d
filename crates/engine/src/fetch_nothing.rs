//! A model's folder, where this build can't fetch one.

use std::path::{Path, PathBuf};

use vecmill_model::ModelRef;

use crate::settings::Progress;

/// Why a model could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The folder isn't there.
    #[error("{}: there is no such folder", path.display())]
    NoFolder {
        /// The folder.
        path: PathBuf,
    },
    /// Only a hub has it.
    #[error(
        "the model {model} can't be fetched: vecmill-engine was built without its feature 'hub': \
         point at the model's folder"
    )]
    NoHub {
        /// The model.
        model: ModelRef,
    },
}

pub(crate) fn folder(
    model: &ModelRef,
    _: Option<&Path>,
    _: Option<&str>,
    _: &Progress,
) -> Result<PathBuf, FetchError> {
    match model {
        ModelRef::Folder(folder) if folder.is_dir() => Ok(folder.clone()),
        ModelRef::Folder(folder) => Err(FetchError::NoFolder { path: folder.clone() }),
        ModelRef::Hub { .. } => Err(FetchError::NoHub { model: model.clone() }),
    }
}
