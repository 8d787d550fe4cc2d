//! A model's folder, fetched if it is not there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use vecmill_hub::{Attempt, FetchError};
use vecmill_hub::{Fetcher, Stage as HubStage};
use vecmill_model::ModelRef;

use crate::settings::Progress;
use crate::stage::Stage;

pub(crate) fn folder(
    model: &ModelRef,
    cache: Option<&Path>,
    token: Option<&str>,
    progress: &Progress,
) -> Result<PathBuf, FetchError> {
    let progress = Arc::clone(progress);
    let progress = Arc::new(move |stage: HubStage| progress(stage.into()));
    Fetcher::new(cache.map(Path::to_owned), token.map(str::to_owned), progress).fetch(model)
}

impl From<HubStage> for Stage {
    fn from(stage: HubStage) -> Self {
        match stage {
            HubStage::Fetching { file, done, total } => Self::Fetching { file, done, total },
            HubStage::Waiting { reason, wait } => Self::Waiting { reason, wait },
        }
    }
}
